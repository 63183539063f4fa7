# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_bounds import (
    DefaultBound,
    Edge,
    HashBound,
    ListBound,
    RangeBound,
    gaps,
    parse_bound,
    window_of,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_keys import (
    MAXVALUE,
    MINVALUE,
    Key,
    Window,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("DEFAULT", DefaultBound()),
        ("FOR VALUES FROM ('2025-01-01') TO ('2025-02-01')", RangeBound(("2025-01-01",), ("2025-02-01",))),
        ("FOR VALUES FROM (MINVALUE) TO (10)", RangeBound((Edge("MINVALUE"),), ("10",))),
        ("FOR VALUES FROM (1, 'a, (b''c') TO ('-5', MAXVALUE)", RangeBound(("1", "a, (b'c"), ("-5", Edge("MAXVALUE")))),
        ("FOR VALUES IN ('eu', NULL, E'a\\\\b', true, 'NULL')", ListBound(("eu", None, "a\\b", "true", "NULL"))),
        ("FOR VALUES WITH (modulus 4, remainder 3)", HashBound(4, 3)),
    ],
)
def test_what_the_server_prints(text: str, bound: object) -> None:
    assert parse_bound(text) == bound


@pytest.mark.parametrize(
    "text", ["", "FOR VALUES", "FOR VALUES IN ('a", "FOR VALUES FROM (1)", "WITH (1, 2)", "; DROP"]
)
def test_what_is_no_bound(text: str) -> None:
    with pytest.raises(ValueError, match="no bound"):
        parse_bound(text)


def test_windows_of_bounds() -> None:
    key = Key("integer")
    assert window_of(RangeBound((Edge("MINVALUE"),), ("10",)), key) == Window(MINVALUE, 10)
    assert window_of(RangeBound(("10",), (Edge("MAXVALUE"),)), key) == Window(10, MAXVALUE)
    for bound in (RangeBound((None,), ("1",)), RangeBound(("1", "2"), ("3", "4")), RangeBound(("x",), ("1",))):
        with pytest.raises(ValueError, match=r"NULL|unpack|invalid literal"):
            window_of(bound, key)


@given(st.lists(st.integers(-20, 20), unique=True, max_size=12), st.integers(-25, 25), st.integers(1, 30))
def test_windows_and_gaps_together_cover_the_span_once(edges: list[int], low: int, width: int) -> None:
    edges.sort()
    existing = [Window(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    span = Window(low, low + width)
    for position in range(low, low + width):
        covering = [window for window in (*existing, *gaps(existing, span)) if position in window]
        assert len(covering) == 1
    assert all(span.covers(gap) and gap.lo < gap.hi for gap in gaps(existing, span))


def test_gaps_beside_the_infinities() -> None:
    assert gaps([Window(MINVALUE, 5), Window(9, MAXVALUE)], Window(0, 12)) == [Window(5, 9)]
    assert Window(0, 5).overlaps(Window(4, 6))
    assert not Window(0, 5).overlaps(Window(5, 6))
