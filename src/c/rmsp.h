/* rmsp.h: the public header of the numerical library: what an RMSProp step is, and how to take one.
 *
 * C99, no Python, no allocation, no I/O. How to use it:
 *   1. Fill a rmsp_plan: its leaves and slots (shape, type, state arrays of each parameter), groups of coefficients
 *      (rmsp_group_refresh), rules and counts.
 *   2. At each step describe the arrays (rmsp_array) and call rmsp_bind: it finds how they lie, or refuses with a
 *      reason. Nothing has been written then. rmsp_bind_again is its short form for arrays that were bound before.
 *   3. Call rmsp_step: the whole transaction (non-finite check, accumulation, norms, step, averages, counts).
 *   rmsp_run is one operation of it, over spans that threads share.
 * Without NDEBUG preconditions are asserted.
 * The formula itself is in rmsp_kernel.inc.h; its specification is reference.py, to the bit.
 *
 * Everywhere, arrays come in this order: param, grad, square_avg, momentum_buffer, grad_avg.
 */
#ifndef RMSP_H
#define RMSP_H

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "rmsp_dtype.h"

/* Brings the cache line of an address nearer, which need not be one of memory. */
static inline void rmsp_prefetch(const void *address)
{
#if defined(__GNUC__)
    __builtin_prefetch(address);
#else
    (void)address;
#endif
}

typedef enum { RMSP_MOMENTUM_NONE, RMSP_MOMENTUM_CLASSIC, RMSP_MOMENTUM_NESTEROV } rmsp_momentum;

/* Which hyper-parameters change from element to element, and are read from arrays like the others (rmsp_numbers): none;
 * the learning rate, where it is lr_in or where it is lr_out; or all, with lr_out where there is momentum. */
typedef enum { RMSP_SAME, RMSP_LR_IN_EACH, RMSP_LR_OUT_EACH, RMSP_ALL_EACH } rmsp_each;

/* Every variant of the step, once: X(name, momentum, centered, l2, neutral, each), in the order of rmsp_variant_index.
 * The first three decide which arrays there are and where NaN spreads. A neutral variant leaves out what its
 * coefficients make no difference to: the bits are the same, and where square root and division share a unit with the
 * multipliers, as on AMD Zen 4, so is the speed of the divider reached. All else is a coefficient. */
