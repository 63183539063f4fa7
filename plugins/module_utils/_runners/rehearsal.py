# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A switchover up to the moment before clients would wait, then back: the checks, the steps that come before the pause,
and measurements of what the pause would consist of. No pooler is paused and no server is stopped."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

from .._core.clock import Deadline
from .._core.errors import DbopsError
from .._core.operation import Outcome
from .._postgresql.catalog import OPERATION_TABLE
from .._postgresql.lsn import parse_lsn
from .._postgresql.pause_prediction import Measured, predict
from .patroni_switchover import PatroniSwitchover
from .promotion import CALL_SECONDS
from .switchover import Situation, Switchover, steps_before
from .switchover_steps import DRAIN_SHARE, SwitchoverSteps

UNMAKE = {
    "to_regnamespace('dbops')": "DROP SCHEMA dbops",
    "to_regclass('dbops.operation')": "DROP TABLE dbops.operation",
}
SAMPLES = 20
SAMPLE_SECONDS = 0.05
OLDEST_TRANSACTION = """
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float
  FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


class Rehearsal(Switchover):
    """One run. ``options`` as for Switchover."""

    patroni = False

    def _resume(self, found: Situation) -> Outcome:
        raise DbopsError(
            found="a switchover of this cluster is unfinished, and its primary was stopped",
            expected="a cluster at rest: a rehearsal does not finish what others began",
            remedy="run that switchover again; it finishes or rolls back. Then rehearse",
            details={**self._common(), "state": "refused", "changed": False},
        )

    def _predict(self, found: Situation) -> Outcome:
        outcome = super()._predict(found)
        outcome.changed, outcome.after = False, outcome.before
        if outcome.state == "would switch over":
            outcome.state = "would rehearse"
            outcome.message = outcome.message.replace("would switch over", "would rehearse a switchover")
        return outcome

    def _perform(self, steps: SwitchoverSteps) -> Outcome:
        plan = steps.plan
        primary = self.sessions.to(plan.old_primary)
        absent = [name for name in OPERATION_TABLE if primary.value(f"SELECT {name}") is None]
        with steps.runner.signals():
            try:
                steps.runner.run(steps_before("pause_poolers", steps))
                measured = self._measure(steps)
            except DbopsError as error:
                return self._roll_back(steps, error, begun=[])
            steps.runner.undo_all()
        self._undone(steps, "the rehearsal")
        self._close(steps, "rehearsed")
        if primary.value("SELECT has_table_privilege('dbops.operation', 'DELETE')"):
            primary.run("DELETE FROM dbops.operation WHERE id = %s", [steps.operation])
        else:
            self.warnings.append(
                f"the closed row {steps.operation} stays in dbops.operation: the login may not DELETE there"
            )
        for name in reversed(absent):
            primary.run(UNMAKE[name])
        prediction = predict(
            measured,
            max_pause_ms=self.request.max_pause_ms,
            drain_limit_ms=self.request.max_pause_ms * DRAIN_SHARE,
            patroni=self.patroni,
        )
        if prediction["exceeds"]:
            self.warnings.append(f"such a switchover would be rolled back: {prediction['exceeds']}")
        self.outcome.after = self.outcome.before
        self.outcome.state = "rehearsed"
        self.outcome.message = (
            f"rehearsed a switchover from {plan.old_primary} to {plan.candidate}: nothing refuses it, and clients would"
            f" wait about {prediction['pause_ms']:.0f} ms"
        )
        self.outcome.details = {**self._report(steps, "rehearsed"), "prediction": prediction}
        return self._finish(self.outcome)

    def _measure(self, steps: SwitchoverSteps) -> Measured:
        primary = self.sessions.to(steps.plan.old_primary)
        oldest = 0.0
        for _sample in range(SAMPLES):
            oldest = max(oldest, primary.value(OLDEST_TRANSACTION))
            self.clock.sleep(SAMPLE_SECONDS)
        deadline = Deadline.after(self.clock, self.options["checkpoint_timeout"])
        consoles = [
            self._took(console.databases, Deadline.after(self.clock, CALL_SECONDS))
            for console in steps.consoles.values()
        ]
        return Measured(
            oldest_transaction=oldest * 1000,
            checkpoint=self._took(partial(primary.run, "CHECKPOINT", deadline=deadline)),
            replay=max(self._took(self._replay, steps) for _sample in range(3)),
            console=max(consoles) if consoles else None,
        )

    def _replay(self, steps: SwitchoverSteps) -> None:
        """A message in the WAL, which changes nothing: until the candidate has replayed it."""
        primary = self.sessions.to(steps.plan.old_primary)
        end = parse_lsn(primary.value("SELECT pg_logical_emit_message(true, 'dbops', 'rehearsal')::text"))
        steps.await_replay(
            end,
            deadline=Deadline.after(self.clock, CALL_SECONDS),
            what=f"{steps.plan.candidate} has replayed what {steps.plan.old_primary} has just written",
            remedy="its replication stands still although it looked well: read its log",
        )

    def _took(self, call: Callable[..., Any], *words: Any) -> float:
        began = self.clock.monotonic()
        call(*words)
        return (self.clock.monotonic() - began) * 1000


class PatroniRehearsal(Rehearsal, PatroniSwitchover):
    """With ``patroni`` among the options."""

    patroni = True
