/* rmsp_dtype.h: the one table of storage types: what an element is, and which coefficients its arithmetic takes.
 *
 * To add a type of arithmetic: a line in RMSP_DTYPES, an instantiation in rmsp_kernels.c, and the type in reference.py
 * and in the tests' cases.py. To add one that is only stored: a line in RMSP_STORED, and how it is read and written in
 * rmsp_storage.h. Nothing else in the library asks which type an array has; all of it reads this table.
 */
#ifndef RMSP_DTYPE_H
#define RMSP_DTYPE_H

#include <stddef.h>
#include <stdint.h>

/* X(name, NAME, type, coef, code): coef is the member of rmsp_group with coefficients of the arithmetic type; code is
 * the character of the type in Python's struct module and in NumPy. */
#define RMSP_DTYPES(X)                \
    X(f32, F32, float, coef_f32, 'f') \
    X(f64, F64, double, coef, 'd')

/* Types that are stored and computed with in float32: bfloat16, which NumPy has no character for; and the lower halves
 * of float32 numbers whose upper halves are bfloat16 parameters. */
#define RMSP_STORED(X)                      \
    X(bf16, BF16, uint16_t, coef_f32, '\0') \
    X(low16, LOW16, uint16_t, coef_f32, 'H')

#define RMSP_DTYPE_ENUM(name, NAME, type, coef, code) RMSP_##NAME,
typedef enum { RMSP_DTYPES(RMSP_DTYPE_ENUM) RMSP_DTYPE_COUNT } rmsp_dtype;
enum { RMSP_LAST_DTYPE = RMSP_DTYPE_COUNT - 1, RMSP_STORED(RMSP_DTYPE_ENUM) RMSP_TYPE_COUNT };
#undef RMSP_DTYPE_ENUM

typedef struct rmsp_dtype_info {
    const char *name;
    char code;
    size_t size;        /* bytes of an element; RMSP_MAX_SIZE at most */
    size_t coef_offset; /* of the coefficients in rmsp_group */
} rmsp_dtype_info;

#define RMSP_MAX_SIZE sizeof(double)

extern const rmsp_dtype_info rmsp_dtypes[RMSP_TYPE_COUNT];

/* The type that elements of a type are computed with in; pairs (RMSP_PAIRS) stay pairs. */
static inline int rmsp_arithmetic(int type) { return type == RMSP_BF16 || type == RMSP_LOW16 ? (int)RMSP_F32 : type; }

#endif
