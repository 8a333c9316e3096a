/* test_threads.c: the worker pool: every span is run once, whatever threads, callers, forks and signals do. */
#define _GNU_SOURCE
#include <string.h>

#include "check.h"
#include "rmsp.h"
#include "rmsp_atomic.h"
#include "rmsp_fenv.h"
#include "rmsp_threads.h"

#ifndef RMSP_HAVE_PTHREADS

int main(void)
{
    rmsp_threads_init();
    CHECK(!rmsp_has_threads());
    CHECK(rmsp_thread_count(0) == 1);
    return 0;
}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#ifdef RMSP_HAVE_ATFORK
#include <sys/mman.h>
#include <sys/wait.h>
#endif

/* ThreadSanitizer otherwise refuses threads in a forked child. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "die_after_fork=0"; }

/* The sanitizers' own locks are not released in the child of a process with several threads. */
#if defined RMSP_HAVE_ATFORK && !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__
#define FORK_BESIDE_THREADS
#endif
#ifdef __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#undef FORK_BESIDE_THREADS
#endif
#endif

#define MOST_SPANS 5000

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void busy_us(int us)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    do clock_gettime(CLOCK_MONOTONIC, &b);
    while ((b.tv_sec - a.tv_sec) * 1000000 + (b.tv_nsec - a.tv_nsec) / 1000 < us);
}

/* ---- every span once ---- */

typedef struct counts {
    int run[MOST_SPANS]; /* plain: that each is written by one thread is for ThreadSanitizer to see */
    size_t count;
    int us; /* of work a span */
} counts;

static void count_spans(void *context, size_t begin, size_t end)
{
    counts *const c = context;
    CHECK(begin < end || c->count == 0);
    CHECK(end <= c->count);
    for (size_t i = begin; i < end; i++) {
        c->run[i]++;
        if (c->us > 0) busy_us(c->us);
    }
}

static void check_job(size_t count, int threads, int wake, int us)
{
    counts c = {.count = count, .us = us};
    rmsp_share(count, threads, wake, count_spans, &c);
    for (size_t i = 0; i < count; i++) CHECK(c.run[i] == 1);
}

static void test_every_span_is_run_once(void)
{
    static const size_t spans[] = {0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 1000, MOST_SPANS};
    static const int threads[] = {1, 2, 3, 4, 7, 16};
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < sizeof spans / sizeof *spans; i++) {
            for (size_t j = 0; j < sizeof threads / sizeof *threads; j++) {
                check_job(spans[i], threads[j], RMSP_WAKE_ALL, 0);
                for (int wake = 0; wake < 4; wake++) check_job(spans[i], threads[j], wake, 0);
            }
        }
    }
    for (int i = 0; i < 2000; i++) check_job(100, 2, 1, 0);
}

/* ---- who runs ---- */

typedef struct runners {
    int count;
    pthread_t seen[64];
    pthread_mutex_t mutex;
    int us;
} runners;

static void note_thread(void *context, size_t begin, size_t end)
{
    runners *const r = context;
    int k = 0;
    busy_us(r->us * (int)(end - begin));
    pthread_mutex_lock(&r->mutex);
    while (k < r->count && !pthread_equal(r->seen[k], pthread_self())) k++;
    CHECK(k < 64);
    r->seen[k] = pthread_self();
    if (k == r->count) r->count++;
    pthread_mutex_unlock(&r->mutex);
}

/* How many threads run a job. */
static int count_threads(size_t spans, int threads, int wake)
{
    runners r = {.mutex = PTHREAD_MUTEX_INITIALIZER, .us = 5};
    rmsp_share(spans, threads, wake, note_thread, &r);
    return r.count;
}

static void test_nothing_runs_before_init(void)
{
    CHECK(rmsp_has_threads());
    CHECK(count_threads(1000, 4, RMSP_WAKE_ALL) == 1);
}

