"""The core: an attempt comes in, and its answer goes to a callback.

``submit`` has the code found and hands the attempt to the batcher of its shard. It makes no
task and no future; ``redeem`` is a thin awaitable on top for ordinary handlers.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING, Final

from engine import keys
from engine.batcher import Batcher
from engine.errors import Fault, StoreUnavailable
from engine.formats import FORMATS, normalise
from engine.messages import fingerprint, plain_problem, problem, redeemed
from engine.resolver import Resolver, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.decoder import Issued
    from engine.messages import RedeemRequest
    from engine.registry import ApiKey, Registry
    from engine.settings import Settings
    from engine.telemetry import Telemetry

_SHORTEST_CODE: Final = min(fmt.length for fmt in FORMATS.values())
_NO_SYMBOL: Final = re.compile("[^0-9A-Za-z]+")


class Attempt(Wanted):
    """One attempt on its way from the request to the answer."""

    __slots__ = (
        "_core", "api_key", "batch", "campaign", "fingerprint", "key", "last4", "masked_code", "on_done",
        "place", "request", "serial",
    )  # fmt: skip

    def __init__(
        self,
        core: Redemptions,
        request: RedeemRequest,
        key: str | None,
        api_key: ApiKey,
        on_done: Callable[[int, bytes], None],
    ) -> None:
        self._core = core
        self.request = request
        self.key = key
        self.api_key = api_key
        self.on_done = on_done

    # what the resolver asks (resolver.Wanted)

    def found(self, code: Issued) -> None:
        """Take the identity of the code, and go on to its shard."""
        self.batch, self.serial = code.batch.id, code.serial
        self.campaign = self._core.registry.campaigns[code.batch.campaign]
        self.last4, self.masked_code = code.last4, code.masked
        self.place = keys.place(self.serial, self._core.registry.shards, self.campaign.pinned_shard)
        self.fingerprint = fingerprint(self.request, self.batch, self.serial) if self.key else b""
        self._core.batchers[self.place.shard].add(self)

    def refused(self, outcome: str) -> None:
        """Answer with a refusal."""
        self.finish(outcome, *plain_problem(outcome))

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
        self.batchers = [Batcher(shard, settings, registry, telemetry) for shard in range(registry.shards)]
        self._resolver = Resolver(settings, registry)
        self._loop = asyncio.get_running_loop()

    @property
    def ready(self) -> bool:
        """Whether every shard can be called."""
        return all(batcher.ready for batcher in self.batchers)

    @property
    def missing_mint_keys(self) -> frozenset[str]:
        """Names of mint keys that codes were issued under, and that this process was not given."""
        return self._resolver.missing_mint_keys

    def open(self) -> None:
        """Connect to every shard."""
        for batcher in self.batchers:
            batcher.open()

    async def close(self) -> None:
        """Answer what is under way, then disconnect."""
        await self._resolver.close()
        await asyncio.gather(*(batcher.drain() for batcher in self.batchers))
        await asyncio.gather(*(batcher.close() for batcher in self.batchers))

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
        attempt = Attempt(self, request, key, api_key, on_done)
        if not self._resolver.read(request.code, attempt):
            attempt.refused("code_malformed")
        elif _repeats_code(attempt.normalised, request.user, request.order, key):
            self.telemetry.outcome("malformed_request")
            on_done(*problem("malformed_request", "The code may stand in no other field."))
        else:
            try:
                self._resolver.find(attempt)
            except Fault as fault:
                attempt.failed(fault)


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
