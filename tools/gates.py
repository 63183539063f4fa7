"""The static gates behind ``make lint``: run them all, two at a time, one line each.

``tools/gates.py`` runs every gate, ``tools/gates.py --fast`` those that take seconds, ``tools/gates.py NAME...`` the
named ones. A failed gate shows the end of its output; all of it is in .lab/build/log/NAME.log. Gates that look at the
collection as others get it work on a copy (ansible-test insists on a folder .../ansible_collections/stateful/dbops) or
on the built artifact, installed in a folder of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINT = ROOT / ".venv-lint"
BIN = LINT / "bin"
HOME = LINT / "home"
BUILD = ROOT / ".lab/build"
TREE = BUILD / "ansible_collections/stateful/dbops"
INSTALLED = BUILD / "installed"
PYTHONS = BUILD / "pythons"
LOGS = BUILD / "log"
ARTIFACT_ROOMS = {
    *("CHANGELOG.md", "CONTRIBUTING.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md"),
    *("changelogs", "docs", "inventories", "meta", "playbooks", "plugins", "roles"),
}
TAIL = 60
GATE_TIMEOUT = 1200


@dataclass(frozen=True)
class Gate:
    """One command that must exit 0 and print ``shows``, because some tools find nothing to do and are content."""

    name: str
    command: list[str | Path]
    cwd: Path = ROOT
    env: dict[str, str] = field(default_factory=dict)
    fast: bool = False
    shows: str = ""


GATES = [
    Gate(
        "sanity",
        [BIN / "ansible-test", "sanity", "--venv", "--color", "no", "--skip-test", "pslint"],
        cwd=TREE,
        shows='Running sanity test "validate-modules"',
    ),
    Gate(
        "galaxy-importer",
        [ROOT / ".venv-importer/bin/python", "-m", "galaxy_importer.main"],
        cwd=BUILD,
        env={"PATH": f"{ROOT}/.venv-importer/bin:/usr/bin:/bin"},
    ),
    Gate("ansible-lint", [BIN / "ansible-lint"], cwd=TREE, env={"ANSIBLE_COLLECTIONS_PATH": str(INSTALLED)}),
    Gate(
        "antsibull-docs",
        [BIN / "antsibull-docs", "lint-collection-docs", "--plugin-docs", "--validate-collection-refs=self", "."],
        cwd=TREE,
    ),
    Gate(
        "run-by-name",
        [
            *(
                BIN / "ansible-playbook",
                "--syntax-check",
                "--inventory=localhost,",
                "--extra-vars=dbops_cluster=accounts",
            ),
            *("stateful.dbops.promote_replica", "stateful.dbops.promote_replica_rollback"),
            *(
                "stateful.dbops.index_maintenance",
                "stateful.dbops.partition_convert",
                "stateful.dbops.partition_convert_rollback",
                "stateful.dbops.partition_maintenance",
                "stateful.dbops.partition_timer",
            ),
        ],
        cwd=INSTALLED,
        env={"ANSIBLE_COLLECTIONS_PATH": str(INSTALLED)},
        shows=f"playbook: {INSTALLED}/",
    ),
    Gate("changelog", [BIN / "antsibull-changelog", "lint"], cwd=TREE),
    Gate("mypy", [BIN / "mypy", "-p", "ansible_collections.stateful.dbops.plugins", "-p", "tests"], fast=True),
    Gate("imports", [BIN / "lint-imports", "--no-logo"], env={"PYTHONPATH": ".venv-lint/collections"}, fast=True),
    Gate("yamllint", [BIN / "yamllint", "-s", "."], fast=True),
    Gate("ruff-check", [BIN / "ruff", "check", "--output-format=concise", "."], fast=True),
    Gate("ruff-format", [BIN / "ruff", "format", "--check", "."], fast=True),
]


def environment() -> dict[str, str]:
    """The caller's environment with the linters first on PATH, real Pythons instead of shims, and a HOME of our own."""
    return {
        **os.environ,
        "PATH": f"{BIN}:{PYTHONS}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(HOME),
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
    }


