/* rmsp_bind.c: from array descriptors to a leaf: dense, strided or rows; or a reason to refuse them.
 *
 * a) Every decision on arrays is made here and nowhere else: which are dense, which overlap, which may be written. A
 *    caller only puts the reasons into words.
 *
 * b) A leaf is worked on where it lies if all its arrays are dense in one order of the axes; else it gets a layout: the
 *    axes of all arrays from the slowest to the fastest of the parameter, neighbours joined where they can be.
 *
 * c) No array that is read may overlap one that is written, of whichever leaf. The written ones are kept as a sorted
 *    list of ranges. A gradient is compared with the gap between two ranges in which the last one was found, then by
 *    bisection; only where its bytes lie among written ones are elements compared (rmsp_arrays_overlap).
 *
 * d) plan->bound is 0 from the first change until everything was found to be in order, so that after a refusal
 *    everything is checked again.
 */
#include <assert.h>
#include <string.h>

#include "rmsp.h"

#define TRY(call)                               \
    do {                                        \
        const rmsp_reason reason_ = (call);     \
        if (reason_ != RMSP_OK) return reason_; \
    } while (0)

static inline size_t real_size(int type) { return rmsp_dtypes[type & ~RMSP_PAIRS].size; }

static inline size_t reals_of(int type) { return type & RMSP_PAIRS ? 2 : 1; }

static inline size_t item_size(const rmsp_array *array) { return real_size(array->type) * reals_of(array->type); }

static inline uintptr_t magnitude(ptrdiff_t stride) { return stride < 0 ? -(uintptr_t)stride : (uintptr_t)stride; }

static int is_empty(const rmsp_array *array)
{
    for (int axis = 0; axis < array->ndim; axis++) {
        if (array->shape[axis] == 0) return 1;
    }
    return 0;
}

/* The bytes from the first to behind the last element; none of an array without elements. */
static void range_of(const rmsp_array *array, uintptr_t *low, uintptr_t *high)
{
    *low = *high = (uintptr_t)array->data;
    if (is_empty(array)) return;
    for (int axis = 0; axis < array->ndim; axis++) {
        const uintptr_t reach = (uintptr_t)array->strides[axis] * (uintptr_t)(array->shape[axis] - 1);
        *(array->strides[axis] < 0 ? low : high) += reach;
    }
    *high += item_size(array);
}

const char *rmsp_reason_name(rmsp_reason reason)
{
#define NAME_OF(NAME, name) #name,
    static const char *const names[] = {RMSP_REASONS(NAME_OF)};
    assert((unsigned)reason < RMSP_REASON_COUNT);
    return names[reason];
}

/* ---- whether two arrays share memory ---- */

/* A sum of stride * i over some terms, each i from 0 to last. */
typedef struct term {
    uintptr_t stride, last;
} term;

typedef struct overlap_search {
    term terms[2 * RMSP_MAX_NDIM];
    int count;
    intptr_t reach[2 * RMSP_MAX_NDIM + 1]; /* the largest sum of the terms from this one on */
    intptr_t above, below;                 /* what the distance must be, both excluded */
    int budget;
} overlap_search;

#define OVERLAP_BUDGET 100000

static void add_term(overlap_search *search, uintptr_t stride, uintptr_t last)
{
    int k = search->count;
    for (int i = 0; i < search->count; i++) {
        if (search->terms[i].stride == stride) {
            search->terms[i].last += last;
            return;
        }
    }
    for (; k > 0 && search->terms[k - 1].stride < stride; k--) search->terms[k] = search->terms[k - 1];
    search->terms[k] = (term){stride, last};
    search->count++;
}

static intptr_t floor_divide(intptr_t a, intptr_t b) { return a / b - (a % b < 0); }

/* Whether some choice of the terms from k on brings the distance into the open interval, which the smallest does not
 * exceed and the largest does not fall short of; 1 where the budget ends. The strides decrease, so that in usual arrays
 * each level has one or two choices. */
