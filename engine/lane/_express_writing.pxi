# What redemptions of one batch or one call share, and the writing of texts. A part of _express.pyx.


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
    cdef Py_ssize_t call_number, shard
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

    cdef take_place(self, call, Py_ssize_t call_number, Py_ssize_t shard, configuration):
        """Find the place of its codes in a call. Nothing else changes the configuration meanwhile."""
        campaign = configuration.campaigns[self.campaign.id]
        self.call_number, self.shard, self.states_at = call_number, shard, {}
        self.is_simple = (
            campaign.kind == "single" and not campaign.per_user_limited and not configuration.has_voids(self.id)
        )
        if self.is_simple:
            self.campaign_at = call.key(keys.campaign(shard, campaign.id))

    cdef object state_at(self, call, Py_ssize_t segment):
        at = self.states_at.get(segment)
        if at is None:
            at = self.states_at[segment] = call.key(keys.state(self.shard, self.id, segment))
        return at


cdef class CallColumns:
    """The columns of the call that is being written (``Call``), and the texts that many attempts share."""

    cdef object call
    cdef Py_ssize_t call_number  # of all calls of this worker that it has written
    cdef list about, cause, campaign_at, state_at, offset, own_fields
    cdef str actor, cause_of_actor

    cdef take(self, call):
        self.call = call
        self.call_number += 1
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
