# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab is what the other tests believe in, so it is tested on a real cluster itself."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psycopg2
import pytest

from tests.lab import faults, inventory, users
from tests.lab.cluster import Cluster
from tests.lab.server import LabError, Node, alive, free_port, wait_for


def command_lines() -> str:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # ended meanwhile
    return "\n".join(found)


@pytest.fixture
def standby(cluster: Cluster) -> Node:
    return cluster.node("pg2")


def test_one_primary_and_streaming_standbys(cluster: Cluster) -> None:
    assert cluster.primary() is cluster.node("pg1")
    rows = cluster.primary().sql(
        "SELECT r.application_name, r.state, s.slot_name FROM pg_stat_replication r"
        " JOIN pg_replication_slots s ON s.active_pid = r.pid"
    )
    assert rows == [("pg2", "streaming", "pg2")]


def test_another_process_finds_the_lab(cluster: Cluster) -> None:
    assert Cluster.load(cluster.directory) == cluster


def test_durable_and_checksummed(cluster: Cluster) -> None:
    names = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "wal_log_hints")
    assert [cluster.primary().sql(f"SHOW {name}") for name in names] == [[("on",)]] * len(names)


def test_nobody_is_let_in_without_a_password(cluster: Cluster) -> None:
    for user in users.DATABASE_USERS:
        with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
            cluster.node("pg1").connect(user, passfile=os.devnull)


def test_tls_is_used_and_plain_tcp_refused(tmp_path: Path) -> None:
    with Cluster.create(tmp_path, version="18-npm", members=("pg1", "pg2"), tls=True) as cluster:
        primary = cluster.primary()
        primary.connect(users.OPERATOR, sslmode="verify-full", sslrootcert=str(cluster.certificate)).close()
        with pytest.raises(psycopg2.OperationalError, match="no encryption"):
            primary.connect(users.OPERATOR, sslmode="disable")
        streams = "SELECT application_name, ssl FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)"
        assert primary.sql(streams) == [("pg2", True)]
    assert list(tmp_path.iterdir()) == []