def main() -> int:
    arguments = sys.argv[1:]
    fast = arguments == ["--fast"]
    gates = [gate for gate in GATES if (gate.fast if fast else not arguments or gate.name in arguments)]
    unknown = set(arguments) - {gate.name for gate in GATES} - {"--fast"}
    if unknown:
        sys.exit(f"gates: no gate {', '.join(sorted(unknown))}; there are {', '.join(gate.name for gate in GATES)}")
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    make_home()
    failed = []
    if not all(gate.fast for gate in gates):
        started = time.monotonic()
        try:
            artifact = build()
        except (subprocess.CalledProcessError, RuntimeError) as problem:
            print(f"FAILED build\n{getattr(problem, 'output', None) or problem}")
            print("lint: 0 passed, 1 failed")
            return 1
        print(f"ok build {time.monotonic() - started:.0f} s", flush=True)
        gates = [add_artifact(gate, artifact) for gate in gates]
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done in as_completed([pool.submit(run, gate) for gate in gates]):
            name, seconds, output = done.result()
            if output is None:
                print(f"ok {name} {seconds:.0f} s", flush=True)
            else:
                failed.append(name)
                print(f"FAILED {name} {seconds:.0f} s, all of it in {LOGS.relative_to(ROOT)}/{name}.log", flush=True)
                lines = output.splitlines()
                errors = [line for line in lines if line.startswith(("ERROR", "FATAL"))]
                print("\n".join(f"    {line}" for line in (errors or lines)[-TAIL:]), flush=True)
    if failed:
        print(f"lint: broken: {', '.join(failed)}")
    print(f"lint: {len(gates) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def run(gate: Gate) -> tuple[str, float, str | None]:
    """Return the gate's name, its seconds, and its output if it failed."""
    started = time.monotonic()
    with open(LOGS / f"{gate.name}.log", "w+") as log:
        try:
            code = subprocess.run(
                gate.command,
                cwd=gate.cwd,
                env=environment() | gate.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=GATE_TIMEOUT,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
            log.write(f"not finished after {GATE_TIMEOUT} s\n")
        log.seek(0)
        output = log.read().replace(".venv-lint/collections/ansible_collections/stateful/dbops/", "")
        if gate.shows not in output:
            code, output = 1, f"{output}\nexpected to see: {gate.shows}"
        return gate.name, time.monotonic() - started, output or f"exit {code}" if code else None


def build() -> Path:
    """Copy what git would commit to TREE, build it, install it to INSTALLED; return the artifact."""
    shutil.rmtree(BUILD / "ansible_collections", ignore_errors=True)
    shutil.rmtree(INSTALLED, ignore_errors=True)
    for old in BUILD.glob("*.tar.gz"):
        old.unlink()
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in listed.split("\0"):
        if (ROOT / name).is_file():  # not the empty end of the list, and not a file deleted but not yet committed
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    # Without a repository of its own, the copy lies below an ignored folder of ours, where git sees no file at all.
    subprocess.run(["git", "init", "-q"], cwd=TREE, check=True)
    link_pythons()
    write_get_pip()
    galaxy([BIN / "ansible-galaxy", "collection", "build", "--output-path", BUILD], cwd=TREE)
    artifact = next(BUILD.glob("*.tar.gz"))
    with tarfile.open(artifact) as archive:
        strangers = {name.split("/")[0] for name in archive.getnames()} - ARTIFACT_ROOMS
    if strangers:
        raise RuntimeError(f"{artifact.name} has {sorted(strangers)}: add them to build_ignore or to ARTIFACT_ROOMS")
    INSTALLED.mkdir()
    galaxy([BIN / "ansible-galaxy", "collection", "install", "--offline", "-p", INSTALLED, artifact], cwd=INSTALLED)
    return artifact


def galaxy(command: list[str | Path], *, cwd: Path) -> None:
    env = environment() | {"ANSIBLE_COLLECTIONS_PATH": str(INSTALLED)}
    subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)


def add_artifact(gate: Gate, artifact: Path) -> Gate:
    if gate.name != "galaxy-importer":
        return gate
    return Gate(gate.name, [*gate.command, artifact], gate.cwd, gate.env)


def make_home() -> None:
    """A HOME for the tools, because ansible-test and ansible-lint keep state there. Pip's settings stay the user's."""
    HOME.mkdir(exist_ok=True)
    for settings in (".config/pip", ".pip"):
        theirs, ours = Path(os.path.expanduser("~"), settings), HOME / settings
        if theirs.is_dir() and not ours.is_symlink():
            ours.parent.mkdir(parents=True, exist_ok=True)
            ours.symlink_to(theirs)


def link_pythons() -> None:
    """Link the Pythons that really start: a pyenv shim is on PATH even when its version is not selected."""
    shutil.rmtree(PYTHONS, ignore_errors=True)
    PYTHONS.mkdir()
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    for folder in [*os.environ["PATH"].split(":"), *map(str, pyenv.glob("*/bin"))]:
        for candidate in Path(folder).glob("python3.*"):
            link = PYTHONS / candidate.name
            if re.fullmatch(r"python3\.\d+", candidate.name) and not link.exists():
                found = subprocess.run(
                    [candidate, "-c", "import ensurepip, sys; print(sys.executable)"],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if found.returncode == 0:
                    link.symlink_to(found.stdout.strip())


def write_get_pip() -> None:
    """Put tools/get_pip.py under the name of the script that this ansible-core would download."""
    [core] = LINT.glob("lib/python3*/site-packages/ansible_test/_internal/python_requirements.py")
    [version] = set(re.findall(r"pip='([\d.]+)'", core.read_text()))
    cache = HOME / ".ansible/test/cache"
    cache.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tools/get_pip.py", cache / f"get_pip_{version.replace('.', '_')}.py")


if __name__ == "__main__":
    sys.exit(main())
