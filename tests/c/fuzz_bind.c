/* fuzz_bind.c: descriptors of anything, beside a search that compares every element with every other one.
 *
 * Binding reads no element, so that addresses and strides may be any that an array could have. What it accepts has to
 * be right in every respect; what it refuses has to have the fault that it names; and what its short form accepts, the
 * long form must.
 */
#include "fuzz.h"

enum { MOST_LEAVES = 4, MOST_ELEMENTS = 64 };

/* What is bound: the descriptors of one call. */
typedef struct call {
    sample *s;
    int is_given, has_grads;
    rmsp_array list[RMSP_ARRAY_COUNT][MOST_LEAVES];
    ptrdiff_t shape[RMSP_ARRAY_COUNT][MOST_LEAVES][MAX_NDIM], strides[RMSP_ARRAY_COUNT][MOST_LEAVES][MAX_NDIM];
    ptrdiff_t rows[MOST_LEAVES][8];
} call;

/* ---- the plain search ---- */

static size_t elements_of(const rmsp_array *a, uintptr_t at[MOST_ELEMENTS])
{
    const size_t reals = reals_of_type(a->type), n = reals_in(a) / reals;
    for (size_t e = 0; e < n; e++) at[e] = (uintptr_t)place_of(a, e * reals);
    return n;
}

static int share(const rmsp_array *one, const rmsp_array *other)
{
    uintptr_t at[MOST_ELEMENTS], other_at[MOST_ELEMENTS];
    const size_t n = elements_of(one, at), other_n = elements_of(other, other_at);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < other_n; j++) {
            if (at[i] < other_at[j] + size_of_item(other->type) && other_at[j] < at[i] + size_of_item(one->type))
                return 1;
        }
    }
    return 0;
}

static int shares_itself(const rmsp_array *a)
{
    uintptr_t at[MOST_ELEMENTS];
    const size_t n = elements_of(a, at), size = size_of_item(a->type);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = i + 1; j < n; j++) {
            if (at[i] < at[j] + size && at[j] < at[i] + size) return 1;
        }
    }
    return 0;
}

/* Array k of leaf i that a step writes; none has problem RMSP_ABSENT. */
static rmsp_array written(const call *c, size_t i, int k)
{
    if (k == RMSP_PARAM || c->is_given) return c->list[k][i];
    return has_state(c->s, i, k) ? state_of(c->s, i, k) : absent_array;
}

/* Whether an array of this type may be array k of a leaf. */
static int type_fits(const call *c, size_t i, int k, int type)
{
    const int own = c->s->plan.slots[i].type;
    if (k == RMSP_PARAM) return type == own;
    if (k != RMSP_GRAD) return type == state_of(c->s, i, k).type;
    return type == own || ((own == RMSP_F32 || own == RMSP_BF16) && (type == RMSP_F32 || type == RMSP_BF16));
}

/* Whether random bits and halves are counted by the place of an element in array k. */
static int is_counted(const call *c, size_t i, int k)
{
    const int narrow = c->s->plan.slots[i].type == RMSP_BF16 || c->s->plan.extras[i].avg16;
    return k == RMSP_LOW_HALF || (k == RMSP_SQUARE_AVG && narrow);
}

/* Whether this fault is one of the array itself. */
static int has_fault(const call *c, size_t i, int k, rmsp_reason reason)
{
    const rmsp_array *const a = &c->list[k][i];
    const rmsp_slot *const slot = &c->s->plan.slots[i];
    int shape_differs = a->ndim != slot->ndim;
    for (int axis = a->rows != NULL; !shape_differs && axis < a->ndim; axis++) {
        shape_differs |= a->shape[axis] != slot->shape[axis];
    }
    if (reason == RMSP_ABSENT || a->problem != RMSP_OK) return a->problem == reason;
    switch (reason) {
    case RMSP_MISALIGNED:
        return !(a->flags & RMSP_ALIGNED);
    case RMSP_OTHER_DTYPE:
        return !type_fits(c, i, k, a->type);
    case RMSP_NOT_C_ORDER:
        return is_counted(c, i, k) && !(a->flags & RMSP_C_ORDER);
    case RMSP_OTHER_SHAPE:
        return shape_differs || (a->rows != NULL && (a->ndim == 0 || a->shape[0] != (ptrdiff_t)a->row_count));
    case RMSP_NULL_DATA:
        return a->data == NULL && reals_in(a) > 0;
    case RMSP_READ_ONLY:
        return k != RMSP_GRAD && !(a->flags & RMSP_WRITABLE);
    case RMSP_SELF_OVERLAP: /* it may be refused where strides interleave, but not where it is dense */
        return k != RMSP_GRAD && !(a->flags & (RMSP_C_ORDER | RMSP_F_ORDER));
    case RMSP_ROWS_STRIDED:
        return a->rows != NULL && !(a->flags & RMSP_C_ORDER);
    case RMSP_ROWS_ACCUMULATED:
        return a->rows != NULL && c->s->plan.rules.accumulate > 1;
    default:
        return 0;
    }
}

