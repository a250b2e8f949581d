from collections.abc import Callable

from engine.guard.signatures import SignedHead
from engine.lane.protocol import FastLane
from engine.lane.shared import Shared
from engine.redemption.core import Core
from engine.settings import Settings
from engine.store.configuration import CachedKey

class ExpressLane(FastLane): ...

def express_lanes(
    known_with: Callable[[str, str], CachedKey | None],
    verify_at_once: Callable[[CachedKey, SignedHead | None, bytes], bytes | None],
    core: Core,
) -> Callable[[Shared], Callable[[], ExpressLane]]: ...
def repeats(code: bytes, text: bytes) -> bool: ...
def has_shape_of_uuid(text: bytes) -> bool: ...
def blake2b(parts: list[bytes]) -> bytes: ...
def parse(
    data: bytes, settings: Settings
) -> tuple[str, str, int | str | None, str | None, str | None, str | None] | None: ...
