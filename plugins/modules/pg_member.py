#!/usr/bin/python
# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_member
short_description: Fence one member of a PostgreSQL cluster, or let it follow the primary again
version_added: 0.1.0
author:
  - stateful.dbops contributors (@stateful-dbops)
description:
  - Runs on the host of the member O(node).
  - V(fenced) plants C(standby.signal) and stops the server, by force if it does not listen. It can accept no write
    then, and whoever starts it, the service manager too, starts a standby.
  - V(following) makes the member stream from O(primary). It decides by positions - a member that has nothing that the
    primary has not just follows. One that has is rewound, after a receipt was written of every transaction that is
    thrown away. A base backup is taken only if O(rejoin_by_base_backup) allows it.
  - Where Patroni or another manager is in charge of the primary, V(following) is refused.
options:
  state:
    description: What the member is to be.
    type: str
    choices: [fenced, following]
    required: true
  cluster:
    description: Name of the cluster.
    type: str
    required: true
  node:
    description: Name of the member whose host the module runs on.
    type: str
    required: true
  primary:
    description: Name of the primary. Required for V(following).
    type: str
  slot:
    description: Name of the member's replication slot on the primary. By default made of its own name.
    type: str
  serve_wal:
    description:
      - With V(fenced), start the server again as a standby of nobody, so that other members can fetch WAL that only it
        has.
    type: bool
    default: false
  rejoin_by_rewind:
    description: Throw away WAL that the primary has not, with C(pg_rewind), after a receipt of it was written.
    type: bool
    default: true
  rejoin_by_base_backup:
    description:
      - Take a new base backup where the member cannot be rewound. The old data directory is kept beside it, so there
        has to be room for both.
    type: bool
    default: false
  local:
    description: The server of O(node) on this host.
    type: dict
    required: true
    suboptions:
      data_dir:
        description: Its data directory.
        type: path
        required: true
      config_dir:
        description: Where C(postgresql.conf) lies, if not in the data directory (Debian).
        type: path
      bin_dir:
        description: Directory of its programs. Default is that of the running server, else Debian's.
        type: path
      service:
        description: The service that owns the server. Starts and stops go through it.
        type: dict
        required: true
        suboptions:
          manager:
            description: V(systemd) needs root. V(command) takes O(local.service.start) and O(local.service.stop).
            type: str
            required: true
            choices: [systemd, pg_ctlcluster, command]
          name:
            description: The unit, or C(version/cluster) for V(pg_ctlcluster).
            type: str
          start:
            description: The start command, a list of words.
            type: list
            elements: str
          stop:
            description: The stop command, a list of words.
            type: list
            elements: str
  replication_user:
    description: The user as whom standbys stream. Required for V(following).
    type: str
  replication_passfile:
    description: A libpq password file with its password on this host, owned by the server's OS user.
    type: path
  replication_ssl_mode:
    description: C(sslmode) of the standbys' connections.
    type: str
    choices: [disable, allow, prefer, require, verify-ca, verify-full]
    default: prefer
  replication_ca_cert:
    description:
      - Certificate authority that standbys verify the primary with, at this path on this host, readable for the
        modules' and the server's OS user. It becomes C(sslrootcert) of C(primary_conninfo).
    type: path
  stop_timeout:
    description: Seconds that the service has to stop the server. A server to be fenced is killed then.
    type: int
    default: 30
  recovery_timeout:
    description: Seconds that the server has to start and to replay the WAL that it has.
    type: int
    default: 300
  rewind_timeout:
    description: Seconds that C(pg_rewind) or C(pg_basebackup) may take.
    type: int
    default: 3600
  follow_timeout:
    description: Seconds within which the member has to stream from the primary.
    type: int
    default: 60
  state_dir:
    description: Directory of journal and receipts on the managed host.
    type: path
    default: /var/lib/dbops
requirements:
  - psycopg2 >= 2.8 on the managed host
  - C(pg_waldump) and C(pg_rewind) of the server's version, to bring a diverged member back
extends_documentation_fragment:
  - stateful.dbops.attributes
  - stateful.dbops.cluster
