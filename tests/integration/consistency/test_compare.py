# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys of every kind, what is refused, and tables that are checked beside one that cannot be."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.integration.consistency.scene import Pair, found, good
from tests.lab import users
from tests.lab.operation import run_module

ROWS = 4000
KEYS: dict[str, tuple[str, str, str]] = {
    # columns with the key, the key's columns, one row of number g
    "integer": ("id bigint", "id", "g"),
    "skewed": ("id bigint", "id", "CASE WHEN g < 3900 THEN g ELSE 1000000000 + g * 1000000::bigint END"),
    "negative": ("id int", "id", "g - 2000"),
    "numeric": ("id numeric", "id", "g / 10.0"),
    "uuid": ("id uuid", "id", "md5(g::text)::uuid"),
    "text under C": ('id text COLLATE "C"', "id", "'Ä key ' || g || E'%\\\\'''"),
    "text": ("id text", "id", "md5(g::text)"),
    "time": ("id timestamptz", "id", "'2026-01-01'::timestamptz + g * interval '1.5 s'"),
    "composite": ('a int, b text COLLATE "C"', "a, b", "g % 5, 'k' || g"),
    "composite, first column selective": ("a bigint, b int", "a, b", "g, g % 3"),
    "enum": ("id mood, a int", "id, a", "(ARRAY['x', 'y'])[1 + g % 2]::mood, g"),
    "quoted": ('"Id %" int', '"Id %"', "g"),
}


def fill(pair: Pair, kind: str, *, analyze: bool = True) -> None:
    columns, key, row = KEYS[kind]
    pair.sql(
        "CREATE TYPE mood AS ENUM ('x', 'y');"  # noqa: S608
        f"CREATE TABLE t ({columns}, v text, n int, PRIMARY KEY ({key}));"
        f"INSERT INTO t SELECT {row}, 'v' || g, g FROM generate_series(1, {ROWS}) AS g"
    )
    if analyze:
        pair.sql("ANALYZE t")


def expected(pair: Pair, kind: str, numbers: dict[int, str]) -> set[tuple[str, ...]]:
    """Kind and key, as text, of the rows with these numbers."""
    shown = "trim_scale({})::text" if kind == "numeric" else "{}::text"
    keys = ", ".join(shown.format(name) for name in KEYS[kind][1].split(", "))
    union = {}
    for side in (pair.source, pair.target):
        union.update({row[0]: row[1:] for row in side.sql(f"SELECT n, {keys} FROM t")})  # noqa: S608
    return {(what, *union[number]) for number, what in numbers.items()}


def break_rows(pair: Pair, seed: int, many: int = 30) -> dict[int, str]:
    """Change, add and remove rows at random; what became of which."""
    numbers = random.Random(seed).sample(range(1, ROWS + 1), many)
    changed, missing, extra = numbers[::3], numbers[1::3], numbers[2::3]
    pair.target.sql("UPDATE t SET v = v || 'x' WHERE n = ANY (%s)", [changed])
    pair.target.sql("DELETE FROM t WHERE n = ANY (%s)", [missing])
    pair.source.sql("DELETE FROM t WHERE n = ANY (%s)", [extra])
    kinds = {"changed": changed, "missing": missing, "extra": extra}
    return {number: kind for kind, several in kinds.items() for number in several}


NEVER_ANALYZED = ("integer", "text under C", "composite")


@pytest.mark.parametrize(
    ("kind", "analyze"), [*((kind, True) for kind in KEYS), *((kind, False) for kind in NEVER_ANALYZED)]
)
def test_every_difference_is_found_whatever_the_key(pair: Pair, kind: str, analyze: bool) -> None:
    fill(pair, kind, analyze=analyze)
    same = pair.table("t", {"chunk_rows": 300})
    assert (same.get("failed", False), same["consistent"], same["one"]["counts"]["rows"]) == (False, True, ROWS), same

    numbers = break_rows(pair, seed=ROWS)
    result = pair.table("t", {"chunk_rows": 300, "sample": 100})
    assert found(result["one"]) == expected(pair, kind, numbers), result["one"]["division"]
    assert result["consistent"] is False


