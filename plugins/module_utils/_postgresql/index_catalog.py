# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Indexes of a table and of its partitions as the catalog has them, and what a wanted one would look like there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .._core.errors import DbopsError
from .client import Session
from .ddl import blockers
from .index_plan import Index, Table, Tree, Wanted, all_names
from .locks import ACCESS_SHARE, Lock
from .quoting import identifier, qualified

LOCK_SECONDS = 2  # what reading sizes waits for somebody who has a table to himself

# Partitions on their way out (DETACH CONCURRENTLY, 14 and newer) belong to the whole no longer.
_TABLES = """
WITH RECURSIVE tree AS (
    SELECT pg_class.oid, 0::oid AS parent, ARRAY[relname::text] AS path
      FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE nspname = %s AND relname = %s AND relkind NOT IN ('i', 'I', 'S', 't', 'c')
    UNION ALL
    SELECT child.oid, inhparent, path || child.relname::text
      FROM tree JOIN pg_class AS above ON above.oid = tree.oid AND above.relkind = 'p'
           JOIN pg_inherits ON inhparent = tree.oid
           JOIN pg_class AS child ON child.oid = inhrelid
     WHERE coalesce((to_jsonb(pg_inherits) ->> 'inhdetachpending')::boolean, false) = false
)
SELECT tree.oid::bigint, tree.parent::bigint, nspname AS schema, relname AS name, relkind::text AS kind,
       CASE WHEN relkind IN ('r', 'm') THEN pg_relation_size(tree.oid) ELSE 0 END AS bytes,
       greatest(reltuples, 0)::float AS rows,
       pg_has_role(relowner, 'USAGE') AND has_schema_privilege(nspname, 'CREATE') AS may,
       ARRAY(SELECT coalesce(attname, '')::text
               FROM pg_partitioned_table, unnest(partattrs::int2[]) WITH ORDINALITY AS key(attnum, position)
                    LEFT JOIN pg_attribute ON attrelid = tree.oid AND pg_attribute.attnum = nullif(key.attnum, 0)
              WHERE partrelid = tree.oid ORDER BY position) AS key
  FROM tree JOIN pg_class USING (oid) JOIN pg_namespace ON pg_namespace.oid = relnamespace
 ORDER BY path
"""

# pg_get_indexdef without the names in front. They are cut off by their length: what is left is the server's own text.
_INDEXES = """
SELECT indexrelid::bigint AS oid, indrelid::bigint AS "table", nspname AS schema, own.relname AS name,
       indisvalid AND indisready AND indislive AS valid, coalesce(inhparent, 0)::bigint AS parent,
       CASE WHEN indisunique THEN 'UNIQUE ' ELSE '' END
       || CASE WHEN starts_with(text, prefix) THEN right(text, -length(prefix)) ELSE text END AS definition,
       (SELECT spcname FROM pg_tablespace, pg_database
         WHERE datname = current_database()
           AND pg_tablespace.oid = coalesce(nullif(own.reltablespace, 0), dattablespace)) AS tablespace,
       coalesce((SELECT string_agg(format('%%I of %%s', conname, conrelid::regclass), ', ') FROM pg_constraint
                  WHERE conindid = indexrelid), '') AS "constraint",
       indisreplident AS replica_identity
  FROM pg_index JOIN pg_class AS own ON own.oid = indexrelid JOIN pg_class AS its ON its.oid = indrelid
       JOIN pg_namespace ON pg_namespace.oid = its.relnamespace
       LEFT JOIN pg_inherits ON inhrelid = indexrelid,
       pg_get_indexdef(indexrelid) AS text,
       format('CREATE %%sINDEX %%I ON %%s%%s.%%I USING ', CASE WHEN indisunique THEN 'UNIQUE ' ELSE '' END, own.relname,
              CASE own.relkind WHEN 'I' THEN 'ONLY ' ELSE '' END,
              CASE WHEN its.relpersistence = 't' THEN split_part(split_part(text, ' ON ', 2), '.', 1)
                   ELSE quote_ident(nspname) END, its.relname) AS prefix
 WHERE indrelid = ANY(%s::bigint[]::oid[])
 ORDER BY own.relname
"""

# Of other users' builds a login without pg_read_all_stats sees the pid alone.
_BUILDS = """
SELECT pid, index_relid::bigint AS index, application_name
  FROM pg_stat_progress_create_index JOIN pg_stat_activity USING (pid)
 WHERE pg_stat_progress_create_index.datname = current_database()
"""

_TAKEN = """
SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE relname = ANY(%s)
"""

# A concurrent build waits for every transaction of the database that may still see what the table was before. Not for
# automatic vacuums, and from 14 on not for other builds of plain columns.
_WAITS_FOR = """
SELECT pid, usename AS "user", application_name, coalesce(host(client_addr), 'local') AS client, state,
       coalesce(round(extract(epoch FROM now() - xact_start)), 0)::bigint AS transaction_s
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
       AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND backend_type <> 'autovacuum worker'
UNION ALL
SELECT 0, owner, 'prepared transaction ' || gid, '', 'prepared', round(extract(epoch FROM now() - prepared))::bigint
  FROM pg_prepared_xacts WHERE database = current_database()
 ORDER BY transaction_s DESC
"""

