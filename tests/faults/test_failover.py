# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The primary is lost under load: who may be promoted, what is lost, and how the lost one comes back."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.lease import TAKE, lease_key

from tests.faults.failover_scene import Stage, receipt_of, stage
from tests.faults.scene import unreachable
from tests.lab import faults, inventory, users
from tests.lab.operation import run_playbook, start_module, switchover_arguments
from tests.lab.server import wait_for

VERSION = os.environ.get("DBOPS_VERSION", "18")
# The npm builds of 13 have no pg_waldump and no pg_rewind.
REWINDS = VERSION in ("15-debian", "18")
PLUG = {"confirmed": True, "by": "the test pulled its plug"}

STEPS = ("mark", "salvage", "freeze", "compare", "prepare", "promote", "follow", "record")
MEMBER_STEPS = ("alone", "follow", "rewind")


class Stages:
    """One stage for the tests of this module; a test that leaves it broken does not take the others with it."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._context: Any = None
        self._stage: Stage | None = None

    def ready(self) -> Stage:
        if self._stage is None:
            self._context = stage(self._factory.mktemp("failover"), VERSION)
            self._stage = self._context.__enter__()
        return self._stage

    def end(self) -> None:
        if self._stage is not None:
            self._stage = None
            self._context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    ready = Stages(tmp_path_factory)
    yield ready
    ready.end()


@pytest.fixture
def scene(stages: Stages, request: pytest.FixtureRequest) -> Iterator[Stage]:
    failed = request.session.testsfailed
    ready = stages.ready()
    if not REWINDS and not ready.whole():  # nothing here brings back what has diverged
        stages.end()
        ready = stages.ready()
    ready.writers.stop()  # its log is of one test: another one may have lost something on purpose
    ready.writers.start(wait_seconds=30)
    yield ready
    if request.session.testsfailed > failed:
        stages.end()


def finish(scene: Stage, result: dict[str, Any], lost: str, **changes: Any) -> dict[str, Any]:
    """After a failover: the books balance for what is not receipted, the lost one follows, nothing is left behind."""
    assert result.get("state") == "failed over", result
    back = scene.rejoin(lost, **changes)
    assert back.get("state") == "following", back
    scene.assert_settled(result["new_primary"])
    return back


# --------------------------------------------------------------------------------------------------------- what is lost


def test_what_the_fenced_primary_serves_is_not_lost(scene: Stage) -> None:
    """Commits that no standby had received: the fenced primary hands them over, and follows without a rewind."""
    lost, _first, _second = scene.names()
    scene.lose(lost, unsent=0.5)
    result = scene.failover(lost, fence=scene.fence(lost))
    assert result.get("state") == "failed over", result
    assert result["loss"]["bytes"] == 0, result["loss"]
    missing, _unknown = scene.lost_and_unknown()
    assert not missing
    assert finish(scene, result, lost)["how"] == "start"


@pytest.mark.skipif(not REWINDS, reason="this build of PostgreSQL has no pg_waldump and no pg_rewind")
def test_the_receipt_lists_exactly_what_was_lost(scene: Stage) -> None:
    """The host of the primary is gone, another means confirms the fence. What comes back with it is receipted, then
    rewound: the clients' log and the receipt agree transaction by transaction."""
    lost, _first, _second = scene.names()
    scene.lose(lost, unsent=0.5)
    result = scene.failover(lost, fence=PLUG)
    assert result.get("state") == "failed over", result
    assert result["loss"]["bytes"] is None
    missing, unknown = scene.lost_and_unknown()
    assert missing, "the test lost nothing, so it shows nothing"
    back = finish(scene, result, lost)
    assert back["how"] == "rewind", back
    receipt = receipt_of(back)
    assert receipt["transactions"] == len(receipt["lost"]) == back["receipt"]["transactions"]
    transfers = {each["xid"] for each in receipt["lost"] if "accounts.transaction_journal" in each["rows"]}
    acknowledged = {entry.xid for entry in missing}
    # The rows of the first one may have reached the standbys before its commit did not.
    assert acknowledged <= {each["xid"] for each in receipt["lost"]}, "acknowledged, lost, and not in the receipt"
    assert len(acknowledged - transfers) <= 6, "one for each connection that had begun"
    assert transfers - acknowledged <= {entry.xid for entry in unknown}, "in the receipt, and nobody's"