static int has_row_fault(const call *c, const rmsp_refusal *where, rmsp_reason reason)
{
    const rmsp_array *const a = &c->list[RMSP_GRAD][where->leaf];
    CHECK(where->array == RMSP_GRAD && a->rows != NULL && where->row < a->row_count);
    const ptrdiff_t row = a->rows[where->row];
    if (reason == RMSP_ROW_OUTSIDE) return row < 0 || row >= c->s->plan.slots[where->leaf].shape[0];
    return where->row > 0 && row <= a->rows[where->row - 1];
}

static void check_refusal(const call *c, rmsp_reason reason, const rmsp_refusal *where)
{
    CHECK(where->leaf < c->s->plan.leaf_count && !c->s->plan.bound);
    if (reason == RMSP_OVERLAP) {
        const rmsp_array one =
            where->array == RMSP_GRAD ? c->list[RMSP_GRAD][where->leaf] : written(c, where->leaf, where->array);
        const rmsp_array other = written(c, where->other_leaf, where->other_array);
        CHECK(share(&one, &other));
    } else if (reason == RMSP_ROW_OUTSIDE || reason == RMSP_ROW_ORDER) {
        CHECK(has_row_fault(c, where, reason));
    } else {
        CHECK(has_fault(c, where->leaf, where->array, reason));
    }
}

static void check_accepted(const call *c)
{
    const rmsp_plan *const plan = &c->s->plan;
    static const rmsp_reason faults[] = {RMSP_MISALIGNED,   RMSP_OTHER_DTYPE,      RMSP_OTHER_SHAPE, RMSP_NULL_DATA,
                                         RMSP_ROWS_STRIDED, RMSP_ROWS_ACCUMULATED, RMSP_NOT_C_ORDER};
    size_t written_count = plan->memory_count;
    CHECK(plan->bound);
    for (size_t i = 0; i < plan->leaf_count; i++) {
        const rmsp_array *const grad = &c->list[RMSP_GRAD][i];
        const int is_out = c->is_given && c->list[RMSP_PARAM][i].problem == RMSP_ABSENT;
        const int has_grad = c->has_grads && grad->problem != RMSP_ABSENT;
        const int seen = plan->rules.accumulate > 1 && c->s->counts.seen[i];
        for (int k = 0; k < RMSP_ARRAY_COUNT && !is_out; k++) {
            const rmsp_array *const a = &c->list[k][i];
            if (k == RMSP_GRAD ? !has_grad : k > RMSP_GRAD && (!c->is_given || a->problem == RMSP_ABSENT)) continue;
            CHECK(a->problem == RMSP_OK);
            for (size_t f = 0; f < sizeof faults / sizeof *faults; f++) CHECK(!has_fault(c, i, k, faults[f]));
            if (k == RMSP_GRAD) continue;
            written_count += reals_in(a) > 0;
            CHECK(!shares_itself(a));
            CHECK(a->flags & RMSP_WRITABLE || (k == RMSP_PARAM && c->has_grads && !has_grad && !seen));
        }
        for (int k = 0; is_out && k < RMSP_STEP_ARRAYS; k++) CHECK(plan->leaves[i].array[k] == NULL);
        if (!is_out) { /* no layout is found that no norm asks for */
            const rmsp_extra *const extra = &plan->extras[i];
            const int looks = plan->rules.clips || plan->rules.nonfinite != RMSP_PROPAGATE;
            CHECK(extra->grad_order.ndim == 0 || (looks && has_grad && grad->rows == NULL));
            CHECK(extra->sum_order.ndim == 0 || (plan->rules.clips && extra->grad_sum != NULL));
        }
        for (size_t row = 0; has_grad && !is_out && grad->rows != NULL && row < grad->row_count; row++) {
            CHECK(grad->rows[row] >= 0 && grad->rows[row] < plan->slots[i].shape[0]);
            CHECK(row == 0 || grad->rows[row] > grad->rows[row - 1]);
        }
        for (size_t j = 0; j < plan->leaf_count * RMSP_ARRAY_COUNT; j++) { /* with all that is written */
            const size_t other_leaf = j / RMSP_ARRAY_COUNT;
            const int other = (int)(j % RMSP_ARRAY_COUNT);
            const rmsp_array b = written(c, other_leaf, other);
            if (other == RMSP_GRAD || b.problem == RMSP_ABSENT) continue;
            if (c->is_given && c->list[RMSP_PARAM][other_leaf].problem == RMSP_ABSENT) continue;
            for (int k = 0; k < RMSP_ARRAY_COUNT && !is_out; k++) {
                const rmsp_array a = k == RMSP_GRAD ? *grad : written(c, i, k);
                if (a.problem == RMSP_ABSENT || (k == RMSP_GRAD && !has_grad) || (i == other_leaf && k == other))
                    continue;
                CHECK(!share(&a, &b));
            }
        }
    }
    CHECK(plan->range_count <= written_count);
}

