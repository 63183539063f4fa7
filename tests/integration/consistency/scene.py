# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two databases on two servers, and consistency_check between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.lab import users
from tests.lab.cluster import Cluster
from tests.lab.database import Database
from tests.lab.operation import run_module
from tests.lab.server import Node, wait_for


def login(cluster: Cluster, node: Node, database: str) -> dict[str, Any]:
    return {
        "login_host": node.host,
        "login_port": node.port,
        "login_user": users.OPERATOR,
        "login_db": database,
        "passfile": str(cluster.passfile),
    }


@dataclass(frozen=True)
class Pair:
    source: Database
    target: Database

    def sql(self, statement: str) -> None:
        """On both."""
        for side in (self.source, self.target):
            side.sql(statement)

    def check(self, *checks: dict[str, Any], **options: Any) -> dict[str, Any]:
        return run_module(
            "consistency_check",
            {"source": self.source.login, "target": self.target.login, "checks": list(checks), **options},
        )

    def table(self, name: str, options: dict[str, Any] | None = None, **check: Any) -> dict[str, Any]:
        """The whole result, with the only entry of ``results`` in ``one``."""
        result = self.check({"kind": "table", "tables": [name], **check}, **options or {})
        if "results" in result:
            [result["one"]] = result["results"]
        return result

    @contextmanager
    def subscribed(self, table: str) -> Iterator[None]:
        """The target subscribes to the table of the source; its rows are copied when this begins."""
        source, name = self.source.cluster, f"follow_{self.target.name}"
        publisher = source.primary()
        self.source.sql(f"GRANT SELECT ON {table} TO {users.REPLICATION_USER}")
        self.source.sql(f"CREATE PUBLICATION {name} FOR TABLE {table}", user=users.SUPERUSER)
        conninfo = (
            f"host={publisher.host} port={publisher.port} dbname={self.source.name} user={users.REPLICATION_USER}"
            f" passfile={source.replication_passfile}"
        )
        self.target.sql(f"CREATE SUBSCRIPTION {name} CONNECTION '{conninfo}' PUBLICATION {name}", user=users.SUPERUSER)
        try:
            ready = "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"
            wait_for(lambda: bool(self.target.value(ready)), seconds=60, what="the initial copy")
            yield
        finally:
            self.target.sql(f"DROP SUBSCRIPTION {name}", user=users.SUPERUSER)


def found(one: dict[str, Any]) -> set[tuple[str, ...]]:
    """Kind and key of each difference in the sample of a table's result."""
    assert one["status"] != "failed", one["error"]
    return {(entry["kind"], *entry["key"]) for entry in one["sample"]}


def good(result: dict[str, Any]) -> dict[str, Any]:
    """The result, if nothing differs."""
    assert result.get("consistent") is True, result.get("msg", result)
    assert not result.get("failed")
    return result
