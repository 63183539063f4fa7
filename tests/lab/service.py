# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's service manager: ``python -I service.py <node directory> start|stop|status|reload``.

It stands in for systemd where there is none: the server runs in a session of its own and outlives the caller. It runs
as root (and becomes the server's owner) or as the owner, needs only the standard library, and is copied beside the
servers, because their owner may be unable to read the checkout. ``<node directory>/service.json`` describes the server.

It can be a rude manager (Restart=always): while ``<node directory>/restart`` exists, a server that ends, for whatever
reason and after ``stop`` too, is started again within 100 ms.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

START_SECONDS = 60.0
STOP_SECONDS = 300.0
POLL_SECONDS = 0.02


class Unit:
    """One server, as service.json has it: data_dir, config_dir, bin_dir. The directory's owner is the server's."""

    def __init__(self, directory: Path) -> None:
        description = json.loads((directory / "service.json").read_text())
        self.directory = directory
        self.data_dir = Path(description["data_dir"])
        self.config_dir = Path(description["config_dir"])
        self.bin_dir = Path(description["bin_dir"])
        self.log = directory / "postgres.log"

    def become_owner(self) -> bool:
        """False for a stranger, who could not even tell whether the server runs."""
        owner = self.directory.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.setgroups([])
            os.setgid(owner.st_gid)
            os.setuid(owner.st_uid)
        os.umask(0o077)
        return os.geteuid() == owner.st_uid

    def pid(self) -> int | None:
        """The running postmaster of this data directory; None when its pid file is left over or absent."""
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if self.serves(pid) else None

    def serves(self, pid: int) -> bool:
        """Whether process ``pid`` is a server of this data directory; a zombie has no command line and is none."""
        try:
            return os.fsencode(self.data_dir) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False

    def accepts_connections(self) -> bool:
        """What pg_ctl looks at: line 8 of postmaster.pid."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[7].strip() in ("ready", "standby")

    def start(self) -> int:
        supervisor = None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            running = self.pid() is not None  # also one that still shuts down: it is waited for
            if running and self.accepts_connections():
                return 0
            if not running and supervisor is None:
                command = [sys.executable, "-I", os.path.abspath(__file__), str(self.directory), "supervise"]
                supervisor = self.spawn(command)
            elif not running and supervisor is not None and supervisor.poll() is not None:
                return self.fail("the server did not start")
            time.sleep(POLL_SECONDS)
        return self.fail(f"the server was not ready after {START_SECONDS:.0f} s")

    def supervise(self) -> int:
        """Stay the server's parent, to reap it: a killed server that nobody reaps keeps its lock file valid."""
        config = self.config_dir / "postgresql.conf"
        command = [str(self.bin_dir / "postgres"), "-D", str(self.data_dir), "-c", f"config_file={config}"]
        while True:
            code = self.spawn(command).wait()
            if not (self.directory / "restart").exists():
                return code
            time.sleep(POLL_SECONDS)

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """A child in a session of its own, so that it outlives the caller's; its output goes to the server's log."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
                start_new_session=True,
            )

    def stop(self) -> int:
        pid = self.pid()
        if pid is None:
            return 0
        os.kill(pid, signal.SIGINT)  # a fast shutdown
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            if not self.serves(pid):
                return 0
            time.sleep(POLL_SECONDS)
        return self.fail(f"the server had not ended {STOP_SECONDS:.0f} s after SIGINT")

    def status(self) -> int:
        pid = self.pid()
        print(f"running, pid {pid}" if pid else "not running")
        return 0 if pid else 3  # systemctl's and the LSB's number for "not running"

    def reload(self) -> int:
        pid = self.pid()
        if pid is None:
            return self.fail("the server is not running")
        os.kill(pid, signal.SIGHUP)
        return 0

    def fail(self, message: str) -> int:
        tail = self.log.read_text(errors="replace").splitlines()[-15:] if self.log.exists() else []
        print("\n".join([f"{message}; the end of {self.log}:", *tail]), file=sys.stderr)
        return 1


def main(arguments: list[str]) -> int:
    verbs = {"start": Unit.start, "stop": Unit.stop, "status": Unit.status, "reload": Unit.reload}
    if len(arguments) != 2 or arguments[1] not in {*verbs, "supervise"}:
        print(f"usage: service.py <node directory> {'|'.join(verbs)}", file=sys.stderr)
        return 2
    unit = Unit(Path(arguments[0]))
    if not unit.become_owner():
        print(f"run this as root or as the owner of {unit.directory}", file=sys.stderr)
        return 4  # the LSB's number for insufficient privilege
    return {**verbs, "supervise": Unit.supervise}[arguments[1]](unit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
