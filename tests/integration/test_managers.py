# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster that a real repmgr has registered is refused, with repmgr's own command. Patroni: tests/faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.binaries import MissingProgram
from tests.lab.operation import run_module, switchover_arguments
from tests.lab.repmgr import RepmgrCluster


def test_repmgr_is_recognised_and_named(tmp_path: Path) -> None:
    try:
        cluster = RepmgrCluster.register(tmp_path / "lab")
    except MissingProgram as reason:
        pytest.skip(f"NO REPMGR HERE, its recognition is not tested: {reason}")
    with cluster:
        arguments = switchover_arguments(cluster, "pg2", "pg1")
        words = {key: arguments[key] for key in ("cluster", "nodes")}
        assert run_module("pg_cluster_info", words)["managers"] == ["repmgr"]
        result = run_module("replica_promote", arguments)
        assert (result["state"], result["changed"]) == ("refused", False)
        assert "[manager_in_charge] repmgr" in result["found"]
        assert "on the host of pg2" in result["remedy"]
        assert "repmgr -f /etc/repmgr.conf standby switchover --siblings-follow" in result["remedy"]
        assert cluster.primary().name == "pg1"
