/* test_plan.c: one operation over the spans of a plan: the same bits on any number of threads and instruction set. */
#include "twin.h"

static const size_t default_grain = (size_t)32 << 10;

/* Leaves of all kinds, bound, with gradients; averages and sums of gradients where the rules are so. */
static sample *random_sample(size_t most_leaves, size_t most_elements, int accumulates)
{
    const size_t leaf_count = 1 + below(most_leaves), group_count = 1 + below(3);
    sample *const s = new_sample(leaf_count, group_count);
    for (size_t g = 0; g < group_count; g++) random_group(&s->plan.groups[g]);
    s->plan.rules.averages = (int)below(2);
    s->has_bf16 = (int)below(2);
    s->is_split = (int)below(2);
    s->plan.rules.seed = random_bits();
    s->plan.rules.accumulate = accumulates ? 3 : 1;
    s->plan.rules.nonfinite = below(2) ? RMSP_SKIP : RMSP_PROPAGATE; /* whether binding makes room for norms */
    for (size_t i = 0; i < leaf_count; i++) {
        ptrdiff_t shape[MAX_NDIM];
        const int ndim = random_shape(shape, most_elements);
        const int type = random_type(s, i, 5);
        array *const param = new_array(type, ndim, shape, below(2) ? LIE_C : (lie)below(LIE_BROADCAST));
        fill(&param->a, 200);
        set_leaf(s, i, param, (uint32_t)below(group_count), (int)below(2));
    }
    finish_sample(s);
    set_random_rates(s);
    for (size_t i = 0; i < leaf_count; i++) {
        for (int k = RMSP_SQUARE_AVG; k < RMSP_ARRAY_COUNT; k++) {
            const rmsp_array a = state_of(s, i, k);
            if (!has_state(s, i, k)) continue;
            fill(&a, 200);
            for (size_t e = 0; k == RMSP_SQUARE_AVG && e < reals_in(&a); e++) set_real(&a, e, fabs(get_real(&a, e)));
        }
        if (below(6) == 0) continue; /* no gradient */
        if (s->plan.slots[i].ndim > 0 && !accumulates && below(4) == 0) {
            set_row_grad(s, i, 200);
        } else {
            set_new_grad(s, i, below(2) ? LIE_C : (lie)below(LIE_COUNT), 200);
        }
    }
    must_bind(s);
    return s;
}

/* Runs an operation on one or more threads, with workers that do their share or come in time. */
static void run_on(sample *s, rmsp_op op, double scale, int threads, size_t grain)
{
    rmsp_set_thread_limit(threads);
    rmsp_set_grain(grain);
    rmsp_run(&s->plan, op, scale, s->plan.work);
    rmsp_set_thread_limit(0);
    rmsp_set_grain(default_grain);
}

static void check_operation(sample *s, rmsp_op op)
{
    static const int threads[] = {1, 2, 3, 7};
    const double scale = 0.75;
    twin *const before = new_twin(s), *const after = new_twin(s);
    s->counts.steps = (int64_t)below(2);
    read_grads(after, s);
    if (op == RMSP_STEP) twin_step(after, &s->plan, NULL, s->counts.steps);
    if (op == RMSP_ACCUMULATE) twin_accumulate(after, &s->plan, scale);
    for (int isa = 0; isa < rmsp_isa_count(); isa++) {
        CHECK(rmsp_isa_use(rmsp_isa_name(isa)) == 0);
        for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
            write_sample(before, s);
            run_on(s, op, scale, threads[t], below(3) ? 0 : default_grain);
            check_same(after, s);
        }
    }
    for (size_t i = 0; i < s->plan.leaf_count && op == RMSP_SUMSQ; i++) {
        double sum = 0;
        const size_t spans = (reals_in(&s->grad_list[i]) + RMSP_SPAN - 1) / RMSP_SPAN;
        if (s->grad_list[i].problem == RMSP_ABSENT) continue;
        for (size_t span = 0; span < spans; span++) sum += s->plan.extras[i].span_sums[span];
        CHECK(same_bits(sum, twin_sumsq(&after->leaves[i], scale)));
    }
    free_twin(before);
    free_twin(after);
}

