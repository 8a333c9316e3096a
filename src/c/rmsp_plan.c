/* rmsp_plan.c: runs the spans of a plan, over threads where there is enough work.
 *
 * a) A span is at most RMSP_SPAN elements of one leaf, counted from the leaf's start: whatever the number of
 *    threads, the same spans are run, so that anything computed span by span has the same bits. Where nothing is, as
 *    in a plain step, those of a chunk are run as one.
 * b) A span of a chunk is RMSP_SPAN of all elements, and the chunk owns the leaves' spans that start there: many small
 *    leaves and one large leaf are divided alike. rmsp_threads.c decides which thread runs it.
 */
#include <assert.h>
#include <string.h>

#include "rmsp_atomic.h"
#include "rmsp_isa.h"
#include "rmsp_storage.h"
#include "rmsp_threads.h"

/* 2 us of work on one core, in cache. */
static size_t grain = (size_t)32 << 10;

RMSP_HOT size_t rmsp_grain(void) { return rmsp_load_size(&grain); }

void rmsp_set_grain(size_t bytes) { rmsp_store_size(&grain, bytes); }

/* 75 us of work: from here on it pays to wake a sleeping thread. */
#define WAKE_GRAIN ((size_t)1 << 20)

static inline size_t item_size(const rmsp_leaf *leaf) { return rmsp_dtypes[leaf->dtype].size; }

static inline void *at(void *array, ptrdiff_t offset) { return array == NULL ? NULL : (char *)array + offset; }

/* Out of the caches, vectors that cross cache lines cost 8 % of a float32 step. NumPy's large arrays all start 16 bytes
 * into a line, and so do the buffers of buffers.py: peeling the elements before the next line aligns all of them. */
#define ALIGN_FROM ((size_t)1 << 17)
#define LINE ((size_t)64)

/* How many elements to peel. */
static inline size_t head_of(const void *param, size_t size, size_t count)
{
    return count < ALIGN_FROM ? 0 : (size_t)(-(uintptr_t)param % LINE) / size;
}

/* The constants of a run. */
typedef struct run_context {
    const rmsp_plan *plan;
    const rmsp_isa *isa;
    rmsp_op op;
    double scale;
    int copies; /* whether averaged weights become copies of the weights, as in the first step */
    size_t total;
} run_context;

/* ---- what an operation does to a contiguous block of a leaf that has extras ---- */

/* Where a leaf's learning rates are found: its elements have places in square_avg, one rate for `run` of them. */
typedef struct rates {
    const double *lrs; /* or NULL: the group has the rate */
    size_t run;
    size_t first;             /* the place of the first element */
    const rmsp_layout *order; /* of the elements; ndim 0: as they lie in square_avg */
    size_t size, avg_size;    /* of an element where it is stepped, and in square_avg */
    size_t done;              /* elements of the order before this block */
} rates;

typedef struct block_context {
    rmsp_widen_fn *widen; /* of a bfloat16 gradient that is summed, else NULL */
    rmsp_step_fn *step;
    rmsp_sumsq_fn *sumsq;
    rmsp_lerp_fn *lerp;
    const void *numbers;
    double ema, scale, sum;
} block_context;

/* A step with learning rates of its own. */
typedef struct rates_context {
    block_context block;
    const rmsp_isa *isa;
    rmsp_group group; /* a copy, for its learning rate to be set */
    uint32_t dtype;
    rates rates;
} rates_context;

static void step_block(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context)
{
    const block_context *const c = context;
    c->step(n, array[RMSP_PARAM], array[RMSP_GRAD], array[RMSP_SQUARE_AVG], array[RMSP_MOMENTUM_BUFFER],
            array[RMSP_GRAD_AVG], c->numbers);
    if (array[RMSP_EMA] != NULL) c->lerp(n, array[RMSP_EMA], array[RMSP_PARAM], c->ema, 1.0 - c->ema);
}

/* Goes on by n elements of `size` bytes in all arrays. */
static inline void advance(void *array[RMSP_ARRAY_COUNT], size_t n, size_t size)
{
    for (int k = 0; k < RMSP_ARRAY_COUNT; k++) array[k] = at(array[k], (ptrdiff_t)(n * size));
}

