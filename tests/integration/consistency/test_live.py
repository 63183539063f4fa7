# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""While clients write: what is on its way is no difference, and what is one is found all the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.consistency.scene import Pair, found, good, login
from tests.lab import ledger, users
from tests.lab.cluster import Cluster
from tests.lab.database import Database
from tests.lab.operation import run_module, start_module
from tests.lab.writer import Writers

ONE_PAIR = pytest.mark.parametrize("servers", [("15", "18")], indirect=True, ids="-".join)


@contextmanager
def hot_rows(database: Database, statement: str) -> Iterator[None]:
    """Run the statement over and over, as fast as it goes."""
    ended, errors = threading.Event(), []

    def work() -> None:
        try:
            connection = database.connect()
            with connection.cursor() as cursor:
                while not ended.is_set():
                    cursor.execute(statement)
            connection.close()
        except Exception as error:  # noqa: BLE001  told below
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not errors


@ONE_PAIR
def test_a_subscriber_under_load(pair: Pair) -> None:
    """One row changes all the time, others at random; three of the copy are wrong, among them one that changes."""
    make = "CREATE TABLE t (id int PRIMARY KEY, n bigint NOT NULL DEFAULT 0, v text)"
    pair.sql(make)
    pair.source.sql("INSERT INTO t SELECT g, 0, 'v' || g FROM generate_series(1, 20000) AS g; ANALYZE t")
    with pair.subscribed("t"):
        update = "UPDATE t SET n = n + 1 WHERE id IN (1, 2, 10 + (random() * 19000)::int)"
        with hot_rows(pair.source, update):
            for _time in range(3):
                result = pair.table("t", {"chunk_rows": 2000})
                good(result)
            assert result["one"]["link"] == "logical"
            pair.target.sql("UPDATE t SET v = 'wrong' WHERE id IN (5, 19990); DELETE FROM t WHERE id = 7")
            pair.target.sql("INSERT INTO t VALUES (-1, 0, 'extra')")
            result = pair.table("t", {"chunk_rows": 2000})
            wanted = {("changed", "5"), ("changed", "19990"), ("missing", "7"), ("extra", "-1")}
            assert found(result["one"]) == wanted, result["one"]


@ONE_PAIR
def test_a_row_that_always_changes_and_is_wrong_is_not_called_consistent(pair: Pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, n bigint NOT NULL DEFAULT 0, v text)")
    pair.source.sql("INSERT INTO t SELECT g, 0, 'v' FROM generate_series(1, 100) AS g")
    with pair.subscribed("t"), hot_rows(pair.source, "UPDATE t SET n = n + 1 WHERE id = 1"):
        pair.target.sql("ALTER TABLE t ADD CONSTRAINT no CHECK (true)")  # nothing that replication minds
        pair.target.sql(
            "CREATE FUNCTION wrong() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.v := 'wrong'; RETURN NEW; END$$;"
            "CREATE TRIGGER wrong BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION wrong();"
            "ALTER TABLE t ENABLE ALWAYS TRIGGER wrong"
        )
        time.sleep(0.5)
        result = pair.table("t", {"recheck_rounds": 4})
    assert result["failed"] is True
    assert result["one"]["status"] in ("unconfirmed", "different")
    assert result["one"]["counts"]["in_flight"] == 0


