# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One number for a row, computed in the server: the same on two servers if and only if the rows are the same.

What PostgreSQL hashes rows by is made for joins, where a collision costs nothing. Here it would hide a difference for
good: ``hash_record_extended`` is linear in its columns (31 * h + h(column)), so a sum over it cannot see that two rows
have swapped a column's value; a numeric is hashed without its sign, and NaN like NULL where the seed is 0; a jsonb
without its nesting; what has 64 bits (bigint, timestamp) is folded to 32 first. So a value goes in as it is only where
its hash tells all values apart, and otherwise with what its hash leaves out, or as the bytes that the server sends;
and the whole is hashed once more, as bytes, before rows are added up.

Two meanings of *the same*: ``fast`` takes 1.0 and 1.00, and -0.0 and 0.0, for equal, ``strict`` nothing. What has no
portable binary form goes as text, which both sides print by the same settings (session_settings.SAME_EVERYWHERE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .quoting import identifier

FIRST_USER_OID = 16384
PROBE = (
    "ROW(1::int8, 'x'::text COLLATE \"C\", 1.50::numeric, '2026-01-01 00:00:00+00'::timestamptz, 0.1::float8,"
    " NULL::int8)"
)

# The name stands for something else on another server: an OID, or a position in this server's transactions.
_BY_NAME = (
    *("regclass", "regcollation", "regconfig", "regdictionary", "regnamespace", "regoper", "regoperator", "regproc"),
    *("regprocedure", "regrole", "regtype", "aclitem"),
)
_TEXTS = ("text", "varchar", "bpchar", "name")


@dataclass(frozen=True)
class Column:
    """``base``: the type under all domains, ``element``: that of an array's elements (else empty), each as typname;
    ``base_oid`` and ``element_oid`` likewise. ``kind``: pg_type.typtype of ``base``. ``type``: as format_type prints
    it, with its modifier. ``sendable``: there is a binary form, ``send`` is the function that makes it."""

    name: str
    type: str
    base: str
    base_oid: int
    kind: str
    element: str = ""
    element_oid: int = 0
    sendable: bool = True
    collatable: bool = False
    not_null: bool = False
    generated: bool = False
    domain: bool = False
    send: str = ""

    @property
    def foreign(self) -> bool:
        """A type whose OID, and so whose binary form, is another on another server."""
        return max(self.base_oid, self.element_oid) >= FIRST_USER_OID or self.kind in "ecm"

    @property
    def sql(self) -> str:
        return identifier(self.name)

    @property
    def cast(self) -> str:
        """The type for a value that is there already: a modifier (varchar(10)) would cut it off."""
        if self.base_oid >= FIRST_USER_OID or self.element:
            return self.type
        return f"pg_catalog.{identifier(self.base)}"


def _text(column: Column) -> str:
    return f'{column.sql}::text COLLATE "C"'


def _by_text(column: Column) -> bool:
    return column.foreign or column.base in _BY_NAME or column.element in _BY_NAME


# Their hash tells all values apart: 32 bits or less, or all the bytes.
_WHOLE = (
    *("bool", "int2", "int4", "oid", "date", "char", "float4", "float8", "uuid", "inet", "cidr", "macaddr", "macaddr8"),
    "bytea",
)


def _fast(column: Column) -> str:
    """One field or several."""
    value = column.sql
    if _by_text(column) or not column.sendable:
        return _text(column)
    if column.element:
        return f"pg_catalog.array_send({value})"
    if column.base in _TEXTS:
        # Under a collation that is not deterministic the hash is that of a sort key, which another ICU makes otherwise.
        return f'{value} COLLATE "C"'
    if column.base in _WHOLE:
        return value
    if column.base == "int8":
        return f"{value}, {value} >> 32"
    if column.base == "numeric" and (column.type == "numeric" or column.domain):
        # Numbers of any scale: 1.0 and 1.00 are equal, but not the same bytes.
        return f"{value}, {value} < 0, {value} = 'NaN'"
    return f"pg_catalog.{identifier(column.send)}({_based(column)})"


def _based(column: Column) -> str:
    """A domain's OID, which the binary form of a row has in it, is another on another server."""
    return f"{column.sql}::{column.cast}" if column.domain else column.sql


def _strict(column: Column) -> str:
    return _text(column) if _by_text(column) or not column.sendable else _based(column)


def _equal(column: Column) -> str:
    """Of 13, which has no hash of a row: the binary form, after what ``fast`` calls equal was made equal."""
    if not column.element and not column.foreign:
        if column.base == "numeric":
            return f"trim_scale({column.sql})"
        if column.base in ("float4", "float8"):
            return f"{column.sql} + 0"  # -0.0 becomes 0.0
    return _strict(column)


@dataclass(frozen=True)
class RowHash:
    """``method``: ``record`` (14 and newer), ``send`` (14 and newer, strict), ``md5`` (13, or servers whose hashes
    differ; ``strict`` says in which meaning). ``seed``: of the run, from 2 to 2 ** 31 - 1. ``unique``: no two rows can
    be the same; otherwise an xor would not see that two like rows became two other like rows."""

    columns: tuple[Column, ...]
    method: str
    seed: int
    strict: bool = False
    unique: bool = True

    def row(self) -> str:
        """bigint, of one row."""
        if self.method == "record":
            fields = ", ".join(_fast(column) for column in self.columns)
            linear = f"hash_record_extended(ROW({fields}), {self.seed})"
            return f"hash_record_extended(ROW(int8send({linear})), {self.seed})"
        form = _strict if self.strict or self.method == "send" else _equal
        sent = f"record_send(ROW({', '.join(form(column) for column in self.columns)}))"
        if self.method == "send":
            return f"hash_record_extended(ROW({sent}), {self.seed})"
        return f"('x' || left(md5({sent}), 16))::bit(64)::bigint"

    @property
    def total(self) -> str:
        """Of many rows, whatever their order. 13 has no bit_xor."""
        return f"{'bit_xor' if self.unique and self.method != 'md5' else 'sum'}({self.row()})"


def bucket(key: Sequence[Column], method: str, seed: int) -> str:
    """bigint, of the key, for dividing rows into groups that are the same on both sides."""
    if method == "md5":
        texts = ", ".join(key_text(column) for column in key)
        return f"('x' || left(md5(ROW({texts})::text), 16))::bit(64)::bigint"
    [first, *others] = key
    if not others and not first.element:
        if first.base in ("int2", "int4", "int8") and not first.foreign:
            return f"hashint8extended({first.sql}, {seed})"
        if first.base in _TEXTS and not first.foreign:
            return f"hashtextextended({_text(first)}, {seed})"
    fields = ", ".join(_fast(column) for column in key)
    return f"hashint8extended(hash_record_extended(ROW({fields}), {seed}), {seed})"


def key_text(column: Column) -> str:
    """A key's column as text that is the same for keys that are equal, and that can be cast back."""
    if column.base == "numeric" and not column.element:
        return f"trim_scale({column.sql})::text"
    return f"{column.sql}::text"


def method_of(version_a: int, version_b: int, probe_a: Any, probe_b: Any, *, strict: bool) -> str:
    """``version``: server_version_num; ``probe``: what each made of PROBE, None on 13. Hash functions are not promised
    to be the same on another architecture or in a later version: then md5 is."""
    if min(version_a, version_b) < 140000 or probe_a is None or probe_a != probe_b:
        return "md5"
    return "send" if strict else "record"
