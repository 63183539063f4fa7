# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log sequence numbers: an int of 64 bits inside, ``X/Y`` in hexadecimal outside."""

from __future__ import annotations


def parse_lsn(text: str) -> int:
    """``"0/3000148"`` → 50331976. Raises ValueError on anything else."""
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"not an LSN: {text!r}")
    value_high, value_low = int(high, 16), int(low, 16)
    if not (0 <= value_high <= 0xFFFFFFFF and 0 <= value_low <= 0xFFFFFFFF):
        raise ValueError(f"not an LSN: {text!r}")
    return (value_high << 32) | value_low


def format_lsn(value: int) -> str:
    """50331976 → ``"0/3000148"``."""
    return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"


def wal_segment_name(timeline: int, lsn: int, segment_size: int) -> str:
    """Name of the WAL file that holds ``lsn`` (24 hexadecimal digits; ``segment_size`` in bytes)."""
    number = lsn // segment_size
    per_id = 0x100000000 // segment_size
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"
