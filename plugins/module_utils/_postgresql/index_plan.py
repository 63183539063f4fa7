# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done for an index of a table, or of a whole tree of partitions, to be there or not. Pure.

A partitioned table cannot have its index built concurrently. So it gets one that covers itself alone (ON ONLY), each
leaf gets its own concurrently, and each is attached; with the last one the whole becomes valid. Every step shows in the
catalog, so a plan made from the catalog goes on where a killed run stopped.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.errors import DbopsError
from .known_defects import CONCURRENT_BUILD, known_defect
from .locks import ACCESS_EXCLUSIVE, ACCESS_SHARE, SHARE, SHARE_UPDATE_EXCLUSIVE, Lock, Statement
from .quoting import NAME_BYTES, identifier, literal, qualified, suffixed

_SCRAP = re.compile(r"_cc(new|old)\d*$")
_ELEMENT = ("name", "expression", "order", "nulls", "opclass", "collation")


@dataclass(frozen=True)
class Index:
    """One index as the catalog has it. ``definition`` is the server's own text from USING on, with UNIQUE before it
    where it is: two indexes with the same one differ in name, table and tablespace alone. ``parent``: OID of the index
    it is attached to, 0 if none. ``constraint``: names of the constraints that need it. ``builder``: who builds it
    right now, empty if nobody does."""

    oid: int
    schema: str
    name: str
    definition: str
    valid: bool = True
    parent: int = 0
    tablespace: str = "pg_default"
    constraint: str = ""
    replica_identity: bool = False
    bytes: int = 0
    builder: str = ""

    @property
    def sql(self) -> str:
        return qualified(self.schema, self.name)

    @property
    def shown(self) -> str:
        return shown(self.schema, self.name)


@dataclass(frozen=True)
class Table:
    """A table, or one node of a tree. ``kind`` is pg_class.relkind. ``key``: columns of the partition key, an empty
    name standing for an expression. ``may``: the login may create an index on it."""

    oid: int
    schema: str
    name: str
    kind: str = "r"
    parent: int = 0
    bytes: int = 0
    key: tuple[str, ...] = ()
    may: bool = True
    indexes: tuple[Index, ...] = ()

    @property
    def sql(self) -> str:
        return qualified(self.schema, self.name)

    @property
    def shown(self) -> str:
        return shown(self.schema, self.name)

    @property
    def partitioned(self) -> bool:
        return self.kind == "p"


@dataclass(frozen=True)
class Tree:
    """``tables``: the table itself first, each one before its partitions. ``taken``: names of relations, with their
    schemas, among those that a plan may want to use."""

    tables: tuple[Table, ...]
    version_num: int = 150000
    taken: frozenset[tuple[str, str]] = frozenset()

    @property
    def top(self) -> Table:
        return self.tables[0]

    def children(self, table: Table) -> list[Table]:
        return [child for child in self.tables if child.parent == table.oid]

    def index(self, name: str) -> Index | None:
        """The index of the top with this name."""
        return next((index for index in self.top.indexes if index.name == name), None)


@dataclass(frozen=True)
class Wanted:
    """The index that is to be there. ``clauses`` is the SQL behind the table's name; ``definition`` what the server
    makes of it, empty until it was asked."""

    name: str
    unique: bool
    clauses: str
    columns: tuple[str, ...]
    tablespace: str = ""
    definition: str = ""

    def create(self, name: str, on: str, *, concurrently: bool = False) -> str:
        unique = "UNIQUE " if self.unique else ""
        how = "CONCURRENTLY " if concurrently else ""
        return f"CREATE {unique}INDEX {how}{identifier(name)} ON {on} {self.clauses}"


@dataclass(frozen=True)
class Action:
    """One step. ``kind``: create, build, reindex, attach or drop. ``brief`` statements are one transaction with a short
    lock_timeout; the others wait as long as they have to, and hold up no client meanwhile."""

    kind: str
    table: Table
    index: str
    statement: Statement

    @property
    def brief(self) -> bool:
        return self.statement.brief

    @property
    def name(self) -> str:
        return f"{self.kind} {self.index}"


