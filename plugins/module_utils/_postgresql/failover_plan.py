# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner of a failover: who is left, may anybody be promoted, who, and what is lost. No IO, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .._core.operation import Check, PlannedStep
from .catalog import NodeFacts
from .lsn import format_lsn
from .managers import commands
from .switchover_plan import (
    OLDEST_MAJOR,
    RETRY_INTERVAL,
    Follower,
    Member,
    marker_slot,
    member_slot,
)
from .sync_names import parse_sync_rule

KIND = "failover"
# A host that dies or hangs closes no connection: its standbys "stream" until wal_receiver_timeout, a minute by default.
SILENT_SECONDS = 5.0


@dataclass(frozen=True)
class Fence:
    """What is known of the failed primary's fence. ``by`` says who confirmed it; ``synchronous_standby_names`` is its
    own, None where nobody could read it."""

    confirmed: bool = False
    by: str = ""
    synchronous_standby_names: str | None = None


@dataclass(frozen=True)
class Witness:
    """Another observer. ``sees_primary`` None: it was asked and could not look."""

    name: str
    sees_primary: bool | None
    detail: str = ""


@dataclass(frozen=True)
class FailoverRequest:
    """What the caller asks for. ``candidate`` empty: the most advanced standby that can be promoted."""

    cluster: str
    failed_primary: str
    members: dict[str, Member]
    candidate: str = ""
    fence: Fence = Fence()
    witnesses: tuple[Witness, ...] = ()
    synchronous_standby_names: str | None = None
    accept_async_window: bool = False
    accept_split_brain_risk: bool = False
    accept_data_loss: bool = False
    abandon_operation: str = ""
    only_planned: bool = False
    """Nothing is done yet: a fence that is to come (``fence.by`` says how) counts as one."""


@dataclass(frozen=True)
class FailoverPlan:
    """Everything that a later run needs in order to finish or undo. ``standbys`` are those that answered;
    ``conninfo_by_alter_system`` those whose primary_conninfo ALTER SYSTEM had set."""

    failed_primary: str
    candidate: str
    old_timeline: int
    standbys: tuple[str, ...]
    conninfo_by_alter_system: tuple[str, ...]
    followers: tuple[Follower, ...]
    create_slots: tuple[str, ...] = ()
    application_name: str = ""
    """The candidate's, as a standby."""
    sync_before: str = ""
    sync_after: str | None = None
    retry_interval_before: str | None = None

    def as_detail(self) -> dict[str, Any]:
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in self.__dict__.items()},
            "old_primary": self.failed_primary,
            "followers": [follower.__dict__ for follower in self.followers],
        }

    @classmethod
    def from_detail(cls, detail: dict[str, Any]) -> FailoverPlan:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in detail.items()
            if key in cls.__dataclass_fields__
        }
        values["followers"] = tuple(Follower(**follower) for follower in detail["followers"])
        return cls(**values)


Nodes = dict[str, NodeFacts]


def standbys(request: FailoverRequest, nodes: Nodes) -> Nodes:
    """Those that answered. The failed primary is none, also where it was started to serve its WAL."""
    return {
        name: facts
        for name, facts in nodes.items()
        if name != request.failed_primary and facts.answered and facts.in_recovery
    }


def position(facts: NodeFacts) -> int:
    """How far a standby has come: what it has received, or replayed where it never received (from an archive)."""
    return max(facts.receive_lsn or 0, facts.replay_lsn or 0)


