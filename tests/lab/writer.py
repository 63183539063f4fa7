# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Concurrent transfers with a client-side log: the witness of every test that claims "nothing lost".

The writer is a process of its own, so that neither a test nor Ansible competes with it for one interpreter, and so that
it survives whatever the test breaks. Each of its threads holds one connection and repeats: BEGIN, debit one account,
credit another, two journal rows whose ids it chose itself, COMMIT, one line in the log. The line is in the file before
the next transaction starts.

The log is JSON lines:

    {"id": int, "start": s, "end": s, "wall": s, "outcome": str, "error": str, "xid": int}

``start`` and ``end`` are monotonic seconds, ``wall`` is the Unix time of ``end``. Transfer ``id`` owns the journal rows
``2 * id`` (debit) and ``2 * id + 1`` (credit); ``xid`` was its transaction (0: not known). ``outcome`` is what a client
knows, never more:

* ``acknowledged`` the server answered COMMIT to COMMIT;
* ``failed``       COMMIT was never sent, or answered with ROLLBACK: certainly not committed;
* ``unknown``      anything else that happened after COMMIT was sent;
* ``refused``      no connection (``id`` is 0).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from tests.lab import ledger

# How long transactions under way may take to end once the writer is told to stop.
DRAIN_SECONDS = 5.0

# Accounts are locked in the order of user_id, so two transfers never wait for each other in a circle.
_TRANSFER = """
BEGIN;
SELECT pg_sleep(%(hold)s) WHERE %(hold)s > 0;
UPDATE accounts SET available = available + %(first_amount)s, total = total + %(first_amount)s,
    version = version + 1, updated_at = clock_timestamp() WHERE user_id = %(first)s AND currency = %(currency)s;
UPDATE accounts SET available = available + %(second_amount)s, total = total + %(second_amount)s,
    version = version + 1, updated_at = clock_timestamp() WHERE user_id = %(second)s AND currency = %(currency)s;
INSERT INTO transaction_journal (id, user_id, currency, type, amount) VALUES
    (%(debit_id)s, %(debit)s, %(currency)s, 'debit', %(amount)s),
    (%(credit_id)s, %(credit)s, %(currency)s, 'credit', %(amount)s)
    RETURNING pg_current_xact_id()::text::bigint;
"""


@dataclass(frozen=True)
class Config:
    """What one writer process does. It travels in a file of mode 0600, because ``conninfo`` may hold a password.

    ``conninfo``: libpq keywords, here with lists ``host`` and ``port`` where there are several servers to choose from.
    ``think_ms``: mean pause of a connection between two transactions. ``rate``: instead of that, so many transactions
    per second are begun by all connections together, each at its own time; what could not begin in time begins as soon
    as it can, so a pause does not lower the load (an open loop). ``hold_ms``: a transaction stays open that long before
    it locks anything. ``retry_ms``: pause after a failed connect.
    ``parent``: the writer ends when its parent is no longer this process (0: whoever started it).
    """

    log: str
    conninfo: dict[str, Any] = field(repr=False)
    connections: int = 20
    think_ms: float = 20.0
    rate: float = 0.0
    hold_ms: float = 0.0
    retry_ms: float = 5.0
    max_seconds: float = 300.0
    users: int = ledger.USERS
    parent: int = 0


class _Load:
    """The threads of one writer process."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.stopping = threading.Event()
        # Ids of two writers, or of two runs on one database, must not meet: 30 random bits, then a counter.
        self._ids = itertools.count((secrets.randbits(30) << 32) + 1)
        self._open: dict[int, float] = {}
        self._turns = itertools.count()
        self._began = time.monotonic()
        self._log = os.open(config.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # Twenty clients that each try a SCRAM login every few ms would take the processor from the very servers they
        # wait for, and lengthen the pause they measure. Two at a time find a new primary just as soon.
        self._connecting = threading.BoundedSemaphore(2)

    def run(self) -> None:
        """Write until told to stop, until ``max_seconds`` are over, or until the parent is gone."""
        workers = [threading.Thread(target=self._work, daemon=True) for _worker in range(self.config.connections)]
        ends = time.monotonic() + self.config.max_seconds
        parent = self.config.parent or os.getppid()
        for worker in workers:
            worker.start()
        while not self.stopping.wait(0.2):
            if time.monotonic() > ends or os.getppid() != parent:
                self.stopping.set()
        drained = time.monotonic() + DRAIN_SECONDS
        for worker in workers:
            worker.join(max(0.0, drained - time.monotonic()))
        for transfer in list(self._open):
            self._record(transfer, "unknown", "the writer ended while this transaction was under way")

    def _work(self) -> None:
        """One connection's life. After any error it starts over with a new connection, as a careful client does."""
        connection: Connection | None = None
        while not self.stopping.is_set():
            connection = connection or self._connect()
            if connection is None:
                self.stopping.wait(self.config.retry_ms / 1000)
            elif self._wait_for_turn() and self._transfer(connection):
                if not self.config.rate:
                    self.stopping.wait(self.config.think_ms / 1000 * random.uniform(0.5, 1.5))
            elif not self.stopping.is_set():
                connection.close()
                connection = None

    def _wait_for_turn(self) -> bool:
        """Open loop: until the time of the next transaction; False when there is to be none."""
        if self.config.rate:
            due = self._began + next(self._turns) / self.config.rate
            self.stopping.wait(max(0.0, due - time.monotonic()))
        return not self.stopping.is_set()

    def _connect(self) -> Connection | None:
        with self._connecting:
            if self.stopping.is_set():
                return None
            start = time.monotonic()
            try:
                connection: Connection = psycopg2.connect(**self.config.conninfo)
                connection.autocommit = True  # BEGIN and COMMIT are ours, so that we know what was sent
                return connection
            except psycopg2.Error as error:
                self._write(0, start, "refused", _text(error))
                return None

    def _transfer(self, connection: Connection) -> bool:
        """One transaction and its line in the log; False if the connection is to be given up."""
        debit, credit = random.sample(range(1, self.config.users + 1), 2)
        amount = random.randint(1, 100)
        transfer = next(self._ids)
        values = {
            "first": min(debit, credit),
            "second": max(debit, credit),
            "first_amount": -amount if debit < credit else amount,
            "second_amount": amount if debit < credit else -amount,
            "debit": debit,
            "credit": credit,
            "debit_id": 2 * transfer,
            "credit_id": 2 * transfer + 1,
            "amount": amount,
            "hold": self.config.hold_ms / 1000,
            "currency": ledger.CURRENCY,
        }
        self._open[transfer] = time.monotonic()
        outcome, xid = "failed", 0
        try:
            with connection.cursor() as cursor:
                cursor.execute(_TRANSFER, values)
                xid = (cursor.fetchone() or (0,))[0]
                outcome = "unknown"
                cursor.execute("COMMIT")
                # COMMIT of an aborted transaction is no error; its answer says ROLLBACK.
                outcome = "acknowledged" if cursor.statusmessage == "COMMIT" else "failed"
                error = "" if outcome == "acknowledged" else f"COMMIT was answered with {cursor.statusmessage}"
        except psycopg2.Error as problem:
            error = _text(problem)
        self._record(transfer, outcome, error, xid)
        return outcome == "acknowledged"

    def _record(self, transfer: int, outcome: str, error: str, xid: int = 0) -> None:
        start = self._open.pop(transfer, None)
        if start is not None:  # else the main thread has already logged it as unknown
            self._write(transfer, start, outcome, error, xid)

    def _write(self, transfer: int, start: float, outcome: str, error: str, xid: int = 0) -> None:
        line = {
            "id": transfer,
            "start": round(start, 6),
            "end": round(time.monotonic(), 6),
            "wall": round(time.time(), 6),
            "outcome": outcome,
            "error": error,
            "xid": xid,
        }
        # One write of one line to a file opened for appending: threads need no lock, nothing waits in a buffer.
        os.write(self._log, json.dumps(line).encode() + b"\n")


