# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two servers for all tests, of different versions, and a database in each for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg2.extensions
import pytest

from tests.integration.consistency.scene import Pair
from tests.lab.cluster import Cluster
from tests.lab.database import Database

PAIRS = (("15", "18"), ("13", "17"))


# Keys that are read in another way than the others; `make faults` takes all of them.
KINDS = ("integer", "text under C", "uuid", "composite", "enum", "quoted")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` takes one pair, and of the other, whose rows are hashed in another way, what depends on that."""
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        other_pair = "13-17" in item.name and item.path.stem != "test_traps"
        if other_pair or parameters.get("kind", KINDS[0]) not in KINDS:
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def plain_psycopg2() -> None:
    """What a test before this one did with the collection's client is not for this one's own sessions."""
    psycopg2.extensions.set_wait_callback(None)


@pytest.fixture(scope="session", params=PAIRS, ids="-".join)
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, Cluster]]:
    """The source's and the target's; parametrize with ``indirect`` for one pair."""
    here, there = request.param
    settings = {"wal_level": "logical"}
    place = tmp_path_factory.mktemp("pair")
    with (
        Cluster.create(place / "source", here, members=("pg1",), settings=settings) as source,
        Cluster.create(place / "target", there, members=("pg1",), settings=settings) as target,
    ):
        yield source, target


@pytest.fixture
def pair(servers: tuple[Cluster, Cluster]) -> Iterator[Pair]:
    source, target = (Database.create(cluster) for cluster in servers)
    yield Pair(source, target)
    source.drop()
    target.drop()
