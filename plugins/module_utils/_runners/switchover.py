# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A planned switchover: facts, checks, plan, steps, certificate. The flow; ``switchover_steps.py`` has the hands.

It runs on the old primary's host. When that host is gone in the middle of a switchover, a second run on the
candidate's host finishes it, if the candidate can prove from its own WAL that it has everything.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from .._core.clock import Clock, Deadline
from .._core.errors import DbopsError
from .._core.journal import Journal, LockFile, make_state_directory, params_hash
from .._core.journal import open_operation as open_journal
from .._core.operation import Check, Outcome, PlannedStep, Runner, Step, refuse_unless_good
from .._postgresql import switchover_plan as planner
from .._postgresql.catalog import altered_setting, read_receiver
from .._postgresql.lsn import format_lsn
from .._postgresql.switchover_plan import LocalFacts, Observed, Phase, SwitchoverPlan
from .switchover_context import SwitchoverContext
from .switchover_steps import SwitchoverSteps

RECONNECT_SECONDS = 12.0

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Situation:
    """What a run finds: the facts, and the unfinished operation if there is one (journal of this host, row)."""

    observed: Observed
    journal: Records
    row: dict[str, Any] | None
    phase: Phase | None

    @property
    def unfinished(self) -> bool:
        return bool(self.journal or self.row)

    def earlier(self) -> tuple[str, SwitchoverPlan]:
        """Id and plan of the unfinished operation."""
        if self.row is not None:
            return self.row["id"], SwitchoverPlan.from_detail(self.row["detail"])
        return self.journal[0]["op"], SwitchoverPlan.from_detail(self.journal[0]["data"]["plan"])


