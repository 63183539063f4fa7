# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner of a planned switchover: facts in, checks, phase and steps out. No IO, no clock."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Callable

from .._core.operation import Check, PlannedStep
from .catalog import NodeFacts
from .lsn import format_lsn
from .managers import commands
from .sync_names import SyncRule, parse_sync_rule
from .wal_filler import worth_filling

OLDEST_MAJOR = 13
KIND = "switchover"
RETRY_INTERVAL = "10ms"
DEFAULT_RETRY_INTERVAL = "5000"


@dataclass(frozen=True)
class Member:
    """Where a member is reached. ``address`` and ``port`` by servers and poolers, ``login_*`` by the operator."""

    name: str
    address: str
    port: int
    login_host: str
    login_port: int

    def is_at(self, host: str, port: int) -> bool:
        return (host, port) in ((self.address, self.port), (self.login_host, self.login_port))


@dataclass(frozen=True)
class Request:
    """What the caller asks for. Bytes, seconds and milliseconds as named."""

    cluster: str
    candidate: str
    node: str
    members: dict[str, Member]
    poolers: tuple[str, ...] = ()
    synchronous_standby_names: str | None = None
    accept_async_window: bool = False
    accept_lost_slots: tuple[str, ...] = ()
    max_lag_bytes: int = 16 * 1024 * 1024
    max_transaction_seconds: float = 10.0
    max_idle_in_transaction_seconds: float = 5.0
    max_archive_backlog: int = 16
    max_pause_ms: int = 5000
    min_free_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True)
class LocalFacts:
    """The host where the module runs, seen without the database. ``problem``: why it may not act there;
    ``serves_session``: the session to this host's member is served by a process in ``data_dir``."""

    data_dir: str = ""
    problem: str = ""
    service_problem: str = ""
    running: bool = False
    control_state: str = ""
    control_system_identifier: str = ""
    serves_session: bool = False
    signal_planted: bool = False
    disk_version: str = ""
    free_bytes: int | None = None
    unlogged: tuple[int, ...] = ()
    replication_problem: str = ""
    passfile_problem: str = ""
    shutdown_end_lsn: int | None = None
    shutdown_problem: str = ""
    promote_sent: bool = False


@dataclass(frozen=True)
class PoolerRoute:
    name: str
    host: str
    port: int
    pool_mode: str
    paused: bool


@dataclass(frozen=True)
class PoolerFacts:
    """One pooler as its console answered. ``databases``: those that are to follow the primary; ``missing``: those that
    are named and not there."""

    name: str
    error: str = ""
    version: str = ""
    so_reuseport: bool = False
    listeners: int | None = None
    databases: tuple[PoolerRoute, ...] = ()
    missing: tuple[str, ...] = ()
    query_wait_timeout_s: float = 120.0
    staged_for: str = ""


@dataclass(frozen=True)
class Probe:
    """What the role saw on another member's own host: can it open a replication connection to the candidate?"""

    member: str
    replication_problem: str | None = None
    free_bytes: int | None = None


@dataclass(frozen=True)
class Observed:
    nodes: dict[str, NodeFacts]
    local: LocalFacts
    poolers: tuple[PoolerFacts, ...] = ()
    probes: dict[str, Probe] = field(default_factory=dict)

    def writable(self) -> list[str]:
        return [name for name, facts in self.nodes.items() if facts.writable]


class Phase(Enum):
    """Where the cluster stands, derived from the servers; the journal is asked only whether promote was sent."""

    DONE = "the candidate is the primary, and no run is unfinished"
    FRESH = "another member is the primary"
    STOPPED = "the old primary was stopped by an unfinished run; the candidate has not been promoted"
    ABANDONED = "an unfinished run stopped the old primary, and it cannot be proved that the candidate has everything"
    PROMOTED = "an unfinished run proved that the candidate has everything, and promoted it or was about to"


def marker_slot(operation: str) -> str:
    """The slot on the candidate that says: standby.signal is planted, the old primary is being stopped. Slots are not
    replicated, survive a restart, and can be dropped over the database protocol, so a rollback takes the marker away
    before the old primary accepts another write."""
    return f"dbops_op_{operation}"


def member_slot(name: str) -> str:
    """Slot names are short, and of lower-case letters, digits and underscores: a member's name that is not gets a hash,
    so that two members never share a slot."""
    plain = re.sub(r"[^a-z0-9_]", "_", name.lower())
    if plain == name and len(name) <= 50:
        return f"dbops_{name}"
    return f"dbops_{plain[:48]}_{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def open_operation(observed: Observed, candidate: str) -> dict[str, Any] | None:
    """The unfinished switchover to ``candidate``, if there is one. A row alone may come from a restored copy: it is
    believed where the candidate's marker slot vouches for it, or where the member it calls the old primary is the
    primary still, on the timeline of the row (then nothing was stopped yet)."""
    facts = observed.nodes.get(candidate)
    slots = {slot.name for slot in facts.slots} if facts is not None and facts.answered else set()
    for node in observed.nodes.values():
        for row in node.operations:
            if row["kind"] != KIND or row["detail"]["candidate"] != candidate:
                continue
            if row["system_identifier"] != node.system_identifier:
                continue
            old = observed.nodes.get(row["detail"]["old_primary"])
            still = old is not None and old.writable and old.timeline == row["timeline"]
            # A manager drops slots that are not its own, so there is no marker: the next timeline has to do.
            managed = row["detail"].get("manager") and facts is not None and facts.writable
            if still or marker_slot(row["id"]) in slots or (managed and node.timeline == row["timeline"] + 1):
                return row
    return None


# ---------------------------------------------------------------------------------------------------------------- phase


def derive_phase(request: Request, observed: Observed, *, own_operation: bool) -> Phase | None:
    """None: there is no primary and no unfinished run of ours, so this is no switchover.

    ``own_operation``: an unfinished run is known, from the journal of this host or from row and marker slot.
    """
    writable = observed.writable()
    candidate = observed.nodes[request.candidate]
    if writable == [request.candidate]:
        return Phase.PROMOTED if own_operation else Phase.DONE
    if writable:
        return Phase.FRESH  # also two primaries, which the checks of a fresh switchover refuse
    if not own_operation:
        return None
    if observed.local.promote_sent:
        return Phase.PROMOTED
    if candidate.answered and observed.local.shutdown_end_lsn is not None:
        return Phase.STOPPED
    return Phase.ABANDONED


def run_on(request: Request, observed: Observed) -> str:
    """The member on whose host the module has to run: where the server is, or was, that has to be stopped."""
    operation = open_operation(observed, request.candidate)
    writable = observed.writable()
    if len(writable) == 1 and writable[0] != request.candidate:
        return writable[0]
    if operation is not None:
        return str(operation["detail"]["old_primary"])
    return request.candidate


