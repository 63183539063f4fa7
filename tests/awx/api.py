# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stub of AWX's API on loopback, as much of it as awx.awx needs for projects and job templates.

It keeps what is posted, answers in AWX's shape, and refuses what AWX would: no token, a playbook that the project has
not, a survey that is not one. It is no AWX: what AWX itself makes of the objects is not seen here.
"""

from __future__ import annotations

import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TOKEN = "token-of-the-stub"
SURVEY_TYPES = {"text", "textarea", "password", "integer", "float", "multiplechoice", "multiselect"}


class Stub(ThreadingHTTPServer):
    """``objects``: kind → id → object. ``writes``: every request that was to change something, as "POST /path"."""

    daemon_threads = True

    def __init__(self, playbooks: set[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.playbooks = playbooks
        self.objects: dict[str, dict[int, dict[str, Any]]] = {}
        self.surveys: dict[int, dict[str, Any]] = {}
        self.associated: dict[tuple[str, int, str], list[int]] = {}
        self.writes: list[str] = []
        self._ids = itertools.count(1)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Stub:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def add(self, kind: str, **fields: Any) -> dict[str, Any]:
        number = next(self._ids)
        url = f"/api/v2/{kind}/{number}/"
        item = {
            "id": number,
            "type": kind.removesuffix("s"),
            "url": url,
            "related": {"survey_spec": f"{url}survey_spec/"},
            "summary_fields": {},
            "scm_revision": "0123456789abcdef",
            **fields,
        }
        self.objects.setdefault(kind, {})[number] = item
        return item

    def all(self, kind: str) -> list[dict[str, Any]]:
        return list(self.objects.get(kind, {}).values())

    # -- one request: its status and its answer

    def get(self, parts: list[str], query: dict[str, str]) -> tuple[int, Any]:
        match parts:
            case [kind]:
                return _listed([item for item in self.all(kind) if all(str(item[key]) == query[key] for key in query)])
            case [kind, number]:
                return 200, self.objects[kind][int(number)]
            case ["job_templates", number, "survey_spec"]:
                return 200, self.surveys.get(int(number), {})
            case [kind, number, others]:
                known = self.associated.get((kind, int(number), others), [])
                return _listed([self.objects[others][each] for each in known])
        return 404, {"detail": "Not found."}

    def post(self, parts: list[str], data: dict[str, Any]) -> tuple[int, Any]:
        match parts:
            case [kind]:
                problem = self._problem(kind, data)
                return (400, problem) if problem else (201, self.add(kind, **data))
            case ["job_templates", number, "survey_spec"]:
                wrong = _wrong_with_survey(data)
                if wrong:
                    return 400, {"error": wrong}
                self.surveys[int(number)] = data
                return 200, {}
            case [kind, number, others]:
                known = self.associated.setdefault((kind, int(number), others), [])
                if data.get("disassociate"):
                    known.remove(data["id"])
                else:
                    known.append(data["id"])
                return 204, None
        return 404, {"detail": "Not found."}

    def patch(self, parts: list[str], data: dict[str, Any]) -> tuple[int, Any]:
        kind, number = parts
        item = self.objects[kind][int(number)]
        problem = self._problem(kind, {**item, **data})
        if problem:
            return 400, problem
        item.update(data)
        return 200, item

    def _problem(self, kind: str, item: dict[str, Any]) -> dict[str, list[str]]:
        if kind != "job_templates":
            return {}
        if item.get("playbook") not in self.playbooks:
            return {"playbook": ["Playbook not found for project."]}
        if not (item.get("inventory") or item.get("ask_inventory_on_launch")):
            return {"inventory": ["Job Templates must either have an inventory or prompt for one."]}
        return {}


def _listed(items: list[dict[str, Any]]) -> tuple[int, Any]:
    return 200, {"count": len(items), "next": None, "previous": None, "results": items}


def _wrong_with_survey(survey: dict[str, Any]) -> str:
    """AWX's own checks of a survey, in short."""
    if [key for key in ("name", "description", "spec") if key not in survey] or not survey["spec"]:
        return "a survey needs name, description and questions"
    variables = [question.get("variable") for question in survey["spec"]]
    if len(set(variables)) != len(variables):
        return "two questions have one variable"
    for question in survey["spec"]:
        words = (question.get("question_name"), question.get("variable"), question.get("type"))
        if not all(isinstance(word, str) for word in words) or not isinstance(question.get("required"), bool):
            return f"{question} lacks question_name, variable, type or required"
        if question["type"] not in SURVEY_TYPES:
            return f"type {question['type']}"
        if question["type"].startswith("multi") and question.get("default", "") not in ("", *question["choices"]):
            return f"the default of {question['variable']} is no choice"
    return ""


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def _answer(self) -> None:
        address = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        data = json.loads(self.rfile.read(length) or b"{}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"detail": "Authentication credentials were not provided."})
        parts = address.path.removeprefix("/api/v2/").strip("/").split("/")
        if self.command == "GET":
            return self._send(*self.server.get(parts, dict(parse_qsl(address.query))))
        self.server.writes.append(f"{self.command} {address.path}")
        return self._send(*(self.server.post if self.command == "POST" else self.server.patch)(parts, data))

    do_GET = do_POST = do_PATCH = _answer

    def _send(self, status: int, answer: Any) -> None:
        body = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-API-Product-Name", "AWX")
        self.send_header("X-API-Product-Version", "24.6.1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: Any) -> None:
        """Nothing on standard error for each request."""
