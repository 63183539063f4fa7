# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only user of psycopg2: sessions in which every call has a client-side deadline.

``statement_timeout`` cannot bound a call to a server that is stopped, cut off or a PgBouncer console. So psycopg2
runs with a wait callback (https://www.psycopg.org/docs/advanced.html#support-for-coroutine-libraries) that gives up
when the session's deadline has passed, also while connecting. Names are looked up beforehand, for the same reason.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from .._core.clock import Clock, Deadline
from .._core.errors import DbopsError
from .resolve import Unresolved, is_name, look_up

try:
    import psycopg2
    import psycopg2.extensions
except ImportError:  # pragma: no cover - reported by missing_driver()
    psycopg2 = None  # type: ignore[assignment]


class CallTimeout(Exception):
    """A call did not end before its deadline; the session is of no further use."""


def missing_driver() -> DbopsError | None:
    """The error to report where psycopg2 is not installed on the managed host, else None."""
    if psycopg2 is not None:
        return None
    return DbopsError(
        found="the Python library psycopg2 is not installed for the interpreter that runs this module",
        expected="psycopg2 >= 2.8 on the managed host",
        remedy="install python3-psycopg2 (Debian) or psycopg2-binary (PyPI) on that host",
    )


@dataclass(frozen=True)
class Endpoint:
    """How to log in to one server or one pooler console. Never printed: ``label`` is what messages show."""

    name: str
    host: str = ""
    port: int = 5432
    user: str = ""
    password: str = field(default="", repr=False)
    dbname: str = "postgres"
    passfile: str = ""
    ssl_mode: str = "prefer"
    ca_cert: str = ""
    ssl_cert: str = ""
    ssl_key: str = ""
    connect_params: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        return f"{self.name} ({self.host or 'local socket'}:{self.port})"

    def parameters(self, *, application_name: str, connect_timeout: int, replication: bool) -> dict[str, Any]:
        """libpq keywords. Empty ones are left out, so that libpq's own defaults and PGPASSFILE apply."""
        words: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": self.dbname,
            "passfile": self.passfile,
            "sslmode": self.ssl_mode,
            "sslrootcert": self.ca_cert,
            "sslcert": self.ssl_cert,
            "sslkey": self.ssl_key,
            "application_name": application_name,
            "connect_timeout": connect_timeout,
        }
        if replication:
            words["replication"] = "true"
            words.pop("dbname")
        words.update(dict(self.connect_params))
        return {key: value for key, value in words.items() if value not in ("", None)}


