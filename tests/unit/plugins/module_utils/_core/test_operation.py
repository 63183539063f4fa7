# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine: undo before the point of no return, forward after it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._core.journal import Journal, read_journal
from ansible_collections.stateful.dbops.plugins.module_utils._core.operation import (
    Check,
    Interrupted,
    PlannedStep,
    Runner,
    Step,
    refuse_unless_good,
)

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
BROKEN = DbopsError(found="it is broken", expected="it works", remedy="mend it")


@pytest.fixture
def runner(tmp_path: Path, clock: Clock) -> Runner:
    journal = Journal(tmp_path / "op1.jsonl", operation="op1", clock=clock)
    return Runner(journal, clock, started=clock.monotonic())


@pytest.fixture
def done() -> list[str]:
    return []


def fails(error: Exception = BROKEN) -> Callable[[], None]:
    def hand() -> None:
        raise error

    return hand


def step(
    done: list[str],
    name: str,
    *,
    apply: Callable[[], None] | None = None,
    undo: Callable[[], None] | None = None,
    in_pause: bool = False,
    point_of_no_return: bool = False,
) -> Step:
    def applied() -> None:
        done.append(name)
        if apply:
            apply()

    def undone() -> None:
        done.append(f"undo {name}")
        if undo:
            undo()

    return Step(PlannedStep(name, "", in_pause=in_pause, point_of_no_return=point_of_no_return), applied, undone)


def written(runner: Runner) -> list[str]:
    return [f"{record['step']} {record['event']}" for record in read_journal(runner.journal.path)]


def test_steps_run_in_order_and_are_timed(runner: Runner, clock: Clock, done: list[str]) -> None:
    runner.run([step(done, "a", apply=lambda: clock.sleep(0.5)), step(done, "b", apply=lambda: clock.sleep(0.25))])
    assert done == ["a", "b"]
    assert written(runner) == ["a start", "a done", "b start", "b done"]
    assert runner.timeline == [
        {"step": "a", "start_ms": 0.0, "duration_ms": 500.0, "outcome": "done"},
        {"step": "b", "start_ms": 500.0, "duration_ms": 250.0, "outcome": "done"},
    ]


def test_a_failure_is_undone_in_reverse_with_the_step_that_failed(runner: Runner, done: list[str]) -> None:
    with pytest.raises(DbopsError, match="it is broken"):
        runner.run([step(done, "a"), step(done, "b"), step(done, "c", apply=fails()), step(done, "d")])
    runner.undo_all()
    assert done == ["a", "b", "c", "undo c", "undo b", "undo a"]
    assert written(runner)[4:] == [
        *("c start", "c failed", "c undoing", "c undone"),
        *("b undoing", "b undone", "a undoing", "a undone"),
    ]
    assert [entry["step"] for entry in runner.timeline] == ["a", "b", "c", "undo c", "undo b", "undo a"]
    assert runner.timeline[2]["outcome"] == "failed"
    assert runner.undo_errors == []


def test_undoing_twice_undoes_once(runner: Runner, done: list[str]) -> None:
    runner.run([step(done, "a")])
    runner.undo_all()
    runner.undo_all()
    assert done == ["a", "undo a"]


def test_what_a_killed_run_may_have_begun_is_undone_last(runner: Runner, done: list[str]) -> None:
    runner.run([step(done, "c")])
    runner.undo_all([step(done, "a"), step(done, "b")])
    assert done == ["c", "undo c", "undo b", "undo a"]


def test_an_undo_that_fails_is_kept_and_the_others_still_run(runner: Runner, done: list[str]) -> None:
    runner.run([step(done, "a"), step(done, "b", undo=fails()), step(done, "c")])
    runner.undo_all()
    assert done[3:] == ["undo c", "undo b", "undo a"]
    assert runner.undo_errors == ["[b] found: it is broken; expected: it works; what to do: mend it"]
    assert written(runner)[6:] == ["c undoing", "c undone", "b undoing", "b undo failed", "a undoing", "a undone"]


def test_an_undo_that_meets_the_operating_system_does_not_stop_the_others_either(
    runner: Runner, done: list[str]
) -> None:
    runner.run([step(done, "pause_poolers"), step(done, "plant_signal", undo=fails(PermissionError(13, "denied")))])
    runner.undo_all()
    assert done[2:] == ["undo plant_signal", "undo pause_poolers"]
    assert len(runner.undo_errors) == 1


def test_a_full_disk_is_a_failure_like_any_other(runner: Runner, done: list[str]) -> None:
    with pytest.raises(DbopsError, match="No space left on device"):
        runner.run([step(done, "plant_signal", apply=fails(OSError(28, "No space left on device")))])
    assert written(runner) == ["plant_signal start", "plant_signal failed"]


