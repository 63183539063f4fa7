# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a comparison has to know of a table on one side: columns and their types, keys, order, statistics. 13 to 18."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .client import Session
from .quoting import qualified
from .row_hash import Column

OWN_SCHEMA = "dbops"

_TABLES = """
SELECT nspname::text AS schema, relname::text AS name
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind IN ('r', 'p') AND relpersistence <> 't' AND (NOT relispartition OR %(partitions)s)
   AND nspname NOT IN ('pg_catalog', 'information_schema', %(own)s) AND nspname NOT LIKE 'pg\\_toast%%'
 ORDER BY 1, 2
"""

_TABLE = """
SELECT pg_class.oid::bigint AS oid, relkind::text AS kind, relpersistence::text AS persistence,
       relkind = 'r' AND relhassubclass AS inherited,
       has_schema_privilege(relnamespace, 'USAGE') AS usable,
       CASE WHEN relkind = 'p' THEN (SELECT sum(greatest(leaf.reltuples, 0)) FROM pg_partition_tree(pg_class.oid)
                                       JOIN pg_class leaf ON leaf.oid = relid AND isleaf)
            ELSE greatest(reltuples, 0) END::bigint AS rows,
       CASE WHEN relkind = 'p' THEN (SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(pg_class.oid)
                                      WHERE isleaf)
            ELSE pg_relation_size(pg_class.oid) END::bigint AS bytes
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE nspname = %s AND relname = %s AND relkind IN ('r', 'p')
"""

_COLUMNS = """
WITH RECURSIVE under (attnum, oid, typtype, typbasetype) AS (
    SELECT attnum, pg_type.oid, typtype, typbasetype FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
     WHERE attrelid = %(oid)s::oid AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT attnum, pg_type.oid, pg_type.typtype, pg_type.typbasetype
      FROM under JOIN pg_type ON pg_type.oid = under.typbasetype WHERE under.typtype = 'd'
)
SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type, base.typname::text AS base,
       base.oid::bigint AS base_oid, base.typtype::text AS kind,
       coalesce(element.typname::text, '') AS element, coalesce(element.oid, 0)::bigint AS element_oid,
       base.typsend <> 0 AND coalesce(element.typsend <> 0, true) AS sendable,
       (SELECT proname::text FROM pg_proc WHERE pg_proc.oid = base.typsend) AS send, attcollation <> 0 AS collatable,
       attnotnull AND NOT EXISTS (  -- since 18 it may not be validated yet
         SELECT FROM pg_constraint WHERE conrelid = attrelid AND contype = 'n' AND conkey = ARRAY[attnum]
                                     AND NOT convalidated) AS not_null, attgenerated <> '' AS generated,
       atttypid <> base.oid AS domain,
       has_column_privilege(attrelid, attnum, 'SELECT') AS readable
  FROM pg_attribute JOIN under USING (attnum) JOIN pg_type AS base ON base.oid = under.oid AND under.typtype <> 'd'
       LEFT JOIN pg_type AS element ON element.typarray = base.oid
 WHERE attrelid = %(oid)s::oid
 ORDER BY attname COLLATE "C"
"""

_KEYS = """
SELECT ARRAY(SELECT attname::text FROM unnest(indkey::int2[]) WITH ORDINALITY AS key (number, position)
                    JOIN pg_attribute ON attrelid = indrelid AND attnum = number
              WHERE position <= indnkeyatts ORDER BY position) AS columns
  FROM pg_index
 WHERE indrelid = %s::oid AND indisunique AND indisvalid AND indimmediate AND indpred IS NULL AND indexprs IS NULL
   AND NOT EXISTS (SELECT FROM unnest(indkey::int2[]) WITH ORDINALITY AS key (number, position)
                          JOIN pg_attribute ON attrelid = indrelid AND attnum = number
                    WHERE position <= indnkeyatts AND NOT attnotnull)
 ORDER BY indisprimary DESC, indisreplident DESC, indnkeyatts, indexrelid
"""

