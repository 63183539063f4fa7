# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-consistency``: what it costs to know that two tables are the same, ours beside reladiff and data-diff,
on two PostgreSQL 15, interleaved in one run. The limit is one sequential scan of each side that computes the same hash.

What is compared is the time of the processors: of each server with all that it has started, and of the client.

The last line of standard output is one JSON object; progress goes to standard error. The exit status says whether it
ran, not whether the targets were met.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_promote import calibrate, say
from tests.lab import binaries, users
from tests.lab.binaries import MissingProgram
from tests.lab.cluster import Cluster
from tests.lab.database import Database
from tests.lab.operation import MODULES, environment
from tests.lab.server import Node, children
from tests.lab.users import CHECKOUT

DIFFERENCES = 1000
COLUMNS = {
    "available": "numeric", "ceiling": "numeric", "created_at": "timestamptz", "currency": "text", "id": "int8",
    "reserved": "numeric", "status": "text", "total": "numeric", "updated_at": "timestamptz", "user_id": "int8",
    "version": "int8",
}  # fmt: skip
FIELDS = {"numeric": "numeric_send({0})", "timestamptz": "timestamptz_send({0})", "int8": "{0}, {0} >> 32",
          "text": '{0} COLLATE "C"'}  # fmt: skip
TABLE = """
CREATE TABLE compared (id bigint PRIMARY KEY, user_id bigint NOT NULL, currency text NOT NULL, available numeric(20, 8),
    reserved numeric(20, 8), total numeric(20, 8), ceiling numeric(20, 8), version bigint, status text,
    created_at timestamptz, updated_at timestamptz);
INSERT INTO compared SELECT g, g % 100000, (ARRAY['USD', 'EUR', 'BTC'])[1 + g % 3], g * 1.5, g % 7, g * 1.5 + g % 7,
    NULL, g % 50, 'active', '2026-01-01 00:00+00'::timestamptz + g * interval '1 s',
    '2026-01-02 00:00+00'::timestamptz + g * interval '1 s' FROM generate_series(1, {rows}) AS g;
CREATE TABLE nothing (LIKE compared INCLUDING ALL)
"""
LEDGER = """
CREATE TABLE accounts (user_id bigint, currency text, available numeric(20, 8), reserved numeric(20, 8),
    total numeric(20, 8), PRIMARY KEY (user_id, currency));
CREATE TABLE transaction_journal (id bigint PRIMARY KEY, user_id bigint NOT NULL, currency text NOT NULL,
    type text NOT NULL, amount numeric(20, 8) NOT NULL, status text NOT NULL);
INSERT INTO transaction_journal SELECT g, g % {accounts}, 'USD', CASE WHEN g % 3 = 0 THEN 'debit' ELSE 'credit' END,
    g % 1000 + 0.5, CASE WHEN g % 50 = 0 THEN 'pending' ELSE 'completed' END FROM generate_series(1, {rows}) AS g;
INSERT INTO accounts SELECT user_id, currency, sum(signed), 0, sum(signed) FROM (SELECT user_id, currency,
    CASE type WHEN 'credit' THEN amount ELSE -amount END AS signed FROM transaction_journal WHERE status = 'completed')
    AS j GROUP BY 1, 2
"""
# What one writes by hand when one knows how: one pass, no outer join.
BARE = """
SELECT user_id, currency, sum(d) FROM (
    SELECT user_id, currency, CASE WHEN type = 'credit' THEN amount ELSE -amount END AS d FROM transaction_journal
     WHERE status = 'completed'
    UNION ALL SELECT user_id, currency, -total FROM accounts) AS both_sides
 GROUP BY user_id, currency HAVING sum(d) <> 0
"""
# What the module computes of a row (row_hash.py).
HASH = {
    "fast": "hash_record_extended(ROW(int8send(hash_record_extended(ROW({}), 7))), 7)".format(
        ", ".join(FIELDS[kind].format(name) for name, kind in COLUMNS.items())
    ),
    "strict": f"hash_record_extended(ROW(record_send(ROW({', '.join(COLUMNS)}))), 7)",
}
SETTINGS = {"max_parallel_workers_per_gather": "0", "shared_buffers": "1GB", "autovacuum": "off", "max_wal_size": "8GB",
            "jit": "off"}  # fmt: skip

