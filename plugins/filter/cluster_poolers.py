# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: cluster_poolers
short_description: The poolers option of a cluster's modules
version_added: 0.1.0
author: stateful.dbops contributors (@stateful-dbops)
description:
  - Turns one entry of C(dbops_clusters) into one O(stateful.dbops.pgbouncer_guard#module:pooler) option for each
    pooler.
  - With O(guards) into the list that the O(stateful.dbops.replica_promote#module:poolers) option takes.
options:
  _input:
    description: The cluster.
    type: dict
    required: true
  guards:
    description: Results of the loop of M(stateful.dbops.pgbouncer_guard), in the order of the poolers.
    type: list
    elements: dict
  staged_for:
    description: The member that the poolers' files were staged for.
    type: str
    default: ''
"""

EXAMPLES = r"""
poolers: "{{ dbops_clusters.accounts | stateful.dbops.cluster_poolers }}"
"""

RETURN = r"""
_value:
  description: One dictionary for each pooler.
  type: list
  elements: dict
"""

from typing import Any, Callable

from ..plugin_utils.clusters import poolers


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"cluster_poolers": poolers}
