/* rmsp_threads.c: helpers for large work, and how many there may be.
 *
 * a) OpenMP says how many threads, and does not run them: the end of its regions waits for every thread of the team,
 *    even for one that the system has not let run yet. NumPy's BLAS keeps its threads spinning for tens of
 *    milliseconds after a matrix product, and a step after one took 4 ms on two threads, and 20 us on one.
 * b) Here the caller works through everything that no helper has taken, and waits only for helpers that are inside
 *    a chunk. One that does not come costs nothing.
 * c) Chunk i belongs to thread i * threads / chunks, so that a thread meets the same memory at every step; who has done
 *    its own takes from the next.
 * d) A helper that finds nothing to do for SPIN_NS goes to sleep. To wake it costs the caller microseconds and takes
 *    tens of them, so that it is done for long work, or where calls follow each other within that time.
 * e) Linux may start or wake a helper on the caller's own core though another one is idle, where it knows of no shared
 *    cache, as in small virtual machines; there it would wait for the next tick. So the caller bars its core first.
 * f) One team for all: a second caller at the same time works alone. A forked child hires helpers of its own.
 */
#define _GNU_SOURCE /* the affinity of threads */
#include "rmsp_threads.h"

#include "rmsp.h"

#ifdef _OPENMP
#include <omp.h>
#endif

static int thread_limit;

void rmsp_set_thread_limit(int limit) { thread_limit = limit; }

#ifndef RMSP_HAVE_PTHREADS

int rmsp_has_threads(void) { return 0; }

int rmsp_thread_count(void) { return 1; }

void rmsp_share(size_t chunks, int threads, int wake, rmsp_chunk_fn *work, void *context)
{
    (void)threads, (void)wake;
    for (size_t i = 0; i < chunks; i++) work(context, i);
}

#else

#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define SPIN_NS 50000

int rmsp_has_threads(void) { return 1; }

int rmsp_thread_count(void)
{
    if (thread_limit > 0) return thread_limit;
#ifdef _OPENMP
    const int count = omp_get_max_threads();
    return count < RMSP_MAX_THREADS ? count : RMSP_MAX_THREADS;
#else
    return 1;
#endif
}

/* A thread of the team, on cache lines of its own; the caller is number 0. */
typedef struct __attribute__((aligned(128))) member {
    size_t next, end; /* its chunks that nobody has taken */
    int asleep;
    pthread_t thread;
    pthread_cond_t woken;
} member;

static struct {
    int busy;      /* a caller has the team */
    int helpers;   /* hired so far */
    int64_t ended; /* when the last job did */
    pthread_mutex_t sleep;
    /* The job: written while none is open. */
    rmsp_chunk_fn *work;
    void *context;
    int threads;
    int together;       /* each does its own share and no other: the caller waits for all */
    fenv_t environment; /* the caller's rounding mode and treatment of subnormal numbers, for the same bits */
    unsigned number;
    /* Shared while one is. */
    unsigned open; /* the number of the job that helpers may enter, or 0 */
    int inside;    /* helpers that may be looking at the job */
    int raised;
    member members[RMSP_MAX_THREADS];
} team = {.sleep = PTHREAD_MUTEX_INITIALIZER};

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void work_through(int self)
{
    for (int k = 0; k < (team.together ? 1 : team.threads); k++) {
        member *const owner = &team.members[(self + k) % team.threads];
        while (__atomic_load_n(&owner->next, __ATOMIC_RELAXED) < owner->end) {
            const size_t chunk = __atomic_fetch_add(&owner->next, 1, __ATOMIC_RELAXED);
            if (chunk < owner->end) team.work(team.context, chunk);
        }
    }
}

static int is_new(unsigned last)
{
    const unsigned open = __atomic_load_n(&team.open, __ATOMIC_SEQ_CST);
    return open != 0 && open != last;
}

static void wait_for_job(member *self, unsigned last)
{
    for (;;) {
        const int64_t until = now() + SPIN_NS;
        do {
            for (int k = 0; k < 64; k++) {
                if (is_new(last)) return;
                relax();
            }
        } while (now() < until);
        pthread_mutex_lock(&team.sleep);
        __atomic_store_n(&self->asleep, 1, __ATOMIC_SEQ_CST);
        if (!is_new(last)) pthread_cond_wait(&self->woken, &team.sleep);
        __atomic_store_n(&self->asleep, 0, __ATOMIC_SEQ_CST);
        pthread_mutex_unlock(&team.sleep);
    }
}

