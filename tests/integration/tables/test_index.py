# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_index on real servers: what PostgreSQL itself does first, then what we do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.locks import MODES
from ansible_collections.stateful.dbops.plugins.module_utils._runners.index import IndexRun
from ansible_collections.stateful.dbops.plugins.modules.pg_index import argument_spec

from tests.lab import users
from tests.lab.database import Database
from tests.lab.operation import run_module
from tests.lab.table_load import TableLoad
from tests.lab.waiting import wait_for

on_18 = pytest.mark.parametrize("server", ["18"], indirect=True, scope="session")
on_13_and_18 = pytest.mark.parametrize("server", ["13", "18"], indirect=True, scope="session")

# Three leaves on two levels: p0, p1, and s0 below s.
TREE = """
CREATE TABLE p (id int, k int NOT NULL, name text) PARTITION BY RANGE (k);
CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (10);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (10) TO (20);
CREATE TABLE s PARTITION OF p FOR VALUES FROM (20) TO (30) PARTITION BY LIST (k);
CREATE TABLE s0 PARTITION OF s DEFAULT;
INSERT INTO p SELECT g, g % 30, 'n' || g FROM generate_series(1, 3000) AS g
"""
PLAIN = """
CREATE TABLE t (id int, k int NOT NULL, name text);
INSERT INTO t SELECT g, g, 'n' || g FROM generate_series(1, 999) AS g
"""

STATE = """
SELECT its.relname, own.relname, own.oid::bigint, indisvalid, coalesce(above.relname, '')
  FROM pg_index JOIN pg_class AS own ON own.oid = indexrelid JOIN pg_class AS its ON its.oid = indrelid
       LEFT JOIN pg_inherits ON inhrelid = indexrelid LEFT JOIN pg_class AS above ON above.oid = inhparent
 WHERE its.relnamespace = 'public'::regnamespace ORDER BY 1, 2
"""


def state(database: Database) -> dict[str, tuple[str, bool, str]]:
    """Index by index: its table, whether it is valid, and what it is attached to."""
    return {row[1]: (row[0], row[3], row[4]) for row in database.sql(STATE)}


def oids(database: Database) -> dict[str, int]:
    return {row[1]: row[2] for row in database.sql(STATE)}


class Desk:
    """Runs the module's work in this process, on one database."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self.directory = directory

    def options(self, **options: Any) -> dict[str, Any]:
        spec = {name: option.get("default") for name, option in argument_spec().items()}
        words = {**spec, **self.database.login, "state_dir": str(self.directory), "name": "ix", **options}
        return {"table": "p", "columns": ["k"], **{key: value for key, value in words.items() if value is not None}}

    def run(self, *, check: bool = False, **options: Any) -> dict[str, Any]:
        words = {**dict.fromkeys(argument_spec()), **self.options(**options)}
        return IndexRun(words, clock=Clock()).run(check_mode=check)

    def refused(self, text: str, *, check: bool = True, **options: Any) -> DbopsError:
        with pytest.raises(DbopsError, match=text) as caught:
            self.run(check=check, **options)
        return caught.value


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> Desk:
    return Desk(database, tmp_path)


@pytest.fixture
def tree(desk: Desk) -> Desk:
    desk.database.sql(TREE)
    return desk


@pytest.fixture
def plain(desk: Desk) -> Desk:
    desk.database.sql(PLAIN)
    return desk


def sqlstate(database: Database, *statements: str) -> str:
    """What the last of the statements fails with, all on one connection."""
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        for statement in statements[:-1]:
            cursor.execute(statement)
        with pytest.raises(psycopg2.Error) as caught:
            cursor.execute(statements[-1])
    return str(caught.value.pgcode)


@contextmanager
def transaction(database: Database, *statements: str, isolation: str = "READ COMMITTED") -> Iterator[int]:
    """Somebody who is idle in a transaction; his pid."""
    with closing(database.connect(application_name="forgotten")) as connection, connection.cursor() as cursor:
        cursor.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        for statement in statements:
            cursor.execute(statement)
        yield connection.get_backend_pid()


@contextmanager
def at_work(call: Callable[[], Any], database: Database, *statements: str) -> Iterator[list[Any]]:
    """``call`` in a thread, while somebody is idle in a transaction after ``statements``. When the block is over he
    ends, ``call`` comes to its end, and the list has its result."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(call())
        except psycopg2.Error as error:
            results.append(error)

    with ExitStack() as stack:
        thread = threading.Thread(target=work)
        stack.callback(thread.join, 60)
        stack.enter_context(transaction(database, *statements))
        thread.start()
        yield results
    assert results


