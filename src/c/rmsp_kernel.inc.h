/* rmsp_kernel.inc.h: the loop around the formula, a template over the element type; and its companions.
 *
 * Parameters, defined by the includer and undefined here:
 *   T          the element type, float or double
 *   SQRT       its square root
 *   DTYPE      its place in the tables
 *   COEF       the struct of its coefficients
 *   NAME(x)    the symbol of x in this instantiation, e.g. rmsp_avx2_f32_ ## x
 *
 * momentum, centered, l2 and neutral are constants in every instance, so that the compiler removes the branches on
 * them; a flag known only at run time would prevent vectorisation, which costs 8x. With few kernels, rates of elements
 * are read by one loop for all of a structure, which computes both forms and chooses; the neutral ones, whose
 * floating-point exceptions ufuncs report, are as elsewhere.
 */
static RMSP_ALWAYS_INLINE void NAME(step)(const rmsp_momentum momentum, const int centered, const int l2_,
                                          const int neutral, const rmsp_each each, const size_t n, T *restrict param,
                                          const T *restrict grad, T *restrict square_avg, T *restrict momentum_buffer,
                                          T *restrict grad_avg, const void *const numbers_)
{
    static const rmsp_numbers none = {NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, 0};
    const rmsp_numbers numbers = each == RMSP_SAME ? none : *(const rmsp_numbers *)numbers_;
    const double *restrict const lrs = numbers.lr, *restrict const rhos = numbers.rho;
    const double *restrict const momenta = numbers.momentum, *restrict const eps_insides = numbers.eps_inside;
    const double *restrict const eps_outsides = numbers.eps_outside;
    const int has_momentum = momentum != RMSP_MOMENTUM_NONE;
    const int is_one_loop = RMSP_HAS_FEW_KERNELS && !neutral && each != RMSP_SAME;
    const T l2 = (T)(is_one_loop ? numbers.l2 : l2_);
    const T nesterov = (T)(is_one_loop ? has_momentum && numbers.nesterov : momentum == RMSP_MOMENTUM_NESTEROV);
    const T lr_outside = (T)(is_one_loop ? has_momentum && numbers.lr_outside
                                         : each == RMSP_LR_OUT_EACH || (each == RMSP_ALL_EACH && has_momentum));
    COEF c = *(const COEF *)(each == RMSP_SAME ? numbers_ : numbers.coef);

    for (size_t i = 0; i < n; i++) {
        if (each == RMSP_ALL_EACH) {
            c.rho = (T)rhos[i];
            c.one_minus_rho = (T)(1.0 - rhos[i]);
            c.eps_inside = (T)eps_insides[i];
            c.eps_outside = (T)eps_outsides[i];
            if (has_momentum) c.momentum = (T)momenta[i];
        }
        if (each != RMSP_SAME) {
            c.lr_in = lr_outside ? 1 : (T)lrs[i];
            c.lr_out = lr_outside ? (T)lrs[i] : 1;
            if (!neutral) c.shrink = (T)(1.0 - lrs[i] * numbers.decay);
        }

#define AT(array) array[i]
#include "rmsp_formula.inc.h"
#undef AT
    }
}

#if defined(RMSP_VECTOR_BYTES)
/* Elements [done, done + n), fewer than a vector: by the baseline. A remainder loop in each kernel would be half of the
 * code. */
static RMSP_ALWAYS_INLINE void NAME(rest)(const int variant, const int has_momentum, const int centered,
                                          const rmsp_each each, const size_t done, const size_t n, T *const param,
                                          const T *const grad, T *const square_avg, T *const momentum_buffer,
                                          T *const grad_avg, const void *numbers)
{
    rmsp_numbers rest;
    if (each != RMSP_SAME) {
        rest = *(const rmsp_numbers *)numbers;
        rest.lr += done;
        if (each == RMSP_ALL_EACH) {
            rest.rho += done;
            rest.eps_inside += done;
            rest.eps_outside += done;
            if (has_momentum) rest.momentum += done;
        }
        numbers = &rest;
    }
    rmsp_isa_baseline.step[DTYPE][variant](n, param + done, grad + done, square_avg + done,
                                           has_momentum ? momentum_buffer + done : NULL,
                                           centered ? grad_avg + done : NULL, numbers);
}
#endif

