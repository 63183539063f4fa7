# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runner of pgbouncer_guard: stage a pooler's configuration, and keep a dead-man beside it while an operation runs.

The dead-man is the one process that outlives its module. It looks at SHOW DATABASES four times a second. When a
database of this cluster stays paused for longer than the pause limit it looks for the lease of the run that paused it;
where no member that answers shows it, that run has died.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .._core.clock import Clock, Deadline, wait_until
from .._core.errors import DbopsError
from .._postgresql.client import Endpoint, connect
from .._postgresql.lease import HOLDERS, lease_key
from .._postgresql.pgbouncer import (
    Address,
    ConfigFile,
    PooledDatabase,
    PoolerConsole,
    Sighting,
    Verdict,
    deadman_decision,
    following,
    read_config,
    repoint_files,
    routed_to,
    routes,
    writable_on_newest,
)

_LOOK_SECONDS = 0.25
_ASK_SECONDS = 1.0
_CONSOLE_SECONDS = 5.0
_LEASE_SECONDS = 12.0  # a server ends the lease of a host that is gone after 10
_START_SECONDS = 15.0
_TCP_LISTEN = "0A"

# CASE keeps pg_current_wal_lsn() from being called in recovery, where it is an error.
_SIGHTING = """
SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off' AS writable,
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END AS wal_file,
       greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                (SELECT received_tli FROM pg_stat_wal_receiver)) AS followed
"""


@dataclass(frozen=True)
class Member:
    """A server of the cluster: how we log in, and the address that poolers use."""

    name: str
    endpoint: Endpoint
    address: Address


@dataclass(frozen=True)
class Guard:
    """What is guarded: one PgBouncer process, on this host, in front of one cluster."""

    cluster: str
    operation: str
    pooler: Endpoint
    config_file: str
    members: tuple[Member, ...]
    target: str
    pause_limit_ms: int = 3000
    hard_limit_ms: int = 60000
    lifetime_s: int = 900
    state_dir: str = "/var/lib/dbops"
    known_config_files: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()

    @property
    def addresses(self) -> dict[str, Address]:
        return {member.name: member.address for member in self.members}

    @property
    def aliases(self) -> list[Address]:
        """Every address under which a configuration on this host may name a member."""
        return [(member.endpoint.host, member.endpoint.port) for member in self.members]

    @property
    def everywhere(self) -> list[Address]:
        return [*self.addresses.values(), *self.aliases]

    @property
    def pid_file(self) -> str:
        return os.path.join(self.state_dir, "pgbouncer_guard", f"{self.cluster}-{self.pooler.name}.json")

    @property
    def log_file(self) -> str:
        return os.path.splitext(self.pid_file)[0] + ".log"

    @property
    def fingerprint(self) -> str:
        """Tells two guards apart without holding a secret."""
        words = [self.operation, self.config_file, self.target, self.pause_limit_ms, self.hard_limit_ms]
        words += [self.addresses, self.databases]
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()

    def following(self, databases: Iterable[PooledDatabase]) -> list[PooledDatabase]:
        """Those that follow the primary."""
        return following(databases, self.everywhere, self.databases)

    def check(self) -> None:
        if self.target not in self.addresses:
            raise DbopsError(
                found=f"target {self.target}", expected=f"one of {', '.join(self.addresses)}", remedy="correct target"
            )
        for name in ("pause_limit_ms", "hard_limit_ms", "lifetime_s"):
            if getattr(self, name) <= 0:
                raise DbopsError(
                    found=f"{name} {getattr(self, name)}", expected="more than nothing", remedy=f"correct {name}"
                )
        for word in (self.cluster, self.pooler.name):
            if "/" in word or word.startswith("."):
                raise DbopsError(found=word, expected="a name that can be a file's name", remedy="rename it")


# -- the two states


