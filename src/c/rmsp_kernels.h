/* rmsp_kernels.h: what the files share that are compiled once per instruction set; internal to the library. */
#ifndef RMSP_KERNELS_H
#define RMSP_KERNELS_H

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

/* Of each set of arrays the neutral kernel, which rmsp_neutral.c defines. */
#define RMSP_NEUTRAL(storage, param, grad16, avg16) \
    extern rmsp_bf16_fn RMSP_GLUE(rmsp_, RMSP_ISA, _##storage##_plain_neutral);
#if !RMSP_HAS_FEW_KERNELS
RMSP_BF16_STORAGES(RMSP_NEUTRAL)
#endif
#undef RMSP_NEUTRAL

#endif
