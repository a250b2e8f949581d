"""Campaigns: checks their definitions and changes, and stores them in PostgreSQL.

Called from HTTP (``http.admin``) and from the command line (``cli.campaigns``). A campaign with limits
across its codes is pinned to one shard, so that one script call sees all of its state. A campaign without
such limits is spread over all shards.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from engine.api.cards import Card, card_in, check_card
from engine.api.checks import AMOUNT_MAX
from engine.control import audit_log
from engine.control.change import Change, Changed, ControlPlane, change
from engine.control.stored_texts import refuse_codes
from engine.errors import Refusal, not_a_cursor
from engine.queries import queries
from engine.times import parse_instant, shown_instant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.database import Database
    from engine.postgres_types import Connection, Row

KINDS: Final = ("single", "multi", "balance")
STATES: Final = ("draft", "active", "paused", "ended")
NAME_LENGTH_MAX: Final = 200
# For each state the states that may follow it; ``ended`` is final.
TRANSITIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "draft": ("active", "ended"),
    "active": ("paused", "ended"),
    "paused": ("active", "ended"),
    "ended": (),
}
LIMITS: Final = {"stock": 0, "per_user_limit": 1, "budget": 0}  # limits across codes, each with its minimum
REMOVABLE: Final = ("amount", "currency", *LIMITS, "starts_at", "ends_at", "card")

# ISO 4217, list one: the currencies in use, without funds, metals and test codes.
_CURRENCIES: Final = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP
CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG
HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL
MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR
RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD
TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
"""
CURRENCIES: Final = frozenset(_CURRENCIES.split())

_SQL: Final = queries(__package__, "campaigns")


