# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_control against what real servers of every major said of the same bytes (tests/unit/fixtures)."""

from __future__ import annotations

import base64
import json
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import control
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.control import (
    crc32c,
    parse_control,
    read_control,
)
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.lsn import format_lsn
from hypothesis import given
from hypothesis import strategies as st

FIXTURES = Path(__file__).parents[3] / "fixtures"
MAJORS = (13, 14, 15, 16, 17, 18)


def controls(major: int) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = json.loads((FIXTURES / f"wal_{major}.json").read_text())["controls"]
    return [{**answer, "bytes": zlib.decompress(base64.b64decode(answer["bytes"]))} for answer in answers]


CONTROLS = [(major, answer) for major in MAJORS for answer in controls(major)]
NAMES = [f"{major} {answer['fields']['state']}" for major, answer in CONTROLS]
BYTES = {(major, answer["fields"]["state"]): answer["bytes"] for major, answer in CONTROLS}


def data_directory(where: Path, content: bytes) -> Path:
    (where / "global").mkdir()
    (where / "global" / "pg_control").write_bytes(content)
    return where


def test_every_state_of_every_major_was_recorded() -> None:
    states = ("in production", "in archive recovery", "shut down", "shut down in recovery")
    assert sorted(BYTES) == sorted((major, state) for major in MAJORS for state in states)


@pytest.mark.parametrize(("major", "answer"), CONTROLS, ids=NAMES)
def test_every_field_is_what_the_server_says(major: int, answer: dict[str, Any]) -> None:
    parsed = parse_control(answer["bytes"])
    assert parsed is not None
    assert {name: getattr(parsed, name) for name in answer["fields"]} == answer["fields"]


DUMPED = [(major, answer) for major, answer in CONTROLS if "pg_controldata" in answer]


@pytest.mark.parametrize(("major", "answer"), DUMPED, ids=[str(major) for major, _answer in DUMPED])
def test_pg_controldata_of_the_same_major_agrees(major: int, answer: dict[str, Any]) -> None:
    parsed = parse_control(answer["bytes"])
    assert parsed is not None
    printed = {
        label.strip(): value.strip()
        for label, _colon, value in (line.partition(":") for line in answer["pg_controldata"].splitlines())
    }

    def moment(seconds: int) -> str:
        return datetime.fromtimestamp(seconds, UTC).strftime("%a %b %e %H:%M:%S %Y")

    def on(flag: bool) -> str:
        return "on" if flag else "off"

    ours = {
        "Database system identifier": parsed.system_identifier,
        "pg_control version number": parsed.pg_control_version,
        "Catalog version number": parsed.catalog_version,
        "Database cluster state": parsed.state,
        "pg_control last modified": moment(parsed.written_at),
        "Latest checkpoint location": format_lsn(parsed.checkpoint_lsn),
        "Latest checkpoint's REDO location": format_lsn(parsed.redo_lsn),
        "Latest checkpoint's TimeLineID": parsed.timeline,
        "Latest checkpoint's PrevTimeLineID": parsed.prev_timeline,
        "Time of latest checkpoint": moment(parsed.checkpoint_time),
        "Minimum recovery ending location": format_lsn(parsed.min_recovery_point),
        "Min recovery ending loc's timeline": parsed.min_recovery_point_timeline,
        "wal_level setting": parsed.wal_level,
        "wal_log_hints setting": on(parsed.wal_log_hints),
        "max_connections setting": parsed.max_connections,
        "max_worker_processes setting": parsed.max_worker_processes,
        "max_wal_senders setting": parsed.max_wal_senders,
        "max_prepared_xacts setting": parsed.max_prepared_transactions,
        "max_locks_per_xact setting": parsed.max_locks_per_transaction,
        "track_commit_timestamp setting": on(parsed.track_commit_timestamp),
        "WAL block size": parsed.wal_block_size,
        "Bytes per WAL segment": parsed.wal_segment_size,
        "Data page checksum version": parsed.data_checksum_version,
    }
    assert {label: str(value) for label, value in ours.items()} == {label: printed[label] for label in ours}


def test_crc32c_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283


STRUCT_SIZES = {major: 296 if major == 18 else 292 for major in MAJORS}  # CRC included


@given(st.sampled_from(MAJORS).flatmap(lambda m: st.tuples(st.just(m), st.integers(0, STRUCT_SIZES[m] * 8 - 1))))
def test_no_flipped_bit_goes_unnoticed(where: tuple[int, int]) -> None:
    major, bit = where
    damaged = bytearray(BYTES[major, "shut down"])
    damaged[bit // 8] ^= 1 << bit % 8
    if 8 <= bit // 8 < 12:
        with pytest.raises(DbopsError, match="pg_control_version"):
            parse_control(bytes(damaged))
    else:
        assert parse_control(bytes(damaged)) is None


@given(st.sampled_from(MAJORS), st.integers(0, 512), st.booleans())
def test_half_of_one_and_half_of_another_is_neither(major: int, cut: int, swapped: bool) -> None:
    one, other = BYTES[major, "in production"], BYTES[major, "shut down"]
    if swapped:
        one, other = other, one
    assert parse_control(one[:cut] + other[cut:]) in (None, parse_control(one), parse_control(other))


@given(st.sampled_from(MAJORS), st.integers(0, 287))
def test_a_short_file_is_not_read(major: int, size: int) -> None:
    assert parse_control(BYTES[major, "shut down"][:size]) is None


def test_a_torn_read_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intact = BYTES[18, "shut down"]
    torn = BYTES[18, "in production"][:100] + intact[100:]
    assert parse_control(torn) is None
    data_dir = data_directory(tmp_path, torn)
    monkeypatch.setattr(time, "sleep", lambda _seconds: (data_dir / "global" / "pg_control").write_bytes(intact))
    assert read_control(data_dir, Clock()) == parse_control(intact)


def test_a_damaged_file_is_given_up(tmp_path: Path) -> None:
    intact = BYTES[15, "shut down"]
    data_dir = data_directory(tmp_path, intact[:20] + b"\xff" + intact[21:])
    with pytest.raises(DbopsError, match="does not match its CRC"):
        read_control(data_dir, Clock())


def test_a_missing_file_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DbopsError, match=r"No such file.*check data_dir"):
        read_control(tmp_path, Clock())


@pytest.mark.parametrize("version", [1201, 1900, int.from_bytes((1800).to_bytes(4, "big"), "little")])
def test_other_versions_and_byte_orders_are_refused(tmp_path: Path, version: int) -> None:
    intact = BYTES[18, "shut down"]
    data_dir = data_directory(tmp_path, intact[:8] + version.to_bytes(4, "little") + intact[12:])
    with pytest.raises(DbopsError, match=f"pg_control_version {version}.*13 to 18"):
        read_control(data_dir, Clock())


def test_words_for_states_are_those_of_pg_controldata() -> None:
    assert (control.SHUT_DOWN, control.IN_PRODUCTION) == ("shut down", "in production")
    assert (control.IN_ARCHIVE_RECOVERY, control.SHUT_DOWN_IN_RECOVERY) == (
        "in archive recovery",
        "shut down in recovery",
    )
