"""Combined redemptions of codes on several shards: prepare all codes, decide, then redeem them all.

The commit record of the transaction is on one shard, the home shard of the request's idempotency key. A code
that is prepared is taken, but there is no event of it yet: only the decision makes it a redemption. After the
decision every code is redeemed, even if its campaign has changed since. The worker that began the transaction
does all of it. If that worker is gone, the next hold expiry redeems what was decided, and gives back what was
not (``settle_abandoned``).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from redis.exceptions import RedisError

from engine.api.outcomes import Redeemed, RedeemedTogether, Refused, RefusedTogether
from engine.errors import RETRYABLE_FAULTS, Fault, OutcomeUnknown, Overloaded, StoreUnavailable
from engine.redemption.cross_shard_step import CommitRecord, CrossShardStep, StepResult
from engine.redemption.prepared import Commit, Part, Prepare, abort, abort_codes
from engine.redemption.redeem import redeemed
from engine.store import keys
from engine.store.idempotency import bucketed, home_shard
from engine.store.prepared_codes import TransactionId, decode_prepared

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.api.bodies import CombinedRequest
    from engine.api.outcomes import Outcome
    from engine.redemption.core import Core
    from engine.redemption.redeem import Redemption
    from engine.store.configuration import CachedKey
    from engine.store.prepared_codes import PreparedCodes

_log = logging.getLogger(__name__)
ABANDONED_MS: Final = 5000  # a decision that is this old and not completed has lost its worker
_POLL_S: Final = 0.02
# A retry may succeed after these refusals, so they are not stored under the request's key.
_NOT_FINAL: Final = RETRYABLE_FAULTS | {"internal_error", "unauthenticated"}


class CombinedOrder(NamedTuple):
    """A combined request whose codes were found.

    Attributes:
        parts: one attempt for each code, bound to the code.
        idempotency_name, fingerprint: of the request's idempotency record; empty without a key.
        nonce: the mark of a signed request's nonce; empty once the record has it.
        deadline: by the event loop's clock.
    """

    request: CombinedRequest
    parts: list[Redemption]
    key: str | None
    api_key: CachedKey
    idempotency_name: str
    fingerprint: bytes
    nonce: bytes
    deadline: float


class _Refusals(msgspec.Struct):
    """The stored answer to a refused request: the refusal of each refused code, by its position."""

    refusals: dict[int, str]


class _Transaction(NamedTuple):
    """A transaction that this worker runs. ``nonce`` distinguishes this try from others."""

    core: Core
    record: CommitRecord
    place: TransactionId
    nonce: str

    async def step(
        self,
        name: str,
        payload: bytes = b"",
        *,
        api_key: CachedKey | None = None,
        nonce: bytes = b"",
        prepared_version: int = 0,
    ) -> StepResult:
        dispatcher = self.core.dispatcher
        taken: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        step = CrossShardStep(
            dispatcher,
            self.record,
            self.place.home,
            (name, self.place.id, self.nonce),
            payload,
            taken=taken,
            api_key=api_key,
            prepared_version=prepared_version,
        )
        step.deadline = dispatcher.deadline()
        step.sign(nonce)
        try:
            dispatcher.send(step)
        except Fault as fault:
            step.failed(fault)
        return await taken


async def redeem_across_shards(core: Core, order: CombinedOrder) -> Outcome:
    """Redeem all codes of an order, or none.

    The decision is the moment that counts. If a key was revoked, a campaign paused or anything else of the
    configuration changed between preparing and deciding, the codes are given back and prepared again.

    Raises:
        Overloaded, StoreUnavailable: certainly not done.
        OutcomeUnknown: perhaps done. If it was decided, the next hold expiry completes it.
    """
    if core.configuration.memory_short:  # the first step stores something already: it reserves the key
        raise Overloaded("Redis is short of memory")
    while True:
        outcome = await _redeem_under_one_configuration(core, order)
        if outcome is not None:
            return outcome
        order = order._replace(nonce=b"")
        if asyncio.get_running_loop().time() >= order.deadline:
            raise Overloaded("the configuration keeps changing")


async def _redeem_under_one_configuration(core: Core, order: CombinedOrder) -> Outcome | None:
    """Try it once. None: the configuration has changed meanwhile, and nothing was done.

    Raises:
        Overloaded, StoreUnavailable, OutcomeUnknown: as ``redeem_across_shards``.
    """
    name = order.idempotency_name
    request = order.request
    record = CommitRecord(
        (), request.user, request.order, order.api_key.id, order.key or "", name, order.fingerprint
    )
    nonce = secrets.token_hex(12)
    home = home_shard(name or nonce, core.configuration.shards)
    place = TransactionId(home, _transaction_id(name) if name else nonce)
    transaction = _Transaction(core, record, place, nonce)
    first = await _begin(transaction, order)
    if first.word == "replayed":
        return _stored(order, first.rest, replayed=True)
    if first.word in {"idempotency_key_reused", "request_replayed", "unauthenticated"}:
        return Refused(first.word)
    if first.word == "resume":
        return RedeemedTogether(
            request.order, _replayed(await _complete(core, place, first.rest)), replayed=True
        )
    if first.word != "begun":
        raise StoreUnavailable(first.word)
    if first.rest:
        await _abort(core, {part.location.shard for part in order.parts}, first.rest.decode())
    return await _prepare_and_decide(order, transaction)


async def _begin(transaction: _Transaction, order: CombinedOrder) -> StepResult:
    while True:
        first = await transaction.step("begin", api_key=order.api_key, nonce=order.nonce)
        if first.word != "busy":
            return first
        if asyncio.get_running_loop().time() >= order.deadline:
            raise Overloaded("the same request is still running")
        await asyncio.sleep(_POLL_S)


async def _prepare_and_decide(order: CombinedOrder, transaction: _Transaction) -> Outcome | None:
    """Prepare all codes. If every shard has done so, decide and redeem them; else give back and refuse.

    None: the configuration has changed in between, and all codes were given back.
    """
    core, nonce = transaction.core, transaction.nonce
    by_shard: defaultdict[int, list[int]] = defaultdict(list)  # positions in the order
    for at, part in enumerate(order.parts):
        by_shard[part.location.shard].append(at)
        part.idempotency_name = ""  # the key of the whole request is on the commit record's shard
    calls = [
        Prepare(core.dispatcher, [order.parts[at] for at in positions], nonce, transaction.place)
        for positions in by_shard.values()
    ]
    results = await asyncio.gather(*(call.send() for call in calls))
    if any(result.word != "prepared" for result in results):
        await _abort(core, by_shard, nonce)
        return await _refuse(transaction, list(zip(by_shard.values(), results, strict=True)))
    codes = tuple((part.campaign.id, part.batch, part.serial, part.last4) for part in order.parts)
    record = msgspec.json.encode(msgspec.structs.replace(transaction.record, codes=codes))
    decision = await transaction.step("decide", record, prepared_version=min(call.version for call in calls))
    if decision.word == "lost":
        await _abort(core, by_shard, nonce)
        raise Overloaded("it took too long to prepare all codes")
    if decision.word == "changed":
        await _abort(core, by_shard, nonce)
        await transaction.step("end")
        return None
    if decision.word != "decided":
        raise OutcomeUnknown(decision.word)
    decided = b"\n".join((b"decided", nonce.encode(), b"0", record))
    return RedeemedTogether(order.request.order, await _complete(core, transaction.place, decided))


async def _abort(core: Core, shards: Iterable[int], nonce: str) -> None:
    """Give back what a worker has prepared, on all shards. What fails here, the next hold expiry does."""
    await asyncio.gather(*(abort(core, shard, nonce) for shard in shards), return_exceptions=True)


async def _refuse(
    transaction: _Transaction, results: Sequence[tuple[Sequence[int], StepResult]]
) -> RefusedTogether | Refused:
    """End the transaction with the refusals. If they are final, they are stored before they are answered.

    ``results``: of each shard, the positions of its codes in the order, and what it answered.

    Raises:
        StoreUnavailable: a shard could not be asked, or the refusals could not be stored.
        Overloaded: a shard is overloaded, or another worker has taken the transaction over.
    """
    refusals: dict[int, str] = {}
    waits = [0]
    for positions, result in results:
        lines = (
            result.rest.decode().split("\n") if result.word == "refused" else [result.word] * len(positions)
        )
        for at, line in zip(positions, lines, strict=True):
            word, _, wait_s = line.partition(" ")
            if word != "prepared":
                refusals[at] = word
                waits.append(int(wait_s or 0))
    refusals = dict(sorted(refusals.items()))
    is_final = refusals.keys() and not max(waits) and _NOT_FINAL.isdisjoint(refusals.values())
    ended = await transaction.step("end", msgspec.json.encode(_Refusals(refusals)) if is_final else b"")
    if ended.word == "lost":
        raise Overloaded("another worker has taken over the same request")
    if ended.word != "ended":
        raise StoreUnavailable("the refusal could not be stored")
    if "unauthenticated" in refusals.values():
        return Refused("unauthenticated")
    if not (faults := RETRYABLE_FAULTS.intersection(refusals.values())).issubset({"overloaded"}):
        raise StoreUnavailable("a code could not be prepared")
    if faults:
        raise Overloaded("a shard is overloaded")
    return RefusedTogether(refusals, max(waits))


def _stored(order: CombinedOrder, answer: bytes, *, replayed: bool) -> RedeemedTogether | RefusedTogether:
    """Decode the answer that was stored under the request's key."""
    stored = msgspec.json.decode(answer, type=list[Redeemed] | _Refusals)
    if isinstance(stored, _Refusals):
        return RefusedTogether(stored.refusals, replayed=replayed)
    return RedeemedTogether(order.request.order, _replayed(stored), replayed)