@pytest.fixture(scope="module", params=["18"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster.create(
        tmp_path_factory.mktemp("standby") / "lab",
        request.param,
        members=("pg1", "pg2"),
        settings={"max_standby_streaming_delay": "0", "hot_standby_feedback": "off", "autovacuum": "off"},
    ) as made:
        yield made


def between(cluster: Cluster, name: str, *checks: dict[str, Any], **options: Any) -> dict[str, Any]:
    primary, standby = cluster.primary(), cluster.standbys()[0]
    return run_module(
        "consistency_check",
        {
            "source": login(cluster, primary, name),
            "target": login(cluster, standby, name),
            "checks": list(checks),
            **options,
        },
    )


def test_a_standby_under_load(cluster: Cluster, tmp_path: Path) -> None:
    primary = cluster.primary()
    with primary.connect(users.APPLICATION, users.DATABASE) as connection:
        ledger.create(connection)
    primary.sql(f"GRANT {users.APPLICATION} TO {users.OPERATOR}")
    check = {"kind": "table", "tables": ["public.accounts", "public.transaction_journal"]}
    with Writers(
        tmp_path / "writers", [(primary.host, primary.port)], connections=6, passfile=str(cluster.lab_passfile)
    ):
        time.sleep(1)
        for _time in range(3):
            result = between(cluster, users.DATABASE, check, {"kind": "counts", "tables": ["public.accounts"]})
            good(result)
            # The other way around: the side that leads is found, not given.
            options = {
                "source": login(cluster, cluster.standbys()[0], users.DATABASE),
                "target": login(cluster, primary, users.DATABASE),
                "checks": [check],
            }
            assert run_module("consistency_check", options)["consistent"] is True
    assert {one["link"] for one in result["results"] if one["kind"] == "table"} == {"physical"}


def test_a_standby_that_cancels_long_reads(cluster: Cluster) -> None:
    """Rows are removed and vacuumed all the time, and the standby does not wait for anybody."""
    database = Database.create(cluster)
    database.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    database.sql("INSERT INTO t SELECT g, repeat('v', 50) FROM generate_series(1, 300000) AS g; ANALYZE t")
    ended = threading.Event()

    def churn() -> None:
        connection = database.connect()
        with connection.cursor() as cursor:
            while not ended.wait(0.8):
                cursor.execute("UPDATE t SET v = v WHERE id BETWEEN 1 AND 50")
                cursor.execute("VACUUM t")
        connection.close()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        retries = 0
        # While the same piece is read on the primary, too, nothing is removed there. So the standby is slower.
        condition = "(SELECT true FROM pg_sleep(CASE WHEN pg_is_in_recovery() THEN 0.3 ELSE 0 END))"
        slow = {"kind": "table", "tables": ["t"], "where": condition}
        for _time in range(10):
            result = between(cluster, database.name, slow, chunk_rows=100000)
            good(result)
            retries += result["retries"]
            if retries:
                break
        whole = between(cluster, database.name, {"kind": "table", "tables": ["t"]}, snapshot="run", chunk_rows=5000)
    finally:
        ended.set()
        thread.join()
        database.drop()
    assert retries > 0
    assert whole["consistent"] is True or "snapshot of the run is lost" in whole["msg"]


def test_a_follower_that_does_not_follow(cluster: Cluster) -> None:
    database = Database.create(cluster)
    database.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x')")
    good(between(cluster, database.name, {"kind": "table", "tables": ["t"]}))
    standby = cluster.standbys()[0]
    standby.sql("SELECT pg_wal_replay_pause()")
    try:
        database.sql("UPDATE t SET v = 'y'")
        result = between(cluster, database.name, {"kind": "table", "tables": ["t"]}, lag_timeout=1)
    finally:
        standby.sql("SELECT pg_wal_replay_resume()")
    assert result["failed"] is True
    assert "has applied" in result["results"][0]["error"]
    assert result["results"][0]["status"] == "failed"
    good(between(cluster, database.name, {"kind": "table", "tables": ["t"]}))
    database.drop()


@ONE_PAIR
def test_a_killed_run_goes_on_where_it_was(pair: Pair, tmp_path: Path) -> None:
    pair.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50000) AS g;"
        "ANALYZE t"
    )
    options = {"chunk_rows": 500, "resume": True, "state_dir": str(tmp_path), "workers": 1}
    arguments = {
        "source": pair.source.login,
        "target": pair.target.login,
        "checks": [{"kind": "table", "tables": ["t"]}],
        **options,
    }
    run = start_module("consistency_check", {**arguments, "duty_percent": 10})
    until = time.monotonic() + 30
    state = tmp_path / "consistency"
    while time.monotonic() < until and sum(p.read_text().count('"equal"') for p in state.glob("*")) < 10:
        time.sleep(0.01)
    run.process.kill()
    run.result()
    [left] = state.glob("*")
    done = left.read_text().count('"equal"')
    pair.sql("DELETE FROM t WHERE id % 7 = 0; ANALYZE t")  # other statistics, and so other pieces

    result = pair.table("t", options)
    assert (result["consistent"], result["one"]["counts"]["resumed"]) == (True, done)
    assert result["one"]["counts"]["pieces"] + done >= 100
    assert not list(state.glob("*"))
    assert pair.table("t", options)["one"]["counts"]["resumed"] == 0

    # Nothing that differed counts as done, however it was read.
    pair.target.sql("UPDATE t SET v = 'w' WHERE id % 400 = 0")
    arguments["duty_percent"] = 10
    run = start_module("consistency_check", arguments)
    until = time.monotonic() + 30
    application = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dbops consistency_check'"
    while time.monotonic() < until and pair.source.value(application, user=users.SUPERUSER) == 0:
        time.sleep(0.01)
    time.sleep(2.0)
    run.process.kill()
    run.result()
    assert pair.table("t", {**options, "sample": 0})["differences"] == 108

    left.write_text('{"t": 0, "pieces": [[null, null]]}\n{"t": 0, "equal": [null, null]}\n{"torn')
    assert pair.table("t", options)["one"]["counts"]["resumed"] == 0  # too old


@ONE_PAIR
def test_one_snapshot_for_the_whole_run(pair: Pair) -> None:
    pair.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 5000) AS g;"
        "ANALYZE t"
    )
    result = pair.table("t", {"snapshot": "run", "chunk_rows": 500})
    good(result)
    pair.target.sql("UPDATE t SET v = 'w' WHERE id = 4")
    assert found(pair.table("t", {"snapshot": "run", "chunk_rows": 500})["one"]) == {("changed", "4")}
