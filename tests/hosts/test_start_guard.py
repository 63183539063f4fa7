# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A primary whose host was gone during its failover boots: with the guard before its unit it comes up as a standby."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hosts import Lab, lab_of
from tests.lab.operation import environment
from tests.lab.users import CHECKOUT
from tests.lab.waiting import LabError

UNIT = "postgresql@15-main"
DATA = "/var/lib/postgresql/15/main"
PASSFILE = "/var/lib/postgresql/replication.pass"
PRIMARY = f"""set -e
pg_createcluster 15 main >&2
cat >> /etc/postgresql/15/main/postgresql.conf <<'END'
listen_addresses = '*'
END
echo 'host all,replication all samenet scram-sha-256' >> /etc/postgresql/15/main/pg_hba.conf
systemctl start {UNIT}
su postgres -c 'psql -qf /var/lib/postgresql/role.sql'
"""
STANDBY = f"""set -e
pg_createcluster 15 main >&2
rm -r {DATA}
echo 'host all,replication all samenet scram-sha-256' >> /etc/postgresql/15/main/pg_hba.conf
echo "listen_addresses = '*'" >> /etc/postgresql/15/main/postgresql.conf
su postgres -c 'PGPASSFILE={PASSFILE} pg_basebackup -R -h pg1 -U replicator -D {DATA}'
systemctl start {UNIT}
"""


def sql(lab: Lab, name: str, statement: str) -> str:
    return lab.run(name, f"su postgres -c 'psql -Atqc \"{statement}\"'").strip()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """pg1, and pg2 that streams from it."""
    password = secrets.token_hex(16)
    with lab_of("guard", {"pg1": "debian12", "pg2": "debian12"}) as lab:
        for name in lab.hosts:
            lab.send(name, PASSFILE, f"*:*:*:replicator:{password}\n")
            lab.send(name, "/var/lib/postgresql/role.sql", f"CREATE ROLE replicator REPLICATION LOGIN PASSWORD '{password}'")
            lab.run(name, f"cd /var/lib/postgresql && chown postgres: role.sql {PASSFILE} && chmod 600 {PASSFILE}")
        lab.run("pg1", PRIMARY)
        lab.run("pg2", STANDBY)
        yield lab


def guard(lab: Lab, directory: Path) -> str:
    """guard_start.yml, as root over SSH; its recap."""
    inventory: dict[str, Any] = lab.inventory()
    inventory["all"]["vars"] |= {"ansible_user": "root", "ansible_ssh_private_key_file": str(lab.root_key)}
    service = {"manager": "systemd", "name": UNIT}
    members = [
        {"name": host.name, "host": host.name, "address": host.address, "data_dir": DATA, "service": service}
        for host in lab.hosts.values()
    ]
    cluster = {
        "engine": "postgresql",
        "members": members,
        "replication_user": "replicator",
        "replication_passfile": PASSFILE,
    }
    inventory["all"]["vars"] |= {"dbops_clusters": {"main": cluster}, "dbops_cluster": "main"}
    inventory["all"]["children"] = {"main": {"hosts": dict.fromkeys(lab.hosts, {})}}
    path = directory / "inventory.json"
    path.write_text(json.dumps(inventory))
    words = ["-i", str(path), "-e", json.dumps({"dbops_cluster": "main", "promote_replica_start_guard_seconds": 2})]
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", str(CHECKOUT / "playbooks" / "guard_start.yml"), *words],
        cwd=CHECKOUT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "[WARNING]" not in done.stdout + done.stderr
    return done.stdout.partition("PLAY RECAP")[2]


def test_a_primary_that_was_left_behind_boots_as_a_standby(lab: Lab, tmp_path: Path) -> None:
    guard(lab, tmp_path)
    assert "changed=0" in guard(lab, tmp_path)
    for name in ("pg2", "pg1"):
        lab.run(name, f"systemctl restart {UNIT}")
    assert sql(lab, "pg1", "SELECT pg_is_in_recovery()") == "f", "a plain restart of the primary is one"
    lab.kill("pg1")
    sql(lab, "pg2", "SELECT pg_promote()")
    lab.boot("pg1")
    lab.run("pg1", f"systemctl start {UNIT}")
    assert sql(lab, "pg1", "SELECT pg_is_in_recovery()") == "t"
    assert "the cluster is on timeline 2, this server on 1: it starts as a standby" in lab.run(
        "pg1", f"journalctl -u {UNIT}"
    )
    assert lab.run("pg1", f"stat -c %U {DATA}/standby.signal").strip() == "postgres"


def test_with_nobody_to_ask_it_does_not_start(lab: Lab) -> None:
    """Both were down, both were primaries: neither starts until somebody who knows takes the guard out on one."""
    lab.kill("pg2")
    lab.run("pg1", f"systemctl stop {UNIT}; rm -f {DATA}/standby.signal")
    with pytest.raises(LabError):
        lab.run("pg1", f"systemctl start {UNIT}")
    assert "0 of 1 other members answered" in lab.run("pg1", f"journalctl -u {UNIT}")
    lab.boot("pg2")
    with pytest.raises(LabError):
        lab.run("pg2", f"systemctl start {UNIT}")
    lab.run("pg2", f"rm /etc/systemd/system/{UNIT}.service.d/dbops-start-guard.conf && systemctl daemon-reload")
    lab.run("pg2", f"systemctl start {UNIT}")
    assert sql(lab, "pg2", "SELECT pg_is_in_recovery()") == "f"
    lab.run("pg1", f"systemctl reset-failed {UNIT}; systemctl start {UNIT}")
    assert sql(lab, "pg1", "SELECT pg_is_in_recovery()") == "t"
