# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done so that a range-partitioned table has the windows it is to have: facts in, transactions out.

Pure: no IO, no clock. Every statement is text, with the locks it takes, so what check mode prints is what runs.

Why it is done in these steps, on 13 to 18:

* CREATE TABLE … PARTITION OF takes ACCESS EXCLUSIVE of the parent. A table made LIKE the parent and attached takes
  SHARE UPDATE EXCLUSIVE of it, which neither readers nor writers wait for.
* ATTACH reads the whole new partition, unless a CHECK constraint (``dbops_bound``) proves that its rows belong there,
  and the whole default partition under ACCESS EXCLUSIVE, unless one (``dbops_guard``) proves that it has none of them.
* A transaction that moves rows and attaches must lock the parent ACCESS EXCLUSIVE first. A query that waited for less
  has made its list of partitions already, and would see none of the moved rows; an insert would fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count

from .._core.operation import Check
from .locks import (
    ACCESS_EXCLUSIVE,
    ACCESS_SHARE,
    ROW_EXCLUSIVE,
    SHARE_ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
    Lock,
    Statement,
)
from .partition_bounds import DefaultBound, RangeBound, gaps, parse_bound, window_of
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
from .partition_keys import MAXVALUE, MINVALUE, Interval, Key, Position, Window, windows
from .quoting import identifier, literal, qualified

NAME_BYTES = 63
SCAN_LIMIT = 8 * 1024 * 1024
"""How many bytes of a default partition are read under ACCESS EXCLUSIVE at most: some ten milliseconds."""
TYPES = {
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "date": "date",
    "uuid": "uuid7",
}
"""The kind of key that a column of this type can only be. Integers have to be told."""
WRITES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
INTEGERS = ("smallint", "integer", "bigint")


@dataclass(frozen=True)
class Request:
    """``first``: a position in the first window wanted, None for the current one. ``partial``: refuse or fill, where an
    existing partition covers a part of a window. ``default_rows``: refuse, promote or move, where the default partition
    holds rows of one. ``move_limit``: rows."""

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


@dataclass(frozen=True)
class Wanted:
    window: Window
    name: str


@dataclass(frozen=True)
class Transaction:
    """Statements that take effect together. ``long``: one statement alone, which waits and works as long as it takes,
    because it keeps no client waiting. ``detaches``: the partition that is none any more afterwards."""

    name: str
    summary: str
    statements: tuple[Statement, ...]
    long: bool = False
    detaches: Partition | None = None
    undo: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Facts:
    """``current``: the position of now, or of the greatest value of an integer key."""

    table: PartitionedTable
    current: int
    default_rows: DefaultRows = field(default_factory=DefaultRows)
    namesakes: tuple[Namesake, ...] = ()
    detached: tuple[Detached, ...] = ()
    now_us: int = 0
    may_create: bool = True
    version_num: int = 0


@dataclass(frozen=True)
class Plan:
    checks: tuple[Check, ...]
    transactions: tuple[Transaction, ...]
    created: tuple[Wanted, ...] = ()
    expired: tuple[Partition, ...] = ()
    detached: tuple[Partition, ...] = ()


# ------------------------------------------------------------------------------------------------- before anything else


def check_table(table: PartitionedTable, column: str, key_kind: str | None) -> tuple[Check, ...]:
    """What has to hold before bounds can be read at all."""
    name = table.full_name
    owner = Check(
        "owner",
        "ok" if table.may_act_as_owner else "failed",
        f"{name} belongs to {table.owner}, and {table.user} may {'' if table.may_act_as_owner else 'not '}act for it",
        "the user may act as the owner of the table",
        f"GRANT {identifier(table.owner)} TO {identifier(table.user)}",
    )
    partman = Check(
        "partman",
        "failed" if table.partman else "ok",
        f"{name} is {'' if table.partman else 'not '}in pg_partman's part_config",
        "one manager of a table's partitions",
        "remove it there (it keeps its partitions), or leave it to pg_partman",
    )
    strategy = Check(
        "strategy",
        "ok" if table.strategy == "range" else "failed",
        f"{name} is partitioned by {table.strategy}" if table.strategy else f"{name} is not partitioned",
        "a table partitioned by range",
        "name the partitioned table itself, not one of its partitions",
    )
    return (owner, partman, strategy, _check_key(table, column, key_kind))


