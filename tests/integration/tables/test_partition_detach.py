# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Partitions leave the table: by retention or by name, without a client waiting, and never half way."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psycopg2
import pytest

from tests.integration.tables.scene import CATALOG, Partitions
from tests.lab.operation import start_module
from tests.lab.server import wait_for
from tests.lab.table_load import TableLoad

INSERT = "INSERT INTO ev (id, at, note) VALUES (%s, now(), 'live')"
PROBE = "SELECT count(*) FROM ev WHERE note = 'fixed'"
MONTHS = "SELECT (date_trunc('month', now(), 'UTC') - interval '3 months')::date::text"
COUNT = "SELECT count(*) FROM {}"
SINCE_14 = pytest.mark.parametrize("server", ["15", "17", "18"], indirect=True)
"""DETACH CONCURRENTLY does not exist before."""
CONCURRENTLY = "ALTER TABLE ev DETACH PARTITION {} CONCURRENTLY"
PENDING = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhdetachpending"


@pytest.fixture
def old(partitions: Partitions) -> Partitions:
    """Partitions of the last three months, this one and the next, with a row in each."""
    database = partitions.database
    start = database.value(MONTHS)
    assert len(partitions.done(start=start, premake=1)["created"]) == 5
    database.sql(
        """INSERT INTO ev (at, note) SELECT date_trunc('month', now(), 'UTC') - n * interval '1 month', 'n'
             FROM generate_series(0, 3) n"""
    )
    database.sql("INSERT INTO ev (at, note) SELECT now(), 'fixed' FROM generate_series(1, 100)")
    partitions.options |= {"start": start, "premake": 1, "retention": "1 month"}
    return partitions


def oldest(partitions: Partitions) -> str:
    return min(name for name, bound in partitions.bounds().items() if bound != "DEFAULT")


def test_expired_partitions_are_told_and_detached_only_on_demand(old: Partitions) -> None:
    before = old.database.sql(CATALOG)
    kept = old.done()
    assert not kept["changed"]
    assert len(kept["expired"]) == 2
    assert old.done(check=True, retention_action="detach")["detached"] == kept["expired"]
    assert old.database.sql(CATALOG) == before
    result = old.done(retention_action="detach")
    assert result["detached"] == kept["expired"]
    assert f"public.{oldest(old)}" > kept["expired"][-1]
    assert old.database.value("SELECT count(*) FROM ev WHERE note = 'n'") == 2
    assert not old.done(retention_action="detach")["changed"]


@pytest.mark.parametrize("default", [False, True])
def test_detached_by_name_and_kept_as_it_is(old: Partitions, default: bool) -> None:
    database = old.database
    if default:
        database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    name = oldest(old)
    database.sql(f"GRANT INSERT, SELECT ON {name} TO replicator")
    with TableLoad(database, insert=INSERT, probe=PROBE) as running:
        result = old.done(state="detached", partition=name)
    running.check("ev")
    concurrently = any("CONCURRENTLY" in statement for statement in result["statements"])
    assert concurrently == (not default and old.database.cluster.major >= 14)
    assert name not in old.bounds()
    assert database.value(COUNT.format(name)) == 1
    for words in ("INSERT INTO {} (at) VALUES (now())", "DELETE FROM {}", "UPDATE {} SET note = ''", "TRUNCATE {}"):
        statement = words.format(name)
        with pytest.raises(psycopg2.Error, match="was detached and is kept as it is"):
            database.sql(statement)
        with pytest.raises(psycopg2.Error, match="was detached and is kept as it is"):
            database.sql(f"SET session_replication_role = replica; {statement}", user="postgres")
    assert database.value(f"SELECT has_table_privilege('replicator', '{name}', 'SELECT')")
    assert not database.value(f"SELECT has_table_privilege('replicator', '{name}', 'INSERT')")
    assert database.value(f"SELECT obj_description('{name}'::regclass)").startswith(
        'dbops: {"partition_of": "public.ev"'
    )
    assert not old.done(state="detached", partition=name)["changed"]


def test_what_is_not_detached(old: Partitions) -> None:
    database = old.database
    current = database.value("SELECT tableoid::regclass::text FROM ev WHERE note = 'fixed' LIMIT 1")
    assert "current partition" in old.refused("partition", state="detached", partition=current)["found"]
    assert "no partition of" in old.refused("partition", state="detached", partition="ev")["found"]
    database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    assert "default" in old.refused("partition", state="detached", partition="public.ev_default")["found"]
    old.refused("clock", reference_time=time.time() + 90 * 86400, retention_action="detach")


