# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every check of a failover refuses once on real servers, for this reason and no other, and has changed nothing.

A case brings a cluster whose primary is down into the state, yields the arguments that are to be different, and puts it
back. ``beside`` names the checks that such a state cannot help failing too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import failover_plan as planner

from tests.integration.scene import configured, everywhere, following, snapshot
from tests.lab import users
from tests.lab.cluster import Cluster
from tests.lab.operation import run_module, start_module, switchover_arguments
from tests.lab.server import Node, free_port

Change = dict[str, Any]
PLUG = {"confirmed": True, "by": "the test stopped it"}


class Lost:
    """A cluster of three whose primary is down; cases may start it for a while."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.lost, self.first, self.second = cluster.nodes
        self.lost.stop()

    @contextmanager
    def revived(self) -> Iterator[None]:
        """The primary lives, and the standbys have all that it wrote when it goes again: it waits for them."""
        self.lost.start()
        self.cluster.wait_streaming({self.first.name, self.second.name})
        try:
            yield
        finally:
            self.lost.stop()

    def on_primary(self, *statements: str) -> None:
        with self.revived():
            for statement in statements:
                self.lost.sql(statement)

    def arguments(self, **changes: Any) -> dict[str, Any]:
        here = self.first.name
        plain = {**self.cluster.module_arguments(here, here), "node": here, "mode": "failover"}
        del plain["candidate"], plain["poolers"]
        return {**plain, "failed_primary": self.lost.name, "fence": PLUG, **changes}

    def nodes(self, member: Node, **words: Any) -> list[dict[str, Any]]:
        return [{**node, **words} if node["name"] == member.name else node for node in self.arguments()["nodes"]]


@dataclass(frozen=True)
class Case:
    check: str
    name: str
    arrange: Callable[[Any, Path], AbstractContextManager[Change]]
    beside: frozenset[str]
    status: str
    says: str


CASES: list[Case] = []


def case(
    check: str, *, beside: tuple[str, ...] = (), status: str = "failed", says: str
) -> Callable[[Callable[[Lost, Path], Iterator[Change]]], None]:
    def register(arrange: Callable[[Lost, Path], Iterator[Change]]) -> None:
        CASES.append(Case(check, arrange.__name__, contextmanager(arrange), frozenset(beside), status, says))

    return register


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lost]:
    quick = {"wal_retrieve_retry_interval": "200ms"}
    with Cluster.create(tmp_path_factory.mktemp("failover") / "lab", "18", settings=quick) as cluster:
        yield Lost(cluster)


# -------------------------------------------------------------------------------------------------------------- members


@case("standbys_answer", says="nobody answered, pg2, pg3 did not")
def nobody_is_left(lost: Lost, _tmp: Path) -> Iterator[Change]:
    with down(lost.first), down(lost.second):
        yield {}


@contextmanager
def down(node: Node) -> Iterator[None]:
    node.stop()
    try:
        yield
    finally:
        node.start()


@case("no_primary", says="pg1 accepts writes")
def another_member_was_named(lost: Lost, _tmp: Path) -> Iterator[Change]:
    with lost.revived():
        yield {"failed_primary": lost.second.name}


@case("primary_gone", says="pg1 accepts writes as seen from here")
def the_primary_lives(lost: Lost, _tmp: Path) -> Iterator[Change]:
    with lost.revived():
        yield {}


@case("primary_gone", status="unknown", says="app1 could not look: no route to host")
def witness_is_blind(_lost: Lost, _tmp: Path) -> Iterator[Change]:
    yield {"witnesses": [{"name": "app1", "detail": "no route to host"}, {"name": "app2", "sees_primary": False}]}


@case("fence", says="nobody has confirmed")
def no_fence(_lost: Lost, _tmp: Path) -> Iterator[Change]:
    yield {"fence": {"confirmed": False}}


@case("upstream", says="pg3 follows 127.0.0.1:")
def standbys_of_somebody_else(lost: Lost, _tmp: Path) -> Iterator[Change]:
    yield {"nodes": lost.nodes(lost.lost, login_port=free_port())}


@case("versions", beside=("system_identifier",), says="pg3: 15")
def standby_of_another_version(lost: Lost, tmp: Path) -> Iterator[Change]:
    yield from _foreign(lost, tmp, "15")


@case("system_identifier", says=", pg3: ")
def standby_of_another_cluster(lost: Lost, tmp: Path) -> Iterator[Change]:
    yield from _foreign(lost, tmp, "18")


def _foreign(lost: Lost, tmp: Path, version: str) -> Iterator[Change]:
    with Cluster.create(tmp / "foreign", version, members=("other",)) as cluster:
        node = cluster.node("other")
        node.stop()
        users.write_file(node.data_dir / "standby.signal", "", node.owner)
        node.start()
        yield {"nodes": lost.nodes(lost.second, login_port=node.port, passfile=str(cluster.passfile))}


@case("privileges", says="pg_promote")
def may_not_promote(lost: Lost, _tmp: Path) -> Iterator[Change]:
    grant = f"EXECUTE ON FUNCTION pg_promote(boolean, integer) %s {users.OPERATOR}"
    lost.on_primary(f"REVOKE {grant % 'FROM'}")
    yield {}
    lost.on_primary(f"GRANT {grant % 'TO'}")


@case("manager_in_charge", says="Patroni")
def patroni_is_connected(lost: Lost, _tmp: Path) -> Iterator[Change]:
    connection = lost.second.connect(application_name="Patroni heartbeat")
    yield {}
    connection.close()


# ------------------------------------------------------------------------------------------------------- the candidate


@case("candidate_fit", says="pg2: its replay is paused")
def nobody_is_fit(lost: Lost, _tmp: Path) -> Iterator[Change]:
    standbys = (lost.first, lost.second)
    for node in standbys:
        node.sql("SELECT pg_wal_replay_pause()")
    yield {}
    for node in standbys:
        node.sql("SELECT pg_wal_replay_resume()")
    everywhere(standbys, "SELECT 1 WHERE NOT pg_is_wal_replay_paused()")


@case("candidate_fit", says="recovery_min_apply_delay = 3600000 ms")
def candidate_applies_late(lost: Lost, _tmp: Path) -> Iterator[Change]:
    with configured(lost.second, recovery_min_apply_delay="1h"):
        yield {"candidate": lost.second.name}


@case("candidate_fit", says="it has a recovery target (recovery_target_time)")
def candidate_has_a_recovery_target(lost: Lost, _tmp: Path) -> Iterator[Change]:
    with configured(lost.second, restart=True, recovery_target_time="2099-01-01 00:00:00+00"):
        yield {"candidate": lost.second.name}


@case("candidate_fit", says="pg3: no replication connection to it could be opened")
def followers_could_not_log_in(lost: Lost, _tmp: Path) -> Iterator[Change]:
    """Not to be promoted: the others could not stream from it. Its timeline is not known for the same reason."""
    before = lost.second.hba_file.read_text()
    users.write_file(lost.second.hba_file, f"host replication all all reject\n{before}", lost.second.owner, 0o640)
    lost.second.reload()
    yield {"candidate": lost.second.name}
    users.write_file(lost.second.hba_file, before, lost.second.owner, 0o640)
    lost.second.reload()


@case("most_advanced", says="pg2 has")
def sibling_is_ahead(lost: Lost, _tmp: Path) -> Iterator[Change]:
    with ExitStack() as stack:
        with lost.revived():
            stack.enter_context(following(lost.second, None))
            lost.lost.sql("SELECT pg_switch_wal()")
        yield {"candidate": lost.second.name}
        # What the other one lacks it gets from the primary: following() waits for the stream that there was.
        lost.lost.start()
    lost.cluster.wait_streaming({lost.first.name, lost.second.name})
    lost.lost.stop()


# -------------------------------------------------------------------------------------------------- synchronous commit


@case("synchronous_promise", beside=("synchronous_standby_names",), says="'pg2', and pg3 answered")
def the_synchronous_standby_is_silent(lost: Lost, _tmp: Path) -> Iterator[Change]:
    with down(lost.first):
        yield {"fence": {**PLUG, "synchronous_standby_names": "pg2"}}


@case("synchronous_promise", says="'ANY 1 (pg2, pg3, elsewhere)'")
def all_that_answer_may_be_behind_the_promise(_lost: Lost, _tmp: Path) -> Iterator[Change]:
    yield {"fence": {**PLUG, "synchronous_standby_names": "ANY 1 (pg2, pg3, elsewhere)"}}


@case("synchronous_standby_names", says="1 of the standbys it needs are missing")
def commits_would_wait_for_ever(_lost: Lost, _tmp: Path) -> Iterator[Change]:
    yield {"fence": {**PLUG, "synchronous_standby_names": "ANY 2 (pg2, pg3)"}}


# -------------------------------------------------------------------------------------------------------------- refusal


def refused(lost: Lost, check: str, *, beside: frozenset[str], status: str, says: str, **changes: Any) -> None:
    before = snapshot(lost.cluster)
    result = run_module("replica_promote", lost.arguments(**changes))
    assert result.get("failed"), result
    assert (result["state"], result["changed"]) == ("refused", False), result
    bad = {item["name"]: item for item in result["checks"] if item["status"] in ("failed", "unknown")}
    assert check in bad, result["msg"]
    assert set(bad) <= {check, *beside}
    assert bad[check]["status"] == status
    assert says in bad[check]["found"]
    for part in ("found", "expected", "remedy"):
        assert f"[{check}] {bad[check][part]}" in result["msg"]
        assert len(bad[check][part]) > 3
    assert snapshot(lost.cluster) == before


@pytest.mark.parametrize("bent", CASES, ids=[f"{each.check}-{each.name}" for each in CASES])
def test_it_is_refused_for_this_reason(lost: Lost, bent: Case, tmp_path: Path) -> None:
    with bent.arrange(lost, tmp_path) as changes:
        refused(lost, bent.check, beside=bent.beside, status=bent.status, says=bent.says, **changes)


def test_without_any_of_this_it_would_go_on(lost: Lost) -> None:
    """The refusals above have their reasons: the same cluster, well, is failed over. Check mode, so it stays."""
    result = run_module("replica_promote", lost.arguments(), check=True)
    assert result.get("state") == "would fail over", result
    assert {item["status"] for item in result["checks"]} == {"ok"}
    assert tuple(item["name"] for item in result["checks"]) == planner.CHECK_NAMES


def test_an_unfinished_switchover_comes_first(lost: Lost) -> None:
    """Killed after its intent was written, then the primary is lost. Named, it is given up. The last test: it fails
    over."""
    with lost.revived():
        switchover = switchover_arguments(lost.cluster, lost.first.name, lost.lost.name)
        assert start_module("replica_promote", switchover, failpoint="checkpoints:after").result() == {}
        [(operation,)] = lost.lost.sql("SELECT id FROM dbops.operation WHERE state = 'open'")
    says = f"an unfinished switchover {operation}"
    refused(lost, "no_open_operation", beside=frozenset(), status="failed", says=says)
    result = run_module("replica_promote", lost.arguments(abandon_operation=operation))
    assert result.get("state") == "failed over", result
    assert lost.cluster.primary().name == result["new_primary"]
    assert lost.cluster.primary().sql("SELECT state FROM dbops.operation WHERE id = %s", (operation,)) == [
        ("abandoned",)
    ]


def test_every_check_was_seen_to_refuse() -> None:
    alone = {"no_open_operation": "test_an_unfinished_switchover_comes_first"}
    assert set(alone.values()) <= set(globals())
    assert {each.check for each in CASES} | set(alone) == set(planner.CHECK_NAMES)
