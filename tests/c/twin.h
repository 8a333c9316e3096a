/* twin.h: a step done again: one element after another, in the plainest way, to the same bits.
 *
 * The twin of a plan has its arrays in C order and as doubles, which hold every float. A parameter in two halves is one
 * number there.
 */
#ifndef TWIN_H
#define TWIN_H

#include "plans.h"

typedef struct twin_leaf {
    double *array[RMSP_ARRAY_COUNT];
    unsigned char *has_grad; /* each element */
    double *lr;              /* each element's own, or NULL */
    size_t n;
} twin_leaf;

typedef struct twin {
    twin_leaf *leaves;
    size_t leaf_count;
    int64_t steps, accumulated, skipped;
    unsigned char *seen;
} twin;

/* Whether array k of a leaf is kept in the sample, and not as a part of the parameter. */
static inline int has_own(const sample *s, size_t i, int k)
{
    return k == RMSP_PARAM || (k != RMSP_GRAD && k != RMSP_LOW_HALF && has_state(s, i, k));
}

/* A number of its two halves, and a number that has only the upper one, rounded to the nearest. */
static inline double joined(float upper, uint16_t lower)
{
    const uint32_t bits = rmsp_bits_of(upper);
    const int32_t counts = rmsp_lower_beside((uint16_t)(bits >> 16), lower);
    return (double)rmsp_join(bits, counts < 0x8000 ? counts : counts - 0x10000);
}

static inline float nearest(float x)
{
    const uint32_t bits = rmsp_bits_of(x);
    return rmsp_from_bf16(rmsp_nearest((uint16_t)(bits >> 16), (uint16_t)bits));
}

static inline double get_param(const sample *s, size_t i, size_t e)
{
    const rmsp_array low = state_of(s, i, RMSP_LOW_HALF);
    const double upper = get_real(&s->params[i]->a, e);
    if (!has_state(s, i, RMSP_LOW_HALF)) return upper;
    return joined((float)upper, (uint16_t)get_real(&low, e));
}

static inline void set_param(const sample *s, size_t i, size_t e, double x)
{
    const rmsp_array low = state_of(s, i, RMSP_LOW_HALF);
    if (has_state(s, i, RMSP_LOW_HALF)) {
        set_real(&low, e, (double)(rmsp_bits_of((float)x) & 0xffffu));
        x = (double)nearest((float)x);
    }
    set_real(&s->params[i]->a, e, x);
}

/* The arrays of a sample as they are. */
static inline twin *new_twin(const sample *s)
{
    twin *const t = allocate(1, sizeof *t);
    t->leaf_count = s->plan.leaf_count;
    t->leaves = allocate(t->leaf_count, sizeof *t->leaves);
    t->seen = allocate(t->leaf_count, 1);
    for (size_t i = 0; i < t->leaf_count; i++) {
        twin_leaf *const leaf = &t->leaves[i];
        leaf->n = s->plan.slots[i].n;
        leaf->has_grad = allocate(leaf->n, 1);
        if (s->rates[i] != NULL) {
            const rmsp_array square_avg = state_of(s, i, RMSP_SQUARE_AVG);
            leaf->lr = allocate(leaf->n, sizeof(double));
            for (size_t e = 0; e < leaf->n; e++) {
                const ptrdiff_t place = (char *)place_of(&square_avg, e) - (char *)square_avg.data;
                leaf->lr[e] = s->rates[i][(size_t)place / size_of_real(square_avg.type) / s->plan.extras[i].lr_run];
            }
        }
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
            const rmsp_array a = k == RMSP_PARAM ? s->params[i]->a : state_of(s, i, k);
            leaf->array[k] = allocate(leaf->n, sizeof(double));
            for (size_t e = 0; has_own(s, i, k) && e < leaf->n; e++) {
                leaf->array[k][e] = k == RMSP_PARAM ? get_param(s, i, e) : get_real(&a, e);
            }
        }
    }
    return t;
}

static inline void free_twin(twin *t)
{
    for (size_t i = 0; i < t->leaf_count; i++) {
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) free(t->leaves[i].array[k]);
        free(t->leaves[i].has_grad);
        free(t->leaves[i].lr);
    }
    free(t->leaves);
    free(t->seen);
    free(t);
}

