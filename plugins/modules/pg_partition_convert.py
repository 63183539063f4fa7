#!/usr/bin/python
# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_partition_convert
short_description: Turn a plain table into a partitioned one, and back, while clients write
version_added: 0.1.0
author:
  - stateful.dbops contributors (@stateful-dbops)
description:
  - The table becomes the first partition of a new, partitioned table that takes its name. No row moves.
  - Beforehand a validated constraint says that every row lies before O(cut), and unique keys that lack O(key) are built
    once more with it. So the swap reads nothing, and clients wait for it for some milliseconds. Clients whose
    statements wait meanwhile go on with the new table.
  - Owner, grants, comment, row security and policies, triggers, foreign keys, indexes, identities and sequences,
    statistics, replica identity, publications and views go with the name. What cannot go with it is refused by name.
  - Partitions after the cut are made as M(stateful.dbops.pg_partition) makes them, and it keeps them from then on.
  - Between its first step and the swap the table accepts no row at or after O(cut). A run that fails takes that back, a
    run that is killed leaves it; run it again, before the cut comes.
  - O(state=plain) is the way back, with all that the partitioned table has by then, until the first row is in another
    partition.
options:
  state:
    description: What the table has to be.
    type: str
    choices: [partitioned, plain]
    default: partitioned
  key:
    description: The column to partition by. Needed for O(state=partitioned).
    type: str
  interval:
    description: Width of a window after O(cut), as in M(stateful.dbops.pg_partition). Needed for O(state=partitioned).
    type: str
  cut:
    description:
      - Date, or date and time, in O(time_zone), of an integer key a number, where the plain table's partition ends. It
        must be the border of a window.
      - By default that is the end of the window after the one that is current, or that holds the greatest value.
    type: str
  weaken:
    description:
      - Names of unique keys without O(key) in them. A partitioned table can enforce them only together with O(key), so
        two rows may then have the same values if they differ there. Without being named here they are refused.
    type: list
    elements: str
    default: []
  legacy_name:
    description: Name of the partition that the table becomes. By default its name and C(_legacy).
    type: str
  name_template:
    description: Names of the new partitions, as in M(stateful.dbops.pg_partition).
    type: str
requirements:
  - psycopg2 >= 2.8 on the host that the module runs on
  - PostgreSQL 13 or newer
attributes:
  check_mode:
    support: full
    details:
      - Returns every statement with the locks it takes, what is read under them, and who would block it right now.
  diff_mode:
    support: none
  idempotent:
    support: full
extends_documentation_fragment:
  - stateful.dbops.attributes
  - stateful.dbops.login
  - stateful.dbops.partition_key
  - stateful.dbops.table
seealso:
  - module: stateful.dbops.pg_partition
  - module: stateful.dbops.pg_partition_info
"""

EXAMPLES = r"""
- name: Partition the journal by month, from the month after the next one on
  stateful.dbops.pg_partition_convert:
    login_db: accounts
    table: transaction_journal
    key: created_at
    interval: month
    weaken: [transaction_journal_pkey]

- name: Take it back
  stateful.dbops.pg_partition_convert:
    login_db: accounts
    table: transaction_journal
    state: plain
"""

RETURN = r"""
state:
  description: C(partitioned) or C(plain), in check mode C(would be partitioned) or C(would be plain).
  returned: success
  type: str
cut:
  description: Where the partition ends that the table became.
  returned: when it was converted, or would be
  type: str
  sample: "2027-02-01 00:00:00+00"
legacy:
  description: The partition that the table became, or was.
  returned: when something was done, or would be
  type: str
  sample: public.transaction_journal_legacy
weakened:
  description: Unique keys that are unique together with the key only, with C(name) and their C(columns) before.
  returned: success
  type: list
  elements: dict
carried:
  description: What went with the table's name, or would.
  returned: success
  type: list
  elements: str
created:
  description: Partitions that were made after the cut, as M(stateful.dbops.pg_partition) returns them.
  returned: success
  type: list
  elements: dict
checks:
  description: What was checked, each with C(name), C(status), C(found), C(expected), C(remedy).
  returned: always
  type: list
  elements: dict
statements:
  description: The statements that were run, or would be.
  returned: success
  type: list
  elements: str
plan:
  description: Each transaction, as M(stateful.dbops.pg_partition) returns it.
  returned: success
  type: list
  elements: dict
timeline:
  description: Each step with C(start_ms), C(duration_ms) and C(outcome).
  returned: when something was done
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._core.arguments import conversion_options
from ..module_utils._core.clock import Clock
from ..module_utils._core.errors import DbopsError
from ..module_utils._postgresql.client import missing_driver
from ..module_utils._runners.conversion import conversion


def main() -> None:
    module = AnsibleModule(
        argument_spec=conversion_options(),
        required_if=[("state", "partitioned", ["key", "interval"])],
        supports_check_mode=True,
    )
    missing = missing_driver()
    if missing is not None:
        module.fail_json(msg=missing.message)
    try:
        result = conversion(module.params, clock=Clock(), check_mode=module.check_mode)
    except DbopsError as error:
        details = {"changed": False, **error.details}
        module.fail_json(msg=error.message, found=error.found, expected=error.expected, remedy=error.remedy, **details)
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
