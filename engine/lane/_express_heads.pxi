# The heads of requests. A part of _express.pyx.

cdef enum:  # the values in a head that differ from request to request
    LENGTH
    IDEMPOTENCY_KEY
    REQUEST_ID_GIVEN
    CONTENT_DIGEST
    SIGNATURE_INPUT
    SIGNATURE

cdef object _find_length = re.compile(rb"\r\ncontent-length: ?([1-9][0-9]{0,8})(?=\r\n)", re.IGNORECASE).search
cdef list _finders = [
    (LENGTH, _find_length),
    (IDEMPOTENCY_KEY, KEY.search),
    (REQUEST_ID_GIVEN, REQUEST_ID.search),
    *zip((CONTENT_DIGEST, SIGNATURE_INPUT, SIGNATURE), [pattern.search for pattern in SIGNED]),
]


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
