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

#include <stddef.h>
#include <stdint.h>

typedef enum { RMSP_F32, RMSP_F64, RMSP_DTYPE_COUNT } rmsp_dtype;

typedef enum { RMSP_MOMENTUM_NONE, RMSP_MOMENTUM_CLASSIC, RMSP_MOMENTUM_NESTEROV } rmsp_momentum;

/* Every structural variant of the step, once: X(name, momentum, centered, l2).
 * The order is that of rmsp_variant_index. All other options are coefficients. */
#define RMSP_VARIANTS(X)                                 \
    X(plain, RMSP_MOMENTUM_NONE, 0, 0)                   \
    X(plain_l2, RMSP_MOMENTUM_NONE, 0, 1)                \
    X(centered, RMSP_MOMENTUM_NONE, 1, 0)                \
    X(centered_l2, RMSP_MOMENTUM_NONE, 1, 1)             \
    X(momentum, RMSP_MOMENTUM_CLASSIC, 0, 0)             \
    X(momentum_l2, RMSP_MOMENTUM_CLASSIC, 0, 1)          \
    X(momentum_centered, RMSP_MOMENTUM_CLASSIC, 1, 0)    \
    X(momentum_centered_l2, RMSP_MOMENTUM_CLASSIC, 1, 1) \
    X(nesterov, RMSP_MOMENTUM_NESTEROV, 0, 0)            \
    X(nesterov_l2, RMSP_MOMENTUM_NESTEROV, 0, 1)         \
    X(nesterov_centered, RMSP_MOMENTUM_NESTEROV, 1, 0)   \
    X(nesterov_centered_l2, RMSP_MOMENTUM_NESTEROV, 1, 1)

#define RMSP_VARIANT_COUNT 12

static inline int rmsp_variant_index(rmsp_momentum momentum, int centered, int l2)
{
    return (int)momentum * 4 + (centered != 0) * 2 + (l2 != 0);
}

/* The coefficients of one step, in double; a kernel rounds each once to its own type.
 * Neutral values: grad_scale 1, clip_value +inf, eps 0, bias_correction 1, shrink 1, lr_out 1. */
typedef struct rmsp_coef {
    double grad_scale;
    double clip_value;
    double weight_decay; /* read by the l2 variants only */
    double rho;
    double one_minus_rho;
    double bias_correction; /* 1 / (1 - rho**t), or 1 */
    double eps_inside;
    double eps_outside;
    double lr_in;
    double momentum;
    double shrink; /* 1 - lr * decay, decoupled weight decay */
    double lr_out;
} rmsp_coef;

/* One fused pass over n elements of contiguous arrays of one dtype. square_avg, and where the variant has
 * them momentum_buffer and grad_avg, are updated with param; arrays that a variant lacks are not read. */
typedef void rmsp_step_fn(size_t n, void *param, const void *grad, void *square_avg, void *momentum_buffer,
                          void *grad_avg, const rmsp_coef *coef);

/* What the leaves of a group share: the variant and the coefficients. */
typedef struct rmsp_group {
    int variant;
    rmsp_coef coef;
} rmsp_group;

enum { RMSP_PARAM, RMSP_GRAD, RMSP_SQUARE_AVG, RMSP_MOMENTUM_BUFFER, RMSP_GRAD_AVG, RMSP_ARRAY_COUNT };

/* How the arrays of a leaf lie in memory where they are not all dense in one order: axes from the slowest to
 * the fastest, strides in bytes. An array that the variant lacks has no strides that are read. */
#define RMSP_MAX_NDIM 65 /* 64 of NumPy, and the two reals of a complex number */
typedef struct rmsp_layout {
    int ndim;
    size_t shape[RMSP_MAX_NDIM];
    ptrdiff_t stride[RMSP_ARRAY_COUNT][RMSP_MAX_NDIM];
} rmsp_layout;

/* One parameter and what belongs to it. grad NULL: no gradient, nothing moves. */
typedef struct rmsp_leaf {
    void *array[RMSP_ARRAY_COUNT];
    size_t n;
    const rmsp_layout *layout; /* NULL: every array is dense in the same order */
    uint32_t group;
    uint32_t dtype;
} rmsp_leaf;

/* Steps every leaf with a gradient, on at most `threads` threads; small work stays on one. Results do not
 * depend on the number of threads. */
void rmsp_plan_run(const rmsp_leaf *leaves, size_t leaf_count, const rmsp_group *groups, int threads);

/* Elements below which a plan stays on one thread, and the elements of a span. */
extern size_t rmsp_grain;
#define RMSP_SPAN ((size_t)1 << 14)

/* Threads that OpenMP would use now (OMP_NUM_THREADS, threadpoolctl); 1 without OpenMP. */
int rmsp_max_threads(void);
int rmsp_has_openmp(void);

/* Elements [start, start + count) of a leaf in the order of `layout`, a block at a time: gather, step, scatter.
 * in and out may be the same arrays; an element's inputs are all read before any output of its block. */
void rmsp_strided_step(rmsp_step_fn *step, rmsp_dtype dtype, const rmsp_layout *layout, size_t start, size_t count,
                       const void *const in[RMSP_ARRAY_COUNT], void *const out[RMSP_ARRAY_COUNT],
                       const rmsp_coef *coef);

/* Instruction sets. Until rmsp_isa_init, called once and by one thread, there is only the baseline; after it,
 * those compiled in and present on this machine, best first, and the first one is active. */
void rmsp_isa_init(void);
int rmsp_isa_count(void);
const char *rmsp_isa_name(int index);
const char *rmsp_isa_active(void);
/* 0, or -1 where this machine has no instruction set of that name. */
int rmsp_isa_use(const char *name);
/* The compiled loop of a variant in the active instruction set. */
rmsp_step_fn *rmsp_step(rmsp_dtype dtype, int variant);

#endif
