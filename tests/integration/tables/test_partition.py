# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_partition on real servers: what it makes, what it refuses, and that nobody misses a row meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.lease import lease_key

from tests.integration.tables.scene import CATALOG, Partitions
from tests.lab import users
from tests.lab.database import Database


def test_check_do_again(partitions: Partitions) -> None:
    database = partitions.database
    before = database.sql(CATALOG)
    planned = partitions.done(check=True)
    assert database.sql(CATALOG) == before
    assert planned["changed"]
    assert len(planned["created"]) == 3
    create, attach = planned["plan"][:2]
    assert create["by_statement"][0]["locks"] == [
        {"relation": "public.ev", "mode": "AccessShareLock", "scanned_bytes": 0}
    ]
    assert attach["by_statement"][0]["locks"][0] == {
        "relation": "public.ev",
        "mode": "ShareUpdateExclusiveLock",
        "scanned_bytes": 0,
    }
    result = partitions.done()
    assert result["created"] == planned["created"]
    assert result["statements"] == planned["statements"]
    names = {item["name"].removeprefix("public.") for item in result["created"]}
    assert set(partitions.bounds()) == names
    # What a partition has to have: its owner is the table's, no constraint of ours is left, and it was analyzed.
    assert database.sql("SELECT DISTINCT pg_get_userbyid(relowner)::text FROM pg_class WHERE relispartition") == [
        ("app",)
    ]
    assert database.sql("SELECT conname FROM pg_constraint WHERE conname LIKE 'dbops%'") == []
    assert (
        database.sql(
            "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' AND relpages = 0 AND reltuples < 0"
        )
        == []
    )
    database.sql("INSERT INTO ev (at, note) VALUES (now(), 'a')")
    again = partitions.done()
    assert (again["changed"], again["created"]) == (False, [])
    more = partitions.done(premake=3)
    assert len(more["created"]) == 1


def test_windows_of_another_zone_overlap_and_are_refused_or_filled(partitions: Partitions) -> None:
    partitions.done()
    refused = partitions.refused("overlap", time_zone="Europe/Berlin", premake=3)
    assert "public.ev_p" in refused["found"]
    filled = partitions.done(time_zone="Europe/Berlin", premake=3, partial_windows="fill")
    assert filled["changed"]
    assert not partitions.done(time_zone="Europe/Berlin", premake=3, partial_windows="fill")["changed"]


def test_partitions_of_others_count_by_their_bounds(partitions: Partitions) -> None:
    partitions.database.sql(
        "CREATE TABLE wide PARTITION OF ev FOR VALUES FROM (MINVALUE) TO ('2100-01-01 00:00:00+00')"
    )
    assert not partitions.done()["changed"]


def test_a_name_that_is_taken(partitions: Partitions) -> None:
    name = partitions.done(check=True)["created"][1]["name"]
    partitions.database.sql(f"CREATE TABLE {name} (id int)")
    assert name in partitions.refused("name_taken")["found"]


def test_what_is_refused(partitions: Partitions) -> None:
    database = partitions.database
    partitions.refused("key", key="id")
    partitions.refused("key", key="at", key_type="epoch")
    partitions.refused("interval", interval="1000")
    partitions.refused("name_length", name_template="{table}_" + "x" * 60 + "{start:%Y%m}")
    partitions.refused("name_unique", name_template="{table}_{start:%Y}", premake=1 + 12)
    partitions.refused("clock", reference_time=1000.0)
    assert "no table public.nothing" in partitions.run(table="nothing")["msg"]
    database.sql("CREATE TABLE plain (id int, at timestamptz)")
    partitions.refused("strategy", table="plain")
    database.sql("CREATE TABLE listed (id int, at timestamptz) PARTITION BY LIST (id)")
    partitions.refused("strategy", table="listed")
    database.sql("CREATE TABLE by_expression (at timestamptz) PARTITION BY RANGE ((at AT TIME ZONE 'UTC'))")
    assert "an expression" in partitions.refused("key", table="by_expression")["found"]
    assert "interval" in partitions.run(interval="fortnight")["msg"]
    partitions.refused("numbers", premake=-1)
    # A number alone would be so many microseconds: everything would have expired, and no grace would be left.
    partitions.refused("retention", retention="12", retention_action="detach")
    partitions.refused("grace", grace="7", retention="year")
    assert "name_template" in partitions.run(name_template="{tabel}")["msg"]


