# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rebuild a default partition that holds rows of many windows, while clients read and write it.

A shadow table has the new partitions and a new default one. Triggers on the old default partition keep the shadow up to
date, then the old rows are copied in batches, both are compared in one snapshot, and one transaction that changes the
catalog alone puts the new partitions in the place of the old one. The old one is kept.

Why no row is lost or doubled: CREATE TRIGGER waits for every transaction that wrote before it, so every later change is
mirrored. A batch locks its rows FOR SHARE: a row that is changed meanwhile is either read after the change, or its
change waits for the batch and is mirrored over it. And the comparison says whether it was so.

Why nobody misses a row: until the cutover everybody sees the old partition alone, and the cutover locks the parent
ACCESS EXCLUSIVE first, so a query has either not made its list of partitions or has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .locks import ACCESS_EXCLUSIVE, ACCESS_SHARE, ROW_EXCLUSIVE, ROW_SHARE, SHARE_ROW_EXCLUSIVE, Lock, Statement
from .partition_archive import rows_and_hash
from .partition_catalog import BOUND, MIRROR, SHADOW, Partition, PartitionedTable, mark
from .partition_keys import DAY, Key
from .partition_steps import (
    Facts,
    Request,
    Transaction,
    Wanted,
    as_the_table_has_them,
    discard_leftover,
    granted,
    new_table,
    release,
    successor,
)
from .quoting import identifier, literal, qualified, suffixed


def shadow_name(table: PartitionedTable) -> str:
    return suffixed(table.name, SHADOW)


