# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the catalog says of a partitioned table: SQL text in, dataclasses out. Works on 13 to 18.

The session prints names with their schema and times in UTC (see _runners/table_work.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .client import Session
from .partition_keys import Key, Window
from .quoting import identifier, literal, qualified

BOUND = "dbops_bound"
"""Name of the CHECK constraint on a table that is made to become a partition; it is gone once it is one. So a table
that has it and is no partition is what a killed run left."""
GUARD = "dbops_guard"
"""Name of the CHECK constraint on a default partition that spares ATTACH its scan."""

MARK = "dbops: "
"""Begins the comment of a partition that is to be detached, or was; JSON follows. A comment survives a rename."""
READ_ONLY = "dbops_read_only"
"""Name of the trigger, and of its function, that keep a detached table as it is."""


SHADOW = "_dbops_shadow"
"""Ends the name of the table that a default partition is rebuilt in, and of the functions that keep it up to date."""
MIRROR = "dbops_mirror"
"""Name of the triggers on a default partition that is being rebuilt. Triggers fire in the order of their names."""


@dataclass(frozen=True)
class ForeignKey:
    """``table`` refers to ``referenced``; both as schema.name. ``definition``: what follows the constraint's name."""

    name: str
    table: str
    referenced: str
    definition: str = ""


@dataclass(frozen=True)
class Grant:
    grantee: str
    privilege: str
    grantable: bool


@dataclass(frozen=True)
class Partition:
    """A direct child. ``bound`` as the server prints it; ``rows`` the planner's estimate, -1 where there is none;
    ``bytes`` with indexes and TOAST, of the whole tree below it; ``kind`` r, p (partitioned itself) or f (foreign);
    ``relations``: it and all below it, as (schema, name); ``foreign_keys``: its own, as it has them of the table."""

    oid: int
    schema: str
    name: str
    kind: str
    bound: str
    pending: bool
    rows: int
    bytes: int
    relations: tuple[tuple[str, str], ...] = ()
    grants: tuple[Grant, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    may_act_as_owner: bool = True

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def sql(self) -> str:
        return qualified(self.schema, self.name)


@dataclass(frozen=True)
class Detached:
    """A table that was a partition, by the mark in its comment. ``table`` has the bound it had; ``detached_at``: Unix
    time; ``blocked``: nobody can write into it; ``archive``: its copy as Archive.as_dict has it, None without one."""

    table: Partition
    detached_at: int
    blocked: bool
    archive: dict[str, Any] | None = None


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    not_null: bool
    generated: bool = False


@dataclass(frozen=True)
class PartitionedTable:
    """``strategy``: range, list, hash. ``key``: its columns, None for an expression."""

    oid: int
    schema: str
    name: str
    owner: str
    strategy: str
    key: tuple[Column | None, ...]
    columns: tuple[Column, ...]
    replica_identity: str
    partitions: tuple[Partition, ...]
    foreign_keys: tuple[ForeignKey, ...] = ()
    referencing: tuple[ForeignKey, ...] = ()
    primary_key: tuple[Column, ...] = ()
    publications: tuple[str, ...] = ()
    """Those that publish the table, or a partition of it, under the names of the partitions."""
    publishing_new: tuple[str, ...] = ()
    """Those that publish whatever table is made in the schema."""
    row_triggers: tuple[str, ...] = ()
    """Of the table and of its default partition."""
    default_grantees: tuple[str, ...] = ()
    """Who would get privileges of a new partition by the user's default privileges, past the table's row security."""
    partman: bool | None = False
    """Whether pg_partman manages the table; None where the user may not read that."""
    may_act_as_owner: bool = True
    user: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def sql(self) -> str:
        return qualified(self.schema, self.name)

    @property
    def default(self) -> Partition | None:
        return next((child for child in self.partitions if child.bound == "DEFAULT"), None)


@dataclass(frozen=True)
class DefaultRows:
    """What is in a default partition. ``lo``, ``hi``: its least and greatest key, None where it has no row with a
    key. ``within``: rows of each partition asked for, by its name, counted up to the limit that was given."""

    lo: int | None = None
    hi: int | None = None
    nulls: bool = False
    within: tuple[tuple[str, int], ...] = ()
    constraints: tuple[str, ...] = ()
    bound: str = ""
    """What must be true of a row of it, as an expression."""
    mirrored: bool = False
    """It has the triggers of a rebuilding that was begun."""

    def rows(self, name: str) -> int:
        return dict(self.within).get(name, 0)


@dataclass(frozen=True)
class Namesake:
    """A relation that is no partition of the table and has a name that one is to get. ``leftover``: ours, and empty."""

    name: str
    leftover: bool


_TABLE = """
SELECT c.oid::bigint, nspname AS schema, relname AS name, pg_get_userbyid(relowner) AS owner, relkind::text AS kind,
       partstrat::text AS strategy, relreplident::text AS replica_identity, partattrs::text AS attributes,
       pg_has_role(relowner, 'USAGE') AS may_act_as_owner, current_user::text AS "user",
       ARRAY(SELECT DISTINCT tgname::text FROM pg_trigger
              WHERE tgrelid IN (c.oid, partdefid) AND NOT tgisinternal AND tgtype & 1 = 1 AND tgname NOT LIKE 'dbops%%'
              ORDER BY 1) AS row_triggers,
       ARRAY(SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
               FROM pg_default_acl, aclexplode(defaclacl)
              WHERE relrowsecurity AND pg_get_userbyid(defaclrole) = current_user AND defaclobjtype = 'r'
                    AND defaclnamespace IN (0, relnamespace) AND grantee NOT IN (defaclrole, relowner)
              ORDER BY 1) AS default_grantees
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace LEFT JOIN pg_partitioned_table ON partrelid = c.oid
 WHERE nspname = %s AND relname = %s
"""

_COLUMNS = """
SELECT attnum, attname::text AS name, format_type(atttypid, NULL) AS type, attnotnull AS not_null,
       attgenerated <> '' AS generated
  FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""

_RELATION = """
       c.oid::bigint, nspname::text AS schema, relname::text AS name, relkind::text AS kind,
       pg_has_role(relowner, 'USAGE') AS may_act_as_owner,
       coalesce(size.rows, -1)::bigint AS rows, coalesce(size.bytes, 0)::bigint AS bytes,
       coalesce(size.relations, jsonb_build_array(jsonb_build_array(nspname, relname))) AS relations,
       (SELECT jsonb_agg(jsonb_build_object(
                  'grantee', CASE grantee WHEN 0 THEN 'public' ELSE quote_ident(pg_get_userbyid(grantee)) END,
                  'privilege', privilege_type, 'grantable', is_grantable))
          FROM aclexplode(relacl) WHERE grantee <> relowner) AS grants,
       (SELECT jsonb_agg(jsonb_build_object('name', conname, 'table', conrelid::regclass::text,
                                            'referenced', confrelid::regclass::text) ORDER BY conname)
          FROM pg_constraint WHERE conrelid = c.oid AND contype = 'f') AS foreign_keys
"""
_TREE = """
  LEFT JOIN LATERAL (
       SELECT sum(leaf.reltuples) FILTER (WHERE isleaf AND leaf.reltuples >= 0) AS rows,
              sum(pg_total_relation_size(leaf.oid)) FILTER (WHERE isleaf) AS bytes,
              jsonb_agg(jsonb_build_array(n.nspname, leaf.relname) ORDER BY level, leaf.oid) AS relations
         FROM pg_partition_tree(c.oid) JOIN pg_class leaf ON leaf.oid = relid
         JOIN pg_namespace n ON n.oid = leaf.relnamespace) size ON true
"""

_CHILDREN = f"""
SELECT pg_get_expr(relpartbound, c.oid) AS bound, {{pending}} AS pending, {_RELATION}
  FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid JOIN pg_namespace n ON n.oid = relnamespace {_TREE}
 WHERE inhparent = %s ORDER BY relname
"""  # noqa: S608  constants of this file

_PRIMARY_KEY = """
SELECT attnum FROM pg_index, unnest(indkey) WITH ORDINALITY AS key (attnum, position)
 WHERE indrelid = %s AND indisprimary ORDER BY position
"""

_FOREIGN_KEYS = """
SELECT conname::text AS name, conrelid::regclass::text AS table, confrelid::regclass::text AS referenced,
       pg_get_constraintdef(oid) AS definition, confrelid = %s AS incoming
  FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND (conrelid = %s OR confrelid = %s) ORDER BY conname
"""

# Without publish_via_partition_root changes carry the partition's name, and a subscriber has to have a table of it.
_PUBLICATIONS = """
SELECT DISTINCT pubname::text AS name FROM pg_publication p
 WHERE NOT pubviaroot AND (puballtables OR EXISTS (
       SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid IN (
              SELECT relid::oid FROM pg_partition_tree(%s) UNION SELECT relid::oid FROM pg_partition_ancestors(%s)))
       {schemas})
 ORDER BY 1
"""
_PUBLICATION_SCHEMAS = """OR EXISTS (
       SELECT FROM pg_publication_namespace s JOIN pg_class c ON c.relnamespace = s.pnnspid
        WHERE s.pnpubid = p.oid AND c.oid IN (SELECT relid::oid FROM pg_partition_tree(%s)))"""

_NAMESAKES = """
SELECT relname::text AS name, relkind IN ('r', 'p') AND NOT relispartition AND EXISTS (
       SELECT FROM pg_constraint WHERE conrelid = c.oid AND conname = %s) AS ours
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
 WHERE nspname = %s AND relname = ANY(%s)
   AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid AND inhparent IN (%s, to_regclass(%s)))
"""


def read_table(session: Session, schema: str, name: str) -> PartitionedTable | None:
    """None where there is no such relation; ``strategy`` is empty where it is not partitioned."""
    rows = session.rows(_TABLE, [schema, name])
    if not rows:
        return None
    row = rows[0]
    oid = row["oid"]
    columns = {
        item["attnum"]: Column(item["name"], item["type"], item["not_null"], item["generated"])
        for item in session.rows(_COLUMNS, [oid])
    }
    attributes = [int(number) for number in (row["attributes"] or "").split()]
    keys = session.rows(_FOREIGN_KEYS, [oid, oid, oid])
    return PartitionedTable(
        oid=oid,
        schema=row["schema"],
        name=row["name"],
        owner=row["owner"],
        strategy={"r": "range", "l": "list", "h": "hash"}.get(row["strategy"], ""),
        key=tuple(columns.get(number) for number in attributes),
        columns=tuple(columns.values()),
        replica_identity=row["replica_identity"],
        partitions=_children(session, oid),
        foreign_keys=tuple(_foreign_key(item) for item in keys if not item["incoming"]),
        referencing=tuple(_foreign_key(item) for item in keys if item["incoming"]),
        primary_key=tuple(columns[row["attnum"]] for row in session.rows(_PRIMARY_KEY, [oid])),
        publications=_publications(session, oid),
        publishing_new=_publishing_new(session, schema),
        row_triggers=tuple(row["row_triggers"]),
        default_grantees=tuple(row["default_grantees"]),
        partman=_partman(session, schema, name),
        may_act_as_owner=row["may_act_as_owner"],
        user=row["user"],
    )


def _children(session: Session, oid: int) -> tuple[Partition, ...]:
    pending = "inhdetachpending" if session.raw.server_version >= 140000 else "false"
    return tuple(_partition(row) for row in session.rows(_CHILDREN.format(pending=pending), [oid]))


def _partition(row: dict[str, Any]) -> Partition:
    words = {
        **row,
        "relations": tuple((schema, name) for schema, name in row["relations"]),
        "grants": tuple(Grant(**grant) for grant in row["grants"] or ()),
        "foreign_keys": tuple(ForeignKey(**key) for key in row["foreign_keys"] or ()),
    }
    return Partition(**words)


def _foreign_key(row: dict[str, Any]) -> ForeignKey:
    return ForeignKey(row["name"], row["table"], row["referenced"], row["definition"])


def _publications(session: Session, oid: int) -> tuple[str, ...]:
    by_schema = session.raw.server_version >= 150000
    statement = _PUBLICATIONS.format(schemas=_PUBLICATION_SCHEMAS if by_schema else "")
    return tuple(row["name"] for row in session.rows(statement, [oid] * (3 if by_schema else 2)))


def _publishing_new(session: Session, schema: str) -> tuple[str, ...]:
    statement = "SELECT pubname::text AS name FROM pg_publication WHERE puballtables"
    parameters = []
    if session.raw.server_version >= 150000:
        statement += """
 UNION SELECT pubname::text FROM pg_publication p JOIN pg_publication_namespace ON pnpubid = p.oid
        WHERE pnnspid = %s::regnamespace"""
        parameters = [identifier(schema)]
    return tuple(sorted(row["name"] for row in session.rows(statement, parameters or None)))


def _partman(session: Session, schema: str, name: str) -> bool | None:
    """Whether pg_partman manages the table; None where the user may not read its configuration."""
    installed = session.rows(
        """SELECT nspname::text AS schema,
                  has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS readable
             FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
                  JOIN pg_class c ON relnamespace = n.oid AND relname = 'part_config'
            WHERE extname = 'pg_partman'"""
    )
    if not installed:
        return False
    if not installed[0]["readable"]:
        return None
    where = qualified(installed[0]["schema"], "part_config")
    statement = f"SELECT EXISTS (SELECT FROM {where} WHERE parent_table = %s)"  # noqa: S608  a quoted identifier
    return bool(session.value(statement, [f"{schema}.{name}"]))


def read_default(
    session: Session,
    default: Partition,
    key: Key | None,
    column: str,
    wanted: Sequence[tuple[str, str, Window | None]],
    *,
    limit: int,
) -> DefaultRows:
    """Its extent, where the key has an order, and for each (name, which rows, window) how many rows; no more than
    ``limit`` are counted. Reads the table without a lock that anybody would notice; without an index on the key all of
    it is read."""
    name = identifier(column)
    # There is no min(uuid), and where there is an index this is as fast.
    # And a bare name in ORDER BY would be that of the output, which is text: 999 would come after 12000.
    end = f"SELECT {name}::text FROM {default.sql} AS t WHERE {name} IS NOT NULL ORDER BY t.{name}"  # noqa: S608  quoted identifiers
    nulls = f"EXISTS (SELECT FROM {default.sql} WHERE {name} IS NULL)"
    extent = session.rows(f"SELECT ({end} LIMIT 1) AS lo, ({end} DESC LIMIT 1) AS hi, {nulls} AS nulls")[0]
    lo, hi = (None if key is None or extent[side] is None else key.parse(extent[side]) for side in ("lo", "hi"))
    span = None if lo is None or hi is None else Window(lo, hi + 1)
    inhabited = [
        (item, where)
        for item, where, window in wanted
        if window is None or (span is not None and window.overlaps(span))
    ]
    return DefaultRows(
        lo=lo,
        hi=hi,
        nulls=extent["nulls"],
        within=tuple((item, _count(session, default, where, limit)) for item, where in inhabited),
        constraints=tuple(
            row["name"]
            for row in session.rows(
                "SELECT conname::text AS name FROM pg_constraint WHERE conrelid = %s AND contype = 'c'", [default.oid]
            )
        ),
        bound=session.value("SELECT pg_get_partition_constraintdef(%s)", [default.oid]) or "",
        mirrored=bool(
            session.value(
                "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = %s AND tgname LIKE %s)",
                [default.oid, MIRROR + "%"],
            )
        ),
    )


def _count(session: Session, table: Partition, where: str, limit: int) -> int:
    statement = f"SELECT count(*) FROM (SELECT FROM {table.sql} WHERE {where} LIMIT {limit:d}) AS found"  # noqa: S608  quoted identifiers and literals
    return int(session.value(statement))


def condition(key: Key, column: str, window: Window) -> str:
    """Rows within a window; ``column`` is quoted already."""
    parts = []
    if not isinstance(window.lo, float):
        parts.append(f"{column} >= {key.sql(window.lo)}")
    if not isinstance(window.hi, float):
        parts.append(f"{column} < {key.sql(window.hi)}")
    return " AND ".join(parts) or "true"


def read_namesakes(session: Session, table: PartitionedTable, names: list[str], shadow: str) -> tuple[Namesake, ...]:
    """Relations in the table's schema that stand where a partition is to be made; not those below ``shadow``, which
    goes before."""
    found = session.rows(_NAMESAKES, [BOUND, table.schema, names, table.oid, qualified(table.schema, shadow)])
    return tuple(Namesake(row["name"], row["ours"] and _is_empty(session, table.schema, row["name"])) for row in found)


def _is_empty(session: Session, schema: str, name: str) -> bool:
    return session.value(f"SELECT EXISTS (SELECT FROM {qualified(schema, name)})") is False  # noqa: S608  quoted identifier


def read_clock(session: Session) -> int:
    """The server's time, in microseconds since 1970 UTC."""
    return int(session.value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"))


def read_leftovers(session: Session, table: PartitionedTable) -> tuple[str, ...]:
    """Tables in the table's schema that were made to become a partition and are none, as schema.name."""
    rows = session.rows(
        """SELECT conrelid::regclass::text AS name FROM pg_constraint JOIN pg_class c ON c.oid = conrelid
            WHERE conname = %s AND relnamespace = %s::regnamespace AND NOT relispartition ORDER BY 1""",
        [BOUND, identifier(table.schema)],
    )
    return tuple(row["name"] for row in rows)


def read_greatest(session: Session, table: PartitionedTable, column: str) -> int | None:
    """The greatest value of an integer key, None in an empty table."""
    value = session.value(f"SELECT max({identifier(column)}) FROM {table.sql}")  # noqa: S608  quoted identifiers
    return None if value is None else int(value)


_MARKED = f"""
SELECT description, NOT EXISTS (
         SELECT FROM pg_class leaf WHERE (leaf.oid = c.oid OR leaf.oid IN (SELECT relid FROM pg_partition_tree(c.oid)))
            AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = leaf.oid AND tgname = %s AND tgenabled = 'A')
       ) AS blocked, {_RELATION}
  FROM pg_description JOIN pg_class c ON c.oid = objoid JOIN pg_namespace n ON n.oid = c.relnamespace {_TREE}
 WHERE classoid = 'pg_class'::regclass AND objsubid = 0 AND description LIKE %s AND NOT relispartition ORDER BY c.oid
"""  # noqa: S608  constants of this file


def read_detached(session: Session, table: PartitionedTable) -> tuple[Detached, ...]:
    """Tables that were partitions of the table, by the mark in their comment."""
    found = []
    for row in session.rows(_MARKED, [READ_ONLY, MARK + "%"]):
        mark = json.loads(row.pop("description")[len(MARK) :])
        blocked = row.pop("blocked")
        if mark["partition_of"] == table.full_name:
            partition = _partition({**row, "bound": mark["bound"], "pending": False})
            found.append(Detached(partition, mark["detached_at"], blocked, mark.get("archive")))
    return tuple(found)


def mark(table: PartitionedTable, partition: Partition, now_us: int) -> str:
    """The statement that marks a partition as one to be detached."""
    return _mark(table, partition, {"detached_at": now_us // 1_000_000})


def mark_archived(table: PartitionedTable, one: Detached, archive: dict[str, Any]) -> str:
    """The statement that notes the copy of a detached table."""
    return _mark(table, one.table, {"detached_at": one.detached_at, "archive": archive})


def _mark(table: PartitionedTable, partition: Partition, words: dict[str, Any]) -> str:
    text = json.dumps({"partition_of": table.full_name, "bound": partition.bound, **words})
    return f"COMMENT ON TABLE {partition.sql} IS {literal(MARK + text)}"
