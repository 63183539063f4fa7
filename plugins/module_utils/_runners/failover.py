# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A failover: the primary is gone, and a standby becomes the primary. Facts, checks, plan, steps, what is lost.

It speaks to the standbys alone, so it can run on the host of any of them. Who is fenced, and who else looked, the
caller says. Until the promotion the mark on each standby is all that is kept: a second run finds it and starts over.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._core.clock import Clock, Deadline, wait_until
from .._core.errors import DbopsError
from .._core.journal import Journal, LockFile, make_state_directory, params_hash
from .._core.operation import Check, Outcome, Runner, refuse_unless_good
from .._postgresql import failover_plan as planner
from .._postgresql.catalog import NodeFacts, altered_setting, read_receiver
from .._postgresql.client import connect
from .._postgresql.failover_plan import FailoverPlan, FailoverRequest, Fence, Witness
from .._postgresql.lsn import format_lsn
from .._postgresql.switchover_plan import RETRY_INTERVAL, Follower, LocalFacts, Observed, marker_slot, topology
from .members import LOGIN_SECONDS, ClusterSessions, members, replication_endpoint
from .promotion import CALL_SECONDS, PromotionSteps

REPLAY_LOOK_SECONDS = 0.05


def failover_request(options: dict[str, Any], *, check_mode: bool) -> FailoverRequest:
    """From the argument dictionary of replica_promote. Raises DbopsError where a name is no member's."""
    known = members(options["nodes"])
    for role in ("failed_primary", "candidate"):
        name = options.get(role) or ""
        if (name or role == "failed_primary") and name not in known:
            raise DbopsError(
                found=f"{role} {name or 'is not given'}",
                expected=f"the name of a member: {', '.join(sorted(known))}",
                remedy=f"correct {role}, or add the member to dbops_clusters",
                details={"state": "refused", "changed": False},
            )
    fence = options.get("fence") or {}
    return FailoverRequest(
        cluster=options["cluster"],
        failed_primary=options["failed_primary"],
        members=known,
        candidate=options.get("candidate") or "",
        fence=Fence(bool(fence.get("confirmed")), fence.get("by") or "", fence.get("synchronous_standby_names")),
        witnesses=tuple(
            Witness(each["name"], each.get("sees_primary"), each.get("detail") or "") for each in options["witnesses"]
        ),
        synchronous_standby_names=options["synchronous_standby_names"],
        accept_async_window=options["accept_async_window"],
        accept_split_brain_risk=options["accept_split_brain_risk"],
        accept_data_loss=options["accept_data_loss"],
        abandon_operation=options.get("abandon_operation") or "",
        only_planned=check_mode,
    )


