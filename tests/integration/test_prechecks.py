# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every precheck fails once on real servers: the module refuses, says what to do, and has changed nothing.

A case is a generator: it brings the cluster into the state, yields the module's arguments that are to be different,
and puts it back. ``beside`` names the checks that such a state cannot help failing too.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2.extensions
import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import switchover_plan as planner
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.lease import TAKE, lease_key
from ansible_collections.stateful.dbops.plugins.module_utils._runners.members import ClusterSessions, members

from tests.integration.conftest import borrowed
from tests.integration.scene import (
    Scene,
    Standing,
    busy,
    configured,
    everywhere,
    following,
    in_transaction,
    pooled_database,
    pooler_file,
    read_only_database,
    slots,
    snapshot,
)
from tests.lab import binaries, faults, users
from tests.lab.cluster import Cluster
from tests.lab.operation import run_module, start_module
from tests.lab.server import Node, wait_for

Change = dict[str, Any]


@dataclass(frozen=True)
class Case:
    check: str
    name: str
    arrange: Callable[[Any], AbstractContextManager[Change]]
    on: tuple[str, ...]
    beside: frozenset[str]
    status: str
    says: str


CASES: list[Case] = []
# Checks whose failure needs more than a bent setting have tests of their own: check -> name of the test.
ALONE: dict[str, str] = {}


def case(
    check: str, *, on: tuple[str, ...] = ("18",), beside: tuple[str, ...] = (), status: str = "failed", says: str = ""
) -> Callable[[Callable[[Scene], Iterator[Change]]], None]:
    def register(arrange: Callable[[Scene], Iterator[Change]]) -> None:
        CASES.append(Case(check, arrange.__name__, contextmanager(arrange), on, frozenset(beside), status, says))

    return register