def unfit(facts: NodeFacts, newest_timeline: int) -> list[str]:
    """Why this standby cannot be promoted now; empty where it can."""
    reasons = []
    if facts.replay_paused:
        reasons.append("its replay is paused")
    if facts.number("recovery_min_apply_delay"):
        reasons.append(f"recovery_min_apply_delay = {facts.settings['recovery_min_apply_delay']} ms")
    targets = [name for name in facts.settings if name.startswith("recovery_target") and facts.settings[name]]
    targets = [name for name in targets if not name.endswith(("_timeline", "_action", "_inclusive"))]
    if targets or facts.settings.get("recovery_target_timeline", "latest") != "latest":
        reasons.append(f"it has a recovery target ({', '.join(targets) or 'recovery_target_timeline'})")
    if not facts.timeline:
        reasons.append("no replication connection to it could be opened, so its timeline is not known")
    elif facts.timeline < newest_timeline:
        reasons.append(f"it is on timeline {facts.timeline}, another standby on {newest_timeline}")
    return reasons


def choose(request: FailoverRequest, nodes: Nodes) -> str:
    """The one asked for, else the most advanced fit standby, by name where two are equal; empty where there is none."""
    if request.candidate:
        return request.candidate
    left = standbys(request, nodes)
    newest = max((facts.timeline for facts in left.values()), default=0)
    fit = [name for name, facts in left.items() if not unfit(facts, newest)]
    return min(fit, key=lambda name: (-position(left[name]), name), default="")


def open_operations(request: FailoverRequest, nodes: Nodes) -> dict[str, str]:
    """Unfinished operations that members show: {id: kind}. A failover that was killed before the promotion has no row,
    only its marker slots."""
    found: dict[str, str] = {}
    for facts in nodes.values():
        if not facts.answered:
            continue
        for slot in facts.slots:
            if slot.name.startswith(marker_slot("")):
                found.setdefault(slot.name[len(marker_slot("")) :], KIND)
        for row in facts.operations:
            if row["cluster"] == request.cluster and row["system_identifier"] == facts.system_identifier:
                found[row["id"]] = row["kind"]
    return found


def own_operation(request: FailoverRequest, nodes: Nodes) -> str:
    """Id of the failover that an earlier run began, empty if there is none."""
    return min((name for name, kind in open_operations(request, nodes).items() if kind == KIND), default="")


# --------------------------------------------------------------------------------------------------------------- checks


def _verdict(name: str, bad: bool | None, found: str, expected: str, remedy: str, *, status: str = "failed") -> Check:
    if bad is None:
        return Check(name, "unknown", found, expected, remedy)
    return Check(name, status if bad else "ok", found, expected, remedy if bad else "")


def checks(request: FailoverRequest, nodes: Nodes) -> list[Check]:
    """Every precheck of a failover, in order. Where nobody is left the rest is not judged."""
    result = [_standbys_answer(request, nodes), _no_primary(request, nodes)]
    if any(check.status == "failed" for check in result):
        return result
    left = standbys(request, nodes)
    result += [
        _primary_gone(request, nodes, left),
        _fence(request),
        _upstream(request, left),
        _versions(left),
        _system_identifier(left),
        _privileges(left),
        _manager(request, left),
        _no_open_operation(request, nodes),
        _candidate_fit(request, nodes, left),
    ]
    candidate = choose(request, nodes)
    if candidate in left:
        result += [
            _most_advanced(request, left, candidate),
            _synchronous_promise(request, left, candidate),
            _synchronous_standby_names(request, left, candidate),
        ]
    return result


def final_checks(request: FailoverRequest, left: Nodes, candidate: str) -> list[Check]:
    """What is judged again when no standby receives anything any more."""
    return [_most_advanced(request, left, candidate), _synchronous_promise(request, left, candidate)]


CHECK_NAMES = (
    "standbys_answer",
    "no_primary",
    "primary_gone",
    "fence",
    "upstream",
    "versions",
    "system_identifier",
    "privileges",
    "manager_in_charge",
    "no_open_operation",
    "candidate_fit",
    "most_advanced",
    "synchronous_promise",
    "synchronous_standby_names",
)


