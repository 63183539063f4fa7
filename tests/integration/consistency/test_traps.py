# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Differences that other tools overlook, and likenesses that they take for differences, each in a row of its own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.integration.consistency.scene import Pair, found
from tests.lab import users

COLUMNS = """
    id int PRIMARY KEY, name text, other text, n numeric, f float8, r float4, mood mood, at timestamptz, plain
    timestamp, day date, clock time, b bytea, doc jsonb, js json, list int[], words text[], padded char(6), yes
    boolean, i interval, u uuid, positive positive, area point, bits bit(3), cash money, span int4range, address inet,
    couple couple, kind regtype, big bigint, nums numeric[], o interval, t2 time
"""
SAME = """
INSERT INTO traps SELECT g, 'name ' || g, '', g / 7.0, g / 7.0, g / 7.0, 'calm',
    '2026-01-01 00:00+00'::timestamptz + g * interval '1.000001 s', '2026-01-01', '2026-01-01', '12:00',
    decode(md5(g::text), 'hex'), '{"a": 1}', '{"b":  1}', ARRAY[g, NULL], ARRAY['a,b', 'ä'], 'x', g % 3 = 0,
    g * interval '1 day', md5(g::text)::uuid, g, point(g, 0.1), B'101', g, int4range(g, g + 5), '10.0.0.1'::inet,
    ROW(g, 'y')::couple, 'int8'::regtype, g, ARRAY[g, 1.5], '1 day', '12:00'
  FROM generate_series(1, 3000) AS g
"""


@dataclass
class Trap:
    """What is set on the source and on the target, and who has to see a difference. ``also``: of both sides before."""

    number: int
    source: str
    target: str
    fast: bool = True
    strict: bool = True
    note: str = ""


SEEN = [
    Trap(
        1, "n = 10", "n = 20", note="with the next one: two rows swapped a value, so the sum of row hashes is the same"
    ),
    Trap(2, "n = 20", "n = 10"),
    Trap(3, "name = NULL", "name = '<null>'"),
    Trap(4, "mood = 'calm'", "mood = 'angry'"),
    Trap(5, "f = 0.1", "f = 0.10000000000000002", note="the last digit of a float"),
    Trap(6, "name = 'one'", "name = 'two'"),
    Trap(7, "name = NULL", "name = ''"),
    Trap(8, "n = 'NaN'", "n = NULL", note="hash_numeric makes 0 of NaN, and NULL counts as 0"),
    Trap(25, "n = 0", "n = NULL"),
    Trap(9, "f = 'NaN'", "f = 'Infinity'"),
    Trap(10, "name = 'x'", "name = 'x '", note="a trailing space"),
    Trap(11, "name = U&'\\00e4'", "name = U&'a\\0308'", note="normal forms of Unicode"),
    Trap(12, "name = 'a|b', other = 'c'", "name = 'a', other = 'b|c'", note="a separator within"),
    Trap(13, "list = '{{1,2},{3,4}}'", "list = '{1,2,3,4}'", note="the shape of an array"),
    Trap(14, "yes = false", "yes = NULL"),
    Trap(15, "b = '\\x00'", "b = '\\x0000'"),
    Trap(16, "js = '{\"b\": 1}'", "js = '{\"b\": 2}'"),
    Trap(17, "at = '2026-01-01 00:00:00.000001+00'", "at = '2026-01-01 00:00:00.000002+00'"),
    Trap(18, "name = '1', other = NULL", "name = NULL, other = '1'", note="a value in the next column"),
    Trap(19, "area = '(1,2)'", "area = '(2,1)'"),
    Trap(20, "couple = ROW(1, 'z')", "couple = ROW(1, 'y')"),
    Trap(21, "words = '{NULL}'", "words = '{\"NULL\"}'"),
    Trap(22, "span = '[1,5)'", "span = '[1,5)'::int4range * '[1,4)'::int4range"),
    Trap(23, "kind = 'int4'", "kind = 'int2'"),
    Trap(24, 'doc = \'{"a": 1, "b": null}\'', "doc = '{\"a\": 1}'"),
]
EQUAL = [
    Trap(41, "n = 1.0", "n = 1.00", fast=False),
    Trap(42, "f = '-0.0'", "f = '0.0'", fast=False),
    Trap(43, "f = 'NaN'", "f = 'NaN'", fast=False, strict=False),
    Trap(44, "mood = 'angry'", "mood = 'angry'", fast=False, strict=False, note="an enum with another OID"),
    Trap(45, "padded = 'ab'", "padded = 'ab    '", fast=False, strict=False),
    Trap(46, 'doc = \'{"a":1,"b":2}\'', 'doc = \'{"b": 2, "a": 1}\'', fast=False, strict=False),
    Trap(47, "at = '2026-06-01 12:00+00'", "at = '2026-06-01 14:00+02'", fast=False, strict=False),
    Trap(48, "kind = 'mood'", "kind = 'mood'", fast=False, strict=False),
]


