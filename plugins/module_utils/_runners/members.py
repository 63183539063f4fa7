# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From module options to sessions and facts: shared by every runner that speaks to a whole cluster."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from typing import Any

from .._core.clock import Clock
from .._core.errors import DbopsError
from .._postgresql.catalog import NodeFacts, read_node
from .._postgresql.client import Endpoint, Session, connect, conninfo
from .._postgresql.lease import HOLDERS, TAKE, lease_key, system_key
from .._postgresql.pgbouncer import PoolerConsole, following
from .._postgresql.switchover_plan import Member, PoolerFacts, PoolerRoute

LOGIN_SECONDS = 5.0
"""Where a server may be gone: its host does not refuse then, and a failover looks from several hosts in turn."""


def endpoint(options: dict[str, Any]) -> Endpoint:
    """One entry of ``nodes`` or ``poolers``, or a module's flat ``login_*`` options."""
    return Endpoint(
        name=options["name"],
        host=options.get("login_host") or "",
        port=options["login_port"],
        user=options.get("login_user") or "",
        password=options.get("login_password") or "",
        dbname=options.get("login_db") or "postgres",
        passfile=options.get("passfile") or "",
        ssl_mode=options.get("ssl_mode") or "prefer",
        ca_cert=options.get("ca_cert") or "",
        ssl_cert=options.get("ssl_cert") or "",
        ssl_key=options.get("ssl_key") or "",
        connect_params=tuple(sorted((key, str(value)) for key, value in (options.get("connect_params") or {}).items())),
    )


def refuse_pooler(session: Session) -> None:
    """Raises DbopsError where this is not the server itself: locks and settings of a session do not stay with it."""
    if session.raw.get_backend_pid() != session.value("SELECT pg_backend_pid()"):
        raise DbopsError(
            found=f"{session.endpoint.label} is a pooler, not a server",
            expected="a direct connection: locks and settings of a session have to stay with it",
            remedy="give login_host and login_port of the server itself",
        )


def members(nodes: Iterable[dict[str, Any]]) -> dict[str, Member]:
    """By name. Raises DbopsError where a name stands twice."""
    result: dict[str, Member] = {}
    for node in nodes:
        name = node["name"]
        if name in result:
            raise DbopsError(
                found=f"two members are called {name}",
                expected="a name of its own for each member",
                remedy="correct members in dbops_clusters",
            )
        result[name] = Member(
            name=name,
            address=node.get("address") or node.get("login_host") or "",
            port=node.get("port") or node["login_port"],
            login_host=node.get("login_host") or "",
            login_port=node["login_port"],
        )
    return result


def replication_endpoint(member: Member, options: dict[str, Any]) -> Endpoint:
    """How a standby logs in to ``member``; ``options`` has the replication words of a module."""
    return Endpoint(
        name=member.name,
        host=member.address,
        port=member.port,
        user=options["replication_user"],
        passfile=options.get("replication_passfile") or "",
        ssl_mode=options["replication_ssl_mode"],
        ca_cert=options.get("replication_ca_cert") or "",
    )


def standby_conninfo(member: Member, options: dict[str, Any], *, application_name: str, dbname: str) -> str:
    """primary_conninfo of a standby of ``member``. Streaming ignores ``dbname``; the worker that synchronises failover
    slots (17) logs in to it."""
    return conninfo(
        {
            "host": member.address,
            "port": str(member.port),
            "dbname": dbname,
            "user": options["replication_user"],
            "passfile": options.get("replication_passfile") or "",
            "application_name": application_name,
            "sslmode": options["replication_ssl_mode"],
            "sslrootcert": options.get("replication_ca_cert") or "",
        }
    )


