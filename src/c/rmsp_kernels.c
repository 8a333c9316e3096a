/* rmsp_kernels.c: instantiates the kernel template; compiled once per instruction set (-DRMSP_ISA=avx2),
 * exports one table. */
#include "rmsp_kernels.h"

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
#include "rmsp_convert.inc.h"

#define RMSP_DEFINE(storage, p, g, v, kernel, has_momentum, centered, neutral) \
    static RMSP_BF16_KERNEL(storage, p, g, v, kernel, has_momentum, centered, neutral)
#define RMSP_DEFINE_ALL(storage, p, g, v) RMSP_BF16_CHOOSING_KERNELS(RMSP_DEFINE, storage, p, g, v)
#if !RMSP_HAS_FEW_KERNELS
RMSP_BF16_STORAGES(RMSP_DEFINE_ALL)
#endif

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
#if RMSP_HAS_FEW_KERNELS
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
