# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a switchover has to name. The lines of a crontab may hold secrets, so only their numbers are printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.catalog import NodeFacts
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.follow_up import TOOLS, cron_lines, follow_up
from hypothesis import given
from hypothesis import strategies as st

DATA = Path("/data/15")
CRONTAB = """\
# pg_dump every night
MAILTO=dba@example.org

0 3 * * * postgres PGPASSWORD=canary-secret pg_dump accounts > /backup/x
  # psql
*/5 * * * * root /usr/local/bin/clean /tmp
0 4 * * * root tar c /data/15 | ssh backup@example.org
"""


def primary(settings: dict[str, str] | None = None, *, cron_jobs: int = 0) -> NodeFacts:
    return NodeFacts("pg1", settings=settings or {}, cron_jobs=cron_jobs)


def test_lines_with_a_tool_or_the_data_directory_are_found_by_number() -> None:
    assert cron_lines(CRONTAB, (*TOOLS, str(DATA))) == [4, 7]
    assert cron_lines(CRONTAB, TOOLS) == [4]
    assert cron_lines("", TOOLS) == []


def test_words_are_words_and_no_patterns() -> None:
    assert cron_lines("a.b\naxb\n", ["a.b", ""]) == [1]


@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Zl", "Zp"]))), st.sampled_from(TOOLS))
def test_a_comment_is_never_found_and_a_job_always(lines: list[str], tool: str) -> None:
    commented = [f"#{line} {tool}" for line in lines]
    jobs = [f"@daily {line} {tool}" for line in lines]
    assert cron_lines("\n".join(commented + jobs), TOOLS) == list(range(len(lines) + 1, 2 * len(lines) + 1))


def test_file_and_line_are_named_and_nothing_of_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "cron.d").mkdir()
    (tmp_path / "cron.d" / "subdirectory").mkdir()
    (tmp_path / "cron.d" / "backup").write_text(CRONTAB)
    (tmp_path / "crontab").write_bytes(b"* * * * * \xff psql canary-secret\n")
    places = [str(tmp_path / name) for name in ("crontab", "cron.d", "nowhere")]
    named = follow_up(primary(), data_dir=DATA, places=places)
    assert [sentence.split(" on the host of pg1")[0] for sentence in named] == [
        f"{tmp_path}/crontab line 1",
        f"{tmp_path}/cron.d/backup line 4",
        f"{tmp_path}/cron.d/backup line 7",
    ]
    assert "canary-secret" not in " ".join(named)
    assert "accounts" not in " ".join(named)


def test_a_cluster_without_jobs_has_nothing_to_follow_up() -> None:
    assert follow_up(primary({"archive_command": "cp %p /a/%f"}), data_dir=DATA, places=()) == []


def test_jobs_of_pg_cron_are_counted() -> None:
    assert follow_up(primary(cron_jobs=3), data_dir=DATA, places=())[0].startswith("3 jobs of pg_cron")


@pytest.mark.parametrize(
    ("settings", "tool"),
    [
        ({"archive_command": "pgbackrest --pass=canary-secret archive-push %p"}, "pgbackrest"),
        ({"archive_command": "barman-wal-archive host pg1 %p"}, "barman"),
        ({"archive_command": "/usr/bin/wal-g wal-push %p"}, "wal-g"),
        ({"archive_command": "", "archive_library": "wal_g"}, "wal_g"),
    ],
)
def test_the_tool_that_archives_is_named_and_its_command_is_not(settings: dict[str, str], tool: str) -> None:
    [named] = follow_up(primary(settings), data_dir=DATA, places=())
    assert f"with {tool}:" in named
    assert "canary-secret" not in named
