# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Back end "hosts": machines with their own address, systemd as PID 1 and sshd, in systemd-nspawn. Needs root.

A host is an overlay on a base image (tests.lab.image), so a new one costs milliseconds and a few MB. All hosts of a lab
are on one bridge and reach each other and this machine, nothing else. They run detached: whoever started them may end.

    python -m tests.lab.hosts up LAB --inventory FILE HOST=IMAGE ...
    python -m tests.lab.hosts kill LAB HOST       (likewise boot, stop, freeze, thaw, cut, join, slow, ...)
    python -m tests.lab.hosts down [LAB]          (all labs of this checkout)

Each host has a cgroup of its own. Through it a host is killed or frozen whole: SIGKILL of systemd-nspawn alone leaves
its processes running.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import users
from tests.lab.image import OPERATOR, RECIPES, image
from tests.lab.waiting import LabError, wait_for

HOME = users.ROOT_HOME / hashlib.sha256(str(users.CHECKOUT).encode()).hexdigest()[:12] / "hosts"
# RFC 2544's range for test networks: no company network and no VPN is in it.
NETWORK = "198.18"
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
BOOT_SECONDS = 60
COMMAND_SECONDS = 60
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
_DROP_IN = "/run/systemd/system/{unit}.service.d/50-dbops-lab.conf"


def missing() -> list[str]:
    """Why this machine cannot have hosts, in sentences; empty where it can."""
    if os.geteuid() != 0:
        return ["it needs root: mounts, a bridge and containers"]
    problems = [
        f"{program} is not installed (Debian package {package})"
        for program, package in PROGRAMS.items()
        if shutil.which(program) is None
    ]
    if _cgroup2() is None:
        problems.append("no cgroup2 hierarchy is mounted, also not beside cgroup v1")
    users.ROOT_HOME.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=users.ROOT_HOME) as scratch:
        lower, upper, work, merged = (Path(scratch) / name for name in ("lower", "upper", "work", "merged"))
        for place in (lower, upper, work, merged):
            place.mkdir()
        tried = _try("mount", "-t", "overlay", "overlay", "-o", _overlay(lower, upper, work), str(merged))
        if tried.returncode == 0:
            _run("umount", str(merged))
        else:
            problems.append(f"no overlay can be mounted in {users.ROOT_HOME}: {tried.stderr.strip()}")
    if shutil.which("ip"):
        bridge = f"dbops{os.getpid() % 100000}"
        tried = _try("ip", "link", "add", bridge, "type", "bridge")
        if tried.returncode == 0:
            _run("ip", "link", "delete", bridge)
        else:
            problems.append(f"the kernel makes no bridge: {tried.stderr.strip()}")
    return problems


@dataclass
class Host:
    """One machine of a lab."""

    name: str
    image: str
    address: str
    machine: str  # its name for systemd-nspawn, unique on this machine
    directory: Path

    @property
    def merged(self) -> Path:
        return self.directory / "merged"

    @property
    def console(self) -> Path:
        """What the host printed while it booted."""
        return self.directory / "console.log"

    @property
    def interface(self) -> str:
        """This machine's end of the host's network cable."""
        return f"vb-{self.machine}"

    @property
    def cgroups(self) -> list[Path]:
        """In the cgroup2 hierarchy, first, and beside it in systemd's own one where there is cgroup v1."""
        hierarchies = [_cgroup2(), Path("/sys/fs/cgroup/systemd")]
        return [place / f"dbops-lab-{self.machine}" for place in hierarchies if place and place.is_dir()]

    def pids(self) -> list[int]:
        """Every process of the host, systemd-nspawn included."""
        found: list[int] = []
        for procs in [*self.cgroups[0].rglob("cgroup.procs")]:
            try:
                found += map(int, procs.read_text().split())
            except OSError:
                continue  # a unit that ended meanwhile
        return found

    def running(self) -> bool:
        return bool(self.pids())

    def supervisor(self) -> int:
        """The process systemd-nspawn; LabError where the host is down."""
        for pid in self.pids():
            try:
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd-nspawn":
                    return pid
            except OSError:
                continue  # a process that ended meanwhile
        raise LabError(f"host {self.name} is down")


