# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error type of the collection."""

from __future__ import annotations

from typing import Any


class DbopsError(Exception):
    """What an operator needs at three in the morning: what was found, what was expected, what to do.

    Only ``main()`` of a module turns it into ``fail_json``. None of the three texts may hold a secret.
    ``details`` is merged into the module's result (for example ``checks``, ``operation``).
    """

    def __init__(self, *, found: str, expected: str, remedy: str, details: dict[str, Any] | None = None) -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        self.details: dict[str, Any] = details or {}
        super().__init__(self.message)

    @property
    def message(self) -> str:
        return f"found: {self.found}; expected: {self.expected}; what to do: {self.remedy}"

    def with_details(self, **details: Any) -> DbopsError:
        """The same error with more to report; returns itself so that it can be raised."""
        self.details = {**self.details, **details}
        return self
