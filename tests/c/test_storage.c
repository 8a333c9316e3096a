/* test_storage.c: numbers that are no sum of two halves: NaN is not rounded, zeros and infinities have no lower half;
 * and the random bits of some elements, which begin anywhere.
 */
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
        test_random_bits_of_any_elements(rmsp_isa_active_table());
    }
    return 0;
}
