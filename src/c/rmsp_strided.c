/* rmsp_strided.c: work on arrays of any layout: gather a block, work on it, scatter it.
 *
 * a) Only the copies use strides. The work is done on contiguous blocks, so that every layout gives the same bits.
 *    The blocks take 8 * 4 KiB, within a first-level cache.
 * b) An array that is dense in the order of the layout, as the state often is beside a strided parameter, is worked on
 *    where it lies.
 * c) Short innermost axes, as of the columns of a matrix, are copied several rows at a time: with a copy a row, a
 *    (2**22, 4) view took 18 times as long as dense memory.
 */
#include <assert.h>
#include <string.h>

#include "rmsp.h"

/* A place in the order of a layout. */
typedef struct cursor {
    size_t index[RMSP_MAX_NDIM];
} cursor;

static void cursor_seek(cursor *at, const rmsp_layout *layout, size_t start)
{
    for (int axis = layout->ndim - 1; axis >= 0; axis--) {
        assert(layout->axes[axis].length > 0);
        at->index[axis] = start % layout->axes[axis].length;
        start /= layout->axes[axis].length;
    }
}

/* What is copied at once: rows of the two innermost axes, whole ones unless there is only one. */
typedef struct piece {
    size_t rows, columns;
} piece;

/* The piece that begins at `at`, of at most `limit` elements. */
static piece cursor_piece(const cursor *at, const rmsp_layout *layout, size_t limit)
{
    const int last = layout->ndim - 1;
    const size_t length = layout->axes[last].length, left = length - at->index[last];
    if (last > 0 && at->index[last] == 0 && limit >= 2 * length) {
        const size_t rows = limit / length, rows_left = layout->axes[last - 1].length - at->index[last - 1];
        return (piece){rows < rows_left ? rows : rows_left, length};
    }
    return (piece){1, left < limit ? left : limit};
}

