# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error type, and the argument specs that modules share."""

from __future__ import annotations

from ansible_collections.stateful.dbops.plugins.module_utils._core.arguments import (
    endpoint_options,
    node_options,
    service_options,
)
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError


def test_the_message_has_the_three_parts() -> None:
    error = DbopsError(found="a", expected="b", remedy="c")
    assert str(error) == error.message == "found: a; expected: b; what to do: c"
    assert error.details == {}


def test_details_are_added_and_the_newest_wins() -> None:
    error = DbopsError(found="a", expected="b", remedy="c", details={"state": "refused", "changed": False})
    assert error.with_details(state="rolled back") is error
    assert error.details == {"state": "rolled back", "changed": False}


def test_passwords_are_hidden_and_paths_are_not() -> None:
    options = endpoint_options()
    assert options["login_password"]["no_log"] is True
    assert options["ssl_key"]["no_log"] is False


def test_a_console_has_its_own_port_and_database() -> None:
    options = endpoint_options(port=6432, dbname="pgbouncer")
    assert options["login_port"]["default"] == 6432
    assert options["login_db"]["default"] == "pgbouncer"


def test_a_node_is_an_endpoint_with_an_address() -> None:
    assert set(node_options()) - set(endpoint_options()) == {"address", "port"}


def test_a_call_gives_a_spec_of_its_own() -> None:
    endpoint_options()["login_port"]["default"] = 1
    assert endpoint_options()["login_port"]["default"] == 5432
    assert service_options()["manager"]["choices"] == ["systemd", "pg_ctlcluster", "command"]
