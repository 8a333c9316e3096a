/* test_step.c: the transaction: its outcome, its counts, what it writes and what it does not. */
#include "transactions.h"

/* Some leaves of one type and shape, whose rules and groups are set next. */
static sample *plain_sample(size_t leaf_count, int type, ptrdiff_t n)
{
    sample *const s = new_sample(leaf_count, leaf_count);
    for (size_t i = 0; i < leaf_count; i++) {
        array *const param = new_array(type, 1, &n, LIE_C);
        fill(&param->a, 0);
        set_leaf(s, i, param, (uint32_t)i, 0);
    }
    return s;
}

static void set_all(array *a, double x)
{
    for (size_t e = 0; e < reals_in(&a->a); e++) set_real(&a->a, e, x);
}

static void give_grads(sample *s)
{
    for (size_t i = 0; i < s->plan.leaf_count; i++) set_new_grad(s, i, LIE_C, 0);
}

/* Skipping and reporting write nothing, however late the number that is not finite comes. */
static void test_nonfinite(void)
{
    static const double bad[] = {NAN, INFINITY, -INFINITY};
    for (int round = 0; round < 12; round++) {
        const int skips = round % 2;
        sample *const s = plain_sample(3, round % 4 < 2 ? RMSP_F32 : RMSP_F64, 5000);
        rmsp_found found = {0, 0, 0};
        s->plan.rules.nonfinite = skips ? RMSP_SKIP : RMSP_REPORT;
        s->plan.rules.averages = 1;
        s->plan.rules.accumulate = round < 6 ? 1 : 3;
        finish_sample(s);
        set_random_rates(s);
        give_grads(s);
        set_real(&s->grads[2]->a, 4999, bad[round % 3]);
        set_real(&s->grads[2]->a, 4100, bad[round % 3]);
        must_bind(s);
        twin *const before = new_twin(s);
        const rmsp_outcome outcome = rmsp_step(&s->plan, &found);
        CHECK(outcome == (skips ? RMSP_SKIPPED : RMSP_NONFINITE));
        CHECK(found.leaf == 2 && found.count == 2 && found.size == 5000);
        check_same(before, s);
        check_counts(s, 0, 0, skips);
        for (size_t i = 0; i < 3; i++) CHECK(!s->counts.seen[i]);
        set_real(&s->grads[2]->a, 4999, 1);
        set_real(&s->grads[2]->a, 4100, 1);
        must_bind(s);
        CHECK(rmsp_step(&s->plan, &found) == (round < 6 ? RMSP_STEPPED : RMSP_ACCUMULATED));
        free_twin(before);
        free_sample(s);
    }
}

/* A number is complex or real, and is counted once; rows and strides are found in their order. */
static void test_nonfinite_counts(void)
{
    const ptrdiff_t shape[] = {6, 200};
    static const lie hows[] = {LIE_C, LIE_F, LIE_STRIDED, LIE_REVERSED};
    for (int round = 0; round < 10; round++) {
        const int pairs = round % 2, rows = round >= 8;
        sample *const s = new_sample(1, 1);
        rmsp_found found;
        s->plan.rules.nonfinite = RMSP_REPORT;
        set_leaf(s, 0, new_array(RMSP_F32 | (pairs ? RMSP_PAIRS : 0), 2, shape, LIE_C), 0, 0);
        finish_sample(s);
        if (rows) {
            do set_row_grad(s, 0, 0);
            while (s->grad_list[0].row_count == 0);
        } else {
            set_new_grad(s, 0, hows[round / 2], 0);
        }
        for (size_t e = 2; e < 6; e++) set_real(&s->grads[0]->a, e, NAN); /* two complex numbers, or four real ones */
        must_bind(s);
        CHECK(rmsp_step(&s->plan, &found) == RMSP_NONFINITE);
        CHECK(found.leaf == 0 && found.count == (pairs ? 2 : 4));
        CHECK(found.size == 200 * (rows ? s->grad_list[0].row_count : 6));
        free_sample(s);
    }
}

