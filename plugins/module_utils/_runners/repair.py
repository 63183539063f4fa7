# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mend what a check has found, row by row, each only if both sides still are what the check saw; and take that back.

Every row is locked, looked at again, and its state before is in the undo file, on disk, before it is changed. It is
looked at once more before the commit: where a trigger made something else of it, it is not changed at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any

from .._core.clock import Clock
from .._core.errors import DbopsError
from .._core.records import RecordFile, read_records
from .._postgresql.client import Session, connect
from .._postgresql.compare_catalog import TableFacts, read_table
from .._postgresql.compare_plan import Key, Statements
from .._postgresql.repair_plan import CASCADES, EQUAL, TRIGGERS, Balance, Cascade, Entry, Mending, why_not
from .._postgresql.row_hash import Column, RowHash
from .._postgresql.session_settings import SAME_EVERYWHERE, UNLIMITED, set_all
from .ledger_check import ledger_of
from .repair_file import VERSION, Section, sections
from .table_work import hold_lease
from .two_sides import CALL_SECONDS, LOGIN_SECONDS, Side

LOCK_TIMEOUT = "5s"


@dataclass
class Outcome:
    """``skipped``: what was left alone, each with why."""

    mended: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def repair(options: dict[str, Any], *, clock: Clock, check_mode: bool) -> dict[str, Any]:
    """``options`` is the argument dictionary of consistency_repair; its RETURN documents the result."""
    undoing = options["state"] == "undone"
    path = options["undo_file"] if undoing else options["plan_file"]
    found = sections(read_records(path, option="undo_file" if undoing else "plan_file"), path=path)
    entries = sum(len(section.entries) for section in found)
    if entries > options["max_rows"]:
        raise DbopsError(
            found=f"{path} has {entries} rows",
            expected=f"at most max_rows = {options['max_rows']}",
            remedy="so many differences are seldom a matter of rows: find their cause; or raise max_rows",
        )
    work = _Repair(options, clock, check_mode=check_mode, undoing=undoing)
    try:
        outcome = work.run(found)
    finally:
        work.close()
    result = {
        "changed": bool(outcome.mended),
        "mended": len(outcome.mended),
        "skipped": len(outcome.skipped),
        "failed_rows": len(outcome.failed),
        "rows": [*outcome.failed, *outcome.skipped, *outcome.mended][: options["sample"]],
        "statements": outcome.statements[: options["sample"]],
        "warnings": outcome.warnings,
    }
    if outcome.failed:
        first = outcome.failed[0]
        raise DbopsError(
            found=f"{len(outcome.failed)} rows could not be changed, the first {first['key']} of {first['table']}:"
            f" {first['why']}",
            expected="every row that still is as the check saw it can be mended",
            remedy="the others were mended; mend the cause, check again, and repair what is left",
        ).with_details(**{key: value for key, value in result.items() if key != "warnings"})
    return result


