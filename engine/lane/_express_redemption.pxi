# A redemption on its way. A part of _express.pyx.


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
    cdef readonly object dispatcher, configuration, api_key, metadata, asserted, campaign
    cdef readonly str actor, key
    cdef readonly object amount, nonce
    cdef readonly bytes fingerprint
    cdef readonly str user, order, last4
    cdef readonly Py_ssize_t batch, serial
    cdef Py_ssize_t shard, segment, offset
    cdef readonly bytes normalised
    cdef public object readings
    cdef readonly object version
    cdef readonly double deadline
    cdef public bint key_reserved

    @property
    def idempotency_name(self):
        """As that of an ``Attempt``."""
        return "" if self.key is None else idempotency.name(self.actor, self.key)

    @property
    def location(self):
        """As that of an ``Attempt``."""
        return CodeLocation(self.shard, self.segment, self.offset)

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
        if self.known is not None:
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
            self.fingerprint = self._fingerprint() + self.nonce
        self._locate()
        if (self.asserted is not None or self.api_key.campaigns is not None) and (refusal := _mismatch(self)):
            self.as_redemption().refused(refusal)
        elif self.configuration.memory_short or (known.shards > 1 and self.key is not None):
            self.dispatcher.send(self)
        else:
            (<list>self.desk.queues)[self.shard](self)

    cdef bytes _fingerprint(self):
        """As ``idempotency.known_half`` and ``idempotency.fingerprint``."""
        if self.asked is not None:
            known_half = idempotency.known_half(self.user, self.order, [(self.batch, self.serial)])
            return idempotency.fingerprint(known_half, _fingerprint_fields(self))
        cdef char fingerprint[2 * HALF_BYTES]
        cdef blake2b_message hashed
        blake2b_begin(&hashed, HALF_BYTES)
        blake2b_add(&hashed, b"[", 1)
        _add_json(&hashed, self.user)
        blake2b_add(&hashed, b",", 1)
        _add_json(&hashed, self.order)
        blake2b_add(&hashed, b",[[", 3)
        _add_number(&hashed, self.batch)
        blake2b_add(&hashed, b",", 1)
        _add_number(&hashed, self.serial)
        blake2b_add(&hashed, b"]]]", 3)
        blake2b_end(&hashed, fingerprint)
        blake2b_begin(&hashed, HALF_BYTES)
        blake2b_add(&hashed, b"[", 1)
        _add_number(&hashed, self.batch)
        blake2b_add(&hashed, b",", 1)
        _add_number(&hashed, self.serial)
        blake2b_add(&hashed, b",", 1)
        _add_json(&hashed, self.user)
        blake2b_add(&hashed, b",", 1)
        if type(self.amount) is str:
            _add_json(&hashed, <str>self.amount or None)
        else:
            _add_number(&hashed, self.amount)
        blake2b_add(&hashed, b",", 1)
        _add_json(&hashed, self.order or None)
        if self.asserted is not None:
            for asserted in self.asserted:
                blake2b_add(&hashed, b",", 1)
                _add_json(&hashed, asserted)
        blake2b_add(&hashed, b"]", 1)
        blake2b_end(&hashed, fingerprint + HALF_BYTES)
        if memcmp(fingerprint + HALF_BYTES, b"\0\0\0\0", HALF_BYTES) == 0:  # REBUILT
            memset(fingerprint + HALF_BYTES, 1, HALF_BYTES)
        return PyBytes_FromStringAndSize(fingerprint, 2 * HALF_BYTES)

    cdef _locate(self):
        """As ``locate_code``."""
        cdef Py_ssize_t index = self.serial
        self.shard = self.known.pinned_shard
        if self.shard < 0:
            self.shard, index = index % self.known.shards, index // self.known.shards
        self.segment, self.offset = index // _segment_codes, index % _segment_codes

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
        """Append the fields of the script's attempt, as ``CallFields`` does."""
        cdef CallColumns columns = self.desk.columns
        cdef KnownBatch known = self.known
        if columns.call is not call:
            columns.take(call)
        if known.call_number != columns.call_number or known.shard != self.shard:
            known.take_place(call, columns.call_number, self.shard, self.configuration)
        cdef bint is_plain = self.asked is None
        columns.about.append(
            self._about() if is_plain else about_json(self.batch, self.serial, self.last4, self.user)
        )
        columns.cause.append(
            columns.cause_text(self.order, self.key, self.actor)
            if is_plain
            else cause_json(self.order or None, self.key, self.actor)
        )
        number = len(columns.about)
        columns.campaign_at.append(known.campaign_at)
        is_void = known.has_voids and self.configuration.is_void(self.batch, self.serial)
        columns.state_at.append(0 if is_void else known.state_at(call, self.segment))
        columns.offset.append(self.offset)
        if known.has_uses:
            call.used_at[number] = call.key(keys.uses(self.shard, self.batch))
            call.used_field[number] = self.serial
        elif known.has_balances:
            self._write_balance(call, number)
        if known.counts_users:
            self._write_user(call, number)
        if self.amount != "":
            call.amount[number] = str(self.amount)
        if self.key is not None:
            columns.write_record(self, number)
        columns.own_fields.append(self._ending() if is_plain else ending_json(self.metadata, self.fingerprint))

    cdef _write_balance(self, call, number):
        """As ``keys.spent_location``."""
        cdef Py_ssize_t index = self.segment * _segment_codes + self.offset
        call.used_at[number] = self.known.spent_of(call, index // _spent_segment_codes)
        call.used_field[number] = index % _spent_segment_codes

    cdef _write_user(self, call, number):
        """As ``idempotency.bucketed`` finds the user."""
        cdef unsigned char digest[DIGEST_BYTES]
        cdef blake2b_message hashed
        blake2b_begin(&hashed, DIGEST_BYTES)
        _add_text(&hashed, self.user)
        blake2b_end(&hashed, <char *>digest)
        call.users_at[number] = call.key(
            keys.users(self.shard, self.known.campaign_id, digest[0] << 8 | digest[1])
        )
        call.user_digest_at[number] = call.raw(<bytes>digest[:DIGEST_BYTES])

    cdef str _ending(self):
        """As ``ending_json``, without metadata."""
        if self.key is None:
            return ""
        cdef const unsigned char *half = <const unsigned char *>PyBytes_AS_STRING(self.fingerprint) + HALF_BYTES
        cdef unsigned int number = <unsigned int>half[0] << 24 | half[1] << 16 | half[2] << 8 | half[3]
        return _numbered(b"null,-", -number) if number >> 31 else _numbered(b"null,", number)

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
