/* rmsp_dtype.h: the one table of storage types: what an element is, and which coefficients its arithmetic takes.
 *
 * To add a type: a line in RMSP_DTYPES, an instantiation in rmsp_kernels.c, and the type in reference.py and in the
 * tests' cases.py. Nothing else in the library asks which type an array has; all of it reads this table.
 */
#ifndef RMSP_DTYPE_H
#define RMSP_DTYPE_H

#include <stddef.h>

/* X(name, NAME, type, coef, code): coef is the member of rmsp_group with coefficients of the arithmetic type; code is
 * the character of the type in Python's struct module and in NumPy. */
#define RMSP_DTYPES(X)                \
    X(f32, F32, float, coef_f32, 'f') \
    X(f64, F64, double, coef, 'd')

#define RMSP_DTYPE_ENUM(name, NAME, type, coef, code) RMSP_##NAME,
typedef enum { RMSP_DTYPES(RMSP_DTYPE_ENUM) RMSP_DTYPE_COUNT } rmsp_dtype;
#undef RMSP_DTYPE_ENUM

typedef struct rmsp_dtype_info {
    const char *name;
    char code;
    size_t size;        /* bytes of an element; RMSP_MAX_SIZE at most */
    size_t coef_offset; /* of the coefficients in rmsp_group */
} rmsp_dtype_info;

#define RMSP_MAX_SIZE sizeof(double)

extern const rmsp_dtype_info rmsp_dtypes[RMSP_DTYPE_COUNT];

#endif
