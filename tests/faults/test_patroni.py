# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster that a real Patroni manages: it switches over by Patroni, refuses what Patroni would not, and its losing
case is refused, or found out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scene import Scene, under_load
from tests.lab import faults, users
from tests.lab.binaries import MissingProgram
from tests.lab.checker import check, read_log
from tests.lab.operation import journals, run_module, run_playbook
from tests.lab.patroni import PatroniCluster
from tests.lab.server import wait_for

# A walsender that hears nothing gives up, so that a frozen standby holds a shutdown up for seconds, not for a minute.
SETTINGS = {"wal_sender_timeout": "4s", "log_min_messages": "info"}
# Changes are found faster, and a primary outlives its store, so that a test can look at it then.
DYNAMIC: dict[str, Any] = {
    "loop_wait": 2,
    "ttl": 30,
    "retry_timeout": 10,
    "failsafe_mode": True,
    "postgresql": {"use_pg_rewind": True, "parameters": {"wal_level": "logical"}},
    "ignore_slots": [{"name": "feed"}],  # else Patroni drops a slot that it did not make
}
STEPS = ("intent", "checkpoints", "pause_poolers", "prove", "promote", "resume_poolers", "follow", "certify")


class PatroniScene(Scene):
    cluster: PatroniCluster

    def arguments(self, candidate: str, node: str, **changes: Any) -> dict[str, Any]:
        more = {"patroni": self.cluster.options, "follow_timeout": 90, **changes}
        return super().arguments(candidate, node, **more)

    def settled(self) -> None:
        self.cluster.wait_managed()

    def state(self) -> dict[str, Any]:
        """What a refused run must leave alone."""
        operations = "SELECT id, state FROM dbops.operation ORDER BY 1"
        primary = self.cluster.primary()
        known = primary.sql("SELECT to_regclass('dbops.operation') IS NOT NULL")[0][0]
        return {
            "primary": primary.name,
            "timeline": primary.sql("SELECT timeline_id FROM pg_control_checkpoint()"),
            "operations": primary.sql(operations) if known else [],
            "paused": [row["paused"] for pooler in self.cluster.poolers for row in pooler.console("SHOW DATABASES")],
        }


