# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The transactions that change what a partitioned table consists of: text, with the locks that each statement takes.

Why it is done in these steps, on 13 to 18:

* CREATE TABLE … PARTITION OF takes ACCESS EXCLUSIVE of the parent. A table made LIKE the parent and attached takes
  SHARE UPDATE EXCLUSIVE of it, which neither readers nor writers wait for.
* ATTACH reads the whole new partition, unless a CHECK constraint (``dbops_bound``) proves that its rows belong there,
  and the whole default partition under ACCESS EXCLUSIVE, unless one (``dbops_guard``) proves that it has none of them.
* A transaction that moves rows and attaches must lock the parent ACCESS EXCLUSIVE first. A query that waited for less
  has made its list of partitions already, and would see none of the moved rows; an insert would fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .locks import (
    ACCESS_EXCLUSIVE,
    ACCESS_SHARE,
    ROW_EXCLUSIVE,
    SHARE_ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
    Lock,
    Statement,
)
from .partition_catalog import (
    BOUND,
    GUARD,
    READ_ONLY,
    DefaultRows,
    Detached,
    Namesake,
    Partition,
    PartitionedTable,
    condition,
    mark,
)
from .partition_keys import MAXVALUE, MINVALUE, Interval, Key, Position, Window
from .quoting import identifier, literal, qualified, suffixed

FOREIGN = "f"
_REPLICA_IDENTITY = {"f": "FULL", "n": "NOTHING"}
_WRITES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


@dataclass(frozen=True)
class Below:
    """How each new partition is partitioned itself: ``strategy`` list or hash, by ``column``."""

    strategy: str
    column: str
    lists: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    modulus: int = 0


@dataclass(frozen=True)
class Request:
    """``first``: a position in the first window wanted, None for the current one. ``partial``: refuse or fill, where an
    existing partition covers a part of a window. ``default_rows``: refuse, promote, move or shadow, where the default
    partition holds rows of one. ``move_limit``: rows. Of a table partitioned by list or hash ``key``, ``interval`` and
    what is counted in them have no meaning; ``lists`` or ``modulus`` say what is wanted."""

    column: str
    key: Key
    interval: Interval
    premake: int
    template: str
    first: int | None = None
    partial: str = "refuse"
    default_rows: str = "refuse"
    move_limit: int = 10_000
    retention: Interval | None = None
    retention_action: str = "keep"
    grace: Interval = field(default_factory=lambda: Interval(7, "day"))
    max_drop: int = 1
    strategy: str = "range"
    lists: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    modulus: int = 0
    below: Below | None = None

    @property
    def archives(self) -> bool:
        return self.retention_action in ("archive", "drop")

    @property
    def drops(self) -> bool:
        return self.retention_action == "drop"


@dataclass(frozen=True)
class Wanted:
    """A partition to be made. ``bounds``: what follows FOR VALUES; ``where``: which rows are its; ``belongs``: the same
    as a CHECK that the server takes as a proof; ``shown``: for people; ``window``: of a range."""

    name: str
    bounds: str
    where: str
    belongs: str
    shown: str
    window: Window | None = None

    @property
    def span(self) -> Window:
        if self.window is None:
            raise AssertionError(f"{self.name} is no range")
        return self.window


@dataclass(frozen=True)
class Transaction:
    """Statements that take effect together. ``long``: one statement alone, which waits and works as long as it takes,
    because it keeps no client waiting. ``partition``: of which the work is. ``work``: detach,
    copy, compare, archive or drop, where there is more to it than the statements."""

    name: str
    summary: str
    statements: tuple[Statement, ...]
    long: bool = False
    partition: Partition | None = None
    work: str = ""
    undo: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Facts:
    """``current``: the position of now, or of the greatest value of an integer key."""

    table: PartitionedTable
    current: int
    default_rows: DefaultRows = field(default_factory=DefaultRows)
    namesakes: tuple[Namesake, ...] = ()
    detached: tuple[Detached, ...] = ()
    shadow: bool = False
    now_us: int = 0
    may_create: bool = True
    version_num: int = 0


def shown(key: Key, window: Window) -> str:
    return f"window {_text(key, window.lo)} to {_text(key, window.hi)}"


def _text(key: Key, position: Position) -> str:
    return key.sql(position) if isinstance(position, float) else key.text(position)


def _statement(sql: str, *locks: Lock, brief: bool = True) -> Statement:
    return Statement(sql, locks, brief)


def _exclusive(partition: Partition, scanned: int = 0) -> Lock:
    return Lock(partition.full_name, ACCESS_EXCLUSIVE, scanned)


