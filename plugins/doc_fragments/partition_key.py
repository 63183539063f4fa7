# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the key of a partitioned table stands for time, and which windows that gives."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  key_type:
    description:
      - How the key stands for time. Not needed for C(timestamptz), C(timestamp), C(date), and C(uuid) (C(uuid7)).
      - An integer is C(integer) (a number, O(interval) then being so many of them), C(epoch) or C(snowflake).
    type: str
    choices: [timestamptz, timestamp, date, uuid7, integer, epoch, snowflake]
  epoch_unit:
    description: What an O(key_type=epoch) counts since 1970.
    type: str
    choices: [s, ms, us, ns]
    default: s
  snowflake_epoch_ms:
    description: Milliseconds since 1970 at which an O(key_type=snowflake) begins to count.
    type: int
    default: 1288834974657
  snowflake_shift:
    description: Number of bits below the milliseconds of an O(key_type=snowflake).
    type: int
    default: 22
  time_zone:
    description:
      - Where days begin. The windows of a day on which clocks are changed are longer or shorter, and leave no gap.
      - For a C(timestamp) or C(date) it says what now is.
    type: str
    default: UTC
  premake:
    description: How many windows after the current one have to exist.
    type: int
    default: 4
"""
