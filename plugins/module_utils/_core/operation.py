# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operation engine: checks, a plan of steps, and the runner that applies, undoes or goes forward."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Callable

from .clock import Clock
from .errors import DbopsError
from .journal import Journal


@dataclass(frozen=True)
class Check:
    """One precheck. ``status``: ok, failed (refuses), warning (reported), unknown (refuses: never read as good)."""

    name: str
    status: str
    found: str
    expected: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def refuse_unless_good(checks: Iterable[Check]) -> None:
    """Raise one DbopsError that names every check that failed or is unknown."""
    bad = [check for check in checks if check.status in ("failed", "unknown")]
    if not bad:
        return
    raise DbopsError(
        found="; ".join(f"[{check.name}] {check.found}" for check in bad),
        expected="; ".join(f"[{check.name}] {check.expected}" for check in bad),
        remedy="; ".join(f"[{check.name}] {check.remedy}" for check in bad),
    )


@dataclass(frozen=True)
class PlannedStep:
    """What a step would do, for ``--check``: pure data."""

    name: str
    summary: str
    statements: tuple[str, ...] = ()
    locks: str = "none"
    in_pause: bool = False
    point_of_no_return: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "statements": list(self.statements)}


@dataclass
class Outcome:
    """What the module returns. ``details`` are keys of the result, documented in the module's RETURN."""

    changed: bool = False
    state: str = ""
    message: str = ""
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Step:
    """A planned step with its hands. ``apply`` and ``undo`` are idempotent: a killed run may have done any part of
    them. ``undo`` must not raise for what is already undone."""

    plan: PlannedStep
    apply: Callable[[], None]
    undo: Callable[[], None] = _nothing


class Interrupted(DbopsError):
    """SIGTERM, SIGINT or SIGHUP arrived before the point of no return."""


def _as_dbops_error(name: str, call: Callable[[], None]) -> None:
    """Also what nobody foresaw (a full disk, a defect of ours) has to end in an undo, not in a traceback that leaves
    clients waiting."""
    try:
        call()
    except DbopsError:
        raise
    except Exception as error:
        raise DbopsError(
            found=f"{name}: {type(error).__name__}: {error}",
            expected="the step ends without an unforeseen error",
            remedy="mend what the text names; if it names nothing of yours, report it with the journal",
        ) from error


@dataclass
class Runner:
    """Applies steps in order. Before the point of no return a failure undoes in reverse; after it, it goes forward:
    nothing is undone, signals are ignored, and the error says that a second run finishes the job."""

    journal: Journal
    clock: Clock
    started: float
    timeline: list[dict[str, Any]] = field(default_factory=list)
    undo_errors: list[str] = field(default_factory=list)
    committed: bool = False
    told_to_stop: int = 0
    begun: list[Step] = field(default_factory=list)

    def run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._apply(step)

    def _apply(self, step: Step) -> None:
        name = step.plan.name
        if self.told_to_stop and not self.committed:
            raise Interrupted(
                found=f"the run was told to stop (signal {self.told_to_stop}) before {name}",
                expected="to run to its end",
                remedy="nothing was switched; run it again when you want to",
            )
        begin = self.clock.monotonic()
        durable = not step.plan.in_pause or step.plan.point_of_no_return
        _as_dbops_error("the journal", partial(self.journal.append, name, "start", durable=durable))
        if step.plan.point_of_no_return:
            self.committed = True
        self.begun.append(step)
        try:
            _as_dbops_error(step.plan.name, step.apply)
        except DbopsError as error:
            self._note(name, "failed", durable=durable, found=error.found)
            self._record(name, begin, "failed")
            raise
        _as_dbops_error("the journal", partial(self.journal.append, name, "done", durable=durable))
        self._record(name, begin, "done")

    def undo_all(self, more: Iterable[Step] = ()) -> None:
        """Undo every step that was begun, newest first, and before them ``more`` (what a killed run may have begun, in
        the order of the plan). What cannot be undone is kept in ``undo_errors``."""
        self.begun[:0] = more
        while self.begun:
            step = self.begun.pop()
            begin = self.clock.monotonic()
            self._note(step.plan.name, "undoing", durable=False)
            try:
                _as_dbops_error(step.plan.name, step.undo)
                self._note(step.plan.name, "undone", durable=False)
            except DbopsError as error:
                self.undo_errors.append(f"[{step.plan.name}] {error.message}")
                self._note(step.plan.name, "undo failed", found=error.found)
            self._record(f"undo {step.plan.name}", begin, "undone")

    def _note(self, name: str, event: str, **data: Any) -> None:
        """On the way back: a journal that cannot be written, its disk being full, must not leave clients waiting."""
        with suppress(OSError):
            self.journal.append(name, event, **data)

    def _record(self, name: str, begin: float, outcome: str) -> None:
        self.timeline.append(
            {
                "step": name,
                "start_ms": round((begin - self.started) * 1000, 1),
                "duration_ms": round((self.clock.monotonic() - begin) * 1000, 1),
                "outcome": outcome,
            }
        )

    @contextmanager
    def signals(self) -> Iterator[None]:
        """A termination signal takes effect between two steps, and never after the point of no return: an exception in
        the middle of a step could not tell whether what it was about to do has happened."""

        def on_signal(number: int, _frame: Any) -> None:
            self.told_to_stop = number

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
