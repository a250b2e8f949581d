"""ARCHITECTURE.md lists the way of one redemption, from bytes to bytes; this follows one and compares.

The attempt is followed: a file is entered when a function of it is called with the attempt. Calls of the
attempt to itself do not count. Calls with parts of it (its code, its fields) do not count either: a function
that answers a question and returns is not on the way.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.api.outcomes import Redeemed
from engine.redemption.redeem import Redemption
from tests.support.deployment import engine_in_process, issue

if TYPE_CHECKING:
    from types import FrameType

    from engine.control.change import ControlPlane

ROOT: Final = Path(__file__).parents[2]
SCRIPT: Final = "lua/redeem.lua"


def listed() -> list[str]:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = text.partition("<!-- the way of one redemption")[2].partition("<!-- end -->")[0]
    return re.findall(r"^\d+\. `(\S+)`", block, re.MULTILINE)


class Follower:
    """Hears of every call of this thread; ``files`` are those that the attempt has entered, in order."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self._attempt: Redemption | None = None
        self._ended = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        path = Path(code.co_filename)
        if self._ended or event != "call" or not path.is_relative_to(ROOT / "engine"):
            return
        arguments = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]]
        if self._attempt is None:
            if arguments and isinstance(arguments[0], Redemption) and code.co_name == "__init__":
                self._attempt = arguments[0]
                self._enter_those_who_made_it(frame.f_back)
        elif any(argument is self._attempt for argument in arguments):
            if not (arguments[0] is self._attempt and self._is_within_attempt(frame.f_back)):
                self._enter(path)
        elif any(isinstance(argument, Redeemed) for argument in arguments) and path.parent.name == "lane":
            self._enter(path)
            self._ended = True

    def _enter_those_who_made_it(self, frame: FrameType | None) -> None:
        made_by: list[Path] = []
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT / "engine"):
                made_by.insert(0, path)
            frame = frame.f_back
        for path in made_by:
            self._enter(path)

    def _is_within_attempt(self, frame: FrameType | None) -> bool:
        return frame is not None and frame.f_locals.get("self") is self._attempt

    def _enter(self, path: Path) -> None:
        name = str(path.relative_to(ROOT))
        if self.files[-1:] != [name]:
            self.files.append(name)


async def test_a_redemption_goes_the_way_that_is_drawn_and_enters_no_file_twice(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 2)
    async with engine_in_process(plane, lane="python") as merchant:
        assert (await merchant.redeem(codes[0]))[0] == 200  # from here on its key and its heads are known
        host, port = merchant.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"code": "%b", "user": "ann"}' % codes[1].encode()
        head = (
            f"POST /v1/redemptions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {merchant.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        follower = Follower()
        before = sys.getprofile()
        sys.setprofile(follower)
        try:
            writer.write(head.encode() + body)
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        finally:
            sys.setprofile(before)
            writer.close()
    drawn = listed()
    lane, *_ = drawn
    assert len(set(drawn)) == len(drawn)
    assert follower.files == [*(name for name in drawn if name != SCRIPT), lane]
