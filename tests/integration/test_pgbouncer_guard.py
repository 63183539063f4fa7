# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgbouncer_guard and the console on a real PgBouncer in front of a real primary and its standby.

The run that dies is played by nobody: the test pauses the pooler over its console and does nothing more.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock, Deadline
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.client import Endpoint
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.lease import TAKE, lease_key
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.pgbouncer import (
    PoolerConsole,
    read_config,
    routed_to,
)

from tests.lab import binaries, users
from tests.lab.cluster import Cluster
from tests.lab.pooler import Pooler
from tests.lab.server import Node, alive, children, free_port, wait_for

CHECKOUT = Path(__file__).resolve().parents[2]
COLLECTIONS = CHECKOUT / ".venv" / "collections"
MODULE = "ansible_collections.stateful.dbops.plugins.modules.pgbouncer_guard"
CLOCK = Clock()


class Standing:
    """One cluster for many tests: made again when a test has left another primary, or a server down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cluster: Cluster | None = None

    def get(self) -> Cluster:
        if self.cluster is not None and not self._as_made(self.cluster):
            self.destroy()
        if self.cluster is None:
            self.cluster = Cluster.create(self.directory, members=("pg1", "pg2"), pooler=True)
            self.cluster.node("pg1").sql("CREATE TABLE ticks (n bigint)", user=users.APPLICATION, dbname=users.DATABASE)
        return self.cluster

    def destroy(self) -> None:
        if self.cluster is not None:
            self.cluster.destroy()
            self.cluster = None

    @staticmethod
    def _as_made(cluster: Cluster) -> bool:
        roles = [node.running() and node.sql("SELECT pg_is_in_recovery()") for node in cluster.nodes]
        return roles == [[(False,)], [(True,)]]


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    standing = Standing(tmp_path_factory.mktemp("guard") / "lab")
    yield standing
    standing.destroy()


@pytest.fixture
def cluster(standing: Standing) -> Cluster:
    return standing.get()


@pytest.fixture
def pooler(cluster: Cluster) -> Iterator[Pooler]:
    """The cluster's pooler; afterwards it starts anew from the configuration it had."""
    pooler = cluster.pooler
    assert pooler is not None
    text = pooler.config_file.read_text()
    yield pooler
    kill(pooler)
    pooler.config_file.write_text(text)
    pooler.start()


def kill(pooler: Pooler) -> None:
    """SIGKILL, ready to start again: PgBouncer refuses while its pid file names a process that was not reaped yet."""
    pooler.kill()
    (pooler.directory / "pgbouncer.pid").unlink()


class Guarded:
    """The module with its arguments; whatever dead-man is left at the end is ended."""

    def __init__(self, cluster: Cluster, state_dir: Path) -> None:
        words = cluster.module_arguments("pg2", "pg1")
        self.state_dir = state_dir
        self.arguments = {
            "cluster": cluster.name,
            "operation": "op1",
            "pooler": words["poolers"][0],
            "nodes": words["nodes"],
            "target": "pg2",
            "state_dir": str(state_dir),
            "pause_limit_ms": 700,
            "hard_limit_ms": 3000,
        }

    def run(self, state: str, *, check: bool = False, **words: Any) -> dict[str, Any]:
        """What the module returns; ``failed`` is in it when it failed."""
        arguments = {key: value for key, value in {**self.arguments, **words}.items() if value is not None}
        given = {"state": state, **arguments, "_ansible_check_mode": check, "_ansible_diff": True}
        result = subprocess.run(
            [sys.executable, "-m", MODULE],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
            capture_output=True,  # a dead-man that kept the pipes would keep us here
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
        )
        answer: dict[str, Any] = json.loads(result.stdout)
        answer.pop("invocation", None)
        return answer

    @property
    def log(self) -> list[dict[str, Any]]:
        path = self.state_dir / "pgbouncer_guard" / "accounts-pooler1.log"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def wait_for_event(self, event: str, seconds: float = 15) -> dict[str, Any]:
        wait_for(lambda: any(line["event"] == event for line in self.log), seconds=seconds, what=f"event {event}")
        return next(line for line in self.log if line["event"] == event)


