"""Signing in to the dashboard: the cookie, who may use it, and when it ends."""

from __future__ import annotations

import time
from dataclasses import replace
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import pytest

from engine.control import api_keys, audit_log
from engine.pages.sessions import Sessions
from engine.store.configuration import SCOPES
from tests.support.deployment import engine_in_process, engine_of_processes, issue
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import ClientResponse

    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.deployment import Merchant

SAME: Final = {"Sec-Fetch-Site": "same-origin"}
COOKIE: Final = "redeem_session"


class Browser:
    """Keeps one cookie, as a browser does, and sends what a page of the dashboard sends."""

    def __init__(self, merchant: Merchant) -> None:
        self.url = merchant.url
        self.cookie = ""
        self._session = merchant.session

    async def call(
        self, method: str, path: str, json: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, ClientResponse]:
        sent = dict(SAME if headers is None else headers)
        if self.cookie:
            sent["Cookie"] = f"{COOKIE}={self.cookie}"
        async with self._session.request(method, self.url + path, json=json, headers=sent) as response:
            body = None if response.status in {204, 304} else await response.json(content_type=None)
        set_cookie = SimpleCookie(response.headers.get("Set-Cookie", ""))
        if COOKIE in set_cookie:
            self.cookie = set_cookie[COOKIE].value
        return response.status, body, response

    async def sign_in(self, **body: str) -> tuple[int, Any, ClientResponse]:
        return await self.call("POST", "/admin/session", body)


@pytest.fixture
async def merchant(plane: ControlPlane) -> AsyncIterator[Merchant]:
    async with engine_in_process(plane, scopes=SCOPES, sign_in_failures_burst=3) as merchant:
        merchant.session.cookie_jar.clear()
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            merchant.session = session
            yield merchant


@pytest.fixture
def browser(merchant: Merchant) -> Browser:
    return Browser(merchant)


async def test_an_api_key_signs_in_and_the_cookie_is_for_this_engine_and_no_script(
    merchant: Merchant, browser: Browser
) -> None:
    status, body, response = await browser.sign_in(key=merchant.key)
    assert status == 200
    key_id = "key_" + merchant.key.split("_")[1]
    assert (body["key_id"], body["name"], body["role"]) == (key_id, "merchant", "admin")
    assert (body["scopes"], body["campaigns"]) == (list(SCOPES), None)
    cookie = SimpleCookie(response.headers["Set-Cookie"])[COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
    assert cookie["max-age"] == "43200"
    assert not cookie["secure"]
    assert merchant.key not in response.headers["Set-Cookie"]
    assert response.headers["Cache-Control"] == "no-store"
    assert (await browser.call("GET", "/admin/session"))[:2] == (200, body)


@pytest.mark.parametrize(
    ("headers", "secure"),
    [({"X-Forwarded-Proto": "https"}, True), ({"X-Forwarded-Proto": "http"}, False), ({}, False)],
)
async def test_behind_https_the_cookie_is_never_sent_in_clear(
    merchant: Merchant, browser: Browser, headers: dict[str, str], secure: bool
) -> None:
    _, _, response = await browser.call("POST", "/admin/session", {"key": merchant.key}, SAME | headers)
    assert bool(SimpleCookie(response.headers["Set-Cookie"])[COOKIE]["secure"]) is secure


async def test_a_session_makes_calls_of_the_api_which_name_its_key(
    plane: ControlPlane, merchant: Merchant, browser: Browser
) -> None:
    campaign, codes = await issue(plane, 2)
    _, signed_in, _ = await browser.sign_in(key=merchant.key)
    status, redeemed, _ = await browser.call("POST", "/v1/redemptions", {"code": codes[0], "user": "ann"})
    assert (status, redeemed["status"]) == (200, "redeemed")
    headers = SAME | {"Idempotency-Key": "pause"}
    for replayed in (False, True):
        status, paused, _ = await browser.call(
            "PATCH", f"/v1/campaigns/{campaign}", {"state": "paused"}, headers
        )
        assert (status, paused["state"], paused["replayed"]) == (200, "paused", replayed)
    status, made, _ = await browser.call(
        "POST", "/v1/keys", {"name": "shop", "scopes": ["redeem"]}, SAME | {"Idempotency-Key": "k"}
    )
    assert status == 201
    again = await browser.call(
        "POST", "/v1/keys", {"name": "shop", "scopes": ["redeem"]}, SAME | {"Idempotency-Key": "k"}
    )
    assert again[1]["key"] == made["key"]
    acts = await audit_log.page(plane.database, act="create_key", subject=None, after=None, limit=1)
    assert acts[0].actor == signed_in["key_id"]


async def test_a_viewer_may_only_read(plane: ControlPlane, browser: Browser) -> None:
    viewer = (await api_keys.create(plane, "viewer", ["read"])).value.key
    _, signed_in, _ = await browser.sign_in(key=viewer)
    assert signed_in["role"] == "viewer"
    assert (await browser.call("GET", "/v1/redemptions?user=ann"))[0] == 200
    assert (await browser.call("GET", "/v1/keys"))[0] == 403


CROSS: Final = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},  # another port of the same host
    {"Sec-Fetch-Site": "cross-site", "Origin": "self"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
)


