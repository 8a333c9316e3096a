/* test_bind.c: what arrays are refused and why, how the others lie, and what they overlap. */
#include "plans.h"

static const ptrdiff_t some_shape[] = {4, 6};

/* Two leaves of 4 by 6 with gradients, and a third of the same kind without. */
static sample *usual_sample(int type, lie how)
{
    sample *const s = new_sample(3, 1);
    s->plan.groups[0].momentum = RMSP_MOMENTUM_CLASSIC;
    for (size_t i = 0; i < 3; i++) set_leaf(s, i, new_array(type, 2, some_shape, how), 0, 0);
    finish_sample(s);
    for (size_t i = 0; i < 2; i++) set_new_grad(s, i, how, 0);
    return s;
}

/* The lists as they were made. */
static void restore(sample *s)
{
    for (size_t i = 0; i < s->plan.leaf_count; i++) {
        s->param_list[i] = s->params[i]->a;
        s->grad_list[i] = s->grads[i] == NULL ? absent_array : s->grads[i]->a;
    }
}

/* What was changed in the lists is refused for this reason; then the usual arrays are bound again. */
static rmsp_refusal refuse(sample *s, rmsp_reason reason, size_t leaf, int is_grad)
{
    rmsp_refusal where = {99, 99, 99, 99, 99};
    CHECK(bind_sample(s, &where) == reason);
    CHECK(where.leaf == leaf && where.array == (is_grad ? RMSP_GRAD : RMSP_PARAM));
    CHECK(!s->plan.bound);
    restore(s);
    must_bind(s);
    for (size_t i = 0; i < s->plan.leaf_count; i++) {
        CHECK(s->plan.leaves[i].array[RMSP_PARAM] == s->params[i]->a.data);
        CHECK(s->plan.leaves[i].array[RMSP_GRAD] == (s->grads[i] == NULL ? NULL : s->grads[i]->a.data));
    }
    return where;
}

/* ---- reasons ---- */

/* Each reason that one array alone can give, whichever it is, bound before or not. */
static void test_reasons_of_one_array(void)
{
    static const rmsp_reason of_source[] = {RMSP_NOT_AN_ARRAY, RMSP_MASKED, RMSP_UNSUPPORTED, RMSP_BYTE_ORDER};
    static const ptrdiff_t other_shape[] = {4, 5}, long_shape[] = {4, 6, 1};
    for (int round = 0; round < 8; round++) {
        const size_t leaf = (size_t)round / 2 % 2;
        const int is_grad = round % 2;
        sample *const s = usual_sample(RMSP_F32, LIE_C);
        rmsp_array *const a = is_grad ? &s->grad_list[leaf] : &s->param_list[leaf];
        if (round >= 4) must_bind(s);
        for (size_t k = 0; k < sizeof of_source / sizeof *of_source; k++) {
            a->problem = of_source[k];
            a->type = -1;
            refuse(s, of_source[k], leaf, is_grad);
        }
        a->flags &= ~(unsigned)RMSP_ALIGNED;
        refuse(s, RMSP_MISALIGNED, leaf, is_grad);
        a->type = RMSP_F64;
        refuse(s, RMSP_OTHER_DTYPE, leaf, is_grad);
        a->type = RMSP_F32 | RMSP_PAIRS;
        refuse(s, RMSP_OTHER_DTYPE, leaf, is_grad);
        a->ndim = 1;
        refuse(s, RMSP_OTHER_SHAPE, leaf, is_grad);
        a->shape = long_shape;
        a->ndim = 3;
        refuse(s, RMSP_OTHER_SHAPE, leaf, is_grad);
        a->shape = other_shape;
        refuse(s, RMSP_OTHER_SHAPE, leaf, is_grad);
        a->data = NULL;
        refuse(s, RMSP_NULL_DATA, leaf, is_grad);
        if (!is_grad) {
            *a = absent_array;
            refuse(s, RMSP_ABSENT, leaf, 0);
            a->flags &= ~(unsigned)RMSP_WRITABLE;
            refuse(s, RMSP_READ_ONLY, leaf, 0);
        }
        free_sample(s);
    }
}

/* A read-only parameter is refused where it would be written: by this call, or for what was accumulated before. */
static void test_read_only(void)
{
    sample *const s = usual_sample(RMSP_F64, LIE_C);
    rmsp_refusal where;
    s->param_list[2].flags &= ~(unsigned)RMSP_WRITABLE;
    s->counts.seen[2] = 1; /* which is read where calls are accumulated only */
    must_bind(s);          /* it has no gradient */
    CHECK(bind_arrays(&s->plan, s->param_list, NULL, &where) == RMSP_READ_ONLY);
    CHECK(where.leaf == 2 && where.array == RMSP_PARAM && !s->plan.bound);
    s->grad_list[0].flags &= ~(unsigned)RMSP_WRITABLE;
    must_bind(s); /* a gradient may be */
    free_sample(s);

    sample *const sums = new_sample(1, 1);
    sums->plan.rules.accumulate = 2;
    set_leaf(sums, 0, new_array(RMSP_F32, 2, some_shape, LIE_C), 0, 0);
    finish_sample(sums);
    sums->param_list[0].flags &= ~(unsigned)RMSP_WRITABLE;
    must_bind(sums);
    sums->counts.seen[0] = 1;
    refuse(sums, RMSP_READ_ONLY, 0, 0);
    free_sample(sums);
}

static void test_self_overlap(void)
{
    static const ptrdiff_t bad[][2] = {{0, 4}, {24, 0}, {20, 4}, {-20, 4}, {4, 4}, {24, 3}};
    static const ptrdiff_t good[][2] = {{24, 4}, {-24, 4}, {4, 16}, {28, 4}, {4, -16}};
    sample *const s = new_sample(1, 1);
    array *const wide = new_array(RMSP_F32, 2, (const ptrdiff_t[]){20, 20}, LIE_C);
    array *const param = new_array(RMSP_F32, 2, some_shape, LIE_C);
    set_leaf(s, 0, param, 0, 0);
    finish_sample(s);
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        s->param_list[0].strides = bad[k];
        s->param_list[0].data = wide->memory + 200;
        s->param_list[0].flags = RMSP_ALIGNED | RMSP_WRITABLE;
        refuse(s, RMSP_SELF_OVERLAP, 0, 0);
    }
    for (size_t k = 0; k < sizeof good / sizeof *good; k++) {
        s->param_list[0].strides = good[k];
        s->param_list[0].data = wide->memory + 200;
        s->param_list[0].flags = flags_of(&s->param_list[0]);
        must_bind(s);
    }
    free_sample(s);
    free_array(wide);
}

static void test_overlapping_parameters(void)
{
    sample *const s = usual_sample(RMSP_F32, LIE_C);
    rmsp_refusal where;
    must_bind(s);
    s->param_list[2].data = s->params[1]->a.data; /* the same array twice */
    where = refuse(s, RMSP_OVERLAP, 1, 0);
    CHECK(where.other_leaf == 2 && where.other_array == RMSP_PARAM);
    s->param_list[1].data = s->plan.leaves[2].array[RMSP_SQUARE_AVG];
    where = refuse(s, RMSP_OVERLAP, 1, 0);
    CHECK(where.other_leaf == 2 && where.other_array == RMSP_SQUARE_AVG);
    s->param_list[0].data = (char *)s->plan.leaves[0].array[RMSP_MOMENTUM_BUFFER] + 92; /* its last element, and more */
    where = refuse(s, RMSP_OVERLAP, 0, 0);
    CHECK(where.other_leaf == 0 && where.other_array == RMSP_MOMENTUM_BUFFER);
    free_sample(s);
}

