# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure half of PgBouncer: where a configuration leads, how it is rewritten, and what a dead-man decides.

That our reading of the file is PgBouncer's own is shown by a real one in tests/integration/test_pgbouncer_guard.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.pgbouncer import (
    PooledDatabase,
    PoolerState,
    Sighting,
    Verdict,
    deadman_decision,
    following,
    read_config,
    repoint,
    repoint_files,
    routes,
)
from hypothesis import given
from hypothesis import strategies as st

MEMBERS = {
    "pg1": ("10.0.0.1", 5432),
    "pg2": ("10.0.0.2", 5432),
    "pg3": ("10.0.0.1", 5433),
    "pg4": ("Db4.Example", 6000),
}

# -- the configuration file

TAIL = "[users]\nbob = pool_mode=session\n[pgbouncer]\nlisten_port = 6432\n;host=10.0.0.1 port=5432\nadmin_users = a\n"


def leads(text: str) -> list[tuple[str, str, int]]:
    [file] = read_config("x", lambda _path: text)
    return [(entry.name, entry.host, entry.port) for entry in file.entries]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a = host=10.0.0.1 port=5433 dbname=x", [("a", "10.0.0.1", 5433)]),
        ("a=host=10.0.0.1", [("a", "10.0.0.1", 5432)]),
        ("a = host = '10.0.0.1'  port= '5433' password='it''s; #x'", [("a", "10.0.0.1", 5433)]),
        ("a = port=5433 host=10.0.0.1\r", [("a", "10.0.0.1", 5433)]),
        ("* = host=10.0.0.1", [("*", "10.0.0.1", 5432)]),
        ('"my ""db" = host=10.0.0.1', [('my "db', "10.0.0.1", 5432)]),
        ("'my db' = host=10.0.0.1", [("my db", "10.0.0.1", 5432)]),
        ("a = dbname=x", []),
        ("; a = host=10.0.0.1", []),
        ("# a = host=10.0.0.1", []),
        ("a =", []),
        ("a = host=10.0.0.9 host=10.0.0.1", [("a", "10.0.0.1", 5432)]),
        ("a = host=10.0.0.1\tport=5433", [("a", "10.0.0.1\tport=5433", 5432)]),  # only blanks part words: seen in 1.18
    ],
)
def test_where_a_line_leads(line: str, expected: list[tuple[str, str, int]]) -> None:
    assert leads(f"[databases]\n{line}\n{TAIL}") == expected
    assert leads(f"  [databases]{line}\n{TAIL}") == expected


@pytest.mark.parametrize(
    "text",
    [
        "[databases\na = host=x\n",
        "[databases]\nnonsense\n",
        "[databases]\na = host='x\n",
        "[databases]\na = host=x port=y\n",
    ],
)
def test_a_file_that_pgbouncer_would_not_load_is_refused(text: str) -> None:
    with pytest.raises(DbopsError, match="a configuration that PgBouncer loads"):
        leads(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = host=10.0.0.1 port=5432 dbname=x", "a = host=10.0.0.2 port=5432 dbname=x"),
        ("a = host=10.0.0.1 dbname=x ; kept", "a = host=10.0.0.2 dbname=x ; kept"),
        (
            "a=port='5433'   host='10.0.0.1' password='host=10.0.0.1'",
            "a=port='5432'   host='10.0.0.2' password='host=10.0.0.1'",
        ),
        ("a = host=DB4.example port=6000", "a = host=10.0.0.2 port=5432"),
        ("a = host=10.0.0.1 port=9999", "a = host=10.0.0.1 port=9999"),
        ("a = host=10.0.0.10", "a = host=10.0.0.10"),
        ("a = dbname=x", "a = dbname=x"),
        ("a = host=127.0.0.1 port=7001", "a = host=10.0.0.2 port=5432"),
    ],
)
def test_only_hosts_and_ports_of_members_change(before: str, after: str) -> None:
    if before.endswith("; kept"):  # PgBouncer has no comment at the end of a line: this is no connection string
        with pytest.raises(DbopsError):
            repoint(f"[databases]\n{before}\n", MEMBERS, "pg2")
        return
    text, changes = repoint(f"[databases]\n{before}\n{TAIL}", MEMBERS, "pg2", aliases=[("127.0.0.1", 7001)])
    assert text == f"[databases]\n{after}\n{TAIL}"
    assert bool(changes) == (before != after)


def test_a_port_is_added_where_the_default_no_longer_fits() -> None:
    text, changes = repoint("[databases]\na = host='10.0.0.1' dbname=x\n", MEMBERS, "pg4")
    assert text == "[databases]\na = host='Db4.Example' port=6000 dbname=x\n"
    assert changes == [{"database": "a", "before": "10.0.0.1:5432", "after": "Db4.Example:6000"}]


