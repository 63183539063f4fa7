# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.compare_catalog import (
    KeyOrder,
    Statistics,
    TableFacts,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.compare_plan import (
    Difference,
    Division,
    Piece,
    Statements,
    Wish,
    both,
    check_key,
    chosen_key,
    compared_columns,
    differences,
    differing_groups,
    divide,
    group_bits,
    hashed_columns,
    is_unique,
    pieces,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.row_hash import (
    Column,
    RowHash,
    bucket,
    method_of,
)
from hypothesis import given
from hypothesis import strategies as st

ID = Column("id", "bigint", "int8", 20, "b", not_null=True)
NAME = Column("name", "text", "text", 25, "b", collatable=True, not_null=True)
TABLE = TableFacts("public", "t", 1, "r", "p", False, 1_000_000, 10**8, (ID, NAME), (), (("id",),))


def with_columns(*columns: Column, **changes: Any) -> TableFacts:
    return replace(TABLE, columns=tuple(columns), **changes)


def test_columns_are_those_of_both_sides_by_name() -> None:
    other = with_columns(NAME, ID)
    assert [column.name for column in compared_columns(TABLE, other, Wish())] == ["id", "name"]
    assert [column.name for column in compared_columns(TABLE, other, Wish(columns=("name",)))] == ["name"]
    assert [column.name for column in compared_columns(TABLE, other, Wish(exclude=("name",)))] == ["id"]


@pytest.mark.parametrize(
    ("target", "wish", "found"),
    [
        (with_columns(ID), Wish(), "name (source only)"),
        (with_columns(ID, NAME, Column("x", "int", "int4", 23, "b")), Wish(), "x (target only)"),
        (with_columns(ID, Column("name", "integer", "int4", 23, "b")), Wish(), "name (text and integer)"),
        (TABLE, Wish(exclude=("id", "name")), "no column of public.t is left"),
        (TABLE, Wish(columns=("nope",)), "no column nope"),
        (replace(TABLE, unreadable=("name",)), Wish(), "login of the target may not read name"),
        (
            replace(TABLE, unreadable=("id",)),
            Wish(columns=("name",), key=("id",)),
            "login of the target may not read id",
        ),
    ],
)
def test_columns_that_cannot_be_compared(target: TableFacts, wish: Wish, found: str) -> None:
    with pytest.raises(DbopsError) as error:
        compared_columns(TABLE, target, wish)
    assert found in error.value.found


def test_the_key_is_hashed_too() -> None:
    assert hashed_columns((NAME,), (ID,)) == (ID, NAME)
    assert hashed_columns((ID, NAME), (ID,)) == (ID, NAME)


def test_whether_no_two_rows_can_be_alike() -> None:
    assert is_unique(TABLE, TABLE, (ID,))
    assert not is_unique(TABLE, TABLE, (NAME,))
    assert not is_unique(TABLE, replace(TABLE, keys=()), (ID,))
    assert not is_unique(TABLE, replace(TABLE, inherited=True), (ID,))


def test_a_column_excluded_by_name_may_be_on_one_side() -> None:
    assert [one.name for one in compared_columns(TABLE, with_columns(ID), Wish(exclude=("name",)))] == ["id"]


def test_what_either_side_lacks_is_not_used() -> None:
    target = with_columns(ID, replace(NAME, sendable=False, base_oid=20000))
    name = compared_columns(TABLE, target, Wish())[1]
    assert (name.sendable, name.foreign) == (False, True)


def test_the_key_is_one_that_both_have() -> None:
    source = replace(TABLE, keys=(("id",), ("name",)))
    assert chosen_key(source, replace(TABLE, keys=(("name",),)), Wish()) == (NAME,)
    assert chosen_key(source, TABLE, Wish(key=("name", "id"))) == (NAME, ID)
    with pytest.raises(DbopsError, match="no unique key"):
        chosen_key(source, replace(TABLE, keys=()), Wish())
    with pytest.raises(DbopsError, match="may be NULL"):
        chosen_key(TABLE, with_columns(replace(ID, not_null=False), NAME), Wish(key=("id",)))


def test_the_table_is_on_both_sides() -> None:
    for sides, found in (((None, TABLE), "the source has no table"), ((TABLE, None), "the target has no table")):
        with pytest.raises(DbopsError, match=found):
            both("public.t", *sides)
    assert both("public.t", TABLE, TABLE) == (TABLE, TABLE)


def test_a_collation_that_takes_texts_for_equal() -> None:
    check_key(TABLE, [NAME], [{"name": KeyOrder("C", True)}] * 2)
    with pytest.raises(DbopsError, match="collation of name"):
        check_key(TABLE, [NAME], [{"name": KeyOrder("C", True)}, {"name": KeyOrder("C", False)}])


EVEN = Statistics(-1.0, 1.0, tuple(str(number * 10_000) for number in range(101)))


def division(
    key: tuple[Column, ...] = (ID,),
    orders: tuple[str, str] = ("C", "C"),
    statistics: Statistics = EVEN,
    rows: int = 1_000_000,
    indexed: bool = True,
) -> Division:
    sorts = [{column.name: KeyOrder(sort, True) for column in key if column.collatable} for sort in orders]
    return divide(replace(TABLE, rows=rows), key, sorts, statistics, 65536, indexed=indexed)


def test_how_a_table_is_divided() -> None:
    by_statistics = division()
    assert (by_statistics.kind, by_statistics.by, by_statistics.walk) == ("ranges", 1, True)
    assert 12 <= len(by_statistics.bounds) <= 18
    assert by_statistics.bounds[-1] == ("1000000",)
    assert division(rows=10) == Division("ranges", "small")
    assert division(statistics=Statistics()).walk
    assert not division(statistics=Statistics()).bounds
    assert division(statistics=replace(EVEN, n_distinct=5)).by == 1  # of one column
    assert division(key=(ID, NAME), statistics=replace(EVEN, n_distinct=5)).by == 2
    # A hundred million rows between a hundred bounds: whole numbers are divided further, other keys walked.
    many = division(rows=100_000_000)
    assert 1400 <= len(many.bounds) <= 1700
    assert division(key=(NAME,), rows=100_000_000).bounds == ()


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (division(indexed=False), "no index of id"),
        (division(key=(NAME,), orders=("C", "libc en_US 2.36")), "ordered alike"),
        (division(key=(NAME,), orders=("", "")), "ordered alike"),
        (division(key=(replace(ID, base_oid=20000),)), "each in its own way"),
        (division(statistics=replace(EVEN, correlation=0.01)), "not stored in the order"),
    ],
)
def test_where_ranges_are_of_no_use(found: Division, why: str) -> None:
    assert found.kind == "groups"
    assert why in found.why


