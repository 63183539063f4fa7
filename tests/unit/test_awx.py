# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Job templates against playbooks and roles: each playbook has one, and its survey asks what the role knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.awx import TEMPLATES, Refused, answered, job_template, job_templates
from tests.lab.users import CHECKOUT

PLAYBOOKS = sorted(path.stem for path in (CHECKOUT / "playbooks").glob("*.yml"))
# Described once, in the inventory.
FROM_THE_INVENTORY = {
    "consistency_check_checks",
    "dbops_clusters",
    "index_maintenance_indexes",
    "partition_maintenance_tables",
}
# What AWX lets an answer be for a role's option. It has no boolean: one arrives as the string true or false.
FITTING = {
    "str": {"text", "multiplechoice"},
    "path": {"text"},
    "int": {"integer"},
    "float": {"float"},
    "bool": {"multiplechoice"},
    "list": {"multiselect"},
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def options(playbook: str) -> dict[str, Any]:
    """The argument spec of what the playbook runs, in the play before the last."""
    play = load(CHECKOUT / "playbooks" / f"{playbook}.yml")[-2]
    called = {"name": play["roles"][0]["role"]} if "roles" in play else play["tasks"][0]["ansible.builtin.include_role"]
    role = called["name"].removeprefix("stateful.dbops.")
    specs = load(CHECKOUT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]
    found: dict[str, Any] = specs[called.get("tasks_from", "main")]["options"]
    return found


def questions(playbook: str) -> dict[str, Any]:
    return {question["variable"]: question for question in job_template(playbook)["survey_spec"]["spec"]}


def test_every_playbook_has_one_job_template_and_no_other_has() -> None:
    declared = {path.stem: [item["playbook"] for item in job_templates(path)] for path in TEMPLATES.glob("*.yml")}
    assert declared == {name: [f"playbooks/{name}.yml"] for name in PLAYBOOKS}
    names = [job_template(name)["name"] for name in PLAYBOOKS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_survey_asks_for_all_that_is_required_and_for_nothing_unknown(playbook: str) -> None:
    spec, asked = options(playbook), questions(playbook)
    assert len(asked) == len(job_template(playbook)["survey_spec"]["spec"])
    assert asked.keys() - spec.keys() == set()
    required = {name for name, option in spec.items() if option.get("required")} - FROM_THE_INVENTORY
    assert required - asked.keys() == set()
    assert {name for name in required if not asked[name]["required"]} == set()


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_question_has_the_type_the_choices_and_the_default_of_its_option(playbook: str) -> None:
    spec = options(playbook)
    for name, question in questions(playbook).items():
        option = spec[name]
        assert question["type"] in FITTING[option["type"]], name
        if option["type"] == "bool":
            assert sorted(question["choices"]) == ["false", "true"], name
        elif question["type"].startswith("multi"):
            assert question["choices"] == option["choices"], name
        if "default" in option:
            default = option["default"]
            assert question["default"] == (str(default).lower() if isinstance(default, bool) else default), name
        elif not question["required"]:
            assert question["default"] == "", f"{name}: what the form sends when nothing is typed"


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_job_template_runs_one_job_at_a_time_and_takes_no_other_variables(playbook: str) -> None:
    """A limit could hide a member, a free variable could replace the inventory's."""
    template = job_template(playbook)
    assert template["survey_enabled"] is True
    assert template["ask_job_type_on_launch"] is True
    for name in ("ask_limit_on_launch", "ask_variables_on_launch", "allow_simultaneous"):
        assert template[name] is False, name
    assert {"name", "description", "spec"} == set(template["survey_spec"])


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, "dbops_cluster: value missing"),
        ({"dbops_cluster": "a", "promote_replica_mode": "undo"}, "'undo' is not one of"),
        ({"dbops_cluster": "a", "promote_replica_max_pause_ms": "5000"}, "'5000' is not of type integer"),
        ({"dbops_cluster": "a", "promote_replica_max_pause_ms": 0}, "0 is not between 1"),
        ({"dbops_cluster": "a", "dbops_hosts": "all"}, "dbops_hosts is not allowed on launch"),
    ],
)
def test_answers_that_awx_refuses(answers: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        answered(job_template("promote_replica"), answers)
