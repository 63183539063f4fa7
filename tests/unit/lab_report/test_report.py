# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report: what it says of good and of bad runs, and that it needs nothing but itself."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.lab.checker import Entry, Pause
from tests.lab.report import picture, write_report
from tests.lab.sampler import Sample

BEGAN = 1_800_000_000.0


def log() -> list[Entry]:
    """100 acknowledgements a second for 3 s, a hole and an error between 1.0 and 1.2 s; operation from 0.5 s on."""
    moments = [BEGAN - 0.5 + tenth / 100 for tenth in range(300) if not 100 < tenth < 120]
    entries = [Entry(n, m - 0.01, m, m, "acknowledged", "") for n, m in enumerate(moments, start=1)]
    entries.append(Entry(999, BEGAN + 0.6, BEGAN + 0.61, BEGAN + 0.61, "unknown", "closed"))
    return sorted(entries, key=lambda entry: entry.end)


@pytest.fixture
def data() -> dict[str, Any]:
    samples = [Sample(BEGAN + tenth / 10, "pg<3>", tenth * 1000) for tenth in range(20)]
    return {
        "old_primary": "pg1",
        "new_primary": "pg2",
        "old_timeline": 1,
        "new_timeline": 2,
        "pause_ms": 200.0,
        "writer_errors": 1,
        "acknowledged": 281,
        "missing": 0,
        "doubled": 0,
        "unknown": 1,
        "following": ["pg1", "pg<3>"],
        "pooler": "pgbouncer 1.18",
        "connections": 20,
        "seconds": 3.0,
        "steps": [{"step": "promote <now>", "start_ms": 510.0, "duration_ms": 150.0}],
        "certificate": {"candidate replayed": "0/3000148"},
        "operation_wall": BEGAN,
        "picture": picture(log(), samples, Pause(200.0, BEGAN + 0.5, BEGAN + 0.7), BEGAN),
    }


class Page(HTMLParser):
    """Checks that elements nest, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def render(directory: Path, data: dict[str, Any]) -> Page:
    write_report(directory, data)
    return Page((directory / "report.html").read_text())


def test_json_is_the_data(tmp_path: Path, data: dict[str, Any]) -> None:
    render(tmp_path, data)
    assert json.loads((tmp_path / "report.json").read_text()) == data


def test_page_tells_the_run(tmp_path: Path, data: dict[str, Any]) -> None:
    text = render(tmp_path, data).text
    for words in (
        "Nothing acknowledged was lost.",
        "write pause 200 ms",
        "20 connections through pgbouncer 1.18",
        "promote <now> · 150 ms",
        "pg<3>",
        "0/3000148",
    ):
        assert words in text


def test_page_needs_nothing_from_outside(tmp_path: Path, data: dict[str, Any]) -> None:
    page = render(tmp_path, data)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _value in page.attributes}
    assert "url(" not in page.text
    assert "@import" not in page.text


@pytest.mark.parametrize(
    ("change", "headline"),
    [
        ({"missing": 3}, "Acknowledged commits missing: 3."),
        ({"doubled": 2}, "commits applied twice: 2."),
        ({"imbalances": ["account 5 USD: total 1"]}, "balances that do not match their journal: 1."),
        ({"unexplained": 1}, "commits that contradict the log of the clients: 1."),
        ({"acknowledged": 0}, "No commit was acknowledged at all."),
    ],
    ids=["missing", "doubled", "imbalance", "unexplained", "nothing acknowledged"],
)
def test_page_does_not_praise_a_bad_run(
    tmp_path: Path, data: dict[str, Any], change: dict[str, Any], headline: str
) -> None:
    text = render(tmp_path, data | change).text
    assert headline in text
    assert "Nothing acknowledged was lost." not in text


def test_run_without_pause_steps_or_samples_is_drawn(tmp_path: Path, data: dict[str, Any]) -> None:
    page = render(tmp_path, data | {"pause_ms": None, "steps": [], "picture": picture(log(), [], None, BEGAN)})
    assert "The whole operation" in page.text
    assert "close up" not in page.text


def test_picture_counts_every_line_of_the_log_once() -> None:
    drawn = picture(log(), [], None, BEGAN)
    assert sum(drawn["commits"]) == 281
    assert sum(drawn["errors"]) == 1
    assert len(drawn["commits"]) == len(drawn["errors"])
    # 1.0 to 1.2 s of load is 0.5 to 0.7 s of the operation.
    first = int((520 - drawn["from_ms"]) // drawn["bin_ms"])
    assert drawn["commits"][first : first + 8] == [0] * 8