def follows(request: Request, facts: NodeFacts) -> bool:
    """Does this member stream from the candidate?"""
    receiver = facts.receiver
    target = request.members[request.candidate]
    return (
        facts.answered
        and facts.in_recovery
        and receiver is not None
        and receiver.status == "streaming"
        and target.is_at(receiver.sender_host, receiver.sender_port)
    )


# --------------------------------------------------------------------------------------------------------------- checks


def _verdict(name: str, bad: bool | None, *, found: str, expected: str, remedy: str, status: str = "failed") -> Check:
    """``bad`` None means unknown, and unknown refuses."""
    if bad is None:
        return Check(name, "unknown", found, expected, remedy)
    return Check(name, status if bad else "ok", found, expected, remedy if bad else "")


CheckFunction = Callable[[Request, Observed, str], Check]
CHECKS: dict[str, CheckFunction] = {}


def _named(function: CheckFunction) -> CheckFunction:
    CHECKS[function.__name__.replace("check_", "", 1)] = function
    return function


def base_checks(request: Request, observed: Observed) -> list[Check]:
    """The checks without which no other can be judged: everybody answers and may be read, and there is one primary."""
    checks = [_nodes_reachable(observed), _one_primary(observed)]
    if all(check.status == "ok" for check in checks):
        checks += [_versions(observed), _privileges(observed)]
        checks += [_candidate_is_standby(request, observed), _runs_on_primary(request, observed)]
    return checks


def all_checks(request: Request, observed: Observed) -> list[Check]:
    """Every precheck of a fresh switchover, in order. Where a base check fails the rest is not judged."""
    checks = base_checks(request, observed)
    if any(check.status != "ok" for check in checks):
        return checks
    primary = observed.writable()[0]
    return checks + [function(request, observed, primary) for function in CHECKS.values()]


def _nodes_reachable(observed: Observed) -> Check:
    silent = {name: facts.error for name, facts in observed.nodes.items() if not facts.answered}
    return _verdict(
        "nodes_reachable",
        bool(silent),
        found="; ".join(silent.values()) or f"{len(observed.nodes)} members answered",
        expected="every member of the cluster answers",
        remedy="check login_host, login_port, user, password and pg_hba.conf of that member; a member that is gone"
        " for good is taken out of dbops_clusters first",
    )


def _one_primary(observed: Observed) -> Check:
    writable = observed.writable()
    found = {0: "no primary: every member is in recovery"}.get(len(writable), "primary: " + ", ".join(sorted(writable)))
    remedy = (
        "two writable servers have diverged: fence one of them now and compare their data; nothing was changed"
        if len(writable) > 1
        else "a planned switchover needs a running primary; start it, or find out why it is not"
    )
    unfinished = [name for name in observed.nodes if open_operation(observed, name) is not None]
    if not writable and unfinished:
        found = f"{found}; a switchover to {unfinished[0]} is unfinished"
        remedy = f"run it again with candidate={unfinished[0]}: it finishes, or starts the old primary again"
    return _verdict("one_primary", len(writable) != 1, found=found, expected="exactly one primary", remedy=remedy)


def _versions(observed: Observed) -> Check:
    majors = {name: facts.major for name, facts in observed.nodes.items()}
    return _verdict(
        "versions",
        min(majors.values()) < OLDEST_MAJOR or len(set(majors.values())) > 1,
        found=", ".join(f"{name}: {major}" for name, major in sorted(majors.items())),
        expected=f"one major version, {OLDEST_MAJOR} or newer, on every member",
        remedy="upgrade first; a switchover between major versions is a blue-green operation",
    )


def _privileges(observed: Observed) -> Check:
    missing = {name: facts.missing_privileges for name, facts in observed.nodes.items() if facts.missing_privileges}
    return _verdict(
        "privileges",
        bool(missing),
        found="; ".join(f"{name} lacks {', '.join(what)}" for name, what in sorted(missing.items())) or "sufficient",
        expected="the login role may read, checkpoint, promote, and alter the settings a switchover needs",
        remedy="grant them on the primary (docs/runbooks/promote_replica.md, Least privilege, has the statements)",
    )


def _candidate_is_standby(request: Request, observed: Observed) -> Check:
    candidate = observed.nodes[request.candidate]
    return _verdict(
        "candidate_is_standby",
        not candidate.in_recovery,
        found=f"{request.candidate} is {'a standby' if candidate.in_recovery else 'a primary'}",
        expected="the candidate is a hot standby",
        remedy="name a standby of this cluster as candidate",
    )


def _runs_on_primary(request: Request, observed: Observed) -> Check:
    primary = observed.writable()[0]
    return _verdict(
        "runs_on_primary",
        request.node != primary,
        found=f"the module runs for {request.node}, the primary is {primary}",
        expected="the module runs on the primary's host, where the server is stopped",
        remedy=f"run it on the host of {primary} with node={primary} (the role promote_replica does)",
    )


@_named
def check_no_unfinished_operation(request: Request, observed: Observed, primary: str) -> Check:
    """One to this candidate is finished by this very run, and never comes here."""
    others = [name for name in observed.nodes if name != request.candidate]
    rows = {name: open_operation(observed, name) for name in others}
    found = [name for name, row in rows.items() if row is not None and row["detail"]["candidate"] == name]
    return _verdict(
        "no_unfinished_operation",
        bool(found),
        found=f"an unfinished switchover to {', '.join(found)}" if found else "none",
        expected="no other switchover of this cluster is unfinished",
        remedy=f"run it again with candidate={found[0]} first: its temporary settings have to be put back"
        if found
        else "",
    )


@_named
def check_disk_version(request: Request, observed: Observed, primary: str) -> Check:
    running = observed.nodes[primary].settings.get("server_version", "").split(" ")[0]
    on_disk = observed.local.disk_version
    return _verdict(
        "disk_version",
        None if not on_disk else on_disk != running,
        found=f"running {running}, on disk {on_disk or 'unknown'}",
        expected="the program on disk is the one that runs: the old primary is started again with what is on disk",
        remedy="restart the primary's package upgrade in its own window, or correct bin_dir",
    )


@_named
def check_system_identifier(request: Request, observed: Observed, primary: str) -> Check:
    identifiers = {name: facts.system_identifier for name, facts in observed.nodes.items()}
    return _verdict(
        "system_identifier",
        len(set(identifiers.values())) > 1,
        found=", ".join(f"{name}: {identifier}" for name, identifier in sorted(identifiers.items())),
        expected="one system identifier: all members are copies of one cluster",
        remedy="a member belongs to another cluster; correct login_host and login_port in dbops_clusters",
    )


