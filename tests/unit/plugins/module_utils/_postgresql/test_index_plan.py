# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans against a model of what PostgreSQL makes of their statements: from every state that a killed run or somebody
else may leave, carrying the plan out, or any part of it and then a new one, ends with a valid index."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import index_plan
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.index_plan import (
    Action,
    Index,
    Plan,
    Table,
    Tree,
    Wanted,
    own_names,
    plan_absent,
    plan_present,
    shown,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.locks import MODES
from hypothesis import given, reject
from hypothesis import strategies as st

WANT = Wanted("ix", unique=False, clauses='USING "btree" ("k")', columns=("k",), definition="btree (k)")
OTHER = "btree (id)"


def options(**words: Any) -> dict[str, Any]:
    return {"name": "ix", "columns": ["k"], "method": "btree", "unique": False, **words}


class Server:
    """A tree whose indexes change as PostgreSQL 14 and newer would change them."""

    def __init__(self, tree: Tree) -> None:
        self.tables = {table.oid: table for table in tree.tables}
        self.version_num = tree.version_num
        self.oids = itertools.count(1000)

    @property
    def tree(self) -> Tree:
        tables = tuple(self.tables.values())
        taken = {(index.schema, index.name) for table in tables for index in table.indexes}
        return Tree(tables, self.version_num, frozenset(taken | {(table.schema, table.name) for table in tables}))

    def indexes(self) -> Iterator[tuple[Table, Index]]:
        for table in self.tables.values():
            for index in table.indexes:
                yield table, index

    def find(self, name: str) -> tuple[Table, Index]:
        [found] = [(table, index) for table, index in self.indexes() if index.shown == name]
        return found

    def put(self, table: Table, *indexes: Index) -> None:
        self.tables[table.oid] = dataclasses.replace(self.tables[table.oid], indexes=indexes)

    def swap(self, old: Index, **changes: Any) -> None:
        table, _index = self.find(old.shown)
        new = dataclasses.replace(old, **changes)
        self.put(table, *(new if index is old else index for index in self.tables[table.oid].indexes))

    def look(self, oid: int) -> None:
        """Valid when all parts are there and valid; and then the same for the index above."""
        for table, index in list(self.indexes()):
            if index.oid == oid and not index.valid:
                children = [child for child in self.tables.values() if child.parent == table.oid]
                parts = [part for child in children for part in child.indexes if part.parent == oid and part.valid]
                if len(parts) == len(children):
                    self.swap(index, valid=True)
                    self.look(index.parent)

    def execute(self, action: Action, *, killed: bool = False) -> None:
        """``killed``: the client is gone half way; a concurrent statement leaves an invalid index."""
        schema, name = action.table.schema, action.index.split(".")[1].strip('"')
        if action.kind in ("create", "build"):
            assert (schema, name) not in self.tree.taken
            children = [child for child in self.tables.values() if child.parent == action.table.oid]
            valid = not killed and (action.kind == "build" or not children)
            new = Index(next(self.oids), schema, name, WANT.definition, valid=valid)
            self.put(action.table, *self.tables[action.table.oid].indexes, new)
        elif killed:
            return
        elif action.kind == "reindex":
            self.swap(self.find(action.index)[1], valid=True)
        elif action.kind == "attach":
            child, part = self.find(action.index)
            [parent] = [
                index for _table, index in self.indexes() if f"ALTER INDEX {index.sql} " in action.statement.sql
            ]
            assert part.valid, "an invalid part is attached"
            assert part.parent in (0, parent.oid)
            assert self.find(parent.shown)[0].oid == child.parent
            self.swap(part, parent=parent.oid)
            self.look(parent.oid)
        elif action.kind == "drop":
            _table, index = self.find(action.index)
            self.drop(index)

    def drop(self, index: Index) -> None:
        assert not index.constraint
        for table, each in list(self.indexes()):
            if each.parent == index.oid:
                self.drop(each)
            elif each is index:
                self.put(table, *(other for other in self.tables[table.oid].indexes if other is not index))


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Up to three levels, and on each table what may have been left there."""
    tables: list[Table] = []
    oids = itertools.count(1)

    def add(parent: int, level: int) -> None:
        oid = next(oids)
        kind = draw(st.sampled_from("rp" if level < 2 else "r"))
        name = draw(st.sampled_from(["t", "t_ix", "a" * 40, "ü" * 30])) + f"_{oid}"
        tables.append(Table(oid, "s", name, kind, parent, bytes=8192 * oid))
        if kind == "p":
            for _child in range(draw(st.integers(0, 3))):
                add(oid, level + 1)

    add(0, 0)
    numbers = itertools.count(100)
    placed: list[Table] = []
    for table in tables:
        indexes: list[Index] = []
        above = next((other for other in placed if other.oid == table.parent), None)
        parents = [index for index in above.indexes if index.definition == WANT.definition] if above else []
        names = ["ix"] if table.oid == 1 else [*own_names(table, "ix"), f"somebodys_{table.oid}"]
        names += [f"{names[0]}_ccnew"] if table.kind == "r" else []
        for name in dict.fromkeys(names):
            kind = draw(
                st.sampled_from(["none", "none", "valid", "invalid", "attached", "broken", "other", "constraint"])
            )
            foreign = kind in ("other", "constraint")
            last_name = name == own_names(table, "ix")[-1]  # with this one taken, too, there is none left
            if kind == "none" or (foreign and (table.oid == 1 or last_name)):
                continue
            attached = kind in ("attached", "broken") and parents and not any(index.parent for index in indexes)
            has_parts = table.kind == "p" and any(other.parent == table.oid for other in tables)
            indexes.append(
                Index(
                    next(numbers),
                    "s",
                    name,
                    OTHER if kind == "other" else WANT.definition,
                    valid=kind not in ("invalid", "broken") and not has_parts,
                    parent=parents[0].oid if attached else 0,
                    constraint="c" if kind == "constraint" else "",
                )
            )
        placed.append(dataclasses.replace(table, indexes=tuple(indexes)))
    return Tree(tuple(placed), 150000)


def planned(server: Server) -> Plan:
    """A tree in which every name for a part is taken is refused, and no case for these tests."""
    try:
        return plan_present(server.tree, WANT)
    except DbopsError as error:
        if "are taken" not in error.found:
            raise
        reject()


def carried_out(server: Server, plan: Plan) -> None:
    for action in plan.actions:
        server.execute(action)


@given(tree=trees(), data=st.data())
def test_a_plan_carried_out_makes_the_index_valid_and_a_second_one_is_empty(tree: Tree, data: st.DataObject) -> None:
    server = Server(tree)
    plan = planned(server)
    stop = data.draw(st.integers(0, len(plan.actions)))
    for action in plan.actions[:stop]:
        server.execute(action)
    kept = {index.oid for _table, index in server.indexes() if index.valid}
    if stop < len(plan.actions):
        server.execute(plan.actions[stop], killed=True)
    for _round in range(3):  # what is attached below a part shows in the whole one round later
        carried_out(server, plan_present(server.tree, WANT))
    assert plan_present(server.tree, WANT).actions == []
    _top, index = server.find("s.ix")
    assert index.valid
    assert kept <= {index.oid for _table, index in server.indexes()}, "nothing valid was dropped"
    for table in server.tables.values():
        parents = [index.parent for index in table.indexes if index.parent]
        assert len(parents) == len(set(parents))

    carried_out(server, plan_absent(server.tree, "ix"))
    assert plan_absent(server.tree, "ix").actions == []
    assert [
        index.shown
        for table, index in server.indexes()
        if index.name in ("ix", *own_names(table, "ix"))
        and index.definition == WANT.definition
        and not index.constraint
        and not index.parent
    ] == []


@given(tree=trees())
def test_what_a_plan_says_of_locks(tree: Tree) -> None:
    """No client waits for what takes long; what a client would wait for takes a moment and reads nothing."""
    for action in planned(Server(tree)).actions:
        blocking = [lock for lock in action.statement.locks if MODES.index(lock.mode) >= MODES.index("ShareLock")]
        if action.brief:
            assert not any(lock.scanned_bytes for lock in action.statement.locks)
        elif action.kind != "drop":
            assert blocking == []
            assert [lock.scanned_bytes for lock in action.statement.locks] == [2 * action.table.bytes]


@given(table=st.text(min_size=1, max_size=70), name=st.text(min_size=1, max_size=63))
def test_names_of_parts_fit(table: str, name: str) -> None:
    for own in own_names(Table(1, "s", table), name):
        assert len(own.encode()) <= 63
    assert own_names(Table(1, "s", table), name) == own_names(Table(2, "s", table), name)
    assert own_names(Table(1, "s", table), name)[1] != own_names(Table(1, "z", table), name)[1]


def test_no_name_is_left() -> None:
    taken = frozenset(("s", name) for name in own_names(Table(2, "s", "t1"), "ix"))
    tree = dataclasses.replace(partitioned(), taken=taken)
    with pytest.raises(DbopsError, match=r"the names t1_ix and t1_ix_\w{8} are taken"):
        plan_present(tree, WANT)


def test_a_name_that_two_parts_would_have() -> None:
    """Table a with index b_ix, and table a_b with index ix: the second one gets the name with the checksum."""
    tree = Tree(
        (Table(1, "s", "t", "p"), Table(2, "s", "a_b", parent=1)), taken=frozenset({("s", "a_b_ix"), ("s", "other")})
    )
    [build] = [action for action in plan_present(tree, WANT).actions if action.kind == "build"]
    assert build.index == shown("s", own_names(tree.tables[1], "ix")[1])


# ------------------------------------------------------------------------------------------------------------- refusals


def one(*indexes: Index, **words: Any) -> Tree:
    return Tree((Table(1, "s", "t", indexes=indexes, **words),))


def partitioned(*parts: Index, whole: Index | None = None, version_num: int = 150000, **words: Any) -> Tree:
    top = Table(1, "s", "t", "p", key=("k",), indexes=(whole,) if whole else ())
    return Tree((top, Table(2, "s", "t1", parent=1, indexes=parts, **words)), version_num)


WHOLE = Index(10, "s", "ix", "btree (k)", valid=False)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (one(Index(5, "s", "ix", OTHER)), r"s.ix exists as btree \(id\); expected: btree \(k\)"),
        (one(Index(5, "s", "ix", "btree (k)", valid=False, builder="pid 7 (psql)")), "is being built by pid 7"),
        (Tree((Table(1, "s", "t"),), taken=frozenset({("s", "ix")})), "exists and is no index of s.t"),
        (Tree((Table(1, "s", "t"),), version_num=140003), "140004 or newer"),
        (
            partitioned(Index(5, "s", "t1_ix", "btree (k)", parent=10), whole=WHOLE, version_num=130023),
            "PostgreSQL 13 never looks again",
        ),
        (
            partitioned(Index(5, "s", "t1_ix", "btree (k)", valid=False, parent=10), whole=WHOLE, version_num=130023),
            "PostgreSQL 13 never looks again",
        ),
    ],
)
def test_refused(tree: Tree, text: str) -> None:
    with pytest.raises(DbopsError, match=text):
        plan_present(tree, WANT)


def test_on_13_what_attaches_something_new_is_not_refused() -> None:
    tree = partitioned(Index(5, "s", "t1_ix", "btree (k)"), whole=WHOLE, version_num=130023)
    assert [action.kind for action in plan_present(tree, WANT).actions] == ["attach"]


@pytest.mark.parametrize(
    ("tree", "want", "text"),
    [
        (one(kind="v"), WANT, "s.t is no table"),
        (partitioned(kind="f"), WANT, "s.t1 is a foreign table"),
        (one(may=False), WANT, "the login does not own s.t"),
        (
            partitioned(),
            dataclasses.replace(WANT, unique=True, columns=("id",)),
            "unique on id; s.t is partitioned by k",
        ),
        (one(kind="p", key=("",)), dataclasses.replace(WANT, unique=True), "partitioned by an expression"),
    ],
)
def test_tables_that_are_refused(tree: Tree, want: Wanted, text: str) -> None:
    with pytest.raises(DbopsError, match=text):
        index_plan.refuse_tables(tree, want)


def test_a_unique_index_with_the_key_is_not_refused() -> None:
    index_plan.refuse_tables(partitioned(), dataclasses.replace(WANT, unique=True))


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (one(Index(5, "s", "ix", OTHER, constraint="c of s.t")), "belongs to the constraint c of s.t"),
        (one(Index(5, "s", "ix", OTHER, replica_identity=True)), "is the replica identity"),
        (one(Index(5, "s", "ix", OTHER, builder="pid 7 (psql)")), "is being built by pid 7"),
        (one(Index(5, "s", "ix", OTHER, parent=4)), "is attached to an index"),
        (partitioned(Index(5, "s", "x", "btree (k)", parent=10, constraint="c"), whole=WHOLE), "s.x belongs to the"),
        (Tree((Table(1, "s", "t"),), taken=frozenset({("s", "ix")})), "is no index of s.t"),
    ],
)
def test_not_dropped(tree: Tree, text: str) -> None:
    with pytest.raises(DbopsError, match=text):
        plan_absent(tree, "ix")


def test_what_a_rebuild_left_is_dropped() -> None:
    left = Index(6, "s", "ix_ccnew", "btree (k)", valid=False)
    valid = Index(5, "s", "ix", "btree (k)")
    for indexes, expected in (
        ((valid, left), ["drop s.ix_ccnew"]),
        ((left,), ["drop s.ix_ccnew", "build s.ix"]),
        ((valid, dataclasses.replace(left, builder="pid 7")), []),
        ((valid, dataclasses.replace(left, valid=True)), []),
    ):
        assert [action.name for action in plan_present(one(*indexes), WANT).actions] == expected
    assert [action.name for action in plan_absent(one(valid, left), "ix").actions] == ["drop s.ix_ccnew", "drop s.ix"]


def test_warnings() -> None:
    same = Index(5, "s", "same", "btree (k)")
    assert plan_present(one(same), WANT).warnings == [
        "s.same has the same definition already; both will have to be written"
    ]
    left = dataclasses.replace(same, valid=False)
    assert "s.same is invalid and not ours" in plan_present(partitioned(left), WANT).warnings[0]
    built = dataclasses.replace(left, builder="pid 7 (psql)")
    assert plan_present(partitioned(built), WANT).warnings == []


def test_the_tablespace_counts_where_it_was_given() -> None:
    want = dataclasses.replace(WANT, tablespace="fast")
    with pytest.raises(DbopsError, match=r"btree \(k\) TABLESPACE pg_default; expected: btree \(k\) TABLESPACE fast"):
        plan_present(one(Index(5, "s", "ix", "btree (k)")), want)
    part = Index(5, "s", "somebodys", "btree (k)")
    kinds = [action.kind for action in plan_present(partitioned(part, whole=WHOLE), WANT).actions]
    assert kinds == ["attach"]
    there = dataclasses.replace(WHOLE, tablespace="fast")
    assert [action.kind for action in plan_present(partitioned(part, whole=there), want).actions] == ["build", "attach"]


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("words", "sql"),
    [
        ({}, 'USING "btree" ("k")'),
        ({"columns": [{"name": 'q"', "order": "desc", "nulls": "last"}]}, 'USING "btree" ("q""" DESC NULLS LAST)'),
        (
            {"columns": [{"expression": "lower(name)", "collation": '"C"', "opclass": "text_ops"}, "k"]},
            'USING "btree" ((lower(name)) COLLATE "C" text_ops, "k")',
        ),
        (
            {"include": ["a"], "where": "k > 0", "storage": {"fillfactor": 70, "fastupdate": True}, "tablespace": "t"},
            'USING "btree" ("k") INCLUDE ("a") WITH ("fastupdate" = \'true\', "fillfactor" = \'70\')'
            ' TABLESPACE "t" WHERE (k > 0)',
        ),
    ],
)
def test_clauses(words: dict[str, Any], sql: str) -> None:
    assert index_plan.wanted(options(**words)).clauses == sql


