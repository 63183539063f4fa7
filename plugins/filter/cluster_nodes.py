# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: cluster_nodes
short_description: The nodes option of a cluster's modules
version_added: 0.1.0
author: stateful.dbops contributors (@stateful-dbops)
description:
  - Turns one entry of C(dbops_clusters) into the list that the O(stateful.dbops.replica_promote#module:nodes) option
    takes.
  - Login words (for example C(login_user), C(passfile), C(ssl_mode)) of a member win over those of the cluster.
options:
  _input:
    description: The cluster.
    type: dict
    required: true
"""

EXAMPLES = r"""
nodes: "{{ dbops_clusters.accounts | stateful.dbops.cluster_nodes }}"
"""

RETURN = r"""
_value:
  description: One dictionary for each member.
  type: list
  elements: dict
"""

from typing import Any, Callable

from ..plugin_utils.clusters import nodes


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"cluster_nodes": nodes}
