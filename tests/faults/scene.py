# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster under load through a pooler and directly, switchovers on it, and what has to hold after each fault."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.lab import ledger
from tests.lab.checker import check, commits_after_fork, writable_nodes
from tests.lab.cluster import Cluster
from tests.lab.operation import ModuleRun, journals, run_module, start_module, switchover_arguments
from tests.lab.server import Node
from tests.lab.waiting import LabError
from tests.lab.writer import Writers


@dataclass
class Scene:
    """``poolers`` are paused by the runs; ``direct`` writers go past them."""

    cluster: Cluster
    directory: Path
    writers: list[Writers] = field(default_factory=list)
    probes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    # -- one switchover

    def names(self) -> tuple[str, str]:
        """The primary, and the other one of the first two members."""
        old = self.cluster.primary().name
        return old, next(node.name for node in self.cluster.nodes[:2] if node.name != old)

    def arguments(self, candidate: str, node: str, **changes: Any) -> dict[str, Any]:
        """Probes are asked for once per candidate: they do not change, and each costs a process."""
        if candidate not in self.probes:
            self.probes[candidate] = switchover_arguments(self.cluster, candidate, node)["probes"]
        plain = {**self.cluster.module_arguments(candidate, node), "node": node}
        plain["poolers"] = [
            {
                **{key: value for key, value in pooler.items() if key != "config_file"},
                "listeners": 1,
                "staged_for": candidate,
            }
            for pooler in plain["poolers"]
        ]
        members = [other.name for other in self.cluster.nodes if other.name != node]
        probes = [{"member": name, "replication_problem": "", "free_bytes": 1 << 33} for name in members]
        return {**plain, "probes": probes, "follow_timeout": 30, "stop_timeout": 60, **changes}

    def guard(self, state: str, target: str) -> list[dict[str, Any]]:
        """Arm or disarm the dead-man of every pooler, as the role does."""
        plain = self.cluster.module_arguments(target, target)
        results = []
        for pooler in plain["poolers"]:
            results.append(
                run_module(
                    "pgbouncer_guard",
                    {
                        "state": state,
                        "cluster": self.cluster.name,
                        "operation": "test",
                        "pooler": pooler,
                        "nodes": plain["nodes"],
                        "target": target,
                        "hard_limit_ms": 30000,
                        "lifetime_s": 300,
                        "known_config_files": [],
                        "state_dir": str(self.cluster.state_dir(pooler["name"])),
                    },
                )
            )
            assert not results[-1].get("failed"), results[-1]
        return results

    def start(self, candidate: str, node: str, *, failpoint: str = "", **changes: Any) -> ModuleRun:
        return start_module("replica_promote", self.arguments(candidate, node, **changes), failpoint=failpoint)

    def switch(self, candidate: str, node: str, **changes: Any) -> dict[str, Any]:
        """A run to its end, with the pooler's guard around it, as the role does it."""
        self.guard("armed", candidate)
        result = self.start(candidate, node, **changes).result()
        writable = self.writable()
        if len(writable) == 1:
            self.guard("disarmed", writable[0])
        return result

    # -- what has to hold

    def writable(self) -> list[str]:
        return writable_nodes(self.cluster.nodes)

    def converge(self, candidate: str, old: str, *, tries: int = 3) -> list[dict[str, Any]]:
        """Run the same command again until it has nothing to do; the first failure must have said what to do."""
        results = []
        for _try in range(tries):
            result = self.switch(candidate, old)
            results.append(result)
            if not result.get("failed"):
                break
            assert result.get("remedy"), result
            assert result.get("state") in ("rolled back", "unfinished", "refused"), result
            writable = self.writable()
            if len(writable) == 1:  # standbys come back within wal_retrieve_retry_interval, or when Patroni looks again
                with suppress(LabError):
                    self.cluster.wait_streaming({node.name for node in self.cluster.nodes} - set(writable), seconds=15)
        assert not results[-1].get("failed"), json.dumps(results[-1], indent=1)[:4000]
        return results

    def assert_settled(self, candidate: str, old: str, *, forked: bool = True) -> None:
        """One writable member, all others stream from it, no leftovers, no commit on the old timeline past the fork."""
        assert self.writable() == [candidate]
        new = self.cluster.node(candidate)
        followers = {node.name for node in self.cluster.nodes} - {candidate}
        self.cluster.wait_streaming(followers)
        assert new.sql("SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'dbops_op_%%'", []) == []
        assert new.sql("SELECT count(*) FROM dbops.operation WHERE state = 'open'") == [(0,)]
        interval = new.sql("SELECT setting FROM pg_settings WHERE name = 'wal_retrieve_retry_interval'")
        assert interval == [("5000",)], interval
        assert not (new.data_dir / "standby.signal").exists()
        for pooler in self.cluster.poolers:
            rows = [row for row in pooler.console("SHOW DATABASES") if row["name"] == ledger_database()]
            assert [(int(row["port"]), int(row["paused"])) for row in rows] == [(new.port, 0)], rows
        if forked:
            self.assert_nothing_past_fork(new, self.cluster.node(old))

    def assert_nothing_past_fork(self, new: Node, old: Node) -> None:
        detail = new.sql(
            "SELECT detail -> 'certificate' FROM dbops.operation WHERE state = 'done' ORDER BY opened_at DESC LIMIT 1"
        )[0][0]
        found = commits_after_fork(self.cluster.bin_dir, old.data_dir, detail["old_timeline"], detail["fork"])
        assert not found, f"{found} commits on timeline {detail['old_timeline']} behind {detail['fork']}"

    def check_ledger(self) -> None:
        """Stop the load, compare every client's log with the primary, start the load again."""
        for writers in self.writers:
            writers.stop()
        primary = self.cluster.primary()
        for writers in self.writers:
            verdict = check(writers.log, lambda: primary.connect("postgres", ledger_database()))
            assert verdict.acknowledged, "the writers acknowledged nothing"
            assert verdict.ok, verdict
        for writers in self.writers:
            writers.start(wait_seconds=30)