@pytest.fixture
def guard(cluster: Cluster, pooler: Pooler, tmp_path: Path) -> Iterator[Guarded]:
    guarded = Guarded(cluster, tmp_path / "state")
    yield guarded
    for record in (tmp_path / "state").glob("pgbouncer_guard/*.json"):
        pid = json.loads(record.read_text())["pid"]
        if alive(pid) and Path(f"/proc/{pid}/comm").read_text() == "dbops-pgb-guard\n":
            os.kill(pid, signal.SIGKILL)


class Client:
    """One application connection through the pooler that inserts for as long as the block runs, and counts."""

    def __init__(self, pooler: Pooler) -> None:
        self.pooler = pooler
        self.errors: list[str] = []
        self.acknowledged = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        try:
            with closing(psycopg2.connect(self.pooler.dsn())) as connection:
                connection.autocommit = True
                while not self._stop.is_set():
                    with connection.cursor() as cursor:
                        cursor.execute("INSERT INTO ticks VALUES (%s)", (self.acknowledged,))
                    self.acknowledged += 1
                    time.sleep(0.002)
        except psycopg2.Error as error:
            self.errors.append(str(error))

    def __enter__(self) -> Client:
        self._thread.start()
        wait_for(lambda: self.acknowledged or self.errors, seconds=5, what="the client's first commit")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(30)


def in_memory(pooler: Pooler) -> tuple[int, bool]:
    """Port that ``accounts`` leads to, and whether it is paused."""
    [row] = [row for row in pooler.console("SHOW DATABASES") if row["name"] == users.DATABASE]
    return row["port"], bool(row["paused"])


def in_file(pooler: Pooler) -> int:
    [file] = read_config(str(pooler.config_file), lambda path: Path(path).read_text())
    return file.entries[0].port


def promote(cluster: Cluster) -> None:
    cluster.node("pg1").stop()
    cluster.node("pg2").sql("SELECT pg_promote(true)")


# -- the module, in the order of a target of ansible-test


def test_arm_and_disarm(cluster: Cluster, pooler: Pooler, guard: Guarded) -> None:
    pg1, pg2 = cluster.node("pg1"), cluster.node("pg2")
    assert guard.run("armed", target="nobody")["failed"]
    assert "operation" in guard.run("armed", operation=None)["msg"]
    staged = [{"database": "accounts", "before": f"127.0.0.1:{pg1.port}", "after": f"127.0.0.1:{pg2.port}"}]
    stat = pooler.config_file.stat()

    planned = guard.run("armed", check=True)
    assert planned["changed"]
    assert planned["changes"] == staged
    assert planned["deadman"] is None
    assert not guard.state_dir.exists()
    assert in_file(pooler) == pg1.port

    armed = guard.run("armed")
    pid = armed["deadman"]["pid"]
    assert armed["changed"]
    assert armed["changes"] == staged
    assert armed["databases"] == ["accounts"]
    assert armed["listeners"] == 1
    assert str(pooler.config_file) in [process["config_file"] for process in armed["processes"]]
    assert armed["diff"]["before"] == f"accounts -> 127.0.0.1:{pg1.port}\n"
    assert alive(pid)
    assert os.getsid(pid) == os.getpgid(pid) != os.getsid(0)
    assert in_file(pooler) == pg2.port
    assert in_memory(pooler) == (pg1.port, False)
    now = pooler.config_file.stat()
    assert (now.st_mode, now.st_uid, now.st_gid) == (stat.st_mode, stat.st_uid, stat.st_gid)
    assert [path.name for path in pooler.directory.glob(".dbops-*")] == []

    again = guard.run("armed")
    assert not again["changed"]
    assert again["deadman"]["pid"] == pid
    other = guard.run("armed", operation="op2")
    assert other["changed"]
    assert other["replaced_operation"] == "op1"
    assert other["deadman"]["pid"] != pid
    assert not alive(pid)

    refused = guard.run("disarmed")  # pg2 is a standby
    assert refused["failed"]
    assert "pg2 is the one writable member" in refused["msg"]
    assert alive(other["deadman"]["pid"])

    foreseen = guard.run("disarmed", target="pg1", check=True)
    assert foreseen["changed"]
    assert alive(other["deadman"]["pid"])
    back = guard.run("disarmed", target="pg1")
    assert back["changed"]
    assert back["deadman"]["pid"] == other["deadman"]["pid"]
    assert not back["fired"]
    assert [event["event"] for event in back["events"]] == ["armed"]
    assert not alive(other["deadman"]["pid"])
    assert in_file(pooler) == pg1.port
    assert in_memory(pooler) == (pg1.port, False)
    assert not guard.run("disarmed", target="pg1")["changed"]


