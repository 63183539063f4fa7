# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What belongs to a table and has to go with its name when another table takes its place. Works on 13 to 18.

Names follow a relation's OID: after a rename, views, triggers, policies and publications still mean the old table. So
everything is read as the statement that makes it again, with the table's present name in it, which is the name that the
new table will have. The session prints names with their schema (see _runners/table_work.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .client import Session
from .index_catalog import read_indexes
from .quoting import identifier


@dataclass(frozen=True)
class UniqueKey:
    """A primary key, a unique constraint or a unique index. ``kind``: p, u, or empty for an index alone; ``columns``:
    its key columns, with an empty string for an expression; ``plain``: nothing but columns, no predicate, no INCLUDE,
    not deferrable; ``definition``: of a constraint what follows its name, of an index what follows USING."""

    name: str
    kind: str
    columns: tuple[str, ...]
    plain: bool
    definition: str


@dataclass(frozen=True)
class Made:
    """A statement that makes something on the new table, and one that takes it from the old one (empty where it need
    not be taken), with ``{old}`` where that one's name has to be. Of a view that one changes nothing but locks it.
    ``what`` and ``name`` for people."""

    what: str
    name: str
    make: str
    take: str = ""
    short: str = ""
    """Of extended statistics: the name without its schema."""


@dataclass(frozen=True)
class Identity:
    """``sequence``: as the server prints it, ``sequence_name`` without its schema; ``options``: what follows AS
    IDENTITY, without SEQUENCE NAME. ``granted``: statements."""

    column: str
    always: bool
    sequence: str
    sequence_name: str
    options: str
    granted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Belongings:
    """``others``: what depends on the table and cannot be moved, described by the server. ``problems``: what a
    partitioned table cannot have, or not in this way."""

    kind: str
    keys: tuple[UniqueKey, ...] = ()
    indexes: tuple[tuple[str, str], ...] = ()
    """Those that are not unique: name, and what follows USING."""
    invalid_indexes: tuple[str, ...] = ()
    index_parents: tuple[tuple[str, str], ...] = ()
    """Of a partition: its indexes that are part of one of the partitioned table, and the name of that one."""
    identities: tuple[Identity, ...] = ()
    sequences: tuple[tuple[str, str], ...] = ()
    """Sequences of serial columns as the server prints them, and their columns."""
    made: tuple[Made, ...] = ()
    triggers: tuple[Made, ...] = ()
    views: tuple[Made, ...] = ()
    """One that is defined by another one comes before it, as far as they were made in that order."""
    others: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    comment: str = ""
    bytes: int = 0


_TABLE = """
SELECT relkind::text AS kind, coalesce(obj_description(oid, 'pg_class'), '') AS comment,
       CASE WHEN relkind = 'r' THEN pg_relation_size(oid) ELSE 0 END AS bytes
  FROM pg_class WHERE oid = %s
"""

_INDEXES = """
SELECT own.relname::text AS name, indisunique AS "unique", coalesce(contype::text, '') AS kind,
       indisvalid AND indisready AND indislive AS valid,
       ARRAY(SELECT coalesce(attname::text, '') FROM unnest(indkey::int2[]) WITH ORDINALITY AS key (number, position)
                    LEFT JOIN pg_attribute ON attrelid = indrelid AND attnum = nullif(number, 0)
              WHERE position <= indnkeyatts ORDER BY position) AS columns,
       indnkeyatts = indnatts AND indpred IS NULL AND NOT coalesce(condeferrable, false)
       AND NOT coalesce((to_jsonb(pg_index) ->> 'indnullsnotdistinct')::boolean, false)
       AND 0 = ALL (indoption::int2[]) AND NOT EXISTS (
             SELECT FROM unnest(indclass::oid[], indcollation::oid[], indkey::int2[]) AS part (class, sorted, number)
                    JOIN pg_opclass ON pg_opclass.oid = class
                    JOIN pg_attribute ON attrelid = indrelid AND attnum = number
              WHERE NOT opcdefault OR sorted <> attcollation) AS plain,
       coalesce(pg_get_constraintdef(pg_constraint.oid), '') AS definition,
       coalesce((SELECT relname::text FROM pg_inherits JOIN pg_class above ON above.oid = inhparent
                  WHERE inhrelid = indexrelid), '') AS parent
  FROM pg_index JOIN pg_class AS own ON own.oid = indexrelid
       LEFT JOIN pg_constraint ON conindid = indexrelid AND conrelid = indrelid AND contype IN ('p', 'u', 'x')
 WHERE indrelid = %s ORDER BY contype = 'p' DESC NULLS LAST, own.relname
"""

_IDENTITIES = """
SELECT attname::text AS "column", attidentity = 'a' AS always, seq.oid::regclass::text AS sequence,
       seq.relname::text AS sequence_name,
       format('START WITH %%s INCREMENT BY %%s MINVALUE %%s MAXVALUE %%s CACHE %%s %%sCYCLE', seqstart, seqincrement,
              seqmin, seqmax, seqcache, CASE WHEN seqcycle THEN '' ELSE 'NO ' END) AS options,
       ARRAY(SELECT DISTINCT format('REVOKE ALL ON SEQUENCE %%s FROM %%s', seq.oid::regclass,
                           CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
               FROM pg_default_acl, aclexplode(defaclacl)
              WHERE defaclrole = seq.relowner AND defaclobjtype = 'S' AND defaclnamespace IN (0, seq.relnamespace)
                AND grantee <> seq.relowner)
       || ARRAY(SELECT format('GRANT %%s ON SEQUENCE %%s TO %%s%%s', privilege_type, seq.oid::regclass,
                           CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
                           CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
               FROM aclexplode(seq.relacl) WHERE grantee <> seq.relowner)
       || ARRAY(SELECT format('COMMENT ON SEQUENCE %%s IS %%L', seq.oid::regclass, description) FROM pg_description
                 WHERE objoid = seq.oid AND classoid = 'pg_class'::regclass AND objsubid = 0) AS granted
  FROM pg_attribute JOIN pg_depend ON refclassid = 'pg_class'::regclass AND refobjid = attrelid
                                  AND refobjsubid = attnum AND classid = 'pg_class'::regclass AND deptype = 'i'
       JOIN pg_class AS seq ON seq.oid = objid AND seq.relkind = 'S' JOIN pg_sequence ON seqrelid = seq.oid
 WHERE attrelid = %s AND attidentity <> '' ORDER BY attnum
"""

_SEQUENCES = """
SELECT seq.oid::regclass::text AS sequence, attname::text AS "column"
  FROM pg_depend JOIN pg_class AS seq ON seq.oid = objid AND relkind = 'S'
       JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
 WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND refobjid = %s AND deptype = 'a'
 ORDER BY 1
"""

# In the order in which they are made. %(table)s is the OID.
_MADE = """
WITH its AS (SELECT oid, oid::regclass::text AS name, relowner, relacl, relrowsecurity, relforcerowsecurity,
                    relreplident, relnamespace FROM pg_class WHERE oid = %(table)s)
SELECT 'comment' AS what, its.name, format('COMMENT ON TABLE %%s IS %%L', its.name, description) AS make, '' AS take
  FROM its JOIN pg_description ON objoid = its.oid AND classoid = 'pg_class'::regclass AND objsubid = 0
 WHERE NOT starts_with(description, 'dbops')
UNION ALL
SELECT DISTINCT 'default privileges', '', format('REVOKE ALL ON %%s FROM %%s', its.name,
       CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END), ''
  FROM its JOIN pg_default_acl ON pg_get_userbyid(defaclrole) = current_user AND defaclobjtype = 'r'
                              AND defaclnamespace IN (0, relnamespace), aclexplode(defaclacl)
 WHERE grantee NOT IN (defaclrole, relowner)
UNION ALL
SELECT 'grant', privilege_type, format('GRANT %%s ON %%s TO %%s%%s', privilege_type, its.name,
       CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
       CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END),
       'REVOKE ALL ON {old} FROM '
       || CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END || ' CASCADE'
  FROM its, aclexplode(relacl) WHERE grantee <> relowner
UNION ALL
SELECT 'grant', privilege_type, format('GRANT %%s (%%I) ON %%s TO %%s%%s', privilege_type, attname, its.name,
       CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
       CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END),
       'REVOKE ALL ON {old} FROM '
       || CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END || ' CASCADE'
  FROM its JOIN pg_attribute ON attrelid = its.oid AND attnum > 0 AND NOT attisdropped, aclexplode(attacl)
 WHERE grantee <> relowner
UNION ALL
SELECT 'row security', '', format('ALTER TABLE %%s ENABLE ROW LEVEL SECURITY', its.name),
       'ALTER TABLE {old} DISABLE ROW LEVEL SECURITY' FROM its WHERE relrowsecurity
UNION ALL
SELECT 'row security', 'forced', format('ALTER TABLE %%s FORCE ROW LEVEL SECURITY', its.name),
       'ALTER TABLE {old} NO FORCE ROW LEVEL SECURITY' FROM its WHERE relforcerowsecurity
UNION ALL
SELECT 'policy', polname, format('CREATE POLICY %%I ON %%s AS %%s FOR %%s TO %%s', polname, its.name,
       CASE WHEN polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
       CASE polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
                   ELSE 'ALL' END,
       (SELECT string_agg(CASE role WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(role)) END, ', ')
          FROM unnest(polroles) AS role))
       || coalesce(' USING (' || pg_get_expr(polqual, polrelid) || ')', '')
       || coalesce(' WITH CHECK (' || pg_get_expr(polwithcheck, polrelid) || ')', ''),
       format('DROP POLICY %%I ON ', polname) || '{old}'
  FROM its JOIN pg_policy ON polrelid = its.oid
UNION ALL
SELECT 'column comment', attname, format('COMMENT ON COLUMN %%s.%%I IS %%L', its.name, attname, description),
       format('COMMENT ON COLUMN %%s.%%I IS NULL', '{old}', attname)
  FROM its JOIN pg_attribute ON attrelid = its.oid AND attnum > 0 AND NOT attisdropped
       JOIN pg_description ON objoid = its.oid AND classoid = 'pg_class'::regclass AND objsubid = attnum
UNION ALL
SELECT 'policy comment', polname, format('COMMENT ON POLICY %%I ON %%s IS %%L', polname, its.name, description), ''
  FROM its JOIN pg_policy ON polrelid = its.oid
       JOIN pg_description ON objoid = pg_policy.oid AND classoid = 'pg_policy'::regclass
UNION ALL
SELECT 'constraint comment', conname,
       format('COMMENT ON CONSTRAINT %%I ON %%s IS %%L', conname, its.name, description), ''
  FROM its JOIN pg_constraint ON conrelid = its.oid AND contype IN ('p', 'u', 'f', 'c')
                         AND conname <> 'dbops_bound'
       JOIN pg_description ON objoid = pg_constraint.oid AND classoid = 'pg_constraint'::regclass
UNION ALL
SELECT 'statistics', attname, format('ALTER TABLE %%s ALTER COLUMN %%I SET STATISTICS %%s', its.name, attname,
       attstattarget), format('ALTER TABLE %%s ALTER COLUMN %%I SET STATISTICS -1', '{old}', attname)
  FROM its JOIN pg_attribute ON attrelid = its.oid AND attnum > 0 AND NOT attisdropped AND attstattarget >= 0
UNION ALL
SELECT 'statistics', attname, format('ALTER TABLE %%s ALTER COLUMN %%I SET (%%s)', its.name, attname, one),
       format('ALTER TABLE %%s ALTER COLUMN %%I RESET (%%s)', '{old}', attname, split_part(one, '=', 1))
  FROM its JOIN pg_attribute ON attrelid = its.oid AND attnum > 0 AND NOT attisdropped, unnest(attoptions) AS one
 WHERE starts_with(one, 'n_distinct')  -- the server may keep numbers of its own there, as 15.20 does (pg_attver)
UNION ALL
SELECT 'replica identity', relreplident::text, format('ALTER TABLE %%s REPLICA IDENTITY %%s', its.name,
       CASE relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END),
       'ALTER TABLE {old} REPLICA IDENTITY DEFAULT' FROM its WHERE relreplident IN ('f', 'n')
UNION ALL
SELECT 'publication', pubname, format('ALTER PUBLICATION %%I ADD TABLE %%s', pubname, its.name) || {columns},
       format('ALTER PUBLICATION %%I DROP TABLE ', pubname) || '{old}'
  FROM its JOIN pg_publication_rel AS rel ON prrelid = its.oid JOIN pg_publication AS p ON p.oid = prpubid
"""
_PUBLISHED_COLUMNS = """coalesce(
       (SELECT ' (' || string_agg(quote_ident(attname), ', ' ORDER BY attnum) || ')' FROM pg_attribute
         WHERE attrelid = its.oid AND attnum = ANY (prattrs::int2[])), '')
       || coalesce(' WHERE (' || pg_get_expr(prqual, its.oid) || ')', '')"""

_STATISTICS = """
SELECT name, stxname::text AS short, pg_get_statisticsobjdef(own.oid) AS make,
       format('ALTER STATISTICS %%s RENAME TO %%I', name, left(stxname, 56) || '_legacy') AS take,
       ARRAY[format('ALTER STATISTICS %%s OWNER TO %%I', name, pg_get_userbyid(stxowner)),
             CASE WHEN stxstattarget >= 0
                  THEN format('ALTER STATISTICS %%s SET STATISTICS %%s', name, stxstattarget) END,
             (SELECT format('COMMENT ON STATISTICS %%s IS %%L', name, description) FROM pg_description
               WHERE objoid = own.oid AND classoid = 'pg_statistic_ext'::regclass)] AS more
  FROM pg_statistic_ext AS own, format('%%s.%%I', stxnamespace::regnamespace, stxname) AS name
 WHERE stxrelid = %s ORDER BY stxname
"""

_TRIGGERS = """
SELECT tgname::text AS name, pg_get_triggerdef(oid) AS make, tgrelid::regclass::text AS "table",
       (SELECT format('COMMENT ON TRIGGER %%I ON %%s IS %%L', tgname, tgrelid::regclass, description)
          FROM pg_description WHERE objoid = pg_trigger.oid AND classoid = 'pg_trigger'::regclass) AS comment,
       tgenabled::text AS enabled, tgtype & 1 = 1 AND (tgoldtable IS NOT NULL OR tgnewtable IS NOT NULL) AS transition
  FROM pg_trigger WHERE tgrelid = %s AND NOT tgisinternal ORDER BY tgname
"""
_ENABLED = {"D": "DISABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}

_VIEWS = """
SELECT DISTINCT v.oid, ev_class::regclass::text AS name, pg_get_viewdef(ev_class) AS definition,
       quote_ident(pg_get_userbyid(relowner)) AS owner,
       coalesce(array_to_string((SELECT array_agg(format('%%I=%%s', option_name, option_value))
                                   FROM pg_options_to_table(v.reloptions)), ', '), '') AS options
  FROM pg_depend JOIN pg_rewrite r ON r.oid = objid JOIN pg_class v ON v.oid = ev_class
 WHERE classid = 'pg_rewrite'::regclass AND refclassid = 'pg_class'::regclass AND refobjid = %s AND v.relkind = 'v'
   AND rulename = '_RETURN' AND relpersistence <> 't'
 ORDER BY v.oid DESC
"""

# Whatever is not known to be moved, or to go with the old table, is in the way.
_OTHERS = """
SELECT DISTINCT pg_describe_object(classid, objid, 0) AS what
  FROM pg_depend d
 WHERE (refclassid, refobjid) IN (
         SELECT 'pg_class'::regclass::oid, %(table)s::oid
         UNION SELECT 'pg_type'::regclass::oid, reltype FROM pg_class WHERE oid = %(table)s
         UNION SELECT 'pg_type'::regclass::oid, typarray FROM pg_type JOIN pg_class c ON reltype = pg_type.oid
                WHERE c.oid = %(table)s)
   AND NOT (classid = 'pg_class'::regclass AND objid = %(table)s)
   AND NOT CASE classid
         WHEN 'pg_class'::regclass THEN (SELECT relkind IN ('i', 'I', 'S', 't') FROM pg_class WHERE oid = objid)
                OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = objid AND inhparent = %(table)s
                              AND (SELECT relkind FROM pg_class WHERE oid = %(table)s) = 'p')
         WHEN 'pg_constraint'::regclass THEN (SELECT conrelid = %(table)s OR contype = 'f' FROM pg_constraint
                                               WHERE oid = objid)
         WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid = %(table)s FROM pg_trigger WHERE oid = objid)
         WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid = %(table)s FROM pg_attrdef WHERE oid = objid)
         WHEN 'pg_policy'::regclass THEN (SELECT polrelid = %(table)s FROM pg_policy WHERE oid = objid)
         WHEN 'pg_statistic_ext'::regclass THEN true
         WHEN 'pg_publication_rel'::regclass THEN true
         WHEN 'pg_type'::regclass THEN deptype = 'i'
         WHEN 'pg_rewrite'::regclass THEN refclassid = 'pg_class'::regclass AND (
                SELECT relkind = 'v' AND rulename = '_RETURN' AND relpersistence <> 't'
                  FROM pg_rewrite r JOIN pg_class v ON v.oid = ev_class WHERE r.oid = objid)
         ELSE false END
UNION
SELECT pg_describe_object(classid, objid, 0) || ' (through a key of the table)'
  FROM pg_depend JOIN pg_constraint c ON refclassid = 'pg_constraint'::regclass AND refobjid = c.oid
 WHERE conrelid = %(table)s AND classid IN ('pg_rewrite'::regclass, 'pg_proc'::regclass)
UNION
SELECT pg_describe_object(d.classid, d.objid, 0) || ' (through the sequence of an identity)'
  FROM pg_depend d JOIN pg_depend its ON its.classid = 'pg_class'::regclass AND its.objid = d.refobjid
   AND its.refclassid = 'pg_class'::regclass AND its.refobjid = %(table)s AND its.refobjsubid > 0 AND its.deptype = 'i'
 WHERE d.refclassid = 'pg_class'::regclass AND d.deptype = 'n'
 ORDER BY 1
"""

_PROBLEMS = """
SELECT 'it is unlogged or temporary' AS problem FROM pg_class WHERE oid = %(table)s AND relpersistence <> 'p'
UNION ALL
SELECT 'it is a child of ' || inhparent::regclass FROM pg_inherits WHERE inhrelid = %(table)s
UNION ALL
SELECT 'it is a typed table' FROM pg_class WHERE oid = %(table)s AND reloftype <> 0
UNION ALL
SELECT 'it belongs to the extension ' || extname FROM pg_depend JOIN pg_extension e ON e.oid = refobjid
 WHERE classid = 'pg_class'::regclass AND objid = %(table)s AND refclassid = 'pg_extension'::regclass AND deptype = 'e'
UNION ALL
SELECT 'constraint ' || conname || ' is not validated' FROM pg_constraint
 WHERE conrelid = %(table)s AND NOT convalidated AND conname <> 'dbops_bound'
UNION ALL
SELECT 'constraint ' || conname || ' is NO INHERIT' FROM pg_constraint
 WHERE conrelid = %(table)s AND connoinherit AND contype = 'c'
UNION ALL
SELECT 'constraint ' || conname || ' excludes' FROM pg_constraint WHERE conrelid = %(table)s AND contype = 'x'
UNION ALL
SELECT 'constraint ' || conname || ' of ' || conrelid::regclass || ' refers to it' FROM pg_constraint
 WHERE confrelid = %(table)s AND contype = 'f' AND conparentid = 0
UNION ALL
SELECT 'its replica identity is an index' FROM pg_class WHERE oid = %(table)s AND relreplident = 'i'
UNION ALL
SELECT 'a subscription writes into it, and would no longer find it' FROM pg_subscription_rel WHERE srrelid = %(table)s
UNION ALL
SELECT DISTINCT 'publication ' || p.pubname || ' publishes it, and not by the root of its partitions'
  FROM pg_publication p JOIN pg_publication_tables t ON t.pubname = p.pubname
       JOIN pg_class c ON c.relname = tablename AND c.relnamespace = quote_ident(schemaname)::regnamespace
 WHERE NOT pubviaroot AND c.oid = %(table)s
UNION ALL
SELECT 'the user may not create in schema ' || quote_ident(nspname) FROM pg_namespace n
 WHERE NOT has_schema_privilege(n.oid, 'CREATE') AND n.oid IN (
       SELECT relnamespace FROM pg_class WHERE oid = %(table)s
       UNION
       SELECT relnamespace FROM pg_depend JOIN pg_rewrite r ON r.oid = objid JOIN pg_class v ON v.oid = ev_class
        WHERE classid = 'pg_rewrite'::regclass AND refclassid = 'pg_class'::regclass AND refobjid = %(table)s)
UNION ALL
SELECT 'its owner may not create in schema ' || relnamespace::regnamespace FROM pg_class
 WHERE oid = %(table)s AND NOT has_schema_privilege(relowner, relnamespace, 'CREATE')
UNION ALL
SELECT 'the user may not execute function ' || tgfoid::regprocedure || ' of trigger ' || tgname FROM pg_trigger
 WHERE tgrelid = %(table)s AND NOT tgisinternal AND NOT has_function_privilege(tgfoid, 'EXECUTE')
UNION ALL
SELECT 'the user may not make a foreign key to ' || confrelid::regclass || ', as constraint ' || conname || ' is'
  FROM pg_constraint
 WHERE conrelid = %(table)s AND contype = 'f' AND NOT has_table_privilege(confrelid, 'REFERENCES')
   AND EXISTS (SELECT FROM unnest(confkey) AS key WHERE NOT has_column_privilege(confrelid, key, 'REFERENCES'))
UNION ALL
SELECT 'the user may not act as the owner of statistics ' || stxname FROM pg_statistic_ext
 WHERE stxrelid = %(table)s AND NOT pg_has_role(stxowner, 'USAGE')
UNION ALL
SELECT 'the user may not act as the owner of ' || what FROM (
       SELECT DISTINCT 'view ' || v.oid::regclass AS what, v.relowner AS owner
         FROM pg_depend JOIN pg_rewrite r ON r.oid = objid JOIN pg_class v ON v.oid = ev_class
        WHERE classid = 'pg_rewrite'::regclass AND refclassid = 'pg_class'::regclass AND refobjid = %(table)s
       UNION
       SELECT 'publication ' || pubname, pubowner FROM pg_publication_rel JOIN pg_publication p ON p.oid = prpubid
        WHERE prrelid = %(table)s) owned
 WHERE NOT pg_has_role(owner, 'USAGE')
"""


def _trigger(name: str, make: str, table: str, comment: str | None, enabled: str, transition: bool) -> list[Made]:
    """Its switch comes before the table gets partitions: those get the trigger as it is then."""
    made = [Made("trigger", name, make, f"DROP TRIGGER {identifier(name)} ON {{old}}")]
    if enabled in _ENABLED:
        made.append(Made("trigger", name, f"ALTER TABLE {table} {_ENABLED[enabled]} TRIGGER {identifier(name)}"))
    if comment:
        made.append(Made("trigger comment", name, comment))
    return made


def _made(rows: list[dict[str, Any]], statistics: list[dict[str, Any]]) -> tuple[Made, ...]:
    made = [Made(**row) for row in rows]
    for row in statistics:
        what = ("extended statistics", row["name"])
        made.append(Made(*what, row["make"], row["take"], row["short"]))
        made += [Made(*what, statement) for statement in row["more"] if statement]
    return tuple(made)


def read_belongings(session: Session, table: int) -> Belongings:
    """``table``: its OID."""
    row = session.rows(_TABLE, [table])[0]
    definitions = {index.name: index.definition for index in read_indexes(session, table)}
    keys, indexes, invalid, parents = [], [], [], []
    for index in session.rows(_INDEXES, [table]):
        if index["parent"]:
            parents.append((index["name"], index["parent"]))
        name, text = index["name"], index["definition"] or definitions[index["name"]]
        if not index["valid"]:
            invalid.append(name)
        elif index["unique"]:
            key = tuple(index["columns"])
            keys.append(UniqueKey(name, index["kind"], key, index["plain"] and "" not in key, text))
        elif index["kind"] != "x":  # which is among the problems
            indexes.append((name, text))
    triggers = session.rows(_TRIGGERS, [table])
    names = {"table": table}
    problems = [row["problem"] for row in session.rows(_PROBLEMS, names)]
    problems += [f"trigger {item['name']} has transition tables" for item in triggers if item["transition"]]
    columns = _PUBLISHED_COLUMNS if session.raw.server_version >= 150000 else "''"
    return Belongings(
        kind=row["kind"],
        keys=tuple(keys),
        indexes=tuple(indexes),
        invalid_indexes=tuple(invalid),
        index_parents=tuple(parents),
        identities=tuple(
            Identity(**{**item, "granted": tuple(item["granted"])}) for item in session.rows(_IDENTITIES, [table])
        ),
        sequences=tuple((item["sequence"], item["column"]) for item in session.rows(_SEQUENCES, [table])),
        made=_made(session.rows(_MADE.replace("{columns}", columns), names), session.rows(_STATISTICS, [table])),
        triggers=tuple(made for item in triggers for made in _trigger(**item)),
        views=tuple(
            Made(
                "view",
                item["name"],
                f"CREATE OR REPLACE VIEW {item['name']}{' WITH (' + item['options'] + ')' if item['options'] else ''}"
                f" AS {item['definition'].rstrip().rstrip(';')}",
                f"ALTER VIEW {item['name']} OWNER TO {item['owner']}",
            )
            for item in session.rows(_VIEWS, [table])
        ),
        others=tuple(item["what"] for item in session.rows(_OTHERS, names)),
        problems=tuple(problems),
        comment=row["comment"],
        bytes=row["bytes"],
    )
