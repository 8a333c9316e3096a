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
#include "rmsp_threads.h"

/* 2 us of work on one core, in cache. */
static size_t grain = (size_t)32 << 10;

size_t rmsp_grain(void) { return rmsp_load_size(&grain); }

void rmsp_set_grain(size_t bytes) { rmsp_store_size(&grain, bytes); }

/* 75 us of work: from here on it pays to wake a sleeping thread. */
#define WAKE_GRAIN ((size_t)1 << 20)

static inline size_t item_size(const rmsp_leaf *leaf) { return rmsp_dtypes[leaf->dtype].size; }

static inline void *at(void *array, ptrdiff_t offset) { return array == NULL ? NULL : (char *)array + offset; }

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

typedef struct block_context {
    rmsp_step_fn *step;
    rmsp_sumsq_fn *sumsq;
    rmsp_lerp_fn *lerp;
    const void *coef;
    double ema, scale, sum;
} block_context;

static void step_block(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context)
{
    const block_context *const c = context;
    c->step(n, array[RMSP_PARAM], array[RMSP_GRAD], array[RMSP_SQUARE_AVG], array[RMSP_MOMENTUM_BUFFER],
            array[RMSP_GRAD_AVG], c->coef);
    if (array[RMSP_EMA] != NULL) c->lerp(n, array[RMSP_EMA], array[RMSP_PARAM], c->ema, 1.0 - c->ema);
}

static void sumsq_block(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context)
{
    block_context *const c = context;
    c->sum += c->sumsq(n, array[RMSP_GRAD], c->scale);
}

static void accumulate_block(size_t n, void *const array[RMSP_ARRAY_COUNT], void *context)
{
    const block_context *const c = context;
    c->lerp(n, array[RMSP_GRAD_SUM], array[RMSP_GRAD], 1.0, c->scale);
}

static inline void work_on_block(rmsp_op op, size_t n, void *const array[RMSP_ARRAY_COUNT], block_context *context)
{
    switch (op) {
    case RMSP_STEP:
        step_block(n, array, context);
        break;
    case RMSP_SUMSQ:
        sumsq_block(n, array, context);
        break;
    case RMSP_ACCUMULATE:
        accumulate_block(n, array, context);
        break;
    }
}

/* Whether an operation uses array k. */
static inline int is_used(rmsp_op op, int k)
{
    return op == RMSP_SUMSQ        ? k == RMSP_GRAD
           : op == RMSP_ACCUMULATE ? k == RMSP_GRAD || k == RMSP_GRAD_SUM
                                   : k != RMSP_GRAD_SUM;
}

/* An operation on elements [start, start + count) of row `row` of a leaf with extras. */
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
    block_context context = {run->isa->step[leaf->dtype][group->variant],
                             run->isa->sumsq[leaf->dtype],
                             run->isa->lerp[leaf->dtype],
                             rmsp_coef_of(group, (int)leaf->dtype),
                             run->copies ? 0 : group->ema,
                             run->scale,
                             0};
    const ptrdiff_t offset = layout->ndim == 0 ? (ptrdiff_t)(start * item_size(leaf)) : 0;
    void *array[RMSP_ARRAY_COUNT];

    assert(op != RMSP_SUMSQ || extra->span_sums != NULL);
    assert(op != RMSP_ACCUMULATE || extra->grad_sum != NULL);
    for (int k = 0; k < RMSP_STEP_ARRAYS; k++) array[k] = at(leaf->array[k], offset);
    array[RMSP_EMA] = at(extra->ema, offset);
    array[RMSP_GRAD_SUM] = at(extra->grad_sum, offset);
    for (int k = 0; has_rows && k < RMSP_ARRAY_COUNT; k++) {
        const ptrdiff_t place = k == RMSP_GRAD ? (ptrdiff_t)row : extra->rows.index[row];
        array[k] = at(array[k], place * extra->rows.stride[k]);
    }
    if (layout->ndim == 0) {
        work_on_block(op, count, array, &context); /* inlined, with a context in registers */
    } else {
        void *out[RMSP_ARRAY_COUNT];
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
            if (!is_used(op, k)) array[k] = NULL;
            const int written = op == RMSP_STEP ? k != RMSP_GRAD : op == RMSP_ACCUMULATE && k == RMSP_GRAD_SUM;
            out[k] = written ? array[k] : NULL;
        }
        rmsp_strided_run(item_size(leaf), layout, start, count, (const void *const *)array, out,
                         op == RMSP_STEP    ? step_block
                         : op == RMSP_SUMSQ ? sumsq_block
                                            : accumulate_block,
                         &context);
    }
    if (op == RMSP_SUMSQ) extra->span_sums[start / RMSP_SPAN] = context.sum;
}

