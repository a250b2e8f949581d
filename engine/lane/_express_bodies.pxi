# The bodies of requests: read in C if they are plain, and looked through for codes. A part of _express.pyx.

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


cdef bint _has_shape_of_uuid(const unsigned char *text, Py_ssize_t length) noexcept:
    """Whether a text of ASCII, a usual key, is one that ``Scanner.likely`` does not look at: it has no code."""
    cdef Py_ssize_t at
    if length != UUID_LENGTH:
        return False
    for at in range(UUID_LENGTH):
        if _is_alphanumeric(text[at]) == (at == 8 or at == 13 or at == 18 or at == 23):
            return False
    return True


cdef inline bint _is_alphanumeric(unsigned char letter) noexcept:
    return 48 <= letter <= 57 or 65 <= letter <= 90 or 97 <= letter <= 122


def has_shape_of_uuid(bytes text):
    """Whether the express lane takes a text for a UUID, for tests."""
    return _has_shape_of_uuid(<const unsigned char *>PyBytes_AS_STRING(text), len(text))


def repeats(bytes code, bytes text):
    """Whether a text of ASCII contains a code of at least ``SHORTEST_CODE`` symbols, for tests."""
    cdef const char *ending = PyBytes_AS_STRING(code) + PyBytes_GET_SIZE(code) - ENDING
    return _repeats(<const unsigned char *>ending, <const unsigned char *>PyBytes_AS_STRING(text), len(text))
