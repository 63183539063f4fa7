# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server handled from its own host: real files, real commands, and settings as a real server reads them.

As root the data directory belongs to the lab's user, so that every file made below says whether root stepped down.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock, Deadline
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.local import (
    LocalServer,
    Service,
    with_settings,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lab.binaries import binaries
from tests.lab.users import give, make_directory, server_owner, write_file

NOTHING = Service(("true",), ("true",))
AUTO_CONF = "postgresql.auto.conf"


@pytest.fixture
def data() -> Iterator[Path]:
    """What of a data directory is needed here, where its owner can reach it (pytest's own directories are private)."""
    owner = server_owner()
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        directory = make_directory(Path(scratch) / "data", owner, 0o700)
        for name in ("pg_wal", "pg_wal/archive_status"):
            make_directory(directory / name, owner, 0o700)
        write_file(directory / "PG_VERSION", "18\n", owner)
        write_file(directory / "postgresql.conf", "", owner)
        yield directory


def server(data: Path, service: Service = NOTHING) -> LocalServer:
    return LocalServer(data, service, Clock(), bin_dir=str(binaries("18")))


def soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(Clock(), seconds)


@contextmanager
def postmaster(data: Path, script: str = "import time; time.sleep(60)") -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like the server of ``data``: it works there, and postmaster.pid names it."""
    # As a postmaster does, it heeds SIGQUIT, which whatever a shell runs with "&" ignores.
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=data, preexec_fn=lambda: signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    ) as process:
        (data / "postmaster.pid").write_text(f"{process.pid}\n{data}\n")
        yield process
        process.kill()


# -------------------------------------------------------------------------------------------------------------- service


@pytest.mark.parametrize(
    ("options", "start", "stop", "needs_root"),
    [
        (
            {"manager": "systemd", "name": "postgresql@15-main"},
            "systemctl start postgresql@15-main",
            "systemctl stop postgresql@15-main",
            True,
        ),
        (
            {"manager": "pg_ctlcluster", "name": "15/main"},
            "pg_ctlcluster 15 main start",
            "pg_ctlcluster -m fast 15 main stop",
            False,
        ),
        ({"manager": "command", "start": ["sudo", "up"], "stop": ["sudo", "down"]}, "sudo up", "sudo down", False),
    ],
)
def test_the_commands_of_a_service(options: dict[str, Any], start: str, stop: str, needs_root: bool) -> None:
    service = Service.of(options)
    assert (" ".join(service.start), " ".join(service.stop), service.needs_root) == (start, stop, needs_root)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"manager": "systemd", "name": None}, "name: a unit for systemd"),
        ({"manager": "systemd", "start": ["a"], "stop": ["b"]}, "name: a unit for systemd"),
        ({"manager": "pg_ctlcluster", "name": "main"}, "version/cluster for pg_ctlcluster"),
        ({"manager": "command", "name": "x"}, "start and stop, each a list of words"),
        ({"manager": "command", "start": ["a"], "stop": []}, "start and stop, each a list of words"),
        ({"manager": "command", "start": None, "stop": ["b"]}, "start and stop, each a list of words"),
    ],
)
def test_an_incomplete_service_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(DbopsError) as raised:
        Service.of(options)
    assert expected in raised.value.expected
    assert str(options["manager"]) in raised.value.found
    assert "dbops_clusters" in raised.value.remedy


@pytest.mark.parametrize("name", ["15/", "/main", "/"])
def test_half_a_debian_cluster_is_refused(name: str) -> None:
    with pytest.raises(DbopsError):
        Service.of({"manager": "pg_ctlcluster", "name": name})


def test_a_service_whose_command_is_missing_cannot_be_used() -> None:
    assert NOTHING.problem() == ""
    assert Service(("true",), ("no-such-command", "x")).problem() == "no-such-command is not on this host"
    assert Service(("/no/such/command",), ("true",)).problem() == "/no/such/command is not on this host"


def test_systemd_is_roots() -> None:
    problem = Service(("true",), ("true",), needs_root=True).problem()
    assert problem == ("" if os.geteuid() == 0 else "systemctl needs root")


# -------------------------------------------------------------------------------------------------------------- reading


def test_a_data_directory_that_may_be_used(data: Path) -> None:
    assert server(data).problem() == ""


def test_one_that_is_not_there_or_is_none(data: Path) -> None:
    assert server(data / "x").problem() == f"data_dir {data / 'x'}: No such file or directory"
    assert server(data / "pg_wal").problem() == f"{data / 'pg_wal'} is no PostgreSQL data directory"


def test_one_of_somebody_else() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may act on every data directory")
    assert "neither root nor the owner" in server(Path("/")).problem()


def test_a_server_is_its_process_and_not_only_its_pid_file(data: Path) -> None:
    assert server(data).pid() is None
    for text in (
        "",
        "x",
        f"{os.getpid()}\n",
        "4194305\n",
    ):  # ours works elsewhere; the last is above the kernel's limit
        (data / "postmaster.pid").write_text(text)
        assert server(data).pid() is None
    with postmaster(data) as process:
        assert server(data).pid() == process.pid
        link = data.parent / "link"
        link.symlink_to(data)
        assert server(link).pid() == process.pid


def test_the_programs_are_those_of_the_running_server(data: Path) -> None:
    unknown = LocalServer(data, NOTHING, Clock())
    assert unknown.programs() == ""
    assert unknown.disk_version() == ""
    with postmaster(data):
        assert unknown.programs() == os.path.dirname(os.path.realpath(sys.executable))
    assert server(data).programs() == str(binaries("18"))


def test_the_version_on_disk_is_what_the_program_says(data: Path) -> None:
    assert server(data).disk_version().startswith("18.")
    assert LocalServer(data, NOTHING, Clock(), bin_dir="/no/such/directory").disk_version() == ""


def test_a_setting_of_a_stopped_server(data: Path) -> None:
    (data / "postgresql.conf").write_text("archive_command = 'cp %p /a'\n")
    assert server(data).configured("archive_command", bin_dir="") == "cp %p /a"
    remembered = LocalServer(data, NOTHING, Clock())
    assert remembered.configured("archive_command", bin_dir=str(binaries("18"))) == "cp %p /a"
    assert remembered.configured("archive_command", bin_dir="") is None
    assert remembered.configured("archive_command", bin_dir="/no/such/directory") is None
    assert server(data).configured("no_such_setting", bin_dir="") is None


def test_the_configuration_may_lie_elsewhere(data: Path) -> None:
    elsewhere = make_directory(data.parent / "etc", server_owner())
    write_file(elsewhere / "postgresql.conf", f"data_directory = '{data}'\narchive_mode = always\n", server_owner())
    debian = LocalServer(data, NOTHING, Clock(), bin_dir=str(binaries("18")), config_dir=str(elsewhere))
    assert debian.configured("archive_mode", bin_dir="") == "always"


def test_free_space_is_in_bytes(data: Path) -> None:
    seen = os.statvfs(data)
    assert abs(server(data).free_bytes() - seen.f_bavail * seen.f_frsize) < 1 << 30


# ------------------------------------------------------------------------------------------------------------- passfile


def passfile(data: Path, mode: int = 0o600, owner: str | None = None) -> str:
    return str(write_file(data.parent / "pass", "*:*:*:*:secret\n", server_owner() if owner is None else owner, mode))


def test_a_good_passfile(data: Path) -> None:
    assert server(data).passfile_problem(passfile(data)) == ""
    assert server(data).passfile_problem(passfile(data, 0o400)) == ""


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_passfile_that_others_may_use(data: Path, mode: int) -> None:
    problem = server(data).passfile_problem(passfile(data, mode))
    assert "libpq ignores it (chmod 600)" in problem
    assert "secret" not in problem


def test_a_passfile_that_is_not_there(data: Path) -> None:
    assert server(data).passfile_problem("/no/pass") == "replication_passfile /no/pass: No such file or directory"


def test_a_passfile_of_somebody_else(data: Path) -> None:
    strange = passfile(data, owner="") if os.geteuid() == 0 else "/etc/passwd"
    found = server(data).passfile_problem(strange)
    assert found == f"replication_passfile {strange} belongs to uid 0, the server runs as uid {data.stat().st_uid}"


def test_a_passfile_in_a_directory_that_the_server_cannot_enter(data: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root sees what the server's user cannot")
    private = make_directory(data.parent / "private", "", 0o700)
    hidden = write_file(private / "pass", "", server_owner())
    assert "Permission denied" in server(data).passfile_problem(str(hidden))


# --------------------------------------------------------------------------------------------------------------- acting


def test_the_signal_is_planted_and_removed_any_number_of_times(data: Path) -> None:
    local = server(data)
    assert not local.signal_planted()
    for _time in range(2):
        local.plant_signal()
        assert local.signal_planted()
    planted = data / "standby.signal"
    assert planted.stat().st_mode & 0o777 == 0o600
    assert planted.stat().st_uid == data.stat().st_uid
    for _time in range(2):
        local.remove_signal()
        assert not local.signal_planted()


def test_root_steps_down_and_back_even_when_it_fails(data: Path) -> None:
    before = (os.geteuid(), os.getegid(), os.getgroups())
    seen = []

    def stumble() -> None:
        with server(data).as_owner():
            seen.append((os.geteuid(), os.getegid()))
            raise ZeroDivisionError

    owner = data.stat()
    with pytest.raises(ZeroDivisionError):
        stumble()
    assert seen == [(owner.st_uid, owner.st_gid)]
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


def test_a_program_runs_as_the_owner_in_the_data_directory(data: Path) -> None:
    done = server(data).run_as_owner(["sh", "-c", "id -u; pwd"], timeout=20)
    assert done.stdout.split() == [str(data.stat().st_uid), str(data)]


def test_settings_are_written_for_the_owner_and_read_by_the_server(data: Path) -> None:
    local = server(data)
    local.write_settings({"primary_slot_name": "one"})
    write_file(data / AUTO_CONF, "# Do not edit\nwork_mem = '8MB'\nPrimary_Slot_Name = 'one'\n", server_owner())
    conninfo = "host='10.0.0.2' application_name='it\\'s' passfile='/a b/\\\\x'"
    local.write_settings({"primary_conninfo": conninfo, "primary_slot_name": "dbops_pg1"})
    assert local.configured("primary_conninfo", bin_dir="") == conninfo
    assert local.configured("primary_slot_name", bin_dir="") == "dbops_pg1"
    assert local.configured("work_mem", bin_dir="") == "8192"
    assert (data / AUTO_CONF).stat().st_uid == data.stat().st_uid
    assert (data / AUTO_CONF).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in data.glob("*.dbops")] == []


# A value that ALTER SYSTEM takes has no newline. The other separators have a test of their own below.
SEPARATORS = ["\r", "\v", "\f", "\x1c", "\x85", "\u2028"]
VALUES = st.text(
    st.characters(exclude_characters=["\0", "\n", "\x1d", "\x1e", "\u2029", *SEPARATORS], exclude_categories=["Cs"]),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES, other=VALUES)
def test_whatever_the_value_the_server_reads_it_back(data: Path, value: str, other: str) -> None:
    text = with_settings(with_settings("", {"cluster_name": "before", "dbops.other": other}), {"cluster_name": "x"})
    write_file(data / AUTO_CONF, with_settings(text, {"primary_conninfo": value}), server_owner())
    assert server(data).configured("primary_conninfo", bin_dir="") == value.strip()
    assert server(data).configured("cluster_name", bin_dir="") == "x"


LINES = st.lists(
    st.sampled_from(
        ["# Do not edit this file manually!", "", "work_mem = '8MB'", "Primary_Slot_Name 'a'", "primary_slot_name='b'",
         "  primary_slot_name = c  # why", "dbops.primary_slot_name = 'd'", "#primary_slot_name = 'e'", "include 'f'"]
    )
)  # fmt: skip


@given(LINES)
def test_each_is_set_once_at_the_end_and_the_rest_is_untouched(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    kept = [line for line in lines if not line.lower().lstrip().startswith("primary_slot_name")]
    wanted = {"primary_slot_name": "dbops_pg1", "primary_conninfo": "host=x"}
    result = with_settings(text, wanted)
    assert result.split("\n") == [*kept, "primary_slot_name = 'dbops_pg1'", "primary_conninfo = 'host=x'", ""]
    assert with_settings(result, wanted) == result


@pytest.mark.parametrize("character", SEPARATORS)
def test_a_value_of_somebody_else_is_not_torn(data: Path, character: str) -> None:
    theirs = f"dbops.other = 'a{character}b'\n"
    local = server(data)
    write_file(data / AUTO_CONF, theirs, server_owner())
    assert local.configured("work_mem", bin_dir="") == "4096", "the server reads what was there before"
    local.write_settings({"primary_slot_name": "x"})
    assert (data / AUTO_CONF).read_bytes().startswith(theirs.encode())
    assert local.configured("work_mem", bin_dir="") == "4096"


def test_a_stop_command_does_not_hold_the_run_up(data: Path) -> None:
    local = server(data, Service(("true",), ("sleep", "60")))
    process = local.begin_stop()
    assert os.getpgid(process.pid) == process.pid, "a cancelled run does not take it with it"
    assert local.end_stop(soon(0.05)) is False
    process.kill()
    assert local.end_stop(soon()) is True


def test_the_stop_is_over_when_the_server_is_gone(data: Path) -> None:
    with postmaster(data, "import time; time.sleep(0.3)") as process:
        local = server(data)
        assert local.end_stop(soon(0.05)) is False
        process.wait()
        assert local.end_stop(soon()) is True


def test_an_immediate_stop_sends_sigquit(data: Path) -> None:
    with postmaster(data) as process:
        local = server(data)
        assert local.end_stop(soon(0.0), immediate=True) is False
        assert process.wait(timeout=20) == -signal.SIGQUIT
        assert local.end_stop(soon(), immediate=True) is True


def test_a_start_that_works_says_nothing(data: Path) -> None:
    server(data, Service(("sh", "-c", "echo started"), ("true",))).start(soon())


def test_a_start_that_fails_says_what_the_command_said(data: Path) -> None:
    failing = Service(("sh", "-c", "echo port is in use; echo badly >&2; exit 3"), ("true",))
    with pytest.raises(DbopsError) as raised:
        server(data, failing).start(soon())
    assert "failed (3): port is in use badly" in raised.value.found
    assert str(data) in raised.value.remedy


def test_a_start_that_somebody_else_was_faster_with(data: Path) -> None:
    """pg_ctlcluster fails when the server runs already. That is an error unless the caller expects it."""
    late = server(data, Service(("sh", "-c", "echo already running; exit 2"), ("true",)))
    with postmaster(data):
        assert late.start(soon(), may_run=True) is False
        with pytest.raises(DbopsError, match="already running"):
            late.start(soon())
    with pytest.raises(DbopsError, match="already running"):
        late.start(soon(), may_run=True)


# The command is left alone, so Python complains about a Popen that nobody waits for.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_start_that_does_not_end_is_given_up(data: Path) -> None:
    with pytest.raises(DbopsError, match="did not end in time"):
        server(data, Service(("sleep", "2"), ("true",))).start(soon(0.0))


# -------------------------------------------------------------------------------------------------------------- archive

FILE = "000000030000000000000003"


@pytest.fixture
def archive(data: Path) -> Path:
    """A place for the archive, and one WAL file that waits for it."""
    owner = server_owner()
    write_file(data / "pg_wal" / FILE, "wal", owner)
    write_file(data / "pg_wal" / "archive_status" / f"{FILE}.ready", "", owner)
    return make_directory(data.parent / "archive of pg1", owner, 0o700)


def test_a_file_is_archived_once_and_is_no_longer_waiting(data: Path, archive: Path) -> None:
    local = server(data)
    assert local.unarchived() == [FILE]
    assert local.archive(FILE, f"test ! -f '{archive}/%f' && cp %p '{archive}/%f'", timeout=20)
    assert (archive / FILE).read_text() == "wal"
    assert (archive / FILE).stat().st_uid == data.stat().st_uid
    assert local.unarchived() == []
    assert (data / "pg_wal" / "archive_status" / f"{FILE}.done").exists()


@pytest.mark.parametrize("command", ["false", "cp %p /no/such/directory/%f", "kill -9 $$"])
def test_a_file_that_could_not_be_archived_still_waits(data: Path, archive: Path, command: str) -> None:
    assert not server(data).archive(FILE, command, timeout=20)
    assert server(data).unarchived() == [FILE]


def test_an_archive_command_that_hangs_is_given_up(data: Path, archive: Path) -> None:
    assert not server(data).archive(FILE, "exec sleep 60", timeout=0.1)
    assert server(data).unarchived() == [FILE]


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("%p|%f", f"pg_wal/{FILE}|{FILE}"),
        ("%%p", "%p"),
        ("%%%f%%", f"%{FILE}%"),
        ("%%%%f", "%%f"),
        ("%d 100% %", "%d 100% %"),
    ],
)
def test_placeholders_are_replaced_as_the_archiver_does(data: Path, archive: Path, command: str, printed: str) -> None:
    assert server(data).archive(FILE, f"printf %%s '{command}' > '{archive}/out'", timeout=20)
    assert (archive / "out").read_text() == printed


def test_files_wait_oldest_first_and_history_too(data: Path) -> None:
    status = data / "pg_wal" / "archive_status"
    for name in ("000000030000000000000004", "00000003.history", "000000030000000000000003.partial"):
        write_file(status / f"{name}.ready", "", server_owner())
    write_file(status / "000000030000000000000002.done", "", server_owner())
    give(status, server_owner())
    assert server(data).unarchived() == [
        "00000003.history",
        "000000030000000000000003.partial",
        "000000030000000000000004",
    ]
