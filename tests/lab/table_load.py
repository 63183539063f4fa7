# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A writer and a reader on one table while it is changed. Both keep their own log: what was acknowledged, what went
wrong, and the longest time that a client had to wait.

The writer inserts rows with numbers of its own, one after the other. The reader asks again and again for something of
which the answer must not change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg2
from psycopg2 import sql

from tests.lab.database import Database

PAUSE = 0.001  # seconds between two statements of a client


@dataclass
class Log:
    """Of one client. Waits in milliseconds."""

    acknowledged: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    answers: set[int] = field(default_factory=set)

    @property
    def longest(self) -> float:
        return max(self.waits, default=0.0)


class TableLoad:
    """Runs from ``with`` to its end. ``insert`` has one parameter, the row's number, and so have the statements of
    ``then``, which follow it; ``probe`` returns one value."""

    def __init__(
        self, database: Database, *, insert: str, probe: str, then: Sequence[str] = (), first: int = 1_000_000
    ) -> None:
        self.database = database
        self.writer, self.reader = Log(), Log()
        self._insert, self._probe, self._first, self._next = insert, probe, first, first
        self._then = then
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in (self._write, self._read)]

    def __enter__(self) -> TableLoad:
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + 10
        while not (self.writer.acknowledged and self.reader.answers):
            assert time.monotonic() < deadline, f"no load: {self.writer.errors} {self.reader.errors}"
            time.sleep(0.01)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def check(self, table: str, column: str = "id") -> None:
        """Nothing acknowledged is missing or there twice, no client got an error, and no reader missed a row."""
        statement = sql.SQL("SELECT {0} FROM {1} WHERE {0} >= %s ORDER BY 1").format(
            sql.Identifier(column), sql.Identifier(table)
        )
        numbers = [row[0] for row in self.database.sql(statement, [self._first])]
        assert self.writer.errors == []
        assert self.reader.errors == []
        assert numbers == sorted(self.writer.acknowledged)
        assert len(self.reader.answers) == 1, f"a reader was told {sorted(self.reader.answers)}"

    def _run(self, work: Callable[[psycopg2.extensions.cursor], None]) -> None:
        log = self.writer if work == self._write else self.reader
        connection = self.database.connect(application_name=f"load {work.__name__}")
        with connection.cursor() as cursor:
            while not self._stop.is_set():
                begin = time.monotonic()
                try:
                    work(cursor)
                except psycopg2.Error as error:
                    log.errors.append(" ".join(str(error).split()))
                log.waits.append((time.monotonic() - begin) * 1000)
                time.sleep(PAUSE)
        connection.close()

    def _write(self, cursor: psycopg2.extensions.cursor) -> None:
        number, self._next = self._next, self._next + 1
        cursor.execute(self._insert, (number,))
        self.writer.acknowledged.append(number)
        for statement in self._then:
            cursor.execute(statement, (number,))

    def _read(self, cursor: psycopg2.extensions.cursor) -> None:
        cursor.execute(self._probe)
        row = cursor.fetchone()
        assert row
        self.reader.answers.add(row[0])
