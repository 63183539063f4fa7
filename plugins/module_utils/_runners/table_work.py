# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every run on one table has: a session that works, an idle one that holds the table's lease, and the journal.

The state of the work is in the catalog of the database, so nothing has to be read back from the journal.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._core.clock import Clock, Deadline
from .._core.errors import DbopsError
from .._core.journal import Journal, make_state_directory, params_hash
from .._core.operation import PlannedStep, Runner, Step
from .._postgresql.client import Session, connect
from .._postgresql.ddl import Patience, blockers, brief
from .._postgresql.lease import HOLDERS, TAKE, lease_key
from .._postgresql.locks import Statement, strongest
from .._postgresql.partition_steps import Transaction
from .._postgresql.session_settings import SAME_EVERYWHERE, UNLIMITED, set_all
from .members import endpoint, refuse_pooler

LOGIN_SECONDS = 10.0
LONG_SECONDS = 30 * 24 * 3600.0  # what has no limit of its own
LEASE_SECONDS = 2.0
CALL_SECONDS = 60.0  # for reads of the catalog and brief DDL; what takes long has a limit of its own

# The session that holds the lease is idle for as long as the others work.
_SESSION = {**SAME_EVERYWHERE, **UNLIMITED}


def hold_lease(session: Session, name: str, *, what: str) -> None:
    """Raises DbopsError where another run has it. It is tried for a moment, because the server may not have noticed yet
    that the session of the run before is closed."""
    key = lease_key(name)
    deadline = Deadline.after(session.clock, LEASE_SECONDS)
    while not session.value(TAKE, key):
        if deadline.passed():
            holders = session.rows(HOLDERS, key)
            who = "; ".join(f"pid {row['pid']} ({row['application_name']}, from {row['client']})" for row in holders)
            raise DbopsError(
                found=f"another run works on {what}: {who or 'unknown'}",
                expected=f"one run on {what} at a time",
                remedy="wait for that run to end (a cancelled AWX job leaves its module running), then run again",
            )
        session.clock.sleep(0.05)


def planned(name: str, summary: str, statements: Sequence[Statement]) -> PlannedStep:
    """A step of statements, with the strongest lock that they take of each relation."""
    locks = ", ".join(
        f"{lock.mode} of {lock.relation}"
        + (f" while {lock.scanned_bytes} bytes are read" if lock.scanned_bytes else "")
        for lock in strongest(statements)
    )
    return PlannedStep(name, summary, tuple(statement.sql for statement in statements), locks or "none")


class TableWork:
    """Open it with ``with``. Raises DbopsError where the server is a standby or a pooler stands before it."""

    def __init__(self, options: dict[str, Any], *, clock: Clock, verb: str) -> None:
        self.options = options
        self.clock = clock
        self.verb = verb
        self.endpoint = endpoint({**options, "name": options["login_db"]})  # an option may be called name, too
        self.patience = Patience(last_ms=options["lock_timeout_ms"], seconds=float(options["lock_wait_timeout"]))
        self.runner: Runner | None = None
        self.journal: Journal | None = None
        self._lease: Session | None = None
        self._started = clock.monotonic()

    def __enter__(self) -> TableWork:
        self.session = self.connect()
        refuse_pooler(self.session)
        if self.session.value("SELECT pg_is_in_recovery()"):
            raise DbopsError(
                found=f"{self.endpoint.label} is a standby",
                expected="the primary",
                remedy="log in to the primary (pg_cluster_info says which it is)",
            )
        return self

    def __exit__(self, *_exc: object) -> None:
        for session in (self.session, self._lease):
            if session is not None:
                session.close()
        if self.journal is not None:
            self.journal.close()

    @property
    def version_num(self) -> int:
        return int(self.session.raw.server_version)

    def connect(self) -> Session:
        """One more session, with settings under which the server prints bounds and names the same everywhere."""
        session = connect(self.endpoint, clock=self.clock, timeout=LOGIN_SECONDS, application_name=f"dbops {self.verb}")
        session.timeout = CALL_SECONDS
        session.run(set_all(_SESSION, session.raw.server_version))
        return session

    def take_lease(self, table: str) -> None:
        """One run on a table at a time. The lock is held by a session that does nothing else: a session that waited for
        it, or held it in a transaction, would keep concurrent index builds waiting. It is tried for a moment, because
        the server may not have noticed yet that the session of the run before is closed."""
        self._lease = self.connect()
        hold_lease(self._lease, f"{self.endpoint.dbname}.{table}", what=table)

    def printed(self, step: PlannedStep, statements: Sequence[Statement], *, look: bool) -> dict[str, Any]:
        """A step as the result has it. ``look``: with who would block each statement right now."""
        by_statement = [
            {
                "sql": statement.sql,
                "locks": [lock.as_dict() for lock in statement.locks],
                "blocked_by": [found.as_dict() for found in blockers(self.session, statement.locks)] if look else [],
            }
            for statement in statements
        ]
        return {**step.as_dict(), "brief": all(one.brief for one in statements), "by_statement": by_statement}

    def open_journal(self, table: str, parameters: dict[str, Any]) -> Runner:
        """Called when there is something to do, so that check mode and an unchanged run leave nothing behind."""
        directory = Path(self.options["state_dir"]) / self.endpoint.dbname
        make_state_directory(directory)
        operation = f"{self.verb}-{int(self.clock.wall() * 1000)}"
        self.journal = Journal(
            directory / f"{operation}.jsonl", operation=operation, clock=self.clock, fingerprint=params_hash(parameters)
        )
        self.journal.append("plan", "opened", table=table)
        self.runner = Runner(journal=self.journal, clock=self.clock, started=self._started)
        return self.runner

    def execute(self, transaction: Transaction) -> None:
        if transaction.long:
            (statement,) = transaction.statements
            self.session.run(statement.sql, deadline=Deadline.after(self.clock, LONG_SECONDS))
        else:
            brief(self.session, transaction.statements, patience=self.patience)

    def undo(self, transaction: Transaction) -> None:
        if transaction.undo:
            brief(self.session, transaction.undo, patience=self.patience)

    def run(self, steps: list[Step]) -> None:
        """Apply them in order. When one fails, what was begun is undone: that takes away what only helps on the way,
        because a step whose effect is wanted has no undo. The next run goes on from there."""
        if self.runner is None or self.journal is None:
            raise AssertionError("open_journal comes first")
        try:
            with self.runner.signals():
                self.runner.run(steps)
        except DbopsError as error:
            self.runner.undo_all()
            with suppress(OSError):
                self.journal.append("plan", "closed", state="failed")
            raise error.with_details(timeline=self.runner.timeline, undo_errors=self.runner.undo_errors) from error
        self.journal.append("plan", "closed", state="done")


def planned_transaction(transaction: Transaction) -> PlannedStep:
    return planned(transaction.name, transaction.summary, transaction.statements)
