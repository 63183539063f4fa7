# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A login by name, whose address we look up ourselves: password file and certificate still go by the name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.stateful.dbops.plugins.module_utils._core.clock import Clock
from ansible_collections.stateful.dbops.plugins.module_utils._core.errors import DbopsError
from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.client import Endpoint, connect

from tests.lab import users
from tests.lab.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Its certificate is for 127.0.0.1 and not for localhost."""
    with Cluster.create(tmp_path_factory.mktemp("names") / "lab", "18-npm", members=("pg1",), tls=True) as made:
        yield made


def test_the_name_counts_for_the_password_file_and_for_the_certificate(cluster: Cluster, tmp_path: Path) -> None:
    password = users.load_secrets(cluster.secrets_file)[users.OPERATOR]
    passfile = users.write_file(tmp_path / "pass", f"localhost:*:*:{users.OPERATOR}:{password}\n", mode=0o600)
    by_name = Endpoint(
        name="pg1",
        host="localhost",
        port=cluster.node("pg1").port,
        user=users.OPERATOR,
        passfile=str(passfile),
        ssl_mode="verify-ca",
        ca_cert=str(cluster.certificate),
    )
    with connect(by_name, clock=Clock()) as session:
        assert session.value("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True
        assert session.value("SELECT host(inet_server_addr())") == "127.0.0.1"
    with pytest.raises(DbopsError, match="does not match host name"):
        connect(replace(by_name, ssl_mode="verify-full"), clock=Clock())
    with pytest.raises(DbopsError, match="no password supplied"):
        connect(replace(by_name, host="127.0.0.1"), clock=Clock())