def drop_constraint(partition: Partition, name: str, why: str) -> Transaction:
    sql = f"ALTER TABLE {partition.sql} DROP CONSTRAINT IF EXISTS {name}"
    return Transaction(
        f"drop {name}", f"{why}: {name} of {partition.full_name}", (_statement(sql, _exclusive(partition)),)
    )


def new_table(facts: Facts, name: str, check: str, partitioned: str = "") -> tuple[Statement, ...]:
    """A table made to become a partition. Identity is left out: a child with one of its own cannot be attached (17)."""
    table = facts.table
    target = qualified(table.schema, name)
    constraint = f", CONSTRAINT {BOUND} CHECK ({check})" if check else ""
    like = f"CREATE TABLE {target} (LIKE {table.sql} INCLUDING ALL EXCLUDING IDENTITY{constraint}){partitioned}"
    return (
        _statement(like, Lock(table.full_name, ACCESS_SHARE)),
        *as_the_table_has_them(table, target, leaf=not partitioned),
    )


def as_the_table_has_them(table: PartitionedTable, target: str, *, leaf: bool = True) -> tuple[Statement, ...]:
    """What a new partition does not get by LIKE or PARTITION OF: owner, and replica identity. And what it must not
    have: nobody but its owner reads a partition past the policies of the whole."""
    statements = [_statement(f"REVOKE ALL ON {target} FROM {one}") for one in table.default_grantees]
    if table.user != table.owner:
        statements.append(_statement(f"ALTER TABLE {target} OWNER TO {identifier(table.owner)}"))
    if leaf and table.replica_identity in _REPLICA_IDENTITY:
        identity = _REPLICA_IDENTITY[table.replica_identity]
        statements.append(_statement(f"ALTER TABLE {target} REPLICA IDENTITY {identity}"))
    return tuple(statements)


def granted(default: Partition, target: str) -> tuple[Statement, ...]:
    """What others may do with a default partition, for its successor."""
    return tuple(
        _statement(
            f"GRANT {grant.privilege} ON {target} TO {grant.grantee}"
            + (" WITH GRANT OPTION" if grant.grantable else "")
        )
        for grant in default.grants
    )


def _attach(table: PartitionedTable, item: Wanted, *more: Lock) -> tuple[Statement, ...]:
    """The constraint that proved the bound has done its work; the table is locked anyhow, and nobody sees it yet."""
    target = qualified(table.schema, item.name)
    child = Lock(f"{table.schema}.{item.name}", ACCESS_EXCLUSIVE)
    return (
        _statement(
            f"ALTER TABLE {table.sql} ATTACH PARTITION {target} FOR VALUES {item.bounds}",
            Lock(table.full_name, SHARE_UPDATE_EXCLUSIVE),
            child,
            *more,
            *(Lock(key.referenced, SHARE_ROW_EXCLUSIVE) for key in table.foreign_keys),
        ),
        _statement(f"ALTER TABLE {target} DROP CONSTRAINT {BOUND}", child),
    )


def of_range(request: Request, window: Window, name: str) -> Wanted:
    """Without IS NOT NULL the server does not take a CHECK on a column that may be NULL as a proof."""
    column = identifier(request.column)
    where = condition(request.key, column, window)
    return Wanted(
        name,
        f"FROM ({request.key.sql(window.lo)}) TO ({request.key.sql(window.hi)})",
        where,
        f"{column} IS NOT NULL AND {where}",
        shown(request.key, window),
        window,
    )


def of_list(column: str, values: Sequence[str | None], name: str) -> Wanted:
    quoted, given = identifier(column), [literal(value) for value in values if value is not None]
    within = f"{quoted} IN ({', '.join(given)})" if given else ""
    null = f"{quoted} IS NULL" if None in values else ""
    where = " OR ".join(part for part in (within, null) if part)
    belongs = where if null else f"{quoted} IS NOT NULL AND {where}"
    listed = ", ".join([*given, *(["NULL"] if null else [])])
    return Wanted(name, f"IN ({listed})", f"({where})", belongs, f"values {listed}")


def of_hash(modulus: int, remainder: int, name: str) -> Wanted:
    """Which rows are its only the server knows; there is no default partition they could be in."""
    shown = f"remainder {remainder} of {modulus}"
    return Wanted(name, f"WITH (MODULUS {modulus}, REMAINDER {remainder})", "true", "true", shown)


def create(request: Request, facts: Facts, item: Wanted, default: Partition | None) -> list[Transaction]:
    scanned = () if default is None else (_exclusive(default, default.bytes),)
    return [
        _make(request, facts, item),
        Transaction(
            f"attach {item.name}",
            f"attach {facts.table.schema}.{item.name} for {item.shown}",
            _attach(facts.table, item, *scanned),
        ),
    ]


