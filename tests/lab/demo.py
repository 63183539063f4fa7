# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: a switchover under load on real servers, proved by the clients' own log. Run again, it goes back."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.lab import ledger
from tests.lab.binaries import MissingProgram
from tests.lab.checker import check, read_log, writable_nodes
from tests.lab.cluster import Cluster
from tests.lab.operation import environment, journals, playbook_command, read_steps
from tests.lab.report import picture, write_report
from tests.lab.sampler import Sampler
from tests.lab.server import LabError, Node
from tests.lab.users import CHECKOUT
from tests.lab.writer import Writers

LAB = CHECKOUT / ".lab"
DIRECTORY = LAB / "demo"
CONNECTIONS = 24
BEFORE_SECONDS, AFTER_SECONDS = 2.0, 2.0


def up(version: str) -> Cluster:
    if (DIRECTORY / "cluster.json").exists():
        cluster = Cluster.load(DIRECTORY)
        cluster.start()
        return cluster
    print(f"Starting a primary and two standbys, PostgreSQL {version} …", flush=True)
    cluster = Cluster.create(DIRECTORY, version=version, pooler="auto")
    with cluster.primary().connect("app", "accounts") as connection:
        ledger.create(connection)
    return cluster


def switch_over(cluster: Cluster) -> tuple[dict[str, Any], bool]:
    """One switchover under load; the report, and whether all is well."""
    old = cluster.primary()
    new = next(node for node in cluster.nodes[:2] if node.name != old.name)
    pooler = cluster.pooler
    endpoints = [(pooler.host, pooler.port)] if pooler else [(node.host, node.port) for node in cluster.nodes]
    through = pooler.version if pooler else "none"
    path = f"through {through}" if pooler else "directly to the servers (no PgBouncer found)"
    print(f"{CONNECTIONS} writers, {path}; switching over from {old.name} to {new.name}\n", flush=True)
    sampler = Sampler(cluster.nodes)
    sampler.start()
    writers = Writers(DIRECTORY / "load", endpoints, connections=CONNECTIONS, passfile=str(cluster.lab_passfile))
    with writers:
        time.sleep(BEFORE_SECONDS)
        began = time.time()
        code = subprocess.run(
            playbook_command(cluster, "promote_replica.yml", promote_replica_candidate=new.name),
            cwd=CHECKOUT, env=environment(ANSIBLE_DISPLAY_SKIPPED_HOSTS="false"), stdin=subprocess.DEVNULL, check=False,
        ).returncode  # fmt: skip
        time.sleep(AFTER_SECONDS)
    samples = sampler.stop()
    if code != 0:
        raise LabError(f"the playbook failed with exit status {code}; its last lines say why")
    return _report(cluster, old, new, writers.log, samples, began=began, through=through)


def _report(
    cluster: Cluster, old: Node, new: Node, log: Path, samples: Any, *, began: float, through: str
) -> tuple[dict[str, Any], bool]:
    steps = read_steps(journals(cluster, old.name)[-1])
    operation = steps[0]["start"]
    verdict = check(log, lambda: new.connect("postgres", "accounts"), window=(operation, steps[-1]["end"]))
    entries = read_log(log)
    certificate = new.sql("SELECT detail -> 'certificate' FROM dbops.operation ORDER BY opened_at DESC LIMIT 1")[0][0]
    following = [row[0] for row in new.sql(
        "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' ORDER BY 1"
    )]  # fmt: skip
    writable = writable_nodes(cluster.nodes)
    report = {
        "old_primary": old.name,
        "new_primary": new.name,
        "old_timeline": certificate["old_timeline"],
        "new_timeline": certificate["new_timeline"],
        "pause_ms": round(verdict.pause_ms, 1) if verdict.pause_ms is not None else None,
        "writer_errors": verdict.writer_errors,
        "acknowledged": verdict.acknowledged,
        "missing": len(verdict.missing),
        "doubled": len(verdict.doubled),
        "unknown": verdict.unknown,
        "unknown_committed": verdict.unknown_committed,
        "unexplained": verdict.unexplained,
        "imbalances": verdict.imbalances,
        "following": following,
        "writable": writable,
        "pooler": through,
        "version": cluster.version,
        "connections": CONNECTIONS,
        "seconds": entries[-1].wall - entries[0].wall,
        "playbook_seconds": round(steps[-1]["end"] - began, 1),
        "steps": [
            {
                "step": step["step"],
                "start_ms": round((step["start"] - operation) * 1000, 1),
                "duration_ms": round((step["end"] - step["start"]) * 1000, 1),
            }
            for step in steps
        ],
        "certificate": certificate,
        "operation_wall": operation,
        "picture": picture(entries, samples, verdict.pause, operation),
    }
    write_report(LAB, report)
    well = (
        verdict.ok
        and writable == [new.name]
        and len(following) == len(cluster.nodes) - 1
        and not (through != "none" and verdict.writer_errors)
    )
    return report, well


def show(report: dict[str, Any], well: bool) -> None:
    pause = "none seen" if report["pause_ms"] is None else f"{report['pause_ms']:.0f} ms"
    rows = [
        ("old primary", f"{report['old_primary']}, timeline {report['old_timeline']}"),
        ("new primary", f"{report['new_primary']}, timeline {report['new_timeline']}"),
        ("write pause as the writers saw it", pause),
        ("errors seen by writers", f"{report['writer_errors']} (pooler: {report['pooler']})"),
        ("acknowledged commits", f"{report['acknowledged']}"),
        ("acknowledged commits missing", f"{report['missing']}"),
        ("commits applied twice", f"{report['doubled']}"),
        ("commits of unknown outcome", f"{report['unknown']} ({report['unknown_committed']} of them committed)"),
        ("nodes that follow the new primary", ", ".join(report["following"]) or "none"),
        ("nodes that accept a direct write", ", ".join(report["writable"]) or "none"),
        ("proof", f"{report['certificate']['old_timeline']}@{report['certificate']['shutdown_checkpoint_end']}"
                  f" replayed by {report['new_primary']} before it was promoted"),
        ("report", f"{LAB / 'report.html'} and report.json"),
    ]  # fmt: skip
    print()
    for name, value in rows:
        print(f"  {name:36} {value}")
    print("\n" + ("Nothing acknowledged was lost." if well else "NOT WELL: see the rows above and the report."))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.demo")
    parser.add_argument("--down", action="store_true", help="end and remove what the demo started")
    parser.add_argument("--version", default="18")
    arguments = parser.parse_args()
    try:
        if arguments.down:
            if (DIRECTORY / "cluster.json").exists():
                Cluster.load(DIRECTORY).destroy()
            return 0
        report, well = switch_over(up(arguments.version))
    except (LabError, MissingProgram, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    show(report, well)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
