# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy the rows of a default partition that is being rebuilt, and compare both."""

from __future__ import annotations

from contextlib import suppress

from .._core.clock import Deadline
from .._core.errors import DbopsError
from .._core.operation import Interrupted
from .._postgresql.ddl import TRY_AGAIN, may_set_deadlock_timeout
from .._postgresql.partition_archive import shown
from .._postgresql.partition_catalog import Partition, PartitionedTable
from .._postgresql.partition_shadow import batch, comparison, more
from .table_work import TableWork

FIRST_ROWS, MOST_ROWS, FEWEST_ROWS = 1_000, 20_000, 100
QUICK, SLOW = 0.1, 0.25  # seconds that a batch should take: whoever changes one of its rows waits for it
STATEMENT_CANCELLED = "57014"
COMPARE_SECONDS = 24 * 3600.0
# A writer that waits for a row of the batch may hold one that the batch comes to. The server looks for a deadlock after
# deadlock_timeout, 1 s, and ends the one that looks: it must be us, so no batch may make anybody wait that long.
_SETTINGS = """
SELECT set_config('lock_timeout', '100ms', false), set_config('statement_timeout', '700ms', false),
       CASE WHEN {deadlock} THEN set_config('deadlock_timeout', '10ms', false) END
"""


class ShadowCopy:
    def __init__(self, work: TableWork, table: PartitionedTable) -> None:
        self.work = work
        self.table = table
        if table.default is None:
            raise AssertionError(f"{table.full_name} has no default partition")
        self.default: Partition = table.default

    def copy(self) -> None:
        """Until no row is left: a batch that finds none may have had some that were deleted. Raises DbopsError where no
        batch gets through for ``lock_wait_timeout`` seconds."""
        clock = self.work.clock
        with self.work.connect() as session:
            session.run(_SETTINGS.format(deadlock=may_set_deadlock_timeout(self.work.version_num)))
            last: list[str] = []
            size = FIRST_ROWS
            patience = Deadline.after(clock, self.work.patience.seconds)
            while True:
                self._stop_if_told()
                began = clock.monotonic()
                try:
                    rows = session.rows(batch(self.table, self.default, first=not last), [*last, size])
                except DbopsError as error:
                    if error.details.get("sqlstate") not in (*TRY_AGAIN, STATEMENT_CANCELLED) or patience.passed():
                        raise
                    size = max(FEWEST_ROWS, size // 2)
                    clock.sleep(0.05)
                    continue
                if not rows and not self.work.session.value(
                    more(self.table, self.default, first=not last), last or None
                ):
                    return
                patience = Deadline.after(clock, self.work.patience.seconds)
                if rows:
                    last = [rows[0][column.name] for column in self.table.primary_key]
                took = clock.monotonic() - began
                if took < QUICK:
                    size = min(MOST_ROWS, size * 2)
                elif took > SLOW:
                    size = max(FEWEST_ROWS, size // 2)

    def compare(self) -> None:
        """Raises DbopsError where the copy is not what the original is, as one snapshot sees both."""
        session = self.work.session
        deadline = Deadline.after(self.work.clock, COMPARE_SECONDS)
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            old, new = session.rows(comparison(self.table, self.default), deadline=deadline)
        finally:
            with suppress(DbopsError):
                session.run("ROLLBACK")
        if old != new:
            raise DbopsError(
                found=f"{self.default.full_name} has {shown(old)}, its copy {shown(new)}",
                expected="the same rows",
                remedy="nothing was changed; report this with the journal: a defect, or triggers of yours on the table",
            )

    def _stop_if_told(self) -> None:
        runner = self.work.runner
        if runner is not None and runner.told_to_stop:
            raise Interrupted(
                found=f"the run was told to stop (signal {runner.told_to_stop}) while it copied",
                expected="to run to its end",
                remedy="nothing was changed; run it again when you want to",
            )
