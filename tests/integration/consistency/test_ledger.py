# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balances against their journal: what is found, what is not, and what is refused."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.consistency.scene import Pair, good
from tests.lab import ledger
from tests.lab.operation import run_module
from tests.lab.writer import Writers

# The lab's bank may owe.
BOOKS = {"conditions": ["reserved >= 0", "total = available + reserved"]}
ONE_PAIR = pytest.mark.parametrize("servers", [("15", "18")], indirect=True, ids="-".join)


@pytest.fixture
def books(pair: Pair) -> Pair:
    connection = pair.source.connect()
    ledger.create(connection)
    connection.close()
    return pair


def check(pair: Pair, options: dict[str, Any] | None = None, **words: Any) -> dict[str, Any]:
    return run_module(
        "consistency_check",
        {
            "source": pair.source.login,
            "checks": [{"kind": "ledger", "ledger": {**BOOKS, **words}}],
            "recheck_delay": 0.01,
            **(options or {}),
        },
    )


def found(result: dict[str, Any]) -> dict[str, str]:
    return {one["key"][0]: one["found"] for one in result["results"][0]["sample"]}


def test_books_that_balance(books: Pair) -> None:
    result = check(books)
    assert (result["consistent"], result["differences"]) == (True, 0)


def test_what_is_wrong_on_either_side(books: Pair) -> None:
    books.source.sql(
        # The last digit, a missing account, entries without an account that add up to nothing, an account without
        # entries, a word that is neither, and an entry that does not count.
        "UPDATE accounts SET total = total + 0.00000001, available = available + 0.00000001 WHERE user_id = 1;"
        "DELETE FROM accounts WHERE user_id = 2;"
        "INSERT INTO transaction_journal (id, user_id, currency, type, amount) VALUES"
        " (9001, 999, 'USD', 'credit', 5), (9002, 999, 'USD', 'debit', 5);"
        "INSERT INTO accounts (user_id, currency, available, total) VALUES (3, 'EUR', 7, 7), (4, 'EUR', 0, 0);"
        "ALTER TABLE transaction_journal DROP CONSTRAINT transaction_journal_type_check;"
        "INSERT INTO transaction_journal (id, user_id, currency, type, amount) VALUES (9003, 5, 'USD', 'refund', 1);"
        "INSERT INTO transaction_journal (id, user_id, currency, type, amount, status)"
        " VALUES (9004, 6, 'USD', 'credit', 1, 'pending')"
    )
    result = check(books)
    assert found(result) == {
        "1": "the journal's sum less the balance is -0.00000001",
        "2": "the journal has entries (sum 1000000.00000000), and there is no account",
        "999": "the journal has entries (sum 0.00000000), and there is no account",
        "3": "the journal's sum less the balance is -7.00000000",
        "5": "an entry of the journal is neither credit nor debit, or has no amount",
    }
    assert (result["failed"], result["differences"], result["consistent"]) == (True, 5, False)
    assert found(check(books, tolerance="0.001")).keys() == {"2", "999", "3", "5"}
    assert found(check(books, completed=["completed", "pending"])).keys() == {"1", "2", "999", "3", "5", "6"}
    assert found(check(books, accounts_where="user_id < 3", journal_where="user_id < 3")).keys() == {"1", "2"}
    some = check(books, {"max_differences": 2})
    assert (some["differences"], some["results"][0]["truncated"]) == (5, True)


def test_an_entry_of_nobody(books: Pair) -> None:
    books.source.sql(
        "ALTER TABLE transaction_journal ALTER user_id DROP NOT NULL;"
        "INSERT INTO transaction_journal (id, user_id, currency, type, amount) VALUES (9001, NULL, 'USD', 'credit', 5)"
    )
    result = check(books)
    [one] = result["results"][0]["sample"]
    assert one == {"key": [None, "USD"], "found": "the journal has entries (sum 5.00000000), and there is no account"}


def test_conditions_of_accounts(books: Pair) -> None:
    books.source.sql("UPDATE accounts SET reserved = -1, available = available + 1 WHERE user_id = 7")
    books.source.sql("UPDATE accounts SET reserved = 5 WHERE user_id = 8")
    assert found(check(books)) == {"7": "not true: reserved >= 0", "8": "not true: total = available + reserved"}
    assert found(check(books, conditions=["available >= 0"])) == {"0": "not true: available >= 0"}


def test_no_false_alarm_while_clients_write(books: Pair, tmp_path: Path) -> None:
    """Both tables are written in one transaction, so one snapshot always balances."""
    node = books.source.cluster.primary()
    passfile = str(books.source.cluster.lab_passfile)
    places = [(node.host, node.port)]
    with Writers(tmp_path / "w", places, connections=6, passfile=passfile, dbname=books.source.name):
        for _time in range(5):
            good(check(books))


def test_what_is_only_on_its_way_is_no_difference(books: Pair) -> None:
    """An application that writes the balance a moment after the entry."""
    books.source.sql(
        "INSERT INTO transaction_journal (id, user_id, currency, type, amount) VALUES (9001, 1, 'USD', 'credit', 5)"
    )

    def follow() -> None:
        time.sleep(1.0)
        books.source.sql("UPDATE accounts SET total = total + 5, available = available + 5 WHERE user_id = 1")

    thread = threading.Thread(target=follow)
    thread.start()
    result = check(books, {"recheck_delay": 2.0})
    thread.join()
    assert (result["consistent"], result["results"][0]["counts"]["in_flight"]) == (True, 1), result


@ONE_PAIR
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"accounts": "public.nope"}, "no table public.nope"),
        ({"amount": "nope"}, "transaction_journal has no column nope"),
        ({"key": ["user_id", "nope"]}, "accounts has no column nope"),
        ({"tolerance": "-1"}, "tolerance is '-1'"),
        ({"tolerance": "much"}, "tolerance is 'much'"),
        ({"conditions": ["nope > 1"]}, 'column "nope" does not exist'),
    ],
)
def test_what_is_refused(books: Pair, words: dict[str, Any], says: str) -> None:
    result = check(books, **words)
    assert (result["failed"], result["consistent"]) == (True, False)
    assert says in result["msg"]