def test_the_deadman_of_a_killed_run_leads_clients_to_the_promoted_candidate(
    cluster: Cluster, pooler: Pooler, guard: Guarded
) -> None:
    pg2 = cluster.node("pg2")
    pid = guard.run("armed")["deadman"]["pid"]
    with Client(pooler) as client:
        pooler.console("PAUSE accounts")
        promote(cluster)
        event = guard.wait_for_event("resumed")
        held = client.acknowledged
        wait_for(lambda: client.acknowledged > held + 20 or client.errors, seconds=10, what="commits after the resume")
    assert client.errors == []
    assert event["target"] == "pg2"
    assert event["paused_ms"] >= 700
    assert in_memory(pooler) == (pg2.port, False)
    assert pg2.sql("SELECT count(*) FROM ticks", dbname=users.DATABASE) == [(client.acknowledged,)]

    done = guard.run("disarmed", target="pg2")
    assert done["fired"]
    assert not alive(pid)
    assert not guard.run("disarmed", target="pg2")["changed"]


def test_a_run_that_died_before_the_stop_leaves_clients_on_the_old_primary(
    cluster: Cluster, pooler: Pooler, guard: Guarded
) -> None:
    pg1 = cluster.node("pg1")
    guard.run("armed")
    with Client(pooler) as client:
        pooler.console("PAUSE accounts")
        assert guard.wait_for_event("resumed")["target"] == "pg1"
        held = client.acknowledged
        wait_for(lambda: client.acknowledged > held + 20 or client.errors, seconds=10, what="commits after the resume")
    assert client.errors == []
    assert in_memory(pooler) == (pg1.port, False)
    assert in_file(pooler) == pg1.port


def test_without_a_writable_member_it_resumes_at_the_hard_limit(
    cluster: Cluster, pooler: Pooler, guard: Guarded
) -> None:
    pg1 = cluster.node("pg1")
    guard.run("armed")
    pooler.console("PAUSE accounts")
    pg1.stop()
    event = guard.wait_for_event("resumed")
    assert guard.wait_for_event("waiting")["reason"].startswith("0 members are writable")
    assert event["target"] == ""
    assert event["paused_ms"] >= 3000
    assert in_memory(pooler) == (pg1.port, False)


@contextmanager
def lease(node: Node, cluster: Cluster) -> Iterator[None]:
    """What a run does on each member. The dead-man's login may not do more than log in."""
    with closing(node.connect(dbname=users.DATABASE)) as session:
        session.cursor().execute(TAKE, lease_key(cluster.name))
        yield


def test_a_run_that_lives_is_left_alone(cluster: Cluster, pooler: Pooler, guard: Guarded) -> None:
    """Held on one member is enough: the run has stopped the other one, or lost its session there."""
    pid = guard.run("armed", hard_limit_ms=180000)["deadman"]["pid"]
    with lease(cluster.node("pg2"), cluster):
        pooler.console("PAUSE accounts")
        assert guard.wait_for_event("waiting")["reason"] == "a run holds the lease on pg2"
        time.sleep(2)
        assert in_memory(pooler)[1]
        # Nor does another run take it over: one that was itself refused once took back what the first had staged.
        staged = in_file(pooler)
        with ThreadPoolExecutor() as pool:
            others = [pool.submit(guard.run, state, target="pg1") for state in ("armed", "disarmed")]
        for refused in (other.result()["msg"] for other in others):
            assert "no run holds the lease of cluster accounts any more" in refused
            assert "cancelled AWX job" in refused
        assert in_file(pooler) == staged
        assert alive(pid)
    assert guard.wait_for_event("resumed")["target"] == "pg1"
    assert in_memory(pooler) == (cluster.node("pg1").port, False)