/* bfloat16 gradients are looked at in blocks. */
static void test_nonfinite_in_bfloat16(void)
{
    enum { N = 2 * RMSP_BLOCK + 5 };
    static const ptrdiff_t shape[] = {N};
    static const size_t places[] = {1, RMSP_BLOCK, N - 1};
    sample *const s = new_sample(1, 1);
    rmsp_found found;
    s->plan.rules.nonfinite = RMSP_REPORT;
    set_leaf(s, 0, new_array(RMSP_F32, 1, shape, LIE_C), 0, 0);
    finish_sample(s);
    set_grad(s, 0, new_array(RMSP_BF16, 1, shape, LIE_C));
    for (size_t e = 0; e < N; e++) set_real(&s->grads[0]->a, e, 1);
    for (size_t k = 0; k < 3; k++) set_real(&s->grads[0]->a, places[k], INFINITY);
    must_bind(s);
    CHECK(rmsp_step(&s->plan, &found) == RMSP_NONFINITE);
    CHECK(found.leaf == 0 && found.count == 3 && found.size == N);
    free_sample(s);
}

/* The sum of the squares of finite float64 numbers may overflow: that is no reason to skip. */
static void test_overflow_is_finite(void)
{
    sample *const s = plain_sample(1, RMSP_F64, 3);
    rmsp_found found;
    s->plan.rules.nonfinite = RMSP_SKIP;
    finish_sample(s);
    give_grads(s);
    set_all(s->grads[0], 1e200);
    must_bind(s);
    CHECK(rmsp_step(&s->plan, &found) == RMSP_STEPPED);
    check_counts(s, 1, 0, 0);
    free_sample(s);
}

/* The factor that clipping took, from the gradient of one leaf. */
static double clipped(double size, ptrdiff_t n, double grad_scale, double own, double common)
{
    sample *const s = plain_sample(1, RMSP_F64, n);
    rmsp_found found;
    s->plan.rules.clips = 1;
    s->plan.rules.clip_global_norm = common;
    s->plan.groups[0].clip_norm = own;
    s->plan.groups[0].coef.grad_scale = grad_scale;
    finish_sample(s);
    give_grads(s);
    set_all(s->grads[0], size);
    must_bind(s);
    CHECK(rmsp_step(&s->plan, &found) == RMSP_STEPPED);
    const double factor = s->plan.extras[0].clip;
    free_sample(s);
    return factor;
}

static int near(double one, double other) { return fabs(one - other) <= 4e-16 * fabs(other); }

static void test_clip_factors(void)
{
    for (int is_common = 0; is_common < 2; is_common++) {
#define FACTOR(size, n, scale, limit) \
    clipped(size, n, scale, is_common ? INFINITY : limit, is_common ? limit : INFINITY)
        CHECK(FACTOR(3, 4, 1, 6) == 1); /* at the limit */
        CHECK(FACTOR(3, 4, 1, 3) == 0.5);
        CHECK(FACTOR(3, 4, -2, 3) == 0.25); /* the norm is that of the scaled gradient */
        CHECK(FACTOR(0, 4, 1, 1) == 1);
        CHECK(FACTOR(3, 4, 0, 1) == 1);
        CHECK(FACTOR(NAN, 4, 1, 1) == 1);
        CHECK(FACTOR(INFINITY, 4, 1, 1) == 0);
        CHECK(near(FACTOR(1e200, 4, 1, 1), 0.5e-200)); /* the sum of squares overflows */
        CHECK(near(FACTOR(1e200, 4, 1e-200, 1), 0.5));
        CHECK(FACTOR(1e200, 4, 1e-201, 1) == 1);
        CHECK(FACTOR(1e200, 4, 0.4e-200, 1) == 1); /* just below the limit */
        CHECK(near(FACTOR(1e300, 4, 1, 1), 0.5e-300));
        CHECK(near(FACTOR(1e150, 4, 1e200, 1e100), 0.5e-250)); /* the norm does, but not the sum */
    }
}

/* The norm of all leaves overflows though none of theirs does; each leaf gets the same factor. A leaf that has no
 * gradient in the second step does not count with its earlier one. */
static void test_common_norm_overflows(void)
{
    sample *const s = plain_sample(4, RMSP_F64, 1);
    rmsp_found found;
    s->plan.rules.clips = 1;
    s->plan.rules.clip_global_norm = 1;
    finish_sample(s);
    give_grads(s);
    for (size_t i = 0; i < 4; i++) set_all(s->grads[i], 1e154);
    must_bind(s);
    CHECK(rmsp_step(&s->plan, &found) == RMSP_STEPPED);
    for (size_t i = 0; i < 4; i++) CHECK(near(s->plan.extras[i].clip, 0.5e-154));
    s->grad_list[3] = absent_array;
    must_bind(s);
    CHECK(rmsp_step(&s->plan, &found) == RMSP_STEPPED);
    for (size_t i = 0; i < 3; i++) CHECK(near(s->plan.extras[i].clip, 1e-154 / sqrt(3)));
    free_sample(s);
}

