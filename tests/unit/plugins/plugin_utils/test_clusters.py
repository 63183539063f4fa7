# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the inventory's description of a cluster to what modules take."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.stateful.dbops.plugins.module_utils._core.arguments import (
    endpoint_options,
    node_options,
    pooler_options,
)
from ansible_collections.stateful.dbops.plugins.plugin_utils.clusters import (
    LOGIN,
    nodes,
    observers,
    poolers,
    probes,
    unknown,
)
from hypothesis import given
from hypothesis import strategies as st

EXAMPLE = Path(__file__).parents[4] / "inventories" / "example" / "hosts.yml"
CLUSTER: dict[str, Any] = {
    "engine": "postgresql",
    "login_user": "dbops",
    "login_password": "canary-secret",
    "passfile": "",
    "ssl_mode": None,
    "replication_user": "replicator",
    "members": [
        {"name": "pg1", "host": "db1", "address": "10.0.0.1"},
        {"name": "pg2", "host": "db2", "address": "10.0.0.2", "port": "5433", "login_host": "db2.example",
         "login_port": 6000, "login_user": "other", "passfile": "/p", "data_dir": "/data"},
    ],
    "poolers": [
        {"name": "pooler1", "host": "pool1", "address": "10.0.1.1", "config_file": "/etc/a.ini", "login_user": "admin"},
        {"name": "pooler2", "host": "pool2", "address": "10.0.1.2", "port": "6433", "login_host": "127.0.0.1",
         "login_port": "6434", "config_file": "/etc/b.ini", "databases": ["accounts"]},
    ],
}  # fmt: skip


def test_a_member_is_logged_in_to_where_it_is_reached() -> None:
    assert nodes(CLUSTER) == [
        {"name": "pg1", "address": "10.0.0.1", "port": 5432, "login_host": "10.0.0.1", "login_port": 5432,
         "login_user": "dbops", "login_password": "canary-secret"},
        {"name": "pg2", "address": "10.0.0.2", "port": 5433, "login_host": "db2.example", "login_port": 6000,
         "login_user": "other", "login_password": "canary-secret", "passfile": "/p"},
    ]  # fmt: skip


def test_the_login_port_follows_the_port() -> None:
    [node] = nodes({"members": [{"name": "pg1", "address": "a", "port": 5433}]})
    assert node["login_port"] == 5433


def test_the_clusters_login_is_no_poolers() -> None:
    assert poolers(CLUSTER) == [
        {
            "name": "pooler1",
            "login_host": "10.0.1.1",
            "login_port": 6432,
            "login_user": "admin",
            "config_file": "/etc/a.ini",
        },
        {
            "name": "pooler2",
            "login_host": "127.0.0.1",
            "login_port": 6434,
            "config_file": "/etc/b.ini",
            "databases": ["accounts"],
        },
    ]


def test_what_the_guards_counted_goes_to_the_pooler_in_the_same_place() -> None:
    made = poolers(CLUSTER, [{"listeners": 1}, {"listeners": None}], "pg2")
    assert [(one["name"], one["listeners"], one["staged_for"]) for one in made] == [
        ("pooler1", 1, "pg2"),
        ("pooler2", None, "pg2"),
    ]
    assert all("config_file" not in one for one in made)
    assert [one.get("databases") for one in made] == [None, ["accounts"]]


@pytest.mark.parametrize("absent", [{}, {"poolers": None}, {"poolers": []}])
def test_a_cluster_needs_no_pooler(absent: dict[str, Any]) -> None:
    assert poolers(absent) == []
    assert poolers(absent, [], "pg2") == []


def test_a_host_that_was_not_reached_has_no_probe() -> None:
    looks: list[dict[str, Any]] = [
        {"item": {"name": "pg1"}, "probe": {"replication_problem": "", "free_bytes": 1}},
        {"item": {"name": "pg2"}, "unreachable": True},
        {"item": {"name": "pg3"}, "probe": {}},
    ]
    assert probes(looks) == [{"member": "pg1", "replication_problem": "", "free_bytes": 1}, {"member": "pg3"}]