@_named
def check_local_data(request: Request, observed: Observed, primary: str) -> Check:
    """Path and system identifier are those of a standby, too, where packages put every data directory in one place. On
    a standby's host the run would stop that, and its rollback would start it without standby.signal: two primaries."""
    local, facts = observed.local, observed.nodes[primary]
    same = not local.problem and local.control_system_identifier == facts.system_identifier
    same = same and facts.settings.get("data_directory", "").rstrip("/") == local.data_dir.rstrip("/")
    found = f"data_dir {local.data_dir} (system {local.control_system_identifier}); the server uses"
    found += f" {facts.settings.get('data_directory')} (system {facts.system_identifier})"
    if same and not local.serves_session:
        found += f"; the session to {primary} is not served by a process in data_dir on this host"
    return _verdict(
        "local_data",
        not same or not local.serves_session,
        found=local.problem or found,
        expected="data_dir on this host is the data directory of the running primary, and this user may change it",
        remedy=f"correct host, data_dir and address of {primary}: its host may be that of another member. Run as root"
        " or as the owner of the data directory (become)",
    )


@_named
def check_service_control(request: Request, observed: Observed, primary: str) -> Check:
    problem = observed.local.service_problem
    return _verdict(
        "service_control",
        bool(problem),
        found=problem or "start and stop commands are there",
        expected="the service's own start and stop commands can be run by this user",
        remedy="correct service in dbops_clusters; with systemd run as root, or give start and stop as sudo commands",
    )


@_named
def check_manager_in_charge(request: Request, observed: Observed, primary: str) -> Check:
    managers = sorted({manager for facts in observed.nodes.values() for manager in facts.managers})
    return _verdict(
        "manager_in_charge",
        bool(managers),
        found=", ".join(managers) or "none",
        expected="no other manager decides who is primary here",
        remedy=f"use that manager's own switchover: {commands(managers, primary=primary, candidate=request.candidate)}."
        " A promotion behind its back ends in two primaries",
    )


@_named
def check_candidate_streams(request: Request, observed: Observed, primary: str) -> Check:
    receiver, member = observed.nodes[request.candidate].receiver, request.members[primary]
    good = receiver is not None and receiver.status == "streaming"
    good = good and receiver is not None and member.is_at(receiver.sender_host, receiver.sender_port)
    seen = f"{receiver.status} from {receiver.sender_host}:{receiver.sender_port}" if receiver else "no walreceiver"
    return _verdict(
        "candidate_streams",
        not good,
        found=f"{request.candidate}: {seen}",
        expected=f"it streams directly from {primary} ({member.address}:{member.port})",
        remedy="repair the replication of the candidate (its log says why it does not stream), or name another one",
    )


@_named
def check_siblings_follow(request: Request, observed: Observed, primary: str) -> Check:
    wrong = []
    for name, facts in observed.nodes.items():
        if name in (primary, request.candidate):
            continue
        if facts.receiver is None or facts.receiver.status != "streaming":
            wrong.append(f"{name}: {facts.receiver.status if facts.receiver else 'no walreceiver'}")
    return _verdict(
        "siblings_follow",
        bool(wrong),
        found="; ".join(wrong) or "all other standbys stream",
        expected="every other standby streams too, so that it can follow the new primary",
        remedy="repair that standby, or take it out of the cluster's members first",
    )


@_named
def check_timeline(request: Request, observed: Observed, primary: str) -> Check:
    """A standby without a walreceiver may know an older timeline only because it made no restartpoint since; that it
    does not stream is what the other checks say of it. A timeline newer than the primary's is another history."""
    timelines = {name: facts.timeline for name, facts in observed.nodes.items()}
    current = timelines[primary]
    return _verdict(
        "timeline",
        any(
            facts.timeline > current or (facts.timeline < current and facts.receiver is not None)
            for facts in observed.nodes.values()
        ),
        found=", ".join(f"{name}: {timeline}" for name, timeline in sorted(timelines.items())),
        expected="all members are on the primary's timeline: LSNs of two timelines cannot be compared",
        remedy="let that standby catch up to the timeline, or rebuild it",
    )


@_named
def check_replay_running(request: Request, observed: Observed, primary: str) -> Check:
    paused = [name for name, facts in observed.nodes.items() if facts.replay_paused]
    return _verdict(
        "replay_running",
        bool(paused),
        found=f"replay is paused on {', '.join(paused)}" if paused else "replay runs",
        expected="no standby has its replay paused",
        remedy="SELECT pg_wal_replay_resume() there, once it is known who paused it and why",
    )


@_named
def check_apply_delay(request: Request, observed: Observed, primary: str) -> Check:
    candidate = observed.nodes[request.candidate]
    delay = candidate.number("recovery_min_apply_delay")
    return _verdict(
        "apply_delay",
        delay > 0 if candidate.knows("recovery_min_apply_delay") else None,
        found=f"recovery_min_apply_delay = {delay} ms on {request.candidate}",
        expected="the candidate applies without delay",
        remedy="name another candidate, or reset recovery_min_apply_delay and let it catch up",
    )


@_named
def check_recovery_target(request: Request, observed: Observed, primary: str) -> Check:
    names = (
        "recovery_target",
        "recovery_target_lsn",
        "recovery_target_name",
        "recovery_target_time",
        "recovery_target_xid",
    )
    wrong = [
        f"{member}: {name} = {facts.settings[name]}"
        for member, facts in observed.nodes.items()
        for name in names
        if facts.settings.get(name)
    ]
    wrong += [
        f"{member}: recovery_target_timeline = {facts.settings.get('recovery_target_timeline')}"
        for member, facts in observed.nodes.items()
        if facts.settings.get("recovery_target_timeline", "latest") != "latest"
    ]
    known = all(facts.knows("recovery_target_timeline", *names) for facts in observed.nodes.values())
    return _verdict(
        "recovery_target",
        True if wrong else False if known else None,
        found="; ".join(wrong) or "no recovery target",
        expected="no recovery_target_* and recovery_target_timeline = latest on any member",
        remedy="reset these settings: a member with a target stops there or cannot follow a new timeline",
    )


def _behind(position: int | None, primary_lsn: int | None) -> int | None:
    return None if position is None or primary_lsn is None else max(0, primary_lsn - position)