def test_a_synchronous_standby_loses_nothing(scene: Stage) -> None:
    """Its host is gone, nothing can be salvaged: every commit waited for one of two standbys, and both are seen."""
    lost, first, second = scene.names()
    listed = f"ANY 1 ({first}, {second})"
    for node in scene.cluster.nodes:
        node.configure(synchronous_standby_names=listed)
    try:
        scene.writers.stop()
        scene.writers.start(wait_seconds=30)
        time.sleep(0.5)
        scene.lose(lost)
        result = scene.failover(lost, fence=PLUG)
        assert result.get("state") == "failed over", result
        assert result["loss"]["synchronous_promise_kept"] is True
        after = scene.node(result["new_primary"]).sql("SHOW synchronous_standby_names")[0][0]
        assert lost in after, after
        assert result["new_primary"] not in after, after
        missing, _unknown = scene.lost_and_unknown()
        assert not missing
    finally:
        for node in scene.cluster.nodes:
            node.configure(synchronous_standby_names=None)
    if REWINDS:
        finish(scene, result, lost)
    else:
        scene.rejoin(lost)
    scene.node(result["new_primary"]).sql("ALTER SYSTEM RESET synchronous_standby_names")
    scene.node(result["new_primary"]).reload()


# ------------------------------------------------------------------------------------------------------------- refusals


def refused(scene: Stage, result: dict[str, Any], check: str, *, says: str) -> None:
    assert result.get("state") == "refused", result
    assert f"[{check}]" in result["found"], result["found"]
    assert says in result["found"], result["found"]
    assert result["remedy"]
    for node in scene.cluster.nodes:
        if node.running():
            assert node.sql("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'dbops_op%%'", []) == [(0,)]


def test_cut_off_from_a_primary_that_clients_still_reach(scene: Stage) -> None:
    """Controller and standbys see nothing, clients go on writing: no answer is no fence."""
    primary, _first, _second = scene.names()
    node = scene.node(primary)
    before = node.hba_file.read_text()
    cut = f"host all {users.OPERATOR} all reject\nhost replication all all reject\n"
    users.write_file(node.hba_file, cut + before, node.owner, 0o640)
    try:
        node.reload()
        node.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        wait_for(lambda: not node.process("walsender"), seconds=10, what="the walsenders to end")
        result = scene.failover(primary)
        refused(scene, result, "fence", says="nobody has confirmed")
        seen = [{"name": "pooler1", "sees_primary": True}]
        result = scene.failover(primary, fence=PLUG, witnesses=seen)
        refused(scene, result, "primary_gone", says="pooler1 sees it accept writes")
        blind = [{"name": "pooler1", "detail": "no route to host"}]
        refused(scene, scene.failover(primary, fence=PLUG, witnesses=blind), "primary_gone", says="could not look")
        assert scene.writable() == [primary]
    finally:
        users.write_file(node.hba_file, before, node.owner, 0o640)
        node.reload()
    scene.cluster.wait_streaming({each.name for each in scene.cluster.nodes} - {primary})
    missing, _unknown = scene.lost_and_unknown()
    assert not missing


def test_a_primary_that_answers_is_not_failed_over(scene: Stage) -> None:
    primary, *others = scene.names()
    refused(scene, scene.failover(primary), "primary_gone", says="accepts writes as seen from here")
    # One that was failed over from is a standby now; asking for that again changes nothing.
    there = scene.node(primary).sql("SELECT to_regclass('dbops.operation') IS NOT NULL") == [(True,)]
    rows = there and scene.node(primary).sql(
        "SELECT detail ->> 'failed_primary' FROM dbops.operation ORDER BY opened_at DESC LIMIT 1"
    )
    before = rows[0][0] if rows else ""
    for name in others:
        result = scene.failover(name, fence=PLUG)
        if name == before:
            assert result.get("state") == "unchanged", result
        else:
            refused(scene, result, "no_primary", says=primary)


