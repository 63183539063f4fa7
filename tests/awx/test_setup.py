# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""awx/setup.yml by the real collection awx.awx, against a stub of the API. No AWX server was there."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.awx.api import TOKEN, Stub
from tests.lab.awx import clean_environment, job_template
from tests.lab.users import CHECKOUT

PYTHON = CHECKOUT / ".venv-awx" / "bin" / "python"
PLAYBOOKS = sorted(path.stem for path in (CHECKOUT / "playbooks").glob("*.yml"))


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub({f"playbooks/{name}.yml" for name in PLAYBOOKS}) as server:
        server.add("organizations", name="Default")
        server.add("inventories", name="fleet")
        server.add("credentials", name="fleet ssh")
        yield server


class Applied:
    """One run of awx/setup.yml."""

    def __init__(self, stub: Stub, home: Path, *words: str, token: str = TOKEN, **variables: Any) -> None:
        known: dict[str, Any] = {
            "dbops_awx_scm_url": "https://git.example.com/dbops.git",
            "dbops_awx_inventory": "fleet",
        }
        known |= {"dbops_awx_credentials": ["fleet ssh"], **variables}
        del stub.writes[:]
        done = subprocess.run(
            [str(PYTHON), "-m", "ansible", "playbook", "awx/setup.yml", "-e", json.dumps(known), *words],
            cwd=CHECKOUT,
            env={
                **clean_environment(home),
                "CONTROLLER_HOST": stub.url,
                "CONTROLLER_OAUTH_TOKEN": token,
                "ANSIBLE_LOCALHOST_WARNING": "false",
                "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        self.code, self.output, self.writes = done.returncode, done.stdout, list(stub.writes)

    def succeeded(self, *, changed: int) -> Applied:
        assert self.code == 0, self.output
        assert "WARNING]" not in self.output, self.output
        assert re.findall(r"changed=(\d+)", self.output) == [str(changed)], self.output
        return self


def test_applied_twice_and_after_somebody_changed_one(stub: Stub, tmp_path: Path) -> None:
    everything = 1 + len(PLAYBOOKS)
    assert Applied(stub, tmp_path, "--check").code != 0  # there is no project yet
    assert stub.all("job_templates") == []

    Applied(stub, tmp_path).succeeded(changed=everything)
    [project] = stub.all("projects")
    assert (project["name"], project["scm_type"]) == ("stateful.dbops", "git")
    templates = {item["name"]: item for item in stub.all("job_templates")}
    [inventory], [credential] = stub.all("inventories"), stub.all("credentials")
    for name in PLAYBOOKS:
        declared = job_template(name)
        item = templates.pop(declared["name"])
        assert (item["project"], item["inventory"]) == (project["id"], inventory["id"])
        assert stub.surveys[item["id"]] == declared["survey_spec"]
        assert stub.associated["job_templates", item["id"], "credentials"] == [credential["id"]]
        linked = {"organization", "project", "inventory", "credentials", "execution_environment", "survey_spec"}
        plain = declared.keys() - linked
        assert {key: item[key] for key in plain} == {key: declared[key] for key in plain}
    assert templates == {}

    assert Applied(stub, tmp_path).succeeded(changed=0).writes == []

    changed = stub.all("job_templates")[0]
    changed["ask_limit_on_launch"] = True
    stub.surveys[changed["id"]]["spec"].pop()
    assert Applied(stub, tmp_path, "--check").succeeded(changed=1).writes == []
    assert Applied(stub, tmp_path).succeeded(changed=1).writes == [
        f"PATCH {changed['url']}",
        f"POST {changed['url']}survey_spec/",
    ]


def test_what_it_refuses(stub: Stub, tmp_path: Path) -> None:
    run = Applied(stub, tmp_path, token="wrong")
    assert run.code != 0
    assert "Invalid authentication credentials" in run.output
    stub.playbooks.clear()
    run = Applied(stub, tmp_path)
    assert run.code != 0
    assert "Playbook not found for project" in run.output


def test_every_word_of_the_data_files_is_passed_on() -> None:
    """A key that setup.yml does not know would be silently lost."""
    [_read, apply] = yaml.safe_load((CHECKOUT / "awx" / "tasks" / "job_templates.yml").read_text())
    passed = set(apply["awx.awx.job_template"])
    for name in PLAYBOOKS:
        assert set(job_template(name)) == passed, name
    play = yaml.safe_load((CHECKOUT / "awx" / "setup.yml").read_text())[0]
    [project] = [task["awx.awx.project"] for task in play["tasks"] if "awx.awx.project" in task]
    [declared] = yaml.safe_load((CHECKOUT / "awx" / "project.yml").read_text())["controller_projects"]
    assert set(declared) == set(project)
