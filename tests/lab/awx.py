# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job as AWX 24 runs one: project sync, survey answers, private data directory, ansible-runner's three parts.

AWX transmits the directory to an execution node, ``ansible-runner worker`` unpacks and runs it there, and AWX reads the
stream that comes back. Left out are Receptor, which carries the streams, and the container around the worker: here the
worker is a process, in a directory that it deletes when the job ends.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_runner
import yaml

from tests.lab.users import CHECKOUT, write_file
from tests.lab.waiting import wait_for

TEMPLATES = CHECKOUT / "awx" / "job_templates"
ANSWER_TYPES: dict[str, tuple[type, ...]] = {"integer": (int,), "float": (float, int), "multiselect": (list,)}


class Refused(Exception):
    """AWX does not launch the job; what it says."""


def job_templates(path: Path) -> list[dict[str, Any]]:
    """What a data file declares."""
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text())["controller_templates"]
    return found


def job_template(playbook: str) -> dict[str, Any]:
    [template] = job_templates(TEMPLATES / f"{playbook}.yml")
    return template


def answered(template: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """The extra variables that a launch with these answers leads to: defaults where nothing was answered.

    Raises Refused with AWX's reasons: an answer that is missing, of the wrong type, out of range, or not asked for.
    """
    questions = {question["variable"]: question for question in template["survey_spec"]["spec"]}
    values = {name: question["default"] for name, question in questions.items() if "default" in question} | answers
    wrong = [f"variable {name} is not allowed on launch" for name in sorted(answers.keys() - questions.keys())]
    for name, question in questions.items():
        if name in values:
            wrong += [f"{name}: {reason}" for reason in _wrong_with(question, values[name])]
        elif question["required"]:
            wrong.append(f"{name}: value missing")
    if wrong:
        raise Refused("; ".join(wrong))
    return values


def _wrong_with(question: dict[str, Any], value: Any) -> list[str]:
    if not isinstance(value, ANSWER_TYPES.get(question["type"], (str,))) or isinstance(value, bool):
        return [f"{value!r} is not of type {question['type']}"]
    if question["type"].startswith("multi"):
        chosen = value if isinstance(value, list) else [value]
        return [f"{each!r} is not one of {question['choices']}" for each in chosen if each not in question["choices"]]
    size = len(value) if isinstance(value, str) else value
    low, high = question.get("min", size), question.get("max", size)
    return [] if low <= size <= high else [f"{value!r} is not between {low} and {high}"]


class _Unsafe(str):
    """Of every string in extra variables, keys too, AWX says so: no ``{{ }}`` in them is ever rendered."""


def _unsafe(value: Any) -> Any:
    if isinstance(value, dict):
        return {_Unsafe(key): _unsafe(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_unsafe(each) for each in value]
    return _Unsafe(value) if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(_Unsafe, lambda dumper, data: dumper.represent_scalar("!unsafe", str(data)))


def inventory_script(inventory: dict[str, Any]) -> str:
    """A program that prints the inventory as AWX's do; its groups one level deep, its variables those of ``all``."""
    whole = inventory["all"]
    listed: dict[str, Any] = {
        "all": {"vars": whole["vars"], "hosts": sorted(whole["hosts"]), "children": sorted(whole["children"])},
        "_meta": {
            "hostvars": {
                host: {**variables, "remote_tower_enabled": "true", "remote_tower_id": number}
                for number, (host, variables) in enumerate(sorted(whole["hosts"].items()), start=1)
            }
        },
    }
    listed.update({name: {"hosts": sorted(group["hosts"])} for name, group in whole["children"].items()})
    return f"#! /usr/bin/env python3\n# -*- coding: utf-8 -*-\nprint({json.dumps(listed)!r})\n"


class Project:
    """This checkout as a project of AWX: a copy of what git has, with the collections that its sync installs."""

    def __init__(self, directory: Path) -> None:
        self.checkout = directory / "project"
        self.collections = directory / "requirements_collections"
        listed = subprocess.check_output(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=CHECKOUT, text=True
        )
        for name in filter(None, listed.split("\0")):
            if (CHECKOUT / name).is_file():
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / name, self.checkout / name)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "galaxy", "collection", "install"),
                *("-r", "collections/requirements.yml", "--collections-path", str(self.collections)),
            ],
            cwd=self.checkout,
            env=clean_environment(directory) | {"ANSIBLE_COLLECTIONS_PATH": str(self.collections)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the project's collections cannot be installed: {done.stdout}{done.stderr}")


def clean_environment(home: Path) -> dict[str, str]:
    """What a container would have: nothing of ours but the interpreter's programs."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


@dataclass
class Launch:
    """What a launch of a template chooses beside the survey."""

    answers: dict[str, Any]
    check: bool = False
    diff: bool = False
    limit: str = ""
    verbosity: int = 0

    def words(self) -> list[str]:
        """The command line, in AWX's order; ``-u root`` is what a job without a machine credential has."""
        words = ["--check"] * self.check + ["-u", "root"] + ["--diff"] * self.diff
        words += ["-l", self.limit] if self.limit else []
        return words + ["-" + "v" * self.verbosity] * bool(self.verbosity)


@dataclass
class Ended:
    """A job that ended: AWX's word for how, what it printed, its events, and its artifacts for the next node."""

    status: str
    events: list[dict[str, Any]] = field(repr=False)

    @property
    def output(self) -> str:
        return "\n".join(event.get("stdout", "") for event in self.events)

    @property
    def text(self) -> str:
        """The output without its line breaks and colours."""
        return " ".join(self.output.replace("\x1b[0m", "").split())

    @property
    def artifacts(self) -> dict[str, Any]:
        return next((dict(data["artifact_data"]) for data in self._stats() if "artifact_data" in data), {})

    @property
    def changed(self) -> int:
        return sum(sum(data["changed"].values()) for data in self._stats())

    def _stats(self) -> list[dict[str, Any]]:
        return [event["event_data"] for event in self.events if event["event"] == "playbook_on_stats"]


class Job:
    """One job. ``directory`` is the controller's side, ``directory/runner`` is /runner of the container."""

    def __init__(
        self, project: Project, template: dict[str, Any], inventory: dict[str, Any], launch: Launch, directory: Path
    ) -> None:
        self.number = 1 + len(list(directory.parent.glob("*")))
        self.controller = directory / "controller"
        self.runner = directory / "runner"
        self.stream = directory / "stream"
        self.controller.mkdir(parents=True)
        shutil.copytree(project.checkout, self.controller / "project")
        shutil.copytree(project.collections, self.controller / "requirements_collections")
        for folder in ("env", "inventory", "cp"):
            (self.controller / folder).mkdir(mode=0o700)
        meta = {
            "job_id": self.number,
            "job_launch_type": "manual",
            "job_template_id": 7,
            "job_template_name": template["name"],
            "user_id": 1,
            "user_name": "admin",
            "inventory_name": "lab",
            "project_revision": "0123456789abcdef",
        }
        variables = answered(template, launch.answers)
        variables.update({f"{prefix}_{key}": value for prefix in ("awx", "tower") for key, value in meta.items()})
        write_file(self.controller / "env" / "extravars", yaml.dump(_unsafe(variables), Dumper=_Dumper))
        write_file(self.controller / "env" / "cmdline", ansible_runner.utils.args2cmdline(*launch.words()))
        write_file(self.controller / "inventory" / "hosts", inventory_script(inventory), mode=0o700)
        (directory / "home").mkdir()
        with open(directory / "transmitted", "w+b") as transmitted, open(self.stream, "wb") as stream:
            ansible_runner.interface.run(
                streamer="transmit",
                _output=transmitted,
                private_data_dir=str(self.controller),
                ident=str(self.number),
                playbook=template["playbook"],
                inventory=str(self.controller / "inventory" / "hosts"),
                envvars=self._environment(),
                passwords={},
                suppress_env_files=True,
                fact_cache_type="",
                settings={"job_timeout": 0, "suppress_ansible_output": True, "suppress_output_file": True},
                cancel_callback=lambda: False,  # without one, ansible-runner takes this process's SIGTERM for itself
            )
            transmitted.seek(0)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ansible_runner", "worker", "--private-data-dir", str(self.runner), "--delete"],
                env=clean_environment(directory / "home"),
                stdin=transmitted,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        config = configparser.ConfigParser()
        config.read(self.controller / "project" / "ansible.cfg")
        theirs = config.get("defaults", "collections_path", fallback="")
        default = "~/.ansible/collections:/usr/share/ansible/collections"
        paths = [str(self.runner / "requirements_collections"), theirs, default]
        return {
            "ANSIBLE_HOST_KEY_CHECKING": "False",
            "ANSIBLE_PARAMIKO_RECORD_HOST_KEYS": "False",
            "ANSIBLE_FORCE_COLOR": "True",
            "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
            "ANSIBLE_RETRY_FILES_ENABLED": "False",
            "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(filter(None, paths)),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.runner / "cp"),
            "AWX_HOST": "https://awx.example.com",
            "AWX_PRIVATE_DATA_DIR": str(self.controller),
            "INVENTORY_ID": "1",
            "JOB_ID": str(self.number),
            "MAX_EVENT_RES": "700000",
            "PROJECT_REVISION": "0123456789abcdef",
        }

    def wait_for(self, text: str, *, seconds: float) -> None:
        """Until the stream that comes back, live, has ``text`` in it."""
        wait_for(lambda: text in self.stream.read_text(errors="replace"), seconds=seconds, what=f"{text} in the job")

    def cancel(self) -> None:
        """What Receptor does for AWX: SIGTERM to the worker, which kills the process group of ansible-playbook."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self, timeout: float = 240.0) -> Ended:
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.cancel()
            self.process.wait(30)
            raise
        events: list[dict[str, Any]] = []

        def keep(event: dict[str, Any]) -> bool:
            events.append(event)
            return False

        with open(self.stream, "rb") as stream:
            processor = ansible_runner.interface.run(
                streamer="process",
                _input=stream,
                private_data_dir=str(self.controller),
                ident=str(self.number),
                quiet=True,
                event_handler=keep,
                cancel_callback=lambda: False,
            )
        return Ended(processor.status, events)