def _with_addresses(words: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
    """libpq keywords with the addresses of a host that is a name; libpq tries them in order, as it would itself."""
    host = words.get("host", "")
    if "hostaddr" in words or not is_name(host):
        return words
    addresses = look_up(host, deadline)
    return {**words, "host": ",".join([host] * len(addresses)), "hostaddr": ",".join(addresses)}


_deadline = threading.local()


def _wait(connection: Any) -> None:
    """psycopg2's wait callback: poll with select, never past the deadline of the call that runs."""
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        deadline: Deadline | None = getattr(_deadline, "current", None)
        left = deadline.left() if deadline is not None else 60.0
        reads, writes = ([connection], []) if state == psycopg2.extensions.POLL_READ else ([], [connection])
        if not any(select.select(reads, writes, [], left)[:2]):
            raise CallTimeout()


@contextmanager
def _bounded(deadline: Deadline) -> Iterator[None]:
    before = getattr(_deadline, "current", None)
    _deadline.current = deadline
    try:
        yield
    finally:
        _deadline.current = before


def conninfo(words: dict[str, str]) -> str:
    """A connection string with libpq's own quoting; empty values are left out."""
    return str(psycopg2.extensions.make_dsn(**{key: value for key, value in words.items() if value}))


def parse_conninfo(text: str) -> dict[str, str]:
    """Its words, unquoted by libpq itself; empty where libpq cannot read it."""
    try:
        return dict(psycopg2.extensions.parse_dsn(text))
    except psycopg2.Error:
        return {}


def plain_error(error: BaseException) -> str:
    """The server's or libpq's message on one line. libpq never puts passwords into its messages."""
    if isinstance(error, CallTimeout):
        return "no answer before the deadline"
    return " ".join(str(error).split()) or type(error).__name__


class Session:
    """One autocommit connection. Every call ends by ``timeout`` seconds or by an explicit deadline.

    Raises DbopsError when the server refuses, breaks or does not answer; after ``no answer`` the session is closed.
    """

    def __init__(self, endpoint: Endpoint, connection: Any, *, clock: Clock, timeout: float) -> None:
        self.endpoint = endpoint
        self.clock = clock
        self.timeout = timeout
        self._connection = connection

    def tcp_ports(self) -> tuple[int, int] | None:
        """Our own port and the server's, as the kernel has them; None over a Unix socket."""
        with socket.fromfd(self._connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as end:
            ours, theirs = end.getsockname(), end.getpeername()
        return (ours[1], theirs[1]) if isinstance(ours, tuple) else None

    @property
    def closed(self) -> bool:
        return self._connection is None or bool(self._connection.closed)

    @property
    def raw(self) -> Any:
        return self._connection

    def rows(
        self,
        statement: Any,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> list[dict[str, Any]]:
        """Run one statement; a list of dictionaries, empty where it returns no rows."""
        names, rows = self._result(statement, parameters, deadline)
        return [dict(zip(names, row)) for row in rows]

    def tuples(self, statement: Any, *, deadline: Deadline | None = None) -> list[tuple[Any, ...]]:
        """The same without names, for results that are large; ``statement`` is complete, a % in it is a %."""
        return self._result(statement, None, deadline)[1]

    def _result(
        self, statement: Any, parameters: Sequence[Any] | Mapping[str, Any] | None, deadline: Deadline | None
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        deadline = deadline or Deadline.after(self.clock, self.timeout)
        if self.closed:
            raise self._error("the connection is closed")
        try:
            with _bounded(deadline), self._connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                if cursor.description is None:
                    return [], []
                return [column[0] for column in cursor.description], cursor.fetchall()
        except CallTimeout as error:
            self.close()
            raise self._error(plain_error(error)) from error
        except psycopg2.Error as error:
            brief = {"primary": error.diag.message_primary or "", "constraint": error.diag.constraint_name or ""}
            raise self._error(plain_error(error), sqlstate=error.pgcode or "").with_details(**brief) from error

    def value(
        self,
        statement: Any,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> Any:
        """First column of the first row; None where there is no row."""
        rows = self.rows(statement, parameters, deadline=deadline)
        return next(iter(rows[0].values())) if rows else None

    def run(
        self,
        statement: Any,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> None:
        self.rows(statement, parameters, deadline=deadline)

    def copy(self, statement: str, file: Any) -> None:
        """COPY … TO STDOUT into, or FROM STDIN out of, a binary file. Only in a session of ``copying()``."""
        try:
            with self._connection.cursor() as cursor:
                cursor.copy_expert(statement, file, size=1 << 16)
        except psycopg2.Error as error:
            raise self._error(plain_error(error), sqlstate=error.pgcode or "") from error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg2.Error):
                connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _error(self, text: str, *, sqlstate: str = "") -> DbopsError:
        return DbopsError(
            found=f"{self.endpoint.label}: {text}",
            expected="the server answers this session",
            remedy=f"look at the server's log on {self.endpoint.name} and at the network between the hosts",
            details={"sqlstate": sqlstate} if sqlstate else None,
        )


@contextmanager
def copying() -> Iterator[None]:
    """Sessions that are made within can COPY, and have no deadline: with a wait callback psycopg2 cannot copy. What
    ends them when the other side is gone is TCP."""
    _without_callback.append(True)
    psycopg2.extensions.set_wait_callback(None)
    try:
        yield
    finally:
        _without_callback.pop()
        psycopg2.extensions.set_wait_callback(_wait)


_without_callback: list[bool] = []


def ignored_passfile(path: str) -> str:
    """Why libpq takes no password from the file: what it says on standard error, if at all. Empty if it does."""
    if not path:
        return ""
    try:
        with open(path, "rb") as handle:
            shared = os.fstat(handle.fileno()).st_mode & 0o077
    except OSError as error:
        return f"; passfile {path}: {error.strerror}"
    return f"; passfile {path} is ignored, because others than its owner have access to it: chmod 600" if shared else ""


def connect(
    endpoint: Endpoint,
    *,
    clock: Clock,
    timeout: float = 10.0,
    deadline: Deadline | None = None,
    application_name: str = "dbops",
    replication: bool = False,
) -> Session:
    """Log in. ``timeout`` (seconds) bounds the login and is the default of every later call."""
    deadline = deadline or Deadline.after(clock, timeout)
    psycopg2.extensions.set_wait_callback(None if _without_callback else _wait)
    words = endpoint.parameters(
        application_name=application_name, connect_timeout=max(2, int(deadline.left()) + 1), replication=replication
    )
    try:
        with _bounded(deadline):
            connection = psycopg2.connect(**_with_addresses(words, deadline))
            connection.autocommit = True
    except (CallTimeout, Unresolved, psycopg2.Error) as error:
        raise DbopsError(
            found=f"cannot log in to {endpoint.label} as {endpoint.user or 'the OS user'}: {plain_error(error)}"
            + ignored_passfile(endpoint.passfile),
            expected="a server that answers there and accepts this user",
            remedy="check login_host, login_port, the user's password or passfile, and pg_hba.conf for this client",
        ) from error
    return Session(endpoint, connection, clock=clock, timeout=timeout)