def _check_key(table: PartitionedTable, column: str, kind: str | None) -> Check:
    names = ", ".join(item.name if item else "an expression" for item in table.key)
    fits = len(table.key) == 1 and table.key[0] is not None and table.key[0].name == column
    found, remedy = f"the partition key of {table.full_name} is {names or 'nothing'}", f"give it as key: {names}"
    if fits and table.key[0] is not None:
        type_name = table.key[0].type
        only = TYPES.get(type_name)
        allowed = [only] if only else ["integer", "epoch", "snowflake"] if type_name in INTEGERS else []
        found = f"{found} {type_name}, and key_type is {kind or 'not given'}"
        remedy = f"give key_type: {' or '.join(allowed)}" if allowed else "such a key has no windows"
        fits = (kind in allowed) if kind else only is not None
    return Check(
        "key", "ok" if fits else "failed", found, f"partitioned by {column} alone, of the key_type given", remedy
    )


def key_kind(table: PartitionedTable, kind: str | None) -> str:
    """Of a table that check_table found good."""
    column = table.key[0]
    return kind or TYPES[column.type if column else ""]


# -------------------------------------------------------------------------------------------------------------- windows


def ranges(table: PartitionedTable, key: Key) -> dict[Window, Partition]:
    """The partitions but the default one. Raises ValueError where a bound is not of this key."""
    found = {}
    for child in table.partitions:
        bound = parse_bound(child.bound)
        if isinstance(bound, RangeBound):
            found[window_of(bound, key)] = child
        elif not isinstance(bound, DefaultBound):
            raise ValueError(f"{child.full_name} has the bound {child.bound}")
    return found


def wanted_windows(request: Request, table: PartitionedTable, current: int) -> tuple[list[Wanted], list[Check]]:
    """What is missing, and the checks of that. A window of which a part exists is wanted as the rest of it with
    ``partial: fill``, and refused without. One that ended before the retention is not wanted."""
    existing = ranges(table, request.key)
    cutoff = request.key.back(current, request.retention) if request.retention else MINVALUE
    taken = {child.name for child in table.partitions}
    missing: list[Wanted] = []
    overlaps = []
    ahead = 0
    for window in windows(request.key, request.interval, current if request.first is None else request.first):
        if window.hi <= cutoff:
            continue
        ahead += window.lo > current
        parts = gaps(existing, window)
        if parts and parts != [window]:
            overlaps.append(f"{_shown(request.key, window)} and {_names(existing, window)}")
        missing += [Wanted(part, _free(name_of(request, table, part), taken)) for part in parts]
        if window.hi > current and ahead >= request.premake:
            break
    partial = Check(
        "overlap",
        "failed" if overlaps and request.partial == "refuse" else "ok",
        "; ".join(overlaps) or "no window overlaps an existing partition in part",
        "each window is missing or covered as a whole",
        "correct interval or time_zone; or give partial_windows: fill, to add what is missing of such a window",
    )
    return missing, [partial, *_check_names(missing)]


def name_of(request: Request, table: PartitionedTable, window: Window) -> str:
    """By the template. Identity is the bound: the name of a partition that exists is never looked at."""
    key, low = request.key, int(window.lo)
    if not key.is_time:
        return request.template.format(table=table.name, start=low)
    wall = key.wall(low)
    # An hour that clocks show twice.
    return request.template.format(table=table.name, start=wall) + ("_2" if wall.fold else "")


def _free(name: str, taken: set[str]) -> str:
    """A rest of a window may begin when another partition's name says that it begins."""
    return next(one for one in chain([name], (f"{name}_{number}" for number in count(2))) if one not in taken)


def _check_names(missing: Sequence[Wanted]) -> list[Check]:
    long = [item.name for item in missing if len(item.name.encode()) > NAME_BYTES]
    names = [item.name for item in missing]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [
        Check(
            "name_length",
            "failed" if long else "ok",
            f"{', '.join(long)} longer than {NAME_BYTES} bytes" if long else "names are short enough",
            f"names of at most {NAME_BYTES} bytes",
            "give a shorter name_template",
        ),
        Check(
            "name_unique",
            "failed" if twice else "ok",
            f"more than one window would be called {', '.join(twice)}"
            if twice
            else "every window has a name of its own",
            "a name for each window",
            "put as much of the start into name_template as the interval needs, such as {start:%Y%m%d_%H%M}",
        ),
    ]


