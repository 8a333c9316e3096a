/* plans.h: random numbers, arrays of every layout and plans, each in exactly the memory it needs. */
#ifndef PLANS_H
#define PLANS_H

#include <math.h>
#include <string.h>

#include "check.h"
#include "rmsp.h"
#include "rmsp_storage.h"

static inline void *allocate(size_t count, size_t size)
{
    void *const memory = calloc(count > 0 ? count : 1, size);
    CHECK(memory != NULL);
    return memory;
}

/* ---- random numbers: splitmix64, the same in every run ---- */

static uint64_t random_state = 20121006;
static const unsigned char *choices, *choices_end; /* what a fuzzer wants chosen first */

static inline uint64_t random_bits(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A choice: of the fuzzer's input while there is any. */
static inline size_t below(size_t n)
{
    size_t choice = 0;
    if (choices == choices_end) return (size_t)(random_bits() % n);
    for (size_t rest = n - 1; rest > 0 && choices < choices_end; rest >>= 8) choice = choice << 8 | *choices++;
    return choice % n;
}

/* Between -1 and 1. */
static inline double uniform(void) { return (double)(int64_t)random_bits() * 0x1p-63; }

/* ---- arrays ---- */

#define MAX_NDIM 5

typedef enum {
    LIE_C,
    LIE_F,
    LIE_PERMUTED,  /* dense in a random order of the axes */
    LIE_REVERSED,  /* C order, every axis backwards */
    LIE_STRIDED,   /* a random order, with gaps, some axes backwards */
    LIE_BROADCAST, /* stride 0 on every axis: for gradients only */
    LIE_COUNT
} lie;

typedef struct array {
    rmsp_array a;
    ptrdiff_t shape[MAX_NDIM], strides[MAX_NDIM];
    char *memory;
    ptrdiff_t *rows;
} array;

static inline size_t reals_of_type(int type) { return type & RMSP_PAIRS ? 2 : 1; }

static inline size_t size_of_real(int type) { return rmsp_dtypes[type & ~RMSP_PAIRS].size; }

static inline size_t size_of_item(int type) { return reals_of_type(type) * size_of_real(type); }

static inline size_t reals_in(const rmsp_array *a)
{
    size_t n = reals_of_type(a->type);
    for (int axis = 0; axis < a->ndim; axis++) n *= (size_t)a->shape[axis];
    return n;
}

/* The flags of an array as NumPy sets them: axes of length 1 do not matter, nor any axis of an empty array. */
static inline unsigned flags_of(const rmsp_array *a)
{
    unsigned flags = RMSP_ALIGNED | RMSP_WRITABLE;
    ptrdiff_t c = (ptrdiff_t)size_of_item(a->type), f = c;
    int is_c = 1, is_f = 1;
    for (int axis = 0; axis < a->ndim; axis++) {
        const int last = a->ndim - 1 - axis;
        is_f &= a->shape[axis] == 1 || a->strides[axis] == f;
        is_c &= a->shape[last] == 1 || a->strides[last] == c;
        f *= a->shape[axis];
        c *= a->shape[last];
    }
    if (reals_in(a) == 0) is_c = is_f = 1;
    return flags | (is_c ? RMSP_C_ORDER : 0) | (is_f ? RMSP_F_ORDER : 0);
}

static inline void shuffle(int *order, int n)
{
    for (int k = 0; k < n; k++) order[k] = k;
    for (int k = n; k-- > 1;) {
        const int other = (int)below((size_t)k + 1), swapped = order[k];
        order[k] = order[other];
        order[other] = swapped;
    }
}

/* An array in memory of its own, `offset` bytes into it. */
static inline array *new_array_at(size_t offset, int type, int ndim, const ptrdiff_t *shape, lie how)
{
    array *const made = allocate(1, sizeof *made);
    ptrdiff_t reach = (ptrdiff_t)size_of_item(type), first = 0;
    int order[MAX_NDIM]; /* from the fastest axis to the slowest */
    shuffle(order, ndim);
    for (int k = 0; k < ndim; k++) {
        if (how == LIE_C || how == LIE_REVERSED) order[k] = ndim - 1 - k;
        if (how == LIE_F) order[k] = k;
    }
    for (int k = 0; k < ndim; k++) {
        const int axis = order[k];
        const ptrdiff_t length = shape[axis];
        ptrdiff_t stride = reach * (how == LIE_STRIDED ? (ptrdiff_t)below(3) + 1 : 1);
        if (how == LIE_BROADCAST) stride = 0;
        made->shape[axis] = length;
        if (length > 0) reach = stride == 0 ? reach : stride * length;
        made->strides[axis] = stride;
        if (length > 0 && (how == LIE_REVERSED || (how == LIE_STRIDED && below(3) == 0))) {
            first += stride * (length - 1);
            made->strides[axis] = -stride;
        }
    }
    made->memory = allocate(1, offset + (size_t)reach);
    made->a.data = made->memory + offset + first;
    made->a.shape = made->shape;
    made->a.strides = made->strides;
    made->a.ndim = ndim;
    made->a.type = type;
    made->a.flags = flags_of(&made->a);
    return made;
}

static inline array *new_array(int type, int ndim, const ptrdiff_t *shape, lie how)
{
    return new_array_at(0, type, ndim, shape, how);
}

static inline void free_array(array *a)
{
    if (a == NULL) return;
    free(a->memory);
    free(a->rows);
    free(a);
}

/* Where real number `e` of an array is, counted in C order. */
static inline void *place_of(const rmsp_array *a, size_t e)
{
    char *place = (char *)a->data + e % reals_of_type(a->type) * size_of_real(a->type);
    e /= reals_of_type(a->type);
    for (int axis = a->ndim - 1; axis >= 0; axis--) {
        place += (ptrdiff_t)(e % (size_t)a->shape[axis]) * a->strides[axis];
        e /= (size_t)a->shape[axis];
    }
    return place;
}

static inline double get_real(const rmsp_array *a, size_t e)
{
    float narrow;
    double wide;
    uint16_t half;
    if (a->type == RMSP_BF16 || a->type == RMSP_LOW16) {
        memcpy(&half, place_of(a, e), sizeof half);
        return a->type == RMSP_BF16 ? (double)rmsp_from_bf16(half) : (double)half;
    }
    if (size_of_real(a->type) == sizeof wide) {
        memcpy(&wide, place_of(a, e), sizeof wide);
        return wide;
    }
    memcpy(&narrow, place_of(a, e), sizeof narrow);
    return (double)narrow;
}

/* Rounded to float32, and towards 0 to bfloat16. */
static inline void set_real(const rmsp_array *a, size_t e, double x)
{
    const float narrow = (float)x;
    if (a->type == RMSP_BF16 || a->type == RMSP_LOW16) {
        const uint16_t half = a->type == RMSP_BF16 ? rmsp_to_bf16(narrow, 0) : (uint16_t)x;
        memcpy(place_of(a, e), &half, sizeof half);
    } else if (size_of_real(a->type) == sizeof x) {
        memcpy(place_of(a, e), &x, sizeof x);
    } else {
        memcpy(place_of(a, e), &narrow, sizeof narrow);
    }
}

/* Numbers of all sizes, and some special ones: `special` is 0 for none of these, else one in so many. */
static inline void fill(const rmsp_array *a, size_t special)
{
    static const double specials[] = {0, -0.0, 1e-45, -1e30, 1e-320, INFINITY, -INFINITY, NAN};
    for (size_t e = 0, n = reals_in(a); e < n; e++) {
        const int exponent = (int)(random_bits() % 12) - 6;
        const double x = ldexp(uniform(), exponent);
        set_real(a, e, special > 0 && random_bits() % special == 0 ? specials[random_bits() % 8] : x);
    }
}

/* Whether two numbers are equal to the bit; the sign and payload of a NaN are open. */
static inline int same_bits(double one, double other)
{
    return memcmp(&one, &other, sizeof one) == 0 || (isnan(one) && isnan(other));
}

/* ---- plans ---- */

typedef struct sample {
    rmsp_plan plan;
    rmsp_counts counts;
    array **params, **grads;            /* one a leaf; no gradient: NULL */
    rmsp_array *param_list, *grad_list; /* what is bound: the tests may change these */
    ptrdiff_t (*strides)[MAX_NDIM];     /* of state arrays */
    ptrdiff_t (*strides16)[MAX_NDIM];   /* of those of 16 bits */
    int has_bf16;                       /* whether gradients may be of the other type of float32 and bfloat16 */
    int is_split;                       /* whether bfloat16 parameters have lower halves; before finish_sample */
    ptrdiff_t (*param_strides)[MAX_NDIM];
    char *state;           /* all of them, one after another */
    double *sums, **rates; /* rates: of leaves that have learning rates of their own */
    rmsp_axis *axes;
} sample;

static const rmsp_array absent_array = {.type = -1, .problem = RMSP_ABSENT};

/* A plan with parameters, whose groups and rules are set next, then state arrays by finish_sample. */
static inline sample *new_sample(size_t leaf_count, size_t group_count)
{
    sample *const s = allocate(1, sizeof *s);
    s->plan.leaf_count = leaf_count;
    s->plan.group_count = group_count;
    s->plan.counts = &s->counts;
    s->plan.leaves = allocate(leaf_count, sizeof *s->plan.leaves);
    s->plan.slots = allocate(leaf_count, sizeof *s->plan.slots);
    s->plan.extras = allocate(leaf_count, sizeof *s->plan.extras);
    s->plan.groups = allocate(group_count, sizeof *s->plan.groups);
    s->plan.memory = allocate(1, sizeof *s->plan.memory);
    s->plan.memory_count = 1;
    s->plan.ranges = allocate(leaf_count + 1, sizeof *s->plan.ranges);
    s->plan.rules = (rmsp_rules){.accumulate = 1, .grad_scale = 1, .clip_global_norm = INFINITY};
    s->counts.seen = allocate(leaf_count, 1);
    s->params = allocate(leaf_count, sizeof *s->params);
    s->grads = allocate(leaf_count, sizeof *s->grads);
    s->param_list = allocate(leaf_count, sizeof *s->param_list);
    s->grad_list = allocate(leaf_count, sizeof *s->grad_list);
    s->rates = allocate(leaf_count, sizeof *s->rates);
    s->strides = allocate(leaf_count, sizeof *s->strides);
    s->strides16 = allocate(leaf_count, sizeof *s->strides16);
    s->param_strides = allocate(leaf_count, sizeof *s->param_strides);
    for (size_t i = 0; i < leaf_count; i++) s->grad_list[i] = absent_array;
    for (size_t g = 0; g < group_count; g++) {
        rmsp_group *const group = &s->plan.groups[g];
        group->clip_norm = INFINITY;
        group->coef = (rmsp_coef){.grad_scale = 1,
                                  .clip_value = INFINITY,
                                  .rho = 0.9,
                                  .one_minus_rho = 1.0 - 0.9,
                                  .bias_correction = 1,
                                  .eps_outside = 1e-8,
                                  .lr_in = 1e-3,
                                  .shrink = 1,
                                  .lr_out = 1};
        rmsp_group_refresh(group);
    }
    return s;
}

/* Leaf i: a parameter, and the strides of its state arrays, dense in Fortran order if `fortran` and nothing is
 * bfloat16; extras[i].avg16 has been set. */
static inline void set_leaf(sample *s, size_t i, array *param, uint32_t group, int fortran)
{
    const rmsp_array *const a = &param->a;
    ptrdiff_t stride = (ptrdiff_t)size_of_item(rmsp_arithmetic(a->type));
    if (a->type == RMSP_BF16 || s->plan.extras[i].avg16) fortran = 0;
    s->params[i] = param;
    s->param_list[i] = *a;
    for (int k = 0; k < a->ndim; k++) {
        const int axis = fortran ? k : a->ndim - 1 - k;
        s->strides[i][axis] = stride;
        s->strides16[i][axis] = stride / 2;
        stride *= a->shape[axis] > 0 ? a->shape[axis] : 1;
    }
    s->plan.slots[i] = (rmsp_slot){.shape = param->shape,
                                   .strides = s->strides[i],
                                   .param_strides = s->param_strides[i],
                                   .ndim = a->ndim,
                                   .type = a->type,
                                   .n = reals_in(a)};
    s->plan.leaves[i].n = reals_in(a);
    s->plan.leaves[i].group = group;
    s->plan.leaves[i].dtype = (uint32_t)rmsp_arithmetic(a->type & ~RMSP_PAIRS);
}

/* Whether a leaf has state array k. */
static inline int has_state(const sample *s, size_t i, int k)
{
    const rmsp_group *const group = &s->plan.groups[s->plan.leaves[i].group];
    switch (k) {
    case RMSP_SQUARE_AVG:
        return 1;
    case RMSP_MOMENTUM_BUFFER:
        return group->momentum != RMSP_MOMENTUM_NONE;
    case RMSP_GRAD_AVG:
        return group->centered;
    case RMSP_EMA:
        return s->plan.rules.averages;
    case RMSP_LOW_HALF:
        return s->is_split && s->plan.slots[i].type == RMSP_BF16;
    default:
        return s->plan.rules.accumulate > 1;
    }
}

/* State array k of a leaf; data is NULL where there is none. */
static inline rmsp_array state_of(const sample *s, size_t i, int k)
{
    const rmsp_slot *const slot = &s->plan.slots[i];
    const rmsp_extra *const extra = &s->plan.extras[i];
    void *const data = k == RMSP_EMA        ? extra->ema
                       : k == RMSP_GRAD_SUM ? extra->grad_sum
                       : k == RMSP_LOW_HALF ? extra->low_half
                                            : s->plan.leaves[i].array[k];
    const int is16 = k == RMSP_LOW_HALF || (k == RMSP_SQUARE_AVG && extra->avg16);
    const int type = k == RMSP_LOW_HALF ? (int)RMSP_LOW16 : is16 ? (int)RMSP_BF16 : rmsp_arithmetic(slot->type);
    return (rmsp_array){.data = data,
                        .shape = slot->shape,
                        .strides = is16 ? s->strides16[i] : slot->strides,
                        .ndim = slot->ndim,
                        .type = type};
}

/* The type of a leaf's parameter, one in `pairs` complex; whether its square_avg is bfloat16 is set too. */
static inline int random_type(sample *s, size_t i, size_t pairs)
{
    const int type = (int)below(RMSP_DTYPE_COUNT + (s->has_bf16 ? 1 : 0)); /* RMSP_BF16 comes next */
    if (type < RMSP_DTYPE_COUNT && below(pairs) == 0) return type | RMSP_PAIRS;
    s->plan.extras[i].avg16 = s->has_bf16 && rmsp_arithmetic(type) == RMSP_F32 && below(2);
    return type;
}

static inline void finish_sample(sample *s)
{
    size_t bytes = 0, spans = 0;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1) s->state = allocate(1, bytes);
        bytes = 0;
        for (size_t i = 0; i < s->plan.leaf_count; i++) {
            for (int k = RMSP_SQUARE_AVG; k < RMSP_ARRAY_COUNT; k++) {
                if (!has_state(s, i, k)) continue;
                if (pass == 1) {
                    void *const data = s->state + bytes;
                    if (k == RMSP_EMA) s->plan.extras[i].ema = data;
                    if (k == RMSP_GRAD_SUM) s->plan.extras[i].grad_sum = data;
                    if (k == RMSP_LOW_HALF) s->plan.extras[i].low_half = data;
                    if (k < RMSP_STEP_ARRAYS) s->plan.leaves[i].array[k] = data;
                }
                bytes += (s->plan.slots[i].n * size_of_real(state_of(s, i, k).type) + 7) / 8 * 8;
            }
        }
    }
    s->plan.memory[0] = (rmsp_range){(uintptr_t)s->state, (uintptr_t)s->state + bytes, SIZE_MAX, 0};
    for (size_t i = 0; i < s->plan.leaf_count; i++) spans += s->plan.slots[i].n / RMSP_SPAN + 1;
    s->sums = allocate(spans, sizeof *s->sums);
    spans = 0;
    for (size_t i = 0; i < s->plan.leaf_count; i++) {
        s->plan.extras[i].span_sums = s->sums + spans;
        spans += s->plan.slots[i].n / RMSP_SPAN + 1;
    }
}