def test_a_standby_that_is_ahead_of_the_candidate(scene: Stage) -> None:
    """Named candidate with less than its sibling: refused; accepted, the sibling is rewound with a receipt."""
    lost, first, second = scene.names()
    frozen = scene.node(second).process("walreceiver")
    faults.freeze(frozen)
    time.sleep(1.0)
    scene.lose(lost)
    for pid in frozen:  # what its socket still holds must not reach it
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: scene.node(second).running() and _answers(scene, second), seconds=30, what=f"{second} to answer")
    refused(scene, scene.failover(lost, candidate=second, fence=PLUG), "most_advanced", says=f"{first} has")
    chosen = scene.failover(lost, fence=PLUG)
    assert chosen.get("new_primary") == first, chosen
    if REWINDS:
        finish(scene, chosen, lost)


def _answers(scene: Stage, name: str) -> bool:
    try:
        return scene.node(name).sql("SELECT pg_is_in_recovery()") == [(True,)]
    except Exception:  # noqa: BLE001  it restarts
        return False


@pytest.mark.skipif(not REWINDS, reason="this build of PostgreSQL has no pg_waldump and no pg_rewind")
def test_accepted_loss_rewinds_the_sibling_that_was_ahead(scene: Stage) -> None:
    lost, first, second = scene.names()
    with faults.cut_replication(scene.node(lost)):
        time.sleep(0.3)
    # Only the first one comes back.
    scene.node(second).sql("ALTER SYSTEM SET primary_conninfo = ''")
    scene.node(second).reload()
    scene.cluster.wait_streaming({first})
    time.sleep(0.5)
    scene.lose(lost)
    refused(scene, scene.failover(lost, candidate=second, fence=PLUG), "most_advanced", says=f"{first} has")
    result = scene.failover(lost, candidate=second, fence=PLUG, accept_data_loss=True, follow_timeout=3)
    assert result.get("state") == "failed over", result
    assert set(result["behind"]) == {lost, first}
    for name in (first, lost):
        back = scene.rejoin(name)
        assert (back.get("state"), back.get("how")) == ("following", "rewind"), back
    scene.assert_settled(second)


def test_a_promise_that_only_a_silent_standby_may_have_kept(scene: Stage) -> None:
    lost, first, second = scene.names()
    fence = {**PLUG, "synchronous_standby_names": f"ANY 1 ({first}, {second})"}
    scene.lose(lost)
    silent = scene.node(second)
    silent.stop()
    refused(scene, scene.failover(lost, fence=fence), "synchronous_promise", says=f"{first} answered")
    silent.start()
    result = scene.failover(lost, fence=fence)
    if REWINDS:
        finish(scene, result, lost)
    scene.node(result["new_primary"]).sql("ALTER SYSTEM RESET synchronous_standby_names")
    scene.node(result["new_primary"]).reload()


def test_nobody_is_fit(scene: Stage) -> None:
    lost, first, second = scene.names()
    for name in (first, second):
        scene.node(name).sql("SELECT pg_wal_replay_pause()")
    scene.lose(lost)
    refused(scene, scene.failover(lost, fence=PLUG), "candidate_fit", says="its replay is paused")
    scene.node(first).sql("SELECT pg_wal_replay_resume()")
    result = scene.failover(lost, fence=scene.fence(lost))
    assert result.get("new_primary") == first, result
    scene.node(second).sql("SELECT pg_wal_replay_resume()")
    finish(scene, result, lost)


