/* rmsp_atomic.h: atomic access to what threads share, by the GNU built-ins, or volatile and interlocked with MSVC.
 *
 * Plain names are relaxed: nothing else is published with the value. A pointer is published: who finds it finds all
 * that was written before it. Names in _sync are sequentially consistent; they are for the worker pool, which MSVC
 * builds do not have.
 */
#ifndef RMSP_ATOMIC_H
#define RMSP_ATOMIC_H

#include <stddef.h>
#include <stdint.h>

#ifdef _MSC_VER

#include <intrin.h>

static inline int rmsp_load_int(const int *p) { return *(const volatile int *)p; }
static inline void rmsp_store_int(int *p, int value) { *(volatile int *)p = value; }
static inline size_t rmsp_load_size(const size_t *p) { return *(const volatile size_t *)p; }
static inline void rmsp_store_size(size_t *p, size_t value) { *(volatile size_t *)p = value; }
static inline int64_t rmsp_load_int64(const int64_t *p) { return *(const volatile int64_t *)p; }
static inline void rmsp_store_int64(int64_t *p, int64_t value) { *(volatile int64_t *)p = value; }

static inline void rmsp_publish(void **p, void *value) { _InterlockedExchangePointer((void *volatile *)p, value); }
static inline void *rmsp_published(void *const *p)
{
    void *const value = *(void *const volatile *)p;
#if defined(_M_ARM64)
    __dmb(_ARM64_BARRIER_ISH);
#else
    _ReadWriteBarrier();
#endif
    return value;
}

/* A lock that is never waited for: true if it was free, and is taken now. */
static inline int rmsp_try_lock(int *flag) { return _InterlockedExchange((volatile long *)flag, 1) == 0; }
static inline void rmsp_unlock(int *flag) { _InterlockedExchange((volatile long *)flag, 0); }

#else

static inline int rmsp_load_int(const int *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void rmsp_store_int(int *p, int value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }
static inline size_t rmsp_load_size(const size_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void rmsp_store_size(size_t *p, size_t value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }
static inline int64_t rmsp_load_int64(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void rmsp_store_int64(int64_t *p, int64_t value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }

static inline void rmsp_publish(void **p, void *value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }
static inline void *rmsp_published(void *const *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }

/* A lock that is never waited for: true if it was free, and is taken now. */
static inline int rmsp_try_lock(int *flag) { return __atomic_exchange_n(flag, 1, __ATOMIC_ACQUIRE) == 0; }
static inline void rmsp_unlock(int *flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }

static inline int rmsp_load_int_sync(const int *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void rmsp_store_int_sync(int *p, int value) { __atomic_store_n(p, value, __ATOMIC_SEQ_CST); }
static inline void rmsp_add_int_sync(int *p, int value) { __atomic_add_fetch(p, value, __ATOMIC_SEQ_CST); }
static inline void rmsp_or_int(int *p, int bits) { __atomic_or_fetch(p, bits, __ATOMIC_RELAXED); }

/* Writes `value` if *p is still *expected; else reads *expected anew. */
static inline int rmsp_replace_size(size_t *p, size_t *expected, size_t value)
{
    return __atomic_compare_exchange_n(p, expected, value, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

#endif

#endif
