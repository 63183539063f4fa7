# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner of a switchover: prechecks, the phase a killed run left, the plan. Facts in, decisions out.

``REQUEST`` and ``GOOD`` are a cluster that may be switched from pg1 to pg2; every test says what is different.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._core.operation import Check, refuse_unless_good
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import switchover_plan as planner
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.catalog import (
    SETTINGS,
    Activity,
    NodeFacts,
    Slot,
    WalReceiver,
    WalSender,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.switchover_plan import (
    CHECK_NAMES,
    CHECKS,
    Follower,
    LocalFacts,
    Member,
    Observed,
    Phase,
    PoolerFacts,
    PoolerRoute,
    Probe,
    Request,
    SwitchoverPlan,
    all_checks,
    base_checks,
    derive_phase,
    describe_lsn,
    expected_topology,
    follows,
    make_plan,
    marker_slot,
    member_slot,
    open_operation,
    planned_steps,
    run_on,
    sync_plan,
    topology,
)
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("pg1", "pg2", "pg3")
PLENTY = 1 << 40
LSN = 0x3000148
MEMBERS = {
    name: Member(name, f"10.0.0.{number}", 5432, f"192.0.2.{number}", 6000 + number)
    for number, name in enumerate(NAMES, start=1)
}
REQUEST = Request(cluster="accounts", candidate="pg2", node="pg1", members=MEMBERS, poolers=("pooler1",))


def setting(name: str) -> str:
    numbers = {
        "max_connections": "100",
        "max_locks_per_transaction": "64",
        "max_prepared_transactions": "0",
        "max_replication_slots": "10",
        "max_wal_senders": "10",
        "max_worker_processes": "8",
        "max_slot_wal_keep_size": "-1",
        "recovery_min_apply_delay": "0",
        "wal_keep_size": "32",
        "wal_segment_size": str(16 << 20),
    }
    words = {
        "data_directory": "/data/",
        "full_page_writes": "on",
        "hot_standby": "on",
        "recovery_target_timeline": "latest",
        "server_version": "15.4 (Debian 15.4-1)",
        "wal_log_hints": "on",
        "archive_mode": "off",
    }
    return {**numbers, **words}.get(name, "")


def receiver(host: str = "10.0.0.1", port: int = 5432, **changes: Any) -> WalReceiver:
    return replace(WalReceiver("streaming", host, port, "", 3, ""), **changes)


def slot(name: str, **changes: Any) -> Slot:
    return replace(Slot(name, False, False, False, LSN, False, False, "", "reserved"), **changes)


def sender(*, position: int | None = LSN, **changes: Any) -> WalSender:
    return replace(WalSender(1, "pg2", "10.0.0.2", "streaming", position, position, "async", "", False), **changes)


def activity(kind: str, seconds: float) -> Activity:
    return Activity(4711, "app", "psql", kind, seconds)


def row(**changes: Any) -> dict[str, Any]:
    detail = {"candidate": "pg2", "old_primary": "pg1", **changes.pop("detail", {})}
    return {"id": "op1", "kind": "switchover", "system_identifier": "7000", "timeline": 3, "detail": detail, **changes}


def node(name: str) -> NodeFacts:
    facts = NodeFacts(
        name=name,
        version_num=150004,
        system_identifier="7000",
        timeline=3,
        archive_ready=0,
        settings={name: setting(name) for name in SETTINGS},
    )
    if name == "pg1":
        return replace(facts, current_lsn=LSN, senders=(sender(), sender(application_name="pg3")))
    return replace(facts, in_recovery=True, receive_lsn=LSN, replay_lsn=LSN, receiver=receiver())


GOOD = Observed(
    nodes={name: node(name) for name in NAMES},
    local=LocalFacts(
        data_dir="/data",
        running=True,
        control_state="in production",
        control_system_identifier="7000",
        serves_session=True,
        disk_version="15.4",
        free_bytes=PLENTY,
    ),
    poolers=(
        PoolerFacts(
            "pooler1",
            listeners=1,
            databases=(PoolerRoute("accounts", "10.0.0.1", 5432, "transaction", False),),
            staged_for="pg2",
        ),
    ),
    probes={name: Probe(name, "", PLENTY) for name in ("pg2", "pg3")},
)


def but(
    *,
    local: Mapping[str, Any] | None = None,
    pooler: Mapping[str, Any] | None = None,
    route: Mapping[str, Any] | None = None,
    probes: dict[str, Probe] | None = None,
    **nodes: Mapping[str, Any],
) -> Observed:
    """GOOD with differences. Of ``settings`` only those that are named differ."""
    facts = dict(GOOD.nodes)
    for name, changes in nodes.items():
        settings = {**facts[name].settings, **changes.get("settings", {})}
        facts[name] = replace(facts[name], **{**changes, "settings": settings})
    poolers = tuple(replace(one, **(pooler or {})) for one in GOOD.poolers)
    if route:
        poolers = tuple(replace(one, databases=tuple(replace(d, **route) for d in one.databases)) for one in poolers)
    return Observed(
        nodes=facts,
        local=replace(GOOD.local, **(local or {})),
        poolers=poolers,
        probes=GOOD.probes if probes is None else probes,
    )


def everywhere(**changes: Any) -> Observed:
    return but(**dict.fromkeys(NAMES, changes))


def without_setting(name: str, setting: str) -> Observed:
    settings = {key: value for key, value in GOOD.nodes[name].settings.items() if key != setting}
    return replace(GOOD, nodes={**GOOD.nodes, name: replace(GOOD.nodes[name], settings=settings)})


def bad(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks if check.status != "ok"}


# --------------------------------------------------------------------------------------------------------------- checks

UNKNOWN = "unknown"
FAILED = "failed"
REFUSED: list[tuple[str, str, Request, Observed]] = [
    ("nodes_reachable", FAILED, REQUEST, but(pg3={"error": "pg3 (192.0.2.3:6003): timeout"})),
    ("one_primary", FAILED, REQUEST, but(pg1={"in_recovery": True})),
    ("one_primary", FAILED, REQUEST, but(pg3={"in_recovery": False})),
    ("versions", FAILED, REQUEST, everywhere(version_num=120022)),
    ("versions", FAILED, REQUEST, everywhere(version_num=0)),
    ("versions", FAILED, REQUEST, but(pg3={"version_num": 160001})),
    ("privileges", FAILED, REQUEST, but(pg2={"missing_privileges": ("GRANT pg_monitor",)})),
    ("candidate_is_standby", FAILED, replace(REQUEST, candidate="pg1"), GOOD),
    ("runs_on_primary", FAILED, replace(REQUEST, node="pg3"), GOOD),
    ("disk_version", UNKNOWN, REQUEST, but(local={"disk_version": ""})),
    ("disk_version", FAILED, REQUEST, but(local={"disk_version": "15.5"})),
    ("disk_version", FAILED, REQUEST, without_setting("pg1", "server_version")),
    ("system_identifier", FAILED, REQUEST, but(pg3={"system_identifier": "7001"})),
    ("local_data", FAILED, REQUEST, but(local={"problem": "data_dir /data: Permission denied"})),
    ("local_data", FAILED, REQUEST, but(local={"control_system_identifier": "7001"})),
    ("local_data", FAILED, REQUEST, but(local={"control_system_identifier": ""})),
    ("local_data", FAILED, REQUEST, but(local={"data_dir": "/data2"})),
    ("local_data", FAILED, REQUEST, but(local={"serves_session": False})),
    ("local_data", FAILED, REQUEST, without_setting("pg1", "data_directory")),
    ("service_control", FAILED, REQUEST, but(local={"service_problem": "systemctl needs root"})),
    ("manager_in_charge", FAILED, REQUEST, but(pg3={"managers": ("Patroni",)})),
    ("no_unfinished_operation", FAILED, REQUEST, but(pg1={"operations": (row(detail={"candidate": "pg3"}),)})),
    ("candidate_streams", FAILED, REQUEST, but(pg2={"receiver": None})),
    ("candidate_streams", FAILED, REQUEST, but(pg2={"receiver": receiver(status="stopping")})),
    ("candidate_streams", FAILED, REQUEST, but(pg2={"receiver": receiver("10.0.0.3")})),
    ("candidate_streams", FAILED, REQUEST, but(pg2={"receiver": receiver(port=5433)})),
    ("siblings_follow", FAILED, REQUEST, but(pg3={"receiver": None})),
    ("siblings_follow", FAILED, REQUEST, but(pg3={"receiver": receiver(status="waiting")})),
    ("timeline", FAILED, REQUEST, but(pg3={"timeline": 2})),
    ("timeline", FAILED, REQUEST, but(pg2={"timeline": 4})),
    ("replay_running", FAILED, REQUEST, but(pg3={"replay_paused": True})),
    ("apply_delay", FAILED, REQUEST, but(pg2={"settings": {"recovery_min_apply_delay": "1000"}})),
    ("recovery_target", FAILED, REQUEST, but(pg3={"settings": {"recovery_target_lsn": "0/1"}})),
    ("recovery_target", FAILED, REQUEST, but(pg2={"settings": {"recovery_target_timeline": "3"}})),
    ("replication_lag", UNKNOWN, REQUEST, but(pg2={"receive_lsn": None})),
    ("replication_lag", UNKNOWN, REQUEST, but(pg2={"replay_lsn": None})),
    ("replication_lag", UNKNOWN, REQUEST, but(pg1={"current_lsn": None, "senders": ()})),
    ("replication_lag", FAILED, replace(REQUEST, max_lag_bytes=7), but(pg2={"replay_lsn": LSN - 8})),
    ("replication_lag", FAILED, replace(REQUEST, max_lag_bytes=7), but(pg2={"receive_lsn": LSN - 8})),
    ("wal_kept", FAILED, REQUEST, but(pg1={"settings": {"wal_keep_size": "31"}})),
    ("wal_kept", FAILED, replace(REQUEST, max_lag_bytes=(16 << 20) + 1), GOOD),
    (
        "wal_kept",
        FAILED,
        REQUEST,
        but(
            pg1={"settings": {"wal_keep_size": "0", "max_slot_wal_keep_size": "31"}},
            pg2={"receiver": receiver(slot_name="two")},
        ),
    ),
    (
        "wal_kept",
        FAILED,
        REQUEST,
        but(
            pg1={"settings": {"wal_keep_size": "0", "archive_mode": "off"}}, pg2={"settings": {"restore_command": "cp"}}
        ),
    ),
    ("candidate_settings", FAILED, REQUEST, but(pg2={"settings": {"max_connections": "99"}})),
    ("candidate_settings", FAILED, REQUEST, but(pg2={"settings": {"default_transaction_read_only": "on"}})),
    ("candidate_settings", FAILED, REQUEST, without_setting("pg2", "max_locks_per_transaction")),
    ("hot_standby", FAILED, REQUEST, but(pg3={"settings": {"hot_standby": "off"}})),
    ("hot_standby", FAILED, REQUEST, without_setting("pg1", "hot_standby")),
    ("archive_settings", FAILED, REQUEST, but(pg1={"settings": {"archive_mode": "on", "archive_command": "cp %p /a"}})),
    ("archive_backlog", UNKNOWN, REQUEST, but(pg1={"archive_ready": None})),
    ("archive_backlog", FAILED, REQUEST, but(pg1={"archive_ready": 17})),
    ("archive_backlog", FAILED, REQUEST, but(pg1={"archive_failing": "000000030000000000000003"})),
    ("free_wal_senders", FAILED, REQUEST, but(pg2={"senders": (sender(),) * 9})),
    ("free_slots", FAILED, REQUEST, but(pg2={"slots": tuple(slot(f"s{number}") for number in range(8))})),
    ("free_slots", FAILED, REQUEST, without_setting("pg2", "max_replication_slots")),
    ("replication_login", FAILED, REQUEST, but(local={"passfile_problem": "may be read by others"})),
    ("replication_login", FAILED, REQUEST, but(local={"replication_problem": "no pg_hba.conf entry"})),
    ("sibling_replication_login", UNKNOWN, REQUEST, but(probes={"pg2": GOOD.probes["pg2"]})),
    (
        "sibling_replication_login",
        FAILED,
        REQUEST,
        but(probes={**GOOD.probes, "pg3": Probe("pg3", "no entry", PLENTY)}),
    ),
    ("disk_space", UNKNOWN, REQUEST, but(local={"free_bytes": None})),
    ("disk_space", UNKNOWN, REQUEST, but(probes={"pg3": GOOD.probes["pg3"]})),
    ("disk_space", FAILED, REQUEST, but(local={"free_bytes": (256 << 20) - 1})),
    ("disk_space", FAILED, REQUEST, but(probes={**GOOD.probes, "pg2": Probe("pg2", "", 0)})),
    ("rewind_ready", "warning", REQUEST, but(pg1={"settings": {"wal_log_hints": "off", "data_checksums": "off"}})),
    ("rewind_ready", "warning", REQUEST, but(pg1={"settings": {"full_page_writes": "off"}})),
    ("unlogged_tables", "warning", REQUEST, but(pg1={"databases": {5: "postgres"}}, local={"unlogged": (5,)})),
    ("no_base_backup", FAILED, REQUEST, but(pg3={"base_backups": 1})),
    ("long_transactions", FAILED, REQUEST, but(pg1={"transactions": (activity("running", 10.1),)})),
    ("idle_in_transaction", FAILED, REQUEST, but(pg1={"transactions": (activity("idle in transaction", 5.1),)})),
    ("prepared_transactions", FAILED, REQUEST, but(pg1={"prepared": ("gid",)})),
    ("maintenance", FAILED, REQUEST, but(pg1={"maintenance": ("VACUUM FULL, pid 1",)})),
    ("other_consumers", FAILED, REQUEST, but(pg1={"senders": (sender(position=None),)})),
    ("other_consumers", FAILED, replace(REQUEST, max_lag_bytes=7), but(pg1={"senders": (sender(position=LSN - 8),)})),
    ("logical_slots", FAILED, REQUEST, but(pg1={"slots": (slot("sub", logical=True),)})),
    (
        "synchronized_standby_slots",
        FAILED,
        REQUEST,
        but(pg2={"settings": {"synchronized_standby_slots": "dbops_pg3, gone"}}),
    ),
    (
        "synchronous_standby_names",
        FAILED,
        REQUEST,
        but(pg1={"settings": {"synchronous_standby_names": "FIRST 2 (pg2, other)"}}),
    ),
    ("synchronous_standby_names", FAILED, replace(REQUEST, synchronous_standby_names="FIRST 1 (a"), GOOD),
    (
        "synchronous_standby_names",
        FAILED,
        replace(REQUEST, synchronous_standby_names=""),
        but(pg1={"settings": {"synchronous_standby_names": "pg2"}}),
    ),
    ("synchronous_standby_names", FAILED, REQUEST, but(pg2={"settings": {"synchronous_standby_names": "pg3"}})),
    ("poolers_reachable", FAILED, REQUEST, but(pooler={"error": "pooler1: refused", "databases": ()})),
    ("pooler_processes", UNKNOWN, REQUEST, but(pooler={"so_reuseport": True, "listeners": None})),
    ("pooler_processes", FAILED, REQUEST, but(pooler={"listeners": 2})),
    ("pooler_mode", FAILED, REQUEST, but(route={"pool_mode": "session"})),
    ("pooler_targets", FAILED, REQUEST, but(pooler={"databases": ()})),
    ("pooler_targets", FAILED, REQUEST, but(route={"host": "10.0.0.3"})),
    ("pooler_targets", FAILED, REQUEST, but(route={"paused": True})),
    ("pooler_targets", FAILED, REQUEST, but(pooler={"missing": ("acounts",)})),
    ("pooler_targets", FAILED, REQUEST, but(pooler={"databases": (), "missing": ("acounts",)})),
    ("pooler_staged", FAILED, REQUEST, but(pooler={"staged_for": "pg3"})),
    ("pooler_staged", FAILED, REQUEST, but(pooler={"staged_for": ""})),
    ("pooler_wait", FAILED, REQUEST, but(pooler={"query_wait_timeout_s": 9.9})),
]


def test_the_good_cluster_passes_every_check() -> None:
    checks = all_checks(REQUEST, GOOD)
    assert tuple(check.name for check in checks) == CHECK_NAMES
    assert bad(checks) == {}
    assert {check.remedy for check in checks} == {""}


def test_every_check_has_a_situation_below_that_it_refuses() -> None:
    assert {case[0] for case in REFUSED} == set(CHECK_NAMES)


@pytest.mark.parametrize(("name", "status", "request_", "observed"), REFUSED, ids=[case[0] for case in REFUSED])
def test_it_is_this_check_alone_that_refuses_and_it_says_why(
    name: str, status: str, request_: Request, observed: Observed
) -> None:
    checks = all_checks(request_, observed)
    assert bad(checks) == {name: status}
    [check] = [check for check in checks if check.name == name]
    assert check.found
    assert check.expected
    assert check.remedy
    if status == "warning":
        refuse_unless_good(checks)
        return
    with pytest.raises(DbopsError) as raised:
        refuse_unless_good(checks)
    assert f"[{name}] {check.found}" in raised.value.message


@pytest.mark.parametrize(
    ("name", "request_", "observed"),
    [
        ("replication_lag", REQUEST, but(pg2={"replay_lsn": LSN - REQUEST.max_lag_bytes})),
        ("replication_lag", replace(REQUEST, max_lag_bytes=0), but(pg2={"replay_lsn": LSN + 8})),
        ("versions", REQUEST, everywhere(version_num=130000)),
        ("no_unfinished_operation", REQUEST, but(pg1={"operations": (row(detail={"candidate": "pg3"}, timeline=2),)})),
        ("archive_backlog", REQUEST, but(pg1={"archive_ready": 16})),
        ("free_wal_senders", REQUEST, but(pg2={"senders": (sender(),) * 8})),
        ("free_slots", REQUEST, but(pg2={"slots": tuple(slot(f"s{number}") for number in range(7))})),
        ("disk_space", REQUEST, but(local={"free_bytes": 256 << 20})),
        ("candidate_settings", REQUEST, but(pg1={"settings": {"max_connections": "99"}})),
        ("wal_kept", replace(REQUEST, max_lag_bytes=0), GOOD),
        (
            "wal_kept",
            REQUEST,
            but(
                pg1={"settings": {"wal_keep_size": "0", "max_slot_wal_keep_size": "32"}},
                pg2={"receiver": receiver(slot_name="two")},
            ),
        ),
        (
            "wal_kept",
            REQUEST,
            but(
                pg1={"settings": {"wal_keep_size": "0", "archive_mode": "on"}},
                pg2={"settings": {"restore_command": "cp", "archive_mode": "on"}},
            ),
        ),
        ("archive_settings", REQUEST, but(pg2={"settings": {"archive_mode": "always", "archive_library": "x"}})),
        ("candidate_settings", REQUEST, but(pg2={"settings": {"max_connections": "200"}})),
        ("candidate_streams", REQUEST, but(pg2={"receiver": receiver("192.0.2.1", 6001)})),
        ("siblings_follow", REQUEST, but(pg3={"receiver": receiver("10.0.0.2")})),
        ("long_transactions", REQUEST, but(pg1={"transactions": (activity("running", 10.0),)})),
        ("long_transactions", REQUEST, but(pg1={"transactions": (activity("idle in transaction", 4.0),)})),
        ("other_consumers", REQUEST, but(pg1={"senders": (sender(position=None, state="backup"),)})),
        (
            "logical_slots",
            replace(REQUEST, accept_lost_slots=("sub",)),
            but(pg1={"slots": (slot("sub", logical=True),)}),
        ),
        ("logical_slots", REQUEST, but(pg1={"slots": (slot("sub", logical=True, temporary=True),)})),
        ("pooler_processes", REQUEST, but(pooler={"so_reuseport": True, "listeners": 1})),
        ("pooler_wait", REQUEST, but(pooler={"query_wait_timeout_s": 0})),
        ("pooler_targets", REQUEST, replace(GOOD, poolers=())),
        ("rewind_ready", REQUEST, but(pg1={"settings": {"wal_log_hints": "off", "data_checksums": "on"}})),
        ("synchronized_standby_slots", REQUEST, but(pg2={"settings": {"synchronized_standby_slots": '"dbops_pg3"'}})),
    ],
)
def test_what_is_just_good_enough_passes(name: str, request_: Request, observed: Observed) -> None:
    assert bad(all_checks(request_, observed)) == {}, name


@pytest.mark.parametrize(
    ("copy", "good"),
    [
        ({"synced": True}, True),
        ({"synced": False}, False),
        ({"synced": True, "temporary": True}, False),
        ({"synced": True, "invalid": "wal_removed"}, False),
    ],
)
def test_a_logical_slot_needs_a_copy_that_survives_the_promotion(copy: dict[str, Any], good: bool) -> None:
    observed = but(
        pg1={"slots": (slot("sub", logical=True),)}, pg2={"slots": (slot("sub", logical=True, failover=True, **copy),)}
    )
    assert ("logical_slots" not in bad(all_checks(REQUEST, observed))) == good


@pytest.mark.parametrize(
    ("name", "observed"),
    [
        ("sibling_replication_login", but(probes={**GOOD.probes, "pg3": Probe("pg3", None, PLENTY)})),
        ("disk_space", but(probes={**GOOD.probes, "pg2": Probe("pg2", "", None)})),
        ("apply_delay", without_setting("pg2", "recovery_min_apply_delay")),
        ("recovery_target", without_setting("pg3", "recovery_target_timeline")),
        ("candidate_settings", without_setting("pg1", "max_worker_processes")),
        ("archive_settings", without_setting("pg1", "archive_mode")),
        ("wal_kept", without_setting("pg1", "wal_keep_size")),
        ("wal_kept", without_setting("pg2", "restore_command")),
        ("synchronous_standby_names", without_setting("pg1", "synchronous_standby_names")),
    ],
)
def test_unknown_never_passes(name: str, observed: Observed) -> None:
    assert name in bad(all_checks(REQUEST, observed))


def test_what_the_module_sees_of_its_own_disk_counts() -> None:
    observed = but(local={"free_bytes": 0}, probes={**GOOD.probes, "pg1": Probe("pg1", "", PLENTY)})
    assert bad(all_checks(REQUEST, observed)) == {"disk_space": FAILED}


def test_a_candidate_that_archives_always_is_good_enough() -> None:
    command = {"archive_command": "cp %p /a/%f"}
    observed = but(
        pg1={"settings": {"archive_mode": "on", **command}}, pg2={"settings": {"archive_mode": "always", **command}}
    )
    assert bad(all_checks(REQUEST, observed)) == {}


def test_a_silent_pooler_is_named_once() -> None:
    """The others cannot judge it, and do not have to: one refusal is enough."""
    observed = but(
        pooler={"error": "refused", "databases": (), "so_reuseport": True, "listeners": None, "staged_for": ""}
    )
    assert bad(all_checks(REQUEST, observed)) == {"poolers_reachable": FAILED}


@pytest.mark.parametrize(
    ("name", "observed"),
    [
        ("privileges", but(pg2={"missing_privileges": ("it was this",)})),
        ("manager_in_charge", but(pg2={"managers": ("it was this",)})),
        ("local_data", but(local={"problem": "it was this"})),
        ("service_control", but(local={"service_problem": "it was this"})),
        ("replication_login", but(local={"replication_problem": "it was this"})),
        ("replication_login", but(local={"passfile_problem": "it was this"})),
        ("sibling_replication_login", but(probes={**GOOD.probes, "pg3": Probe("pg3", "it was this", PLENTY)})),
        ("maintenance", but(pg1={"maintenance": ("it was this",)})),
        ("poolers_reachable", but(pooler={"error": "it was this", "databases": ()})),
    ],
)
def test_what_was_seen_is_what_is_said(name: str, observed: Observed) -> None:
    [check] = [check for check in all_checks(REQUEST, observed) if check.name == name]
    assert "it was this" in check.found


def test_nothing_is_judged_where_a_base_check_fails() -> None:
    checks = all_checks(REQUEST, but(pg3={"error": "pg3 (192.0.2.3:6003): timeout"}))
    assert [check.name for check in checks] == ["nodes_reachable", "one_primary"]
    assert checks[0].found == "pg3 (192.0.2.3:6003): timeout"
    assert [check.name for check in base_checks(REQUEST, but(pg2={"missing_privileges": ("a",)}))] == list(
        CHECK_NAMES[:6]
    )


def test_postgresql_12_is_refused_by_name() -> None:
    check = all_checks(REQUEST, everywhere(version_num=120022))[2]
    assert (check.name, check.status) == ("versions", FAILED)
    assert check.found == "pg1: 12, pg2: 12, pg3: 12"
    assert "13 or newer" in check.expected


@st.composite
def clusters(draw: st.DrawFn) -> Observed:
    """GOOD with anything wrong, or nothing: each fact is replaced with one chance in eight."""

    def sometimes(*values: Any) -> st.SearchStrategy[Any]:
        return st.integers(0, 7).flatmap(lambda number: st.sampled_from(values) if number == 0 else st.none())

    def changes(**possible: tuple[Any, ...]) -> dict[str, Any]:
        drawn = {key: draw(sometimes(*values)) for key, values in possible.items()}
        return {key: (None if value == "None" else value) for key, value in drawn.items() if value is not None}

    members = {
        name: changes(
            error=("timeout",),
            version_num=(120000, 130005, 180001),
            system_identifier=("7001",),
            in_recovery=(True, False),
            timeline=(2, 4),
            current_lsn=(0, "None"),
            receive_lsn=(0, "None"),
            replay_lsn=(0, "None"),
            replay_paused=(True,),
            senders=((), (sender(),), (sender(position=None),), (sender(),) * 20),
            receiver=(receiver("10.0.0.9"), receiver(status="stopping"), receiver("10.0.0.2"), "None"),
            slots=((slot("sub", logical=True),), (slot("backup"),), tuple(slot(f"s{number}") for number in range(11))),
            prepared=(("gid",),),
            transactions=((activity("running", 99),), (activity("idle in transaction", 99),)),
            archive_ready=(99, "None"),
            archive_failing=("000000030000000000000003",),
            managers=(("repmgr",),),
            missing_privileges=(("GRANT pg_monitor",),),
            settings=(
                {"synchronous_standby_names": "ANY 1 (pg2, pg3)"},
                {"synchronous_standby_names": "FIRST 2 (pg1, pg2)"},
                {"archive_mode": "on", "archive_command": "cp"},
                {"hot_standby": "off", "server_version": "15.5"},
                {"primary_slot_name": "old_slot"},
            ),
        )
        for name in NAMES
    }
    local = changes(
        problem=("no",), disk_version=("", "15.5"), free_bytes=(0, "None"), replication_problem=("no entry",)
    )
    pooler = changes(error=("refused",), listeners=(2, "None"), so_reuseport=(True,), staged_for=("", "pg3"))
    probes = draw(st.sampled_from([GOOD.probes, GOOD.probes, {}, {"pg2": Probe("pg2", "no entry", 0)}]))
    return but(local=local, pooler=pooler, probes=probes, **members)


@given(clusters())
def test_whatever_is_wrong_is_said_in_full_and_in_order(observed: Observed) -> None:
    checks = all_checks(REQUEST, observed)
    assert [check.name for check in checks] == list(CHECK_NAMES[: len(checks)])
    for check in checks:
        assert check.status in ("ok", FAILED, "warning", UNKNOWN)
        assert check.found
        assert check.expected
        assert bool(check.remedy) == (check.status != "ok")


@given(clusters())
def test_what_passes_is_safe_to_plan(observed: Observed) -> None:
    """Said again in words of its own: two writable members, a silent one, another timeline are never planned."""
    checks = all_checks(REQUEST, observed)
    try:
        refuse_unless_good(checks)
    except DbopsError:
        return
    facts = observed.nodes
    assert not any(one.error or one.missing_privileges or one.managers or one.replay_paused for one in facts.values())
    assert [name for name, one in facts.items() if not one.in_recovery] == ["pg1"]
    assert len({(one.timeline, one.system_identifier, one.version_num // 10000) for one in facts.values()}) == 1
    assert facts["pg2"].replay_lsn is not None
    assert facts["pg2"].receiver == receiver()
    assert facts["pg1"].prepared == ()
    plan = make_plan(REQUEST, observed, "pg1", retry_interval_before=None)
    assert (plan.old_primary, plan.candidate, plan.old_timeline) == ("pg1", "pg2", facts["pg1"].timeline)


@given(clusters())
def test_two_writable_members_are_refused_whatever_else_is_wrong(observed: Observed) -> None:
    writable = [name for name, facts in observed.nodes.items() if not facts.error and not facts.in_recovery]
    assert observed.writable() == writable
    if len(writable) != 1:
        assert bad(all_checks(REQUEST, observed))["one_primary"] == FAILED


def test_the_text_says_which_kind_of_wrong_number_of_primaries() -> None:
    two = base_checks(REQUEST, but(pg3={"in_recovery": False}))[1]
    assert two.found == "primary: pg1, pg3"
    assert "fence" in two.remedy
    none = base_checks(REQUEST, but(pg1={"in_recovery": True}))[1]
    assert none.found.startswith("no primary")
    assert "fence" not in none.remedy


def test_whoever_names_another_candidate_hears_of_the_switchover_that_stopped_the_primary() -> None:
    stopped = but(pg1=STOPPED, pg2={"operations": (row(),), **MARKER})
    check = base_checks(replace(REQUEST, candidate="pg3"), stopped)[1]
    assert "a switchover to pg2 is unfinished" in check.found
    assert "candidate=pg2" in check.remedy
    assert "start it" not in check.remedy


# ---------------------------------------------------------------------------------------------------------------- phase


MARKER = {"slots": (slot(marker_slot("op1")),)}
STOPPED = {"error": "pg1: connection refused"}


@pytest.mark.parametrize(
    ("observed", "believed"),
    [
        (but(pg1={"operations": (row(),)}), True),
        (but(pg1={"operations": (row(),)}, pg2=MARKER), True),
        (but(pg1=STOPPED, pg2={"operations": (row(),), **MARKER}), True),
        (but(pg1=STOPPED, pg2={"operations": (row(),)}), False),
        (but(pg1=STOPPED, pg2={"operations": (row(),), "slots": (slot("dbops_op_op2"),)}), False),
        (but(pg1=STOPPED, pg2={"error": "gone"}, pg3={"operations": (row(),)}), False),
        (but(pg1=STOPPED, pg3={"operations": (row(),)}, pg2=MARKER), True),
        (but(pg1={"operations": (row(),), "in_recovery": True}), False),
        (but(pg1={"operations": (row(timeline=2),)}), False),
        (but(pg1={"operations": (row(timeline=2),)}, pg2=MARKER), True),
        (but(pg1={"operations": (row(system_identifier="6999"),)}, pg2=MARKER), False),
        (but(pg1={"operations": (row(kind="partition"),)}, pg2=MARKER), False),
        (but(pg1={"operations": (row(detail={"candidate": "pg3"}),)}, pg2=MARKER), False),
        (but(pg1={"operations": (row(detail={"old_primary": "pg9"}),)}), False),
        (GOOD, False),
    ],
)
def test_a_row_is_believed_where_something_that_is_not_copied_vouches_for_it(
    observed: Observed, believed: bool
) -> None:
    found = open_operation(observed, "pg2")
    assert (found is not None) == believed
    assert found is None or found["id"] == "op1"


def test_of_two_rows_the_believed_one_is_taken() -> None:
    observed = but(pg1=STOPPED, pg2={"operations": (row(id="op2"), row()), **MARKER})
    found = open_operation(observed, "pg2")
    assert found is not None
    assert found["id"] == "op1"


def test_there_is_none_for_a_candidate_that_is_no_member() -> None:
    assert open_operation(but(pg2={"operations": (row(detail={"candidate": "pg9"}),)}), "pg9") is not None
    assert open_operation(replace(GOOD, nodes={"pg2": node("pg2")}), "pg9") is None


PROMOTED = {"in_recovery": False, "current_lsn": LSN, "timeline": 4}


@pytest.mark.parametrize(
    ("own", "observed", "phase"),
    [
        (False, GOOD, Phase.FRESH),
        (True, GOOD, Phase.FRESH),
        (False, but(pg3={"in_recovery": False}), Phase.FRESH),
        (True, but(pg2=PROMOTED), Phase.FRESH),
        (False, but(pg1=STOPPED, pg2=PROMOTED), Phase.DONE),
        (True, but(pg1=STOPPED, pg2=PROMOTED), Phase.PROMOTED),
        (False, but(pg1=STOPPED), None),
        (False, but(pg1=STOPPED, local={"shutdown_end_lsn": LSN, "promote_sent": True}), None),
        (True, but(pg1=STOPPED, local={"promote_sent": True}), Phase.PROMOTED),
        (True, but(pg1=STOPPED, local={"shutdown_end_lsn": LSN}), Phase.STOPPED),
        (True, but(pg1=STOPPED, local={"shutdown_end_lsn": 0}), Phase.STOPPED),
        (True, but(pg1=STOPPED, local={"shutdown_end_lsn": None}), Phase.ABANDONED),
        (True, but(pg1=STOPPED, pg2={"error": "gone"}, local={"shutdown_end_lsn": LSN}), Phase.ABANDONED),
    ],
)
def test_the_phase_comes_from_the_servers(own: bool, observed: Observed, phase: Phase | None) -> None:
    assert derive_phase(REQUEST, observed, own_operation=own) is phase


@given(
    observed=clusters(),
    end=st.none() | st.just(LSN),
    sent=st.booleans(),
    stopped=st.booleans(),
    own=st.booleans(),
)
def test_nothing_is_carried_on_that_was_not_begun(
    observed: Observed, end: int | None, sent: bool, stopped: bool, own: bool
) -> None:
    local = replace(observed.local, shutdown_end_lsn=end, promote_sent=sent)
    nodes = {**observed.nodes, "pg1": replace(observed.nodes["pg1"], error="refused")} if stopped else observed.nodes
    observed = replace(observed, local=local, nodes=nodes)
    phase = derive_phase(REQUEST, observed, own_operation=own)
    if not own:
        assert phase in (Phase.DONE, Phase.FRESH, None)
    if phase in (Phase.STOPPED, Phase.ABANDONED):
        assert observed.writable() == []
        assert not sent
        assert (phase is Phase.STOPPED) == (end is not None and not observed.nodes["pg2"].error)
    if phase is Phase.PROMOTED:
        assert sent or observed.writable() == ["pg2"]
        assert set(observed.writable()) <= {"pg2"}
    if phase is Phase.DONE:
        assert observed.writable() == ["pg2"]


@pytest.mark.parametrize(
    ("observed", "member"),
    [
        (GOOD, "pg1"),
        (but(pg1={"in_recovery": True}, pg3={"in_recovery": False}), "pg3"),
        (but(pg1=STOPPED, pg2={"operations": (row(),), **MARKER}), "pg1"),
        (but(pg1=STOPPED, pg2={**PROMOTED, "operations": (row(),), **MARKER}), "pg1"),
        (but(pg1=STOPPED, pg2=PROMOTED), "pg2"),
        (but(pg1=STOPPED), "pg2"),
        (but(pg3={"in_recovery": False}, pg1={"operations": (row(),)}), "pg1"),
        (but(pg3={"in_recovery": False}), "pg2"),
    ],
)
def test_it_runs_where_the_server_is_or_was_that_has_to_be_stopped(observed: Observed, member: str) -> None:
    assert run_on(REQUEST, observed) == member


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"receiver": receiver("10.0.0.2")}, True),
        ({"receiver": receiver("192.0.2.2", 6002)}, True),
        ({"receiver": receiver("10.0.0.2", 6002)}, False),
        ({"receiver": receiver("10.0.0.1")}, False),
        ({"receiver": receiver("10.0.0.2", status="waiting")}, False),
        ({"receiver": None}, False),
        ({"receiver": receiver("10.0.0.2"), "in_recovery": False}, False),
        ({"receiver": receiver("10.0.0.2"), "error": "timeout"}, False),
    ],
)
def test_who_follows_the_candidate(changes: dict[str, Any], expected: bool) -> None:
    assert follows(REQUEST, replace(GOOD.nodes["pg3"], **changes)) == expected


