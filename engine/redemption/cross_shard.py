"""Combined redemptions whose codes live on several shards: hold all, then confirm all.

What was begun is kept on one shard, where the request's idempotency key belongs. Until it is decided, every
hold ends by itself. From then on every hold is confirmed, whatever has happened to its campaign or
its code meanwhile: by who began it, or, if that worker is gone, by the sweep (``complete_decided``).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import orjson
from redis.exceptions import RedisError

from engine.api.bodies import plain_problem
from engine.api.code_bodies import HoldRequest
from engine.errors import Fault, OutcomeUnknown, Overloaded, StoreUnavailable
from engine.redemption.attempt import READ_AGAIN, Attempt, load_script
from engine.redemption.hold import EXPIRED, OWN_MARK, Confirmation, Hold, parse_record, read_records, release
from engine.store import keys
from engine.store.events import EventId, parse_id
from engine.store.idempotency import bucketed, home_of

if TYPE_CHECKING:
    from engine.redemption.combined import Combined, Part
    from engine.redemption.core import Answer, Core
    from engine.store.call import Call

_log = logging.getLogger(__name__)
HOLD_TTL_S: Final = 60
ABANDONED_MS: Final = 5000  # what was decided so long ago is not under way any more
_POLL_S: Final = 0.02
_TRIES: Final = 5
_OK: Final = 200
_BAD_REQUEST: Final = 400
_CONFLICT: Final = 409
_FINAL: Final = frozenset((_OK, _BAD_REQUEST, _CONFLICT))


class Span(msgspec.Struct, frozen=True):
    """What was decided: everything it takes to confirm it all, and to answer. ``holds`` are their ids."""

    holds: tuple[str, ...]
    actor: str
    key: str
    receipt_name: str
    fingerprint: bytes


class SpanStep(Attempt):
    """One step of a span, on the shard where it is kept. ``outcome`` is the script's first word."""

    __slots__ = ("_payload", "_step", "outcome", "rest")
    script = load_script("cross_shard", "commit_records_at", "step", "transaction_id", "nonce", "payload_at")

    def __init__(
        self, core: Core, span: Span, shard: int, step: tuple[str, str, str], payload: bytes
    ) -> None:
        super().__init__(core, api_key=None, actor=span.actor, key=span.key or None)
        self.receipt_name, self.fingerprint = span.receipt_name, span.fingerprint
        self.claimed = True
        self.is_about_none(shard)
        self._step, self._payload = step, payload
        self.outcome, self.rest = "", b""

    def write_to(self, call: Call) -> None:
        """Append the fields of ``cross_shard.lua``."""
        super().write_to(call)
        call.fields += (call.key(keys.spans(self.place.shard)), *self._step, call.raw(self._payload))

    def answered(self, answer: bytes) -> None:
        """Take the answer as it is."""
        head, _, self.rest = answer.partition(b"\n")
        self.outcome, _, replay = head.decode().partition(" ")
        if self.outcome == "replayed":
            self.rest = replay.encode()
        self.on_done(_OK, b"", 0)

    def failed(self, fault: Fault) -> None:
        """Remember the fault."""
        self.outcome = fault.code
        self.on_done(0, b"", 0)


class _Begun(NamedTuple):
    """A span that is worked on here."""

    core: Core
    span: Span
    shard: int
    span_id: str
    nonce: str

    async def step(self, name: str, payload: bytes = b"") -> SpanStep:
        step = SpanStep(self.core, self.span, self.shard, (name, self.span_id, self.nonce), payload)
        await self.core.answer(step)
        return step


async def redeem_spanning(combined: Combined) -> None:
    """Redeem the codes of a combined redemption, and answer it. ``combined`` has found all of them."""
    try:
        await _redeem(combined)
    except Fault as fault:
        combined.failed(fault)


