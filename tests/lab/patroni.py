# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster of the lab in the hands of Patroni: one etcd, and one Patroni for each member.

The servers are made as for every other cluster, with the same settings; then Patroni adopts them, as its manual
describes for existing clusters. So whatever differs between two clusters of the lab is what manages them.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.lab import binaries, users
from tests.lab.cluster import Cluster
from tests.lab.server import HOST, LabError, Node, alive, free_port, wait_for

REST_USER = "rest"


@dataclass
class PatroniCluster(Cluster):
    """``dynamic`` is Patroni's dynamic configuration where it differs from the defaults (loop_wait, ttl, …). pg_rewind
    is allowed, as in the sample configuration that Patroni ships."""

    dynamic: dict[str, Any] = field(default_factory=dict)
    rest_ports: dict[str, int] = field(default_factory=dict)
    rest_password: str = field(default="", repr=False)
    etcd_ports: tuple[int, int] = (0, 0)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def adopt(cls, directory: Path, *, dynamic: dict[str, Any] | None = None, **how: Any) -> PatroniCluster:
        """As Cluster.create(), then managed; returns when Patroni sees a leader and streaming replicas."""
        binaries.etcd()
        binaries.patroni()
        created = cls.create(directory, version=binaries.RIVALS, **how)
        assert isinstance(created, cls)
        created.dynamic = dynamic or {}
        try:
            created._manage()
        except BaseException:
            created.destroy()
            raise
        return created

    # -- Patroni's REST API, as the lab uses it

    def url(self, name: str) -> str:
        return f"http://{HOST}:{self.rest_ports[name]}"

    @property
    def options(self) -> dict[str, Any]:
        """The ``patroni`` of dbops_clusters."""
        return {"url": self.url(self.nodes[-1].name), "username": REST_USER, "password": self.rest_password}

    def rest(self, name: str, path: str, data: Any = None, *, method: str = "", timeout: float = 60) -> tuple[int, str]:
        """(HTTP status, body). LabError where nobody answers."""
        request = urllib.request.Request(self.url(name) + path, method=method or ("GET" if data is None else "POST"))
        if data is not None:
            request.data = json.dumps(data).encode()
            word = b64encode(f"{REST_USER}:{self.rest_password}".encode()).decode()
            request.add_header("Authorization", f"Basic {word}")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            raise LabError(f"Patroni of {name} does not answer: {error}") from error

    def configure(self, **dynamic: Any) -> None:
        """Change the dynamic configuration; None takes a key out. Every member has seen it on return."""
        status, text = self.rest(self.nodes[0].name, "/config", dynamic, method="PATCH")
        if status != 200:
            raise LabError(f"PATCH /config: {status} {text}")
        for node in self.nodes if "pause" in dynamic else ():
            wait_for(
                partial(self._is_paused, node.name, bool(dynamic["pause"])),
                seconds=40,
                what=f"Patroni of {node.name} to see pause = {dynamic['pause']}",
            )

    def _is_paused(self, name: str, wanted: bool) -> bool:
        return bool(json.loads(self.rest(name, "/patroni")[1]).get("pause", False)) == wanted

    def members(self) -> list[dict[str, Any]]:
        """GET /cluster."""
        status, text = self.rest(self.nodes[-1].name, "/cluster")
        found: list[dict[str, Any]] = json.loads(text)["members"] if status == 200 else []
        return found

    def switchover(self, candidate: str, *, timeout: float = 120) -> tuple[int, str]:
        """What patronictl switchover sends, to the member that is neither leader nor candidate."""
        leader = next(member["name"] for member in self.members() if member["role"] == "leader")
        other = next(node.name for node in self.nodes if node.name not in (leader, candidate))
        return self.rest(other, "/switchover", {"leader": leader, "candidate": candidate}, timeout=timeout)

    def log_text(self, name: str) -> str:
        """What Patroni and the server of a member have logged; both go to one file, as Patroni's own does."""
        return (self.node(name).directory / "patroni.log").read_text(errors="replace")

    def wait_managed(self, *, seconds: float = 90) -> None:
        """One leader, all others stream, and all on its timeline, as Patroni itself sees it."""

        def settled() -> bool:
            with suppress(LabError, ValueError, KeyError):
                found = self.members()
                roles = sorted(member["role"] for member in found)
                states = {member["state"] for member in found if member["role"] != "leader"}
                whole = len(found) == len(self.nodes) and roles.count("leader") == 1 and states == {"streaming"}
                return whole and len({member.get("timeline") for member in found}) == 1
            return False

        wait_for(settled, seconds=seconds, what=f"a leader and streaming replicas; logs are in {self.home}")

    # -- processes

    def pid(self, name: str) -> int:
        """Of the Patroni of member ``name``, or of "etcd"."""
        return self._processes[name].pid

    def start_etcd(self) -> None:
        directory = users.make_directory(self.home / "etcd", self.owner, 0o700)
        client, peer = self.etcd_ports
        words = [
            *("--name", "etcd", "--data-dir", str(directory / "data")),
            *("--listen-client-urls", f"http://{HOST}:{client}"),
            *("--advertise-client-urls", f"http://{HOST}:{client}"),
            *("--listen-peer-urls", f"http://{HOST}:{peer}", "--initial-advertise-peer-urls", f"http://{HOST}:{peer}"),
            *("--initial-cluster", f"etcd=http://{HOST}:{peer}", "--log-level", "error"),
        ]
        self._start("etcd", [str(binaries.etcd()), *words], directory, {})
        health = f"http://{HOST}:{client}/health"

        def healthy() -> bool:
            try:
                with urllib.request.urlopen(health, timeout=2) as answer:
                    return b'"true"' in answer.read()
            except OSError:
                return False

        wait_for(healthy, seconds=20, what=f"etcd, see {directory}/etcd.log")

    def start_patroni(self, node: Node) -> None:
        words, environment = binaries.patroni()
        self._start(node.name, [*words, str(self._write_configuration(node))], node.directory, environment)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """The Patroni of a member, or "etcd". A PostgreSQL server that Patroni started goes on."""
        process = self._processes.pop(name)
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        process.wait(20)

    def destroy(self) -> None:
        for name in list(self._processes):
            if alive(self._processes[name].pid):
                with suppress(ProcessLookupError):
                    os.kill(self._processes[name].pid, signal.SIGCONT)
            self.kill(name)
        super().destroy()

    def _start(self, name: str, command: list[str], directory: Path, environment: dict[str, str]) -> None:
        options = users.run_as(self.owner)
        options["env"] = {**options["env"], "HOME": str(directory), **environment}
        with (directory / f"{name if name == 'etcd' else 'patroni'}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                **options,
            )

    def _manage(self) -> None:
        self.rest_password = secrets.token_urlsafe(24)
        self.rest_ports = {node.name: free_port() for node in self.nodes}
        self.etcd_ports = (free_port(), free_port())
        self.start_etcd()
        for node in self.nodes:
            node.stop()
        # The primary first, and alone until it leads: whoever comes first becomes the leader.
        for node in self.nodes:
            self.start_patroni(node)
            if node is self.nodes[0]:
                wait_for(partial(self._leads, node.name), seconds=60,
                         what=f"{node.name} to lead, see {node.directory}/patroni.log")  # fmt: skip
        self.wait_managed()

    def _leads(self, name: str) -> bool:
        with suppress(LabError):
            return self.rest(name, "/leader")[0] == 200
        return False

    def _write_configuration(self, node: Node) -> Path:
        passwords = users.load_secrets(self.secrets_file)

        def login(user: str) -> dict[str, str]:
            return {"username": user, "password": passwords[user]}

        rest = f"{HOST}:{self.rest_ports[node.name]}"
        server = f"{HOST}:{node.port}"
        text = {
            "scope": self.name,
            "name": node.name,
            "restapi": {
                "listen": rest,
                "connect_address": rest,
                "authentication": {"username": REST_USER, "password": self.rest_password},
            },
            "etcd3": {"host": f"{HOST}:{self.etcd_ports[0]}"},
            "bootstrap": {"dcs": {"postgresql": {"use_pg_rewind": True}, **self.dynamic}},
            "postgresql": {
                "listen": server,
                "connect_address": server,
                "data_dir": str(node.data_dir),
                "config_dir": str(node.config_dir),
                "bin_dir": str(node.bin_dir),
                "pgpass": str(node.directory / "patroni.pass"),
                "authentication": {"superuser": login(users.SUPERUSER), "replication": login(users.REPLICATION_USER)},
            },
        }
        return users.write_file(node.directory / "patroni.yml", yaml.safe_dump(text, sort_keys=False), self.owner)
