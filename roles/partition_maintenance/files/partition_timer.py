# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep partitions without Ansible: what a systemd timer runs on every member of the cluster.

Usage: partition_timer.py FILE. FILE is JSON: the login, and the tables with the options of pg_partition. Beside this
program lies ``dbops_partitions``, a copy of the collection's module_utils. On a standby it does nothing. One line of
JSON for each table goes to standard output; the exit status is 1 when one failed, after all were tried.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dbops_partitions._core.arguments import partition_options
from dbops_partitions._core.clock import Clock
from dbops_partitions._core.errors import DbopsError
from dbops_partitions._postgresql.client import connect
from dbops_partitions._runners.members import endpoint
from dbops_partitions._runners.partition import partition


def main(file: str) -> int:
    settings = json.loads(Path(file).read_text(encoding="utf-8"))
    clock = Clock()
    defaults = {name: option.get("default") for name, option in partition_options().items()}
    login = {**defaults, **settings["login"]}
    failed = False
    try:
        with connect(
            endpoint({**login, "name": login["login_db"]}), clock=clock, application_name="dbops timer"
        ) as session:
            if session.value("SELECT pg_is_in_recovery()"):
                return 0
        for table in settings["tables"]:
            try:
                result = partition({**login, **table}, clock=clock, check_mode=False)
                words = {
                    name: result[name] for name in ("changed", "created", "detached", "dropped", "expired", "warnings")
                }
            except DbopsError as error:
                failed = True
                words = {"found": error.found, "expected": error.expected, "remedy": error.remedy}
            print(json.dumps({"table": f"{table.get('schema') or 'public'}.{table['table']}", **words}), flush=True)
    except DbopsError as error:
        print(json.dumps({"found": error.found, "expected": error.expected, "remedy": error.remedy}), flush=True)
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
