# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plain table becomes a partitioned one under load, with all that belongs to it, and back."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.quoting import identifier

from tests.integration.tables.scene import CATALOG, JOURNAL, Conversion
from tests.integration.test_playbooks import Run
from tests.lab import binaries, inventory, users
from tests.lab.database import Database
from tests.lab.table_load import TableLoad

INSERT = "INSERT INTO journal (id, note) VALUES (%s, NULL)"
PROBE = "SELECT count(*) FROM journal WHERE note LIKE 'fixed%'"


@pytest.fixture
def journal(database: Database, tmp_path: Path) -> Conversion:
    database.sql(JOURNAL)
    return Conversion(database, tmp_path)


def test_there_and_back_under_load(journal: Conversion) -> None:
    database = journal.database
    before = database.sql(CATALOG)
    predicted = journal.done(check=True)
    assert predicted["state"] == "would be partitioned"
    assert database.sql(CATALOG) == before
    with TableLoad(database, insert=INSERT, probe=PROBE) as running:
        there = journal.done()
        again = journal.done()
    running.check("journal")
    assert there["state"] == "partitioned"
    assert again["changed"] is False, again["statements"]
    assert database.value("SELECT relkind::text FROM pg_class WHERE relname = 'journal'") == "p"
    with TableLoad(database, insert=INSERT, probe=PROBE, first=2_000_000) as running:
        back = journal.done(state="plain")
    running.check("journal")
    assert back["state"] == "plain"
    for result in (there, back):
        (swap,) = [step for step in result["timeline"] if step["step"].startswith("cut ")]
        print(f"{swap['step']}: {swap['duration_ms']} ms")
    print(f"longest wait of the writer {running.writer.longest:.0f} ms, of the reader {running.reader.longest:.0f} ms")
    assert journal.done(state="plain")["changed"] is False
    names = {row[1] for row in before}
    assert {row[1] for row in database.sql(CATALOG)} == names


def dumped(database: Database) -> list[str]:
    """The schema as pg_dump of the newest version writes it, whose order of statements means nothing."""
    node = database.cluster.primary()
    command: list[str | Path] = [
        binaries.binaries("18") / "pg_dump",
        "--schema-only",
        "-h",
        node.host,
        "-p",
        str(node.port),
    ]
    text = subprocess.run(
        [*command, "-U", "postgres", database.name],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PGPASSFILE": str(database.cluster.lab_passfile)},
    ).stdout
    return sorted(line for line in text.splitlines() if line and not line.startswith(("--", "\\")))


def test_nothing_is_different_afterwards(journal: Conversion) -> None:
    before = dumped(journal.database)
    last = journal.database.value("SELECT last_value FROM journal_id_seq")
    journal.done()
    journal.done(state="plain")
    assert dumped(journal.database) == before
    assert journal.database.value("SELECT last_value FROM journal_id_seq") == last


def test_what_was_made_meanwhile_goes_back_too(journal: Conversion) -> None:
    database = journal.database
    journal.done()
    for statement in (
        "CREATE INDEX journal_new ON journal (amount)",
        "ALTER TABLE journal ADD extra int DEFAULT 7",
        "ALTER TABLE journal ADD CONSTRAINT journal_extra CHECK (extra > 0)",
        "CREATE TRIGGER later AFTER DELETE ON journal FOR EACH STATEMENT EXECUTE FUNCTION tell()",
        "GRANT DELETE ON journal TO replicator",
        "COMMENT ON TABLE journal IS 'what happened since'",
        "DROP INDEX journal_kind",
    ):
        database.sql(statement)
    journal.done(state="plain")
    indexes = {row[0] for row in database.sql("SELECT indexname FROM pg_indexes WHERE tablename = 'journal'")}
    assert indexes == {"journal_pkey", "journal_once", "journal_lower", "journal_new"}
    assert database.value("SELECT obj_description('journal'::regclass)") == "what happened since"
    assert database.value("SELECT has_table_privilege('replicator', 'journal', 'DELETE')")
    assert database.value("SELECT count(*) FROM pg_constraint WHERE conname = 'journal_extra'") == 1
    assert database.value("SELECT count(*) FROM pg_trigger WHERE tgname = 'later'") == 1