def test_a_host_is_quoted_where_a_connection_string_needs_it() -> None:
    members = {"pg1": ("10.0.0.1", 5432), "here": ("/run/bob's pg", 5432)}
    text, _changes = repoint("[databases]\na = host=10.0.0.1 dbname=x\n", members, "here")
    assert text == "[databases]\na = host='/run/bob''s pg' dbname=x\n"
    assert leads(text) == [("a", "/run/bob's pg", 5432)]


def test_a_list_of_hosts_with_a_member_is_refused_and_found_as_a_route() -> None:
    text = "[databases]\na = host=10.0.0.9,10.0.0.1\n"
    with pytest.raises(DbopsError, match="host list"):
        repoint(text, MEMBERS, "pg2")
    assert [entry.name for entry in routes(read_config("x", lambda _path: text), MEMBERS.values())] == ["a"]
    other = "[databases]\na = host=10.0.0.9,10.0.0.8\n"
    assert repoint(other, MEMBERS, "pg2") == (other, [])


def test_sections_reach_into_included_files_and_back_out() -> None:
    texts = {
        "/main.ini": "[databases]\n%include /dbs.ini\nb = host=10.0.0.1\n%include /rest.ini\nlisten_port = 1\n",
        "/dbs.ini": "a = host=10.0.0.1\n",
        "/rest.ini": "c = host=10.0.0.1\n[pgbouncer]\n",
    }
    new, changes = repoint_files(read_config("/main.ini", texts.__getitem__), MEMBERS, "pg2")
    assert {change["database"] for change in changes} == {"a", "b", "c"}
    assert new == {path: text.replace("10.0.0.1", "10.0.0.2") for path, text in texts.items()}
    with pytest.raises(DbopsError, match="%include /dbs"):
        repoint(texts["/main.ini"], MEMBERS, "pg2")
    with pytest.raises(DbopsError, match="nested too deep"):
        read_config("/loop.ini", lambda _path: "%include /loop.ini\n")


NAMES = st.text("abcxyz_.-09", min_size=1, max_size=8)
BLANKS = st.sampled_from(["", " ", "  "])
OTHERS = st.sampled_from([("10.0.0.1", 1), ("10.9.9.9", 5432), ("elsewhere", 5433), ("/run/postgresql", 5432)])
PASSWORDS = st.text("aZ1;#=[]%\\ é'\"", min_size=1, max_size=12).map(lambda text: "'" + text.replace("'", "''") + "'")
ANY_MEMBER = st.sampled_from(sorted(MEMBERS.values()))


@st.composite
def lines(draw: st.DrawFn, members: st.SearchStrategy[Any] = ANY_MEMBER, ports: bool = False) -> str:
    """One line of [databases] in one of the many ways in which it can be written."""
    host, port = draw(st.one_of(members, members, OTHERS))
    quote = draw(st.sampled_from(["", "'"]))
    words = [("host", f"{quote}{host}{quote}"), ("dbname", "x"), ("password", draw(PASSWORDS))]
    if ports or port != 5432 or draw(st.booleans()):
        words.append(("port", str(port)))
    parts = [f"{key}{draw(BLANKS)}={draw(BLANKS)}{value}" for key, value in draw(st.permutations(words))]
    name = draw(st.one_of(NAMES, st.just("*")))
    return f"{draw(BLANKS)}{name}{draw(BLANKS)}={draw(BLANKS)}{(' ' + draw(BLANKS)).join(parts)}{draw(BLANKS)}"


