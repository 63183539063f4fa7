# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a repair: for each table, or ledger, a header that says what was compared where, and an entry for each
difference. Written by consistency_check, read by consistency_repair, and with what was before by what undoes that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from .._core.errors import DbopsError
from .compare_tables import Outcome
from .ledger_check import LedgerOutcome

VERSION = 1


@dataclass
class Section:
    header: dict[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)


def _header(kind: str, made: float, **more: Any) -> dict[str, Any]:
    return {"v": VERSION, "header": kind, "made": made, **more}


def table_header(
    sides: dict[str, dict[str, Any]], table: str, outcome: Outcome, where: str, made: float
) -> dict[str, Any]:
    return _header(
        "table",
        made,
        sides=sides,
        table=table,
        where=where,
        key=list(outcome.key),
        columns=list(outcome.columns),
        types=outcome.types,
        hashed=[asdict(column) for column in outcome.hashed],
        method=outcome.method,
        seed=outcome.seed,
        strict=outcome.strict,
    )


def table_entries(outcome: Outcome) -> Iterator[dict[str, Any]]:
    for one in outcome.found:
        yield {"key": list(one.key), "difference": one.kind, "source": one.source, "target": one.target}


def ledger_header(side: dict[str, Any], name: str, words: dict[str, Any], made: float) -> dict[str, Any]:
    return _header("ledger", made, sides={name: side}, ledger=words)


def ledger_entries(outcome: LedgerOutcome) -> Iterator[dict[str, Any]]:
    for one in outcome.imbalances:
        yield {"key": list(one.key), "off": one.difference, "accounts": one.accounts}


def sections(records: Iterable[dict[str, Any]], *, path: str) -> list[Section]:
    """Raises DbopsError where this is no such file, or one of another version."""
    found: list[Section] = []
    for record in records:
        if "header" in record:
            if record.get("v") != VERSION:
                raise DbopsError(
                    found=f"{path} is of version {record.get('v')}",
                    expected=f"a file of version {VERSION}",
                    remedy="write it anew by a check of this release",
                )
            found.append(Section(record))
        elif found:
            found[-1].entries.append(record)
        else:
            raise DbopsError(
                found=f"{path} does not begin with a header",
                expected="a file that consistency_check wrote as plan_file, or consistency_repair as undo_file",
                remedy="correct the path",
            )
    return found