@pytest.mark.parametrize("line", ["b start", "b done"])
def test_a_journal_that_cannot_be_written_is_a_failure_and_hinders_no_undo(
    runner: Runner, done: list[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """Its disk is full: clients that wait are let go all the same."""
    write, (name, event) = os.write, line.split()

    def full(file: int, data: bytes) -> int:
        text = data.decode()
        if (f'"step": "{name}"' in text and f'"event": "{event}"' in text) or '"event": "und' in text:
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DbopsError, match=r"the journal: OSError: .* No space left on device"):
        runner.run([step(done, "a"), step(done, "b"), step(done, "c")])
    runner.undo_all()
    assert [text for text in done if text.startswith("undo")] == ["undo b", "undo a"][event == "start" :]
    assert runner.undo_errors == []


def test_lines_inside_the_pause_are_not_synced_except_the_promotion(
    runner: Runner, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _file: synced.append(written(runner)[-1]))
    runner.run(
        [
            step(done, "a"),
            step(done, "b", in_pause=True),
            step(done, "promote", in_pause=True, point_of_no_return=True),
            step(done, "c", in_pause=True),
        ]
    )
    assert synced == ["a start", "a done", "promote start", "promote done"]


def test_the_intent_to_promote_is_on_disk_before_anything_is_sent(runner: Runner, done: list[str]) -> None:
    seen: list[list[str]] = []
    runner.run([step(done, "promote", point_of_no_return=True, apply=lambda: seen.append(written(runner)))])
    assert seen == [["promote start"]]
    assert runner.committed


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_point_of_no_return_interrupts(runner: Runner, done: list[str], number: int) -> None:
    before = signal.getsignal(number)
    steps = [step(done, "a"), step(done, "b", apply=lambda: os.kill(os.getpid(), number)), step(done, "c")]
    with pytest.raises(Interrupted, match=f"signal {int(number)}"), runner.signals():
        runner.run(steps)
    runner.undo_all()
    assert done == ["a", "b", "undo b", "undo a"]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_and_after_the_point_of_no_return_changes_nothing(
    runner: Runner, done: list[str], number: int
) -> None:
    def shoot() -> None:
        os.kill(os.getpid(), number)

    with runner.signals():
        runner.run([step(done, "promote", apply=shoot, point_of_no_return=True), step(done, "follow", apply=shoot)])
    assert written(runner) == ["promote start", "promote done", "follow start", "follow done"]


def test_a_signal_while_the_intent_to_promote_is_written_does_not_leave_it_behind(
    runner: Runner, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the run goes forward, or no line says that the promotion may have been sent: a second run believes it."""

    def sync(_file: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "fsync", sync)
    try:
        with runner.signals():
            runner.run([step(done, "promote", in_pause=True, point_of_no_return=True)])
    except Interrupted:
        assert "promote start" not in written(runner)
    else:
        assert done == ["promote"]


def test_a_failure_after_the_point_of_no_return_is_raised_with_the_run_committed(
    runner: Runner, done: list[str]
) -> None:
    steps = [step(done, "promote", point_of_no_return=True), step(done, "follow", apply=fails())]
    with pytest.raises(DbopsError, match="it is broken"):
        runner.run(steps)
    assert runner.committed
    assert done == ["promote", "follow"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_does_not_interrupt_the_undoing(runner: Runner, done: list[str], number: int) -> None:
    runner.run([step(done, "a"), step(done, "b", undo=lambda: os.kill(os.getpid(), number))])
    with runner.signals():
        runner.undo_all()
    assert done[2:] == ["undo b", "undo a"]
    assert runner.undo_errors == []


def test_a_step_needs_no_undo(runner: Runner) -> None:
    runner.run([Step(PlannedStep("a", ""), lambda: None)])
    runner.undo_all()
    assert written(runner) == ["a start", "a done", "a undoing", "a undone"]


def test_failed_and_unknown_refuse_together_and_a_warning_does_not() -> None:
    checks = [
        Check("lag", "failed", "9 bytes", "0 bytes", "wait"),
        Check("rewind", "warning", "off", "on", "set it"),
        Check("login", "ok", "yes", "yes"),
        Check("probe", "unknown", "not tried", "tried", "try"),
    ]
    with pytest.raises(DbopsError) as raised:
        refuse_unless_good(checks)
    assert raised.value.found == "[lag] 9 bytes; [probe] not tried"
    assert raised.value.expected == "[lag] 0 bytes; [probe] tried"
    assert raised.value.remedy == "[lag] wait; [probe] try"
    refuse_unless_good(checks[1:3])


def test_plans_and_checks_are_plain_data() -> None:
    assert Check("a", "ok", "b", "c").as_dict() == {
        "name": "a",
        "status": "ok",
        "found": "b",
        "expected": "c",
        "remedy": "",
    }
    assert PlannedStep("a", "b", ("SELECT 1",)).as_dict() == {
        "name": "a",
        "summary": "b",
        "statements": ["SELECT 1"],
        "locks": "none",
        "in_pause": False,
        "point_of_no_return": False,
    }
