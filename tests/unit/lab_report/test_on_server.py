# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writers, checker and sampler on a real server: what is tampered with is found, what is broken is classified."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import ledger
from tests.lab.checker import PROBE_SECONDS, Verdict, check, commits_after_fork, read_log, writable_nodes
from tests.lab.cluster import Cluster
from tests.lab.sampler import Sampler
from tests.lab.server import Node, alive, wait_for
from tests.lab.writer import Writers

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    quick = {"wal_retrieve_retry_interval": "200ms"}  # the standby finds a primary that crashed and came back
    with Cluster.create(tmp_path_factory.mktemp("lab"), members=("pg1", "pg2"), settings=quick) as made:
        yield made


@pytest.fixture
def node(cluster: Cluster) -> Node:
    """The primary, with a fresh ledger."""
    primary = cluster.primary()
    primary.sql("DROP TABLE IF EXISTS accounts, transaction_journal, dbops_probe", user="app", dbname="accounts")
    connection = primary.connect("app", "accounts")
    ledger.create(connection)
    connection.close()
    return primary


@pytest.fixture
def writers(cluster: Cluster, node: Node, tmp_path: Path) -> Iterator[Writers]:
    made = Writers(tmp_path, [(node.host, node.port)], passfile=str(cluster.lab_passfile))
    yield made
    made.stop()


def judge(writers: Writers, node: Node) -> Verdict:
    return check(writers.log, lambda: node.connect("app", "accounts"))


def run(writers: Writers, seconds: float = 0.4) -> None:
    with writers:
        time.sleep(seconds)


def acknowledged(writers: Writers) -> int:
    return next(entry.id for entry in read_log(writers.log) if entry.outcome == "acknowledged")


def test_quiet_run(writers: Writers, node: Node) -> None:
    run(writers)
    verdict = judge(writers, node)
    assert verdict.ok
    assert verdict.acknowledged > 20
    assert (verdict.unknown, verdict.errors) == (0, {})


def test_two_runs_on_one_ledger(writers: Writers, node: Node) -> None:
    for _time in range(2):
        run(writers, 0.1)
        assert judge(writers, node).ok


def test_a_lost_commit_is_found(writers: Writers, node: Node) -> None:
    run(writers)
    victim = acknowledged(writers)
    rows = [2 * victim, 2 * victim + 1]
    node.sql("DELETE FROM transaction_journal WHERE id = ANY(%s)", (rows,), user="app", dbname="accounts")
    verdict = judge(writers, node)
    assert verdict.missing == [victim]
    assert len(verdict.imbalances) == 2  # both accounts still have what the journal no longer says


def test_a_commit_applied_twice_is_found(writers: Writers, node: Node) -> None:
    run(writers)
    victim = acknowledged(writers)
    node.sql(
        "INSERT INTO transaction_journal (id, user_id, currency, type, amount)"
        " SELECT id, user_id, currency, type, amount FROM transaction_journal WHERE id = ANY(%s)",
        ([2 * victim, 2 * victim + 1],),
        user="app",
        dbname="accounts",
    )
    assert judge(writers, node).doubled == [victim]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("available = available + 1", "account 5 USD: total 1000000"),
        ("available = available + 1, total = total + 1", "all USD accounts together: 1.00000000"),
    ],
    ids=["total", "sum"],
)
def test_unbalanced_books_are_found(writers: Writers, node: Node, change: str, found: str) -> None:
    run(writers, 0.0)
    # The account is put back to its opening first, or a transfer of the run could be in the total.
    node.sql("DELETE FROM transaction_journal WHERE id > 0", user="app", dbname="accounts")
    node.sql(
        "UPDATE accounts SET available = 1000000, total = 1000000 WHERE user_id > 0", user="app", dbname="accounts"
    )
    node.sql(f"UPDATE accounts SET {change} WHERE user_id = 5", user="app", dbname="accounts")  # noqa: S608 - ours
    assert any(line.startswith(found) for line in judge(writers, node).imbalances)


def test_a_session_ended_in_commit_is_unknown(writers: Writers, node: Node) -> None:
    with writers:
        node.configure(synchronous_standby_names="nobody")  # COMMIT is durable here, and waits for an answer
        time.sleep(0.3)
        node.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dbops_lab_writer'")
        node.configure(synchronous_standby_names="")
        time.sleep(0.2)
    verdict = judge(writers, node)
    # Most of the 20 were in COMMIT; the others waited for an account that one of those had locked.
    assert verdict.unknown >= verdict.unknown_committed > 10
    assert verdict.ok


def test_a_commit_that_hangs_at_the_end_is_unknown(writers: Writers, node: Node) -> None:
    with writers:
        node.configure(synchronous_standby_names="nobody")
        time.sleep(0.3)
    node.configure(synchronous_standby_names="")
    verdict = judge(writers, node)
    assert verdict.unknown == 20
    assert not verdict.missing


