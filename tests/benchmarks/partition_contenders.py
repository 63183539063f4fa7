# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is compared in bench_partition: ours, pg_partman, pg-partsmith and plain SQL, each through what it documents.

All begin with the same table: partitions of this month and the next, and a default one.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from tests.integration.tables.scene import PARENT
from tests.lab import binaries, partman, users
from tests.lab.cluster import Cluster
from tests.lab.database import Database
from tests.lab.operation import run_module

MONTH = "date_trunc('month', now(), 'UTC')"
AHEAD = 25  # of which one is there


@dataclass
class Scene:
    """The table ``ev`` in a database of its own. ``first``: a date in the first window of which rows are in the default
    partition, where those are to be dealt with."""

    database: Database
    directory: Path
    first: str = ""

    def attempt(self, *statements: str) -> Outcome:
        """As the application, in autocommit mode, on one connection."""
        connection = self.database.connect()
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
        except psycopg2.Error as error:
            return Outcome(str(error).splitlines()[0], success=False)
        finally:
            connection.close()
        return Outcome("done", success=True)


@dataclass(frozen=True)
class Outcome:
    """What it says of itself. ``steps_s``: seconds of its steps alone, where it tells them."""

    text: str
    success: bool
    steps_s: float | None = None


class Contender:
    """The plain statements. ``creates`` and ``repairs`` say what is run, for who reads the result."""

    name = "PARTITION OF"
    creates = "24 times CREATE TABLE … PARTITION OF ev FOR VALUES FROM … TO …"
    repairs = ""
    makes = AHEAD - 1

    def lay_out(self, scene: Scene) -> None:
        database = scene.database
        database.sql(f"{PARENT}; CREATE INDEX ev_at ON ev (at); CREATE TABLE ev_default PARTITION OF ev DEFAULT")
        for name, begin in (("this", 0), ("next", 1)):
            database.sql(_partition_of(f"ev_{name}", begin))

    def create(self, scene: Scene) -> Outcome:
        return scene.attempt(*(_partition_of(f"ev_{begin}", begin) for begin in range(2, AHEAD + 1)))

    def repair(self, scene: Scene) -> Outcome:
        raise NotImplementedError


class Nothing(Contender):
    """What the load is like when nobody changes anything."""

    name, creates, makes = "nothing", "SELECT pg_sleep(3)", 0

    def create(self, scene: Scene) -> Outcome:
        return scene.attempt(self.creates)


class Ours(Contender):
    """With its defaults and what is given, which its name has."""

    def __init__(self, **options: Any) -> None:
        words = " ".join(f"{key}={value}" for key, value in options.items())
        self.name = f"ours, {words}" if words else "ours"
        self.creates = f"pg_partition with interval=month premake={AHEAD} {words}"
        self.repairs = f"pg_partition with interval=month premake=0 start=… {words}"
        self._options = options

    def create(self, scene: Scene) -> Outcome:
        return self._run(scene, premake=AHEAD, **self._options)

    def repair(self, scene: Scene) -> Outcome:
        return self._run(scene, premake=0, start=scene.first, **self._options)

    @staticmethod
    def _run(scene: Scene, **options: Any) -> Outcome:
        result = run_module("pg_partition", {**ours(scene), **options})
        if result.get("failed"):
            return Outcome(result["msg"], success=False)
        steps = result.get("timeline") or [{"start_ms": 0, "duration_ms": 0}]
        end = max(step["start_ms"] + step["duration_ms"] for step in steps)
        return Outcome("done", True, (end - min(step["start_ms"] for step in steps)) / 1000)


def ours(scene: Scene) -> dict[str, Any]:
    """The options that every run of pg_partition has."""
    where = {**scene.database.login, "state_dir": str(scene.directory / "state")}
    return {**where, "table": "ev", "key": "at", "interval": "month"}


class Partman(Contender):
    """The table is made known to it, and premake raised, before the load begins, because create_parent takes ACCESS
    EXCLUSIVE of the parent. Maintenance is called under load."""

    name = "pg_partman"
    creates = "CALL partman.run_maintenance_proc()"
    repairs = "CALL partman.partition_data_proc('public.ev', p_wait := 0)"

    def version(self, cluster: Cluster) -> str:
        statement = "SELECT default_version FROM pg_available_extensions WHERE name = 'pg_partman'"
        return str(cluster.primary().sql(statement)[0][0])

    def lay_out(self, scene: Scene) -> None:
        database = scene.database
        partman.install(database)
        database.sql(f"{PARENT}; CREATE INDEX ev_at ON ev (at)")
        database.sql(
            "SELECT partman.create_parent('public.ev', 'at', 'native', 'monthly', p_premake := 1,"
            f" p_start_partition := ({MONTH})::text)"
        )
        database.sql("UPDATE partman.part_config SET premake = %s WHERE parent_table = 'public.ev'", [AHEAD])

    def create(self, scene: Scene) -> Outcome:
        return scene.attempt(self.creates)

    def repair(self, scene: Scene) -> Outcome:
        return scene.attempt(self.repairs)


class Partsmith(Contender):
    name = "pg-partsmith"
    creates, repairs = "pg-partsmith apply -c ev.json", "pg-partsmith backfill -c ev.json"

    def __init__(self) -> None:
        self._words = binaries.partsmith()

    def version(self, _cluster: Cluster) -> str:
        return subprocess.check_output([*self._words, "--version"], text=True).split()[-1]

    def create(self, scene: Scene) -> Outcome:
        return self._run(scene, "apply")

    def repair(self, scene: Scene) -> Outcome:
        return self._run(scene, "backfill")

    def _run(self, scene: Scene, verb: str) -> Outcome:
        node = scene.database.cluster.primary()
        table = {
            "schema": "public",
            "table_name": "ev",
            "partition_column": "at",
            "granularity": "month",
            "create_ahead_count": AHEAD + 1,  # this month counts
        }
        document = scene.directory / "ev.json"
        document.write_text(json.dumps({"version": 1, "tables": [table]}))
        address = f"postgresql://{users.APPLICATION}@{node.host}:{node.port}/{scene.database.name}"
        done = subprocess.run(
            [*self._words, verb, "-c", str(document)],
            env={**os.environ, "PG_PARTSMITH_DSN": address, "PGPASSFILE": str(scene.database.cluster.lab_passfile)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        said = " ".join(f"{done.stdout} {done.stderr}".split())
        return Outcome(f"exit {done.returncode}: {said[-600:]}", success=done.returncode == 0)


def month(offset: int) -> str:
    """The beginning of the month so many months from now, as SQL."""
    return f"({MONTH} + interval '{offset} months')"


def _partition_of(name: str, begin: int) -> str:
    return f"CREATE TABLE {name} PARTITION OF ev FOR VALUES FROM ({month(begin)}) TO ({month(begin + 1)})"