/* ---- descriptors ---- */

/* Whether an array goes over an end of the address space, as none can. */
static int wraps(const rmsp_array *a)
{
    uintptr_t low = (uintptr_t)a->data, high = low;
    for (int axis = 0; axis < a->ndim; axis++) {
        const uintptr_t reach = (uintptr_t)a->strides[axis] * (uintptr_t)(a->shape[axis] - 1);
        if (a->shape[axis] > 0) *(a->strides[axis] < 0 ? &low : &high) += reach;
    }
    return low > high;
}

/* Its flags of order, after a change of shape or strides. */
static void find_order(rmsp_array *a)
{
    a->flags = (a->flags & (RMSP_ALIGNED | RMSP_WRITABLE)) | (flags_of(a) & (RMSP_C_ORDER | RMSP_F_ORDER));
}

/* Changes a good descriptor in one respect. */
static void spoil(const call *c, rmsp_array *a, ptrdiff_t *shape, ptrdiff_t *strides)
{
    static const rmsp_reason problems[] = {RMSP_NOT_AN_ARRAY, RMSP_MASKED, RMSP_UNSUPPORTED, RMSP_BYTE_ORDER,
                                           RMSP_ABSENT};
    const ptrdiff_t size = (ptrdiff_t)size_of_item(a->type);
    const size_t axis = a->ndim > 0 ? below((size_t)a->ndim) : 0;
    const sample *const s = c->s;
    switch (below(10)) {
    case 0:
        a->problem = problems[below(5)];
        a->type = -1;
        return;
    case 1:
        a->flags &= ~(unsigned)(below(2) ? RMSP_ALIGNED : RMSP_WRITABLE);
        return;
    case 2:
        a->type = (int)below(RMSP_TYPE_COUNT) | (below(2) ? RMSP_PAIRS : 0);
        return;
    case 3:
        shape[axis] = (ptrdiff_t)below(4);
        break;
    case 4:
        if (a->ndim == 0) return;
        a->ndim--;
        break;
    case 5:
        a->data = NULL;
        return;
    case 6:
    case 7: /* near to, or within, another array */
        a->data = below(2) ? s->state : s->params[below(s->plan.leaf_count)]->memory;
        a->data = (void *)((uintptr_t)a->data + (uintptr_t)((ptrdiff_t)below(64) - 16) * (uintptr_t)size);
        return;
    case 8:
        strides[axis] = size * ((ptrdiff_t)below(13) - 6);
        break;
    default:
        strides[axis] = size * ((ptrdiff_t)1 << below(sizeof(ptrdiff_t) == 8 ? 38 : 22)) * (below(2) ? 1 : -1);
    }
    find_order(a);
}

static void describe(call *c, size_t i, int k, const rmsp_array *like, size_t spoils)
{
    rmsp_array *const a = &c->list[k][i];
    *a = *like;
    if (a->problem == RMSP_ABSENT) return;
    memcpy(c->shape[k][i], like->shape, (size_t)like->ndim * sizeof *like->shape);
    memcpy(c->strides[k][i], like->strides, (size_t)like->ndim * sizeof *like->strides);
    a->shape = c->shape[k][i];
    a->strides = c->strides[k][i];
    while (spoils-- > 0 && a->problem == RMSP_OK) {
        spoil(c, a, c->shape[k][i], c->strides[k][i]);
        if (!wraps(a)) continue;
        memset(c->strides[k][i], 0, (size_t)a->ndim * sizeof *a->strides);
        find_order(a);
    }
    if (k != RMSP_GRAD || a->ndim == 0 || a->problem != RMSP_OK || below(4) > 0) return;
    a->row_count = below(5);
    a->rows = c->rows[i];
    if (below(8) > 0) c->shape[k][i][0] = (ptrdiff_t)a->row_count;
    for (size_t row = 0; row < a->row_count; row++)
        c->rows[i][row] = (ptrdiff_t)(below(8) > 0 ? row : below(7)) - !below(20);
    find_order(a);
}

