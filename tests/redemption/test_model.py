"""The core against a model of it: random campaigns, codes and attempts, on real servers.

The model says the status and code of every answer, and at the end of each run what Redis must
hold. Two workers take turns, so that each finds out late what happened through the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from dataclasses import dataclass, field
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
from engine.control import api_keys, campaigns
from engine.control.campaigns import LIMITS, TRANSITIONS, CampaignChange, NewCampaign
from engine.control.change import ControlPlane
from engine.database import Database, open_database
from engine.redemption.redeem import Redemption
from engine.store import events, keys
from engine.store.idempotency import bucketed
from tests.support.deployment import connected_core, issue, mint
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from engine.api.outcomes import Outcome
    from engine.redemption.core import Core
    from engine.settings import Settings
    from engine.store.configuration import CachedKey

NEVER_ISSUED: Final = 1_000_000  # as a batch, as a serial
GUESS: Final = "0123-4567-89AB-CDEF"
PAST, FUTURE = "2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
WINDOWS: Final = ((None, None), (PAST, FUTURE), (FUTURE, None), (None, PAST))
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


@dataclass(slots=True)
class Code:
    """A code that was issued."""

    campaign: Campaign
    batch: int
    serial: int
    text: str
    redeemed: bool = False


@dataclass(slots=True)
class Campaign:
    """What the model knows of a campaign."""

    id: str
    state: str
    starts_at: str | None
    ends_at: str | None
    amount: int | None
    stock: int | None
    per_user_limit: int | None
    pinned_shard: int | None
    codes: list[Code] = field(default_factory=list)
    redeemed: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def currency(self) -> str | None:
        return None if self.amount is None else "EUR"

    def refusal(self) -> str | None:
        if self.state == "ended":
            return "campaign_ended"
        if self.state != "active":
            return "campaign_inactive"
        if self.starts_at == FUTURE:
            return "campaign_not_started"
        return "campaign_ended" if self.ends_at == PAST else None

    def redeem(self, code: Code, user: str, amount: int | None) -> str:
        """The outcome, and what it changes."""
        if refusal := self.refusal():
            return refusal
        if code.redeemed:
            return "already_redeemed"
        if amount not in {None, self.amount}:
            return "invalid_amount"
        if self.stock is not None and self.redeemed >= self.stock:
            return "sold_out"
        if self.per_user_limit is not None:
            if self.counts.get(user, 0) >= self.per_user_limit:
                return "customer_limit_exceeded"
            self.counts[user] = self.counts.get(user, 0) + 1
        code.redeemed = True
        self.redeemed += 1
        return "redeemed"


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

    code: Code | None
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
    """All of it, and every attempt by its number."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.campaigns: list[Campaign] = []
        self.successes: list[tuple[int, int, Code, Sent]] = []  # attempt, shard; each must be an event
        self._records: dict[str, tuple[Sent, Expected]] = {}
        self._numbers = itertools.count()

    def redeem(self, sent: Sent) -> Expected:
        number, code = next(self._numbers), sent.code
        if code is None:
            return Expected("code_not_found", replayed=False, first=number)
        shard = keys.locate_code(code.serial, self.shards, code.campaign.pinned_shard).shard
        body = sent._replace(text="", key=None)
        if sent.key is not None and (record := self._records.get(sent.key)):
            first_body, first = record
            if first_body == body:
                return first._replace(replayed=True)
            return Expected("idempotency_key_reused", replayed=False, first=number)
        outcome = code.campaign.redeem(code, sent.user, sent.amount)
        expected = Expected(outcome, replayed=False, first=number)
        if outcome == "redeemed":
            self.successes.append((number, shard, code, sent))
        if sent.key is not None:
            self._records[sent.key] = body, expected
        return expected


