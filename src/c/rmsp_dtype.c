/* rmsp_dtype.c: the table of storage types. */
#include "rmsp_dtype.h"

#include "rmsp.h"

#define ROW(name, NAME, type, coef, code) {#name, code, sizeof(type), offsetof(rmsp_group, coef)},
const rmsp_dtype_info rmsp_dtypes[RMSP_TYPE_COUNT] = {RMSP_DTYPES(ROW) RMSP_STORED(ROW)};

#define FITS(name, NAME, type, coef, code) typedef char rmsp_##name##_fits[sizeof(type) <= RMSP_MAX_SIZE ? 1 : -1];
RMSP_DTYPES(FITS)
RMSP_STORED(FITS)
