"""One step of a cross-shard transaction, on the shard of its commit record (lua/cross_shard.lua)."""

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
    from engine.store.configuration import CachedKey
    from engine.store.dispatcher import Dispatcher


class CommitRecord(msgspec.Struct, frozen=True):
    """The decision: everything that is needed to redeem all codes and to answer.

    ``codes``: campaign, batch, serial and last four symbols of each code, in the order of the request.
    """

    codes: tuple[tuple[str, int, int, str], ...]
    user: str
    order: str
    actor: str
    key: str
    idempotency_name: str
    fingerprint: bytes


class StepResult(NamedTuple):
    """The script's answer: its first word, and the rest after it. Or the code of a fault as the word."""

    word: str
    rest: bytes = b""


class CrossShardStep(Attempt):
    """An attempt on a commit record, not on a code. ``taken`` gets the result."""

    __slots__ = ("_payload", "_prepared_version", "_step", "_taken")
    script = load_script(
        *("cross_shard", "commit_records_at", "step", "transaction_id", "nonce", "prepared_version"),
        "payload_at",
    )

    def __init__(
        self,
        dispatcher: Dispatcher,
        record: CommitRecord,
        shard: int,
        step: tuple[str, str, str],
        payload: bytes,
        *,
        taken: asyncio.Future[StepResult],
        api_key: CachedKey | None = None,
        prepared_version: int = 0,
    ) -> None:
        """``step`` is the step's name, the transaction's id, and the nonce of the worker's try.

        ``prepared_version``: the decision is refused if the configuration is later than this.
        """
        super().__init__(dispatcher, api_key=api_key, actor=record.actor, key=record.key or None)
        self.idempotency_name, self.fingerprint = record.idempotency_name, record.fingerprint
        self.key_reserved = True
        self.bind_shard(shard)
        self._step, self._payload, self._taken = step, payload, taken
        self._prepared_version = prepared_version

    def write_to(self, call: Call) -> None:
        """Append the fields of ``cross_shard.lua``."""
        super().write_to(call)
        call.own_fields += (
            call.key(keys.commit_records(self.location.shard)),
            *self._step,
            self._prepared_version,
            call.raw(self._payload),
        )

    def answered(self, answer: bytes) -> None:
        """Set the answer as the result, without a count of outcomes."""
        first_line, _, rest = answer.partition(b"\n")
        word, _, first_answer = first_line.decode().partition(" ")
        self._set_result(StepResult(word, first_answer.encode() if word == "replayed" else rest))

    def failed(self, fault: Fault) -> None:
        """Set the code of the fault as the result."""
        self._set_result(StepResult(fault.code))

    def refused(self, outcome: str, *, replayed: bool = False) -> None:  # noqa: ARG002 - the batcher's protocol
        """Set the refusal as the result; the script was not called."""
        self._set_result(StepResult(outcome))

    def _set_result(self, result: StepResult) -> None:
        if not self._taken.done():
            self._taken.set_result(result)
