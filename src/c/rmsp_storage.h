/* rmsp_storage.h: how numbers are read from bfloat16 and written to it: rounded stochastically, or in two exact halves.
 *
 * a) A bfloat16 is the upper half of a float32. To round, 16 random bits are added to the lower half, whose carry
 *    rounds up as often as the number is near to the upper neighbour; what the type can hold stays as it is. The bits
 *    come from a hash of (seed, step, leaf, element), so that they are the same on any instruction set, number of
 *    threads and layout. square_avg takes them as they are, a parameter with the two bytes swapped: what decides most
 *    roundings, the upper byte, is another one.
 *
 * b) Of a parameter in two halves the upper one is the model's bfloat16, rounded to the nearest; the lower one is a
 *    part of the state, and counts as a signed number. People write to the upper half between steps: a lower half that
 *    meets a zero, an infinity or a NaN counts as 0, so that what was zeroed is zero. So are numbers below 4.6e-41.
 *
 * c) A NaN is not rounded, which could make it an infinity or a zero. What arithmetic gives has its quiet bit set, in
 *    the upper half. That of bfloat16 numbers has nothing in the lower half: it is one of them, or the processor's own.
 *    To round it then changes nothing, and needs no test, which was a tenth of such a step.
 *
 * d) The test for a stale lower half, and rounding to the nearest, look at halves and not at words: twice as many fit
 *    into a vector.
 *
 * reference.py has the same functions. Integers only, of no byte order but for pairs of elements read as one word.
 */
#ifndef RMSP_STORAGE_H
#define RMSP_STORAGE_H

#include <stdint.h>
#include <string.h>

/* What is hashed grows by this from one pair of elements to the next. */
#define RMSP_WORD_STEP 0x9E3779B1u

/* A mixer of 32 bits by multiplications, after Wellons' search for the least bias (hash-prospector). */
static inline uint32_t rmsp_mix(uint32_t x)
{
    x = (x ^ x >> 16) * 0x21f0aaadu;
    x = (x ^ x >> 15) * 0xd35a2d97u;
    return x ^ x >> 15;
}

/* Where the random bits of a leaf start in a step; `step` counts the steps before it. */
static inline uint32_t rmsp_stream(uint64_t seed, uint64_t step, uint64_t leaf)
{
    const uint64_t parts[3] = {seed, step, leaf};
    uint32_t stream = 0;
    for (int k = 0; k < 3; k++) {
        stream = rmsp_mix(stream + (uint32_t)parts[k] + RMSP_WORD_STEP);
        stream = rmsp_mix(stream + (uint32_t)(parts[k] >> 32) + RMSP_WORD_STEP);
    }
    return stream;
}

/* The bits of elements 2 * word, in the lower half, and 2 * word + 1. */
static inline uint32_t rmsp_random_pair(uint32_t stream, uint32_t word)
{
    return rmsp_mix(stream + word * RMSP_WORD_STEP);
}

static inline uint32_t rmsp_random(uint32_t stream, size_t element)
{
    return rmsp_random_pair(stream, (uint32_t)(element >> 1)) >> (element % 2 * 16) & 0xffffu;
}

/* The same bits for parameters: of each half the two bytes swapped. */
static inline uint32_t rmsp_swap_bytes(uint32_t pair) { return (pair & 0xff00ffu) << 8 | (pair >> 8 & 0xff00ffu); }

/* These, of the two elements in turn: one instruction. */
static inline uint32_t rmsp_reverse_bytes(uint32_t pair)
{
    return pair >> 24 | (pair >> 8 & 0xff00u) | (pair << 8 & 0xff0000u) | pair << 24;
}

static inline uint32_t rmsp_bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float rmsp_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float rmsp_from_bf16(uint16_t stored) { return rmsp_of_bits((uint32_t)stored << 16); }

/* The bits of a number of which the upper half is kept; `random` has 16 bits. */
static inline uint32_t rmsp_rounded(float x, uint32_t random) { return rmsp_bits_of(x) + (x == x ? random : 0); }

static inline uint16_t rmsp_to_bf16(float x, uint32_t random) { return (uint16_t)(rmsp_rounded(x, random) >> 16); }

/* Whether the NaN that a processor makes has nothing in its lower half; on MIPS and SPARC it may be all ones. */
#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(__aarch64__) || defined(_M_ARM64) || \
    defined(__arm__) || defined(__powerpc64__) || defined(__s390x__) || defined(__riscv)
#define RMSP_NAN_IS_SHORT 1
#else
#define RMSP_NAN_IS_SHORT 0
#endif

/* The same as rmsp_rounded, of a number that was computed from bfloat16 numbers, and from others that are no NaN. */
static inline uint32_t rmsp_rounded_short(float x, uint32_t random)
{
    return RMSP_NAN_IS_SHORT ? rmsp_bits_of(x) + random : rmsp_rounded(x, random);
}

/* What counts of a lower half, which is a signed number. */
static inline uint16_t rmsp_lower_beside(uint16_t upper, uint16_t lower)
{
    return (uint16_t)((upper & 0x7fffu) - 1) >= 0x7f7fu ? 0 : lower; /* beside a zero, or what is not finite */
}

/* A number of its upper half, in its place, and of what counts of the lower one. */
static inline float rmsp_join(uint32_t upper, int32_t lower) { return rmsp_of_bits(upper + (uint32_t)lower); }

/* The upper half of the bits of a number, rounded to the nearest; the lower one stays as it is. */
static inline uint16_t rmsp_nearest(uint16_t upper, uint16_t lower)
{
    return (uint16_t)(upper + ((upper & 0x7fffu) <= 0x7f80u ? lower >> 15 : 0)); /* a NaN stays */
}

/* Of words that are pairs of 16 bits, in the order of elements: element k. */
static inline uint16_t rmsp_half_of(const uint32_t *pairs, size_t k)
{
    uint16_t half;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    k ^= 1;
#endif
    memcpy(&half, (const char *)pairs + k * sizeof half, sizeof half);
    return half;
}

/* Two elements of 16 bits as a word: the first one in its lower half. */
static inline uint32_t rmsp_load_pair(const uint16_t *from)
{
    uint32_t word;
    memcpy(&word, from, sizeof word);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = word << 16 | word >> 16;
#endif
    return word;
}

static inline void rmsp_store_pair(uint16_t *to, uint32_t word)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = word << 16 | word >> 16;
#endif
    memcpy(to, &word, sizeof word);
}

#endif
