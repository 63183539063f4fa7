# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patroni's REST API: what it says of the cluster, and the request to switch over.

https://patroni.readthedocs.io/en/latest/rest_api.html. Standard library only. Neither proxies nor redirects are
followed: the request carries a password.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from .._core.errors import DbopsError

REMEDY = "check patroni.url, that member's Patroni, and the distributed configuration store behind it (etcd, Consul, …)"


@dataclass(frozen=True)
class PatroniMember:
    """One member as ``GET /cluster`` has it. ``host`` and ``port`` are its server's connect_address."""

    name: str
    role: str
    state: str
    host: str
    port: int
    timeline: int
    nofailover: bool


@dataclass(frozen=True)
class PatroniFacts:
    """The cluster as Patroni sees it. ``error`` set: it did not answer, and nothing else is known.

    ``access``: why a request to switch over would be turned away; empty where it would be heard.
    ``store_age_s``: seconds since that Patroni last reached its store; None where it does not say. ``GET /cluster`` may
    come from its cache. ``patience_s``: loop_wait + retry_timeout, within which it has to be heard of.
    """

    error: str = ""
    access: str = ""
    version: str = ""
    scope: str = ""
    members: tuple[PatroniMember, ...] = ()
    paused: bool = False
    scheduled: str = ""
    unlocked: bool = False
    failsafe: bool = False
    synchronous: bool = False
    patience_s: float = 20.0
    store_age_s: float | None = None

    def leader(self) -> PatroniMember | None:
        """The holder of the leader key; None where there is none, and in a standby cluster."""
        return next((member for member in self.members if member.role == "leader"), None)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_words: Any, **_more: Any) -> None:
        return None


class PatroniClient:
    """``options``: url, username, password, ca_cert, ssl_cert, ssl_key."""

    def __init__(self, options: dict[str, Any], *, timeout: float) -> None:
        self.url = str(options["url"]).rstrip("/")
        self.timeout = timeout
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise DbopsError(
                found="patroni.url is no address of a REST API",
                expected="https://host:8008 or http://host:8008; user and password are options of their own",
                remedy="correct patroni.url",
            )
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirects()]
        if parts.scheme == "https":
            handlers.append(urllib.request.HTTPSHandler(context=self._context(options)))
        self._opener = urllib.request.build_opener(*handlers)
        self._authorization = ""
        if options.get("username"):
            words = f"{options['username']}:{options.get('password') or ''}"
            self._authorization = f"Basic {base64.b64encode(words.encode()).decode()}"

    @staticmethod
    def _context(options: dict[str, Any]) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=options.get("ca_cert"))
            if options.get("ssl_cert"):
                context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"))
        except OSError as error:
            raise DbopsError(
                found=f"ca_cert, ssl_cert or ssl_key of patroni: {error}",
                expected="files that this user can read",
                remedy="correct these paths on the host that the module runs on",
            ) from error
        return context

    def facts(self) -> PatroniFacts:
        """All that the checks ask for."""
        try:
            _status, cluster, _headers = self._json("/cluster")
            _status, own, headers = self._json("/patroni")
            _status, config, _headers = self._json("/config")
            # A request without a leader is turned away by the API itself, after it has looked at the credentials.
            status, text, _headers = self._call("/switchover", {"leader": "", "candidate": ""})
        except DbopsError as error:
            return PatroniFacts(error=error.found)
        seen, now = own.get("dcs_last_seen"), headers.get("Date")
        scheduled = cluster.get("scheduled_switchover")
        return PatroniFacts(
            access="" if status == 400 else f"POST /switchover is answered with {status}: {text}",
            version=str(own.get("patroni", {}).get("version", "")),
            scope=str(own.get("patroni", {}).get("scope", "")),
            members=tuple(_member(member) for member in cluster["members"]),
            paused=bool(cluster.get("pause") or own.get("pause")),
            scheduled=json.dumps(scheduled) if scheduled else "",
            unlocked=bool(own.get("cluster_unlocked")),
            failsafe=bool(own.get("failsafe_mode_is_active")),
            synchronous=bool(config.get("synchronous_mode")),
            patience_s=float(config.get("loop_wait") or 10) + float(config.get("retry_timeout") or 10),
            store_age_s=parsedate_to_datetime(now).timestamp() - seen if seen and now else None,
        )

    def switch_over(self, leader: str, candidate: str, *, timeout: float) -> tuple[int, str]:
        """HTTP status and what Patroni says, in its own words. It answers when the switchover is over, or after two
        minutes or more. Raises DbopsError where the answer is lost: then it may be under way."""
        status, text, _headers = self._call("/switchover", {"leader": leader, "candidate": candidate}, timeout=timeout)
        return status, text

    def _json(self, path: str) -> tuple[int, dict[str, Any], Any]:
        status, text, headers = self._call(path)
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        # /patroni answers 503 on a member whose server is not running; what it says counts all the same.
        if (
            not isinstance(found, dict)
            or (path != "/patroni" and status != 200)
            or ("members" not in found) == (path == "/cluster")
        ):
            raise DbopsError(
                found=f"Patroni at {self.url}: GET {path} is answered with {status}: {text[:200]}",
                expected="the state of the cluster",
                remedy=REMEDY,
            )
        return status, found, headers

    def _call(self, path: str, data: Any = None, *, timeout: float | None = None) -> tuple[int, str, Any]:
        request = urllib.request.Request(self.url + path, method="GET" if data is None else "POST")
        if data is not None:
            request.data = json.dumps(data).encode()
            request.add_header("Content-Type", "application/json")
        if self._authorization:
            request.add_header("Authorization", self._authorization)
        try:
            with self._opener.open(request, timeout=timeout or self.timeout) as answer:
                return answer.status, answer.read().decode(errors="replace"), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace"), error.headers
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise DbopsError(
                found=f"Patroni at {self.url} does not answer: {reason}",
                expected="its REST API answers this host",
                remedy=REMEDY,
            ) from error


def _member(words: dict[str, Any]) -> PatroniMember:
    return PatroniMember(
        name=str(words.get("name", "")),
        role=str(words.get("role", "")),
        state=str(words.get("state", "")),
        host=str(words.get("host", "")),
        port=int(words.get("port") or 5432),
        timeline=int(words.get("timeline") or 0),
        nofailover=bool((words.get("tags") or {}).get("nofailover")),
    )