/* n elements that have a learning rate each. */
static void step_lr_each(size_t n, void *const array[RMSP_ARRAY_COUNT], rates_context *c, const double *lrs)
{
    const rmsp_numbers numbers = {.coef = rmsp_coef_of(&c->group, (int)c->dtype),
                                  .lr = lrs,
                                  .decay = c->group.decay,
                                  .l2 = c->group.l2,
                                  .nesterov = c->group.momentum == RMSP_MOMENTUM_NESTEROV,
                                  .lr_outside = c->group.lr_outside};
    c->block.step = c->isa->step[c->dtype][rmsp_lr_variant(&c->group)];
    c->block.numbers = &numbers;
    step_block(n, array, &c->block);
}

/* n elements in the order of square_avg, `run` of which have one learning rate. */
static void step_lr_rows(size_t n, void *const array[RMSP_ARRAY_COUNT], rates_context *c)
{
    const rates *const r = &c->rates;
    const void *const numbers = rmsp_coef_of(&c->group, (int)c->dtype);
    const double *lr = r->lrs + r->first / r->run;
    size_t count = r->run - r->first % r->run;
    char *at_row[RMSP_STEP_ARRAYS], *ema = array[RMSP_EMA];

    /* A kernel does not read an array that its variant lacks: any address will do, and needs no test at each row. */
    for (int k = 0; k < RMSP_STEP_ARRAYS; k++) at_row[k] = array[k] == NULL ? array[RMSP_PARAM] : array[k];
    rmsp_group_set_lr(&c->group, *lr);
    for (;;) {
        if (count > n) count = n;
        c->isa->step[c->dtype][c->group.variant](count, at_row[RMSP_PARAM], at_row[RMSP_GRAD], at_row[RMSP_SQUARE_AVG],
                                                 at_row[RMSP_MOMENTUM_BUFFER], at_row[RMSP_GRAD_AVG], numbers);
        if (ema != NULL) {
            c->block.lerp(count, ema, at_row[RMSP_PARAM], c->block.ema, 1.0 - c->block.ema);
            ema += count * r->size;
        }
        n -= count;
        if (n == 0) return;
        for (int k = 0; k < RMSP_STEP_ARRAYS; k++) at_row[k] += count * r->size;
        count = r->run;
        if (c->group.decay == 0) {
            rmsp_group_set_rate(&c->group, *++lr);
        } else {
            rmsp_group_set_lr(&c->group, *++lr);
        }
    }
}

/* The numbers of elements [first, first + count), of which `run` have one. */
static void repeat_numbers(const double *numbers, size_t run, size_t first, size_t count, double *to)
{
    size_t index = first / run, left = run - first % run;
    for (size_t i = 0; i < count; i++) {
        to[i] = numbers[index];
        if (--left == 0) left = run, index++;
    }
}

/* From here on it pays to call the kernel for the elements that share a learning rate, and not to give each its own. */
#define LONG_RUN 24

static void step_rates_block(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context)
{
    rates_context *const c = context;
    const rates *const r = &c->rates;
    void *rest[RMSP_ARRAY_COUNT];
    double lrs[RMSP_BLOCK];

    memcpy(rest, array, sizeof rest);
    if (r->order->ndim > 0) {
        assert(n <= RMSP_BLOCK);
        rmsp_gather_numbers(r->avg_size, r->order, RMSP_SQUARE_AVG, r->done, n, r->first, r->lrs, r->run, lrs);
        step_lr_each(n, array, c, lrs);
        c->rates.done += n;
    } else if (r->run == 1) {
        const size_t head = head_of(array[RMSP_PARAM], r->size, n);
        if (head > 0) step_lr_each(head, array, c, r->lrs + r->first);
        advance(rest, head, r->size);
        step_lr_each(n - head, rest, c, r->lrs + r->first + head);
    } else if (r->run >= LONG_RUN) {
        step_lr_rows(n, array, c);
    } else {
        for (size_t done = 0, count; done < n; done += count) {
            count = n - done < RMSP_BLOCK ? n - done : RMSP_BLOCK;
            repeat_numbers(r->lrs, r->run, r->first + done, count, lrs);
            step_lr_each(count, rest, c, lrs);
            advance(rest, count, r->size);
        }
    }
}

