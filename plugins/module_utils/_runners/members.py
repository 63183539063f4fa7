# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From module options to sessions and facts: shared by every runner that speaks to a whole cluster."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from .._core.clock import Clock
from .._core.errors import DbopsError
from .._postgresql.catalog import NodeFacts, read_node
from .._postgresql.client import Endpoint, Session, connect
from .._postgresql.lease import TAKE
from .._postgresql.pgbouncer import PoolerConsole, following
from .._postgresql.switchover_plan import Member, PoolerFacts, PoolerRoute


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


class ClusterSessions:
    """One session per member, opened when first needed and again when it broke.

    Once ``lease`` is set every new session takes it: a member that was restarted has forgotten who holds it.
    """

    def __init__(self, nodes: Iterable[dict[str, Any]], *, clock: Clock, application_name: str, timeout: float) -> None:
        self.endpoints = {node["name"]: endpoint(node) for node in nodes}
        self._clock = clock
        self._application_name = application_name
        self._timeout = timeout
        self._sessions: dict[str, Session] = {}
        self.lease: tuple[int, int] | None = None

    def to(self, name: str, *, timeout: float | None = None) -> Session:
        session = self._sessions.get(name)
        if session is None or session.closed:
            session = connect(
                self.endpoints[name],
                clock=self._clock,
                timeout=timeout or self._timeout,
                application_name=self._application_name,
            )
            if self.lease is not None:
                with suppress(DbopsError):  # a session that is of no use says so when it is used
                    session.run(TAKE, self.lease)
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

    def close(self) -> None:
        for name in list(self._sessions):
            self.drop(name)


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
