# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner of a switchover that Patroni makes: checks, steps, and what its outcome proves. No IO, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._core.operation import Check, PlannedStep
from . import switchover_plan as base
from .lsn import format_lsn
from .managers import PATRONI, commands
from .patroni import PatroniFacts, PatroniMember
from .switchover_plan import Member, Observed, Request, SwitchoverPlan, planned_checkpoints
from .wal_filler import worth_filling

# Those of our prechecks that say something of a switchover whose steps are not ours. Slots of members, the list of
# synchronous standbys, and start and stop of the servers are Patroni's.
KEPT = (
    "no_unfinished_operation",
    "system_identifier",
    "local_data",
    "candidate_streams",
    "siblings_follow",
    "timeline",
    "replay_running",
    "apply_delay",
    "recovery_target",
    "replication_lag",
    "candidate_settings",
    "hot_standby",
    "archive_settings",
    "archive_backlog",
    "free_wal_senders",
    "replication_login",
    "disk_space",
    "rewind_ready",
    "unlogged_tables",
    "no_base_backup",
    "long_transactions",
    "idle_in_transaction",
    "prepared_transactions",
    "maintenance",
    "other_consumers",
    "poolers_reachable",
    "pooler_processes",
    "pooler_mode",
    "pooler_targets",
    "pooler_staged",
    "pooler_wait",
)
OWN = (
    "patroni_privileges",
    "patroni_answers",
    "patroni_access",
    "patroni_alone",
    "patroni_leader",
    "patroni_store",
    "patroni_not_paused",
    "patroni_candidate",
    "patroni_logical_slots",
)


def own_name(facts: PatroniFacts, member: Member) -> str:
    """Patroni's name of a member of ours, found by the address of its server; empty where it has none such."""
    return next((item.name for item in facts.members if member.is_at(item.host, item.port)), "")


def all_checks(request: Request, observed: Observed, facts: PatroniFacts) -> list[Check]:
    """Every precheck in order. Where a base check fails the rest is not judged."""
    checks = [check for check in base.base_checks(request, observed) if check.name != "privileges"]
    if any(check.status != "ok" for check in checks):
        return checks
    primary = observed.writable()[0]
    checks.append(_privileges(observed))
    checks += [base.CHECKS[name](request, observed, primary) for name in KEPT]
    checks.append(_answers(facts))
    if not facts.error:
        leader, candidate = facts.leader(), request.members[request.candidate]
        checks += [
            _access(facts),
            _alone(request, observed, primary),
            _leader(request, facts, leader, primary),
            _store(facts),
            _not_paused(facts),
            _candidate(facts, own_name(facts, candidate), leader, request.candidate),
            _logical_slots(request, observed, primary),
        ]
    return checks


def _check(name: str, bad: bool | None, found: str, expected: str, remedy: str) -> Check:
    status = "unknown" if bad is None else "failed" if bad else "ok"
    return Check(name, status, found, expected, remedy if status != "ok" else "")


def _privileges(observed: Observed) -> Check:
    """Promotion and settings are Patroni's; the intent, the checkpoints and the facts are ours."""
    needless = ("pg_promote", "pg_reload_conf", "ON PARAMETER", "ALTER SYSTEM")
    lacks = {
        name: [what for what in facts.missing_privileges if not any(word in what for word in needless)]
        for name, facts in observed.nodes.items()
    }
    found = "; ".join(f"{name} lacks {', '.join(what)}" for name, what in sorted(lacks.items()) if what)
    return _check(
        "patroni_privileges",
        bool(found),
        found or "sufficient",
        "the login role may read, checkpoint, and write its intent",
        "grant them on the primary (docs/runbooks/promote_replica.md, Least privilege, has the statements)",
    )


def _answers(facts: PatroniFacts) -> Check:
    return _check(
        "patroni_answers",
        bool(facts.error),
        facts.error or f"Patroni {facts.version}, scope {facts.scope}",
        "Patroni's REST API answers and reads its store",
        "check patroni.url, that member's Patroni, and the store behind it; without it nobody may switch over",
    )


