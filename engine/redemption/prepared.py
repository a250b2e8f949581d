"""The codes of a cross-shard transaction on one shard: prepare them, then commit or abort.

``lua/lib/prepared.lua`` says what is stored. One call has all codes that the order has on the shard. So the
shard decides about them as about the codes of a combined redemption of one shard.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from engine.errors import Fault, StoreUnavailable
from engine.redemption.attempt import Attempt
from engine.redemption.call_fields import load_script
from engine.redemption.cross_shard_step import StepResult
from engine.store import keys
from engine.store.prepared_codes import decode_prepared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.redemption.core import Core
    from engine.redemption.redeem import Redemption
    from engine.store.call import Call
    from engine.store.configuration import CachedKey
    from engine.store.dispatcher import Dispatcher
    from engine.store.prepared_codes import PreparedCode, TransactionId
    from lua.loader import Script

_FINGERPRINT: Final = b"decided\0"


class Part(Attempt):
    """One code of a transaction after it was prepared. Neither campaign nor voids can refuse it any more."""

    __slots__ = ()
    heeds_voids = False


class _CodesOfShard:
    """An attempt on all codes of a transaction on one shard. The batcher sees one attempt."""

    script: Script
    api_key: CachedKey | None = None
    key: str | None = None
    idempotency_name = ""
    fingerprint = b""
    key_reserved = True

    def __init__(self, dispatcher: Dispatcher, parts: Sequence[Attempt], *own_fields: str) -> None:
        """``own_fields``: the script's own fields after ``prepared_at``."""
        self.dispatcher = dispatcher
        self.location = parts[0].location
        self.actor = parts[0].actor
        self.deadline = dispatcher.deadline()
        self._parts = parts
        self._own_fields = own_fields
        self._result: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()

    def write_to(self, call: Call) -> None:
        """Append the fields of every part."""
        for part in self._parts:
            part.write_to(call)
            call.own_fields += (call.key(keys.prepared(self.location.shard)), *self._own_fields)

    def answered(self, answer: bytes) -> None:
        """Set the answer as the result. If expired holds are in the way, end them and retry."""
        first, _, rest = answer.removeprefix(b"replayed ").partition(b"\n")
        word = first.decode().partition(" ")[0]
        if word == "holds_expired":
            self.dispatcher.retry_after_expiry(self)
        elif word == "unpublished":
            self.failed(StoreUnavailable("the shard does not have the campaign yet"))
        elif word == "refused":
            self._set_result(StepResult(word, rest))
        else:
            self._set_result(StepResult(word, answer.removeprefix(b"replayed ")))

    def failed(self, fault: Fault) -> None:
        """Set the code of the fault as the result."""
        self._set_result(StepResult(fault.code))

    def refused(self, outcome: str, *, replayed: bool = False) -> None:  # noqa: ARG002 - the batcher's protocol
        """Set the refusal as the result; the script was not called."""
        self._set_result(StepResult(outcome))

    def _set_result(self, result: StepResult) -> None:
        if not self._result.done():
            self._result.set_result(result)

    async def send(self) -> StepResult:
        """Send it. The result is the first word of the script's answer, and the lines; or a fault's code."""
        try:
            self.dispatcher.send(self)
        except Fault as fault:
            self.failed(fault)
        return await self._result


class Prepare(_CodesOfShard):
    """Prepares codes. The result is ``prepared``, or ``refused`` and a line for each code.

    ``version`` is the version of the configuration under which the codes were prepared.
    """

    script = load_script("prepare", "ending", "prepared_at", "nonce", "transaction")

    def __init__(
        self, dispatcher: Dispatcher, parts: Sequence[Redemption], nonce: str, transaction: TransactionId
    ) -> None:
        super().__init__(dispatcher, parts, nonce, str(transaction))
        self.api_key = parts[0].api_key
        self.version = 0

    def write_to(self, call: Call) -> None:
        """Append the fields of every part. A call is written again if the shard knows a later version."""
        self.version = self.dispatcher.configuration.version
        super().write_to(call)


class Commit(_CodesOfShard):
    """Redeems prepared codes. The result is ``redeemed``, and a line for each code. May be repeated."""

    script = load_script("commit", "prepared_at", "nonce")

    def __init__(self, dispatcher: Dispatcher, parts: Sequence[Part], nonce: str) -> None:
        super().__init__(dispatcher, parts, nonce)
        parts[0].idempotency_name, parts[0].fingerprint = nonce, _FINGERPRINT


class Abort(_CodesOfShard):
    """Gives prepared codes back. The result is ``aborted``. May be repeated."""

    script = load_script("abort", "prepared_at", "nonce")


async def abort(core: Core, shard: int, nonce: str) -> None:
    """Give back what a transaction has prepared on a shard, if anything.

    If that fails, the next hold expiry does it.
    """
    try:
        record: Any = await core.redis.hget(keys.prepared(shard), nonce)
    except (OSError, RedisError):
        return
    if record is not None:
        await abort_codes(core, nonce, decode_prepared(record).codes)


async def abort_codes(core: Core, nonce: str, codes: Sequence[PreparedCode]) -> None:
    """Give back these codes, which are all that a transaction has prepared on one shard."""
    await core.configuration.know(code.batch for code in codes)
    parts = []
    for code in codes:
        part = Part(core.dispatcher, api_key=None, user=code.user)
        part.bind_record(code.campaign, code.batch, code.serial, code.last4)
        parts.append(part)
    await Abort(core.dispatcher, parts, nonce).send()