/* A kernel: whole vectors here, the rest by the baseline. With AVX-512 most rates of elements, which are rare, are
 * stepped by the kernels of AVX2: that saves code. */
static RMSP_ALWAYS_INLINE void NAME(step_all)(const int variant, const rmsp_momentum momentum, const int centered,
                                              const int l2, const int neutral, const rmsp_each each, const size_t n,
                                              T *const param, const T *const grad, T *const square_avg,
                                              T *const momentum_buffer, T *const grad_avg, const void *const numbers)
{
#if !defined(RMSP_VECTOR_BYTES)
    (void)variant;
    NAME(step)(momentum, centered, l2, neutral, each, n, param, grad, square_avg, momentum_buffer, grad_avg, numbers);
#else
    const size_t whole = n & ~(RMSP_VECTOR_BYTES / sizeof(T) - 1);
#if defined(RMSP_RATES_OF_AVX2)
    if (each != RMSP_SAME && (!neutral || each == RMSP_ALL_EACH)) {
        rmsp_isa_avx2.step[DTYPE][variant](n, param, grad, square_avg, momentum_buffer, grad_avg, numbers);
        return;
    }
#endif
    if (whole > 0)
        NAME(step)(momentum, centered, l2, neutral, each, whole, param, grad, square_avg, momentum_buffer, grad_avg,
                   numbers);
    if (n > whole)
        NAME(rest)(variant, momentum != RMSP_MOMENTUM_NONE, centered, each, whole, n - whole, param, grad, square_avg,
                   momentum_buffer, grad_avg, numbers);
#endif
}

#define RMSP_DEFINE(variant, momentum, centered, l2, neutral, each)                                                    \
    static void NAME(step_##variant)(size_t n, void *param, const void *grad, void *square_avg, void *momentum_buffer, \
                                     void *grad_avg, const void *numbers)                                              \
    {                                                                                                                  \
        NAME(step_all)(RMSP_VARIANT_##variant, momentum, centered, l2, neutral, each, n, param, grad, square_avg,      \
                       momentum_buffer, grad_avg, numbers);                                                            \
    }
RMSP_VARIANTS(RMSP_DEFINE)
#undef RMSP_DEFINE

static double NAME(sumsq)(const size_t n, const void *const x_, const double scale)
{
    const T *const x = x_;
    double total = 0;
    for (size_t block = 0; block < n; block += RMSP_BLOCK) {
        const size_t count = n - block < RMSP_BLOCK ? n - block : RMSP_BLOCK;
        double lane[RMSP_LANES] = {0};
        size_t i = 0;
        for (; i + RMSP_LANES <= count; i += RMSP_LANES) {
            for (size_t k = 0; k < RMSP_LANES; k++) {
                const double scaled = scale * (double)x[block + i + k];
                lane[k] += scaled * scaled;
            }
        }
        for (size_t k = 0; i + k < count; k++) {
            const double scaled = scale * (double)x[block + i + k];
            lane[k] += scaled * scaled;
        }
        double eight[8], four[4];
        for (size_t k = 0; k < 8; k++) eight[k] = lane[k] + lane[k + 8];
        for (size_t k = 0; k < 4; k++) four[k] = eight[k] + eight[k + 4];
        total += (four[0] + four[2]) + (four[1] + four[3]);
    }
    return total;
}

static void NAME(lerp)(const size_t n, void *const y_, const void *const x_, const double a_, const double b_)
{
    T *restrict const y = y_;
    const T *restrict const x = x_;
    const T a = (T)a_, b = (T)b_;
    for (size_t i = 0; i < n; i++) y[i] = a * y[i] + b * x[i];
}

static size_t NAME(nonfinite)(const size_t n, const void *const x_, const size_t reals)
{
    const T *const x = x_;
    size_t count = 0;
    for (size_t i = 0; i < n; i += reals) count += !isfinite(x[i]) || !isfinite(x[i + reals - 1]);
    return count;
}

#undef T
#undef SQRT
#undef COEF
#undef DTYPE
#undef NAME
