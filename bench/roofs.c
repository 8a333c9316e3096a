/* roofs.c: what the machine can do at best, for the benchmarks only; nothing here is part of the library.
 *
 * Compiled once per vector width (-DWIDTH) by roofs.py, loaded with ctypes. Each roof does part of a step:
 *   k1  moves the step's streams with multiplications and additions only: memory
 *   k2  takes one square root and one division an element, on data that stays in registers or the nearest cache: divider
 *   k3  loads and stores the step's streams with no floating-point arithmetic: the load and store units
 * For momentum or centering there is one more stream to read and write. Numbers are given at run time, with values that
 * leave the data as it is, so that the compiler can leave nothing out.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define UNROLL_(n) _Pragma(#n)
#define UNROLL(n) UNROLL_(GCC unroll n)

#define DEFINE_STREAMS(T, I, name, unroll)                                                                             \
    static void k1_##name##_##unroll(ptrdiff_t n, T *restrict p, const T *restrict g, T *restrict v, T *restrict b,    \
                                     T zero, T one)                                                                    \
    {                                                                                                                  \
        if (b == NULL) {                                                                                               \
            UNROLL(unroll) for (ptrdiff_t i = 0; i < n; i++)                                                           \
            {                                                                                                          \
                const T x = g[i], q = p[i], w = v[i];                                                                  \
                v[i] = one * w + zero * x;                                                                             \
                p[i] = q + zero * x;                                                                                   \
            }                                                                                                          \
        } else {                                                                                                       \
            UNROLL(unroll) for (ptrdiff_t i = 0; i < n; i++)                                                           \
            {                                                                                                          \
                const T x = g[i], q = p[i], w = v[i], c = b[i];                                                        \
                v[i] = one * w + zero * x;                                                                             \
                b[i] = one * c + zero * x;                                                                             \
                p[i] = q + zero * c;                                                                                   \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static void k3_##name##_##unroll(ptrdiff_t n, T *restrict p_, const T *restrict g_, T *restrict v_, T *restrict b_, \
                                     T zero, T one)                                                                    \
    {                                                                                                                  \
        I *restrict p = (I *)p_, *restrict v = (I *)v_, *restrict b = (I *)b_;                                         \
        const I *restrict g = (const I *)g_;                                                                           \
        const I none = (I)zero & (I)one;                                                                               \
        if (b == NULL) {                                                                                               \
            UNROLL(unroll) for (ptrdiff_t i = 0; i < n; i++)                                                           \
            {                                                                                                          \
                const I x = g[i] & none, q = p[i], w = v[i];                                                           \
                v[i] = w ^ x;                                                                                          \
                p[i] = q ^ x;                                                                                          \
            }                                                                                                          \
        } else {                                                                                                       \
            UNROLL(unroll) for (ptrdiff_t i = 0; i < n; i++)                                                           \
            {                                                                                                          \
                const I x = g[i] & none, q = p[i], w = v[i], c = b[i];                                                 \
                v[i] = w ^ x;                                                                                          \
                b[i] = c ^ x;                                                                                          \
                p[i] = q ^ x;                                                                                          \
            }                                                                                                          \
        }                                                                                                              \
    }

#define DEFINE(T, I, name, SQRT)                                                                                       \
    DEFINE_STREAMS(T, I, name, 1)                                                                                      \
    DEFINE_STREAMS(T, I, name, 2)                                                                                      \
    DEFINE_STREAMS(T, I, name, 4)                                                                                      \
    typedef void name##_streams(ptrdiff_t, T *, const T *, T *, T *, T, T);                                            \
    static name##_streams *const name##_table[2][3] = {{k1_##name##_1, k1_##name##_2, k1_##name##_4},                  \
                                                       {k3_##name##_1, k3_##name##_2, k3_##name##_4}};                 \
    /* kind 0: k1, 1: k3; unroll 0, 1, 2: 1, 2, 4. Threads share evenly, and no cache line. */                \
    void streams_##name(int kind, int unroll, int threads, ptrdiff_t n, T *p, const T *g, T *v, T *b, T zero, T one)   \
    {                                                                                                                  \
        name##_streams *const run = name##_table[kind][unroll];                                                        \
        const ptrdiff_t head = (ptrdiff_t)(-(uintptr_t)p % 64 / sizeof(T)); /* to the start of a cache line */         \
        if (head < n) {                                                                                                \
            run(head, p, g, v, b, zero, one);                                                                          \
            n -= head, p += head, g += head, v += head;                                                                \
            if (b != NULL) b += head;                                                                                  \
        }                                                                                                              \
        if (threads == 1) {                                                                                            \
            run(n, p, g, v, b, zero, one);                                                                             \
            return;                                                                                                    \
        }                                                                                                              \
        _Pragma("omp parallel for schedule(static) num_threads(threads)") for (int t = 0; t < threads; t++)            \
        {                                                                                                              \
            const ptrdiff_t from = n / threads * t / 64 * 64;                                                          \
            const ptrdiff_t to = t + 1 == threads ? n : n / threads * (t + 1) / 64 * 64;                               \
            run(to - from, p + from, g + from, v + from, b == NULL ? NULL : b + from, zero, one);                      \
        }                                                                                                              \
    }                                                                                                                  \
    /* 512 bytes: eight of the widest registers, each a chain of its own. */                                           \
    T divider_##name(ptrdiff_t repeats, T half)                                                                        \
    {                                                                                                                  \
        T x[512 / sizeof(T)], sum = 0;                                                                                 \
        for (size_t i = 0; i < 512 / sizeof(T); i++) x[i] = half + (T)i / 1024;                                        \
        for (ptrdiff_t r = 0; r < repeats; r++) {                                                                      \
            for (size_t i = 0; i < 512 / sizeof(T); i++) x[i] = half / SQRT(x[i]);                                     \
        }                                                                                                              \
        for (size_t i = 0; i < 512 / sizeof(T); i++) sum += x[i];                                                      \
        return sum;                                                                                                    \
    }

DEFINE(float, int32_t, f32, sqrtf)
DEFINE(double, int64_t, f64, sqrt)
