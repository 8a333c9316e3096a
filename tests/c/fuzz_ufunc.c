/* fuzz_ufunc.c: the inner loop of NumPy ufuncs, with operands as NumPy hands them over, beside the formula.
 *
 * An output is memory of its own or exactly one of the inputs, whichever; no two outputs share memory. Inputs may be
 * one array, of any stride; hyper-parameters may be arrays too, and of float64 the same as others.
 */
#include "fuzz.h"
#include "rmsp_ufunc.h"
#include "twin.h"

enum { LR, RHO, MOMENTUM, EPS, EPS_INSIDE, NUMBERS, MOST = RMSP_STEP_ARRAYS + NUMBERS };

typedef struct operand {
    char *memory; /* of its own, or NULL */
    size_t bytes;
    char *first;
    ptrdiff_t step;
} operand;

static operand new_operand(size_t n, size_t size, ptrdiff_t step)
{
    const size_t reach = n > 0 ? (n - 1) * (size_t)(step < 0 ? -step : step) : 0;
    operand made = {allocate(1, reach + size), reach + size, NULL, step};
    made.first = made.memory + (step < 0 ? reach : 0);
    return made;
}

static double get(const operand *o, size_t size, size_t i)
{
    const rmsp_array a = {.data = o->first + (ptrdiff_t)i * o->step,
                          .type = size == sizeof(float) ? RMSP_F32 : RMSP_F64};
    return get_real(&a, 0);
}

static void set(const operand *o, size_t size, size_t i, double x)
{
    const rmsp_array a = {.data = o->first + (ptrdiff_t)i * o->step,
                          .type = size == sizeof(float) ? RMSP_F32 : RMSP_F64};
    set_real(&a, 0, x);
}

static ptrdiff_t any_step(void)
{
    static const ptrdiff_t steps[] = {1, 1, 1, 0, 2, -1, 3};
    return steps[below(sizeof steps / sizeof *steps)];
}

static operand new_input(size_t n, size_t size, ptrdiff_t step, size_t special)
{
    const operand made = new_operand(n, size, step * (ptrdiff_t)size);
    const ptrdiff_t length = (ptrdiff_t)(made.bytes / size), stride = (ptrdiff_t)size;
    const rmsp_array all = {.data = made.memory,
                            .shape = &length,
                            .strides = &stride,
                            .ndim = 1,
                            .type = size == sizeof(float) ? RMSP_F32 : RMSP_F64};
    fill(&all, special);
    return made;
}

/* The step in place by its own function, which has one number of each kind, and may have an lr for some elements. */
static void step_in_place(const rmsp_ufunc *ufunc, size_t n, const operand in[MOST])
{
    void *arrays[RMSP_STEP_ARRAYS];
    double numbers[NUMBERS];
    int count = 0;
    for (int k = 0; k < RMSP_STEP_ARRAYS; k++) arrays[k] = in[k].first;
    for (int k = 0; k < NUMBERS; k++) {
        if (k == MOMENTUM && !ufunc->momentum) continue;
        numbers[count++] = get(&in[RMSP_STEP_ARRAYS + k], sizeof(double), 0);
    }
    const double *const lrs =
        in[RMSP_STEP_ARRAYS].step == 0 ? NULL : (const double *)(void *)in[RMSP_STEP_ARRAYS].first;
    rmsp_ufunc_in_place(ufunc, n, arrays, numbers, lrs, 1);
}

/* The number of operands that a ufunc has as inputs, and which they are. */
static int inputs_of(const rmsp_ufunc *ufunc, int *which)
{
    int count = 0;
    for (int k = 0; k < MOST; k++) {
        if (!ufunc->momentum && (k == RMSP_MOMENTUM_BUFFER || k == RMSP_STEP_ARRAYS + MOMENTUM)) continue;
        if (!ufunc->centered && k == RMSP_GRAD_AVG) continue;
        which[count++] = k;
    }
    return count;
}

/* What element i becomes: x is its arrays, as they were, and then as they are after the step. */
static void step_element(const rmsp_ufunc *ufunc, double x[MOST])
{
    const double *const number = x + RMSP_STEP_ARRAYS;
    rmsp_group group = {.momentum = ufunc->momentum ? RMSP_MOMENTUM_CLASSIC : RMSP_MOMENTUM_NONE,
                        .centered = ufunc->centered,
                        .coef = {.grad_scale = 1,
                                 .clip_value = INFINITY,
                                 .rho = number[RHO],
                                 .one_minus_rho = 1.0 - number[RHO],
                                 .bias_correction = 1,
                                 .eps_inside = number[EPS_INSIDE],
                                 .eps_outside = number[EPS],
                                 .momentum = number[MOMENTUM],
                                 .shrink = 1}};
    group.coef.lr_in = ufunc->momentum ? 1 : number[LR];
    group.coef.lr_out = ufunc->momentum ? number[LR] : 1;
    double *arrays[RMSP_STEP_ARRAYS];
    for (int k = 0; k < RMSP_STEP_ARRAYS; k++) arrays[k] = &x[k];
    (ufunc->dtype == RMSP_F32 ? float_step : double_step)(&group, 1, arrays);
}