static void *help(void *self_)
{
    member *const self = self_;
    const int index = (int)(self - team.members);
    for (unsigned last = 0;;) {
        wait_for_job(self, last);
        /* First inside, then a look whether the job is still open: the caller closes it first, then looks inside. */
        __atomic_add_fetch(&team.inside, 1, __ATOMIC_SEQ_CST);
        const unsigned open = __atomic_load_n(&team.open, __ATOMIC_SEQ_CST);
        if (open != 0) {
            last = open;
            if (index < team.threads) {
                fesetenv(&team.environment);
                feclearexcept(RMSP_WATCHED);
                work_through(index);
                __atomic_or_fetch(&team.raised, fetestexcept(RMSP_WATCHED), __ATOMIC_RELAXED);
            }
        }
        __atomic_sub_fetch(&team.inside, 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

static void forget_helpers(void)
{
    pthread_mutex_init(&team.sleep, NULL);
    team.busy = team.helpers = team.inside = 0;
    team.open = 0;
}

/* Where helpers may run: on the caller's cores but the one it is on. 0 where there is none, and they would only be in
 * its way. */
#ifdef __linux__
typedef cpu_set_t cores;

static int other_cores(cores *others)
{
    if (sched_getaffinity(0, sizeof *others, others) != 0) memset(others, 0xff, sizeof *others); /* over 1024 cores */
    CPU_CLR((size_t)sched_getcpu(), others);
    return CPU_COUNT(others) > 0;
}

static void put_on(pthread_t thread, const cores *others) { pthread_setaffinity_np(thread, sizeof *others, others); }

static void begin_on(pthread_attr_t *attributes, const cores *others)
{
    pthread_attr_setaffinity_np(attributes, sizeof *others, others);
}
#else
typedef int cores;

static int other_cores(cores *others) { return *others = 1; }

static void put_on(pthread_t thread, const cores *others) { (void)thread, (void)others; }

static void begin_on(pthread_attr_t *attributes, const cores *others) { (void)attributes, (void)others; }
#endif

/* Hires one helper; 0 where the system has none. Signals stay with the threads that expect them. */
static int hire(const cores *others)
{
    static int watches_forks;
    if (!watches_forks) watches_forks = pthread_atfork(NULL, NULL, forget_helpers) == 0;
    if (!watches_forks) return 0;
    member *const next = &team.members[team.helpers + 1];
    pthread_attr_t attributes;
    sigset_t all, before;
    next->asleep = 0;
    pthread_cond_init(&next->woken, NULL);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    begin_on(&attributes, others);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int hired = pthread_create(&next->thread, &attributes, help, next) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    team.helpers += hired;
    return hired;
}

static int is_asleep(int k) { return __atomic_load_n(&team.members[k].asleep, __ATOMIC_SEQ_CST); }

static void wake_up(int k, const cores *others)
{
    put_on(team.members[k].thread, others);
    pthread_mutex_lock(&team.sleep);
    pthread_cond_signal(&team.members[k].woken);
    pthread_mutex_unlock(&team.sleep);
}

/* A job of the caller and these helpers, of whom the first `wake` are woken if need be. */
static void run_job(size_t chunks, int helpers, int wake, int together, const cores *others, rmsp_chunk_fn *work,
                    void *context)
{
    team.work = work;
    team.context = context;
    team.threads = helpers + 1;
    team.together = together;
    team.raised = 0;
    fegetenv(&team.environment);
    for (size_t t = 0, count = (size_t)helpers + 1; t < count; t++) {
        team.members[t].next = chunks * t / count;
        team.members[t].end = chunks * (t + 1) / count;
    }
    if (++team.number == 0) team.number = 1;
    __atomic_store_n(&team.open, team.number, __ATOMIC_SEQ_CST);
    for (int k = 1; k <= wake; k++) {
        if (is_asleep(k)) wake_up(k, others);
    }
    work_through(0);
    for (int k = 1; k <= helpers && together; k++) {
        while (__atomic_load_n(&team.members[k].next, __ATOMIC_RELAXED) < team.members[k].end) sched_yield();
    }
    __atomic_store_n(&team.open, 0, __ATOMIC_SEQ_CST);
    for (int k = 0; __atomic_load_n(&team.inside, __ATOMIC_SEQ_CST) != 0; k++) {
        if (k < 1000) {
            relax();
        } else {
            sched_yield();
        }
    }
    feraiseexcept(team.raised);
}

void rmsp_share(size_t chunks, int threads, int wake, rmsp_chunk_fn *work, void *context)
{
    int helpers = (size_t)threads < chunks ? threads - 1 : (int)chunks - 1;
    const int together = wake == RMSP_WAKE_ALL;
    const int mine = helpers > 0 && !__atomic_exchange_n(&team.busy, 1, __ATOMIC_ACQUIRE);
    int awake = 0;
    cores others;
    if (mine) {
        if (together || wake > helpers || now() - team.ended < SPIN_NS) wake = helpers;
        for (int k = 1; k <= helpers; k++) awake += k <= team.helpers && !is_asleep(k);
        const int elsewhere = wake > 0 && (awake < helpers || together) && other_cores(&others);
        if (!elsewhere && !together) wake = 0;
        while (team.helpers < wake && hire(&others)) {
        }
        if (helpers > team.helpers) helpers = team.helpers;
        if (wake > helpers) wake = helpers;
    }
    if (mine && (wake > 0 || awake > 0)) {
        run_job(chunks, helpers, wake, together, &others, work, context);
    } else {
        for (size_t i = 0; i < chunks; i++) work(context, i);
    }
    if (mine) {
        team.ended = now();
        __atomic_store_n(&team.busy, 0, __ATOMIC_RELEASE);
    }
}

#endif
