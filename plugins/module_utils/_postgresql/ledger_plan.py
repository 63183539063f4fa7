# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balances and the journal they come from: statements that find every account whose sum is another. No IO here.

Journal and accounts are read in one pass and one snapshot, as one list of signed amounts: the journal's as they are,
the balances negated. Whatever does not add up to zero is wrong, on whichever side it is missing. An outer join with a
condition on the difference, which is what one writes first, drops the rows that are on one side only (NULL is not
true).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .quoting import identifier, literal


@dataclass(frozen=True)
class Ledger:
    """``accounts`` and ``journal``: quoted names. ``key``: columns that both have. ``balance``: of accounts, what the
    journal adds up to. ``sign``: the column that says credit or debit, empty where amounts are signed. ``completed``:
    values of ``status`` that count, empty: all. ``amount_nullable``: it may be NULL; ``whole_numbers``: its type has
    no NaN. ``tolerance``: as text, a number. ``conditions``: SQL, of every account."""

    accounts: str
    journal: str
    key: tuple[str, ...]
    balance: str
    amount: str
    sign: str = ""
    credit: tuple[str, ...] = ()
    debit: tuple[str, ...] = ()
    status: str = ""
    completed: tuple[str, ...] = ()
    amount_nullable: bool = False
    whole_numbers: bool = False
    tolerance: str = "0"
    accounts_where: str = ""
    journal_where: str = ""
    conditions: tuple[str, ...] = ()

    # -- the sums

    def imbalances(self, most: int, keys: Sequence[tuple[str | None, ...]] = ()) -> str:
        """A row for each key that does not add up, ``most`` of them: the key as text, the journal's sum less the
        balance, how many accounts there are, how many such keys. ``keys``: only these."""
        names = ", ".join(identifier(name) for name in self.key)
        texts = ", ".join(f"{identifier(name)}::text" for name in self.key)
        return (
            f"WITH wrong AS ({self._sums(names, keys)} HAVING {self._wrong()})"
            f" SELECT {texts}, difference::text, accounts, count(*) OVER () FROM wrong"
            f" ORDER BY {names} LIMIT {most}"
        )

    def _sums(self, names: str, keys: Sequence[tuple[str | None, ...]]) -> str:
        return (
            # A NULL costs count() nothing, and says which side a row is of.
            f"SELECT {names}, sum(amount) AS difference, count(account) AS accounts FROM ("
            f"SELECT {names}, {self.signed} AS amount, NULL::int AS account FROM {self.journal}"
            f"{_where(self._completed, self.journal_where, self._among(keys))}"
            f" UNION ALL SELECT {names}, -{identifier(self.balance)}, 1 FROM {self.accounts}"
            f"{_where(self.accounts_where, self._among(keys))}"
            f") AS both_sides GROUP BY {names}"
        )

    @property
    def signed(self) -> str:
        """A row's amount with its sign. What is neither a credit nor a debit, or has no amount, becomes NaN, which
        makes the whole sum NaN: it must not be left out quietly."""
        amount = identifier(self.amount) + ("::numeric" if self.whole_numbers else "")
        if self.amount_nullable:
            amount = f"coalesce({amount}, 'NaN')"
        if not self.sign:
            return amount
        sign = identifier(self.sign)
        return (
            f"CASE WHEN {_any(sign, self.credit)} THEN {amount} WHEN {_any(sign, self.debit)} THEN -{amount}"
            " ELSE 'NaN' END"
        )

    def _wrong(self) -> str:
        sums = "sum(amount) <> 0" if self.tolerance == "0" else f"abs(sum(amount)) > {self.tolerance}"
        return f"{sums} OR sum(amount) IS NULL OR count(account) <> 1"

    @property
    def _completed(self) -> str:
        return _any(identifier(self.status), self.completed) if self.completed else ""

    def _among(self, keys: Sequence[tuple[str | None, ...]]) -> str:
        """Only these keys; a NULL in one is one."""
        if not keys:
            return ""
        names = [f"{identifier(name)}::text" for name in self.key]
        whole = [key for key in keys if None not in key]
        listed = ", ".join(f"({', '.join(literal(text) for text in key if text is not None)})" for key in whole)
        conditions = [f"({', '.join(names)}) IN ({listed})"] if whole else []
        conditions += [
            " AND ".join(
                f"{name} IS NULL" if text is None else f"{name} = {literal(text)}" for name, text in zip(names, key)
            )
            for key in keys
            if None in key
        ]
        return " OR ".join(conditions)

    # -- the rows

    def violations(self, condition: str, most: int, keys: Sequence[tuple[str | None, ...]] = ()) -> str:
        """A row for each account that does not meet the condition (unknown is not met): the key as text, how many.
        ``keys``: only these."""
        names = ", ".join(f"{identifier(name)}::text" for name in self.key)
        where = _where(self.accounts_where, f"({condition}) IS NOT TRUE", self._among(keys))
        return f"SELECT {names}, count(*) OVER () FROM {self.accounts}{where} ORDER BY {names} LIMIT {most}"


def _any(column: str, values: Sequence[str]) -> str:
    listed = ", ".join(literal(value) for value in values)
    return f"{column} = {listed}" if len(values) == 1 else f"{column} IN ({listed})"


def _where(*conditions: str) -> str:
    given = [f"({condition})" for condition in conditions if condition]
    return f" WHERE {' AND '.join(given)}" if given else ""