def test_refused_writes_failed_and_a_rude_writer_gets_through(writers: Writers, node: Node) -> None:
    with writers:
        node.configure(default_transaction_read_only="on")
        time.sleep(0.3)
        assert writable_nodes([node]) == ["pg1"]  # so this setting is no fence
        node.configure(default_transaction_read_only="off")
        time.sleep(0.2)
    verdict = judge(writers, node)
    assert verdict.ok
    assert verdict.unknown == 0
    assert list(verdict.errors) == ["cannot execute UPDATE in a read-only transaction"]


def test_a_crash_loses_nothing_and_every_error_is_seen(writers: Writers, node: Node) -> None:
    with writers:
        node.kill()
        time.sleep(0.3)
        node.start()
        time.sleep(0.5)
    verdict = judge(writers, node)
    assert verdict.ok
    assert any("Connection refused" in text for text in verdict.errors)
    assert verdict.pause_ms is not None
    assert verdict.pause_ms > 300


def test_only_the_primary_takes_a_direct_write(cluster: Cluster, node: Node) -> None:
    cluster.wait_streaming(["pg2"])
    assert writable_nodes(cluster.nodes) == ["pg1"]


def test_a_frozen_server_takes_no_write(node: Node) -> None:
    node.kill(signal.SIGSTOP)
    began = time.monotonic()
    try:
        assert writable_nodes([node]) == []
        assert time.monotonic() - began < 2 * PROBE_SECONDS
    finally:
        node.kill(signal.SIGCONT)


def test_commits_past_a_position_are_counted(cluster: Cluster, node: Node) -> None:
    def position() -> str:
        return str(node.sql("SELECT pg_current_wal_lsn()")[0][0])

    def count(lsn: str, timeline: int = 1) -> int | None:
        return commits_after_fork(cluster.bin_dir, node.data_dir, timeline, lsn)

    node.sql("SELECT pg_switch_wal()")
    before = position()
    for _time in range(3):
        node.sql("INSERT INTO dbops_probe (node) VALUES ('x')", user="app", dbname="accounts")
    assert count(before) == 3
    assert count(position()) == 0
    with pytest.raises(RuntimeError, match="no longer holds"):
        count(before, timeline=9)
    assert commits_after_fork(cluster.directory, node.data_dir, 1, before) is None


def test_sampler_sees_a_standby_that_falls_behind(cluster: Cluster, node: Node) -> None:
    standby = cluster.node("pg2")
    sampler = Sampler(cluster.nodes)
    sampler.start()
    standby.sql("SELECT pg_wal_replay_pause()")
    node.sql("CREATE TABLE ballast AS SELECT generate_series(1, 20000)", user="app", dbname="accounts")
    wait_for(lambda: any(s.lag > 1_000_000 for s in sampler.samples), seconds=10, what="the lag to be seen")
    standby.sql("SELECT pg_wal_replay_resume()")
    node.sql("DROP TABLE ballast", user="app", dbname="accounts")
    wait_for(lambda: sampler.samples[-1].lag < 10_000, seconds=10, what="the lag to be gone")
    assert {sample.standby for sample in sampler.stop()} == {"pg2"}


def test_a_refused_login_says_why_and_shows_no_password(node: Node, tmp_path: Path) -> None:
    secret = "canary-4711"
    writers = Writers(tmp_path, [(node.host, node.port)], password=secret)
    arguments: list[bytes] = []

    def look() -> None:
        wait_for(writers.log.exists, seconds=5, what="the writer to start")
        arguments.append(Path(f"/proc/{writers.pid}/cmdline").read_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    with pytest.raises(RuntimeError, match="password authentication failed") as error:
        writers.start(wait_seconds=4.0)
    watcher.join()
    assert b"tests.lab.writer" in arguments[0]
    assert secret.encode() not in arguments[0]
    assert secret not in str(error.value)
    assert secret not in writers.log.read_text()
    assert (tmp_path / "writer.json").stat().st_mode & 0o777 == 0o600


def test_writers_end_when_their_parent_dies(cluster: Cluster, node: Node, tmp_path: Path) -> None:
    program = (
        "import os, pathlib; from tests.lab.writer import Writers;"
        f"w = Writers(pathlib.Path({str(tmp_path)!r}), [({node.host!r}, {node.port})],"
        f" passfile={str(cluster.lab_passfile)!r}); w.start(); print(w.pid, flush=True); os._exit(0)"
    )
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    wait_for(lambda: not alive(int(output.stdout)), seconds=15, what="the orphaned writer to end")


def test_writers_end_when_their_time_is_over(cluster: Cluster, node: Node, tmp_path: Path) -> None:
    writers = Writers(
        tmp_path, [(node.host, node.port)], passfile=str(cluster.lab_passfile), connections=2, max_seconds=2.0
    )
    writers.start()
    wait_for(lambda: not writers.running(), seconds=15, what="the writer to end by itself")
    writers.stop()
    assert judge(writers, node).ok
