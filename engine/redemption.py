"""The core: an attempt comes in, and its answer goes to a callback.

``submit`` normalises the code, decodes all codes of one turn of the event loop together,
refuses what was never issued, and hands the rest to the batcher of its shard. It makes no
task and no future; ``redeem`` is a thin awaitable on top for ordinary handlers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import unicodedata
from typing import TYPE_CHECKING, Final

from engine import keys
from engine.batcher import Batcher
from engine.decoder import Decoder
from engine.errors import ContractViolation, Fault, StoreUnavailable
from engine.formats import FORMATS, PREFIX_CHARACTERS_MAX, mask, normalise, split
from engine.messages import fingerprint, plain_problem, problem, redeemed
from engine.mint_keys import MintKeyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.decoder import Issued, Reading
    from engine.messages import RedeemRequest
    from engine.registry import ApiKey, Registry
    from engine.settings import Settings
    from engine.telemetry import Telemetry

_log = logging.getLogger(__name__)
_SHORTEST_CODE: Final = min(fmt.length for fmt in FORMATS.values())
_LONGEST_TEXT: Final = PREFIX_CHARACTERS_MAX + max(fmt.length for fmt in FORMATS.values())
_NO_SYMBOL: Final = re.compile("[^0-9A-Za-z]+")


class Attempt:
    """One attempt on its way from the request to the answer."""

    __slots__ = (
        "_core", "api_key", "batch", "campaign", "deadline", "fingerprint", "key", "last4", "masked_code",
        "normalised", "on_done", "place", "readings", "request", "serial", "version",
    )  # fmt: skip

    def __init__(
        self,
        core: Redemptions,
        *,
        request: RedeemRequest,
        key: str | None,
        api_key: ApiKey,
        normalised: bytes,
        readings: list[Reading],
        deadline: float,
        on_done: Callable[[int, bytes], None],
    ) -> None:
        self._core = core
        self.request = request
        self.key = key
        self.api_key = api_key
        self.normalised = normalised
        self.readings = readings
        self.version = core.registry.version  # of the configuration that it is decoded with at first
        self.deadline = deadline
        self.on_done = on_done

    def belongs_to(self, code: Issued) -> None:
        """Take the identity that the code decoded to."""
        self.batch, self.serial = code.batch.id, code.serial
        self.campaign = self._core.registry.campaigns[code.batch.campaign]
        self.last4 = code.symbols[-4:].decode()
        self.masked_code = mask(code.format, self.last4)
        self.place = keys.place(self.serial, self._core.registry.shards, self.campaign.pinned_shard)
        self.fingerprint = fingerprint(self.request, self.batch, self.serial) if self.key else b""

    # what the batcher asks (batcher.Attempt)

    def write_to(
        self, arguments: list[str | bytes | int], place_of: Callable[[str], int], epoch: int
    ) -> None:
        """Append the fields that ``redeem.lua`` takes, in its order."""
        request, shard, campaign = (
            self.request,
            self.place.shard,
            self._core.registry.campaigns[self.campaign.id],
        )
        used_at = users_at = receipts_at = receipts_before_at = 0
        used_field = 0
        user_field = receipt_field = b""
        if campaign.kind == "multi":
            used_at, used_field = place_of(keys.uses(shard, self.batch)), self.serial
        elif campaign.kind == "balance":
            segment, used_field = keys.spent_place(self.place)
            used_at = place_of(keys.spent(shard, self.batch, segment))
        if campaign.per_user_limited:
            bucket, user_field = _bucketed(request.user, keys.USER_BUCKETS)
            users_at = place_of(keys.users(shard, campaign.id, bucket))
        if self.key:
            bucket, receipt_field = _bucketed(f"{self.api_key.id} {self.key}", keys.RECEIPT_BUCKETS)
            receipts_at = place_of(keys.receipts(shard, epoch, bucket))
            receipts_before_at = place_of(keys.receipts(shard, epoch - 1, bucket))
        arguments += (
            place_of(keys.campaign(shard, campaign.id)),
            place_of(keys.state(shard, self.batch, self.place.segment)),
            used_at,
            users_at,
            receipts_at,
            receipts_before_at,
            self.place.offset,
            used_field,
            user_field,
            receipt_field,
            self.fingerprint,
            self.batch,
            self.serial,
            self.last4,
            request.user,
            "" if request.amount is None else request.amount,
            request.order or "",
            self.key or "",
            self.api_key.id,
        )

    def read_again(self) -> None:
        """Read what was typed once more: there are other prefixes now."""
        self.readings = split(self.normalised, self._core.registry.prefixes)

    def not_found(self) -> None:
        """No code that was issued; or one that cannot be read here, which is for us to mend."""
        if self._core.missing_mint_keys:
            self.failed(StoreUnavailable("mint keys are missing"))
            return
        code = "code_not_found" if self.readings else "code_malformed"
        self.finish(code, *plain_problem(code))

    def answered(self, answer: bytes) -> None:
        """Turn the script's answer into that of the API."""
        words = answer.decode().split(" ")
        replayed = words[0] == "replayed"
        if replayed:
            del words[0]
        outcome = words[0]
        if outcome == "unpublished":
            self.failed(StoreUnavailable("the shard does not have the campaign yet"))
            return
        if outcome != "redeemed":
            self.finish("replayed" if replayed else outcome, *plain_problem(outcome, replayed=replayed))
            return
        stream_id, amount, *balance = words[1:]
        body = redeemed(
            redemption=f"{self.place.shard}-{stream_id}",
            campaign=self.campaign.id,
            masked_code=self.masked_code,
            user=self.request.user,
            amount=int(amount) if amount else None,
            currency=self.campaign.currency,
            balance=int(balance[0]) if balance else None,
            redeemed_at_ms=int(stream_id.partition("-")[0]),
            replayed=replayed,
        )
        self.finish("replayed" if replayed else "redeemed", 200, body)

    def failed(self, fault: Fault) -> None:
        """Answer with the fault."""
        self.finish(fault.code, *plain_problem(fault.code))

    def still_allowed(self) -> bool:
        """Whether the key that sent it is still one; it may have been revoked since."""
        known = self._core.registry.api_keys.get(self.api_key.digest)
        if known is None or known.revoked:
            self.finish("unauthenticated", *plain_problem("unauthenticated"))
            return False
        return True

    def finish(self, outcome: str, status: int, body: bytes) -> None:
        """Count and answer."""
        self._core.telemetry.outcome(outcome)
        self.on_done(status, body)