/* Takes over the gradients of a sample. */
static inline void read_grads(twin *t, const sample *s)
{
    for (size_t i = 0; i < t->leaf_count; i++) {
        twin_leaf *const leaf = &t->leaves[i];
        const rmsp_array *const grad = &s->grad_list[i];
        memset(leaf->has_grad, 0, leaf->n);
        if (grad->problem == RMSP_ABSENT || leaf->n == 0) continue;
        const size_t row = grad->rows == NULL ? leaf->n : leaf->n / (size_t)s->plan.slots[i].shape[0];
        for (size_t e = 0, n = reals_in(grad); e < n; e++) {
            const size_t to = grad->rows == NULL ? e : (size_t)grad->rows[e / row] * row + e % row;
            leaf->array[RMSP_GRAD][to] = get_real(grad, e);
            leaf->has_grad[to] = 1;
        }
    }
}

/* Writes parameters and state back into the sample. */
static inline void write_sample(const twin *t, sample *s)
{
    for (size_t i = 0; i < t->leaf_count; i++) {
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
            const rmsp_array a = k == RMSP_PARAM ? s->params[i]->a : state_of(s, i, k);
            for (size_t e = 0; has_own(s, i, k) && e < t->leaves[i].n; e++) {
                const double x = t->leaves[i].array[k][e];
                if (k == RMSP_PARAM) {
                    set_param(s, i, e, x);
                } else {
                    set_real(&a, e, x);
                }
            }
        }
    }
}

static inline void check_same(const twin *t, const sample *s)
{
    for (size_t i = 0; i < t->leaf_count; i++) {
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
            const rmsp_array a = k == RMSP_PARAM ? s->params[i]->a : state_of(s, i, k);
            for (size_t e = 0; has_own(s, i, k) && e < t->leaves[i].n; e++) {
                const double x = k == RMSP_PARAM ? get_param(s, i, e) : get_real(&a, e);
                CHECK(same_bits(x, t->leaves[i].array[k][e]));
            }
        }
    }
}

/* ---- the formula, for each arithmetic type ---- */

#define DEFINE_FORMULA(T, ROOT)                                                                          \
    static inline void T##_step(const rmsp_group *group, double clip, double *const x[RMSP_STEP_ARRAYS]) \
    {                                                                                                    \
        const rmsp_coef *const c = &group->coef;                                                         \
        const T limit = (T)c->clip_value, rho = (T)c->rho, rest = (T)c->one_minus_rho;                   \
        const T correction = (T)c->bias_correction, momentum = (T)c->momentum;                           \
        const T p = (T) * x[RMSP_PARAM];                                                                 \
        T g = (T)(c->grad_scale * clip) * (T) * x[RMSP_GRAD];                                            \
        if (g > limit) g = limit;                                                                        \
        if (g < -limit) g = -limit;                                                                      \
        if (group->l2) g = g + (T)c->weight_decay * p;                                                   \
        const T v = rho * (T) * x[RMSP_SQUARE_AVG] + (rest * g) * g;                                     \
        T d = correction * v;                                                                            \
        if (group->centered) {                                                                           \
            const T a = rho * (T) * x[RMSP_GRAD_AVG] + rest * g;                                         \
            const T mean = correction * a;                                                               \
            d = d - mean * mean;                                                                         \
            if (d < 0) d = 0;                                                                            \
            *x[RMSP_GRAD_AVG] = (double)a;                                                               \
        }                                                                                                \
        T u = ((T)c->lr_in * g) / (ROOT(d + (T)c->eps_inside) + (T)c->eps_outside);                      \
        if (group->momentum != RMSP_MOMENTUM_NONE) {                                                     \
            const T b = momentum * (T) * x[RMSP_MOMENTUM_BUFFER] + u;                                    \
            u = group->momentum == RMSP_MOMENTUM_NESTEROV ? u + momentum * b : b;                        \
            *x[RMSP_MOMENTUM_BUFFER] = (double)b;                                                        \
        }                                                                                                \
        *x[RMSP_SQUARE_AVG] = (double)v;                                                                 \
        *x[RMSP_PARAM] = (double)((T)c->shrink * p - (T)c->lr_out * u);                                  \
    }                                                                                                    \
    static inline void T##_lerp(double *y, double x, double a, double b)                                 \
    {                                                                                                    \
        *y = (double)((T)a * (T) * y + (T)b * (T)x);                                                     \
    }