def _names(existing: dict[Window, Partition], window: Window) -> str:
    return ", ".join(f"{child.full_name} {child.bound}" for other, child in existing.items() if other.overlaps(window))


def _shown(key: Key, window: Window) -> str:
    return f"window {_text(key, window.lo)} to {_text(key, window.hi)}"


def _text(key: Key, position: Position) -> str:
    return key.sql(position) if isinstance(position, float) else key.text(position)


# ----------------------------------------------------------------------------------------------------------------- plan


def make_plan(request: Request, facts: Facts, missing: Sequence[Wanted]) -> Plan:
    default = facts.table.default
    checks = [_check_names_free(facts, missing), _check_schema(facts, bool(missing))]
    work = unfinished(facts)
    for constraint in (GUARD, BOUND):
        if default is not None and constraint in facts.default_rows.constraints:
            work.append(_drop_constraint(default, constraint, "left by a run that was killed"))
    inhabited = [item for item in missing if facts.default_rows.rows(item.window)]
    empty = [item for item in missing if item not in inhabited]
    if default is not None:
        checks.append(_check_default_rows(request, facts, inhabited))
        work += _discard_successor(facts, default)
        if inhabited and request.default_rows == "promote":
            work += _promote(request, facts, default, inhabited[0])
            default = replace(default, bytes=0)  # what is the default partition now is empty
        else:
            for item in inhabited:
                work += _move(request, facts, default, item)
    future = [item for item in empty if item.window.lo > facts.current]
    guarded = future if default is not None and default.bytes > SCAN_LIMIT else []
    unguarded = [item for item in empty if item not in guarded]
    checks.append(_check_scan(default, unguarded))
    for item in unguarded:
        work += _create(request, facts, item, default)
    if guarded and default is not None:
        work += _guard(request, default, guarded)
        for item in guarded:
            work += _create(request, facts, item, replace(default, bytes=0))
        work.append(_drop_constraint(default, GUARD, "its work is done"))
    if missing:
        work.append(_analyze(facts, missing))
    expired = expired_partitions(request, facts)
    leaving = expired if request.retention_action == "detach" else []
    for child in leaving:
        work += detach(facts, child)
    return Plan(tuple(checks), tuple(work), tuple(missing), tuple(expired), tuple(leaving))


def _check_names_free(facts: Facts, missing: Sequence[Wanted]) -> Check:
    taken = [item.name for item in facts.namesakes if not item.leftover and item.name in {one.name for one in missing}]
    schema = facts.table.schema
    return Check(
        "name_taken",
        "failed" if taken else "ok",
        f"{', '.join(f'{schema}.{name}' for name in taken)} exist and are no partitions of {facts.table.full_name}"
        if taken
        else "the names are free",
        "names that nothing else has",
        "rename what has them, attach it if it is meant to be the partition, or give another name_template",
    )


def _check_schema(facts: Facts, creating: bool) -> Check:
    bad = creating and not facts.may_create
    return Check(
        "create",
        "failed" if bad else "ok",
        f"{facts.table.user} may {'not ' if bad else ''}create tables in schema {facts.table.schema}",
        "CREATE on the schema",
        f"GRANT CREATE ON SCHEMA {identifier(facts.table.schema)} TO {identifier(facts.table.user)}",
    )


