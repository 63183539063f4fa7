# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One clock and one sleeper, injected everywhere, so that waits can be tested without waiting."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, TypeVar

from .errors import DbopsError

T = TypeVar("T")


class Clock:
    """Seconds as floats. ``monotonic`` measures, ``wall`` (Unix time) only labels."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Deadline:
    """A point in monotonic time by which something has to be over."""

    clock: Clock
    at: float

    @classmethod
    def after(cls, clock: Clock, seconds: float) -> Deadline:
        return cls(clock, clock.monotonic() + seconds)

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - self.clock.monotonic())

    def passed(self) -> bool:
        return self.left() <= 0.0

    def sooner(self, seconds: float) -> Deadline:
        """This deadline, or ``seconds`` from now, whichever comes first."""
        return Deadline(self.clock, min(self.at, self.clock.monotonic() + seconds))


def wait_until(
    read: Callable[[], T],
    good: Callable[[T], bool],
    *,
    deadline: Deadline,
    interval: float,
    what: str,
    remedy: str,
) -> T:
    """Call ``read`` every ``interval`` seconds until ``good`` accepts its value, and return that value.

    Raises DbopsError with what was awaited, for how long, and the last value seen.
    """
    started = deadline.clock.monotonic()
    while True:
        value = read()
        if good(value):
            return value
        if deadline.passed():
            waited = deadline.clock.monotonic() - started
            raise DbopsError(found=f"after {waited:.1f} s: {value}", expected=what, remedy=remedy)
        deadline.clock.sleep(min(interval, deadline.left()) or 0.001)
