# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SQL text in planners, which are pure and have no connection: names and strings as the server itself quotes them."""

from __future__ import annotations


def identifier(name: str) -> str:
    """``name`` as a quoted identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


NAME_BYTES = 63
"""What the server cuts names to, without an error."""


def suffixed(name: str, suffix: str) -> str:
    """``name`` with ``suffix`` behind it, the name cut where both would be too long."""
    return name.encode()[: NAME_BYTES - len(suffix.encode())].decode(errors="ignore") + suffix


def qualified(schema: str, name: str) -> str:
    return f"{identifier(schema)}.{identifier(name)}"


def literal(text: str) -> str:
    """``text`` as a string constant that means the same with standard_conforming_strings on and off."""
    quoted = "'" + text.replace("'", "''").replace("\\", "\\\\") + "'"
    return " E" + quoted if "\\" in text else quoted
