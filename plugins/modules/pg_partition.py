#!/usr/bin/python
# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_partition
short_description: Keep the partitions of a range-partitioned table ahead of now, without a client waiting
version_added: 0.1.0
author:
  - stateful.dbops contributors (@stateful-dbops)
description:
  - Makes the partitions that are missing, from the current window (or O(start)) up to O(premake) windows ahead.
  - A new partition is made beside the table and attached, under locks that no reader or writer waits for.
  - Where a default partition is large, a validated constraint spares it the scan that attaching would do under a lock.
  - Rows of a missing window that are in the default partition are dealt with as O(default_rows) says. They are visible
    all the time, and who writes such rows gets no error.
  - Existing partitions are known by their bounds and never by their names, so those that somebody else made count too.
  - Locks are waited for in short tries (O(lock_timeout_ms)) within O(lock_wait_timeout).
  - Killed or failed, run it again. It goes on from what the catalog says.
options:
  state:
    description:
      - C(present) keeps the windows as wanted.
      - C(detached) detaches O(partition). Its rows leave the table, and nobody can write into it any more.
      - C(absent) also archives it into O(archive_dir), and drops it when O(grace) has passed, as
        O(retention_action=drop) does. So it takes two runs.
    type: str
    choices: [present, detached, absent]
    default: present
  partition:
    description: Name of the partition that is to leave, with or without its schema.
    type: str
  key:
    description: The column that the table is partitioned by.
    type: str
    required: true
  interval:
    description:
      - Width of a window, as C(hour), C(day), C(week), C(month), C(quarter), C(year), or several such as C(6 hours).
      - For an integer key a number. Hours must divide the day.
      - One of this, O(lists) and O(modulus) is needed.
    type: str
  lists:
    description:
      - The partitions of a table that is partitioned by list. Those of which no value is in a partition are made.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the partition, if it has to be made.
        type: str
        required: true
      values:
        description: Its values, written as the server prints them; null for NULL.
        type: list
        elements: raw
        required: true
  modulus:
    description:
      - Into how many parts a table that is partitioned by hash is divided. The remainders that are missing are made.
      - Existing partitions may have a modulus that divides it or is divided by it. No row moves from one to another.
    type: int
  subpartitions:
    description:
      - How each partition that is made is partitioned itself, by list or by hash.
    type: dict
    suboptions:
      key:
        description: The column.
        type: str
        required: true
      lists:
        description: As O(lists). The names are what follows the partition's name and an underscore.
        type: list
        elements: dict
        suboptions:
          name:
            description: What follows the partition's name.
            type: str
            required: true
          values:
            description: Its values.
            type: list
            elements: raw
            required: true
      modulus:
        description: As O(modulus).
        type: int
  start:
    description:
      - Date, or date and time, in O(time_zone), of an integer key a number, in the first window that has to exist.
      - By default that is the current one.
    type: str
  name_template:
    description:
      - Python format of the names of new partitions, with C(table) and C(start), the beginning in O(time_zone).
      - By default C({table}_p{start:%Y%m%d}), with C(_%H%M) for hours, and C({table}_p{start}) for an integer key.
    type: str
  partial_windows:
    description:
      - What is done where an existing partition covers a part of a missing window, for example because it was made in
        another time zone. C(fill) makes what is missing of it.
    type: str
    choices: [refuse, fill]
    default: refuse
  default_rows:
    description:
      - What is done with rows of a missing window that are in the default partition.
      - C(promote) makes the default partition the partition of that window, and a new, empty one the default. No row is
        moved. All its rows must belong to that window. Until it is done, which is after a scan that holds nobody, the
        default partition refuses rows outside of that window.
      - C(move) moves them while readers and writers wait, up to O(move_limit) rows.
      - C(shadow) rebuilds the default partition. Its rows are copied into new partitions and a new default one while
        triggers carry every change over, both are compared, and new takes the place of old in some milliseconds. The
        old one is kept under the name C(…_retired_…). It needs a primary key, and disk for the copy.
    type: str
    choices: [refuse, promote, move, shadow]
    default: refuse
  move_limit:
    description: Rows of a window that O(default_rows=move) moves at most.
    type: int
    default: 10000
  retention:
    description:
      - How far back partitions are kept, as O(interval) is written. A partition has expired when its upper bound lies
        so far back, whatever its name and width.
    type: str
  retention_action:
    description:
      - What is done with partitions that have expired. C(keep) only returns them.
      - C(detach) detaches them. From then on a trigger (C(dbops_read_only)) lets nobody write into such a table, and
        its foreign keys are dropped, since they would go on to hold rows of other tables. Its comment says what it was.
      - C(DETACH CONCURRENTLY) is used where there is no default partition, on PostgreSQL 14 and later. It begins only
        when no transaction older than 10 seconds uses the table.
      - C(archive) also copies what was detached into O(archive_dir), reads it back from there into a temporary table,
        and compares number and hash of the rows.
      - C(drop) also drops what was archived when O(grace) has passed, at most O(max_drop) a run. Under the lock that
        drops it number and hash are compared once more, and the file with what was written.
    type: str
    choices: [keep, detach, archive, drop]
    default: keep
  archive_dir:
    description:
      - Directory of the archive on the host that the module runs on, for example a mount. It must not be on the file
        system of the database.
      - It gets a file C(.csv.gz) for each table, and one with C(.json) that says what it was.
    type: path
  grace:
    description: How long a detached table is kept, as O(interval) is written, before O(retention_action=drop) drops it.
    type: str
    default: 7 days
  max_drop:
    description: How many tables a run drops at most, so that a mistake is seen before all is gone.
    type: int
    default: 1
  reference_time:
    description:
      - Unix time of another clock, for example the controller's, in seconds. A server whose clock differs by more than
        five minutes is refused.
    type: float