static int can_meet(overlap_search *search, int k, intptr_t distance)
{
    if (k == search->count) return 1;
    if (search->budget-- <= 0) return 1;
    const intptr_t stride = (intptr_t)search->terms[k].stride, last = (intptr_t)search->terms[k].last;
    const intptr_t first = floor_divide(search->above - search->reach[k + 1] - distance, stride) + 1;
    const intptr_t end = floor_divide(search->below - 1 - distance, stride);
    for (intptr_t i = first > 0 ? first : 0; i <= (end < last ? end : last); i++) {
        if (can_meet(search, k + 1, distance + i * stride)) return 1;
    }
    return 0;
}

int rmsp_arrays_overlap(const rmsp_array *one, const rmsp_array *other)
{
    uintptr_t low, high, other_low, other_high;
    assert(one->ndim < RMSP_MAX_NDIM && other->ndim < RMSP_MAX_NDIM);
    range_of(one, &low, &high);
    range_of(other, &other_low, &other_high);
    if (low == high || other_low == other_high) return 0; /* no elements, wherever that is */
    if (!rmsp_ranges_overlap(low, high, other_low, other_high)) return 0;

    /* An element of each share memory if low + sum(one's terms) - (other_low + sum(other's terms)) is above minus the
     * size of one's elements and below the size of the other's. Terms of the other are counted from their ends, so that
     * all are added. */
    overlap_search search = {.above = -(intptr_t)item_size(one), .below = (intptr_t)item_size(other)};
    intptr_t distance = (intptr_t)(low - other_low);
    for (int axis = 0; axis < one->ndim; axis++) {
        const uintptr_t last = (uintptr_t)one->shape[axis] - 1;
        if (last > 0 && one->strides[axis] != 0) add_term(&search, magnitude(one->strides[axis]), last);
    }
    for (int axis = 0; axis < other->ndim; axis++) {
        const uintptr_t last = (uintptr_t)other->shape[axis] - 1, stride = magnitude(other->strides[axis]);
        if (last == 0 || stride == 0) continue;
        add_term(&search, stride, last);
        distance -= (intptr_t)(stride * last);
    }
    for (int k = search.count; k-- > 0;) {
        search.reach[k] = search.reach[k + 1] + (intptr_t)(search.terms[k].stride * search.terms[k].last);
    }
    search.budget = OVERLAP_BUDGET;
    return can_meet(&search, 0, distance);
}

/* The axes of an array from the slowest to the fastest by `strides`. */
static void slowest_first(int ndim, const ptrdiff_t *strides, int *order)
{
    for (int axis = 0; axis < ndim; axis++) {
        int k = axis;
        for (; k > 0 && magnitude(strides[order[k - 1]]) < magnitude(strides[axis]); k--) order[k] = order[k - 1];
        order[k] = axis;
    }
}

void rmsp_dense_strides(int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t size, ptrdiff_t *dense)
{
    int order[RMSP_MAX_NDIM];
    ptrdiff_t stride = (ptrdiff_t)size;
    slowest_first(ndim, strides, order);
    for (int k = ndim - 1; k >= 0; k--) {
        dense[order[k]] = stride;
        stride *= shape[order[k]] > 0 ? shape[order[k]] : 1;
    }
}

/* Where none do, each stride reaches over all that the smaller ones span. */
int rmsp_overlaps_itself(int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t size)
{
    int order[RMSP_MAX_NDIM];
    uintptr_t span = size;
    for (int axis = 0; axis < ndim; axis++) {
        if (shape[axis] == 0) return 0;
    }
    slowest_first(ndim, strides, order);
    for (int k = ndim - 1; k >= 0; k--) {
        const uintptr_t length = (uintptr_t)shape[order[k]];
        const uintptr_t stride = magnitude(strides[order[k]]);
        if (length == 1) continue;
        if (stride < span) return 1;
        span += stride * (length - 1);
    }
    return 0;
}

static int overlaps_itself(const rmsp_array *array)
{
    return rmsp_overlaps_itself(array->ndim, array->shape, array->strides, item_size(array));
}

/* ---- how arrays lie ---- */

/* Adds an axis inside the last one of a layout, or joins the two where they are one in every array. */
static void add_axis(rmsp_layout *layout, const rmsp_axis *axis)
{
    rmsp_axis *const outer = layout->axes + layout->ndim - 1;
    int joins = layout->ndim > 0;
    for (int k = 0; joins && k < RMSP_ARRAY_COUNT; k++) {
        joins = outer->stride[k] == axis->stride[k] * (ptrdiff_t)axis->length;
    }
    if (joins) {
        const size_t length = outer->length * axis->length;
        *outer = *axis;
        outer->length = length;
    } else {
        layout->axes[layout->ndim++] = *axis;
    }
}

