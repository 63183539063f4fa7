# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A partition's bound as the server prints it (pg_get_expr of relpartbound), taken apart, and the algebra of ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Union

from .partition_keys import MAXVALUE, MINVALUE, Key, Position, Window

_TOKEN = re.compile(
    r"(?P<string>E?'(?:[^'\\]|''|\\.)*')|(?P<word>[A-Za-z_]+)|(?P<number>-?\d[\d.eE+-]*)|(?P<sign>[(),])|\s+"
)


@dataclass(frozen=True)
class Edge:
    """MINVALUE or MAXVALUE in a bound: below or above every value."""

    name: str


Value = Union[str, Edge, None]
"""A constant's text, an edge of a range, or the NULL of a list."""


@dataclass(frozen=True)
class RangeBound:
    lo: tuple[Value, ...]
    hi: tuple[Value, ...]


@dataclass(frozen=True)
class ListBound:
    values: tuple[Value, ...]


@dataclass(frozen=True)
class HashBound:
    modulus: int
    remainder: int


@dataclass(frozen=True)
class DefaultBound:
    pass


Bound = Union[RangeBound, ListBound, HashBound, DefaultBound]


def parse_bound(text: str) -> Bound:
    """Raises ValueError for what is no bound."""
    match = re.fullmatch(r"FOR VALUES WITH \(modulus (\d+), remainder (\d+)\)", text)
    if match is not None:
        return HashBound(int(match[1]), int(match[2]))
    tokens = _tokens(text)
    lists = _lists(tokens)
    if tokens == [("word", "DEFAULT")]:
        return DefaultBound()
    if tokens[:3] == [("word", "FOR"), ("word", "VALUES"), ("word", "FROM")] and len(lists) == 2:
        return RangeBound(*lists)
    if tokens[:3] == [("word", "FOR"), ("word", "VALUES"), ("word", "IN")] and len(lists) == 1:
        return ListBound(*lists)
    raise ValueError(f"no bound of a partition: {text!r}")


def window_of(bound: RangeBound, key: Key) -> Window:
    """The positions of a range over one column. Raises ValueError where the key cannot read a value."""

    def position(values: Sequence[Value]) -> Position:
        (value,) = values
        if isinstance(value, Edge):
            return MINVALUE if value.name == "MINVALUE" else MAXVALUE
        if value is None:
            raise ValueError("NULL in a range")
        return key.parse(value)

    return Window(position(bound.lo), position(bound.hi))


def gaps(existing: Iterable[Window], span: Window) -> list[Window]:
    """The parts of ``span`` that none of ``existing`` (which do not overlap one another) covers, in order."""
    missing = []
    low = span.lo
    for window in sorted(existing):
        if window.hi <= low or window.lo >= span.hi:
            continue
        if window.lo > low:
            missing.append(Window(low, window.lo))
        low = window.hi
    if low < span.hi:
        missing.append(Window(low, span.hi))
    return missing


# ------------------------------------------------------------------------------------------------------------- tokens


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"no bound of a partition: {text!r}")
        at = match.end()
        if match.lastgroup == "string":
            tokens.append(("string", _unquoted(match["string"])))
        elif match.lastgroup is not None:
            tokens.append((match.lastgroup, match[match.lastgroup]))
    return tokens


def _unquoted(quoted: str) -> str:
    if quoted.startswith("E"):
        return quoted[2:-1].replace("''", "'").replace("\\\\", "\\")
    return quoted[1:-1].replace("''", "'")


def _lists(tokens: Iterable[tuple[str, str]]) -> list[tuple[Value, ...]]:
    """What is in each pair of parentheses."""
    lists: list[tuple[Value, ...]] = []
    current: list[Value] | None = None
    for kind, text in tokens:
        if (kind, text) == ("sign", "("):
            current = []
        elif (kind, text) == ("sign", ")") and current is not None:
            lists.append(tuple(current))
            current = None
        elif current is not None and kind != "sign":
            current.append(_value(kind, text))
    return lists


def _value(kind: str, text: str) -> Value:
    if kind == "word" and text == "NULL":
        return None
    return Edge(text) if kind == "word" and text in ("MINVALUE", "MAXVALUE") else text
