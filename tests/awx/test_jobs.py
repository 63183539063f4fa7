# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every job template, launched as AWX launches it, on real servers under load."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scene import Scene, scene
from tests.integration.scene import snapshot
from tests.integration.tables.scene import PARENT
from tests.lab import faults, inventory
from tests.lab.awx import Ended, Job, Launch, Project, Refused, job_template
from tests.lab.database import Database
from tests.lab.operation import journals
from tests.lab.server import alive
from tests.lab.waiting import wait_for


class Awx:
    """A project that was synchronised, an inventory, and the jobs launched so far."""

    def __init__(self, stage: Scene, directory: Path) -> None:
        self.stage = stage
        self.project = Project(directory)
        self.inventory = inventory.inventory(stage.cluster)
        self.jobs = directory / "jobs"
        self._numbers = itertools.count(1)

    def launch(self, playbook: str, *, words: dict[str, Any] | None = None, **answers: Any) -> Job:
        launch = Launch({"dbops_cluster": self.stage.cluster.name, **answers}, **words or {})
        directory = self.jobs / str(next(self._numbers))
        return Job(self.project, job_template(playbook), self.inventory, launch, directory)

    def run(self, playbook: str, *, words: dict[str, Any] | None = None, **answers: Any) -> Ended:
        job = self.launch(playbook, words=words, **answers)
        ended = job.ended()
        assert not job.runner.exists()  # deleted with the job, and nothing that is needed later was in it
        return ended


def succeeded(ended: Ended, *, changed: bool) -> Ended:
    assert (ended.status, bool(ended.changed)) == ("successful", changed), ended.output
    assert "WARNING]" not in ended.output or "[standbys_answer]" in ended.output, ended.output
    return ended


def failed(ended: Ended, *texts: str) -> Ended:
    assert ended.status == "failed", ended.output
    assert [text for text in texts if text not in ended.text] == [], ended.output
    return ended


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("awx"), "18") as ready:
        yield ready


@pytest.fixture(scope="module")
def awx(stage: Scene, tmp_path_factory: pytest.TempPathFactory) -> Awx:
    return Awx(stage, tmp_path_factory.mktemp("controller"))


def test_a_round(awx: Awx, stage: Scene) -> None:
    """Check, run, run again, take back, take back again; what the next node of a workflow gets."""
    old, candidate = stage.names()
    before = snapshot(stage.cluster)

    checked = succeeded(
        awx.run(
            "promote_replica", words={"check": True, "diff": True, "verbosity": 1}, promote_replica_candidate=candidate
        ),
        changed=True,
    )
    assert "POINT OF NO RETURN" in checked.text
    assert checked.artifacts == {}
    assert snapshot(stage.cluster) == before

    switched = succeeded(awx.run("promote_replica", promote_replica_candidate=candidate), changed=True)
    assert switched.artifacts["dbops_primary"] == candidate
    assert switched.artifacts["dbops_switchover"]["state"] == "switched over"
    stage.assert_settled(candidate, old)
    again = succeeded(awx.run("promote_replica", promote_replica_candidate=candidate), changed=False)
    assert again.artifacts["dbops_primary"] == candidate

    undone = succeeded(awx.run("promote_replica_rollback"), changed=True)
    assert undone.artifacts["dbops_primary"] == old
    stage.assert_settled(old, candidate)
    assert succeeded(awx.run("promote_replica_rollback"), changed=False).artifacts == {"dbops_primary": old}
    stage.check_ledger()


def test_answers_that_are_wrong_change_nothing(awx: Awx, stage: Scene, tmp_path: Path) -> None:
    """A limit that hides a member; an answer that is a template; a switchover to nobody."""
    old, candidate = stage.names()
    before = snapshot(stage.cluster)
    [hidden] = {inventory.host(node.name) for node in stage.cluster.nodes} - {
        inventory.host(name) for name in (old, candidate)
    }
    failed(
        awx.run("promote_replica", words={"limit": f"all:!{hidden}"}, promote_replica_candidate=candidate),
        f"found: {hidden} is not in this play",
        "what to do: run without --limit",
    )
    trace = tmp_path / "trace"
    template = "{{ lookup('ansible.builtin.pipe', 'touch " + str(trace) + "') }}"
    failed(awx.run("promote_replica", promote_replica_candidate=template), "found: candidate {{ lookup(", "one of pg1")
    failed(awx.run("rejoin_replica", promote_replica_primary=template), "what to do: ")
    assert not trace.exists()
    failed(awx.run("promote_replica"), "found: candidate not given; expected: one of pg1, pg2, pg3")
    assert snapshot(stage.cluster) == before


def guards(stage: Scene) -> list[bool]:
    """Whether each pooler's dead-man that was not disarmed is alive."""
    [pooler] = stage.cluster.poolers
    records = (stage.cluster.state_dir(pooler.name) / "pgbouncer_guard").glob("*.json")
    return [alive(json.loads(path.read_text())["pid"]) for path in records]