def test_what_goes_with_the_name(journal: Conversion) -> None:
    """Asked of the server, by what it does."""
    database = journal.database
    result = journal.done()
    assert [key["name"] for key in result["weakened"]] == ["journal_pkey"]
    greatest = database.value("SELECT max(id) FROM journal")
    row = database.sql("INSERT INTO journal (at) VALUES (%s) RETURNING id, serial, note, kind", [result["cut"]])
    assert row == [(greatest + 2, 2001, "stamped", 1)]
    assert database.value("SELECT count(*) FROM recent WHERE note = 'stamped'") == 1, "the view means the old table"
    for statement, error in (
        ("INSERT INTO journal (kind) VALUES (2)", psycopg2.errors.ForeignKeyViolation),
        ("INSERT INTO journal (amount) VALUES (-1)", psycopg2.errors.CheckViolation),
        ("INSERT INTO journal (at, note) SELECT at, note FROM journal LIMIT 1", psycopg2.errors.UniqueViolation),
    ):
        with pytest.raises(error):
            database.sql(statement)
    switched = """SELECT tgname::text, tgenabled::text FROM pg_trigger
                   WHERE tgrelid = %s::regclass AND tgname IN ('off', 'stamp', 'tell')"""
    assert set(database.sql(switched, ["journal"])) == {("off", "D"), ("stamp", "A"), ("tell", "O")}
    assert database.sql(switched, ["journal_legacy"])[0] == ("stamp", "A")
    assert database.sql("SELECT tablename::text FROM pg_publication_tables") == [("journal",)]
    assert database.value("SELECT obj_description('journal'::regclass)") == "what happened"
    valid = (
        "SELECT bool_and(indisvalid) FROM pg_index WHERE indrelid IN ('journal'::regclass, 'journal_legacy'::regclass)"
    )
    assert database.value(valid)
    assert database.value("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'journal'") == users.APPLICATION