/* A step on arrays of which some are bfloat16: by a kernel for them, or by blocks of float32. */
typedef struct bf16_context {
    rmsp_block_fn *step; /* of a block of float32 arrays; the block is to be written at once */
    void *context;
    block_context *block; /* that of `context` */
    rates *rates;         /* those of `context`, or NULL */
    const rmsp_isa *isa;
    const rmsp_leaf *leaf;
    rmsp_bf16_fn *kernel; /* or NULL */
    int variant;
    uint32_t stream;
    size_t first; /* the element of the whole leaf at which this block, or `order`, begins */
    const rmsp_layout *order;
    size_t done; /* elements of the order before this block */
} bf16_context;

static inline int has_bf16(const rmsp_leaf *leaf)
{
    return leaf->extra->param16 || leaf->extra->grad16 || leaf->extra->avg16;
}

static int is_rounded(const rmsp_leaf *leaf) { return leaf->extra->param16 && leaf->extra->low_half == NULL; }

static int needs_random(const rmsp_leaf *leaf) { return leaf->extra->avg16 || is_rounded(leaf); }

static int has_grad16(const rmsp_leaf *leaf) { return rmsp_size_of(leaf, RMSP_GRAD) == sizeof(uint16_t); }

/* At most RMSP_BLOCK elements, with 16 random bits each. */
static void step_bf16_wide(size_t n, void *const array[RMSP_ARRAY_COUNT], const bf16_context *c, uint16_t *random)
{
    const rmsp_isa *const isa = c->isa;
    const int is_split = c->leaf->extra->param16 && !is_rounded(c->leaf);
    float param[RMSP_BLOCK], grad[RMSP_BLOCK], square_avg[RMSP_BLOCK];
    void *wide[RMSP_ARRAY_COUNT];

    assert(n <= RMSP_BLOCK);
    memcpy(wide, array, sizeof wide);
    if (has_grad16(c->leaf)) isa->widen(n, array[RMSP_GRAD], wide[RMSP_GRAD] = grad);
    if (c->leaf->extra->avg16) isa->widen(n, array[RMSP_SQUARE_AVG], wide[RMSP_SQUARE_AVG] = square_avg);
    if (is_split) isa->join(n, array[RMSP_PARAM], array[RMSP_LOW_HALF], wide[RMSP_PARAM] = param);
    if (is_rounded(c->leaf)) {
        isa->widen(n, array[RMSP_PARAM], wide[RMSP_PARAM] = param);
        wide[RMSP_EMA] = NULL; /* the average is one of rounded weights */
    }

    c->step(n, wide, c->context);

    if (c->leaf->extra->avg16) isa->narrow(n, square_avg, array[RMSP_SQUARE_AVG], random);
    if (is_split) isa->split(n, param, array[RMSP_PARAM], array[RMSP_LOW_HALF]);
    if (is_rounded(c->leaf)) {
        for (size_t i = 0; i < n; i++) random[i] = (uint16_t)rmsp_swap_bytes(random[i]);
        isa->narrow(n, param, array[RMSP_PARAM], random);
        if (array[RMSP_EMA] != NULL) {
            isa->widen(n, array[RMSP_PARAM], param);
            c->block->lerp(n, array[RMSP_EMA], param, c->block->ema, 1.0 - c->block->ema);
        }
    }
}

/* n elements of a leaf in C order, from c->first on. */
static void step_bf16_dense(size_t n, void *const array[RMSP_ARRAY_COUNT], bf16_context *c)
{
    uint16_t random[RMSP_BLOCK];
    void *rest[RMSP_ARRAY_COUNT];
    memcpy(rest, array, sizeof rest);
    for (size_t done = 0, count; done < n; done += count) {
        if (c->kernel != NULL && c->first % 2 == 0 && n - done >= RMSP_PIECE) {
            count = (n - done) / RMSP_PIECE * RMSP_PIECE;
            c->kernel(count, rest[RMSP_PARAM], rest[RMSP_LOW_HALF], rest[RMSP_GRAD], rest[RMSP_SQUARE_AVG],
                      rest[RMSP_MOMENTUM_BUFFER], rest[RMSP_GRAD_AVG], c->variant, c->block->numbers, c->stream,
                      (uint32_t)(c->first / 2));
        } else {
            count = n - done < RMSP_BLOCK ? n - done : RMSP_BLOCK;
            if (c->kernel != NULL && c->first % 2 != 0) count = 1;
            if (needs_random(c->leaf)) c->isa->random(count, c->stream, c->first, random);
            step_bf16_wide(count, rest, c, random);
        }
        c->first += count;
        if (c->rates != NULL) c->rates->first += count;
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) rest[k] = at(rest[k], (ptrdiff_t)(count * rmsp_size_of(c->leaf, k)));
    }
}

