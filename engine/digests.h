/* SHA-256 (FIPS 180-4) and BLAKE2b (RFC 7693) of short messages.

   hashlib needs one to three microseconds for a message of a few bytes, most of them for its objects; this
   needs a few hundred nanoseconds. The tests of the callers compare it with hashlib. */

#ifndef REDEEM_DIGESTS_H
#define REDEEM_DIGESTS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static const uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t rotated32(uint32_t word, int by) { return word >> by | word << (32 - by); }

static void sha256_block(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64], v[8];
    for (int at = 0; at < 16; at++, block += 4)
        w[at] = (uint32_t)block[0] << 24 | (uint32_t)block[1] << 16 | (uint32_t)block[2] << 8 | block[3];
    for (int at = 16; at < 64; at++) {
        uint32_t low = w[at - 15], high = w[at - 2];
        w[at] = w[at - 16] + w[at - 7] + (rotated32(low, 7) ^ rotated32(low, 18) ^ low >> 3)
              + (rotated32(high, 17) ^ rotated32(high, 19) ^ high >> 10);
    }
    memcpy(v, state, sizeof v);
    for (int at = 0; at < 64; at++) {
        uint32_t e = v[4], a = v[0];
        uint32_t first = v[7] + (rotated32(e, 6) ^ rotated32(e, 11) ^ rotated32(e, 25))
                       + ((e & v[5]) ^ (~e & v[6])) + sha256_constants[at] + w[at];
        uint32_t second = (rotated32(a, 2) ^ rotated32(a, 13) ^ rotated32(a, 22))
                        + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        v[7] = v[6]; v[6] = v[5]; v[5] = e; v[4] = v[3] + first;
        v[3] = v[2]; v[2] = v[1]; v[1] = a; v[0] = first + second;
    }
    for (int at = 0; at < 8; at++)
        state[at] += v[at];
}

/* Writes the 32 bytes of SHA-256(first ‖ second). */
static inline void sha256_of_two(const char *first, size_t first_bytes, const char *second, size_t second_bytes, char *digest)
{
    uint32_t state[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    uint8_t block[64];
    size_t filled = 0, part_bytes[2] = {first_bytes, second_bytes};
    const char *parts[2] = {first, second};
    uint64_t bits = (uint64_t)(first_bytes + second_bytes) * 8;
    for (int part = 0; part < 2; part++) {
        const char *from = parts[part];
        size_t left = part_bytes[part];
        while (left) {
            size_t now = left < 64 - filled ? left : 64 - filled;
            memcpy(block + filled, from, now);
            filled += now, from += now, left -= now;
            if (filled == 64)
                sha256_block(state, block), filled = 0;
        }
    }
    block[filled++] = 0x80;
    if (filled > 56) {
        memset(block + filled, 0, 64 - filled);
        sha256_block(state, block);
        filled = 0;
    }
    memset(block + filled, 0, 56 - filled);
    for (int at = 0; at < 8; at++)
        block[56 + at] = (uint8_t)(bits >> (56 - 8 * at));
    sha256_block(state, block);
    for (int at = 0; at < 32; at++)
        digest[at] = (char)(state[at / 4] >> (24 - 8 * (at % 4)));
}

static const uint64_t blake2b_iv[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

static const uint8_t blake2b_order[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static inline uint64_t rotated64(uint64_t word, int by) { return word >> by | word << (64 - by); }

static inline void blake2b_mix(uint64_t *v, int a, int b, int c, int d, uint64_t x, uint64_t y)
{
    v[a] += v[b] + x, v[d] = rotated64(v[d] ^ v[a], 32);
    v[c] += v[d], v[b] = rotated64(v[b] ^ v[c], 24);
    v[a] += v[b] + y, v[d] = rotated64(v[d] ^ v[a], 16);
    v[c] += v[d], v[b] = rotated64(v[b] ^ v[c], 63);
}

static void blake2b_block(uint64_t state[8], const uint8_t *block, uint64_t bytes_so_far, int is_last)
{
    uint64_t m[16], v[16];
    for (int at = 0; at < 16; at++, block += 8)
        m[at] = (uint64_t)block[0] | (uint64_t)block[1] << 8 | (uint64_t)block[2] << 16 | (uint64_t)block[3] << 24
              | (uint64_t)block[4] << 32 | (uint64_t)block[5] << 40 | (uint64_t)block[6] << 48 | (uint64_t)block[7] << 56;
    memcpy(v, state, 64);
    memcpy(v + 8, blake2b_iv, 64);
    v[12] ^= bytes_so_far;
    if (is_last)
        v[14] = ~v[14];
#pragma GCC unroll 12
    for (int round = 0; round < 12; round++) {
        const uint8_t *o = blake2b_order[round % 10];
        blake2b_mix(v, 0, 4, 8, 12, m[o[0]], m[o[1]]);
        blake2b_mix(v, 1, 5, 9, 13, m[o[2]], m[o[3]]);
        blake2b_mix(v, 2, 6, 10, 14, m[o[4]], m[o[5]]);
        blake2b_mix(v, 3, 7, 11, 15, m[o[6]], m[o[7]]);
        blake2b_mix(v, 0, 5, 10, 15, m[o[8]], m[o[9]]);
        blake2b_mix(v, 1, 6, 11, 12, m[o[10]], m[o[11]]);
        blake2b_mix(v, 2, 7, 8, 13, m[o[12]], m[o[13]]);
        blake2b_mix(v, 3, 4, 9, 14, m[o[14]], m[o[15]]);
    }
    for (int at = 0; at < 8; at++)
        state[at] ^= v[at] ^ v[at + 8];
}

/* BLAKE2b without a key, of a message that comes in parts. */
struct blake2b_message {
    uint64_t state[8];
    uint8_t block[128];
    size_t filled, digest_bytes;
    uint64_t bytes;
};

/* `digest_bytes`: at most 64. */
static inline void blake2b_begin(struct blake2b_message *message, size_t digest_bytes)
{
    memcpy(message->state, blake2b_iv, 64);
    message->state[0] ^= 0x01010000 ^ digest_bytes;
    message->digest_bytes = digest_bytes;
    message->filled = 0, message->bytes = 0;
}

static inline void blake2b_add(struct blake2b_message *message, const char *part, size_t bytes)
{
    while (bytes) {
        size_t left = sizeof message->block - message->filled, now = bytes < left ? bytes : left;
        if (now == 0) {
            blake2b_block(message->state, message->block, message->bytes, 0);
            message->filled = 0;
            continue;
        }
        memcpy(message->block + message->filled, part, now);
        message->filled += now, message->bytes += now, part += now, bytes -= now;
    }
}

static inline void blake2b_end(struct blake2b_message *message, char *digest)
{
    memset(message->block + message->filled, 0, sizeof message->block - message->filled);
    blake2b_block(message->state, message->block, message->bytes, 1);
    for (size_t at = 0; at < message->digest_bytes; at++)
        digest[at] = (char)(message->state[at / 8] >> (8 * (at % 8)));
}

/* Writes BLAKE2b(message) without a key, of `digest_bytes`, at most 64. */
static inline void blake2b(const char *message, size_t bytes, char *digest, size_t digest_bytes)
{
    struct blake2b_message whole;
    blake2b_begin(&whole, digest_bytes);
    blake2b_add(&whole, message, bytes);
    blake2b_end(&whole, digest);
}

#endif
