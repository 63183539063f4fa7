# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to hold within one database, broken in every way that is looked for."""

from __future__ import annotations

from typing import Any

import psycopg2.errors
import pytest

from tests.integration.consistency.scene import Pair, good
from tests.lab import users


def of_source(result: dict[str, Any]) -> dict[str, Any]:
    """What was found on the source, by object; the target is whole."""
    source, target = result["results"]
    assert (source["name"], target["name"], target["status"]) == ("source", "target", "consistent"), target
    return {one["object"]: one["found"] for one in source["sample"]}


TWO = """
CREATE TABLE parent (a int, b int, PRIMARY KEY (a, b)); INSERT INTO parent VALUES (1, 1);
CREATE TABLE child (id serial PRIMARY KEY, a int, b int, n int CONSTRAINT small CHECK (n < 10),
                    CONSTRAINT up FOREIGN KEY (a, b) REFERENCES parent);
CREATE TABLE whole (id int GENERATED ALWAYS AS IDENTITY, a int, b int,
                    CONSTRAINT up FOREIGN KEY (a, b) REFERENCES parent MATCH FULL);
INSERT INTO child (a, b, n) VALUES (1, 1, 1), (NULL, 5, 2); INSERT INTO whole (a, b) VALUES (1, 1), (NULL, NULL)
"""


def test_constraints(pair: Pair) -> None:
    pair.sql(TWO)
    good(pair.check({"kind": "constraints"}))
    # As a restore, a subscription and a hurried operator do it.
    pair.source.sql(
        "SET session_replication_role = replica; INSERT INTO child (a, b) VALUES (7, 7), (8, 8);"
        "INSERT INTO whole (a, b) VALUES (1, NULL)",
        user=users.SUPERUSER,
    )
    pair.source.sql("ALTER TABLE child DROP CONSTRAINT small; INSERT INTO child (n) VALUES (11)")
    pair.source.sql("ALTER TABLE child ADD CONSTRAINT small CHECK (n < 10) NOT VALID")
    result = pair.check({"kind": "constraints"})
    source = result["results"][0]
    found = [(one["object"], one["found"]) for one in source["sample"]]
    assert found == [
        ("small of public.child", "1 rows that break it"),
        ("small of public.child", "NOT VALID"),
        ("up of public.child", "2 rows whose parent is missing"),
        ("up of public.whole", "1 rows whose parent is missing"),
    ]
    assert (result["failed"], result["differences"], result["consistent"]) == (True, 4, False)
    assert of_source(pair.check({"kind": "constraints", "tables": ["public.whole"]})).keys() == {"up of public.whole"}


def test_sequences(pair: Pair) -> None:
    pair.sql(TWO)
    pair.sql(
        "CREATE SEQUENCE own; CREATE TABLE loose (id bigint DEFAULT nextval('own')); INSERT INTO loose DEFAULT VALUES"
    )
    pair.sql(
        "CREATE TABLE down (id int GENERATED ALWAYS AS IDENTITY (INCREMENT -2 START -1));"
        "INSERT INTO down DEFAULT VALUES"
    )
    pair.sql("CREATE TABLE never (id serial)")
    good(pair.check({"kind": "sequences"}))
    pair.source.sql("INSERT INTO child (id) VALUES (50); INSERT INTO loose VALUES (2); INSERT INTO never VALUES (1)")
    pair.source.sql("INSERT INTO down OVERRIDING SYSTEM VALUE VALUES (-9)")
    assert of_source(pair.check({"kind": "sequences"})) == {
        "public.child_id_seq of public.child.id": "its next value is 3, the column has 50 already",
        "public.own of public.loose.id": "its next value is 2, the column has 2 already",
        "public.never_id_seq of public.never.id": "its next value is 1, the column has 1 already",
        "public.down_id_seq of public.down.id": "its next value is -3, the column has -9 already",
    }
    result = pair.check({"kind": "sequences"})
    for one in result["results"][0]["sample"]:
        pair.source.sql(one["remedy"])
    good(pair.check({"kind": "sequences"}))


def test_a_named_table_is_found_whatever_its_name_and_with_its_partitions(pair: Pair) -> None:
    pair.sql(
        'CREATE TABLE "user" (id serial PRIMARY KEY);'
        'CREATE TABLE "Order" (id int PRIMARY KEY) PARTITION BY RANGE (id);'
        'CREATE TABLE part PARTITION OF "Order" DEFAULT'
    )
    result = good(pair.check({"kind": "indexes", "tables": ["public.user", "public.Order"]}))
    assert result["results"][0]["counts"]["indexes"] == 3
    result = good(pair.check({"kind": "indexes", "exclude_tables": ["public.Order"]}))
    assert result["results"][0]["counts"]["indexes"] == 1


