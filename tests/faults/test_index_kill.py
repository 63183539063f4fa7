# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_index killed before and after every step, in the middle of a build, and at random times, while a ledger is written
to every leaf: the next run converges and builds only what is missing, and the ledger lost nothing and never stalled."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab import ledger, users
from tests.lab.checker import check
from tests.lab.cluster import Cluster
from tests.lab.database import Database
from tests.lab.operation import ModuleRun, run_module, start_module
from tests.lab.waiting import wait_for
from tests.lab.writer import Writers

SEED = int(os.environ.get("DBOPS_SEED", random.SystemRandom().randrange(1 << 32)))
RANDOM_KILLS = 6
MAX_STALL_MS = 1000.0  # of a writer; without us this machine has tens of milliseconds

# Every transfer writes to two of the leaves, at random.
PARTITIONED = """
ALTER TABLE transaction_journal RENAME TO old;
CREATE TABLE transaction_journal (LIKE old INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY HASH (id);
CREATE TABLE j0 PARTITION OF transaction_journal FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE j1 PARTITION OF transaction_journal FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE s PARTITION OF transaction_journal FOR VALUES WITH (MODULUS 2, REMAINDER 1) PARTITION BY HASH (user_id);
CREATE TABLE s0 PARTITION OF s FOR VALUES WITH (MODULUS 1, REMAINDER 0);
INSERT INTO transaction_journal SELECT * FROM old;
DROP TABLE old
"""
STEPS = (
    "create public.ix",
    "build public.j0_ix",
    "attach public.j0_ix",
    "build public.j1_ix",
    "attach public.j1_ix",
    "create public.s_ix",
    "build public.s0_ix",
    "attach public.s0_ix",
    "attach public.s_ix",
)
LEAVES = ("j0_ix", "j1_ix", "s0_ix")
STATE = """
SELECT own.relname, own.oid::bigint, own.relfilenode::bigint, indisvalid
  FROM pg_index JOIN pg_class AS own ON own.oid = indexrelid
 WHERE relname IN ('ix', 's_ix', 'j0_ix', 'j1_ix', 's0_ix')
"""