/* The layout of arrays with these strides and sizes of a real, from axis `first` on and in this order of the axes; NULL
 * for an array that there is not. ndim is 0 where they are dense. */
static void lay_out(rmsp_layout *layout, const rmsp_slot *slot, int first, const int *order,
                    const ptrdiff_t *const strides[RMSP_ARRAY_COUNT], const ptrdiff_t size[RMSP_ARRAY_COUNT])
{
    rmsp_axis axis;
    layout->ndim = 0;
    for (int i = 0; i < slot->ndim - first; i++) {
        const int a = first + (order == NULL ? i : order[i]);
        if (slot->shape[a] == 1) continue;
        axis.length = (size_t)slot->shape[a];
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) axis.stride[k] = strides[k] == NULL ? 0 : strides[k][a];
        add_axis(layout, &axis);
    }
    if (reals_of(slot->type) == 2 || layout->ndim == 0) {
        axis.length = reals_of(slot->type);
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) axis.stride[k] = strides[k] == NULL ? 0 : size[k];
        add_axis(layout, &axis);
    }
    int dense = layout->ndim == 1;
    for (int k = 0; k < RMSP_ARRAY_COUNT; k++) dense &= strides[k] == NULL || layout->axes[0].stride[k] == size[k];
    if (dense) layout->ndim = 0;
}

/* Axes for the layouts of a leaf: as many as its own and one for pairs, and room for one more while they are joined. */
static size_t axes_of(const rmsp_slot *slot) { return (size_t)slot->ndim + 1; }

size_t rmsp_axis_count(const rmsp_plan *plan)
{
    size_t count = 0;
    for (size_t i = 0; i < plan->leaf_count; i++) count += 3 * axes_of(&plan->slots[i]);
    return count;
}

void rmsp_use_axes(rmsp_plan *plan, rmsp_axis *axes)
{
    assert(axes != NULL || plan->leaf_count == 0);
    for (size_t i = 0; i < plan->leaf_count; i++) {
        rmsp_extra *const extra = &plan->extras[i];
        const size_t count = axes_of(&plan->slots[i]);
        extra->layout.axes = axes;
        extra->grad_order.axes = axes + count;
        extra->sum_order.axes = axes + 2 * count;
        axes += 3 * count;
    }
    plan->has_axes = 1;
}

/* Takes a layout over from one that was found on the stack. */
static rmsp_reason keep_layout(const rmsp_plan *plan, rmsp_layout *kept, const rmsp_layout *found)
{
    kept->ndim = found->ndim;
    if (found->ndim == 0) return RMSP_OK;
    if (!plan->has_axes) return RMSP_NEEDS_AXES;
    memcpy(kept->axes, found->axes, (size_t)found->ndim * sizeof *kept->axes);
    return RMSP_OK;
}

/* ---- one leaf ---- */

/* `type` is what it must be. */
static rmsp_reason check_array(const rmsp_array *array, const rmsp_slot *slot, int type)
{
    if (array->problem != RMSP_OK) return array->problem;
    assert((array->type & ~RMSP_PAIRS) >= 0 && (array->type & ~RMSP_PAIRS) < RMSP_TYPE_COUNT);
    if (!(array->flags & RMSP_ALIGNED)) return RMSP_MISALIGNED;
    if (array->type != type) return RMSP_OTHER_DTYPE;
    if (array->ndim != slot->ndim) return RMSP_OTHER_SHAPE;
    for (int axis = array->rows != NULL; axis < array->ndim; axis++) {
        if (array->shape[axis] != slot->shape[axis]) return RMSP_OTHER_SHAPE;
    }
    if (array->data == NULL && !is_empty(array)) return RMSP_NULL_DATA;
    return RMSP_OK;
}

