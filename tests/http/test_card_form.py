"""The customer page without JavaScript: the same attempts, limits and answers as the API, in plain HTML."""

from __future__ import annotations

import base64
import hashlib
import random
import re
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from engine.api.cards import Card, CardTexts, TextsByLanguage
from engine.control import campaigns
from engine.control.campaigns import CampaignChange
from engine.errors import OutcomeUnknown, StoreUnavailable
from engine.pages.plain_card import ACCENTS, LANGUAGES_TEXTS, language_of
from engine.redemption.one_answer import OneAnswerRedemption
from engine.store.configuration import SCOPES
from tests.support.browsers import FREE, ORIGIN, page_of
from tests.support.deployment import engine_in_process, issue
from tests.support.guessing import made_up
from tests.support.solving import EASY
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.redemption.attempt import Attempt
    from tests.support.deployment import Merchant

OWN: Final = {"Sec-Fetch-Site": "same-origin"}
REFUSED: Final = LANGUAGES_TEXTS["en"]["code_not_found"]
EVIL: Final = """"><script>alert(1)</script>'&"""


class Shown(NamedTuple):
    """A page that the form got."""

    status: int
    html: str
    policy: str

    @property
    def fields(self) -> dict[str, str]:
        """The hidden fields of its form."""
        pairs = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', self.html)
        return {name: unescape(value) for name, value in pairs}


class Form(NamedTuple):
    """A customer whose browser has no JavaScript."""

    merchant: Merchant
    key: str

    async def send(self, fields: dict[str, str], query: str = "", **headers: str) -> Shown:
        sent = OWN | {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.merchant.url}/card{query}"
        async with self.merchant.session.post(url, data=fields, headers=sent) as answer:
            assert answer.content_type == "text/html"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "X-Frame-Options" not in answer.headers
            policy = answer.headers["Content-Security-Policy"]
            assert "unsafe" not in policy
            return Shown(answer.status, await answer.text(), policy)

    async def look(self, code: str, **more: str) -> Shown:
        return await self.send({"key": self.key, "step": "card", "code": code, **more})


async def form_of(plane: ControlPlane, merchant: Merchant, *campaign_ids: str) -> Form:
    return Form(merchant, (await page_of(plane, merchant, *campaign_ids)).key)


