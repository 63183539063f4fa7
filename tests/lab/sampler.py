# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replication lag of every standby over time, seen from whichever node is the primary at that moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg2

# No rows on a standby (the function in the target list would be an error there).
_LAG = """
SELECT application_name, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint
FROM pg_stat_replication WHERE NOT pg_is_in_recovery() AND replay_lsn IS NOT NULL
"""


@dataclass(frozen=True)
class Sample:
    """``wall``: Unix time; ``lag``: bytes of WAL written by the primary and not yet replayed by ``standby``."""

    wall: float
    standby: str
    lag: int


class Sampler:
    """Samples every ``interval`` seconds between start() and stop(). A server that is down only leaves a gap.

    ``nodes`` are tests.lab.cluster nodes. Each has a thread of its own, so that a frozen one hides only itself.
    """

    def __init__(self, nodes: Iterable[Any], interval: float = 0.1) -> None:
        self.samples: list[Sample] = []
        self._interval = interval
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(node,), daemon=True) for node in nodes]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Sample]:
        """All samples, oldest first."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(1.0)
        return sorted(self.samples, key=lambda sample: sample.wall)

    def _watch(self, node: Any) -> None:
        connection = None
        while not self._stopping.wait(self._interval):
            try:
                connection = connection or node.connect("postgres", "postgres", connect_timeout=2)
                with connection.cursor() as cursor:
                    cursor.execute(_LAG)
                    now = time.time()
                    self.samples.extend(Sample(now, standby, max(0, lag)) for standby, lag in cursor.fetchall())
            except psycopg2.Error:
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()
