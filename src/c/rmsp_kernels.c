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

/* For machines that hardly exist any more: without bfloat16 kernels, and without a kernel for each form of rates of
 * elements. */
#if defined(RMSP_FEW_KERNELS)
#define RMSP_HAS_FEW_KERNELS 1
#else
#define RMSP_HAS_FEW_KERNELS 0
#endif

/* What a kernel leaves to others (rmsp_kernel.inc.h). */
extern const rmsp_isa rmsp_isa_baseline, rmsp_isa_avx2;

#define T float
#define SQRT sqrtf
#define COEF rmsp_coef_f32
#define DTYPE RMSP_F32
#define NAME(x) RMSP_GLUE(rmsp_, RMSP_ISA, _f32_##x)
#include "rmsp_kernel.inc.h"

#define T double
#define SQRT sqrt
#define COEF rmsp_coef_f64
#define DTYPE RMSP_F64
#define NAME(x) RMSP_GLUE(rmsp_, RMSP_ISA, _f64_##x)
#include "rmsp_kernel.inc.h"

#include "rmsp_bf16.inc.h"

#define SYMBOL(set, x) RMSP_GLUE(rmsp_, RMSP_ISA, _##set##_##x)
#define F32_STEP(variant, momentum, centered, l2, neutral, each) SYMBOL(f32, step_##variant),
#define F64_STEP(variant, momentum, centered, l2, neutral, each) SYMBOL(f64, step_##variant),
#define BF16_STEP(storage, p, g, v, kernel, has_momentum, centered, neutral) SYMBOL(storage, kernel),
#define BF16_STEPS(storage, p, g, v) [RMSP_BF16_STORAGE(p, g, v)] = {RMSP_BF16_KERNELS(BF16_STEP, storage, p, g, v)},
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
#if defined(RMSP_FEW_KERNELS)
    {{NULL}},
#else
    {RMSP_BF16_STORAGES(BF16_STEPS)},
#endif
    RMSP_GLUE(rmsp_, RMSP_ISA, _widen),
    RMSP_GLUE(rmsp_, RMSP_ISA, _narrow),
    RMSP_GLUE(rmsp_, RMSP_ISA, _join),
    RMSP_GLUE(rmsp_, RMSP_ISA, _split),
    RMSP_GLUE(rmsp_, RMSP_ISA, _random),
};
