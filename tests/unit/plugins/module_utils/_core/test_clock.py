# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting: how long, for what, and what is said when it was in vain."""

from __future__ import annotations

import time

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock, Deadline, wait_until
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS = st.integers(min_value=1, max_value=50)


class Counter:
    """Reads 1, 2, 3, … and remembers when it was asked."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[float] = []

    def __call__(self) -> int:
        self.asked.append(self.clock.monotonic())
        return len(self.asked)


def test_a_deadline_runs_out_and_is_never_negative(clock: Clock) -> None:
    deadline = Deadline.after(clock, 5.0)
    assert deadline.left() == 5.0
    clock.sleep(4.0)
    assert deadline.left() == 1.0
    assert not deadline.passed()
    clock.sleep(1.0)
    assert deadline.passed()
    clock.sleep(60.0)
    assert deadline.left() == 0.0


def test_sooner_never_extends(clock: Clock) -> None:
    deadline = Deadline.after(clock, 5.0)
    assert deadline.sooner(2.0).left() == 2.0
    assert deadline.sooner(9.0).left() == 5.0


def test_the_first_look_comes_before_any_wait(clock: Clock) -> None:
    read = Counter(clock)
    deadline = Deadline.after(clock, 0.0)
    assert wait_until(read, lambda value: value == 1, deadline=deadline, interval=1.0, what="x", remedy="y") == 1
    assert read.asked == [1000.0]


def test_it_looks_every_interval_and_a_last_time_at_the_deadline(clock: Clock) -> None:
    read = Counter(clock)
    with pytest.raises(DbopsError) as raised:
        wait_until(
            read,
            lambda _: False,
            deadline=Deadline.after(clock, 2.5),
            interval=1.0,
            what="the value 9",
            remedy="turn it",
        )
    assert read.asked == [1000.0, 1001.0, 1002.0, 1002.5]
    assert raised.value.found == "after 2.5 s: 4"
    assert raised.value.expected == "the value 9"
    assert raised.value.remedy == "turn it"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=SECONDS, interval=SECONDS, good_after=SECONDS)
def test_what_became_good_by_the_deadline_is_always_seen(
    clock: Clock, limit: int, interval: int, good_after: int
) -> None:
    began = clock.monotonic()

    def wait() -> float:
        return wait_until(
            lambda: clock.monotonic() - began,
            lambda passed: passed >= good_after,
            deadline=Deadline.after(clock, limit),
            interval=interval,
            what="x",
            remedy="y",
        )

    if good_after <= limit:
        assert good_after <= wait() < good_after + interval
    else:
        with pytest.raises(DbopsError):
            wait()
        assert clock.monotonic() - began == limit


def test_an_error_of_the_read_is_not_swallowed(clock: Clock) -> None:
    def read() -> int:
        raise DbopsError(found="a", expected="b", remedy="c")

    with pytest.raises(DbopsError, match="found: a; expected: b; what to do: c"):
        wait_until(read, bool, deadline=Deadline.after(clock, 9.0), interval=1.0, what="x", remedy="y")
    assert clock.monotonic() == 1000.0


def test_the_real_clock_measures_and_sleeps() -> None:
    clock = Clock()
    began = clock.monotonic()
    clock.sleep(0.01)
    assert 0.01 <= clock.monotonic() - began < 5
    assert abs(clock.wall() - time.time()) < 5
