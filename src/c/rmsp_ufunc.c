/* rmsp_ufunc.c: NumPy inner loop: gather a block, step, scatter.
 *
 * a) Outputs are operands of their own. NumPy hands over an output that is exactly an input as the same pointer, and
 *    copies where they overlap in part; so it is enough to read all inputs of a block before its outputs are
 *    written, even where an output is another input, as square_avg written over the gradient.
 * b) In place on contiguous arrays nothing is gathered: the arrays are a plan of one leaf, stepped like any other.
 * c) Hyper-parameters that change from element to element are read by the kernels (rmsp_numbers): where they are
 *    contiguous, from their place.
 */
#include <math.h>
#include <string.h>

#include "rmsp_fenv.h"
#include "rmsp_isa.h"
#include "rmsp_ufunc.h"

enum { LR, RHO, MOMENTUM, EPS_OUTSIDE, EPS_INSIDE, NUMBERS };

/* The operands of a loop by what they are. */
typedef struct operands {
    char *in[RMSP_STEP_ARRAYS], *out[RMSP_STEP_ARRAYS];
    ptrdiff_t in_step[RMSP_STEP_ARRAYS], out_step[RMSP_STEP_ARRAYS];
    const char *number[NUMBERS]; /* NULL where there is none */
    ptrdiff_t number_step[NUMBERS];
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
    for (int k = 0; k < NUMBERS; k++) {
        if (k == MOMENTUM && !ufunc->momentum) continue;
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

/* Makes the group of some numbers: as coefficients.py does with lr applied after the momentum buffer. Field by field:
 * to clear the struct first takes 20 ns. */
static void make_group(rmsp_group *group, const rmsp_ufunc *ufunc, const double numbers[NUMBERS])
{
    const rmsp_coef coef = {.grad_scale = 1,
                            .clip_value = INFINITY,
                            .rho = numbers[RHO],
                            .one_minus_rho = 1.0 - numbers[RHO],
                            .bias_correction = 1,
                            .eps_inside = numbers[EPS_INSIDE],
                            .eps_outside = numbers[EPS_OUTSIDE],
                            .lr_in = ufunc->momentum ? 1 : numbers[LR],
                            .momentum = ufunc->momentum ? numbers[MOMENTUM] : 0,
                            .shrink = 1,
                            .lr_out = ufunc->momentum ? numbers[LR] : 1};
    group->momentum = ufunc->momentum ? RMSP_MOMENTUM_CLASSIC : RMSP_MOMENTUM_NONE;
    group->centered = ufunc->centered;
    group->l2 = group->bias_correction = 0;
    group->lr_outside = ufunc->momentum;
    group->decay = group->ema = 0;
    group->clip_norm = INFINITY;
    group->coef = coef;
    rmsp_group_refresh(group);
}

/* The numbers of the first element. */
static void first_numbers(const operands *o, double numbers[NUMBERS])
{
    for (int k = 0; k < NUMBERS; k++) {
        numbers[k] = 0;
        if (o->number[k] != NULL) memcpy(&numbers[k], o->number[k], sizeof numbers[k]);
    }
}

/* Contiguous arrays, in place: a plan of one leaf, over threads like any other. */
static void step_in_place(const rmsp_ufunc *ufunc, size_t n, void *const array[RMSP_STEP_ARRAYS],
                          const double numbers[NUMBERS], const double *lrs, size_t run)
{
    rmsp_group group;
    rmsp_extra extra;
    rmsp_leaf leaf = {.n = n, .dtype = ufunc->dtype};
    rmsp_plan plan; /* what rmsp_run reads of it */
    plan.leaves = &leaf;
    plan.leaf_count = 1;
    plan.groups = &group;
    plan.group_count = 1;
    plan.counts = NULL;
    plan.threads = 0; /* as many as there may be */
    make_group(&group, ufunc, numbers);
    memcpy(leaf.array, array, sizeof leaf.array);
    if (lrs != NULL) {
        memset(&extra, 0, sizeof extra);
        extra.clip = 1;
        extra.lrs = lrs;
        extra.lr_run = run;
        leaf.extra = &extra;
    }
    rmsp_run(&plan, RMSP_STEP, 1, rmsp_plan_work(&plan));
}

int rmsp_ufunc_in_place(const rmsp_ufunc *ufunc, size_t n, void *const array[RMSP_STEP_ARRAYS], const double *numbers,
                        const double *lrs, size_t run)
{
    const double all[NUMBERS] = {[LR] = numbers[0],
                                 [RHO] = numbers[1],
                                 [MOMENTUM] = ufunc->momentum ? numbers[2] : 0,
                                 [EPS_OUTSIDE] = numbers[2 + ufunc->momentum],
                                 [EPS_INSIDE] = numbers[3 + ufunc->momentum]};
    rmsp_clear_exceptions();
    step_in_place(ufunc, n, array, all, lrs, run);
    return rmsp_raised();
}

/* Whether operands can be stepped as they lie: contiguous, in place, and no array that is written is read as another
 * operand. */
static int in_place(const operands *o, ptrdiff_t size)
{
    for (int k = 0; k < RMSP_STEP_ARRAYS; k++) {
        if (o->in[k] == NULL) continue;
        if (o->in_step[k] != size) return 0;
        if (k == RMSP_GRAD) continue;
        if (o->out[k] != o->in[k] || o->out_step[k] != size || o->out[k] == o->in[RMSP_GRAD]) return 0;
        for (int number = 0; number < NUMBERS; number++) {
            if (o->out[k] == o->number[number]) return 0;
        }
    }
    return 1;
}

/* Hyper-parameter k of a block of elements from `start` on: from its place if it is contiguous there, else gathered.
 * An output of a block may lie where its number was read, but a block is written after all of it is read. */
static const double *numbers_of_block(const operands *o, int k, size_t start, size_t count, int copy,
                                      double block[RMSP_BLOCK])
{
    const ptrdiff_t step = o->number_step[k], unit = (ptrdiff_t)sizeof(double);
    if (o->number[k] == NULL || (step == 0 && start > 0)) return block;
    const char *const from = o->number[k] + (ptrdiff_t)start * step;
    if (step == unit && !copy) return (const double *)from;
    rmsp_copy_strided(step == 0 ? RMSP_BLOCK : count, sizeof(double), (char *)block, unit, from, step);
    return block;
}

/* Block by block; which numbers change from element to element: none, lr, or all. */
static void step_blocks(const operands *o, const rmsp_ufunc *ufunc, size_t n, int only_lr, int is_in_place)
{
    const int is_constant = only_lr && o->number_step[LR] == 0;
    const rmsp_dtype dtype = ufunc->dtype;
    const size_t size = rmsp_dtypes[dtype].size;
    double first[NUMBERS];
    rmsp_group group;
    first_numbers(o, first);
    make_group(&group, ufunc, first);
    const int all_variant = RMSP_VARIANT_plain_all_each + 2 * (ufunc->momentum != 0) + (ufunc->centered != 0);
    const int variant = is_constant ? group.variant : only_lr ? rmsp_lr_variant(&group) : all_variant;
    rmsp_step_fn *const step = rmsp_isa_active_table()->step[dtype][variant];
    double memory[RMSP_STEP_ARRAYS][RMSP_BLOCK * RMSP_MAX_SIZE / sizeof(double)], blocks[NUMBERS][RMSP_BLOCK];

    for (size_t start = 0; start < n; start += RMSP_BLOCK) {
        const size_t count = n - start < RMSP_BLOCK ? n - start : RMSP_BLOCK;
        const double *number[NUMBERS];
        char *array[RMSP_STEP_ARRAYS];
        for (int k = 0; k < NUMBERS; k++) {
            number[k] = is_constant || (only_lr && k != LR)
                            ? NULL
                            : numbers_of_block(o, k, start, count, !is_in_place, blocks[k]);
        }
        const rmsp_numbers numbers = {.coef = rmsp_coef_of(&group, dtype),
                                      .lr = number[LR],
                                      .rho = number[RHO],
                                      .momentum = number[MOMENTUM],
                                      .eps_outside = number[EPS_OUTSIDE],
                                      .eps_inside = number[EPS_INSIDE],
                                      .lr_outside = ufunc->momentum};
        for (int k = 0; k < RMSP_STEP_ARRAYS; k++) {
            array[k] = is_in_place && o->in[k] != NULL ? o->in[k] + start * size : (char *)memory[k];
            if (is_in_place || o->in[k] == NULL) continue;
            rmsp_copy_strided(count, size, array[k], (ptrdiff_t)size, o->in[k] + (ptrdiff_t)start * o->in_step[k],
                              o->in_step[k]);
        }
        step(count, array[RMSP_PARAM], array[RMSP_GRAD], array[RMSP_SQUARE_AVG], array[RMSP_MOMENTUM_BUFFER],
             array[RMSP_GRAD_AVG], is_constant ? numbers.coef : &numbers);
        for (int k = 0; k < RMSP_STEP_ARRAYS; k++) {
            if (is_in_place || o->out[k] == NULL) continue;
            rmsp_copy_strided(count, size, o->out[k] + (ptrdiff_t)start * o->out_step[k], o->out_step[k], array[k],
                              (ptrdiff_t)size);
        }
    }
}

void rmsp_ufunc_loop(char **args, const ptrdiff_t *dimensions, const ptrdiff_t *steps, void *data)
{
    const rmsp_ufunc *const ufunc = data;
    const size_t n = (size_t)dimensions[0];
    const operands o = operands_of(args, steps, ufunc);
    const int is_in_place = in_place(&o, (ptrdiff_t)rmsp_dtypes[ufunc->dtype].size);
    const ptrdiff_t lr_step = o.number_step[LR];
    int only_lr = 1;

    if (n == 0) return;
    for (int k = LR + 1; k < NUMBERS; k++) only_lr &= o.number_step[k] == 0;
    if (is_in_place && only_lr && (lr_step == 0 || lr_step == (ptrdiff_t)sizeof(double))) {
        double numbers[NUMBERS];
        first_numbers(&o, numbers);
        step_in_place(ufunc, n, (void *const *)o.in, numbers, lr_step == 0 ? NULL : (const double *)o.number[LR], 1);
    } else {
        step_blocks(&o, ufunc, n, only_lr, is_in_place);
    }
}