DEFINE_FORMULA(float, sqrtf)
DEFINE_FORMULA(double, sqrt)
#undef DEFINE_FORMULA

static inline void lerp(uint32_t dtype, double *y, double x, double a, double b)
{
    if (dtype == RMSP_F32) {
        float_lerp(y, x, a, b);
    } else {
        double_lerp(y, x, a, b);
    }
}

/* Rounds what is bfloat16 as element e of leaf i is stored. */
static inline void round_stored(const rmsp_plan *plan, int64_t steps, size_t i, size_t e, double *param,
                                double *square_avg)
{
    const rmsp_extra *const extra = &plan->extras[i];
    const uint32_t stream = rmsp_stream(plan->rules.seed, (uint64_t)steps, i);
    const uint32_t random = rmsp_random(stream, e), swapped = (random & 0xff) << 8 | random >> 8;
    if (extra->avg16) *square_avg = (double)rmsp_from_bf16(rmsp_to_bf16((float)*square_avg, random));
    if (plan->slots[i].type != RMSP_BF16) return;
    if (extra->low_half == NULL) {
        *param = (double)rmsp_from_bf16(rmsp_to_bf16((float)*param, swapped));
    } else {
        *param = joined(nearest((float)*param), (uint16_t)rmsp_bits_of((float)*param));
    }
}

/* RMSP_STEP over all leaves after so many steps; `clips` has a factor for each, or is NULL. */
static inline void twin_step(twin *t, const rmsp_plan *plan, const double *clips, int64_t steps)
{
    for (size_t i = 0; i < t->leaf_count; i++) {
        twin_leaf *const leaf = &t->leaves[i];
        const uint32_t dtype = plan->leaves[i].dtype;
        rmsp_group changed = plan->groups[plan->leaves[i].group];
        const rmsp_group *const group = &changed;
        for (size_t e = 0; e < leaf->n; e++) {
            double *x[RMSP_STEP_ARRAYS];
            if (!leaf->has_grad[e]) continue;
            if (leaf->lr != NULL) rmsp_group_set_rate(&changed, leaf->lr[e]);
            for (int k = 0; k < RMSP_STEP_ARRAYS; k++) x[k] = &leaf->array[k][e];
            (dtype == RMSP_F32 ? float_step : double_step)(group, clips == NULL ? 1 : clips[i], x);
            round_stored(plan, steps, i, e, x[RMSP_PARAM], x[RMSP_SQUARE_AVG]);
            if (!plan->rules.averages) continue;
            const double decay = steps == 0 ? 0 : group->ema;
            lerp(dtype, &leaf->array[RMSP_EMA][e], leaf->array[RMSP_PARAM][e], decay, 1.0 - decay);
        }
    }
}

/* RMSP_ACCUMULATE. */
static inline void twin_accumulate(twin *t, const rmsp_plan *plan, double scale)
{
    for (size_t i = 0; i < t->leaf_count; i++) {
        twin_leaf *const leaf = &t->leaves[i];
        for (size_t e = 0; e < leaf->n; e++) {
            if (!leaf->has_grad[e]) continue;
            lerp(plan->leaves[i].dtype, &leaf->array[RMSP_GRAD_SUM][e], leaf->array[RMSP_GRAD][e], 1, scale);
        }
    }
}

/* The sum of the squares of scale * x, in the order that rmsp_sumsq_fn promises and in spans. */
static inline double twin_sumsq(const twin_leaf *leaf, double scale)
{
    double *const x = allocate(leaf->n, sizeof *x), total = 0, span = 0;
    size_t n = 0;
    for (size_t e = 0; e < leaf->n; e++) {
        if (leaf->has_grad[e]) x[n++] = scale * leaf->array[RMSP_GRAD][e];
    }
    for (size_t block = 0; block < n; block += RMSP_BLOCK) {
        double lane[RMSP_LANES] = {0};
        for (size_t e = block; e < n && e < block + RMSP_BLOCK; e++) lane[e % RMSP_LANES] += x[e] * x[e];
        for (size_t half = RMSP_LANES / 2; half > 0; half /= 2) {
            for (size_t k = 0; k < half; k++) lane[k] += lane[k + half];
        }
        span += lane[0];
        if ((block + RMSP_BLOCK) % RMSP_SPAN == 0 || block + RMSP_BLOCK >= n) {
            total += span;
            span = 0;
        }
    }
    free(x);
    return total;
}

