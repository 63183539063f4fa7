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
    return log.longest > 1000


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
            database.sql("SET statement_timeout = '1500ms'; CREATE TABLE far PARTITION OF ev DEFAULT")
        for log in (running.writer, running.reader):
            wait_for(partial(stalled, log), seconds=5, what="the client got through")
        running.writer.waits.clear()
        running.reader.waits.clear()
        partitions.done(premake=6)
        # What one statement of a client had to wait for, beside a report that lasts.
        assert running.writer.longest < 1000
        assert running.reader.longest < 1000
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
