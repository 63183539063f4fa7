# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A member follows the primary again: as it is, after a rewind whose loss was receipted, or from a new base backup.

To follow, a member has to be where the primary's history passes; member.py starts a stopped one alone to find out.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from .._core.clock import Deadline, wait_until
from .._core.errors import DbopsError
from .._core.journal import read_journal
from .._postgresql import rewind
from .._postgresql.catalog import NodeFacts, read_receiver
from .._postgresql.client import connect
from .._postgresql.control import read_control
from .._postgresql.local import AUTO_CONF
from .._postgresql.lsn import format_lsn
from .._postgresql.receipt import LostTransaction, relations
from .._postgresql.switchover_plan import member_slot
from .._postgresql.timelines import Fork, History, fork_of
from .member import BEFORE, CALL_SECONDS, Member
from .members import read_history, replication_endpoint, standby_conninfo
from .promotion import PromotionSteps

SHOWN_TRANSACTIONS = 20


class Rejoin(Member):
    """pg_member with state=following."""

    def _act(self, *, check_mode: bool) -> dict[str, Any]:
        primary = self._primary()
        if self._follows(primary):
            return self._result("unchanged", "already", changed=False)
        if primary.managers:
            raise DbopsError(
                found=f"{', '.join(primary.managers)} is in charge, and {self.name} does not follow {primary.name}",
                expected="no other manager starts, stops and rewinds the members",
                remedy=f"let it bring {self.name} back (Patroni: patronictl reinit where it does not by itself)",
                details={"state": "refused", "changed": False},
            )
        interrupted, kept = self._unfinished_rewind()
        running, standby = self.local.pid() is not None, False
        if running:
            standby = self._serves()
        if check_mode:
            return self._result("would follow", "not predictable before it was started alone", changed=True)
        self.sessions.take_lease(self.options["cluster"], self.sessions.facts(), first=primary.name)
        self._open_journal()
        self._create_slot()
        if interrupted:
            self._need_base_backup(
                DbopsError(
                    found=f"pg_rewind of {self.name} was interrupted ({interrupted}); its data directory is part old,"
                    " part new",
                    expected="a whole data directory",
                    remedy="do not start it; allow a new base backup (rejoin_by_base_backup)",
                )
            )
            return self._by_base_backup(primary)
        if kept is not None and not running:
            return self._after_rewind(primary, kept)
        if not standby:
            # Also a server that accepts writes: with another primary there, on a higher timeline, it is a second one.
            self.fence()
            if self.local.pid() is None:
                self.start_alone()
            else:
                self._await_standby()
        fork = self._fork(primary)
        if fork.diverged and not self.local.has_copy(BEFORE):
            # It may have received WAL behind the fork without replaying it: alone it does, and then it can be rewound.
            self._stop()
            self.start_alone()
            fork = self._fork(primary)
        if not fork.diverged:
            return self._result("following", self._follow(primary), changed=True)
        return self._rejoin_diverged(primary, fork)

    def _await_standby(self) -> None:
        wait_until(
            self._serves,
            bool,
            deadline=Deadline.after(self.clock, self.options["recovery_timeout"]),
            interval=0.1,
            what=f"{self.name} answers as a standby",
            remedy="read its log; its service started it again by itself",
        )

    def _primary(self) -> NodeFacts:
        facts = self.sessions.facts()
        name = self.options["primary"]
        writable = sorted(member for member, node in facts.items() if node.writable)
        stale = [member for member in writable if member not in (name, self.name)]
        primary = facts[name]
        if not primary.writable or stale:
            raise DbopsError(
                found=f"writable: {', '.join(writable) or 'nobody'}; {name}: {primary.error or 'a standby'}"
                if not primary.writable
                else f"{', '.join(stale)} is writable too",
                expected=f"{name} is the primary, and no other member but {self.name} itself may be writable",
                remedy="name the primary; fence every other one",
                details={"state": "refused", "changed": False},
            )
        own = read_control(self.local.data_dir, self.clock)
        if str(own.system_identifier) != primary.system_identifier:
            raise DbopsError(
                found=f"{self.local.data_dir} is of system {own.system_identifier}, {name} of"
                f" {primary.system_identifier}",
                expected="two members of one cluster",
                remedy="correct data_dir, or the address of the primary",
                details={"state": "refused", "changed": False},
            )
        if facts[self.name].writable and facts[self.name].timeline > primary.timeline:
            raise DbopsError(
                found=f"{self.name} is writable on timeline {facts[self.name].timeline}, {name} on {primary.timeline}",
                expected=f"{self.name} is not ahead of the primary",
                remedy=f"find out which of them clients use; it may be {name} that has to follow",
                details={"state": "refused", "changed": False},
            )
        return primary

    def _follows(self, primary: NodeFacts) -> bool:
        try:
            receiver = read_receiver(self.sessions.to(self.name, timeout=2.0))
        except DbopsError:
            self.sessions.drop(self.name)
            return False
        target = self.members[primary.name]
        return (
            receiver is not None
            and receiver.status == "streaming"
            and target.is_at(receiver.sender_host, receiver.sender_port)
            and receiver.timeline == primary.timeline
        )

    def _create_slot(self) -> None:
        PromotionSteps.create_slot(self.sessions.to(self.options["primary"]), self._slot(), reserve=True)

    def _slot(self) -> str:
        return self.options.get("slot") or member_slot(self.name)

    def _fork(self, primary: NodeFacts) -> Fork:
        """Compares this member, a standby that is not moving, with the primary's history."""
        mine = self.sessions.to(self.name).rows(
            """SELECT greatest(timeline_id, min_recovery_end_timeline) AS timeline,
                      greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn()) - '0/0'::pg_lsn AS lsn
                 FROM pg_control_checkpoint(), pg_control_recovery()"""
        )[0]
        member = History.parse(
            self.local.history(mine["timeline"]), timeline=mine["timeline"], end=int(mine["lsn"] or 0)
        )
        current = self.sessions.to(primary.name).value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
        login = replication_endpoint(self.members[primary.name], self.options)
        text = read_history(login, primary.timeline, clock=self.clock, timeout=CALL_SECONDS)
        fork = fork_of(member, History.parse(text, timeline=primary.timeline, end=int(current)))
        if fork is None:
            raise DbopsError(
                found=f"{self.name} (timeline {mine['timeline']}) and {primary.name} (timeline {primary.timeline}) have"
                " no timeline in common",
                expected="two servers of one history",
                remedy="allow a new base backup (rejoin_by_base_backup)",
            )
        return fork

    def _settings(self) -> dict[str, str]:
        target = self.members[self.options["primary"]]
        dbname = self.sessions.endpoints[target.name].dbname
        return {
            "primary_conninfo": standby_conninfo(target, self.options, application_name=self.name, dbname=dbname),
            "primary_slot_name": self._slot(),
        }

    def _follow(self, primary: NodeFacts) -> str:
        self._note("follow", "start")
        how = "reload"
        if self.local.has_copy(BEFORE):
            # The timeline to follow is read at start only.
            self._stop()
            self.local.restore_copy(BEFORE, AUTO_CONF)
            self.local.write_settings(self._settings())
            self._start()
            how = "start"
        else:
            session = self.sessions.to(self.name)
            for name, value in self._settings().items():
                session.run(f"ALTER SYSTEM SET {name} = %s", [value])
            session.run("SELECT pg_reload_conf()")
        self._await_streaming(primary)
        self._note("follow", "done")
        return how

    def _await_streaming(self, primary: NodeFacts) -> None:
        wait_until(
            lambda: self._follows(primary),
            bool,
            deadline=Deadline.after(self.clock, self.options["follow_timeout"]),
            interval=0.05,
            what=f"{self.name} streams from {primary.name} on timeline {primary.timeline}",
            remedy=f"read the log of {self.name}: where it asks for WAL that {primary.name} no longer has, allow a new"
            " base backup (rejoin_by_base_backup)",
        )

    # ------------------------------------------------------------------------------------------------------- diverged

    def _rejoin_diverged(self, primary: NodeFacts, fork: Fork) -> dict[str, Any]:
        where = f"{self.name} left timeline {fork.timeline} behind {format_lsn(fork.lsn)}"
        if not self.options["rejoin_by_rewind"]:
            raise DbopsError(
                found=f"{where}: it has WAL that {primary.name} has not",
                expected="a member that can follow as it is",
                remedy="rejoin_by_rewind throws that WAL away after a receipt of it was written",
                details={"state": "diverged", "changed": True},
            )
        self._stop()
        secured = self._secure_archive()
        receipt: dict[str, Any] = {}
        try:
            self._may_rewind(primary)
            receipt = self._write_receipt(fork, rewind.read_lost(self.local, fork.pieces))
            source = self.sessions.endpoints[primary.name]
            self._checkpoint(primary)
            rewind.rewind(self.local, source, dry_run=True, timeout=self.options["rewind_timeout"])
        except DbopsError as error:
            self._need_base_backup(error.with_details(receipt=receipt))
            return self._by_base_backup(primary, receipt=receipt)
        kept = self._keep_configuration()
        self._note("rewind", "start", control=self._control_mark(), kept=str(kept))
        rewind.rewind(self.local, source, dry_run=False, timeout=self.options["rewind_timeout"])
        return self._after_rewind(primary, kept, receipt=receipt, archive=secured)

    def _after_rewind(self, primary: NodeFacts, kept: Path, **more: Any) -> dict[str, Any]:
        """Never alone: a rewound server is consistent only with WAL that the primary has."""
        self._put_configuration_back(kept)
        self.local.plant_signal()
        self._note("rewind", "done")
        self.local.drop_copy(BEFORE)
        self.local.write_settings(self._settings())
        self._start()
        self._await_streaming(primary)
        return self._result("following", "rewind", changed=True, **more)

    def _checkpoint(self, primary: NodeFacts) -> None:
        """Until 15 pg_rewind takes the source's timeline from its pg_control, where it stands after the first
        checkpoint only: before that it finds nothing to rewind."""
        session = self.sessions.to(primary.name)
        if session.value("SELECT timeline_id FROM pg_control_checkpoint()") != primary.timeline:
            session.run("CHECKPOINT", deadline=Deadline.after(self.clock, self.options["rewind_timeout"]))

    def _may_rewind(self, primary: NodeFacts) -> None:
        session = self.sessions.to(primary.name)
        missing = [
            function
            for function in rewind.REWIND_FUNCTIONS
            if not session.value("SELECT has_function_privilege(%s, 'EXECUTE')", [function])
        ]
        if missing:
            raise DbopsError(
                found=f"the login role may not call {', '.join(missing)} on {primary.name}",
                expected="the login role may read the primary's files, as pg_rewind does",
                remedy=f"GRANT EXECUTE ON FUNCTION {', '.join(missing)} TO the login role",
            )

    def _secure_archive(self) -> dict[str, list[str]]:
        """WAL of the old timeline that waits for the archiver: pg_rewind removes it."""
        command = self.local.configured("archive_command", bin_dir="") or ""
        names = self.local.unarchived() if self.local.configured("archive_mode", bin_dir="") == "on" else []
        left = [name for name in names if not command or not self.local.archive(name, command, timeout=60.0)]
        if left:
            self.warnings.append(f"{len(left)} WAL files of {self.name} are not in the archive ({left[0]} and later)")
        return {"secured": [name for name in names if name not in left], "missing": left}

    def _write_receipt(self, fork: Fork, lost: list[LostTransaction]) -> dict[str, Any]:
        path = self.own / f"{self.operation}.receipt.json"
        names = self._relation_names(lost)
        receipt = {
            "member": self.name,
            "timeline": fork.timeline,
            "fork": format_lsn(fork.lsn),
            "end": format_lsn(fork.pieces[-1][2]),
            "bytes": sum(end - start for _timeline, start, end in fork.pieces),
            "transactions": len(lost),
            "relations": {names.get(key, key): counts for key, counts in relations(lost).items()},
        }
        entries = [
            {**each.as_dict(), "rows": {names.get(key, key): counts for key, counts in each.rows.items()}}
            for each in lost
        ]
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump({**receipt, "lost": entries}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        self._note("receipt", "note", path=str(path), transactions=len(lost))
        return {**receipt, "path": str(path), "lost": entries[:SHOWN_TRANSACTIONS]}

    def _relation_names(self, lost: list[LostTransaction]) -> dict[str, str]:
        """Names of the relations as the primary knows them; one made behind the fork has none there."""
        endpoint = self.sessions.endpoints[self.options["primary"]]
        databases = {
            str(row["oid"]): row["datname"]
            for row in self.sessions.to(endpoint.name).rows("SELECT oid::bigint, datname FROM pg_database")
        }
        wanted: dict[str, list[str]] = {}
        for key in relations(lost):
            wanted.setdefault(key.split("/")[1], []).append(key)
        names: dict[str, str] = {}
        for oid, keys in wanted.items():
            if oid not in databases:
                continue
            try:
                login = rewind.in_database(endpoint, databases[oid])
                with connect(login, clock=self.clock, timeout=CALL_SECONDS) as session:
                    for key in keys:
                        space, _database, node = key.split("/")
                        name = session.value(
                            """SELECT pg_filenode_relation(CASE WHEN %s = (SELECT dattablespace FROM pg_database
                                WHERE datname = current_database()) THEN 0 ELSE %s END, %s)::regclass::text""",
                            [int(space), int(space), int(node)],
                        )
                        if name:
                            names[key] = f"{databases[oid]}.{name}"
            except DbopsError as error:
                self.warnings.append(f"relations of {databases[oid]} are named by their numbers: {error.found}")
        return names

    def _keep_configuration(self) -> Path:
        """Copies of the configuration in the data directory: pg_rewind replaces it by the primary's."""
        kept: Path = self.own / f"{self.operation}.configuration"
        kept.mkdir(mode=0o700)
        if self.local.has_copy(BEFORE):
            self.local.restore_copy(BEFORE, AUTO_CONF)
        for name in rewind.CONFIGURATION:
            source = self.local.data_dir / name
            if source.exists():
                shutil.copy2(source, kept / name)
        return kept

    def _put_configuration_back(self, kept: Path) -> None:
        for path in kept.iterdir():
            self.local.put_file(path.name, path.read_bytes())

    def _control_mark(self) -> list[Any]:
        control = read_control(self.local.data_dir, self.clock)
        return [control.timeline, format_lsn(control.checkpoint_lsn), control.written_at]

    def _unfinished_rewind(self) -> tuple[str, Path | None]:
        """What a killed run left. The id of an operation whose pg_rewind did not get to its end in this very data
        directory: it writes pg_control last, so an unchanged one says so. Or, where it did and nobody has started the
        server since (that takes backup_label away), the copies of the configuration that are to be put back."""
        for path in sorted(self.own.glob("*.jsonl"), reverse=True):
            records = read_journal(path)
            begun = [each for each in records if each["step"] == "rewind" and each["event"] == "start"]
            if not begun:
                continue
            if begun[0]["data"]["control"] == self._control_mark():
                return str(begun[0]["op"]), None
            return "", Path(begun[0]["data"]["kept"]) if self.local.has_copy("backup_label") else None
        return "", None

    def _need_base_backup(self, error: DbopsError) -> None:
        if not self.options["rejoin_by_base_backup"]:
            raise error.with_details(state="diverged", changed=True)
        self.warnings.append(f"a new base backup is taken: {error.found}")

    def _by_base_backup(self, primary: NodeFacts, *, receipt: dict[str, Any] | None = None) -> dict[str, Any]:
        if self.local.tablespaces():
            raise DbopsError(
                found=f"{self.name} has tablespaces outside of its data directory",
                expected="a data directory in one place",
                remedy="rebuild this member by hand with pg_basebackup --tablespace-mapping",
                details={"state": "diverged", "changed": True},
            )
        self._note("base_backup", "start")
        if self.local.pid() is not None:
            self._stop()
        data_dir = self.local.data_dir
        fresh = data_dir.with_name(f"{data_dir.name}.dbops_new")
        login = replication_endpoint(self.members[primary.name], self.options)
        self.local.make_sibling(fresh)
        rewind.base_backup(self.local, login, fresh, timeout=self.options["rewind_timeout"])
        own = self._keep_configuration()
        aside = data_dir.with_name(f"{data_dir.name}.dbops_{self.operation}")
        self.local.replace_data(fresh, aside)
        self._put_configuration_back(own)
        self.local.drop_copy(BEFORE)
        self.local.write_settings(self._settings())
        self._start()
        self._await_streaming(primary)
        self._note("base_backup", "done")
        self.warnings.append(f"the old data directory was kept as {aside}; remove it when you no longer need it")
        return self._result("following", "base backup", changed=True, receipt=receipt or {})

    def _result(self, state: str, how: str, *, changed: bool, **more: Any) -> dict[str, Any]:
        if changed and self.journal is not None:
            self._note("operation", "closed", state=state, how=how)
        text = {
            "unchanged": f"{self.name} streams from {self.options['primary']}",
            "would follow": f"{self.name} would be made to follow {self.options['primary']}",
        }.get(state, f"{self.name} follows {self.options['primary']} again, by {how}")
        receipt = more.get("receipt") or {}
        if receipt:
            text += f"; {receipt['transactions']} transactions were thrown away, all in {receipt['path']}"
        return {"changed": changed, "state": state, "how": how, "msg": text, "warnings": self.warnings, **more}
