/* rmsp_strided.c: work on arrays of any layout: gather a block, work on it, scatter it.
 *
 * Only the copies know of strides; the work is that on contiguous arrays, so that every layout gives the same bits.
 * The blocks take 7 * 4 KiB, within a first-level cache.
 */
#include <string.h>

#include "rmsp.h"

/* A place in the order of a layout. */
typedef struct cursor {
    size_t index[RMSP_MAX_NDIM];
} cursor;

static void cursor_seek(cursor *at, const rmsp_layout *layout, size_t start)
{
    for (int axis = layout->ndim - 1; axis >= 0; axis--) {
        at->index[axis] = start % layout->axes[axis].length;
        start /= layout->axes[axis].length;
    }
}

/* The elements that follow `at` on its fastest axis, at most `limit`. */
static size_t cursor_run(const cursor *at, const rmsp_layout *layout, size_t limit)
{
    const int last = layout->ndim - 1;
    const size_t left = layout->axes[last].length - at->index[last];
    return left < limit ? left : limit;
}

static void cursor_advance(cursor *at, const rmsp_layout *layout, size_t run)
{
    int axis = layout->ndim - 1;
    at->index[axis] += run;
    while (axis > 0 && at->index[axis] == layout->axes[axis].length) {
        at->index[axis] = 0;
        at->index[--axis] += 1;
    }
}

static ptrdiff_t cursor_offset(const cursor *at, const rmsp_layout *layout, int array)
{
    ptrdiff_t offset = 0;
    for (int axis = 0; axis < layout->ndim; axis++) {
        offset += (ptrdiff_t)at->index[axis] * layout->axes[axis].stride[array];
    }
    return offset;
}

void rmsp_copy_strided(size_t n, size_t size, char *to, ptrdiff_t to_stride, const char *from, ptrdiff_t from_stride)
{
    if (to_stride == (ptrdiff_t)size && from_stride == (ptrdiff_t)size) {
        memcpy(to, from, n * size);
    } else if (size == sizeof(float)) {
        for (size_t i = 0; i < n; i++, to += to_stride, from += from_stride) memcpy(to, from, sizeof(float));
    } else {
        for (size_t i = 0; i < n; i++, to += to_stride, from += from_stride) memcpy(to, from, sizeof(double));
    }
}

void rmsp_strided_run(size_t size, const rmsp_layout *layout, size_t start, size_t count,
                      const void *const in[RMSP_ARRAY_COUNT], void *const out[RMSP_ARRAY_COUNT], rmsp_block_fn *work,
                      void *context)
{
    const ptrdiff_t unit = (ptrdiff_t)size;
    const int last = layout->ndim - 1;
    double memory[RMSP_ARRAY_COUNT][RMSP_BLOCK];
    void *block[RMSP_ARRAY_COUNT];
    cursor begin, at;

    for (int k = 0; k < RMSP_ARRAY_COUNT; k++) block[k] = in[k] == NULL ? NULL : memory[k];
    cursor_seek(&begin, layout, start);
    while (count > 0) {
        const size_t n = count < RMSP_BLOCK ? count : RMSP_BLOCK;
        size_t done, run = 0;

        for (at = begin, done = 0; done < n; done += run, cursor_advance(&at, layout, run)) {
            run = cursor_run(&at, layout, n - done);
            for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
                if (in[k] == NULL) continue;
                rmsp_copy_strided(run, size, (char *)block[k] + done * size, unit,
                                  (const char *)in[k] + cursor_offset(&at, layout, k), layout->axes[last].stride[k]);
            }
        }

        work(n, block, context);

        for (at = begin, done = 0; done < n; done += run, cursor_advance(&at, layout, run)) {
            run = cursor_run(&at, layout, n - done);
            for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
                if (out[k] == NULL) continue;
                rmsp_copy_strided(run, size, (char *)out[k] + cursor_offset(&at, layout, k),
                                  layout->axes[last].stride[k], (const char *)block[k] + done * size, unit);
            }
        }
        begin = at;
        count -= n;
    }
}