class NewCampaign(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/campaigns``. ``amount`` and ``budget`` are in minor units of ``currency``."""

    name: str
    kind: str = "single"
    state: str = "draft"
    amount: int | None = None
    currency: str | None = None
    max_uses: int | None = None
    stock: int | None = None
    per_user_limit: int | None = None
    budget: int | None = None
    starts_at: str | None = None
    ends_at: str | None = None
    card: Card | None = None


class CampaignChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``PATCH /v1/campaigns/{id}``: null removes a value, a member that is left out stays."""

    name: str | UnsetType = UNSET
    kind: str | UnsetType = UNSET
    state: str | UnsetType = UNSET
    amount: int | UnsetType | None = UNSET
    currency: str | UnsetType | None = UNSET
    max_uses: int | UnsetType = UNSET
    stock: int | UnsetType | None = UNSET
    per_user_limit: int | UnsetType | None = UNSET
    budget: int | UnsetType | None = UNSET
    starts_at: str | UnsetType | None = UNSET
    ends_at: str | UnsetType | None = UNSET
    card: Card | UnsetType | None = UNSET


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What a merchant defines of a campaign, after all checks."""

    name: str
    kind: str
    state: str
    amount: int | None
    currency: str | None
    max_uses: int | None
    stock: int | None
    per_user_limit: int | None
    budget: int | None
    starts_at: datetime | None
    ends_at: datetime | None
    card: Card | None

    @property
    def limited(self) -> bool:
        """Whether the campaign has limits across its codes, and so must be pinned to one shard."""
        return any(getattr(self, name) is not None for name in LIMITS)


class Campaign(Definition, frozen=True, kw_only=True):
    """A campaign as stored in PostgreSQL."""

    id: str
    pinned_shard: int | None
    created_at: datetime

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        shown = {name: _shown(value) for name, value in msgspec.structs.asdict(self).items()}
        return {"id": shown.pop("id"), **shown}


def _shown(value: object) -> object:
    if isinstance(value, Card):
        return value.document()
    return shown_instant(value) if isinstance(value, datetime) else value


def define(new: NewCampaign) -> Definition:
    """Check the definition of a new campaign.

    Raises:
        Refusal: ``malformed_request``; the detail names the field and the values it takes.
    """
    if new.state not in {"draft", "active"}:
        raise _malformed("state of a new campaign must be draft or active")
    if new.kind not in KINDS:
        raise _malformed(f"kind must be {' or '.join(KINDS)}")
    definition = Definition(
        name=check_name(new.name),
        kind=new.kind,
        state=new.state,
        amount=new.amount,
        currency=new.currency,
        max_uses=new.max_uses,
        stock=new.stock,
        per_user_limit=new.per_user_limit,
        budget=new.budget,
        starts_at=_instant("starts_at", new.starts_at),
        ends_at=_instant("ends_at", new.ends_at),
        card=check_card(new.card),
    )
    _check(definition)
    return definition


def revise(campaign: Campaign, changes: CampaignChange, *, has_batches: bool) -> Definition:
    """Return the definition after a change, if the campaign's state and codes allow the change.

    The face value and the shards of the codes are fixed after draft, and as soon as the campaign has
    codes. Limits can be moved or removed but not added: earlier redemptions were not counted for them. Of an
    ended campaign only the name and the card can be changed.

    Raises:
        Refusal: ``malformed_request`` or ``campaign_ended``, with the reason.
    """
    asked = {
        name: _CHECKS[name](value) if name in _CHECKS else value
        for name, value in msgspec.structs.asdict(changes).items()
        if value is not UNSET
    }
    asked = {name: value for name, value in asked.items() if value != getattr(campaign, name)}
    if campaign.state == "ended" and asked.keys() - {"name", "card"}:
        raise Refusal("campaign_ended", "The campaign has ended: only its name and its card can be changed.")
    if "kind" in asked:
        raise _malformed("kind cannot be changed")
    if campaign.state != "draft" and "max_uses" in asked and asked["max_uses"] < (campaign.max_uses or 0):
        raise _malformed("max_uses can only be raised once the campaign left draft")
    _check_transition(campaign.state, asked.get("state", campaign.state))
    if (has_batches or campaign.state != "draft") and asked.keys() & {"amount", "currency"}:
        raise _malformed("amount and currency are fixed once the campaign has codes or left draft")
    for name in LIMITS:
        if asked.get(name) is not None and getattr(campaign, name) is None:
            _check_addition(campaign, name, has_batches=has_batches)
    current = {name: getattr(campaign, name) for name in Definition.__struct_fields__}
    definition = Definition(**current | asked)
    _check(definition)
    return definition


def check_name(name: str) -> str:
    """Return the name if it can be stored and shown.

    Raises:
        Refusal: ``malformed_request``.
    """
    if not 0 < len(name) <= NAME_LENGTH_MAX or name.isspace():
        raise _malformed(f"name must have 1 to {NAME_LENGTH_MAX} characters")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in name):
        raise _malformed("name must not have control characters")
    return name


async def create(plane: ControlPlane, definition: Definition, *, actor: str = "cli") -> Changed[Campaign]:
    """Store a new campaign and publish it. ``actor``: as in the audit log."""

    async def write(under: Change) -> Campaign:
        await _refuse_codes(under, plane, definition)
        number = await under.connection.fetchval(_SQL["next_number"])
        row = await under.connection.fetchrow(
            _SQL["insert"],
            f"cmp_{number}",
            definition.name,
            definition.kind,
            definition.state,
            definition.amount,
            definition.currency,
            definition.max_uses,
            definition.stock,
            definition.per_user_limit,
            definition.budget,
            definition.starts_at,
            definition.ends_at,
            number % under.shards if definition.limited else None,
            under.version,
            _stored(definition.card),
        )
        await audit_log.record(
            under.connection,
            act="create_campaign",
            actor=actor,
            subject=f"campaign:cmp_{number}",
            details={"name": definition.name, "kind": definition.kind, "state": definition.state},
        )
        return _campaign(row)

    return await change(plane, write)


async def update(
    plane: ControlPlane, campaign_id: str, changes: CampaignChange, *, actor: str = "cli"
) -> Changed[Campaign]:
    """Change a campaign and publish it. ``actor``: as in the audit log.

    Raises:
        Refusal: ``campaign_not_found``, or as ``revise``.
    """

    async def write(under: Change) -> Campaign:
        campaign = await find(under.connection, campaign_id)
        has_batches = await under.connection.fetchval(_SQL["has_batches"], campaign_id)
        revised = revise(campaign, changes, has_batches=has_batches)
        if (revised.name, revised.card) != (campaign.name, campaign.card):
            await _refuse_codes(under, plane, revised)
        pinned_shard = campaign.pinned_shard
        if campaign.state == "draft" and not has_batches:
            pinned_shard = _number(campaign_id) % under.shards if revised.limited else None
        row = await under.connection.fetchrow(
            _SQL["update"],
            campaign_id,
            revised.name,
            revised.state,
            revised.amount,
            revised.currency,
            revised.max_uses,
            revised.stock,
            revised.per_user_limit,
            revised.budget,
            revised.starts_at,
            revised.ends_at,
            pinned_shard,
            under.version,
            _stored(revised.card),
        )
        await audit_log.record(
            under.connection,
            act="update_campaign",
            actor=actor,
            subject=f"campaign:{campaign_id}",
            details=_differences(campaign, revised),
        )
        return _campaign(row)

    return await change(plane, write)


async def _refuse_codes(under: Change, plane: ControlPlane, definition: Definition) -> None:
    texts = {} if definition.card is None else dict(definition.card.all_texts())
    await refuse_codes(under.connection, plane.settings, name=definition.name, **texts)


def _stored(card: Card | None) -> str | None:
    return None if card is None else msgspec.json.encode(card).decode()


def _differences(before: Campaign, after: Definition) -> dict[str, object]:
    """Return the changed fields, each with its value before and after."""
    changed: dict[str, object] = {}
    for name in Definition.__struct_fields__:
        values = [getattr(before, name), getattr(after, name)]
        if values[0] != values[1]:
            changed[name] = [
                value.isoformat() if isinstance(value, datetime) else _shown(value) for value in values
            ]
    return changed


async def get(plane: ControlPlane, campaign_id: str) -> Campaign:
    """Return one campaign.

    Raises:
        Refusal: ``campaign_not_found``.
    """
    async with plane.database.connection() as connection:
        return await find(connection, campaign_id)


async def find(connection: Connection, campaign_id: str) -> Campaign:
    """Return one campaign, read over a given connection.

    Raises:
        Refusal: ``campaign_not_found``.
    """
    row = await connection.fetchrow(_SQL["get"], campaign_id) if _ID.fullmatch(campaign_id) else None
    if row is None:
        raise Refusal("campaign_not_found")
    return _campaign(row)


async def page(plane: ControlPlane, *, after: str | None, limit: int) -> list[Campaign]:
    """Return at most ``limit`` campaigns, the oldest first, starting after the one with the id ``after``."""
    if after is not None and not _ID.fullmatch(after):
        raise not_a_cursor()
    async with plane.database.connection() as connection:
        if after is None:
            rows = await connection.fetch(_SQL["first_page"], limit)
        else:
            rows = await connection.fetch(_SQL["page_after"], limit, after)
    return [_campaign(row) for row in rows]


async def newest(database: Database, limit: int) -> list[Campaign]:
    """Return the newest ``limit`` campaigns that have not ended."""
    async with database.connection() as connection:
        return [_campaign(row) for row in await connection.fetch(_SQL["newest"], limit)]


async def some(database: Database, campaign_ids: Sequence[str]) -> list[Campaign]:
    """Return the campaigns with these ids, in any order; those that do not exist are left out."""
    async with database.connection() as connection:
        return [_campaign(row) for row in await connection.fetch(_SQL["some"], list(campaign_ids))]


_ID: Final = re.compile(r"cmp_[1-9][0-9]{0,18}")


def _number(campaign_id: str) -> int:
    return int(campaign_id.removeprefix("cmp_"))


def _campaign(row: Row) -> Campaign:
    values = {name: row[name] for name in Campaign.__struct_fields__}
    return Campaign(**values | {"card": card_in(row["card"])})


def _malformed(detail: str) -> Refusal:
    return Refusal("malformed_request", detail)


def _check(definition: Definition) -> None:
    if (definition.amount is None) != (definition.currency is None):
        raise _malformed("amount and currency belong together: give both or neither")
    _check_number("amount", definition.amount, 0)
    if definition.currency is not None and definition.currency not in CURRENCIES:
        raise _malformed("currency must be an ISO 4217 code, such as EUR")
    _check_number("max_uses", definition.max_uses, 1)
    if (definition.kind == "multi") != (definition.max_uses is not None):
        raise _malformed(
            "max_uses is required for campaigns of the kind multi, and allowed for no other kind"
        )
    if definition.amount is None and (definition.kind == "balance" or definition.budget is not None):
        raise _malformed("a balance or a budget needs an amount, the face value, and its currency")
    for name, least in LIMITS.items():
        _check_number(name, getattr(definition, name), least)
    if definition.starts_at and definition.ends_at and definition.ends_at <= definition.starts_at:
        raise _malformed("ends_at must be after starts_at")


def _check_number(name: str, value: int | None, least: int) -> None:
    if value is not None and not least <= value <= AMOUNT_MAX:
        raise _malformed(f"{name} must be between {least} and {AMOUNT_MAX}")


def _check_transition(state: str, asked: str) -> None:
    if asked not in STATES:
        raise _malformed(f"state must be one of {', '.join(STATES)}")
    if asked != state and asked not in TRANSITIONS[state]:
        allowed = " or ".join(TRANSITIONS[state])
        raise _malformed(f"a campaign that is {state} can become {allowed}, not {asked}")


def _check_addition(campaign: Campaign, name: str, *, has_batches: bool) -> None:
    if campaign.state != "draft":
        raise _malformed(
            f"{name} cannot be added once the campaign left draft: earlier redemptions are not counted"
        )
    if has_batches and campaign.pinned_shard is None:
        raise _malformed(
            f"{name} cannot be added once the campaign has codes: they are spread over all shards,"
            " and a limit across codes is exact on one shard only"
        )


def _instant(name: str, text: str | None) -> datetime | None:
    return None if text is None else parse_instant(name, text)


_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "name": check_name,
    "card": check_card,
    "starts_at": lambda text: _instant("starts_at", text),
    "ends_at": lambda text: _instant("ends_at", text),
}
"""Checks of single members, each of which returns the value as it is stored."""
