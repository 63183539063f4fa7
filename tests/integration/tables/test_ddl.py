# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brief DDL against locks that others really hold."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import client, quoting
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.ddl import Patience, blockers, brief
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.locks import ACCESS_EXCLUSIVE, Lock, Statement
from ansible_collections.stateful.dbops.plugins.module_utils._runners.members import endpoint

from tests.lab.database import Database

ADD = Statement("ALTER TABLE public.t ADD COLUMN more int", (Lock("public.t", ACCESS_EXCLUSIVE),))
SHORT = Patience(first_ms=10, last_ms=20, tries=5, seconds=5)


def open_session(database: Database) -> client.Session:
    return client.connect(endpoint({"name": "db", **database.login}), clock=Clock())


@pytest.fixture
def table(database: Database) -> Database:
    database.sql("CREATE TABLE t (id int)")
    return database


def test_the_lock_is_given_up_and_its_holder_named(table: Database) -> None:
    reader = table.connect(application_name="report")
    reader.autocommit = False
    with reader.cursor() as cursor, open_session(table) as session:
        cursor.execute("SELECT * FROM t")
        with pytest.raises(
            DbopsError, match=r"in 5 tries .* \(app, report, 127.0.0.1\) holds AccessShareLock"
        ) as caught:
            brief(session, [ADD], patience=SHORT)
        assert caught.value.details["blockers"][0]["pid"] == reader.get_backend_pid()
        assert blockers(session, ADD.locks)[0].pid == reader.get_backend_pid()
        reader.rollback()
        assert blockers(session, ADD.locks) == []
        assert brief(session, [ADD], patience=SHORT) == 1
    reader.close()
    assert table.sql("SELECT more FROM t") == []


def test_all_or_nothing_and_other_errors_at_once(table: Database) -> None:
    wrong = Statement("ALTER TABLE public.t ADD COLUMN id int")
    with open_session(table) as session, pytest.raises(DbopsError, match=r'column "id" .* already exists'):
        brief(session, [ADD, wrong], patience=SHORT)
    assert table.sql("SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'more'") == []


def test_a_prepared_transaction_is_named(table: Database) -> None:
    holder = table.connect()
    holder.autocommit = False
    holder.tpc_begin("forgotten")
    with holder.cursor() as cursor:
        cursor.execute("LOCK TABLE t IN SHARE MODE")
    holder.tpc_prepare()
    try:
        with (
            open_session(table) as session,
            pytest.raises(DbopsError, match="prepared transaction forgotten holds ShareLock"),
        ):
            brief(session, [ADD], patience=SHORT)
    finally:
        table.sql("ROLLBACK PREPARED 'forgotten'")
        holder.close()


@pytest.mark.parametrize("text", ["plain", 'quo"te', "sla\\sh", "it's", "Ünï 💾", "%s %(x)s", "a\\'b"])
def test_quoting_is_the_servers(database: Database, text: str) -> None:
    def says(statement: str) -> Any:
        return database.sql(statement)[0][0]

    assert says(f"SELECT {quoting.literal(text)}") == text
    assert says(f"SELECT 1 AS {quoting.identifier(text)}") == 1
    assert quoting.identifier(text).strip('"').replace('""', '"') == text.strip('"')
    with open_session(database) as session:
        session.run("SET standard_conforming_strings = off")
        assert session.value(f"SELECT {quoting.literal(text)}") == text