static void test_one_thread_has_no_workers(void)
{
    for (int i = 0; i < 20; i++) {
        CHECK(count_threads(100, 1, 1) == 1);
        CHECK(count_threads(100, 1, RMSP_WAKE_ALL) == 1);
    }
}

static void test_all_take_part_when_asked(void)
{
    for (int threads = 2; threads <= 9; threads++) {
        CHECK(count_threads(100, threads, RMSP_WAKE_ALL) == threads);
        CHECK(count_threads((size_t)threads - 1, threads, RMSP_WAKE_ALL) == threads - 1);
    }
}

static int core_count(void)
{
#ifdef _SC_NPROCESSORS_ONLN
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
#else
    return RMSP_MAX_THREADS;
#endif
}

static void test_workers_come_when_woken(void)
{
    const int64_t until = now_ms() + 20000;
    while (core_count() > 1 && count_threads(400, 2, 1) != 2) {
        CHECK(now_ms() < until);
        usleep(1000);
    }
}

static void test_no_more_threads_than_cores(void)
{
    const int cores = core_count();
    CHECK(count_threads(100, 16, RMSP_WAKE_ALL) == 16);
    for (int i = 0; i < 30; i++) CHECK(count_threads(400, 60, 60) <= cores);
#ifdef RMSP_HAVE_AFFINITY
    cpu_set_t all, one;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    CPU_ZERO(&one);
    CPU_SET((size_t)sched_getcpu(), &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    usleep(12000);
    for (int i = 0; i < 30; i++) CHECK(count_threads(400, 60, 60) == 1);
    CHECK(count_threads(100, 5, RMSP_WAKE_ALL) == 5);
    CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
    test_workers_come_when_woken();
#endif
}

#ifdef RMSP_HAVE_AFFINITY
/* Workers follow a mask that moves, also those that are awake. */
static void note_core(void *context, size_t begin, size_t end)
{
    int *const seen = context;
    busy_us(5 * (int)(end - begin));
    rmsp_or_int(seen, 1 << (sched_getcpu() & 15));
}

static void test_workers_stay_within_the_mask(void)
{
    cpu_set_t all, one;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    for (int round = 0; round < 5; round++) {
        int seen = 0;
        CPU_ZERO(&one);
        CPU_SET((size_t)sched_getcpu(), &one);
        CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
        usleep(12000);
        for (int i = 0; i < 20; i++) rmsp_share(200, 4, 4, note_core, &seen);
        CHECK(seen == 1 << (sched_getcpu() & 15));
        CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
        usleep(12000);
        for (int i = 0; i < 20; i++) check_job(200, 4, 4, 1);
    }
}
#endif

/* ---- a worker that is late ---- */

static pthread_t main_thread;

static void dawdle(void *context, size_t begin, size_t end)
{
    counts *const c = context;
    for (size_t i = begin; i < end; i++) c->run[i]++;
    if (!pthread_equal(main_thread, pthread_self())) busy_us(2000);
}

static void test_late_workers_are_waited_for(void)
{
    for (int i = 0; i < 100; i++) {
        counts c = {.count = 16};
        rmsp_share(16, 3, i % 2 ? 2 : RMSP_WAKE_ALL, dawdle, &c);
        for (size_t k = 0; k < 16; k++) CHECK(c.run[k] == 1);
    }
    usleep(1000);
    check_job(1000, 3, RMSP_WAKE_ALL, 0);
    usleep(1100000); /* the longest pause after a late worker */
    test_workers_come_when_woken();
}

/* ---- the floating-point environment ---- */

#ifdef FE_UPWARD
static void divide(void *context, size_t begin, size_t end)
{
    volatile double *const quotient = context;
    for (size_t i = begin; i < end; i++) {
        volatile double one = 1, three = 3, zero = 0;
        quotient[i] = i == 900 ? one / zero : one / three;
    }
}

static void test_floating_point_environment(void)
{
    static double quotient[1000];
    volatile double one = 1, three = 3;
    CHECK(fesetround(FE_UPWARD) == 0);
    const double upward = one / three;
    rmsp_share(1000, 4, RMSP_WAKE_ALL, divide, quotient);
    CHECK(fesetround(FE_TONEAREST) == 0);
    CHECK(upward != one / three);
    for (int i = 0; i < 1000; i++) CHECK(quotient[i] == upward || i == 900);
    feclearexcept(FE_ALL_EXCEPT);
    rmsp_share(1000, 4, RMSP_WAKE_ALL, divide, quotient);
    CHECK(fetestexcept(RMSP_WATCHED) == FE_DIVBYZERO);
    CHECK(quotient[0] == one / three);
    feclearexcept(FE_ALL_EXCEPT);
    rmsp_share(900, 4, RMSP_WAKE_ALL, divide, quotient);
    CHECK(fetestexcept(RMSP_WATCHED) == 0); /* what an earlier job raised does not come back */
}
#endif

/* ---- several callers, and what changes meanwhile ---- */

#define LEAF_SIZE ((size_t)5 * RMSP_SPAN + 3)
static int stop;

typedef struct problem {
    float param[LEAF_SIZE], grad[LEAF_SIZE], square_avg[LEAF_SIZE];
} problem;

static void run_steps(problem *p, int steps)
{
    rmsp_group group = {.momentum = RMSP_MOMENTUM_NONE};
    group.coef = (rmsp_coef){.grad_scale = 1,
                             .clip_value = (double)INFINITY,
                             .rho = 0.9,
                             .one_minus_rho = 0.1,
                             .bias_correction = 1,
                             .eps_outside = 1e-8,
                             .lr_in = 1e-3,
                             .shrink = 1,
                             .lr_out = 1};
    rmsp_group_refresh(&group);
    rmsp_leaf leaf = {.array = {p->param, p->grad, p->square_avg}, .n = LEAF_SIZE, .dtype = RMSP_F32};
    const rmsp_plan plan = {.leaves = &leaf, .leaf_count = 1, .groups = &group, .group_count = 1};
    for (size_t i = 0; i < LEAF_SIZE; i++) {
        p->param[i] = 1;
        p->grad[i] = (float)i - 1000;
        p->square_avg[i] = 0;
    }
    const rmsp_work work = rmsp_plan_work(&plan);
    for (int i = 0; i < steps; i++) rmsp_run(&plan, RMSP_STEP, 1, work);
}

static problem expected;

static void *call(void *context)
{
    problem *const p = context;
    for (int i = 0; i < 20; i++) {
        run_steps(p, 10);
        CHECK(memcmp(p->param, expected.param, sizeof p->param) == 0);
        check_job(300, 4, i % 4 ? 3 : RMSP_WAKE_ALL, 0);
    }
    return NULL;
}

static void *change_everything(void *context)
{
    for (unsigned i = 0; !rmsp_load_int(&stop); i++) {
        rmsp_set_thread_limit((int)(i % 5));
        rmsp_set_grain(i % 3 * 1024);
        CHECK(rmsp_isa_use(rmsp_isa_name((int)i % rmsp_isa_count())) == 0);
        sched_yield();
    }
    return context;
}

#ifdef RMSP_HAVE_ATFORK
/* Runs work in a forked child; its exit code, or -1 and the signal that ended it. */
static int in_child(void (*work)(void))
{
    int status;
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(60);
        work();
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void run_some(void)
{
    check_job(300, 3, RMSP_WAKE_ALL, 0);
    check_job(300, 2, 1, 1);
    check_job(300, 3, RMSP_WAKE_ALL, 0);
    CHECK(count_threads(300, 4, RMSP_WAKE_ALL) == 4);
}

/* Its own process, so that the pool has had no worker yet. */
static void fork_before_the_first_worker(void)
{
    CHECK(in_child(run_some) == 0);
    run_some();
}

static void test_forks(void)
{
    CHECK(in_child(fork_before_the_first_worker) == 0);
    for (int i = 0; i < 5; i++) CHECK(in_child(run_some) == 0);
    run_some();
}
#endif

static void test_many_callers(void)
{
    static problem problems[3];
    pthread_t callers[3], changer;
    run_steps(&expected, 10);
    CHECK(pthread_create(&changer, NULL, change_everything, NULL) == 0);
    for (int k = 0; k < 3; k++) CHECK(pthread_create(&callers[k], NULL, call, &problems[k]) == 0);
#ifdef FORK_BESIDE_THREADS
    for (int i = 0; i < 20; i++) CHECK(in_child(run_some) == 0); /* wherever the others are */
#endif
    for (int k = 0; k < 3; k++) CHECK(pthread_join(callers[k], NULL) == 0);
    rmsp_store_int(&stop, 1);
    CHECK(pthread_join(changer, NULL) == 0);
}

#ifdef FORK_BESIDE_THREADS
static void *fork_and_run(void *context)
{
    for (int i = 0; i < 5; i++) CHECK(in_child(run_some) == 0);
    return context;
}

static void fork_while_workers_start(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, fork_and_run, NULL) == 0);
    for (int threads = 2; threads < 30; threads++) check_job(300, threads, RMSP_WAKE_ALL, 0);
    CHECK(pthread_join(thread, NULL) == 0);
}
#endif

