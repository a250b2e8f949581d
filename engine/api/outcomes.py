"""Outcomes of attempts, as values. ``answers`` encodes them. The field names are part of the contract."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Redeemed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A redemption. ``amount`` and ``balance`` are in minor units; only ``balance`` codes have the latter.

    ``hold``: the hold that was confirmed; only the answer to a confirmation has it.
    """

    id: str
    status: Literal["redeemed"] = "redeemed"
    campaign: str
    code: str
    user: str
    amount: int | None
    currency: str | None
    balance: int | UnsetType = UNSET
    order: str | None = None  # missing in answers that an earlier version stored
    hold: str | UnsetType = UNSET
    redeemed_at: str
    replayed: bool = False


class Held(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A live hold."""

    id: str
    status: Literal["held"] = "held"
    campaign: str
    code: str
    user: str
    amount: int | None
    currency: str | None
    balance: int | UnsetType = UNSET
    order: str
    expires_at: str
    replayed: bool = False


class Released(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A hold that ended without a redemption. ``amount`` was given back."""

    id: str
    status: Literal["released"] = "released"
    campaign: str
    code: str
    user: str
    amount: int | None
    currency: str | None
    order: str
    released_at: str
    replayed: bool = False


class RolledBack(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A redemption that was undone. Given back: ``returned`` by this call, ``rolled_back`` in total."""

    id: str
    status: Literal["rolled_back", "partly_rolled_back"]
    campaign: str
    code: str
    user: str
    amount: int | None
    currency: str | None
    returned: int | None
    rolled_back: int | None
    balance: int | UnsetType = UNSET
    rolled_back_at: str
    replayed: bool = False


class Adjusted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A balance that was changed by ``amount``."""

    id: str
    status: Literal["adjusted"] = "adjusted"
    campaign: str
    code: str
    amount: int
    currency: str | None
    balance: int
    adjusted_at: str
    replayed: bool = False


class Voided(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A code that was made void or valid again. ``void``: it is void now, by itself or by its batch."""

    status: Literal["voided", "unvoided"]
    campaign: str
    batch: int
    serial: int
    code: str
    changed: bool
    void: bool
    replayed: bool = False


class Checked(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer that a redemption of the code would get, and the code's state."""

    redeemable: bool
    refusal: str | None
    retry_after_s: int | UnsetType = UNSET
    campaign: str
    campaign_state: str
    kind: str
    code: str
    state: str
    amount: int | None
    currency: str | None
    balance: int | UnsetType = UNSET
    uses_left: int | UnsetType = UNSET
    starts_at: str | None
    ends_at: str | None

    @property
    def replayed(self) -> bool:
        """Always False: a check has no idempotency record."""
        return False


class RedeemedTogether(msgspec.Struct, frozen=True):
    """The redemptions of a combined redemption, in the order of the request's codes."""

    order: str
    redemptions: list[Redeemed]
    replayed: bool = False


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A refusal or a fault. Nothing was done, unless the code is ``outcome_unknown``: then perhaps.

    Attributes:
        code: a key of ``engine.api.problems.PROBLEMS``.
        detail: a sentence for this refusal; empty for the sentence of the table.
        retry_after_s: seconds after which the same request may succeed; 0 if unknown.
        redemption: the redemption that a confirmed hold has become; empty in all other refusals.
    """

    code: str
    detail: str = ""
    retry_after_s: int = 0
    replayed: bool = False
    redemption: str = ""


class RefusedTogether(msgspec.Struct, frozen=True):
    """A combined redemption that was refused: the refusal of each code, by its position in the request."""

    refusals: dict[int, str]
    retry_after_s: int = 0
    replayed: bool = False

    @property
    def code(self) -> str:
        """The refusal of the first code that was refused."""
        return self.refusals[min(self.refusals)]


class Challenged(msgspec.Struct, frozen=True):
    """A call that must solve a challenge first. Nothing was done, and no code was looked at.

    Attributes:
        reason: ``missing``, or what is wrong with the solution that came.
        challenge: a new challenge, as ``altcha`` reads it.
    """

    reason: str
    challenge: dict[str, object]


class Retry(enum.Enum):
    """The attempt must be made again. This never reaches a client."""

    STALE_HOLD = "stale_hold"  # the hold's record has changed since it was read


Success = Redeemed | Held | Released | RolledBack | Adjusted | Voided | Checked | RedeemedTogether
Outcome = Success | Refused | RefusedTogether | Retry