def held_open(database: Database, statement: str) -> int:
    """``statement``, concurrent, is under way and waits for the transaction around; its session's pid."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE starts_with(query, %s) AND wait_event = 'virtualxid'"
    wait_for(lambda: database.sql(waiting, (statement,), user=users.SUPERUSER), seconds=20, what=statement)
    return int(database.value(waiting, (statement,), user=users.SUPERUSER))


# ---------------------------------------------------------------------------------------- what PostgreSQL itself does


def test_what_the_server_refuses(tree: Desk) -> None:
    """Everybody's first tries on a partitioned table; then ours, which is done again and undone."""
    database = tree.database
    build = "CREATE INDEX CONCURRENTLY ix ON p0 (k)"
    assert sqlstate(database, "BEGIN", build) == "25001"
    assert sqlstate(database, "CREATE INDEX CONCURRENTLY ix ON p (k)") == "0A000"
    database.sql("CREATE INDEX other ON p (id)")
    assert sqlstate(database, "DROP INDEX CONCURRENTLY other") == "0A000"
    database.sql("DROP INDEX other")

    checked = tree.run(check=True)
    assert state(database) == {}
    assert list(tree.directory.iterdir()) == []
    result = tree.run()
    assert result["statements"] == checked["statements"]
    assert result["diff"] == checked["diff"]
    assert [step["step"] for step in result["timeline"]] == [step["name"] for step in checked["plan"]]
    done = state(database)
    assert done == {
        "ix": ("p", True, ""),
        "p0_ix": ("p0", True, "ix"),
        "p1_ix": ("p1", True, "ix"),
        "s_ix": ("s", True, "ix"),
        "s0_ix": ("s0", True, "s_ix"),
    }
    assert [(row["index"], row["action"]) for row in result["indexes"] if row["action"] == "build"] == [
        ("public.p0_ix", "build"),
        ("public.p1_ix", "build"),
        ("public.s0_ix", "build"),
    ]
    again = tree.run()
    assert (again["changed"], again["statements"], again["warnings"]) == (False, [], [])
    database.sql("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (30) TO (40)")
    assert tree.run()["changed"] is False

    checked = tree.run(check=True, state="absent")
    gone = tree.run(state="absent")
    assert (gone["statements"], gone["diff"]) == (checked["statements"], checked["diff"])
    assert state(database) == {}
    assert tree.run(state="absent")["changed"] is False


def test_an_invalid_index_that_if_not_exists_is_content_with(plain: Desk) -> None:
    """A short lock_timeout on a concurrent build leaves an index that nobody reads and every write fills."""
    database = plain.database
    build = "CREATE INDEX CONCURRENTLY {} ix ON t (k)"
    with transaction(database, "INSERT INTO t VALUES (0, 0, '')"):
        assert sqlstate(database, "SET lock_timeout = '50ms'", build.format("")) == "55P03"
    assert state(database) == {"ix": ("t", False, "")}
    database.sql(build.format("IF NOT EXISTS"))
    assert state(database) == {"ix": ("t", False, "")}

    assert plain.run(table="t")["statements"] == [
        'DROP INDEX CONCURRENTLY IF EXISTS "public"."ix"',
        'CREATE INDEX CONCURRENTLY "ix" ON "public"."t" USING "btree" ("k")',
    ]
    assert state(database) == {"ix": ("t", True, "")}


