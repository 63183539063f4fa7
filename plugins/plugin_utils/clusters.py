# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a cluster as inventories describe it (``dbops_clusters``) to what modules take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LOGIN = (
    "login_user",
    "login_password",
    "login_db",
    "passfile",
    "ssl_mode",
    "ca_cert",
    "ssl_cert",
    "ssl_key",
    "connect_params",
)

PLACE = ("name", "host", "address", "port", "login_host", "login_port", *LOGIN)
# What a description may hold; roles that read more add it here.
KNOWN = {
    "": (
        *("engine", "members", "poolers", "witnesses", "patroni"),
        *("replication_user", "replication_passfile", "replication_ssl_mode", "replication_ca_cert", *LOGIN),
    ),
    "patroni": ("url", "username", "password", "ca_cert", "ssl_cert", "ssl_key"),
    "members": (*PLACE, "data_dir", "config_dir", "bin_dir", "service"),
    "service": ("manager", "name", "start", "stop"),
    "poolers": (*PLACE, "config_file", "databases"),
}


def unknown(cluster: Mapping[str, Any]) -> list[str]:
    """Words of a cluster's description that nothing reads, with where they stand. One that is misspelt would be passed
    over: with ``pooler`` for ``poolers`` nobody would be paused. Words that begin with ``x_`` are the user's own."""
    found = _strangers("", cluster) + _strangers("patroni", cluster.get("patroni") or {})
    for kind in ("members", "poolers"):
        for entry in cluster.get(kind) or []:
            name = entry.get("name", "?")
            found += [f"{word} of {name}" for word in _strangers(kind, entry)]
            found += [f"{word} in service of {name}" for word in _strangers("service", entry.get("service") or {})]
    return found


def _strangers(kind: str, words: Mapping[str, Any]) -> list[str]:
    return sorted(word for word in words if word not in KNOWN[kind] and not word.startswith("x_"))


def nodes(cluster: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``nodes`` of the modules. A member's own login words win over the cluster's."""
    return [
        {
            **_login(cluster, member),
            "name": member["name"],
            "login_host": member.get("login_host", member["address"]),
            "login_port": int(member.get("login_port", member.get("port", 5432))),
            "address": member["address"],
            "port": int(member.get("port", 5432)),
        }
        for member in cluster["members"]
    ]


def poolers(
    cluster: Mapping[str, Any], guards: Sequence[Mapping[str, Any]] | None = None, staged_for: str = ""
) -> list[dict[str, Any]]:
    """``pooler`` of pgbouncer_guard for each pooler; with ``guards`` (the results of that task's loop, in order) and
    ``staged_for`` the list that replica_promote takes. Only a pooler's own login words count: its admin is seldom the
    database's."""
    result = []
    for position, pooler in enumerate(cluster.get("poolers") or []):
        words = {
            **_login({}, pooler),
            "name": pooler["name"],
            "login_host": pooler.get("login_host", pooler["address"]),
            "login_port": int(pooler.get("login_port", pooler.get("port", 6432))),
        }
        if pooler.get("databases"):
            words["databases"] = list(pooler["databases"])
        if guards is None:
            words["config_file"] = pooler["config_file"]
        else:
            words.update(listeners=guards[position]["listeners"], staged_for=staged_for)
        result.append(words)
    return result


def probes(looks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``probes`` of replica_promote, from the results of a loop of pg_cluster_info over the members. A member whose
    host was not reached has none, and then its checks are unknown."""
    return [{"member": look["item"]["name"], **look["probe"]} for look in looks if not look.get("unreachable")]


def observers(
    looks: Sequence[Mapping[str, Any]], cluster: Mapping[str, Any], failed_primary: str, candidate: str = ""
) -> dict[str, Any]:
    """From a loop of pg_cluster_info over hosts, before a failover: ``witnesses`` of replica_promote, and ``run_on``,
    the member on whose host it runs (the candidate, else the first standby whose host was reached; empty: none was).

    Every witness of the cluster has to have looked. A member's host that is gone, or a controller that sees nobody
    (it may have no password), says nothing.
    """
    required = list(cluster.get("witnesses") or [])
    witnesses, reached = [], []
    for look in looks:
        host, members = look["item"], look.get("members") or []
        seen = {member["name"]: member["role"] for member in members}
        if any(role != "unreachable" for role in seen.values()):
            witnesses.append({"name": host, "sees_primary": seen.get(failed_primary) == "primary"})
        elif host in required:
            errors = "; ".join(sorted({member["error"] for member in members})) or look.get("msg", "")
            witnesses.append({"name": host, "detail": " ".join(str(errors).split())})
        if members:
            reached.append(host)
    fit = [
        member["name"]
        for member in cluster["members"]
        if member["host"] in reached and member["name"] != failed_primary
    ]
    return {"witnesses": witnesses, "run_on": candidate if candidate in fit else next(iter(fit), "")}


def _login(general: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    words = {**general, **own}
    return {key: words[key] for key in LOGIN if words.get(key) not in (None, "")}