@dataclass
class Lab:
    """The hosts of one scenario. ``directory`` holds lab.json, keys, known_hosts and the hosts' overlays."""

    name: str
    number: int = -1
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return HOME / self.name

    @property
    def bridge(self) -> str:
        return f"dbops{self.number}"

    @property
    def operator_key(self) -> Path:
        """The private key of the user that Ansible logs in as."""
        return self.directory / "operator"

    @property
    def root_key(self) -> Path:
        """The private key of root, with which a scenario prepares its hosts; nothing that is tested may use it."""
        return self.directory / "root"

    @classmethod
    def up(cls, name: str, hosts: Mapping[str, str]) -> Lab:
        """Boot ``hosts`` (name -> image), all at once, and return when ssh answers on each. Replaces a lab ``name``."""
        problems = missing()
        if problems:
            raise LabError("; ".join(problems))
        for kind in sorted(set(hosts.values())):
            image(kind)
        if len(name) > 24:
            raise LabError(f"lab name {name} is too long: the path of a connection's socket has room for 24 letters")
        cls.load(name).down()
        lab = cls(name)
        lab.directory.mkdir(parents=True)
        try:
            lab._make_network()
            for position, (host, kind) in enumerate(hosts.items()):
                machine, place = f"{host}.{lab.number}", lab.directory / "hosts" / host
                lab.hosts[host] = Host(host, kind, f"{NETWORK}.{lab.number}.{11 + position}", machine, place)
                if len(lab.hosts[host].interface) > 15:
                    raise LabError(f"host name {host} is too long: its network interface has room for 15 letters")
            lab._save()  # before anything runs: whoever finds half a lab can take it down
            for key in (lab.operator_key, lab.root_key):
                _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key.name, "-f", str(key))
            for host_ in lab.hosts.values():
                lab._furnish(host_)
            lab._write_known_hosts()
            lab._together(lab.boot)
        except BaseException:
            if not os.environ.get("DBOPS_LAB_KEEP"):
                lab.down()
            raise
        return lab

    @classmethod
    def load(cls, name: str) -> Lab:
        """The lab that some process made; one without hosts where there is none."""
        lab = cls(name)
        try:
            state = json.loads((lab.directory / "lab.json").read_text())
        except FileNotFoundError:
            return lab
        lab.number = state["number"]
        for host, (kind, address) in state["hosts"].items():
            lab.hosts[host] = Host(host, kind, address, f"{host}.{lab.number}", lab.directory / "hosts" / host)
        return lab

    def host(self, name: str) -> Host:
        if name not in self.hosts:
            raise LabError(f"lab {self.name} has no host {name}; it has {', '.join(self.hosts) or 'none'}")
        return self.hosts[name]

    def down(self) -> None:
        """Leave no process, mount, cgroup, interface or file. Harmless for a lab that is gone or half made."""
        self.hang_up()
        for host in self.hosts.values():
            self._kill(host)
            while _mounted(host.merged):
                _run("umount", str(host.merged))
            for group in host.cgroups:
                _remove_cgroup(group)
            shutil.rmtree(f"/run/systemd/nspawn/propagate/{host.machine}", ignore_errors=True)
        if self.number >= 0 and Path(f"/sys/class/net/{self.bridge}").exists():
            _run("ip", "link", "delete", self.bridge)
        shutil.rmtree(self.directory, ignore_errors=True)

    # -- one host

    def boot(self, name: str) -> None:
        """Switch it on, and return when systemd has started everything and ssh answers."""
        host = self.host(name)
        if host.running():
            raise LabError(f"host {name} is up already")
        for group in host.cgroups:
            group.mkdir(exist_ok=True)
        enter = "".join(f"echo $$ >{shlex.quote(str(group / 'cgroup.procs'))} && " for group in host.cgroups)
        nspawn = ["systemd-nspawn", "--quiet", f"--directory={host.merged}", f"--machine={host.machine}", "--boot"]
        nspawn += ["--register=no", "--keep-unit", f"--network-bridge={self.bridge}", "--resolv-conf=off"]
        nspawn += ["--timezone=off", "--link-journal=no", "--console=pipe"]
        with host.console.open("ab") as console:
            # --fork: it belongs to nobody, whoever boots the host may end.
            command = ["setsid", "--fork", "sh", "-c", f"{enter}exec {shlex.join(nspawn)}"]
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, check=True)
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            # Waits for the last job of the boot. A unit that fails ("degraded") is a scenario's business.
            tried = self._ssh(host, "systemctl is-system-running --wait", connect_seconds=2)
            if tried.stdout.strip() in ("running", "degraded"):
                return
            if time.monotonic() > deadline:
                seen = host.console.read_text(errors="replace")[-1500:]
                raise LabError(f"host {name} did not boot in {BOOT_SECONDS} s: {tried.stderr.strip()}\n{seen}")
            time.sleep(0.2)

    def stop(self, name: str) -> None:
        """An orderly shutdown."""
        host = self.host(name)
        os.kill(host.supervisor(), signal.SIGTERM)
        wait_for(lambda: not host.running(), seconds=120, what=f"host {name} to power off")
        self._kill(host)

    def run(self, name: str, command: str, *, given: str = "") -> str:
        """What a shell command printed that root ran, with ``given`` on its standard input; LabError where it fails."""
        done = self._ssh(self.host(name), command, given=given)
        if done.returncode != 0:
            raise LabError(f"{name}: {command}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def send(self, name: str, path: str, text: str) -> None:
        """Write a file."""
        self.run(name, f"install -D -m 644 /dev/stdin {shlex.quote(path)}", given=text)

    # -- faults

    def kill(self, name: str) -> None:
        """The host is gone from one moment to the next. Not a power loss: what it wrote is in this machine's cache."""
        host = self.host(name)
        host.supervisor()  # a fault to a host that is down already is a mistake in a test
        # Its network first: the kernel closes the connections of killed processes, a dead host closes none.
        _run("ip", "link", "delete", host.interface)
        self._kill(host)

    def fence(self, name: str) -> None:
        """Switch it off, whether it runs or not: a fence command of a failover. Undone by boot()."""
        self._kill(self.host(name))

    def is_off(self, name: str) -> None:
        """LabError where it runs: the command that says whether the fence holds."""
        host = self.host(name)
        if host.running():
            raise LabError(f"host {name} runs")

    def freeze(self, name: str) -> None:
        """It hangs: keeps its connections and locks, answers nothing."""
        self._freeze(name, "1")

    def thaw(self, name: str) -> None:
        self._freeze(name, "0")

    def cut(self, name: str) -> None:
        """Pull the network cable."""
        _run("ip", "link", "set", self.host(name).interface, "down")

    def join(self, name: str) -> None:
        """Plug it in again."""
        _run("ip", "link", "set", self.host(name).interface, "up")

    def slow(self, name: str, kilobits: int) -> None:
        """Whatever is sent to the host passes a link of so many kilobits per second. Added latency needs a kernel with
        netem, which this does not use."""
        words = ["rate", f"{kilobits}kbit", "burst", "16kb", "latency", "2s"]
        _run("tc", "qdisc", "replace", "dev", self.host(name).interface, "root", "tbf", *words)

    def fast(self, name: str) -> None:
        """Undo slow()."""
        _run("tc", "qdisc", "delete", "dev", self.host(name).interface, "root")

    def small_disk(self, name: str, directory: str, megabytes: int) -> None:
        """Move ``directory``, which nobody uses meanwhile, onto a file system with so many MB to spare."""
        place = shlex.quote(directory)
        self.run(
            name,
            f"set -e; used=$(du -sm {place} | cut -f1); scratch=$(mktemp -d); cp -a {place}/. $scratch; "
            f"mount -t tmpfs -o size=$((used + {megabytes}))m,mode=$(stat -c %a {place}),"
            f"uid=$(stat -c %u {place}),gid=$(stat -c %g {place}) dbops-lab {place}; "
            f"cp -a $scratch/. {place}; rm -r $scratch",
        )

    def fill(self, name: str, directory: str) -> None:
        """No byte is free there any more. Only after small_disk(): the whole disk is this machine's."""
        place = shlex.quote(directory)
        self.run(name, f"mountpoint -q {place} && {{ cat /dev/zero >{place}/ballast; test -s {place}/ballast; }} 2>&1")

    def drain(self, name: str, directory: str) -> None:
        """Undo fill()."""
        self.run(name, f"rm {shlex.quote(directory)}/ballast")

    def restarts_by_itself(self, name: str, unit: str) -> None:
        """systemd starts the unit again whenever it ends and nobody stopped it through systemd. Until the next boot."""
        text = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=50ms\n"
        self.send(name, _DROP_IN.format(unit=unit), text)
        self.run(name, "systemctl daemon-reload")

    def restarts_no_more(self, name: str, unit: str) -> None:
        """Undo restarts_by_itself()."""
        self.run(name, f"rm {shlex.quote(_DROP_IN.format(unit=unit))} && systemctl daemon-reload")

    # -- for those who log in

    def inventory(self) -> dict[str, Any]:
        """The hosts for Ansible, without groups: those are the scenario's."""
        return {
            "all": {
                "vars": {
                    "ansible_user": OPERATOR,
                    "ansible_ssh_private_key_file": str(self.operator_key),
                    "ansible_ssh_common_args": shlex.join(self._ssh_options()),
                    # A connection that is kept open must not outlive its lab: the next one has the same addresses.
                    "ansible_control_path_dir": str(self.directory / "ssh"),
                    "ansible_ssh_timeout": 3,  # a host that is gone, on a network of no length
                    "ansible_python_interpreter": "/usr/bin/python3",
                    "lab_name": self.name,
                    "lab_hosts": ["env", "-C", str(users.CHECKOUT), sys.executable, "-m", "tests.lab.hosts"],
                    "lab_root_key": str(self.root_key),
                },
                "hosts": {host.name: {"ansible_host": host.address} for host in self.hosts.values()},
            }
        }

    def hang_up(self) -> None:
        """End the connections that Ansible keeps open."""
        for socket in (self.directory / "ssh").glob("*"):
            _try("ssh", "-O", "exit", "-o", f"ControlPath={socket}", "lab")

    # -- how

    def _save(self) -> None:
        state = {
            "number": self.number,
            "hosts": {host.name: (host.image, host.address) for host in self.hosts.values()},
        }
        users.write_file(self.directory / "lab.json", json.dumps(state))

    def _together(self, action: Callable[[str], None]) -> None:
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            for done in [pool.submit(action, name) for name in self.hosts]:
                done.result()

    def _make_network(self) -> None:
        """A bridge of our own; its number is taken by making it, so two labs never share one."""
        routes = _run("ip", "route")
        for number in range(256):
            self.number = number
            if f"{NETWORK}.{number}." not in routes and not Path(f"/sys/class/net/{self.bridge}").exists():
                self._save()
                if _try("ip", "link", "add", self.bridge, "type", "bridge").returncode == 0:
                    _run("ip", "address", "add", f"{NETWORK}.{number}.1/24", "dev", self.bridge)
                    _run("ip", "link", "set", self.bridge, "up")
                    return
        self.number = -1
        raise LabError(f"no free network in {NETWORK}.0.0/16")

    def _mount(self, host: Host) -> None:
        layers = _overlay(image(host.image), host.directory / "upper", host.directory / "work")
        _run("mount", "-t", "overlay", f"dbops-lab-{host.machine}", "-o", layers, str(host.merged))

    def _furnish(self, host: Host) -> None:
        """What makes a host itself: name, address, identity, and who may log in."""
        for layer in ("upper", "work", "merged"):
            (host.directory / layer).mkdir(parents=True)
        self._mount(host)
        names = "".join(f"{other.address} {other.name}\n" for other in self.hosts.values())
        files = {
            "hostname": f"{host.name}\n",
            "hosts": f"127.0.0.1 localhost\n{names}",
            "machine-id": f"{os.urandom(16).hex()}\n",
            "resolv.conf": "",
            "systemd/network/10-host0.network": (
                f"[Match]\nName=host0\n[Network]\nAddress={host.address}/24\nLinkLocalAddressing=no\n"
            ),
        }
        for name, text in files.items():
            users.write_file(host.merged / "etc" / name, text, mode=0o644)
        for key, home in ((self.root_key, "root"), (self.operator_key, f"home/{OPERATOR}")):
            owner = (host.merged / home).stat()
            folder = host.merged / home / ".ssh"
            folder.mkdir(mode=0o700, exist_ok=True)
            users.write_file(folder / "authorized_keys", key.with_suffix(".pub").read_text())
            for path in (folder, folder / "authorized_keys"):
                os.chown(path, owner.st_uid, owner.st_gid)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", str(host.merged / HOST_KEY))

    def _write_known_hosts(self) -> None:
        keys = {host.address: host.merged / f"{HOST_KEY}.pub" for host in self.hosts.values()}
        lines = [f"{address} {key.read_text()}" for address, key in keys.items()]
        (self.directory / "known_hosts").write_text("".join(lines))
        (self.directory / "ssh").mkdir(mode=0o700)

    def _ssh_options(self) -> list[str]:
        known = self.directory / "known_hosts"
        options = {"UserKnownHostsFile": known, "GlobalKnownHostsFile": "/dev/null", "IdentitiesOnly": "yes"}
        return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]

    def _ssh(
        self, host: Host, command: str, *, connect_seconds: int = 10, given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        options = ["-F", "/dev/null", *self._ssh_options(), "-o", f"ConnectTimeout={connect_seconds}"]
        options += ["-o", "BatchMode=yes", "-i", str(self.root_key)]
        return _try("ssh", *options, f"root@{host.address}", command, given=given)

    def _kill(self, host: Host) -> None:
        """Every process of the host at once; then its network interface and cgroups go by themselves or are removed."""
        if host.cgroups[0].is_dir():
            (host.cgroups[0] / "cgroup.freeze").write_text("0")
            (host.cgroups[0] / "cgroup.kill").write_text("1")
            wait_for(lambda: not host.running(), seconds=30, what=f"the processes of {host.name} to end")
        # It would go with the host's network namespace; connections that wait for a peer keep that for minutes.
        _try("ip", "link", "delete", host.interface)
        cable = Path(f"/sys/class/net/{host.interface}")
        wait_for(lambda: not cable.exists(), seconds=30, what=f"{cable.name} to disappear")
        for group in host.cgroups:
            _remove_cgroup(group)
        if host.merged.is_dir():
            # systemd-nspawn locks the tree by its inode and leaves the file when it is killed.
            status = host.merged.stat()
            Path(f"/run/systemd/nspawn/locks/inode-{status.st_dev}:{status.st_ino}").unlink(missing_ok=True)

    def _freeze(self, name: str, state: str) -> None:
        host = self.host(name)
        host.supervisor()
        (host.cgroups[0] / "cgroup.freeze").write_text(state)
        events = host.cgroups[0] / "cgroup.events"
        wait_for(lambda: f"frozen {state}" in events.read_text(), seconds=10, what=f"host {name} to freeze or thaw")


@contextmanager
def lab_of(name: str, hosts: Mapping[str, str]) -> Iterator[Lab]:
    """A lab for one test, gone afterwards."""
    lab = Lab.up(name, hosts)
    try:
        yield lab
    finally:
        lab.down()


def _overlay(lower: Path, upper: Path, work: Path) -> str:
    return f"lowerdir={lower},upperdir={upper},workdir={work}"


def _mounted(place: Path) -> bool:
    return any(line.split()[1] == str(place) for line in Path("/proc/mounts").read_text().splitlines())


def _cgroup2() -> Path | None:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)


