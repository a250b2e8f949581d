"""The persister's columns say the same as the events that everybody else decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.store import events
from persister.ingest.entries import COLUMNS, SALT_BYTES, StreamId, decode_entries

if TYPE_CHECKING:
    from random import Random

    from engine.store.event_lines import Entry

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
INT4 = st.integers(0, 2**31 - 1).map(str)
MONEY = st.integers(-(2**53), 2**53).map(str)
MS = st.integers(0, 2**48).map(str)
VALUES = st.tuples(
    *(st.just("1"), TEXT, TEXT, TEXT, TEXT, INT4, INT4, TEXT, TEXT),
    *(st.just("") | MONEY, TEXT, TEXT, TEXT, TEXT, MS),
)
UNHURRIED = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ENTRIES = st.lists(st.tuples(st.integers(0, 2**48), st.integers(0, 2**31), VALUES), min_size=1, max_size=20)


def entry(ms: int, sequence: int, texts: tuple[str, ...]) -> Entry:
    pairs = zip(events.FIELDS, texts, strict=True)
    return b"%d-%d" % (ms, sequence), [part.encode() for pair in pairs for part in pair]


def before_holds(whole: Entry) -> Entry:
    """The entry as it was written before events had the field ``hold``."""
    entry_id, parts = whole
    at = 2 * events.FIELDS.index("hold")
    return entry_id, parts[:at] + parts[at + 2 :]


@UNHURRIED
@given(ENTRIES)
def test_columns_say_what_the_events_say(drawn: list[tuple[int, int, tuple[str, ...]]]) -> None:
    entries = [entry(*each) for each in drawn]
    decoded = decode_entries(entries)
    assert decoded.rejects == []
    for number, (record, (entry_id, raw)) in enumerate(zip(decoded.records(3, 11), entries, strict=True)):
        (event,) = events.decode_entry(3, entry_id, raw)
        *values, salt, fingerprint = record
        assert values == [*event.id, 11 + number, *event[1:-1]]
        assert isinstance(salt, bytes)
        assert len(salt) == SALT_BYTES
        assert fingerprint is None


@UNHURRIED
@given(ENTRIES, st.lists(st.lists(st.binary(max_size=5), max_size=30), max_size=5), st.randoms())
def test_no_entry_among_others_is_lost(
    drawn: list[tuple[int, int, tuple[str, ...]]], strange: list[list[bytes]], random: Random
) -> None:
    good = [entry(*each) for each in drawn]
    bad = [(b"9-9", raw) for raw in strange]
    entries = good + bad
    random.shuffle(entries)
    decoded = decode_entries(entries)
    assert decoded.raw_events() == [each for each in entries if each in good]
    assert decoded.sources == entries
    assert [reject.raw for reject in decoded.rejects] == [raw for _, raw in entries if raw in strange]
    assert len(list(decoded.records(0, 1))) == len(good)


@UNHURRIED
@given(ENTRIES, st.randoms())
def test_entries_of_an_older_version_are_read_among_others(
    drawn: list[tuple[int, int, tuple[str, ...]]], random: Random
) -> None:
    whole = [entry(*each) for each in drawn]
    entries = [before_holds(each) if random.random() < 0.5 else each for each in whole]
    decoded = decode_entries(entries)
    assert (decoded.raw_events(), decoded.rejects) == (entries, [])
    for record, (entry_id, raw), written in zip(decoded.records(3, 1), entries, whole, strict=True):
        (event,), (as_written,) = events.decode_entry(3, entry_id, raw), events.decode_entry(3, *written)
        assert event == (as_written if raw == written[1] else as_written._replace(hold=None))
        assert record[-3] == event.hold


@UNHURRIED
@given(ENTRIES, ENTRIES, st.randoms())
def test_metadata_that_follows_the_fields_is_taken_off(
    drawn: list[tuple[int, int, tuple[str, ...]]],
    after: list[tuple[int, int, tuple[str, ...]]],
    random: Random,
) -> None:
    plain = [[entry(*each) for each in part] for part in (drawn, after)]
    noted = [[with_note(whole) if random.random() < 0.5 else whole for whole in part] for part in plain]
    decoded = decode_entries(noted[0]).followed_by(decode_entries(noted[1]))
    expected = decode_entries(plain[0]).followed_by(decode_entries(plain[1]))
    assert decoded.rejects == []
    random_ones = COLUMNS.index("user_seal") - len(COLUMNS)
    for columns in (decoded.columns, expected.columns):
        del columns[random_ones]
    assert decoded.columns == expected.columns
    assert decoded.metadata == [
        (StreamId.parse(entry_id), f"note of {entry_id.decode()}")
        for entry_id, raw in (*noted[0], *noted[1])
        if raw[-2] == events.METADATA
    ]
    for entry_id, raw in noted[0]:
        note = f"note of {entry_id.decode()}" if raw[-2] == events.METADATA else None
        assert events.decode_entry(3, entry_id, raw)[0].metadata == note


def with_note(whole: Entry) -> Entry:
    entry_id, raw = whole
    return entry_id, [*raw, events.METADATA, b"note of " + entry_id]
