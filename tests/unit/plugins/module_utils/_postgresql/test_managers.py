# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command of each manager, and that every manager that can be found has one."""

from __future__ import annotations

import inspect
import re

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql import catalog, managers


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("Patroni", "patronictl switchover --leader pg1 --candidate pg2"),
        ("repmgr", "standby switchover --siblings-follow"),
        ("pg_auto_failover", "pg_autoctl perform promotion --name pg2"),
        ("EFM", "efm promote EFM_CLUSTER -switchover"),
        ("CloudNativePG", "kubectl cnpg promote CLUSTER pg2"),
        ("Zalando operator", "patronictl switchover --leader pg1 --candidate pg2"),
        ("Amazon Aurora", "aws rds failover-db-cluster"),
        ("Amazon RDS", "aws rds reboot-db-instance --db-instance-identifier pg1 --force-failover"),
        ("Cloud SQL", "gcloud sql instances failover INSTANCE"),
        ("Azure", "az postgres flexible-server restart"),
        ("Nobody", "its own switchover"),
    ],
)
def test_the_command(manager: str, command: str) -> None:
    text = managers.commands([manager], primary="pg1", candidate="pg2")
    assert text.startswith(f"{manager}: ")
    assert command in text
    assert "{" not in text


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("Patroni", "patronictl failover --candidate pg2"),
        ("repmgr", "standby promote --siblings-follow"),
        ("pg_auto_failover", "pg_autoctl perform failover"),
        ("EFM", "efm promote EFM_CLUSTER, "),
        ("CloudNativePG", "kubectl cnpg promote CLUSTER pg2"),
        ("Zalando operator", "patronictl failover --candidate pg2"),
        ("Azure", "--failover Forced"),
        ("Nobody", "its own failover"),
    ],
)
def test_the_command_when_the_primary_is_gone(manager: str, command: str) -> None:
    text = managers.commands([manager], primary="pg1", candidate="pg2", planned=False)
    assert text.startswith(f"{manager}: ")
    assert command in text
    assert "{" not in text


def test_each_once_in_order() -> None:
    text = managers.commands(["repmgr", "EFM", "repmgr"], primary="pg1", candidate="pg2")
    assert text.index("EFM: ") < text.index("repmgr: ")
    assert text.count("repmgr: ") == 1


def test_every_manager_that_the_catalog_names_has_a_command() -> None:
    found = set(re.findall(r"(?:THEN|ELSE|SELECT) '([^']+)'", inspect.getsource(catalog._managers)))
    assert found == set(managers.NAMES)
