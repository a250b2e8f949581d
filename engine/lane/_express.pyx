# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The express lane: the fast lane with its usual case compiled.

A redemption whose head is plain is started and answered here; if its body is plain as well, it is also read
here, else by msgspec. For anything else the methods of ``FastLane`` and ``Redemption`` run, which this module
only stands in front of: they are the reference, and both lanes share admission, time limits, batches and
links. ``redeem_express_left_total`` counts what was left to them, by reason. ``_express.pyi`` has the types.
"""

import functools
import re
import string
from time import perf_counter

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_DATA, PyUnicode_DecodeASCII, PyUnicode_GET_LENGTH, PyUnicode_New
from libc.string cimport memcmp, memcpy
from libc.time cimport time as unix_time

import msgspec

from engine.api.bodies import UP_TO_BALANCE, RedeemRequest, parse_redeem_request
from engine.api.checks import CAMPAIGN_LENGTH_MAX
from engine.api.request_ids import PROCESS, next_number
from engine.codes.formats import BASE32, DIGITS, FORMATS, LAST_SYMBOLS, normalise, split
from engine.codes.texts import SHORTEST_CODE
from engine.encoding import canonical
from engine.errors import ContractViolation, Refusal
from engine.guard.labels import places_of
from engine.lane.head import HEAD_BYTES_MAX, KEY, REQUEST_ID, SIGNED
from engine.lane.protocol import ROUTE, FastLane
from engine.lookup.decoder import masked
from engine.observability.metrics import REQUEST_SECONDS_BOUNDS
from engine.redemption.assertions import Assertions
from engine.redemption.attempt import Attempt
from engine.redemption.call_fields import CallFields
from engine.redemption.redeem import Redemption
from engine.store import idempotency, keys
from engine.store.event_lines import cause_json
from engine.store.keys import SEGMENT_CODES, CodeLocation
from engine.times import instant

cdef enum:  # the values in a head that differ from request to request
    LENGTH
    IDEMPOTENCY_KEY
    REQUEST_ID_GIVEN
    CONTENT_DIGEST
    SIGNATURE_INPUT
    SIGNATURE

cdef enum:
    HOLES_MAX = 6
    LENGTH_DIGITS_MAX = 9
    REQUEST_ID_MAX = 128
    AMOUNT_DIGITS_MAX = 15  # below AMOUNT_MAX, whatever the digits
    SYMBOLS_MAX = 256
    BOUNDS_MAX = 15  # REQUEST_SECONDS_BOUNDS
    ENDING = 12  # SHORTEST_CODE
    LAST = 4  # LAST_SYMBOLS

if (
    ENDING != SHORTEST_CODE or LAST_SYMBOLS != LAST or len(REQUEST_SECONDS_BOUNDS) != BOUNDS_MAX
    or {fmt.alphabet for fmt in FORMATS.values()} != {BASE32, DIGITS}
):
    raise ImportError("the express lane was built for other limits")

cdef int _head_bytes_max = HEAD_BYTES_MAX
cdef Py_ssize_t _campaign_length_max = CAMPAIGN_LENGTH_MAX
cdef Py_ssize_t _segment_codes = SEGMENT_CODES
cdef object _plain_received = FastLane.data_received
cdef object _plain_read = FastLane._read
cdef object _plain_redeem = FastLane._redeem
cdef object _write_to = CallFields.write_to
cdef object _mismatch = Attempt.mismatch
cdef object _fingerprint_fields = Redemption.fingerprint_fields
cdef object _find_length = re.compile(rb"\r\ncontent-length: ?([1-9][0-9]{0,8})(?=\r\n)", re.IGNORECASE).search
cdef list _finders = [
    (LENGTH, _find_length),
    (IDEMPOTENCY_KEY, KEY.search),
    (REQUEST_ID_GIVEN, REQUEST_ID.search),
    *zip((CONTENT_DIGEST, SIGNATURE_INPUT, SIGNATURE), [pattern.search for pattern in SIGNED]),
]
cdef object _next_number = next_number
cdef bytes _process = PROCESS.encode()
cdef object _to_json = msgspec.json.Encoder().encode

_REQUEST_ID_CHARACTERS = frozenset(string.ascii_letters + string.digits + "._~+/=:@-")
# Of each byte: the symbol that ``formats.normalise`` makes of it; 0 for a separator, 255 for what is refused.
cdef unsigned char _symbols[256]
# Whether a byte may stand in a request id (``request_ids``).
cdef unsigned char _in_request_id[256]


def _fill_tables():
    cdef int at
    for at in range(256):
        _symbols[at] = 255
        _in_request_id[at] = chr(at) in _REQUEST_ID_CHARACTERS
    for at in map(ord, " -_."):
        _symbols[at] = 0
    for letter in string.digits + string.ascii_letters:
        _symbols[<int>ord(letter)] = ord(normalise(letter))


_fill_tables()


# heads


cdef struct Found:
    Py_ssize_t body_at
    Py_ssize_t length  # of the body
    Py_ssize_t at[HOLES_MAX]  # of each kind of hole: where its text is; 0: there is none
    Py_ssize_t size[HOLES_MAX]


cdef class Template:
    """A head that the fast lane has read: what it has in common with the client's next one.

    Between the literal bytes are holes: length of the body, idempotency key, request id, and the headers of a
    signature. A head that differs only there is as plain as the first one.
    """

    cdef list literals  # one more than holes
    cdef int holes
    cdef int kinds[HOLES_MAX]
    cdef readonly object head
    cdef object api_key
    cdef bint signs  # whether the requests of the API key may be signed
    cdef long api_key_version

    def __init__(self, list literals, list kinds, object head):
        cdef int at
        self.literals = literals
        self.holes = len(kinds)
        for at in range(self.holes):
            self.kinds[at] = kinds[at]
        self.head = head
        self.api_key_version = -1

    cdef bint fits(self, const unsigned char *data, Py_ssize_t size, Found *found) noexcept:
        """Whether the data begin with such a head; then say where its parts are."""
        cdef Py_ssize_t at = 0, begin, length
        cdef int hole, kind
        cdef bytes literal
        for kind in range(HOLES_MAX):
            found.at[kind] = 0
        for hole in range(self.holes + 1):
            literal = <bytes>self.literals[hole]
            length = PyBytes_GET_SIZE(literal)
            if size - at < length or memcmp(data + at, PyBytes_AS_STRING(literal), length) != 0:
                return False
            at += length
            if hole == self.holes:
                break
            kind = self.kinds[hole]
            begin = at
            if kind == LENGTH:
                found.length = 0
                while at < size and 48 <= data[at] <= 57 and at - begin < LENGTH_DIGITS_MAX:
                    found.length = 10 * found.length + data[at] - 48
                    at += 1
                if data[begin] == 48 or at == begin:
                    return False
            elif kind == REQUEST_ID_GIVEN:
                while at < size and _in_request_id[data[at]] and at - begin < REQUEST_ID_MAX:
                    at += 1
                if at == begin:
                    return False
            else:
                while at < size and 32 <= data[at] < 127:
                    at += 1
                if at == begin or data[begin] == 32 or data[at - 1] == 32:
                    return False
            found.at[kind], found.size[kind] = begin, at - begin
        found.body_at = at
        return at <= _head_bytes_max


cdef class Templates:
    """The templates of all connections of a worker, up to a limit."""

    cdef dict remembered
    cdef Template latest

    def __cinit__(self):
        self.remembered = {}

    cdef Template of(self, bytes head, object plain):
        """Return the template of a head that was read; None if its length cannot be found again."""
        holes = []
        for kind, search in _finders:
            found = search(head)
            if found is not None:
                holes.append((found.start(1), found.end(1), kind))
            elif kind == LENGTH:
                return None
        holes.sort()
        literals, at = [], 0
        for begin, end, _ in holes:
            literals.append(head[at:begin])
            at = end
        literals.append(head[at:])
        kinds = [kind for _, _, kind in holes]
        name = (*literals, *kinds)
        known = self.remembered.get(name)
        if known is None:
            if len(self.remembered) >= 1024:
                self.remembered.clear()
            known = self.remembered[name] = Template(literals, kinds, plain)
        self.latest = known
        return known


# bodies


cdef struct Text:
    Py_ssize_t at  # 0: there is none
    Py_ssize_t length


cdef struct Body:
    Text code
    Text user
    Text order
    Text currency
    Text campaign
    bint has_amount
    bint up_to_balance
    long long amount


cdef inline Py_ssize_t _skip(const unsigned char *data, Py_ssize_t at, Py_ssize_t size) noexcept:
    while at < size and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at


cdef inline Py_ssize_t _text(
    const unsigned char *data, Py_ssize_t at, Py_ssize_t size, Text *text
) noexcept:
    """Read a string of printable ASCII without escapes. Returns what is behind it; 0 if it is another."""
    cdef Py_ssize_t begin
    if at >= size or data[at] != 34:
        return 0
    at += 1
    begin = at
    while at < size and data[at] != 34:
        if data[at] < 32 or data[at] > 126 or data[at] == 92:
            return 0
        at += 1
    if at >= size:
        return 0
    text.at, text.length = begin, at - begin
    return at + 1


cdef inline bint _is(const unsigned char *data, Text *text, const char *word, Py_ssize_t length) noexcept:
    return text.length == length and memcmp(data + text.at, word, length) == 0


cdef bint _read_body(const unsigned char *data, Py_ssize_t at, Py_ssize_t size, Body *body) noexcept:
    """Read a JSON object with known members that are strings, integers or null, each at most once.

    False: it is something else, valid or not. ``at`` must be above 0.
    """
    cdef Text name, value
    cdef Text *target
    cdef Py_ssize_t begin
    body.code.at = body.user.at = body.order.at = body.currency.at = body.campaign.at = 0
    body.has_amount = body.up_to_balance = False
    cdef int seen = 0, bit
    at = _skip(data, at, size)
    if at >= size or data[at] != 123:
        return False
    at = _skip(data, at + 1, size)
    while True:
        at = _text(data, at, size, &name)
        if not at:
            return False
        at = _skip(data, at, size)
        if at >= size or data[at] != 58:
            return False
        at = _skip(data, at + 1, size)
        target = NULL
        if _is(data, &name, b"code", 4):
            bit, target = 1, &body.code
        elif _is(data, &name, b"user", 4):
            bit, target = 2, &body.user
        elif _is(data, &name, b"order", 5):
            bit, target = 4, &body.order
        elif _is(data, &name, b"amount", 6):
            bit = 8
        elif _is(data, &name, b"currency", 8):
            bit, target = 16, &body.currency
        elif _is(data, &name, b"campaign", 8):
            bit, target = 32, &body.campaign
        else:
            return False
        if seen & bit:
            return False
        seen |= bit
        if size - at >= 4 and memcmp(data + at, b"null", 4) == 0:
            if bit & 3:
                return False
            at += 4
        elif target is not NULL:
            at = _text(data, at, size, target)
            if not at:
                return False
        elif at < size and data[at] == 34:
            at = _text(data, at, size, &value)
            if not at or not _is(data, &value, b"up_to_balance", 13):
                return False
            body.up_to_balance = True
        else:
            begin = at
            body.amount = 0
            while at < size and 48 <= data[at] <= 57:
                if at - begin == AMOUNT_DIGITS_MAX:
                    return False
                body.amount = 10 * body.amount + data[at] - 48
                at += 1
            if at == begin or (data[begin] == 48 and at - begin > 1):
                return False
            body.has_amount = True
        at = _skip(data, at, size)
        if at >= size:
            return False
        if data[at] == 125:
            break
        if data[at] != 44:
            return False
        at = _skip(data, at + 1, size)
    return seen & 3 == 3 and _skip(data, at + 1, size) == size


cdef bint _accepts(const unsigned char *symbols, Py_ssize_t count, bint digits) noexcept:
    """As ``Format.accepts``, for symbols that are normalised: all are capital letters or digits."""
    cdef Py_ssize_t at
    for at in range(count):
        if symbols[at] == 85 or (digits and symbols[at] > 57):  # U is in no alphabet
            return False
    return True


cdef inline str _str(const unsigned char *data, Text *text):
    return PyUnicode_DecodeASCII(<const char *>data + text.at, text.length, NULL)


cdef class Limits:
    """The limits of a plain body, from the settings."""

    cdef Py_ssize_t user, order, code, symbols_min, key

    def __init__(self, settings):
        self.user = settings.user_length_max
        self.order = settings.order_length_max
        self.code = min(settings.code_length_max, SYMBOLS_MAX)
        self.symbols_min = settings.import_code_symbols_min
        self.key = settings.idempotency_key_length_max

    cdef Py_ssize_t symbols_of(self, const unsigned char *data, Text *code, unsigned char *symbols) noexcept:
        """Normalise a code. Returns how many symbols it has; 0 if others must look at it."""
        cdef Py_ssize_t at, count = 0
        cdef unsigned char symbol
        if code.length > self.code:
            return 0
        for at in range(code.at, code.at + code.length):
            symbol = _symbols[data[at]]
            if symbol == 255:
                return 0
            if symbol:
                symbols[count] = symbol
                count += 1
        return count if count >= self.symbols_min else 0

    cdef bint keeps(self, const unsigned char *data, Body *body) noexcept:
        """Whether the checks of ``parse_redeem_request`` would find nothing."""
        cdef Py_ssize_t at
        if not 0 < body.user.length <= self.user:
            return False
        if data[body.user.at] == 32 or data[body.user.at + body.user.length - 1] == 32:
            return False
        if body.order.at and not 0 < body.order.length <= self.order:
            return False
        if body.campaign.at and not 0 < body.campaign.length <= _campaign_length_max:
            return False
        if body.currency.at:
            if body.currency.length != 3:
                return False
            for at in range(body.currency.at, body.currency.at + 3):
                if not 65 <= data[at] <= 90:
                    return False
        return True


def parse(bytes data, settings):
    """Parse a body as the express lane does, for tests: its fields; None if the fast lane must read it."""
    cdef Body body
    cdef bytes whole = b"{" + data  # no body begins at 0
    cdef const unsigned char *bytes_of = <const unsigned char *>PyBytes_AS_STRING(whole)
    if not _read_body(bytes_of, 1, len(whole), &body) or not Limits(settings).keeps(bytes_of, &body):
        return None
    amount = body.amount if body.has_amount else UP_TO_BALANCE if body.up_to_balance else None
    return (
        _str(bytes_of, &body.code),
        _str(bytes_of, &body.user),
        amount,
        _str(bytes_of, &body.order) if body.order.at else None,
        _str(bytes_of, &body.currency) if body.currency.at else None,
        _str(bytes_of, &body.campaign) if body.campaign.at else None,
    )


cdef bint _repeats(
    const unsigned char *ending, const unsigned char *text, Py_ssize_t length
) noexcept:
    """Whether a text of ASCII contains these last symbols of a code, in any spelling."""
    cdef unsigned char window[SYMBOLS_MAX + ENDING]
    cdef Py_ssize_t at, count = 0
    cdef unsigned char symbol
    if length < ENDING:
        return False
    for at in range(length):
        symbol = _symbols[text[at]]
        if symbol == 0 or symbol == 255:
            continue
        window[count] = symbol
        count += 1
        if count >= ENDING and memcmp(window + count - ENDING, ending, ENDING) == 0:
            return True
        if count == SYMBOLS_MAX + ENDING:
            memcpy(window, window + count - ENDING, ENDING)
            count = ENDING
    return False


def repeats(bytes code, bytes text):
    """Whether a text of ASCII contains a code of at least ``SHORTEST_CODE`` symbols, for tests."""
    cdef const char *ending = PyBytes_AS_STRING(code) + PyBytes_GET_SIZE(code) - ENDING
    return _repeats(<const unsigned char *>ending, <const unsigned char *>PyBytes_AS_STRING(text), len(text))


# redemptions


cdef class LaneState:
    """What ``FastLane`` keeps of a connection (``protocol.STATE``), where compiled code finds it at once."""

    cdef public object _head, _key, _pieces, _received, _request_id, _shared, _signed, _transport
    cdef public Py_ssize_t _body_at, _number
    cdef public bint _closing, _has_answered, _in_flight, _reading_paused, _says_no_more, _writing_paused
    cdef public double _began, _since
    cdef Desk desk
    cdef bint is_left  # the request that is being received must be looked at by the fast lane
    cdef Template template


cdef class Counted:
    """How many codes of a campaign were redeemed since the telemetry was told."""

    cdef Py_ssize_t redeemed


cdef class KnownBatch:
    """What the redemptions of one batch have in common: parts of their answers, and their place in a call."""

    cdef object batch, campaign
    cdef str campaign_id
    cdef Py_ssize_t id, shards, pinned_shard  # -1: it has none
    cdef Counted counted
    cdef bytes to_code  # from behind the id to the last symbols of the code
    cdef bytes to_balance  # from behind the amount to the balance
    cdef bytes to_serial  # the begin of what a call says about the code
    # The place of its codes in the call that is being written.
    cdef object call
    cdef Py_ssize_t shard
    cdef bint is_simple  # its codes need nothing in the call but their state
    cdef object campaign_at
    cdef dict states_at  # by segment

    def __init__(self, batch, campaign, last4, shards, Counted counted):
        if shards < 1:
            raise ContractViolation("codes have no shards yet")
        shown = _to_json(masked(batch, last4))[: -1 - len(last4)]
        self.batch, self.campaign, self.id, self.shards = batch, campaign, batch.id, shards
        self.campaign_id = campaign.id
        self.pinned_shard = -1 if campaign.pinned_shard is None else campaign.pinned_shard
        self.counted = counted
        self.to_code = b'","status":"redeemed","campaign":' + _to_json(campaign.id) + b',"code":' + shown
        self.to_balance = b',"currency":' + _to_json(campaign.currency)
        self.to_serial = b"%d," % batch.id

    cdef take_place(self, call, Py_ssize_t shard, configuration):
        """Find the place of its codes in a call. Nothing else changes the configuration meanwhile."""
        campaign = configuration.campaigns[self.campaign.id]
        self.call, self.shard, self.states_at = call, shard, {}
        self.is_simple = (
            campaign.kind == "single" and not campaign.per_user_limited and not configuration.has_voids(self.id)
        )
        if self.is_simple:
            self.campaign_at = call.key(keys.campaign(shard, campaign.id))

    cdef object state_at(self, Py_ssize_t segment):
        at = self.states_at.get(segment)
        if at is None:
            at = self.states_at[segment] = self.call.key(keys.state(self.shard, self.id, segment))
        return at


cdef class CallColumns:
    """The columns of the call that is being written (``Call``), and the texts that many attempts share."""

    cdef object call
    cdef list about, cause, campaign_at, state_at, offset, own_fields
    cdef str actor, cause_of_actor

    cdef take(self, call):
        self.call = call
        self.about, self.cause, self.campaign_at = call.about, call.cause, call.campaign_at
        self.state_at, self.offset, self.own_fields = call.state_at, call.offset, call.own_fields

    cdef str cause_text(self, str order, str actor):
        """As ``cause_json``, for a plain order and no key."""
        if self.actor is not actor:
            self.cause_of_actor, self.actor = cause_json(None, None, actor), actor
        if not order:
            return self.cause_of_actor
        if not self.cause_of_actor.isascii():
            return cause_json(order, None, actor)
        cdef Py_ssize_t size = len(self.cause_of_actor) - 4, order_size = len(order)  # without the first null
        cdef str text = PyUnicode_New(order_size + 2 + size, 127)
        cdef char *to = <char *>PyUnicode_1BYTE_DATA(text)
        to = _put(to, b'"', 1)
        to = _put_text(to, order)
        to = _put(to, b'"', 1)
        _put(to, <const char *>PyUnicode_1BYTE_DATA(self.cause_of_actor) + 4, size)
        return text


cdef inline char *_put(char *to, const char *data, Py_ssize_t size) noexcept:
    memcpy(to, data, size)
    return to + size


cdef inline char *_put_bytes(char *to, bytes data) noexcept:
    return _put(to, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline char *_put_text(char *to, str text) noexcept:
    """Write a text of ASCII."""
    return _put(to, <const char *>PyUnicode_1BYTE_DATA(text), PyUnicode_GET_LENGTH(text))


cdef inline char *_put_number(char *to, size_t number) noexcept:
    cdef char digits[20]
    cdef int at = 20
    while True:
        at -= 1
        digits[at] = 48 + number % 10
        number //= 10
        if number == 0:
            return _put(to, digits + at, 20 - at)


cdef inline char *_put_hex(char *to, size_t number) noexcept:
    cdef char digits[16]
    cdef int at = 16
    while True:
        at -= 1
        digits[at] = b"0123456789abcdef"[number & 15]
        number >>= 4
        if number == 0:
            return _put(to, digits + at, 16 - at)


cdef class Desk:
    """Starts the redemptions of all express lanes of a worker, and writes their answers."""

    cdef object known_with, guard, configuration, dispatcher, contains_issued, shortest_code, find
    cdef object answers, telemetry, now, shared, settings, code_in_texts, count_left, verify_at_once
    cdef Limits limits
    cdef Py_ssize_t body_bytes_max
    cdef long version  # of the configuration that the next value is of
    cdef Py_ssize_t shortest  # symbols of a minted code
    cdef double deadline_s
    cdef dict by_batch
    cdef KnownBatch latest  # of them
    cdef dict campaigns
    cdef long second
    cdef bytes head
    cdef Py_ssize_t at_ms
    cdef bytes at_text
    cdef dict counted  # by campaign
    cdef Py_ssize_t durations[BOUNDS_MAX + 1]  # of requests that were answered since the telemetry was told
    cdef double seconds  # their sum
    cdef double bounds[BOUNDS_MAX]
    cdef list formats
    cdef CallColumns columns
    cdef readonly Templates templates

    def __init__(self, known_with, verify_at_once, core, shared):
        resolver = core.resolver
        self.known_with, self.verify_at_once, self.guard = known_with, verify_at_once, core.guard
        self.configuration, self.dispatcher = core.configuration, core.dispatcher
        self.find, self.contains_issued = resolver.find, resolver.contains_issued
        self.shortest_code, self.version, self.shortest = resolver.shortest_code, -1, 0
        self.shared = shared
        self.answers = shared.answers
        self.counted, self.seconds = {}, 0.0
        for at, bound in enumerate(REQUEST_SECONDS_BOUNDS):
            self.bounds[<int>at], self.durations[<int>at] = bound, 0
        self.durations[BOUNDS_MAX] = 0
        self.telemetry = core.dispatcher.telemetry
        self.telemetry.ask_before_flush(self.tell)
        self.body_bytes_max = shared.heads.body_bytes_max
        self.now = shared.now
        self.settings, self.code_in_texts = core.settings, core.code_in_texts
        self.count_left = core.dispatcher.telemetry.left_by_express
        self.limits = Limits(core.settings)
        self.deadline_s = core.settings.attempt_deadline_ms / 1000
        self.by_batch, self.latest, self.campaigns = {}, None, core.configuration.campaigns
        self.head, self.second = b"", 0
        self.at_text, self.at_ms = b"", -1
        self.formats = [None] * SYMBOLS_MAX
        for fmt in FORMATS.values():
            self.formats[fmt.length] = fmt
        self.templates = Templates()
        self.columns = CallColumns()

    def tell(self):
        """Tell the telemetry what was counted since the last call."""
        cdef Counted counted
        cdef int at
        for campaign, counted in self.counted.items():
            if counted.redeemed:
                self.telemetry.outcomes["redeem", "redeemed", campaign] += counted.redeemed
                counted.redeemed = 0
        durations = [self.durations[at] for at in range(BOUNDS_MAX + 1)]
        if any(durations):
            self.telemetry.requests(ROUTE, 200, durations, self.seconds)
        self.seconds = 0.0
        for at in range(BOUNDS_MAX + 1):
            self.durations[at] = 0

    cdef void count_duration(self, double seconds) noexcept:
        cdef int at = 0
        while at < BOUNDS_MAX and seconds > self.bounds[at]:
            at += 1
        self.durations[at] += 1
        self.seconds += seconds

    cdef object _api_key(self, Template template, long version):
        if template.api_key_version != version:
            template.api_key = self.known_with(template.head.authorization, "redeem")
            template.api_key_version = -1 if template.api_key is None else version
            template.signs = template.api_key is not None and template.api_key.signing != "off"
        return template.api_key

    cdef Py_ssize_t _shortest(self, long version) except -1:
        if self.version != version or self.shortest == 0:
            self.shortest, self.version = self.shortest_code(), version
        return self.shortest

    cdef ExpressRedemption begin(
        self,
        Template template,
        const unsigned char *data,
        Py_ssize_t body_at,
        Py_ssize_t size,
        str key,
        object signed_head,
    ):
        """Make the redemption that the request asks for; None if the fast lane must look at it: counted."""
        cdef bytes nonce = b""
        cdef long version = self.configuration.version
        if self._api_key(template, version) is None:
            return self.left("api_key")
        if template.signs:
            try:
                nonce = self.verify_at_once(template.api_key, signed_head, <bytes>data[body_at:size])
            except Refusal:
                nonce = None
            if nonce is None:
                return self.left("signature")
        cdef ExpressRedemption made = self.begin_unsigned(template.api_key, version, data, body_at, size, key)
        if made is not None:
            made.nonce = nonce
        return made

    cdef ExpressRedemption begin_unsigned(
        self, api_key, long version, const unsigned char *data, Py_ssize_t body_at, Py_ssize_t size, str key
    ):
        cdef Body body
        cdef unsigned char symbols[SYMBOLS_MAX]
        cdef Py_ssize_t count
        if key is not None and (len(key) > self.limits.key or not key.isprintable()):
            return self.left("idempotency_key")
        if not _read_body(data, body_at, size, &body) or not self.limits.keeps(data, &body):
            return self.begin_parsed(api_key, version, data[body_at:size], key)
        count = self.limits.symbols_of(data, &body.code, symbols)
        if count < ENDING:
            return self.begin_parsed(api_key, version, data[body_at:size], key)
        cdef bytes normalised = PyBytes_FromStringAndSize(<char *>symbols, count)
        prefixes = self.configuration.prefixes
        fmt = self.formats[count]
        if prefixes:
            readings = split(normalised, prefixes)
        elif fmt is None or not _accepts(symbols, count, fmt.radix == 10):
            readings = []  # it may be an imported code
        else:
            readings = [(fmt, normalised, b"")]
        cdef const unsigned char *ending = symbols + count - ENDING
        cdef str user = _str(data, &body.user)
        cdef str order = _str(data, &body.order) if body.order.at else ""
        cdef Py_ssize_t key_length = 0 if key is None else len(key)
        cdef Py_ssize_t shortest = self._shortest(version)
        if (
            _repeats(ending, data + body.user.at, body.user.length)
            or (body.order.at and _repeats(ending, data + body.order.at, body.order.length))
            or (
                key_length >= ENDING
                and _repeats(ending, <const unsigned char *>PyUnicode_DATA(key), key_length)
            )
            or (
                (
                    body.user.length >= shortest
                    or (body.order.at and body.order.length >= shortest)
                    or key_length >= shortest
                )
                and self.contains_issued((user, order, key))
            )
        ):
            return self.left("code_in_text")
        # Last: an attempt that may go on is charged, and the fast lane would charge it again.
        if self.guard.watches and self._refuses(api_key, user, None):
            return self.left("guard")
        cdef ExpressRedemption made = self.make(api_key, version, user, order, key, normalised, readings)
        if body.has_amount:
            made.amount = body.amount
        else:
            made.amount = UP_TO_BALANCE if body.up_to_balance else ""
        if body.currency.at or body.campaign.at:
            made.asserted = Assertions(
                _str(data, &body.currency) if body.currency.at else None,
                _str(data, &body.campaign) if body.campaign.at else None,
            )
        return made

    cdef bint _refuses(self, api_key, str user, client) except -1:
        """Whether the guard refuses an attempt. If not, it is charged."""
        limit = self.guard.only_limit
        if limit is not None:
            if client is None:
                if limit.admit_now(api_key.id, user) == 0.0:
                    return False
            else:
                device, address = places_of(client)
                if limit.admit_now(api_key.id, user, device, address) == 0.0:
                    return False
        return self.guard.judge(api_key, user, client) is not None

    cdef ExpressRedemption begin_parsed(self, api_key, long version, bytes body, str key):
        """Do the same for a body that msgspec reads, with the checks of ``Core.submit``."""
        try:
            asked = parse_redeem_request(body, self.settings)
        except Refusal:
            return self.left("body")
        normalised = normalise(asked.code, characters_max=self.settings.code_length_max)
        if normalised is None or len(normalised) < self.limits.symbols_min:
            return self.left("code")
        keeps = asked.metadata is not None and self.settings.metadata_kept
        cdef str metadata = canonical(asked.metadata).decode() if keeps else ""
        texts = asked.user, asked.order, key
        if self.code_in_texts(normalised, texts, metadata):
            return self.left("code_in_text")
        if self.guard.watches and self._refuses(api_key, asked.user, asked.client):
            return self.left("guard")
        readings = split(normalised, self.configuration.prefixes)
        cdef ExpressRedemption made = self.make(
            api_key, version, asked.user, asked.order or "", key, normalised, readings
        )
        made.asked, made.metadata = asked, metadata
        made.amount = "" if asked.amount is None else asked.amount
        made.asserted = Assertions.of(asked)
        return made

    cdef ExpressRedemption make(
        self, api_key, long version, str user, str order, str key, bytes normalised, list readings
    ):
        cdef ExpressRedemption made = ExpressRedemption.__new__(ExpressRedemption)
        made.desk = self
        made.dispatcher, made.configuration = self.dispatcher, self.configuration
        made.api_key = api_key
        made.actor = api_key.id
        made.user, made.order, made.key = user, order, key
        made.idempotency_name = idempotency.name(made.actor, key) if key is not None else ""
        made.fingerprint, made.nonce, made.metadata = b"", b"", ""
        made.key_reserved = False
        made.normalised, made.readings = normalised, readings
        made.version = version
        made.deadline = <double>self.now() + self.deadline_s
        return made

    cdef ExpressRedemption left(self, str reason):
        """Count a request that the fast lane must look at."""
        self.count_left(reason)
        return None

    cdef KnownBatch known(self, code):
        """What is known of the batch of a code, and of its campaign as it is now."""
        batch = code.batch
        cdef KnownBatch known = self.latest
        if known is None or known.batch is not batch:
            known = self.by_batch.get(batch.id)
        if known is None or known.batch is not batch or known.campaign is not self.campaigns[known.campaign_id]:
            campaign = self.campaigns[batch.campaign]
            counted = self.counted.setdefault(campaign.id, Counted())
            known = KnownBatch(batch, campaign, code.last4, self.configuration.shards, counted)
            self.by_batch[known.id] = known
        self.latest = known
        return known

    cdef bytes instant_of(self, Py_ssize_t at_ms):
        if at_ms != self.at_ms:
            self.at_text, self.at_ms = instant(at_ms).encode(), at_ms
        return self.at_text

    cdef bytes head_of_now(self):
        cdef long second = unix_time(NULL)
        if second != self.second:
            self.head, self.second = self.answers.head(200, 0, is_last=False), second
        return self.head


@cython.no_gc  # nothing that it refers to keeps it once it is answered
cdef class ExpressRedemption:
    """A plain redemption, as resolver, dispatcher and batcher see it (``PendingLookup``, ``Queued``).

    Whatever but a success happens, it becomes a ``Redemption``, and that one answers.
    """

    script = Redemption.script
    heeds_voids = Redemption.heeds_voids
    sends_ending = Redemption.sends_ending
    looked_up_alike = Redemption.looked_up_alike

    cdef Desk desk
    cdef KnownBatch known  # that of its code
    cdef LaneState lane
    cdef Py_ssize_t lane_number
    cdef object asked  # the request, if msgspec has read it; its strings may need escapes in the answer
    cdef readonly object dispatcher, configuration, api_key, actor, key, metadata, asserted, campaign
    cdef readonly object amount, idempotency_name, fingerprint, nonce, location
    cdef readonly str user, order, last4
    cdef readonly Py_ssize_t batch, serial
    cdef Py_ssize_t shard, segment, offset
    cdef readonly bytes normalised
    cdef public object readings
    cdef readonly object version
    cdef readonly double deadline
    cdef public bint key_reserved

    @property
    def request(self):
        """The request as the other lanes read it."""
        if self.asked is not None:
            return self.asked
        currency, campaign = (None, None) if self.asserted is None else self.asserted
        return RedeemRequest(
            code=self.normalised.decode(),
            user=self.user,
            amount=None if self.amount == "" else self.amount,
            order=self.order or None,
            currency=currency,
            campaign=campaign,
        )

    cdef object as_redemption(self):
        """The same redemption, for the fast lane's code."""
        made = Redemption(self.dispatcher, self.request, self.key, self.api_key)
        made.normalised, made.readings = self.normalised, self.readings
        made.version, made.deadline, made.nonce = self.version, self.deadline, self.nonce
        made.on_done = functools.partial(self.lane._answered, self.lane_number)
        if self.location is not None:
            made.bind_record(self.campaign.id, self.batch, self.serial, self.last4)
            made.fingerprint, made.key_reserved = self.fingerprint, self.key_reserved
        return made

    # PendingLookup

    def found(self, code):
        """Bind to the code, and send the attempt to its shard."""
        cdef KnownBatch known = self.desk.known(code)
        cdef bytes symbols
        self.known, self.campaign, self.batch, self.serial = known, known.campaign, known.id, code.serial
        if code.format is None:
            self.last4 = code.last4
        else:
            symbols = code.symbols
            self.last4 = PyUnicode_DecodeASCII(
                PyBytes_AS_STRING(symbols) + PyBytes_GET_SIZE(symbols) - LAST, LAST, NULL
            )
        if self.key is not None:
            known_half = idempotency.known_half(self.user, self.order, [(self.batch, self.serial)])
            self.fingerprint = idempotency.fingerprint(known_half, _fingerprint_fields(self)) + self.nonce
        self._locate()
        if (self.asserted is not None or self.api_key.campaigns is not None) and (refusal := _mismatch(self)):
            self.as_redemption().refused(refusal)
        else:
            self.dispatcher.send(self)

    cdef _locate(self):
        """As ``locate_code``."""
        cdef Py_ssize_t index = self.serial
        self.shard = self.known.pinned_shard
        if self.shard < 0:
            self.shard, index = index % self.known.shards, index // self.known.shards
        self.segment, self.offset = index // _segment_codes, index % _segment_codes
        self.location = CodeLocation(self.shard, self.segment, self.offset)

    def refused(self, outcome, *, replayed=False):
        """Take a refusal."""
        self.as_redemption().refused(outcome, replayed=replayed)

    def failed(self, fault):
        """Take a fault."""
        self.as_redemption().failed(fault)

    def still_allowed(self):
        """Whether its API key is still valid. If not, it is refused."""
        if self.configuration.is_valid(self.api_key):
            return True
        self.refused("unauthenticated")
        return False

    # Queued

    def write_to(self, call):
        """Append the fields of the script's attempt: as ``CallFields`` does, which has all that is not usual."""
        cdef CallColumns columns = self.desk.columns
        cdef KnownBatch known = self.known
        if known.call is not call or known.shard != self.shard:
            known.take_place(call, self.shard, self.configuration)
        if not known.is_simple or self.asked is not None or self.idempotency_name:
            _write_to(self, call)
            return
        if columns.call is not call:
            columns.take(call)
        columns.about.append(self._about())
        columns.cause.append(columns.cause_text(self.order, self.actor))
        columns.campaign_at.append(known.campaign_at)
        columns.state_at.append(known.state_at(self.segment))
        columns.offset.append(self.offset)
        columns.own_fields.append("")  # the ending: it has no metadata
        if self.amount != "":
            call.amount[len(columns.about)] = str(self.amount)

    cdef str _about(self):
        """As ``about_json``, for a plain user."""
        cdef char serial[20]
        cdef Py_ssize_t serial_size = _put_number(serial, self.serial) - serial
        cdef bytes to_serial = self.known.to_serial
        cdef str text = PyUnicode_New(
            PyBytes_GET_SIZE(to_serial) + serial_size + PyUnicode_GET_LENGTH(self.last4)
            + PyUnicode_GET_LENGTH(self.user) + 6,
            127,
        )
        cdef char *to = <char *>PyUnicode_1BYTE_DATA(text)
        to = _put_bytes(to, to_serial)
        to = _put(to, serial, serial_size)
        to = _put(to, b',"', 2)
        to = _put_text(to, self.last4)
        to = _put(to, b'","', 3)
        to = _put_text(to, self.user)
        _put(to, b'"', 1)
        return text

    def answered(self, bytes answer):
        """Answer the client, if this is a success that was not replayed."""
        cdef const char *word = PyBytes_AS_STRING(answer)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(answer), at, id_at = 9, id_end, amount_at, amount_end
        cdef Py_ssize_t balance_at = 0, at_ms = 0
        at = id_at
        if size < 12 or memcmp(word, b"redeemed ", 9) != 0:
            self.as_redemption().answered(answer)
            return
        while at < size and 48 <= word[at] <= 57:
            at_ms = 10 * at_ms + word[at] - 48
            at += 1
        if 0 < at - id_at < 16 and at < size and word[at] == 45:
            at += 1
            while at < size and 48 <= word[at] <= 57:
                at += 1
            id_end = at
            if at < size and word[at] == 32:
                at += 1
                amount_at = at
                while at < size and 48 <= word[at] <= 57:
                    at += 1
                amount_end = at
                if at < size and word[at] == 32:
                    at += 1
                    balance_at = at
                    while at < size and 48 <= word[at] <= 57:
                        at += 1
                if at == size:
                    self._redeemed(word, id_end, at_ms, amount_at, amount_end, balance_at, size)
                    return
        self.as_redemption().answered(answer)

    cdef object _in_json(self, str text, const char **begin, Py_ssize_t *size):
        """Find a text of the request as it stands between the quotes of a JSON string; return what keeps it."""
        if self.asked is None:
            begin[0], size[0] = <const char *>PyUnicode_1BYTE_DATA(text), PyUnicode_GET_LENGTH(text)
            return text
        cdef bytes quoted = _to_json(text)
        begin[0], size[0] = PyBytes_AS_STRING(quoted) + 1, PyBytes_GET_SIZE(quoted) - 2
        return quoted

    cdef _redeemed(
        self, const char *word, Py_ssize_t id_end, Py_ssize_t at_ms, Py_ssize_t amount_at,
        Py_ssize_t amount_end, Py_ssize_t balance_at, Py_ssize_t size
    ):
        cdef Desk desk = self.desk
        cdef KnownBatch parts = self.known
        cdef LaneState lane = self.lane
        parts.counted.redeemed += 1
        note = desk.dispatcher.note
        if note is not None:
            client = None if self.asked is None else self.asked.client
            note((self.actor, self.user, client, "redeemed", self.normalised))
        if self.lane_number != lane._number or not lane._in_flight:
            return
        lane._in_flight = False
        transport = lane._transport
        if transport is None:
            return
        cdef bytes at_text = desk.instant_of(at_ms)
        cdef bytes head = desk.head_of_now()
        cdef str last4 = self.last4
        cdef char shard[20]
        cdef Py_ssize_t shard_size = _put_number(shard, self.shard) - shard
        cdef const char *user
        cdef const char *order
        cdef Py_ssize_t user_size, order_size
        users = self._in_json(self.user, &user, &user_size)
        orders = self._in_json(self.order, &order, &order_size)
        cdef bytes request_id = _process
        cdef char own_number[16]
        cdef Py_ssize_t own_number_size = 0
        if lane._request_id is None:
            own_number_size = _put_hex(own_number, _next_number()) - own_number
        else:
            request_id = (<str>desk.shared.request_id(lane._request_id)).encode()
        cdef Py_ssize_t amount_size = amount_end - amount_at
        cdef Py_ssize_t balance_size = size - balance_at if balance_at else 0
        cdef Py_ssize_t body_size = (
            7 + shard_size + 1 + id_end - 9 + PyBytes_GET_SIZE(parts.to_code) + PyUnicode_GET_LENGTH(last4)
            + 10 + user_size + 11 + (amount_size or 4) + PyBytes_GET_SIZE(parts.to_balance)
            + (11 + balance_size if balance_size else 0) + 9 + (order_size + 2 if order_size else 4)
            + 16 + PyBytes_GET_SIZE(at_text) + 19
        )
        cdef char length[20]
        cdef Py_ssize_t length_size = _put_number(length, body_size) - length
        cdef bytes answer = PyBytes_FromStringAndSize(
            NULL,
            PyBytes_GET_SIZE(head) + PyBytes_GET_SIZE(request_id) + own_number_size + 18 + length_size + 4
            + body_size,
        )
        cdef char *to = PyBytes_AS_STRING(answer)
        to = _put_bytes(to, head)
        to = _put_bytes(to, request_id)
        to = _put(to, own_number, own_number_size)
        to = _put(to, b"\r\nContent-Length: ", 18)
        to = _put(to, length, length_size)
        to = _put(to, b"\r\n\r\n", 4)
        to = _put(to, b'{"id":"', 7)
        to = _put(to, shard, shard_size)
        to = _put(to, b"-", 1)
        to = _put(to, word + 9, id_end - 9)
        to = _put_bytes(to, parts.to_code)
        to = _put_text(to, last4)
        to = _put(to, b'","user":"', 10)
        to = _put(to, user, user_size)
        to = _put(to, b'","amount":', 11)
        to = _put(to, word + amount_at, amount_size) if amount_size else _put(to, b"null", 4)
        to = _put_bytes(to, parts.to_balance)
        if balance_size:
            to = _put(to, b',"balance":', 11)
            to = _put(to, word + balance_at, balance_size)
        to = _put(to, b',"order":', 9)
        if order_size:
            to = _put(to, b'"', 1)
            to = _put(to, order, order_size)
            to = _put(to, b'"', 1)
        else:
            to = _put(to, b"null", 4)
        to = _put(to, b',"redeemed_at":"', 16)
        to = _put_bytes(to, at_text)
        to = _put(to, b'","replayed":false}', 19)
        transport.write(answer)
        desk.count_duration(<double>perf_counter() - lane._began)
        lane._has_answered = True
        lane._since = desk.now()
        if (
            lane._received
            or lane._says_no_more
            or lane._reading_paused
            or lane._head.is_last
            or desk.shared.stopping
        ):
            lane._proceed()