REFUSED = {
    "a materialized view": ("CREATE MATERIALIZED VIEW sums AS SELECT sum(amount) FROM journal", "materialized view"),
    "a rule": ("CREATE RULE quiet AS ON DELETE TO journal DO ALSO NOTHING", "rule quiet"),
    "a rule of a view that writes into it": (
        """CREATE VIEW door AS SELECT id, note FROM journal;
           CREATE RULE through AS ON INSERT TO door DO INSTEAD INSERT INTO journal (note) VALUES (NEW.note)""",
        "rule through on view public.door",
    ),
    "a default by its identity": (
        "CREATE TABLE other (id bigint DEFAULT nextval('journal_id_seq'))",
        "table public.other (through the sequence of an identity)",
    ),
    "a key that is called as ours are": (
        "ALTER TABLE journal ADD CONSTRAINT serial_dbops UNIQUE (serial)",
        "unique without at: journal_pkey (id), serial_dbops (serial)",
    ),
    "a constraint that is called as ours is": (
        "ALTER TABLE journal ADD CONSTRAINT dbops_bound CHECK (kind < 100)",
        "a constraint dbops_bound that this module did not make",
    ),
    "a partition's name that is taken": (
        """DO $$BEGIN EXECUTE format('CREATE TABLE journal_p%s ()',
             to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '2 months', 'YYYYMMDD')); END$$""",
        "[free] names that something else has: journal_p",
    ),
    "a type's name that is taken": ("CREATE TYPE journal_legacy AS ENUM ()", "something else has: journal_legacy"),
    "a build's name that is taken": ("CREATE TABLE journal_pkey_dbops ()", "something else has: journal_pkey_dbops"),
    "a row at the end of time": (
        "INSERT INTO journal (at) VALUES ('infinity')",
        "the greatest value of at is infinity",
    ),
    "a row of the year 20000": ("INSERT INTO journal (at) VALUES ('20000-01-01')", "value of at is 20000-01-01"),
    "a function of its rows": (
        "CREATE FUNCTION f(journal) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "function public.f(public.journal)",
    ),
    "a view of its rows": ("CREATE VIEW whole AS SELECT j FROM journal j", "whole"),
    "another table's foreign key": (
        "CREATE TABLE other (at timestamptz, note text, FOREIGN KEY (note, at) REFERENCES journal (note, at))",
        "other_note_at_fkey of public.other refers to it",
    ),
    "a view that needs its key": (
        "CREATE VIEW grouped AS SELECT id, note FROM journal GROUP BY id",
        "through a key of the table",
    ),
    "an unvalidated constraint": (
        "ALTER TABLE journal ADD CONSTRAINT late CHECK (amount < 9) NOT VALID",
        "constraint late is not validated",
    ),
    "a constraint that is not inherited": (
        "ALTER TABLE journal ADD CONSTRAINT own CHECK (amount < 9) NO INHERIT",
        "constraint own is NO INHERIT",
    ),
    "an exclusion": (
        "ALTER TABLE journal ADD CONSTRAINT apart EXCLUDE USING btree (id WITH =)",
        "constraint apart excludes",
    ),
    "a parent": ("CREATE TABLE above (); ALTER TABLE journal INHERIT above", "it is a child of public.above"),
    "a child": ("CREATE TABLE below () INHERITS (journal)", "table public.below"),
    "unlogged": ("ALTER TABLE journal SET UNLOGGED", "it is unlogged"),
    "published by its own name": ("CREATE PUBLICATION plain FOR TABLE journal", "publication plain publishes it"),
    "replica identity": (
        "ALTER TABLE journal REPLICA IDENTITY USING INDEX journal_pkey",
        "its replica identity is an index",
    ),
    "a deferrable key": (
        "ALTER TABLE journal DROP CONSTRAINT journal_pkey, ADD PRIMARY KEY (id) DEFERRABLE",
        "[weakened] keys that cannot simply get one column more: journal_pkey",
    ),
    "a row without time": (
        "ALTER TABLE journal ALTER at DROP NOT NULL; UPDATE journal SET at = NULL WHERE id = 1",
        "[nulls]",
    ),
    "a name that is taken": ("CREATE TABLE journal_legacy ()", "[free] names that something else has: journal_legacy"),
    "an index name that is taken": ("CREATE INDEX journal_kind_legacy ON kind (id)", "journal_kind_legacy"),
    "transition tables": (
        """CREATE TRIGGER rows AFTER INSERT ON journal REFERENCING NEW TABLE AS fresh
             FOR EACH ROW EXECUTE FUNCTION tell()""",
        "trigger rows has transition tables",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_go_with_it_is_refused_by_name(journal: Conversion, name: str) -> None:
    statement, says = REFUSED[name]
    if name in ("unlogged", "a child", "a parent", "a row without time"):
        journal.database.sql("DROP PUBLICATION out")
        journal.database.sql("ALTER TABLE journal ALTER id DROP IDENTITY; DROP TABLE kind CASCADE")
    journal.database.sql(statement)
    journal.refused(says)


def test_a_key_with_an_order_of_its_own_is_refused(journal: Conversion) -> None:
    """It would be built without that, and come back without it."""
    journal.database.sql('CREATE UNIQUE INDEX ordered ON journal (note COLLATE "C" DESC)')
    journal.refused("cannot simply get one column more: ordered", weaken=["journal_pkey", "ordered"])


RIGHTS = {
    "create": ("ALTER SCHEMA public OWNER TO postgres", "the user may not create in schema public"),
    "execute": (
        """CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
           REVOKE ALL ON FUNCTION audit FROM PUBLIC;
           CREATE TRIGGER audit BEFORE INSERT ON journal FOR EACH ROW EXECUTE FUNCTION audit()""",
        "the user may not execute function public.audit() of trigger audit",
    ),
    "references": ("ALTER TABLE kind OWNER TO postgres", "the user may not make a foreign key to public.kind"),
    "row security": ("ALTER TABLE journal FORCE ROW LEVEL SECURITY", "holds for its owner, too"),
    "view": (
        "CREATE SCHEMA hers; CREATE VIEW hers.it AS SELECT id FROM journal; ",
        "the user may not act as the owner of view hers.it",
    ),
}


# On 13 the operator is a superuser, who lacks no right.
@pytest.mark.parametrize("server", ["15", "17", "18"], indirect=True)
@pytest.mark.parametrize("name", RIGHTS)
@pytest.mark.parametrize("check", [False, True])
def test_rights_are_missed_beforehand(journal: Conversion, name: str, check: bool) -> None:
    statement, says = RIGHTS[name]
    if name == "create":
        journal.database.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", user=users.SUPERUSER)
    journal.database.sql(statement, user=users.SUPERUSER)
    journal.refused(says, check=check)


def test_numbers_are_compared_as_numbers(journal: Conversion) -> None:
    """As text 9999 would be the greatest, and the cut before rows that are there."""
    journal.database.sql(
        "CREATE TABLE numbers (id int PRIMARY KEY); INSERT INTO numbers SELECT generate_series(1, 12000)"
    )
    words = {"table": "numbers", "key": "id", "key_type": "integer", "interval": "1000", "weaken": []}
    assert journal.done(**words)["cut"] == "14000"


def test_a_cut_that_a_killed_run_has_set_by_another_column_is_none(journal: Conversion) -> None:
    """Its constraint would prove nothing, and the swap read the table under its lock."""
    journal.database.sql(
        """ALTER TABLE journal ADD made timestamptz NOT NULL DEFAULT now();
           ALTER TABLE journal DROP CONSTRAINT journal_once; DROP INDEX journal_lower"""
    )
    assert journal.run(failpoint="build journal_pkey_dbops:before") == {}
    result = journal.done(key="made", time_zone="America/New_York")
    assert 'CHECK ("made" IS NOT NULL' in result["statements"][1]


def test_the_way_back_takes_what_it_has_by_then(journal: Conversion) -> None:
    """And what was taken from it does not come back."""
    database = journal.database
    journal.done()
    database.sql(
        """REVOKE ALL ON journal FROM replicator;
           GRANT SELECT (note) ON journal TO replicator;
           DROP POLICY sees ON journal;
           ALTER TABLE journal DISABLE ROW LEVEL SECURITY;
           ALTER TABLE journal REPLICA IDENTITY DEFAULT;
           ALTER TABLE journal ALTER note SET STATISTICS 7, ALTER kind RESET (n_distinct);
           ALTER TABLE journal ADD extra int DEFAULT 3, ADD CONSTRAINT few CHECK (extra < 10);
           CREATE INDEX journal_extra ON journal (extra);
           ALTER TABLE journal ADD CONSTRAINT journal_twice UNIQUE (extra, id, at);
           COMMENT ON COLUMN journal.note IS NULL;
           COMMENT ON COLUMN journal.extra IS 'new';
           COMMENT ON CONSTRAINT few ON journal IS 'not many'"""
    )
    database.sql(f"ALTER TABLE journal OWNER TO {users.OPERATOR}", user=users.SUPERUSER)
    journal.done(state="plain")
    assert database.sql(
        """SELECT pg_get_userbyid(relowner)::text, relrowsecurity, relreplident::text,
                  has_table_privilege('replicator', oid, 'INSERT'),
                  has_column_privilege('replicator', oid, 'note', 'SELECT'),
                  col_description(oid, 6), col_description(oid, 8), to_regclass('journal_extra') IS NOT NULL,
                  (SELECT obj_description(c.oid, 'pg_constraint') FROM pg_constraint c WHERE conname = 'few'),
                  (SELECT conrelid = pg_class.oid FROM pg_constraint WHERE conname = 'journal_twice')
             FROM pg_class WHERE oid = 'journal'::regclass""",
        user=users.SUPERUSER,
    ) == [(users.OPERATOR, False, "d", False, True, None, "new", True, "not many", True)]


def test_the_way_back_that_duplicates_forbid_leaves_nothing(journal: Conversion) -> None:
    """An index that it had built would forbid them, too."""
    database = journal.database
    journal.done()
    assert journal.run(state="plain", failpoint="build journal_pkey_dbops:before") == {}
    database.sql("INSERT INTO journal (id, at) SELECT id, at - interval '1 second' FROM journal WHERE id = 1")
    assert "is duplicated" in journal.run(state="plain")["msg"]
    assert database.sql("SELECT FROM pg_class WHERE relname = 'journal_pkey_dbops'") == []


def test_extended_statistics_keep_name_owner_and_target(journal: Conversion) -> None:
    database = journal.database
    database.sql("ALTER STATISTICS journal_both SET STATISTICS 77; COMMENT ON STATISTICS journal_both IS 'both'")
    database.sql("ANALYZE journal")
    text = """SELECT pg_get_statisticsobjdef(oid), pg_get_userbyid(stxowner)::text, stxstattarget,
                     obj_description(oid, 'pg_statistic_ext')
                FROM pg_statistic_ext WHERE stxrelid = 'journal'::regclass ORDER BY stxname"""
    before = database.sql(text)
    journal.done()
    assert database.sql(text) == before
    database.sql("CREATE STATISTICS journal_more ON kind, amount FROM journal")
    more = database.sql(text)
    journal.done(state="plain")
    assert database.sql(text) == more
    counted = "SELECT statistics_name::text FROM pg_stats_ext WHERE n_distinct IS NOT NULL"
    assert database.sql(counted) == [("journal_both",)], "what was counted is lost"


def test_default_privileges_add_nothing(journal: Conversion) -> None:
    database = journal.database
    acl = "SELECT relacl::text FROM pg_class WHERE relname IN ('journal', 'journal_id_seq') ORDER BY relname"
    before = database.sql(acl)
    database.sql(
        f"""ALTER DEFAULT PRIVILEGES FOR ROLE {users.OPERATOR} GRANT DELETE ON TABLES TO replicator, PUBLIC;
            ALTER DEFAULT PRIVILEGES FOR ROLE {users.APPLICATION} GRANT UPDATE ON SEQUENCES TO PUBLIC""",
        user=users.SUPERUSER,
    )
    journal.done()
    assert database.sql(acl) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weaken": []}, "[unique_keys] unique without at: journal_pkey (id)"),
        ({"weaken": ["journal_pkey", "nothing"]}, "weaken names nothing that is no unique key"),
        ({"key": "never"}, "has no column never"),
        ({"key": "note"}, "[key]"),
        ({"key": "serial"}, "key_type is not given"),
        ({"key": "doubled"}, "[key]"),
        ({"interval": "1000"}, "[interval]"),
        ({"cut": "2020-01-01"}, "[cut]"),
        ({"cut": "2099-01-15"}, "not the border of a window"),
        ({"legacy_name": "x" * 64}, "[names]"),
        ({"legacy_name": "kind"}, "[free]"),
        ({"premake": -1}, "[numbers]"),
        ({"name_template": "{table}_" + "x" * 63}, "[name_length]"),
        ({"table": "recent"}, "[plain] public.recent: no ordinary table"),
        ({"table": "nothing"}, "there is no table public.nothing"),
    ],
)
def test_bad_input(journal: Conversion, changes: dict[str, Any], says: str) -> None:
    journal.refused(says, **changes)