def test_arming_again_resumes_what_a_dead_run_holds(cluster: Cluster, pooler: Pooler, guard: Guarded) -> None:
    """Left to the dead-man it would come while the next run is at work, and take back what is staged for that run."""
    guard.arguments["pause_limit_ms"] = 30000
    pid = guard.run("armed")["deadman"]["pid"]
    with Client(pooler) as client:
        pooler.console("PAUSE accounts")
        assert guard.run("armed", check=True)["resumed"] == ["accounts"]
        assert in_memory(pooler)[1]
        again = guard.run("armed")
        held = client.acknowledged
        wait_for(lambda: client.acknowledged > held + 20 or client.errors, seconds=10, what="commits after the resume")
    assert client.errors == []
    assert (again["resumed"], again["changed"]) == (["accounts"], True)
    assert in_memory(pooler) == (cluster.node("pg1").port, False)
    assert in_file(pooler) == cluster.node("pg2").port
    assert again["deadman"]["pid"] != pid
    assert not alive(pid)


def test_the_lease_of_another_cluster_counts_for_nothing(pooler: Pooler, cluster: Cluster, guard: Guarded) -> None:
    guard.run("armed", hard_limit_ms=60000)
    with closing(cluster.node("pg1").connect()) as session:
        session.cursor().execute(TAKE, lease_key("billing"))
        pooler.console("PAUSE accounts")
        assert guard.wait_for_event("resumed")["target"] == "pg1"


def test_no_run_holds_clients_past_the_hard_limit(cluster: Cluster, pooler: Pooler, guard: Guarded) -> None:
    guard.run("armed")
    with lease(cluster.node("pg1"), cluster):
        pooler.console("PAUSE accounts")
        assert guard.wait_for_event("resumed")["paused_ms"] >= 3000
    assert in_memory(pooler) == (cluster.node("pg1").port, False)


def test_a_server_ends_the_lease_of_a_host_that_is_gone(cluster: Cluster) -> None:
    """No packet says that a host lost its power. The server asks: the kernel's keepalive timer of its sockets."""
    node = cluster.node("pg1")

    def soonest() -> float:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        timers = [row[5].split(":") for row in rows if row[1].endswith(f":{node.port:04X}")]  # proc(5): tr and tm->when
        ticks = [int(when, 16) for kind, when in timers if kind == "02"]
        return min(ticks, default=1 << 30) / os.sysconf("SC_CLK_TCK")

    with closing(node.connect()):
        wait_for(lambda: soonest() < 8000, seconds=5, what="a keepalive timer")
        assert soonest() > 60
        with lease(node, cluster):
            wait_for(lambda: soonest() <= 4, seconds=5, what="a keepalive timer of the lease")


def test_a_pause_that_ends_in_time_is_none_of_its_business(pooler: Pooler, guard: Guarded) -> None:
    guard.run("armed")
    for _time in range(3):  # longer than the limit in sum, never in one piece
        pooler.console("PAUSE accounts")
        time.sleep(0.3)
        pooler.console("RESUME accounts")
        time.sleep(0.3)
    assert not guard.run("disarmed", target="pg1")["fired"]


def test_disarm_brings_home_a_pooler_that_nobody_guards_any_more(
    cluster: Cluster, pooler: Pooler, guard: Guarded
) -> None:
    pg2 = cluster.node("pg2")
    os.kill(guard.run("armed")["deadman"]["pid"], signal.SIGKILL)
    with Client(pooler) as client:
        pooler.console("PAUSE accounts")
        promote(cluster)
        assert guard.run("disarmed", target="pg1")["failed"]
        assert guard.run("disarmed", check=True)["statements"] == ["RELOAD", "RESUME accounts"]
        assert in_memory(pooler)[1]
        done = guard.run("disarmed")
        held = client.acknowledged
        wait_for(lambda: client.acknowledged > held + 20 or client.errors, seconds=10, what="commits after the resume")
    assert client.errors == []
    assert done["statements"] == ["RELOAD", "RESUME accounts"]
    assert done["deadman"] is None
    assert in_memory(pooler) == (pg2.port, False)


