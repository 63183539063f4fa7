# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the partitions of a table are, and what of the wanted windows is missing or in the way. Reads only."""

from __future__ import annotations

from itertools import islice
from typing import Any

from .._core.clock import Clock
from .._core.operation import refuse_unless_good
from .._postgresql import partition_plan as planner
from .._postgresql.partition_bounds import gaps
from .._postgresql.partition_catalog import (
    Partition,
    PartitionedTable,
    condition,
    read_default,
    read_detached,
    read_leftovers,
)
from .._postgresql.partition_keys import MAXVALUE, MINVALUE, Position, Window, windows
from .._postgresql.partition_steps import Facts, Request
from .._postgresql.quoting import identifier
from .partition import current_position, read_partitioned, request_of
from .table_work import TableWork

COUNTED = 100_000
"""Rows of a window in the default partition that are counted at most, and windows that are looked at."""
WINDOWS = 500


def partition_info(options: dict[str, Any], *, clock: Clock) -> dict[str, Any]:
    """``options`` is the argument dictionary of pg_partition_info; its RETURN documents the result."""
    defaults = {
        **{
            "lock_timeout_ms": 0,
            "lock_wait_timeout": 0,
            "name_template": None,
            "start": None,
            "partial_windows": "fill",
        },
        **{
            "default_rows": "refuse",
            "move_limit": COUNTED,
            "retention_action": "keep",
            "grace": "7 days",
            "max_drop": 0,
        },
    }
    with TableWork({**defaults, **options}, clock=clock, verb="pg_partition_info") as work:
        table = read_partitioned(work, options["schema"], options["table"])
        result: dict[str, Any] = {
            "strategy": table.strategy or None,
            "key": [column.name if column else None for column in table.key],
            "partitions": [_partition(child) for child in table.partitions],
            "default": table.default.full_name if table.default else None,
            "pending": [child.full_name for child in table.partitions if child.pending],
            "detached": [
                {
                    "name": one.table.full_name,
                    "bound": one.table.bound,
                    "detached_at": one.detached_at,
                    "blocked": one.blocked,
                }
                for one in read_detached(work.session, table)
            ],
            "leftovers": list(read_leftovers(work.session, table)),
            "publications": list(table.publications),
        }
        if options["interval"] is None:
            return result
        refuse_unless_good(planner.check_table(table, options["key"], options["key_type"]))
        request = request_of(work.options, table)
        return {**result, **_windows(work, request, table)}


def _partition(child: Partition) -> dict[str, Any]:
    return {
        "name": child.full_name,
        "bound": child.bound,
        "kind": {"r": "table", "p": "partitioned", "f": "foreign"}.get(child.kind, child.kind),
        "rows_estimate": child.rows,
        "bytes": child.bytes,
        "detach_pending": child.pending,
    }


def _windows(work: TableWork, request: Request, table: PartitionedTable) -> dict[str, Any]:
    key = request.key
    current = current_position(work, request, table)
    existing = planner.ranges(table, key)
    finite = [position for window in existing for position in (window.lo, window.hi) if not isinstance(position, float)]
    span = Window(min(finite, default=current), max(finite, default=current))
    missing, _checks = planner.wanted_windows(request, table, current)
    reaches = next((window.hi for window in sorted(existing) if current in window), None)
    while reaches is not None and (after := next((one for one in existing if one.lo == reaches), None)) is not None:
        reaches = after.hi

    def shown(position: Position) -> str | None:
        return None if position in (MINVALUE, MAXVALUE) else key.text(int(position))

    def ends(window: Window) -> dict[str, Any]:
        return {"from": shown(window.lo), "to": shown(window.hi)}

    return {
        "gaps": [ends(gap) for gap in gaps(existing, span)],
        "missing": [ends(item.span) for item in missing],
        "overlaps": [
            {
                **ends(window),
                "partitions": [child.full_name for other, child in existing.items() if other.overlaps(window)],
            }
            for window in _some(request, current)
            if gaps(existing, window) not in ([], [window])
        ],
        "current_partition": next((child.full_name for window, child in existing.items() if current in window), None),
        "covered_until": None if reaches is None else shown(reaches),
        "windows_ahead": _ahead(request, current, reaches),
        "default_rows": _default_rows(work, request, table, current, ends),
        "expired": [
            child.full_name for child in planner.expired_partitions(request, Facts(table=table, current=current))
        ],
    }


def _some(request: Request, current: int) -> list[Window]:
    return list(islice(windows(request.key, request.interval, current), request.premake + 1))


def _ahead(request: Request, current: int, reaches: Position | None) -> int:
    """Whole windows after the current one that are covered without a gap."""
    if reaches is None:
        return -1
    found = islice(windows(request.key, request.interval, current), 1, WINDOWS)
    return sum(1 for window in found if window.hi <= reaches)


def _default_rows(
    work: TableWork, request: Request, table: PartitionedTable, current: int, ends: Any
) -> list[dict[str, Any]]:
    """For each window of which the default partition has rows how many, from its first row on."""
    if table.default is None:
        return []
    key = request.key
    extent = read_default(work.session, table.default, key, request.column, [], limit=0)
    if extent.lo is None or extent.hi is None:
        return []
    within = {}
    for window in islice(windows(key, request.interval, extent.lo), WINDOWS):
        if window.lo > extent.hi:
            break
        within[str(window)] = window
    wanted = [(name, condition(key, identifier(request.column), window), window) for name, window in within.items()]
    rows = read_default(work.session, table.default, key, request.column, wanted, limit=COUNTED)
    return [{**ends(within[name]), "rows": count} for name, count in rows.within if count]