@pytest.mark.parametrize(
    "columns",
    [[{}], [{"name": "a", "expression": "b"}], [{"nam": "a"}], [5], [{"name": "a", "order": "up"}], [[]], [""]],
)
def test_columns_that_are_refused(columns: list[Any]) -> None:
    with pytest.raises(DbopsError, match="correct columns"):
        index_plan.wanted(options(columns=columns))


@pytest.mark.parametrize("name", ["", "x" * 64, "é" * 32])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(DbopsError, match="1 to 63 bytes"):
        index_plan.check_name(name)


def test_what_is_shown() -> None:
    assert shown("public", "t") == "public.t"
    assert shown("O'd", 'a"b') == '"O\'d"."a""b"'
    part = Index(5, "s", "t1_ix", "btree (k)", valid=False, parent=10)
    tree = partitioned(part, Index(6, "s", "x", OTHER), whole=WHOLE)
    assert index_plan.overview(tree, "ix") == {"s.t": "s.ix btree (k), invalid", "s.t1": "s.t1_ix, invalid"}
    assert index_plan.overview(tree, "other") == {}
    assert index_plan.all_names(tree, "ix") == ["ix", "t1_ix", own_names(tree.tables[1], "ix")[1]]


def test_the_estimate() -> None:
    assert index_plan.estimated_bytes(0, [4]) == 0
    assert index_plan.estimated_bytes(1_000_000, [4]) == index_plan.estimated_bytes(1_000_000, [8]) == 22222222
    assert index_plan.estimated_bytes(9, [8, 8]) == 280