async def test_the_code_is_looked_at_and_then_redeemed_once(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1, amount=1050, currency="EUR")
    texts = CardTexts(title="A gift", good_for="All teas.\nNo coffee.")
    card = Card(brand="Northwind", texts=TextsByLanguage(en=texts))
    await campaigns.update(plane, campaign, CampaignChange(card=card))
    async with engine_in_process(plane, scopes=SCOPES, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        shown = await form.look(f" {code.lower()} ")
        assert shown.status == 200
        assert f"form-action 'self'; frame-ancestors 'self' {ORIGIN}" in shown.policy
        for text in ("Northwind", "A gift", "10.50 EUR", "All teas.<br>No coffee.", "Redeem 10.50 EUR now"):
            assert text in shown.html
        _, listed = await merchant.call("GET", f"/v1/redemptions?campaign={campaign}")
        assert listed["items"] == []  # nothing is redeemed yet
        done = await form.send(shown.fields)
        again = await form.send(shown.fields)  # a second tap, or a reload
        assert (done.status, again) == (200, done)
        assert "10.50 EUR" in done.html
        _, listed = await merchant.call("GET", f"/v1/redemptions?campaign={campaign}")
        (record,) = listed["items"]
        assert record["id"] in done.html
        assert record["user"].startswith("guest-")
        assert code not in done.html
        spent = await form.look(code)
        assert (spent.status, REFUSED in unescape(spent.html)) == (404, True)
        entered = await form.send(done.fields)
        assert (entered.status, 'name="code"' in entered.html) == (200, True)


async def test_a_whole_balance_is_redeemed(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1, kind="balance", amount=1500, currency="JPY")
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        assert (await merchant.redeem(code, amount=500))[0] == 200
        shown = await form.look(code)
        assert "Balance</dt><dd>1000 JPY" in shown.html
        done = await form.send(shown.fields)
        assert "Taken</dt><dd>1000 JPY" in done.html
        assert "Left</dt><dd>0 JPY" in done.html


@pytest.mark.parametrize(
    ("currency", "amount", "taken", "left"),
    [
        ("EUR", "4.5", "4.50 EUR", "10.50 EUR"),
        ("EUR", " 15,00 ", "15.00 EUR", "0.00 EUR"),
        ("JPY", "1", "1 JPY", "1499 JPY"),
        ("KWD", "0.001", "0.001 KWD", "1.499 KWD"),
    ],
)
async def test_a_part_of_a_balance_is_redeemed(
    plane: ControlPlane, currency: str, amount: str, taken: str, left: str
) -> None:
    campaign, (code,) = await issue(plane, 1, kind="balance", amount=1500, currency=currency)
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        shown = await form.look(code)
        done = await form.send(shown.fields | {"amount": amount})
        assert f"Taken</dt><dd>{taken}" in done.html
        assert f"Left</dt><dd>{left}" in done.html
        assert await form.send(shown.fields | {"amount": amount}) == done
        other = await form.send(shown.fields)  # back, and the field is empty now
        assert (other.status, REFUSED in unescape(other.html)) == (404, True)


@pytest.mark.parametrize("amount", ["0", "-1", "0.00", "1.234", "1e3", "NaN", "9" * 13, "ten", "٣"])
async def test_what_is_no_amount_takes_nothing(plane: ControlPlane, amount: str) -> None:
    campaign, (code,) = await issue(plane, 1, kind="balance", amount=1500, currency="EUR")
    async with engine_in_process(plane, scopes=SCOPES, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        shown = await form.look(code)
        refused = await form.send(shown.fields | {"amount": amount})
        assert (refused.status, LANGUAGES_TEXTS["en"]["malformed"] in refused.html) == (400, True)
        more = await form.send(shown.fields | {"amount": "15.01"})
        assert (more.status, REFUSED in unescape(more.html)) == (404, True)
        _, listed = await merchant.call("GET", f"/v1/redemptions?campaign={campaign}")
        assert listed["items"] == []


async def test_another_currency_takes_nothing(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1, kind="balance", amount=1500, currency="EUR")
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        shown = await form.look(code)
        refused = await form.send(shown.fields | {"amount": "10", "currency": "JPY"})
        assert (refused.status, REFUSED in unescape(refused.html)) == (404, True)
        assert "15.00 EUR" in (await form.look(code)).html


def test_the_form_has_the_colours_of_the_page() -> None:
    text = (Path(__file__).parents[2] / "web" / "src" / "card" / "card.css").read_text()
    found = re.findall(r':root(?:\[data-accent="(\w+)"\])? \{\s+--accent: (#\w{6});', text)
    assert {name or "slate": colour for name, colour in found} == ACCENTS


async def test_the_form_has_the_look_of_the_campaign(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    await campaigns.update(plane, campaign, CampaignChange(card=Card(accent="green", scheme="dark")))
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        shown = await form.look(code)
        assert ' data-accent="green" data-scheme="dark">' in shown.html
        style = re.search(r"<style>(.*)</style>", shown.html, re.DOTALL)
        assert style is not None
        digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
        assert f"style-src 'sha256-{digest}'" in shown.policy


async def test_every_refusal_is_the_one_answer(plane: ControlPlane) -> None:
    campaign, (spent,) = await issue(plane, 1)
    _, (foreign,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        assert (await merchant.redeem(spent))[0] == 200
        codes = (spent, foreign, "0000-0000-0000-0000", "?", "x" * 2000)
        for step in ({"step": "card"}, {"step": "redeem", "idempotency_key": "k-{}"}):
            fields = {"key": form.key, **step}
            answers = {
                await form.send({name: text.format(n) for name, text in fields.items()} | {"code": code})
                for n, code in enumerate(codes)
            }
            assert len(answers) == 1
            (answer,) = answers
            assert (answer.status, REFUSED in unescape(answer.html)) == (404, True)
            assert not [code for code in codes[:-2] if code in answer.html]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN},  # its pages embed the form, and do not send it
    ],
)
async def test_a_page_of_another_origin_cannot_send_the_form(
    plane: ControlPlane, headers: dict[str, str]
) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        fields = {"key": form.key, "step": "redeem", "code": code, "idempotency_key": "k"}
        answer = await form.send(fields, **headers)
        assert (answer.status, code in answer.html) == (403, False)
        assert (await merchant.redeem(code))[0] == 200  # nothing was done


async def test_calls_and_attempts_are_limited_as_those_of_the_api(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    limited: dict[str, Any] = {"guard_requests_per_min": 1, "guard_requests_burst": 3}
    async with engine_in_process(plane, **limited) as merchant:
        page = await page_of(plane, merchant, campaign)
        form = Form(merchant, page.key)
        assert [(await form.look("?")).status for _ in range(2)] == [404, 404]
        assert (await page.redeem("?")).status == 404  # the third call of this address
        refused = await form.look(code)
        assert refused.status == 429
        assert re.search(r"Try again in \d+ s", refused.html)
    limited = FREE | {"guard_checks_per_min": 1, "guard_checks_burst": 1}
    async with engine_in_process(plane, **limited) as merchant:
        form = await form_of(plane, merchant, campaign)
        assert [(await form.look("?")).status for _ in range(2)] == [404, 429]


async def test_a_guesser_is_asked_for_a_challenge_which_a_form_cannot_solve(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, guard_score_mode="challenge", **EASY) as merchant:
        form = await form_of(plane, merchant, campaign)
        chance = random.Random("form")

        async def is_asked() -> bool:
            return (await form.look(made_up(chance))).status == 403

        await wait_until_async(is_asked)
        asked = await form.look(code)
        assert (asked.status, LANGUAGES_TEXTS["en"]["challenge_required"] in asked.html) == (403, True)
        assert (await merchant.redeem(code))[0] == 200


async def test_what_is_sent_is_never_html(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    own = CardTexts(title=EVIL, good_for=EVIL, how_to_use=EVIL)
    card = Card(brand=EVIL, texts=TextsByLanguage(en=own, zh=own))
    await campaigns.update(plane, campaign, CampaignChange(card=card))
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        fields = dict.fromkeys(("key", "step", "code", "idempotency_key", "lang", "whole"), EVIL)
        shown = await form.look(code)
        pages = [
            shown,
            await form.send(shown.fields),
            await form.send(fields),
            await form.send(fields | {"key": form.key}),
            await form.send(fields | {"key": form.key, "step": "redeem"}),
            await form.look(EVIL, lang="zh"),
        ]
        async with merchant.session.get(f"{merchant.url}/card", params={"key": EVIL, "lang": EVIL}) as answer:
            pages.append(Shown(answer.status, await answer.text(), ""))
        assert unescape(shown.html).count(EVIL) == 4 + 1  # the title stands twice
        for page in pages:
            assert "<script>alert" not in page.html


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 404),
        ({"key": "pk_unknown", "code": "x"}, 404),
        ({"key": "{server}", "code": "x"}, 404),
        ({"key": "{key}", "step": "redeem", "code": "{code}"}, 400),  # no idempotency key
        ({"key": "{key}", "step": "redeem", "code": "{code}", "idempotency_key": "é"}, 400),
        ({"key": "{key}", "step": "redeem"}, 200),  # the form again
        ({str(number): "" for number in range(30)}, 400),
        ({"key": "{key}", "code": "x" * 100_000}, 413),
    ],
)
async def test_a_form_that_lacks_something_does_nothing_and_says_so(
    plane: ControlPlane, fields: dict[str, str], status: int
) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        sent = {
            name: value.format(key=form.key, server=merchant.key, code=code) for name, value in fields.items()
        }
        assert (await form.send(sent)).status == status
        async with merchant.session.post(
            f"{merchant.url}/card?key={form.key}", json={}, headers=OWN
        ) as answer:
            assert answer.status == 415
        assert (await merchant.redeem(code))[0] == 200


