# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""synchronous_standby_names as a value. What the server takes is asked of a real one."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.sync_names import SyncRule, parse_sync_rule
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.binaries import binaries
from tests.lab.users import make_directory, run_as, server_owner, write_file

# Names collide often, also by case, as in real lists.
NAMES = st.sampled_from(["pg1", "PG1", "pg2", "pg-3", "*", "first", "ANY", 'a "b"', "a, b", "(", "1"]) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8
)
RULES = st.builds(
    SyncRule,
    st.sampled_from(["FIRST", "ANY"]),
    st.integers(min_value=1, max_value=5),
    st.lists(NAMES, min_size=1, max_size=5).map(tuple),
)

TAKEN = {
    "pg1": "FIRST 1 (pg1)",
    " pg1 , pg2 ": "FIRST 1 (pg1, pg2)",
    "PG1": 'FIRST 1 ("PG1")',
    "*": "FIRST 1 (*)",
    "2 (pg1, pg2, pg3)": "FIRST 2 (pg1, pg2, pg3)",
    "first 1 (a)": "FIRST 1 (a)",
    "Any 2(a,*)": "ANY 2 (a, *)",
    '"pg-1", "any"': 'FIRST 1 ("pg-1", "any")',
    '2 ("a ""b""", "c, d", "(")': 'FIRST 2 ("a ""b""", "c, d", "(")',
    "2 (1, 2)": 'FIRST 2 ("1", "2")',
    '""': 'FIRST 1 ("")',
    "größe": 'FIRST 1 ("größe")',
}
REFUSED = [
    "a b",
    "a,,b",
    "1 2",
    "()",
    "2 ()",
    "FIRST (a)",
    "ANY (a, b)",
    "MOST 1 (a)",
    "FIRST 1 (a",
    "2 (a) b",
    "2 (a(b)",
    "a, 2 (b)",
    '"a',
    'a"',
    "x (a)",
    ",",
    "a b ,",
    ", a b",
    "2 (a b ,)",
    "2 (a,(,b)",
    "0 (a)",
    "-1 (a)",
    "+1 (a)",
    "1_0 (a)",
    '"2" (a)',
    "pg-1",
    "a.b",
    "first",
    "any",
]


@pytest.fixture(scope="module")
def server_takes() -> Iterator[Callable[[str], bool]]:
    """Asks ``postgres -C``, which reads the list as a start of the server would."""
    owner = server_owner()
    with tempfile.TemporaryDirectory() as scratch:
        data = make_directory(Path(scratch), owner, 0o700)
        write_file(data / "postgresql.conf", "", owner)

        def takes(text: str) -> bool:
            words = ["-D", str(data), "-C", "synchronous_standby_names", "-c", f"synchronous_standby_names={text}"]
            argv = [str(binaries("18") / "postgres"), *words]
            done = subprocess.run(argv, capture_output=True, check=False, timeout=30, cwd=data, **run_as(owner))
            return done.returncode == 0

        yield takes


@pytest.mark.parametrize(("text", "normal"), TAKEN.items())
def test_a_list_is_read_as_the_server_reads_it(text: str, normal: str, server_takes: Callable[[str], bool]) -> None:
    assert server_takes(text)
    assert server_takes(normal)
    assert str(parse_sync_rule(text)) == normal


@pytest.mark.parametrize("text", REFUSED)
def test_what_the_server_refuses_is_refused(text: str, server_takes: Callable[[str], bool]) -> None:
    assert not server_takes(text)
    with pytest.raises(ValueError):  # noqa: PT011 - int() words one of them
        parse_sync_rule(text)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_list_is_no_rule(text: str) -> None:
    assert parse_sync_rule(text) is None


@given(RULES)
def test_what_is_written_is_read(rule: SyncRule) -> None:
    assert parse_sync_rule(str(rule)) == rule


@settings(max_examples=25, deadline=None)
@given(rule=RULES)
def test_what_is_written_the_server_takes(server_takes: Callable[[str], bool], rule: SyncRule) -> None:
    assert server_takes(str(rule))


@given(RULES, NAMES, NAMES)
def test_renaming_keeps_number_and_method_and_lists_no_name_twice(rule: SyncRule, old: str, new: str) -> None:
    renamed = rule.renamed(old, new)
    assert (renamed.method, renamed.number) == (rule.method, rule.number)
    lower = [name.lower() for name in renamed.names]
    assert len(set(lower)) == len(lower)
    before = {name.lower() for name in rule.names}
    expected = before - {old.lower()} | {new.lower()} if old.lower() in before else before
    assert set(lower) == expected


def test_an_asterisk_is_everybody() -> None:
    assert SyncRule("ANY", 2, ("*",)).missing(("pg1", "pg3")) == 0
    assert SyncRule("ANY", 2, ("pg1",)).missing(("pg1", "pg3")) == 1


def test_renaming_keeps_the_order_because_first_means_it() -> None:
    assert SyncRule("FIRST", 1, ("pg2", "pg3")).renamed("PG2", "pg1") == SyncRule("FIRST", 1, ("pg1", "pg3"))
    assert SyncRule("FIRST", 1, ("pg1", "pg3", "pg2")).renamed("pg2", "pg1") == SyncRule("FIRST", 1, ("pg1", "pg3"))


@given(RULES, st.lists(NAMES, max_size=6))
def test_missing_is_how_many_more_listed_standbys_are_needed(rule: SyncRule, standbys: list[str]) -> None:
    listed = [name for name in standbys if "*" in rule.names or name.lower() in [known.lower() for known in rule.names]]
    assert rule.missing(standbys) == max(0, rule.number - len(listed))
    assert (rule.missing(standbys) == 0) == (len(listed) >= rule.number)
    more = [*standbys, *[rule.names[0]] * rule.missing(standbys)]
    assert rule.missing(more) == 0
