# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plain table becomes the first partition of a partitioned one that takes its name; and back. Pure.

No row moves. Beforehand, beside the clients: a validated CHECK says that all rows, also those to come, lie before the
cut, and every unique key that lacks the partition key is built once more with it. So the transaction that swaps the
tables reads nothing, and everybody waits for some milliseconds. The way back is the same swap the other way round, for
as long as no row is in any other partition.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from .._core.operation import Check
from .locks import ACCESS_EXCLUSIVE, SHARE_ROW_EXCLUSIVE, SHARE_UPDATE_EXCLUSIVE, Lock, Statement
from .partition_catalog import BOUND, Partition, PartitionedTable
from .partition_keys import MINVALUE, Window, windows
from .partition_steps import Request as WindowRequest
from .partition_steps import Transaction, of_range
from .quoting import NAME_BYTES, identifier, literal, qualified, suffixed
from .table_belongings import Belongings, Identity, Made, UniqueKey

MARK = "dbops plain: "
"""Begins the comment of the partition that was the plain table; what the way back needs follows as JSON."""
CUT = "dbops cut: "
"""Begins the comment of the constraint dbops_bound on the plain table; the cut and the column follow."""
_TAKEN_THERE = ("policy", "publication", "extended statistics")
"""What the old table must not keep on the way there: its names are wanted, or it would do its work twice."""
_KEPT_BACK = ("publication", "extended statistics")
_KINDS = {"p": "PRIMARY KEY", "u": "UNIQUE"}


@dataclass(frozen=True)
class Prepared:
    """What a run before has left on the plain table. ``cut``: None without dbops_bound; ``built``: the names of valid
    indexes of ours, ``broken`` those that a killed run left invalid."""

    cut: int | None = None
    validated: bool = False
    built: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wish:
    """``legacy``: the name that the plain table gets; ``weakened``: names of unique keys that may be unique together
    with the partition key only."""

    windows: WindowRequest
    legacy: str
    cut: int
    weakened: tuple[str, ...] = ()

    @property
    def column(self) -> str:
        return self.windows.column


def weak_keys(belongings: Belongings, column: str) -> list[UniqueKey]:
    """Those that a table partitioned by ``column`` cannot have as they are."""
    return [key for key in own_keys(belongings) if column not in key.columns]


def own_keys(belongings: Belongings) -> list[UniqueKey]:
    """All but the indexes that a run before has built for one of them."""
    built = {built_name(key) for key in belongings.keys}
    return [key for key in belongings.keys if key.kind or key.name not in built]


def cut_comment(cut: int, column: str) -> str:
    return f"{CUT}{cut} of {column}"


def built_name(key: UniqueKey) -> str:
    return suffixed(key.name, "_dbops")


def kept_name(name: str) -> str:
    """Of an index of the plain table once it is a partition: the partitioned table's own has the name."""
    return suffixed(name, "_legacy")


# --------------------------------------------------------------------------------------------------------------- checks


def check_plain(table: PartitionedTable, belongings: Belongings, wish: Wish) -> list[Check]:
    """Whether this table can be one that is partitioned by ``column``."""
    column = next((one for one in table.columns if one.name == wish.column), None)
    ordinary = belongings.kind == "r"
    return [
        Check(
            "plain",
            "ok" if ordinary and not belongings.problems else "failed",
            f"{table.full_name}: {'; '.join(belongings.problems) or ('' if ordinary else 'no ') + 'ordinary table'}",
            "an ordinary table, with nothing that a partitioned one cannot have or that would not follow it",
            "see to what is named, or leave the table as it is",
        ),
        Check(
            "dependents",
            "failed" if belongings.others else "ok",
            f"on {table.full_name} depend: {'; '.join(belongings.others) or 'what goes with it'}",
            "nothing depends on the table that would stay with the old one",
            "drop them before and make them again afterwards",
        ),
        Check(
            "generated",
            "failed" if column is not None and column.generated else "ok",
            f"{wish.column} is {'generated' if column is not None and column.generated else 'stored as written'}",
            "a column that is not generated",
            "correct key",
        ),
        *_check_keys(table, belongings, wish),
        _check_names(belongings, wish),
    ]


