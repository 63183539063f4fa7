# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL of pg_partition and pg_partition_convert before and after each of their steps, while clients write; run
again, they converge."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.tables.scene import JOURNAL, PARENT, Conversion, Partitions
from tests.lab.cluster import Cluster
from tests.lab.database import Database
from tests.lab.table_load import TableLoad

FILLER = """INSERT INTO ev (at, note) SELECT '2000-01-01'::timestamptz + n * interval '1 minute', repeat('x', 200)
              FROM generate_series(1, 50000) n"""
FIXED = "INSERT INTO ev (at, note) SELECT now(), 'fixed' FROM generate_series(1, 1000)"
DEFAULT = "CREATE TABLE ev_default PARTITION OF ev DEFAULT"
CURRENT = "CREATE TABLE ev_wide PARTITION OF ev FOR VALUES FROM ('2020-01-01+00') TO ('2020-02-01+00')"
PAST = "CREATE TABLE ev_past PARTITION OF ev FOR VALUES FROM ('2020-01-01+00') TO ('2020-02-01+00')"
NOW = "CREATE TABLE ev_now PARTITION OF ev FOR VALUES FROM ('2026-01-01+00') TO ('2100-01-01+00')"
KIND = "CREATE TABLE kind (id int PRIMARY KEY); ALTER TABLE ev ADD kind int REFERENCES kind"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    version = os.environ.get("DBOPS_VERSION", "18")
    with Cluster.create(tmp_path_factory.mktemp("partition") / "lab", version, members=("pg1",)) as cluster:
        yield cluster


SCENES: dict[str, tuple[list[str], dict[str, Any], list[str]]] = {
    # What there is, how pg_partition is called, and the steps that it then takes ("p0" is the current window).
    "guarded": (
        [DEFAULT, FILLER],
        {"start": "next", "premake": 2},
        [
            *("add dbops_guard", "validate dbops_guard", "create p1", "attach p1", "create p2", "attach p2"),
            *("drop dbops_guard", "analyze ev"),
        ],
    ),
    "promote": (
        [DEFAULT, FIXED],
        {"default_rows": "promote", "premake": 1},
        [
            *("create ev_default_dbops_next", "add dbops_bound", "validate dbops_bound", "promote ev_default"),
            *("create p1", "attach p1", "analyze ev"),
        ],
    ),
    "shadow": (
        [DEFAULT, FIXED, "INSERT INTO ev (at, note) VALUES ('1999-01-01', 'stays')"],
        {"default_rows": "shadow", "premake": 1},
        [
            *("create ev_dbops_shadow", "mirror ev_default", "copy ev_default", "compare ev_default"),
            *("cut over ev_default", "block retired", "create p1", "attach p1", "analyze ev"),
        ],
    ),
    "move": (
        [CURRENT, DEFAULT, FIXED],
        {"default_rows": "move", "move_limit": 1_000_000, "premake": 1},
        ["create p0", "move to p0", "create p1", "attach p1", "analyze ev"],
    ),
    "nested": (
        [DEFAULT],
        {"start": "next", "premake": 1, "subpartitions": {"key": "id", "modulus": 2}},
        ["create p1", "attach p1", "analyze ev"],
    ),
    "detach": (
        [PAST, NOW, KIND],
        {"retention": "1 month", "retention_action": "detach", "premake": 0},
        ["mark ev_past", "detach ev_past", "drop ev_kind_fkey", "block ev_past"],
    ),
    "detach beside a default": (
        [PAST, NOW, DEFAULT, KIND],
        {"retention": "1 month", "retention_action": "detach", "premake": 0},
        ["mark ev_past", "detach ev_past", "drop ev_kind_fkey", "block ev_past"],
    ),
}
# A run that is killed before a step has done what one that is killed after the step before has done.
CASES = [
    pytest.param(scene, f"{step}:{moment}", marks=[pytest.mark.long] if moment == "before" else [])
    for scene, (_there, _options, steps) in SCENES.items()
    for step in steps
    for moment in ("before", "after")
]


