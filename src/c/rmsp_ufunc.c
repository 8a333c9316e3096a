/* rmsp_ufunc.c: NumPy inner loop: gather a block, step, scatter.
 *
 * a) Outputs are operands of their own. NumPy hands over an output that is exactly an input as the same pointer, and
 *    copies where they overlap in part; so it is enough to read all inputs of a block before its outputs are
 *    written, even where an output is another input, as square_avg written over the gradient.
 * b) In place on contiguous arrays nothing is gathered: the arrays are a plan of one leaf, stepped like any other.
 * c) Hyper-parameters may change from element to element. A run of equal ones is stepped at once.
 */
#include <math.h>
#include <string.h>

#include "rmsp_isa.h"
#include "rmsp_ufunc.h"

#define MAX_NUMBERS 5

/* The operands of a loop by what they are. */
typedef struct operands {
    char *in[RMSP_STEP_ARRAYS], *out[RMSP_STEP_ARRAYS];
    ptrdiff_t in_step[RMSP_STEP_ARRAYS], out_step[RMSP_STEP_ARRAYS];
    const char *number[MAX_NUMBERS];
    ptrdiff_t number_step[MAX_NUMBERS];
    int number_count;
} operands;

static operands operands_of(char **args, const ptrdiff_t *steps, const rmsp_ufunc *ufunc)
{
    operands o;
    const int present[RMSP_STEP_ARRAYS] = {1, 1, 1, ufunc->momentum, ufunc->centered};
    int arg = 0;

    memset(&o, 0, sizeof o);
    for (int k = 0; k < RMSP_STEP_ARRAYS; k++) {
        if (!present[k]) continue;
        o.in[k] = args[arg];
        o.in_step[k] = steps[arg++];
    }
    o.number_count = ufunc->momentum ? 5 : 4;
    for (int k = 0; k < o.number_count; k++) {
        o.number[k] = args[arg];
        o.number_step[k] = steps[arg++];
    }
    for (int k = 0; k < RMSP_STEP_ARRAYS; k++) {
        if (!present[k] || k == RMSP_GRAD) continue;
        o.out[k] = args[arg];
        o.out_step[k] = steps[arg++];
    }
    return o;
}

/* The group of lr, rho, momentum if there is one, eps and eps_inside: as coefficients.py makes it with lr applied
 * after the momentum buffer. */
static rmsp_group group_of(const rmsp_ufunc *ufunc, const double *number)
{
    const double lr = *number++, rho = *number++;
    rmsp_group group = {.centered = ufunc->centered, .ema = 0, .clip_norm = INFINITY};
    group.momentum = ufunc->momentum ? RMSP_MOMENTUM_CLASSIC : RMSP_MOMENTUM_NONE;
    group.coef = (rmsp_coef){.grad_scale = 1, .clip_value = INFINITY, .bias_correction = 1, .shrink = 1};
    group.coef.rho = rho;
    group.coef.one_minus_rho = 1.0 - rho;
    group.coef.momentum = ufunc->momentum ? *number++ : 0;
    group.coef.eps_outside = *number++;
    group.coef.eps_inside = *number++;
    group.coef.lr_in = ufunc->momentum ? 1 : lr;
    group.coef.lr_out = ufunc->momentum ? lr : 1;
    rmsp_group_refresh(&group);
    return group;
}

/* The hyper-parameters of element i. */
static void numbers_at(const operands *o, size_t i, double numbers[MAX_NUMBERS])
{
    for (int k = 0; k < o->number_count; k++) {
        memcpy(&numbers[k], o->number[k] + (ptrdiff_t)i * o->number_step[k], sizeof numbers[k]);
    }
}

/* Contiguous arrays, in place: a plan of one leaf, over threads like any other. */
static void step_in_place(const rmsp_ufunc *ufunc, size_t n, void *const array[RMSP_STEP_ARRAYS], const double *numbers)
{
    rmsp_group group = group_of(ufunc, numbers);
    rmsp_leaf leaf = {.n = n, .dtype = ufunc->dtype};
    const rmsp_plan plan = {.leaves = &leaf, .leaf_count = 1, .groups = &group, .group_count = 1};
    memcpy(leaf.array, array, sizeof leaf.array);
    rmsp_run(&plan, RMSP_STEP, 1, rmsp_plan_work(&plan));
}

