# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The primary is lost under load: who may be promoted, what is lost, and how the lost one comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.failover_scene import Stage, receipt_of, stage

VERSION = os.environ.get("DBOPS_VERSION", "18")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path, VERSION) as ready:
        yield ready


# --------------------------------------------------------------------------------------------------------- what is lost


def test_what_the_fenced_primary_serves_is_not_lost(scene: Stage) -> None:
    """Commits that no standby had received: the fenced primary hands them over, and follows without a rewind."""
    lost, _first, _second = scene.names()
    scene.lose(lost, unsent=0.5)
    fence = scene.fence(lost)
    result = scene.failover(lost, fence=fence)
    assert result.get("state") == "failed over", result
    assert result["loss"]["bytes"] == 0, result["loss"]
    missing, unknown = scene.lost_and_unknown()
    assert not missing
    assert not [entry for entry in unknown if entry.xid and entry.error == ""]
    back = scene.rejoin(lost)
    assert back.get("how") == "start", back
    scene.assert_settled(result["new_primary"])


def test_the_receipt_lists_exactly_what_was_lost(scene: Stage) -> None:
    """The host of the primary is gone, another means confirms the fence. What comes back with it is receipted, then
    rewound: the clients' log and the receipt agree transaction by transaction."""
    lost, _first, _second = scene.names()
    scene.lose(lost, unsent=0.5)
    result = scene.failover(lost, fence={"confirmed": True, "by": "the test pulled its plug"})
    assert result.get("state") == "failed over", result
    assert result["loss"]["bytes"] is None
    missing, unknown = scene.lost_and_unknown()
    assert missing, "the test lost nothing, so it shows nothing"
    back = scene.rejoin(lost)
    assert back.get("how") == "rewind", back
    receipt = receipt_of(back)
    assert receipt["transactions"] == len(receipt["lost"]) == back["receipt"]["transactions"]
    transfers = {each["xid"] for each in receipt["lost"] if "accounts.transaction_journal" in each["rows"]}
    acknowledged = {entry.xid for entry in missing}
    assert acknowledged <= transfers, "acknowledged, lost, and not in the receipt"
    assert transfers - acknowledged <= {entry.xid for entry in unknown}, "in the receipt, and nobody's"
    scene.assert_settled(result["new_primary"])
