# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One real fault in the middle of a switchover under load: nothing acknowledged is lost, and a second run converges."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.failover_scene import Stage as Failovers
from tests.faults.scene import Act, Scene, ledger_database, pause_began, scene, unreachable
from tests.lab import faults
from tests.lab.checker import read_log
from tests.lab.cluster import Cluster
from tests.lab.operation import journals, run_playbook, start_playbook
from tests.lab.server import wait_for
from tests.lab.writer import Writers


class _Stages:
    """One scene for the tests of this module; a test that leaves it broken does not take the others with it."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._stack = ExitStack()
        self._stage: Scene | None = None

    def ready(self) -> Scene:
        if self._stage is None:
            directory = self._factory.mktemp("faults")
            self._stage = self._stack.enter_context(scene(directory, os.environ.get("DBOPS_VERSION", "18")))
        return self._stage

    def end(self) -> None:
        self._stack.close()
        self._stage = None


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Stages]:
    ready = _Stages(tmp_path_factory)
    yield ready
    ready.end()


@pytest.fixture
def stage(stages: _Stages, request: pytest.FixtureRequest) -> Iterator[Scene]:
    failed = request.session.testsfailed
    yield stages.ready()
    if request.session.testsfailed > failed:
        stages.end()
    else:
        stages.ready().check_ledger()


def assert_rolled_back(act: Act, result: dict[str, Any], *, says: str) -> None:
    assert result["state"] == "rolled back", result
    assert says in result["found"], result["found"]
    assert result["remedy"]
    assert act.stage.writable() == [act.old]
    assert not (act.old_node.data_dir / "standby.signal").exists()
    assert act.new_node.sql("SELECT count(*) FROM pg_replication_slots") == [(0,)]


def pooled_errors(stage: Scene, since: float) -> list[str]:
    return [entry.error for entry in read_log(stage.writers[0].log) if entry.error and entry.wall >= since]


# ---------------------------------------------------------------------------------------------------------- replication


def test_walreceiver_frozen_before_the_pause(stage: Scene) -> None:
    """pg_stat_replication still says streaming and lag is small: the intent never arrives, and nobody was paused."""
    _old, candidate = stage.names()
    began = time.time()
    with faults.frozen(stage.cluster.node(candidate).process("walreceiver")):
        act = Act(stage, max_lag_bytes=1 << 30)
        result = act.end()
    assert_rolled_back(act, result, says="after 5")
    assert result["pause_ms"] is None, result["pause_ms"]
    assert not pooled_errors(stage, began)
    act.converge()


def test_walreceiver_frozen_in_the_pause(stage: Scene) -> None:
    """The scene in which other tools report success and lose rows: no proof, no promotion."""
    began = time.time()
    act = Act(stage, max_pause_ms=3000)
    with act.held_at("checkpoints"):
        frozen = act.new_node.process("walreceiver")
        faults.freeze(frozen)
    try:
        result = act.run.result()
    finally:
        faults.thaw(frozen)
    assert_rolled_back(act, result, says="after")
    assert not pooled_errors(stage, began), "pooled clients must see latency only"
    stage.guard("disarmed", act.old)
    act.converge()


def test_replication_cut_before_the_stop(stage: Scene) -> None:
    began = time.time()
    act = Act(stage, max_pause_ms=3000)
    with act.held_at("checkpoints"):
        cut = faults.cut_replication(act.old_node)
        cut.__enter__()
    try:
        result = act.run.result()
    finally:
        cut.__exit__(None, None, None)
    assert_rolled_back(act, result, says="after")
    assert not pooled_errors(stage, began)
    stage.guard("disarmed", act.old)
    stage.cluster.wait_streaming({act.candidate})
    act.converge()


# ------------------------------------------------------------------------------------------------------------ candidate


def test_candidate_killed_before_the_promotion(stage: Scene) -> None:
    began = time.time()
    act = Act(stage)
    with act.held_at("stop"):
        act.new_node.kill()
    result = act.run.result()
    # What was prepared on the candidate cannot be undone while it is down; the clients are back all the same.
    assert result["state"] == "rollback unfinished", result
    assert f"{act.old} accepts writes again" in result["found"]
    assert stage.writable() == [act.old]
    assert not pooled_errors(stage, began)
    stage.guard("disarmed", act.old)
    act.new_node.start()
    stage.cluster.wait_streaming({act.candidate})
    act.converge()


def test_candidate_killed_while_it_is_promoted(stage: Scene) -> None:
    """Past the point of no return there is no way back: the run says so, and the next one finishes."""
    act = Act(stage)
    with act.held_at("promote"):
        act.new_node.kill()
    result = act.run.result()
    assert result["state"] == "unfinished", result
    assert stage.writable() == []
    assert act.candidate in result["found"]
    act.new_node.start()
    act.converge()


@pytest.mark.long
def test_full_disk_on_the_candidate(tmp_path: Path) -> None:
    with scene(tmp_path, os.environ.get("DBOPS_VERSION", "18"), connections=3) as stage:
        candidate = stage.names()[1]
        try:
            faults.small_disk(stage.cluster.node(candidate))
        except faults.NotPossible as why:
            pytest.skip(f"NOT TESTED: {why}")
        stage.cluster.wait_streaming({candidate})
        act = Act(stage, max_pause_ms=3000, min_free_bytes=0)
        with act.held_at("checkpoints"):
            disk = faults.full_disk(act.new_node)
            disk.__enter__()
        try:
            result = act.run.result()
        finally:
            disk.__exit__(None, None, None)
        # Either it had room for the last WAL and was promoted, or not and nothing was: never in between.
        writable = stage.writable()
        if result["state"] == "rolled back":
            assert writable == [act.old]
        else:
            assert writable in ([act.candidate], []), (writable, result)
        if not act.new_node.running():
            act.new_node.start()
        if writable:
            stage.guard("disarmed", writable[0])
        wait_for(lambda: len(stage.writable()) == 1, seconds=60, what="one primary")
        if stage.writable() == [act.old]:
            stage.cluster.wait_streaming({act.candidate})
        act.converge()
        stage.check_ledger()


# ---------------------------------------------------------------------------------------------------------- old primary


def test_slow_archive_command_does_not_extend_the_pause(stage: Scene) -> None:
    old, _candidate = stage.names()
    with faults.slow_archive(stage.cluster.node(old), 3):
        act = Act(stage)
        result = act.end()
    assert result.get("state") == "switched over", result
    steps = {step["step"]: step["duration_ms"] for step in result["timeline"]}
    # The old server ends only when its archiver has: that is waited for after the clients go on.
    assert steps["rejoin"] > result["pause_ms"], (steps, result["pause_ms"])
    assert result["archive"]["missing"] == []
    stage.assert_settled(act.candidate, act.old)


@pytest.mark.long
def test_service_manager_starts_the_old_primary_again(stage: Scene) -> None:
    """standby.signal was planted before the stop: whoever starts it starts a standby."""
    old, _candidate = stage.names()
    with faults.restart_watcher(stage.cluster.node(old)):
        act = Act(stage)
        result = act.end()
        assert len(stage.writable()) == 1
        if result.get("failed"):
            assert result["state"] in ("rolled back", "unfinished"), result
            act.converge()
    stage.assert_settled(act.candidate, act.old)


def test_pause_exceeded_because_the_old_primary_does_not_stop(stage: Scene) -> None:
    began = time.time()
    act = Act(stage, max_pause_ms=2000)
    with act.held_at("pause_poolers"):
        frozen = act.old_node.process("checkpointer")
        faults.freeze(frozen)
    result = act.run.result()
    faults.thaw(frozen)
    assert_rolled_back(act, result, says="in production")
    assert not pooled_errors(stage, began)
    stage.guard("disarmed", act.old)
    act.converge()


@pytest.mark.long
def test_a_rollback_that_takes_long_is_left_alone_by_the_dead_man(stage: Scene) -> None:
    """The old primary takes long to start again. The dead-man's limit passes meanwhile, but the run lives: that the
    server accepts writes again is no reason to take the pooler out of its hands."""
    began = time.time()
    local = stage.cluster.module_arguments(*reversed(stage.names()))["local"]
    service = {**local["service"], "start": ["sh", "-c", 'sleep 6; exec "$@"; ', "start", *local["service"]["start"]]}
    act = Act(stage, max_pause_ms=2000, local={**local, "service": service})
    with act.held_at("pause_poolers"):
        frozen = act.old_node.process("checkpointer")
        faults.freeze(frozen)
    result = act.run.result()
    faults.thaw(frozen)
    assert_rolled_back(act, result, says="in production")
    assert result["pause_ms"] > 8000, result["pause_ms"]
    assert not pooled_errors(stage, began)
    [guard] = stage.guard("disarmed", act.old)
    assert not guard["fired"], guard["events"]
    assert "a run holds the lease on" in json.dumps(guard["events"])
    act.converge()


def _in_ci(*steps: str) -> list[Any]:
    """All of them; those whose name has an asterisk in `make faults` only."""
    return [pytest.param(step[1:], marks=pytest.mark.long) if step.startswith("*") else step for step in steps]


@pytest.mark.parametrize(
    "step", _in_ci("*intent", "*slots", "*tune_candidate", "checkpoints", "*pause_poolers", "plant_signal", "stop")
)
def test_primary_killed_before_the_promotion(stage: Scene, step: str) -> None:
    """A crash leaves no shutdown checkpoint, so nothing proves that the candidate has everything: nobody is promoted.
    The run itself or the next one starts the primary again; then it is a switchover."""
    act = Act(stage)
    with act.held_at(step):
        act.old_node.kill()
    result = act.run.result()
    assert result.get("failed"), result
    assert result["state"] in ("rolled back", "rollback unfinished", "unfinished"), result
    assert stage.writable() in ([], [act.old])
    assert act.new_node.sql("SELECT pg_is_in_recovery()") == [(True,)]
    if len(stage.writable()) == 1:
        stage.guard("disarmed", act.old)
    act.converge()


@pytest.mark.parametrize("step", _in_ci("*resume_poolers", "*follow", "*rejoin", "*tidy", "*certify"))
def test_new_primary_killed_after_the_promotion(stage: Scene, step: str) -> None:
    """Clients may have written to it: the old primary stays what it is, a standby, until the new one is back."""
    act = Act(stage)
    with act.held_at(step):
        act.new_node.kill()
    result = act.run.result()
    assert result.get("failed"), result
    assert stage.writable() == []
    again = stage.start(act.candidate, act.old).result()
    assert again.get("failed"), again
    assert again["remedy"]
    assert stage.writable() == []
    act.new_node.start()
    act.converge()


# -------------------------------------------------------------------------------------------------------------- clients


@pytest.mark.parametrize("through", ["pooler", "direct"])
def test_transaction_that_stays_open(stage: Scene, through: str) -> None:
    """Through the pooler PAUSE waits for it: past its share of the pause everything is resumed. Directly it is cut
    off, as any direct client is; its transaction is not committed anywhere."""
    act = Act(stage, max_pause_ms=2000)
    with act.held_at("checkpoints"):
        if through == "pooler":
            pooler = stage.cluster.pooler
            assert pooler is not None
            session = act.old_node.connect("app", ledger_database(), port=pooler.port)
        else:
            session = act.old_node.connect("app", ledger_database())
        session.autocommit = False
        session.cursor().execute("INSERT INTO dbops_probe (node) VALUES ('open transaction')")
    result = act.run.result()
    session.close()
    if through == "pooler":
        assert_rolled_back(act, result, says="busy")
        stage.guard("disarmed", act.old)
        act.converge()
    else:
        assert result.get("state") == "switched over", result
        stage.guard("disarmed", act.candidate)
        stage.assert_settled(act.candidate, act.old)
    found = stage.cluster.primary().sql(
        "SELECT count(*) FROM dbops_probe WHERE node = 'open transaction'", dbname=ledger_database()
    )
    assert found == [(0,)]


def test_prepared_transaction_is_refused(stage: Scene) -> None:
    old, candidate = stage.names()
    node = stage.cluster.node(old)
    if node.sql("SHOW max_prepared_transactions") == [("0",)]:
        for each in stage.cluster.nodes:
            each.configure(max_prepared_transactions="5")
        for each in (*stage.cluster.standbys(), node):
            each.stop()
        node.start()
        for each in stage.cluster.nodes:
            each.start()
        stage.cluster.wait_streaming({each.name for each in stage.cluster.nodes} - {old})
    with node.connect("app", ledger_database()) as session, session.cursor() as cursor:
        cursor.execute("BEGIN; INSERT INTO dbops_probe (node) VALUES ('prepared'); PREPARE TRANSACTION 'in doubt'")
    result = stage.switch(candidate, old)
    assert result["state"] == "refused"
    assert "[prepared_transactions]" in result["found"]
    node.sql("ROLLBACK PREPARED 'in doubt'", user="app", dbname=ledger_database())
    stage.converge(candidate, old)
    stage.assert_settled(candidate, old)


def test_superuser_who_turns_read_only_off(stage: Scene) -> None:
    """The fence is the shutdown itself: there is no setting that a session could turn off."""
    cluster = stage.cluster
    rude = Writers(
        stage.directory / "rude", [(node.host, node.port) for node in cluster.nodes], user="postgres", connections=4,
        think_ms=1.0, passfile=str(cluster.lab_passfile),
    )  # fmt: skip
    rude.config.conninfo["options"] = "-c default_transaction_read_only=off"
    stage.writers.append(rude)
    rude.start()
    old, candidate = stage.names()
    result = stage.switch(candidate, old)
    assert result.get("state") == "switched over", result
    stage.assert_settled(candidate, old)
    stage.check_ledger()
    stage.writers.remove(rude)
    rude.stop()


# --------------------------------------------------------------------------------------------------------------- pooler


def test_pooler_unreachable_at_resume(stage: Scene) -> None:
    """It hangs while the candidate is promoted: the rest of the cluster is finished, and the next run resumes it."""
    pooler = stage.cluster.pooler
    assert pooler is not None
    act = Act(stage)
    with act.held_at("promote"):
        pooler.suspend()
    try:
        result = act.run.result()
        assert result["state"] == "unfinished", result
        assert pooler_name(stage.cluster) in result["found"]
        assert stage.writable() == [act.candidate]
    finally:
        pooler.resume()
    act.converge()


def pooler_name(cluster: Cluster) -> str:
    return cluster.poolers[0].name


@pytest.mark.parametrize("failpoint", ["stop:after", "promote:after"])
def test_nobody_runs_again_and_the_dead_man_resumes(stage: Scene, failpoint: str) -> None:
    """Promoted: clients go on at the candidate. Nobody writable: they are let go at the hard limit, no earlier."""
    old, candidate = stage.names()
    pooler = stage.cluster.pooler
    assert pooler is not None
    stage.guard("armed", candidate)
    stage.start(candidate, old, failpoint=failpoint).result()

    def state() -> tuple[int, int]:
        row = next(row for row in pooler.console("SHOW DATABASES") if row["name"] == ledger_database())
        return int(row["port"]), int(row["paused"])

    assert state() == (stage.cluster.node(old).port, 1)
    if failpoint == "promote:after":
        wait_for(lambda: state() == (stage.cluster.node(candidate).port, 0), seconds=20, what="the dead-man resumes")
    else:
        time.sleep(10)
        assert state()[1] == 1, "resumed although nobody is writable"
    stage.converge(candidate, old)
    stage.assert_settled(candidate, old)


# ----------------------------------------------------------------------------------------------------------------- runs


def test_two_runs_started_together(stage: Scene) -> None:
    old, candidate = stage.names()
    stage.guard("armed", candidate)
    runs = [stage.start(candidate, old) for _run in range(2)]
    results = [run.result() for run in runs]
    stage.guard("disarmed", stage.writable()[0])
    done = [result for result in results if result.get("state") == "switched over"]
    refused = [result for result in results if result.get("failed")]
    assert len(done) + len(refused) + sum(result.get("state") == "unchanged" for result in results) == 2
    assert len(done) == 1, results
    for result in refused:
        assert "another run holds" in result["found"], result
    stage.assert_settled(candidate, old)


def test_a_failover_in_the_middle_of_a_switchover(stage: Scene) -> None:
    """The primary is down because the switchover stopped it. Neither its fence nor the failover gets past that run."""
    act = Act(stage)
    rival = Failovers(stage.cluster, stage.writers[0])
    with ExitStack() as until_tried:
        with act.held_at("stop"):  # there is nothing to prove for as long as the candidate replays nothing
            until_tried.enter_context(faults.frozen(act.new_node.process("startup")))
        with act.held_at("prove"):
            fence = rival.start_fence(act.old).result()
            assert fence.get("failed"), fence
            assert "another run" in fence["found"], fence
            result = rival.failover(act.old, fence={"confirmed": True, "by": "it is down"})
            assert result.get("state") == "refused", result
            assert "another run holds the lease" in result["found"], result
            assert stage.writable() == []
    result = act.end()
    if result.get("failed"):
        assert result["state"] == "rolled back", result
        act.converge()
    stage.assert_settled(act.candidate, act.old)


@pytest.mark.parametrize("step", ["plant_signal", "stop", "prove"])
def test_cancelled_in_the_pause_rolls_back(stage: Scene, step: str) -> None:
    """SIGTERM, as a cancelled job or a closed terminal sends it: acted on between two steps, never within one."""
    began = time.time()
    act = Act(stage)
    with ExitStack() as until_told:
        if step == "prove":  # it takes a millisecond unless the candidate replays nothing
            with act.held_at("stop"):
                until_told.enter_context(faults.frozen(act.new_node.process("startup")))
        with act.held_at(step):
            act.run.process.terminate()
    result = act.run.result()
    assert_rolled_back(act, result, says="told to stop")
    assert not pooled_errors(stage, began)
    stage.guard("disarmed", act.old)
    act.converge()


def test_old_primary_and_its_host_gone_before_the_promotion(stage: Scene) -> None:
    """The run and the server's host die after the stop: a run on the candidate's host proves that the candidate's last
    record is the shutdown checkpoint, and finishes. When the old host is back, its server starts as a standby."""
    old, candidate = stage.names()
    stage.guard("armed", candidate)
    stage.start(candidate, old, failpoint="promote:before").result()
    result = stage.start(candidate, candidate).result()
    assert result["state"] == "unfinished", result
    assert f"the host of {old} was not reached" in result["found"]
    assert "take a full backup now" in str(result["warnings"]), result
    assert stage.writable() == [candidate]
    stage.cluster.node(old).start()
    assert stage.writable() == [candidate]
    stage.converge(candidate, old)
    stage.assert_settled(candidate, old)


def test_cancelled_on_the_host_of_the_candidate_leaves_its_server_alone(stage: Scene) -> None:
    """Undoing there what was done on the old primary's host would start the candidate as a primary, unpromoted."""
    old, candidate = stage.names()
    node = stage.cluster.node(candidate)
    started = node.sql("SELECT pg_postmaster_start_time()")
    stage.guard("armed", candidate)
    stage.start(candidate, old, failpoint="promote:before").result()
    # SIGTERM is ignored until the run begins to listen, so that the first one it hears comes before the promotion.
    heard = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        run = stage.start(candidate, candidate)
    finally:
        signal.signal(signal.SIGTERM, heard)
    while run.process.poll() is None:
        run.process.terminate()
        time.sleep(0.0005)
    result = run.result()
    assert stage.writable() == [], result
    assert node.sql("SELECT pg_postmaster_start_time()") == started
    assert result["state"] == "unfinished", result
    assert "told to stop" in result["found"], result
    stage.converge(candidate, old)
    stage.assert_settled(candidate, old)


