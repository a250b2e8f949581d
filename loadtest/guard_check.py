"""Checks what the guard has done in a run: guessers are found in time, and honest customers are let in.

The rules are exact: with the figures that the engine has by default, the guard must find a guesser at its
eighth made-up code, and a botnet at its 151st within 30 seconds. Codes at random are made up, so the answers
that the guessers got say when that was.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loadtest.addresses import sources_of
from loadtest.scenarios import FLOOD, SCORE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadtest.answers import LoggedAnswer
    from loadtest.scenarios import Plan
    from loadtest.verifier import Findings

GUESS: Final = "guess"
MISTYPE: Final = "mistype"
ACT_S_MAX: Final = 5.0
"""How long after the code that was one too many a guesser may go on. Far more than the guard needs, because a
load test may have taken all of the machine."""
NOT_FOUND: Final = "code_not_found"
BLOCKED: Final = "blocked"
CHALLENGED: Final = "challenge_required"


class Duty(NamedTuple):
    """What a rule must do: after so many codes within so many seconds, give this answer.

    Attributes:
        of_each: each user is judged by itself, not all guesses together.
        failed: the kind of difference if it has not.
    """

    answer: str
    codes: int
    within_s: float
    of_each: bool
    failed: str


DUTIES: Final = {
    SCORE: Duty(BLOCKED, 8, 60.0, of_each=True, failed="not_blocked"),
    FLOOD: Duty(CHALLENGED, 151, 30.0, of_each=False, failed="not_challenged"),
}


class _Guess(NamedTuple):
    sent: float
    answered: float
    problem: str


class GuardCheck:
    """Takes the answers of a run in any order, then says what the guard has missed."""

    def __init__(self, plan: Plan, rule: str) -> None:
        self._plan, self._duty = plan, DUTIES[rule]
        self._guesses: dict[str, list[_Guess]] = defaultdict(list)
        self._honest: set[str] = set()
        self._refused: list[LoggedAnswer] = []
        self._asked: Counter[str] = Counter()
        self._let_in: set[str] = set()

    def take_answer(self, answer: LoggedAnswer) -> None:
        """Take one answer that a client saw."""
        if answer.op == GUESS:
            who = answer.user if self._duty.of_each else "the botnet"
            self._guesses[who].append(_Guess(answer.at, answer.at + answer.ms / 1000, answer.problem))
            return
        self._honest.add(answer.user)
        if answer.problem == CHALLENGED:
            self._asked[answer.key] += 1
        elif not answer.problem:
            self._let_in.add(answer.key)
        if answer.problem == BLOCKED or (answer.op != MISTYPE and answer.problem == NOT_FOUND):
            self._refused.append(answer)

    def end(self, findings: Findings, blocks: Iterable[dict[str, Any]]) -> None:
        """Add what the guard has missed, and how long it took. ``blocks``: those in force."""
        waits, duty = self._judge(findings), self._duty
        for answer in self._refused:
            text = f"an honest customer got {answer.problem} for a {answer.op} ({answer.key})"
            findings.add("honest_refused", answer.user, text)
        for key, times in self._asked.items():
            if times > 1 and key not in self._let_in:  # once only: the run was over before it was solved
                findings.add("honest_refused", key, "a customer solved a challenge, and was not let in")
        honest = {source for user in self._honest for source in sources_of(self._plan, user)}
        for block in blocks:
            if block["actor"] == "guard" and (block["kind"], block["subject"]) in honest:
                findings.add("honest_blocked", block["id"], f"{block['kind']} {block['subject']}, a customer")
        findings.guard = {
            "guessers": len(self._guesses),
            "found": len(waits),
            "answer": duty.answer,
            "after_codes": duty.codes,
            "wait_s_median": round(statistics.median(waits), 3) if waits else None,
            "wait_s_most": round(max(waits), 3) if waits else None,
            "challenges_solved": len(self._asked.keys() & self._let_in),
        }

    def _judge(self, findings: Findings) -> list[float]:
        """Add which guessers were not found; return how long it took for each that was."""
        duty, waits, judged = self._duty, [], 0
        for who, guesses in self._guesses.items():
            guesses.sort()
            due = _due(guesses, duty)
            if due is None:
                continue
            judged += guesses[-1].sent > due + ACT_S_MAX
            missed = sum(one.sent > due + ACT_S_MAX and one.problem == NOT_FOUND for one in guesses)
            if missed:
                text = f"{missed} guesses more than {ACT_S_MAX:g} s after the {duty.codes}th"
                findings.add(duty.failed, who, f"{text} were not answered {duty.answer}")
            found = min((one.answered for one in guesses if one.problem == duty.answer), default=None)
            if found is not None:
                waits.append(max(0.0, found - due))
        if not judged:
            text = (
                f"nobody tried {duty.codes} codes within {duty.within_s:g} s and went on for {ACT_S_MAX:g} s"
            )
            findings.add("not_tried", self._plan.scenario, f"{text}: raise --peak or --seconds")
        return waits


def _due(guesses: list[_Guess], duty: Duty) -> float | None:
    """Return when the guard knew enough: the time of the answer to the code that was one too many."""
    latest: deque[float] = deque()
    for answered in sorted(one.answered for one in guesses if one.problem == NOT_FOUND):
        latest.append(answered)
        while latest[0] < answered - duty.within_s:
            latest.popleft()
        if len(latest) >= duty.codes:
            return answered
    return None
