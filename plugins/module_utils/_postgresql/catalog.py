# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running PostgreSQL server says of itself: SQL text in, dataclasses out. Works on 13 to 18."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .client import Session, parse_conninfo
from .lsn import parse_lsn

SETTINGS = (
    "archive_command",
    "archive_library",
    "archive_mode",
    "cluster_name",
    "data_directory",
    "default_transaction_read_only",
    "full_page_writes",
    "hot_standby",
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "max_worker_processes",
    "primary_slot_name",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "server_version",
    "shared_preload_libraries",
    "sync_replication_slots",
    "synchronous_standby_names",
    "synchronized_standby_slots",
    "wal_keep_size",
    "wal_level",
    "wal_log_hints",
    "wal_retrieve_retry_interval",
    "data_checksums",
    "wal_segment_size",
)


@dataclass(frozen=True)
class WalSender:
    pid: int
    application_name: str
    client_addr: str
    state: str
    write_lsn: int | None
    replay_lsn: int | None
    sync_state: str
    slot_name: str
    logical: bool


@dataclass(frozen=True)
class WalReceiver:
    status: str
    sender_host: str
    sender_port: int
    slot_name: str
    timeline: int
    application_name: str
    silent_s: float = 0.0  # since the last message of the sender


@dataclass(frozen=True)
class Slot:
    name: str
    logical: bool
    active: bool
    temporary: bool
    restart_lsn: int | None
    failover: bool
    synced: bool
    invalid: str
    wal_status: str


@dataclass(frozen=True)
class Activity:
    pid: int
    user: str
    application_name: str
    kind: str
    seconds: float


@dataclass(frozen=True)
class NodeFacts:
    """One member as it answered. ``error`` set: it did not answer, and nothing else is known (never read as good)."""

    name: str
    error: str = ""
    version_num: int = 0
    system_identifier: str = ""
    in_recovery: bool = False
    read_only: bool = False
    timeline: int = 0
    backend_pid: int = 0
    """The process behind the session that read this, on the member's own host."""
    current_lsn: int | None = None
    receive_lsn: int | None = None
    replay_lsn: int | None = None
    replay_paused: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    senders: tuple[WalSender, ...] = ()
    receiver: WalReceiver | None = None
    slots: tuple[Slot, ...] = ()
    prepared: tuple[str, ...] = ()
    transactions: tuple[Activity, ...] = ()
    maintenance: tuple[str, ...] = ()
    base_backups: int = 0
    archive_ready: int | None = None
    archive_failing: str = ""
    managers: tuple[str, ...] = ()
    missing_privileges: tuple[str, ...] = ()
    operations: tuple[dict[str, Any], ...] = ()
    last_operation: dict[str, Any] | None = None
    has_operations: bool = False
    cron_jobs: int = 0
    databases: dict[int, str] = field(default_factory=dict)
    upstream: tuple[str, int] = ("", 0)
    """Host and port in primary_conninfo, also while there is no walreceiver."""
    application_name: str = ""
    """The one in primary_conninfo: the name by which the primary may list this standby."""

    @property
    def answered(self) -> bool:
        return not self.error

    @property
    def writable(self) -> bool:
        return self.answered and not self.in_recovery

    @property
    def major(self) -> int:
        return self.version_num // 10000

    def knows(self, *settings: str) -> bool:
        return all(name in self.settings for name in settings)

    def number(self, setting: str) -> int:
        return int(self.settings.get(setting) or 0)


def _lsn(text: str | None) -> int | None:
    return parse_lsn(text) if text else None


