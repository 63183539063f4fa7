# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-partition``: what clients notice of partitions and indexes being changed, ours beside pg_partman and
pg-partsmith, on one PostgreSQL 15, interleaved in one run.

Each contender has a fresh database with the same table for each run, and the order is random. A writer and a reader are
at work, with a millisecond between two statements; the stall is the longest time that one statement took.

The last line of standard output is one JSON object; progress goes to standard error. The exit status says whether it
ran, not whether the targets were met.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_promote import calibrate, say
from tests.benchmarks.partition_contenders import (
    MONTH,
    Contender,
    Nothing,
    Ours,
    Outcome,
    Partman,
    Partsmith,
    Scene,
    month,
    ours,
)
from tests.lab import binaries
from tests.lab.binaries import MissingProgram
from tests.lab.cluster import Cluster
from tests.lab.database import Database
from tests.lab.operation import run_module, start_module
from tests.lab.table_load import TableLoad
from tests.lab.users import CHECKOUT
from tests.lab.waiting import wait_for

FIXED = 1000  # rows that the reader must see all the time
REPORT_SECONDS = 4.0
LIVE = 1_000_000_000  # where the numbers of the writer's rows begin
LEAVES = 24
# The archive of the lab's clusters would only add work of the disk that is not measured.
SETTINGS = {"shared_buffers": "256MB", "max_wal_size": "4GB", "archive_mode": "off"}
INSERT = "INSERT INTO ev (id, at, note) VALUES (%s, now(), 'live')"
PROBE = "SELECT count(*) FROM ev WHERE note = 'fixed'"
CREATE = "24 partitions, old rows in default"
CREATE_HELD = "24 partitions, old rows in default, which the report has read"
CREATE_PLAIN = "24 partitions, no default"
ONE, FOUR = "default repaired, one window", "default repaired, four windows"
DETACH, DETACH_LOST = "detach killed, its statement lives on", "detach killed with its session"
INDEX = "index of 24 leaves"
GROUPS = ("create", "repair", "detach", "index")
FIRST_PARTITION = """
SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class ON oid = inhrelid
 WHERE inhparent = 'ev'::regclass ORDER BY pg_get_expr(relpartbound, oid) = 'DEFAULT', pg_get_expr(relpartbound, oid)
"""
Figures = dict[str, Any]


# --------------------------------------------------------------------------------------------------------- one run


@contextmanager
def report(database: Database, statement: str) -> Iterator[None]:
    """A transaction that has run ``statement`` and stays open for four seconds, or until the end of the block."""
    connection = database.connect(application_name="report")
    connection.autocommit = False
    with connection.cursor() as cursor:
        cursor.execute(statement)
    end = threading.Timer(REPORT_SECONDS, connection.rollback)
    end.start()
    try:
        yield
    finally:
        end.cancel()
        end.join()
        connection.rollback()
        connection.close()


def at_rest(database: Database) -> None:
    """Nothing of what was loaded is left to be done by somebody else later."""
    database.sql("VACUUM ANALYZE", user="postgres")
    database.sql("CHECKPOINT", user="postgres")


def fill(database: Database, rows: int, at: str, *, fixed: str) -> None:
    """``rows`` rows with the time ``at`` (of ``n``), of which those are fixed for which ``fixed`` is true."""
    words = f"n, {at}, CASE WHEN {fixed} THEN 'fixed' ELSE md5(n::text) END"
    database.sql(f"INSERT INTO ev (id, at, note) SELECT {words} FROM generate_series(1, {rows}) n")  # noqa: S608  ours


def p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def watched(scene: Scene, act: Callable[[Scene], Outcome], *, report_reads: str = "") -> tuple[Outcome, Figures]:
    """Under load, and beside a report if it is said what that has read."""
    load = TableLoad(scene.database, insert=INSERT, probe=PROBE, first=LIVE)
    with load:
        time.sleep(0.5)
        with report(scene.database, report_reads) if report_reads else nullcontext():
            load.writer.waits.clear()
            load.reader.waits.clear()
            average, began = os.getloadavg()[0], time.monotonic()
            outcome = act(scene)
            seconds = time.monotonic() - began
            time.sleep(0.1)
    live = [row[0] for row in scene.database.sql("SELECT id FROM ev WHERE id >= %s ORDER BY 1", [LIVE])]
    figures = {
        "seconds": seconds,
        "writer_max_ms": load.writer.longest,
        "writer_p99_ms": p99(load.writer.waits),
        "reader_max_ms": load.reader.longest,
        "reader_p99_ms": p99(load.reader.waits),
        "writer_errors": len(load.writer.errors),
        "reader_errors": len(load.reader.errors),
        "min_visible": min(load.reader.answers),
        "all_rows_there": live == sorted(load.writer.acknowledged),
        "load_average": average,
        "success": outcome.success,
        "outcome": outcome.text,
    }
    if outcome.steps_s is not None:
        figures["steps_s"] = outcome.steps_s
    for log in (load.writer, load.reader):
        if log.errors:
            figures["error"] = log.errors[0]
    return outcome, figures