def arm(guard: Guard, clock: Clock, *, check_mode: bool) -> dict[str, Any]:
    """Refuse what cannot be guarded, start the dead-man, then stage the configuration. Result of the module."""
    guard.check()
    _require_no_run(guard, clock)
    processes = pgbouncer_processes()
    count = listeners(guard.pooler.port)
    own = _refuse_hidden_processes(guard, processes, count)
    databases = _guarded_databases(guard, own, clock)
    texts, changes = _planned(guard, guard.target)
    before = _running(guard)
    # Armed and paused: held by a run that has died, unless it shows its lease.
    held = [database.name for database in databases if database.paused] if before is not None else []
    target = deadman_decision(ask(guard, clock), 0, 1).target if held else ""
    keep = before is not None and before["fingerprint"] == guard.fingerprint and _half_left(before, clock)
    keep = keep and not target
    result: dict[str, Any] = {
        "changed": bool(texts) or not keep,
        "listeners": count,
        "processes": [{"pid": process.pid, "config_file": process.config_file} for process in processes],
        "databases": [database.name for database in databases],
        "changes": changes,
        "resumed": held if target else [],
        "replaced_operation": before["operation"] if before and not keep else None,
    }
    if check_mode:
        return {**result, "deadman": _shown(before) if keep else None}
    # The dead-man first: were this run killed in between, it takes the staged file back when its time is over.
    if not keep:
        if before is not None:
            _end(before, clock)
        _start(guard, clock)
    if target:
        # Now, for the dead-man would do it in the midst of this operation and take back what is staged for it.
        console = PoolerConsole(guard.pooler, clock)
        try:
            _release(guard, console, databases, target, clock)
        finally:
            console.close()
        texts = _planned(guard, guard.target)[0]
    _write_all(texts)
    return {**result, "deadman": _shown(_running(guard))}


def _release(
    guard: Guard, console: PoolerConsole, databases: Sequence[PooledDatabase], target: str, clock: Clock
) -> None:
    """Point the pooler at ``target``, in its file and in its memory, and resume what is paused."""
    deadline = Deadline.after(clock, _CONSOLE_SECONDS)
    if target:
        _write_all(_planned(guard, target)[0])
        console.reload(deadline)
        console.repoint_check([database.name for database in databases], *guard.addresses[target], deadline)
    console.resume([database.name for database in databases if database.paused], deadline)


def disarm(guard: Guard, clock: Clock, *, check_mode: bool) -> dict[str, Any]:
    """End the dead-man and leave the pooler on ``target`` in its file and in its memory, not paused.

    Refuses, with the dead-man still armed, while a run is at work, while the pooler does not answer, or while there is
    something to change and the target is not the one writable member on the highest timeline.
    """
    guard.check()
    _require_no_run(guard, clock)
    console = PoolerConsole(guard.pooler, clock)
    try:
        deadline = Deadline.after(clock, _CONSOLE_SECONDS)
        databases = guard.following(console.databases(deadline))
        changes = _planned(guard, guard.target)[1]
        if changes or _unlike(guard, databases):
            _require_writable(guard, clock)
        record, alive = _record(guard), _running(guard)
        events = _events(guard, record)
        statements: list[str] = []
        if not check_mode:
            if alive is not None:
                _end(alive, clock)
            events = _events(guard, record)
            _write_all(_planned(guard, guard.target)[0])  # again: the dead-man may just have acted
            databases = guard.following(console.databases(deadline))
        if any(not _at_target(guard, database) for database in databases):
            statements.append("RELOAD")
        paused = [database.name for database in databases if database.paused]
        statements.extend(f"RESUME {name}" for name in paused)
        if not check_mode:
            for name in _bring_home(guard, console, databases, clock):
                statements += [f"KILL {name}", f"RESUME {name}"]
            if record is not None:
                os.unlink(guard.pid_file)
    finally:
        console.close()
    return {
        "changed": bool(changes or statements or record is not None),
        "deadman": _shown(alive),
        "fired": any(event["event"] == "resumed" for event in events),
        "events": events,
        "databases": [database.name for database in databases],
        "changes": changes,
        "statements": statements,
    }


