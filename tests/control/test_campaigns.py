from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from engine.control import batches, campaigns
from engine.control.campaigns import STATES, TRANSITIONS, Campaign, CampaignChange, NewCampaign
from engine.errors import Refusal

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

CREATED = datetime(2030, 1, 1, tzinfo=UTC)
NUMBER_MAX = 2**53 - 1


def campaign(**fields: Any) -> Campaign:  # noqa: ANN401 - its fields, by name
    plain: dict[str, Any] = dict.fromkeys(Campaign.__struct_fields__)
    plain |= {"id": "cmp_1", "name": "Sale", "kind": "single", "state": "draft", "created_at": CREATED}
    return Campaign(**plain | fields)


def refusal(changes: CampaignChange, of: Campaign, *, has_batches: bool = False) -> str:
    with pytest.raises(Refusal) as caught:
        campaigns.revise(of, changes, has_batches=has_batches)
    return f"{caught.value.code}: {caught.value.detail}"


def test_the_face_value_is_fixed_once_there_are_codes() -> None:
    """A draft with codes may have adjusted balances already: another amount would change what they hold."""
    draft = campaign(kind="balance", amount=1000, currency="EUR")
    assert campaigns.revise(draft, CampaignChange(amount=100), has_batches=False).amount == 100
    for change in (CampaignChange(amount=100), CampaignChange(currency="JPY")):
        assert "has codes" in refusal(change, draft, has_batches=True)


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"),
    ({"name": "   "}, "name"),
    ({"name": "x" * 201}, "name"),
    ({"name": "a\0b"}, "control"),
    ({"name": "a\nb"}, "control"),
    ({"name": "a\x7fb"}, "control"),
    ({"name": "a\ud800b"}, "control"),
    ({"kind": "multi"}, "max_uses"),
    ({"kind": "multi", "max_uses": 0}, "max_uses"),
    ({"max_uses": 3}, "max_uses"),
    ({"kind": "balance"}, "amount"),
    ({"budget": 100}, "amount"),
    ({"budget": -1, "amount": 5, "currency": "EUR"}, "budget"),
    ({"kind": ""}, "kind"),
    ({"state": "paused"}, "state"),
    ({"state": "ended"}, "state"),
    ({"state": "open"}, "state"),
    ({"amount": -1, "currency": "EUR"}, "amount"),
    ({"amount": NUMBER_MAX + 1, "currency": "EUR"}, "amount"),
    ({"amount": 10**30, "currency": "EUR"}, "amount"),
    ({"amount": 1}, "together"),
    ({"currency": "EUR"}, "together"),
    ({"amount": 1, "currency": "eur"}, "currency"),
    ({"amount": 1, "currency": "EUO"}, "currency"),
    ({"amount": 1, "currency": ""}, "currency"),
    ({"stock": -1}, "stock"),
    ({"stock": NUMBER_MAX + 1}, "stock"),
    ({"per_user_limit": 0}, "per_user_limit"),
    ({"starts_at": "2030-01-01T00:00:00"}, "starts_at needs a zone"),
    ({"ends_at": "2030-01-01"}, "ends_at must be a time"),
    ({"ends_at": "tomorrow"}, "ends_at must be a time"),
    ({"ends_at": ""}, "ends_at must be a time"),
    ({"ends_at": "2030-02-30T00:00:00Z"}, "does not exist|that exists"),
    ({"ends_at": "2030-01-01T24:61:00Z"}, "that exists"),
    ({"ends_at": "0001-01-01T00:00:00+23:00"}, "that exists"),
    ({"ends_at": "२०३०-01-01T00:00:00Z"}, "ends_at must be a time"),
    ({"starts_at": "2030-01-01T00:00:00Z", "ends_at": "2030-01-01T00:00:00Z"}, "after"),
    ({"starts_at": "2030-01-01T00:00:00Z", "ends_at": "2030-01-01T01:00:00+02:00"}, "after"),
]


