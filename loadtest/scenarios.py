"""The scenarios: their campaigns, clients and rates, and the refusals that each expects.

A plan is one run of a scenario. It is written to ``plan.json``, which all processes of the run read.
It contains neither codes nor an API key.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from loadtest.addresses import is_loopback
from loadtest.api import ApiError

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.api import Api

PLAN_FILE: Final = "plan.json"
CODES_SPARE: Final = 1.2
NO_ADDRESSES: Final = (
    "pages need addresses of their own: run it on the engine's machine, with --url http://127.0.0.1:PORT, or "
    "have the engine trust this machine (REDEEM_TRUSTED_PROXIES, REDEEM_CLIENT_ADDRESS_HEADER) and name the "
    "header with --address-header"
)
CODES_AT_ONCE_MAX: Final = 200_000
_GUESSED: Final = ("code_not_found", "code_malformed", "too_many_attempts")
ORIGIN: Final = "https://load-test.example"
"""Of the pages of a run."""
SCORE: Final = "score"
FLOOD: Final = "flood"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario with its default values.

    Attributes:
        peak_per_s: attempts started per second at the peak.
        seconds: duration.
        each_per_s: rate of one client; the number of clients follows from the peak.
        terms: fields of the campaign.
        stock_share, uses_share: stock, or uses of the shared code, as a share of all attempts.
        shared: all clients use one code.
        refusals: problem codes that the scenario expects; they are not errors.
        guess_refusals: the same for codes that are made up or mistyped.
        rule: the rule of the guard that the run enforces, and that must find the guessers.
        pages: the clients are web pages with a browser key.
    """

    about: str
    peak_per_s: float
    seconds: float
    each_per_s: float = 4.0
    terms: dict[str, object] = field(default_factory=lambda: {"kind": "single"})
    stock_share: float | None = None
    uses_share: float | None = None
    shared: bool = False
    refusals: tuple[str, ...] = ()
    guess_refusals: tuple[str, ...] = ()
    rule: str | None = None
    pages: bool = False


SCENARIOS: Final[dict[str, Scenario]] = {
    "unique-codes": Scenario(
        about="every attempt has its own code: the highest rate of successes",
        peak_per_s=400,
        seconds=30,
    ),
    "flash-sale": Scenario(
        about="everybody comes at once, and the stock is too small for most of them",
        peak_per_s=600,
        seconds=30,
        each_per_s=2.0,
        terms={"kind": "single", "per_user_limit": 1},
        stock_share=0.1,
        refusals=("sold_out",),
    ),
    "hot-code": Scenario(
        about="everybody types the same word",
        peak_per_s=400,
        seconds=30,
        uses_share=0.5,
        shared=True,
        refusals=("uses_exceeded",),
    ),
    "retry-storm": Scenario(
        about="clients give up waiting, some within a millisecond, and send the same request again",
        peak_per_s=200,
        seconds=30,
        each_per_s=2.0,
    ),
    "guessers": Scenario(
        about="one client of three guesses codes and is blocked; buyers, who mistype, must not notice",
        peak_per_s=400,
        seconds=30,
        guess_refusals=(*_GUESSED, "blocked"),
        rule=SCORE,
    ),
    "botnet": Scenario(
        about="pages: one made-up code from each address; the guard challenges, and buyers solve it",
        peak_per_s=40,
        seconds=40,
        each_per_s=1.0,
        guess_refusals=("code_not_found", "challenge_required"),
        rule=FLOOD,
        pages=True,
    ),
    "mixed-day": Scenario(
        about="a day: checks, redemptions, holds, confirmations, releases, rollbacks; a peak in the middle",
        peak_per_s=250,
        seconds=60,
        each_per_s=2.0,
        terms={"kind": "single", "amount": 500, "currency": "EUR"},
    ),
    "soak": Scenario(
        about="a moderate load for a long time",
        peak_per_s=100,
        seconds=3600,
        each_per_s=2.0,
        terms={"kind": "single", "amount": 500, "currency": "EUR"},
    ),
}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
        run: name of the run; all its Idempotency-Keys and users begin with it.
        kind, amount, stock, max_uses, per_user_limit: fields of the campaign, for the verifier.
        shared_batch: the batch of the code that all clients share.
        codes_at_once: codes that a process mints in one batch; it mints more when they run low.
        cursor: the end of the feed before the run began.
        rule: the rule of the guard that must find the guessers.
        address_header: in which pages say where they come from; None: they come from loopback addresses.
    """

    run: str
    scenario: str
    url: str
    campaign: str
    peak_per_s: float
    seconds: float
    each_per_s: float
    processes: int
    codes_at_once: int
    seed: int
    cursor: str
    kind: str = "single"
    amount: int | None = None
    stock: int | None = None
    max_uses: int | None = None
    per_user_limit: int | None = None
    shared_batch: int | None = None
    rule: str | None = None
    address_header: str | None = None

    @property
    def uses_max(self) -> int:
        """How often one code may be redeemed."""
        return self.max_uses or 1

    def write(self, directory: Path) -> None:
        """Write the plan to the directory of the run."""
        (directory / PLAN_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def run_name() -> str:
    """Return a unique name for a run."""
    return f"lt{int(time.time()):x}{os.getpid():x}"


def read_plan(directory: Path) -> Plan:
    """Read the plan of a run.

    Raises:
        OSError: there is no plan.
    """
    return msgspec.json.decode((directory / PLAN_FILE).read_bytes(), type=Plan)


def prepare(
    api: Api,
    run: str,
    name: str,
    *,
    peak_per_s: float | None = None,
    seconds: float | None = None,
    processes: int = 1,
    seed: int = 0,
    address_header: str | None = None,
) -> Plan:
    """Create a campaign for one run of a scenario, and return the plan of the run.

    Raises:
        ApiError: the engine refused, or cannot be told where pages come from.
    """
    scenario = SCENARIOS[name]
    if scenario.pages and address_header is None and not is_loopback(api.url):
        raise ApiError(NO_ADDRESSES)
    peak = scenario.peak_per_s if peak_per_s is None else peak_per_s
    length = scenario.seconds if seconds is None else seconds
    attempts = peak * length
    stock = None if scenario.stock_share is None else max(1, round(attempts * scenario.stock_share))
    uses = None if scenario.uses_share is None else max(1, round(attempts * scenario.uses_share))
    terms = scenario.terms | ({} if stock is None else {"stock": stock})
    if uses is not None:
        terms |= {"kind": "multi", "max_uses": uses}
    cursor = api.end_of_feed()
    campaign = api.campaign(name=f"Load test {run}", **terms)
    amount, limit = terms.get("amount"), terms.get("per_user_limit")
    return Plan(
        run=run,
        scenario=name,
        url=api.url,
        campaign=campaign,
        peak_per_s=peak,
        seconds=length,
        each_per_s=min(scenario.each_per_s, peak),
        processes=processes,
        codes_at_once=min(CODES_AT_ONCE_MAX, math.ceil(attempts * CODES_SPARE / processes) + 100),
        seed=seed,
        cursor=cursor,
        kind=str(terms["kind"]),
        amount=amount if isinstance(amount, int) else None,
        stock=stock,
        max_uses=uses,
        per_user_limit=limit if isinstance(limit, int) else None,
        shared_batch=api.mint(campaign, 1)[0] if scenario.shared else None,
        rule=scenario.rule,
        address_header=address_header,
    )
