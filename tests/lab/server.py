# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One PostgreSQL server of the lab, and the processes and ports of this machine."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions

from tests.lab import users
from tests.lab.service import Unit
from tests.lab.waiting import LabError, wait_for

HOST = "127.0.0.1"
LAB_DIRECTORY = Path(__file__).resolve().parent


def free_port() -> int:
    """A free TCP port below the ephemeral range.

    A port inside that range can be taken by some client's outgoing connection while its server is down, and a client
    that retries on such a port can even connect to itself.
    """
    ceiling = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _try in range(1000):
        port = random.randrange(min(15000, ceiling - 2000), ceiling)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise LabError(f"no free port below {ceiling}")


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def children(pid: int) -> dict[int, str]:
    """The living children of a process: pid -> command line (PostgreSQL writes its title there)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue  # ended meanwhile
            if parent == pid and title:
                found[int(entry.name)] = title
    return found


def working_below(directory: Path) -> list[int]:
    """Daemons whose working directory is in ``directory``: a server, its children, and whatever these run.

    A process with a terminal is left out: it is the shell of somebody who looks around there.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            terminal = (entry / "stat").read_text().rpartition(")")[2].split()[4]
            if terminal == "0" and (entry / "cwd").readlink().is_relative_to(directory):
                found.append(int(entry.name))
        except OSError:
            continue  # ended meanwhile, or somebody else's
    return found


def interpreter(owner: str) -> str:
    """A Python for the service script. The lab user may be unable to enter the directory of the one that runs us."""
    system = "/usr/bin/python3"
    return system if owner and os.access(system, os.X_OK) else sys.executable


