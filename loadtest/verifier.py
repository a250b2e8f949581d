"""After a run, compares every response that a client saw with the ledger, through the event feed.

* Every acknowledged change is in the ledger exactly once, and as the response said.
* Every event in the ledger was caused by a client of the run. That client got a success, no response, or
  `outcome_unknown`.
* The lifecycle model allows each event: no code succeeded more often than allowed, no limit was exceeded, and
  nothing was given back that was not taken.
* Every refusal because of other clients (such as `sold_out`) is explained by the events.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from loadtest.answers import NO_ANSWER, AnswerLog, LoggedAnswer
from loadtest.guard_check import GUESS, MISTYPE, GuardCheck
from loadtest.lifecycle import ModelCampaign
from loadtest.replay import LedgerReplay, recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from loadtest.api import Api
    from loadtest.scenarios import Plan

SETTLE_S_MAX: Final = 60.0
"""Missing changes count as lost after the ledger has had nothing new for this long."""
WAIT_S: Final = 1
SAY_S: Final = 1.0
LISTED_MAX: Final = 100
_OK: Final = 200
_EVENT_OF: Final = {
    "redeem": "redeemed",
    GUESS: "redeemed",
    MISTYPE: "redeemed",
    "hold": "held",
    "confirm": "confirmed",
    "release": "released",
    "rollback": "rolled_back",
}
_MADE_BY_TIME: Final = "expired"
_LIMIT_OF: Final = {
    "already_redeemed": "succeeded_too_often",
    "uses_exceeded": "succeeded_too_often",
    "sold_out": "stock_exceeded",
    "customer_limit_exceeded": "customer_limit_exceeded",
}
"""Kind of difference for an event that the model refuses, by refusal; any other is `not_allowed`."""
_UNKNOWN_PROBLEMS: Final = frozenset({"outcome_unknown", "internal_error", ""})
_FAULT: Final = 500


class ObservedAttempt(msgspec.Struct, gc=False):
    """Everything that clients saw under one Idempotency-Key.

    Attributes:
        ids: the ids in the successful responses.
        unknown: at least one request had no clear response.
        done: at least one request succeeded.
    """

    op: str
    batch: int
    serial: int
    user: str
    about: str
    ids: tuple[str, ...] = ()
    unknown: bool = False
    done: bool = False


class Discrepancy(msgspec.Struct, frozen=True):
    """One difference: its kind, the item, and a description."""

    kind: str
    item: str
    text: str


@dataclass(slots=True)
class Findings:
    """Findings of the verifier.

    Attributes:
        counts: number of all differences, by kind.
        listed: the first LISTED_MAX differences of each kind.
        acknowledged: changes that a response acknowledged.
        events: the campaign's events in the ledger.
        settled_unknown: attempts without a clear response that are in the ledger.
        guard: what the guard has done, in figures; empty where the scenario asks nothing of it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[Discrepancy] = field(default_factory=list)
    acknowledged: int = 0
    events: int = 0
    unknown: int = 0
    settled_unknown: int = 0
    guard: dict[str, object] = field(default_factory=dict)

    def add(self, kind: str, item: str, text: str) -> None:
        """Count a difference, and list it if its kind is not full."""
        self.counts[kind] += 1
        if self.counts[kind] <= LISTED_MAX:
            self.listed.append(Discrepancy(kind, item, text))

    def document(self) -> dict[str, object]:
        """Return the findings as a JSON document."""
        return {
            "acknowledged": self.acknowledged,
            "events": self.events,
            "without_outcome": self.unknown,
            "without_outcome_done": self.settled_unknown,
            "differences": dict(self.counts),
            "listed": [msgspec.structs.asdict(item) for item in self.listed],
            **({"guard": self.guard} if self.guard else {}),
        }