# the lane


cdef enum Progress:  # of a request
    UNREAD  # nothing was looked at but the head
    LEFT  # it was looked at, and is for the fast lane
    STARTED


class ExpressLane(LaneState, FastLane):
    """A fast lane that starts a plain redemption without running the fast lane's code."""

    __slots__ = ()

    def __init__(self, shared, Desk desk):
        cdef LaneState state = self
        FastLane.__init__(self, shared)
        state.desk, state.is_left, state.template = desk, False, desk.templates.latest

    def data_received(self, data):
        """Start the request if it is plain and whole, and nothing else waits; else let the fast lane look."""
        cdef LaneState state = self
        cdef Progress progress = UNREAD
        if not (
            state.template is None
            or state._received
            or state._in_flight
            or state._writing_paused
            or state._closing
            or type(data) is not bytes
        ):
            progress = _start_whole(state, state.template, <bytes>data)
        if progress != STARTED:
            state.is_left = progress == LEFT
            _plain_received(self, data)
            state.is_left = False

    def _redeem(self, body):
        """Start a request whose head the fast lane has read: it came in pieces, or the head is new."""
        cdef LaneState state = self
        cdef Template template = state.template
        if state.is_left or template is None or state._head.is_last:
            return _plain_redeem(self, body)
        progress = _start(
            state, template, <const unsigned char *>PyBytes_AS_STRING(body), 0, len(body), state._key, state._signed
        )
        return progress == STARTED or _plain_redeem(self, body)

    def _read(self, head):
        cdef LaneState state = self
        if not _plain_read(self, head):
            return False
        if not state._head.is_last:
            state.template = state.desk.templates.of(head, state._head)
        return True


