# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detached tables are archived, read back, kept for a while and dropped, and never when anything is not as it was."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.integration.tables.scene import CATALOG, Partitions
from tests.lab.database import Database

ROWS = """
CREATE TABLE ev_past PARTITION OF ev FOR VALUES FROM ('2020-01-01+00') TO ('2020-02-01+00');
CREATE TABLE ev_older PARTITION OF ev FOR VALUES FROM ('2019-12-01+00') TO ('2020-01-01+00');
INSERT INTO ev (at, note) VALUES ('2020-01-02+00', NULL), ('2020-01-03+00', ''), ('2020-01-04+00', E'a,"b"\\nc\\\\.'),
  ('2019-12-02+00', '\\.');
"""
AGE = """
SELECT format('COMMENT ON TABLE %s IS %L', oid::regclass, regexp_replace(obj_description(oid), '"detached_at": [0-9]+',
              '"detached_at": ' || extract(epoch FROM now() - interval '8 days')::bigint))
  FROM pg_class WHERE obj_description(oid) LIKE 'dbops: %'
"""


@pytest.fixture
def archive() -> Iterator[Path]:
    """On another file system than the servers."""
    place = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="dbops-archive-"))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def old(partitions: Partitions, archive: Path) -> Partitions:
    partitions.database.sql(ROWS)
    partitions.done()
    partitions.options |= {"retention": "year", "retention_action": "drop", "archive_dir": str(archive)}
    return partitions


def grow_old(database: Database) -> None:
    for (statement,) in database.sql(AGE):
        database.sql(statement)


def tables(database: Database) -> set[str]:
    return {row[0] for row in database.sql("SELECT relname FROM pg_class WHERE relname IN ('ev_past', 'ev_older')")}


def test_archived_kept_and_dropped_one_by_one(old: Partitions, archive: Path) -> None:
    database = old.database
    held = database.sql("SELECT id, at::text, note FROM ev_past ORDER BY id")
    before = database.sql(CATALOG)
    assert old.done(check=True)["detached"] == ["public.ev_older", "public.ev_past"]
    assert (database.sql(CATALOG), list(archive.iterdir())) == (before, [])

    assert old.done()["detached"] == ["public.ev_older", "public.ev_past"]
    assert not old.done()["changed"], "not before the grace has passed"
    files = sorted((archive / database.name).iterdir())
    assert [file.suffix for file in files] == [".gz", ".json"] * 2
    manifest = json.loads(files[3].read_text())
    assert (manifest["table"], manifest["rows"]) == ("public.ev_past", 3)
    with gzip.open(files[2], "rt") as rows:
        assert rows.read().splitlines()[0].startswith("1,")

    grow_old(database)
    assert old.done(retention_action="archive")["changed"] is False
    assert old.done()["dropped"] == ["public.ev_older"]
    assert tables(database) == {"ev_past"}
    assert old.done()["dropped"] == ["public.ev_past"]
    assert tables(database) == set()
    assert not old.done()["changed"]
    # And it can be had back.
    database.sql("CREATE TABLE back (LIKE ev)")
    connection = database.connect()
    with gzip.open(files[2], "rb") as packed, connection.cursor() as cursor:
        cursor.copy_expert("COPY back FROM STDIN (FORMAT csv)", packed)
    connection.close()
    assert database.sql("SELECT id, at::text, note FROM back ORDER BY id") == held


def test_a_table_that_was_changed_is_not_dropped(old: Partitions) -> None:
    database = old.database
    old.done()
    grow_old(database)
    database.sql("ALTER TABLE ev_older DISABLE TRIGGER dbops_read_only; UPDATE ev_older SET note = 'changed'")
    database.sql("ALTER TABLE ev_older ENABLE ALWAYS TRIGGER dbops_read_only")
    result = old.run()
    assert "find out who changed it" in result["msg"]
    assert tables(database) == {"ev_past", "ev_older"}


@pytest.mark.parametrize("how", ["gone", "other"])
def test_without_its_archive_a_table_is_not_dropped(old: Partitions, archive: Path, how: str) -> None:
    database = old.database
    old.done()
    grow_old(database)
    (file,) = archive.glob("*/*older*.gz")
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert {"gone": "is not there", "other": "is another"}[how] in old.run()["msg"]
    assert tables(database) == {"ev_past", "ev_older"}


def test_what_depends_on_it_keeps_it(old: Partitions) -> None:
    database = old.database
    old.done()
    grow_old(database)
    database.sql("CREATE VIEW older AS SELECT * FROM ev_older")
    assert "cannot drop table public.ev_older" in old.run()["msg"]
    assert tables(database) == {"ev_past", "ev_older"}


