# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One database of a server for one test: the application owns it, the operator may act for the application."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from psycopg2 import sql

from tests.lab import users
from tests.lab.cluster import Cluster

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Database:
    cluster: Cluster
    name: str

    @classmethod
    def create(cls, cluster: Cluster) -> Database:
        database = cls(cluster, f"db{next(_numbers)}")
        node = cluster.primary()
        name = sql.Identifier(database.name)
        owner, operator = sql.Identifier(users.APPLICATION), sql.Identifier(users.OPERATOR)
        node.sql(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, owner))
        node.sql(sql.SQL("GRANT {} TO {}").format(owner, operator))
        # Since 15 the schema public is not everybody's.
        node.sql(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(owner), dbname=database.name)
        return database

    def connect(self, user: str = users.APPLICATION, **options: Any) -> Any:
        """A psycopg2 connection in autocommit mode."""
        return self.cluster.primary().connect(user, self.name, **options)

    def sql(self, statement: Any, params: Any = None, *, user: str = users.APPLICATION) -> list[tuple[Any, ...]]:
        """Run it on a connection of its own; its rows, or an empty list."""
        return self.cluster.primary().sql(statement, params, user=user, dbname=self.name)

    def value(self, statement: Any, params: Any = None, *, user: str = users.APPLICATION) -> Any:
        return self.sql(statement, params, user=user)[0][0]

    @property
    def login(self) -> dict[str, Any]:
        """How modules log in: as the operator, who is no superuser."""
        node = self.cluster.primary()
        return {
            "login_host": node.host,
            "login_port": node.port,
            "login_user": users.OPERATOR,
            "login_db": self.name,
            "passfile": str(self.cluster.passfile),
        }

    def drop(self) -> None:
        """Also while sessions of a test that failed are in it."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self.name))
        self.cluster.primary().sql(statement)
