# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one run of a switchover works with, and what it sees: servers, poolers, this host."""

from __future__ import annotations

from typing import Any

from .._core.clock import Clock, Deadline
from .._core.errors import DbopsError
from .._postgresql.catalog import NodeFacts
from .._postgresql.client import connect
from .._postgresql.control import read_control
from .._postgresql.local import LocalServer
from .._postgresql.pgbouncer import PoolerConsole
from .._postgresql.switchover_plan import LocalFacts, Observed, Probe, Request
from .._postgresql.wal import read_shutdown_checkpoint, record_after, shutdown_checkpoint_ending_at
from .members import ClusterSessions, endpoint, members, read_pooler, replication_endpoint

CALL_SECONDS = 10.0
# Nobody means a limit below these, and a run would find out when clients wait already.
LOWEST = {
    "max_pause_ms": 1,
    "max_lag_bytes": 0,
    "max_transaction_seconds": 0,
    "max_idle_in_transaction_seconds": 0,
    "max_archive_backlog": 0,
    "min_free_bytes": 0,
    "checkpoint_timeout": 1,
    "follow_timeout": 1,
    "stop_timeout": 0,
}


class SwitchoverContext:
    """``options`` is the argument dictionary of replica_promote. Opens sessions when they are first needed."""

    def __init__(self, options: dict[str, Any], *, clock: Clock) -> None:
        self.options = options
        self.clock = clock
        self.request = Request(
            cluster=options["cluster"],
            candidate=options["candidate"],
            node=options["node"],
            members=members(options["nodes"]),
            poolers=tuple(pooler["name"] for pooler in options["poolers"]),
            synchronous_standby_names=options["synchronous_standby_names"],
            accept_async_window=options["accept_async_window"],
            accept_lost_slots=tuple(options["accept_lost_slots"]),
            max_lag_bytes=options["max_lag_bytes"],
            max_transaction_seconds=options["max_transaction_seconds"],
            max_idle_in_transaction_seconds=options["max_idle_in_transaction_seconds"],
            max_archive_backlog=options["max_archive_backlog"],
            max_pause_ms=options["max_pause_ms"],
            min_free_bytes=options["min_free_bytes"],
        )
        for role, name in (("candidate", self.request.candidate), ("node", self.request.node)):
            if name not in self.request.members:
                raise DbopsError(
                    found=f"{role} {name} is not among the members {', '.join(sorted(self.request.members))}",
                    expected="the name of a member",
                    remedy=f"correct {role}, or add the member to dbops_clusters",
                )
        for name, least in LOWEST.items():
            if options[name] < least:
                raise DbopsError(
                    found=f"{name} = {options[name]}",
                    expected=f"{least} or more",
                    remedy=f"correct {name}; nothing was changed",
                    details={"state": "refused", "changed": False},
                )
        self.local = LocalServer.of(options["local"], clock)
        self.sessions = ClusterSessions(
            options["nodes"], clock=clock, application_name="dbops replica_promote", timeout=CALL_SECONDS
        )
        self.consoles = {
            pooler["name"]: PoolerConsole(endpoint({**pooler, "login_db": "pgbouncer"}), clock)
            for pooler in options["poolers"]
        }

        self.pooled = {pooler["name"]: tuple(pooler.get("databases") or ()) for pooler in options["poolers"]}

    def close(self) -> None:
        for console in self.consoles.values():
            console.close()
        self.sessions.close()

    def observe(self, journal: list[dict[str, Any]]) -> Observed:
        nodes = self.sessions.facts()
        return Observed(
            nodes=nodes,
            local=self._local_facts(journal, nodes),
            poolers=tuple(
                read_pooler(
                    self.consoles[pooler["name"]],
                    pooler,
                    self.request.members,
                    deadline=Deadline.after(self.clock, CALL_SECONDS),
                )
                for pooler in self.options["poolers"]
            ),
            probes={
                probe["member"]: Probe(probe["member"], probe.get("replication_problem"), probe.get("free_bytes"))
                for probe in self.options["probes"]
            },
        )

    def _local_facts(self, journal: list[dict[str, Any]], nodes: dict[str, NodeFacts]) -> LocalFacts:
        problem = self.local.problem()
        if problem:
            return LocalFacts(data_dir=str(self.local.data_dir), problem=problem)
        control = read_control(self.local.data_dir, self.clock)
        running = self.local.pid() is not None
        end, shutdown_problem = self.shutdown_end(nodes, running=running)
        passfile = self.options.get("replication_passfile") or ""
        return LocalFacts(
            data_dir=str(self.local.data_dir),
            service_problem=self.local.service.problem(),
            running=running,
            control_state=control.state,
            control_system_identifier=str(control.system_identifier),
            serves_session=self.local.runs(nodes[self.request.node].backend_pid),
            signal_planted=self.local.signal_planted(),
            disk_version=self.local.disk_version(),
            free_bytes=self.local.free_bytes(),
            unlogged=self.local.unlogged(),
            passfile_problem=self.local.passfile_problem(passfile) if passfile else "",
            replication_problem="" if self.request.node == self.request.candidate else self._replication_problem(),
            shutdown_end_lsn=end,
            shutdown_problem=shutdown_problem,
            promote_sent=any(record["step"] == "promote" and record["event"] == "start" for record in journal),
        )

    def shutdown_end(self, nodes: dict[str, NodeFacts], *, running: bool) -> tuple[int | None, str]:
        """End of the shutdown checkpoint as this host can prove it: from the old primary's own WAL, or, on the
        candidate's host, from the fact that it is the last record the candidate has."""
        try:
            control = read_control(self.local.data_dir, self.clock)
            if self.request.node != self.request.candidate:
                if running:
                    return None, "the server in data_dir is running"
                checkpoint = read_shutdown_checkpoint(self.local.data_dir, control)
                if record_after(self.local.data_dir, control, checkpoint):
                    return None, "there is WAL behind the shutdown checkpoint"
                return checkpoint.end_lsn, ""
            facts = nodes[self.request.candidate]
            if not facts.answered or not facts.in_recovery or facts.replay_lsn is None:
                return None, "the candidate is not a standby that answers"
            found = shutdown_checkpoint_ending_at(
                self.local.data_dir, control, timeline=facts.timeline, end_lsn=facts.replay_lsn
            )
            if found is None:
                return None, "the last record that the candidate replayed is not a shutdown checkpoint"
            ahead = [name for name, other in nodes.items() if (other.receive_lsn or 0) > found.end_lsn]
            if ahead:
                return None, f"{', '.join(ahead)} received more WAL than the candidate replayed"
            return found.end_lsn, ""
        except DbopsError as error:
            return None, error.found

    def _replication_problem(self) -> str:
        """A replication connection to the candidate as the old primary will open it."""
        try:
            login = replication_endpoint(self.request.members[self.request.candidate], self.options)
            with connect(
                login, clock=self.clock, timeout=CALL_SECONDS, replication=True, application_name="dbops probe"
            ) as session:
                session.rows("IDENTIFY_SYSTEM")
        except DbopsError as error:
            return error.found
        return ""
