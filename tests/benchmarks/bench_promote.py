# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-promote``: planned switchovers under load, ours, Patroni's and repmgr's, interleaved in one run.

Every contender has a cluster of its own, of the same PostgreSQL 15 with the same settings. One after the other makes a
switchover, back and forth, while a writer keeps up a constant load (an open loop: a pause does not lower it) and logs
every commit that was acknowledged. The gap is the longest time between two acknowledged commits of all connections.

The last line of standard output is one JSON object; progress goes to standard error. The exit status says whether it
ran, not whether the targets were met.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2

from tests.faults.scene import Scene
from tests.lab import binaries, faults, ledger, users
from tests.lab.binaries import MissingProgram
from tests.lab.checker import check
from tests.lab.cluster import Cluster
from tests.lab.operation import run_module, run_playbook
from tests.lab.patroni import PatroniCluster
from tests.lab.repmgr import RepmgrCluster
from tests.lab.users import CHECKOUT
from tests.lab.writer import Writers

LEAD_SECONDS, TAIL_SECONDS = 1.0, 0.5
REDUNDANCY_SECONDS = 180.0
DIRTY_PAGES = 140_000  # 1.1 GB
# A frozen standby holds up a shutdown for so long; PostgreSQL's default of 60 s would only make that row slower.
# WAL is recycled after some segments, as it is on servers that are older than a benchmark: files that are made anew
# take several times as long on a disk that has to find room for them.
SETTINGS = {"wal_sender_timeout": "5s", "wal_keep_size": "128MB", "max_wal_size": "512MB"}
RETRY_MS = 20.0  # of all eight or sixteen: with the lab's 5 ms two processors do little else than to turn them away
KEPT_ARCHIVED = 8  # segments, for the same reason
DIRTY_SETTINGS = {
    "shared_buffers": "1400MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "bgwriter_lru_maxpages": "0",
}
# The least that Patroni accepts, and what our own switchover sets on its candidate.
TUNED = {
    "loop_wait": 1,
    "ttl": 20,
    "retry_timeout": 3,
    "postgresql": {"use_pg_rewind": True, "parameters": {"wal_retrieve_retry_interval": "10ms"}},
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------------- contenders


@dataclass
class Contender:
    """``switch(candidate)``: what it says of the outcome, and whether it calls that a success."""

    name: str
    cluster: Cluster
    switch: Callable[[str], tuple[str, bool]]
    pooled: bool = False
    before: Callable[[str], Any] = lambda _candidate: None
    after: Callable[[str], Any] = lambda _primary: None

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        if self.pooled:
            return [(pooler.host, pooler.port) for pooler in self.cluster.poolers[:1]]
        return [(node.host, node.port) for node in self.cluster.nodes]

    def log(self, name: str) -> Path:
        managed = isinstance(self.cluster, PatroniCluster)
        return self.cluster.node(name).directory / ("patroni.log" if managed else "postgres.log")


def ours(cluster: Cluster, directory: Path) -> list[Contender]:
    """One cluster, two rows: with its clients at the servers, and behind PgBouncer. The role's part, the dead-man and
    the pooler's file, is done before and after; what is measured is the module, as the role runs it."""
    scene = Scene(cluster, directory)

    def switch(candidate: str, **changes: Any) -> tuple[str, bool]:
        result = run_module("replica_promote", {**ready.pop(candidate), **changes})
        return str(result.get("state")), not result.get("failed")

    ready: dict[str, dict[str, Any]] = {}

    def before(candidate: str) -> None:
        ready[candidate] = scene.arguments(candidate, cluster.primary().name)
        scene.guard("armed", candidate)

    def after(primary: str) -> None:
        scene.guard("disarmed", primary)

    return [
        Contender("ours, direct", cluster, lambda name: switch(name, poolers=[]), before=before, after=after),
        Contender("ours, PgBouncer", cluster, switch, pooled=True, before=before, after=after),
    ]


def patroni(name: str, cluster: PatroniCluster) -> Contender:
    def switch(candidate: str) -> tuple[str, bool]:
        status, text = cluster.switchover(candidate)
        return f"{status} {text}", status == 200

    return Contender(name, cluster, switch, after=lambda _primary: cluster.wait_managed(seconds=REDUNDANCY_SECONDS))


def repmgr(name: str, cluster: RepmgrCluster) -> Contender:
    def switch(candidate: str) -> tuple[str, bool]:
        done = cluster.switchover(candidate)
        return (done.stdout.strip().splitlines() or [""])[-1], done.returncode == 0

    return Contender(name, cluster, switch)


@contextmanager
def lineup(directory: Path, chosen: list[str], settings: dict[str, str]) -> Iterator[list[Contender]]:
    """The clusters of all contenders that can be had here, with the ledger in each."""
    makers: dict[str, Callable[[Path], Cluster]] = {
        "ours": lambda place: Cluster.create(place, binaries.RIVALS, pooler=True, settings=settings),
        "patroni": lambda place: PatroniCluster.adopt(place, settings=settings),
        "patroni-tuned": lambda place: PatroniCluster.adopt(place, dynamic=TUNED, settings=settings),
        "repmgr": lambda place: RepmgrCluster.register(place, stop_command=False, settings=settings),
        "repmgr-tuned": lambda place: RepmgrCluster.register(place, settings=settings),
    }
    found: list[Contender] = []
    with ExitStack() as stack:
        for name in chosen:
            say(f"starting the cluster of {name}")
            try:
                cluster = stack.enter_context(makers[name](directory / name))
            except MissingProgram as reason:
                say(f"\n!!! {name} IS NOT MEASURED: {reason}\n")
                continue
            with cluster.primary().connect(users.APPLICATION, users.DATABASE) as connection:
                ledger.create(connection)
            manner = "tuned" if name.endswith("tuned") else "defaults"
            if isinstance(cluster, PatroniCluster):
                found.append(patroni(f"Patroni, {manner}", cluster))
            elif isinstance(cluster, RepmgrCluster):
                found.append(repmgr(f"repmgr, {manner}", cluster))
            else:
                found += ours(cluster, directory)
        yield found


# -------------------------------------------------------------------------------------------------------------- loads


@dataclass
class Load:
    name: str
    rate: float
    connections: int = 8
    hold_ms: float = 0.0
    dirty: bool = False
    frozen: bool = False


def saturation(contender: Contender, directory: Path) -> float:
    """Acknowledged commits per second of sixteen connections that never pause."""
    writers = Writers(
        directory / "saturation", contender.endpoints, connections=16, think_ms=0.0,
        passfile=str(contender.cluster.lab_passfile),
    )  # fmt: skip
    with writers:
        before = writers.log.read_bytes().count(b'"acknowledged"')
        time.sleep(6.0)
        after = writers.log.read_bytes().count(b'"acknowledged"')
    return (after - before) / 6.0


def calibrate() -> dict[str, float]:
    """What this machine gives just now: 8 kB writes made durable, and turns of a CPU loop, both per second."""
    with tempfile.NamedTemporaryFile(dir=binaries.cache()) as file:
        block, writes, until = b"x" * 8192, 0, time.monotonic() + 1.0
        while time.monotonic() < until:
            os.pwrite(file.fileno(), block, (writes % 1024) * 8192)
            os.fdatasync(file.fileno())
            writes += 1
    turns, until = 0, time.monotonic() + 1.0
    while time.monotonic() < until:
        hashlib.sha256(block).digest()
        turns += 1
    return {"fdatasync_per_s": float(writes), "sha256_8k_per_s": float(turns)}


def make_dirty(cluster: Cluster) -> int:
    """Megabytes that are dirty in the primary's buffers afterwards; the standbys have replayed it all."""
    primary = cluster.primary()
    if not primary.sql("SELECT to_regclass('dirty')", dbname=users.DATABASE)[0][0]:
        primary.sql("CREATE EXTENSION pg_buffercache", dbname=users.DATABASE)
        primary.sql("CREATE TABLE dirty (n int, filler text) WITH (fillfactor = 10)", dbname=users.DATABASE)
        fill = "INSERT INTO dirty SELECT 0, repeat('x', 500) FROM generate_series(1, %s)"
        primary.sql(fill, (DIRTY_PAGES,), dbname=users.DATABASE)
    primary.sql("CHECKPOINT")
    primary.sql("UPDATE dirty SET n = n + 1", dbname=users.DATABASE)
    written = primary.sql("SELECT pg_current_wal_lsn()::text")[0][0]
    for node in cluster.nodes:
        while node is not primary and not node.sql(f"SELECT 1 WHERE pg_last_wal_replay_lsn() >= '{written}'"):
            time.sleep(0.1)
    count = primary.sql("SELECT count(*) FROM pg_buffercache WHERE isdirty", dbname=users.DATABASE)[0][0]
    return int(count) * 8 // 1024


# ----------------------------------------------------------------------------------------------------------- one run


class Redundancy(threading.Thread):
    """Notes when the candidate is the primary and streams to all others, by Unix time."""

    def __init__(self, contender: Contender, candidate: str) -> None:
        super().__init__(daemon=True)
        self.contender = contender
        self.node = contender.cluster.node(candidate)
        self.back: float | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        connection: Any = None
        others = len(self.contender.cluster.nodes) - 1
        while not self.ended.wait(0.05):
            try:
                connection = connection or self.node.connect()
                with connection.cursor() as cursor:
                    cursor.execute(
                        "SELECT NOT pg_is_in_recovery(),"
                        " (SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming')"
                    )
                    primary, streaming = cursor.fetchone()
            except psycopg2.Error:
                connection = None
                continue
            if primary and streaming >= others and self._pooler_follows():
                self.back = time.time()
                return

    def _pooler_follows(self) -> bool:
        if not self.contender.pooled:
            return True
        [pooler] = self.contender.cluster.poolers
        rows = [row for row in pooler.console("SHOW DATABASES") if row["name"] == users.DATABASE]
        return [(int(row["port"]), int(row["paused"])) for row in rows] == [(self.node.port, 0)]


@dataclass
class Run:
    gap_ms: float
    errors: int
    lost: int
    acknowledged: int
    redundancy_s: float | None
    command_s: float
    outcome: str
    success: bool
    load_average: float
    dirty_mb: int = 0


@contextmanager
def walreceiver_frozen(contender: Contender, candidate: str) -> Iterator[None]:
    """Frozen half a second before the command. It thaws when the candidate was told to promote (then it is ended before
    it reads what is still in its socket), when the command has ended, or after 12 s, so that nobody waits for ever."""
    log = contender.log(candidate)
    position = log.stat().st_size
    over = threading.Event()
    pids = contender.cluster.node(candidate).process("walreceiver")
    faults.freeze(pids)

    def thaw() -> None:
        until = time.monotonic() + 12.5
        while not over.wait(0.02) and time.monotonic() < until:
            with log.open("rb") as file:
                file.seek(position)
                if b"received promote request" in file.read():
                    time.sleep(0.1)
                    break
        faults.thaw(pids)

    thread = threading.Thread(target=thaw)
    thread.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        over.set()
        thread.join()


def forget_archived(cluster: Cluster) -> None:
    segments = sorted(path for path in cluster.archive.iterdir() if len(path.name) == 24)
    for path in segments[:-KEPT_ARCHIVED]:
        path.unlink()


def measure(contender: Contender, load: Load, directory: Path) -> Run:
    cluster = contender.cluster
    old = cluster.primary().name
    candidate = next(node.name for node in cluster.nodes[:2] if node.name != old)
    dirty = make_dirty(cluster) if load.dirty else 0
    forget_archived(cluster)
    os.sync()  # what the contender before has left to be written is not for this one to wait for
    contender.before(candidate)
    writers = Writers(
        directory / "writers", contender.endpoints, connections=load.connections, rate=load.rate,
        hold_ms=load.hold_ms, retry_ms=RETRY_MS, passfile=str(cluster.lab_passfile), max_seconds=600.0,
    )  # fmt: skip
    redundancy = Redundancy(contender, candidate)
    with writers:
        time.sleep(LEAD_SECONDS)
        average = os.getloadavg()[0]
        with walreceiver_frozen(contender, candidate) if load.frozen else nullcontext():
            redundancy.start()
            began = time.time()
            outcome, success = contender.switch(candidate)
            command = time.time() - began
        redundancy.join(REDUNDANCY_SECONDS if success else 5.0)
        redundancy.ended.set()
        time.sleep(TAIL_SECONDS)
        ended = time.time()
    if not any(node.running() and node.sql("SELECT NOT pg_is_in_recovery()") == [(True,)] for node in cluster.nodes):
        outcome, success = f"NO PRIMARY IS LEFT, somebody has to start one: {outcome}", False
        cluster.node(old).start()
    primary = cluster.primary()
    contender.after(primary.name)
    cluster.wait_streaming({node.name for node in cluster.nodes} - {primary.name}, seconds=REDUNDANCY_SECONDS)
    verdict = check(writers.log, lambda: primary.connect("postgres", users.DATABASE), window=(began, ended))
    assert verdict.pause is not None, "the writers acknowledged nothing"
    if verdict.imbalances or verdict.doubled or verdict.unexplained:
        raise RuntimeError(f"{contender.name}: the ledger is broken: {verdict}")
    back = redundancy.back
    return Run(
        gap_ms=verdict.pause.ms,
        errors=verdict.writer_errors,
        lost=len(verdict.missing),
        acknowledged=verdict.acknowledged,
        redundancy_s=max(0.0, back - verdict.pause.start) if back is not None and success else None,
        command_s=command,
        outcome=outcome,
        success=success,
        load_average=average,
        dirty_mb=dirty,
    )


# ------------------------------------------------------------------------------------------------------------- report


def p95(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def row(load: Load, contender: str, runs: list[Run]) -> dict[str, Any]:
    gaps = [run.gap_ms for run in runs]
    back = [run.redundancy_s for run in runs if run.redundancy_s is not None]
    return {
        "load": load.name,
        "contender": contender,
        "runs": len(runs),
        "succeeded": sum(run.success for run in runs),
        "gap_min_ms": round(min(gaps)),
        "gap_median_ms": round(statistics.median(gaps)),
        "gap_p95_ms": round(p95(gaps)),
        "gap_max_ms": round(max(gaps)),
        "client_errors": sum(run.errors for run in runs),
        "acknowledged": sum(run.acknowledged for run in runs),
        "acknowledged_lost": sum(run.lost for run in runs),
        "redundancy_median_s": round(statistics.median(back), 2) if back else None,
        "command_median_s": round(statistics.median(run.command_s for run in runs), 2),
        "load_average": [
            round(min(run.load_average for run in runs), 1),
            round(max(run.load_average for run in runs), 1),
        ],
        "left_without_primary": sum(run.outcome.startswith("NO PRIMARY") for run in runs),
        **({"dirty_min_mb": min(run.dirty_mb for run in runs)} if load.dirty else {}),
        "outcomes": sorted({run.outcome for run in runs}),
    }


@dataclass
class Table:
    rows: list[dict[str, Any]] = field(default_factory=list)

    def value(self, load: str, contender: str, key: str) -> Any:
        return next((row[key] for row in self.rows if (row["load"], row["contender"]) == (load, contender)), None)

    def targets(self) -> list[dict[str, Any]]:
        """Only those whose rows were measured."""
        found: list[dict[str, Any]] = []

        def target(name: str, value: float | None, limit: str, met: bool) -> None:
            if value is not None:
                found.append({"name": name, "value": value, "target": limit, "met": met})

        def ratio(load: str, peer: str) -> float | None:
            mine = self.value(load, "ours, direct", "gap_median_ms")
            theirs = self.value(load, peer, "gap_median_ms")
            return round(mine / theirs, 3) if mine is not None and theirs else None

        peers = ("Patroni, defaults", "Patroni, tuned", "repmgr, defaults", "repmgr, tuned")
        for load in dict.fromkeys(row["load"] for row in self.rows):
            for peer in () if load == FROZEN else peers:
                limit = (0.2 if peer.startswith("repmgr") else 0.1) if load == BASE else 1.0
                value = ratio(load, peer)
                target(f"{load}: direct median / {peer}", value, f"<= {limit:g}", value is not None and value <= limit)
        median = self.value(BASE, "ours, PgBouncer", "gap_median_ms")
        target(f"{BASE}: median through PgBouncer, ms", median, "<= 150", median is not None and median <= 150)
        high = self.value(BASE, "ours, PgBouncer", "gap_p95_ms")
        target(f"{BASE}: p95 through PgBouncer, ms", high, "<= 300", high is not None and high <= 300)
        mine = [row for row in self.rows if row["contender"].startswith("ours")]
        if mine:
            errors = sum(row["client_errors"] for row in mine if "PgBouncer" in row["contender"])
            target("client errors through PgBouncer, all rows", errors, "0", errors == 0)
            lost = sum(row["acknowledged_lost"] for row in mine)
            target("acknowledged commits lost by ours, all rows", lost, "0", lost == 0)
        theirs = self.value(FROZEN, "Patroni, defaults", "acknowledged_lost")
        target(f"{FROZEN}: lost by Patroni, which calls it a success", theirs, "> 0 (shown)", bool(theirs))
        again = self.value("re-run", "ours, playbook", "command_median_s")
        target("idempotent re-run of the playbook, s", again, "<= 5", again is not None and again <= 5)
        return found

    def show(self) -> None:
        words = ("gap ms: min", "median", "p95", "max", "errors", "lost", "redundant s", "command s", "runs", "load")
        keys = ("gap_min_ms", "gap_median_ms", "gap_p95_ms", "gap_max_ms", "client_errors", "acknowledged_lost",
                "redundancy_median_s", "command_median_s", "runs", "load_average")  # fmt: skip
        print("| load | contender | " + " | ".join(words) + " |")
        print("|---" * (len(words) + 2) + "|")
        for row in self.rows:
            cells = [("-".join(map(str, row[key])) if key == "load_average" else row[key]) for key in keys]
            texts = ["" if cell is None else str(cell) for cell in cells]
            print(f"| {row['load']} | {row['contender']} | " + " | ".join(texts) + " |")


BASE, HALF, MOST = "200 writes/s", "50 % of saturation", "90 % of saturation"
LONG, DIRTY, FROZEN = "50 ms transactions", ">= 1 GB dirty buffers", "candidate's walreceiver frozen"
GROUPS = {"base": BASE, "half": HALF, "most": MOST, "long": LONG, "dirty": DIRTY, "frozen": FROZEN, "rerun": "re-run"}


def loads(names: list[str], per_second: float) -> list[Load]:
    known = [
        Load(BASE, 200.0),
        Load(HALF, per_second * 0.5, connections=16),
        Load(MOST, per_second * 0.9, connections=16),
        Load(LONG, 100.0, connections=16, hold_ms=50.0),
        Load(FROZEN, 200.0, frozen=True),
        Load(DIRTY, 200.0, dirty=True),
    ]
    return [load for load in known if load.name in [GROUPS[name] for name in names]]


def playbook_rows(contender: Contender) -> list[dict[str, Any]]:
    """The whole playbook, of which the module is a part; and the same command again."""
    cluster = contender.cluster
    seconds: dict[str, list[float]] = {"playbook": [], "re-run": []}
    for _time in range(3):
        old = cluster.primary().name
        candidate = next(node.name for node in cluster.nodes[:2] if node.name != old)
        for name in seconds:
            began = time.monotonic()
            done = run_playbook(cluster, "promote_replica.yml", promote_replica_candidate=candidate)
            seconds[name].append(time.monotonic() - began)
            if done.returncode != 0:
                raise RuntimeError(done.stdout[-3000:])
    empty = dict.fromkeys(
        ("gap_min_ms", "gap_median_ms", "gap_p95_ms", "gap_max_ms", "client_errors", "acknowledged_lost",
         "redundancy_median_s")
    )  # fmt: skip
    average = [round(os.getloadavg()[0], 1)] * 2
    return [
        {"load": name, "contender": "ours, playbook", "runs": len(values), **empty, "client_errors": 0,
         "acknowledged_lost": 0, "command_median_s": round(statistics.median(values), 2), "load_average": average}
        for name, values in seconds.items()
    ]  # fmt: skip


def bench(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    table = Table()
    calibration = [calibrate()]
    say(f"load average {os.getloadavg()[0]:.1f}; {calibration[0]}")
    chosen = arguments.contenders.split(",")
    names = [name for name in arguments.groups.split(",") if name != "dirty"]
    per_second = 0.0

    def carry_out(contenders: list[Contender], load: Load) -> None:
        key = next(name for name, text in GROUPS.items() if text == load.name)
        count = arguments.runs_of.get(key, arguments.runs)
        runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
        for number in range(count):
            for contender in contenders:
                run = measure(contender, load, directory)
                runs[contender.name].append(run)
                say(f"{load.name} {number + 1}/{count} {contender.name}: gap {run.gap_ms:.0f} ms, {run.errors} errors,"
                    f" {run.lost} lost, redundant after {run.redundancy_s or math.nan:.1f} s, command"
                    f" {run.command_s:.1f} s, load {run.load_average:.1f}: {run.outcome[:90]}")  # fmt: skip
        table.rows.extend(row(load, name, found) for name, found in runs.items() if found)
        calibration.append(calibrate())

    if names:
        with lineup(directory, chosen, SETTINGS) as contenders:
            if {"half", "most"} & set(names):
                per_second = saturation(contenders[0], directory)
                say(f"saturation: {per_second:.0f} commits/s")
            for load in loads(names, per_second):
                carry_out(contenders, load)
            if "rerun" in names and contenders[0].name.startswith("ours"):
                table.rows += playbook_rows(contenders[0])
    if "dirty" in arguments.groups.split(","):
        with lineup(directory, chosen, {**SETTINGS, **DIRTY_SETTINGS}) as contenders:
            carry_out(contenders, loads(["dirty"], 0.0)[0])
    table.show()
    server = subprocess.check_output([binaries.binaries(binaries.RIVALS) / "postgres", "--version"], text=True)
    return {
        "name": "promote",
        "versions": {
            "postgresql": server.split()[2],
            "patroni": _patroni_version(),
            "repmgr": _repmgr_version(),
            "pgbouncer": subprocess.check_output([str(binaries.pgbouncer()), "--version"], text=True).split()[1],
        },
        "load": {
            "saturation_per_s": round(per_second),
            "calibration": calibration,
            "cores": os.cpu_count(),
            "notes": [
                "all servers, managers and writers share one host",
                "repmgr's ssh is replaced by local execution",
                "direct rows: libpq with several hosts and target_session_attrs=read-write",
                "ours is the module as the role runs it; the playbook around it is a row of its own",
            ],
        },
        "runs": arguments.runs,
        "rows": table.rows,
        "targets": table.targets(),
    }


def _patroni_version() -> str:
    with suppress(MissingProgram):
        words, environment = binaries.patroni()
        text = "import patroni.version; print(patroni.version.__version__)"
        return subprocess.check_output([words[0], "-c", text], env={**os.environ, **environment}, text=True).strip()
    return "none"


def _repmgr_version() -> str:
    program = binaries.binaries(binaries.RIVALS) / "repmgr"
    return subprocess.check_output([program, "--version"], text=True).split()[1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_promote")
    parser.add_argument("--runs", default="20", help="switchovers per row: 20, or 20,frozen=5,dirty=10")
    parser.add_argument("--groups", default=",".join(GROUPS), help="of " + ",".join(GROUPS))
    parser.add_argument("--contenders", default="ours,patroni,patroni-tuned,repmgr,repmgr-tuned")
    arguments = parser.parse_args()
    counts = dict(word.split("=") for word in arguments.runs.split(",") if "=" in word)
    arguments.runs_of = {name: int(count) for name, count in counts.items()}
    arguments.runs = next(int(word) for word in [*arguments.runs.split(","), "20"] if "=" not in word)
    unknown = (set(arguments.groups.split(",")) | set(counts)) - set(GROUPS)
    if unknown:
        parser.error(f"unknown groups {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended on the way out
    place = CHECKOUT / ".lab"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=place) as directory:
        result = bench(arguments, Path(directory))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
