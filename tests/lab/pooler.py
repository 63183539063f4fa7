# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One PgBouncer of the lab, in transaction mode, in front of the cluster's primary."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions

from tests.lab import binaries, users
from tests.lab.server import HOST, LabError, Node, alive, wait_for


@dataclass
class Pooler:
    """A PgBouncer process; ``directory`` holds its configuration, user list, pid file and log."""

    name: str
    port: int
    directory: Path
    owner: str
    passfile: Path
    host: str = HOST

    @property
    def config_file(self) -> Path:
        return self.directory / "pgbouncer.ini"

    @property
    def log(self) -> Path:
        return self.directory / "pgbouncer.log"

    @property
    def pid_file(self) -> Path:
        return self.directory / "pgbouncer.pid"

    @property
    def version(self) -> str:
        """For reports: "pgbouncer 1.18"."""
        text = subprocess.run([_program(), "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"PgBouncer (\d+\.\d+)", text)
        return f"pgbouncer {found.group(1) if found else 'of unknown version'}"

    def install(self, primary: Node, passwords: dict[str, str]) -> None:
        users.make_directory(self.directory, self.owner)
        # Plain passwords: from them PgBouncer can do SCRAM on both sides, towards clients and towards servers.
        known = (users.APPLICATION, users.OPERATOR, users.POOLER_ADMIN)
        listing = "".join(f'"{user}" "{passwords[user]}"\n' for user in known)
        userlist = users.write_file(self.directory / "userlist.txt", listing, self.owner)
        words = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": userlist,
            "admin_users": users.POOLER_ADMIN,
            "pool_mode": "transaction",
            "server_tls_sslmode": "prefer",
            "default_pool_size": 30,
            "max_client_conn": 300,
            "ignore_startup_parameters": "extra_float_digits",
            "logfile": self.log,
            "pidfile": self.pid_file,
        }
        database = f"{users.DATABASE} = host={primary.host} port={primary.port} dbname={users.DATABASE}"
        lines = ["[databases]", database, "", "[pgbouncer]", *(f"{key} = {value}" for key, value in words.items())]
        users.write_file(self.config_file, "\n".join(lines) + "\n", self.owner, 0o640)

    def start(self) -> None:
        """Start it as a daemon, and return when its console answers."""
        if not self.running():
            # Of one that was killed. PgBouncer believes it while nobody has reaped that process.
            self.pid_file.unlink(missing_ok=True)
        result = subprocess.run(
            [_program(), "-q", "-d", self.config_file],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            check=False,
            capture_output=True,
            text=True,
            umask=0o077,
            **users.run_as(self.owner),
        )
        if result.returncode != 0:
            raise LabError(f"{self.name}: pgbouncer did not start, see {self.log}: {result.stderr.strip()}")
        wait_for(self._answers, seconds=10, what=f"the console of {self.name}, see {self.log}")

    def _answers(self) -> bool:
        try:
            return bool(self.console("SHOW VERSION"))
        except psycopg2.OperationalError:
            return False

    def pid(self) -> int | None:
        try:
            pid = int(self.pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.config_file) in command.split(b"\0") else None

    def running(self) -> bool:
        return self.pid() is not None

    def stop(self) -> None:
        """End it without waiting for its clients."""
        self.kill(signal.SIGTERM)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        pid = self._signal(number)
        wait_for(lambda: not alive(pid), seconds=10, what=f"{self.name} to end")

    def suspend(self) -> None:
        """It keeps its connections and answers nothing: a hang."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """The end of suspend(); this is not the console's RESUME."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> int:
        pid = self.pid()
        if pid is None:
            raise LabError(f"{self.name} is not running")
        os.kill(pid, number)
        return pid

    def dsn(self, dbname: str = users.DATABASE, user: str = users.APPLICATION) -> str:
        """A connection string through the pooler; the password is in the passfile that it names."""
        return psycopg2.extensions.make_dsn(
            host=self.host, port=self.port, user=user, dbname=dbname, passfile=str(self.passfile)
        )

    def console(self, statement: str) -> list[dict[str, Any]]:
        """Run one command of the admin console; the rows of a SHOW, an empty list for the others."""
        connection = psycopg2.connect(self.dsn("pgbouncer", users.POOLER_ADMIN), connect_timeout=5)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                if cursor.description is None:
                    return []
                names = [column.name for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        finally:
            connection.close()

    def destroy(self) -> None:
        if self.running():
            self.kill(signal.SIGKILL)  # also ends a suspended one


def _program() -> Path:
    program = binaries.pgbouncer()
    if program is None:
        raise binaries.MissingProgram("pgbouncer")
    return program