/* A step on elements of a leaf without extras. */
static inline void run_plain(const run_context *run, const rmsp_leaf *leaf, size_t start, size_t count)
{
    const rmsp_group *const group = &run->plan->groups[leaf->group];
    void *const *const array = leaf->array;
    const ptrdiff_t offset = (ptrdiff_t)(start * item_size(leaf));
    run->isa->step[leaf->dtype][group->variant](
        count, at(array[RMSP_PARAM], offset), at(array[RMSP_GRAD], offset), at(array[RMSP_SQUARE_AVG], offset),
        at(array[RMSP_MOMENTUM_BUFFER], offset), at(array[RMSP_GRAD_AVG], offset),
        rmsp_coef_of(group, (int)leaf->dtype));
}

/* Out of the caches, vectors that cross cache lines cost 8 % of a float32 step. NumPy's large arrays all start 16 bytes
 * into a line, and so do the buffers of buffers.py: peeling the elements before the next line aligns all of them. */
#define ALIGN_FROM ((size_t)1 << 17)
#define LINE ((size_t)64)

static inline void run_span(const run_context *run, const rmsp_leaf *leaf, size_t row, size_t start, size_t count)
{
    if (leaf->extra != NULL) {
        run_extra(run, leaf, row, start, count);
        return;
    }
    if (count >= ALIGN_FROM) {
        const uintptr_t first = (uintptr_t)leaf->array[RMSP_PARAM] + start * item_size(leaf);
        const size_t head = (size_t)(-first % LINE) / item_size(leaf);
        run_plain(run, leaf, start, head);
        start += head;
        count -= head;
    }
    run_plain(run, leaf, start, count);
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

/* The spans that start at elements [begin, end) of all elements with a gradient. */
static void run_share(const run_context *run, size_t begin, size_t end)
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
            const size_t piece = leaf->extra != NULL ? RMSP_SPAN : stop - start;
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

void rmsp_run(const rmsp_plan *plan, rmsp_op op, double scale, rmsp_work work)
{
    const int copies = plan->counts != NULL && plan->counts->steps == 0;
    assert(op == RMSP_STEP || op == RMSP_SUMSQ || op == RMSP_ACCUMULATE);
    assert(work.elements == rmsp_plan_work(plan).elements);
    run_context run = {plan, rmsp_isa_active_table(), op, scale, copies, work.elements};
    const size_t bytes = rmsp_grain();
    const size_t most = work.bytes <= bytes ? 1 : (size_t)rmsp_thread_count();
    if (most == 1) {
        run_share(&run, 0, work.elements);
        return;
    }
    const size_t wanted = bytes == 0 ? most : 1 + work.bytes / bytes, wake = work.bytes / WAKE_GRAIN;
    const size_t threads = wanted < most ? wanted : most;
    rmsp_share((work.elements + RMSP_SPAN - 1) / RMSP_SPAN, (int)threads,
               bytes == 0 ? RMSP_WAKE_ALL : (int)(wake < threads ? wake : threads), run_chunk, &run);
}
