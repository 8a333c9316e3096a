/* test_hash.c: one hash of a fixed set of steps for each type: the same on every machine, compiler and libc.
 *
 * What plans.h draws at random decides what the steps are: a change there changes the hashes. test_step.c says that the
 * bits are right.
 */
#include <inttypes.h>

#include "plans.h"

/* FNV-1a, of the bits of a real as a double; all NaN are one. */
static uint64_t hash_real(uint64_t hash, double x)
{
    uint64_t bits = 0x7ff8000000000000u;
    if (!isnan(x)) memcpy(&bits, &x, sizeof bits);
    for (int k = 0; k < 64; k += 8) hash = (hash ^ (bits >> k & 0xff)) * 0x100000001b3u;
    return hash;
}

static uint64_t hash_array(uint64_t hash, const rmsp_array *a)
{
    for (size_t e = 0; e < reals_in(a); e++) hash = hash_real(hash, get_real(a, e));
    return hash;
}

static uint64_t hash_sample(uint64_t hash, const sample *s)
{
    for (size_t i = 0; i < s->plan.leaf_count; i++) {
        hash = hash_array(hash, &s->params[i]->a);
        for (int k = RMSP_SQUARE_AVG; k < RMSP_ARRAY_COUNT; k++) {
            const rmsp_array state = state_of(s, i, k);
            if (has_state(s, i, k)) hash = hash_array(hash, &state);
        }
    }
    return hash;
}

/* Every structure of the step, with numbers that are neutral and others, over dense, strided and sparse leaves. */
static uint64_t hash_of(int type)
{
    static const ptrdiff_t shapes[][2] = {{1, 1}, {3, 37}, {61, 89}};
    uint64_t hash = 0xcbf29ce484222325u;
    rmsp_found found;
    random_state = (uint64_t)type + 1;
    for (int variant = 0; variant < 24; variant++) {
        sample *const s = new_sample(3, 1);
        random_group(&s->plan.groups[0]);
        s->plan.groups[0].momentum = (rmsp_momentum)(variant % 3);
        s->plan.groups[0].lr_outside &= variant % 3 != 0;
        s->plan.groups[0].centered = variant / 3 % 2;
        s->plan.groups[0].l2 = variant / 6 % 2;
        s->plan.groups[0].clip_norm = variant / 12 ? 0.5 : (double)INFINITY;
        rmsp_group_set_lr(&s->plan.groups[0], 0.125);
        s->plan.rules.clips = s->plan.rules.averages = variant / 12;
        for (size_t i = 0; i < 3; i++) {
            array *const param = new_array(type, 2, shapes[i], i == 1 ? LIE_STRIDED : LIE_C);
            fill(&param->a, 0);
            set_leaf(s, i, param, 0, i == 1);
        }
        finish_sample(s);
        for (int step = 0; step < 3; step++) {
            for (size_t i = 0; i < 3; i++) set_new_grad(s, i, step == 1 ? LIE_F : LIE_C, step == 2 ? 500 : 0);
            if (step == 1) set_row_grad(s, 2, 0);
            must_bind(s);
            CHECK(rmsp_step(&s->plan, &found) == RMSP_STEPPED);
        }
        hash = hash_sample(hash, s);
        free_sample(s);
    }
    return hash;
}

int main(void)
{
    static const struct {
        int type;
        uint64_t hash;
    } expected[] = {
        {RMSP_F32, 0xca23d40910e59eb8u}, {RMSP_F64, 0x1dad42ad5958c88cu}, {RMSP_F32 | RMSP_PAIRS, 0x4d5851c2a33e1f1au}};
    rmsp_isa_init();
    rmsp_threads_init();
    rmsp_set_grain(0);
    for (int isa = 0; isa < rmsp_isa_count(); isa++) {
        CHECK(rmsp_isa_use(rmsp_isa_name(isa)) == 0);
        for (size_t k = 0; k < sizeof expected / sizeof *expected; k++) {
            rmsp_set_thread_limit(1 + (int)k % 2 + isa);
            const uint64_t hash = hash_of(expected[k].type);
            if (hash != expected[k].hash) fprintf(stderr, "%s: %" PRIx64 "\n", rmsp_isa_name(isa), hash);
            CHECK(hash == expected[k].hash);
        }
    }
    return 0;
}
