"""However a customer's name is typed, it is one user, with one limit; what cannot be seen is refused."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.deployment import engine_in_process, issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

NAME = "Zo\u00eb"


async def use(merchant: Merchant, path: str, code: str, user: str) -> tuple[int, Any]:
    more: dict[str, Any] = {"order": "o1"} if path != "codes/check" else {}
    body = {"code": code, "user": user, **more}
    if path == "redemptions/combined":
        body = {"codes": [{"code": code}], "user": user, **more}
    return await merchant.call("POST", f"/v1/{path}", json=body)


@pytest.mark.parametrize("path", ["redemptions", "holds", "redemptions/combined"])
async def test_a_name_in_another_normal_form_is_the_same_user(plane: ControlPlane, path: str) -> None:
    _, codes = await issue(plane, 2, per_user_limit=1)
    decomposed = unicodedata.normalize("NFD", NAME)
    assert decomposed != NAME
    async with engine_in_process(plane, scopes=("redeem", "read", "admin")) as merchant:
        status, done = await use(merchant, path, codes[0], decomposed)
        assert status == 200
        assert done.get("user", NAME) == NAME
        assert (await use(merchant, path, codes[1], NAME))[1]["code"] == "customer_limit_exceeded"
        assert (await use(merchant, "codes/check", codes[1], decomposed))[1]["refusal"] == (
            "customer_limit_exceeded"
        )
        if path == "redemptions":
            for name in (decomposed, NAME):
                found = await merchant.call("GET", f"/v1/redemptions?user={name}")
                assert [item["user"] for item in found[1]["items"]] == [NAME]
                assert (await merchant.call("GET", f"/v1/users/{name}"))[1]["id"] == NAME


@pytest.mark.parametrize(
    "user",
    [
        *(" ann", "ann ", " ", "an\u3164n", "\u115fann", "ann\u1160", "ann\uffa0", "a\u034fnn", "ann\ufe0f"),
        *(
            "ann\U000e0100",
            "ann\u180b",
            "\u2800",
            "a\u17b4nn",
            "a\u200bnn",
            "ann\u00a0",
            "\u2060ann",
            "a\u00adnn",
        ),
    ],
)
async def test_a_name_with_what_cannot_be_seen_is_refused(plane: ControlPlane, user: str) -> None:
    _, [code] = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        for path in ("redemptions", "holds", "redemptions/combined"):
            status, body = await use(merchant, path, code, user)
            assert (status, body["code"]) == (400, "malformed_request")
            assert body["detail"].startswith("user ")
