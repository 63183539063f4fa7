# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The members of a cluster, as every module that speaks to all of them takes them."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  nodes:
    description:
      - All members of the cluster. Each must be reachable from the host that the module runs on.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the member.
        type: str
        required: true
      login_host:
        description: Host or directory of the Unix socket, as seen from the host that the module runs on.
        type: str
        default: ''
      login_port:
        description: Port.
        type: int
        default: 5432
      login_user:
        description: User to log in as.
        type: str
        default: ''
      login_password:
        description: Password of this user. With O(nodes[].passfile) it is not needed.
        type: str
      login_db:
        description: Database to log in to. The schema C(dbops) with the record of operations is kept there.
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
        description: File of the certificate authority that the other side must have its certificate from.
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
      address:
        description:
          - Address under which other members and poolers reach this member, as their configuration has it.
          - Default O(nodes[].login_host).
        type: str
      port:
        description: Port under which they reach this member. Default O(nodes[].login_port).
        type: int
"""
