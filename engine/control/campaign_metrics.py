"""The numbers of campaigns as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import GaugeMetricFamily, Metric

from engine.control.campaign_numbers import read_numbers
from engine.control.campaigns import newest
from engine.errors import StoreUnavailable
from engine.observability.metrics import exposition_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

    from engine.control.campaign_numbers import CampaignNumbers
    from engine.control.campaigns import Campaign
    from engine.database import Database

STATES: Final = ("issued", "redeemed", "rolled_back", "held", "void")


async def campaign_exposition(database: Database, redis: Redis, campaigns_max: int) -> bytes:
    """Return the numbers of the newest ``campaigns_max`` campaigns that have not ended.

    The text format of Prometheus; nothing if PostgreSQL or Redis cannot be asked.
    """
    try:
        found = await newest(database, campaigns_max)
        numbers = await read_numbers(database, redis, found)
    except StoreUnavailable:
        return b""
    return exposition_of(campaign_metrics([(item, numbers[item.id]) for item in found if item.id in numbers]))


def campaign_metrics(campaigns: Iterable[tuple[Campaign, CampaignNumbers]]) -> list[Metric]:
    """Return the metrics of campaigns."""
    with_currency: dict[str, Any] = {"labels": ["campaign", "currency"]}
    codes = GaugeMetricFamily("redeem_campaign_codes", "Codes, by state", labels=["campaign", "state"])
    stock = GaugeMetricFamily("redeem_campaign_stock_left", "What the stock leaves", labels=["campaign"])
    budget = GaugeMetricFamily(
        "redeem_campaign_budget_left", "What the budget leaves, in minor units", **with_currency
    )
    outstanding = GaugeMetricFamily(
        "redeem_campaign_outstanding", "What customers may still redeem, in minor units", **with_currency
    )
    for campaign, own in campaigns:
        for state in STATES:
            codes.add_metric([campaign.id, state], getattr(own, state))
        if own.stock_left is not None:
            stock.add_metric([campaign.id], own.stock_left)
        for family, amount in ((budget, own.budget_left), (outstanding, own.outstanding)):
            if amount is not None:
                family.add_metric([campaign.id, campaign.currency or ""], amount)
    return [codes, stock, budget, outstanding]
