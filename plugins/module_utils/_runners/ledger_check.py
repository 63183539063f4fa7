# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balances against the journal on one side, and what has to hold of every account."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from .._core.clock import Clock
from .._core.errors import DbopsError
from .._postgresql.compare_catalog import TableFacts, read_table
from .._postgresql.ledger_plan import Ledger
from .two_sides import Side

WHOLE = ("int2", "int4", "int8")
LOOK_AT_ONCE = 500


@dataclass(frozen=True)
class Imbalance:
    """``difference``: the journal's sum less the balance, as text; NaN where a row is neither credit nor debit.
    ``accounts``: how many rows of accounts have the key."""

    key: tuple[str | None, ...]
    difference: str
    accounts: int

    def words(self) -> str:
        if self.accounts == 0:
            return f"the journal has entries (sum {self.difference}), and there is no account"
        if self.accounts > 1:
            return f"there are {self.accounts} accounts with this key"
        if self.difference == "NaN":
            return "an entry of the journal is neither credit nor debit, or has no amount"
        return f"the journal's sum less the balance is {self.difference}"


@dataclass
class LedgerOutcome:
    imbalances: list[Imbalance] = field(default_factory=list)
    imbalance_count: int = 0
    violations: list[dict[str, Any]] = field(default_factory=list)
    violation_count: int = 0
    in_flight: int = 0

    @property
    def count(self) -> int:
        return self.imbalance_count + self.violation_count


def ledger_of(side: Side, words: dict[str, Any]) -> Ledger:
    """From the options of a check of kind ledger. Raises DbopsError where tables or columns are not as they say."""
    accounts, journal = (_table(side, words[name]) for name in ("accounts", "journal"))
    amount = _column(journal, words["amount"])
    for table, names in (
        (accounts, [*words["key"], words["balance"]]),
        (journal, [*words["key"], *([words["sign"]] if words["sign"] else [])]),
        (journal, [words["status"]] if words["completed"] else []),
    ):
        for name in names:
            _column(table, name)
    return Ledger(
        accounts=accounts.sql,
        journal=journal.sql,
        key=tuple(words["key"]),
        balance=words["balance"],
        amount=words["amount"],
        sign=words["sign"],
        credit=tuple(words["credit"]),
        debit=tuple(words["debit"]),
        status=words["status"],
        completed=tuple(words["completed"]),
        amount_nullable=not amount.not_null,
        whole_numbers=amount.base in WHOLE,
        tolerance=_tolerance(words["tolerance"]),
        accounts_where=words["accounts_where"] or "",
        journal_where=words["journal_where"] or "",
        conditions=tuple(words["conditions"]),
    )


def _table(side: Side, name: str) -> TableFacts:
    schema, _dot, table = name.rpartition(".")
    facts = side.ask(lambda session: read_table(session, schema or "public", table))
    if facts is None:
        raise DbopsError(
            found=f"the {side.name} has no table {name}",
            expected="the accounts and their journal",
            remedy="correct accounts and journal",
        )
    return facts


def _column(table: TableFacts, name: str) -> Any:
    column = table.column(name)
    if column is None or name in table.unreadable:
        raise DbopsError(
            found=f"{table.full_name} has no column {name}"
            if column is None
            else f"the login may not read {name} of {table.full_name}",
            expected="a column that can be read",
            remedy="correct the column's name in ledger" if column is None else f"GRANT SELECT ON {table.sql}",
        )
    return column


def _tolerance(text: str) -> str:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(-1)
    if not value.is_finite() or value < 0:
        raise DbopsError(
            found=f"tolerance is {text!r}",
            expected="a number that is not negative",
            remedy="give 0 (sums of numeric are exact), or what may differ",
        )
    return "0" if value == 0 else f"{value:f}"


def check_ledger(side: Side, ledger: Ledger, *, most: int, delay: float, clock: Clock) -> LedgerOutcome:
    """One statement is one snapshot, so an application that writes both in one transaction never looks wrong. What was
    found is looked at once more after ``delay`` seconds, for one that does not, and what is right then is not told."""
    outcome = LedgerOutcome()
    first = side.look(ledger.imbalances(most))
    if first:
        clock.sleep(delay)
    width = len(ledger.key)
    keys = [tuple(row[:width]) for row in first]
    for start in range(0, len(keys), LOOK_AT_ONCE):
        again = side.look(ledger.imbalances(most, keys[start : start + LOOK_AT_ONCE]))
        outcome.imbalances += [Imbalance(tuple(row[:width]), row[width], row[width + 1]) for row in again]
    outcome.in_flight = len(first) - len(outcome.imbalances)
    outcome.imbalance_count = max(0, (first[0][width + 2] if first else 0) - outcome.in_flight)
    for condition in ledger.conditions:
        rows = side.look(ledger.violations(condition, most))
        outcome.violation_count += rows[0][width] if rows else 0
        outcome.violations += [{"key": list(row[:width]), "condition": condition} for row in rows]
    return outcome
