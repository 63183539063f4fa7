# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Statements that make a row what it is to be, and the decision whether it still may be touched. No IO here.

Values travel as text, printed and read by the same settings on both sides (session_settings.SAME_EVERYWHERE), under
which the text form of every type is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .compare_plan import Key
from .quoting import identifier
from .row_hash import Column

Statement = tuple[str, list[Any]]
Row = Mapping[str, "str | None"]

# Deleting or changing a row that it references would change rows of another table, too.
CASCADES = """
SELECT conname::text AS name, conrelid::regclass::text AS child, confdeltype IN ('c', 'n', 'd') AS on_delete,
       confupdtype IN ('c', 'n', 'd') AS on_update,
       ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS k (number, n)
                    JOIN pg_attribute ON attrelid = conrelid AND attnum = number ORDER BY n) AS columns,
       ARRAY(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY AS k (number, n)
                    JOIN pg_attribute ON attrelid = confrelid AND attnum = number ORDER BY n) AS referenced
  FROM pg_constraint
 WHERE confrelid = %s::oid AND contype = 'f' AND conparentid = 0
   AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))
"""
TRIGGERS = """
SELECT tgname::text AS name FROM pg_trigger
 WHERE tgrelid = %s::oid AND NOT tgisinternal AND tgenabled IN ('O', 'A') ORDER BY 1
"""


@dataclass(frozen=True)
class Entry:
    """One row of a plan: the hashes that the check saw; empty: no such row."""

    key: Key
    source: str
    target: str


EQUAL = "is the same by now"
SOURCE_CHANGED = "the source's row is another than when it was checked"
TARGET_CHANGED = "the target's row is another than when it was checked"
SEVERAL = "several rows have this key"


@dataclass(frozen=True)
class Cascade:
    """A foreign key that carries a deletion or a change on to its children."""

    name: str
    child: str
    on_delete: bool
    on_update: bool
    columns: tuple[str, ...]
    referenced: tuple[str, ...]

    def children(self, row: Row) -> Statement | None:
        """Whether the row has any; None where it cannot."""
        values = [row.get(name) for name in self.referenced]
        if None in values:
            return None
        at = " AND ".join(f"{_escaped(identifier(name))} = %s" for name in self.columns)
        return f"SELECT EXISTS (SELECT FROM {_escaped(self.child)} WHERE {at})", values

    def concerns(self, before: Row, after: Row | None) -> bool:
        """Whether what becomes of the row reaches them. ``after`` has the columns that are set."""
        if after is None:
            return self.on_delete
        return self.on_update and any(name in after and after[name] != before.get(name) for name in self.referenced)


def why_not(entry: Entry, source: Sequence[str], target: Sequence[str]) -> str:
    """Empty where the row may be mended; ``source`` and ``target``: hashes of the rows that now have the key."""
    if len(source) > 1 or len(target) > 1 or " " in entry.source + entry.target:
        return SEVERAL
    here, there = "".join(source), "".join(target)
    if here == there:
        return EQUAL
    if there != entry.target:
        return TARGET_CHANGED
    return SOURCE_CHANGED if here != entry.source else ""


@dataclass(frozen=True)
class Mending:
    """``table``: quoted. ``key``: columns that tell rows apart. ``columns``: all that can be written, of which a new
    row gets those that it is given; ``compared``: the names of those that an update sets, as the others were not looked
    at."""

    table: str
    key: tuple[Column, ...]
    columns: tuple[Column, ...]
    compared: frozenset[str]

    def statement(self, key: Key, row: Row | None, *, present: bool) -> Statement:
        """Makes the row with ``key`` what ``row`` says: None removes it; ``present``: whether there is one."""
        table = _escaped(self.table)
        if row is None:
            return f"DELETE FROM {table} WHERE {_at(self.key)}", list(key)
        if not present:
            given = [column for column in self.columns if column.name in row]
            names = ", ".join(_escaped(column.sql) for column in given)
            values = ", ".join("%s" for _column in given)  # a cast would cut off what is too long
            # A value of an identity column that is always generated is a value like any other here.
            text = f"INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})"
            return text, [row[column.name] for column in given]
        keys = {column.name for column in self.key}
        changed = [column for column in self.columns if column.name in self.compared and column.name not in keys]
        values = ", ".join(f"{_escaped(column.sql)} = %s" for column in changed)
        text = f"UPDATE {table} SET {values} WHERE {_at(self.key)}"
        return text, [*(row[column.name] for column in changed), *key]


def _at(key: Sequence[Column]) -> str:
    return " AND ".join(f"{_escaped(column.sql)} = %s::{_escaped(column.cast)}" for column in key)


def _escaped(text: str) -> str:
    """As psycopg2 wants it where there are parameters."""
    return text.replace("%", "%%")


# ------------------------------------------------------------------------------------------------------------- balances


@dataclass(frozen=True)
class Balance:
    """Names of columns of accounts. Empty: there is none."""

    accounts: str
    key: tuple[Column, ...]
    balance: str
    available: str
    reserved: str
    version: str

    def read(self) -> str:
        """One row, locked: balance, reserved (0 where there is none), available, version (0)."""
        columns = {
            "balance": self.balance,
            "reserved": self.reserved,
            "available": self.available,
            "version": self.version,
        }
        shown = ", ".join(
            f"{_escaped(identifier(name)) if name else 'NULL'}::text AS {alias}" for alias, name in columns.items()
        )
        return f"SELECT {shown} FROM {_escaped(self.accounts)} WHERE {_at(self.key)} FOR UPDATE"

    def write(self, key: Key, total: str, whole: str, version: str | None) -> Statement:
        """The balance becomes ``total``, and available what the reservations, which stay, leave of ``whole``."""
        balance, available, reserved, counter = (
            _escaped(identifier(name)) for name in (self.balance, self.available, self.reserved, self.version)
        )
        sets, values = [f"{balance} = %s::numeric"], [total]
        if self.available and self.reserved:
            sets.append(f"{available} = %s::numeric - {reserved}")
            values.append(whole)
        at = [_at(self.key)]
        values += list(key)
        if self.version:
            sets.append(f"{counter} = {counter} + 1")
            at.append(f"{counter}::text = %s")
            values.append(str(version))
        return f"UPDATE {_escaped(self.accounts)} SET {', '.join(sets)} WHERE {' AND '.join(at)}", values
