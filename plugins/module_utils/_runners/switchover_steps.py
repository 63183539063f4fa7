# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hands of a switchover: for each step of ``planned_steps`` an ``apply_<step>`` and, where it changes something
before the point of no return, an ``undo_<step>``. Both are idempotent: a killed run may have done any part of them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from .._core.clock import Deadline, wait_until
from .._core.errors import DbopsError
from .._core.journal import Journal
from .._core.operation import Runner, Step
from .._postgresql import switchover_plan as planner
from .._postgresql import wal_filler
from .._postgresql.client import Session
from .._postgresql.control import read_control
from .._postgresql.follow_up import follow_up
from .._postgresql.lsn import format_lsn, parse_lsn
from .._postgresql.pgbouncer import PooledDatabase, PoolerConsole, following
from .._postgresql.switchover_plan import Observed, SwitchoverPlan
from .._postgresql.wal import read_shutdown_checkpoint
from .promotion import CALL_SECONDS, POLL_SECONDS, PromotionSteps
from .switchover_context import SwitchoverContext

INTENT_SECONDS = 5.0
UNDO_SECONDS = 60.0
FILL_SECONDS = 2.0
PAGE_HEADER_BYTES = 64  # by which an insert position can be ahead of what will ever be replayed (intent, below)
DRAIN_SHARE = 0.4  # of the pause: the rest is needed to stop, prove and promote
LAST_LOOK_SECONDS = 0.25