def _access(facts: PatroniFacts) -> Check:
    return _check(
        "patroni_access",
        bool(facts.access),
        facts.access or "a request to switch over would be heard",
        "the REST API accepts requests to change something from this host with these credentials",
        "correct patroni.username and patroni.password (restapi.authentication in Patroni's file), or its allowlist",
    )


def _alone(request: Request, observed: Observed, primary: str) -> Check:
    managers = {manager for facts in observed.nodes.values() for manager in facts.managers}
    others = managers - {PATRONI}
    absent = PATRONI not in managers
    return _check(
        "patroni_alone",
        bool(others) or absent,
        ", ".join(sorted(managers)) or "no manager is connected to any member",
        "Patroni, and nobody else, is in charge of these members",
        commands(others, primary=primary, candidate=request.candidate)
        or "take patroni out of dbops_clusters if this cluster is not managed by it, or start Patroni",
    )


def _leader(request: Request, facts: PatroniFacts, leader: PatroniMember | None, primary: str) -> Check:
    unknown = [name for name, member in sorted(request.members.items()) if not own_name(facts, member)]
    others = len(facts.members) - len(request.members) + len(unknown)
    wrong = leader is None or facts.unlocked or leader.state != "running"
    wrong = wrong or own_name(facts, request.members[primary]) != (leader.name if leader else "")
    found = f"leader {leader.name} ({leader.host}:{leader.port}, {leader.state})" if leader else "no leader"
    found += f"; Patroni does not know {', '.join(unknown)}" if unknown else ""
    found += f"; it has {others} members that are not in dbops_clusters" if others else ""
    return _check(
        "patroni_leader",
        wrong or bool(unknown) or bool(others),
        found,
        f"the leader is {primary}, and Patroni's members are those of dbops_clusters, by the address of their servers",
        "wait until Patroni has a leader; patroni.url must lead to this cluster; correct address and port of members",
    )


def _store(facts: PatroniFacts) -> Check:
    age = facts.store_age_s
    return _check(
        "patroni_store",
        True if facts.failsafe else None if age is None else age > facts.patience_s,
        f"last reached {'at an unknown time' if age is None else f'{max(0.0, age):.0f} s ago'}"
        + ("; failsafe mode is active" if facts.failsafe else ""),
        f"Patroni reached its store within loop_wait + retry_timeout = {facts.patience_s:g} s; no failsafe mode",
        "repair the quorum of etcd, Consul, ZooKeeper or Kubernetes first",
    )


def _not_paused(facts: PatroniFacts) -> Check:
    found = "paused" if facts.paused else ""
    found += f"{'; ' if found else ''}a switchover is scheduled: {facts.scheduled}" if facts.scheduled else ""
    return _check(
        "patroni_not_paused",
        bool(found),
        found or "not paused, nothing is scheduled",
        "Patroni is not in maintenance mode, and no other switchover is scheduled",
        "patronictl resume, when it is known who paused it and why; patronictl flush SCOPE switchover",
    )


def _candidate(facts: PatroniFacts, name: str, leader: PatroniMember | None, ours: str) -> Check:
    member = next((item for item in facts.members if item.name == name), None)
    wrong = []
    if member is None:
        wrong.append("not a member")
    else:
        allowed = ("sync_standby", "quorum_standby") if facts.synchronous else ("replica",)
        if member.role not in allowed:
            wrong.append(f"role {member.role}" + (" in synchronous_mode" if facts.synchronous else ""))
        if member.state not in ("streaming", "running"):  # before Patroni 3.0.4 a standby that streams is "running"
            wrong.append(f"state {member.state}")
        if leader is not None and member.timeline != leader.timeline:
            wrong.append(f"timeline {member.timeline}, the leader's is {leader.timeline}")
        if member.nofailover:
            wrong.append("tag nofailover")
    return _check(
        "patroni_candidate",
        bool(wrong),
        f"{ours}: {', '.join(wrong) or 'may be promoted'}",
        "Patroni may promote the candidate: streaming on the leader's timeline, without nofailover, and synchronous"
        " where synchronous_mode is on",
        "name another candidate (patronictl list shows them), or take the tag away",
    )


