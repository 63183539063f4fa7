# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A switchover of a cluster that Patroni is in charge of: our checks before, Patroni's own switchover by its REST API,
our verification after. Lease, journal, poolers and rollback are those of ``switchover.py``.

Patroni promotes a named candidate also where that has not received everything. So the candidate has to show, with the
poolers paused and just before the request, that it has replayed what the primary has written by then; and the old
primary's pg_control is watched, so that the fork can be compared with where it ended.
"""

from __future__ import annotations

import threading
from typing import Any

from .._core.clock import Clock, Deadline
from .._core.errors import DbopsError
from .._core.journal import Journal
from .._core.operation import Check, Outcome, PlannedStep, Runner, Step
from .._postgresql import patroni_plan as planner
from .._postgresql.control import IN_PRODUCTION, SHUT_DOWN, read_control
from .._postgresql.lsn import format_lsn, parse_lsn
from .._postgresql.patroni import PatroniClient
from .._postgresql.patroni_plan import Ending
from .._postgresql.switchover_plan import Observed, Phase, SwitchoverPlan
from .._postgresql.wal import read_shutdown_checkpoint
from .switchover import Situation, Switchover
from .switchover_context import CALL_SECONDS, SwitchoverContext
from .switchover_steps import POLL_SECONDS, SwitchoverSteps

PROVE_SECONDS = 2.0
ANSWER_SECONDS = 120.0  # Patroni answers after 2 * max(10, loop_wait) seconds
PENDING_SECONDS = 8.0  # Patroni acts on a request at once; longer, and the dead-men let the clients go meanwhile


class _Request(threading.Thread):
    """``POST /switchover``, beside the watching of the servers. ``outcome`` is None while Patroni has not answered."""

    def __init__(self, client: PatroniClient, leader: str, candidate: str) -> None:
        super().__init__(daemon=True)
        self._words = (client, leader, candidate)
        self.outcome: tuple[int, str] | None = None

    def run(self) -> None:
        client, leader, candidate = self._words
        try:
            self.outcome = client.switch_over(leader, candidate, timeout=ANSWER_SECONDS)
        except DbopsError as error:
            self.outcome = (0, error.found)


class PatroniSteps(SwitchoverSteps):
    """The steps of ``patroni_plan.planned_steps``; what is not here is as in every switchover."""

    def __init__(
        self,
        context: SwitchoverContext,
        *,
        operation: str,
        plan: SwitchoverPlan,
        journal: Journal,
        runner: Runner,
        client: PatroniClient,
    ) -> None:
        super().__init__(context, operation=operation, plan=plan, journal=journal, runner=runner)
        self.client = client
        self.names: dict[str, str] = {}
        self.ending = Ending()

    def all(self) -> dict[str, Step]:
        return {name: self._step(planned) for name, planned in planner.planned_steps(self.request, self.plan).items()}

    def apply_prove(self) -> None:
        """The primary goes on writing while clients that no pooler holds are connected; so this is a proof of what was
        written before, and that the candidate receives now."""
        self._begin_pause()
        primary = self.sessions.to(self.plan.old_primary)
        written = parse_lsn(primary.value("SELECT pg_current_wal_lsn()::text", deadline=self._in_pause()))
        replayed = self.await_replay(
            written,
            deadline=self._in_pause(PROVE_SECONDS),
            what=f"{self.plan.candidate} has replayed {format_lsn(written)}, where {self.plan.old_primary} writes now",
            remedy="find out why it does not receive WAL although it looks well (walreceiver, network, full disk):"
            " Patroni would promote it all the same, and what it has not received would be lost",
        )
        self.proof = {
            "old_timeline": self.plan.old_timeline,
            "written_before": format_lsn(written),
            "candidate_replayed": format_lsn(replayed),
            "proved_by": self.request.node,
        }
        self.journal.append("prove", "note", durable=False, proof=self.proof)

    def apply_checkpoints(self) -> None:
        super().apply_checkpoints()
        self._learn_names()

    def _learn_names(self) -> None:
        """Patroni's names of our members. Asked for before the pause: it reads the store."""
        facts = self.client.facts()
        self.names = {name: planner.own_name(facts, member) for name, member in self.request.members.items()}

    def apply_promote(self) -> None:
        """Ends when the candidate accepts writes; Patroni's own answer comes up to a second later, and is not needed
        then. Where Patroni turns the request down nothing has begun, and the run rolls back."""
        request = None
        if self.writable(self.plan.old_primary):
            if not self.names:
                self._learn_names()
            request = _Request(self.client, self.names[self.plan.old_primary], self.names[self.plan.candidate])
            request.start()
        deadline = Deadline.after(self.clock, ANSWER_SECONDS)
        while not self._promoted():
            answer = request.outcome if request is not None else None
            if answer is not None and self._turned_down(*answer):
                self.runner.committed = False
                raise DbopsError(
                    found=f"Patroni did not switch over: {answer[1]} (status {answer[0]})",
                    expected=f"Patroni makes {self.plan.candidate} the leader",
                    remedy="its log on the leader's host says why; mend that and run again",
                )
            if deadline.passed():
                raise DbopsError(
                    found=f"{self.plan.candidate} is not the primary {ANSWER_SECONDS:g} s after Patroni was asked"
                    + (f"; it answered: {answer[1]}" if answer else ""),
                    expected="Patroni switches over, or says that it does not",
                    remedy="patronictl list and Patroni's logs; run this again when there is a leader",
                )
            self.clock.sleep(POLL_SECONDS)

    def _watch(self) -> None:
        """Remember where the old primary ended, while pg_control says so: Patroni starts it again in seconds."""
        if self.ending.end_lsn is not None or self.request.node != self.plan.old_primary:
            return
        control = read_control(self.local.data_dir, self.clock)
        if control.state != SHUT_DOWN:
            return
        try:
            checkpoint = read_shutdown_checkpoint(self.local.data_dir, control)
        except DbopsError as error:
            self.ending = Ending(problem=error.found)
            return
        self.ending = Ending(checkpoint.start_lsn, checkpoint.end_lsn)
        self.journal.append(
            "promote",
            "note",
            durable=False,
            ended=[format_lsn(checkpoint.start_lsn), format_lsn(checkpoint.end_lsn)],
        )

    def _promoted(self) -> bool:
        """One look at pg_control and, once the old primary is not in production, at the others."""
        self._watch()
        here = self.request.node == self.plan.old_primary
        if here and read_control(self.local.data_dir, self.clock).state == IN_PRODUCTION:
            return False
        if self.writable(self.plan.candidate):
            return True
        for name in self.request.members:
            if name not in (self.plan.candidate, self.plan.old_primary) and self.writable(name):
                raise DbopsError(
                    found=f"Patroni made {name} the primary instead of {self.plan.candidate}",
                    expected=f"{self.plan.candidate} is the primary",
                    remedy=f"Patroni's log on {self.plan.candidate} says why; run again for {self.plan.candidate}, or"
                    f" with {name} as the candidate to see that all is well as it is",
                )
        return False

    def _turned_down(self, status: int, text: str) -> bool:
        """4xx comes before anything is begun. 503 with "failed" means that Patroni has given it up, which counts once
        the old primary accepts writes; every other 503, and an answer that was lost, may mean that it goes on."""
        if 400 <= status < 500:
            return True
        return status == 503 and text.lower().endswith(("failed", "into dcs")) and self.writable(self.plan.old_primary)

    def recall_proof(self, journal: list[dict[str, Any]], observed: Observed) -> None:
        super().recall_proof(journal, observed)
        for record in journal:
            if record["step"] == "promote" and record["event"] == "note":
                start, end = (parse_lsn(text) for text in record["data"]["ended"])
                self.ending = Ending(start, end)

    def apply_follow(self) -> None:
        for name in self.request.members:
            if name != self.plan.candidate:
                try:
                    self.await_streaming(name, seconds=self.options["follow_timeout"])
                except DbopsError as error:
                    self.pending.append(f"{name} does not follow: {error.found}")

    def apply_certify(self) -> None:
        plan = self.plan
        session = self.sessions.to(plan.candidate)
        session.run("CHECKPOINT", deadline=Deadline.after(self.clock, self.options["checkpoint_timeout"]))
        timeline, fork = self.new_timeline()
        self.proof.update(new_timeline=timeline, fork=format_lsn(fork), **planner.judge(self.ending, fork=fork))
        if self.proof["holds"] is None:
            self.warnings.append(
                f"whether everything {plan.old_primary} acknowledged is on {plan.candidate} is not known:"
                f" {self.proof['unproved']}"
            )
        self._write_certificate(session)


