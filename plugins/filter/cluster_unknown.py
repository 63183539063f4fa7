# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: cluster_unknown
short_description: Words of a cluster's description that nothing reads
version_added: 0.1.0
author: stateful.dbops contributors (@stateful-dbops)
description:
  - Names every key of a cluster, its members, services, poolers and C(patroni) that this collection does not know.
  - Keys that begin with C(x_) are yours and are left out.
options:
  _input:
    description: The cluster.
    type: dict
    required: true
"""

EXAMPLES = r"""
misspelt: "{{ dbops_clusters.accounts | stateful.dbops.cluster_unknown }}"
"""

RETURN = r"""
_value:
  description: The keys, each with the member or pooler that has it.
  type: list
  elements: str
"""

from typing import Any, Callable

from ..plugin_utils.clusters import unknown


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"cluster_unknown": unknown}
