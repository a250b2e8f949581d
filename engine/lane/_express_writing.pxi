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
    cdef bint has_voids, has_uses, has_balances, counts_users
    cdef object campaign_at
    cdef dict states_at, spent_at  # by segment
    cdef str campaign_name  # of the shard's key
    cdef dict state_names  # of the shard's keys, by segment

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
        campaign = configuration.campaigns[self.campaign_id]
        if self.shard != shard or self.campaign_name is None:
            self.shard, self.campaign_name, self.state_names = shard, keys.campaign(shard, campaign.id), {}
        self.call_number, self.states_at, self.spent_at = call_number, {}, {}
        self.has_voids = configuration.has_voids(self.id)
        self.has_uses, self.has_balances = campaign.kind == "multi", campaign.kind == "balance"
        self.counts_users = campaign.per_user_limited
        self.campaign_at = call.key(self.campaign_name)

    cdef object state_at(self, call, Py_ssize_t segment):
        at = self.states_at.get(segment)
        if at is None:
            name = self.state_names.get(segment)
            if name is None:
                name = self.state_names[segment] = keys.state(self.shard, self.id, segment)
            at = self.states_at[segment] = call.key(name)
        return at

    cdef object spent_of(self, call, Py_ssize_t segment):
        at = self.spent_at.get(segment)
        if at is None:
            at = self.spent_at[segment] = call.key(keys.spent(self.shard, self.id, segment))
        return at


cdef class CallColumns:
    """The columns of the call that is being written (``Call``), and the texts that many attempts share."""

    cdef object call
    cdef Py_ssize_t call_number  # of all calls of this worker that it has written
    cdef list about, cause, campaign_at, state_at, offset, own_fields, names, raws
    cdef dict idempotency_at, idempotency_digest_at, records
    cdef str actor, cause_of_actor
    cdef Py_ssize_t shard, epoch
    cdef bytes to_bucket, to_bucket_before  # the names of idempotency records, up to the bucket

    cdef take(self, call):
        self.call = call
        self.call_number += 1
        self.about, self.cause, self.campaign_at = call.about, call.cause, call.campaign_at
        self.state_at, self.offset, self.own_fields = call.state_at, call.offset, call.own_fields
        self.names, self.raws, self.records = call.names, call.raws, call.records
        self.idempotency_at, self.idempotency_digest_at = call.idempotency_at, call.idempotency_digest_at
        if call.epoch != self.epoch or call.shard != self.shard or self.to_bucket is None:
            self.epoch, self.shard = call.epoch, call.shard
            name, before = [keys.idempotency_records(self.shard, self.epoch - back, 0) for back in range(2)]
            self.to_bucket, self.to_bucket_before = name.encode().removesuffix(b"0"), before.encode().removesuffix(b"0")

    cdef str cause_text(self, str order, str key, str actor):
        """As ``cause_json``, for a plain order."""
        if self.actor is not actor:
            self.cause_of_actor, self.actor = cause_json(None, None, actor), actor
        if not order and key is None:
            return self.cause_of_actor
        if not self.cause_of_actor.isascii() or (key is not None and not _is_plain(key)):
            return cause_json(order or None, key, actor)
        cdef Py_ssize_t size = len(self.cause_of_actor) - 9  # without null,null
        cdef str text = PyUnicode_New(_json_size(order or None) + 1 + _json_size(key) + size, 127)
        cdef char *to = <char *>PyUnicode_1BYTE_DATA(text)
        to = _put_json(to, order or None)
        to = _put(to, b",", 1)
        to = _put_json(to, key)
        _put(to, <const char *>PyUnicode_1BYTE_DATA(self.cause_of_actor) + 9, size)
        return text

    cdef write_record(self, ExpressRedemption attempt, number):
        """Write where the idempotency record of an attempt is, and what is in it: as ``CallFields``."""
        cdef unsigned char digest[DIGEST_BYTES]
        cdef blake2b_message hashed
        blake2b_begin(&hashed, DIGEST_BYTES)
        _add_text(&hashed, attempt.actor)
        blake2b_add(&hashed, b" ", 1)
        _add_text(&hashed, attempt.key)
        blake2b_end(&hashed, <char *>digest)
        cdef int bucket = digest[0] << 8 | digest[1]
        cdef char bucket_digits[20]
        cdef Py_ssize_t bucket_size = _put_number(bucket_digits, bucket) - bucket_digits
        at = self.records.get(bucket)
        if at is None:
            self.names.append(_packed(self.to_bucket, bucket_digits, bucket_size))
            at = self.records[bucket] = _names_of_every_script + len(self.names)
            self.names.append(_packed(self.to_bucket_before, bucket_digits, bucket_size))
        self.idempotency_at[number] = at
        self.raws.append(_packed(b"", <char *>digest, DIGEST_BYTES))
        self.idempotency_digest_at[number] = _arguments + len(self.raws)
        self.raws.append(_packed(attempt.fingerprint, b"", 0))


cdef inline char *_put(char *to, const char *data, Py_ssize_t size) noexcept:
    memcpy(to, data, size)
    return to + size


cdef inline char *_put_bytes(char *to, bytes data) noexcept:
    return _put(to, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline char *_put_text(char *to, str text) noexcept:
    """Write a text of ASCII."""
    return _put(to, <const char *>PyUnicode_1BYTE_DATA(text), PyUnicode_GET_LENGTH(text))


cdef inline Py_ssize_t _json_size(str text) noexcept:
    return 4 if text is None else PyUnicode_GET_LENGTH(text) + 2


cdef inline char *_put_json(char *to, str text) noexcept:
    """Write a text that needs no escapes as JSON has it; None is null."""
    if text is None:
        return _put(to, b"null", 4)
    to = _put(to, b'"', 1)
    to = _put_text(to, text)
    return _put(to, b'"', 1)


cdef bytes _packed(bytes begin, const char *end, Py_ssize_t end_size):
    """An argument of a command in the Redis protocol, as ``call._packed``; of these two parts."""
    cdef char length[20]
    cdef Py_ssize_t size = PyBytes_GET_SIZE(begin) + end_size
    cdef Py_ssize_t length_size = _put_number(length, size) - length
    cdef bytes packed = PyBytes_FromStringAndSize(NULL, 1 + length_size + 2 + size + 2)
    cdef char *to = _put(PyBytes_AS_STRING(packed), b"$", 1)
    to = _put(to, length, length_size)
    to = _put(to, b"\r\n", 2)
    to = _put_bytes(to, begin)
    to = _put(to, end, end_size)
    _put(to, b"\r\n", 2)
    return packed


cdef str _numbered(bytes to_number, Py_ssize_t number):
    cdef char digits[20]
    cdef Py_ssize_t size = _put_number(digits, number) - digits
    cdef str text = PyUnicode_New(PyBytes_GET_SIZE(to_number) + size, 127)
    _put(_put_bytes(<char *>PyUnicode_1BYTE_DATA(text), to_number), digits, size)
    return text


cdef inline bint _is_plain(str text) noexcept:
    """Whether a text of printable ASCII needs no escapes in JSON."""
    cdef const unsigned char *data = <const unsigned char *>PyUnicode_1BYTE_DATA(text)
    cdef Py_ssize_t at
    for at in range(PyUnicode_GET_LENGTH(text)):
        if data[at] == 34 or data[at] == 92:
            return False
    return True


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