def express_lanes(known_with, verify_at_once, core):
    """Return what makes the express lanes of a worker, once it has what they share.

    ``known_with`` finds the API key of an Authorization header with a scope, without waiting;
    ``verify_at_once`` verifies a signature (``Signatures``).
    """

    def of(shared):
        desk = Desk(known_with, verify_at_once, core, shared)
        return lambda: ExpressLane(shared, desk)

    return of


cdef Progress _start_whole(LaneState lane, Template template, bytes data) except? UNREAD:
    """Start the redemption that the data are, if they have the head of the template."""
    cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef Found found
    cdef Desk desk = lane.desk
    cdef str key = None
    if (
        not template.fits(at, size, &found)
        or found.body_at + found.length != size
        or found.length > desk.body_bytes_max
    ):
        return UNREAD
    if found.at[IDEMPOTENCY_KEY]:
        key = _hole(at, &found, IDEMPOTENCY_KEY)
    lane._head = template.head
    lane._request_id = _hole(at, &found, REQUEST_ID_GIVEN) if found.at[REQUEST_ID_GIVEN] else None
    signed_head = None
    if found.at[SIGNATURE]:
        signed_head = template.head.signed(
            key,
            _hole(at, &found, CONTENT_DIGEST),
            _hole(at, &found, SIGNATURE_INPUT),
            _hole(at, &found, SIGNATURE),
        )
    return _start(lane, template, at, found.body_at, size, key, signed_head)


cdef inline str _hole(const unsigned char *data, Found *found, int kind):
    return PyUnicode_DecodeASCII(<const char *>data + found.at[kind], found.size[kind], NULL)


cdef Progress _start(
    LaneState lane, Template template, const unsigned char *data, Py_ssize_t body_at, Py_ssize_t size, str key,
    object signed_head
) except? UNREAD:
    """Start the redemption with this body, which ends at ``size``."""
    cdef ExpressRedemption redemption
    cdef Desk desk = lane.desk
    lane._number += 1
    lane._began = perf_counter()
    lane._in_flight = True
    try:
        redemption = desk.begin(template, data, body_at, size, key, signed_head)
        if redemption is None:
            lane._in_flight = False
            return LEFT
        redemption.lane, redemption.lane_number = lane, lane._number
        desk.find(redemption)
    except Exception as error:  # a bug of ours gets the same answer as in the fast lane
        lane._fail(error)
    return STARTED