@_named
def check_replication_lag(request: Request, observed: Observed, primary: str) -> Check:
    candidate, current = observed.nodes[request.candidate], observed.nodes[primary].current_lsn
    flush, replay = _behind(candidate.receive_lsn, current), _behind(candidate.replay_lsn, current)
    return _verdict(
        "replication_lag",
        None if flush is None or replay is None else max(flush, replay) > request.max_lag_bytes,
        found=f"received {flush if flush is not None else 'unknown'} bytes and replayed"
        f" {replay if replay is not None else 'unknown'} bytes behind {primary}",
        expected=f"at most max_lag_bytes = {request.max_lag_bytes}",
        remedy="wait until the candidate has caught up, or find out what slows it",
    )


@_named
def check_wal_kept(request: Request, observed: Observed, primary: str) -> Check:
    """The shutdown checkpoint removes every WAL file that nobody asked to keep, also one that the candidate still has
    to get: then the proof fails, and the candidate never streams again. It may be max_lag_bytes behind, and a primary
    that archives begins one more file when it stops."""
    facts, candidate = observed.nodes[primary], observed.nodes[request.candidate]
    segment = facts.number("wal_segment_size") or 1 << 24
    needed = (max(1, -(-request.max_lag_bytes // segment)) + 1) * segment
    kept = facts.number("wal_keep_size") << 20
    slot = candidate.receiver.slot_name if candidate.receiver else ""
    limit = facts.number("max_slot_wal_keep_size")
    by_slot = bool(slot) and (limit < 0 or limit << 20 >= needed)
    restores = bool(candidate.settings.get("restore_command")) and facts.settings.get("archive_mode") != "off"
    known = facts.knows("wal_keep_size", "wal_segment_size", "max_slot_wal_keep_size", "archive_mode")
    return _verdict(
        "wal_kept",
        not (by_slot or restores or kept >= needed) if known and candidate.knows("restore_command") else None,
        found=f"{request.candidate} follows {f'with slot {slot}' if slot else 'without a slot'};"
        f" {primary}: wal_keep_size = {kept >> 20} MB, max_slot_wal_keep_size = {limit} MB;"
        f" {request.candidate} {'restores' if restores else 'does not restore'} from an archive of {primary}",
        expected=f"{primary} keeps {needed >> 20} MB of WAL that {request.candidate} may still need when it stops:"
        " by a slot, by wal_keep_size, or in an archive that the candidate reads",
        remedy=f"give {request.candidate} a slot (primary_slot_name), or raise wal_keep_size on {primary} to"
        f" {needed >> 20} MB and reload it",
    )


@_named
def check_candidate_settings(request: Request, observed: Observed, primary: str) -> Check:
    names = (
        "max_connections",
        "max_worker_processes",
        "max_wal_senders",
        "max_prepared_transactions",
        "max_locks_per_transaction",
    )
    before, after = observed.nodes[primary], observed.nodes[request.candidate]
    less = [
        f"{name}: {after.number(name)} < {before.number(name)}"
        for name in names
        if after.number(name) < before.number(name)
    ]
    # Harmless on a standby, and often set on one: as a primary it would turn every write away.
    read_only = "default_transaction_read_only"
    if after.settings.get(read_only) == "on" and before.settings.get(read_only) != "on":
        less.append(f"{read_only} = on")
    known = before.knows(*names, read_only) and after.knows(*names, read_only)
    return _verdict(
        "candidate_settings",
        True if less else False if known else None,
        found="; ".join(less) or "not lower than on the primary",
        expected="the candidate allows at least what the primary allows",
        remedy="raise these settings on the candidate and restart it; reset default_transaction_read_only there",
    )


@_named
def check_hot_standby(request: Request, observed: Observed, primary: str) -> Check:
    off = [name for name, facts in observed.nodes.items() if facts.settings.get("hot_standby") != "on"]
    return _verdict(
        "hot_standby",
        bool(off),
        found=f"hot_standby is off on {', '.join(off)}" if off else "hot_standby = on",
        expected="hot_standby = on on every member: a standby that takes no sessions cannot be verified",
        remedy="set hot_standby = on there and restart it",
    )


@_named
def check_archive_settings(request: Request, observed: Observed, primary: str) -> Check:
    def archives(facts: NodeFacts) -> str:
        mode = facts.settings.get("archive_mode", "unknown")
        by = facts.settings.get("archive_library") or facts.settings.get("archive_command")
        return f"{mode}, {'with a command' if by and by != '(disabled)' else 'no command'}"

    before, after = archives(observed.nodes[primary]), archives(observed.nodes[request.candidate])
    known = observed.nodes[primary].knows("archive_mode") and observed.nodes[request.candidate].knows("archive_mode")
    # As a primary "always" archives what "on" does.
    differs = before.replace("always", "on") != after.replace("always", "on")
    return _verdict(
        "archive_settings",
        (differs and not before.startswith("off")) if known else None,
        found=f"{primary}: archive_mode {before}; {request.candidate}: archive_mode {after}",
        expected="the candidate archives WAL as the primary does, or point-in-time recovery ends at the switch",
        remedy="set archive_mode and archive_command (or archive_library) on the candidate and restart it",
    )


@_named
def check_archive_backlog(request: Request, observed: Observed, primary: str) -> Check:
    facts = observed.nodes[primary]
    ready = facts.archive_ready
    return _verdict(
        "archive_backlog",
        None if ready is None else ready > request.max_archive_backlog or bool(facts.archive_failing),
        found=f"{'unknown' if ready is None else ready} WAL files wait for the archiver"
        + (f"; archiving of {facts.archive_failing} failed last" if facts.archive_failing else ""),
        expected=f"at most max_archive_backlog = {request.max_archive_backlog} wait, and the last attempt succeeded",
        remedy="repair archiving first: what is not archived at the switch can leave a hole in the archive",
    )


@_named
def check_free_wal_senders(request: Request, observed: Observed, primary: str) -> Check:
    candidate = observed.nodes[request.candidate]
    needed = len(request.members) - 1
    free = candidate.number("max_wal_senders") - len(candidate.senders)
    return _verdict(
        "free_wal_senders",
        free < needed,
        found=f"{free} of {candidate.number('max_wal_senders')} WAL senders are free on {request.candidate}",
        expected=f"{needed}: one for each member that will follow it",
        remedy="raise max_wal_senders on the candidate and restart it, or end a consumer",
    )


@_named
def check_free_slots(request: Request, observed: Observed, primary: str) -> Check:
    candidate = observed.nodes[request.candidate]
    needed = len(_slots_to_create(request, observed, primary)) + 1
    total = candidate.number("max_replication_slots")
    free = total - len(candidate.slots)
    return _verdict(
        "free_slots",
        free < needed,
        found=f"{free} of {total} replication slots are free on {request.candidate}",
        expected=f"{needed}: one for each follower and carried slot, and one marker while the switchover runs",
        remedy="drop unused slots on the candidate, or raise max_replication_slots there and restart it",
    )


@_named
def check_replication_login(request: Request, observed: Observed, primary: str) -> Check:
    problem = observed.local.passfile_problem or observed.local.replication_problem
    return _verdict(
        "replication_login",
        bool(problem),
        found=problem or "a replication connection from this host to the candidate was opened",
        expected=f"{primary} can open a replication connection to {request.candidate} as the replication user",
        remedy="admit it in the candidate's pg_hba.conf (database replication), and put the password into"
        " replication_passfile on this host, readable by the server's OS user",
    )


@_named
def check_sibling_replication_login(request: Request, observed: Observed, primary: str) -> Check:
    siblings = [name for name in request.members if name not in (primary, request.candidate)]
    unknown = [
        name for name in siblings if name not in observed.probes or observed.probes[name].replication_problem is None
    ]
    wrong = [
        f"{name}: {observed.probes[name].replication_problem}"
        for name in siblings
        if name in observed.probes and observed.probes[name].replication_problem
    ]
    return _verdict(
        "sibling_replication_login",
        True if wrong else None if unknown else False,
        found="; ".join(wrong + [f"{name}: not tried" for name in unknown])
        or "all siblings can log in to the candidate",
        expected=f"every other standby's host can open a replication connection to {request.candidate}",
        remedy="admit it in the candidate's pg_hba.conf; pass the results of pg_cluster_info run on these hosts as"
        " probes (the role promote_replica does)",
    )


@_named
def check_disk_space(request: Request, observed: Observed, primary: str) -> Check:
    free = {name: probe.free_bytes for name, probe in observed.probes.items()}
    free[primary] = observed.local.free_bytes
    low = [
        f"{name}: {value >> 20} MiB"
        for name, value in free.items()
        if value is not None and value < request.min_free_bytes
    ]
    unknown = free[primary] is None or free.get(request.candidate) is None
    return _verdict(
        "disk_space",
        True if low else None if unknown else False,
        found=", ".join(low) or (f"no probe of {request.candidate}" if unknown else "enough"),
        expected=f"at least min_free_bytes = {request.min_free_bytes >> 20} MiB free where WAL is written",
        remedy="free space there: a primary with a full disk stops",
    )


@_named
def check_rewind_ready(request: Request, observed: Observed, primary: str) -> Check:
    settings = observed.nodes[primary].settings
    ready = settings.get("full_page_writes") == "on" and "on" in (
        settings.get("wal_log_hints"),
        settings.get("data_checksums"),
    )
    return _verdict(
        "rewind_ready",
        not ready,
        found=f"full_page_writes {settings.get('full_page_writes')}, wal_log_hints {settings.get('wal_log_hints')},"
        f" data_checksums {settings.get('data_checksums')}",
        expected="full_page_writes and wal_log_hints or checksums, so that pg_rewind works should it ever be needed",
        remedy="a proven switchover needs no rewind; for failovers set wal_log_hints = on at the next restart",
        status="warning",
    )


@_named
def check_unlogged_tables(request: Request, observed: Observed, primary: str) -> Check:
    """Their rows are in no WAL: no proof speaks of them, and the new primary begins with empty ones."""
    known = observed.nodes[primary].databases
    names = [known.get(oid, str(oid)) for oid in observed.local.unlogged]
    return _verdict(
        "unlogged_tables",
        bool(names),
        found=f"unlogged tables in {', '.join(names)}: they will be empty on {request.candidate}" if names else "none",
        expected="no unlogged table: a standby has none of their rows",
        remedy="SELECT oid::regclass FROM pg_class WHERE relpersistence = 'u' lists them; copy what has to be kept, or"
        " ALTER TABLE … SET LOGGED before the switchover",
        status="warning",
    )


@_named
def check_no_base_backup(request: Request, observed: Observed, primary: str) -> Check:
    running = {name: facts.base_backups for name, facts in observed.nodes.items() if facts.base_backups}
    return _verdict(
        "no_base_backup",
        bool(running),
        found=", ".join(f"{count} on {name}" for name, count in sorted(running.items())) or "none",
        expected="no base backup runs: it would be cut off",
        remedy="wait for it, or stop it",
    )


@_named
def check_long_transactions(request: Request, observed: Observed, primary: str) -> Check:
    long = [
        f"pid {item.pid} ({item.user}, {item.seconds:.0f} s)"
        for item in observed.nodes[primary].transactions
        if item.kind == "running" and item.seconds > request.max_transaction_seconds
    ]
    return _verdict(
        "long_transactions",
        bool(long),
        found=", ".join(long[:5]) or "none",
        expected=f"no transaction older than {request.max_transaction_seconds:g} s: pausing a pooler waits for it",
        remedy="wait for it or end it with pg_terminate_backend(pid)",
    )


@_named
def check_idle_in_transaction(request: Request, observed: Observed, primary: str) -> Check:
    idle = [
        f"pid {item.pid} ({item.user}, {item.seconds:.0f} s)"
        for item in observed.nodes[primary].transactions
        if item.kind == "idle in transaction" and item.seconds > request.max_idle_in_transaction_seconds
    ]
    return _verdict(
        "idle_in_transaction",
        bool(idle),
        found=", ".join(idle[:5]) or "none",
        expected=f"no session idle in transaction for more than {request.max_idle_in_transaction_seconds:g} s",
        remedy="end it with pg_terminate_backend(pid); idle_in_transaction_session_timeout prevents the next one",
    )


@_named
def check_prepared_transactions(request: Request, observed: Observed, primary: str) -> Check:
    prepared = observed.nodes[primary].prepared
    return _verdict(
        "prepared_transactions",
        bool(prepared),
        found=f"{len(prepared)} prepared transactions" if prepared else "none",
        expected="no prepared transaction: it survives the switch, holds its locks, and its coordinator may not follow",
        remedy="let the coordinator commit or roll back each of them (pg_prepared_xacts)",
    )


@_named
def check_maintenance(request: Request, observed: Observed, primary: str) -> Check:
    running = observed.nodes[primary].maintenance
    return _verdict(
        "maintenance",
        bool(running),
        found=", ".join(running) or "none",
        expected="no index build, VACUUM FULL or CLUSTER runs: it would be thrown away",
        remedy="wait for it, or stop it",
    )


@_named
def check_other_consumers(request: Request, observed: Observed, primary: str) -> Check:
    """Fast shutdown waits until each consumer has everything, up to wal_sender_timeout for a stuck one. What a consumer
    has written it flushes when the shutdown asks; pg_receivewal says only then how far it has flushed."""
    current = observed.nodes[primary].current_lsn
    slow = []
    for sender in observed.nodes[primary].senders:
        behind = _behind(sender.write_lsn, current)
        if sender.state != "backup" and (behind is None or behind > request.max_lag_bytes):
            slow.append(
                f"{sender.application_name or sender.pid}: {'unknown' if behind is None else behind} bytes behind"
            )
    return _verdict(
        "other_consumers",
        bool(slow),
        found="; ".join(slow) or "none is behind",
        expected=f"every consumer of WAL is at most max_lag_bytes = {request.max_lag_bytes} behind",
        remedy="let it catch up or stop it: the server waits for it when it shuts down",
    )


@_named
def check_logical_slots(request: Request, observed: Observed, primary: str) -> Check:
    there = {slot.name: slot for slot in observed.nodes[request.candidate].slots}
    lost = []
    for slot in observed.nodes[primary].slots:
        if not slot.logical or slot.temporary or slot.name in request.accept_lost_slots:
            continue
        copy = there.get(slot.name)
        if copy is None or not copy.synced or copy.temporary or copy.invalid:
            lost.append(slot.name)
    return _verdict(
        "logical_slots",
        bool(lost),
        found=f"not on {request.candidate}: {', '.join(lost)}" if lost else "none, or all are synchronised",
        expected="every logical slot is synchronised to the candidate (PostgreSQL 17: failover slot, synced, valid)",
        remedy="create it as a failover slot with sync_replication_slots = on, or name it in accept_lost_slots"
        " and rebuild its subscriber afterwards",
    )


@_named
def check_synchronized_standby_slots(request: Request, observed: Observed, primary: str) -> Check:
    """https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONIZED-STANDBY-SLOTS"""
    facts = observed.nodes[request.candidate]
    names = [name.strip(' "') for name in facts.settings.get("synchronized_standby_slots", "").split(",")]
    there = {slot.name for slot in facts.slots} | set(_slots_to_create(request, observed, primary))
    missing = [name for name in names if name and name not in there]
    return _verdict(
        "synchronized_standby_slots",
        bool(missing),
        found=f"{request.candidate} would wait for the slots {', '.join(missing)}, which it will not have"
        if missing
        else "none",
        expected="synchronized_standby_slots of the candidate names only slots that it will have: "
        + ", ".join(follower.slot for follower in followers(request, observed, primary)),
        remedy="correct synchronized_standby_slots on the candidate: the consumers of failover slots would stand still",
    )


@_named
def check_synchronous_standby_names(request: Request, observed: Observed, primary: str) -> Check:
    try:
        plan = sync_plan(request, observed, primary)
    except ValueError as error:
        return _verdict(
            "synchronous_standby_names",
            True,
            found=str(error),
            expected="a list that PostgreSQL accepts",
            remedy="correct synchronous_standby_names",
        )
    known = all(observed.nodes[name].knows("synchronous_standby_names") for name in (primary, request.candidate))
    return _verdict(
        "synchronous_standby_names",
        (plan.missing > 0 and not request.accept_async_window) if known else None,
        found=f"after the switch {plan.after or 'asynchronous'},"
        f" with {', '.join(plan.available) or 'no standby'} to confirm",
        expected="a list that the remaining members can satisfy, so that no commit waits for ever",
        remedy="give synchronous_standby_names for the time after the switch, or accept_async_window=true",
    )


@_named
def check_poolers_reachable(request: Request, observed: Observed, primary: str) -> Check:
    silent = [pooler.error for pooler in observed.poolers if pooler.error]
    return _verdict(
        "poolers_reachable",
        bool(silent),
        found="; ".join(silent) or f"{len(observed.poolers)} poolers answered",
        expected="the console of every pooler answers, as a user in admin_users",
        remedy="start that PgBouncer, correct its entry in dbops_clusters, or take it out if it is gone",
    )


@_named
def check_pooler_processes(request: Request, observed: Observed, primary: str) -> Check:
    unknown, hidden = [], []
    for pooler in observed.poolers:
        if pooler.error:
            continue
        if pooler.listeners is not None and pooler.listeners > 1:
            hidden.append(f"{pooler.name}: {pooler.listeners} processes share its port")
        elif pooler.so_reuseport and pooler.listeners is None:
            unknown.append(f"{pooler.name}: so_reuseport is on and nobody counted its processes")
    return _verdict(
        "pooler_processes",
        True if hidden else None if unknown else False,
        found="; ".join(hidden + unknown) or "one process behind each console",
        expected="each PgBouncer process can be reached by itself: a hidden one would not be paused",
        remedy="give every process a port of its own and list each one as a pooler",
    )


@_named
def check_pooler_mode(request: Request, observed: Observed, primary: str) -> Check:
    session = [
        f"{pooler.name}/{database.name}"
        for pooler in observed.poolers
        for database in pooler.databases
        if database.pool_mode == "session"
    ]
    return _verdict(
        "pooler_mode",
        bool(session),
        found=f"session pooling: {', '.join(session)}" if session else "transaction pooling",
        expected="pool_mode transaction or statement: in session mode PAUSE waits until clients disconnect",
        remedy="use transaction pooling, or leave the pooler out: its clients then see errors as direct ones do",
    )


@_named
def check_pooler_targets(request: Request, observed: Observed, primary: str) -> Check:
    member = request.members[primary]
    wrong = [
        f"{pooler.name}: no database points to this cluster"
        for pooler in observed.poolers
        if not (pooler.error or pooler.databases or pooler.missing)
    ]
    wrong += [f"{pooler.name} has no database {name}" for pooler in observed.poolers for name in pooler.missing]
    wrong += [
        f"{pooler.name}/{database.name} points to {database.host}:{database.port}"
        for pooler in observed.poolers
        for database in pooler.databases
        if not member.is_at(database.host, database.port)
    ]
    wrong += [
        f"{pooler.name}/{database.name} is already paused"
        for pooler in observed.poolers
        for database in pooler.databases
        if database.paused
    ]
    return _verdict(
        "pooler_targets",
        bool(wrong),
        found="; ".join(wrong) or f"all point to {primary}",
        expected=f"the databases of each pooler point to {primary} and are not paused",
        remedy="SHOW DATABASES on that console; correct its configuration, RELOAD, or RESUME what somebody else paused;"
        " where some lead to standbys on purpose, name those that follow the primary as databases of the pooler",
    )


@_named
def check_pooler_staged(request: Request, observed: Observed, primary: str) -> Check:
    wrong = [
        f"{pooler.name}: {'staged for ' + pooler.staged_for if pooler.staged_for else 'not staged'}"
        for pooler in observed.poolers
        if not pooler.error and pooler.staged_for != request.candidate
    ]
    return _verdict(
        "pooler_staged",
        bool(wrong),
        found="; ".join(wrong) or f"every pooler's file points to {request.candidate}, and its dead-man is armed",
        expected=f"each pooler's configuration file is staged for {request.candidate} and its dead-man is armed",
        remedy="run pgbouncer_guard with state=armed on the pooler's host (the role promote_replica does)",
    )


@_named
def check_pooler_wait(request: Request, observed: Observed, primary: str) -> Check:
    short = [
        f"{pooler.name}: {pooler.query_wait_timeout_s:g} s"
        for pooler in observed.poolers
        if not pooler.error and 0 < pooler.query_wait_timeout_s * 1000 < 2 * request.max_pause_ms
    ]
    return _verdict(
        "pooler_wait",
        bool(short),
        found="; ".join(short) or "long enough",
        expected=f"query_wait_timeout is at least twice max_pause_ms = {request.max_pause_ms}",
        remedy="raise query_wait_timeout, or lower max_pause_ms: PgBouncer throws clients out when it has passed",
    )


CHECK_NAMES: tuple[str, ...] = (
    "nodes_reachable",
    "one_primary",
    "versions",
    "privileges",
    "candidate_is_standby",
    "runs_on_primary",
    *CHECKS,
)


# ----------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Follower:
    """How a member will follow the new primary."""

    name: str
    slot: str
    application_name: str


@dataclass(frozen=True)
class SyncPlan:
    """synchronous_standby_names of the new primary. ``missing`` counts standbys that are not there to confirm."""

    before: str
    after: str
    available: tuple[str, ...]
    missing: int
    needs_siblings: bool
    needs_old_primary: bool


@dataclass(frozen=True)
class SwitchoverPlan:
    """Everything that a later run needs in order to finish; ``as_detail`` goes into the intent row."""

    old_primary: str
    candidate: str
    old_timeline: int
    followers: tuple[Follower, ...]
    create_slots: tuple[str, ...]
    carried_slots: tuple[str, ...]
    drop_slots: tuple[str, ...]
    sync_before: str
    sync_after: str | None
    sync_needs_siblings: bool
    sync_needs_old_primary: bool
    retry_interval_before: str | None
    bin_dir: str = ""
    manager: str = ""  # who promotes, where that is not this collection
    fill_segment: bool = False

    def as_detail(self) -> dict[str, Any]:
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in self.__dict__.items()},
            "followers": [follower.__dict__ for follower in self.followers],
        }

    @classmethod
    def from_detail(cls, detail: dict[str, Any]) -> SwitchoverPlan:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in detail.items()
            if key in cls.__dataclass_fields__
        }
        values["followers"] = tuple(Follower(**follower) for follower in detail["followers"])
        return cls(**values)