def test_the_way_back_ends_with_the_first_row_after_the_cut(journal: Conversion) -> None:
    database = journal.database
    result = journal.done()
    assert result["created"]
    database.sql("DROP PUBLICATION out")  # 18 deletes no published row with generated columns of this replica identity
    database.sql("INSERT INTO journal (at) VALUES (%s)", [result["cut"]])
    journal.refused("[empty] partitions with rows", state="plain")
    database.sql("DELETE FROM journal WHERE at >= %s", [result["cut"]])

    # One that comes after the checks, and before the lock.
    plan = journal.done(check=True, state="plain")["plan"]
    cut_back = next(step["statements"] for step in plan if step["name"] == "cut back journal")
    database.sql("INSERT INTO journal (at) VALUES (%s)", [result["cut"]])
    with pytest.raises(psycopg2.errors.RaiseException, match="holds a row by now"):
        database.sql("; ".join(cut_back))
    database.sql("DELETE FROM journal WHERE at >= %s", [result["cut"]])
    database.sql("CREATE MATERIALIZED VIEW sums AS SELECT sum(amount) FROM journal")
    journal.refused("materialized view", state="plain")


def test_a_reader_is_in_the_way(journal: Conversion) -> None:
    """It is named, nobody waits behind us, and the constraint that would refuse rows in time is taken back."""
    database = journal.database
    with closing(database.connect(application_name="the reader")) as reader:
        reader.autocommit = False
        reader.cursor().execute("SELECT FROM journal LIMIT 1")
        result = journal.run(lock_wait_timeout=1)
    assert "the reader" in result["msg"]
    assert database.sql("SELECT conname FROM pg_constraint WHERE conname LIKE 'dbops%'") == []


