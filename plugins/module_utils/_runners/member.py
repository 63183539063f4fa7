# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One member on its own host: fenced, so that it can accept no write. rejoin.py lets it follow the primary again.

How far a member has come only it can say, so a stopped one is started alone, as a standby of nobody: it replays its own
WAL to the end and stops there. Nothing else is needed to serve what it has to others, to compare it with the primary,
and to make pg_rewind work.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

from .._core.clock import Clock, Deadline, wait_until
from .._core.errors import DbopsError
from .._core.journal import Journal, LockFile, make_state_directory, params_hash
from .._postgresql.control import IN_ARCHIVE_RECOVERY, read_control
from .._postgresql.local import AUTO_CONF, LocalServer
from .members import ClusterSessions, members

CALL_SECONDS = 10.0
# It neither streams nor restores, and stays on the timeline it is on, so that it stops at the end of its own WAL.
ALONE = {"primary_conninfo": "", "restore_command": "", "recovery_target_timeline": "current"}
BEFORE = "postgresql.auto.conf.dbops"
"""What postgresql.auto.conf was before ALONE was written into it."""


class Member:
    """``options`` is the argument dictionary of pg_member; its RETURN documents the results. This one fences."""

    def __init__(self, options: dict[str, Any], *, clock: Clock) -> None:
        self.options = options
        self.clock = clock
        self.name: str = options["node"]
        self.members = members(options["nodes"])
        for role in ("node", "primary"):
            if options.get(role) and options[role] not in self.members:
                raise DbopsError(
                    found=f"{role} {options[role]} is not among the members {', '.join(sorted(self.members))}",
                    expected="the name of a member",
                    remedy=f"correct {role}, or add the member to dbops_clusters",
                )
        self.local = LocalServer.of(options["local"], clock)
        self.sessions = ClusterSessions(
            options["nodes"], clock=clock, application_name="dbops pg_member", timeout=CALL_SECONDS
        )
        self.directory = Path(options["state_dir"]) / options["cluster"]
        self.own = self.directory / "member"
        self.journal: Journal | None = None
        self.operation = ""
        self.warnings: list[str] = []

    def run(self, *, check_mode: bool) -> dict[str, Any]:
        """Raises DbopsError."""
        problem = self.local.problem() or self.local.service.problem()
        if problem:
            raise DbopsError(
                found=problem,
                expected=f"the data directory and the service of {self.name}, and a user who may handle them",
                remedy="correct local, and become root or the owner of the data directory",
            )
        lock = LockFile(self.directory / "lock")
        try:
            self._refuse_another_members_data()
            if not check_mode:
                make_state_directory(self.directory)
                lock.acquire(f"pg_member {self.options['state']} of {self.name}")
                make_state_directory(self.own)
            return self._act(check_mode=check_mode)
        finally:
            self.sessions.close()
            lock.release()

    def _refuse_another_members_data(self) -> None:
        """Where its entry names the host of a standby, that standby would be taken for the fence of a primary which
        still accepts writes. A running member shows by the process of its session where it is."""
        for other in self.members:
            if other == self.name:
                continue
            try:
                pid = int(self.sessions.to(other, timeout=2.0).value("SELECT pg_backend_pid()"))
            except DbopsError:
                self.sessions.drop(other)
                continue
            if self.local.runs(pid):
                raise DbopsError(
                    found=f"data_dir {self.local.data_dir} on this host is that of {other}, which runs there",
                    expected=f"the data directory of {self.name}",
                    remedy=f"correct host and data_dir of {self.name}; nothing was changed",
                    details={"state": "refused", "changed": False},
                )

    def _note(self, step: str, event: str, **data: Any) -> None:
        if self.journal is not None:
            self.journal.append(step, event, **data)

    def _open_journal(self) -> None:
        stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(self.clock.wall()))
        self.operation = operation = f"{stamp}_{secrets.token_hex(3)}"
        meaning = {"kind": self.options["state"], "member": self.name, "primary": self.options.get("primary")}
        self.journal = Journal(
            self.own / f"{operation}.jsonl", operation=operation, clock=self.clock, fingerprint=params_hash(meaning)
        )
        self._note("operation", "opened", **meaning)

    # --------------------------------------------------------------------------------------------------------- fenced

    def _is_fenced(self) -> bool:
        """It is down, or a standby; and whoever starts it starts a standby."""
        if not self.local.signal_planted():
            return False
        if read_control(self.local.data_dir, self.clock).state == IN_ARCHIVE_RECOVERY:
            return True
        return not self.local.processes()

    def _await_fenced(self, seconds: float) -> bool:
        deadline = Deadline.after(self.clock, seconds)
        while not self._is_fenced():
            if deadline.passed():
                return False
            self.clock.sleep(0.02)
        return True

    def _act(self, *, check_mode: bool) -> dict[str, Any]:
        serve = bool(self.options["serve_wal"])
        done = self._is_fenced() and (not serve or self._serves())
        if not done and not check_mode:
            self._open_journal()
            self.fence()
            if serve:
                try:
                    self.start_alone()
                except DbopsError as error:
                    if self.local.pid() is not None:
                        raise  # it has WAL, and may still come to serve it
                    # Damaged, perhaps; it is fenced all the same.
                    self.warnings.append(f"{self.name} cannot be started to serve its WAL: {error.found}")
            self._note("operation", "closed", state="fenced")
        return {
            "changed": not done,
            "state": "fenced" if done or not check_mode else "would fence",
            "msg": f"{self.name} {'is' if done or not check_mode else 'would be'} fenced: it can accept no write, and"
            " whoever starts it starts a standby",
            "fence": {
                "confirmed": done or not check_mode,
                "by": f"standby.signal was planted and the service stopped on the host of {self.name}",
                "synchronous_standby_names": self.local.configured("synchronous_standby_names", bin_dir=""),
            },
            "warnings": self.warnings,
        }

    def fence(self) -> None:
        """Plant the signal first: from then on any restart gives a standby. Then stop what still runs, by force where
        it does not listen, and see that nothing is left that could acknowledge a commit."""
        self._note("fence", "start")
        self.local.plant_signal()
        if not self._is_fenced():
            self.local.begin_stop()
            if not self._await_fenced(self.options["stop_timeout"]):
                self.local.kill(Deadline.after(self.clock, CALL_SECONDS))
        if not self._await_fenced(1.0):
            raise DbopsError(
                found=f"processes of {self.name} still run although its service was stopped and they were killed",
                expected="no process of this server, or a standby",
                remedy="cut its power or its network, and say so by a fence command; do not promote anybody before",
                details={"state": "not fenced", "changed": True},
            )
        self._note("fence", "done")

    def _serves(self) -> bool:
        try:
            return self.sessions.to(self.name, timeout=2.0).value("SELECT pg_is_in_recovery()") is True
        except DbopsError:
            self.sessions.drop(self.name)
            return False

    # ---------------------------------------------------------------------------------------------------------- alone

    def start_alone(self) -> None:
        """Start the stopped server as a standby of nobody, and wait until it has replayed all WAL that it has."""
        self._note("alone", "start")
        self.local.plant_signal()
        self.local.keep_copy(AUTO_CONF, BEFORE)
        self.local.write_settings(ALONE)
        self._start()
        self._await_end_of_wal(Deadline.after(self.clock, self.options["recovery_timeout"]))
        self._note("alone", "done")

    def _start(self) -> None:
        self.local.plant_signal()
        self.local.start(Deadline.after(self.clock, self.options["recovery_timeout"]))

    def _stop(self) -> None:
        self.sessions.drop(self.name)
        self.local.begin_stop()
        if not self.local.end_stop(Deadline.after(self.clock, self.options["stop_timeout"])):
            raise DbopsError(
                found=f"{self.name} did not stop within {self.options['stop_timeout']} s",
                expected="its service stops it, and nothing else starts it again",
                remedy="find out what keeps it (its log) or starts it again, and run again",
            )

    def _await_end_of_wal(self, deadline: Deadline) -> None:
        def waits_for() -> str:
            try:
                rows = self.sessions.to(self.name, timeout=2.0).rows(
                    "SELECT coalesce(wait_event, 'replaying') AS what FROM pg_stat_activity"
                    " WHERE backend_type = 'startup'"
                )
            except DbopsError as error:
                self.sessions.drop(self.name)
                return error.found
            return str(rows[0]["what"]) if rows else "no startup process: it is no standby"

        wait_until(
            waits_for,
            lambda what: what == "RecoveryRetrieveRetryInterval",
            deadline=deadline,
            interval=0.05,
            what=f"{self.name} has replayed all WAL that it has",
            remedy="read its log; give recovery_timeout more time if it is still replaying. serve_wal=false (the role's"
            " promote_replica_salvage) fences without serving: a failover loses what only this member has",
        )