# ----------------------------------------------------------------------------------------------------------------- plan

WORD = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)
TEXTS = st.lists(WORD, max_size=3).map(tuple)
PLANS = st.builds(
    SwitchoverPlan,
    old_primary=st.just("pg1"),
    candidate=st.just("pg2"),
    old_timeline=st.integers(1, 9),
    followers=st.lists(WORD, max_size=2).map(
        lambda names: (Follower("pg1", "dbops_pg1", "pg1"), *(Follower(name, f"s_{name}", name) for name in names))
    ),
    create_slots=TEXTS,
    carried_slots=TEXTS,
    drop_slots=TEXTS,
    sync_before=WORD | st.just(""),
    sync_after=st.none() | st.just("") | WORD,
    sync_needs_siblings=st.booleans(),
    sync_needs_old_primary=st.booleans(),
    retry_interval_before=st.none() | st.just("5000ms"),
    bin_dir=WORD | st.just(""),
)
BEFORE = [
    "intent",
    "slots",
    "tune_candidate",
    "checkpoints",
    "pause_poolers",
    "plant_signal",
    "stop",
    "prove",
]


def plan(observed: Observed = GOOD, request: Request = REQUEST) -> SwitchoverPlan:
    return make_plan(request, observed, "pg1", retry_interval_before=None)