def test_texts_under_the_same_order_are_divided_by_ranges() -> None:
    same = "libc en_US 2.36"
    assert division(key=(NAME,), orders=(same, same)).kind == "ranges"


@given(st.lists(st.integers(-(2**62), 2**62), unique=True, min_size=1, max_size=200).map(sorted), st.integers(1, 10**9))
def test_pieces_cover_every_key_once(bounds: list[int], rows: int) -> None:
    found = division(statistics=Statistics(-1.0, 1.0, tuple(map(str, bounds))), rows=max(rows, 200_000))
    several = pieces(found, [])
    ends = [piece.upper for piece in several]
    assert [piece.lower for piece in several] == [None, *ends[:-1]]
    assert ends[-1] is None
    numbers = [int(end[0]) for end in ends if end]
    assert numbers == sorted(set(numbers))


@given(st.integers(0, 10**10))
def test_groups_are_small_or_as_many_as_may_be(rows: int) -> None:
    bits = group_bits(rows)
    assert 0 <= bits <= 14
    assert bits == 14 or rows / 2**bits <= 32


TEXT = Statements('"public"."t"', (ID, NAME), RowHash((ID, NAME), "record", 7), "name LIKE '5%'")


def test_statements() -> None:
    linear = 'hash_record_extended(ROW("id", "id" >> 32, "name" COLLATE "C"), 7)'
    row = f"hash_record_extended(ROW(int8send({linear})), 7)"
    assert TEXT.total(Piece(("1",), ("2", "a'b"))) == (
        f"""SELECT count(*), bit_xor({row}) FROM "public"."t" WHERE (name LIKE '5%')"""  # noqa: S608
        """ AND ("id") > ('1'::pg_catalog."int8")"""
        """ AND ("id", "name") <= ('2'::pg_catalog."int8", 'a''b'::pg_catalog."text")"""
    )
    groups = TEXT.groups(Piece(), 5, (3, [1, 2]))
    assert " & 31, count(*)" in groups
    assert "& 7 = ANY (ARRAY[1, 2]::bigint[]) GROUP BY 1" in groups
    assert TEXT.fetch(Piece(), None, 9).startswith(f'SELECT "id"::text, "name"::text, {row} FROM')
    assert "unnest(ARRAY['1', '2']::text[], ARRAY['a', 'b']::text[])" in TEXT.look_up([("1", "a"), ("2", "b")])
    assert TEXT.walk(("5",), 1, 100) == (
        'SELECT "id"::text FROM "public"."t" AS walked WHERE ("id") > (\'5\'::pg_catalog."int8")'
        ' ORDER BY walked."id" OFFSET 99 LIMIT 1'
    )


