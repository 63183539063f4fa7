# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done so that a range-partitioned table has the windows it is to have: facts in, transactions out.

Pure: no IO, no clock. Every statement is text, with the locks it takes, so what check mode prints is what runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from itertools import chain, count, islice

from .._core.errors import DbopsError
from .._core.operation import Check
from .partition_archive import archive_of, due
from .partition_bounds import DefaultBound, Edge, HashBound, ListBound, RangeBound, gaps, parse_bound, window_of
from .partition_catalog import BOUND, GUARD, Partition, PartitionedTable
from .partition_keys import MINVALUE, Interval, Key, Window, windows
from .partition_shadow import discard, rebuild, retired_name
from .partition_steps import (
    FOREIGN,
    Facts,
    Request,
    Transaction,
    Wanted,
    analyze,
    create,
    detach,
    discard_successor,
    drop_constraint,
    finalize,
    guard,
    move,
    noted,
    of_hash,
    of_list,
    of_range,
    parts_below,
    promote,
    release,
    shown,
    successor,
)
from .quoting import NAME_BYTES, identifier

SCAN_LIMIT = 8 * 1024 * 1024
"""How many bytes of a default partition are read under ACCESS EXCLUSIVE at most: some ten milliseconds."""
TYPES = {
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "date": "date",
    "uuid": "uuid7",
}
"""The kind of key that a column of this type can only be. Integers have to be told."""
INTEGERS = ("smallint", "integer", "bigint")


@dataclass(frozen=True)
class Plan:
    checks: tuple[Check, ...]
    transactions: tuple[Transaction, ...]
    created: tuple[Wanted, ...] = ()
    expired: tuple[Partition, ...] = ()
    detached: tuple[Partition, ...] = ()
    dropped: tuple[Partition, ...] = ()


def check_table(
    table: PartitionedTable, column: str, key_kind: str | None, strategy: str = "range"
) -> tuple[Check, ...]:
    """What has to hold before bounds can be read at all."""
    name = table.full_name
    default = table.default
    strange = default is not None and not default.may_act_as_owner
    owner = Check(
        "owner",
        "ok" if table.may_act_as_owner and not strange else "failed",
        f"{name} belongs to {table.owner}, and {table.user} may {'' if table.may_act_as_owner else 'not '}act for it"
        + (f"; its default partition {default.full_name} belongs to somebody else" if default and strange else ""),
        "the user may act as the owner of the table and of its default partition",
        f"GRANT {identifier(table.owner)} TO {identifier(table.user)}, and let both belong to that role",
    )
    if table.partman is None:
        found = f"pg_partman is installed, and {table.user} may not read its part_config"
        remedy = f"GRANT USAGE on its schema and SELECT on its part_config to {identifier(table.user)}"
    else:
        found = f"{name} is {'' if table.partman else 'not '}in pg_partman's part_config"
        remedy = "remove it there (it keeps its partitions), or leave it to pg_partman"
    partman = Check(
        "partman", "ok" if table.partman is False else "failed", found, "one manager of a table's partitions", remedy
    )
    by = Check(
        "strategy",
        "ok" if table.strategy == strategy else "failed",
        f"{name} is partitioned by {table.strategy}" if table.strategy else f"{name} is not partitioned",
        f"a table partitioned by {strategy}",
        "name the partitioned table itself, not a partition of it; a range has interval, a list lists, a hash modulus",
    )
    return (owner, partman, by, _check_key(table, column, key_kind, strategy))


def _check_key(table: PartitionedTable, column: str, kind: str | None, strategy: str) -> Check:
    names = ", ".join(item.name if item else "an expression" for item in table.key)
    fits = len(table.key) == 1 and table.key[0] is not None and table.key[0].name == column
    found, remedy = f"the partition key of {table.full_name} is {names or 'nothing'}", f"give it as key: {names}"
    if strategy != "range":
        return Check("key", "ok" if fits else "failed", found, f"partitioned by {column} alone", remedy)
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


def check_numbers(numbers: dict[str, int | None]) -> Check:
    """Options that count something: none is negative, and a modulus is at least 1."""
    bad = [
        name for name, value in numbers.items() if value is not None and value < (1 if name.endswith("modulus") else 0)
    ]
    return Check(
        "numbers",
        "failed" if bad else "ok",
        ", ".join(f"{name} {numbers[name]}" for name in bad) or "no number is too small",
        "numbers that are not negative, and a modulus of at least 1",
        "correct them",
    )


