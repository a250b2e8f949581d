# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Idempotency records of plain redemptions, compiled: rows of a binary COPY become commands for Redis.

The reference is ``idempotency_records``, which writes the same records, byte for byte. A key is plain if it has one event, a
redemption of a code without a balance, and JSON writes its user and order without escapes. The rows of all other keys
are left to it. ``_plain_records.pyi`` has the types. Source of the rows' format: PostgreSQL 18, "COPY", section
"Binary Format".
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int16_t, int32_t, int64_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy

from persister.byte_buffer cimport Buffer, add, get_big

from engine.store import idempotency, keys

# What this was built for; ``idempotency_records`` compares it with the columns of its query.
COLUMNS = (
    "type", "batch", "serial", "shard", "stream_ms", "stream_seq", "amount", "fingerprint", "actor", "idempotency_key",
    "user_id", "order_ref", "redemption", "campaign", "last4", "given_back",
)

cdef extern from "../../engine/digests.h" nogil:
    void blake2b(const char *message, size_t bytes, char *digest, size_t digest_bytes)

cdef enum:  # the columns
    TYPE
    BATCH
    SERIAL
    SHARD
    STREAM_MS
    STREAM_SEQ
    AMOUNT
    FINGERPRINT
    ACTOR
    KEY
    USER
    ORDER
    REDEMPTION
    CAMPAIGN
    LAST4
    GIVEN_BACK
    COLUMN_COUNT

cdef enum:
    SIGNATURE_BYTES = 19  # signature, flags, no extension
    TRAILER = 0xFFFF  # instead of a row's number of columns
    DIGEST = 12
    HALF = 4
    NUMBER_MAX = 20  # characters of a number
    SPACE = 32
    QUOTE = 34
    ZERO = 48
    BACKSLASH = 92
    SHARDS_MAX = 1 << 16
    EPOCH_MAX = 0x7FFFFFFF

cdef int[COLUMN_COUNT] _widths  # of numbers; 0: a text
_widths[:] = [0, 4, 4, 2, 8, 8, 8, HALF, 0, 0, 0, 0, 0, 0, 0, 8]
cdef int64_t _window_s = keys.IDEMPOTENCY_WINDOW_S

if (len(COLUMNS), idempotency.FINGERPRINT_HALF, keys.IDEMPOTENCY_BUCKETS) != (COLUMN_COUNT, HALF, 1 << 16):
    raise ImportError("the idempotency records were compiled for other limits: install the engine again")

cdef struct Value:
    const char *begin
    Py_ssize_t length  # -1: null

cdef struct Field:
    uint64_t place  # shard, epoch and bucket of its hash: 16, 32 and 16 bits
    int64_t at  # in the texts: digest, record
    int64_t length


cdef int in_order(const void *one, const void *other) noexcept nogil:
    cdef const Field *a = <const Field *>one
    cdef const Field *b = <const Field *>other
    if a.place != b.place:
        return -1 if a.place < b.place else 1
    return -1 if a.at < b.at else a.at > b.at


cdef const char *read_row(const char *at, const char *end, Value *values, bint *is_end) except? NULL:
    """Read a row, and return what is behind it; NULL: it is not there, or not as a whole."""
    cdef uint64_t columns
    cdef int number
    if end - at < 2:
        return NULL
    columns = get_big(at, 2)
    at += 2
    if columns == TRAILER:
        is_end[0] = True
        return NULL
    if columns != COLUMN_COUNT:
        raise ValueError(f"a row has {columns} columns")
    for number in range(COLUMN_COUNT):
        if end - at < 4:
            return NULL
        values[number].length, values[number].begin = <int32_t>get_big(at, 4), at + 4
        at += 4
        if _widths[number] and values[number].length not in (_widths[number], -1):
            raise ValueError(f"{COLUMNS[number]} has {values[number].length} bytes")
        if values[number].length > 0:
            if end - at < values[number].length:
                return NULL
            at += values[number].length
    return at


cdef inline int64_t number_of(Value *value) noexcept nogil:
    if value.length == 2:
        return <int16_t>get_big(value.begin, 2)
    if value.length == 4:
        return <int32_t>get_big(value.begin, 4)
    return <int64_t>get_big(value.begin, 8)


cdef inline bint is_same(Value *one, Value *other) noexcept nogil:
    return one.length == other.length and (one.length <= 0 or memcmp(one.begin, other.begin, one.length) == 0)


cdef bint is_unescaped(Value *text) noexcept nogil:
    """Whether JSON writes the text as it is; null is none."""
    cdef Py_ssize_t at
    cdef unsigned char byte
    for at in range(text.length):
        byte = <unsigned char>text.begin[at]
        if byte < SPACE or byte == QUOTE or byte == BACKSLASH:
            return False
    return True


cdef inline int add_value(Buffer *buffer, Value *text) except -1:
    return add(buffer, text.begin, text.length) if text.length > 0 else 0