_WIDTHS = """
SELECT coalesce((SELECT avg_width FROM pg_stats
                  WHERE schemaname = %s AND tablename = %s AND pg_stats.attname = pg_attribute.attname LIMIT 1),
                nullif(attlen, -1), 32) AS width
  FROM pg_attribute WHERE attrelid = %s::bigint::oid AND attnum > 0
"""


def read_tree(session: Session, schema: str, name: str, index: str) -> tuple[Tree, float]:
    """The table with its partitions and all their indexes, for work on ``index``; and about how many rows there are.
    Raises DbopsError where there is no such table."""
    session.run("SELECT set_config('lock_timeout', %s, false)", [f"{LOCK_SECONDS}s"])
    try:
        tables = session.rows(_TABLES, [schema, name])
    except DbopsError as error:
        raise _held(session, schema, name, error) from error
    if not tables:
        raise DbopsError(
            found=f"there is no table {name} in schema {schema} of database {session.endpoint.dbname}",
            expected="a table, a partitioned table or a materialized view",
            remedy="correct table, schema or login_db",
        )
    indexes = _indexes(session, [row["oid"] for row in tables])
    tree = Tree(
        tables=tuple(
            Table(
                **{key: row[key] for key in ("oid", "parent", "schema", "name", "kind", "bytes", "may")},
                key=tuple(row["key"]),
                indexes=tuple(indexes.get(row["oid"], ())),
            )
            for row in tables
        ),
        version_num=session.raw.server_version,
    )
    taken = session.rows(_TAKEN, [all_names(tree, index)])
    return replace(tree, taken=frozenset((row["nspname"], row["relname"]) for row in taken)), sum(
        row["rows"] for row in tables if row["kind"] != "p"
    )


def _indexes(session: Session, tables: Iterable[int]) -> dict[int, list[Index]]:
    """By table."""
    builds = session.rows(_BUILDS)
    hidden = next(
        (f"pid {row['pid']}, of which pg_read_all_stats would say more" for row in builds if row["index"] is None), ""
    )
    builders = {row["index"]: f"pid {row['pid']} ({row['application_name']})" for row in builds}
    found: dict[int, list[Index]] = {}
    for row in session.rows(_INDEXES, [list(tables)]):
        builder = "" if row["valid"] else builders.get(row["oid"], hidden)
        words = {key: value for key, value in row.items() if key != "table"}
        found.setdefault(row["table"], []).append(Index(**words, builder=builder))
    return found


def read_indexes(session: Session, table: int) -> list[Index]:
    """Of the table with this OID."""
    return _indexes(session, [table]).get(table, [])


def define(session: Session, table: Table, want: Wanted) -> tuple[Wanted, list[int]]:
    """``want`` with the server's own text of its definition, and the widths of its columns.

    The server makes the index on an empty temporary copy of the table, which is rolled back. So it says itself whether
    it understands all of it, before anything that clients use is touched. Raises DbopsError if not.
    """
    copy = f"pg_temp.{identifier(table.name)}"
    like = f"CREATE TEMPORARY TABLE {identifier(table.name)} (LIKE {table.sql} INCLUDING GENERATED)"
    session.run("BEGIN")
    try:
        session.run(like)
        session.run(want.create(want.name, copy))
        oid = session.value("SELECT %s::regclass::oid::bigint", [copy])
        index = _indexes(session, [oid])[oid][0]
        widths = session.rows(_WIDTHS, [table.schema, table.name, index.oid])
        return replace(want, definition=index.definition), [row["width"] for row in widths]
    except DbopsError as error:
        if error.details.get("sqlstate") == "55P03":
            raise _held(session, table.schema, table.name, error) from error
        raise DbopsError(
            found=f"the server says to this index, on an empty copy of {table.shown}: {error.found}",
            expected="columns, expressions, operator classes and options that it knows, and the privilege TEMPORARY",
            remedy="correct what it names; with an empty search_path, names outside pg_catalog need their schema",
        ) from error
    finally:
        if not session.closed:
            session.run("ROLLBACK")


def _held(session: Session, schema: str, name: str, error: DbopsError) -> DbopsError:
    if error.details.get("sqlstate") != "55P03":
        return error
    if not session.closed:
        session.run("ROLLBACK")
    holders = blockers(session, [Lock(qualified(schema, name), ACCESS_SHARE)])
    return DbopsError(
        found=f"{schema}.{name}, or a part of it, cannot be read: {'; '.join(map(str, holders)) or error.found}",
        expected=f"to be able to read it within {LOCK_SECONDS} s",
        remedy="wait for that transaction or end it, then run again",
    )


def waits_for(session: Session) -> list[dict[str, Any]]:
    """Transactions that a concurrent build that began now would wait for, the oldest first. ``pid`` 0: prepared."""
    return session.rows(_WAITS_FOR)
