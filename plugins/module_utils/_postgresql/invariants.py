# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to hold within one database: constraints, sequences, indexes, replication. Reads only. 13 to 18.

Every function returns what was looked at and what was found wrong, each with ``object``, ``found`` and ``remedy``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from .._core.clock import Deadline
from .._core.errors import DbopsError
from .client import Session
from .quoting import identifier

SECONDS = 24 * 3600.0  # for one statement that reads a table

_TABLE = "format('%%I.%%I', nspname, pg_class.relname)"
# With a table its partitions are meant, which alone have indexes, and may have constraints of their own.
_USERS = """nspname NOT IN ('pg_catalog', 'information_schema') AND pg_class.relpersistence <> 't'
   AND (%(tables)s::text[] IS NULL OR nspname || '.' || pg_class.relname = ANY (%(tables)s) OR EXISTS (
         SELECT FROM pg_partition_ancestors(pg_class.oid) AS up JOIN pg_class AS above ON above.oid = up.relid
                JOIN pg_namespace AS there ON there.oid = above.relnamespace
          WHERE there.nspname || '.' || above.relname = ANY (%(tables)s)))"""

# A partition's constraints are those of its parent.
_CONSTRAINTS = f"""
SELECT pg_constraint.oid::bigint AS oid, conname::text AS name, contype::text AS kind, convalidated AS validated,
       coalesce((to_jsonb(pg_constraint) ->> 'conenforced')::boolean, true) AS enforced,
       coalesce((to_jsonb(pg_constraint) ->> 'conperiod')::boolean, false) AS period,
       ARRAY(SELECT format('OPERATOR(%%I.%%s)', own.nspname, oprname)
               FROM unnest(conpfeqop) WITH ORDINALITY AS op (oid, n)
                    JOIN pg_operator ON pg_operator.oid = op.oid JOIN pg_namespace AS own ON own.oid = oprnamespace
              ORDER BY n) AS operators, confmatchtype::text AS matches,
       {_TABLE} AS "table", pg_get_expr(conbin, conrelid) AS expression,
       (SELECT format('%%I.%%I', own.nspname, other.relname) FROM pg_class AS other
               JOIN pg_namespace AS own ON own.oid = other.relnamespace WHERE other.oid = confrelid) AS parent,
       ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS key (number, position)
                    JOIN pg_attribute ON attrelid = conrelid AND attnum = number ORDER BY position) AS columns,
       ARRAY(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY AS key (number, position)
                    JOIN pg_attribute ON attrelid = confrelid AND attnum = number ORDER BY position) AS parent_columns
  FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE conparentid = 0 AND (contype = 'f' OR contype IN ('c', 'n') AND NOT convalidated) AND {_USERS}
 ORDER BY 7, 2
"""

# Owned by a column, or called by its default.
_SEQUENCES = f"""
SELECT DISTINCT own.oid::regclass::text AS sequence, seqincrement AS increment, {_TABLE} AS "table",
       attname::text AS "column",
       has_column_privilege(attrelid, attnum, 'SELECT') AND has_sequence_privilege(own.oid, 'SELECT') AS readable
  FROM pg_class AS own JOIN pg_sequence ON seqrelid = own.oid
       JOIN (SELECT objid AS seq, refobjid AS rel, refobjsubid AS number FROM pg_depend
              WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i')
             UNION
             SELECT refobjid, adrelid, adnum FROM pg_depend JOIN pg_attrdef ON pg_attrdef.oid = objid
              WHERE classid = 'pg_attrdef'::regclass AND refclassid = 'pg_class'::regclass) AS used ON seq = own.oid
       JOIN pg_attribute ON attrelid = rel AND attnum = number AND number > 0
       JOIN pg_class ON pg_class.oid = rel JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
 WHERE NOT pg_class.relispartition AND {_USERS}
 ORDER BY 1
"""

_INDEXES = f"""
SELECT own.oid::bigint AS oid, own.oid::regclass::text AS name, {_TABLE} AS "table", amname::text AS method,
       indisvalid AND indisready AND indislive AS valid, own.relkind = 'i' AS leaf,
       own.relpersistence::text AS persistence
  FROM pg_index JOIN pg_class AS own ON own.oid = indexrelid JOIN pg_am ON pg_am.oid = own.relam
       JOIN pg_class ON pg_class.oid = indrelid JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
 WHERE pg_class.relkind IN ('r', 'p', 'm') AND nspname NOT LIKE 'pg\\_%%' AND {_USERS}
 ORDER BY 2
"""
_AMCHECK = """
SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
       JOIN pg_proc ON pronamespace = extnamespace AND proname = 'bt_index_check' AND pronargs = 2
 WHERE extname = 'amcheck' AND has_function_privilege(pg_proc.oid, 'EXECUTE')
   AND has_schema_privilege(extnamespace, 'USAGE')
"""