# ---------------------------------------------------------------------------------------------------- the kill matrix


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_failover_killed_at_a_step(scene: Stage, step: str, moment: str) -> None:
    lost, _first, _second = scene.names()
    scene.lose(lost, unsent=0.2)
    fence = scene.fence(lost)
    killed = scene.start_failover(lost, failpoint=f"{step}:{moment}", fence=fence).result()
    assert killed == {}, "the failpoint was not reached"
    assert len(scene.writable()) <= 1
    result = scene.failover(lost, fence=fence)
    if result.get("state") == "unchanged":
        assert (step, moment) == ("record", "after"), result
        result = {"state": "failed over", "new_primary": scene.cluster.primary().name}
    assert result.get("state") == "failed over", result
    missing, _unknown = scene.lost_and_unknown()
    assert not missing
    finish(scene, result, lost)
    assert scene.failover(lost).get("state") in ("unchanged", "refused")


def test_the_data_directory_of_a_standby_is_no_fence_of_the_primary(scene: Stage) -> None:
    """Its entry names the host of another member, where a standby looks like a server that was fenced."""
    primary, first, _second = scene.names()
    local = scene.cluster.module_arguments(first, first)["local"]
    result = scene.start_fence(primary, local=local, serve_wal=False).result()
    assert (result.get("failed"), result.get("state"), result.get("changed")) == (True, "refused", False), result
    assert f"is that of {first}, which runs there" in result["msg"]
    assert scene.writable() == [primary]


def test_a_fenced_primary_that_cannot_be_started(scene: Stage) -> None:
    """Its WAL is not to be had, but it is down for certain: that is a fence, and what may be lost is not known."""
    lost, _first, _second = scene.names()
    scene.lose(lost)
    local = scene.cluster.module_arguments(lost, lost)["local"]
    broken = {**local, "service": {**local["service"], "start": ["false"]}}
    fenced = scene.start_fence(lost, local=broken).result()
    assert fenced.get("fence", {}).get("confirmed") is True, fenced
    assert "cannot be started" in json.dumps(fenced["warnings"]), fenced
    result = scene.failover(lost, fence=fenced["fence"])
    assert result.get("state") == "failed over", result
    assert result["loss"]["bytes"] is None
    if REWINDS:
        finish(scene, result, lost)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_fence_killed(scene: Stage, moment: str) -> None:
    lost, _first, _second = scene.names()
    scene.fence(lost, failpoint=f"fence:{moment}")
    result = scene.failover(lost, fence=scene.fence(lost))
    assert result.get("loss", {}).get("bytes") == 0, result
    missing, _unknown = scene.lost_and_unknown()
    assert not missing
    finish(scene, result, lost)


@pytest.mark.skipif(not REWINDS, reason="this build of PostgreSQL has no pg_waldump and no pg_rewind")
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["fence", *MEMBER_STEPS])
def test_rejoin_killed_at_a_step(scene: Stage, step: str, moment: str) -> None:
    """Never a second primary; the second run goes on, or says that only a base backup helps."""
    lost, _first, _second = scene.names()
    scene.lose(lost, unsent=0.0 if step == "follow" else 0.3)
    result = scene.failover(lost, fence=scene.fence(lost) if step == "follow" else PLUG)
    assert result.get("state") == "failed over", result
    assert scene.rejoin(lost, failpoint=f"{step}:{moment}") == {}, "the failpoint was not reached"
    assert scene.writable() == [result["new_primary"]]
    back = scene.rejoin(lost)
    if (step, moment) == ("rewind", "before"):
        assert back.get("state") == "diverged", back
        assert "was interrupted" in back["found"], back
        back = scene.rejoin(lost, rejoin_by_base_backup=True)
        assert back.get("how") == "base backup", back
    assert back.get("state") in ("following", "unchanged"), back
    scene.assert_settled(result["new_primary"])


# ---------------------------------------------------------------------------------------------- the old primary returns