def _remove_cgroup(group: Path) -> None:
    for place in sorted(group.rglob("*/"), reverse=True):
        if place.is_dir():
            place.rmdir()
    if group.is_dir():
        group.rmdir()


def _try(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, input=given, timeout=COMMAND_SECONDS
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no end after {COMMAND_SECONDS} s")


def _run(*command: str) -> str:
    done = _try(*command)
    if done.returncode != 0:
        raise LabError(f"{shlex.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


# -- command line

_VERBS: dict[str, Callable[..., None]] = {
    verb.__name__: verb
    for verb in (
        *(
            Lab.boot,
            Lab.stop,
            Lab.kill,
            Lab.fence,
            Lab.is_off,
            Lab.freeze,
            Lab.thaw,
            Lab.cut,
            Lab.join,
            Lab.slow,
            Lab.fast,
            Lab.small_disk,
        ),
        *(Lab.fill, Lab.drain, Lab.restarts_by_itself, Lab.restarts_no_more),
    )
}


def _up(name: str, words: Iterable[str], inventory: Path | None) -> None:
    hosts = dict(word.split("=", 1) for word in words)
    for kind in sorted(set(hosts.values())):
        image(kind)  # outside of what is timed
    started = time.monotonic()
    lab = Lab.up(name, hosts)
    if inventory:
        inventory.parent.mkdir(parents=True, exist_ok=True)
        users.write_file(inventory, json.dumps(lab.inventory(), indent=2))
    print(f"{len(hosts)} hosts up in {time.monotonic() - started:.1f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.hosts", description="A lab of real hosts.")
    parser.add_argument("verb", choices=("check", "image", "up", "down", *_VERBS))
    parser.add_argument(
        "lab", nargs="?", default="", help="its name, any word; for image, one of: " + ", ".join(RECIPES)
    )
    parser.add_argument("words", nargs="*", help="for up HOST=IMAGE ...; for a fault HOST and the fault's arguments")
    parser.add_argument("--inventory", type=Path, help="for up: write the hosts here for Ansible")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "check":
            problems = missing()
            print("\n".join(problems) or "this machine can have hosts")
            return 1 if problems else 0
        if arguments.verb == "image":
            print(image(arguments.lab))
        elif arguments.verb == "up":
            _up(arguments.lab, arguments.words, arguments.inventory)
        elif arguments.verb == "down":
            for name in [arguments.lab] if arguments.lab else [path.name for path in HOME.glob("*")]:
                Lab.load(name).down()
        else:
            lab = Lab.load(arguments.lab)
            _VERBS[arguments.verb](lab, *(int(word) if word.isdigit() else word for word in arguments.words))
            lab.hang_up()  # connections to a host that is gone
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