def _check_keys(table: PartitionedTable, belongings: Belongings, wish: Wish) -> list[Check]:
    weak = weak_keys(belongings, wish.column)
    lost = [key.name for key in weak if key.name not in wish.weakened]
    strange = [key.name for key in weak if not key.plain]
    unknown = sorted(set(wish.weakened) - {key.name for key in belongings.keys})
    without = [f"{key.name} ({_columns(key.columns)})" for key in weak]
    remedy = (
        f"partition by a column that is in all of them, or give weaken: [{', '.join(lost)}]; two rows may then have the"
        f" same values there if they differ in {wish.column}"
    )
    return [
        Check(
            "unique_keys",
            "failed" if lost else "ok",
            f"unique without {wish.column}: {', '.join(without) or 'nothing'}",
            f"every unique key has {wish.column} in it, or you say which may lose what it enforces",
            remedy,
        ),
        Check(
            "weaken",
            "failed" if unknown else "ok",
            f"weaken names {', '.join(unknown) or 'nothing'} that is no unique key of {table.full_name}",
            "names of unique keys",
            f"correct them; it has {', '.join(key.name for key in belongings.keys) or 'none'}",
        ),
        Check(
            "weakened",
            "failed" if strange else "ok",
            f"keys that cannot simply get one column more: {', '.join(strange) or 'none'}",
            "unique keys of plain columns in their usual order, not partial, not deferrable, without INCLUDE",
            "replace them by plain ones before",
        ),
    ]


def _check_names(belongings: Belongings, wish: Wish) -> Check:
    names = names_needed(belongings, wish) + [name for name, _columns in widened(belongings, wish.column)]
    bad = sorted({name for name in names if names.count(name) > 1})
    bad += [wish.legacy] if len(wish.legacy.encode()) > NAME_BYTES else []
    return Check(
        "names",
        "failed" if bad else "ok",
        f"names that would be cut, or there twice: {', '.join(bad) or 'none'}",
        f"different names of at most {NAME_BYTES} bytes",
        "rename those indexes, or give another legacy_name",
    )


def prepared(
    belongings: Belongings, wanted: Iterable[tuple[str, tuple[str, ...]]], *, cut: int | None, validated: bool
) -> Prepared:
    """``wanted``: the indexes to be built, each with its columns. One of that name with others is not ours."""
    valid = {key.name: key.columns for key in belongings.keys}
    built = [name for name, columns in wanted if valid.get(name) == columns]
    broken = [name for name, _columns in wanted if name in belongings.invalid_indexes]
    return Prepared(cut, validated, tuple(built), tuple(broken))


def to_be_built(wanted: Iterable[tuple[str, tuple[str, ...]]], found: Prepared) -> list[str]:
    """Names of indexes that are not there yet."""
    return [name for name, _columns in wanted if name not in (*found.built, *found.broken)]


def widened(belongings: Belongings, column: str) -> list[tuple[str, tuple[str, ...]]]:
    """The indexes that the conversion needs, with their columns."""
    return [(built_name(key), (*key.columns, column)) for key in weak_keys(belongings, column)]


def check_cut(wish: Wish, current: int, greatest: int | None, *, nulls: bool) -> list[Check]:
    """``current``: the position of now; ``greatest``: the greatest value there is."""
    key, last = wish.windows.key, current if greatest is None else max(current, greatest)
    border = next(windows(key, wish.windows.interval, wish.cut)).lo == wish.cut
    return [
        Check(
            "cut",
            "ok" if wish.cut > last and border else "failed",
            f"cut {key.text(wish.cut)}, {'' if border else 'not '}the border of a window; now is {key.text(current)}"
            + ("" if greatest is None else f", the greatest value {key.text(greatest)}"),
            "the border of a window, after now and after every row",
            "give a later cut, as the windows begin; rows far in the future may be wrong",
        ),
        Check(
            "nulls",
            "failed" if nulls else "ok",
            f"{wish.column} is NULL in {'some rows' if nulls else 'no row'}",
            "a value in every row: NULL is in no range",
            "give those rows a value, or delete them",
        ),
    ]


