/* rmsp_bf16.inc.h: the step over arrays of which some are bfloat16, and what is read from and written to them.
 *
 * Included by rmsp_kernels.c and rmsp_neutral.c, which define kernels by RMSP_BF16_KERNEL: a piece of PIECE elements is
 * read into float32, stepped and written back. The pieces are short, so that the processor works on the conversion of
 * one while the divider is busy with another.
 *
 * Usually elements stay in order. Where all arrays have 16 bits, the even and the odd elements of a piece are halves of
 * words, which need no shuffles, and no test for NaN where they are rounded (rmsp_storage.h); bench/NOTES.md has what
 * that gained.
 */
#define PIECE RMSP_PIECE
#define HALF (PIECE / 2)
#define FUNCTION(x) RMSP_GLUE(rmsp_, RMSP_ISA, _##x)

static RMSP_ALWAYS_INLINE void FUNCTION(read_piece)(const int by_words, const uint16_t *restrict from,
                                                    float *restrict to)
{
    if (by_words) {
        for (int k = 0; k < HALF; k++) {
            const uint32_t word = rmsp_load_pair(from + 2 * k);
            to[k] = rmsp_of_bits(word << 16);
            to[k + HALF] = rmsp_of_bits(word & 0xffff0000u);
        }
    } else {
        for (int k = 0; k < PIECE; k++) to[k] = rmsp_from_bf16(from[k]);
    }
}

/* `reversed`: the random bits are those of a parameter, by words as rmsp_reverse_bytes gives them. */
static RMSP_ALWAYS_INLINE void FUNCTION(round_piece)(const int by_words, const int reversed, const float *restrict from,
                                                     const uint32_t *restrict pairs, uint16_t *restrict to)
{
    if (by_words) {
        for (int k = 0; k < HALF; k++) {
            const uint32_t first = pairs[k] & 0xffffu, second = pairs[k] >> 16;
            const uint32_t even = rmsp_rounded_short(from[k], reversed ? second : first);
            const uint32_t odd = rmsp_rounded_short(from[k + HALF], reversed ? first : second);
            rmsp_store_pair(to + 2 * k, even >> 16 | (odd & 0xffff0000u));
        }
    } else {
        for (int k = 0; k < PIECE; k++) to[k] = rmsp_to_bf16(from[k], rmsp_half_of(pairs, (size_t)k));
    }
}

static RMSP_ALWAYS_INLINE void FUNCTION(join_piece)(const int by_words, const uint16_t *restrict upper,
                                                    const uint16_t *restrict lower, float *restrict to)
{
    uint16_t counts[PIECE];
    for (int k = 0; k < PIECE; k++) counts[k] = rmsp_lower_beside(upper[k], lower[k]);
    if (by_words) {
        for (int k = 0; k < HALF; k++) {
            const uint32_t high = rmsp_load_pair(upper + 2 * k), low = rmsp_load_pair(counts + 2 * k) ^ 0x80008000u;
            to[k] = rmsp_join(high << 16, (int32_t)(low & 0xffffu) - 0x8000);
            to[k + HALF] = rmsp_join(high & 0xffff0000u, (int32_t)(low >> 16) - 0x8000);
        }
    } else {
        const int16_t *const with_signs = (const int16_t *)counts;
        for (int k = 0; k < PIECE; k++) to[k] = rmsp_join((uint32_t)upper[k] << 16, with_signs[k]);
    }
}

static RMSP_ALWAYS_INLINE void FUNCTION(split_piece)(const int by_words, const float *restrict from,
                                                     uint16_t *restrict upper, uint16_t *restrict lower)
{
    if (by_words) {
        for (int k = 0; k < HALF; k++) {
            const float even = from[k], odd = from[k + HALF];
            const uint32_t first = rmsp_rounded_short(even, 0x8000u), second = rmsp_rounded_short(odd, 0x8000u);
            rmsp_store_pair(upper + 2 * k, first >> 16 | (second & 0xffff0000u));
            rmsp_store_pair(lower + 2 * k, (rmsp_bits_of(even) & 0xffffu) | rmsp_bits_of(odd) << 16);
        }
    } else {
        uint16_t uppers[PIECE], lowers[PIECE]; /* in one loop compilers take words for halves, or no vectors */
        for (int k = 0; k < PIECE; k++) lower[k] = (uint16_t)rmsp_bits_of(from[k]);
        for (int k = 0; k < PIECE; k++) {
            lowers[k] = (uint16_t)rmsp_bits_of(from[k]);
            uppers[k] = (uint16_t)(rmsp_bits_of(from[k]) >> 16);
        }
        for (int k = 0; k < PIECE; k++) upper[k] = rmsp_nearest(uppers[k], lowers[k]);
    }
}

/* The step of a piece, over float32 arrays none of which overlap. */
static RMSP_ALWAYS_INLINE void FUNCTION(step_piece)(const rmsp_momentum momentum, const int centered, const int l2,
                                                    const int neutral, const rmsp_coef_f32 c, float *restrict param,
                                                    const float *restrict grad, float *restrict square_avg,
                                                    float *restrict momentum_buffer, float *restrict grad_avg)
{
    const int nesterov = momentum == RMSP_MOMENTUM_NESTEROV;
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep
#endif
    for (size_t i = 0; i < PIECE; i++) {
#define T float
#define SQRT sqrtf
#define AT(array) array[i]
#include "rmsp_formula.inc.h"
#undef AT
#undef SQRT
#undef T
    }
}