@dataclass
class Plan:
    actions: list[Action] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def shown(schema: str, name: str) -> str:
    """A relation as people write it, and as to_regclass reads it."""
    plain = re.compile(r"[a-z_][a-z0-9_$]*")
    return ".".join(part if plain.fullmatch(part) else identifier(part) for part in (schema, name))


# ------------------------------------------------------------------------------------------------ what the options say


def wanted(options: dict[str, Any]) -> Wanted:
    """From the module's options. Raises DbopsError for what no server has to be asked about."""
    check_name(options["name"])
    elements = [_element(given) for given in options["columns"]]
    clauses = f"USING {identifier(options['method'])} ({', '.join(_element_sql(element) for element in elements)})"
    if options.get("include"):
        clauses += f" INCLUDE ({', '.join(identifier(name) for name in options['include'])})"
    if options.get("storage"):
        pairs = (f"{identifier(key)} = {_value(value)}" for key, value in sorted(options["storage"].items()))
        clauses += f" WITH ({', '.join(pairs)})"
    if options.get("tablespace"):
        clauses += f" TABLESPACE {identifier(options['tablespace'])}"
    if options.get("where"):
        clauses += f" WHERE ({options['where']})"
    return Wanted(
        name=options["name"],
        unique=options["unique"],
        clauses=clauses,
        columns=tuple(element["name"] for element in elements if element.get("name")),
        tablespace=options.get("tablespace") or "",
    )


def check_name(name: str) -> None:
    size = len(name.encode())
    if not 0 < size <= NAME_BYTES:
        raise DbopsError(
            found=f"the name {name} has {size} bytes",
            expected=f"1 to {NAME_BYTES} bytes: the server would cut it off without a word",
            remedy="choose a shorter name",
        )


def _element(given: Any) -> dict[str, str]:
    element = {"name": given} if isinstance(given, str) else given
    good = isinstance(element, dict) and not element.keys() - set(_ELEMENT)
    if not good or bool(element.get("name")) == bool(element.get("expression")):
        raise DbopsError(
            found=f"an element of columns is {given}",
            expected="a column's name, or a dictionary with name or expression, and perhaps " + ", ".join(_ELEMENT[2:]),
            remedy="correct columns",
        )
    for word, choices in (("order", ("asc", "desc")), ("nulls", ("first", "last"))):
        if element.get(word) not in (None, *choices):
            raise DbopsError(
                found=f"{word} of an element of columns is {element[word]}",
                expected=" or ".join(choices),
                remedy="correct columns",
            )
    return element


def _element_sql(element: dict[str, str]) -> str:
    words = [identifier(element["name"]) if element.get("name") else f"({element['expression']})"]
    if element.get("collation"):
        words.append(f"COLLATE {element['collation']}")
    if element.get("opclass"):
        words.append(element["opclass"])
    if element.get("order"):
        words.append(element["order"].upper())
    if element.get("nulls"):
        words.append(f"NULLS {element['nulls'].upper()}")
    return " ".join(words)


def _value(value: Any) -> str:
    return literal(str(value).lower() if isinstance(value, bool) else str(value)).strip()


def own_names(table: Table, name: str) -> tuple[str, str]:
    """The names that the index ``name`` may have on a partition: a readable one, and one that nothing else can have
    where the first is too long or taken."""
    readable = f"{table.name}_{name}"
    mark = f"_{zlib.crc32(f'{table.schema}.{table.name}.{name}'.encode()):08x}"
    cut = suffixed(readable, mark)
    return (readable if len(readable.encode()) <= NAME_BYTES else cut), cut


def all_names(tree: Tree, name: str) -> list[str]:
    """Every name that a plan may want to use."""
    return [name, *(own for table in tree.tables[1:] for own in own_names(table, name))]


# ------------------------------------------------------------------------------------------------------------- present


