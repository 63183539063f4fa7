# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shutdown checkpoints on every kind of boundary, as real primaries wrote and real standbys replayed them.

The WAL pages and the numbers expected of them come from tests/unit/fixtures/build_wal_fixtures.py.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import wal
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.control import (
    ControlFile,
    crc32c,
    parse_control,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.lsn import parse_lsn, wal_segment_name
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.timelines import history_switchpoint
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.wal import (
    ShutdownCheckpoint,
    read_shutdown_checkpoint,
    record_after,
    shutdown_checkpoint_ending_at,
)
from hypothesis import given
from hypothesis import strategies as st

FIXTURES = Path(__file__).parents[3] / "fixtures"
MAJORS = (13, 14, 15, 16, 17, 18)
PAGE, SEGMENT = 8192, 1 << 20
Pages = dict[int, bytes]


def decode(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def pages_of(texts: dict[str, str]) -> Pages:
    return {int(at): decode(text) for at, text in texts.items()}


class Case:
    """One clean stop of a primary: what lay in pg_wal, and what the servers said of it."""

    def __init__(self, answer: dict[str, Any]) -> None:
        control = parse_control(decode(answer["control"]))
        assert control is not None
        self.control: ControlFile = control
        self.start: int = answer["start"]
        self.end: int = answer["end"]
        self.pages = pages_of(answer["pages"])
        self.standby_pages = {**self.pages, **pages_of(answer["standby_pages"])}
        self.pages_after_restart = pages_of(answer["pages_after_restart"])
        self.history: str | None = answer.get("history")
        self.pg_waldump: str | None = answer.get("pg_waldump")

    @property
    def expected(self) -> ShutdownCheckpoint:
        time = self.control.checkpoint_time  # test_control.py compares it with pg_controldata and SQL
        return ShutdownCheckpoint(self.start, self.end, timeline=1, prev_timeline=1, redo_lsn=self.start, time=time)


@cache
def cases(major: int) -> dict[str, Case]:
    answers = json.loads((FIXTURES / f"wal_{major}.json").read_text())["cases"]
    return {name: Case(answer) for name, answer in answers.items()}


def data_directory(where: Path, pages: Pages) -> Path:
    """A pg_wal with these pages; the rest of each segment is a hole."""
    (where / "pg_wal").mkdir(exist_ok=True)
    for at, content in pages.items():
        segment = where / "pg_wal" / wal_segment_name(1, at, SEGMENT)
        segment.touch()
        with segment.open("r+b") as file:
            file.truncate(SEGMENT)
            file.seek(at % SEGMENT)
            file.write(content)
    return where


ALL = [(major, name) for major in MAJORS for name in cases(major)]
each_case = pytest.mark.parametrize(("major", "name"), ALL, ids=[f"{major} {name}" for major, name in ALL])


def test_every_boundary_was_really_met() -> None:
    for major in MAJORS:
        found = cases(major)
        assert len(found) == 13
        assert found["ends_with_page"].end % PAGE == 0
        assert found["ends_with_segment"].end % SEGMENT == 0
        assert [name for name, case in found.items() if case.end // PAGE > case.start // PAGE and case.end % PAGE] == [
            "body_crosses_page",
            "body_crosses_segment",
            "header_crosses_page",
            "header_crosses_segment",
            "length_alone_in_segment",
            "length_alone_on_page",
            "two_bytes_cross_page",
        ]


@each_case
def test_primary_knows_its_shutdown_checkpoint(tmp_path: Path, major: int, name: str) -> None:
    case = cases(major)[name]
    data_dir = data_directory(tmp_path, case.pages)
    assert read_shutdown_checkpoint(data_dir, case.control) == case.expected
    assert not record_after(data_dir, case.control, case.expected)


@each_case
def test_standby_recognises_what_it_replayed_last(tmp_path: Path, major: int, name: str) -> None:
    case = cases(major)[name]
    data_dir = data_directory(tmp_path, case.standby_pages)
    found = shutdown_checkpoint_ending_at(data_dir, case.control, timeline=1, end_lsn=case.end)
    assert found == case.expected
    assert not record_after(data_dir, case.control, case.expected)


@each_case
def test_a_primary_that_wrote_on_is_noticed(tmp_path: Path, major: int, name: str) -> None:
    case = cases(major)[name]
    data_dir = data_directory(tmp_path, case.pages_after_restart)
    assert record_after(data_dir, case.control, case.expected)


@each_case
def test_promotion_forks_at_the_end_of_the_record(major: int, name: str) -> None:
    case = cases(major)[name]
    if case.history is None:
        assert name not in ("ends_with_page", "ends_with_segment"), "these have to be promoted"
    else:
        assert history_switchpoint(case.history, 1) == case.end


@each_case
def test_pg_waldump_of_the_same_major_agrees(major: int, name: str) -> None:
    case = cases(major)[name]
    if case.pg_waldump is None:
        assert major not in (15, 18), "pg_waldump exists for these"
    else:
        found = re.findall(r"lsn: (\S+), .*desc: CHECKPOINT_SHUTDOWN redo (\S+);", case.pg_waldump)
        assert [(parse_lsn(start), parse_lsn(redo)) for start, redo in found] == [(case.start, case.start)]


@pytest.mark.parametrize("major", MAJORS)
def test_a_whole_record_of_a_recycled_segment_is_no_successor(tmp_path: Path, major: int) -> None:
    case = cases(major)["before_a_recycled_record"]
    data_dir = data_directory(tmp_path, case.standby_pages)
    left_over = wal._Wal(data_dir, case.control, 1).record_at(case.end)
    assert left_over.prev_lsn < case.start - SEGMENT, "the trap is set: it is valid, and of long ago"
    assert not record_after(data_dir, case.control, case.expected)


def record_bytes(case: Case) -> list[tuple[int, int]]:
    """Page and offset of each byte of the record."""
    found: list[tuple[int, int]] = []
    at = case.start
    while len(found) < 114:
        if at % PAGE == 0:
            at += 40 if at % SEGMENT == 0 else 24
        found.append((at // PAGE * PAGE, at % PAGE))
        at += 1
    return found


@given(st.sampled_from(ALL), st.integers(0, 113), st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(where: tuple[int, str], byte: int, bit: int) -> None:
    case = cases(where[0])[where[1]]
    page, offset = record_bytes(case)[byte]
    damaged = bytearray(case.pages[page])
    damaged[offset] ^= 1 << bit
    with tempfile.TemporaryDirectory() as directory:
        data_dir = data_directory(Path(directory), {**case.pages, page: bytes(damaged)})
        with pytest.raises(DbopsError, match="do not promote"):
            read_shutdown_checkpoint(data_dir, case.control)
        assert shutdown_checkpoint_ending_at(data_dir, case.control, timeline=1, end_lsn=case.end) is None


@given(st.sampled_from(ALL), st.integers(-3000, 3000).filter(bool))
def test_no_other_position_passes_for_the_end(where: tuple[int, str], distance: int) -> None:
    case = cases(where[0])[where[1]]
    with tempfile.TemporaryDirectory() as directory:
        data_dir = data_directory(Path(directory), case.pages)
        for neighbour in (case.start - SEGMENT, case.end + SEGMENT):
            (data_dir / "pg_wal" / wal_segment_name(1, neighbour, SEGMENT)).touch()
        assert shutdown_checkpoint_ending_at(data_dir, case.control, timeline=1, end_lsn=case.end + distance) is None


@pytest.mark.parametrize(("name", "header"), [("ends_with_page", 24), ("ends_with_segment", 40)])
def test_the_insert_position_behind_a_page_header_is_no_end(tmp_path: Path, name: str, header: int) -> None:
    """``pg_current_wal_insert_lsn()`` would say this; ``pg_last_wal_replay_lsn()`` never does."""
    case = cases(18)[name]
    data_dir = data_directory(tmp_path, case.pages)
    assert shutdown_checkpoint_ending_at(data_dir, case.control, timeline=1, end_lsn=case.end + header) is None


def forged(case: Case, offset: int, content: bytes) -> Pages:
    """The record with other bytes and the CRC that fits them. For a record within one page."""
    page, at = case.start // PAGE * PAGE, case.start % PAGE
    record = bytearray(case.pages[page][at : at + 114])
    record[offset : offset + len(content)] = content
    record[20:24] = crc32c(bytes(record[24:] + record[:20])).to_bytes(4, "little")
    return {**case.pages, page: case.pages[page][:at] + bytes(record) + case.pages[page][at + 114 :]}


@pytest.mark.parametrize(
    ("offset", "content", "found"),
    [
        (16, b"\x10", "is a checkpoint of a running server"),
        (16, b"\x90", "is not a checkpoint"),  # end of recovery
        (17, b"\x01", "is not a checkpoint"),  # another resource manager
        (26, bytes(8), "has redo 0/0"),
        (34, b"\x02", "timeline 2"),
    ],
)
def test_other_records_are_refused(tmp_path: Path, offset: int, content: bytes, found: str) -> None:
    case = cases(18)["inside"]
    data_dir = data_directory(tmp_path, forged(case, offset, content))
    with pytest.raises(DbopsError, match=found):
        read_shutdown_checkpoint(data_dir, case.control)
    assert shutdown_checkpoint_ending_at(data_dir, case.control, timeline=1, end_lsn=case.end) is None


@pytest.mark.parametrize(
    ("offset", "content", "found"),
    [
        (0, b"\x19\xd1", "unknown magic D119"),
        (2, b"\x02\x00", "is not continued"),  # no longer marked as a continuation
        (2, b"\x01\x00", "wrong kind of header"),
        (4, b"\x02", "of timeline 2"),
        (8, bytes(8), "recycled file"),
        (16, b"\x01", "is not continued"),
        (24, bytes(8), "another cluster"),
    ],
)
def test_page_headers_are_checked(tmp_path: Path, offset: int, content: bytes, found: str) -> None:
    case = cases(15)["body_crosses_segment"]
    page = case.end // PAGE * PAGE
    damaged = case.pages[page][:offset] + content + case.pages[page][offset + len(content) :]
    data_dir = data_directory(tmp_path, {**case.pages, page: damaged})
    with pytest.raises(DbopsError, match=found):
        read_shutdown_checkpoint(data_dir, case.control)


@pytest.mark.parametrize("state", ["in production", "shutting down", "shut down in recovery"])
def test_only_a_clean_stop_counts(tmp_path: Path, state: str) -> None:
    case = cases(18)["inside"]
    data_dir = data_directory(tmp_path, case.pages)
    with pytest.raises(DbopsError, match=f'says "{state}".*fast shutdown'):
        read_shutdown_checkpoint(data_dir, replace(case.control, state=state))


@pytest.mark.parametrize("offset", [0, 8, 4, PAGE - 4])
def test_a_position_where_no_record_begins_is_refused(tmp_path: Path, offset: int) -> None:
    case = cases(18)["inside"]
    data_dir = data_directory(tmp_path, case.pages)
    start = case.start // PAGE * PAGE + offset
    with pytest.raises(DbopsError, match="begins where none can begin"):
        read_shutdown_checkpoint(data_dir, replace(case.control, checkpoint_lsn=start))


def test_a_truncated_segment_is_refused(tmp_path: Path) -> None:
    case = cases(18)["inside"]
    data_dir = data_directory(tmp_path, case.pages)
    with (data_dir / "pg_wal" / wal_segment_name(1, case.start, SEGMENT)).open("r+b") as segment:
        segment.truncate(case.start % SEGMENT + 100)
    with pytest.raises(DbopsError, match="does not hold whole"):
        read_shutdown_checkpoint(data_dir, case.control)


@pytest.mark.parametrize("name", ["inside", "body_crosses_segment"])
def test_a_missing_segment_is_an_error_and_not_an_answer(tmp_path: Path, name: str) -> None:
    case = cases(18)[name]
    data_dir = data_directory(tmp_path, case.pages)
    (data_dir / "pg_wal" / wal_segment_name(1, case.end, SEGMENT)).unlink()
    with pytest.raises(DbopsError, match="No such file"):
        read_shutdown_checkpoint(data_dir, case.control)
    with pytest.raises(DbopsError, match="No such file"):
        shutdown_checkpoint_ending_at(data_dir, case.control, timeline=1, end_lsn=case.end)


def test_nothing_follows_where_the_next_segment_was_never_made(tmp_path: Path) -> None:
    case = cases(18)["ends_with_segment"]
    data_dir = data_directory(tmp_path, {at: page for at, page in case.pages.items() if at < case.end})
    assert not record_after(data_dir, case.control, case.expected)


def test_an_unreadable_segment_is_no_proof_that_nothing_follows(tmp_path: Path) -> None:
    case = cases(18)["ends_with_segment"]
    data_dir = data_directory(tmp_path, {at: page for at, page in case.pages.items() if at < case.end})
    (data_dir / "pg_wal" / wal_segment_name(1, case.end, SEGMENT)).mkdir()
    with pytest.raises(DbopsError, match="cannot read"):
        record_after(data_dir, case.control, case.expected)