static void describe_all(call *c)
{
    for (size_t i = 0; i < c->s->plan.leaf_count; i++) {
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
            const size_t spoils = below(8) == 0 ? 1 + below(3) : 0;
            if (k == RMSP_GRAD) {
                describe(c, i, k, c->s->grads[i] == NULL ? &absent_array : &c->s->grads[i]->a, spoils);
            } else if (k == RMSP_PARAM) {
                describe(c, i, k, &c->s->params[i]->a, spoils);
            } else if (c->is_given) {
                rmsp_array state = has_state(c->s, i, k) ? state_of(c->s, i, k) : absent_array;
                if (state.problem == RMSP_OK) state.flags = flags_of(&state);
                describe(c, i, k, &state, spoils);
            }
        }
        /* A leaf of the step has its square_avg, which a caller looks after. */
        if (c->is_given && c->list[RMSP_SQUARE_AVG][i].problem == RMSP_ABSENT) c->list[RMSP_PARAM][i] = absent_array;
    }
}

static rmsp_reason bind(call *c, rmsp_refusal *where)
{
    const rmsp_array *arrays[RMSP_ARRAY_COUNT] = {c->list[RMSP_PARAM], c->has_grads ? c->list[RMSP_GRAD] : NULL};
    sample *const s = c->s;
    for (int k = RMSP_SQUARE_AVG; c->is_given && k < RMSP_ARRAY_COUNT; k++) arrays[k] = c->list[k];
    rmsp_reason reason = rmsp_bind(&s->plan, arrays, where);
    if (reason != RMSP_NEEDS_AXES) return reason;
    CHECK(!s->plan.bound && s->axes == NULL);
    s->axes = allocate(rmsp_axis_count(&s->plan), sizeof *s->axes);
    rmsp_use_axes(&s->plan, s->axes);
    reason = rmsp_bind(&s->plan, arrays, where);
    CHECK(reason != RMSP_NEEDS_AXES);
    return reason;
}

/* Gradients of the next step, by the short form; where it accepts them all, so must the long form. */
static void bind_shortly(call *c)
{
    rmsp_plan *const plan = &c->s->plan;
    rmsp_refusal where;
    for (size_t i = 0; i < plan->leaf_count; i++) {
        const rmsp_array like = c->s->grads[i] == NULL ? absent_array : c->s->grads[i]->a;
        describe(c, i, RMSP_GRAD, &like, below(2));
        const rmsp_array *const grad = &c->list[RMSP_GRAD][i];
        const rmsp_again again =
            rmsp_bind_again(plan, &plan->leaves[i], &plan->slots[i], &c->list[RMSP_PARAM][i], grad);
        if (again == RMSP_AGAIN_NO) return;
        if (again == RMSP_AGAIN_YES) continue;
        const uintptr_t low = (uintptr_t)grad->data;
        if (!rmsp_find_gap(plan, low, low + plan->slots[i].grad_bytes)) return;
    }
    CHECK(bind(c, &where) == RMSP_OK);
    check_accepted(c);
}

static void fuzz_once(void)
{
    call c = {.s = new_sample(1 + below(MOST_LEAVES), 1), .is_given = below(4) == 0, .has_grads = below(8) > 0};
    rmsp_plan *const plan = &c.s->plan;
    rmsp_rules *const rules = &plan->rules;
    random_group(&plan->groups[0]);
    c.s->has_bf16 = (int)below(2);
    c.s->is_split = (int)below(2);
    rules->accumulate = below(3) == 0 ? 2 : 1;
    rules->averages = (int)below(2);
    rules->clips = (int)below(2);
    rules->nonfinite = (rmsp_nonfinite)below(3);
    for (size_t i = 0; i < plan->leaf_count; i++) {
        ptrdiff_t shape[MAX_NDIM];
        const int ndim = (int)below(4), type = random_type(c.s, i, 4);
        for (int axis = 0; axis < ndim; axis++) shape[axis] = (ptrdiff_t)below(5);
        set_leaf(c.s, i, new_array(type, ndim, shape, (lie)below(LIE_BROADCAST)), 0, (int)below(2));
    }
    finish_sample(c.s);
    free(plan->ranges);
    plan->ranges = allocate(plan->leaf_count * RMSP_ARRAY_COUNT + 1, sizeof *plan->ranges);
    if (c.is_given) plan->memory_count = 0;
    for (int step = 0; step < 3; step++) {
        rmsp_refusal where = {99, 99, 99, 99, 99};
        for (size_t i = 0; i < plan->leaf_count; i++) {
            c.s->counts.seen[i] = below(4) == 0;
            if (below(4) == 0) {
                set_grad(c.s, i, NULL);
            } else {
                set_new_grad(c.s, i, (lie)below(LIE_COUNT), 0);
            }
        }
        describe_all(&c);
        const rmsp_reason reason = bind(&c, &where);
        if (reason != RMSP_OK) {
            check_refusal(&c, reason, &where);
            continue;
        }
        check_accepted(&c);
        if (c.has_grads && !c.is_given) bind_shortly(&c);
    }
    free_sample(c.s);
}
