/* rmsp_kernels.c: instantiates the kernel template; compiled once per instruction set (-DRMSP_ISA=avx2),
 * exports one table. */
#include <float.h>
#include <math.h>

#include "rmsp_isa.h"

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
#define NAME(x) RMSP_GLUE(rmsp_step_, RMSP_ISA, _f32_##x)
#include "rmsp_kernel.inc.h"

#define T double
#define SQRT sqrt
#define NAME(x) RMSP_GLUE(rmsp_step_, RMSP_ISA, _f64_##x)
#include "rmsp_kernel.inc.h"

#define RMSP_F32_ENTRY(variant, momentum, centered, l2) RMSP_GLUE(rmsp_step_, RMSP_ISA, _f32_##variant),
#define RMSP_F64_ENTRY(variant, momentum, centered, l2) RMSP_GLUE(rmsp_step_, RMSP_ISA, _f64_##variant),

const rmsp_isa RMSP_GLUE(rmsp_isa_, RMSP_ISA, ) = {
    RMSP_STRING(RMSP_ISA),
    {{RMSP_VARIANTS(RMSP_F32_ENTRY)}, {RMSP_VARIANTS(RMSP_F64_ENTRY)}},
};
