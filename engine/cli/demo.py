"""Creates the demo campaign of ``redeem up --demo``, and prints commands that try it out."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import orjson

from engine.cli.connect import plane_on
from engine.codes import mint_keys
from engine.codes.codec import Codec
from engine.codes.formats import DEFAULT_FORMAT
from engine.control import api_keys, batches, campaigns
from engine.control.batches import NewBatch
from engine.control.campaigns import NewCampaign
from engine.store import keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.settings import Settings

_log = logging.getLogger(__name__)
NAME: Final = "Demo"
CODES: Final = 10_000
AMOUNT: Final = 500  # five euros
CURRENCY: Final = "EUR"
CREATED_BY: Final = "demo"


async def show(settings: Settings, url: str) -> None:
    """Create the demo and print its commands; a failure is logged and the engine goes on."""
    try:
        await _show(settings, url)
    except Exception as error:  # noqa: BLE001 - the engine works without the demo
        _log.warning("the demo campaign cannot be shown", extra={"reason": str(error)})


async def _show(settings: Settings, url: str) -> None:
    """Create the demo campaign if there are no campaigns, and print how to redeem its next code.

    Two files in the data directory, readable only by their owner, are for later starts: ``demo.json`` names
    the demo's campaign and batch, and ``demo-key`` is its API key. The printed commands read it from there.
    """
    note, key_file = settings.data_dir / "demo.json", settings.data_dir / "demo-key"
    async with plane_on(settings) as plane:
        if not note.exists():
            if await campaigns.page(plane, after=None, limit=1):
                return
            created, key = await _create(plane)
            _write(key_file, key.encode())
            _write(note, orjson.dumps(created))
        demo = orjson.loads(note.read_bytes())
        if "key" in demo and not key_file.exists():  # of an earlier version
            _write(key_file, demo["key"].encode())
        batch = await batches.get(plane, demo["batch"])
        if (batch.campaign, batch.created_by) != (demo["campaign"], CREATED_BY):
            return  # demo.json belongs to another deployment
        serial = await _next_serial(plane.redis, batch.id)
        if serial is None:
            return
        available = mint_keys.from_settings(settings)
        code = Codec(available.by_name).code(batch.mint_key, DEFAULT_FORMAT, "", batch.id, serial)
    key = f'"Authorization: Bearer $(cat {shlex.quote(_shown(key_file))})"'
    click.echo(_LINES.format(url=url, header=key, code=code, number=serial), nl=False)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _shown(path: Path) -> str:
    """Return a path as it can be typed here: relative, if it is below the working directory."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


async def _create(plane: ControlPlane) -> tuple[dict[str, object], str]:
    definition = campaigns.define(
        NewCampaign(name=NAME, kind="single", amount=AMOUNT, currency=CURRENCY, state="active")
    )
    campaign = (await campaigns.create(plane, definition)).value
    minted = (await batches.mint(plane, campaign.id, NewBatch(count=CODES), created_by=CREATED_BY)).value
    key = (await api_keys.create(plane, NAME, ["redeem", "read"], actor=CREATED_BY)).value
    return {"campaign": campaign.id, "batch": minted.batch.id}, key.key


async def _next_serial(redis: Redis, batch: int) -> int | None:
    """Return the first serial that shard 0 has not redeemed. One shard is enough to show the demo."""
    state: bytes = await redis.get(keys.state(0, batch, 0)) or b""  # type: ignore[assignment] # bytes, as asked
    for serial in range(CODES):
        at, bit = divmod(2 * serial, 8)
        if at >= len(state) or not state[at] >> (6 - bit) & 0b11:
            return serial
    return None


_LINES: Final = """
redeem a demo code:

  curl -sSw "\\n" {url}/v1/redemptions -H {header} \\
    -H 'Content-Type: application/json' -H 'Idempotency-Key: demo-{number}' \\
    -d '{{"code": "{code}", "user": "demo"}}'

show its record:

  curl -sSw "\\n" '{url}/v1/redemptions?user=demo&limit=1' -H {header}
"""
