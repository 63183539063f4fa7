# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal: what a run meant to do and did. Intent only; the live system is the truth.

One file of JSON lines per operation, ``<state_dir>/<cluster>/<operation>.jsonl``, each line
``{v, op, seq, t, step, event, params_hash, data}``; ``t`` is Unix time in seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from .clock import Clock
from .errors import DbopsError

VERSION = 1


def params_hash(parameters: dict[str, Any]) -> str:
    """Fingerprint of the options that change an operation's meaning."""
    return hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_state_directory(path: Path) -> None:
    """``<state_dir>/<cluster>``, mode 0700, where it is missing. Not before something is to be written: check mode
    leaves nothing behind."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DbopsError(
            found=f"cannot create {path}: {error.strerror}",
            expected="a state directory that the user running the module may write",
            remedy=f"create it once: install -d -m 0700 -o <that user> {path.parent}, or set dbops_state_dir",
        ) from error


class Journal:
    """Append-only. Inside a write pause lines are written without fsync (``durable=False``), because a process that
    is killed loses nothing of them and the phase is derived from the servers; intent and the step that cannot be
    undone are always synced."""

    def __init__(self, path: Path, *, operation: str, clock: Clock, fingerprint: str = "") -> None:
        self.path = path
        self.operation = operation
        self.fingerprint = fingerprint
        self._clock = clock
        self._seq = max((record["seq"] for record in read_journal(path)), default=0) if path.exists() else 0
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # a host crash tore the last line

    def append(self, step: str, event: str, *, durable: bool = True, **data: Any) -> None:
        """``event``: start, done, failed, undoing, undone, undo failed, opened, closed, note. The only failpoint lives
        here: the environment variable ``DBOPS_FAILPOINT=<step>:before`` kills the process (SIGKILL) once the step's
        start is written, ``<step>:after`` when it is done but not yet written; ``undo_<step>`` likewise."""
        if event in ("done", "undone"):
            _failpoint(step, event, "after")
        self._seq += 1
        record = {
            "v": VERSION,
            "op": self.operation,
            "seq": self._seq,
            "t": round(self._clock.wall(), 6),
            "step": step,
            "event": event,
            "params_hash": self.fingerprint,
            "data": data,
        }
        os.write(self._file, (json.dumps(record, sort_keys=True, default=str) + "\n").encode())
        if durable:
            os.fsync(self._file)
        if event in ("start", "undoing"):
            _failpoint(step, event, "before")

    def close(self) -> None:
        os.close(self._file)


def _failpoint(step: str, event: str, moment: str) -> None:
    prefix = "undo_" if event.startswith("und") else ""
    if os.environ.get("DBOPS_FAILPOINT") == f"{prefix}{step}:{moment}":
        os.kill(os.getpid(), signal.SIGKILL)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that a host crash tore is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def open_operation(directory: Path) -> list[dict[str, Any]]:
    """Records of the newest operation that was opened and never closed on this host; empty where there is none."""
    for path in sorted(directory.glob("*.jsonl"), reverse=True):
        records = read_journal(path)
        if records and not any(record["event"] == "closed" for record in records):
            return records
        if records:
            return []
    return []


class LockFile:
    """Keeps two runs on one host apart. Released by the kernel when the process dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self, owner: str) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 200).decode(errors="replace").strip() or "unknown"
            self.release()
            raise DbopsError(
                found=f"another run holds {self.path}: {holder}",
                expected="one operation on this cluster at a time",
                remedy="wait for that run to end (a cancelled AWX job leaves its module running), then run again",
            ) from error
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{owner} pid {os.getpid()}\n".encode())

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