# Runs a command and says on the last line of standard error what it took.
WATCH = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"cpu": used.ru_utime + used.ru_stime, "rss_kb": used.ru_maxrss}), file=sys.stderr)
sys.exit(done.returncode)
"""


def server_cpu(node: Node) -> float:
    """Seconds of the server and of all processes that it has had so far."""
    pid = node.pid()
    assert pid is not None
    ticks = 0
    for one in (pid, *children(pid)):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += sum(int(fields[number]) for number in ((11, 12, 13, 14) if one == pid else (11, 12)))
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    server_cpu_s: float
    wall_s: float
    client_cpu_s: float
    client_rss_mb: float
    found: int
    exit_status: int


@dataclass
class Scene:
    source: Database
    target: Database
    rows: int

    @property
    def nodes(self) -> list[Node]:
        return [side.cluster.primary() for side in (self.source, self.target)]

    def measured(self, run: Callable[[], tuple[int, dict[str, float], int]]) -> Run:
        """``run`` returns how many differences it found, what its client used, and its exit status."""
        before = [server_cpu(node) for node in self.nodes]
        began = time.monotonic()
        found, used, status = run()
        wall = time.monotonic() - began
        for node in self.nodes:  # a session that has ended counts once the server has noticed
            node.sql("SELECT pg_sleep(0.2)")
        spent = sum(server_cpu(node) - past for node, past in zip(self.nodes, before, strict=True))
        return Run(spent, wall, used.get("cpu", 0.0), used.get("rss_kb", 0.0) / 1024, found, status)

    def command(self, words: list[str], **more: str) -> tuple[subprocess.CompletedProcess[str], dict[str, float]]:
        done = subprocess.run(
            [sys.executable, "-c", WATCH, *words], cwd=CHECKOUT, env=environment(**more), text=True, check=False,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        return done, json.loads(done.stderr.strip().splitlines()[-1])

    def module(self, check: dict[str, Any], **options: Any) -> Callable[[], tuple[int, dict[str, float], int]]:
        def run() -> tuple[int, dict[str, float], int]:
            arguments = {"source": self.source.login, "target": self.target.login, "checks": [check], **options}
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump({"ANSIBLE_MODULE_ARGS": arguments}, file)
                file.flush()
                done, used = self.command([sys.executable, "-m", f"{MODULES}.consistency_check", file.name])
            result = json.loads(done.stdout.splitlines()[-1])
            assert all(one["status"] != "failed" for one in result.get("results", [{"status": "failed"}])), result
            return int(result["differences"]), used, done.returncode

        return run

    def scan(self, hashing: str) -> Callable[[], tuple[int, dict[str, float], int]]:
        text = f"SELECT count(*), bit_xor({HASH[hashing]}) FROM compared"  # noqa: S608

        def run() -> tuple[int, dict[str, float], int]:
            for side in (self.source, self.target):
                side.sql(text)
            return 0, {}, 0

        return run

    def rival(self, program: list[str]) -> Callable[[], tuple[int, dict[str, float], int]]:
        """reladiff's command line, which is data-diff's, with all columns and two threads. Logins are in its file."""
        passwords = (
            users.load_secrets(self.source.cluster.secrets_file),
            users.load_secrets(self.target.cluster.secrets_file),
        )
        lines = []
        sides = zip((self.source, self.target), self.nodes, passwords, strict=True)
        for number, (side, node, secrets) in enumerate(sides, 1):
            lines += [
                f"[database.side{number}]",
                'driver = "postgresql"',
                f'host = "{node.host}"',
                f"port = {node.port}",
            ]
            lines += [f'database = "{side.name}"', f'user = "{users.APPLICATION}"']
            lines += [f'password = "{secrets[users.APPLICATION]}"']
        lines += ["[run.bench]", *(f'{number}.database = "side{number}"' for number in (1, 2))]
        lines += [f'{number}.table = "compared"' for number in (1, 2)]
        configuration = self.source.cluster.directory / "rivals.toml"
        configuration.touch(mode=0o600)
        configuration.write_text("\n".join(lines) + "\n")

        def run() -> tuple[int, dict[str, float], int]:
            words = [*program, "--conf", str(configuration), "--run", "bench", "-k", "id", "-c", "%", "-j", "2"]
            done, used = self.command(words)
            keys = {line[2:].split(",")[0] for line in done.stdout.splitlines() if line[:2] in ("- ", "+ ")}
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            return len(keys), used, done.returncode

        return run

    def spoil(self) -> None:
        step = self.rows // DIFFERENCES
        self.target.sql(f"UPDATE compared SET total = total + 1 WHERE id % {step} = 0 AND id <= {step * DIFFERENCES}")  # noqa: S608
        self.target.sql("VACUUM ANALYZE compared")


@contextmanager
def scene(directory: Path, rows: int, ledger_rows: int) -> Iterator[Scene]:
    version = binaries.RIVALS
    with (
        Cluster.create(directory / "source", version, members=("pg1",), settings=SETTINGS) as source,
        Cluster.create(directory / "target", version, members=("pg1",), settings=SETTINGS) as target,
    ):
        made = Scene(Database.create(source), Database.create(target), rows)
        for side in (made.source, made.target):
            side.sql(TABLE.format(rows=rows))
            side.sql("VACUUM ANALYZE compared")
        made.source.sql(LEDGER.format(rows=ledger_rows, accounts=max(1, ledger_rows // 16)))
        made.source.sql("VACUUM ANALYZE accounts, transaction_journal")
        yield made


def contenders(one: Scene, *, with_rivals: bool) -> dict[str, Callable[[], tuple[int, dict[str, float], int]]]:
    table = {"kind": "table", "tables": ["compared"]}
    found = {
        "limit, fast": one.scan("fast"),
        "ours, fast": one.module(table, sample=0),
        "limit, strict": one.scan("strict"),
        "ours, strict": one.module({**table, "hash": "strict"}, sample=0),
    }
    rivals = (("reladiff", binaries.reladiff), ("data-diff", binaries.datadiff))
    for name, program in rivals if with_rivals else ():
        try:
            found[name] = one.rival(program())
        except MissingProgram as reason:
            say(f"\n!!! {name} IS NOT MEASURED: {reason}\n")
    return found


def row(situation: str, name: str, runs: list[Run]) -> dict[str, Any]:
    def median(values: list[float], digits: int = 2) -> float:
        return round(statistics.median(values), digits)

    return {
        "situation": situation,
        "contender": name,
        "runs": len(runs),
        "server_cpu_s": median([run.server_cpu_s for run in runs]),
        "wall_s": median([run.wall_s for run in runs]),
        "client_cpu_s": median([run.client_cpu_s for run in runs]),
        "client_rss_mb": round(max(run.client_rss_mb for run in runs)),
        "found": sorted({run.found for run in runs}),
        "exit_status": sorted({run.exit_status for run in runs}),
    }


EQUAL, SPOILT, LEDGERS, EMPTY = "equal", f"{DIFFERENCES} differences", "ledger", "empty table"


def bench(directory: Path, rows: int, runs: int, *, with_rivals: bool) -> dict[str, Any]:
    calibration = [calibrate()]
    found: dict[tuple[str, str], list[Run]] = {}
    say(f"making two tables of {rows} rows and a journal of {rows * 2}")
    with scene(directory, rows, rows * 2) as one:

        def measure(situation: str, some: dict[str, Callable[[], tuple[int, dict[str, float], int]]]) -> None:
            for number in range(runs):
                for name, run in some.items():
                    result = one.measured(run)
                    found.setdefault((situation, name), []).append(result)
                    say(
                        f"{situation} {number + 1}/{runs} {name}: server {result.server_cpu_s:.2f} s, wall"
                        f" {result.wall_s:.1f} s, client {result.client_cpu_s:.2f} s {result.client_rss_mb:.0f} MB,"
                        f" {result.found} found"
                    )

        measure(EMPTY, {"ours, fast": one.module({"kind": "table", "tables": ["nothing"]})})
        everybody = contenders(one, with_rivals=with_rivals)
        measure(EQUAL, everybody)
        measure(
            LEDGERS,
            {
                "bare SQL": lambda: (len(one.source.sql(BARE)), {}, 0),
                "ours": one.module({"kind": "ledger", "ledger": {"conditions": []}}, target=None),
            },
        )
        one.spoil()
        measure(SPOILT, {name: run for name, run in everybody.items() if not name.startswith("limit")})
    calibration.append(calibrate())
    rows_found = [row(situation, name, several) for (situation, name), several in found.items()]
    show(rows_found)
    return {
        "name": "consistency",
        "versions": {"postgresql": binaries.RIVALS},
        "load": {"rows": rows, "journal_rows": rows * 2, "calibration": calibration, "cores": os.cpu_count()},
        "runs": runs,
        "rows": rows_found,
        "targets": targets(rows_found, rows),
    }


def targets(rows: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    def value(situation: str, name: str, key: str = "server_cpu_s") -> Any:
        return next((one[key] for one in rows if (one["situation"], one["contender"]) == (situation, name)), None)

    result: list[dict[str, Any]] = []

    def target(name: str, mine: float | None, theirs: float | None, limit: float) -> None:
        if mine is not None and theirs:
            ratio = round(mine / theirs, 3)
            result.append({"name": name, "value": ratio, "target": f"<= {limit:.3g}", "met": ratio <= limit})

    for hashing in ("fast", "strict"):
        target(
            f"equal, {hashing}: server CPU / limit",
            value(EQUAL, f"ours, {hashing}"),
            value(EQUAL, f"limit, {hashing}"),
            1.18,
        )
        target(
            f"{SPOILT}, {hashing}: server CPU / equal",
            value(SPOILT, f"ours, {hashing}"),
            value(EQUAL, f"ours, {hashing}"),
            2.0,
        )
        wanted = value(SPOILT, f"ours, {hashing}", "found")
        result.append(
            {
                "name": f"{SPOILT}, {hashing}: found",
                "value": wanted,
                "target": f"[{DIFFERENCES}]",
                "met": wanted == [DIFFERENCES],
            }
        )
    for situation, limits in (
        (EQUAL, {"reladiff": 1 / 4, "data-diff": 1 / 6}),
        (SPOILT, {"reladiff": 1 / 4, "data-diff": 1 / 8}),
    ):
        for name, limit in limits.items():
            target(f"{situation}: server CPU / {name}", value(situation, "ours, fast"), value(situation, name), limit)
    cpu = (value(EQUAL, "ours, fast", "client_cpu_s") - value(EMPTY, "ours, fast", "client_cpu_s")) / size * 1e6
    result.append(
        {"name": "client CPU, s per million rows", "value": round(cpu, 3), "target": "<= 0.1", "met": cpu <= 0.1}
    )
    memory = max(one["client_rss_mb"] for one in rows if one["contender"].startswith("ours"))
    result.append({"name": "client memory, MB", "value": memory, "target": "<= 100", "met": memory <= 100})
    target("ledger: server CPU / bare SQL", value(LEDGERS, "ours"), value(LEDGERS, "bare SQL"), 1.05)
    return result


def show(rows: list[dict[str, Any]]) -> None:
    keys = ("server_cpu_s", "wall_s", "client_cpu_s", "client_rss_mb", "found", "exit_status", "runs")
    print("| situation | contender | server CPU s | wall s | client CPU s | client MB | found | exit | runs |")
    print("|---" * 9 + "|")
    for one in rows:
        print(f"| {one['situation']} | {one['contender']} | " + " | ".join(str(one[key]) for key in keys) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_consistency")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--alone", action="store_true", help="without reladiff and data-diff, which take most of the time"
    )
    arguments = parser.parse_args()
    place = CHECKOUT / ".lab"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=place) as directory:
        print(json.dumps(bench(Path(directory), arguments.rows, arguments.runs, with_rivals=not arguments.alone)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
