# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two servers that are to hold the same data: sessions that only read, and how one follows the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from .._core.clock import Clock, Deadline, wait_until
from .._core.errors import DbopsError
from .._postgresql.client import Session, connect
from .._postgresql.lsn import format_lsn, parse_lsn
from .._postgresql.session_settings import READ_ONLY, SAME_EVERYWHERE, UNLIMITED, set_all
from .members import endpoint, refuse_pooler

T = TypeVar("T")

LOGIN_SECONDS = 10.0
CALL_SECONDS = 60.0
STATEMENT_SECONDS = 24 * 3600.0  # of one piece, which may be the whole table
TRIES = 6
AGAIN = ("40001", "40P01", "57P01", "08006", "08003", "55P03")
CONFLICT = "conflict with recovery"
"""A standby cancelled us, because we were in the way of what it replays; it may do so while we log in, too."""
POLL_SECONDS = 0.01

_IDENTITY = """
SELECT (SELECT system_identifier FROM pg_control_system()) AS system, pg_is_in_recovery() AS recovering,
       greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                CASE WHEN NOT pg_is_in_recovery()
                     THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END) AS timeline,
       current_database()::text AS database, pg_postmaster_start_time()::text AS started
"""
_SUBSCRIBED = """
SELECT subslotname::text FROM pg_subscription
 WHERE subenabled AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_SLOTS = """
SELECT slot_name::text FROM pg_replication_slots
 WHERE slot_type = 'logical' AND database = current_database() AND slot_name = ANY(%s)
"""
_CONFIRMED = "SELECT min(confirmed_flush_lsn)::text FROM pg_replication_slots WHERE slot_name = ANY(%s)"
_WRITTEN = (
    "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text"
)
_REPLAYED = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE 'FFFFFFFF/FFFFFFFF' END::text"
_LAG = """
SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)), 0)::bigint AS lag
  FROM pg_stat_replication WHERE NOT pg_is_in_recovery()
"""


def _passing(error: DbopsError) -> bool:
    """Whether the same statement may well work in a moment."""
    return error.details.get("sqlstate") in AGAIN or CONFLICT in error.found or "connection is closed" in error.found


class Side:
    """``name``: source or target. Each thread has a session of its own, which is opened again where it broke: the
    caller's, and ``workers`` more."""

    def __init__(
        self, name: str, options: dict[str, Any], *, clock: Clock, parallel: int = 0, workers: int = 1
    ) -> None:
        self.name = name
        self.endpoint = endpoint({**options, "name": name})
        self.clock = clock
        self.retries = 0
        self._pool = ThreadPoolExecutor(workers)
        self._settings = {
            **SAME_EVERYWHERE,
            **UNLIMITED,
            **READ_ONLY,
            "max_parallel_workers_per_gather": str(parallel),
            "idle_in_transaction_session_timeout": "0",
        }
        self._local = threading.local()
        self._opened: list[Session] = []
        self._snapshot = ""

    def connect(self) -> Session:
        session = connect(
            self.endpoint, clock=self.clock, timeout=LOGIN_SECONDS, application_name="dbops consistency_check"
        )
        session.timeout = CALL_SECONDS
        refuse_pooler(session)
        session.run(set_all(self._settings, session.raw.server_version))
        self._opened.append(session)
        return session

    @property
    def session(self) -> Session:
        """This thread's, in autocommit mode: every statement has a snapshot of its own."""
        return self._kept("live", self.connect)

    @property
    def _reader(self) -> Session:
        """This thread's for the pieces: within the run's snapshot, if there is one."""
        return self._kept("reader", self._connect_reader) if self._snapshot else self.session

    def _connect_reader(self) -> Session:
        session = self.connect()
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            session.run(f"SET TRANSACTION SNAPSHOT '{self._snapshot}'")
        except DbopsError as error:
            raise DbopsError(
                found=f"{error.found}; the snapshot of the run is lost",
                expected="a server that keeps it to the end",
                remedy="with snapshot: run a standby must not cancel long reads (hot_standby_feedback, or a longer"
                " max_standby_streaming_delay); or use snapshot: piece",
            ) from error
        return session

    def _kept(self, name: str, make: Callable[[], Session]) -> Session:
        session: Session | None = getattr(self._local, name, None)
        if session is None or session.closed:
            session = make()
            setattr(self._local, name, session)
        return session

    def take_snapshot(self) -> None:
        """From here on all pieces of this side are read as of now."""
        holder = self.connect()
        holder.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        self._snapshot = holder.value("SELECT pg_export_snapshot()")

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        """Let one of the workers do it."""
        return self._pool.submit(call, *arguments)

    def read(self, statement: str) -> list[tuple[Any, ...]]:
        """Of a piece. Tried again where the server could not let us finish."""
        return self._again(lambda: self._read(statement))

    def look(self, statement: str) -> list[tuple[Any, ...]]:
        """As of now, whatever the snapshot of the run."""
        return self._again(lambda: self._tuples(self.session, statement))

    def ask(self, question: Callable[[Session], T]) -> T:
        """Reads of the catalog and other brief ones."""
        return self._again(lambda: question(self.session))

    def _read(self, statement: str) -> list[tuple[Any, ...]]:
        reader = self._reader
        try:
            return self._tuples(reader, statement)
        except DbopsError:
            if self._snapshot:
                reader.close()  # its transaction is aborted; the next one joins the snapshot again
            raise

    def _tuples(self, session: Session, statement: str) -> list[tuple[Any, ...]]:
        return session.tuples(statement, deadline=Deadline.after(self.clock, STATEMENT_SECONDS))

    def _again(self, attempt: Callable[[], T]) -> T:
        for number in range(TRIES):
            try:
                return attempt()
            except DbopsError as error:
                if number == TRIES - 1 or not _passing(error):
                    raise
                self.retries += 1
                self.clock.sleep(0.1 * 2**number)
        raise AssertionError("the last attempt returns or raises")

    def identity(self) -> dict[str, Any]:
        """What says later whether a login leads to the same server: system, timeline, database."""
        row = self.ask(lambda session: session.rows(_IDENTITY)[0])
        return {"system": str(row["system"]), "timeline": row["timeline"], "database": row["database"]}

    def close(self) -> None:
        self._pool.shutdown()
        for session in self._opened:
            session.close()