def test_rows_that_others_refer_to(old: Partitions) -> None:
    database = old.database
    name = oldest(old)
    database.sql("CREATE TABLE child (id bigint, at timestamptz, CONSTRAINT to_ev FOREIGN KEY (id, at) REFERENCES ev)")
    database.sql("INSERT INTO child SELECT id, at FROM ev WHERE tableoid = %s::regclass", [name])
    result = old.run(state="detached", partition=name)
    assert "to_ev" in result["msg"]
    assert name in old.bounds()
    database.sql("DELETE FROM child")
    old.done(state="detached", partition=name)


def test_a_detached_table_holds_no_row_of_others(old: Partitions) -> None:
    database = old.database
    database.sql("CREATE TABLE kind (id int PRIMARY KEY); INSERT INTO kind VALUES (1)")
    database.sql("ALTER TABLE ev ADD kind int REFERENCES kind ON DELETE CASCADE")
    name = oldest(old)
    database.sql("UPDATE ev SET kind = 1")
    old.done(state="detached", partition=name)
    database.sql("DELETE FROM kind")
    assert database.value(COUNT.format(name)) == 1


@SINCE_14
def test_trap_a_timeout_strands_a_detach_and_the_next_run_ends_it(old: Partitions) -> None:
    """DETACH CONCURRENTLY under a lock_timeout, as a tool does it that sets one for all DDL: the rows are gone at once,
    and no other partition can be detached."""
    database = old.database
    name, *others = sorted(old.bounds())
    report = database.connect(application_name="report")
    report.autocommit = False
    with report.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ev")
        with pytest.raises(psycopg2.Error, match="lock timeout"):
            database.connect(options="-c lock_timeout=300ms").cursor().execute(
                f"ALTER TABLE ev DETACH PARTITION {name} CONCURRENTLY"
            )
    assert database.sql(PENDING) == [(name,)]
    with pytest.raises(psycopg2.Error, match="already pending detach"):
        database.sql(CONCURRENTLY.format(others[0]))
    report.rollback()
    report.close()
    assert old.done()["changed"]
    assert database.sql(PENDING) == []
    assert name not in old.bounds()


@SINCE_14
def test_a_detach_that_is_pending_is_ended_by_the_retention(old: Partitions) -> None:
    database = old.database
    name = oldest(old)
    report = database.connect(application_name="report")
    report.autocommit = False
    with report.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ev")
        with pytest.raises(psycopg2.Error, match="lock timeout"):
            database.connect(options="-c lock_timeout=300ms").cursor().execute(CONCURRENTLY.format(name))
    report.rollback()
    report.close()
    result = old.done(retention_action="detach")
    assert result["changed"]
    assert name not in old.bounds()
    comment = database.value("SELECT obj_description(%s::regclass)", [name])
    assert comment.startswith("dbops: ")
    assert not old.done(retention_action="detach")["changed"]


@pytest.mark.parametrize("server", ["13", "18"], indirect=True)
def test_it_does_not_begin_behind_an_old_transaction(old: Partitions) -> None:
    database = old.database
    report = database.connect(application_name="report")
    report.autocommit = False
    name = oldest(old)
    with report.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ev")
        if database.cluster.major >= 14:
            time.sleep(11)
        result = old.run(state="detached", partition=name)
    assert "report" in result["msg"]
    assert name in old.bounds()
    if database.cluster.major >= 14:
        assert database.sql(PENDING) == []
    report.rollback()
    report.close()


@SINCE_14
def test_killed_in_the_second_half_of_a_detach_the_next_run_ends_it(old: Partitions, tmp_path: Path) -> None:
    """A reader that came after it was begun, and is still there, keeps it in its second half."""
    database = old.database
    name = oldest(old)
    report = database.connect(application_name="report")
    report.autocommit = False
    options = {**old.options, "state": "detached", "partition": name}
    with report.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ev")
        run = start_module("pg_partition", options)
        wait_for(lambda: bool(database.sql(PENDING)), seconds=10, what="the first half was committed")
        os.kill(run.process.pid, signal.SIGKILL)
        assert run.result() == {}
        backends = "SELECT pid FROM pg_stat_activity WHERE application_name = 'dbops pg_partition'"
        time.sleep(0.3)
        # The statement lives on without its client: the next run waits for it, and it for the report.
        again = threading.Timer(1.0, report.rollback)
        again.start()
        result = old.done(state="detached", partition=name)
        again.join()
    wait_for(lambda: not database.sql(backends), seconds=10, what="the first run's session has ended")
    report.close()
    assert name not in old.bounds()
    assert database.sql(PENDING) == []
    assert not old.done(state="detached", partition=name)["changed"]
    assert result["timeline"]