def check_names_free(taken: Iterable[str]) -> Check:
    found = sorted(taken)
    return Check(
        "free",
        "failed" if found else "ok",
        f"names that something else has: {', '.join(found) or 'none'}",
        "every name that is needed is free",
        "rename what has them, or give another legacy_name or name_template",
    )


# ---------------------------------------------------------------------------------------------------------------- there


def names_needed(belongings: Belongings, wish: Wish) -> list[str]:
    """That nothing else may have."""
    return [
        wish.legacy,
        *(kept_name(key.name) for key in own_keys(belongings)),
        *(kept_name(name) for name, _definition in belongings.indexes),
        *(aside(one) for one in belongings.identities),
    ]


def names_needed_back(table: PartitionedTable, belongings: Belongings) -> list[str]:
    return [gone_name(table), *(aside(one) for one in belongings.identities)]


def gone_name(table: PartitionedTable) -> str:
    return suffixed(table.name, "_dbops_gone")


def aside(identity: Identity) -> str:
    """The name of its sequence while the one that follows it is made."""
    return suffixed(identity.sequence_name, "_dbops")


def convert(table: PartitionedTable, belongings: Belongings, wish: Wish, found: Prepared) -> list[Transaction]:
    item = of_range(wish.windows, Window(MINVALUE, wish.cut), wish.legacy)
    exclusive = Lock(table.full_name, ACCESS_EXCLUSIVE)
    shared = Lock(table.full_name, SHARE_UPDATE_EXCLUSIVE, belongings.bytes)
    drop = Statement(f"ALTER TABLE {table.sql} DROP CONSTRAINT IF EXISTS {BOUND}", (exclusive,))
    work = []
    if found.cut != wish.cut:
        cut = wish.windows.key.text(wish.cut)
        work.append(
            Transaction(
                f"add {BOUND}",
                f"from now on {table.full_name} takes no row at or after {cut}",
                (
                    drop,
                    Statement(f"ALTER TABLE {table.sql} ADD CONSTRAINT {BOUND} CHECK ({item.belongs}) NOT VALID"),
                    Statement(
                        f"COMMENT ON CONSTRAINT {BOUND} ON {table.sql} IS {literal(cut_comment(wish.cut, wish.column))}"
                    ),
                ),
                undo=(drop,),
            )
        )
    if found.cut != wish.cut or not found.validated:
        validate = Statement(f"ALTER TABLE {table.sql} VALIDATE CONSTRAINT {BOUND}", (shared,), brief=False)
        work.append(Transaction(f"validate {BOUND}", "prove that it has none", (validate,), long=True))
    for name, columns in widened(belongings, wish.column):
        work += _build(table, name, columns, found, shared)
    return [*work, _cut_over(table, belongings, wish, item.bounds)]


def _build(
    table: PartitionedTable | Partition, name: str, columns: Sequence[str], found: Prepared, lock: Lock
) -> list[Transaction]:
    """Nobody waits for it; it waits for every transaction that is older."""
    work = []
    if name in found.broken:
        drop = Statement(f"DROP INDEX CONCURRENTLY {qualified(table.schema, name)}", (lock,), brief=False)
        work.append(Transaction(f"drop {name}", "an index that a killed run left unfinished", (drop,), long=True))
    if name not in found.built:
        sql = f"CREATE UNIQUE INDEX CONCURRENTLY {identifier(name)} ON {table.sql} ({_quoted(columns)})"
        build = Statement(sql, (lock,), brief=False)
        work.append(Transaction(f"build {name}", f"unique by {_columns(columns)}", (build,), long=True))
    return work


