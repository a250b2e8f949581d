"""What became of an attempt, as values; ``answers`` encodes them. Field names are those of the contract."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Redeemed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A redemption. ``amount`` and ``balance`` in minor units; only ``balance`` codes have a ``balance``."""

    id: str
    status: Literal["redeemed"] = "redeemed"
    campaign: str
    code: str
    user: str
    amount: int | None
    currency: str | None
    balance: int | UnsetType = UNSET
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
    """A hold that ended without a redemption; ``amount`` went back."""

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
    """A redemption that was undone: ``returned`` by this call, ``rolled_back`` so far."""

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
    """A code that was made void, or good again; ``void`` says what holds now, its batch considered."""

    status: Literal["voided", "unvoided"]
    campaign: str
    batch: int
    serial: int
    code: str
    changed: bool
    void: bool
    replayed: bool = False


class Checked(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a redemption of a code would be answered, and the code's state."""

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
        """A check has no idempotency record."""
        return False


class RedeemedTogether(msgspec.Struct, frozen=True):
    """Several codes that were redeemed for one order, in the order of the request."""

    order: str
    redemptions: list[Redeemed]
    replayed: bool = False


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A refusal or a fault; nothing was done, except perhaps with ``outcome_unknown``.

    Attributes:
        code: a key of ``engine.api.problems.PROBLEMS``.
        detail: a sentence for this refusal; empty for the usual one.
        retry_after_s: after which the same request may fare better; 0 where nobody knows.
    """

    code: str
    detail: str = ""
    retry_after_s: int = 0
    replayed: bool = False


class RefusedTogether(msgspec.Struct, frozen=True):
    """A combined redemption that was refused: the refusal of each code, by its position in the request."""

    refusals: dict[int, str]
    retry_after_s: int = 0
    replayed: bool = False

    @property
    def code(self) -> str:
        """The refusal of the first code that was refused."""
        return self.refusals[min(self.refusals)]


class Retry(enum.Enum):
    """The attempt must be made anew; no client ever sees this."""

    STALE_HOLD = "stale_hold"  # the hold's record was renewed since it was read


Success = Redeemed | Held | Released | RolledBack | Adjusted | Voided | Checked | RedeemedTogether
Outcome = Success | Refused | RefusedTogether | Retry
