# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster of the lab that is registered with repmgr, which is Debian's, unpacked.

repmgr reaches other hosts by ssh. All members are on this one, so ``ssh`` is a script that executes the command here:
its switchovers are measured without what ssh costs.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2.extensions
from psycopg2 import sql

from tests.lab import binaries, users
from tests.lab.cluster import HBA, Cluster
from tests.lab.server import LabError, Node, wait_for

USER = "repmgr"
_SSH = """#!/bin/sh
# "ssh -o Batchmode=yes ... host command" without ssh.
while [ $# -gt 0 ]; do
    case $1 in
        -o) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
shift
exec sh -c "$*"
"""


@dataclass
class RepmgrCluster(Cluster):
    @classmethod
    def register(cls, directory: Path, *, stop_command: bool = True, **how: Any) -> RepmgrCluster:
        """As Cluster.create(), then registered; returns when repmgr finds its prechecks good. Without ``stop_command``
        repmgr stops servers as it does by default, by pg_ctl that does not wait."""
        created = cls.create(directory, version=binaries.RIVALS, **how)
        assert isinstance(created, cls)
        try:
            created._register(stop_command=stop_command)
        except BaseException:
            created.destroy()
            raise
        return created

    def switchover(self, candidate: str, *words: str) -> subprocess.CompletedProcess[str]:
        """``repmgr standby switchover --siblings-follow``, on the candidate."""
        return self._repmgr(self.node(candidate), "standby", "switchover", "--siblings-follow", *words)

    def _repmgr(self, node: Node, *words: str) -> subprocess.CompletedProcess[str]:
        options = users.run_as(self.owner)
        options["env"] = {**options["env"], "PATH": f"{self.home}/bin:{self.bin_dir}:{options['env']['PATH']}"}
        return subprocess.run(
            [self.bin_dir / "repmgr", "--config-file", str(node.directory / "repmgr.conf"), *words],
            cwd=node.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
            **options,
        )

    def _register(self, *, stop_command: bool) -> None:
        primary = self.nodes[0]
        password = users.load_secrets(self.secrets_file)[users.REPLICATION_USER]
        create = sql.SQL("CREATE ROLE {} LOGIN SUPERUSER REPLICATION PASSWORD {}")
        primary.sql(create.format(sql.Identifier(USER), sql.Literal(password)))
        primary.sql(f"CREATE DATABASE {USER} OWNER {USER}")
        passfile = users.write_file(self.home / "repmgr.pass", f"127.0.0.1:*:*:{USER}:{password}\n", self.owner)
        ssh = users.make_directory(self.home / "bin", self.owner) / "ssh"
        users.write_file(ssh, _SSH, self.owner, 0o755)
        for number, node in enumerate(self.nodes, start=1):
            users.write_file(node.hba_file, HBA, self.owner, 0o640)
            start, stop = (" ".join(node.service[verb]) for verb in ("start", "stop"))
            conninfo = psycopg2.extensions.make_dsn(
                host=node.host, port=node.port, user=USER, dbname=USER, passfile=str(passfile), connect_timeout=2
            )
            words = {
                "node_id": number,
                "node_name": node.name,
                "conninfo": conninfo,
                "data_directory": node.data_dir,
                "pg_bindir": self.bin_dir,
                "passfile": passfile,
                "service_start_command": start,
                # The default stops by the directory of the configuration where that is given, which fails here.
                **({"service_stop_command": stop, "config_directory": node.config_dir} if stop_command else {}),
                "log_level": "INFO",
            }
            text = "".join(f"{key}='{value}'\n" for key, value in words.items())
            users.write_file(node.directory / "repmgr.conf", text, self.owner)
        for node in self.nodes[1:]:  # without slots, as repmgr's default is; wal_keep_size keeps what is needed
            node.sql("ALTER SYSTEM RESET primary_slot_name")
            node.reload()
        wait_for(lambda: not primary.sql("SELECT 1 FROM pg_replication_slots WHERE active"), seconds=30,
                 what="the standbys to stream without slots")  # fmt: skip
        primary.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        self.wait_streaming(node.name for node in self.nodes[1:])
        for node in self.nodes:
            role = "primary" if node is primary else "standby"
            more = () if node is primary else ("--upstream-node-id=1",)
            done = self._repmgr(node, role, "register", "--force", *more)
            if done.returncode != 0:
                raise LabError(f"repmgr {role} register on {node.name}: {done.stdout}")
        tried = self.switchover(self.nodes[1].name, "--dry-run")
        if tried.returncode != 0:
            raise LabError(f"repmgr standby switchover --dry-run: {tried.stdout}")