class Switchover:
    """One run. ``options`` is the module's argument dictionary (plugins/modules/replica_promote.py documents it)."""

    def __init__(self, options: dict[str, Any], *, clock: Clock) -> None:
        self.context = SwitchoverContext(options, clock=clock)
        self.options = options
        self.clock = clock
        self.request = self.context.request
        self.sessions = self.context.sessions
        self.directory = Path(options["state_dir"]) / self.request.cluster
        self.outcome = Outcome()
        self.checks: list[Check] = []
        self.planned: list[dict[str, Any]] = []
        self.statements: list[str] = []
        self.warnings: list[str] = []

    def run(self, *, check_mode: bool) -> Outcome:
        """Raises DbopsError; its details are keys of the result."""
        lock = LockFile(self.directory / "lock")
        try:
            if not check_mode:
                make_state_directory(self.directory)
                lock.acquire(f"switchover to {self.request.candidate}")
            return self._run(check_mode=check_mode)
        finally:
            self.context.close()
            lock.release()

    def _run(self, *, check_mode: bool) -> Outcome:
        found = self._look(check_mode=check_mode)
        self.outcome.before = planner.topology(found.observed)
        if self._nothing_to_do(found):
            return self._unchanged(found.observed)
        if check_mode:
            return self._predict(found)
        # What was seen before the lease may be over by now: another run can have ended in between.
        self.sessions.take_lease(self.request.cluster, found.observed.nodes, first=self.request.candidate)
        found = self._look(check_mode=False)
        if self._nothing_to_do(found):
            return self._unchanged(found.observed)
        if found.phase is Phase.FRESH:
            return self._fresh(found)
        if found.phase is None:
            self._check(planner.base_checks(self.request, found.observed))
        return self._resume(found)

    # ------------------------------------------------------------------------------------------------------- looking

    def _look(self, *, check_mode: bool) -> Situation:
        journal = open_journal(self.directory)
        observed = self.context.observe(journal)
        row = planner.open_operation(observed, self.request.candidate)
        if journal and not row and self._superseded(journal, observed):
            if not check_mode:
                self._close_journal(journal[0]["op"], "superseded")
            journal = []
            observed = self.context.observe(journal)
        phase = planner.derive_phase(self.request, observed, own_operation=bool(journal or row))
        return Situation(observed, journal, row, phase)

    def _superseded(self, journal: Records, observed: Observed) -> bool:
        """Was the operation of this host's open journal ended from another host, or overtaken by another one? Then
        undoing it would stop a server that nobody meant."""
        plan = SwitchoverPlan.from_detail(journal[0]["data"]["plan"])
        for name, facts in observed.nodes.items():
            if facts.answered and facts.has_operations:
                query = "SELECT state FROM dbops.operation WHERE id = %s"
                if self.sessions.to(name).value(query, [journal[0]["op"]]) not in (None, "open"):
                    return True
        writable = observed.writable()
        return bool(writable) and not {plan.old_primary, plan.candidate}.intersection(writable)

    def _nothing_to_do(self, found: Situation) -> bool:
        if found.phase is Phase.DONE:
            return True
        return bool(self.options["only_recover"]) and found.phase is Phase.FRESH and not found.unfinished

    def _unchanged(self, observed: Observed) -> Outcome:
        for name, facts in observed.nodes.items():
            if not facts.answered or (facts.in_recovery and facts.receiver is None):
                self.warnings.append(f"{name} follows nobody: {facts.error or 'it has no walreceiver, see its log'}")
        self.outcome.state = "unchanged"
        self.outcome.message = f"{', '.join(observed.writable())} is the primary, and no switchover is unfinished"
        self.outcome.after = self.outcome.before
        return self._finish(self.outcome)

    def _predict(self, found: Situation) -> Outcome:
        """Check mode: reads alone."""
        observed = found.observed
        self.outcome.changed = True
        if found.phase is None:
            self._check(planner.base_checks(self.request, observed))
        self.outcome.after = planner.expected_topology(self.request, observed)
        if found.unfinished:
            self.outcome.state = "would recover"
            why = found.phase.value if found.phase else "no primary"
            self.outcome.message = f"an unfinished run was found ({why}); this run would finish or undo it first"
            if found.phase is Phase.FRESH:
                self._check(planner.base_checks(self.request, observed))
            return self._finish(self.outcome)
        self._check(self._all_checks(observed))
        plan = self._make_plan(observed)
        self._show(plan)
        self.outcome.state = "would switch over"
        self.outcome.message = f"would switch over from {plan.old_primary} to {plan.candidate}"
        return self._finish(self.outcome)

    def _all_checks(self, observed: Observed) -> list[Check]:
        return planner.all_checks(self.request, observed)

    def _make_plan(self, observed: Observed) -> SwitchoverPlan:
        candidate = self.sessions.to(self.request.candidate)
        plan = planner.make_plan(
            self.request,
            observed,
            observed.writable()[0],
            retry_interval_before=altered_setting(candidate, "wal_retrieve_retry_interval"),
            bin_dir=self.context.local.programs(),
        )
        # What its configuration file says comes back by RESET, not by a second copy of it.
        return replace(plan, sync_before=altered_setting(candidate, "synchronous_standby_names") or "")

    def _planned_steps(self, plan: SwitchoverPlan) -> dict[str, PlannedStep]:
        return planner.planned_steps(self.request, plan)

    def _show(self, plan: SwitchoverPlan) -> None:
        steps = self._planned_steps(plan).values()
        self.planned = [step.as_dict() for step in steps]
        self.statements = [statement for step in steps for statement in step.statements]

    def _check(self, checks: list[Check]) -> None:
        """Raises DbopsError, state refused, unless all are good."""
        self.checks = checks
        self.warnings += [
            f"[{check.name}] {check.found}; {check.remedy}" for check in checks if check.status == "warning"
        ]
        try:
            refuse_unless_good(checks)
        except DbopsError as error:
            error.with_details(**self._common(), state="refused", changed=False)
            raise

    def _common(self) -> dict[str, Any]:
        return {
            "checks": [check.as_dict() for check in self.checks],
            "plan": self.planned,
            "statements": self.statements,
            "warnings": self.warnings,
        }

    def _finish(self, outcome: Outcome) -> Outcome:
        outcome.details = {**self._common(), **outcome.details}
        return outcome

    # ------------------------------------------------------------------------------------------------------- running

    def _fresh(self, found: Situation) -> Outcome:
        if found.unfinished:
            self._check(planner.base_checks(self.request, found.observed))
            self._unwind(*found.earlier())
            if self.options["only_recover"]:
                self.outcome.changed = True
                self.outcome.state = "rolled back"
                self.outcome.message = f"{self.warnings[-1]}; {found.observed.writable()[0]} is the primary"
                self.outcome.after = planner.topology(found.observed)
                return self._finish(self.outcome)
        observed = self.context.observe([]) if found.unfinished else found.observed
        self._check(self._all_checks(observed))
        plan = self._make_plan(observed)
        self._show(plan)
        # Lower case, digits and underscore only: it is part of a slot's name.
        operation = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime(self.clock.wall()))}_{secrets.token_hex(3)}"
        return self._perform(self._begin(operation, plan))

    def _perform(self, steps: SwitchoverSteps) -> Outcome:
        return self._carry_out(steps, list(steps.all().values()))

    def _unwind(self, operation: str, plan: SwitchoverPlan) -> None:
        """The primary still accepts writes: undo what the killed run left, then this run starts anew."""
        steps = self._begin(operation, plan, resumed="unwinding")
        with steps.runner.signals():
            steps.runner.undo_all(steps_before("promote", steps))
        self._undone(steps, f"an unfinished run {operation}")
        self._close(steps, "rolled_back")
        self.warnings.append(f"an unfinished run ({operation}) was rolled back first")

    def _undone(self, steps: SwitchoverSteps, what: str) -> None:
        if steps.runner.undo_errors:
            raise DbopsError(
                found=f"{what} could not be undone: {'; '.join(steps.runner.undo_errors)}",
                expected="its leftovers can be removed before anything new begins",
                remedy=f"mend what is named and run again; {steps.plan.old_primary} is the primary",
                details={**self._common(), **self._report(steps, "rollback unfinished"), "changed": True},
            )

    def _resume(self, found: Situation) -> Outcome:
        """Finish, or where that cannot be proved safe undo, what an earlier run began."""
        observed, phase = found.observed, found.phase
        operation, plan = found.earlier()
        self._resumable(plan, observed)
        steps = self._begin(operation, plan, resumed=phase.value if phase else "")
        hands = steps.all()
        names = list(hands)
        if phase is Phase.PROMOTED:
            steps.recall_proof(found.journal, observed)
            steps.runner.committed = True
            # From the promotion itself: a run that was killed may not have sent it, and asking twice is harmless.
            return self._carry_out(steps, [hands[name] for name in names[names.index("promote") :]])
        begun = steps_before("promote", steps)
        here = self.request.node == plan.old_primary
        end, problem = observed.local.shutdown_end_lsn, observed.local.shutdown_problem
        if any(record["event"] == "undoing" for record in found.journal):
            # What the way forward needs, slots and settings, may be gone: there is only the way back.
            end, problem = None, "an earlier run began to undo it"
        elif phase is Phase.STOPPED and here:
            end, problem = self._fence_again(observed)
        candidate = observed.nodes[plan.candidate]
        if phase is Phase.STOPPED and end is not None and (candidate.replay_lsn or 0) >= end:
            left = (["plant_signal"] if here else []) + names[names.index("prove") :]  # again: also the marker
            return self._carry_out(steps, [hands[name] for name in left], begun=begun)
        why = problem or (
            f"the old primary ended at {format_lsn(end or 0)}, the candidate has replayed"
            f" {planner.describe_lsn(candidate.replay_lsn)}"
        )
        if not here:
            raise DbopsError(
                found=f"{plan.old_primary} is gone, and {why}",
                expected=f"proof that {plan.candidate} has everything {plan.old_primary} acknowledged",
                remedy=f"bring the host of {plan.old_primary} back and run again there (its server starts as a standby,"
                " so it cannot accept a write before); promoting without proof is a failover and may lose commits",
                details={**self._common(), **self._report(steps, "unfinished"), "changed": False},
            )
        if not candidate.answered:
            raise DbopsError(
                found=f"{plan.old_primary} was stopped by an unfinished run, and {plan.candidate} does not answer:"
                f" {candidate.error}",
                expected=f"{plan.candidate} says whether it was promoted: were it, starting {plan.old_primary} as a"
                " primary would make two",
                remedy=f"bring {plan.candidate} back and run again. If it is lost for good and you know that nobody"
                f" promoted it, remove standby.signal from the data directory of {plan.old_primary} and start it",
                details={**self._common(), **self._report(steps, "unfinished"), "changed": False},
            )
        return self._roll_back(
            steps,
            DbopsError(
                found=f"{phase.value if phase else 'no primary'}: {why}",
                expected="proof that the candidate has everything",
                remedy="run the switchover again when the candidate streams",
            ),
            begun=begun,
        )

    def _fence_again(self, observed: Observed) -> tuple[int | None, str]:
        """A run that was killed as it began to undo may have taken standby.signal away. Before anything is proved it is
        there again: who starts the old primary from now on starts a standby, and who was faster is seen here."""
        local = self.context.local
        local.plant_signal()
        return self.context.shutdown_end(observed.nodes, running=local.pid() is not None)

    def _resumable(self, plan: SwitchoverPlan, observed: Observed) -> None:
        if plan.candidate != self.request.candidate:
            raise DbopsError(
                found=f"an unfinished switchover to {plan.candidate}",
                expected=f"no unfinished operation, or one to {self.request.candidate}",
                remedy=f"run it again with candidate={plan.candidate}; when that is finished, switch to the other one",
                details={**self._common(), "state": "refused", "changed": False},
            )
        if self.request.node == plan.old_primary and observed.local.problem:
            raise DbopsError(
                found=observed.local.problem,
                expected=f"the data directory of {plan.old_primary}",
                remedy="correct data_dir, and run as root or as its owner",
                details={**self._common(), "state": "refused", "changed": False},
            )

    def _begin(self, operation: str, plan: SwitchoverPlan, *, resumed: str = "") -> SwitchoverSteps:
        meaning = {"kind": planner.KIND, "candidate": plan.candidate, "members": sorted(self.request.members)}
        path = self.directory / f"{operation}.jsonl"
        journal = Journal(path, operation=operation, clock=self.clock, fingerprint=params_hash(meaning))
        journal.append("operation", "resumed" if resumed else "opened", plan=plan.as_detail(), phase=resumed)
        runner = Runner(journal, self.clock, started=self.clock.monotonic())
        return SwitchoverSteps(self.context, operation=operation, plan=plan, journal=journal, runner=runner)

    def _carry_out(self, steps: SwitchoverSteps, hands: list[Step], *, begun: list[Step] | None = None) -> Outcome:
        """``begun``: steps that a killed run may have begun, to be undone too if this run fails."""
        plan = steps.plan
        steps.joined = begun is not None
        self.outcome.changed = True
        with steps.runner.signals():
            try:
                steps.runner.run(hands)
            except DbopsError as error:
                if not steps.runner.committed:
                    if self.request.node != plan.old_primary:
                        self._leave(steps, error)
                    return self._roll_back(steps, error, begun=begun or [])
                steps.journal.append("operation", "unfinished", found=error.found)
                error.with_details(**{**self._common(), **self._report(steps, "unfinished"), "changed": True})
                raise
        if steps.pending:
            steps.journal.append("operation", "unfinished", found=steps.pending)
            raise DbopsError(
                found=f"{plan.candidate} is the primary, but: {'; '.join(steps.pending)}",
                expected="every member and pooler follows it",
                remedy="mend what is named and run again: the second run finishes this operation",
                details={**self._common(), **self._report(steps, "unfinished"), "changed": True},
            )
        self._close(steps, "done")
        self.outcome.state = "switched over"
        self.outcome.message = f"switched over from {plan.old_primary} to {plan.candidate}"
        self.outcome.after = planner.topology(Observed(self.sessions.facts(), LocalFacts()))
        self.outcome.details = self._report(steps, "switched over")
        return self._finish(self.outcome)

    def _leave(self, steps: SwitchoverSteps, error: DbopsError) -> NoReturn:
        """On the candidate's host there is nothing to undo: the server there is not the one that was stopped."""
        steps.journal.append("operation", "unfinished", found=error.found)
        old, new = steps.plan.old_primary, steps.plan.candidate
        raise DbopsError(
            found=f"{error.found}. {new} was not promoted, and nothing was undone: {old} and its host are gone",
            expected=error.expected,
            remedy=f"run it again, here or, when the host of {old} is back, there: it finishes or rolls back",
            details={**error.details, **self._common(), **self._report(steps, "unfinished"), "changed": True},
        ) from error

    def _roll_back(self, steps: SwitchoverSteps, error: DbopsError, *, begun: list[Step]) -> Outcome:
        """Undo, then raise ``error``: what was found, and where the clients are now."""
        old = steps.plan.old_primary
        if self.request.node == old and self.context.local.pid() is None:
            # It may have crashed before it was stopped: undoing the stop, before all else, starts it again.
            begun, steps.runner.begun = steps_before("promote", steps), []
        steps.runner.undo_all(begun)
        if steps.runner.undo_errors:
            state = "rollback unfinished"
            accepts = "accepts writes again" if steps.writable(old) else "does not accept writes yet"
            found = f"{error.found}; {old} {accepts}; while rolling back: {'; '.join(steps.runner.undo_errors)}"
            remedy = f"mend what is named and run again: the second run undoes the rest first. {error.remedy}"
        else:
            state = "rolled back"
            self._await_standbys(old)
            self._close(steps, "rolled_back")
            found = f"{error.found}. It was rolled back: {old} is the primary"
            remedy = error.remedy
        raise DbopsError(
            found=found,
            expected=error.expected,
            remedy=remedy,
            details={**error.details, **self._common(), **self._report(steps, state), "changed": True},
        ) from error

    def _await_standbys(self, primary: str) -> None:
        """A rollback that restarted the primary cut its standbys off; they come back within
        wal_retrieve_retry_interval. Wait for them, so that the next run finds a whole cluster."""
        deadline = Deadline.after(self.clock, RECONNECT_SECONDS)
        for name in self.request.members:
            while name != primary:
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

    def _report(self, steps: SwitchoverSteps, state: str) -> dict[str, Any]:
        plan = steps.plan
        return {
            "state": state,
            "operation": {
                "id": steps.operation,
                "name": planner.KIND,
                "state": state,
                "journal": str(steps.journal.path),
            },
            "timeline": steps.runner.timeline,
            "proof": steps.proof,
            "archive": steps.archive,
            "follow_up": steps.follow_up,
            "pause_ms": steps.pause_ms(),
            "warnings": [*self.warnings, *steps.warnings],
            "old_primary": plan.old_primary,
            "new_primary": plan.candidate,
            "carried_slots": list(plan.carried_slots),
        }

    def _close(self, steps: SwitchoverSteps, state: str) -> None:
        """The operation is over: close its row where there is a primary to write it, then the journal."""
        primary = steps.plan.candidate if state == "done" else steps.plan.old_primary
        try:
            session = self.sessions.to(primary)
            if session.value("SELECT to_regclass('dbops.operation') IS NOT NULL"):
                session.run(
                    "UPDATE dbops.operation SET state = %s, closed_at = now() WHERE id = %s AND state = 'open'",
                    [state, steps.operation],
                )
        except DbopsError as error:
            self.warnings.append(f"the operation's row could not be closed: {error.found}")
        self._close_journal(steps.operation, state)

    def _close_journal(self, operation: str, state: str) -> None:
        journal = Journal(self.directory / f"{operation}.jsonl", operation=operation, clock=self.clock)
        journal.append("operation", "closed", state=state)
        journal.close()


def steps_before(name: str, steps: SwitchoverSteps) -> list[Step]:
    hands = steps.all()
    names = list(hands)
    return [hands[each] for each in names[: names.index(name)]]