_STANDBYS = """
SELECT coalesce(nullif(application_name, ''), pid::text) AS name, coalesce(state, 'not shown to this login') AS state,
       pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint AS lag,
       extract(epoch FROM replay_lag)::float AS seconds
  FROM pg_stat_replication WHERE NOT pg_is_in_recovery() AND coalesce(state, '') <> 'backup' ORDER BY 1
"""
_SLOTS = """
SELECT slot_name::text AS name, slot_type::text AS type, active, coalesce(wal_status, '') AS wal_status, temporary,
       CASE WHEN pg_is_in_recovery() THEN 0
            ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint END AS behind,
       coalesce(to_jsonb(pg_replication_slots) ->> 'invalidation_reason', '') AS lost,
       coalesce((to_jsonb(pg_replication_slots) ->> 'synced')::boolean, false) AS synced
  FROM pg_replication_slots ORDER BY 1
"""
_RECEIVER = """
SELECT (SELECT status FROM pg_stat_wal_receiver) AS status,
       pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint AS lag,
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END AS paused
 WHERE pg_is_in_recovery()
"""


@dataclass
class Found:
    """``looked_at``: how many of each sort; ``problems``: at most ``sample`` of them in full; ``count``: all."""

    looked_at: dict[str, int] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    unreadable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, found: str, remedy: str) -> None:
        self.count += 1
        self.problems.append({"object": what, "found": found, "remedy": remedy})

    def cannot(self, what: str, error: DbopsError) -> None:
        if error.details.get("sqlstate") == "40001" or "connection is closed" in error.found:
            raise error  # it may well be checked in a moment
        self.unreadable.append(f"{what}: {error.found}")


def _number(session: Session, statement: str) -> int:
    return int(session.tuples(statement, deadline=Deadline.after(session.clock, SECONDS))[0][0])


def constraints(session: Session, tables: list[str] | None) -> Found:
    """Constraints that are not valid or not enforced, and rows that break one: a foreign key can be broken although it
    is valid, where its triggers were off (session_replication_role, a restore, a subscription)."""
    result = Found()
    for row in session.rows(_CONSTRAINTS, {"tables": tables}):
        name = f"{row['name']} of {row['table']}"
        if row["period"]:
            result.notes.append(f"{name} is one of periods: its rows were not checked")
            continue
        result.looked_at["constraints"] = result.looked_at.get("constraints", 0) + 1
        try:
            broken = _number(session, _orphans(row) if row["kind"] == "f" else _broken(row))
        except DbopsError as error:
            result.cannot(name, error)
            continue
        if broken:
            rows = "rows whose parent is missing" if row["kind"] == "f" else "rows that break it"
            result.add(name, f"{broken} {rows}", "mend the rows (a report names none of them: query the table)")
        if not row["validated"] or not row["enforced"]:
            state = "not enforced" if not row["enforced"] else "NOT VALID"
            validate = f"ALTER TABLE {row['table']} VALIDATE CONSTRAINT {identifier(row['name'])}"
            result.add(name, state, "mend the rows, then validate it" if broken else validate)
    return result


def _orphans(row: dict[str, Any]) -> str:
    columns = [f"child.{identifier(name)}" for name in row["columns"]]
    equal = [
        f"parent.{identifier(name)} {operator} {column}"
        for name, operator, column in zip(row["parent_columns"], row["operators"], columns)
    ]
    present = " AND ".join(f"{column} IS NOT NULL" for column in columns)
    missing = f"NOT EXISTS (SELECT FROM {row['parent']} AS parent WHERE {' AND '.join(equal)})"
    condition = f"({present} AND {missing})"
    if row["matches"] == "f" and len(columns) > 1:  # MATCH FULL: all of them or none
        nulls = ", ".join(columns)
        condition += f" OR (num_nulls({nulls}) NOT IN (0, {len(columns)}))"
    return f"SELECT count(*) FROM {row['table']} AS child WHERE {condition}"


def _broken(row: dict[str, Any]) -> str:
    expression = row["expression"] or f"{identifier(row['columns'][0])} IS NOT NULL"
    return f"SELECT count(*) FROM {row['table']} WHERE NOT ({expression})"


def sequences(session: Session, tables: list[str] | None) -> Found:
    """Those whose next value is in their column already, or behind what is in it."""
    result = Found()
    for row in session.rows(_SEQUENCES, {"tables": tables}):
        name = f"{row['sequence']} of {row['table']}.{row['column']}"
        result.looked_at["sequences"] = result.looked_at.get("sequences", 0) + 1
        if not row["readable"]:
            result.unreadable.append(f"{name}: no privilege SELECT on both")
            continue
        up = row["increment"] > 0
        column = identifier(row["column"])
        # The column first: whoever takes a value meanwhile is then not behind it.
        text = f"SELECT {'max' if up else 'min'}({column}) FROM {row['table']}"
        try:
            [(furthest,)] = session.tuples(text, deadline=Deadline.after(session.clock, SECONDS))
            [(last, called)] = session.tuples(f"SELECT last_value, is_called FROM {row['sequence']}")
        except DbopsError as error:
            result.cannot(name, error)
            continue
        following = last + row["increment"] if called else last
        if not isinstance(furthest, (int, Decimal)):  # empty, or a text that has the number in it
            continue
        if (following <= furthest) if up else (following >= furthest):
            result.add(
                name,
                f"its next value is {following}, the column has {furthest} already",
                f"SELECT setval('{row['sequence']}', {furthest})",
            )
    return result


