/* rmsp_threads.h: helpers for large work; internal to the library. */
#ifndef RMSP_THREADS_H
#define RMSP_THREADS_H

#include <stddef.h>

typedef void rmsp_chunk_fn(void *context, size_t chunk);

/* Calls work(context, i) once for each i < chunks, in any order: on the caller, and on up to threads - 1 helpers that
 * are awake, or of which the first `wake` are woken; RMSP_WAKE_ALL also waits for every one to do its share, for tests.
 * Floating-point exceptions are raised in the caller. */
#define RMSP_WAKE_ALL (-1)
void rmsp_share(size_t chunks, int threads, int wake, rmsp_chunk_fn *work, void *context);

#endif
