# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of versions on which something is not safe."""

from __future__ import annotations

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.known_defects import (
    CONCURRENT_BUILD,
    DEFECTS,
    known_defect,
)


@pytest.mark.parametrize(
    ("version_num", "defective"),
    [(130023, False), (140000, True), (140003, True), (140004, False), (140023, False), (150000, False)],
)
def test_concurrent_builds_of_14(version_num: int, defective: bool) -> None:
    assert (known_defect(CONCURRENT_BUILD, version_num) is not None) == defective


def test_every_row_can_be_found() -> None:
    for row in DEFECTS:
        assert known_defect(row.operation, row.first) is row
        assert known_defect(row.operation, row.fixed - 1) is row
        assert known_defect(row.operation, row.fixed) is not row