/* Learning rates of their own for some leaves; before they are bound. */
static inline void set_random_rates(sample *s)
{
    for (size_t i = 0; i < s->plan.leaf_count; i++) {
        const size_t n = s->plan.slots[i].n, runs[] = {1, 1, 2, 1 + below(8), 20 + below(80), n > 0 ? n : 1};
        const size_t run = runs[below(sizeof runs / sizeof *runs)], count = (n + run - 1) / run;
        if (below(3) > 0) continue;
        s->rates[i] = allocate(count, sizeof(double));
        for (size_t k = 0; k < count; k++) s->rates[i][k] = fabs(uniform());
        s->plan.extras[i].lrs = s->rates[i];
        s->plan.extras[i].lr_run = run;
    }
}

static inline void free_sample(sample *s)
{
    for (size_t i = 0; i < s->plan.leaf_count; i++) {
        free_array(s->params[i]);
        free_array(s->grads[i]);
        free(s->rates[i]);
    }
    void *const parts[] = {s->plan.leaves,   s->plan.slots,  s->plan.extras, s->plan.groups, s->plan.memory,
                           s->plan.ranges,   s->counts.seen, s->params,      s->grads,       s->param_list,
                           s->grad_list,     s->strides,     s->state,       s->sums,        s->axes,
                           s->param_strides, s->rates,       s->strides16};
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) free(parts[k]);
    free(s);
}

