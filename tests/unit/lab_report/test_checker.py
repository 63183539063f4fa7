# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge is judged: a log and a journal that disagree in one way each, and the verdict on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.checker import Entry, compare, longest_pause, not_receipted


def entry(transfer: int, outcome: str = "acknowledged", *, end: float = 0.0, error: str = "") -> Entry:
    return Entry(id=transfer, start=end - 0.010, end=end, wall=1000.0 + end, outcome=outcome, error=error)


def journal(*transfers: int) -> dict[int, int]:
    """Both rows of each transfer; one that is named twice is there twice."""
    rows: dict[int, int] = {}
    for transfer in transfers:
        for row in (2 * transfer, 2 * transfer + 1):
            rows[row] = rows.get(row, 0) + 1
    return rows


def test_agreement() -> None:
    verdict = compare([entry(7), entry(8)], journal(7, 8))
    assert verdict.ok
    assert verdict.acknowledged == 2
    assert (verdict.missing, verdict.doubled, verdict.imbalances) == ([], [], [])


def test_acknowledged_and_not_there_is_missing() -> None:
    verdict = compare([entry(7), entry(8)], journal(8))
    assert verdict.missing == [7]
    assert not verdict.ok


def test_half_of_a_transfer_is_missing_and_out_of_balance() -> None:
    rows = journal(7)
    del rows[15]
    verdict = compare([entry(7)], rows)
    assert verdict.missing == [7]
    assert verdict.imbalances == ["transfer 7 has 1 debit and 0 credit rows"]


def test_applied_twice_is_doubled() -> None:
    verdict = compare([entry(7), entry(8)], journal(7, 8, 8))
    assert verdict.doubled == [8]
    assert not verdict.ok


def test_an_unknown_outcome_is_counted_and_accuses_nobody() -> None:
    verdict = compare([entry(6), entry(7, "unknown"), entry(8, "unknown")], journal(6, 8))
    assert (verdict.unknown, verdict.unknown_committed, verdict.unknown_not_committed) == (2, 1, 1)
    assert verdict.ok


@pytest.mark.parametrize("log", [[entry(6), entry(7, "failed")], [entry(6)]], ids=["failed", "not in the log"])
def test_committed_against_the_log_is_unexplained(log: list[Entry]) -> None:
    verdict = compare(log, journal(6, 7))
    assert verdict.unexplained == 1
    assert not verdict.ok


def test_no_acknowledgement_at_all_proves_nothing() -> None:
    assert not compare([entry(7, "failed")], {}).ok


def test_every_error_is_counted_by_its_text() -> None:
    log = [
        entry(1),
        entry(2, "failed", error="read-only"),
        entry(3, "unknown", error="closed"),
        entry(0, "refused", error="closed"),
    ]
    verdict = compare(log, journal(1))
    assert verdict.errors == {"closed": 2, "read-only": 1}
    assert verdict.writer_errors == 3


def test_latency_is_that_of_the_slowest_acknowledged() -> None:
    slow = Entry(id=2, start=1.0, end=1.25, wall=0.0, outcome="acknowledged", error="")
    hung = Entry(id=3, start=1.0, end=9.0, wall=0.0, outcome="unknown", error="")
    assert compare([entry(1), slow, hung], journal(1, 2)).max_latency_ms == 250.0


def test_the_pause_is_the_longest_gap_over_all_connections() -> None:
    log = [entry(1, end=1.0), entry(2, end=1.1), entry(3, "failed", end=1.2), entry(4, end=1.4), entry(5, end=1.5)]
    pause = longest_pause(log)
    assert pause is not None
    assert (pause.ms, pause.start, pause.end) == (300.0, 1001.1, 1001.4)


def test_load_that_never_comes_back_is_a_pause() -> None:
    pause = longest_pause([entry(1, end=1.0), entry(2, end=1.1), entry(0, "refused", end=6.1)])
    assert pause is not None
    assert pause.ms == 5000.0


def test_a_window_leaves_gaps_outside_out_and_takes_overlapping_ones_whole() -> None:
    log = [entry(number, end=end) for number, end in enumerate([1.0, 3.0, 3.1, 3.4, 3.5], start=1)]
    pauses = [longest_pause(log, window) for window in [(1003.05, 1003.45), (1002.9, 1003.2), (1009.0, 1010.0)]]
    assert [pause and pause.ms for pause in pauses] == [300.0, 2000.0, None]


def test_no_pause_without_acknowledgements() -> None:
    assert longest_pause([]) is None
    assert longest_pause([entry(0, "refused", end=1.0)]) is None


def test_what_is_missing_may_be_in_a_receipt(tmp_path: Path) -> None:
    """By its transaction, whatever the receipt calls the relations."""
    entries = [replace(entry(7), xid=70), replace(entry(8), xid=80), replace(entry(9), xid=90)]
    verdict = compare(entries, journal())
    receipt = tmp_path / "receipt.json"
    receipt.write_text(
        json.dumps({"lost": [{"xid": 70, "rows": {"1663/5/16402": {"insert": 2}}}, {"xid": 81, "rows": {}}]})
    )
    assert not_receipted(verdict, entries, None) == [7, 8, 9]
    assert not_receipted(verdict, entries, receipt) == [8, 9]