class SwitchoverSteps(PromotionSteps):
    """The steps of one operation. ``pending`` collects what could not be finished after the promotion."""

    def __init__(
        self, context: SwitchoverContext, *, operation: str, plan: SwitchoverPlan, journal: Journal, runner: Runner
    ) -> None:
        request = context.request
        super().__init__(
            options=context.options, members=request.members, sessions=context.sessions, clock=context.clock, plan=plan
        )
        self.context = context
        self.operation = operation
        self.plan = plan
        self.journal = journal
        self.runner = runner
        self.request = request
        self.local = context.local
        self.consoles = context.consoles
        self.warnings: list[str] = []
        self.pending: list[str] = []
        self.follow_up: list[str] = []
        self.proof: dict[str, Any] = {}
        self.archive: dict[str, Any] = {}
        self.pause: Deadline | None = None
        self.pause_began: float | None = None
        self.pause_ended: float | None = None
        self.joined = False  # the pause of a run that was killed: how long that lasted this one cannot know
        self._routes: dict[str, list[str]] = {}

    def all(self) -> dict[str, Step]:
        """In order, by name."""
        return self.hands(planner.planned_steps(self.request, self.plan))

    def pause_ms(self) -> float | None:
        """How long this run held clients; None where it did not, or where a run before it began the pause."""
        if self.joined or self.pause_began is None or self.pause_ended is None:
            return None
        return round((self.pause_ended - self.pause_began) * 1000, 1)

    def _in_pause(self, seconds: float = CALL_SECONDS) -> Deadline:
        """Before the promotion: what is left of the pause. After it there is no way back, so calls get their time."""
        if self.pause is not None and not self.runner.committed:
            return self.pause.sooner(seconds)
        return Deadline.after(self.clock, seconds)

    def _begin_pause(self) -> Deadline:
        if self.pause is None:
            self.pause_began = self.clock.monotonic()
            self.pause = Deadline.after(self.clock, self.request.max_pause_ms / 1000)
        return self.pause

    def apply_intent(self) -> None:
        session = self.sessions.to(self.plan.old_primary)
        self.make_operation_table(session)
        session.run(
            "UPDATE dbops.operation SET state = 'abandoned', closed_at = now() WHERE state = 'open' AND cluster = %s",
            [self.request.cluster],
        )
        session.run(
            """INSERT INTO dbops.operation (id, kind, cluster, state, system_identifier, timeline, lsn, detail)
               SELECT %s, %s, %s, 'open', system_identifier, %s, pg_current_wal_lsn(), %s FROM pg_control_system()""",
            [
                self.operation,
                planner.KIND,
                self.request.cluster,
                self.plan.old_timeline,
                json.dumps({**self.plan.as_detail(), "rolls_back": self.options["rolls_back"]}),
            ],
        )
        candidate = self.sessions.to(self.plan.candidate)

        # The row itself, not an LSN: pg_current_wal_insert_lsn() may lie behind a page header that is never replayed.
        def arrived() -> bool:
            if candidate.value("SELECT to_regclass('dbops.operation')") is None:
                return False
            return bool(candidate.value("SELECT EXISTS (SELECT FROM dbops.operation WHERE id = %s)", [self.operation]))

        wait_until(
            arrived,
            bool,
            deadline=Deadline.after(self.clock, INTENT_SECONDS),
            interval=POLL_SECONDS,
            what=f"the intent written on {self.plan.old_primary} arrives on {self.plan.candidate}",
            remedy="its replication stands still although it looked well: read its log and the walreceiver's state",
        )

    def await_replay(self, lsn: int, *, deadline: Deadline, what: str, remedy: str) -> int:
        # A session that broke is opened again, and that may take no longer than the wait.
        candidate = self.sessions.to(self.plan.candidate, timeout=max(deadline.left(), LAST_LOOK_SECONDS))

        def replayed() -> str:
            # The last look may not be cut short by the deadline of the wait: it would say "no answer", not where it is.
            call = Deadline.after(self.clock, max(deadline.left(), LAST_LOOK_SECONDS))
            return candidate.value("SELECT pg_last_wal_replay_lsn()::text", deadline=call) or "0/0"

        return parse_lsn(
            wait_until(
                replayed,
                lambda text: parse_lsn(text) >= lsn,
                deadline=deadline,
                interval=POLL_SECONDS,
                what=what,
                remedy=remedy,
            )
        )

    def apply_slots(self) -> None:
        session = self.sessions.to(self.plan.candidate)
        for name in self.plan.create_slots:
            self.create_slot(session, name, reserve=True)
        positions = {
            row["slot_name"]: row["restart_lsn"]
            for row in session.rows("SELECT slot_name, restart_lsn::text FROM pg_replication_slots")
        }
        primary = self.sessions.to(self.plan.old_primary)
        for name in self.plan.carried_slots:
            before = primary.value("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = %s", [name])
            if before and positions.get(name) and parse_lsn(before) < parse_lsn(positions[name]):
                self.warnings.append(
                    f"slot {name}: its consumer is at {before}, the new primary keeps WAL from {positions[name]} on;"
                    " let it catch up first, or take a new base backup for it"
                )

    def undo_slots(self) -> None:
        session = self.sessions.to(self.plan.candidate)
        for name in (*self.plan.create_slots, planner.marker_slot(self.operation)):
            self.drop_slot(session, name)

    def apply_tune_candidate(self) -> None:
        session = self.sessions.to(self.plan.candidate)
        self.alter_system(session, "wal_retrieve_retry_interval", planner.RETRY_INTERVAL)
        if self.plan.sync_after is not None and not self.request.accept_async_window:
            self.alter_system(session, "synchronous_standby_names", self.plan.sync_after)
        session.run("SELECT pg_reload_conf()")

    def undo_tune_candidate(self) -> None:
        session = self.sessions.to(self.plan.candidate)
        self.restore_retry_interval(session)
        if self.plan.sync_after is not None:
            self.alter_system(session, "synchronous_standby_names", self.plan.sync_before or None)
        session.run("SELECT pg_reload_conf()")

    def apply_checkpoints(self) -> None:
        """The second is short, and makes the one at shutdown short. Everything the pause needs is opened. In between
        the WAL segment is filled: a checkpoint that finds one three quarters full makes the next one ready, which is
        where the shutdown's record goes, on either server."""
        deadline = Deadline.after(self.clock, self.options["checkpoint_timeout"])
        primary, candidate = self.sessions.to(self.plan.old_primary), self.sessions.to(self.plan.candidate)
        began, before = self.clock.monotonic(), self._written(primary)
        primary.run("CHECKPOINT", deadline=deadline)
        candidate.run("CHECKPOINT", deadline=deadline)
        self._prepare_poolers()
        if self.plan.fill_segment:
            self._fill_segment((self._written(primary) - before) / max(0.001, self.clock.monotonic() - began))
        primary.run("CHECKPOINT", deadline=deadline)
        if self.plan.fill_segment:
            # Without the primary's to begin from it would do nothing. What was written must not be on its way when the
            # pause begins either; where it takes longer than this the proof waits for it.
            with suppress(DbopsError):
                self.await_replay(
                    self._written(primary) - PAGE_HEADER_BYTES,
                    deadline=Deadline.after(self.clock, FILL_SECONDS),
                    what="the candidate has replayed what filled the segment",
                    remedy="nothing: the proof waits for it",
                )
            candidate.run("CHECKPOINT", deadline=deadline)

    @staticmethod
    def _written(session: Session) -> int:
        return parse_lsn(session.value("SELECT pg_current_wal_insert_lsn()::text"))

    def _fill_segment(self, bytes_per_second: float) -> None:
        primary = self.sessions.to(self.plan.old_primary)
        size = int(primary.value("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'"))
        try:
            for statement, parameters in wal_filler.calls(self._written(primary), size, bytes_per_second):
                primary.run(statement, parameters)
        except DbopsError as error:
            self.warnings.append(f"the WAL segment was not filled, so the pause takes longer: {error.found}")

    def _prepare_poolers(self) -> None:
        for name, console in self.consoles.items():
            databases = self._following(name, Deadline.after(self.clock, CALL_SECONDS), self.plan.old_primary)
            self._routes[name] = [database.name for database in databases]
            console.prepare_pause(self._routes[name])

    def _following(self, pooler: str, deadline: Deadline, *members: str) -> list[PooledDatabase]:
        databases = self.consoles[pooler].databases(deadline)
        return following(databases, self._addresses(*members), self.context.pooled[pooler])

    def _addresses(self, *names: str) -> set[tuple[str, int]]:
        chosen = [self.request.members[name] for name in names or tuple(self.request.members)]
        return {(item.address, item.port) for item in chosen} | {(item.login_host, item.login_port) for item in chosen}

    def apply_pause_poolers(self) -> None:
        drain = self._begin_pause().sooner(self.request.max_pause_ms / 1000 * DRAIN_SHARE)
        for name, console in self.consoles.items():
            console.start_pause(self._routes[name], drain)
        for name, console in self.consoles.items():
            console.await_pause(self._routes[name], drain)

    def undo_pause_poolers(self) -> None:
        """Clients go on where they were: the pooler was not reloaded. Not towards a server that would turn them away:
        then they are held, and the dead-man lets them go as soon as somebody is writable, or at its hard limit."""
        if not self.writable(self.request.node):
            raise DbopsError(
                found=f"{self.request.node} does not accept writes, the poolers are left paused",
                expected="a writable server for the clients",
                remedy="start it; the next run, or the poolers' dead-men, resume the clients",
            )
        for name, console in self.consoles.items():
            deadline = Deadline.after(self.clock, CALL_SECONDS)
            held = [item.name for item in self._following(name, deadline) if item.paused]
            if held:
                console.resume(held, deadline)
        if self.pause_began is not None:
            self.pause_ended = self.clock.monotonic()

    def apply_plant_signal(self) -> None:
        self._begin_pause()
        self.local.plant_signal()
        deadline = self._in_pause()
        self.create_slot(
            self.sessions.to(self.plan.candidate, timeout=max(deadline.left(), LAST_LOOK_SECONDS)),
            planner.marker_slot(self.operation),
            reserve=False,
            deadline=deadline,
        )

    @property
    def _elsewhere(self) -> bool:
        """The server of this host is not the one that was stopped: its signal and its service are not ours to undo."""
        return self.request.node != self.plan.old_primary

    def undo_plant_signal(self) -> None:
        if not self._elsewhere:
            self.local.remove_signal()

    def apply_stop(self) -> None:
        self.sessions.drop(self.plan.old_primary)
        self.local.begin_stop()
        wait_until(
            lambda: read_control(self.local.data_dir, self.clock).state,
            lambda state: state == "shut down",
            deadline=self._in_pause(),
            interval=POLL_SECONDS,
            what=f"pg_control of {self.plan.old_primary} says 'shut down' within the pause",
            remedy="find out what kept the server from stopping (its log: WAL senders, a long checkpoint)",
        )

    def undo_stop(self) -> None:
        """Start the old primary again as a primary. The marker goes first: from its absence a later run on the
        candidate's host knows that the shutdown checkpoint was not the end."""
        if self._elsewhere:
            return
        running = self.local.pid() is not None and not self._local_in_recovery()
        if running and not self.local.stop_pending and self.writable(self.plan.old_primary):
            self.local.remove_signal()
            return
        try:
            self.drop_slot(
                self.sessions.to(self.plan.candidate, timeout=2.0),
                planner.marker_slot(self.operation),
                deadline=Deadline.after(self.clock, 2.0),
            )
        except DbopsError as error:
            self.warnings.append(f"the marker slot on {self.plan.candidate} could not be dropped: {error.found}")
        deadline = Deadline.after(self.clock, UNDO_SECONDS)
        self._end_old_primary(deadline)
        self.local.remove_signal()
        if not self.local.start(deadline, may_run=True) and self._answers_as_standby(deadline):
            # Somebody started it while the signal was still there. Whoever does so again starts a primary.
            self._end_old_primary(deadline)
            self.local.start(deadline, may_run=True)
        wait_until(
            lambda: self.writable(self.plan.old_primary),
            bool,
            deadline=deadline,
            interval=0.02,
            what=f"{self.plan.old_primary} accepts writes again",
            remedy="read its log; it has everything that was acknowledged",
        )

    def _end_old_primary(self, deadline: Deadline) -> None:
        if self.local.pid() is not None:
            if not self.local.stop_pending and not self._stop_requested():
                self.local.begin_stop()
            grace = Deadline.after(self.clock, 0.5)
            if not self.local.end_stop(grace) and not self.local.end_stop(deadline, immediate=True):
                raise DbopsError(
                    found=f"{self.plan.old_primary} does not end, although it was told to",
                    expected="it stops, so that it can be started as a primary again",
                    remedy="stop it by its service, remove standby.signal from its data directory, and start it",
                )
        self.local.end_stop(Deadline.after(self.clock, 5.0))

    def _answers_as_standby(self, deadline: Deadline) -> bool:
        """Wait until the old primary answers, as whatever it is."""
        name = self.plan.old_primary
        wait_until(
            lambda: self.writable(name) or self._is_standby(name),
            bool,
            deadline=deadline,
            interval=0.02,
            what=f"{name} answers",
            remedy="read its log",
        )
        return self._is_standby(name)

    def _stop_requested(self) -> bool:
        return read_control(self.local.data_dir, self.clock).state in ("shutting down", "shut down")

    def _local_in_recovery(self) -> bool:
        return read_control(self.local.data_dir, self.clock).state == "in archive recovery"

    def apply_prove(self) -> None:
        """No promotion without it: the candidate has replayed the end of the record with which the primary ended."""
        self._begin_pause()
        if self.request.node == self.plan.candidate:
            end, why = self.context.shutdown_end(self.sessions.facts(), running=True)
            if end is None:
                raise DbopsError(
                    found=why, expected="the shutdown checkpoint is the candidate's last record", remedy="see above"
                )
            start: int | None = None
        else:
            control = read_control(self.local.data_dir, self.clock)
            checkpoint = read_shutdown_checkpoint(self.local.data_dir, control)
            start, end = checkpoint.start_lsn, checkpoint.end_lsn
        replayed = self.await_replay(
            end,
            deadline=self._in_pause(),
            what=f"{self.plan.candidate} has replayed {format_lsn(end)}, the end of the shutdown checkpoint of"
            f" {self.plan.old_primary}",
            remedy="find out why it did not receive the last WAL (network, walreceiver, full disk)",
        )
        self.proof = {
            "old_timeline": self.plan.old_timeline,
            "shutdown_checkpoint_start": format_lsn(start) if start is not None else None,
            "shutdown_checkpoint_end": format_lsn(end),
            "candidate_replayed": format_lsn(replayed),
            "proved_by": self.request.node,
        }
        self.journal.append("prove", "note", durable=False, proof=self.proof)

    def apply_follow(self) -> None:
        for follower in self.plan.followers[1:]:
            try:
                self.follow(follower)
            except DbopsError as error:
                self.pending.append(f"{follower.name} does not follow: {error.found}")

    def apply_rejoin(self) -> None:
        name = self.plan.old_primary
        if self.request.node != name:
            self.pending.append(
                f"the host of {name} was not reached: when it is back its server starts as a standby (standby.signal is"
                " planted); run this again then"
            )
            if self.sessions.to(self.plan.candidate).value("SHOW archive_mode") != "off":
                self.warnings.append(
                    f"WAL that {name} had not archived is on its host alone. If that is lost for good, point-in-time"
                    " recovery cannot cross the switch: take a full backup now"
                )
            return
        follower = self.plan.followers[0]
        if self.local.pid() is not None and self._is_standby(name):
            self._secure_archive()
            self.follow(follower)  # somebody started it meanwhile: the planted signal made it a standby
            return
        if not self.local.end_stop(Deadline.after(self.clock, self.options["stop_timeout"])):
            self.pending.append(f"{name} has not ended yet (its archiver may still be at work)")
            return
        self._secure_archive()
        self.local.plant_signal()
        settings = {
            "primary_conninfo": self.conninfo(follower, self.plan.candidate),
            "primary_slot_name": follower.slot,
        }
        self.local.write_settings(settings)
        try:
            deadline = Deadline.after(self.clock, UNDO_SECONDS)
            if self.local.start(deadline, may_run=True):
                self.await_streaming(name, seconds=self.options["follow_timeout"])
            elif self._answers_as_standby(deadline):
                self.follow(follower)  # whoever was faster may have read the settings before they were written
        except DbopsError as error:
            self.pending.append(f"{name} does not follow: {error.found}")

    def _is_standby(self, name: str) -> bool:
        try:
            return self.sessions.to(name, timeout=2.0).value("SELECT pg_is_in_recovery()") is True
        except DbopsError:
            self.sessions.drop(name)
            return False

    def _secure_archive(self) -> None:
        """Archive what the old primary had not: as a standby it never would (archive_mode=on archives on a primary)."""
        mode = self.local.configured("archive_mode", bin_dir=self.plan.bin_dir)
        names = self.local.unarchived() if mode in ("on", None) else []
        command = self.local.configured("archive_command", bin_dir=self.plan.bin_dir) if names else ""
        left = [name for name in names if not command or not self.local.archive(name, command, timeout=60.0)]
        self.archive.update(secured=[name for name in names if name not in left], missing=left)
        if left:
            self.warnings.append(
                f"{len(left)} WAL files of {self.plan.old_primary} are not in the archive ({left[0]} and later):"
                " point-in-time recovery cannot cross the switch. Take a full backup now"
            )

    def apply_resume_poolers(self) -> None:
        for name, console in self.consoles.items():
            try:
                self._resume(name, console)
            except DbopsError as error:
                self.pending.append(f"pooler {name}: {error.message}")
        if self.pause_began is not None:
            self.pause_ended = self.clock.monotonic()

    def _resume(self, name: str, console: PoolerConsole) -> None:
        target = self.request.members[self.plan.candidate]
        deadline = Deadline.after(self.clock, CALL_SECONDS)
        databases = [item.name for item in self._following(name, deadline)]

        def problem() -> str:
            try:
                console.repoint_check(databases, target.address, target.port, deadline)
            except DbopsError as error:
                return error.found
            return ""

        console.reload(deadline)
        wait_until(
            problem,
            lambda found: found == "",
            deadline=deadline,
            interval=POLL_SECONDS,
            what=f"pooler {name} uses {target.address}:{target.port}",
            remedy="see that its configuration file was staged, RELOAD and RESUME it",
        )
        console.resume(databases, deadline)

    def apply_tidy(self) -> None:
        session = self.sessions.to(self.plan.candidate)
        self.restore_retry_interval(session)
        # Also where it was set before the pause: the run that prepared it may have been given accept_async_window.
        if self.plan.sync_after is not None:
            self.alter_system(session, "synchronous_standby_names", self.plan.sync_after)
        session.run("SELECT pg_reload_conf()")
        if self.pending:
            return
        old = self.sessions.to(self.plan.old_primary)
        for name in (*self.plan.drop_slots, *self.request.accept_lost_slots):
            self.drop_slot(old, name)
        # Its own failover slots would keep the slot synchronisation of the new standby from working.
        if int(old.value("SELECT current_setting('server_version_num')")) >= 170000:
            old.run(
                """SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                    WHERE slot_type = 'logical' AND failover AND NOT synced AND NOT active"""
            )

    def apply_certify(self) -> None:
        plan = self.plan
        session = self.sessions.to(plan.candidate)
        session.run("CHECKPOINT", deadline=Deadline.after(self.clock, self.options["checkpoint_timeout"]))
        timeline, fork = self.new_timeline()
        self.proof.update(new_timeline=timeline, fork=format_lsn(fork))
        end = self.proof.get("shutdown_checkpoint_end")
        if end is not None and parse_lsn(end) != fork:
            raise DbopsError(
                found=f"timeline {timeline} left timeline {plan.old_timeline} at {format_lsn(fork)}, the proof ended at"
                f" {end}",
                expected="the new timeline begins where the old primary ended",
                remedy=f"compare the WAL of {plan.old_primary} behind {format_lsn(fork)} before anything else is done",
            )
        self.proof["holds"] = end is not None
        self._write_certificate(session)

    def _write_certificate(self, session: Session) -> None:
        """Not while something is pending: then the operation stays open."""
        plan = self.plan
        self.proof["system_identifier"] = session.value("SELECT system_identifier::text FROM pg_control_system()")
        facts = self.sessions.facts()
        for name, node in facts.items():
            if name == plan.candidate:
                continue
            if node.writable:
                raise DbopsError(
                    found=f"{name} is writable too",
                    expected=f"{plan.candidate} alone accepts writes",
                    remedy=f"stop {name} at once; somebody started it outside this run",
                )
        if self.pending:
            return
        session.run(
            "UPDATE dbops.operation SET detail = detail || %s, state = 'done', closed_at = now() WHERE id = %s",
            [json.dumps({"certificate": self.proof}), self.operation],
        )
        self.drop_slot(session, planner.marker_slot(self.operation))
        self.follow_up = follow_up(facts[plan.old_primary], data_dir=self.local.data_dir)

    def recall_proof(self, journal: list[dict[str, Any]], observed: Observed) -> None:
        """A killed run proved it before it promoted; where its journal is not here, the old primary's WAL does."""
        for record in journal:
            if record["step"] == "prove" and record["event"] == "note":
                self.proof = dict(record["data"]["proof"])
        if not self.proof and observed.local.shutdown_end_lsn is not None:
            self.proof = {
                "old_timeline": self.plan.old_timeline,
                "shutdown_checkpoint_end": format_lsn(observed.local.shutdown_end_lsn),
                "proved_by": f"{self.request.node}, after the fact",
            }
