# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One real fault to one real thing, each healed on the way out.

The others need no function: ``node.kill()``, ``pooler.suspend()``, ``node.configure(archive_command="false")``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import users
from tests.lab.server import HOST, LabError, Node, alive, wait_for


class NotPossible(LabError):
    """This machine or this user cannot have that fault; a test skips with this text."""


def freeze(pids: Iterable[int]) -> None:
    """SIGSTOP: the process keeps its connections and its locks, and does nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def thaw(pids: Iterable[int]) -> None:
    """Undo freeze(); one that has ended meanwhile is passed over."""
    for pid in filter(alive, pids):
        os.kill(pid, signal.SIGCONT)


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[None]:
    """For example ``frozen(candidate.process("walreceiver"))``. LabError when there is nothing to freeze."""
    frozen_pids = list(pids)
    if not frozen_pids:
        raise LabError("there is no process to freeze")
    freeze(frozen_pids)
    try:
        yield
    finally:
        thaw(frozen_pids)


@contextmanager
def cut_replication(node: Node) -> Iterator[None]:
    """``node`` streams to nobody: its pg_hba.conf rejects replication and its walsenders are terminated."""
    before = node.hba_file.read_text()
    users.write_file(node.hba_file, f"host replication all {HOST}/32 reject\n{before}", node.owner, 0o640)
    try:
        node.reload()
        node.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        wait_for(lambda: not node.process("walsender"), seconds=10, what=f"the walsenders of {node.name} to end")
        yield
    finally:
        users.write_file(node.hba_file, before, node.owner, 0o640)
        if node.running():
            node.reload()


@contextmanager
def slow_archive(node: Node, seconds: float) -> Iterator[None]:
    """Every segment takes ``seconds`` longer to archive; a shutdown waits for that."""
    before = node.settings()["archive_command"]
    node.configure(archive_command=f"sleep {seconds}; {before}")
    try:
        yield
    finally:
        node.configure(archive_command=before)


@contextmanager
def restart_watcher(node: Node) -> Iterator[None]:
    """The service manager is rude: it starts the server again whenever that ends, also after a stop."""
    flag = users.write_file(node.directory / "restart", "", node.owner)
    try:
        yield
    finally:
        flag.unlink(missing_ok=True)


def small_disk(node: Node, megabytes: int = 256) -> None:
    """Move pg_wal onto a tmpfs that has ``megabytes`` to spare; Cluster.destroy() unmounts it. Restarts the server.

    A standby frees WAL at its restartpoints only: what the primary writes in the test has to fit.
    """
    if os.geteuid() != 0:
        raise NotPossible("a full disk is a small tmpfs, and mounting one needs root")
    wal = node.data_dir / "pg_wal"
    entry = pwd.getpwnam(node.owner)
    was_running = node.running()
    node.stop()
    with tempfile.TemporaryDirectory(dir=node.directory) as scratch:
        kept = Path(scratch) / "pg_wal"
        shutil.copytree(wal, kept)
        used = sum(path.stat().st_size for path in kept.rglob("*"))
        options = f"size={used + megabytes * 1024 * 1024},mode=0700,uid={entry.pw_uid},gid={entry.pw_gid}"
        command = ["mount", "-t", "tmpfs", "-o", options, "dbops-lab", str(wal)]
        mounted = subprocess.run(command, check=False, capture_output=True, text=True)
        if mounted.returncode != 0:
            raise NotPossible(f"this machine mounts no tmpfs: {mounted.stderr.strip()}")
        shutil.copytree(kept, wal, dirs_exist_ok=True)
    for path in wal.rglob("*"):
        users.give(path, node.owner)
    if was_running:
        node.start()


@contextmanager
def full_disk(node: Node) -> Iterator[None]:
    """No byte is free below pg_wal. Call small_disk() first, outside of what is measured."""
    wal = node.data_dir / "pg_wal"
    if not wal.is_mount():
        raise LabError(f"pg_wal of {node.name} is on the machine's disk; call small_disk() first")
    ballast = wal / "ballast"
    try:
        disk = os.statvfs(wal)
        with ballast.open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, disk.f_bavail * disk.f_frsize)
        yield
    finally:
        ballast.unlink(missing_ok=True)
