# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner of a switchover that Patroni makes: its checks, its steps, and what the fork proves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import patroni_plan as planner
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.catalog import NodeFacts, Slot, WalReceiver
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.patroni import PatroniFacts, PatroniMember
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.patroni_plan import Ending, judge
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.switchover_plan import (
    CHECKS,
    LocalFacts,
    Member,
    Observed,
    Request,
    SwitchoverPlan,
)
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("pg1", "pg2", "pg3")
MEMBERS = {name: Member(name, f"10.0.0.{n}", 5432, f"192.0.2.{n}", 6000) for n, name in enumerate(NAMES, start=1)}
REQUEST = Request(cluster="accounts", candidate="pg2", node="pg1", members=MEMBERS)
LSN = 0x3000148


def node(name: str, **changes: Any) -> NodeFacts:
    facts = NodeFacts(name, version_num=150020, system_identifier="7", timeline=3, managers=("Patroni",))
    if name == "pg1":
        return replace(facts, current_lsn=LSN, **changes)
    receiver = WalReceiver("streaming", "10.0.0.1", 5432, "", 3, name)
    return replace(facts, in_recovery=True, receive_lsn=LSN, replay_lsn=LSN, receiver=receiver, **changes)


def observed(**changes: dict[str, Any]) -> Observed:
    return Observed({name: node(name, **changes.get(name, {})) for name in NAMES}, LocalFacts())


def member(ours: str, **changes: Any) -> PatroniMember:
    """Patroni's own names are not ours: they are found by the address of the server."""
    role, state = ("leader", "running") if ours == "pg1" else ("replica", "streaming")
    return replace(PatroniMember(f"node-{ours}", role, state, MEMBERS[ours].address, 5432, 3, False), **changes)


def facts(*members: PatroniMember, **changes: Any) -> PatroniFacts:
    good = PatroniFacts(version="4.1.5", members=members or tuple(map(member, NAMES)), store_age_s=1.0)
    return replace(good, **changes)


def verdict(name: str, seen: PatroniFacts, cluster: Observed | None = None) -> tuple[str, str, str]:
    checks = {check.name: check for check in planner.all_checks(REQUEST, cluster or observed(), seen)}
    return checks[name].status, checks[name].found, checks[name].remedy


def test_all_is_well() -> None:
    found = {check.name: check.status for check in planner.all_checks(REQUEST, observed(), facts())}
    assert {name: found[name] for name in planner.OWN} == dict.fromkeys(planner.OWN, "ok")
    assert list(found)[-len(planner.OWN) + 1 :] == list(planner.OWN[1:])


def test_what_is_kept_are_checks_of_every_switchover() -> None:
    assert [name for name in planner.KEPT if name not in CHECKS] == []
    left = {"disk_version", "service_control", "manager_in_charge", "free_slots", "sibling_replication_login",
            "logical_slots", "synchronized_standby_slots", "synchronous_standby_names", "wal_kept"}  # fmt: skip
    assert set(CHECKS) - set(planner.KEPT) == left


def test_without_a_primary_nothing_else_is_judged() -> None:
    cluster = Observed({name: node(name, error="gone") for name in NAMES}, LocalFacts())
    assert [check.name for check in planner.all_checks(REQUEST, cluster, facts())] == ["nodes_reachable", "one_primary"]


def test_without_an_answer_nothing_is_judged_by_it() -> None:
    checks = planner.all_checks(REQUEST, observed(), PatroniFacts(error="Patroni at x does not answer"))
    assert checks[-1].name == "patroni_answers"
    assert (checks[-1].status, checks[-1].found) == ("failed", "Patroni at x does not answer")