class _Stages:
    """One scene for the tests of this module; a test that leaves it broken does not take the others with it."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._stack = ExitStack()
        self._stage: PatroniScene | None = None

    def ready(self) -> PatroniScene:
        if self._stage is None:
            directory = self._factory.mktemp("patroni")
            try:
                cluster = PatroniCluster.adopt(directory, dynamic=DYNAMIC, settings=SETTINGS, pooler=True)
            except MissingProgram as reason:
                pytest.skip(f"NO PATRONI HERE, nothing about it is tested: {reason}")
            self._stack.enter_context(cluster)
            self._stage = PatroniScene(cluster, directory)
            self._stack.enter_context(under_load(self._stage, connections=3))
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
def stage(stages: _Stages, request: pytest.FixtureRequest) -> Iterator[PatroniScene]:
    failed = request.session.testsfailed
    stage = stages.ready()
    stage.settled()
    yield stage
    if request.session.testsfailed > failed:
        stages.end()
    else:
        stage.settled()
        stage.check_ledger()


def pooled_errors(stage: Scene, since: float) -> list[str]:
    return [entry.error for entry in read_log(stage.writers[0].log) if entry.error and entry.wall >= since]


def begun(stage: PatroniScene, old: str, before: set[Path], step: str) -> None:
    """Wait until a run that is not in ``before`` has begun ``step``."""

    def reached() -> bool:
        return any('"event": "start"' in line and f'"step": "{step}"' in line
                   for path in set(journals(stage.cluster, old)) - before
                   for line in path.read_text().splitlines())  # fmt: skip

    wait_for(reached, seconds=60, what=f"the step {step}", interval=0.001)


def test_a_rehearsal_asks_patroni_for_nothing(stage: PatroniScene) -> None:
    old, candidate = stage.names()
    before = stage.state()
    began = time.time()
    result = run_module("replica_promote", stage.arguments(candidate, old, mode="rehearse"))
    assert (result["state"], result["changed"]) == ("rehearsed", False), result.get("msg")
    assert [step["step"] for step in result["timeline"]][:2] == ["intent", "checkpoints"]
    assert set(result["prediction"]["parts"]) == {"pause_poolers", "prove", "promote", "resume_poolers"}
    assert stage.state() == before
    assert not pooled_errors(stage, began)


def test_there_and_again_by_playbook(stage: PatroniScene) -> None:
    """Check, do, do again: no error through the pooler, nothing lost, and every member follows."""
    old, candidate = stage.names()
    before = stage.state()
    words: dict[str, Any] = {"promote_replica_candidate": candidate, "promote_replica_follow_timeout": 90}
    checked = run_playbook(stage.cluster, "promote_replica.yml", "--check", **words)
    assert checked.returncode == 0, checked.stdout
    assert "POST /switchover" in checked.stdout
    assert stage.state() == before
    began = time.time()
    done = run_playbook(stage.cluster, "promote_replica.yml", **words)
    assert done.returncode == 0, done.stdout
    assert stage.cluster.rest_password not in checked.stdout + done.stdout
    stage.assert_settled(candidate, old)
    assert not pooled_errors(stage, began)
    certificate = stage.cluster.primary().sql(
        "SELECT detail -> 'certificate' FROM dbops.operation WHERE state = 'done' ORDER BY opened_at DESC LIMIT 1"
    )[0][0]
    assert certificate["holds"] is True
    assert certificate["shutdown_checkpoint_end"] == certificate["fork"]
    again = run_playbook(stage.cluster, "promote_replica.yml", **words)
    assert again.returncode == 0, again.stdout
    assert stage.state()["operations"] == [*before["operations"], *stage.state()["operations"][-1:]]


def paused(stage: PatroniScene, _candidate: str) -> Iterator[dict[str, Any]]:
    stage.cluster.configure(pause=True)
    yield {}
    stage.cluster.configure(pause=None)


def without_quorum(stage: PatroniScene, _candidate: str) -> Iterator[dict[str, Any]]:
    """The store is gone for good, and the primary goes on because every member hears it (failsafe_mode)."""
    stage.cluster.kill("etcd")

    def failsafe() -> bool:
        return "failsafe_mode_is_active" in stage.cluster.rest(stage.cluster.nodes[-1].name, "/patroni")[1]

    wait_for(failsafe, seconds=60, what="failsafe mode", interval=0.2)
    yield {}
    stage.cluster.start_etcd()
    wait_for(lambda: not failsafe(), seconds=60, what="the end of failsafe mode", interval=0.2)


def wrong_password(stage: PatroniScene, _candidate: str) -> Iterator[dict[str, Any]]:
    yield {"patroni": {**stage.cluster.options, "password": "not-the-password"}}


def nobody_at_the_url(stage: PatroniScene, _candidate: str) -> Iterator[dict[str, Any]]:
    yield {"patroni": {**stage.cluster.options, "url": "http://127.0.0.1:1"}}


def no_option(stage: PatroniScene, _candidate: str) -> Iterator[dict[str, Any]]:
    yield {"patroni": None}


def not_synchronous(stage: PatroniScene, candidate: str) -> Iterator[dict[str, Any]]:
    """synchronous_mode is on, and Patroni has chosen the other standby."""
    stage.cluster.configure(synchronous_mode=True)

    def chosen() -> str:
        return next((member["name"] for member in stage.cluster.members() if member["role"] == "sync_standby"), "")

    wait_for(chosen, seconds=30, what="a synchronous standby")
    others = [node.name for node in stage.cluster.standbys() if node.name != chosen()]
    yield {"candidate": others[0]}
    stage.cluster.configure(synchronous_mode=None)
    wait_for(lambda: not chosen(), seconds=30, what="asynchronous replication again")


def another_manager(stage: PatroniScene, _candidate: str) -> Iterator[dict[str, Any]]:
    connection = stage.cluster.primary().connect(application_name="repmgrd")
    yield {}
    connection.close()


def a_member_left_out(stage: PatroniScene, _candidate: str) -> Iterator[dict[str, Any]]:
    sibling = stage.cluster.nodes[-1].name
    nodes = stage.cluster.module_arguments(sibling, sibling)["nodes"]
    yield {"nodes": [node for node in nodes if node["name"] != sibling]}


def a_logical_slot(stage: PatroniScene, _candidate: str) -> Iterator[dict[str, Any]]:
    primary = stage.cluster.primary()
    primary.sql("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
    yield {}
    primary.sql("SELECT pg_drop_replication_slot('feed')")


def no_checkpoint_privilege(stage: PatroniScene, _candidate: str) -> Iterator[dict[str, Any]]:
    stage.cluster.primary().sql(f"REVOKE pg_checkpoint FROM {users.OPERATOR}")
    yield {}
    stage.cluster.primary().sql(f"GRANT pg_checkpoint TO {users.OPERATOR}")


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (another_manager, "[patroni_alone] Patroni, repmgr"),
        (a_member_left_out, "it has 1 members that are not in dbops_clusters"),
        (a_logical_slot, "[patroni_logical_slots] not on"),
        (no_checkpoint_privilege, "lacks GRANT pg_checkpoint"),
        (paused, "[patroni_not_paused] paused"),
        (wrong_password, "[patroni_access] POST /switchover is answered with 401"),
        (nobody_at_the_url, "[patroni_answers] Patroni at http://127.0.0.1:1 does not answer"),
        (no_option, "[manager_in_charge] Patroni"),
        (not_synchronous, "role replica in synchronous_mode"),
        pytest.param(without_quorum, "[patroni_", marks=pytest.mark.long),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refused_before_anything_changes(
    stage: PatroniScene, arrange: Callable[[PatroniScene, str], Iterator[dict[str, Any]]], says: str
) -> None:
    old, candidate = stage.names()
    before = stage.state()
    fault = arrange(stage, candidate)
    changes = next(fault)
    result = run_module("replica_promote", stage.arguments(changes.pop("candidate", candidate), old, **changes))
    during = stage.state()
    next(fault, None)
    assert result["failed"], result
    assert (result["state"], result["changed"]) == ("refused", False), result
    assert says in result["found"], result["found"]
    assert result["remedy"]
    assert "not-the-password" not in str(result)
    assert during == before


def test_a_store_lost_in_the_pause_is_found_by_the_request(stage: PatroniScene) -> None:
    """Patroni answers from its cache still, and cannot write the request down."""
    old, candidate = stage.names()
    before, began = set(journals(stage.cluster, old)), time.time()
    stage.guard("armed", candidate)
    run = stage.start(candidate, old)
    begun(stage, old, before, "checkpoints")
    with faults.frozen([stage.cluster.pid("etcd")]):
        result = run.result()
    # A primary that cannot reach the store for long demotes itself, and takes the lead again when the store is back.
    stage.settled()
    assert stage.writable() == [old]
    stage.guard("disarmed", old)
    assert result["state"] == "rolled back", result
    assert "Patroni did not switch over" in result["found"]
    assert not pooled_errors(stage, began)


def test_the_losing_case_is_refused(stage: PatroniScene) -> None:
    """The candidate's walreceiver hangs, replication is asynchronous. That Patroni loses commits then is measured by
    the benchmark; here nothing happens to anybody."""
    old, candidate = stage.names()
    timeline = stage.state()["timeline"]
    began = time.time()
    with faults.frozen(stage.cluster.node(candidate).process("walreceiver")):
        time.sleep(0.5)
        result = stage.switch(candidate, old, max_lag_bytes=1 << 30)
    assert result["state"] == "rolled back", result
    assert "arrives on" in result["expected"]
    assert stage.writable() == [old]
    assert stage.state()["timeline"] == timeline
    assert not pooled_errors(stage, began)


def test_a_member_is_not_rejoined_behind_its_back(stage: PatroniScene) -> None:
    """A standby that has lost its way while its Patroni stands still is Patroni's to bring back."""
    old, candidate = stage.names()
    sibling = next(node for node in stage.cluster.nodes if node.name not in (old, candidate))
    agent = stage.cluster.pid(sibling.name)
    arguments = stage.cluster.module_arguments(sibling.name, sibling.name)
    for word in ("mode", "candidate", "poolers"):
        arguments.pop(word)
    words = {**arguments, "node": sibling.name, "state": "following", "primary": old}
    with faults.frozen([agent]):
        sibling.sql("ALTER SYSTEM SET primary_conninfo = ''")
        sibling.sql("SELECT pg_reload_conf()")
        wait_for(lambda: not sibling.sql("SELECT FROM pg_stat_wal_receiver"), seconds=10, what="no walreceiver")
        result = run_module("pg_member", words)
        sibling.sql("ALTER SYSTEM RESET primary_conninfo")
        sibling.sql("SELECT pg_reload_conf()")
    assert (result.get("state"), result["changed"]) == ("refused", False), result
    assert "Patroni is in charge" in result["found"], result["found"]
    assert "patronictl reinit" in result["remedy"]


