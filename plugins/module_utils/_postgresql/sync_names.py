# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""synchronous_standby_names as a value.

Grammar: https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONOUS-STANDBY-NAMES
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

# syncrep_scanner.l of the server: a name is an identifier, a number, quoted, or an asterisk.
_TOKEN = re.compile(r'\s*("(?:[^"]|"")*"|[(),*]|[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*|[0-9]+)')
_NO_NAMES = ("(", ")", ",", "FIRST", "ANY")
_NUMBER = re.compile(r"[0-9]+\Z")
_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*\Z")


@dataclass(frozen=True)
class SyncRule:
    """``method`` is FIRST or ANY; ``number`` of standbys that must confirm; ``names`` as listed, ``*`` matches all."""

    method: str
    number: int
    names: tuple[str, ...]

    def renamed(self, old: str, new: str) -> SyncRule:
        """``old`` replaced by ``new``, without listing a name twice. Names compare without case, as the server does."""
        names: list[str] = []
        for name in self.names:
            name = new if name.lower() == old.lower() else name
            if name.lower() not in [known.lower() for known in names]:
                names.append(name)
        return replace(self, names=tuple(names))

    def missing(self, standbys: Iterable[str]) -> int:
        """How many more standbys are needed so that a commit does not wait for ever."""
        listed = {name.lower() for name in self.names}
        good = [name for name in standbys if "*" in listed or name.lower() in listed]
        return max(0, self.number - len(good))

    def __str__(self) -> str:
        return f"{self.method} {self.number} ({', '.join(_quoted(name) for name in self.names)})"


def _quoted(name: str) -> str:
    reserved = name.lower() in ("first", "any")
    if name == "*" or (_PLAIN.match(name) and not reserved):
        return name
    return '"' + name.replace('"', '""') + '"'


def parse_sync_rule(text: str) -> SyncRule | None:
    """None for an empty list. Raises ValueError for what the server would refuse too."""
    tokens = _tokens(text)
    if not tokens:
        return None
    method, number = "FIRST", 1
    if "(" in tokens:
        opening = tokens.index("(")
        head, tokens = tokens[:opening], tokens[opening + 1 :]
        if tokens[-1:] != [")"]:
            raise ValueError(f"no closing parenthesis: {text!r}")
        tokens = tokens[:-1]
        if len(head) == 2 and head[0].upper() in ("FIRST", "ANY"):
            method = head[0].upper()
        elif len(head) != 1:
            raise ValueError(f"neither FIRST n, ANY n nor n before the list: {text!r}")
        if not _NUMBER.match(head[-1]) or int(head[-1]) == 0:
            raise ValueError(f"{head[-1]} is no number of standbys: {text!r}")
        number = int(head[-1])
    names = tokens[0::2]
    if len(tokens) % 2 == 0 or set(tokens[1::2]) - {","} or any(name.upper() in _NO_NAMES for name in names):
        raise ValueError(f"not a comma-separated list: {text!r}")
    unquoted = (name[1:-1].replace('""', '"') if name.startswith('"') else name for name in names)
    return SyncRule(method, number, tuple(unquoted))


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"cannot read {text[position:]!r} in {text!r}")
        tokens.append(match.group(1))
        position = match.end()
    return tokens
