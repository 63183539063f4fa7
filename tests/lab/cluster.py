# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A primary and its streaming standbys, made in seconds and destroyed without a trace."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg2 import sql

from tests.lab import binaries, users
from tests.lab.pooler import Pooler
from tests.lab.server import HOST, LabError, Node, free_port, wait_for

# SCRAM over TCP and nothing else: the lab has no trust line, because the field must not have one.
HBA = f"host all all {HOST}/32 scram-sha-256\nhost replication all {HOST}/32 scram-sha-256\n"


@dataclass
class Cluster:
    """``directory`` is the caller's: cluster.json, secrets.json and the passfiles. The servers live in ``home``."""

    name: str
    version: str
    directory: Path
    home: Path
    owner: str
    tls: bool = False
    nodes: list[Node] = field(default_factory=list)
    poolers: list[Pooler] = field(default_factory=list)

    @classmethod
    def create(
        cls,
        directory: Path,
        version: str = "18",
        members: Sequence[str] = ("pg1", "pg2", "pg3"),
        pooler: bool | str = False,
        settings: dict[str, str] | None = None,
        synchronous: str = "",
        name: str = "accounts",
        tls: bool = False,
    ) -> Cluster:
        """Make the first member primary and the others its streaming standbys; return when all stream.

        ``pooler``: True must have one, "auto" takes one where it is found without a download. ``settings`` go into
        every member's postgresql.conf, ``synchronous`` is the first primary's synchronous_standby_names. With ``tls``
        the servers refuse plain TCP, and the operator verifies their certificate ("18" is built without TLS, "18-npm"
        with it).
        Raises LabError or MissingProgram; nothing is left behind then.
        """
        directory = directory.resolve()
        if (directory / "cluster.json").exists():
            raise LabError(f"there is a lab in {directory} already; destroy it first")
        owner = users.server_owner()
        cluster = cls(name, version, directory, users.server_home(directory), owner, tls)
        try:
            cluster._build(members, settings or {}, synchronous)
            if pooler is True or (pooler == "auto" and binaries.pgbouncer(fetch=False)):
                cluster.add_pooler()
        except BaseException:
            cluster.destroy()
            raise
        return cluster

    @classmethod
    def load(cls, directory: Path) -> Cluster:
        """The lab that some process made in ``directory``; LabError where there is none."""
        directory = directory.resolve()
        try:
            state = json.loads((directory / "cluster.json").read_text())
        except FileNotFoundError as error:
            raise LabError(f"there is no lab in {directory}") from error
        cluster = cls(state["name"], state["version"], directory, Path(state["home"]), state["owner"], state["tls"])
        cluster.nodes = [cluster._node(name, port) for name, port in state["members"].items()]
        cluster.poolers = [cluster._pooler(name, port) for name, port in state["poolers"].items()]
        return cluster

    # -- what is in it

    @property
    def major(self) -> int:
        return binaries.major(self.version)

    @property
    def bin_dir(self) -> Path:
        return binaries.binaries(self.version)

    @property
    def secrets_file(self) -> Path:
        """JSON, user name -> password."""
        return self.directory / "secrets.json"

    @property
    def passfile(self) -> Path:
        """The operator's: the modules' logins to the servers and to the poolers' consoles."""
        return self.directory / "operator.pass"

    @property
    def lab_passfile(self) -> Path:
        """Every user's password, for the lab's own connections."""
        return self.directory / "lab.pass"

    @property
    def replication_passfile(self) -> Path:
        """The replication user's, on the servers' hosts, owned by the user that the servers run as."""
        return self.home / "replication.pass"

    @property
    def certificate(self) -> Path:
        """With ``tls``, the servers' self-signed certificate, which is also the authority that the operator trusts."""
        return self.home / "server.crt"

    @property
    def archive(self) -> Path:
        """The WAL archive of all members."""
        return self.home / "archive"

    def state_dir(self, name: str) -> Path:
        """``dbops_state_dir`` of the host of member or pooler ``name``: a directory that the collection makes."""
        return self.directory / "state" / name

    @property
    def pooler(self) -> Pooler | None:
        return self.poolers[0] if self.poolers else None

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def primary(self) -> Node:
        """The one running member that is not in recovery; LabError when there is none or more than one."""
        running = [node for node in self.nodes if node.running()]
        writable = [node for node in running if node.sql("SELECT NOT pg_is_in_recovery()") == [(True,)]]
        if len(writable) != 1:
            raise LabError(f"writable: {[node.name for node in writable] or 'none'}; expected exactly one")
        return writable[0]

    def standbys(self) -> list[Node]:
        primary = self.primary()
        return [node for node in self.nodes if node is not primary]

    def wait_streaming(self, names: Iterable[str], *, seconds: float = 30) -> None:
        """Until the primary streams to all of ``names``."""
        wanted = set(names)
        primary = self.primary()

        def streaming() -> bool:
            rows = primary.sql("SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
            return wanted <= {row[0] for row in rows}

        wait_for(streaming, seconds=seconds, what=f"{sorted(wanted)} to stream from {primary.name}")

    # -- making and ending it

    def add_pooler(self, name: str = "") -> Pooler:
        """Start a PgBouncer whose database ``accounts`` is on the current primary."""
        pooler = self._pooler(name or f"pooler{len(self.poolers) + 1}", free_port())
        self.poolers.append(pooler)
        self._save()
        pooler.install(self.primary(), users.load_secrets(self.secrets_file))
        pooler.start()
        return pooler

    def start(self) -> None:
        """Start what is not running; harmless for what is."""
        for node in self.nodes:
            node.start()
        for pooler in self.poolers:
            if not pooler.running():
                pooler.start()

    def destroy(self) -> None:
        """End what create() started and delete what it wrote; safe to call twice and on half a lab."""
        for pooler in self.poolers:
            pooler.destroy()
        _together(Node.destroy, self.nodes)
        for line in Path("/proc/mounts").read_text().splitlines():
            mount = line.split()[1]
            if mount.startswith(f"{self.home}/"):  # a small file system made by faults.full_disk
                subprocess.run(["umount", mount], check=True)
        if self.owner:
            shutil.rmtree(self.home, ignore_errors=True)
            with suppress(OSError):
                self.home.parent.rmdir()  # unless this checkout has another lab
        for place in (*(node.directory for node in self.nodes), *(pooler.directory for pooler in self.poolers)):
            shutil.rmtree(place, ignore_errors=True)
        for place in (self.archive, self.directory / "state"):
            shutil.rmtree(place, ignore_errors=True)
        certificate = (self.certificate, self.certificate.with_suffix(".key"))
        for path in (self.secrets_file, self.passfile, self.lab_passfile, self.replication_passfile, *certificate):
            path.unlink(missing_ok=True)
        for name in ("inventory.yml", "cluster.json"):
            (self.directory / name).unlink(missing_ok=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.destroy()

    def _node(self, name: str, port: int) -> Node:
        return Node(name, port, self.home / name, self.bin_dir, self.owner, self.lab_passfile)

    def _pooler(self, name: str, port: int) -> Pooler:
        return Pooler(name, port, self.home / name, self.owner, self.lab_passfile)

    def _save(self) -> None:
        state = {
            "name": self.name,
            "version": self.version,
            "home": str(self.home),
            "owner": self.owner,
            "tls": self.tls,
            "members": {node.name: node.port for node in self.nodes},
            "poolers": {pooler.name: pooler.port for pooler in self.poolers},
        }
        users.write_file(self.directory / "cluster.json", json.dumps(state, indent=2), mode=0o644)

    def _build(self, members: Sequence[str], settings: dict[str, str], synchronous: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        users.make_directory(self.home, self.owner)
        users.make_directory(self.archive, self.owner, 0o700)
        passwords = users.new_secrets()
        users.write_file(self.secrets_file, json.dumps(passwords))
        users.write_file(self.lab_passfile, users.passfile_text(passwords, *passwords))
        users.write_file(self.passfile, users.passfile_text(passwords, users.OPERATOR, users.POOLER_ADMIN))
        users.write_file(self.replication_passfile, users.passfile_text(passwords, users.REPLICATION_USER), self.owner)
        self.nodes = [self._node(name, free_port()) for name in members]
        self._save()  # before anything runs: whoever finds an unfinished lab can destroy it
        if self.tls:
            self._make_certificate()
        for node in self.nodes:
            node.install(HBA, self._settings(node) | settings)
        primary, *standbys = self.nodes
        self._initialise(primary, passwords)
        for node in standbys:
            primary.sql("SELECT pg_create_physical_replication_slot(%s, true)", (node.name,))
        _together(lambda node: self._clone(primary, node), standbys)
        self.wait_streaming(node.name for node in standbys)
        if self.tls:
            # Only now: the wheel's pg_basebackup, which made the standbys, speaks no TLS.
            for node in self.nodes:
                users.write_file(node.hba_file, HBA.replace("host ", "hostssl "), self.owner, 0o640)
                node.reload()
        if synchronous:
            # Only now: every commit before it would have waited for a standby that is not there yet.
            primary.configure(synchronous_standby_names=synchronous)

    def _settings(self, node: Node) -> dict[str, str]:
        # wal_keep_size and the slots keep what a standby needs; wal_log_hints lets pg_rewind work without checksums.
        files = {"ssl_cert_file": str(self.certificate), "ssl_key_file": str(self.certificate.with_suffix(".key"))}
        tls = {"ssl": "on", **files} if self.tls else {}
        return {
            "listen_addresses": HOST,
            "port": str(node.port),
            "unix_socket_directories": "",  # the path of a socket must stay below 107 bytes
            "hba_file": str(node.hba_file),
            "ident_file": str(node.ident_file),
            "cluster_name": node.name,
            "password_encryption": "scram-sha-256",
            "fsync": "on",
            "synchronous_commit": "on",
            "shared_buffers": "64MB",
            "max_connections": "100",
            "wal_level": "replica",
            "max_wal_senders": "10",
            "max_replication_slots": "10",
            "hot_standby": "on",
            "wal_keep_size": "128MB",
            "min_wal_size": "80MB",
            "max_wal_size": "512MB",
            "wal_log_hints": "on",
            "archive_mode": "on",
            "archive_command": (
                # As the manual asks: never overwrite, and succeed for a file that is there already and the same.
                f'if test -f "{self.archive}/%f"; then cmp -s "%p" "{self.archive}/%f"; '
                f'else cp "%p" "{self.archive}/%f.new" && mv "{self.archive}/%f.new" "{self.archive}/%f"; fi'
            ),
            "log_line_prefix": "%m [%p] %q%u@%d %a ",
            "log_checkpoints": "on",
            **tls,
        }

    def _make_certificate(self) -> None:
        key = self.certificate.with_suffix(".key")
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={HOST}"]
        command += ["-addext", f"subjectAltName=IP:{HOST}", "-keyout", str(key), "-out", str(self.certificate)]
        subprocess.run(command, check=True, capture_output=True, umask=0o077)
        self.certificate.chmod(0o644)
        users.give(key, self.owner)

    def _initialise(self, node: Node, passwords: dict[str, str]) -> None:
        secret = users.write_file(node.directory / "initdb.pass", passwords[users.SUPERUSER] + "\n", self.owner)
        # The encoding and the locale do not depend on who runs the lab, and checksums not on the version's default.
        options = ["--no-sync", "--encoding=UTF8", "--no-locale", "--data-checksums", "--auth=scram-sha-256"]
        try:
            node.run(
                node.bin_dir / "initdb", *options, "-U", users.SUPERUSER, f"--pwfile={secret}", "-D", str(node.data_dir)
            )
        finally:
            secret.unlink()
        # Configuration is beside the data, as Debian has it: a clone or a rewind then leaves it alone.
        for leftover in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            (node.data_dir / leftover).unlink()
        node.start()
        create = sql.SQL("CREATE ROLE {} LOGIN {} PASSWORD {}")
        for user in (users.OPERATOR, users.REPLICATION_USER, users.APPLICATION):
            privilege = sql.SQL("NOREPLICATION" if user == users.APPLICATION else "REPLICATION")
            node.sql(create.format(sql.Identifier(user), privilege, sql.Literal(passwords[user])))
        node.sql(users.operator_grants(self.major))
        node.sql(f"CREATE DATABASE {users.DATABASE} OWNER {users.APPLICATION}")

    def _clone(self, primary: Node, node: Node) -> None:
        node.run(
            binaries.client_binaries() / "pg_basebackup",
            *("--pgdata", str(node.data_dir), "--checkpoint=fast", "--wal-method=stream", "--no-sync"),
            *(
                "--host",
                primary.host,
                "--port",
                str(primary.port),
                "--username",
                users.REPLICATION_USER,
                "--no-password",
            ),
            environment={"PGPASSFILE": str(self.replication_passfile)},
        )
        node.follow(primary, self.replication_passfile)
        node.start()

    # -- for what is tested

    def module_arguments(self, candidate: str, node: str) -> dict[str, Any]:
        """The arguments of replica_promote for a switchover to ``candidate``, run on the host of ``node``."""
        here = self.node(node)
        return {
            "mode": "switchover",
            "cluster": self.name,
            "candidate": candidate,
            "nodes": [
                {**self._endpoint(member.name, member.port, users.OPERATOR), **self.tls_options}
                for member in self.nodes
            ],
            "poolers": [
                {
                    **self._endpoint(pooler.name, pooler.port, users.POOLER_ADMIN),
                    "config_file": str(pooler.config_file),
                }
                for pooler in self.poolers
            ],
            "local": {
                "data_dir": str(here.data_dir),
                "config_dir": str(here.config_dir),
                "bin_dir": str(here.bin_dir),
                "service": here.service,
            },
            "replication_user": users.REPLICATION_USER,
            "replication_passfile": str(self.replication_passfile),
            "state_dir": str(self.state_dir(node)),
        }

    @property
    def tls_options(self) -> dict[str, str]:
        """How the operator connects to the servers; empty without TLS."""
        return {"ssl_mode": "verify-full", "ca_cert": str(self.certificate)} if self.tls else {}

    def _endpoint(self, name: str, port: int, user: str) -> dict[str, Any]:
        return {
            "name": name,
            "login_host": HOST,
            "login_port": port,
            "login_user": user,
            "passfile": str(self.passfile),
        }


def _together(action: Callable[[Node], None], nodes: Sequence[Node]) -> None:
    """Do it to all nodes at once; the first error is raised after all have ended."""
    if nodes:
        with ThreadPoolExecutor(len(nodes)) as pool:
            for future in [pool.submit(action, node) for node in nodes]:
                future.result()
