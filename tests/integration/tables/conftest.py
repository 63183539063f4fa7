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

VERSIONS = ("13", "15", "17", "18")
# `make test` takes the newest, and the oldest for what its server does another way; `make faults` the rest.
OLDEST_TOO = ("test_ddl", "test_partition_detach", "test_partition_load")
ALL = ("test_partition_locks",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        version, module = parameters.get("server"), item.path.stem
        newest = version in (None, "18") or (version == "13" and module in OLDEST_TOO)
        if item.path.parent == Path(__file__).parent and not newest and module not in ALL:
            item.add_marker(pytest.mark.long)


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
