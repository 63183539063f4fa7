# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same table on two servers: pieces are summed up on both at once, what differs is narrowed down to its rows, and
every row is looked at again until it is certain that no write in flight made the difference."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .._core.clock import Clock
from .._core.errors import DbopsError
from .._core.journal import make_state_directory, params_hash
from .._postgresql.compare_catalog import TableFacts, read_orders, read_statistics, read_table
from .._postgresql.compare_plan import (
    MOST_BITS,
    Difference,
    Division,
    Key,
    Piece,
    Statements,
    Wish,
    both,
    check_key,
    chosen_key,
    compared_columns,
    differences,
    differing_groups,
    divide,
    group_bits,
    hashed_columns,
    is_unique,
    pieces,
)
from .._postgresql.row_hash import PROBE, Column, RowHash, method_of
from .two_sides import Link, Side, Throttle

IN_FLIGHT = 100_000  # rows that may be on their way, besides those that differ
FETCH_AT_ONCE = 200_000  # rows, of which far fewer are expected
LOOK_AT_ONCE = 500  # rows in one statement
BURST = 20  # looks at rows that change all the time, within one round


@dataclass
class Options:
    """Of all tables of one check. ``state``: file of what was found equal so far, None: it is not kept."""

    wish: Wish
    workers: int
    rounds: int
    delay: float
    most: int
    sample: int
    seed: int
    state_dir: Path | None
    resume_seconds: float


@dataclass
class Outcome:
    """Of one table. ``found``: confirmed differences. ``unconfirmed``: keys of rows that changed at every look."""

    rows: int = 0
    pieces: int = 0
    resumed: int = 0
    found: list[Difference] = field(default_factory=list)
    unconfirmed: list[Key] = field(default_factory=list)
    in_flight: int = 0
    truncated: bool = False
    division: Division | None = None
    method: str = ""
    key: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    hashed: tuple[Column, ...] = ()
    types: dict[str, str] = field(default_factory=dict)  # of the target
    seed: int = 0
    strict: bool = False
    sample: list[dict[str, Any]] = field(default_factory=list)