attributes:
  check_mode:
    support: partial
    details:
      - Says whether something has to be done. Whether a stopped server has to be rewound is not predictable before it
        was started alone.
  diff_mode:
    support: none
  idempotent:
    support: full
seealso:
  - module: stateful.dbops.replica_promote
"""

EXAMPLES = r"""
- name: Let pg1 follow pg2 again (run on the host of pg1)
  stateful.dbops.pg_member:
    state: following
    cluster: accounts
    node: pg1
    primary: pg2
    nodes:
      - {name: pg1, login_host: 192.0.2.11, login_user: dbops, passfile: /etc/dbops/pgpass}
      - {name: pg2, login_host: 192.0.2.12, login_user: dbops, passfile: /etc/dbops/pgpass}
    local:
      data_dir: /var/lib/postgresql/17/main
      config_dir: /etc/postgresql/17/main
      service: {manager: systemd, name: postgresql@17-main}
    replication_user: replicator
    replication_passfile: /var/lib/postgresql/replication.pass
  become: true
"""

RETURN = r"""
state:
  description: C(fenced), C(would fence), C(unchanged), C(would follow), C(following), C(diverged), C(refused), or
    C(not fenced).
  returned: always
  type: str
fence:
  description: What M(stateful.dbops.replica_promote) takes as O(stateful.dbops.replica_promote#module:fence).
  returned: with state=fenced
  type: dict
how:
  description: How it was made to follow - C(already), C(reload), C(start), C(rewind) or C(base backup).
  returned: with state=following
  type: str
receipt:
  description:
    - What was thrown away - the C(timeline) and where it was left (C(fork), C(end)), C(bytes) of WAL, the number of
      C(transactions) that were committed there, rows by C(relations), and the first of these transactions (C(lost)).
    - The file C(path) on the managed host has all of them.
  returned: when the member had diverged
  type: dict
archive:
  description: WAL files that were C(secured) in the archive before the rewind, and those C(missing).
  returned: after a rewind
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._core.arguments import SSL_MODES, node_options, service_options
from ..module_utils._core.clock import Clock
from ..module_utils._core.errors import DbopsError
from ..module_utils._postgresql.client import missing_driver
from ..module_utils._runners.member import Member
from ..module_utils._runners.rejoin import Rejoin


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["fenced", "following"], "required": True},
            "cluster": {"type": "str", "required": True},
            "node": {"type": "str", "required": True},
            "nodes": {"type": "list", "elements": "dict", "required": True, "options": node_options()},
            "primary": {"type": "str"},
            "slot": {"type": "str"},
            "serve_wal": {"type": "bool", "default": False},
            "rejoin_by_rewind": {"type": "bool", "default": True},
            "rejoin_by_base_backup": {"type": "bool", "default": False},
            "local": {
                "type": "dict",
                "required": True,
                "options": {
                    "data_dir": {"type": "path", "required": True},
                    "config_dir": {"type": "path"},
                    "bin_dir": {"type": "path"},
                    "service": {"type": "dict", "required": True, "options": service_options()},
                },
            },
            "replication_user": {"type": "str"},
            "replication_passfile": {"type": "path", "no_log": False},
            "replication_ssl_mode": {"type": "str", "default": "prefer", "choices": SSL_MODES},
            "replication_ca_cert": {"type": "path"},
            "stop_timeout": {"type": "int", "default": 30},
            "recovery_timeout": {"type": "int", "default": 300},
            "rewind_timeout": {"type": "int", "default": 3600},
            "follow_timeout": {"type": "int", "default": 60},
            "state_dir": {"type": "path", "default": "/var/lib/dbops"},
        },
        required_if=[("state", "following", ["primary", "replication_user"])],
        supports_check_mode=True,
    )
    missing = missing_driver()
    if missing is not None:
        module.fail_json(msg=missing.message)
    try:
        runner = Rejoin if module.params["state"] == "following" else Member
        result = runner(module.params, clock=Clock()).run(check_mode=module.check_mode)
    except DbopsError as error:
        module.fail_json(
            msg=error.message, found=error.found, expected=error.expected, remedy=error.remedy, **error.details
        )
    for warning in result.pop("warnings", []):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
