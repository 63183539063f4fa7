# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded lab as an Ansible inventory: the same shape that an operator writes for a fleet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from tests.lab import users
from tests.lab.cluster import Cluster
from tests.lab.patroni import PatroniCluster


def host(name: str) -> str:
    """The inventory host of a member or pooler. Members of two clusters that share a name share the host."""
    return f"lab-{name}"


def cluster_data(cluster: Cluster) -> dict[str, Any]:
    """One entry of dbops_clusters. It names users and passfiles; the only password in it is that of Patroni's API."""
    return {
        "engine": "postgresql",
        "members": [
            {
                "name": node.name,
                "host": host(node.name),
                "address": node.host,
                "port": node.port,
                "data_dir": str(node.data_dir),
                "config_dir": str(node.config_dir),
                "bin_dir": str(node.bin_dir),
                "service": node.service,
            }
            for node in cluster.nodes
        ],
        "poolers": [
            {
                "name": pooler.name,
                "host": host(pooler.name),
                "address": pooler.host,
                "port": pooler.port,
                "config_file": str(pooler.config_file),
                "login_user": users.POOLER_ADMIN,
                "passfile": str(cluster.passfile),
            }
            for pooler in cluster.poolers
        ],
        "login_user": users.OPERATOR,
        "passfile": str(cluster.passfile),
        **cluster.tls_options,
        "replication_user": users.REPLICATION_USER,
        "replication_passfile": str(cluster.replication_passfile),
        **({"patroni": cluster.options} if isinstance(cluster, PatroniCluster) else {}),
    }


def inventory(cluster: Cluster, *others: Cluster) -> dict[str, Any]:
    """An inventory of one or more clusters. Each is a group of its hosts; ``cluster`` is the one that plays pick."""
    clusters = (cluster, *others)
    names = {
        each.name: [*(node.name for node in each.nodes), *(pool.name for pool in each.poolers)] for each in clusters
    }
    if len(names) != len(clusters):
        raise ValueError(f"clusters of one inventory need different names: {[each.name for each in clusters]}")
    return {
        "all": {
            "vars": {
                # Discovery can pick an interpreter that lacks psycopg2, and warns.
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "dbops_cluster": cluster.name,
                "dbops_hosts": "{{ dbops_cluster }}",
                "dbops_clusters": {each.name: cluster_data(each) for each in clusters},
            },
            # Every host has a state directory of its own, as on machines of their own.
            "hosts": {
                host(part): {"dbops_state_dir": str(cluster.state_dir(part))}
                for part in sorted({part for parts in names.values() for part in parts})
            },
            "children": {name: {"hosts": {host(part): {} for part in parts}} for name, parts in names.items()},
        }
    }


def write(cluster: Cluster, *others: Cluster) -> Path:
    """Write inventory.yml into the directory of ``cluster``; its path."""
    text = "---\n" + yaml.safe_dump(inventory(cluster, *others), sort_keys=False, width=120)
    return users.write_file(cluster.directory / "inventory.yml", text)
