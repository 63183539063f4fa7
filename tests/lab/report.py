# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""report.json for machines and report.html for people, from the same data.

The page is one file without scripts, fonts or links, so it can be mailed, attached to a change ticket or screenshot.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tests.lab.checker import Entry, Pause
from tests.lab.sampler import Sample

BIN_MS = 20

_WIDTH, _LEFT, _RIGHT = 1120, 62, 1104
_COMMITS_HEIGHT, _LAG_HEIGHT, _ROW, _GAP = 150, 84, 19, 34
_CHARACTER = 6.3  # mean width of a label's character, px
# Samples further apart than this are not joined: the primary was not there to be asked.
_LAG_BREAK_MS = 350


def picture(
    entries: Sequence[Entry], samples: Iterable[Sample], pause: Pause | None, operation_wall: float
) -> dict[str, Any]:
    """The part of a report that is drawn. Times are ms since ``operation_wall``, the Unix time the operation began.

    ``commits`` and ``errors``: counts per bin of BIN_MS, the first bin beginning at ``from_ms``;
    ``lag``: {standby: [[ms, bytes], …]}; ``pause``: [start_ms, end_ms] or None.
    """

    def ms(wall: float) -> float:
        return round((wall - operation_wall) * 1000, 1)

    def bins(chosen: Iterable[Entry]) -> list[int]:
        counts = Counter(int((ms(entry.wall) - first) // BIN_MS) for entry in chosen)
        return [counts[index] for index in range(int((ms(entries[-1].wall) - first) // BIN_MS) + 1)]

    first = ms(entries[0].wall) // BIN_MS * BIN_MS
    lag: dict[str, list[list[float]]] = {}
    for sample in samples:
        lag.setdefault(sample.standby, []).append([ms(sample.wall), sample.lag])
    return {
        "from_ms": first,
        "bin_ms": BIN_MS,
        "commits": bins(entry for entry in entries if entry.outcome == "acknowledged"),
        "errors": bins(entry for entry in entries if entry.outcome != "acknowledged"),
        "lag": lag,
        "pause": [ms(pause.start), ms(pause.end)] if pause else None,
    }


def write_report(directory: Path, data: dict[str, Any]) -> None:
    """Write report.json (``data`` as it is) and report.html into ``directory``.

    Keys: old_primary, new_primary, old_timeline, new_timeline, pause_ms, writer_errors, acknowledged, missing, doubled,
    unknown, following (node names), pooler ("pgbouncer 1.18" or "none"), connections, seconds (of load),
    steps ([{step, start_ms, duration_ms}], ms since operation_wall), certificate (text or dictionary),
    operation_wall (Unix time), picture (see picture()); optional imbalances ([text]), unexplained (number).
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(data, indent=2) + "\n")
    (directory / "report.html").write_text(_page(data))


def _page(data: dict[str, Any]) -> str:
    found = (
        (data["missing"], "Acknowledged commits missing"),
        (data["doubled"], "commits applied twice"),
        (len(data.get("imbalances", [])), "balances that do not match their journal"),
        (data.get("unexplained", 0), "commits that contradict the log of the clients"),
    )
    problems = [f"{text}: {count:,}" for count, text in found if count]
    if not data["acknowledged"]:
        problems.append("No commit was acknowledged at all")
    headline = "; ".join(problems) + "." if problems else "Nothing acknowledged was lost."
    through = "directly to the servers" if data["pooler"] == "none" else f"through {data['pooler']}"
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(data["operation_wall"]))
    pause = "none" if data["pause_ms"] is None else f"{data['pause_ms']:,.0f}"
    figures = [
        ("Write pause", pause, "ms", "seen by the clients", ""),
        ("Acknowledged", f"{data['acknowledged']:,}", "", "commits", ""),
        ("Missing", f"{data['missing']:,}", "", "acknowledged, lost", "bad" if data["missing"] else "good"),
        ("Doubled", f"{data['doubled']:,}", "", "applied twice", "bad" if data["doubled"] else "good"),
        ("Unknown", f"{data['unknown']:,}", "", "COMMIT unanswered", "warn" if data["unknown"] else ""),
        ("Client errors", f"{data['writer_errors']:,}", "", "of any kind", "warn" if data["writer_errors"] else "good"),
        ("Following", f"{len(data['following'])}", "", ", ".join(data["following"]) or "nobody", ""),
    ]
    cards = "".join(
        f'<div class="card {tone}"><h2>{title}</h2><p class="value">{value}<small>{unit}</small></p>'
        f"<p>{escape(note)}</p></div>"
        for title, value, unit, note, tone in figures
    )
    imbalances = "".join(f"<li>{escape(text)}</li>" for text in data.get("imbalances", [])[:20])
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Switchover {_e(data, "old_primary")} to {_e(data, "new_primary")}</title>
<style>{_STYLE}</style></head><body><main>
<header class="{"bad" if problems else "good"}">
<div class="badge" aria-hidden="true">{"!" if problems else "✓"}</div><div>
<p class="eyebrow">stateful.dbops · replica_promote · planned switchover</p>
<h1>{escape(headline)}</h1>
<p class="route"><b>{_e(data, "old_primary")}</b> <span>timeline {_e(data, "old_timeline")}</span> <i>→</i>
<b>{_e(data, "new_primary")}</b> <span>timeline {_e(data, "new_timeline")}</span></p>
<p>{began} · {_e(data, "connections")} connections {escape(through)} · {data["seconds"]:.0f} s of load</p>
</div></header>
<section class="cards">{cards}</section>
{f'<section class="bad"><h2>Imbalances</h2><ul>{imbalances}</ul></section>' if imbalances else ""}
{_figures(data)}
{_certificate(data["certificate"])}
<footer>The pause is the longest time between two consecutive acknowledgements over all connections.
Every acknowledgement was logged by the client that got it, and looked up afterwards in the new primary.</footer>
</main></body></html>
"""


def _e(data: dict[str, Any], key: str) -> str:
    return escape(str(data[key]))


def _certificate(certificate: Any) -> str:
    if not certificate:
        return ""
    if isinstance(certificate, dict):
        rows = "".join(
            f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>" for key, value in certificate.items()
        )
        body = f"<table>{rows}</table>"
    else:
        body = f"<pre>{escape(str(certificate))}</pre>"
    return f"<section><h2>Certificate <small>proof taken before the point of no return</small></h2>{body}</section>"


def _figures(data: dict[str, Any]) -> str:
    drawn, steps = data["picture"], data["steps"]
    load_ends = drawn["from_ms"] + len(drawn["commits"]) * drawn["bin_ms"]
    operation_ends = max((step["start_ms"] + step["duration_ms"] for step in steps), default=load_ends)
    whole = (max(drawn["from_ms"], -1500.0), min(load_ends, operation_ends + 1500.0))
    result = _figure(data, whole, 0.0, "The whole operation", "time since it began")
    if drawn["pause"]:
        start, end = drawn["pause"]
        margin = max(100.0, 0.5 * (end - start))
        near = (start - margin, end + margin)
        result = _figure(data, near, start, "The pause, close up", "time since the last acknowledgement") + result
    return result


def _figure(data: dict[str, Any], window: tuple[float, float], zero: float, title: str, axis: str) -> str:
    """One picture with one time axis for all its panels. ``window`` and ``zero`` in ms since the operation began."""
    drawn, (begin, end) = data["picture"], window
    steps = [s for s in data["steps"] if s["start_ms"] + s["duration_ms"] >= begin and s["start_ms"] <= end]
    steps.sort(key=lambda step: step["start_ms"])

    def x(ms: float) -> float:
        return _LEFT + (min(max(ms, begin), end) - begin) / (end - begin) * (_RIGHT - _LEFT)

    commits_base = 40 + _COMMITS_HEIGHT
    steps_top = commits_base + _GAP
    steps_base = steps_top + _ROW * len(steps)
    lag_base = steps_base + _GAP + _LAG_HEIGHT
    parts = []
    if drawn["pause"]:
        start, stop = drawn["pause"]
        middle = min(max((x(start) + x(stop)) / 2, _LEFT + 70), _RIGHT - 70)
        parts.append(
            f'<rect class="pause" x="{x(start):.1f}" y="26" width="{max(1.5, x(stop) - x(start)):.1f}" '
            f'height="{lag_base - 26}"/>'
            f'<text class="pause-label" x="{middle:.1f}" y="18" text-anchor="middle">'
            f"write pause {stop - start:,.0f} ms</text>"
        )
    parts.append(_axis(window, zero, lag_base, x))
    parts.append(_commits(drawn, window, commits_base, x))
    parts.append(f'<text class="panel" x="{_LEFT}" y="{steps_top - 8}">steps of the operation</text>')
    parts.extend(_step(step, steps_top + _ROW * row, drawn["pause"], x) for row, step in enumerate(steps))
    parts.append(_lag(drawn["lag"], window, lag_base))
    return (
        f'<section class="figure"><h2>{title} <small>{axis}</small></h2>'
        f'<svg viewBox="0 0 {_WIDTH} {lag_base + 26}" role="img" '
        f'aria-label="{title}: commits, steps and replication lag over time">{"".join(parts)}</svg></section>'
    )


def _axis(window: tuple[float, float], zero: float, base: int, x: Callable[[float], float]) -> str:
    begin, end = window
    span = end - begin
    step = next(size * 10**power for power in range(1, 9) for size in (1, 2, 5) if span / (size * 10**power) <= 12)
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{base}" y2="{base}"/>']
    tick = -((zero - begin) // step) * step
    while zero + tick <= end:
        place = x(zero + tick)
        label = (f"{tick:,.0f} ms" if span < 3000 else f"{tick / 1000:g} s").replace("-", "&minus;")
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="26" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{place:.1f}" y="{base + 17}" text-anchor="middle">{label}</text>')
        tick += step
    return "".join(parts)


def _commits(drawn: dict[str, Any], window: tuple[float, float], base: int, x: Callable[[float], float]) -> str:
    def bars(name: str) -> str:
        path = ""
        for index, count in enumerate(drawn[name]):
            start = drawn["from_ms"] + index * drawn["bin_ms"]
            if count and start + drawn["bin_ms"] > window[0] and start < window[1]:
                left, right = x(start), x(start + drawn["bin_ms"])
                gap = 1.0 if right - left > 4 else 0.0
                top = base - min(count, highest) / highest * _COMMITS_HEIGHT
                path += f"M{left:.1f} {base}V{top:.1f}H{right - gap:.1f}V{base}z"
        return path and f'<path class="{name}" d="{path}"/>'

    highest = max(drawn["commits"], default=0) or 1
    unit = f"per {drawn['bin_ms']} ms"
    legend = f'<text class="panel" x="{_LEFT}" y="34"><tspan class="key-commits">■</tspan> acknowledged commits {unit}'
    if any(drawn["errors"]):
        legend += '<tspan dx="12" class="key-errors">■</tspan> client errors'
    return (
        f"{legend}</text>"
        f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{base}" y2="{base}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{base}" text-anchor="end">0</text>'
        f'<text class="tick" x="{_LEFT - 8}" y="{base - _COMMITS_HEIGHT + 8}" text-anchor="end">{highest}</text>'
        f"{bars('commits')}{bars('errors')}"
    )


def _step(step: dict[str, Any], top: int, pause: list[float] | None, x: Callable[[float], float]) -> str:
    start, end = step["start_ms"], step["start_ms"] + step["duration_ms"]
    inside = pause is not None and start < pause[1] and end > pause[0]
    when = "inside" if inside else "after" if pause is not None and start >= pause[1] else "before"
    left, right = x(start), max(x(end), x(start) + 2.5)
    label = f"{step['step']} · {step['duration_ms']:,.0f} ms"
    width = len(label) * _CHARACTER
    if right + 6 + width < _RIGHT:
        place, anchor = right + 6, "start"
    elif left - 6 - width > _LEFT:
        place, anchor = left - 6, "end"
    else:
        place, anchor = left + 6, "start"
    return (
        f'<rect class="step {when}" x="{left:.1f}" y="{top + 3}" width="{right - left:.1f}" '
        f'height="{_ROW - 6}" rx="2.5">'
        f"<title>{escape(label)}, from {start:,.0f} ms</title></rect>"
        f'<text class="step-label" x="{place:.1f}" y="{top + _ROW - 5.5}" text-anchor="{anchor}">{escape(label)}</text>'
    )


def _lag(lag: dict[str, list[list[float]]], window: tuple[float, float], base: int) -> str:
    begin, end = window
    scale = (_RIGHT - _LEFT) / (end - begin)
    shown = {
        name: [point for point in points if begin - _LAG_BREAK_MS <= point[0] <= end + _LAG_BREAK_MS]
        for name, points in sorted(lag.items())
    }
    highest = max([1000.0, *(size for points in shown.values() for _at, size in points)])
    legend, lines = "", ""
    for number, (name, points) in enumerate(shown.items()):
        colour = f"lag{number % 4}"
        legend += f'<tspan dx="12" class="key-{colour}">■</tspan> {escape(name)}'
        path, before = "", float("-inf")
        for moment, size in points:
            pen = "L" if moment - before <= _LAG_BREAK_MS else "M"
            path += f"{pen}{(moment - begin) * scale:.1f} {_LAG_HEIGHT - size / highest * (_LAG_HEIGHT - 10):.1f}"
            before = moment
        lines += f'<path class="lag {colour}" d="{path}"/>' if path else ""
    return (
        f'<text class="panel" x="{_LEFT}" y="{base - _LAG_HEIGHT - 8}">replication lag{legend}</text>'
        f'<text class="tick" x="{_LEFT - 8}" y="{base}" text-anchor="end">0</text>'
        f'<text class="tick" x="{_LEFT - 8}" y="{base - _LAG_HEIGHT + 18}" text-anchor="end">{_bytes(highest)}</text>'
        # A nested svg clips: lines come in from, and go on to, samples outside the window.
        f'<svg x="{_LEFT}" y="{base - _LAG_HEIGHT}" width="{_RIGHT - _LEFT}" height="{_LAG_HEIGHT + 1}">{lines}</svg>'
    )


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


_STYLE = """
:root{--page:#f6f5f2;--card:#fff;--ink:#1b1f24;--muted:#6a7280;--line:#e4e3de;--good:#0f7b55;--bad:#c22f2f;--warn:#b26a00;
--commits:#3b73d9;--pause:#f2b13c;--before:#9aa7b8;--inside:#e08a00;--after:#2f9e78;
--lag0:#7a52d1;--lag1:#d0457f;--lag2:#0b8fa8;--lag3:#7f8c12}
@media (prefers-color-scheme:dark){:root{--page:#111417;--card:#191d22;--ink:#e8eaed;--muted:#98a1ae;--line:#2b3138;
--good:#46c795;--bad:#ff7b72;--warn:#f0b055;--commits:#6b9cf5;--pause:#d9992b;--before:#66727f;--inside:#f2a534;--after:#4cc29a;
--lag0:#ab8cf5;--lag1:#f27fb0;--lag2:#4cc4dc;--lag3:#bcc94a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1200px;margin:0 auto;padding:36px 24px 48px}
h1{margin:2px 0 8px;font-size:34px;line-height:1.15;letter-spacing:-.02em}
h2{margin:0;font-size:15px;font-weight:650}h2 small{margin-left:8px;color:var(--muted);font-weight:400;font-size:13px}
p{margin:0}
header{display:flex;gap:22px;align-items:flex-start;margin-bottom:26px}header p{color:var(--muted)}
.eyebrow{font-size:13px;letter-spacing:.02em}
.badge{flex:none;width:64px;height:64px;border-radius:50%;display:grid;place-items:center;font-size:34px;font-weight:700;color:#fff}
header.good .badge{background:var(--good)}header.bad .badge{background:var(--bad)}header.bad h1{color:var(--bad)}
@media (prefers-color-scheme:dark){.badge{color:#0b0d0f}}
.route{margin-bottom:2px;font-size:17px}.route b{color:var(--ink)}.route i{font-style:normal;margin:0 6px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(142px,1fr));gap:12px;padding:0;border:0;background:none}
.card,section{background:var(--card);border:1px solid var(--line);border-radius:12px}
.card{padding:13px 16px}.card h2{font-size:13px;color:var(--muted);font-weight:500}
.card p{font-size:12.5px;color:var(--muted)}
.card .value{font-size:30px;line-height:1.25;font-weight:680;letter-spacing:-.02em;color:var(--ink);
font-variant-numeric:tabular-nums}
.card .value small{font-size:15px;font-weight:500;margin-left:4px;color:var(--muted)}
.card.good .value{color:var(--good)}.card.bad .value{color:var(--bad)}.card.warn .value{color:var(--warn)}
section{margin-bottom:16px;padding:18px 20px}section.bad{border-color:var(--bad)}
section.cards{margin-bottom:16px}
section>svg{display:block;width:100%;height:auto;margin-top:8px;font-size:11.5px;font-variant-numeric:tabular-nums}
svg text{fill:var(--muted)}.panel{font-size:12px}.step-label{fill:var(--ink)!important}
.axis{stroke:var(--muted);stroke-width:1;opacity:.6}.grid{stroke:var(--line);stroke-width:1}
.pause{fill:var(--pause);opacity:.2}svg .pause-label{fill:var(--warn);font-weight:650;font-size:13px}
.commits{fill:var(--commits)}.errors{fill:var(--bad)}.key-commits{fill:var(--commits)}.key-errors{fill:var(--bad)}
.step.before{fill:var(--before)}.step.inside{fill:var(--inside)}.step.after{fill:var(--after)}
.lag{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
.lag0{stroke:var(--lag0)}.lag1{stroke:var(--lag1)}.lag2{stroke:var(--lag2)}.lag3{stroke:var(--lag3)}
.key-lag0{fill:var(--lag0)}.key-lag1{fill:var(--lag1)}.key-lag2{fill:var(--lag2)}.key-lag3{fill:var(--lag3)}
table{margin-top:10px;border-collapse:collapse;font-size:13.5px}
th{text-align:left;font-weight:500;color:var(--muted);padding:3px 28px 3px 0;vertical-align:top}
td{font-family:ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
pre{margin:10px 0 0;font:13px/1.5 ui-monospace,"DejaVu Sans Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere}
footer{color:var(--muted);font-size:13px;max-width:80ch}
"""