class Engine:
    """Two workers without their HTTP, and the control plane."""

    def __init__(self, settings: Settings, redis: Redis, database: Database) -> None:
        self.settings = settings
        self.plane = ControlPlane(database, redis, settings)
        self.workers: list[Core] = []
        self.digest = ""

    async def start(self) -> None:
        issued = (await api_keys.create(self.plane, "model", ["redeem"])).value
        self.digest = api_keys.digest(issued.key).hex()
        self.workers = [await self._worker() for _ in range(2)]

    async def _worker(self) -> Core:
        return await connected_core(self.settings, self.plane.redis)

    async def restart(self, number: int | None) -> None:
        """A worker, or what Redis knows of scripts."""
        if number is None:
            await self.plane.redis.script_flush()
        else:
            await self.workers[number].close()
            self.workers[number] = await self._worker()

    async def close(self) -> None:
        for worker in self.workers:
            await worker.close()

    def api_key(self, worker: Core) -> CachedKey:
        return worker.configuration.api_keys[self.digest]

    async def redeem(self, worker: Core, turn: list[Sent]) -> list[tuple[int, bytes]]:
        """Submit all in one turn of the event loop, so that those of one shard share a batch."""
        answers: list[asyncio.Future[tuple[int, bytes]]] = []
        for sent in turn:
            answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
            answers.append(answer)

            def on_done(outcome: Outcome, to: asyncio.Future[tuple[int, bytes]] = answer) -> None:
                status, body, _ = encode_outcome(outcome, 1)
                to.set_result((status, body))  # raises if it is called twice

            request = RedeemRequest(code=sent.text, user=sent.user, amount=sent.amount, order=sent.order)
            attempt = Redemption(worker.dispatcher, request, sent.key, self.api_key(worker))
            attempt.on_done = on_done
            worker.submit(attempt, request.code)
            if self.settings.shards > 1:  # one with a key goes to its key's shard first: others overtake it
                await answer
        return await asyncio.gather(*answers)