def plan_present(tree: Tree, want: Wanted) -> Plan:
    """What is missing. Raises DbopsError where the index must not be built, or something else has its name."""
    plan = Plan()
    existing = tree.index(want.name)
    if existing is None and (tree.top.schema, want.name) in tree.taken:
        raise DbopsError(
            found=f"{shown(tree.top.schema, want.name)} exists and is no index of {tree.top.shown}",
            expected="a name that is free, or that of an index of this table",
            remedy="choose another name",
        )
    if existing is not None:
        _refuse_other(existing, want)
    else:
        same = [index.shown for index in tree.top.indexes if index.definition == want.definition and index.valid]
        plan.warnings += [f"{name} has the same definition already; both will have to be written" for name in same]
    _converge(tree, want, tree.top, existing, want.name, plan)
    long = [action for action in plan.actions if action.kind in ("build", "reindex")]
    defect = known_defect(CONCURRENT_BUILD, tree.version_num)
    if long and defect:
        raise DbopsError(
            found=f"server_version_num {tree.version_num}: {defect.harm}",
            expected=f"{defect.fixed} or newer for {defect.operation}",
            remedy="update the server to the newest minor version first",
        )
    return plan


def _converge(tree: Tree, want: Wanted, table: Table, existing: Index | None, name: str, plan: Plan) -> bool:
    """Actions after which ``table`` has a valid index: ``existing``, or a new one called ``name``. True if a part is
    attached that was not before, because then the server looks by itself whether the whole is valid."""
    if not table.partitioned:
        _leaf(want, table, existing, name, plan)
        return False
    children = tree.children(table)
    if existing is not None and not existing.valid and not children:
        plan.actions.append(_drop_tree([table], [existing]))  # its last partition went away before it had an index
        existing = None
    if existing is None:
        create = want.create(name, f"ONLY {table.sql}")
        locks = (Lock(table.shown, SHARE),)
        plan.actions.append(Action("create", table, shown(table.schema, name), Statement(create, locks)))
    parent = existing or Index(oid=-1, schema=table.schema, name=name, definition=want.definition, valid=False)
    looks = False
    before = len(plan.actions)
    for child in children:
        attached = next((index for index in child.indexes if index.parent == parent.oid), None)
        part = attached or _adoptable(child, want, plan)
        part_name = part.name if part else _free_name(tree, child, want.name)
        began = len(plan.actions)
        looks |= _converge(tree, want, child, part, part_name, plan)
        rebuilt = any(action.kind == "reindex" for action in plan.actions[began:])
        if attached is None or rebuilt:
            plan.actions.append(_attach(table, parent, child, part_name))
        looks |= attached is None
    if existing is not None and not existing.valid and not looks:
        if tree.version_num < 140000:
            raise DbopsError(
                found=f"{existing.shown} is invalid, no part of it is missing, and PostgreSQL 13 never looks again",
                expected="an index that is valid, or one to which something has to be attached",
                remedy="run with state=absent, then again; queries of the partitions do without the index meanwhile",
            )
        if not any(action.kind == "attach" for action in plan.actions[before:]):
            # A partition without an index was dropped, or an invalid part was attached and repaired later. Attaching
            # again what is attached makes the server look.
            part = next(index for index in children[0].indexes if index.parent == existing.oid)
            plan.actions.append(_attach(table, existing, children[0], part.name))
    return looks


def _leaf(want: Wanted, table: Table, existing: Index | None, name: str, plan: Plan) -> None:
    index = shown(table.schema, name)
    plan.actions += _drop_scraps(table, index, existing)
    if existing is not None:
        if existing.valid:
            return
        if existing.builder:
            raise DbopsError(
                found=f"{existing.shown} is being built by {existing.builder}",
                expected="nobody else builds it: an invalid index is dropped and built again",
                remedy="wait for that build, or end it with pg_cancel_backend, and run again",
            )
        if existing.parent:
            sql = f"REINDEX INDEX CONCURRENTLY {existing.sql}"
            plan.actions.append(Action("reindex", table, index, Statement(sql, _long_locks(table), brief=False)))
            return
        plan.actions.append(drop_concurrently(table, existing))
    sql = want.create(name, table.sql, concurrently=True)
    plan.actions.append(Action("build", table, index, Statement(sql, _long_locks(table), brief=False)))


def left_invalid(table: Table, name: str) -> list[Index]:
    """What a build or a rebuild of ``name`` (as it is shown) left when it failed: that index itself, and those that
    REINDEX CONCURRENTLY makes beside it."""
    return [
        index
        for index in table.indexes
        if name in (index.shown, shown(index.schema, _SCRAP.sub("", index.name)))
        and not (index.valid or index.parent or index.builder)
    ]