static rmsp_reason check_rows(const rmsp_plan *plan, const rmsp_array *grad, const rmsp_slot *slot, rmsp_refusal *where)
{
    if (plan->rules.accumulate > 1) return RMSP_ROWS_ACCUMULATED;
    if (slot->ndim == 0 || grad->shape[0] != (ptrdiff_t)grad->row_count) return RMSP_OTHER_SHAPE;
    if (!(grad->flags & RMSP_C_ORDER)) return RMSP_ROWS_STRIDED;
    for (size_t i = 0; i < grad->row_count; i++) {
        where->row = i;
        if (grad->rows[i] < 0 || grad->rows[i] >= slot->shape[0]) return RMSP_ROW_OUTSIDE;
        if (i > 0 && grad->rows[i] <= grad->rows[i - 1]) return RMSP_ROW_ORDER;
    }
    return RMSP_OK;
}

static int rules_look_at_norms(const rmsp_rules *rules) { return rules->clips || rules->nonfinite != RMSP_PROPAGATE; }

/* Whether a leaf's step needs more than its arrays and coefficients. */
static int rules_need_extra(const rmsp_rules *rules)
{
    return rules->accumulate > 1 || rules->averages || rules_look_at_norms(rules);
}

/* Whether a leaf has this array, and where it is kept. */
static void **buffer_of(const rmsp_plan *plan, size_t i, int k)
{
    assert(k >= RMSP_SQUARE_AVG && k < RMSP_ARRAY_COUNT);
    if (k < RMSP_STEP_ARRAYS) return &plan->leaves[i].array[k];
    return k == RMSP_EMA        ? &plan->extras[i].ema
           : k == RMSP_GRAD_SUM ? &plan->extras[i].grad_sum
                                : &plan->extras[i].low_half;
}

/* The type of a leaf's state array. */
static int type_of_buffer(const rmsp_plan *plan, size_t i, int k)
{
    const int type = plan->slots[i].type;
    if (k == RMSP_LOW_HALF) return RMSP_LOW16;
    if (k == RMSP_SQUARE_AVG && plan->extras[i].avg16) return RMSP_BF16;
    return rmsp_arithmetic(type);
}

/* The type that a gradient must have: that of its parameter, but float32 and bfloat16 go together. */
static int type_of_grad(const rmsp_slot *slot, const rmsp_array *grad)
{
    const int both16 = rmsp_arithmetic(slot->type) == RMSP_F32 && (grad->type == RMSP_F32 || grad->type == RMSP_BF16);
    return both16 ? grad->type : slot->type;
}

static int is_given(const rmsp_array *const arrays[RMSP_ARRAY_COUNT], size_t i, int k)
{
    return arrays[k] != NULL && arrays[k][i].problem != RMSP_ABSENT;
}