def followers(request: Request, observed: Observed, primary: str) -> tuple[Follower, ...]:
    """Old primary first. A standby that used a slot keeps its name, and its application_name, by which it may be
    listed in synchronous_standby_names."""
    result = [Follower(primary, member_slot(primary), primary)]
    for name, facts in observed.nodes.items():
        if name in (primary, request.candidate):
            continue
        receiver = facts.receiver
        slot = facts.settings.get("primary_slot_name") or (receiver.slot_name if receiver else "") or member_slot(name)
        result.append(Follower(name, slot, (receiver.application_name if receiver else "") or name))
    return tuple(result)


def _member_slots(request: Request, observed: Observed) -> set[str]:
    names = {member_slot(name) for name in request.members}
    for facts in observed.nodes.values():
        names.add(facts.settings.get("primary_slot_name", ""))
        names.add(facts.receiver.slot_name if facts.receiver else "")
    return names - {""}


def _carried_slots(request: Request, observed: Observed, primary: str) -> list[str]:
    """Physical slots of others (pg_receivewal, a backup server): the candidate gets one of the same name."""
    ours = _member_slots(request, observed)
    return [
        slot.name
        for slot in observed.nodes[primary].slots
        if not slot.logical and not slot.temporary and slot.name not in ours and not slot.name.startswith("dbops_op_")
    ]