/* A gradient may not overlap what the step writes, of whichever leaf; it may overlap other gradients. */
static void check_overlapping_gradients(int type, int avg16)
{
    sample *const s = new_sample(4, 1);
    s->plan.groups[0].momentum = RMSP_MOMENTUM_CLASSIC;
    s->plan.groups[0].centered = 1;
    s->plan.rules.averages = 1;
    s->plan.rules.accumulate = 2;
    s->is_split = 1;
    for (size_t i = 0; i < 4; i++) {
        s->plan.extras[i].avg16 = avg16;
        set_leaf(s, i, new_array(type, 2, some_shape, LIE_C), 0, 0);
    }
    finish_sample(s);
    for (size_t i = 0; i < 3; i++) set_new_grad(s, i, LIE_C, 0);
    must_bind(s);
    for (size_t i = 0; i < 3; i++) {
        for (size_t other = 0; other < 4; other++) {
            for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
                if (k == RMSP_GRAD || (k > RMSP_GRAD && !has_state(s, other, k))) continue;
                const rmsp_array a = k == RMSP_PARAM ? s->param_list[other] : state_of(s, other, k);
                for (int bound = 0; bound < 2; bound++) {
                    s->plan.bound = bound;
                    s->grad_list[i].data = a.data;
                    const rmsp_refusal where = refuse(s, RMSP_OVERLAP, i, 1);
                    CHECK(where.other_leaf == other && where.other_array == k);
                }
            }
        }
    }
    s->grad_list[0].data = s->grad_list[1].data; /* other gradients */
    must_bind(s);
    array *const wide = new_array(type, 1, (const ptrdiff_t[]){47}, LIE_C);
    s->param_list[3].data = wide->memory; /* of the leaf without gradient, one element */
    s->grad_list[0].data = wide->memory + 23 * size_of_real(type);
    const rmsp_refusal where = refuse(s, RMSP_OVERLAP, 0, 1);
    CHECK(where.other_leaf == 3 && where.other_array == RMSP_PARAM);
    free_array(wide);
    free_sample(s);
}

static void test_overlapping_gradients(void)
{
    check_overlapping_gradients(RMSP_F32, 0);
    check_overlapping_gradients(RMSP_F32, 1);
    check_overlapping_gradients(RMSP_F64, 0);
    check_overlapping_gradients(RMSP_BF16, 0);
    check_overlapping_gradients(RMSP_BF16, 1);
}

static void test_rows_refused(void)
{
    static ptrdiff_t rows[3];
    static const ptrdiff_t shape[] = {3, 6}, short_shape[] = {3, 5}, few[] = {2, 6}, strides[] = {24, 4};
    static const ptrdiff_t cases[][4] = {{-1, 1, 2, 0}, {0, 1, 4, 2}, {1, 1, 2, 1}, {0, 2, 1, 2}, {3, 9, 1, 1}};
    sample *const s = usual_sample(RMSP_F32, LIE_C);
    array *const values = new_array(RMSP_F32, 2, shape, LIE_C);
    const rmsp_array good = {.data = values->a.data,
                             .shape = shape,
                             .strides = strides,
                             .rows = rows,
                             .row_count = 3,
                             .ndim = 2,
                             .type = RMSP_F32,
                             .flags = RMSP_C_ORDER | RMSP_ALIGNED};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const int outside = k < 2 || k == 4;
        memcpy(rows, cases[k], sizeof rows);
        s->grad_list[1] = good;
        const rmsp_refusal where = refuse(s, outside ? RMSP_ROW_OUTSIDE : RMSP_ROW_ORDER, 1, 1);
        CHECK(where.row == (size_t)cases[k][3]);
    }
    memcpy(rows, (const ptrdiff_t[]){0, 2, 3}, sizeof rows);
    s->grad_list[1] = good;
    s->grad_list[1].flags = RMSP_ALIGNED;
    refuse(s, RMSP_ROWS_STRIDED, 1, 1);
    s->grad_list[1] = good;
    s->grad_list[1].shape = short_shape;
    refuse(s, RMSP_OTHER_SHAPE, 1, 1);
    s->grad_list[1] = good;
    s->grad_list[1].shape = few; /* fewer rows of values than of indices */
    refuse(s, RMSP_OTHER_SHAPE, 1, 1);
    s->grad_list[1] = good;
    s->grad_list[1].data = s->params[0]->a.data;
    CHECK(refuse(s, RMSP_OVERLAP, 1, 1).other_leaf == 0);
    s->grad_list[1] = good;
    must_bind(s);
    CHECK(s->plan.leaves[1].n == 6 && s->plan.leaves[1].extra == &s->plan.extras[1]);
    CHECK(s->plan.extras[1].rows.index == rows && s->plan.extras[1].rows.count == 3);
    CHECK(s->plan.extras[1].rows.stride[RMSP_PARAM] == 24 && s->plan.extras[1].layout.ndim == 0);
    CHECK(s->plan.work.elements == 24 + 18);
    restore(s);
    must_bind(s);
    CHECK(s->plan.leaves[1].n == 24 && s->plan.leaves[1].extra == NULL);
    free_sample(s);
    free_array(values);

    sample *const sums = new_sample(1, 1);
    sums->plan.rules.accumulate = 2;
    set_leaf(sums, 0, new_array(RMSP_F32, 2, some_shape, LIE_C), 0, 0);
    finish_sample(sums);
    set_row_grad(sums, 0, 0);
    rmsp_refusal where;
    CHECK(bind_sample(sums, &where) == RMSP_ROWS_ACCUMULATED && where.leaf == 0 && where.array == RMSP_GRAD);
    free_sample(sums);

    sample *const scalar = new_sample(1, 1); /* a parameter without axes has no rows */
    set_leaf(scalar, 0, new_array(RMSP_F32, 0, NULL, LIE_C), 0, 0);
    finish_sample(scalar);
    scalar->grad_list[0] = good;
    scalar->grad_list[0].ndim = 0;
    CHECK(bind_sample(scalar, &where) == RMSP_OTHER_SHAPE && where.array == RMSP_GRAD);
    free_sample(scalar);
}

/* Of several reasons the first leaf's is given, and nothing of the plan's numbers is believed after it. */
static void test_first_reason(void)
{
    sample *const s = usual_sample(RMSP_F32, LIE_C);
    must_bind(s);
    s->grad_list[1].type = RMSP_F64;
    s->param_list[1].data = NULL;
    s->grad_list[0].flags = 0;
    refuse(s, RMSP_MISALIGNED, 0, 1);
    s->grad_list[1].type = RMSP_F64;
    s->param_list[1].data = NULL;
    refuse(s, RMSP_NULL_DATA, 1, 0);
    free_sample(s);
}

/* ---- layouts ---- */