def files(line: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    rest = st.sampled_from(["", "; host=10.0.0.1", "# x = host=10.0.0.1 port=5433", "\t", "local = dbname=y"])
    body = st.lists(st.one_of(line, line, rest), max_size=6)
    return st.builds(
        lambda lines, end: f"{TAIL}[databases]{end}" + "".join(f"{item}{end}" for item in lines) + TAIL,
        body,
        st.sampled_from(["\n", "\r\n", "\n\n"]),
    )


TARGETS = st.sampled_from(sorted(MEMBERS))


@given(files(lines()), TARGETS)
def test_members_lead_to_the_target_and_all_others_where_they_led(text: str, target: str) -> None:
    members = {(host.lower(), port) for host, port in MEMBERS.values()}
    new, _changes = repoint(text, MEMBERS, target)
    expected = [
        (name, *(MEMBERS[target] if (host.lower(), port) in members else (host, port)))
        for name, host, port in leads(text)
    ]
    assert [(name, host.lower(), port) for name, host, port in leads(new)] == [
        (name, host.lower(), port) for name, host, port in expected
    ]
    assert new.count("\n") == text.count("\n")
    assert new.startswith(TAIL)
    assert new.endswith(TAIL)
    assert repoint(new, MEMBERS, target) == (new, [])


@given(files(lines(members=st.just(MEMBERS["pg1"]), ports=True)), TARGETS)
def test_there_and_back_is_the_same_file(text: str, target: str) -> None:
    there, _changes = repoint(text, MEMBERS, target)
    assert repoint(there, MEMBERS, "pg1")[0] == text


@given(files(lines()), TARGETS)
def test_a_password_is_never_told(text: str, target: str) -> None:
    for change in repoint(text, MEMBERS, target)[1]:
        assert set(change) == {"database", "before", "after"}
        assert not any("password" in value or "'" in value for value in change.values())


# -- what a console says


def test_a_stats_user_is_no_admin() -> None:
    state = PoolerState("PgBouncer 1.18.0", (), (), {"admin_users": "ann, bob", "so_reuseport": "1"})
    assert [state.is_admin(user) for user in ("ann", "bob", "pgbouncer", "carl", "")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert state.version_number == (1, 18)
    assert state.shares_port


def test_who_follows_the_primary() -> None:
    """Without names whoever leads to a member; else those that are named, wherever they lead."""
    databases = [
        PooledDatabase(name, host, 5432, "a", "transaction", 0, paused=False, disabled=False)
        for name, host in (("a", "10.0.0.1"), ("a_ro", "10.0.0.2"), ("b", "192.0.2.9"))
    ]

    def names(*given: str) -> list[str]:
        return [database.name for database in following(databases, MEMBERS.values(), given)]

    assert names() == ["a", "a_ro"]
    assert names("a", "c") == ["a"]
    assert names("b") == ["b"]


def test_a_database_that_is_not_named_stays_as_it_is() -> None:
    text = "[databases]\na = host=10.0.0.1\na_ro = host=10.0.0.3\nlist = host=10.0.0.3,10.0.0.1\n"
    files = read_config("/x.ini", {"/x.ini": text}.__getitem__)
    texts, changes = repoint_files(files, MEMBERS, "pg2", names=["a"])
    assert texts["/x.ini"].splitlines()[2:] == text.splitlines()[2:]
    assert [change["database"] for change in changes] == ["a"]


def test_paused_is_not_drained() -> None:
    database = PooledDatabase("a", "10.0.0.1", 5432, "a", "transaction", 1, paused=True, disabled=False)
    assert not database.drained


# -- the dead-man

SIGHTINGS = st.lists(
    st.builds(
        Sighting, name=st.sampled_from(["pg1", "pg2", "pg3"]), writable=st.booleans(), timeline=st.integers(0, 4)
    ),
    max_size=3,
    unique_by=lambda sighting: sighting.name,
)
BEST = st.one_of(
    st.none(), st.builds(Sighting, name=st.just("pg2"), writable=st.just(True), timeline=st.integers(1, 4))
)
HARD = 60_000


@given(SIGHTINGS, st.integers(0, 2 * HARD), BEST)
def test_it_never_goes_to_an_old_primary(seen: list[Sighting], paused: int, best: Sighting | None) -> None:
    verdict = deadman_decision(seen, paused, HARD, best)
    newest = max(sighting.timeline for sighting in [*seen, *([best] if best else []), Sighting("", False, 0)])
    if verdict.target:
        assert verdict.resume
        assert any(
            item.name == verdict.target and item.writable and item.timeline == newest
            for item in [*seen, *([best] if best else [])]
        )


@given(SIGHTINGS, st.integers(0, HARD - 1), BEST)
def test_before_the_hard_limit_it_acts_only_on_one_clear_primary(
    seen: list[Sighting], paused: int, best: Sighting | None
) -> None:
    newest = max(sighting.timeline for sighting in [*seen, *([best] if best else []), Sighting("", False, 0)])
    clear = [sighting.name for sighting in seen if sighting.writable and sighting.timeline == newest]
    verdict = deadman_decision(seen, paused, HARD, best)
    assert verdict.resume == (len(clear) == 1)
    assert verdict.target == (clear[0] if len(clear) == 1 else "")


@given(SIGHTINGS, st.integers(HARD, 2 * HARD), BEST)
def test_past_the_hard_limit_clients_are_let_go(seen: list[Sighting], paused: int, best: Sighting | None) -> None:
    assert deadman_decision(seen, paused, HARD, best).resume


@given(SIGHTINGS.filter(bool), st.integers(0, 2 * HARD), BEST)
def test_while_a_run_holds_the_lease_it_waits_until_the_hard_limit(
    seen: list[Sighting], paused: int, best: Sighting | None
) -> None:
    leased = [replace(seen[0], leased=True), *seen[1:]]
    verdict = deadman_decision(leased, paused, HARD, best)
    if paused < HARD:
        assert verdict == Verdict(False, "", f"a run holds the lease on {seen[0].name}")
    else:
        assert verdict == deadman_decision(seen, paused, HARD, best)


def test_a_candidate_that_vanished_after_its_promotion_keeps_the_clients() -> None:
    old, promoted = Sighting("pg1", True, 1), Sighting("pg2", True, 2)
    assert not deadman_decision([old], HARD - 1, HARD, promoted).resume
    assert deadman_decision([old], HARD, HARD, promoted).target == "pg2"
