# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the integration tests do with a cluster: run the module on it, see what changed, and bend it a little."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import psycopg2

from tests.lab import users
from tests.lab.cluster import Cluster
from tests.lab.operation import run_module, switchover_arguments
from tests.lab.pooler import Pooler
from tests.lab.server import LabError, Node, wait_for

# Logical slots and prepared transactions are among what is tested.
SETTINGS = {"wal_level": "logical", "max_prepared_transactions": "5"}


class Standing:
    """A cluster for many tests, made when first asked for, and again when a test has spoiled it."""

    def __init__(self, directory: Path, version: str, **how: Any) -> None:
        self.directory = directory
        self.version = version
        self.how = how
        self.cluster: Cluster | None = None
        self.touched = False

    def get(self) -> Cluster:
        if self.touched or (self.cluster is not None and illness(self.cluster, seconds=0)):
            self.destroy()
        if self.cluster is None:
            self.cluster = Cluster.create(self.directory, self.version, settings=SETTINGS, **self.how)
            self.touched = False
        return self.cluster

    def destroy(self) -> None:
        if self.cluster is not None:
            self.cluster.destroy()
        self.cluster = None


class Scene:
    """A cluster and who is who in it when the test begins. With two members there is no sibling."""

    _arguments: ClassVar[dict[tuple[int, int, int], dict[str, Any]]] = {}

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.primary = cluster.primary()
        self.candidate, *others = (node for node in cluster.nodes if node is not self.primary)
        self.others = others

    @property
    def sibling(self) -> Node:
        return self.others[0]

    @property
    def pooler(self) -> Pooler:
        assert self.cluster.pooler
        return self.cluster.pooler

    def arguments(self, candidate: Node | None = None, node: Node | None = None) -> dict[str, Any]:
        """replica_promote's arguments, made once for each cluster and pair: what the role sees on the other hosts
        costs a module run for each of them."""
        candidate, node = candidate or self.candidate, node or self.primary
        key = (self.primary.port, candidate.port, node.port)
        if key not in self._arguments:
            self._arguments[key] = switchover_arguments(self.cluster, candidate.name, node.name)
        return copy.deepcopy(self._arguments[key])

    def promote(self, *, check: bool = False, **changes: Any) -> dict[str, Any]:
        return run_module("replica_promote", {**self.arguments(), **changes}, check=check)

    def nodes(self, member: Node, **words: Any) -> list[dict[str, Any]]:
        """The option ``nodes`` with other words for one member."""
        return [{**node, **words} if node["name"] == member.name else node for node in self.arguments()["nodes"]]

    def poolers(self, **words: Any) -> list[dict[str, Any]]:
        return [{**pooler, **words} for pooler in self.arguments()["poolers"]]

    def point_pooler(self, node: Node) -> None:
        """What pgbouncer_guard does when it stages: the file changes, the process does not know."""
        text = self.pooler.config_file.read_text()
        users.write_file(self.pooler.config_file, _pointed(text, node.port), self.cluster.owner, 0o640)

    def switch(self, **changes: Any) -> dict[str, Any]:
        """A switchover that must succeed; the scene's names are those of before."""
        if self.cluster.poolers:
            self.point_pooler(self.candidate)
        result = self.promote(**changes)
        assert (result["state"], result["changed"]) == ("switched over", True), result.get("msg")
        return result

    def settle(self) -> None:
        """Every standby has replayed what the primary has written."""
        written = self.primary.sql("SELECT pg_current_wal_lsn()::text")[0][0]
        everywhere((self.candidate, *self.others), f"SELECT 1 WHERE pg_last_wal_replay_lsn() >= '{written}'")


def everywhere(nodes: Iterable[Node], statement: str, *, seconds: float = 20) -> None:
    """Wait until ``statement`` has rows on each of ``nodes``."""
    for node in nodes:
        wait_for(partial(node.sql, statement), seconds=seconds, what=f"{node.name}: {statement}")


# ---------------------------------------------------------------------------------------------------- what is the case


def snapshot(cluster: Cluster) -> dict[str, Any]:
    """All that a refused or predicted switchover must leave alone."""
    return {
        **{node.name: _state(node) for node in cluster.nodes},
        **{pooler.name: _pooler_state(pooler) for pooler in cluster.poolers},
        "journals": sorted(str(path) for path in (cluster.directory / "state").rglob("*.jsonl")),
        "archive": sorted(path.name for path in cluster.archive.glob("*.history")),
    }


