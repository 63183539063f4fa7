# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a conversion does of what it finds. That the server understands it is tested on servers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.operation import Check
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.conversion_plan import (
    Legacy,
    Prepared,
    Wish,
    check_cut,
    check_plain,
    check_way_back,
    convert,
    legacy_of,
    names_needed,
    prepared,
    revert,
    widened,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_catalog import (
    Column,
    Partition,
    PartitionedTable,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_keys import DAY, Interval, Key
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_steps import Request
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.table_belongings import Belongings, UniqueKey
from hypothesis import given
from hypothesis import strategies as st

PRIMARY = UniqueKey("t_pkey", "p", ("id",), True, "PRIMARY KEY (id)")
ONCE = UniqueKey("t_once", "u", ("note", "at"), True, "UNIQUE (note, at)")
COLUMNS = (Column("id", "bigint", True), Column("at", "timestamptz", True), Column("note", "text", False))
TABLE = PartitionedTable(1, "public", "t", "app", "", (), COLUMNS, "d", (), user="app")
ITS = Belongings("r", keys=(PRIMARY, ONCE), indexes=(("t_note", "btree (note)"),))
WISH = Wish(Request("at", Key("timestamptz"), Interval(1, "day"), 1, "{table}_p{start}"), "t_legacy", DAY, ("t_pkey",))


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.status == "failed"]


def names(belongings: Belongings = ITS, found: Prepared | None = None) -> list[str]:
    return [transaction.name for transaction in convert(TABLE, belongings, WISH, found or Prepared())]


def test_nothing_is_wrong_with_an_ordinary_table() -> None:
    assert failed([*check_plain(TABLE, ITS, WISH), *check_cut(WISH, 5, 7, nulls=False)]) == []


@pytest.mark.parametrize(
    ("belongings", "wish", "check"),
    [
        (replace(ITS, kind="v"), WISH, "plain"),
        (replace(ITS, problems=("it is unlogged",)), WISH, "plain"),
        (replace(ITS, others=("rule quiet",)), WISH, "dependents"),
        (ITS, replace(WISH, weakened=()), "unique_keys"),
        (ITS, replace(WISH, weakened=("t_pkey", "nothing")), "weaken"),
        (replace(ITS, keys=(replace(PRIMARY, plain=False),)), WISH, "weakened"),
        (ITS, replace(WISH, legacy="x" * 64), "names"),
        (ITS, replace(WISH, legacy="t_note_legacy"), "names"),
    ],
)
def test_each_check_fails_alone(belongings: Belongings, wish: Wish, check: str) -> None:
    assert failed(check_plain(TABLE, belongings, wish)) == [check]


@given(
    cut=st.integers(min_value=-3, max_value=3),
    off=st.integers(min_value=0, max_value=1),
    current=st.integers(min_value=-3 * DAY, max_value=3 * DAY),
    greatest=st.none() | st.integers(min_value=-3 * DAY, max_value=3 * DAY),
)
def test_a_cut_is_a_border_after_now_and_after_every_row(
    cut: int, off: int, current: int, greatest: int | None
) -> None:
    position = cut * DAY + off
    good = off == 0 and position > current and (greatest is None or position > greatest)
    wish = replace(WISH, cut=position)
    assert failed(check_cut(wish, current, greatest, nulls=False)) == ([] if good else ["cut"])


def test_what_a_run_before_has_left_is_not_done_again() -> None:
    all_steps = ["add dbops_bound", "validate dbops_bound", "build t_pkey_dbops", "cut over t"]
    assert names() == all_steps
    assert names(found=Prepared(cut=DAY)) == all_steps[1:]
    assert names(found=Prepared(cut=DAY, validated=True)) == all_steps[2:]
    assert names(found=Prepared(cut=DAY, validated=True, built=("t_pkey_dbops",))) == all_steps[3:]
    assert names(found=Prepared(cut=2 * DAY, validated=True)) == all_steps
    assert names(found=Prepared(broken=("t_pkey_dbops",)))[2:4] == ["drop t_pkey_dbops", "build t_pkey_dbops"]


def test_an_index_counts_as_built_by_its_columns() -> None:
    wanted = widened(ITS, "at")
    assert wanted == [("t_pkey_dbops", ("id", "at"))]

    def found(*columns: str) -> Prepared:
        built = UniqueKey("t_pkey_dbops", "", columns, True, "UNIQUE btree (…)")
        return prepared(replace(ITS, keys=(*ITS.keys, built)), wanted, cut=None, validated=False)

    assert found("id", "at") == Prepared(built=("t_pkey_dbops",))
    assert found("at", "id") == Prepared(), "not ours"
    invalid = replace(ITS, invalid_indexes=("t_pkey_dbops", "another"))
    assert prepared(invalid, wanted, cut=None, validated=False) == Prepared(broken=("t_pkey_dbops",))


@given(st.text(alphabet="ä\"'x", max_size=40))
def test_names_fit_and_are_quoted(text: str) -> None:
    name = f'q"{text}'
    belongings = replace(ITS, keys=(replace(PRIMARY, name=name),), indexes=())
    wish = replace(WISH, weakened=(name,))
    assert all(len(each.encode()) <= 63 for each in names_needed(belongings, wish))
    for transaction in convert(replace(TABLE, name=name), belongings, wish, Prepared()):
        for statement in transaction.statements:
            assert not re.search('q"(?!")', statement.sql), statement.sql


def test_the_way_back_knows_what_the_keys_were() -> None:
    cut_over = convert(TABLE, ITS, WISH, Prepared())[-1].statements[-1].sql
    comment = cut_over[cut_over.index("dbops plain: ") : -1]
    one = Partition(2, "public", "t_legacy", "r", "FOR VALUES …", False, 0, 0)
    legacy = legacy_of(one, replace(ITS, comment=comment))
    assert legacy.keys == (PRIMARY,)
    own = replace(
        ITS,
        keys=(replace(PRIMARY, name="t_pkey_legacy"),),
        index_parents=(("t_pkey_legacy", "t_pkey"), ("t_note_legacy", "t_note")),
    )
    steps = revert(replace(TABLE, partitions=(one,)), ITS, Legacy(one, legacy.keys, own), Prepared())
    assert [step.name for step in steps] == ["build t_pkey_dbops", "cut back t"]
    assert '("id")' in steps[0].statements[0].sql
    last = " ".join(statement.sql for statement in steps[-1].statements)
    assert 'ADD CONSTRAINT "t_pkey" PRIMARY KEY USING INDEX "t_pkey_dbops"' in last
    assert 'ALTER INDEX "public"."t_note_legacy" RENAME TO "t_note"' in last


def test_there_is_no_way_back_past_a_row_or_a_dependent() -> None:
    child = replace(ITS, kind="p")
    legacy = Legacy(Partition(2, "public", "t_legacy", "r", "FOR VALUES …", False, 0, 0), (PRIMARY,), ITS)
    assert failed(check_way_back(TABLE, [], child, legacy)) == []
    assert failed(check_way_back(TABLE, ["public.t_p1"], child, legacy)) == ["empty"]
    more = replace(child, others=("materialized view sums",))
    assert failed(check_way_back(TABLE, [], more, legacy)) == ["dependents"]
    referred = replace(legacy, belongings=replace(ITS, problems=("constraint x of y refers to it",)))
    assert failed(check_way_back(TABLE, [], child, referred)) == ["dependents"]
    elsewhere = replace(legacy, partition=replace(legacy.partition, schema="attic"))
    assert failed(check_way_back(TABLE, [], child, elsewhere)) == ["dependents"]
