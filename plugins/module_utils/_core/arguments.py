# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Argument specs that modules share. Pure data: the words are those of community.postgresql."""

from __future__ import annotations

from typing import Any

SSL_MODES = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]


def login_options(*, port: int = 5432, dbname: str = "postgres") -> dict[str, Any]:
    """How to log in to one server or pooler console."""
    return {
        "login_host": {"type": "str", "default": ""},
        "login_port": {"type": "int", "default": port},
        "login_user": {"type": "str", "default": ""},
        "login_password": {"type": "str", "no_log": True},
        "login_db": {"type": "str", "default": dbname},
        "passfile": {"type": "path"},
        "ssl_mode": {"type": "str", "default": "prefer", "choices": SSL_MODES},
        "ca_cert": {"type": "path"},
        "ssl_cert": {"type": "path"},
        "ssl_key": {"type": "path", "no_log": False},
        "connect_params": {"type": "dict", "default": {}},
    }


def endpoint_options(*, port: int = 5432, dbname: str = "postgres") -> dict[str, Any]:
    """How to log in to one of several, which have names (sub-options of ``nodes`` and ``poolers``)."""
    return {"name": {"type": "str", "required": True}, **login_options(port=port, dbname=dbname)}


def node_options() -> dict[str, Any]:
    """A cluster member: how to log in, and where other servers and poolers reach it."""
    return {
        **endpoint_options(),
        "address": {"type": "str"},
        "port": {"type": "int"},
    }


def pooler_options() -> dict[str, Any]:
    """A PgBouncer console, and which of its databases follow the primary."""
    return {
        **endpoint_options(port=6432, dbname="pgbouncer"),
        "databases": {"type": "list", "elements": "str", "default": []},
    }


def patroni_options() -> dict[str, Any]:
    """The REST API of the Patroni that is in charge of a cluster."""
    return {
        "url": {"type": "str", "required": True},
        "username": {"type": "str"},
        "password": {"type": "str", "no_log": True},
        "ca_cert": {"type": "path"},
        "ssl_cert": {"type": "path"},
        "ssl_key": {"type": "path", "no_log": False},
    }


def service_options() -> dict[str, Any]:
    """The service that owns a server, so that the unit's state stays true when we stop and start it."""
    return {
        "manager": {"type": "str", "required": True, "choices": ["systemd", "pg_ctlcluster", "command"]},
        "name": {"type": "str"},
        "start": {"type": "list", "elements": "str"},
        "stop": {"type": "list", "elements": "str"},
    }


def table_options() -> dict[str, Any]:
    """What every module that changes a table takes: the table, how long it waits for locks, where the journal is."""
    return {
        **login_options(),
        "table": {"type": "str", "required": True},
        "schema": {"type": "str", "default": "public"},
        "lock_timeout_ms": {"type": "int", "default": 50},
        "lock_wait_timeout": {"type": "int", "default": 120},
        "state_dir": {"type": "path", "default": "/var/lib/dbops"},
    }


def partition_key_options() -> dict[str, Any]:
    """How the key of a partitioned table stands for time, and which windows that gives."""
    kinds = ["timestamptz", "timestamp", "date", "uuid7", "integer", "epoch", "snowflake"]
    return {
        "key_type": {"type": "str", "choices": kinds, "no_log": False},
        "epoch_unit": {"type": "str", "choices": ["s", "ms", "us", "ns"], "default": "s"},
        "snowflake_epoch_ms": {"type": "int", "default": 1288834974657},
        "snowflake_shift": {"type": "int", "default": 22},
        "time_zone": {"type": "str", "default": "UTC"},
        "premake": {"type": "int", "default": 4},
    }


def list_options() -> dict[str, Any]:
    """A partition of a table that is partitioned by list."""
    return {
        "name": {"type": "str", "required": True},
        "values": {"type": "list", "elements": "raw", "required": True},
    }


def partition_options() -> dict[str, Any]:
    """All of pg_partition's. The timer of the role partition_maintenance has them without Ansible."""
    return {
        **table_options(),
        **partition_key_options(),
        "state": {"type": "str", "choices": ["present", "detached", "absent"], "default": "present"},
        "partition": {"type": "str"},
        "key": {"type": "str", "required": True, "no_log": False},
        "interval": {"type": "str"},
        "lists": {"type": "list", "elements": "dict", "options": list_options()},
        "modulus": {"type": "int"},
        "subpartitions": {
            "type": "dict",
            "options": {
                "key": {"type": "str", "required": True, "no_log": False},
                "lists": {"type": "list", "elements": "dict", "options": list_options()},
                "modulus": {"type": "int"},
            },
            "required_one_of": [["lists", "modulus"]],
            "mutually_exclusive": [["lists", "modulus"]],
        },
        "start": {"type": "str"},
        "name_template": {"type": "str"},
        "partial_windows": {"type": "str", "choices": ["refuse", "fill"], "default": "refuse"},
        "default_rows": {"type": "str", "choices": ["refuse", "promote", "move", "shadow"], "default": "refuse"},
        "move_limit": {"type": "int", "default": 10000},
        "retention": {"type": "str"},
        "retention_action": {"type": "str", "choices": ["keep", "detach", "archive", "drop"], "default": "keep"},
        "archive_dir": {"type": "path"},
        "grace": {"type": "str", "default": "7 days"},
        "max_drop": {"type": "int", "default": 1},
        "reference_time": {"type": "float"},
    }


