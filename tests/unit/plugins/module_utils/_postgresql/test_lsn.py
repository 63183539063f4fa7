# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log sequence numbers, against values that PostgreSQL printed."""

from __future__ import annotations

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.lsn import (
    format_lsn,
    parse_lsn,
    wal_segment_name,
)
from hypothesis import given
from hypothesis import strategies as st

LSNS = st.integers(min_value=0, max_value=2**64 - 1)
MEBIBYTE = 1024 * 1024


@pytest.mark.parametrize(("text", "value"), [("0/3000148", 50331976), ("FF/0", 255 << 32), ("a/ff", (10 << 32) | 255)])
def test_a_position_is_a_number_of_64_bits(text: str, value: int) -> None:
    assert parse_lsn(text) == value
    assert format_lsn(value) == text.upper()


@given(LSNS)
def test_what_is_written_is_read(value: int) -> None:
    assert parse_lsn(format_lsn(value)) == value


@given(LSNS, LSNS)
def test_positions_compare_as_numbers_and_not_as_text(one: int, other: int) -> None:
    assert (parse_lsn(format_lsn(one)) < parse_lsn(format_lsn(other))) == (one < other)


@pytest.mark.parametrize("text", ["", "/", "0", "0/", "/0", "x/0", "0/100000000", "100000000/0", "-1/0", "0/0/0"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - int() words some of them
        parse_lsn(text)


@pytest.mark.parametrize("text", ["0x1/0", "0/1_0", "+1/0", " 0/1", "0/1\n", "-0/0"])
def test_what_the_server_would_not_take_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - int() words some of them
        parse_lsn(text)


@pytest.mark.parametrize(
    ("timeline", "lsn", "size", "name"),
    [
        (1, "0/3000148", 16, "000000010000000000000003"),
        (10, "1/FF000000", 16, "0000000A00000001000000FF"),
        (2, "2/0", 16, "000000020000000200000000"),
        (1, "0/5000000", 64, "000000010000000000000001"),
        (1, "3/40000000", 1024, "000000010000000300000001"),
    ],
)
def test_the_wal_file_of_a_position(timeline: int, lsn: str, size: int, name: str) -> None:
    assert wal_segment_name(timeline, parse_lsn(lsn), size * MEBIBYTE) == name


@given(st.integers(0, 2**63), st.sampled_from([2**power for power in range(20, 31)]))
def test_files_follow_each_other(lsn: int, size: int) -> None:
    first = wal_segment_name(1, lsn - lsn % size, size)
    assert len(first) == 24
    assert first == wal_segment_name(1, lsn, size) == wal_segment_name(1, lsn - lsn % size + size - 1, size)
    assert first < wal_segment_name(1, lsn - lsn % size + size, size)