def _replayed(redeemed: list[Redeemed]) -> list[Redeemed]:
    return [msgspec.structs.replace(one, replayed=True) for one in redeemed]


async def _complete(core: Core, place: TransactionId, decided: bytes) -> list[Redeemed]:
    """Redeem all codes of a decided transaction. Repeating it is harmless.

    Raises:
        OutcomeUnknown: not all codes could be redeemed now; the next hold expiry redeems the rest.
    """
    _, nonce, _, payload = decided.split(b"\n", 3)
    record = _decode_record(payload)
    await core.configuration.know(batch for _, batch, *_ in record.codes)
    by_shard: defaultdict[int, list[tuple[int, Part]]] = defaultdict(list)
    for at, code in enumerate(record.codes):
        part = Part(
            core.dispatcher, api_key=None, user=record.user, order=record.order, key=record.key or None,
            actor=record.actor,
        )  # fmt: skip
        part.idempotency_name = ""
        part.bind_record(*code)
        by_shard[part.location.shard].append((at, part))
    shards = list(by_shard.values())
    calls = [Commit(core.dispatcher, [part for _, part in parts], nonce.decode()) for parts in shards]
    results = await asyncio.gather(*(call.send() for call in calls))
    found: dict[int, Redeemed] = {}
    for parts, result in zip(shards, results, strict=True):
        if result.word != "redeemed":
            raise OutcomeUnknown("decided codes could not be redeemed")
        for (at, part), line in zip(parts, result.rest.decode().split("\n"), strict=True):
            found[at] = redeemed(part, line.split(" ")[1:], replayed=False)
    answer = [found[at] for at in sorted(found)]
    await _Transaction(core, record, place, nonce.decode()).step("end", msgspec.json.encode(answer))
    return answer