def _slots_to_create(request: Request, observed: Observed, primary: str) -> list[str]:
    there = {slot.name for slot in observed.nodes[request.candidate].slots}
    wanted = [follower.slot for follower in followers(request, observed, primary)]
    wanted += _carried_slots(request, observed, primary)
    return [name for name in wanted if name not in there]


def sync_plan(request: Request, observed: Observed, primary: str) -> SyncPlan:
    """Which list the new primary gets and who must be there before clients are let in. Raises ValueError."""
    candidate = observed.nodes[request.candidate]
    before = observed.nodes[primary].settings.get("synchronous_standby_names", "")
    rule: SyncRule | None = parse_sync_rule(before)
    if request.synchronous_standby_names is not None:
        rule = parse_sync_rule(request.synchronous_standby_names)
        if rule is None and before and not request.accept_async_window:
            raise ValueError("synchronous_standby_names would be emptied, and accept_async_window is not given")
    elif rule is not None and primary.lower() not in [name.lower() for name in rule.names]:
        # A list that names the old primary too is everybody's list, and stays as it is.
        receiver = candidate.receiver
        rule = rule.renamed((receiver.application_name if receiver else "") or request.candidate, primary)
    if rule is None:
        own = parse_sync_rule(candidate.settings.get("synchronous_standby_names", ""))
        if own is not None and request.synchronous_standby_names is None:
            raise ValueError(
                f"{primary} is asynchronous, but {request.candidate} has synchronous_standby_names = '{own}' of its own"
            )
        return SyncPlan(before, "", (), 0, False, False)
    everyone = followers(request, observed, primary)
    siblings = tuple(f.application_name for f in everyone if f.name != primary and observed.nodes[f.name].answered)
    with_old = (*siblings, everyone[0].application_name)
    return SyncPlan(
        before=before,
        after=str(rule),
        available=with_old,
        missing=rule.missing(with_old),
        needs_siblings=bool(rule.missing(()) and siblings),
        needs_old_primary=rule.missing(siblings) > 0,
    )


