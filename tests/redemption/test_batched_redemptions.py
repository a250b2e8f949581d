"""Redemptions of one batch are answered as if one came after the other, whichever worker is asked.

Campaigns, codes and attempts are random, the servers real. The lifecycle model says the outcome of every
attempt, and at the end of each run what Redis must hold. Two workers take turns, so that each learns late
what happened through the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import orjson
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from msgspec import UNSET
from redis.asyncio import Redis

from engine.api.answers import encode_outcome
from engine.api.bodies import RedeemRequest
from engine.api.problems import PROBLEMS
from engine.codes import mint_keys
from engine.codes.codec import Codec
from engine.codes.formats import DEFAULT_FORMAT, mask
from engine.control import campaigns
from engine.control.campaigns import LIMITS, TRANSITIONS, CampaignChange, NewCampaign
from engine.database import open_database
from engine.ledger.stream_tail import decode_entries
from engine.redemption.redeem import Redemption
from engine.store import events, keys
from engine.store.idempotency import bucketed
from loadtest.lifecycle import Lifecycle, ModelCampaign, ModelCode
from tests.support.deployment import issue, mint_batch
from tests.support.lifecycle_world import BITS
from tests.support.two_workers import TwoWorkers
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from engine.api.outcomes import Outcome
    from engine.control.change import ControlPlane
    from engine.redemption.core import Core
    from engine.settings import Settings
    from loadtest.lifecycle import Window

NEVER_ISSUED: Final = 1_000_000  # as a batch, as a serial
GUESS: Final = "0123-4567-89AB-CDEF"
PAST, FUTURE = "2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
WINDOWS: Final[dict[tuple[str | None, str | None], Window]] = {
    (None, None): "open",
    (PAST, FUTURE): "open",
    (FUTURE, None): "to_come",
    (None, PAST): "over",
}
SETTINGS: Final = hypothesis_settings(
    stateful_step_count=25,
    derandomize=False,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
USERS: Final = ("ann", "bob", "Zoë 3", "eve")
# What the rules draw; numbers are taken modulo what there is.
WORKER: Final = st.integers(0, 1)
NUMBER: Final = st.integers(0, 9)
USER: Final = st.sampled_from(USERS[:3])
OTHER_BODY: Final[list[Any]] = [{}, {}, {"user": "eve"}, {"order": "o-2"}]


@dataclass(eq=False)
class PinnedCampaign(ModelCampaign):
    """A campaign, and the shard that counts its limits."""

    pinned_shard: int | None = None


class Plan(NamedTuple):
    """An attempt as it is drawn."""

    campaign: int
    code: int
    user: str
    made_up: str = "no"
    amount: str = "none"
    order: str | None = None
    key: str | None = None


class Sent(NamedTuple):
    """An attempt as it is sent: ``code`` is None where it was never issued."""

    code: ModelCode | None
    text: str
    user: str
    amount: int | None
    order: str | None
    key: str | None


class Expected(NamedTuple):
    """An answer. ``first`` is the attempt whose answer this repeats, or this one."""

    outcome: str
    replayed: bool
    first: int


class Model:
    """The codes, the first answer to each Idempotency-Key, and every attempt by its number."""

    def __init__(self) -> None:
        self.codes = Lifecycle()
        self.campaigns: list[PinnedCampaign] = []
        self.successes: list[
            tuple[int, ModelCode, Sent]
        ] = []  # by the attempt's number; each must be an event
        self._records: dict[str, tuple[Sent, Expected]] = {}
        self._numbers = itertools.count()

    def redeem(self, sent: Sent) -> Expected:
        number, code = next(self._numbers), sent.code
        if code is None:
            return Expected("code_not_found", replayed=False, first=number)
        body = sent._replace(text="", key=None)
        if sent.key is not None and (record := self._records.get(sent.key)):
            first_body, first = record
            if first_body == body:
                return first._replace(replayed=True)
            return Expected("idempotency_key_reused", replayed=False, first=number)
        refusal = self.codes.redeem(code, sent.user, sent.amount, sent.order or "").refusal
        expected = Expected(refusal or "redeemed", replayed=False, first=number)
        if not refusal:
            self.successes.append((number, code, sent))
        if sent.key is not None:
            self._records[sent.key] = body, expected
        return expected


async def redeem_in_one_turn(both: TwoWorkers, worker: Core, turn: list[Sent]) -> list[tuple[int, bytes]]:
    """Submit all in one turn of the event loop, so that those of one shard share a batch."""
    answers: list[asyncio.Future[tuple[int, bytes]]] = []
    for sent in turn:
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        answers.append(answer)

        def on_done(outcome: Outcome, to: asyncio.Future[tuple[int, bytes]] = answer) -> None:
            status, body, _ = encode_outcome(outcome, 1)
            to.set_result((status, body))  # raises if it is called twice

        request = RedeemRequest(code=sent.text, user=sent.user, amount=sent.amount, order=sent.order)
        attempt = Redemption(worker.dispatcher, request, sent.key, both.api_key(worker))
        attempt.on_done = on_done
        worker.submit(attempt, request.code)
        if both.settings.shards > 1:  # one with a key goes to its key's shard first: others overtake it
            await answer
    return await asyncio.gather(*answers)


class BatchesMachine(RuleBasedStateMachine):
    """Each rule does the same to the model and to the engine: both must answer the same."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.model = Model()
        self.history: list[Sent] = []
        self.agreed = True
        self.ids: dict[int, str] = {}  # of redemptions, by the number of their attempt
        self.runner = asyncio.Runner()
        self.redis = Redis.from_url(settings.redis_url)
        self.database = open_database(settings, settings.database_url)
        self.both = TwoWorkers(settings, self.redis, self.run(self.database.__aenter__()))
        self.codec = Codec(mint_keys.from_settings(settings).by_name)
        self.begin = [self.run(self.last_event(shard)) for shard in range(settings.shards)]
        self.run(self.both.start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - by their names
        return self.runner.run(work)

    def pick(self, number: int) -> PinnedCampaign:
        return self.model.campaigns[number % len(self.model.campaigns)]

    # configuration

    @initialize(stock=st.integers(1, 5), per_user_limit=st.integers(1, 2))
    def first_campaigns(self, stock: int, per_user_limit: int) -> None:
        plain: dict[str, Any] = {"state": "active", "window": (None, None), "count": 8}
        self.create_campaign(**plain, amount=None, stock=stock, per_user_limit=None)
        self.create_campaign(**plain, amount=500, stock=None, per_user_limit=per_user_limit)
        self.create_campaign(**plain, amount=None, stock=None, per_user_limit=None)

    @rule(
        state=st.sampled_from(("active", "draft")),
        window=st.sampled_from(list(WINDOWS)),
        amount=st.sampled_from((None, 500)),
        stock=st.none() | st.integers(0, 4),
        per_user_limit=st.none() | st.integers(1, 2),
        count=st.integers(1, 6),
    )
    def create_campaign(
        self,
        *,
        state: str,
        window: tuple[str | None, str | None],
        amount: int | None,
        count: int,
        **limits: Any,  # noqa: ANN401 - by their names
    ) -> None:
        currency = None if amount is None else "EUR"
        said: dict[str, Any] = {"state": state, "amount": amount} | limits
        new = NewCampaign(name="Model", currency=currency, starts_at=window[0], ends_at=window[1], **said)
        made = self.run(campaigns.create(self.both.plane, campaigns.define(new))).value
        self.model.campaigns.append(
            PinnedCampaign(made.id, "single", window=WINDOWS[window], pinned_shard=made.pinned_shard, **said)
        )
        self.mint(len(self.model.campaigns) - 1, count)

    @rule(campaign=NUMBER, count=st.integers(1, 6))
    def mint(self, campaign: int, count: int) -> None:
        chosen = self.pick(campaign)
        if chosen.state == "ended":
            return
        batch, texts = self.run(mint_batch(self.both.plane, chosen.id, count))
        for serial, text in enumerate(texts):
            place = keys.locate_code(serial, self.settings.shards, chosen.pinned_shard)
            chosen.codes.append(ModelCode(chosen, batch, serial, text, place.shard))

    @rule(
        campaign=NUMBER,
        change=st.one_of(
            st.builds(CampaignChange, state=st.sampled_from(("active", "active", "paused", "ended"))),
            st.builds(CampaignChange, stock=st.none() | st.integers(0, 9)),
            st.builds(CampaignChange, per_user_limit=st.none() | st.integers(1, 4)),
            st.sampled_from([CampaignChange(starts_at=begin, ends_at=end) for begin, end in WINDOWS]),
        ),
    )
    def change(self, campaign: int, change: CampaignChange) -> None:
        """Change one thing, if it may be changed."""
        chosen = self.pick(campaign)
        asked = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not UNSET}
        state = asked.get("state", chosen.state)
        added = [name for name in LIMITS if asked.get(name) is not None and getattr(chosen, name) is None]
        if chosen.state == "ended" or added or state not in {chosen.state, *TRANSITIONS[chosen.state]}:
            return
        assert self.run(campaigns.update(self.both.plane, chosen.id, change)).published
        if "starts_at" in asked:
            asked = {"window": WINDOWS[asked["starts_at"], asked["ends_at"]]}
        for name, value in asked.items():
            setattr(chosen, name, value)

    @rule(worker=WORKER)
    def restart_a_worker(self, worker: int) -> None:
        self.run(self.both.restart(worker))

    @rule()
    def redis_forgets_the_scripts(self) -> None:
        self.run(self.forget_the_scripts())

    async def forget_the_scripts(self) -> None:
        await self.redis.function_flush()

    # attempts

    plans = st.builds(
        Plan,
        campaign=NUMBER,
        code=NUMBER,
        user=USER,
        made_up=st.sampled_from((*["no"] * 12, "random", "serial", "batch")),
        amount=st.sampled_from((*["none"] * 4, *["right"] * 2, "wrong")),
        order=st.sampled_from((None, None, "o-1")),
        key=st.sampled_from((*[None] * 8, *(f"k-{number}" for number in range(8)))),
    )

    @rule(worker=WORKER, turn=st.lists(plans, min_size=1, max_size=8))
    def redeem_together(self, worker: int, turn: list[Plan]) -> None:
        realised = [self.realise(plan) for plan in turn]
        self.history += realised
        self.take_turn(self.both.workers[worker], realised)

    @rule(worker=WORKER, campaign=NUMBER, first=NUMBER, users=st.lists(USER, min_size=4, max_size=9))
    def many_meet_a_limit_at_once(self, worker: int, campaign: int, first: int, users: list[str]) -> None:
        self.redeem_together(worker, [Plan(campaign, first + at, user) for at, user in enumerate(users)])

    @rule(
        worker=WORKER,
        repeats=st.lists(
            st.tuples(NUMBER, st.booleans(), st.sampled_from(OTHER_BODY)), min_size=1, max_size=4
        ),
    )
    def earlier_attempts_come_again(self, worker: int, repeats: list[tuple[int, bool, Any]]) -> None:
        """With the same body, with the code typed otherwise, or with another body."""
        if not self.history:
            return
        turn = []
        for number, typed_otherwise, changes in repeats:
            sent = self.history[-1 - number % len(self.history)]
            text = f" {sent.text.lower().replace('-', '')}" if typed_otherwise else sent.text
            turn.append(sent._replace(text=text, **changes))
        self.take_turn(self.both.workers[worker], turn)

    def realise(self, plan: Plan) -> Sent:
        campaign = self.pick(plan.campaign)
        amount = {"none": None, "right": campaign.amount, "wrong": 501}[plan.amount]
        details = (plan.user, amount, plan.order, plan.key)
        if plan.made_up == "no":
            code = campaign.codes[plan.code % len(campaign.codes)]
            return Sent(code, code.text, *details)
        if plan.made_up == "random":
            return Sent(None, GUESS, *details)
        batch = NEVER_ISSUED if plan.made_up == "batch" else campaign.codes[0].batch
        return Sent(None, self.codec.code("k1", DEFAULT_FORMAT, "", batch, NEVER_ISSUED), *details)

    def take_turn(self, worker: Core, turn: list[Sent]) -> None:
        order: Sequence[int] = range(len(turn))
        if self.settings.shards == 1:  # else each waits for the one before
            # A worker sends on at once what it knows, and the rest when it has asked for news.
            known = worker.configuration.batches
            late = [sent.code is not None and sent.code.batch not in known for sent in turn]
            order = sorted(order, key=lambda at: late[at])
        expected = dict(sorted((at, self.model.redeem(turn[at])) for at in order))
        self.agreed = False
        answers = self.run(redeem_in_one_turn(self.both, worker, turn))
        for at, (status, body) in enumerate(answers):
            self.compare(turn[at], expected[at], status, orjson.loads(body))
        self.agreed = True

    def compare(self, sent: Sent, expected: Expected, status: int, body: dict[str, Any]) -> None:
        if expected.outcome != "redeemed" or sent.code is None:
            assert (body.get("code"), status) == (expected.outcome, PROBLEMS[expected.outcome][0])
            assert body.get("replayed", False) == expected.replayed
            return
        campaign = sent.code.campaign
        assert status == 200, body
        assert body == {
            "id": self.ids.setdefault(expected.first, body["id"]),
            "status": "redeemed",
            "campaign": campaign.id,
            "code": mask(DEFAULT_FORMAT, sent.code.text[-4:]),
            "user": sent.user,
            "amount": campaign.amount,
            "currency": None if campaign.amount is None else "EUR",
            "order": sent.order,
            "redeemed_at": body["redeemed_at"],
            "replayed": expected.replayed,
        }

    # the end of a run

    def teardown(self) -> None:
        try:
            self.run(self.both.close())
            if self.agreed:
                self.run(self.compare_redis())
        finally:
            self.run(self.redis.aclose())
            self.run(self.database.__aexit__(None, None, None))
            self.runner.close()

    async def last_event(self, shard: int) -> bytes:
        newest: Any = await self.redis.xrevrange(keys.events(shard), count=1)
        return bytes(newest[0][0]) if newest else b"0-0"

    async def compare_redis(self) -> None:
        for campaign in self.model.campaigns:
            await self.compare_counters(campaign)
            for code in campaign.codes:
                place = keys.locate_code(code.serial, self.settings.shards, campaign.pinned_shard)
                bits = self.redis.bitfield(keys.state(place.shard, code.batch, place.segment))
                assert await bits.get("u2", f"#{place.offset}").execute() == [BITS[code.state]]
        for shard in range(self.settings.shards):
            await self.compare_events(shard)

    async def compare_counters(self, campaign: PinnedCampaign) -> None:
        shards = range(self.settings.shards) if campaign.pinned_shard is None else [campaign.pinned_shard]
        names = [keys.campaign(shard, campaign.id) for shard in shards]
        assert sum([int(await self.redis.hget(name, "uses") or 0) for name in names]) == campaign.uses
        counts: dict[Any, Any] = {}
        for user in USERS:
            bucket, digest = bucketed(user, keys.USER_BUCKETS)
            for shard in range(self.settings.shards):
                users: dict[Any, Any] = await self.redis.hgetall(keys.users(shard, campaign.id, bucket))
                if digest in users:
                    counts[user] = int(users[digest])
        assert counts == campaign.users

    async def compare_events(self, shard: int) -> None:
        """The stream holds what succeeded, in the order in which it did, under the ids that were answered."""
        entries: Any = await self.redis.xrange(keys.events(shard), min=b"(" + self.begin[shard])
        found = list(decode_entries(shard, entries))
        expected, actor = [], self.both.api_key(self.both.workers[0]).id
        for attempt, code, sent in self.model.successes:
            redemption_id = self.ids[attempt]
            event_id = events.parse_id(redemption_id)
            if code.shard == shard and event_id is not None:
                amount = code.campaign.amount
                currency = None if amount is None else "EUR"
                what = (redemption_id, code.campaign.id, code.batch, code.serial, code.text[-4:], sent.user)
                whose = (sent.order, sent.key, actor, event_id.stream_ms)
                expected.append(events.Event(event_id, "redeemed", *what, amount, currency, *whose))
        assert found == expected


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "examples",
    [
        pytest.param(8, marks=pytest.mark.timeout(900)),  # a failure is made smaller for 5 minutes
        pytest.param(2000, marks=[pytest.mark.long, pytest.mark.timeout(7200)]),
    ],
)
@pytest.mark.usefixtures("redis")
def test_a_batch_answers_as_if_attempts_came_one_by_one(settings: Settings, examples: int) -> None:
    """Again with the same examples: ``--hypothesis-seed``, or the blob that a failure prints."""
    patient = dataclasses.replace(settings, attempt_deadline_ms=60_000)  # on a slow machine, too
    run_state_machine_as_test(
        lambda: BatchesMachine(patient),  # type: ignore[arg-type] # it only calls it
        settings=hypothesis_settings(SETTINGS, max_examples=examples),
    )


async def test_a_code_minted_while_a_guess_is_looked_up_is_found(plane: ControlPlane) -> None:
    """What a worker learns for the guess counts for those who came meanwhile, too."""
    both = TwoWorkers(plane.settings, plane.redis, plane.database)
    await both.start()
    worker = both.workers[0]
    _, (text,) = await issue(plane, 1)
    guess = Sent(None, GUESS, "eve", None, None, None)
    async with worker.configuration._one_at_a_time:  # as if Redis took its time
        guessed = asyncio.create_task(redeem_in_one_turn(both, worker, [guess]))
        await wait_until_async(
            lambda: worker.resolver._confirming is not None and not worker.resolver._unresolved
        )
        redeemed = asyncio.create_task(redeem_in_one_turn(both, worker, [guess._replace(text=text)]))
        await wait_until_async(lambda: worker.resolver._unresolved)
    assert [status for status, _ in (*await guessed, *await redeemed)] == [404, 200]
    await both.close()