static void step_bf16_block(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context)
{
    bf16_context *const c = context;
    uint16_t random[RMSP_BLOCK];
    size_t element[RMSP_BLOCK];

    if (c->order->ndim == 0) {
        step_bf16_dense(n, array, c);
        return;
    }
    assert(n <= RMSP_BLOCK);
    if (needs_random(c->leaf)) {
        rmsp_gather_elements(rmsp_size_of(c->leaf, RMSP_SQUARE_AVG), c->order, RMSP_SQUARE_AVG, c->done, n, c->first,
                             element);
        for (size_t i = 0; i < n; i++) random[i] = (uint16_t)rmsp_random(c->stream, element[i]);
    }
    step_bf16_wide(n, array, c, random);
    c->done += n;
}

static void sumsq_block(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context)
{
    block_context *const c = context;
    float wide[RMSP_BLOCK];
    if (c->widen == NULL) {
        c->sum += c->sumsq(n, array[RMSP_GRAD], c->scale);
        return;
    }
    for (size_t done = 0, count; done < n; done += count) {
        count = n - done < RMSP_BLOCK ? n - done : RMSP_BLOCK;
        c->widen(count, (const uint16_t *)array[RMSP_GRAD] + done, wide);
        c->sum += c->sumsq(count, wide, c->scale);
    }
}

static void accumulate_block(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context)
{
    const block_context *const c = context;
    float wide[RMSP_BLOCK];
    if (c->widen == NULL) {
        c->lerp(n, array[RMSP_GRAD_SUM], array[RMSP_GRAD], 1.0, c->scale);
        return;
    }
    for (size_t done = 0, count; done < n; done += count) {
        count = n - done < RMSP_BLOCK ? n - done : RMSP_BLOCK;
        c->widen(count, (const uint16_t *)array[RMSP_GRAD] + done, wide);
        c->lerp(count, (float *)array[RMSP_GRAD_SUM] + done, wide, 1.0, c->scale);
    }
}

/* Whether an operation uses array k. */
static inline int is_used(rmsp_op op, int k)
{
    return op == RMSP_SUMSQ        ? k == RMSP_GRAD
           : op == RMSP_ACCUMULATE ? k == RMSP_GRAD || k == RMSP_GRAD_SUM
                                   : k != RMSP_GRAD_SUM;
}

/* Does `work` on contiguous blocks of elements [start, start + count) of arrays in the order of a layout. */
static inline void run_blocks(rmsp_op op, const rmsp_leaf *leaf, const rmsp_layout *layout,
                              void *array[RMSP_ARRAY_COUNT], size_t start, size_t count, rmsp_block_fn *work,
                              void *context)
{
    if (layout->ndim == 0) {
        work(count, array, context); /* inlined, with a context in registers */
        return;
    }
    void *out[RMSP_ARRAY_COUNT];
    size_t size[RMSP_ARRAY_COUNT];
    for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
        size[k] = rmsp_size_of(leaf, k);
        if (!is_used(op, k)) array[k] = NULL;
        const int written = op == RMSP_STEP ? k != RMSP_GRAD : op == RMSP_ACCUMULATE && k == RMSP_GRAD_SUM;
        out[k] = written ? array[k] : NULL;
    }
    rmsp_strided_run(size, layout, start, count, (const void *const *)array, out, work, context);
}