def test_an_invalid_part_that_somebody_attached(tree: Desk, server: Any) -> None:
    """PostgreSQL attaches it, and then can neither drop it nor make the whole valid by building it again."""
    database = tree.database
    database.sql("CREATE INDEX ix ON ONLY p (k)")
    with transaction(database, "INSERT INTO p0 VALUES (0, 0, '')"):
        sqlstate(database, "SET lock_timeout = '50ms'", "CREATE INDEX CONCURRENTLY p0_ix ON p0 (k)")
    for statement in (
        "ALTER INDEX ix ATTACH PARTITION p0_ix",
        "CREATE INDEX CONCURRENTLY p1_ix ON p1 (k)",
        "ALTER INDEX ix ATTACH PARTITION p1_ix",
        "CREATE INDEX s_ix ON s (k)",
        "ALTER INDEX ix ATTACH PARTITION s_ix",
    ):
        database.sql(statement)
    assert sqlstate(database, "DROP INDEX CONCURRENTLY p0_ix") == "2BP01"
    with transaction(database, "INSERT INTO p0 VALUES (0, 0, '')"):  # somebody tries, and leaves one more
        assert sqlstate(database, "SET lock_timeout = '50ms'", "REINDEX INDEX CONCURRENTLY p0_ix") == "55P03"
    assert state(database)["p0_ix_ccnew"] == ("p0", False, "")
    if server.major == 13:
        tree.refused("public.ix is invalid, no part of it is missing, and PostgreSQL 13 never looks again")
        tree.run(state="absent")
        assert state(database) == {}
        tree.run()
    else:
        assert tree.run()["statements"] == [
            'DROP INDEX CONCURRENTLY IF EXISTS "public"."p0_ix_ccnew"',
            'REINDEX INDEX CONCURRENTLY "public"."p0_ix"',
            'ALTER INDEX "public"."ix" ATTACH PARTITION "public"."p0_ix"',
        ]
    assert all(valid for _table, valid, _above in state(database).values())
    assert tree.run()["changed"] is False


def test_a_whole_that_stays_invalid_with_all_its_parts(tree: Desk, server: Any) -> None:
    """The partition that lacked its part was dropped, and the server does not look again by itself."""
    database = tree.database
    database.sql("CREATE INDEX ix ON ONLY p (k)")
    for leaf in ("p0", "s"):
        database.sql(f"CREATE INDEX {leaf}_ix ON {leaf} (k)")
        database.sql(f"ALTER INDEX ix ATTACH PARTITION {leaf}_ix")
    database.sql("DROP TABLE p1")
    assert state(database)["ix"] == ("p", False, "")
    if server.major == 13:
        tree.refused("PostgreSQL 13 never looks again")
        return
    assert tree.run()["statements"] == ['ALTER INDEX "public"."ix" ATTACH PARTITION "public"."p0_ix"']
    assert state(database)["ix"] == ("p", True, "")


# -------------------------------------------------------------------------------------------------- what there is stays


def test_only_what_is_missing_is_built(tree: Desk) -> None:
    """What a run left that was killed: one part attached, one built and not attached, one half built."""
    database = tree.database
    database.sql("CREATE INDEX ix ON ONLY p (k)")
    database.sql("CREATE INDEX p0_ix ON p0 (k)")
    database.sql("ALTER INDEX ix ATTACH PARTITION p0_ix")
    database.sql("CREATE INDEX p1_ix ON p1 (k)")
    with transaction(database, "INSERT INTO s0 VALUES (0, 20, '')"):
        sqlstate(database, "SET lock_timeout = '50ms'", "CREATE INDEX CONCURRENTLY s0_ix ON s0 (k)")
    before = oids(database)
    result = tree.run()
    assert [row["index"] for row in result["indexes"] if row["action"] == "build"] == ["public.s0_ix"]
    after = oids(database)
    assert {name for name in before if before[name] != after[name]} == {"s0_ix"}
    assert all(valid for _table, valid, _above in state(database).values())


