# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where two servers of one cluster went apart. Timeline histories in, a fork out; no IO.

Source: src/backend/access/transam/timeline.c; pg_rewind's findCommonAncestorTimeline().
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .._core.errors import DbopsError
from .lsn import parse_lsn


@dataclass(frozen=True)
class History:
    """The timelines a server has lived on, oldest first, each with the LSN at which it left it; ``end`` is how far it
    has come on the last one."""

    switches: tuple[tuple[int, int], ...]
    timeline: int
    end: int

    @classmethod
    def parse(cls, text: str, *, timeline: int, end: int) -> History:
        """``text`` of the history file of ``timeline``; empty for the first one. Raises DbopsError."""
        return cls(tuple(_switches(text)), timeline, end)

    @property
    def all(self) -> tuple[tuple[int, int], ...]:
        return (*self.switches, (self.timeline, self.end))


def _switches(text: str) -> Iterator[tuple[int, int]]:
    for line in text.splitlines():
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            yield int(fields[0]), parse_lsn(fields[1])
        except (ValueError, IndexError) as error:
            raise DbopsError(
                found=f"the line {line!r} in a timeline history file",
                expected="a timeline, an LSN and a reason",
                remedy="compare pg_wal/*.history of the new primary with its archived copy",
            ) from error


def history_switchpoint(text: str, parent_timeline: int) -> int:
    """The LSN at which ``parent_timeline`` was left, from the text of a later timeline's history file.

    Raises DbopsError if the file does not name that timeline or is malformed.
    """
    for timeline, lsn in _switches(text):
        if timeline == parent_timeline:
            return lsn
    raise DbopsError(
        found=f"a timeline history file that does not name timeline {parent_timeline}",
        expected=f"a timeline that descends from timeline {parent_timeline}",
        remedy="this server does not continue the old primary: bring it back with pg_member, state=following",
    )


@dataclass(frozen=True)
class Fork:
    """``timeline`` is the last one both have lived on, left by the earlier one of them at ``lsn``."""

    timeline: int
    lsn: int
    diverged: bool
    """The member has WAL that the primary has not."""
    pieces: tuple[tuple[int, int, int], ...] = ()
    """That WAL: (timeline, from, to)."""


def fork_of(member: History, primary: History) -> Fork | None:
    """None where they have no timeline in common, so neither can be made to follow the other."""
    common: tuple[int, int] | None = None
    for (mine, my_end), (theirs, their_end) in zip(member.all, primary.all):
        if mine != theirs:
            break
        common = (mine, min(my_end, their_end))
        if my_end != their_end:
            break
    if common is None:
        return None
    timeline, lsn = common
    pieces = []
    for position, (number, end) in enumerate(member.all):
        if number == timeline and end > lsn:
            pieces.append((number, lsn, end))
        elif number > timeline and member.all[position - 1][1] < end:
            pieces.append((number, member.all[position - 1][1], end))
    return Fork(timeline, lsn, bool(pieces), tuple(pieces))