def make_plan(
    request: Request, observed: Observed, primary: str, *, retry_interval_before: str | None, bin_dir: str = ""
) -> SwitchoverPlan:
    """``bin_dir`` is remembered because nobody can ask a server that is down where its programs are."""
    sync = sync_plan(request, observed, primary)
    own = observed.nodes[request.candidate].settings.get("synchronous_standby_names", "")
    carried = _carried_slots(request, observed, primary)
    on_primary = {slot.name for slot in observed.nodes[primary].slots if not slot.logical and not slot.temporary}
    drop = sorted((on_primary & _member_slots(request, observed)) | set(carried))
    return SwitchoverPlan(
        old_primary=primary,
        candidate=request.candidate,
        old_timeline=observed.nodes[primary].timeline,
        followers=followers(request, observed, primary),
        create_slots=tuple(_slots_to_create(request, observed, primary)),
        carried_slots=tuple(carried),
        drop_slots=tuple(drop),
        sync_before=own,
        # None: the candidate's own configuration says so already, and is left alone.
        sync_after=None if parse_sync_rule(sync.after) == parse_sync_rule(own) else sync.after,
        sync_needs_siblings=sync.needs_siblings and not request.accept_async_window,
        sync_needs_old_primary=sync.needs_old_primary and not request.accept_async_window,
        retry_interval_before=retry_interval_before,
        bin_dir=bin_dir,
        fill_segment=worth_filling(observed.nodes[primary]),
    )


