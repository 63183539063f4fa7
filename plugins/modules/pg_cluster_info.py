#!/usr/bin/python
# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_cluster_info
short_description: Who is primary in a PostgreSQL cluster, who follows, and what is unfinished
version_added: 0.1.0
author:
  - stateful.dbops contributors (@stateful-dbops)
description:
  - Reads every member of a cluster over the database protocol and returns roles, timelines, lag and slots.
  - Finds the manager that is in charge, if there is one, and an unfinished switchover.
  - A member that does not answer is reported as C(unreachable); that is no error of this module.
  - With O(candidate) it also tries, from the host it runs on, what a standby there would have to do to follow it.
options:
  cluster:
    description: Name of the cluster.
    type: str
    required: true
  candidate:
    description: Name of the member that is to be the primary next.
    type: str
  replication_user:
    description: The user as whom standbys stream. With it and O(candidate) a replication connection is tried.
    type: str
  replication_passfile:
    description: A libpq password file with its password on the host that the module runs on.
    type: path
  replication_ssl_mode:
    description: C(sslmode) of the standbys' connections.
    type: str
    choices: [disable, allow, prefer, require, verify-ca, verify-full]
    default: prefer
  replication_ca_cert:
    description: Certificate authority that standbys verify the primary with, on the host that the module runs on.
    type: path
  data_dir:
    description: Data directory of the member on this host. With it the free space for WAL is returned.
    type: path
requirements:
  - psycopg2 >= 2.8 on the host that the module runs on
extends_documentation_fragment:
  - stateful.dbops.attributes.info
  - stateful.dbops.attributes
  - stateful.dbops.cluster
seealso:
  - module: stateful.dbops.replica_promote
"""

EXAMPLES = r"""
- name: Find the primary
  stateful.dbops.pg_cluster_info:
    cluster: accounts
    nodes:
      - {name: pg1, login_host: 192.0.2.11, login_user: dbops, passfile: /etc/dbops/pgpass}
      - {name: pg2, login_host: 192.0.2.12, login_user: dbops, passfile: /etc/dbops/pgpass}
  register: accounts
"""

RETURN = r"""
primary:
  description: Name of the one writable member. Null if there is none or more than one.
  returned: success
  type: str
writable:
  description: Names of all members that are not in recovery.
  returned: success
  type: list
  elements: str
timeline:
  description: The primary's timeline.
  returned: success
  type: int
system_identifiers:
  description: System identifiers of the members. More than one means that they are not one cluster.
  returned: success
  type: list
  elements: str
managers:
  description: Other managers that are in charge of a member, for example C(Patroni).
  returned: success
  type: list
  elements: str
members:
  description: Each member with role, version, timeline, lag in bytes, what it follows, and its slots.
  returned: success
  type: list
  elements: dict
  sample: [{name: pg2, role: standby, timeline: 3, replay_lag_bytes: 0, follows: "192.0.2.11:5432"}]
unfinished:
  description: An unfinished switchover with C(id), C(old_primary), C(candidate), else null.
  returned: success
  type: dict
last_operation:
  description: The last finished switchover with C(id), C(old_primary), C(candidate), C(rolls_back), else null.
  returned: success
  type: dict
run_on:
  description: The member on whose host M(stateful.dbops.replica_promote) has to run for O(candidate).
  returned: success
  type: str
probe:
  description: C(replication_problem), empty if a replication connection to O(candidate) was opened, and C(free_bytes).
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._core.arguments import SSL_MODES, node_options
from ..module_utils._core.clock import Clock
from ..module_utils._core.errors import DbopsError
from ..module_utils._postgresql.client import missing_driver
from ..module_utils._runners.cluster_info import cluster_info


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "cluster": {"type": "str", "required": True},
            "candidate": {"type": "str"},
            "nodes": {"type": "list", "elements": "dict", "required": True, "options": node_options()},
            "replication_user": {"type": "str"},
            "replication_passfile": {"type": "path", "no_log": False},
            "replication_ssl_mode": {"type": "str", "default": "prefer", "choices": SSL_MODES},
            "replication_ca_cert": {"type": "path"},
            "data_dir": {"type": "path"},
        },
        supports_check_mode=True,
    )
    missing = missing_driver()
    if missing is not None:
        module.fail_json(msg=missing.message)
    try:
        result = cluster_info(module.params, clock=Clock())
    except DbopsError as error:
        module.fail_json(msg=error.message, found=error.found, expected=error.expected, remedy=error.remedy)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