/* Finds how the arrays of a leaf lie. */
static rmsp_reason place_leaf(rmsp_plan *plan, size_t i, const rmsp_array *param, const rmsp_array *grad,
                              const rmsp_array *const arrays[RMSP_ARRAY_COUNT])
{
    rmsp_leaf *const leaf = &plan->leaves[i];
    rmsp_slot *const slot = &plan->slots[i];
    rmsp_extra *const extra = &plan->extras[i];
    const rmsp_rules *const rules = &plan->rules;
    const int has_grad = grad->problem == RMSP_OK, has_rows = has_grad && grad->rows != NULL;
    const ptrdiff_t *strides[RMSP_ARRAY_COUNT] = {param->strides, has_grad ? grad->strides : NULL};
    const ptrdiff_t *alone[RMSP_ARRAY_COUNT] = {NULL};
    ptrdiff_t size[RMSP_ARRAY_COUNT] = {(ptrdiff_t)real_size(param->type)}, strides16[RMSP_MAX_NDIM];
    rmsp_axis axes[RMSP_MAX_NDIM + 1];
    rmsp_layout found = {0, axes};
    int order[RMSP_MAX_NDIM];

    size[RMSP_GRAD] = (ptrdiff_t)real_size(has_grad ? grad->type : slot->type);
    for (int axis = 0; axis < slot->ndim; axis++) strides16[axis] = slot->strides[axis] / 2;
    for (int k = RMSP_SQUARE_AVG; k < RMSP_ARRAY_COUNT; k++) {
        const int type = type_of_buffer(plan, i, k);
        size[k] = (ptrdiff_t)real_size(type);
        if (*buffer_of(plan, i, k) == NULL) continue;
        strides[k] = is_given(arrays, i, k)          ? arrays[k][i].strides
                     : rmsp_arithmetic(type) == type ? slot->strides
                                                     : strides16;
    }

    slowest_first(slot->ndim - has_rows, param->strides + has_rows, order);
    lay_out(&found, slot, has_rows, order, strides, size);
    const int dense = found.ndim == 0 && !has_rows;
    TRY(keep_layout(plan, &extra->layout, &found));

    extra->rows.index = has_rows ? grad->rows : NULL;
    extra->rows.count = has_rows ? grad->row_count : 0;
    for (int k = 0; has_rows && k < RMSP_ARRAY_COUNT; k++) extra->rows.stride[k] = strides[k] ? strides[k][0] : 0;

    extra->grad_order.ndim = extra->sum_order.ndim = 0;
    if (has_grad && !has_rows && rules_look_at_norms(rules)) {
        alone[RMSP_GRAD] = grad->strides;
        lay_out(&found, slot, 0, NULL, alone, size);
        TRY(keep_layout(plan, &extra->grad_order, &found));
    }
    if (rules->clips && extra->grad_sum != NULL) {
        alone[RMSP_GRAD] = slot->strides;
        size[RMSP_GRAD] = size[RMSP_GRAD_SUM];
        lay_out(&found, slot, 0, NULL, alone, size);
        TRY(keep_layout(plan, &extra->sum_order, &found));
    }

    leaf->n = slot->n;
    if (has_rows) leaf->n = slot->shape[0] == 0 ? 0 : slot->n / (size_t)slot->shape[0];
    leaf->array[RMSP_PARAM] = param->data;
    leaf->array[RMSP_GRAD] = has_grad ? grad->data : NULL;
    extra->param16 = slot->type == RMSP_BF16;
    const int grad_type = has_grad ? grad->type : slot->type;
    if (grad_type != slot->grad_type) slot->clear = NULL; /* the same address has other bytes behind it */
    slot->grad_type = grad_type;
    slot->grad_bytes = slot->n * real_size(slot->grad_type);
    extra->grad16 = slot->grad_type == RMSP_BF16; /* of the gradient that rmsp_bind_again takes, if there is none now */
    const int has16 = extra->param16 || extra->grad16 || extra->avg16;
    leaf->extra =
        rules_need_extra(rules) || extra->layout.ndim > 0 || has_rows || extra->lrs != NULL || has16 ? extra : NULL;
    extra->clip = 1;

    /* Arrays like these are bound again by rmsp_bind_again: dense in one order, in C order where norms are summed. */
    const unsigned order_flag = param->flags & (param->flags & RMSP_C_ORDER ? RMSP_C_ORDER : RMSP_F_ORDER);
    slot->param_flags = slot->grad_flags = RMSP_NEVER;
    if (dense && (order_flag == RMSP_C_ORDER || (order_flag == RMSP_F_ORDER && !rules_look_at_norms(rules)))) {
        slot->param_flags = order_flag | RMSP_ALIGNED | RMSP_WRITABLE;
        slot->grad_flags = order_flag | RMSP_ALIGNED;
    }
    return RMSP_OK;
}

/* Whether the place of an element in a state array is its index in C order. */
static int must_be_c_order(const rmsp_plan *plan, size_t i, int k)
{
    const int has16 = plan->slots[i].type == RMSP_BF16 || plan->extras[i].avg16;
    return k == RMSP_LOW_HALF || (k == RMSP_SQUARE_AVG && has16);
}

/* Takes over the buffers of a leaf that the caller gives. */
static rmsp_reason bind_buffers(rmsp_plan *plan, size_t i, const rmsp_array *const arrays[RMSP_ARRAY_COUNT],
                                rmsp_refusal *where)
{
    for (int k = RMSP_SQUARE_AVG; k < RMSP_ARRAY_COUNT; k++) {
        void **const buffer = buffer_of(plan, i, k);
        *buffer = NULL;
        if (!is_given(arrays, i, k)) continue;
        where->array = k;
        TRY(check_array(&arrays[k][i], &plan->slots[i], type_of_buffer(plan, i, k)));
        if (!(arrays[k][i].flags & RMSP_WRITABLE)) return RMSP_READ_ONLY;
        if (!(arrays[k][i].flags & RMSP_C_ORDER) && must_be_c_order(plan, i, k)) return RMSP_NOT_C_ORDER;
        if (overlaps_itself(&arrays[k][i])) return RMSP_SELF_OVERLAP;
        *buffer = arrays[k][i].data;
    }
    where->array = RMSP_PARAM;
    return RMSP_OK;
}

