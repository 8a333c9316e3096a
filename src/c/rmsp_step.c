/* rmsp_step.c: the transaction: non-finite gradients? accumulate, norms, clip, step, averages, counts.
 *
 * a) All that can stop a step comes before the first write; what follows cannot fail. The counts are written last, as
 *    atomics, since other threads may read them at any time.
 * b) Sums of squares are those of spans, added in the order of the spans and, for a common norm, of the leaves, so that
 *    they do not depend on threads.
 * c) A finite gradient's sum of squares can overflow, in float64 from 1e154 on. It is taken again then of numbers that
 *    are smaller by a power of two.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "rmsp_atomic.h"
#include "rmsp_isa.h"

/* Brings every finite sum of squares of doubles into range, and is exact. */
#define SMALLER 0x1p-600

static int has_grad(const rmsp_leaf *leaf) { return leaf->array[RMSP_GRAD] != NULL; }

/* ---- gradients that are not finite ---- */

typedef struct count_context {
    rmsp_nonfinite_fn *nonfinite;
    rmsp_widen_fn *widen; /* of a bfloat16 gradient, else NULL */
    size_t reals, count;
} count_context;

static void count_block(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context)
{
    count_context *const c = context;
    float wide[RMSP_BLOCK];
    if (c->widen == NULL) {
        c->count += c->nonfinite(n, array[RMSP_GRAD], c->reals);
        return;
    }
    for (size_t done = 0, count; done < n; done += count) {
        count = n - done < RMSP_BLOCK ? n - done : RMSP_BLOCK;
        c->widen(count, (const uint16_t *)array[RMSP_GRAD] + done, wide);
        c->count += c->nonfinite(count, wide, c->reals);
    }
}

/* Numbers of a gradient, complex or real, that are not finite. */
static rmsp_found count_nonfinite(const rmsp_plan *plan, size_t i)
{
    const rmsp_leaf *const leaf = &plan->leaves[i];
    const rmsp_extra *const extra = leaf->extra;
    assert(has_grad(leaf) && extra != NULL);
    const size_t reals = plan->slots[i].type & RMSP_PAIRS ? 2 : 1;
    const size_t n = leaf->n * (extra->rows.index != NULL ? extra->rows.count : 1);
    void *in[RMSP_ARRAY_COUNT] = {NULL}, *out[RMSP_ARRAY_COUNT] = {NULL};
    const rmsp_isa *const isa = rmsp_isa_active_table();
    const size_t size[RMSP_ARRAY_COUNT] = {[RMSP_GRAD] = rmsp_size_of(leaf, RMSP_GRAD)};
    count_context context = {isa->nonfinite[leaf->dtype], extra->grad16 ? isa->widen : NULL, reals, 0};
    in[RMSP_GRAD] = leaf->array[RMSP_GRAD];
    if (extra->grad_order.ndim == 0) {
        count_block(n, in, &context);
    } else {
        rmsp_strided_run(size, &extra->grad_order, 0, n, (const void *const *)in, out, count_block, &context);
    }
    return (rmsp_found){i, context.count, n / reals};
}

/* ---- sums of squares ---- */

static void sum_squares(const rmsp_plan *plan, rmsp_work work, double scale)
{
    rmsp_run(plan, RMSP_SUMSQ, scale, work);
    for (size_t i = 0; i < plan->leaf_count; i++) {
        rmsp_extra *const extra = &plan->extras[i];
        if (!has_grad(&plan->leaves[i])) continue;
        const size_t n = plan->leaves[i].n * (extra->rows.index != NULL ? extra->rows.count : 1);
        assert(plan->leaves[i].extra == extra); /* as binding leaves it where rules look at norms */
        extra->sumsq = 0;
        for (size_t span = 0; span * RMSP_SPAN < n; span++) extra->sumsq += extra->span_sums[span];
    }
}

static int finds_nonfinite(const rmsp_plan *plan, rmsp_found *found)
{
    sum_squares(plan, plan->work, 1);
    for (size_t i = 0; i < plan->leaf_count; i++) {
        if (!has_grad(&plan->leaves[i]) || isfinite(plan->extras[i].sumsq)) continue;
        *found = count_nonfinite(plan, i); /* none where only the sum overflowed */
        if (found->count > 0) return 1;
    }
    return 0;
}

/* The factor min(1, limit / norm) for a gradient to be multiplied by `scale`, and 1 where the norm is NaN. `smaller` is
 * the sum of squares of SMALLER times the gradient, read only where `sumsq` is infinite. The same operations in the
 * same order as clip_factor in reference.py. */
static double clip_factor(double sumsq, double smaller, double limit, double scale)
{
    const double size = fabs(scale);
    if (isinf(sumsq) && isfinite(smaller) && size > 0) {
        const double factor = limit / sqrt(smaller) / size * SMALLER;
        return factor < 1 ? factor : 1;
    }
    const double root = sqrt(sumsq), norm = size * root;
    if (isinf(norm) && isfinite(root)) return limit / root / size;
    return norm > limit ? limit / norm : 1;
}

