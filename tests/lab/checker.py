# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the clients were told against what the database holds, and who else would take a write."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

PROBE_SECONDS = 2


@dataclass(frozen=True)
class Entry:
    """One line of the writers' log; its fields are explained in tests.lab.writer."""

    id: int
    start: float
    end: float
    wall: float
    outcome: str
    error: str
    xid: int = 0


@dataclass(frozen=True)
class Pause:
    """The longest time in which no client got an acknowledgement. ``start`` and ``end`` are Unix times."""

    ms: float
    start: float
    end: float


@dataclass
class Verdict:
    """What became of the transfers of one log. Lists hold transfer ids; ``imbalances`` holds sentences.

    ``missing``: acknowledged, and not (wholly) in the database. ``doubled``: in the database more than once.
    ``imbalances``: accounts whose total is not their journal or not available + reserved, halves of a transfer, a sum
    over all accounts that is not zero. ``unknown`` outcomes are judged by nobody, only counted; ``unexplained`` are
    transfers in the database that the log calls failed or does not know, so the log itself cannot be trusted.
    """

    acknowledged: int = 0
    missing: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    imbalances: list[str] = field(default_factory=list)
    unknown: int = 0
    unknown_committed: int = 0
    unexplained: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    pause: Pause | None = None
    max_latency_ms: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing acknowledged is missing, nothing was applied twice, the books balance, the log can be trusted."""
        return bool(self.acknowledged) and not (self.missing or self.doubled or self.imbalances or self.unexplained)

    @property
    def unknown_not_committed(self) -> int:
        return self.unknown - self.unknown_committed

    @property
    def writer_errors(self) -> int:
        return sum(self.errors.values())

    @property
    def pause_ms(self) -> float | None:
        return self.pause.ms if self.pause else None


def read_log(path: Path) -> list[Entry]:
    """The writers' log, in the order in which transactions ended."""
    with open(path) as file:
        return sorted((Entry(**json.loads(line)) for line in file), key=lambda entry: entry.end)


def longest_pause(entries: Sequence[Entry], window: tuple[float, float] | None = None) -> Pause | None:
    """The longest gap between two consecutive acknowledgements over all connections, None without any.

    The time from the last acknowledgement to the end of the log counts too: load that never came back is a pause, not
    a short run. With ``window`` (two Unix times) gaps that lie outside are left out; one that overlaps it counts whole.
    """
    instants = [(entry.end, entry.wall) for entry in entries if entry.outcome == "acknowledged"]
    if not instants:
        return None
    instants.append((entries[-1].end, entries[-1].wall))
    pauses = [
        Pause(ms=round((end - start) * 1000, 1), start=start_wall, end=end_wall)
        for (start, start_wall), (end, end_wall) in itertools.pairwise(instants)
        if window is None or (end_wall >= window[0] and start_wall <= window[1])
    ]
    return max(pauses, key=lambda pause: pause.ms, default=None)


