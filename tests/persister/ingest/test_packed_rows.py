"""The compiled reader of packed entries gives what its Python twin gives: COPY, link, totals, rejects."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.store.event_lines import EventLine, encode_line, packed_entry
from persister.ingest import chain, entries
from persister.ingest.entries import COLUMNS, Entries, decode_entries, read_entries
from persister.ingest.rows import EncodedRows
from persister.ingest.totals import count_totals

if TYPE_CHECKING:
    from random import Random

    from engine.store.event_lines import Entry

pytestmark = pytest.mark.skipif(not entries.COMPILED, reason="nothing was compiled in this installation")

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12) | st.sampled_from(["", "a" * 200])
TYPE = st.sampled_from(["redeemed", "held", "voided", "unvoided", "expired", "rolled_back"]) | TEXT
INT4 = st.integers(-(2**31), 2**31 - 1)
INT8 = st.sampled_from([0, -(2**63), 2**63 - 1, 10**18, -(10**17)]) | st.integers(-(2**63), 2**63 - 1)
LAST4 = st.sampled_from(["", "ABCD"])
VALUES = st.tuples(
    *(
        TYPE,
        st.none() | TEXT,
        st.none() | TEXT,
        TEXT,
        INT4,
        INT4,
        LAST4,
        TEXT,
        st.none() | INT8,
        st.none() | TEXT,
    ),
    *(st.none() | TEXT, st.none() | TEXT, TEXT, INT8, st.none() | INT4),
)
CALLS = st.lists(st.lists(VALUES, min_size=1, max_size=6), min_size=1, max_size=6)
# What a careless or hostile writer may have put into the stream.
DAMAGE = (
    b'"',
    b"\\",
    b"\\u0041",
    b"\\u0000",
    b"\0",
    b"\n",
    b" ",
    b"1",
    b"-",
    b"0",
    b"e5",
    b".5",
    b"null",
    b"[",
    b"]",
    b",",
)
MORE_DAMAGE = (b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\t", b"9" * 20, b',{"a":1}', b",null", b"true", b"")
FORMATS = {"shard": ">h", "batch": ">i", "serial": ">i", "fingerprint": ">i"} | dict.fromkeys(
    ("stream_ms", "stream_seq", "seq", "amount", "at_ms"), ">q"
)
SHARD, FIRST_SEQ = 3, 11
UNHURRIED = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def plain(
    user: str = "ann", *, order: str | None = None, key: str | None = None, fingerprint: int | None = None
) -> tuple[Any, ...]:
    """The values of a redemption, as in ``VALUES``."""
    code = ("cmp_1", 1, 2, "ABCD")
    return ("redeemed", None, None, *code, user, 5, "EUR", order, key, "key_1", 1, fingerprint)


def entry(ms: int, begin: int, call: list[tuple[Any, ...]]) -> Entry:
    lines = []
    for sequence, (type_, redemption, hold, *others, fingerprint) in enumerate(call, begin):
        name = f"{SHARD}-{ms}-{sequence}"
        line = encode_line(EventLine(type_, name, redemption or name, hold, *others))
        lines.append(line if fingerprint is None else b"%b,null,%d]" % (line[:-1], fingerprint))
    return b"%d-%d" % (ms, begin + len(call) - 1), packed_entry(*lines)


def copied(columns: list[Any]) -> bytes:
    """The rows in PostgreSQL's binary format (PostgreSQL 18, "COPY")."""
    parts = [b"PGCOPY\n\xff\r\n\0", bytes(8)]
    for row in zip(*columns, strict=True):
        parts.append(struct.pack(">h", len(row)))
        for name, value in zip(COLUMNS, row, strict=True):
            if value is None:
                parts.append(struct.pack(">i", -1))
                continue
            if name in FORMATS:
                field = struct.pack(FORMATS[name], value)
            else:
                field = value if isinstance(value, bytes) else value.encode()
            parts += [struct.pack(">i", len(field)), field]
    return b"".join([*parts, b"\xff\xff"])


