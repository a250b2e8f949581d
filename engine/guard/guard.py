"""Judges each attempt to redeem, hold or check a code, before the code is looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.api.outcomes import Refused
from engine.guard.addresses import parse_address

if TYPE_CHECKING:
    from engine.api.checks import Client
    from engine.guard.block_table import BlockTable
    from engine.store.configuration import CachedKey

BLOCKED: Final = "blocked"


class Guard:
    """Judges the attempts of one worker.

    Attributes:
        watches: whether there is anything to judge by. While it is False, ``judge`` need not be called.
    """

    def __init__(self, blocks: BlockTable) -> None:
        self._blocks = blocks
        self.watches = False
        self._look()
        blocks.on_change = self._look

    def _look(self) -> None:
        self.watches = len(self._blocks) > 0

    def judge(self, api_key: CachedKey, user: str, client: Client | None) -> Refused | None:
        """Return the refusal of an attempt; None if it may go on.

        The source is what the caller says about its customer. The address of the caller itself is that of a
        merchant's backend, so it does not count.
        """
        address = None if client is None or client.ip is None else parse_address(client.ip)
        device = None if client is None else client.device
        verdict = self._blocks.verdict(api_key.id, user, address, device)
        if verdict is None or verdict.action == "allow":
            return None
        return Refused(BLOCKED, f"The {verdict.kind} is blocked: blk_{verdict.id}.")
