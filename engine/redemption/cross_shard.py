"""Combined redemptions of codes on several shards: hold all codes, decide, then confirm all holds.

The commit record of the transaction is on one shard, the home shard of the request's idempotency key. Before
the decision, every hold ends by itself. After the decision, every hold is confirmed, even if its campaign or
code has changed since. The worker that began the transaction confirms the holds. If that worker is gone, the
next hold expiry does it (``complete_decided``).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from redis.exceptions import RedisError

from engine.api.bodies import HoldRequest
from engine.api.outcomes import Held, Redeemed, RedeemedTogether, Refused, RefusedTogether, Retry
from engine.errors import RETRYABLE_FAULTS, Fault, OutcomeUnknown, Overloaded, StoreUnavailable
from engine.redemption.cross_shard_step import CommitRecord, CrossShardStep, StepResult
from engine.redemption.hold import EXPIRED, OWN_MARK, Confirmation, Hold, parse_record
from engine.redemption.hold_calls import read_records, release
from engine.store import keys
from engine.store.events import EventId, parse_id
from engine.store.idempotency import bucketed, home_shard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.api.bodies import CombinedRequest
    from engine.api.outcomes import Outcome
    from engine.redemption.core import Core
    from engine.redemption.redeem import Redemption
    from engine.store.configuration import CachedKey
    from engine.store.dispatcher import Dispatcher

_log = logging.getLogger(__name__)
HOLD_TTL_S: Final = 60
ABANDONED_MS: Final = 5000  # a decision that is this old and not completed has lost its worker
_POLL_S: Final = 0.02
_TRIES: Final = 5
# A retry may succeed after these refusals, so they are not stored under the request's key.
_NOT_FINAL: Final = RETRYABLE_FAULTS | {"internal_error", "unauthenticated"}


class CombinedOrder(NamedTuple):
    """A combined request whose codes were found.

    Attributes:
        parts: one attempt for each code, bound to the code.
        idempotency_name, fingerprint: of the request's idempotency record; empty without a key.
        deadline: by the event loop's clock.
    """

    request: CombinedRequest
    parts: list[Redemption]
    key: str | None
    api_key: CachedKey
    idempotency_name: str
    fingerprint: bytes
    deadline: float


class _Refusals(msgspec.Struct):
    """The stored answer to a refused request: the refusal of each refused code, by its position."""

    refusals: dict[int, str]


class _Transaction(NamedTuple):
    """A transaction that this worker runs. ``nonce`` distinguishes this try from others."""

    core: Core
    record: CommitRecord
    shard: int
    id: str
    nonce: str

    async def step(self, name: str, payload: bytes = b"") -> StepResult:
        dispatcher = self.core.dispatcher
        taken: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        step = CrossShardStep(
            dispatcher, self.record, self.shard, (name, self.id, self.nonce), payload, taken=taken
        )
        step.deadline = dispatcher.deadline()
        try:
            dispatcher.send(step)
        except Fault as fault:
            step.failed(fault)
        return await taken


async def redeem_across_shards(core: Core, order: CombinedOrder) -> Outcome:
    """Redeem all codes of an order, or none.

    Raises:
        Overloaded, StoreUnavailable: certainly not done.
        OutcomeUnknown: perhaps done. If it was decided, the next hold expiry completes it.
    """
    if core.configuration.memory_short:  # the first step stores something already: it reserves the key
        raise Overloaded("Redis is short of memory")
    name = order.idempotency_name
    record = CommitRecord((), order.api_key.id, order.key or "", name, order.fingerprint)
    nonce = secrets.token_hex(12)
    shard = home_shard(name or nonce, core.configuration.shards)
    transaction = _Transaction(core, record, shard, _transaction_id(name) if name else nonce, nonce)
    first = await _begin(transaction, order.deadline)
    if first.word == "replayed":
        return _stored(order, first.rest, replayed=True)
    if first.word == "idempotency_key_reused":
        return Refused(first.word)
    if first.word == "resume":
        redeemed = await _complete(core, shard, transaction.id, first.rest)
        return RedeemedTogether(order.request.order, _replayed(redeemed), replayed=True)
    if first.word != "begun":
        raise StoreUnavailable(first.word)
    if first.rest:
        await _release_abandoned(core, order, first.rest.decode())
    return await _hold_and_decide(order, transaction)


async def _begin(transaction: _Transaction, deadline: float) -> StepResult:
    while True:
        first = await transaction.step("begin")
        if first.word != "busy":
            return first
        if asyncio.get_running_loop().time() >= deadline:
            raise Overloaded("the same request is still running")
        await asyncio.sleep(_POLL_S)


async def _hold_and_decide(order: CombinedOrder, transaction: _Transaction) -> Outcome:
    """Hold all codes. If every hold succeeds, decide and confirm them; else release them and refuse."""
    core, nonce = transaction.core, transaction.nonce
    holds = [_hold(core.dispatcher, order, part, _mark(nonce, at)) for at, part in enumerate(order.parts)]
    outcomes = await asyncio.gather(*(core.answer_bound(hold) for hold in holds))
    outcomes = _refuse_repeats(order, outcomes)
    ids = tuple(outcome.id for outcome in outcomes if isinstance(outcome, Held))
    if len(ids) != len(outcomes):
        await _release(core, order, ids)
        return await _refuse(transaction, outcomes)
    record = msgspec.json.encode(msgspec.structs.replace(transaction.record, holds=ids))
    decision = await transaction.step("decide", record)
    if decision.word == "lost":
        await _release(core, order, ids)
        raise Overloaded("it took too long to hold all codes")
    if decision.word != "decided":
        raise OutcomeUnknown(decision.word)
    decided = b"\n".join((b"decided", nonce.encode(), b"0", record))
    redeemed = await _complete(core, transaction.shard, transaction.id, decided)
    return RedeemedTogether(order.request.order, redeemed)


def _hold(dispatcher: Dispatcher, order: CombinedOrder, part: Redemption, mark: str) -> Hold:
    """The hold of one part. Each part has its own, so a code named twice is used twice, or refused."""
    request = HoldRequest(
        code="",
        user=order.request.user,
        order=order.request.order + mark,
        amount=part.request.amount,
        ttl_s=HOLD_TTL_S,
    )
    hold = Hold(dispatcher, request, None, order.api_key)
    hold.copy_code(part)
    return hold


def _refuse_repeats(order: CombinedOrder, outcomes: list[Outcome]) -> list[Outcome]:
    """Refuse a ``single`` code that an earlier part of the request holds already."""
    firsts: dict[tuple[int, int], Outcome] = {}
    checked: list[Outcome] = []
    for part, outcome in zip(order.parts, outcomes, strict=True):
        first = firsts.setdefault((part.batch, part.serial), outcome)
        repeated = first is not outcome and isinstance(first, Held) and part.campaign.kind == "single"
        checked.append(Refused("already_redeemed") if repeated else outcome)
    return checked


async def _release(core: Core, order: CombinedOrder, holds: Sequence[str]) -> None:
    """Release holds. If a release fails, the hold ends by itself later."""
    await asyncio.gather(
        *(release(core, hold, key=None, api_key=order.api_key, internal=True) for hold in holds),
        return_exceptions=True,
    )


async def _release_abandoned(core: Core, order: CombinedOrder, nonce: str) -> None:
    """Release the holds of an earlier try of the same request whose worker died.

    These holds would block this try.
    """
    holds = []
    for at, part in enumerate(order.parts):
        shard = part.location.shard
        name = order.request.order + _mark(nonce, at)
        field = f"{part.batch}:{part.serial}" + ("" if part.campaign.kind == "single" else f":{name}")
        try:
            stream_id: Any = await core.redis.hget(keys.held(shard), field)
        except (OSError, RedisError) as error:
            raise StoreUnavailable(str(error)) from error
        if stream_id is None:
            continue
        (record,) = await read_records(core, shard, [stream_id.decode()])
        if record is not None and record != EXPIRED and parse_record(record.decode()).order == name:
            holds.append(f"{shard}-{stream_id.decode()}")
    await asyncio.gather(
        *(release(core, hold, key=None, api_key=order.api_key, internal=True) for hold in holds)
    )


def _mark(nonce: str, at: int) -> str:
    """The text after the order that makes a hold internal: the hold of the code at this position."""
    return f"{OWN_MARK}{nonce} {at}"


async def _refuse(transaction: _Transaction, outcomes: list[Outcome]) -> RefusedTogether:
    """End the transaction with the refusals, and store them under the request's key if they are final."""
    refused = {at: outcome for at, outcome in enumerate(outcomes) if isinstance(outcome, Refused)}
    refusals = {at: one.code for at, one in refused.items()}
    is_final = all(one.code not in _NOT_FINAL and not one.retry_after_s for one in refused.values())
    await transaction.step("end", msgspec.json.encode(_Refusals(refusals)) if is_final else b"")
    if any(code in RETRYABLE_FAULTS for code in refusals.values()):
        raise StoreUnavailable("a code could not be held")
    return RefusedTogether(refusals, max(one.retry_after_s for one in refused.values()))


