# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal and the lock: what is left of a run that died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._core.journal import (
    Journal,
    LockFile,
    make_state_directory,
    open_operation,
    params_hash,
    read_journal,
)
from hypothesis import given
from hypothesis import strategies as st

CORE = "ansible_collections.stateful.dbops.plugins.module_utils._core"
OPENED = ("operation", "opened")
CLOSED = ("operation", "closed")


def journal(directory: Path, clock: Clock, operation: str = "op1") -> Journal:
    return Journal(directory / f"{operation}.jsonl", operation=operation, clock=clock, fingerprint="f")


def write(directory: Path, clock: Clock, operation: str, *events: tuple[str, str]) -> Path:
    made = journal(directory, clock, operation)
    for step, event in events:
        made.append(step, event)
    made.close()
    return made.path


def child(script: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def events(path: Path) -> list[tuple[str, str]]:
    return [(record["step"], record["event"]) for record in read_journal(path)]


def test_a_line_says_who_when_what(tmp_path: Path, clock: Clock) -> None:
    made = journal(tmp_path, clock)
    made.append("stop", "start", plan={"candidate": "pg2"})
    clock.sleep(1.5)
    made.append("stop", "done", durable=False)
    made.close()
    assert read_journal(made.path) == [
        {"v": 1, "op": "op1", "seq": 1, "t": 1700001000.0, "step": "stop", "event": "start", "params_hash": "f",
         "data": {"plan": {"candidate": "pg2"}}},
        {"v": 1, "op": "op1", "seq": 2, "t": 1700001001.5, "step": "stop", "event": "done", "params_hash": "f",
         "data": {}},
    ]  # fmt: skip
    assert made.path.stat().st_mode & 0o777 == 0o600


def test_only_durable_lines_are_synced(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    made = journal(tmp_path, clock)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _file: synced.append(len(read_journal(made.path))))
    made.append("stop", "note")
    made.append("stop", "note", durable=False)
    made.append("stop", "note", durable=True)
    made.close()
    assert synced == [1, 3]


@given(value=st.text() | st.dictionaries(st.text(), st.text()))
def test_whatever_a_line_holds_it_stays_one_line(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    made = journal(tmp_path_factory.mktemp("journal"), Clock())
    made.append("stop", "note", value=value)
    made.append("stop", "done")
    made.close()
    records = read_journal(made.path)
    assert [record["event"] for record in records] == ["note", "done"]
    assert records[0]["data"]["value"] == value


def test_a_torn_last_line_is_left_out_wherever_it_was_torn(tmp_path: Path, clock: Clock) -> None:
    path = write(tmp_path, clock, "op1", OPENED, ("stop", "start"))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert events(path) == [OPENED]
    path.write_bytes(whole[:first] + b"\0" * 512)  # what ext4 may leave of a block that was never written
    assert events(path) == [OPENED]


def test_a_run_that_goes_on_after_a_torn_line_is_read(tmp_path: Path, clock: Clock) -> None:
    path = write(tmp_path, clock, "op1", OPENED, ("promote", "start"))
    path.write_bytes(path.read_bytes()[:-20])
    write(tmp_path, clock, "op1", ("operation", "resumed"), CLOSED)
    assert events(path) == [OPENED, ("operation", "resumed"), CLOSED]
    assert open_operation(tmp_path) == []


def test_there_is_no_open_operation_in_an_empty_directory(tmp_path: Path) -> None:
    assert open_operation(tmp_path) == []


def test_the_newest_operation_is_the_open_one(tmp_path: Path, clock: Clock) -> None:
    write(tmp_path, clock, "20260101000000_aaaaaa", OPENED, CLOSED)
    write(tmp_path, clock, "20260102000000_aaaaaa", OPENED, ("stop", "start"))
    assert [record["op"] for record in open_operation(tmp_path)] == ["20260102000000_aaaaaa"] * 2


def test_an_operation_that_was_closed_is_over_and_so_is_what_was_before_it(tmp_path: Path, clock: Clock) -> None:
    write(tmp_path, clock, "20260101000000_aaaaaa", OPENED)
    write(tmp_path, clock, "20260102000000_aaaaaa", OPENED, CLOSED)
    assert open_operation(tmp_path) == []


def test_a_run_killed_before_its_first_line_hides_nothing(tmp_path: Path, clock: Clock) -> None:
    write(tmp_path, clock, "20260101000000_aaaaaa", OPENED)
    write(tmp_path, clock, "20260102000000_aaaaaa")
    assert [record["op"] for record in open_operation(tmp_path)] == ["20260101000000_aaaaaa"]


@pytest.mark.parametrize(
    ("failpoint", "left"),
    [
        ("stop:before", [OPENED, ("stop", "start")]),
        ("stop:after", [OPENED, ("stop", "start")]),
        ("prove:before", [OPENED, ("stop", "start"), ("stop", "done"), ("prove", "start")]),
        ("other:before", [OPENED, ("stop", "start"), ("stop", "done"), ("prove", "start"), ("prove", "done")]),
    ],
)
def test_a_failpoint_kills_where_it_says(tmp_path: Path, failpoint: str, left: list[tuple[str, str]]) -> None:
    script = f"""
from pathlib import Path
from {CORE}.clock import Clock
from {CORE}.journal import Journal
journal = Journal(Path({str(tmp_path / "op1.jsonl")!r}), operation="op1", clock=Clock())
journal.append("operation", "opened")
for step in ("stop", "prove"):
    journal.append(step, "start")
    Path({str(tmp_path)!r}, step).touch()
    journal.append(step, "done")
"""
    with child(script, DBOPS_FAILPOINT=failpoint) as process:
        process.communicate(timeout=30)
    assert process.returncode == (0 if failpoint == "other:before" else -signal.SIGKILL)
    assert events(tmp_path / "op1.jsonl") == left
    # Before: the step has done nothing yet. After: it has done all, and the journal does not know.
    assert (tmp_path / "stop").exists() == (failpoint != "stop:before")


def test_a_state_directory_is_private(tmp_path: Path) -> None:
    made = tmp_path / "dbops" / "accounts"
    make_state_directory(made)
    assert made == tmp_path / "dbops" / "accounts"
    assert made.stat().st_mode & 0o777 == 0o700
    make_state_directory(made)


def test_a_state_directory_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DbopsError) as raised:
        make_state_directory(tmp_path / "file" / "accounts")
    assert str(tmp_path / "file" / "accounts") in raised.value.found
    assert "install -d" in raised.value.remedy


def test_the_fingerprint_knows_values_and_not_their_order() -> None:
    one = {"candidate": "pg2", "members": ["pg1", "pg2"], "where": Path("/x")}
    assert params_hash(one) == params_hash(dict(reversed(one.items())))
    assert params_hash(one) != params_hash({**one, "candidate": "pg3"})
    assert len(params_hash({})) == 16


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    script = f"""
import sys
from pathlib import Path
from {CORE}.journal import LockFile
LockFile(Path({str(tmp_path / "lock")!r})).acquire("switchover to pg2")
print("held", flush=True)
sys.stdin.read()
"""
    with child(script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_of_two_runs_is_told_who_holds_the_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    lock = LockFile(tmp_path / "lock")
    for _time in range(2):  # being refused leaves the holder's name in place
        with pytest.raises(DbopsError) as raised:
            lock.acquire("switchover to pg3")
        assert raised.value.found == f"another run holds {tmp_path / 'lock'}: switchover to pg2 pid {holder.pid}"
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_killed_holder_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait(timeout=30)
    lock = LockFile(tmp_path / "lock")
    lock.acquire("switchover to pg3")
    assert (tmp_path / "lock").read_text() == f"switchover to pg3 pid {os.getpid()}\n"
    lock.release()


def test_a_released_lock_can_be_taken_and_released_again(tmp_path: Path) -> None:
    first, second = LockFile(tmp_path / "lock"), LockFile(tmp_path / "lock")
    first.acquire("a much longer name than the second")
    first.release()
    first.release()
    second.acquire("b")
    assert (tmp_path / "lock").read_text() == f"b pid {os.getpid()}\n"
    second.release()


def test_journal_lines_are_json(tmp_path: Path, clock: Clock) -> None:
    path = write(tmp_path, clock, "op1", OPENED)
    assert json.loads(path.read_text())["step"] == "operation"
