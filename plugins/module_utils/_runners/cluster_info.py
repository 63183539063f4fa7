# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cluster looks like from one host: roles, timelines, lag, slots, who is in charge, what is unfinished."""

from __future__ import annotations

import os
from typing import Any

from .._core.clock import Clock
from .._core.errors import DbopsError
from .._postgresql import switchover_plan as planner
from .._postgresql.catalog import NodeFacts
from .._postgresql.client import Endpoint, connect
from .._postgresql.switchover_plan import LocalFacts, Observed, Request
from .members import LOGIN_SECONDS, ClusterSessions, members, replication_endpoint

SECONDS = 10.0


def cluster_info(options: dict[str, Any], *, clock: Clock) -> dict[str, Any]:
    """``options`` is the argument dictionary of pg_cluster_info; its RETURN documents the result."""
    known = members(options["nodes"])
    sessions = ClusterSessions(
        options["nodes"],
        clock=clock,
        application_name="dbops pg_cluster_info",
        timeout=SECONDS,
        login_timeout=LOGIN_SECONDS,
    )
    try:
        facts = sessions.facts()
    finally:
        sessions.close()
    observed = Observed(facts, LocalFacts())
    writable = sorted(observed.writable())
    primary = facts[writable[0]] if len(writable) == 1 else None
    answered = [node for node in facts.values() if node.answered]
    result: dict[str, Any] = {
        "primary": primary.name if primary else None,
        "writable": writable,
        "timeline": primary.timeline if primary else None,
        "system_identifiers": sorted({node.system_identifier for node in answered}),
        "managers": sorted({manager for node in answered for manager in node.managers}),
        "members": [_member(node, primary) for node in facts.values()],
        "last_operation": _last_operation(primary),
        "unfinished": _unfinished(observed),
        "run_on": None,
        "probe": {},
    }
    candidate = options.get("candidate")
    if candidate:
        _for_candidate(result, options, Request(options["cluster"], candidate, "", known), observed, clock)
    if options.get("data_dir"):
        result["probe"]["free_bytes"] = _free_bytes(options["data_dir"])
    return result


def _for_candidate(
    result: dict[str, Any], options: dict[str, Any], request: Request, observed: Observed, clock: Clock
) -> None:
    member = request.members.get(request.candidate)
    if member is None:
        raise DbopsError(
            found=f"candidate {request.candidate} is not among the members {', '.join(sorted(request.members))}",
            expected="the name of a member",
            remedy="correct the candidate, or add the member to dbops_clusters",
        )
    result["run_on"] = planner.run_on(request, observed)
    if options.get("replication_user"):
        login = replication_endpoint(member, options)
        result["probe"]["replication_problem"] = _replication_problem(login, clock)


def _replication_problem(login: Endpoint, clock: Clock) -> str:
    try:
        with connect(login, clock=clock, timeout=SECONDS, replication=True, application_name="dbops probe") as session:
            session.rows("IDENTIFY_SYSTEM")
    except DbopsError as error:
        return error.found
    return ""


def _free_bytes(data_dir: str) -> int | None:
    try:
        usage = os.statvfs(os.path.join(data_dir, "pg_wal"))
    except OSError:
        return None
    return usage.f_bavail * usage.f_frsize


def _last_operation(primary: NodeFacts | None) -> dict[str, Any] | None:
    """The newest finished switchover of this very cluster (a restored or copied one has another identifier)."""
    row = primary.last_operation if primary else None
    if primary is None or row is None or row["system_identifier"] != primary.system_identifier:
        return None
    if row["kind"] != planner.KIND:  # a failover is not taken back
        return None
    return {
        "id": row["id"],
        "old_primary": row["detail"]["old_primary"],
        "candidate": row["detail"]["candidate"],
        "rolls_back": row["detail"].get("rolls_back"),
    }


def _unfinished(observed: Observed) -> dict[str, Any] | None:
    for name in observed.nodes:
        row = planner.open_operation(observed, name)
        if row is not None and row["detail"]["candidate"] == name:
            return {"id": row["id"], "old_primary": row["detail"]["old_primary"], "candidate": name}
    return None


def _member(facts: NodeFacts, primary: NodeFacts | None) -> dict[str, Any]:
    if not facts.answered:
        return {"name": facts.name, "role": "unreachable", "error": facts.error}
    behind = None
    if primary is not None and facts.in_recovery and facts.replay_lsn is not None and primary.current_lsn is not None:
        behind = max(0, primary.current_lsn - facts.replay_lsn)
    receiver = facts.receiver
    return {
        "name": facts.name,
        "role": "standby" if facts.in_recovery else "primary",
        "version": facts.settings.get("server_version", ""),
        "timeline": facts.timeline,
        "system_identifier": facts.system_identifier,
        "replay_lag_bytes": behind,
        "receiver": receiver.status if receiver else None,
        "follows": f"{receiver.sender_host}:{receiver.sender_port}" if receiver else None,
        "slots": [
            {"name": slot.name, "logical": slot.logical, "active": slot.active, "wal_status": slot.wal_status}
            for slot in facts.slots
        ],
        "synchronous_standby_names": facts.settings.get("synchronous_standby_names", ""),
    }
