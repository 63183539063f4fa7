# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill the current WAL segment before a planned shutdown, outside of the pause.

Where WAL is archived a server switches to a new segment when it stops (CreateCheckPoint in xlog.c): what is left of the
current one, up to 16 MB of zeros, is then written and made durable, sent to every standby, made durable there, and only
then is the server down and the candidate at its end. With an empty segment that is most of the pause. What is written
here is as much, but clients do not wait for it.
"""

from __future__ import annotations

from typing import Any

from .catalog import NodeFacts

LEAST_LEFT = 256 * 1024
SECONDS = 0.3
"""About what passes from the filling until the server stops: two short checkpoints, and the poolers' pause."""
MESSAGE_BYTES = 1024 * 1024

FILL = "SELECT count(pg_logical_emit_message(false, 'dbops', repeat('x', %s::int))) FROM generate_series(1, %s)"
"""Not transactional, so it is no transaction of anybody's; nothing but WAL is written."""


def worth_filling(primary: NodeFacts) -> bool:
    """Only where the shutdown switches segments. A consumer of logical changes may be given such messages, too
    (wal2json and test_decoding print them), so nothing is filled where there is one."""
    archives = primary.settings.get("archive_mode", "off") != "off"
    return archives and not any(slot.logical for slot in primary.slots)


def messages(position: int, segment_size: int, bytes_per_second: float) -> list[int]:
    """Sizes of the messages that leave just enough room in the segment for what clients will still write. Where they
    write too much for that, none: what they wrote in the next segment would be followed by a whole one of zeros, as if
    nothing had been filled. ``position``: an LSN."""
    left = max(LEAST_LEFT, int(2 * SECONDS * bytes_per_second))
    missing = segment_size - position % segment_size - left
    if left > segment_size // 2 or missing <= 0:
        return []
    whole, rest = divmod(missing, MESSAGE_BYTES)
    return [MESSAGE_BYTES] * whole + ([rest] if rest else [])


def calls(position: int, segment_size: int, bytes_per_second: float) -> list[tuple[str, list[Any]]]:
    """Statements with their parameters."""
    sizes = messages(position, segment_size, bytes_per_second)
    return [(FILL, [size, sizes.count(size)]) for size in sorted(set(sizes), reverse=True)]
