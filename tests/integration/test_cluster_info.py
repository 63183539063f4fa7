# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_cluster_info on real servers: who is who, who does not answer, and nothing changed by asking."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.scene import Scene, following, snapshot
from tests.lab.operation import run_module
from tests.lab.server import Node


def info(scene: Scene, **changes: Any) -> dict[str, Any]:
    words = {key: scene.arguments()[key] for key in ("cluster", "nodes")}
    return run_module("pg_cluster_info", {**words, **changes})


def member(result: dict[str, Any], node: Node) -> dict[str, Any]:
    return next(item for item in result["members"] if item["name"] == node.name)


def test_who_is_who(scene: Scene) -> None:
    before = snapshot(scene.cluster)
    result = info(scene)
    assert not result["changed"]
    assert result["primary"] == scene.primary.name
    assert result["writable"] == [scene.primary.name]
    assert len(result["system_identifiers"]) == 1
    assert result["unfinished"] is None
    assert member(result, scene.primary)["role"] == "primary"
    for node in (scene.candidate, scene.sibling):
        standby = member(result, node)
        assert (standby["role"], standby["receiver"]) == ("standby", "streaming")
        assert standby["follows"] == f"{scene.primary.host}:{scene.primary.port}"
        assert standby["timeline"] == result["timeline"]
    assert snapshot(scene.cluster) == before


@pytest.mark.parametrize("standing", ["18"], indirect=True, scope="session")
def test_what_is_missing_is_reported_and_no_error(scene: Scene) -> None:
    with following(scene.sibling, None):
        result = info(scene, nodes=scene.nodes(scene.candidate, passfile=None, login_password="not-the-password"))
    assert "failed" not in result
    assert result["primary"] == scene.primary.name
    assert member(result, scene.candidate)["role"] == "unreachable"
    assert "password authentication failed" in member(result, scene.candidate)["error"]
    assert member(result, scene.sibling)["receiver"] is None