@pytest.mark.parametrize("headers", [*CROSS, {"Sec-Fetch-Site": "none"}, {}])
async def test_a_page_of_another_origin_changes_nothing_with_the_cookie(
    plane: ControlPlane, merchant: Merchant, browser: Browser, headers: dict[str, str]
) -> None:
    campaign, codes = await issue(plane, 1)
    await browser.sign_in(key=merchant.key)
    sent = {name: merchant.url if value == "self" else value for name, value in headers.items()}
    for method, path, body in (
        ("POST", "/v1/redemptions", {"code": codes[0], "user": "eve"}),
        ("PATCH", f"/v1/campaigns/{campaign}", {"state": "ended"}),
        ("DELETE", "/admin/session", None),
    ):
        status, refused, _ = await browser.call(method, path, body, sent)
        assert (status, refused["code"]) == (403, "forbidden"), path
    assert (await browser.call("GET", "/admin/session"))[0] == 200
    assert (await browser.call("POST", "/v1/codes/check", {"code": codes[0]}))[1]["redeemable"]


@pytest.mark.parametrize("headers", CROSS)
async def test_a_page_of_another_origin_reads_nothing_and_signs_nobody_in(
    merchant: Merchant, browser: Browser, headers: dict[str, str]
) -> None:
    sent = {name: merchant.url if value == "self" else value for name, value in headers.items()}
    assert (await browser.call("POST", "/admin/session", {"key": merchant.key}, sent))[0] == 403
    await browser.sign_in(key=merchant.key)
    for path in ("/v1/keys", "/admin/session"):
        assert (await browser.call("GET", path, None, sent))[0] == 403, path


async def test_a_browser_that_sends_only_origin_may_use_its_session(
    merchant: Merchant, browser: Browser
) -> None:
    """As over http to another host than loopback."""
    own = {"Origin": merchant.url}
    assert (await browser.call("POST", "/admin/session", {"key": merchant.key}, own))[0] == 200
    assert (await browser.call("POST", "/v1/keys", {"name": "a", "scopes": ["read"]}, own))[0] == 201
    assert (await browser.call("GET", "/v1/keys", None, {}))[0] == 200


async def test_revoking_a_key_ends_its_sessions(
    plane: ControlPlane, merchant: Merchant, browser: Browser
) -> None:
    other = (await api_keys.create(plane, "other", SCOPES)).value
    await browser.sign_in(key=other.key)
    assert (await browser.call("GET", "/v1/keys"))[0] == 200
    await merchant.call("DELETE", f"/v1/keys/{other.api_key.id}")
    for path in ("/v1/keys", "/v1/redemptions?user=ann", "/admin/session"):
        assert (await browser.call("GET", path))[0] == 401, path


async def test_signing_out_ends_the_session_also_for_a_copy_of_the_cookie(
    plane: ControlPlane, merchant: Merchant, browser: Browser
) -> None:
    _, codes = await issue(plane, 1)
    await browser.sign_in(key=merchant.key)
    stolen = browser.cookie
    status, _, response = await browser.call("DELETE", "/admin/session")
    assert status == 204
    assert SimpleCookie(response.headers["Set-Cookie"])[COOKIE]["max-age"] == "0"
    browser.cookie = stolen
    assert (await browser.call("GET", "/admin/session"))[0] == 401
    assert (await browser.call("GET", "/v1/keys"))[0] == 401
    assert (await browser.call("POST", "/v1/redemptions", {"code": codes[0], "user": "eve"}))[0] == 401
    browser.cookie = ""
    assert (await browser.sign_in(key=merchant.key))[0] == 200