def check_interval(key: Key, interval: Interval, name: str = "interval") -> Check:
    """A number alone, of a key that holds a time, would be so many microseconds."""
    steps, hours = interval.unit == "step", interval.unit == "hour"
    bad = steps == key.is_time or (hours and key.kind == "date")
    return Check(
        name,
        "failed" if bad else "ok",
        f"{name} {interval} and a key of type {key.kind}",
        "a number alone for an integer key, a calendar unit for one that holds a time, at least a day for a date",
        f"correct {name} or key_type",
    )


def check_grace(grace: Interval) -> Check:
    return Check(
        "grace",
        "failed" if grace.unit == "step" else "ok",
        f"grace {grace}",
        "a calendar unit, whatever the key is",
        "for example grace: 7 days",
    )


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
    last = next(islice(windows(request.key, request.interval, current), request.premake, None))
    for window in windows(request.key, request.interval, current if request.first is None else request.first):
        parts = [part for part in gaps(existing, window) if part.hi > cutoff]
        if parts and parts != [window]:
            overlaps.append(f"{shown(request.key, window)} and {_names(existing, window)}")
        missing += [of_range(request, part, _free(name_of(request, table, part), taken)) for part in parts]
        if window.hi >= last.hi:
            break
    return missing, [_overlap(request, overlaps), *_check_names(request, missing)]


def _overlap(request: Request, overlaps: Sequence[str]) -> Check:
    return Check(
        "overlap",
        "failed" if overlaps and request.partial == "refuse" else "ok",
        "; ".join(overlaps) or "no partition that is wanted is there in part",
        "each is missing or there as a whole",
        "correct interval, time_zone or lists; or give partial_windows: fill, to add what is missing of it",
    )


def wanted_lists(request: Request, table: PartitionedTable) -> tuple[list[Wanted], list[Check]]:
    """Of each list the values that no partition has. Values are compared as the server prints them."""
    existing = {value: child for child in table.partitions for value in bound_values(child.bound)}
    taken = {child.name for child in table.partitions}
    given = [value for _name, values in request.lists for value in values]
    twice = sorted({str(value) for value in given if given.count(value) > 1})
    missing: list[Wanted] = []
    overlaps = []
    for name, values in request.lists:
        rest = [value for value in values if value not in existing]
        if rest and len(rest) < len(values):
            others = sorted({existing[value].full_name for value in values if value in existing})
            overlaps.append(f"{name} and {', '.join(others)}")
        if rest:
            missing.append(of_list(request.column, rest, _free(name, taken)))
    return missing, [
        Check(
            "values",
            "failed" if twice else "ok",
            f"{', '.join(twice)} in more than one list" if twice else "every value is in one list",
            "each value in one list",
            "correct lists",
        ),
        _overlap(request, overlaps),
        *_check_names(request, missing),
    ]


def bound_values(text: str) -> tuple[str | None, ...]:
    """The values of a list's bound; none of another bound."""
    bound = parse_bound(text)
    return tuple(value for value in bound.values if not isinstance(value, Edge)) if isinstance(bound, ListBound) else ()


def wanted_hash(request: Request, table: PartitionedTable) -> tuple[list[Wanted], list[Check]]:
    """The remainders that no partition has. A partition of a smaller modulus has several of them, and those of a larger
    one together have one."""
    modulus, taken = request.modulus, {child.name for child in table.partitions}
    there = [
        bound for bound in (parse_bound(child.bound) for child in table.partitions) if isinstance(bound, HashBound)
    ]
    strange = [bound for bound in there if bound.modulus % modulus and modulus % bound.modulus]
    missing: list[Wanted] = []
    overlaps = []
    for remainder in range(modulus):
        coarse = [
            bound for bound in there if modulus % bound.modulus == 0 and remainder % bound.modulus == bound.remainder
        ]
        fine = [bound for bound in there if bound.modulus % modulus == 0 and bound.remainder % modulus == remainder]
        share = sum(Fraction(modulus, bound.modulus) for bound in fine)
        if coarse or share == 1:
            continue
        if share:
            overlaps.append(f"remainder {remainder} of {modulus} and partitions of a larger modulus")
            continue
        name = request.template.format(table=table.name, start=remainder)
        missing.append(of_hash(modulus, remainder, _free(name, taken)))
    return missing, [
        Check(
            "modulus",
            "failed" if strange or overlaps else "ok",
            "; ".join([*(f"there is a partition of modulus {bound.modulus}" for bound in strange), *overlaps])
            or f"modulus {modulus} fits",
            "a modulus that divides those of the partitions, or is divided by them, each remainder whole or missing",
            "give another modulus; rows do not move from one partition to another here",
        ),
        *_check_names(request, missing),
    ]


