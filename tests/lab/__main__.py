# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.lab up|down --directory D``: a lab to look at by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.lab import binaries, inventory
from tests.lab.cluster import Cluster
from tests.lab.server import LabError
from tests.lab.users import CHECKOUT


def up(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.directory
    if (directory / "cluster.json").exists():
        cluster = Cluster.load(directory)
        cluster.start()
    else:
        cluster = Cluster.create(directory, version=arguments.version, pooler=arguments.pooler)
    primary = cluster.primary()
    print(f"PostgreSQL {cluster.version}, cluster {cluster.name}; servers in {cluster.home}")
    for node in cluster.nodes:
        print(f"{'primary' if node is primary else 'standby':8} {node.dsn()}")
    for pooler in cluster.poolers:
        print(f"{'pooler':8} {pooler.dsn()}")
    print(f"inventory {inventory.write(cluster)}")


def down(arguments: argparse.Namespace) -> None:
    if (arguments.directory / "cluster.json").exists():
        Cluster.load(arguments.directory).destroy()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="Start or end an embedded lab.")
    commands = parser.add_subparsers(required=True)
    for verb, action in (("up", up), ("down", down)):
        command = commands.add_parser(verb)
        command.set_defaults(action=action)
        command.add_argument("--directory", type=Path, default=CHECKOUT / ".lab" / "by-hand")
        if verb == "up":
            command.add_argument("--version", choices=binaries.VERSIONS, default="18")
            command.add_argument(
                "--pooler", action="store_true", help="with a PgBouncer, downloaded where there is none"
            )
    arguments = parser.parse_args()
    try:
        arguments.action(arguments)
    except (LabError, binaries.MissingProgram) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