/* Sets the factor on each gradient whose norm is over its limit. */
static void clip(rmsp_plan *plan, rmsp_work work)
{
    const double common = plan->rules.clip_global_norm;
    const int is_common = common != (double)INFINITY;
    double total = 0, smaller = 0;
    int overflows = 0;

    sum_squares(plan, work, 1);
    for (size_t i = 0; i < plan->leaf_count; i++) {
        if (!has_grad(&plan->leaves[i])) continue;
        total += plan->extras[i].sumsq;
        plan->extras[i].clip = plan->extras[i].sumsq;
        overflows |= !isfinite(plan->extras[i].sumsq);
    }
    overflows |= is_common && !isfinite(total);
    if (overflows) sum_squares(plan, work, SMALLER);
    for (size_t i = 0; i < plan->leaf_count; i++) {
        if (overflows && has_grad(&plan->leaves[i])) smaller += plan->extras[i].sumsq;
    }
    for (size_t i = 0; i < plan->leaf_count; i++) {
        rmsp_extra *const extra = &plan->extras[i];
        const rmsp_group *const group = &plan->groups[plan->leaves[i].group];
        if (!has_grad(&plan->leaves[i])) continue;
        extra->clip = is_common ? clip_factor(total, smaller, common, group->coef.grad_scale)
                                : clip_factor(extra->clip, extra->sumsq, group->clip_norm, group->coef.grad_scale);
    }
}

/* ---- accumulation ---- */

/* Makes the accumulated sums the gradients; how much work they are. The next binding gives leaves with layouts theirs
 * again. */
static rmsp_work take_sums(rmsp_plan *plan)
{
    for (size_t i = 0; i < plan->leaf_count; i++) {
        rmsp_leaf *const leaf = &plan->leaves[i];
        rmsp_extra *const extra = &plan->extras[i];
        leaf->array[RMSP_GRAD] = plan->counts->seen[i] ? extra->grad_sum : NULL;
        for (int axis = 0; axis < extra->layout.ndim; axis++) {
            extra->layout.axes[axis].stride[RMSP_GRAD] = extra->layout.axes[axis].stride[RMSP_GRAD_SUM];
        }
        extra->grad_order.ndim = extra->sum_order.ndim;
        for (int axis = 0; axis < extra->sum_order.ndim; axis++) {
            extra->grad_order.axes[axis] = extra->sum_order.axes[axis];
        }
    }
    return rmsp_plan_work(plan);
}

static void clear_sums(rmsp_plan *plan)
{
    for (size_t i = 0; i < plan->leaf_count; i++) {
        if (!plan->counts->seen[i]) continue;
        memset(plan->extras[i].grad_sum, 0, plan->slots[i].n * rmsp_dtypes[plan->leaves[i].dtype].size);
        plan->counts->seen[i] = 0;
    }
}

/* ---- the whole ---- */

RMSP_HOT rmsp_outcome rmsp_step(rmsp_plan *plan, rmsp_found *found)
{
    const rmsp_rules *const rules = &plan->rules;
    rmsp_counts *const counts = plan->counts;
    rmsp_work work = plan->work;

    assert(plan->bound && counts != NULL);
    assert(rules->nonfinite == RMSP_PROPAGATE || found != NULL);
    assert(rules->accumulate <= 1 || counts->seen != NULL);
    if (rules->nonfinite != RMSP_PROPAGATE && finds_nonfinite(plan, found)) {
        if (rules->nonfinite == RMSP_REPORT) return RMSP_NONFINITE;
        rmsp_store_int64(&counts->skipped, counts->skipped + 1);
        return RMSP_SKIPPED;
    }
    if (rules->accumulate > 1) {
        rmsp_run(plan, RMSP_ACCUMULATE, rules->grad_scale, work);
        for (size_t i = 0; i < plan->leaf_count; i++) counts->seen[i] |= has_grad(&plan->leaves[i]);
        rmsp_store_int64(&counts->accumulated, counts->accumulated + 1);
        if (counts->accumulated < rules->accumulate) return RMSP_ACCUMULATED;
        work = take_sums(plan);
    }
    for (size_t g = 0; g < plan->group_count; g++) {
        rmsp_group *const group = &plan->groups[g];
        if (!group->bias_correction) continue;
        group->coef.bias_correction = 1.0 / (1.0 - pow(group->coef.rho, (double)(counts->steps + 1)));
        rmsp_group_refresh(group);
    }
    if (rules->clips) clip(plan, work);
    rmsp_run(plan, RMSP_STEP, 1, work);
    if (rules->accumulate > 1) {
        clear_sums(plan);
        rmsp_store_int64(&counts->accumulated, 0);
    }
    rmsp_store_int64(&counts->steps, counts->steps + 1);
    return RMSP_STEPPED;
}
