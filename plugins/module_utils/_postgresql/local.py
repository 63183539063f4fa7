# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server seen and handled from its own host: data directory, signal file, settings of a stopped server, service.

Works as root and as the owner of the data directory; as root, files are touched and programs run as the owner.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._core.clock import Clock, Deadline
from .._core.errors import DbopsError

STANDBY_SIGNAL = "standby.signal"
AUTO_CONF = "postgresql.auto.conf"
_SETTING = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=?\s*(.*)\Z")


@dataclass(frozen=True)
class Service:
    """The commands of the service that owns the server. As root a ``command`` is run as root too: it knows its user."""

    start: tuple[str, ...]
    stop: tuple[str, ...]
    needs_root: bool = False

    @classmethod
    def of(cls, options: dict[str, Any]) -> Service:
        """From the module's ``service`` option. Raises DbopsError where it is incomplete."""
        manager, name = options["manager"], options.get("name") or ""
        if manager == "command":
            if options.get("start") and options.get("stop"):
                return cls(tuple(options["start"]), tuple(options["stop"]))
            wanted = "start and stop, each a list of words"
        elif manager == "systemd" and name:
            return cls(("systemctl", "start", name), ("systemctl", "stop", name), needs_root=True)
        elif manager == "pg_ctlcluster" and all(name.partition("/")):
            version, _slash, cluster = name.partition("/")
            return cls(
                ("pg_ctlcluster", version, cluster, "start"), ("pg_ctlcluster", "-m", "fast", version, cluster, "stop")
            )
        else:
            wanted = "name: a unit for systemd, version/cluster for pg_ctlcluster"
        raise DbopsError(
            found=f"service manager {manager}, name {name or 'not given'}",
            expected=wanted,
            remedy="complete service in this member's entry of dbops_clusters",
        )

    def problem(self) -> str:
        """Why it cannot be used by this user; empty where it can."""
        for argv in (self.start, self.stop):
            if shutil.which(argv[0]) is None:
                return f"{argv[0]} is not on this host"
        if self.needs_root and os.geteuid() != 0:
            return "systemctl needs root"
        return ""