async def _redeem(combined: Combined) -> None:
    core = combined.core
    if core.registry.memory_short:  # each step keeps something, the first one the claim of the key
        raise Overloaded("Redis is short of memory")
    name = combined.receipt_name
    span = Span((), combined.actor, combined.key or "", name, combined.fingerprint)
    nonce = secrets.token_hex(12)
    shards = core.registry.shards
    home = home_of(name or nonce, shards)
    begun = _Begun(core, span, home, _span_id(name) if name else nonce, nonce)
    while True:
        first = await begun.step("begin")
        if first.outcome != "busy":
            break
        if asyncio.get_running_loop().time() >= combined.deadline:
            raise Overloaded("the same request is under way")
        await asyncio.sleep(_POLL_S)
    if first.outcome == "replayed":
        combined.answer_whole(first.rest, replayed=True)
    elif first.outcome == "idempotency_key_reused":
        combined.refused(first.outcome)
    elif first.outcome == "resume":
        combined.answer_whole(await _complete(core, home, begun.span_id, first.rest), replayed=True)
    elif first.outcome == "begun":
        if first.rest:
            await _release_abandoned(combined, first.rest.decode())
        await _hold_and_decide(combined, begun)
    else:
        raise StoreUnavailable(first.outcome)


async def _hold_and_decide(combined: Combined, begun: _Begun) -> None:
    """Hold all codes. If that can be done, it is decided, and then they are confirmed."""
    core = combined.core
    holds = [_hold(combined, part, _mark(begun.nonce, at)) for at, part in enumerate(combined.parts)]
    answers = _with_repeats(combined, await asyncio.gather(*(core.answer(hold) for hold in holds)))
    if any(answer.status != _OK for answer in answers):
        await _release(core, combined, answers)
        await _refuse(combined, begun, answers)
        return
    ids = tuple(orjson.loads(answer.body)["id"] for answer in answers)
    span = msgspec.structs.replace(begun.span, holds=ids)
    decision = await begun.step("decide", msgspec.json.encode(span))
    if decision.outcome == "lost":
        await _release(core, combined, answers)
        raise Overloaded("it took too long to hold all codes")
    if decision.outcome != "decided":
        raise OutcomeUnknown(decision.outcome)
    record = b"\n".join((b"decided", begun.nonce.encode(), b"0", msgspec.json.encode(span)))
    combined.answer_whole(await _complete(core, begun.shard, begun.span_id, record), replayed=False)


def _hold(combined: Combined, part: Part, mark: str) -> Hold:
    """Each part has a hold of its own, so that a code named twice is used twice, or refused."""
    request = combined.request
    hold = Hold(
        combined.core,
        HoldRequest(
            code="",
            user=request.user,
            order=request.order + mark,
            amount=part.request.amount,
            ttl_s=HOLD_TTL_S,
        ),
        None,
        combined.api_key,
    )
    hold.is_the_code_of(part)
    return hold


def _with_repeats(combined: Combined, answers: list[Answer]) -> list[Answer]:
    """A code that is used whole is held by the part that names it first: another is refused."""
    firsts: dict[tuple[int, int], Answer] = {}
    told = []
    for part, answer in zip(combined.parts, answers, strict=True):
        first = firsts.setdefault((part.batch, part.serial), answer)
        if first is answer or first.status != _OK or part.campaign.kind != "single":
            told.append(answer)
        else:
            status, body = plain_problem("already_redeemed")
            told.append(answer._replace(status=status, body=body, retry_after_s=0))
    return told


async def _release(core: Core, combined: Combined, answers: list[Answer]) -> None:
    """Give back what was held; what that fails for ends by itself."""
    ids = [orjson.loads(answer.body)["id"] for answer in answers if answer.status == _OK]
    await asyncio.gather(
        *(release(core, hold, key=None, api_key=combined.api_key, of_a_span=True) for hold in ids),
        return_exceptions=True,
    )


async def _release_abandoned(combined: Combined, nonce: str) -> None:
    """Give back what an earlier try of the same request had held when its worker died.

    It would be in this one's way.
    """
    core, found = combined.core, []
    for at, part in enumerate(combined.parts):
        shard = part.place.shard
        order = combined.request.order + _mark(nonce, at)
        field = f"{part.batch}:{part.serial}" + ("" if part.campaign.kind == "single" else f":{order}")
        try:
            stream_id: Any = await core.redis.hget(keys.held(shard), field)
        except (OSError, RedisError) as error:
            raise StoreUnavailable(str(error)) from error
        if stream_id is None:
            continue
        (record,) = await read_records(core, shard, [stream_id.decode()])
        if record is not None and record != EXPIRED and parse_record(record.decode()).order == order:
            found.append(f"{shard}-{stream_id.decode()}")
    await asyncio.gather(
        *(release(core, hold, key=None, api_key=combined.api_key, of_a_span=True) for hold in found)
    )


def _mark(nonce: str, at: int) -> str:
    """What makes the hold of the code at that position a span's own."""
    return f"{OWN_MARK}{nonce} {at}"