# C, and what orders as C does; otherwise provider, locale and the version of the library that orders by it, where the
# server knows it.
_ORDERS = """
SELECT attname::text AS name, collisdeterministic AS deterministic,
       CASE WHEN provider = 'b' AND locale IN ('C', 'C.UTF-8') OR locale IN ('C', 'POSIX') THEN 'C'
            WHEN version IS NULL THEN '' ELSE concat_ws(' ', provider, locale, version) END AS sorts
  FROM (SELECT attname, attnum, collisdeterministic,
               CASE WHEN collprovider = 'd' THEN coalesce(db ->> 'datlocprovider', 'c') ELSE collprovider::text
                END AS provider,
               CASE WHEN collname = 'ucs_basic' THEN 'C'
                    WHEN collprovider = 'd' THEN coalesce(db ->> 'datlocale', db ->> 'daticulocale', db ->>
                    'datcollate') ELSE coalesce(coll ->> 'colllocale', coll ->> 'colliculocale', coll ->>
                    'collcollate') END AS locale,
               CASE WHEN collprovider = 'd' THEN {database_version} ELSE pg_collation_actual_version(coll_oid)
                END AS version
          FROM (SELECT attname, attnum, pg_collation.*, pg_collation.oid AS coll_oid, to_jsonb(pg_collation) AS coll,
                       to_jsonb(pg_database) AS db, pg_database.oid AS db_oid
                  FROM pg_attribute JOIN pg_collation ON pg_collation.oid = attcollation, pg_database
                 WHERE attrelid = %(oid)s::oid AND attname = ANY(%(names)s) AND datname = current_database()) AS read
       ) AS found
"""

_STATISTICS = """
SELECT n_distinct, correlation, histogram_bounds::text::text[] AS bounds
  FROM pg_stats WHERE schemaname = %s AND tablename = %s AND attname = %s ORDER BY inherited DESC LIMIT 1
"""


@dataclass(frozen=True)
class TableFacts:
    """``keys``: columns of each usable unique key, the best first; ``inherited``: other tables' rows are among its
    rows; ``rows`` and ``bytes``: by the statistics."""

    schema: str
    name: str
    oid: int
    kind: str
    persistence: str
    inherited: bool
    rows: int
    bytes: int
    columns: tuple[Column, ...]
    unreadable: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def sql(self) -> str:
        return qualified(self.schema, self.name)

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True)
class KeyOrder:
    """``sorts``: under which order, equal on two sides if they order alike; empty where that is not known."""

    sorts: str
    deterministic: bool


@dataclass(frozen=True)
class Statistics:
    """Of one column, as pg_stats has them. ``bounds``: as text, may be empty."""

    n_distinct: float = 0.0
    correlation: float | None = None
    bounds: tuple[str, ...] = ()


def list_tables(session: Session, *, partitions: bool = False) -> list[tuple[str, str]]:
    """Schema and name of every table that users made; partitions only where they are asked for."""
    rows = session.rows(_TABLES, {"partitions": partitions, "own": OWN_SCHEMA})
    return [(row["schema"], row["name"]) for row in rows]


def read_table(session: Session, schema: str, name: str) -> TableFacts | None:
    """None where there is no such table."""
    rows = session.rows(_TABLE, [schema, name])
    if not rows:
        return None
    row = rows[0]
    columns = session.rows(_COLUMNS, {"oid": row["oid"]})
    unreadable = [one["name"] for one in columns if not (one.pop("readable") and row["usable"])]
    keys = session.rows(_KEYS, [row["oid"]])
    return TableFacts(
        schema,
        name,
        row["oid"],
        row["kind"],
        row["persistence"],
        row["inherited"],
        row["rows"] or 0,
        row["bytes"] or 0,
        tuple(Column(**one) for one in columns),
        tuple(unreadable),
        tuple(tuple(one["columns"]) for one in keys),
    )


def read_orders(session: Session, oid: int, names: list[str]) -> dict[str, KeyOrder]:
    """By name, of those columns that have a collation."""
    version = "pg_database_collation_actual_version(db_oid)" if session.raw.server_version >= 150000 else "NULL"
    rows = session.rows(_ORDERS.format(database_version=version), {"oid": oid, "names": names})
    return {row["name"]: KeyOrder(row["sorts"], row["deterministic"]) for row in rows}


def read_statistics(session: Session, table: TableFacts, column: str) -> Statistics:
    rows: list[dict[str, Any]] = session.rows(_STATISTICS, [table.schema, table.name, column])
    if not rows:
        return Statistics()
    return Statistics(rows[0]["n_distinct"], rows[0]["correlation"], tuple(rows[0]["bounds"] or ()))
