# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is who in the lab: the operating system's user, the database's users, their secrets and their grants."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
# postgres refuses root, and the user it runs as instead cannot enter root's home: as root, everything that this user
# executes or owns lies below here.
ROOT_HOME = Path("/var/lib/dbops-lab")
OS_USER = "dbopslab"

SUPERUSER = "postgres"  # the lab itself
OPERATOR = "dbops"  # what the modules log in as: least privilege
REPLICATION_USER = "replicator"
APPLICATION = "app"  # owns the database of the guide
POOLER_ADMIN = "pooler_admin"  # exists only in PgBouncer
DATABASE = "accounts"
# What pg_rewind calls on the server that it copies from.
REWIND_FUNCTIONS = (
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)
DATABASE_USERS = (SUPERUSER, OPERATOR, REPLICATION_USER, APPLICATION)


def server_owner() -> str:
    """The operating system user that servers run as; empty when that is the user who runs the lab."""
    if os.geteuid() != 0:
        return ""
    try:
        pwd.getpwnam(OS_USER)
    except KeyError:
        subprocess.run(
            ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", OS_USER],
            check=True,
        )
    return OS_USER


def server_home(directory: Path) -> Path:
    """Where the servers of the lab in ``directory`` live: right there, or as root where their owner can reach it."""
    if os.geteuid() != 0:
        return directory
    checkout = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:12]
    lab = hashlib.sha256(str(directory).encode()).hexdigest()[:12]
    return ROOT_HOME / checkout / f"{directory.name[:20]}-{lab}"


def run_as(owner: str) -> dict[str, Any]:
    """The arguments of subprocess that make a child run as ``owner``, with none of our environment's surprises."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
    if not owner:
        return {"env": environment}
    return {"env": environment, "user": owner, "group": owner, "extra_groups": []}


def give(path: Path, owner: str) -> None:
    """Hand a file or directory to ``owner`` (nothing to do when that is us)."""
    if owner:
        entry = pwd.getpwnam(owner)
        os.chown(path, entry.pw_uid, entry.pw_gid)


def make_directory(path: Path, owner: str, mode: int = 0o755) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    give(path, owner)
    return path


def write_file(path: Path, text: str, owner: str = "", mode: int = 0o600) -> Path:
    """Replace a file. A secret in it is never readable by others, not even for a moment."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
    scratch.chmod(mode)
    give(scratch, owner)
    scratch.replace(path)
    return path


def new_secrets() -> dict[str, str]:
    """Random passwords of one lab, by user name."""
    return {user: secrets.token_urlsafe(24) for user in (*DATABASE_USERS, POOLER_ADMIN)}


def load_secrets(path: Path) -> dict[str, str]:
    loaded: dict[str, str] = json.loads(path.read_text())
    return loaded


def passfile_text(passwords: Mapping[str, str], *users: str) -> str:
    """libpq's passfile for ``users`` on every port of this lab. The passwords hold no colon and no backslash."""
    return "".join(f"127.0.0.1:*:*:{user}:{passwords[user]}\n" for user in users)


def operator_grants(version: int) -> str:
    """The SQL that gives OPERATOR all that a switchover needs, and no more, on PostgreSQL major ``version``.

    Functions carry their privileges per database, so this is run in the database the operator logs in to (postgres).
    Parameters can be granted since 15 (GRANT ... ON PARAMETER) and pg_checkpoint is a role since 15; before that only
    a superuser may CHECKPOINT or ALTER SYSTEM.
    """
    if version < 15:
        return f"ALTER ROLE {OPERATOR} SUPERUSER"
    parameters = ["primary_conninfo", "primary_slot_name", "synchronous_standby_names", "wal_retrieve_retry_interval"]
    if version >= 17:
        parameters += ["sync_replication_slots", "synchronized_standby_slots"]
    return ";\n".join(
        [
            f"GRANT pg_monitor, pg_checkpoint TO {OPERATOR}",
            f"GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf() TO {OPERATOR}",
            f"GRANT EXECUTE ON FUNCTION {', '.join(REWIND_FUNCTIONS)} TO {OPERATOR}",
            f"GRANT CREATE ON DATABASE postgres TO {OPERATOR}",
            f"GRANT SET, ALTER SYSTEM ON PARAMETER {', '.join(parameters)} TO {OPERATOR}",
        ]
    )