def _make(request: Request, facts: Facts, item: Wanted) -> Transaction:
    target = qualified(facts.table.schema, item.name)
    return Transaction(
        f"create {item.name}",
        f"make {facts.table.schema}.{item.name}, beside the table",
        (*discard_leftover(facts, item.name), *_tables(request, facts, item)),
        undo=(_unattached_drop(target),),
    )


def _tables(request: Request, facts: Facts, item: Wanted) -> tuple[Statement, ...]:
    """The partition, and below it its own, all of it beside the table."""
    below, table = request.below, facts.table
    if below is None:
        return new_table(facts, item.name, item.belongs)
    strategy = f" PARTITION BY {below.strategy.upper()} ({identifier(below.column)})"
    statements = list(new_table(facts, item.name, item.belongs, strategy))
    target = qualified(table.schema, item.name)
    for part in parts_below(below, item.name):
        own = qualified(table.schema, part.name)
        statements.append(_statement(f"CREATE TABLE {own} PARTITION OF {target} FOR VALUES {part.bounds}"))
        statements += as_the_table_has_them(table, own)
    return tuple(statements)


def parts_below(below: Below, name: str) -> list[Wanted]:
    """What a new partition of that name consists of."""
    if below.strategy == "list":
        return [of_list(below.column, values, f"{name}_{part}") for part, values in below.lists]
    return [of_hash(below.modulus, remainder, f"{name}_{remainder}") for remainder in range(below.modulus)]


def discard_leftover(facts: Facts, name: str) -> tuple[Statement, ...]:
    """The empty table that a killed run left: what the parent looks like may have changed since."""
    if not any(one.leftover and one.name == name for one in facts.namesakes):
        return ()
    lock = Lock(f"{facts.table.schema}.{name}", ACCESS_EXCLUSIVE)
    return (_statement(f"DROP TABLE {qualified(facts.table.schema, name)}", lock),)


def discard_successor(facts: Facts, default: Partition) -> list[Transaction]:
    name = successor(default.name)
    drop = discard_leftover(facts, name)
    return [Transaction(f"drop {name}", "an empty table that a killed run left", drop)] if drop else []


def _unattached_drop(target: str) -> Statement:
    """Drops a table unless it is a partition by now."""
    name = literal(target)
    return _statement(
        "DO $dbops$ BEGIN IF EXISTS (SELECT FROM pg_class"
        f" WHERE oid = to_regclass({name}) AND NOT relispartition) THEN DROP TABLE {target}; END IF; END $dbops$"
    )


def analyze(facts: Facts, created: Sequence[Wanted]) -> Transaction:
    """Without statistics the planner takes an empty table for ten pages, and autovacuum never analyzes the parent.
    Before 18 analyzing the parent analyzes every partition."""
    table = facts.table
    names = [f"{table.schema}.{item.name}" for item in created]
    if facts.version_num >= 180000:
        targets = [f"ONLY {table.sql}", *(qualified(table.schema, item.name) for item in created)]
    else:
        targets = [table.sql]
        names += [child.full_name for child in table.partitions]
    locks = (Lock(name, SHARE_UPDATE_EXCLUSIVE) for name in (table.full_name, *names))
    return Transaction(
        f"analyze {table.name}",
        "statistics of the new partitions and of the whole table",
        (_statement(f"ANALYZE {', '.join(targets)}", *locks, brief=False),),
        long=True,
    )


def guard(request: Request, default: Partition, guarded: Sequence[Wanted]) -> list[Transaction]:
    """One constraint for all windows: what is outside of the whole span is outside of each of them. It refuses rows of
    the span for as long as it is there, so it is used for the future only."""
    column = identifier(request.column)
    low = min(item.span.lo for item in guarded)
    high = max(item.span.hi for item in guarded)
    outside = []
    if low != MINVALUE:
        outside.append(f"{column} < {request.key.sql(low)}")
    if high != MAXVALUE:
        outside.append(f"{column} >= {request.key.sql(high)}")
    add = f"ALTER TABLE {default.sql} ADD CONSTRAINT {GUARD} CHECK ({' OR '.join(outside)}) NOT VALID"
    validate = f"ALTER TABLE {default.sql} VALIDATE CONSTRAINT {GUARD}"
    drop = f"ALTER TABLE {default.sql} DROP CONSTRAINT IF EXISTS {GUARD}"
    scan = Lock(default.full_name, SHARE_UPDATE_EXCLUSIVE, default.bytes)
    return [
        Transaction(
            "add dbops_guard",
            f"let {default.full_name} refuse rows of the new windows",
            (_statement(add, _exclusive(default)),),
            undo=(_statement(drop, _exclusive(default)),),
        ),
        Transaction(
            "validate dbops_guard",
            f"prove that {default.full_name} has none",
            (_statement(validate, scan, brief=False),),
            long=True,
        ),
    ]


