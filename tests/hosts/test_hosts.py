# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab of hosts does what it says: hosts are hosts, each fault is one, and nothing is left of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import hosts
from tests.lab.hosts import Lab
from tests.lab.server import alive
from tests.lab.users import CHECKOUT
from tests.lab.waiting import LabError, wait_for

NAME = "selftest"
NAMES = (NAME, "selftest13", "interrupted")
UNIT = "dbops-nap"
INTERRUPTIBLE = ("env", "--default-signal=INT")  # a shell starts what it puts into the background without


def traces() -> set[str]:
    """What the labs of this file have on the machine; other labs may come and go meanwhile."""
    found = {name for name in os.listdir("/sys/class/net") if name.startswith(("vb-h1.", "vb-h2."))}
    found |= {lab.bridge for lab in map(Lab.load, NAMES) if Path(f"/sys/class/net/{lab.bridge}").exists()}
    found |= {line for line in Path("/proc/mounts").read_text().splitlines() if line.startswith("dbops-lab-h")}
    found |= {str(path) for path in Path("/sys/fs/cgroup").glob("**/dbops-lab-h[12].*")}
    found |= {str(path) for path in Path("/run/systemd/nspawn").glob("*/h[12].*")}
    found |= {str(hosts.HOME / name) for name in NAMES if (hosts.HOME / name).exists()}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if any(f"{hosts.HOME}/{name}/" in words for name in NAMES):
            found.add(f"{process.name} {words}")
    return found


def answers(address: str) -> bool:
    """Whether its sshd says hello."""
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            connection.settimeout(1)
            return connection.recv(7) == b"SSH-2.0"
    except OSError:
        return False


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab.up(NAME, {"h1": "debian12", "h2": "debian12"})
    yield lab
    assert len(traces()) > 8
    lab.down()
    assert traces() == set()
    assert not Path(f"/sys/class/net/{lab.bridge}").exists()


def test_a_host_is_a_host(lab: Lab) -> None:
    assert lab.run("h1", "cat /proc/1/comm; systemctl is-system-running").split() == ["systemd", "running"]
    assert {lab.run(name, "hostname").strip() for name in lab.hosts} == {"h1", "h2"}
    assert len({lab.run(name, "cat /etc/machine-id /etc/ssh/ssh_host_*.pub") for name in lab.hosts}) == 2
    assert lab.run("h1", "ssh-keyscan -t ed25519 h2 2>/dev/null")
    assert "default" not in lab.run("h1", "ip route")
    with pytest.raises(LabError, match="exit 3: no"):
        lab.run("h1", "echo no >&2; exit 3")


def test_hard_kill(lab: Lab) -> None:
    """Gone with all its processes, back with its disk."""
    lab.run("h1", "echo kept >/root/kept && sync")
    address, pids = lab.host("h1").address, lab.host("h1").pids()
    with socket.create_connection((address, 22), timeout=2) as connection:
        assert connection.recv(7) == b"SSH-2.0"
        started = time.monotonic()
        lab.kill("h1")
        assert time.monotonic() - started < 5
        connection.settimeout(1)
        with pytest.raises(TimeoutError):  # a dead host closes no connection
            list(iter(lambda: connection.recv(100), b""))
    assert pids
    assert not any(map(alive, pids))
    assert not answers(address)
    assert answers(lab.host("h2").address)
    with pytest.raises(LabError, match="h1 is down"):
        lab.kill("h1")
    lab.boot("h1")
    assert lab.run("h1", "cat /root/kept") == "kept\n"


def test_fence(lab: Lab) -> None:
    """Off whether it ran or not; and the command that asks can say no."""
    with pytest.raises(LabError, match="host h1 runs"):
        lab.is_off("h1")
    for _again in range(2):
        lab.fence("h1")
        lab.is_off("h1")
    assert not answers(lab.host("h1").address)
    lab.boot("h1")


def test_power_off(lab: Lab) -> None:
    lab.run("h1", f"systemd-run --quiet --unit={UNIT} -p ExecStop='touch /root/stopped' sleep 1000")
    lab.stop("h1")
    assert (lab.host("h1").merged / "root/stopped").exists(), "units were not stopped in order"
    lab.boot("h1")


def test_hang(lab: Lab) -> None:
    with socket.create_connection((lab.host("h1").address, 22), timeout=2):
        lab.freeze("h1")
        assert not answers(lab.host("h1").address)
        lab.thaw("h1")
    wait_for(lambda: answers(lab.host("h1").address), seconds=10, what="h1 to answer again")


def test_network_cut(lab: Lab) -> None:
    lab.cut("h1")
    assert not answers(lab.host("h1").address)
    assert answers(lab.host("h2").address)
    assert lab.host("h1").running()
    lab.join("h1")
    wait_for(lambda: answers(lab.host("h1").address), seconds=20, what="h1 to answer again")


def test_slow_link(lab: Lab) -> None:
    def seconds() -> float:
        started = time.monotonic()
        lab.send("h1", "/root/some", os.urandom(250_000).hex())
        return time.monotonic() - started

    quick = seconds()
    lab.slow("h1", 1000)
    try:
        slow = seconds()
    finally:
        lab.fast("h1")
    assert quick < 3 < slow, "half a megabyte at 125 kB/s"
    assert seconds() < 3