@pytest.mark.parametrize(("fields", "word"), MALFORMED)
def test_a_malformed_definition_is_refused_naming_the_field(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(Refusal, match=word) as caught:
        campaigns.define(NewCampaign(**{"name": "Sale"} | fields))
    assert caught.value.code == "malformed_request"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2030-01-31T09:00:00Z", "2030-01-31T09:00:00.000Z"),
        ("2030-01-31T09:00:00.123456Z", "2030-01-31T09:00:00.123Z"),
        ("2030-01-31t09:00:00z", "2030-01-31T09:00:00.000Z"),
        ("2030-01-31 09:00+02:00", "2030-01-31T07:00:00.000Z"),
        ("2030-01-31T09:00:00-0330", "2030-01-31T12:30:00.000Z"),
    ],
)
def test_times_are_understood_in_any_zone_and_shown_in_utc(text: str, shown: str) -> None:
    definition = campaigns.define(NewCampaign(name="Sale", starts_at=text))
    assert campaign(starts_at=definition.starts_at).document()["starts_at"] == shown


def test_the_extremes_of_every_field_are_accepted() -> None:
    definition = campaigns.define(
        NewCampaign(
            name="🎉" * 200,
            state="active",
            amount=NUMBER_MAX,
            currency="JPY",
            stock=0,
            per_user_limit=NUMBER_MAX,
            starts_at="1970-01-01T00:00:00Z",
            ends_at="9999-12-31T23:59:59.999Z",
        )
    )
    assert definition.limited
    assert definition.amount == NUMBER_MAX


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_the_state_goes_only_where_the_machine_allows(before: str, after: str) -> None:
    of, changes = campaign(state=before), CampaignChange(state=after)
    if after == before or after in TRANSITIONS[before]:
        assert campaigns.revise(of, changes, has_batches=False).state == after
    else:
        assert after in refusal(changes, of) or before == "ended"


def test_an_unknown_state_is_refused() -> None:
    assert "state must be" in refusal(CampaignChange(state="open"), campaign())


def test_an_ended_campaign_can_only_be_renamed() -> None:
    ended = campaign(state="ended")
    assert campaigns.revise(ended, CampaignChange(name="Old"), has_batches=True).name == "Old"
    for changes in (CampaignChange(state="active"), CampaignChange(ends_at="2040-01-01T00:00:00Z")):
        assert refusal(changes, ended).startswith("campaign_ended")


def test_the_face_value_is_fixed_once_it_left_draft() -> None:
    new_value = CampaignChange(amount=5, currency="EUR")
    assert campaigns.revise(campaign(), new_value, has_batches=False).amount == 5
    assert "fixed" in refusal(new_value, campaign(state="paused"))
    worth_five = campaign(state="active", amount=5, currency="EUR")
    assert "fixed" in refusal(CampaignChange(amount=None, currency=None), worth_five)
    assert campaigns.revise(worth_five, CampaignChange(amount=5, name="x"), has_batches=True).amount == 5


@pytest.mark.parametrize("limit", ["stock", "per_user_limit"])
def test_a_limit_is_moved_and_removed_but_never_added_after_draft(limit: str) -> None:
    limited = campaign(state="active", pinned_shard=0, **{limit: 10})
    changes: dict[str, Any] = {}
    for value in (20, 1, None):
        changes[limit] = value
        revised = campaigns.revise(limited, CampaignChange(**changes), has_batches=True)
        assert getattr(revised, limit) == value
    unlimited = campaign(state="active", pinned_shard=0)
    assert "cannot be added" in refusal(CampaignChange(**{**changes, limit: 10}), unlimited, has_batches=True)


def test_a_limit_is_added_to_a_draft_unless_its_codes_are_spread() -> None:
    changes = CampaignChange(stock=5)
    assert campaigns.revise(campaign(), changes, has_batches=False).stock == 5
    assert campaigns.revise(campaign(pinned_shard=0), changes, has_batches=True).stock == 5
    assert "spread" in refusal(changes, campaign(), has_batches=True)