/* One leaf of each layout of the parameter and the gradient; whether it is worked on as it lies. */
static void check_layout(int type, int ndim, const ptrdiff_t *shape, lie param, lie grad, int fortran, int is_dense)
{
    sample *const s = new_sample(1, 1);
    rmsp_refusal where;
    set_leaf(s, 0, new_array(type, ndim, shape, param), 0, fortran);
    finish_sample(s);
    set_new_grad(s, 0, grad, 0);
    const rmsp_reason reason = bind_arrays(&s->plan, s->param_list, s->grad_list, &where);
    CHECK(reason == (is_dense ? RMSP_OK : RMSP_NEEDS_AXES));
    CHECK(s->plan.bound == is_dense);
    must_bind(s);
    const rmsp_leaf *const leaf = &s->plan.leaves[0];
    CHECK(leaf->n == reals_in(&s->param_list[0]));
    CHECK(leaf->array[RMSP_PARAM] == s->param_list[0].data && leaf->array[RMSP_GRAD] == s->grad_list[0].data);
    CHECK((leaf->extra == NULL) == is_dense && (s->plan.extras[0].layout.ndim == 0) == is_dense);
    CHECK((s->plan.slots[0].param_flags != RMSP_NEVER) == is_dense); /* for the short way */
    size_t n = 1;
    for (int axis = 0; axis < s->plan.extras[0].layout.ndim; axis++) {
        CHECK(s->plan.extras[0].layout.axes[axis].length > 1);
        n *= s->plan.extras[0].layout.axes[axis].length;
    }
    CHECK(is_dense || n == leaf->n);
    free_sample(s);
}

static void test_layouts(void)
{
    static const ptrdiff_t shape[] = {3, 4, 5}, ones[] = {1, 1, 1}, empty[] = {3, 0, 5}, line[] = {7},
                           column[] = {7, 1};
    for (int type = 0; type < RMSP_DTYPE_COUNT; type++) {
        for (int pairs = 0; pairs <= RMSP_PAIRS; pairs += RMSP_PAIRS) {
            check_layout(type | pairs, 3, shape, LIE_C, LIE_C, 0, 1);
            check_layout(type | pairs, 3, shape, LIE_F, LIE_F, 1, 1);
            check_layout(type | pairs, 3, shape, LIE_C, LIE_F, 0, 0);
            check_layout(type | pairs, 3, shape, LIE_F, LIE_F, 0, 0);
            check_layout(type | pairs, 3, shape, LIE_C, LIE_C, 1, 0);
            check_layout(type | pairs, 3, shape, LIE_REVERSED, LIE_C, 0, 0);
            check_layout(type | pairs, 3, shape, LIE_C, LIE_REVERSED, 0, 0);
            check_layout(type | pairs, 3, shape, LIE_C, LIE_BROADCAST, 0, 0);
            check_layout(type | pairs, 3, ones, LIE_STRIDED, LIE_BROADCAST, 0, 1);
            check_layout(type | pairs, 0, NULL, LIE_C, LIE_C, 0, 1);
            check_layout(type | pairs, 1, line, LIE_C, LIE_F, 1, 1);
            check_layout(type | pairs, 1, line, LIE_REVERSED, LIE_REVERSED, 0, 0);
            check_layout(type | pairs, 2, column, LIE_F, LIE_C, 0, 1);
        }
    }
    for (int how = 0; how < LIE_BROADCAST; how++) { /* there is nothing to lay out, or nothing to do */
        sample *const s = new_sample(1, 1);
        set_leaf(s, 0, new_array(RMSP_F64, 3, empty, (lie)how), 0, 0);
        finish_sample(s);
        set_new_grad(s, 0, (lie)how, 0);
        must_bind(s);
        CHECK(s->plan.leaves[0].n == 0 && s->plan.work.elements == 0);
        s->param_list[0].data = s->grad_list[0].data = NULL;
        must_bind(s);
        free_sample(s);
    }
}

/* A permutation that all arrays share is dense; the state here has those of the parameter by way of its strides. */
static void test_permuted(void)
{
    static const ptrdiff_t shape[] = {3, 4, 5}, strides[] = {20, 60, 4};
    sample *const s = new_sample(1, 1);
    set_leaf(s, 0, new_array(RMSP_F32, 3, shape, LIE_C), 0, 0);
    finish_sample(s);
    set_new_grad(s, 0, LIE_C, 0);
    s->param_list[0].strides = s->grad_list[0].strides = s->plan.slots[0].strides = strides;
    s->param_list[0].flags = s->grad_list[0].flags = RMSP_ALIGNED | RMSP_WRITABLE;
    must_bind(s);
    CHECK(s->axes == NULL && s->plan.leaves[0].extra == NULL);
    CHECK(s->plan.slots[0].param_flags == RMSP_NEVER); /* no flag says so */
    free_sample(s);
}

/* Neighbouring axes are joined where they can be. */
static void test_joined_axes(void)
{
    static const ptrdiff_t shape[] = {3, 4, 5};
    sample *const s = new_sample(1, 1);
    set_leaf(s, 0, new_array(RMSP_F32 | RMSP_PAIRS, 3, shape, LIE_C), 0, 0);
    finish_sample(s);
    set_new_grad(s, 0, LIE_BROADCAST, 0);
    must_bind(s);
    const rmsp_layout *const layout = &s->plan.extras[0].layout;
    CHECK(layout->ndim == 2 && layout->axes[0].length == 60 && layout->axes[1].length == 2);
    CHECK(layout->axes[0].stride[RMSP_PARAM] == 8 && layout->axes[0].stride[RMSP_GRAD] == 0);
    CHECK(layout->axes[1].stride[RMSP_PARAM] == 4 && layout->axes[1].stride[RMSP_GRAD] == 4);
    free_sample(s);
}

/* The axes within rows go from the slowest to the fastest of the parameter, whatever that of the rows is. */
static void test_layout_of_rows(void)
{
    static const ptrdiff_t shape[] = {5, 3, 4}, strides[] = {1000, 48, 4, 12};
    sample *const s = new_sample(1, 1);
    set_leaf(s, 0, new_array(RMSP_F32, 3, shape, LIE_C), 0, 0);
    finish_sample(s);
    set_row_grad(s, 0, 0);
    must_bind(s);
    const rmsp_layout *const layout = &s->plan.extras[0].layout;
    CHECK(layout->ndim == 0 && s->plan.leaves[0].n == 12);
    s->param_list[0].strides = strides + 1;
    s->param_list[0].flags = RMSP_ALIGNED | RMSP_WRITABLE;
    must_bind(s);
    CHECK(layout->ndim == 2 && layout->axes[0].length == 4 && layout->axes[1].length == 3);
    CHECK(layout->axes[0].stride[RMSP_PARAM] == 12 && layout->axes[0].stride[RMSP_GRAD] == 4);
    CHECK(layout->axes[1].stride[RMSP_PARAM] == 4 && layout->axes[1].stride[RMSP_GRAD] == 16);
    free_sample(s);
}

/* The reals with a gradient; and the bytes of gradients, less 256 of each leaf. */
static void test_work(void)
{
    sample *const s = new_sample(4, 1);
    const ptrdiff_t lengths[] = {100, 64, 65, 1000};
    for (size_t i = 0; i < 4; i++) set_leaf(s, i, new_array(i == 0 ? RMSP_F64 : RMSP_F32, 1, &lengths[i], LIE_C), 0, 0);
    finish_sample(s);
    must_bind(s);
    CHECK(s->plan.work.elements == 0 && s->plan.work.bytes == 0);
    for (size_t i = 0; i < 3; i++) set_new_grad(s, i, LIE_C, 0);
    must_bind(s);
    CHECK(s->plan.work.elements == 100 + 64 + 65 && s->plan.work.bytes == 800 - 256 + 0 + 4);
    free_sample(s);
}

