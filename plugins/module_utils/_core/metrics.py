# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics as a file for the textfile collector of Prometheus' node exporter: its text format, replaced in one step.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import DbopsError


@dataclass(frozen=True)
class Family:
    """``name`` in base units, ``samples``: labels and value of each."""

    name: str
    help: str
    samples: tuple[tuple[Mapping[str, str], float], ...]


def text(families: Iterable[Family]) -> str:
    """All of them gauges: each run replaces the file."""
    lines: list[str] = []
    for family in families:
        lines += [f"# HELP {family.name} {_escaped(family.help)}", f"# TYPE {family.name} gauge"]
        for labels, value in family.samples:
            words = ",".join(f'{name}="{_quoted(found)}"' for name, found in sorted(labels.items()))
            lines.append(f"{family.name}{{{words}}} {float(value)!r}" if words else f"{family.name} {float(value)!r}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(value: str) -> str:
    return _escaped(value).replace('"', '\\"')


def write(path: str, families: Iterable[Family]) -> None:
    """Readable by everybody, as the collector runs as a user of its own. It may look at any moment, so the file appears
    whole or not at all."""
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text(families))
                os.fchmod(file.fileno(), 0o644)
            os.replace(name, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise
    except OSError as error:
        raise DbopsError(
            found=f"cannot write {path}: {error.strerror}",
            expected="a directory that the user running the module may write",
            remedy="create it, or give another path (the collector's --collector.textfile.directory)",
        ) from error