def test_clients_that_wait_for_a_server_that_hangs_are_let_go(cluster: Cluster, pooler: Pooler, guard: Guarded) -> None:
    """PgBouncer closes what leads to the old server when its transaction ends; there it never does."""
    pg1 = cluster.node("pg1")
    postmaster = pg1.pid()
    assert postmaster
    with Client(pooler) as client:
        frozen = [postmaster, *children(postmaster)]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            cluster.node("pg2").sql("SELECT pg_promote(true)")
            done = guard.run("disarmed")
            assert done["statements"] == ["RELOAD", "KILL accounts", "RESUME accounts"], done
            wait_for(lambda: client.errors, seconds=5, what="an error instead of silence")
            with Client(pooler) as another:
                wait_for(lambda: another.acknowledged > 20, seconds=10, what="commits on pg2")
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
            pg1.kill()
    assert guard.run("disarmed")["statements"] == []


def test_its_time_is_over(cluster: Cluster, pooler: Pooler, guard: Guarded) -> None:
    pid = guard.run("armed", lifetime_s=2)["deadman"]["pid"]
    assert in_file(pooler) == cluster.node("pg2").port
    assert guard.wait_for_event("expired")["target"] == "pg1"
    wait_for(lambda: not alive(pid), seconds=5, what="the dead-man to end")
    assert in_file(pooler) == cluster.node("pg1").port


def test_a_pooler_that_does_not_answer_stays_guarded(cluster: Cluster, pooler: Pooler, guard: Guarded) -> None:
    pid = guard.run("armed")["deadman"]["pid"]
    pooler.suspend()
    try:
        assert "cannot log in to pooler1" in guard.run("disarmed", target="pg1")["msg"]
    finally:
        pooler.resume()
    assert alive(pid)
    pooler.console("PAUSE accounts")
    assert guard.wait_for_event("resumed")["target"] == "pg1"


def test_no_secret_is_left_behind(cluster: Cluster, pooler: Pooler, guard: Guarded) -> None:
    passwords = users.load_secrets(cluster.secrets_file)
    guard.arguments["pooler"] |= {"passfile": None, "login_password": passwords[users.POOLER_ADMIN]}
    line = f"other = host=127.0.0.1 port={cluster.node('pg1').port} password='c4n4ry'"
    pooler.config_file.write_text(pooler.config_file.read_text().replace("[databases]", f"[databases]\n{line}"))
    pooler.console("RELOAD")
    answer = guard.run("armed")
    pid = answer["deadman"]["pid"]
    pooler.console("PAUSE accounts")
    guard.wait_for_event("resumed")
    left = json.dumps(answer) + "".join(path.read_text() for path in guard.state_dir.rglob("*") if path.is_file())
    left += Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
    for secret in (*passwords.values(), "c4n4ry"):
        assert secret not in left
    assert (guard.state_dir / "pgbouncer_guard").stat().st_mode & 0o077 == 0


