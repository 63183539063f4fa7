# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: cluster_observers
short_description: What a failover needs to know from those who looked at the cluster
version_added: 0.1.0
author: stateful.dbops contributors (@stateful-dbops)
description:
  - Turns the results of a loop of M(stateful.dbops.pg_cluster_info) over hosts into a dictionary with
    C(witnesses), which the O(stateful.dbops.replica_promote#module:witnesses) option takes, and C(run_on), the member
    on whose host the failover runs.
  - A host in C(witnesses) of the cluster that could not look is a witness that says so. Other hosts that could not are
    left out.
options:
  _input:
    description: The results. Each C(item) is a host.
    type: list
    elements: dict
    required: true
  cluster:
    description: The cluster.
    type: dict
    required: true
  failed_primary:
    description: Name of the member that was the primary.
    type: str
    required: true
  candidate:
    description: Name of the member that is to be the primary, if the caller has named one.
    type: str
    default: ''
"""

EXAMPLES = r"""
observers: "{{ looks.results | stateful.dbops.cluster_observers(dbops_clusters.accounts, 'pg1') }}"
"""

RETURN = r"""
_value:
  description: C(witnesses) and C(run_on).
  type: dict
"""

from typing import Any, Callable

from ..plugin_utils.clusters import observers


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"cluster_observers": observers}
