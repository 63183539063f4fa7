#!/usr/bin/python
# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: replica_promote
short_description: Make a standby of a PostgreSQL cluster the primary, as planned work or because the primary is gone
version_added: 0.1.0
author:
  - stateful.dbops contributors (@stateful-dbops)
description:
  - Makes the standby O(candidate) the primary of its cluster, as planned work while clients write.
  - Runs on the host of the current primary. Nothing inside the write pause waits for SSH or for an Ansible task.
  - It checks, pauses the poolers, stops the old primary by its service, proves that the candidate has replayed the end
    of the shutdown checkpoint record, promotes, points the poolers to the new primary, and lets all other members
    follow.
  - Before the promotion every failure undoes what was done, and clients have seen latency only. After it the module
    goes forward. Killed at any step and run again, it completes or rolls back and says which.
  - This is the module. The playbook C(stateful.dbops.promote_replica) is what people run; it finds the primary, stages
    the poolers' configuration, arms their dead-man, and calls this module on the right host.
options:
  mode:
    description:
      - What to do. V(switchover) is planned work with a running primary.
      - V(failover) promotes a standby because O(failed_primary) is gone. It refuses without a confirmed O(fence), and
        says what may be lost. It speaks to the standbys only, so it can run on the host of any of them.
      - V(rehearse) does what a switchover does before clients have to wait, measures what the pause would consist of,
        and takes everything back. No pooler is paused, no server is stopped. What refuses a switchover refuses it.
    type: str
    choices: [switchover, failover, rehearse]
    default: switchover
  cluster:
    description:
      - Name of the cluster. Lease, journal and messages carry it.
    type: str
    required: true
  candidate:
    description:
      - Name of the member that is to be the primary. Naming it makes the module idempotent.
      - Required for a switchover and its rehearsal. In a failover the default is the most advanced standby that can
        be promoted.
    type: str
  node:
    description:
      - Name of the member whose host the module runs on. That is the current primary, or the candidate when the old
        primary's host was lost in the middle of a switchover.
    type: str
    required: true
  local:
    description:
      - The server of O(node) on this host. Required for a switchover and its rehearsal.
    type: dict
    suboptions:
      data_dir:
        description: [Its data directory.]
        type: path
        required: true
      config_dir:
        description: [Where C(postgresql.conf) lies, if not in the data directory (Debian).]
        type: path
      bin_dir:
        description: [Directory of its programs. Default is that of the running server.]
        type: path
      service:
        description: [The service that owns the server. Starts and stops go through it.]
        type: dict
        required: true
        suboptions:
          manager:
            description: [V(systemd) needs root. V(command) takes O(local.service.start) and O(local.service.stop).]
            type: str
            required: true
            choices: [systemd, pg_ctlcluster, command]
          name:
            description: [The unit, or C(version/cluster) for V(pg_ctlcluster).]
            type: str
          start:
            description: [The start command, a list of words. It returns when the server accepts connections.]
            type: list
            elements: str
          stop:
            description: [The stop command, a list of words. It makes a fast shutdown.]
            type: list
            elements: str
  poolers:
    description:
      - The PgBouncer processes through which clients reach this cluster. Each one is paused.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: [Name of the pooler.]
        type: str
        required: true
      login_host:
        description: [Host of its console.]
        type: str
        default: ""
      login_port:
        description: [Port of its console.]
        type: int
        default: 6432
      login_user:
        description: [A user in its C(admin_users).]
        type: str
        default: ""
      login_password:
        description: [Password.]
        type: str
      login_db:
        description: [Name of the console.]
        type: str
        default: pgbouncer
      passfile:
        description: [A libpq password file on the managed host.]
        type: path
      ssl_mode:
        description: [As in libpq.]
        type: str
        choices: [disable, allow, prefer, require, verify-ca, verify-full]
        default: prefer
      ca_cert:
        description: [Certificate authority to verify the pooler with.]
        type: path
      ssl_cert:
        description: [Client certificate.]
        type: path
      ssl_key:
        description: [Client key.]
        type: path
      connect_params:
        description: [More libpq keywords.]
        type: dict
        default: {}
      databases:
        description:
          - Names of its databases that follow the primary. They alone are paused and checked.
          - Without names all databases that lead to a member follow the primary.
        type: list
        elements: str
        default: []
      listeners:
        description: [How many processes listen on its port, as M(stateful.dbops.pgbouncer_guard) counted on its host.]
        type: int
      staged_for:
        description: [The member its file was staged for, as M(stateful.dbops.pgbouncer_guard) returned it.]
        type: str
  probes:
    description:
      - What M(stateful.dbops.pg_cluster_info) saw on the hosts of the other members.
    type: list
    elements: dict
    default: []
    suboptions:
      member:
        description: [The member on whose host it ran.]
        type: str
        required: true
      replication_problem:
        description: [Why it could not open a replication connection to the candidate. Empty if it could.]
        type: str
      free_bytes:
        description: [Free space where it writes WAL.]
        type: int
  patroni:
    description:
      - The REST API of Patroni, where it is in charge of this cluster. Then Patroni makes the switchover, with the
        prechecks of this module before it and its verification after it; no server is stopped or promoted behind it.
      - Without it a cluster that Patroni manages is refused.
      - In asynchronous replication Patroni promotes a candidate also where that has not received everything. So the
        candidate has to show just before the request, with the poolers paused, that it has replayed all that was
        written. What clients that no pooler holds write after that is not proved before, only compared afterwards;
        if something is missing the module fails with the state C(data lost). With C(synchronous_mode) of Patroni
        this cannot happen.
    type: dict
    suboptions:
      url:
        description: [Address of the API of any member, reachable from the host that the module runs on.]
        type: str
        required: true
      username:
        description: [User of C(restapi.authentication).]
        type: str
      password:
        description: [Its password.]
        type: str
      ca_cert:
        description: [Certificate authority to verify the API with. Default are those of the system.]
        type: path
      ssl_cert:
        description: [Client certificate, with C(verify_client).]
        type: path
      ssl_key:
        description: [Client key.]
        type: path
  replication_user:
    description:
      - The user as whom standbys stream.
    type: str
    required: true
  replication_passfile:
    description:
      - A libpq password file with its password, at this path on every member's host, owned by the server's OS user.
    type: path
  replication_ssl_mode:
    description:
      - C(sslmode) of the standbys' connections.
    type: str
    choices: [disable, allow, prefer, require, verify-ca, verify-full]
    default: prefer
  replication_ca_cert:
    description:
      - Certificate authority that standbys verify the primary with, at this path on every member's host, readable for
        the modules' and the server's OS user. It becomes C(sslrootcert) of C(primary_conninfo).
    type: path
  failed_primary:
    description:
      - Name of the member that was the primary. Required for a failover.
    type: str
  fence:
    description:
      - What is known of the fence of O(failed_primary), as M(stateful.dbops.pg_member) returned it, or as the caller
        confirmed it by other means.
    type: dict
    suboptions:
      confirmed:
        description: [It is sure that the failed primary can accept no write.]
        type: bool
        default: false
      by:
        description: [Who or what confirmed it. It is kept with the record of the failover.]
        type: str
      synchronous_standby_names:
        description: [Its own list, where its configuration could be read.]
        type: str
  witnesses:
    description:
      - What other observers see.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: [Who looked.]
        type: str
        required: true
      sees_primary:
        description: [Whether it sees O(failed_primary) accept writes. Not given, it could not look.]
        type: bool
      detail:
        description: [Why it could not look.]
        type: str
  accept_split_brain_risk:
    description:
      - Promote without a confirmed fence. Clients may still write to the failed primary, and those writes will be lost.
    type: bool
    default: false
  accept_data_loss:
    description:
      - Promote although another standby has more, or although a commit that was acknowledged as synchronous may be on a
        standby that does not answer.
    type: bool
    default: false
  abandon_operation:
    description:
      - Id of an unfinished switchover that this failover may overtake.
    type: str
  salvage_timeout:
    description:
      - Seconds that the candidate has to fetch what the fenced primary serves.
    type: int
    default: 60
  replay_timeout:
    description:
      - Seconds that the candidate has to replay what it has received.
    type: int
    default: 300
  only_recover:
    description:
      - Finish or undo an unfinished switchover, and begin no new one.
    type: bool
    default: false
  rolls_back:
    description:
      - Id of the switchover that this one takes back. It is recorded, so that taking it back twice changes nothing.
    type: str
  synchronous_standby_names:
    description:
      - The list of the new primary. By default the old list with the candidate's name replaced by the old primary's.
      - It is set before clients are let in, and it has to be satisfiable by the remaining members.
    type: str
  accept_async_window:
    description:
      - Let clients in before the standbys are there to confirm. Until they are, commits are asynchronous.
    type: bool
    default: false
  accept_lost_slots:
    description:
      - Logical slots that may be lost, by name. Their subscribers have to be rebuilt.
    type: list
    elements: str
    default: []
  max_pause_ms:
    description:
      - How long clients may wait. Past it, and before the promotion, the operation rolls back.
    type: int
    default: 5000
  max_lag_bytes:
    description:
      - How far the candidate, and any other consumer of WAL, may be behind when the operation begins.
    type: int
    default: 16777216
  max_transaction_seconds:
    description:
      - The oldest transaction that may run when the operation begins.
    type: float
    default: 10
  max_idle_in_transaction_seconds:
    description:
      - The longest that a session may have been idle in a transaction when the operation begins.
    type: float
    default: 5
  max_archive_backlog:
    description:
      - How many WAL files may wait for the archiver when the operation begins.
    type: int
    default: 16
  min_free_bytes:
    description:
      - Free space that each probed member needs where it writes WAL.
    type: int
    default: 268435456
  checkpoint_timeout:
    description:
      - Seconds that a checkpoint before or after the pause may take.
    type: int
    default: 300
  follow_timeout:
    description:
      - Seconds within which a member has to stream from the new primary.
    type: int
    default: 60
  stop_timeout:
    description:
      - Seconds to wait, after clients go on, for the last process of the old primary (a slow archiver) to end.
    type: int
    default: 120
  state_dir:
    description:
      - Directory of the journal on the managed host.
    type: path
    default: /var/lib/dbops