@on_13_and_18
def test_a_part_is_known_by_its_definition(tree: Desk) -> None:
    """Adopted under whatever name; not when it backs a constraint, and not when it is only called so."""
    database = tree.database
    for statement in (
        "TRUNCATE p",
        "CREATE UNIQUE INDEX somebodys ON p0 (k)",
        "ALTER TABLE p1 ADD CONSTRAINT c UNIQUE (k)",
        "CREATE UNIQUE INDEX s0_ix ON s0 (id)",
    ):
        database.sql(statement)
    before = oids(database)
    result = tree.run(unique=True)
    found = state(database)
    assert found["somebodys"] == ("p0", True, "ix")
    assert found["c"] == ("p1", True, "")
    assert found["s0_ix"] == ("s0", True, "")
    [new] = [name for name, (table, _valid, above) in found.items() if above == "s_ix"]
    assert new.startswith("s0_ix_")
    assert oids(database)["somebodys"] == before["somebodys"]
    assert result["changed"] is True
    assert tree.run(unique=True)["changed"] is False
    tree.run(state="absent")
    assert set(state(database)) == {"c", "s0_ix"}


@on_18
def test_a_partition_that_comes_meanwhile(tree: Desk) -> None:
    """Attached after the tree was read and before the index of the whole is there."""
    database = tree.database
    database.sql("CREATE TABLE p3 (LIKE p)")
    run = partial(run_module, "pg_index", tree.options())
    with at_work(run, database, "INSERT INTO p VALUES (0, 0, '')") as results:
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'ShareLock'"
        wait_for(lambda: database.sql(waiting), seconds=20, what="the run to wait for its lock")
        database.sql("ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (30) TO (40)")
    assert results[0]["changed"] is True, results[0]
    assert state(database)["p3_ix"] == ("p3", True, "ix")
    assert state(database)["ix"] == ("p", True, "")


# --------------------------------------------------------------------------------------------------- definitions, input


DEFINITIONS: list[dict[str, Any]] = [
    {"columns": ["k", "id"]},
    {"columns": [{"name": "k", "order": "desc", "nulls": "last"}]},
    {"columns": [{"expression": "lower(name)", "opclass": "text_pattern_ops"}], "include": ["id"]},
    {"columns": [{"name": "name", "collation": '"C"'}], "where": "k > 3 AND name IS NOT NULL"},
    {"columns": ["k"], "unique": True, "storage": {"fillfactor": 70, "deduplicate_items": False}},
    {"columns": ["k"], "method": "brin", "storage": {"pages_per_range": 4}},
    {"columns": [{"expression": "(id + k) % 7"}], "tablespace": "pg_default"},
]


def test_every_definition_is_recognised_and_told_from_the_others(plain: Desk) -> None:
    """Also of a table whose name and schema have to be quoted."""
    plain.database.sql('CREATE SCHEMA "O\'d"')
    plain.database.sql('ALTER TABLE t SET SCHEMA "O\'d"')
    plain.database.sql('ALTER TABLE "O\'d".t RENAME TO "Ta ble"')
    for number, definition in enumerate(DEFINITIONS):
        words = {"table": "Ta ble", "schema": "O'd", "name": f"i {number}", **definition}
        assert plain.run(**words)["changed"] is True
        assert plain.run(check=True, **words)["changed"] is False
        other = {**words, "where": None, "include": [], "storage": {}, "unique": False, "method": "btree"}
        plain.refused("exists as .*; expected: ", **{**other, **DEFINITIONS[number - 1]})


@on_18
def test_the_module_from_outside(plain: Desk) -> None:
    """Missing parameter, check, do, again, otherwise, undo, undo again."""
    words = plain.options(table="t")
    del words["columns"]
    assert "columns" in run_module("pg_index", words)["msg"]
    words["columns"] = ["k"]
    assert run_module("pg_index", words, check=True)["changed"] is True
    assert state(plain.database) == {}
    assert run_module("pg_index", words)["changed"] is True
    assert run_module("pg_index", words)["changed"] is False
    other = run_module("pg_index", {**words, "columns": ["id"]})
    assert other["found"] == "public.ix exists as btree (k)"
    assert other["expected"] == "btree (id)"
    assert run_module("pg_index", {**words, "state": "absent"})["changed"] is True
    again = run_module("pg_index", {**words, "state": "absent"})
    assert (again["changed"], again.get("warnings", [])) == (False, [])


@pytest.mark.parametrize("server", ["14"], indirect=True, scope="session")
def test_a_14_without_the_defect(tree: Desk) -> None:
    """Builds are refused on its first minors alone."""
    assert tree.run()["changed"] is True
    assert all(valid for _table, valid, _above in state(tree.database).values())


