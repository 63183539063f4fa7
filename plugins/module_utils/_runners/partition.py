# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A partitioned table's windows: facts, checks, plan, and its transactions one by one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from .._core.clock import Clock, Deadline, wait_until
from .._core.errors import DbopsError
from .._core.operation import Check, Step, refuse_unless_good
from .._postgresql import partition_plan as planner
from .._postgresql.ddl import blockers, brief
from .._postgresql.locks import ACCESS_EXCLUSIVE, Lock
from .._postgresql.partition_archive import archive_of, due
from .._postgresql.partition_catalog import (
    DefaultRows,
    Partition,
    PartitionedTable,
    read_clock,
    read_default,
    read_detached,
    read_greatest,
    read_namesakes,
    read_table,
)
from .._postgresql.partition_keys import Interval, Key, parse_interval, zone
from .._postgresql.partition_plan import Plan
from .._postgresql.partition_shadow import shadow_name
from .._postgresql.partition_steps import Below, Facts, Request, Transaction, Wanted, detach, finalize
from .._postgresql.quoting import qualified
from .archive import Archiver, check_directory
from .shadow_copy import ShadowCopy
from .table_work import TableWork, planned_transaction

CLOCK_DIFFERENCE = 300.0  # seconds
OLD_TRANSACTION = 10  # seconds
FOREIGN_KEY_VIOLATION = "23503"
_MAY_CREATE = "SELECT has_schema_privilege(%s, 'CREATE')"
_TEMPLATES = {"hour": "{table}_p{start:%Y%m%d_%H%M}", "step": "{table}_p{start}"}


def partition(options: dict[str, Any], *, clock: Clock, check_mode: bool) -> dict[str, Any]:
    """``options`` is the argument dictionary of pg_partition; its RETURN documents the result."""
    with TableWork(options, clock=clock, verb="pg_partition") as work:
        return _Windows(work, options).run(check_mode=check_mode)


def read_partitioned(work: TableWork, schema: str, name: str) -> PartitionedTable:
    table = read_table(work.session, schema, name)
    if table is None:
        raise DbopsError(
            found=f"there is no table {schema}.{name} in {work.endpoint.dbname}",
            expected="a partitioned table",
            remedy="correct schema, table or login_db",
        )
    return table


def request_of(options: dict[str, Any], table: PartitionedTable) -> Request:
    """What the options ask for. Raises DbopsError for an interval that does not fit the key."""
    if strategy_of(options) != "range":
        return _sets_of(options)
    interval = parse_interval(options["interval"])
    key = Key(
        planner.key_kind(table, options["key_type"]),
        zone(options["time_zone"]),
        options["epoch_unit"],
        options["snowflake_epoch_ms"],
        options["snowflake_shift"],
    )
    retention = parse_interval(options["retention"]) if options["retention"] else None
    grace = parse_interval(options["grace"])
    checks = [planner.check_interval(key, interval), planner.check_grace(grace)]
    checks += [planner.check_interval(key, retention, "retention")] if retention is not None else []
    refuse_unless_good(checks)
    return Request(
        column=options["key"],
        key=key,
        interval=interval,
        premake=options["premake"],
        template=options["name_template"] or _TEMPLATES.get(interval.unit, "{table}_p{start:%Y%m%d}"),
        first=key.start(options["start"]) if options["start"] else None,
        partial=options["partial_windows"],
        default_rows=options["default_rows"],
        move_limit=options["move_limit"],
        retention=retention,
        retention_action=options["retention_action"],
        grace=grace,
        max_drop=options["max_drop"],
        below=_below(options),
    )


def strategy_of(options: dict[str, Any]) -> str:
    return "list" if options.get("lists") is not None else "hash" if options.get("modulus") else "range"


def _sets_of(options: dict[str, Any]) -> Request:
    return Request(
        column=options["key"],
        key=Key("integer"),
        interval=Interval(1, "step"),
        premake=0,
        template=options["name_template"] or "{table}_p{start}",
        partial=options["partial_windows"],
        default_rows=options["default_rows"],
        move_limit=options["move_limit"],
        strategy=strategy_of(options),
        lists=_lists(options["lists"] or []),
        modulus=options["modulus"] or 0,
        below=_below(options),
    )