/* Gives a leaf this gradient, or none. */
static inline void set_grad(sample *s, size_t i, array *grad)
{
    free_array(s->grads[i]);
    s->grads[i] = grad;
    s->grad_list[i] = grad == NULL ? absent_array : grad->a;
}

/* That of the parameter, or any of float32 and bfloat16. */
static inline int type_of_grad(const sample *s, size_t i)
{
    const int type = s->plan.slots[i].type, other = s->has_bf16 && rmsp_arithmetic(type) == RMSP_F32 && below(2);
    return !other ? type : type == RMSP_F32 ? (int)RMSP_BF16 : (int)RMSP_F32;
}

static inline void set_new_grad(sample *s, size_t i, lie how, size_t special)
{
    array *const grad = new_array(type_of_grad(s, i), s->plan.slots[i].ndim, s->plan.slots[i].shape, how);
    fill(&grad->a, special);
    set_grad(s, i, grad);
}

/* A gradient of some rows, each with a chance of one half. */
static inline void set_row_grad(sample *s, size_t i, size_t special)
{
    const rmsp_slot *const slot = &s->plan.slots[i];
    ptrdiff_t shape[MAX_NDIM], *const rows = allocate((size_t)slot->shape[0], sizeof *rows);
    size_t count = 0;
    for (ptrdiff_t row = 0; row < slot->shape[0]; row++) {
        if (below(2) == 0) rows[count++] = row;
    }
    memcpy(shape, slot->shape, (size_t)slot->ndim * sizeof *shape);
    shape[0] = (ptrdiff_t)count;
    array *const grad = new_array(type_of_grad(s, i), slot->ndim, shape, LIE_C);
    grad->rows = rows;
    grad->a.rows = rows;
    grad->a.row_count = count;
    fill(&grad->a, special);
    set_grad(s, i, grad);
}