def _bring_home(guard: Guard, console: PoolerConsole, databases: Sequence[PooledDatabase], clock: Clock) -> list[str]:
    """The databases whose clients had to be cut off from a server that is gone."""
    deadline = Deadline.after(clock, _CONSOLE_SECONDS)
    names = [database.name for database in databases]
    if any(not _at_target(guard, database) for database in databases):
        console.reload(deadline)
    console.repoint_check(names, *guard.addresses[guard.target], deadline)
    console.resume(names, deadline)
    console.settle(deadline)
    return console.drop_stale(names, guard.addresses[guard.target], deadline)


def _at_target(guard: Guard, database: PooledDatabase) -> bool:
    return bool(routed_to([database], [guard.addresses[guard.target]]))


def _unlike(guard: Guard, databases: Sequence[PooledDatabase]) -> bool:
    return any(database.paused or not _at_target(guard, database) for database in databases)


def _require_no_run(guard: Guard, clock: Clock) -> None:
    """The poolers of a run that is at work are its own: what it has staged is what it loads after its promotion."""
    wait_until(
        lambda: [item.name for item in ask(guard, clock) if item.leased],
        lambda leased: not leased,
        deadline=Deadline.after(clock, _LEASE_SECONDS),
        interval=0.2,
        what=f"no run holds the lease of cluster {guard.cluster} any more",
        remedy="wait for that run to end (a cancelled AWX job leaves its module running), then run again",
    )


def _require_writable(guard: Guard, clock: Clock) -> None:
    sightings = ask(guard, clock)
    if [item.name for item in writable_on_newest(sightings)[0]] != [guard.target]:
        seen = ", ".join(
            f"{item.name} {'writable' if item.writable else 'not writable'} on timeline {item.timeline or '?'}"
            for item in sightings
        )
        raise DbopsError(
            found=seen,
            expected=f"{guard.target} is the one writable member on the highest timeline",
            remedy="finish or roll back the operation first; until then the pooler is left as it is and stays guarded",
        )


# -- this host: processes and files


@dataclass(frozen=True)
class Process:
    """A pgbouncer on this host. ``root`` leads to its files where it lives in a container, else it is empty."""

    pid: int
    config_file: str
    root: str


def pgbouncer_processes() -> list[Process]:
    """All of them, with the configuration file of their command line (empty where we may not see it)."""
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            with open(f"/proc/{pid}/comm") as handle:
                if handle.read().strip() != "pgbouncer":
                    continue
            with open(f"/proc/{pid}/cmdline", "rb") as handle:
                argv = [os.fsdecode(word) for word in handle.read().split(b"\0")[:-1]]
        except OSError:  # it has ended meanwhile
            continue
        config_file, root = _config_argument(argv), ""
        try:
            config_file = config_file and os.path.join(os.readlink(f"/proc/{pid}/cwd"), config_file)
            root = "" if os.path.samefile(f"/proc/{pid}/root", "/") else f"/proc/{pid}/root"
        except OSError:  # another user's process: believe an absolute path, give up on a relative one
            config_file = config_file if os.path.isabs(config_file) else ""
        if argv:  # a zombie has none
            found.append(Process(pid=pid, config_file=config_file, root=root))
    return found


def _config_argument(argv: Sequence[str]) -> str:
    words = iter(argv[1:])
    for word in words:
        if word == "--user" or (word.endswith("u") and word.startswith("-") and not word.startswith("--")):
            next(words, None)
        elif not word.startswith("-"):
            return word
    return ""


def listeners(port: int) -> int:
    """How many processes share one listening address on ``port`` (more than one only with so_reuseport)."""
    addresses: Counter[str] = Counter()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(table):
            with open(table) as handle:
                for line in handle.readlines()[1:]:
                    local, state = line.split()[1], line.split()[3]
                    if state == _TCP_LISTEN and int(local.rpartition(":")[2], 16) == port:
                        addresses[local] += 1
    return max(addresses.values(), default=0)