def _stored(order: CombinedOrder, answer: bytes, *, replayed: bool) -> RedeemedTogether | RefusedTogether:
    """Decode the answer that was stored under the request's key."""
    stored = msgspec.json.decode(answer, type=list[Redeemed] | _Refusals)
    if isinstance(stored, _Refusals):
        return RefusedTogether(stored.refusals, replayed=replayed)
    return RedeemedTogether(order.request.order, _replayed(stored), replayed)


def _replayed(redeemed: list[Redeemed]) -> list[Redeemed]:
    return [msgspec.structs.replace(one, replayed=True) for one in redeemed]


async def _complete(core: Core, shard: int, transaction_id: str, decided: bytes) -> list[Redeemed]:
    """Confirm all holds of a decided transaction. Repeating it is harmless.

    Raises:
        OutcomeUnknown: not all holds could be confirmed now; the next hold expiry confirms the rest.
    """
    _, nonce, _, payload = decided.split(b"\n", 3)
    record = msgspec.json.decode(payload, type=CommitRecord)
    redeemed = await asyncio.gather(
        *(_confirm(core, record, f"{nonce.decode()} {at}", hold) for at, hold in enumerate(record.holds))
    )
    transaction = _Transaction(core, record, shard, transaction_id, nonce.decode())
    await transaction.step("end", msgspec.json.encode(redeemed))
    return redeemed


