#!/usr/bin/python
# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: consistency_check
short_description: Prove that two PostgreSQL servers hold the same data, and that one holds together
version_added: 0.1.0
author:
  - stateful.dbops contributors (@stateful-dbops)
description:
  - Compares tables on two servers (a primary and its standby or subscriber, blue and green, before and after a
    restore), also of different versions, and checks what has to hold within each. It reads only, in read-only sessions.
  - Rows are summed up in the servers, in pieces of the key. What differs is narrowed down to single rows, so little
    more than the differences is read over the network.
  - A row that differs is looked at again after the other side has applied all that was written before. So clients may
    write meanwhile, and what is only on its way is no difference.
  - The module fails where anything differs, could not be confirmed or could not be checked, so that it can be a gate.
    What cannot be checked is named, and the rest is checked all the same.
options:
  source:
    description: The server that is right, if one of them is. Of a primary and its follower this may be either.
    type: dict
    required: true
    suboptions: &login
      login_host:
        description: Host or directory of the Unix socket, as seen from the host that the module runs on.
        type: str
        default: ''
      login_port:
        description: Port of the server itself; settings of a session do not stay with it in a pooler.
        type: int
        default: 5432
      login_user:
        description: User to log in as. It needs SELECT on what is compared (C(pg_read_all_data) from 14 on).
        type: str
        default: ''
      login_password:
        description: Password of this user. With O(source.passfile) or O(target.passfile) it is not needed.
        type: str
      login_db:
        description: Database to log in to.
        type: str
        default: postgres
      passfile:
        description: A libpq password file on the host that the module runs on.
        type: path
      ssl_mode:
        description: TLS, in the words of libpq.
        type: str
        default: prefer
        choices: [disable, allow, prefer, require, verify-ca, verify-full]
      ca_cert:
        description: File of the certificate authority that the server must have its certificate from.
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
  target:
    description: The other server. Without it only kinds that need one side can be checked.
    type: dict
    suboptions: *login
  checks:
    description: What to check, one after the other.
    type: list
    elements: dict
    required: true
    suboptions:
      kind:
        description:
          - V(table) compares the rows of tables on both sides.
          - V(counts) compares only their numbers.
          - V(ledger) adds up a journal and compares the sums with the balances, in one pass and one snapshot.
          - V(constraints) finds constraints that are not valid or not enforced, and rows that break a foreign key.
          - V(sequences) finds those that are behind their column.
          - V(indexes) finds invalid ones, and with the extension amcheck damaged B-trees.
          - V(replication) finds followers that are behind or away, and slots that hold WAL back or have lost it.
          - The last five are checked on each side that is given.
        type: str
        required: true
        choices: [table, counts, ledger, constraints, sequences, indexes, replication]
      tables:
        description:
          - Names of tables with their schema, or patterns such as V(public.*). Needed for V(table) and V(counts). A
            partition is meant only where it is named in full, since its parent has its rows.
          - Of V(constraints), V(sequences) and V(indexes) all tables by default.
        type: list
        elements: str
      exclude_tables:
        description: Names or patterns that are left out.
        type: list
        elements: str
        default: []
      key:
        description:
          - Columns that tell rows apart. By default those of the primary key, or of another unique key that both sides
            have.
        type: list
        elements: str
      columns:
        description: The columns to compare, besides those of the key; by default all.
        type: list
        elements: str
      exclude:
        description: Columns not to compare. A column that only one side has must be named here.
        type: list
        elements: str
      where:
        description: An SQL condition; only rows that meet it are compared.
        type: str
      hash:
        description:
          - V(fast) takes numbers that are equal for equal, whatever their scale (1.0 = 1.00, -0.0 = 0.0).
          - V(strict) goes by the value as the server sends it (these differ).
        type: str
        choices: [fast, strict]
        default: fast
      ledger:
        description: Of V(ledger), which tables and columns it is about.
        type: dict
        suboptions:
          accounts:
            description: The table of balances.
            type: str
            default: public.accounts
          journal:
            description: The table of entries.
            type: str
            default: public.transaction_journal
          key:
            description: The columns, in both, that say whose balance it is.
            type: list
            elements: str
            default: [user_id, currency]
          balance:
            description: The column of accounts that the journal adds up to.
            type: str
            default: total
          available:
            description: >-
              The column of accounts that a repair keeps at the balance less what is reserved. Empty for none.
            type: str
            default: available
          reserved:
            description: The column of accounts with what is reserved. Empty for none.
            type: str
            default: reserved
          version:
            description: The column of accounts that counts changes. Empty for none.
            type: str
            default: version
          amount:
            description: The column of the journal with the amount.
            type: str
            default: amount
          sign:
            description: >-
              The column of the journal that says whether it is a credit or a debit. Empty where amounts have signs.
            type: str
            default: type
          credit:
            description: Its values that add.
            type: list
            elements: str
            default: [credit]
          debit:
            description: Its values that subtract. Any other value is a difference.
            type: list
            elements: str
            default: [debit]
          status:
            description: The column of the journal that says whether an entry counts.
            type: str
            default: status
          completed:
            description: Its values that count. Empty where all do.
            type: list
            elements: str
            default: [completed]
          tolerance:
            description: By how much a balance may be off. Sums of C(numeric) are exact, so V(0) is right for money.
            type: str
            default: '0'
          accounts_where:
            description: An SQL condition; other accounts are left out.
            type: str
          journal_where:
            description: An SQL condition; other entries are left out.
            type: str
          conditions:
            description: SQL conditions that have to be true of every account.
            type: list
            elements: str
            default: [available >= 0, reserved >= 0, total = available + reserved]
      amcheck:
        description: Of V(indexes), whether to look into the pages of B-trees. V(auto) does where amcheck is installed.
        type: str
        choices: [auto, required, never]
        default: auto
      heapallindexed:
        description: Of V(indexes), whether to look for every row in each index, which reads the table.
        type: bool
        default: false
      max_lag_bytes:
        description: Of V(replication), how far a follower may be behind.
        type: int
        default: 16777216
      max_lag_seconds:
        description: Of V(replication), likewise in seconds, where the server knows them.
        type: float
        default: 30
      max_slot_bytes:
        description: Of V(replication), how much WAL a slot may hold back.
        type: int
        default: 1073741824
  workers:
    description: Pieces that are read at the same time, on each side.
    type: int
    default: 2
  parallel_workers:
    description: Processes that a server may add to each statement (C(max_parallel_workers_per_gather)).
    type: int
    default: 0
  chunk_rows:
    description: About how many rows a piece has.
    type: int
    default: 65536
  snapshot:
    description:
      - V(piece) reads each piece as of its own moment. It keeps no snapshot for long, so it does not hold back vacuum.
      - V(run) reads all pieces of a side as of one moment. On a standby that is cancelled where it is in the way of
        what has to be replayed.
    type: str
    choices: [piece, run]
    default: piece
  recheck_rounds:
    description: How often a row that differs is looked at before it counts as not confirmed.
    type: int
    default: 10
  recheck_delay:
    description: Seconds between the first two of these looks; later ones are further apart.
    type: float
    default: 0.2
  lag_timeout:
    description: Seconds to wait for the follower to have applied what the leader has written.
    type: float
    default: 60
  max_differences:
    description: Where a table has more, it is said that there are more, and no further ones are looked for.
    type: int
    default: 10000
  sample:
    description: How many differences RV(results) shows of each check. Keys and names of columns, never values.
    type: int
    default: 20
  duty_percent:
    description: Share of the time that each worker reads; for the rest it sleeps.
    type: int
    default: 100
  max_lag_bytes:
    description: Above this lag of any standby no further piece is read, until it has caught up; V(0) is no limit.
    type: int
    default: 0
  resume:
    description: Remember in O(state_dir) which pieces were equal, and do not read them again after a kill.
    type: bool
    default: false
  resume_within:
    description: For how many seconds that holds.
    type: float
    default: 3600
  state_dir:
    description: Directory for what O(resume) remembers, on the host that the module runs on.
    type: path
    default: /var/lib/dbops
  report_file:
    description: A file for all differences as JSON lines, mode 0600, on the host that the module runs on.
    type: path
  plan_file:
    description:
      - A file for M(stateful.dbops.consistency_repair), mode 0600, on the host that the module runs on. It has keys and
        hashes of rows that differ, and balances that are off.
    type: path
  metrics_file:
    description:
      - A file for the textfile collector of Prometheus' node exporter, on the host that the module runs on. Its name
        has to end with C(.prom). Alarm on C(dbops_consistency_ok) being 0, and on
        C(dbops_consistency_run_timestamp_seconds) being old.
    type: path
  metrics_labels:
    description: Labels that every metric gets, for example the cluster.
    type: dict
    default: {}
  fail_on_differences:
    description: Whether the module fails where RV(consistent) is false.
    type: bool
    default: true
