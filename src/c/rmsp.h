/* rmsp.h: the public header of the numerical library: what an RMSProp step is, and how to run one.
 *
 * C99, no Python, no allocation, no I/O. A caller describes its arrays once as leaves (rmsp_leaf), its
 * hyper-parameters as groups (rmsp_group), and calls rmsp_plan_run once a step. The formula itself is in
 * rmsp_kernel.inc.h; its specification is reference.py, to the bit.
 *
 * Everywhere, arrays come in this order: param, grad, square_avg, momentum_buffer, grad_avg.
 * Not promised: that an array may overlap another one. The caller has checked that none does.
 */
#ifndef RMSP_H
#define RMSP_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { RMSP_F32, RMSP_F64, RMSP_DTYPE_COUNT } rmsp_dtype;

typedef enum { RMSP_MOMENTUM_NONE, RMSP_MOMENTUM_CLASSIC, RMSP_MOMENTUM_NESTEROV } rmsp_momentum;

/* Every variant of the step, once: X(name, momentum, centered, l2, neutral), in the order of rmsp_variant_index. The
 * first three decide which arrays there are and where NaN spreads. A neutral variant leaves out what its coefficients
 * make no difference to: the bits are the same, and where square root and division share a unit with the multipliers,
 * as on AMD Zen 4, so is the speed of the divider reached. All else is a coefficient. */
