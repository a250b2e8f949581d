"""Combined redemptions over several shards, and a worker that dies at one of their steps."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.errors import OutcomeUnknown
from engine.redemption import cross_shard
from engine.redemption.prepared import Commit, Prepare
from engine.store import keys
from tests.support.streams import read_events

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from redis.asyncio import Redis

    from tests.support.deployment import Merchant


async def combined(
    merchant: Merchant, codes: Sequence[str | tuple[str, object]], *, key: str = "", order: str = "o1"
) -> tuple[int, Any]:
    items = [
        {"code": item} if isinstance(item, str) else {"code": item[0], "amount": item[1]} for item in codes
    ]
    headers = {"Idempotency-Key": key} if key else {}
    body = {"codes": items, "user": "ann", "order": order}
    return await merchant.call("POST", "/v1/redemptions/combined", json=body, headers=headers)


async def types(redis: Redis) -> list[str]:
    """Return the types of all events on all shards, sorted."""
    found = []
    for shard in range(3):
        entries = await read_events(redis, shard)
        found += [fields[b"type"].decode() for _, fields in entries]
    return sorted(found)


async def nothing_is_left(redis: Redis) -> bool:
    kinds = (keys.commit_records, keys.prepared, keys.holds, keys.held)
    names = [name(shard) for shard in range(3) for name in kinds]
    return not await redis.exists(*names)


STEPS: Final = (
    *("begun", "half prepared", "prepared"),
    *("decided", "half redeemed", "redeemed"),  # from here on it is done, whatever happens
)
"""How far a worker comes before it dies."""


@contextlib.contextmanager
def dying(step: str) -> Iterator[None]:
    """Meanwhile every worker of this process dies when it has done this step: it does nothing more."""
    take = cross_shard._Transaction.step
    first_is_done = asyncio.Event()

    async def stop(*_: object, **__: object) -> Any:  # noqa: ANN401 - nothing is returned
        raise OutcomeUnknown("the worker is gone")

    async def step_before(self: Any, name: str, *rest: Any, **more: Any) -> Any:  # noqa: ANN401 - as it is
        if name == {"prepared": "decide", "redeemed": "end"}[step]:
            await stop()
        return await take(self, name, *rest, **more)

    def on_first_shard(send: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        async def half(call: Any) -> Any:  # noqa: ANN401 - as it is
            if call.location.shard == 0:
                result = await send(call)
                first_is_done.set()
                return result
            await first_is_done.wait()
            return await stop()

        return half

    owner, name, replacement = {
        "begun": (Prepare, "send", stop),
        "half prepared": (Prepare, "send", on_first_shard(Prepare.send)),
        "prepared": (cross_shard._Transaction, "step", step_before),
        "decided": (cross_shard, "_complete", stop),
        "half redeemed": (Commit, "send", on_first_shard(Commit.send)),
        "redeemed": (cross_shard._Transaction, "step", step_before),
    }[step]
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr(owner, name, replacement)
        yield


async def let_its_time_pass(redis: Redis, shards: int) -> None:
    """For who began or decided a combined redemption: nobody waits for it any more."""
    for shard in range(shards):
        records: Any = await redis.hgetall(keys.commit_records(shard))
        for transaction_id, record in records.items():
            state, nonce, _, rest = record.split(b"\n", 3)
            aged = b"\n".join((state, nonce, b"1", rest))
            await redis.hset(keys.commit_records(shard), transaction_id, aged)
