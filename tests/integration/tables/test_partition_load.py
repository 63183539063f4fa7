# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Partitions are made while a writer and a reader are at work: nobody gets an error, and nobody misses a row.

Each trap is first shown on the server, with the statements that fall into it, then what pg_partition does instead.
"""

from __future__ import annotations

import threading
import time
from functools import partial

import psycopg2
import psycopg2.errors
import pytest

from tests.integration.tables.scene import Partitions
from tests.lab.database import Database
from tests.lab.operation import start_module
from tests.lab.server import wait_for
from tests.lab.table_load import Log, TableLoad

INSERT = "INSERT INTO ev (id, at, note) VALUES (%s, now(), 'live')"
PROBE = "SELECT count(*) FROM ev WHERE note = 'fixed'"
FIXED = """INSERT INTO ev (at, note) SELECT now(), CASE WHEN n <= 1000 THEN 'fixed' ELSE 'other' END
             FROM generate_series(1, %s) n"""


def load(partitions: Partitions) -> TableLoad:
    return TableLoad(partitions.database, insert=INSERT, probe=PROBE)


def reader_waiting(database: Database) -> bool:
    return bool(
        database.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'late reader' AND wait_event_type = 'Lock'"
        )
    )


def stalled(log: Log) -> bool:
    return log.longest > 3000


@pytest.mark.parametrize(
    ("first", "seen"),
    [("", 0), ("LOCK TABLE ev IN EXCLUSIVE MODE;", 0), ("LOCK TABLE ONLY ev IN ACCESS EXCLUSIVE MODE;", 1000)],
)
def test_trap_rows_that_are_moved_and_attached_are_invisible_to_who_waited(
    partitions: Partitions, first: str, seen: int
) -> None:
    """A query that waits for the default partition has its list of partitions already. Only ACCESS EXCLUSIVE of the
    parent, taken first, makes it wait before it has one."""
    database = partitions.database
    database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    database.sql(FIXED, [1000])
    database.sql("CREATE TABLE ev_now (LIKE ev INCLUDING ALL EXCLUDING IDENTITY)")
    mover = database.connect()
    answers: list[int] = []

    def read() -> None:
        reader = database.connect(application_name="late reader")
        with reader.cursor() as cursor:
            cursor.execute(PROBE)
            answers.extend(cursor.fetchone() or ())
        reader.close()

    with mover.cursor() as cursor:
        cursor.execute(f"BEGIN; {first} LOCK TABLE ev_default IN ACCESS EXCLUSIVE MODE")
        cursor.execute("WITH moved AS (DELETE FROM ev_default RETURNING *) INSERT INTO ev_now SELECT * FROM moved")
        late = threading.Thread(target=read)
        late.start()
        wait_for(lambda: reader_waiting(database), seconds=10, what="the reader waits for a lock")
        cursor.execute("ALTER TABLE ev ATTACH PARTITION ev_now FOR VALUES FROM ('2000-01-01') TO ('2100-01-01')")
        cursor.execute("COMMIT")
    late.join(timeout=20)
    mover.close()
    assert answers == [seen]
    assert database.value(PROBE) == 1000


@pytest.mark.parametrize("how", ["promote", "move"])
def test_rows_of_the_default_partition_stay_visible(partitions: Partitions, how: str) -> None:
    database = partitions.database
    database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    database.sql(FIXED, [3000])
    with load(partitions) as running:
        partitions.done(default_rows=how)
        time.sleep(0.2)
    running.check("ev")
    assert running.reader.answers == {1000}
    assert database.value("SELECT count(*) FROM ev_default") == 0


def test_trap_partition_of_waits_for_a_reader_and_writers_wait_for_it(partitions: Partitions) -> None:
    """The statement of the guide, behind a report that is still reading; then pg_partition behind the same report."""
    database = partitions.database
    partitions.done(premake=0)
    database.sql(FIXED, [1000])
    report = database.connect(application_name="report")
    report.autocommit = False
    with report.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ev")
    with load(partitions) as running:
        with pytest.raises(psycopg2.errors.QueryCanceled):
            database.sql("SET statement_timeout = '4s'; CREATE TABLE far PARTITION OF ev DEFAULT")
        for log in (running.writer, running.reader):
            wait_for(partial(stalled, log), seconds=5, what="the client got through")
        running.writer.waits.clear()
        running.reader.waits.clear()
        partitions.done(premake=6)
        # What one statement of a client had to wait for, beside a report that lasts.
        assert running.writer.longest < 3000
        assert running.reader.longest < 3000
    report.rollback()
    report.close()
    running.check("ev")
    assert len(partitions.bounds()) == 7


def test_a_large_default_partition_stalls_nobody(partitions: Partitions) -> None:
    database = partitions.database
    partitions.done(premake=0)
    database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    database.sql(
        "INSERT INTO ev (at, note) SELECT '2000-01-01'::timestamptz + n * interval '1 minute', repeat('x', 200)"
        " FROM generate_series(1, 50000) n"
    )
    database.sql(FIXED, [1000])
    with load(partitions) as running:
        partitions.done(premake=3)
    running.check("ev")
    assert len(partitions.bounds()) == 5


MIXED = """INSERT INTO ev (id, at, note)
           SELECT n, date_trunc('month', now(), 'UTC') + (n %% 5 - 3) * interval '1 month' + interval '1 hour',
                  CASE WHEN n > 19000 THEN 'fixed' ELSE 'other' END FROM generate_series(1, %s) n"""


def test_a_default_partition_with_rows_of_many_windows_is_rebuilt(partitions: Partitions) -> None:
    """Inserts, updates, updates of the key and deletes go on meanwhile, in all windows."""
    database = partitions.database
    database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    database.sql(MIXED, [20_000])
    database.sql("INSERT INTO ev (id, at, note) VALUES (900000, '1999-01-01', 'stays')")
    start = database.value("SELECT (date_trunc('month', now(), 'UTC') - interval '2 months')::date::text")
    changes = [
        "UPDATE ev SET note = 'changed' WHERE id = %s - 1000000 AND note = 'other'",
        "DELETE FROM ev WHERE id = %s - 990000 AND note = 'other'",
        "UPDATE ev SET at = at - interval '1 month', note = 'moved' WHERE id = %s",
        "UPDATE ev SET id = id + 100000, note = 'renumbered' WHERE id = %s - 985000 AND note = 'other'",
    ]
    with TableLoad(database, insert=INSERT, probe=PROBE, then=changes) as running:
        result = partitions.done(default_rows="shadow", start=start, premake=1)
        time.sleep(0.2)
    running.check("ev")
    assert len(result["created"]) == 4
    (retired,) = database.sql(
        "SELECT relname FROM pg_class WHERE relname LIKE 'ev_default_retired_%' AND relkind = 'r'"
    )
    count = len(running.writer.acknowledged)
    moved = database.value("SELECT count(*) FROM ev WHERE note = 'moved'")
    assert count - 1 <= moved <= count
    assert database.value("SELECT count(*) FROM ev WHERE id = 900000") == 1
    assert database.value("SELECT count(*) FROM ev_default") > 0  # those of windows that were not asked for
    expected = 20_001 + count - min(count, 5000)
    assert abs(database.value("SELECT count(*) FROM ev") - expected) <= 1
    assert partitions.bounds()["ev_default"] == "DEFAULT"
    leftovers = "SELECT relname FROM pg_class WHERE relname LIKE '%dbops_shadow%'"
    assert database.sql(leftovers) == []
    assert database.sql("SELECT proname FROM pg_proc WHERE proname LIKE '%dbops_shadow%'") == []
    with pytest.raises(psycopg2.Error, match="was detached"):
        database.sql(f"TRUNCATE {retired[0]}")
    assert not partitions.done(default_rows="shadow", start=start, premake=1)["changed"]


def test_truncate_is_mirrored_and_a_difference_is_found(partitions: Partitions) -> None:
    """The run is killed after the copy; what is done to the old partition then is seen in the new one, and a row that
    only one of them has ends the next run before it changes anything."""
    database = partitions.database
    database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    database.sql(FIXED, [1000])
    assert partitions.run(default_rows="shadow", failpoint="copy ev_default:after") == {}
    shadow = "SELECT count(*) FROM ev_dbops_shadow"
    assert database.value(shadow) == 1000
    database.sql("DELETE FROM ev WHERE id <= 10")
    assert database.value(shadow) == 990
    database.sql("SET session_replication_role = replica; DELETE FROM ev WHERE id <= 20", user="postgres")
    assert database.value(shadow) == 980
    database.sql("TRUNCATE ev")
    assert database.value(shadow) == 0
    database.sql(FIXED, [100])
    partitions.done(default_rows="shadow")
    assert database.value("SELECT count(*) FROM ev") == 100


def test_a_difference_ends_the_run_before_it_changes_anything(partitions: Partitions) -> None:
    """A row that is locked keeps the copy from going on. Meanwhile one that was copied is deleted behind the triggers'
    backs."""
    database = partitions.database
    database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    database.sql(FIXED, [1000])
    before = partitions.bounds()
    holder = database.connect("postgres")
    holder.autocommit = False
    with holder.cursor() as cursor:
        cursor.execute("SELECT FROM ev WHERE id = 500 FOR UPDATE")
        run = start_module("pg_partition", {**partitions.options, "default_rows": "shadow"})
        wait_for(partial(one_copied, database), seconds=20, what="the first rows are copied")
        cursor.execute("ALTER TABLE ev_default DISABLE TRIGGER dbops_mirror; DELETE FROM ev WHERE id = 1")
        holder.commit()
    holder.close()
    result = run.result()
    assert "ev_default has 999 rows" in result["msg"]
    assert "its copy 1000 rows" in result["msg"]
    assert partitions.bounds() == before
    assert database.sql("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'dbops%'") == []
    assert database.sql("SELECT relname FROM pg_class WHERE relname LIKE '%dbops%'") == []


def one_copied(database: Database) -> bool:
    try:
        return bool(database.value("SELECT count(*) > 0 FROM ev_dbops_shadow"))
    except psycopg2.errors.UndefinedTable:
        return False


@pytest.mark.parametrize(
    ("bend", "says"),
    [
        ("ALTER TABLE ev DROP CONSTRAINT ev_pkey", "no primary key"),
        ("CREATE PUBLICATION p FOR ALL TABLES", "publishes every new table"),
        ("CREATE PUBLICATION p FOR TABLE ev", "publishes the partitions"),
        ("CREATE TABLE c (id bigint, at timestamptz, FOREIGN KEY (id, at) REFERENCES ev)", "public.c refers to"),
    ],
)
@pytest.mark.parametrize("server", ["13", "18"], indirect=True)
def test_what_is_not_rebuilt(partitions: Partitions, bend: str, says: str) -> None:
    database = partitions.database
    database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    database.sql(FIXED, [100])
    database.sql(bend, user="postgres")
    assert says in partitions.refused("default_rows", default_rows="shadow")["found"]