def test_the_operator_can_do_its_work_and_no_more(cluster: Cluster) -> None:
    primary = cluster.primary()

    def operator(statement: str) -> list[tuple[object, ...]]:
        return primary.sql(statement, user=users.OPERATOR)

    assert operator("SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]
    operator("CHECKPOINT")
    operator("ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'")
    operator("ALTER SYSTEM RESET wal_retrieve_retry_interval")
    assert operator("SELECT pg_reload_conf()") == [(True,)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        operator("ALTER SYSTEM SET fsync = off")
    with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState, match="recovery is not in progress"):
        operator("SELECT pg_promote(false)")


def test_no_secret_on_a_command_line_in_the_inventory_or_in_a_log(cluster: Cluster) -> None:
    passwords = users.load_secrets(cluster.secrets_file).values()
    logs = "".join(node.log_text() for node in cluster.nodes)
    texts = (command_lines(), inventory.write(cluster).read_text(), logs, str(cluster.module_arguments("pg2", "pg1")))
    assert not [password for password in passwords if any(password in text for text in texts)]


def test_secrets_are_for_their_owner_alone(cluster: Cluster) -> None:
    files = (cluster.secrets_file, cluster.passfile, cluster.lab_passfile, cluster.replication_passfile)
    assert [path.stat().st_mode & 0o077 for path in files] == [0] * len(files)
    assert cluster.replication_passfile.owner() == (cluster.owner or cluster.passfile.owner())


def test_the_service_is_idempotent(cluster: Cluster, standby: Node) -> None:
    def call(verb: str) -> int:
        return subprocess.run([*standby.service["start"][:-1], verb], check=False, capture_output=True).returncode

    assert [call("start"), call("status"), call("stop"), call("status"), call("stop")] == [0, 0, 0, 3, 0]
    assert not standby.running()
    assert call("reload") == 1
    assert call("start") == 0
    cluster.wait_streaming(["pg2"])


def test_the_service_is_for_root_and_the_owner(standby: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can try it as somebody else")
    result = subprocess.run(
        standby.service["stop"], check=False, capture_output=True, text=True, user="nobody", cwd="/"
    )
    assert (result.returncode, standby.running()) == (4, True)
    assert "as root or as the owner" in result.stderr
    assert subprocess.run(standby.service["start"], check=False, user=standby.owner, cwd="/").returncode == 0


def test_a_start_that_fails_says_why(cluster: Cluster, standby: Node) -> None:
    standby.stop()
    standby.configure(shared_buffers="nonsense")
    try:
        with pytest.raises(LabError, match="invalid value for parameter"):
            standby.start()
    finally:
        standby.configure(shared_buffers="64MB")
    standby.start()
    cluster.wait_streaming(["pg2"])


def test_a_killed_server_can_start_again(cluster: Cluster, standby: Node) -> None:
    before = standby.pid()
    standby.kill()
    assert not standby.running()
    standby.start()
    assert standby.pid() != before
    cluster.wait_streaming(["pg2"])


def test_a_rude_manager_restarts_what_was_stopped_until_it_is_healed(standby: Node) -> None:
    before = standby.pid()
    with faults.restart_watcher(standby):
        standby.stop()
        wait_for(lambda: standby.pid() not in (None, before), seconds=5, what="the restart")
        standby.start()
    standby.stop()
    assert not standby.running()
    standby.start()


def test_a_frozen_walreceiver_keeps_its_connection_and_receives_nothing(cluster: Cluster, standby: Node) -> None:
    cluster.wait_streaming(["pg2"])
    primary = cluster.primary()
    behind = "SELECT sent_lsn > flush_lsn FROM pg_stat_replication"
    with faults.frozen(standby.process("walreceiver")):
        primary.sql("SELECT pg_logical_emit_message(false, 'lab', 'x')")
        primary.sql("SELECT pg_switch_wal()")
        wait_for(lambda: primary.sql(behind) == [(True,)], seconds=5, what="the standby to fall behind")
    wait_for(lambda: primary.sql(behind) == [(False,)], seconds=5, what="the standby to catch up")


def test_cut_replication_keeps_standbys_away_until_it_is_healed(cluster: Cluster, standby: Node) -> None:
    with faults.cut_replication(cluster.primary()):
        assert not cluster.primary().process("walsender")
        wait_for(lambda: "pg_hba.conf rejects" in standby.log_text(), seconds=10, what="a refused standby")
    cluster.wait_streaming(["pg2"])


def test_a_slow_archive_delays_the_shutdown(cluster: Cluster) -> None:
    primary = cluster.primary()
    with faults.slow_archive(primary, 1):
        assert primary.sql("SHOW archive_command")[0][0].startswith("sleep 1;")
    assert not primary.sql("SHOW archive_command")[0][0].startswith("sleep")


def test_a_full_disk_is_full_and_healed(cluster: Cluster, standby: Node) -> None:
    try:
        faults.small_disk(standby, 32)
    except faults.NotPossible as error:
        pytest.skip(str(error))
    wal = standby.data_dir / "pg_wal"
    with faults.full_disk(standby):
        assert os.statvfs(wal).f_bavail == 0
    assert os.statvfs(wal).f_bavail > 0
    cluster.wait_streaming(["pg2"])


def test_destroy_ends_orphans_of_a_killed_postmaster(tmp_path: Path) -> None:
    with Cluster.create(tmp_path, members=("pg1",)) as orphaned:
        node = orphaned.node("pg1")
        archiving = f"sleep 9{node.port}"  # nobody else's
        node.configure(archive_command=archiving)
        node.sql("SELECT pg_switch_wal()")
        wait_for(lambda: archiving in command_lines(), seconds=5, what="the archive command")
        pid, writer = node.pid(), node.process("checkpointer")
        assert pid
        faults.freeze(writer)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not node.running(), seconds=5, what="the postmaster to end")
        assert alive(writer[0])
    assert not alive(writer[0])
    assert archiving not in command_lines()


def test_ports_are_no_ephemeral_ones() -> None:
    assert free_port() < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def test_a_second_lab_runs_beside_and_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    with Cluster.create(tmp_path, members=("pg1",), name="other") as other:
        system = "SELECT system_identifier FROM pg_control_system()"
        assert other.primary().sql(system) != cluster.primary().sql(system)
        data = inventory.inventory(cluster, other)["all"]["vars"]["dbops_clusters"]
        assert data["other"]["members"][0]["host"] == data["accounts"]["members"][0]["host"]
        with pytest.raises(LabError, match="there is a lab"):
            Cluster.create(tmp_path)
        home = other.home
        assert str(home) in command_lines()
    other.destroy()
    assert str(home) not in command_lines()
    assert list(tmp_path.iterdir()) == []
    assert home == tmp_path or not home.exists()
    assert cluster.primary().running()


def test_an_unfinished_lab_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="unrecognized configuration parameter"):
        Cluster.create(tmp_path, members=("pg1",), settings={"no_such_setting": "1"})
    assert list(tmp_path.iterdir()) == []
