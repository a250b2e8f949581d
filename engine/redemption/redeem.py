"""Redeeming a code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.api.bodies import redeemed
from engine.redemption.attempt import Attempt, load_script, number

if TYPE_CHECKING:
    from engine.api.bodies import RedeemRequest
    from engine.api.code_bodies import HoldRequest
    from engine.redemption.core import Core
    from engine.store.configuration import ApiKey


class Redemption(Attempt):
    """An attempt to redeem a code."""

    __slots__ = ("request",)
    script = load_script("redeem")
    success = "redeemed"

    def __init__(self, core: Core, request: RedeemRequest, key: str | None, api_key: ApiKey) -> None:
        super().__init__(
            core,
            api_key=api_key,
            user=request.user,
            amount="" if request.amount is None else request.amount,
            order=request.order or "",
            key=key,
        )
        self.request = request

    def seen(self) -> list[object]:
        """The code's identity, not its text: typed in lower case it is the same."""
        request = self.request
        return [self.batch, self.serial, request.user, request.amount, request.order, *told(request)]

    def succeeded(self, words: list[str], *, replayed: bool) -> bytes:
        """The redemption."""
        return redeemed_body(self, words, self.user, replayed=replayed)


def told(request: RedeemRequest | HoldRequest) -> list[object]:
    """What a request says beside what is done, if anything."""
    client = request.client
    if client is None and request.metadata is None:
        return []
    return [client and client.ip, client and client.device, request.metadata]


def redeemed_body(attempt: Attempt, words: list[str], user: str, *, replayed: bool) -> bytes:
    """Body of a success, from the words `<event's id> <amount>[ <balance left>]`."""
    word, amount, *balance = words
    event_id, redeemed_at = attempt.event(word)
    campaign = attempt.campaign
    return redeemed(
        redemption=event_id,
        campaign=campaign.id,
        masked_code=attempt.masked,
        user=user,
        amount=number(amount),
        currency=campaign.currency,
        balance=number(balance[0]) if balance else None,
        redeemed_at=redeemed_at,
        replayed=replayed,
    )