def _drop_scraps(table: Table, name: str, keep: Index | None) -> list[Action]:
    return [drop_concurrently(table, index) for index in left_invalid(table, name) if index is not keep]


def _long_locks(table: Table) -> tuple[Lock, ...]:
    return (Lock(table.shown, SHARE_UPDATE_EXCLUSIVE, 2 * table.bytes),)  # it reads the table twice


def _attach(table: Table, parent: Index, child: Table, child_name: str) -> Action:
    child_index = shown(child.schema, child_name)
    locks = (
        Lock(parent.shown, SHARE_UPDATE_EXCLUSIVE),
        Lock(child_index, ACCESS_EXCLUSIVE),
        Lock(table.shown, ACCESS_SHARE),
        Lock(child.shown, ACCESS_SHARE),
    )
    sql = f"ALTER INDEX {parent.sql} ATTACH PARTITION {qualified(child.schema, child_name)}"
    return Action("attach", child, child_index, Statement(sql, locks))


def _adoptable(table: Table, want: Wanted, plan: Plan) -> Index | None:
    """An index of a partition that can become the wanted one's part: our own from a run that was killed, else one with
    the same definition under whatever name. One that backs a constraint cannot: the whole could never be dropped."""
    own = own_names(table, want.name)
    alike = [
        index
        for index in table.indexes
        if index.definition == want.definition and not index.parent and not index.constraint
    ]
    for index in sorted(alike, key=lambda index: index.name not in own):
        if not index.valid and not table.partitioned and index.name not in own:
            if not index.builder and not any(index in left_invalid(table, shown(table.schema, name)) for name in own):
                plan.warnings.append(f"{index.shown} is invalid and not ours: it costs every write, drop it")
        elif not index.valid or want.tablespace in ("", index.tablespace):
            return index
    return None


def _free_name(tree: Tree, table: Table, name: str) -> str:
    names = own_names(table, name)
    free = next((own for own in names if (table.schema, own) not in tree.taken), "")
    if not free:
        raise DbopsError(
            found=f"in schema {table.schema} the names {' and '.join(dict.fromkeys(names))} are taken",
            expected=f"one of them free for the part of {table.shown}",
            remedy="drop or rename what has them, or choose another name for the index",
        )
    return free


def refuse_tables(tree: Tree, want: Wanted) -> None:
    """What can be said without asking the server for the definition. Raises DbopsError."""
    kinds = {"r": "table", "p": "partitioned table", "m": "materialized view"}
    for table in tree.tables:
        if table.kind not in kinds:
            kind = "a foreign table" if table.kind == "f" else "no table"
            raise DbopsError(
                found=f"{table.shown} is {kind}",
                expected=f"{', '.join(kinds.values())}: the index of a tree is valid when every partition has its part",
                remedy="index the other partitions one by one (name each as table), and the foreign one where it lives",
            )
        if not table.may:
            raise DbopsError(
                found=f"the login does not own {table.shown}, or may not create in schema {table.schema}",
                expected="membership in the role that owns each table of the tree, and CREATE on its schema",
                remedy="GRANT that role to the login, and CREATE on the schema to the owner",
            )
        lacking = [name or "an expression" for name in table.key if name not in want.columns]
        if want.unique and lacking:
            raise DbopsError(
                found=f"unique on {', '.join(want.columns)}; {table.shown} is partitioned by {', '.join(lacking)}",
                expected="every partition key among the columns: each partition checks its own rows only",
                remedy=f"add {', '.join(lacking)} to columns, or give up uniqueness over the whole",
            )


def _refuse_other(existing: Index, want: Wanted) -> None:
    found, expected = existing.definition, want.definition
    if want.tablespace and existing.tablespace != want.tablespace:
        found += f" TABLESPACE {existing.tablespace}"
        expected += f" TABLESPACE {want.tablespace}"
    if found != expected:
        raise DbopsError(
            found=f"{existing.shown} exists as {found}",
            expected=expected,
            remedy="correct the options, or choose another name; to replace it build the new one, then drop this one",
        )