def _lists(lists: list[dict[str, Any]]) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
    return tuple(
        (one["name"], tuple(None if value is None else str(value) for value in one["values"])) for one in lists
    )


def _below(options: dict[str, Any]) -> Below | None:
    words = options.get("subpartitions")
    if not words:
        return None
    strategy = "list" if words.get("lists") else "hash"
    return Below(strategy, words["key"], _lists(words.get("lists") or []), words.get("modulus") or 0)


def current_position(work: TableWork, request: Request, table: PartitionedTable) -> int:
    """Of now, by the server's clock; of an integer key the greatest value."""
    if request.key.is_time:
        return request.key.at(read_clock(work.session))
    return read_greatest(work.session, table, request.column) or 0


class _Windows:
    """Desired state: every window from the first one wanted up to ``premake`` ahead of now is a partition, and none is
    that ended before the retention. Or, with another state, one partition is none any more."""

    def __init__(self, work: TableWork, options: dict[str, Any]) -> None:
        self.work = work
        self.options = options
        self.session = work.session

    def run(self, *, check_mode: bool) -> dict[str, Any]:
        numbers = {name: self.options[name] for name in ("premake", "move_limit", "max_drop", "modulus")}
        numbers["subpartitions.modulus"] = (self.options["subpartitions"] or {}).get("modulus")
        refuse_unless_good([planner.check_numbers(numbers)])
        before = self._table()
        strategy = strategy_of(self.options)
        refuse_unless_good(planner.check_table(before, self.options["key"], self.options["key_type"], strategy))
        request = request_of(self.options, before)
        if not check_mode:
            self.work.take_lease(before.full_name)
            before = self._table()  # another run may have ended meanwhile
        plan, checks = self._plan(request, before)
        result = self._result(before, request, plan, checks)
        result["plan"] = [
            self.work.printed(planned_transaction(transaction), transaction.statements, look=check_mode)
            for transaction in plan.transactions
        ]
        try:
            refuse_unless_good(checks)
        except DbopsError as error:
            raise error.with_details(**{**result, "changed": False}) from error
        if check_mode or not plan.transactions:
            return result
        runner = self.work.open_journal(
            before.full_name, {"table": before.full_name, "interval": str(request.interval)}
        )
        self.work.run([self._step(transaction) for transaction in plan.transactions])
        self._verify(request)
        return {**result, "timeline": runner.timeline}

    # -- facts

    def _table(self) -> PartitionedTable:
        return read_partitioned(self.work, self.options["schema"], self.options["table"])

    def _plan(self, request: Request, table: PartitionedTable) -> tuple[Plan, list[Check]]:
        refuse_unless_good([self._check_clock()])
        if self.options["state"] != "present":
            return self._detach_plan(request, table)
        current = 0 if request.strategy != "range" else current_position(self.work, request, table)
        try:
            missing, checks = self._wanted(request, table, current)
        except ValueError as error:
            raise DbopsError(
                found=f"a bound of {table.full_name} cannot be read as {request.key.kind}: {error}",
                expected="partitions whose bounds are of this kind of key",
                remedy="correct key_type",
            ) from error
        now_us = read_clock(self.session)
        facts = Facts(
            table=table,
            current=current,
            default_rows=self._default_rows(request, table, missing),
            namesakes=read_namesakes(
                self.session, table, planner.names_to_look_up(request, table, missing, now_us), shadow_name(table)
            ),
            shadow=self.session.value("SELECT to_regclass(%s)", [qualified(table.schema, shadow_name(table))])
            is not None,
            detached=read_detached(self.session, table),
            now_us=now_us,
            may_create=bool(self.session.value(_MAY_CREATE, [table.schema])),
            version_num=self.work.version_num,
        )
        plan = planner.make_plan(request, facts, missing)
        return plan, [*checks, *plan.checks, self._check_archive(request.archives)]

    @staticmethod
    def _wanted(request: Request, table: PartitionedTable, current: int) -> tuple[list[Wanted], list[Check]]:
        if request.strategy == "list":
            return planner.wanted_lists(request, table)
        if request.strategy == "hash":
            return planner.wanted_hash(request, table)
        return planner.wanted_windows(request, table, current)

    def _check_archive(self, archives: bool) -> Check:
        bad = ""
        if archives:
            data_directory = self.session.value("SELECT setting FROM pg_settings WHERE name = 'data_directory'")
            bad = check_directory(data_directory or "", self.options["archive_dir"])
        return Check(
            "archive",
            "failed" if bad else "ok",
            bad or "nothing is wrong with the archive",
            "a directory on another file system than the database",
            "make the directory, or mount one there; on another host than the server any directory will do",
        )

    def _detach_plan(self, request: Request, table: PartitionedTable) -> tuple[Plan, list[Check]]:
        """One partition is to leave. Nothing to do where a table of that name is detached already; with state absent
        that is archived, and dropped when its grace has passed."""
        name, absent = self.options["partition"], self.options["state"] == "absent"
        facts = Facts(
            table=table,
            current=0 if request.strategy != "range" else current_position(self.work, request, table),
            detached=read_detached(self.session, table),
            now_us=read_clock(self.session),
            version_num=self.work.version_num,
        )
        left = planner.unfinished(facts)
        child = planner.named(table, name)
        own = tuple(one for one in facts.detached if name in (one.table.name, one.table.full_name))
        checks = [self._check_archive(absent)]
        if child is None and absent and (own or self._is_nothing(name)):
            limit = self.options["max_drop"]
            work, dropped = due(
                replace(facts, detached=own), archive=True, drop=True, grace=request.grace, max_drop=limit
            )
            return Plan((), (*left, *work), dropped=tuple(dropped)), checks
        if child is None and own:
            return Plan((), tuple(left)), checks
        checks.append(planner.check_detach(request, table, facts.current, name))
        if child is None or checks[-1].status != "ok" or child.pending:
            return Plan((), tuple(left)), checks
        archived = [archive_of(child)] if absent else []
        return Plan((), (*left, *detach(facts, child), *archived), detached=(child,)), checks

    def _is_nothing(self, name: str) -> bool:
        """A table of that name that we did not detach is not ours to let go, and may be a misspelt one."""
        schema = self.options["schema"]
        bare = name.removeprefix(f"{schema}.")
        return self.session.value("SELECT to_regclass(%s)", [qualified(schema, bare)]) is None

    def _check_clock(self) -> Check:
        """What is made and what is given up is counted from the server's time: a wrong one must not pass for now."""
        reference = self.options["reference_time"]
        apart = 0.0 if reference is None else abs(read_clock(self.session) / 1e6 - reference)
        return Check(
            "clock",
            "failed" if apart > CLOCK_DIFFERENCE else "ok",
            f"the server's clock is {apart:.0f} s away from reference_time",
            f"a difference of at most {CLOCK_DIFFERENCE:g} s",
            "correct the clock of the server, or of the controller",
        )

    def _default_rows(self, request: Request, table: PartitionedTable, missing: list[Wanted]) -> DefaultRows:
        if table.default is None:
            return DefaultRows()
        wanted = [(item.name, item.where, item.window) for item in missing]
        key = request.key if request.strategy == "range" else None
        limit = request.move_limit + 1
        return read_default(self.session, table.default, key, request.column, wanted, limit=limit)

    # -- act

    def _step(self, transaction: Transaction) -> Step:
        return Step(
            planned_transaction(transaction), partial(self._apply, transaction), partial(self.work.undo, transaction)
        )

    def _apply(self, transaction: Transaction) -> None:
        if transaction.work == "copy":
            ShadowCopy(self.work, self._table()).copy()
        elif transaction.work == "compare":
            ShadowCopy(self.work, self._table()).compare()
        elif transaction.partition is None:
            self.work.execute(transaction)
        elif transaction.work == "detach":
            self._detach(transaction, transaction.partition)
        else:
            archiver = Archiver(self.work, self._table(), self.options["archive_dir"])
            if transaction.work == "archive":
                archiver.archive(transaction.partition)
            else:
                archiver.drop(transaction.partition, transaction.statements)

    def _detach(self, transaction: Transaction, child: Partition) -> None:
        """CONCURRENTLY, its first half takes effect at once: from then on nobody sees the rows, and no other partition
        can be detached. So it waits before it begins, and has no limit in the middle. What ends it all the same, a
        cancel or the statement of a run that was killed and lives on in the server, leaves a rest or nothing to do."""
        if transaction.long:
            self._await_old_transactions()
        try:
            self.work.execute(transaction)
        except DbopsError as error:
            if error.details.get("sqlstate") == FOREIGN_KEY_VIOLATION:
                # Before 18 the server names a constraint of its own making.
                keys = ", ".join(f"{key.name} of {key.table}" for key in self._table().referencing)
                raise DbopsError(
                    found=f"{error.found} (the table is referred to by {keys})",
                    expected=f"no row elsewhere refers to a row of {child.full_name}",
                    remedy="delete those rows first, or drop the foreign key; nothing was detached",
                ) from error
            table = self._table()
            now = next((one for one in table.partitions if one.oid == child.oid), None)
            if now is not None and not now.pending:
                raise
            if now is not None:
                brief(self.session, finalize(table, now), patience=self.work.patience)

    def _await_old_transactions(self) -> None:
        table = Lock(f"{self.options['schema']}.{self.options['table']}", ACCESS_EXCLUSIVE)
        wait_until(
            lambda: [str(one) for one in blockers(self.session, [table]) if one.transaction_s >= OLD_TRANSACTION],
            lambda old: not old,
            deadline=Deadline.after(self.work.clock, self.work.patience.seconds),
            interval=0.5,
            what=f"no transaction older than {OLD_TRANSACTION} s that has used {table.relation}",
            remedy="end those transactions or wait for them, then run this again; nothing was detached",
        )

    def _verify(self, request: Request) -> None:
        plan, _checks = self._plan(request, self._table())
        # What a run may drop is bounded; there may be more for the next one.
        left = [transaction.summary for transaction in plan.transactions if transaction.work != "drop"]
        if left:
            raise DbopsError(
                found=f"after the run there is still to do: {'; '.join(left)}",
                expected="every window is a partition",
                remedy="somebody else changes the partitions too, or time went on; run this again",
            )

    # -- report

    def _result(self, before: PartitionedTable, request: Request, plan: Plan, checks: list[Check]) -> dict[str, Any]:
        created = [
            {
                "name": f"{before.schema}.{item.name}",
                **(
                    {"from": request.key.text(int(item.window.lo)), "to": request.key.text(int(item.window.hi))}
                    if item.window is not None
                    else {}
                ),
                "bound": f"FOR VALUES {item.bounds}",
            }
            for item in plan.created
        ]
        names = {child.full_name: child.bound for child in before.partitions}
        gone = {child.full_name for child in plan.detached}
        kept = {name: bound for name, bound in names.items() if name not in gone}
        after = {**kept, **{item["name"]: item["bound"] for item in created}}
        return {
            "changed": bool(plan.transactions),
            "created": created,
            "expired": [child.full_name for child in plan.expired],
            "detached": [child.full_name for child in plan.detached],
            "dropped": [child.full_name for child in plan.dropped],
            "checks": [check.as_dict() for check in checks],
            "statements": [statement.sql for step in plan.transactions for statement in step.statements],
            "warnings": planner.warnings(before, plan),
            "diff": {"before": _lines(names), "after": _lines(after)},
        }


def _lines(partitions: dict[str, str]) -> str:
    return "".join(f"{name} {bound}\n" for name, bound in sorted(partitions.items()))