static void fuzz_once(void)
{
    const rmsp_ufunc ufunc = {(rmsp_dtype)below(RMSP_DTYPE_COUNT), (int)below(2), (int)below(2)};
    const size_t size = rmsp_dtypes[ufunc.dtype].size, n = below(4) == 0 ? below(1600) : below(40);
    const size_t special = below(3) == 0 ? 30 : 0;
    int which[MOST], out_which[MOST], out_count = 0;
    const int count = inputs_of(&ufunc, which);
    operand in[MOST] = {{0}}, out[MOST], owned[2 * MOST];
    int owned_count = 0, is_taken[MOST] = {0};
    const int is_in_place = below(3) == 0; /* contiguous arrays, each output its own input */

    rmsp_set_grain(below(2) ? 0 : (size_t)32 << 10);
    CHECK(rmsp_isa_use(rmsp_isa_name((int)below((size_t)rmsp_isa_count()))) == 0);
    for (int j = 0; j < count; j++) {
        const int k = which[j], is_number = k >= RMSP_STEP_ARRAYS;
        const int other = j > 0 && !is_in_place && below(12) == 0 ? which[below((size_t)j)] : k;
        if (other != k && (is_number || other >= RMSP_STEP_ARRAYS ? size == sizeof(double) : 1)) {
            in[k] = in[other];
        } else {
            const ptrdiff_t step = is_in_place && !is_number ? 1 : any_step();
            in[k] = new_input(n, is_number ? sizeof(double) : size, step, special);
            for (size_t i = 0; i < n && (is_number || k == RMSP_SQUARE_AVG); i++) {
                const size_t own_size = is_number ? sizeof(double) : size;
                set(&in[k], own_size, i, fabs(get(&in[k], own_size, i)));
            }
            owned[owned_count++] = in[k];
        }
        if (is_number && below(3) > 0) in[k].step = 0;
        if (k == RMSP_GRAD || is_number) continue;
        out_which[out_count++] = k;
    }
    for (int j = 0; j < out_count; j++) {
        const int k = out_which[j], other = is_in_place || below(3) > 0 ? k : which[below((size_t)count)];
        int may = in[other].step != 0 && (is_in_place || below(5) > 0);
        may &= other < RMSP_STEP_ARRAYS || size == sizeof(double);
        for (int i = 0; i < count; i++) {
            const operand *const input = &in[which[i]];
            may &= input->memory != in[other].memory || (!is_taken[which[i]] && input->step == in[other].step);
        }
        is_taken[other] |= may;
        out[k] = may ? in[other] : new_operand(n, size, (ptrdiff_t)size * (below(2) ? 1 : below(2) ? -2 : 2));
        if (!may) owned[owned_count++] = out[k];
    }

    double *const expected = allocate(n * MOST, sizeof *expected);
    for (size_t i = 0; i < n; i++) {
        for (int j = 0; j < count; j++) {
            const int k = which[j];
            expected[i * MOST + (size_t)k] = get(&in[k], k >= RMSP_STEP_ARRAYS ? sizeof(double) : size, i);
        }
        step_element(&ufunc, expected + i * MOST);
    }
    char *kept[MOST];
    for (int j = 0; j < out_count; j++) {
        kept[j] = allocate(1, out[out_which[j]].bytes);
        memcpy(kept[j], out[out_which[j]].memory, out[out_which[j]].bytes);
    }

    char *args[2 * MOST];
    ptrdiff_t steps[2 * MOST], dimension = (ptrdiff_t)n;
    for (int j = 0; j < count; j++) {
        args[j] = in[which[j]].first;
        steps[j] = in[which[j]].step;
    }
    for (int j = 0; j < out_count; j++) {
        args[count + j] = out[out_which[j]].first;
        steps[count + j] = out[out_which[j]].step;
    }
    int has_numbers = is_in_place && n > 0;
    for (int k = RMSP_STEP_ARRAYS; k < MOST; k++) {
        const ptrdiff_t step = in[k].step;
        has_numbers &= step == 0 || (k == RMSP_STEP_ARRAYS + LR && step == (ptrdiff_t)sizeof(double));
    }
    if (has_numbers && below(2)) {
        step_in_place(&ufunc, n, in);
    } else {
        rmsp_ufunc_loop(args, &dimension, steps, (void *)&ufunc);
    }

    for (int j = 0; j < out_count; j++) {
        const operand *const o = &out[out_which[j]];
        for (size_t i = 0; i < n; i++) {
            CHECK(same_bits(get(o, size, i), expected[i * MOST + (size_t)out_which[j]]));
            const ptrdiff_t place = o->first - o->memory + (ptrdiff_t)i * o->step;
            memcpy(kept[j] + place, o->memory + place, size);
        }
        CHECK(memcmp(kept[j], o->memory, o->bytes) == 0); /* nothing between the elements */
        free(kept[j]);
    }
    free(expected);
    for (int k = 0; k < owned_count; k++) free(owned[k].memory);
}