@given(PLANS)
def test_a_plan_survives_the_journal_and_the_row(made: SwitchoverPlan) -> None:
    detail = json.loads(json.dumps(made.as_detail()))
    assert SwitchoverPlan.from_detail(detail) == made
    assert SwitchoverPlan.from_detail({**detail, "rolls_back": "op0", "certificate": {}}) == made


@given(PLANS)
def test_one_point_of_no_return_and_everything_that_can_be_undone_before_it(made: SwitchoverPlan) -> None:
    steps = list(planned_steps(REQUEST, made).values())
    names = [step.name for step in steps]
    assert [step.name for step in steps if step.point_of_no_return] == ["promote"]
    assert names[: names.index("promote")] == BEFORE
    assert sorted(names[names.index("promote") + 1 :]) == ["certify", "follow", "rejoin", "resume_poolers", "tidy"]
    assert names[-2:] == ["tidy", "certify"]


@given(PLANS)
def test_the_pause_is_one_piece_and_no_longer_than_the_sync_list_needs(made: SwitchoverPlan) -> None:
    steps = planned_steps(REQUEST, made)
    names = list(steps)
    paused = names[names.index("pause_poolers") : names.index("resume_poolers") + 1]
    assert [name for name, step in steps.items() if step.in_pause] == paused
    assert ("follow" in paused) == made.sync_needs_siblings
    assert ("rejoin" in paused) == made.sync_needs_old_primary
    assert names.index("follow") < names.index("rejoin") or (
        made.sync_needs_old_primary and not made.sync_needs_siblings
    )


