"""Simulated populations of customers and guessers, each through real HTTP with the guard enforcing its rules.

Each has a seed. ``python -m pytest tests/guard/test_populations.py`` runs a small form; with
``REDEEM_TEST_POPULATIONS=large`` a large one, which writes its table into docs/guard.md.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.control import alerts, blocks
from tests.support.browsers import page_of
from tests.support.deployment import engine_in_process, issue
from tests.support.guessing import SYMBOLS, made_up
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

ENFORCED: Final[dict[str, Any]] = {
    f"guard_{rule}_mode": "enforce" for rule in ("score", "slow_drip", "leaked_list", "flood", "server_key")
}
AT_ONCE: Final = 8
CODES_PER_S: Final = 25


class Result(NamedTuple):
    """What became of a population: a row of the table.

    Attributes:
        caught: how many of its guessers were blocked, or asked for a challenge; None for honest customers.
        at_code: the largest number of different unknown codes after which one was found; of those who are
            asked, how many codes of all of them were tried before.
        blocked: honest sources that were blocked.
        alerts: the rules that raised alerts.
    """

    name: str
    sources: int
    attempts: int
    caught: int | None
    at_code: int
    blocked: int
    alerts: tuple[str, ...]


async def _each(count: int, one: Callable[[int], Awaitable[int]]) -> int:
    """Run ``one`` for each number, some at once. Returns the sum."""
    numbers = iter(range(count))
    total = 0

    async def some() -> None:
        nonlocal total
        for number in numbers:
            attempts = await one(number)
            total += attempts

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return total


def mistyped(code: str, chance: random.Random) -> str:
    """Return a code with one or two other symbols."""
    symbols = list(code.replace("-", ""))
    for _ in range(chance.choice([1, 1, 1, 2])):
        symbols[chance.randrange(len(symbols))] = chance.choice(SYMBOLS)
    return "".join(symbols)


async def _customers(
    plane: ControlPlane, merchant: Merchant, count: int, error_rate: float, address: Callable[[int], str]
) -> int:
    """Each has one code, mistypes it with the rate, and tries again until it is right, up to 6 times."""
    _, codes = await issue(plane, count)

    async def one(number: int) -> int:
        chance, attempts = random.Random(number), 1
        while chance.random() < error_rate and attempts < 6:
            await _try(merchant, mistyped(codes[number], chance), f"u{number}", address(number))
            attempts += 1
        await _try(merchant, codes[number], f"u{number}", address(number))
        return attempts

    return await _each(count, one)


async def _try(merchant: Merchant, code: str, user: str, ip: str) -> str:
    _, answer = await merchant.redeem(code, user, client={"ip": ip})
    return str(answer.get("code"))


async def honest_shop(plane: ControlPlane, merchant: Merchant, size: int) -> tuple[int, int]:
    """Customers behind one address; one of five codes is mistyped."""
    return size, await _customers(plane, merchant, size, 0.2, lambda _: "203.0.113.7")


async def mistypers(plane: ControlPlane, merchant: Merchant, size: int) -> tuple[int, int]:
    """People with addresses of their own, who mistype every other time."""
    return size, await _customers(
        plane, merchant, size, 0.5, lambda number: f"10.1.{number >> 8}.{number & 255}"
    )


async def guessers(_: ControlPlane, merchant: Merchant, size: int) -> tuple[int, int]:
    """Each tries made-up codes until it is blocked, four a second."""

    async def one(number: int) -> int:
        chance, tries = random.Random(number), 0
        while await _try(merchant, made_up(chance), f"g{number}", f"10.2.0.{number}") != "blocked":
            tries += 1
            if tries > 40:
                break
            await asyncio.sleep(0.25)
        return tries

    return size, sum(await asyncio.gather(*map(one, range(size))))


async def batch_guessers(_: ControlPlane, merchant: Merchant, size: int) -> tuple[int, int]:
    """Each sends one batch of 100 made-up codes."""

    async def one(number: int) -> int:
        chance = random.Random(number)
        items = [{"code": made_up(chance), "user": f"g{number}"} for _ in range(100)]
        await merchant.call("POST", "/v1/redemptions/batch", json={"items": items})
        return 100

    return size, await _each(size, one)


async def rotating_network(_: ControlPlane, merchant: Merchant, size: int) -> tuple[int, int]:
    """Each has a /64, and a new address and a new user of it for each code."""

    async def one(number: int) -> int:
        chance = random.Random(number)
        for at in range(10):
            ip = f"2001:db8:0:{number:x}::{chance.randrange(1, 1 << 16):x}"
            await _try(merchant, made_up(chance), f"r{number}-{at}", ip)
        return 10

    return size, await _each(size, one)


async def botnet(_: ControlPlane, merchant: Merchant, size: int) -> tuple[int, int]:
    """One made-up code from each address."""

    async def one(number: int) -> int:
        ip = f"10.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        await _try(merchant, made_up(number), f"b{number}", ip)
        return 1

    return size, await _each(size, one)


async def botnet_in_a_page(plane: ControlPlane, merchant: Merchant, size: int) -> tuple[int, int]:
    """The same with a browser key, 25 codes a second. Returns how many were tried before pages were asked."""
    campaign, _ = await issue(plane, 1)
    page, start_s = await page_of(plane, merchant, campaign), time.monotonic()

    async def one(number: int) -> int:
        await asyncio.sleep(max(0.0, start_s + number / CODES_PER_S - time.monotonic()))
        sent = {"code": made_up(number), "user": "ann"}
        seen = await page.post("/v1/redemptions", sent, X_Real_IP=f"10.5.{number >> 8}.{number & 255}")
        return seen.code != "challenge_required"

    return size, await _each(size, one)


async def leaked_list(plane: ControlPlane, merchant: Merchant, size: int) -> tuple[int, int]:
    """One person tries codes that others have redeemed."""
    _, codes = await issue(plane, size)

    async def redeem(number: int) -> int:
        await _try(merchant, codes[number], f"o{number}", f"10.3.0.{number}")
        return 1

    await _each(size, redeem)
    for code in codes:
        await _try(merchant, code, "thief", "10.3.1.1")
    return 1, size


class Population(NamedTuple):
    """A population: its size in the small form and in the large one, and what must become of it."""

    name: str
    act: Callable[[ControlPlane, Merchant, int], Awaitable[tuple[int, int]]]
    sizes: tuple[int, int]
    catches: str  # guessers; asked: they are asked for challenges; or none. Only guessers may be blocked
    at_code_max: int = 0
    rule: str = ""
    settings: dict[str, Any] = {}  # noqa: RUF012 - read only


POPULATIONS: Final = (
    Population("honest shop behind one address, 1 of 5 mistyped", honest_shop, (300, 1000), "none"),
    Population("people who mistype every other time", mistypers, (300, 10_000), "none"),
    Population("random guessers, 4 codes a second", guessers, (10, 100), "guessers", 8, "score"),
    Population("guesses in batches of 100", batch_guessers, (5, 100), "guessers", 8, "score"),
    Population(
        "a /64, each code from a new address and user", rotating_network, (5, 100), "guessers", 8, "score"
    ),
    Population(
        "slow drip (the rule alone)",
        guessers,
        (3, 20),
        "guessers",
        20,
        "slow_drip",
        {"guard_score_mode": "off"},
    ),
    Population("botnet, one code from each address", botnet, (200, 2000), "none", 0, "flood"),
    Population(
        "botnet in a page, one code from each address, 25 a second",
        botnet_in_a_page,
        (250, 1000),
        "asked",
        240,
        "flood",
        {"trusted_proxies": "127.0.0.0/8", "client_address_header": "x-real-ip"},
    ),
    Population("leaked list", leaked_list, (12, 100), "none", 0, "leaked_list"),
)
CUT_OFF: Final = Population(
    "random guessers, guard cut off from Redis", guessers, (5, 20), "guessers", 8, "score"
)


async def simulate(plane: ControlPlane, population: Population, size: int) -> Result:
    """Run a population against one worker."""
    async with engine_in_process(plane, **ENFORCED | population.settings) as merchant:
        sources, attempts = await population.act(plane, merchant, size)
        wanted = sources if population.catches == "guessers" else 0

        async def is_over() -> bool:
            raised = {one.rule for one in await alerts.page(plane, state=None, after=None, limit=99)}
            return len(await _blocks(plane)) >= wanted and (not population.rule or population.rule in raised)

        await wait_until_async(is_over)
        await asyncio.sleep(0.3)  # for what must not be
    made = await _blocks(plane)
    found = await alerts.page(plane, state=None, after=None, limit=99)
    at_code = max((one.evidence["unknown"] for one in made if one.evidence), default=0)
    caught = len(made) if population.catches == "guessers" else None
    if population.catches == "asked":
        attempts, at_code, caught = sources, attempts, sources - attempts
    return Result(
        population.name,
        sources,
        attempts,
        caught,
        at_code,
        0 if population.catches == "guessers" else len(made),
        tuple(sorted({one.rule for one in found})),
    )


async def _blocks(plane: ControlPlane) -> list[blocks.Block]:
    return await blocks.page(plane, after=None, limit=100_000)


def table(results: list[Result], made: str) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        "| population | sources | attempts | caught | found at code | honest blocked | alerts |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        caught = "-" if one.caught is None else f"{one.caught} of {one.sources}"
        shown = (one.name, one.sources, one.attempts, caught, one.at_code or "-", one.blocked)
        lines.append(f"| {' | '.join(map(str, shown))} | {', '.join(one.alerts) or '-'} |")
    return "\n".join([*lines, "", f"({made}, {time.strftime('%Y-%m-%d', time.gmtime())})"])