class PatroniSwitchover(Switchover):
    """One run. ``options`` as for Switchover, with ``patroni``."""

    def __init__(self, options: dict[str, Any], *, clock: Clock) -> None:
        self.client = PatroniClient(options["patroni"], timeout=CALL_SECONDS)
        super().__init__(options, clock=clock)

    def _all_checks(self, observed: Observed) -> list[Check]:
        return planner.all_checks(self.request, observed, self.client.facts())

    def _make_plan(self, observed: Observed) -> SwitchoverPlan:
        return planner.make_plan(self.request, observed, observed.writable()[0])

    def _planned_steps(self, plan: SwitchoverPlan) -> dict[str, PlannedStep]:
        return planner.planned_steps(self.request, plan)

    def _begin(self, operation: str, plan: SwitchoverPlan, *, resumed: str = "") -> SwitchoverSteps:
        plain = super()._begin(operation, plan, resumed=resumed)
        return PatroniSteps(
            self.context, operation=operation, plan=plan, journal=plain.journal, runner=plain.runner,
            client=self.client,
        )  # fmt: skip

    def _fresh(self, found: Situation) -> Outcome:
        if found.unfinished and found.observed.local.promote_sent:
            # A killed run asked Patroni. While that may still be acted on, clients are not to be let go to a server
            # that is about to stop.
            self._await_change(found)
            found = self._look(check_mode=False)
            if found.phase is not Phase.FRESH:
                return self._resume(found) if found.unfinished else self._unchanged(found.observed)
        return super()._fresh(found)

    def _await_change(self, found: Situation) -> None:
        """Until the primary of ``found`` is none any more, or nothing has come of the request in PENDING_SECONDS."""
        deadline = Deadline.after(self.clock, PENDING_SECONDS)
        while not deadline.passed():
            if self.sessions.facts()[found.observed.writable()[0]].writable:
                self.clock.sleep(0.1)
                continue
            return

    def _resume(self, found: Situation) -> Outcome:
        if found.phase is not Phase.PROMOTED:
            raise DbopsError(
                found="no member accepts writes, and no switchover of ours stopped the primary",
                expected="Patroni has a leader",
                remedy="patronictl list and Patroni's logs say why there is none; run again when there is",
                details={**self._common(), "state": "refused", "changed": False},
            )
        return super()._resume(found)

    def _carry_out(self, steps: SwitchoverSteps, hands: list[Step], *, begun: list[Step] | None = None) -> Outcome:
        outcome = super()._carry_out(steps, hands, begun=begun)
        if steps.proof.get("holds") is False:
            raise DbopsError(
                found=f"{steps.plan.old_primary} ended at {steps.proof['shutdown_checkpoint_end']}, and"
                f" {steps.plan.candidate} went on from {steps.proof['fork']}: {steps.proof['lost_bytes']} bytes of WAL,"
                " and the commits in them, are missing",
                expected="the new timeline begins where the old primary ended",
                remedy=f"{steps.plan.candidate} is the primary. Save pg_wal of {steps.plan.old_primary} before it is"
                " rewound or rebuilt; pg_waldump from the fork on shows what is missing",
                details={**self._common(), **self._report(steps, "data lost"), "changed": True},
            )
        return outcome

    def _unchanged(self, observed: Observed) -> Outcome:
        last = observed.nodes[self.request.candidate].last_operation
        if last is not None and last["detail"].get("certificate", {}).get("holds") is False:
            self.warnings.append(
                f"the last switchover ({last['id']}) lost data: see its certificate in dbops.operation"
            )
        return super()._unchanged(observed)