@pytest.mark.long  # a race decides whether anything is lost: on a busy machine the freeze may come too late
def test_a_loss_behind_the_proof_is_found_out(stage: PatroniScene) -> None:
    """The walreceiver freezes when Patroni has been asked already, and direct clients go on writing."""
    old, candidate = stage.names()
    before = set(journals(stage.cluster, old))
    stage.guard("armed", candidate)
    run = stage.start(candidate, old)

    begun(stage, old, before, "promote")
    receiver = stage.cluster.node(candidate).process("walreceiver")
    with faults.frozen(receiver):
        # Told to end by the promotion before it can read what is still in its socket.
        wait_for(lambda: "received promote request" in stage.cluster.log_text(candidate),
                 seconds=60, what="the promotion")  # fmt: skip
    result = run.result()
    assert result["state"] == "data lost", result
    assert result["proof"]["holds"] is False
    assert result["proof"]["lost_bytes"] > 0
    stage.guard("disarmed", candidate)
    stage.settled()
    for writers in stage.writers:
        writers.stop()
    lost = [
        len(check(writers.log, lambda: stage.cluster.primary().connect("postgres", users.DATABASE)).missing)
        for writers in stage.writers
    ]
    assert lost[0] == 0, "a client of the pooler was held, and lost something all the same"
    assert lost[1] > 0
    again = run_module("replica_promote", stage.arguments(candidate, candidate))
    assert again["state"] == "unchanged"
    assert "lost data" in str(again["warnings"])
    for writers in stage.writers:
        writers.start(wait_seconds=30)