def name_of(request: Request, table: PartitionedTable, window: Window) -> str:
    """By the template. Identity is the bound: the name of a partition that exists is never looked at."""
    key, low = request.key, int(window.lo)
    start = key.wall(low) if key.is_time else low
    try:
        name = request.template.format(table=table.name, start=start)
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise DbopsError(
            found=f"name_template {request.template!r}: {type(error).__name__} {error}",
            expected="a Python format with table and start, such as {table}_p{start:%Y%m%d}",
            remedy="correct it",
        ) from error
    # An hour that clocks show twice.
    return f"{name}_2" if isinstance(start, datetime) and start.fold else name


def _free(name: str, taken: set[str]) -> str:
    """A rest of a window may begin when another partition's name says that it begins."""
    return next(one for one in chain([name], (f"{name}_{number}" for number in count(2))) if one not in taken)


def _check_names(request: Request, missing: Sequence[Wanted]) -> list[Check]:
    names = _all_names(request, missing)
    long = [name for name in names if len(name.encode()) > NAME_BYTES]
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


def _all_names(request: Request, missing: Iterable[Wanted]) -> list[str]:
    """Of the partitions that are wanted, and of what is below them."""
    names = []
    for item in missing:
        names.append(item.name)
        names += [] if request.below is None else [part.name for part in parts_below(request.below, item.name)]
    return names


def names_to_look_up(request: Request, table: PartitionedTable, missing: Iterable[Wanted], now_us: int) -> list[str]:
    """Of which the runner has to know whether something has them."""
    names = _all_names(request, missing)
    default = table.default
    return names if default is None else [*names, successor(default.name), retired_name(default, now_us)]


def make_plan(request: Request, facts: Facts, missing: Sequence[Wanted]) -> Plan:
    default = facts.table.default
    inhabited = [item for item in missing if facts.default_rows.rows(item.name)]
    rebuilding = bool(inhabited) and request.default_rows == "shadow"
    checks = [_check_names_free(request, facts, missing, rebuilding=rebuilding), _check_schema(facts, bool(missing))]
    work = unfinished(facts)
    for constraint in (GUARD, BOUND):
        if default is not None and constraint in facts.default_rows.constraints:
            work.append(drop_constraint(default, constraint, "left by a run that was killed"))
    empty = [item for item in missing if item not in inhabited]
    if default is not None:
        checks.append(_check_default_rows(request, facts, inhabited))
        if facts.shadow or facts.default_rows.mirrored:
            work.append(discard(facts, default))
        work += discard_successor(facts, default)
        if rebuilding:
            work += rebuild(request, facts, default, inhabited)
        elif inhabited and request.default_rows == "promote":
            work += promote(request, facts, default, inhabited[0])
            default = replace(default, bytes=0)  # what is the default partition now is empty
        else:
            for item in inhabited:
                work += move(request, facts, default, item)
    future = [item for item in empty if item.window is not None and item.window.lo > facts.current]
    guarded = future if default is not None and default.bytes > SCAN_LIMIT else []
    unguarded = [item for item in empty if item not in guarded]
    checks.append(_check_scan(default, unguarded))
    for item in unguarded:
        work += create(request, facts, item, default)
    if guarded and default is not None:
        work += guard(request, default, guarded)
        for item in guarded:
            work += create(request, facts, item, replace(default, bytes=0))
        work.append(drop_constraint(default, GUARD, "its work is done"))
    if missing:
        work.append(analyze(facts, missing))
    expired = expired_partitions(request, facts)
    leaving = expired if request.retention_action != "keep" else []
    for child in leaving:
        work += detach(facts, child)
        if request.archives:
            work.append(archive_of(child))
    later, dropped = due(
        facts, archive=request.archives, drop=request.drops, grace=request.grace, max_drop=request.max_drop
    )
    return Plan(tuple(checks), (*work, *later), tuple(missing), tuple(expired), tuple(leaving), tuple(dropped))


def expired_partitions(request: Request, facts: Facts) -> list[Partition]:
    """Those that end, by their real bound, before the retention; oldest first. The default one never does."""
    if request.retention is None or request.strategy != "range":
        return []
    cutoff = request.key.back(facts.current, request.retention)
    found = ranges(facts.table, request.key)
    over = [child for window, child in sorted(found.items(), key=lambda item: item[0]) if window.hi <= cutoff]
    return [child for child in over if not child.pending]  # what is being detached already is ended as unfinished


