/* rmsp_threads.c: the worker pool, and how many threads there may be.
 *
 * a) OpenMP gives the number of threads, and does not run them: a region ends when its last thread does, even one that
 *    the system has not let run yet. NumPy's BLAS keeps its threads spinning for tens of milliseconds after a matrix
 *    product, and a step after one took 4 ms on two threads, and 20 us on one.
 * b) Here the caller runs every span that no worker has taken, and waits only for workers that are inside a chunk. A
 *    worker that does not come costs nothing.
 * c) Each thread has a share of the spans, the same at every step, so that it meets the same memory. It takes an eighth
 *    of what is left at a time, down to one span: few chunks, and small ones at the end. A thread that has finished
 *    its own share goes on with the next one's.
 * d) A chunk that a worker has begun cannot be taken back, since the update is in place. If the system preempts the
 *    worker there, the caller moves it to the caller's own core, and sleeps until the chunk is done. Beside a process
 *    that ran for 20 ms of 25 on the other core, the 99th percentile of a step over 1 Mi float32 fell from 4 to 0.24 ms
 *    (one thread: 0.17). Then the caller works alone for a while, since whatever took that core will take it again.
 * e) A worker without a job spins for SPIN_NS, then sleeps. To wake it costs the caller microseconds and takes tens of
 *    them, so that it is done for long work, or where jobs follow each other within that time.
 * f) Linux may start or wake a worker on the caller's own core though another one is idle, where it knows of no shared
 *    cache, as in small virtual machines; there it would wait for the next tick. So that core is excluded.
 * g) More threads than cores take turns, and every turn is a preemption: 64 threads on 2 cores took 13 times as long as
 *    one. The affinity mask is the caller's, read again every AFFINITY_NS.
 * h) There is one pool: a second caller at the same time works alone. A forked child starts with an empty pool,
 *    whatever its parent's threads were doing. Whoever holds `busy` owns the fields that are not atomic.
 */
#define _GNU_SOURCE /* thread affinity */
#include "rmsp_threads.h"

#include "rmsp.h"
#include "rmsp_atomic.h"

#ifdef _OPENMP
#include <omp.h>
#endif

static int thread_limit;

int rmsp_set_thread_limit(int limit)
{
    int before = rmsp_load_int(&thread_limit);
    rmsp_store_int(&thread_limit, limit);
    return before;
}

#ifndef RMSP_HAVE_PTHREADS

void rmsp_threads_init(void) {}

int rmsp_has_threads(void) { return 0; }

int rmsp_thread_count(int preferred)
{
    (void)preferred;
    return 1;
}

void rmsp_share(size_t count, int threads, int wake, rmsp_spans_fn *work, void *context)
{
    (void)threads, (void)wake;
    work(context, 0, count);
}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "rmsp_cores.h"
#include "rmsp_fenv.h"

#define US ((int64_t)1000)
#define MS (1000 * US)
#define SPIN_NS (50 * US)
#define AFFINITY_NS (10 * MS)
#define LATE_NS (50 * US) /* the last chunks take a tenth of it */
#define PAUSE_FACTOR 50   /* times what was lost, so that 2 % of the time can be lost */
#define LONGEST_PAUSE_NS (1000 * MS)

int rmsp_has_threads(void) { return 1; }

int rmsp_thread_count(int preferred)
{
    int count = rmsp_load_int(&thread_limit);
    if (count <= 0) count = preferred;
#ifdef _OPENMP
    if (count <= 0) count = omp_get_max_threads();
#endif
    if (count <= 0) count = 1;
    return count < RMSP_MAX_THREADS ? count : RMSP_MAX_THREADS;
}

/* Each time a cache line that one core wrote is needed by the other takes 50 to 250 ns, so that what is needed together
 * lies together: the share of a thread, its state, the job. */
#define OWN_LINE __attribute__((aligned(64)))

