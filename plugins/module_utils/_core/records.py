# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of JSON lines that one module writes and another one reads: reports, plans of repairs, what undoes them.

They hold keys, and some of them values, of somebody's data, so their owner alone may read them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from .errors import DbopsError

Record = dict[str, Any]


class RecordFile:
    """Made anew, mode 0600. Raises DbopsError where that cannot be, ``option`` names what the path was given by."""

    def __init__(self, path: str, *, option: str, replace: bool) -> None:
        self.path = path
        if replace:
            with suppress(OSError):
                os.unlink(path)
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except FileExistsError as error:
            raise DbopsError(
                found=f"{option} {path} is there already",
                expected="a new file: an old one may be all that undoes an earlier run",
                remedy="give another name, or move it away",
            ) from error
        except OSError as error:
            raise DbopsError(
                found=f"cannot write {option} {path}: {error.strerror}",
                expected="a directory that the user running the module may write",
                remedy="create it, or give another path",
            ) from error
        directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def add(self, records: Iterable[Record], *, durable: bool = False) -> None:
        data = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
            if durable:
                os.fsync(self._file)
        except OSError as error:
            raise DbopsError(
                found=f"cannot write {self.path}: {error.strerror}",
                expected="room for it",
                remedy="make room, move the file away, and run again",
            ) from error

    def close(self) -> None:
        os.close(self._file)


def read_records(path: str, *, option: str) -> Iterator[Record]:
    """Line by line. A last line that a crash tore is left out; any other that is none is an error."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    yield record
                elif line.endswith("\n"):
                    raise DbopsError(
                        found=f"line {number} of {option} {path} is no record",
                        expected="the file as it was written",
                        remedy="write it anew by a check",
                    )
    except OSError as error:
        raise DbopsError(
            found=f"cannot read {option} {path}: {error.strerror}",
            expected="a file on the host that the module runs on",
            remedy="correct the path",
        ) from error
