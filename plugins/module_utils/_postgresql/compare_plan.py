# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How one table on two servers is compared: what is refused, how it is divided, and the statements for each side.

Rows are summed up where they are. A *piece* is a range of the key (or all of it); where its count or its hash differs
it is divided into groups by a hash of the key, and of the groups that differ the keys are fetched, with one hash a row.
So what is read over the network is a few numbers a piece, and then little more than the differences. No IO here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._core.errors import DbopsError
from .compare_catalog import KeyOrder, Statistics, TableFacts
from .quoting import literal
from .row_hash import Column, RowHash, bucket, key_text

GROUP_ROWS = 32
"""What a group that is fetched has, about."""
MOST_BITS = 14
SELECTIVE = 1000
"""Ranges of the first column alone will do where none of its values has more rows than this."""
SCATTERED = 0.5
"""Where neighbours by key are less often neighbours on disk (pg_stats.correlation), ranges would read it all, randomly,
many times."""

Key = tuple[str, ...]


# ------------------------------------------------------------------------------------------------------------ refusals


@dataclass(frozen=True)
class Wish:
    """Of one table, from the options. ``columns`` empty: all."""

    key: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    where: str = ""
    strict: bool = False
    chunk_rows: int = 65536


def refuse(found: str, expected: str, remedy: str) -> DbopsError:
    return DbopsError(found=found, expected=expected, remedy=remedy)


def both(name: str, source: TableFacts | None, target: TableFacts | None) -> tuple[TableFacts, TableFacts]:
    """The same table of both sides; raises where a side has none, or may not read it."""
    for side, facts in (("source", source), ("target", target)):
        if facts is None:
            raise refuse(f"the {side} has no table {name}", "the table on both sides", "create it, or leave it out")
    if source is None or target is None:
        raise AssertionError("refused above")
    return source, target


def compared_columns(source: TableFacts, target: TableFacts, wish: Wish) -> tuple[Column, ...]:
    """Those that are compared, as the source has them. What only one side has has to be excluded by name: who did not
    know of it must not read *consistent*."""
    here, there = ({column.name: column for column in facts.columns} for facts in (source, target))
    unknown = [name for name in (*wish.columns, *wish.exclude, *wish.key) if name not in here and name not in there]
    if unknown:
        raise refuse(
            f"{source.full_name} has no column {', '.join(unknown)}", "columns of the table", "correct the names"
        )
    names = [name for name in wish.columns or sorted({*here, *there}) if name not in wish.exclude]
    alone = [
        f"{name} ({'source' if name in here else 'target'} only)" for name in names if (name in here) != (name in there)
    ]
    other = [
        f"{name} ({here[name].type} and {there[name].type})"
        for name in names
        if name in here and name in there and _kind(here[name]) != _kind(there[name])
    ]
    if alone or other:
        raise refuse(
            f"the columns of {source.full_name} are not the same on both sides: {', '.join(alone + other)}",
            "the same columns of the same types",
            "finish the migration on the other side, or name these columns in exclude",
        )
    if not names:
        raise refuse(f"no column of {source.full_name} is left", "at least one", "correct columns and exclude")
    for side, facts in (("source", source), ("target", target)):
        hidden = [name for name in dict.fromkeys((*names, *wish.key)) if name in facts.unreadable]
        if hidden:
            raise refuse(
                f"the login of the {side} may not read {', '.join(hidden)} of {facts.full_name}",
                "the privilege SELECT on what is compared",
                f"GRANT SELECT ON {facts.sql} TO the login (or pg_read_all_data, 14 and newer)",
            )
    # Either side's server may lack the hash or the binary form.
    return tuple(
        replace(
            here[name],
            sendable=here[name].sendable and there[name].sendable,
            collatable=here[name].collatable and there[name].collatable,
            domain=here[name].domain or there[name].domain,
            # Numbers of one scale are hashed by their bytes, which have the scale in them.
            type=here[name].type if here[name].type == there[name].type else here[name].base,
            # Its OID is that of a user's type where it is one on either side.
            base_oid=max(here[name].base_oid, there[name].base_oid),
        )
        for name in sorted(names)
    )


def _kind(column: Column) -> tuple[str, str]:
    """Domains and lengths may differ: values that are the same have the same hash under them."""
    return column.base, column.element


def chosen_key(source: TableFacts, target: TableFacts, wish: Wish) -> tuple[Column, ...]:
    """The columns that say which rows are the same row: those of a unique key that both sides have, or the given."""
    names = wish.key or next((key for key in source.keys if key in target.keys), ())
    if not names:
        raise refuse(
            f"{source.full_name} has no unique key without NULL that both sides have",
            "a primary key, or a unique index of columns that are NOT NULL, the same on both sides",
            "give key: columns that tell rows apart (rows with the same key are compared as a set)",
        )
    columns = [column for name in names if (column := source.column(name)) is not None]
    nullable = [
        name for name in names for facts in (source, target) if (found := facts.column(name)) and not found.not_null
    ]
    if nullable:
        raise refuse(
            f"{', '.join(dict.fromkeys(nullable))} of {source.full_name} may be NULL",
            "a key of columns that are NOT NULL on both sides: a row without a key is in no range of it",
            "give key: other columns that tell rows apart",
        )
    return tuple(columns)


