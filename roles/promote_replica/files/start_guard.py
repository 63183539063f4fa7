# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run before a PostgreSQL server is started: may it start as a primary, or did a failover leave it behind?

usage: start_guard.py SECONDS DATA_DIRECTORY CONNINFO...      (one for each other member, for replication)

A standby may always start. For anything else the other members are asked for their timelines. One that is on a later
timeline was promoted, or follows somebody who was: standby.signal is planted, so the start gives a standby. Otherwise
the server starts if a majority of the members, itself counted, answers. If not, the start is refused: no answer is no
proof that nobody was promoted.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import time
from pathlib import Path

import psycopg2
from psycopg2.extras import PhysicalReplicationConnection


def own_timeline(data_dir: Path) -> int:
    """The latest one with WAL or a history here. pg_control knows it only after the first checkpoint on it."""
    names = [path.name for path in (data_dir / "pg_wal").iterdir()]
    return max(
        (int(name[:8], 16) for name in names if re.match(r"[0-9A-F]{8}([0-9A-F]{16}|\.history)\Z", name)), default=1
    )


def ask(conninfo: str, identifier: int) -> int:
    """The timeline of another member; 0 where it does not answer, or belongs to another cluster."""
    try:
        connection = psycopg2.connect(
            conninfo,
            connect_timeout=3,
            application_name="dbops start guard",
            connection_factory=PhysicalReplicationConnection,
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute("IDENTIFY_SYSTEM")
                row = cursor.fetchone()
        finally:
            connection.close()
    except psycopg2.Error as error:
        print(f"start_guard: {error}".strip(), file=sys.stderr)
        return 0
    return int(row[1]) if int(row[0]) == identifier else 0


def main(seconds: float, data_dir: Path, others: list[str]) -> int:
    signal = data_dir / "standby.signal"
    if signal.exists() or (data_dir / "recovery.signal").exists():
        return 0
    (identifier,) = struct.unpack("=Q", (data_dir / "global" / "pg_control").read_bytes()[:8])
    mine, deadline = own_timeline(data_dir), time.monotonic() + seconds
    while True:
        answers = [timeline for timeline in (ask(conninfo, identifier) for conninfo in others) if timeline]
        if max(answers, default=0) > mine:
            signal.touch(0o600)
            os.chown(signal, data_dir.stat().st_uid, data_dir.stat().st_gid)
            print(
                f"start_guard: the cluster is on timeline {max(answers)}, this server on {mine}: it starts as a standby"
            )
            return 0
        if 2 * (len(answers) + 1) > len(others) + 1:
            return 0
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    print(
        f"start_guard: {len(answers)} of {len(others)} other members answered, too few to know that nobody was"
        f" promoted. Start one of them; or create {signal} to start a standby; or take this guard out for a primary",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