/* An operation on elements [start, start + count) of row `row` of a leaf that has a layout, rows or rates. */
static void run_extra(const run_context *run, const rmsp_leaf *leaf, size_t row, size_t start, size_t count)
{
    const rmsp_op op = run->op;
    const rmsp_extra *const extra = leaf->extra;
    const rmsp_layout *const layout = op == RMSP_SUMSQ ? &extra->grad_order : &extra->layout;
    const int has_rows = op != RMSP_SUMSQ && extra->rows.index != NULL;
    const rmsp_group *group = &run->plan->groups[leaf->group];
    rmsp_group clipped;
    if (op == RMSP_STEP && extra->clip != 1) {
        clipped = *group;
        rmsp_group_scale(&clipped, extra->clip);
        group = &clipped;
    }
    block_context context = {has_grad16(leaf) ? run->isa->widen : NULL,
                             run->isa->step[leaf->dtype][group->variant],
                             run->isa->sumsq[leaf->dtype],
                             run->isa->lerp[leaf->dtype],
                             rmsp_coef_of(group, (int)leaf->dtype),
                             run->copies ? 0 : group->ema,
                             run->scale,
                             0};
    const size_t place = layout->ndim == 0 ? start : 0;
    void *array[RMSP_ARRAY_COUNT];

    assert(op != RMSP_SUMSQ || extra->span_sums != NULL);
    assert(op != RMSP_ACCUMULATE || extra->grad_sum != NULL);
    for (int k = 0; k < RMSP_STEP_ARRAYS; k++) array[k] = leaf->array[k];
    array[RMSP_EMA] = extra->ema;
    array[RMSP_GRAD_SUM] = extra->grad_sum;
    array[RMSP_LOW_HALF] = extra->low_half;
    for (int k = 0; k < RMSP_ARRAY_COUNT; k++) array[k] = at(array[k], (ptrdiff_t)(place * rmsp_size_of(leaf, k)));
    for (int k = 0; has_rows && k < RMSP_ARRAY_COUNT; k++) {
        const ptrdiff_t of_row = k == RMSP_GRAD ? (ptrdiff_t)row : extra->rows.index[row];
        array[k] = at(array[k], of_row * extra->rows.stride[k]);
    }
    if (op == RMSP_SUMSQ) {
        run_blocks(op, leaf, layout, array, start, count, sumsq_block, &context);
        extra->span_sums[start / RMSP_SPAN] = context.sum;
    } else if (op == RMSP_ACCUMULATE) {
        run_blocks(op, leaf, layout, array, start, count, accumulate_block, &context);
    } else {
        const size_t avg_size = rmsp_size_of(leaf, RMSP_SQUARE_AVG);
        const size_t first = (size_t)((char *)array[RMSP_SQUARE_AVG] - (char *)leaf->array[RMSP_SQUARE_AVG]) / avg_size;
        rates_context with_rates = {
            context,
            run->isa,
            *group,
            leaf->dtype,
            {extra->lrs, extra->lr_run, first, layout, rmsp_dtypes[leaf->dtype].size, avg_size, start}};
        const int has_rates = extra->lrs != NULL;
        rmsp_block_fn *const step = has_rates ? step_rates_block : step_block;
        void *const of_step = has_rates ? (void *)&with_rates : (void *)&context;
        if (!has_bf16(leaf)) {
            run_blocks(op, leaf, layout, array, start, count, step, of_step);
            return;
        }
        const rmsp_param_storage param = !extra->param16    ? RMSP_PARAM_F32
                                         : is_rounded(leaf) ? RMSP_PARAM_ROUNDED
                                                            : RMSP_PARAM_SPLIT;
        const int storage = RMSP_BF16_STORAGE(param, has_grad16(leaf), extra->avg16);
        const int has_kernel = !has_rates && extra->ema == NULL;
        const size_t index = (size_t)(leaf - run->plan->leaves);
        const rmsp_origin whole = {(ptrdiff_t)index, 0};
        const rmsp_origin origin = run->plan->origins == NULL ? whole : run->plan->origins[index];
        bf16_context narrow = {step,
                               of_step,
                               has_rates ? &with_rates.block : &context,
                               has_rates ? &with_rates.rates : NULL,
                               run->isa,
                               leaf,
                               has_kernel ? run->isa->bf16[storage][rmsp_bf16_kernel(group->variant)] : NULL,
                               group->variant,
                               rmsp_stream(run->plan->rules.seed, (uint64_t)(run->plan->counts->steps - extra->behind),
                                           (uint64_t)origin.leaf),
                               (size_t)origin.element + first,
                               layout,
                               start};
        run_blocks(op, leaf, layout, array, start, count, step_bf16_block, &narrow);
    }
}

/* Whether an operation finds all arrays it uses dense, and all elements alike. */
static inline int is_plain(const rmsp_leaf *leaf, rmsp_op op)
{
    const rmsp_extra *const extra = leaf->extra;
    if (extra == NULL) return 1;
    if (has_bf16(leaf)) return 0;
    if (op == RMSP_SUMSQ) return extra->grad_order.ndim == 0;
    return extra->layout.ndim == 0 && extra->rows.index == NULL && (op != RMSP_STEP || extra->lrs == NULL);
}