def read_node(session: Session) -> NodeFacts:
    """All facts of one server, from reads alone. Raises DbopsError when the server refuses or breaks."""
    head = session.rows(
        """SELECT current_setting('server_version_num')::int AS version_num, pg_is_in_recovery() AS in_recovery,
                  current_setting('transaction_read_only')::bool AS read_only,
                  pg_backend_pid() AS backend_pid,
                  (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
                  greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                           (SELECT min_recovery_end_timeline FROM pg_control_recovery())) AS checkpoint_timeline,
                  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()::text END AS receive_lsn,
                  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()::text END AS replay_lsn,
                  CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS replay_paused,
                  CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn()::text END AS current_lsn,
                  CASE WHEN NOT pg_is_in_recovery()
                       THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
                  END AS write_timeline"""
    )[0]
    version_num = head["version_num"]
    if version_num < 130000:  # its catalogs lack what is read below; this much is enough to refuse it by name
        return NodeFacts(session.endpoint.name, version_num=version_num, in_recovery=head["in_recovery"])
    receiver = read_receiver(session)
    timeline = head["write_timeline"] or (receiver.timeline if receiver else 0) or head["checkpoint_timeline"]
    return NodeFacts(
        name=session.endpoint.name,
        version_num=version_num,
        system_identifier=head["system_identifier"],
        in_recovery=head["in_recovery"],
        read_only=head["read_only"],
        timeline=timeline,
        backend_pid=head["backend_pid"],
        current_lsn=_lsn(head["current_lsn"]),
        receive_lsn=_lsn(head["receive_lsn"]),
        replay_lsn=_lsn(head["replay_lsn"]),
        replay_paused=head["replay_paused"],
        settings=_settings(session),
        senders=_senders(session),
        receiver=receiver,
        slots=read_slots(session, version_num),
        prepared=tuple(row["gid"] for row in session.rows("SELECT gid FROM pg_prepared_xacts ORDER BY prepared")),
        transactions=_transactions(session),
        maintenance=_maintenance(session),
        base_backups=_base_backups(session, version_num, head["in_recovery"]),
        archive_ready=_archive_ready(session),
        archive_failing=_archive_failing(session),
        managers=_managers(session),
        missing_privileges=_missing_privileges(session, version_num),
        operations=read_operations(session, "state = 'open'"),
        has_operations=session.rows(_JOURNAL_PRIVILEGES)[0]["may_read"],
        last_operation=next(iter(read_operations(session, "state = 'done'")), None),
        cron_jobs=_cron_jobs(session),
        databases={row["oid"]: row["datname"] for row in session.rows("SELECT oid::int8, datname FROM pg_database")},
        **_upstream(session),
    )


