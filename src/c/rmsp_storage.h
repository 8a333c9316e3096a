/* rmsp_storage.h: how a bfloat16 square_avg is read and written: exactly, and by stochastic rounding.
 *
 * A bfloat16 is the upper half of a float32. To round, 16 random bits are added to the lower half, whose carry rounds
 * up as often as the number is near to the upper neighbour; what the type can hold stays as it is. The bits come from
 * a hash of (seed, step, leaf, element), so that they are the same on any instruction set, number of threads and
 * layout: reference.py has the same functions. Integers only, of no byte order.
 */
#ifndef RMSP_STORAGE_H
#define RMSP_STORAGE_H

#include <stdint.h>
#include <string.h>

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
        stream = rmsp_mix(stream + (uint32_t)parts[k] + 0x9E3779B1u);
        stream = rmsp_mix(stream + (uint32_t)(parts[k] >> 32) + 0x9E3779B1u);
    }
    return stream;
}

/* The bits of elements 2 * word, in the lower half, and 2 * word + 1. */
static inline uint32_t rmsp_random_pair(uint32_t stream, uint32_t word)
{
    return rmsp_mix(stream + word * 0x9E3779B1u);
}

static inline uint32_t rmsp_random(uint32_t stream, size_t element)
{
    return rmsp_random_pair(stream, (uint32_t)(element >> 1)) >> (element % 2 * 16) & 0xffffu;
}

static inline float rmsp_from_bf16(uint16_t stored)
{
    const uint32_t bits = (uint32_t)stored << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* `random` has 16 bits. A NaN is not rounded, which could make it an infinity or a zero. */
static inline uint16_t rmsp_to_bf16(float x, uint32_t random)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((x == x ? bits + random : bits | 0x400000u) >> 16);
}

#endif