def _standbys_answer(request: FailoverRequest, nodes: Nodes) -> Check:
    left = standbys(request, nodes)
    silent = sorted(name for name, facts in nodes.items() if name != request.failed_primary and not facts.answered)
    return _verdict(
        "standbys_answer",
        not left or bool(silent),
        f"{', '.join(sorted(left)) or 'nobody'} answered" + (f", {', '.join(silent)} did not" if silent else ""),
        "the standbys answer, one at least: what a silent one has received nobody knows",
        "start a standby, or correct login_host, login_port and pg_hba.conf; a silent one rejoins later",
        status="warning" if left else "failed",
    )


def _no_primary(request: FailoverRequest, nodes: Nodes) -> Check:
    writable = sorted(name for name, facts in nodes.items() if facts.writable and name != request.failed_primary)
    return _verdict(
        "no_primary",
        bool(writable),
        f"{', '.join(writable)} accepts writes" if writable else "nobody else accepts writes",
        "no member accepts writes",
        "there is a primary: to change it use mode=switchover; to bring others back use pg_member, state=following",
    )


def _primary_gone(request: FailoverRequest, nodes: Nodes, left: Nodes) -> Check:
    failed, member = nodes[request.failed_primary], request.members[request.failed_primary]
    alive = [f"{request.failed_primary} accepts writes as seen from here"] if failed.writable else []
    alive += [f"{each.name} sees it accept writes" for each in request.witnesses if each.sees_primary]
    if not request.fence.confirmed:
        # Behind a fence a standby may stream from it: it was started to serve its WAL.
        alive += [
            f"{name} streams from it and heard of it {facts.receiver.silent_s:.0f} s ago"
            for name, facts in left.items()
            if facts.receiver is not None
            and facts.receiver.status == "streaming"
            and facts.receiver.silent_s < SILENT_SECONDS
            and member.is_at(facts.receiver.sender_host, facts.receiver.sender_port)
        ]
    blind = [f"{each.name} could not look: {each.detail}" for each in request.witnesses if each.sees_primary is None]
    return _verdict(
        "primary_gone",
        True if alive else None if blind else False,
        "; ".join(alive or blind) or f"seen by none of {1 + len(request.witnesses)} observers",
        f"no observer sees {request.failed_primary} accept writes, and every witness could look",
        "a primary that lives is switched over, not failed over (mode=switchover); one that died a moment ago is asked"
        f" for again after {SILENT_SECONDS:g} s; a witness that is gone for good is taken out of witnesses",
    )


def _fence(request: FailoverRequest) -> Check:
    fence = request.fence
    return _verdict(
        "fence",
        not (fence.confirmed or request.accept_split_brain_risk or (request.only_planned and fence.by)),
        fence.by
        if fence.confirmed or (request.only_planned and fence.by)
        else "accepted as a risk"
        if request.accept_split_brain_risk
        else f"{request.failed_primary} does not answer, and nobody has confirmed that it can accept no write",
        f"a confirmed fence of {request.failed_primary}: no answer is none, clients may still reach it",
        "let pg_member, state=fenced, stop it on its own host, or give a fence command that cuts its power or network"
        " and a command that confirms it (the role does both); accept_split_brain_risk only if you know by other means",
    )


def _upstream(request: FailoverRequest, left: Nodes) -> Check:
    member = request.members[request.failed_primary]
    wrong = [
        f"{name} follows {facts.upstream[0]}:{facts.upstream[1]}"
        for name, facts in left.items()
        if facts.upstream[0] and not member.is_at(*facts.upstream)
    ]
    return _verdict(
        "upstream",
        len(wrong) == len(left),
        "; ".join(wrong) or f"the standbys followed {request.failed_primary}",
        f"standbys of {request.failed_primary} ({member.address}:{member.port})",
        "name the primary that failed; address and port must be as in their primary_conninfo",
    )


def _versions(left: Nodes) -> Check:
    majors = {name: facts.major for name, facts in left.items()}
    return _verdict(
        "versions",
        min(majors.values()) < OLDEST_MAJOR or len(set(majors.values())) > 1,
        ", ".join(f"{name}: {major}" for name, major in sorted(majors.items())),
        f"one major version, {OLDEST_MAJOR} or newer",
        "take the member of another version out of dbops_clusters",
    )


