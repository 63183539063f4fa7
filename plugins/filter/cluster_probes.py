# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: cluster_probes
short_description: What was seen from the hosts of a cluster's members
version_added: 0.1.0
author: stateful.dbops contributors (@stateful-dbops)
description:
  - Turns the results of a loop of M(stateful.dbops.pg_cluster_info) over the members into the list that the
    O(stateful.dbops.replica_promote#module:probes) option takes. Hosts that were unreachable are left out.
options:
  _input:
    description: The results.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
probes: "{{ looks.results | stateful.dbops.cluster_probes }}"
"""

RETURN = r"""
_value:
  description: One dictionary for each member whose host was reached.
  type: list
  elements: dict
"""

from typing import Any, Callable

from ..plugin_utils.clusters import probes


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"cluster_probes": probes}
