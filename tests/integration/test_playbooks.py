# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks as people run them, with two clusters in one inventory whose members share their hosts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml

from tests.integration.conftest import borrowed
from tests.integration.scene import Scene, Standing, illness, read_only_database, snapshot
from tests.lab import inventory, users
from tests.lab.operation import environment
from tests.lab.pooler import Pooler
from tests.lab.users import CHECKOUT

on_18 = pytest.mark.parametrize("standing", ["18"], indirect=True, scope="session")


@pytest.fixture(scope="module")
def neighbour_standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """The second cluster of the inventory: its members pg1 and pg2 are on the hosts of the first one's."""
    directory = tmp_path_factory.mktemp("neighbour") / "lab"
    standing = Standing(directory, "18", members=("pg1", "pg2"), name="billing")
    yield standing
    standing.destroy()


@pytest.fixture
def neighbour(neighbour_standing: Standing) -> Iterator[Scene]:
    yield from borrowed(neighbour_standing)


class Run:
    """One ansible-playbook, without a terminal. A warning is a failure, but for the one of a run that was killed."""

    def __init__(self, playbook: str, inventory_file: Path, *words: str, **variables: Any) -> None:
        command = [sys.executable, "-m", "ansible", "playbook", str(CHECKOUT / "playbooks" / f"{playbook}.yml")]
        command += ["--inventory", str(inventory_file), "--extra-vars", json.dumps(variables), *words]
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            env=environment(
                ANSIBLE_LOCAL_TEMP=str(inventory_file.parent / "local"),
                ANSIBLE_REMOTE_TEMP=str(inventory_file.parent / "remote"),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        self.code = done.returncode
        self.output = done.stdout
        texts = (r"an unfinished run \(\w+\) was rolled back first", "Could not match .*: dbops_cluster_is_not_given")
        foreseen = re.compile(rf"\[WARNING]: ({'|'.join(texts)})")
        assert "WARNING]" not in foreseen.sub("", self.output), self.output

    @property
    def text(self) -> str:
        """The output without its line breaks, which may be anywhere in a message."""
        return " ".join(self.output.split())

    @property
    def changed(self) -> int:
        recap = self.output.partition("PLAY RECAP")[2]
        return sum(int(number) for number in re.findall(r"changed=(\d+)", recap))

    def succeeded(self, *, changed: bool) -> Run:
        assert self.code == 0, self.output
        assert bool(self.changed) == changed, self.output
        return self

    def failed(self, *texts: str) -> Run:
        assert self.code != 0, self.output
        for text in texts:
            assert text in self.text, self.output
        return self


def dumped(path: Path, data: dict[str, Any]) -> Path:
    return users.write_file(path, yaml.safe_dump(data, sort_keys=False))


@on_18
def test_a_round_by_playbook(scene: Scene, neighbour: Scene, tmp_path: Path) -> None:
    """Check, do, do again, take back, take back again; the neighbour on the same hosts notices nothing."""
    hosts = inventory.write(scene.cluster, neighbour.cluster)
    words = {"dbops_cluster": scene.cluster.name, "promote_replica_candidate": scene.candidate.name}
    beside, before = snapshot(neighbour.cluster), snapshot(scene.cluster)

    checked = Run("promote_replica", hosts, "--check", "--diff", **words).succeeded(changed=True)
    assert snapshot(scene.cluster) == before
    assert "POINT OF NO RETURN" in checked.text
    assert "ROW EXCLUSIVE on dbops.operation" in checked.text
    assert "pg_promote(false)" in checked.text
    assert re.search(r"(?m)^\+ +role: standby", checked.output), checked.output

    Run("promote_replica", hosts, "--tags", "plan", **words).succeeded(changed=False)
    Run("promote_replica", hosts, "--tags", "verify", **words).failed(f"{scene.candidate.name} is the only primary")
    Run("promote_replica", hosts, "--skip-tags", "plan", **words).failed("the plan was left out")
    assert snapshot(scene.cluster) == before

    switched = Run("promote_replica", hosts, "--diff", **words).succeeded(changed=True)
    for said in (f"switched over from {scene.primary.name} to", "shutdown_checkpoint_end:", "holds: true", "pause_ms:"):
        assert said in switched.text
    assert scene.cluster.primary() is scene.candidate
    done = snapshot(scene.cluster)
    Run("promote_replica", hosts, **words).succeeded(changed=False)
    assert snapshot(scene.cluster) == done

    rollback = {"dbops_cluster": scene.cluster.name}
    Run("promote_replica_rollback", hosts, "--check", **rollback).succeeded(changed=True)
    assert snapshot(scene.cluster) == done
    Run("promote_replica_rollback", hosts, **rollback).succeeded(changed=True)
    assert scene.cluster.primary() is scene.primary
    undone = snapshot(scene.cluster)
    Run("promote_replica_rollback", hosts, **rollback).succeeded(changed=False)
    assert snapshot(scene.cluster) == undone
    assert snapshot(neighbour.cluster) == beside


@on_18
def test_a_module_that_was_killed(scene: Scene, tmp_path: Path) -> None:
    """What Ansible makes of it names a dead process and a return code. The operator has to read what to do."""
    data = inventory.inventory(scene.cluster)
    words = {"dbops_cluster": scene.cluster.name, "promote_replica_candidate": scene.candidate.name}
    lock = scene.cluster.state_dir(scene.primary.name) / scene.cluster.name / "lock"
    old = next(
        member
        for member in data["all"]["vars"]["dbops_clusters"][scene.cluster.name]["members"]
        if member["name"] == scene.primary.name
    )
    proper = old["service"]
    old["service"] = {**proper, "stop": ["sh", "-c", f"kill -9 $(sed 's/.* //' {lock})"]}
    Run("promote_replica", dumped(tmp_path / "hosts.yml", data), **words).failed(
        "what to do: run this playbook again: it finishes what was begun, or takes it back"
    )
    assert scene.cluster.primary() is scene.primary
    old["service"] = proper
    again = Run("promote_replica", dumped(tmp_path / "hosts.yml", data), **words).succeeded(changed=True)
    assert "was rolled back first" in again.text
    assert scene.cluster.primary() is scene.candidate


class Reader:
    """A client of the read-only pool that reads for as long as the block runs: how often, and its errors."""

    def __init__(self, pooler: Pooler) -> None:
        self.pooler = pooler
        self.reads = 0
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        try:
            with closing(psycopg2.connect(self.pooler.dsn("accounts_ro"))) as connection:
                connection.autocommit = True
                while not self._stop.is_set():
                    connection.cursor().execute("SELECT 1")
                    self.reads += 1
                    time.sleep(0.01)
        except psycopg2.Error as error:
            self.errors.append(str(error))

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(10)


@on_18
def test_a_pool_for_reading_stays_where_it_is(scene: Scene, tmp_path: Path) -> None:
    """The pooler's option databases names the one that follows the primary; there and back."""
    data = inventory.inventory(scene.cluster)
    words = {"dbops_cluster": scene.cluster.name, "promote_replica_candidate": scene.candidate.name}
    [pooler] = data["all"]["vars"]["dbops_clusters"][scene.cluster.name]["poolers"]
    with read_only_database(scene), Reader(scene.pooler) as reader:
        Run("promote_replica", dumped(tmp_path / "all.yml", data), **words).failed("pooler1/accounts_ro points to")
        pooler["databases"] = ["accounts"]
        hosts = dumped(tmp_path / "named.yml", data)
        Run("promote_replica", hosts, **words).succeeded(changed=True)
        assert scene.cluster.primary() is scene.candidate
        assert illness(scene.cluster) == ""
        Run("promote_replica_rollback", hosts, dbops_cluster=scene.cluster.name).succeeded(changed=True)
        rows = {row["name"]: (row["port"], row["paused"]) for row in scene.pooler.console("SHOW DATABASES")}
        assert rows["accounts_ro"] == (scene.sibling.port, 0)
        assert rows["accounts"] == (scene.primary.port, 0)
    assert reader.errors == []
    assert reader.reads > 500
    pooler["databases"] = ["acounts"]
    Run("promote_replica", dumped(tmp_path / "misspelt.yml", data), **words).failed("database acounts is not there")


@on_18
def test_a_consistency_check_as_a_gate(scene: Scene, tmp_path: Path) -> None:
    """Nothing begins while it fails; the primary and the candidate are compared."""
    primary = scene.primary
    primary.sql("CREATE TABLE gated (id serial); INSERT INTO gated VALUES (5)")
    primary.sql(f"GRANT SELECT ON gated, gated_id_seq TO {users.OPERATOR}")
    file = inventory.write(scene.cluster)
    variables = {
        "dbops_cluster": scene.cluster.name,
        "promote_replica_candidate": scene.candidate.name,
        "promote_replica_consistency_checks": [
            {"kind": "sequences", "tables": ["public.gated"]},
            {"kind": "counts", "tables": ["public.gated"]},
        ],
    }
    before = snapshot(scene.cluster)
    try:
        Run("promote_replica", file, **variables).failed("sequences of source: 1 differences")
        assert snapshot(scene.cluster) == before
        primary.sql("SELECT setval('gated_id_seq', 5)")
        scene.cluster.wait_streaming({scene.candidate.name})
        done = Run("promote_replica", file, **variables).succeeded(changed=True)
        assert "counts of public.gated: no difference (1 source, 1 target)" in done.text
    finally:
        scene.cluster.primary().sql("DROP TABLE gated")


@on_18
def test_bad_input(scene: Scene, neighbour: Scene, tmp_path: Path) -> None:
    """Refused by the playbook itself, before any module that could change something runs."""
    data = inventory.inventory(scene.cluster, neighbour.cluster)
    hosts = dumped(tmp_path / "hosts.yml", data)
    words = {"dbops_cluster": scene.cluster.name, "promote_replica_candidate": scene.candidate.name}
    before = snapshot(scene.cluster), snapshot(neighbour.cluster)

    hidden = inventory.host(scene.sibling.name)
    Run("promote_replica", hosts, "--limit", f"all:!{hidden}", **words).failed(
        f"found: {hidden} is not in this play", "expected: the hosts of all members", "what to do: run without --limit"
    )
    Run("promote_replica", hosts, **{**words, "promote_replica_candidate": "pg9"}).failed(
        "found: candidate pg9", "expected: one of pg1, pg2, pg3", "what to do: name a member"
    )
    Run("promote_replica", hosts, dbops_cluster=scene.cluster.name).failed(
        "found: candidate not given; expected: one of pg1, pg2, pg3; what to do: name a member"
    )
    Run("promote_replica", hosts, promote_replica_max_pause=100, **words).failed(
        "found: promote_replica_max_pause; expected: variables that this role has; what to do: correct the name"
    )

    accounts = data["all"]["vars"]["dbops_clusters"][scene.cluster.name]
    member = accounts["members"][1]
    member["datadir"] = member.pop("data_dir")
    Run("promote_replica", dumped(tmp_path / "lacks.yml", data), **words).failed(
        f"found: {member['name']} has no data_dir", "what to do: correct dbops_clusters"
    )
    member["data_dir"] = member.pop("datadir")
    accounts["pooler"] = accounts.pop("poolers")
    Run("promote_replica", dumped(tmp_path / "misspelt.yml", data), "--check", **words).failed(
        "found: pooler; expected: words of dbops_clusters that this collection knows; what to do: correct the word"
    )
    accounts["poolers"] = accounts.pop("pooler")

    accounts["login_password"] = "not-the-password"
    del accounts["passfile"]
    run = Run("promote_replica", dumped(tmp_path / "wrong.yml", data), **words).failed(
        "[nodes_reachable] cannot log in to", "password authentication failed", "what to do: [nodes_reachable] check"
    )
    assert "not-the-password" not in run.output
    assert (snapshot(scene.cluster), snapshot(neighbour.cluster)) == before


@on_18
@pytest.mark.parametrize("playbook", ["promote_replica", "promote_replica_rollback"])
@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        pytest.param("acounts", [], id="misspelt"),
        pytest.param("billing", ["--limit", "lab-pg3"], id="limited-to-others"),
    ],
)
def test_a_play_without_hosts(
    scene: Scene, neighbour: Scene, tmp_path: Path, playbook: str, cluster: str, words: list[str]
) -> None:
    """It ends well for Ansible; for an operator it must not. (lab-pg3 has no member of billing.)"""
    hosts = dumped(tmp_path / "hosts.yml", inventory.inventory(scene.cluster, neighbour.cluster))
    command = [sys.executable, "-m", "ansible", "playbook", str(CHECKOUT / "playbooks" / f"{playbook}.yml")]
    command += ["--inventory", str(hosts), "--extra-vars", f"dbops_cluster={cluster} promote_replica_candidate=pg2"]
    done = subprocess.run(
        [*command, *words], cwd=CHECKOUT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0, done.stdout + done.stderr
    assert "what to do" in done.stdout


class Eavesdropper:
    """Looks for secrets in the command line and the environment of every process while it is entered."""

    def __init__(self, secrets: dict[str, bytes]) -> None:
        self.secrets = secrets
        self.found: set[str] = set()
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def _listen(self) -> None:
        while not self._stop.is_set():
            for path in (*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")):
                try:
                    content = path.read_bytes()
                except OSError:
                    continue  # ended meanwhile
                self.found |= {
                    f"{path.name} has the password of {who}" for who, word in self.secrets.items() if word in content
                }
            self.looks += 1
            time.sleep(0.05)

    def __enter__(self) -> Eavesdropper:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()


def containing(secrets: dict[str, bytes], *places: Path, but: frozenset[Path]) -> list[str]:
    found = []
    for path in (path for place in places for path in [place, *place.rglob("*")]):
        if path.is_file() and not path.is_symlink() and path not in but:
            content = path.read_bytes()
            found += [f"{path} has the password of {who}" for who, word in secrets.items() if word in content]
    return found


@on_18
def test_no_secret_is_left_anywhere(scene: Scene, tmp_path: Path) -> None:
    """Every password is in the inventory, the servers log every statement, Ansible prints all it can."""
    cluster = scene.cluster
    passwords = users.load_secrets(cluster.secrets_file)
    secrets = {who: word.encode() for who, word in passwords.items()}
    data = inventory.inventory(cluster)
    accounts = data["all"]["vars"]["dbops_clusters"][cluster.name]
    del accounts["passfile"]
    for member in accounts["members"]:
        member["login_password"] = passwords[users.OPERATOR]
    for pooler in accounts["poolers"]:
        del pooler["passfile"]
        pooler["login_password"] = passwords[users.POOLER_ADMIN]
    hosts = dumped(tmp_path / "hosts.yml", data)
    words = {"dbops_cluster": cluster.name, "promote_replica_candidate": scene.candidate.name}
    for node in cluster.nodes:
        node.configure(log_statement="all", log_replication_commands="on", log_connections="on")
    try:
        with Eavesdropper(secrets) as eavesdropper:
            output = Run("promote_replica", hosts, "-vvv", "--diff", **words).succeeded(changed=True).output
            # And of a run that fails while it holds them.
            broken = {
                **words,
                "promote_replica_candidate": scene.primary.name,
                "promote_replica_min_free_bytes": 1 << 60,
            }
            output += Run("promote_replica", hosts, "-vvv", **broken).failed("[disk_space]").output
    finally:
        for node in cluster.nodes:
            node.configure(log_statement=None, log_replication_commands=None, log_connections=None)
    assert eavesdropper.looks > 20
    assert eavesdropper.found == set()
    assert [who for who, word in passwords.items() if word in output] == []
    assert "pg_promote" in scene.candidate.log_text()  # the logs that are searched do hold statements
    pooler_files = {path for pooler in cluster.poolers for path in [pooler.directory / "userlist.txt"]}
    theirs = {cluster.secrets_file, cluster.passfile, cluster.lab_passfile, cluster.replication_passfile, hosts}
    assert containing(secrets, cluster.directory, cluster.home, tmp_path, but=frozenset(pooler_files | theirs)) == []
    remote = [tmp_path / "remote", tmp_path / "local"]
    assert [str(path) for place in remote for path in place.rglob("*") if path.is_file()] == []