def _cut_over(table: PartitionedTable, belongings: Belongings, wish: Wish, bounds: str) -> Transaction:
    legacy = qualified(table.schema, wish.legacy)
    weak = weak_keys(belongings, wish.column)
    exclusive = Lock(table.full_name, ACCESS_EXCLUSIVE)
    mark = {"keys": [asdict(key) for key in weak]}
    sql = [
        f"LOCK TABLE {table.sql} IN ACCESS EXCLUSIVE MODE",
        *_taken(belongings.triggers, table.sql),
        *_taken((made for made in belongings.made if made.what in _TAKEN_THERE), table.sql),
        f"ALTER TABLE {table.sql} RENAME TO {identifier(wish.legacy)}",
    ]
    for key in own_keys(belongings):
        name = kept_name(key.name)
        if key in weak:
            sql += _replaced(legacy, table.schema, key.name, key, name)
        else:
            sql.append(f"ALTER INDEX {qualified(table.schema, key.name)} RENAME TO {identifier(name)}")
    sql += [
        f"ALTER INDEX {qualified(table.schema, name)} RENAME TO {identifier(kept_name(name))}"
        for name, _definition in belongings.indexes
    ]
    without = "EXCLUDING INDEXES EXCLUDING IDENTITY EXCLUDING STATISTICS"
    like = f"CREATE TABLE {table.sql} (LIKE {legacy} INCLUDING ALL {without})"
    sql.append(f"{like} PARTITION BY RANGE ({identifier(wish.column)})")
    sql.append(f"ALTER TABLE {table.sql} DROP CONSTRAINT {BOUND}")
    if table.user != table.owner:
        sql.append(f"ALTER TABLE {table.sql} OWNER TO {identifier(table.owner)}")
    sql += _identities(belongings.identities, old=legacy, new=table.sql, schema=table.schema)
    sql += _sequences(belongings, table.sql)
    for key in own_keys(belongings):
        columns = (*key.columns, wish.column)
        if key in weak and key.kind:
            sql.append(_add(table.sql, key, f"{_KINDS[key.kind]} ({_quoted(columns)})"))
        elif key in weak:
            sql.append(f"CREATE UNIQUE INDEX {identifier(key.name)} ON {table.sql} ({_quoted(columns)})")
        else:
            sql.append(
                _add(table.sql, key, key.definition) if key.kind else _index(table.sql, key.name, key.definition)
            )
    sql += [_index(table.sql, name, definition) for name, definition in belongings.indexes]
    statements = [*_locked(belongings), Statement(sql[0], (exclusive,)), *(Statement(one) for one in sql[1:])]
    for foreign in table.foreign_keys:
        add = f"ALTER TABLE {table.sql} ADD CONSTRAINT {identifier(foreign.name)} {foreign.definition}"
        statements.append(Statement(add, (Lock(foreign.referenced, SHARE_ROW_EXCLUSIVE),)))
    statements += [Statement(made.make) for made in (*belongings.made, *belongings.triggers)]
    statements += _views(belongings)
    attach = f"ALTER TABLE {table.sql} ATTACH PARTITION {legacy} FOR VALUES {bounds}"
    after = [
        f"ALTER TABLE {legacy} DROP CONSTRAINT {BOUND}",
        f"COMMENT ON TABLE {legacy} IS {literal(MARK + json.dumps(mark, sort_keys=True))}",
    ]
    return Transaction(
        f"cut over {table.name}",
        f"{table.full_name} becomes {wish.legacy}, the first partition of a new {table.full_name}",
        (*statements, Statement(attach, _referenced(table)), *(Statement(one) for one in after)),
    )


# ----------------------------------------------------------------------------------------------------------------- back


@dataclass(frozen=True)
class Legacy:
    """The partition that was the plain table. ``keys``: as they were; ``belongings``: its own now."""

    partition: Partition
    keys: tuple[UniqueKey, ...]
    belongings: Belongings


def legacy_of(partition: Partition, belongings: Belongings) -> Legacy:
    """Its comment is the mark."""
    noted = json.loads(belongings.comment[len(MARK) :])
    keys = tuple(UniqueKey(**{**key, "columns": tuple(key["columns"])}) for key in noted["keys"])
    return Legacy(partition, keys, belongings)


def check_way_back(
    table: PartitionedTable, inhabited: Sequence[str], belongings: Belongings, legacy: Legacy
) -> list[Check]:
    """``inhabited``: the other partitions that hold rows."""
    problems = [problem for problem in belongings.problems if not problem.startswith("it is a child")]
    problems += [problem for problem in legacy.belongings.problems if problem.endswith("refers to it")]
    if legacy.partition.schema != table.schema:
        problems.append(f"{legacy.partition.full_name} is in another schema")
    return [
        Check(
            "empty",
            "failed" if inhabited else "ok",
            f"partitions with rows, beside the one that was {table.full_name}: {', '.join(inhabited) or 'none'}",
            "no row is in another partition yet",
            "that row would be lost: the way back ends with the first row after the cut",
        ),
        Check(
            "dependents",
            "failed" if belongings.others or problems else "ok",
            f"{table.full_name}: {'; '.join((*belongings.others, *problems)) or 'nothing is in the way'}",
            "nothing depends on the partitioned table that would go with it",
            "drop them before and make them again afterwards",
        ),
    ]