def _check_default_rows(request: Request, facts: Facts, inhabited: Sequence[Wanted]) -> Check:
    """Whether the rows of missing windows, which are in the default partition, can be dealt with as asked for."""
    default, rows, table = facts.table.default, facts.default_rows, facts.table
    name = default.full_name if default else ""
    shown = "; ".join(
        f"{name} holds {rows.rows(item.window)}{'+' if rows.rows(item.window) > request.move_limit else ''} rows of "
        f"{_shown(request.key, item.window)}"
        for item in inhabited
    )

    def check(bad: str, expected: str, remedy: str) -> Check:
        return Check("default_rows", "failed" if bad else "ok", bad or shown or "no rows in the way", expected, remedy)

    if not inhabited:
        return check("", "no rows of missing windows in the default partition", "")
    if request.default_rows == "promote":
        window = inhabited[0].window
        alone = (
            not rows.nulls and rows.lo is not None and rows.hi is not None and rows.lo in window and rows.hi in window
        )
        beyond = f"{name} holds rows from {_end(request, rows.lo)} to {_end(request, rows.hi)}" + (
            " and rows without a key" if rows.nulls else ""
        )
        return check(
            "" if alone else beyond,
            f"all rows of {name} belong to {_shown(request.key, window)}",
            "make the interval wide enough for them, or give default_rows: move",
        )
    if request.default_rows == "move":
        many = [item for item in inhabited if rows.rows(item.window) > request.move_limit]
        because = [f"{key.table} refers to {table.full_name} ({key.name})" for key in table.referencing]
        because += [f"trigger {trigger} fires on the rows" for trigger in table.row_triggers]
        because += [f"publication {publication} publishes the partitions" for publication in table.publications]
        return check(
            "; ".join(
                [
                    *(f"more than {request.move_limit} rows of {_shown(request.key, item.window)}" for item in many),
                    *because,
                ]
            ),
            f"at most {request.move_limit} rows of a window, and nothing that sees a moved row as deleted and inserted",
            "give default_rows: promote if all rows belong to one window, or raise move_limit, which writers wait for",
        )
    return check(
        shown,
        "no rows of missing windows in the default partition",
        "give default_rows: promote, if all its rows belong to one window, or default_rows: move, if they are few",
    )


def _end(request: Request, position: int | None) -> str:
    return "nothing" if position is None else request.key.text(position)


def _check_scan(default: Partition | None, unguarded: Sequence[Wanted]) -> Check:
    size = default.bytes if default is not None else 0
    bad = bool(unguarded) and size > SCAN_LIMIT
    return Check(
        "default_scan",
        "failed" if bad else "ok",
        f"{default.full_name} has {size} bytes; not wholly in the future: {', '.join(item.name for item in unguarded)}"
        if bad and default
        else "no long scan under a lock",
        f"at most {SCAN_LIMIT} bytes of the default partition are read while clients wait",
        "let the partitions begin later (start), before which rows go on into the default partition; or empty it first",
    )


# --------------------------------------------------------------------------------------------------------- transactions


def _statement(sql: str, *locks: Lock, brief: bool = True) -> Statement:
    return Statement(sql, locks, brief)


def _exclusive(partition: Partition, scanned: int = 0) -> Lock:
    return Lock(partition.full_name, ACCESS_EXCLUSIVE, scanned)


def _drop_constraint(partition: Partition, name: str, why: str) -> Transaction:
    sql = f"ALTER TABLE {partition.sql} DROP CONSTRAINT IF EXISTS {name}"
    return Transaction(
        f"drop {name}", f"{why}: {name} of {partition.full_name}", (_statement(sql, _exclusive(partition)),)
    )


def _new_table(facts: Facts, name: str, check: str) -> tuple[Statement, ...]:
    """A table made to become a partition. Identity is left out: a child with one of its own cannot be attached (17)."""
    table = facts.table
    target = qualified(table.schema, name)
    constraint = f", CONSTRAINT {BOUND} CHECK ({check})" if check else ""
    like = f"CREATE TABLE {target} (LIKE {table.sql} INCLUDING ALL EXCLUDING IDENTITY{constraint})"
    statements = [_statement(like, Lock(table.full_name, ACCESS_SHARE))]
    if table.user != table.owner:
        statements.append(_statement(f"ALTER TABLE {target} OWNER TO {identifier(table.owner)}"))
    identity = {"f": "FULL", "n": "NOTHING"}.get(table.replica_identity)
    if identity:
        statements.append(_statement(f"ALTER TABLE {target} REPLICA IDENTITY {identity}"))
    return tuple(statements)