@pytest.mark.parametrize("step", ["freeze", "promote", "record"])
def test_the_old_primary_is_started_during_the_failover(scene: Stage, step: str) -> None:
    """Its fence holds: whoever starts it starts a standby."""
    lost, _first, _second = scene.names()
    scene.lose(lost)
    fence = scene.fence(lost, serve_wal=False)
    assert scene.start_failover(lost, failpoint=f"{step}:before", fence=fence).result() == {}
    scene.node(lost).start()
    assert len(scene.writable()) <= 1
    assert lost not in scene.writable()
    result = scene.failover(lost, fence=fence)
    finish(scene, result, lost)


@pytest.mark.skipif(not REWINDS, reason="this build of PostgreSQL has no pg_waldump and no pg_rewind")
def test_the_old_primary_comes_back_writable_after_the_failover(scene: Stage) -> None:
    """Fenced by its plug alone, somebody puts it back: two primaries. To let it follow is to stop it at once; what
    clients wrote to it meanwhile is in the receipt."""
    lost, _first, _second = scene.names()
    scene.lose(lost)
    result = scene.failover(lost, fence=PLUG)
    node = scene.node(lost)
    node.start()
    assert set(scene.writable()) == {lost, result["new_primary"]}
    node.sql("INSERT INTO dbops_probe (node) VALUES ('split brain')", dbname="accounts")
    with closing(scene.node(result["new_primary"]).connect(dbname="accounts")) as another_run:
        another_run.cursor().execute(TAKE, lease_key(scene.cluster.name))
        refused = scene.rejoin(lost, primary=result["new_primary"])
    assert refused.get("state") == "refused", refused
    assert "another run holds the lease" in refused["found"], refused
    assert lost in scene.writable(), "it was touched"
    back = scene.rejoin(lost, primary=result["new_primary"])
    assert (back.get("state"), back.get("how")) == ("following", "rewind"), back
    assert "accounts.dbops_probe" in back["receipt"]["relations"], back["receipt"]
    scene.assert_settled(result["new_primary"])


def test_a_guarded_primary_that_comes_back_by_itself_is_a_standby(scene: Stage) -> None:
    """Fenced by its plug alone, so nothing could be planted. Its host boots, and its unit runs the guard first: with
    nobody to ask it does not start at all; a standby that follows the new primary is enough to say what happened."""
    lost, first, second = scene.names()
    scene.writers.stop()
    scene.node(lost).stop()
    healthy = scene.start_guarded(lost)
    assert healthy.returncode == 0, healthy.stderr
    assert scene.writable() == [lost], "a plain restart of a primary is one"
    scene.cluster.wait_streaming({first, second})
    scene.writers.start(wait_seconds=30)
    scene.lose(lost, unsent=0.2)
    result = scene.failover(lost, fence=PLUG)
    assert result.get("state") == "failed over", result
    new, other = result["new_primary"], ({first, second} - {result["new_primary"]}).pop()
    for name in (other, new):
        scene.node(name).stop()
    refused_start = scene.start_guarded(lost, seconds=1)
    assert refused_start.returncode == 1
    assert "0 of 2 other members answered" in refused_start.stderr, refused_start.stderr
    assert not scene.node(lost).running()
    scene.node(other).start()
    demoted = scene.start_guarded(lost)
    assert demoted.returncode == 0, demoted.stderr
    assert "it starts as a standby" in demoted.stdout, demoted.stdout
    assert scene.node(lost).sql("SELECT pg_is_in_recovery()") == [(True,)]
    scene.node(new).start()
    assert scene.writable() == [new]
    if REWINDS:
        finish(scene, result, lost)
    else:
        assert scene.rejoin(lost).get("state") == "diverged"