/* rmsp_bind for a plan that has its state arrays. */
static inline rmsp_reason bind_arrays(rmsp_plan *plan, const rmsp_array *params, const rmsp_array *grads,
                                      rmsp_refusal *where)
{
    const rmsp_array *const arrays[RMSP_ARRAY_COUNT] = {params, grads};
    return rmsp_bind(plan, arrays, where);
}

/* Binds what the lists say, with axes where they are needed. */
static inline rmsp_reason bind_sample(sample *s, rmsp_refusal *where)
{
    rmsp_reason reason = bind_arrays(&s->plan, s->param_list, s->grad_list, where);
    if (reason != RMSP_NEEDS_AXES) return reason;
    CHECK(!s->plan.bound && s->axes == NULL);
    s->axes = allocate(rmsp_axis_count(&s->plan), sizeof *s->axes);
    rmsp_use_axes(&s->plan, s->axes);
    reason = bind_arrays(&s->plan, s->param_list, s->grad_list, where);
    CHECK(reason != RMSP_NEEDS_AXES);
    return reason;
}

static inline void must_bind(sample *s)
{
    rmsp_refusal where;
    CHECK(bind_sample(s, &where) == RMSP_OK);
    CHECK(s->plan.bound);
}

/* Random lengths, so that there are at most `most` elements; 1 and 0 among them. */
static inline int random_shape(ptrdiff_t *shape, size_t most)
{
    const int ndim = (int)below(MAX_NDIM);
    for (int axis = 0; axis < ndim; axis++) {
        size_t length = below(8) == 0 ? 1 : 1 + below(most < 12 ? most : 12);
        if (axis == 0 && below(4) == 0) length = 1 + below(most);
        if (below(60) == 0) length = 0;
        shape[axis] = (ptrdiff_t)length;
        if (length > 1) most = most / length > 0 ? most / length : 1;
    }
    return ndim;
}