#define RMSP_STRUCTURES(X, neutral, suffix)                               \
    X(plain##suffix, RMSP_MOMENTUM_NONE, 0, 0, neutral)                   \
    X(plain_l2##suffix, RMSP_MOMENTUM_NONE, 0, 1, neutral)                \
    X(centered##suffix, RMSP_MOMENTUM_NONE, 1, 0, neutral)                \
    X(centered_l2##suffix, RMSP_MOMENTUM_NONE, 1, 1, neutral)             \
    X(momentum##suffix, RMSP_MOMENTUM_CLASSIC, 0, 0, neutral)             \
    X(momentum_l2##suffix, RMSP_MOMENTUM_CLASSIC, 0, 1, neutral)          \
    X(momentum_centered##suffix, RMSP_MOMENTUM_CLASSIC, 1, 0, neutral)    \
    X(momentum_centered_l2##suffix, RMSP_MOMENTUM_CLASSIC, 1, 1, neutral) \
    X(nesterov##suffix, RMSP_MOMENTUM_NESTEROV, 0, 0, neutral)            \
    X(nesterov_l2##suffix, RMSP_MOMENTUM_NESTEROV, 0, 1, neutral)         \
    X(nesterov_centered##suffix, RMSP_MOMENTUM_NESTEROV, 1, 0, neutral)   \
    X(nesterov_centered_l2##suffix, RMSP_MOMENTUM_NESTEROV, 1, 1, neutral)
#define RMSP_VARIANTS(X) RMSP_STRUCTURES(X, 0, ) RMSP_STRUCTURES(X, 1, _neutral)

#define RMSP_VARIANT_COUNT 24

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
    return neutral * 12 + (int)momentum * 4 + (centered != 0) * 2 + (l2 != 0);
}

/* The variant of the same structure for any coefficients. */
static inline int rmsp_general_variant(int variant) { return variant % 12; }

/* One fused pass over n elements of contiguous arrays of one dtype; coef is a rmsp_coef_f32 or a rmsp_coef_f64.
 * square_avg, and where the variant has them momentum_buffer and grad_avg, are updated with param; arrays that a
 * variant lacks are not read. */
typedef void rmsp_step_fn(size_t n, void *param, const void *grad, void *square_avg, void *momentum_buffer,
                          void *grad_avg, const void *coef);

/* The sum of n squares, in double. The order is fixed: RMSP_LANES sums side by side over each RMSP_BLOCK elements,
 * folded in halves, the blocks added one after another; so the bits do not depend on the vector width. */
#define RMSP_LANES 16
#define RMSP_BLOCK 512
typedef double rmsp_sumsq_fn(size_t n, const void *x);

/* y = a * y + b * x over n elements, a and b rounded once. */
typedef void rmsp_lerp_fn(size_t n, void *y, const void *x, double a, double b);

/* What the leaves of a group share: the variant, the coefficients, the decay of averaged weights. */
typedef struct rmsp_group {
    int variant;
    double ema;
    rmsp_coef coef;
    rmsp_coef_f32 coef_f32;
} rmsp_group;

static inline const void *rmsp_coef_of(const rmsp_group *group, rmsp_dtype dtype)
{
    return dtype == RMSP_F32 ? (const void *)&group->coef_f32 : (const void *)&group->coef;
}

/* A group with these coefficients. */
static inline rmsp_group rmsp_group_of(rmsp_momentum momentum, int centered, int l2, double ema, const rmsp_coef *coef)
{
    const rmsp_group group = {rmsp_variant_index(momentum, centered, l2, coef), ema, *coef, rmsp_round(coef)};
    return group;
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
    RMSP_ARRAY_COUNT
};

/* How the arrays of a leaf lie in memory where they are not all dense in one order: axes from the outermost to the
 * innermost, strides in bytes. Only the strides of arrays that the leaf has are read. */
#define RMSP_MAX_NDIM 65 /* 64 of NumPy, and the two reals of a complex number */
typedef struct rmsp_layout {
    int ndim;
    size_t shape[RMSP_MAX_NDIM];
    ptrdiff_t stride[RMSP_ARRAY_COUNT][RMSP_MAX_NDIM];
} rmsp_layout;

/* The rows of a table that a leaf's gradient speaks of, each once; rows of array k are stride[k] bytes apart. The
 * rows of the gradient itself follow each other. */
typedef struct rmsp_rows {
    size_t count;
    const ptrdiff_t *index;
    ptrdiff_t stride[RMSP_ARRAY_COUNT];
} rmsp_rows;

/* What few leaves have. */
typedef struct rmsp_extra {
    void *ema;                     /* or NULL */
    void *grad_sum;                /* or NULL */
    const rmsp_layout *layout;     /* NULL: every array is dense in the same order */
    const rmsp_layout *grad_order; /* the gradient alone in C order; NULL: it is C-contiguous */
    const rmsp_rows *rows;         /* NULL: the gradient is one of all elements */
    double *span_sums;             /* what RMSP_SUMSQ found, for each span of the gradient */
    double clip;                   /* factor on the gradient, 1 but for clipping by norm */
} rmsp_extra;

/* One parameter and what belongs to it. A leaf without a gradient has a NULL there, and nothing of it moves. */
typedef struct rmsp_leaf {
    void *array[RMSP_STEP_ARRAYS];
    size_t n;          /* elements, of a row where the gradient is one of rows */
    rmsp_extra *extra; /* or NULL */
    uint32_t group;
    uint32_t dtype;
} rmsp_leaf;

typedef struct rmsp_plan {
    rmsp_leaf *leaves;
    size_t leaf_count;
    rmsp_group *groups;
    double scale; /* of RMSP_ACCUMULATE */
} rmsp_plan;

typedef enum {
    RMSP_STEP,       /* step every leaf that has a gradient, then its averaged weights */
    RMSP_SUMSQ,      /* span_sums of the gradients; nothing else is written */
    RMSP_ACCUMULATE, /* grad_sum = grad_sum + scale * grad */
} rmsp_op;

/* How much work a plan is: elements with a gradient, and what threads could share of it: the bytes of the gradients,
 * less 256 a leaf, which it takes to bring a leaf to another core (1000 leaves of 256 bytes ran 1.4 times as long on
 * two threads, 64 leaves of 4096 bytes 0.65 times). */
typedef struct rmsp_work {
    size_t elements, bytes;
} rmsp_work;

/* Adds what a leaf's gradient is. */
static inline void rmsp_add_work(rmsp_work *work, const rmsp_leaf *leaf)
{
    if (leaf->array[RMSP_GRAD] == NULL) return;
    const size_t rows = leaf->extra == NULL || leaf->extra->rows == NULL ? 1 : leaf->extra->rows->count;
    const size_t bytes = leaf->n * rows * (leaf->dtype == RMSP_F32 ? sizeof(float) : sizeof(double));
    work->elements += leaf->n * rows;
    work->bytes += bytes > 256 ? bytes - 256 : 0;
}

/* The floating-point exceptions that NumPy tells of; those of other threads are raised in the caller's. */
#define RMSP_WATCHED (FE_DIVBYZERO | FE_OVERFLOW | FE_UNDERFLOW | FE_INVALID)

/* Runs an operation over all leaves, which are so much work: above rmsp_grain on up to rmsp_thread_count() threads.
 * Results do not depend on the number of threads. */
void rmsp_plan_run(const rmsp_plan *plan, rmsp_op op, rmsp_work work);

/* The sum that RMSP_SUMSQ found for a leaf. */
double rmsp_leaf_sumsq(const rmsp_leaf *leaf);

/* The rmsp_work.bytes up to which a plan stays on one thread, and of which each further thread needs as many; with 0
 * all threads do their share, however little there is to do, for tests. And the elements of a span. */
extern size_t rmsp_grain;
#define RMSP_SPAN ((size_t)1 << 12)

/* The threads that large work may use: the limit if one is set, not 0, else what OpenMP gives now (OMP_NUM_THREADS,
 * threadpoolctl), or 1 without OpenMP. 1 where the system has no POSIX threads. */
int rmsp_thread_count(void);
void rmsp_set_thread_limit(int limit);
int rmsp_has_threads(void);
#define RMSP_MAX_THREADS 4096

/* Copies n elements of `size` bytes, 4 or 8, from one stride in bytes to another. */
void rmsp_copy_strided(size_t n, size_t size, char *to, ptrdiff_t to_stride, const char *from, ptrdiff_t from_stride);

/* Work on a contiguous block of n elements of each array. */
typedef void rmsp_block_fn(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context);

/* Elements [start, start + count) in the order of `layout`, RMSP_BLOCK at a time: gather what `in` has, work, scatter
 * what `out` has. in and out may be the same arrays: a block is read whole before any of it is written. */
void rmsp_strided_run(rmsp_dtype dtype, const rmsp_layout *layout, size_t start, size_t count,
                      const void *const in[RMSP_ARRAY_COUNT], void *const out[RMSP_ARRAY_COUNT], rmsp_block_fn *work,
                      void *context);

/* Instruction sets. Until rmsp_isa_init, called once and by one thread, there is only the baseline; after it,
 * those compiled in and present on this machine, best first, and the first one is active. */
void rmsp_isa_init(void);
int rmsp_isa_count(void);
const char *rmsp_isa_name(int index);
const char *rmsp_isa_active(void);
/* 0, or -1 where this machine has no instruction set of that name. */
int rmsp_isa_use(const char *name);

#endif
