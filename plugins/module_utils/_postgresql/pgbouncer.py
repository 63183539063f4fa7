# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PgBouncer: plan its configuration file, decide for the dead-man, and drive its admin console.

The first half is pure. The second half is the console; what 1.18 does, and what this file therefore does (seen on real
servers, https://www.pgbouncer.org/usage.html):

- ``PAUSE db`` sets ``paused`` at once, holds new transactions at once, and only then waits. So ``paused`` does not mean
  drained: drained is ``paused`` with no server connection left (``current_connections`` 0).
- The waiting PAUSE blocks its session, returns only when *every* paused database of the process has drained, and never
  returns when another session resumes it (issue 715). So each database gets a session of its own, opened beforehand,
  and nothing is concluded from the answer: SHOW DATABASES on the control session is the truth.
- PAUSE outlives the session that sent it. RESUME of a database that is not paused is an error.
- RELOAD answers "RELOAD" also when the file could not be loaded.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from .._core.clock import Clock, Deadline
from .._core.errors import DbopsError
from .client import Endpoint, Session, connect
from .quoting import identifier
from .resolve import Unresolved, look_up

Address = tuple[str, int]
"""Host as written in the configuration, and port."""

_POLL_SECONDS = 0.005
_STALE_SECONDS = 1.0
_RETRY_SECONDS = 0.05
_ATTEMPT_SECONDS = 2.0
_SETTINGS = (
    "admin_users",
    "auth_type",
    "conffile",
    "listen_port",
    "pool_mode",
    "query_wait_timeout",
    "server_login_retry",
    "so_reuseport",
)

# -- the configuration file

_BLANK = re.compile(r"[ \t\n\v\f\r]*")
_INCLUDE = re.compile(r"%include[ \t]+([^\n]*)")
_COMMENT = re.compile(r"[#;][^\n]*")
_SECTION = re.compile(r"\[([^\]\n]*)\]")
_KEY_VALUE = re.compile(r"""(?:"((?:[^"\n]|"")+)"|'([^'\n]+)'|([^\s='"]+))[ \t]*=[ \t]*([^\n]*)""")
_PAIR = re.compile(r" *([^= ]+) *= *('(?:[^']|'')*'(?= |$)|[^ '][^ ]*)")
_DEFAULT_PORT = 5432
_MAX_INCLUDES = 10


@dataclass(frozen=True)
class Entry:
    """One database of [databases] that names a host. The spans are offsets into the text of its file."""

    name: str
    host: str
    port: int
    host_span: tuple[int, int]
    port_span: tuple[int, int] | None

    @property
    def address(self) -> Address:
        return self.host.lower(), self.port


@dataclass(frozen=True)
class ConfigFile:
    """One file of a configuration, and the entries that stand in it."""

    path: str
    text: str
    entries: tuple[Entry, ...]


def read_config(path: str, read: Callable[[str], str]) -> list[ConfigFile]:
    """The configuration ``path`` with the files it includes, parsed as PgBouncer parses it (libusual, cfparser.c).

    ``read`` gives the text of a file. Raises DbopsError where PgBouncer would not load the file.
    """
    files: list[ConfigFile] = []
    _parse(path, "", read, files)
    return files


def repoint(
    text: str, members: Mapping[str, Address], target: str, aliases: Collection[Address] = ()
) -> tuple[str, list[dict[str, str]]]:
    """``repoint_files`` for a text without %include: its new text, and the changes."""

    def no_include(path: str) -> str:
        raise DbopsError(found=f"%include {path}", expected="one text", remedy="give the files that are included too")

    texts, changes = repoint_files(
        read_config("", lambda path: text if path == "" else no_include(path)), members, target, aliases
    )
    return texts.get("", text), changes


def repoint_files(
    files: Iterable[ConfigFile],
    members: Mapping[str, Address],
    target: str,
    aliases: Collection[Address] = (),
    names: Collection[str] = (),
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Route every database of this cluster to ``members[target]``; everything else stays byte for byte.

    ``members`` maps a name to the address under which poolers reach it, ``aliases`` holds further addresses of members.
    ``names``: only these databases.
    Returns the new text of each file that changes, and ``[{"database", "before", "after"}]``.
    Raises DbopsError for a list of hosts with a member in it: where such a pool goes is not ours to decide.
    """
    ours = _lowered([*members.values(), *aliases])
    host, port = members[target]
    texts: dict[str, str] = {}
    changes: list[dict[str, str]] = []
    for file in files:
        text = file.text
        for entry in reversed(file.entries):
            if names and entry.name not in names:
                continue
            hosts = entry.host.split(",")
            if len(hosts) > 1 and any((part.strip().lower(), entry.port) in ours for part in hosts):
                raise DbopsError(
                    found=f"database {entry.name} of {file.path} has the host list {entry.host}",
                    expected="one host per database that belongs to this cluster",
                    remedy="write the primary's address alone; a pool over several members cannot be switched over",
                )
            if entry.address not in ours or entry.address == (host.lower(), port):
                continue
            changes.append({"database": entry.name, "before": f"{entry.host}:{entry.port}", "after": f"{host}:{port}"})
            text = _rewritten(text, entry, host, port)
        if text != file.text:
            texts[file.path] = text
    return texts, changes[::-1]


def routes(files: Iterable[ConfigFile], addresses: Collection[Address]) -> list[Entry]:
    """The entries that lead to one of ``addresses``, also as one of several hosts."""
    ours = _lowered(addresses)
    return [
        entry
        for file in files
        for entry in file.entries
        if any((part.strip().lower(), entry.port) in ours for part in entry.host.split(","))
    ]


def _lowered(addresses: Iterable[Address]) -> set[Address]:
    return {(host.lower(), port) for host, port in addresses}


def _rewritten(text: str, entry: Entry, host: str, port: int) -> str:
    edits = [(entry.host_span, _value(host))]
    if entry.port_span is not None:
        edits.append((entry.port_span, str(port)))
    elif port != _DEFAULT_PORT:
        edits.append(((entry.host_span[1], entry.host_span[1]), f" port={port}"))
    for (start, end), new in sorted(edits, reverse=True):
        quoted = text[start:end].startswith("'") and not new.startswith("'")
        text = text[:start] + (f"'{new}'" if quoted else new) + text[end:]
    return text


def _value(value: str) -> str:
    """Quoted where PgBouncer's connection strings need it; a quote is doubled, there are no backslashes."""
    return value if value and not set(value) & set(" '") else "'" + value.replace("'", "''") + "'"


def _parse(path: str, section: str, read: Callable[[str], str], files: list[ConfigFile], depth: int = 0) -> str:
    """Append ``path`` and its includes to ``files``; the section at its end, for sections reach across includes."""
    if depth > _MAX_INCLUDES:
        raise _unloadable(path, "%include nested too deep")
    text = read(path)
    entries: list[Entry] = []
    at = _skip(text, 0)
    while at < len(text):
        comment, include = _COMMENT.match(text, at), _INCLUDE.match(text, at)
        header, pair = _SECTION.match(text, at), _KEY_VALUE.match(text, at)
        found = comment or include or header or pair
        if found is None:
            raise _unloadable(path, f"a syntax error in line {text.count(chr(10), 0, at) + 1}")
        if comment:
            pass
        elif include:
            section = _parse(include.group(1).rstrip(), section, read, files, depth + 1)
        elif header:
            section = header.group(1)
        elif pair and section == "databases":
            name = (pair.group(1) or "").replace('""', '"') or pair.group(2) or pair.group(3)
            entries.extend(_entry(path, name, pair.group(4).rstrip(), pair.start(4)))
        at = _skip(text, found.end())
    files.append(ConfigFile(path=path, text=text, entries=tuple(entries)))
    return section


def _skip(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


def _entry(path: str, name: str, connection: str, offset: int) -> list[Entry]:
    """The entry of one connection string that begins at ``offset``; none where it names no host (Unix socket)."""
    words: dict[str, tuple[str, tuple[int, int]]] = {}
    at = 0
    while connection[at:].strip(" "):
        pair = _PAIR.match(connection, at)
        if pair is None:
            raise _unloadable(path, f"a connection string of database {name} that cannot be read")
        raw = pair.group(2)
        value = raw[1:-1].replace("''", "'") if raw.startswith("'") else raw
        words[pair.group(1)] = (value, (offset + pair.start(2), offset + pair.end(2)))
        at = pair.end()
    if "host" not in words:
        return []
    host, host_span = words["host"]
    port, port_span = words.get("port", (str(_DEFAULT_PORT), None))
    if not port.isdigit():
        raise _unloadable(path, f"port {port} of database {name}")
    return [Entry(name=name, host=host, port=int(port), host_span=host_span, port_span=port_span)]


def _unloadable(path: str, what: str) -> DbopsError:
    return DbopsError(
        found=f"{path}: {what}",
        expected="a configuration that PgBouncer loads",
        remedy="correct the file; PgBouncer names the line in its log on RELOAD",
    )


# -- the dead-man


@dataclass(frozen=True)
class Sighting:
    """What one member said. ``timeline`` is 0 where it did not answer. ``leased``: a run holds the lease there."""

    name: str
    writable: bool
    timeline: int
    leased: bool = False


@dataclass(frozen=True)
class Verdict:
    """``resume``: now. ``target``: the member to point at first, empty for wherever the pooler points already."""

    resume: bool
    target: str
    reason: str


def writable_on_newest(observations: Sequence[Sighting], best: Sighting | None = None) -> tuple[list[Sighting], int]:
    """Who is writable on the highest timeline that anybody has shown, ``best`` included, and that timeline."""
    seen = [*observations, *([best] if best else [])]
    newest = max((sighting.timeline for sighting in seen), default=0)
    return [item for item in observations if item.writable and item.timeline == newest], newest


def deadman_decision(
    observations: Sequence[Sighting], paused_ms: float, hard_limit_ms: float, best: Sighting | None = None
) -> Verdict:
    """What to do with a pooler that has been paused for too long.

    Nothing while a run holds the lease on any member: it lives, and resumes by itself. Otherwise it resumes toward the
    one member that is writable on the highest timeline anybody has shown. ``best`` is the highest timeline seen
    writable earlier: a member below it is an old primary, and clients sent there would write into a dead branch. Past
    the hard limit clients are let go in any case: toward ``best`` when what is writable now lies below it, else
    wherever the pooler points.
    """
    leased = [item.name for item in observations if item.leased]
    if leased and paused_ms < hard_limit_ms:
        return Verdict(False, "", f"a run holds the lease on {', '.join(leased)}")
    fit, newest = writable_on_newest(observations, best)
    stale = [item for item in observations if item.writable and item.timeline < newest]
    if len(fit) == 1:
        return Verdict(True, fit[0].name, f"writable on timeline {newest}")
    if paused_ms < hard_limit_ms:
        return Verdict(False, "", f"{len(fit)} members are writable on timeline {newest}, one is needed")
    if stale and best and best.timeline == newest:
        return Verdict(True, best.name, f"hard limit; last seen writable on timeline {newest}")
    return Verdict(True, "", "hard limit; no single writable member was seen")


# -- the console


@dataclass(frozen=True)
class PooledDatabase:
    """One row of SHOW DATABASES. ``host`` is empty for a Unix socket; ``pool_mode`` is the effective one."""

    name: str
    host: str
    port: int
    database: str
    pool_mode: str
    current_connections: int
    paused: bool
    disabled: bool

    @property
    def drained(self) -> bool:
        return self.paused and self.current_connections == 0

    @property
    def label(self) -> str:
        flags = "paused, " if self.paused else ""
        return f"{self.name} -> {self.host or 'local socket'}:{self.port} ({flags}{self.current_connections} servers)"


@dataclass(frozen=True)
class PoolUse:
    """SHOW POOLS summed over the users of one database (counts of connections)."""

    database: str
    cl_active: int
    cl_waiting: int
    sv_active: int
    sv_idle: int
    sv_used: int


@dataclass(frozen=True)
class PoolerState:
    """What the pooler says of itself. ``settings`` holds text values as SHOW CONFIG prints them."""

    version: str
    databases: tuple[PooledDatabase, ...]
    pools: tuple[PoolUse, ...]
    settings: Mapping[str, str]

    @property
    def version_number(self) -> tuple[int, int]:
        """``"PgBouncer 1.18.0"`` -> (1, 18)."""
        major, minor = self.version.split()[-1].split(".")[:2]
        return int(major), int(minor)

    @property
    def shares_port(self) -> bool:
        """so_reuseport is on: other processes may listen on the same port, and one console sees only its own."""
        return self.settings.get("so_reuseport", "0") not in ("0", "")

    def is_admin(self, user: str) -> bool:
        """May pause and resume; a stats_user reads all this and may not. ``pgbouncer`` is the socket's owner."""
        admins = [name.strip() for name in self.settings.get("admin_users", "").split(",")]
        return user in (*admins, "pgbouncer") or self.settings.get("auth_type") == "any"


def routed_to(databases: Iterable[PooledDatabase], addresses: Collection[Address]) -> list[PooledDatabase]:
    """The databases whose server is one of ``addresses``."""
    wanted = _lowered(addresses)
    return [database for database in databases if (database.host.lower(), database.port) in wanted]


def following(
    databases: Iterable[PooledDatabase], addresses: Collection[Address], names: Collection[str] = ()
) -> list[PooledDatabase]:
    """The databases that follow the primary: those of ``names``, without names those that lead to ``addresses``."""
    if names:
        return [database for database in databases if database.name in names]
    return routed_to(databases, addresses)


class PoolerConsole:
    """The admin console of one PgBouncer process (``endpoint.dbname`` is ``pgbouncer``).

    Every call ends by its deadline and raises DbopsError when it did not reach what it promises. A broken control
    session is opened again by the next call, so that RESUME survives a restart of the pooler.
    """

    def __init__(self, endpoint: Endpoint, clock: Clock) -> None:
        self.endpoint = endpoint
        self.clock = clock
        self._control: Session | None = None
        self._pausers: dict[str, Session] = {}
        self._refusals: list[DbopsError] = []
        self._login_retry = ""  # server_login_retry as it was found, while it is 0

    # -- reading

    def open(self, deadline: Deadline) -> None:
        """Log in, unless that has been done."""
        self._session(deadline)

    def state(self, deadline: Deadline) -> PoolerState:
        """Everything the prechecks need; four statements."""
        session = self._session(deadline)
        config = {str(row["key"]): row["value"] for row in session.rows("SHOW CONFIG", deadline=deadline)}
        version = session.value("SHOW VERSION", deadline=deadline)
        pools: dict[str, dict[str, int]] = {}
        for row in session.rows("SHOW POOLS", deadline=deadline):
            sums = pools.setdefault(str(row["database"]), {})
            for key in ("cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used"):
                sums[key] = sums.get(key, 0) + int(row[key])
        return PoolerState(
            version=str(version),
            databases=self.databases(deadline, default_mode=str(config.get("pool_mode"))),
            pools=tuple(PoolUse(database=name, **sums) for name, sums in pools.items()),
            settings={key: str(config[key]) for key in _SETTINGS if config.get(key) is not None},
        )

    def tcp_ports(self, deadline: Deadline) -> tuple[int, int] | None:
        """See ``Session.tcp_ports``."""
        return self._session(deadline).tcp_ports()

    def databases(self, deadline: Deadline, *, default_mode: str = "") -> tuple[PooledDatabase, ...]:
        """SHOW DATABASES without the console itself; one statement, for use inside the pause."""
        rows = self._session(deadline).rows("SHOW DATABASES", deadline=deadline)
        return tuple(_database(row, default_mode) for row in rows if row["name"] != "pgbouncer")

    # -- pausing

    def prepare_pause(self, databases: Collection[str], deadline: Deadline | None = None) -> None:
        """Open one session per database, so that nothing has to log in once the pause has begun."""
        for name in databases:
            if name not in self._pausers:
                self._pausers[name] = self._connect(deadline or Deadline.after(self.clock, 10.0))

    def pause(self, databases: Collection[str], deadline: Deadline) -> None:
        """Hold the clients of ``databases`` and wait until no transaction of theirs is left on a server.

        When they have not drained by ``deadline`` all of ``databases`` are resumed before DbopsError is raised (that
        may take up to two seconds more).
        """
        self.start_pause(databases, deadline)
        self.await_pause(databases, deadline)

    def start_pause(self, databases: Collection[str], deadline: Deadline) -> None:
        """First half of ``pause``: send all PAUSEs and return. With several poolers, start all, then await all."""
        self.prepare_pause(databases, deadline)
        self._connect_at_once(deadline)
        self._refusals = []
        for name in databases:
            # A daemon thread that owns its session: the answer may never come, and then the deadline closes it.
            session = self._pausers.pop(name)
            threading.Thread(target=self._send_pause, args=(session, name, deadline), daemon=True).start()

    def await_pause(self, databases: Collection[str], deadline: Deadline) -> None:
        """Second half of ``pause``: wait until all are drained, else resume them and raise DbopsError."""
        try:
            while True:
                if self._refusals:
                    raise self._refusals[0]
                busy = [database for database in self._named(databases, deadline) if not database.drained]
                if not busy:
                    return
                self.clock.sleep(min(_POLL_SECONDS, deadline.left()))
                if deadline.passed():
                    raise DbopsError(
                        found=f"pooler {self.endpoint.label}: still busy: {'; '.join(item.label for item in busy)}",
                        expected="every transaction that was under way ends within the pause limit",
                        remedy="first end long transactions, and clients of pool_mode session; or raise max_pause_ms",
                    )
        except DbopsError as error:
            self._drop_pausers()
            try:
                self.resume(databases, Deadline.after(self.clock, _ATTEMPT_SECONDS))
            except DbopsError as second:
                raise error.with_details(not_resumed=sorted(databases), resume_error=second.message) from second
            raise

    def resume(self, databases: Collection[str], deadline: Deadline) -> None:
        """Let the clients of ``databases`` go on; a database that is not paused is left alone. Verified.

        Tries again on a new session until ``deadline`` when the pooler does not answer or refuses.
        """
        self._drop_pausers()
        while True:
            try:
                attempt = deadline.sooner(_ATTEMPT_SECONDS)
                held = [database for database in self._named(databases, attempt) if database.paused]
                if held:
                    self._connect_at_once(attempt)
                for database in held:
                    self._session(attempt).run(f"RESUME {identifier(database.name)}", deadline=attempt)
                if not any(database.paused for database in self._named(databases, attempt)):
                    self._connected(databases, attempt)
                    return
            except DbopsError as error:
                last = error.message
            else:
                last = "still paused after RESUME"
            if deadline.passed():
                raise DbopsError(
                    found=f"pooler {self.endpoint.label}: clients of {', '.join(sorted(databases))} are held: {last}",
                    expected="RESUME is acknowledged and SHOW DATABASES shows paused = 0",
                    remedy=f"connect to the console of {self.endpoint.name} and run RESUME for each of them",
                )
            self.clock.sleep(min(_RETRY_SECONDS, deadline.left()))

    # -- pointing elsewhere

    def reload(self, deadline: Deadline) -> None:
        """Make the pooler read its file again. What it then uses is for ``repoint_check`` to say."""
        self._session(deadline).run("RELOAD", deadline=deadline)

    def settle(self, deadline: Deadline) -> None:
        """Put back, from the file, the server_login_retry = 0 that a run which died has left."""
        config = self.state(deadline).settings
        if float(config.get("server_login_retry", "15")) == 0:
            self.reload(deadline)

    def repoint_check(self, databases: Collection[str], address: str, port: int, deadline: Deadline) -> None:
        """Raise DbopsError unless each of ``databases`` is routed to ``address``:``port``."""
        named = self._named(databases, deadline)
        right = {database.name for database in routed_to(named, [(address, port)])}
        wrong = [database.label for database in named if database.name not in right]
        if wrong:
            raise DbopsError(
                found=f"pooler {self.endpoint.label} uses {'; '.join(wrong)}",
                expected=f"host={address} port={port}",
                remedy="read the pooler's log: a file with a syntax error is not loaded; see that its process was "
                "started with the file that was rewritten",
            )

    def drop_stale(self, databases: Collection[str], target: Address, deadline: Deadline) -> list[str]:
        """Cut off transactions that wait for a server which the pooler no longer uses. PgBouncer ends such a connection
        with its transaction, and one to a host that is gone or hangs has no end (TCP waits a quarter of an hour, or two
        hours). KILL ends the database's clients too, and RESUME lets them in again. The databases that had to be."""
        patience = Deadline.after(self.clock, _STALE_SECONDS)
        while True:
            stale = self._stale(databases, target, deadline)
            if not stale or patience.passed():
                break
            self.clock.sleep(_RETRY_SECONDS)
        for name in stale:
            self._session(deadline).run(f"KILL {identifier(name)}", deadline=deadline)
            self._session(deadline).run(f"RESUME {identifier(name)}", deadline=deadline)
        return stale

    def _stale(self, databases: Collection[str], target: Address, deadline: Deadline) -> list[str]:
        rows = [
            row
            for row in self._session(deadline).rows("SHOW SERVERS", deadline=deadline)
            if row["database"] in databases and row["state"] == "active" and int(row["close_needed"])
        ]
        try:
            right = [(address, target[1]) for address in look_up(target[0], deadline)] if rows else []
        except Unresolved:
            return []
        return sorted({str(row["database"]) for row in rows if (row["addr"], int(row["port"])) not in right})

    def close(self) -> None:
        self._drop_pausers()
        if self._control is not None:
            self._control.close()
            self._control = None

    # -- inside

    def _connect(self, deadline: Deadline) -> Session:
        return connect(self.endpoint, clock=self.clock, deadline=deadline)

    def _session(self, deadline: Deadline) -> Session:
        if self._control is None or self._control.closed:
            self._control = self._connect(deadline)
        return self._control

    def _send_pause(self, session: Session, name: str, deadline: Deadline) -> None:
        with session:
            try:
                session.run(f"PAUSE {identifier(name)}", deadline=deadline)
            except DbopsError as error:
                if not session.closed:  # the console's own refusal; silence is judged by await_pause
                    self._refusals.append(error)

    def _connect_at_once(self, deadline: Deadline) -> None:
        """A server login that PAUSE cuts off counts as a failed one, and then PgBouncer opens no server connection
        before server_login_retry (15 s) is over, also after RESUME and without a word in its log (seen with 1.18).
        Set before PAUSE, and again before RESUME, because RELOAD puts the file's value back."""
        session = self._session(deadline)
        config = {str(row["key"]): str(row["value"]) for row in session.rows("SHOW CONFIG", deadline=deadline)}
        before = config.get("server_login_retry", "0")
        if float(before) > 0:
            self._login_retry = before
            session.run("SET server_login_retry = 0", deadline=deadline)

    def _connected(self, databases: Collection[str], deadline: Deadline) -> None:
        """Wait until no client of ``databases`` waits without a server connection, then put server_login_retry back."""
        if not self._login_retry:
            return
        while not deadline.passed():
            rows = self._session(deadline).rows("SHOW POOLS", deadline=deadline)
            mine = [row for row in rows if row["database"] in databases]
            servers = ("sv_active", "sv_idle", "sv_used", "sv_tested")
            if all(int(row["cl_waiting"]) == 0 or any(int(row[key]) for key in servers) for row in mine):
                break
            self.clock.sleep(_POLL_SECONDS)
        self._session(deadline).run(f"SET server_login_retry = {int(float(self._login_retry))}", deadline=deadline)
        self._login_retry = ""

    def _drop_pausers(self) -> None:
        for session in self._pausers.values():
            session.close()
        self._pausers = {}

    def _named(self, names: Collection[str], deadline: Deadline) -> list[PooledDatabase]:
        known = {database.name: database for database in self.databases(deadline)}
        missing = sorted(set(names) - set(known))
        if missing:
            raise DbopsError(
                found=f"pooler {self.endpoint.label} has no database {', '.join(missing)}",
                expected="the databases of this cluster stay configured while the operation runs",
                remedy="put them back into the pooler's [databases] section, RELOAD, and run again",
            )
        return [known[name] for name in names]


def _database(row: Mapping[str, Any], default_mode: str) -> PooledDatabase:
    return PooledDatabase(
        name=str(row["name"]),
        host=str(row["host"] or ""),
        port=int(row["port"]),
        database=str(row["database"]),
        pool_mode=str(row["pool_mode"] or default_mode),
        current_connections=int(row["current_connections"]),
        paused=bool(int(row["paused"])),
        disabled=bool(int(row["disabled"])),
    )