def test_through_ansible_the_task_ends_and_the_deadman_lives(pooler: Pooler, guard: Guarded, tmp_path: Path) -> None:
    """Ansible's zip is deleted when the task ends, and a task hangs while anybody holds its output."""
    task = {"stateful.dbops.pgbouncer_guard": {"state": "armed", **guard.arguments}, "register": "armed"}
    play = [{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]
    playbook = tmp_path / "play.json"
    playbook.write_text(json.dumps(play))
    result = subprocess.run(
        [
            *(Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local"),
            *("-e", f"ansible_python_interpreter={sys.executable}", playbook),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path / "ansible")},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    time.sleep(1)
    pooler.console("PAUSE accounts")
    assert guard.wait_for_event("resumed")["target"] == "pg1"
    done = guard.run("disarmed", target="pg1")
    assert [event["event"] for event in done["events"]] == ["armed", "resumed"]


# -- databases that do not follow the primary


def read_only_database(cluster: Cluster, pooler: Pooler) -> str:
    """Leads to a member and stays there; its line."""
    line = f"accounts_ro = host=127.0.0.1 port={cluster.node('pg1').port} dbname={users.DATABASE}"
    pooler.config_file.write_text(pooler.config_file.read_text().replace("[databases]", f"[databases]\n{line}"))
    pooler.console("RELOAD")
    return line


def test_only_the_named_databases_are_staged_and_resumed(cluster: Cluster, pooler: Pooler, guard: Guarded) -> None:
    line = read_only_database(cluster, pooler)
    guard.arguments["pooler"] |= {"databases": ["accounts"]}
    armed = guard.run("armed")
    assert armed["databases"] == ["accounts"]
    assert [change["database"] for change in armed["changes"]] == ["accounts"]
    assert line in pooler.config_file.read_text()
    pooler.console("PAUSE accounts_ro")  # somebody else's
    time.sleep(2)
    pooler.console("PAUSE accounts")
    promote(cluster)
    assert guard.wait_for_event("resumed")["databases"] == ["accounts"]
    assert in_memory(pooler) == (cluster.node("pg2").port, False)
    assert line in pooler.config_file.read_text()
    assert guard.run("disarmed", target="pg2")["databases"] == ["accounts"]
    [row] = [row for row in pooler.console("SHOW DATABASES") if row["name"] == "accounts_ro"]
    assert (row["port"], row["paused"]) == (cluster.node("pg1").port, 1)


def test_a_named_database_that_is_not_there_is_refused(cluster: Cluster, pooler: Pooler, guard: Guarded) -> None:
    text = pooler.config_file.read_text()
    pooler.config_file.write_text(text.replace("[databases]", "[databases]\nelsewhere = host=192.0.2.1 port=7000"))
    pooler.console("RELOAD")
    guard.arguments["pooler"] |= {"databases": ["accounts", "acounts", "elsewhere"]}
    answer = guard.run("armed", check=True)
    assert answer["failed"]
    assert "database acounts is not there" in answer["msg"]
    assert "database elsewhere leads to 192.0.2.1:7000" in answer["msg"]
    assert "database accounts " not in answer["msg"]


# -- other processes on the host


def second_process(pooler: Pooler, name: str, text: str) -> Iterator[Path]:
    """Another pgbouncer, with the pooler's configuration changed to ``text``."""
    directory = pooler.directory / name
    users.make_directory(directory, pooler.owner)
    config = users.write_file(directory / "other.ini", text.replace("pgbouncer.pid", f"{name}.pid"), pooler.owner)
    program = binaries.pgbouncer()
    assert program is not None
    subprocess.run([program, "-q", "-d", config], check=True, cwd=directory, **users.run_as(pooler.owner))
    pid_file = pooler.directory / f"{name}.pid"
    wait_for(pid_file.exists, seconds=5, what="the second pgbouncer")
    pid = int(pid_file.read_text())
    try:
        yield config
    finally:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid), seconds=5, what="the second pgbouncer to end")
        shutil.rmtree(directory)


def test_processes_that_share_the_port_are_refused(pooler: Pooler, guard: Guarded) -> None:
    text = pooler.config_file.read_text() + "so_reuseport = 1\n"
    pooler.config_file.write_text(text)
    pooler.stop()
    pooler.start()
    assert guard.run("armed", check=True)["listeners"] == 1
    for config in second_process(pooler, "twin", text):
        answer = guard.run("armed", known_config_files=[str(config)])
        assert "2 listeners" in answer["msg"]
        assert "so_reuseport=0" in answer["msg"]
        assert not guard.state_dir.exists()


def test_an_unlisted_process_in_front_of_the_cluster_is_refused(pooler: Pooler, guard: Guarded) -> None:
    text = pooler.config_file.read_text().replace(f"listen_port = {pooler.port}", f"listen_port = {free_port()}")
    for config in second_process(pooler, "stray", text):
        answer = guard.run("armed", check=True)
        assert "also leads to cluster accounts: accounts" in answer["msg"]
        assert "failed" not in guard.run("armed", check=True, known_config_files=[str(config)])
        config.rename(config.with_name("hidden.ini"))
        assert "where it leads to is unknown" in guard.run("armed", check=True)["msg"]
    elsewhere = text.replace("accounts = host=127.0.0.1", "accounts = host=192.0.2.1")
    for _config in second_process(pooler, "stranger", elsewhere):
        assert "failed" not in guard.run("armed", check=True)


