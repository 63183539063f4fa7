# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that consistency_check can prove, one kind after the other, and what becomes of it as a whole. Reads only.

What one table or one kind cannot be checked for is said with it, and the others are checked all the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from .._core import metrics
from .._core.clock import Clock
from .._core.errors import DbopsError
from .._core.records import RecordFile
from .._postgresql import invariants
from .._postgresql.client import Session
from .._postgresql.compare_catalog import list_tables
from .._postgresql.compare_plan import Wish
from .._postgresql.quoting import qualified
from . import repair_file
from .compare_tables import Options, Outcome, TableComparison
from .ledger_check import LedgerOutcome, check_ledger, ledger_of
from .two_sides import Link, Side, Throttle, find_link, two_sides

TWO_SIDED = ("table", "counts")
GOOD, DIFFERENT, UNCONFIRMED, FAILED = "consistent", "different", "unconfirmed", "failed"


def consistency(options: dict[str, Any], *, clock: Clock) -> dict[str, Any]:
    """``options`` is the argument dictionary of consistency_check; its RETURN documents the result."""
    _check_input(options)
    for check in options["checks"]:
        if check["kind"] in TWO_SIDED and not options["target"]:
            raise DbopsError(
                found=f"no target is given, and a check of kind {check['kind']} compares two sides",
                expected="source and target",
                remedy="give target, or leave this check out",
            )
    started = clock.monotonic()
    with two_sides(
        options["source"],
        options["target"] or options["source"],
        clock=clock,
        parallel=options["parallel_workers"],
        workers=options["workers"],
    ) as (source, target):
        run = _Run(options, source, target if options["target"] else None, clock)
        with closing(run.files):
            results = [result for check in options["checks"] for result in run.check(check)]
        retries = source.retries + target.retries
    found = {
        status: sum(1 for one in results if one["status"] == status) for status in (DIFFERENT, UNCONFIRMED, FAILED)
    }
    if options["metrics_file"]:
        metrics.write(options["metrics_file"], _metrics(results, options["metrics_labels"], clock.wall()))
    return {
        "changed": False,
        "consistent": not any(found.values()),
        "differences": sum(one["differences"] for one in results),
        "results": results,
        "retries": retries,
        "duration_ms": round((clock.monotonic() - started) * 1000),
    }


def _check_input(options: dict[str, Any]) -> None:
    """A gate that looks at nothing must not be open."""
    empty = [check["kind"] for check in options["checks"] if check["kind"] in TWO_SIDED and not check["tables"]]
    least = {"workers": 1, "chunk_rows": 1, "duty_percent": 1, "max_differences": 1, "recheck_rounds": 2}
    small = [f"{name} is {options[name]}" for name, limit in least.items() if options[name] < limit]
    if options["duty_percent"] > 100:
        small.append(f"duty_percent is {options['duty_percent']}")
    if not options["checks"] or empty or small:
        raise DbopsError(
            found="; ".join([*small, *(f"{kind} has no tables" for kind in empty)]) or "checks is empty",
            expected="something to check, workers, chunk_rows and max_differences from 1, recheck_rounds from 2,"
            " duty_percent from 1 to 100",
            remedy="correct the options",
        )


def summary(result: dict[str, Any]) -> DbopsError | None:
    """The error that a gate needs where anything differs, could not be confirmed, or could not be checked."""
    bad = [one for one in result["results"] if one["status"] != GOOD]
    if not bad:
        return None
    shown = "; ".join(one["says"] for one in bad[:5])
    more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
    return DbopsError(
        found=shown + more,
        expected="no difference, and everything that was asked for checked",
        remedy="results has what was found with a sample of it; report_file writes all of it to a file",
    )


def _in_words(one: dict[str, Any]) -> str:
    """One line for people."""
    about = f"{one['kind']} of {one['name']}"
    if one["status"] == FAILED:
        return f"{about} could not be checked: {one['error']}"
    if one["status"] == UNCONFIRMED and not one["counts"]["unconfirmed"]:
        return f"{about}: so many rows were on their way that not all could be looked at"
    if one["status"] == UNCONFIRMED:
        return f"{about}: {one['counts']['unconfirmed']} rows changed at every look"
    if one["status"] == GOOD:
        counted = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in one["counts"].items() if number)
        return "; ".join((f"{about}: no difference ({counted or 'nothing there'})", *one["notes"]))
    return f"{about}: {'at least ' if one.get('truncated') else ''}{one['differences']} differences"