def test_old_primary_crashed_and_its_host_gone_is_not_promoted(stage: Scene) -> None:
    """Without a shutdown checkpoint there is no proof: refused, because it would be a failover."""
    old, candidate = stage.names()
    stage.guard("armed", candidate)
    stage.start(candidate, old, failpoint="plant_signal:after").result()
    stage.cluster.node(old).kill()
    result = stage.start(candidate, candidate).result()
    assert result.get("failed"), result
    assert "not a shutdown checkpoint" in result["found"], result
    assert stage.writable() == []
    # Its host is back: from there the run is rolled back, then done.
    stage.converge(candidate, old)
    stage.assert_settled(candidate, old)


def test_killed_after_the_stop_and_the_candidate_is_down(stage: Scene) -> None:
    """It might have been promoted from its own host: starting the old primary again could make two."""
    old, candidate = stage.names()
    node = stage.cluster.node(candidate)
    stage.guard("armed", candidate)
    stage.start(candidate, old, failpoint="stop:after").result()
    node.kill()
    result = stage.start(candidate, old).result()
    assert result["state"] == "unfinished", result
    assert "does not answer" in result["found"]
    assert stage.writable() == []
    node.start()
    stage.converge(candidate, old)
    stage.assert_settled(candidate, old)


def test_rollback_that_could_not_start_the_old_primary_is_gone_on_with(stage: Scene) -> None:
    """The start command fails in a rollback. What was prepared is gone by then, and the fence too: the next run has to
    start the old primary, and must not promote although everything is on the candidate."""
    old, candidate = stage.names()
    local = stage.arguments(candidate, old)["local"]
    broken = {**local, "service": {**local["service"], "start": ["/bin/false"]}}
    act = Act(stage, local=broken)
    with act.held_at("prove"):
        act.run.process.send_signal(signal.SIGTERM)
    result = act.run.result()
    assert result["state"] == "rollback unfinished", result
    assert stage.writable() == []
    result = stage.start(candidate, old).result()
    assert result["state"] == "rolled back", result
    assert "began to undo" in result["found"], result
    assert stage.writable() == [old]
    act.converge()