requirements:
  - psycopg2 >= 2.8 on the managed host
  - PostgreSQL 13 or newer, PgBouncer 1.18 or newer
extends_documentation_fragment:
  - stateful.dbops.attributes
  - stateful.dbops.cluster
attributes:
  check_mode:
    support: full
    details:
      - Runs every precheck and prints the plan, from reads alone. It does not pause anything.
  diff_mode:
    support: full
    details:
      - Topology of the cluster before and after.
  idempotent:
    support: full
seealso:
  - module: stateful.dbops.pg_cluster_info
  - module: stateful.dbops.pgbouncer_guard
"""

EXAMPLES = r"""
- name: Make pg2 the primary (run on the host of the current primary, pg1)
  stateful.dbops.replica_promote:
    cluster: accounts
    candidate: pg2
    node: pg1
    nodes:
      - {name: pg1, login_host: 192.0.2.11, login_user: dbops, passfile: /etc/dbops/pgpass}
      - {name: pg2, login_host: 192.0.2.12, login_user: dbops, passfile: /etc/dbops/pgpass}
    local:
      data_dir: /var/lib/postgresql/17/main
      config_dir: /etc/postgresql/17/main
      service: {manager: systemd, name: postgresql@17-main}
    probes:
      - {member: pg2, replication_problem: "", free_bytes: 53687091200}
    replication_user: replicator
    replication_passfile: /var/lib/postgresql/replication.pass
  become: true