/* Dense strides by the order of others: C order where these say nothing, and an axis without elements counts as 1. */
static void test_dense_strides(void)
{
    static const struct {
        int ndim;
        ptrdiff_t shape[3], like[3], dense[3];
    } cases[] = {
        {0, {0}, {0}, {0}},
        {1, {7}, {-100}, {8}},
        {3, {2, 3, 4}, {12, 4, 1}, {96, 32, 8}},
        {3, {2, 3, 4}, {1, -2, 6}, {8, 16, 48}},
        {3, {2, 3, 4}, {-9, 50, 3}, {32, 64, 8}},
        {3, {2, 3, 4}, {5, 5, 5}, {96, 32, 8}},
        {3, {2, 0, 4}, {12, 4, 1}, {32, 32, 8}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        ptrdiff_t dense[3] = {0};
        rmsp_dense_strides(cases[k].ndim, cases[k].shape, cases[k].like, 8, dense);
        CHECK(memcmp(dense, cases[k].dense, sizeof dense) == 0);
    }
}

/* ---- overlap ---- */

/* A random array within some bytes; its strides may be of any kind, also such that it overlaps itself. */
static void small_array(rmsp_array *a, ptrdiff_t *shape, ptrdiff_t *strides, uintptr_t base)
{
    static const int types[] = {RMSP_F32, RMSP_F64, RMSP_F32 | RMSP_PAIRS, RMSP_F64 | RMSP_PAIRS};
    *a = (rmsp_array){.shape = shape, .strides = strides, .ndim = (int)below(5), .type = types[below(4)]};
    for (int axis = 0; axis < a->ndim; axis++) {
        shape[axis] = (ptrdiff_t)(below(12) == 0 ? 0 : 1 + below(3));
        strides[axis] = ((ptrdiff_t)below(25) - 12) * (below(3) == 0 ? 1 : 4);
    }
    a->data = (void *)(base + below(300));
}

/* Marks the bytes of an array; or looks whether any of them is marked. */
static int touch(const rmsp_array *a, unsigned char *marks, uintptr_t base, int mark)
{
    for (size_t e = 0, n = reals_in(a); e < n; e++) {
        unsigned char *const first = marks + ((uintptr_t)place_of(a, e) - base);
        for (size_t byte = 0; byte < size_of_real(a->type); byte++) {
            if (mark) first[byte] = 1;
            if (!mark && first[byte]) return 1;
        }
    }
    return 0;
}

static void test_overlap_by_brute_force(void)
{
    enum { SPACE = 2000, MIDDLE = 800 };
    static char space[SPACE];
    static unsigned char marks[SPACE];
    int overlaps = 0;
    for (int round = 0; round < 200000; round++) {
        ptrdiff_t shapes[2][4], strides[2][4];
        rmsp_array one, other;
        small_array(&one, shapes[0], strides[0], (uintptr_t)space + MIDDLE);
        small_array(&other, shapes[1], strides[1], (uintptr_t)space + MIDDLE);
        memset(marks, 0, sizeof marks);
        touch(&one, marks, (uintptr_t)space, 1);
        const int expected = touch(&other, marks, (uintptr_t)space, 0);
        CHECK(rmsp_arrays_overlap(&one, &other) == expected);
        CHECK(rmsp_arrays_overlap(&other, &one) == expected);
        overlaps += expected;
    }
    CHECK(overlaps > 20000 && overlaps < 180000);
}

/* Where the search would take too long, arrays are taken to overlap; it ends soon, also with as many axes as there
 * may be. */
static void test_hard_overlap(void)
{
    ptrdiff_t shape[RMSP_MAX_NDIM - 1], strides[RMSP_MAX_NDIM - 1];
    for (int axis = 0; axis < RMSP_MAX_NDIM - 1; axis++) {
        shape[axis] = 2;
        strides[axis] = 16 * (1000003 + 7919 * axis);
    }
    rmsp_array one = {.data = (void *)(uintptr_t)(1 << 20), .shape = shape, .strides = strides, .type = RMSP_F32};
    one.ndim = RMSP_MAX_NDIM - 1;
    rmsp_array other = one;
    CHECK(rmsp_arrays_overlap(&one, &other) == 1);
    other.data = (char *)one.data + 8; /* no element is shared, which the remainders by 16 would say */
    const int answer = rmsp_arrays_overlap(&one, &other);
    CHECK(answer == 0 || answer == 1);
}

/* Every second element, up to a million of them, and those between: whatever the order of the axes and the signs of
 * the strides, the search ends with the right answer, since what larger strides rule out is not tried. */
static void test_long_interleaved(void)
{
    enum { LENGTH = 200000, AXES = 3 };
    static const ptrdiff_t lengths[AXES] = {LENGTH, 3, 2}, usual[AXES] = {8, 8 * LENGTH + 64, 32 * LENGTH};
    static const int orders[][AXES] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (int round = 0; round < 6 * 8; round++) {
        ptrdiff_t shape[AXES], strides[AXES];
        int is_long = 0;
        for (int k = 0; k < AXES; k++) {
            const int axis = orders[round / 8][k];
            shape[k] = lengths[axis];
            strides[k] = round >> k & 1 ? -usual[axis] : usual[axis];
            is_long |= axis == 0;
            rmsp_array one = {.shape = shape, .strides = strides, .ndim = k + 1, .type = RMSP_F32};
            one.data = (void *)((uintptr_t)1 << 30);
            rmsp_array other = one;
            for (int distance = -8; distance <= 8; distance++) {
                const int expected = is_long ? distance % 8 != 4 && distance % 8 != -4 : abs(distance) < 4;
                other.data = (void *)((uintptr_t)one.data + (uintptr_t)(ptrdiff_t)distance);
                CHECK(rmsp_arrays_overlap(&one, &other) == expected);
            }
        }
    }
}

/* Interleaved parameters, each the columns that the others leave, are all bound; so are gradients between them. */
static void test_interleaved(void)
{
    enum { LEAVES = 5, ROWS = 7, WIDTH = 12 };
    static const ptrdiff_t shape[] = {ROWS, 2}, strides[] = {WIDTH * 4, LEAVES * 4};
    sample *const s = new_sample(LEAVES, 1);
    array *const whole = new_array(RMSP_F32, 2, (const ptrdiff_t[]){ROWS, WIDTH}, LIE_C);
    for (size_t i = 0; i < LEAVES; i++) set_leaf(s, i, new_array(RMSP_F32, 2, shape, LIE_C), 0, 0);
    finish_sample(s);
    for (size_t i = 0; i < LEAVES; i++) {
        s->param_list[i].data = whole->memory + 4 * i;
        s->param_list[i].strides = strides;
        s->param_list[i].flags = RMSP_ALIGNED | RMSP_WRITABLE;
    }
    must_bind(s);
    s->grad_list[0] = s->param_list[0];
    s->grad_list[0].data = whole->memory + 40; /* the two columns that are no parameter */
    s->grad_list[0].strides = (const ptrdiff_t[]){WIDTH * 4, 4};
    must_bind(s);
    s->grad_list[0].data = whole->memory + 36;
    rmsp_refusal where;
    CHECK(bind_sample(s, &where) == RMSP_OVERLAP && where.leaf == 0 && where.array == RMSP_GRAD);
    CHECK(where.other_leaf == LEAVES - 1 && where.other_array == RMSP_PARAM);
    s->grad_list[0] = absent_array;
    s->param_list[3].data = whole->memory + 4 * 2;
    CHECK(bind_sample(s, &where) == RMSP_OVERLAP && where.leaf == 2 && where.other_leaf == 3);
    free_sample(s);
    free_array(whole);
}

/* Gradients found to be free are free no longer when a parameter moves over them. */
static void test_moved_parameter(void)
{
    sample *const s = usual_sample(RMSP_F32, LIE_C);
    for (int round = 0; round < 3; round++) {
        must_bind(s);
        must_bind(s);
        CHECK(s->plan.slots[0].clear == s->grads[0]->a.data);
        const uintptr_t last = (uintptr_t)s->grads[1]->a.data; /* the gap is the one in which it was found */
        CHECK(s->plan.gap_low <= last && last + 96 <= s->plan.gap_high);
        s->param_list[2].data = (char *)s->grads[0]->a.data;
        const rmsp_refusal where = refuse(s, RMSP_OVERLAP, 0, 1);
        CHECK(where.other_leaf == 2 && where.other_array == RMSP_PARAM);
    }
    free_sample(s);
}

/* Nor is a gradient at the same address that reaches further than the one that was found to be free. */
static void test_wider_gradient(void)
{
    static const ptrdiff_t strides[] = {48, 4};
    sample *const s = usual_sample(RMSP_F32, LIE_C);
    array *const whole = new_array(RMSP_F32, 1, (const ptrdiff_t[]){64}, LIE_C);
    for (int round = 0; round < 2; round++) {
        s->grad_list[0].data = whole->memory;
        s->param_list[2].data = whole->memory + 96;
        must_bind(s);
        CHECK(s->plan.slots[0].clear == whole->memory);
        s->grad_list[0].strides = strides;
        s->grad_list[0].flags = RMSP_ALIGNED;
        const rmsp_refusal where = refuse(s, RMSP_OVERLAP, 0, 1);
        CHECK(where.other_leaf == 2 && where.other_array == RMSP_PARAM);
    }
    free_sample(s);
    free_array(whole);
}

/* Nor is one whose elements are wider. */
static void test_gradient_of_a_wider_type(void)
{
    static const ptrdiff_t strides16[] = {12, 2};
    sample *const s = usual_sample(RMSP_F32, LIE_C);
    array *const whole = new_array(RMSP_F32, 1, (const ptrdiff_t[]){64}, LIE_C);
    for (int round = 0; round < 2; round++) {
        s->grad_list[0].data = whole->memory;
        s->grad_list[0].type = RMSP_BF16;
        s->grad_list[0].strides = strides16;
        s->param_list[2].data = whole->memory + 48;
        must_bind(s);
        CHECK(s->plan.slots[0].clear == whole->memory);
        s->grad_list[0] = s->grads[0]->a;
        s->grad_list[0].data = whole->memory;
        const rmsp_refusal where = refuse(s, RMSP_OVERLAP, 0, 1);
        CHECK(where.other_leaf == 2 && where.other_array == RMSP_PARAM);
    }
    free_sample(s);
    free_array(whole);
}

/* Nor is anything when a parameter takes other elements from the same first byte on. */
static void test_parameter_moved_within_its_range(void)
{
    static const ptrdiff_t shape[] = {2, 3}, before[] = {52, 4};
    static const ptrdiff_t after[][2] = {{44, 8}, {44, 4}, {52, 8}}, places[] = {16, 44, 16};
    static const ptrdiff_t rows[] = {0}, row_shape[] = {1, 3};
    for (int round = 0; round < 12; round++) {
        sample *const s = new_sample(2, 1);
        array *const whole = new_array(RMSP_F32, 1, (const ptrdiff_t[]){20}, LIE_C);
        const int as_gradient = round % 2; /* the element in between is a gradient, or the other parameter */
        set_leaf(s, 0, new_array(RMSP_F32, 2, shape, LIE_C), 0, 0);
        set_leaf(s, 1, new_array(RMSP_F32, 0, NULL, LIE_C), 0, 0);
        finish_sample(s);
        set_new_grad(s, 0, LIE_C, 0);
        set_new_grad(s, 1, LIE_C, 0);
        s->param_list[0].data = whole->memory;
        s->param_list[0].strides = before; /* bytes 0, 4, 8 and 52, 56, 60 */
        s->param_list[0].flags = RMSP_ALIGNED | RMSP_WRITABLE;
        (as_gradient ? s->grad_list : s->param_list)[1].data = whole->memory + places[round / 4];
        if (round / 2 % 2) { /* a gradient of rows first */
            s->grad_list[0].shape = row_shape;
            s->grad_list[0].rows = rows;
            s->grad_list[0].row_count = 1;
        }
        must_bind(s);
        must_bind(s);
        s->param_list[0].strides = after[round / 4]; /* for instance bytes 0, 8, 16 and 44, 52, 60 */
        rmsp_refusal where;
        CHECK(bind_sample(s, &where) == RMSP_OVERLAP);
        CHECK(where.leaf == (size_t)as_gradient && where.other_leaf == (size_t)!as_gradient);
        CHECK(where.array == (as_gradient ? RMSP_GRAD : RMSP_PARAM) && where.other_array == RMSP_PARAM);
        free_sample(s);
        free_array(whole);
    }
}

/* ---- ranges and gaps ---- */

static int compare(const void *one, const void *other)
{
    const uintptr_t a = *(const uintptr_t *)one, b = *(const uintptr_t *)other;
    return (a > b) - (a < b);
}

static void test_gaps_by_brute_force(void)
{
    for (int round = 0; round < 3000; round++) {
        uintptr_t ends[16];
        const size_t count = below(9);
        rmsp_range *const ranges = allocate(count, sizeof *ranges);
        rmsp_plan plan = {.leaf_count = count, .ranges = ranges, .range_count = count};
        for (size_t k = 0; k < 2 * count; k++) ends[k] = 100 + 200 * k / (2 * count) + below(6);
        qsort(ends, 2 * count, sizeof *ends, compare);
        for (size_t k = 0; k < count; k++) {
            ranges[k] = (rmsp_range){ends[2 * k], ends[2 * k + 1] + (ends[2 * k] == ends[2 * k + 1]), k, 0};
            if (k > 0 && ranges[k].low < ranges[k - 1].high) ranges[k].low = ranges[k - 1].high;
            if (ranges[k].high <= ranges[k].low) ranges[k].high = ranges[k].low + 1;
        }
        for (int query = 0; query < 30; query++) {
            const uintptr_t low = 90 + below(230), high = low + 1 + below(20);
            int is_free = 1;
            for (size_t k = 0; k < count; k++) {
                is_free &= !rmsp_ranges_overlap(low, high, ranges[k].low, ranges[k].high);
            }
            plan.gap_low = plan.gap_high = 0;
            CHECK(rmsp_find_gap(&plan, low, high) == is_free);
            if (!is_free) continue;
            CHECK(plan.gap_low <= low && high <= plan.gap_high);
            for (size_t k = 0; k < count; k++) {
                CHECK(!rmsp_ranges_overlap(plan.gap_low, plan.gap_high, ranges[k].low, ranges[k].high));
            }
        }
        free(ranges);
    }
}

/* Parameters in any order of their addresses give a sorted list of ranges, those that touch as one. */
static void test_sorted_ranges(void)
{
    for (int round = 0; round < 300; round++) {
        const size_t n = 1 + below(round % 20 == 0 ? 2000 : 12), item = 8;
        int *const place = allocate(2 * n, sizeof *place);
        char *const space = allocate(2 * n, item);
        unsigned char *const taken = allocate(2 * n + 1, 1);
        sample *const s = new_sample(n, 1);
        shuffle(place, (int)(2 * n));
        for (size_t i = 0; i < n; i++) {
            set_leaf(s, i, new_array(RMSP_F64, 0, NULL, LIE_C), 0, 0);
            s->param_list[i].data = space + item * (size_t)place[i];
            taken[place[i]] = 1;
        }
        finish_sample(s);
        must_bind(s);
        size_t runs = 0;
        for (size_t k = 0; k < 2 * n; k++) runs += taken[k] && !taken[k + 1];
        CHECK(s->plan.range_count <= runs + 1 && s->plan.range_count >= runs);
        for (size_t k = 0; k < s->plan.range_count; k++) {
            const rmsp_range *const range = &s->plan.ranges[k];
            CHECK(range->low < range->high && (k == 0 || range[-1].high < range->low));
        }
        for (size_t i = 0; i < n; i++) {
            const uintptr_t low = (uintptr_t)s->param_list[i].data;
            CHECK(!rmsp_find_gap(&s->plan, low, low + item));
            CHECK(!rmsp_find_gap(&s->plan, low + 7, low + 9));
        }
        s->param_list[n - 1].data = s->param_list[0].data;
        rmsp_refusal where;
        CHECK(bind_sample(s, &where) == (n == 1 ? RMSP_OK : RMSP_OVERLAP));
        CHECK(n == 1 || (where.leaf == 0 && where.other_leaf == n - 1));
        free_sample(s);
        free(place);
        free(space);
        free(taken);
    }
}

/* ---- the short way ---- */

/* rmsp_bind_again for all leaves, as a caller uses it. */
static int bind_again(sample *s)
{
    for (size_t i = 0; i < s->plan.leaf_count; i++) {
        rmsp_slot *const slot = &s->plan.slots[i];
        const rmsp_array *const grad = &s->grad_list[i];
        const rmsp_again again = rmsp_bind_again(&s->plan, &s->plan.leaves[i], slot, &s->param_list[i], grad);
        if (again == RMSP_AGAIN_NO) return 0;
        if (again == RMSP_AGAIN_YES) continue;
        if (!rmsp_find_gap(&s->plan, (uintptr_t)grad->data, (uintptr_t)grad->data + (slot->high - slot->low))) return 0;
        slot->clear = grad->data;
    }
    s->plan.work = rmsp_plan_work(&s->plan);
    return 1;
}

/* A plan for the same arrays that was never bound. */
static rmsp_plan fresh_copy(const sample *s, rmsp_axis **axes)
{
    rmsp_plan copy = s->plan;
    const size_t n = copy.leaf_count;
    ptrdiff_t (*const param_strides)[MAX_NDIM] = allocate(n, sizeof *param_strides); /* freed as that of slot 0 */
    copy.leaves = allocate(n, sizeof *copy.leaves);
    copy.slots = allocate(n, sizeof *copy.slots);
    copy.extras = allocate(n, sizeof *copy.extras);
    copy.ranges = allocate(n + 1, sizeof *copy.ranges);
    for (size_t i = 0; i < n; i++) {
        copy.leaves[i] = s->plan.leaves[i];
        copy.leaves[i].extra = NULL;
        copy.leaves[i].n = 0;
        copy.leaves[i].array[RMSP_PARAM] = copy.leaves[i].array[RMSP_GRAD] = NULL;
        copy.slots[i] = (rmsp_slot){.shape = s->plan.slots[i].shape,
                                    .strides = s->plan.slots[i].strides,
                                    .param_strides = param_strides[i],
                                    .ndim = s->plan.slots[i].ndim,
                                    .type = s->plan.slots[i].type,
                                    .n = s->plan.slots[i].n};
        copy.extras[i].ema = s->plan.extras[i].ema;
        copy.extras[i].grad_sum = s->plan.extras[i].grad_sum;
        copy.extras[i].span_sums = s->plan.extras[i].span_sums;
    }
    copy.bound = 0;
    copy.range_count = 0;
    copy.gap_low = copy.gap_high = 0;
    *axes = allocate(rmsp_axis_count(&copy), sizeof **axes);
    rmsp_use_axes(&copy, *axes);
    return copy;
}

static void free_copy(rmsp_plan *copy, rmsp_axis *axes)
{
    free(copy->slots[0].param_strides);
    free(copy->leaves);
    free(copy->slots);
    free(copy->extras);
    free(copy->ranges);
    free(axes);
}

/* Arrays as a training loop or an adversary may pass them next: mostly the same ones, or some that lie elsewhere. */
static void change_arrays(sample *s, array **new_params)
{
    static const rmsp_reason problems[] = {RMSP_NOT_AN_ARRAY, RMSP_MASKED, RMSP_UNSUPPORTED, RMSP_BYTE_ORDER};
    for (size_t i = 0; i < s->plan.leaf_count; i++) {
        const rmsp_slot *const slot = &s->plan.slots[i];
        rmsp_array *const a = below(3) ? &s->grad_list[i] : &s->param_list[i];
        const size_t other = below(s->plan.leaf_count);
        switch (below(s->plan.leaf_count > 1 ? 40 : 25)) {
        case 0:
            set_grad(s, i, NULL);
            break;
        case 1:
            set_new_grad(s, i, (lie)below(LIE_COUNT), 0);
            break;
        case 2:
            if (slot->ndim > 0) set_row_grad(s, i, 0);
            break;
        case 3:
            a->flags &= ~(unsigned)RMSP_WRITABLE;
            break;
        case 4:
            a->flags &= ~(unsigned)RMSP_ALIGNED;
            break;
        case 5:
            *a = (rmsp_array){.problem = problems[below(4)], .type = -1};
            break;
        case 6:
            a->data = s->param_list[other].data;
            break;
        case 7:
            a->data = state_of(s, other, RMSP_SQUARE_AVG).data;
            break;
        case 8:
            a->type ^= below(2) ? 1 : RMSP_PAIRS;
            break;
        case 9:
            if (a->problem == RMSP_OK) a->data = (char *)a->data + 8;
            break;
        case 10:
            if (new_params[i] != NULL) break;
            new_params[i] = new_array(slot->type, slot->ndim, slot->shape, (lie)below(LIE_BROADCAST));
            s->param_list[i] = new_params[i]->a;
            break;
        case 11:
            a->data = reals_in(&s->params[i]->a) > 0 ? NULL : a->data;
            break;
        case 12:
            a->data = s->grad_list[other].data;
            break;
        default:
            if (below(2)) set_new_grad(s, i, LIE_C, 0);
        }
    }
}

/* If the short way binds arrays, a full binding of a fresh plan gives the same; so it never binds what is refused. */
static void test_bind_again(void)
{
    int again = 0, refused = 0, changed = 0;
    for (int round = 0; round < 6000; round++) {
        const size_t n = 1 + below(3);
        sample *const s = new_sample(n, 1);
        array **const new_params = allocate(n, sizeof *new_params);
        random_group(&s->plan.groups[0]);
        s->plan.rules.accumulate = below(3) ? 1 : 2;
        s->plan.rules.averages = (int)below(2);
        s->plan.rules.nonfinite = below(3) ? RMSP_PROPAGATE : RMSP_SKIP;
        s->plan.rules.clips = below(3) == 0;
        for (size_t i = 0; i < n; i++) {
            ptrdiff_t shape[MAX_NDIM];
            const int ndim = random_shape(shape, 20), type = (int)below(2) | (below(3) ? 0 : RMSP_PAIRS);
            const int fortran = (int)below(2);
            set_leaf(s, i, new_array(type, ndim, shape, fortran ? LIE_F : below(6) ? LIE_C : LIE_STRIDED), 0, fortran);
        }
        finish_sample(s);
        for (size_t i = 0; i < n; i++) {
            const lie how = below(6) == 0                          ? (lie)below(LIE_COUNT)
                            : s->params[i]->a.flags & RMSP_C_ORDER ? LIE_C
                                                                   : LIE_F;
            if (below(5) > 0) set_new_grad(s, i, how, 0);
        }
        must_bind(s);
        for (int call = 0; call < 4; call++) {
            rmsp_refusal where;
            rmsp_axis *axes;
            change_arrays(s, new_params);
            if (s->plan.rules.accumulate > 1 && below(4) == 0) s->counts.seen[0] ^= 1;
            const int yes = s->plan.bound && bind_again(s);
            rmsp_plan copy = fresh_copy(s, &axes);
            const rmsp_reason reason = bind_arrays(&copy, s->param_list, s->grad_list, &where);
            if (yes) {
                CHECK(reason == RMSP_OK);
            } else {
                CHECK(bind_sample(s, &where) == reason); /* whatever the plan knew from before */
                CHECK(s->plan.bound == (reason == RMSP_OK));
            }
            for (size_t i = 0; i < n && reason == RMSP_OK; i++) {
                const rmsp_leaf *const leaf = &s->plan.leaves[i], *const fresh = &copy.leaves[i];
                CHECK(memcmp(leaf->array, fresh->array, sizeof leaf->array) == 0);
                CHECK(leaf->n == fresh->n);
                if (leaf->n == 0) continue; /* however that lies */
                CHECK((leaf->extra == NULL) == (fresh->extra == NULL));
                const rmsp_extra *const extra = &s->plan.extras[i], *const other = &copy.extras[i];
                CHECK(extra->layout.ndim == other->layout.ndim && extra->grad_order.ndim == other->grad_order.ndim);
                CHECK(extra->sum_order.ndim == other->sum_order.ndim && extra->clip == other->clip);
                CHECK(extra->rows.index == other->rows.index && extra->rows.count == other->rows.count);
                CHECK(!yes || (extra->layout.ndim == 0 && extra->rows.index == NULL));
            }
            if (reason == RMSP_OK) {
                CHECK(s->plan.work.elements == copy.work.elements && s->plan.work.bytes == copy.work.bytes);
            }
            again += yes;
            refused += reason != RMSP_OK;
            changed += !yes && reason == RMSP_OK;
            free_copy(&copy, axes);
            if (reason == RMSP_OK) continue;
            for (size_t i = 0; i < n; i++) {
                s->param_list[i] = new_params[i] != NULL ? new_params[i]->a : s->params[i]->a;
                s->grad_list[i] = absent_array;
                s->counts.seen[i] = 0;
            }
            must_bind(s);
        }
        for (size_t i = 0; i < n; i++) free_array(new_params[i]);
        free(new_params);
        free_sample(s);
    }
    CHECK(again > 2000 && refused > 2000 && changed > 2000);
}

/* ---- buffers that the caller gives at each step ---- */

#define GIVEN 4 /* leaves */

/* Arrays of all leaves, by array. */
typedef struct given {
    sample *s;
    array *arrays[RMSP_ARRAY_COUNT][GIVEN];
    rmsp_array lists[RMSP_ARRAY_COUNT][GIVEN];
} given;

/* Puts the arrays that are bound back to those that were made. */
static void restore_given(given *g)
{
    for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
        for (int i = 0; i < GIVEN; i++) g->lists[k][i] = g->arrays[k][i] == NULL ? absent_array : g->arrays[k][i]->a;
    }
}

