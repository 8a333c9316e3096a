/* rmsp_convert.inc.h: whole arrays of bfloat16 from and to float32, and their random bits.
 *
 * Included once by rmsp_kernels.c, after rmsp_bf16.inc.h, whose pieces it uses.
 */
#define PIECE RMSP_PIECE
#define FUNCTION(x) RMSP_GLUE(rmsp_, RMSP_ISA, _##x)

static void FUNCTION(widen)(size_t n, const uint16_t *restrict from, float *restrict to)
{
    for (size_t i = 0; i < n; i++) to[i] = rmsp_from_bf16(from[i]);
}

static void FUNCTION(join)(size_t n, const uint16_t *restrict upper, const uint16_t *restrict lower, float *restrict to)
{
    size_t i = 0;
    for (; i + PIECE <= n; i += PIECE) FUNCTION(join_piece)(0, upper + i, lower + i, to + i);
    for (; i < n; i++) {
        const uint16_t counts = rmsp_lower_beside(upper[i], lower[i]);
        to[i] = rmsp_join((uint32_t)upper[i] << 16, (int32_t)(counts ^ 0x8000u) - 0x8000);
    }
}

static void FUNCTION(split)(size_t n, const float *restrict from, uint16_t *restrict upper, uint16_t *restrict lower)
{
    size_t i = 0;
    for (; i + PIECE <= n; i += PIECE) FUNCTION(split_piece)(0, from + i, upper + i, lower + i);
    for (; i < n; i++) {
        lower[i] = (uint16_t)rmsp_bits_of(from[i]);
        upper[i] = rmsp_nearest((uint16_t)(rmsp_bits_of(from[i]) >> 16), lower[i]);
    }
}

static void FUNCTION(narrow)(size_t n, const float *restrict from, uint16_t *restrict to,
                             const uint16_t *restrict random)
{
    for (size_t i = 0; i < n; i++) to[i] = rmsp_to_bf16(from[i], random[i]);
}

/* The random bits of n elements from `first` on. */
static void FUNCTION(random)(size_t n, uint32_t stream, size_t first, uint16_t *to)
{
    size_t i = 0;
    if (n > 0 && first % 2 != 0) to[i++] = (uint16_t)rmsp_random(stream, first);
    const uint32_t word = (uint32_t)((first + i) / 2), pairs = (uint32_t)((n - i) / 2);
    for (uint32_t k = 0; k < pairs; k++) rmsp_store_pair(to + i + 2 * k, rmsp_random_pair(stream, word + k));
    i += 2 * (size_t)pairs;
    if (i < n) to[i] = (uint16_t)rmsp_random(stream, first + i);
}

#undef PIECE
#undef FUNCTION
