# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.lab.scenarios [NAME ...]``: Molecule scenarios, all by default, on the built collection.

Molecule runs them; this gives it what it needs and takes the hosts down also after Ctrl-C. A warning of Ansible fails a
scenario, as it does everywhere in this project.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from tests.lab.hosts import Lab, missing
from tests.lab.users import CHECKOUT

BIN = Path(sys.executable).parent
WORK = CHECKOUT / ".lab/molecule"
HOSTS_SECONDS, SCENARIO_SECONDS = 20, 240  # on two cores that have nothing else to do
CREATED = re.compile(r"(\d+) hosts up in ([\d.]+) s")


def environment(name: str) -> dict[str, str]:
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(WORK / "collections"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "MOLECULE_EPHEMERAL_DIRECTORY": str(WORK / name),
        "MOLECULE_GLOB": "molecule/*/molecule.yml",
        "NO_COLOR": "1",
    }


def install_collection() -> None:
    """Build the checkout as it would be published, and install that."""
    shutil.rmtree(WORK / "collections", ignore_errors=True)
    command: list[str | Path] = [
        BIN / "ansible-galaxy",
        "collection",
        "install",
        "--offline",
        "--force",
        "-p",
        WORK / "collections",
        ".",
    ]
    subprocess.run(command, cwd=CHECKOUT, env=environment(""), check=True, stdout=subprocess.DEVNULL)


def run(name: str) -> list[str]:
    """Run one scenario and print what it prints; what is wrong with it, in sentences."""
    work = WORK / name
    shutil.rmtree(work, ignore_errors=True)
    (work / "hosts").mkdir(parents=True)
    (work / "hosts/hosts.yml").write_text("all: {}\n")  # until create.yml replaces it
    started, took, problems = time.monotonic(), "", []
    process = subprocess.Popen(
        [BIN / "molecule", "test", "--scenario-name", name],
        cwd=CHECKOUT,
        env=environment(name),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a Ctrl-C comes to us, and we end all of it
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            found = CREATED.search(line)
            took = (
                f"{found.group(1)} hosts up in {found.group(2)} s, at most {HOSTS_SECONDS} are allowed; "
                if found
                else took
            )
            if "[WARNING]" in line:
                problems.append(line.strip())
        if process.wait() != 0:
            problems.append(
                f"molecule ended with {process.returncode}; logs of its hosts are in {CHECKOUT / '.lab/log' / name}"
            )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        Lab.load(name).down()
    print(
        f"{name}: {took}{time.monotonic() - started:.0f} s in all, at most {SCENARIO_SECONDS} are allowed", flush=True
    )
    return problems


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    names = sys.argv[1:] or sorted(path.parent.name for path in CHECKOUT.glob("molecule/*/molecule.yml"))
    unknown = [name for name in names if not (CHECKOUT / "molecule" / name / "molecule.yml").exists()]
    if unknown:
        sys.exit(f"no scenario {', '.join(unknown)} in molecule/")
    problems = missing()
    if problems and os.environ.get("DBOPS_MOLECULE_HOSTS", "nspawn") == "nspawn":
        sys.exit("this machine cannot have hosts: " + "; ".join(problems))
    signal.signal(signal.SIGTERM, interrupt)
    install_collection()
    failed = {name: problems for name in names if (problems := run(name))}
    for name, problems in failed.items():
        print(f"FAILED {name}: " + "; ".join(problems))
    print(f"scenarios: {len(names) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