def planned_checkpoints(plan: SwitchoverPlan) -> PlannedStep:
    fill = f", and fill the WAL segment of {plan.old_primary}" if plan.fill_segment else ""
    return PlannedStep(
        "checkpoints",
        f"checkpoint {plan.old_primary} twice and {plan.candidate} once{fill}, so that the shutdown is short",
        ("CHECKPOINT", *(("SELECT pg_logical_emit_message(false, 'dbops', …)",) if plan.fill_segment else ())),
    )


def planned_steps(request: Request, plan: SwitchoverPlan) -> dict[str, PlannedStep]:
    """All steps of a fresh switchover in order, by name: what ``--check`` prints is what the runner applies."""
    old, new = plan.old_primary, plan.candidate
    poolers = ", ".join(request.poolers) or "none"
    siblings = [follower.name for follower in plan.followers if follower.name != old]
    # Where clients are let in before the standbys are there, the list is set when they are.
    set_list = () if plan.sync_after is None else (f"ALTER SYSTEM SET synchronous_standby_names = '{plan.sync_after}'",)
    steps = [
        PlannedStep(
            "intent",
            f"write the intent to {old} and wait until {new} has replayed it",
            ("CREATE SCHEMA IF NOT EXISTS dbops", "INSERT INTO dbops.operation …"),
            locks="ROW EXCLUSIVE on dbops.operation",
        ),
        PlannedStep(
            "slots",
            f"create the slots of the followers on {new}",
            tuple(f"SELECT pg_create_physical_replication_slot('{name}', …)" for name in plan.create_slots),
        ),
        PlannedStep(
            "tune_candidate",
            f"make {new} promote at once, and give it the list of synchronous standbys of its time as primary",
            (
                f"ALTER SYSTEM SET wal_retrieve_retry_interval = '{RETRY_INTERVAL}'",
                *(() if request.accept_async_window else set_list),
                "SELECT pg_reload_conf()",
            ),
        ),
        planned_checkpoints(plan),
        PlannedStep(
            "pause_poolers",
            f"pause the poolers ({poolers}); clients wait from here on",
            ("PAUSE <database>",) if request.poolers else (),
            in_pause=True,
        ),
        PlannedStep(
            "plant_signal",
            f"plant standby.signal in {old}: whoever starts it now starts a standby; mark {new}",
            ("SELECT pg_create_physical_replication_slot('dbops_op_<operation>')",),
            in_pause=True,
        ),
        PlannedStep("stop", f"stop {old} by its service until pg_control says 'shut down'", in_pause=True),
        PlannedStep(
            "prove", f"prove that {new} has replayed the end of the shutdown checkpoint of {old}", in_pause=True
        ),
        PlannedStep(
            "promote",
            f"promote {new}",
            ("SELECT pg_promote(false)",),
            in_pause=True,
            point_of_no_return=True,
        ),
    ]
    follow = PlannedStep(
        "follow",
        f"let the other standbys ({', '.join(siblings) or 'none'}) follow {new}",
        ("ALTER SYSTEM SET primary_conninfo = …", "ALTER SYSTEM SET primary_slot_name = …", "SELECT pg_reload_conf()"),
        in_pause=plan.sync_needs_siblings,
    )
    rejoin = PlannedStep(
        "rejoin",
        f"secure WAL that {old} had not archived, start it as a standby of {new}",
        in_pause=plan.sync_needs_old_primary,
    )
    resume = PlannedStep(
        "resume_poolers",
        f"point the poolers ({poolers}) to {new} and let clients on",
        ("RELOAD", "RESUME <database>") if request.poolers else (),
        in_pause=True,
    )
    early = [step for step in (follow, rejoin) if step.in_pause]
    late = [step for step in (follow, rejoin) if not step.in_pause]
    steps += [*early, resume, *late]
    steps += [
        PlannedStep(
            "tidy",
            f"put temporary settings of {new} back, drop the marker and the slots that {old} no longer needs",
            (
                "ALTER SYSTEM RESET wal_retrieve_retry_interval"
                if plan.retry_interval_before is None
                else f"ALTER SYSTEM SET wal_retrieve_retry_interval = '{plan.retry_interval_before}'",
                *set_list,
                *(f"SELECT pg_drop_replication_slot('{name}')" for name in plan.drop_slots),
            ),
        ),
        PlannedStep(
            "certify",
            f"checkpoint {new}, compare the fork with the proof, write the certificate, verify every member",
            ("CHECKPOINT", "UPDATE dbops.operation …"),
        ),
    ]
    return {step.name: step for step in steps}


def topology(observed: Observed) -> dict[str, Any]:
    """Who is what, for ``--diff``: {member: {role, timeline, follows}}."""
    result: dict[str, Any] = {}
    for name, facts in sorted(observed.nodes.items()):
        if not facts.answered:
            result[name] = {"role": "unreachable"}
        elif facts.writable:
            result[name] = {"role": "primary", "timeline": facts.timeline}
        else:
            upstream = f"{facts.receiver.sender_host}:{facts.receiver.sender_port}" if facts.receiver else "nobody"
            result[name] = {"role": "standby", "timeline": facts.timeline, "follows": upstream}
    return result


def expected_topology(request: Request, observed: Observed) -> dict[str, Any]:
    """The same after a successful switchover."""
    target = request.members[request.candidate]
    timeline = max(facts.timeline for facts in observed.nodes.values()) + 1
    return {
        name: {"role": "primary", "timeline": timeline}
        if name == request.candidate
        else {"role": "standby", "timeline": timeline, "follows": f"{target.address}:{target.port}"}
        for name in sorted(observed.nodes)
    }


def describe_lsn(value: int | None) -> str:
    return "unknown" if value is None else format_lsn(value)
