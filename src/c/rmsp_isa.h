/* rmsp_isa.h: the table of kernels that one instruction set exports; internal to the library.
 *
 * rmsp_kernels.c and rmsp_neutral.c are compiled once per instruction set and export nothing but this table, and
 * functions whose names have that of the instruction set: another one compiled for AVX-512 could be picked by the
 * linker for everyone, and crash older machines.
 */
#ifndef RMSP_ISA_H
#define RMSP_ISA_H

#include "rmsp.h"

/* For the functions of every step: they are put side by side, on fewer pages, which a step that finds its code in no
 * cache has to look up. */
#if defined(__GNUC__)
#define RMSP_HOT __attribute__((hot))
#else
#define RMSP_HOT
#endif

typedef struct rmsp_isa {
    const char *name;
    rmsp_step_fn *step[RMSP_DTYPE_COUNT][RMSP_VARIANT_COUNT];
    rmsp_sumsq_fn *sumsq[RMSP_DTYPE_COUNT]; /* for norms */
    rmsp_lerp_fn *lerp[RMSP_DTYPE_COUNT];   /* for averaged weights and summed gradients */
    rmsp_nonfinite_fn *nonfinite[RMSP_DTYPE_COUNT];
    rmsp_bf16_fn *bf16[RMSP_BF16_STORAGE_COUNT][RMSP_BF16_KERNEL_COUNT]; /* NULL where there is none */
    rmsp_widen_fn *widen;
    rmsp_narrow_fn *narrow;
    rmsp_join_fn *join;
    rmsp_split_fn *split;
    rmsp_random_fn *random;
} rmsp_isa;

/* The table in use; another thread may change it at any time, so a run reads it once. */
const rmsp_isa *rmsp_isa_active_table(void);

#endif
