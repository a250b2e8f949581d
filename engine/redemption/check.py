"""The check operation: says how a redemption would be answered, and the code's state. It changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from engine.api.bodies import UP_TO_BALANCE
from engine.api.outcomes import Checked
from engine.errors import OutcomeUnknown, StoreUnavailable
from engine.redemption.assertions import Assertions
from engine.redemption.attempt import Attempt
from engine.redemption.call_fields import load_script
from engine.times import instant

if TYPE_CHECKING:
    from engine.api.bodies import CheckRequest
    from engine.errors import Fault
    from engine.lookup.decoder import Issued
    from engine.store.configuration import CachedCampaign, CachedKey
    from engine.store.dispatcher import Dispatcher


class Check(Attempt):
    """An attempt that only reads. It has no idempotency key."""

    __slots__ = ()
    script = load_script("check")
    success = "redeemable"
    is_guarded = True
    is_check = True

    def __init__(self, dispatcher: Dispatcher, request: CheckRequest, api_key: CachedKey | None) -> None:
        super().__init__(
            dispatcher,
            api_key=api_key,
            user=request.user or "",
            asserted=Assertions.of(request),
            client=request.client,
        )

    def found(self, code: Issued) -> None:
        """Check for the whole balance, so that an empty ``balance`` code is not redeemable."""
        self.bind_code(code)
        if self.api_key is not None and not self.api_key.may_use(self.campaign.id):
            self.refused("code_not_found")
            return
        if self.campaign.kind == "balance":
            self.amount = UP_TO_BALANCE
        self.dispatcher.send(self)

    def failed(self, fault: Fault) -> None:
        """Fail the check. It changes nothing, so it may be sent again in any case."""
        super().failed(StoreUnavailable(str(fault)) if isinstance(fault, OutcomeUnknown) else fault)

    def answered(self, answer: bytes) -> None:
        """Turn the script's answer into a ``Checked``."""
        verdict, campaign_state, state, used, starts_at_ms, ends_at_ms, max_uses = answer.decode().split("\n")
        outcome, _, seconds = verdict.partition(" ")
        if outcome in {"holds_expired", "unpublished"}:
            super().answered(verdict.encode())
            return
        campaign = self.campaign
        outcome = self.mismatch() or outcome
        self.finish(
            outcome,
            Checked(
                redeemable=outcome == "redeemable",
                refusal=None if outcome == "redeemable" else outcome,
                retry_after_s=int(seconds) if seconds and outcome == "held_by_another_order" else UNSET,
                campaign=campaign.id,
                campaign_state=campaign_state,
                kind=campaign.kind,
                code=self.masked,
                state=_state_of(state, campaign.kind, int(used), _most_of(campaign, max_uses)),
                amount=campaign.amount,
                currency=campaign.currency,
                balance=(campaign.amount or 0) - int(used) if campaign.kind == "balance" else UNSET,
                uses_left=max(0, int(max_uses) - int(used)) if campaign.kind == "multi" else UNSET,
                starts_at=instant(int(starts_at_ms)) if starts_at_ms else None,
                ends_at=instant(int(ends_at_ms)) if ends_at_ms else None,
            ),
        )


def _most_of(campaign: CachedCampaign, max_uses: str) -> int:
    """How often, or for which amount, a code can be redeemed."""
    return int(max_uses or 0) if campaign.kind == "multi" else campaign.amount or 0


def _state_of(state: str, kind: str, used: int, most: int) -> str:
    """The state of a code. The script knows only ``fresh`` for a code that may be used several times.

    What is held counts as used. An adjustment that adds to a balance makes ``used`` smaller, also below 0.
    """
    if state != "fresh" or kind == "single" or used <= 0:
        return state
    return "used_up" if used >= most else "partly_used"
