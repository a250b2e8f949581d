"""The scenarios: what is on sale, how fast who comes, and which refusals belong to it.

A plan is one run of a scenario. It is written to ``plan.json``, where all processes of the run
find it; there is neither a code in it nor an API key.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.api import Api

PLAN_FILE: Final = "plan.json"
CODES_SPARE: Final = 1.2
CODES_AT_ONCE_MAX: Final = 200_000
_GUESSED: Final = ("code_not_found", "code_malformed", "too_many_attempts", "blocked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What a run is like when nothing else is said.

    Attributes:
        peak_per_s: attempts begun in a second, at the peak.
        seconds: how long.
        each_per_s: of one client: so many clients are there as it takes to reach the peak.
        terms: of the campaign.
        stock_share, uses_share: of all attempts, how many there is stock for, or uses of the one code.
        shared: all clients use one code.
        refusals: problem codes that belong to it and are no errors.
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


SCENARIOS: Final[dict[str, Scenario]] = {
    "unique-codes": Scenario(
        about="every attempt has a code of its own: the most that can succeed",
        peak_per_s=400,
        seconds=30,
    ),
    "flash-sale": Scenario(
        about="nobody, then everybody at once, for a stock that most do not get anything of",
        peak_per_s=600,
        seconds=30,
        each_per_s=2.0,
        terms={"kind": "single", "per_user_limit": 1},
        stock_share=0.1,
        refusals=("sold_out",),
    ),
    "hot-code": Scenario(
        about="one word that everybody types",
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
        about="of three who come, one guesses; what buyers get must not change",
        peak_per_s=400,
        seconds=30,
        refusals=_GUESSED,
    ),
    "mixed-day": Scenario(
        about="a day: looking, redeeming, holding, confirming, releasing, rolling back; a peak in the middle",
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
        run: names it; all its Idempotency-Keys and users begin with it.
        kind, amount, stock, max_uses, per_user_limit: the campaign's, for the verifier.
        shared_batch: the batch of the one code that all use.
        codes_at_once: codes that a process mints together; it mints more when these run low.
        cursor: the end of the feed before the run began.
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

    @property
    def uses_max(self) -> int:
        """How often one code may succeed."""
        return self.max_uses or 1

    def write(self, directory: Path) -> None:
        """Keep it in the directory of the run."""
        (directory / PLAN_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def run_name() -> str:
    """A name that no other run has."""
    return f"lt{int(time.time()):x}{os.getpid():x}"


def read_plan(directory: Path) -> Plan:
    """The plan of a run.

    Raises:
        OSError: there is none.
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
) -> Plan:
    """A new campaign for one run of a scenario, and the plan to run it by.

    Raises:
        ApiError: the engine refused.
    """
    scenario = SCENARIOS[name]
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
    )
