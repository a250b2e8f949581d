"""The combined redemption: redeems several codes for one order, all or none.

If all codes are on one shard, one script call redeems them. If not, ``cross_shard`` holds all codes and then
confirms all holds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.api.bodies import RedeemRequest
from engine.api.outcomes import RedeemedTogether, Refused, RefusedTogether
from engine.codes.formats import normalise
from engine.encoding import canonical
from engine.errors import Fault, Refusal, StoreUnavailable
from engine.redemption.call_fields import load_script
from engine.redemption.core import strings_in
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
    """An attempt to redeem several codes of one shard. The batcher sees one attempt."""

    script = load_script("combined", "ending")
    on_done: OnDone

    def __init__(self, dispatcher: Dispatcher, order: CombinedOrder) -> None:
        self.dispatcher = dispatcher
        self.api_key: CachedKey | None = order.api_key
        self.actor = order.api_key.id
        self.key = order.key
        self.deadline = order.deadline
        self.idempotency_name, self.fingerprint = order.idempotency_name, order.fingerprint + order.nonce
        self.key_reserved = False
        self.location = order.parts[0].location
        self._order = order.request.order
        self._parts = order.parts

    def write_to(self, call: Call) -> None:
        """Append the fields of every part: ``combined.lua`` reads each part as an attempt."""
        for part in self._parts:
            part.write_to(call)

    def answered(self, answer: bytes) -> None:
        """Turn the script's answer into an outcome. If expired holds are in the way, end them and retry."""
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
        elif lines[0] in {"idempotency_key_reused", "request_replayed"}:
            self.refused(lines[0])
        else:
            # A rebuilt idempotency record of a single code may have the lines of its hold after the first
            # line.
            redemptions = [
                redeemed(part, line.split(" ")[1:], replayed=replayed)
                for part, line in zip(self._parts, lines, strict=False)
            ]
            self._finish(
                "replayed" if replayed else "redeemed", RedeemedTogether(self._order, redemptions, replayed)
            )

    def failed(self, fault: Fault) -> None:
        """Finish with a fault."""
        self.refused(fault.code)

    def refused(self, outcome: str, *, replayed: bool = False) -> None:
        """Refuse the whole request."""
        self._finish(outcome, Refused(outcome, replayed=replayed))

    def _finish(self, counted_as: str, outcome: Outcome) -> None:
        _count(self.dispatcher, counted_as, outcome)
        self.on_done(outcome)


async def redeem_together(
    core: Core, request: CombinedRequest, *, key: str | None, api_key: CachedKey, nonce: bytes = b""
) -> Outcome:
    """Redeem all codes of a request, or none. A fault is returned as a ``Refused`` with its code.

    ``nonce``: the mark of a signed request's nonce.
    """
    outcome = await _redeem_together(core, request, key=key, api_key=api_key, nonce=nonce)
    if core.dispatcher.note is not None:
        _note(core, request, api_key, outcome)
    return outcome


def _note(core: Core, request: CombinedRequest, api_key: CachedKey, outcome: Outcome) -> None:
    """Tell the guard what became of each code."""
    note = core.dispatcher.note
    if isinstance(outcome, RedeemedTogether) and not outcome.replayed:
        decided = dict.fromkeys(range(len(request.codes)), Redemption.success)
    elif isinstance(outcome, RefusedTogether) and not outcome.replayed:
        decided = outcome.refusals
    else:
        return
    for at, counted_as in decided.items():
        code = normalise(request.codes[at].code, characters_max=core.settings.code_length_max)
        if note is not None:
            note((api_key.id, request.user, request.client, counted_as, code or b""))


async def _redeem_together(
    core: Core, request: CombinedRequest, *, key: str | None, api_key: CachedKey, nonce: bytes
) -> Outcome:
    dispatcher = core.dispatcher
    deadline = dispatcher.deadline()
    if core.guard.watches:
        units = len(request.codes)
        if refused := core.guard.judge(api_key, request.user, request.client, units=units):
            return _counted(dispatcher, refused)
    stored = [request.user, request.order, key]
    kept = ""
    if request.metadata is not None and core.settings.metadata_kept:
        kept = canonical(request.metadata).decode()
        stored += [kept, *strings_in(request.metadata)]
    lookups = await asyncio.gather(*(_find(core, item.code, *stored) for item in request.codes))
    lookups = [
        result if isinstance(result, str) or api_key.may_use(result.batch.campaign) else "code_not_found"
        for result in lookups
    ]
    if refusals := {at: result for at, result in enumerate(lookups) if isinstance(result, str)}:
        return _counted(dispatcher, RefusedTogether(refusals))
    try:
        core.refuse_codes(request.user, request.order, key, reason=kept)
    except Refusal as refusal:
        return _counted(dispatcher, Refused(refusal.code, refusal.detail))
    if not core.configuration.is_valid(api_key):  # it may have been revoked during the look-ups
        return _counted(dispatcher, Refused("unauthenticated"))
    parts = [
        _part(dispatcher, request, at, code, key=key, api_key=api_key)
        for at, code in enumerate(lookups)
        if not isinstance(code, str)
    ]
    if mismatches := {at: found for at, part in enumerate(parts) if (found := part.mismatch())}:
        return _counted(dispatcher, RefusedTogether(mismatches))
    order = CombinedOrder(
        request=request,
        parts=parts,
        key=key,
        api_key=api_key,
        idempotency_name=parts[0].idempotency_name,
        fingerprint=_share_fingerprint(request, parts) if key else b"",
        nonce=nonce,
        deadline=deadline,
    )
    if len({part.location.shard for part in parts}) == 1:
        parts[0].sign(nonce)
        return await core.answer_bound(Combined(dispatcher, order), deadline)
    try:
        outcome: Outcome = await redeem_across_shards(core, order)
    except Fault as fault:
        outcome = Refused(fault.code)
    return _counted(dispatcher, outcome)


async def _find(core: Core, code: str, *stored: str | None) -> Issued | str:
    """The issued code, or the code of a refusal or fault."""
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
            currency=request.currency,
            campaign=request.campaign,
            client=request.client,
            metadata=request.metadata,
        ),
        key,
        api_key,
    )
    part.bind_code(code)
    return part


def _share_fingerprint(request: CombinedRequest, parts: list[Redemption]) -> bytes:
    """Make the fingerprint of the whole request, and give it to every part.

    The script stores the common record under the first part's key, and every event has the fingerprint.
    """
    known = idempotency.known_half(request.user, request.order, [(part.batch, part.serial) for part in parts])
    codes = [[part.batch, part.serial, part.amount] for part in parts]
    context = [*(client_context(request) or [None, None, None]), *(parts[0].asserted or ())]
    shared = idempotency.fingerprint(known, ["combined", request.user, request.order, codes, *context])
    for part in parts:
        part.fingerprint = shared
    return shared


def _counted(dispatcher: Dispatcher, outcome: Outcome) -> Outcome:
    if isinstance(outcome, RedeemedTogether):
        counted_as = "replayed" if outcome.replayed else "redeemed"
    elif isinstance(outcome, Refused | RefusedTogether):
        counted_as = outcome.code
    else:
        return outcome
    _count(dispatcher, counted_as, outcome)
    return outcome


def _count(dispatcher: Dispatcher, counted_as: str, outcome: Outcome) -> None:
    dispatcher.telemetry.outcome(Combined.script.name, counted_as)
    if isinstance(outcome, RedeemedTogether) and not outcome.replayed:
        dispatcher.telemetry.redeemed_together(one.campaign for one in outcome.redemptions)
