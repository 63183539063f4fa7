# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The conflict table of the manual. What statements really take is read from servers in tests/integration/tables."""

from __future__ import annotations

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import locks
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.locks import MODES, Lock, Statement, strongest


@pytest.mark.parametrize("mode", MODES)
def test_conflicts_are_mutual(mode: str) -> None:
    assert {other for other in MODES if mode in locks.conflicting(other)} == set(locks.conflicting(mode))


def test_readers_wait_for_access_exclusive_alone_and_writers_for_share_and_above() -> None:
    assert locks.conflicting(locks.ACCESS_SHARE) == (locks.ACCESS_EXCLUSIVE,)
    assert locks.conflicting(locks.ROW_EXCLUSIVE) == MODES[4:]
    assert locks.SHARE not in locks.conflicting(locks.SHARE)


def test_the_strongest_lock_of_each_relation() -> None:
    first = Statement("a", (Lock("t", locks.SHARE), Lock("u", locks.ACCESS_SHARE)))
    second = Statement("b", (Lock("t", locks.ACCESS_SHARE), Lock("u", locks.ACCESS_EXCLUSIVE, 8192)))
    assert strongest([first, second]) == (Lock("t", locks.SHARE), Lock("u", locks.ACCESS_EXCLUSIVE, 8192))
