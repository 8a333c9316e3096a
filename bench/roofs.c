/* roofs.c: what the machine can do at best, for the benchmarks only; nothing here is part of the library.
 *
 * Compiled once per vector width (-DWIDTH) by roofs.py, loaded with ctypes. Each roof does part of a step:
 *   k1  moves the step's streams with multiplications and additions only: memory
 *   k2  takes one square root and one division an element, on data that stays in registers or the nearest cache: divider
 *   k3  loads and stores the step's streams with no floating-point arithmetic: the load and store units
 * For momentum or centering there is one more stream to read and write. Numbers are given at run time, with values that
 * leave the data as it is, so that the compiler can leave nothing out. A call repeats its work many times: a call through
 * ctypes takes 1 us, more than a step over 1000 elements, and would make the limit of small arrays larger than a step.
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
    static void repeat_##name(name##_streams *run, ptrdiff_t repeats, ptrdiff_t n, T *p, const T *g, T *v, T *b,       \
                              T zero, T one)                                                                           \
    {                                                                                                                  \
        const ptrdiff_t start = (ptrdiff_t)(-(uintptr_t)p % 64 / sizeof(T)); /* of a cache line */                     \
        const ptrdiff_t head = start < n ? start : 0;                                                                  \
        for (ptrdiff_t r = 0; r < repeats; r++) {                                                                      \
            run(head, p, g, v, b, zero, one);                                                                          \
            run(n - head, p + head, g + head, v + head, b == NULL ? NULL : b + head, zero, one);                       \
        }                                                                                                              \
    }                                                                                                                  \
    /* Share t of shares, none of which has a part of a cache line of another one. */                                  \
    static void share_##name(name##_streams *run, int t, int shares, ptrdiff_t repeats, ptrdiff_t n, T *p, const T *g, \
                             T *v, T *b, T zero, T one)                                                                \
    {                                                                                                                  \
        const ptrdiff_t start = (ptrdiff_t)(-(uintptr_t)p % 64 / sizeof(T)), share = n / shares / 64 * 64;             \
        const ptrdiff_t from = t == 0 ? 0 : start + share * t, to = t + 1 == shares ? n : start + share * (t + 1);     \
        repeat_##name(run, repeats, to - from, p + from, g + from, v + from, b == NULL ? NULL : b + from, zero, one);  \
    }                                                                                                                  \
    /* kind 0: k1, 1: k3; unroll 0, 1, 2: 1, 2, 4. A thread repeats its share without waiting for the others; where    \
     * nothing is repeated, many shares go to the threads as they come, since memory may serve one core better. */     \
    void streams_##name(int kind, int unroll, int threads, ptrdiff_t repeats, ptrdiff_t n, T *p, const T *g, T *v,     \
                        T *b, T zero, T one)                                                                           \
    {                                                                                                                  \
        name##_streams *const run = name##_table[kind][unroll];                                                        \
        if (threads == 1) {                                                                                            \
            repeat_##name(run, repeats, n, p, g, v, b, zero, one);                                                     \
        } else if (repeats > 1) {                                                                                      \
            _Pragma("omp parallel for schedule(static) num_threads(threads)") for (int t = 0; t < threads; t++)        \
                share_##name(run, t, threads, repeats, n, p, g, v, b, zero, one);                                      \
        } else {                                                                                                       \
            const int shares = 32 * threads;                                                                           \
            _Pragma("omp parallel for schedule(dynamic) num_threads(threads)") for (int t = 0; t < shares; t++)        \
                share_##name(run, t, shares, 1, n, p, g, v, b, zero, one);                                             \
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
