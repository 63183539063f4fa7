# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of detached tables: archived, read back, kept for a while, dropped. Decisions, and the SQL of it.

The rows are compared by their number and a hash that does not depend on their order: what was read back from the
archive with what the table holds, and once more under the lock that drops it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .locks import ACCESS_EXCLUSIVE, ACCESS_SHARE, Lock, Statement
from .partition_catalog import Detached, Partition
from .partition_keys import Interval, Key
from .partition_steps import FOREIGN, Facts, Transaction

# So that a row is the same text in every session that hashes or copies it.
SETTINGS = """
SELECT set_config('extra_float_digits', '1', false), set_config('bytea_output', 'hex', false),
       set_config('xmlbinary', 'base64', false), set_config('lc_monetary', 'C', false)
"""


def rows_and_hash(sql: str) -> str:
    """A statement that returns ``rows`` and ``hash`` of a table or partitioned table."""
    return f"SELECT count(*) AS rows, coalesce(sum(hashtextextended(r::text, 0)), 0)::text AS hash FROM {sql} r"  # noqa: S608  a quoted identifier


def shown(what: dict[str, Any]) -> str:
    return f"{what['rows']} rows with hash {what['hash']}"


def due(
    facts: Facts, *, archive: bool, drop: bool, grace: Interval, max_drop: int
) -> tuple[list[Transaction], list[Partition]]:
    """The transactions for tables that were detached before this run, oldest first, and those that they drop. A table
    is dropped when it was archived and the grace has passed since it was detached; no more than ``max_drop``. A default
    partition that was rebuilt is left alone, its rows are in the table; so is a foreign table, whose rows are
    elsewhere."""
    work: list[Transaction] = []
    dropped: list[Partition] = []
    before_us = Key("timestamptz").back(facts.now_us, grace)
    for one in sorted(facts.detached, key=lambda item: (item.detached_at, item.table.full_name)):
        if one.table.bound == "DEFAULT" or one.table.kind == FOREIGN:
            continue
        if archive and one.archive is None:
            work.append(archive_of(one.table))
        # What this run archives, a later one drops.
        passed = one.detached_at * 1_000_000 <= before_us
        if drop and one.archive is not None and passed and len(dropped) < max_drop:
            work.append(_drop(one))
            dropped.append(one.table)
    return work, dropped


def archive_of(table: Partition) -> Transaction:
    lock = Lock(table.full_name, ACCESS_SHARE, table.bytes)
    return Transaction(
        f"archive {table.name}",
        f"copy the rows of {table.full_name} to the archive, and read them back from there",
        (Statement(copy_out(table), (lock,), brief=False),),
        long=True,
        partition=table,
        work="archive",
    )


def copy_out(table: Partition) -> str:
    """Through a query, so that a table that is partitioned itself is copied whole."""
    return f"COPY (SELECT * FROM {table.sql}) TO STDOUT (FORMAT csv)"  # noqa: S608  a quoted identifier


def _drop(one: Detached) -> Transaction:
    lock = Lock(one.table.full_name, ACCESS_EXCLUSIVE, one.table.bytes)
    return Transaction(
        f"drop {one.table.name}",
        f"{one.table.full_name} holds, under the lock that drops it, what its archive holds",
        (
            Statement(f"LOCK TABLE {one.table.sql} IN ACCESS EXCLUSIVE MODE", (lock,)),
            Statement(f"DROP TABLE {one.table.sql}"),
        ),
        partition=one.table,
        work="drop",
    )


def by_table(detached: Iterable[Detached], table: Partition) -> Detached | None:
    return next((one for one in detached if one.table.oid == table.oid), None)
