# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents against the code: what is named there exists, and what exists is named."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import patroni_plan
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.switchover_plan import (
    CHECK_NAMES,
    Follower,
    Request,
    SwitchoverPlan,
    planned_steps,
)

CHECKOUT = Path(__file__).parents[2]
RUNBOOK = CHECKOUT / "docs" / "runbooks" / "promote_replica.md"
DOCUMENTS = [
    path
    for path in sorted({*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), *CHECKOUT.glob("roles/*/README.md")})
    if not path.name.startswith(".")
]


def section(path: Path, title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^## |\Z)", path.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{path.name} has no section {title}"
    return found.group(1)


def first_cells(text: str) -> list[str]:
    """First cells, without marks, of the rows of Markdown tables that begin with a name in code marks."""
    return [match.group(1).strip() for match in re.finditer(r"^\| (`[^|]*?) \|", text, re.MULTILINE)]


def plan() -> SwitchoverPlan:
    return SwitchoverPlan(
        old_primary="pg1",
        candidate="pg2",
        old_timeline=1,
        followers=(Follower("pg1", "dbops_pg1", "pg1"),),
        create_slots=(),
        carried_slots=(),
        drop_slots=(),
        sync_before="",
        sync_after=None,
        sync_needs_siblings=False,
        sync_needs_old_primary=False,
        retry_interval_before=None,
    )


def step_names() -> list[str]:
    return list(planned_steps(Request(cluster="accounts", candidate="pg2", node="pg1", members={}), plan()))


def things() -> set[str]:
    """Everything that can be called stateful.dbops.<name>."""
    plugins = {path.stem for kind in ("modules", "filter") for path in CHECKOUT.glob(f"plugins/{kind}/*.py")}
    fragments = {path.stem for path in CHECKOUT.glob("plugins/doc_fragments/*.py")}
    return (
        plugins
        | fragments
        | {path.name for path in CHECKOUT.glob("roles/*")}
        | {path.stem for path in CHECKOUT.glob("playbooks/*.yml")}
    )


def test_the_runbook_has_one_row_for_each_precheck_in_order() -> None:
    assert [cell.strip("`") for cell in first_cells(section(RUNBOOK, "Prechecks"))] == list(CHECK_NAMES)


def test_the_runbook_goes_through_every_step_in_order() -> None:
    assert [cell.strip("`") for cell in first_cells(section(RUNBOOK, "Second by second"))] == step_names()


def test_the_runbook_says_of_every_step_what_a_kill_in_it_leaves() -> None:
    text = section(RUNBOOK, "When something fails")
    table = text[text.index("| killed in ") :].split("\n\n")[0]
    assert [name for cell in first_cells(table) for name in re.findall(r"`(\w+)`", cell)] == step_names()


def test_the_runbook_has_every_step_and_check_of_a_switchover_by_patroni() -> None:
    request = Request(cluster="accounts", candidate="pg2", node="pg1", members={})
    names = [*patroni_plan.planned_steps(request, plan()), *patroni_plan.OWN]
    text = section(RUNBOOK, "When Patroni is in charge")
    assert [cell.strip("`") for cell in first_cells(text) if re.fullmatch(r"`\w+`", cell)] == names


def test_the_runbook_explains_every_state_that_the_module_returns() -> None:
    module = (CHECKOUT / "plugins" / "modules" / "replica_promote.py").read_text()
    documented = re.search(r"^state:\n  description: (.*?)After", module, re.MULTILINE | re.DOTALL)
    assert documented
    states = {state for state in re.findall(r"C\(([^)]+)\)", documented.group(1)) if not state.startswith("would ")}
    text = section(RUNBOOK, "When something fails")
    table = text[text.index("| `state` ") :].split("\n\n")[0]
    assert {name for cell in first_cells(table)[1:] for name in re.findall(r"`([^`]+)`", cell)} == states


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_a_document_names_nothing_that_does_not_exist(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r"\bstateful\.dbops\.([a-z_]+)", text)) - things() == set()
    called = {f"playbooks/{name}" for name in re.findall(r"\bplaybooks/([a-z_]+\.yml)", text)}
    called |= {f"tools/{name}" for name in re.findall(r"\btools/([a-z_]+\.(?:py|sh))", text)}
    assert [name for name in sorted(called) if not (CHECKOUT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_a_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _hash, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, target


def test_the_readme_names_every_module() -> None:
    table = first_cells((CHECKOUT / "README.md").read_text())
    modules = {path.stem for path in CHECKOUT.glob("plugins/modules/*.py")}
    assert {cell.strip("`") for cell in table} == modules


def test_the_readme_calls_targets_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        called = set(re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE))
        assert called - targets == set(), document


def test_nothing_leads_out_of_the_repository() -> None:
    """The design papers beside the checkout are not delivered with it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        capture_output=True,
        check=False,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    outside = "../" + "shared"
    files = [CHECKOUT / name for name in listed.stdout.split("\0") if name]
    assert len(files) > 50
    assert [str(path) for path in files if path.is_file() and outside in path.read_text(errors="replace")] == []
