# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a switchover cannot move and has to name: jobs and tools that are bound to the old primary."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .catalog import NodeFacts

CRON_PLACES = ("/etc/crontab", "/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron")
TOOLS = ("pg_dump", "pg_basebackup", "pg_receivewal", "pgbackrest", "barman", "wal-g", "wal_g", "vacuumdb", "psql")


def cron_lines(text: str, words: Iterable[str]) -> list[int]:
    """Numbers (from 1) of the lines of a crontab that mention one of ``words``; comments do not count."""
    pattern = re.compile("|".join(re.escape(word) for word in words if word))
    return [
        number
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#") and pattern.search(line)
    ]


def follow_up(old_primary: NodeFacts, *, data_dir: Path, places: Iterable[str] = CRON_PLACES) -> list[str]:
    """Sentences for the operator. Of a crontab only file and line number are named: its lines may hold secrets."""
    named = []
    for path in _files(places):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for number in cron_lines(text, (*TOOLS, str(data_dir))):
            named.append(
                f"{path} line {number} on the host of {old_primary.name}: does this job belong to the primary?"
            )
    if old_primary.cron_jobs:
        named.append(f"{old_primary.cron_jobs} jobs of pg_cron now run on the new primary, if it loads the extension")
    command = old_primary.settings.get("archive_command") or old_primary.settings.get("archive_library", "")
    for tool in ("pgbackrest", "barman", "wal-g", "wal_g"):
        if tool in command:
            named.append(f"WAL is archived with {tool}: point its backup jobs to the new primary")
    return named


def _files(places: Iterable[str]) -> list[Path]:
    result: list[Path] = []
    for place in places:
        path = Path(place)
        if path.is_file():
            result.append(path)
        elif path.is_dir() and os.access(path, os.R_OK | os.X_OK):
            result += sorted(item for item in path.iterdir() if item.is_file())
    return result