class TableComparison:
    def __init__(
        self, source: Side, target: Side, link: Link, throttle: Throttle, options: Options, *, clock: Clock
    ) -> None:
        self.source, self.target = source, target
        self.link = link
        self.throttle = throttle
        self.options = options
        self.clock = clock

    def compare(self, schema: str, name: str) -> Outcome:
        """Raises DbopsError where the table cannot be compared, or a side does not answer."""
        wish, outcome = self.options.wish, Outcome()
        here, there = (
            side.ask(lambda session: read_table(session, schema, name)) for side in (self.source, self.target)
        )
        source, target = both(f"{schema}.{name}", here, there)
        if self.link.kind == "physical" and "u" in (source.persistence, target.persistence):
            raise DbopsError(
                found=f"{schema}.{name} is unlogged: a standby has no rows of it",
                expected="a table whose changes are replicated",
                remedy="name it in exclude_tables, or make it logged",
            )
        columns = compared_columns(source, target, wish)
        key = chosen_key(source, target, wish)
        names = [column.name for column in key]
        orders = [
            side.ask(partial(read_orders, oid=facts.oid, names=names))
            for side, facts in ((self.source, source), (self.target, target))
        ]
        check_key(source, key, orders)
        indexed = tuple(names) in source.keys and tuple(names) in target.keys
        self._check_encodings()
        facts, side = (source, self.source) if source.rows >= target.rows else (target, self.target)
        statistics = side.ask(lambda session: read_statistics(session, facts, names[0]))
        division = divide(facts, key, orders, statistics, wish.chunk_rows, indexed=indexed)
        hashing = RowHash(
            hashed_columns(columns, key),
            self._method(),
            self.options.seed,
            strict=wish.strict,
            unique=is_unique(source, target, key),
        )
        statements = Statements(source.sql, key, hashing, wish.where)
        outcome.division, outcome.method = division, hashing.method
        outcome.key, outcome.columns = tuple(names), tuple(column.name for column in columns)
        outcome.hashed = hashing.columns
        hashed = {column.name for column in hashing.columns}
        outcome.types = {column.name: column.type for column in target.columns if column.name in hashed}
        outcome.seed, outcome.strict = hashing.seed, hashing.strict
        search = _Search(self, statements, facts, division, outcome, (source.oid, target.oid))
        candidates = search.run()
        self._confirm(statements, candidates, outcome)
        outcome.sample = self._sample(statements, columns, outcome)
        search.forget()
        return outcome

    def _check_encodings(self) -> None:
        here, there = (
            side.ask(lambda session: session.value("SHOW server_encoding")) for side in (self.source, self.target)
        )
        if here != there:
            raise DbopsError(
                found=f"the source's database has the encoding {here}, the target's {there}",
                expected="the same encoding: what is hashed are the bytes",
                remedy="exclude the columns with text, or compare another way",
            )

    def _method(self) -> str:
        versions = [side.ask(lambda session: int(session.raw.server_version)) for side in (self.source, self.target)]
        probes = [
            side.ask(lambda session: session.value(f"SELECT hash_record_extended({PROBE}, 7)"))
            if version >= 140000
            else None
            for side, version in zip((self.source, self.target), versions)
        ]
        return method_of(*versions, *probes, strict=self.options.wish.strict)

    # -- certainty

    def _confirm(self, statements: Statements, candidates: list[Key], outcome: Outcome) -> None:
        for first in range(0, len(candidates), LOOK_AT_ONCE):
            if len(outcome.found) >= self.options.most:
                outcome.truncated = True
                break
            self._confirm_some(statements, candidates[first : first + LOOK_AT_ONCE], outcome)
        if len(outcome.found) > self.options.most:
            del outcome.found[self.options.most :]
            outcome.truncated = True
        outcome.found.sort(key=lambda difference: difference.key)

    def _confirm_some(self, statements: Statements, keys: list[Key], outcome: Outcome) -> None:
        """A row differs if the leader's was the same before and after the follower's was read, which by then had
        applied all that the leader had written after the first look; and a second time the same: a row that the leader
        does not have has no version, a standby may show a commit that its primary does not show yet, because it waits
        for another standby, and without a link nothing can be waited for. It is equal if the follower's is one that
        the leader had since."""
        seen: dict[Key, tuple[str, str]] = {}
        for attempt in range(self.options.rounds):
            if attempt:
                self.clock.sleep(min(2.0, self.options.delay * 1.5 ** (attempt - 1)))
            left = []
            leader, follower = self._looks(statements, keys, BURST if attempt > 1 else 1)
            for key in keys:
                versions, copies = leader[key], follower[key]
                now = versions[0][0], copies[-1]
                if {hashed for hashed, _version in versions[1:]} & set(copies):
                    outcome.in_flight += 1
                elif len(set(versions)) > 1 or len(set(copies)) > 1:
                    left.append(key)
                elif seen.get(key) != now:
                    seen[key] = now
                    left.append(key)
                else:
                    outcome.found.append(self._difference(key, *now))
            keys = left
            if not keys:
                return
        outcome.unconfirmed += keys

    def _looks(
        self, statements: Statements, keys: list[Key], times: int
    ) -> tuple[dict[Key, list[tuple[str, str]]], dict[Key, list[str]]]:
        """By key what each look found: of the leader hash and xmin, before the follower is waited for and after each
        look at it; of the follower the hash. An empty hash: no such row."""
        text = statements.look_up(keys)
        width = len(statements.key)
        leader: dict[Key, list[tuple[str, str]]] = {key: [] for key in keys}
        follower: dict[Key, list[str]] = {key: [] for key in keys}

        def look_at_leader() -> None:
            found = _by_key(self.link.leader.look(text), width)
            for key in keys:
                rows = found.get(key, [])
                leader[key].append((" ".join(row[width] for row in rows), " ".join(row[width + 1] for row in rows)))

        look_at_leader()
        self.link.wait()
        for _time in range(times):
            found = _by_key(self.link.follower.look(text), width)
            for key in keys:
                follower[key].append(" ".join(row[width] for row in found.get(key, [])))
            look_at_leader()
        return leader, follower

    def _difference(self, key: Key, leader: str, follower: str) -> Difference:
        source, target = (leader, follower) if self.link.leader is self.source else (follower, leader)
        return Difference(key, "missing" if not target else "extra" if not source else "changed", source, target)

    def _sample(self, statements: Statements, columns: Sequence[Column], outcome: Outcome) -> list[dict[str, Any]]:
        """The first differences with the names of the columns that differ; never their values."""
        shown = outcome.found[: self.options.sample]
        changed = [difference.key for difference in shown if difference.kind == "changed"]
        width = len(statements.key)
        text = statements.look_up(changed, columns) if changed else ""
        here, there = (_by_key(side.look(text) if text else [], width) for side in (self.source, self.target))
        sample = []
        for difference in shown:
            entry: dict[str, Any] = {"key": list(difference.key), "kind": difference.kind}
            left, right = here.get(difference.key), there.get(difference.key)
            if left and right:
                pairs = zip(columns, left[0][width + 2 :], right[0][width + 2 :])
                entry["columns"] = [column.name for column, one, other in pairs if one != other]
            sample.append(entry)
        return sample