/* 1 / (1 - rho**t): t is the number of the step, and neither of calls that accumulate nor of those that skip. */
static void test_bias_correction(void)
{
    sample *const s = plain_sample(1, RMSP_F32, 4);
    rmsp_found found;
    s->plan.groups[0].bias_correction = 1;
    s->plan.rules.accumulate = 2;
    s->plan.rules.nonfinite = RMSP_SKIP;
    finish_sample(s);
    s->counts.steps = 4;
    for (int call = 0; call < 6; call++) {
        give_grads(s);
        if (call % 3 == 0) set_all(s->grads[0], NAN);
        must_bind(s);
        CHECK(rmsp_step(&s->plan, &found) == (call % 3 == 0   ? RMSP_SKIPPED
                                              : call % 3 == 1 ? RMSP_ACCUMULATED
                                                              : RMSP_STEPPED));
        if (call % 3 != 2) continue;
        const double step = (double)(5 + call / 3);
        CHECK(s->plan.groups[0].coef.bias_correction == 1.0 / (1.0 - pow(0.9, step)));
        CHECK(s->plan.groups[0].coef_f32.bias_correction == (float)s->plan.groups[0].coef.bias_correction);
    }
    check_counts(s, 6, 0, 2);
    free_sample(s);
}

/* The first step copies the weights into the averages, whatever they were and whatever the decay. */
static void test_averages(void)
{
    sample *const s = plain_sample(1, RMSP_F32, 1000);
    rmsp_found found;
    s->plan.rules.averages = 1;
    s->plan.groups[0].ema = 0.75;
    finish_sample(s);
    for (size_t e = 0; e < 1000; e++) ((float *)s->plan.extras[0].ema)[e] = (float)e;
    give_grads(s);
    for (int step = 0; step < 2; step++) {
        float old[1000];
        memcpy(old, s->plan.extras[0].ema, sizeof old);
        must_bind(s);
        CHECK(rmsp_step(&s->plan, &found) == RMSP_STEPPED);
        for (size_t e = 0; e < 1000; e++) {
            const float p = (float)get_real(&s->params[0]->a, e);
            CHECK(((float *)s->plan.extras[0].ema)[e] == (step == 0 ? p : 0.75f * old[e] + 0.25f * p));
        }
    }
    free_sample(s);
}

/* A leaf that had a gradient in one of the calls is stepped by their sum; one that had none does not move. */
static void test_accumulation(void)
{
    sample *const s = plain_sample(3, RMSP_F64, 4);
    rmsp_found found;
    s->plan.rules.accumulate = 2;
    s->plan.rules.grad_scale = 0.5;
    finish_sample(s);
    twin *const t = new_twin(s);
    for (int call = 0; call < 4; call++) {
        for (size_t i = 0; i < 3; i++) set_grad(s, i, NULL);
        set_new_grad(s, (size_t)call % 2, LIE_C, 0);
        must_bind(s);
        read_grads(t, s);
        const rmsp_outcome outcome = rmsp_step(&s->plan, &found);
        CHECK(outcome == (call % 2 == 0 ? RMSP_ACCUMULATED : RMSP_STEPPED));
        CHECK(twin_transaction(t, &s->plan) == outcome);
        check_same(t, s);
        check_counts_of(s, t);
        CHECK(s->counts.seen[0] == (call % 2 == 0) && !s->counts.seen[1] && !s->counts.seen[2]);
        for (size_t i = 0; i < 3 && call % 2 == 1; i++) {
            for (int e = 0; e < 4; e++) CHECK(((double *)s->plan.extras[i].grad_sum)[e] == 0);
        }
    }
    free_twin(t);
    free_sample(s);
}

static void test_random_transactions(void)
{
    int outcomes[4] = {0, 0, 0, 0};
    for (int round = 0; round < 400; round++) random_transactions(round % 20 == 0 ? 10000 : 200, outcomes);
    for (int k = 0; k < 4; k++) CHECK(outcomes[k] > 20);
}

int main(void)
{
    rmsp_isa_init();
    test_nonfinite();
    test_nonfinite_counts();
    test_nonfinite_in_bfloat16();
    test_overflow_is_finite();
    test_clip_factors();
    test_common_norm_overflows();
    test_bias_correction();
    test_averages();
    test_accumulation();
    test_random_transactions();
    return 0;
}