def test_what_cannot_be_guarded_is_refused(cluster: Cluster, pooler: Pooler, guard: Guarded, tmp_path: Path) -> None:
    config = pooler.config_file
    whole = config.read_text()
    wrong = tmp_path / "wrong.ini"
    wrong.write_text(whole)
    answer = guard.run("armed", check=True, pooler=guard.arguments["pooler"] | {"config_file": str(wrong)})
    assert "0 pgbouncer processes" in answer["msg"]

    for limit in ("pause_limit_ms", "hard_limit_ms", "lifetime_s"):
        assert f"{limit} 0" in guard.run("armed", check=True, **{limit: 0})["msg"]

    config.write_text(whole.replace("host=127.0.0.1", "host=127.0.0.1,127.0.0.9"))
    assert "host list" in guard.run("armed", check=True)["msg"]
    config.write_text(whole.replace("host=127.0.0.1", "host=192.0.2.1"))
    assert "leads to no member" in guard.run("armed", check=True)["msg"]
    config.write_text(whole.replace(f"admin_users = {users.POOLER_ADMIN}", f"stats_users = {users.POOLER_ADMIN}"))
    pooler.stop()
    config.write_text(config.read_text() + "admin_users = somebody\n")
    pooler.start()
    assert "may not PAUSE" in guard.run("armed", check=True)["msg"]


