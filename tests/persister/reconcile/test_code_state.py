"""The audit's fold of a code's events and the lifecycle model, which share nothing, agree on every code."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import Phase, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.store.events import EVENT_TYPES
from loadtest.lifecycle import Lifecycle, ModelCampaign, ModelCode, ModelEvent, ModelHold, ModelRedemption
from loadtest.replay import LedgerReplay, Recorded
from persister.rebuild.from_ledger import track_hold
from persister.reconcile.code_state import CampaignRules, CodeEvent, CodeState
from tests.support.lifecycle_world import BITS

FACE: Final = 100
MAX_USES: Final = 3
TYPE: Final = st.sampled_from(sorted(EVENT_TYPES))
KINDS: Final = ("single", "multi", "balance")
USERS: Final = st.sampled_from(("ann", "bob"))
ORDERS: Final = st.sampled_from(("", "o1", "o2"))
AMOUNTS: Final = st.sampled_from((0, 20, 60, FACE, FACE + 1))
STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(
            (*("redeem", "hold") * 2, "confirm", "release", "expire", "roll_back", "void", "unvoid", "adjust")
        ),
        USERS,
        ORDERS,
        AMOUNTS,
        st.integers(0, 9),
    ),
    max_size=12,
)
SETTINGS: Final = hypothesis_settings(
    max_examples=100,
    deadline=None,
    database=None,
    print_blob=True,
    phases=(Phase.generate, Phase.shrink),
)


def campaign_of(kind: str) -> ModelCampaign:
    return ModelCampaign("cmp_1", kind, amount=FACE, max_uses=MAX_USES if kind == "multi" else None)


class History:
    """One code to which the model does what is drawn; its events, as the ledger would have them."""

    def __init__(self, kind: str) -> None:
        self.model = Lifecycle()
        self.code = ModelCode(campaign_of(kind), 1, 0)
        self.events: list[Recorded] = []

    def go_on(self, operation: str, user: str, order: str, amount: int, number: int) -> None:
        model, code = self.model, self.code
        asked = amount if code.campaign.kind == "balance" else None
        if operation == "redeem":
            model.redeem(code, user, asked, order)
        elif operation == "hold" and order:
            model.hold(code, user, asked, order)
        elif operation == "confirm" and model.holds:
            model.confirm(model.holds[number % len(model.holds)], asked)
        elif operation == "release" and model.holds:
            model.release(model.holds[number % len(model.holds)])
        elif operation == "expire" and model.holds:
            model.expire(model.holds[number % len(model.holds)])
        elif operation == "roll_back" and model.redemptions:
            model.roll_back(model.redemptions[number % len(model.redemptions)], asked)
        elif operation == "adjust":
            model.adjust(code, amount - number * 10)
        elif operation in {"void", "unvoid"}:
            model.set_void(code, void=operation == "void")
        for event in model.events[len(self.events) :]:
            self.events.append(self.recorded(event))

    def recorded(self, event: ModelEvent) -> Recorded:
        if event.subject is not None and not event.subject.id:
            event.subject.id = f"0-1-{len(self.events)}"
        about = event.subject.id if event.subject else f"0-1-{len(self.events)}"
        code, hold = event.code, event.hold.id if event.hold else ""
        return Recorded(
            event.type, code.batch, code.serial, about, event.user, event.order, event.amount, hold
        )

    def ids(self) -> list[str]:
        subjects: list[ModelHold | ModelRedemption] = [*self.model.holds, *self.model.redemptions]
        return sorted({*(one.id for one in subjects), *(event.about for event in self.events), "0-1-999"})


class Fold:
    """The audit's side."""

    def __init__(self, kind: str) -> None:
        self.state = CodeState(CampaignRules(kind, FACE, MAX_USES))
        self.amounts: dict[str, int] = {}  # of redemptions, by id
        self.uses = self.spent = 0

    def apply(self, event: Recorded) -> str:
        """Why the event is illegal; empty if it is not."""
        of_redemption = self.amounts.get(event.about) if event.type == "rolled_back" else None
        if event.type in {"redeemed", "confirmed"}:
            self.amounts[event.about] = event.amount or 0
        known = event.type != "rolled_back" or of_redemption is not None
        effect = self.state.apply(
            CodeEvent(
                *(event.type, event.about, event.user, event.order, event.amount, of_redemption, known),
                hold=event.hold,
            )
        )
        self.uses += effect.uses
        self.spent += effect.spent
        return effect.illegal