static given *new_given(int type, const lie how[RMSP_ARRAY_COUNT])
{
    static const ptrdiff_t shapes[GIVEN][2] = {{2, 2}, {3, 5}, {1, 9}, {7, 2}};
    given *const g = allocate(1, sizeof *g);
    g->s = new_sample(GIVEN, 1);
    g->s->plan.groups[0].momentum = RMSP_MOMENTUM_CLASSIC;
    g->s->plan.groups[0].coef.momentum = 0.5;
    g->s->plan.groups[0].centered = 1;
    rmsp_group_refresh(&g->s->plan.groups[0]);
    for (size_t i = 0; i < GIVEN; i++) set_leaf(g->s, i, new_array(type, 2, shapes[i], LIE_C), 0, 0);
    finish_sample(g->s);
    g->s->plan.memory_count = 0;
    free(g->s->plan.ranges);
    g->s->plan.ranges = allocate(GIVEN * RMSP_ARRAY_COUNT, sizeof *g->s->plan.ranges);
    for (int k = 0; k <= RMSP_GRAD_AVG; k++) {
        for (size_t i = 0; i < GIVEN; i++) {
            g->arrays[k][i] = new_array(type, 2, shapes[i], how[k]);
            fill(&g->arrays[k][i]->a, 0);
            for (size_t e = 0; k == RMSP_SQUARE_AVG && e < reals_in(&g->arrays[k][i]->a); e++) {
                set_real(&g->arrays[k][i]->a, e, fabs(get_real(&g->arrays[k][i]->a, e)));
            }
        }
    }
    restore_given(g);
    return g;
}

