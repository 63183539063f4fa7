# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions about partitions. That the statements work, and which locks they take, is shown in tests/integration."""

from __future__ import annotations

from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import partition_plan as planner
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_bounds import gaps
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_catalog import (
    BOUND,
    GUARD,
    Column,
    DefaultRows,
    Detached,
    ForeignKey,
    Grant,
    Namesake,
    Partition,
    PartitionedTable,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_keys import (
    Interval,
    Key,
    Window,
    parse_interval,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_plan import Plan
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.partition_steps import (
    Below,
    Facts,
    Request,
    of_range,
)
from hypothesis import given
from hypothesis import strategies as st

KEY = Key("integer")
REQUEST = Request("n", KEY, Interval(10, "step"), premake=3, template="{table}_p{start}")


def partition(lo: object, hi: object, name: str = "", **more: object) -> Partition:
    bound = f"FOR VALUES FROM ({lo}) TO ({hi})" if lo is not None else "DEFAULT"
    name = name or f"t_{lo}"
    words = {"kind": "r", "pending": False, "rows": 0, "bytes": 8192, "relations": (("public", name),), **more}
    return Partition(oid=hash((lo, hi)), schema="public", name=name, bound=bound, **words)  # type: ignore[arg-type]


DEFAULT = partition(None, None, "t_default")


def table(*partitions: Partition, **more: object) -> PartitionedTable:
    column = Column("n", "bigint", True)
    plain = PartitionedTable(1, "public", "t", "app", "range", (column,), (column,), "d", partitions, user="dbops")
    return replace(plain, **more)  # type: ignore[arg-type]


def plan(facts: Facts, request: Request = REQUEST) -> Plan:
    missing, checks = planner.wanted_windows(request, facts.table, facts.current)
    made = planner.make_plan(request, facts, missing)
    return replace(made, checks=(*checks, *made.checks))


def bad(made: Plan) -> list[str]:
    return [check.name for check in made.checks if check.status != "ok"]


def steps(made: Plan) -> list[str]:
    return [transaction.name for transaction in made.transactions]


@st.composite
def tables(draw: st.DrawFn) -> PartitionedTable:
    edges = sorted(draw(st.lists(st.integers(-60, 160), unique=True, max_size=10)))
    return table(*(partition(lo, hi) for lo, hi in zip(edges[::2], edges[1::2], strict=False)))


@given(there=tables(), current=st.integers(0, 99), premake=st.integers(0, 5), first=st.none() | st.integers(-50, 120))
def test_what_is_made_fills_the_windows_and_touches_nothing_that_is_there(
    there: PartitionedTable, current: int, premake: int, first: int | None
) -> None:
    request = replace(REQUEST, premake=premake, first=first, partial="fill")
    made = plan(Facts(there, current), request)
    assert bad(made) == []
    existing = list(planner.ranges(there, KEY))
    new = [item.span for item in made.created]
    assert not [1 for window in new for other in existing if window.overlaps(other)]
    start = (current if first is None else first) // 10 * 10
    end = max(start, (current // 10 + premake) * 10) + 10
    assert gaps([*existing, *new], Window(start, end)) == []
    assert all(window.lo >= start and window.hi <= end for window in new)
    assert len({item.name for item in made.created} | {child.name for child in there.partitions}) == len(new) + len(
        existing
    )
    after = table(*there.partitions, *(partition(w.lo, w.hi) for w in new))
    assert plan(Facts(after, current), request).transactions == ()


@given(there=tables(), current=st.integers(0, 99), keep=st.integers(1, 80))
def test_what_expires_ended_before_the_retention(there: PartitionedTable, current: int, keep: int) -> None:
    request = replace(REQUEST, retention=Interval(keep, "step"), retention_action="detach", partial="fill")
    made = plan(Facts(there, current), request)
    found = planner.ranges(there, KEY)
    assert {child.oid for child in made.detached} == {
        child.oid for window, child in found.items() if window.hi <= current - keep
    }
    assert all(window.hi > current - keep for window in (item.span for item in made.created))


def test_a_part_of_a_window_is_refused_unless_it_is_to_be_filled() -> None:
    there = table(partition(5, 12))
    made = plan(Facts(there, 0))
    assert bad(made) == ["overlap"]
    assert "window 0 to 10 and public.t_5 FOR VALUES FROM (5) TO (12)" in made.checks[0].found
    assert [item.window for item in plan(Facts(there, 0), replace(REQUEST, partial="fill")).created][:2] == [
        Window(0, 5),
        Window(12, 20),
    ]


def test_names() -> None:
    long = replace(REQUEST, template="{table}_" + "ü" * 31 + "{start}")
    assert bad(plan(Facts(table(), 0), long)) == ["name_length"]
    assert bad(plan(Facts(table(), 0), replace(REQUEST, template="{table}_p"))) == ["name_unique"]
    # A partition of the table's own has the name: another name is found. Something else has it: refused.
    own = table(partition(500, 600, "t_p0"))
    assert plan(Facts(own, 0)).created[0].name == "t_p0_2"
    taken = Facts(table(), 0, namesakes=(Namesake("t_p10", leftover=False),))
    assert bad(plan(taken)) == ["name_taken"]
    hours = replace(
        REQUEST,
        key=Key("timestamptz", ZoneInfo("Europe/Berlin")),
        interval=parse_interval("hour"),
        template="p{start:%H}",
    )
    current = hours.key.parse("2026-10-25 00:30:00+00")
    assert [item.name for item in plan(Facts(table(), current), hours).created] == ["p02", "p02_2", "p03", "p04"]


def test_a_leftover_is_made_again() -> None:
    made = plan(Facts(table(), 0, namesakes=(Namesake("t_p0", leftover=True),)))
    assert made.transactions[0].statements[0].sql == 'DROP TABLE "public"."t_p0"'
    beside = plan(Facts(table(DEFAULT), 0, namesakes=(Namesake("t_default_dbops_next", leftover=True),)))
    assert steps(beside)[0] == "drop t_default_dbops_next"


def test_constraints_that_a_killed_run_left_go_first() -> None:
    facts = Facts(table(DEFAULT), 0, DefaultRows(constraints=(GUARD, BOUND, "mine")))
    assert steps(plan(facts))[:2] == ["drop dbops_guard", "drop dbops_bound"]


LARGE = replace(DEFAULT, bytes=planner.SCAN_LIMIT + 1)


def test_a_large_default_partition_is_guarded_in_the_future_and_not_scanned_for_now() -> None:
    now = partition(0, 10)
    made = plan(Facts(table(LARGE, now), 5))
    assert bad(made) == []
    assert steps(made)[:2] == ["add dbops_guard", "validate dbops_guard"]
    assert "\"n\" < '10' OR \"n\" >= '40'" in made.transactions[0].statements[0].sql
    assert bad(plan(Facts(table(LARGE), 5))) == ["default_scan"]
    assert "add dbops_guard" not in steps(plan(Facts(table(DEFAULT), 5)))


def within(rows: int, *, lo: int = 2, hi: int = 7, nulls: bool = False) -> DefaultRows:
    return DefaultRows(lo, hi, nulls, (("t_p0", rows),))


@pytest.mark.parametrize(
    ("how", "rows", "table_words", "names"),
    [
        ("refuse", within(3), {}, ["default_rows"]),
        ("promote", within(3), {}, []),
        ("promote", within(3, hi=12), {}, ["default_rows"]),
        ("promote", within(3, lo=-1), {}, ["default_rows"]),
        ("promote", within(3, nulls=True), {}, ["default_rows"]),
        ("move", within(3), {}, []),
        ("move", within(10_001), {}, ["default_rows"]),
        ("move", within(3), {"referencing": (ForeignKey("f", "public.c", "public.t"),)}, ["default_rows"]),
        ("move", within(3), {"row_triggers": ("audit",)}, ["default_rows"]),
        ("move", within(3), {"publications": ("all",)}, ["default_rows"]),
    ],
)
def test_rows_of_missing_windows_in_the_default_partition(
    how: str, rows: DefaultRows, table_words: dict[str, object], names: list[str]
) -> None:
    request = replace(REQUEST, default_rows=how)
    made = plan(Facts(table(DEFAULT, **table_words), 5, rows), request)
    assert bad(made) == names
    if how == "refuse":
        assert "t_default holds 3 rows of window 0 to 10" in made.checks[-2].found


def test_what_is_promoted_and_moved() -> None:
    default = replace(DEFAULT, grants=(Grant("reader", "SELECT", True),))
    facts = Facts(table(default, owner="app", replica_identity="f"), 5, within(3))
    promoted = plan(facts, replace(REQUEST, default_rows="promote"))
    assert steps(promoted)[:4] == [
        *("create t_default_dbops_next", "add dbops_bound", "validate dbops_bound", "promote t_default")
    ]
    create = [statement.sql for statement in promoted.transactions[0].statements]
    assert create[1:] == [
        'ALTER TABLE "public"."t_default_dbops_next" OWNER TO "app"',
        'ALTER TABLE "public"."t_default_dbops_next" REPLICA IDENTITY FULL',
        'GRANT SELECT ON "public"."t_default_dbops_next" TO reader WITH GRANT OPTION',
    ]
    moved = plan(facts, replace(REQUEST, default_rows="move"))
    assert steps(moved)[:2] == ["create t_p0", "move to t_p0"]
    assert moved.transactions[1].statements[0].sql == 'LOCK TABLE ONLY "public"."t" IN ACCESS EXCLUSIVE MODE'


def test_no_create_right() -> None:
    assert bad(plan(Facts(table(), 0, may_create=False))) == ["create"]
    full = table(partition("MINVALUE", "MAXVALUE"))
    assert bad(plan(Facts(full, 0, may_create=False))) == []


@pytest.mark.parametrize(
    ("changes", "key_type", "names"),
    [
        ({}, "integer", []),
        ({}, None, ["key"]),
        ({}, "timestamptz", ["key"]),
        ({"key": (None,)}, "integer", ["key"]),
        ({"key": (Column("n", "bigint", True), Column("m", "bigint", True))}, "integer", ["key"]),
        ({"key": (Column("n", "text", True),)}, None, ["key"]),
        ({"key": (Column("n", "uuid", True),)}, None, []),
        ({"key": (), "strategy": ""}, "integer", ["strategy", "key"]),
        ({"strategy": "list"}, "integer", ["strategy"]),
        ({"partman": True}, "integer", ["partman"]),
        ({"partman": None}, "integer", ["partman"]),
        ({"may_act_as_owner": False}, "integer", ["owner"]),
    ],
)
def test_tables(changes: dict[str, object], key_type: str | None, names: list[str]) -> None:
    checks = planner.check_table(table(**changes), "n", key_type)
    assert [check.name for check in checks if check.status != "ok"] == names


def test_kinds_of_keys_and_intervals() -> None:
    assert planner.key_kind(table(), "epoch") == "epoch"
    assert planner.key_kind(table(key=(Column("n", "date", True),)), None) == "date"
    assert planner.check_interval(KEY, Interval(10, "step")).status == "ok"
    assert planner.check_interval(KEY, Interval(1, "day")).status == "failed"
    assert planner.check_interval(Key("date"), Interval(1, "hour")).status == "failed"
    assert planner.check_interval(Key("date"), Interval(1, "step")).status == "failed"


def test_a_number_alone_is_no_span_of_time() -> None:
    assert planner.check_interval(Key("timestamptz"), Interval(12, "step"), "retention").status == "failed"
    assert planner.check_grace(Interval(7, "step")).status == "failed"
    assert planner.check_grace(Interval(7, "day")).status == "ok"


def test_bounds_of_another_kind() -> None:
    with pytest.raises(ValueError, match="t_x has the bound"):
        planner.ranges(table(replace(DEFAULT, name="t_x", bound="FOR VALUES IN (1)")), KEY)


@pytest.mark.parametrize(
    ("name", "says"),
    [("t_0", ""), ("public.t_0", ""), ("t_10", "current"), ("t_default", "default"), ("else", "no partition of")],
)
def test_which_partition_may_be_detached(name: str, says: str) -> None:
    check = planner.check_detach(REQUEST, table(partition(0, 10), partition(10, 20), DEFAULT), 15, name)
    assert (check.status == "ok") == (not says)
    assert says in check.found


def test_how_it_is_detached() -> None:
    old = replace(partition(0, 10), foreign_keys=(ForeignKey("to_kind", "public.t_0", "public.kind"),))
    request = replace(REQUEST, retention=Interval(5, "step"), retention_action="detach", premake=0)
    rest = partition(10, "MAXVALUE")

    def made(version: int, *more: Partition) -> Plan:
        return plan(Facts(table(old, rest, *more), 20, version_num=version), request)

    assert steps(made(180000)) == ["mark t_0", "detach t_0", "drop to_kind", "block t_0"]
    assert "CONCURRENTLY" in made(140000).transactions[1].statements[0].sql
    assert "CONCURRENTLY" not in str(made(130000).transactions[1].statements)
    assert "CONCURRENTLY" not in str(made(180000, DEFAULT).transactions[1].statements)
    assert made(180000).transactions[1].partition == old


def test_what_a_killed_run_left_of_detaching() -> None:
    pending = replace(partition(0, 10), pending=True)
    assert steps(plan(Facts(table(pending, partition(10, "MAXVALUE")), 20)))[:3] == [
        *("mark t_0", "finalize t_0", "block t_0")
    ]
    gone = replace(partition(0, 10), grants=(Grant("public", "INSERT", False), Grant("public", "SELECT", False)))
    facts = Facts(table(partition(10, "MAXVALUE")), 20, detached=(Detached(gone, 0, blocked=False),))
    (block,) = plan(facts).transactions
    assert block.statements[-1].sql == 'REVOKE INSERT ON "public"."t_0" FROM public'
    done = replace(facts, detached=(Detached(gone, 0, blocked=True),))
    assert plan(done).transactions == ()


def test_what_is_looked_up_and_warned_of() -> None:
    wanted = of_range(REQUEST, Window(0, 10), "t_p0")
    assert planner.names_to_look_up(REQUEST, table(), [wanted], 0) == ["t_p0"]
    assert planner.names_to_look_up(REQUEST, table(DEFAULT), [wanted], 0) == [
        *("t_p0", "t_default_dbops_next", "t_default_retired_19700101")
    ]
    long = replace(DEFAULT, name="ü" * 31)
    assert len(planner.names_to_look_up(REQUEST, table(long), [], 0)[0].encode()) <= 63
    published = table(publications=("all",))
    assert "all" in planner.warnings(published, plan(Facts(published, 0)))[0]
    assert planner.warnings(table(), plan(Facts(table(), 0))) == []


def test_statistics() -> None:
    old, new = (
        plan(Facts(table(), 0, version_num=version)).transactions[-1].statements[0].sql for version in (170000, 180000)
    )
    assert old == 'ANALYZE "public"."t"'
    assert new.startswith('ANALYZE ONLY "public"."t", "public"."t_p0"')


LISTED = replace(REQUEST, strategy="list", lists=(("t_eu", ("de", "fr")), ("t_rest", ("us", None))))
HASHED = replace(REQUEST, strategy="hash", modulus=4)


def bounded(*bounds: str) -> PartitionedTable:
    return table(*(replace(partition(0, 1), name=f"t_{n}", bound=bound) for n, bound in enumerate(bounds)))


def sets(request: Request, there: PartitionedTable) -> Plan:
    wanted = planner.wanted_lists if request.strategy == "list" else planner.wanted_hash
    missing, checks = wanted(request, there)
    made = planner.make_plan(request, Facts(there, 0), missing)
    return replace(made, checks=(*checks, *made.checks))


def test_lists() -> None:
    made = sets(LISTED, bounded())
    assert [item.bounds for item in made.created] == ["IN ('de', 'fr')", "IN ('us', NULL)"]
    assert made.created[1].belongs == """"n" IN ('us') OR "n" IS NULL"""
    assert made.created[0].belongs == """"n" IS NOT NULL AND "n" IN ('de', 'fr')"""
    assert (
        sets(LISTED, bounded("FOR VALUES IN ('fr', 'de', 'es')", "FOR VALUES IN (NULL, 'us')", "DEFAULT")).created == ()
    )
    some = bounded("FOR VALUES IN ('de')", "FOR VALUES IN ('us', NULL)")
    assert bad(sets(LISTED, some)) == ["overlap"]
    filled = sets(replace(LISTED, partial="fill"), some)
    assert [(item.name, item.bounds) for item in filled.created] == [("t_eu", "IN ('fr')")]
    assert bad(sets(replace(LISTED, lists=(("a", ("x",)), ("b", ("x",)))), bounded())) == ["values"]
    only_null = replace(LISTED, lists=(("nulls", (None,)),))
    assert sets(only_null, bounded()).created[0].bounds == "IN (NULL)"


@pytest.mark.parametrize(
    ("there", "remainders", "names"),
    [
        ((), [0, 1, 2, 3], []),
        (((4, 1), (4, 3)), [0, 2], []),
        (((2, 0),), [1, 3], []),
        (((8, 0), (8, 4)), [1, 2, 3], []),
        (((8, 0),), [1, 2, 3], ["modulus"]),
        (((3, 0),), [0, 1, 2, 3], ["modulus"]),
        (tuple((4, remainder) for remainder in range(4)), [], []),
    ],
)
def test_hashes(there: tuple[tuple[int, int], ...], remainders: list[int], names: list[str]) -> None:
    made = sets(HASHED, bounded(*(f"FOR VALUES WITH (modulus {m}, remainder {r})" for m, r in there)))
    assert [item.bounds for item in made.created] == [f"WITH (MODULUS 4, REMAINDER {r})" for r in remainders]
    assert bad(made) == names


def test_what_is_partitioned_itself() -> None:
    below = Below("hash", "m", modulus=2)
    made = plan(Facts(table(owner="app", replica_identity="n"), 0), replace(REQUEST, premake=0, below=below))
    create = [statement.sql for statement in made.transactions[0].statements]
    assert create[0].endswith(' PARTITION BY HASH ("m")')
    assert (
        'CREATE TABLE "public"."t_p0_1" PARTITION OF "public"."t_p0" FOR VALUES WITH (MODULUS 2, REMAINDER 1)' in create
    )
    assert create[-1] == 'ALTER TABLE "public"."t_p0_1" REPLICA IDENTITY NOTHING'
    by_list = Below("list", "m", lists=(("eu", ("de",)),))
    made = plan(Facts(table(user="app"), 0), replace(REQUEST, premake=0, below=by_list))
    assert '"t_p0_eu" PARTITION OF "public"."t_p0" FOR VALUES IN (\'de\')' in made.transactions[0].statements[1].sql
    long = replace(REQUEST, template="x" * 61 + "{start}", premake=0, below=below)
    assert bad(plan(Facts(table(), 0), long)) == ["name_length"]
    for how in ("promote", "shadow"):
        request = replace(REQUEST, below=below, default_rows=how)
        assert bad(plan(Facts(table(DEFAULT), 5, within(3)), request)) == ["default_rows"]
    assert bad(
        plan(Facts(table(DEFAULT), 5, within(3)), replace(REQUEST, strategy="list", default_rows="promote"))
    ) == ["default_rows"]


def test_numbers() -> None:
    assert planner.check_numbers({"premake": 0, "modulus": None, "max_drop": 1}).status == "ok"
    assert planner.check_numbers({"premake": -1, "modulus": 0}).found == "premake -1, modulus 0"


def test_which_partition_of_a_list_may_be_detached() -> None:
    there = bounded("FOR VALUES IN ('de')")
    assert planner.check_detach(LISTED, there, 0, "t_0").status == "ok"


def test_a_table_of_another_strategy() -> None:
    checks = planner.check_table(table(strategy="list"), "n", None, "list")
    assert [check.name for check in checks if check.status != "ok"] == []
    assert planner.check_table(table(), "n", "integer", "hash")[2].status == "failed"