int rmsp_ufunc_in_place(const rmsp_ufunc *ufunc, size_t n, void *const array[RMSP_STEP_ARRAYS], const double *numbers)
{
    feclearexcept(RMSP_WATCHED);
    step_in_place(ufunc, n, array, numbers);
    return fetestexcept(RMSP_WATCHED);
}

/* How many elements from i on, at most `limit`, have the hyper-parameters of i. */
static size_t run_from(const operands *o, size_t i, size_t limit)
{
    size_t run = limit;
    for (int k = 0; k < o->number_count; k++) {
        const char *const first = o->number[k] + (ptrdiff_t)i * o->number_step[k];
        if (o->number_step[k] == 0) continue;
        for (size_t j = 1; j < run; j++) {
            if (memcmp(first, first + (ptrdiff_t)j * o->number_step[k], sizeof(double)) != 0) run = j;
        }
    }
    return run;
}

/* Whether operands can be stepped as they lie: contiguous, in place, and the gradient is none of those written. */
static int in_place(const operands *o, ptrdiff_t size)
{
    for (int k = 0; k < RMSP_STEP_ARRAYS; k++) {
        if (o->in[k] == NULL) continue;
        if (o->in_step[k] != size) return 0;
        if (k != RMSP_GRAD && (o->out[k] != o->in[k] || o->out_step[k] != size || o->out[k] == o->in[RMSP_GRAD])) {
            return 0;
        }
    }
    return 1;
}

static void step_blocks(const operands *o, const rmsp_ufunc *ufunc, size_t n)
{
    const rmsp_dtype dtype = ufunc->dtype;
    const size_t size = rmsp_dtypes[dtype].size;
    const rmsp_isa *const isa = rmsp_isa_active_table();
    double memory[RMSP_STEP_ARRAYS][RMSP_BLOCK * RMSP_MAX_SIZE / sizeof(double)];

    for (size_t start = 0; start < n; start += RMSP_BLOCK) {
        const size_t count = n - start < RMSP_BLOCK ? n - start : RMSP_BLOCK;
        for (int k = 0; k < RMSP_STEP_ARRAYS; k++) {
            if (o->in[k] == NULL) continue;
            rmsp_copy_strided(count, size, (char *)memory[k], (ptrdiff_t)size,
                              o->in[k] + (ptrdiff_t)start * o->in_step[k], o->in_step[k]);
        }
        for (size_t i = 0, run; i < count; i += run) {
            char *array[RMSP_STEP_ARRAYS];
            double numbers[MAX_NUMBERS];
            numbers_at(o, start + i, numbers);
            const rmsp_group group = group_of(ufunc, numbers);
            run = run_from(o, start + i, count - i);
            for (int k = 0; k < RMSP_STEP_ARRAYS; k++) array[k] = (char *)memory[k] + i * size;
            isa->step[dtype][group.variant](run, array[RMSP_PARAM], array[RMSP_GRAD], array[RMSP_SQUARE_AVG],
                                            array[RMSP_MOMENTUM_BUFFER], array[RMSP_GRAD_AVG],
                                            rmsp_coef_of(&group, dtype));
        }
        for (int k = 0; k < RMSP_STEP_ARRAYS; k++) {
            if (o->out[k] == NULL) continue;
            rmsp_copy_strided(count, size, o->out[k] + (ptrdiff_t)start * o->out_step[k], o->out_step[k],
                              (const char *)memory[k], (ptrdiff_t)size);
        }
    }
}

void rmsp_ufunc_loop(char **args, const ptrdiff_t *dimensions, const ptrdiff_t *steps, void *data)
{
    const rmsp_ufunc *const ufunc = data;
    const size_t n = (size_t)dimensions[0];
    const operands o = operands_of(args, steps, ufunc);
    int constant = 1;

    for (int k = 0; k < o.number_count; k++) constant &= o.number_step[k] == 0;
    if (n > 0 && constant && in_place(&o, (ptrdiff_t)rmsp_dtypes[ufunc->dtype].size)) {
        double numbers[MAX_NUMBERS];
        numbers_at(&o, 0, numbers);
        step_in_place(ufunc, n, (void *const *)o.in, numbers);
    } else {
        step_blocks(&o, ufunc, n);
    }
}