async def test_the_key_may_be_in_the_address_and_the_language_is_the_customers(plane: ControlPlane) -> None:
    """As the form of the built page has it."""
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        shown = await form.send(
            {"code": code}, f"?key={form.key}", Accept_Language="fr, zh-TW;q=0.9, en;q=0.5"
        )
        assert '<html lang="zh-CN" ' in shown.html
        assert LANGUAGES_TEXTS["zh"]["redeem"] in shown.html
        done = await form.send(shown.fields, Accept_Language="en")  # it stays
        assert LANGUAGES_TEXTS["zh"]["done"] in done.html


async def test_a_lost_answer_is_asked_for_with_the_same_key(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        shown = await form.look(code)

        def lose(attempt: Attempt, _: bytes) -> None:
            attempt.failed(OutcomeUnknown("the connection broke"))

        with monkeypatch.context() as patch:  # it was redeemed, and the reply is lost
            patch.setattr(OneAnswerRedemption, "answered", lose)
            lost = await form.send(shown.fields)
        assert (lost.status, LANGUAGES_TEXTS["en"]["outcome_unknown"] in lost.html) == (503, True)
        assert lost.fields == shown.fields
        done = await form.send(lost.fields)
        assert (done.status, LANGUAGES_TEXTS["en"]["done"] in done.html) == (200, True)


async def test_while_redis_is_away_it_is_said_in_words(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        assert (await form.look(code)).status == 200

        async def away(_: object) -> None:
            raise StoreUnavailable("Redis does not answer")

        monkeypatch.setattr("engine.store.configuration.ConfigurationCache.confirm", away)
        words = LANGUAGES_TEXTS["en"]["unavailable"]
        refused = await form.send({"key": "pk_unknown", "code": code})
        assert (refused.status, words in unescape(refused.html)) == (503, True)
        async with merchant.session.get(f"{merchant.url}/card?key=pk_unknown") as answer:
            assert (answer.status, answer.content_type) == (503, "text/html")
            assert words in await answer.text()
        async with merchant.session.get(f"{merchant.url}/card?key={form.key}") as answer:
            assert answer.status == 200


async def test_no_code_is_logged(plane: ControlPlane, caplog: pytest.LogCaptureFixture) -> None:
    campaign, (code,) = await issue(plane, 1)
    caplog.set_level("DEBUG")
    async with engine_in_process(plane, **FREE) as merchant:
        form = await form_of(plane, merchant, campaign)
        await form.send((await form.look(code)).fields)
    assert code not in caplog.text
    assert code.replace("-", "") not in caplog.text


def test_both_languages_have_all_texts() -> None:
    english, chinese = LANGUAGES_TEXTS["en"], LANGUAGES_TEXTS["zh"]
    assert english.keys() == chinese.keys()
    for name, text in english.items():
        assert re.findall(r"{\w+}", text) == re.findall(r"{\w+}", chinese[name])


@pytest.mark.parametrize(
    ("asked", "accepted", "language"),
    [
        ("", "", "en"),
        ("zh-Hans", "en", "zh"),
        ("", "fr,zh-CN;q=0.8,en", "zh"),
        ("fr", "en-GB, zh", "en"),
        ("", "*", "en"),
    ],
)
def test_the_language_is_the_one_asked_for_or_accepted_first(
    asked: str, accepted: str, language: str
) -> None:
    assert language_of(asked, accepted) == language