static inline int twin_has_grad(const twin_leaf *leaf) { return leaf->n > 0 && memchr(leaf->has_grad, 1, leaf->n); }

/* min(1, limit / norm) of a gradient times `scale`; see rmsp_step.c for the scaled sum. */
static inline double twin_clip(double sumsq, double scaled, double limit, double scale)
{
    const double size = fabs(scale), norm = size * sqrt(sumsq);
    if (isinf(sumsq) && isfinite(scaled) && size > 0) return fmin(1, limit / sqrt(scaled) / size * 0x1p-600);
    if (isinf(norm) && isfinite(sqrt(sumsq))) return limit / sqrt(sumsq) / size;
    return norm > limit ? limit / norm : 1;
}

/* The whole transaction, as rmsp_step does it. */
static inline rmsp_outcome twin_transaction(twin *t, rmsp_plan *plan)
{
    const rmsp_rules *const rules = &plan->rules;
    double *const clips = allocate(t->leaf_count, sizeof *clips), total = 0, total_scaled = 0;
    rmsp_outcome outcome = RMSP_STEPPED;
    for (size_t i = 0; i < t->leaf_count && rules->nonfinite != RMSP_PROPAGATE; i++) {
        for (size_t e = 0; e < t->leaves[i].n; e++) {
            if (!t->leaves[i].has_grad[e] || isfinite(t->leaves[i].array[RMSP_GRAD][e])) continue;
            outcome = rules->nonfinite == RMSP_SKIP ? RMSP_SKIPPED : RMSP_NONFINITE;
        }
    }
    if (outcome == RMSP_SKIPPED) t->skipped++;
    if (outcome == RMSP_STEPPED && rules->accumulate > 1) {
        twin_accumulate(t, plan, rules->grad_scale);
        for (size_t i = 0; i < t->leaf_count; i++) t->seen[i] |= twin_has_grad(&t->leaves[i]);
        if (++t->accumulated < rules->accumulate) outcome = RMSP_ACCUMULATED;
        for (size_t i = 0; i < t->leaf_count && outcome == RMSP_STEPPED; i++) {
            twin_leaf *const leaf = &t->leaves[i];
            memset(leaf->has_grad, t->seen[i], leaf->n);
            for (size_t e = 0; e < leaf->n; e++) {
                leaf->array[RMSP_GRAD][e] = leaf->array[RMSP_GRAD_SUM][e];
                leaf->array[RMSP_GRAD_SUM][e] = 0;
            }
            t->seen[i] = 0;
        }
    }
    if (outcome == RMSP_STEPPED) {
        t->accumulated = 0;
        for (size_t g = 0; g < plan->group_count; g++) {
            rmsp_coef *const c = &plan->groups[g].coef;
            if (!plan->groups[g].bias_correction) continue;
            c->bias_correction = 1.0 / (1.0 - pow(c->rho, (double)(t->steps + 1)));
        }
        for (size_t i = 0; i < t->leaf_count; i++) {
            total += twin_sumsq(&t->leaves[i], 1);
            total_scaled += twin_sumsq(&t->leaves[i], 0x1p-600);
        }
        for (size_t i = 0; i < t->leaf_count; i++) {
            const rmsp_group *const group = &plan->groups[plan->leaves[i].group];
            const double scale = group->coef.grad_scale;
            clips[i] = rules->clip_global_norm < (double)INFINITY
                           ? twin_clip(total, total_scaled, rules->clip_global_norm, scale)
                           : twin_clip(twin_sumsq(&t->leaves[i], 1), twin_sumsq(&t->leaves[i], 0x1p-600),
                                       group->clip_norm, scale);
        }
        twin_step(t, plan, rules->clips ? clips : NULL, t->steps);
        t->steps++;
    }
    free(clips);
    return outcome;
}

#endif
