# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The locks that the plan names are those that the server takes, statement by statement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.locks import MODES

from tests.integration.tables.scene import JOURNAL, Conversion, Partitions
from tests.lab import users
from tests.lab.database import Database

LOCKS = """
SELECT relation::bigint, mode FROM pg_locks JOIN pg_class c ON c.oid = relation
 WHERE pid = pg_backend_pid() AND locktype = 'relation' AND relkind IN ('r', 'p')
   AND relnamespace = 'public'::regnamespace
"""
CURRENT = "INSERT INTO ev (at, note) SELECT now(), 'fixed' FROM generate_series(1, 100)"
LARGE = """INSERT INTO ev (at, note) SELECT '2000-01-01'::timestamptz + n * interval '1 minute', repeat('x', 200)
             FROM generate_series(1, 50000) n"""
DEFAULT = "CREATE TABLE ev_default PARTITION OF ev DEFAULT"
PAST = "CREATE TABLE ev_past PARTITION OF ev FOR VALUES FROM ('2020-01-01+00') TO ('2020-02-01+00')"
NOW = "CREATE TABLE ev_now PARTITION OF ev FOR VALUES FROM ('2026-01-01+00') TO ('2100-01-01+00')"
REFERENCED = "CREATE TABLE kind (id int PRIMARY KEY); ALTER TABLE ev ADD kind int REFERENCES kind"
SCENES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": ([], {}),
    "foreign key": ([REFERENCED], {}),
    "small default": ([DEFAULT], {}),
    "guarded": (
        ["CREATE TABLE ev_now PARTITION OF ev FOR VALUES FROM ('2020-01-01+00') TO ('2027-01-01+00')", DEFAULT, LARGE],
        {"start": "2028-01-01"},
    ),
    "promote": ([DEFAULT, CURRENT], {"default_rows": "promote"}),
    "promote with a foreign key": ([DEFAULT, CURRENT, REFERENCED], {"default_rows": "promote"}),
    "move with a foreign key": ([DEFAULT, CURRENT, REFERENCED], {"default_rows": "move"}),
    "shadow": ([DEFAULT, CURRENT, REFERENCED], {"default_rows": "shadow"}),
    "detach": ([PAST, NOW, DEFAULT, REFERENCED], {"retention": "1 month", "retention_action": "detach"}),
    "move": ([DEFAULT, CURRENT], {"default_rows": "move"}),
}


@pytest.mark.parametrize("server", ["13", "15", "17", "18"], indirect=True)
@pytest.mark.parametrize("name", SCENES)
def test_the_servers_locks_are_the_plans(partitions: Partitions, name: str) -> None:
    there, options = SCENES[name]
    for statement in there:
        partitions.database.sql(statement)
    plan = partitions.done(check=True, premake=1, **options)["plan"]
    connection = partitions.database.connect(users.OPERATOR)
    with connection.cursor() as cursor:
        cursor.execute("SET search_path = ''")
        for step in plan:
            if step["name"].split()[0] in ("copy", "compare"):
                continue  # what the cutover locks does not depend on it
            if "analyze" in step["name"] or "validate" in step["name"]:
                cursor.execute(step["statements"][0])
                continue
            cursor.execute("BEGIN")
            claimed: dict[int, str] = {}
            for statement in step["by_statement"]:
                # By number: within a transaction a name can pass from one table to another.
                for lock in statement["locks"]:
                    cursor.execute("SELECT to_regclass(%s)::oid::bigint", [lock["relation"]])
                    (relation,) = cursor.fetchone() or (None,)
                    if relation is not None:
                        claimed = strongest([*claimed.items(), (relation, lock["mode"])])
                cursor.execute(statement["sql"])
                cursor.execute(LOCKS)
                taken = strongest(cursor.fetchall())
                cursor.execute("SELECT oid::bigint FROM pg_class WHERE xmin = pg_current_xact_id()::xid")
                made = {row[0] for row in cursor.fetchall()} - set(claimed)
                cursor.execute("SELECT oid::bigint FROM pg_class")
                left = {row[0] for row in cursor.fetchall()}
                claimed = {relation: mode for relation, mode in claimed.items() if relation in left}
                assert claimed == {relation: mode for relation, mode in taken.items() if relation not in made}, (
                    statement["sql"]
                )
            cursor.execute("COMMIT")
    connection.close()
    assert not partitions.done(premake=1, **options)["changed"]


@pytest.mark.parametrize("server", ["13", "15", "17", "18"], indirect=True)
@pytest.mark.parametrize("state", ["partitioned", "plain"])
def test_the_servers_locks_are_those_of_a_conversion(database: Database, tmp_path: Path, state: str) -> None:
    database.sql(JOURNAL)
    conversion = Conversion(database, tmp_path)
    if state == "plain":
        conversion.done()
    plan = conversion.done(check=True, state=state)["plan"]
    connection = database.connect(users.OPERATOR)
    with connection.cursor() as cursor:
        cursor.execute("SET search_path = ''")
        for step in plan[:-1]:
            for statement in step["statements"]:
                cursor.execute(statement)
        there = "SELECT oid::bigint FROM pg_class WHERE relkind IN ('r', 'p', 'v')"
        cursor.execute(there)
        before = {row[0] for row in cursor.fetchall()}
        claimed: dict[int, str] = {}
        for lock in [lock for statement in plan[-1]["by_statement"] for lock in statement["locks"]]:
            cursor.execute("SELECT to_regclass(%s)::oid::bigint", [lock["relation"]])
            claimed = strongest([*claimed.items(), (cursor.fetchone()[0], lock["mode"])])
        cursor.execute("BEGIN")
        for statement in plan[-1]["statements"]:
            cursor.execute(statement)
        cursor.execute(LOCKS.replace("'r', 'p'", "'r', 'p', 'v'"))
        taken = strongest([row for row in cursor.fetchall() if row[0] in before])
        cursor.execute("COMMIT")
        cursor.execute(there)
        left = {row[0] for row in cursor.fetchall()}
    connection.close()
    assert {relation: mode for relation, mode in claimed.items() if relation in left} == taken


def strongest(locks: list[tuple[int, str]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for relation, mode in locks:
        if relation not in found or MODES.index(found[relation]) < MODES.index(mode):
            found[relation] = mode
    return found
