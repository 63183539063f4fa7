# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster whose primary is lost under load: fence, failover and rejoin as the role does them, and what must hold."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.scene import ledger_database
from tests.lab import faults, ledger, users
from tests.lab.checker import Entry, read_log, writable_nodes
from tests.lab.cluster import Cluster
from tests.lab.operation import ModuleRun, start_module
from tests.lab.server import Node
from tests.lab.writer import Writers


@dataclass
class Stage:
    """``writers`` go directly to whoever takes writes."""

    cluster: Cluster
    writers: Writers

    def names(self) -> tuple[str, str, str]:
        """The primary, and the two others by name."""
        primary = self.cluster.primary().name
        others = sorted(node.name for node in self.cluster.nodes if node.name != primary)
        return primary, others[0], others[1]

    def node(self, name: str) -> Node:
        return self.cluster.node(name)

    # -- breaking it

    def lose(self, name: str, *, unsent: float = 0.0) -> None:
        """SIGKILL to the primary under load; with ``unsent`` seconds of commits that no standby has received."""
        node = self.node(name)
        if unsent:
            with faults.cut_replication(node):
                time.sleep(unsent)
                node.kill()
        else:
            node.kill()

    # -- what the role does

    def _plain(self, node: str, **changes: Any) -> dict[str, Any]:
        plain = self.cluster.module_arguments(node, node)
        for word in ("mode", "candidate", "poolers"):
            plain.pop(word)
        return {**plain, "node": node, **changes}

    def fence(self, name: str, *, serve_wal: bool = True, failpoint: str = "") -> dict[str, Any]:
        """pg_member, state=fenced, on the host of the lost primary; what it says of the fence."""
        result = self.start_fence(name, serve_wal=serve_wal, failpoint=failpoint).result()
        if failpoint:
            assert result == {}, "the failpoint was not reached"
            return {}
        assert not result.get("failed"), result
        fence: dict[str, Any] = result["fence"]
        return fence

    def start_fence(self, name: str, *, serve_wal: bool = True, failpoint: str = "") -> ModuleRun:
        arguments = self._plain(name, state="fenced", serve_wal=serve_wal, stop_timeout=15)
        return start_module("pg_member", arguments, failpoint=failpoint)

    def start_failover(self, lost: str, *, failpoint: str = "", **changes: Any) -> ModuleRun:
        here = next(node.name for node in self.cluster.nodes if node.name != lost)
        options = {"mode": "failover", "failed_primary": lost, "follow_timeout": 20, "salvage_timeout": 20}
        return start_module("replica_promote", self._plain(here, **{**options, **changes}), failpoint=failpoint)

    def failover(self, lost: str, **changes: Any) -> dict[str, Any]:
        return self.start_failover(lost, **changes).result()

    def rejoin(self, name: str, *, failpoint: str = "", **changes: Any) -> dict[str, Any]:
        """pg_member, state=following, on the host of ``name``."""
        primary = self.cluster.primary() if not changes.get("primary") else self.node(changes.pop("primary"))
        options = {"state": "following", "primary": primary.name, "follow_timeout": 40}
        return start_module("pg_member", self._plain(name, **{**options, **changes}), failpoint=failpoint).result()

    def start_guarded(self, name: str, *, seconds: int = 10) -> subprocess.CompletedProcess[str]:
        """As its unit would with the start guard before it: the server is started if the guard ends with 0."""
        others = [
            f"host={node.host} port={node.port} user={users.REPLICATION_USER}"
            f" passfile={self.cluster.replication_passfile}"
            for node in self.cluster.nodes
            if node.name != name
        ]
        script = users.CHECKOUT / "roles" / "promote_replica" / "files" / "start_guard.py"
        guard = [sys.executable, str(script), str(seconds), str(self.node(name).data_dir), *others]
        done = subprocess.run(guard, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 0:
            self.node(name).start()
        return done

    # -- what must hold

    def writable(self) -> list[str]:
        return writable_nodes(self.cluster.nodes)

    def lost_and_unknown(self) -> tuple[list[Entry], list[Entry]]:
        """Stops the load. Of what the primary has not: acknowledged transfers, and those of unknown outcome."""
        self.writers.stop()
        rows = self.cluster.primary().sql("SELECT DISTINCT id / 2 FROM transaction_journal", dbname=ledger_database())
        there = {row[0] for row in rows}
        entries = read_log(self.writers.log)
        assert any(entry.outcome == "acknowledged" for entry in entries), "the writers acknowledged nothing"
        missing = [entry for entry in entries if entry.id and entry.id not in there]
        return (
            [entry for entry in missing if entry.outcome == "acknowledged"],
            [entry for entry in missing if entry.outcome == "unknown"],
        )

    def assert_settled(self, primary: str) -> None:
        """One writable member, all others stream from it, no mark and no temporary setting is left anywhere."""
        assert self.writable() == [primary]
        self.cluster.wait_streaming({node.name for node in self.cluster.nodes} - {primary})
        for node in self.cluster.nodes:
            marks = node.sql("SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'dbops_op_%%'", [])
            assert marks == [], (node.name, marks)
            assert not (node.data_dir / "postgresql.auto.conf.dbops").exists()
            settings = node.sql(
                "SELECT name, setting FROM pg_settings WHERE name IN"
                " ('wal_retrieve_retry_interval', 'recovery_target_timeline') ORDER BY name"
            )
            assert settings == [("recovery_target_timeline", "latest"), ("wal_retrieve_retry_interval", "5000")], node
        assert self.node(primary).sql("SELECT count(*) FROM dbops.operation WHERE state = 'open'") == [(0,)]


@contextmanager
def stage(directory: Path, version: str, *, connections: int = 6, **options: Any) -> Iterator[Stage]:
    with Cluster.create(directory, version=version, **options) as cluster:
        with cluster.primary().connect("app", "accounts") as connection:
            ledger.create(connection)
        cluster.wait_streaming({node.name for node in cluster.nodes[1:]})
        servers = [(node.host, node.port) for node in cluster.nodes]
        writers = Writers(
            directory / "writers", servers, connections=connections, think_ms=10.0,
            passfile=str(cluster.lab_passfile), max_seconds=3000.0,
        )  # fmt: skip
        writers.start()
        try:
            yield Stage(cluster, writers)
        finally:
            writers.stop()


def receipt_of(result: dict[str, Any]) -> dict[str, Any]:
    """The whole receipt, from its file."""
    receipt: dict[str, Any] = json.loads(Path(result["receipt"]["path"]).read_text())
    return receipt