def test_what_other_sessions_have_for_themselves_is_not_looked_at(pair: Pair) -> None:
    connection = pair.source.connect()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE own (id serial PRIMARY KEY)")
        good(pair.check({"kind": "sequences"}, {"kind": "constraints"}, {"kind": "indexes"}))
    connection.close()


def test_a_sequence_that_was_restarted(pair: Pair) -> None:
    pair.sql("CREATE TABLE t (id serial); INSERT INTO t VALUES (999)")
    for side in (pair.source, pair.target):
        side.sql("ALTER SEQUENCE t_id_seq RESTART WITH 1000")
    good(pair.check({"kind": "sequences"}))
    pair.source.sql("ALTER SEQUENCE t_id_seq RESTART WITH 5")
    assert of_source(pair.check({"kind": "sequences"})) == {
        "public.t_id_seq of public.t.id": "its next value is 5, the column has 999 already"
    }


def test_indexes(pair: Pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT g, 1 FROM generate_series(1, 2000) AS g")
    result = pair.check({"kind": "indexes"})
    good(result)
    assert "amcheck is not installed" in result["results"][0]["notes"][0]
    assert "amcheck is not installed" in pair.check({"kind": "indexes", "amcheck": "required"})["msg"]
    with pytest.raises(psycopg2.errors.UniqueViolation):
        pair.source.sql("CREATE UNIQUE INDEX CONCURRENTLY broken ON t (v)")
    assert of_source(pair.check({"kind": "indexes"})).keys() == {"public.broken"}
    pair.source.sql("DROP INDEX broken")

    for side in (pair.source, pair.target):
        side.sql("CREATE EXTENSION amcheck", user=users.SUPERUSER)
    result = pair.check({"kind": "indexes"})
    assert "not installed or not allowed" in result["results"][0]["notes"][0]
    for side in (pair.source, pair.target):
        side.sql(
            f"GRANT EXECUTE ON FUNCTION bt_index_check(regclass, boolean) TO {users.OPERATOR}", user=users.SUPERUSER
        )
    result = pair.check({"kind": "indexes", "amcheck": "required", "heapallindexed": True})
    assert (result["consistent"], result["results"][0]["counts"]["checked by amcheck"]) == (True, 1), result

    damage(pair, "t_pkey")
    result = pair.check({"kind": "indexes", "amcheck": "required"})
    assert of_source(result).keys() == {"public.t_pkey"}, result


def damage(pair: Pair, index: str) -> None:
    """Turn the keys of one of its pages around on disk, as a bad disk controller would leave them."""
    node = pair.source.cluster.primary()
    path = node.data_dir / pair.source.value("SELECT pg_relation_filepath(%s)", [index])
    node.sql("CHECKPOINT")
    node.stop()
    page = bytearray(path.read_bytes())
    start = 8192 + 24  # the second page's line pointers; the first are of the high key and of the least key
    page[start + 8 : start + 12], page[start + 80 : start + 84] = (
        page[start + 80 : start + 84],
        page[start + 8 : start + 12],
    )
    path.write_bytes(page)
    node.start()


def test_replication(pair: Pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY)")
    good(pair.check({"kind": "replication"}))
    pair.source.sql("SELECT pg_create_logical_replication_slot('lost', 'test_decoding')", user=users.SUPERUSER)
    try:
        problem = of_source(pair.check({"kind": "replication"}))["slot lost"]
        assert problem.startswith("nobody reads it and holds back ")
    finally:
        pair.source.sql("SELECT pg_drop_replication_slot('lost')", user=users.SUPERUSER)
    with pair.subscribed("t"):
        result = pair.check({"kind": "replication"})
        assert (result["consistent"], result["results"][0]["counts"]) == (True, {"receivers": 1, "slots": 1}), result
        pair.target.sql(f"ALTER SUBSCRIPTION follow_{pair.target.name} DISABLE", user=users.SUPERUSER)
        problems = of_source(pair.check({"kind": "replication"}))
        assert any(text.startswith("nobody reads it") for text in problems.values())
        pair.target.sql(f"ALTER SUBSCRIPTION follow_{pair.target.name} ENABLE", user=users.SUPERUSER)