def compare(entries: Sequence[Entry], journal: Mapping[int, int]) -> Verdict:
    """Judge each transfer. ``journal``: how often each journal row id occurs in the database."""
    verdict = Verdict()
    outcomes = {entry.id: entry.outcome for entry in entries if entry.id}
    tally = Counter(outcomes.values())
    verdict.acknowledged, verdict.unknown = tally["acknowledged"], tally["unknown"]
    verdict.errors = dict(Counter(entry.error for entry in entries if entry.outcome != "acknowledged").most_common())
    latencies = [entry.end - entry.start for entry in entries if entry.outcome == "acknowledged"]
    verdict.max_latency_ms = round(max(latencies, default=0.0) * 1000, 1)

    for transfer in sorted(outcomes.keys() | {row // 2 for row in journal}):
        debits, credits = journal.get(2 * transfer, 0), journal.get(2 * transfer + 1, 0)
        outcome = outcomes.get(transfer)
        if debits != credits:
            verdict.imbalances.append(f"transfer {transfer} has {debits} debit and {credits} credit rows")
        if max(debits, credits) > 1:
            verdict.doubled.append(transfer)
        if outcome == "acknowledged":
            if not (debits and credits):
                verdict.missing.append(transfer)
        elif debits or credits:
            if outcome == "unknown":
                verdict.unknown_committed += 1
            else:
                verdict.unexplained += 1
    return verdict


_JOURNAL = "SELECT id, count(*) FROM transaction_journal WHERE id BETWEEN %s AND %s GROUP BY id"

_ACCOUNTS = """
SELECT user_id, currency, coalesce(total, 0), coalesce(available + reserved, 0), coalesce(booked, 0)
FROM accounts
FULL JOIN (
    SELECT user_id, currency, sum(CASE type WHEN 'credit' THEN amount ELSE -amount END) AS booked
    FROM transaction_journal WHERE status = 'completed' GROUP BY user_id, currency
) AS journal USING (user_id, currency)
WHERE coalesce(total, 0) <> coalesce(available + reserved, 0) OR coalesce(total, 0) <> coalesce(booked, 0)
ORDER BY user_id, currency
"""

_SUMS = "SELECT currency, sum(total) FROM accounts GROUP BY currency HAVING sum(total) <> 0 ORDER BY currency"


def check(
    log: Path,
    connect_to_primary: Callable[[], Connection],
    window: tuple[float, float] | None = None,
) -> Verdict:
    """Compare the writers' log with the database. The writers must have been stopped.

    ``window``: two Unix times between which the pause is looked for (default: the whole log).
    """
    entries = read_log(log)
    ids = [entry.id for entry in entries if entry.id]
    # All ids the run could have used, so that a transfer missing from the log is found as well (tests.lab.writer).
    first, last = min(ids, default=0) & ~0xFFFFFFFF, max(ids, default=0) | 0xFFFFFFFF
    connection = connect_to_primary()
    try:
        with connection.cursor() as cursor:
            cursor.execute(_JOURNAL, (2 * first, 2 * last + 1))
            verdict = compare(entries, dict(cursor.fetchall()))
            cursor.execute(_ACCOUNTS)
            verdict.imbalances += [
                f"account {user} {currency}: total {total:f}, available + reserved {parts:f}, journal {booked:f}"
                for user, currency, total, parts, booked in cursor.fetchall()
            ]
            cursor.execute(_SUMS)
            verdict.imbalances += [
                f"all {currency} accounts together: {total:f}" for currency, total in cursor.fetchall()
            ]
    finally:
        connection.close()
    verdict.pause = longest_pause(entries, window)
    return verdict


def writable_nodes(nodes: Iterable[Any]) -> list[str]:
    """Names of the nodes that acknowledge a direct write, tried for real and rudely on each (tests.lab.cluster nodes).

    A session may turn default_transaction_read_only off and synchronous_commit down, so this one does: neither is a
    fence. A node that does not answer within PROBE_SECONDS acknowledged nothing.
    """
    settings = {
        "default_transaction_read_only": "off",
        "synchronous_commit": "local",
        "statement_timeout": f"{PROBE_SECONDS}s",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    writable = []
    for node in nodes:
        try:
            connection = node.connect("app", "accounts", connect_timeout=PROBE_SECONDS, options=options)
        except psycopg2.OperationalError:
            continue
        try:
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO dbops_probe (node) VALUES (%s)", (node.name,))
            writable.append(node.name)
        except (psycopg2.errors.ReadOnlySqlTransaction, psycopg2.OperationalError):
            pass
        finally:
            connection.close()
    return writable


def commits_after_fork(bin_dir: Path, data_dir: Path, timeline: int, lsn: str) -> int | None:
    """How many COMMIT records ``data_dir`` holds on ``timeline`` at or after ``lsn`` ("0/3000148"), where the new
    timeline left it. None where ``bin_dir`` has no pg_waldump: that of another major version misreads.

    Raises RuntimeError if the old timeline's WAL around the fork is gone or cannot be read: that proves nothing.
    """
    program = Path(bin_dir) / "pg_waldump"
    if not program.exists():
        return None
    wal = Path(data_dir) / "pg_wal"
    fork = _lsn(lsn)
    size = next(path.stat().st_size for path in wal.iterdir() if re.fullmatch("[0-9A-F]{24}", path.name))
    if not (wal / _segment(timeline, fork, size)).exists():
        # A fork on the border of a segment whose successor was never begun: nothing was written past it.
        if fork % size == 0 and (wal / _segment(timeline, fork - 1, size)).exists():
            return 0
        raise RuntimeError(
            f"{wal} no longer holds {_segment(timeline, fork, size)}, where timeline {timeline} was left"
        )
    result = subprocess.run(
        [program, "--rmgr=Transaction", f"--timeline={timeline}", f"--start={lsn}", f"--path={wal}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"LC_ALL": "C"},
    )
    # WAL ends where no valid record follows, which pg_waldump reports as an error; any other error is one.
    if result.returncode and not re.search("could not find a valid record|error in WAL record", result.stderr):
        raise RuntimeError(f"pg_waldump could not read timeline {timeline} from {lsn}: {result.stderr.strip()}")
    records = re.findall(r"lsn: ([0-9A-F]+/[0-9A-F]+).*?desc: COMMIT", result.stdout)
    return sum(_lsn(record) >= fork for record in records)


def _lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def _segment(timeline: int, position: int, size: int) -> str:
    number, per_file_id = position // size, 0x100000000 // size
    return f"{timeline:08X}{number // per_file_id:08X}{number % per_file_id:08X}"


def not_receipted(verdict: Verdict, entries: Iterable[Entry], receipt: Path | None) -> list[int]:
    """The missing transfers whose transaction is not in the receipt; all of them where there is none."""
    lost = json.loads(receipt.read_text())["lost"] if receipt else []
    listed = {each["xid"] for each in lost}  # its relations may be numbers: naming them takes a login to their database
    xids = {entry.id: entry.xid for entry in entries}
    return [transfer for transfer in verdict.missing if xids[transfer] not in listed]


def main() -> int:
    """The verdict as JSON, for a writer that runs on another host than the test."""
    parser = argparse.ArgumentParser(description="Compare a writers' log with the database.")
    parser.add_argument("--log", required=True, type=Path)
    parser.add_argument("--conninfo", required=True, help="the primary, without a password: name a passfile")
    parser.add_argument(
        "--receipt", type=Path, help="pg_member's, of a failover: what is missing may be missing if listed"
    )
    arguments = parser.parse_args()
    verdict = check(arguments.log, lambda: psycopg2.connect(arguments.conninfo))
    beyond = not_receipted(verdict, read_log(arguments.log), arguments.receipt)
    ok = replace(verdict, missing=beyond).ok
    figures = {"ok": ok, "pause_ms": verdict.pause_ms, "writer_errors": verdict.writer_errors, "not_receipted": beyond}
    print(json.dumps({**asdict(verdict), **figures}, indent=2))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