def hashed_columns(columns: Sequence[Column], key: Sequence[Column]) -> tuple[Column, ...]:
    """Those that make up a row's hash. Without the key rows that swapped their values would add up to the same, and
    like rows would cancel each other."""
    return tuple(sorted({column.name: column for column in (*key, *columns)}.values(), key=lambda column: column.name))


def is_unique(source: TableFacts, target: TableFacts, key: Sequence[Column]) -> bool:
    """Whether no two rows can have the same key on either side."""
    names = tuple(column.name for column in key)
    return all(names in facts.keys and not facts.inherited for facts in (source, target))


def check_key(table: TableFacts, key: Sequence[Column], orders: Sequence[dict[str, KeyOrder]]) -> None:
    loose = [c.name for c in key if any(c.name in side and not side[c.name].deterministic for side in orders)]
    if loose:
        raise refuse(
            f"the collation of {', '.join(loose)} in {table.full_name} takes different texts for equal",
            "a key under a deterministic collation",
            "give key: other columns that tell rows apart",
        )


# ------------------------------------------------------------------------------------------------------------ division


@dataclass(frozen=True)
class Piece:
    """Keys after ``lower`` up to ``upper``, both as text of the first columns of the key; None: no bound."""

    lower: Key | None = None
    upper: Key | None = None


@dataclass(frozen=True)
class Division:
    """``ranges`` or ``groups``, and why. ``by``: how many of the key's columns bound a range. ``bounds``: where ranges
    end, from the statistics; ``walk``: further ones have to be found from there on, by reading the index."""

    kind: str
    why: str
    by: int = 1
    bounds: tuple[Key, ...] = ()
    walk: bool = False


def divide(
    table: TableFacts,
    key: Sequence[Column],
    orders: Sequence[dict[str, KeyOrder]],
    statistics: Statistics,
    chunk_rows: int,
    *,
    indexed: bool,
) -> Division:
    """``statistics`` are those of the key's first column on the side that bounds are taken from; ``indexed``: the key
    is that of an index on both sides."""
    if table.rows and table.rows <= chunk_rows * 2:
        return Division("ranges", "small", by=len(key))
    if not indexed:
        return Division("groups", f"no index of {', '.join(column.name for column in key)} on both sides")
    if any(column.foreign or column.element for column in key):
        return Division("groups", "the key has a type that the two sides may order each in its own way")
    for column in key:
        sorts = [side[column.name].sorts for side in orders if column.name in side]
        if column.collatable and (not sorts or "" in sorts or len(set(sorts)) > 1):
            return Division("groups", f"{column.name} is not known to be ordered alike on both sides")
    correlation = statistics.correlation
    if correlation is not None and abs(correlation) < SCATTERED:
        return Division("groups", f"rows are not stored in the order of {key[0].name}")
    distinct = -statistics.n_distinct * table.rows if statistics.n_distinct < 0 else statistics.n_distinct
    gaps = len(statistics.bounds) - 1
    if gaps < 1 or table.rows > distinct * SELECTIVE:
        return Division("ranges", "the key is walked", by=len(key), walk=True)
    bounds = list(statistics.bounds)
    if key[0].base in ("int2", "int4", "int8"):
        bounds = _finer(bounds, max(1, round(table.rows / gaps / chunk_rows)))
    elif table.rows > gaps * 2 * chunk_rows:
        return Division("ranges", "the key is walked", by=len(key), walk=True)
    gap_rows = max(1.0, table.rows / max(1, len(bounds) - 1))
    every = max(1, round(chunk_rows / gap_rows))
    # Rows that came after the statistics were made are behind the last bound: from there on it is walked.
    chosen = dict.fromkeys((*bounds[:-1:every][1:], bounds[-1]))
    return Division("ranges", "by statistics", by=1, bounds=tuple((bound,) for bound in chosen), walk=True)