static void free_given(given *g)
{
    for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
        for (int i = 0; i < GIVEN; i++) free_array(g->arrays[k][i]);
    }
    free_sample(g->s);
    free(g);
}

static rmsp_reason bind_given(given *g, rmsp_refusal *where)
{
    const rmsp_array *lists[RMSP_ARRAY_COUNT] = {NULL};
    for (int k = 0; k <= RMSP_GRAD_AVG; k++) lists[k] = g->lists[k];
    rmsp_reason reason = rmsp_bind(&g->s->plan, lists, where);
    if (reason == RMSP_NEEDS_AXES) {
        CHECK(g->s->axes == NULL);
        g->s->axes = allocate(rmsp_axis_count(&g->s->plan), sizeof *g->s->axes);
        rmsp_use_axes(&g->s->plan, g->s->axes);
        reason = rmsp_bind(&g->s->plan, lists, where);
    }
    CHECK((reason == RMSP_OK) == g->s->plan.bound);
    return reason;
}

/* Steps with buffers in random layouts, which change place between steps, beside the same in C order; leaf 2 is left
 * out of the second step, leaf 1 has no gradient in the third. */
static void test_given_buffers(void)
{
    static const lie plain[RMSP_ARRAY_COUNT] = {LIE_C};
    for (int round = 0; round < 200; round++) {
        const int type = round % 2 ? RMSP_F64 : RMSP_F32 | (round % 4 ? RMSP_PAIRS : 0);
        lie how[RMSP_ARRAY_COUNT];
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) how[k] = (lie)below(round < 40 ? 2 : LIE_BROADCAST);
        given *const one = new_given(type, plain), *const other = new_given(type, how);
        for (int step = 0; step < 4; step++) {
            rmsp_refusal where;
            rmsp_found found;
            for (int k = 0; k <= RMSP_GRAD_AVG; k++) {
                for (int i = 0; i < GIVEN; i++) {
                    const rmsp_array *const from = &one->arrays[k][i]->a;
                    if (step == 2 && k != RMSP_PARAM) { /* in other memory, and another layout */
                        free_array(other->arrays[k][i]);
                        other->arrays[k][i] = new_array(type, 2, from->shape, (lie)below(LIE_BROADCAST));
                    }
                    for (size_t e = 0; e < reals_in(from); e++) {
                        set_real(&other->arrays[k][i]->a, e, get_real(from, e));
                    }
                }
            }
            for (int g = 0; g < 2; g++) {
                given *const each = g ? other : one;
                restore_given(each);
                if (step == 1) each->lists[RMSP_PARAM][2] = each->lists[RMSP_GRAD][2] = absent_array;
                if (step == 3) each->lists[RMSP_GRAD][1] = absent_array;
                CHECK(bind_given(each, &where) == RMSP_OK);
                CHECK(rmsp_step(&each->s->plan, &found) == RMSP_STEPPED);
                if (step != 1) continue; /* a parameter that comes back is not taken for bound */
                CHECK(rmsp_bind_again(&each->s->plan, &each->s->plan.leaves[2], &each->s->plan.slots[2],
                                      &each->arrays[RMSP_PARAM][2]->a, &absent_array) == RMSP_AGAIN_NO);
            }
            for (int k = 0; k <= RMSP_GRAD_AVG; k++) {
                for (int i = 0; i < GIVEN; i++) {
                    const rmsp_array *const a = &one->arrays[k][i]->a, *const b = &other->arrays[k][i]->a;
                    for (size_t e = 0; e < reals_in(a); e++) CHECK(same_bits(get_real(a, e), get_real(b, e)));
                }
            }
        }
        free_given(one);
        free_given(other);
    }
}

