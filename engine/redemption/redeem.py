"""The redeem operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from engine.api.outcomes import Redeemed
from engine.lookup.decoder import masked
from engine.redemption.assertions import Assertions
from engine.redemption.attempt import Attempt, event_of, number
from engine.redemption.call_fields import load_script

if TYPE_CHECKING:
    from engine.api.bodies import RedeemRequest
    from engine.api.checks import Customer
    from engine.store.configuration import CachedKey
    from engine.store.dispatcher import Dispatcher

_REDEEMED: Final = b"redeemed "


class Redemption(Attempt):
    """An attempt to redeem a code."""

    __slots__ = ("request",)
    script = load_script("redeem", "ending")
    success = "redeemed"
    is_guarded = True

    def __init__(
        self, dispatcher: Dispatcher, request: RedeemRequest, key: str | None, api_key: CachedKey
    ) -> None:
        super().__init__(
            dispatcher,
            api_key=api_key,
            user=request.user,
            amount="" if request.amount is None else request.amount,
            order=request.order or "",
            key=key,
            asserted=Assertions.of(request),
            metadata=request.metadata,
            client=request.client,
        )
        self.request = request

    def fingerprint_fields(self) -> list[object]:
        """The code's batch and serial, not its text: the same code may be typed in lower case."""
        request = self.request
        return [
            *(self.batch, self.serial, request.user, request.amount, request.order),
            *client_context(request),
            *(self.asserted or ()),
        ]

    def answered(self, answer: bytes) -> None:
        """Turn the script's answer into an outcome. A plain success, the usual answer, has a fast path."""
        if not answer.startswith(_REDEEMED):
            super().answered(answer)
            return
        words = answer[len(_REDEEMED) :].decode().split(" ")
        self.finish(self.success, redeemed(self, words, replayed=False))

    def succeeded(self, words: list[str], *, replayed: bool) -> Redeemed:
        """The redemption."""
        return redeemed(self, words, replayed=replayed)


def client_context(request: Customer) -> list[object]:
    """Client and metadata of a request, as fields of its fingerprint; empty if the request has neither.

    The solution of a challenge is none of them: the same request may come without it, or with another one.
    """
    client = request.client
    if client is not None and client.challenge is not None and client.ip is client.device is None:
        client = None
    if client is None and request.metadata is None:
        return []
    return [client and client.ip, client and client.device, request.metadata]


def redeemed(attempt: Attempt, words: list[str], *, replayed: bool) -> Redeemed:
    """Build the redemption from the words ``<event id> <amount>[ <balance left>]``."""
    word, amount, *balance = words
    event_id, redeemed_at = event_of(word, attempt.location.shard)
    campaign = attempt.campaign
    return Redeemed(
        id=event_id,
        campaign=campaign.id,
        code=masked(attempt.configuration.batches[attempt.batch], attempt.last4),
        user=attempt.user,
        amount=number(amount),
        currency=campaign.currency,
        balance=int(balance[0]) if balance and balance[0] else UNSET,
        order=attempt.order or None,
        redeemed_at=redeemed_at,
        replayed=replayed,
    )
