# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A planned switchover: facts, checks, plan, steps, certificate. The hands of ``_postgresql/switchover_plan.py``.

It runs on the old primary's host. When that host is gone in the middle of a switchover, a second run on the
candidate's host finishes it, if the candidate can prove from its own WAL that it has everything.
"""

from __future__ import annotations

import json
import os
import secrets
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._core.clock import Clock, Deadline, wait_until
from .._core.errors import DbopsError
from .._core.journal import Journal, LockFile, open_operation as open_journal, params_hash, state_directory
from .._core.operation import Check, Runner, Step, refuse_unless_good
from .._postgresql import switchover_plan as planner
from .._postgresql.catalog import OPERATION_TABLE, NodeFacts, read_receiver
from .._postgresql.client import Endpoint, Session, connect
from .._postgresql.control import read_control
from .._postgresql.follow_up import follow_up
from .._postgresql.local import LocalServer, Service
from .._postgresql.lsn import format_lsn, parse_lsn
from .._postgresql.pgbouncer import PoolerConsole
from .._postgresql.switchover_plan import Follower, LocalFacts, Observed, Phase, Probe, Request, SwitchoverPlan
from .._postgresql.wal import history_switchpoint, read_shutdown_checkpoint, record_after, shutdown_checkpoint_ending_at
from .members import ClusterSessions, endpoint, members, read_pooler

LOCK_CLASS = 0x64626F70  # "dbop": the first key of the advisory locks of this collection
CALL_SECONDS = 10.0
INTENT_SECONDS = 5.0
FORWARD_SECONDS = 60.0
UNDO_SECONDS = 60.0
RECONNECT_SECONDS = 12.0
DRAIN_SHARE = 0.4  # of the pause: the rest is needed to stop, prove and promote
POLL_SECONDS = 0.002
LAST_LOOK_SECONDS = 0.25
PROMOTE_AGAIN_SECONDS = 0.15


@dataclass
class Outcome:
    """What the module returns."""

    changed: bool = False
    state: str = ""
    message: str = ""
    checks: list[Check] = field(default_factory=list)
    plan: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class Switchover:
    """One run. ``options`` is the module's argument dictionary (plugins/modules/replica_promote.py documents it)."""

    def __init__(self, options: dict[str, Any], *, clock: Clock) -> None:
        self.options = options
        self.clock = clock
        self.request = Request(
            cluster=options["cluster"],
            candidate=options["candidate"],
            node=options["node"],
            members=members(options["nodes"]),
            poolers=tuple(pooler["name"] for pooler in options["poolers"]),
            synchronous_standby_names=options["synchronous_standby_names"],
            accept_async_window=options["accept_async_window"],
            accept_lost_slots=tuple(options["accept_lost_slots"]),
            max_lag_bytes=options["max_lag_bytes"],
            max_transaction_seconds=options["max_transaction_seconds"],
            max_idle_in_transaction_seconds=options["max_idle_in_transaction_seconds"],
            max_archive_backlog=options["max_archive_backlog"],
            max_pause_ms=options["max_pause_ms"],
            min_free_bytes=options["min_free_bytes"],
        )
        for role, name in (("candidate", self.request.candidate), ("node", self.request.node)):
            if name not in self.request.members:
                raise DbopsError(
                    found=f"{role} {name} is not among the members {', '.join(sorted(self.request.members))}",
                    expected="the name of a member",
                    remedy=f"correct {role}, or add the member to dbops_clusters",
                )
        local = options["local"]
        self.local = LocalServer(
            Path(local["data_dir"]),
            Service.of(local["service"]),
            clock,
            bin_dir=local.get("bin_dir") or "",
            config_dir=local.get("config_dir") or "",
        )
        self.sessions = ClusterSessions(
            options["nodes"], clock=clock, application_name="dbops replica_promote", timeout=CALL_SECONDS
        )
        self.consoles = {
            pooler["name"]: PoolerConsole(endpoint({**pooler, "login_db": "pgbouncer"}), clock)
            for pooler in options["poolers"]
        }
        self.directory = state_directory(options["state_dir"], self.request.cluster)
        self.outcome = Outcome()
        self.warnings: list[str] = []
        self.pending: list[str] = []
        self.statements: list[str] = []
        # Known only while a run acts:
        self.operation = ""
        self.plan: SwitchoverPlan | None = None
        self.pause: Deadline | None = None
        self.pause_began: float | None = None
        self.pause_ended: float | None = None
        self.proof: dict[str, Any] = {}
        self.archive: dict[str, Any] = {}
        self.routes: dict[str, list[str]] = {}

    # ------------------------------------------------------------------------------------------------------- entry

    def run(self, *, check_mode: bool) -> Outcome:
        """Raises DbopsError; its details carry checks, plan and operation."""
        try:
            return self._run(check_mode=check_mode)
        finally:
            for console in self.consoles.values():
                console.close()
            self.sessions.close()

    def _run(self, *, check_mode: bool) -> Outcome:
        journal = open_journal(self.directory)
        observed = self.observe(journal)
        row = planner.open_operation(observed, self.request.candidate)
        if journal and not row and self._superseded(journal, observed):
            if not check_mode:
                self._close_superseded(journal)
            journal = []
            observed = self.observe(journal)
        phase = planner.derive_phase(self.request, observed, own_operation=bool(journal or row))
        self.outcome.before = planner.topology(observed)
        unfinished = bool(journal or row)
        if phase is Phase.DONE or (self.options["only_recover"] and phase is Phase.FRESH and not unfinished):
            return self._nothing_to_do(observed)
        if phase is None:
            refuse_unless_good(planner.base_checks(self.request, observed))
        if check_mode:
            return self._predict(observed, phase, unfinished=unfinished)
        lock = LockFile(self.directory / "lock")
        lock.acquire(f"switchover to {self.request.candidate}")
        try:
            if phase is Phase.FRESH:
                return self._fresh(observed, journal, row)
            return self._resume(observed, phase, journal, row)
        finally:
            lock.release()

    def _superseded(self, journal: list[dict[str, Any]], observed: Observed) -> bool:
        """Was the operation of this host's open journal ended from another host, or overtaken by another one? Then
        undoing it would stop a server that nobody meant."""
        plan = SwitchoverPlan.from_detail(journal[0]["data"]["plan"])
        for name, facts in observed.nodes.items():
            if facts.answered and facts.has_operations:
                state = self.sessions.to(name).value(
                    "SELECT state FROM dbops.operation WHERE id = %s", [journal[0]["op"]]
                )
                if state not in (None, "open"):
                    return True
        writable = observed.writable()
        return bool(writable) and not {plan.old_primary, plan.candidate}.intersection(writable)

    def _close_superseded(self, journal: list[dict[str, Any]]) -> None:
        record = Journal(self.directory / f"{journal[0]['op']}.jsonl", operation=journal[0]["op"], clock=self.clock)
        record.append("operation", "closed", state="superseded")
        record.close()

    def _nothing_to_do(self, observed: Observed) -> Outcome:
        for name, facts in observed.nodes.items():
            if not facts.answered or (facts.in_recovery and facts.receiver is None):
                self.warnings.append(f"{name} follows nobody: {facts.error or 'it has no walreceiver, see its log'}")
        self.outcome.state = "unchanged"
        self.outcome.message = f"{', '.join(observed.writable())} is the primary, and no switchover is unfinished"
        self.outcome.after = self.outcome.before
        return self.outcome

    def _predict(self, observed: Observed, phase: Phase, *, unfinished: bool) -> Outcome:
        """Check mode: reads alone."""
        self.outcome.changed = True
        self.outcome.after = planner.expected_topology(self.request, observed)
        if phase is not Phase.FRESH or unfinished:
            self.outcome.state = "would recover"
            self.outcome.message = f"an unfinished run was found ({phase.value}); this run would finish or undo it first"
            if phase is Phase.FRESH:
                self.outcome.checks = planner.base_checks(self.request, observed)
                self._refuse(self.outcome.checks)
            return self.outcome
        self.outcome.checks = planner.all_checks(self.request, observed)
        self._refuse(self.outcome.checks)
        plan = planner.make_plan(self.request, observed, observed.writable()[0], retry_interval_before=None)
        self._show(plan)
        self.outcome.state = "would switch over"
        self.outcome.message = f"would switch over from {plan.old_primary} to {plan.candidate}"
        return self.outcome

    def _show(self, plan: SwitchoverPlan) -> None:
        steps = planner.planned_steps(self.request, plan).values()
        self.outcome.plan = [step.as_dict() for step in steps]
        self.statements = [statement for step in steps for statement in step.statements]

    def _refuse(self, checks: list[Check]) -> None:
        self.warnings += [f"[{check.name}] {check.found}; {check.remedy}" for check in checks if check.status == "warning"]
        try:
            refuse_unless_good(checks)
        except DbopsError as error:
            raise error.with_details(checks=[check.as_dict() for check in checks], state="refused", changed=False)

    # ----------------------------------------------------------------------------------------------------- observe

    def observe(self, journal: list[dict[str, Any]]) -> Observed:
        nodes = self.sessions.facts()
        return Observed(
            nodes=nodes,
            local=self._local_facts(journal, nodes),
            poolers=tuple(
                read_pooler(
                    self.consoles[pooler["name"]],
                    pooler,
                    self.request.members,
                    deadline=Deadline.after(self.clock, CALL_SECONDS),
                )
                for pooler in self.options["poolers"]
            ),
            probes={
                probe["member"]: Probe(probe["member"], probe.get("replication_problem"), probe.get("free_bytes"))
                for probe in self.options["probes"]
            },
        )

    def _local_facts(self, journal: list[dict[str, Any]], nodes: dict[str, NodeFacts]) -> LocalFacts:
        problem = self.local.problem()
        if problem:
            return LocalFacts(data_dir=str(self.local.data_dir), problem=problem)
        control = read_control(self.local.data_dir)
        running = self.local.pid() is not None
        end, shutdown_problem = self._shutdown_end(nodes, running=running)
        passfile = self.options.get("replication_passfile") or ""
        return LocalFacts(
            data_dir=str(self.local.data_dir),
            service_problem=self.local.service.problem(),
            running=running,
            control_state=control.state,
            control_system_identifier=str(control.system_identifier),
            signal_planted=self.local.signal_planted(),
            disk_version=self.local.disk_version(),
            free_bytes=self.local.free_bytes(),
            passfile_problem=self.local.passfile_problem(passfile) if passfile else "",
            replication_problem="" if self.request.node == self.request.candidate else self._replication_problem(),
            shutdown_end_lsn=end,
            shutdown_problem=shutdown_problem,
            promote_sent=any(record["step"] == "promote" and record["event"] == "start" for record in journal),
        )

    def _shutdown_end(self, nodes: dict[str, NodeFacts], *, running: bool) -> tuple[int | None, str]:
        """End of the shutdown checkpoint as this host can prove it: from the old primary's own WAL, or, on the
        candidate's host, from the fact that it is the last record the candidate has."""
        try:
            control = read_control(self.local.data_dir)
            if self.request.node != self.request.candidate:
                if running:
                    return None, "the server in data_dir is running"
                checkpoint = read_shutdown_checkpoint(self.local.data_dir, control)
                if record_after(self.local.data_dir, control, checkpoint):
                    return None, "there is WAL behind the shutdown checkpoint"
                return checkpoint.end_lsn, ""
            facts = nodes[self.request.candidate]
            if not facts.answered or not facts.in_recovery or facts.replay_lsn is None:
                return None, "the candidate is not a standby that answers"
            found = shutdown_checkpoint_ending_at(
                self.local.data_dir, control, timeline=facts.timeline, end_lsn=facts.replay_lsn
            )
            if found is None:
                return None, "the last record that the candidate replayed is not a shutdown checkpoint"
            ahead = [name for name, other in nodes.items() if (other.receive_lsn or 0) > found.end_lsn]
            if ahead:
                return None, f"{', '.join(ahead)} received more WAL than the candidate replayed"
            return found.end_lsn, ""
        except DbopsError as error:
            return None, error.found

    def _replication_endpoint(self) -> Endpoint:
        member = self.request.members[self.request.candidate]
        return Endpoint(
            name=member.name,
            host=member.address,
            port=member.port,
            user=self.options["replication_user"],
            passfile=self.options.get("replication_passfile") or "",
            ssl_mode=self.options["replication_ssl_mode"],
        )

    def _replication(self) -> Session:
        """A replication connection to the candidate as the old primary will open it; a precheck has tried it."""
        return connect(
            self._replication_endpoint(), clock=self.clock, timeout=CALL_SECONDS, replication=True,
            application_name="dbops probe",
        )  # fmt: skip

    def _replication_problem(self) -> str:
        try:
            with self._replication() as session:
                session.rows("IDENTIFY_SYSTEM")
        except DbopsError as error:
            return error.found
        return ""

    # ----------------------------------------------------------------------------------------------------- running

    def _fresh(self, observed: Observed, journal: list[dict[str, Any]], row: dict[str, Any] | None) -> Outcome:
        if journal or row:
            self._refuse(planner.base_checks(self.request, observed))
            self._unwind(journal, row)
            observed = self.observe([])
            if self.options["only_recover"]:
                self.outcome.changed = True
                self.outcome.state = "rolled back"
                self.outcome.message = f"{self.warnings[-1]}; {observed.writable()[0]} is the primary"
                self.outcome.after = planner.topology(observed)
                return self.outcome
        checks = planner.all_checks(self.request, observed)
        self.outcome.checks = checks
        self._refuse(checks)
        primary = observed.writable()[0]
        self._lease(observed)
        plan = planner.make_plan(
            self.request,
            observed,
            primary,
            retry_interval_before=self._retry_interval(),
            bin_dir=self.local.programs(),
        )
        self._show(plan)
        # Lower case, digits and underscore only: it is part of a slot's name.
        operation = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime(self.clock.wall()))}_{secrets.token_hex(3)}"
        self._begin(operation, plan)
        self.archive = {"ready_before": observed.nodes[primary].archive_ready}
        steps = planner.planned_steps(self.request, plan)
        return self._carry_out([self._step(step) for step in steps.values()])

    def _resume(
        self, observed: Observed, phase: Phase, journal: list[dict[str, Any]], row: dict[str, Any] | None
    ) -> Outcome:
        """Finish, or where that cannot be proved safe undo, what an earlier run began."""
        operation, plan = self._earlier(journal, row)
        if plan.candidate != self.request.candidate:
            raise DbopsError(
                found=f"an unfinished switchover to {plan.candidate} ({phase.value})",
                expected=f"no unfinished operation, or one to {self.request.candidate}",
                remedy=f"run it again with candidate={plan.candidate}; when that is finished, switch to the other one",
            )
        if self.request.node == plan.old_primary and observed.local.problem:
            raise DbopsError(
                found=observed.local.problem,
                expected="the data directory of the old primary",
                remedy="correct data_dir, and run as root or as its owner",
            )
        self._lease(observed)
        self._begin(operation, plan, resumed=phase.value)
        steps = planner.planned_steps(self.request, plan)
        hands = [self._step(step) for step in steps.values()]
        names = list(steps)
        if phase is Phase.PROMOTED:
            self._recall_proof(journal, observed)
            self.runner.committed = True
            # From the promotion itself: a run that was killed may not have sent it, and asking twice is harmless.
            return self._carry_out(hands[names.index("promote") :])
        if phase is Phase.STOPPED and self._proof_possible(observed):
            return self._carry_out(hands[names.index("prove") :], undo_from=hands[: names.index("prove")])
        if self.request.node != plan.old_primary:
            raise DbopsError(
                found=f"{plan.old_primary} is gone, and {observed.local.shutdown_problem or 'the candidate lags behind'}",
                expected=f"proof that {plan.candidate} has everything {plan.old_primary} acknowledged",
                remedy=f"bring the host of {plan.old_primary} back and run again there (it starts as a standby, so it"
                " cannot accept a write before); promoting without proof is a failover and may lose commits",
            )
        return self._roll_back(hands[: names.index("promote")], DbopsError(
            found=f"{phase.value}: {observed.local.shutdown_problem or 'the candidate has not replayed everything'}",
            expected="proof that the candidate has everything",
            remedy="the old primary was started again; run the switchover again when the candidate streams",
        ))  # fmt: skip

    def _proof_possible(self, observed: Observed) -> bool:
        replayed = observed.nodes[self.request.candidate].replay_lsn
        end = observed.local.shutdown_end_lsn
        return replayed is not None and end is not None and replayed >= end

    def _earlier(self, journal: list[dict[str, Any]], row: dict[str, Any] | None) -> tuple[str, SwitchoverPlan]:
        if row is not None:
            return row["id"], SwitchoverPlan.from_detail(row["detail"])
        return journal[0]["op"], SwitchoverPlan.from_detail(journal[0]["data"]["plan"])

    def _unwind(self, journal: list[dict[str, Any]], row: dict[str, Any] | None) -> None:
        """The primary still accepts writes: undo what the killed run left, then this run starts anew."""
        operation, plan = self._earlier(journal, row)
        self._begin(operation, plan, resumed="unwinding")
        steps = list(planner.planned_steps(self.request, plan).values())
        before = [self._step(step) for step in steps if not step.point_of_no_return][: self._index(steps, "promote")]
        self.runner.undo_all(before)
        self._close("rolled_back")
        if self.runner.undo_errors:
            raise DbopsError(
                found=f"an unfinished run {operation} could not be undone: {'; '.join(self.runner.undo_errors)}",
                expected="its leftovers can be removed before a new switchover begins",
                remedy="mend what is named and run again; the primary is untouched",
            )
        self.warnings.append(f"an unfinished run ({operation}) was rolled back first")

    @staticmethod
    def _index(steps: list[Any], name: str) -> int:
        return next(position for position, step in enumerate(steps) if step.name == name)

    def _begin(self, operation: str, plan: SwitchoverPlan, *, resumed: str = "") -> None:
        self.operation, self.plan = operation, plan
        path = self.directory / f"{operation}.jsonl"
        meaning = {"kind": planner.KIND, "candidate": plan.candidate, "members": sorted(self.request.members)}
        self.journal = Journal(path, operation=operation, clock=self.clock, fingerprint=params_hash(meaning))
        self.runner = Runner(self.journal, self.clock, started=self.clock.monotonic())
        self.journal.append("operation", "resumed" if resumed else "opened", plan=plan.as_detail(), phase=resumed)

    def _carry_out(self, steps: list[Step], undo_from: list[Step] | None = None) -> Outcome:
        assert self.plan is not None
        self.outcome.changed = True
        try:
            with self.runner.signals():
                self.runner.run(steps)
        except DbopsError as error:
            if self.runner.committed:
                self.journal.append("operation", "unfinished", found=error.found)
                raise error.with_details(**self._report("unfinished"), changed=True)
            self.runner.begun[:0] = undo_from or []
            return self._roll_back([], error)
        if self.pending:
            raise DbopsError(
                found=f"{self.plan.candidate} is the primary, but: {'; '.join(self.pending)}",
                expected="every member and pooler follows it",
                remedy="mend what is named and run again: the second run finishes this operation",
            ).with_details(**self._report("unfinished"), changed=True)
        self._close("done")
        self.outcome.state = "switched over"
        self.outcome.message = f"switched over from {self.plan.old_primary} to {self.plan.candidate}"
        self.outcome.after = planner.topology(Observed(self.sessions.facts(), LocalFacts()))
        self.outcome.details = self._report("switched over")
        return self.outcome

    def _roll_back(self, steps: list[Step], error: DbopsError) -> Outcome:
        """Undo, then raise ``error``: what was found, and that clients are on the old primary again."""
        self.runner.undo_all(steps)
        state = "rolled back"
        if self.runner.undo_errors:
            state = "rollback unfinished"
            assert self.plan is not None
            back = self._writable(self.plan.old_primary)
            error.found += (
                f"; {self.plan.old_primary} {'accepts writes again' if back else 'does not accept writes yet'}; while rolling"
                f" back: {'; '.join(self.runner.undo_errors)}"
            )
            error.remedy = "mend what is named and run again: the second run undoes the rest first. " + error.remedy
        else:
            self._await_standbys()
            self._close("rolled_back")
            error.remedy += f". It was rolled back: {self.plan.old_primary if self.plan else 'the old primary'} is the primary"
        raise DbopsError(found=error.found, expected=error.expected, remedy=error.remedy, details=error.details).with_details(
            **self._report(state), changed=True
        ) from error

    def _await_standbys(self) -> None:
        """A rollback that restarted the primary cut its standbys off; they come back within wal_retrieve_retry_interval.
        Wait for them, so that the next run finds a whole cluster."""
        deadline = Deadline.after(self.clock, RECONNECT_SECONDS)
        for name in self.request.members:
            while name != self._plan.old_primary:
                try:
                    receiver = read_receiver(self.sessions.to(name, timeout=2.0))
                    if receiver is not None and receiver.status == "streaming":
                        break
                    found = "it does not stream yet"
                except DbopsError as error:
                    self.sessions.drop(name)
                    found = error.found
                if deadline.passed():
                    self.warnings.append(f"{name}: {found}")
                    break
                self.clock.sleep(0.1)

    def _report(self, state: str) -> dict[str, Any]:
        assert self.plan is not None
        return {
            "state": state,
            "operation": {"id": self.operation, "name": planner.KIND, "state": state, "journal": str(self.journal.path)},
            "timeline": self.runner.timeline,
            "proof": self.proof,
            "archive": self.archive,
            "pause_ms": self._pause_ms(),
            "checks": [check.as_dict() for check in self.outcome.checks],
            "plan": self.outcome.plan,
            "statements": self.statements,
            "warnings": self.warnings,
            "old_primary": self.plan.old_primary,
            "new_primary": self.plan.candidate,
            "carried_slots": list(self.plan.carried_slots),
        }

    def _pause_ms(self) -> float | None:
        """How long this run held clients; None where it did not, or where a run before it began the pause."""
        if self.pause_began is None or self.pause_ended is None:
            return None
        return round((self.pause_ended - self.pause_began) * 1000, 1)

    def _close(self, state: str) -> None:
        """The operation is over: close its row where there is a primary to write it, then the journal."""
        assert self.plan is not None
        primary = self.plan.candidate if state == "done" else self.plan.old_primary
        try:
            session = self.sessions.to(primary)
            if session.value("SELECT to_regclass('dbops.operation') IS NOT NULL"):
                session.run(
                    "UPDATE dbops.operation SET state = %s, closed_at = now() WHERE id = %s AND state = 'open'",
                    [state, self.operation],
                )
        except DbopsError as error:
            self.warnings.append(f"the operation's row could not be closed: {error.found}")
        self.journal.append("operation", "closed", state=state)
        self.journal.close()

    def _lease(self, observed: Observed) -> None:
        """An advisory lock on every member that answers, held by idle sessions until this process ends. On the
        candidate it survives the promotion."""
        key = zlib.crc32(self.request.cluster.encode()) & 0x7FFFFFFF
        names = [name for name, facts in observed.nodes.items() if facts.answered]
        for name in sorted(names, key=lambda item: item != self.request.candidate):
            session = self.sessions.to(name)
            if session.value("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_CLASS, key]):
                continue
            holder = session.rows(
                """SELECT a.pid, a.application_name, coalesce(a.client_addr::text, 'local') AS client
                     FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                    WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = %s AND l.objid::bigint = %s""",
                [LOCK_CLASS, key],
            )
            who = "; ".join(f"pid {row['pid']} ({row['application_name']}, from {row['client']})" for row in holder)
            raise DbopsError(
                found=f"another run holds the lease of cluster {self.request.cluster} on {name}: {who or 'unknown'}",
                expected="one operation on this cluster at a time",
                remedy="wait for that run to end; a run that died has lost its lease already",
            )

    # ------------------------------------------------------------------------------------------------------- steps

    def _step(self, planned: Any) -> Step:
        apply = getattr(self, f"apply_{planned.name}")
        undo = getattr(self, f"undo_{planned.name}", None)
        return Step(planned, apply, undo) if undo else Step(planned, apply)

    @property
    def _plan(self) -> SwitchoverPlan:
        assert self.plan is not None
        return self.plan

    def _in_pause(self, seconds: float = CALL_SECONDS) -> Deadline:
        """Before the promotion: what is left of the pause. After it there is no way back, so calls get their time."""
        if self.pause is not None and not self.runner.committed:
            return self.pause.sooner(seconds)
        return Deadline.after(self.clock, seconds)

    def _begin_pause(self) -> None:
        if self.pause is None:
            self.pause_began = self.clock.monotonic()
            self.pause = Deadline.after(self.clock, self.request.max_pause_ms / 1000)

    def apply_intent(self) -> None:
        session = self.sessions.to(self._plan.old_primary)
        for name, statement in OPERATION_TABLE.items():
            if session.value(f"SELECT {name}") is None:
                session.run(statement)
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
                self._plan.old_timeline,
                json.dumps({**self._plan.as_detail(), "rolls_back": self.options["rolls_back"]}),
            ],
        )
        candidate = self.sessions.to(self._plan.candidate)

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
            what=f"the intent written on {self._plan.old_primary} arrives on {self._plan.candidate}",
            remedy="its replication stands still although it looked well: read its log and the walreceiver's state",
        )

    def undo_intent(self) -> None:
        """The row is closed by _close, so that a rollback is on record."""

    def _await_replay(self, lsn: int, *, deadline: Deadline, what: str, remedy: str) -> int:
        candidate = self.sessions.to(self._plan.candidate)

        def replayed() -> str:
            # The last look may not be cut short by the deadline of the wait: it would say "no answer", not where it is.
            call = Deadline.after(self.clock, max(deadline.left(), LAST_LOOK_SECONDS))
            return candidate.value("SELECT pg_last_wal_replay_lsn()::text", deadline=call) or "0/0"

        return parse_lsn(
            wait_until(
                replayed, lambda text: parse_lsn(text) >= lsn, deadline=deadline, interval=POLL_SECONDS, what=what, remedy=remedy
            )
        )

    def apply_slots(self) -> None:
        session = self.sessions.to(self._plan.candidate)
        for name in self._plan.create_slots:
            self._create_slot(session, name, reserve=True)
        positions = {
            row["slot_name"]: row["restart_lsn"]
            for row in session.rows("SELECT slot_name, restart_lsn::text FROM pg_replication_slots")
        }
        primary = self.sessions.to(self._plan.old_primary)
        for name in self._plan.carried_slots:
            before = primary.value("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = %s", [name])
            if before and positions.get(name) and parse_lsn(before) < parse_lsn(positions[name]):
                self.warnings.append(
                    f"slot {name}: its consumer is at {before}, the new primary keeps WAL from {positions[name]} on;"
                    " let it catch up first, or take a new base backup for it"
                )

    @staticmethod
    def _create_slot(session: Session, name: str, *, reserve: bool, deadline: Deadline | None = None) -> None:
        session.run(
            """SELECT pg_create_physical_replication_slot(%s, %s)
                WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)""",
            [name, reserve, name],
            deadline=deadline,
        )

    @staticmethod
    def _drop_slot(session: Session, name: str, *, deadline: Deadline | None = None) -> None:
        session.run(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s AND NOT active",
            [name],
            deadline=deadline,
        )

    def undo_slots(self) -> None:
        session = self.sessions.to(self._plan.candidate)
        for name in (*self._plan.create_slots, planner.marker_slot(self.operation)):
            self._drop_slot(session, name)

    def _retry_interval(self) -> str | None:
        """wal_retrieve_retry_interval of the candidate where ALTER SYSTEM set it, else None."""
        rows = self.sessions.to(self.request.candidate).rows(
            """SELECT setting || coalesce(unit, '') AS value FROM pg_settings
                WHERE name = 'wal_retrieve_retry_interval' AND sourcefile LIKE '%postgresql.auto.conf'"""
        )
        return rows[0]["value"] if rows else None

    def apply_tune_candidate(self) -> None:
        session = self.sessions.to(self._plan.candidate)
        self._alter_system(session, "wal_retrieve_retry_interval", planner.RETRY_INTERVAL)
        if self._plan.sync_after is not None and not self.request.accept_async_window:
            self._alter_system(session, "synchronous_standby_names", self._plan.sync_after)
        session.run("SELECT pg_reload_conf()")

    def undo_tune_candidate(self) -> None:
        session = self.sessions.to(self._plan.candidate)
        self._restore_retry_interval(session)
        if self._plan.sync_after is not None:
            self._alter_system(session, "synchronous_standby_names", self._plan.sync_before or None)
        session.run("SELECT pg_reload_conf()")

    def _restore_retry_interval(self, session: Session) -> None:
        self._alter_system(session, "wal_retrieve_retry_interval", self._plan.retry_interval_before)

    @staticmethod
    def _alter_system(session: Session, name: str, value: str | None) -> None:
        """``name`` comes from this file, never from outside."""
        if value is None:
            session.run(f"ALTER SYSTEM RESET {name}")
        else:
            session.run(f"ALTER SYSTEM SET {name} = %s", [value])

    def apply_checkpoints(self) -> None:
        """The second is short, and makes the one at shutdown short. Then everything the pause needs is opened."""
        deadline = Deadline.after(self.clock, self.options["checkpoint_timeout"])
        primary = self.sessions.to(self._plan.old_primary)
        primary.run("CHECKPOINT", deadline=deadline)
        self.sessions.to(self._plan.candidate).run("CHECKPOINT", deadline=deadline)
        primary.run("CHECKPOINT", deadline=deadline)
        for name, console in self.consoles.items():
            addresses = self._addresses(self._plan.old_primary)
            state = console.state(Deadline.after(self.clock, CALL_SECONDS))
            self.routes[name] = [database.name for database in state.routed_to(addresses)]
            console.prepare_pause(self.routes[name])

    def _addresses(self, *names: str) -> set[tuple[str, int]]:
        chosen = [self.request.members[name] for name in names or tuple(self.request.members)]
        return {(item.address, item.port) for item in chosen} | {(item.login_host, item.login_port) for item in chosen}

    def apply_pause_poolers(self) -> None:
        self._begin_pause()
        assert self.pause is not None
        drain = self.pause.sooner(self.request.max_pause_ms / 1000 * DRAIN_SHARE)
        for name, console in self.consoles.items():
            console.start_pause(self.routes[name], drain)
        for name, console in self.consoles.items():
            console.await_pause(self.routes[name], drain)

    def undo_pause_poolers(self) -> None:
        """Clients go on where they were: the pooler was not reloaded."""
        for console in self.consoles.values():
            deadline = Deadline.after(self.clock, CALL_SECONDS)
            held = [item.name for item in console.state(deadline).routed_to(self._addresses()) if item.paused]
            if held:
                console.resume(held, deadline)
        self.pause_ended = self.clock.monotonic()

    def apply_plant_signal(self) -> None:
        self._begin_pause()
        self.local.plant_signal()
        self._create_slot(
            self.sessions.to(self._plan.candidate),
            planner.marker_slot(self.operation),
            reserve=False,
            deadline=self._in_pause(),
        )

    def undo_plant_signal(self) -> None:
        self.local.remove_signal()

    def apply_stop(self) -> None:
        self.sessions.drop(self._plan.old_primary)
        self.local.begin_stop()
        wait_until(
            lambda: read_control(self.local.data_dir).state,
            lambda state: state == "shut down",
            deadline=self._in_pause(),
            interval=POLL_SECONDS,
            what=f"pg_control of {self._plan.old_primary} says 'shut down' within the pause",
            remedy="find out what kept the server from stopping (its log: WAL senders, a long checkpoint)",
        )

    def undo_stop(self) -> None:
        """Start the old primary again as a primary. The marker goes first: from its absence a later run on the
        candidate's host knows that the shutdown checkpoint was not the end."""
        if self.local.pid() is not None and not self._local_in_recovery() and self._writable(self._plan.old_primary):
            self.local.remove_signal()
            return
        try:
            self._drop_slot(
                self.sessions.to(self._plan.candidate, timeout=2.0),
                planner.marker_slot(self.operation),
                deadline=Deadline.after(self.clock, 2.0),
            )
        except DbopsError as error:
            self.warnings.append(f"the marker slot on {self._plan.candidate} could not be dropped: {error.found}")
        deadline = Deadline.after(self.clock, UNDO_SECONDS)
        if self.local.pid() is not None:
            if not self._stop_requested():
                self.local.begin_stop()
            grace = Deadline.after(self.clock, 0.5)
            if not self.local.end_stop(grace) and not self.local.end_stop(deadline, immediate=True):
                raise DbopsError(
                    found=f"{self._plan.old_primary} does not end, although it was told to",
                    expected="it stops, so that it can be started as a primary again",
                    remedy="stop it by its service, remove standby.signal from its data directory, and start it",
                )
        self.local.end_stop(Deadline.after(self.clock, 5.0))
        self.local.remove_signal()
        self.local.start(deadline)
        wait_until(
            lambda: self._writable(self._plan.old_primary),
            bool,
            deadline=deadline,
            interval=0.02,
            what=f"{self._plan.old_primary} accepts writes again",
            remedy="read its log; it has everything that was acknowledged",
        )

    def _stop_requested(self) -> bool:
        return read_control(self.local.data_dir).state in ("shutting down", "shut down")

    def _local_in_recovery(self) -> bool:
        return read_control(self.local.data_dir).state == "in archive recovery"

    def _writable(self, name: str) -> bool:
        try:
            return self.sessions.to(name, timeout=2.0).value("SELECT NOT pg_is_in_recovery()") is True
        except DbopsError:
            self.sessions.drop(name)
            return False

    def apply_prove(self) -> None:
        """No promotion without it: the candidate has replayed the end of the record with which the primary ended."""
        self._begin_pause()
        if self.request.node == self._plan.candidate:
            end, why = self._shutdown_end(self.sessions.facts(), running=True)
            if end is None:
                raise DbopsError(found=why, expected="the shutdown checkpoint is the candidate's last record", remedy="see above")
            start: int | None = None
        else:
            control = read_control(self.local.data_dir)
            checkpoint = read_shutdown_checkpoint(self.local.data_dir, control)
            start, end = checkpoint.start_lsn, checkpoint.end_lsn
        replayed = self._await_replay(
            end,
            deadline=self._in_pause(),
            what=f"{self._plan.candidate} has replayed {format_lsn(end)}, the end of the shutdown checkpoint of"
            f" {self._plan.old_primary}",
            remedy="find out why it did not receive the last WAL (network, walreceiver, full disk)",
        )
        self.proof = {
            "old_timeline": self._plan.old_timeline,
            "shutdown_checkpoint_start": format_lsn(start) if start is not None else None,
            "shutdown_checkpoint_end": format_lsn(end),
            "candidate_replayed": format_lsn(replayed),
            "proved_by": self.request.node,
        }
        self.journal.append("prove", "note", durable=False, proof=self.proof)

    def apply_promote(self) -> None:
        candidate = self.sessions.to(self._plan.candidate)
        deadline = Deadline.after(self.clock, FORWARD_SECONDS)
        sent_at = -1.0
        while candidate.value("SELECT pg_is_in_recovery()", deadline=deadline):
            now = self.clock.monotonic()
            if deadline.passed():
                raise DbopsError(
                    found=f"{self._plan.candidate} is still in recovery {FORWARD_SECONDS:g} s after pg_promote",
                    expected="it becomes the primary",
                    remedy="read its log; run again: the old primary stays down until the candidate is promoted",
                )
            # A request that arrives while the startup process sleeps in wal_retrieve_retry_interval is seen only at
            # its next look; asking again wakes it.
            if now - sent_at > PROMOTE_AGAIN_SECONDS:
                candidate.run("SELECT pg_promote(false)", deadline=deadline)
                sent_at = now
            self.clock.sleep(POLL_SECONDS)

    def apply_follow(self) -> None:
        for follower in self._plan.followers[1:]:
            try:
                self._follow(follower)
            except DbopsError as error:
                self.pending.append(f"{follower.name} does not follow: {error.found}")

    def _follow(self, follower: Follower) -> None:
        session = self.sessions.to(follower.name)
        self._alter_system(session, "primary_conninfo", self._conninfo(follower))
        self._alter_system(session, "primary_slot_name", follower.slot)
        session.run("SELECT pg_reload_conf()")
        self._await_streaming(follower.name, seconds=self.options["follow_timeout"])

    def _conninfo(self, follower: Follower) -> str:
        member = self.request.members[self._plan.candidate]
        words = {
            "host": member.address,
            "port": str(member.port),
            "user": self.options["replication_user"],
            "passfile": self.options.get("replication_passfile") or "",
            "application_name": follower.application_name,
            "sslmode": self.options["replication_ssl_mode"],
        }
        quoted = {key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in words.items() if value}
        return " ".join(f"{key}='{value}'" for key, value in quoted.items())

    def _await_streaming(self, name: str, *, seconds: float) -> None:
        target = self.request.members[self._plan.candidate]

        def receiver() -> str:
            try:
                found = read_receiver(self.sessions.to(name, timeout=2.0))
            except DbopsError as error:
                self.sessions.drop(name)
                return error.found
            if found is None:
                return "no walreceiver"
            if target.is_at(found.sender_host, found.sender_port) and found.status == "streaming":
                return "streaming" if found.timeline > self._plan.old_timeline else "streaming the old timeline"
            return f"{found.status} from {found.sender_host}:{found.sender_port}"

        wait_until(
            receiver,
            lambda status: status == "streaming",
            deadline=Deadline.after(self.clock, seconds),
            interval=0.02,
            what=f"{name} streams from {self._plan.candidate} on the new timeline",
            remedy=f"read the log of {name}; run again when it is mended",
        )

    def apply_rejoin(self) -> None:
        name = self._plan.old_primary
        if self.request.node != name:
            self.pending.append(
                f"the host of {name} was not reached: when it is back its server starts as a standby (standby.signal is"
                " planted); run this again then"
            )
            return
        follower = self._plan.followers[0]
        if self.local.pid() is not None and self._is_standby(name):
            self._follow(follower)  # somebody started it meanwhile: the planted signal made it a standby
            return
        if not self.local.end_stop(Deadline.after(self.clock, self.options["stop_timeout"])):
            self.pending.append(f"{name} has not ended yet (its archiver may still be at work)")
            return
        self._secure_archive()
        self.local.plant_signal()
        self.local.write_settings({"primary_conninfo": self._conninfo(follower), "primary_slot_name": follower.slot})
        try:
            self.local.start(Deadline.after(self.clock, UNDO_SECONDS))
            self._await_streaming(name, seconds=self.options["follow_timeout"])
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
        mode = self.local.configured("archive_mode", bin_dir=self._plan.bin_dir)
        names = self.local.unarchived() if mode in ("on", None) else []
        command = self.local.configured("archive_command", bin_dir=self._plan.bin_dir) if names else ""
        left = [name for name in names if not command or not self.local.archive(name, command, timeout=60.0)]
        self.archive.update(secured=[name for name in names if name not in left], missing=left)
        if left:
            self.warnings.append(
                f"{len(left)} WAL files of {self._plan.old_primary} are not in the archive ({left[0]} and later):"
                " point-in-time recovery cannot cross the switch. Take a full backup now"
            )

    def apply_resume_poolers(self) -> None:
        target = self.request.members[self._plan.candidate]
        for name, console in self.consoles.items():
            try:
                deadline = Deadline.after(self.clock, CALL_SECONDS)
                state = console.databases(deadline)
                mine = [item.name for item in planner_routes(state, self._addresses())]
                console.reload(deadline)
                wait_until(
                    lambda: _route_problem(console, mine, target.address, target.port, deadline),
                    lambda problem: problem == "",
                    deadline=deadline,
                    interval=POLL_SECONDS,
                    what=f"pooler {name} uses {target.address}:{target.port}",
                    remedy="see that its configuration file was staged, RELOAD and RESUME it",
                )
                console.resume(mine, deadline)
            except DbopsError as error:
                self.pending.append(f"pooler {name}: {error.message}")
        self.pause_ended = self.clock.monotonic()

    def apply_tidy(self) -> None:
        session = self.sessions.to(self._plan.candidate)
        self._restore_retry_interval(session)
        if self._plan.sync_after is not None:
            self._alter_system(session, "synchronous_standby_names", self._plan.sync_after)
        session.run("SELECT pg_reload_conf()")
        if self.pending:
            return
        old = self.sessions.to(self._plan.old_primary)
        for name in self._plan.drop_slots:
            self._drop_slot(old, name)
        # Its own failover slots would keep the slot synchronisation of the new standby from working.
        if int(old.value("SELECT current_setting('server_version_num')")) >= 170000:
            old.run(
                """SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                    WHERE slot_type = 'logical' AND failover AND NOT synced AND NOT active"""
            )

    def apply_certify(self) -> None:
        plan = self._plan
        session = self.sessions.to(plan.candidate)
        session.run("CHECKPOINT", deadline=Deadline.after(self.clock, self.options["checkpoint_timeout"]))
        timeline = session.value("SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int")
        fork = self._fork_lsn(timeline)
        self.proof.update(new_timeline=timeline, fork=format_lsn(fork))
        end = self.proof.get("shutdown_checkpoint_end")
        if end is not None and parse_lsn(end) != fork:
            raise DbopsError(
                found=f"timeline {timeline} left timeline {plan.old_timeline} at {format_lsn(fork)}, the proof ended at {end}",
                expected="the new timeline begins where the old primary ended",
                remedy=f"compare the WAL of {plan.old_primary} behind {format_lsn(fork)} before anything else is done",
            )
        self.proof["system_identifier"] = session.value("SELECT system_identifier::text FROM pg_control_system()")
        self.proof["holds"] = end is not None
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
        self._drop_slot(session, planner.marker_slot(self.operation))
        self.outcome.details["follow_up"] = follow_up(facts[plan.old_primary], data_dir=self.local.data_dir)

    def _fork_lsn(self, timeline: int) -> int:
        if timeline <= self._plan.old_timeline:
            raise DbopsError(
                found=f"{self._plan.candidate} writes on timeline {timeline}",
                expected=f"a timeline above {self._plan.old_timeline}",
                remedy="it was not promoted by this run; find out what happened before clients use it",
            )
        with self._replication() as session:
            row = session.rows(f"TIMELINE_HISTORY {timeline}")[0]
        content = row["content"]
        text = content if isinstance(content, str) else bytes(content).decode()
        return history_switchpoint(text, self._plan.old_timeline)

    def _recall_proof(self, journal: list[dict[str, Any]], observed: Observed) -> None:
        """A killed run proved it before it promoted; where its journal is not here, the old primary's WAL still does."""
        for record in journal:
            if record["step"] == "prove" and record["event"] == "note":
                self.proof = dict(record["data"]["proof"])
        if not self.proof and observed.local.shutdown_end_lsn is not None:
            self.proof = {
                "old_timeline": self._plan.old_timeline,
                "shutdown_checkpoint_end": format_lsn(observed.local.shutdown_end_lsn),
                "proved_by": f"{self.request.node}, after the fact",
            }


def planner_routes(databases: Any, addresses: set[tuple[str, int]]) -> list[Any]:
    return [item for item in databases if (item.host, item.port) in addresses]


def _route_problem(console: PoolerConsole, databases: list[str], address: str, port: int, deadline: Deadline) -> str:
    try:
        console.repoint_check(databases, address, port, deadline)
    except DbopsError as error:
        return error.found
    return ""