class Stage:
    """The ledger, its writers, and an index on its journal."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self.options = {
            **database.login,
            "table": "transaction_journal",
            "name": "ix",
            "columns": ["user_id", {"name": "created_at", "order": "desc"}],
            "state_dir": str(directory / "state"),
        }

    def start(self, *, failpoint: str = "", **options: Any) -> ModuleRun:
        return start_module("pg_index", {**self.options, **options}, failpoint=failpoint)

    def state(self) -> dict[str, tuple[int, int, bool]]:
        return {name: (oid, file, valid) for name, oid, file, valid in self.database.sql(STATE)}

    def valid_leaves(self) -> dict[str, tuple[int, int, bool]]:
        return {name: facts for name, facts in self.state().items() if name in LEAVES and facts[2]}

    def converges(self) -> dict[str, Any]:
        """The second run builds what is missing and nothing else; the third finds nothing to do."""
        before = self.valid_leaves()
        result = run_module("pg_index", self.options)
        assert not result.get("failed"), result
        built = {row["index"].removeprefix("public.") for row in result["indexes"] if row["action"] == "build"}
        assert built == set(LEAVES) - set(before)
        after = self.state()
        assert {name: after[name] for name in before} == before
        assert len(after) == 5
        assert all(valid for _oid, _file, valid in after.values())
        assert run_module("pg_index", self.options, check=True)["changed"] is False
        return result

    def builder(self, index: str) -> int:
        """The session that builds ``index`` and waits for somebody; its pid."""
        found = "SELECT pid FROM pg_stat_activity WHERE strpos(query, %s) > 0 AND wait_event = 'virtualxid'"
        words = (f'CREATE INDEX CONCURRENTLY "{index}"',)
        wait_for(lambda: self.database.sql(found, words, user=users.SUPERUSER), seconds=30, what=f"{index} to be built")
        return int(self.database.value(found, words, user=users.SUPERUSER))

    def wait_for_orphans(self) -> None:
        """Until no session of a run is at work that was killed."""
        found = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'dbops pg_index%' AND state = 'active'"
        wait_for(lambda: not self.database.sql(found, user=users.SUPERUSER), seconds=20, what="the last session to end")

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """An old transaction keeps the build of j1's part waiting."""
        with closing(self.database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN; LOCK TABLE j1 IN ROW EXCLUSIVE MODE")
            yield

    @contextmanager
    def snapshot_held(self) -> Iterator[None]:
        """The same by an old snapshot, which does not touch the table."""
        with closing(self.database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1")
            yield


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    directory = tmp_path_factory.mktemp("index")
    with Cluster.create(directory / "lab", os.environ.get("DBOPS_VERSION", "18"), members=("pg1",)) as cluster:
        database = Database.create(cluster)
        with closing(database.connect()) as connection:
            ledger.create(connection)
        database.sql(PARTITIONED)
        endpoints = [(cluster.primary().host, cluster.primary().port)]
        writers = Writers(
            directory / "writers",
            endpoints,
            dbname=database.name,
            passfile=str(cluster.lab_passfile),
            connections=4,
        )
        with writers:
            yield database
        verdict = check(writers.log, database.connect)
        assert verdict.ok, verdict
        assert verdict.errors == {}
        assert verdict.max_latency_ms < MAX_STALL_MS, verdict
        print(f"{verdict.acknowledged} transfers, the slowest took {verdict.max_latency_ms:.0f} ms")


@pytest.fixture
def stage(database: Database, tmp_path: Path) -> Iterator[Stage]:
    yield Stage(database, tmp_path)
    database.sql("DROP INDEX IF EXISTS ix, s_ix, j0_ix, j1_ix, s0_ix")


@pytest.mark.parametrize("failpoint", [f"{step}:{moment}" for step in STEPS for moment in ("before", "after")])
def test_killed_at_a_step(stage: Stage, failpoint: str) -> None:
    assert stage.start(failpoint=failpoint).result() == {}, "the failpoint was not reached"
    position = STEPS.index(failpoint.rpartition(":")[0]) + failpoint.endswith("after")
    done = STEPS[:position]
    assert set(stage.valid_leaves()) == {step.split(".")[1] for step in done if step.startswith("build")}
    stage.converges()


def test_the_list_of_steps_is_complete(stage: Stage) -> None:
    assert [step["step"] for step in stage.converges()["timeline"]] == list(STEPS)


def test_the_server_goes_on_with_a_build_whose_client_was_killed(stage: Stage) -> None:
    """The next run waits for it, and keeps it."""
    with stage.held_up():
        run = stage.start()
        pid = stage.builder("j1_ix")
        run.process.kill()
        run.result()
        again = stage.start()
        time.sleep(1.5)
        assert again.process.poll() is None, again.result()
        oid = stage.state()["j1_ix"][0]
    result = again.result()
    assert not result.get("failed"), result
    assert f"pid {pid} was still at work for a run that was killed; waited for it" in str(result["warnings"])
    assert stage.state()["j1_ix"][0] == oid
    assert {row["index"] for row in result["indexes"] if row["action"] == "build"} == {"public.s0_ix"}
    stage.converges()


def test_killed_in_a_build_with_its_server_process(stage: Stage) -> None:
    """What is left is invalid: dropped and built again, and nothing else is."""
    with stage.held_up():
        run = stage.start()
        pid = stage.builder("j1_ix")
        run.process.kill()
        run.result()
        stage.database.sql("SELECT pg_terminate_backend(%s)", (pid,), user=users.SUPERUSER)
        stage.wait_for_orphans()
        assert stage.state()["j1_ix"][2] is False
    result = stage.converges()
    assert 'DROP INDEX CONCURRENTLY IF EXISTS "public"."j1_ix"' in result["statements"]


def test_somebody_ends_the_building_session(stage: Stage) -> None:
    with stage.snapshot_held():
        run = stage.start()
        first = (
            "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%j0_ix%' AND wait_event = 'virtualxid'"
        )
        wait_for(lambda: stage.database.sql(first, user=users.SUPERUSER), seconds=30, what="the build to wait")
        pid = stage.database.value(first, user=users.SUPERUSER)
        stage.database.sql("SELECT pg_terminate_backend(%s)", (pid,), user=users.SUPERUSER)
        result = run.result()
        assert result["failed"]
        assert "terminating connection due to administrator command" in result["found"]
        assert "run again" in result["remedy"]
        assert set(stage.state()) == {"ix"}, "the invalid index is gone"
    stage.converges()


def test_told_to_stop_in_a_build(stage: Stage) -> None:
    """As AWX and systemd do it. The build is cancelled and cleaned up, at once and not after hours."""
    with stage.snapshot_held():
        run = stage.start()
        first = (
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%j0_ix%' AND wait_event = 'virtualxid'"
        )
        wait_for(lambda: stage.database.sql(first, user=users.SUPERUSER), seconds=30, what="the build to wait")
        run.process.terminate()
        result = run.result(timeout=30)
        assert "told to stop (signal 15)" in result["found"]
        assert set(stage.state()) == {"ix"}
    stage.converges()


def test_killed_at_random_times(stage: Stage) -> None:
    print(f"seed {SEED} (DBOPS_SEED repeats it)")
    chance = random.Random(SEED)
    for _number in range(RANDOM_KILLS):
        run = stage.start()
        time.sleep(chance.uniform(0.3, 1.2))
        run.process.kill()
        run.result()
        stage.wait_for_orphans()
        stage.converges()
        stage.database.sql("DROP INDEX ix")
