# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Table locks: which modes exclude each other, and what a statement of a plan takes and reads.

Source: PostgreSQL manual, "Explicit Locking"; what each statement takes was read from pg_locks on 13 to 18, and the
tests compare it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

ACCESS_SHARE = "AccessShareLock"
ROW_SHARE = "RowShareLock"
ROW_EXCLUSIVE = "RowExclusiveLock"
SHARE_UPDATE_EXCLUSIVE = "ShareUpdateExclusiveLock"
SHARE = "ShareLock"
SHARE_ROW_EXCLUSIVE = "ShareRowExclusiveLock"
EXCLUSIVE = "ExclusiveLock"
ACCESS_EXCLUSIVE = "AccessExclusiveLock"

MODES = (
    ACCESS_SHARE,
    ROW_SHARE,
    ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
    SHARE,
    SHARE_ROW_EXCLUSIVE,
    EXCLUSIVE,
    ACCESS_EXCLUSIVE,
)
"""As pg_locks names them, weakest first."""

_CONFLICTS = {
    ACCESS_SHARE: (ACCESS_EXCLUSIVE,),
    ROW_SHARE: (EXCLUSIVE, ACCESS_EXCLUSIVE),
    ROW_EXCLUSIVE: (SHARE, SHARE_ROW_EXCLUSIVE, EXCLUSIVE, ACCESS_EXCLUSIVE),
    SHARE_UPDATE_EXCLUSIVE: (SHARE_UPDATE_EXCLUSIVE, SHARE, SHARE_ROW_EXCLUSIVE, EXCLUSIVE, ACCESS_EXCLUSIVE),
    SHARE: (ROW_EXCLUSIVE, SHARE_UPDATE_EXCLUSIVE, SHARE_ROW_EXCLUSIVE, EXCLUSIVE, ACCESS_EXCLUSIVE),
    SHARE_ROW_EXCLUSIVE: MODES[2:],
    EXCLUSIVE: MODES[1:],
    ACCESS_EXCLUSIVE: MODES,
}


def conflicting(mode: str) -> tuple[str, ...]:
    """The modes in which another session's lock keeps this one waiting."""
    return _CONFLICTS[mode]


@dataclass(frozen=True)
class Lock:
    """A lock that a statement takes. ``relation`` as the operator reads it, ``schema.name``; ``scanned_bytes``: how
    much of the relation is read while it is held, 0 where the lock only touches the catalog."""

    relation: str
    mode: str
    scanned_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"relation": self.relation, "mode": self.mode, "scanned_bytes": self.scanned_bytes}


@dataclass(frozen=True)
class Statement:
    """One statement of a plan and the locks it takes. ``brief``: it takes them for milliseconds, so it is given up and
    tried again rather than left in the queue, where everybody behind it waits too."""

    sql: str
    locks: tuple[Lock, ...] = ()
    brief: bool = True


def strongest(statements: Iterable[Statement]) -> tuple[Lock, ...]:
    """For each relation the strongest lock that the statements take of it, in the order of the first ones."""
    taken: dict[str, Lock] = {}
    for statement in statements:
        for lock in statement.locks:
            before = taken.get(lock.relation)
            if before is None or MODES.index(before.mode) < MODES.index(lock.mode):
                taken[lock.relation] = lock
    return tuple(taken.values())