def test_most_rows_differ(pair: Pair) -> None:
    fill(pair, "integer")
    pair.target.sql("UPDATE t SET v = v || 'x' WHERE n % 10 <> 0")
    result = pair.table("t", {"chunk_rows": 300, "sample": 0})
    assert (result["differences"], result["one"]["truncated"]) == (ROWS * 9 // 10, False)

    result = pair.table("t", {"chunk_rows": 300, "max_differences": 50})
    assert (result["differences"], result["one"]["truncated"]) == (50, True)
    assert "at least 50 differences" in result["msg"]


def test_one_side_is_empty(pair: Pair) -> None:
    fill(pair, "integer")
    pair.target.sql("TRUNCATE t")
    assert pair.table("t", {"chunk_rows": 300})["one"]["counts"]["missing"] == ROWS
    pair.source.sql("TRUNCATE t")
    good(pair.table("t"))


def test_only_some_columns_and_rows(pair: Pair) -> None:
    fill(pair, "integer")
    pair.target.sql("UPDATE t SET v = 'x' WHERE n <= 10")
    good(pair.table("t", columns=["n"]))
    good(pair.table("t", exclude=["v"]))
    good(pair.table("t", where="n > 10"))
    # A row that meets it on one side only is missing or extra: 2, 4, 6, 8, 10 are, and 3 meets it on both.
    assert pair.table("t", where="n % 2 = 0 AND v LIKE '%x%' OR n = 3")["differences"] == 6


def test_a_partitioned_table_is_compared_with_a_plain_one(pair: Pair) -> None:
    rows = "INSERT INTO t SELECT g, 'v' FROM generate_series(1, 1000) AS g"
    pair.source.sql(f"CREATE TABLE t (id int PRIMARY KEY, v text); {rows}")
    pair.target.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (MINVALUE) TO (500);"
        f"CREATE TABLE t2 PARTITION OF t DEFAULT; {rows}"
    )
    good(pair.table("t", {"chunk_rows": 100}))
    pair.target.sql("UPDATE t SET v = 'w' WHERE id IN (1, 700)")
    assert found(pair.table("t", {"chunk_rows": 100})["one"]) == {("changed", "1"), ("changed", "700")}


def test_a_given_key_need_not_be_unique(pair: Pair) -> None:
    pair.sql("CREATE TABLE t (a int NOT NULL, v text); INSERT INTO t VALUES (1, 'x'), (1, 'y'), (1, 'y'), (2, 'z')")
    good(pair.table("t", key=["a"]))
    pair.target.sql("INSERT INTO t VALUES (1, 'y'), (1, 'y')")  # an xor of all rows would not change
    assert found(pair.table("t", key=["a"])["one"]) == {("changed", "1")}


def test_like_rows_that_became_other_like_rows(pair: Pair) -> None:
    """An xor over them would be the same."""
    pair.sql("CREATE TABLE t (a int NOT NULL, v text); INSERT INTO t VALUES (1, 'x'), (1, 'y'), (1, 'y'), (2, 'z')")
    pair.target.sql("UPDATE t SET v = 'q' WHERE v = 'y'")
    assert found(pair.table("t", key=["a"])["one"]) == {("changed", "1")}


def test_values_that_two_rows_swapped_where_the_key_is_not_compared(pair: Pair) -> None:
    pair.sql(
        "CREATE TABLE t (id int PRIMARY KEY, status text); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'c')"
    )
    pair.target.sql("UPDATE t SET status = CASE id WHEN 1 THEN 'b' ELSE 'a' END WHERE id < 3")
    assert found(pair.table("t", columns=["status"])["one"]) == {("changed", "1"), ("changed", "2")}
    pair.target.sql("UPDATE t SET status = CASE id WHEN 1 THEN 'a' WHEN 2 THEN 'b' ELSE 'd' END")
    assert found(pair.table("t", exclude=["id"])["one"]) == {("changed", "3"), ("changed", "4")}


def test_a_key_that_is_longer_on_one_side(pair: Pair) -> None:
    for side, length in ((pair.source, 10), (pair.target, 20)):
        side.sql(f"CREATE TABLE t (k varchar({length}) PRIMARY KEY, v int); INSERT INTO t VALUES ('a', 1)")  # noqa: S608
    pair.target.sql("INSERT INTO t VALUES ('abcdefghijKLM', 1)")
    assert found(pair.table("t")["one"]) == {("extra", "abcdefghijKLM")}