def test_where_it_must_not_be(old: Partitions, tmp_path: Path) -> None:
    old.refused("archive", archive_dir=str(tmp_path / "nothing"))
    home = old.database.cluster.primary().data_dir.parent
    old.database.sql("GRANT pg_read_all_settings TO dbops", user="postgres")
    try:
        assert "file system of the database" in old.refused("archive", archive_dir=str(home))["found"]
    finally:
        old.database.sql("REVOKE pg_read_all_settings FROM dbops", user="postgres")
    assert "archive_dir" in old.run(archive_dir=None)["msg"]


def test_a_full_disk_changes_nothing_for_good(old: Partitions, archive: Path) -> None:
    """The directory of the archive is a file: nothing can be written. The next run goes on."""
    (archive / old.database.name).write_text("")
    assert "cannot write" in old.run()["msg"]
    (archive / old.database.name).unlink()
    assert old.done()["changed"]
    assert not old.done()["changed"]


@pytest.mark.parametrize(
    "failpoint", ["archive ev_older:before", "archive ev_older:after", "drop ev_older:before", "drop ev_older:after"]
)
@pytest.mark.parametrize("server", ["18"], indirect=True)
def test_killed_the_next_run_goes_on(old: Partitions, failpoint: str) -> None:
    database = old.database
    if failpoint.startswith("drop"):
        old.done()
        grow_old(database)
    assert old.run(failpoint=failpoint) == {}
    for _run in range(3):
        old.done()
        grow_old(database)
    assert tables(database) == set()


def test_types_whose_text_depends_on_the_session(database: Database, tmp_path: Path, archive: Path) -> None:
    database.sql(
        "CREATE TABLE ev (at timestamptz PRIMARY KEY, f float8, b bytea, m interval, j jsonb, a int[], g int"
        " GENERATED ALWAYS AS (1) STORED) PARTITION BY RANGE (at)"
    )
    database.sql("CREATE TABLE ev_old PARTITION OF ev FOR VALUES FROM ('2020-01-01+00') TO ('2020-02-01+00')")
    database.sql(
        "INSERT INTO ev SELECT timestamptz '2020-01-01+00' + n * interval '1 minute', random() / 3, '\\x00ff',"
        " '1 mon -1 day', '{\"a\": null}', '{1,NULL}' FROM generate_series(1, 500) n"
    )
    for setting in (
        "extra_float_digits = -5",
        "bytea_output = 'escape'",
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = 'iso_8601'",
    ):
        database.sql(f"ALTER DATABASE {database.name} SET {setting}", user="postgres")
    partitions = Partitions(database, tmp_path)
    partitions.options |= {"retention": "year", "retention_action": "drop", "archive_dir": str(archive)}
    partitions.done()
    grow_old(database)
    assert partitions.done()["dropped"] == ["public.ev_old"]
    with pytest.raises(psycopg2.Error, match="does not exist"):
        database.sql("SELECT 1 FROM ev_old")


def test_one_is_absent_after_two_runs(old: Partitions, archive: Path) -> None:
    """Detached and archived; when the grace has passed, dropped. The other one is left alone."""
    database = old.database
    words: dict[str, Any] = {"state": "absent", "partition": "ev_past", "retention": None, "retention_action": "keep"}
    old.refused("partition", **{**words, "partition": "ev"})
    old.refused("archive", **words, archive_dir=str(archive / "nothing"))
    assert "archive_dir" in old.run(**words, archive_dir=None)["msg"]
    before = database.sql(CATALOG)
    assert old.done(**words, check=True)["detached"] == ["public.ev_past"]
    assert (database.sql(CATALOG), list(archive.iterdir())) == (before, [])

    assert old.done(**words)["detached"] == ["public.ev_past"]
    assert not old.done(**words)["changed"], "not before the grace has passed"
    assert len(list(archive.glob("*/*.gz"))) == 1
    grow_old(database)
    assert old.done(**words)["dropped"] == ["public.ev_past"]
    assert tables(database) == {"ev_older"}
    assert not old.done(**words)["changed"]


def test_one_that_was_detached_already_is_archived_and_dropped(old: Partitions) -> None:
    database = old.database
    words: dict[str, Any] = {"partition": "public.ev_past", "retention": None, "retention_action": "keep"}
    old.done(state="detached", **words)
    grow_old(database)
    assert not old.done(state="detached", **words)["changed"]
    old.done(state="absent", **words)
    assert tables(database) == {"ev_past", "ev_older"}, "what a run archives, a later one drops"
    assert old.done(state="absent", **words)["dropped"] == ["public.ev_past"]