def _logical_slots(request: Request, observed: Observed, primary: str) -> Check:
    """Patroni copies permanent logical slots to the standbys (its setting ``slots``)."""
    there = {slot.name for slot in observed.nodes[request.candidate].slots if slot.logical and not slot.invalid}
    lost = [
        slot.name
        for slot in observed.nodes[primary].slots
        if slot.logical and not slot.temporary and slot.name not in there and slot.name not in request.accept_lost_slots
    ]
    return _check(
        "patroni_logical_slots",
        bool(lost),
        f"not on {request.candidate}: {', '.join(lost)}" if lost else "none, or all are on the candidate",
        "every logical slot is on the candidate",
        "make it a permanent slot of Patroni (slots), or name it in accept_lost_slots and rebuild its subscriber",
    )


def make_plan(request: Request, observed: Observed, primary: str, *, bin_dir: str = "") -> SwitchoverPlan:
    return SwitchoverPlan(
        old_primary=primary,
        candidate=request.candidate,
        old_timeline=observed.nodes[primary].timeline,
        followers=(),
        create_slots=(),
        carried_slots=(),
        drop_slots=(),
        sync_before="",
        sync_after=None,
        sync_needs_siblings=False,
        sync_needs_old_primary=False,
        retry_interval_before=None,
        bin_dir=bin_dir,
        manager=PATRONI,
        fill_segment=worth_filling(observed.nodes[primary]),
    )


def planned_steps(request: Request, plan: SwitchoverPlan) -> dict[str, PlannedStep]:
    """All steps in order, by name, with the names that a switchover of our own has."""
    old, new = plan.old_primary, plan.candidate
    poolers = ", ".join(request.poolers) or "none"
    steps = [
        PlannedStep(
            "intent",
            f"write the intent to {old} and wait until {new} has replayed it",
            ("CREATE SCHEMA IF NOT EXISTS dbops", "INSERT INTO dbops.operation …"),
            locks="ROW EXCLUSIVE on dbops.operation",
        ),
        planned_checkpoints(plan),
        PlannedStep(
            "pause_poolers",
            f"pause the poolers ({poolers}); clients wait from here on",
            ("PAUSE <database>",) if request.poolers else (),
            in_pause=True,
        ),
        PlannedStep(
            "prove", f"prove that {new} has replayed what {old} has written by now, and go on at once", in_pause=True
        ),
        PlannedStep(
            "promote",
            f"ask Patroni to switch over from {old} to {new}; watch pg_control of {old} for where it ends",
            ('POST /switchover {"leader": …, "candidate": …}',),
            in_pause=True,
            point_of_no_return=True,
        ),
        PlannedStep(
            "resume_poolers",
            f"point the poolers ({poolers}) to {new} and let clients on",
            ("RELOAD", "RESUME <database>") if request.poolers else (),
            in_pause=True,
        ),
        PlannedStep("follow", f"wait until Patroni has every other member stream from {new} on the new timeline"),
        PlannedStep(
            "certify",
            f"compare where {old} ended with where {new} went on, and write the certificate",
            ("CHECKPOINT", "UPDATE dbops.operation …"),
        ),
    ]
    return {step.name: step for step in steps}


@dataclass(frozen=True)
class Ending:
    """Where the old primary ended: its shutdown checkpoint record, or why nobody saw it."""

    start_lsn: int | None = None
    end_lsn: int | None = None
    problem: str = ""


def judge(ending: Ending, *, fork: int) -> dict[str, Any]:
    """What the fork of the new timeline says: ``holds`` True (proved that nothing is missing), False (something is), or
    None (not known), with ``lost_bytes`` of WAL. The shutdown checkpoint record itself holds no commit."""
    if ending.start_lsn is None or ending.end_lsn is None:
        return {"holds": None, "lost_bytes": None, "unproved": ending.problem or "the old primary's end was not seen"}
    return {
        "shutdown_checkpoint_start": format_lsn(ending.start_lsn),
        "shutdown_checkpoint_end": format_lsn(ending.end_lsn),
        "holds": ending.start_lsn <= fork <= ending.end_lsn,
        "lost_bytes": max(0, ending.start_lsn - fork),
    }