WORDS = st.dictionaries(st.sampled_from(LOGIN), st.none() | st.text(string.ascii_letters, max_size=3))


@given(general=WORDS, own=WORDS)
def test_every_word_is_the_members_own_or_the_clusters_and_never_empty(
    general: dict[str, Any], own: dict[str, Any]
) -> None:
    [node] = nodes({**general, "members": [{"name": "pg1", "address": "a", **own}]})
    for word in LOGIN:
        assert node.get(word) == ((own[word] if word in own else general.get(word)) or None)


def test_the_example_inventory_fits_the_modules() -> None:
    clusters = yaml.safe_load(EXAMPLE.read_text())["all"]["vars"]["dbops_clusters"]
    assert len(clusters) >= 2
    for cluster in clusters.values():
        for node in nodes(cluster):
            assert set(node) <= set(node_options())
        for pooler in poolers(cluster, [{"listeners": 1}] * 9, "pg2"):
            assert set(pooler) <= {*pooler_options(), "listeners", "staged_for"}


def test_every_login_word_is_an_option() -> None:
    assert set(LOGIN) | {"name", "login_host", "login_port"} == set(endpoint_options())


def look(host: str, **roles: str) -> dict[str, Any]:
    return {"item": host, "members": [{"name": name, "role": role, "error": ""} for name, role in roles.items()]}


def test_who_looked_before_a_failover_and_what_they_saw() -> None:
    """A witness that could not look says so. Of others that saw nobody, or were not reached, nothing is known."""
    cluster = {**CLUSTER, "witnesses": ["app1", "app2", "app3"]}
    blind = {"item": "app2", "members": [{"name": "pg1", "role": "unreachable", "error": "timeout\n there"}]}
    looks = [
        {"item": "db1", "unreachable": True, "msg": "ssh"},
        look("db2", pg1="unreachable", pg2="standby"),
        look("app1", pg1="primary", pg2="unreachable"),
        blind,
        {"item": "app3", "unreachable": True, "msg": "no route\nto host"},
        {"item": "localhost", "members": [{"name": "pg1", "role": "unreachable", "error": "no password"}]},
    ]
    assert observers(looks, cluster, "pg1") == {
        "witnesses": [
            {"name": "db2", "sees_primary": False},
            {"name": "app1", "sees_primary": True},
            {"name": "app2", "detail": "timeout there"},
            {"name": "app3", "detail": "no route to host"},
        ],
        "run_on": "pg2",
    }
    assert observers(looks, cluster, "pg2")["run_on"] == "", "the host of pg1 was not reached"
    assert observers([*looks, look("db1", pg1="standby")], cluster, "", candidate="pg2")["run_on"] == "pg2"
    assert observers([*looks, look("db1", pg1="standby")], cluster, "", candidate="pg9")["run_on"] == "pg1"


def test_words_that_nothing_reads() -> None:
    cluster = {
        **CLUSTER,
        "pooler": [],
        "x_team": "payments",
        "patroni": {"url": "http://a", "user": "b"},
        "members": [{"name": "pg1", "data_directory": "/d", "service": {"manager": "systemd", "unit": "u"}}],
        "poolers": [{"name": "p1", "database": ["a"], "x_rack": 3}],
    }
    assert unknown(cluster) == [
        "pooler",
        "user",
        "data_directory of pg1",
        "unit in service of pg1",
        "database of p1",
    ]
    assert unknown({}) == []


def test_the_example_and_the_modules_hold_no_unknown_word() -> None:
    examples = yaml.safe_load(EXAMPLE.read_text())["all"]["vars"]["dbops_clusters"]
    assert {name: unknown(cluster) for name, cluster in examples.items()} == {key: [] for key in examples}
    for option in set(node_options()) | set(pooler_options()):
        assert unknown({"members": [{option: ""}], "poolers": [{option: ""}]}) != [f"{option} of ?"] * 2, option
