#!/usr/bin/python
# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbouncer_guard
short_description: Guard a PgBouncer while its cluster is switched over
version_added: 0.1.0
author:
  - stateful.dbops contributors (@stateful-dbops)
description:
  - Runs on the host of one PgBouncer process, before and after an operation that pauses it from elsewhere.
  - O(state=armed) points the pooler's configuration file at the coming primary without a RELOAD, and starts a dead-man
    process beside the pooler. When databases of this cluster stay paused for longer than O(pause_limit_ms), the
    dead-man asks all members. While one that answers shows the lease of a run (an advisory lock that
    M(stateful.dbops.replica_promote) holds as long as its process lives) it leaves the pooler to that run. Otherwise
    the run has died, and the dead-man points the pooler at the member that is writable on the highest timeline, and
    resumes. While there is no such member it goes on asking. At O(hard_limit_ms) it resumes in any case, without such
    a member where the pooler points.
  - O(state=disarmed) ends the dead-man and leaves the pooler pointed at O(target), in its file and in its memory, and
    not paused. After a run that died it is what brings the pooler home. Where clients still wait for the server that
    the pooler was pointed away from, because its host is gone or hangs, the database is cut off (C(KILL), C(RESUME)).
  - Both states wait up to 12 seconds while a run shows its lease, and then refuse and change nothing, because the
    poolers of a run that is at work are its own.
  - It refuses a host on which another PgBouncer process leads to the same cluster unlisted, because a process that is
    not paused together with the others lets clients write past the switchover.
  - The dead-man ends by itself after O(lifetime_s), when the configuration file names the writable primary.
options:
  state:
    description: Whether the pooler is to be guarded.
    type: str
    required: true
    choices: [armed, disarmed]
  cluster:
    description: Name of the cluster.
    type: str
    required: true
  operation:
    description:
      - Identifier of the operation that is being guarded. It stands in the dead-man's log.
      - A dead-man of another operation is replaced.
    type: str
    required: true
  pooler:
    description: The PgBouncer process, and how to log in to its console as one of its C(admin_users).
    type: dict
    required: true
    suboptions:
      name:
        description: Name, as messages show it.
        type: str
        required: true
      login_host:
        description: Host or directory of the Unix socket, as seen from the host that the module runs on.
        type: str
        default: ''
      login_port:
        description: Port. A pooler's console is on the port that its clients use.
        type: int
        default: 6432
      login_user:
        description: User to log in as.
        type: str
        default: ''
      login_password:
        description: Password of this user.
        type: str
      login_db:
        description: Database to log in to.
        type: str
        default: pgbouncer
      passfile:
        description: A libpq password file on the host that the module runs on.
        type: path
      ssl_mode:
        description: TLS, in the words of libpq.
        type: str
        default: prefer
        choices: [disable, allow, prefer, require, verify-ca, verify-full]
      ca_cert:
        description: File of the certificate authority that the other side must have its certificate from.
        type: path
      ssl_cert:
        description: File of the client certificate.
        type: path
      ssl_key:
        description: File of the client certificate's key.
        type: path
      connect_params:
        description: Further connection parameters of libpq.
        type: dict
        default: {}
      databases:
        description:
          - Names of its databases that follow the primary. The others are left alone, for example those that lead to a
            standby for reading.
          - Without names all databases that lead to a member follow the primary.
        type: list
        elements: str
        default: []
      config_file:
        description: The configuration file that this process was started with, with the files it includes.
        type: path
        required: true
  target:
    description:
      - Name of the member that the pooler is to use. With O(state=armed) the coming primary, with O(state=disarmed) the
        member that is the primary now.
    type: str
    required: true
  pause_limit_ms:
    description:
      - Milliseconds of pause after which the dead-man asks the members, four times a second, whether the run lives.
      - It need not be more than the longest pause of the operation. A switchover that goes well has ended its pause by
        then, so that nobody asks its servers while it is busy with them.
    type: int
    default: 3000
  hard_limit_ms:
    description:
      - Milliseconds of pause after which clients are let go even though no single writable member has been found.
      - Keep it below the pooler's C(query_wait_timeout), which ends the connections of waiting clients.
    type: int
    default: 60000
  lifetime_s:
    description: Seconds after which the dead-man ends by itself. It stays longer while clients are held.
    type: int
    default: 900
  known_config_files:
    description:
      - Configuration files of other PgBouncer processes on this host that are guarded on their own, or of which you
        know that they do not lead to this cluster. They are not read.
    type: list
    elements: path
    default: []
  state_dir:
    description: Directory on the pooler's host for the dead-man's record and log.
    type: path
    default: /var/lib/dbops
notes:
  - Run as root, or as the user who owns the configuration file and its directory. Other processes' configurations must
    be readable; one that is not makes the module refuse.
  - The dead-man is a process called C(dbops-pgb-guard) without a controlling terminal. Where logind has
    C(KillUserProcesses=yes) it ends with the session of a non-root user; run as root there.
  - A database that is reached through the C(*) fallback and that no client has used before has no pool yet, and cannot
    be paused; its first client may see an error during the switchover. List databases that matter.
requirements:
  - psycopg2 >= 2.8 on the pooler's host
  - PgBouncer >= 1.18
extends_documentation_fragment:
  - stateful.dbops.attributes
  - stateful.dbops.cluster
attributes:
  check_mode:
    support: full
    details: Reads processes, files, the console and the members; starts, ends, writes and reloads nothing.
  diff_mode:
    support: full
    details: Shows where each database leads, never a line of the file, for connection strings hold passwords.
  idempotent:
    support: partial
    details: Arming again starts a new dead-man once less than half of O(lifetime_s) is left.
