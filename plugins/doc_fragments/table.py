# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table a module works on, how long it waits for locks, and where the journal is."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  table:
    description: Name of the table.
    type: str
    required: true
  schema:
    description: Its schema.
    type: str
    default: public
  lock_timeout_ms:
    description:
      - How long one try to lock may wait, in milliseconds, and so how long clients may have to wait behind it.
      - It is tried again after a pause that grows. With more than 50 each try waits a little longer, from 50 to this.
      - What waits long by its nature, such as building an index, waits without it, because it holds no client.
    type: int
    default: 50
  lock_wait_timeout:
    description:
      - Seconds after which the tries to get the locks for one step end, and the module fails.
      - The error names who held them. There is no last try without a limit.
    type: int
    default: 120
  state_dir:
    description:
      - Directory of the journal on the host that the module runs on. It is evidence, not state.
      - What is to be done is always read from the database, so a later run may use another host and another directory.
    type: path
    default: /var/lib/dbops
"""
