"""Redeeming several codes together: all of them, or none, for one order.

Codes of one shard are one script call. Codes of several shards are held first, all of them, and then
confirmed, all of them (``cross_shard``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.api.bodies import RedeemRequest
from engine.api.outcomes import RedeemedTogether, Refused, RefusedTogether
from engine.errors import Fault, Refusal, StoreUnavailable
from engine.redemption.call_fields import load_script
from engine.redemption.cross_shard import CombinedOrder, redeem_across_shards
from engine.redemption.redeem import Redemption, client_context, redeemed
from engine.store import idempotency

if TYPE_CHECKING:
    from engine.api.bodies import CombinedRequest
    from engine.api.outcomes import Outcome
    from engine.lookup.decoder import Issued
    from engine.redemption.attempt import OnDone
    from engine.redemption.core import Core
    from engine.store.call import Call
    from engine.store.configuration import CachedKey
    from engine.store.dispatcher import Dispatcher


class Combined:
    """An attempt to redeem several codes of one shard. To the batcher it is one attempt."""

    script = load_script("combined")
    on_done: OnDone

    def __init__(self, dispatcher: Dispatcher, order: CombinedOrder) -> None:
        self.dispatcher = dispatcher
        self.api_key: CachedKey | None = order.api_key
        self.actor = order.api_key.id
        self.key = order.key
        self.deadline = order.deadline
        self.idempotency_name, self.fingerprint = order.idempotency_name, order.fingerprint
        self.key_reserved = False
        self.location = order.parts[0].location
        self._order = order.request.order
        self._parts = order.parts

    def write_to(self, call: Call) -> None:
        """Append the fields of every part."""
        for part in self._parts:
            part.write_to(call)

    def still_allowed(self) -> bool:
        """Whether the key that sent it is still valid."""
        if self.api_key is None or self.dispatcher.configuration.is_valid(self.api_key):
            return True
        self.refused("unauthenticated")
        return False

    def answered(self, answer: bytes) -> None:
        """Turn the script's answer into an outcome, or wait until there can be one."""
        text = answer.decode()
        replayed = text.startswith("replayed ")
        lines = text.removeprefix("replayed ").split("\n")
        if lines[0] == "refused":
            words = [line.split(" ") for line in lines[1:]]
            refusals = {at: word[0] for at, word in enumerate(words) if word[0] != "redeemed"}
            waits = [int(word[1]) for word in words if word[0] == "held_by_another_order"]
            refused = RefusedTogether(refusals, max(waits, default=0), replayed)
            self._finish(refused.code, refused)
        elif lines[0] == "holds_expired":
            self.dispatcher.retry_after_expiry(self)
        elif lines[0] == "unpublished":
            self.failed(StoreUnavailable("the shard does not have the campaign yet"))
        elif lines[0] == "idempotency_key_reused":
            self.refused(lines[0])
        else:
            # Behind a single one, an idempotency record made again may have its hold's record.
            redemptions = [
                redeemed(part, line.split(" ")[1:], replayed=replayed)
                for part, line in zip(self._parts, lines, strict=False)
            ]
            self._finish(
                "replayed" if replayed else "redeemed", RedeemedTogether(self._order, redemptions, replayed)
            )

    def failed(self, fault: Fault) -> None:
        """Answer with the fault."""
        self.refused(fault.code)

    def refused(self, outcome: str, *, replayed: bool = False) -> None:
        """Answer with a refusal of the whole."""
        self._finish(outcome, Refused(outcome, replayed=replayed))

    def _finish(self, counted_as: str, outcome: Outcome) -> None:
        self.dispatcher.telemetry.outcome(self.script.name, counted_as)
        self.on_done(outcome)


async def redeem_together(
    core: Core, request: CombinedRequest, *, key: str | None, api_key: CachedKey
) -> Outcome:
    """Redeem all codes of a request, or none."""
    dispatcher = core.dispatcher
    deadline = dispatcher.deadline()
    found = await asyncio.gather(
        *(_find(core, item.code, request.user, request.order, key) for item in request.codes)
    )
    if refusals := {at: one for at, one in enumerate(found) if isinstance(one, str)}:
        return _counted(dispatcher, RefusedTogether(refusals))
    if not core.configuration.is_valid(api_key):  # revoked while the codes were looked up
        return _counted(dispatcher, Refused("unauthenticated"))
    parts = [
        _part(dispatcher, request, at, code, key=key, api_key=api_key)
        for at, code in enumerate(found)
        if not isinstance(code, str)
    ]
    order = CombinedOrder(
        request=request,
        parts=parts,
        key=key,
        api_key=api_key,
        idempotency_name=parts[0].idempotency_name,
        fingerprint=_fingerprint(request, parts) if key else b"",
        deadline=deadline,
    )
    parts[0].fingerprint = order.fingerprint  # the idempotency record of all is the first one's
    if len({part.location.shard for part in parts}) == 1:
        return await core.answer_bound(Combined(dispatcher, order), deadline)
    try:
        outcome: Outcome = await redeem_across_shards(core, order)
    except Fault as fault:
        outcome = Refused(fault.code)
    return _counted(dispatcher, outcome)


async def _find(core: Core, code: str, *stored: str | None) -> Issued | str:
    """The code, or why it cannot be redeemed."""
    try:
        return await core.find(code, *stored)
    except (Refusal, Fault) as error:
        return error.code


def _part(
    dispatcher: Dispatcher,
    request: CombinedRequest,
    at: int,
    code: Issued,
    *,
    key: str | None,
    api_key: CachedKey,
) -> Redemption:
    item = request.codes[at]
    part = Redemption(
        dispatcher,
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
    part.bind_code(code)
    return part


def _fingerprint(request: CombinedRequest, parts: list[Redemption]) -> bytes:
    known = idempotency.known_half(request.user, request.order, [(part.batch, part.serial) for part in parts])
    codes = [[part.batch, part.serial, part.amount] for part in parts]
    context = client_context(request) or [None, None, None]
    return idempotency.fingerprint(known, ["combined", request.user, request.order, codes, *context])


def _counted(dispatcher: Dispatcher, outcome: Outcome) -> Outcome:
    if isinstance(outcome, RedeemedTogether):
        counted_as = "replayed" if outcome.replayed else "redeemed"
    elif isinstance(outcome, Refused | RefusedTogether):
        counted_as = outcome.code
    else:
        return outcome
    dispatcher.telemetry.outcome(Combined.script.name, counted_as)
    return outcome