def _refuse_hidden_processes(guard: Guard, processes: Sequence[Process], count: int) -> Process:
    """The one that reads ``guard.config_file``."""
    own = [process for process in processes if _same(process, guard.config_file)]
    if len(own) != 1 or count > 1:
        raise DbopsError(
            found=f"{len(own)} pgbouncer processes with {guard.config_file}, {count} listeners on port "
            f"{guard.pooler.port} (all pgbouncer processes: {_listing(processes)})",
            expected="one process with this configuration, and one listener on its port",
            remedy="a console reaches only one of the processes that share a port: give every process its own "
            "configuration and port (so_reuseport=0), and list each as a pooler of the cluster",
        )
    known = {os.path.realpath(path) for path in guard.known_config_files}
    for process in processes:
        if process in own or (not process.root and os.path.realpath(process.config_file) in known):
            continue
        try:
            strays = routes(_read(process.config_file, process.root), guard.everywhere)
        except DbopsError as error:
            if _start_ticks(process.pid) is None:  # it has ended meanwhile
                continue
            raise DbopsError(
                found=f"pgbouncer process {process.pid}, where it leads to is unknown: {error.found}",
                expected="the configuration of every pgbouncer on this host can be read",
                remedy="run as root, correct that file, or name it in known_config_files once you know it is no "
                f"pooler of cluster {guard.cluster}",
            ) from error
        if strays:
            raise DbopsError(
                found=f"pgbouncer process {process.pid} ({process.config_file}) also leads to cluster {guard.cluster}: "
                f"{', '.join(entry.name for entry in strays)}",
                expected="every pooler of the cluster is listed",
                remedy="add it to the cluster's poolers (and its file to known_config_files), or stop it",
            )
    return own[0]


