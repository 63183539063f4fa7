# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/partition_maintenance.yml as people run it."""

from __future__ import annotations

import pytest

from tests.integration.tables.scene import CATALOG, PARENT, Partitions
from tests.integration.test_playbooks import Run
from tests.lab import inventory
from tests.lab.database import Database

TABLES = [
    {
        "table": "ev",
        "key": "at",
        "interval": "month",
        "premake": 2,
        "retention": "2 months",
        "retention_action": "detach",
    },
    {"table": "n", "key": "id", "key_type": "integer", "interval": "1000"},
]
PAST = "CREATE TABLE ev_past PARTITION OF ev FOR VALUES FROM ('2020-01-01+00') TO ('2020-02-01+00')"


@pytest.mark.parametrize("server", ["18"], indirect=True, scope="session")
def test_a_round_by_playbook(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input, check, one part by tag, do, do again; on a controller whose clock shows another zone's time."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    database.sql(f"{PARENT}; {PAST}; CREATE TABLE n (id int) PARTITION BY RANGE (id)")
    hosts = inventory.write(database.cluster)
    words = {
        "dbops_cluster": database.cluster.name,
        "partition_maintenance_database": database.name,
        "partition_maintenance_tables": TABLES,
    }
    before = database.sql(CATALOG)

    Run("partition_maintenance", hosts, partition_maintenance_premakes=1, **words).failed(
        "found: partition_maintenance_premakes; expected: variables that this role has"
    )
    # The inventory has dbops_cluster as well, but a play's pattern does not see it.
    unseen = {name: value for name, value in words.items() if name != "dbops_cluster"}
    Run("partition_maintenance", hosts, **unseen).failed("found: the play matched no host, and nothing was done")
    Run("partition_maintenance", hosts, "--tags", "plan", **unseen).failed("found: the play matched no host")
    wrong = [*TABLES, {"table": "n", "key": "at", "interval": "day"}]
    Run("partition_maintenance", hosts, **{**words, "partition_maintenance_tables": wrong}).failed("partition key")
    assert database.sql(CATALOG) == before, "nothing is changed before all of the list can be"

    checked = Run("partition_maintenance", hosts, "--check", "--diff", **words).succeeded(changed=True)
    assert database.sql(CATALOG) == before
    for said in (
        'ALTER TABLE "public"."ev" ATTACH PARTITION',
        "locks: ShareUpdateExclusiveLock of public.ev, AccessExclusiveLock of",
        'ALTER TABLE "public"."ev" DETACH PARTITION "public"."ev_past" CONCURRENTLY',
        "-public.ev_past FOR VALUES FROM",
    ):
        assert said in checked.text, checked.output
    Run("partition_maintenance", hosts, "--tags", "plan", **words).succeeded(changed=False)
    assert database.sql(CATALOG) == before

    Run("partition_maintenance", hosts, **words).succeeded(changed=True)
    assert len(Partitions(database, database.cluster.directory).bounds()) == 3
    assert database.value("SELECT count(*) FROM pg_inherits WHERE inhparent = 'n'::regclass") == 5
    Run("partition_maintenance", hosts, **words).succeeded(changed=False)
