# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base images of the lab's hosts: a Debian with the servers installed, built once and never written to again.

An image lies in the cache under the hash of its recipe, so a changed recipe is another image. Nothing removes old ones:
another checkout may have hosts on them. ``rm -r /var/cache/dbops-lab`` is fine while no lab runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.waiting import LabError

CACHE = Path("/var/cache/dbops-lab")
# The user that Ansible logs in as. What it may do is a scenario's business.
OPERATOR = "ansible"

_COMMON = (
    *("systemd", "systemd-sysv", "dbus", "iproute2", "procps", "ca-certificates", "openssh-server", "sudo"),
    *("python3", "python3-psycopg2", "python3-redis", "pgbouncer", "haproxy", "redis-server"),
)
# A scenario enables what it needs. The package's default cluster would be on the port of the one that is made.
_IDLE = (
    *("pgbouncer", "haproxy", "redis-server", "e2scrub_reap"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
)


@dataclass(frozen=True)
class Recipe:
    """A Debian release, the packages on top of its smallest variant, and shell commands that see the tree as $1."""

    suite: str
    packages: tuple[str, ...]
    commands: tuple[str, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


def _recipe(suite: str, postgresql: str, *packages: str, idle: tuple[str, ...] = ()) -> Recipe:
    return Recipe(
        suite,
        (*_COMMON, f"postgresql-{postgresql}", *packages),
        (
            f'chroot "$1" pg_dropcluster {postgresql} main',
            f'chroot "$1" systemctl --quiet disable {" ".join((*_IDLE, *idle))}',
            'chroot "$1" systemctl --quiet enable systemd-networkd',
            f'chroot "$1" useradd --create-home --shell /bin/bash --password "*" {OPERATOR}',
            'rm "$1"/etc/ssh/ssh_host_*',  # each host gets keys of its own
        ),
    )


RECIPES = {
    "debian12": _recipe("bookworm", "15", "patroni", "etcd-server", idle=("patroni", "etcd")),
    "debian13": _recipe("trixie", "17", "valkey-server", idle=("valkey-server",)),
}


def image(name: str) -> Path:
    """The tree of image ``name``, built where it is not in the cache, by one process at a time. Needs root."""
    if name not in RECIPES:
        raise LabError(f"no image {name}; there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    CACHE.mkdir(parents=True, exist_ok=True)
    tree = CACHE / f"{name}-{recipe.digest}"
    with (CACHE / f"{tree.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            started = time.monotonic()
            print(f"building {tree} with mmdebstrap; this happens once", file=sys.stderr, flush=True)
            scratch = Path(tempfile.mkdtemp(prefix=f"{tree.name}.", dir=CACHE))
            try:
                _build(recipe, scratch)
                scratch.rename(tree)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            print(f"built in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return tree


def _build(recipe: Recipe, tree: Path) -> None:
    hooks = [f"--customize-hook={command}" for command in recipe.commands]
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(recipe.packages)}", *hooks]
    sources = _sources(recipe.suite)
    done = subprocess.run(
        [*command, recipe.suite, str(tree), *(["-"] if sources else [])],
        input=sources,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode != 0:
        raise LabError(f"mmdebstrap {recipe.suite} failed: {done.stdout[-2000:]}")
    tree.chmod(0o755)


def _sources(suite: str) -> str:
    """apt sources from this machine's own mirrors. Empty, which is mmdebstrap's default, where this is no Debian."""
    release = platform.freedesktop_os_release()
    if release["ID"] != "debian":
        return ""
    own = release["VERSION_CODENAME"]
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = []
    for uri, name, component in (line.split() for line in sorted(set(listed.stdout.splitlines()))):
        if component == "main" and name in (own, f"{own}-updates", f"{own}-security"):
            lines.append(f"deb {uri} {suite}{name.removeprefix(own)} main\n")
    return "".join(lines)
