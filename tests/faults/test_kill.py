# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL of the run before and after every journal step, and at random times; run again, it converges."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.scene import Act, Scene, pause_began, scene
from tests.lab import faults
from tests.lab.operation import journals

STEPS = (
    "intent",
    "slots",
    "tune_candidate",
    "checkpoints",
    "pause_poolers",
    "plant_signal",
    "stop",
    "prove",
    "promote",
    "resume_poolers",
    "follow",
    "rejoin",
    "tidy",
    "certify",
)
FAILPOINTS = [f"{step}:{moment}" for step in STEPS for moment in ("before", "after")]
# Of what a rollback undoes: clients resumed, fence taken away, server started, settings and slots removed.
UNDONE = ("prove", "stop", "plant_signal", "pause_poolers", "tune_candidate", "slots")
# A run that is killed before a step has done what one that is killed after the step before has.
UNDO_FAILPOINTS = [
    pytest.param(f"undo_{step}:{moment}", marks=[pytest.mark.long] if moment == "before" else [])
    for step in UNDONE
    for moment in ("before", "after")
]
SEED = int(os.environ.get("DBOPS_SEED", random.SystemRandom().randrange(1 << 32)))
RANDOM_KILLS = int(os.environ.get("DBOPS_KILLS", "10"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("kill"), os.environ.get("DBOPS_VERSION", "18")) as ready:
        yield ready


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_killed_at_a_step_the_second_run_finishes(stage: Scene, failpoint: str) -> None:
    old, candidate = stage.names()
    stage.guard("armed", candidate)
    run = stage.start(candidate, old, failpoint=failpoint)
    assert run.result() == {}, "the failpoint was not reached"
    assert len(stage.writable()) <= 1
    results = stage.converge(candidate, old)
    stage.assert_settled(candidate, old)
    print(failpoint, [result["state"] for result in results])


@pytest.mark.parametrize("failpoint", UNDO_FAILPOINTS)
def test_killed_while_a_rollback_is_under_way(stage: Scene, failpoint: str) -> None:
    """The candidate stands still, so the run undoes what it did, and is killed at that. Then somebody starts the old
    primary, if it is down: as what it starts is what the fence is worth."""
    act = Act(stage, failpoint=failpoint, max_pause_ms=2000)
    with ExitStack() as frozen:
        with act.held_at("plant_signal"):
            frozen.enter_context(faults.frozen(act.new_node.process("startup")))
        assert act.run.result() == {}, "the failpoint was not reached"
    assert len(stage.writable()) <= 1
    if not act.old_node.running():
        act.old_node.start()
    assert len(stage.writable()) <= 1
    act.converge()


def test_the_list_of_failpoints_is_complete(stage: Scene) -> None:
    old, candidate = stage.names()
    result = stage.switch(candidate, old)
    assert [step["step"] for step in result["timeline"]] == list(STEPS)


def _kill_at_random(stage: Scene, chance: random.Random, *, in_pause: bool) -> str:
    """One run, killed; what the second one had to do."""
    old, candidate = stage.names()
    before = set(journals(stage.cluster, old))
    stage.guard("armed", candidate)
    run = stage.start(candidate, old)
    if in_pause:
        assert pause_began(stage.cluster, old, before, seconds=60), run.result()
        delay = chance.uniform(0, 0.6)
    else:
        delay = chance.uniform(0, 3.0)
    time.sleep(delay)
    run.process.kill()
    run.result()
    assert len(stage.writable()) <= 1
    results = stage.converge(candidate, old)
    stage.assert_settled(candidate, old)
    return f"{'pause' if in_pause else 'any'} +{delay * 1000:.0f} ms: {[result['state'] for result in results]}"


def _random_kills(stage: Scene, count: int) -> None:
    print(f"seed {SEED} (DBOPS_SEED repeats it)")
    chance = random.Random(SEED)
    for number in range(count):
        print(number, _kill_at_random(stage, chance, in_pause=number % 2 == 0))
        if number % 20 == 19:
            stage.check_ledger()
    stage.check_ledger()


def test_killed_at_random_times(stage: Scene) -> None:
    _random_kills(stage, RANDOM_KILLS)


@pytest.mark.long
def test_killed_at_two_hundred_random_times(stage: Scene, tmp_path: Path) -> None:
    _random_kills(stage, 200)
