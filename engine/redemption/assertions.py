"""What a request says about its code: the currency and the campaign that it must have.

The front end decides: neither changes once a campaign has codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from engine.store.configuration import CachedCampaign

MISMATCHES: Final = frozenset(("currency_mismatch", "campaign_mismatch"))


class Asserting(Protocol):
    """A request that may say which currency and campaign the code must have."""

    currency: str | None
    campaign: str | None


class Assertions(NamedTuple):
    """What a request says about its code; None for what it does not say."""

    currency: str | None
    campaign: str | None

    @classmethod
    def of(cls, request: Asserting) -> Self | None:
        """Return the assertions of a request; None if it makes none, as most do."""
        if request.currency is None and request.campaign is None:
            return None
        return cls(request.currency, request.campaign)

    def mismatch(self, campaign: CachedCampaign) -> str:
        """Return the refusal for a code of this campaign; empty if all is as asserted."""
        if self.campaign is not None and self.campaign != campaign.id:
            return "campaign_mismatch"
        if self.currency is not None and self.currency != campaign.currency:
            return "currency_mismatch"
        return ""


def mismatch_detail(refusal: str, campaign: CachedCampaign) -> str:
    """Return the detail of one of MISMATCHES: what the code really has."""
    if refusal == "campaign_mismatch":
        return f"The code belongs to the campaign {campaign.id}: campaign must name it, or be left out."
    if campaign.currency is None:
        return "The code has no amount and no currency: currency must be left out."
    return f"The code's amounts are in {campaign.currency}: currency must name it, or be left out."