def test_a_change_is_checked_together_with_what_stays() -> None:
    of = campaign(starts_at=datetime(2030, 1, 2, tzinfo=UTC))
    assert "after" in refusal(CampaignChange(ends_at="2030-01-01T00:00:00Z"), of)
    assert "together" in refusal(CampaignChange(amount=5), of)
    assert "kind" in refusal(CampaignChange(kind="multi"), of)
    assert "name" in refusal(CampaignChange(name=""), of)


async def test_what_was_created_is_what_is_read(plane: ControlPlane) -> None:
    definition = campaigns.define(
        NewCampaign(
            name="Gift card ✓",
            state="active",
            amount=2500,
            currency="EUR",
            stock=10,
            per_user_limit=2,
            starts_at="2030-01-01T00:00:00.5Z",
            ends_at="2031-01-01T00:00:00+01:00",
        )
    )
    made = (await campaigns.create(plane, definition)).value
    assert await campaigns.get(plane, made.id) == made
    assert {name: getattr(made, name) for name in definition.__struct_fields__} == msgspec.structs.asdict(
        definition
    )
    document = made.document()
    assert document["starts_at"] == "2030-01-01T00:00:00.500Z"
    assert document["ends_at"] == "2030-12-31T23:00:00.000Z"
    assert set(document) == set(Campaign.__struct_fields__)


@pytest.mark.parametrize("shards", [3])
async def test_a_limited_campaign_is_pinned_by_its_number_and_another_is_spread(plane: ControlPlane) -> None:
    for _ in range(4):
        limited = await campaigns.create(plane, campaigns.define(NewCampaign(name="a", stock=1)))
        spread = await campaigns.create(plane, campaigns.define(NewCampaign(name="b")))
        assert limited.value.pinned_shard == int(limited.value.id.removeprefix("cmp_")) % 3
        assert spread.value.pinned_shard is None


@pytest.mark.parametrize("shards", [2])
async def test_placement_follows_the_limits_of_a_draft_until_it_has_codes(plane: ControlPlane) -> None:
    made = (await campaigns.create(plane, campaigns.define(NewCampaign(name="a")))).value
    pinned = (await campaigns.update(plane, made.id, CampaignChange(stock=5))).value
    assert pinned.pinned_shard is not None
    assert (await campaigns.update(plane, made.id, CampaignChange(stock=None))).value.pinned_shard is None
    await campaigns.update(plane, made.id, CampaignChange(per_user_limit=5))
    await batches.mint(plane, made.id, batches.NewBatch(10), created_by="test")
    kept = (await campaigns.update(plane, made.id, CampaignChange(per_user_limit=None))).value
    assert kept.pinned_shard == pinned.pinned_shard


async def test_a_refused_change_leaves_everything_as_it_was(plane: ControlPlane) -> None:
    made = (await campaigns.create(plane, campaigns.define(NewCampaign(name="a", state="active")))).value
    with pytest.raises(Refusal):
        await campaigns.update(plane, made.id, CampaignChange(name="b", stock=5))
    assert await campaigns.get(plane, made.id) == made


@pytest.mark.parametrize("campaign_id", ["cmp_999", "cmp_", "cmp_01", "x", "", "cmp_1\0", "cmp_" + "9" * 30])
async def test_an_unknown_campaign_is_not_found(plane: ControlPlane, campaign_id: str) -> None:
    with pytest.raises(Refusal, match="campaign_not_found"):
        await campaigns.get(plane, campaign_id)
    with pytest.raises(Refusal, match="campaign_not_found"):
        await campaigns.update(plane, campaign_id, CampaignChange(name="b"))


async def test_pages_join_to_all_campaigns_in_order(plane: ControlPlane) -> None:
    made = [
        (await campaigns.create(plane, campaigns.define(NewCampaign(name=f"{number}")))).value.id
        for number in range(5)
    ]
    seen: list[str] = []
    after = None
    while found := await campaigns.page(plane, after=after, limit=2):
        seen += [item.id for item in found]
        after = seen[-1]
    assert seen == made
    with pytest.raises(Refusal, match="cursor"):
        await campaigns.page(plane, after="nonsense", limit=2)