@pytest.mark.skipif(not REWINDS, reason="this build of PostgreSQL has no pg_waldump and no pg_rewind")
def test_a_member_whose_old_wal_is_gone(scene: Stage) -> None:
    """Neither a receipt nor a rewind is possible without the WAL around the fork: said, and kept down. Only a new base
    backup helps, and that is taken when asked for."""
    lost, _first, _second = scene.names()
    node = scene.node(lost)
    with faults.cut_replication(node):
        time.sleep(0.3)
        for _time in range(2):
            node.sql("SELECT pg_switch_wal()")
            node.sql("CHECKPOINT")
            time.sleep(0.2)
        needed = node.sql("SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()")[0][0]
        node.kill()
    for path in (node.data_dir / "pg_wal").glob("0*"):
        if path.is_file() and path.name < needed and path.suffix != ".history":
            path.unlink()
    result = scene.failover(lost, fence=PLUG)
    assert result.get("state") == "failed over", result
    back = scene.rejoin(lost)
    assert back.get("state") == "diverged", back
    assert "pg_waldump" in back["found"], back
    assert "put the missing WAL files back" in back["remedy"], back
    assert scene.writable() == [result["new_primary"]]
    back = scene.rejoin(lost, rejoin_by_base_backup=True)
    assert back.get("how") == "base backup", back
    scene.assert_settled(result["new_primary"])


@pytest.mark.skipif(not REWINDS, reason="this build of PostgreSQL has no pg_waldump and no pg_rewind")
def test_a_member_that_cannot_be_rewound(tmp_path: Path) -> None:
    """WAL that pg_rewind needs is gone: it says so, keeps the member down, and takes a base backup only when asked."""
    with stage(tmp_path, VERSION, settings={"wal_log_hints": "off", "full_page_writes": "off"}) as scene:
        lost, _first, _second = scene.names()
        scene.lose(lost, unsent=0.3)
        result = scene.failover(lost, fence=PLUG)
        back = scene.rejoin(lost)
        assert back.get("state") == "diverged", back
        assert "pg_rewind" in back["found"], back
        assert back["receipt"]["transactions"], back
        assert scene.writable() == [result["new_primary"]]
        back = scene.rejoin(lost, rejoin_by_base_backup=True)
        assert back.get("how") == "base backup", back
        scene.assert_settled(result["new_primary"])


# -------------------------------------------------------------------------------------------------------- two at a time


def test_two_failovers_started_together(scene: Stage) -> None:
    lost, _first, _second = scene.names()
    scene.lose(lost)
    fence = scene.fence(lost)
    runs = [scene.start_failover(lost, fence=fence) for _run in range(2)]
    results = [run.result() for run in runs]
    done = [result for result in results if result.get("state") == "failed over"]
    others = [result for result in results if result not in done]
    assert len(done) == 1, results
    assert all("another run holds" in each.get("found", "") or each.get("state") == "unchanged" for each in others), (
        others
    )
    finish(scene, done[0], lost)


def test_a_switchover_started_with_a_failover(scene: Stage) -> None:
    """The primary dies; one colleague fails over, another one runs the planned switchover again. Whoever is second
    refuses, and there is never a second primary."""
    lost, first, second = scene.names()
    words = switchover_arguments(scene.cluster, second, lost)
    scene.lose(lost)
    fence = scene.fence(lost)
    failing = scene.start_failover(lost, fence=fence, candidate=first)
    switching = start_module("replica_promote", words)
    while failing.process.poll() is None or switching.process.poll() is None:
        assert len(scene.writable()) <= 1
    switched, failed = switching.result(), failing.result()
    assert switched.get("state") == "refused", switched
    if failed.get("failed"):  # it met the other one's lease
        assert "another run holds" in failed["found"], failed
        failed = scene.failover(lost, fence=fence, candidate=first)
    assert (failed.get("state"), failed.get("new_primary")) == ("failed over", first), failed
    finish(scene, failed, lost)


# ---------------------------------------------------------------------------------------------------------- by playbook