@pytest.fixture
def traps(pair: Pair) -> Pair:
    for side, moods in ((pair.source, "'calm', 'angry'"), (pair.target, "'angry', 'calm'")):
        if side is pair.target:  # so that OIDs, positions of columns and settings of the session are others
            side.sql("CREATE TYPE other AS ENUM ('a'); CREATE TYPE another AS ENUM ('b')")
        side.sql(f"CREATE TYPE mood AS ENUM ({moods}); CREATE TYPE couple AS (a int, b text)")
        side.sql("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
        columns = [column.strip() for column in COLUMNS.split(",")]
        if side is pair.target:
            columns.reverse()
            columns.insert(3, "gone int")
        side.sql(f"CREATE TABLE traps ({', '.join(columns)})")
        names = ", ".join(column.split()[0] for column in COLUMNS.split(","))
        side.sql(SAME.replace("INTO traps", f"INTO traps ({names})"))
    pair.target.sql("ALTER TABLE traps DROP gone")
    for setting in (
        "TimeZone = 'Asia/Tokyo'",
        "extra_float_digits = -3",
        "DateStyle = 'German'",
        "bytea_output = escape",
    ):
        pair.target.sql(
            f"ALTER ROLE {users.OPERATOR} IN DATABASE {pair.target.name} SET {setting}", user=users.SUPERUSER
        )
    for trap in (*SEEN, *EQUAL):
        pair.source.sql(f"UPDATE traps SET {trap.source} WHERE id = {trap.number}")  # noqa: S608
        pair.target.sql(f"UPDATE traps SET {trap.target} WHERE id = {trap.number}")  # noqa: S608
    pair.source.sql("DELETE FROM traps WHERE id = 31")
    pair.target.sql("DELETE FROM traps WHERE id = 32")
    pair.sql("ANALYZE traps")
    return pair


@pytest.mark.parametrize("hashing", ["fast", "strict"])
@pytest.mark.parametrize("chunk_rows", [65536, 200])
def test_every_trap_is_seen_and_nothing_else(traps: Pair, hashing: str, chunk_rows: int) -> None:
    result = traps.table("traps", {"sample": 100, "chunk_rows": chunk_rows}, hash=hashing)

    wanted = {("changed", str(trap.number)) for trap in (*SEEN, *EQUAL) if getattr(trap, hashing)}
    wanted |= {("extra", "31"), ("missing", "32")}
    one = result["one"]
    assert found(one) == wanted, [entry for entry in one["sample"] if ("changed", *entry["key"]) not in wanted][:9]
    assert (result["failed"], result["consistent"], one["differences"]) == (True, False, len(wanted))
    assert (one["counts"]["missing"], one["counts"]["extra"]) == (1, 1)
    assert "name" in next(entry["columns"] for entry in one["sample"] if entry["key"] == ["3"])


def test_it_names_the_columns_and_never_a_value(traps: Pair) -> None:
    result = traps.table("traps", {"sample": 100})
    columns = {entry["key"][0]: entry.get("columns") for entry in result["one"]["sample"]}
    assert (columns["12"], columns["5"], columns["20"]) == (["name", "other"], ["f"], ["couple"])
    assert "<null>" not in str(result)