def promote(request: Request, facts: Facts, default: Partition, item: Wanted) -> list[Transaction]:
    """The default partition becomes the partition of the window, and a new one its successor. No row moves."""
    table = facts.table
    new = successor(default.name)
    check = item.belongs
    add = f"ALTER TABLE {default.sql} ADD CONSTRAINT {BOUND} CHECK ({check}) NOT VALID"
    validate = f"ALTER TABLE {default.sql} VALIDATE CONSTRAINT {BOUND}"
    drop = f"ALTER TABLE {default.sql} DROP CONSTRAINT IF EXISTS {BOUND}"
    parent = Lock(table.full_name, ACCESS_EXCLUSIVE)
    weaker = tuple(Lock(key.referenced, SHARE_ROW_EXCLUSIVE) for key in table.foreign_keys)
    referenced = tuple(Lock(key.referenced, ACCESS_EXCLUSIVE) for key in table.foreign_keys)
    next_one = Lock(f"{default.schema}.{new}", ACCESS_EXCLUSIVE)
    grants = granted(default, qualified(default.schema, new))
    return [
        Transaction(
            f"create {new}",
            "make the next default partition, beside the table",
            (*discard_leftover(facts, item.name), *new_table(facts, new, "true"), *grants),
            undo=(_unattached_drop(qualified(default.schema, new)),),
        ),
        Transaction(
            f"add {BOUND}",
            f"let {default.full_name} refuse rows outside of {item.shown}",
            (_statement(add, _exclusive(default)),),
            undo=(_statement(drop, _exclusive(default)),),
        ),
        Transaction(
            f"validate {BOUND}",
            f"prove that {default.full_name} has none",
            (_statement(validate, Lock(default.full_name, SHARE_UPDATE_EXCLUSIVE, default.bytes), brief=False),),
            long=True,
        ),
        Transaction(
            f"promote {default.name}",
            f"{default.full_name} becomes {item.name}, the new one becomes the default partition",
            (
                _statement(f"LOCK TABLE ONLY {table.sql} IN ACCESS EXCLUSIVE MODE", parent),
                _statement(f"LOCK TABLE {default.sql} IN ACCESS EXCLUSIVE MODE", _exclusive(default)),
                _statement(f"ALTER TABLE {table.sql} DETACH PARTITION {default.sql}", *weaker),
                _statement(
                    f"ALTER TABLE {table.sql} ATTACH PARTITION {default.sql} FOR VALUES {item.bounds}", *referenced
                ),
                _statement(f"ALTER TABLE {default.sql} DROP CONSTRAINT {BOUND}", _exclusive(default)),
                _statement(f"ALTER TABLE {default.sql} RENAME TO {identifier(item.name)}", _exclusive(default)),
                _statement(
                    f"ALTER TABLE {qualified(default.schema, new)} RENAME TO {identifier(default.name)}", next_one
                ),
                _statement(f"ALTER TABLE {table.sql} ATTACH PARTITION {default.sql} DEFAULT", parent, next_one),
                _statement(f"ALTER TABLE {default.sql} DROP CONSTRAINT {BOUND}", next_one),
            ),
        ),
    ]


def successor(name: str) -> str:
    """The name of a default partition while it waits for its place."""
    return suffixed(name, "_dbops_next")


def move(request: Request, facts: Facts, default: Partition, item: Wanted) -> list[Transaction]:
    """Clients wait for as long as the rows take, and nobody ever misses one."""
    table = facts.table
    target = qualified(table.schema, item.name)
    columns = ", ".join(identifier(one.name) for one in table.columns if not one.generated)
    # Identity columns are plain ones in a partition, so values are inserted as they are.
    move = (
        f"WITH moved AS (DELETE FROM {default.sql} WHERE {item.where}"  # noqa: S608  quoted
        f" RETURNING {columns}) INSERT INTO {target} ({columns}) SELECT {columns} FROM moved"
    )
    parent = Lock(table.full_name, ACCESS_EXCLUSIVE)
    return [
        _make(request, facts, item),
        Transaction(
            f"move to {item.name}",
            f"move {facts.default_rows.rows(item.name)} rows from {default.full_name} and attach {target}",
            (
                _statement(f"LOCK TABLE ONLY {table.sql} IN ACCESS EXCLUSIVE MODE", parent),
                _statement(f"LOCK TABLE {default.sql} IN ACCESS EXCLUSIVE MODE", _exclusive(default)),
                _statement(
                    move, _exclusive(default, default.bytes), Lock(f"{table.schema}.{item.name}", ROW_EXCLUSIVE)
                ),
                *_attach(table, item, parent, _exclusive(default, default.bytes)),
            ),
        ),
    ]


