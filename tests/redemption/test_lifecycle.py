"""Codes against the model of their lifecycle: random calls, one after the other, on real servers.

Time is moved by moving windows, and the times of holds in Redis; Valkey is killed and started again.
At the end of each run Redis must hold what the model says, and every event must be there.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.api.answers import encode_outcome
from engine.api.bodies import (
    CheckRequest,
    CombinedItem,
    CombinedRequest,
    HoldRequest,
    RedeemRequest,
    RollbackRequest,
)
from engine.control import campaigns, voids
from engine.control.campaigns import CampaignChange, NewCampaign
from engine.redemption import hold_calls
from engine.redemption.check import Check
from engine.redemption.combined import redeem_together
from engine.redemption.correct import Adjustment, Rollback, Unvoiding, Voiding
from engine.redemption.cross_shard import settle_abandoned
from engine.redemption.hold import Hold as HoldAttempt
from engine.redemption.hold_expiry import expire_holds
from engine.redemption.redeem import Redemption as RedeemAttempt
from engine.store import keys
from engine.store.events import parse_id
from loadtest.lifecycle import UP_TO_BALANCE, Lifecycle, ModelCampaign, ModelCode, ModelHold
from tests.support.cross_shard import STEPS, dying, let_its_time_pass
from tests.support.deployment import mint_batch
from tests.support.lifecycle_world import World
from tests.support.servers import ValkeyProcess, own_valkey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.api.outcomes import Outcome
    from engine.redemption.attempt import Attempt
    from engine.redemption.core import Core
    from engine.settings import Settings
    from engine.store.dispatcher import Dispatcher
    from loadtest.lifecycle import Amount, ModelAnswer, Window

USERS: Final = ("ann", "bob")
ORDERS: Final = ("", "o1", "o2")
PICK: Final = st.integers(0, 9)
AMOUNT: Final = st.sampled_from((None, 0, 30, 50, 100, 101, UP_TO_BALANCE))
PAST, FUTURE = "2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
KEYED: Final = st.booleans()
LIMIT: Final = st.none() | st.integers(1, 4)
SETTINGS: Final = hypothesis_settings(
    stateful_step_count=20,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def as_replayed(body: dict[str, Any]) -> dict[str, Any]:
    """The body of an answer, and of those within it, when it is given again."""
    several = {"redemptions": [as_replayed(one) for one in body.get("redemptions", ())]}
    return body | {"replayed": True} | (several if "redemptions" in body else {})


def held_only(refusal: str, again: Callable[[str], None]) -> Callable[[str], None] | None:
    """``again``, if this refusal is not kept under a key."""
    return again if refusal == "held_by_another_order" else None


class ApiAnswer(NamedTuple):
    status: int
    body: bytes


class CodesMachine(RuleBasedStateMachine):
    """Each rule does the same to the model and to the engine: both must answer the same."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.model = Lifecycle()
        self.campaigns: list[ModelCampaign] = []
        self.keyed: list[tuple[str, Callable[[str], Any], ApiAnswer]] = []  # key, call, answer
        self.bound: dict[str, Callable[[str], None]] = {}  # keys of requests without an answer for good
        self.turns = itertools.count()

    def call(self, make: Callable[[Core, str | None], Any], key: str | None) -> ApiAnswer:
        """Do it on one of the workers."""
        worker = self.world.both.workers[next(self.turns) % 2]
        outcome: Outcome = self.world.run(make(worker, key))
        status, body, _ = encode_outcome(outcome, 1)
        return ApiAnswer(status, body)

    def key(self, *, keyed: bool = True) -> str | None:
        return f"key-{next(self.world.numbers)}" if keyed else None

    def ask(
        self,
        make: Callable[[Core, str | None], Any],
        expected: str,
        key: str | None,
        again: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """The body of the answer, which must be as expected: ``""``, or the code of a refusal.

        ``again``: if the key does not keep the answer, does the same again, with the model.
        """
        answer = self.call(make, key)
        body: dict[str, Any] = orjson.loads(answer.body)
        assert ("" if answer.status == 200 else body["code"]) == expected, body
        if key is not None and again is None:
            self.bound.pop(key, None)
            self.keyed.append((key, lambda used: self.call(make, used), answer))
        elif key is not None and again is not None:
            self.bound[key] = again
        return body

    def attempt(
        self, make: Callable[[Dispatcher, str | None, Any], Attempt], text: str | None = None
    ) -> Callable[[Core, str | None], Any]:
        def ask(core: Core, key: str | None) -> Any:  # noqa: ANN401 - a coroutine
            attempt = make(core.dispatcher, key, self.world.both.api_key(core))
            return core.answer_bound(attempt) if text is None else core.answer(attempt, text)

        return ask

    def pick(self, number: int) -> ModelCode:
        codes = [code for campaign in self.campaigns for code in campaign.codes]
        return codes[number % len(codes)]

    # campaigns and codes

    @initialize(stock=LIMIT, budget=st.none() | st.integers(1, 4), user=LIMIT, uses=st.integers(1, 3))
    def campaigns_and_codes(self, stock: int | None, budget: int | None, user: int | None, uses: int) -> None:
        for kind in ("single", "multi", "balance"):
            limits: dict[str, Any] = {"stock": stock, "per_user_limit": user}
            limits["budget"] = None if budget is None else budget * 60
            limits["max_uses"] = uses if kind == "multi" else None
            new = NewCampaign(
                name="Lifecycle", kind=kind, state="active", amount=100, currency="EUR", **limits
            )
            plane = self.world.plane
            made = self.world.run(campaigns.create(plane, campaigns.define(new))).value
            campaign = ModelCampaign(made.id, kind, 100, limits.pop("max_uses"), **limits)
            self.campaigns.append(campaign)
            batch, texts = self.world.run(mint_batch(plane, made.id, 3))
            for serial, text in enumerate(texts):
                place = keys.locate_code(serial, self.world.settings.shards, made.pinned_shard)
                campaign.codes.append(ModelCode(campaign, batch, serial, text, place.shard))

    # the calls

    @rule(code=PICK, user=st.sampled_from(USERS), amount=AMOUNT, order=st.sampled_from(ORDERS), keyed=KEYED)
    def redeem(self, code: int, user: str, amount: Amount, order: str, *, keyed: bool) -> None:
        self.redeem_it(self.pick(code), user, amount, order, self.key(keyed=keyed))

    def redeem_it(self, chosen: ModelCode, user: str, amount: Amount, order: str, key: str | None) -> None:
        expected = self.model.redeem(chosen, user, amount, order)
        request = RedeemRequest(code=chosen.text, user=user, amount=amount, order=order or None)
        made = self.attempt(
            lambda dispatcher, key, api_key: RedeemAttempt(dispatcher, request, key, api_key), chosen.text
        )
        again = held_only(expected.refusal, lambda key: self.redeem_it(chosen, user, amount, order, key))
        self.compare_redemption(expected, self.ask(made, expected.refusal, key, again))

    @rule(
        several=st.lists(PICK, min_size=2, max_size=4),
        user=st.sampled_from(USERS),
        amount=AMOUNT,
        order=st.sampled_from(ORDERS[1:]),
        keyed=KEYED,
    )
    def redeem_combined(
        self, several: list[int], user: str, amount: Amount, order: str, *, keyed: bool
    ) -> None:
        """Codes of one shard or of several, some of them perhaps twice, or held by the same order."""
        codes = [self.pick(number) for number in several]
        self.redeem_together(codes, user, amount, order, self.key(keyed=keyed))

    @precondition(lambda self: self.world.settings.shards > 1)
    @rule(
        several=st.lists(PICK, min_size=2, max_size=4),
        user=st.sampled_from(USERS),
        amount=AMOUNT,
        order=st.sampled_from(ORDERS[1:]),
        step=st.sampled_from(STEPS),
        expiry=st.booleans(),
    )
    def a_worker_dies_redeeming_combined(
        self, several: list[int], user: str, amount: Amount, order: str, step: str, *, expiry: bool
    ) -> None:
        """The retry finds out; perhaps the hold expiry has cleared up before."""
        codes = [self.pick(number) for number in several]
        if len({code.shard for code in codes}) == 1:
            return  # one call of a script: there are no steps
        key, make = self.key(), self.combined_request(codes, user, amount, order)
        with dying(step):
            died = self.call(make, key)
        world = self.world
        world.run(let_its_time_pass(world.redis, world.settings.shards))
        if expiry:
            world.run(settle_abandoned(world.both.workers[0]))
        refused = self.redeem_together(codes, user, amount, order, key)
        assert died.status == 503 or refused

    def combined_request(
        self, codes: list[ModelCode], user: str, amount: Amount, order: str
    ) -> Callable[[Core, str | None], Any]:
        request = CombinedRequest([CombinedItem(code.text, amount) for code in codes], user, order)
        return lambda core, key: redeem_together(
            core, request, key=key, api_key=self.world.both.api_key(core)
        )

    def redeem_together(
        self, codes: list[ModelCode], user: str, amount: Amount, order: str, key: str | None
    ) -> list[str]:
        """The refusals, which are as the model says."""
        answers = self.model.combined(codes, user, amount, order)
        refusals = [answer.refusal for answer in answers if answer.refusal]
        held = "held_by_another_order" in refusals

        def again(key: str) -> None:
            self.redeem_together(codes, user, amount, order, key)

        body = self.ask(
            self.combined_request(codes, user, amount, order),
            refusals[0] if refusals else "",
            key,
            again if held else None,
        )
        if refusals:
            assert [refusal["code"] for refusal in body["refusals"]] == refusals
            return refusals
        for answer, redemption in zip(answers, body["redemptions"], strict=True):
            assert answer.redemption is not None
            assert redemption["amount"] == answer.amount
            answer.redemption.id = redemption["id"]
        return []

    def compare_redemption(self, expected: ModelAnswer, body: dict[str, Any]) -> None:
        if (redemption := expected.redemption) is not None:
            code = redemption.code
            assert body["amount"] == expected.amount
            assert body.get("balance", code.campaign.face - code.used) == code.campaign.face - code.used
            redemption.id = body["id"]

    @rule(
        code=PICK, user=st.sampled_from(USERS), amount=AMOUNT, order=st.sampled_from(ORDERS[1:]), keyed=KEYED
    )
    def hold(self, code: int, user: str, amount: Amount, order: str, *, keyed: bool) -> None:
        self.hold_it(self.pick(code), user, amount, order, self.key(keyed=keyed))

    def hold_it(self, chosen: ModelCode, user: str, amount: Amount, order: str, key: str | None) -> None:
        expected = self.model.hold(chosen, user, amount, order)
        request = HoldRequest(code=chosen.text, user=user, order=order, amount=amount)
        made = self.attempt(
            lambda dispatcher, key, api_key: HoldAttempt(dispatcher, request, key, api_key), chosen.text
        )
        again = held_only(expected.refusal, lambda key: self.hold_it(chosen, user, amount, order, key))
        body = self.ask(made, expected.refusal, key, again)
        if expected.hold is not None:
            assert body["amount"] == expected.amount
            assert expected.hold.id in {"", body["id"]}  # a renewed hold keeps its id
            expected.hold.id = body["id"]

    @precondition(lambda self: self.model.holds or self.model.expired)
    @rule(hold=PICK, amount=st.sampled_from((None, 0, 20, 20, 50, 101)), keyed=KEYED)
    def confirm(self, hold: int, amount: int | None, *, keyed: bool) -> None:
        held = self.any_hold(hold)
        expected = self.model.confirm(held, amount)
        body = self.ask(
            self.end(hold_calls.confirm, held, amount=amount), expected.refusal, self.key(keyed=keyed)
        )
        self.compare_redemption(expected, body)

    @precondition(lambda self: self.model.holds or self.model.expired)
    @rule(hold=PICK, keyed=KEYED)
    def release(self, hold: int, *, keyed: bool) -> None:
        held = self.any_hold(hold)
        expected = self.model.release(held)
        self.ask(self.end(hold_calls.release, held), expected.refusal, self.key(keyed=keyed))

    def any_hold(self, number: int) -> ModelHold:
        """A live hold, or one that has expired."""
        gone = [ModelHold(self.pick(0), expired, "", "", 0) for expired in sorted(self.model.expired)]
        known = self.model.holds + gone
        return known[number % len(known)]

    def end(
        self,
        how: Callable[..., Any],
        hold: ModelHold,
        **fields: Any,  # noqa: ANN401 - those of the call
    ) -> Callable[[Core, str | None], Any]:
        return lambda core, key: how(core, hold.id, key=key, api_key=self.world.both.api_key(core), **fields)

    @precondition(lambda self: self.model.redemptions)
    @rule(
        redemption=PICK,
        amount=st.sampled_from((None, None, 0, 20, 50, 100, 101)),
        void=st.booleans(),
        keyed=KEYED,
    )
    def roll_back(self, redemption: int, amount: int | None, *, void: bool, keyed: bool) -> None:
        chosen = self.model.redemptions[redemption % len(self.model.redemptions)]
        code, event_id = chosen.code, parse_id(chosen.id)
        assert event_id is not None
        expected = self.model.roll_back(chosen, amount, void=void)
        request = RollbackRequest("a change of mind", amount, void)
        record = {
            "campaign": code.campaign.id, "batch": code.batch, "serial": code.serial,
            "last4": code.text[-4:],
            "user": chosen.user, "order": None, "amount": chosen.amount, "currency": "EUR",
        }  # fmt: skip
        for worker in self.world.both.workers:  # as the handler does where it does not know the batch
            self.world.run(worker.configuration.refresh())
        made = self.attempt(
            lambda dispatcher, key, api_key: Rollback(
                dispatcher, event_id, record, request, key=key, api_key=api_key
            )
        )
        body = self.ask(made, expected.refusal, self.key(keyed=keyed))
        if not expected.refusal:
            assert (body["returned"], body["rolled_back"]) == (expected.amount, chosen.given_back)

    @rule(code=PICK, void=st.booleans(), keyed=KEYED)
    def void(self, code: int, *, void: bool, keyed: bool) -> None:
        chosen = self.pick(code)
        expected = self.model.set_void(chosen, void=void)
        kind = Voiding if void else Unvoiding
        made = self.attempt(
            lambda dispatcher, key, api_key: kind(dispatcher, "a reason", key=key, api_key=api_key),
            chosen.text,
        )
        self.ask(made, expected.refusal, self.key(keyed=keyed))

    @rule(code=PICK, amount=st.sampled_from((-101, -30, 30)), keyed=KEYED)
    def adjust(self, code: int, amount: int, *, keyed: bool) -> None:
        chosen = self.pick(code)
        expected = self.model.adjust(chosen, amount)
        made = self.attempt(
            lambda dispatcher, key, api_key: Adjustment(
                dispatcher, amount, "a reason", key=key, api_key=api_key
            ),
            chosen.text,
        )
        body = self.ask(made, expected.refusal, self.key(keyed=keyed))
        assert expected.refusal or body["balance"] == 100 - chosen.used

    @rule(code=PICK, user=st.sampled_from(USERS))
    def check(self, code: int, user: str) -> None:
        chosen = self.pick(code)
        refusal = self.model.check(chosen, user).refusal
        request = CheckRequest(code=chosen.text, user=user)
        made = self.attempt(lambda dispatcher, _, api_key: Check(dispatcher, request, api_key), chosen.text)
        body = orjson.loads(self.call(made, None).body)
        assert (body["redeemable"], body["refusal"] or "") == (not refusal, refusal)

    # keys

    @precondition(lambda self: self.keyed)
    @rule(which=PICK)
    def a_repeated_key_gets_the_first_answer(self, which: int) -> None:
        key, again, first = self.keyed[which % len(self.keyed)]
        answer = again(key)
        assert answer.status == first.status
        assert orjson.loads(answer.body) == as_replayed(orjson.loads(first.body))

    @precondition(lambda self: self.bound)
    @rule(which=PICK)
    def a_key_that_got_no_answer_for_good_is_used_again(self, which: int) -> None:
        key = sorted(self.bound)[which % len(self.bound)]
        self.bound[key](key)

    @precondition(lambda self: self.keyed or self.bound)
    @rule(which=PICK, code=PICK)
    def a_key_with_another_request_is_refused(self, which: int, code: int) -> None:
        request = RedeemRequest(code=self.pick(code).text, user="somebody else", order="another")
        made = self.attempt(
            lambda dispatcher, key, api_key: RedeemAttempt(dispatcher, request, key, api_key),
            self.pick(code).text,
        )
        known = [key for key, *_ in self.keyed] + sorted(self.bound)
        answer = self.call(made, known[which % len(known)])
        assert (answer.status, orjson.loads(answer.body)["code"]) == (422, "idempotency_key_reused")

    # configuration, time, crashes

    @rule(campaign=PICK, state=st.sampled_from(("active", "active", "paused")))
    def change_state(self, campaign: int, state: str) -> None:
        chosen = self.campaigns[campaign % 3]
        chosen.state = state
        self.world.run(campaigns.update(self.world.plane, chosen.id, CampaignChange(state=state)))

    @rule(code=PICK, void=st.booleans())
    def declare_void(self, code: int, *, void: bool) -> None:
        chosen = self.pick(code)
        chosen.void_by_range = void
        wanted = voids.VoidDeclaration(
            batch=chosen.batch, first_serial=chosen.serial, last_serial=chosen.serial, reason="a reason"
        )
        self.world.run(voids.declare(self.world.plane, wanted, void=void, actor="model"))

    @rule(campaign=PICK, window=st.sampled_from(("to_come", "open", "open", "over")))
    def move_window(self, campaign: int, window: Window) -> None:
        chosen = self.campaigns[campaign % 3]
        chosen.window = window
        edges = CampaignChange(
            starts_at=FUTURE if window == "to_come" else None, ends_at=PAST if window == "over" else None
        )
        self.world.run(campaigns.update(self.world.plane, chosen.id, edges))

    @precondition(lambda self: self.model.holds)
    @rule(hold=PICK)
    def time_of_a_hold_passes(self, hold: int) -> None:
        held = self.model.holds[hold % len(self.model.holds)]
        held.over = True
        self.world.run(self.world.end_hold(held.code.shard, held.id))

    @rule()
    def give_back_expired_holds(self) -> None:
        for shard in range(self.world.settings.shards):
            self.world.run(expire_holds(self.world.both.workers[0], shard))
            self.model.give_back_expired(shard)

    @precondition(lambda self: self.model.holds and len(self.model.redemptions) > 1)
    @rule(really=st.sampled_from((False, False, False, True)))
    def a_killed_valkey_keeps_everything(self, *, really: bool) -> None:
        if really:
            self.world.crash()

    @precondition(lambda self: self.model.redemptions)
    @rule(really=st.sampled_from((False, False, True)))
    def a_lost_redis_is_rebuilt(self, *, really: bool) -> None:
        if not really:
            return
        self.world.lose()
        self.model.expired.clear()
        for hold in self.model.holds:
            hold.over = False  # when it was to end is lost
        self.keyed = [one for one in self.keyed if self.made_an_event(one[2])]
        self.bound.clear()

    def made_an_event(self, answer: ApiAnswer) -> bool:
        body: dict[str, Any] = orjson.loads(answer.body)
        shards = {redemption["id"].split("-")[0] for redemption in body.get("redemptions", ())}
        return answer.status == 200 and body.get("changed", True) and len(shards) <= 1

    def teardown(self) -> None:
        for campaign in self.campaigns:
            self.world.run(self.world.compare(self.model, campaign))


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    with own_valkey() as process:
        yield process


NORMAL: Final = pytest.param(10, marks=pytest.mark.timeout(600))
LONG: Final = pytest.param(
    1000, marks=[pytest.mark.long, pytest.mark.timeout(7200)]
)  # a form, so 2,000 in all


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("examples", [NORMAL, LONG])
def test_every_operation_answers_and_leaves_what_the_model_says(
    settings: Settings, valkey: ValkeyProcess, examples: int
) -> None:
    """Again with the same examples: ``--hypothesis-seed``, or the blob that a failure prints."""
    world = World(replace(settings, redis_url=valkey.url, attempt_deadline_ms=60_000), valkey)
    world.open()
    try:
        run_state_machine_as_test(
            lambda: CodesMachine(world),  # type: ignore[arg-type] # it only calls it
            settings=hypothesis_settings(SETTINGS, max_examples=examples),
        )
    finally:
        world.close()
