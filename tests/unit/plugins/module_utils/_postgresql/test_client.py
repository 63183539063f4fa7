# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deadlines and secrets of the client. What it does with real servers is in tests/integration."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock, Deadline
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import client
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.client import (
    CallTimeout,
    Endpoint,
    Session,
    connect,
    conninfo,
    missing_driver,
    parse_conninfo,
    plain_error,
)
from hypothesis import given
from hypothesis import strategies as st

PASSWORD = "canary-secret"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port that accepts and then says nothing, as a server does whose machine hangs."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def endpoint(port: int) -> Endpoint:
    return Endpoint(name="pg1", host="127.0.0.1", port=port, user="dbops", password=PASSWORD, ssl_mode="disable")


def words(at: Endpoint, *, replication: bool = False) -> dict[str, object]:
    return at.parameters(application_name="dbops test", connect_timeout=2, replication=replication)


def test_a_password_is_in_no_text() -> None:
    at = endpoint(5432)
    assert PASSWORD not in repr(at)
    assert at.label == "pg1 (127.0.0.1:5432)"
    assert Endpoint(name="pg1").label == "pg1 (local socket:5432)"


def test_empty_words_are_left_to_libpq() -> None:
    assert words(Endpoint(name="pg1")) == {
        "port": 5432,
        "dbname": "postgres",
        "sslmode": "prefer",
        "application_name": "dbops test",
        "connect_timeout": 2,
    }


def test_a_replication_connection_names_no_database() -> None:
    made = words(endpoint(5432), replication=True)
    assert made["replication"] == "true"
    assert "dbname" not in made


def test_the_callers_own_words_win() -> None:
    at = Endpoint(name="pg1", connect_params=(("sslmode", "require"), ("target_session_attrs", "any"), ("port", "")))
    made = words(at)
    assert (made["sslmode"], made["target_session_attrs"]) == ("require", "any")
    assert "port" not in made


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.text("a' \\=\"", max_size=8))
def test_a_connection_string_is_quoted_and_unquoted_by_libpq(name: str, path: str) -> None:
    words = {"host": "10.0.0.1", "application_name": name, "passfile": path}
    assert parse_conninfo(conninfo(words)) == {key: value for key, value in words.items() if value}


def test_what_libpq_cannot_read_is_empty() -> None:
    assert parse_conninfo("host='10.0.0.1") == {}
    assert parse_conninfo("no_such_word=1") == {}


def test_errors_are_one_line() -> None:
    assert plain_error(psycopg2.OperationalError("one\n\ttwo\n")) == "one two"
    assert plain_error(psycopg2.OperationalError()) == "OperationalError"
    assert plain_error(CallTimeout()) == "no answer before the deadline"


def test_a_login_that_is_not_answered_ends_at_its_deadline(listener: socket.socket) -> None:
    began = time.monotonic()
    with pytest.raises(DbopsError) as raised:
        connect(endpoint(listener.getsockname()[1]), clock=Clock(), timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 1.5
    assert "as dbops: no answer before the deadline" in raised.value.found
    assert PASSWORD not in raised.value.message


def test_an_explicit_deadline_wins_over_the_timeout(listener: socket.socket) -> None:
    began = time.monotonic()
    with pytest.raises(DbopsError, match="no answer before the deadline"):
        connect(endpoint(listener.getsockname()[1]), clock=Clock(), timeout=60, deadline=Deadline.after(Clock(), 0.1))
    assert time.monotonic() - began < 1.5


def test_a_port_where_nobody_listens_is_named(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(DbopsError) as raised:
        connect(endpoint(port), clock=Clock(), timeout=5)
    assert raised.value.found.startswith(f"cannot log in to pg1 (127.0.0.1:{port}) as dbops: ")
    assert "refused" in raised.value.found
    assert "pg_hba.conf" in raised.value.remedy
    assert PASSWORD not in raised.value.message


def test_a_passfile_that_libpq_ignores_is_named(tmp_path: Path) -> None:
    passfile = tmp_path / "pass"

    def refusal() -> str:
        at = Endpoint(name="pg1", host="127.0.0.1", port=1, user="dbops", passfile=str(passfile))
        with pytest.raises(DbopsError) as raised:
            connect(at, clock=Clock(), timeout=5)
        return raised.value.found

    assert f"passfile {passfile}: No such file or directory" in refusal()
    passfile.write_text(f"*:*:*:*:{PASSWORD}\n")
    passfile.chmod(0o640)
    assert f"passfile {passfile} is ignored" in refusal()
    assert PASSWORD not in refusal()
    passfile.chmod(0o600)
    assert "passfile" not in refusal()


def test_a_closed_session_says_so_and_closes_twice() -> None:
    with Session(endpoint(5432), None, clock=Clock(), timeout=1.0) as session:
        assert session.closed
        with pytest.raises(DbopsError, match=r"pg1 \(127.0.0.1:5432\): the connection is closed"):
            session.value("SELECT 1")
    session.close()


def test_a_missing_driver_is_said_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_driver() is None
    monkeypatch.setattr(client, "psycopg2", None)
    error = missing_driver()
    assert error is not None
    assert "psycopg2 >= 2.8" in error.expected
