# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease of a cluster: an advisory lock that a run holds on every member. It keeps a second run away, and by it the
poolers' dead-men see that the run lives. A process that ends loses it at once; nobody has to take it back.
"""

from __future__ import annotations

import zlib

_CLASS = 0x64626F70  # "dbop": the first key of the advisory locks of this collection

# A host that loses its power closes no connection. The server then ends the session, and with it the lease, after 10 s.
TAKE = """
SELECT pg_try_advisory_lock(%s, %s), set_config('tcp_keepalives_idle', '4', false),
       set_config('tcp_keepalives_interval', '2', false), set_config('tcp_keepalives_count', '3', false),
       set_config('tcp_user_timeout', '10000', false)
"""
# A lock belongs to one database, and two runs may log in to two: so TAKE alone keeps none out that takes it elsewhere.
# pg_locks shows the locks of all databases, and to everybody; whose they are only to some.
HOLDERS = """
SELECT pid, application_name, coalesce(client_addr::text, 'local') AS client
  FROM pg_locks JOIN pg_stat_activity USING (pid)
 WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid::bigint = %s AND objid::bigint = %s
   AND pid <> pg_backend_pid()
"""


def lease_key(cluster: str) -> tuple[int, int]:
    """The two keys of the lock, parameters of ``TAKE`` and ``HOLDERS``."""
    return _CLASS, zlib.crc32(cluster.encode()) & 0x7FFFFFFF


def system_key(system_identifier: str) -> tuple[int, int]:
    """The same for the servers themselves, whatever an inventory calls their cluster."""
    return lease_key(f"system identifier {system_identifier}")
