"""What the verifier demands of the guard: each miss is planted once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from loadtest.addresses import sources_of
from loadtest.answers import LoggedAnswer
from loadtest.guard_check import ACT_S_MAX, GuardCheck
from loadtest.scenarios import FLOOD, SCORE
from loadtest.verifier import Findings
from tests.support.load_plan import PLAN

if TYPE_CHECKING:
    from collections.abc import Iterable

RUN: Final = msgspec.structs.replace(PLAN, rule=SCORE)


def tried(at: float, problem: str, op: str = "guess", user: str = "eve") -> LoggedAnswer:
    status = 404 if problem else 200
    return LoggedAnswer(op=op, status=status, at=at, ms=10.0, key=f"{user} {at}", problem=problem, user=user)


def guesses(
    last_s: int, found_s: float | None, answer: str = "blocked", per_s: int = 1
) -> list[LoggedAnswer]:
    times = [number / per_s for number in range(last_s * per_s)]
    return [tried(at, answer if found_s is not None and at >= found_s else "code_not_found") for at in times]


def found(answers: Iterable[LoggedAnswer], *blocks: dict[str, Any], rule: str = SCORE) -> Findings:
    check, findings = GuardCheck(RUN, rule), Findings()
    for answer in answers:
        check.take_answer(answer)
    check.end(findings, blocks)
    return findings


def test_a_guesser_must_be_blocked_after_its_eighth_code() -> None:
    in_time = found(guesses(20, 9.0))
    assert not in_time.counts
    assert (in_time.guard["found"], in_time.guard["wait_s_most"]) == (1, 2.0)
    assert found(guesses(20, 7.0 + ACT_S_MAX + 4)).counts == {"not_blocked": 1}
    assert found(guesses(20, None)).counts == {"not_blocked": 1}


def test_slow_guesses_and_short_runs_prove_nothing() -> None:
    assert found(guesses(9, 8.0)).counts == {"not_tried": 1}  # it was blocked, but did not go on long enough
    slow = [tried(at * 10.0, "code_not_found") for at in range(20)]
    assert found(slow).counts == {"not_tried": 1}


def test_a_botnet_must_be_challenged_after_its_151st_code_in_30_seconds() -> None:
    assert not found(guesses(60, 22.0, "challenge_required", per_s=8), rule=FLOOD).counts
    assert found(guesses(60, None, per_s=8), rule=FLOOD).counts == {"not_challenged": 1}
    assert found(guesses(60, None, per_s=4), rule=FLOOD).counts == {"not_tried": 1}  # that is no flood


def test_honest_customers_must_be_let_in() -> None:
    ann = [tried(1.0, "code_not_found", "mistype", "ann"), tried(2.0, "", "redeem", "ann")]
    assert not found(guesses(20, 9.0) + ann).counts
    for problem, op in (("blocked", "mistype"), ("blocked", "redeem"), ("code_not_found", "redeem")):
        refused = [tried(1.0, problem, op, "ann")]
        assert found(guesses(20, 9.0) + refused).counts == {"honest_refused": 1}
    asked = tried(3.0, "challenge_required", "redeem", "ann")
    assert not found([*guesses(20, 9.0), asked]).counts  # the run was over
    assert found([*guesses(20, 9.0), asked, asked]).counts == {"honest_refused": 1}
    solved = msgspec.structs.replace(tried(3.5, "", "redeem", "ann"), key=asked.key)
    assert not found([*guesses(20, 9.0), asked, solved]).counts


def test_no_block_of_the_guard_may_name_an_honest_customer() -> None:
    ann = tried(1.0, "", "redeem", "ann")
    for kind, subject in sources_of(RUN, "ann"):
        block = {"id": "blk_1", "kind": kind, "subject": subject, "actor": "guard"}
        assert found([*guesses(20, 9.0), ann], block).counts == {"honest_blocked": 1}
        assert not found([*guesses(20, 9.0), ann], block | {"actor": "cli"}).counts
    eve = {"id": "blk_2", "kind": "user", "subject": "eve", "actor": "guard"}
    assert not found([*guesses(20, 9.0), ann], eve).counts
