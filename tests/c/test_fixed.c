/* test_fixed.c: a fixed set of steps has the hash that the reference in Python has, on any machine.
 *
 * The same numbers, variants and storages as _check.py; tests/test_check.py makes the hashes anew.
 */
#include "plans.h"

#define SIZE 4133 /* two spans, and a rest */
#define STEPS 3

static uint64_t mixed(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* What _check.numbers describes. */
static double number(uint64_t seed, uint64_t i)
{
    const uint64_t z = mixed(seed + (i + 1) * 0x9e3779b97f4a7c15u);
    const double size = ldexp(1 + (double)(z >> 41) * 0x1p-23, (int)(z % 15) - 12);
    return z & (uint64_t)1 << 32 ? -size : size;
}

static array *numbers(uint64_t seed, int type)
{
    const ptrdiff_t n = SIZE;
    array *const made = new_array(type, 1, &n, LIE_C);
    for (size_t i = 0; i < SIZE; i++) set_real(&made->a, i, number(seed, i));
    return made;
}

/* A sum of the bits of all numbers, mixed with the place that each has in their order. */
typedef struct hash {
    uint64_t sum, place;
} hash;

static void add(hash *h, const rmsp_array *a)
{
    for (size_t i = 0; i < SIZE; i++) {
        uint64_t bits = 0;
        uint32_t narrow;
        uint16_t half;
        switch (size_of_real(a->type)) {
        case sizeof half:
            memcpy(&half, place_of(a, i), sizeof half);
            bits = half;
            break;
        case sizeof narrow:
            memcpy(&narrow, place_of(a, i), sizeof narrow);
            bits = narrow;
            break;
        default:
            memcpy(&bits, place_of(a, i), sizeof bits);
        }
        h->sum += mixed(bits + h->place++ * 0x9e3779b97f4a7c15u);
    }
}

typedef struct storage {
    const char *name;
    int param, grad, avg16, is_split;
    uint64_t seed, expected;
} storage;

static void run_variant(const storage *st, rmsp_momentum momentum, int centered, int l2, hash *h)
{
    sample *const s = new_sample(1, 1);
    rmsp_group *const group = &s->plan.groups[0];
    rmsp_found found;
    group->momentum = momentum;
    group->centered = centered;
    group->l2 = l2;
    group->lr_outside = momentum != RMSP_MOMENTUM_NONE;
    group->coef.momentum = momentum == RMSP_MOMENTUM_NONE ? 0 : 0.9;
    group->coef.weight_decay = l2 ? 0.03 : 0;
    rmsp_group_set_lr(group, 0.03);
    rmsp_group_refresh(group);
    s->plan.rules.seed = st->seed;
    s->is_split = st->is_split;
    s->plan.extras[0].avg16 = st->avg16;
    set_leaf(s, 0, numbers(0, st->param), 0, 0);
    finish_sample(s);
    for (uint64_t step = 1; step <= STEPS; step++) {
        set_grad(s, 0, numbers(step, st->grad));
        must_bind(s);
        CHECK(rmsp_step(&s->plan, &found) == RMSP_STEPPED);
        add(h, &s->params[0]->a);
        for (int k = RMSP_SQUARE_AVG; k < RMSP_ARRAY_COUNT; k++) {
            const rmsp_array buffer = state_of(s, 0, k);
            if (has_state(s, 0, k)) add(h, &buffer);
        }
    }
    free_sample(s);
}

#define SEED (((uint64_t)1 << 40) + 3)

static const storage storages[] = {
    {"f32", RMSP_F32, RMSP_F32, 0, 0, 0, 0x813e7d019b051547},
    {"f64", RMSP_F64, RMSP_F64, 0, 0, 0, 0x7a2d59766f7ba6d1},
    {"f32 avg16", RMSP_F32, RMSP_F32, 1, 0, SEED, 0x39a91a23408f6e77},
    {"f32 grad16", RMSP_F32, RMSP_BF16, 0, 0, 0, 0xb55e3dfefa1aca7b},
    {"f32 grad16 avg16", RMSP_F32, RMSP_BF16, 1, 0, SEED, 0x52f6fc334955c211},
    {"split", RMSP_BF16, RMSP_BF16, 0, 1, 0, 0x5be5df4e25532b67},
    {"split avg16", RMSP_BF16, RMSP_BF16, 1, 1, SEED, 0x0728786b34f7ecd9},
    {"split grad32", RMSP_BF16, RMSP_F32, 0, 1, 0, 0xa8d25bea6d3ab90b},
    {"rounded", RMSP_BF16, RMSP_BF16, 0, 0, SEED, 0x84243a500d738bba},
    {"rounded avg16", RMSP_BF16, RMSP_BF16, 1, 0, SEED, 0x7f21a0834d402f9d},
    {"rounded grad32", RMSP_BF16, RMSP_F32, 0, 0, SEED, 0x460eab1273571042},
};

int main(void)
{
    int wrong = 0;
    rmsp_isa_init();
    for (int isa = 0; isa < rmsp_isa_count(); isa++) {
        CHECK(rmsp_isa_use(rmsp_isa_name(isa)) == 0);
        for (size_t k = 0; k < sizeof storages / sizeof *storages; k++) {
            hash h = {0, 0};
            for (int variant = 0; variant < 12; variant++) {
                run_variant(&storages[k], (rmsp_momentum)(variant / 4), variant / 2 % 2, variant % 2, &h);
            }
            if (h.sum != storages[k].expected) {
                fprintf(stderr, "%s, %s: 0x%016llx\n", storages[k].name, rmsp_isa_name(isa), (unsigned long long)h.sum);
                wrong++;
            }
        }
    }
    CHECK(wrong == 0);
    return 0;
}
