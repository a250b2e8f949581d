"""Counts again whether campaigns kept to their limits: stock, budget, and successes of each user."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from engine.queries import queries

if TYPE_CHECKING:
    from engine.postgres_types import Connection
    from persister.reconcile.expected_state import ExpectedState
    from persister.reconcile.report import ReconciliationReport

_SQL: Final = queries(__package__, "audit")


async def reconcile_limits(
    connection: Connection, expected: ExpectedState, report: ReconciliationReport
) -> None:
    """Compare what the ledger has of each campaign with the highest limit that the campaign ever had.

    A limit may be lowered below what was used before. ``expected`` and ``connection`` are of one snapshot.
    Live holds count, as they do in the scripts.
    """
    uses, spent = _by_campaign(expected.uses), _by_campaign(expected.spent)
    per_user: dict[str, int] = {}
    for row in await connection.fetch(_SQL["limits"]):
        campaign = row["id"]
        for name, limit, used in (("stock", row["stock"], uses), ("budget", row["budget"], spent)):
            if limit is not None:
                report.look("limits")
                if used[campaign] > limit:
                    report.add("limits", f"{campaign}, {name}", f"at most {limit}", used[campaign])
        if row["per_user_limit"] is not None:
            per_user[campaign] = row["per_user_limit"]
    for (campaign, digest), user in expected.names.items():
        if campaign in per_user:
            report.look("limits")
            count = expected.users[campaign, user]
            if count > per_user[campaign]:
                item = f"{campaign}, user {digest.hex()}"
                report.add("limits", item, f"at most {per_user[campaign]}", count)


def _by_campaign(counters: Counter[tuple[int, str]]) -> Counter[str]:
    """Sums over all shards."""
    sums: Counter[str] = Counter()
    for (_, campaign), count in counters.items():
        sums[campaign] += count
    return sums