/* Takes a leaf out of the steps until it is bound again. */
static rmsp_reason leave_out(rmsp_plan *plan, size_t i)
{
    for (int k = 0; k < RMSP_STEP_ARRAYS; k++) plan->leaves[i].array[k] = NULL;
    plan->extras[i].ema = plan->extras[i].grad_sum = plan->extras[i].low_half = NULL;
    plan->slots[i].low = plan->slots[i].high = 0;
    return RMSP_OK;
}

static rmsp_reason bind_leaf(rmsp_plan *plan, size_t i, const rmsp_array *const arrays[RMSP_ARRAY_COUNT], int *moved,
                             rmsp_refusal *where)
{
    static const rmsp_array absent = {.problem = RMSP_ABSENT};
    const rmsp_array *const param = &arrays[RMSP_PARAM][i], *const grads = arrays[RMSP_GRAD];
    const rmsp_array *const grad = grads == NULL ? &absent : &grads[i];
    rmsp_slot *const slot = &plan->slots[i];
    const int seen = plan->rules.accumulate > 1 && plan->counts->seen[i];
    uintptr_t low, high;

    assert(slot->ndim >= 0 && slot->ndim < RMSP_MAX_NDIM); /* and one axis for pairs */
    assert(plan->leaves[i].dtype == (uint32_t)rmsp_arithmetic(slot->type & ~RMSP_PAIRS));
    assert(slot->ndim == 0 || slot->param_strides != NULL);
    where->leaf = i;
    where->array = RMSP_PARAM;
    slot->param_flags = slot->grad_flags = RMSP_NEVER;
    if (arrays[RMSP_SQUARE_AVG] != NULL) {
        if (param->problem == RMSP_ABSENT) return leave_out(plan, i);
        TRY(bind_buffers(plan, i, arrays, where));
    }
    assert(slot->n == 0 || grads == NULL || plan->leaves[i].array[RMSP_SQUARE_AVG] != NULL);
    TRY(check_array(param, slot, slot->type));
    if (!(param->flags & RMSP_WRITABLE) && (seen || grads == NULL || grad->problem != RMSP_ABSENT))
        return RMSP_READ_ONLY;
    if (overlaps_itself(param)) return RMSP_SELF_OVERLAP;
    if (grad->problem != RMSP_ABSENT) {
        where->array = RMSP_GRAD;
        TRY(check_array(grad, slot, type_of_grad(slot, grad)));
        if (grad->rows != NULL) {
            TRY(check_rows(plan, grad, slot, where));
        }
    }
    range_of(param, &low, &high);
    *moved |= low != slot->low;
    slot->low = low;
    slot->high = high;
    for (int axis = 0; axis < slot->ndim; axis++) { /* from the same byte on there may be other elements */
        *moved |= slot->param_strides[axis] != param->strides[axis];
        slot->param_strides[axis] = param->strides[axis];
    }
    return place_leaf(plan, i, param, grad, arrays);
}

/* ---- all that is written ---- */

/* Restores the order of a heap of n ranges below `root`. */
static void sift_down(rmsp_range *ranges, size_t root, size_t n)
{
    const rmsp_range sifted = ranges[root];
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && ranges[child].low < ranges[child + 1].low) child++;
        if (ranges[child].low <= sifted.low) break;
        ranges[root] = ranges[child];
    }
    ranges[root] = sifted;
}

/* Sorts by `low`, without memory of its own as qsort may want it. */
static void sort_ranges(rmsp_range *ranges, size_t n)
{
    size_t sorted = 1;
    while (sorted < n && ranges[sorted - 1].low <= ranges[sorted].low) sorted++;
    if (sorted >= n) return;
    for (size_t root = n / 2; root-- > 0;) sift_down(ranges, root, n);
    for (size_t last = n; last-- > 1;) {
        const rmsp_range largest = ranges[0];
        ranges[0] = ranges[last];
        ranges[last] = largest;
        sift_down(ranges, 0, last);
    }
}