def _settings(session: Session) -> dict[str, str]:
    rows = session.rows("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(SETTINGS)])
    return {row["name"]: row["setting"] or "" for row in rows}


def _senders(session: Session) -> tuple[WalSender, ...]:
    rows = session.rows(
        """SELECT r.pid, r.application_name, coalesce(r.client_addr::text, '') AS client_addr,
                  coalesce(r.state, '') AS state, r.write_lsn::text, r.replay_lsn::text,
                  coalesce(r.sync_state, '') AS sync_state,
                  coalesce(s.slot_name, '') AS slot_name,
                  coalesce(s.slot_type = 'logical', a.datname IS NOT NULL) AS logical
             FROM pg_stat_replication r
             LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
             LEFT JOIN pg_stat_activity a ON a.pid = r.pid
            ORDER BY r.pid"""
    )
    return tuple(
        WalSender(
            pid=row["pid"],
            application_name=row["application_name"],
            client_addr=row["client_addr"],
            state=row["state"],
            write_lsn=_lsn(row["write_lsn"]),
            replay_lsn=_lsn(row["replay_lsn"]),
            sync_state=row["sync_state"],
            slot_name=row["slot_name"],
            logical=row["logical"],
        )
        for row in rows
    )


def read_receiver(session: Session) -> WalReceiver | None:
    """The walreceiver of a standby, None where it has none. ``application_name`` is what the primary sees."""
    rows = session.rows(
        """SELECT status, coalesce(sender_host, '') AS sender_host, coalesce(sender_port, 0) AS sender_port,
                  coalesce(slot_name, '') AS slot_name, coalesce(received_tli, 0) AS timeline,
                  coalesce(conninfo, '') AS conninfo,
                  coalesce(extract(epoch FROM clock_timestamp() - last_msg_receipt_time), 0)::float AS silent_s
             FROM pg_stat_wal_receiver WHERE status IS NOT NULL"""
    )
    if not rows:
        return None
    # The server shows it as it was given, quotes included, with the password hidden.
    words = parse_conninfo(rows[0].pop("conninfo"))
    return WalReceiver(**rows[0], application_name=words.get("application_name", ""))


def read_slots(session: Session, version_num: int) -> tuple[Slot, ...]:
    failover = "failover, synced" if version_num >= 170000 else "false AS failover, false AS synced"
    invalid = "coalesce(invalidation_reason, '')" if version_num >= 170000 else "''"
    rows = session.rows(
        f"""SELECT slot_name, slot_type = 'logical' AS logical, active, temporary, restart_lsn::text,
                   {failover}, {invalid} AS invalid, coalesce(wal_status, '') AS wal_status
              FROM pg_replication_slots ORDER BY slot_name"""  # noqa: S608  both inserts are the constants above
    )
    return tuple(
        Slot(
            name=row["slot_name"],
            logical=row["logical"],
            active=row["active"],
            temporary=row["temporary"],
            restart_lsn=_lsn(row["restart_lsn"]),
            failover=row["failover"],
            synced=row["synced"],
            invalid=row["invalid"],
            wal_status=row["wal_status"],
        )
        for row in rows
    )


def _transactions(session: Session) -> tuple[Activity, ...]:
    rows = session.rows(
        """SELECT pid, coalesce(usename, '') AS user, application_name,
                  CASE WHEN state LIKE 'idle in transaction%%' THEN 'idle in transaction' ELSE 'running' END AS kind,
                  extract(epoch FROM clock_timestamp() -
                      CASE WHEN state LIKE 'idle in transaction%%' THEN state_change ELSE xact_start END
                  )::float AS seconds
             FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
            ORDER BY seconds DESC""".replace("%%", "%")
    )
    return tuple(Activity(**row) for row in rows)


def _maintenance(session: Session) -> tuple[str, ...]:
    rows = session.rows(
        """SELECT 'CREATE INDEX, pid ' || pid AS what FROM pg_stat_progress_create_index
           UNION ALL SELECT command || ', pid ' || pid FROM pg_stat_progress_cluster"""
    )
    return tuple(row["what"] for row in rows)


def _base_backups(session: Session, version_num: int, in_recovery: bool) -> int:
    running = int(session.value("SELECT count(*) FROM pg_stat_progress_basebackup"))
    if version_num < 150000 and not in_recovery and session.value("SELECT pg_is_in_backup()"):
        running = max(running, 1)
    return running


def _archive_ready(session: Session) -> int | None:
    """WAL files that wait for the archiver; None where archiving is off or this role may not look."""
    if session.value("SHOW archive_mode") == "off":
        return 0
    allowed = session.value("SELECT has_function_privilege('pg_ls_archive_statusdir()', 'EXECUTE')")
    if not allowed:
        return None
    return int(session.value("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"))


def _archive_failing(session: Session) -> str:
    rows = session.rows(
        """SELECT coalesce(last_failed_wal, '') AS wal FROM pg_stat_archiver
            WHERE last_failed_time IS NOT NULL
              AND (last_archived_time IS NULL OR last_failed_time > last_archived_time)"""
    )
    return str(rows[0]["wal"]) if rows else ""


def _managers(session: Session) -> tuple[str, ...]:
    """Who else believes to be in charge of this server, in the words of ``managers.py``. Spilo, the image of Zalando's
    operator, is known by its extension bg_mon. A standby's walreceiver is a session of the primary, too."""
    rows = session.rows(
        """SELECT DISTINCT CASE WHEN application_name ILIKE 'patroni%' THEN 'Patroni'
                                WHEN application_name ILIKE 'repmgr%' THEN 'repmgr'
                                WHEN application_name ILIKE 'pgautofailover%' THEN 'pg_auto_failover'
                                WHEN application_name ILIKE 'efm%' THEN 'EFM' END AS manager
             FROM pg_stat_activity
            WHERE application_name ILIKE 'patroni%' OR application_name ILIKE 'repmgrd%'
               OR application_name ILIKE 'pgautofailover%' OR application_name ILIKE 'efm%'
           UNION SELECT 'pg_auto_failover' FROM pg_settings
            WHERE name = 'shared_preload_libraries' AND setting LIKE '%pgautofailover%'
           UNION SELECT 'repmgr' FROM pg_settings WHERE name = 'shared_preload_libraries' AND setting LIKE '%repmgr%'
           UNION SELECT 'repmgr' FROM pg_namespace WHERE nspname = 'repmgr'
           UNION SELECT 'repmgr' FROM pg_database WHERE datname = 'repmgr'
           UNION SELECT 'Zalando operator' FROM pg_settings
            WHERE name = 'shared_preload_libraries' AND setting LIKE '%bg_mon%'
           UNION SELECT 'CloudNativePG' FROM pg_settings WHERE name LIKE 'cnpg.%'
           UNION SELECT CASE WHEN to_regproc('pg_catalog.aurora_version') IS NULL THEN 'Amazon RDS'
                             ELSE 'Amazon Aurora' END FROM pg_settings WHERE name LIKE 'rds.%'
           UNION SELECT 'Cloud SQL' FROM pg_settings WHERE name LIKE 'cloudsql.%'
           UNION SELECT 'Azure' FROM pg_settings WHERE name LIKE 'azure.%'
           ORDER BY 1"""
    )
    return tuple(row["manager"] for row in rows)


ALTERED_PARAMETERS = (
    "primary_conninfo",
    "primary_slot_name",
    "synchronous_standby_names",
    "wal_retrieve_retry_interval",
)


# Not by way of to_regclass(), which raises where the role has no USAGE on the schema.
_JOURNAL_PRIVILEGES = """
SELECT n.oid IS NOT NULL AS schema_there, has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
       has_schema_privilege(n.oid, 'USAGE') AND (c.oid IS NOT NULL OR has_schema_privilege(n.oid, 'CREATE'))
           AS may_create_table,
       c.oid IS NULL OR has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
           AND has_table_privilege(c.oid, 'UPDATE') AS may_write,
       coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), false) AS may_read
  FROM (VALUES ('dbops', 'operation')) AS journal (schema, name)
  LEFT JOIN pg_namespace n ON n.nspname = journal.schema
  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = journal.name
"""


def _missing_privileges(session: Session, version_num: int) -> tuple[str, ...]:
    """What the logged-in role lacks for a switchover. 13 and 14 know no grant for ALTER SYSTEM: superuser."""
    if session.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        return ()
    missing = []
    if not session.value("SELECT rolreplication FROM pg_roles WHERE rolname = current_user"):
        missing.append("ALTER ROLE … REPLICATION")
    if not session.value("SELECT pg_has_role('pg_monitor', 'USAGE')"):
        missing.append("GRANT pg_monitor")
    for function in ("pg_promote(boolean,integer)", "pg_reload_conf()"):
        if not session.value("SELECT has_function_privilege(%s, 'EXECUTE')", [function]):
            missing.append(f"GRANT EXECUTE ON FUNCTION {function}")
    row = session.rows(_JOURNAL_PRIVILEGES)[0]
    if not row["schema_there"] and not row["may_create_schema"]:
        missing.append("GRANT CREATE ON DATABASE")
    if row["schema_there"] and not row["may_create_table"]:
        missing.append("GRANT CREATE, USAGE ON SCHEMA dbops")
    if row["schema_there"] and not row["may_write"]:
        missing.append("GRANT SELECT, INSERT, UPDATE ON TABLE dbops.operation")
    if version_num < 150000:
        return (*missing, "SUPERUSER (before PostgreSQL 15 nobody else may ALTER SYSTEM)")
    if not session.value("SELECT pg_has_role('pg_checkpoint', 'USAGE')"):
        missing.append("GRANT pg_checkpoint")
    for name in ALTERED_PARAMETERS:
        if not session.value("SELECT has_parameter_privilege(%s, 'ALTER SYSTEM')", [name]):
            missing.append(f"GRANT ALTER SYSTEM ON PARAMETER {name}")
    return tuple(missing)


OPERATION_TABLE = {
    "to_regnamespace('dbops')": "CREATE SCHEMA dbops",
    "to_regclass('dbops.operation')": """CREATE TABLE dbops.operation (
        id text PRIMARY KEY, kind text NOT NULL, cluster text NOT NULL, state text NOT NULL,
        system_identifier text NOT NULL, timeline int NOT NULL, lsn pg_lsn NOT NULL,
        detail jsonb NOT NULL DEFAULT '{}', opened_at timestamptz NOT NULL DEFAULT now(), closed_at timestamptz)""",
}
"""What has to exist before an intent can be written: expression that is NULL where it does not, and its statement."""


def altered_setting(session: Session, name: str) -> str | None:
    """A setting where ALTER SYSTEM set it, else None. primary_conninfo is not read: it may hold a password."""
    rows = session.rows(
        """SELECT CASE WHEN name = 'primary_conninfo' THEN '' ELSE setting || coalesce(unit, '') END AS value
             FROM pg_settings WHERE name = %s AND sourcefile LIKE %s""",
        [name, "%postgresql.auto.conf"],
    )
    return rows[0]["value"] if rows else None


def read_operations(session: Session, condition: str) -> tuple[dict[str, Any], ...]:
    """Rows of ``dbops.operation``, newest first. A restore resurrects open ones: callers compare the system
    identifier, and believe a row only where its marker slot exists too."""
    if not session.rows(_JOURNAL_PRIVILEGES)[0]["may_read"]:
        return ()
    rows = session.rows(
        f"""SELECT id, kind, cluster, state, system_identifier, timeline, lsn::text AS lsn, detail
              FROM dbops.operation WHERE {condition} ORDER BY opened_at DESC, id DESC LIMIT 20"""  # noqa: S608  callers pass constants
    )
    return tuple(rows)


def _upstream(session: Session) -> dict[str, Any]:
    """Of primary_conninfo only what is no secret is kept; nothing where this role may not see it."""
    words = parse_conninfo(
        session.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo' AND setting <> ''") or ""
    )
    host, port = words.get("host", ""), words.get("port", "")
    return {
        "upstream": (host, int(port) if port.isdigit() else 5432) if host else ("", 0),
        "application_name": words.get("application_name", ""),
    }


def _cron_jobs(session: Session) -> int:
    """Jobs of pg_cron in this database (they run on whichever server is primary and has the worker)."""
    if not session.value("SELECT to_regclass('cron.job') IS NOT NULL"):
        return 0
    return int(session.value("SELECT count(*) FROM cron.job"))
