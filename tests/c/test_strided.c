/* test_strided.c: gather a block, work, scatter. */
#include "plans.h"

static void test_copies(void)
{
    for (int round = 0; round < 2000; round++) {
        const size_t size = below(2) ? 4 : 8, n = below(20);
        const ptrdiff_t from = (ptrdiff_t)(size * below(4)) - (ptrdiff_t)size, to = (ptrdiff_t)(size * (1 + below(3)));
        const size_t span = n == 0 ? 0 : (n - 1) * (size_t)(from < 0 ? -from : from) + size;
        const size_t to_span = n == 0 ? 0 : (n - 1) * (size_t)to + size;
        unsigned char *const source = allocate(span, 1), *const target = allocate(to_span, 1);
        for (size_t k = 0; k < span; k++) source[k] = (unsigned char)random_bits();
        memset(target, 0xaa, to_span);
        unsigned char *const first = from < 0 ? source + (n == 0 ? 0 : (n - 1) * size) : source;
        rmsp_copy_strided(n, size, (char *)target, to, (const char *)first, from);
        for (size_t k = 0; k < to_span; k++) {
            const size_t i = k / (size_t)to, byte = k % (size_t)to;
            CHECK(target[k] == (byte < size ? first[(ptrdiff_t)i * from + (ptrdiff_t)byte] : 0xaa));
        }
        free(source);
        free(target);
    }
}

typedef struct seen {
    size_t elements, blocks, size;
} seen;

/* square_avg = param + grad; param = 1 + param. */
static void add_block(size_t n, void *const block[RMSP_ARRAY_COUNT], void *context)
{
    seen *const s = context;
    CHECK(n > 0 && n <= RMSP_BLOCK);
    for (int k = 0; k < RMSP_ARRAY_COUNT; k++) CHECK((block[k] != NULL) == (k <= RMSP_SQUARE_AVG));
    for (size_t e = 0; e < n; e++) {
        if (s->size == 4) {
            float *const p = (float *)block[RMSP_PARAM] + e;
            ((float *)block[RMSP_SQUARE_AVG])[e] = *p + ((float *)block[RMSP_GRAD])[e];
            *p += 1;
        } else {
            double *const p = (double *)block[RMSP_PARAM] + e;
            ((double *)block[RMSP_SQUARE_AVG])[e] = *p + ((double *)block[RMSP_GRAD])[e];
            *p += 1;
        }
    }
    s->elements += n;
    s->blocks++;
}

/* The layout of three arrays of one shape, with every axis there is. */
static rmsp_layout layout_of(rmsp_axis *axes, array *const arrays[3])
{
    const rmsp_array *const a = &arrays[0]->a;
    rmsp_layout layout = {a->ndim, axes};
    for (int axis = 0; axis < a->ndim; axis++) {
        axes[axis] = (rmsp_axis){.length = (size_t)a->shape[axis]};
        for (int k = 0; k < 3; k++) axes[axis].stride[k] = arrays[k]->strides[axis];
    }
    return layout;
}

/* Elements [start, start + count) are worked on, each once, and no others. */
static void test_every_layout(void)
{
    for (int round = 0; round < 600; round++) {
        const int type = (int)below(RMSP_DTYPE_COUNT);
        ptrdiff_t shape[MAX_NDIM];
        const int ndim = random_shape(shape, 3000);
        rmsp_axis axes[MAX_NDIM];
        array *arrays[3];
        void *in[RMSP_ARRAY_COUNT] = {NULL}, *out[RMSP_ARRAY_COUNT] = {NULL};
        size_t n = 1;
        for (int axis = 0; axis < ndim; axis++) n *= (size_t)shape[axis];
        if (ndim == 0 || n == 0) continue; /* nothing to run */
        for (int k = 0; k < 3; k++) {
            arrays[k] = new_array(type, ndim, shape, (lie)below(k == RMSP_GRAD ? LIE_COUNT : LIE_BROADCAST));
            fill(&arrays[k]->a, 0);
            in[k] = out[k] = arrays[k]->a.data;
        }
        out[RMSP_GRAD] = NULL;
        const size_t start = below(n + 1), count = below(n - start + 1);
        double *const before[2] = {allocate(n, sizeof(double)), allocate(n, sizeof(double))};
        for (size_t e = 0; e < n; e++) {
            before[0][e] = get_real(&arrays[RMSP_PARAM]->a, e);
            before[1][e] = get_real(&arrays[RMSP_SQUARE_AVG]->a, e);
        }
        const rmsp_layout layout = layout_of(axes, arrays);
        seen s = {.size = size_of_real(type)};
        size_t sizes[RMSP_ARRAY_COUNT];
        for (int k = 0; k < RMSP_ARRAY_COUNT; k++) sizes[k] = s.size;
        rmsp_strided_run(sizes, &layout, start, count, (const void *const *)in, out, add_block, &s);
        CHECK(s.elements == count && s.blocks == (count + RMSP_BLOCK - 1) / RMSP_BLOCK);
        for (size_t e = 0; e < n; e++) {
            const int worked = e >= start && e < start + count;
            const double p = before[0][e], g = get_real(&arrays[RMSP_GRAD]->a, e);
            const double sum = type == RMSP_F32 ? (double)((float)p + (float)g) : p + g;
            const double more = type == RMSP_F32 ? (double)((float)p + 1) : p + 1;
            CHECK(get_real(&arrays[RMSP_PARAM]->a, e) == (worked ? more : p));
            CHECK(get_real(&arrays[RMSP_SQUARE_AVG]->a, e) == (worked ? sum : before[1][e]));
        }
        for (int k = 0; k < 3; k++) free_array(arrays[k]);
        free(before[0]);
        free(before[1]);
    }
}

int main(void)
{
    test_copies();
    test_every_layout();
    return 0;
}
