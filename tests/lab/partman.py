# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's pg_partman in a database of the server "15-rivals", in the hands of the application as its README has it."""

from __future__ import annotations

from tests.lab import users
from tests.lab.database import Database


def install(database: Database) -> None:
    for statement in (
        "CREATE SCHEMA partman",
        "CREATE EXTENSION pg_partman SCHEMA partman",
        f"GRANT ALL ON SCHEMA partman TO {users.APPLICATION}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA partman TO {users.APPLICATION}",
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA partman TO {users.APPLICATION}",
        f"GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA partman TO {users.APPLICATION}",
    ):
        database.sql(statement, user=users.SUPERUSER)
