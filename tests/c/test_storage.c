/* test_storage.c: numbers that are no sum of two halves: NaN is not rounded, zeros and infinities have no lower half;
 * halves that a step joins and splits; and the random bits of some elements, which begin anywhere.
 */
#include <math.h>
#include <string.h>

#include "check.h"
#include "rmsp_isa.h"
#include "rmsp_storage.h"

#define COUNT 67 /* whole vectors, and a rest */

static float of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Rounding up the NaN with all bits set would make it a zero of the other sign. */
static void test_nan_stays(const rmsp_isa *isa)
{
    static const uint32_t nans[] = {0x7fffffffu, 0xffffffffu, 0x7fc00000u, 0xffc0ffffu};
    for (size_t k = 0; k < sizeof nans / sizeof *nans; k++) {
        float from[COUNT];
        uint16_t random[COUNT], rounded[COUNT], upper[COUNT], lower[COUNT];
        for (int i = 0; i < COUNT; i++) {
            from[i] = of_bits(nans[k]);
            random[i] = (uint16_t)(0xffff - i);
        }
        isa->narrow(COUNT, from, rounded, random);
        isa->split(COUNT, from, upper, lower);
        for (int i = 0; i < COUNT; i++) CHECK(rounded[i] == nans[k] >> 16 && upper[i] == nans[k] >> 16);
    }
}

static void test_no_lower_half(const rmsp_isa *isa)
{
    static const uint16_t alone[] = {0, 0x8000, 0x7f80, 0xff80, 0x7fc0, 0xffff};
    for (size_t k = 0; k < sizeof alone / sizeof *alone; k++) {
        uint16_t upper[COUNT], lower[COUNT];
        float joined[COUNT];
        for (int i = 0; i < COUNT; i++) {
            upper[i] = alone[k];
            lower[i] = (uint16_t)(i * 977 + 1);
        }
        isa->join(COUNT, upper, lower, joined);
        for (int i = 0; i < COUNT; i++) CHECK(memcmp(&joined[i], &(uint32_t){(uint32_t)alone[k] << 16}, 4) == 0);
    }
}

/* The smallest and the largest numbers that have one. */
static void test_halves_of_any_sign(const rmsp_isa *isa)
{
    static const uint32_t numbers[] = {0x00010000u, 0x80018000u, 0x00007fffu + 0x10000u,
                                       0x3f807fffu, 0x3f808000u, 0xbf80ffffu,
                                       0x7f7f7fffu, 0xff7f0000u};
    for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++) {
        float from[COUNT], joined[COUNT];
        uint16_t upper[COUNT], lower[COUNT];
        for (int i = 0; i < COUNT; i++) from[i] = of_bits(numbers[k]);
        isa->split(COUNT, from, upper, lower);
        isa->join(COUNT, upper, lower, joined);
        for (int i = 0; i < COUNT; i++) CHECK(upper[i] == (uint16_t)((numbers[k] + 0x8000u) >> 16));
        CHECK(memcmp(from, joined, sizeof from) == 0);
    }
}

/* A step with a learning rate of 0 splits each number as it was: by all kernels for split parameters, in and out of
 * order. */
static void test_kernels_split_what_they_join(const rmsp_isa *isa)
{
    enum { N = 4 * RMSP_PIECE };
    static const uint16_t lowers[] = {0x0000, 0x0001, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xffff};
    const rmsp_coef_f32 coef = {.grad_scale = 1,
                                .clip_value = INFINITY,
                                .rho = 0.5f,
                                .one_minus_rho = 0.5f,
                                .bias_correction = 1,
                                .eps_outside = 1,
                                .shrink = 1,
                                .lr_out = 1};
    for (int avg16 = 0; avg16 < 2; avg16++) {
        for (int kernel = 0; kernel < RMSP_BF16_KERNEL_COUNT; kernel++) {
            rmsp_bf16_fn *const step = isa->bf16[RMSP_BF16_STORAGE(RMSP_PARAM_SPLIT, 1, avg16)][kernel];
            const int variant = kernel == 4 ? RMSP_VARIANT_plain_neutral : 2 * kernel;
            float square_avg[N], momentum_buffer[N] = {0}, grad_avg[N] = {0};
            uint16_t upper[N], lower[N], before[N], grad[N], narrow_avg[N];
            if (step == NULL) continue; /* a baseline without kernels of bfloat16 */
            CHECK(rmsp_bf16_kernel(variant) == kernel);
            for (int i = 0; i < N; i++) {
                square_avg[i] = 1;
                grad[i] = narrow_avg[i] = 0x3f80; /* 1 */
                lower[i] = lowers[i % (int)(sizeof lowers / sizeof *lowers)];
                upper[i] = before[i] = (uint16_t)((0x3f80 + i + (i % 2 << 15)) + (lower[i] >> 15));
            }
            step(N, upper, lower, grad, avg16 ? (void *)narrow_avg : (void *)square_avg, momentum_buffer, grad_avg,
                 variant, &coef, 1, 0);
            for (int i = 0; i < N; i++) {
                CHECK(upper[i] == before[i]);
                CHECK(lower[i] == lowers[i % (int)(sizeof lowers / sizeof *lowers)]);
            }
        }
    }
}

