# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who else can be in charge of a cluster, and the command of each for a planned switchover. Pure data."""

from __future__ import annotations

from collections.abc import Iterable

PATRONI = "Patroni"

# Words in capitals are names that only the operator knows.
_COMMANDS = {
    PATRONI: "patronictl switchover --leader {primary} --candidate {candidate}; or describe its REST API as patroni.url"
    " in dbops_clusters, and this operation asks Patroni itself",
    "repmgr": "on the host of {candidate}, as the server's OS user:"
    " repmgr -f /etc/repmgr.conf standby switchover --siblings-follow --dry-run, then without --dry-run",
    "pg_auto_failover": "pg_autoctl perform promotion --name {candidate}",
    "EFM": "efm promote EFM_CLUSTER -switchover, after efm set-priority EFM_CLUSTER {candidate} 1",
    "CloudNativePG": "kubectl cnpg promote CLUSTER {candidate}",
    "Zalando operator": "kubectl exec -it POD -- patronictl switchover --leader {primary} --candidate {candidate}",
    "Amazon Aurora": "aws rds failover-db-cluster --db-cluster-identifier CLUSTER"
    " --target-db-instance-identifier {candidate}",
    "Amazon RDS": "aws rds reboot-db-instance --db-instance-identifier {primary} --force-failover (Multi-AZ instance),"
    " or aws rds failover-db-cluster (Multi-AZ cluster)",
    "Cloud SQL": "gcloud sql instances failover INSTANCE",
    "Azure": "az postgres flexible-server restart --resource-group GROUP --name SERVER --failover Planned",
}
NAMES = tuple(_COMMANDS)


def commands(managers: Iterable[str], *, primary: str, candidate: str) -> str:
    """What to run instead, for each of ``managers``; one that is unknown here is named without a command."""
    return "; ".join(
        f"{manager}: {_COMMANDS[manager].format(primary=primary, candidate=candidate)}"
        if manager in _COMMANDS
        else f"{manager}: its own switchover"
        for manager in sorted(set(managers))
    )
