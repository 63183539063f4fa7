# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Windows of the calendar, of steps and of keys that hold a time. What servers print is read in tests/integration."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_keys import (
    MAXVALUE,
    MINVALUE,
    Interval,
    Key,
    Window,
    parse_interval,
    windows,
    zone,
)
from hypothesis import given
from hypothesis import strategies as st

BERLIN = Key("timestamptz", ZoneInfo("Europe/Berlin"))
KINDS = ("timestamptz", "timestamp", "date", "epoch", "snowflake", "uuid7")
INTERVALS = st.builds(
    Interval,
    st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]),
    st.sampled_from(["hour", "day", "week", "month", "quarter", "year"]),
)


def moment(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1_000_000


def texts(key: Key, interval: str, at: str, count: int) -> list[str]:
    found = islice(windows(key, parse_interval(interval), key.at(moment(at))), count)
    return [f"{key.text(int(window.lo))} .. {key.text(int(window.hi))}" for window in found]


@st.composite
def keys(draw: st.DrawFn) -> Key:
    kind = draw(st.sampled_from(KINDS))
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    return Key(kind, ZoneInfo(draw(st.sampled_from(ZONES))), unit, epoch_ms=1_288_834_974_657)


ZONES = sorted(available_timezones() - {"localtime", "posixrules", "Factory"})
MOMENTS = st.integers(moment("1971-01-01T00:00+00:00"), moment("2400-01-01T00:00+00:00"))


@given(key=keys(), interval=INTERVALS, at=MOMENTS)
def test_windows_hold_now_are_contiguous_and_do_not_depend_on_where_one_looks(
    key: Key, interval: Interval, at: int
) -> None:
    if key.kind == "date" and interval.unit == "hour":
        return
    position = key.at(at)
    first, *others = found = list(islice(windows(key, interval, position), 5))
    assert position in first
    assert all(before.hi == after.lo for before, after in pairwise(found))
    assert all(window.lo < window.hi for window in found)
    for window in others:
        assert next(windows(key, interval, int(window.lo))) == window
        assert next(windows(key, interval, int(window.hi) - 1)) == window
    assert next(windows(key, interval, int(first.lo))) == first


@given(key=keys(), at=MOMENTS)
def test_a_value_written_and_read_is_the_same(key: Key, at: int) -> None:
    position = key.at(at)
    assert key.parse(key.text(position)) == position


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_and_its_wall_time(kind: str) -> None:
    key = Key(kind, ZoneInfo("Asia/Kolkata"), "ms", epoch_ms=1_288_834_974_657)
    assert key.wall(key.at(moment("2026-03-29T22:30+00:00"))) == datetime(2026, 3, 30, 4 if kind != "date" else 0)


def test_months_of_berlin_across_both_changes_of_the_clock() -> None:
    assert texts(BERLIN, "month", "2026-03-15T12:00+01:00", 2) == [
        "2026-02-28 23:00:00+00 .. 2026-03-31 22:00:00+00",
        "2026-03-31 22:00:00+00 .. 2026-04-30 22:00:00+00",
    ]


def test_days_have_23_24_and_25_hours() -> None:
    spring = texts(BERLIN, "day", "2026-03-29T12:00+02:00", 2)
    assert spring == [
        "2026-03-28 23:00:00+00 .. 2026-03-29 22:00:00+00",
        "2026-03-29 22:00:00+00 .. 2026-03-30 22:00:00+00",
    ]
    autumn = texts(BERLIN, "1 day", "2026-10-25T12:00+01:00", 1)
    assert autumn == ["2026-10-24 22:00:00+00 .. 2026-10-25 23:00:00+00"]


def test_hours_are_one_hour_long_when_clocks_change_and_leave_no_hole() -> None:
    # 02:00 is shown twice: two windows.
    assert texts(BERLIN, "hour", "2026-10-25T00:30+00:00", 3) == [
        "2026-10-25 00:00:00+00 .. 2026-10-25 01:00:00+00",
        "2026-10-25 01:00:00+00 .. 2026-10-25 02:00:00+00",
        "2026-10-25 02:00:00+00 .. 2026-10-25 03:00:00+00",
    ]
    assert BERLIN.wall(BERLIN.at(moment("2026-10-25T01:30+00:00"))).fold == 1


def test_hours_of_a_zone_that_is_half_an_hour_off() -> None:
    kolkata = Key("timestamptz", ZoneInfo("Asia/Kolkata"))
    assert texts(kolkata, "hour", "2026-01-01T00:00+00:00", 1) == ["2025-12-31 23:30:00+00 .. 2026-01-01 00:30:00+00"]


def test_a_midnight_that_is_skipped() -> None:
    """In Cairo the clocks went from 23:59:59 to 01:00 on 2026-04-24."""
    cairo = Key("timestamptz", ZoneInfo("Africa/Cairo"))
    assert texts(cairo, "day", "2026-04-24T12:00+03:00", 1) == ["2026-04-23 22:00:00+00 .. 2026-04-24 21:00:00+00"]


def test_weeks_quarters_and_years() -> None:
    utc = Key("date")
    assert texts(utc, "week", "2026-11-25T00:00+00:00", 1) == ["2026-11-23 .. 2026-11-30"]
    assert texts(utc, "quarter", "2026-11-25T00:00+00:00", 1) == ["2026-10-01 .. 2027-01-01"]
    assert texts(utc, "2 years", "2026-11-25T00:00+00:00", 1) == ["2026-01-01 .. 2028-01-01"]


def test_keys_that_hold_a_time() -> None:
    assert texts(Key("epoch", unit="ms"), "day", "2025-01-01T00:00+00:00", 1) == ["1735689600000 .. 1735776000000"]
    assert texts(Key("snowflake", epoch_ms=1_288_834_974_657), "day", "2025-01-01T00:00+00:00", 1) == [
        f"{(1735689600000 - 1288834974657) << 22} .. {(1735776000000 - 1288834974657) << 22}"
    ]
    assert texts(Key("uuid7"), "day", "2025-01-01T00:00+00:00", 1) == [
        "01941f29-7c00-0000-0000-000000000000 .. 0194244f-d800-0000-0000-000000000000"
    ]


def test_the_first_position_at_a_moment_is_not_before_it() -> None:
    assert Key("epoch").at(1) == 1
    assert Key("epoch").at(1_000_000) == 1
    assert Key("uuid7").at(1) == 1 << 80


def test_steps_of_an_integer() -> None:
    assert list(islice(windows(Key("integer"), parse_interval("1000"), -1), 2)) == [Window(-1000, 0), Window(0, 1000)]


@pytest.mark.parametrize(
    ("kind", "text", "position"),
    [
        ("date", "1970-01-02", 1),
        ("date", "0001-01-01 BC", -719_528),
        ("date", "0001-12-31 BC", -719_163),
        ("date", "10000-01-01", 2_932_897),
        ("timestamptz", "1969-12-31 23:59:59.5+00", -500_000),
        ("timestamp", "1970-01-01 00:00:01.000001", 1_000_001),
        ("timestamp", "infinity", 2**63 - 1),
        ("timestamptz", "-infinity", 1 - 2**63),
    ],
)
def test_what_the_server_prints(kind: str, text: str, position: int) -> None:
    key = Key(kind)
    assert key.parse(text) == position
    assert key.parse(key.text(position)) == position


@given(st.integers(-1_700_000, 100_000_000))
def test_dates_of_every_year(days: int) -> None:
    key = Key("date")
    assert key.parse(key.text(days)) == days


@pytest.mark.parametrize("text", ["2026-01-01 00:00:00+01", "yesterday", "2026-01-01T00:00:00"])
def test_what_is_no_time_of_utc(text: str) -> None:
    with pytest.raises(ValueError, match="no time in UTC"):
        Key("timestamptz").parse(text)


def test_back() -> None:
    assert BERLIN.text(BERLIN.back(BERLIN.parse("2026-03-31 10:00:00+00"), parse_interval("month"))) == (
        "2026-02-28 11:00:00+00"  # 12:00 on both days
    )
    assert BERLIN.text(BERLIN.back(BERLIN.parse("2026-03-30 10:00:00+00"), parse_interval("2 days"))) == (
        "2026-03-28 11:00:00+00"
    )
    assert BERLIN.text(BERLIN.back(BERLIN.parse("2026-03-29 10:00:00+00"), parse_interval("24 hours"))) == (
        "2026-03-28 10:00:00+00"
    )
    assert Key("timestamp").text(Key("timestamp").back(0, parse_interval("2 hours"))) == "1969-12-31 22:00:00"
    assert Key("integer").back(10, parse_interval("3")) == 7


@pytest.mark.parametrize("text", ["0", "5 hours", "48 hours", "fortnight", "1.5 days", "-1 day", "0 days", ""])
def test_intervals_that_are_none(text: str) -> None:
    with pytest.raises(DbopsError, match="interval"):
        parse_interval(text)


@pytest.mark.parametrize(
    ("text", "shown"), [("months", "1 month"), ("3days", "3 days"), ("1000", "1000"), ("12 hours", "12 hours")]
)
def test_intervals(text: str, shown: str) -> None:
    assert str(parse_interval(text)) == shown


def test_bounds_as_sql() -> None:
    assert BERLIN.sql(MINVALUE) == "MINVALUE"
    assert BERLIN.sql(MAXVALUE) == "MAXVALUE"
    assert BERLIN.sql(0) == "'1970-01-01 00:00:00+00'"
    assert not Key("integer").is_time


def test_zones() -> None:
    assert zone("UTC") is UTC
    assert zone("Europe/Berlin") == ZoneInfo("Europe/Berlin")
    for name in ("Mars/Olympus", "../etc/passwd"):
        with pytest.raises(DbopsError, match="is not known"):
            zone(name)