def _system_identifier(left: Nodes) -> Check:
    identifiers = {name: facts.system_identifier for name, facts in left.items()}
    return _verdict(
        "system_identifier",
        len(set(identifiers.values())) > 1,
        ", ".join(f"{name}: {identifier}" for name, identifier in sorted(identifiers.items())),
        "one system identifier: all members are copies of one cluster",
        "a member belongs to another cluster; correct login_host and login_port in dbops_clusters",
    )


def _privileges(left: Nodes) -> Check:
    # The schema dbops is made after the promotion, by the same right.
    missing = {name: facts.missing_privileges for name, facts in left.items() if facts.missing_privileges}
    return _verdict(
        "privileges",
        bool(missing),
        "; ".join(f"{name} lacks {', '.join(what)}" for name, what in sorted(missing.items())) or "sufficient",
        "the login role may promote and alter the settings a failover needs",
        "grants are replicated and the primary is gone: give login_user and login_password of a superuser for this run",
    )


def _manager(request: FailoverRequest, left: Nodes) -> Check:
    managers = sorted({manager for facts in left.values() for manager in facts.managers})
    return _verdict(
        "manager_in_charge",
        bool(managers),
        ", ".join(managers) or "none",
        "no other manager decides who is primary here",
        "use that manager's own failover, a promotion behind its back ends in two primaries: "
        + commands(managers, primary=request.failed_primary, candidate=request.candidate or "CANDIDATE", planned=False),
    )


def _no_open_operation(request: FailoverRequest, nodes: Nodes) -> Check:
    others = {
        name: kind
        for name, kind in open_operations(request, nodes).items()
        if kind != KIND and name != request.abandon_operation
    }
    return _verdict(
        "no_open_operation",
        bool(others),
        ", ".join(f"an unfinished {kind} {name}" for name, kind in sorted(others.items())) or "none",
        "no unfinished operation of somebody else: it may have proved that a standby has everything",
        "run that playbook again first: it finishes without a loss where that is possible. If it says that it cannot,"
        f" give abandon_operation={min(others, default='')}",
    )


def _candidate_fit(request: FailoverRequest, nodes: Nodes, left: Nodes) -> Check:
    candidate = choose(request, nodes)
    newest = max(facts.timeline for facts in left.values())
    named = {name: unfit(facts, newest) for name, facts in left.items()}
    reasons = named.get(candidate, ["it is no standby that answers"]) if candidate else ["nobody is fit"]
    return _verdict(
        "candidate_fit",
        bool(reasons),
        f"{candidate or 'nobody'} can be promoted"
        if not reasons
        else "; ".join(f"{name}: {', '.join(why)}" for name, why in named.items() if why)
        or f"{candidate}: {', '.join(reasons)}",
        "a standby that can be promoted now",
        "SELECT pg_wal_replay_resume(), reset recovery_min_apply_delay or recovery_target_* there, or name another one",
    )


def _most_advanced(request: FailoverRequest, left: Nodes, candidate: str) -> Check:
    mine = position(left[candidate])
    ahead = {name: position(facts) for name, facts in left.items() if position(facts) > mine}
    return _verdict(
        "most_advanced",
        bool(ahead) and not request.accept_data_loss,
        f"{candidate} has {format_lsn(mine)}"
        + "".join(f", {name} has {format_lsn(lsn)}" for name, lsn in sorted(ahead.items())),
        f"no standby has received more than {candidate}",
        f"promote {max(ahead, key=lambda name: ahead[name], default='')}, or make it fit; accept_data_loss throws away"
        " what only it has",
    )


def old_sync_names(request: FailoverRequest, left: Nodes, candidate: str) -> str | None:
    """The failed primary's list as far as anybody knows it: its own configuration where its host could be read, else
    what its standbys have in theirs, which is the same where one configuration serves all. None: nobody knows."""
    if request.fence.synchronous_standby_names is not None:
        return request.fence.synchronous_standby_names
    return left[candidate].settings.get("synchronous_standby_names") or None


