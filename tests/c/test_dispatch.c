/* test_dispatch.c: the choice of the instruction set, also while other threads read it. */
#include <string.h>

#ifdef RMSP_HAVE_PTHREADS
#include <pthread.h>
#endif

#include "check.h"
#include "rmsp_atomic.h"
#include "rmsp_isa.h"

static void test_only_the_baseline_before_init(void)
{
    CHECK(rmsp_isa_count() == 1);
    CHECK(strcmp(rmsp_isa_name(0), "baseline") == 0);
    CHECK(strcmp(rmsp_isa_active_table()->name, "baseline") == 0);
}

static void test_init_takes_the_best(void)
{
    rmsp_isa_init();
    CHECK(rmsp_isa_count() >= 1);
    CHECK(strcmp(rmsp_isa_active(), rmsp_isa_name(0)) == 0);
    CHECK(strcmp(rmsp_isa_name(rmsp_isa_count() - 1), "baseline") == 0);
}

static void test_names_are_known_and_distinct(void)
{
    for (int i = 0; i < rmsp_isa_count(); i++) {
        const char *const name = rmsp_isa_name(i);
        CHECK(strcmp(name, "baseline") == 0 || strcmp(name, "avx2") == 0 || strcmp(name, "avx512") == 0);
        for (int j = 0; j < i; j++) CHECK(strcmp(name, rmsp_isa_name(j)) != 0);
    }
}

static void test_use_changes_the_table(void)
{
    for (int i = 0; i < rmsp_isa_count(); i++) {
        CHECK(rmsp_isa_use(rmsp_isa_name(i)) == 0);
        CHECK(strcmp(rmsp_isa_active(), rmsp_isa_name(i)) == 0);
        CHECK(rmsp_isa_active_table()->name == rmsp_isa_name(i));
    }
}

static void test_an_unknown_name_changes_nothing(void)
{
    static const char *const unknown[] = {"", "AVX2", "avx", "baseline ", "sse9"};
    const rmsp_isa *const before = rmsp_isa_active_table();
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) CHECK(rmsp_isa_use(unknown[i]) == -1);
    CHECK(rmsp_isa_active_table() == before);
}

static void test_every_kernel_is_there(void)
{
    for (int i = 0; i < rmsp_isa_count(); i++) {
        CHECK(rmsp_isa_use(rmsp_isa_name(i)) == 0);
        const rmsp_isa *const isa = rmsp_isa_active_table();
        for (int dtype = 0; dtype < RMSP_DTYPE_COUNT; dtype++) {
            for (int variant = 0; variant < RMSP_VARIANT_COUNT; variant++) CHECK(isa->step[dtype][variant] != NULL);
            CHECK(isa->sumsq[dtype] != NULL);
            CHECK(isa->lerp[dtype] != NULL);
        }
        CHECK(isa->widen != NULL && isa->narrow != NULL && isa->join != NULL && isa->split != NULL);
        CHECK(isa->random != NULL);
        for (int storage = 0; storage < RMSP_BF16_STORAGE_COUNT; storage++) { /* all variants of a set, or none */
            rmsp_bf16_fn *const *const kernels = isa->bf16[storage];
            for (int k = 1; k < RMSP_BF16_KERNEL_COUNT; k++) CHECK((kernels[k] != NULL) == (kernels[0] != NULL));
        }
        CHECK(isa->bf16[0][0] == NULL); /* all float32: the ordinary kernels */
    }
}

#ifdef RMSP_HAVE_PTHREADS
static int readers_left = 3;

static void *read_tables(void *context)
{
    for (int i = 0; i < 100000; i++) {
        const rmsp_isa *const isa = rmsp_isa_active_table();
        const float x[3] = {1, 2, 3};
        CHECK(isa->sumsq[RMSP_F32](3, x, 1) == 14);
    }
    rmsp_add_int_sync(&readers_left, -1);
    return context;
}

static void test_switching_while_others_read(void)
{
    pthread_t readers[3];
    for (int k = 0; k < 3; k++) CHECK(pthread_create(&readers[k], NULL, read_tables, NULL) == 0);
    for (int i = 0; rmsp_load_int_sync(&readers_left) > 0; i = (i + 1) % rmsp_isa_count()) {
        CHECK(rmsp_isa_use(rmsp_isa_name(i)) == 0);
    }
    for (int k = 0; k < 3; k++) CHECK(pthread_join(readers[k], NULL) == 0);
}
#endif

int main(void)
{
    test_only_the_baseline_before_init();
    test_init_takes_the_best();
    test_names_are_known_and_distinct();
    test_use_changes_the_table();
    test_an_unknown_name_changes_nothing();
    test_every_kernel_is_there();
#ifdef RMSP_HAVE_PTHREADS
    test_switching_while_others_read();
#endif
    return 0;
}