"""

RETURN = r"""
state:
  description: C(switched over), C(failed over), C(rehearsed), C(unchanged), C(would switch over), C(would fail over),
    C(would rehearse), C(would recover), C(refused), C(rolled back), C(rollback unfinished), C(unfinished), or with
    O(patroni) also C(data lost). After C(unfinished) and C(rollback unfinished) a second run goes on.
  returned: always
  type: str
operation:
  description: Id, name and state of the operation, and its journal on the managed host.
  returned: when something was begun
  type: dict
checks:
  description: Every precheck as C(name), C(status), C(found), C(expected), C(remedy).
  returned: when the cluster could be read
  type: list
  elements: dict
plan:
  description: The steps in order with statements and locks, whether clients wait, and the point of no return.
  returned: always
  type: list
  elements: dict
timeline:
  description: What was done, each with C(step), C(start_ms), C(duration_ms), C(outcome).
  returned: when something was begun
  type: list
  elements: dict
statements:
  description: The SQL that was run, or would be run.
  returned: always
  type: list
  elements: str
proof:
  description: The certificate - where the old timeline ended, what the candidate had replayed, and where the new
    timeline begins. C(holds) is true if they are the same position.
  returned: when the promotion was proved
  type: dict
loss:
  description:
    - What a failover may have lost. C(bytes) of WAL that the failed primary had and the new one has not (null where
      nobody could ask it), C(fork) where the old timeline was left, the time of the last commit that is there
      (C(last_commit)), and whether every synchronous commit is there (C(synchronous_promise_kept), null where the
      primary was asynchronous).
    - Transactions are listed by the receipt of M(stateful.dbops.pg_member) when the failed primary rejoins.
  returned: after a failover
  type: dict
