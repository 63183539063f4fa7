# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-fleet``: one ansible-playbook looks at many clusters and plans a switchover of each (fleet.yml).

Every cluster is real: a primary and a standby of its own, PostgreSQL 18, with small buffers. One of them is broken, its
primary was killed. Measured are the wall time and the memory of the controller, that is ansible-playbook and its forks;
the modules run on the managed hosts, here beside it, and are counted apart. RSS counts what forks share once for each
of them, PSS once in all.

The last line of standard output is one JSON object; progress goes to standard error. The exit status says whether the
broken cluster left the others alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.cluster import Cluster
from tests.lab.operation import environment
from tests.lab.users import CHECKOUT, write_file

SMALL = {
    "shared_buffers": "8MB",
    "max_connections": "20",
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    "max_worker_processes": "2",
    "autovacuum": "off",
}
LOOK_SECONDS = 0.5


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def create(directory: Path, count: int, stack: ExitStack) -> list[Cluster]:
    """Two at a time; each is gone when ``stack`` closes."""

    def one(number: int) -> Cluster:
        name = f"fleet{number:03}"
        return Cluster.create(directory / name, members=("pg1", "pg2"), settings=SMALL, name=name)

    clusters = []
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(one, number) for number in range(1, count + 1)]:
            clusters.append(stack.enter_context(done.result()))
            if len(clusters) % 10 == 0:
                say(f"{len(clusters)} clusters run")
    return clusters


def inventory(clusters: list[Cluster]) -> dict[str, Any]:
    return {
        "all": {
            "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
            "hosts": {
                cluster.name: {
                    "promotion": {**cluster.module_arguments("pg2", "pg1"), "node": "pg1"},
                    "candidate_data_dir": str(cluster.node("pg2").data_dir),
                }
                for cluster in clusters
            },
        }
    }


@dataclass
class Memory:
    """The most that was seen at one time of a process, its forks, and the programs these have started, in MB."""

    pid: int
    main_rss: float = 0.0
    controller_rss: float = 0.0
    controller_pss: float = 0.0
    forks: int = 0
    modules_pss: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self.look()

    def stop(self) -> None:
        self._stop.set()

    def look(self) -> None:
        own: list[int] = [self.pid]
        others: list[int] = []
        line = _command_line(self.pid)
        below = _children()
        waiting = below.get(self.pid, [])
        while waiting:
            pid = waiting.pop()
            (own if _command_line(pid) == line else others).append(pid)
            waiting += below.get(pid, [])
        sizes = [_sizes(pid) for pid in own]
        self.main_rss = max(self.main_rss, sizes[0][0])
        self.controller_rss = max(self.controller_rss, sum(rss for rss, _pss in sizes))
        self.controller_pss = max(self.controller_pss, sum(pss for _rss, pss in sizes))
        self.forks = max(self.forks, len(own) - 1)
        self.modules_pss = max(self.modules_pss, sum(_sizes(pid)[1] for pid in others))


def _children() -> dict[int, list[int]]:
    """Of every process, read once: beside a thousand servers more takes longer than a module lives."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        with suppress(OSError):  # ended meanwhile
            if name.isdigit():
                stat = Path(f"/proc/{name}/stat").read_text()
                found.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(name))
    return found


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # ended meanwhile


def _sizes(pid: int) -> tuple[float, float]:
    """RSS and PSS in MB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        text = ""
    # Of one that has ended meanwhile there is nothing to read.
    found = [re.search(rf"(?m)^{word}: +(\d+) kB", text) for word in ("Rss", "Pss")]
    rss, pss = (int(match[1]) / 1024 if match else 0.0 for match in found)
    return rss, pss


def run(file: Path, forks: int, broken: str, count: int) -> dict[str, Any]:
    """One ansible-playbook over all clusters; its row."""
    started, load = time.monotonic(), os.getloadavg()[0]
    process = subprocess.Popen(
        [sys.executable, "-m", "ansible", "playbook", str(CHECKOUT / "tests/benchmarks/fleet.yml"),
         "--inventory", str(file), "--forks", str(forks)],
        cwd=CHECKOUT,
        env=environment(ANSIBLE_LOCAL_TEMP=str(file.parent / "local"), ANSIBLE_REMOTE_TEMP=str(file.parent / "remote"),
                        ANSIBLE_CALLBACK_RESULT_FORMAT="json"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    memory = Memory(process.pid)
    watcher = threading.Thread(target=memory.watch)
    watcher.start()
    try:
        output = process.communicate()[0]
    finally:
        memory.stop()
        watcher.join()
        process.kill()
    seconds = time.monotonic() - started
    recap = dict(re.findall(r"(?m)^(fleet\d+) +: (ok=\d+ .*)$", output.partition("PLAY RECAP")[2]))
    planned = [name for name, counts in recap.items() if counts.startswith("ok=2 ") and " changed=1 " in counts]
    said = re.search(rf"fatal: \[{broken}\].*?\"msg\": \"(.*?)\"[,}}]", output, re.DOTALL)
    if len(recap) != count or not said:
        say(output[-5000:])
    return {
        "forks": forks,
        "clusters": count,
        "planned": len(planned),
        "failed": sorted(set(recap) - set(planned)),
        "wall_s": round(seconds, 1),
        "main_rss_mb": round(memory.main_rss),
        "controller_rss_mb": round(memory.controller_rss),
        "controller_pss_mb": round(memory.controller_pss),
        "modules_pss_mb": round(memory.modules_pss),
        "load_average": round(load, 1),
        "broken": f"{broken}: {said.group(1) if said else 'said nothing'}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_fleet")
    parser.add_argument("--clusters", type=int, default=100, help="how many; two servers each")
    parser.add_argument("--forks", default="5,20", help="of ansible-playbook, one run for each")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended on the way out
    place = CHECKOUT / ".lab"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=place) as name, ExitStack() as stack:
        directory = Path(name)
        clusters = create(directory, arguments.clusters, stack)
        broken = clusters[len(clusters) // 2]
        broken.node("pg1").kill()
        file = write_file(directory / "fleet-inventory.json", json.dumps(inventory(clusters)))
        rows = []
        for forks in map(int, arguments.forks.split(",")):
            rows.append(run(file, forks, broken.name, len(clusters)))
            say(json.dumps(rows[-1], indent=1))
        alone = all(row["failed"] == [broken.name] for row in rows)
        result = {
            "name": "fleet",
            "versions": {"postgresql": clusters[0].version},
            "load": {"servers": 2 * len(clusters), "clusters": len(clusters), "cores": os.cpu_count()},
            "runs": 1,
            "rows": rows,
            "targets": [
                {
                    "name": "only the broken cluster fails",
                    "value": rows[-1]["failed"],
                    "target": [broken.name],
                    "met": alone,
                }
            ],
        }
    print(json.dumps(result))
    return 0 if alone else 1


if __name__ == "__main__":
    sys.exit(main())