def indexes(session: Session, tables: list[str] | None, *, amcheck: str, heap: bool) -> Found:
    """Those that are invalid; with the extension amcheck also what their pages hold (B-trees). ``amcheck``: auto,
    required, never. ``heap``: every row of the table is looked for in its indexes, which reads the whole table."""
    result = Found()
    schema = session.value(_AMCHECK) if amcheck != "never" else None
    if amcheck == "required" and schema is None:
        raise DbopsError(
            found=f"{session.endpoint.label}: the extension amcheck is not installed in this database, or this login"
            " may not use it",
            expected="amcheck, and EXECUTE on bt_index_check",
            remedy="CREATE EXTENSION amcheck on the primary, and GRANT EXECUTE ON FUNCTION"
            " bt_index_check(regclass, boolean)",
        )
    recovering = session.value("SELECT pg_is_in_recovery()")
    for row in session.rows(_INDEXES, {"tables": tables}):
        result.looked_at["indexes"] = result.looked_at.get("indexes", 0) + 1
        if not row["valid"]:
            result.add(
                row["name"], "it is invalid: a build was interrupted, or found a duplicate", "pg_index rebuilds it"
            )
            continue
        readable = row["leaf"] and not (recovering and row["persistence"] == "u")
        if schema is None or row["method"] != "btree" or not readable:
            continue
        try:
            session.tuples(
                f"SELECT {schema}.bt_index_check({row['oid']}::regclass, {str(heap).lower()})",
                deadline=Deadline.after(session.clock, SECONDS),
            )
            result.looked_at["checked by amcheck"] = result.looked_at.get("checked by amcheck", 0) + 1
        except DbopsError as error:
            if error.details.get("sqlstate") in ("XX001", "XX002"):  # data_corrupted, index_corrupted
                result.add(
                    row["name"], error.found, "REINDEX INDEX CONCURRENTLY; if it comes back, look at the storage"
                )
            else:
                result.cannot(row["name"], error)
    if schema is None and amcheck == "auto":
        result.notes.append("amcheck is not installed or not allowed: the pages of indexes were not checked")
    return result


def replication(session: Session, *, max_lag_bytes: int, max_lag_seconds: float, max_slot_bytes: int) -> Found:
    """Standbys and subscribers that are behind or not streaming, slots that hold WAL back or have lost it."""
    result = Found()
    for row in session.rows(_STANDBYS):
        result.looked_at["receivers"] = result.looked_at.get("receivers", 0) + 1
        if row["state"] != "streaming":
            result.add(row["name"], f"it is in state {row['state']}", "wait until it has caught up; see its log")
        if (row["lag"] or 0) > max_lag_bytes or (row["seconds"] or 0) > max_lag_seconds:
            seconds = "" if row["seconds"] is None else f", {row['seconds']:.1f} s"
            result.add(row["name"], f"it is {row['lag']} bytes{seconds} behind", "look at its load and at the network")
    for row in session.rows(_SLOTS):
        result.looked_at["slots"] = result.looked_at.get("slots", 0) + 1
        if row["lost"] or row["wal_status"] == "lost":
            result.add(
                f"slot {row['name']}", "it has lost WAL that its reader needs", "make the reader anew, drop the slot"
            )
        elif not row["active"] and not row["synced"] and not row["temporary"]:
            held = f"and holds back {row['behind']} bytes of WAL" if row["behind"] else ""
            result.add(f"slot {row['name']}", f"nobody reads it {held}".rstrip(), "start its reader, or drop the slot")
        elif (row["behind"] or 0) > max_slot_bytes:
            result.add(f"slot {row['name']}", f"it holds back {row['behind']} bytes of WAL", "look at its reader")
    for row in session.rows(_RECEIVER):
        result.looked_at["receivers"] = result.looked_at.get("receivers", 0) + 1
        name = session.endpoint.name
        if row["paused"]:
            result.add(name, "replay is paused", "SELECT pg_wal_replay_resume(), if nobody needs it paused")
        if row["status"] != "streaming":
            result.add(name, f"its WAL receiver is {row['status'] or 'not running'}", "look at its log")
        if (row["lag"] or 0) > max_lag_bytes:
            result.add(name, f"{row['lag']} bytes are received and not replayed", "look for long queries and its load")
    return result
