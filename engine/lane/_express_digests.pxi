# Digests of the texts of a request, as ``idempotency`` makes them with hashlib. A part of _express.pyx.

cdef extern from "../digests.h" nogil:
    struct blake2b_message:
        pass
    void blake2b_begin(blake2b_message *message, size_t digest_bytes)
    void blake2b_add(blake2b_message *message, const char *part, size_t bytes)
    void blake2b_end(blake2b_message *message, char *digest)

cdef enum:
    DIGEST_BYTES = 12  # ``idempotency.bucketed``
    HALF_BYTES = 4  # FINGERPRINT_HALF

if HALF_BYTES != FINGERPRINT_HALF:
    raise ImportError("the express lane was built for other digests")


cdef int _add_text(blake2b_message *to, str text) except -1:
    cdef Py_ssize_t size
    cdef const char *data = PyUnicode_AsUTF8AndSize(text, &size)
    blake2b_add(to, data, size)
    return 0


cdef int _add_json(blake2b_message *to, str text) except -1:
    """Add a text that needs no escapes as JSON has it; None is null."""
    if text is None:
        blake2b_add(to, b"null", 4)
        return 0
    blake2b_add(to, b'"', 1)
    _add_text(to, text)
    blake2b_add(to, b'"', 1)
    return 0


cdef void _add_number(blake2b_message *to, size_t number) noexcept:
    cdef char digits[20]
    blake2b_add(to, digits, _put_number(digits, number) - digits)


def blake2b(list parts):
    """The digest of ``idempotency.bucketed`` of a message in parts, for tests."""
    cdef blake2b_message hashed
    cdef char digest[DIGEST_BYTES]
    blake2b_begin(&hashed, DIGEST_BYTES)
    for part in parts:
        blake2b_add(&hashed, PyBytes_AS_STRING(part), len(part))
    blake2b_end(&hashed, digest)
    return <bytes>digest[:DIGEST_BYTES]