class _Repair:
    def __init__(self, options: dict[str, Any], clock: Clock, *, check_mode: bool, undoing: bool) -> None:
        self.options = options
        self.clock = clock
        self.check_mode = check_mode
        self.undoing = undoing
        self.source = Side("source", options["source"], clock=clock) if options["source"] else None
        self.target = Side("target", options["target"], clock=clock)
        self.outcome = Outcome()
        self._undo: RecordFile | None = None
        self._writer: Session | None = None
        self._lease: Session | None = None

    def close(self) -> None:
        for side in (self.source, self.target):
            if side is not None:
                side.close()
        for session in (self._writer, self._lease):
            if session is not None:
                session.close()
        if self._undo is not None:
            self._undo.close()

    @property
    def writer(self) -> Session:
        if self._writer is None:
            self._writer = self._connect()
        return self._writer

    def _connect(self) -> Session:
        session = connect(
            self.target.endpoint, clock=self.clock, timeout=LOGIN_SECONDS, application_name="dbops consistency_repair"
        )
        session.timeout = CALL_SECONDS
        settings = {**SAME_EVERYWHERE, **UNLIMITED, "lock_timeout": LOCK_TIMEOUT}
        session.run(set_all(settings, session.raw.server_version))
        return session

    def run(self, found: list[Section]) -> Outcome:
        if self.writer.value("SELECT pg_is_in_recovery()"):
            raise DbopsError(
                found=f"{self.target.endpoint.label} is a standby",
                expected="a server that accepts writes",
                remedy="a standby that differs from its primary is damaged: make it anew from a base backup",
            )
        if not self.check_mode:
            self._take_lease()
        found = [section for section in found if self._mine(section)]
        # Nothing is touched before all of it was looked at.
        jobs = [self._job(section) for section in found]
        for section, job in zip(reversed(found) if self.undoing else found, reversed(jobs) if self.undoing else jobs):
            for entry in reversed(section.entries) if self.undoing else section.entries:
                self._one(section, entry, job)
        return self.outcome

    def _take_lease(self) -> None:
        self._lease = self._connect()
        name = self.target.endpoint.dbname
        hold_lease(self._lease, f"consistency_repair.{name}", what=f"repairs of database {name}")

    # -- before anything is touched

    def _job(self, section: Section) -> _Job:
        self._check_age(section)
        self._check_sides(section)
        if section.header["header"] == "ledger":
            return _LedgerJob(self, section)
        return _TableJob(self, section)

    def _check_age(self, section: Section) -> None:
        age = self.clock.wall() - section.header["made"]
        if not self.undoing and age > self.options["max_age"]:
            raise DbopsError(
                found=f"the plan was made {age:.0f} s ago",
                expected=f"at most max_age = {self.options['max_age']:g} s",
                remedy="check again, and repair what that finds",
            )

    def _check_sides(self, section: Section) -> None:
        wanted = section.header["sides"]
        mine = {"target": self.target, "source": self.source}
        if section.header["header"] == "ledger":
            [identity] = wanted.values()
            wanted = {"target": identity}
        for name, identity in wanted.items():
            side = mine[name]
            if name == "source" and self.undoing:
                continue  # nothing is read there
            if side is None:
                raise DbopsError(
                    found="no source is given, and the plan has rows of tables",
                    expected="the source that the check compared with",
                    remedy="give source",
                )
            now = side.identity()
            if now != identity:
                raise DbopsError(
                    found=f"{side.endpoint.label} is database {now['database']} of system {now['system']}, timeline"
                    f" {now['timeline']}; the plan is of {identity['database']}, {identity['system']},"
                    f" {identity['timeline']}",
                    expected="the server that was checked, without a promotion or a restore since",
                    remedy="correct source and target, or check again",
                )

    def _mine(self, section: Section) -> bool:
        """A check of two sides may find balances wrong on either; those of the other one are left for another run."""
        if section.header["header"] != "ledger" or self.source is None:
            return True
        [identity] = section.header["sides"].values()
        if identity == self.target.identity() or identity != self.source.identity():
            return True
        self.outcome.warnings.append("balances of the source are in the plan, too: mend them with it as the target")
        return False

    # -- one row

    def _one(self, section: Section, entry: dict[str, Any], job: _Job) -> None:
        said = {"table": job.name, "key": entry["key"]}
        session = self.writer
        session.run("BEGIN")
        try:
            change = job.look(entry)
            if isinstance(change, str):
                session.run("ROLLBACK")
                self.outcome.skipped.append({**said, "why": change})
                return
            self.outcome.statements.append(_shown(change.statement))
            if self.check_mode:
                session.run("ROLLBACK")
                self.outcome.mended.append({**said, "what": change.what})
                return
            if not self.undoing:
                self._remember(section, change.undo)
            text, values = change.statement
            session.run(text, values)
            wrong = change.verify()
            if wrong:
                session.run("ROLLBACK")
                self.outcome.failed.append({**said, "why": wrong})
                return
            session.run("COMMIT")
        except DbopsError as error:
            if session.closed:
                raise error.with_details(changed=bool(self.outcome.mended), mended=len(self.outcome.mended)) from error
            session.run("ROLLBACK")
            self.outcome.failed.append({**said, "why": _why(error)})
            return
        self.outcome.mended.append({**said, "what": change.what})

    def _remember(self, section: Section, record: dict[str, Any]) -> None:
        if self._undo is None:
            self._undo = RecordFile(self.options["undo_file"], option="undo_file", replace=False)
            self._section: Section | None = None
        header: list[dict[str, Any]] = []
        if self._section is not section:
            self._section = section
            header = [{**section.header, "v": VERSION}]
        self._undo.add([*header, record], durable=True)


def _why(error: DbopsError) -> str:
    """The server's message without its details, which have the row's values in them."""
    constraint = error.details.get("constraint")
    return (error.details.get("primary") or error.found) + (f" ({constraint})" if constraint else "")


def _shown(statement: tuple[str, list[Any]]) -> str:
    """Without values, which may be anything."""
    return statement[0].replace("%%", "%")


@dataclass
class _Change:
    what: str
    statement: tuple[str, list[Any]]
    undo: dict[str, Any]
    verify: Callable[[], str]


