# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a switchover would hold clients: from what a rehearsal measured, without IO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# What a rehearsal cannot measure without doing it. Estimates for an idle machine.
END_BACKENDS_MS = 60.0  # from the stop command to the shutdown checkpoint
PROMOTION_MS = 150.0  # pg_promote until the candidate accepts writes
PATRONI_MS = 2500.0  # the same two, by Patroni


@dataclass(frozen=True)
class Measured:
    """Milliseconds. ``oldest_transaction``: the greatest age that a client's transaction was seen at. ``checkpoint``:
    one right after another. ``replay``: from a commit on the primary until the candidate has replayed it. ``console``:
    one question to the slowest pooler, None without poolers."""

    oldest_transaction: float
    checkpoint: float
    replay: float
    console: float | None


def predict(measured: Measured, *, max_pause_ms: int, drain_limit_ms: float, patroni: bool = False) -> dict[str, Any]:
    """The key ``prediction`` of the module's result: ``pause_ms``, its ``parts`` by step, and in ``exceeds`` why such a
    switchover would be rolled back, empty if it would not."""
    drain = 0.0 if measured.console is None else max(measured.oldest_transaction, 2 * measured.console)
    stop = {"promote": PATRONI_MS} if patroni else {"stop": measured.checkpoint + END_BACKENDS_MS}
    parts = {
        "pause_poolers": drain,
        "prove": measured.replay,
        **stop,
        **({} if patroni else {"promote": PROMOTION_MS}),
        "resume_poolers": 0.0 if measured.console is None else 3 * measured.console,
    }
    total = sum(parts.values())
    exceeds = ""
    before_promotion = total - parts["promote"] - parts["resume_poolers"]
    if drain > drain_limit_ms:
        exceeds = (
            f"a transaction of {drain:.0f} ms was under way, and poolers get {drain_limit_ms:.0f} ms of max_pause_ms to"
            " drain"
        )
    elif before_promotion > max_pause_ms:
        exceeds = f"{before_promotion:.0f} ms until the promotion are more than max_pause_ms = {max_pause_ms}"
    return {
        "pause_ms": round(total, 1),
        "parts": {name: round(value, 1) for name, value in parts.items()},
        "exceeds": exceeds,
    }
