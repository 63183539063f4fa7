# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names: what has to be looked up, in which order addresses are tried, and a real name server that never answers.

The last two run in a process with a network, an /etc/hosts and an /etc/resolv.conf of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock, Deadline
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.client import Endpoint, connect
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.resolve import Unresolved, is_name, look_up

COLLECTIONS = Path(sys.prefix) / "collections"
BEGIN = """
import fcntl, json, socket, struct, time
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.client import Endpoint, connect

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:  # SIOCSIFFLAGS, IFF_UP: lo is down at first
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))

def log_in(host, port, seconds):
    began = time.monotonic()
    try:
        connect(Endpoint(name="pg1", host=host, port=port, user="dbops", ssl_mode="disable"), clock=Clock(),
                timeout=seconds)
    except DbopsError as error:
        return {"found": error.found, "seconds": time.monotonic() - began}
"""


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("db.example", True),
        ("localhost", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("", False),
        ("/run/postgresql", False),
        ("@abstract", False),
        ("db1.example,db2.example", False),
        ("x" * 80 + ".example", True),
    ],
)
def test_what_has_to_be_looked_up(host: str, name: bool) -> None:
    assert is_name(host) == name


def test_a_name_without_an_address_is_said_in_libpqs_words() -> None:
    began = time.monotonic()
    for host in ("no-such-host.invalid", "x" * 80 + ".example"):
        with pytest.raises(Unresolved, match=f'could not translate host name "{host}" to address: .'):
            look_up(host, Deadline.after(Clock(), 30))
    with pytest.raises(DbopsError, match=r"cannot log in to pg1 .* as dbops: could not translate host name"):
        connect(Endpoint(name="pg1", host="no-such-host.invalid", user="dbops"), clock=Clock(), timeout=30)
    assert time.monotonic() - began < 30


def elsewhere(tmp_path: Path, code: str, **files: str) -> Any:
    """What the Python ``code`` prints as JSON, run with other files in /etc."""
    command = ""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        command += f"mount --bind {tmp_path / name} /etc/{name.replace('_', '.')} && "
    (tmp_path / "code.py").write_text(BEGIN + textwrap.dedent(code))
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "--net", "sh", "-c", f'{command} exec "$0" "$@"', sys.executable,
         str(tmp_path / "code.py")],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
    )  # fmt: skip
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"NOT TESTED: this machine gives its users no namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_name_server_that_never_answers_costs_no_more_than_the_deadline(tmp_path: Path) -> None:
    found = elsewhere(
        tmp_path,
        """
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 53))
            result = log_in("db.example", 5432, 0.5)
            server.settimeout(1)
            print(json.dumps({**result, "asked": b"example" in server.recv(4096)}))
        """,
        resolv_conf="nameserver 127.0.0.1\n",
        nsswitch_conf="hosts: files dns\n",
    )
    assert found["asked"]
    assert 0.5 <= found["seconds"] < 1.5
    assert 'did not find the address of "db.example" before the deadline' in found["found"]


def test_the_addresses_of_a_name_are_tried_one_after_another(tmp_path: Path) -> None:
    """As libpq does by itself: on the first nobody listens, the last one accepts."""
    found = elsewhere(
        tmp_path,
        """
        last = socket.getaddrinfo("db.example", None, type=socket.SOCK_STREAM)[-1][4][0]
        with socket.create_server((last, 6000)) as server:
            result = log_in("db.example", 6000, 0.5)
            server.settimeout(1)
            print(json.dumps({**result, "port": server.accept()[0].getsockname()[1]}))
        """,
        hosts="127.0.0.2 db.example\n127.0.0.1 db.example\n",
        nsswitch_conf="hosts: files\n",
    )
    assert found["port"] == 6000
    assert "no answer before the deadline" in found["found"]
