# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lost transactions from lines of pg_waldump; tests/integration/test_receipt.py lets real servers write them."""

from __future__ import annotations

from collections import Counter

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.lsn import format_lsn
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.receipt import (
    LostTransaction,
    lost_transactions,
    relations,
)
from hypothesis import given
from hypothesis import strategies as st

TABLE = "1663/5/16392"
TIME = "2026-11-25 13:40:44.882797 UTC"


def line(manager: str, xid: int, text: str, *, lsn: int = 0x1B9D278, length: int = 60) -> str:
    """As all versions print it; the width of the columns is the server's."""
    return (
        f"rmgr: {manager:<11} len (rec/tot): {length - 6:>6}/{length:>6}, tx: {xid:>10}, lsn: {lsn >> 32:X}/{lsn:08X},"
        f" prev 0/01B9CD40, desc: {text}\n"
    )


def heap(xid: int, text: str, relation: str = TABLE) -> str:
    manager = "Heap2" if text.startswith("MULTI") else "Heap"
    return line(manager, xid, f"{text}, blkref #0: rel {relation} blk 0")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("INSERT+INIT off 1 flags 0x00", {"inserted": 1}),
        ("INSERT off: 2, flags: 0x00", {"inserted": 1}),
        ("HOT_UPDATE off 1 xmax 736 flags 0x20 ; new off 6 xmax 0", {"updated": 1}),
        ("UPDATE old_xmax: 764, old_off: 1, old_infobits: [], flags: 0x20, new_xmax: 0, new_off: 6", {"updated": 1}),
        ("DELETE off 2 flags 0x00 KEYS_UPDATED ", {"deleted": 1}),
        ("MULTI_INSERT 50 tuples flags 0x02", {"inserted": 50}),
        ("MULTI_INSERT+INIT ntuples: 61, flags: 0x02, offsets: [8, 9]", {"inserted": 61}),
        ("LOCK off 2: xid 736: flags 0x00 LOCK_ONLY", None),
        ("INPLACE off: 2", None),
    ],
)
def test_rows_as_13_to_18_print_them(text: str, rows: dict[str, int] | None) -> None:
    [lost] = lost_transactions([heap(7, text), line("Transaction", 7, f"COMMIT {TIME}", length=34)])
    assert lost.rows == ({TABLE: rows} if rows else {})
    assert (lost.xid, lost.time, lost.lsn, lost.bytes) == (7, TIME, "0/1B9D278", 60)


def test_other_records_are_bytes_and_no_rows() -> None:
    index = line("Btree", 7, "INSERT_LEAF off 1, blkref #0: rel 1663/5/16397 blk 1", length=64)
    fork = line("Heap", 7, "INSERT off 1 flags 0x00, blkref #0: rel 1663/5/16392 fork vm blk 0", length=50)
    nobody = line("Standby", 0, "RUNNING_XACTS nextXid 8 latestCompletedXid 7 oldestRunningXid 8")
    words = ["", "pg_waldump: first record is after 0/1B9D278\n", index, fork, nobody]
    [lost] = lost_transactions([*words, line("Transaction", 7, f"COMMIT {TIME}; inval msgs: catcache 7")])
    assert (lost.rows, lost.bytes) == ({}, 114)


def test_what_was_rolled_back_or_never_ended_is_left_out() -> None:
    lines = [heap(7, "INSERT off 1"), line("Transaction", 7, f"ABORT {TIME}"), heap(8, "INSERT off 2")]
    assert lost_transactions(lines) == []
    assert lost_transactions([heap(9, "INSERT off 3"), line("Transaction", 9, "PREPARE gid p: 2026-11-25")]) == []


def test_subtransactions_count_for_the_one_that_committed() -> None:
    lines = [heap(7, "INSERT off 1"), heap(8, "INSERT off 2"), line("Transaction", 8, f"ABORT {TIME}")]
    lines += [heap(10, "DELETE off 2"), heap(10, "INSERT off 3", "1663/5/2"), heap(11, "INSERT off 9")]
    lines += [line("Transaction", 7, f"COMMIT {TIME}; subxacts: 9 10; inval msgs: catcache 7")]
    [lost] = lost_transactions(lines)
    assert lost.rows == {TABLE: {"inserted": 1, "deleted": 1}, "1663/5/2": {"inserted": 1}}
    assert lost.bytes == 180


def test_a_prepared_transaction_is_the_one_that_was_prepared() -> None:
    lines = [heap(7, "INSERT off 1"), line("Transaction", 7, "PREPARE gid p: 2026-11-25 13:40:44")]
    [lost] = lost_transactions([*lines, line("Transaction", 0, f"COMMIT_PREPARED 7: {TIME}; subxacts: 8")])
    assert (lost.xid, lost.time, lost.rows) == (7, TIME, {TABLE: {"inserted": 1}})


WORK = st.lists(st.tuples(st.integers(3, 9), st.sampled_from(["INSERT", "DELETE", "COMMIT", "ABORT"])), max_size=60)


@given(WORK)
def test_it_adds_up_whatever_the_order(work: list[tuple[int, str]]) -> None:
    """Against a count by hand: each id's rows since it began, in the order of commits."""
    lines: list[str] = []
    expected: list[tuple[int, str, dict[str, int]]] = []
    rows: dict[int, Counter[str]] = {}
    ended: set[int] = set()
    for number, (xid, what) in enumerate(work):
        if xid in ended:  # an id is used once
            continue
        if what in ("COMMIT", "ABORT"):
            ended.add(xid)
            lines.append(line("Transaction", xid, f"{what} {TIME}", lsn=8 * number))
            if what == "COMMIT":
                expected.append((xid, format_lsn(8 * number), dict(rows.get(xid, Counter()))))
        else:
            rows.setdefault(xid, Counter())[what.lower() + ("ed" if what == "INSERT" else "d")] += 1
            lines.append(heap(xid, f"{what} off 1"))
    lost = lost_transactions(lines)
    assert [(each.xid, each.lsn, each.rows.get(TABLE, {})) for each in lost] == expected
    total = sum((Counter(counts) for _xid, _lsn, counts in expected), Counter())
    assert relations(lost) == ({TABLE: dict(total)} if total else {})


def test_the_receipt_of_several() -> None:
    lost = [LostTransaction(7, "0/1", TIME, 9, {"a": {"inserted": 1}}), LostTransaction(8, "0/2", TIME)]
    lost.append(LostTransaction(9, "0/3", TIME, 1, {"a": {"inserted": 2, "deleted": 1}, "b": {"updated": 1}}))
    assert relations(lost) == {"a": {"inserted": 3, "deleted": 1}, "b": {"updated": 1}}
    assert lost[0].as_dict() == {"xid": 7, "lsn": "0/1", "time": TIME, "bytes": 9, "rows": {"a": {"inserted": 1}}}