/* A thread of a job, on cache lines of its own; the caller is number 0. */
typedef struct __attribute__((aligned(128))) worker {
    size_t next, end;     /* the spans of its share that nobody has taken */
    OWN_LINE int working; /* while it is inside, and a little longer */
    int asleep;
    int displaced; /* it was moved to the caller's core, and must not spin there */
    pthread_t thread;
    pthread_cond_t woken;
} worker;

static struct {
    int usable; /* a forked child can be put right */
    int busy;   /* a caller owns the pool */
    int started;
    int64_t ended;       /* when the last job did */
    int64_t alone_until; /* after a preempted worker, no job before then has workers */
    int core_count;      /* in `allowed`; 0 before the first look */
    int64_t read_at;     /* when and by whom the affinity mask was read */
    pthread_t read_by;
    rmsp_cores allowed, others; /* the caller's affinity mask; the same without its core */
    pthread_mutex_t mutex;
    pthread_cond_t finished;
    /* The job: written while none is open, but for `open`, its number, or 0 where workers may not enter. */
    OWN_LINE rmsp_spans_fn *work;
    void *context;
    int threads;
    int own_share_only; /* RMSP_WAKE_ALL: the caller waits for all */
    rmsp_environment environment;
    int number;
    int open;
    /* Shared while one is open. */
    OWN_LINE int inside; /* workers that may be looking at the job */
    int caller_sleeps;   /* until none is */
    int raised;
    worker workers[RMSP_MAX_THREADS];
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .finished = PTHREAD_COND_INITIALIZER};

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

/* ---- what a worker does ---- */

static void run_chunks(int self)
{
    for (int k = 0; k < (pool.own_share_only ? 1 : pool.threads); k++) {
        worker *const owner = &pool.workers[(self + k) % pool.threads];
        size_t begin = rmsp_load_size(&owner->next);
        while (begin < owner->end) {
            const size_t left = owner->end - begin, end = begin + (left + 7) / 8;
            if (!rmsp_replace_size(&owner->next, &begin, end)) continue;
            pool.work(pool.context, begin, end);
            begin = rmsp_load_size(&owner->next);
        }
    }
}

/* Whether there is a job for this worker that it has not seen. */
static int has_job(const worker *self, int last)
{
    const int open = rmsp_load_int_sync(&pool.open);
    return open != 0 && open != last && self - pool.workers < rmsp_load_int(&pool.threads);
}

static void wait_for_job(worker *self, int last)
{
    for (;;) {
        const int64_t until = now() + SPIN_NS;
        while (!rmsp_load_int(&self->displaced) && now() < until) {
            for (int k = 0; k < 64; k++) {
                if (has_job(self, last)) return;
                relax();
            }
        }
        pthread_mutex_lock(&pool.mutex);
        rmsp_store_int_sync(&self->asleep, 1);
        if (rmsp_load_int(&self->displaced) || !has_job(self, last)) pthread_cond_wait(&self->woken, &pool.mutex);
        rmsp_store_int_sync(&self->asleep, 0);
        pthread_mutex_unlock(&pool.mutex);
    }
}

static void *run_worker(void *self_)
{
    worker *const self = self_;
    const int index = (int)(self - pool.workers);
    for (int last = 0;;) {
        wait_for_job(self, last);
        rmsp_store_int(&self->working, 1);
        /* First inside, then a look whether the job is still open: the caller closes it first, then looks inside. */
        rmsp_add_int_sync(&pool.inside, 1);
        const int open = rmsp_load_int_sync(&pool.open);
        if (open != 0) {
            last = open;
            if (index < rmsp_load_int(&pool.threads)) {
                rmsp_set_environment(&pool.environment);
                rmsp_clear_exceptions();
                run_chunks(index);
                if (rmsp_raised()) rmsp_or_int(&pool.raised, rmsp_raised());
            }
        }
        rmsp_add_int_sync(&pool.inside, -1);
        rmsp_store_int(&self->working, 0);
        if (rmsp_load_int_sync(&pool.caller_sleeps)) {
            pthread_mutex_lock(&pool.mutex);
            pthread_cond_signal(&pool.finished);
            pthread_mutex_unlock(&pool.mutex);
        }
    }
    return NULL;
}