class Stage:
    def __init__(self, server: Cluster, state_dir: Path, scene: str) -> None:
        self.database = Database.create(server)
        self.database.sql(PARENT)
        there, options, self.steps = SCENES[scene]
        for statement in there:
            self.database.sql(statement)
        self.partitions = Partitions(self.database, state_dir)
        now = self.database.value("SELECT date_trunc('month', now(), 'UTC')::date")
        self.today = self.database.value("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')")
        months = [now.year * 12 + now.month - 1 + ahead for ahead in range(3)]
        self.names = {f"p{n}": f"ev_p{month // 12:04}{month % 12 + 1:02}01" for n, month in enumerate(months)}
        start = f"{months[1] // 12:04}-{months[1] % 12 + 1:02}-01"
        self.options = {**options, **({"start": start} if options.get("start") else {})}

    def named(self, text: str) -> str:
        text = text.replace("block retired", f"block ev_default_retired_{self.today}")
        for short, name in self.names.items():
            text = text.replace(f" {short}", f" {name}")
        return text


@pytest.mark.parametrize(("scene", "failpoint"), CASES)
def test_killed_at_a_step_the_second_run_finishes(server: Cluster, tmp_path: Path, scene: str, failpoint: str) -> None:
    stage = Stage(server, tmp_path, scene)
    probe = "SELECT count(*) FROM ev WHERE note = 'fixed'"
    insert = "INSERT INTO ev (id, at, note) VALUES (%s, now(), 'live')"
    with TableLoad(stage.database, insert=insert, probe=probe) as running:
        killed = stage.partitions.run(**stage.options, failpoint=stage.named(failpoint))
        assert killed == {}, "the failpoint was not reached"
        stage.partitions.done(**stage.options)
    running.check("ev")
    assert stage.database.sql("SELECT conname FROM pg_constraint WHERE conname LIKE 'dbops%'") == []
    assert stage.database.sql("SELECT relname FROM pg_class WHERE relname LIKE '%dbops%' AND relkind = 'r'") == []
    assert not stage.partitions.done(**stage.options)["changed"]
    stage.database.drop()


@pytest.mark.parametrize("scene", SCENES)
def test_the_list_of_steps_is_complete(server: Cluster, tmp_path: Path, scene: str) -> None:
    stage = Stage(server, tmp_path, scene)
    plan = stage.partitions.done(check=True, **stage.options)["plan"]
    assert [step["name"] for step in plan] == [stage.named(step) for step in stage.steps]
    stage.database.drop()


PREPARED = ["add dbops_bound", "validate dbops_bound", "build journal_pkey_dbops", "cut over journal"]
AHEAD = ["create p", "attach p", "analyze journal"]
CONVERSION = [
    pytest.param(state, f"{step}:{moment}", marks=[pytest.mark.long] if moment == "before" else [])
    for state, steps in (
        ("partitioned", [*PREPARED, *AHEAD]),
        ("plain", ["build journal_pkey_dbops", "cut back journal"]),
    )
    for step in steps
    for moment in ("before", "after")
]


def ahead(text: str, cut: str) -> str:
    """With the name of the one partition after the cut."""
    return text.replace(" p:", f" journal_p{cut[:10].replace('-', '')}:")


@pytest.mark.parametrize(("state", "failpoint"), CONVERSION)
def test_a_conversion_killed_at_a_step(server: Cluster, tmp_path: Path, state: str, failpoint: str) -> None:
    database = Database.create(server)
    database.sql(JOURNAL)
    conversion = Conversion(database, tmp_path)
    if state == "plain":
        conversion.done()
    insert, probe = "INSERT INTO journal (id) VALUES (%s)", "SELECT count(*) FROM recent WHERE note LIKE 'fixed%'"
    with TableLoad(database, insert=insert, probe=probe) as running:
        cut = conversion.done(check=True, state=state).get("cut", "")
        assert conversion.run(state=state, failpoint=ahead(failpoint, cut)) == {}, "the failpoint was not reached"
        conversion.done(state=state)
    running.check("journal")
    assert database.sql("SELECT conname FROM pg_constraint WHERE conname LIKE 'dbops%'") == []
    assert database.sql("SELECT relname FROM pg_class WHERE relname LIKE '%dbops%'") == []
    assert not conversion.done(state=state)["changed"]
    database.drop()


def test_the_list_of_a_conversions_steps_is_complete(server: Cluster, tmp_path: Path) -> None:
    database = Database.create(server)
    database.sql(JOURNAL)
    conversion = Conversion(database, tmp_path)
    result = conversion.done()
    names = [step["name"] for step in result["plan"]]
    assert [f"{name}:" for name in names] == [ahead(f"{step}:", result["cut"]) for step in [*PREPARED, *AHEAD]]
    back = [step["name"] for step in conversion.done(state="plain")["plan"]]
    assert back == ["build journal_pkey_dbops", "cut back journal"]
    database.drop()