def test_an_md5_is_summed_and_a_hash_xored() -> None:
    assert RowHash((ID,), "md5", 7).total.startswith("sum(('x' || left(md5(")
    assert RowHash((ID,), "send", 7, strict=True).total.startswith("bit_xor(hash_record_extended(ROW(record_send(")
    assert RowHash((ID,), "send", 7, unique=False).total.startswith("sum(")


def test_the_bucket_is_that_of_the_method() -> None:
    assert bucket([ID], "record", 7) == 'hashint8extended("id", 7)'
    assert bucket([ID], "md5", 7).startswith("('x' || left(md5(")
    assert bucket([NAME], "send", 7) == 'hashtextextended("name"::text COLLATE "C", 7)'
    assert bucket([ID, NAME], "record", 7).startswith("hashint8extended(hash_record_extended(ROW(")


@pytest.mark.parametrize(
    ("versions", "probes", "strict", "method"),
    [
        ((150000, 180000), (1, 1), False, "record"),
        ((150000, 180000), (1, 1), True, "send"),
        ((150000, 180000), (1, 2), False, "md5"),
        ((130000, 180000), (None, 1), False, "md5"),
        ((130000, 130000), (None, None), True, "md5"),
    ],
)
def test_the_method_is_one_that_both_compute_alike(
    versions: tuple[int, int], probes: tuple[Any, Any], strict: bool, method: str
) -> None:
    assert method_of(*versions, *probes, strict=strict) == method


KEYS = st.integers(0, 20)
SIDE = st.lists(st.tuples(KEYS.map(str), st.integers(0, 2)), max_size=30)


@given(SIDE, SIDE)
def test_differences_are_those_of_multisets(source: list[tuple[str, int]], target: list[tuple[str, int]]) -> None:
    found = {one.key[0]: one for one in differences(source, target, 1)}
    for key in {row[0] for row in source + target}:
        here, there = (sorted(row[1] for row in rows if row[0] == key) for rows in (source, target))
        assert (key in found) == (here != there)
        if here != there:
            assert found[key].kind == ("missing" if not there else "extra" if not here else "changed")


def test_differences_keep_their_hashes() -> None:
    assert differences([("1", 5)], [("1", 6)], 1) == [Difference(("1",), "changed", "5", "6")]


@given(st.dictionaries(KEYS, st.integers(0, 3)), st.dictionaries(KEYS, st.integers(0, 3)))
def test_groups_that_differ(source: dict[int, int], target: dict[int, int]) -> None:
    found = differing_groups([(k, 1, v) for k, v in source.items()], [(k, 1, v) for k, v in target.items()])
    assert found == sorted(k for k in {*source, *target} if source.get(k) != target.get(k))


@pytest.mark.parametrize(
    ("column", "fields"),
    [
        (Column("n", "numeric(20,8)", "numeric", 1700, "b", send="numeric_send"), 'pg_catalog."numeric_send"("n")'),
        (Column("n", "numeric", "numeric", 1700, "b", send="numeric_send"), "\"n\", \"n\" < 0, \"n\" = 'NaN'"),
        (Column("n", "bigint", "int8", 20, "b", send="int8send"), '"n", "n" >> 32'),
        (Column("n", "integer", "int4", 23, "b", send="int4send"), '"n"'),
        (Column("n", "text", "text", 25, "b", send="textsend", collatable=True), '"n" COLLATE "C"'),
        (Column("n", "int4[]", "_int4", 1007, "b", "int4", 23, send="array_send"), 'pg_catalog.array_send("n")'),
        (Column("n", "jsonb", "jsonb", 3802, "b", send="jsonb_send"), 'pg_catalog."jsonb_send"("n")'),
        (Column("n", "public.mood", "mood", 20000, "e", send="enum_send"), '"n"::text COLLATE "C"'),
        (Column("n", "regclass", "regclass", 2205, "b", send="regclasssend"), '"n"::text COLLATE "C"'),
        (Column("n", "d", "timestamptz", 1184, "b", send="timestamptz_send", domain=True),
         'pg_catalog."timestamptz_send"("n"::pg_catalog."timestamptz")'),
    ],
)  # fmt: skip
def test_a_value_goes_in_with_what_its_hash_leaves_out(column: Column, fields: str) -> None:
    assert f"ROW({fields})" in RowHash((column,), "record", 7).row()


def test_numbers_of_different_scales_are_numbers_of_any_scale() -> None:
    here = with_columns(ID, Column("n", "numeric(20,8)", "numeric", 1700, "b"))
    there = with_columns(ID, Column("n", "numeric(20,2)", "numeric", 1700, "b"))
    assert compared_columns(here, there, Wish())[1].type == "numeric"
    assert compared_columns(here, here, Wish())[1].type == "numeric(20,8)"