def _state(node: Node) -> dict[str, Any]:
    if not node.running():
        return {"running": False}
    operations = "SELECT id, state FROM dbops.operation ORDER BY 1"
    known = node.sql("SELECT to_regclass('dbops.operation') IS NOT NULL")[0][0]
    return {
        "role": node.sql("SELECT pg_is_in_recovery(), pg_postmaster_start_time()::text"),
        "slots": node.sql("SELECT slot_name, slot_type FROM pg_replication_slots WHERE NOT temporary ORDER BY 1"),
        "schema": node.sql("SELECT nspname FROM pg_namespace WHERE nspname = 'dbops'"),
        "operations": node.sql(operations) if known else [],
        "altered": (node.data_dir / "postgresql.auto.conf").read_text(),
        "signal": (node.data_dir / "standby.signal").exists(),
    }


def _pooler_state(pooler: Pooler) -> dict[str, Any]:
    if not pooler.running():
        return {"running": False}
    words = ("name", "host", "port", "paused")
    databases = [{word: row[word] for word in words} for row in pooler.console("SHOW DATABASES")]
    return {"databases": databases, "file": pooler.config_file.read_text()}


def configuration(cluster: Cluster) -> dict[str, str]:
    """What no switchover changes: the files of the servers, and the pooler's but for where its database is."""
    files = [(node.config_dir / name) for node in cluster.nodes for name in ("postgresql.conf", "pg_hba.conf")]
    texts = {str(path): path.read_text() for path in files}
    return texts | {pooler.name: _pointed(pooler.config_file.read_text(), 0) for pooler in cluster.poolers}


def _pointed(text: str, port: int) -> str:
    return re.sub(r"(?m)^(accounts = host=\S+ port=)\d+", rf"\g<1>{port}", text)


def illness(cluster: Cluster, *, seconds: float = 20) -> str:
    """What is wrong with the cluster after ``seconds`` to recover; empty when it is well."""
    last = ""

    def well() -> bool:
        nonlocal last
        try:
            last = _illness(cluster)
        except (LabError, psycopg2.Error) as error:
            last = str(error)
        return not last

    with suppress(LabError):
        wait_for(well, seconds=seconds, what="the cluster to be well", interval=0.2)
    return last


def _illness(cluster: Cluster) -> str:
    primary = cluster.primary()
    for node in cluster.nodes:
        leftovers = node.sql(
            "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'dbops_op_%' OR slot_type = 'logical'"
        )
        if leftovers:
            return f"{node.name} has the slots {leftovers}"
        if node is primary:
            continue
        if node.sql("SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'") != [(primary.port,)]:
            return f"{node.name} does not stream from {primary.name}"
        if node.sql("SELECT pg_is_wal_replay_paused()")[0][0]:
            return f"the replay of {node.name} is paused"
    for pooler in cluster.poolers:
        rows = [row for row in pooler.console("SHOW DATABASES") if row["name"] == users.DATABASE]
        if [(int(row["port"]), int(row["paused"])) for row in rows] != [(primary.port, 0)]:
            return f"{pooler.name} does not serve {primary.name}: {rows}"
        text = pooler.config_file.read_text()
        if text != _pointed(text, primary.port):
            return f"the file of {pooler.name} does not point to {primary.name}"
    return ""


# -------------------------------------------------------------------------------------------------- bending it a little


@contextmanager
def configured(node: Node, *, restart: bool = False, **changes: str) -> Iterator[None]:
    """The node's postgresql.conf with other settings."""
    before = {key: node.settings().get(key) for key in changes}
    node.configure(**changes)
    try:
        if restart:
            _restart(node)
        yield
    finally:
        node.configure(**before)
        if restart:
            _restart(node)


def _restart(node: Node) -> None:
    node.stop()
    node.start()


@contextmanager
def following(standby: Node, upstream: Node | None) -> Iterator[None]:
    """The standby streams from ``upstream``, or from nobody."""
    before = dict(standby.sql("SELECT name, setting FROM pg_settings WHERE name LIKE 'primary\\_%'"))
    conninfo = re.sub(r"port='?\d+'?", f"port={upstream.port}", before["primary_conninfo"]) if upstream else ""

    def follow(primary_conninfo: str, primary_slot_name: str, ports: list[tuple[Any, ...]]) -> None:
        standby.sql("ALTER SYSTEM SET primary_conninfo = %s", (primary_conninfo,))
        standby.sql("ALTER SYSTEM SET primary_slot_name = %s", (primary_slot_name,))
        standby.reload()
        streams = "SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'"
        wait_for(
            lambda: standby.sql(streams) == ports, seconds=20, what=f"{standby.name} to follow {ports or 'nobody'}"
        )

    was = standby.sql("SELECT sender_port FROM pg_stat_wal_receiver")
    follow(conninfo, "", [(upstream.port,)] if upstream else [])
    try:
        yield
    finally:
        follow(before["primary_conninfo"], before["primary_slot_name"], was)