/* ---- affinity ---- */

/* Sets pool.others; 0 where the caller's core is the only one, and workers would be in its way. */
static int find_other_cores(void)
{
    pool.others = pool.allowed;
    return rmsp_remove_this_core(&pool.others);
}

static void set_cores(int k) { rmsp_set_cores(pool.workers[k].thread, &pool.others); }

/* Moves late workers to the caller's core, which is free, since the caller goes to sleep. */
static void displace_late_workers(void)
{
    rmsp_cores here;
    if (!rmsp_this_core(&here)) return;
    for (int k = 1; k <= pool.started; k++) {
        if (!rmsp_load_int(&pool.workers[k].working)) continue;
        rmsp_store_int(&pool.workers[k].displaced, 1);
        rmsp_set_cores(pool.workers[k].thread, &here);
    }
}

/* A system call, so not at every job. */
static void read_affinity(int64_t time)
{
    rmsp_cores cores;
    if (pool.core_count > 0 && time - pool.read_at < AFFINITY_NS && pthread_equal(pool.read_by, pthread_self())) return;
    pool.core_count = rmsp_read_cores(&cores);
    pool.read_at = time;
    pool.read_by = pthread_self();
    if (memcmp(&cores, &pool.allowed, sizeof cores) == 0) return;
    pool.allowed = cores;
    if (find_other_cores()) {
        for (int k = 1; k <= pool.started; k++) set_cores(k);
    }
}

/* ---- starting and waking ---- */

static void forget_workers(void)
{
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.finished, NULL);
    pool.started = 0;
    rmsp_store_int(&pool.inside, 0);
    rmsp_store_int(&pool.caller_sleeps, 0);
    rmsp_store_int(&pool.open, 0);
    rmsp_unlock(&pool.busy);
}

void rmsp_threads_init(void)
{
#ifdef RMSP_HAVE_ATFORK
    pool.usable = pthread_atfork(NULL, NULL, forget_workers) == 0;
#else
    (void)forget_workers;
    pool.usable = 1;
#endif
}