def retired_name(default: Partition, now_us: int) -> str:
    """Under which the old default partition is kept, with the day."""
    day = Key("date").text(now_us // DAY).replace("-", "")
    return suffixed(default.name, f"_retired_{day}")


def rebuild(request: Request, facts: Facts, default: Partition, items: Sequence[Wanted]) -> list[Transaction]:
    """The default partition's rows of these windows become partitions; the others stay in a new default partition."""
    table = facts.table
    return [
        _make(request, facts, default, items),
        _mirror(table, default),
        _copy(table, default),
        _compare(table, default),
        _cut_over(request, facts, default, items),
        *release(table, _retired(facts, default)),
    ]


def discard(facts: Facts, default: Partition) -> Transaction:
    """What a run that was killed has left of it. The rebuilding begins anew."""
    table = facts.table
    return Transaction(
        f"discard {shadow_name(table)}",
        f"take away the triggers on {default.full_name} and the copy that a killed run left",
        _taken_away(table, default),
    )


def batch(table: PartitionedTable, default: Partition, *, first: bool) -> str:
    """Copies the next rows in the order of the primary key; returns their number and the last one's key. Parameters:
    the key of the row to begin after, if it is not the first batch, and how many."""
    key = [identifier(column.name) for column in table.primary_key]
    after = "" if first else _after(table)
    columns = _columns(table)
    last = ", ".join(f"{name}::text" for name in key)
    order = ", ".join(f"{name} DESC" for name in key)
    return (
        f"WITH batch AS (SELECT {columns} FROM {default.sql} {after} ORDER BY {', '.join(key)} LIMIT %s FOR SHARE),"  # noqa: S608  quoted identifiers
        f" copied AS (INSERT INTO {_shadow(table)} ({columns}) SELECT {columns} FROM batch ON CONFLICT DO NOTHING)"
        f" SELECT count(*) OVER () AS rows, {last} FROM batch ORDER BY {order} LIMIT 1"
    )


def more(table: PartitionedTable, default: Partition, *, first: bool) -> str:
    """Whether there are rows after the one whose key is the parameter."""
    return f"SELECT EXISTS (SELECT FROM {default.sql} {'' if first else _after(table)})"  # noqa: S608  quoted identifiers


def _after(table: PartitionedTable) -> str:
    key = ", ".join(identifier(column.name) for column in table.primary_key)
    return f"WHERE ({key}) > ({', '.join(f'%s::{column.type}' for column in table.primary_key)})"


def comparison(table: PartitionedTable, default: Partition) -> str:
    """A row for the old and one for the new, each with the number of rows and their hash."""
    old, new = (
        rows_and_hash(f"(SELECT {_columns(table)} FROM {place})")  # noqa: S608  quoted identifiers
        for place in (default.sql, _shadow(table))
    )
    return f"{old} UNION ALL {new}"


# --------------------------------------------------------------------------------------------------------- transactions


def _shadow(table: PartitionedTable) -> str:
    return qualified(table.schema, shadow_name(table))


def _columns(table: PartitionedTable) -> str:
    return ", ".join(identifier(column.name) for column in table.columns if not column.generated)


def _make(request: Request, facts: Facts, default: Partition, items: Sequence[Wanted]) -> Transaction:
    """All of it in one transaction, so that a killed run leaves all or nothing. The constraints say what the cutover
    would otherwise have to find out by reading, under a lock."""
    table, shadow = facts.table, _shadow(facts.table)
    column = identifier(request.column)
    like = new_table(facts, shadow_name(table), "", f" PARTITION BY {request.strategy.upper()} ({column})")
    statements = [*(drop for item in items for drop in discard_leftover(facts, item.name)), *like]
    for key in table.foreign_keys:
        sql = f"ALTER TABLE {shadow} ADD CONSTRAINT {identifier(key.name)} {key.definition}"
        statements.append(Statement(sql, (Lock(key.referenced, SHARE_ROW_EXCLUSIVE),)))
    outside = [f"({facts.default_rows.bound})"] if facts.default_rows.bound else []
    for item in items:
        statements += _part(table, item.name, f"FOR VALUES {item.bounds}", item.belongs)
        outside.append(f"NOT ({item.belongs})")
    statements += _part(table, successor(default.name), "DEFAULT", " AND ".join(outside))
    statements += granted(default, qualified(table.schema, successor(default.name)))
    return Transaction(
        f"create {shadow_name(table)}",
        f"make {', '.join(item.name for item in items)} and the next default partition, beside the table",
        tuple(statements),
        undo=_taken_away(table, default),
    )


def _part(table: PartitionedTable, name: str, bound: str, check: str) -> list[Statement]:
    target = qualified(table.schema, name)
    return [
        Statement(f"CREATE TABLE {target} PARTITION OF {_shadow(table)} (CONSTRAINT {BOUND} CHECK ({check})) {bound}"),
        *as_the_table_has_them(table, target),
    ]


def _mirror(table: PartitionedTable, default: Partition) -> Transaction:
    """The triggers fire for everybody, also for whoever writes what it got by replication."""
    shadow, lock = _shadow(table), Lock(default.full_name, SHARE_ROW_EXCLUSIVE)
    key = [identifier(column.name) for column in table.primary_key]
    names = [identifier(column.name) for column in table.columns if not column.generated]
    old, new = (", ".join(f"{row}.{name}" for name in key) for row in ("OLD", "NEW"))
    rest = [f"{name} = EXCLUDED.{name}" for name in names if name not in key]
    body = (
        f"BEGIN IF TG_OP = 'TRUNCATE' THEN TRUNCATE {shadow}; RETURN NULL; END IF;"  # noqa: S608  quoted identifiers
        f" IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND ({old}) IS DISTINCT FROM ({new})) THEN"
        f" DELETE FROM {shadow} WHERE ({', '.join(key)}) = ({old}); END IF;"
        f" IF TG_OP <> 'DELETE' THEN INSERT INTO {shadow} ({', '.join(names)})"
        f" VALUES ({', '.join(f'NEW.{name}' for name in names)}) ON CONFLICT ({', '.join(key)})"
        f" DO {'UPDATE SET ' + ', '.join(rest) if rest else 'NOTHING'}; END IF; RETURN NULL; END"
    )
    return Transaction(
        f"mirror {default.name}",
        f"every change of {default.full_name} is made in {shadow_name(table)} too, from now on",
        (
            Statement(
                f"CREATE FUNCTION {shadow}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
                f" SET search_path = pg_catalog, pg_temp AS {literal(body)}"
            ),
            Statement(f"ALTER FUNCTION {shadow}() OWNER TO {identifier(table.owner)}"),
            Statement(
                f"CREATE TRIGGER {MIRROR} AFTER INSERT OR UPDATE OR DELETE ON {default.sql}"
                f" FOR EACH ROW EXECUTE FUNCTION {shadow}()",
                (lock,),
            ),
            Statement(
                f"CREATE TRIGGER {MIRROR}_truncate AFTER TRUNCATE ON {default.sql}"
                f" FOR EACH STATEMENT EXECUTE FUNCTION {shadow}()",
                (lock,),
            ),
            Statement(f"ALTER TABLE {default.sql} ENABLE ALWAYS TRIGGER {MIRROR}", (lock,)),
            Statement(f"ALTER TABLE {default.sql} ENABLE ALWAYS TRIGGER {MIRROR}_truncate", (lock,)),
        ),
    )


def _copy(table: PartitionedTable, default: Partition) -> Transaction:
    lock = Lock(default.full_name, ROW_SHARE, default.bytes)
    sql = batch(table, default, first=True)
    statement = Statement(sql, (lock, Lock(f"{table.schema}.{shadow_name(table)}", ROW_EXCLUSIVE)), brief=False)
    return Transaction(f"copy {default.name}", "copy the rows in batches", (statement,), long=True, work="copy")


def _compare(table: PartitionedTable, default: Partition) -> Transaction:
    lock = Lock(default.full_name, ACCESS_SHARE, default.bytes)
    statement = Statement(comparison(table, default), (lock,), brief=False)
    return Transaction(
        f"compare {default.name}",
        "both hold the same rows, in one snapshot",
        (statement,),
        long=True,
        work="compare",
    )


def _retired(facts: Facts, default: Partition) -> Partition:
    name = retired_name(default, facts.now_us)
    return replace(default, name=name, relations=((default.schema, name),))


def _cut_over(request: Request, facts: Facts, default: Partition, items: Sequence[Wanted]) -> Transaction:
    table, shadow = facts.table, _shadow(facts.table)
    new, retired = successor(default.name), _retired(facts, default)
    parent, old = Lock(table.full_name, ACCESS_EXCLUSIVE), Lock(default.full_name, ACCESS_EXCLUSIVE)
    referenced = tuple(Lock(key.referenced, ACCESS_EXCLUSIVE) for key in table.foreign_keys)
    weaker = tuple(Lock(key.referenced, SHARE_ROW_EXCLUSIVE) for key in table.foreign_keys)
    statements = [
        Statement(f"LOCK TABLE ONLY {table.sql} IN ACCESS EXCLUSIVE MODE", (parent,)),
        Statement(f"LOCK TABLE {default.sql} IN ACCESS EXCLUSIVE MODE", (old,)),
        Statement(f"DROP TRIGGER {MIRROR} ON {default.sql}"),
        Statement(f"DROP TRIGGER {MIRROR}_truncate ON {default.sql}"),
        Statement(f"ALTER TABLE {table.sql} DETACH PARTITION {default.sql}", weaker),
    ]
    parts = [*(item.name for item in items), new]
    tree = (Lock(f"{table.schema}.{name}", ACCESS_EXCLUSIVE) for name in (shadow_name(table), *parts))
    statements.append(Statement(f"LOCK TABLE {shadow} IN ACCESS EXCLUSIVE MODE", tuple(tree)))
    statements += [
        Statement(f"ALTER TABLE {shadow} DETACH PARTITION {qualified(table.schema, name)}") for name in parts
    ]
    statements += [
        Statement(f"ALTER TABLE {default.sql} RENAME TO {identifier(retired.name)}"),
        Statement(mark(table, replace(retired, bound=default.bound), facts.now_us)),
        Statement(f"ALTER TABLE {qualified(table.schema, new)} RENAME TO {identifier(default.name)}"),
        Statement(f"ALTER TABLE {table.sql} ATTACH PARTITION {default.sql} DEFAULT", (parent, *referenced)),
    ]
    for item in items:
        target = qualified(table.schema, item.name)
        statements += [
            Statement(f"ALTER TABLE {table.sql} ATTACH PARTITION {target} FOR VALUES {item.bounds}"),
            Statement(f"ALTER TABLE {target} DROP CONSTRAINT {BOUND}"),
        ]
    statements += [
        Statement(f"ALTER TABLE {default.sql} DROP CONSTRAINT {BOUND}"),
        Statement(f"DROP TABLE {shadow}"),
        Statement(f"DROP FUNCTION {shadow}()"),
    ]
    return Transaction(
        f"cut over {default.name}",
        f"the new partitions take the place of {default.full_name}, which is kept as {retired.name}",
        tuple(statements),
    )


def _taken_away(table: PartitionedTable, default: Partition) -> tuple[Statement, ...]:
    shadow, lock = _shadow(table), Lock(default.full_name, ACCESS_EXCLUSIVE)
    return (
        Statement(f"DROP TRIGGER IF EXISTS {MIRROR} ON {default.sql}", (lock,)),
        Statement(f"DROP TRIGGER IF EXISTS {MIRROR}_truncate ON {default.sql}", (lock,)),
        Statement(f"DROP FUNCTION IF EXISTS {shadow}()"),
        Statement(f"DROP TABLE IF EXISTS {shadow}"),
    )