@given(PLANS)
def test_every_step_says_what_it_does(made: SwitchoverPlan) -> None:
    for name, step in planned_steps(REQUEST, made).items():
        assert step.name == name
        assert step.summary
        assert all(step.statements)


def test_the_statements_name_what_they_touch() -> None:
    made = replace(plan(), create_slots=("dbops_pg1",), drop_slots=("old_slot",), sync_after="FIRST 1 (pg1)")
    steps = planned_steps(REQUEST, replace(made, retry_interval_before="5000ms"))
    assert "dbops_pg1" in steps["slots"].statements[0]
    assert "ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (pg1)'" in steps["tune_candidate"].statements
    assert steps["tidy"].statements[0] == "ALTER SYSTEM SET wal_retrieve_retry_interval = '5000ms'"
    assert "SELECT pg_drop_replication_slot('old_slot')" in steps["tidy"].statements
    assert planned_steps(REQUEST, made)["tidy"].statements[0] == "ALTER SYSTEM RESET wal_retrieve_retry_interval"
    assert steps["pause_poolers"].statements == ("PAUSE <database>",)
    assert steps["resume_poolers"].statements == ("RELOAD", "RESUME <database>")
    assert "(pooler1)" in steps["pause_poolers"].summary
    assert "(none)" in planned_steps(replace(REQUEST, poolers=()), made)["pause_poolers"].summary
    assert planned_steps(replace(REQUEST, poolers=()), made)["pause_poolers"].statements == ()