@dataclass
class Link:
    """How the sides depend on each other. ``kind``: physical, logical, none; ``leader`` is where changes come from."""

    kind: str
    leader: Side
    follower: Side
    slots: list[str]
    lag_timeout: float

    def wait(self) -> None:
        """Until the follower has applied what the leader has written by now. Raises where it does not in time."""
        if self.kind == "none":
            return
        wanted = parse_lsn(self.leader.ask(lambda session: session.value(_WRITTEN)))
        wait_until(
            lambda: format_lsn(self._applied()),
            lambda applied: parse_lsn(applied) >= wanted,
            deadline=Deadline.after(self.leader.clock, self.lag_timeout),
            interval=POLL_SECONDS,
            what=f"{self.follower.name} has applied {format_lsn(wanted)}, where {self.leader.name} was, so that"
            " differences can be told from delay",
            remedy="look at the replication (paused? stopped? slow?), or raise lag_timeout",
        )

    def _applied(self) -> int:
        if self.kind == "physical":
            text = self.follower.ask(lambda session: session.value(_REPLAYED))
        else:
            text = self.leader.ask(lambda session: session.value(_CONFIRMED, [self.slots]))
        return parse_lsn(text) if text else 0


def _slots(session: Session, *, slots: list[str]) -> list[dict[str, Any]]:
    return session.rows(_SLOTS, [slots])


def find_link(source: Side, target: Side, *, lag_timeout: float) -> Link:
    """By what the servers say of themselves."""
    here, there = (side.ask(lambda session: session.rows(_IDENTITY)[0]) for side in (source, target))
    same = here["system"] == there["system"]
    if same and (here["started"], here["database"]) == (there["started"], there["database"]):
        raise DbopsError(
            found=f"{source.endpoint.label} and {target.endpoint.label} are one and the same server",
            expected="two servers, or two databases: a server is always the same as itself",
            remedy="correct source and target (a name may lead to whoever is the primary)",
        )
    if same and (here["recovering"] or there["recovering"]):
        leader, follower = (source, target) if there["recovering"] else (target, source)
        return Link("physical", leader, follower, [], lag_timeout)
    for leader, follower in ((source, target), (target, source)):
        slots = [row[0] for row in follower.look(_SUBSCRIBED) if row[0]]
        found = leader.ask(partial(_slots, slots=slots)) if slots else []
        names = [row["slot_name"] for row in found]
        if names:
            return Link("logical", leader, follower, names, lag_timeout)
    return Link("none", source, target, [], lag_timeout)


def _lag(session: Session) -> int:
    return int(session.value(_LAG))


class Throttle:
    """Between pieces: rest for a share of the time, and let standbys catch up."""

    def __init__(self, sides: list[Side], *, duty_percent: int, max_lag_bytes: int, clock: Clock) -> None:
        self._sides = sides
        self._duty = duty_percent
        self._most = max_lag_bytes
        self._clock = clock

    def after(self, worked: float) -> None:
        """``worked``: seconds that the piece took."""
        if self._duty < 100:
            self._clock.sleep(worked * (100 / self._duty - 1))
        while self._most and max(side.submit(side.ask, _lag).result() for side in self._sides) > self._most:
            self._clock.sleep(0.25)


@contextmanager
def two_sides(
    source: dict[str, Any], target: dict[str, Any], *, clock: Clock, parallel: int, workers: int
) -> Iterator[tuple[Side, Side]]:
    sides = (
        Side("source", source, clock=clock, parallel=parallel, workers=workers),
        Side("target", target, clock=clock, parallel=parallel, workers=workers),
    )
    try:
        yield sides
    finally:
        for side in sides:
            side.close()