def test_a_cut_that_a_killed_run_has_set_is_kept_while_it_is_far_enough(journal: Conversion) -> None:
    database = journal.database
    assert journal.run(failpoint="validate dbops_bound:before") == {}
    with pytest.raises(psycopg2.errors.CheckViolation):
        database.sql("INSERT INTO journal (at) VALUES (now() + interval '80 days')")
    database.sql("COMMENT ON CONSTRAINT dbops_bound ON journal IS 'dbops cut: 0'")
    result = journal.done()
    assert result["statements"][0].startswith('ALTER TABLE "public"."journal" DROP CONSTRAINT'), "an old cut is left"


def test_an_index_of_a_killed_build_is_built_again(journal: Conversion) -> None:
    """What is there with other columns is not ours."""
    database = journal.database
    database.sql("CREATE UNIQUE INDEX journal_pkey_dbops ON journal (at, id)")
    journal.refused("[free] names that something else has: journal_pkey_dbops")
    database.sql("DROP INDEX journal_pkey_dbops")
    database.sql("CREATE UNIQUE INDEX journal_pkey_dbops ON journal (id, at)")
    node = database.cluster.primary()
    node.sql(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'journal_pkey_dbops'::regclass", dbname=database.name
    )
    result = journal.done()
    assert any("DROP INDEX CONCURRENTLY" in statement for statement in result["statements"])


