/* rmsp_threads.h: the worker pool: spans of large work are run by several threads; internal to the library.
 *
 * Call rmsp_share with spans that may be run in any order and at the same time. Counts and limits of threads are in
 * rmsp.h; until rmsp_threads_init the caller runs everything.
 */
#ifndef RMSP_THREADS_H
#define RMSP_THREADS_H

#include <stddef.h>

/* Runs the spans [begin, end). */
typedef void rmsp_spans_fn(void *context, size_t begin, size_t end);

/* Calls work for ranges that together are the spans [0, count), each once: on the caller, and on up to threads - 1
 * workers that are awake, or of which the first `wake` are woken; never on more threads than the caller may use cores.
 * RMSP_WAKE_ALL, for tests, has no such limit, and waits for every thread to run its share.
 * Rounding mode and treatment of subnormal numbers are the caller's; floating-point exceptions are raised in it. */
#define RMSP_WAKE_ALL (-1)
void rmsp_share(size_t count, int threads, int wake, rmsp_spans_fn *work, void *context);

#endif