def _attach(request: Request, table: PartitionedTable, name: str, window: Window, *more: Lock) -> tuple[Statement, ...]:
    """The constraint that proved the bound has done its work; the table is locked anyhow, and nobody sees it yet."""
    target = qualified(table.schema, name)
    bounds = f"FROM ({request.key.sql(window.lo)}) TO ({request.key.sql(window.hi)})"
    child = Lock(f"{table.schema}.{name}", ACCESS_EXCLUSIVE)
    return (
        _statement(
            f"ALTER TABLE {table.sql} ATTACH PARTITION {target} FOR VALUES {bounds}",
            Lock(table.full_name, SHARE_UPDATE_EXCLUSIVE),
            child,
            *more,
            *(Lock(key.referenced, SHARE_ROW_EXCLUSIVE) for key in table.foreign_keys),
        ),
        _statement(f"ALTER TABLE {target} DROP CONSTRAINT {BOUND}", child),
    )


def _belongs(request: Request, window: Window) -> str:
    """Without IS NOT NULL the server does not take a CHECK on a column that may be NULL as a proof."""
    column = identifier(request.column)
    return f"{column} IS NOT NULL AND {condition(request.key, column, window)}"


def _create(request: Request, facts: Facts, item: Wanted, default: Partition | None) -> list[Transaction]:
    scanned = () if default is None else (_exclusive(default, default.bytes),)
    return [
        _make(request, facts, item),
        Transaction(
            f"attach {item.name}",
            f"attach {facts.table.schema}.{item.name} for the {_shown(request.key, item.window)}",
            _attach(request, facts.table, item.name, item.window, *scanned),
        ),
    ]


def _make(request: Request, facts: Facts, item: Wanted) -> Transaction:
    target = qualified(facts.table.schema, item.name)
    return Transaction(
        f"create {item.name}",
        f"make {facts.table.schema}.{item.name}, beside the table",
        (*_discard(facts, item.name), *_new_table(facts, item.name, _belongs(request, item.window))),
        undo=(_unattached_drop(target),),
    )


def _discard(facts: Facts, name: str) -> tuple[Statement, ...]:
    """The empty table that a killed run left: what the parent looks like may have changed since."""
    if not any(one.leftover and one.name == name for one in facts.namesakes):
        return ()
    lock = Lock(f"{facts.table.schema}.{name}", ACCESS_EXCLUSIVE)
    return (_statement(f"DROP TABLE {qualified(facts.table.schema, name)}", lock),)


def _discard_successor(facts: Facts, default: Partition) -> list[Transaction]:
    name = _successor(default.name)
    drop = _discard(facts, name)
    return [Transaction(f"drop {name}", "an empty table that a killed run left", drop)] if drop else []


def _unattached_drop(target: str) -> Statement:
    """Drops a table unless it is a partition by now."""
    name = literal(target)
    return _statement(
        "DO $dbops$ BEGIN IF EXISTS (SELECT FROM pg_class"
        f" WHERE oid = to_regclass({name}) AND NOT relispartition) THEN DROP TABLE {target}; END IF; END $dbops$"
    )


def _analyze(facts: Facts, created: Sequence[Wanted]) -> Transaction:
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


def _guard(request: Request, default: Partition, guarded: Sequence[Wanted]) -> list[Transaction]:
    """One constraint for all windows: what is outside of the whole span is outside of each of them. It refuses rows of
    the span for as long as it is there, so it is used for the future only."""
    column = identifier(request.column)
    low = min(item.window.lo for item in guarded)
    high = max(item.window.hi for item in guarded)
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