def test_killed_when_a_rollback_had_taken_the_fence_away(stage: Scene) -> None:
    """Whoever starts the old primary after the next run has promoted must start a standby."""
    old, candidate = stage.names()
    node = stage.cluster.node(old)
    stage.guard("armed", candidate)
    stage.start(candidate, old, failpoint="stop:after").result()
    wait_for(lambda: not node.running(), seconds=30, what=f"{old} has ended")
    (node.data_dir / "standby.signal").unlink()
    stage.start(candidate, old, failpoint="promote:after").result()
    node.start()
    assert stage.writable() == [candidate]
    stage.converge(candidate, old)
    stage.assert_settled(candidate, old)


def test_stop_command_that_fails_leaves_the_primary_alone(stage: Scene) -> None:
    """sudo refused, a wrong unit: the server was never told to stop, so undoing must not stop it either."""
    began = time.time()
    act = Act(stage, max_pause_ms=2000, local={**stage.cluster.module_arguments(*reversed(stage.names()))["local"],
              "service": {"manager": "command", "start": ["true"], "stop": ["false"]}})  # fmt: skip
    started = act.old_node.sql("SELECT pg_postmaster_start_time()")
    result = act.run.result()
    assert_rolled_back(act, result, says="in production")
    assert act.old_node.sql("SELECT pg_postmaster_start_time()") == started
    assert not pooled_errors(stage, began)
    stage.guard("disarmed", act.old)
    act.converge()


