"""Each request is counted with route, status and duration, in both lanes, also where no code is looked at."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client import REGISTRY

from engine.webhooks import changes
from engine.webhooks.changes import NewWebhook
from tests.support.deployment import Process, engine_in_process, issue
from tests.support.endpoints import receiving
from tests.support.lanes import LANES
from tests.support.monitoring import metrics
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.deployment import Merchant

SECONDS = "redeem_request_seconds"
ROUTE = "POST /v1/redemptions"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, webhooks_allow_private=True)


class Growth:
    """How much counters have grown since the beginning: a test's process keeps them."""

    def __init__(self, merchant: Merchant) -> None:
        self._merchant = merchant
        self._before: Counter[str] = Counter()

    async def begin(self) -> None:
        self._before = Counter(await metrics(self._merchant))

    async def of(self, name: str) -> dict[str, float]:
        """The samples of one metric that have grown, without ``/metrics`` itself."""
        now = await metrics(self._merchant)
        return {
            sample.removeprefix(name): value - self._before[sample]
            for sample, value in now.items()
            if sample.startswith(name + "{") and value != self._before[sample] and "/metrics" not in sample
        }


@pytest.mark.parametrize("lane", LANES)
async def test_the_last_requests_before_a_stop_are_counted(plane: ControlPlane, *, lane: str) -> None:
    def counted() -> float:
        labels = {"route": ROUTE, "status": "200"}
        return REGISTRY.get_sample_value(f"{SECONDS}_count", labels) or 0

    _, codes = await issue(plane, 5)
    before = counted()
    async with engine_in_process(plane, lane=lane) as merchant:
        for code in codes:
            await merchant.redeem(code)
    assert counted() - before == len(codes)


@pytest.mark.parametrize("lane", LANES)
async def test_requests_count_with_route_and_status(plane: ControlPlane, *, lane: str) -> None:
    _, codes = await issue(plane, 3)
    async with engine_in_process(plane, lane=lane) as merchant:
        growth = Growth(merchant)
        await growth.begin()
        for code in (*codes, codes[0]):
            await merchant.redeem(code)
        assert (await merchant.call("POST", "/v1/redemptions", json={"code": 1}))[0] == 400
        stranger = {"Authorization": "Bearer rk_unknown"}
        assert (await merchant.call("POST", "/v1/redemptions", json={}, headers=stranger))[0] == 401
        plain = {"Content-Type": "text/plain"}
        assert (await merchant.call("POST", "/v1/redemptions", json={}, headers=plain))[0] == 415
        assert (await merchant.call("GET", f"/v1/redemptions/{codes[0]}"))[0] in {400, 404}
        assert (await merchant.call("GET", f"/nothing/{codes[0]}"))[0] == 404
        assert (await merchant.call("DELETE", "/v1/redemptions"))[0] == 405
        await garbage(merchant)
        counted = await growth.of(f"{SECONDS}_count")
        of_one = [name for name in counted if "/v1/redemptions/{id}" in name]
        assert len(of_one) == 1
        assert {name: count for name, count in counted.items() if name not in of_one} == {
            f'{{route="{ROUTE}",status="200"}}': 3,
            f'{{route="{ROUTE}",status="409"}}': 1,
            f'{{route="{ROUTE}",status="400"}}': 1,
            f'{{route="{ROUTE}",status="401"}}': 1,
            f'{{route="{ROUTE}",status="415"}}': 1,
            '{route="other",status="404"}': 1,
            '{route="other",status="405"}': 1,
            '{route="other",status="400"}': 1,
        }
        refused = await growth.of("redeem_refused_requests_total")
        assert refused['{code="malformed_request"}'] == 2  # a wrong body, and what is no HTTP
        for code in ("unauthenticated", "unsupported_media_type", "method_not_allowed"):
            assert refused[f'{{code="{code}"}}'] == 1
        success = f'route="{ROUTE}",status="200"'
        buckets = await growth.of(f"{SECONDS}_bucket")
        assert buckets[f'{{le="+Inf",{success}}}'] == 3
        assert (await growth.of(f"{SECONDS}_sum"))[f"{{{success}}}"] > 0
        assert codes[0] not in str(await metrics(merchant))


async def garbage(merchant: Merchant) -> None:
    """Send what is no HTTP."""
    address = urlsplit(merchant.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"this is no HTTP\r\n\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_attempts_count_by_campaign_up_to_a_number_of_campaigns(plane: ControlPlane) -> None:
    issued = [await issue(plane, 2) for _ in range(3)]
    async with engine_in_process(plane, campaign_metrics_max=2) as merchant:
        growth = Growth(merchant)
        await growth.begin()
        for _, codes in issued:
            for code in (codes[0], codes[0], codes[1]):
                await merchant.redeem(code)
            await metrics(merchant)  # a flush, so that the campaigns come one after another
        (first, _), (second, _), _ = issued
        assert await growth.of("redeem_campaign_attempts_total") == {
            f'{{campaign="{campaign}",outcome="{outcome}"}}': count
            for campaign in (first, second, "other")
            for outcome, count in (("redeemed", 2), ("already_redeemed", 1))
        }


async def test_persister_and_deliverer_have_metrics_of_their_own(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 2)
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    settings = replace(plane.settings, metrics_port=ports[0], deliverer_metrics_port=ports[1])

    async def shown(port: int, sample: str) -> Any:  # noqa: ANN401 - whether it is there
        try:
            async with aiohttp.request("GET", f"http://127.0.0.1:{port}/metrics") as response:
                return sample in (await response.text()).splitlines()
        except aiohttp.ClientError:
            return False

    async with receiving() as receiver, engine_in_process(plane) as merchant:
        webhook = (await changes.create(plane, NewWebhook(url=receiver.url), actor="test")).value.webhook.id
        with Process(settings, "persister"), Process(settings, "persister.webhooks"):
            for code in codes:
                assert (await merchant.redeem(code))[0] == 200
            await wait_until_async(lambda: shown(ports[0], 'redeem_persisted_events_total{shard="0"} 2.0'))
            delivered = f'redeem_webhook_attempts_total{{outcome="delivered",webhook="{webhook}"}} 2.0'
            await wait_until_async(lambda: shown(ports[1], delivered))