def revert(table: PartitionedTable, belongings: Belongings, legacy: Legacy, found: Prepared) -> list[Transaction]:
    one = legacy.partition
    shared = Lock(one.full_name, SHARE_UPDATE_EXCLUSIVE, one.bytes)
    exclusive = Lock(one.full_name, ACCESS_EXCLUSIVE)
    work = []
    there = {key.name for key in legacy.belongings.keys}
    for key in (key for key in legacy.keys if kept_name(key.name) in there):  # the others were dropped meanwhile
        drop = Statement(f"DROP INDEX IF EXISTS {qualified(one.schema, built_name(key))}", (exclusive,))
        # While it is there rows have less freedom than they were given.
        work += [replace(step, undo=(drop,)) for step in _build(one, built_name(key), key.columns, found, shared)]
    return [*work, _cut_back(table, belongings, legacy)]


def _cut_back(table: PartitionedTable, belongings: Belongings, legacy: Legacy) -> Transaction:
    """What else the plain table still has of its own is older than what the partitioned one has now, and goes first."""
    one = legacy.partition
    gone = qualified(table.schema, gone_name(table))
    others = [child for child in table.partitions if child.oid != one.oid]
    names = [table.full_name, one.full_name, *(child.full_name for child in others)]
    locks = tuple(Lock(name, ACCESS_EXCLUSIVE) for name in names)
    empty = " OR ".join(f"EXISTS (SELECT FROM {child.sql})" for child in others) or "false"
    refusal = literal(f"a partition of {table.full_name} beside {one.name} holds a row by now")
    guard = f"BEGIN IF {empty} THEN RAISE USING MESSAGE = {refusal}; END IF; END"
    sql = [
        f"DO {literal(guard)}",
        f"ALTER TABLE {table.sql} DETACH PARTITION {one.sql}",
        f"ALTER TABLE {one.sql} OWNER TO {identifier(table.owner)}",
        *dict.fromkeys(_taken((made for made in legacy.belongings.made if made.what not in _KEPT_BACK), one.sql)),
        *_taken((made for made in belongings.made if made.what == "publication"), table.sql),
        f"ALTER TABLE {table.sql} RENAME TO {identifier(gone_name(table))}",
        f"ALTER TABLE {one.sql} RENAME TO {identifier(table.name)}",
        *_identities(belongings.identities, old=gone, new=table.sql, schema=table.schema),
        *_sequences(belongings, table.sql),
    ]
    last: list[str] = []
    weak = {kept_name(key.name): key for key in legacy.keys}
    for own in legacy.belongings.keys:
        if own.name in weak:
            key = weak[own.name]
            last += _replaced(table.sql, table.schema, own.name, key, key.name)
    last += [
        f"ALTER INDEX {qualified(table.schema, own)} RENAME TO {identifier(name)}"
        for own, name in legacy.belongings.index_parents
        if own not in weak
    ]
    renamed, there = _statistics_back(belongings, legacy)
    last += renamed
    last += [made.make for made in (*belongings.made, *belongings.triggers) if made not in there]
    if not any(made.what == "comment" for made in belongings.made):
        last.append(f"COMMENT ON TABLE {table.sql} IS NULL")
    lock = Statement(f"LOCK TABLE {table.sql} IN ACCESS EXCLUSIVE MODE", locks)
    return Transaction(
        f"cut back {table.name}",
        f"{one.full_name} is {table.full_name} again, and the partitioned table is dropped",
        (
            *_locked(belongings),
            lock,
            *(Statement(one) for one in sql),
            *_views(belongings),
            Statement(f"DROP TABLE {gone}", _referenced(table)),
            *(Statement(one) for one in last),
        ),
    )


# ----------------------------------------------------------------------------------------------------------------- both


