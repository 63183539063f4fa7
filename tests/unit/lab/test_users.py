# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import users


def test_passfile_is_what_libpq_reads() -> None:
    passwords = {"dbops": "one", "app": "two"}
    assert users.passfile_text(passwords, "dbops") == "127.0.0.1:*:*:dbops:one\n"


def test_secrets_differ_and_need_no_quoting() -> None:
    first, second = users.new_secrets(), users.new_secrets()
    assert len({*first.values(), *second.values()}) == 2 * len(first)
    assert not set("".join(first.values())) & set(":\\'\" ;")


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_is_replaced_with_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    old = os.umask(0)
    try:
        users.write_file(path, "first", mode=0o666)
        users.write_file(path, "second", mode=mode)
    finally:
        os.umask(old)
    assert path.read_text() == "second"
    assert path.stat().st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [path]


def test_grants_follow_the_version() -> None:
    assert users.operator_grants(14) == "ALTER ROLE dbops SUPERUSER"
    assert "SUPERUSER" not in users.operator_grants(15)
    assert "sync_replication_slots" not in users.operator_grants(16)
    assert "sync_replication_slots" in users.operator_grants(17)