def _by_key(rows: list[tuple[Any, ...]], width: int) -> dict[Key, list[tuple[Any, ...]]]:
    """By key, in the order of their hashes: the key's columns, hash and xmin as text, and what else was asked."""
    found: dict[Key, list[tuple[Any, ...]]] = {}
    for row in rows:
        found.setdefault(tuple(row[:width]), []).append((*row[:width], str(row[width]), *row[width + 1 :]))
    return {key: sorted(several, key=lambda row: row[width]) for key, several in found.items()}


class _Search:
    """Over the pieces of one table, ``workers`` at a time, both sides of each at once."""

    def __init__(
        self,
        comparison: TableComparison,
        statements: Statements,
        facts: TableFacts,
        division: Division,
        outcome: Outcome,
        oids: tuple[int, int],
    ) -> None:
        self.comparison = comparison
        self.options = comparison.options
        self.statements = statements
        self.facts = facts
        self.division = division
        self.outcome = outcome
        self.keys: list[Key] = []
        self._guard = threading.Lock()
        self._differed = 0
        self._progress = _Progress(self.options, statements, comparison, facts.full_name, oids)

    def run(self) -> list[Key]:
        with ThreadPoolExecutor(self.options.workers) as work:
            waiting = []
            for piece in self._progress.pieces(self._pieces):
                if self._progress.has(piece):
                    self.outcome.resumed += 1
                    continue
                waiting.append(work.submit(self._piece, piece))
            for one in waiting:
                one.result()
        return sorted(set(self.keys))

    def forget(self) -> None:
        self._progress.forget()

    def _pieces(self) -> list[Piece]:
        if self.division.kind == "groups" or not (self.division.bounds or self.division.walk):
            return [Piece()]
        return pieces(self.division, self._walk())

    def _walk(self) -> list[Key]:
        found: list[Key] = []
        after = self.division.bounds[-1] if self.division.bounds else None
        side = self.comparison.source
        while self.division.walk:
            rows = side.read(self.statements.walk(after, self.division.by, self.options.wish.chunk_rows))
            if not rows:
                break
            after = tuple(rows[0])
            found.append(after)
        return found

    def _both(self, statement: str) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        futures: list[Future[list[tuple[Any, ...]]]] = [
            side.submit(side.read, statement) for side in (self.comparison.source, self.comparison.target)
        ]
        return futures[0].result(), futures[1].result()

    def _piece(self, piece: Piece) -> None:
        began = self.comparison.clock.monotonic()
        if self.division.kind == "ranges" and not self._often():
            [(rows, here)], [(others, there)] = self._both(self.statements.total(piece))
            differs = (rows, here) != (others, there)
            if differs:
                self._narrow(piece, None, max(rows, others))
        else:
            rows, differs = self._narrow(piece, None, self._about())
        with self._guard:
            self.outcome.pieces += 1
            self.outcome.rows += rows
            self._differed += differs
        if not differs:
            self._progress.add(piece)
        self.comparison.throttle.after(self.comparison.clock.monotonic() - began)

    def _often(self) -> bool:
        """Where most pieces differ, summing each up first is for nothing."""
        return self.outcome.pieces >= 4 and self._differed * 2 > self.outcome.pieces

    def _about(self) -> int:
        """Rows of a piece that nobody has counted."""
        rows = self.facts.rows or self.facts.bytes // 64
        return min(rows, self.options.wish.chunk_rows) if self.division.kind == "ranges" else rows

    def _narrow(self, piece: Piece, within: tuple[int, Sequence[int]] | None, rows: int) -> tuple[int, bool]:
        """Find the keys that differ in a piece of about ``rows`` rows; how many there are, and whether any does."""
        before = within[0] if within else 0
        bits = group_bits(rows, most=MOST_BITS) if not before else before + group_bits(rows >> before)
        here, there = self._both(self.statements.groups(piece, bits, within))
        counted = max(sum(row[1] for row in here), sum(row[1] for row in there))
        differing = differing_groups(here, there)
        if differing and not before and counted >> bits > 64:  # more than was thought, or more than groups are for
            self._narrow(piece, (bits, differing), counted)
        elif differing:
            self._fetch(piece, bits, differing)
        return counted, bool(differing)

    def _fetch(self, piece: Piece, bits: int, differing: list[int]) -> None:
        most = self.options.most + IN_FLIGHT - len(self.keys)
        if most <= 0:
            self.outcome.truncated = True
            return
        # So many groups at a time that what is read stays small, however much differs.
        for first in range(0, len(differing), 1024):
            chosen = (bits, differing[first : first + 1024])
            here, there = self._both(self.statements.fetch(piece, chosen, FETCH_AT_ONCE))
            if FETCH_AT_ONCE in (len(here), len(there)):
                self.outcome.truncated = True
            found = differences(here, there, len(self.statements.key))
            with self._guard:
                room = self.options.most + IN_FLIGHT - len(self.keys)
                self.keys += [difference.key for difference in found[:room]]
                if len(found) > room:
                    self.outcome.truncated = True
                    return


