# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Partition keys as positions on one line of integers, and the windows that a calendar or a step cuts that line into.

A position is an integer whose order is the key's order: microseconds since 1970 for timestamptz (UTC) and timestamp
(on the wall), days since 1970 for date, the value itself for integers, the 128-bit number for uuid. MINVALUE and
MAXVALUE are minus and plus infinity. So bounds are compared as numbers, and the server's settings do not matter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Union
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .._core.errors import DbopsError
from .quoting import literal

Position = Union[int, float]
"""float only for the infinities."""

MINVALUE = -math.inf
MAXVALUE = math.inf

SECOND = 1_000_000
DAY = 86_400 * SECOND
_EPOCH = datetime(1970, 1, 1)
_EPOCH_DAY = _EPOCH.toordinal()
# The server's 'infinity', a value like any other and not MAXVALUE; further out than any other value of these types.
_INFINITY = 2**63 - 1

UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_INTERVAL = re.compile(r"(\d+)? *(hour|day|week|month|quarter|year)s?|(\d+)")


@dataclass(frozen=True)
class Interval:
    """The width of a window: ``count`` calendar units, or with unit "step" so many values of an integer key."""

    count: int
    unit: str

    def __str__(self) -> str:
        return str(self.count) if self.unit == "step" else f"{self.count} {self.unit}{'s' if self.count != 1 else ''}"

    @property
    def months(self) -> int:
        return _MONTHS.get(self.unit, 0) * self.count

    @property
    def days(self) -> int:
        return {"day": 1, "week": 7}.get(self.unit, 0) * self.count


def parse_interval(text: str) -> Interval:
    """``month``, ``3 days``, ``1000000`` (values of an integer key). Raises DbopsError."""
    match = _INTERVAL.fullmatch(text.strip())
    count = int(match[1] or match[3] or 1) if match else 0
    interval = Interval(count, match[2] or "step" if match else "")
    if count == 0 or (interval.unit == "hour" and 24 % count):
        raise DbopsError(
            found=f"interval {text!r}",
            expected="a number above 0 and hour, day, week, month, quarter or year, hours being a part of 24 without "
            "remainder; or a number alone for an integer key",
            remedy="for example interval: 1 month",
        )
    return interval