@on_18
def test_bad_input(tree: Desk) -> None:
    database = tree.database
    for words, text in (
        ({"name": "é" * 32}, "has 64 bytes"),
        ({"table": "nowhere"}, "there is no table nowhere in schema public"),
        ({"name": "p0"}, "public.p0 exists and is no index of public.p"),
        ({"columns": ["nothing"]}, 'column "nothing" does not exist'),
        ({"columns": [{"name": "k", "ordre": "asc"}]}, "an element of columns is"),
        ({"columns": [{"name": "k", "order": "up"}]}, "order of an element of columns is up"),
        ({"columns": [{"expression": "random()"}]}, "IMMUTABLE"),
        ({"storage": {"fillfactor": 5}}, "fillfactor"),
        ({"method": "hash", "unique": True}, "does not support unique"),
        ({"unique": True, "columns": ["id"]}, "public.p is partitioned by k; expected: every partition key"),
    ):
        tree.refused(text, **words)
    database.sql("CREATE VIEW v AS SELECT 1 AS k")
    tree.refused("public.v is no table", table="v")
    database.sql("CREATE TABLE superusers (k int)", user=users.SUPERUSER)
    tree.refused("the login does not own public.superusers", table="superusers")
    database.sql("CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw", user=users.SUPERUSER)
    foreign = "CREATE FOREIGN TABLE f PARTITION OF p FOR VALUES FROM (50) TO (60) SERVER files OPTIONS (filename '/x')"
    database.sql(foreign, user=users.SUPERUSER)
    tree.refused("public.f is a foreign table")
    assert state(database) == {}


@on_13_and_18
def test_rows_that_are_not_unique(tree: Desk) -> None:
    database = tree.database
    error = tree.refused(r"Key \(k\)=\(\d+\) is duplicated", unique=True, check=False)
    assert "make the rows that it names unique" in error.remedy
    assert "p0_ix" not in state(database), "the invalid index is gone"
    database.sql("DELETE FROM p WHERE id > 29")
    tree.run(unique=True)
    assert sqlstate(database, "INSERT INTO p VALUES (1, 1, '')") == "23505"


# -------------------------------------------------------------------------------------------------------------- absent


def test_what_is_needed_is_not_dropped(tree: Desk) -> None:
    database = tree.database
    for statement in (
        "CREATE TABLE t (id int PRIMARY KEY, k int NOT NULL, other int UNIQUE)",
        "CREATE UNIQUE INDEX identity ON t (k)",
        "ALTER TABLE t REPLICA IDENTITY USING INDEX identity",
        "CREATE UNIQUE INDEX referenced ON t (k, id)",
        "CREATE TABLE r (k int, id int, CONSTRAINT f FOREIGN KEY (k, id) REFERENCES t (k, id))",
        "CREATE INDEX whole ON p (k)",
    ):
        database.sql(statement)
    tree.refused("public.t_pkey belongs to the constraint t_pkey", table="t", name="t_pkey", state="absent")
    tree.refused("public.identity is the replica identity", table="t", name="identity", state="absent")
    tree.refused(
        "public.referenced belongs to the constraint f of public.r", table="t", name="referenced", state="absent"
    )
    tree.refused("public.p0_k_idx is attached to", table="p0", name="p0_k_idx", state="absent")
    tree.refused("public.whole is no index of public.t", table="t", name="whole", state="absent")


def test_what_was_built_and_not_attached_goes_too(tree: Desk) -> None:
    database = tree.database
    for statement in (
        "CREATE INDEX ix ON ONLY p (k)",
        "CREATE INDEX p0_ix ON p0 (k)",
        "ALTER INDEX ix ATTACH PARTITION p0_ix",
        "CREATE INDEX p1_ix ON p1 (k)",
        "CREATE INDEX s0_ix ON s0 (id)",
    ):
        database.sql(statement)
    assert tree.run(state="absent")["statements"] == [
        'DROP INDEX CONCURRENTLY IF EXISTS "public"."p1_ix"',
        'DROP INDEX "public"."ix"',
    ]
    assert state(database) == {"s0_ix": ("s0", True, "")}


# ----------------------------------------------------------------------------------------------- others who are at work