def test_by_playbook_and_again(scene: Stage) -> None:
    """Check mode changes nothing; the failover loses nothing and brings everybody back; again it changes nothing."""
    inventory.write(scene.cluster)
    lost, _first, _second = scene.names()
    scene.lose(lost, unsent=0.3)
    words: dict[str, Any] = {"promote_replica_mode": "failover", "promote_replica_failed_primary": lost}
    play = run_playbook(scene.cluster, "promote_replica.yml", "--check", **words)
    assert play.returncode == 0, play.stdout[-3000:]
    assert "POINT OF NO RETURN" in play.stdout
    assert scene.writable() == []
    play = run_playbook(scene.cluster, "promote_replica.yml", **words)
    assert play.returncode == 0, play.stdout[-3000:]
    primary = scene.cluster.primary().name
    scene.assert_settled(primary)
    missing, _unknown = scene.lost_and_unknown()
    assert not missing
    play = run_playbook(scene.cluster, "promote_replica.yml", **words)
    assert play.returncode == 0, play.stdout[-3000:]
    assert "changed=0" in play.stdout.partition("PLAY RECAP")[2], play.stdout[-1500:]


@pytest.mark.long
def test_by_playbook_when_fence_or_witness_fails(scene: Stage, tmp_path: Path) -> None:
    """A fence command that fails, or hangs, is no fence; a witness that cannot be reached has seen nothing. Nobody is
    promoted, so the primary can simply be started again."""
    inventory.write(scene.cluster)
    lost, _first, _second = scene.names()
    scene.lose(lost)
    away = unreachable(tmp_path / "away.yml", f"lab-{lost}", "app1")
    clusters = {scene.cluster.name: {**inventory.cluster_data(scene.cluster), "witnesses": ["app1"]}}
    words: dict[str, Any] = {
        "promote_replica_mode": "failover",
        "promote_replica_failed_primary": lost,
        "promote_replica_fence_timeout": 3,
        "promote_replica_fence_verify_command": ["true"],
    }

    def run(command: list[str], **more: Any) -> str:
        play = run_playbook(
            scene.cluster,
            "promote_replica.yml",
            "-i",
            str(away),
            promote_replica_fence_command=command,
            **words,
            **more,
        )
        assert play.returncode != 0, play.stdout[-3000:]
        assert scene.writable() == []
        return " ".join(play.stdout.split())

    assert "Run the fence command" in run(["false"])
    began = time.monotonic()
    assert "Timed out after 3 second(s)" in run(["sleep", "600"])
    assert time.monotonic() - began < 200
    said = run(["true"], dbops_clusters=clusters)
    assert "app1 could not look" in said, said[-3000:]
    scene.node(lost).start()
    assert scene.writable() == [lost]
    scene.cluster.wait_streaming({node.name for node in scene.cluster.nodes} - {lost})


@pytest.mark.long
def test_by_playbook_when_the_host_is_gone(scene: Stage, tmp_path: Path) -> None:
    """SSH to it fails: refused without a fence command, also when the command ran and nobody confirms it; with both it
    fails over, and rejoin_replica brings the member back when its host is."""
    inventory.write(scene.cluster)
    lost, _first, _second = scene.names()
    scene.lose(lost)
    away = unreachable(tmp_path / "away.yml", f"lab-{lost}")
    words: dict[str, Any] = {"promote_replica_mode": "failover", "promote_replica_failed_primary": lost}
    play = run_playbook(scene.cluster, "promote_replica.yml", "-i", str(away), **words)
    assert play.returncode != 0
    assert "nobody has confirmed" in " ".join(play.stdout.split()), play.stdout[-3000:]
    words.update(promote_replica_fence_command=["true"], promote_replica_fence_verify_command=["false"])
    assert run_playbook(scene.cluster, "promote_replica.yml", "-i", str(away), **words).returncode != 0
    assert scene.writable() == []
    words.update(promote_replica_fence_verify_command=["true"])
    play = run_playbook(scene.cluster, "promote_replica.yml", "-i", str(away), **words)
    assert play.returncode == 0, play.stdout[-3000:]
    primary = scene.cluster.primary().name
    assert primary != lost
    if REWINDS:
        play = run_playbook(scene.cluster, "rejoin_replica.yml")
        assert play.returncode == 0, play.stdout[-3000:]
        scene.assert_settled(primary)
