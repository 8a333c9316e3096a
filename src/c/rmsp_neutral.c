/* rmsp_neutral.c: the neutral kernels of arrays of which some are bfloat16, to which the table of rmsp_kernels.c
 * refers; compiled once per instruction set.
 *
 * In a file of their own, since the flags by which gcc makes these faster make others slower (CMakeLists.txt). */
#include "rmsp_kernels.h"

#if !RMSP_HAS_FEW_KERNELS
#include "rmsp_bf16.inc.h"

#define RMSP_DEFINE(storage, p, g, v) RMSP_BF16_NEUTRAL_KERNEL(RMSP_BF16_KERNEL, storage, p, g, v)
RMSP_BF16_STORAGES(RMSP_DEFINE)
#endif
