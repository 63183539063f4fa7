# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was found is mended, what changed since is left alone, and all of it can be taken back."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.consistency.scene import Pair
from tests.lab import ledger, users
from tests.lab.operation import run_module, start_module
from tests.lab.server import wait_for

ONE_PAIR = pytest.mark.parametrize("servers", [("15", "18")], indirect=True, ids="-".join)
TABLE = """
CREATE TABLE t ("Id %" int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text UNIQUE, n numeric, f float8, at timestamptz,
    list text[], doc jsonb, twice numeric GENERATED ALWAYS AS (n * 2) STORED);
INSERT INTO t (v, n, f, at, list, doc) SELECT 'v' || g, g / 7.0, g / 7.0,
    '2026-01-01'::timestamptz + g * interval '1 s', ARRAY['ä', NULL, g::text], jsonb_build_object('n', g)
  FROM generate_series(1, 1000) AS g;
ANALYZE t
"""
ROWS = "SELECT t::text FROM t ORDER BY 1"


@dataclass
class Mended:
    pair: Pair
    directory: Path

    @property
    def plan(self) -> Path:
        return self.directory / "plan.jsonl"

    @property
    def undo(self) -> Path:
        return self.directory / "undo.jsonl"

    def check(self, **options: Any) -> dict[str, Any]:
        return self.pair.table("t", {"plan_file": str(self.plan), **options})

    def arguments(self, **options: Any) -> dict[str, Any]:
        return {
            "source": self.pair.source.login,
            "target": self.pair.target.login,
            "plan_file": str(self.plan),
            "undo_file": str(self.undo),
            **options,
        }

    def repair(self, *, check: bool = False, **options: Any) -> dict[str, Any]:
        return run_module("consistency_repair", self.arguments(**options), check=check)

    def take_back(self, **options: Any) -> dict[str, Any]:
        return self.repair(state="undone", source=None, plan_file=None, **options)


@pytest.fixture
def mended(pair: Pair, tmp_path: Path) -> Mended:
    pair.sql(TABLE)
    return Mended(pair, tmp_path)


def spoil(pair: Pair) -> None:
    pair.target.sql(
        """UPDATE t SET n = n + 1, f = 'NaN', list = NULL, doc = '[]' WHERE "Id %" IN (3, 900);"""
        """DELETE FROM t WHERE "Id %" IN (4, 901);"""
        """INSERT INTO t ("Id %", v) OVERRIDING SYSTEM VALUE VALUES (2000, 'extra')"""
    )


def test_mend_and_take_back(mended: Mended) -> None:
    pair = mended.pair
    spoil(pair)
    before = pair.target.sql(ROWS)
    assert mended.check()["differences"] == 5
    assert stat.S_IMODE(mended.plan.stat().st_mode) == 0o600

    planned = mended.repair(check=True)
    assert (planned["changed"], planned["mended"], pair.target.sql(ROWS)) == (True, 5, before)
    assert not mended.undo.exists()

    result = mended.repair()
    assert (result.get("failed", False), result["mended"], result["skipped"]) == (False, 5, 0), result
    assert pair.target.sql(ROWS) == pair.source.sql(ROWS)
    assert pair.table("t", hash="strict")["consistent"] is True
    assert stat.S_IMODE(mended.undo.stat().st_mode) == 0o600

    again = mended.repair(undo_file=str(mended.directory / "again.jsonl"))
    assert (again["changed"], again["skipped"]) == (False, 5)
    assert {row["why"] for row in again["rows"]} == {"is the same by now"}

    back = mended.take_back()
    assert (back.get("failed", False), back["mended"]) == (False, 5), back
    assert pair.target.sql(ROWS) == before
    assert mended.take_back()["changed"] is False


@ONE_PAIR
def test_rows_that_changed_since_are_left_alone(mended: Mended) -> None:
    pair = mended.pair
    spoil(pair)
    mended.check()
    pair.target.sql("""UPDATE t SET v = 'by somebody' WHERE "Id %" = 3""")
    pair.source.sql("""UPDATE t SET v = 'at the source' WHERE "Id %" = 900""")
    result = mended.repair()
    why = {row["key"][0]: row["why"] for row in result["rows"] if "why" in row}
    assert why == {
        "3": "the target's row is another than when it was checked",
        "900": "the source's row is another than when it was checked",
    }
    assert (result["mended"], pair.target.value("""SELECT v FROM t WHERE "Id %" = 3""")) == (3, "by somebody")

    pair.target.sql("""UPDATE t SET v = 'later' WHERE "Id %" = 4""")
    back = mended.take_back()
    assert (back["mended"], back["skipped"]) == (2, 1)
    assert pair.target.value("""SELECT v FROM t WHERE "Id %" = 4""") == "later"