/* An array of a kernel, all of one number. */
typedef union {
    float wide[2 * RMSP_PIECE];
    uint16_t narrow[2 * RMSP_PIECE];
} numbers;

static numbers all_of(int is_narrow, float x)
{
    numbers all;
    for (int i = 0; i < 2 * RMSP_PIECE; i++) {
        if (is_narrow)
            all.narrow[i] = rmsp_to_bf16(x, 0);
        else
            all.wide[i] = x;
    }
    return all;
}

/* A number is rounded up if the random bits of its element and its lower half come to 0x10000, and not if 1 is missing:
 * square_avg becomes 1 and a lower half, or a parameter the bfloat16 before 1 and a lower half. */
static void test_every_random_bit_counts(const rmsp_isa *isa, int storage, int variant, int is_param, size_t i, int up)
{
    rmsp_bf16_fn *const step = isa->bf16[storage][rmsp_bf16_kernel(variant)];
    const uint32_t bits = rmsp_random(12345, 2 * 7 + i);
    const uint32_t random = is_param ? (bits & 0xff) << 8 | bits >> 8 : bits, lower = 0xffff - random + (uint32_t)up;
    const int param16 = storage / 4 != RMSP_PARAM_F32;
    numbers param = all_of(param16, 1), grad = all_of(storage / 2 % 2, 1), square_avg = all_of(storage % 2, 0);
    float momentum_buffer[2 * RMSP_PIECE] = {0};
    uint16_t low[2 * RMSP_PIECE] = {0};
    rmsp_coef_f32 coef = {.grad_scale = 1, .clip_value = INFINITY, .bias_correction = 1, .shrink = 1, .lr_out = 1};

    if (step == NULL || lower > 0xffff) return;
    coef.one_minus_rho = is_param ? 1 : of_bits(0x3f800000u + lower);
    coef.lr_in = is_param ? (float)(0x10000 - lower) * 0x1p-24f : 0;
    step(2 * RMSP_PIECE, &param, low, &grad, &square_avg, momentum_buffer, NULL, variant, &coef, 12345, 7);
    CHECK(is_param ? param.narrow[i] == 0x3f7f + up : square_avg.narrow[i] == 0x3f80 + up);
}

static void test_random_bits_of_kernels(const rmsp_isa *isa)
{
    static const int variants[] = {RMSP_VARIANT_plain, RMSP_VARIANT_momentum, RMSP_VARIANT_plain_neutral};
    for (int storage = 0; storage < RMSP_BF16_STORAGE_COUNT; storage++) {
        for (size_t k = 0; k < 3 * 2 * 2 * RMSP_PIECE; k++) {
            const int variant = variants[k % 3], up = k / 3 % 2;
            if (storage / 4 == RMSP_PARAM_ROUNDED) test_every_random_bit_counts(isa, storage, variant, 1, k / 6, up);
            if (storage % 2) test_every_random_bit_counts(isa, storage, variant, 0, k / 6, up);
        }
    }
}

/* Of n elements only: what lies behind them stays. */
static void test_random_bits_of_any_elements(const rmsp_isa *isa)
{
    for (size_t n = 0; n < COUNT; n++) {
        for (size_t first = 0; first < 4; first++) {
            uint16_t random[COUNT + 2];
            for (size_t i = 0; i < COUNT + 2; i++) random[i] = 0xabcd;
            isa->random(n, 12345, first, random);
            for (size_t i = 0; i < n; i++) CHECK(random[i] == rmsp_random(12345, first + i));
            for (size_t i = n; i < COUNT + 2; i++) CHECK(random[i] == 0xabcd);
        }
    }
}

int main(void)
{
    rmsp_isa_init();
    for (int i = 0; i < rmsp_isa_count(); i++) {
        CHECK(rmsp_isa_use(rmsp_isa_name(i)) == 0);
        test_nan_stays(rmsp_isa_active_table());
        test_no_lower_half(rmsp_isa_active_table());
        test_halves_of_any_sign(rmsp_isa_active_table());
        test_kernels_split_what_they_join(rmsp_isa_active_table());
        test_random_bits_of_kernels(rmsp_isa_active_table());
        test_random_bits_of_any_elements(rmsp_isa_active_table());
    }
    return 0;
}
