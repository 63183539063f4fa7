# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.catalog import NodeFacts, Slot
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.wal_filler import (
    LEAST_LEFT,
    calls,
    messages,
    worth_filling,
)
from hypothesis import given
from hypothesis import strategies as st

SEGMENT = 16 * 2**20


@given(st.integers(0, 2**60), st.floats(0, 10**9), st.sampled_from([2**20, SEGMENT, 2**30]))
def test_it_ends_in_the_same_segment_with_room_for_what_is_still_written(
    position: int, bytes_per_second: float, size: int
) -> None:
    written = sum(messages(position, size, bytes_per_second))
    if written:
        assert (position + written) // size == position // size
        left = size - (position + written) % size
        assert left >= max(LEAST_LEFT, int(0.6 * bytes_per_second))
        assert left <= size // 2


@pytest.mark.parametrize(
    ("position", "bytes_per_second", "sizes"),
    [
        (0, 0.0, [2**20] * 15 + [2**20 - LEAST_LEFT]),
        (SEGMENT - LEAST_LEFT, 0.0, []),
        (SEGMENT - LEAST_LEFT - 5, 0.0, [5]),
        (3 * SEGMENT, 10_000_000.0, [2**20] * 10 + [SEGMENT - 6_000_000 - 10 * 2**20]),
        (3 * SEGMENT, 20_000_000.0, []),
    ],
)
def test_sizes(position: int, bytes_per_second: float, sizes: list[int]) -> None:
    assert messages(position, SEGMENT, bytes_per_second) == sizes
    assert sum(size * count for _text, (size, count) in calls(position, SEGMENT, bytes_per_second)) == sum(sizes)


def slot(logical: bool) -> Slot:
    return Slot("s", logical, True, False, 1, False, False, "", "")


@pytest.mark.parametrize(
    ("mode", "slots", "worth"),
    [("on", (), True), ("always", (slot(False),), True), ("on", (slot(True),), False), ("off", (), False)],
)
def test_where_it_is_worth_it(mode: str, slots: tuple[Slot, ...], worth: bool) -> None:
    assert worth_filling(NodeFacts("pg1", settings={"archive_mode": mode}, slots=slots)) is worth
