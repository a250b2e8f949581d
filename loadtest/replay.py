"""Replays a campaign's events from the ledger on the lifecycle model.

Every event must be the one that the model's operation writes at that moment. So a replay finds each event
that cannot have happened, and at the end it knows the correct codes, holds and counters.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loadtest.lifecycle import Lifecycle, ModelAnswer, ModelCampaign, ModelCode, ModelHold, ModelRedemption

if TYPE_CHECKING:
    from collections.abc import Mapping

UNLIKE_THE_MODEL: Final = "unlike_the_model"
"""The operation is possible, but would not write this event."""


class Recorded(NamedTuple):
    """An event of one code in the ledger. Declared void ranges are not replayed.

    Attributes:
        about: the redemption or hold: its own id, or the one that the event ends or gives back.
        hold: the hold that the event makes, renews or ends.
    """

    type: str
    batch: int
    serial: int
    about: str
    user: str
    order: str
    amount: int | None
    hold: str = ""


def recorded(document: Mapping[str, Any]) -> Recorded:
    """Convert an event of the feed."""
    return Recorded(
        document["type"],
        int(document["batch"]),
        int(document["serial"]),
        document["redemption"],
        document["user"] or "",
        document["order"] or "",
        document["amount"],
        document["hold"] or "",
    )


class LedgerReplay:
    """Replays the events of one campaign; the events of each shard must come in their order.

    Attributes:
        most_uses: the highest number of uses of each code, by batch and serial.
        most_sold: the highest number of uses of the campaign.
    """

    def __init__(self, campaign: ModelCampaign) -> None:
        self.campaign = campaign
        self.codes: dict[tuple[int, int], ModelCode] = {}
        self.most_uses: Counter[tuple[int, int]] = Counter()
        self.most_sold = 0
        self._model = Lifecycle()
        self._holds: dict[str, ModelHold] = {}
        self._redemptions: dict[str, ModelRedemption] = {}

    @property
    def redemptions(self) -> list[ModelRedemption]:
        """All redemptions, in the order of their events."""
        return self._model.redemptions

    @property
    def holds(self) -> list[ModelHold]:
        """The live holds."""
        return self._model.holds

    def apply(self, event: Recorded) -> str:
        """Replay one event. Return why the model refuses it and skip it; empty if the model accepts it."""
        place = event.batch, event.serial
        code = self.codes.get(place)
        if code is None:
            code = self.codes[place] = ModelCode(self.campaign, *place)
        written = self._model.events
        written.clear()
        refusal = self._enact(code, event)
        if refusal:
            return refusal
        if [(one.type, one.amount) for one in written] != [(event.type, event.amount or 0)]:
            return UNLIKE_THE_MODEL
        uses = code.used if self.campaign.kind == "multi" else int(code.redeemed)
        self.most_uses[place] = max(self.most_uses[place], uses)
        self.most_sold = max(self.most_sold, self.campaign.uses)
        return ""

    def _enact(self, code: ModelCode, event: Recorded) -> str:
        """Run the operation that the event records."""
        enact = {
            "redeemed": self._redeemed,
            "held": self._held,
            "confirmed": self._confirmed,
            "released": self._given_back,
            "expired": self._given_back,
            "rolled_back": self._rolled_back,
            "voided": self._voided,
            "unvoided": self._voided,
            "adjusted": self._adjusted,
        }.get(event.type)
        return UNLIKE_THE_MODEL if enact is None else enact(code, event)

    def _redeemed(self, code: ModelCode, event: Recorded) -> str:
        return self._keep(self._model.redeem(code, event.user, self._amount(event), event.order), event)

    def _held(self, code: ModelCode, event: Recorded) -> str:
        return self._keep(self._model.hold(code, event.user, self._amount(event), event.order), event)

    def _confirmed(self, code: ModelCode, event: Recorded) -> str:
        held = self._live_hold(event.hold, code)
        if held is None or (held.user, held.order) != (event.user, event.order):
            return "hold_not_found"
        return self._keep(self._model.confirm(held, self._amount(event)), event)

    def _live_hold(self, hold_id: str, code: ModelCode) -> ModelHold | None:
        held = self._holds.get(hold_id)
        return held if held is not None and held.code is code and held in self._model.holds else None

    def _given_back(self, code: ModelCode, event: Recorded) -> str:
        held = self._live_hold(event.about, code)
        if held is None:
            return "hold_not_found"
        end = self._model.release if event.type == "released" else self._model.expire
        return end(held).refusal

    def _rolled_back(self, code: ModelCode, event: Recorded) -> str:
        redemption = self._redemptions.get(event.about)
        if redemption is None or (redemption.code, redemption.user) != (code, event.user):
            return "redemption_not_found"
        return self._model.roll_back(redemption, self._amount(event)).refusal

    def _voided(self, code: ModelCode, event: Recorded) -> str:
        return self._model.set_void(code, void=event.type == "voided").refusal

    def _adjusted(self, code: ModelCode, event: Recorded) -> str:
        return self._model.adjust(code, event.amount or 0).refusal

    def _amount(self, event: Recorded) -> int | None:
        """Return the amount to ask for; 0 if the event of a balance has none."""
        return (event.amount or 0) if self.campaign.kind == "balance" else None

    def _keep(self, answer: ModelAnswer, event: Recorded) -> str:
        """Remember the hold or redemption by its id."""
        if answer.redemption is not None:
            answer.redemption.id = event.about
            self._redemptions[event.about] = answer.redemption
        if answer.hold is not None:
            if answer.hold.id not in {"", event.about}:
                return UNLIKE_THE_MODEL
            answer.hold.id = event.about
            self._holds[event.about] = answer.hold
        return answer.refusal