def is_same_as_decoded(found: Entries) -> bool:
    """Compare with the reference. Returns whether the entries were read by the compiled code."""
    expected = decode_entries(found.sources)
    assert (found.rejects, found.metadata) == (expected.rejects, expected.metadata)
    assert (found.rows, found.size, found.first, found.last) == (
        *(expected.rows, expected.size, expected.first, expected.last),
    )
    if found.packed is None:
        return False
    assert set(found.times_ms) == set(expected.times_ms)
    assert found.times_ms[-1:] == expected.times_ms[-1:]
    columns = expected.ledger_columns(SHARD, FIRST_SEQ)
    columns[COLUMNS.index("user_seal")] = found.packed.seals()
    assert found.packed.to_copy(SHARD, FIRST_SEQ) == copied(columns)
    if found.rows:
        link = chain.link_digest(bytes(32), columns)
        assert found.packed.link_digest(bytes(32), SHARD, FIRST_SEQ) == link
    totals = EncodedRows(found.packed, SHARD, FIRST_SEQ).totals()
    total = {(campaign, kind): more for campaign, kind, *more in zip(*totals, strict=True)}
    assert total == {
        (campaign, kind): more for campaign, kind, *more in zip(*count_totals(columns), strict=True)
    }
    return True


@UNHURRIED
@given(CALLS)
def test_rows_link_and_totals_are_those_of_the_python_twin(calls: list[list[tuple[Any, ...]]]) -> None:
    found = read_entries([entry(2**41 + at, at % 3, call) for at, call in enumerate(calls)])
    assert is_same_as_decoded(found)
    assert found.packed is not None
    assert found.packed.is_of(SHARD)
    assert not found.rows or not found.packed.is_of(SHARD + 1)


@UNHURRIED
@given(CALLS, st.randoms(use_true_random=False))
def test_damaged_lines_are_set_aside_as_by_the_python_twin(
    calls: list[list[tuple[Any, ...]]], random: Random
) -> None:
    damaged = []
    for at, call in enumerate(calls):
        entry_id, (*names, text) = entry(2**41 + at, 0, call)
        for _ in range(random.randrange(3)):
            begin = random.randrange(len(text) + 1)
            text = text[:begin] + random.choice(DAMAGE + MORE_DAMAGE) + text[begin + random.randrange(3) :]
        damaged.append((entry_id, [*names, text]))
    is_same_as_decoded(read_entries(damaged))


@pytest.mark.parametrize("length", [0, 1, 38, 39, 40, 47, 48, 100, 111, 112, 5000])
def test_users_of_every_length_are_sealed(length: int) -> None:
    """SHA-256 pads a message of 56 to 64 bytes with one block more."""
    values = plain(user="u" * length, fingerprint=-7)
    assert is_same_as_decoded(read_entries([entry(2**41, 0, [values] * 3)]))


def test_metadata_and_escapes_are_read_among_plain_lines() -> None:
    values = plain(user='é"\\\n', order="o\u2028", key="k")
    first, noted, other = entry(2**41, 0, [values] * 3)[1][-1].split(b"\n")
    text = b"\n".join([first, noted[:-1] + b',{"b":1,"a":[2.50]},8]', other.replace(b"5,", b"5 ,")])
    found = read_entries([(b"%d-2" % 2**41, packed_entry(text))])
    assert is_same_as_decoded(found)
    assert (found.rows, found.metadata) == (3, [((2**41, 1), '{"b":1,"a":[2.50]}')])


def test_ids_that_only_the_python_twin_reads_are_left_to_it() -> None:
    values = plain()
    huge = entry(2**62, 0, [values])
    assert not is_same_as_decoded(read_entries([huge]))
    mixed = entry(2**41, 0, [values] * 2)[1][-1].replace(f'"{SHARD}-'.encode(), b'"4-', 2)
    assert not is_same_as_decoded(read_entries([(b"%d-1" % 2**41, packed_entry(mixed))]))