def test_followers_are_the_old_primary_and_then_the_others_under_the_names_they_had() -> None:
    observed = but(pg3={"receiver": receiver(slot_name="three", application_name="walreceiver3")})
    assert plan(observed).followers == (Follower("pg1", "dbops_pg1", "pg1"), Follower("pg3", "three", "walreceiver3"))
    assert plan().followers[1] == Follower("pg3", "dbops_pg3", "pg3")
    configured = but(pg3={"settings": {"primary_slot_name": "three"}, "receiver": None})
    assert plan(configured).followers[1].slot == "three"


@given(st.text())
def test_the_slot_of_a_member_has_a_name_that_the_server_takes(name: str) -> None:
    assert set(member_slot(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert member_slot("pg1") == "dbops_pg1"


@pytest.mark.parametrize(("one", "other"), [("pg-1", "pg_1"), ("PG1", "pg1"), ("db.a", "db-a")])
def test_two_members_never_share_a_slot(one: str, other: str) -> None:
    assert member_slot(one) != member_slot(other)


def test_the_slot_of_a_member_with_a_long_name_is_short_enough() -> None:
    assert len(member_slot("database-server-number-1.accounts.europe-west.example.internal")) <= 63


def test_only_slots_that_are_missing_are_made_and_slots_of_others_are_carried() -> None:
    observed = but(
        pg1={
            "slots": (
                slot("dbops_pg2"),
                slot("dbops_pg3"),
                slot("backup"),
                slot("sub", logical=True),
                slot("temporary", temporary=True),
                slot("dbops_op_old"),
            )
        },
        pg2={"slots": (slot("dbops_pg3"),)},
    )
    made = plan(observed)
    assert made.create_slots == ("dbops_pg1", "backup")
    assert made.carried_slots == ("backup",)
    assert made.drop_slots == ("backup", "dbops_pg2", "dbops_pg3")


@given(clusters())
def test_a_plan_never_drops_what_it_did_not_place_elsewhere(observed: Observed) -> None:
    """Where the list of synchronous standbys cannot be had there is no plan, and a check has said so."""
    try:
        made = plan(observed)
    except ValueError:
        assert "synchronous_standby_names" in bad(all_checks(REQUEST, observed)) or len(
            bad(base_checks(REQUEST, observed))
        )
        return
    there = {one.name for one in observed.nodes["pg2"].slots}
    assert set(made.carried_slots) <= set(made.create_slots) | there
    assert not there & set(made.create_slots)
    assert not any(one.logical for one in observed.nodes["pg1"].slots if one.name in made.drop_slots)
    for follower in made.followers:
        assert follower.slot in {*made.create_slots, *there}


def sync(names: str, *, request: Request = REQUEST, **nodes: Any) -> planner.SyncPlan:
    observed = but(pg1={"settings": {"synchronous_standby_names": names}}, **nodes)
    return sync_plan(request, observed, "pg1")


@pytest.mark.parametrize(
    ("before", "after", "missing", "siblings", "old"),
    [
        ("", "", 0, False, False),
        ("pg2", "FIRST 1 (pg1)", 0, True, True),
        ("pg2, pg3", "FIRST 1 (pg1, pg3)", 0, True, False),
        ("ANY 1 (pg2, pg3)", "ANY 1 (pg1, pg3)", 0, True, False),
        ("ANY 2 (pg2, pg3)", "ANY 2 (pg1, pg3)", 0, True, True),
        ("pg3", "FIRST 1 (pg3)", 0, True, False),
        ("*", "FIRST 1 (*)", 0, True, False),
        ("3 (*)", "FIRST 3 (*)", 1, True, True),
        ("ANY 1 (pg1, pg2, pg3)", "ANY 1 (pg1, pg2, pg3)", 0, True, False),
        ("2 (pg1, pg2)", "FIRST 2 (pg1, pg2)", 1, True, True),
    ],
)
def test_the_new_primary_gets_the_list_with_its_name_replaced(
    before: str, after: str, missing: int, siblings: bool, old: bool
) -> None:
    made = sync(before)
    assert (made.before, made.after, made.missing) == (before, after, missing)
    assert (made.needs_siblings, made.needs_old_primary) == (siblings, old)


def test_the_candidate_is_replaced_under_the_name_it_replicates_with() -> None:
    named = {"receiver": receiver(application_name="walreceiver2")}
    assert sync("walreceiver2", pg2=named).after == "FIRST 1 (pg1)"
    assert sync("pg2", pg2=named).after == "FIRST 1 (pg2)"
    assert sync("pg2", pg2={"receiver": None}).after == "FIRST 1 (pg1)"


def test_two_members_leave_nobody_but_the_old_primary_to_confirm() -> None:
    observed = but(pg1={"settings": {"synchronous_standby_names": "pg2"}})
    nodes = {name: facts for name, facts in observed.nodes.items() if name != "pg3"}
    made = sync_plan(REQUEST, replace(observed, nodes=nodes), "pg1")
    assert (made.needs_siblings, made.needs_old_primary, made.available) == (False, True, ("pg1",))


def test_a_list_that_the_caller_gives_wins() -> None:
    assert sync("pg2", request=replace(REQUEST, synchronous_standby_names="pg3")).after == "FIRST 1 (pg3)"
    async_ = replace(REQUEST, synchronous_standby_names="", accept_async_window=True)
    assert sync("pg2", request=async_).after == ""
    assert sync("", request=replace(REQUEST, synchronous_standby_names="")).after == ""


def test_the_list_is_never_emptied_silently() -> None:
    with pytest.raises(ValueError, match="would be emptied"):
        sync("pg2", request=replace(REQUEST, synchronous_standby_names=""))


def test_a_list_of_the_candidates_own_does_not_take_effect_unseen() -> None:
    own = {"settings": {"synchronous_standby_names": "pg3"}}
    with pytest.raises(ValueError, match="has synchronous_standby_names = 'FIRST 1 \\(pg3\\)' of its own"):
        sync("", pg2=own)
    assert sync("", pg2=own, request=replace(REQUEST, synchronous_standby_names="")).after == ""
    assert sync("pg2", pg2=own).after == "FIRST 1 (pg1)"


def test_an_async_window_puts_nobody_into_the_pause() -> None:
    observed = but(pg1={"settings": {"synchronous_standby_names": "ANY 2 (pg2, pg3)"}})
    assert (plan(observed).sync_needs_siblings, plan(observed).sync_needs_old_primary) == (True, True)
    accepted = plan(observed, replace(REQUEST, accept_async_window=True))
    assert (accepted.sync_needs_siblings, accepted.sync_needs_old_primary) == (False, False)
    assert accepted.sync_after == "ANY 2 (pg1, pg3)"


def test_a_list_that_the_candidate_has_already_is_left_alone() -> None:
    lists = {"synchronous_standby_names": "pg3"}
    assert plan().sync_after is None
    assert plan(but(pg1={"settings": lists}, pg2={"settings": lists})).sync_after is None
    assert plan(but(pg1={"settings": lists})).sync_after == "FIRST 1 (pg3)"
    async_ = replace(REQUEST, synchronous_standby_names="", accept_async_window=True)
    assert plan(but(pg2={"settings": lists}), async_).sync_after == ""


# ------------------------------------------------------------------------------------------------------------- topology


def test_the_topology_before_and_after() -> None:
    observed = but(pg3={"error": "timeout"}, pg2={"receiver": None})
    assert topology(observed) == {
        "pg1": {"role": "primary", "timeline": 3},
        "pg2": {"role": "standby", "timeline": 3, "follows": "nobody"},
        "pg3": {"role": "unreachable"},
    }
    assert topology(GOOD)["pg3"]["follows"] == "10.0.0.1:5432"
    assert expected_topology(REQUEST, GOOD) == {
        "pg1": {"role": "standby", "timeline": 4, "follows": "10.0.0.2:5432"},
        "pg2": {"role": "primary", "timeline": 4},
        "pg3": {"role": "standby", "timeline": 4, "follows": "10.0.0.2:5432"},
    }


def test_what_was_predicted_is_what_is_seen() -> None:
    """``--diff`` before and after a switchover have to agree."""
    after = but(
        pg1={"in_recovery": True, "timeline": 4, "receiver": receiver("10.0.0.2")},
        pg2={"in_recovery": False, "timeline": 4, "receiver": None},
        pg3={"timeline": 4, "receiver": receiver("10.0.0.2")},
    )
    assert topology(after) == expected_topology(REQUEST, GOOD)


def test_an_unknown_position_is_called_so() -> None:
    assert describe_lsn(None) == "unknown"
    assert describe_lsn(LSN) == "0/3000148"


def test_names_of_checks_are_those_of_their_functions() -> None:
    assert CHECK_NAMES[6:] == tuple(CHECKS)
    for name, function in CHECKS.items():
        assert function.__name__ == f"check_{name}"
    assert {field.name for field in fields(Check)} == {"name", "status", "found", "expected", "remedy"}