@ONE_PAIR
def test_a_stale_plan_is_refused_as_a_whole(mended: Mended) -> None:
    pair = mended.pair
    spoil(pair)
    before = pair.target.sql(ROWS)
    mended.check()
    assert "the plan was made" in mended.repair(max_age=0)["msg"]
    assert "at most max_rows = 4" in mended.repair(max_rows=4)["msg"]
    assert "is database" in mended.repair(source=pair.target.login)["msg"]
    assert "no source is given" in mended.repair(source=None)["msg"]
    assert "is no record" in broken(mended, "nonsense\n")
    assert "does not begin with a header" in broken(mended, '{"key": []}\n')
    assert "of version 9" in broken(mended, '{"header": "table", "v": 9}\n')
    assert "cannot read plan_file" in mended.repair(plan_file=str(mended.directory / "none"))["msg"]
    pair.target.sql("ALTER TABLE t ALTER v TYPE varchar(50)")
    assert "v of public.t is character varying(50), it was text" in mended.repair()["msg"]
    pair.target.sql("ALTER TABLE t ALTER v TYPE text")
    mended.undo.write_text("")
    assert "is there already" in mended.repair()["msg"]
    assert pair.target.sql(ROWS) == before


def broken(mended: Mended, text: str) -> str:
    path = mended.directory / "broken.jsonl"
    path.write_text(text)
    return str(mended.repair(plan_file=str(path))["msg"])


@ONE_PAIR
def test_what_the_server_refuses_is_told_and_the_rest_is_mended(mended: Mended) -> None:
    """A unique value that another row has meanwhile, and a trigger that makes another row of it."""
    pair = mended.pair
    spoil(pair)
    mended.check()
    pair.target.sql("UPDATE t SET v = 'v4' WHERE v = 'v5'")
    pair.target.sql(
        "CREATE FUNCTION wrong() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.n := 0; RETURN NEW; END$$;"
        """CREATE TRIGGER wrong BEFORE UPDATE ON t FOR EACH ROW WHEN (NEW."Id %" = 3) EXECUTE FUNCTION wrong()"""
    )
    result = mended.repair()
    assert (result["failed"], result["mended"], result["failed_rows"]) == (True, 3, 2), result
    why = {row["key"][0]: row["why"] for row in result["rows"] if "why" in row}
    assert "duplicate key" in why["4"]
    assert why["3"] == "something (a trigger?) made another row of it"


@ONE_PAIR
def test_a_row_that_the_condition_hides_is_not_taken_for_missing(mended: Mended) -> None:
    """The source has closed what the target still has open: removing it would lose it."""
    pair = mended.pair
    pair.target.sql("""UPDATE t SET v = 'open' WHERE "Id %" = 7""")
    pair.target.sql("""UPDATE t SET n = 0 WHERE "Id %" = 8""")
    result = mended.pair.table("t", {"plan_file": str(mended.plan)}, where="v = 'open' OR v = 'v8'")
    assert result["differences"] == 2
    repaired = mended.repair()
    assert repaired["mended"] == 1, repaired
    assert "the source's row is another" in repaired["rows"][0]["why"]
    assert pair.target.value("""SELECT v FROM t WHERE "Id %" = 7""") == "open"


@ONE_PAIR
def test_rows_are_not_told_by_a_key_that_is_not_unique(mended: Mended) -> None:
    mended.pair.target.sql("UPDATE t SET n = 0 WHERE v = 'v8'")
    mended.pair.target.sql("ALTER TABLE t ALTER f SET NOT NULL")
    mended.pair.source.sql("ALTER TABLE t ALTER f SET NOT NULL")
    assert mended.pair.table("t", {"plan_file": str(mended.plan)}, key=["f"])["differences"] == 1
    assert "f is not a unique key of public.t" in mended.repair()["msg"]


@ONE_PAIR
def test_children_that_would_go_with_a_row_keep_it(mended: Mended) -> None:
    pair = mended.pair
    pair.target.sql(
        """INSERT INTO t ("Id %", v) OVERRIDING SYSTEM VALUE VALUES (2000, 'parent'), (2001, 'childless');"""
        """CREATE TABLE child (t int REFERENCES t ON DELETE CASCADE); INSERT INTO child VALUES (2000)"""
    )
    mended.check()
    result = mended.repair()
    assert (result["mended"], result["skipped"]) == (1, 1)
    assert result["rows"][0]["why"].startswith("public.child has rows that child_t_fkey would change with it")
    assert pair.target.value("SELECT count(*) FROM child") == 1


@ONE_PAIR
def test_no_value_of_a_row_is_printed(mended: Mended) -> None:
    pair = mended.pair
    pair.source.sql("""UPDATE t SET v = 'alice@example.org' WHERE "Id %" = 3""")
    mended.check()
    pair.target.sql("ALTER TABLE t ADD CONSTRAINT no_mail CHECK (v NOT LIKE '%@%')")
    result = mended.repair()
    assert result["rows"][0]["why"] == 'new row for relation "t" violates check constraint "no_mail" (no_mail)'
    assert "alice" not in str(result)