def test_a_server_is_not_compared_with_itself(pair: Pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY)")
    result = Pair(pair.source, pair.source).table("t")
    assert (result["failed"], result["consistent"]) == (True, False)
    assert "one and the same server" in result["msg"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checks": []}, "checks is empty"),
        ({"checks": [{"kind": "table", "tables": []}]}, "table has no tables"),
        ({"duty_percent": 0}, "duty_percent is 0"),
        ({"chunk_rows": 0, "workers": 0}, "workers is 0; chunk_rows is 0"),
    ],
)
@pytest.mark.parametrize("servers", [("15", "18")], indirect=True, ids="-".join)
def test_a_gate_that_looks_at_nothing_is_not_open(pair: Pair, options: dict[str, Any], says: str) -> None:
    arguments = {"source": pair.source.login, "target": pair.target.login, "checks": [{"kind": "sequences"}], **options}
    result = run_module("consistency_check", arguments)
    assert (result["failed"], result["consistent"]) == (True, False)
    assert says in result["msg"]


def test_the_whole_report_goes_to_a_file(pair: Pair, tmp_path: Path) -> None:
    fill(pair, "integer")
    numbers = break_rows(pair, seed=1)
    path = tmp_path / "report.jsonl"
    pair.table("t", {"report_file": str(path), "sample": 1})
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(one["difference"], *one["key"]) for one in written} == expected(pair, "integer", numbers)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def refused(pair: Pair, **check: Any) -> str:
    result = pair.table("t", **check)
    assert (result["failed"], result["consistent"], result["one"]["status"]) == (True, False, "failed")
    return str(result["one"]["error"])


def test_what_cannot_be_compared_is_refused_by_name(pair: Pair) -> None:
    pair.sql("CREATE TABLE t (id int, v text)")
    assert "no unique key without NULL" in refused(pair)
    assert "id of public.t may be NULL" in refused(pair, key=["id"])
    assert "no column nope" in refused(pair, key=["nope"])
    pair.sql("ALTER TABLE t ADD PRIMARY KEY (id)")
    pair.source.sql("ALTER TABLE t ADD here int")
    pair.target.sql("ALTER TABLE t ADD there int, ALTER v TYPE varchar(20)")
    error = refused(pair)
    assert "here (source only), there (target only), v (text and character varying(20))" in error
    assert "exclude" in error
    good(pair.table("t", exclude=["here", "there", "v"]))
    assert "no column of public.t is left" in refused(pair, columns=["v"], exclude=["v"])
    pair.target.sql("DROP TABLE t")
    assert "the target has no table public.t" in refused(pair)
    pair.sql("CREATE TABLE u (n int)")
    result = pair.check({"kind": "table", "tables": ["nope.*"]})
    assert "no table fits nope.*" in result["msg"]
    result = pair.check({"kind": "counts", "tables": ["u"], "where": "n >"})
    assert "syntax error" in result["msg"]


def test_a_table_that_may_not_be_read_does_not_disturb_the_rest(pair: Pair) -> None:
    """The operator is not a member of the owner here."""
    pair.sql(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY)"
    )
    pair.target.sql("INSERT INTO c VALUES (1)")
    for side in (pair.source, pair.target):
        side.sql(f"REVOKE {users.APPLICATION} FROM {users.OPERATOR}", user=users.SUPERUSER)
        side.sql(f"GRANT SELECT ON a, c TO {users.OPERATOR}")
    try:
        result = pair.check({"kind": "table", "tables": ["public.*"]})
    finally:
        for side in (pair.source, pair.target):
            side.sql(f"GRANT {users.APPLICATION} TO {users.OPERATOR}", user=users.SUPERUSER)
    assert {one["name"]: one["status"] for one in result["results"]} == {
        "public.a": "consistent",
        "public.b": "failed",
        "public.c": "different",
    }
    assert result["failed"] is True
    assert "may not read id of public.b" in result["msg"]
    assert "GRANT SELECT" in result["results"][1]["error"]


def test_rows_that_a_policy_hides_are_not_taken_for_missing(pair: Pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, owner text); INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    for side in (pair.source, pair.target):
        side.sql("ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY")
        side.sql("CREATE POLICY own ON t USING (owner = 'a')")
    assert "row-level security" in refused(pair)


def test_a_nondeterministic_key_is_refused(pair: Pair) -> None:
    make = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
    try:
        pair.sql(make)
    except Exception as error:
        if "not supported" in str(error):
            pytest.skip("this build of PostgreSQL has no ICU")
        raise
    pair.sql("CREATE TABLE t (id text COLLATE ci PRIMARY KEY)")
    assert "takes different texts for equal" in refused(pair)