class Verifier:
    """Compares responses with events. Pass all responses first, then the events of each shard in order."""

    def __init__(self, plan: Plan) -> None:
        self.findings = Findings()
        self._plan = plan
        self._attempts: dict[str, ObservedAttempt] = {}
        self._refusals: dict[str, Counter[tuple[int, int]]] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._caused: set[str] = set()
        self._arrived = 0
        self._replay = LedgerReplay(
            ModelCampaign(
                plan.campaign,
                plan.kind,
                amount=plan.amount,
                max_uses=plan.max_uses,
                stock=plan.stock,
                per_user_limit=plan.per_user_limit,
            )
        )

    @property
    def waiting(self) -> int:
        """Number of acknowledged changes whose event has not come yet."""
        return self.findings.acknowledged - self._arrived

    def take_answer(self, answer: LoggedAnswer) -> None:
        """Take one response that a client saw."""
        if answer.op == "check":
            return
        attempt = self._attempts.get(answer.key)
        if attempt is None:
            attempt = ObservedAttempt(answer.op, answer.batch, answer.serial, answer.user, answer.about)
            self._attempts[answer.key] = attempt
        if answer.status == _OK:
            if not attempt.done:
                attempt.done = True
                self.findings.acknowledged += 1
            if answer.op in {GUESS, MISTYPE}:
                self.findings.add("guessed", answer.key, f"a made-up code was redeemed: {answer.id}")
            if answer.id not in attempt.ids:
                attempt.ids += (answer.id,)
        elif answer.status == NO_ANSWER or (answer.status >= _FAULT and answer.problem in _UNKNOWN_PROBLEMS):
            attempt.unknown = True
        else:
            self._refusals.setdefault(answer.problem, Counter())[answer.batch, answer.serial] += 1

    def take_event(self, event: dict[str, Any]) -> None:
        """Take one event of the ledger."""
        name, place = str(event["id"]), (int(event["shard"]), int(event["seq"]))
        known = self._seen.get(name)
        if known is not None:
            if known != place:
                text = f"rows {known[1]} and {place[1]} of the ledger are one event"
                self.findings.add("there_twice", name, text)
            return  # the same place: the event was only read twice
        self._seen[name] = place
        self.findings.events += 1
        refusal = self._replay.apply(recorded(event))
        if event["type"] == _MADE_BY_TIME and not refusal:
            return
        if refusal and event["type"] != _MADE_BY_TIME:
            what = f"{event['type']} {_code(event['batch'], event['serial'])}"
            text = f"{what} by {event['user']}: {refusal}, says the model"
            self.findings.add(_LIMIT_OF.get(refusal, "not_allowed"), name, text)
        self._explain(event, name)

    def end(self, answers: AnswerLog | None = None) -> Findings:
        """Finish the comparison and return the findings."""
        findings = self.findings
        for key, attempt in self._attempts.items():
            if len(attempt.ids) > 1:
                findings.add("answered_differently", key, f"one key, answered as {' and '.join(attempt.ids)}")
            if attempt.done and key not in self._caused:
                what = f"{attempt.op} of {_code(attempt.batch, attempt.serial)}"
                findings.add(
                    "lost", attempt.ids[0], f"{what} was acknowledged and is not in the ledger ({key})"
                )
            if attempt.unknown and not attempt.done:
                findings.unknown += 1
                findings.settled_unknown += key in self._caused
        self._check_reasons()
        for name in answers.broken if answers else ():
            findings.add("answers_missing", name, "the client process did not end in order")
        return findings

    def _explain(self, event: dict[str, Any], name: str) -> None:
        """Find the attempt that caused an event, or add a difference."""
        key = str(event["key"] or "")
        attempt = self._attempts.get(key)
        what = f"{event['type']} {_code(event['batch'], event['serial'])}"
        if attempt is None or _EVENT_OF.get(attempt.op) != event["type"]:
            self.findings.add("unexplained", name, f"{what} by nobody of this run (key {key or 'none'})")
            return
        if key in self._caused:
            self.findings.add("there_twice", name, f"{what}: a second event of one key ({key})")
            return
        if attempt.done:
            self._caused.add(key)
            self._arrived += 1
            self._compare(event, name, attempt)
        elif attempt.unknown:
            self._caused.add(key)
        else:
            self.findings.add("unexplained", name, f"{what}: its client was refused ({key})")

    def _compare(self, event: dict[str, Any], name: str, attempt: ObservedAttempt) -> None:
        response = {"code": (attempt.batch, attempt.serial), "user": attempt.user or event["user"]}
        there = {"code": (event["batch"], event["serial"]), "user": event["user"]}
        if attempt.about:
            response["about"] = attempt.about
            there["about"] = event["hold"] if event["type"] == "confirmed" else event["redemption"]
        if event["type"] in {"redeemed", "held", "confirmed"}:
            response["id"], there["id"] = attempt.ids[0], name
        for member, value in response.items():
            if value != there[member]:
                text = f"{member} answered as {value}, in the ledger {there[member]}"
                self.findings.add("not_as_answered", name, text)

    def _check_reasons(self) -> None:
        """Check that the events explain the refusals that other clients caused."""
        plan, most_uses = self._plan, self._replay.most_uses
        for code in self._refusals.get("already_redeemed", ()):
            if not most_uses[code]:
                self.findings.add(
                    "refused_without_reason", _code(*code), "already_redeemed, but nobody has redeemed it"
                )
        for code in self._refusals.get("uses_exceeded", ()):
            if most_uses[code] < plan.uses_max:
                text = f"uses_exceeded after {most_uses[code]} of {plan.uses_max}"
                self.findings.add("refused_without_reason", _code(*code), text)
        if self._refusals.get("sold_out") and self._replay.most_sold < (plan.stock or 0):
            text = f"sold_out, when {self._replay.most_sold} of {plan.stock} were sold"
            self.findings.add("refused_without_reason", plan.campaign, text)


def verify(
    api: Api,
    plan: Plan,
    directory: Path,
    *,
    settle_s: float = SETTLE_S_MAX,
    say: Callable[[str], object] = lambda _: None,
) -> Findings:
    """Compare the responses in a directory with the feed; wait until the ledger has all acknowledged changes.

    Raises:
        ApiError: the feed cannot be read.
    """
    verifier, answers = Verifier(plan), AnswerLog(directory)
    guard = GuardCheck(plan, plan.rule) if plan.rule else None
    for answer in answers:
        verifier.take_answer(answer)
        if guard:
            guard.take_answer(answer)
    cursor = plan.cursor
    quiet_since = said = time.monotonic()
    while True:
        events, behind = api.events(cursor, plan.campaign, wait_s=WAIT_S)
        _take_all(verifier, events)
        if events:
            quiet_since = time.monotonic()
            if quiet_since - said > SAY_S:
                said = quiet_since
                say(f"{verifier.findings.events} events compared")
        elif behind == cursor and (verifier.waiting <= 0 or time.monotonic() - quiet_since > settle_s):
            if guard:
                guard.end(verifier.findings, api.blocks())
            return verifier.end(answers)
        cursor = behind


def _take_all(verifier: Verifier, events: Iterable[dict[str, Any]]) -> None:
    for event in events:
        verifier.take_event(event)


def _code(batch: int, serial: int) -> str:
    return f"code {batch}/{serial}"
