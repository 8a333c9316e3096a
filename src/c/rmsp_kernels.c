/* rmsp_kernels.c: instantiates the kernel template; compiled once per instruction set (-DRMSP_ISA=avx2),
 * exports one table. */
#include <float.h>
#include <math.h>

#include "rmsp_isa.h"
#include "rmsp_storage.h"

#if FLT_EVAL_METHOD != 0
#error "float arithmetic with excess precision would change results; on x86 (32 bit) compile with -msse2 -mfpmath=sse"
#endif

#if defined(_MSC_VER)
#define RMSP_ALWAYS_INLINE __forceinline
#else
#define RMSP_ALWAYS_INLINE inline __attribute__((always_inline))
#endif

#define RMSP_GLUE_(a, b, c) a##b##c
#define RMSP_GLUE(a, b, c) RMSP_GLUE_(a, b, c)
#define RMSP_STRING_(x) #x
#define RMSP_STRING(x) RMSP_STRING_(x)

#define T float
#define SQRT sqrtf
#define COEF rmsp_coef_f32
#define NAME(x) RMSP_GLUE(rmsp_, RMSP_ISA, _f32_##x)
#include "rmsp_kernel.inc.h"

#define T double
#define SQRT sqrt
#define COEF rmsp_coef_f64
#define NAME(x) RMSP_GLUE(rmsp_, RMSP_ISA, _f64_##x)
#include "rmsp_kernel.inc.h"

static void RMSP_GLUE(rmsp_, RMSP_ISA, _widen)(size_t n, const uint16_t *restrict from, float *restrict to)
{
    for (size_t i = 0; i < n; i++) to[i] = rmsp_from_bf16(from[i]);
}

static void RMSP_GLUE(rmsp_, RMSP_ISA, _narrow)(size_t n, const float *restrict from, uint16_t *restrict to,
                                                uint32_t stream, size_t first)
{
    uint16_t random[RMSP_BLOCK + 2];
    const uint16_t *const own = random + first % 2;
    const uint32_t word = (uint32_t)(first / 2), pairs = (uint32_t)(n / 2 + 1);
    assert(n <= RMSP_BLOCK);
    for (uint32_t i = 0; i < pairs; i++) { /* a hash for two elements */
        const uint32_t pair = rmsp_random_pair(stream, word + i);
        random[2 * i] = (uint16_t)pair;
        random[2 * i + 1] = (uint16_t)(pair >> 16);
    }
    for (size_t i = 0; i < n; i++) to[i] = rmsp_to_bf16(from[i], own[i]);
}

#define SYMBOL(dtype, x) RMSP_GLUE(rmsp_, RMSP_ISA, _##dtype##_##x)
#define F32_STEP(variant, momentum, centered, l2, neutral, each) SYMBOL(f32, step_##variant),
#define F64_STEP(variant, momentum, centered, l2, neutral, each) SYMBOL(f64, step_##variant),
#define STEPS(name, NAME, type, coef, code) {RMSP_VARIANTS(NAME##_STEP)},
#define SUMSQ(name, NAME, type, coef, code) SYMBOL(name, sumsq),
#define LERP(name, NAME, type, coef, code) SYMBOL(name, lerp),
#define NONFINITE(name, NAME, type, coef, code) SYMBOL(name, nonfinite),

const rmsp_isa RMSP_GLUE(rmsp_isa_, RMSP_ISA, ) = {
    RMSP_STRING(RMSP_ISA),
    {RMSP_DTYPES(STEPS)},
    {RMSP_DTYPES(SUMSQ)},
    {RMSP_DTYPES(LERP)},
    {RMSP_DTYPES(NONFINITE)},
    RMSP_GLUE(rmsp_, RMSP_ISA, _widen),
    RMSP_GLUE(rmsp_, RMSP_ISA, _narrow),
};