behind:
  description: Members that do not follow the new primary yet. M(stateful.dbops.pg_member) brings them back.
  returned: after a failover
  type: list
  elements: str
pause_ms:
  description: How long clients were held, in milliseconds. Null where nobody was, or where a killed run began it.
  returned: when something was begun
  type: float
prediction:
  description:
    - How long a switchover would hold clients. C(pause_ms) in all, its C(parts) by step, and in C(exceeds) why such a
      switchover would be rolled back, empty if it would not.
    - Measured are the oldest transaction of a client, a checkpoint right after another one, the way from a commit to
      its replay, and an answer of the slowest pooler. How long the server takes to end its sessions, and the candidate
      to be promoted, are fixed estimates.
  returned: after a rehearsal
  type: dict
archive:
  description: WAL files of the old primary that were C(secured) in the archive after it stopped, and those C(missing).
  returned: when something was begun
  type: dict
follow_up:
  description: Jobs and tools bound to the old primary that somebody has to look at.
  returned: after a switchover
  type: list
  elements: str
carried_slots:
  description: Physical slots of others that the new primary has now.
  returned: when something was begun
  type: list
  elements: str
old_primary:
  description: Name of the member that was the primary.
  returned: when something was begun
  type: str
new_primary:
  description: Name of the member that is the primary, or was to be.
  returned: when something was begun
  type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._core.arguments import (
    SSL_MODES,
    node_options,
    patroni_options,
    pooler_options,
    service_options,
)
from ..module_utils._core.clock import Clock
from ..module_utils._core.errors import DbopsError
from ..module_utils._postgresql.client import missing_driver
from ..module_utils._runners.failover import Failover
from ..module_utils._runners.patroni_switchover import PatroniSwitchover
from ..module_utils._runners.rehearsal import PatroniRehearsal, Rehearsal
from ..module_utils._runners.switchover import Switchover

RUNS = {"switchover": (Switchover, PatroniSwitchover), "rehearse": (Rehearsal, PatroniRehearsal)}


