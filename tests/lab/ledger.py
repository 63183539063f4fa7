# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide's ledger: accounts and their journal, in double-entry bookkeeping.

Every unit on an account came from another account, the opening balances from the bank (user 0). So three facts hold
after any number of transfers, and each is a fact of the database alone: an account's total is the sum of its journal,
total = available + reserved, and all totals together are zero.
"""

from __future__ import annotations

from psycopg2.extensions import connection as Connection

USERS = 200
OPENING = 1_000_000
BANK = 0
CURRENCY = "USD"

# No unique key on transaction_journal.id alone: with one, a commit that was applied twice could never be seen.
# (The guide partitions by created_at, where such a key could not exist either.)
_TABLES = """
CREATE TABLE accounts (
    user_id    bigint         NOT NULL,
    currency   text           NOT NULL,
    available  numeric(20, 8) NOT NULL DEFAULT 0,
    reserved   numeric(20, 8) NOT NULL DEFAULT 0,
    total      numeric(20, 8) NOT NULL DEFAULT 0,
    version    bigint         NOT NULL DEFAULT 0,
    status     text           NOT NULL DEFAULT 'active',
    created_at timestamptz    NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz    NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, currency)
);
CREATE TABLE transaction_journal (
    id         bigint         NOT NULL,
    user_id    bigint         NOT NULL,
    currency   text           NOT NULL,
    type       text           NOT NULL CHECK (type IN ('credit', 'debit')),
    amount     numeric(20, 8) NOT NULL CHECK (amount > 0),
    status     text           NOT NULL DEFAULT 'completed',
    created_at timestamptz    NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (id, created_at)
);
-- Where tests.lab.checker.writable_nodes tries its direct writes.
CREATE TABLE dbops_probe (
    node       text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""

# Journal ids of the opening are negative, those of the writers' transfers positive.
_OPENING = """
INSERT INTO accounts (user_id, currency, available, total)
    SELECT user_id, %(currency)s, %(opening)s, %(opening)s FROM generate_series(1, %(users)s) AS user_id;
INSERT INTO accounts (user_id, currency, available, total)
    VALUES (%(bank)s, %(currency)s, -%(users)s::numeric * %(opening)s, -%(users)s::numeric * %(opening)s);
INSERT INTO transaction_journal (id, user_id, currency, type, amount)
    SELECT -2 * user_id, %(bank)s, %(currency)s, 'debit', %(opening)s FROM generate_series(1, %(users)s) AS user_id
    UNION ALL
    SELECT -2 * user_id + 1, user_id, %(currency)s, 'credit', %(opening)s FROM generate_series(1, %(users)s) AS user_id;
"""


def create(connection: Connection, users: int = USERS, opening: int = OPENING) -> None:
    """Make the tables and give ``users`` accounts ``opening`` units each. The role logged in becomes the owner.

    ``connection`` may be in autocommit mode or not: everything is one transaction, committed here.
    """
    with connection.cursor() as cursor:
        values = {"users": users, "opening": opening, "bank": BANK, "currency": CURRENCY}
        cursor.execute("BEGIN;" + _TABLES + _OPENING + "COMMIT;", values)
