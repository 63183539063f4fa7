# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one package that starts real servers, loads them, checks them and breaks them.

Back end "process": PostgreSQL and PgBouncer as ordinary processes on loopback. Back end "hosts" (hosts.py): machines
with systemd and Debian's packages. Nothing here is shipped to users.
"""