def _text(error: psycopg2.Error) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Writers:
    """Starts and stops a writer process.

    ``endpoints``: (host, port) of one pooler or one server, or of several servers, of which libpq then picks the one
    that takes writes. ``passfile`` is preferred; ``password`` goes into the 0600 configuration, never to argv.
    ``directory`` receives writer.json, writer.log (JSON lines) and writer.err. Other keywords are fields of Config.

        with Writers(directory, [(pooler.host, pooler.port)], passfile=path) as writers:
            ...
        verdict = check(writers.log, connect)
    """

    def __init__(
        self,
        directory: Path,
        endpoints: Sequence[tuple[str, int]],
        *,
        user: str = "app",
        dbname: str = "accounts",
        passfile: str = "",
        password: str = "",
        **settings: Any,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.log = directory / "writer.log"
        self.config = Config(
            log=str(self.log),
            parent=os.getpid(),
            conninfo={
                "host": ",".join(host for host, _port in endpoints),
                "port": ",".join(str(port) for _host, port in endpoints),
                "user": user,
                "dbname": dbname,
                "application_name": "dbops_lab_writer",
                "connect_timeout": 2,
                **({"passfile": passfile} if passfile else {}),
                **({"password": password} if password else {}),
                **({"target_session_attrs": "read-write"} if len(endpoints) > 1 else {}),
            },
            **settings,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait_seconds: float = 15.0) -> None:
        """Start with an empty log and wait until there are as many acknowledged transfers as connections.

        Raises RuntimeError with what the writers saw if that does not happen in ``wait_seconds``.
        """
        self.log.unlink(missing_ok=True)
        config_file = self.directory / "writer.json"
        config_file.unlink(missing_ok=True)
        with open(os.open(config_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self.config), file)
        root = Path(__file__).parents[2]
        with open(self.directory / "writer.err", "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.writer", "--config", str(config_file)],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        deadline = time.monotonic() + wait_seconds
        while self._log_text().count(b'"acknowledged"') < self.config.connections:
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                seen = self._log_text() + (self.directory / "writer.err").read_bytes()
                raise RuntimeError(
                    f"the writers did not get going within {wait_seconds} s; last seen: {seen[-600:].decode()}"
                )
            time.sleep(0.05)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Let transactions under way end, then end the process. Harmless when it has ended already."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(DRAIN_SECONDS + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise RuntimeError(
                "the writer process did not end on SIGTERM and was killed; its log is incomplete"
            ) from None
        finally:
            self._process = None

    def _log_text(self) -> bytes:
        return self.log.read_bytes() if self.log.exists() else b""

    def __enter__(self) -> Writers:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="Concurrent transfers with a client-side log.")
    parser.add_argument("--config", required=True, type=Path, help="JSON file, mode 0600, with the fields of Config")
    parser.add_argument("--max-seconds", type=float, help="end after so many seconds, whatever the file says")
    arguments = parser.parse_args()
    settings = json.loads(arguments.config.read_text())
    if arguments.max_seconds is not None:
        settings["max_seconds"] = arguments.max_seconds
    load = _Load(Config(**settings))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: load.stopping.set())
    load.run()
    # A thread that hangs in libpq must not keep the process: what it had under way is logged as unknown.
    os._exit(0)


if __name__ == "__main__":
    main()