class Machine(RuleBasedStateMachine):
    """Rules change the model and the engine alike; both must answer the same."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.model = Model(settings.shards)
        self.history: list[Sent] = []
        self.agreed = True
        self.ids: dict[int, str] = {}  # of redemptions, by the number of their attempt
        self.runner = asyncio.Runner()
        self.redis = Redis.from_url(settings.redis_url)
        self.database = open_database(settings, settings.database_url)
        self.engine = Engine(settings, self.redis, self.run(self.database.__aenter__()))
        self.codec = Codec(mint_keys.from_settings(settings).by_name)
        self.begin = [self.run(self.last_event(shard)) for shard in range(settings.shards)]
        self.run(self.engine.start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - by their names
        return self.runner.run(work)

    def pick(self, number: int) -> Campaign:
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
        window=st.sampled_from(WINDOWS),
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
        said: dict[str, Any] = {
            "state": state,
            "amount": amount,
            "starts_at": window[0],
            "ends_at": window[1],
        }
        new = NewCampaign(name="Model", currency=currency, **said, **limits)
        made = self.run(campaigns.create(self.engine.plane, campaigns.define(new))).value
        self.model.campaigns.append(Campaign(made.id, pinned_shard=made.pinned_shard, **said, **limits))
        self.mint(len(self.model.campaigns) - 1, count)

    @rule(campaign=NUMBER, count=st.integers(1, 6))
    def mint(self, campaign: int, count: int) -> None:
        chosen = self.pick(campaign)
        if chosen.state == "ended":
            return
        texts = self.run(mint(self.engine.plane, chosen.id, count))
        for serial, text in enumerate(texts):
            batch, _ = self.codec.decode(text.replace("-", "").encode(), DEFAULT_FORMAT, "k1") or (0, 0)
            chosen.codes.append(Code(chosen, batch, serial, text))

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
        assert self.run(campaigns.update(self.engine.plane, chosen.id, change)).published
        for name, value in asked.items():
            setattr(chosen, name, value)

    @rule(worker=st.none() | WORKER)
    def restart(self, worker: int | None) -> None:
        self.run(self.engine.restart(worker))

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
    def redeem(self, worker: int, turn: list[Plan]) -> None:
        realised = [self.realise(plan) for plan in turn]
        self.history += realised
        self.take_turn(self.engine.workers[worker], realised)

    @rule(worker=WORKER, campaign=NUMBER, first=NUMBER, users=st.lists(USER, min_size=4, max_size=9))
    def rush(self, worker: int, campaign: int, first: int, users: list[str]) -> None:
        """Many at one campaign at the same time, so that its limits are met within a batch."""
        self.redeem(worker, [Plan(campaign, first + at, user) for at, user in enumerate(users)])

    @rule(
        worker=WORKER,
        repeats=st.lists(
            st.tuples(NUMBER, st.booleans(), st.sampled_from(OTHER_BODY)), min_size=1, max_size=4
        ),
    )
    def repeat(self, worker: int, repeats: list[tuple[int, bool, Any]]) -> None:
        """Earlier attempts once more: with the same body, typed otherwise, or with another one."""
        if not self.history:
            return
        turn = []
        for number, typed_otherwise, changes in repeats:
            sent = self.history[-1 - number % len(self.history)]
            text = f" {sent.text.lower().replace('-', '')}" if typed_otherwise else sent.text
            turn.append(sent._replace(text=text, **changes))
        self.take_turn(self.engine.workers[worker], turn)

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
        answers = self.run(self.engine.redeem(worker, turn))
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
            "currency": campaign.currency,
            "redeemed_at": body["redeemed_at"],
            "replayed": expected.replayed,
        }

    # the end of a run

    def teardown(self) -> None:
        try:
            self.run(self.engine.close())
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
                place = keys.locate_code(code.serial, self.model.shards, campaign.pinned_shard)
                bits = self.redis.bitfield(keys.state(place.shard, code.batch, place.segment))
                (state,) = await bits.get("u2", f"#{place.offset}").execute()
                assert state == (keys.REDEEMED if code.redeemed else keys.FRESH)
        for shard in range(self.model.shards):
            await self.compare_events(shard)

    async def compare_counters(self, campaign: Campaign) -> None:
        shards = range(self.model.shards) if campaign.pinned_shard is None else [campaign.pinned_shard]
        names = [keys.campaign(shard, campaign.id) for shard in shards]
        assert sum([int(await self.redis.hget(name, "uses") or 0) for name in names]) == campaign.redeemed
        counts: dict[Any, Any] = {}
        for user in USERS:
            bucket, digest = bucketed(user, keys.USER_BUCKETS)
            for shard in range(self.model.shards):
                users: dict[Any, Any] = await self.redis.hgetall(keys.users(shard, campaign.id, bucket))
                if digest in users:
                    counts[user] = int(users[digest])
        assert counts == campaign.counts

    async def compare_events(self, shard: int) -> None:
        """The stream holds what succeeded, in the order in which it did, under the ids that were answered."""
        entries: Any = await self.redis.xrange(keys.events(shard), min=b"(" + self.begin[shard])
        found = [
            events.decode(shard, stream_id, list(itertools.chain.from_iterable(fields.items())))
            for stream_id, fields in entries
        ]
        expected, actor = [], self.engine.api_key(self.engine.workers[0]).id
        for attempt, code_shard, code, sent in self.model.successes:
            redemption_id = self.ids[attempt]
            event_id = events.parse_id(redemption_id)
            if code_shard == shard and event_id is not None:
                amount, currency = code.campaign.amount, code.campaign.currency
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
def test_the_core_answers_as_the_model_and_leaves_what_it_says(settings: Settings, examples: int) -> None:
    """Again with the same examples: ``--hypothesis-seed``, or the blob that a failure prints."""
    patient = dataclasses.replace(settings, attempt_deadline_ms=60_000)  # on a slow machine, too
    run_state_machine_as_test(
        lambda: Machine(patient),  # type: ignore[arg-type] # it only calls it
        settings=hypothesis_settings(SETTINGS, max_examples=examples),
    )


async def test_a_code_minted_while_a_guess_is_looked_up_is_found(plane: ControlPlane) -> None:
    """What a worker learns for the guess counts for those who came meanwhile, too."""
    engine = Engine(plane.settings, plane.redis, plane.database)
    await engine.start()
    worker = engine.workers[0]
    _, (text,) = await issue(plane, 1)
    guess = Sent(None, GUESS, "eve", None, None, None)
    async with worker.configuration._one_at_a_time:  # as if Redis took its time
        guessed = asyncio.create_task(engine.redeem(worker, [guess]))
        await wait_until_async(
            lambda: worker._resolver._confirming is not None and not worker._resolver._unresolved
        )
        redeemed = asyncio.create_task(engine.redeem(worker, [guess._replace(text=text)]))
        await wait_until_async(lambda: worker._resolver._unresolved)
    assert [status for status, _ in (*await guessed, *await redeemed)] == [404, 200]
    await engine.close()
