"""The life of codes against a model of it (``life``): random calls, one after the other, on real servers.

Time is moved by moving windows, and the times of holds in Redis; Valkey is killed and started again.
At the end of each run Redis must hold what the model says, and every event must be there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

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
from redis.asyncio import Redis

from engine.api.answers import encode_outcome
from engine.api.bodies import (
    CheckRequest,
    CombinedItem,
    CombinedRequest,
    HoldRequest,
    RedeemRequest,
    RollbackRequest,
)
from engine.control import api_keys, campaigns, voids
from engine.control.campaigns import CampaignChange, NewCampaign
from engine.control.change import ControlPlane
from engine.control.publishing import publish
from engine.database import open_database
from engine.redemption import hold_calls
from engine.redemption.check import Check
from engine.redemption.combined import redeem_together
from engine.redemption.correct import Adjustment, Rollback, Unvoiding, Voiding
from engine.redemption.hold import Hold as HoldAttempt
from engine.redemption.hold_expiry import expire_holds
from engine.redemption.redeem import Redemption as RedeemAttempt
from engine.store import keys
from engine.store.events import EventId, parse_id
from engine.store.idempotency import bucketed
from persister.rebuild.rebuild import rebuild
from tests.redemption import life
from tests.redemption.life import Campaign, Code, Life
from tests.support.deployment import connected_core, mint
from tests.support.servers import ValkeyProcess, temporary_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from engine.api.answers import Answer
    from engine.api.outcomes import Outcome
    from engine.redemption.attempt import Attempt
    from engine.redemption.core import Core
    from engine.settings import Settings
    from engine.store.dispatcher import Dispatcher

USERS: Final = ("ann", "bob")
ORDERS: Final = ("", "o1", "o2")
PICK: Final = st.integers(0, 9)
AMOUNT: Final = st.sampled_from((None, 0, 30, 50, 100, 101, life.UP_TO_BALANCE))
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


class World:
    """The servers of one test, two workers, and a number for whatever needs a name of its own."""

    def __init__(self, settings: Settings, valkey: ValkeyProcess) -> None:
        self.settings = settings
        self.valkey = valkey
        self.runner = asyncio.Runner()
        self.numbers = itertools.count(1)
        self.redis = Redis.from_url(settings.redis_url)
        self._open_database = open_database(settings, settings.database_url)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - whatever it makes
        return self.runner.run(work)

    def open(self) -> None:
        self.run(self._open())

    async def _open(self) -> None:
        database = await self._open_database.__aenter__()
        self.plane = ControlPlane(database, self.redis, self.settings)
        await publish(self.redis, database)
        issued = (await api_keys.create(self.plane, "life", ["redeem"])).value
        self.digest = api_keys.digest(issued.key).hex()
        self.workers = [await self._worker() for _ in range(2)]

    async def _worker(self) -> Core:
        return await connected_core(self.settings, self.redis)

    async def _close_workers(self) -> None:
        for worker in self.workers:
            await worker.close()

    async def _restart_workers(self) -> None:
        self.workers = [await self._worker() for _ in range(2)]

    def crash(self) -> None:
        """SIGKILL for Valkey; whatever was acknowledged must be there when it is back."""
        self.run(self._close_workers())
        self.valkey.kill()
        self.valkey.start()
        self.run(self.redis.connection_pool.disconnect())
        self.run(self._restart_workers())

    def lose(self) -> None:
        """Redis loses everything, and is made again from PostgreSQL, to which its stream goes first."""
        self.run(self._close_workers())
        self.run(rebuild(self.settings, lambda *_: None))
        self.run(publish(self.redis, self.plane.database))
        self.run(self._restart_workers())

    def close(self) -> None:
        self.run(self._close_workers())
        self.run(self.redis.aclose())
        self.run(self._open_database.__aexit__(None, None, None))
        self.runner.close()


class Machine(RuleBasedStateMachine):
    """Rules do the same to the model and to the engine; both must answer the same."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.model = Life()
        self.kept: list[tuple[str, Callable[[str], Any], Answer]] = []  # key, the call, its answer
        self.turns = itertools.count()

    def call(self, make: Callable[[Core, str | None], Any], key: str | None) -> Answer:
        """Do it on one of the workers."""
        worker = self.world.workers[next(self.turns) % 2]
        outcome: Outcome = self.world.run(make(worker, key))
        return encode_outcome(outcome, self.world.settings.retry_after_s)

    def ask(self, make: Callable[[Core, str | None], Any], expected: str, *, keyed: bool) -> dict[str, Any]:
        """The body of the answer, which must be as expected: ``""``, or the code of a refusal."""
        key = f"key-{next(self.world.numbers)}" if keyed else None
        answer = self.call(make, key)
        body: dict[str, Any] = orjson.loads(answer.body)
        assert ("" if answer.status == 200 else body["code"]) == expected, body
        if key is not None and expected != "held_by_another_order":
            self.kept.append((key, lambda used: self.call(make, used), answer))
        return body

    def attempt(
        self, make: Callable[[Dispatcher, str | None, Any], Attempt], text: str | None = None
    ) -> Callable[[Core, str | None], Any]:
        def ask(core: Core, key: str | None) -> Any:  # noqa: ANN401 - a coroutine
            attempt = make(core.dispatcher, key, core.configuration.api_keys[self.world.digest])
            return core.answer_bound(attempt) if text is None else core.answer(attempt, text)

        return ask

    def pick(self, number: int) -> Code:
        codes = [code for campaign in self.model.campaigns for code in campaign.codes]
        return codes[number % len(codes)]

    # what there is

    @initialize(stock=LIMIT, budget=st.none() | st.integers(1, 4), user=LIMIT, uses=st.integers(1, 3))
    def campaigns_and_codes(self, stock: int | None, budget: int | None, user: int | None, uses: int) -> None:
        for kind in ("single", "multi", "balance"):
            limits: dict[str, Any] = {"stock": stock, "per_user_limit": user}
            limits["budget"] = None if budget is None else budget * 60
            limits["max_uses"] = uses if kind == "multi" else None
            new = NewCampaign(name="Life", kind=kind, state="active", amount=100, currency="EUR", **limits)
            plane = self.world.plane
            made = self.world.run(campaigns.create(plane, campaigns.define(new))).value
            campaign = Campaign(made.id, kind, 100, limits.pop("max_uses"), **limits)
            self.model.campaigns.append(campaign)
            for serial, text in enumerate(self.world.run(mint(plane, made.id, 3))):
                place = keys.locate_code(serial, self.world.settings.shards, made.pinned_shard)
                campaign.codes.append(Code(campaign, serial, text, place.shard))

    # the calls

    @rule(code=PICK, user=st.sampled_from(USERS), amount=AMOUNT, order=st.sampled_from(ORDERS), keyed=KEYED)
    def redeem(self, code: int, user: str, amount: life.Amount, order: str, *, keyed: bool) -> None:
        chosen = self.pick(code)
        expected, taken = self.model.redeem(chosen, user, amount, order)
        request = RedeemRequest(code=chosen.text, user=user, amount=amount, order=order or None)
        made = self.attempt(
            lambda dispatcher, key, api_key: RedeemAttempt(dispatcher, request, key, api_key), chosen.text
        )
        self.redeemed(chosen, user, taken, self.ask(made, expected, keyed=keyed))

    @rule(
        several=st.lists(PICK, min_size=2, max_size=4),
        user=st.sampled_from(USERS),
        amount=AMOUNT,
        order=st.sampled_from(ORDERS[1:]),
        keyed=KEYED,
    )
    def redeem_together(
        self, several: list[int], user: str, amount: life.Amount, order: str, *, keyed: bool
    ) -> None:
        """Codes of one shard, some of them perhaps twice."""
        shard = self.pick(several[0]).shard
        codes = [code for code in map(self.pick, several) if code.shard == shard]
        outcomes = self.model.combined(codes, user, amount, order)
        refusals = [refusal for refusal, _ in outcomes if refusal]
        items = [CombinedItem(code.text, amount) for code in codes]
        request = CombinedRequest(items, user, order)
        body = self.ask(
            lambda core, key: redeem_together(
                core, request, key=key, api_key=core.configuration.api_keys[self.world.digest]
            ),
            refusals[0] if refusals else "",
            keyed=keyed and "held_by_another_order" not in refusals,
        )
        if refusals:
            assert [refusal["code"] for refusal in body["refusals"]] == refusals
            return
        for code, (_, taken), redeemed in zip(codes, outcomes, body["redemptions"], strict=True):
            assert redeemed["amount"] == taken
            self.model.redemptions.append(life.Redemption(code, redeemed["id"], user, taken or 0))

    def redeemed(self, code: Code, user: str, taken: int | None, body: dict[str, Any]) -> None:
        if taken is not None:
            assert body["amount"] == taken
            assert body.get("balance", code.campaign.amount - code.used) == code.campaign.amount - code.used
            self.model.redemptions.append(life.Redemption(code, body["id"], user, taken))

    @rule(
        code=PICK, user=st.sampled_from(USERS), amount=AMOUNT, order=st.sampled_from(ORDERS[1:]), keyed=KEYED
    )
    def hold(self, code: int, user: str, amount: life.Amount, order: str, *, keyed: bool) -> None:
        chosen = self.pick(code)
        expected, taken, held = self.model.hold(chosen, user, amount, order)
        request = HoldRequest(code=chosen.text, user=user, order=order, amount=amount)
        made = self.attempt(
            lambda dispatcher, key, api_key: HoldAttempt(dispatcher, request, key, api_key), chosen.text
        )
        body = self.ask(made, expected, keyed=keyed)
        if held is not None:
            assert body["amount"] == taken
            assert held.id in {"", body["id"]}  # it keeps its id
            held.id = body["id"]

    @precondition(lambda self: self.model.holds or self.model.traces)
    @rule(hold=PICK, amount=st.sampled_from((None, 0, 20, 20, 50, 101)), keyed=KEYED)
    def confirm(self, hold: int, amount: int | None, *, keyed: bool) -> None:
        held = self.any_hold(hold)
        expected, taken = self.model.confirm(held, amount)
        body = self.ask(self.end(hold_calls.confirm, held, amount=amount), expected, keyed=keyed)
        self.redeemed(held.code, held.user, taken, body)

    @precondition(lambda self: self.model.holds or self.model.traces)
    @rule(hold=PICK, keyed=KEYED)
    def release(self, hold: int, *, keyed: bool) -> None:
        held = self.any_hold(hold)
        expected, _ = self.model.release(held)
        self.ask(self.end(hold_calls.release, held), expected, keyed=keyed)

    def any_hold(self, number: int) -> life.Hold:
        """One that is there, or the trace of one."""
        gone = [life.Hold(self.pick(0), trace, "", "", 0) for trace in sorted(self.model.traces)]
        known = self.model.holds + gone
        return known[number % len(known)]

    def end(
        self,
        how: Callable[..., Any],
        hold: life.Hold,
        **fields: Any,  # noqa: ANN401 - those of the call
    ) -> Callable[[Core, str | None], Any]:
        return lambda core, key: how(
            core, hold.id, key=key, api_key=core.configuration.api_keys[self.world.digest], **fields
        )

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
        expected, returned = self.model.roll_back(chosen, amount, void=void)
        request = RollbackRequest("a change of mind", amount, void)
        record = {
            "campaign": code.campaign.id, "batch": self.batch(code), "serial": code.serial,
            "last4": code.text[-4:],
            "user": chosen.user, "order": None, "amount": chosen.amount, "currency": "EUR",
        }  # fmt: skip
        for worker in self.world.workers:  # as the handler does where it does not know the batch
            self.world.run(worker.configuration.refresh())
        made = self.attempt(
            lambda dispatcher, key, api_key: Rollback(
                dispatcher, event_id, record, request, key=key, api_key=api_key
            )
        )
        body = self.ask(made, expected, keyed=keyed)
        if returned is not None:
            assert (body["returned"], body["rolled_back"]) == (returned, chosen.given_back)

    @rule(code=PICK, void=st.booleans(), keyed=KEYED)
    def void(self, code: int, *, void: bool, keyed: bool) -> None:
        chosen = self.pick(code)
        expected, _ = self.model.set_void(chosen, void=void)
        kind = Voiding if void else Unvoiding
        made = self.attempt(
            lambda dispatcher, key, api_key: kind(dispatcher, "a reason", key=key, api_key=api_key),
            chosen.text,
        )
        self.ask(made, expected, keyed=keyed)

    @rule(code=PICK, amount=st.sampled_from((-101, -30, 30)), keyed=KEYED)
    def adjust(self, code: int, amount: int, *, keyed: bool) -> None:
        chosen = self.pick(code)
        expected, _ = self.model.adjust(chosen, amount)
        made = self.attempt(
            lambda dispatcher, key, api_key: Adjustment(
                dispatcher, amount, "a reason", key=key, api_key=api_key
            ),
            chosen.text,
        )
        body = self.ask(made, expected, keyed=keyed)
        assert expected or body["balance"] == 100 - chosen.used

    @rule(code=PICK, user=st.sampled_from(USERS))
    def check(self, code: int, user: str) -> None:
        chosen = self.pick(code)
        expected, _ = self.model.check(chosen, user)
        request = CheckRequest(code=chosen.text, user=user)
        made = self.attempt(lambda dispatcher, _, api_key: Check(dispatcher, request, api_key), chosen.text)
        body = orjson.loads(self.call(made, None).body)
        assert (body["redeemable"], body["refusal"] or "") == (not expected, expected)

    # keys

    @precondition(lambda self: self.kept)
    @rule(which=PICK)
    def repeat(self, which: int) -> None:
        """The same call with the same key: the same answer, and nothing happens."""
        key, again, first = self.kept[which % len(self.kept)]
        answer = again(key)
        assert answer.status == first.status
        assert orjson.loads(answer.body) == as_replayed(orjson.loads(first.body))

    @precondition(lambda self: self.kept)
    @rule(which=PICK, code=PICK)
    def reuse(self, which: int, code: int) -> None:
        """Another call with the same key."""
        request = RedeemRequest(code=self.pick(code).text, user="somebody else", order="another")
        made = self.attempt(
            lambda dispatcher, key, api_key: RedeemAttempt(dispatcher, request, key, api_key),
            self.pick(code).text,
        )
        answer = self.call(made, self.kept[which % len(self.kept)][0])
        assert (answer.status, orjson.loads(answer.body)["code"]) == (422, "idempotency_key_reused")

    # configuration, time, crashes

    @rule(campaign=PICK, state=st.sampled_from(("active", "active", "paused")))
    def change_state(self, campaign: int, state: str) -> None:
        chosen = self.model.campaigns[campaign % 3]
        chosen.state = state
        self.world.run(campaigns.update(self.world.plane, chosen.id, CampaignChange(state=state)))

    @rule(code=PICK, void=st.booleans())
    def void_range(self, code: int, *, void: bool) -> None:
        chosen = self.pick(code)
        chosen.void_by_range = void
        wanted = voids.VoidDeclaration(
            batch=self.batch(chosen), first_serial=chosen.serial, last_serial=chosen.serial, reason="a reason"
        )
        self.world.run(voids.declare(self.world.plane, wanted, void=void, actor="life"))

    @rule(campaign=PICK, window=st.sampled_from(("to_come", "open", "open", "over")))
    def move_window(self, campaign: int, window: str) -> None:
        chosen = self.model.campaigns[campaign % 3]
        chosen.window = window
        edges = CampaignChange(
            starts_at=FUTURE if window == "to_come" else None, ends_at=PAST if window == "over" else None
        )
        self.world.run(campaigns.update(self.world.plane, chosen.id, edges))

    @precondition(lambda self: self.model.holds)
    @rule(hold=PICK)
    def let_a_hold_end(self, hold: int) -> None:
        held = self.model.holds[hold % len(self.model.holds)]
        held.over = True
        _, stream_id = held.id.split("-", 1)
        self.world.run(self.end_hold(held.code.shard, stream_id))

    async def end_hold(self, shard: int, stream_id: str) -> None:
        redis = self.world.redis
        record: Any = await redis.hget(keys.holds(shard), stream_id)
        await redis.hset(keys.holds(shard), stream_id, b"1\n" + record.partition(b"\n")[2])
        await redis.zadd(keys.holds_expiry(shard), {stream_id: 1})

    @rule()
    def sweep(self) -> None:
        for shard in range(self.world.settings.shards):
            self.world.run(expire_holds(self.world.workers[0], shard))
            self.model.sweep(shard)

    @precondition(lambda self: self.model.holds and len(self.model.redemptions) > 1)
    @rule(really=st.sampled_from((False, False, False, True)))
    def crash(self, *, really: bool) -> None:
        if really:
            self.world.crash()

    @precondition(lambda self: self.model.redemptions)
    @rule(really=st.sampled_from((False, False, True)))
    def lose_redis(self, *, really: bool) -> None:
        if not really:
            return
        self.world.lose()
        self.model.traces.clear()
        for hold in self.model.holds:
            hold.over = False  # when it was to end is lost
        self.kept = [kept for kept in self.kept if self.made_an_event(kept[2])]

    def made_an_event(self, answer: Answer) -> bool:
        body: dict[str, Any] = orjson.loads(answer.body)
        return answer.status == 200 and body.get("changed", True)

    # what must be so

    def batch(self, code: Code) -> int:
        for batch in self.world.workers[0].configuration.batches.values():
            if batch.campaign == code.campaign.id:
                return batch.id
        self.world.run(self.world.workers[0].configuration.refresh())
        return self.batch(code)

    def teardown(self) -> None:
        for campaign in self.model.campaigns:
            self.world.run(self.compare(campaign))

    async def compare(self, campaign: Campaign) -> None:
        redis, shards = self.world.redis, range(self.world.settings.shards)
        await self.world.workers[0].configuration.refresh()
        counted = [await redis.hmget(keys.campaign(shard, campaign.id), "uses", "spent") for shard in shards]
        totals = [sum(int(values[at] or 0) for values in counted) for at in (0, 1)]
        assert totals == [campaign.uses, campaign.spent]
        for user, count in campaign.users.items():
            bucket, digest = bucketed(user, keys.USER_BUCKETS)
            field: Any = digest  # redis-py's stub knows text only
            found = [await redis.hget(keys.users(shard, campaign.id, bucket), field) for shard in shards]
            assert sum(int(value or 0) for value in found) == count
        for code in campaign.codes:
            await self.compare_code(code)
        seen = await self.persisted(campaign)
        for shard in shards:
            entries: Any = await redis.xrange(keys.events(shard))
            for _, event in entries:
                by_range = event[b"type"] in {b"voided", b"unvoided"} and not event[b"last4"]
                if event[b"campaign"].decode() == campaign.id and not by_range:
                    amount = int(event[b"amount"] or 0)
                    seen[event[b"type"].decode(), int(event[b"serial"]), amount] += 1
        assert seen == Counter(self.model.events.get(campaign.id, []))

    async def persisted(self, campaign: Campaign) -> Counter[tuple[str, int, int]]:
        async with self.world.plane.database.connection() as connection:
            rows = await connection.fetch(
                "SELECT type, serial, coalesce(amount, 0) FROM ledger WHERE campaign = $1 AND last4 <> ''",
                campaign.id,
            )
        return Counter((type_, serial, amount) for type_, serial, amount in rows)

    async def compare_code(self, code: Code) -> None:
        redis, batch, kind = self.world.redis, self.batch(code), code.campaign.kind
        campaign = self.world.workers[0].configuration.campaigns[code.campaign.id]
        place = keys.locate_code(code.serial, self.world.settings.shards, campaign.pinned_shard)
        bits = redis.bitfield(keys.state(place.shard, batch, place.segment))
        (state,) = await bits.get("u2", f"#{place.offset}").execute()
        held = kind == "single" and bool(code.holds)
        expected = keys.REDEEMED if code.redeemed else keys.HELD if held else keys.FRESH
        assert state == (keys.VOID if code.void else expected)
        if kind == "multi":
            assert int(await redis.hget(keys.uses(place.shard, batch), str(code.serial)) or 0) == code.used
        elif kind == "balance":
            segment, offset = keys.spent_location(place)
            spent = redis.bitfield(keys.spent(place.shard, batch, segment))
            assert await spent.get("i64", f"#{offset}").execute() == [code.used]
        for hold in code.holds.values():
            field = f"{batch}:{code.serial}" + ("" if kind == "single" else f":{hold.order}")
            stream_id: Any = await redis.hget(keys.held(place.shard), field)
            assert str(EventId(place.shard, *map(int, stream_id.decode().split("-")))) == hold.id


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    process = ValkeyProcess(temporary_directory() / "data")
    process.start()
    yield process
    process.stop()


NORMAL: Final = pytest.param(10, marks=pytest.mark.timeout(600))
LONG: Final = pytest.param(
    1000, marks=[pytest.mark.long, pytest.mark.timeout(7200)]
)  # a form, so 2,000 in all


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("examples", [NORMAL, LONG])
def test_codes_live_as_the_model_says(settings: Settings, valkey: ValkeyProcess, examples: int) -> None:
    """Again with the same examples: ``--hypothesis-seed``, or the blob that a failure prints."""
    world = World(replace(settings, redis_url=valkey.url, attempt_deadline_ms=60_000), valkey)
    world.open()
    try:
        run_state_machine_as_test(
            lambda: Machine(world),  # type: ignore[arg-type] # it only calls it
            settings=hypothesis_settings(SETTINGS, max_examples=examples),
        )
    finally:
        world.close()