class Failover:
    """One run. ``options`` is the module's argument dictionary (plugins/modules/replica_promote.py documents it)."""

    def __init__(self, options: dict[str, Any], *, clock: Clock, check_mode: bool) -> None:
        self.options = options
        self.clock = clock
        self.check_mode = check_mode
        self.request = failover_request(options, check_mode=check_mode)
        self.sessions = ClusterSessions(
            options["nodes"],
            clock=clock,
            application_name="dbops replica_promote",
            timeout=CALL_SECONDS,
            login_timeout=LOGIN_SECONDS,
        )
        self.directory = Path(options["state_dir"]) / self.request.cluster
        self.outcome = Outcome()
        self.checks: list[Check] = []
        self.planned: list[dict[str, Any]] = []
        self.statements: list[str] = []
        self.warnings: list[str] = []

    def run(self) -> Outcome:
        """Raises DbopsError; its details are keys of the result."""
        lock = LockFile(self.directory / "lock")
        try:
            if not self.check_mode:
                make_state_directory(self.directory)
                lock.acquire(f"failover from {self.request.failed_primary}")
            return self._run()
        finally:
            self.sessions.close()
            lock.release()

    def _run(self) -> Outcome:
        nodes = self._facts()
        self.outcome.before = topology(Observed(nodes, LocalFacts()))
        done = self._done(nodes)
        if not self.check_mode and not done:
            # What was seen before the lease may be over by now.
            self.sessions.take_lease(self.request.cluster, nodes, first=self.request.candidate)
            nodes = self._facts()
            done = self._done(nodes)
        if done:
            self.outcome.state = "unchanged"
            self.outcome.message = f"{done} is the primary, and no failover is unfinished"
            self.outcome.after = self.outcome.before
            return self._finish()
        promoted = self._promoted(nodes)
        if not promoted:
            self._check(nodes)
        plan = self._recall(nodes) if promoted else None
        plan = plan or self._plan(nodes)
        self._show(plan)
        if self.check_mode:
            self.outcome.changed = True
            self.outcome.state = "would recover" if promoted else "would fail over"
            self.outcome.message = f"would fail over from {plan.failed_primary} to {plan.candidate}"
            return self._finish()
        return self._carry_out(nodes, plan, promoted=promoted)

    # -------------------------------------------------------------------------------------------------------- looking

    def _facts(self) -> dict[str, NodeFacts]:
        """With the timeline that each standby replays. Without a walreceiver SQL knows that of the last restartpoint
        only; a replication connection, which its followers will need too, knows it (0: there was none)."""
        nodes = self.sessions.facts()
        for name, facts in planner.standbys(self.request, nodes).items():
            login = replication_endpoint(self.request.members[name], self.options)
            try:
                with connect(login, clock=self.clock, timeout=CALL_SECONDS, replication=True) as session:
                    timeline = int(session.rows("IDENTIFY_SYSTEM")[0]["timeline"])
            except DbopsError as error:
                self.warnings.append(error.found)
                timeline = 0
            nodes[name] = replace(facts, timeline=timeline)
        return nodes

    def _done(self, nodes: dict[str, NodeFacts]) -> str:
        """The primary, where a failover has ended and nothing is left of it; empty otherwise."""
        writable = [name for name, facts in nodes.items() if facts.writable]
        if len(writable) != 1 or writable[0] == self.request.failed_primary or self._promoted(nodes):
            return ""
        last = nodes[writable[0]].last_operation
        if last is None or last["kind"] != planner.KIND or self.request.candidate not in ("", writable[0]):
            return ""
        return writable[0] if last["detail"]["failed_primary"] == self.request.failed_primary else ""

    def _promoted(self, nodes: dict[str, NodeFacts]) -> str:
        """Who was promoted by a run that did not end; empty if nobody was."""
        for name, facts in nodes.items():
            marks = [slot.name for slot in facts.slots if slot.name.startswith(marker_slot(""))]
            if facts.writable and marks and name != self.request.failed_primary:
                kinds = {planner.open_operations(self.request, {name: facts}).get(mark[9:]) for mark in marks}
                if kinds == {planner.KIND}:
                    return name
        return ""

    def _check(self, nodes: dict[str, NodeFacts]) -> None:
        self.checks = planner.checks(self.request, nodes)
        self.warnings += [
            f"[{check.name}] {check.found}; {check.remedy}" for check in self.checks if check.status == "warning"
        ]
        try:
            refuse_unless_good(self.checks)
        except DbopsError as error:
            error.with_details(**self._common(), state="refused", changed=False)
            raise

    def _recall(self, nodes: dict[str, NodeFacts]) -> FailoverPlan | None:
        """The plan of the run that promoted, from its journal if that is on this host."""
        path = self.directory / "failover" / f"{planner.own_operation(self.request, nodes)}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            record = json.loads(line)
            if record["event"] == "opened":
                return FailoverPlan.from_detail(record["data"]["plan"])
        return None

    def _plan(self, nodes: dict[str, NodeFacts]) -> FailoverPlan:
        request = self.request
        promoted = self._promoted(nodes)
        if promoted:
            return planner.plan_of_promoted(request, nodes, promoted)
        earlier = self._recall(nodes)
        left = planner.standbys(request, nodes)
        if earlier and earlier.candidate == planner.choose(request, nodes) and set(earlier.standbys) == set(left):
            return earlier  # what is set now it may have set itself
        by_alter_system = [
            name for name in left if altered_setting(self.sessions.to(name), "primary_conninfo") is not None
        ]
        candidate = self.sessions.to(planner.choose(request, nodes))
        before = altered_setting(candidate, "wal_retrieve_retry_interval")
        plan = planner.make_plan(
            request,
            nodes,
            # A run that was killed on another host has left it.
            retry_interval_before=None if before == RETRY_INTERVAL else before,
            conninfo_by_alter_system=by_alter_system,
        )
        # What its configuration file says comes back by RESET, not by a second copy of it.
        return replace(plan, sync_before=altered_setting(candidate, "synchronous_standby_names") or "")

    def _show(self, plan: FailoverPlan) -> None:
        steps = planner.planned_steps(self.request, plan).values()
        self.planned = [step.as_dict() for step in steps]
        self.statements = [statement for step in steps for statement in step.statements]

    def _common(self) -> dict[str, Any]:
        return {
            "checks": [check.as_dict() for check in self.checks],
            "plan": self.planned,
            "statements": self.statements,
            "warnings": self.warnings,
        }

    def _finish(self, **details: Any) -> Outcome:
        self.outcome.details = {**self._common(), **details}
        return self.outcome

    # -------------------------------------------------------------------------------------------------------- running

    def _carry_out(self, nodes: dict[str, NodeFacts], plan: FailoverPlan, *, promoted: str) -> Outcome:
        # Lower case, digits and underscore only: it is part of a slot's name.
        operation = planner.own_operation(self.request, nodes) or (
            f"{time.strftime('%Y%m%d%H%M%S', time.gmtime(self.clock.wall()))}_{secrets.token_hex(3)}"
        )
        meaning = {"kind": planner.KIND, "failed_primary": plan.failed_primary}
        # A directory of its own: an open journal of a switchover is something else.
        make_state_directory(self.directory / "failover")
        path = self.directory / "failover" / f"{operation}.jsonl"
        journal = Journal(path, operation=operation, clock=self.clock, fingerprint=params_hash(meaning))
        journal.append("operation", "opened", plan=plan.as_detail())
        runner = Runner(journal, self.clock, started=self.clock.monotonic(), committed=bool(promoted))
        steps = FailoverSteps(self, operation=operation, plan=plan, journal=journal)
        hands = list(steps.hands(planner.planned_steps(self.request, plan)).values())
        if promoted:
            hands = [step for step in hands if step.plan.name in ("promote", "follow", "record")]
        self.outcome.changed = True
        with runner.signals():
            try:
                runner.run(hands)
            except DbopsError as error:
                raise self._failed(runner, steps, error) from error
        journal.append("operation", "closed", state="done")
        self.outcome.state = "failed over"
        self.outcome.message = f"failed over from {plan.failed_primary} to {plan.candidate}; {steps.describe_loss()}"
        self.outcome.after = topology(Observed(self.sessions.facts(), LocalFacts()))
        return self._finish(**self._report(runner, steps, "failed over"))

    def _failed(self, runner: Runner, steps: FailoverSteps, error: DbopsError) -> DbopsError:
        state = "unfinished"
        found = error.found
        if not runner.committed:
            runner.undo_all()
            state = "rollback unfinished" if runner.undo_errors else "rolled back"
            found = f"{error.found}. Nobody was promoted" + "".join(f"; {each}" for each in runner.undo_errors)
            steps.journal.append("operation", "closed", state=state)
        return DbopsError(
            found=found,
            expected=error.expected,
            remedy=error.remedy,
            details={
                **error.details,
                **self._common(),
                **self._report(runner, steps, state),
                "changed": True,
            },
        )

    def _report(self, runner: Runner, steps: FailoverSteps, state: str) -> dict[str, Any]:
        return {
            "state": state,
            "operation": {
                "id": steps.operation,
                "name": planner.KIND,
                "state": state,
                "journal": str(steps.journal.path),
            },
            "timeline": runner.timeline,
            "warnings": [*self.warnings, *steps.warnings],
            "old_primary": steps.plan.failed_primary,
            "new_primary": steps.plan.candidate,
            "behind": steps.behind,
            "loss": steps.loss,
        }