async def _confirm(core: Core, record: CommitRecord, idempotency_name: str, hold: str) -> Redeemed:
    """Confirm one hold, and return its redemption. If it was confirmed before, return that redemption."""
    hold_id = parse_id(hold)
    if hold_id is None:
        raise OutcomeUnknown("a commit record names a hold with an invalid id")
    for _ in range(_TRIES):
        (hold_record,) = await read_records(core, hold_id.shard, [hold_id.stream_id])
        confirmation = _Decided(core.dispatcher, hold_id, hold_record, record, idempotency_name)
        outcome = await core.answer_bound(confirmation)
        if isinstance(outcome, Redeemed):
            return msgspec.structs.replace(outcome, replayed=False)
        if outcome is not Retry.STALE_HOLD:
            break
    raise OutcomeUnknown("a decided hold could not be confirmed")


class _Decided(Confirmation):
    """The confirmation of one hold of a decided transaction: neither campaign nor code can refuse it."""

    __slots__ = ()
    decided = True
    heeds_voids = False

    def __init__(
        self,
        dispatcher: Dispatcher,
        hold_id: EventId,
        hold_record: bytes | None,
        record: CommitRecord,
        idempotency_name: str,
    ) -> None:
        super().__init__(
            dispatcher, hold_id, hold_record, api_key=None, actor=record.actor, key=record.key or None
        )
        self.idempotency_name = idempotency_name
        self.key_reserved = True
        self.fingerprint = b"decided\0"


async def complete_decided(core: Core, shard: int) -> frozenset[str]:
    """Complete the decided transactions of a shard whose worker is gone.

    Returns the holds of transactions that are not complete yet: these must not expire. If one transaction
    cannot be completed, the others still are.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    needed: set[str] = set()
    try:
        records: Any = await core.redis.hgetall(keys.commit_records(shard))
        seconds, microseconds = await core.redis.time()
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    now_ms = seconds * 1000 + microseconds // 1000
    for transaction_id, record in records.items():
        state, nonce, since_ms, payload = record.split(b"\n", 3)
        if state == b"decided" and now_ms - int(since_ms) > ABANDONED_MS:
            try:
                await _complete(core, shard, transaction_id.decode(), record)
            except Fault as fault:
                _log.error(
                    "cannot complete a combined redemption that was decided",
                    extra={"shard": shard, "transaction": transaction_id.decode(), "reason": str(fault)},
                )
                needed.update(msgspec.json.decode(payload, type=CommitRecord).holds)
        elif state == b"begun" and now_ms - int(since_ms) > HOLD_TTL_S * 1000:
            nothing = CommitRecord((), "", "", "", b"")
            await _Transaction(core, nothing, shard, transaction_id.decode(), nonce.decode()).step("end")
        elif state == b"decided":  # a worker is completing it
            needed.update(msgspec.json.decode(payload, type=CommitRecord).holds)
    return frozenset(needed)


def _transaction_id(idempotency_name: str) -> str:
    return bucketed(idempotency_name, 1)[1].hex()