def unfinished(facts: Facts) -> list[Transaction]:
    """What a run that was killed while it detached has left to do. As long as one partition is being detached no other
    can be."""
    work = []
    for child in facts.table.partitions:
        if child.pending:
            summary = f"end the detaching of {child.full_name} that was begun"
            end = finalize(facts.table, child)
            work.append(noted(facts, child))
            work.append(Transaction(f"finalize {child.name}", summary, end, partition=child, work="detach"))
            work += release(facts.table, child)
    for one in facts.detached:
        if (not one.blocked and one.table.kind != FOREIGN) or one.table.foreign_keys:
            work += release(facts.table, one.table)
    return work


def _check_names_free(request: Request, facts: Facts, missing: Sequence[Wanted], *, rebuilding: bool) -> Check:
    """What is below a leftover goes with it."""
    left = {one.name for one in facts.namesakes if one.leftover}
    wanted = set(_all_names(request, [item for item in missing if item.name not in left]))
    if facts.table.default is not None and rebuilding:
        wanted.add(retired_name(facts.table.default, facts.now_us))
    taken = [item.name for item in facts.namesakes if not item.leftover and item.name in wanted]
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
    held = "; ".join(
        f"{name} holds {rows.rows(item.name)}{'+' if rows.rows(item.name) > request.move_limit else ''} rows of "
        f"{item.shown}"
        for item in inhabited
    )

    def check(bad: str, expected: str, remedy: str) -> Check:
        return Check("default_rows", "failed" if bad else "ok", bad or held or "no rows in the way", expected, remedy)

    if not inhabited:
        return check("", "no rows of missing windows in the default partition", "")
    if request.default_rows != "refuse" and table.referencing:
        keys = "; ".join(f"{key.table} refers to {table.full_name} ({key.name})" for key in table.referencing)
        return check(
            keys, "no foreign key to the table", "drop it until this is done: rows it refers to would be detached"
        )
    if request.default_rows == "shadow":
        because = [] if table.primary_key else [f"{table.full_name} has no primary key"]
        because += [f"publication {name} publishes every new table of the schema" for name in table.publishing_new]
        because += [f"publication {name} publishes the partitions" for name in table.publications]
        return check(
            "; ".join(because),
            "a primary key, by which rows are copied, and no publication that would send the copies",
            "add a primary key; or let the publication name its tables, and publish via the partition root",
        )
    if request.below is not None and request.default_rows in ("promote", "shadow"):
        return check(held, "new partitions that are not partitioned themselves", "give default_rows: move")
    if request.default_rows == "promote" and request.strategy != "range":
        return check(held, "a table partitioned by range", "give default_rows: shadow, or move if they are few")
    if request.default_rows == "promote":
        window = inhabited[0].span
        alone = (
            not rows.nulls and rows.lo is not None and rows.hi is not None and rows.lo in window and rows.hi in window
        )
        beyond = f"{name} holds rows from {_end(request, rows.lo)} to {_end(request, rows.hi)}" + (
            " and rows without a key" if rows.nulls else ""
        )
        return check(
            "" if alone else beyond,
            f"all rows of {name} belong to {inhabited[0].shown}",
            "make the interval wide enough for them, or give default_rows: shadow",
        )
    if request.default_rows == "move":
        many = [item for item in inhabited if rows.rows(item.name) > request.move_limit]
        because = [f"trigger {trigger} fires on the rows" for trigger in table.row_triggers]
        because += [f"publication {publication} publishes the partitions" for publication in table.publications]
        return check(
            "; ".join(
                [
                    *(f"more than {request.move_limit} rows of {item.shown}" for item in many),
                    *because,
                ]
            ),
            f"at most {request.move_limit} rows of a window, and nothing that sees a moved row as deleted and inserted",
            "give default_rows: shadow, or promote if all rows belong to one window",
        )
    return check(
        held,
        "no rows of missing windows in the default partition",
        "give default_rows: promote if all its rows belong to one window, move if they are few, else shadow",
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


def check_detach(request: Request, table: PartitionedTable, current: int, name: str) -> Check:
    """Whether the partition of that name may be detached. Which one clients write into is known of a range alone."""
    child = named(table, name)
    windows = {} if request.strategy != "range" else {one: window for window, one in ranges(table, request.key).items()}
    bad = ""
    if child is None:
        bad = f"{name} is no partition of {table.full_name}"
    elif child is table.default:
        bad = f"{child.full_name} is the default partition"
    elif child in windows and current in windows[child]:
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


def warnings(table: PartitionedTable, plan: Plan) -> list[str]:
    if not plan.created or not table.publications:
        return []
    names = ", ".join(item.name for item in plan.created)
    return [
        f"publication {', '.join(table.publications)} publishes partitions under their own names: make {names} on the "
        "subscribers and refresh the subscription before rows come, or set publish_via_partition_root"
    ]