cdef int add_number(Buffer *buffer, int64_t number) except -1:
    cdef char digits[NUMBER_MAX]
    cdef int at = NUMBER_MAX
    cdef uint64_t left = -<uint64_t>number if number < 0 else <uint64_t>number
    while True:
        at -= 1
        digits[at] = <char>(ZERO + left % 10)
        left //= 10
        if not left:
            break
    if number < 0:
        at -= 1
        digits[at] = b"-"
    return add(buffer, digits + at, NUMBER_MAX - at)


cdef int add_bulk(Buffer *buffer, const char *begin, Py_ssize_t length) except -1:
    """Add a bulk string of RESP."""
    add(buffer, b"$", 1)
    add_number(buffer, length)
    add(buffer, b"\r\n", 2)
    add(buffer, begin, length)
    return add(buffer, b"\r\n", 2)


cdef class PlainRecords:
    """Takes rows of ``COLUMNS``, those of a key one after the other, and gathers the records of plain keys.

    ``pinned``: of each batch without balances its pinned shard, or -1.

    Attributes:
        gathered: how many fields are gathered; ``commands`` sets them in Redis.
        rows: how many were read as a whole.
    """

    cdef readonly int64_t gathered, rows
    cdef int shards
    cdef object pinned
    cdef bytes rest  # of the pieces so far
    cdef bint begun, ended
    cdef Buffer fields, texts, scratch
    cdef int64_t packed  # fields that ``commands`` has returned
    cdef set ending  # places whose hash has its expiry
    cdef int64_t last_batch
    cdef int last_pinned

    def __init__(self, int shards, pinned):
        if not 0 < shards <= SHARDS_MAX:
            raise ValueError("the number of shards is out of range")
        self.shards, self.pinned, self.rest, self.ending = shards, pinned, b"", set()
        self.last_batch = -1

    def __dealloc__(self):
        PyMem_Free(self.fields.begin)
        PyMem_Free(self.texts.begin)
        PyMem_Free(self.scratch.begin)

    def take(self, piece):
        """Take a piece of any size. Returns the rows of keys that are not plain, key by key.

        Raises:
            ValueError: the rows are not of ``COLUMNS``.
        """
        cdef bytes content = self.rest + piece
        cdef const char *at = PyBytes_AS_STRING(content)
        cdef const char *end = at + PyBytes_GET_SIZE(content)
        cdef const char *key_at
        cdef const char *row_end
        cdef Value first[COLUMN_COUNT]  # row of the key
        cdef Value row[COLUMN_COUNT]
        cdef int64_t rows = 0  # of the key
        cdef list others = []
        if not self.begun:
            if end - at < SIGNATURE_BYTES:
                self.rest = content
                return others
            at += SIGNATURE_BYTES
            self.begun = True
        key_at = at
        while True:
            row_end = read_row(at, end, row, &self.ended)
            if rows and (self.ended or row_end != NULL and not (
                is_same(&row[KEY], &first[KEY]) and is_same(&row[ACTOR], &first[ACTOR])
            )):
                if rows > 1 or not self.add_plain(first):
                    others.append(rows_between(key_at, at))
                self.rows += rows
                rows, key_at = 0, at
            if row_end == NULL:
                break
            if not rows:
                memcpy(first, row, sizeof(first))
            rows += 1
            at = row_end
        self.rest = PyBytes_FromStringAndSize(key_at, end - key_at)
        return others

    def finish(self):
        """Check that all rows were read.

        Raises:
            ValueError: the last row is incomplete.
        """
        if not self.ended:
            raise ValueError("the rows were not read whole")

    cdef bint add_plain(self, Value *row) except -1:
        """Add the record of a key that has this row alone; False: it is not plain."""
        cdef Buffer *scratch = &self.scratch
        cdef Buffer *texts = &self.texts
        cdef int64_t batch, serial, stream_ms, epoch, at
        cdef int shard, bucket, number
        cdef char digest[DIGEST]
        cdef char half[HALF]
        if row[TYPE].length != 8 or memcmp(row[TYPE].begin, b"redeemed", 8) != 0:
            return False
        for number in range(BATCH, AMOUNT):
            if row[number].length < 0:
                return False
        batch, serial, stream_ms = number_of(&row[BATCH]), number_of(&row[SERIAL]), number_of(&row[STREAM_MS])
        epoch = stream_ms // 1000 // _window_s
        if serial < 0 or not 0 <= epoch <= EPOCH_MAX or not (is_unescaped(&row[USER]) and is_unescaped(&row[ORDER])):
            return False
        if batch != self.last_batch:
            pinned = self.pinned.get(batch)
            if pinned is None:
                return False
            self.last_batch, self.last_pinned = batch, pinned
        shard = self.last_pinned if self.last_pinned >= 0 else <int>(serial % self.shards)

        scratch.length = 0
        add_value(scratch, &row[ACTOR])
        add(scratch, b" ", 1)
        add_value(scratch, &row[KEY])
        blake2b(scratch.begin, scratch.length, digest, DIGEST)
        bucket = <int>get_big(digest, 2)

        scratch.length = 0
        add(scratch, b'["', 2)
        add_value(scratch, &row[USER])
        add(scratch, b'","', 3)
        add_value(scratch, &row[ORDER])
        add(scratch, b'",[[', 4)
        add_number(scratch, batch)
        add(scratch, b",", 1)
        add_number(scratch, serial)
        add(scratch, b"]]]", 3)
        blake2b(scratch.begin, scratch.length, half, HALF)

        at = texts.length
        add(texts, digest, DIGEST)
        add(texts, half, HALF)
        if row[FINGERPRINT].length > 0:
            add(texts, row[FINGERPRINT].begin, HALF)
        else:
            add(texts, b"\0\0\0\0", HALF)  # REBUILT
        add(texts, b"redeemed ", 9)
        add_number(texts, number_of(&row[SHARD]))
        add(texts, b"-", 1)
        add_number(texts, stream_ms)
        add(texts, b"-", 1)
        add_number(texts, number_of(&row[STREAM_SEQ]))
        add(texts, b" ", 1)
        if row[AMOUNT].length > 0:
            add_number(texts, number_of(&row[AMOUNT]))
        self.add_field(shard, epoch, bucket, at)
        if bucket % self.shards != shard:  # its home shard
            self.add_field(bucket % self.shards, epoch, bucket, self.add_claim(at))
        return True

    cdef int64_t add_claim(self, int64_t of) except -1:
        """Add digest and fingerprint of a text again, with `claimed` as the answer; return where."""
        cdef int64_t at = self.texts.length
        cdef char beginning[DIGEST + 2 * HALF]
        memcpy(beginning, self.texts.begin + of, sizeof(beginning))
        add(&self.texts, beginning, sizeof(beginning))
        add(&self.texts, b"claimed", 7)
        return at

    cdef int add_field(self, int shard, int64_t epoch, int bucket, int64_t at) except -1:
        cdef Field field
        field.place = <uint64_t>shard << 48 | <uint64_t>epoch << 16 | <uint64_t>bucket
        field.at, field.length = at, self.texts.length - at
        self.gathered += 1
        return add(&self.fields, <char *>&field, sizeof(field))

    def commands(self, Py_ssize_t bytes_max):
        """Return the next commands that set what is gathered, packed, and their number; none: all was returned.

        Until then nothing more may be taken.
        """
        cdef Buffer made
        cdef Field *fields = <Field *>self.fields.begin
        cdef int64_t count = 0, at = self.packed, behind
        cdef uint64_t place
        if not at and self.gathered:
            qsort(fields, self.gathered, sizeof(Field), in_order)
        made.begin, made.length, made.room = NULL, 0, 0
        try:
            while at < self.gathered and made.length < bytes_max:
                place, behind = fields[at].place, at
                while behind < self.gathered and fields[behind].place == place:
                    behind += 1
                key = keys.idempotency_records(place >> 48, place >> 16 & 0xFFFFFFFF, place & 0xFFFF).encode()
                add(&made, b"*", 1)
                add_number(&made, 2 + 2 * (behind - at))
                add(&made, b"\r\n$4\r\nHSET\r\n", 12)
                add_bulk(&made, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
                while at < behind:
                    add_bulk(&made, self.texts.begin + fields[at].at, DIGEST)
                    add_bulk(&made, self.texts.begin + fields[at].at + DIGEST, fields[at].length - DIGEST)
                    at += 1
                count += 1
                if place not in self.ending:
                    self.ending.add(place)
                    ends_at_s = b"%d" % (((place >> 16 & 0xFFFFFFFF) + 2) * _window_s)
                    add(&made, b"*3\r\n$8\r\nEXPIREAT\r\n", 18)
                    add_bulk(&made, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
                    add_bulk(&made, PyBytes_AS_STRING(ends_at_s), PyBytes_GET_SIZE(ends_at_s))
                    count += 1
            self.packed = at
            if not count:
                self.packed = self.gathered = self.fields.length = self.texts.length = 0
            return PyBytes_FromStringAndSize(made.begin, made.length), count
        finally:
            PyMem_Free(made.begin)


cdef list rows_between(const char *at, const char *end):
    """The rows as dictionaries."""
    cdef Value values[COLUMN_COUNT]
    cdef bint is_end = False
    cdef int number
    cdef list rows = []
    while at < end:
        at = read_row(at, end, values, &is_end)
        row = {}
        for number in range(COLUMN_COUNT):
            if values[number].length < 0:
                row[COLUMNS[number]] = None
            elif _widths[number]:
                row[COLUMNS[number]] = number_of(&values[number])
            else:
                row[COLUMNS[number]] = PyUnicode_DecodeUTF8(values[number].begin, values[number].length, NULL)
        rows.append(row)
    return rows
