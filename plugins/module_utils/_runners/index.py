# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An index of a table or of a tree of partitions: there, or gone, while clients read and write."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, Callable

from .._core.clock import Clock, Deadline
from .._core.errors import DbopsError
from .._core.operation import Interrupted, PlannedStep, Step
from .._postgresql.ddl import Blocker, brief
from .._postgresql.index_catalog import define, read_tree, waits_for
from .._postgresql.index_plan import (
    Action,
    Plan,
    Tree,
    check_name,
    drop_concurrently,
    estimated_bytes,
    left_invalid,
    overview,
    plan_absent,
    plan_present,
    refuse_tables,
    shown,
    wanted,
)
from .table_work import TableWork, planned

ROUNDS = 3  # a partition that is added meanwhile is indexed by the next one
OLD_SECONDS = 10  # transactions older than this are worth a warning
ENDLESS = 1e9
LOOK_SECONDS = 1.0

# Whom the session waits for. Both the progress view and the locks: the view knows the phase, the locks know everybody,
# also prepared transactions (pid 0).
_WAITING = """
SELECT coalesce((SELECT phase FROM pg_stat_progress_create_index WHERE pid = %s), '') AS phase,
       blocker AS pid, coalesce(usename, 'unknown') AS "user", coalesce(application_name, '') AS application_name,
       coalesce(host(client_addr), 'local') AS client, coalesce(state, 'prepared transaction') AS state,
       coalesce(round(extract(epoch FROM now() - xact_start)), 0)::bigint AS transaction_s, xact_start::text AS since
  FROM (SELECT (pg_blocking_pids(%s))[1] AS blocker) AS locks LEFT JOIN pg_stat_activity ON pid = blocker
"""
_ORPHANS = """
SELECT pid FROM pg_stat_activity
 WHERE application_name = %s AND datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()
"""


