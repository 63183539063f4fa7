# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module replica_promote on real servers: everything that it takes along, leaves behind, or puts back."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible.module_utils import basic as ansible_basic

from tests.integration.conftest import VERSIONS, borrowed
from tests.integration.scene import (
    Scene,
    Standing,
    archive_all,
    configured,
    everywhere,
    holes,
    snapshot,
)
from tests.lab import binaries, ledger, users
from tests.lab.checker import check
from tests.lab.cluster import Cluster
from tests.lab.operation import COLLECTIONS, MODULES, run_module, start_module
from tests.lab.server import Node, interpreter, wait_for
from tests.lab.writer import Writers


def on(*versions: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("standing", versions, indirect=True, scope="session")


@pytest.fixture(scope="module")
def pair_standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    standing = Standing(tmp_path_factory.mktemp("pair") / "lab", "18", members=("left", "right"), pooler=True)
    yield standing
    standing.destroy()


@pytest.fixture
def pair(pair_standing: Standing) -> Iterator[Scene]:
    """A primary with one standby: nobody else could confirm a commit."""
    yield from borrowed(pair_standing)


def _altered(node: Node) -> str:
    return (node.data_dir / "postgresql.auto.conf").read_text()


def value(node: Node, setting: str) -> str:
    return str(node.sql("SELECT setting || coalesce(unit, '') FROM pg_settings WHERE name = %s", (setting,))[0][0])


def steps(result: dict[str, Any]) -> list[str]:
    return [step["step"] for step in result["timeline"]]


# ------------------------------------------------------------------------------------------------------ the whole round


@on(*VERSIONS)
def test_the_round(scene: Scene, tmp_path: Path) -> None:
    """Missing parameter, check mode, do under load, do again, and back."""
    superuser = scene.primary.sql("SELECT rolsuper FROM pg_roles WHERE rolname = %s", (users.OPERATOR,))
    assert superuser == [(scene.cluster.major < 15,)]  # least privilege is what is tested, where it exists
    incomplete = {key: words for key, words in scene.arguments().items() if key != "candidate"}
    assert "all of the following are missing: candidate" in run_module("replica_promote", incomplete)["msg"]

    with scene.primary.connect(users.APPLICATION, users.DATABASE) as connection:
        ledger.create(connection)
    scene.settle()
    scene.point_pooler(scene.candidate)
    before = snapshot(scene.cluster)
    prediction = scene.promote(check=True)
    assert (prediction["state"], prediction["changed"]) == ("would switch over", True)
    assert snapshot(scene.cluster) == before
    plan = prediction["plan"]
    assert [step["name"] for step in plan if step["point_of_no_return"]] == ["promote"]
    assert {"pause_poolers", "stop", "prove", "promote"} <= {step["name"] for step in plan if step["in_pause"]}
    assert any("dbops.operation" in step["locks"] for step in plan)
    assert all(step["locks"] and step["summary"] for step in plan)
    assert "SELECT pg_promote(false)" in prediction["statements"]

    writers = Writers(
        tmp_path / "load",
        [(scene.pooler.host, scene.pooler.port)],
        connections=4,
        passfile=str(scene.cluster.lab_passfile),
    )
    with writers:
        time.sleep(0.5)
        result = scene.switch()
        time.sleep(0.5)
    verdict = check(writers.log, lambda: scene.candidate.connect(users.SUPERUSER, users.DATABASE))
    assert verdict.ok, verdict
    assert verdict.writer_errors == 0, verdict.errors

    assert [step["name"] for step in result["plan"]] == [step["name"] for step in plan]
    assert steps(result) == [step["name"] for step in plan]
    assert result["diff"] == prediction["diff"]
    assert result["diff"]["after"][scene.candidate.name]["role"] == "primary"
    proof = result["proof"]
    assert proof["holds"]
    assert proof["fork"] == proof["shutdown_checkpoint_end"]
    assert proof["new_timeline"] == proof["old_timeline"] + 1
    assert scene.cluster.primary() is scene.candidate
    assert all("wal_retrieve_retry_interval" not in _altered(node) for node in scene.cluster.nodes)
    assert scene.primary.sql("SELECT slot_name FROM pg_replication_slots") == []
    after = dict(scene.candidate.sql("SELECT slot_name, active FROM pg_replication_slots"))
    assert len(after) == 2
    assert all(after.values())

    before = snapshot(scene.cluster)
    again = scene.promote()
    assert (again["state"], again["changed"]) == ("unchanged", False)
    assert again["diff"]["before"] == again["diff"]["after"]
    assert snapshot(scene.cluster) == before

    back = Scene(scene.cluster)
    back.candidate, back.others = scene.primary, [scene.sibling]
    assert back.switch()["proof"]["holds"]
    scene.primary.sql("DROP TABLE accounts, transaction_journal, dbops_probe", dbname=users.DATABASE)


# ------------------------------------------------------------------------------------------------- synchronous standbys


class Watch:
    """Every value that synchronous_standby_names had on ``node`` while it was a primary."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.seen: set[str] = set()
        self.samples = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        question = "SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names')"
        connection = self.node.connect()
        with connection.cursor() as cursor:
            while not self._stop.is_set():
                cursor.execute(question)
                in_recovery, names = cursor.fetchone()
                if not in_recovery:
                    self.samples += 1
                    self.seen.add(names)
                time.sleep(0.002)
        connection.close()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def synchronous(scene: Scene, names: str) -> Iterator[None]:
    """The primary commits synchronously; afterwards nobody does."""
    with configured(scene.primary, synchronous_standby_names=names):
        confirms = "SELECT 1 FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"
        wait_for(lambda: scene.primary.sql(confirms), seconds=10, what="a synchronous standby")
        yield
    for node in scene.cluster.nodes:
        node.sql("ALTER SYSTEM RESET synchronous_standby_names")
        node.reload()


@on("13", "18")
@pytest.mark.parametrize("method", ["FIRST 1", "ANY 1"])
def test_synchronous_commits_stay_synchronous(scene: Scene, method: str) -> None:
    names = f"{method} ({scene.candidate.name}, {scene.sibling.name})"
    expected = f"{method} ({scene.primary.name}, {scene.sibling.name})"
    with synchronous(scene, names), Watch(scene.candidate) as watch:
        result = scene.switch()
        assert watch.samples
        assert watch.seen == {expected}
        # The sibling can confirm, so clients need not wait for the old primary; but for the sibling.
        order = steps(result)
        assert order.index("follow") < order.index("resume_poolers") < order.index("rejoin")
        assert value(scene.candidate, "synchronous_standby_names") == expected
        scene.candidate.sql("CREATE TABLE confirmed ()")
        scene.candidate.sql("DROP TABLE confirmed")


@on("18")
def test_a_list_of_everybody_stays_as_it_is(scene: Scene) -> None:
    """The usual one: the same list on every member, itself included."""
    names = f"ANY 1 ({', '.join(node.name for node in scene.cluster.nodes)})"
    same = [configured(node, synchronous_standby_names=names) for node in (scene.candidate, scene.sibling)]
    with synchronous(scene, names), same[0], same[1]:
        with Watch(scene.candidate) as watch:
            scene.switch()
        assert watch.seen == {names}
        assert "synchronous_standby_names" not in _altered(scene.candidate)


@pytest.mark.parametrize("method", ["FIRST 1", "ANY 1"])
def test_of_two_the_old_primary_has_to_be_back(pair: Scene, method: str) -> None:
    expected = f"{method} ({pair.primary.name})"
    with synchronous(pair, f"{method} ({pair.candidate.name})"), Watch(pair.candidate) as watch:
        prediction = pair.promote(check=True)
        assert {"rejoin", "resume_poolers"} <= {step["name"] for step in prediction["plan"] if step["in_pause"]}
        result = pair.switch()
        assert watch.seen == {expected}
        order = steps(result)
        assert order.index("rejoin") < order.index("resume_poolers")
        pair.candidate.sql("CREATE TABLE confirmed ()")
        pair.candidate.sql("DROP TABLE confirmed")


def test_of_two_with_an_asynchronous_window(pair: Scene) -> None:
    expected = f"FIRST 1 ({pair.primary.name})"
    with synchronous(pair, pair.candidate.name), Watch(pair.candidate) as watch:
        result = pair.switch(accept_async_window=True)
        order = steps(result)
        assert order.index("resume_poolers") < order.index("rejoin")
        assert watch.seen == {"", expected}
        assert value(pair.candidate, "synchronous_standby_names") == expected


def test_of_two_asynchronous_from_now_on(pair: Scene) -> None:
    """The candidate has a list of its own in its file, and the caller wants none."""
    with (
        synchronous(pair, pair.candidate.name),
        configured(pair.candidate, synchronous_standby_names=pair.primary.name),
    ):
        pair.switch(synchronous_standby_names="", accept_async_window=True)
        assert value(pair.candidate, "synchronous_standby_names") == ""


# ------------------------------------------------------------------------------------------------- what is carried over


@contextmanager
def receiving(scene: Scene, slot: str, directory: Path) -> Iterator[None]:
    """pg_receivewal as a backup server runs it: with a slot of its own."""
    login = f"host={scene.primary.host} port={scene.primary.port} user={users.REPLICATION_USER}"
    program = binaries.client_binaries() / "pg_receivewal"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--directory={directory}", f"--dbname={login}", f"--slot={slot}", "--no-loop"],
            env={"PGPASSFILE": str(scene.cluster.lab_passfile)},
            stderr=log,
        )
    try:
        active = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active"
        wait_for(lambda: scene.primary.sql(active, (slot,)), seconds=20, what="pg_receivewal to stream")
        yield
    finally:
        process.terminate()
        process.wait()


@on("13", "18")
def test_what_is_carried_and_what_is_put_back(scene: Scene, tmp_path: Path) -> None:
    """A backup server's slot and a setting of the user's, and an archive without a hole."""
    archive_all(scene.primary)
    # The slot begins at the last checkpoint, and pg_receivewal says only every ten seconds how far it has come.
    scene.primary.sql("CHECKPOINT")
    scene.primary.sql("SELECT pg_create_physical_replication_slot('backup', true)")
    scene.candidate.sql("ALTER SYSTEM SET wal_retrieve_retry_interval = '3s'")
    scene.candidate.reload()
    try:
        with receiving(scene, "backup", tmp_path):
            result = scene.switch()
        assert result["carried_slots"] == ["backup"]
        kept = scene.candidate.sql(
            "SELECT restart_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = 'backup'"
        )
        assert kept == [(True,)]
        assert scene.primary.sql("SELECT slot_name FROM pg_replication_slots") == []
        assert value(scene.candidate, "wal_retrieve_retry_interval") == "3000ms"
        assert value(scene.primary, "wal_retrieve_retry_interval") == "5000ms"
        assert result["archive"]["missing"] == []
        archive_all(scene.candidate)
        assert holes(scene.cluster) == []
    finally:
        scene.candidate.sql("ALTER SYSTEM RESET wal_retrieve_retry_interval")
        scene.candidate.reload()
        for node in scene.cluster.nodes:
            node.sql("SELECT pg_drop_replication_slot('backup') FROM pg_replication_slots WHERE slot_name = 'backup'")


def zeros_at_the_end(path: Path) -> int:
    content = path.read_bytes()
    return len(content) - len(content.rstrip(b"\0"))


@on("13", "15", "18")
@pytest.mark.parametrize("decoded", [False, True], ids=["nobody decodes", "a logical slot"])
def test_the_segment_is_filled_before_the_pause(scene: Scene, decoded: bool) -> None:
    """Otherwise the rest of it, zeros, is written and sent while clients wait."""
    if decoded:
        scene.primary.sql("SELECT pg_create_logical_replication_slot('reader', 'test_decoding')")
    archive_all(scene.primary)  # an empty segment begins
    segment = scene.primary.sql("SELECT pg_walfile_name(pg_logical_emit_message(false, 'test', 'x'))")[0][0]
    result = scene.switch(accept_lost_slots=["reader"] if decoded else [])
    assert not result.get("failed"), result
    zeros = zeros_at_the_end(scene.cluster.archive / segment)
    assert (zeros > 14 * 2**20) if decoded else (zeros < 2**20), zeros
    [step] = [step for step in result["plan"] if step["name"] == "checkpoints"]
    assert ("fill the WAL segment" in step["summary"]) != decoded


@on("13", "18")
def test_a_hole_in_the_archive_is_named(scene: Scene) -> None:
    """archive_command begins to fail when the prechecks are long over: with the planted signal file."""
    command = scene.primary.settings()["archive_command"]
    with configured(scene.primary, archive_command=f"test ! -f standby.signal && {command}"):
        scene.primary.sql("SELECT pg_logical_emit_message(false, 'test', 'x')")
        result = scene.switch()
    assert result["archive"]["missing"]
    assert any("Take a full backup now" in str(warning) for warning in result["warnings"])
    # What the module could not archive, the operator can: the next tests look for holes, too.
    for name in result["archive"]["missing"]:
        shutil.copy(scene.primary.data_dir / "pg_wal" / name, scene.cluster.archive)
        users.give(scene.cluster.archive / name, scene.cluster.owner)
    for path in (scene.primary.data_dir / "pg_wal" / "archive_status").glob("*.ready"):
        path.rename(path.with_suffix(".done"))


@on("18")
def test_a_failover_slot_is_carried_and_its_consumer_goes_on(scene: Scene) -> None:
    """PostgreSQL 17 and later synchronise it to standbys; what matters is that nothing is skipped or decoded twice."""
    slot = "billing"
    with slot_synchronisation(scene):
        scene.primary.sql("CREATE TABLE ticks (n int)")
        scene.primary.sql("SELECT pg_create_logical_replication_slot(%s, 'test_decoding', failover => true)", (slot,))
        scene.primary.sql("INSERT INTO ticks VALUES (1)")
        assert "table public.ticks: INSERT: n[integer]:1" in _decoded(scene.primary, slot)
        synced = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND synced AND NOT temporary"

        def there() -> bool:
            # A standby takes the slot over when its consumer has moved past what the standby can decode from.
            scene.primary.sql("SELECT pg_log_standby_snapshot()")
            _decoded(scene.primary, slot)
            return all(node.sql(synced, (slot,)) for node in (scene.candidate, scene.sibling))

        wait_for(there, seconds=60, what="the slot on the standbys", interval=0.5)
        scene.primary.sql("INSERT INTO ticks VALUES (2)")
        scene.switch()
        scene.candidate.sql("INSERT INTO ticks VALUES (3)")
        changes = [change for change in _decoded(scene.candidate, slot) if "public.ticks" in change]
        assert changes == [f"table public.ticks: INSERT: n[integer]:{n}" for n in (2, 3)]
        scene.candidate.sql("DROP TABLE ticks")


@on("18")
def test_slot_synchronisation_goes_on(scene: Scene) -> None:
    """The next failover needs it: on the sibling, and on the old primary, which is a standby now."""
    with slot_synchronisation(scene):
        scene.switch()
        standbys = (scene.primary, scene.sibling)
        assert [node.name for node in standbys if "dbname" not in value(node, "primary_conninfo")] == []
        everywhere(standbys, "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'slotsync worker'", seconds=70)


def _decoded(node: Node, slot: str) -> list[str]:
    return [row[0] for row in node.sql("SELECT data FROM pg_logical_slot_get_changes(%s, NULL, NULL)", (slot,))]


@contextmanager
def slot_synchronisation(scene: Scene) -> Iterator[None]:
    """https://www.postgresql.org/docs/18/logicaldecoding-explanation.html#LOGICALDECODING-REPLICATION-SLOTS-SYNCHRONIZATION"""
    for node in scene.cluster.nodes:
        node.configure(sync_replication_slots="on", hot_standby_feedback="on")
    for node in (scene.candidate, scene.sibling):
        _log_in_for_slots(node)
    try:
        yield
    finally:
        scene.cluster.primary().sql(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE failover"
        )
        for node in scene.cluster.standbys():
            # Only the standby's own worker can drop a synchronised slot, and it needs a database to log in to.
            _log_in_for_slots(node)
        gone = "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE synced)"
        everywhere(scene.cluster.standbys(), gone, seconds=70)
        for node in scene.cluster.nodes:
            node.configure(sync_replication_slots=None, hot_standby_feedback=None)


def _log_in_for_slots(standby: Node) -> None:
    if "dbname" not in value(standby, "primary_conninfo"):
        standby.sql(
            "ALTER SYSTEM SET primary_conninfo = %s", (value(standby, "primary_conninfo") + " dbname=postgres",)
        )
        standby.reload()


# ----------------------------------------------------------------------------------------------------- logins and users


def test_tls_with_a_verified_certificate(tmp_path: Path) -> None:
    with Cluster.create(tmp_path / "lab", "18-npm", members=("left", "right"), tls=True) as cluster:
        scene = Scene(cluster)
        assert {node["ssl_mode"] for node in scene.arguments()["nodes"]} == {"verify-full"}
        # Plain TCP is refused by every member, so that whatever worked was encrypted.
        plain = scene.promote(check=True, nodes=scene.nodes(scene.candidate, ssl_mode="disable", ca_cert=None))
        assert "no encryption" in plain["msg"]
        stranger = tmp_path / "stranger.crt"
        _certificate(stranger)
        untrusted = scene.promote(check=True, nodes=scene.nodes(scene.candidate, ca_cert=str(stranger)))
        assert "certificate verify failed" in untrusted["msg"]
        strangers = scene.promote(check=True, replication_ssl_mode="verify-full", replication_ca_cert=str(stranger))
        assert "[replication_login]" in strangers["msg"]
        scene.switch(replication_ssl_mode="verify-full", replication_ca_cert=str(cluster.certificate))
        assert f"sslrootcert={cluster.certificate}" in value(scene.primary, "primary_conninfo")
        encrypted = "SELECT application_name, ssl FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)"
        assert scene.candidate.sql(encrypted) == [(scene.primary.name, True)]


def _certificate(path: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run(
        [*command, "-keyout", str(path.with_suffix(".key")), "-out", str(path)], check=True, capture_output=True
    )


@on("15")
def test_login_by_libpqs_password_file(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"nodes": [{**node, "passfile": None} for node in scene.arguments()["nodes"]]}
    arguments["poolers"] = scene.poolers(passfile=None)
    monkeypatch.setenv("PGPASSFILE", os.devnull)
    assert "no password supplied" in scene.promote(**arguments)["msg"]
    monkeypatch.setenv("PGPASSFILE", str(scene.cluster.passfile))
    scene.switch(**arguments)


@pytest.fixture
def operators_python(scene: Scene) -> Iterator[dict[str, Any]]:
    """How subprocess runs the module as a user who can enter neither the checkout nor our interpreter's directory."""
    if not scene.cluster.owner:
        pytest.skip("not root: every test of this directory runs as the owner")
    libraries = users.make_directory(scene.cluster.home / "libraries", "")
    packages = Path(psycopg2.__file__).parents[1]
    ansible = Path(ansible_basic.__file__).parents[1]
    for package in (Path(psycopg2.__file__).parent, *packages.glob("psycopg2*.libs")):
        shutil.copytree(package, libraries / package.name)
    for part in ("module_utils", "_vendor"):
        shutil.copytree(ansible / part, libraries / "ansible" / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "release.py"):
        shutil.copy(ansible / name, libraries / "ansible")
    collection = "ansible_collections/stateful/dbops/plugins"
    shutil.copytree(COLLECTIONS / collection, libraries / collection, ignore=shutil.ignore_patterns("__pycache__"))
    python = interpreter(scene.cluster.owner)
    environment = {"PATH": os.defpath, "PYTHONPATH": str(libraries), "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
    try:
        trial = [python, "-c", "import psycopg2"]
        if subprocess.run(trial, env=environment, capture_output=True, check=False).returncode:
            pytest.skip(f"{python} cannot load this virtual environment's psycopg2, and the lab's user has no other")
        yield {"args": [python, "-m", f"{MODULES}.replica_promote"], "env": environment, "cwd": "/"}
    finally:
        shutil.rmtree(libraries)


@on("18")
def test_as_the_owner_of_the_data_directory(scene: Scene, operators_python: dict[str, Any]) -> None:
    """No root needed where the service's commands need none; a stranger is refused."""
    passwords = users.load_secrets(scene.cluster.secrets_file)
    arguments = scene.arguments()
    for words in (*arguments["nodes"], *arguments["poolers"]):
        words.update(passfile=None, login_password=passwords[words["login_user"]])

    def run(user: str, **changes: Any) -> dict[str, Any]:
        home = users.make_directory(scene.cluster.home / "operator", user, 0o700)
        try:
            process = subprocess.run(
                **operators_python,
                input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "state_dir": str(home), **changes}}),
                capture_output=True,
                text=True,
                timeout=120,
                user=user,
                group=pwd.getpwnam(user).pw_gid,
                extra_groups=[],
                check=False,
            )
            assert process.stdout, process.stderr
            answer: dict[str, Any] = json.loads(process.stdout)
            return answer
        finally:
            shutil.rmtree(home)

    before = snapshot(scene.cluster)
    result = run("nobody")
    assert result["state"] == "refused", result["msg"]
    assert "neither root nor the owner" in result["msg"]
    systemd = {**arguments["local"], "service": {"manager": "systemd", "name": "postgresql"}}
    result = run(scene.cluster.owner, local=systemd)
    assert result["state"] == "refused", result["msg"]
    assert "[service_control]" in result["msg"]
    assert snapshot(scene.cluster) == before
    scene.point_pooler(scene.candidate)
    result = run(scene.cluster.owner)
    assert result.get("state") == "switched over", result["msg"]


# --------------------------------------------------------------------------------------------------------- small things


@on("18")
def test_a_pause_that_a_killed_run_began_is_not_given_as_that_of_the_second(scene: Scene) -> None:
    scene.point_pooler(scene.candidate)
    start_module("replica_promote", scene.arguments(), failpoint="prove:after").result()
    other = run_module("replica_promote", scene.arguments(candidate=scene.sibling))
    assert (other["failed"], other["state"], other["changed"]) == (True, "refused", False)
    assert f"run it again with candidate={scene.candidate.name}" in other["msg"]
    result = run_module("replica_promote", scene.arguments())
    assert result["state"] == "switched over", result["msg"]
    assert result["pause_ms"] is None


@on("18")
def test_check_mode_leaves_no_directory(scene: Scene, tmp_path: Path) -> None:
    assert scene.promote(check=True, state_dir=str(tmp_path / "state"))["state"] == "would switch over"
    assert list(tmp_path.iterdir()) == []
