# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brief DDL on relations that clients use: wait for a lock for milliseconds only, give up, try again, within a bound.

A statement that waits for a lock makes everybody wait who comes after it, also those who would not conflict with those
before it. So the wait is short (``lock_timeout``), it is tried again after a pause that clients get through in, and
there is no last try without a limit.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .._core.clock import Deadline
from .._core.errors import DbopsError
from .client import Session
from .locks import Lock, Statement, conflicting, strongest

LONGEST_PAUSE = 2.0  # seconds
TRY_AGAIN = ("55P03", "40P01")  # lock_not_available, deadlock_detected

_BLOCKERS = """
SELECT held.pid, coalesce(usename, backend_type, 'prepared transaction ' || gid) AS "user", state,
       coalesce(application_name, '') AS application_name, coalesce(host(client_addr), 'local') AS client, held.mode,
       round(extract(epoch FROM now() - coalesce(xact_start, prepared)))::bigint AS transaction_s,
       coalesce(backend_type, '') = 'autovacuum worker' AS autovacuum
  FROM pg_locks AS held JOIN pg_class ON pg_class.oid = held.relation
       JOIN pg_namespace ON pg_namespace.oid = relnamespace LEFT JOIN pg_stat_activity USING (pid)
       LEFT JOIN pg_locks AS own ON held.pid IS NULL AND own.pid IS NULL AND own.locktype = 'transactionid'
                                AND own.virtualtransaction = held.virtualtransaction
       LEFT JOIN pg_prepared_xacts ON transaction = own.transactionid
 WHERE held.locktype = 'relation' AND held.granted AND held.mode = ANY(%s)
   AND %s IN (nspname || '.' || relname, quote_ident(nspname) || '.' || quote_ident(relname),
              '"' || replace(nspname, '"', '""') || '"."' || replace(relname, '"', '""') || '"')
   AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND held.pid IS DISTINCT FROM pg_backend_pid()
 ORDER BY coalesce(xact_start, prepared), held.pid
"""

_PREPARE = """
SELECT set_config('lock_timeout', %s, true), set_config('synchronous_commit', 'local', true),
       CASE WHEN {deadlock} THEN set_config('deadlock_timeout', '10ms', true) END
"""
# The lock is held until the commit has ended, which must not wait for a standby. An automatic vacuum gives way to who
# has waited for deadlock_timeout; at its default of 1 s nobody who gives up earlier ever sees that.
_DEADLOCK_OLD = "current_setting('is_superuser') = 'on'"
_DEADLOCK_15 = f"{_DEADLOCK_OLD} OR has_parameter_privilege('deadlock_timeout', 'SET')"


def may_set_deadlock_timeout(version_num: int) -> str:
    """An SQL condition."""
    return _DEADLOCK_15 if version_num >= 150000 else _DEADLOCK_OLD


@dataclass(frozen=True)
class Patience:
    """How long brief statements wait. Milliseconds for one lock, growing from ``first_ms`` to ``last_ms``; at most
    ``tries`` tries and ``seconds`` seconds in all."""

    first_ms: int = 50
    last_ms: int = 50
    tries: int = 1_000_000
    seconds: float = 120.0

    def lock_timeout_ms(self, attempt: int) -> int:
        """Of the attempt with this number, the first being 0."""
        return int(min(self.last_ms, self.first_ms * 1.2 ** min(attempt, 100)))


@dataclass(frozen=True)
class Blocker:
    """A session, or a prepared transaction (``pid`` 0), that holds what a statement would wait for."""

    relation: str
    mode: str
    pid: int
    user: str
    application_name: str
    client: str
    state: str
    transaction_s: int
    autovacuum: bool

    def __str__(self) -> str:
        who = f"pid {self.pid} ({self.user}, {self.application_name or 'no application_name'}, {self.client})"
        return (
            f"{who if self.pid else self.user} holds {self.mode} of {self.relation}, "
            f"{self.state or 'at work'}, transaction of {self.transaction_s} s"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def blockers(session: Session, locks: Iterable[Lock]) -> list[Blocker]:
    """Who holds, right now, a lock that one of ``locks`` would wait for. Relations are named with their
    schema, quoted or not; one that does not exist yet has no blockers."""
    found = []
    for lock in locks:
        for row in session.rows(_BLOCKERS, [list(conflicting(lock.mode)), lock.relation]):
            words = {key: value for key, value in row.items() if value is not None}
            found.append(Blocker(**{"pid": 0, "state": "", "transaction_s": 0, "relation": lock.relation, **words}))
    return found


def brief(session: Session, statements: Sequence[Statement], *, patience: Patience) -> int:
    """Run ``statements`` in one transaction that waits for each lock only briefly; the number of tries it took.

    Raises DbopsError with the blockers that were seen when the patience is over, and at once for any other error. In
    both cases nothing was done.
    """
    deadline = Deadline.after(session.clock, patience.seconds)
    seen: dict[tuple[int, str], Blocker] = {}
    for attempt in range(patience.tries):
        wait_ms = patience.lock_timeout_ms(attempt)
        try:
            _transaction(session, statements, wait_ms)
        except DbopsError as error:
            if error.details.get("sqlstate") not in TRY_AGAIN:
                raise
        else:
            return attempt + 1
        seen.update({(found.pid, found.relation): found for found in blockers(session, strongest(statements))})
        if deadline.passed():
            break
        # Whoever queued behind us gets through meanwhile; the longer it lasts, the less often it is tried.
        pause = min(LONGEST_PAUSE, random.uniform(2, 5) * wait_ms / 1000 * 1.05 ** min(attempt, 100))
        session.clock.sleep(min(pause, deadline.left()))
    raise DbopsError(
        found=f"{session.endpoint.label}: in {attempt + 1} tries of up to {wait_ms} ms no locks for: "
        f"{_shown(statements)}. Seen holding them: "
        f"{'; '.join(str(found) for found in seen.values()) or 'nobody, they were held for moments'}",
        expected="nobody holds a conflicting lock for long",
        remedy="end those transactions or wait for them, then run this again: it goes on where it stopped",
        details={"blockers": [found.as_dict() for found in seen.values()]},
    )


def _transaction(session: Session, statements: Sequence[Statement], wait_ms: int) -> None:
    deadlock = may_set_deadlock_timeout(session.raw.server_version)
    session.run("BEGIN")
    try:
        session.run(_PREPARE.format(deadlock=deadlock), [f"{wait_ms}ms"])
        for statement in statements:
            session.run(statement.sql)
        session.run("COMMIT")
    except DbopsError:
        if not session.closed:
            session.run("ROLLBACK")
        raise


def _shown(statements: Sequence[Statement]) -> str:
    """A few of them: whoever reads this looks for the holders."""
    few = "; ".join(statement.sql for statement in statements[:3])
    return few + (f"; and {len(statements) - 3} more" if len(statements) > 3 else "")