static void cursor_advance(cursor *at, const rmsp_layout *layout, piece done)
{
    int axis = layout->ndim - 1;
    at->index[axis] += done.columns;
    if (axis > 0 && at->index[axis] == layout->axes[axis].length) {
        at->index[axis] = 0;
        at->index[--axis] += done.rows;
    }
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

/* One element after the other. Inlined with a constant size, it is a load and a store. */
static inline void copy_each(size_t n, size_t size, char *to, ptrdiff_t to_stride, const char *from,
                             ptrdiff_t from_stride)
{
    for (size_t i = 0; i < n; i++, to += to_stride, from += from_stride) memcpy(to, from, size);
}

void rmsp_copy_strided(size_t n, size_t size, char *to, ptrdiff_t to_stride, const char *from, ptrdiff_t from_stride)
{
    assert(size > 0 && size <= RMSP_MAX_SIZE);
    if (to_stride == (ptrdiff_t)size && from_stride == (ptrdiff_t)size && n > 8) {
        memcpy(to, from, n * size);
    } else if (size == 8) {
        copy_each(n, 8, to, to_stride, from, from_stride);
    } else if (size == 4) {
        copy_each(n, 4, to, to_stride, from, from_stride);
    } else if (size == 2) {
        copy_each(n, 2, to, to_stride, from, from_stride);
    } else {
        copy_each(n, size, to, to_stride, from, from_stride);
    }
}

/* Copies a piece between an array of the layout and contiguous memory. */
static void copy_piece(piece part, size_t size, char *to, ptrdiff_t to_row, ptrdiff_t to_column, const char *from,
                       ptrdiff_t from_row, ptrdiff_t from_column)
{
    for (size_t row = 0; row < part.rows; row++, to += to_row, from += from_row) {
        rmsp_copy_strided(part.columns, size, to, to_column, from, from_column);
    }
}

/* Whether array k is dense in the order of the layout. */
static int is_dense(const rmsp_layout *layout, int k, size_t size)
{
    ptrdiff_t stride = (ptrdiff_t)size;
    for (int axis = layout->ndim - 1; axis >= 0; axis--) {
        if (layout->axes[axis].stride[k] != stride) return 0;
        stride *= (ptrdiff_t)layout->axes[axis].length;
    }
    return 1;
}

void rmsp_strided_run(const size_t size[RMSP_ARRAY_COUNT], const rmsp_layout *layout, size_t start, size_t count,
                      const void *const in[RMSP_ARRAY_COUNT], void *const out[RMSP_ARRAY_COUNT], rmsp_block_fn *work,
                      void *context)
{
    const rmsp_axis *const inner = &layout->axes[layout->ndim - 1];
    const rmsp_axis *const outer = layout->ndim > 1 ? inner - 1 : inner; /* not read where there is one row */
    double memory[RMSP_ARRAY_COUNT][RMSP_BLOCK * RMSP_MAX_SIZE / sizeof(double)];
    void *block[RMSP_ARRAY_COUNT];
    int copied[RMSP_ARRAY_COUNT];
    cursor begin, at;

    assert(layout->axes != NULL && layout->ndim > 0 && layout->ndim <= RMSP_MAX_NDIM);
    for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
        const int direct = in[k] != NULL && (out[k] == NULL || out[k] == in[k]) && is_dense(layout, k, size[k]);
        assert(size[k] <= RMSP_MAX_SIZE && (in[k] != NULL || out[k] == NULL));
        copied[k] = in[k] != NULL && !direct;
        block[k] = direct ? (char *)in[k] + start * size[k] : in[k] == NULL ? NULL : (char *)memory[k];
    }
    cursor_seek(&begin, layout, start);
    while (count > 0) {
        const size_t n = count < RMSP_BLOCK ? count : RMSP_BLOCK;
        piece part;

        at = begin;
        for (size_t done = 0; done < n; done += part.rows * part.columns, cursor_advance(&at, layout, part)) {
            part = cursor_piece(&at, layout, n - done);
            for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
                if (!copied[k]) continue;
                const ptrdiff_t unit = (ptrdiff_t)size[k];
                copy_piece(part, size[k], (char *)block[k] + done * size[k], unit * (ptrdiff_t)part.columns, unit,
                           (const char *)in[k] + cursor_offset(&at, layout, k), outer->stride[k], inner->stride[k]);
            }
        }

        work(n, block, context);

        at = begin;
        for (size_t done = 0; done < n; done += part.rows * part.columns, cursor_advance(&at, layout, part)) {
            part = cursor_piece(&at, layout, n - done);
            for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
                if (!copied[k] || out[k] == NULL) continue;
                const ptrdiff_t unit = (ptrdiff_t)size[k];
                copy_piece(part, size[k], (char *)out[k] + cursor_offset(&at, layout, k), outer->stride[k],
                           inner->stride[k], (const char *)block[k] + done * size[k], unit * (ptrdiff_t)part.columns,
                           unit);
            }
        }
        begin = at;
        count -= n;
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) {
            if (in[k] != NULL && !copied[k]) block[k] = (char *)block[k] + n * size[k];
        }
    }
}

void rmsp_gather_elements(size_t size, const rmsp_layout *layout, int k, size_t start, size_t count, size_t first,
                          size_t *to)
{
    const rmsp_axis *const inner = &layout->axes[layout->ndim - 1];
    const ptrdiff_t unit = (ptrdiff_t)size, base = (ptrdiff_t)first;
    cursor at;
    piece part;

    assert(layout->ndim > 0);
    cursor_seek(&at, layout, start);
    for (; count > 0; count -= part.rows * part.columns, cursor_advance(&at, layout, part)) {
        part = cursor_piece(&at, layout, count);
        ptrdiff_t row = cursor_offset(&at, layout, k);
        for (size_t i = 0; i < part.rows; i++) {
            for (size_t j = 0; j < part.columns; j++) {
                *to++ = (size_t)(base + (row + (ptrdiff_t)j * inner->stride[k]) / unit);
            }
            if (layout->ndim > 1) row += inner[-1].stride[k];
        }
    }
}

void rmsp_gather_numbers(size_t size, const rmsp_layout *layout, int k, size_t start, size_t count, size_t first,
                         const double *numbers, size_t run, double *to)
{
    size_t element[RMSP_BLOCK];
    assert(run > 0);
    for (size_t done = 0, part; done < count; done += part) {
        part = count - done < RMSP_BLOCK ? count - done : RMSP_BLOCK;
        rmsp_gather_elements(size, layout, k, start + done, part, first, element);
        for (size_t i = 0; i < part; i++) to[done + i] = numbers[element[i] / run];
    }
}
