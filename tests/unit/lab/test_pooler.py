# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest

from tests.lab import users
from tests.lab.cluster import Cluster
from tests.lab.pooler import Pooler


@pytest.fixture(scope="module")
def pooler(cluster: Cluster) -> Iterator[Pooler]:
    made = cluster.add_pooler()
    yield made
    made.destroy()
    cluster.poolers.remove(made)


def test_the_application_reaches_the_primary_through_it(cluster: Cluster, pooler: Pooler) -> None:
    connection = psycopg2.connect(pooler.dsn())
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_user, current_database(), inet_server_port()")
        assert cursor.fetchone() == (users.APPLICATION, users.DATABASE, cluster.primary().port)
    connection.close()


def test_its_console_pauses_and_resumes(pooler: Pooler) -> None:
    def paused() -> bool:
        return any(row["paused"] for row in pooler.console("SHOW DATABASES") if row["name"] == users.DATABASE)

    pooler.console(f"PAUSE {users.DATABASE}")
    assert paused()
    pooler.console(f"RESUME {users.DATABASE}")
    assert not paused()


def test_it_needs_a_password_and_the_console_its_admin(pooler: Pooler) -> None:
    with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
        psycopg2.connect(pooler.dsn(), passfile="/dev/null")
    with pytest.raises(psycopg2.OperationalError, match="not allowed"):
        psycopg2.connect(pooler.dsn("pgbouncer", users.APPLICATION))


def test_a_suspended_one_answers_nobody(pooler: Pooler) -> None:
    pooler.suspend()
    try:
        with pytest.raises(psycopg2.OperationalError, match="timeout"):
            psycopg2.connect(pooler.dsn(), connect_timeout=2)
    finally:
        pooler.resume()
    assert pooler.console("SHOW VERSION")


def test_a_killed_one_can_start_again(pooler: Pooler) -> None:
    pooler.kill()
    assert not pooler.running()
    pooler.start()
    pooler.stop()
    pooler.start()
    assert pooler.version.startswith("pgbouncer 1.")
