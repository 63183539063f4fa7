# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running what is tested: playbooks as users run them, and modules as Ansible runs them, and reading their journal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import inventory
from tests.lab.cluster import Cluster
from tests.lab.users import CHECKOUT

COLLECTIONS = Path(sys.prefix) / "collections"
MODULES = "ansible_collections.stateful.dbops.plugins.modules"


def environment(**more: str) -> dict[str, str]:
    """What Ansible needs in order to find the collection of this checkout."""
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "PYTHONPATH": str(COLLECTIONS),
        "PYTHONWARNINGS": "",
        **more,
    }


def playbook_command(cluster: Cluster, playbook: str, *arguments: str, **variables: Any) -> list[str]:
    """``ansible-playbook`` by way of the interpreter: a script's first line cannot hold a very long path."""
    words = [sys.executable, "-m", "ansible", "playbook", str(CHECKOUT / "playbooks" / playbook)]
    words += ["-i", str(inventory.write(cluster)), "-e", json.dumps({"dbops_cluster": cluster.name, **variables})]
    return [*words, *arguments]


def run_playbook(
    cluster: Cluster, playbook: str, *arguments: str, timeout: float = 300.0, **variables: Any
) -> subprocess.CompletedProcess[str]:
    """Run it to its end without a terminal, as an AWX job would; standard error is in ``stdout``, in order."""
    return subprocess.run(
        playbook_command(cluster, playbook, *arguments, **variables),
        cwd=CHECKOUT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def start_playbook(cluster: Cluster, playbook: str, **variables: Any) -> subprocess.Popen[bytes]:
    """Start it in a process group of its own, so that it can be killed with its modules."""
    return subprocess.Popen(
        playbook_command(cluster, playbook, **variables),
        cwd=CHECKOUT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@dataclass
class ModuleRun:
    """A module in a process of its own, so that it can be killed."""

    process: subprocess.Popen[str]
    arguments_file: Path

    def result(self, timeout: float = 240.0) -> dict[str, Any]:
        """What it returned. Empty where it was killed."""
        output, errors = self.process.communicate(timeout=timeout)
        self.arguments_file.unlink(missing_ok=True)
        lines = [line for line in output.splitlines() if line.startswith("{")]
        if not lines and self.process.returncode >= 0:
            raise RuntimeError(f"the module printed no result (exit {self.process.returncode}): {errors[-2000:]}")
        returned: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return returned


def start_module(module: str, arguments: dict[str, Any], *, check: bool = False, failpoint: str = "") -> ModuleRun:
    """Start it with arguments in a 0600 file, as Ansible without pipelining would."""
    handle, name = tempfile.mkstemp(prefix="dbops-lab-", suffix=".json")
    values = {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}
    with open(handle, "w", encoding="utf-8") as file:
        json.dump({"ANSIBLE_MODULE_ARGS": values}, file)
    more = {"DBOPS_FAILPOINT": failpoint} if failpoint else {}
    process = subprocess.Popen(
        [sys.executable, "-m", f"{MODULES}.{module}", name],
        cwd=CHECKOUT,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return ModuleRun(process, Path(name))


def run_module(module: str, arguments: dict[str, Any], *, check: bool = False, failpoint: str = "") -> dict[str, Any]:
    return start_module(module, arguments, check=check, failpoint=failpoint).result()


def switchover_arguments(cluster: Cluster, candidate: str, node: str, **changes: Any) -> dict[str, Any]:
    """replica_promote's arguments as the role makes them, with what it sees on the other hosts filled in by asking
    pg_cluster_info the same way, and poolers as guarded ones."""
    arguments = {**cluster.module_arguments(candidate, node), "node": node}
    arguments["poolers"] = [
        {
            **{key: value for key, value in pooler.items() if key != "config_file"},
            "listeners": 1,
            "staged_for": candidate,
        }
        for pooler in arguments["poolers"]
    ]
    arguments["probes"] = [
        {"member": member.name, **_probe(cluster, arguments, member.data_dir)}
        for member in cluster.nodes
        if member.name != node
    ]
    return {**arguments, **changes}


def _probe(cluster: Cluster, arguments: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    words = ("candidate", "nodes", "replication_user", "replication_passfile")
    info = run_module(
        "pg_cluster_info",
        {"cluster": cluster.name, "data_dir": str(data_dir), **{word: arguments[word] for word in words}},
    )
    return dict(info["probe"])


def journals(cluster: Cluster, node: str) -> list[Path]:
    """Journal files on the host of ``node``, oldest first."""
    return sorted((cluster.state_dir(node) / cluster.name).glob("*.jsonl"))


def read_steps(journal: Path) -> list[dict[str, Any]]:
    """Steps of the journal's last run as ``{step, start, end, outcome}``, Unix times."""
    steps: list[dict[str, Any]] = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["event"] in ("opened", "resumed"):
            steps = []
        elif record["event"] == "start":
            steps.append({"step": record["step"], "start": record["t"], "end": record["t"], "outcome": "killed"})
        elif record["event"] in ("done", "failed") and steps:
            steps[-1].update(end=record["t"], outcome=record["event"])
    return steps
