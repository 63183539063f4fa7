# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy a detached table into a file, read that back into the server, drop the table when both hold the same rows.

``<archive_dir>/<database>/<schema>.<table>-<oid>.csv.gz`` holds the rows, the same name with ``.json`` what they were.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .._core.clock import Deadline
from .._core.errors import DbopsError
from .._postgresql.client import Session, copying
from .._postgresql.ddl import brief
from .._postgresql.locks import Statement
from .._postgresql.partition_archive import SETTINGS, by_table, copy_out, rows_and_hash, shown
from .._postgresql.partition_catalog import Detached, Partition, PartitionedTable, mark_archived, read_detached
from .table_work import TableWork

DAY = 24 * 3600.0  # seconds; what has no limit of its own
CHUNK = 1 << 20
_DESCRIPTION = """
SELECT (SELECT jsonb_agg(jsonb_build_object('name', attname, 'type', format_type(atttypid, atttypmod)) ORDER BY attnum)
          FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns,
       (SELECT jsonb_agg(conname || ' ' || pg_get_constraintdef(oid) ORDER BY conname)
          FROM pg_constraint WHERE conrelid = c.oid) AS constraints,
       (SELECT jsonb_agg(pg_get_indexdef(indexrelid) ORDER BY indexrelid)
          FROM pg_index WHERE indrelid = c.oid) AS indexes
  FROM pg_class c WHERE oid = %s
"""


@dataclass(frozen=True)
class Archive:
    """``file``: its path; ``rows``, ``hash``: of the table; ``sha256``: of the file; ``at``: Unix time."""

    file: str
    rows: int
    hash: str
    sha256: str
    at: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Archiver:
    def __init__(self, work: TableWork, table: PartitionedTable, directory: str) -> None:
        self.work = work
        self.table = table
        self.directory = Path(directory) / quote(work.endpoint.dbname, safe="")

    def archive(self, partition: Partition) -> None:
        """Only what was read back and is the same is noted as archived. Killed before, it is done again."""
        one = self._detached(partition)
        name = quote(f"{partition.schema}.{partition.name}-{partition.oid}", safe="")
        file = self.directory / f"{name}.csv.gz"
        with self.work.connect() as session:
            session.run(SETTINGS)
            session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            held = self._rows_and_hash(session, partition.sql)
            session.run("ROLLBACK")
        description = self.work.session.rows(_DESCRIPTION, [partition.oid])[0]
        self._write(partition, file)
        sha256 = _sha256(file)
        kept = self._read_back(partition, file)
        if held != kept:
            raise DbopsError(
                found=f"{partition.full_name} has {shown(held)}, its archive {file} {shown(kept)}",
                expected="the same rows",
                remedy="nothing was dropped; look at the disk of the archive, and run again",
            )
        found = Archive(str(file), held["rows"], held["hash"], sha256, int(self.work.clock.wall()))
        manifest = {"table": partition.full_name, "partition_of": self.table.full_name, "bound": one.table.bound}
        _durable(
            file.with_suffix("").with_suffix(".json"),
            json.dumps({**manifest, **found.as_dict(), **description}, indent=1),
        )
        statement = Statement(mark_archived(self.table, one, found.as_dict()))
        brief(self.work.session, [statement], patience=self.work.patience)

    def drop(self, partition: Partition, statements: tuple[Statement, ...]) -> None:
        """The lock, the comparison and the drop are one transaction. Nobody else uses a detached table."""
        archive = self._detached(partition).archive or {"file": "", "rows": -1}
        file = Path(archive["file"])
        if not file.is_file() or _sha256(file) != archive["sha256"]:
            state = "is another" if file.is_file() else "is not there"
            raise DbopsError(
                found=f"of {partition.full_name} the archive {file} {state}",
                expected="the file that was written and read back",
                remedy="bring it back to this host; or take the comment from the table, and it is archived again",
            )
        lock, drop = statements
        with self.work.connect() as session:
            session.run(SETTINGS)
            session.run("BEGIN")
            session.run(f"SET LOCAL lock_timeout = '{self.work.patience.last_ms}ms'")
            session.run(lock.sql)
            held = self._rows_and_hash(session, partition.sql)
            if (held["rows"], held["hash"]) != (archive["rows"], archive["hash"]):
                raise DbopsError(
                    found=f"{partition.full_name} has {shown(held)}, its archive {shown(archive)}",
                    expected="a table that nobody changed since it was archived",
                    remedy="find out who changed it; it was not dropped",
                )
            session.run(drop.sql)
            session.run("COMMIT")

    def _detached(self, partition: Partition) -> Detached:
        one = by_table(read_detached(self.work.session, self.table), partition)
        if one is None:
            raise DbopsError(
                found=f"{partition.full_name} is no longer a detached table of {self.table.full_name}",
                expected="what it was when this run began",
                remedy="somebody else works on it; run this again",
            )
        return one

    def _rows_and_hash(self, session: Session, sql: str) -> dict[str, Any]:
        return session.rows(rows_and_hash(sql), deadline=Deadline.after(self.work.clock, DAY))[0]

    def _write(self, partition: Partition, file: Path) -> None:
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            scratch = file.with_suffix(".new")
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as raw:
                with (
                    gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
                    self._copying() as session,
                ):
                    session.copy(copy_out(partition), packed)
                raw.flush()
                os.fsync(raw.fileno())
            os.rename(scratch, file)
            _sync_directory(file.parent)
        except OSError as error:
            raise DbopsError(
                found=f"cannot write {file}: {error.strerror}",
                expected="an archive directory with room that the user running the module may write",
                remedy="make room or correct archive_dir; nothing was dropped",
            ) from error

    def _read_back(self, partition: Partition, file: Path) -> dict[str, Any]:
        """Into a temporary table of the server: what cannot be read by it is no archive."""
        with self._copying() as session:
            session.run(f"CREATE TEMPORARY TABLE dbops_read_back (LIKE {partition.sql})")
            with gzip.open(file, "rb") as packed:
                session.copy("COPY pg_temp.dbops_read_back FROM STDIN (FORMAT csv)", packed)
            return self._rows_and_hash(session, "pg_temp.dbops_read_back")

    @contextmanager
    def _copying(self) -> Iterator[Session]:
        with copying(), self.work.connect() as session:
            session.run(SETTINGS)
            yield session


def check_directory(data_directory: str, archive_dir: str | None) -> str:
    """What is wrong with the directory, empty if nothing. An archive on the disk of the database is lost with it."""
    place = Path(archive_dir or "")
    if not archive_dir or not place.is_dir():
        return f"archive_dir {archive_dir or 'is not given'}: no directory on this host"
    with suppress(OSError):
        if data_directory and os.stat(data_directory).st_dev == place.stat().st_dev:
            return f"{archive_dir} is on the file system of the database, {data_directory}"
    return ""


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _durable(file: Path, text: str) -> None:
    scratch = file.with_suffix(".new")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as handle:
        handle.write(text + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.rename(scratch, file)
    _sync_directory(file.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