def detach(facts: Facts, child: Partition) -> list[Transaction]:
    """Without anybody waiting where the server can (14, and no default partition), else under ACCESS EXCLUSIVE for
    milliseconds. Then nobody can write into the table any more, and it holds no table that it refers to."""
    table = facts.table
    parent, one = Lock(table.full_name, SHARE_UPDATE_EXCLUSIVE), Lock(child.full_name, SHARE_UPDATE_EXCLUSIVE)
    sql = f"ALTER TABLE {table.sql} DETACH PARTITION {child.sql}"
    summary = f"detach {child.full_name}, {child.bound}"
    if facts.version_num >= 140000 and table.default is None:
        statement = _statement(f"{sql} CONCURRENTLY", parent, _exclusive(child), brief=False)
        detached = Transaction(f"detach {child.name}", summary, (statement,), long=True, partition=child, work="detach")
    else:
        exclusive = Lock(table.full_name, ACCESS_EXCLUSIVE)
        default = (_exclusive(table.default),) if table.default is not None else ()
        referenced = tuple(Lock(key.referenced, SHARE_ROW_EXCLUSIVE) for key in table.foreign_keys)
        lock = _statement(f"LOCK TABLE ONLY {table.sql} IN ACCESS EXCLUSIVE MODE", exclusive)
        detached = Transaction(
            f"detach {child.name}",
            summary,
            (lock, _statement(sql, one if facts.version_num < 140000 else _exclusive(child), *default, *referenced)),
            partition=child,
            work="detach",
        )
    return [noted(facts, child), detached, *release(table, child)]


def noted(facts: Facts, child: Partition) -> Transaction:
    """Before it is detached, so that it is known what it was whenever a run is killed."""
    lock = Lock(child.full_name, SHARE_UPDATE_EXCLUSIVE)
    statement = _statement(mark(facts.table, child, facts.now_us), lock)
    return Transaction(f"mark {child.name}", f"note on {child.full_name} what it was", (statement,))


def finalize(table: PartitionedTable, child: Partition) -> tuple[Statement, ...]:
    return (
        _statement(
            f"ALTER TABLE {table.sql} DETACH PARTITION {child.sql} FINALIZE",
            Lock(table.full_name, SHARE_UPDATE_EXCLUSIVE),
            _exclusive(child),
        ),
    )


def release(table: PartitionedTable, one: Partition) -> list[Transaction]:
    """A foreign key of a detached table would still keep rows from being deleted elsewhere, or delete its own."""
    dropped = [
        Transaction(
            f"drop {key.name}",
            f"{one.full_name} no longer refers to {key.referenced}",
            (
                _statement(
                    f"ALTER TABLE {one.sql} DROP CONSTRAINT IF EXISTS {identifier(key.name)}",
                    Lock(one.full_name, ACCESS_EXCLUSIVE),
                    Lock(key.referenced, ACCESS_EXCLUSIVE),
                ),
            ),
        )
        for key in one.foreign_keys
    ]
    function = qualified(one.schema, READ_ONLY)
    body = literal("BEGIN RAISE 'table % was detached and is kept as it is', TG_RELID::regclass; END")
    statements = [
        _statement(f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS {body}"),
        _statement(f"ALTER FUNCTION {function}() OWNER TO {identifier(table.owner)}"),
    ]
    for schema, name in one.relations if one.kind != FOREIGN else ():  # which has no trigger for TRUNCATE before 16
        target, lock = qualified(schema, name), Lock(f"{schema}.{name}", SHARE_ROW_EXCLUSIVE)
        statements += [
            _statement(
                f"CREATE TRIGGER {READ_ONLY} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {target}"
                f" FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
                lock,
            ),
            _statement(f"ALTER TABLE {target} ENABLE ALWAYS TRIGGER {READ_ONLY}", lock),
        ]
    statements += [
        _statement(f"REVOKE {grant.privilege} ON {one.sql} FROM {grant.grantee}")
        for grant in one.grants
        if grant.privilege in _WRITES
    ]
    block = Transaction(f"block {one.name}", f"nobody can write into {one.full_name} any more", tuple(statements))
    return [*dropped, block]
