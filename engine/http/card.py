"""HTTP handlers for the customer page, which calls them with a browser key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from engine.errors import StoreUnavailable
from engine.http.admin_requests import answer, read_page
from engine.http.auth import API_KEY, BROWSER, Access
from engine.http.routes import Route
from engine.http.services import services_of
from engine.http.user_tokens import require_user
from engine.ledger.record import RedemptionFilter
from engine.store import keys
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web
    from redis.asyncio import Redis

    from engine.store.configuration import CachedCampaign


_SHOWN: Final = ("id", "status", "campaign", "last4", "amount", "currency", "rolled_back", "redeemed_at")
"""What a customer sees of a redemption; the rest is for the merchant."""


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("GET", "/v1/card", BROWSER, show_card, Access.REDIS, for_browsers=True),
        Route("GET", "/v1/card/redemptions", BROWSER, list_redemptions, Access.REDIS, for_browsers=True),
    ]


async def show_card(request: web.Request) -> web.Response:
    """``GET /v1/card``: what the customer page shows of the campaigns of its key."""
    services = services_of(request)
    configuration = services.core.configuration
    known = [configuration.campaigns[name] for name in request[API_KEY].campaigns or ()]
    ends = await _ends(services.redis, known)
    return answer({"campaigns": [_shown(*each) for each in zip(known, ends, strict=True)]})


async def list_redemptions(request: web.Request) -> web.Response:
    """``GET /v1/card/redemptions?after=&limit=``: what the user of a token has redeemed, the newest first."""
    services = services_of(request)
    wanted = RedemptionFilter(user=require_user(request), limited_to=request[API_KEY].campaigns)
    after, limit = read_page(request)
    page = await services.records.page(wanted, after=after, limit=limit)
    items = [{name: item[name] for name in _SHOWN} for item in page.items]
    return answer({"items": items, "next": page.next})


async def _ends(redis: Redis, campaigns: Sequence[CachedCampaign]) -> list[str | None]:
    """Return when each campaign ends, as its scripts see it.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    pipeline = redis.pipeline(transaction=False)
    for campaign in campaigns:
        pipeline.hget(keys.campaign(campaign.pinned_shard or 0, campaign.id), "ends_at_ms")
    try:
        found: list[Any] = await pipeline.execute()
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    return [instant(int(ends_at_ms)) if ends_at_ms else None for ends_at_ms in found]


def _shown(campaign: CachedCampaign, ends_at: str | None) -> dict[str, object]:
    return {
        "id": campaign.id,
        "kind": campaign.kind,
        "currency": campaign.currency,
        "ends_at": ends_at,
        "card": None if campaign.card is None else campaign.card.document(),
    }