static void test_random_plans(void)
{
    for (int round = 0; round < 60; round++) {
        const rmsp_op op = (rmsp_op)(round % 3);
        sample *const s = random_sample(12, round % 10 == 0 ? 40000 : 300, op == RMSP_ACCUMULATE);
        if (op != RMSP_STEP) s->plan.rules.nonfinite = RMSP_SKIP;
        s->plan.bound = 0; /* as after any change of the rules */
        must_bind(s);
        check_operation(s, op);
        free_sample(s);
    }
}

/* A leaf of many rows, each longer than a span; and rows that are strided in the table. */
static void test_long_rows(void)
{
    static const lie hows[] = {LIE_C, LIE_F, LIE_STRIDED};
    for (size_t h = 0; h < 3; h++) {
        const ptrdiff_t shape[] = {7, (ptrdiff_t)RMSP_SPAN + 37};
        sample *const s = new_sample(1, 1);
        s->plan.rules.nonfinite = RMSP_SKIP;
        array *const table = new_array(RMSP_F32, 2, shape, hows[h]);
        fill(&table->a, 0);
        set_leaf(s, 0, table, 0, 0);
        finish_sample(s);
        set_row_grad(s, 0, 0);
        must_bind(s);
        CHECK(s->plan.leaves[0].n == (size_t)shape[1]);
        CHECK(s->plan.work.elements == reals_in(&s->grad_list[0]));
        check_operation(s, RMSP_STEP);
        check_operation(s, RMSP_SUMSQ);
        free_sample(s);
    }
}

/* Long arrays are brought to the start of a cache line first, wherever they begin. */
static void test_large_arrays(void)
{
    const ptrdiff_t n = ((ptrdiff_t)1 << 17) + 301;
    for (int type = 0; type < RMSP_DTYPE_COUNT; type++) {
        for (size_t offset = 0; offset < 64; offset += 4 * size_of_real(type) + size_of_real(type)) {
            sample *const s = new_sample(2, 1);
            for (size_t i = 0; i < 2; i++) {
                array *const param = new_array_at(offset, type, 1, &n, LIE_C);
                fill(&param->a, 1000);
                set_leaf(s, i, param, 0, 0);
            }
            finish_sample(s);
            for (size_t i = 0; i < 2; i++) set_new_grad(s, i, LIE_C, 1000);
            must_bind(s);
            CHECK(s->plan.leaves[0].extra == NULL);
            check_operation(s, RMSP_STEP);
            free_sample(s);
        }
    }
}

/* Work counts the elements that have a gradient, and of their bytes what threads could share. */
static void test_work(void)
{
    const ptrdiff_t small = 64, large = 1000, empty = 0;
    const ptrdiff_t *const lengths[] = {&small, &large, &empty, &large};
    sample *const s = new_sample(4, 1);
    for (size_t i = 0; i < 4; i++) set_leaf(s, i, new_array(RMSP_F32, 1, lengths[i], LIE_C), 0, 0);
    finish_sample(s);
    for (size_t i = 0; i < 3; i++) set_new_grad(s, i, LIE_C, 0);
    must_bind(s);
    CHECK(s->plan.work.elements == 1064 && s->plan.work.bytes == 4000 - 256);
    rmsp_run(&s->plan, RMSP_STEP, 1, s->plan.work);
    for (size_t i = 0; i < 3; i++) set_grad(s, i, NULL);
    must_bind(s);
    CHECK(s->plan.work.elements == 0 && s->plan.work.bytes == 0);
    run_on(s, RMSP_STEP, 1, 3, 0);
    free_sample(s);
}

int main(void)
{
    rmsp_isa_init();
    test_random_plans();
    test_long_rows();
    test_large_arrays();
    test_work();
    return 0;
}
