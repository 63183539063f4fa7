# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/index_maintenance.yml as people run it."""

from __future__ import annotations

import re

import pytest

from tests.integration.tables.test_index import TREE, oids, state
from tests.integration.test_playbooks import Run
from tests.lab import inventory
from tests.lab.database import Database

INDEXES = [
    {"name": "ix", "table": "p", "columns": ["k", {"name": "id", "order": "desc"}], "storage": {"fillfactor": 80}},
    {"name": "old", "table": "p", "state": "absent"},
]


@pytest.mark.parametrize("server", ["18"], indirect=True, scope="session")
def test_a_round_by_playbook(database: Database) -> None:
    """Bad input, check, one part by tag, do, do again."""
    database.sql(f"{TREE}; CREATE INDEX old ON p (id)")
    hosts = inventory.write(database.cluster)
    words = {
        "dbops_cluster": database.cluster.name,
        "index_maintenance_database": database.name,
        "index_maintenance_indexes": INDEXES,
    }
    before = oids(database)

    Run("index_maintenance", hosts, index_maintenance_max_locker_waits=1, **words).failed(
        "found: index_maintenance_max_locker_waits; expected: variables that this role has"
    )
    wrong = [*INDEXES, {"name": "wrong", "table": "p", "columns": ["nothing"]}]
    Run("index_maintenance", hosts, **{**words, "index_maintenance_indexes": wrong}).failed('"nothing" does not exist')
    assert oids(database) == before, "nothing is built before all of the list can be"

    checked = Run("index_maintenance", hosts, "--check", "--diff", **words).succeeded(changed=True)
    assert oids(database) == before
    for said in (
        'CREATE INDEX CONCURRENTLY "p0_ix" ON "public"."p0"',
        "ShareUpdateExclusiveLock of public.p0 while",
        "AccessExclusiveLock of public.p1_id_idx",
    ):
        assert said in checked.text, checked.output
    assert re.search(r"(?m)^\+ +public.p0: public.p0_ix", checked.output), checked.output
    Run("index_maintenance", hosts, "--tags", "plan", **words).succeeded(changed=False)
    assert oids(database) == before

    Run("index_maintenance", hosts, **words).succeeded(changed=True)
    done = state(database)
    assert set(done) == {"ix", "p0_ix", "p1_ix", "s_ix", "s0_ix"}
    assert all(valid for _table, valid, _above in done.values())
    Run("index_maintenance", hosts, **words).succeeded(changed=False)
