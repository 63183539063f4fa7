# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters under the names that roles use, and a step as a line of text."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.filter import cluster_nodes, cluster_poolers, cluster_probes, plan_line
from ansible_collections.stateful.dbops.plugins.module_utils._core.operation import PlannedStep
from ansible_collections.stateful.dbops.plugins.plugin_utils import clusters


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (cluster_nodes, clusters.nodes),
        (cluster_poolers, clusters.poolers),
        (cluster_probes, clusters.probes),
        (plan_line, plan_line.plan_line),
    ],
)
def test_a_filter_has_the_name_of_its_file(module: Any, function: Any) -> None:
    name = module.__name__.rsplit(".", 1)[1]
    assert module.FilterModule().filters() == {name: function}
    assert f"\nname: {name}\n" in module.DOCUMENTATION


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (PlannedStep("stop", "stop pg1"), "stop: stop pg1"),
        (PlannedStep("stop", "stop pg1", in_pause=True), "stop: stop pg1 [clients wait]"),
        (
            PlannedStep("promote", "promote pg2", ("SELECT 1", "SELECT 2"), "ROW EXCLUSIVE on x", True, True),
            "promote: promote pg2 [clients wait, POINT OF NO RETURN, locks: ROW EXCLUSIVE on x] | SELECT 1; SELECT 2",
        ),
    ],
)
def test_a_step_is_one_line(step: PlannedStep, line: str) -> None:
    assert plan_line.plan_line(step.as_dict()) == line


def test_a_step_says_who_is_in_its_way() -> None:
    blocker = {"pid": 7, "user": "app", "mode": "RowExclusiveLock", "relation": "public.t", "transaction_s": 9}
    step = PlannedStep("create public.ix", "an index", ("CREATE INDEX",), "ShareLock of public.t").as_dict()
    assert plan_line.plan_line({**step, "by_statement": [{"blocked_by": [blocker]}, {"blocked_by": []}]}) == (
        "create public.ix: an index [locks: ShareLock of public.t] | CREATE INDEX"
        " | in the way: pid 7 (app) with RowExclusiveLock of public.t for 9 s"
    )