# -------------------------------------------------------------------------------------------------------------- absent


def plan_absent(tree: Tree, name: str) -> Plan:
    """Raises DbopsError where something needs the index."""
    plan = Plan()
    existing = tree.index(name)
    if existing is None:
        if (tree.top.schema, name) in tree.taken:
            raise DbopsError(
                found=f"{shown(tree.top.schema, name)} is no index of {tree.top.shown}",
                expected="the name of an index of this table",
                remedy="correct table or name",
            )
        return plan
    for index in [existing, *(part for _table, part in _parts(tree, existing))]:
        _refuse_needed(index, existing)
    for table in tree.tables[1:]:
        for index in table.indexes:
            # Built by a run that was killed before it could attach it.
            ours = index.name in own_names(table, name) and index.definition == existing.definition
            if ours and not index.parent and not index.constraint and not index.replica_identity:
                _refuse_needed(index, existing)
                plan.actions.append(_drop(tree, table, index))
    for table, index in [(tree.top, existing), *_parts(tree, existing)]:
        plan.actions += _drop_scraps(table, index.shown, index)
    plan.actions.append(_drop(tree, tree.top, existing))
    return plan


def _drop(tree: Tree, table: Table, index: Index) -> Action:
    if not table.partitioned:
        return drop_concurrently(table, index)
    parts = list(_parts(tree, index))
    return _drop_tree([table, *(below for below, _part in parts)], [index, *(part for _below, part in parts)])


def _drop_tree(tables: Sequence[Table], indexes: Sequence[Index]) -> Action:
    """There is no concurrent form for a tree; it changes the catalog alone."""
    relations = [*(table.shown for table in tables), *(index.shown for index in indexes)]
    locks = tuple(Lock(relation, ACCESS_EXCLUSIVE) for relation in relations)
    return Action("drop", tables[0], indexes[0].shown, Statement(f"DROP INDEX {indexes[0].sql}", locks))


def drop_concurrently(table: Table, index: Index) -> Action:
    """Nobody uses the index any more when it takes the last lock."""
    locks = (Lock(table.shown, SHARE_UPDATE_EXCLUSIVE), Lock(index.shown, ACCESS_EXCLUSIVE))
    sql = f"DROP INDEX CONCURRENTLY IF EXISTS {index.sql}"
    return Action("drop", table, index.shown, Statement(sql, locks, brief=False))


def _parts(tree: Tree, top: Index) -> Iterator[tuple[Table, Index]]:
    """What is attached to ``top``, at any depth."""
    above = {top.oid}
    for table in tree.tables[1:]:
        for index in table.indexes:
            if index.parent in above:
                above.add(index.oid)
                yield table, index


def _refuse_needed(index: Index, top: Index) -> None:
    needed = ""
    if index.constraint:
        needed = f"{index.shown} belongs to the constraint {index.constraint}"
    elif index.replica_identity:
        needed = f"{index.shown} is the replica identity of its table"
    elif index.builder:
        needed = f"{index.shown} is being built by {index.builder}"
    elif index is top and index.parent:
        needed = f"{index.shown} is attached to an index of the table above"
    if needed:
        raise DbopsError(
            found=needed,
            expected="an index that nothing else needs",
            remedy="drop the constraint, choose another REPLICA IDENTITY, wait for the build, or name the table above",
        )


# -------------------------------------------------------------------------------------------------------------- to show


def estimated_bytes(rows: float, widths: Iterable[int]) -> int:
    """About what a B-tree of so many rows takes: 8 bytes of tuple header, 4 of line pointer, columns padded to 8 bytes,
    pages filled to 90 %. Equal keys take less since PostgreSQL 13."""
    width = -(-sum(widths) // 8) * 8
    return int(rows * (12 + width) / 0.9)


def overview(tree: Tree, name: str) -> dict[str, str]:
    """Table by table what there is of the index, for the diff."""
    top = tree.index(name)
    if top is None:
        return {}
    told = {tree.top.shown: f"{top.shown} {top.definition}{'' if top.valid else ', invalid'}"}
    for table, index in _parts(tree, top):
        told[table.shown] = f"{index.shown}{'' if index.valid else ', invalid'}"
    return told