@dataclass
class Node:
    """A member of a cluster. ``directory`` holds data/, conf/, postgres.log and the service's description."""

    name: str
    port: int
    directory: Path
    bin_dir: Path
    owner: str
    passfile: Path  # every user's password, for the lab alone
    host: str = HOST

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def config_dir(self) -> Path:
        return self.directory / "conf"

    @property
    def hba_file(self) -> Path:
        return self.config_dir / "pg_hba.conf"

    @property
    def ident_file(self) -> Path:
        return self.config_dir / "pg_ident.conf"

    @property
    def service(self) -> dict[str, Any]:
        """The ``service`` of the collection's member data."""
        return {"manager": "command", "name": self.name, "start": self._service("start"), "stop": self._service("stop")}

    def _service(self, verb: str) -> list[str]:
        script = self.directory / "service.py"
        return [interpreter(self.owner), "-I", str(script), str(self.directory), verb]

    def start(self) -> None:
        self._run_service("start")

    def stop(self) -> None:
        """A fast shutdown, waited for."""
        self._run_service("stop")

    def reload(self) -> None:
        """Reload the configuration and pg_hba.conf; sessions that start after the return have the new ones."""

        def loaded() -> list[tuple[Any, ...]]:
            return self.sql("SELECT pg_conf_load_time()")  # what a new session got from the postmaster

        before = loaded()
        self._run_service("reload")
        wait_for(lambda: loaded() != before, seconds=10, what=f"{self.name} to reload its configuration")

    def _run_service(self, verb: str) -> None:
        result = subprocess.run(self._service(verb), check=False, capture_output=True, text=True, cwd="/")
        if result.returncode != 0:
            raise LabError(f"{self.name}: {verb} failed: {result.stderr.strip()}")

    def pid(self) -> int | None:
        return Unit(self.directory).pid()

    def running(self) -> bool:
        return self.pid() is not None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal the postmaster; after SIGKILL wait until it and its children are gone, so that it can start again."""
        pid = self.pid()
        if pid is None:
            raise LabError(f"{self.name} is not running")
        family = [pid, *children(pid)]
        os.kill(pid, number)
        if number == signal.SIGKILL:

            def gone() -> bool:  # and reaped: its lock file counts for as long as its pid does
                return not Path(f"/proc/{pid}").exists() and not any(map(alive, family))

            wait_for(gone, seconds=10, what=f"the processes of {self.name} to end")

    def process(self, kind: str) -> list[int]:
        """The pids of the postmaster's children of one kind: "walreceiver", "walsender", "startup", "archiver", ..."""
        pid = self.pid()
        titles = children(pid) if pid else {}
        return [
            child
            for child, title in titles.items()
            if re.match(rf"postgres: (\S+: )?{kind}", title)  # cluster_name, which Patroni makes that of the cluster
        ]

    def dsn(self, user: str = users.SUPERUSER, dbname: str = "postgres") -> str:
        """A connection string without a password in it: it names the lab's passfile."""
        return psycopg2.extensions.make_dsn(
            host=self.host, port=self.port, user=user, dbname=dbname, passfile=str(self.passfile)
        )

    def connect(self, user: str = users.SUPERUSER, dbname: str = "postgres", **options: Any) -> Any:
        """A plain psycopg2 connection in autocommit mode."""
        options = {"connect_timeout": 5, "application_name": "lab", **options}
        connection = psycopg2.connect(self.dsn(user, dbname), **options)
        connection.autocommit = True
        return connection

    def sql(
        self, statement: Any, params: Any = None, *, user: str = users.SUPERUSER, dbname: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own; its rows, or an empty list."""
        connection = self.connect(user, dbname)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, params)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def log_text(self) -> str:
        return (self.directory / "postgres.log").read_text(errors="replace")

    def settings(self) -> dict[str, str]:
        """Its postgresql.conf. What ALTER SYSTEM wrote is elsewhere, and wins."""
        pairs = (line.split(" = ", 1) for line in (self.config_dir / "postgresql.conf").read_text().splitlines())
        return {key: value[1:-1].replace("''", "'") for key, value in pairs}

    def configure(self, **changes: str | None) -> None:
        """Change postgresql.conf (None takes a setting out); a running server has reloaded it on return."""
        self._write_settings({**self.settings(), **changes})
        if self.running():
            self.reload()

    def _write_settings(self, settings: Mapping[str, str | None]) -> None:
        quoted = {key: value.replace("'", "''") for key, value in settings.items() if value is not None}
        text = "".join(f"{key} = '{value}'\n" for key, value in quoted.items())
        users.write_file(self.config_dir / "postgresql.conf", text, self.owner, 0o640)

    def install(self, hba: str, settings: Mapping[str, str]) -> None:
        """Write what surrounds the data directory: configuration, service script and its description."""
        users.make_directory(self.directory, self.owner)
        users.make_directory(self.config_dir, self.owner)
        users.write_file(self.hba_file, hba, self.owner, 0o640)
        users.write_file(self.ident_file, "", self.owner, 0o640)
        shutil.copy(LAB_DIRECTORY / "service.py", self.directory / "service.py")
        (self.directory / "service.py").chmod(0o644)
        places = {"data_dir": self.data_dir, "config_dir": self.config_dir, "bin_dir": self.bin_dir}
        description = json.dumps({key: str(path) for key, path in places.items()})
        users.write_file(self.directory / "service.json", description, self.owner, 0o644)
        self._write_settings(settings)

    def run(self, program: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Run a program as the server's owner; LabError with its output where it fails."""
        options = users.run_as(self.owner)
        options["env"] = {**options["env"], **(environment or {})}
        result = subprocess.run(
            [program, *arguments],
            cwd=self.directory,
            check=False,
            capture_output=True,
            text=True,
            umask=0o077,
            **options,
        )
        if result.returncode != 0:
            raise LabError(f"{self.name}: {program.name} failed: {result.stdout}{result.stderr}")

    def follow(self, upstream: Node, replication_passfile: Path) -> None:
        """Make the stopped server a standby of ``upstream``, with the slot that is named after it."""
        conninfo = psycopg2.extensions.make_dsn(
            host=upstream.host,
            port=upstream.port,
            user=users.REPLICATION_USER,
            passfile=str(replication_passfile),
            application_name=self.name,
        )
        lines = [("primary_conninfo", conninfo), ("primary_slot_name", self.name)]
        # Our own lines and not pg_basebackup -R: its libpq 18 writes keywords that an older server's libpq refuses.
        with (self.data_dir / "postgresql.auto.conf").open("a") as handle:
            handle.writelines("{} = '{}'\n".format(key, value.replace("'", "''")) for key, value in lines)
        users.write_file(self.data_dir / "standby.signal", "", self.owner)

    def destroy(self) -> None:
        """End every process of this server: frozen ones, the supervisor and orphans of a killed postmaster too."""
        (self.directory / "restart").unlink(missing_ok=True)
        pid = self.pid() if self.data_dir.exists() else None
        for member in working_below(self.directory):
            _signal(member, signal.SIGCONT)
        if pid:
            _signal(pid, signal.SIGQUIT)  # immediate: its data is thrown away
        with suppress(LabError):
            wait_for(lambda: not working_below(self.directory), seconds=5, what="an immediate shutdown")
        for member in working_below(self.directory):
            _signal(member, signal.SIGKILL)
        wait_for(lambda: not working_below(self.directory), seconds=5, what=f"the processes of {self.name} to end")


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