class _Job:
    """What is to become of the entries of one section. ``look`` reads and locks; a string says why nothing is done."""

    name: str

    def look(self, entry: dict[str, Any]) -> _Change | str:
        raise NotImplementedError


class _TableJob(_Job):
    def __init__(self, work: _Repair, section: Section) -> None:
        self.work = work
        header = section.header
        self.name = header["table"]
        schema, _dot, table = self.name.partition(".")
        facts = read_table(work.target.session, schema, table)
        if facts is None:
            raise _stale(f"the target has no table {self.name}")
        self.facts = facts
        for name, type_ in header["types"].items():
            column = facts.column(name)
            if column is None or column.type != type_:
                raise _stale(f"{name} of {self.name} is {column.type if column else 'gone'}, it was {type_}")
        hashed = {one["name"]: Column(**one) for one in header["hashed"]}
        self.key = tuple(hashed[name] for name in header["key"])
        if tuple(header["key"]) not in facts.keys or facts.inherited:
            raise _stale(f"{', '.join(header['key'])} is not a unique key of {self.name}: a row cannot be told by it")
        hashing = RowHash(tuple(hashed.values()), header["method"], header["seed"], strict=header["strict"])
        # Without the condition of the check: a row that does not meet it is no missing row.
        self.statements = Statements(facts.sql, self.key, hashing)
        self.cascades = [
            Cascade(**{**row, "columns": tuple(row["columns"]), "referenced": tuple(row["referenced"])})
            for row in work.writer.rows(CASCADES, [facts.oid])
        ]
        written = tuple(column for column in facts.columns if not column.generated)
        self.mending = Mending(facts.sql, self.key, written, frozenset(header["columns"]))
        self.copied = self._copied(schema, table)
        triggers = work.writer.rows(TRIGGERS, [facts.oid])
        if triggers:
            names = ", ".join(row["name"] for row in triggers)
            work.outcome.warnings.append(f"triggers of {self.name} fire for every row that is mended: {names}")

    def _copied(self, schema: str, table: str) -> tuple[Column, ...]:
        """Those that the source has, too."""
        there = read_table(self.work.source.session, schema, table) if self.work.source else None
        return tuple(column for column in self.mending.columns if there and there.column(column.name) is not None)

    def _own(self, key: Key, *, lock: bool) -> list[_Found]:
        text = self.statements.look_up([key], self.mending.columns) + (" FOR UPDATE" if lock else "")
        return self._found(self.work.writer.tuples(text), self.mending.columns)

    def _found(self, rows: list[tuple[Any, ...]], columns: tuple[Column, ...]) -> list[_Found]:
        width, names = len(self.key), [column.name for column in columns]
        return [_Found(str(row[width]), dict(zip(names, row[width + 2 :]))) for row in rows]

    def look(self, entry: dict[str, Any]) -> _Change | str:
        key: Key = tuple(entry["key"])
        now = self._own(key, lock=True)
        if self.work.undoing:
            return self._back(entry, key, now)
        if self.work.source is None:
            raise AssertionError("refused before")
        wanted = self._found(self.work.source.look(self.statements.look_up([key], self.copied)), self.copied)
        seen = Entry(key, entry["source"], entry["target"])
        why = why_not(seen, [row.hash for row in wanted], [row.hash for row in now])
        if why:
            return why
        row = wanted[0].values if wanted else None
        return self._change(key, row, seen.source, now)

    def _source_is_still(self, key: Key, hashed: str) -> bool:
        if self.work.undoing or self.work.source is None:
            return True
        rows = self._found(self.work.source.look(self.statements.look_up([key], self.copied)), self.copied)
        return "".join(row.hash for row in rows) == hashed

    def _back(self, entry: dict[str, Any], key: Key, now: list[_Found]) -> _Change | str:
        if "".join(row.hash for row in now) != entry["after"]:
            return EQUAL if not now and entry["before"] is None else "it was changed after the repair"
        # Somebody may have written to columns that were not compared.
        if (
            now
            and entry["before"] is None
            and any(now[0].values.get(name) != value for name, value in (entry["added"] or {}).items())
        ):
            return "it was changed after the repair"
        return self._change(key, entry["before"], entry["before_hash"], now)

    def _change(self, key: Key, row: dict[str, Any] | None, hashed: str, now: list[_Found]) -> _Change | str:
        what = "removed" if row is None else "changed" if now else "added"
        if now:
            after = None if row is None else {name: row[name] for name in self.mending.compared if name in row}
            for cascade in self.cascades:
                question = cascade.children(now[0].values) if cascade.concerns(now[0].values, after) else None
                if question and self.work.writer.value(*question):
                    return f"{cascade.child} has rows that {cascade.name} would change with it: mend those first"
        undo = {
            "key": list(key),
            "before": now[0].values if now else None,
            "before_hash": now[0].hash if now else "",
            "after": hashed,
            "added": row if not now else None,
        }

        def verify() -> str:
            if not self._source_is_still(key, hashed):
                return "the source's row has changed meanwhile"
            after = "".join(found.hash for found in self._own(key, lock=False))
            return "" if after == hashed else "something (a trigger?) made another row of it"

        return _Change(what, self.mending.statement(key, row, present=bool(now)), undo, verify)