class _Run:
    def __init__(self, options: dict[str, Any], source: Side, target: Side | None, clock: Clock) -> None:
        self.options = options
        self.source = source
        self.target = target
        self.clock = clock
        self._link: Link | None = None
        self.files = _Files(options["report_file"], options["plan_file"])
        self._kinds: dict[str, Callable[[dict[str, Any]], Iterator[dict[str, Any]]]] = {
            "table": self._tables,
            "counts": self._counts,
            "ledger": self._ledger,
            "constraints": self._one_sided,
            "sequences": self._one_sided,
            "indexes": self._one_sided,
            "replication": self._one_sided,
        }

    def check(self, check: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The results of one entry of ``checks``."""
        started = self.clock.monotonic()
        for result in self._results(check):
            now = self.clock.monotonic()
            yield {**result, "says": _in_words(result), "duration_ms": round((now - started) * 1000)}
            started = now

    def _results(self, check: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            yield from self._kinds[check["kind"]](check)
        except DbopsError as error:
            yield _result(check["kind"], ", ".join(check["tables"] or []) or "all", FAILED, error=error.message)

    @property
    def link(self) -> Link:
        if self._link is None:
            if self.target is None:
                raise AssertionError("only with a target")
            self._link = find_link(self.source, self.target, lag_timeout=self.options["lag_timeout"])
        return self._link

    # -- kinds with two sides

    def _named(self, check: dict[str, Any]) -> list[tuple[str, str]]:
        """Schema and name of every table that a pattern of ``tables`` fits, on either side; raises where none does."""
        sides = self._sides
        partitions = any("*" not in pattern for pattern in check["tables"])
        known = sorted({name for side in sides for name in side.ask(partial(list_tables, partitions=partitions))})
        plain = {name for side in sides for name in side.ask(list_tables)}
        found: dict[tuple[str, str], None] = {}
        for wanted in check["tables"]:
            pattern = wanted if "." in wanted else f"public.{wanted}"
            fitting = [one for one in known if one in plain or "*" not in pattern]
            fitting = [one for one in fitting if fnmatchcase(".".join(one), pattern)]
            if not fitting:
                raise DbopsError(
                    found=f"no table fits {wanted} on either side",
                    expected="names of tables, with their schema, or patterns such as public.*",
                    remedy="correct tables, or give the login USAGE on the schema",
                )
            found.update(dict.fromkeys(fitting))
        left_out = [name if "." in name else f"public.{name}" for name in check["exclude_tables"]]
        chosen = [one for one in found if not any(fnmatchcase(".".join(one), pattern) for pattern in left_out)]
        if not chosen:
            raise DbopsError(
                found="exclude_tables leaves no table",
                expected="at least one to check",
                remedy="correct tables and exclude_tables",
            )
        return chosen

    def _tables(self, check: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self.target is None:
            raise AssertionError("refused before")
        comparison = self._comparison(check, self.target)
        for schema, name in self._named(check):
            full_name = f"{schema}.{name}"
            try:
                outcome = comparison.compare(schema, name)
            except DbopsError as error:
                yield _result("table", full_name, FAILED, error=error.message)
                continue
            self.files.report("table", full_name, _problems(outcome))
            if outcome.found:
                sides = {side.name: side.identity() for side in (self.source, self.target)}
                self.files.plan(
                    repair_file.table_header(sides, full_name, outcome, check["where"] or "", self.clock.wall()),
                    repair_file.table_entries(outcome),
                )
            yield _of_table(full_name, outcome, self.link)

    def _comparison(self, check: dict[str, Any], target: Side) -> TableComparison:
        options = self.options
        throttle = Throttle(
            [self.source, target],
            duty_percent=options["duty_percent"],
            max_lag_bytes=options["max_lag_bytes"],
            clock=self.clock,
        )
        wish = Wish(
            tuple(check["key"] or ()),
            tuple(check["columns"] or ()),
            tuple(check["exclude"] or ()),
            check["where"] or "",
            check["hash"] == "strict",
            options["chunk_rows"],
        )
        chosen = Options(
            wish,
            options["workers"],
            options["recheck_rounds"],
            options["recheck_delay"],
            options["max_differences"],
            options["sample"],
            2 + secrets.randbelow(2**31 - 2),
            Path(options["state_dir"]) / "consistency" if options["resume"] else None,
            options["resume_within"],
        )
        if options["snapshot"] == "run":
            for side in (self.source, target):
                side.take_snapshot()
        return TableComparison(self.source, target, self.link, throttle, chosen, clock=self.clock)

    def _counts(self, check: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Rows of the leader before and after those of the follower. Different if the leader's are one number and the
        follower's another, twice the same."""
        for schema, name in self._named(check):
            condition = f" WHERE {check['where']}" if check["where"] else ""
            text = f"SELECT count(*) FROM {qualified(schema, name)}{condition}"  # noqa: S608  quoted identifiers
            full_name = f"{schema}.{name}"
            try:
                yield self._count(full_name, text)
            except DbopsError as error:
                yield _result("counts", full_name, FAILED, error=error.message)

    def _count(self, name: str, text: str) -> dict[str, Any]:
        leader, follower = self.link.leader, self.link.follower
        status, rows, seen = UNCONFIRMED, {"source": 0, "target": 0, "unconfirmed": 0}, (-1, -1)
        for attempt in range(self.options["recheck_rounds"]):
            if attempt:
                self.clock.sleep(min(2.0, self.options["recheck_delay"] * 1.5**attempt))
            before = leader.look(text)[0][0]
            self.link.wait()
            copied = follower.look(text)[0][0]
            after = leader.look(text)[0][0]
            rows = {leader.name: after, follower.name: copied, "unconfirmed": 0}
            if copied in (before, after):
                status = GOOD
                break
            if before == after and seen == (after, copied):
                status = DIFFERENT
                break
            seen = after, copied
        if status == UNCONFIRMED:
            rows["unconfirmed"] = 1
        return _result("counts", name, status, counts=rows, differences=abs(rows["source"] - rows["target"]))

    # -- kinds within one database

    @property
    def _sides(self) -> list[Side]:
        return [self.source, *([self.target] if self.target else [])]

    def _ledger(self, check: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for side in self._sides:
            try:
                outcome = check_ledger(
                    side,
                    ledger_of(side, check["ledger"] or {}),
                    most=self.options["max_differences"],
                    delay=self.options["recheck_delay"],
                    clock=self.clock,
                )
            except DbopsError as error:
                yield _result("ledger", side.name, FAILED, error=error.message)
                continue
            problems = _of_ledger(outcome)
            self.files.report("ledger", side.name, problems)
            if outcome.imbalances:
                self.files.plan(
                    repair_file.ledger_header(side.identity(), side.name, check["ledger"], self.clock.wall()),
                    repair_file.ledger_entries(outcome),
                )
            yield _result(
                "ledger",
                side.name,
                DIFFERENT if outcome.count else GOOD,
                counts={
                    "imbalances": outcome.imbalance_count,
                    "violations": outcome.violation_count,
                    "in_flight": outcome.in_flight,
                },
                differences=outcome.count,
                sample=problems[: self.options["sample"]],
                truncated=outcome.count > len(problems),
            )

    def _one_sided(self, check: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kind = check["kind"]
        if check["exclude_tables"] and not check["tables"]:
            check = {**check, "tables": ["*.*"]}
        tables = [".".join(one) for one in self._named(check)] if check["tables"] else None
        questions: dict[str, Callable[[Session], invariants.Found]] = {
            "constraints": lambda session: invariants.constraints(session, tables),
            "sequences": lambda session: invariants.sequences(session, tables),
            "indexes": lambda session: invariants.indexes(
                session, tables, amcheck=check["amcheck"], heap=check["heapallindexed"]
            ),
            "replication": lambda session: invariants.replication(
                session,
                max_lag_bytes=check["max_lag_bytes"],
                max_lag_seconds=check["max_lag_seconds"],
                max_slot_bytes=check["max_slot_bytes"],
            ),
        }
        for side in self._sides:
            try:
                found = side.ask(questions[kind])
            except DbopsError as error:
                yield _result(kind, side.name, FAILED, error=error.message)
                continue
            status = FAILED if found.unreadable else DIFFERENT if found.count else GOOD
            self.files.report(kind, side.name, found.problems)
            yield _result(
                kind,
                side.name,
                status,
                counts=found.looked_at,
                differences=found.count,
                sample=found.problems[: self.options["sample"]],
                notes=found.notes,
                error="; ".join(found.unreadable),
            )


def _result(kind: str, name: str, status: str, **more: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"counts": {}, "differences": 0, "sample": [], "notes": [], "error": ""}
    return {"kind": kind, "name": name, "status": status, **plain, **more}


def _of_table(name: str, outcome: Outcome, link: Link) -> dict[str, Any]:
    status = DIFFERENT if outcome.found else UNCONFIRMED if outcome.unconfirmed or outcome.truncated else GOOD
    kinds = [difference.kind for difference in outcome.found]
    division = outcome.division
    return _result(
        "table",
        name,
        status,
        counts={
            "rows": outcome.rows,
            "pieces": outcome.pieces,
            "resumed": outcome.resumed,
            "missing": kinds.count("missing"),
            "extra": kinds.count("extra"),
            "changed": kinds.count("changed"),
            "unconfirmed": len(outcome.unconfirmed),
            "in_flight": outcome.in_flight,
        },
        differences=len(outcome.found),
        sample=outcome.sample,
        truncated=outcome.truncated,
        key=list(outcome.key),
        columns=list(outcome.columns),
        method=outcome.method,
        division={"kind": division.kind, "why": division.why} if division else {},
        link=link.kind,
    )


def _of_ledger(outcome: LedgerOutcome) -> list[dict[str, Any]]:
    found = [{"key": list(one.key), "found": one.words()} for one in outcome.imbalances]
    return found + [{"key": one["key"], "found": f"not true: {one['condition']}"} for one in outcome.violations]


def _metrics(results: list[dict[str, Any]], labels: dict[str, str], now: float) -> list[metrics.Family]:
    texts = {name: str(value) for name, value in labels.items()}
    # The collector refuses a file with the same series twice; the last one of a kind and a name counts.
    each = list(
        {
            (one["kind"], one["name"]): ({**texts, "kind": one["kind"], "name": one["name"]}, one) for one in results
        }.values()
    )

    def of_each(name: str, text: str, value: Callable[[dict[str, Any]], float]) -> metrics.Family:
        return metrics.Family(name, text, tuple((found, value(one)) for found, one in each))

    return [
        of_each(
            "dbops_consistency_ok", "Whether it was checked and nothing differs.", lambda one: one["status"] == GOOD
        ),
        of_each("dbops_consistency_failed", "Whether it could not be checked.", lambda one: one["status"] == FAILED),
        of_each("dbops_consistency_differences", "Differences that were found.", lambda one: one["differences"]),
        of_each("dbops_consistency_duration_seconds", "How long it took.", lambda one: one["duration_ms"] / 1000),
        metrics.Family("dbops_consistency_run_timestamp_seconds", "When the last run ended.", ((texts, now),)),
    ]


class _Files:
    """report_file has all that was found, plan_file what consistency_repair needs in order to mend it."""

    def __init__(self, report: str | None, plan: str | None) -> None:
        self._report = RecordFile(report, option="report_file", replace=True) if report else None
        self._plan = RecordFile(plan, option="plan_file", replace=True) if plan else None

    def report(self, kind: str, name: str, problems: Iterable[dict[str, Any]]) -> None:
        if self._report is not None:
            self._report.add({"kind": kind, "name": name, **problem} for problem in problems)

    def plan(self, header: dict[str, Any], entries: Iterable[dict[str, Any]]) -> None:
        if self._plan is not None:
            self._plan.add([header, *entries])

    def close(self) -> None:
        for file in (self._report, self._plan):
            if file is not None:
                file.close()


def _problems(outcome: Outcome) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"difference": one.kind, "key": list(one.key)} for one in outcome.found]
    return found + [{"difference": "unconfirmed", "key": list(key)} for key in outcome.unconfirmed]