seealso:
  - module: stateful.dbops.replica_promote
"""

EXAMPLES = r"""
- name: Guard the pooler before the switchover to pg2
  stateful.dbops.pgbouncer_guard:
    state: armed
    cluster: accounts
    operation: "{{ dbops_operation }}"
    pooler:
      name: pooler1
      login_host: 192.0.2.20
      login_user: pooler_admin
      passfile: /root/.pgpass
      config_file: /etc/pgbouncer/pgbouncer.ini
    nodes: "{{ dbops_nodes }}"
    target: pg2

- name: Afterwards, or when the run before this one died, bring the pooler to the primary
  stateful.dbops.pgbouncer_guard:
    state: disarmed
    cluster: accounts
    operation: "{{ dbops_operation }}"
    pooler:
      name: pooler1
      login_host: 192.0.2.20
      login_user: pooler_admin
      passfile: /root/.pgpass
      config_file: /etc/pgbouncer/pgbouncer.ini
    nodes: "{{ dbops_nodes }}"
    target: "{{ dbops_primary }}"
"""

RETURN = r"""
listeners:
  description: How many processes share one listening address on the pooler's port.
  type: int
  returned: state=armed
  sample: 1
processes:
  description: All PgBouncer processes of the host.
  type: list
  elements: dict
  returned: state=armed
  sample: [{pid: 812, config_file: /etc/pgbouncer/pgbouncer.ini}]
databases:
  description: The pooler's databases that follow the primary of this cluster.
  type: list
  elements: str
  returned: success
  sample: [accounts]
changes:
  description: What changes in the configuration file, one item per database.
  type: list
  elements: dict
  returned: success
  sample: [{database: accounts, before: "192.0.2.11:5432", after: "192.0.2.12:5432"}]
deadman:
  description:
    - With O(state=armed) the dead-man that watches now, in check mode the one that would be kept.
    - With O(state=disarmed) the one that was alive. Null where there is none.
  type: dict
  returned: success
  sample:
    pid: 4711
    operation: op1
    target: pg2
    log: /var/lib/dbops/pgbouncer_guard/accounts-pooler1.log
    until: 1767225600.0
resumed:
  description:
    - Databases that a run which died had left paused, and that were resumed at once because their primary is writable.
    - What they wait for would otherwise come while the next operation is under way.
  type: list
  elements: str
  returned: state=armed
  sample: []
replaced_operation:
  description: The operation of a dead-man that was replaced, else null.
  type: str
  returned: state=armed
fired:
  description: Whether the dead-man has resumed the pooler.
  type: bool
  returned: state=disarmed
events:
  description: What the dead-man has logged, oldest first.
  type: list
  elements: dict
  returned: state=disarmed
  contains:
    t:
      description: Unix time.
      type: float
      returned: always
    event:
      description: What happened, one of armed, waiting, resumed, failed, expired.
      type: str
      returned: always
statements:
  description: Console commands that were run, in check mode those that would be.
  type: list
  elements: str
  returned: state=disarmed
  sample: [RELOAD, RESUME accounts]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._core.arguments import node_options, pooler_options
from ..module_utils._core.clock import Clock
from ..module_utils._core.errors import DbopsError
from ..module_utils._postgresql.client import missing_driver
from ..module_utils._runners.members import endpoint
from ..module_utils._runners.pgbouncer_guard import Guard, Member, arm, disarm


def _member(words: dict[str, Any]) -> Member:
    address = (words["address"] or words["login_host"], words["port"] or words["login_port"])
    return Member(name=words["name"], endpoint=endpoint(words), address=address)


def _diff(changes: list[dict[str, str]]) -> dict[str, str]:
    return {
        side: "".join(f"{change['database']} -> {change[side]}\n" for change in changes) for side in ("before", "after")
    }


def main() -> None:
    pooler = {**pooler_options(), "config_file": {"type": "path", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["armed", "disarmed"]},
            "cluster": {"type": "str", "required": True},
            "operation": {"type": "str", "required": True},
            "pooler": {"type": "dict", "required": True, "options": pooler},
            "nodes": {"type": "list", "elements": "dict", "required": True, "options": node_options()},
            "target": {"type": "str", "required": True},
            "pause_limit_ms": {"type": "int", "default": 3000},
            "hard_limit_ms": {"type": "int", "default": 60000},
            "lifetime_s": {"type": "int", "default": 900},
            "known_config_files": {"type": "list", "elements": "path", "default": []},
            "state_dir": {"type": "path", "default": "/var/lib/dbops"},
        },
        supports_check_mode=True,
    )
    words = module.params
    guard = Guard(
        cluster=words["cluster"],
        operation=words["operation"],
        pooler=endpoint(words["pooler"]),
        config_file=words["pooler"]["config_file"],
        members=tuple(_member(node) for node in words["nodes"]),
        target=words["target"],
        pause_limit_ms=words["pause_limit_ms"],
        hard_limit_ms=words["hard_limit_ms"],
        lifetime_s=words["lifetime_s"],
        state_dir=words["state_dir"],
        known_config_files=tuple(words["known_config_files"]),
        databases=tuple(words["pooler"]["databases"]),
    )
    run = arm if words["state"] == "armed" else disarm
    try:
        missing = missing_driver()
        if missing is not None:
            raise missing
        result = run(guard, Clock(), check_mode=module.check_mode)
    except DbopsError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(diff=_diff(result["changes"]), **result)


if __name__ == "__main__":
    main()
