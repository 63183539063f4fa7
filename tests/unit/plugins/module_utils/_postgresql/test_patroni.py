# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The REST client against an HTTP server that misbehaves as a proxy, a stranger or a broken Patroni would. That it
understands a real one is tested in tests/faults/test_patroni.py."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.patroni import PatroniClient

MEMBER = {"name": "a", "role": "leader", "state": "running", "host": "10.0.0.1", "port": 5433, "timeline": 4}
ANSWERS: dict[str, tuple[int, Any]] = {
    "/cluster": (200, {"members": [MEMBER, {"name": "b", "tags": {"nofailover": True}}], "pause": True}),
    "/patroni": (503, {"patroni": {"version": "4.1.5", "scope": "accounts"}, "dcs_last_seen": 0}),
    "/config": (200, {"loop_wait": 3, "retry_timeout": 4, "synchronous_mode": "quorum"}),
    "/switchover": (400, "Switchover could be performed only from a specific leader"),
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    answers: dict[str, tuple[int, Any]]
    heard: list[tuple[str, str]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        self.server.heard.append((self.path, self.headers.get("Authorization", "")))
        status, body = self.server.answers[self.path]
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        if status == 302:
            self.send_header("Location", body)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def log_message(self, *_words: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.answers, found.heard = dict(ANSWERS), []
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def client(server: Server, scheme: str = "http", **options: Any) -> PatroniClient:
    url = f"{scheme}://127.0.0.1:{server.server_port}/"
    return PatroniClient({"url": url, "username": "rest", "password": "se:cret", **options}, timeout=5)


def test_facts(server: Server) -> None:
    found = client(server).facts()
    assert (found.error, found.access) == ("", "")
    assert (found.version, found.scope, found.paused, found.synchronous) == ("4.1.5", "accounts", True, True)
    assert found.patience_s == 7
    assert found.store_age_s is None  # 0: never reached
    leader = found.leader()
    assert leader is not None
    assert (leader.name, leader.host, leader.port, leader.timeline) == ("a", "10.0.0.1", 5433, 4)
    assert found.members[1].nofailover
    assert {word for _path, word in server.heard} == {"Basic cmVzdDpzZTpjcmV0"}


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("/cluster", (503, "no"), "GET /cluster is answered with 503"),
        ("/cluster", (200, "<html>"), "GET /cluster is answered with 200"),
        ("/cluster", (200, {"stranger": 1}), "GET /cluster is answered with 200"),
        ("/config", (502, ""), "GET /config is answered with 502"),
        ("/patroni", (0, ""), "does not answer"),
    ],
)
def test_what_is_no_patroni_is_an_error(server: Server, path: str, answer: tuple[int, Any], says: str) -> None:
    server.answers[path] = answer
    assert says in client(server).facts().error


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.answers["/cluster"] = (302, "/elsewhere")
    server.answers["/elsewhere"] = ANSWERS["/cluster"]
    assert "answered with 302" in client(server).facts().error
    assert "/elsewhere" not in [path for path, _word in server.heard]


def test_no_proxy_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert client(server).facts().error == ""


def test_wrong_credentials(server: Server) -> None:
    server.answers["/switchover"] = (401, "not authenticated")
    found = client(server).facts()
    assert found.access == "POST /switchover is answered with 401: not authenticated"


def test_nobody_there() -> None:
    quiet = PatroniClient({"url": "http://127.0.0.1:1"}, timeout=5)
    assert "http://127.0.0.1:1 does not answer" in quiet.facts().error
    with pytest.raises(DbopsError) as caught:
        quiet.switch_over("a", "b", timeout=5)
    assert caught.value.remedy


@pytest.mark.parametrize("url", ["127.0.0.1:8008", "ftp://host", "http://", "http://rest:secret@host:8008"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(DbopsError) as caught:
        PatroniClient({"url": url}, timeout=5)
    assert "secret" not in caught.value.message


def test_tls(server: Server, tmp_path: Path) -> None:
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "certificate"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    assert "certificate verify failed" in client(server, "https").facts().error
    assert client(server, "https", ca_cert=str(tmp_path / "certificate")).facts().error == ""
    with pytest.raises(DbopsError):
        client(server, "https", ca_cert=str(tmp_path / "nowhere"))