@pytest.mark.parametrize("server", ["18"], indirect=True, scope="session")
def test_there_and_back_by_playbook(journal: Conversion) -> None:
    database = journal.database
    hosts = inventory.write(database.cluster)
    words: dict[str, Any] = {
        "dbops_cluster": database.cluster.name,
        "partition_convert_database": database.name,
        "partition_convert_table": "journal",
        "partition_convert_key": "at",
        "partition_convert_interval": "month",
    }
    before = database.sql(CATALOG)
    Run("partition_convert", hosts, partition_convert_weak=1, **words).failed("partition_convert_weak; expected")
    Run("partition_convert", hosts, **words).failed("[unique_keys] unique without at: journal_pkey (id)")
    words["partition_convert_weaken"] = ["journal_pkey"]
    checked = Run("partition_convert", hosts, "--check", **words).succeeded(changed=True)
    assert "locks: AccessExclusiveLock of public.recent, AccessExclusiveLock of public.journal" in checked.text
    assert database.sql(CATALOG) == before
    Run("partition_convert", hosts, **words).succeeded(changed=True)
    Run("partition_convert", hosts, **words).succeeded(changed=False)
    back = {name: words[name] for name in list(words)[:3]}
    Run("partition_convert_rollback", hosts, **back).succeeded(changed=True)
    Run("partition_convert_rollback", hosts, **back).succeeded(changed=False)
    assert {row[1] for row in database.sql(CATALOG)} == {row[1] for row in before}


@pytest.mark.parametrize("name", ["Journal", "my journal", "a.b", 'my"j'])
def test_who_is_in_the_way_is_named_whatever_the_table_is_called(journal: Conversion, name: str) -> None:
    quoted = identifier(name)
    journal.database.sql(f"ALTER TABLE journal RENAME TO {quoted}")
    with closing(journal.database.connect(application_name="the reader")) as reader:
        reader.autocommit = False
        reader.cursor().execute(f"SELECT FROM {quoted} LIMIT 1")
        plan = journal.done(check=True, table=name)["plan"]
        result = journal.run(table=name, lock_wait_timeout=1)
    assert plan[0]["by_statement"][0]["blocked_by"][0]["application_name"] == "the reader"
    assert "the reader" in result["msg"]