requirements:
  - psycopg2 >= 2.8 on the host that the module runs on
  - PostgreSQL 13 or newer
attributes:
  check_mode:
    support: full
    details:
      - Does the same, since it changes nothing.
  diff_mode:
    support: none
  idempotent:
    support: full
extends_documentation_fragment:
  - stateful.dbops.attributes
"""

EXAMPLES = r"""
- name: The standby has what the primary has
  stateful.dbops.consistency_check:
    source: {login_host: db1, login_user: dbops, login_db: accounts, passfile: /etc/dbops/pgpass}
    target: {login_host: db2, login_user: dbops, login_db: accounts, passfile: /etc/dbops/pgpass}
    checks:
      - kind: table
        tables: [public.*]
        exclude_tables: [public.sessions]

- name: A restored server holds together
  stateful.dbops.consistency_check:
    source: {login_host: restored, login_user: dbops, login_db: accounts}
    checks:
      - kind: constraints
      - kind: sequences
      - kind: indexes
        amcheck: required
        heapallindexed: true
"""

RETURN = r"""
consistent:
  description: Whether everything was checked and nothing differs.
  returned: always
  type: bool
differences:
  description: How many differences there are in all.
  returned: always
  type: int
results:
  description: One entry for each table, or side, of each check.
  returned: always
  type: list
  elements: dict
  contains:
    kind:
      description: As in O(checks[].kind).
      type: str
    name:
      description: The table, or the side.
      type: str
    status:
      description:
        - V(consistent), V(different), V(unconfirmed) where rows changed at every look, V(failed) where it could not be
          checked.
      type: str
    differences:
      description: How many there are; with RV(ignore:truncated) at least so many.
      type: int
    counts:
      description: >-
        What was looked at. Of tables C(rows), C(pieces), C(resumed) pieces, rows C(missing) on the target, C(extra)
        there, C(changed), C(unconfirmed), and C(in_flight), which were equal at a later look.
      type: dict
    sample:
      description: >-
        Some of the differences. Of tables C(key), C(kind), and the C(columns) that differ; else C(object), C(found) and
        C(remedy).
      type: list
      elements: dict
    method:
      description: Of tables, how rows were hashed, C(record), C(send) or C(md5) (with a server of 13).
      type: str
    division:
      description: Of tables, whether pieces were C(ranges) of the key or C(groups) of its hash, and why.
      type: dict
    link:
      description: Of tables, how the sides depend on each other, C(physical), C(logical) or C(none).
      type: str
    notes:
      description: What was not looked at.
      type: list
      elements: str
    error:
      description: Why it could not be checked.
      type: str
    says:
      description: The entry in a line for people.
      type: str
    duration_ms:
      description: How long it took.
      type: int
retries:
  description: Statements that were run again, because the server could not let them finish (recovery conflicts).
  returned: always
  type: int
duration_ms:
  description: How long everything took.
  returned: always
  type: int
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._core.arguments import consistency_options
from ..module_utils._core.clock import Clock
from ..module_utils._core.errors import DbopsError
from ..module_utils._postgresql.client import missing_driver
from ..module_utils._runners.consistency import consistency, summary


def main() -> None:
    module = AnsibleModule(argument_spec=consistency_options(), supports_check_mode=True)
    missing = missing_driver()
    if missing is not None:
        module.fail_json(msg=missing.message)
    try:
        result = consistency(module.params, clock=Clock())
    except DbopsError as error:
        module.fail_json(
            msg=error.message, found=error.found, expected=error.expected, remedy=error.remedy, consistent=False
        )
    bad = summary(result)
    if bad is not None and module.params["fail_on_differences"]:
        module.fail_json(msg=bad.message, found=bad.found, expected=bad.expected, remedy=bad.remedy, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
