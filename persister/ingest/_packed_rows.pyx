# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Packed entries become rows of the ledger, compiled: rows as bytes for COPY, columns for the chain, totals.

The reference is ``entries.decode_entries`` with ``chain.link_digest`` and ``totals.count_totals``; the results
are the same, byte for byte. A plain line is read here: as lua/lib/event_line.lua writes it, without escapes. Any
other line goes to ``decode_line``, alone. ``_packed_rows.pyi`` has the types.
"""

import hashlib
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memchr, memcmp

from persister.byte_buffer cimport Buffer, add, get_big, grow, put_big

from engine.store.event_lines import decode_line, packed_entry

# What this was built for; ``entries`` compares it with its own.
COLUMNS = (
    "shard", "stream_ms", "stream_seq", "seq", "type", "redemption", "campaign", "batch", "serial", "last4", "user_id",
    "amount", "currency", "order_ref", "idempotency_key", "actor", "at_ms", "hold", "user_seal",
    "fingerprint",
)
SALT_BYTES = 16

cdef extern from "../../engine/digests.h" nogil:
    void sha256_of_two(const char *first, size_t first_bytes, const char *second, size_t second_bytes, char *digest)

cdef extern from "Python.h":
    int PyBUF_READ

cdef enum:  # the values of a line, in their order
    TYPE
    ID
    REDEMPTION
    HOLD
    CAMPAIGN
    BATCH
    SERIAL
    LAST4
    USER
    AMOUNT
    CURRENCY
    ORDER
    KEY
    ACTOR
    AT
    FINGERPRINT  # may be missing, behind metadata
    VALUES

cdef enum:  # forms of a value
    NULL_VALUE
    TEXT
    NUMBER

cdef enum:
    COLUMN_COUNT = 20
    SALT = 16
    SEALED = 32
    SHARD_AT = 6  # in a row for COPY
    SEQ_AT = 36
    DIGITS_MAX = 18
    SPACE = 32
    QUOTE = 34
    ZERO = 48
    BACKSLASH = 92
    ASCII_MAX = 127

cdef struct Span:
    const char *begin
    Py_ssize_t length
    int form
    int64_t number

cdef enum:  # what a value may be
    IS_TEXT = 1
    OR_NULL = 2
    IS_INT4 = 4
    IS_INT8 = 8

cdef int[VALUES] _allowed
_allowed[:] = [
    IS_TEXT, IS_TEXT, IS_TEXT, IS_TEXT | OR_NULL, IS_TEXT, IS_INT4, IS_INT4, IS_TEXT, IS_TEXT, IS_INT8 | OR_NULL,
    IS_TEXT | OR_NULL, IS_TEXT | OR_NULL, IS_TEXT | OR_NULL, IS_TEXT, IS_INT8, IS_INT4 | OR_NULL,
]
cdef enum:
    ROW_VALUES = 14
cdef int[ROW_VALUES] _row_order  # values of a row, after its place and number and before its seal; the chain's order
_row_order[:] = [
    TYPE, REDEMPTION, CAMPAIGN, BATCH, SERIAL, LAST4, USER, AMOUNT, CURRENCY, ORDER, KEY, ACTOR, AT, HOLD
]

cdef bytes _SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
cdef bytes _TRAILER = b"\xff\xff"
cdef bytes _HEAD = b"redeem ledger 1"


cdef inline int add_big(Buffer *buffer, int64_t number, int width) except -1:
    cdef char packed[8]
    put_big(packed, <uint64_t>number, width)
    return add(buffer, packed, width)


cdef inline int add_field(Buffer *buffer, const char *begin, Py_ssize_t length) except -1:
    add_big(buffer, length, 4)
    return add(buffer, begin, length)


cdef inline int add_number_field(Buffer *buffer, int64_t number, int width) except -1:
    add_big(buffer, width, 4)
    return add_big(buffer, number, width)


cdef inline int add_text_of_column(Buffer *column, bint first, Span *value, bint nullable) except -1:
    """Add a value as chain._texts does."""
    if not first:
        add(column, "\0", 1)
    if value.form == NULL_VALUE:
        return 0
    if nullable and value.length == 0:
        return add(column, "\0", 1)
    return add(column, value.begin, value.length)


cdef const char *read_number(const char *at, const char *end, int64_t *number) noexcept nogil:
    """Read an integer as JSON writes it, of at most 18 digits; NULL: it is something else."""
    cdef bint negative = at < end and at[0] == b"-"
    cdef const char *begin
    cdef int64_t value = 0
    if negative:
        at += 1
    begin = at
    while at < end and b"0" <= at[0] <= b"9":
        if at - begin == DIGITS_MAX:
            return NULL
        value = value * 10 + (at[0] - ZERO)
        at += 1
    if at == begin or (begin[0] == b"0" and (at - begin > 1 or negative)):
        return NULL
    number[0] = -value if negative else value
    return at


cdef const char *read_value(const char *at, const char *end, Span *value) except? NULL:
    """Read a text without escapes, a number or null; NULL: it is something else."""
    cdef unsigned char byte
    cdef bint is_ascii = True
    if at == end:
        return NULL
    if at[0] == b'"':
        at += 1
        value.form, value.begin = TEXT, at
        while at < end:
            byte = <unsigned char>at[0]
            if byte == QUOTE:
                value.length = at - value.begin
                if not is_ascii:
                    try:
                        PyUnicode_DecodeUTF8(value.begin, value.length, NULL)
                    except UnicodeDecodeError:
                        return NULL
                return at + 1
            if byte < SPACE or byte == BACKSLASH:
                return NULL
            if byte > ASCII_MAX:
                is_ascii = False
            at += 1
        return NULL
    if end - at >= 4 and memcmp(at, "null", 4) == 0:
        value.form, value.length = NULL_VALUE, 0
        return at + 4
    value.form, value.begin = NUMBER, at
    at = read_number(at, end, &value.number)
    value.length = at - value.begin if at != NULL else 0
    return at


cdef bint is_fit(Span *value, int allowed) noexcept nogil:
    if value.form == TEXT:
        return allowed & IS_TEXT
    if value.form == NULL_VALUE:
        return allowed & OR_NULL
    if allowed & IS_INT4:
        return -2147483648 <= value.number <= 2147483647
    return allowed & IS_INT8


cdef bint read_line(const char *at, const char *end, Span *values) except -1:
    """Read the values of a plain line; False: it is another one."""
    cdef int number
    if at == end or at[0] != b"[":
        return False
    for number in range(FINGERPRINT):
        at = read_value(at + 1, end, &values[number])
        if at == NULL or at == end or not is_fit(&values[number], _allowed[number]):
            return False
        if at[0] != b"," and number < AT:
            return False
    values[FINGERPRINT].form = NULL_VALUE
    if end - at > 6 and memcmp(at, ",null,", 6) == 0:  # no metadata
        at = read_value(at + 6, end, &values[FINGERPRINT])
        if at == NULL or at == end or not is_fit(&values[FINGERPRINT], _allowed[FINGERPRINT]):
            return False
    return at[0] == b"]" and at + 1 == end


cdef bint read_id(const char *at, const char *end, int64_t *shard, int64_t *ms, int64_t *sequence) noexcept nogil:
    """Read `<shard>-<ms>-<sequence>`."""
    at = read_number(at, end, shard)
    if at == NULL or at == end or at[0] != b"-":
        return False
    at = read_number(at + 1, end, ms)
    if at == NULL or at == end or at[0] != b"-":
        return False
    return read_number(at + 1, end, sequence) == end


cdef bint read_stream_id(bytes text, int64_t *ms, int64_t *sequence) except -1:
    cdef const char *at = PyBytes_AS_STRING(text)
    cdef const char *end = at + PyBytes_GET_SIZE(text)
    at = read_number(at, end, ms)
    return at != NULL and at != end and at[0] == b"-" and read_number(at + 1, end, sequence) == end


cdef class PackedRows:
    """The events of packed entries as rows of the ledger. It has no shard and no first number until they are given.

    Attributes:
        complete: whether all entries were read; False: their ids are such that only the reference reads them.
        rows: how many.
        times_ms: the stream's times of the rows, ascending, at least once each.
        rejects: id and ``[name, value, …]`` of each event that the ledger cannot hold.
        metadata: of the events that have some, with the two halves of their ids.
    """

    cdef readonly bint complete
    cdef readonly Py_ssize_t rows
    cdef readonly list times_ms, rejects, metadata
    cdef Buffer copy, starts, users, ms, sequence
    cdef Buffer[VALUES] columns  # those of the chain; not ID, USER and FINGERPRINT
    cdef bytes salts
    cdef int64_t shard  # of the ids; -1: none seen
    cdef bint held  # any row has a hold
    cdef dict totals
    cdef list last_total
    cdef bytes last_campaign, last_type, last_amount

    def __init__(self, list entries):
        cdef bytes text
        cdef int64_t ms, last
        cdef Py_ssize_t lines = 0
        self.times_ms, self.rejects, self.metadata, self.totals = [], [], [], {}
        self.shard = -1
        self.last_campaign = self.last_type = self.last_amount = b""
        for _, values in entries:
            lines += (<bytes>values[3]).count(b"\n") + 1
        self.salts = os.urandom(lines * SALT)
        add(&self.copy, PyBytes_AS_STRING(_SIGNATURE), PyBytes_GET_SIZE(_SIGNATURE))
        for entry_id, values in entries:
            text, before = values[3], self.rows
            if not read_stream_id(entry_id, &ms, &last) or not self.take(text, ms, last - text.count(b"\n")):
                return
            if self.rows > before:
                self.times_ms.append(ms)
        add(&self.copy, PyBytes_AS_STRING(_TRAILER), PyBytes_GET_SIZE(_TRAILER))
        self.complete = True

    def __dealloc__(self):
        cdef int number
        PyMem_Free(self.copy.begin)
        PyMem_Free(self.starts.begin)
        PyMem_Free(self.users.begin)
        PyMem_Free(self.ms.begin)
        PyMem_Free(self.sequence.begin)
        for number in range(VALUES):
            PyMem_Free(self.columns[number].begin)

    cdef bint take(self, bytes text, int64_t ms, int64_t sequence) except -1:
        """Take the lines of an entry, whose first event is `ms-sequence`. False: an id is not for this module."""
        cdef const char *at = PyBytes_AS_STRING(text)
        cdef const char *end = at + PyBytes_GET_SIZE(text)
        cdef const char *line_end
        cdef Span values[VALUES]
        cdef int64_t shard, id_ms, id_sequence
        cdef bint taken
        while True:
            line_end = <const char *>memchr(at, b"\n", end - at)
            if line_end == NULL:
                line_end = end
            if (
                read_line(at, line_end, values)
                and read_id(values[ID].begin, values[ID].begin + values[ID].length, &shard, &id_ms, &id_sequence)
                and id_ms == ms and id_sequence == sequence
            ):
                taken = self.add_row(ms, sequence, shard, values)
            else:
                taken = self.take_other(PyBytes_FromStringAndSize(at, line_end - at), ms, sequence)
            if line_end == end or not taken:
                return taken
            at = line_end + 1
            sequence += 1

    cdef bint take_other(self, bytes line, int64_t ms, int64_t sequence) except -1:
        """Take a line that is not plain."""
        cdef Span values[VALUES]
        cdef int number
        cdef int64_t shard, id_ms, id_sequence
        stream_id = f"{ms}-{sequence}"
        event = decode_line(line, stream_id)
        given = () if event is None else (
            event.type, event.id, event.redemption, event.hold, event.campaign, event.batch, event.serial,
            event.last4, event.user, event.amount, event.currency, event.order, event.key, event.actor, event.at,
            event.fingerprint,
        )
        if event is None or "\0" in "".join(map(str, given)):
            self.rejects.append((stream_id.encode(), packed_entry(line)))
            return True
        kept = []  # alive while `values` point into it
        for number in range(VALUES):
            value = given[number]
            kept.append(b"" if value is None else str(value).encode())
            values[number].begin = PyBytes_AS_STRING(kept[number])
            values[number].length = PyBytes_GET_SIZE(kept[number])
            values[number].form = NULL_VALUE if value is None else NUMBER if isinstance(value, int) else TEXT
            if isinstance(value, int):
                values[number].number = value
        if not read_id(values[ID].begin, values[ID].begin + values[ID].length, &shard, &id_ms, &id_sequence):
            return False
        if (metadata := event.kept_metadata) is not None:
            self.metadata.append((ms, sequence, metadata))
        return self.add_row(ms, sequence, shard, values)

    cdef bint add_row(self, int64_t ms, int64_t sequence, int64_t shard, Span *values) except -1:
        cdef Buffer *copy = &self.copy
        cdef bint first = self.rows == 0
        cdef int64_t place[2]
        cdef int number, is_number
        cdef Span *value
        if shard != self.shard:
            if self.shard != -1:
                return False
            self.shard = shard
        add_big(&self.starts, copy.length, 8)
        add_big(copy, COLUMN_COUNT, 2)
        add_number_field(copy, 0, 2)
        add_number_field(copy, ms, 8)
        add_number_field(copy, sequence, 8)
        add_number_field(copy, 0, 8)
        add_big(&self.ms, ms, 8)
        add_big(&self.sequence, sequence, 8)
        for number in _row_order:
            value = &values[number]
            is_number = _allowed[number] & (IS_INT4 | IS_INT8)
            if number == USER:
                place[0], place[1] = copy.length + 4, value.length
                add(&self.users, <char *>place, sizeof(place))
            elif is_number and number != AMOUNT:
                add_big(&self.columns[number], value.number, 8)
            else:
                add_text_of_column(&self.columns[number], first, value, _allowed[number] & OR_NULL)
            if value.form == NULL_VALUE:
                add_big(copy, -1, 4)
            elif is_number:
                add_number_field(copy, value.number, 4 if _allowed[number] & IS_INT4 else 8)
            else:
                add_field(copy, value.begin, value.length)
        self.held = self.held or values[HOLD].form != NULL_VALUE
        add_field(copy, PyBytes_AS_STRING(self.salts) + self.rows * SALT, SALT)
        if values[FINGERPRINT].form == NULL_VALUE:
            add_big(copy, -1, 4)
        else:
            add_number_field(copy, values[FINGERPRINT].number, 4)
        self.count(values)
        self.rows += 1
        return True

    cdef int count(self, Span *values) except -1:
        """Add to the totals as totals.count_totals does."""
        cdef Span *kind = &values[TYPE]
        cdef Span *campaign = &values[CAMPAIGN]
        cdef bint renews = False
        if kind.length == 4 and memcmp(kind.begin, "held", 4) == 0:
            renews = not is_same(&values[REDEMPTION], &values[ID])
        elif values[LAST4].length == 0 and (
            kind.length == 6 and memcmp(kind.begin, "voided", 6) == 0
            or kind.length == 8 and memcmp(kind.begin, "unvoided", 8) == 0
        ):
            return 0
        # Rows that follow each other are mostly alike.
        if renews or self.last_total is None or not (
            is_text(campaign, self.last_campaign) and is_text(kind, self.last_type)
            and is_text(&values[AMOUNT], self.last_amount)
        ):
            self.last_campaign, self.last_type = as_bytes(campaign), b"renewed" if renews else as_bytes(kind)
            self.last_amount = as_bytes(&values[AMOUNT])
            self.last_total = self.totals.setdefault((self.last_campaign, self.last_type, self.last_amount), [0])
        self.last_total[0] += 1
        return 0

    def is_of(self, int64_t shard):
        """Whether the ids name this shard, if there are any."""
        return self.shard in (shard, -1)

    def to_copy(self, int64_t shard, int64_t first_seq):
        """The rows for a binary COPY, numbered from ``first_seq``."""
        cdef bytes copied = PyBytes_FromStringAndSize(self.copy.begin, self.copy.length)
        cdef char *begin = PyBytes_AS_STRING(copied)
        cdef Py_ssize_t at
        cdef char *row
        for at in range(self.rows):
            row = begin + get_big(self.starts.begin + 8 * at, 8)
            put_big(row + SHARD_AT, <uint64_t>shard, 2)
            put_big(row + SEQ_AT, <uint64_t>(first_seq + at), 8)
        return copied

    def link_digest(self, bytes before, int64_t shard, int64_t first_seq):
        """The digest of the rows' link in the chain (``chain``)."""
        cdef Buffer made
        cdef Py_ssize_t at
        cdef const char *salt = PyBytes_AS_STRING(self.salts)
        cdef int64_t *users = <int64_t *>self.users.begin
        cdef int number
        made.begin, made.length, made.room = NULL, 0, 0
        digest = hashlib.sha256(_HEAD + before)
        grow(&made, self.rows * SEALED)
        try:
            made.length = self.rows * 8
            for at in range(self.rows):
                put_big(made.begin + 8 * at, <uint64_t>shard, 8)
            hash_column(digest, &made)
            hash_column(digest, &self.ms)
            hash_column(digest, &self.sequence)
            for at in range(self.rows):
                put_big(made.begin + 8 * at, <uint64_t>(first_seq + at), 8)
            hash_column(digest, &made)
            made.length = self.rows * SEALED
            with nogil:
                for at in range(self.rows):
                    sha256_of_two(
                        salt + at * SALT, SALT, self.copy.begin + users[2 * at], users[2 * at + 1],
                        made.begin + at * SEALED,
                    )
            for number in _row_order:
                if number == USER:
                    hash_column(digest, &made)
                elif number != HOLD or self.held:
                    hash_column(digest, &self.columns[number])
        finally:
            PyMem_Free(made.begin)
        return digest.digest()

    def count_totals(self):
        """Campaign, type, events and amount of all that the rows add."""
        found = {}
        for (campaign, kind, amount), (events,) in self.totals.items():
            total = found.setdefault((campaign.decode(), kind.decode()), [0, 0])
            total[0] += events
            total[1] += events * int(amount or 0)
        return [(*place, *total) for place, total in found.items()]

    def seals(self):
        """The ``user_seal`` of each row."""
        return [self.salts[at * SALT : (at + 1) * SALT] for at in range(self.rows)]


cdef inline bint is_same(Span *one, Span *other) noexcept nogil:
    return one.length == other.length and memcmp(one.begin, other.begin, one.length) == 0


cdef inline bint is_text(Span *value, bytes text) noexcept:
    return value.length == PyBytes_GET_SIZE(text) and memcmp(value.begin, PyBytes_AS_STRING(text), value.length) == 0


cdef inline bytes as_bytes(Span *value):
    return PyBytes_FromStringAndSize(value.begin, value.length)


cdef int hash_column(digest, Buffer *column) except -1:
    digest.update(column.length.to_bytes(8))
    if column.length:
        digest.update(PyMemoryView_FromMemory(column.begin, column.length, PyBUF_READ))
    return 0
