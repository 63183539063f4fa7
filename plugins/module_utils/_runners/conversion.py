# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plain table becomes a partitioned one, and back: facts, checks, plan, and its transactions one by one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from .._core.clock import Clock, Deadline
from .._core.errors import DbopsError
from .._core.operation import Check, Step, refuse_unless_good
from .._postgresql import conversion_plan as planner
from .._postgresql.partition_catalog import BOUND, Partition, PartitionedTable, read_clock
from .._postgresql.partition_keys import windows
from .._postgresql.partition_plan import check_numbers, check_table, wanted_windows
from .._postgresql.partition_steps import Request, Transaction
from .._postgresql.quoting import identifier, suffixed
from .._postgresql.table_belongings import Belongings, read_belongings
from .partition import partition, read_partitioned, request_of
from .table_work import TableWork, planned_transaction

READ_SECONDS = 3600.0  # for the one reading of the key where no index has it

_BOUND = """
SELECT convalidated AS validated, coalesce(obj_description(oid, 'pg_constraint'), '') AS comment
  FROM pg_constraint WHERE conrelid = %s AND conname = %s
"""
_TAKEN = """
SELECT relname::text AS name FROM pg_class WHERE relnamespace = %(schema)s::regnamespace AND relname = ANY(%(names)s)
UNION
SELECT typname::text FROM pg_type
 WHERE typnamespace = %(schema)s::regnamespace AND typname = ANY(%(names)s) AND typelem = 0
"""


def conversion(options: dict[str, Any], *, clock: Clock, check_mode: bool) -> dict[str, Any]:
    """``options`` is the argument dictionary of pg_partition_convert; its RETURN documents the result."""
    with TableWork(options, clock=clock, verb="pg_partition_convert") as work:
        result = _Conversion(work, options).run(check_mode=check_mode)
    if result["state"] == "partitioned":
        # The table is one of pg_partition's by now, and so is what is still to be done.
        ahead = partition(_as_partition(options), clock=clock, check_mode=check_mode)
        result["created"] = ahead["created"]
        result["changed"] = result["changed"] or ahead["changed"]
        result["statements"] += ahead["statements"]
        result["plan"] += ahead["plan"]
        result["warnings"] += ahead["warnings"]
    return result


def _as_partition(options: dict[str, Any]) -> dict[str, Any]:
    """The options that pg_partition would be called with."""
    without = {
        **dict.fromkeys(("partition", "lists", "modulus", "subpartitions", "start", "retention", "archive_dir")),
        **{"partial_windows": "refuse", "default_rows": "refuse", "move_limit": 0, "retention_action": "keep"},
        **{"grace": "7 days", "max_drop": 0, "reference_time": None},
    }
    return {**without, **options, "state": "present"}