class ClusterSessions:
    """One session per member, opened when first needed and again when it broke.

    Once ``leases`` are set every new session takes them: a member that was restarted has forgotten who holds them.
    """

    def __init__(
        self,
        nodes: Iterable[dict[str, Any]],
        *,
        clock: Clock,
        application_name: str,
        timeout: float,
        login_timeout: float | None = None,
    ) -> None:
        self.endpoints = {node["name"]: endpoint(node) for node in nodes}
        self._clock = clock
        self._application_name = application_name
        self._timeout = timeout
        self._login_timeout = login_timeout or timeout
        self._sessions: dict[str, Session] = {}
        self.leases: list[tuple[int, int]] = []

    def to(self, name: str, *, timeout: float | None = None) -> Session:
        session = self._sessions.get(name)
        if session is None or session.closed:
            session = connect(
                self.endpoints[name],
                clock=self._clock,
                timeout=timeout or self._login_timeout,
                application_name=self._application_name,
            )
            with suppress(DbopsError):  # a session that is of no use says so when it is used
                for key in self.leases:
                    session.run(TAKE, key)
            session.timeout = self._timeout
            self._sessions[name] = session
        return session

    def drop(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            session.close()

    def facts(self) -> dict[str, NodeFacts]:
        """Facts of every member, read at the same time; a member that does not answer has ``error`` set."""

        def read(name: str) -> NodeFacts:
            try:
                return read_node(self.to(name))
            except DbopsError as error:
                self.drop(name)
                return NodeFacts(name=name, error=error.found)

        with ThreadPoolExecutor(max_workers=8) as pool:
            return dict(zip(self.endpoints, pool.map(read, self.endpoints)))

    def take_lease(self, cluster: str, nodes: dict[str, NodeFacts], *, first: str = "") -> None:
        """Advisory locks on every member that answers, held by idle sessions until this process ends. On a member
        that is promoted they survive the promotion. ``first`` is where two runs that start together meet. The lock of
        the cluster's name is what dead-men look for; another inventory may have another name for the same servers.

        Raises DbopsError (state refused) that names the holder.
        """
        names = [name for name, facts in nodes.items() if facts.answered]
        systems = sorted({nodes[name].system_identifier for name in names} - {""})
        keys = [lease_key(cluster), *(system_key(identifier) for identifier in systems)]
        for name, key in product(sorted(names, key=lambda item: (item != first, item)), keys):
            session = self.to(name)
            taken = session.value(TAKE, key)
            holder = session.rows(HOLDERS, key)
            if taken and not holder:
                continue
            who = "; ".join(f"pid {row['pid']} ({row['application_name']}, from {row['client']})" for row in holder)
            raise DbopsError(
                found=f"another run holds the lease of cluster {cluster} on {name}: {who or 'unknown'}",
                expected="one operation on this cluster at a time",
                remedy="wait for that run to end; a run that died has lost its lease already",
                details={"state": "refused", "changed": False},
            )
        self.leases = keys

    def close(self) -> None:
        for name in list(self._sessions):
            self.drop(name)


def read_history(login: Endpoint, timeline: int, *, clock: Clock, timeout: float) -> str:
    """The history file of a timeline, from a server that lives on it or on a later one; the first one has none."""
    if timeline == 1:
        return ""
    with connect(login, clock=clock, timeout=timeout, replication=True, application_name="dbops probe") as session:
        content = session.rows(f"TIMELINE_HISTORY {timeline}")[0]["content"]
    return content if isinstance(content, str) else bytes(content).decode()


def read_pooler(
    console: PoolerConsole, options: dict[str, Any], cluster: dict[str, Member], *, deadline: Any
) -> PoolerFacts:
    """A pooler as its console answers; ``error`` set where it does not."""
    name = options["name"]
    try:
        state = console.state(deadline)
    except DbopsError as error:
        return PoolerFacts(name=name, error=f"{name}: {error.found}")
    if not state.is_admin(console.endpoint.user):
        return PoolerFacts(name=name, error=f"{name}: {console.endpoint.user} may look, but is not in admin_users")
    addresses = {(member.address, member.port) for member in cluster.values()}
    addresses |= {(member.login_host, member.login_port) for member in cluster.values()}
    names = options.get("databases") or []
    return PoolerFacts(
        name=name,
        version=state.version,
        so_reuseport=state.shares_port,
        listeners=options.get("listeners"),
        databases=tuple(
            PoolerRoute(item.name, item.host, item.port, item.pool_mode, item.paused)
            for item in following(state.databases, addresses, names)
        ),
        missing=tuple(sorted(set(names) - {item.name for item in state.databases})),
        query_wait_timeout_s=float(state.settings.get("query_wait_timeout", "120")),
        staged_for=options.get("staged_for") or "",
    )