def relaunched(awx: Awx, candidate: str) -> list[Ended]:
    """The same job again until it succeeds. Whatever it says before, it says what to do."""
    runs: list[Ended] = []
    while len(runs) < 4 and (not runs or runs[-1].status != "successful"):
        runs.append(awx.run("promote_replica", promote_replica_candidate=candidate))
        assert runs[-1].status == "successful" or "what to do" in runs[-1].text, runs[-1].output
    assert runs[-1].status == "successful", runs[-1].output
    return runs


def test_cancelled_while_the_module_works(awx: Awx, stage: Scene) -> None:
    """The module waits for a checkpoint that does not end. The job is cancelled, the module lives on: the relaunch says
    who is there and changes nothing. When the module is done, one more is satisfied."""
    old, candidate = stage.names()
    before = set(journals(stage.cluster, old))

    def waits_for_the_checkpoint() -> bool:
        written = [path.read_text() for path in set(journals(stage.cluster, old)) - before]
        return any('"step": "checkpoints"' in text for text in written)

    with faults.frozen(stage.cluster.node(old).process("checkpointer")):
        job = awx.launch("promote_replica", promote_replica_candidate=candidate)
        wait_for(waits_for_the_checkpoint, seconds=300, what="the switchover to begin")
        job.cancel()
        ended = job.ended()
        assert (ended.status, ended.artifacts) == ("canceled", {})
        failed(
            awx.run("promote_replica", promote_replica_candidate=candidate),
            "no run holds the lease of cluster accounts any more",
            "what to do: wait for that run to end",
        )
        assert guards(stage) == [True]  # the living run's own: the relaunch has left it alone
    runs = relaunched(awx, candidate)
    print([each.status for each in runs])
    assert runs[-1].artifacts["dbops_primary"] == candidate
    assert guards(stage) == []
    stage.assert_settled(candidate, old)
    stage.check_ledger()


def test_cancelled_at_some_time_while_it_runs(awx: Awx, stage: Scene) -> None:
    """ansible-runner looks up to five seconds later, so this is anywhere between the guard and the verification."""
    old, candidate = stage.names()
    job = awx.launch("promote_replica", promote_replica_candidate=candidate)
    job.wait_for(f'host: switchover to {candidate}"', seconds=300)
    job.cancel()
    print(job.ended().status, [each.status for each in relaunched(awx, candidate)])
    assert guards(stage) == []
    stage.assert_settled(candidate, old)
    stage.check_ledger()


def test_failover_and_rejoin(awx: Awx, stage: Scene) -> None:
    """The primary's server dies; the survey names it and nothing else. Then a standby is down, and is brought back."""
    old, _candidate = stage.names()
    stage.cluster.node(old).kill()
    ended = succeeded(
        awx.run("promote_replica", promote_replica_mode="failover", promote_replica_failed_primary=old), changed=True
    )
    new = stage.cluster.primary().name
    assert ended.artifacts["dbops_primary"] == new != old
    assert ended.artifacts["dbops_failover"]["state"]
    assert "may" in str(ended.artifacts["dbops_loss"]) or ended.artifacts["dbops_loss"]
    stage.assert_settled(new, old, forked=False)

    stage.cluster.node(old).stop()
    assert succeeded(awx.run("rejoin_replica"), changed=True).artifacts == {"dbops_primary": new}
    stage.assert_settled(new, old, forked=False)
    assert succeeded(awx.run("rejoin_replica"), changed=False).artifacts == {"dbops_primary": new}
    stage.check_ledger()


def test_awx_refuses_what_the_survey_does_not_allow(awx: Awx) -> None:
    with pytest.raises(Refused, match="not one of"):
        awx.launch("promote_replica", promote_replica_mode="undo")


def test_partitions_and_indexes(awx: Awx, stage: Scene) -> None:
    """Check, run and run again of what is done to tables; which ones is data of the inventory."""
    database = Database.create(stage.cluster)
    database.sql(PARENT)
    awx.inventory["all"]["vars"] |= {
        "partition_maintenance_tables": [{"table": "ev", "key": "at", "interval": "day", "premake": 2}],
        "index_maintenance_indexes": [{"name": "ev_at", "table": "ev", "columns": ["at"]}],
    }
    rounds = {
        "partition_maintenance": ("SELECT count(*) FROM pg_inherits WHERE inhparent = 'ev'::regclass", 3),
        "index_maintenance": ("SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('ev_at')", 3),
    }
    for playbook, (count, there) in rounds.items():
        answers: dict[str, Any] = {f"{playbook}_database": database.name}
        checked = succeeded(awx.run(playbook, words={"check": True}, **answers), changed=True)
        assert "locks: " in checked.text
        assert database.value(count) == 0
        done = succeeded(awx.run(playbook, **answers), changed=True)
        assert database.value(count) == there
        again = succeeded(awx.run(playbook, **answers), changed=False)
        if playbook == "partition_maintenance":
            assert len(done.artifacts["dbops_partitions"]["created"]) == there
            assert again.artifacts["dbops_partitions"] == {"created": [], "detached": [], "dropped": [], "expired": []}
    database.drop()
