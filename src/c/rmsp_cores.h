/* rmsp_cores.h: the cores that threads may run on, where the system has thread affinity; internal to the library.
 *
 * For rmsp_threads.c, which defines _GNU_SOURCE. Without RMSP_HAVE_AFFINITY, threads run where the system likes.
 */
#ifndef RMSP_CORES_H
#define RMSP_CORES_H

#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "rmsp.h"

#ifdef RMSP_HAVE_AFFINITY

/* 8192 cores, the most that Linux can be built for; one cpu_set_t holds 1024. */
typedef struct rmsp_cores {
    cpu_set_t set[8192 / CPU_SETSIZE];
} rmsp_cores;

/* The affinity mask of the calling thread, and how many cores that is. */
static inline int rmsp_read_cores(rmsp_cores *cores)
{
    if (sched_getaffinity(0, sizeof *cores, cores->set) == 0) return CPU_COUNT_S(sizeof *cores, cores->set);
    memset(cores, 0xff, sizeof *cores);
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

/* Removes the core that the calling thread is on; returns whether any is left. */
static inline int rmsp_remove_this_core(rmsp_cores *cores)
{
    CPU_CLR_S((size_t)sched_getcpu(), sizeof *cores, cores->set);
    return CPU_COUNT_S(sizeof *cores, cores->set) > 0;
}

/* Only that core; returns whether a thread can be moved to it. */
static inline int rmsp_this_core(rmsp_cores *cores)
{
    memset(cores, 0, sizeof *cores);
    CPU_SET_S((size_t)sched_getcpu(), sizeof *cores, cores->set);
    return 1;
}

static inline void rmsp_set_cores(pthread_t thread, const rmsp_cores *cores)
{
    pthread_setaffinity_np(thread, sizeof *cores, cores->set);
}

#else

typedef struct rmsp_cores {
    int unknown;
} rmsp_cores;

static inline int rmsp_read_cores(rmsp_cores *cores)
{
    cores->unknown = 1;
#ifdef _SC_NPROCESSORS_ONLN
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
#else
    return RMSP_MAX_THREADS;
#endif
}

static inline int rmsp_remove_this_core(rmsp_cores *cores) { return cores->unknown; }

static inline int rmsp_this_core(rmsp_cores *cores) { return cores->unknown = 0; }

static inline void rmsp_set_cores(pthread_t thread, const rmsp_cores *cores) { (void)thread, (void)cores; }

#endif

#endif