def _serves(process: Process, ours: int, theirs: int) -> bool:
    """Whether the other end of a TCP connection between these ports is this process's. Where its descriptors are hidden
    from us: whether that end is on this host at all."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError), open(f"/proc/{process.pid}/net/{table}") as handle:
            for line in handle.readlines()[1:]:
                words = line.split()
                if [int(words[index].rpartition(":")[2], 16) for index in (1, 2)] == [theirs, ours]:
                    inodes.add(words[9])
    try:
        names = os.listdir(f"/proc/{process.pid}/fd")
    except OSError:
        return bool(inodes)
    held = set()
    for name in names:
        with suppress(OSError):
            held.add(os.readlink(f"/proc/{process.pid}/fd/{name}"))
    return any(f"socket:[{inode}]" in held for inode in inodes)


def _same(process: Process, config_file: str) -> bool:
    return not process.root and os.path.realpath(process.config_file) == os.path.realpath(config_file)


def _listing(processes: Sequence[Process]) -> str:
    return ", ".join(f"{process.pid} {process.config_file or '?'}" for process in processes) or "none"


def _guarded_databases(guard: Guard, own: Process, clock: Clock) -> list[PooledDatabase]:
    """The databases that follow the primary, after the console has shown that it can be used for what comes."""
    deadline = Deadline.after(clock, _CONSOLE_SECONDS)
    console = PoolerConsole(guard.pooler, clock)
    try:
        state = console.state(deadline)
        ports = console.tcp_ports(deadline)
        here = ports is None or _serves(own, *ports)
    finally:
        console.close()
    conffile = state.settings.get("conffile", "")
    if os.path.isabs(conffile) and os.path.realpath(conffile) != os.path.realpath(guard.config_file):
        raise DbopsError(
            found=f"the process behind {guard.pooler.label} was started with {conffile}",
            expected=guard.config_file,
            remedy="correct the pooler's config_file or its login_host and login_port",
        )
    if not here:
        raise DbopsError(
            found=f"the console of {guard.pooler.label} is not that of pgbouncer process {own.pid} on this host",
            expected=f"the process whose file {guard.config_file} is here answers, with nothing in between",
            remedy="correct the pooler's host, or its login_host and login_port",
        )
    if not state.is_admin(guard.pooler.user):
        raise DbopsError(
            found=f"{guard.pooler.user or 'the OS user'} may not PAUSE on {guard.pooler.label}",
            expected=f"a user of admin_users ({state.settings.get('admin_users') or 'none'})",
            remedy="log in as one of admin_users, or add this user to them and RELOAD",
        )
    files = _read(guard.config_file)
    entries = routes(files, guard.everywhere)
    if not entries:
        raise DbopsError(
            found=f"{guard.config_file} leads to no member of cluster {guard.cluster}",
            expected="a database whose host and port are a member's address and port",
            remedy="take the pooler off this cluster, or write the members' addresses as the pooler's file has them",
        )
    strange = [name for name in guard.databases if name not in {entry.name for entry in entries}]
    if strange:
        known = {entry.name: f"leads to {entry.host}:{entry.port}" for file in files for entry in file.entries}
        raise DbopsError(
            found="; ".join(f"database {name} {known.get(name, 'is not there, or names no host')}" for name in strange)
            + f" ({guard.config_file})",
            expected=f"each of the pooler's databases leads to a member of cluster {guard.cluster}",
            remedy="correct databases of this pooler, or its configuration file",
        )
    return guard.following(state.databases)


def _read(path: str, root: str = "") -> list[ConfigFile]:
    """A configuration with all its files; bytes that are no UTF-8 survive a rewrite."""

    def read(name: str) -> str:
        if not os.path.isabs(name):
            raise DbopsError(found=f"the path {name!r} in {path!r}", expected="an absolute path", remedy="write it out")
        try:
            with open(root + name, encoding="utf-8", errors="surrogateescape", newline="") as handle:
                return handle.read()
        except OSError as error:
            raise DbopsError(
                found=f"{name}: {error.strerror}",
                expected="a readable file",
                remedy="run this module as root or as the owner of the file",
            ) from error

    return read_config(path, read)


def _planned(guard: Guard, target: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    return repoint_files(_read(guard.config_file), guard.addresses, target, guard.aliases, guard.databases)


def _write_all(texts: Mapping[str, str]) -> None:
    for path, text in texts.items():
        _write(path, text)


def _write(path: str, text: str) -> None:
    """Replace a file at once or not at all, with its owner and mode; whoever reads it sees the old or the new one."""
    real = os.path.realpath(path)
    scratch = ""
    try:
        before = os.stat(real)
        handle, scratch = tempfile.mkstemp(dir=os.path.dirname(real), prefix=".dbops-")
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, real)
        scratch = ""
        folder = os.open(os.path.dirname(real), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise DbopsError(
            found=f"cannot replace {real}: {error.strerror}",
            expected="this user may write the pooler's configuration and its directory",
            remedy="run this module as root or as the owner of both",
        ) from error
    finally:
        if scratch:
            os.unlink(scratch)


# -- the members


def ask(guard: Guard, clock: Clock) -> list[Sighting]:
    """Ask every member at once whether it is writable, on which timeline, and whether a run holds the lease there; one
    second for all."""
    lease = lease_key(guard.cluster)
    with ThreadPoolExecutor(max_workers=max(1, len(guard.members))) as pool:
        return list(pool.map(lambda member: _sight(member, lease, clock), guard.members))


def _sight(member: Member, lease: tuple[int, int], clock: Clock) -> Sighting:
    deadline = Deadline.after(clock, _ASK_SECONDS)
    try:
        with connect(member.endpoint, clock=clock, deadline=deadline, application_name="dbops_guard") as session:
            row = session.rows(_SIGHTING, deadline=deadline)[0]
            leased = bool(session.rows(HOLDERS, lease, deadline=deadline))
    except DbopsError:
        return Sighting(name=member.name, writable=False, timeline=0)
    timeline = int(row["wal_file"][:8], 16) if row["wal_file"] else int(row["followed"] or 0)
    return Sighting(member.name, bool(row["writable"]), timeline, leased=leased)


# -- the dead-man's record: who it is, and what it has done


def _start_ticks(pid: int) -> int | None:
    """Start of process ``pid`` in clock ticks since boot (proc(5), field 22): pid and start name one process."""
    try:
        with open(f"/proc/{pid}/stat") as handle:
            fields = handle.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _record(guard: Guard) -> dict[str, Any] | None:
    try:
        with open(guard.pid_file) as handle:
            record: dict[str, Any] = json.load(handle)
            return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DbopsError(
            found=f"{guard.pid_file}: {error}",
            expected="the record of a dead-man",
            remedy="look for a process called dbops-pgb-guard, end it, and remove the file",
        ) from error


def _running(guard: Guard) -> dict[str, Any] | None:
    """The record of a dead-man that is alive."""
    record = _record(guard)
    return record if record and _start_ticks(record["pid"]) == record["start_ticks"] else None


def _half_left(record: Mapping[str, Any], clock: Clock) -> bool:
    return bool(record["until"] - clock.wall() > record["lifetime_s"] / 2)


def _shown(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: record[key] for key in ("pid", "operation", "target", "log", "until")} if record else None


def _events(guard: Guard, record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What the dead-man of ``record`` has logged, oldest first."""
    if record is None or not os.path.exists(guard.log_file):
        return []
    with open(guard.log_file) as handle:
        lines = [json.loads(line) for line in handle if line.endswith("\n")]
    return [line for line in lines if (line["pid"], line["start_ticks"]) == (record["pid"], record["start_ticks"])]