def argument_spec() -> dict:
    return {
        "mode": {"type": "str", "choices": ["switchover", "failover", "rehearse"], "default": "switchover"},
        "cluster": {"type": "str", "required": True},
        "candidate": {"type": "str"},
        "node": {"type": "str", "required": True},
        "nodes": {"type": "list", "elements": "dict", "required": True, "options": node_options()},
        "local": {
            "type": "dict",
            "options": {
                "data_dir": {"type": "path", "required": True},
                "config_dir": {"type": "path"},
                "bin_dir": {"type": "path"},
                "service": {"type": "dict", "required": True, "options": service_options()},
            },
        },
        "poolers": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                **pooler_options(),
                "listeners": {"type": "int"},
                "staged_for": {"type": "str"},
            },
        },
        "probes": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "member": {"type": "str", "required": True},
                "replication_problem": {"type": "str"},
                "free_bytes": {"type": "int"},
            },
        },
        "patroni": {"type": "dict", "options": patroni_options(), "required_together": [["username", "password"]]},
        "replication_user": {"type": "str", "required": True},
        "replication_passfile": {"type": "path", "no_log": False},
        "replication_ssl_mode": {"type": "str", "default": "prefer", "choices": SSL_MODES},
        "replication_ca_cert": {"type": "path"},
        "failed_primary": {"type": "str"},
        "fence": {
            "type": "dict",
            "options": {
                "confirmed": {"type": "bool", "default": False},
                "by": {"type": "str"},
                "synchronous_standby_names": {"type": "str"},
            },
        },
        "witnesses": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "sees_primary": {"type": "bool"},
                "detail": {"type": "str"},
            },
        },
        "accept_split_brain_risk": {"type": "bool", "default": False},
        "accept_data_loss": {"type": "bool", "default": False},
        "abandon_operation": {"type": "str"},
        "salvage_timeout": {"type": "int", "default": 60},
        "replay_timeout": {"type": "int", "default": 300},
        "only_recover": {"type": "bool", "default": False},
        "rolls_back": {"type": "str"},
        "synchronous_standby_names": {"type": "str"},
        "accept_async_window": {"type": "bool", "default": False},
        "accept_lost_slots": {"type": "list", "elements": "str", "default": []},
        "max_pause_ms": {"type": "int", "default": 5000},
        "max_lag_bytes": {"type": "int", "default": 16 * 1024 * 1024},
        "max_transaction_seconds": {"type": "float", "default": 10},
        "max_idle_in_transaction_seconds": {"type": "float", "default": 5},
        "max_archive_backlog": {"type": "int", "default": 16},
        "min_free_bytes": {"type": "int", "default": 256 * 1024 * 1024},
        "checkpoint_timeout": {"type": "int", "default": 300},
        "follow_timeout": {"type": "int", "default": 60},
        "stop_timeout": {"type": "int", "default": 120},
        "state_dir": {"type": "path", "default": "/var/lib/dbops"},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=argument_spec(),
        required_if=[
            ("mode", "switchover", ["candidate", "local"]),
            ("mode", "rehearse", ["candidate", "local"]),
            ("mode", "failover", ["failed_primary"]),
        ],
        supports_check_mode=True,
    )
    missing = missing_driver()
    if missing is not None:
        module.fail_json(msg=missing.message)
    try:
        if module.params["mode"] == "failover":
            outcome = Failover(module.params, clock=Clock(), check_mode=module.check_mode).run()
        else:
            plain, patroni = RUNS[module.params["mode"]]
            run = patroni if module.params["patroni"] else plain
            outcome = run(module.params, clock=Clock()).run(check_mode=module.check_mode)
    except DbopsError as error:
        for warning in error.details.pop("warnings", []):
            module.warn(warning)
        module.fail_json(
            msg=error.message, found=error.found, expected=error.expected, remedy=error.remedy, **error.details
        )
    result = {"changed": outcome.changed, "state": outcome.state, "msg": outcome.message, **outcome.details}
    for warning in result.pop("warnings"):
        module.warn(warning)
    if module._diff:
        result["diff"] = {"before": outcome.before, "after": outcome.after}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
