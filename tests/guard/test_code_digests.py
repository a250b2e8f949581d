"""Guessers cannot choose codes that count as one, and the stream of attempts does not help to guess codes."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from engine.control import blocks
from engine.guard.code_digests import CodeDigests
from engine.settings import Settings
from tests.support.deployment import engine_in_process
from tests.support.guessing import alike_in_crc32
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from pathlib import Path

    from engine.control.change import ControlPlane

ONE, OTHER = (Settings(mint_keys=f"k1:{digit * 64}") for digit in "12")


def digests_of(settings: Settings) -> CodeDigests:
    digests = CodeDigests(settings)
    digests.renew()
    return digests


async def test_codes_that_share_a_checksum_are_different_codes(plane: ControlPlane) -> None:
    codes = alike_in_crc32(20, seed=1)
    assert len({zlib.crc32(code.encode()) for code in codes}) == 1
    async with engine_in_process(plane, guard_score_mode="enforce") as merchant:
        for code in codes:
            await merchant.redeem(code, "eve")

        async def is_blocked() -> bool:
            return bool((await merchant.redeem(codes[0], "eve"))[1]["code"] == "blocked")

        await wait_until_async(is_blocked)
    (made,) = await blocks.page(plane, after=None, limit=9)
    assert made.subject == "eve"


def test_workers_with_the_same_mint_keys_agree_and_others_cannot_tell() -> None:
    codes = [b"SPRING%d" % number for number in range(100)]
    assert [digests_of(ONE).of(code) for code in codes] == [digests_of(ONE).of(code) for code in codes]
    assert all(digests_of(ONE).of(code) != digests_of(OTHER).of(code) for code in codes)


def test_a_worker_that_cannot_read_the_mint_keys_still_tells_codes_apart(tmp_path: Path) -> None:
    digests = digests_of(Settings(data_dir=tmp_path))
    assert digests.of(b"A") == digests.of(b"A") != digests.of(b"B")
