"""The verifier of the load tests catches what it is there for: each difference is planted once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from loadtest.answers import NO_ANSWER, AnswerLog, LoggedAnswer, Writer
from loadtest.scenarios import Plan
from loadtest.verifier import LISTED_MAX, Findings, Verifier
from tests.support.load_plan import PLAN

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def answered(
    number: int,
    status: int = 200,
    problem: str = "",
    *,
    op: str = "redeem",
    **others: Any,  # noqa: ANN401 - fields
) -> LoggedAnswer:
    fields: dict[str, Any] = {
        "key": f"key-{number}",
        "id": f"0-{number}-0" if status == 200 else "",
        "batch": 1,
        "serial": number,
        "user": f"user-{number}",
    }
    return LoggedAnswer(op=op, status=status, problem=problem, at=0.0, ms=1.0, **(fields | others))


def event(number: int, kind: str = "redeemed", **others: Any) -> dict[str, Any]:  # noqa: ANN401 - fields
    fields: dict[str, Any] = {
        "id": f"0-{number}-0",
        "shard": 0,
        "seq": number,
        "type": kind,
        "redemption": f"0-{number}-0",
        "hold": None,
        "batch": 1,
        "serial": number,
        "user": f"user-{number}",
        "order": None,
        "amount": None,
        "key": f"key-{number}",
    }
    return fields | others


def found(answers: Iterable[LoggedAnswer], events: Iterable[dict[str, Any]], plan: Plan = PLAN) -> Findings:
    verifier = Verifier(plan)
    for answer in answers:
        verifier.take_answer(answer)
    for one in events:
        verifier.take_event(one)
    return verifier.end()


def kinds(answers: Iterable[LoggedAnswer], events: Iterable[dict[str, Any]], **terms: Any) -> dict[str, int]:  # noqa: ANN401 - fields
    plan = Plan(**({name: getattr(PLAN, name) for name in Plan.__struct_fields__} | terms))
    return dict(found(answers, events, plan).counts)


def test_answers_that_are_in_the_ledger_once_each_make_no_difference() -> None:
    findings = found([answered(1), answered(2)], [event(1), event(2)])
    assert not findings.counts
    assert (findings.acknowledged, findings.events) == (2, 2)


def test_a_success_that_the_ledger_does_not_have_is_lost() -> None:
    findings = found([answered(1), answered(2)], [event(1)])
    assert [(item.kind, item.item) for item in findings.listed] == [("lost", "0-2-0")]
    assert "code 1/2" in findings.listed[0].text


def test_a_success_that_the_ledger_has_in_two_rows_is_there_twice() -> None:
    assert kinds([answered(1)], [event(1), event(1, seq=2)]) == {"there_twice": 1}


def test_an_event_that_is_only_read_again_makes_no_difference() -> None:
    assert not kinds([answered(1)], [event(1), event(1)])


def test_two_events_of_one_key_are_found() -> None:
    assert kinds([answered(1)], [event(1), event(1, id="0-9-0", seq=2)])["there_twice"] == 1


def test_a_code_that_two_clients_got_is_found() -> None:
    both = [answered(1), answered(2, serial=1)]
    assert kinds(both, [event(1), event(2, serial=1)]) == {"succeeded_too_often": 1}


def test_a_code_may_succeed_again_after_it_was_rolled_back() -> None:
    answers = [
        answered(1),
        answered(2, op="rollback", id="0-1-0", about="0-1-0", serial=1, user="user-1"),
        answered(3, serial=1),
    ]
    undone = event(2, "rolled_back", redemption="0-1-0", serial=1, user="user-1")
    assert not kinds(answers, [event(1), undone, event(3, serial=1)])


def test_one_more_than_the_stock_is_found() -> None:
    assert kinds([answered(1), answered(2)], [event(1), event(2)], stock=1) == {"stock_exceeded": 1}


def test_one_more_than_a_user_may_have_is_found() -> None:
    answers = [answered(1), answered(2, user="user-1")]
    events = [event(1), event(2, user="user-1")]
    assert kinds(answers, events, per_user_limit=1) == {"customer_limit_exceeded": 1}


def test_a_shared_code_may_succeed_as_often_as_it_says() -> None:
    answers = [answered(1, serial=0), answered(2, serial=0), answered(3, 409, "uses_exceeded", serial=0)]
    assert not kinds(answers, [event(1, serial=0), event(2, serial=0)], kind="multi", max_uses=2)


def test_an_event_that_no_client_can_have_caused_is_found() -> None:
    assert kinds([answered(1)], [event(1), event(2)]) == {"unexplained": 1}


@pytest.mark.parametrize("problem", ["already_redeemed", "overloaded", "store_unavailable"])
def test_an_event_whose_client_got_an_error_that_says_nothing_happened_is_found(problem: str) -> None:
    status = 409 if problem == "already_redeemed" else 503
    assert "unexplained" in kinds([answered(1, status, problem)], [event(1)])


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    ("status", "problem"), [(NO_ANSWER, ""), (503, "outcome_unknown"), (500, "internal_error")]
)
def test_what_became_of_an_attempt_without_an_outcome_is_open(
    status: int, problem: str, *, there: bool
) -> None:
    findings = found([answered(1, status, problem)], [event(1)] if there else [])
    assert not findings.counts
    assert (findings.unknown, findings.settled_unknown) == (1, int(there))


def test_a_retry_that_was_answered_belongs_to_the_try_that_was_not() -> None:
    answers = [answered(1, NO_ANSWER, last=False), answered(1, replayed=True)]
    assert not kinds(answers, [event(1)])
    assert kinds(answers, []) == {"lost": 1}


def test_a_retry_that_was_answered_as_another_redemption_is_found() -> None:
    answers = [answered(1), answered(1, id="0-7-0", replayed=True)]
    assert kinds(answers, [event(1)]) == {"answered_differently": 1}


@pytest.mark.parametrize("other", [{"serial": 9}, {"user": "user-9"}, {"id": "0-9-0"}])
def test_an_event_that_is_not_as_it_was_answered_is_found(other: dict[str, Any]) -> None:
    assert kinds([answered(1)], [event(1, **other)]) == {"not_as_answered": 1}


HOLDS_ANSWERED = [
    answered(1, op="hold"),
    answered(2, op="confirm", about="0-1-0", serial=1, user="user-1"),
    answered(3, op="hold"),
    answered(4, op="release", about="0-3-0", serial=3, id="0-3-0", user="user-3"),
    answered(5, op="hold"),
]
HOLDS = [
    event(1, "held", order="o"),
    event(2, "confirmed", hold="0-1-0", serial=1, user="user-1", order="o"),
    event(3, "held", order="o"),
    event(4, "released", redemption="0-3-0", serial=3, user="user-3", order="o"),
    event(5, "held", order="o"),
    event(6, "expired", redemption="0-5-0", serial=5, user="user-5", order="o", key=None),
]


def test_holds_are_confirmed_released_and_expire() -> None:
    assert not kinds(HOLDS_ANSWERED, HOLDS)
    assert kinds(HOLDS_ANSWERED, HOLDS[:3]) == {"lost": 2}


def test_a_held_use_counts_against_the_stock_until_it_is_given_back() -> None:
    answers = [*HOLDS_ANSWERED, answered(7)]
    assert not kinds(answers, [*HOLDS, event(7)], stock=2)
    assert kinds(answers, [*HOLDS[:5], event(7)], stock=2) == {"stock_exceeded": 1}


@pytest.mark.parametrize(
    ("last_answer", "impossible"),
    [
        (answered(7, op="release", about="0-3-0", serial=3), {"type": "released", "redemption": "0-3-0"}),
        (
            answered(7, op="confirm", about="0-3-0", serial=3),
            {"type": "confirmed", "hold": "0-3-0", "order": "o"},
        ),
        (answered(7, op="rollback", id="0-3-0", serial=3), {"type": "rolled_back", "redemption": "0-3-0"}),
    ],
)
def test_an_event_that_the_state_of_its_code_does_not_allow_is_found(
    last_answer: LoggedAnswer, impossible: dict[str, Any]
) -> None:
    answers, last = [*HOLDS_ANSWERED, last_answer], event(7, serial=3) | impossible
    assert kinds(answers, [*HOLDS, last])["not_allowed"] == 1


def test_a_redemption_that_was_rolled_back_twice_is_found() -> None:
    same: dict[str, Any] = {"serial": 1, "user": "user-1"}
    answers = [answered(1), *(answered(number, op="rollback", id="0-1-0", **same) for number in (2, 3))]
    once, twice = (event(number, "rolled_back", redemption="0-1-0", **same) for number in (2, 3))
    assert not kinds(answers[:2], [event(1), once])
    assert kinds(answers, [event(1), once, twice]) == {"not_allowed": 1}


def test_an_amount_that_the_campaign_does_not_have_is_found() -> None:
    assert not kinds([answered(1)], [event(1, amount=500)], amount=500)
    assert kinds([answered(1)], [event(1, amount=499)], amount=500) == {"not_allowed": 1}


def test_a_hold_that_nobody_made_does_not_expire() -> None:
    assert kinds([], [event(6, "expired", redemption="0-5-0", key=None)]) == {"unexplained": 1}


def test_a_made_up_code_that_was_redeemed_is_found() -> None:
    assert "guessed" in kinds([answered(1, op="guess")], [event(1)])


def test_a_refusal_because_of_others_is_held_against_what_they_did() -> None:
    assert kinds([answered(1, 409, "already_redeemed")], []) == {"refused_without_reason": 1}
    assert kinds([answered(1, 409, "uses_exceeded")], [], kind="multi", max_uses=2) == {
        "refused_without_reason": 1
    }
    assert kinds([answered(1, 409, "sold_out")], [], stock=1) == {"refused_without_reason": 1}
    assert not kinds([answered(1), answered(2, 409, "sold_out")], [event(1)], stock=1)


def test_all_differences_are_counted_and_some_are_listed() -> None:
    findings = found([answered(number) for number in range(LISTED_MAX + 5)], [])
    assert (findings.counts["lost"], len(findings.listed)) == (LISTED_MAX + 5, LISTED_MAX)


def test_answers_are_read_as_they_were_written_and_missing_ones_are_noticed(tmp_path: Path) -> None:
    with Writer(tmp_path) as writer:
        writer.write(answered(1))
        writer.unsent = 3
    answers = AnswerLog(tmp_path)
    assert list(answers) == [answered(1)]
    assert (answers.unsent, answers.broken) == (3, [])
    file = answers.files[0]
    whole = file.read_bytes()
    for cut in (whole[: whole.rindex(b'{"answers"')], whole[whole.index(b"\n") + 1 :]):
        file.write_bytes(cut)
        list(answers)
        assert answers.broken == [file.name]
    assert Verifier(PLAN).end(answers).counts == {"answers_missing": 1}
