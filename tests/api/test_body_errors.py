"""A refused body is told which field is wrong and what was expected; never what a value was."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest

from engine.api import bodies
from engine.api.bodies import BatchItem, CombinedRequest, RedeemRequest, ReleaseRequest, RollbackRequest
from engine.api.body_errors import SHORTEST_CODE
from engine.codes.formats import FORMATS
from engine.control.api_keys import NewApiKey
from engine.control.campaigns import CampaignChange
from engine.errors import Refusal

CODE: Final = "9NSY-MP1E-JSYP-G8W3"
GOOD: Final[dict[str, Any]] = {"code": CODE, "user": "ann"}


def detail(body_type: type, body: object) -> str:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Refusal) as refused:
        bodies.decoded(msgspec.json.Decoder(body_type).decode, data)
    assert refused.value.code == "malformed_request"
    assert "9NSY" not in refused.value.detail.upper()
    return refused.value.detail


@pytest.mark.parametrize(
    ("body_type", "body", "told"),
    [
        (
            RedeemRequest,
            GOOD | {"amount": "10"},
            'amount must be a whole number or "up_to_balance", not another string.',
        ),
        (
            RedeemRequest,
            GOOD | {"amount": 1.5},
            'amount must be a whole number or "up_to_balance", not a number with a fraction.',
        ),
        (RedeemRequest, GOOD | {"code": 7}, "code must be a string, not a whole number."),
        (RedeemRequest, {"code": CODE}, "user is missing: a string is required."),
        (RedeemRequest, GOOD | {"client": {"ip": 1}}, "client.ip must be a string, not a whole number."),
        (
            RedeemRequest,
            GOOD | {"client": {"ipp": "1"}},
            "client has an unknown field: ipp. It takes ip, device and challenge.",
        ),
        (RedeemRequest, [GOOD], "The body must be a JSON object with code and user."),
        (RedeemRequest, b"code=" + CODE.encode(), "The body is not valid JSON. The error is at byte 0."),
        (RedeemRequest, json.dumps(GOOD).encode()[:-1], "The body is not valid JSON."),
        (
            CombinedRequest,
            {"codes": [{"code": CODE}, {"code": True}], "user": "ann", "order": "1"},
            "codes[1].code must be a string, not true or false.",
        ),
        (RollbackRequest, b"", "The body is missing. The body must be a JSON object with reason."),
        (RollbackRequest, {"reason": "a", "void": 1}, "void must be true or false, not a whole number."),
        (ReleaseRequest, {"hold": 1}, "The body has an unknown field: hold. It takes no fields."),
        (CampaignChange, b" ", "The body is missing. The body must be a JSON object."),
        (CampaignChange, {"stock": "1"}, "stock must be a whole number, not a string."),
        (NewApiKey, {"name": "a", "scopes": [1]}, "scopes[0] must be a string, not a whole number."),
    ],
)
def test_the_field_and_what_was_expected_are_named(body_type: type, body: object, told: str) -> None:
    assert detail(body_type, body) == told


def test_the_shortest_code_is_that_of_all_formats() -> None:
    assert min(fmt.length for fmt in FORMATS.values()) == SHORTEST_CODE


@pytest.mark.parametrize("name", ["colour", "reference", "batch_max", "idempotency_key", "per_user_limit"])
def test_a_field_that_the_call_does_not_take_is_named(name: str) -> None:
    assert f"unknown field: {name}. It takes code, user, " in detail(RedeemRequest, GOOD | {name: 1})


@pytest.mark.parametrize(
    "name",
    [
        CODE,
        CODE.lower(),
        CODE.replace("-", "_").lower(),
        "abcdefghjkmnpqrs",
        "abcd_efgh_jkmn_pqrs",
        "a b",
        "x1",
        "",
    ],
)
def test_a_field_whose_name_may_be_a_code_is_not_named(name: str) -> None:
    told = detail(BatchItem, GOOD | {name: 1})
    assert told.startswith("The body has an unknown field. It takes code, user, ")
