"""What a redemption of a code would be answered, and what the code is; nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.api.bodies import UP_TO_BALANCE, encode, instant
from engine.redemption.attempt import Attempt, load_script

if TYPE_CHECKING:
    from engine.api.code_bodies import CheckRequest
    from engine.lookup.decoder import Issued
    from engine.redemption.core import Core
    from engine.store.configuration import ApiKey


class Check(Attempt):
    """A look at a code."""

    __slots__ = ()
    script = load_script("check")
    success = "redeemable"

    def __init__(self, core: Core, request: CheckRequest, api_key: ApiKey | None) -> None:
        super().__init__(core, api_key=api_key, user=request.user or "")

    def found(self, code: Issued) -> None:
        """Of a balance, ask for all of it: one with nothing left cannot be redeemed."""
        self.is_about(code)
        if self.campaign.kind == "balance":
            self.amount = UP_TO_BALANCE
        self.core.send(self)

    def answered(self, answer: bytes) -> None:
        """Turn the script's answer into that of the API."""
        verdict, campaign_state, state, used, starts_at_ms, ends_at_ms, max_uses = answer.decode().split("\n")
        outcome, _, seconds = verdict.partition(" ")
        if outcome in {"holds_expired", "unpublished"}:
            super().answered(verdict.encode())
            return
        campaign = self.campaign
        document: dict[str, object] = {
            "redeemable": outcome == "redeemable",
            "refusal": None if outcome == "redeemable" else outcome,
            **({"retry_after_s": int(seconds)} if seconds else {}),
            "campaign": campaign.id,
            "campaign_state": campaign_state,
            "kind": campaign.kind,
            "code": self.masked,
            "state": state,
            "amount": campaign.amount,
            "currency": campaign.currency,
        }
        if campaign.kind == "balance":
            document["balance"] = (campaign.amount or 0) - int(used)
        elif campaign.kind == "multi":
            document["uses_left"] = max(0, int(max_uses) - int(used))
        for name, at_ms in (("starts_at", starts_at_ms), ("ends_at", ends_at_ms)):
            document[name] = instant(int(at_ms)) if at_ms else None
        self.finish(outcome, 200, encode(document))