@dataclass
class _Found:
    hash: str
    values: dict[str, Any]


class _LedgerJob(_Job):
    """A balance becomes the sum of its journal; what is reserved stays reserved."""

    def __init__(self, work: _Repair, section: Section) -> None:
        self.work = work
        words = section.header["ledger"]
        self.ledger = ledger_of(work.target, words)
        schema, _dot, table = words["accounts"].rpartition(".")
        facts = read_table(work.target.session, schema or "public", table)
        if facts is None:
            raise _stale(f"the target has no table {words['accounts']}")
        self.name = facts.full_name
        key = tuple(column for name in words["key"] if (column := facts.column(name)) is not None)
        self.balance = Balance(
            facts.sql,
            key,
            words["balance"],
            *(name if _has(facts, name) else "" for name in (words["available"], words["reserved"], words["version"])),
        )

    def look(self, entry: dict[str, Any]) -> _Change | str:
        key: Key = tuple(entry["key"])
        if entry.get("accounts", 1) != 1:
            return "there is no account, or several: that is for the application to mend"
        rows = self.work.writer.rows(self.balance.read(), list(key))
        if len(rows) != 1:
            return "there is no account, or several: that is for the application to mend"
        now = rows[0]
        if now["balance"] is None:
            return "its balance is NULL: that is for the application to mend"
        if self.work.undoing:
            return self._back(entry, key, now)
        off = self._off(key)
        if off is None:
            return EQUAL
        if off.is_nan():
            return "an entry of the journal is neither credit nor debit: mend the entry"
        if off != Decimal(entry["off"]):
            return f"the balance is off by {off} now, and was by {entry['off']}"
        wanted = _sum(now["balance"], off)
        return self._change(key, wanted, wanted, now, f"the balance was off by {off}")

    def _off(self, key: Key) -> Decimal | None:
        """The journal's sum less the balance, read while the account is locked; None where they are equal."""
        rows = self.work.writer.tuples(self.ledger.imbalances(1, [key]))
        return Decimal(rows[0][len(key)]) if rows else None

    def _back(self, entry: dict[str, Any], key: Key, now: dict[str, Any]) -> _Change | str:
        if Decimal(now["balance"]) != Decimal(entry["after"]) or now["version"] != entry["after_version"]:
            return "it was changed after the repair"
        before = entry["before"]
        parts = before["available"], before["reserved"]
        whole = before["balance"] if None in parts else _sum(*parts)
        return self._change(key, before["balance"], whole, now, "what it was before")

    def _change(self, key: Key, wanted: str, whole: str, now: dict[str, Any], what: str) -> _Change:
        after_version = None if now["version"] is None else str(int(now["version"]) + 1)
        undo = {"key": list(key), "before": now, "after": wanted, "after_version": after_version}

        def verify() -> str:
            rows = self.work.writer.rows(self.balance.read(), list(key))
            if not rows or Decimal(rows[0]["balance"]) != Decimal(wanted) or rows[0]["version"] != after_version:
                return "something (a trigger?) made another balance of it"
            if not self.work.undoing and self._off(key) is not None:
                return "it would still not be the sum of its journal (a column with fewer digits?)"
            broken = [] if self.work.undoing else [text for text in self.ledger.conditions if self._breaks(text, key)]
            return f"the account would not meet {broken[0]}" if broken else ""

        return _Change(what, self.balance.write(key, wanted, whole, now["version"]), undo, verify)

    def _breaks(self, condition: str, key: Key) -> bool:
        return bool(self.work.writer.tuples(self.ledger.violations(condition, 1, [key])))


def _sum(*parts: Any) -> str:
    """Exact, whatever the number of digits."""
    with localcontext() as context:
        context.prec = 2000
        return f"{sum((Decimal(part) for part in parts), Decimal(0)):f}"


def _has(facts: TableFacts, name: str) -> bool:
    return bool(name) and facts.column(name) is not None


def _stale(found: str) -> DbopsError:
    return DbopsError(
        found=found,
        expected="tables as they were when they were checked",
        remedy="check again, and repair what that finds",
    )
