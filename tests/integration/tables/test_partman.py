# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A table that the real pg_partman manages is left to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.tables.scene import PARENT, Partitions
from tests.lab import partman
from tests.lab.binaries import RIVALS, MissingProgram
from tests.lab.cluster import Cluster
from tests.lab.database import Database


@pytest.fixture(scope="module")
def rivals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        cluster = Cluster.create(tmp_path_factory.mktemp("partman") / "lab", RIVALS, members=("pg1",))
    except MissingProgram as reason:
        pytest.skip(f"PG_PARTMAN CANNOT BE HAD HERE: {reason}")
    with cluster:
        yield cluster


@pytest.fixture
def managed(rivals: Cluster, tmp_path: Path) -> Iterator[Partitions]:
    database = Database.create(rivals)
    database.sql(PARENT)
    partman.install(database)
    database.sql("SELECT partman.create_parent('public.ev', 'at', 'native', 'monthly')")
    yield Partitions(database, tmp_path)
    database.drop()


def test_a_table_of_pg_partman_is_refused_until_it_is_no_longer_in_its_configuration(managed: Partitions) -> None:
    database = managed.database
    managed.refused("partman", premake=12)
    database.sql("DELETE FROM partman.part_config WHERE parent_table = 'public.ev'")
    assert len(managed.done(premake=12)["created"]) == 8  # pg_partman had made four ahead


def test_another_table_of_the_same_database_is_ours(managed: Partitions) -> None:
    managed.database.sql("CREATE TABLE mine (at timestamptz NOT NULL) PARTITION BY RANGE (at)")
    assert len(managed.done(table="mine")["created"]) == 3


@pytest.mark.parametrize("right", ["USAGE ON SCHEMA partman", "SELECT ON partman.part_config"])
def test_who_may_not_read_its_configuration_is_told_what_to_grant(managed: Partitions, right: str) -> None:
    """The operator has the rights of the application, which may use pg_partman."""
    managed.database.sql(f"REVOKE {right} FROM app", user="postgres")
    assert 'part_config to "dbops"' in managed.refused("partman")["msg"]
