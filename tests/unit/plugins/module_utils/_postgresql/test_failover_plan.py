# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner of a failover: may anybody be promoted, who, and is a promise to synchronous clients kept.

``REQUEST`` and ``GOOD`` are a cluster whose primary pg1 is gone and fenced; every test says what is different.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._core.operation import Check, refuse_unless_good
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import failover_plan as planner
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.catalog import NodeFacts, Slot, WalReceiver
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.failover_plan import (
    CHECK_NAMES,
    FailoverPlan,
    FailoverRequest,
    Fence,
    Witness,
    checks,
    choose,
    final_checks,
    make_plan,
    own_operation,
    plan_of_promoted,
    planned_steps,
    position,
    promise_kept,
    standbys,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.switchover_plan import (
    Follower,
    Member,
    member_slot,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.sync_names import SyncRule
from hypothesis import given, settings
from hypothesis import strategies as st

LSN = 0x3000148
MEMBERS = {
    name: Member(name, f"10.0.0.{number}", 5432, f"192.0.2.{number}", 6000 + number)
    for number, name in enumerate(("pg1", "pg2", "pg3"), start=1)
}
REQUEST = FailoverRequest(
    cluster="accounts", failed_primary="pg1", members=MEMBERS, fence=Fence(True, "its plug was pulled")
)
GONE = NodeFacts("pg1", error="pg1 (192.0.2.1:6001): timeout")
Nodes = dict[str, NodeFacts]


def standby(name: str, **changes: Any) -> NodeFacts:
    facts = NodeFacts(
        name=name,
        version_num=150004,
        system_identifier="7000",
        in_recovery=True,
        timeline=3,
        receive_lsn=LSN,
        replay_lsn=LSN,
        upstream=("10.0.0.1", 5432),
        application_name=name,
    )
    return replace(facts, **changes)


GOOD = {"pg1": GONE, "pg2": standby("pg2"), "pg3": standby("pg3")}


def but(**nodes: Mapping[str, Any]) -> Nodes:
    return {**GOOD, **{name: replace(GOOD[name], **changes) for name, changes in nodes.items()}}


def both(**changes: Any) -> Nodes:
    return but(pg2=changes, pg3=changes)


def slot(name: str) -> Slot:
    return Slot(name, False, False, False, LSN, False, False, "", "reserved")


def row(kind: str, **changes: Any) -> dict[str, Any]:
    return {"id": "op1", "kind": kind, "cluster": "accounts", "system_identifier": "7000", "detail": {}, **changes}


def asked(**changes: Any) -> FailoverRequest:
    return replace(REQUEST, **changes)


def promised(names: str, **changes: Any) -> FailoverRequest:
    return asked(fence=Fence(True, "stopped", names), **changes)


def bad(found: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in found if check.status != "ok"}


STREAMS = WalReceiver("streaming", "10.0.0.1", 5432, "", 3, "pg2")
ALIVE = standby("pg1", in_recovery=False)
SILENT = {"error": "timeout"}

# --------------------------------------------------------------------------------------------------------------- checks

REFUSED: list[tuple[str, str, FailoverRequest, Nodes, str]] = [
    ("standbys_answer", "failed", REQUEST, both(**SILENT), "nobody answered, pg2, pg3 did not"),
    ("standbys_answer", "warning", REQUEST, but(pg3=SILENT), "pg3 did not"),
    ("no_primary", "failed", REQUEST, but(pg3={"in_recovery": False}), "pg3 accepts writes"),
    ("primary_gone", "failed", REQUEST, {**GOOD, "pg1": ALIVE}, "as seen from here"),
    ("primary_gone", "failed", asked(witnesses=(Witness("app1", True),)), GOOD, "app1 sees it accept writes"),
    ("primary_gone", "unknown", asked(witnesses=(Witness("app1", None, "no route"),)), GOOD, "app1 could not look: no"),
    (
        "primary_gone",
        "failed",
        asked(fence=Fence(), accept_split_brain_risk=True),
        but(pg2={"receiver": STREAMS}),
        "pg2 streams from it",
    ),
    ("fence", "failed", asked(fence=Fence(by="to be confirmed")), GOOD, "nobody has confirmed"),
    ("upstream", "failed", REQUEST, both(upstream=("10.0.0.9", 5432)), "pg3 follows 10.0.0.9:5432"),
    ("upstream", "failed", REQUEST, both(upstream=("10.0.0.1", 5433)), "pg3 follows 10.0.0.1:5433"),
    ("versions", "failed", REQUEST, both(version_num=120022), "pg2: 12"),
    ("versions", "failed", REQUEST, but(pg3={"version_num": 160001}), "pg2: 15, pg3: 16"),
    ("system_identifier", "failed", REQUEST, but(pg3={"system_identifier": "7001"}), "pg3: 7001"),
    ("privileges", "failed", REQUEST, but(pg3={"missing_privileges": ("pg_promote",)}), "pg3 lacks pg_promote"),
    ("manager_in_charge", "failed", REQUEST, but(pg3={"managers": ("Patroni",)}), "Patroni"),
    (
        "no_open_operation",
        "failed",
        REQUEST,
        but(pg3={"operations": (row("switchover"),)}),
        "unfinished switchover op1",
    ),
    ("candidate_fit", "failed", REQUEST, both(replay_paused=True), "pg3: its replay is paused"),
    (
        "candidate_fit",
        "failed",
        asked(candidate="pg3"),
        but(pg3={"settings": {"recovery_min_apply_delay": "5"}}),
        "recovery_min_apply_delay = 5 ms",
    ),
    (
        "candidate_fit",
        "failed",
        asked(candidate="pg3"),
        but(pg3={"settings": {"recovery_target_lsn": "0/1", "recovery_target_action": "pause"}}),
        "it has a recovery target (recovery_target_lsn)",
    ),
    (
        "candidate_fit",
        "failed",
        asked(candidate="pg3"),
        but(pg3={"settings": {"recovery_target_timeline": "3"}}),
        "(recovery_target_timeline)",
    ),
    (
        "candidate_fit",
        "failed",
        asked(candidate="pg3"),
        but(pg3={"timeline": 2}),
        "on timeline 2, another standby on 3",
    ),
    ("candidate_fit", "failed", REQUEST, both(timeline=0), "pg2: no replication connection"),
    ("candidate_fit", "failed", asked(candidate="pg1"), GOOD, "pg1: it is no standby that answers"),
    (
        "most_advanced",
        "failed",
        asked(candidate="pg3"),
        but(pg3={"receive_lsn": LSN - 8, "replay_lsn": LSN - 8}),
        "pg2",
    ),
    ("most_advanced", "failed", REQUEST, but(pg2={"receive_lsn": LSN + 8, "replay_paused": True}), "pg2 has 0/3000150"),
    ("synchronous_promise", "failed", promised("ANY 1 (pg2, pg3, pg4)"), GOOD, "ANY 1 (pg2, pg3, pg4)"),
    (
        "synchronous_standby_names",
        "failed",
        promised("ANY 3 (pg1, pg2, pg3)"),
        GOOD,
        "after the failover ANY 3 (pg1, pg2, pg3), 2 of the standbys it needs are missing",
    ),
    ("synchronous_standby_names", "failed", asked(synchronous_standby_names="FIRST 1 (a"), GOOD, "no closing"),
]


def test_a_lost_primary_passes_every_check() -> None:
    found = checks(REQUEST, GOOD)
    assert tuple(check.name for check in found) == CHECK_NAMES
    assert bad(found) == {}
    assert {check.remedy for check in found} == {""}


def test_every_check_has_a_situation_that_it_refuses() -> None:
    assert {case[0] for case in REFUSED} == set(CHECK_NAMES)


@pytest.mark.parametrize(("name", "status", "request_", "nodes", "says"), REFUSED, ids=[case[0] for case in REFUSED])
def test_it_is_this_check_alone_that_refuses_and_it_says_why(
    name: str, status: str, request_: FailoverRequest, nodes: Nodes, says: str
) -> None:
    found = checks(request_, nodes)
    assert bad(found) == {name: status}
    [check] = [check for check in found if check.name == name]
    assert says in check.found
    assert check.expected
    assert check.remedy
    if status == "warning":
        refuse_unless_good(found)
        return
    with pytest.raises(DbopsError) as raised:
        refuse_unless_good(found)
    assert f"[{name}] {check.found}" in raised.value.message


@pytest.mark.parametrize(
    ("request_", "nodes"),
    [
        # The fence: confirmed, or planned, or the risk taken. Behind one a standby may stream: it is served the rest.
        (asked(fence=Fence(), accept_split_brain_risk=True), GOOD),
        (asked(fence=Fence(by="to be confirmed"), only_planned=True), GOOD),
        (REQUEST, but(pg2={"receiver": STREAMS})),
        (asked(fence=Fence(), accept_split_brain_risk=True), but(pg2={"receiver": replace(STREAMS, sender_port=1)})),
        (
            asked(fence=Fence(), accept_split_brain_risk=True),
            but(pg2={"receiver": replace(STREAMS, status="stopping")}),
        ),
        # It died without closing its connections.
        (asked(fence=Fence(), accept_split_brain_risk=True), but(pg2={"receiver": replace(STREAMS, silent_s=5.0)})),
        # One that restores from an archive only has no upstream; another one is one too many to be sure.
        (REQUEST, both(upstream=("", 0), receive_lsn=None)),
        (REQUEST, but(pg3={"upstream": ("10.0.0.2", 5432)})),
        (REQUEST, but(pg2={"upstream": ("192.0.2.1", 6001)})),
        # A failover of one's own is taken up; somebody else's operation is given up by name; other clusters are.
        (REQUEST, but(pg3={"operations": (row("failover"),), "slots": (slot("dbops_op_op1"), slot("dbops_pg2"))})),
        (asked(abandon_operation="op1"), but(pg3={"operations": (row("switchover"),)})),
        (REQUEST, but(pg3={"operations": (row("switchover", cluster="orders"),)})),
        (REQUEST, but(pg3={"operations": (row("switchover", system_identifier="6999"),)})),
        # Accepted losses.
        (asked(candidate="pg3", accept_data_loss=True), but(pg2={"receive_lsn": LSN + 8})),
        (promised("ANY 1 (pg2, pg3, pg4)", accept_data_loss=True), GOOD),
        (promised("ANY 3 (pg1, pg2, pg3)", accept_async_window=True), GOOD),
        # Which list is known, and what comes of it.
        (promised(""), both(settings={"synchronous_standby_names": "FIRST 1 (gone)"})),
        (promised("ANY 1 (pg2, pg3)"), GOOD),
        (promised("ANY 3 (pg2, pg3, gone)", synchronous_standby_names="pg3"), GOOD),
        (REQUEST, but(pg2={"settings": {"recovery_target_timeline": "latest", "recovery_target_inclusive": "on"}})),
    ],
)
def test_what_is_just_good_enough_passes(request_: FailoverRequest, nodes: Nodes) -> None:
    assert bad(checks(request_, nodes)) == {}


def test_a_fenced_primary_that_serves_its_wal_is_no_standby() -> None:
    nodes = {**GOOD, "pg1": standby("pg1", receive_lsn=LSN + 800)}
    assert bad(checks(REQUEST, nodes)) == {}
    assert sorted(standbys(REQUEST, nodes)) == ["pg2", "pg3"]
    assert choose(REQUEST, nodes) == "pg2"


def test_where_nobody_is_left_the_rest_is_not_judged() -> None:
    assert [check.name for check in checks(REQUEST, both(**SILENT))] == ["standbys_answer", "no_primary"]
    names = [check.name for check in checks(REQUEST, both(replay_paused=True))]
    assert names == list(CHECK_NAMES[: CHECK_NAMES.index("candidate_fit") + 1])


def test_frozen_positions_are_judged_again() -> None:
    nodes = standbys(REQUEST, but(pg3={"receive_lsn": LSN + 8}))
    assert bad(final_checks(promised("pg4"), nodes, "pg2")) == {
        "most_advanced": "failed",
        "synchronous_promise": "failed",
    }


def test_the_id_of_the_failover_that_is_taken_up() -> None:
    assert own_operation(REQUEST, GOOD) == ""
    assert (
        own_operation(REQUEST, but(pg3={"slots": (slot("dbops_op_b"),)}, pg2={"slots": (slot("dbops_op_a"),)})) == "a"
    )
    both_kinds = {"slots": (slot("dbops_op_op1"),), "operations": (row("switchover"),)}
    assert own_operation(REQUEST, but(pg3=both_kinds)) == "", "the mark of a switchover"


# -------------------------------------------------------------------------------------------------------- who is chosen


def test_what_was_restored_from_an_archive_counts_too() -> None:
    assert position(standby("pg2", receive_lsn=8, replay_lsn=16)) == 16
    assert position(standby("pg2", receive_lsn=16, replay_lsn=8)) == 16, "received, and not replayed yet"
    assert position(standby("pg2", receive_lsn=None, replay_lsn=None)) == 0


@st.composite
def clusters(draw: st.DrawFn) -> Nodes:
    def one(name: str) -> NodeFacts:
        if draw(st.integers(0, 5)) == 0:
            return NodeFacts(name, error="timeout")
        return standby(
            name,
            timeline=draw(st.sampled_from([3, 3, 3, 2, 0])),
            receive_lsn=draw(st.none() | st.integers(LSN - 2, LSN + 2)),
            replay_lsn=draw(st.none() | st.integers(LSN - 2, LSN + 2)),
            replay_paused=draw(st.integers(0, 4)) == 0,
            settings=draw(
                st.sampled_from([{}, {}, {}, {"recovery_min_apply_delay": "1"}, {"recovery_target_name": "x"}])
            ),
        )

    return {
        "pg1": draw(st.sampled_from([GONE, standby("pg1", receive_lsn=LSN + 9)])),
        **{n: one(n) for n in ("a", "b", "c")},
    }


def with_members(nodes: Nodes, **changes: Any) -> FailoverRequest:
    return asked(members={name: replace(MEMBERS["pg1"], name=name) for name in nodes}, **changes)


def promotable(facts: NodeFacts) -> bool:
    return facts.answered and not facts.replay_paused and not facts.settings and facts.timeline > 0


@settings(max_examples=200)
@given(clusters())
def test_the_chosen_one_can_be_promoted_and_has_the_most(nodes: Nodes) -> None:
    request = with_members(nodes)
    chosen = choose(request, nodes)
    left = [nodes[name] for name in ("a", "b", "c") if nodes[name].answered]
    newest = max((facts.timeline for facts in left), default=0)
    eligible = [facts for facts in left if promotable(facts) and facts.timeline == newest]
    if not chosen:
        assert not eligible
        return
    assert nodes[chosen] in eligible
    assert position(nodes[chosen]) == max(map(position, eligible))


@settings(max_examples=200)
@given(clusters(), st.sampled_from(["", "a", "b", "c", "pg1"]))
def test_what_passes_promotes_a_fit_standby_and_throws_nothing_away(nodes: Nodes, candidate: str) -> None:
    request = with_members(nodes, candidate=candidate)
    try:
        refuse_unless_good(checks(request, nodes))
    except DbopsError:
        return
    chosen = choose(request, nodes)
    assert chosen in ("a", "b", "c")
    assert promotable(nodes[chosen])
    assert position(nodes[chosen]) == max(position(facts) for facts in standbys(request, nodes).values())


# ------------------------------------------------------------------------------------------- the synchronous promise


@dataclass(frozen=True)
class World:
    """``listens``: each standby and the name by which the primary knew it. ``silent`` are those that do not answer."""

    rule: SyncRule
    listens: dict[str, str]
    silent: frozenset[str]

    def kept(self) -> bool | None:
        names = (*self.listens, "pg1")
        nodes = {
            name: standby(name, application_name=known)
            for name, known in self.listens.items()
            if name not in self.silent
        }
        request = promised(str(self.rule), members={name: replace(MEMBERS["pg1"], name=name) for name in names})
        return promise_kept(request, nodes, next(iter(nodes), "")) if nodes else None

    def may_be_lost(self) -> bool:
        """Is there a commit that was acknowledged by standbys none of which answers? Every set of standbys that may
        have acknowledged it is tried. A listed name that no member has may be that of somebody else."""
        names = [name.lower() for name in self.rule.names]
        strangers = [
            name for name in names if name not in ("*", "pg1", *(each.lower() for each in self.listens.values()))
        ]
        voters = [
            (name, name in self.silent) for name, known in self.listens.items() if {"*", known.lower()} & {*names}
        ]
        voters += [(name, True) for name in set(strangers)]
        return any(all(silent for _name, silent in votes) for votes in combinations(voters, self.rule.number))


RULES = st.builds(
    SyncRule,
    st.sampled_from(["FIRST", "ANY"]),
    st.integers(1, 3),
    st.lists(st.sampled_from(["a", "b", "c", "d", "pg1", "B", "barman", "*"]), min_size=1, max_size=4).map(tuple),
)


@st.composite
def worlds(draw: st.DrawFn, names: st.SearchStrategy[str] | None = None) -> World:
    members = ("a", "b", "c", "d")[: draw(st.integers(1, 4))]
    silent = draw(st.frozensets(st.sampled_from(members), max_size=len(members) - 1))
    return World(draw(RULES), {name: draw(names) if names else name for name in members}, silent)


@settings(max_examples=300)
@given(worlds())
def test_a_promise_that_counts_as_kept_cannot_be_broken(world: World) -> None:
    if world.kept():
        assert not world.may_be_lost()


@settings(max_examples=300)
@given(worlds())
def test_a_promise_that_counts_as_broken_may_be(world: World) -> None:
    """So no failover is refused for nothing, but for a list that can never have been satisfied."""
    if world.kept() is False:
        listed = {name.lower() for name in world.rule.names} - {"pg1"}
        seen = [name for name in world.listens if name not in world.silent and ({name, "*"} & listed)]
        assert world.may_be_lost() or not seen


@settings(max_examples=300)
@given(worlds(), st.sampled_from(["walreceiver", "main"]))
def test_standbys_that_share_one_name_are_all_counted(world: World, shared: str) -> None:
    """Nothing was said in primary_conninfo, or one configuration was copied to all."""
    world = replace(world, listens=dict.fromkeys(world.listens, shared), rule=replace(world.rule, names=(shared,)))
    if world.kept():
        assert not world.may_be_lost()


def test_the_name_of_a_walreceiver_that_was_given_none() -> None:
    nameless = {"pg2": standby("pg2", application_name=""), "pg3": standby("pg3", application_name="")}
    assert promise_kept(promised("walreceiver"), nameless, "pg2") is True
    assert promise_kept(promised("pg2"), nameless, "pg2") is False
    named = {name: replace(facts, settings={"cluster_name": "main"}) for name, facts in nameless.items()}
    assert promise_kept(promised("main"), named, "pg2") is True
    assert promise_kept(promised("main"), {"pg2": named["pg2"]}, "pg2") is False, "pg3 may have that name too"


def test_an_asynchronous_primary_promised_nothing() -> None:
    assert promise_kept(REQUEST, standbys(REQUEST, GOOD), "pg2") is None
    assert promise_kept(promised(""), standbys(REQUEST, GOOD), "pg2") is None


# ----------------------------------------------------------------------------------------------------------------- plan


def plan(nodes: Nodes | None = None, request: FailoverRequest = REQUEST, **changes: Any) -> FailoverPlan:
    return make_plan(
        request, nodes or GOOD, **{"retry_interval_before": None, "conninfo_by_alter_system": (), **changes}
    )


def test_the_plan() -> None:
    nodes = but(
        pg2={"slots": (slot("dbops_pg1"),)}, pg3={"settings": {"primary_slot_name": "three"}, "application_name": ""}
    )
    made = plan(nodes, conninfo_by_alter_system=["pg3", "pg2"])
    assert (made.candidate, made.old_timeline, made.standbys) == ("pg2", 3, ("pg2", "pg3"))
    assert made.followers == (Follower("pg1", member_slot("pg1"), "pg1"), Follower("pg3", "three", "pg3"))
    assert made.create_slots == ("three",)
    assert made.conninfo_by_alter_system == ("pg2", "pg3")
    assert (made.sync_before, made.sync_after) == ("", None)


def test_a_plan_survives_its_journal() -> None:
    made = plan(but(pg2={"settings": {"synchronous_standby_names": "pg2"}}), retry_interval_before="7s")
    assert FailoverPlan.from_detail(made.as_detail()) == made
    assert made.as_detail()["old_primary"] == "pg1"


@pytest.mark.parametrize(
    ("before", "own", "request_", "after"),
    [
        ("pg2", "", {}, "FIRST 1 (pg1)"),
        ("ANY 1 (pg2, pg3)", "", {}, "ANY 1 (pg1, pg3)"),
        ("ANY 1 (pg1, pg2, pg3)", "", {}, "ANY 1 (pg1, pg2, pg3)"),
        ("pg3", "pg3", {}, None),
        ("pg3", "FIRST 1 (pg3)", {}, None),
        ("ANY 2 (pg2, pg3)", "", {"accept_async_window": True}, None),
        ("ANY 2 (pg2, pg3)", "pg2, pg3", {"accept_async_window": True}, ""),
        ("pg2", "", {"synchronous_standby_names": "pg3"}, "FIRST 1 (pg3)"),
        ("pg2", "pg2", {"synchronous_standby_names": ""}, ""),
    ],
)
def test_the_list_for_the_time_after(before: str, own: str, request_: dict[str, Any], after: str | None) -> None:
    nodes = but(pg2={"settings": {"synchronous_standby_names": own}})
    made = plan(nodes, promised(before, candidate="pg2", **request_))
    assert (made.sync_before, made.sync_after) == (own, after)


def test_what_is_left_where_an_earlier_run_promoted() -> None:
    nodes = but(pg2={"in_recovery": False, "timeline": 4}, pg3=SILENT)
    assert plan_of_promoted(REQUEST, nodes, "pg2").old_timeline == 3
    late = plan_of_promoted(REQUEST, but(pg2={"in_recovery": False, "timeline": 5}, pg3={"timeline": 2}), "pg2")
    assert (late.candidate, late.old_timeline, late.standbys) == ("pg2", 2, ("pg2", "pg3"))
    assert [follower.name for follower in late.followers] == ["pg1", "pg3"]


def test_the_steps_as_they_are_printed() -> None:
    made = plan(request=promised("pg2"))
    steps = planned_steps(REQUEST, made)
    assert list(steps) == ["mark", "salvage", "freeze", "compare", "prepare", "promote", "follow", "record"]
    assert [name for name, step in steps.items() if step.point_of_no_return] == ["promote"]
    assert "ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (pg1)'" in steps["prepare"].statements
    assert "pg3" in steps["follow"].summary
    alone = plan(but(pg3=SILENT))
    assert "none" in planned_steps(REQUEST, alone)["follow"].summary
    assert len(planned_steps(REQUEST, alone)["prepare"].statements) == 1 + len(alone.create_slots)


def test_the_checks_are_those_of_the_list() -> None:
    assert len(set(CHECK_NAMES)) == len(CHECK_NAMES)
    assert planner.KIND == "failover"