@contextmanager
def relay(port: int) -> Iterator[int]:
    """A port that leads to ``port`` as a balancer does: what answers there need not be the process on this host."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with source, suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def work() -> None:
        with suppress(OSError):
            while True:
                client, server = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=work, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_console_that_is_not_this_hosts_process_is_refused(pooler: Pooler, guard: Guarded) -> None:
    """Its file would be staged, and the process that answers would go on with its own."""
    with relay(pooler.port) as port:
        relayed = guard.arguments["pooler"] | {"login_port": port}
        answer = guard.run("armed", pooler=relayed)
        assert "is not that of pgbouncer process" in answer["msg"], answer
        assert "expected" in answer["msg"]
    assert "failed" not in guard.run("armed", check=True)


# -- the console


@pytest.fixture
def console(cluster: Cluster, pooler: Pooler) -> Iterator[PoolerConsole]:
    endpoint = Endpoint(
        name=pooler.name,
        host=pooler.host,
        port=pooler.port,
        user=users.POOLER_ADMIN,
        dbname="pgbouncer",
        passfile=str(cluster.passfile),
    )
    made = PoolerConsole(endpoint, CLOCK)
    yield made
    made.close()


def within(seconds: float) -> Deadline:
    return Deadline.after(CLOCK, seconds)


def second_database(cluster: Cluster, pooler: Pooler) -> None:
    line = f"second = host=127.0.0.1 port={cluster.node('pg1').port} dbname={users.DATABASE}"
    pooler.config_file.write_text(pooler.config_file.read_text().replace("[databases]", f"[databases]\n{line}"))
    pooler.console("RELOAD")


def test_all_databases_drain_at_the_same_time(cluster: Cluster, pooler: Pooler, console: PoolerConsole) -> None:
    second_database(cluster, pooler)
    with (
        closing(psycopg2.connect(pooler.dsn())) as first,
        closing(psycopg2.connect(pooler.dsn("second"))) as second,
    ):
        for connection in (first, second):
            connection.cursor().execute("SELECT 1")  # begins a transaction
        timers = [threading.Timer(delay, end) for delay, end in ((0.5, first.commit), (0.5, second.commit))]
        console.prepare_pause(["accounts", "second"])
        for timer in timers:
            timer.start()
        began = time.monotonic()
        console.pause(["accounts", "second"], within(5))
        assert 0.3 < time.monotonic() - began < 0.9
        assert all(database.drained for database in console.databases(within(1)))
        console.pause(["accounts", "second"], within(1))  # twice is fine
        for timer in timers:
            timer.join()
        console.resume(["accounts", "second"], within(1))
        console.resume(["accounts", "second"], within(1))  # and so is this
        first.cursor().execute("SELECT 1")


def test_a_pause_that_takes_too_long_is_taken_back(cluster: Cluster, pooler: Pooler, console: PoolerConsole) -> None:
    second_database(cluster, pooler)
    with (
        closing(psycopg2.connect(pooler.dsn())) as long,
        closing(psycopg2.connect(pooler.dsn("second"))) as other,
    ):
        other.autocommit = True
        long.cursor().execute("SELECT 1")
        began = time.monotonic()
        with pytest.raises(DbopsError, match="still busy: accounts"):
            console.pause(["accounts", "second"], within(0.5))
        assert time.monotonic() - began < 1
        assert not any(database.paused for database in console.databases(within(1)))
        other.cursor().execute("SELECT 1")
        long.commit()
    assert not any(database.paused for database in console.databases(within(1)))


def test_a_pooler_that_hangs_costs_no_more_than_the_deadline(pooler: Pooler, console: PoolerConsole) -> None:
    console.open(within(2))
    console.prepare_pause(["accounts"])
    pooler.suspend()
    try:
        for call in (console.state, console.reload, lambda deadline: console.resume(["accounts"], deadline)):
            began = time.monotonic()
            with pytest.raises(DbopsError):
                call(within(0.3))
            assert time.monotonic() - began < 0.6
    finally:
        pooler.resume()
    console.resume(["accounts"], within(2))  # the same object goes on


def test_a_restart_of_the_pooler_is_survived_by_resume(pooler: Pooler, console: PoolerConsole) -> None:
    console.pause(["accounts"], within(2))
    kill(pooler)
    starter = threading.Timer(0.3, pooler.start)
    starter.start()
    console.resume(["accounts"], within(5))
    starter.join()
    assert not in_memory(pooler)[1]


def test_what_reload_has_loaded_is_read_back(cluster: Cluster, pooler: Pooler, console: PoolerConsole) -> None:
    pg1, pg2 = cluster.node("pg1"), cluster.node("pg2")
    text = pooler.config_file.read_text()
    pooler.config_file.write_text("nonsense\n" + text.replace(str(pg1.port), str(pg2.port)))
    console.reload(within(1))  # says RELOAD all the same
    with pytest.raises(DbopsError, match="a file with a syntax error is not loaded"):
        console.repoint_check(["accounts"], "127.0.0.1", pg2.port, within(1))
    pooler.config_file.write_text(text.replace(str(pg1.port), str(pg2.port)))
    console.reload(within(1))
    console.repoint_check(["accounts"], "127.0.0.1", pg2.port, within(1))
    with pytest.raises(DbopsError, match="has no database nosuch"):
        console.repoint_check(["nosuch"], "127.0.0.1", pg2.port, within(1))


def test_our_reading_of_a_configuration_is_pgbouncers(pooler: Pooler, console: PoolerConsole, tmp_path: Path) -> None:
    included = users.write_file(pooler.directory / "more.ini", "inc = host=192.0.2.9\n", pooler.owner)
    awkward = "\n".join(
        [
            " [databases] same-line = host=192.0.2.1",
            "quoted = password='it''s host=192.0.2.2 ; #'   port= '7000'  host = '192.0.2.3'",
            "tabbed = host=192.0.2.4\tport=7001 dbname=x",
            "twice=host=192.0.2.5 host=192.0.2.6",
            "; gone = host=192.0.2.7",
            "# gone = host=192.0.2.7",
            f"%include {included}",
            "crlf = host=192.0.2.8 port=7002\r",
            "socket = port=7003",
            "",
        ]
    )
    pooler.config_file.write_text(pooler.config_file.read_text().replace("[databases]\n", awkward))
    console.reload(within(1))
    theirs = {
        (database.name, database.host, database.port) for database in console.databases(within(1)) if database.host
    }
    ours = read_config(str(pooler.config_file), lambda path: Path(path).read_bytes().decode())
    assert {(entry.name, entry.host, entry.port) for file in ours for entry in file.entries} == theirs
    assert len(theirs) == 7


def test_state_tells_what_the_prechecks_need(cluster: Cluster, pooler: Pooler, console: PoolerConsole) -> None:
    with closing(psycopg2.connect(pooler.dsn())) as connection:
        connection.cursor().execute("SELECT 1")
        state = console.state(within(2))
    assert state.version_number >= (1, 18)
    assert state.is_admin(users.POOLER_ADMIN)
    assert not state.shares_port
    assert state.settings["query_wait_timeout"] == "120"
    assert state.settings["conffile"] == str(pooler.config_file)
    [database] = routed_to(state.databases, [("127.0.0.1", cluster.node("pg1").port)])
    assert (database.name, database.pool_mode, database.current_connections) == ("accounts", "transaction", 1)
    [use] = [use for use in state.pools if use.database == "accounts"]
    assert (use.cl_active, use.sv_active) == (1, 1)
