# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How to log in to one server, for modules that work on one database."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  login_host:
    description: Host or directory of the Unix socket, as seen from the host that the module runs on.
    type: str
    default: ''
  login_port:
    description: Port. A PgBouncer in transaction mode is refused, since locks of a session do not stay with it there.
    type: int
    default: 5432
  login_user:
    description: User to log in as.
    type: str
    default: ''
  login_password:
    description: Password of this user. With O(passfile) it is not needed.
    type: str
  login_db:
    description: Database to log in to.
    type: str
    default: postgres
  passfile:
    description:
      - A libpq password file on the host that the module runs on.
      - Without it libpq uses E(PGPASSFILE) or C(~/.pgpass).
    type: path
  ssl_mode:
    description: TLS, in the words of libpq.
    type: str
    default: prefer
    choices: [disable, allow, prefer, require, verify-ca, verify-full]
  ca_cert:
    description: File of the certificate authority that the server must have its certificate from.
    type: path
  ssl_cert:
    description: File of the client certificate.
    type: path
  ssl_key:
    description: File of the client certificate's key.
    type: path
  connect_params:
    description: Further connection parameters of libpq.
    type: dict
    default: {}
"""