def conversion_options() -> dict[str, Any]:
    """Of pg_partition_convert."""
    return {
        **table_options(),
        **partition_key_options(),
        "state": {"type": "str", "choices": ["partitioned", "plain"], "default": "partitioned"},
        "key": {"type": "str", "no_log": False},
        "interval": {"type": "str"},
        "cut": {"type": "str"},
        "weaken": {"type": "list", "elements": "str", "default": []},
        "legacy_name": {"type": "str"},
        "name_template": {"type": "str"},
    }


def ledger_options() -> dict[str, Any]:
    """Accounts and their journal, by default as they are in the examples."""
    return {
        "accounts": {"type": "str", "default": "public.accounts"},
        "journal": {"type": "str", "default": "public.transaction_journal"},
        "key": {"type": "list", "elements": "str", "default": ["user_id", "currency"], "no_log": False},
        "balance": {"type": "str", "default": "total"},
        "available": {"type": "str", "default": "available"},
        "reserved": {"type": "str", "default": "reserved"},
        "version": {"type": "str", "default": "version"},
        "amount": {"type": "str", "default": "amount"},
        "sign": {"type": "str", "default": "type"},
        "credit": {"type": "list", "elements": "str", "default": ["credit"]},
        "debit": {"type": "list", "elements": "str", "default": ["debit"]},
        "status": {"type": "str", "default": "status"},
        "completed": {"type": "list", "elements": "str", "default": ["completed"]},
        "tolerance": {"type": "str", "default": "0"},
        "accounts_where": {"type": "str"},
        "journal_where": {"type": "str"},
        "conditions": {
            "type": "list",
            "elements": "str",
            "default": ["available >= 0", "reserved >= 0", "total = available + reserved"],
        },
    }


def consistency_options() -> dict[str, Any]:
    """Of consistency_check."""
    kinds = ["table", "counts", "ledger", "constraints", "sequences", "indexes", "replication"]
    check = {
        "kind": {"type": "str", "required": True, "choices": kinds},
        "tables": {"type": "list", "elements": "str"},
        "exclude_tables": {"type": "list", "elements": "str", "default": []},
        "key": {"type": "list", "elements": "str", "no_log": False},
        "columns": {"type": "list", "elements": "str"},
        "exclude": {"type": "list", "elements": "str"},
        "where": {"type": "str"},
        "hash": {"type": "str", "choices": ["fast", "strict"], "default": "fast"},
        "ledger": {"type": "dict", "options": ledger_options(), "apply_defaults": True},
        "amcheck": {"type": "str", "choices": ["auto", "required", "never"], "default": "auto"},
        "heapallindexed": {"type": "bool", "default": False},
        "max_lag_bytes": {"type": "int", "default": 16 * 1024 * 1024},
        "max_lag_seconds": {"type": "float", "default": 30.0},
        "max_slot_bytes": {"type": "int", "default": 1024 * 1024 * 1024},
    }
    return {
        "source": {"type": "dict", "required": True, "options": login_options()},
        "target": {"type": "dict", "options": login_options()},
        "checks": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": check,
            "required_if": [("kind", "table", ["tables"]), ("kind", "counts", ["tables"])],
        },
        "workers": {"type": "int", "default": 2},
        "parallel_workers": {"type": "int", "default": 0},
        "chunk_rows": {"type": "int", "default": 65536},
        "snapshot": {"type": "str", "choices": ["piece", "run"], "default": "piece"},
        "recheck_rounds": {"type": "int", "default": 10},
        "recheck_delay": {"type": "float", "default": 0.2},
        "lag_timeout": {"type": "float", "default": 60.0},
        "max_differences": {"type": "int", "default": 10000},
        "sample": {"type": "int", "default": 20},
        "duty_percent": {"type": "int", "default": 100},
        "max_lag_bytes": {"type": "int", "default": 0},
        "resume": {"type": "bool", "default": False},
        "resume_within": {"type": "float", "default": 3600.0},
        "state_dir": {"type": "path", "default": "/var/lib/dbops"},
        "report_file": {"type": "path"},
        "plan_file": {"type": "path"},
        "metrics_file": {"type": "path"},
        "metrics_labels": {"type": "dict", "default": {}},
        "fail_on_differences": {"type": "bool", "default": True},
    }


def repair_options() -> dict[str, Any]:
    """Of consistency_repair."""
    return {
        "source": {"type": "dict", "options": login_options()},
        "target": {"type": "dict", "required": True, "options": login_options()},
        "state": {"type": "str", "choices": ["repaired", "undone"], "default": "repaired"},
        "plan_file": {"type": "path"},
        "undo_file": {"type": "path", "required": True},
        "max_age": {"type": "float", "default": 3600.0},
        "max_rows": {"type": "int", "default": 1000},
        "sample": {"type": "int", "default": 20},
    }