/* Array k of a leaf, one that a step writes, as a descriptor; data is NULL where there is none. */
static rmsp_array written_array(const rmsp_plan *plan, const rmsp_array *const arrays[RMSP_ARRAY_COUNT], size_t i,
                                int k)
{
    const rmsp_slot *const slot = &plan->slots[i];
    if (arrays[k] != NULL) return arrays[k][i];
    rmsp_array array = {.shape = slot->shape, .strides = slot->strides, .ndim = slot->ndim, .type = slot->type};
    array.data = *buffer_of(plan, i, k);
    array.type = type_of_buffer(plan, i, k);
    if (array.type == RMSP_BF16 || array.type == RMSP_LOW16) { /* dense, of one axis */
        static const ptrdiff_t stride = sizeof(uint16_t);
        array.shape = (const ptrdiff_t *)&slot->n;
        array.strides = &stride;
        array.ndim = 1;
    }
    return array;
}

/* Refuses `array` if it overlaps a state array of any leaf. */
static rmsp_reason check_state(const rmsp_plan *plan, const rmsp_array *const arrays[RMSP_ARRAY_COUNT],
                               const rmsp_array *array, rmsp_refusal *where)
{
    for (size_t i = 0; i < plan->leaf_count; i++) {
        for (int k = RMSP_SQUARE_AVG; k < RMSP_ARRAY_COUNT; k++) {
            if (*buffer_of(plan, i, k) == NULL) continue;
            const rmsp_array state = written_array(plan, arrays, i, k);
            if (!rmsp_arrays_overlap(array, &state)) continue;
            where->other_leaf = i;
            where->other_array = k;
            return RMSP_OVERLAP;
        }
    }
    return RMSP_OK;
}

static rmsp_reason check_pair(const rmsp_plan *plan, const rmsp_array *const arrays[RMSP_ARRAY_COUNT],
                              const rmsp_range *one, const rmsp_range *other, rmsp_refusal *where)
{
    const int in_order = one->leaf < other->leaf || (one->leaf == other->leaf && one->array < other->array);
    const rmsp_range *const first = in_order ? one : other, *const second = in_order ? other : one;
    if (first->leaf == SIZE_MAX) return RMSP_OK; /* pieces of the state's memory do not overlap */
    const rmsp_array array = written_array(plan, arrays, first->leaf, first->array);
    where->leaf = first->leaf;
    where->array = first->array;
    if (second->leaf == SIZE_MAX) return check_state(plan, arrays, &array, where);
    where->other_leaf = second->leaf;
    where->other_array = second->array;
    const rmsp_array next = written_array(plan, arrays, second->leaf, second->array);
    return rmsp_arrays_overlap(&array, &next) ? RMSP_OVERLAP : RMSP_OK;
}

