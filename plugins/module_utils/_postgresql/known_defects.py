# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Minor versions on which something that is otherwise safe is not."""

from __future__ import annotations

from dataclasses import dataclass

CONCURRENT_BUILD = "building an index concurrently"


@dataclass(frozen=True)
class Defect:
    """``first`` and ``fixed`` are server_version_num: the defect is in first <= version < fixed."""

    operation: str
    first: int
    fixed: int
    harm: str


DEFECTS = (
    # Release notes of PostgreSQL 14.4.
    Defect(CONCURRENT_BUILD, 140000, 140004, "the index may lack rows that were updated meanwhile"),
)


def known_defect(operation: str, version_num: int) -> Defect | None:
    """The defect that ``operation`` has on this version, else None."""
    return next(
        (found for found in DEFECTS if found.operation == operation and found.first <= version_num < found.fixed), None
    )