/* A buffer that is given is checked like a parameter, and nothing written may overlap anything else. Those of leaf 0
 * fit into all others. */
static void test_given_buffers_refused(void)
{
    static const lie plain[RMSP_ARRAY_COUNT] = {LIE_C};
    static const ptrdiff_t narrow[] = {2, 1}, flat[] = {0, 4}, close[] = {4, 4};
    given *const g = new_given(RMSP_F32, plain);
    rmsp_refusal where;
    for (int k = RMSP_SQUARE_AVG; k <= RMSP_GRAD_AVG; k++) {
        rmsp_array *const a = &g->lists[k][0];
        const struct {
            rmsp_array array;
            rmsp_reason reason;
        } bad[] = {
            {{.problem = RMSP_DEVICE, .type = -1}, RMSP_DEVICE},
            {{a->data, a->shape, a->strides, NULL, 0, 2, RMSP_F64, a->flags, RMSP_OK}, RMSP_OTHER_DTYPE},
            {{a->data, narrow, a->strides, NULL, 0, 2, RMSP_F32, a->flags, RMSP_OK}, RMSP_OTHER_SHAPE},
            {{a->data, a->shape, a->strides, NULL, 0, 1, RMSP_F32, a->flags, RMSP_OK}, RMSP_OTHER_SHAPE},
            {{a->data, a->shape, a->strides, NULL, 0, 2, RMSP_F32, RMSP_WRITABLE, RMSP_OK}, RMSP_MISALIGNED},
            {{a->data, a->shape, a->strides, NULL, 0, 2, RMSP_F32, RMSP_ALIGNED, RMSP_OK}, RMSP_READ_ONLY},
            {{NULL, a->shape, a->strides, NULL, 0, 2, RMSP_F32, a->flags, RMSP_OK}, RMSP_NULL_DATA},
            {{a->data, a->shape, flat, NULL, 0, 2, RMSP_F32, RMSP_ALIGNED | RMSP_WRITABLE, RMSP_OK}, RMSP_SELF_OVERLAP},
            {{a->data, a->shape, close, NULL, 0, 2, RMSP_F32, RMSP_ALIGNED | RMSP_WRITABLE, RMSP_OK},
             RMSP_SELF_OVERLAP},
        };
        for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
            *a = bad[b].array;
            CHECK(bind_given(g, &where) == bad[b].reason && where.leaf == 0 && where.array == k);
            restore_given(g);
            CHECK(bind_given(g, &where) == RMSP_OK);
        }
        for (int other = 0; other <= RMSP_GRAD_AVG; other++) {
            for (int leaf = 0; leaf < GIVEN; leaf++) {
                if (leaf == 0 && other == k) continue;
                a->data = (char *)g->arrays[other][leaf]->a.data + (leaf > 0 ? 4 : 0);
                CHECK(bind_given(g, &where) == RMSP_OVERLAP);
                if (other == RMSP_GRAD) {
                    CHECK(where.leaf == (size_t)leaf && where.array == RMSP_GRAD);
                    CHECK(where.other_leaf == 0 && where.other_array == k);
                } else {
                    const int comes_first = leaf > 0 || k < other;
                    CHECK(where.leaf == (size_t)(comes_first ? 0 : leaf) && where.array == (comes_first ? k : other));
                    CHECK(where.other_leaf == (size_t)(comes_first ? leaf : 0));
                    CHECK(where.other_array == (comes_first ? other : k));
                }
                /* A leaf that is left out is not written. */
                if (leaf > 0) {
                    g->lists[RMSP_PARAM][leaf] = g->lists[RMSP_GRAD][leaf] = absent_array;
                    CHECK(bind_given(g, &where) == RMSP_OK);
                }
                restore_given(g);
                CHECK(bind_given(g, &where) == RMSP_OK);
            }
        }
    }
    free_given(g);
}

int main(void)
{
    test_reasons_of_one_array();
    test_read_only();
    test_self_overlap();
    test_overlapping_parameters();
    test_overlapping_gradients();
    test_rows_refused();
    test_first_reason();
    test_layouts();
    test_permuted();
    test_joined_axes();
    test_layout_of_rows();
    test_work();
    test_dense_strides();
    test_overlap_by_brute_force();
    test_hard_overlap();
    test_long_interleaved();
    test_interleaved();
    test_moved_parameter();
    test_wider_gradient();
    test_gradient_of_a_wider_type();
    test_parameter_moved_within_its_range();
    test_gaps_by_brute_force();
    test_sorted_ranges();
    test_bind_again();
    test_given_buffers();
    test_given_buffers_refused();
    return 0;
}