/* Signals stay with the threads that expect them, except those that report a fault of the worker itself. */
#ifdef RMSP_HAVE_SIGMASK
static int create_thread(worker *self, const pthread_attr_t *attributes)
{
    static const int reports[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t k = 0; k < sizeof reports / sizeof *reports; k++) sigdelset(&blocked, reports[k]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    const int created = pthread_create(&self->thread, attributes, run_worker, self) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return created;
}
#else
static int create_thread(worker *self, const pthread_attr_t *attributes)
{
    return pthread_create(&self->thread, attributes, run_worker, self) == 0;
}
#endif

/* 0 where the system has no more threads. */
static int start_worker(void)
{
    const int k = pool.started + 1;
    worker *const self = &pool.workers[k];
    pthread_attr_t attributes;
    self->working = self->asleep = self->displaced = 0;
    pthread_cond_init(&self->woken, NULL);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    const int created = create_thread(self, &attributes);
    pthread_attr_destroy(&attributes);
    if (!created) return 0;
    set_cores(k);
    pool.started = k;
    return 1;
}

static int is_ready(int k)
{
    return !rmsp_load_int_sync(&pool.workers[k].asleep) && !rmsp_load_int(&pool.workers[k].displaced);
}

static void wake_worker(int k)
{
    set_cores(k);
    rmsp_store_int_sync(&pool.workers[k].displaced, 0);
    pthread_mutex_lock(&pool.mutex);
    pthread_cond_signal(&pool.workers[k].woken);
    pthread_mutex_unlock(&pool.mutex);
}

/* ---- a job ---- */

/* How many of so many workers can take part; *wake becomes how many of them to wake. */
static int prepare_workers(int workers, int *wake, int64_t time)
{
    const int all = *wake == RMSP_WAKE_ALL;
    int ready = 0;
    if (time < pool.alone_until && !all) return 0;
    read_affinity(time);
    if (workers > pool.core_count - 1 && !all) workers = pool.core_count - 1;
    if (all || *wake > workers || time - pool.ended < SPIN_NS) *wake = workers;
    for (int k = 1; k <= workers && k <= pool.started; k++) ready += is_ready(k);
    if (*wake > 0 && ready < workers && !find_other_cores() && !all) *wake = 0;
    while (pool.started < *wake && start_worker()) {
    }
    if (workers > pool.started) workers = pool.started;
    if (*wake > workers) *wake = workers;
    return *wake > 0 || ready > 0 ? workers : 0;
}

/* Waits until no worker is inside; `began` is when the job did. */
static void wait_for_workers(int64_t began)
{
    for (int k = 0; k < 256; k++) {
        if (rmsp_load_int_sync(&pool.inside) == 0) return;
        relax();
    }
    const int64_t finished = now();
    while (now() - finished < LATE_NS) {
        for (int k = 0; k < 64; k++) {
            if (rmsp_load_int_sync(&pool.inside) == 0) return;
            relax();
        }
    }
    displace_late_workers();
    pthread_mutex_lock(&pool.mutex);
    rmsp_store_int_sync(&pool.caller_sleeps, 1);
    while (rmsp_load_int_sync(&pool.inside) != 0) pthread_cond_wait(&pool.finished, &pool.mutex);
    rmsp_store_int_sync(&pool.caller_sleeps, 0);
    pthread_mutex_unlock(&pool.mutex);
    /* A wait no longer than the work has cost no more than two threads gain. */
    const int64_t end = now(), lost = end - finished;
    if (lost <= finished - began || pool.own_share_only) return;
    pool.alone_until = end + (lost < LONGEST_PAUSE_NS / PAUSE_FACTOR ? PAUSE_FACTOR * lost : LONGEST_PAUSE_NS);
}

/* A job of the caller and so many workers, of whom the first `wake` are woken if need be. */
static void run_job(size_t count, int workers, int wake, int own_share_only, int64_t began)
{
    const size_t threads = (size_t)workers + 1;
    pool.own_share_only = own_share_only;
    pool.raised = 0;
    rmsp_get_environment(&pool.environment);
    for (size_t k = 0; k < threads; k++) {
        rmsp_store_size(&pool.workers[k].next, count / threads * k + count % threads * k / threads);
        pool.workers[k].end = count / threads * (k + 1) + count % threads * (k + 1) / threads;
    }
    rmsp_store_int(&pool.threads, (int)threads);
    pool.number = pool.number < INT32_MAX ? pool.number + 1 : 1;
    rmsp_store_int_sync(&pool.open, pool.number);
    for (int k = 1; k <= wake; k++) {
        if (!is_ready(k)) wake_worker(k);
    }
    run_chunks(0);
    for (int k = 1; k <= workers && own_share_only; k++) {
        while (rmsp_load_size(&pool.workers[k].next) < pool.workers[k].end) sched_yield();
    }
    rmsp_store_int_sync(&pool.open, 0);
    wait_for_workers(began);
    rmsp_raise(rmsp_load_int(&pool.raised));
}

void rmsp_share(size_t count, int threads, int wake, rmsp_spans_fn *work, void *context)
{
    const int all = wake == RMSP_WAKE_ALL;
    int workers = (size_t)threads < count ? threads - 1 : (int)count - 1;
    if (workers < 1 || !pool.usable || !rmsp_try_lock(&pool.busy)) {
        work(context, 0, count);
        return;
    }
    const int64_t began = now();
    workers = prepare_workers(workers, &wake, began);
    if (workers > 0) {
        pool.work = work;
        pool.context = context;
        run_job(count, workers, wake, all, began);
    } else {
        work(context, 0, count);
    }
    pool.ended = now();
    rmsp_unlock(&pool.busy);
}

#endif