def fold_allows_more(event: Recorded, code: ModelCode) -> bool:
    """Impossible events that the fold does not see.

    A hold that another user or order renews, a second hold of one order, a confirmation while the code
    is void, and one of nothing. The engine does none of them, which the state machine shows.
    """
    if event.type == "held":
        own = code.holds.get(code.slot(event.order))
        return any(
            hold.id == event.about and (hold.user, hold.order) != (event.user, event.order)
            for hold in code.holds.values()
        ) or (own is not None and own.id != event.about and code.campaign.kind != "single")
    return event.type == "confirmed" and (code.void or not event.amount)


def state_of(history: History) -> tuple[Any, ...]:
    code = history.code
    holds = {hold.id: (hold.user, hold.order, hold.amount) for hold in code.holds.values()}
    used = 0 if code.campaign.kind == "single" else code.used
    return BITS[code.state], used, holds, code.campaign.uses, code.campaign.spent


@pytest.mark.parametrize("kind", KINDS)
@given(steps=STEPS)
@SETTINGS
def test_what_the_model_does_is_legal_and_the_fold_knows_what_it_leaves(
    kind: str, steps: list[tuple[str, str, str, int, int]]
) -> None:
    history, fold = History(kind), Fold(kind)
    for step in steps:
        history.go_on(*step)
    for event in history.events:
        assert not fold.apply(event), event
    state = fold.state
    holds = {id_: (held.user, held.order, held.amount) for id_, held in state.holds.items()}
    used = 0 if kind == "single" else state.used
    assert (state.state, used, holds, fold.uses, fold.spent) == state_of(history)


@pytest.mark.parametrize("kind", KINDS)
@given(steps=STEPS, data=st.data())
@SETTINGS
def test_what_the_model_refuses_is_illegal_for_the_fold(
    kind: str, steps: list[tuple[str, str, str, int, int]], data: st.DataObject
) -> None:
    history, fold, replay = History(kind), Fold(kind), LedgerReplay(campaign_of(kind))
    for step in steps:
        history.go_on(*step)
    for event in history.events:
        assert (fold.apply(event), replay.apply(event)) == ("", "")
    event = data.draw(
        st.builds(
            *(Recorded, TYPE, st.just(1), st.just(0), st.sampled_from(history.ids()), USERS, ORDERS, AMOUNTS),
            st.sampled_from(history.ids()),
        )
    )
    if event.type in {"voided", "unvoided"}:
        event = event._replace(amount=None)
    if event.type == "rolled_back":  # the fold does not compare its user, whose name may be erased
        users = {redemption.id: redemption.user for redemption in history.model.redemptions}
        event = event._replace(user=users.get(event.about, event.user))
    assume(not fold_allows_more(event, history.code))
    refusal, illegal = replay.apply(event), fold.apply(event)
    assert bool(refusal) == bool(illegal), (refusal, illegal)


@pytest.mark.parametrize("hold", ["0-1-0", "0-2-0"])
def test_a_confirmation_ends_the_hold_that_it_names(hold: str) -> None:
    """Of two that nothing else tells apart; in the audit and in a rebuild."""
    fold = CodeState(CampaignRules("multi", FACE, MAX_USES))
    live: dict[str, Any] = {}
    common = {"user_id": "ann", "order_ref": "o1", "amount": FACE}
    for id_ in ("0-1-0", "0-2-0"):
        fold.apply(CodeEvent("held", id_, "ann", "o1", FACE, hold=id_))
        track_hold(live, {"type": "held", "redemption": id_, "hold": id_, **common}, ())
    confirmed = CodeEvent("confirmed", "0-3-0", "ann", "o1", FACE, hold=hold)
    assert not fold.apply(confirmed).illegal
    track_hold(live, {"type": "confirmed", "redemption": "0-3-0", "hold": hold, **common}, ())
    assert set(fold.holds) == set(live) == {"0-1-0", "0-2-0"} - {hold}
    assert fold.apply(confirmed).illegal == "confirmed without a hold"


def test_an_old_confirmation_ends_the_hold_of_its_order() -> None:
    fold = CodeState(CampaignRules("multi", FACE, MAX_USES))
    live: dict[str, Any] = {}
    for id_, order in (("0-1-0", "o1"), ("0-2-0", "o2")):
        fold.apply(CodeEvent("held", id_, "ann", order, FACE))
        row = {"type": "held", "redemption": id_, "user_id": "ann", "order_ref": order, "amount": FACE}
        track_hold(live, row, ())
    assert not fold.apply(CodeEvent("confirmed", "0-3-0", "ann", "o2", FACE)).illegal
    row = {"type": "confirmed", "hold": None, "user_id": "ann", "order_ref": "o2", "amount": FACE}
    track_hold(live, row, ())
    assert set(fold.holds) == set(live) == {"0-1-0"}
