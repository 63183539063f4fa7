# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's own programs that bring a diverged data directory back: pg_waldump, pg_rewind, pg_basebackup.

They run as the owner of the data directory (pg_rewind refuses root), with passwords in a file or in their environment,
never in their arguments.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .._core.errors import DbopsError
from .client import Endpoint, conninfo
from .local import LocalServer
from .lsn import format_lsn
from .receipt import LostTransaction, lost_transactions

CONFIGURATION = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf", "postgresql.auto.conf")
REWIND_FUNCTIONS = (
    "pg_ls_dir(text,boolean,boolean)",
    "pg_stat_file(text,boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text,bigint,bigint,boolean)",
)
"""What the source's login has to be allowed to call (https://www.postgresql.org/docs/current/app-pgrewind.html)."""


def program(local: LocalServer, name: str) -> str:
    """Its path, beside the server's own. Raises DbopsError where it is not installed."""
    path = os.path.join(local.programs(), name)
    if not os.path.isabs(path) or not os.access(path, os.X_OK):
        raise DbopsError(
            found=f"{name} is not in {local.programs() or 'bin_dir, which is not known while the server is down'}",
            expected=f"{name} of the server's own major version beside the server's program",
            remedy=f"install it or give bin_dir; without {name} only a new base backup can bring this member back",
        )
    return path


def read_lost(local: LocalServer, pieces: Sequence[tuple[int, int, int]]) -> list[LostTransaction]:
    """The transactions in these pieces of WAL (timeline, from, to) of a stopped server. Raises DbopsError."""
    lost: list[LostTransaction] = []
    for timeline, start, end in pieces:
        with tempfile.TemporaryFile("w+") as errors:
            argv = [program(local, "pg_waldump"), "--path", str(local.data_dir / "pg_wal"), "--timeline", str(timeline)]
            argv += ["--start", format_lsn(start), "--end", format_lsn(end)]
            with subprocess.Popen(  # pylint: disable=ansible-bad-function # its output may be gigabytes
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=local.data_dir,
                **local.identity(),
            ) as process:  # fmt: skip
                lost += lost_transactions(process.stdout or ())
            code = process.returncode
            errors.seek(0)
            said = " ".join(errors.read()[-400:].split())
        if code != 0:
            raise DbopsError(
                found=f"pg_waldump, timeline {timeline}, {format_lsn(start)} to {format_lsn(end)}: {said}",
                expected="the WAL that is to be thrown away can be read, so that a receipt can say what it holds",
                remedy="put the missing WAL files back into pg_wal, or take a new base backup without a receipt",
            )
    return lost


def in_database(endpoint: Endpoint, name: str) -> Endpoint:
    return replace(endpoint, dbname=name)


@contextmanager
def _login(local: LocalServer, source: Endpoint) -> Iterator[tuple[str, dict[str, str]]]:
    """A connection string without a secret, and an environment that has it, for a program of the owner. A passfile of
    root's is copied for the time of the call."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": "/nonexistent"}
    with tempfile.TemporaryDirectory(prefix="dbops-") as scratch:
        if source.password:
            environment["PGPASSWORD"] = source.password
        elif source.passfile:
            owner = local.data_dir.stat()
            copy = Path(scratch) / "passfile"
            shutil.copyfile(source.passfile, copy)
            copy.chmod(0o600)
            if os.geteuid() == 0:
                os.chown(scratch, owner.st_uid, owner.st_gid)
                os.chown(copy, owner.st_uid, owner.st_gid)
            environment["PGPASSFILE"] = str(copy)
        plain = replace(source, password="", passfile="")
        words = plain.parameters(application_name="dbops rewind", connect_timeout=10, replication=False)
        yield conninfo({key: str(value) for key, value in words.items()}), environment


def rewind(local: LocalServer, source: Endpoint, *, dry_run: bool, timeout: float) -> str:
    """Run pg_rewind on a cleanly stopped data directory that has diverged; what it said, on one line.

    Raises DbopsError, also where it finds nothing to rewind.

    ``--no-ensure-shutdown``: the caller has let the server recover and stop as a standby, which also works where
    standby.signal is planted and where the configuration lies elsewhere; pg_rewind's own recovery does not.
    """
    with _login(local, source) as (dsn, environment):
        argv = [program(local, "pg_rewind"), "--target-pgdata", str(local.data_dir), "--source-server", dsn]
        argv += ["--no-ensure-shutdown", *(["--dry-run"] if dry_run else ["--write-recovery-conf"])]
        done = local.run_as_owner(argv, timeout=timeout, environment=environment)
    said = " ".join((done.stdout + done.stderr).split())[-600:]
    if done.returncode != 0 or "no rewind required" in said:
        raise DbopsError(
            found=f"pg_rewind{' --dry-run' if dry_run else ''} failed: {said}",
            expected="a data directory that can be rewound to where the primary left its timeline",
            remedy="allow a new base backup (rejoin_by_base_backup), or mend what pg_rewind names",
        )
    return said


def base_backup(local: LocalServer, source: Endpoint, target: Path, *, timeout: float) -> None:
    """A fresh copy of the primary in ``target``. Raises DbopsError."""
    with _login(local, source) as (dsn, environment):
        argv = [program(local, "pg_basebackup"), "--pgdata", str(target), "--dbname", dsn, "--wal-method", "stream"]
        argv += ["--checkpoint", "fast", "--no-password"]
        done = local.run_as_owner(argv, timeout=timeout, environment=environment)
    if done.returncode != 0:
        raise DbopsError(
            found=f"pg_basebackup failed: {' '.join((done.stdout + done.stderr).split())[-600:]}",
            expected="a copy of the primary",
            remedy="mend what it names; the old data directory was not touched",
        )