class _Progress:
    """Pieces that were equal, in a file of JSON lines, so that a killed run goes on where it was. Only with the same
    options, and not for longer than was allowed: what was equal then may differ now."""

    def __init__(
        self, options: Options, statements: Statements, comparison: TableComparison, name: str, oids: tuple[int, int]
    ) -> None:
        self._guard = threading.Lock()
        self._clock = comparison.clock
        self._equal: set[Piece] = set()
        self._pieces: list[Piece] = []
        self._file: Any = None
        self._path: Path | None = None
        if options.state_dir is None:
            return
        meaning = params_hash(
            {
                "sides": [side.identity() for side in (comparison.source, comparison.target)],
                "table": oids,
                "columns": [(column.name, column.type) for column in statements.hash.columns],
                "key": [column.name for column in statements.key],
                "method": (statements.hash.method, statements.hash.strict, statements.where),
                "rows": options.wish.chunk_rows,
            }
        )
        make_state_directory(options.state_dir)
        self._path = options.state_dir / f"{name}-{meaning}.jsonl".replace("/", "_")
        self._read(options.resume_seconds)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _read(self, seconds: float) -> None:
        if self._path is None or not self._path.exists():
            return
        oldest = self._clock.wall() - seconds
        for line in self._path.read_text(encoding="utf-8").split("\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a host crash tore it
            if record["t"] < oldest:
                continue
            if "pieces" in record:
                self._pieces = [_piece(bounds) for bounds in record["pieces"]]
            else:
                self._equal.add(_piece(record["equal"]))

    def pieces(self, make: Callable[[], list[Piece]]) -> list[Piece]:
        """As they were divided by the run that was killed: statistics may have changed since. ``make`` divides anew."""
        if self._pieces:
            return self._pieces
        made = make()
        self._write({"pieces": [(piece.lower, piece.upper) for piece in made]})
        return made

    def has(self, piece: Piece) -> bool:
        return piece in self._equal

    def add(self, piece: Piece) -> None:
        self._write({"equal": (piece.lower, piece.upper)})

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            with self._guard:
                os.write(self._file, (json.dumps({"t": self._clock.wall(), **record}) + "\n").encode())

    def forget(self) -> None:
        if self._file is not None and self._path is not None:
            os.close(self._file)
            self._path.unlink(missing_ok=True)


def _piece(bounds: list[list[str] | None]) -> Piece:
    lower, upper = (None if bound is None else tuple(bound) for bound in bounds)
    return Piece(lower, upper)