async def test_a_session_that_has_expired_or_was_altered_is_none(
    settings: Settings, merchant: Merchant, browser: Browser, plane: ControlPlane
) -> None:
    key_id = "key_" + merchant.key.split("_")[1]
    sessions = Sessions(settings, plane.redis)
    _, good = sessions.begin(key_id)
    _, expired = Sessions(replace(settings, session_s=-1), plane.redis).begin(key_id)
    _, of_others = Sessions(replace(settings, mint_keys="k1:" + "77" * 32), plane.redis).begin(key_id)
    longer = good.replace(good.split(".")[1], str(int(time.time()) + 10**8))
    browser.cookie = good
    assert (await browser.call("GET", "/admin/session"))[0] == 200
    other_key = "key_000000000000" + good[len(key_id) :]
    for cookie in (expired, of_others, longer, other_key, good[:-1], "", "x", sessions.link(key_id)):
        browser.cookie = cookie
        assert (await browser.call("GET", "/admin/session"))[0] == 401, cookie
        assert (await browser.call("GET", "/v1/keys"))[0] == 401, cookie
    browser.cookie = ""
    assert (await browser.call("GET", "/v1/keys", None, SAME | {"Authorization": key_id}))[0] == 401


async def test_a_link_signs_in_once(
    settings: Settings, plane: ControlPlane, merchant: Merchant, browser: Browser
) -> None:
    key_id = "key_" + merchant.key.split("_")[1]
    token = Sessions(settings, plane.redis).link(key_id)
    status, body, _ = await browser.sign_in(link=token)
    assert (status, body["key_id"]) == (200, key_id)
    assert (await browser.call("GET", "/admin/session"))[0] == 200
    status, body, _ = await browser.sign_in(link=token)
    assert (status, body["code"]) == (401, "unauthenticated")
    late = Sessions(replace(settings, sign_in_link_s=-1), plane.redis).link(key_id)
    session = Sessions(settings, plane.redis).begin(key_id)[1]
    for wrong in (late, session):
        assert (await browser.sign_in(link=wrong))[0] == 401


@pytest.mark.parametrize("body", [{}, {"key": "a", "link": "b"}, {"key": 1}, {"user": "ann"}, []])
async def test_a_sign_in_that_cannot_be_read_is_malformed(browser: Browser, body: object) -> None:
    status, refused, _ = await browser.call("POST", "/admin/session", body)
    assert (status, refused["code"]) == (400, "malformed_request")


async def test_failed_sign_ins_of_an_address_are_limited(merchant: Merchant, browser: Browser) -> None:
    for attempt in ("rk_1", "rk_2", merchant.key + "x"):
        assert (await browser.sign_in(key=attempt))[0] == 401
    for body in ({"key": merchant.key}, {"key": "rk_3"}, {"link": "x"}):
        status, refused, response = await browser.sign_in(**body)
        assert (status, refused["code"]) == (429, "too_many_attempts")
        assert int(response.headers["Retry-After"]) > 0
        assert "Set-Cookie" not in response.headers
    assert (await merchant.call("GET", "/v1/keys"))[0] == 200


async def test_behind_a_trusted_proxy_each_client_has_its_own_limit(plane: ControlPlane) -> None:
    settings = {"trusted_proxies": "127.0.0.0/8", "client_address_header": "x-forwarded-for"}
    async with engine_in_process(plane, scopes=SCOPES, sign_in_failures_burst=1, **settings) as merchant:
        browser = Browser(merchant)

        async def status(address: str, key: str) -> int:
            headers = SAME | {"X-Forwarded-For": f"6.6.6.6, {address}"}
            return (await browser.call("POST", "/admin/session", {"key": key}, headers))[0]

        assert await status("203.0.113.1", "rk_1") == 401
        assert await status("203.0.113.1", merchant.key) == 429
        assert await status("203.0.113.2", merchant.key) == 200


async def test_other_workers_know_a_session_and_it_outlives_them(plane: ControlPlane) -> None:
    async with engine_of_processes(plane, workers=2, scopes=SCOPES) as merchant:
        browser = Browser(merchant)
        assert (await browser.sign_in(key=merchant.key))[0] == 200
        cookie = browser.cookie
    async with engine_of_processes(plane, workers=2, scopes=SCOPES) as merchant:
        browser = Browser(merchant)
        browser.cookie = cookie

        async def known() -> bool:
            return (await browser.call("GET", "/v1/keys"))[0] == 200

        await wait_until_async(known)


async def test_no_key_token_or_cookie_is_logged(
    plane: ControlPlane,
    merchant: Merchant,
    browser: Browser,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    token = Sessions(settings, plane.redis).link("key_" + merchant.key.split("_")[1])
    await browser.sign_in(key=merchant.key)
    await browser.sign_in(link=token)
    await browser.sign_in(link=token)
    await browser.sign_in(key=merchant.key + "x")
    await browser.call("POST", "/admin/session", {"key": merchant.key, "no": 1})
    written = " ".join(str(record.__dict__) for record in caplog.records)
    for secret in (merchant.key, token, browser.cookie):
        assert secret
        assert secret not in written