static inline void step_plain(const run_context *run, const rmsp_leaf *leaf, const rmsp_group *group, size_t start,
                              size_t count)
{
    void *const *const array = leaf->array;
    const ptrdiff_t offset = (ptrdiff_t)(start * item_size(leaf));
    run->isa->step[leaf->dtype][group->variant](
        count, at(array[RMSP_PARAM], offset), at(array[RMSP_GRAD], offset), at(array[RMSP_SQUARE_AVG], offset),
        at(array[RMSP_MOMENTUM_BUFFER], offset), at(array[RMSP_GRAD_AVG], offset),
        rmsp_coef_of(group, (int)leaf->dtype));
}

static void step_clipped(const run_context *run, const rmsp_leaf *leaf, size_t start, size_t count)
{
    rmsp_group clipped = run->plan->groups[leaf->group];
    rmsp_group_scale(&clipped, leaf->extra->clip);
    step_plain(run, leaf, &clipped, start, count);
}

/* An operation on a leaf with extras for which is_plain is true. */
static void run_plain_extra(const run_context *run, const rmsp_leaf *leaf, size_t start, size_t count)
{
    const rmsp_extra *const extra = leaf->extra;
    const rmsp_group *const group = &run->plan->groups[leaf->group];
    const double ema = run->copies ? 0 : group->ema;
    const ptrdiff_t offset = (ptrdiff_t)(start * item_size(leaf));
    const void *const grad = at(leaf->array[RMSP_GRAD], offset);
    rmsp_lerp_fn *const lerp = run->isa->lerp[leaf->dtype];

    switch (run->op) {
    case RMSP_STEP:
        if (extra->clip != 1) {
            step_clipped(run, leaf, start, count);
        } else {
            step_plain(run, leaf, group, start, count);
        }
        if (extra->ema != NULL) {
            lerp(count, at(extra->ema, offset), at(leaf->array[RMSP_PARAM], offset), ema, 1.0 - ema);
        }
        break;
    case RMSP_SUMSQ:
        assert(extra->span_sums != NULL);
        extra->span_sums[start / RMSP_SPAN] = run->isa->sumsq[leaf->dtype](count, grad, run->scale);
        break;
    case RMSP_ACCUMULATE:
        assert(extra->grad_sum != NULL);
        lerp(count, at(extra->grad_sum, offset), grad, 1.0, run->scale);
        break;
    }
}

static inline void run_plain(const run_context *run, const rmsp_leaf *leaf, size_t start, size_t count)
{
    if (leaf->extra != NULL) {
        run_plain_extra(run, leaf, start, count);
    } else {
        step_plain(run, leaf, &run->plan->groups[leaf->group], start, count);
    }
}

static inline void run_span(const run_context *run, const rmsp_leaf *leaf, size_t row, size_t start, size_t count)
{
    if (!is_plain(leaf, run->op)) {
        run_extra(run, leaf, row, start, count);
        return;
    }
    const size_t head = head_of((char *)leaf->array[RMSP_PARAM] + start * item_size(leaf), item_size(leaf), count);
    if (head > 0) run_plain(run, leaf, start, head);
    run_plain(run, leaf, start + head, count - head);
}

/* ---- the spans ---- */

/* Asserts that a leaf has what an operation needs. */
static inline void check_leaf(const rmsp_plan *plan, const rmsp_leaf *leaf, rmsp_op op)
{
    (void)plan, (void)leaf, (void)op;
    assert(leaf->dtype < RMSP_DTYPE_COUNT && leaf->group < plan->group_count);
    assert(leaf->extra != NULL || op == RMSP_STEP);
    assert(leaf->array[RMSP_PARAM] != NULL && leaf->array[RMSP_SQUARE_AVG] != NULL);
    assert(leaf->array[RMSP_MOMENTUM_BUFFER] != NULL || !plan->groups[leaf->group].momentum);
    assert(leaf->array[RMSP_GRAD_AVG] != NULL || !plan->groups[leaf->group].centered);
}