@pytest.mark.parametrize(
    ("name", "seen", "cluster", "says"),
    [
        ("patroni_access", facts(access="POST is answered with 401"), None, "401"),
        ("patroni_alone", facts(), observed(pg3={"managers": ("Patroni", "repmgr")}), "repmgr"),
        ("patroni_leader", facts(member("pg1", role="replica"), member("pg2"), member("pg3")), None, "no leader"),
        ("patroni_leader", facts(member("pg1", role="standby_leader"), member("pg2")), None, "no leader"),
        ("patroni_leader", facts(member("pg1"), member("pg2")), None, "does not know pg3"),
        ("patroni_leader", facts(unlocked=True), None, "leader node-pg1"),
        ("patroni_leader", facts(member("pg1", state="stopping"), member("pg2"), member("pg3")), None, "stopping"),
        (
            "patroni_leader",
            facts(member("pg1", role="replica"), member("pg2"), member("pg3", role="leader")),
            None,
            "leader node-pg3",
        ),
        (
            "patroni_leader",
            facts(*map(member, NAMES), member("pg3", name="pg4", host="10.0.0.4")),
            None,
            "1 members that are not in dbops_clusters",
        ),
        ("patroni_store", facts(store_age_s=21.0), None, "21 s ago"),
        ("patroni_store", facts(failsafe=True), None, "failsafe"),
        ("patroni_not_paused", facts(paused=True), None, "paused"),
        ("patroni_not_paused", facts(scheduled='{"at": "later"}'), None, "scheduled: "),
        ("patroni_candidate", facts(member("pg1"), member("pg3")), None, "not a member"),
        ("patroni_candidate", facts(member("pg1"), member("pg2", state="starting"), member("pg3")), None, "starting"),
        ("patroni_candidate", facts(member("pg1"), member("pg2", timeline=2), member("pg3")), None, "timeline 2"),
        ("patroni_candidate", facts(member("pg1"), member("pg2", nofailover=True), member("pg3")), None, "nofailover"),
        ("patroni_candidate", facts(synchronous=True), None, "role replica in synchronous_mode"),
        ("patroni_privileges", facts(), observed(pg1={"missing_privileges": ("GRANT pg_monitor",)}), "pg_monitor"),
    ],
)  # fmt: skip
def test_a_check_fails(name: str, seen: PatroniFacts, cluster: Observed | None, says: str) -> None:
    status, found, remedy = verdict(name, seen, cluster)
    assert status == "failed"
    assert says in found
    assert remedy


def test_a_store_of_unknown_age_is_not_good() -> None:
    assert verdict("patroni_store", facts(store_age_s=None))[0] == "unknown"


def test_patroni_has_to_be_seen() -> None:
    assert verdict("patroni_alone", facts(), observed(**{name: {"managers": ()} for name in NAMES}))[0] == "failed"


@pytest.mark.parametrize("role", ["sync_standby", "quorum_standby"])
def test_a_synchronous_candidate(role: str) -> None:
    seen = facts(member("pg1"), member("pg2", role=role), member("pg3"), synchronous=True)
    assert verdict("patroni_candidate", seen)[0] == "ok"


def test_what_patroni_does_itself_needs_no_grant() -> None:
    lacks = (
        "GRANT EXECUTE ON FUNCTION pg_promote(boolean,integer)",
        "GRANT ALTER SYSTEM ON PARAMETER primary_conninfo",
    )
    assert verdict("patroni_privileges", facts(), observed(pg1={"missing_privileges": lacks}))[0] == "ok"


@pytest.mark.parametrize(
    ("there", "accepted", "status"), [((), (), "failed"), (("feed",), (), "ok"), ((), ("feed",), "ok")]
)
def test_logical_slots(there: tuple[str, ...], accepted: tuple[str, ...], status: str) -> None:
    def slot(name: str) -> Slot:
        return Slot(name, True, False, False, LSN, False, False, "", "reserved")

    cluster = observed(pg1={"slots": (slot("feed"),)}, pg2={"slots": tuple(map(slot, there))})
    request = replace(REQUEST, accept_lost_slots=accepted)
    checks = {check.name: check for check in planner.all_checks(request, cluster, facts())}
    assert checks["patroni_logical_slots"].status == status


def test_the_plan_survives_the_intent_row() -> None:
    plan = planner.make_plan(REQUEST, observed(), "pg1")
    assert SwitchoverPlan.from_detail(plan.as_detail()) == plan
    assert plan.manager == "Patroni"
    steps = planner.planned_steps(REQUEST, plan)
    assert [name for name, step in steps.items() if step.point_of_no_return] == ["promote"]
    assert [name for name, step in steps.items() if step.in_pause] == [
        "pause_poolers", "prove", "promote", "resume_poolers"
    ]  # fmt: skip


def test_an_end_that_nobody_saw_proves_nothing() -> None:
    assert judge(Ending(problem="why"), fork=LSN) == {"holds": None, "lost_bytes": None, "unproved": "why"}


@given(start=st.integers(1, 1 << 50), size=st.integers(1, 200), offset=st.integers(-(1 << 20), 1 << 20))
def test_nothing_is_missing_only_if_the_fork_lies_in_the_shutdown_checkpoint(
    start: int, size: int, offset: int
) -> None:
    fork = max(0, start + offset)
    found = judge(Ending(start, start + size), fork=fork)
    assert found["holds"] is (start <= fork <= start + size)
    assert found["lost_bytes"] == max(0, start - fork)
