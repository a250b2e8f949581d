"""The express lane writes an attempt into a script call as the other lanes do, field for field."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import itertools
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import voids
from engine.control.voids import VoidDeclaration
from engine.lane.choice import MODULE, is_built
from engine.redemption.call_fields import CallFields
from engine.redemption.redeem import Redemption
from engine.store import idempotency
from engine.store.batcher import Batcher
from engine.store.call import Call, CallFrame
from tests.support.deployment import engine_in_process, issue, mint_batch
from tests.support.importing import a_campaign, bring, lines_of

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.store.batcher import Queued

pytestmark = pytest.mark.skipif(not is_built(), reason="the express lane was not built")

EPOCH: Final = 20_000
REQUESTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"user": "a" * 64},
    {"user": "u/1 <&> ~"},
    {"user": 'quotes " and \\ end'},
    {"user": "Zoë"},
    {"user": "李 😀"},
    {"order": "o-1"},
    {"order": 'an "order"'},
    {"order": "№ 1"},
    {"amount": 500},
    {"amount": "up_to_balance"},
    {"order": "o-2", "amount": 7},
    {"key": "k-1"},
    {"key": 'a "key"', "order": "o-3", "amount": 500},
    {"metadata": {"a": 'b"ü'}},
    {"metadata": {"a": 1}, "key": "k-2", "client": {"ip": "::1"}},
    {"key": "a \\ key", "user": "Zoë", "amount": "up_to_balance"},
    {"key": "8c6c1b1e-3a0f-4f0e-9d55-0c2b8a7d1e42", "order": "o-4", "user": "b" * 64},
)
CAMPAIGNS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"amount": 500, "currency": "EUR"},
    {"kind": "multi", "max_uses": 3},
    {"kind": "balance", "amount": 500, "currency": "EUR"},
    {"per_user_limit": 3},
)


def fields(attempts: list[Queued], write_to: Any, frame: CallFrame) -> dict[str, object]:  # noqa: ANN401 - of each
    """What comes of it if all these attempts are in one call."""
    call = Call(frame, EPOCH)
    for attempt in attempts:
        write_to(attempt, call)
    return {name: getattr(call, name) for name in Call.__slots__}


def note_sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of all attempts of the express lane that are sent from now on."""
    sent: list[Any] = []
    send = Batcher._send

    def noting(batcher: Batcher, batch: list[Queued]) -> None:
        sent.extend(attempt for attempt in batch if type(attempt).__name__ == "ExpressRedemption")
        send(batcher, batch)

    monkeypatch.setattr(Batcher, "_send", noting)
    return sent


@pytest.mark.parametrize("metadata_kept", [True, False])
async def test_an_attempt_is_written_into_a_call_as_in_the_other_lanes(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, metadata_kept: bool
) -> None:
    plane = replace(plane, settings=replace(plane.settings, metadata_kept=metadata_kept))
    count = len(REQUESTS)
    batches = [(await issue(plane, count, **campaign))[1] for campaign in CAMPAIGNS]
    voided, codes = await mint_batch(plane, (await issue(plane, 1))[0], count + 3)
    batches.append(codes[:count])
    void = VoidDeclaration(batch=voided, first_serial=2, last_serial=count + 1, reason="stolen")
    await voids.declare(plane, void, void=True, actor="cli")
    imported = [f"BRAND-{number:0>11}" for number in range(count)]
    await bring(plane, await a_campaign(plane), lines_of(imported))
    batches.append(imported)
    sent = note_sent(monkeypatch)
    async with engine_in_process(plane, lane="express") as merchant:
        await merchant.redeem("nothing")  # so that its key is known
        for number, codes in enumerate(batches):
            named = [
                request | ({"key": f"{request['key']} {number}"} if "key" in request else {})
                for request in REQUESTS
            ]
            await asyncio.gather(
                *(merchant.redeem(code, **one) for code, one in zip(codes, named, strict=True))
            )
    attempts = sent
    assert len(attempts) == len(batches) * count
    random.Random(7).shuffle(attempts)
    frames = [CallFrame(Redemption.script, shard) for shard in (0, 1)]
    for shard, some in ((0, attempts), (1, attempts[::2]), *((0, [attempt]) for attempt in attempts)):
        expected = fields(some, CallFields.write_to, frames[shard])
        assert fields(some, type(some[0]).write_to, frames[shard]) == expected


async def test_the_fingerprint_of_a_request_is_that_of_the_other_lanes(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = list(
        itertools.product(
            (None, 500, "up_to_balance"), (None, "o-1", 'an "order"'), (None, "EUR"), (False, True),
            ("ann", "Zoë", "u" * 120),
        )
    )  # fmt: skip
    campaign, codes = await issue(plane, len(choices), kind="balance", amount=500, currency="EUR")
    sent = note_sent(monkeypatch)
    async with engine_in_process(plane, lane="express") as merchant:
        await merchant.redeem("nothing")
        for number, (code, (amount, order, currency, names, user)) in enumerate(
            zip(codes, choices, strict=True)
        ):
            asked = {"amount": amount, "order": order, "currency": currency}
            asked |= {"campaign": campaign if names else None}
            await merchant.redeem(code, user=user, key=f"k-{number}", **asked)
    assert len(sent) == len(choices)
    for attempt in sent:
        known = idempotency.known_half(attempt.user, attempt.order, [(attempt.batch, attempt.serial)])
        fields = Redemption.fingerprint_fields(attempt)
        assert attempt.fingerprint == idempotency.fingerprint(known, fields)
        assert fields[4:] == [attempt.order or None, *(attempt.asserted or ())]
    assert len({attempt.fingerprint for attempt in sent}) == len(choices)


@pytest.mark.parametrize("step", [1, 7, 128, 500])
def test_digests_are_those_of_hashlib(step: int) -> None:
    blake2b = importlib.import_module(MODULE).blake2b
    data = random.Random(step).randbytes(400)
    for size in range(len(data)):
        parts = [data[at : min(at + step, size)] for at in range(0, size, step)]
        assert blake2b(parts) == hashlib.blake2b(data[:size], digest_size=12).digest()
