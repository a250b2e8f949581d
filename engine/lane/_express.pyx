# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The express lane: the fast lane with its usual case compiled.

A redemption whose head is plain is started and answered here; if its body is plain as well, it is also read
here, else by msgspec. For anything else the methods of ``FastLane`` and ``Redemption`` run, which this module
only stands in front of: they are the reference, and both lanes share admission, time limits, batches and
links. ``redeem_express_left_total`` counts what was left to them, by reason. ``_express.pyi`` has the types.

The parts of this module are in ``.pxi`` files, which are included here: one module, so calls cost nothing.
"""

import functools
import re
import string
from time import perf_counter

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_AsUTF8AndSize, PyUnicode_DecodeASCII, PyUnicode_GET_LENGTH, PyUnicode_New
from libc.string cimport memcmp, memcpy, memset
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
from engine.redemption.redeem import Redemption
from engine.store import idempotency, keys
from engine.store.call import SIGNATURE as CALL_SIGNATURE
from engine.store.event_lines import FINGERPRINT_HALF, about_json, cause_json, ending_json
from engine.store.keys import SEGMENT_CODES, SPENT_SEGMENT_CODES, CodeLocation
from engine.times import instant

cdef enum:
    HOLES_MAX = 6
    LENGTH_DIGITS_MAX = 9
    REQUEST_ID_MAX = 128
    AMOUNT_DIGITS_MAX = 15  # below AMOUNT_MAX, whatever the digits
    SYMBOLS_MAX = 256
    BOUNDS_MAX = 15  # REQUEST_SECONDS_BOUNDS
    UUID_LENGTH = 36
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
cdef Py_ssize_t _spent_segment_codes = SPENT_SEGMENT_CODES
cdef Py_ssize_t _arguments = len(CALL_SIGNATURE)
cdef Py_ssize_t _names_of_every_script = len(keys.of_every_script(0))
cdef object _plain_received = FastLane.data_received
cdef object _plain_read = FastLane._read
cdef object _plain_redeem = FastLane._redeem
cdef object _mismatch = Attempt.mismatch
cdef object _fingerprint_fields = Redemption.fingerprint_fields
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


include "_express_heads.pxi"
include "_express_bodies.pxi"


cdef class LaneState:
    """What ``FastLane`` keeps of a connection (``protocol.STATE``), where compiled code finds it at once."""

    cdef public object _head, _key, _pieces, _received, _request_id, _shared, _signed, _transport
    cdef public Py_ssize_t _body_at, _number
    cdef public bint _closing, _has_answered, _in_flight, _reading_paused, _says_no_more, _writing_paused
    cdef public double _began, _since
    cdef Desk desk
    cdef bint is_left  # the request that is being received must be looked at by the fast lane
    cdef Template template


include "_express_digests.pxi"
include "_express_writing.pxi"


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
    cdef list formats, queues  # by length; by shard
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
        self.queues = core.dispatcher.queues_of(Redemption.script)
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
        cdef const unsigned char *key_data = NULL
        cdef Py_ssize_t key_length = 0
        if key is not None:
            key_data, key_length = <const unsigned char *>PyUnicode_1BYTE_DATA(key), PyUnicode_GET_LENGTH(key)
        cdef Py_ssize_t shortest = self._shortest(version)
        if (
            _repeats(ending, data + body.user.at, body.user.length)
            or (body.order.at and _repeats(ending, data + body.order.at, body.order.length))
            or _repeats(ending, key_data, key_length)
            or (
                (
                    body.user.length >= shortest
                    or (body.order.at and body.order.length >= shortest)
                    or (key_length >= shortest and not _has_shape_of_uuid(key_data, key_length))
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


include "_express_redemption.pxi"


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