def create(contender: Contender, scene: Scene, rows: int, *, default: bool, held: bool) -> Figures:
    """The rows of the default partition are of another time, so that everybody can make the partitions. The report has
    read this month; or (``held``) the default partition, too."""
    database = scene.database
    statement = "SELECT count(*) FROM ev"
    if not held:  # constants, so that no other partition is locked
        (this,) = database.sql(f"SELECT {MONTH}::text, {month(1)}::text")
        statement += f" WHERE at >= '{this[0]}' AND at < '{this[1]}'"
    contender.lay_out(scene)
    if default:
        fill(database, rows, "'2000-01-01'::timestamptz + n * interval '1 minute'", fixed="false")
    else:
        database.sql("DROP TABLE ev_default")
    database.sql("INSERT INTO ev (at, note) SELECT now(), 'fixed' FROM generate_series(1, %s)", [FIXED])
    at_rest(database)
    count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ev'::regclass"
    before = database.value(count)
    _outcome, figures = watched(scene, contender.create, report_reads=statement)
    made = database.value(count) - before
    return {
        **figures,
        "partitions": made,
        "success": made == contender.makes,
    }  # pg-partsmith calls rows in default a failure


def repair(contender: Contender, scene: Scene, rows: int, windows: int) -> Figures:
    """Rows of this month, or of this and the three before it, came before their partitions. The writer goes on to write
    such rows."""
    database = scene.database
    contender.lay_out(scene)
    database.sql(f"DROP TABLE {database.value(FIRST_PARTITION)}")  # this month's
    every = rows // FIXED  # so that each window has its share of the fixed ones
    begin = f"{MONTH} - (n / {every} % {windows}) * interval '1 month'"
    fill(database, rows, f"{begin} + n * interval '1 second'", fixed=f"n % {every} = 0")
    scene.first = database.value(f"SELECT {month(1 - windows)}::date::text")
    in_default = "SELECT count(*) FROM ev_default"
    assert database.value(in_default) == rows
    at_rest(database)
    outcome, figures = watched(scene, contender.repair)
    found = database.sql("SELECT count(*), sum(id) FROM ev WHERE id < %s", [LIVE])
    figures["all_rows_there"] &= found == [(rows, rows * (rows + 1) // 2)]
    figures["left_in_default"] = database.value(in_default)
    if outcome.success:
        figures["rows_per_s"] = rows / figures["seconds"]
    return figures


def detach(scene: Scene, *, session: bool) -> Figures:
    """The module is killed in the second half of DETACH CONCURRENTLY, where a reader that came later keeps it. Its
    statement lives on until that reader ends, one second after the next run began; or (``session``) is ended, too, and
    leaves its rest."""
    database = scene.database
    Contender().lay_out(scene)
    database.sql("DROP TABLE ev_default")
    start = database.value(f"SELECT {month(-3)}::date::text")
    options = {**ours(scene), "start": start, "premake": 1}
    run_module("pg_partition", options)
    for offset in range(-3, 1):
        database.sql(f"INSERT INTO ev (at) VALUES ({month(offset)})")  # noqa: S608  ours
    name = database.value(FIRST_PARTITION)
    pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
    options |= {"state": "detached", "partition": name}
    reader = database.connect(application_name="report")
    reader.autocommit = False
    with reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ev")
    run = start_module("pg_partition", options)
    wait_for(lambda: database.value(pending), seconds=20, what="the first half was committed")
    run.process.kill()
    run.result()
    end = threading.Timer(1.0, reader.rollback)
    if session:
        own = "FROM pg_stat_activity WHERE application_name = 'dbops pg_partition' AND datname = current_database()"
        database.sql(f"SELECT pg_terminate_backend(pid) {own}", user="postgres")
        wait_for(lambda: not database.sql(f"SELECT pid {own}", user="postgres"), seconds=10, what="its session ended")
        reader.rollback()
        assert database.value(pending) == 1
    else:
        end.start()
    average, began = os.getloadavg()[0], time.monotonic()
    again = start_module("pg_partition", options)
    state = "SELECT (SELECT count(*) FROM pg_inherits WHERE inhdetachpending), (SELECT count(*) FROM ev)"
    wait_for(lambda: database.sql(state) == [(0, 3)], seconds=60, what="nothing is pending", interval=0.01)
    queryable = time.monotonic() - began
    result = again.result()
    figures = {
        "queryable_s": queryable,
        "seconds": time.monotonic() - began,
        "load_average": average,
        "success": not result.get("failed"),
        "outcome": result.get("msg", "done"),
    }
    if not session:
        end.join()
    reader.close()
    return figures


def index(scene: Scene, leaf_rows: int) -> Figures:
    """Built whole, dropped, built again and killed when half of the leaves have it; then run again."""
    database = scene.database
    database.sql("CREATE TABLE p (id int, k int NOT NULL, name text) PARTITION BY RANGE (k)")
    for leaf in range(LEAVES):
        database.sql(f"CREATE TABLE p{leaf} PARTITION OF p FOR VALUES FROM ({leaf}) TO ({leaf + 1})")
    rows = "INSERT INTO p SELECT n, n %% %s, md5(n::text) FROM generate_series(1, %s) n"
    database.sql(rows, [LEAVES, LEAVES * leaf_rows])
    at_rest(database)
    where = {**database.login, "state_dir": str(scene.directory / "state")}
    options = {**where, "table": "p", "name": "by_name", "columns": ["name"]}
    average, began = os.getloadavg()[0], time.monotonic()
    whole = run_module("pg_index", options)
    whole_s = time.monotonic() - began
    assert not whole.get("failed"), whole.get("msg")
    run_module("pg_index", {**options, "state": "absent"})
    database.sql("CHECKPOINT", user="postgres")
    run = start_module("pg_index", options)
    wait_for(lambda: len(valid(database)) >= LEAVES // 2, seconds=600, what="half of the leaves have it")
    run.process.kill()
    run.result()
    before = valid(database)
    began = time.monotonic()
    result = run_module("pg_index", options)
    again_s = time.monotonic() - began
    after = valid(database)
    built = sum(item["action"] in ("build", "reindex") for item in result.get("indexes", []))
    kept = sum(after.get(oid) == file for oid, file in before.items())
    parent = database.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_name'::regclass")
    return {
        "seconds": whole_s,
        "again_s": again_s,
        "valid_at_kill": len(before),
        "built_again": built,
        "kept": kept,
        "built_in_vain": max(len(before) - kept, built - (LEAVES - len(before)), 0),
        "load_average": average,
        "success": not result.get("failed") and len(after) == LEAVES and bool(parent),
        "outcome": result.get("msg", "done"),
    }


def valid(database: Database) -> dict[int, int]:
    """The valid indexes of leaves: oid -> the file that they are in."""
    return dict(
        database.sql(
            "SELECT c.oid::bigint, c.relfilenode::bigint FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
            " JOIN pg_inherits ON inhrelid = indrelid WHERE inhparent = 'p'::regclass AND indisvalid"
        )
    )


# ---------------------------------------------------------------------------------------------------------- the rows


def row(measurement: str, contender: Contender, runs: list[Figures]) -> dict[str, Any]:
    """Of each figure the least, the median and the greatest."""
    found: dict[str, Any] = {
        "measurement": measurement,
        "contender": contender.name,
        "command": contender.repairs if "repaired" in measurement else contender.creates,
        "runs": len(runs),
        "succeeded": sum(run["success"] for run in runs),
    }
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run[key] for run in runs if key in run]
        if key == "all_rows_there":
            found[key] = all(values)
        elif key in ("outcome", "error"):
            found[f"{key}s"] = sorted(set(values))
        elif key != "success":
            least, median, most = min(values), statistics.median(values), max(values)
            found[key] = {"min": round(least, 3), "median": round(median, 3), "max": round(most, 3)}
    return found


COLUMNS = {
    "seconds": "s", "steps_s": "its steps, s", "queryable_s": "queryable after, s", "again_s": "run again, s",
    "rows_per_s": "rows/s", "partitions": "made", "writer_max_ms": "writer stall ms", "writer_p99_ms": "p99",
    "reader_max_ms": "reader stall ms", "reader_p99_ms": "p99", "min_visible": "rows visible, least",
    "writer_errors": "writer errors", "reader_errors": "reader errors", "left_in_default": "left in default",
    "all_rows_there": "all rows there", "valid_at_kill": "valid when killed", "built_again": "built again",
    "kept": "kept",
}  # fmt: skip


@dataclass
class Table:
    rows: list[dict[str, Any]] = field(default_factory=list)

    def of(self, measurement: str, prefix: str = "") -> list[dict[str, Any]]:
        return [one for one in self.rows if one["measurement"] == measurement and one["contender"].startswith(prefix)]

    def show(self) -> None:
        """For each measurement the median, and in brackets the greatest."""
        for measurement in dict.fromkeys(one["measurement"] for one in self.rows):
            rows = self.of(measurement)
            keys = [key for key in COLUMNS if any(key in one for one in rows)]
            print(f"\n{measurement}\n")
            print("| contender | succeeded | " + " | ".join(COLUMNS[key] for key in keys) + " |")
            print("|---" * (len(keys) + 2) + "|")
            for one in rows:
                cells = [_cell(key, one.get(key)) for key in keys]
                print(f"| {one['contender']} | {one['succeeded']}/{one['runs']} | " + " | ".join(cells) + " |")

    def targets(self) -> list[dict[str, Any]]:
        """Only of what was measured. Limits hold for the worst run, comparisons for medians."""
        found: list[dict[str, Any]] = []

        def target(name: str, value: Any, limit: str, met: bool) -> None:
            found.append({"name": name, "value": value, "target": limit, "met": met})

        for measurement, limit in ((CREATE, 60), (CREATE_HELD, 60), (CREATE_PLAIN, 20)):
            peers = (*self.of(measurement, "pg_partman"), *self.of(measurement, "pg-partsmith"))
            for mine, client in itertools.product(self.of(measurement, "ours"), ("writer", "reader")):
                name, key = f"{measurement}: {mine['contender']}, stall of the {client}, ms", f"{client}_max_ms"
                worst = mine[key]["max"]
                target(name, worst, f"<= {limit}", worst <= limit)
                for peer in peers:
                    both = [mine[key]["median"], peer[key]["median"]]
                    target(f"{name}, beside {peer['contender']}", both, "the first <= the second", both[0] <= both[1])
        for measurement in (ONE, FOUR):
            for mine in self.of(measurement, "ours"):
                what = f"{measurement}: {mine['contender']}"
                errors = mine["writer_errors"]["max"]
                hidden = FIXED - mine["min_visible"]["min"]
                target(f"{what}, rows that a reader did not see", hidden, "0", hidden == 0)
                target(f"{what}, writer errors", errors, "0", errors == 0)
                target(f"{what}, all rows there", mine["all_rows_there"], "True", mine["all_rows_there"])
        for mine in self.of(ONE, "ours, default_rows=promote"):
            steps = mine.get("steps_s", {"median": math.inf})["median"]
            target("promote, its steps, s", steps, "<= 0.3", steps <= 0.3)
        for mine in self.of(FOUR, "ours, default_rows=shadow"):
            rate = mine.get("rows_per_s", {"median": 0})["median"]
            target("shadow, rows/s", rate, ">= 20000", rate >= 20_000)
        for measurement in (DETACH, DETACH_LOST):
            for mine in self.of(measurement):
                done = f"{mine['succeeded']}/{mine['runs']}"
                target(f"{measurement}: recovered", done, "all", mine["succeeded"] == mine["runs"])
        for mine in self.of(INDEX):
            vain, done = mine["built_in_vain"]["max"], f"{mine['succeeded']}/{mine['runs']}"
            target(f"{INDEX}: run again, whole and valid", done, "all", mine["succeeded"] == mine["runs"])
            target(f"{INDEX}: built again although valid when killed", vain, "0", vain == 0)
        return found


def _cell(key: str, value: Any) -> str:
    if not isinstance(value, dict):
        return "" if value is None else str(value)
    if key == "min_visible":
        return f"{value['min']}"
    shown = [f"{value[word]:.0f}" if value[word] >= 100 else f"{value[word]:.3g}" for word in ("median", "max")]
    return shown[0] if value["min"] == value["max"] else f"{shown[0]} ({shown[1]})"


def rivals() -> tuple[str, list[Partman | Partsmith]]:
    """The server to take, and the peers that can be had here."""
    version, peers = binaries.RIVALS, list[Partman | Partsmith]()
    try:
        binaries.binaries(version)
        peers.append(Partman())
    except MissingProgram as reason:
        say(f"\n!!! pg_partman IS NOT MEASURED: {reason}\n")
        version = "15"
    try:
        peers.append(Partsmith())
    except MissingProgram as reason:
        say(f"\n!!! pg-partsmith IS NOT MEASURED: {reason}\n")
    return version, peers


def bench(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    dice = random.Random(arguments.seed)
    groups, rows = arguments.groups.split(","), arguments.rows
    calibration = [calibrate()]
    say(f"seed {arguments.seed}, load average {os.getloadavg()[0]:.1f}; {calibration[0]}")
    version, peers = rivals()
    table = Table()

    with Cluster.create(directory / "lab", version, members=("pg1",), settings=SETTINGS) as cluster:

        def carry_out(measurement: str, contenders: list[Contender], measure: Callable[..., Figures]) -> None:
            runs: dict[str, list[Figures]] = {contender.name: [] for contender in contenders}
            for number in range(arguments.runs):
                for contender in dice.sample(contenders, len(contenders)):
                    database = Database.create(cluster)
                    place = directory / database.name
                    place.mkdir()
                    figures = measure(contender, Scene(database, place))
                    runs[contender.name].append(figures)
                    database.drop()
                    words = {
                        key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()
                    }
                    say(f"{measurement} {number + 1}/{arguments.runs} {contender.name}: {words}")
            table.rows.extend(row(measurement, contender, runs[contender.name]) for contender in contenders)
            calibration.append(calibrate())

        if "create" in groups:
            lineup = [Nothing(), Ours(), *peers, Contender()]
            for measurement, default, held in (
                (CREATE, True, False),
                (CREATE_HELD, True, True),
                (CREATE_PLAIN, False, True),
            ):
                carry_out(
                    measurement,
                    lineup,
                    lambda contender, scene, default=default, held=held: create(
                        contender, scene, rows, default=default, held=held
                    ),
                )
        if "repair" in groups:
            for measurement, windows, how in ((ONE, 1, "promote"), (FOUR, 4, "shadow")):
                carry_out(
                    measurement,
                    [Ours(default_rows=how), *peers],
                    lambda contender, scene, windows=windows: repair(contender, scene, rows, windows),
                )
        if "detach" in groups:
            for measurement, session in ((DETACH, False), (DETACH_LOST, True)):
                carry_out(measurement, [Ours()], lambda _ours, scene, session=session: detach(scene, session=session))
        if "index" in groups:
            carry_out(INDEX, [Ours()], lambda _ours, scene: index(scene, arguments.leaf_rows))
        versions = {"postgresql": cluster.primary().sql("SHOW server_version")[0][0].split()[0]}
        versions |= {peer.name: peer.version(cluster) for peer in peers}
    table.show()
    return {
        "name": "partition",
        "versions": versions,
        "load": {
            "seed": arguments.seed,
            "calibration": calibration,
            "cores": os.cpu_count(),
            "rows_in_default": rows,
            "rows_per_leaf": arguments.leaf_rows,
            "notes": [
                "server, clients and contenders share one host",
                "ours and pg-partsmith are programs: their seconds have a start of Python in them",
            ],
        },
        "runs": arguments.runs,
        "rows": table.rows,
        "targets": table.targets(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_partition")
    parser.add_argument("--runs", type=int, default=5, help="of each contender in each measurement")
    parser.add_argument("--rows", type=int, default=300_000, help="in the default partition; at least 1000")
    parser.add_argument("--leaf-rows", type=int, default=100_000, help="of each of the 24 leaves that are indexed")
    parser.add_argument("--groups", default=",".join(GROUPS), help="of " + ",".join(GROUPS))
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the order of the contenders")
    arguments = parser.parse_args()
    if unknown := set(arguments.groups.split(",")) - set(GROUPS):
        parser.error(f"unknown groups {', '.join(sorted(unknown))}")
    if arguments.rows % FIXED:
        parser.error(f"--rows must be a multiple of {FIXED}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended on the way out
    place = CHECKOUT / ".lab"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=place) as directory:
        result = bench(arguments, Path(directory))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
