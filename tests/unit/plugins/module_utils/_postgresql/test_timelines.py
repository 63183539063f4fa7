# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Timeline histories, and where two servers went apart."""

from __future__ import annotations

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.timelines import history_switchpoint

HISTORY = (
    "# written by hand\n1\t0/3000148\tno recovery target specified\n\n2\t16/B374D848\tbefore 2026-11-23 01:02:03\n"
)


def test_history_files() -> None:
    assert history_switchpoint(HISTORY, 1) == 0x3000148
    assert history_switchpoint(HISTORY, 2) == 0x16B374D848
    with pytest.raises(DbopsError, match=r"does not name timeline 3.*pg_member"):
        history_switchpoint(HISTORY, 3)


@pytest.mark.parametrize("line", ["1", "x\t0/1\treason", "1\t01\treason", "1\t0/1FFFFFFFF\treason"])
def test_a_malformed_history_file_is_refused(line: str) -> None:
    with pytest.raises(DbopsError, match="in a timeline history file"):
        history_switchpoint(line, 1)