#define RMSP_WITHOUT_MOMENTUM(X, suffix, neutral, each)          \
    X(plain##suffix, RMSP_MOMENTUM_NONE, 0, 0, neutral, each)    \
    X(plain_l2##suffix, RMSP_MOMENTUM_NONE, 0, 1, neutral, each) \
    X(centered##suffix, RMSP_MOMENTUM_NONE, 1, 0, neutral, each) \
    X(centered_l2##suffix, RMSP_MOMENTUM_NONE, 1, 1, neutral, each)
#define RMSP_WITH_MOMENTUM(X, suffix, neutral, each)                            \
    X(momentum##suffix, RMSP_MOMENTUM_CLASSIC, 0, 0, neutral, each)             \
    X(momentum_l2##suffix, RMSP_MOMENTUM_CLASSIC, 0, 1, neutral, each)          \
    X(momentum_centered##suffix, RMSP_MOMENTUM_CLASSIC, 1, 0, neutral, each)    \
    X(momentum_centered_l2##suffix, RMSP_MOMENTUM_CLASSIC, 1, 1, neutral, each) \
    X(nesterov##suffix, RMSP_MOMENTUM_NESTEROV, 0, 0, neutral, each)            \
    X(nesterov_l2##suffix, RMSP_MOMENTUM_NESTEROV, 0, 1, neutral, each)         \
    X(nesterov_centered##suffix, RMSP_MOMENTUM_NESTEROV, 1, 0, neutral, each)   \
    X(nesterov_centered_l2##suffix, RMSP_MOMENTUM_NESTEROV, 1, 1, neutral, each)
#define RMSP_STRUCTURES(X, suffix, neutral, each)   \
    RMSP_WITHOUT_MOMENTUM(X, suffix, neutral, each) \
    RMSP_WITH_MOMENTUM(X, suffix, neutral, each)
/* The structures that ufuncs have; lr is applied after the momentum buffer. */
#define RMSP_UFUNC_STRUCTURES(X, suffix, neutral, each, each_with_momentum)       \
    X(plain##suffix, RMSP_MOMENTUM_NONE, 0, 0, neutral, each)                     \
    X(centered##suffix, RMSP_MOMENTUM_NONE, 1, 0, neutral, each)                  \
    X(momentum##suffix, RMSP_MOMENTUM_CLASSIC, 0, 0, neutral, each_with_momentum) \
    X(momentum_centered##suffix, RMSP_MOMENTUM_CLASSIC, 1, 0, neutral, each_with_momentum)
#define RMSP_VARIANTS(X)                                                             \
    RMSP_STRUCTURES(X, , 0, RMSP_SAME)                                               \
    RMSP_STRUCTURES(X, _neutral, 1, RMSP_SAME)                                       \
    RMSP_STRUCTURES(X, _lr_each, 0, RMSP_LR_IN_EACH)                                 \
    RMSP_WITH_MOMENTUM(X, _lr_out_each, 0, RMSP_LR_OUT_EACH)                         \
    RMSP_UFUNC_STRUCTURES(X, _lr_each_neutral, 1, RMSP_LR_IN_EACH, RMSP_LR_OUT_EACH) \
    RMSP_UFUNC_STRUCTURES(X, _all_each, 1, RMSP_ALL_EACH, RMSP_ALL_EACH)

#define RMSP_VARIANT_ENUM(name, momentum, centered, l2, neutral, each) RMSP_VARIANT_##name,
enum { RMSP_VARIANTS(RMSP_VARIANT_ENUM) RMSP_VARIANT_COUNT, RMSP_STRUCTURE_COUNT = RMSP_VARIANT_plain_neutral };
#undef RMSP_VARIANT_ENUM

/* The coefficients of one step: X(name). Neutral values: grad_scale, bias_correction (1 / (1 - rho**t)), shrink (1 - lr
 * * decay, decoupled weight decay) and lr_out 1, clip_value +inf, eps 0. weight_decay is read by the l2 variants only.
 */
#define RMSP_COEFFICIENTS(X) \
    X(grad_scale)            \
    X(clip_value)            \
    X(weight_decay)          \
    X(rho)                   \
    X(one_minus_rho)         \
    X(bias_correction)       \
    X(eps_inside)            \
    X(eps_outside)           \
    X(lr_in)                 \
    X(momentum)              \
    X(shrink)                \
    X(lr_out)
#define RMSP_DOUBLE_FIELD(name) double name;
#define RMSP_FLOAT_FIELD(name) float name;
typedef struct rmsp_coef {
    RMSP_COEFFICIENTS(RMSP_DOUBLE_FIELD)
} rmsp_coef;

/* The same, each rounded once; what the float32 kernels read. */
typedef struct rmsp_coef_f32 {
    RMSP_COEFFICIENTS(RMSP_FLOAT_FIELD)
} rmsp_coef_f32;
typedef rmsp_coef rmsp_coef_f64;

static inline rmsp_coef_f32 rmsp_round(const rmsp_coef *coef)
{
    rmsp_coef_f32 rounded;
#define RMSP_ROUND(name) rounded.name = (float)coef->name;
    RMSP_COEFFICIENTS(RMSP_ROUND)
#undef RMSP_ROUND
    return rounded;
}

static inline int rmsp_variant_index(rmsp_momentum momentum, int centered, int l2, const rmsp_coef *coef)
{
    const int neutral = coef->grad_scale == 1 && coef->clip_value == (double)INFINITY && coef->bias_correction == 1 &&
                        coef->shrink == 1 && (momentum != RMSP_MOMENTUM_NONE || coef->lr_out == 1);
    return neutral * RMSP_STRUCTURE_COUNT + (int)momentum * 4 + (centered != 0) * 2 + (l2 != 0);
}

/* The variant of the same structure for any coefficients; `variant` is one that rmsp_variant_index gives. */
static inline int rmsp_general_variant(int variant) { return variant % RMSP_STRUCTURE_COUNT; }

/* Hyper-parameters of n elements, for the variants that read them so: each is rounded once, in the loop. Those that a
 * variant does not read may be NULL. */
typedef struct rmsp_numbers {
    const void *coef; /* the others: a rmsp_coef_f32 or a rmsp_coef_f64 */
    const double *lr, *rho, *momentum, *eps_outside, *eps_inside;
    double decay; /* those of the group */
    int l2, nesterov, lr_outside;
} rmsp_numbers;

/* One fused pass over n elements of contiguous arrays of one dtype. `numbers` is a rmsp_coef_f32 or a rmsp_coef_f64, or
 * for variants with numbers of each element a rmsp_numbers. square_avg, and where the variant has them momentum_buffer
 * and grad_avg, are updated with param; arrays that a variant lacks are not read. */
typedef void rmsp_step_fn(size_t n, void *param, const void *grad, void *square_avg, void *momentum_buffer,
                          void *grad_avg, const void *numbers);

/* The sum of n squares of scale * x, in double. The order is fixed: RMSP_LANES sums side by side over each RMSP_BLOCK
 * elements, folded in halves, the blocks added one after another; so the bits do not depend on the vector width. */
#define RMSP_LANES 16
#define RMSP_BLOCK 512
typedef double rmsp_sumsq_fn(size_t n, const void *x, double scale);

/* y = a * y + b * x over n elements, a and b rounded once. */
typedef void rmsp_lerp_fn(size_t n, void *y, const void *x, double a, double b);

/* How many of n / reals numbers of so many reals are NaN or infinite in any of them; reals divides n. */
typedef size_t rmsp_nonfinite_fn(size_t n, const void *x, size_t reals);

/* How a parameter is stored: as float32, as bfloat16 that is rounded stochastically, or as bfloat16 whose lower halves
 * are kept beside it. */
typedef enum { RMSP_PARAM_F32, RMSP_PARAM_ROUNDED, RMSP_PARAM_SPLIT, RMSP_PARAM_STORAGES } rmsp_param_storage;

/* The sets of arrays with a kernel of their own: X(name, param, grad16, avg16), by the storage of the parameter and
 * whether gradient and square_avg are bfloat16. Other sets, and what these kernels lack, go through float32 blocks. */
#define RMSP_BF16_STORAGES(X)            \
    X(avg, RMSP_PARAM_F32, 0, 1)         \
    X(grad, RMSP_PARAM_F32, 1, 0)        \
    X(grad_avg, RMSP_PARAM_F32, 1, 1)    \
    X(rounded, RMSP_PARAM_ROUNDED, 1, 0) \
    X(all, RMSP_PARAM_ROUNDED, 1, 1)     \
    X(split, RMSP_PARAM_SPLIT, 1, 0)     \
    X(split_avg, RMSP_PARAM_SPLIT, 1, 1)

/* The index of a set. */
#define RMSP_BF16_STORAGE(param, grad16, avg16) ((int)(param) * 4 + (grad16) * 2 + (avg16))
#define RMSP_BF16_STORAGE_COUNT (RMSP_PARAM_STORAGES * 4)

/* The kernels of a set: X(storage, param, grad16, avg16, name, has_momentum, centered, neutral), in the order of
 * rmsp_bf16_kernel. Weight decay and Nesterov's form are chosen for each piece, since most of the code converts. A
 * neutral one pays where there is no other state. */
#define RMSP_BF16_CHOOSING_KERNELS(X, storage, param, grad16, avg16) \
    X(storage, param, grad16, avg16, plain, 0, 0, 0)                 \
    X(storage, param, grad16, avg16, centered, 0, 1, 0)              \
    X(storage, param, grad16, avg16, momentum, 1, 0, 0)              \
    X(storage, param, grad16, avg16, momentum_centered, 1, 1, 0)
#define RMSP_BF16_NEUTRAL_KERNEL(X, storage, param, grad16, avg16) \
    X(storage, param, grad16, avg16, plain_neutral, 0, 0, 1)
#define RMSP_BF16_KERNELS(X, storage, param, grad16, avg16)      \
    RMSP_BF16_CHOOSING_KERNELS(X, storage, param, grad16, avg16) \
    RMSP_BF16_NEUTRAL_KERNEL(X, storage, param, grad16, avg16)
#define RMSP_BF16_KERNEL_COUNT 5
static inline int rmsp_bf16_kernel(int variant)
{
    const int structure = variant % RMSP_STRUCTURE_COUNT;
    return variant == RMSP_VARIANT_plain_neutral ? 4 : 2 * (structure >= RMSP_VARIANT_momentum) + structure / 2 % 2;
}

/* One fused pass over n elements, a multiple of RMSP_PIECE, in C order of their leaf; `low` are the lower halves of a
 * split parameter. Random bits are those of the pairs from `word` on in a stream (rmsp_storage.h). No coefficient may
 * be NaN: where all arrays are bfloat16 its lower half would be rounded. */
#define RMSP_PIECE 32
typedef void rmsp_bf16_fn(size_t n, void *param, uint16_t *low, const void *grad, void *square_avg,
                          float *momentum_buffer, float *grad_avg, int variant, const rmsp_coef_f32 *coef,
                          uint32_t stream, uint32_t word);

/* n elements from bfloat16 to float32 exactly, and back by stochastic rounding, with 16 random bits each; of and to two
 * halves; and the random bits of elements `first` and those after it in a stream. */
typedef void rmsp_widen_fn(size_t n, const uint16_t *from, float *to);
typedef void rmsp_narrow_fn(size_t n, const float *from, uint16_t *to, const uint16_t *random);
typedef void rmsp_join_fn(size_t n, const uint16_t *upper, const uint16_t *lower, float *to);
typedef void rmsp_split_fn(size_t n, const float *from, uint16_t *upper, uint16_t *lower);
typedef void rmsp_random_fn(size_t n, uint32_t stream, size_t first, uint16_t *to);

/* What the leaves of a group share. */
typedef struct rmsp_group {
    rmsp_momentum momentum;
    int centered, l2;
    int bias_correction; /* whether rmsp_step sets that coefficient by the number of the step */
    int lr_outside;      /* with momentum: whether lr is applied to what the buffer gives, not to what it takes */
    double decay;        /* decoupled weight decay */
    int variant;
    double ema;       /* decay of averaged weights; the first step copies whatever it is */
    double clip_norm; /* limit of a gradient's own norm, or INFINITY */
    rmsp_coef coef;
    rmsp_coef_f32 coef_f32;
} rmsp_group;

static inline const void *rmsp_coef_of(const rmsp_group *group, int dtype)
{
    assert(dtype >= 0 && dtype < RMSP_TYPE_COUNT);
    return (const char *)group + rmsp_dtypes[dtype].coef_offset;
}

/* Makes the variant and the rounded coefficients of a group anew from the others. */
static inline void rmsp_group_refresh(rmsp_group *group)
{
    group->variant = rmsp_variant_index(group->momentum, group->centered, group->l2, &group->coef);
    group->coef_f32 = rmsp_round(&group->coef);
}

/* Sets the factor on gradients; the variant is made anew by rmsp_group_set_lr. */
static inline void rmsp_group_set_scale(rmsp_group *group, double scale)
{
    group->coef.grad_scale = scale;
    group->coef_f32.grad_scale = (float)scale;
}

/* Multiplies the factor on gradients. */
static inline void rmsp_group_scale(rmsp_group *group, double factor)
{
    rmsp_group_set_scale(group, group->coef.grad_scale * factor);
    group->variant = rmsp_general_variant(group->variant);
}

/* Sets the learning rate of a group whose coefficients had another one; not the variant, which is the same where there
 * is no decay. */
static inline void rmsp_group_set_rate(rmsp_group *group, double lr)
{
    *(group->lr_outside ? &group->coef.lr_out : &group->coef.lr_in) = lr;
    *(group->lr_outside ? &group->coef_f32.lr_out : &group->coef_f32.lr_in) = (float)lr;
    if (group->decay != 0) { /* the lr of ufuncs, which have none, may be infinite */
        group->coef.shrink = 1.0 - lr * group->decay;
        group->coef_f32.shrink = (float)group->coef.shrink;
    }
}

/* Sets all that depends on the learning rate. */
static inline void rmsp_group_set_lr(rmsp_group *group, double lr)
{
    group->coef.lr_in = group->coef.lr_out = group->coef.shrink = 1;
    group->coef_f32.lr_in = group->coef_f32.lr_out = group->coef_f32.shrink = 1;
    rmsp_group_set_rate(group, lr);
    group->variant = rmsp_variant_index(group->momentum, group->centered, group->l2, &group->coef);
}

/* The variant for a group whose leaves have a learning rate for each element. */
static inline int rmsp_lr_variant(const rmsp_group *group)
{
    const int structure = rmsp_general_variant(group->variant);
    assert(!group->lr_outside || group->momentum != RMSP_MOMENTUM_NONE);
    if (group->variant != structure && group->decay == 0 && !group->l2 && group->momentum != RMSP_MOMENTUM_NESTEROV &&
        group->lr_outside == (group->momentum != RMSP_MOMENTUM_NONE)) {
        return RMSP_VARIANT_plain_lr_each_neutral + 2 * group->lr_outside + (group->centered != 0);
    }
    return group->lr_outside ? RMSP_VARIANT_momentum_lr_out_each + structure - RMSP_VARIANT_momentum
                             : RMSP_VARIANT_plain_lr_each + structure;
}

enum {
    RMSP_PARAM,
    RMSP_GRAD,
    RMSP_SQUARE_AVG,
    RMSP_MOMENTUM_BUFFER,
    RMSP_GRAD_AVG,
    RMSP_STEP_ARRAYS, /* those that a step kernel takes */
    RMSP_EMA = RMSP_STEP_ARRAYS,
    RMSP_GRAD_SUM,
    RMSP_LOW_HALF, /* of bfloat16 parameters */
    RMSP_ARRAY_COUNT
};
#define RMSP_MAX_NDIM 65 /* 64 of NumPy, and the two reals of a complex number */

/* ---- arrays as a caller describes them ---- */

/* Why arrays are refused: X(NAME, name). The first are what the source of a descriptor says of an object, the others
 * what rmsp_bind finds. */
#define RMSP_REASONS(X)                                                                       \
    X(OK, ok)                                                                                 \
    X(ABSENT, absent) /* a parameter without a gradient: no refusal there */                  \
    X(NOT_AN_ARRAY, not_an_array)                                                             \
    X(MASKED, masked)                                                                         \
    X(DEVICE, device)           /* a tensor that is not in the memory of the CPU */           \
    X(NOT_STRIDED, not_strided) /* a tensor without data that strides describe */             \
    X(LAZY_BITS, lazy_bits)     /* a tensor whose conjugate or negative is yet to be taken */ \
    X(UNSUPPORTED, unsupported) /* a type of element that is not in the table */              \
    X(BYTE_ORDER, byte_order)                                                                 \
    X(MISALIGNED, misaligned)                                                                 \
    X(NULL_DATA, null_data) /* there are elements, and no address */                          \
    X(OTHER_DTYPE, other_dtype)                                                               \
    X(OTHER_SHAPE, other_shape)                                                               \
    X(READ_ONLY, read_only)                                                                   \
    X(SELF_OVERLAP, self_overlap) /* elements of an array to be written share memory */       \
    X(OVERLAP, overlap)           /* it shares memory with another array that is written */   \
    X(ROW_OUTSIDE, row_outside)                                                               \
    X(ROW_ORDER, row_order)       /* rows are not in increasing order */                      \
    X(ROWS_STRIDED, rows_strided) /* values of rows are not C-contiguous */                   \
    X(ROWS_ACCUMULATED, rows_accumulated)                                                     \
    X(NOT_C_ORDER, not_c_order) /* state that counts elements in C order */                   \
    X(NEEDS_AXES, needs_axes)   /* no refusal: arrays are not all dense, and rmsp_use_axes must be called */
#define RMSP_REASON_ENUM(NAME, name) RMSP_##NAME,
typedef enum { RMSP_REASONS(RMSP_REASON_ENUM) RMSP_REASON_COUNT } rmsp_reason;
#undef RMSP_REASON_ENUM
const char *rmsp_reason_name(rmsp_reason reason);

/* The values are NumPy's, so that its source need not translate them. */
enum { RMSP_C_ORDER = 0x1, RMSP_F_ORDER = 0x2, RMSP_ALIGNED = 0x100, RMSP_WRITABLE = 0x400 };

/* Beside a type of rmsp_dtype.h in `type`: complex numbers, which are pairs of reals. */
#define RMSP_PAIRS 0x100

typedef struct rmsp_array {
    void *data;
    const ptrdiff_t *shape, *strides; /* in bytes; borrowed, read within the call only */
    const ptrdiff_t *rows;            /* of a gradient of some rows: which, each once, increasing; else NULL */
    size_t row_count;
    int ndim;
    int type;            /* of rmsp_dtype.h, with RMSP_PAIRS; -1 with a problem */
    unsigned flags;      /* RMSP_C_ORDER and the others */
    rmsp_reason problem; /* RMSP_OK, or why it cannot be bound at all */
} rmsp_array;

/* Which array was refused: array RMSP_PARAM, RMSP_GRAD or a buffer of a leaf; and which one it overlaps. */
typedef struct rmsp_refusal {
    size_t leaf, other_leaf;
    int array, other_array;
    size_t row; /* the place in rows */
} rmsp_refusal;

/* ---- a plan ---- */

/* One axis of a layout: its length, and the distance in bytes of neighbours in each array. */
typedef struct rmsp_axis {
    size_t length;
    ptrdiff_t stride[RMSP_ARRAY_COUNT];
} rmsp_axis;

/* How the arrays of a leaf lie in memory where they are not all dense in one order: axes from the outermost to the
 * innermost. ndim 0: they are dense, and need no layout. */
typedef struct rmsp_layout {
    int ndim;
    rmsp_axis *axes;
} rmsp_layout;

/* The rows of a table that the gradient of a leaf has, each once. Rows of array k are stride[k] bytes apart; those of
 * the gradient itself are contiguous. */
typedef struct rmsp_rows {
    size_t count; /* of interest where index is not NULL */
    const ptrdiff_t *index;
    ptrdiff_t stride[RMSP_ARRAY_COUNT];
} rmsp_rows;

/* What only some leaves need; apart from rmsp_leaf, which so fits in one cache line. */
typedef struct rmsp_extra {
    void *ema;              /* or NULL */
    void *grad_sum;         /* or NULL */
    rmsp_layout layout;     /* of all arrays */
    rmsp_layout grad_order; /* of the gradient alone, in C order */
    rmsp_layout sum_order;  /* of grad_sum alone, in C order; its strides are in the place of the gradient's */
    rmsp_rows rows;         /* index NULL: the gradient is one of all elements */
    double *span_sums;      /* what RMSP_SUMSQ finds, for each span of the gradient; needed where rules use norms */
    double sumsq;           /* their sum */
    double clip;            /* factor on the gradient, 1 but for clipping by norm */
    const double *lrs; /* NULL, or the learning rates: one for lr_run elements that follow each other in square_avg */
    size_t lr_run;
    void *low_half;      /* of a bfloat16 parameter, or NULL: it is rounded then */
    int avg16;           /* whether square_avg is bfloat16 */
    int param16, grad16; /* set by binding: whether these are */
    int64_t behind;      /* for random bits: how many steps fewer than counts->steps the leaf has had */
} rmsp_extra;

/* One parameter and what belongs to it. A leaf without a gradient has a NULL there, and nothing of it moves. */
typedef struct rmsp_leaf {
    void *array[RMSP_STEP_ARRAYS];
    size_t n;          /* reals, of a row where the gradient is one of rows */
    rmsp_extra *extra; /* or NULL */
    uint32_t group;
    uint32_t dtype; /* of its arithmetic */
} rmsp_leaf;

/* Bytes of an element of array k of a leaf; those of a gradient that is a sum are float32 whatever it was a sum of. */
static inline size_t rmsp_size_of(const rmsp_leaf *leaf, int k)
{
    const rmsp_extra *const extra = leaf->extra;
    const int is16 = extra != NULL && (k == RMSP_PARAM        ? extra->param16
                                       : k == RMSP_GRAD       ? extra->grad16 && leaf->array[k] != extra->grad_sum
                                       : k == RMSP_SQUARE_AVG ? extra->avg16
                                                              : k == RMSP_LOW_HALF);
    return is16 ? sizeof(uint16_t) : rmsp_dtypes[leaf->dtype].size;
}

/* What binding keeps for a leaf. The caller fills in the first part; the state arrays have the strides that are given
 * here, dense in some order of the axes: in C order where anything of the leaf is bfloat16. They are those of an array
 * of the arithmetic type; those of arrays of 16 bits are half of them. */
typedef struct rmsp_slot {
    const ptrdiff_t *shape, *strides;
    ptrdiff_t *param_strides; /* room for those of the parameter, which binding keeps there */
    int ndim;
    int type; /* of the parameter */
    size_t n; /* reals */
    /* Set by binding. */
    int grad_type;
    unsigned param_flags, grad_flags; /* what rmsp_bind_again asks for; no array has RMSP_NEVER */
    uintptr_t low, high;              /* the bytes of the parameter */
    size_t grad_bytes;                /* of a dense gradient */
    const void *clear;                /* the dense gradient that was last found to overlap nothing written */
} rmsp_slot;
#define RMSP_NEVER 0x80000000u

/* Bytes that a step writes. */
typedef struct rmsp_range {
    uintptr_t low, high;
    size_t leaf; /* or SIZE_MAX: memory of state arrays */
    int array;   /* RMSP_PARAM or a buffer, of a leaf */
} rmsp_range;

/* What a call does with gradients that are not finite. */
typedef enum { RMSP_PROPAGATE, RMSP_SKIP, RMSP_REPORT } rmsp_nonfinite;

/* What holds for all leaves. */
typedef struct rmsp_rules {
    int64_t accumulate;      /* calls a step, 1 for a step at each */
    double grad_scale;       /* of the gradients that are accumulated */
    double clip_global_norm; /* or INFINITY */
    rmsp_nonfinite nonfinite;
    int clips;     /* whether any gradient's norm has a limit */
    int averages;  /* whether there are averaged weights */
    uint64_t seed; /* of stochastic rounding */
} rmsp_rules;

/* What a plan's owner keeps beyond it. */
typedef struct rmsp_counts {
    int64_t steps, accumulated, skipped;
    unsigned char *seen; /* for each leaf, whether it had a gradient since the last step; with accumulate > 1 */
} rmsp_counts;

/* Where the first element of a leaf is, if it is a part of another one, which its random bits are counted in. */
typedef struct rmsp_origin {
    ptrdiff_t leaf, element;
} rmsp_origin;

/* How much work a step is: reals with a gradient, and what threads could share of it: the bytes of the gradients,
 * less 256 a leaf, which it takes to bring a leaf to another core (1000 leaves of 256 bytes ran 1.4 times as long on
 * two threads, 64 leaves of 4096 bytes 0.65 times). */
typedef struct rmsp_work {
    size_t elements, bytes;
} rmsp_work;

typedef struct rmsp_plan {
    rmsp_leaf *leaves;
    size_t leaf_count;
    rmsp_group *groups;
    size_t group_count;
    /* For rmsp_bind and rmsp_step; rmsp_run needs only the above. */
    rmsp_slot *slots;
    rmsp_extra *extras; /* one a leaf; leaves point to theirs where they need it */
    rmsp_rules rules;
    rmsp_counts *counts;
    rmsp_range *memory; /* where state arrays lie: memory_count pieces that do not overlap; none where they are given */
    size_t memory_count;
    rmsp_range *ranges; /* room for memory_count and, for each leaf, its parameter and the buffers that are given */
    const rmsp_origin *origins; /* one a leaf, or NULL: leaves are whole */
    int threads;                /* what rmsp_run gives rmsp_thread_count */
    int has_axes;               /* rmsp_use_axes was called */
    /* Set by binding. */
    size_t range_count;
    int bound;                   /* ranges are those of the parameters now bound; 0 makes the next binding a full one */
    uintptr_t gap_low, gap_high; /* bytes between two ranges, in which gradients were found */
    rmsp_work work;
} rmsp_plan;

/* The strides of a dense array with elements of `size` bytes and the order of axes that `strides` have. */
void rmsp_dense_strides(int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t size, ptrdiff_t *dense);

/* Binds arrays to the plan: RMSP_OK, or the first reason to refuse them, and which they are. arrays[k] are those of all
 * leaves, which may have any layout. arrays[RMSP_GRAD] is NULL where there are no gradients yet, and every parameter is
 * to be written later. From RMSP_SQUARE_AVG on all are NULL where the state arrays are those that the plan has; else
 * they are given too, arrays[RMSP_SQUARE_AVG] for each leaf that has a gradient, any of the others RMSP_ABSENT or NULL,
 * and a leaf whose parameter is RMSP_ABSENT is left out of the step. Of what the descriptors point to only the data of
 * the arrays is kept, and the rows of gradients. */
rmsp_reason rmsp_bind(rmsp_plan *plan, const rmsp_array *const arrays[RMSP_ARRAY_COUNT], rmsp_refusal *where);

/* Axes that rmsp_bind needs where arrays are not all dense: how many, and where they are. */
size_t rmsp_axis_count(const rmsp_plan *plan);
void rmsp_use_axes(rmsp_plan *plan, rmsp_axis *axes);

/* Whether bytes lie between those that the plan's step writes; if so, sets plan->gap_low and gap_high. */
int rmsp_find_gap(rmsp_plan *plan, uintptr_t low, uintptr_t high);

static inline int rmsp_ranges_overlap(uintptr_t low, uintptr_t high, uintptr_t other_low, uintptr_t other_high)
{
    return low < other_high && other_low < high;
}

/* Whether two arrays share memory; also 1 where the search takes too long. */
int rmsp_arrays_overlap(const rmsp_array *one, const rmsp_array *other);

/* Whether elements of one array, of so many bytes each, may share memory. */
int rmsp_overlaps_itself(int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t size);

/* The work of a plan as it is bound. */
rmsp_work rmsp_plan_work(const rmsp_plan *plan);

typedef enum {
    RMSP_AGAIN_NO,  /* rmsp_bind must decide */
    RMSP_AGAIN_YES, /* bound */
    RMSP_AGAIN_GAP, /* bound if rmsp_find_gap finds the gradient's slot->grad_bytes to be free */
} rmsp_again;

static inline int rmsp_is_like_slot(const rmsp_array *array, const rmsp_slot *slot, int type, unsigned flags)
{
    if (array->type != type || (array->flags & flags) != flags || array->ndim != slot->ndim) return 0;
    for (int axis = 0; axis < slot->ndim; axis++) {
        if (array->shape[axis] != slot->shape[axis]) return 0;
    }
    return 1;
}

/* The flags of RMSP_C_ORDER and RMSP_F_ORDER, of strides in elements. Axes of length 1 are of no account. */
static inline unsigned rmsp_order_flags(int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides)
{
    unsigned flags = RMSP_C_ORDER | RMSP_F_ORDER;
    ptrdiff_t dense = 1;
    for (int axis = ndim - 1; axis >= 0; axis--) {
        if (shape[axis] == 0) return RMSP_C_ORDER | RMSP_F_ORDER;
        if (shape[axis] != 1 && strides[axis] != dense) flags &= ~(unsigned)RMSP_C_ORDER;
        dense *= shape[axis];
    }
    dense = 1;
    for (int axis = 0; axis < ndim; axis++) {
        if (shape[axis] != 1 && strides[axis] != dense) flags &= ~(unsigned)RMSP_F_ORDER;
        dense *= shape[axis];
    }
    return flags;
}

/* Whether a buffer that is given is the one bound last, and dense in the order of its parameter; for plans that are
 * bound only. rmsp_bind must decide where not. */
static inline int rmsp_is_bound(const rmsp_slot *slot, int type, const void *bound, const rmsp_array *buffer)
{
    return buffer->data == bound && rmsp_is_like_slot(buffer, slot, type, slot->param_flags);
}

/* rmsp_bind for one leaf where the parameter is the one bound last and the gradient dense in the same order, or absent:
 * in a few comparisons. For plans that are bound only. The caller sets plan->work. */
static inline rmsp_again rmsp_bind_again(const rmsp_plan *plan, rmsp_leaf *leaf, rmsp_slot *slot,
                                         const rmsp_array *param, const rmsp_array *grad)
{
    assert(plan->bound && leaf - plan->leaves == slot - plan->slots);
    if (param->data != leaf->array[RMSP_PARAM] || !rmsp_is_like_slot(param, slot, slot->type, slot->param_flags)) {
        return RMSP_AGAIN_NO;
    }
    if (grad->problem == RMSP_ABSENT) {
        leaf->array[RMSP_GRAD] = NULL;
        return RMSP_AGAIN_YES;
    }
    if (grad->data == NULL || grad->rows != NULL) return RMSP_AGAIN_NO;
    if (!rmsp_is_like_slot(grad, slot, slot->grad_type, slot->grad_flags)) return RMSP_AGAIN_NO;
    /* Not written again: other cores keep the line. */
    if (leaf->array[RMSP_GRAD] != grad->data) leaf->array[RMSP_GRAD] = grad->data;
    if (grad->data == slot->clear) return RMSP_AGAIN_YES;
    const uintptr_t low = (uintptr_t)grad->data;
    if (low < plan->gap_low || low + slot->grad_bytes > plan->gap_high) return RMSP_AGAIN_GAP;
    slot->clear = grad->data;
    return RMSP_AGAIN_YES;
}

/* ---- the step ---- */

typedef enum { RMSP_STEPPED, RMSP_ACCUMULATED, RMSP_SKIPPED, RMSP_NONFINITE } rmsp_outcome;

/* Which gradient is not finite, how many of its numbers, and how many it has. */
typedef struct rmsp_found {
    size_t leaf, count, size;
} rmsp_found;

/* The whole transaction on a bound plan, and its counts. RMSP_NONFINITE: nothing was written, and `found` says why. */
rmsp_outcome rmsp_step(rmsp_plan *plan, rmsp_found *found);

typedef enum {
    RMSP_STEP,       /* step every leaf that has a gradient, then its averaged weights */
    RMSP_SUMSQ,      /* span_sums of the gradients; nothing else is written */
    RMSP_ACCUMULATE, /* grad_sum = grad_sum + scale * grad */
} rmsp_op;

/* Runs an operation over all leaves of a plan, on up to rmsp_thread_count() threads where the work is above the grain.
 * `scale` is that of RMSP_SUMSQ and RMSP_ACCUMULATE. Results do not depend on the number of threads; floating-point
 * exceptions of other threads are raised in the caller's. */
void rmsp_run(const rmsp_plan *plan, rmsp_op op, double scale, rmsp_work work);

/* The rmsp_work.bytes up to which a plan stays on one thread, and of which each further thread needs as many; with 0
 * all threads do their share, however little there is to do, for tests. And the elements of a span. */
size_t rmsp_grain(void);
void rmsp_set_grain(size_t bytes);
#define RMSP_SPAN ((size_t)1 << 12)

/* The threads that large work may use: the limit if one is set, not 0; else `preferred` if that is not 0; else what
 * OpenMP gives now (OMP_NUM_THREADS, threadpoolctl), or 1 without OpenMP. 1 where the system has no POSIX threads. Of
 * these, no more run than the caller's affinity mask has cores. Until rmsp_threads_init, called once before the process
 * forks, the caller works alone. rmsp_set_thread_limit returns the limit before, so that it can be put back. */
void rmsp_threads_init(void);
int rmsp_thread_count(int preferred);
int rmsp_set_thread_limit(int limit);
int rmsp_has_threads(void);
#define RMSP_MAX_THREADS 4096

/* Copies n elements of `size` bytes from one stride in bytes to another. */
void rmsp_copy_strided(size_t n, size_t size, char *to, ptrdiff_t to_stride, const char *from, ptrdiff_t from_stride);

/* Work on a contiguous block of n elements of each array. */
typedef void rmsp_block_fn(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context);

/* Elements [start, start + count) in the order of `layout`, RMSP_BLOCK at a time: gather what `in` has, work, scatter
 * what `out` has. in and out may be the same arrays: a block is read whole before any of it is written. size[k] is that
 * of an element of array k. No axis has length 0. */
void rmsp_strided_run(const size_t size[RMSP_ARRAY_COUNT], const rmsp_layout *layout, size_t start, size_t count,
                      const void *const in[RMSP_ARRAY_COUNT], void *const out[RMSP_ARRAY_COUNT], rmsp_block_fn *work,
                      void *context);

/* For elements [start, start + count) in the order of `layout` the number that belongs to each: one of `numbers`, of
 * which there is one for `run` elements that follow each other in array k. `first` is the element at which that array
 * begins, `size` the size of its elements. */
void rmsp_gather_numbers(size_t size, const rmsp_layout *layout, int k, size_t start, size_t count, size_t first,
                         const double *numbers, size_t run, double *to);

/* The same places themselves: the element of array k that each is, counted in elements of `size` bytes. */
void rmsp_gather_elements(size_t size, const rmsp_layout *layout, int k, size_t start, size_t count, size_t first,
                          size_t *to);

/* Instruction sets. Until rmsp_isa_init, called once and by one thread, there is only the baseline; after it,
 * those compiled in and present on this machine, best first, and the first one is active. */
void rmsp_isa_init(void);
int rmsp_isa_count(void);
const char *rmsp_isa_name(int index);
const char *rmsp_isa_active(void);
/* 0, or -1 where this machine has no instruction set of that name. */
int rmsp_isa_use(const char *name);

#endif