@on_18
@pytest.mark.parametrize(
    ("user", "who"),
    [(users.APPLICATION, r"pid \d+ \(lab\)"), (users.SUPERUSER, "of which pg_read_all_stats would say more")],
)
def test_a_build_of_somebody_else(plain: Desk, user: str, who: str) -> None:
    """Its index is invalid, and none of our business; also where a login may not know what it is that is built."""
    database, build = plain.database, "CREATE INDEX CONCURRENTLY ix ON t (k)"
    database.sql(f"REVOKE pg_monitor FROM {users.OPERATOR}", user=users.SUPERUSER)
    try:
        with at_work(partial(database.sql, build, user=user), database, "INSERT INTO t VALUES (0, 0, '')"):
            held_open(database, build)
            assert state(database) == {"ix": ("t", False, "")}
            plain.refused(f"public.ix is being built by .*{who}", table="t")
            plain.refused(f"public.ix is being built by .*{who}", table="t", state="absent")
    finally:
        database.sql(f"GRANT pg_monitor TO {users.OPERATOR}", user=users.SUPERUSER)
    assert state(database) == {"ix": ("t", True, "")}


@on_18
def test_a_role_whose_sessions_must_not_idle(plain: Desk) -> None:
    """The session with the lease is idle while another one builds."""
    database = plain.database
    for setting in ("idle_session_timeout", "transaction_timeout", "statement_timeout", "lock_timeout"):
        database.sql(f"ALTER ROLE {users.OPERATOR} SET {setting} = '500ms'", user=users.SUPERUSER)
    try:
        run = partial(run_module, "pg_index", plain.options(table="t"))
        with at_work(run, database, "INSERT INTO t VALUES (0, 0, '')") as results:
            held_open(database, "CREATE INDEX CONCURRENTLY")
            time.sleep(1)
    finally:
        database.sql(f"ALTER ROLE {users.OPERATOR} RESET ALL", user=users.SUPERUSER)
    assert results[0].get("changed") is True, results
    assert state(database) == {"ix": ("t", True, "")}


@on_13_and_18
def test_a_transaction_that_does_not_end(plain: Desk) -> None:
    """An old snapshot anywhere in the database holds a build up. It is named, the build ends, nothing is left."""
    database = plain.database
    with transaction(database, "SELECT FROM pg_class", isolation="REPEATABLE READ") as pid:
        waits = plain.run(check=True, table="t")["waits_for"]
        assert [row["pid"] for row in waits] == [pid]
        error = plain.refused(rf"pid {pid} \(app, forgotten, 127.0.0.1\)", check=False, table="t", max_locker_wait=1)
        assert "waiting for old snapshots" in error.found
        assert error.details["locker"]["pid"] == pid
        assert state(database) == {}
    assert plain.run(table="t")["changed"] is True


@on_18
def test_a_transaction_that_does_not_even_let_us_clean_up(plain: Desk) -> None:
    """It has locked the table: then the invalid index stays, is said to, and goes with the next run."""
    database = plain.database
    with transaction(database, "INSERT INTO t VALUES (0, 0, '')"):
        error = plain.refused("forgotten", check=False, table="t", max_locker_wait=1, lock_wait_timeout=1)
        assert any("an invalid index is left" in text and "forgotten" in text for text in error.details["warnings"])
        assert state(database) == {"ix": ("t", False, "")}
    assert plain.run(table="t")["changed"] is True
    assert state(database) == {"ix": ("t", True, "")}


@on_13_and_18
def test_check_mode_says_who_is_in_the_way(tree: Desk) -> None:
    database = tree.database
    with transaction(database, "SELECT pg_sleep(0.1)", "INSERT INTO p VALUES (0, 0, '')") as pid:
        result = tree.run(check=True)
        assert [row["pid"] for row in result["plan"][0]["by_statement"][0]["blocked_by"]] == [pid]
        assert result["plan"][1]["by_statement"][0]["locks"] == [
            {
                "relation": "public.p0",
                "mode": "ShareUpdateExclusiveLock",
                "scanned_bytes": 2 * database.value("SELECT pg_relation_size('p0')"),
            }
        ]
        error = tree.refused("no locks for: CREATE INDEX", check=False, lock_wait_timeout=1)
        assert error.details["blockers"][0]["pid"] == pid
    with transaction(database, "LOCK TABLE p1 IN ACCESS EXCLUSIVE MODE") as pid:
        tree.refused(rf"cannot be read: .*pid {pid}|canceling statement")
    assert state(database) == {}


