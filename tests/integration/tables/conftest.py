# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server per PostgreSQL version, and a database in it for each test. Nothing of a test outlives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg2.extensions
import pytest

from tests.integration.tables.scene import PARENT, Partitions
from tests.lab.cluster import Cluster
from tests.lab.database import Database

# The oldest and the newest in `make test`, those between them in `make faults`.
VERSIONS = ("13", "18", pytest.param("15", marks=pytest.mark.long), pytest.param("17", marks=pytest.mark.long))


@pytest.fixture(scope="session", params=VERSIONS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One server; parametrize with ``indirect`` for less than all versions."""
    directory = tmp_path_factory.mktemp(f"pg{request.param}") / "lab"
    with Cluster.create(
        directory, request.param, members=("pg1",), settings={"max_prepared_transactions": "5"}
    ) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def plain_psycopg2() -> None:
    """What a test before this one did with the collection's client is not for this one's own sessions."""
    psycopg2.extensions.set_wait_callback(None)


@pytest.fixture
def database(server: Cluster) -> Iterator[Database]:
    database = Database.create(server)
    yield database
    database.drop()


@pytest.fixture
def partitions(database: Database, tmp_path: Path) -> Partitions:
    database.sql(PARENT)
    return Partitions(database, tmp_path)
