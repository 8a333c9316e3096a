/* rmsp_atomic.h: the few atomic operations that the library needs. */
#ifndef RMSP_ATOMIC_H
#define RMSP_ATOMIC_H
static inline int rmsp_try_lock(int *flag) { return !__atomic_exchange_n(flag, 1, __ATOMIC_ACQUIRE); }
static inline void rmsp_unlock(int *flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }
#endif
