/* transactions.h: any rules, any arrays, some steps: all of it as the twin does it. */
#ifndef TRANSACTIONS_H
#define TRANSACTIONS_H

#include "twin.h"

static inline void check_counts(const sample *s, int64_t steps, int64_t accumulated, int64_t skipped)
{
    CHECK(s->counts.steps == steps && s->counts.accumulated == accumulated && s->counts.skipped == skipped);
}

static inline void check_counts_of(const sample *s, const twin *t)
{
    check_counts(s, t->steps, t->accumulated, t->skipped);
}

static inline void set_random_rules(sample *s)
{
    rmsp_rules *const rules = &s->plan.rules;
    rules->nonfinite = (rmsp_nonfinite)below(3);
    rules->accumulate = below(2) ? 1 : (int64_t)(1 + below(3));
    rules->grad_scale = 1.0 / (double)rules->accumulate;
    rules->averages = (int)below(2);
    rules->seed = random_bits();
    s->has_bf16 = (int)below(2);
    s->is_split = (int)below(2);
    if (below(3) == 0) rules->clip_global_norm = 0.5;
    rules->clips = rules->clip_global_norm < (double)INFINITY;
    for (size_t g = 0; g < s->plan.group_count; g++) {
        random_group(&s->plan.groups[g]);
        s->plan.groups[g].bias_correction = (int)below(2);
        if (below(3) == 0) s->plan.groups[g].clip_norm = 0.25;
        rules->clips |= s->plan.groups[g].clip_norm < (double)INFINITY;
    }
}

static inline void set_any_grad(sample *s, size_t i)
{
    const size_t special = below(4) == 0 ? 100 : 0;
    if (below(5) == 0) {
        set_grad(s, i, NULL);
    } else if (s->plan.slots[i].ndim > 0 && s->plan.rules.accumulate == 1 && below(4) == 0) {
        set_row_grad(s, i, special);
    } else {
        set_new_grad(s, i, below(2) ? LIE_C : (lie)below(LIE_COUNT), special);
    }
    if (s->grads[i] != NULL && reals_in(&s->grads[i]->a) > 0 && below(8) == 0) {
        set_real(&s->grads[i]->a, 0, s->plan.leaves[i].dtype == RMSP_F64 ? 1e200 : 1e38);
    }
}

/* Some calls on leaves of at most so many elements each; counts their outcomes. */
static inline void random_transactions(size_t most_elements, int outcomes[4])
{
    const size_t leaf_count = 1 + below(4), group_count = 1 + below(2);
    sample *const s = new_sample(leaf_count, group_count);
    set_random_rules(s);
    for (size_t i = 0; i < leaf_count; i++) {
        ptrdiff_t shape[MAX_NDIM];
        const int ndim = random_shape(shape, most_elements);
        const int type = random_type(s, i, 4);
        array *const param = new_array(type, ndim, shape, below(2) ? LIE_C : (lie)below(LIE_BROADCAST));
        fill(&param->a, 0);
        set_leaf(s, i, param, (uint32_t)below(group_count), (int)below(2));
    }
    finish_sample(s);
    if (below(3) == 0) set_random_rates(s);
    twin *const t = new_twin(s);
    CHECK(rmsp_isa_use(rmsp_isa_name((int)below((size_t)rmsp_isa_count()))) == 0);
    rmsp_set_grain(below(2) ? 0 : (size_t)32 << 10);
    rmsp_set_thread_limit((int)(1 + below(3)));
    for (int call = 0; call < 5; call++) {
        rmsp_found found;
        for (size_t i = 0; i < leaf_count; i++) set_any_grad(s, i);
        must_bind(s);
        read_grads(t, s);
        const rmsp_outcome outcome = rmsp_step(&s->plan, &found);
        CHECK(outcome == twin_transaction(t, &s->plan));
        check_same(t, s);
        check_counts_of(s, t);
        outcomes[outcome]++;
    }
    free_twin(t);
    free_sample(s);
}

#endif
