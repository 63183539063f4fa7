# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles and playbooks promise: options, names, README tables, and nothing that needs a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.stateful.dbops.plugins.module_utils._core.arguments import (
    consistency_options,
    conversion_options,
    partition_options,
    repair_options,
)
from ansible_collections.stateful.dbops.plugins.modules import pg_index, replica_promote

CHECKOUT = Path(__file__).parents[2]
ROLES = sorted(path.name for path in (CHECKOUT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = sorted((CHECKOUT / "playbooks").glob("*.yml"))
# What each role is for.
MODULES = {
    "consistency_check": consistency_options,
    "consistency_repair": repair_options,
    "index_maintenance": pg_index.argument_spec,
    "partition_convert": conversion_options,
    "partition_maintenance": partition_options,
    "promote_replica": replica_promote.argument_spec,
}
# Set for all roles by whoever writes the inventory, so they carry no role's name.
SHARED = ("dbops_clusters", "dbops_cluster", "dbops_state_dir")
# Facts for the next node of a workflow, and the pattern that the playbooks take.
ELSEWHERE = {
    "dbops_primary",
    "dbops_switchover",
    "dbops_failover",
    "dbops_loss",
    "dbops_rehearsal",
    "dbops_hosts",
    "dbops_partitions",
    "dbops_conversion",
    "dbops_consistency",
    "dbops_repair",
    "find_primary_found",
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def specs(role: str) -> dict[str, Any]:
    found: dict[str, Any] = load(CHECKOUT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]
    return found


def options(role: str, entry: str = "main") -> dict[str, Any]:
    found: dict[str, Any] = specs(role)[entry]["options"]
    return found


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a YAML document, at any depth."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from mappings(item)


def tasks(role: str) -> list[tuple[Path, dict[str, Any]]]:
    files = sorted((CHECKOUT / "roles" / role).glob("tasks/*.yml")) + sorted(
        (CHECKOUT / "roles" / role).glob("handlers/*.yml")
    )
    return [(file, task) for file in files for task in mappings(load(file))]


def names_made(task: dict[str, Any]) -> Iterator[str]:
    """The variables that a task makes for others or for itself."""
    if "register" in task:
        yield task["register"]
    yield from (key for key in task.get("ansible.builtin.set_fact") or {} if key != "cacheable")
    # What another role is called with has that role's name.
    called = (task.get("ansible.builtin.include_role") or {}).get("name", "").rpartition(".")[2]
    yield from (name for name in task.get("vars") or {} if not called or not name.startswith(f"{called}_"))
    control = task.get("loop_control") or {}
    yield from (control[key] for key in ("loop_var", "index_var") if key in control)


@pytest.mark.parametrize("role", ROLES)
def test_every_default_is_an_option_with_that_default(role: str) -> None:
    defaults = load(CHECKOUT / "roles" / role / "defaults" / "main.yml") or {}
    assert defaults == {name: option["default"] for name, option in options(role).items() if "default" in option}


@pytest.mark.parametrize("role", ROLES)
def test_every_option_has_a_type_and_a_name_of_this_role(role: str) -> None:
    for entry in specs(role):
        for name, option in options(role, entry).items():
            assert name in SHARED or name.startswith(f"{role}_")
            assert "type" in option
            assert "description" in option
            assert not (option.get("required") and "default" in option)
            assert not (re.search(r"password|secret|host", name) and "default" in option)


@pytest.mark.parametrize("role", ROLES)
def test_every_entry_point_has_a_spec(role: str) -> None:
    files = {path.stem for path in (CHECKOUT / "roles" / role / "tasks").glob("*.yml")}
    assert set(specs(role)) <= files
    assert "main" in specs(role)
    entered = {
        task["ansible.builtin.include_role"].get("tasks_from", "main")
        for path in PLAYBOOKS
        for task in mappings(load(path))
        if task.get("ansible.builtin.include_role", {}).get("name", "").endswith(f".{role}")
    }
    assert entered <= set(specs(role))


@pytest.mark.parametrize("role", ROLES)
def test_what_is_internal_says_so_in_its_name(role: str) -> None:
    internal = f"__{role}_"
    assert all(name.startswith(internal) for name in load(CHECKOUT / "roles" / role / "vars" / "main.yml") or {})
    made = [(file.name, name) for file, task in tasks(role) for name in names_made(task)]
    assert [
        (file, name)
        for file, name in made
        if not name.startswith(internal) and name not in {*options(role), *ELSEWHERE}
    ] == []
    assert made


@pytest.mark.parametrize("role", ROLES)
def test_only_its_own_variables_are_used(role: str) -> None:
    """A variable with this role's prefix or of dbops_ is an option; an internal one is made somewhere."""
    folder = CHECKOUT / "roles" / role
    text = "\n".join(path.read_text() for part in ("tasks", "vars", "templates") for path in folder.glob(f"{part}/*"))
    made = {name for _file, task in tasks(role) for name in names_made(task)} | set(
        load(folder / "vars" / "main.yml") or {}
    )
    public = set(re.findall(rf"(?<![\w.])(?:{role}|dbops)_[a-z_]+", text)) - ELSEWHERE
    assert public - {name for entry in specs(role) for name in options(role, entry)} == set()
    assert set(re.findall(rf"\b__{role}_[a-z_]+", text)) - made == set()


@pytest.mark.parametrize("role", MODULES)
def test_an_option_of_the_role_and_of_its_module_has_one_default(role: str) -> None:
    module = MODULES[role]()
    both = {name: option for name, option in options(role).items() if name.removeprefix(f"{role}_") in module}
    assert both
    for name, option in both.items():
        word = module[name.removeprefix(f"{role}_")]
        assert option.get("default") == word.get("default"), name
        assert option["type"] == word["type"], name


def rows(text: str) -> dict[str, list[str]]:
    """Cells of all Markdown tables by the word in their first cell."""
    cells = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    )
    return {row[0].strip("`"): row[1:] for row in cells}


@pytest.mark.parametrize("role", ROLES)
def test_the_readme_names_every_option_with_its_type_and_default(role: str) -> None:
    text = (CHECKOUT / "roles" / role / "README.md").read_text()
    for entry in specs(role):
        section = re.search(rf"^### {entry}\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL)
        assert section, f"README of {role} has no section {entry}"
        documented = rows(section.group(1))
        assert list(documented) == list(options(role, entry))
        for name, option in options(role, entry).items():
            kind, default, meaning = documented[name]
            assert kind == (f"list of {option['elements']}" if option["type"] == "list" else option["type"])
            assert meaning
            if option.get("required"):
                assert default == "required"
            elif "default" in option:
                value = option["default"]
                assert default == f"`{str(value).lower() if isinstance(value, bool) else value}`", name
            else:
                assert default
                assert default != "required"


def header(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.stem)
def test_a_playbook_names_its_way_back_and_how_it_is_called(path: Path) -> None:
    assert re.fullmatch(r"[a-z_]+", path.stem)
    assert f"ansible-playbook playbooks/{path.name} " in header(path)
    if path.stem.endswith("_rollback"):
        assert (CHECKOUT / "playbooks" / f"{path.stem.removesuffix('_rollback')}.yml").exists()
        assert re.search(r"\bback\b", header(path))
    else:
        way_back = f"playbooks/{path.stem}_rollback.yml"
        assert way_back in header(path) or "There is no way back" in header(path)
        assert (CHECKOUT / way_back).exists() == (way_back in header(path))


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.stem)
def test_plays_are_numbered_choose_their_hosts_and_stop_together(path: Path) -> None:
    plays = load(path)
    for number, play in enumerate(plays, start=1):
        assert play["name"].startswith(f"({number}/{len(plays)}) ")
    # The first and the last only see that those between them have hosts: a play without any ends with success.
    first, *others, last = plays
    for play, tasks in ((first, "tasks/see_hosts.yml"), (last, "tasks/saw_hosts.yml")):
        assert play["hosts"] == "all"
        (task,) = play["tasks"]
        assert (task["ansible.builtin.import_tasks"], task["tags"]) == (tasks, ["always"])
    assert others
    for play in others:
        assert play["pre_tasks"][0]["ansible.builtin.group_by"] == {"key": "dbops_played"}
        assert "dbops_hosts" in play["hosts"]
        assert play["any_errors_fatal"] is True


@pytest.mark.parametrize("path", [*PLAYBOOKS, *sorted((CHECKOUT / "roles").rglob("*.yml"))], ids=lambda path: path.name)
def test_nothing_asks_a_question(path: Path) -> None:
    keys = {key for mapping in mappings(load(path)) for key in mapping}
    assert keys.isdisjoint({"vars_prompt", "pause", "ansible.builtin.pause"})
    assert "lookup('pipe'" not in path.read_text()
