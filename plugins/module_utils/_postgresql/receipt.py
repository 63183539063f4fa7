# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The loss receipt: which committed transactions stand in WAL that is about to be thrown away. Lines of pg_waldump in,
values out; no IO.

Source: src/bin/pg_waldump/pg_waldump.c and src/backend/access/rmgrdesc/xactdesc.c of PostgreSQL 13 to 18.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .lsn import format_lsn, parse_lsn

_RECORD = re.compile(
    r"rmgr: (?P<manager>\w+)\s+len \(rec/tot\):\s+\d+/\s+(?P<length>\d+), tx:\s+(?P<xid>\d+),"
    r" lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+),.* desc: (?P<text>.*)"
)
_COMMIT = re.compile(r"COMMIT(?:_PREPARED (?P<prepared>\d+):)? (?P<time>[^;]+?)(?:;|$)")
_SUBTRANSACTIONS = re.compile(r"; subxacts: (?P<xids>[\d ]+)")
_RELATION = re.compile(r"blkref #0: rel (?P<relation>\d+/\d+/\d+) (?!fork)")
_ROWS = {
    "INSERT": "inserted",
    "MULTI_INSERT": "inserted",
    "UPDATE": "updated",
    "HOT_UPDATE": "updated",
    "DELETE": "deleted",
}
_TUPLES = re.compile(r"MULTI_INSERT\S* (?:ntuples: )?(?P<count>\d+)")


@dataclass
class LostTransaction:
    """One committed transaction. ``rows``: {tablespace/database/filenode: {inserted|updated|deleted: n}}."""

    xid: int
    lsn: str
    """Where its commit record begins."""
    time: str
    bytes: int = 0
    rows: dict[str, dict[str, int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass
class _Work:
    bytes: int = 0
    rows: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, other: _Work) -> None:
        self.bytes += other.bytes
        for relation, counts in other.rows.items():
            for kind, count in counts.items():
                _count(self.rows, relation, kind, count)


def _count(rows: dict[str, dict[str, int]], relation: str, kind: str, number: int) -> None:
    counts = rows.setdefault(relation, {})
    counts[kind] = counts.get(kind, 0) + number


def lost_transactions(lines: Iterable[str]) -> list[LostTransaction]:
    """In the order of their commits. Transactions that were rolled back, or had not ended, were acknowledged to
    nobody and are left out; the work of subtransactions counts for the one that committed."""
    open_work: dict[int, _Work] = {}
    lost: list[LostTransaction] = []
    for line in lines:
        record = _RECORD.match(line)
        if record is None:
            continue
        xid, text = int(record["xid"]), record["text"]
        if record["manager"] == "Transaction":
            commit = _COMMIT.match(text)
            if commit is not None:
                xid = int(commit["prepared"] or xid)
                lost.append(_close(open_work, xid, format_lsn(parse_lsn(record["lsn"])), commit["time"].strip(), text))
                continue
        if xid:
            work = open_work.setdefault(xid, _Work())
            work.bytes += int(record["length"])
            _rows(work, record["manager"], text)
    return lost


def _rows(work: _Work, manager: str, text: str) -> None:
    kind = _ROWS.get(re.split(r"[+ ]", text, maxsplit=1)[0])
    relation = _RELATION.search(text)
    if kind is None or relation is None or manager not in ("Heap", "Heap2"):
        return
    tuples = _TUPLES.match(text)
    _count(work.rows, relation["relation"], kind, int(tuples["count"]) if tuples else 1)


def _close(open_work: dict[int, _Work], xid: int, lsn: str, time: str, text: str) -> LostTransaction:
    work = open_work.pop(xid, _Work())
    below = _SUBTRANSACTIONS.search(text)
    for sub in below["xids"].split() if below else []:
        work.add(open_work.pop(int(sub), _Work()))
    return LostTransaction(xid, lsn, time, work.bytes, work.rows)


def relations(lost: Iterable[LostTransaction]) -> dict[str, dict[str, int]]:
    """Rows of all of them together, by relation."""
    total: dict[str, dict[str, int]] = {}
    for transaction in lost:
        for relation, counts in transaction.rows.items():
            for kind, number in counts.items():
                _count(total, relation, kind, number)
    return total