async def _refuse(combined: Combined, begun: _Begun, answers: list[Answer]) -> None:
    """Answer with why; where a retry may fare better, no receipt is kept."""
    refusals: dict[int, str] = {}
    wait_s = 0
    for at, answer in enumerate(answers):
        if answer.status != _OK:
            refusals[at] = orjson.loads(answer.body)["code"]
            wait_s = max(wait_s, answer.retry_after_s)
    final = all(answer.status in _FINAL and not answer.retry_after_s for answer in answers)
    body = msgspec.json.encode({"refusals": {str(at): code for at, code in refusals.items()}})
    await begun.step("end", body if final else b"")
    if any(answer.status not in _FINAL and answer.retry_after_s for answer in answers):
        raise StoreUnavailable("a code could not be held")
    combined.refuse(refusals, wait_s)


async def _complete(core: Core, shard: int, span_id: str, record: bytes) -> bytes:
    """Confirm everything that was decided, as often as it takes; the bodies of all redemptions.

    Raises:
        OutcomeUnknown: not all of it could be done now; the sweep will.
    """
    _, nonce, _, payload = record.split(b"\n", 3)
    span = msgspec.json.decode(payload, type=Span)
    bodies = await asyncio.gather(
        *(_confirm(core, span, f"{nonce.decode()} {at}", hold) for at, hold in enumerate(span.holds))
    )
    whole = b"[" + b",".join(bodies) + b"]"
    begun = _Begun(core, span, shard, span_id, nonce.decode())
    await begun.step("end", whole)
    return whole


async def _confirm(core: Core, span: Span, receipt_name: str, hold: str) -> bytes:
    """The body of one redemption, whether it is made now or was made before."""
    hold_id = parse_id(hold)
    if hold_id is None:
        raise OutcomeUnknown("a hold without an id")
    for _ in range(_TRIES):
        (record,) = await read_records(core, hold_id.shard, [hold_id.stream_id])
        confirmation = _Decided(core, hold_id, record, span, receipt_name)
        answer = await core.answer(confirmation)
        if answer.status == _OK:
            document: dict[str, Any] = orjson.loads(answer.body)
            return orjson.dumps(document | {"replayed": False})
        if answer.status != READ_AGAIN:
            break
    raise OutcomeUnknown("a decided hold could not be confirmed")


class _Decided(Confirmation):
    """A confirmation as one of several, which nothing stops any more."""

    __slots__ = ()
    decided = True
    heeds_voids = False

    def __init__(
        self, core: Core, hold_id: EventId, record: bytes | None, span: Span, receipt_name: str
    ) -> None:
        super().__init__(core, hold_id, record, api_key=None, actor=span.actor, key=span.key or None)
        self.receipt_name = receipt_name
        self.claimed = True
        self.fingerprint = b"decided\0"


async def complete_decided(core: Core, shard: int) -> frozenset[str]:
    """Complete what was decided on a shard and left: its worker is gone.

    Answers the holds of what could not be completed: these must not expire. One that cannot be is in the
    way of nothing else.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    needed: set[str] = set()
    try:
        records: Any = await core.redis.hgetall(keys.spans(shard))
        seconds, microseconds = await core.redis.time()
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    now_ms = seconds * 1000 + microseconds // 1000
    for span_id, record in records.items():
        state, nonce, since_ms, _ = record.split(b"\n", 3)
        if state == b"decided" and now_ms - int(since_ms) > ABANDONED_MS:
            try:
                await _complete(core, shard, span_id.decode(), record)
            except Fault as fault:
                _log.error(
                    "a combined redemption that was decided cannot be completed",
                    extra={"shard": shard, "span": span_id.decode(), "reason": str(fault)},
                )
                needed.update(msgspec.json.decode(record.split(b"\n", 3)[3], type=Span).holds)
        elif state == b"begun" and now_ms - int(since_ms) > HOLD_TTL_S * 1000:
            nothing = Span((), "", "", "", b"")
            await _Begun(core, nothing, shard, span_id.decode(), nonce.decode()).step("end")
        elif state == b"decided":  # somebody is at it
            needed.update(msgspec.json.decode(record.split(b"\n", 3)[3], type=Span).holds)
    return frozenset(needed)


def _span_id(receipt_name: str) -> str:
    return bucketed(receipt_name, 1)[1].hex()
