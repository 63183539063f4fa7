# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attributes that every module of the collection states."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and tell what it would do, from reads alone.
  diff_mode:
    description: Returns what changed, or would change, when in diff mode.
  idempotent:
    description: A second run with the same options finds nothing to do and reports RV(ignore:changed=false).
  action_group:
    description: Use C(group/stateful.dbops.dbops) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - stateful.dbops.dbops
"""

    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This module only reads.
  diff_mode:
    support: N/A
    details:
      - This module only reads.
  idempotent:
    support: full
    details:
      - This module only reads.
"""