class _Conversion:
    def __init__(self, work: TableWork, options: dict[str, Any]) -> None:
        self.work = work
        self.options = options
        self.session = work.session

    def run(self, *, check_mode: bool) -> dict[str, Any]:
        before = self._table()
        if not check_mode:
            self.work.take_lease(before.full_name)
            before = self._table()  # another run may have ended meanwhile
        back = self.options["state"] == "plain"
        if bool(before.strategy) != back:
            return self._nothing(before)
        transactions, checks, more = self._back(before) if back else self._there(before)
        failed = any(check.status == "failed" for check in checks)
        result: dict[str, Any] = {
            "changed": True,
            "state": ("would be " if check_mode else "") + ("plain" if back else "partitioned"),
            "checks": [check.as_dict() for check in checks],
            "plan": [
                self.work.printed(
                    planned_transaction(transaction), transaction.statements, look=check_mode and not failed
                )
                for transaction in transactions
            ],
            "statements": [statement.sql for one in transactions for statement in one.statements],
            "created": [],
            "warnings": [],
            **more,
        }
        try:
            refuse_unless_good(checks)
        except DbopsError as error:
            result.pop("warnings")
            raise error.with_details(**{**result, "changed": False, "state": "refused"}) from error
        if check_mode:
            return result
        runner = self.work.open_journal(before.full_name, {"table": before.full_name, "state": self.options["state"]})
        self.work.run([self._step(transaction) for transaction in transactions])
        self._verify(before, back=back, carried=more["carried"])
        return {**result, "timeline": runner.timeline}

    def _nothing(self, table: PartitionedTable) -> dict[str, Any]:
        state = "partitioned" if table.strategy else "plain"
        return {
            "changed": False,
            "state": state,
            "checks": [],
            "plan": [],
            "statements": [],
            "created": [],
            "carried": [],
            "weakened": [],
            "warnings": [],
        }

    # -- facts

    def _table(self) -> PartitionedTable:
        return read_partitioned(self.work, self.options["schema"], self.options["table"])

    def _there(self, table: PartitionedTable) -> tuple[list[Transaction], list[Check], dict[str, Any]]:
        name = self.options["key"]
        if name not in [column.name for column in table.columns]:
            raise DbopsError(
                found=f"{table.full_name} has no column {name}",
                expected="the column to divide it by",
                remedy="correct key",
            )
        # As it will be.
        keyed = replace(table, strategy="range", key=tuple(one for one in table.columns if one.name == name))
        refuse_unless_good(check_table(keyed, name, self.options["key_type"]))
        request = request_of(_as_partition(self.options), keyed)
        if self.session.value("SELECT row_security_active(%s::oid)", [table.oid]):
            raise DbopsError(
                found=f"row security of {table.full_name} holds for its owner, too, and so for {table.user}",
                expected="a user who sees every row",
                remedy="ALTER TABLE … NO FORCE ROW LEVEL SECURITY meanwhile, or log in as a user with BYPASSRLS",
            )
        belongings = read_belongings(self.session, table.oid)
        legacy = self.options["legacy_name"] or suffixed(table.name, "_legacy")
        greatest, nulls = self._extent(table, request)
        current = request.key.at(read_clock(self.session)) if request.key.is_time else greatest or 0
        cut, validated = self._left(table, request.column)
        wish = planner.Wish(request, legacy, self._cut(request, current, greatest, cut), tuple(self.options["weaken"]))
        wanted = planner.widened(belongings, wish.column)
        found = planner.prepared(belongings, wanted, cut=cut, validated=validated)
        checks = planner.check_plain(table, belongings, wish)
        checks += planner.check_cut(wish, current, greatest, nulls=nulls)
        following, more_checks = self._following(keyed, wish, current)
        names = [*planner.names_needed(belongings, wish), *planner.to_be_built(wanted, found), *following]
        checks += [*more_checks, planner.check_names_free(self._taken(table, names))]
        weak = planner.weak_keys(belongings, wish.column)
        more = {
            "cut": request.key.text(wish.cut),
            "legacy": f"{table.schema}.{legacy}",
            "weakened": [{"name": key.name, "columns": list(key.columns)} for key in weak],
            "carried": _carried(belongings),
        }
        return planner.convert(table, belongings, wish, found), checks, more

    def _back(self, table: PartitionedTable) -> tuple[list[Transaction], list[Check], dict[str, Any]]:
        owner, partman, *_key = check_table(table, "", None)
        refuse_unless_good([owner, partman])
        one = self._legacy(table)
        belongings = read_belongings(self.session, table.oid)
        wanted = [(planner.built_name(key), key.columns) for key in one.keys]
        found = planner.prepared(one.belongings, wanted, cut=None, validated=False)
        others = [child for child in table.partitions if child.oid != one.partition.oid]
        inhabited = [child.full_name for child in others if self._has_rows(child.sql)]
        checks = planner.check_way_back(table, inhabited, belongings, one)
        names = planner.names_needed_back(table, belongings) + planner.to_be_built(wanted, found)
        checks.append(planner.check_names_free(self._taken(table, names)))
        more = {
            "legacy": one.partition.full_name,
            "weakened": [],
            "carried": _carried(belongings),
        }
        return planner.revert(table, belongings, one, found), checks, more

    def _following(self, keyed: PartitionedTable, wish: planner.Wish, current: int) -> tuple[list[str], list[Check]]:
        """The names of the partitions that pg_partition will make after the cut, and what it would refuse then."""
        refuse_unless_good([check_numbers({"premake": wish.windows.premake})])
        bound = f"FOR VALUES FROM (MINVALUE) TO ({wish.windows.key.sql(wish.cut)})"
        first = Partition(0, keyed.schema, wish.legacy, "r", bound, False, -1, 0)
        missing, checks = wanted_windows(wish.windows, replace(keyed, partitions=(first,)), current)
        return [one.name for one in missing], checks

    def _legacy(self, table: PartitionedTable) -> planner.Legacy:
        for child in table.partitions:
            belongings = read_belongings(self.session, child.oid)
            if belongings.comment.startswith(planner.MARK):
                return planner.legacy_of(child, belongings)
        raise DbopsError(
            found=f"no partition of {table.full_name} was a plain table that this module converted",
            expected="the partition whose comment says so",
            remedy="it was dropped, detached, or its comment was changed: there is no way back by this module",
        )

    def _extent(self, table: PartitionedTable, request: Request) -> tuple[int | None, bool]:
        """The greatest value of the key, and whether it is NULL somewhere."""
        column = identifier(request.column)
        deadline = Deadline.after(self.work.clock, READ_SECONDS)
        # A bare name in ORDER BY would be that of the output, which is text: 999 would come after 12000.
        order = (
            f"SELECT {column}::text FROM {table.sql} AS t WHERE {column} IS NOT NULL ORDER BY t.{column} DESC LIMIT 1"  # noqa: S608
        )
        text = self.session.value(order, deadline=deadline)
        nulls = f"SELECT EXISTS (SELECT FROM {table.sql} WHERE {column} IS NULL)"  # noqa: S608  quoted identifiers
        return None if text is None else request.key.parse(text), bool(self.session.value(nulls, deadline=deadline))

    def _left(self, table: PartitionedTable, column: str) -> tuple[int | None, bool]:
        """The cut that a run before has set, of this column, and whether all rows are known to be before it."""
        rows = self.session.rows(_BOUND, [table.oid, BOUND])
        if not rows:
            return None, False
        comment = rows[0]["comment"]
        if not comment.startswith(planner.CUT):
            raise DbopsError(
                found=f"{table.full_name} has a constraint {BOUND} that this module did not make",
                expected="none of that name: it is what the module calls its own",
                remedy=f"rename it, or drop it: ALTER TABLE {table.sql} DROP CONSTRAINT {BOUND}",
            )
        cut, _of, of = comment[len(planner.CUT) :].partition(" of ")
        return (int(cut), rows[0]["validated"]) if of == column else (None, False)

    def _cut(self, request: Request, current: int, greatest: int | None, left: int | None) -> int:
        """By default the end of the window after the one that is current, or has the greatest value. Until the tables
        are swapped no row at or after the cut is accepted, so there has to be time; a run before may have set one."""
        if self.options["cut"]:
            return request.key.start(self.options["cut"])
        last = current if greatest is None else max(current, greatest)
        try:
            this, following = islice(windows(request.key, request.interval, last), 2)
        except (OverflowError, ValueError) as error:
            raise DbopsError(
                found=f"the greatest value of {request.column} is {request.key.text(last)}, no window ends after it",
                expected="a greatest value before the year 9999",
                remedy="look at that row: it is often a mistake; or give cut, if it can be after it",
            ) from error
        if left is None or left < this.hi or next(windows(request.key, request.interval, left)).lo != left:
            return int(following.hi)
        return left

    def _taken(self, table: PartitionedTable, names: list[str]) -> list[str]:
        rows = self.session.rows(_TAKEN, {"schema": identifier(table.schema), "names": names})
        return [row["name"] for row in rows]

    def _has_rows(self, table: str) -> bool:
        return bool(self.session.value(f"SELECT EXISTS (SELECT FROM {table})"))  # noqa: S608  quoted identifiers

    # -- act

    def _step(self, transaction: Transaction) -> Step:
        return Step(
            planned_transaction(transaction),
            partial(self.work.execute, transaction),
            partial(self.work.undo, transaction),
        )

    def _verify(self, before: PartitionedTable, *, back: bool, carried: list[str]) -> None:
        after = self._table()
        now = _carried(read_belongings(self.session, after.oid))
        if bool(after.strategy) == back or now != carried:
            raise DbopsError(
                found=f"{before.full_name} is {'partitioned by ' + after.strategy if after.strategy else 'plain'}; it"
                f" lacks {', '.join(sorted(set(carried) - set(now))) or 'nothing'}, and has"
                f" {', '.join(sorted(set(now) - set(carried))) or 'nothing'} that it did not have",
                expected="the other kind of table, with all that it had and nothing else",
                remedy="the tables were swapped; mend what is named (default privileges add grants to new tables)",
            )


def _carried(belongings: Belongings) -> list[str]:
    """What goes with the table's name, for people and to be compared."""
    names = [
        f"{made.what} {made.name}: {made.make}" for made in (*belongings.made, *belongings.triggers, *belongings.views)
    ]
    names += [f"identity {one.column}: {one.sequence}" for one in belongings.identities]
    names += [f"sequence {sequence} of {column}" for sequence, column in belongings.sequences]
    names += [f"index {name}: {definition}" for name, definition in belongings.indexes]
    names += [f"key {key.name}" for key in planner.own_keys(belongings)]
    return sorted(names)