/* ---- signals ---- */

#if defined RMSP_HAVE_ATFORK && defined RMSP_HAVE_SIGMASK

static void *no_access;

static void fault_on_worker(void *context, size_t begin, size_t end)
{
    (void)context, (void)begin, (void)end;
    if (!pthread_equal(main_thread, pthread_self())) *(volatile char *)no_access = 1;
}

static void report(int signal) { _exit(signal == SIGSEGV || signal == SIGBUS ? 42 : 43); }

static void fault(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = report;
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    no_access = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(no_access != MAP_FAILED);
    rmsp_share(100, 2, RMSP_WAKE_ALL, fault_on_worker, NULL);
}

static void collect_mask(void *context, size_t begin, size_t end)
{
    sigset_t *const mask = context;
    (void)begin, (void)end;
    if (!pthread_equal(main_thread, pthread_self())) pthread_sigmask(SIG_SETMASK, NULL, mask);
}

static void test_signals(void)
{
    static const int reports[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
    static const int others[] = {SIGINT, SIGTERM, SIGALRM, SIGCHLD, SIGUSR1, SIGPROF};
    sigset_t mask, before, after;
    sigemptyset(&mask);
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    rmsp_share(100, 2, RMSP_WAKE_ALL, collect_mask, &mask);
    for (size_t k = 0; k < sizeof reports / sizeof *reports; k++) CHECK(!sigismember(&mask, reports[k]));
    for (size_t k = 0; k < sizeof others / sizeof *others; k++) CHECK(sigismember(&mask, others[k]));
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    for (int signal = 1; signal < 32; signal++) CHECK(sigismember(&before, signal) == sigismember(&after, signal));
    CHECK(in_child(fault) == 42);
}
#endif

int main(void)
{
    main_thread = pthread_self();
    test_nothing_runs_before_init();
    rmsp_isa_init();
    rmsp_threads_init();
    test_one_thread_has_no_workers();
#ifdef RMSP_HAVE_ATFORK
    test_forks();
#endif
    test_every_span_is_run_once();
    test_all_take_part_when_asked();
    test_workers_come_when_woken();
    test_no_more_threads_than_cores();
#ifdef RMSP_HAVE_AFFINITY
    test_workers_stay_within_the_mask();
#endif
    test_late_workers_are_waited_for();
#ifdef FE_UPWARD
    test_floating_point_environment();
#endif
    test_many_callers();
#ifdef FORK_BESIDE_THREADS
    CHECK(in_child(fork_while_workers_start) == 0);
#endif
#if defined RMSP_HAVE_ATFORK && defined RMSP_HAVE_SIGMASK
    test_signals();
#endif
    return 0;
}

#endif
