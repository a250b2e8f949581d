"""One shard's raw keys, and scripts called on them as the batcher calls them, with nothing around."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine.redemption.redeem import Redemption
from engine.store import keys
from engine.store.call import COLUMNS, SIGNATURE, pack_columns
from engine.store.event_lines import about_json, cause_json
from engine.store.scripts import run_script
from tests.support.streams import read_events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from lua.loader import Script

VERSION: Final = 3
BUCKET: Final = 11
UNSET: Final = ("starts_at_ms", "ends_at_ms", "stock", "per_user_limit", "amount", "currency")
EDGE_MARGIN_S: Final = 60
FAR_MS: Final = 10**14
SPARSE: Final = COLUMNS[COLUMNS.index("amount") :]  # columns of fields that some attempts have


async def evaluate(
    redis: Redis, script: Script, names: Sequence[str], arguments: Sequence[str | bytes | int]
) -> Any:  # noqa: ANN401 - whatever the script answers
    """FCALL of the function that the loader has named."""
    return await run_script(redis, script, names, arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What the front end sends for one attempt. ``counted``: it knows of a limit per user; and the kind."""

    campaign: str = "cmp_1"
    batch: int = 7
    segment: int = 0
    offset: int = 5
    user: str = "ann"
    counted: bool = False
    kind: str = "single"
    key: str = ""
    fingerprint: bytes = b"\x00\xff body."
    last4: str = "WXYZ"
    amount: str = ""
    order: str = ""
    actor: str = "key_1"
    ending: str = ""
    is_void: bool = False  # by its batch or its range


class Shard:
    """One shard's raw keys, and the script called on them as the batcher calls it."""

    def __init__(self, redis: Redis, number: int, now_s: int) -> None:
        self.redis = redis
        self.number = number
        # No window ends while a test runs.
        self.window_s = next(
            window_s
            for window_s in range(86_400, 60_000, -1000)
            if EDGE_MARGIN_S < now_s % window_s < window_s - EDGE_MARGIN_S
        )
        self.epoch = now_s // self.window_s

    async def add_campaign(self, name: str = "cmp_1", /, **fields: Any) -> None:  # noqa: ANN401 - by their names
        plain: dict[Any, Any] = dict.fromkeys(UNSET, "") | {"id": name, "state": "active", "kind": "single"}
        await self.redis.hset(self.campaign(name), mapping=plain | fields)

    async def set_state(self, attempt: Attempt, state: int) -> None:
        bits = self.redis.bitfield(self.state(attempt))
        await bits.set("u2", f"#{attempt.offset}", state).execute()

    async def get_state(self, attempt: Attempt) -> int:
        bits = self.redis.bitfield(self.state(attempt))
        (state,) = await bits.get("u2", f"#{attempt.offset}").execute()
        return int(state)

    async def call(
        self,
        *attempts: Attempt,
        version: int = VERSION,
        epoch: int | None = None,
        script: Script = Redemption.script,
    ) -> list[Any]:
        """The answer as it is."""
        epoch = self.epoch if epoch is None else epoch
        names = keys.of_every_script(self.number)
        columns: dict[str, dict[int, str | int | None]] = {name: {} for name in script.attempt}
        raw: list[bytes] = []

        def place_of(name: str) -> int:
            if name not in names:
                names.append(name)
            return names.index(name) + 1

        def raw_at(data: bytes) -> int:
            raw.append(data)
            return len(SIGNATURE) + len(raw)

        for number, attempt in enumerate(attempts, start=1):
            values: dict[str, str | int | None] = {
                "campaign_at": place_of(self.campaign(attempt.campaign)),
                "state_at": 0 if attempt.is_void else place_of(self.state(attempt)),
                "used_at": place_of(self.used(attempt)) if attempt.kind != "single" else None,
                "used_field": serial(attempt) if attempt.kind == "multi" else attempt.offset,
                "users_at": place_of(self.users(attempt)) if attempt.counted else None,
                "idempotency_at": place_of(self.idempotency_records(epoch)) if attempt.key else None,
                "user_digest_at": raw_at(digest(attempt.user)) if attempt.counted else None,
                "idempotency_digest_at": raw_at(digest(attempt.key)) if attempt.key else None,
                "about": about_json(attempt.batch, serial(attempt), attempt.last4, attempt.user),
                "cause": cause_json(attempt.order or None, attempt.key or None, attempt.actor),
            }
            if attempt.key:
                place_of(self.idempotency_records(epoch - 1))
                raw_at(attempt.fingerprint)
            for name, column in columns.items():
                value = values[name] if name in values else getattr(attempt, name)
                if name not in SPARSE or value not in {None, ""}:
                    column[number] = value
        packed = [column if name in SPARSE else list(column.values()) for name, column in columns.items()]
        arguments = (self.number, version, epoch, self.window_s, pack_columns(packed))
        answer: list[Any] = await evaluate(self.redis, script, names, (*arguments, *raw))
        return answer

    async def redeem(self, *attempts: Attempt, epoch: int | None = None) -> list[str]:
        """One answer for each attempt."""
        status, *answers = await self.call(*attempts, epoch=epoch)
        assert status == b"ok"
        assert len(answers) == len(attempts)
        return [answer.decode() for answer in answers]

    async def events(self) -> list[tuple[str, dict[str, str]]]:
        entries = await read_events(self.redis, self.number)
        return [
            (stream_id.decode(), {name.decode(): value.decode() for name, value in fields.items()})
            for stream_id, fields in entries
        ]

    async def hash_of(self, name: str) -> dict[bytes, bytes]:
        content: dict[Any, Any] = await self.redis.hgetall(name)
        return content

    async def redeemed(self, campaign: str = "cmp_1") -> int:
        return int(await self.redis.hget(self.campaign(campaign), "uses") or 0)

    def campaign(self, campaign: str) -> str:
        return keys.campaign(self.number, campaign)

    def state(self, attempt: Attempt) -> str:
        return keys.state(self.number, attempt.batch, attempt.segment)

    def used(self, attempt: Attempt) -> str:
        if attempt.kind == "multi":
            return keys.uses(self.number, attempt.batch)
        return keys.spent(self.number, attempt.batch, attempt.segment)

    def users(self, attempt: Attempt) -> str:
        return keys.users(self.number, attempt.campaign, BUCKET)

    def idempotency_records(self, epoch: int) -> str:
        return keys.idempotency_records(self.number, epoch, BUCKET)


def digest(text: str) -> bytes:
    return b"\x00digest of " + text.encode()


def serial(attempt: Attempt) -> int:
    return attempt.segment * keys.SEGMENT_CODES + attempt.offset


def stream_id(answer: str) -> tuple[int, int]:
    match = re.fullmatch(r"(?:replayed )?redeemed (\d+)-(\d+) (\d*)", answer)
    assert match, answer
    return int(match[1]), int(match[2])