class FailoverSteps(PromotionSteps):
    """The hands. ``behind`` are members that do not follow yet."""

    def __init__(self, run: Failover, *, operation: str, plan: FailoverPlan, journal: Journal) -> None:
        super().__init__(
            options=run.options, members=run.request.members, sessions=run.sessions, clock=run.clock, plan=plan
        )
        self.request = run.request
        self.operation = operation
        self.plan = plan
        self.journal = journal
        self.warnings: list[str] = []
        self.behind: list[str] = [plan.failed_primary]
        self.loss: dict[str, Any] = {}
        self._end: int | None = None

    def describe_loss(self) -> str:
        lost = self.loss.get("bytes")
        if lost == 0:
            return "nothing is lost"
        amount = "an unknown amount" if lost is None else f"{lost} bytes"
        return f"{amount} of WAL of {self.plan.failed_primary} may be lost; its receipt comes with its rejoin"

    # -- before the promotion

    def apply_mark(self) -> None:
        for name in self.plan.standbys:
            self.create_slot(self.sessions.to(name), marker_slot(self.operation), reserve=False)

    def undo_mark(self) -> None:
        for name in self.plan.standbys:
            self.drop_slot(self.sessions.to(name), marker_slot(self.operation))

    def apply_salvage(self) -> None:
        """The fenced primary may serve, as a standby of nobody, WAL that it had sent to nobody. The standbys fetch it
        by themselves: their primary_conninfo still points there."""
        end = self._served_end()
        if end is None:
            return
        if self._replayed(self.plan.candidate) < end:
            self.undo_freeze()  # a run that was killed has frozen them
        try:
            wait_until(
                lambda: self._replayed(self.plan.candidate),
                lambda replayed: replayed >= end,
                deadline=Deadline.after(self.clock, self.options["salvage_timeout"]),
                interval=REPLAY_LOOK_SECONDS,
                what=f"{self.plan.candidate} has {format_lsn(end)}, all that {self.plan.failed_primary} has",
                remedy="let it stream from there, or accept_data_loss",
            )
        except DbopsError:
            # Known to have more, able to give it, and not given: that is no loss to shrug off.
            if not self.request.accept_data_loss:
                raise
        self._end = end

    def _served_end(self) -> int | None:
        """Where the WAL of the fenced primary ends, if it answers as a standby that has replayed all of it."""
        name = self.plan.failed_primary
        try:
            rows = self.sessions.to(name, timeout=2.0).rows(
                """SELECT pg_last_wal_replay_lsn() - '0/0'::pg_lsn AS lsn, wait_event FROM pg_stat_activity
                    WHERE backend_type = 'startup' AND pg_is_in_recovery()"""
            )
        except DbopsError:
            self.sessions.drop(name)
            return None
        return int(rows[0]["lsn"]) if rows and rows[0]["lsn"] is not None else None

    def _replayed(self, name: str) -> int:
        return int(self.sessions.to(name).value("SELECT coalesce(pg_last_wal_replay_lsn() - '0/0'::pg_lsn, 0)"))

    def apply_freeze(self) -> None:
        for name in self.plan.standbys:
            session = self.sessions.to(name)
            self.alter_system(session, "primary_conninfo", "")
            session.run("SELECT pg_reload_conf()")
        for name in self.plan.standbys:
            self._await_no_receiver(name)

    def _await_no_receiver(self, name: str) -> None:
        wait_until(
            lambda: read_receiver(self.sessions.to(name)),
            lambda receiver: receiver is None,
            deadline=Deadline.after(self.clock, CALL_SECONDS),
            interval=0.02,
            what=f"{name} receives nothing any more",
            remedy=f"end its walreceiver by hand, or stop {name}, and run again",
        )

    def undo_freeze(self) -> None:
        for follower in self.plan.followers:
            if follower.name in self.plan.standbys:
                self._unfreeze(follower.name, self.conninfo(follower, self.plan.failed_primary))
        candidate = Follower(self.plan.candidate, "", self.plan.application_name or self.plan.candidate)
        self._unfreeze(candidate.name, self.conninfo(candidate, self.plan.failed_primary))

    def _unfreeze(self, name: str, conninfo: str) -> None:
        session = self.sessions.to(name)
        # Where a configuration file had it, it has it still.
        value = conninfo if name in self.plan.conninfo_by_alter_system else None
        self.alter_system(session, "primary_conninfo", value)
        session.run("SELECT pg_reload_conf()")

    def apply_compare(self) -> None:
        """Nothing moves any more: what was judged before is judged again, on positions that are final."""
        candidate = self.plan.candidate
        session = self.sessions.to(candidate)
        wait_until(
            lambda: session.rows(
                """SELECT pg_last_wal_replay_lsn()::text AS replayed, pg_last_wal_receive_lsn()::text AS received,
                          coalesce(pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn(), true) AS done"""
            )[0],
            lambda row: bool(row["done"]),
            deadline=Deadline.after(self.clock, self.options["replay_timeout"]),
            interval=REPLAY_LOOK_SECONDS,
            what=f"{candidate} has replayed all that it received",
            remedy="give replay_timeout more time; find out what holds its replay up (a long query, a slow disk)",
        )
        nodes = {name: facts for name, facts in self.sessions.facts().items() if name != self.plan.failed_primary}
        missing = [name for name in self.plan.standbys if not nodes[name].answered]
        left = {name: nodes[name] for name in self.plan.standbys if nodes[name].answered}
        if missing or candidate not in left:
            raise DbopsError(
                found=f"{', '.join(missing)} does not answer any more",
                expected="the standbys that were there when the failover began",
                remedy="run again: it then goes on without them",
            )
        refuse_unless_good(planner.final_checks(self.request, left, candidate))
        mine = planner.position(left[candidate])
        self.loss = {
            "candidate_lsn": format_lsn(mine),
            "failed_primary_end": format_lsn(self._end) if self._end is not None else None,
            "bytes": max(0, self._end - mine) if self._end is not None else None,
            "last_commit": session.value("SELECT pg_last_xact_replay_timestamp()::text"),
            "synchronous_promise_kept": planner.promise_kept(self.request, left, candidate),
        }
        self.journal.append("compare", "note", loss=self.loss)

    def apply_prepare(self) -> None:
        session = self.sessions.to(self.plan.candidate)
        for name in self.plan.create_slots:
            self.create_slot(session, name, reserve=True)
        self.alter_system(session, "wal_retrieve_retry_interval", RETRY_INTERVAL)
        if self.plan.sync_after is not None:
            self.alter_system(session, "synchronous_standby_names", self.plan.sync_after)
        session.run("SELECT pg_reload_conf()")

    def undo_prepare(self) -> None:
        session = self.sessions.to(self.plan.candidate)
        self.restore_retry_interval(session)
        if self.plan.sync_after is not None:
            self.alter_system(session, "synchronous_standby_names", self.plan.sync_before or None)
        session.run("SELECT pg_reload_conf()")
        for name in self.plan.create_slots:
            self.drop_slot(session, name)

    # -- after it

    def apply_follow(self) -> None:
        for follower in self.plan.followers:
            if follower.name == self.plan.failed_primary:
                continue
            try:
                self.follow(follower)
            except DbopsError as error:
                self.behind.append(follower.name)
                self.warnings.append(f"{follower.name} does not follow yet: {error.found}")

    def apply_record(self) -> None:
        plan = self.plan
        session = self.sessions.to(plan.candidate)
        session.run("CHECKPOINT", deadline=Deadline.after(self.clock, self.options["checkpoint_timeout"]))
        timeline, fork = self.new_timeline()
        self.loss.update(new_timeline=timeline, old_timeline=plan.old_timeline, fork=format_lsn(fork))
        if self._end is not None:
            self.loss["bytes"] = max(0, self._end - fork)
        self.restore_retry_interval(session)
        session.run("SELECT pg_reload_conf()")
        self.make_operation_table(session)
        session.run(
            "UPDATE dbops.operation SET state = 'abandoned', closed_at = now() WHERE state = 'open' AND cluster = %s",
            [self.request.cluster],
        )
        session.run(
            """INSERT INTO dbops.operation
                      (id, kind, cluster, state, system_identifier, timeline, lsn, detail, closed_at)
               SELECT %s, %s, %s, 'done', system_identifier, %s, %s::pg_lsn, %s, now() FROM pg_control_system()
               ON CONFLICT (id) DO NOTHING""",
            [
                self.operation,
                planner.KIND,
                self.request.cluster,
                timeline,
                format_lsn(fork),
                json.dumps({**plan.as_detail(), "rolls_back": None, "loss": self.loss, "fence": self.request.fence.by}),
            ],
        )
        for name in plan.standbys:
            try:
                member = self.sessions.to(name)
                for mark in member.rows(
                    "SELECT slot_name FROM pg_replication_slots WHERE starts_with(slot_name, %s)", [marker_slot("")]
                ):
                    self.drop_slot(member, mark["slot_name"])
            except DbopsError as error:
                self.warnings.append(f"the mark on {name} could not be taken away: {error.found}")
