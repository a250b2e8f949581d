"""One step of a cross-shard transaction, on the shard that keeps its commit record (lua/cross_shard.lua)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from engine.redemption.attempt import Attempt
from engine.redemption.call_fields import load_script
from engine.store import keys

if TYPE_CHECKING:
    import asyncio

    from engine.errors import Fault
    from engine.store.call import Call
    from engine.store.dispatcher import Dispatcher


class CommitRecord(msgspec.Struct, frozen=True):
    """What was decided: everything it takes to confirm all holds, and to answer. ``holds`` are their ids."""

    holds: tuple[str, ...]
    actor: str
    key: str
    idempotency_name: str
    fingerprint: bytes


class StepResult(NamedTuple):
    """What the script answered: its first word, and what stands behind it; or the code of a fault."""

    word: str
    rest: bytes = b""


class CrossShardStep(Attempt):
    """An attempt on a commit record, not on a code. ``taken`` gets its result."""

    __slots__ = ("_payload", "_step", "_taken")
    script = load_script("cross_shard", "commit_records_at", "step", "transaction_id", "nonce", "payload_at")

    def __init__(
        self,
        dispatcher: Dispatcher,
        record: CommitRecord,
        shard: int,
        step: tuple[str, str, str],
        payload: bytes,
        *,
        taken: asyncio.Future[StepResult],
    ) -> None:
        """``step`` is its name, the transaction's id, and the nonce of who works on it."""
        super().__init__(dispatcher, api_key=None, actor=record.actor, key=record.key or None)
        self.idempotency_name, self.fingerprint = record.idempotency_name, record.fingerprint
        self.key_reserved = True
        self.bind_shard(shard)
        self._step, self._payload, self._taken = step, payload, taken

    def write_to(self, call: Call) -> None:
        """Append the fields of the script."""
        super().write_to(call)
        call.fields += (
            call.key(keys.commit_records(self.location.shard)),
            *self._step,
            call.raw(self._payload),
        )

    def answered(self, answer: bytes) -> None:
        """Take the answer as it is."""
        head, _, rest = answer.partition(b"\n")
        word, _, replay = head.decode().partition(" ")
        self._take(StepResult(word, replay.encode() if word == "replayed" else rest))

    def failed(self, fault: Fault) -> None:
        """Take the fault as the result."""
        self._take(StepResult(fault.code))

    def _take(self, result: StepResult) -> None:
        if not self._taken.done():
            self._taken.set_result(result)
