# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease that keeps two runs on one cluster apart: an advisory lock on every member that answers, held by an idle
session until the process ends. It survives the promotion of the member it is held on."""

from __future__ import annotations

import zlib

from .._core.errors import DbopsError
from .._postgresql.catalog import NodeFacts
from .members import ClusterSessions

LOCK_CLASS = 0x64626F70  # "dbop": the first key of the advisory locks of this collection


def lease_key(cluster: str) -> int:
    """The second key."""
    return zlib.crc32(cluster.encode()) & 0x7FFFFFFF


def take_lease(sessions: ClusterSessions, cluster: str, nodes: dict[str, NodeFacts], *, first: str = "") -> None:
    """Raises DbopsError (state refused) that names the holder. ``first`` is the member to begin with: two runs that
    start together meet there."""
    names = sorted((name for name, facts in nodes.items() if facts.answered), key=lambda name: (name != first, name))
    for name in names:
        session = sessions.to(name)
        if session.value("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_CLASS, lease_key(cluster)]):
            continue
        holder = session.rows(
            """SELECT a.pid, a.application_name, coalesce(a.client_addr::text, 'local') AS client
                 FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = %s AND l.objid::bigint = %s""",
            [LOCK_CLASS, lease_key(cluster)],
        )
        who = "; ".join(f"pid {row['pid']} ({row['application_name']}, from {row['client']})" for row in holder)
        raise DbopsError(
            found=f"another run holds the lease of cluster {cluster} on {name}: {who or 'unknown'}",
            expected="one operation on this cluster at a time",
            remedy="wait for that run to end; a run that died has lost its lease already",
            details={"state": "refused", "changed": False},
        )
