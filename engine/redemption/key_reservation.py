"""Reserves the idempotency key of an attempt on the key's home shard, then sends the attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import Fault, OutcomeUnknown, StoreUnavailable
from engine.redemption.attempt import Attempt
from engine.redemption.call_fields import load_script

if TYPE_CHECKING:
    from engine.store.dispatcher import Dispatcher, Sendable


class KeyReservation(Attempt):
    """An attempt on an idempotency key, not on a code."""

    __slots__ = ("_attempt",)
    script = load_script("claim_key")
    success = "claimed"

    def __init__(self, dispatcher: Dispatcher, attempt: Sendable, shard: int) -> None:
        super().__init__(dispatcher, api_key=attempt.api_key, actor=attempt.actor, key=attempt.key)
        self._attempt = attempt
        self.idempotency_name, self.fingerprint = attempt.idempotency_name, attempt.fingerprint
        self.deadline = attempt.deadline
        self.bind_shard(shard)

    def answered(self, answer: bytes) -> None:
        """Send the attempt, or refuse it if the key was used for another request."""
        if answer != self.success.encode() and not answer.startswith(b"replayed "):
            self._attempt.refused(answer.decode())
            return
        self._attempt.key_reserved = True
        try:
            self.dispatcher.send(self._attempt)
        except Fault as fault:
            self._attempt.failed(fault)

    def failed(self, fault: Fault) -> None:
        """Fail the attempt. Nothing was done to the code, even if the reservation was made."""
        self._attempt.failed(StoreUnavailable(str(fault)) if isinstance(fault, OutcomeUnknown) else fault)

    def refused(self, outcome: str, *, replayed: bool = False) -> None:
        """Pass the refusal on to the attempt."""
        self._attempt.refused(outcome, replayed=replayed)
