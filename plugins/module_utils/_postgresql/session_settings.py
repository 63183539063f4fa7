# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of our sessions. A role or a database may have been given others, by which the same value is printed in
another way, or a statement of ours ends early."""

from __future__ import annotations

from .quoting import literal

SAME_EVERYWHERE = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmloption": "content",
    "lc_monetary": "C",
    # Every name is printed with its schema.
    "search_path": "",
    # A policy that would hide rows from us, which we would then not count, copy or archive, is an error.
    "row_security": "off",
}
"""What values and names look like."""

UNLIMITED = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "60s",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}
_SINCE = {"idle_session_timeout": 140000, "transaction_timeout": 170000}

READ_ONLY = {
    "default_transaction_read_only": "on",
    "lock_timeout": "10s",
    "jit": "off",
    "synchronize_seqscans": "off",
    "max_parallel_workers_per_gather": "0",
    # How many groups there will be is not known to the planner, which would rather sort all rows than hash them.
    "enable_sort": "off",
    "work_mem": "16MB",
}
"""Of sessions that read a lot while clients work: one process each, and never in anybody's way for long."""


def set_all(settings: dict[str, str], version_num: int) -> str:
    """One statement; a setting that the server's version does not have is left out."""
    known = {name: value for name, value in settings.items() if version_num >= _SINCE.get(name, 0)}
    return (
        f"SELECT {', '.join(f'set_config({literal(name)}, {literal(value)}, false)' for name, value in known.items())}"
    )