@contextmanager
def slots(node: Node, *names: str, logical: bool = False) -> Iterator[None]:
    create = "pg_create_logical_replication_slot" if logical else "pg_create_physical_replication_slot"
    plugin = ", 'pgoutput'" if logical else ""
    try:
        for name in names:
            node.sql(f"SELECT {create}('{name}'{plugin})")
        yield
    finally:
        node.sql(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = ANY(%s)",
            (list(names),),
        )


@contextmanager
def busy(node: Node, statement: str, *, seen: str) -> Iterator[None]:
    """A session that executes ``statement`` for as long as the test lasts; ``seen`` is a query that has rows then."""
    connection = node.connect(dbname=users.DATABASE)
    pid = connection.get_backend_pid()

    def execute() -> None:
        with suppress(psycopg2.Error), connection.cursor() as cursor:
            cursor.execute(statement)

    thread = threading.Thread(target=execute)
    thread.start()
    try:
        wait_for(lambda: node.sql(seen), seconds=20, what=seen)
        yield
    finally:
        node.sql("SELECT pg_terminate_backend(%s)", (pid,))
        thread.join()
        connection.close()


@contextmanager
def in_transaction(node: Node, *statements: str) -> Iterator[None]:
    """A session that is idle in a transaction after ``statements``."""
    connection = node.connect(dbname=users.DATABASE)
    try:
        with connection.cursor() as cursor:
            cursor.execute(";".join(["BEGIN", "SELECT txid_current()", *statements]))
        yield
    finally:
        connection.close()


@contextmanager
def pooler_file(scene: Scene, *, restart: bool = False, **changes: str) -> Iterator[None]:
    """pgbouncer.ini with other settings, loaded."""
    pooler, before = scene.pooler, scene.pooler.config_file.read_text()
    text = re.sub(rf"(?m)^({'|'.join(changes)}) = .*\n", "", before)
    text += "".join(f"{key} = {value}\n" for key, value in changes.items())
    try:
        _load(scene, text, restart=restart)
        yield
    finally:
        _load(scene, before, restart=restart)
        assert pooler.config_file.read_text() == before


@contextmanager
def pooled_database(scene: Scene, line: str) -> Iterator[None]:
    """pgbouncer.ini with one more database, loaded. Only that line goes again: a switchover may have changed others."""
    pooler = scene.pooler
    _load(scene, pooler.config_file.read_text().replace("[databases]\n", f"[databases]\n{line}\n"), restart=False)
    try:
        yield
    finally:
        assert f"\n{line}\n" in pooler.config_file.read_text()
        _load(scene, pooler.config_file.read_text().replace(f"{line}\n", ""), restart=False)


def read_only_database(scene: Scene) -> AbstractContextManager[None]:
    """A second pool that leads to the sibling, for reading."""
    return pooled_database(
        scene, f"accounts_ro = host={scene.sibling.host} port={scene.sibling.port} dbname={users.DATABASE}"
    )


def _load(scene: Scene, text: str, *, restart: bool) -> None:
    users.write_file(scene.pooler.config_file, text, scene.cluster.owner, 0o640)
    if restart:
        scene.pooler.stop()
        scene.pooler.start()
    else:
        scene.pooler.console("RELOAD")


# ---------------------------------------------------------------------------------------------------------- the archive


def holes(cluster: Cluster) -> list[str]:
    """WAL segments that are missing in the archive: within a timeline, or where one takes over from the one before.

    The segment in which a timeline ends is archived under the next timeline's name, with what it had up to the fork.
    """
    found: dict[int, set[int]] = {}
    for path in cluster.archive.iterdir():
        if re.fullmatch(r"[0-9A-F]{24}", path.name):
            timeline, log, segment = (int(path.name[at : at + 8], 16) for at in (0, 8, 16))
            found.setdefault(timeline, set()).add(log * 256 + segment)
    missing = []
    for timeline, numbers in sorted(found.items()):
        first, last = min(numbers), max(numbers)
        if timeline - 1 in found:
            first = min(first, max(found[timeline - 1]) + 1)
            missing += [f"{timeline:08X}.history"] * (not (cluster.archive / f"{timeline:08X}.history").exists())
        missing += [f"{timeline:08X}{n // 256:08X}{n % 256:08X}" for n in range(first, last + 1) if n not in numbers]
    return missing


def archive_all(node: Node) -> None:
    """What this primary has written so far is in the archive on return."""
    segment = node.sql("SELECT pg_walfile_name(pg_logical_emit_message(false, 'test', 'x'))")[0][0]
    node.sql("SELECT pg_switch_wal()")
    archived = "SELECT last_archived_wal >= %s FROM pg_stat_archiver"
    wait_for(lambda: node.sql(archived, (segment,)) == [(True,)], seconds=30, what=f"{segment} to be archived")
