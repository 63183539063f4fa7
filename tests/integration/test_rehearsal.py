# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rehearsal on real servers: it leaves no trace in the cluster, holds no client, and says what would refuse."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.scene import Scene, busy, in_transaction, snapshot
from tests.integration.test_playbooks import Run
from tests.lab import faults, inventory
from tests.lab.operation import run_module, start_module
from tests.lab.server import wait_for

on_18 = pytest.mark.parametrize("standing", ["18"], indirect=True, scope="session")


def traces(scene: Scene, *, rows: bool = True) -> dict[str, Any]:
    """Journals are a log on the host and stay; all else is the cluster's. A rehearsal that failed or was killed leaves
    its row, closed, and what holds the row: then without ``rows``."""
    hidden = () if rows else ("schema", "operations")
    state = snapshot(scene.cluster)
    del state["journals"]
    for node in scene.cluster.nodes:
        for word in hidden:
            del state[node.name][word]
    return state


def rehearse(scene: Scene, *, check: bool = False, **changes: Any) -> dict[str, Any]:
    return scene.promote(check=check, mode="rehearse", **changes)


def test_nothing_lasting(scene: Scene) -> None:
    """Also where it was the first operation ever, and the candidate got slots, settings and a checkpoint meanwhile."""
    scene.primary.sql("DROP SCHEMA IF EXISTS dbops CASCADE")
    scene.settle()
    before = traces(scene)
    result = rehearse(scene)
    assert (result["state"], result["changed"]) == ("rehearsed", False), result.get("msg")
    scene.settle()
    assert traces(scene) == before
    assert [step["step"] for step in result["timeline"]] == [
        *(done := ["intent", "slots", "tune_candidate", "checkpoints"]),
        *(f"undo {name}" for name in reversed(done)),
    ]
    assert all(check["status"] in ("ok", "warning") for check in result["checks"])
    prediction = result["prediction"]
    assert prediction["exceeds"] == ""
    assert prediction["pause_ms"] == pytest.approx(sum(prediction["parts"].values()), abs=0.5)
    assert f"about {prediction['pause_ms']:.0f} ms" in result["msg"]
    done_for_real = scene.switch()
    print(f"\nPostgreSQL {scene.cluster.version}: predicted {prediction}, was {done_for_real['pause_ms']} ms")


@on_18
def test_a_list_in_the_file_of_the_candidate_is_not_copied(scene: Scene) -> None:
    """Every member has the same postgresql.conf, so the candidate's list names the candidate. It is set for the time as
    primary by ALTER SYSTEM, and that has to be gone afterwards."""
    members = scene.cluster.nodes
    names = ", ".join(node.name for node in members if node is not scene.primary)
    for node in members:
        node.configure(synchronous_standby_names=f"FIRST 1 ({names})")
    try:
        scene.settle()
        before = (scene.candidate.data_dir / "postgresql.auto.conf").read_text()
        result = rehearse(scene)
        assert result["state"] == "rehearsed", result.get("msg")
        assert any("SET synchronous_standby_names" in statement for statement in result["statements"])
        assert (scene.candidate.data_dir / "postgresql.auto.conf").read_text() == before
    finally:
        for node in members:
            node.configure(synchronous_standby_names=None)


@on_18
def test_check_mode_only_plans(scene: Scene) -> None:
    before = snapshot(scene.cluster)
    result = rehearse(scene, check=True)
    assert (result["state"], result["changed"]) == ("would rehearse", False), result.get("msg")
    assert [step["name"] for step in result["plan"]][-1] == "certify"
    assert "prediction" not in result
    assert snapshot(scene.cluster) == before


@on_18
def test_what_would_refuse_refuses(scene: Scene) -> None:
    before = snapshot(scene.cluster)
    with in_transaction(scene.primary):
        result = rehearse(scene, max_idle_in_transaction_seconds=0)
    assert (result["failed"], result["state"]) == (True, "refused")
    assert "[idle_in_transaction]" in result["found"]
    assert snapshot(scene.cluster) == before


@on_18
def test_a_pause_that_would_be_rolled_back(scene: Scene) -> None:
    """Transactions that take longer than poolers get to drain."""
    seen = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%dbops_long%' AND pid <> pg_backend_pid()"
    with busy(scene.primary, "SELECT pg_sleep(30) AS dbops_long", seen=seen):
        result = rehearse(scene, max_pause_ms=200)
    assert result["state"] == "rehearsed", result["msg"]
    assert "a transaction of" in result["prediction"]["exceeds"]
    assert result["prediction"]["parts"]["pause_poolers"] > 80
    assert "would be rolled back" in str(result["warnings"])


@on_18
def test_a_standby_that_stands_still(scene: Scene) -> None:
    """It looks well, but nothing arrives: found by doing it, and taken back."""
    before = traces(scene, rows=False)
    with faults.frozen(scene.candidate.process("startup")):
        result = rehearse(scene)
    assert (result["failed"], result["state"]) == (True, "rolled back"), result
    assert "arrives on" in result["expected"] or "arrives on" in result["found"]
    scene.settle()
    assert traces(scene, rows=False) == before


@on_18
@pytest.mark.parametrize("failpoint", ["intent:after", "slots:after", "tune_candidate:after", "checkpoints:after"])
def test_killed_and_run_again(scene: Scene, failpoint: str) -> None:
    rehearse(scene)  # the table is there from now on
    before = traces(scene, rows=False)
    start_module("replica_promote", {**scene.arguments(), "mode": "rehearse"}, failpoint=failpoint).result()
    result = rehearse(scene)
    assert result["state"] == "rehearsed", result["msg"]
    assert "was rolled back first" in str(result["warnings"])
    scene.settle()
    assert traces(scene, rows=False) == before  # the killed one has its row, closed


@on_18
def test_a_switchover_that_was_killed_is_left_to_itself(scene: Scene) -> None:
    scene.point_pooler(scene.candidate)
    start_module("replica_promote", scene.arguments(), failpoint="prove:before").result()
    wait_for(lambda: not scene.primary.running(), seconds=20, what="the old primary to end")
    before = snapshot(scene.cluster)
    result = rehearse(scene)
    assert (result["failed"], result["state"], result["changed"]) == (True, "refused", False)
    assert "run that switchover again" in result["remedy"]
    assert snapshot(scene.cluster) == before
    assert run_module("replica_promote", scene.arguments())["state"] == "switched over"


@on_18
def test_by_playbook_under_check_and_for_real(scene: Scene) -> None:
    hosts = inventory.write(scene.cluster)
    words = {
        "dbops_cluster": scene.cluster.name,
        "promote_replica_candidate": scene.candidate.name,
        "promote_replica_mode": "rehearse",
    }
    before = traces(scene)
    checked = Run("promote_replica", hosts, "--check", **words).succeeded(changed=False)
    assert "POINT OF NO RETURN" in checked.text
    rehearsed = Run("promote_replica", hosts, **words).succeeded(changed=False)
    assert "clients would wait about" in rehearsed.text
    scene.settle()
    assert traces(scene) == before
