"""When a webhook message is tried again: never before most of the pause, never after it, and not for ever."""

from __future__ import annotations

import pytest

from engine.settings import Settings, SettingsError
from persister.webhooks.retry_schedule import JITTER, RETRY_AFTER_S_MAX, RetrySchedule, parse_retry_schedule

DAY_S = 86_400


def test_by_default_a_message_is_given_up_within_three_days_but_not_before_two() -> None:
    schedule = parse_retry_schedule(Settings().webhook_retry_s)
    assert 2 * DAY_S < sum(schedule.pauses_s) * (1 - JITTER) < sum(schedule.pauses_s) <= 3 * DAY_S
    assert list(schedule.pauses_s) == sorted(schedule.pauses_s)


def test_by_default_an_endpoint_that_was_away_for_seconds_waits_for_seconds() -> None:
    pauses_s = parse_retry_schedule(Settings().webhook_retry_s).pauses_s
    assert pauses_s[:5] == (5, 10, 20, 40, 60)
    # Messages are sent in order, so a long pause stops all later events: no pause is much longer than the
    # whole time that the endpoint has been failing.
    waited_s = pauses_s[0]
    for pause_s in pauses_s[1:]:
        assert pause_s <= 3 * waited_s
        waited_s += pause_s


def test_pauses_differ_and_stay_within_their_rung() -> None:
    pauses = {RetrySchedule((10.0, 100.0)).pause_s(2) for _ in range(1000)}
    assert len(pauses) > 100
    assert all(pause is not None and 80 <= pause <= 100 for pause in pauses)


def test_behind_the_last_rung_there_is_none() -> None:
    assert RetrySchedule((1.0, 2.0)).pause_s(3) is None
    assert RetrySchedule(()).pause_s(1) is None


def test_who_asks_for_time_gets_it_but_not_all_of_it() -> None:
    schedule = RetrySchedule((5.0,))
    assert schedule.pause_s(1, 60.0) == 60
    assert schedule.pause_s(1, 10.0 * RETRY_AFTER_S_MAX) == RETRY_AFTER_S_MAX
    assert (schedule.pause_s(1, 0.0) or 0) >= 4


@pytest.mark.parametrize("text", ["soon", "5,-1", "inf", "nan", "5;6"])
def test_what_is_no_retry_schedule_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="REDEEM_WEBHOOK_RETRY_S"):
        parse_retry_schedule(text)
