/* rmsp_dispatch.c: chooses a table of kernels once, at import; a caller may choose another. */
#include <string.h>

#include "rmsp_atomic.h"
#include "rmsp_isa.h"

#if defined(_MSC_VER) && (defined(RMSP_HAVE_AVX2) || defined(RMSP_HAVE_AVX512))
#include <immintrin.h>
#include <intrin.h>

/* What gcc's __builtin_cpu_supports answers: the processor has the bits and the system saves the registers. */
static int cpu_bits(int reg, unsigned bits, unsigned long long saved)
{
    int info[4];
    __cpuid(info, 1);
    if (!(info[2] & (1 << 27)) || (_xgetbv(0) & saved) != saved) return 0;
    __cpuidex(info, 7, 0);
    return ((unsigned)info[reg] & bits) == bits;
}
#define HAS_AVX2 cpu_bits(1, 1u << 5, 0x6)
#define HAS_AVX512 cpu_bits(1, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, 0xe6)
#define HAS_FAST_AVX512 cpu_bits(2, 1u << 6, 0xe6)
#elif defined(RMSP_HAVE_AVX2) || defined(RMSP_HAVE_AVX512)
#define HAS_AVX2 __builtin_cpu_supports("avx2")
#define HAS_AVX512                                                                                                    \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && \
     __builtin_cpu_supports("avx512dq"))
/* VBMI2 came with Ice Lake; before it 512-bit registers gain nothing here and lower the clock. */
#define HAS_FAST_AVX512 __builtin_cpu_supports("avx512vbmi2")
#endif

/* The tables that were compiled in, each with the question whether this machine runs it, best first. To add an
 * instruction set: its lines here, and one in CMakeLists.txt. */
extern const rmsp_isa rmsp_isa_baseline;
static int always(void) { return 1; }
#ifdef RMSP_HAVE_AVX2
extern const rmsp_isa rmsp_isa_avx2;
static int has_avx2(void) { return HAS_AVX2; }
#endif
#ifdef RMSP_HAVE_AVX512
extern const rmsp_isa rmsp_isa_avx512;
static int has_fast_avx512(void) { return HAS_AVX512 && HAS_FAST_AVX512; }
static int has_slow_avx512(void) { return HAS_AVX512 && !HAS_FAST_AVX512; }
#endif

static const struct candidate {
    const rmsp_isa *table;
    int (*is_present)(void);
} candidates[] = {
#ifdef RMSP_HAVE_AVX512
    {&rmsp_isa_avx512, has_fast_avx512},
#endif
#ifdef RMSP_HAVE_AVX2
    {&rmsp_isa_avx2, has_avx2},
#endif
#ifdef RMSP_HAVE_AVX512
    {&rmsp_isa_avx512, has_slow_avx512},
#endif
    {&rmsp_isa_baseline, always},
};

static const rmsp_isa *available[sizeof candidates / sizeof *candidates] = {&rmsp_isa_baseline};
static int available_count = 1;
static int active; /* an index of `available` */

void rmsp_isa_init(void)
{
    int count = 0;
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        if (candidates[i].is_present()) available[count++] = candidates[i].table;
    }
    available_count = count;
    rmsp_store_int(&active, 0);
}

int rmsp_isa_count(void) { return available_count; }

const char *rmsp_isa_name(int index) { return available[index]->name; }

RMSP_HOT const rmsp_isa *rmsp_isa_active_table(void) { return available[rmsp_load_int(&active)]; }

const char *rmsp_isa_active(void) { return rmsp_isa_active_table()->name; }

int rmsp_isa_use(const char *name)
{
    for (int i = 0; i < available_count; i++) {
        if (strcmp(available[i]->name, name) == 0) {
            rmsp_store_int(&active, i);
            return 0;
        }
    }
    return -1;
}
