"""Parts of the chaos test: processes are killed, stopped and cut off while shops use codes in every way.

A ``Deployment`` has real processes and its own servers, reached through proxies. ``Shop``s retry until they
have a final response, and record it. A ``Reader`` reads the event feed, and an endpoint takes webhooks.
``Trouble`` injects the faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import psutil  # type: ignore[import-untyped] # it has no types

from engine.bundled import Postgres
from engine.cli.connect import plane_on
from engine.cli.initialise import initialise
from engine.control import api_keys
from engine.settings import Settings
from engine.webhooks import changes
from engine.webhooks.changes import NewWebhook
from loadtest.lifecycle import ModelCampaign
from tests.conftest import MINT_KEYS
from tests.support.deployment import Merchant, Process, client_session, issue, worker_pids
from tests.support.proxy import Fate, Proxy, Way, pass_all
from tests.support.servers import PostgresProcess, ValkeyProcess
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from pathlib import Path

SHARDS: Final = 2
WORKERS: Final = 2
PATIENCE_S: Final = 120.0  # the locks of a dead worker's combined redemption end after a minute
PAUSE_S: Final = 1.5
CUT_ONE_IN: Final = 40  # pieces of data
OK: Final = 200
TRY_AGAIN: Final = 500
CAMPAIGNS: Final[dict[str, tuple[int, dict[str, Any]]]] = {  # by kind: how many codes, and its limits
    "single": (300, {}),
    "multi": (6, {"max_uses": 40, "per_user_limit": 20}),
    "balance": (20, {"amount": 500, "budget": 6000}),
}
ONCE: Final = "-once"  # ending of the user who redeems without a key
WEBHOOK_TRIES: Final = 600  # one a second: longer than any fault of the endpoint lasts


class Deployment:
    """Its own servers, two workers, two persisters and two deliverers; one of each pair stands by.

    An async context manager.
    """

    def __init__(self, directory: Path) -> None:
        self.valkey = ValkeyProcess(directory / "valkey")
        self.postgres = PostgresProcess(directory / "postgres")
        self._directory = directory
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.valkey.spawn()
        self.postgres.spawn()
        self._stack.callback(self.postgres.stop)
        self._stack.callback(self.valkey.stop)
        await self.valkey.wait_ready()
        await self.postgres.wait_ready()
        server = self.postgres.server
        if not isinstance(server, Postgres):
            raise TypeError
        self.settings = Settings(
            redis_url=self.valkey.url,
            database_url=server.database_url("postgres"),
            data_dir=self._directory,
            port=0,
            workers=WORKERS,
            shards=SHARDS,
            mint_keys=MINT_KEYS,
            attempt_deadline_ms=1000,
            database_timeout_s=3,
            persist_timeout_s=3,
            persist_backoff_s_max=1,
            persist_batch_max=50,
            republish_interval_s=1,
            webhooks_allow_private=True,
            webhook_timeout_s=2,
            webhook_retry_s=",".join(["1"] * WEBHOOK_TRIES),
        )
        await initialise(self.settings)
        self.front = await self._stack.enter_async_context(Proxy(self.valkey.url))
        self.behind = await self._stack.enter_async_context(Proxy(self.valkey.url))
        self.ledger = await self._stack.enter_async_context(Proxy(self.settings.database_url))
        self.serving = self._process(self.front, "engine.cli", "serve")
        self.persisters = [self._process(self.behind, "persister") for _ in range(2)]
        self.deliverers = [self._process(self.behind, "engine.cli", "deliver") for _ in range(2)]
        word, _, self.url = (await asyncio.to_thread(self.serving.line)).partition(" ")
        if word != "ready":
            raise RuntimeError("the front end did not start")
        return self

    def _process(self, proxy: Proxy, *arguments: str) -> Process:
        settings = replace(self.settings, redis_url=proxy.url, database_url=self.ledger.url)
        process = Process(settings, *arguments)
        return self._stack.enter_context(process)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


@dataclass
class Acknowledged:
    """Everything that responses acknowledged to the shops, by the id of the event or of its subject.

    ``campaigns``: the model's campaigns, by id.
    """

    campaigns: dict[str, ModelCampaign] = field(default_factory=dict)
    redemptions: list[str] = field(default_factory=list)
    holds: set[str] = field(default_factory=set)
    ended: Counter[str] = field(default_factory=Counter)  # holds, by id
    rolled_back: Counter[str] = field(default_factory=Counter)  # redemptions, by id
    others: Counter[str] = field(default_factory=Counter)  # voided, unvoided, adjusted
    unknown: int = 0  # requests without a key that may have been done
    answers: Counter[str] = field(default_factory=Counter)
    tries: int = 0


class Shop:
    """One client. It repeats each request until it has a final response."""

    def __init__(
        self,
        name: str,
        merchant: Merchant,
        codes: dict[str, list[str]],
        acked: Acknowledged,
        chance: random.Random,
    ) -> None:
        self.name, self.merchant, self.codes, self.acked, self.chance = (
            name,
            merchant,
            codes,
            acked,
            chance,
        )
        self._number = 0
        self._holds: list[tuple[str, str]] = []  # kind, id
        self._redemptions: list[tuple[str, str]] = []

    async def ask(self, path: str, body: dict[str, Any], *, keyed: bool = True) -> dict[str, Any] | None:
        """Send a request until the response is final; return the body of a success, None for a refusal."""
        self._number += 1
        headers = {"Idempotency-Key": f"{self.name}-{self._number}"} if keyed else {}
        last: list[Any] = []

        async def definite() -> bool:
            self.acked.tries += 1
            try:
                last[:] = await self.merchant.call("POST", path, json=body, headers=headers)
            except (aiohttp.ClientError, TimeoutError) as error:
                last[:] = 0, repr(error)
            return bool(0 < last[0] < TRY_AGAIN)

        try:
            await wait_until_async(definite, PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"no final response to {path}; the last was {last}") from error
        status, found = last
        self.acked.answers[path.rpartition("/")[2] if status == 200 else found["code"]] += 1
        return found if status == 200 else None

    def pick(self, kind: str) -> str:
        return self.chance.choice(self.codes[kind])

    def part(self, kind: str) -> dict[str, int]:
        return {"amount": self.chance.randint(1, 30)} if kind == "balance" else {}

    async def act(self) -> None:
        """Do one random operation."""
        kinds: list[Callable[[str], Awaitable[None]]] = [
            self.redeem,
            self.redeem,
            self.redeem_once,
            self.hold,
            self.end,
            self.roll_back,
        ]
        rare = [self.combined, self.several, self.check, self.void, self.adjust]
        await self.chance.choice([*kinds, self.chance.choice(rare)])(self.chance.choice(list(self.codes)))

    async def redeem(self, kind: str) -> None:
        body = {"code": self.pick(kind), "user": self.name, **self.part(kind)}
        if answer := await self.ask("/v1/redemptions", body):
            self.redeemed(kind, answer)

    async def redeem_once(self, kind: str) -> None:
        """Redeem without a key. Without a response, the result is unknown, and the shop does not retry."""
        body = {"code": self.pick(kind), "user": self.name + ONCE, **self.part(kind)}
        try:
            status, answer = await self.merchant.call("POST", "/v1/redemptions", json=body)
        except (aiohttp.ClientError, TimeoutError):
            status, answer = 503, {"code": "outcome_unknown"}
        self.acked.answers["once" if status == OK else answer["code"]] += 1
        if status == OK:
            self.redeemed(kind, answer)
        elif answer["code"] == "outcome_unknown":
            self.acked.unknown += 1

    def redeemed(self, kind: str, answer: dict[str, Any]) -> None:
        self.acked.redemptions.append(answer["id"])
        self._redemptions.append((kind, answer["id"]))

    async def hold(self, kind: str) -> None:
        body = {
            "code": self.pick(kind),
            "user": self.name,
            "order": f"{self.name}-{self._number}",
            "ttl_s": self.chance.choice((1, 3600)),  # it ends at once, or only after the run
            **self.part(kind),
        }
        if answer := await self.ask("/v1/holds", body):
            self.acked.holds.add(answer["id"])
            self._holds.append((kind, answer["id"]))

    async def end(self, _: str) -> None:
        if not self._holds:
            return
        kind, hold = self._holds.pop()
        what = self.chance.choice(("confirm", "confirm", "release"))
        answer = await self.ask(f"/v1/holds/{hold}/{what}", {})
        if answer and what == "confirm":
            self.redeemed(kind, answer)
        elif answer:
            self.acked.ended[hold] += 1

    async def roll_back(self, _: str) -> None:
        if self._redemptions:
            kind, redemption = self.chance.choice(self._redemptions)
            body = {"reason": "a change of mind", **self.part(kind)}
            if await self.ask(f"/v1/redemptions/{redemption}/rollback", body):
                self.acked.rolled_back[redemption] += 1

    async def several(self, kind: str) -> None:
        """Redeem several codes in one batched request; each item succeeds or fails on its own."""
        self._number += 1
        items = [
            {
                "code": self.pick(kind),
                "user": self.name,
                "idempotency_key": f"{self.name}-{self._number}-{at}",
            }
            | self.part(kind)
            for at in range(3)
        ]
        while items:
            answer = await self.ask("/v1/redemptions/batch", {"items": items}, keyed=False)
            results = answer["results"] if answer else []
            for result in results:
                if result["status"] == OK:
                    self.redeemed(kind, result["body"])
            items = [
                item for item, result in zip(items, results, strict=True) if result["status"] >= TRY_AGAIN
            ]

    async def check(self, kind: str) -> None:
        await self.ask("/v1/codes/check", {"code": self.pick(kind)}, keyed=False)

    async def void(self, kind: str) -> None:
        """Void a code and unvoid it."""
        body = {"code": self.pick(kind), "reason": "lost"}
        for path in ("/v1/codes/void", "/v1/codes/unvoid"):
            if answer := await self.ask(path, body):
                self.acked.others[answer["status"]] += answer[
                    "changed"
                ]  # not changed: another shop did it first

    async def adjust(self, kind: str) -> None:
        body = {"code": self.pick(kind), "amount": 5, "reason": "goodwill"}
        if await self.ask("/v1/codes/adjust", body):
            self.acked.others["adjusted"] += 1

    async def combined(self, kind: str) -> None:
        items = [{"code": self.pick(kind), **self.part(kind)} for _ in range(3)]
        body = {"codes": items, "user": self.name, "order": f"{self.name}-{self._number}"}
        if answer := await self.ask("/v1/redemptions/combined", body):
            for redemption in answer["redemptions"]:
                self.redeemed(kind, redemption)


class Reader:
    """Reads the feed page by page, and retries when a worker fails."""

    def __init__(self, merchant: Merchant) -> None:
        self.merchant = merchant
        self.events: list[dict[str, Any]] = []
        self._after = ""

    async def read(self) -> None:
        """Read until cancelled."""
        while True:
            after = f"&after={self._after}" if self._after else ""
            try:
                status, page = await self.merchant.call("GET", f"/v1/events?limit=200&wait_s=1{after}")
            except (aiohttp.ClientError, TimeoutError):
                status, page = 503, None
            if status == 200:
                self.events += page["items"]
                self._after = page["next"]
            else:
                await asyncio.sleep(0.05)


class Trouble:
    """Injects faults, one at a time; each fault is over when its method returns."""

    def __init__(self, deployment: Deployment, chance: random.Random) -> None:
        self._of = deployment
        self._chance = chance
        self.befell: Counter[str] = Counter()
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "valkey killed": self._kill_valkey,
            "valkey stopped": self._stop_valkey,
            "postgres killed": self._kill_postgres,
            "postgres stopped": self._stop_postgres,
            "persister killed": lambda: self._kill(self._of.persisters),
            "persister stopped": lambda: self._stop(self._of.persisters),
            "deliverer killed": lambda: self._kill(self._of.deliverers),
            "deliverer stopped": lambda: self._stop(self._of.deliverers),
            "worker killed": self._kill_worker,
            "worker stopped": self._stop_worker,
            "cut": self._cut,
            "cut halfway": self._cut_halfway,
            "delayed": self._delay,
        }

    async def befall(self) -> None:
        """Inject one random fault."""
        name = self._chance.choice(list(self._kinds))
        self.befell[name] += 1
        await self._kinds[name]()

    async def _kill_valkey(self) -> None:
        await asyncio.to_thread(self._of.valkey.kill)
        self._of.valkey.spawn()
        await self._of.valkey.wait_ready()

    async def _stop_valkey(self) -> None:
        self._of.valkey.pause()
        await asyncio.sleep(PAUSE_S)
        self._of.valkey.resume()

    async def _kill_postgres(self) -> None:
        await asyncio.to_thread(self._of.postgres.kill)
        self._of.postgres.spawn()
        await self._of.postgres.wait_ready()

    async def _stop_postgres(self) -> None:
        self._of.postgres.pause()
        await asyncio.sleep(PAUSE_S)
        self._of.postgres.resume()

    async def _kill(self, processes: list[Process]) -> None:
        process = self._chance.choice(processes)
        process.kill()
        process.restart()

    async def _stop(self, processes: list[Process]) -> None:
        pid = self._chance.choice(processes).running.pid
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        os.kill(pid, signal.SIGCONT)

    async def _kill_worker(self) -> None:
        for pid in self._a_worker():
            os.kill(pid, signal.SIGKILL)

    async def _stop_worker(self) -> None:
        for pid in self._a_worker():
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                os.kill(pid, signal.SIGCONT)

    def _a_worker(self) -> list[int]:
        return self._chance.sample(pids, 1) if (pids := worker_pids(self._of.serving)) else []

    def _proxy(self) -> Proxy:
        return self._chance.choice((self._of.front, self._of.front, self._of.behind, self._of.ledger))

    async def _cut(self) -> None:
        proxy = self._proxy()
        proxy.refusing = True
        proxy.cut()
        await asyncio.sleep(self._chance.random())
        proxy.refusing = False

    async def _cut_halfway(self) -> None:
        proxy = self._proxy()

        def rule(_connection: int, _way: Way, _data: bytes) -> Fate:
            unlucky = not self._chance.randrange(CUT_ONE_IN)
            return self._chance.choice((Fate.CUT, Fate.CUT_HALFWAY)) if unlucky else Fate.PASS

        proxy.rule = rule
        await asyncio.sleep(PAUSE_S)
        proxy.rule = pass_all

    async def _delay(self) -> None:
        proxy = self._proxy()
        proxy.rule = lambda _connection, way, _data: Fate.HOLD if way is Way.TO_ENGINE else Fate.PASS
        await asyncio.sleep(self._chance.random())
        proxy.release()


async def open_shops(
    deployment: Deployment, count: int, chance: random.Random, hook: str
) -> tuple[list[Shop], Acknowledged, Reader, str]:
    """Create campaigns of every kind, shops that compete for their codes, and a reader; all with one API key.

    Webhooks go to ``hook``; their secret is the last result.
    """
    acked = Acknowledged()
    async with plane_on(deployment.settings) as plane:
        codes: dict[str, list[str]] = {}
        for kind, (many, terms) in CAMPAIGNS.items():
            currency = "EUR" if "amount" in terms else None
            campaign, codes[kind] = await issue(plane, many, kind=kind, currency=currency, **terms)
            acked.campaigns[campaign] = ModelCampaign(campaign, kind, **terms)
        key = (await api_keys.create(plane, "shops", ("redeem", "read", "events", "admin"))).value.key
        webhook = (await changes.create(plane, NewWebhook(url=hook), actor="cli")).value
    merchants = [Merchant(client_session(), deployment.url, key) for _ in range(count + 1)]
    shops = [
        Shop(f"shop-{number}", merchant, codes, acked, chance)
        for number, merchant in enumerate(merchants[1:])
    ]
    return shops, acked, Reader(merchants[0]), webhook.secret
