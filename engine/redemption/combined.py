"""Redeeming several codes together: all of them, or none, for one order.

Codes of one shard are one script call. Codes of several are held first, all of them, and then
confirmed, all of them (``engine.redemption.cross_shard``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from engine.api.bodies import RedeemRequest, encode, plain_problem, problem
from engine.errors import RETRYABLE_STATUS, Fault, StoreUnavailable
from engine.redemption.attempt import load_script
from engine.redemption.cross_shard import redeem_spanning
from engine.redemption.redeem import Redemption, redeemed_body
from engine.store import idempotency

if TYPE_CHECKING:
    from engine.api.code_bodies import CombinedRequest
    from engine.lookup.decoder import Issued
    from engine.redemption.attempt import OnDone
    from engine.redemption.core import Core
    from engine.store.call import Call
    from engine.store.configuration import ApiKey
    from engine.store.keys import Place


class Part(Redemption):
    """One code of a combined redemption: what the resolver finds out goes to the whole."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Combined, *arguments: Any) -> None:  # noqa: ANN401 - those of a Redemption
        super().__init__(*arguments)
        self._whole = whole

    def seen(self) -> list[object]:
        """The whole has one receipt."""
        return []

    def found(self, code: Issued) -> None:
        """Take the identity of the code."""
        self.is_about(code)
        self._whole.part_is_in(self, "")

    def refused(self, outcome: str, *, replayed: bool = False) -> None:  # noqa: ARG002 - as its base has it
        """Tell the whole."""
        self._whole.part_is_in(self, outcome)

    def failed(self, fault: Fault) -> None:
        """Tell the whole."""
        self._whole.part_is_in(self, fault.code)


class Combined:
    """An attempt to redeem several codes together. To the batcher it is one attempt."""

    script = load_script("combined")
    on_done: OnDone
    place: Place

    def __init__(self, core: Core, request: CombinedRequest, key: str | None, api_key: ApiKey) -> None:
        self.core = core
        self.request = request
        self.key = key
        self.api_key = api_key
        self.actor = api_key.id
        self.deadline = core.deadline()
        self.receipt_name = idempotency.name(api_key.id, key) if key else ""
        self.fingerprint = b""
        self.claimed = False
        self.parts = [
            Part(
                self,
                core,
                RedeemRequest(
                    code=item.code,
                    user=request.user,
                    amount=item.amount,
                    order=request.order,
                    client=request.client,
                    metadata=request.metadata,
                ),
                key,
                api_key,
            )
            for item in request.codes
        ]
        self._outstanding = len(self.parts)
        self._refusals: dict[int, str] = {}
        self._spanning: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Have the codes found; the answer goes to ``on_done``."""
        for part in self.parts:
            self.core.submit(part, part.request.code)

    def part_is_in(self, part: Part, refusal: str) -> None:
        """One of the codes is found, or is none."""
        if refusal:
            self._refusals[self.parts.index(part)] = refusal
        self._outstanding -= 1
        if self._outstanding:
            return
        if self._refusals:
            self.refuse(self._refusals)
            return
        if self.key:
            codes = [(part.batch, part.serial) for part in self.parts]
            known = idempotency.known_half(self.request.user, self.request.order, codes)
            self.fingerprint = self.parts[0].fingerprint = idempotency.fingerprint(known, self._seen())
        self.place = self.parts[0].place
        if len({part.place.shard for part in self.parts}) > 1:
            self._spanning = asyncio.create_task(redeem_spanning(self))
            return
        try:
            self.core.send(self)
        except Fault as fault:
            self.failed(fault)

    def _seen(self) -> list[object]:
        request, client = self.request, self.request.client
        codes = [[part.batch, part.serial, part.amount] for part in self.parts]
        told = [client and client.ip, client and client.device, request.metadata]
        return ["combined", request.user, request.order, codes, *told]

    # what the batcher asks (batcher.Attempt)

    def write_to(self, call: Call) -> None:
        """Append the fields of every part."""
        for part in self.parts:
            part.write_to(call)

    def still_allowed(self) -> bool:
        """Whether the key that sent it is still one."""
        if self.core.registry.is_valid(self.api_key):
            return True
        self.refused("unauthenticated")
        return False

    def answered(self, answer: bytes) -> None:
        """Turn the script's answer into that of the API."""
        text = answer.decode()
        replayed = text.startswith("replayed ")
        lines = text.removeprefix("replayed ").split("\n")
        if lines[0] == "refused":
            words = [line.split(" ") for line in lines[1:]]
            refusals = {at: word[0] for at, word in enumerate(words) if word[0] != "redeemed"}
            waits = [int(word[1]) for word in words if word[0] == "held_by_another_order"]
            self.refuse(refusals, max(waits, default=0), replayed=replayed)
        elif lines[0] == "holds_expired":
            self.core.send_when_swept(self)
        elif lines[0] == "unpublished":
            self.failed(StoreUnavailable("the shard does not have the campaign yet"))
        elif lines[0] == "idempotency_key_reused":
            self.refused(lines[0])
        else:
            # Behind a single one, a receipt that was made again may have its hold's record.
            self._succeed([line.split(" ")[1:] for line in lines[: len(self.parts)]], replayed=replayed)

    # answers

    def failed(self, fault: Fault) -> None:
        """Answer with the fault."""
        self.refused(fault.code)

    def refused(self, outcome: str, *, replayed: bool = False) -> None:
        """Answer with a refusal of the whole."""
        self._finish(outcome, *plain_problem(outcome, replayed=replayed))

    def refuse(self, refusals: dict[int, str], retry_after_s: int = 0, *, replayed: bool = False) -> None:
        """The first refusal is the answer's; all are named, by the position of their code."""
        first, code = min(refusals.items())
        listed = [{"item": at, "code": refusal} for at, refusal in sorted(refusals.items())]
        extra: dict[str, Any] = {"item": first, "refusals": listed}
        if retry_after_s:
            extra["retry_after_s"] = retry_after_s
        if replayed:
            extra["replayed"] = True
        self._finish(code, *problem(code, **extra), retry_after_s)

    def answer_whole(self, whole: bytes, *, replayed: bool) -> None:
        """Answer with what ``spanning`` has kept: the bodies of all redemptions, or the refusals."""
        kept = orjson.loads(whole)
        if isinstance(kept, dict):
            self.refuse({int(at): code for at, code in kept["refusals"].items()}, replayed=replayed)
        else:
            self._redeemed([body | {"replayed": replayed} for body in kept], replayed=replayed)

    def _succeed(self, redemptions: list[list[str]], *, replayed: bool) -> None:
        bodies = [
            orjson.Fragment(redeemed_body(part, words, part.user, replayed=replayed))
            for part, words in zip(self.parts, redemptions, strict=True)
        ]
        self._redeemed(bodies, replayed=replayed)

    def _redeemed(self, bodies: list[Any], *, replayed: bool) -> None:
        body = {"order": self.request.order, "redemptions": bodies, "replayed": replayed}
        self._finish("replayed" if replayed else "redeemed", 200, encode(body))

    def _finish(self, outcome: str, status: int, body: bytes, retry_after_s: int = 0) -> None:
        core = self.core
        core.telemetry.outcome(self.script.name, outcome)
        if status == RETRYABLE_STATUS:
            retry_after_s = core.settings.retry_after_s
        self.on_done(status, body, retry_after_s)
