# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's own programs on real servers: what a receipt says is what was written, and how pg_rewind refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import rewind
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.client import Endpoint
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.local import LocalServer, Service
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.lsn import parse_lsn

from tests.lab import users
from tests.lab.binaries import MissingProgram
from tests.lab.cluster import Cluster
from tests.lab.server import Node

# Those whose build has pg_waldump.
VERSIONS = ("15-debian", "18")


def local_server(node: Node, bin_dir: Path | str) -> LocalServer:
    return LocalServer(node.data_dir, Service.of(node.service), Clock(), bin_dir=str(bin_dir))


def made(directory: Path, version: str, **words: Any) -> Cluster:
    try:
        return Cluster.create(directory, version, **words)
    except MissingProgram as reason:
        pytest.skip(f"NOT TESTED with {version}: {reason}")


def position(node: Node) -> int:
    return parse_lsn(node.sql("SELECT pg_current_wal_insert_lsn()::text")[0][0])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_committed_transaction_and_no_other(version: str, tmp_path: Path) -> None:
    settings = {"max_prepared_transactions": "5"}
    with made(tmp_path / "lab", version, members=("pg1",), settings=settings) as cluster:
        node = cluster.node("pg1")
        node.sql("CREATE TABLE t (i int PRIMARY KEY, s text); INSERT INTO t VALUES (0), (1)")
        start = position(node)
        committed = []

        def run(*statements: str) -> None:
            with node.connect() as session, session.cursor() as cursor:
                cursor.execute("BEGIN; SELECT pg_current_xact_id()::text")
                xid = int(cursor.fetchone()[0])
                for statement in statements:
                    cursor.execute(statement)
                if statements[-1] != "ROLLBACK":
                    committed.append(xid)

        run("INSERT INTO t VALUES (2), (3)", "COMMIT")
        run("INSERT INTO t VALUES (4)", "SAVEPOINT a", "INSERT INTO t VALUES (5)", "ROLLBACK TO a",
            "INSERT INTO t VALUES (6)", "RELEASE a", "COMMIT")  # fmt: skip
        run("UPDATE t SET s = 'x' WHERE i = 1", "DELETE FROM t WHERE i = 0", "COMMIT")
        run("INSERT INTO t VALUES (7)", "ROLLBACK")
        run("COMMIT")
        with node.connect() as session, session.cursor() as cursor:
            cursor.execute("BEGIN; SELECT pg_current_xact_id()::text")
            committed.append(int(cursor.fetchone()[0]))
            cursor.execute("COPY t (i) FROM PROGRAM 'seq 100 149'")
            cursor.execute("COMMIT")
        run("INSERT INTO t VALUES (8)", "PREPARE TRANSACTION 'p'")
        node.sql("COMMIT PREPARED 'p'")
        run("INSERT INTO t VALUES (9)", "PREPARE TRANSACTION 'never committed'")
        never = committed.pop()
        end = position(node)
        key = node.sql(
            "SELECT concat_ws('/', dattablespace, d.oid, pg_relation_filenode('t')) FROM pg_database d"
            " WHERE datname = current_database()"
        )[0][0]
        node.stop()
        lost = rewind.read_lost(local_server(node, cluster.bin_dir), [(1, start, end)])
        assert [each.xid for each in lost] == committed
        assert never not in committed
        assert [each.rows.get(key, {}) for each in lost] == [
            {"inserted": 2}, {"inserted": 2}, {"updated": 1, "deleted": 1}, {}, {"inserted": 50}, {"inserted": 1},
        ]  # fmt: skip
        assert all(start <= parse_lsn(each.lsn) < end for each in lost)
        # WAL that is not there any more cannot be receipted, and that is said.
        with pytest.raises(DbopsError, match="pg_waldump, timeline 1") as raised:
            rewind.read_lost(local_server(node, cluster.bin_dir), [(1, end + (64 << 20), end + (65 << 20))])
        assert "put the missing WAL files back" in raised.value.remedy


def test_programs_that_are_not_installed(tmp_path: Path) -> None:
    """The npm build of 15 has a server and nothing else."""
    with Cluster.create(tmp_path / "lab", "15", members=("pg1",)) as cluster:
        node = cluster.node("pg1")
        node.stop()
        with pytest.raises(DbopsError, match="pg_waldump is not in") as raised:
            rewind.read_lost(local_server(node, cluster.bin_dir), [(1, 1 << 24, 1 << 25)])
        assert "only a new base backup" in raised.value.remedy


@pytest.mark.parametrize("version", VERSIONS)
def test_how_pg_rewind_refuses(version: str, tmp_path: Path) -> None:
    """Nothing to rewind is no success: the caller saw the two diverge. It logs in with a password or a passfile of
    root's, and never prints either."""
    with made(tmp_path / "lab", version, members=("pg1", "pg2")) as cluster:
        source, target = cluster.nodes
        cluster.wait_streaming({"pg2"})
        target.stop()
        local = local_server(target, cluster.bin_dir)
        passfile = tmp_path / "root.pass"
        passfile.write_text(cluster.lab_passfile.read_text())
        passfile.chmod(0o600)
        login = Endpoint("pg1", source.host, source.port, user=users.SUPERUSER, passfile=str(passfile))
        secret = json.loads(cluster.secrets_file.read_text())[users.SUPERUSER]
        for endpoint in (login, replace(login, passfile="", password=secret)):
            with pytest.raises(DbopsError, match=r"pg_rewind --dry-run failed: .*no rewind required") as raised:
                rewind.rewind(local, endpoint, dry_run=True, timeout=60)
            assert secret not in raised.value.message
        with pytest.raises(DbopsError, match=r"pg_rewind failed: .*password authentication failed") as raised:
            rewind.rewind(local, replace(login, passfile="", password="wrong-secret"), dry_run=False, timeout=60)
        assert "wrong-secret" not in raised.value.message
        with pytest.raises(DbopsError, match=r"pg_basebackup failed: .*password authentication failed") as raised:
            rewind.base_backup(
                local, replace(login, passfile="", password="wrong-secret"), tmp_path / "new", timeout=60
            )
        assert "was not touched" in raised.value.remedy