@pytest.mark.parametrize("server", ["18"], indirect=True)  # on 13 the lab's operator has to be a superuser
def test_rights(partitions: Partitions) -> None:
    database = partitions.database
    database.sql("REVOKE app FROM dbops", user="postgres")
    try:
        assert "GRANT" in partitions.refused("owner")["remedy"]
    finally:
        database.sql("GRANT app TO dbops", user="postgres")
    database.sql(
        "CREATE TABLE ev_default PARTITION OF ev DEFAULT; ALTER TABLE ev_default OWNER TO postgres", user="postgres"
    )
    assert "public.ev_default belongs to somebody else" in partitions.refused("owner")["found"]
    database.sql("DROP TABLE ev_default", user="postgres")
    database.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", user="postgres")
    database.sql("ALTER SCHEMA public OWNER TO postgres", user="postgres")
    database.sql("GRANT USAGE ON SCHEMA public TO app", user="postgres")
    assert "GRANT CREATE ON SCHEMA" in partitions.refused("create")["remedy"]


def rows_in_default(partitions: Partitions, statement: str) -> None:
    partitions.database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    partitions.database.sql(statement)


ROWS = """INSERT INTO ev (at, note) SELECT date_trunc('month', now(), 'UTC') + n * interval '1 hour', n::text
            FROM generate_series(1, 300) n"""


def test_rows_in_the_default_partition_are_refused_by_default(partitions: Partitions) -> None:
    rows_in_default(partitions, ROWS)
    assert "holds 300 rows of window" in partitions.refused("default_rows")["found"]


@pytest.mark.parametrize("how", ["promote", "move"])
def test_rows_in_the_default_partition(partitions: Partitions, how: str) -> None:
    rows_in_default(partitions, ROWS)
    database = partitions.database
    database.sql("GRANT SELECT ON ev_default TO replicator")
    result = partitions.done(default_rows=how)
    assert len(result["created"]) == 3
    assert database.value("SELECT count(*) FROM ev") == 300
    assert database.value("SELECT count(*) FROM ONLY ev_default") == 0
    assert database.value("SELECT has_table_privilege('replicator', 'ev_default', 'SELECT')")
    assert partitions.bounds()["ev_default"] == "DEFAULT"
    assert database.sql("SELECT conname FROM pg_constraint WHERE conname LIKE 'dbops%'") == []
    database.sql("INSERT INTO ev (at) VALUES ('1999-01-01')")
    assert database.value("SELECT count(*) FROM ev_default") == 1
    assert not partitions.done(default_rows=how)["changed"]


def test_promote_needs_all_rows_in_one_window(partitions: Partitions) -> None:
    rows_in_default(partitions, ROWS)
    partitions.database.sql("INSERT INTO ev (at) VALUES ('1999-01-01')")
    assert "1999-01-01" in partitions.refused("default_rows", default_rows="promote")["found"]


def test_move_is_bounded_and_refuses_what_sees_a_delete(partitions: Partitions) -> None:
    rows_in_default(partitions, ROWS)
    database = partitions.database
    assert "more than 100 rows" in partitions.refused("default_rows", default_rows="move", move_limit=100)["found"]
    database.sql("CREATE TABLE child (id bigint, at timestamptz, FOREIGN KEY (id, at) REFERENCES ev ON DELETE CASCADE)")
    assert "child refers to" in partitions.refused("default_rows", default_rows="move")["found"]


def test_a_trigger_of_the_default_partition_alone_sees_moved_rows(partitions: Partitions) -> None:
    rows_in_default(partitions, ROWS)
    partitions.database.sql(
        "CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        " CREATE TRIGGER audit AFTER DELETE ON ev_default FOR EACH ROW EXECUTE FUNCTION seen()"
    )
    assert "trigger audit" in partitions.refused("default_rows", default_rows="move")["found"]


