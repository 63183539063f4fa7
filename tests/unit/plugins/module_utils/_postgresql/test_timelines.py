# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Timeline histories, and where two servers went apart."""

from __future__ import annotations

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.lsn import format_lsn
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.timelines import (
    Fork,
    History,
    fork_of,
    history_switchpoint,
)
from hypothesis import given, settings
from hypothesis import strategies as st

HISTORY = (
    "# written by hand\n1\t0/3000148\tno recovery target specified\n\n2\t16/B374D848\tbefore 2026-11-23 01:02:03\n"
)


def test_history_files() -> None:
    assert history_switchpoint(HISTORY, 1) == 0x3000148
    assert history_switchpoint(HISTORY, 2) == 0x16B374D848
    with pytest.raises(DbopsError, match=r"does not name timeline 3.*pg_member"):
        history_switchpoint(HISTORY, 3)


@pytest.mark.parametrize("line", ["1", "x\t0/1\treason", "1\t01\treason", "1\t0/1FFFFFFFF\treason"])
def test_a_malformed_history_file_is_refused(line: str) -> None:
    with pytest.raises(DbopsError, match="in a timeline history file"):
        history_switchpoint(line, 1)


# --------------------------------------------------------------------------------------------------- where two forked

Tree = dict[int, tuple[int, int]]
"""Timeline -> the one that it left, and where. The first one left nothing."""


@st.composite
def two_servers(draw: st.DrawFn) -> tuple[Tree, tuple[int, int], tuple[int, int]]:
    """A tree of timelines, and two servers: the timeline that each is on, and how far it has come there. Positions are
    few, so that they often coincide."""
    tree: Tree = {1: (0, 0)}
    for timeline in range(2, draw(st.integers(1, 6)) + 1):
        parent = draw(st.sampled_from(sorted(tree)))
        tree[timeline] = (parent, tree[parent][1] + draw(st.integers(0, 3)))
    places = []
    for _server in range(2):
        timeline = draw(st.sampled_from(sorted(tree)))
        places.append((timeline, tree[timeline][1] + draw(st.integers(0, 3))))
    return tree, places[0], places[1]


def history_of(tree: Tree, place: tuple[int, int]) -> History:
    lines, (timeline, end) = [], place
    while tree[timeline][0]:
        timeline, lsn = tree[timeline]
        lines.append(f"{timeline}\t{format_lsn(lsn)}\tno recovery target specified\n")
    return History.parse("".join(reversed(lines)), timeline=place[0], end=end)


def wal_of(tree: Tree, place: tuple[int, int]) -> list[tuple[int, int]]:
    """Every unit of WAL that a server has, as (timeline, position), oldest first."""
    timeline, end = place
    if timeline == 0:
        return []
    parent, start = tree[timeline]
    return [*wal_of(tree, (parent, start)), *((timeline, at) for at in range(start, end))]


@settings(max_examples=500)
@given(two_servers())
def test_the_fork_is_where_the_wal_of_two_servers_differs(
    servers: tuple[Tree, tuple[int, int], tuple[int, int]],
) -> None:
    tree, mine, theirs = servers
    fork = fork_of(history_of(tree, mine), history_of(tree, theirs))
    assert fork is not None
    member, primary = wal_of(tree, mine), wal_of(tree, theirs)
    only_mine = [unit for unit in member if unit not in set(primary)]
    assert [(timeline, at) for timeline, start, end in fork.pieces for at in range(start, end)] == only_mine
    assert all(start < end for _timeline, start, end in fork.pieces)
    assert fork.diverged == bool(only_mine)
    assert fork.lsn == len([unit for unit in member if unit in set(primary)]), "both begin at 0 and have no holes"
    lived = [{timeline for timeline, _end in history_of(tree, place).all} for place in (mine, theirs)]
    assert fork.timeline in lived[0] & lived[1]


def test_a_server_that_was_promoted_beside_the_primary() -> None:
    """Both made a timeline 2, at different positions: the number is the same, the WAL is not."""
    mine, theirs = History(((1, 10),), 2, 14), History(((1, 12),), 2, 20)
    assert fork_of(mine, theirs) == Fork(1, 10, True, ((2, 10, 14),))
    assert fork_of(theirs, mine) == Fork(1, 10, True, ((1, 10, 12), (2, 12, 20)))


def test_two_that_have_no_timeline_in_common() -> None:
    assert fork_of(History((), 1, 10), History((), 2, 10)) is None