def _promote(request: Request, facts: Facts, default: Partition, item: Wanted) -> list[Transaction]:
    """The default partition becomes the partition of the window, and a new one its successor. No row moves."""
    table = facts.table
    new = _successor(default.name)
    check = _belongs(request, item.window)
    add = f"ALTER TABLE {default.sql} ADD CONSTRAINT {BOUND} CHECK ({check}) NOT VALID"
    validate = f"ALTER TABLE {default.sql} VALIDATE CONSTRAINT {BOUND}"
    drop = f"ALTER TABLE {default.sql} DROP CONSTRAINT IF EXISTS {BOUND}"
    parent = Lock(table.full_name, ACCESS_EXCLUSIVE)
    successor = Lock(f"{default.schema}.{new}", ACCESS_EXCLUSIVE)
    grants = tuple(
        _statement(
            f"GRANT {grant.privilege} ON {qualified(default.schema, new)} TO {grant.grantee}"
            + (" WITH GRANT OPTION" if grant.grantable else "")
        )
        for grant in default.grants
    )
    window = f"FROM ({request.key.sql(item.window.lo)}) TO ({request.key.sql(item.window.hi)})"
    return [
        Transaction(
            f"create {new}",
            "make the next default partition, beside the table",
            (*_discard(facts, item.name), *_new_table(facts, new, "true"), *grants),
            undo=(_unattached_drop(qualified(default.schema, new)),),
        ),
        Transaction(
            f"add {BOUND}",
            f"let {default.full_name} refuse rows outside of the {_shown(request.key, item.window)}",
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
                _statement(f"ALTER TABLE {table.sql} DETACH PARTITION {default.sql}", parent, _exclusive(default)),
                _statement(f"ALTER TABLE {table.sql} ATTACH PARTITION {default.sql} FOR VALUES {window}", parent),
                _statement(f"ALTER TABLE {default.sql} DROP CONSTRAINT {BOUND}", _exclusive(default)),
                _statement(f"ALTER TABLE {default.sql} RENAME TO {identifier(item.name)}", _exclusive(default)),
                _statement(
                    f"ALTER TABLE {qualified(default.schema, new)} RENAME TO {identifier(default.name)}", successor
                ),
                _statement(f"ALTER TABLE {table.sql} ATTACH PARTITION {default.sql} DEFAULT", parent, successor),
                _statement(f"ALTER TABLE {default.sql} DROP CONSTRAINT {BOUND}", successor),
            ),
        ),
    ]


