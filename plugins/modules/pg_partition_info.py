#!/usr/bin/python
# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_partition_info
short_description: What the partitions of a table are, and what is missing or in the way
version_added: 0.1.0
author:
  - stateful.dbops contributors (@stateful-dbops)
description:
  - Returns the partitions of a table with bounds and sizes, and those that are being detached or were.
  - With O(interval) also gaps, missing windows, how far ahead of now the table is, and the rows of each window that are
    in the default partition. Those are read from the default partition itself, which takes long if it is large and has
    no index on the key.
options:
  table:
    description: Name of the table.
    type: str
    required: true
  schema:
    description: Its schema.
    type: str
    default: public
  key:
    description: The column that the table is partitioned by. Needed with O(interval).
    type: str
  interval:
    description: Width of a window, as M(stateful.dbops.pg_partition) has it.
    type: str
  retention:
    description: How far back partitions are kept. With it RV(expired) is returned.
    type: str
requirements:
  - psycopg2 >= 2.8 on the host that the module runs on
extends_documentation_fragment:
  - stateful.dbops.attributes.info
  - stateful.dbops.attributes
  - stateful.dbops.login
  - stateful.dbops.partition_key
seealso:
  - module: stateful.dbops.pg_partition
"""

EXAMPLES = r"""
- name: How far ahead is the journal
  stateful.dbops.pg_partition_info:
    login_db: accounts
    table: transaction_journal
    key: created_at
    interval: month
    time_zone: Europe/Berlin
  register: journal

- name: It must be two months at least
  ansible.builtin.assert:
    that: journal.windows_ahead >= 2
"""

RETURN = r"""
strategy:
  description: C(range), C(list) or C(hash). Null if the table is not partitioned.
  returned: success
  type: str
key:
  description: Columns of the partition key, null for an expression.
  returned: success
  type: list
  elements: str
partitions:
  description:
    - Each partition with C(name), C(bound) as the server prints it in UTC, C(kind), C(rows_estimate) (-1 if unknown),
      C(bytes) with indexes, and C(detach_pending).
  returned: success
  type: list
  elements: dict
default:
  description: The default partition, null if there is none.
  returned: success
  type: str
pending:
  description: Partitions whose concurrent detaching was begun and not ended. Their rows are not to be seen.
  returned: success
  type: list
  elements: str
detached:
  description: Tables that M(stateful.dbops.pg_partition) detached, with C(name), C(bound), C(detached_at), C(blocked).
  returned: success
  type: list
  elements: dict
leftovers:
  description: Tables that a killed run made and that never became partitions.
  returned: success
  type: list
  elements: str
publications:
  description: Publications that publish partitions under their own names.
  returned: success
  type: list
  elements: str
missing:
  description: Parts of wanted windows (from the current one to O(premake) ahead) that have no partition.
  returned: with O(interval)
  type: list
  elements: dict
gaps:
  description: Ranges between the partitions that have none, with C(from) and C(to).
  returned: with O(interval)
  type: list
  elements: dict
overlaps:
  description: Wanted windows of which existing partitions cover a part, with C(partitions).
  returned: with O(interval)
  type: list
  elements: dict
current_partition:
  description: The partition that rows of now go to. Null if they go to the default partition, or nowhere.
  returned: with O(interval)
  type: str
covered_until:
  description: Up to where there is no gap after now. Null if there is no end, or nothing for now.
  returned: with O(interval)
  type: str
windows_ahead:
  description: Number of whole windows after the current one that exist without a gap. -1 if there is none for now.
  returned: with O(interval)
  type: int
default_rows:
  description:
    - Windows of which the default partition has rows, with C(from), C(to), C(rows). Counted up to 100000 a window and
      500 windows.
  returned: with O(interval)
  type: list
  elements: dict
expired:
  description: Partitions that ended before O(retention).
  returned: with O(interval)
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._core.arguments import login_options, partition_key_options
from ..module_utils._core.clock import Clock
from ..module_utils._core.errors import DbopsError
from ..module_utils._postgresql.client import missing_driver
from ..module_utils._runners.partition_info import partition_info


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **login_options(),
            **partition_key_options(),
            "table": {"type": "str", "required": True},
            "schema": {"type": "str", "default": "public"},
            "key": {"type": "str", "no_log": False},
            "interval": {"type": "str"},
            "retention": {"type": "str"},
        },
        required_by={"interval": ["key"]},
        supports_check_mode=True,
    )
    missing = missing_driver()
    if missing is not None:
        module.fail_json(msg=missing.message)
    try:
        result = partition_info(module.params, clock=Clock())
    except DbopsError as error:
        module.fail_json(msg=error.message, found=error.found, expected=error.expected, remedy=error.remedy)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
