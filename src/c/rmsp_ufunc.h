/* rmsp_ufunc.h: the inner loop of NumPy ufuncs over the step; used by the extension module only. */
#ifndef RMSP_UFUNC_H
#define RMSP_UFUNC_H

#include "rmsp.h"

/* Which step a loop takes. */
typedef struct rmsp_ufunc {
    rmsp_dtype dtype;
    int momentum; /* there is a momentum_buffer, and a momentum behind rho */
    int centered; /* there is a grad_avg */
} rmsp_ufunc;

/* A step in place on n elements of contiguous arrays, none of them NULL that the ufunc has. The numbers are lr, rho,
 * momentum if there is one, eps and eps_inside. With `lrs`, which overlaps no array that is written, one lr of it for
 * `run` elements. Returns the floating-point exceptions it raised, of
 * those that NumPy reports, as <fenv.h> has them. */
int rmsp_ufunc_in_place(const rmsp_ufunc *ufunc, size_t n, void *const array[RMSP_STEP_ARRAYS], const double *numbers,
                        const double *lrs, size_t run);

/* A PyUFuncGenericFunction. Operands: the arrays of the step in their usual order; lr, rho, momentum if there is one,
 * eps and eps_inside, all double; then as outputs the arrays again, without the gradient. `data` is a rmsp_ufunc. */
void rmsp_ufunc_loop(char **args, const ptrdiff_t *dimensions, const ptrdiff_t *steps, void *data);

#endif
