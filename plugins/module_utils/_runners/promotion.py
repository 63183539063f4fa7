# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every promotion does, planned or not: slots, the promotion itself, the others that follow, the fork."""

from __future__ import annotations

from typing import Any, Protocol

from .._core.clock import Clock, Deadline, wait_until
from .._core.errors import DbopsError
from .._core.operation import PlannedStep, Step
from .._postgresql.catalog import OPERATION_TABLE, read_receiver
from .._postgresql.client import Session
from .._postgresql.switchover_plan import Follower, Member
from .._postgresql.timelines import history_switchpoint
from .members import ClusterSessions, read_history, replication_endpoint, standby_conninfo

CALL_SECONDS = 10.0
FORWARD_SECONDS = 60.0
POLL_SECONDS = 0.002
PROMOTE_AGAIN_SECONDS = 0.15
NOT_IN_RECOVERY = "55000"


class PromotionPlan(Protocol):
    """The part of a plan that is used here."""

    @property
    def candidate(self) -> str: ...

    @property
    def old_timeline(self) -> int: ...

    @property
    def retry_interval_before(self) -> str | None: ...


class PromotionSteps:
    """``options`` has the replication words and ``follow_timeout`` of replica_promote."""

    def __init__(
        self,
        *,
        options: dict[str, Any],
        members: dict[str, Member],
        sessions: ClusterSessions,
        clock: Clock,
        plan: PromotionPlan,
    ) -> None:
        self.options = options
        self.members = members
        self.sessions = sessions
        self.clock = clock
        self.promotion = plan

    def hands(self, planned: dict[str, PlannedStep]) -> dict[str, Step]:
        """Each planned step with its ``apply_<step>`` and, where there is one, its ``undo_<step>``."""
        return {name: self._step(step) for name, step in planned.items()}

    def _step(self, planned: PlannedStep) -> Step:
        apply = getattr(self, f"apply_{planned.name}")
        undo = getattr(self, f"undo_{planned.name}", None)
        return Step(planned, apply, undo) if undo else Step(planned, apply)

    @staticmethod
    def create_slot(session: Session, name: str, *, reserve: bool, deadline: Deadline | None = None) -> None:
        session.run(
            """SELECT pg_create_physical_replication_slot(%s, %s)
                WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)""",
            [name, reserve, name],
            deadline=deadline,
        )

    @staticmethod
    def drop_slot(session: Session, name: str, *, deadline: Deadline | None = None) -> None:
        session.run(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s AND NOT active",
            [name],
            deadline=deadline,
        )

    @staticmethod
    def alter_system(session: Session, name: str, value: str | None) -> None:
        """None resets. ``name`` comes from this collection, never from outside."""
        if value is None:
            session.run(f"ALTER SYSTEM RESET {name}")
        else:
            session.run(f"ALTER SYSTEM SET {name} = %s", [value])

    @staticmethod
    def make_operation_table(session: Session) -> None:
        for name, statement in OPERATION_TABLE.items():
            if session.value(f"SELECT {name}") is None:
                session.run(statement)

    def restore_retry_interval(self, session: Session) -> None:
        self.alter_system(session, "wal_retrieve_retry_interval", self.promotion.retry_interval_before)

    def writable(self, name: str) -> bool:
        try:
            return self.sessions.to(name, timeout=2.0).value("SELECT NOT pg_is_in_recovery()") is True
        except DbopsError:
            self.sessions.drop(name)
            return False

    def apply_promote(self) -> None:
        candidate = self.sessions.to(self.promotion.candidate)
        deadline = Deadline.after(self.clock, FORWARD_SECONDS)
        sent_at = -1.0
        while candidate.value("SELECT pg_is_in_recovery()", deadline=deadline):
            now = self.clock.monotonic()
            if deadline.passed():
                raise DbopsError(
                    found=f"{self.promotion.candidate} is still in recovery {FORWARD_SECONDS:g} s after pg_promote",
                    expected="it becomes the primary",
                    remedy="read its log; run again: the old primary stays down until the candidate is promoted",
                )
            # A request that arrives while the startup process sleeps in wal_retrieve_retry_interval is seen only at
            # its next look; asking again wakes it.
            if now - sent_at > PROMOTE_AGAIN_SECONDS:
                self._send_promote(candidate, deadline)
                sent_at = now
            self.clock.sleep(POLL_SECONDS)

    @staticmethod
    def _send_promote(candidate: Session, deadline: Deadline) -> None:
        try:
            candidate.run("SELECT pg_promote(false)", deadline=deadline)
        except DbopsError as error:
            if error.details.get("sqlstate") != NOT_IN_RECOVERY:  # promoted since the look before
                raise

    def follow(self, follower: Follower) -> None:
        """Let a running standby stream from the candidate, and wait until it does."""
        session = self.sessions.to(follower.name)
        self.alter_system(session, "primary_conninfo", self.conninfo(follower, self.promotion.candidate))
        self.alter_system(session, "primary_slot_name", follower.slot)
        session.run("SELECT pg_reload_conf()")
        self.await_streaming(follower.name, seconds=self.options["follow_timeout"])

    def conninfo(self, follower: Follower, upstream: str) -> str:
        return standby_conninfo(
            self.members[upstream],
            self.options,
            application_name=follower.application_name,
            dbname=self.sessions.endpoints[upstream].dbname,
        )

    def await_streaming(self, name: str, *, seconds: float) -> None:
        plan, target = self.promotion, self.members[self.promotion.candidate]

        def receiver() -> str:
            try:
                found = read_receiver(self.sessions.to(name, timeout=2.0))
            except DbopsError as error:
                self.sessions.drop(name)
                return error.found
            if found is None:
                return "no walreceiver"
            if target.is_at(found.sender_host, found.sender_port) and found.status == "streaming":
                return "streaming" if found.timeline > plan.old_timeline else "streaming the old timeline"
            return f"{found.status} from {found.sender_host}:{found.sender_port}"

        wait_until(
            receiver,
            lambda status: status == "streaming",
            deadline=Deadline.after(self.clock, seconds),
            interval=0.02,
            what=f"{name} streams from {plan.candidate} on the new timeline",
            remedy=f"read the log of {name}; run again when it is mended",
        )

    def new_timeline(self) -> tuple[int, int]:
        """The candidate's timeline, and the LSN at which it left the old one. Raises DbopsError where it has not."""
        plan = self.promotion
        session = self.sessions.to(plan.candidate)
        timeline = int(session.value("SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"))
        if timeline <= plan.old_timeline:
            raise DbopsError(
                found=f"{plan.candidate} writes on timeline {timeline}",
                expected=f"a timeline above {plan.old_timeline}",
                remedy="it was not promoted by this run; find out what happened before clients use it",
            )
        login = replication_endpoint(self.members[plan.candidate], self.options)
        text = read_history(login, timeline, clock=self.clock, timeout=CALL_SECONDS)
        return timeline, history_switchpoint(text, plan.old_timeline)