def test_host_of_the_old_primary_cannot_be_reached(stage: Scene) -> None:
    """The same through the playbook: SSH to the old primary's host fails, so it works on the candidate's; run again
    when the host is back it finishes."""
    old, candidate = stage.names()
    stage.guard("armed", candidate)
    stage.start(candidate, old, failpoint="promote:before").result()
    override = unreachable(stage.directory / "away.yml", f"lab-{old}")
    play = run_playbook(stage.cluster, "promote_replica.yml", "-i", str(override), promote_replica_candidate=candidate)
    assert play.returncode != 0
    assert f"the host of {old} was not reached" in play.stdout, play.stdout[-3000:]
    assert stage.writable() == [candidate]
    play = run_playbook(stage.cluster, "promote_replica.yml", promote_replica_candidate=candidate)
    assert play.returncode == 0, play.stdout[-3000:]
    stage.assert_settled(candidate, old)


def test_whole_playbook_killed_in_the_pause(stage: Scene) -> None:
    """ansible-playbook and its module die; the same command again finishes."""
    old, candidate = stage.names()
    before = set(journals(stage.cluster, old))
    play = start_playbook(stage.cluster, "promote_replica.yml", promote_replica_candidate=candidate)
    assert pause_began(stage.cluster, old, before, seconds=90)
    os.killpg(play.pid, signal.SIGKILL)
    play.wait()
    again = run_playbook(stage.cluster, "promote_replica.yml", promote_replica_candidate=candidate)
    assert again.returncode == 0, again.stdout[-3000:]
    stage.assert_settled(candidate, old)


def test_journal_of_an_operation_that_was_finished_elsewhere(stage: Scene) -> None:
    """Killed on the old primary's host, finished on the candidate's and then on the old one's: the journal left open on
    the candidate's host must not make the next switchover stop a server."""
    old, candidate = stage.names()
    stage.guard("armed", candidate)
    stage.start(candidate, old, failpoint="prove:after").result()
    assert stage.start(candidate, candidate).result()["state"] == "unfinished"
    stage.converge(candidate, old)
    stage.assert_settled(candidate, old)
    began = time.time()
    result = stage.switch(old, candidate)
    assert result["state"] == "switched over", result
    assert not pooled_errors(stage, began)
    stage.assert_settled(old, candidate)
