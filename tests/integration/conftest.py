# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One real cluster per PostgreSQL version, one version at a time, shared by all tests of that version.

Tests speak of the primary, the candidate and the sibling and not of pg1 and pg2: who is who changes from test to test.
What does not change is that a test leaves the cluster well and configured as it found it; where one does not, it fails,
and the next one gets a new cluster.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.scene import Scene, Standing, configuration, illness

VERSIONS = ("13", "15", "18")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of one version after another. What pytest does by itself sorts by other parameters, too."""
    items.sort(key=_version)


def _version(item: pytest.Item) -> str:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return str(parameters.get("standing", ""))


@pytest.fixture(scope="session", params=VERSIONS)
def standing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """A primary with two standbys and a PgBouncer; parametrize with ``indirect`` for less than all versions."""
    standing = Standing(tmp_path_factory.mktemp(f"pg{request.param}") / "lab", request.param, pooler=True)
    yield standing
    standing.destroy()


@pytest.fixture
def scene(standing: Standing) -> Iterator[Scene]:
    yield from borrowed(standing)


def borrowed(standing: Standing) -> Iterator[Scene]:
    cluster = standing.get()
    before = configuration(cluster)
    yield Scene(cluster)
    standing.touched = True
    assert illness(cluster) == ""
    assert configuration(cluster) == before
    standing.touched = False
