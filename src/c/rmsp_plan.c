/* rmsp_plan.c: runs the spans of a plan, over threads where there is enough work.
 *
 * a) A span is at most RMSP_SPAN elements of one leaf, counted from the leaf's start: whatever the number of
 *    threads, the same spans are run, so that anything computed span by span has the same bits.
 * b) A thread owns the spans that start within its share of all elements: many small leaves and one large leaf
 *    are divided alike, no lock and no queue is needed, and the same thread meets the same memory at every step.
 * c) `#pragma omp parallel if(...)` around a function, never `parallel for simd if(...)`, whose `if` would also
 *    switch the vector instructions off.
 */
#include <assert.h>

#include "rmsp.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* Some 30 us of work on one core in cache, where a second thread has paid for its wake-up. */
size_t rmsp_grain = (size_t)1 << 17;

int rmsp_has_openmp(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int rmsp_max_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static inline size_t item_size(uint32_t dtype) { return dtype == RMSP_F32 ? sizeof(float) : sizeof(double); }

static inline void *at(void *array, size_t offset) { return array == NULL ? NULL : (char *)array + offset; }

static void run_span(const rmsp_leaf *leaf, const rmsp_group *group, size_t start, size_t count)
{
    rmsp_step_fn *const step = rmsp_step((rmsp_dtype)leaf->dtype, group->variant);
    if (leaf->layout != NULL) {
        rmsp_strided_step(step, (rmsp_dtype)leaf->dtype, leaf->layout, start, count, (const void *const *)leaf->array,
                          leaf->array, &group->coef);
        return;
    }
    void *const *const array = leaf->array;
    const size_t offset = start * item_size(leaf->dtype);
    step(count, at(array[RMSP_PARAM], offset), at(array[RMSP_GRAD], offset), at(array[RMSP_SQUARE_AVG], offset),
         at(array[RMSP_MOMENTUM_BUFFER], offset), at(array[RMSP_GRAD_AVG], offset), &group->coef);
}

/* The spans that start at elements [begin, end) of all elements with a gradient. */
static void run_share(const rmsp_leaf *leaves, size_t leaf_count, const rmsp_group *groups, size_t begin, size_t end)
{
    size_t first = 0; /* the leaf's first element, counted over all leaves */
    for (size_t i = 0; i < leaf_count && first < end; i++) {
        const rmsp_leaf *const leaf = &leaves[i];
        if (leaf->array[RMSP_GRAD] == NULL) continue;
        size_t start = begin > first ? (begin - first + RMSP_SPAN - 1) / RMSP_SPAN * RMSP_SPAN : 0;
        for (; start < leaf->n && first + start < end; start += RMSP_SPAN) {
            const size_t left = leaf->n - start;
            run_span(leaf, &groups[leaf->group], start, left < RMSP_SPAN ? left : RMSP_SPAN);
        }
        first += leaf->n;
    }
}

void rmsp_plan_run(const rmsp_leaf *leaves, size_t leaf_count, const rmsp_group *groups, int threads)
{
    size_t total = 0;
    for (size_t i = 0; i < leaf_count; i++) {
        if (leaves[i].array[RMSP_GRAD] != NULL) total += leaves[i].n;
    }
#ifdef _OPENMP
    if (threads > 1 && total > rmsp_grain) {
#pragma omp parallel num_threads(threads)
        {
            const size_t share = (size_t)omp_get_thread_num(), shares = (size_t)omp_get_num_threads();
            const size_t begin = total / shares * share,
                         end = share + 1 == shares ? total : total / shares * (share + 1);
            run_share(leaves, leaf_count, groups, begin, end);
        }
        return;
    }
#else
    (void)threads;
#endif
    run_share(leaves, leaf_count, groups, 0, total);
}
