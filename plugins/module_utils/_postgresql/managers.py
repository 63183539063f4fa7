# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who else can be in charge of a cluster, and the commands of each for a switchover and a failover. Pure data."""

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
# Where it is another one when the primary is gone.
_FAILOVER = {
    PATRONI: "patronictl failover --candidate {candidate}",
    "repmgr": "on the host of {candidate}, as the server's OS user:"
    " repmgr -f /etc/repmgr.conf standby promote --siblings-follow",
    "pg_auto_failover": "pg_autoctl perform failover",
    "EFM": "efm promote EFM_CLUSTER, after efm set-priority EFM_CLUSTER {candidate} 1",
    "Zalando operator": "kubectl exec -it POD -- patronictl failover --candidate {candidate}",
    "Azure": "az postgres flexible-server restart --resource-group GROUP --name SERVER --failover Forced",
}


def commands(managers: Iterable[str], *, primary: str, candidate: str, planned: bool = True) -> str:
    """What to run instead, for each of ``managers``; one that is unknown here is named without a command."""
    known = _COMMANDS if planned else {**_COMMANDS, **_FAILOVER}
    return "; ".join(
        f"{manager}: {known[manager].format(primary=primary, candidate=candidate)}"
        if manager in known
        else f"{manager}: its own {'switchover' if planned else 'failover'}"
        for manager in sorted(set(managers))
    )