class IndexRun:
    """One run. ``options`` is the argument dictionary of pg_index; its RETURN documents the result."""

    def __init__(self, options: dict[str, Any], *, clock: Clock) -> None:
        self.options = options
        self.clock = clock
        self.present = options["state"] == "present"
        self.table = f"{options['schema']}.{options['table']}"
        # By this the next run knows a build of one that was killed. The server keeps 63 bytes of ASCII.
        self.application_name = f"dbops pg_index {self.table}".encode("ascii", "replace").decode()[:63]
        self.statements: list[str] = []
        self.indexes: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.definition = ""
        self.estimated_bytes: int | None = None

    def run(self, *, check_mode: bool) -> dict[str, Any]:
        """Raises DbopsError."""
        check_name(self.options["name"])
        with TableWork(self.options, clock=self.clock, verb="pg_index") as self.work:
            self.session = self.work.session
            if not check_mode:
                self.work.take_lease(self.table)
                self._wait_for_orphans()
            tree, plan = self._plan()
            before = overview(tree, self.options["name"])
            if check_mode:
                return self._predict(tree, plan, before)
            printed: list[dict[str, Any]] = []
            rounds = 0
            while plan.actions and rounds < ROUNDS:
                rounds += 1
                printed += self._printed(plan)
                self._apply(plan)
                tree, plan = self._plan()
            self._verify(tree, plan)
            return self._result(printed, before, overview(tree, self.options["name"]))

    # -- what there is, and what has to be done

    def _plan(self) -> tuple[Tree, Plan]:
        name = self.options["name"]
        tree, rows = read_tree(self.session, self.options["schema"], self.options["table"], name)
        if self.present:
            refuse_tables(tree, wanted(self.options))
            want, widths = define(self.session, tree.top, wanted(self.options))
            self.definition = want.definition
            if want.clauses.startswith('USING "btree"'):
                self.estimated_bytes = estimated_bytes(rows, widths)
            plan = plan_present(tree, want)
        else:
            plan = plan_absent(tree, name)
        self.warnings += [text for text in plan.warnings if text not in self.warnings]
        return tree, plan

    def _verify(self, tree: Tree, plan: Plan) -> None:
        index = tree.index(self.options["name"])
        good = index is not None and index.valid if self.present else index is None
        if plan.actions or not good:
            raise DbopsError(
                found=f"after the work the index is {overview(tree, self.options['name']) or 'not there'}",
                expected="a valid index" if self.present else "no index",
                remedy="somebody changes this table or its partitions: let them end, then run again",
                details=self._so_far(),
            )

    # -- doing it

    def _apply(self, plan: Plan) -> None:
        if self.work.runner is None:
            self.work.open_journal(self.table, {key: self.options[key] for key in ("name", "state", "schema", "table")})
        try:
            self.work.run([self._step(action) for action in plan.actions])
        except DbopsError as error:
            raise error.with_details(**self._so_far()) from error

    def _step(self, action: Action) -> Step:
        """Without an undo: what is there is kept, and the next run goes on from it."""
        apply = self._build if action.kind in ("build", "reindex") else self._brief if action.brief else self._long
        return Step(_planned(action), partial(apply, action))

    def _brief(self, action: Action) -> None:
        began = self.clock.monotonic()
        self.statements.append(action.statement.sql)
        brief(self.session, [action.statement], patience=self.work.patience)
        self._done(action, began)

    def _build(self, action: Action) -> None:
        try:
            self._long(action)
        except DbopsError:
            try:
                self._clean_up(action)
            except DbopsError as second:
                self.warnings.append(f"an invalid index is left, and dropped by the next run: {second.found}")
            raise

    def _long(self, action: Action, *, clean_up: bool = False) -> None:
        """In a session of its own, which may wait as long as it has to, while another one sees for whom it waits."""
        began = self.clock.monotonic()
        sql = action.statement.sql
        with self.work.connect() as worker:
            worker.run("SELECT set_config('application_name', %s, false)", [self.application_name])
            if self.options.get("maintenance_work_mem"):
                worker.run(
                    "SELECT set_config('maintenance_work_mem', %s, false)", [self.options["maintenance_work_mem"]]
                )
            pid = worker.value("SELECT pg_backend_pid()")
            failed: list[DbopsError] = []

            def execute() -> None:
                try:
                    worker.run(sql, deadline=Deadline.after(self.clock, ENDLESS))
                except DbopsError as error:
                    failed.append(error)

            self.statements.append(sql)
            thread = threading.Thread(target=execute, daemon=True)
            thread.start()

            def works(wait: float) -> bool:
                thread.join(wait)
                return thread.is_alive()

            ended = self._watch(pid, works, action, clean_up=clean_up)
            if ended is not None:
                raise ended
            if failed:
                raise _explained(failed[0], action)
        self._done(action, began)

    def _watch(
        self, pid: int, works: Callable[[float], bool], action: Action | None = None, *, clean_up: bool = False
    ) -> DbopsError | None:
        """Until the session has done its work. Cancels it, and returns why, when it waits for one and the same
        transaction longer than max_locker_wait, and when the run is told to stop."""
        limited_by = "lock_wait_timeout" if clean_up else "max_locker_wait"
        limit = self.options[limited_by]
        phase, locker, since = "", None, 0.0
        while works(LOOK_SECONDS):
            found = self.session.rows(_WAITING, [pid, pid])[0]
            if found["phase"] != phase and action is not None:
                phase = found["phase"]
                self._note(action.name, phase)
            if (found["pid"], found["since"]) != locker:
                locker, since = (found["pid"], found["since"]), self.clock.monotonic()
            waited = self.clock.monotonic() - since
            stop = self.work.runner.told_to_stop if self.work.runner is not None and not clean_up else 0
            why: DbopsError | None = None
            if stop:
                why = Interrupted(
                    found=f"the run was told to stop (signal {stop})",
                    expected="to run to its end",
                    remedy="run it again when you want to: it keeps the parts that are built",
                )
            elif found["pid"] is not None and waited >= limit:
                why = DbopsError(
                    found=f"for {waited:.0f} s ({found['phase'] or 'before it began'}) it had to wait for "
                    f"pid {found['pid']} ({found['user']}, {found['application_name'] or 'no application_name'}, "
                    f"{found['client']}), {found['state']}, transaction of {found['transaction_s']} s",
                    expected=f"no transaction that is in the way for {limit} s ({limited_by})",
                    remedy="end that transaction or allow for more time, then run again: what is built stays",
                    details={"locker": {key: found[key] for key in found if key not in ("since", "phase")}},
                )
            if why is not None:
                self.session.run("SELECT pg_cancel_backend(%s)", [pid])
                works(30 * LOOK_SECONDS)
                return why
        return None

    def _note(self, step: str, phase: str) -> None:
        if self.work.journal is not None:
            self.work.journal.append(step, "note", durable=False, phase=phase)

    def _clean_up(self, action: Action) -> None:
        """What a build that failed leaves: an index that nobody reads and every write has to fill. Dropping it waits
        for the readers of the table; not for ever, because the next run does it as well."""
        tree, _rows = read_tree(self.session, self.options["schema"], self.options["table"], self.options["name"])
        for table in tree.tables:
            for index in left_invalid(table, action.index):
                self._long(drop_concurrently(table, index), clean_up=True)

    def _wait_for_orphans(self) -> None:
        """The server goes on with a build whose client was killed. It is our build: what it makes is kept."""
        for row in self.session.rows(_ORPHANS, [self.application_name]):
            pid = row["pid"]

            def works(wait: float, pid: int = pid) -> bool:
                self.clock.sleep(min(wait, 0.2))
                return any(found["pid"] == pid for found in self.session.rows(_ORPHANS, [self.application_name]))

            self.warnings.append(f"pid {pid} was still at work for a run that was killed; waited for it")
            # Cancelled or not: the plan finds out what it left.
            self._watch(pid, works)

    def _done(self, action: Action, began: float) -> None:
        seconds = round(self.clock.monotonic() - began, 3)
        self.indexes.append(
            {"table": action.table.shown, "index": action.index, "action": action.kind, "seconds": seconds}
        )

    # -- saying it

    def _printed(self, plan: Plan, *, look: bool = False) -> list[dict[str, Any]]:
        return [self.work.printed(_planned(action), [action.statement], look=look) for action in plan.actions]

    def _predict(self, tree: Tree, plan: Plan, before: dict[str, str]) -> dict[str, Any]:
        printed = self._printed(plan, look=True)
        for step in printed:
            found = [Blocker(**each) for one in step["by_statement"] for each in one["blocked_by"]]
            self.warnings += [f"{step['name']}: {each}" for each in found if each.transaction_s >= OLD_SECONDS]
        waits = waits_for(self.session) if not all(action.brief for action in plan.actions) else []
        self.warnings += [
            f"it will have to wait for pid {row['pid']} ({row['user']}, {row['application_name']}, {row['client']}), "
            f"{row['state']}, transaction of {row['transaction_s']} s"
            for row in waits
            if row["transaction_s"] >= OLD_SECONDS
        ]
        self.statements = [action.statement.sql for action in plan.actions]
        after = {}
        if self.present:
            after = {**before, **{action.table.shown: action.index for action in plan.actions if action.kind != "drop"}}
            if tree.top.shown in after and plan.actions:
                after[tree.top.shown] = f"{shown(tree.top.schema, self.options['name'])} {self.definition}"
        return {**self._result(printed, before, after), "waits_for": waits}

    def _so_far(self) -> dict[str, Any]:
        return {
            "statements": self.statements,
            "indexes": self.indexes,
            "warnings": self.warnings,
            "changed": bool(self.indexes),
        }

    def _result(self, printed: list[dict[str, Any]], before: dict[str, str], after: dict[str, str]) -> dict[str, Any]:
        return {
            **self._so_far(),
            "changed": bool(printed),
            "plan": printed,
            "timeline": self.work.runner.timeline if self.work.runner is not None else [],
            "estimated_bytes": self.estimated_bytes,
            "diff": {"before": {"indexes": before}, "after": {"indexes": after}},
        }


def _planned(action: Action) -> PlannedStep:
    table = action.table.shown
    summary = {
        "create": f"an index of {table} alone; partitions that come get their part by themselves from now on",
        "build": f"build it on {table} while clients write",
        "reindex": f"build the part of {table} again: it is attached and invalid",
        "attach": f"make the part of {table} a part of the whole; the last one makes the whole valid",
        "drop": "drop it" if action.brief else f"drop it from {table} while clients write",
    }[action.kind]
    return planned(action.name, summary, [action.statement])


def _explained(error: DbopsError, action: Action) -> DbopsError:
    state = error.details.get("sqlstate", "")
    remedies = {
        "23505": "make the rows that it names unique, then run again",
        "57014": "somebody cancelled it; run again when you want to: it keeps the parts that are built",
        "57P01": "somebody ended the session; run again: it keeps the parts that are built",
    }
    return DbopsError(
        found=f"{action.statement.sql}: {error.found}",
        expected="the server does it",
        remedy=remedies.get(state, "mend what the server names, then run again: it keeps the parts that are built"),
        details=error.details,
    )