@dataclass(frozen=True)
class LocalServer:
    """The data directory on this host. ``bin_dir`` empty: that of the running postmaster."""

    data_dir: Path
    service: Service
    clock: Clock
    bin_dir: str = ""
    config_dir: str = ""
    _started: list[Any] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of(cls, options: dict[str, Any], clock: Clock) -> LocalServer:
        """From the modules' ``local`` option. Raises DbopsError where its service is incomplete."""
        return cls(
            Path(options["data_dir"]),
            Service.of(options["service"]),
            clock,
            bin_dir=options.get("bin_dir") or "",
            config_dir=options.get("config_dir") or "",
        )

    # -- reading

    def problem(self) -> str:
        """Why this user may not act on the data directory; empty where it may."""
        try:
            owner = self.data_dir.stat().st_uid
        except OSError as error:
            return f"data_dir {self.data_dir}: {error.strerror}"
        if os.geteuid() not in (0, owner):
            return f"this user (uid {os.geteuid()}) is neither root nor the owner of {self.data_dir} (uid {owner})"
        if not (self.data_dir / "PG_VERSION").exists():
            return f"{self.data_dir} is no PostgreSQL data directory"
        return ""

    def pid(self) -> int | None:
        """The postmaster's process, None where no server runs in this directory."""
        try:
            with self.as_owner():
                pid = int((self.data_dir / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid if self.runs(pid) else None

    def runs(self, pid: int) -> bool:
        """Is it a process of the server in this directory?"""
        try:
            return os.readlink(f"/proc/{pid}/cwd") == os.path.realpath(self.data_dir)
        except OSError:
            return False

    def processes(self) -> list[int]:
        """Every process of a server in this directory, also those that a killed postmaster left behind: they can still
        acknowledge a commit."""
        place = os.path.realpath(self.data_dir)
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                if os.readlink(f"/proc/{entry}/cwd") == place and "postgres" in os.readlink(f"/proc/{entry}/exe"):
                    found.append(int(entry))
            except OSError:
                continue  # it has ended, or is somebody else's
        return found

    def programs(self) -> str:
        """Directory of the server's programs; empty where unknown. Of a server that is down only Debian's place can be
        guessed."""
        if self.bin_dir:
            return self.bin_dir
        pid = self.pid()
        if pid:
            return os.path.dirname(os.readlink(f"/proc/{pid}/exe"))
        with self.as_owner():
            major = (self.data_dir / "PG_VERSION").read_text(encoding="utf-8").strip()
        debian = f"/usr/lib/postgresql/{major}/bin"
        return debian if os.path.exists(debian) else ""

    def disk_version(self) -> str:
        """Version of the program that the next start would run, as ``server_version`` prints it; empty: unknown."""
        program = os.path.join(self.programs(), "postgres")
        if not os.path.exists(program):
            return ""
        done = subprocess.run(  # pylint: disable=ansible-bad-function # no AnsibleModule in module_utils
            [program, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
        words = done.stdout.split()
        return words[2] if done.returncode == 0 and len(words) > 2 else ""

    def configured(self, name: str, *, bin_dir: str) -> str | None:
        """A setting as a stopped server would read it (``postgres -C``); None where that cannot be known."""
        program = os.path.join(self.bin_dir or bin_dir or self.programs(), "postgres")
        if not os.path.isabs(program) or not os.path.exists(program):
            return None
        done = self.run_as_owner([program, "-D", self.config_dir or str(self.data_dir), "-C", name], timeout=20)
        return done.stdout.strip() if done.returncode == 0 else None

    def free_bytes(self) -> int:
        usage = os.statvfs(self.data_dir / "pg_wal")
        return usage.f_bavail * usage.f_frsize

    def unlogged(self) -> tuple[int, ...]:
        """Databases, by oid, with unlogged relations: these have an init fork. No session sees all databases.

        Source: https://www.postgresql.org/docs/current/storage-init.html
        """
        with self.as_owner():
            found = [*self.data_dir.glob("base/*/*_init"), *self.data_dir.glob("pg_tblspc/*/PG_*/*/*_init")]
        return tuple(sorted({int(path.parent.name) for path in found if path.parent.name.isdigit()}))

    def signal_planted(self) -> bool:
        return (self.data_dir / STANDBY_SIGNAL).exists()

    def passfile_problem(self, passfile: str) -> str:
        """libpq ignores a passfile that others may read, and the server's user must be able to open it."""
        try:
            with self.as_owner():
                status = os.stat(passfile)
        except OSError as error:
            return f"replication_passfile {passfile}: {error.strerror}"
        owner = self.data_dir.stat().st_uid
        if status.st_uid != owner:
            return f"replication_passfile {passfile} belongs to uid {status.st_uid}, the server runs as uid {owner}"
        if status.st_mode & 0o077:
            return f"replication_passfile {passfile} may be read by others; libpq ignores it (chmod 600)"
        return ""

    # -- acting

    def plant_signal(self) -> None:
        """From now on whoever starts this server starts a standby; it is read at start only."""
        with self.as_owner():
            path = self.data_dir / STANDBY_SIGNAL
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            _sync_directory(self.data_dir)

    def remove_signal(self) -> None:
        with self.as_owner():
            (self.data_dir / STANDBY_SIGNAL).unlink(missing_ok=True)
            _sync_directory(self.data_dir)

    def write_settings(self, values: dict[str, str]) -> None:
        """What ALTER SYSTEM would do, for a server that is stopped."""
        with self.as_owner():
            path = self.data_dir / AUTO_CONF
            # Bytes: other line ends than \n are part of somebody's value.
            text = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
            _write(path, with_settings(text, values).encode("utf-8", "surrogateescape"))

    def begin_stop(self) -> subprocess.Popen[bytes]:
        """Start the service's stop command and return at once: pg_control says when the server is down, the command
        returns when its last process is gone (it waits for the archiver)."""
        # start_new_session: a cancelled run must not take the command with it. The process is waited for in end_stop.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function # run_command waits for the end
            list(self.service.stop), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    @property
    def stop_pending(self) -> bool:
        """The stop command still runs. It may act later than it was started, so nothing that the server says before
        the command has ended is final."""
        return any(process.poll() is None for process in self._started)

    def end_stop(self, deadline: Deadline, *, immediate: bool = False) -> bool:
        """Wait until no process of the server is left; ``immediate`` sends SIGQUIT first (safe: all that was
        acknowledged is in the WAL). False where it still runs at the deadline."""
        if immediate:
            pid = self.pid()
            if pid:
                os.kill(pid, signal.SIGQUIT)
        while self.pid() is not None or self.stop_pending:
            if deadline.passed():
                return False
            self.clock.sleep(0.01)
        return True

    def kill(self, deadline: Deadline) -> None:
        """SIGKILL to every process of the server, for one that does not listen to anything else. All that it
        acknowledged is in its WAL."""
        while not deadline.passed():
            processes = self.processes()
            if not processes:
                return
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.clock.sleep(0.02)

    def start(self, deadline: Deadline, *, may_run: bool = False) -> bool:
        """Run the service's start command to its end. Raises DbopsError with what the command said; with ``may_run``
        returns False where it failed and the server runs, because somebody was faster (systemd with Restart=)."""
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function # run_command has no time limit
                list(self.service.start), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code: int | None = process.wait(timeout=max(1.0, deadline.left()))
            except subprocess.TimeoutExpired:
                code = None
            output.seek(0)
            said = " ".join(output.read()[-400:].decode(errors="replace").split())
        if code is None or (code != 0 and not (may_run and self.pid() is not None)):
            raise DbopsError(
                found=f"{' '.join(self.service.start)} "
                + ("did not end in time" if code is None else f"failed ({code})") + (f": {said}" if said else ""),
                expected="the server starts",
                remedy=f"read the log of the server in {self.data_dir}, mend what it says, and run again",
            )  # fmt: skip
        return code == 0

    # -- files in the data directory

    def keep_copy(self, name: str, copy: str) -> None:
        """A copy of ``name`` as it is now, unless an earlier run has made one."""
        with self.as_owner():
            source = self.data_dir / name
            if not (self.data_dir / copy).exists():
                _write(self.data_dir / copy, source.read_bytes() if source.exists() else b"")

    def has_copy(self, copy: str) -> bool:
        with self.as_owner():
            return (self.data_dir / copy).exists()

    def restore_copy(self, copy: str, name: str) -> None:
        with self.as_owner():
            os.replace(self.data_dir / copy, self.data_dir / name)
            _sync_directory(self.data_dir)

    def drop_copy(self, copy: str) -> None:
        with self.as_owner():
            (self.data_dir / copy).unlink(missing_ok=True)

    def put_file(self, name: str, content: bytes) -> None:
        with self.as_owner():
            _write(self.data_dir / name, content)

    def history(self, timeline: int) -> str:
        """Text of the history file of ``timeline``; the first timeline has none."""
        if timeline == 1:
            return ""
        with self.as_owner():
            path = self.data_dir / "pg_wal" / f"{timeline:08X}.history"
            try:
                return path.read_text(encoding="utf-8", errors="replace")
            except OSError as error:
                raise DbopsError(
                    found=f"cannot read {path}: {error.strerror}",
                    expected="the history of the timeline that this server is on",
                    remedy="fetch it from the archive into pg_wal, or take a new base backup",
                ) from error

    def tablespaces(self) -> bool:
        with self.as_owner():
            return any((self.data_dir / "pg_tblspc").iterdir())

    def make_sibling(self, path: Path) -> None:
        """An empty directory of the owner's beside the data directory; one that an earlier run left is emptied."""
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        if os.geteuid() == 0:
            owner = self.data_dir.stat()
            os.chown(path, owner.st_uid, owner.st_gid)

    def replace_data(self, fresh: Path, aside: Path) -> None:
        """Put ``fresh`` in the place of the data directory, and that to ``aside``."""
        os.rename(self.data_dir, aside)
        os.rename(fresh, self.data_dir)
        _sync_directory(self.data_dir.parent)

    # -- as the owner

    @contextmanager
    def as_owner(self) -> Iterator[None]:
        """Root takes the owner's identity for what touches the data directory."""
        owner = self.data_dir.stat()
        if os.geteuid() != 0 or owner.st_uid == 0:
            yield
            return
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)

    def identity(self) -> dict[str, Any]:
        """The arguments of subprocess that make a program run as the owner."""
        owner = self.data_dir.stat()
        if os.geteuid() != 0 or owner.st_uid == 0:
            return {}
        return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}

    def run_as_owner(
        self, argv: Sequence[str], *, timeout: float, shell: bool = False, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # pylint: disable=ansible-bad-function # run_command has no time limit and no user
            argv[0] if shell else list(argv), shell=shell, cwd=self.data_dir, capture_output=True, text=True,
            timeout=timeout, check=False, stdin=subprocess.DEVNULL, env=environment, **self.identity(),
        )  # fmt: skip

    # -- the archive

    def unarchived(self) -> list[str]:
        """WAL files that wait for an archiver, oldest first. A standby with archive_mode=on has none that would
        take them, so they would be missing from the archive."""
        with self.as_owner():
            return sorted(path.stem for path in (self.data_dir / "pg_wal" / "archive_status").glob("*.ready"))

    def archive(self, name: str, command: str, *, timeout: float) -> bool:
        """Archive one file as the archiver would.

        Source: https://www.postgresql.org/docs/current/continuous-archiving.html
        """
        values = {"%p": f"pg_wal/{name}", "%f": name, "%%": "%"}
        line = re.sub(r"%[pf%]", lambda match: values[match.group()], command)
        try:
            done = self.run_as_owner([line], timeout=timeout, shell=True)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode != 0:
            return False
        with self.as_owner():
            status = self.data_dir / "pg_wal" / "archive_status"
            os.replace(status / f"{name}.ready", status / f"{name}.done")
        return True


def with_settings(text: str, values: dict[str, str]) -> str:
    """``text`` of a postgresql.auto.conf with ``values`` set, each once, at the end; everything else unchanged."""
    lines = []
    for line in text.removesuffix("\n").split("\n") if text else []:
        match = _SETTING.match(line)
        if not (match and match.group(1).lower() in values):
            lines.append(line)
    lines += [f"{name} = '{_escaped(value)}'" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _write(path: Path, content: bytes) -> None:
    """Replace a file as a whole, and durably."""
    temporary = path.with_name(f"{path.name}.dbops-new")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(file, content)
        os.fsync(file)
    finally:
        os.close(file)
    os.replace(temporary, path)
    _sync_directory(path.parent)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _sync_directory(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