@dataclass(frozen=True)
class Key:
    """How a column's values stand for time. ``kind``: timestamptz, timestamp, date, epoch, snowflake, uuid7, integer;
    ``zone``: where calendar units begin; ``unit``: of an epoch; ``epoch_ms``, ``shift``: of a snowflake."""

    kind: str
    zone: tzinfo = timezone.utc
    unit: str = "s"
    epoch_ms: int = 0
    shift: int = 22

    @property
    def is_time(self) -> bool:
        return self.kind != "integer"

    @property
    def _on_the_wall(self) -> bool:
        """The key is what a clock in the zone showed, not a moment."""
        return self.kind in ("timestamp", "date")

    def at(self, moment_us: int) -> int:
        """The first position at a moment, in microseconds since 1970 UTC."""
        if self._on_the_wall:
            wall = (_EPOCH.replace(tzinfo=timezone.utc) + timedelta(microseconds=moment_us)).astimezone(self.zone)
            return self._of_wall(wall.replace(tzinfo=None))
        return self._of_moment(moment_us)

    def start(self, text: str) -> int:
        """The position of a date, or date and time, in the zone; of an integer key the value. Raises DbopsError."""
        try:
            if not self.is_time:
                return int(text)
            wall = datetime.fromisoformat(text)
            if wall.tzinfo is None:
                return self._of_wall(wall)
        except ValueError:
            pass
        raise DbopsError(
            found=f"start {text!r}",
            expected="a date or a date and time without offset, such as 2026-01-01; of an integer key a number",
            remedy="write it so; it is read in time_zone",
        )

    def _of_moment(self, moment_us: int) -> int:
        if self.kind == "epoch":
            return -(-moment_us * UNITS_PER_SECOND[self.unit] // SECOND)
        if self.kind == "snowflake":
            return (-(-moment_us // 1000) - self.epoch_ms) << self.shift
        if self.kind == "uuid7":
            return -(-moment_us // 1000) << 80
        return moment_us

    def _of_wall(self, wall: datetime) -> int:
        """The position at which a clock in the zone first shows ``wall``."""
        if self.kind == "date":
            return wall.toordinal() - _EPOCH_DAY
        if self._on_the_wall:
            return _microseconds(wall - _EPOCH)
        return self._of_moment(_moment(wall, self.zone))

    def wall(self, position: int) -> datetime:
        """What a clock in the zone shows at a position, with ``fold`` where it shows that for the second time.
        Raises OverflowError before year 1 and after 9999."""
        if self.kind == "date":
            return _EPOCH + timedelta(days=position)
        if self._on_the_wall:
            return _EPOCH + timedelta(microseconds=position)
        utc = _EPOCH.replace(tzinfo=timezone.utc) + timedelta(microseconds=self._moment_of(position))
        return utc.astimezone(self.zone).replace(tzinfo=None)

    def _moment_of(self, position: int) -> int:
        if self.kind == "epoch":
            return position * SECOND // UNITS_PER_SECOND[self.unit]
        if self.kind == "snowflake":
            return ((position >> self.shift) + self.epoch_ms) * 1000
        if self.kind == "uuid7":
            return (position >> 80) * 1000
        return position

    def back(self, position: int, interval: Interval) -> int:
        """The position an interval before. A month before the 31st is the last day of the month before."""
        if interval.unit == "step":
            return position - interval.count
        if interval.unit == "hour" and not self._on_the_wall:
            return self._of_moment(self._moment_of(position) - interval.count * 3600 * SECOND)
        wall = self.wall(position)
        if interval.months:
            first = _month(wall.year * 12 + wall.month - 1 - interval.months)
            last_day = (_month(first.year * 12 + first.month) - timedelta(days=1)).day
            return self._of_wall(wall.replace(year=first.year, month=first.month, day=min(wall.day, last_day)))
        return self._of_wall(
            wall - timedelta(days=interval.days, hours=interval.count if interval.unit == "hour" else 0)
        )

    # -- as the server writes them

    def parse(self, text: str) -> int:
        """A position from a value as the server prints it with TimeZone UTC and DateStyle ISO. Raises ValueError."""
        if self.kind in ("timestamptz", "timestamp", "date"):
            return _parse_time(text, days=self.kind == "date")
        return int(text.replace("-", ""), 16) if self.kind == "uuid7" else int(text)

    def text(self, position: int) -> str:
        """The value at a position, so that the server reads it the same under every setting of a session."""
        if abs(position) >= _INFINITY and self.kind in ("timestamptz", "timestamp", "date"):
            return "infinity" if position > 0 else "-infinity"
        if self.kind == "date":
            return _date_text(position)
        if self.kind in ("timestamptz", "timestamp"):
            days, rest = divmod(position, DAY)
            seconds, fraction = divmod(rest, SECOND)
            hours, minutes = divmod(seconds // 60, 60)
            day, *bc = _date_text(days).split(" ")
            clock = f"{hours:02}:{minutes:02}:{seconds % 60:02}" + (f".{fraction:06}" if fraction else "")
            return " ".join([day, clock + ("+00" if self.kind == "timestamptz" else ""), *bc])
        if self.kind == "uuid7":
            digits = f"{position:032x}"
            return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        return str(position)

    def sql(self, position: Position) -> str:
        """A bound in FOR VALUES FROM (…) TO (…)."""
        if isinstance(position, float):
            return "MAXVALUE" if position > 0 else "MINVALUE"
        return literal(self.text(position))


@dataclass(frozen=True, order=True)
class Window:
    """Positions from ``lo`` up to, without, ``hi``."""

    lo: Position
    hi: Position

    def overlaps(self, other: Window) -> bool:
        return self.lo < other.hi and other.lo < self.hi

    def covers(self, other: Window) -> bool:
        return self.lo <= other.lo and other.hi <= self.hi

    def __contains__(self, position: Position) -> bool:
        return self.lo <= position < self.hi


def windows(key: Key, interval: Interval, position: int) -> Iterator[Window]:
    """The window that holds ``position``, and those after it without end. Calendar units begin where the calendar of
    the key's zone begins them, weeks on Monday; several are counted from 1970 (days, weeks) or year 0 (months)."""
    if interval.unit == "step":
        step = position - position % interval.count
        while True:
            yield Window(step, step + interval.count)
            step += interval.count
    low: int | None = None
    for edge in _edges(key, interval, key.wall(position)):
        # Where clocks are put back a wall time is shown twice, and floor took the first.
        if low is not None and edge > position:
            yield Window(low, edge)
        low = edge


def zone(name: str) -> tzinfo:
    """Raises DbopsError where the host does not know the time zone."""
    if name == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DbopsError(
            found=f"time zone {name!r} is not known on the host that the module runs on",
            expected="a name of the time zone database, for example Europe/Berlin, and that database",
            remedy="correct time_zone, or install tzdata there",
        ) from error


# ---------------------------------------------------------------------------------------------------------- calendars


def _microseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def _midnight(wall: datetime) -> datetime:
    return wall.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)


def _moment(wall: datetime, where: tzinfo) -> int:
    """When a clock there first shows ``wall``; where it is skipped, as if the clock had not been put forward yet, which
    is how the server reads it."""
    offset = wall.replace(tzinfo=where, fold=0).utcoffset() or timedelta()
    return _microseconds(wall.replace(fold=0) - offset - _EPOCH)


def _floor(interval: Interval, wall: datetime) -> datetime:
    """The wall time at which the calendar window of ``wall`` begins; for hours, midnight."""
    if interval.months:
        months = wall.year * 12 + wall.month - 1
        return _month(months - months % interval.months)
    day = _midnight(wall)
    if interval.unit == "hour":
        return day
    # 1970-01-05 was a Monday.
    number = day.toordinal() - _EPOCH_DAY - (4 if interval.unit == "week" else 0)
    return day - timedelta(days=number % interval.days)


def _month(months: int) -> datetime:
    return datetime(months // 12, months % 12 + 1, 1)


def _shifted(wall: datetime, interval: Interval, count: int) -> datetime:
    if interval.months:
        return _month(wall.year * 12 + wall.month - 1 + count * interval.months)
    return wall + timedelta(days=count * (interval.days or 1))


def _edges(key: Key, interval: Interval, wall: datetime) -> Iterator[int]:
    """Positions at which windows begin, from the one that holds ``wall`` or earlier, rising without end."""
    edge = _floor(interval, wall)
    while True:
        following = _shifted(edge, interval, 1)
        if interval.unit == "hour":
            yield from _hours(key, interval.count, edge, following)
        else:
            yield key._of_wall(edge)
        edge = following


def _hours(key: Key, count: int, day: datetime, next_day: datetime) -> Iterator[int]:
    """The day's windows of so many hours. Where clocks are changed, the last ones are more, fewer, or shorter."""
    if key._on_the_wall:
        for hour in range(0, 24, count):
            yield key._of_wall(day.replace(hour=hour))
        return
    moment, end = _moment(day, key.zone), _moment(next_day, key.zone)
    while moment < end:
        yield key._of_moment(moment)
        moment += count * 3600 * SECOND


# -------------------------------------------------------------------------------------------------- the server's texts

_TIME = re.compile(
    r"(?P<year>\d{4,})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?: (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?(?:\+00)?)?(?P<bc> BC)?"
)


def _parse_time(text: str, *, days: bool) -> int:
    if text in ("infinity", "-infinity"):
        return _INFINITY if text == "infinity" else -_INFINITY
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"no time in UTC: {text!r}")
    year = 1 - int(match["year"]) if match["bc"] else int(match["year"])
    number = _days_from_civil(year, int(match["month"]), int(match["day"]))
    if days:
        return number
    seconds = int(match["hour"] or 0) * 3600 + int(match["minute"] or 0) * 60 + int(match["second"] or 0)
    return number * DAY + seconds * SECOND + int((match["fraction"] or "").ljust(6, "0"))


def _days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970 of a date in the Gregorian calendar, also before year 1 and after 9999, which Python's cannot."""
    # A cycle of the calendar is 400 years, or 146097 days.
    cycles, rest = divmod(year - 1, 400)
    return date(rest + 1, month, day).toordinal() - _EPOCH_DAY + cycles * 146_097


def _date_text(days: int) -> str:
    cycles, rest = divmod(days + _EPOCH_DAY - 1, 146_097)
    civil = date.fromordinal(rest + 1)
    year = civil.year + 400 * cycles
    text = f"{year if year > 0 else 1 - year:04}-{civil.month:02}-{civil.day:02}"
    return text if year > 0 else f"{text} BC"