requirements:
  - psycopg2 >= 2.8 on the host that the module runs on
  - PostgreSQL 13 or newer
attributes:
  check_mode:
    support: full
    details:
      - Returns every statement with the locks it takes, what is read under them, and who would block it right now.
  diff_mode:
    support: full
  idempotent:
    support: full
extends_documentation_fragment:
  - stateful.dbops.attributes
  - stateful.dbops.login
  - stateful.dbops.partition_key
  - stateful.dbops.table
seealso:
  - name: PostgreSQL manual, table partitioning
    description: What partitions are.
    link: https://www.postgresql.org/docs/current/ddl-partitioning.html
"""

EXAMPLES = r"""
- name: Four months ahead, days as they begin in Berlin
  stateful.dbops.pg_partition:
    login_db: accounts
    table: transaction_journal
    key: created_at
    interval: month
    time_zone: Europe/Berlin
    premake: 4
"""

RETURN = r"""
created:
  description: Partitions that were made, or would be, with C(name) and C(bound); of a range also C(from) and C(to).
  returned: success
  type: list
  elements: dict
  sample: [{name: public.transaction_journal_p20261201, from: "2026-11-30 23:00:00+00", to: "2026-12-31 23:00:00+00"}]
expired:
  description: Partitions that ended before the retention.
  returned: success
  type: list
  elements: str
detached:
  description: Partitions that were detached, or would be.
  returned: success
  type: list
  elements: str
dropped:
  description: Detached tables that were dropped, or would be.
  returned: success
  type: list
  elements: str
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
  description:
    - Each transaction with C(name), C(summary), C(statements) and C(locks), the strongest lock of each relation.
      C(brief) is true where locks are waited for in milliseconds only.
    - C(by_statement) has for each statement C(sql), C(locks) (C(relation), C(mode), C(scanned_bytes), what is read
      while it is held) and, in check mode, C(blocked_by), who holds right now what it would wait for.
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

from ..module_utils._core.arguments import partition_options
from ..module_utils._core.clock import Clock
from ..module_utils._core.errors import DbopsError
from ..module_utils._postgresql.client import missing_driver
from ..module_utils._runners.partition import partition

WANTED = ["interval", "lists", "modulus"]
EXCLUSIVE = [
    WANTED,
    ["lists", "retention"],
    ["lists", "start"],
    ["modulus", "retention"],
    ["modulus", "start"],
]
REQUIRED_IF = [
    ("state", "detached", ["partition"]),
    ("state", "absent", ["partition", "archive_dir"]),
    ("retention_action", "archive", ["archive_dir"]),
    ("retention_action", "drop", ["archive_dir"]),
]


def main() -> None:
    module = AnsibleModule(
        argument_spec=partition_options(),
        required_if=REQUIRED_IF,
        required_one_of=[WANTED],
        mutually_exclusive=EXCLUSIVE,
        supports_check_mode=True,
    )
    missing = missing_driver()
    if missing is not None:
        module.fail_json(msg=missing.message)
    try:
        result = partition(module.params, clock=Clock(), check_mode=module.check_mode)
    except DbopsError as error:
        details = {"changed": False, **error.details}
        module.fail_json(msg=error.message, found=error.found, expected=error.expected, remedy=error.remedy, **details)
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