class Redemptions:
    """The core of one worker: what it knows, and a batcher for each shard."""

    def __init__(self, settings: Settings, registry: Registry, telemetry: Telemetry) -> None:
        self.settings = settings
        self.registry = registry
        self.telemetry = telemetry
        self._decoder = Decoder(settings, registry)
        self._loop = asyncio.get_running_loop()
        self._batchers = [Batcher(shard, settings, registry, telemetry) for shard in range(registry.shards)]
        self._undecoded: list[Attempt] = []
        self._unresolved: list[Attempt] = []
        self._confirming: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether every shard can be called."""
        return all(batcher.ready for batcher in self._batchers)

    @property
    def missing_mint_keys(self) -> frozenset[str]:
        """Names of mint keys that codes were issued under, and that this process was not given."""
        return self._decoder.missing

    def open(self) -> None:
        """Connect to every shard."""
        for batcher in self._batchers:
            batcher.open()

    async def close(self) -> None:
        """Answer what is under way, then disconnect."""
        if self._confirming:
            await asyncio.gather(self._confirming, return_exceptions=True)
        await asyncio.gather(*(batcher.drain() for batcher in self._batchers))
        await asyncio.gather(*(batcher.close() for batcher in self._batchers))

    async def redeem(self, request: RedeemRequest, key: str | None, api_key: ApiKey) -> tuple[int, bytes]:
        """``submit``, awaited: status and body of the answer."""
        answered: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()

        def on_done(status: int, body: bytes) -> None:
            if not answered.done():
                answered.set_result((status, body))

        self.submit(request, key, api_key, on_done)
        return await answered

    def submit(
        self,
        request: RedeemRequest,
        key: str | None,
        api_key: ApiKey,
        on_done: Callable[[int, bytes], None],
    ) -> None:
        """Redeem; ``on_done(status, body)`` is called once, now or by the attempt's deadline.

        ``request`` and ``key`` (the Idempotency-Key) have been checked, ``api_key`` may redeem.
        """
        normalised = normalise(request.code, characters_max=self.settings.code_length_max)
        readings = split(normalised, self.registry.prefixes) if normalised else []
        if not normalised or not (readings or _may_have_prefix(normalised)):
            self.telemetry.outcome("code_malformed")
            on_done(*plain_problem("code_malformed"))
            return
        if _repeats_code(normalised, request.user, request.order, key):
            self.telemetry.outcome("malformed_request")
            on_done(*problem("malformed_request", "The code may stand in no other field."))
            return
        if len(self._undecoded) + len(self._unresolved) >= self.settings.queue_max:
            self.telemetry.outcome("overloaded")
            on_done(*plain_problem("overloaded"))
            return
        deadline = self._loop.time() + self.settings.attempt_deadline_ms / 1000
        self._undecoded.append(
            Attempt(
                self,
                request=request,
                key=key,
                api_key=api_key,
                normalised=normalised,
                readings=readings,
                deadline=deadline,
                on_done=on_done,
            )
        )
        if len(self._undecoded) == 1:
            self._loop.call_soon(self._decode)

    def _decode(self) -> None:
        """Decode all codes that came in one turn of the event loop, and send them on."""
        attempts, self._undecoded = self._undecoded, []
        unresolved = self._resolve(attempts)
        if unresolved:
            self._unresolved += unresolved
            if self._confirming is None or self._confirming.done():
                self._confirming = asyncio.create_task(self._confirm())

    async def _confirm(self) -> None:
        """Before a code is called unknown: is what we know of batches and keys still current?"""
        while self._unresolved:
            attempts, self._unresolved = self._unresolved, []
            try:
                async with asyncio.timeout_at(attempts[0].deadline):
                    await self.registry.confirm()
            except (Fault, TimeoutError) as error:
                fault = error if isinstance(error, Fault) else StoreUnavailable("Redis cannot be asked")
                for attempt in attempts:
                    attempt.failed(fault)
                continue
            if self.registry.version != attempts[0].version:  # of all, the first saw the oldest
                attempts = [attempt for attempt in attempts if attempt.still_allowed()]
                for attempt in attempts:
                    attempt.read_again()
                attempts = self._resolve(attempts)
            for attempt in attempts:
                attempt.not_found()

    def _resolve(self, attempts: list[Attempt]) -> list[Attempt]:
        """Send on every attempt whose code was issued; the others come back."""
        unresolved = []
        try:
            issued = self._decoder.find([attempt.readings for attempt in attempts])
        except Exception as error:  # noqa: BLE001 - everybody gets an answer, whatever it is
            away = isinstance(error, MintKeyError)
            reason = str(error) if away else type(error).__name__
            _log.error("codes cannot be decoded", extra={"error": reason})
            for attempt in attempts:
                attempt.failed(StoreUnavailable(reason) if away else ContractViolation(reason))
            return []
        for attempt, code in zip(attempts, issued, strict=True):
            if code is None:
                unresolved.append(attempt)
            else:
                self._enqueue(attempt, code)
        return unresolved

    def _enqueue(self, attempt: Attempt, code: Issued) -> None:
        try:
            attempt.belongs_to(code)
            self._batchers[attempt.place.shard].add(attempt)
        except Fault as fault:
            attempt.failed(fault)
        except Exception:  # noqa: BLE001 - a bug of ours must not leave it, or those behind it, unanswered
            _log.exception("an attempt could not be sent on")
            attempt.failed(ContractViolation("the attempt could not be sent on"))


def _may_have_prefix(normalised: bytes) -> bool:
    """Whether there could be a prefix, not known here yet, with which this is a code."""
    prefixes = {normalised[: -fmt.length] for fmt in FORMATS.values()}
    return len(normalised) <= _LONGEST_TEXT and bool(split(normalised, prefixes))


def _repeats_code(normalised: bytes, *texts: str | None) -> bool:
    """Whether a field that is kept contains the code, however written: none may come to rest (P7).

    However the typed text is read, its last symbols are the code's.
    """
    ending = normalised[-_SHORTEST_CODE:]
    for text in texts:
        if text is not None and len(text) >= _SHORTEST_CODE:
            flat = normalise(text, characters_max=len(text))
            if flat is None:
                plain = _NO_SYMBOL.sub("", unicodedata.normalize("NFKC", text))
                flat = normalise(plain, characters_max=len(plain))
            if flat is not None and ending in flat:
                return True
    return False


def _bucketed(text: str, buckets: int) -> tuple[int, bytes]:
    """A hash bucket and the field within it: 96 bits of BLAKE2b, so that long texts cost no memory."""
    digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
    return int.from_bytes(digest[:2]) % buckets, digest