@pytest.mark.parametrize(
    "failpoint",
    [
        pytest.param(point, marks=() if point in ("promote:before", "promote:after") else pytest.mark.long)
        for point in [f"{step}:{moment}" for step in STEPS for moment in ("before", "after")]
    ],
)
def test_killed_at_a_step_the_second_run_finishes(stage: PatroniScene, failpoint: str) -> None:
    old, candidate = stage.names()
    stage.guard("armed", candidate)
    run = stage.start(candidate, old, failpoint=failpoint)
    assert run.result() == {}, "the failpoint was not reached"
    results = stage.converge(candidate, old)
    stage.settled()
    stage.assert_settled(candidate, old)
    print(failpoint, [(result["state"], result.get("found", "")) for result in results])


def test_killed_when_patroni_has_been_asked(stage: PatroniScene) -> None:
    """The request is under way: whatever the second run sees first, it ends with one primary and open poolers."""
    old, candidate = stage.names()
    before = set(journals(stage.cluster, old))
    stage.guard("armed", candidate)
    run = stage.start(candidate, old)

    begun(stage, old, before, "promote")
    time.sleep(0.4)
    run.process.kill()
    run.result()
    results = stage.converge(candidate, old)
    stage.settled()
    stage.assert_settled(candidate, old)
    print([result["state"] for result in results])


def test_every_step_is_in_the_kill_matrix(stage: PatroniScene) -> None:
    old, candidate = stage.names()
    result = stage.switch(candidate, old)
    assert [step["step"] for step in result["timeline"]] == list(STEPS), result


def test_leaves_no_password_in_journal_or_record(stage: PatroniScene) -> None:
    word = stage.cluster.rest_password.encode()
    places = [path for path in Path(stage.cluster.directory, "state").rglob("*") if path.is_file()]
    assert any(path.suffix == ".jsonl" for path in places)
    assert [str(path) for path in places if word in path.read_bytes()] == []