def _statistics_back(belongings: Belongings, legacy: Legacy) -> tuple[list[str], list[Made]]:
    """The plain table's own extended statistics get their names again, or go; and what need not be made for that."""
    sql, there = [], []
    wanted = {_of(made): made for made in belongings.made if made.what == "extended statistics" and made.take}
    for own in legacy.belongings.made:
        if own.what == "extended statistics" and own.take:
            same = wanted.pop(_of(own), None)
            if same is None:
                sql.append(f"DROP STATISTICS {own.name}")
            else:
                sql.append(f"ALTER STATISTICS {own.name} RENAME TO {identifier(same.short)}")
                there.append(same)
    return sql, there


def _of(made: Made) -> str:
    """What extended statistics are of: their definition without their name and the table's."""
    return made.make[len(f"CREATE STATISTICS {made.name} ") :].rsplit(" FROM ", 1)[0]


def _referenced(table: PartitionedTable) -> tuple[Lock, ...]:
    """A foreign key that becomes part of another one, or goes, has triggers on the table that it refers to."""
    return tuple(Lock(key.referenced, ACCESS_EXCLUSIVE) for key in table.foreign_keys)


def _locked(belongings: Belongings) -> list[Statement]:
    """The views before their table, as queries lock them: a query that has the one and waits for the other would keep
    us waiting. LOCK TABLE would lock whatever else a view is made of."""
    return [Statement(view.take, (Lock(view.name, ACCESS_EXCLUSIVE),)) for view in belongings.views]


def _views(belongings: Belongings) -> list[Statement]:
    return [Statement(view.make) for view in belongings.views]


def _columns(columns: Iterable[str]) -> str:
    return ", ".join(columns)


def _quoted(columns: Iterable[str]) -> str:
    return ", ".join(identifier(column) for column in columns)


def _taken(made: Iterable[Made], old: str) -> list[str]:
    return [one.take.replace("{old}", old) for one in made if one.take]


def _add(table: str, key: UniqueKey, definition: str) -> str:
    return f"ALTER TABLE {table} ADD CONSTRAINT {identifier(key.name)} {definition}"


def _index(table: str, name: str, definition: str) -> str:
    unique = "UNIQUE " if definition.startswith("UNIQUE ") else ""
    return f"CREATE {unique}INDEX {identifier(name)} ON {table} USING {definition[len(unique) :]}"


def _replaced(table: str, schema: str, old: str, key: UniqueKey, new: str) -> list[str]:
    """The key that is called ``old`` gives way to the index that was built for it, which is called ``new`` then."""
    built = built_name(key)
    if not key.kind:
        rename = f"ALTER INDEX {qualified(schema, built)} RENAME TO {identifier(new)}"
        return [f"DROP INDEX {qualified(schema, old)}", rename]
    return [
        f"ALTER TABLE {table} DROP CONSTRAINT {identifier(old)}",
        f"ALTER TABLE {table} ADD CONSTRAINT {identifier(new)} {_KINDS[key.kind]} USING INDEX {identifier(built)}",
    ]


def _identities(identities: Iterable[Identity], *, old: str, new: str, schema: str) -> list[str]:
    """A table that becomes a partition may have none of its own (17), and the new one goes on where it stood."""
    sql = []
    for one in identities:
        sql += [
            f"ALTER SEQUENCE {one.sequence} RENAME TO {identifier(aside(one))}",
            f"ALTER TABLE {new} ALTER COLUMN {identifier(one.column)} ADD GENERATED"
            f" {'ALWAYS' if one.always else 'BY DEFAULT'} AS IDENTITY (SEQUENCE NAME {one.sequence} {one.options})",
            f"SELECT setval({literal(one.sequence)}, last_value, is_called) FROM {qualified(schema, aside(one))}",  # noqa: S608
            f"ALTER TABLE {old} ALTER COLUMN {identifier(one.column)} DROP IDENTITY",
            *one.granted,
        ]
    return sql


def _sequences(belongings: Belongings, new: str) -> list[str]:
    return [
        f"ALTER SEQUENCE {sequence} OWNED BY {new}.{identifier(column)}" for sequence, column in belongings.sequences
    ]
