#!/usr/bin/python
# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_index
short_description: Have an index on a table or a tree of partitions, or not, without stalling a writer
version_added: 0.1.0
author:
  - stateful.dbops contributors (@stateful-dbops)
description:
  - Builds and drops indexes while clients read and write, also on partitioned tables, where PostgreSQL itself has no
    concurrent form.
  - On a partitioned table of any depth it makes an index of the table alone, builds one on each partition concurrently,
    attaches them, and sees that the whole is valid.
  - What has to be done is read from the catalog. A run that was killed is gone on with by the next one - parts that
    are valid are kept, invalid ones are dropped and built again, and a build that the server still goes on with is
    waited for.
  - The definition is compared, not the name. An index of O(name) that is defined otherwise is refused. A part of a
    partition is whatever index has the same definition there, under any name, unless it backs a constraint.
  - A build has no C(lock_timeout). It holds no client up, and giving up would leave an invalid index. It waits for
    every older transaction of the database; O(max_locker_wait) bounds that.
options:
  name:
    description:
      - Name of the index.
      - Its parts on partitions are called C(<partition>_<name>), with a checksum at the end where that is too long or
        taken.
    type: str
    required: true
  state:
    description:
      - V(present) builds what is missing.
      - V(absent) drops it. On a partitioned table that takes ACCESS EXCLUSIVE on the whole tree for a moment.
    type: str
    choices: [present, absent]
    default: present
  columns:
    description:
      - What is indexed, in order. Required for V(present).
      - Each element is the name of a column, or a dictionary with C(name) or C(expression), and where wanted C(order)
        (V(asc), V(desc)), C(nulls) (V(first), V(last)), C(opclass) and C(collation).
      - C(expression), C(opclass), C(collation) and O(where) are SQL, read with an empty C(search_path) - what is not in
        C(pg_catalog) needs its schema.
    type: list
    elements: raw
  method:
    description: Access method.
    type: str
    default: btree
  unique:
    description: On a partitioned table O(columns) must contain the columns of every partition key.
    type: bool
    default: false
  include:
    description: Further columns that are stored and not searched.
    type: list
    elements: str
    default: []
  where:
    description: Condition of a partial index.
    type: str
  storage:
    description: Storage parameters, such as C(fillfactor).
    type: dict
    default: {}
  tablespace:
    description: Tablespace. Without it a new index is in the default one, and that of an existing one is not looked at.
    type: str
  maintenance_work_mem:
    description: Memory for each build, as in C(2GB). Default is the server's.
    type: str
  max_locker_wait:
    description:
      - Seconds that a build, or a concurrent drop, may have to wait for one and the same transaction.
      - Then it is cancelled, the invalid index is dropped, and the error says whose transaction it was.
    type: int
    default: 3600
requirements:
  - psycopg2 >= 2.8 on the host that the module runs on
  - PostgreSQL 13 or newer. Builds are refused on 14.0 to 14.3, where an index that is built concurrently may lack rows.
extends_documentation_fragment:
  - stateful.dbops.attributes
  - stateful.dbops.login
  - stateful.dbops.table
attributes:
  check_mode:
    support: full
    details:
      - Prints every statement with the lock that it takes of each relation, how many bytes are read while it is held,
        and who would block it right now.
      - To know the server's own text of the definition it makes the index on an empty temporary copy of the table and
        rolls back, in check mode too. That takes ACCESS SHARE of the table for a moment.
  diff_mode:
    support: full
  idempotent:
    support: full
notes:
  - The login has to be a member of the role that owns the tables, with CREATE on their schemas and TEMPORARY on the
    database. With C(pg_read_all_stats) messages also say what others are doing.
  - While a unique index is built, a write that would break it fails already before the index is valid.
  - A partition that is a foreign table is refused. The whole can be valid only if every partition has its part.
seealso:
  - module: stateful.dbops.pg_cluster_info
"""

EXAMPLES = r"""
- name: An index on a partitioned table
  stateful.dbops.pg_index:
    login_host: 192.0.2.11
    login_user: dbops
    login_db: accounts
    passfile: /etc/dbops/pgpass
    table: transaction_journal
    name: transaction_journal_user_created
    columns:
      - user_id
      - name: created_at
        order: desc
    where: "status = 'pending'"

- name: A unique one on an expression
  stateful.dbops.pg_index:
    login_db: accounts
    table: users
    name: users_email
    unique: true
    columns:
      - expression: lower(email)

- name: Gone again
  stateful.dbops.pg_index:
    login_db: accounts
    table: users
    name: users_email
    state: absent
"""

RETURN = r"""
statements:
  description: The statements that were run, or in check mode would be, in order.
  returned: always
  type: list
  elements: str
  sample: ['CREATE INDEX CONCURRENTLY "users_email" ON "public"."users" USING "btree" ((lower(email)))']
plan:
  description:
    - Each step with C(name), C(summary), C(statements) and C(locks), the lock that it takes of each relation. C(brief)
      is true where locks are waited for in milliseconds only.
    - C(by_statement) has for each statement C(sql), C(locks) (C(relation), C(mode), C(scanned_bytes), what is read
      while it is held) and, in check mode, C(blocked_by), who holds right now what it would wait for.
  returned: success
  type: list
  elements: dict
indexes:
  description: What was done - C(table), C(index), C(action) (create, build, reindex, attach or drop) and C(seconds).
  returned: always
  type: list
  elements: dict
  sample: [{table: public.journal_2026_01, index: public.journal_2026_01_by_user, action: build, seconds: 41.2}]
waits_for:
  description: In check mode, the transactions that a build which began now would have to wait for, the oldest first.
  returned: check mode
  type: list
  elements: dict
locker:
  description: Whose transaction was waited for too long.
  returned: when O(max_locker_wait) was over
  type: dict
estimated_bytes:
  description: About what a B-tree needs on disk, from the statistics of the table. Null for other access methods.
  returned: success
  type: int
timeline:
  description: The steps with C(start_ms), C(duration_ms) and C(outcome).
  returned: success
  type: list
  elements: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._core.arguments import table_options
from ..module_utils._core.clock import Clock
from ..module_utils._core.errors import DbopsError
from ..module_utils._postgresql.client import missing_driver
from ..module_utils._runners.index import IndexRun


def argument_spec() -> dict[str, Any]:
    return {
        **table_options(),
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "columns": {"type": "list", "elements": "raw"},
        "method": {"type": "str", "default": "btree"},
        "unique": {"type": "bool", "default": False},
        "include": {"type": "list", "elements": "str", "default": []},
        "where": {"type": "str"},
        "storage": {"type": "dict", "default": {}},
        "tablespace": {"type": "str"},
        "maintenance_work_mem": {"type": "str"},
        "max_locker_wait": {"type": "int", "default": 3600},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=argument_spec(),
        required_if=[("state", "present", ["columns"])],
        supports_check_mode=True,
    )
    missing = missing_driver()
    if missing is not None:
        module.fail_json(msg=missing.message)
    try:
        result = IndexRun(module.params, clock=Clock()).run(check_mode=module.check_mode)
    except DbopsError as error:
        for warning in error.details.pop("warnings", []):
            module.warn(warning)
        module.fail_json(
            msg=error.message, found=error.found, expected=error.expected, remedy=error.remedy, **error.details
        )
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
