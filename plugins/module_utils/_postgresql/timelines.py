# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where two servers of one cluster went apart. Timeline histories in, a fork out; no IO.

Source: src/backend/access/transam/timeline.c; pg_rewind's findCommonAncestorTimeline().
"""

from __future__ import annotations

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
        switches = []
        for line in text.splitlines():
            fields = line.split()
            if not fields or fields[0].startswith("#"):
                continue
            try:
                switches.append((int(fields[0]), parse_lsn(fields[1])))
            except (ValueError, IndexError) as error:
                raise DbopsError(
                    found=f"the line {line!r} in the history of timeline {timeline}",
                    expected="a timeline, an LSN and a reason",
                    remedy="compare pg_wal/*.history of the primary with its archived copy",
                ) from error
        return cls(tuple(switches), timeline, end)

    @property
    def all(self) -> tuple[tuple[int, int], ...]:
        return (*self.switches, (self.timeline, self.end))


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