/* How many rows of how many elements an operation walks over; a dense gradient is one row. */
static inline size_t rows_of(const rmsp_leaf *leaf, rmsp_op op, size_t *n)
{
    *n = leaf->n;
    if (leaf->array[RMSP_GRAD] == NULL) return 0;
    if (leaf->extra == NULL || leaf->extra->rows.index == NULL) return 1;
    if (op != RMSP_SUMSQ) return leaf->extra->rows.count;
    *n *= leaf->extra->rows.count; /* the gradient's rows follow each other */
    return 1;
}

/* Whether an operation computes something span by span, or goes over a block twice, which so stays in the cache. */
static inline int is_by_spans(const rmsp_leaf *leaf, rmsp_op op)
{
    return leaf->extra != NULL && (op != RMSP_STEP || leaf->extra->ema != NULL);
}

/* Leaves whose data is brought into the caches before they are stepped: parameters and gradients, which may lie
 * anywhere; the state's small arrays follow each other, as the processor expects. */
#define AHEAD 4

/* The spans that start at elements [begin, end) of all elements with a gradient. */
RMSP_HOT static void run_share(const run_context *run, size_t begin, size_t end)
{
    const rmsp_plan *const plan = run->plan;
    size_t first = 0; /* the leaf's first element, counted over all leaves */
    for (size_t i = 0; i < plan->leaf_count && first < end; i++) {
        const rmsp_leaf *const leaf = &plan->leaves[i];
        size_t n;
        const size_t rows = rows_of(leaf, run->op, &n);
        if (rows == 0 || n == 0) continue;
        check_leaf(plan, leaf, run->op);
        const int is_one_piece =
            leaf->extra == NULL || (n <= RMSP_SPAN && rows == 1 && leaf->extra->rows.index == NULL);
        if (i + AHEAD < plan->leaf_count) {
            rmsp_prefetch(plan->leaves[i + AHEAD].array[RMSP_PARAM]);
            rmsp_prefetch(plan->leaves[i + AHEAD].array[RMSP_GRAD]);
        }
        if (is_one_piece && begin <= first && n <= end - first) { /* the usual leaf, whole */
            run_span(run, leaf, 0, 0, n);
            first += n;
            continue;
        }
        size_t row = 0, start = 0;
        if (begin > first) {
            row = (begin - first) / n;
            start = ((begin - first) % n + RMSP_SPAN - 1) / RMSP_SPAN * RMSP_SPAN;
            if (start >= n) row++, start = 0;
        }
        for (; row < rows && first + row * n + start < end; row++, start = 0) {
            const size_t left = (end - first - row * n + RMSP_SPAN - 1) / RMSP_SPAN * RMSP_SPAN;
            const size_t stop = left < n ? left : n;
            const size_t piece = is_by_spans(leaf, run->op) ? RMSP_SPAN : stop - start;
            for (; start < stop; start += piece) {
                run_span(run, leaf, row, start, stop - start < piece ? stop - start : piece);
            }
        }
        first += rows * n;
    }
}

static void run_chunk(void *context, size_t begin, size_t end)
{
    const run_context *const run = context;
    run_share(run, begin * RMSP_SPAN, end * RMSP_SPAN < run->total ? end * RMSP_SPAN : run->total);
}

RMSP_HOT void rmsp_run(const rmsp_plan *plan, rmsp_op op, double scale, rmsp_work work)
{
    const int copies = plan->counts != NULL && plan->counts->steps == 0;
    assert(op == RMSP_STEP || op == RMSP_SUMSQ || op == RMSP_ACCUMULATE);
    assert(work.elements == rmsp_plan_work(plan).elements);
    run_context run = {plan, rmsp_isa_active_table(), op, scale, copies, work.elements};
    const size_t bytes = rmsp_grain();
    const size_t most = work.bytes <= bytes ? 1 : (size_t)rmsp_thread_count(plan->threads);
    if (most == 1) {
        run_share(&run, 0, work.elements);
        return;
    }
    const size_t wanted = bytes == 0 ? most : 1 + work.bytes / bytes, wake = work.bytes / WAKE_GRAIN;
    const size_t threads = wanted < most ? wanted : most;
    rmsp_share((work.elements + RMSP_SPAN - 1) / RMSP_SPAN, (int)threads,
               bytes == 0 ? RMSP_WAKE_ALL : (int)(wake < threads ? wake : threads), run_chunk, &run);
}
