# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every part of the lab needs, with the standard library alone."""

from __future__ import annotations

import time
from collections.abc import Callable


class LabError(RuntimeError):
    """The lab itself failed, not what is tested in it."""


def wait_for(condition: Callable[[], object], *, seconds: float, what: str, interval: float = 0.02) -> None:
    """Poll until ``condition`` is true; LabError with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:.0f} s for {what}")
        time.sleep(interval)