def _known_as(facts: NodeFacts) -> str:
    """The name by which the failed primary knew this standby: a walreceiver without one takes cluster_name."""
    return facts.application_name or facts.settings.get("cluster_name") or "walreceiver"


def promise_kept(request: FailoverRequest, left: Nodes, candidate: str) -> bool | None:
    """Has the most advanced of those who answered every commit that was acknowledged as synchronous? A commit waited
    for n of those that are listed, and nobody knows which: so fewer than n of them may be missing here. None: not known.

    A silent standby has its member's name, unless one that answers shows that here they have other names: then it may
    share any name in the list.
    """
    rule = parse_sync_rule(old_sync_names(request, left, candidate) or "")
    if rule is None:
        return None
    listed = {name.lower() for name in rule.names}
    names = {member: _known_as(facts).lower() for member, facts in left.items()}
    silent = {member.lower() for member in request.members.keys() - left.keys() - {request.failed_primary}}
    missing = len(listed - {*names.values(), request.failed_primary.lower(), "*"} | (silent if "*" in listed else set()))
    if any(name in listed and name != member.lower() for member, name in names.items()):
        missing = max(missing, len(silent))
    return ("*" in listed or not listed.isdisjoint(names.values())) and missing < rule.number


def _synchronous_promise(request: FailoverRequest, left: Nodes, candidate: str) -> Check:
    kept = promise_kept(request, left, candidate)
    names = old_sync_names(request, left, candidate)
    return _verdict(
        "synchronous_promise",
        kept is False and not request.accept_data_loss,
        "the failed primary was asynchronous, as far as is known: what it had not sent may be lost"
        if kept is None
        else f"synchronous_standby_names was '{names}', and {', '.join(sorted(left))} answered",
        "so many of the listed standbys answer that one of them must have every commit that was acknowledged",
        "bring the missing standby back; accept_data_loss promotes without what only it may have",
    )


def sync_after(request: FailoverRequest, left: Nodes, candidate: str) -> tuple[str, int]:
    """synchronous_standby_names of the new primary, and how many standbys it lacks. Raises ValueError."""
    if request.synchronous_standby_names is not None:
        rule = parse_sync_rule(request.synchronous_standby_names)
    else:
        rule = parse_sync_rule(old_sync_names(request, left, candidate) or "")
        names = [name.lower() for name in rule.names] if rule else []
        mine = _known_as(left[candidate])
        if rule is not None and request.failed_primary.lower() not in names and mine.lower() in names:
            rule = rule.renamed(mine, request.failed_primary)
    if rule is None:
        return "", 0
    others = tuple(facts.application_name or name for name, facts in left.items() if name != candidate)
    return str(rule), rule.missing(others)


def _synchronous_standby_names(request: FailoverRequest, left: Nodes, candidate: str) -> Check:
    try:
        after, missing = sync_after(request, left, candidate)
    except ValueError as error:
        return _verdict("synchronous_standby_names", True, str(error), "a list that PostgreSQL accepts", "correct it")
    return _verdict(
        "synchronous_standby_names",
        missing > 0 and not request.accept_async_window,
        f"after the failover {after or 'asynchronous'}, {missing} of the standbys it needs are missing",
        "a list that the standbys that are left can satisfy, so that no commit waits for ever",
        "give synchronous_standby_names for the time after the failover, or accept_async_window=true",
    )


# ----------------------------------------------------------------------------------------------------------------- plan


def _followers(request: FailoverRequest, left: Nodes, candidate: str) -> tuple[Follower, ...]:
    followers = []
    for name in request.members:
        if name == candidate:
            continue
        facts = left.get(name)
        slot = (facts.settings.get("primary_slot_name") if facts else "") or member_slot(name)
        followers.append(Follower(name, slot, (facts.application_name if facts else "") or name))
    return tuple(followers)