def _decode_record(payload: bytes) -> CommitRecord:
    try:
        return msgspec.json.decode(payload, type=CommitRecord)
    except msgspec.ValidationError as error:  # of another version of the engine, whose workers complete it
        raise OutcomeUnknown(f"a commit record cannot be read: {error}") from error


async def settle_abandoned(core: Core) -> None:
    """Settle the transactions whose worker is gone: complete what was decided, give back what was not.

    If one of them cannot be settled, the others still are. A commit record goes last: while it is there, a
    retry of the request itself gives back what is in its way.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    prepared, records, now_ms = await _read_transactions(core)
    undecided: dict[TransactionId, str] = {}  # nonces
    for place, record in records.items():
        state, nonce, since_ms, _ = record.split(b"\n", 3)
        if state == b"decided" and now_ms - int(since_ms) > ABANDONED_MS:
            try:
                await _complete(core, place, record)
            except Fault as fault:
                _log.error(
                    "cannot complete a combined redemption that was decided",
                    extra={"shard": place.home, "transaction": place.id, "reason": str(fault)},
                )
        elif state == b"begun" and now_ms >= int(since_ms):  # its worker can no longer decide it
            undecided[place] = nonce.decode()
    for nonce, codes in prepared:
        place = TransactionId.parse(codes.transaction)
        owner = records.get(place, b"\n").split(b"\n", 2)[1]
        if place in undecided or owner != nonce:
            await abort_codes(core, nonce.decode(), codes.codes)
    nothing = CommitRecord((), "", "", "", "", "", b"")
    for place, owner_nonce in undecided.items():
        await _Transaction(core, nothing, place, owner_nonce).step("end")


async def _read_transactions(
    core: Core,
) -> tuple[list[tuple[bytes, PreparedCodes]], dict[TransactionId, bytes], int]:
    """What is prepared on all shards; then all commit records; then the time, in ms since the epoch.

    In this order: what is prepared without a commit record belongs to a transaction that has ended.
    """
    shards = range(core.configuration.shards)
    try:
        pipeline = core.redis.pipeline(transaction=False)
        for shard in shards:
            pipeline.hgetall(keys.prepared(shard))
        for shard in shards:
            pipeline.hgetall(keys.commit_records(shard))
        pipeline.time()
        replies: list[Any] = await pipeline.execute()
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    seconds, microseconds = replies[-1]
    prepared = [
        (nonce, decode_prepared(record))
        for found in replies[: len(shards)]
        for nonce, record in found.items()
    ]
    records = {
        TransactionId(shard, transaction_id.decode()): record
        for shard, found in zip(shards, replies[len(shards) :], strict=False)
        for transaction_id, record in found.items()
    }
    return prepared, records, seconds * 1000 + microseconds // 1000


def _transaction_id(idempotency_name: str) -> str:
    return bucketed(idempotency_name, 1)[1].hex()
