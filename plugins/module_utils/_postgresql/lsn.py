# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log sequence numbers: an int of 64 bits inside, ``X/Y`` in hexadecimal outside."""

from __future__ import annotations

import re

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})\Z")


def parse_lsn(text: str) -> int:
    """``"0/3000148"`` → 50331976. Raises ValueError on anything else."""
    match = _LSN.match(text)
    if match is None:
        raise ValueError(f"not an LSN: {text!r}")
    return (int(match.group(1), 16) << 32) | int(match.group(2), 16)


def format_lsn(value: int) -> str:
    """50331976 → ``"0/3000148"``."""
    return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"


def wal_segment_name(timeline: int, lsn: int, segment_size: int) -> str:
    """Name of the WAL file that holds ``lsn`` (24 hexadecimal digits; ``segment_size`` in bytes)."""
    number = lsn // segment_size
    per_id = 0x100000000 // segment_size
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"