def proves(*checks: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(test: Callable[..., None]) -> Callable[..., None]:
        ALONE.update(dict.fromkeys(checks, test.__name__))
        return test

    return register


def refused(
    scene: Scene, check: str, *, beside: frozenset[str] = frozenset(), status: str = "failed", **changes: Any
) -> str:
    """Run it for real, and see that it refuses for this reason and no other; what the check found."""
    before = snapshot(scene.cluster)
    result = scene.promote(**changes)
    assert result.get("failed"), result.get("state")
    assert (result["state"], result["changed"]) == ("refused", False)
    bad = {item["name"]: item for item in result["checks"] if item["status"] in ("failed", "unknown")}
    assert check in bad
    assert set(bad) <= {check, *beside}
    assert bad[check]["status"] == status
    for part in ("found", "expected", "remedy"):
        assert f"[{check}] {bad[check][part]}" in result["msg"]
        assert len(bad[check][part]) > 3
    assert result["msg"].startswith("found: ")
    assert "; what to do: " in result["msg"]
    assert snapshot(scene.cluster) == before
    return str(bad[check]["found"])


# ------------------------------------------------------------------------------------------------------ members, logins

ALL = ("13", "15", "18")


@case("nodes_reachable", on=ALL, says="password authentication failed")
def wrong_password(scene: Scene) -> Iterator[Change]:
    yield {"nodes": scene.nodes(scene.candidate, passfile=None, login_password="not-the-password")}


@case("nodes_reachable", says="could not translate host name")
def unknown_host(scene: Scene) -> Iterator[Change]:
    yield {"nodes": scene.nodes(scene.candidate, login_host="no-such-host.invalid")}


@case("nodes_reachable", says="Connection refused")
def stopped_sibling(scene: Scene) -> Iterator[Change]:
    scene.sibling.stop()
    try:
        yield {}
    finally:
        scene.sibling.start()


@case("runs_on_primary", on=("13", "18"))
def module_on_another_host(scene: Scene) -> Iterator[Change]:
    there = scene.arguments(node=scene.sibling)
    yield {key: there[key] for key in ("node", "local", "state_dir")}


@case("privileges", on=("15", "18"), says="pg_promote")
def may_not_promote(scene: Scene) -> Iterator[Change]:
    yield from _without_grant(scene, f"EXECUTE ON FUNCTION pg_promote(boolean, integer) %s {users.OPERATOR}")


@case("privileges", on=("15", "18"), says="wal_retrieve_retry_interval")
def may_not_alter_system(scene: Scene) -> Iterator[Change]:
    yield from _without_grant(scene, f"ALTER SYSTEM ON PARAMETER wal_retrieve_retry_interval %s {users.OPERATOR}")


@case("privileges", on=("15", "18"), says="pg_checkpoint")
def may_not_checkpoint(scene: Scene) -> Iterator[Change]:
    yield from _without_grant(scene, f"pg_checkpoint %s {users.OPERATOR}")


@case("privileges", on=("15", "18"), says="CREATE ON DATABASE")
def may_not_create_the_schema(scene: Scene) -> Iterator[Change]:
    exists = "SELECT 1 FROM pg_namespace WHERE nspname = 'dbops'"
    known = scene.primary.sql(exists)
    if known:
        scene.primary.sql("ALTER SCHEMA dbops RENAME TO elsewhere")
    try:
        yield from _without_grant(scene, f"CREATE ON DATABASE postgres %s {users.OPERATOR}")
    finally:
        if known:
            scene.primary.sql("ALTER SCHEMA elsewhere RENAME TO dbops")


@case("privileges", on=("15", "18"), says="USAGE ON SCHEMA dbops")
def somebody_elses_schema(scene: Scene) -> Iterator[Change]:
    """What another login role's switchovers leave behind."""
    scene.primary.sql("CREATE SCHEMA IF NOT EXISTS dbops")
    scene.primary.sql("ALTER SCHEMA dbops OWNER TO CURRENT_USER")
    scene.settle()
    try:
        yield {}
    finally:
        scene.primary.sql(f"ALTER SCHEMA dbops OWNER TO {users.OPERATOR}")
        scene.settle()


@case("privileges", on=("15", "18"), says="pg_monitor")
def may_not_monitor(scene: Scene) -> Iterator[Change]:
    yield from _without_grant(scene, f"pg_monitor %s {users.OPERATOR}")


def _without_grant(scene: Scene, grant: str) -> Iterator[Change]:
    scene.primary.sql(f"REVOKE {grant % 'FROM'}")
    scene.settle()
    try:
        yield {}
    finally:
        scene.primary.sql(f"GRANT {grant % 'TO'}")
        scene.settle()


@case("privileges", on=("13",), says="SUPERUSER")
def no_superuser_before_15(scene: Scene) -> Iterator[Change]:
    scene.primary.sql(f"ALTER ROLE {users.OPERATOR} NOSUPERUSER; GRANT pg_monitor TO {users.OPERATOR}")
    scene.settle()
    try:
        yield {}
    finally:
        scene.primary.sql(f"REVOKE pg_monitor FROM {users.OPERATOR}; ALTER ROLE {users.OPERATOR} SUPERUSER")
        scene.settle()


@case("manager_in_charge", on=("13", "18"), says="Patroni")
def patroni_is_connected(scene: Scene) -> Iterator[Change]:
    connection = scene.sibling.connect(application_name="Patroni heartbeat")
    yield {}
    connection.close()


@case("replication_login", says="may be read by others")
def replication_passfile_is_public(scene: Scene) -> Iterator[Change]:
    text = scene.cluster.replication_passfile.read_text()
    yield from _other_passfile(scene, text, mode=0o644)


@case("replication_login", on=("13", "18"), says="password authentication failed")
def wrong_replication_password(scene: Scene) -> Iterator[Change]:
    yield from _other_passfile(scene, f"127.0.0.1:*:*:{users.REPLICATION_USER}:not-the-password\n")


@case("replication_login", says="No such file")
def no_replication_passfile(scene: Scene) -> Iterator[Change]:
    yield {"replication_passfile": str(scene.cluster.home / "nowhere.pass")}


def _other_passfile(scene: Scene, text: str, mode: int = 0o600) -> Iterator[Change]:
    path = users.write_file(scene.cluster.home / "other.pass", text, scene.cluster.owner, mode)
    yield {"replication_passfile": str(path)}
    path.unlink()


@case("sibling_replication_login", on=("13", "18"), says="no pg_hba.conf entry")
def sibling_may_not_log_in(scene: Scene) -> Iterator[Change]:
    """What the role sees on the sibling's host, where replication as that user is not admitted."""
    words = {key: scene.arguments()[key] for key in ("cluster", "candidate", "nodes")}
    words |= {"replication_user": users.APPLICATION, "data_dir": str(scene.sibling.data_dir)}
    words |= {"replication_passfile": str(scene.cluster.lab_passfile)}
    before = scene.candidate.hba_file.read_text()
    admitted = before.replace(" replication all ", f" replication {users.REPLICATION_USER},{users.OPERATOR} ")
    users.write_file(scene.candidate.hba_file, admitted, scene.candidate.owner, 0o640)
    try:
        scene.candidate.reload()
        seen = run_module("pg_cluster_info", words)["probe"]
    finally:
        users.write_file(scene.candidate.hba_file, before, scene.candidate.owner, 0o640)
        scene.candidate.reload()
    probes = [probe for probe in scene.arguments()["probes"] if probe["member"] != scene.sibling.name]
    yield {"probes": [*probes, {"member": scene.sibling.name, **seen}]}


@case("sibling_replication_login", status="unknown", says="not tried")
def sibling_was_not_asked(scene: Scene) -> Iterator[Change]:
    yield {"probes": [probe for probe in scene.arguments()["probes"] if probe["member"] == scene.candidate.name]}


# ------------------------------------------------------------------------------------------------------- the local host


@case("disk_version", on=ALL)
def upgraded_on_disk(scene: Scene) -> Iterator[Change]:
    other = "15" if scene.cluster.major != 15 else "13"
    yield {"local": {**scene.arguments()["local"], "bin_dir": str(binaries.binaries(other))}}


@case("candidate_settings", says="default_transaction_read_only = on")
def read_only_candidate(scene: Scene) -> Iterator[Change]:
    with configured(scene.candidate, default_transaction_read_only="on"):
        wait_for(
            lambda: scene.candidate.sql("SHOW default_transaction_read_only") == [("on",)],
            seconds=20,
            what="the candidate to be read-only",
        )
        yield {}


@case("local_data", on=("13", "18"))
def data_directory_of_another_member(scene: Scene) -> Iterator[Change]:
    yield {"local": {**scene.arguments()["local"], "data_dir": str(scene.sibling.data_dir)}}


@case("local_data", on=("13", "18"), says="not served by a process in data_dir")
def host_of_a_standby_with_the_same_paths(scene: Scene) -> Iterator[Change]:
    """Two hosts whose data directories have one path, and the primary's entry names the other host: here the path is a
    link that leads elsewhere once the primary runs."""
    place = scene.primary.directory / "place"
    place.symlink_to(scene.primary.data_dir)
    standbys = [scene.candidate.name, scene.sibling.name]
    try:
        with configured(scene.primary, restart=True, data_directory=str(place)):
            scene.cluster.wait_streaming(standbys)
            place.unlink()
            place.symlink_to(scene.candidate.data_dir)
            local = {**scene.arguments()["local"], "service": {**scene.candidate.service, "name": None}}
            yield {"local": {**local, "data_dir": str(place)}}
    finally:
        place.unlink()
    scene.cluster.wait_streaming(standbys)


@case("service_control", says="is not on this host")
def no_stop_command(scene: Scene) -> Iterator[Change]:
    local = scene.arguments()["local"]
    yield {"local": {**local, "service": {**local["service"], "stop": ["/usr/sbin/stop-postgres", "main"]}}}


@case("disk_space", on=("13", "18"))
def not_enough_space(scene: Scene) -> Iterator[Change]:
    yield {"min_free_bytes": 1 << 50}


@case("disk_space", status="unknown", beside=("sibling_replication_login",))
def candidates_disk_was_not_seen(scene: Scene) -> Iterator[Change]:
    yield {"probes": []}


# ---------------------------------------------------------------------------------------------------------- replication


@case("candidate_streams", on=("13", "18"), says="no walreceiver")
def candidate_is_cut_off(scene: Scene) -> Iterator[Change]:
    with following(scene.candidate, None):
        yield {}


@case("candidate_streams", says="streaming from")
def candidate_cascades(scene: Scene) -> Iterator[Change]:
    with following(scene.candidate, scene.sibling):
        yield {}


@case("siblings_follow", on=("13", "18"), says="no walreceiver")
def sibling_is_cut_off(scene: Scene) -> Iterator[Change]:
    with following(scene.sibling, None):
        yield {}


@case("replay_running", on=ALL)
def replay_of_the_candidate_is_paused(scene: Scene) -> Iterator[Change]:
    yield from _paused_replay(scene.candidate)


@case("replay_running", on=("13", "18"))
def replay_of_the_sibling_is_paused(scene: Scene) -> Iterator[Change]:
    yield from _paused_replay(scene.sibling)


def _paused_replay(node: Node) -> Iterator[Change]:
    node.sql("SELECT pg_wal_replay_pause()")
    try:
        yield {}
    finally:
        node.sql("SELECT pg_wal_replay_resume()")


@case("apply_delay", on=("13", "18"), says="3600000 ms")
def candidate_applies_late(scene: Scene) -> Iterator[Change]:
    with configured(scene.candidate, recovery_min_apply_delay="1h"):
        yield {}


@case("recovery_target", on=("13", "18"), says="recovery_target_time")
def sibling_has_a_recovery_target(scene: Scene) -> Iterator[Change]:
    with configured(scene.sibling, restart=True, recovery_target_time="2099-01-01 00:00:00+00"):
        yield {}


@case("replication_lag", on=("13", "18"))
def candidate_replays_nothing(scene: Scene) -> Iterator[Change]:
    with faults.frozen(scene.candidate.process("startup")):
        _write(scene, 200_000)
        yield {"max_lag_bytes": 100_000}


@case("other_consumers", on=("13", "18"))
def sibling_receives_nothing(scene: Scene) -> Iterator[Change]:
    with faults.frozen(scene.sibling.process("walreceiver")):
        _write(scene, 200_000)
        yield {"max_lag_bytes": 100_000}


def _write(scene: Scene, size: int) -> None:
    """WAL that the candidate, if it is well, has received on return."""
    written = scene.primary.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', %s))::text", (size,))[0][0]
    wait_for(
        lambda: scene.candidate.sql("SELECT pg_last_wal_receive_lsn() >= %s", (written,)) == [(True,)],
        seconds=20,
        what=f"{scene.candidate.name} to receive {written}",
    )


@case("wal_kept", on=("13", "18"), says="without a slot")
def nothing_keeps_wal_for_the_candidate(scene: Scene) -> Iterator[Change]:
    with following(scene.candidate, scene.primary), configured(scene.primary, wal_keep_size="31MB"):
        yield {}


@case("wal_kept", says="max_slot_wal_keep_size = 16 MB")
def the_slot_keeps_too_little(scene: Scene) -> Iterator[Change]:
    with configured(scene.primary, wal_keep_size="0", max_slot_wal_keep_size="16MB"):
        yield {}


@case("free_wal_senders", on=("13", "18"), says="1 of 10")
def no_free_wal_sender(scene: Scene) -> Iterator[Change]:
    with ExitStack() as stack:
        for _time in range(9):
            connection = scene.candidate.connect(users.REPLICATION_USER, replication="true")
            stack.callback(connection.close)
        yield {}
    wait_for(lambda: not scene.candidate.process("walsender"), seconds=10, what="the WAL senders to end")


@case("free_slots", on=("13", "18"), says="1 of 10")
def no_free_slot(scene: Scene) -> Iterator[Change]:
    taken = int(scene.candidate.sql("SELECT count(*) FROM pg_replication_slots")[0][0])
    with slots(scene.candidate, *(f"other{number}" for number in range(9 - taken))):
        yield {}


# ------------------------------------------------------------------------------------------------------------- settings


@case("archive_settings", on=("13", "18"), says="no command")
def candidate_does_not_archive(scene: Scene) -> Iterator[Change]:
    with configured(scene.candidate, archive_command=""):
        yield {}


@case("archive_backlog", on=("13", "18"), says="failed last")
def archiving_fails(scene: Scene) -> Iterator[Change]:
    failed = "SELECT 1 FROM pg_stat_archiver WHERE last_failed_time > coalesce(last_archived_time, '-infinity')"
    with configured(scene.primary, archive_command="false"):
        scene.primary.sql("SELECT pg_switch_wal()")
        wait_for(lambda: scene.primary.sql(failed), seconds=20, what="archiving to fail")
        yield {}
    scene.primary.sql("SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()")
    wait_for(lambda: not scene.primary.sql(failed), seconds=20, what="archiving to succeed")


@case("synchronous_standby_names", on=("13", "18"))
def nobody_could_confirm(scene: Scene) -> Iterator[Change]:
    yield {"synchronous_standby_names": "FIRST 1 (elsewhere)"}


@case("synchronous_standby_names", says="closing parenthesis")
def not_a_list(scene: Scene) -> Iterator[Change]:
    yield {"synchronous_standby_names": "FIRST 1 (pg1"}


@case("synchronous_standby_names", says="would be emptied")
def list_would_be_emptied(scene: Scene) -> Iterator[Change]:
    with configured(scene.primary, synchronous_standby_names=scene.candidate.name):
        yield {"synchronous_standby_names": ""}


@case("synchronous_standby_names", says="of its own")
def candidate_has_a_list_of_its_own(scene: Scene) -> Iterator[Change]:
    with configured(scene.candidate, synchronous_standby_names="FIRST 1 (elsewhere)"):
        yield {}


# ------------------------------------------------------------------------------------------------ what would be cut off


@case("no_base_backup", on=ALL)
def base_backup_runs(scene: Scene) -> Iterator[Change]:
    # Low rate: a backup that has nothing but sleeping to do. To standard output, where nobody keeps it.
    program = [str(binaries.client_binaries() / "pg_basebackup"), "--pgdata=-", "--format=tar", "--wal-method=none"]
    login = psycopg2.extensions.make_dsn(
        host=scene.primary.host,
        port=scene.primary.port,
        user=users.REPLICATION_USER,
        passfile=str(scene.cluster.lab_passfile),
    )
    process = subprocess.Popen(
        [*program, "--max-rate=32k", "--checkpoint=fast", "--no-manifest", f"--dbname={login}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    progress = "SELECT 1 FROM pg_stat_progress_basebackup"
    try:
        wait_for(lambda: scene.primary.sql(progress), seconds=20, what="the backup to run")
        yield {}
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not scene.primary.sql(progress), seconds=20, what="the backup to end")


@case("long_transactions", on=("13", "18"))
def statement_runs_for_long(scene: Scene) -> Iterator[Change]:
    old = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND xact_start < now() - interval '0.3s'"
    with busy(scene.primary, "SELECT pg_sleep(600)", seen=old):
        yield {"max_transaction_seconds": 0.3}


@case("idle_in_transaction", on=("13", "18"))
def session_idles_in_transaction(scene: Scene) -> Iterator[Change]:
    with in_transaction(scene.primary):
        idle = "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in%' AND state_change < now() - interval '0.3s'"
        everywhere([scene.primary], idle)
        yield {"max_idle_in_transaction_seconds": 0.3}


@case("prepared_transactions", on=("13", "18"))
def transaction_is_prepared(scene: Scene) -> Iterator[Change]:
    connection = scene.primary.connect()
    with connection.cursor() as cursor:
        cursor.execute("BEGIN; CREATE TABLE of_two_phases (); PREPARE TRANSACTION 'test'")
    try:
        yield {}
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ROLLBACK PREPARED 'test'")
        connection.close()


@case("maintenance", on=("13", "18"), says="CREATE INDEX")
def index_is_built(scene: Scene) -> Iterator[Change]:
    progress = "SELECT 1 FROM pg_stat_progress_create_index"
    scene.primary.sql("CREATE TABLE indexed AS SELECT 1 AS a", dbname=users.DATABASE)
    try:
        # A concurrent build waits for every transaction that holds a lock on the table.
        with (
            in_transaction(scene.primary, "INSERT INTO indexed VALUES (2)"),
            busy(scene.primary, "CREATE INDEX CONCURRENTLY ON indexed (a)", seen=progress),
        ):
            yield {}
    finally:
        scene.primary.sql("DROP TABLE indexed", dbname=users.DATABASE)


@case("logical_slots", on=ALL, says="debezium")
def logical_slot_would_be_lost(scene: Scene) -> Iterator[Change]:
    with slots(scene.primary, "debezium", logical=True):
        yield {}


@case("logical_slots", says="failover_but_not_synced")
def failover_slot_is_not_synchronised(scene: Scene) -> Iterator[Change]:
    scene.primary.sql(
        "SELECT pg_create_logical_replication_slot('failover_but_not_synced', 'pgoutput', failover => true)"
    )
    try:
        yield {}
    finally:
        scene.primary.sql("SELECT pg_drop_replication_slot('failover_but_not_synced')")


@case("synchronized_standby_slots", says="wait for the slots pg9")
def failover_slots_would_wait_for_a_stranger(scene: Scene) -> Iterator[Change]:
    with configured(scene.candidate, synchronized_standby_slots="pg9"):
        yield {}


# -------------------------------------------------------------------------------------------------------------- poolers


@case("poolers_reachable", on=("13", "18"), beside=("pooler_targets",), says="Connection refused")
def pooler_is_down(scene: Scene) -> Iterator[Change]:
    scene.pooler.stop()
    try:
        yield {}
    finally:
        scene.pooler.start()


@case("poolers_reachable", says="admin_users")
def login_may_look_and_not_pause(scene: Scene) -> Iterator[Change]:
    with pooler_file(scene, stats_users=users.OPERATOR):
        yield {"poolers": scene.poolers(login_user=users.OPERATOR)}


@case("pooler_processes", says="2 processes")
def processes_share_a_port(scene: Scene) -> Iterator[Change]:
    yield {"poolers": scene.poolers(listeners=2)}


@case("pooler_processes", status="unknown", says="so_reuseport")
def nobody_counted_the_processes(scene: Scene) -> Iterator[Change]:
    with pooler_file(scene, restart=True, so_reuseport="1"):
        yield {"poolers": scene.poolers(listeners=None)}


@case("pooler_mode", says="pooler1/accounts")
def session_pooling(scene: Scene) -> Iterator[Change]:
    with pooler_file(scene, pool_mode="session"):
        yield {}


@case("pooler_targets", says="points to")
def pooler_points_to_a_standby(scene: Scene) -> Iterator[Change]:
    scene.point_pooler(scene.sibling)
    scene.pooler.console("RELOAD")
    try:
        yield {}
    finally:
        scene.point_pooler(scene.primary)
        scene.pooler.console("RELOAD")


@case("pooler_targets", says="has no database acounts")
def named_database_is_not_there(scene: Scene) -> Iterator[Change]:
    yield {"poolers": scene.poolers(databases=["accounts", "acounts"])}


@case("pooler_targets", says="pooler1/accounts_ro points to")
def named_database_points_to_a_standby(scene: Scene) -> Iterator[Change]:
    with read_only_database(scene):
        yield {"poolers": scene.poolers(databases=["accounts", "accounts_ro"])}


@case("pooler_targets", says="pooler1/elsewhere points to 192.0.2.1")
def named_database_points_to_no_member(scene: Scene) -> Iterator[Change]:
    with pooled_database(scene, "elsewhere = host=192.0.2.1"):
        yield {"poolers": scene.poolers(databases=["accounts", "elsewhere"])}


@case("pooler_targets", says="already paused")
def somebody_paused_it(scene: Scene) -> Iterator[Change]:
    scene.pooler.console("PAUSE accounts")
    try:
        yield {}
    finally:
        scene.pooler.console("RESUME accounts")


@case("pooler_staged", says="not staged")
def pooler_is_not_staged(scene: Scene) -> Iterator[Change]:
    yield {"poolers": scene.poolers(staged_for="")}


@case("pooler_staged", says="staged for")
def pooler_is_staged_for_another(scene: Scene) -> Iterator[Change]:
    yield {"poolers": scene.poolers(staged_for=scene.sibling.name)}


@case("pooler_wait")
def pooler_throws_clients_out_early(scene: Scene) -> Iterator[Change]:
    with pooler_file(scene, query_wait_timeout="7"):
        yield {}


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize(
    ("standing", "case"),
    [pytest.param(version, case, id=f"{case.name}-{version}") for case in CASES for version in case.on],
    indirect=["standing"],
    scope="session",
)
def test_refused(scene: Scene, case: Case) -> None:
    with case.arrange(scene) as changes:
        found = refused(scene, case.check, beside=case.beside, status=case.status, **changes)
        assert case.says in found
        assert "not-the-password" not in found


@pytest.fixture(scope="module")
def scratch_standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    standing = Standing(tmp_path_factory.mktemp("scratch") / "lab", "18", members=("old", "new"))
    yield standing
    standing.destroy()


@pytest.fixture
def scratch(scratch_standing: Standing) -> Iterator[Scene]:
    """A second cluster: another one's member, and what is restarted until it breaks."""
    yield from borrowed(scratch_standing)


@pytest.fixture
def spoiled(scratch_standing: Standing) -> Iterator[Scene]:
    """The same, thrown away afterwards."""
    yield Scene(scratch_standing.get())
    scratch_standing.destroy()


on_18 = pytest.mark.parametrize("standing", ["18"], indirect=True, scope="session")


@on_18
def test_a_warning_refuses_nothing(scene: Scene) -> None:
    with configured(scene.primary, full_page_writes="off"):
        result = scene.promote(check=True)
    assert result["state"] == "would switch over"
    assert [item["name"] for item in result["checks"] if item["status"] != "ok"] == ["rewind_ready"]
    assert any("[rewind_ready]" in str(warning) for warning in result["warnings"])


ALONE["rewind_ready"] = test_a_warning_refuses_nothing.__name__


@proves("unlogged_tables")
def test_unlogged_tables_are_named(scene: Scene) -> None:
    """In a database that the login never sees, too; PostgreSQL 15 has unlogged sequences as well."""
    with closing(scene.primary.connect(dbname=users.DATABASE)) as session:
        session.autocommit = True
        session.cursor().execute("CREATE UNLOGGED TABLE passing (id int PRIMARY KEY)")
        try:
            result = scene.promote(check=True)
        finally:
            session.cursor().execute("DROP TABLE passing")
    assert result["state"] == "would switch over", result.get("msg")
    [warned] = [item for item in result["checks"] if item["status"] != "ok"]
    assert (warned["name"], warned["status"]) == ("unlogged_tables", "warning")
    assert f"unlogged tables in {users.DATABASE}: they will be empty on {scene.candidate.name}" in warned["found"]
    assert any("[unlogged_tables]" in str(warning) for warning in result["warnings"])


@on_18
def test_a_slot_may_be_lost_by_name_only(scene: Scene) -> None:
    with slots(scene.primary, "debezium", "other", logical=True):
        found = refused(scene, "logical_slots", accept_lost_slots=["debezium"])
        assert "other" in found
        assert "debezium" not in found
        result = scene.promote(check=True, accept_lost_slots=["debezium", "other"])
    assert result["state"] == "would switch over", result["msg"]


@on_18
def test_a_receiver_that_reports_no_flush_is_no_slow_consumer(scene: Scene, tmp_path: Path) -> None:
    """pg_receivewal without a slot says what it wrote, and never what it flushed."""
    login = f"host={scene.primary.host} port={scene.primary.port} user={users.REPLICATION_USER}"
    process = subprocess.Popen(
        [binaries.client_binaries() / "pg_receivewal", f"--directory={tmp_path}", f"--dbname={login}", "--no-loop"],
        env={"PGPASSFILE": str(scene.cluster.lab_passfile)},
    )
    streams = "SELECT 1 FROM pg_stat_replication WHERE application_name = 'pg_receivewal' AND write_lsn IS NOT NULL"
    try:
        wait_for(lambda: scene.primary.sql(streams), seconds=30, what="pg_receivewal to stream")
        assert scene.promote(check=True)["state"] == "would switch over"
    finally:
        process.terminate()
        process.wait()


@on_18
@proves("candidate_is_standby")
def test_a_primary_is_no_candidate(scene: Scene) -> None:
    """Of a cluster with one primary, the module finds that candidate to be the primary already, and is done; so this
    check is shown the servers as they are and asked by itself."""
    before = snapshot(scene.cluster)
    result = scene.promote(candidate=scene.primary.name)
    assert (result["state"], result["changed"]) == ("unchanged", False)
    assert snapshot(scene.cluster) == before

    sessions = ClusterSessions(scene.arguments()["nodes"], clock=Clock(), application_name="test", timeout=10)
    try:
        observed = planner.Observed(sessions.facts(), planner.LocalFacts())
    finally:
        sessions.close()
        psycopg2.extensions.set_wait_callback(None)
    known = members(scene.arguments()["nodes"])
    request = planner.Request("accounts", scene.primary.name, scene.primary.name, known)
    bad = [check for check in planner.base_checks(request, observed) if check.status != "ok"]
    assert [check.name for check in bad] == ["candidate_is_standby"]
    assert bad[0].remedy


@on_18
def test_a_candidate_must_be_a_member(scene: Scene) -> None:
    before = snapshot(scene.cluster)
    result = scene.promote(candidate="pg9")
    assert result["failed"]
    assert "found: candidate pg9 is not among the members pg1, pg2, pg3" in result["msg"]
    assert "what to do: correct candidate" in result["msg"]
    assert snapshot(scene.cluster) == before


@on_18
@pytest.mark.parametrize("limit", [{"max_pause_ms": 0}, {"max_pause_ms": -5}, {"follow_timeout": 0}])
def test_a_limit_that_nobody_means(scene: Scene, limit: dict[str, Any]) -> None:
    before = snapshot(scene.cluster)
    result = scene.promote(**limit)
    [(name, value)] = limit.items()
    assert (result["failed"], result["state"], result["changed"]) == (True, "refused", False)
    assert f"found: {name} = {value}; expected: 1 or more" in result["msg"]
    assert snapshot(scene.cluster) == before


@on_18
@proves("system_identifier")
def test_a_candidate_of_another_cluster(scene: Scene, scratch: Scene) -> None:
    foreign = scratch.candidate
    login = {"login_port": foreign.port, "passfile": str(scratch.cluster.passfile)}
    beside = {"candidate_streams", "replication_login", "sibling_replication_login", "timeline", "replication_lag"}
    found = refused(
        scene,
        "system_identifier",
        beside=frozenset(beside),
        nodes=scene.nodes(scene.candidate, port=foreign.port, **login),
    )
    assert scene.candidate.name in found


@on_18
@proves("one_primary")
def test_two_primaries(scene: Scene, spoiled: Scene) -> None:
    """Both of one cluster, which is what a split brain looks like; then the other one's timeline."""
    loser = spoiled.candidate
    loser.sql("SELECT pg_promote()")
    found = refused(spoiled, "one_primary")
    assert found == "primary: new, old"

    # The loser as a standby again: its history has left that of the primary.
    (loser.data_dir / "standby.signal").touch()
    loser.sql("ALTER SYSTEM RESET primary_conninfo")
    users.give(loser.data_dir / "standby.signal", loser.owner)
    loser.stop()
    loser.start()
    found = refused(spoiled, "timeline", beside=frozenset({"candidate_streams", "replication_lag"}))
    assert found == "new: 2, old: 1"

    # And with nobody writable there is nothing to switch.
    (spoiled.primary.data_dir / "standby.signal").touch()
    users.give(spoiled.primary.data_dir / "standby.signal", loser.owner)
    spoiled.primary.stop()
    spoiled.primary.start()
    before = snapshot(spoiled.cluster)
    result = spoiled.promote()
    assert result["failed"]
    assert "[one_primary] no primary: every member is in recovery" in result["msg"]
    assert snapshot(spoiled.cluster) == before


ALONE["timeline"] = test_two_primaries.__name__


@on_18
@proves("hot_standby", "candidate_settings")
def test_settings_that_need_a_restart(scene: Scene, spoiled: Scene) -> None:
    """A standby with hot_standby = off cannot be asked; a primary with it can, and would be that standby afterwards.
    A standby with lower limits than its primary pauses its replay, which is another check's business."""
    spoiled.primary.configure(hot_standby="off", max_connections="150")
    spoiled.primary.stop()
    spoiled.primary.start()
    wait_for(
        lambda: spoiled.candidate.sql("SELECT pg_is_wal_replay_paused()") == [(True,)],
        seconds=20,
        what="the candidate to see the higher limit",
    )
    beside = {"hot_standby", "candidate_settings", "replay_running", "candidate_streams", "replication_lag"}
    assert refused(spoiled, "hot_standby", beside=frozenset(beside)) == "hot_standby is off on old"
    found = refused(spoiled, "candidate_settings", beside=frozenset(beside))
    assert found == "max_connections: 100 < 150"


class OldCluster(Cluster):
    """The lab begins with 13; this is what it takes to start what came before."""

    def _settings(self, node: Node) -> dict[str, str]:
        return {key: value for key, value in super()._settings(node).items() if key != "wal_keep_size"}


@on_18
@proves("versions")
def test_a_server_that_is_too_old(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binaries.NPM_VERSIONS, "12", "12.22.0-beta.15")
    with OldCluster.create(tmp_path / "lab", "12", members=("old",)) as old:
        node = old.node("old")
        users.write_file(node.data_dir / "standby.signal", "", old.owner)
        node.stop()
        node.start()
        login = {"login_port": node.port, "passfile": str(old.passfile)}
        found = refused(scene, "versions", nodes=scene.nodes(scene.candidate, **login))
    assert f"{scene.candidate.name}: 12" in found


@on_18
@proves("no_unfinished_operation")
def test_an_unfinished_switchover_to_another_candidate_is_not_passed_over(scene: Scene) -> None:
    """A run was killed after the promotion. Whoever wants yet another primary now finishes that one first: its
    temporary settings and its marker would stay for ever."""
    scene.point_pooler(scene.candidate)
    start_module("replica_promote", scene.arguments(), failpoint="tidy:before").result()
    assert scene.cluster.primary() is scene.candidate
    try:
        onward = scene.arguments(candidate=scene.sibling, node=scene.candidate)
        before = snapshot(scene.cluster)
        result = run_module("replica_promote", onward)
        assert result["state"] == "refused", result["msg"]
        assert f"[no_unfinished_operation] an unfinished switchover to {scene.candidate.name}" in result["msg"]
        assert f"run it again with candidate={scene.candidate.name} first" in result["msg"]
        assert snapshot(scene.cluster) == before
    finally:
        finish = run_module("replica_promote", scene.arguments())
    assert finish["state"] == "switched over", finish["msg"]


@pytest.mark.parametrize("database", ["postgres", users.DATABASE])
def test_another_run_that_logged_in_to_whatever_database(scene: Scene, database: str) -> None:
    """An advisory lock keeps out only those who ask for it in the same database of the server."""
    before = snapshot(scene.cluster)
    with closing(scene.sibling.connect(dbname=database)) as session:
        session.cursor().execute(TAKE, lease_key(scene.cluster.name))
        result = scene.promote()
    assert (result["failed"], result["state"], result["changed"]) == (True, "refused", False)
    assert (
        f"another run holds the lease of cluster {scene.cluster.name} on {scene.sibling.name}: pid" in result["found"]
    )
    assert snapshot(scene.cluster) == before


def test_another_run_whose_inventory_calls_the_cluster_otherwise(scene: Scene) -> None:
    before = snapshot(scene.cluster)
    sessions = ClusterSessions(scene.arguments()["nodes"], clock=Clock(), application_name="test", timeout=10)
    try:
        sessions.take_lease("another name", sessions.facts())
        result = scene.promote()
    finally:
        sessions.close()
        psycopg2.extensions.set_wait_callback(None)
    assert (result["failed"], result["state"], result["changed"]) == (True, "refused", False)
    assert f"another run holds the lease of cluster {scene.cluster.name} on" in result["found"]
    assert snapshot(scene.cluster) == before


def test_every_check_was_seen_to_fail() -> None:
    assert {case.check for case in CASES} | set(ALONE) == set(planner.CHECK_NAMES)
    assert len(set(planner.CHECK_NAMES)) == len(planner.CHECK_NAMES)
    assert all(name in globals() for name in ALONE.values())


# The list of bad input, and the case or test that feeds it to the module; the playbook's are in test_playbooks.
BAD_INPUT = {
    "unknown host": "unknown_host",
    "wrong password": "wrong_password",
    "candidate not a standby": "test_a_primary_is_no_candidate",
    "candidate of another cluster": "test_a_candidate_of_another_cluster",
    "lag over the limit": "candidate_replays_nothing",
    "timeline mismatch": "test_two_primaries",
    "no free WAL sender": "no_free_wal_sender",
    "paused replay": "replay_of_the_candidate_is_paused",
    "PostgreSQL < 13": "test_a_server_that_is_too_old",
    "PgBouncer unreachable": "pooler_is_down",
    "two primaries found": "test_two_primaries",
}


def test_all_bad_input_is_fed() -> None:
    assert set(BAD_INPUT.values()) <= {case.name for case in CASES} | set(globals())