@on_13_and_18
def test_one_run_at_a_time(plain: Desk) -> None:
    """And the builds of a run are known by their table, whatever it is called."""
    database = plain.database
    database.sql('ALTER TABLE t RENAME TO "Tä ble"')
    words = plain.options(table="Tä ble")
    with at_work(partial(run_module, "pg_index", words), database, 'LOCK TABLE "Tä ble" IN ROW EXCLUSIVE MODE') as done:
        pid = held_open(database, "CREATE INDEX CONCURRENTLY")
        plain.refused("another run works on public.Tä ble", check=False, table="Tä ble", name="iy", max_locker_wait=2)
        name = "SELECT application_name FROM pg_stat_activity WHERE pid = %s"
        assert database.value(name, (pid,)) == IndexRun(words, clock=Clock()).application_name
    assert done[0]["changed"] is True


@on_13_and_18
def test_clients_do_not_notice(tree: Desk) -> None:
    """Built and dropped under a writer and a reader, while somebody keeps a lock for whom the drop has to wait."""
    database = tree.database
    load = TableLoad(
        database,
        insert="INSERT INTO p VALUES (%s, 5, 'new')",
        probe="SELECT count(*) FROM p WHERE id <= 3000 AND k < 30",
    )
    with load:
        tree.run(lock_timeout_ms=100)
        drop = partial(run_module, "pg_index", tree.options(state="absent", lock_timeout_ms=100))
        with at_work(drop, database, "SELECT FROM p") as results:
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
            wait_for(lambda: database.sql(waiting), seconds=20, what="the drop to wait for its locks")
            time.sleep(1.5)
    assert results[0]["changed"] is True, results
    load.check("p")
    assert max(load.writer.longest, load.reader.longest) < 1000, "clients wait for a try, not for the transaction"
    assert state(database) == {}


# --------------------------------------------------------------------------------------------------------------- locks

HELD = """
SELECT format('%%I.%%I', nspname, relname), mode
  FROM pg_locks JOIN pg_class ON pg_class.oid = relation JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE pid = %s AND locktype = 'relation' AND granted AND nspname = 'public'
"""


def strongest_held(database: Database, pid: int) -> dict[str, str]:
    held: dict[str, str] = {}
    for relation, mode in database.sql(HELD, (pid,), user=users.SUPERUSER):
        held[relation] = max(mode, held.get(relation, mode), key=MODES.index)
    return held


def test_statements_take_the_locks_that_the_plan_says(tree: Desk) -> None:
    """Brief ones inside a transaction of their own, concurrent ones while an old transaction holds them up."""
    database = tree.database
    for words in ({}, {"state": "absent"}):
        while True:
            plan = tree.run(check=True, **words)["plan"]
            if not plan:
                break
            [statement] = plan[0]["statements"]
            planned = {lock["relation"]: lock["mode"] for lock in plan[0]["by_statement"][0]["locks"]}
            existing = {name for name in planned if database.value("SELECT to_regclass(%s) IS NOT NULL", (name,))}
            if plan[0]["brief"]:
                with closing(database.connect()) as connection, connection.cursor() as cursor:
                    cursor.execute("BEGIN")
                    cursor.execute(statement)
                    held = strongest_held(database, connection.get_backend_pid())
                    cursor.execute("COMMIT")
                assert {name: held[name] for name in existing if name in held} == planned, statement
                assert set(held) - set(planned) <= {"public.ix", "public.s_ix"} - existing, statement
            else:
                holder = f"LOCK TABLE {next(iter(planned))} IN ROW EXCLUSIVE MODE"
                with at_work(partial(database.sql, statement), database, holder):
                    held = strongest_held(database, held_open(database, statement))
                    assert held == {name: planned[name] for name in held}, statement
                    assert set(held) == set(planned), statement
    assert state(database) == {}