def make_plan(
    request: FailoverRequest,
    nodes: Nodes,
    *,
    retry_interval_before: str | None,
    conninfo_by_alter_system: Iterable[str],
) -> FailoverPlan:
    left = standbys(request, nodes)
    candidate = choose(request, nodes)
    followers = _followers(request, left, candidate)
    there = {slot.name for slot in left[candidate].slots}
    after, missing = sync_after(request, left, candidate)
    own = left[candidate].settings.get("synchronous_standby_names", "")
    wanted = "" if missing and request.accept_async_window else after
    return FailoverPlan(
        failed_primary=request.failed_primary,
        candidate=candidate,
        old_timeline=left[candidate].timeline,
        standbys=tuple(sorted(left)),
        conninfo_by_alter_system=tuple(sorted(conninfo_by_alter_system)),
        followers=followers,
        create_slots=tuple(follower.slot for follower in followers if follower.slot not in there),
        application_name=left[candidate].application_name,
        sync_before=own,
        sync_after=None if parse_sync_rule(wanted) == parse_sync_rule(own) else wanted,
        retry_interval_before=retry_interval_before,
    )


def plan_of_promoted(request: FailoverRequest, nodes: Nodes, promoted: str) -> FailoverPlan:
    """What is left to do where an earlier run promoted and its journal lies on another host: all but the promotion."""
    left = standbys(request, nodes)
    newest = nodes[promoted].timeline
    return FailoverPlan(
        failed_primary=request.failed_primary,
        candidate=promoted,
        old_timeline=max((facts.timeline for facts in left.values() if facts.timeline < newest), default=newest - 1),
        standbys=tuple(sorted({*left, promoted})),
        conninfo_by_alter_system=(),
        followers=_followers(request, left, promoted),
    )


def planned_steps(request: FailoverRequest, plan: FailoverPlan) -> dict[str, PlannedStep]:
    """All steps in order, by name: what ``--check`` prints is what the runner applies."""
    old, new = plan.failed_primary, plan.candidate
    others = ", ".join(name for name in plan.standbys if name != new) or "none"
    set_list = () if plan.sync_after is None else (f"ALTER SYSTEM SET synchronous_standby_names = '{plan.sync_after}'",)
    steps = [
        PlannedStep(
            "mark",
            f"mark {', '.join(plan.standbys)}: a failover is under way",
            ("SELECT pg_create_physical_replication_slot('dbops_op_<operation>')",),
        ),
        PlannedStep("salvage", f"where {old} serves its WAL as a fenced standby, wait until {new} has all of it"),
        PlannedStep(
            "freeze",
            f"let {', '.join(plan.standbys)} receive nothing any more, so that positions can be compared",
            ("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"),
        ),
        PlannedStep("compare", f"wait until {new} has replayed what it received, and see that nobody has more"),
        PlannedStep(
            "prepare",
            f"create the slots of the followers on {new}, let it promote at once",
            (
                *(f"SELECT pg_create_physical_replication_slot('{name}', …)" for name in plan.create_slots),
                f"ALTER SYSTEM SET wal_retrieve_retry_interval = '{RETRY_INTERVAL}'",
                *set_list,
            ),
        ),
        PlannedStep("promote", f"promote {new}", ("SELECT pg_promote(false)",), point_of_no_return=True),
        PlannedStep(
            "follow",
            f"let the other standbys ({others}) follow {new}",
            ("ALTER SYSTEM SET primary_conninfo = …", "ALTER SYSTEM SET primary_slot_name = …"),
        ),
        PlannedStep(
            "record",
            f"checkpoint {new}, write down where {old} was left and what may be lost, take the marks away",
            ("CHECKPOINT", "INSERT INTO dbops.operation …", "ALTER SYSTEM RESET wal_retrieve_retry_interval"),
        ),
    ]
    return {step.name: step for step in steps}