def ledger_database() -> str:
    return "accounts"


class Act:
    """A run that can be held at a step (SIGSTOP), so that a fault comes at a known moment."""

    def __init__(self, stage: Scene, **changes: Any) -> None:
        self.stage = stage
        self.old, self.candidate = stage.names()
        self.before = set(journals(stage.cluster, self.old))
        stage.guard("armed", self.candidate)
        self.run: ModuleRun = stage.start(self.candidate, self.old, **changes)

    @property
    def old_node(self) -> Node:
        return self.stage.cluster.node(self.old)

    @property
    def new_node(self) -> Node:
        return self.stage.cluster.node(self.candidate)

    def _reached(self, step: str) -> bool:
        found = set(journals(self.stage.cluster, self.old)) - self.before
        return any(f'"event": "start", "op": "{path.stem}"' in line and f'"step": "{step}"' in line
                   for path in found for line in path.read_text().splitlines())  # fmt: skip

    @contextmanager
    def held_at(self, step: str) -> Iterator[None]:
        until = time.monotonic() + 60
        while not self._reached(step):
            assert self.run.process.poll() is None, self.run.result()
            assert time.monotonic() < until, f"the run never began {step}"
            time.sleep(0.001)
        self.run.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.run.process.send_signal(signal.SIGCONT)

    def end(self) -> dict[str, Any]:
        """The run's result; then the poolers are released as the role does it."""
        result = self.run.result()
        writable = self.stage.writable()
        if len(writable) == 1:
            self.stage.guard("disarmed", writable[0])
        return result

    def converge(self) -> None:
        if self.stage.writable() == [self.old]:  # siblings come back within wal_retrieve_retry_interval
            self.stage.cluster.wait_streaming({node.name for node in self.stage.cluster.nodes} - {self.old})
        self.stage.converge(self.candidate, self.old)
        self.stage.assert_settled(self.candidate, self.old)


@contextmanager
def scene(
    directory: Path, version: str, *, pooler: bool = True, connections: int = 6, **options: Any
) -> Iterator[Scene]:
    with (
        Cluster.create(directory, version=version, pooler=pooler, **options) as cluster,
        under_load(Scene(cluster, directory), connections=connections) as result,
    ):
        yield result


@contextmanager
def under_load(result: Scene, *, connections: int = 6) -> Iterator[Scene]:
    """A new cluster with the ledger, a writer through the pooler and one that goes past it."""
    cluster = result.cluster
    with cluster.primary().connect("app", "accounts") as connection:
        ledger.create(connection)
    cluster.wait_streaming({node.name for node in cluster.nodes[1:]})
    servers = [(node.host, node.port) for node in cluster.nodes]
    passfile = str(cluster.lab_passfile)
    through = [(each.host, each.port) for each in cluster.poolers[:1]]
    for name, endpoints in (("pooled", through), ("direct", servers)):
        if endpoints:
            result.writers.append(
                Writers(
                    result.directory / name, endpoints, connections=connections, think_ms=10.0, passfile=passfile,
                    max_seconds=3000.0,
                )
            )  # fmt: skip
    for writers in result.writers:
        writers.start()
    try:
        yield result
    finally:
        for writers in result.writers:
            writers.stop()


def pause_began(cluster: Cluster, node: str, before: set[Path], *, seconds: float) -> bool:
    """Wait until the newest run on the host of ``node`` has begun its pause."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for path in set(journals(cluster, node)) - before:
            if '"step": "pause_poolers"' in path.read_text():
                return True
        time.sleep(0.003)
    return False


def unreachable(file: Path, *hosts: str) -> Path:
    """An inventory, to be read after the lab's, in which SSH to these hosts fails."""
    if shutil.which("ssh") is None:  # as root tools/bootstrap.sh installs it
        pytest.skip("NO SSH HERE, hosts that cannot be reached are not tested: install openssh-client")
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    file.write_text(json.dumps({"all": {"hosts": dict.fromkeys(hosts, away)}}))
    return file
