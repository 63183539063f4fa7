#!/usr/bin/python
# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: consistency_repair
short_description: Mend what consistency_check has found, row by row, and take that back
version_added: 0.1.0
author:
  - stateful.dbops contributors (@stateful-dbops)
description:
  - Takes the plan that M(stateful.dbops.consistency_check) wrote. Rows of tables are copied from the source to the
    target, or removed there. Balances become the sum of their journal; what is reserved stays reserved.
  - Each row is locked and looked at again. It is changed only if both sides still are what the check saw, in a
    transaction of its own, and looked at once more before the commit. Whatever is another by now is left alone and
    said.
  - A plan that is too old, of other servers, of another timeline or of tables that were altered is refused as a whole.
  - What was before is on disk, in O(undo_file), before a row is changed. O(state=undone) takes it back, row by row,
    unless somebody has changed the row since.
options:
  source:
    description: The server that rows are copied from. Not needed for a plan of balances alone, nor for O(state=undone).
    type: dict
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
        description: User to log in as.
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
    description: >-
      The server that is changed. It has to be the target of the check; of balances the side they are wrong on.
    type: dict
    required: true
    suboptions: *login
  state:
    description: What is to be done.
    type: str
    choices: [repaired, undone]
    default: repaired
  plan_file:
    description: The plan, on the host that the module runs on. Needed for O(state=repaired).
    type: path
  undo_file:
    description:
      - For O(state=repaired) a new file, which must not be there yet; mode 0600. It has whole rows in it.
      - For O(state=undone) that file.
    type: path
    required: true
  max_age:
    description: Seconds that a plan may be old.
    type: float
    default: 3600
  max_rows:
    description: A plan with more rows is refused.
    type: int
    default: 1000
  sample:
    description: How many rows RV(rows) shows.
    type: int
    default: 20
requirements:
  - psycopg2 >= 2.8 on the host that the module runs on
  - PostgreSQL 13 or newer
attributes:
  check_mode:
    support: full
    details:
      - Looks at every row, as it would, and changes none. No undo file is written.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - Rows that are the same by now are left alone. The undo file has to be a new one each time.
extends_documentation_fragment:
  - stateful.dbops.attributes
seealso:
  - module: stateful.dbops.consistency_check
"""

EXAMPLES = r"""
- name: Mend what was found
  stateful.dbops.consistency_repair:
    source: {login_host: db1, login_user: dbops, login_db: accounts}
    target: {login_host: green1, login_user: dbops, login_db: accounts}
    plan_file: /var/lib/dbops/accounts.plan.jsonl
    undo_file: /var/lib/dbops/accounts.undo.jsonl

- name: Take it back
  stateful.dbops.consistency_repair:
    target: {login_host: green1, login_user: dbops, login_db: accounts}
    state: undone
    undo_file: /var/lib/dbops/accounts.undo.jsonl
"""

RETURN = r"""
mended:
  description: Number of rows that were changed, or would be.
  returned: when a plan was accepted
  type: int
skipped:
  description: Number of rows that were left alone, because they are not as the check saw them.
  returned: when a plan was accepted
  type: int
failed_rows:
  description: Number of rows that could not be changed.
  returned: when a plan was accepted
  type: int
rows:
  description: Some of the rows with C(table) and C(key), and C(what) was done or C(why) not. Failed ones come first.
  returned: when a plan was accepted
  type: list
  elements: dict
statements:
  description: Some of the statements, without values.
  returned: when a plan was accepted
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._core.arguments import repair_options
from ..module_utils._core.clock import Clock
from ..module_utils._core.errors import DbopsError
from ..module_utils._postgresql.client import missing_driver
from ..module_utils._runners.repair import repair


def main() -> None:
    module = AnsibleModule(
        argument_spec=repair_options(),
        required_if=[("state", "repaired", ["plan_file"])],
        supports_check_mode=True,
    )
    missing = missing_driver()
    if missing is not None:
        module.fail_json(msg=missing.message)
    try:
        result = repair(module.params, clock=Clock(), check_mode=module.check_mode)
    except DbopsError as error:
        details = {"changed": False, **error.details}
        module.fail_json(msg=error.message, found=error.found, expected=error.expected, remedy=error.remedy, **details)
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
