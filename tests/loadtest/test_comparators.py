"""The comparators' pure parts: what wrk tells, what a contender is believed, and the ratios."""

from __future__ import annotations

import pytest

from loadtest.comparators import report, wrk
from loadtest.comparators.contenders import PEERS
from loadtest.comparators.run import Options, PeerFigures, PeerLoad, WrongError, check
from loadtest.comparators.wrk import WrkOutcome

RESULT = 'result {"requests":1200,"refused":0,"broken":0,"seconds":2.000000,"p50_ms":1.250,"p99_ms":9.000}'


def outcome(requests: int = 100, refused: int = 0, broken: int = 0) -> WrkOutcome:
    return WrkOutcome(requests, refused, broken, seconds=1.0, p50_ms=1.0, p99_ms=2.0)


def figures(per_second: float, front_us: float) -> PeerFigures:
    return PeerFigures(
        per_second=per_second,
        front_us=front_us,
        store_us=1.0,
        client_us=1.0,
        front_busy=0.9,
        others_busy=0.5,
        p50_ms=1.0,
        p99_ms=2.0,
    )


def test_wrk_s_result_is_found_among_what_it_says() -> None:
    said = (
        f"Running 2s test @ http://127.0.0.1:1\n  1 threads and 16 connections\n{RESULT}\nRequests/sec: 1\n"
    )
    found = wrk.parse(said)
    assert (found.requests, found.refused, found.broken) == (1200, 0, 0)
    assert found.per_second == 600
    assert (found.p50_ms, found.p99_ms) == (1.25, 9)


@pytest.mark.parametrize("said", ["unable to connect", f"{RESULT}\n{RESULT}", "result {}", ""])
def test_wrk_without_one_result_is_an_error(said: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec's are of that kind, too
        wrk.parse(said)


@pytest.mark.parametrize("done", [100, 116, None])
def test_a_contender_is_believed_where_its_store_has_what_it_answered(done: int | None) -> None:
    check("it", outcome(), done, connections=16)


@pytest.mark.parametrize("done", [0, 99, 117])
def test_a_contender_is_not_believed_where_its_store_has_another_number(done: int) -> None:
    with pytest.raises(WrongError, match=f"its store has {done}"):
        check("it", outcome(), done, connections=16)


@pytest.mark.parametrize("seen", [outcome(refused=1), outcome(broken=1)])
def test_one_refusal_or_broken_connection_is_an_error(seen: WrkOutcome) -> None:
    with pytest.raises(WrongError, match="refusals"):
        check("it", seen, 100, connections=16)


def test_ratios_are_of_the_same_round() -> None:
    measured = {
        "engine": [figures(10, 100), figures(20, 100), figures(40, 50)],
        "other": [figures(5, 200), figures(20, 300), figures(10, 400)],
    }
    found = report.summary(measured)
    assert found["other"]["engine/it"] == {"median": 2, "least": 1, "most": 4}
    assert found["other"]["its front/engine's"] == {"median": 3, "least": 2, "most": 8}
    assert found["other"]["its both/engine's"] == {"median": 2.98, "least": 1.99, "most": 7.86}
    assert found["engine"]["per_second"]["median"] == 20
    assert "engine/it" not in found["engine"]


def test_without_the_engine_there_are_no_ratios() -> None:
    assert "engine/it" not in report.summary({"other": [figures(5, 200)]})["other"]


def test_the_table_has_a_row_for_each_contender() -> None:
    measured = {peer.name: [figures(10, 100)] for peer in PEERS}
    rows = report.table(report.summary(measured), PEERS, "16 connections").splitlines()[2:]
    assert [row.split(":")[0].strip("| ") for row in rows] == [peer.name for peer in PEERS]
    assert len({row.count("|") for row in rows}) == 1


def test_a_turn_has_codes_for_its_warm_up_and_all_its_loads() -> None:
    how = Options(rounds=1, seconds=2, loads=(PeerLoad(16), PeerLoad(256)))
    for peer in PEERS:
        assert how.codes(peer) >= peer.codes_per_s * 5