def _end(record: Mapping[str, Any], clock: Clock) -> None:
    """End a dead-man and see it gone. Its own exit is immediate; SIGKILL is for one that hangs in a system call."""
    pid, ticks = record["pid"], record["start_ticks"]
    for number, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        if _start_ticks(pid) == ticks:
            os.kill(pid, number)
        try:
            wait_until(
                lambda: _start_ticks(pid) == ticks,
                lambda alive: not alive,
                deadline=Deadline.after(clock, seconds),
                interval=0.02,
                what=f"the dead-man, process {pid}, ends",
                remedy=f"end process {pid} on the pooler's host and run again",
            )
            return
        except DbopsError:
            if number is signal.SIGKILL:
                raise


# -- the dead-man itself


def _start(guard: Guard, clock: Clock) -> None:
    """Fork the dead-man and return once it has read the console, or raise what it could not do.

    Everything it needs is imported by now: the zip file that Ansible ran us from disappears. It gives up every file
    descriptor that it inherits, for a task hangs as long as anybody holds its output open.
    """
    os.makedirs(os.path.dirname(guard.pid_file), mode=0o700, exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _deadman_process(guard, clock, writing)
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    said = b""
    try:
        deadline = Deadline.after(clock, _START_SECONDS)
        while not said.endswith(b"\n") and select.select([reading], [], [], deadline.left())[0]:
            part = os.read(reading, 4096)
            if not part:
                break
            said += part
    finally:
        os.close(reading)
    if said != b"ready\n":
        raise DbopsError(
            found=f"the dead-man did not start: {said.decode(errors='replace').strip() or 'it said nothing'}",
            expected=f"it reads the console of {guard.pooler.label}",
            remedy=f"see {guard.log_file}; the pooler and its configuration have not been changed",
        )


def _deadman_process(guard: Guard, clock: Clock, ready: int) -> None:
    """The whole life of the forked process; never returns to Ansible's code."""

    def leave(_number: int, _frame: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")
    os.umask(0o077)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    for number in (int(name) for name in os.listdir("/proc/self/fd")):
        if number > 2 and number != ready:
            with suppress(OSError):  # the listing's own descriptor is gone by now
                os.close(number)
    try:
        with open("/proc/self/comm", "w") as handle:
            handle.write("dbops-pgb-guard")
        deadman = Deadman(guard, clock)
        deadman.begin()
    except (DbopsError, OSError) as error:
        os.write(ready, f"{' '.join(str(error).split())}\n".encode())
        return
    os.write(ready, b"ready\n")
    os.close(ready)
    deadman.watch()


class Deadman:
    """Watches one pooler; acts when it has been paused for too long."""

    def __init__(self, guard: Guard, clock: Clock) -> None:
        self.guard = guard
        self.clock = clock
        self.console = PoolerConsole(guard.pooler, clock)
        self.pid = os.getpid()
        self.start_ticks = _start_ticks(self.pid)
        self.end = Deadline.after(clock, guard.lifetime_s)
        self._best: Sighting | None = None
        self._last = ""
        self._decided: Verdict | None = None

    def begin(self) -> None:
        """Be found (pid file), be heard (log), and be able to read the console."""
        guard = self.guard
        record = {
            "pid": self.pid,
            "start_ticks": self.start_ticks,
            "operation": guard.operation,
            "fingerprint": guard.fingerprint,
            "target": guard.target,
            "log": guard.log_file,
            "lifetime_s": guard.lifetime_s,
            "until": self.clock.wall() + guard.lifetime_s,
        }
        scratch = f"{guard.pid_file}.{self.pid}"
        with open(scratch, "w") as handle:
            json.dump(record, handle)
        os.replace(scratch, guard.pid_file)
        try:
            self.console.open(Deadline.after(self.clock, _CONSOLE_SECONDS))
        except DbopsError:
            os.unlink(guard.pid_file)
            raise
        self._log("armed", target=guard.target, lifetime_s=guard.lifetime_s)

    def watch(self) -> None:
        """Until the lifetime is over, and longer while clients are held."""
        since: float | None = None
        while not self.end.passed() or since is not None:
            try:
                databases = self._ours()
                held = [database.name for database in databases if database.paused]
                now = self.clock.monotonic()
                since = (since if since is not None else now) if held else None
                if since is None:
                    self._decided = None
                elif (now - since) * 1000 > self.guard.pause_limit_ms:
                    self._act(databases, held, (now - since) * 1000)
            except Exception as error:  # noqa: BLE001 - whatever happens: a dead-man that dies leaves the clients held
                # Only our own messages are known to hold no secret.
                self._once("failed", error=error.message if isinstance(error, DbopsError) else type(error).__name__)
                since = None if self.end.passed() else since
            self.clock.sleep(_LOOK_SECONDS)
        self._expire()

    def _ours(self) -> list[PooledDatabase]:
        deadline = Deadline.after(self.clock, _ASK_SECONDS)
        return self.guard.following(self.console.databases(deadline))

    def _act(self, databases: Sequence[PooledDatabase], held: Sequence[str], paused_ms: float) -> None:
        sightings = self._look()
        verdict = deadman_decision(sightings, paused_ms, self.guard.hard_limit_ms, self._best)
        # Twice in a row: a run that has just started the old primary again needs a moment to take its lease there.
        certain, self._decided = verdict == self._decided, verdict
        if not verdict.resume:
            self._once("waiting", reason=verdict.reason, databases=list(held))
        if not (verdict.resume and certain):
            return
        _release(self.guard, self.console, databases, verdict.target, self.clock)
        self._log(
            "resumed",
            target=verdict.target,
            reason=verdict.reason,
            databases=list(held),
            paused_ms=round(paused_ms),
            sightings=[vars(sighting) for sighting in sightings],
        )

    def _expire(self) -> None:
        """What is staged must not wait for the next restart of the pooler: the file says where the primary is."""
        verdict = deadman_decision(self._look(), 0, 1, self._best)
        if verdict.target:
            _write_all(_planned(self.guard, verdict.target)[0])
        self._log("expired", target=verdict.target, reason=verdict.reason)

    def _look(self) -> list[Sighting]:
        sightings = ask(self.guard, self.clock)
        writable = [item for item in (*sightings, self._best) if item and item.writable]
        self._best = max(writable, key=lambda item: item.timeline, default=None)
        return sightings

    def _once(self, event: str, **data: Any) -> None:
        """Log, unless it only repeats the line before: this runs four times a second."""
        said = json.dumps([event, data])
        if said != self._last:
            self._log(event, **data)
            self._last = said

    def _log(self, event: str, **data: Any) -> None:
        words = {"t": round(self.clock.wall(), 3), "operation": self.guard.operation, "event": event}
        line = json.dumps({**words, "pid": self.pid, "start_ticks": self.start_ticks, **data})
        with suppress(OSError), open(self.guard.log_file, "a") as handle:  # a full disk must not end it
            handle.write(line + "\n")
