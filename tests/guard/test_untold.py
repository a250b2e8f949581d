"""A flood with one API key delays nobody's attempts with another, and memory stays bounded."""

from __future__ import annotations

from engine.guard.labels import UNKNOWN, Tried
from engine.guard.untold import Untold
from engine.observability.metrics import GUARD_NOT_LOOKED_AT


def attempts(key: str, count: int) -> list[Tried]:
    return [Tried(key, "", f"203.0.113.{number % 250}", "", UNKNOWN, number) for number in range(count)]


def test_who_floods_one_key_hides_nobody_who_guesses_with_another() -> None:
    untold = Untold(8192)
    untold.add(attempts("key_flooded", 20_000))
    untold.add(attempts("key_quiet", 10))
    first = untold.take(500)
    assert len(first) == 500
    assert [tried.digest for tried in first if tried.key == "key_quiet"] == list(range(10))


def test_what_is_too_much_is_dropped_from_the_longest_queue_and_counted() -> None:
    untold, before = Untold(100), GUARD_NOT_LOOKED_AT._value.get()
    untold.add(attempts("key_quiet", 20))
    untold.add(attempts("key_flooded", 200))
    untold.add(attempts("key_quiet", 20))
    taken = untold.take(1000)
    assert len(taken) == 100
    assert sum(tried.key == "key_quiet" for tried in taken) == 40
    assert GUARD_NOT_LOOKED_AT._value.get() - before == 140
    assert untold.take(1000) == []


def test_attempts_of_one_key_keep_their_order() -> None:
    untold = Untold(100)
    untold.add(attempts("key_one", 50))
    assert [tried.digest for part in range(5) for tried in untold.take(10)] == list(range(50))
    assert untold.take(1) == []


def test_no_key_waits_for_long_however_many_there_are() -> None:
    untold = Untold(8192)
    for number in range(30):
        untold.add(attempts(f"key_{number}", 10))
    told = [tried.key for part in range(3) for tried in untold.take(10)]
    assert len(set(told)) == 30