/* A group with random options. */
static inline void random_group(rmsp_group *group)
{
    /* In an order that each compiler keeps, which that of an initialiser is not. */
    const double rho = 0.5 + 0.499 * fabs(uniform()), scale = below(2) ? 1 : uniform() * 3;
    const double clip_value = below(3) ? INFINITY : 0.3, eps_inside = below(2) ? 0 : 1e-6;
    group->momentum = (rmsp_momentum)below(3);
    group->centered = (int)below(2);
    group->l2 = (int)below(2);
    group->ema = 0.9;
    group->clip_norm = INFINITY;
    group->coef = (rmsp_coef){.grad_scale = scale,
                              .clip_value = clip_value,
                              .weight_decay = 0.01,
                              .rho = rho,
                              .one_minus_rho = 1.0 - rho,
                              .bias_correction = 1,
                              .eps_inside = eps_inside,
                              .momentum = 0.9};
    group->coef.eps_outside = group->coef.eps_inside > 0 ? 0 : 1e-8;
    if (below(4) == 0) group->coef.bias_correction = 1 / (1 - rho);
    group->lr_outside = group->momentum != RMSP_MOMENTUM_NONE && below(2);
    group->decay = below(2) ? 0 : 0.1;
    rmsp_group_set_lr(group, 0.01 * fabs(uniform()));
    rmsp_group_refresh(group);
}

#endif
