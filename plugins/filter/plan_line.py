# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: plan_line
short_description: One step of a plan as a line of text
version_added: 0.1.0
author: stateful.dbops contributors (@stateful-dbops)
description:
  - Writes one element of the RV(stateful.dbops.replica_promote#module:plan) that a module returned as one line.
  - For work on a table it ends with who holds right now what the step would wait for.
options:
  _input:
    description: The step.
    type: dict
    required: true
"""

EXAMPLES = r"""
lines: "{{ result.plan | map('stateful.dbops.plan_line') }}"
"""

RETURN = r"""
_value:
  description: The line.
  type: str
"""

from collections.abc import Mapping
from typing import Any, Callable


def plan_line(step: Mapping[str, Any]) -> str:
    marks = []
    if step["in_pause"]:
        marks.append("clients wait")
    if step["point_of_no_return"]:
        marks.append("POINT OF NO RETURN")
    if step["locks"] != "none":
        marks.append(f"locks: {step['locks']}")
    line = f"{step['name']}: {step['summary']}"
    if marks:
        line += f" [{', '.join(marks)}]"
    if step["statements"]:
        line += f" | {'; '.join(step['statements'])}"
    for statement in step.get("by_statement", []):
        for each in statement["blocked_by"]:
            line += f" | in the way: pid {each['pid']} ({each['user']}) with {each['mode']} of {each['relation']}"
            line += f" for {each['transaction_s']} s"
    return line


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"plan_line": plan_line}