@ONE_PAIR
def test_a_row_that_was_added_and_written_to_since_is_not_taken_back(mended: Mended) -> None:
    pair = mended.pair
    pair.sql("ALTER TABLE t ADD note text")
    pair.target.sql("""DELETE FROM t WHERE "Id %" IN (4, 5)""")
    pair.table("t", {"plan_file": str(mended.plan)}, exclude=["note"])
    assert mended.repair()["mended"] == 2
    pair.target.sql("""UPDATE t SET note = 'mine' WHERE "Id %" = 4""")
    back = mended.take_back()
    assert (back["mended"], back["skipped"]) == (1, 1)


@ONE_PAIR
def test_killed_at_any_row_what_was_changed_can_be_taken_back(mended: Mended) -> None:
    pair = mended.pair
    pair.target.sql("""UPDATE t SET n = n + 1 WHERE "Id %" <= 400""")
    before = pair.target.sql(ROWS)
    assert mended.check()["differences"] == 400
    run = start_module("consistency_repair", mended.arguments())
    changed = """SELECT count(*) FROM t WHERE "Id %" <= 400 AND n < "Id %" / 7.0 + 0.5"""
    wait_for(lambda: pair.target.value(changed) > 20, seconds=30, what="some rows to be mended")
    os.kill(run.process.pid, signal.SIGKILL)
    run.result()
    wait_for(
        lambda: (
            not pair.target.value(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dbops consistency_repair'",
                user=users.SUPERUSER,
            )
        ),
        seconds=10,
        what="its sessions to end",
    )
    done = pair.target.value(changed)
    assert 20 < done < 400
    assert sum("after" in json.loads(line) for line in mended.undo.read_text().splitlines()) in (done, done + 1)

    back = mended.take_back()
    assert (back["mended"], pair.target.sql(ROWS)) == (done, before)
    mended.undo.unlink()
    assert mended.repair()["mended"] == 400
    assert pair.target.sql(ROWS) == pair.source.sql(ROWS)


@ONE_PAIR
def test_two_repairs_at_once(mended: Mended) -> None:
    spoil(mended.pair)
    mended.check()
    from_psycopg = mended.pair.target.connect()
    with from_psycopg.cursor() as cursor:
        cursor.execute("""BEGIN; SELECT FROM t WHERE "Id %" = 3 FOR UPDATE""")
        first = start_module("consistency_repair", mended.arguments())
        time.sleep(1.5)
        second = mended.repair(undo_file=str(mended.directory / "second.jsonl"))
        cursor.execute("ROLLBACK")
    from_psycopg.close()
    assert "another run works on repairs of database" in second["msg"]
    assert first.result()["mended"] == 5


def test_balances_from_the_journal_without_touching_reservations(pair: Pair, tmp_path: Path) -> None:
    connection = pair.source.connect()
    ledger.create(connection, users=20)
    connection.close()
    words = {"conditions": ["reserved >= 0", "total = available + reserved", "user_id = 0 OR available >= 0"]}
    pair.source.sql(
        "UPDATE accounts SET reserved = 300, available = available - 300 WHERE user_id IN (1, 2, 3, 4);"
        "UPDATE accounts SET total = total + 5, available = available + 5 WHERE user_id IN (1, 2);"
        "UPDATE accounts SET total = total + 5 WHERE user_id = 5;"  # the way back has to know what was available
        "UPDATE accounts SET reserved = 1000001, available = 5, total = 1000006 WHERE user_id = 3;"
        "DELETE FROM accounts WHERE user_id = 6"
    )
    before = pair.source.sql("SELECT user_id, available, reserved, total FROM accounts ORDER BY 1")
    mended = Mended(pair, tmp_path)
    arguments = {
        "source": pair.source.login,
        "checks": [{"kind": "ledger", "ledger": words}],
        "plan_file": str(mended.plan),
        "recheck_delay": 0.01,
    }
    assert run_module("consistency_check", arguments)["differences"] == 6
    options: dict[str, Any] = {"source": None, "target": pair.source.login}
    # Whether the account would meet the conditions is only known when it was changed.
    assert mended.repair(check=True, **options)["mended"] == 4

    pair.source.sql("UPDATE accounts SET total = total + 1, available = available + 1 WHERE user_id = 2")
    result = mended.repair(**options)
    why = {row["key"][0]: row["why"] for row in result["rows"] if "why" in row}
    assert why["3"] == "the account would not meet user_id = 0 OR available >= 0"
    assert why["2"].startswith("the balance is off by -6")
    assert why["6"].startswith("there is no account")
    assert result["mended"] == 2
    rows = "SELECT available, reserved, total, version FROM accounts WHERE user_id = %s"
    assert pair.source.sql(rows, [1]) == [(999700, 300, 1000000, 1)]
    assert pair.source.sql(rows, [5]) == [(1000000, 0, 1000000, 1)]

    assert "1000005" not in str(result)
    back = mended.take_back(target=pair.source.login)
    assert back["mended"] == 2
    pair.source.sql("UPDATE accounts SET total = total - 1, available = available - 1 WHERE user_id = 2")
    assert pair.source.sql("SELECT user_id, available, reserved, total FROM accounts ORDER BY 1") == before