def _finer(bounds: Sequence[str], parts: int) -> list[str]:
    """Whole numbers between the bounds, so that each gap has ``parts`` parts where there is room."""
    numbers = [int(bound) for bound in bounds]
    between = [low + (high - low) * part // parts for low, high in zip(numbers, numbers[1:]) for part in range(parts)]
    return [str(number) for number in dict.fromkeys((*between, numbers[-1]))]


def pieces(division: Division, walked: Iterable[Key]) -> list[Piece]:
    """All ranges, the first and the last without an outer bound."""
    bounds: list[Key | None] = [*division.bounds, *walked]
    return [Piece(lower, upper) for lower, upper in zip([None, *bounds], [*bounds, None])]


def group_bits(rows: int, *, group_rows: int = GROUP_ROWS, most: int = MOST_BITS) -> int:
    """So that ``rows`` rows are about ``group_rows`` in each of 2 ** bits groups."""
    return min(most, max(0, (rows // group_rows).bit_length()))


# ---------------------------------------------------------------------------------------------------------- statements


@dataclass(frozen=True)
class Statements:
    """The same text for both sides. ``table``: quoted."""

    table: str
    key: tuple[Column, ...]
    hash: RowHash
    where: str = ""

    def total(self, piece: Piece) -> str:
        """One row: count, hash."""
        return f"SELECT count(*), {self.hash.total} FROM {self.table}{self._where(piece)}"

    def groups(self, piece: Piece, bits: int, within: tuple[int, Sequence[int]] | None = None) -> str:
        """A row for each group: number, count, hash. ``within``: only those groups of fewer bits."""
        return (
            f"SELECT {self._bucket()} & {(1 << bits) - 1}, count(*), {self.hash.total}"
            f" FROM {self.table}{self._where(piece, within)} GROUP BY 1"
        )

    def fetch(self, piece: Piece, within: tuple[int, Sequence[int]] | None, limit: int) -> str:
        """A row for each row: the key's columns as text, hash."""
        return f"SELECT {self._keys()}, {self.hash.row()} FROM {self.table}{self._where(piece, within)} LIMIT {limit}"

    def look_up(self, keys: Sequence[Key], columns: Sequence[Column] = ()) -> str:
        """A row for each that is there: the key's columns as text, hash, xmin, and each of ``columns`` as text."""
        wanted = ", ".join(
            f"ARRAY[{', '.join(literal(key[number]) for key in keys)}]::text[]" for number in range(len(self.key))
        )
        names = [f"wanted_{number}" for number in range(len(self.key))]
        cast = ", ".join(f"{name}::{column.cast}" for name, column in zip(names, self.key))
        more = "".join(f", {column.sql}::text" for column in columns)
        where = self._where(
            Piece(),
            more=f"({', '.join(c.sql for c in self.key)}) IN"
            f" (SELECT {cast} FROM unnest({wanted}) AS wanted ({', '.join(names)}))",
        )
        return f"SELECT {self._keys()}, {self.hash.row()}, xmin::text{more} FROM {self.table}{where}"

    def walk(self, after: Key | None, by: int, rows: int) -> str:
        """One row, or none at the end: the key's first ``by`` columns as text, ``rows`` rows after ``after``."""
        names = ", ".join(column.sql for column in self.key[:by])
        shown = ", ".join(f"{column.sql}::text" for column in self.key[:by])
        # In ORDER BY a bare name is that of the output, which is text; with the table's name it is the column.
        order = ", ".join(f"walked.{column.sql}" for column in self.key[:by])
        condition = f" WHERE ({names}) > ({self._values(after)})" if after else ""
        return f"SELECT {shown} FROM {self.table} AS walked{condition} ORDER BY {order} OFFSET {rows - 1} LIMIT 1"

    def _keys(self) -> str:
        return ", ".join(key_text(column) for column in self.key)

    def _bucket(self) -> str:
        return bucket(self.key, self.hash.method, self.hash.seed)

    def _values(self, bound: Key) -> str:
        return ", ".join(f"{literal(text)}::{column.cast}" for text, column in zip(bound, self.key))

    def _where(self, piece: Piece, within: tuple[int, Sequence[int]] | None = None, more: str = "") -> str:
        conditions = [f"({self.where})"] if self.where else []
        for bound, sign in ((piece.lower, ">"), (piece.upper, "<=")):
            if bound is not None:
                names = ", ".join(column.sql for column in self.key[: len(bound)])
                conditions.append(f"({names}) {sign} ({self._values(bound)})")
        if within is not None:
            bits, numbers = within
            listed = ", ".join(map(str, numbers))
            conditions.append(f"{self._bucket()} & {(1 << bits) - 1} = ANY (ARRAY[{listed}]::bigint[])")
        if more:
            conditions.append(more)
        return f" WHERE {' AND '.join(conditions)}" if conditions else ""


# --------------------------------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Difference:
    """``kind``: missing (on the target), extra (only there), changed. Hashes as text, several where rows share the
    key; empty: no such row."""

    key: Key
    kind: str
    source: str
    target: str


def _by_key(rows: Iterable[Sequence[Any]], width: int) -> dict[Key, str]:
    found: dict[Key, list[str]] = {}
    for row in rows:
        found.setdefault(tuple(row[:width]), []).append(str(row[width]))
    return {key: " ".join(sorted(hashes)) for key, hashes in found.items()}


def differences(source: Iterable[Sequence[Any]], target: Iterable[Sequence[Any]], width: int) -> list[Difference]:
    """Of rows as ``fetch`` and ``look_up`` return them; ``width``: number of the key's columns."""
    here, there = _by_key(source, width), _by_key(target, width)
    found = []
    for key in sorted({*here, *there}):
        left, right = here.get(key, ""), there.get(key, "")
        if left != right:
            found.append(Difference(key, "missing" if not right else "extra" if not left else "changed", left, right))
    return found


def differing_groups(source: Iterable[Sequence[Any]], target: Iterable[Sequence[Any]]) -> list[int]:
    """Numbers of the groups whose count or hash differs, as ``groups`` returns them."""
    here, there = ({row[0]: tuple(row[1:]) for row in rows} for rows in (source, target))
    return sorted(number for number in {*here, *there} if here.get(number) != there.get(number))