/* Makes the list of written ranges anew, and refuses arrays that overlap each other. */
static rmsp_reason order_ranges(rmsp_plan *plan, const rmsp_array *const arrays[RMSP_ARRAY_COUNT], rmsp_refusal *where)
{
    rmsp_range *const ranges = plan->ranges;
    size_t count = 0, merged = 0;
    for (size_t i = 0; i < plan->leaf_count; i++) {
        const rmsp_slot *const slot = &plan->slots[i];
        if (slot->low < slot->high) ranges[count++] = (rmsp_range){slot->low, slot->high, i, RMSP_PARAM};
        for (int k = RMSP_SQUARE_AVG; k < RMSP_ARRAY_COUNT && slot->low < slot->high; k++) {
            rmsp_range range = {.leaf = i, .array = k};
            if (!is_given(arrays, i, k)) continue;
            range_of(&arrays[k][i], &range.low, &range.high);
            ranges[count++] = range;
        }
    }
    for (size_t i = 0; i < plan->memory_count; i++) ranges[count++] = plan->memory[i];
    sort_ranges(ranges, count);
    for (size_t i = 0; i + 1 < count; i++) {
        for (size_t j = i + 1; j < count && ranges[j].low < ranges[i].high; j++) {
            TRY(check_pair(plan, arrays, &ranges[i], &ranges[j], where));
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (merged > 0 && ranges[i].low <= ranges[merged - 1].high) {
            if (ranges[i].high > ranges[merged - 1].high) ranges[merged - 1].high = ranges[i].high;
        } else {
            ranges[merged++] = ranges[i];
        }
    }
    plan->range_count = merged;
    plan->gap_low = plan->gap_high = 0;
    return RMSP_OK;
}

int rmsp_find_gap(rmsp_plan *plan, uintptr_t low, uintptr_t high)
{
    assert(low <= high);
    size_t first = 0, end = plan->range_count; /* the first range that ends behind `low` is among these, or is `end` */
    while (first < end) {
        const size_t middle = first + (end - first) / 2;
        if (plan->ranges[middle].high > low) {
            end = middle;
        } else {
            first = middle + 1;
        }
    }
    const uintptr_t next = first < plan->range_count ? plan->ranges[first].low : UINTPTR_MAX;
    if (next < high) return 0;
    plan->gap_low = first > 0 ? plan->ranges[first - 1].high : 0;
    plan->gap_high = next;
    return 1;
}

/* Refuses a gradient that overlaps anything written. */
static rmsp_reason check_gradient(rmsp_plan *plan, size_t i, const rmsp_array *const arrays[RMSP_ARRAY_COUNT],
                                  rmsp_refusal *where)
{
    const rmsp_array *const grad = &arrays[RMSP_GRAD][i];
    rmsp_slot *const slot = &plan->slots[i];
    const int dense = slot->grad_flags != RMSP_NEVER; /* its bytes follow from its address */
    uintptr_t low, high;
    if (dense && slot->clear == grad->data) return RMSP_OK;
    range_of(grad, &low, &high);
    if (low < high && (low < plan->gap_low || high > plan->gap_high) && !rmsp_find_gap(plan, low, high)) {
        where->leaf = i;
        where->array = RMSP_GRAD;
        TRY(check_state(plan, arrays, grad, where));
        for (size_t j = 0; j < plan->leaf_count; j++) {
            where->other_leaf = j;
            where->other_array = RMSP_PARAM;
            if (is_given(arrays, j, RMSP_PARAM) && rmsp_arrays_overlap(grad, &arrays[RMSP_PARAM][j]))
                return RMSP_OVERLAP;
        }
    }
    if (dense) slot->clear = grad->data;
    return RMSP_OK;
}

rmsp_work rmsp_plan_work(const rmsp_plan *plan)
{
    rmsp_work work = {0, 0};
    for (size_t i = 0; i < plan->leaf_count; i++) {
        const rmsp_leaf *const leaf = &plan->leaves[i];
        if (leaf->array[RMSP_GRAD] == NULL) continue;
        const size_t rows = leaf->extra == NULL || leaf->extra->rows.index == NULL ? 1 : leaf->extra->rows.count;
        const size_t bytes = leaf->n * rows * rmsp_size_of(leaf, RMSP_GRAD);
        work.elements += leaf->n * rows;
        work.bytes += bytes > 256 ? bytes - 256 : 0;
    }
    return work;
}

rmsp_reason rmsp_bind(rmsp_plan *plan, const rmsp_array *const arrays[RMSP_ARRAY_COUNT], rmsp_refusal *where)
{
    const rmsp_array *const grads = arrays[RMSP_GRAD];
    int moved = !plan->bound || arrays[RMSP_SQUARE_AVG] != NULL;
    assert(plan->leaves != NULL && plan->slots != NULL && plan->extras != NULL && plan->ranges != NULL);
    assert(arrays[RMSP_PARAM] != NULL && where != NULL);
    assert(arrays[RMSP_SQUARE_AVG] == NULL || plan->memory_count == 0);
    assert(plan->rules.accumulate <= 1 || (plan->counts != NULL && plan->counts->seen != NULL));
    plan->bound = 0;
    for (size_t i = 0; i < plan->leaf_count; i++) TRY(bind_leaf(plan, i, arrays, &moved, where));
    if (moved) {
        for (size_t i = 0; i < plan->leaf_count; i++) plan->slots[i].clear = NULL;
        TRY(order_ranges(plan, arrays, where));
    }
    for (size_t i = 0; grads != NULL && i < plan->leaf_count; i++) {
        if (grads[i].problem == RMSP_OK) TRY(check_gradient(plan, i, arrays, where));
    }
    plan->bound = 1;
    plan->work = rmsp_plan_work(plan);
    return RMSP_OK;
}