/* `param`, `grad16` and `avg16` say how they are stored, and are constants in every instance, as the others are. n is a
 * multiple of PIECE; the random bits are those of pair `word` of the stream and the pairs behind it. */
static RMSP_ALWAYS_INLINE void
FUNCTION(step_bf16)(const rmsp_param_storage param_storage, const int grad16, const int avg16, const int has_momentum,
                    const int centered, const int neutral, const size_t n, void *restrict param, uint16_t *restrict low,
                    const void *restrict grad, void *restrict square_avg, float *restrict momentum_buffer,
                    float *restrict grad_avg, const int variant, const rmsp_coef_f32 *const coef, const uint32_t stream,
                    const uint32_t word)
{
    const rmsp_coef_f32 c = *coef;
    const int l2 = variant % 2, nesterov = variant % RMSP_STRUCTURE_COUNT >= RMSP_VARIANT_nesterov;
    const int by_words = param_storage != RMSP_PARAM_F32 && grad16 && avg16 && !has_momentum && !centered;
    uint32_t start = stream + word * RMSP_WORD_STEP;

    for (size_t i = 0; i < n; i += PIECE) {
        float wide_param[PIECE], wide_grad[PIECE], wide_avg[PIECE];
        uint32_t pairs[HALF];
        uint16_t *const param16 = (uint16_t *)param + i;
        uint16_t *const low16 = param_storage == RMSP_PARAM_SPLIT ? low + i : NULL;
        float *const params = param_storage == RMSP_PARAM_F32 ? (float *)param + i : wide_param;
        const float *const grads = grad16 ? wide_grad : (const float *)grad + i;
        float *const means = avg16 ? wide_avg : (float *)square_avg + i;
        float *const momenta = has_momentum ? momentum_buffer + i : NULL;
        float *const grad_means = centered ? grad_avg + i : NULL;

        if (avg16 || param_storage == RMSP_PARAM_ROUNDED) {
            for (uint32_t k = 0; k < HALF; k++) pairs[k] = rmsp_mix(start + k * RMSP_WORD_STEP);
            start += HALF * RMSP_WORD_STEP;
        }
        if (param_storage == RMSP_PARAM_ROUNDED) FUNCTION(read_piece)(by_words, param16, wide_param);
        if (param_storage == RMSP_PARAM_SPLIT) FUNCTION(join_piece)(by_words, param16, low16, wide_param);
        if (grad16) FUNCTION(read_piece)(by_words, (const uint16_t *)grad + i, wide_grad);
        if (avg16) FUNCTION(read_piece)(by_words, (const uint16_t *)square_avg + i, wide_avg);

#define STEP(momentum, l2, neutral) \
    FUNCTION(step_piece)(momentum, centered, l2, neutral, c, params, grads, means, momenta, grad_means)
        if (neutral) {
            STEP(RMSP_MOMENTUM_NONE, 0, 1);
        } else if (!has_momentum && l2) {
            STEP(RMSP_MOMENTUM_NONE, 1, 0);
        } else if (!has_momentum) {
            STEP(RMSP_MOMENTUM_NONE, 0, 0);
        } else if (nesterov && l2) {
            STEP(RMSP_MOMENTUM_NESTEROV, 1, 0);
        } else if (nesterov) {
            STEP(RMSP_MOMENTUM_NESTEROV, 0, 0);
        } else if (l2) {
            STEP(RMSP_MOMENTUM_CLASSIC, 1, 0);
        } else {
            STEP(RMSP_MOMENTUM_CLASSIC, 0, 0);
        }
#undef STEP

        if (avg16) FUNCTION(round_piece)(by_words, 0, wide_avg, pairs, (uint16_t *)square_avg + i);
        if (param_storage == RMSP_PARAM_ROUNDED) {
            for (int k = 0; k < HALF; k++)
                pairs[k] = by_words ? rmsp_reverse_bytes(pairs[k]) : rmsp_swap_bytes(pairs[k]);
            FUNCTION(round_piece)(by_words, 1, wide_param, pairs, param16);
        }
        if (param_storage == RMSP_PARAM_SPLIT) FUNCTION(split_piece)(by_words, wide_param, param16, low16);
    }
}

/* The parameters are those of RMSP_BF16_KERNELS. */
#define RMSP_BF16_KERNEL(storage, param_storage, grad16, avg16, kernel, momentum, centered, neutral)                  \
    void RMSP_GLUE(rmsp_, RMSP_ISA, _##storage##_##kernel)(                                                           \
        size_t n, void *restrict param, uint16_t *restrict low, const void *restrict grad, void *restrict square_avg, \
        float *restrict momentum_buffer, float *restrict grad_avg, int variant, const rmsp_coef_f32 *coef,            \
        uint32_t stream, uint32_t word)                                                                               \
    {                                                                                                                 \
        RMSP_GLUE(rmsp_, RMSP_ISA, _step_bf16)                                                                        \
        (param_storage, grad16, avg16, momentum, centered, neutral, n, param, low, grad, square_avg, momentum_buffer, \
         grad_avg, variant, coef, stream, word);                                                                      \
    }

#undef PIECE
#undef HALF
#undef FUNCTION