def test_full_disk(lab: Lab) -> None:
    with pytest.raises(LabError):
        lab.fill("h1", "/srv")
    lab.run("h1", "mkdir -m 750 /srv/data && chown ansible /srv/data && echo kept >/srv/data/kept")
    lab.small_disk("h1", "/srv/data", 5)
    assert lab.run("h1", "stat -c '%U %a' /srv/data; cat /srv/data/kept").split() == ["ansible", "750", "kept"]
    lab.run("h1", "head -c 2000000 /dev/zero >/srv/data/fits && rm /srv/data/fits")
    lab.fill("h1", "/srv/data")
    with pytest.raises(LabError, match="No space left"):
        lab.run("h1", "echo more >/srv/data/more")
    lab.drain("h1", "/srv/data")
    lab.run("h1", "echo more >/srv/data/more")


def test_unit_that_restarts_by_itself(lab: Lab) -> None:
    lab.send("h1", f"/etc/systemd/system/{UNIT}.service", "[Service]\nExecStart=sleep 1000\n")
    lab.run("h1", f"systemctl daemon-reload; systemctl start {UNIT}")
    lab.restarts_by_itself("h1", UNIT)
    pid = main_pid(lab)
    lab.run("h1", f"kill -9 {pid}")
    wait_for(lambda: main_pid(lab) not in (0, pid), seconds=10, what="another process")
    lab.restarts_no_more("h1", UNIT)
    lab.run("h1", f"kill -9 {main_pid(lab)}; sleep 1")
    assert main_pid(lab) == 0


def main_pid(lab: Lab) -> int:
    return int(lab.run("h1", f"systemctl show --property MainPID --value {UNIT}"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_after_an_interrupted_start(lab: Lab, number: signal.Signals) -> None:
    """Ctrl-C while hosts boot, and SIGKILL, after which down() clears up."""
    before = traces()
    command = [*INTERRUPTIBLE, sys.executable, "-m", "tests.lab.hosts", "up", "interrupted", "h1=debian12"]
    process = subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: Lab.load("interrupted").hosts, seconds=20, what="the start to begin")
    half_made = Lab.load("interrupted")
    wait_for(half_made.host("h1").running, seconds=20, what="the host to boot")
    os.killpg(process.pid, number)
    assert process.wait(60) != 0
    if number == signal.SIGKILL:
        assert traces() - before, "it left nothing to clear up"
        Lab.load("interrupted").down()
    assert traces() - before == set()
    assert not Path(f"/sys/class/net/{half_made.bridge}").exists()


def remains(lab: Lab) -> set[str]:
    """What is left on the machine of a scenario's lab, and of the programs that ran the scenario."""
    found = {str(place) for place in (lab.directory, Path(f"/sys/class/net/{lab.bridge}")) if place.exists()}
    found |= {line for line in Path("/proc/mounts").read_text().splitlines() if str(lab.directory) in line}
    found |= {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/dbops-lab-*.{lab.number}")}
    found |= {name for name in os.listdir("/sys/class/net") if re.fullmatch(rf"vb-.*\.{lab.number}", name)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if (
            str(lab.directory) in words
            or f"{CHECKOUT}/molecule/" in words
            or f"tests.lab.hosts up {lab.name} " in words
        ):
            found.add(f"{process.name} {words}")
    return found


@pytest.mark.parametrize("phase", ["create", "prepare"])
def test_nothing_is_left_after_ctrl_c(phase: str) -> None:
    """Ctrl-C to make molecule: while hosts boot, and while a playbook works on them."""
    process = subprocess.Popen(
        [*INTERRUPTIBLE, "make", "molecule", "SCENARIO=promote_replica"],
        cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if f"promote_replica > {phase}] Executing" in line:
                break
        lab = Lab("promote_replica")
        wait_for(lambda: Lab.load(lab.name).hosts, seconds=60, what="hosts to be made")
        lab = Lab.load(lab.name)
        wait_for(lab.host("db1").running, seconds=60, what="a host to run")
        if phase == "prepare":
            wait_for((lab.host("db1").merged / "etc/dbops").exists, seconds=60, what="a playbook to work")
        assert len(remains(lab)) > 8
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode != 0
        time.sleep(2)  # for whatever would still boot a host
        assert remains(lab) == set()
    finally:
        process.kill()
        Lab.load("promote_replica").down()


def test_a_machine_that_cannot_have_hosts() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=nobody", "--clear-groups", "/usr/bin/python3", "-m", "tests.lab.hosts", "check"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "it needs root: mounts, a bridge and containers\n")
    assert hosts.missing() == []


def test_debian_13() -> None:
    """The other image: one lab may have both."""
    with hosts.lab_of("selftest13", {"h1": "debian13"}) as lab:
        assert lab.run("h1", "systemctl is-system-running").strip() == "running"
        versions = "/usr/lib/postgresql/17/bin/postgres --version; redis-server --version; valkey-server --version"
        assert re.findall(r"\) 17|v=8\.0|v=8\.1", lab.run("h1", versions)) == [") 17", "v=8.0", "v=8.1"]
