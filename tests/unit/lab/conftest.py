# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One real cluster for the tests of the lab itself, below a path that is too long for a Unix socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("lab") / ("x" * 150)
    settings = {"wal_retrieve_retry_interval": "200ms"}
    with Cluster.create(directory, members=("pg1", "pg2"), settings=settings) as made:
        yield made