@pytest.mark.parametrize("how", ["promote", "move", "shadow"])
def test_rows_that_a_policy_hides_from_us_are_not_left_behind(partitions: Partitions, how: str) -> None:
    """A table whose policies hold for its owner, too: what we do not see we would not copy, and not miss."""
    rows_in_default(partitions, ROWS)
    database = partitions.database
    for table in ("ev", "ev_default"):
        database.sql(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        database.sql(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        database.sql(f"CREATE POLICY few ON {table} USING (id <= 10)")
    result = partitions.run(default_rows=how)
    assert "row-level security" in result["msg"]
    assert database.value("SELECT count(*) FROM ev_default", user="postgres") == 300
    assert set(partitions.bounds()) == {"ev_default"}


def test_a_large_default_is_guarded_and_not_scanned_under_a_lock(partitions: Partitions) -> None:
    partitions.done(premake=0)
    rows_in_default(
        partitions,
        "INSERT INTO ev (at, note) SELECT '2000-01-01'::timestamptz + n * interval '1 minute', repeat('x', 200)"
        " FROM generate_series(1, 60000) n",
    )
    planned = partitions.done(check=True, premake=3)
    steps = [step["name"] for step in planned["plan"]]
    assert steps[:2] == ["add dbops_guard", "validate dbops_guard"]
    assert steps[-2:] == ["drop dbops_guard", "analyze ev"]
    scans = [
        (lock["mode"], lock["scanned_bytes"] > 0)
        for step in planned["plan"]
        for statement in step["by_statement"]
        for lock in statement["locks"]
        if lock["relation"] == "public.ev_default"
    ]
    assert ("ShareUpdateExclusiveLock", True) in scans
    assert ("AccessExclusiveLock", True) not in scans
    assert len(partitions.done(premake=3)["created"]) == 3
    # The server says so itself.
    assert partitions.database.sql("SELECT conname FROM pg_constraint WHERE conname LIKE 'dbops%'") == []
    refused = partitions.refused("default_scan", start="1990-01-01", interval="year", premake=0, partial_windows="fill")
    assert "ev_default" in refused["found"]


KEYS = {
    "timestamp": ("timestamp", {}, "now()::timestamp"),
    "date": ("date", {}, "current_date"),
    "epoch": ("bigint", {"key_type": "epoch", "epoch_unit": "ms"}, "(extract(epoch from now()) * 1000)::bigint"),
    "snowflake": (
        "bigint",
        {"key_type": "snowflake"},
        "((extract(epoch from now()) * 1000)::bigint - 1288834974657) << 22",
    ),
    "uuid7": (
        "uuid",
        {},
        "(lpad(to_hex((extract(epoch from now()) * 1000)::bigint), 12, '0') || '7000800000000000aaaa')::uuid",
    ),
    "integer": ("int", {"key_type": "integer", "interval": "1000"}, "12345"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_kinds_of_keys(database: Database, tmp_path: Path, kind: str) -> None:
    column, options, now = KEYS[kind]
    database.sql(f"CREATE TABLE ev (at {column} NOT NULL) PARTITION BY RANGE (at)")
    database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    insert = f"INSERT INTO ev VALUES ({now})"  # noqa: S608  one of KEYS
    database.sql(insert)
    partitions = Partitions(database, tmp_path)
    partitions.options |= {"interval": "day", **options}
    partitions.refused("default_rows")
    assert len(partitions.done(default_rows="promote")["created"]) == 3
    database.sql(insert)
    assert database.value("SELECT count(*) FROM ev") == 2
    assert database.value("SELECT count(*) FROM ev_default") == 0
    assert not partitions.done()["changed"]


def test_a_run_that_finds_another_at_work_is_refused(partitions: Partitions) -> None:
    holder = partitions.database.connect()
    try:
        with holder.cursor() as cursor:
            name = f"{partitions.database.name}.public.ev"
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", lease_key(name))
        assert "another run works on public.ev" in partitions.run()["msg"]
    finally:
        holder.close()
    partitions.done()


def test_numbers_in_the_default_partition_are_compared_as_numbers(partitions: Partitions) -> None:
    """As text 9 would come after 12000, and no window would hold a row."""
    partitions.database.sql(
        """CREATE TABLE counted (id int PRIMARY KEY) PARTITION BY RANGE (id);
           CREATE TABLE counted_default PARTITION OF counted DEFAULT;
           INSERT INTO counted VALUES (9), (12000)"""
    )
    words = {"table": "counted", "key": "id", "key_type": "integer", "interval": "1000", "start": "0"}
    result = partitions.refused("default_rows", **words)
    assert "1 rows of window 0 to 1000" in result["found"]
    assert "1 rows of window 12000 to 13000" in result["found"]


def test_default_privileges_do_not_lead_past_row_security(partitions: Partitions) -> None:
    database = partitions.database
    database.sql("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO replicator", user=users.OPERATOR)
    granted = """SELECT count(*) FROM pg_inherits WHERE inhparent = 'ev'::regclass
                  AND has_table_privilege('replicator', inhrelid, 'SELECT')"""
    assert len(partitions.done(premake=1)["created"]) == 2
    assert database.value(granted) == 2, "as for every table that the user makes"
    database.sql("ALTER TABLE ev ENABLE ROW LEVEL SECURITY")
    assert len(partitions.done(premake=3, subpartitions={"key": "id", "modulus": 2})["created"]) == 2
    assert database.value(granted) == 2
    below = (
        "SELECT count(*) FROM pg_class WHERE relname ~ '_[01]$' AND has_table_privilege('replicator', oid, 'SELECT')"
    )
    assert database.value(below) == 0
