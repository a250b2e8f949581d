# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""FF1 decrypts the codes of many requests here: the rounds of ``ff1.FF1``, compiled.

AES stays in OpenSSL: one call for each round, for all codes, without Python between where that is possible
(``direct_aes``). What is between the calls is done here, on integers of 128 bits, so one code costs little
more than its ten calls. ``FF1`` is the reference and runs where nothing was compiled. ``_ff1.pyi`` has the
types.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from engine.codes.formats import IDENTITY_LIMIT, SERIAL_BITS

cdef extern from *:
    """
    typedef unsigned long long redeem_u64;
    typedef unsigned __int128 redeem_u128;

    /* Big-endian words, byte by byte: compilers make one instruction of it. */
    static inline redeem_u64 redeem_load(const unsigned char *at) {
        return (redeem_u64)at[0] << 56 | (redeem_u64)at[1] << 48 | (redeem_u64)at[2] << 40 | (redeem_u64)at[3] << 32
            | (redeem_u64)at[4] << 24 | (redeem_u64)at[5] << 16 | (redeem_u64)at[6] << 8 | (redeem_u64)at[7];
    }
    static inline void redeem_store(unsigned char *at, redeem_u64 word) {
        at[0] = word >> 56; at[1] = word >> 48; at[2] = word >> 40; at[3] = word >> 32;
        at[4] = word >> 24; at[5] = word >> 16; at[6] = word >> 8; at[7] = word;
    }
    """
    ctypedef unsigned long long u64 "redeem_u64"
    ctypedef unsigned long long u128 "redeem_u128"  # C knows its width
    u64 load "redeem_load"(const unsigned char *at) nogil
    void store "redeem_store"(unsigned char *at, u64 word) nogil

ctypedef int (*Update)(void *context, unsigned char *out, int *written, const unsigned char *data, int size) noexcept

cdef enum:
    ROUNDS = 10
    BLOCK = 16
    STRIDE = 256  # codes of one step: their blocks stay in the fastest cache
    NO_SYMBOL = 255  # in the values of the symbols: it is not in the alphabet

cdef u64 _identity_limit = IDENTITY_LIMIT
cdef int _serial_bits = SERIAL_BITS


cdef class Decryptor:
    """Decrypts codes under one key, for one radix, length and tweak. Two threads must not use it at once.

    ``aes`` has the addresses of AES under the key (``DirectAes``); if it is None, ``update_into`` is called.
    ``rounds`` are chain value and modulus of each round of the encryption; ``sum_bytes`` is d of algorithm 8.
    """

    cdef object update_into
    cdef object aes  # whose addresses the next two are
    cdef Update update
    cdef void *context
    cdef bytearray source, target
    cdef u64 high[ROUNDS]  # the chain values, in two words
    cdef u64 low[ROUNDS]
    cdef u64 modulus[ROUNDS]
    cdef u64 low_modulus
    cdef bint is_binary
    cdef int sum_bytes
    cdef u64 a[STRIDE]  # the halves of the numbers: a × low_modulus + b
    cdef u64 b[STRIDE]

    def __init__(self, aes, update_into, rounds, sum_bytes, is_binary):
        cdef int at
        self.aes, self.update_into = aes, update_into
        self.update, self.context = NULL, NULL
        if aes is not None:
            self.update, self.context = <Update><size_t>aes.update, <void *><size_t>aes.context
        self.source = bytearray(STRIDE * BLOCK)
        self.target = bytearray(STRIDE * BLOCK + BLOCK)  # update_into wants a block more, less one byte
        self.is_binary, self.sum_bytes = is_binary, sum_bytes
        for at, (chain, modulus) in enumerate(reversed(rounds)):
            self.high[at], self.low[at], self.modulus[at] = chain >> 64, chain & (2**64 - 1), modulus
        self.low_modulus = self.modulus[0]

    def decrypt_many(self, numbers):
        """Do the same as ``FF1.decrypt_int`` for many numbers, in their order. They must be in the domain."""
        cdef int at, count
        found = []
        for begin in range(0, len(numbers), STRIDE):
            some = numbers[begin : begin + STRIDE]
            count = len(some)
            for at in range(count):
                self.a[at], self.b[at] = divmod(some[at], self.low_modulus)
            self._decrypt(count)
            for at in range(count):
                found.append(int(self.a[at]) * self.low_modulus + self.b[at])
        return found

    def decode_many(self, codes, bytes values, int radix, int length, u64 check):
        """Do the same as ``Codec.decode`` for many texts, in their order.

        ``values`` has the value of each byte in the alphabet of the codes, or ``NO_SYMBOL``; ``radix``,
        ``length`` and ``check`` are those of their format.
        """
        cdef const unsigned char *value_of = <const unsigned char *>PyBytes_AS_STRING(values)
        cdef const unsigned char *symbols
        cdef unsigned char value
        cdef bytes code
        cdef int at, count, place
        cdef int places[STRIDE]
        cdef u64 identity
        cdef u128 number
        cdef Py_ssize_t begin
        found = [None] * len(codes)
        for begin in range(0, len(codes), STRIDE):
            count = 0
            for place in range(min(STRIDE, len(codes) - begin)):
                code = codes[begin + place]
                if PyBytes_GET_SIZE(code) != length:
                    continue
                symbols = <const unsigned char *>PyBytes_AS_STRING(code)
                self.a[count] = self.b[count] = 0
                for at in range(length):
                    value = value_of[symbols[at]]
                    if value == NO_SYMBOL:
                        break
                    if at < length // 2:
                        self.a[count] = self.a[count] * radix + value
                    else:
                        self.b[count] = self.b[count] * radix + value
                else:
                    places[count] = place
                    count += 1
            if count:
                self._decrypt(count)
            for at in range(count):
                number = <u128>self.a[at] * self.low_modulus + self.b[at]
                if number % check == 0 and number // check < _identity_limit:
                    identity = <u64>(number // check)
                    found[begin + places[at]] = (
                        identity >> _serial_bits, identity & ((<u64>1 << _serial_bits) - 1)
                    )
        return found

    cdef int _decrypt(self, int count) except -1:
        """Run the ten rounds over the first numbers, in place (SP 800-38G, algorithm 8, step 4)."""
        cdef unsigned char *blocks = <unsigned char *>self.source
        cdef unsigned char *sums = <unsigned char *>self.target
        cdef u64 *known = self.a
        cdef u64 *changed = self.b
        cdef u64 *other
        cdef u64 word, modulus
        cdef int turn, at, written
        data = None if self.update != NULL else memoryview(self.source)[: count * BLOCK]
        for turn in range(ROUNDS):
            for at in range(count):
                store(blocks + at * BLOCK, self.high[turn])
                store(blocks + at * BLOCK + 8, self.low[turn] ^ known[at])
            if self.update == NULL:
                self.update_into(data, self.target)
            elif self.update(self.context, sums, &written, blocks, count * BLOCK) != 1 or written != count * BLOCK:
                raise RuntimeError("OpenSSL did not encrypt")
            modulus = self.modulus[turn]
            for at in range(count):  # S is the first 8 or 12 bytes of the output
                word = load(sums + at * BLOCK + self.sum_bytes - 8)
                if self.is_binary:
                    changed[at] = (changed[at] - word) & (modulus - 1)
                else:
                    if self.sum_bytes > 8:
                        word = <u64>((<u128>(load(sums + at * BLOCK) >> 32) << 64 | word) % modulus)
                    else:
                        word %= modulus
                    changed[at] = changed[at] - word + (0 if changed[at] >= word else modulus)
            other = known
            known = changed
            changed = other
        return 0