def _successor(name: str) -> str:
    """The name of a default partition while it waits for its place."""
    suffix = "_dbops_next"
    return name.encode()[: NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix


def _move(request: Request, facts: Facts, default: Partition, item: Wanted) -> list[Transaction]:
    """Clients wait for as long as the rows take, and nobody ever misses one."""
    table = facts.table
    target = qualified(table.schema, item.name)
    column = identifier(request.column)
    columns = ", ".join(identifier(one.name) for one in table.columns if not one.generated)
    # Identity columns are plain ones in a partition, so values are inserted as they are.
    move = (
        f"WITH moved AS (DELETE FROM {default.sql} WHERE {condition(request.key, column, item.window)}"  # noqa: S608  quoted
        f" RETURNING {columns}) INSERT INTO {target} ({columns}) SELECT {columns} FROM moved"
    )
    parent = Lock(table.full_name, ACCESS_EXCLUSIVE)
    return [
        _make(request, facts, item),
        Transaction(
            f"move to {item.name}",
            f"move {facts.default_rows.rows(item.window)} rows from {default.full_name} and attach {target}",
            (
                _statement(f"LOCK TABLE ONLY {table.sql} IN ACCESS EXCLUSIVE MODE", parent),
                _statement(f"LOCK TABLE {default.sql} IN ACCESS EXCLUSIVE MODE", _exclusive(default)),
                _statement(
                    move, _exclusive(default, default.bytes), Lock(f"{table.schema}.{item.name}", ROW_EXCLUSIVE)
                ),
                *_attach(request, table, item.name, item.window, parent, _exclusive(default, default.bytes)),
            ),
        ),
    ]


def names_to_look_up(table: PartitionedTable, missing: Iterable[Wanted]) -> list[str]:
    """Of which the runner has to know whether something has them."""
    names = [item.name for item in missing]
    return [*names, _successor(table.default.name)] if table.default is not None else names


def check_interval(key: Key, interval: Interval) -> Check:
    steps, hours = interval.unit == "step", interval.unit == "hour"
    bad = steps == key.is_time or (hours and key.kind == "date")
    return Check(
        "interval",
        "failed" if bad else "ok",
        f"interval {interval} and a key of type {key.kind}",
        "a number alone for an integer key, a calendar unit for one that holds a time, at least a day for a date",
        "correct interval or key_type",
    )


def warnings(table: PartitionedTable, plan: Plan) -> list[str]:
    if not plan.created or not table.publications:
        return []
    names = ", ".join(item.name for item in plan.created)
    return [
        f"publication {', '.join(table.publications)} publishes partitions under their own names: make {names} on the "
        "subscribers and refresh the subscription before rows come, or set publish_via_partition_root"
    ]


# --------------------------------------------------------------------------------------------------------------- detach


def expired_partitions(request: Request, facts: Facts) -> list[Partition]:
    """Those that end, by their real bound, before the retention; oldest first. The default one never does."""
    if request.retention is None:
        return []
    cutoff = request.key.back(facts.current, request.retention)
    found = ranges(facts.table, request.key)
    return [child for window, child in sorted(found.items(), key=lambda item: item[0]) if window.hi <= cutoff]


def unfinished(facts: Facts) -> list[Transaction]:
    """What a run that was killed while it detached has left to do. As long as one partition is being detached no other
    can be."""
    work = []
    for child in facts.table.partitions:
        if child.pending:
            summary = f"end the detaching of {child.full_name} that was begun"
            end = finalize(facts.table, child)
            work.append(Transaction(f"finalize {child.name}", summary, end, detaches=child))
            work += _released(facts.table, child)
    for one in facts.detached:
        if not one.blocked or one.table.foreign_keys:
            work += _released(facts.table, one.table)
    return work


def check_detach(table: PartitionedTable, key: Key, current: int, name: str) -> Check:
    """Whether the partition of that name may be detached."""
    child = named(table, name)
    window = {partition: window for window, partition in ranges(table, key).items()}.get(child) if child else None
    bad = ""
    if child is None:
        bad = f"{name} is no partition of {table.full_name}"
    elif window is None:
        bad = f"{child.full_name} is the default partition"
    elif current in window:
        bad = f"{child.full_name} {child.bound} is the current partition"
    return Check(
        "partition",
        "failed" if bad else "ok",
        bad or f"{name} is a partition of {table.full_name}",
        "a partition that clients do not write into now",
        "name another one",
    )


def named(table: PartitionedTable, name: str) -> Partition | None:
    return next((child for child in table.partitions if name in (child.name, child.full_name)), None)


def detach(facts: Facts, child: Partition) -> list[Transaction]:
    """Without anybody waiting where the server can (14, and no default partition), else under ACCESS EXCLUSIVE for
    milliseconds. Then nobody can write into the table any more, and it holds no table that it refers to."""
    table = facts.table
    parent, one = Lock(table.full_name, SHARE_UPDATE_EXCLUSIVE), Lock(child.full_name, SHARE_UPDATE_EXCLUSIVE)
    marked = Transaction(
        f"mark {child.name}",
        f"note on {child.full_name} what it was",
        (_statement(mark(table, child, facts.now_us), one),),
    )
    sql = f"ALTER TABLE {table.sql} DETACH PARTITION {child.sql}"
    summary = f"detach {child.full_name}, {child.bound}"
    if facts.version_num >= 140000 and table.default is None:
        statement = _statement(f"{sql} CONCURRENTLY", parent, _exclusive(child), brief=False)
        detached = Transaction(f"detach {child.name}", summary, (statement,), long=True, detaches=child)
    else:
        exclusive = Lock(table.full_name, ACCESS_EXCLUSIVE)
        default = (_exclusive(table.default),) if table.default is not None else ()
        referenced = tuple(Lock(key.referenced, SHARE_ROW_EXCLUSIVE) for key in table.foreign_keys)
        lock = _statement(f"LOCK TABLE ONLY {table.sql} IN ACCESS EXCLUSIVE MODE", exclusive)
        detached = Transaction(
            f"detach {child.name}",
            summary,
            (lock, _statement(sql, one if facts.version_num < 140000 else _exclusive(child), *default, *referenced)),
            detaches=child,
        )
    return [marked, detached, *_released(table, child)]


def finalize(table: PartitionedTable, child: Partition) -> tuple[Statement, ...]:
    return (
        _statement(
            f"ALTER TABLE {table.sql} DETACH PARTITION {child.sql} FINALIZE",
            Lock(table.full_name, SHARE_UPDATE_EXCLUSIVE),
            _exclusive(child),
        ),
    )


def _released(table: PartitionedTable, one: Partition) -> list[Transaction]:
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
    for schema, name in one.relations:
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
        if grant.privilege in WRITES
    ]
    block = Transaction(f"block {one.name}", f"nobody can write into {one.full_name} any more", tuple(statements))
    return [*dropped, block]
