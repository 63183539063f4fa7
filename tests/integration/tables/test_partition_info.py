# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pg_partition_info says of tables that have something to say."""

from __future__ import annotations

from typing import Any

from tests.integration.tables.scene import CATALOG, Partitions
from tests.lab.operation import run_module


def info(partitions: Partitions, **changes: Any) -> dict[str, Any]:
    words = {key: value for key, value in partitions.options.items() if key.startswith(("login", "passfile", "table"))}
    result = run_module("pg_partition_info", {**words, "key": "at", "interval": "month", **changes})
    assert not result.get("failed"), result.get("msg")
    return result


def test_gaps_overlaps_and_how_far_ahead(partitions: Partitions) -> None:
    database = partitions.database
    assert info(partitions)["windows_ahead"] == -1
    created = partitions.done()["created"]
    database.sql("CREATE TABLE far PARTITION OF ev FOR VALUES FROM ('2190-01-01+00') TO (MAXVALUE)")
    database.sql("CREATE TABLE past PARTITION OF ev FOR VALUES FROM ('1990-01-01+00') TO ('1991-01-01+00')")
    before = database.sql(CATALOG)
    found = info(partitions, retention="year")
    assert database.sql(CATALOG) == before
    assert found["windows_ahead"] == 2
    assert found["covered_until"] == created[-1]["to"]
    assert found["current_partition"] == created[0]["name"]
    assert found["gaps"] == [
        {"from": "1991-01-01 00:00:00+00", "to": created[0]["from"]},
        {"from": created[-1]["to"], "to": "2190-01-01 00:00:00+00"},
    ]
    assert found["expired"] == ["public.past"]
    assert [len(found[name]) for name in ("missing", "overlaps", "default_rows", "pending", "detached")] == [
        2,
        0,
        0,
        0,
        0,
    ]
    berlin = info(partitions, time_zone="Europe/Berlin", premake=2)
    assert berlin["overlaps"][0]["partitions"][0] == created[0]["name"]
    assert all(partition["bytes"] > 0 for partition in found["partitions"])


def test_rows_of_the_default_partition_by_window(partitions: Partitions) -> None:
    database = partitions.database
    database.sql("CREATE TABLE ev_default PARTITION OF ev DEFAULT")
    database.sql("INSERT INTO ev (at) VALUES ('2020-01-31 23:59+00'), ('2020-03-01+00'), ('2020-03-31 23:59+00')")
    assert info(partitions)["default_rows"] == [
        {"from": "2020-01-01 00:00:00+00", "to": "2020-02-01 00:00:00+00", "rows": 1},
        {"from": "2020-03-01 00:00:00+00", "to": "2020-04-01 00:00:00+00", "rows": 2},
    ]


def test_what_was_detached_and_what_a_killed_run_left(partitions: Partitions) -> None:
    database = partitions.database
    last = partitions.done()["created"][-1]["name"]
    partitions.done(state="detached", partition=last)
    (detached,) = info(partitions)["detached"]
    assert (detached["name"], detached["blocked"]) == (last, True)
    database.sql(f"ALTER TABLE {last} RENAME TO kept")
    assert info(partitions)["detached"][0]["name"] == "public.kept"
    partitions.run(failpoint=f"create {last.removeprefix('public.')}:after")
    assert info(partitions)["leftovers"] == [last]


def test_tables_that_have_no_windows(partitions: Partitions) -> None:
    database = partitions.database
    database.sql("CREATE TABLE listed (id int, kind text) PARTITION BY LIST (kind)")
    database.sql("CREATE TABLE listed_a PARTITION OF listed FOR VALUES IN ('a', NULL)")
    database.sql("CREATE TABLE plain (id int)")
    found = info(partitions, table="listed", key=None, interval=None)
    assert (found["strategy"], found["key"]) == ("list", ["kind"])
    assert found["partitions"][0]["bound"] == "FOR VALUES IN ('a', NULL)"
    assert info(partitions, table="plain", key=None, interval=None)["strategy"] is None
