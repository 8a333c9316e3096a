/* test_dtype.c: the table of storage types, and what is read through it. */
#include "plans.h"

static void test_table(void)
{
    static const char *const names[] = {"f32", "f64", "bf16", "low16"};
    static const char codes[] = "fd\0H";
    static const size_t sizes[] = {sizeof(float), sizeof(double), 2, 2};
    CHECK(RMSP_TYPE_COUNT == sizeof sizes / sizeof *sizes && RMSP_DTYPE_COUNT == 2);
    for (int dtype = 0; dtype < RMSP_TYPE_COUNT; dtype++) {
        CHECK(strcmp(rmsp_dtypes[dtype].name, names[dtype]) == 0);
        CHECK(rmsp_dtypes[dtype].code == codes[dtype]);
        CHECK(rmsp_dtypes[dtype].size == sizes[dtype]);
        CHECK(rmsp_dtypes[dtype].size <= RMSP_MAX_SIZE);
        CHECK((dtype & RMSP_PAIRS) == 0);
    }
    CHECK(RMSP_F32 == 0 && RMSP_F64 == 1 && (int)RMSP_BF16 == (int)RMSP_DTYPE_COUNT);
    CHECK(rmsp_arithmetic(RMSP_BF16) == RMSP_F32 && rmsp_arithmetic(RMSP_F64) == RMSP_F64);
    CHECK(rmsp_arithmetic(RMSP_F32 | RMSP_PAIRS) == (RMSP_F32 | RMSP_PAIRS));
}

static void test_coefficients(void)
{
    rmsp_group group = {.coef = {.lr_in = 0.1, .rho = 0.9, .lr_out = 1e-60, .clip_value = INFINITY, .shrink = 1e60}};
    rmsp_group_refresh(&group);
    CHECK(rmsp_coef_of(&group, RMSP_F64) == &group.coef);
    CHECK(rmsp_coef_of(&group, RMSP_F32) == &group.coef_f32);
    const rmsp_coef_f32 *const rounded = rmsp_coef_of(&group, RMSP_F32);
    CHECK(rounded->lr_in == 0.1f && rounded->rho == 0.9f);
    CHECK(rounded->lr_out == 0 && isinf(rounded->shrink) && isinf(rounded->clip_value));
    CHECK(sizeof(rmsp_coef) == 12 * sizeof(double) && sizeof(rmsp_coef_f32) == 12 * sizeof(float));
}

#define NAME(name, momentum, centered, l2, neutral, each) #name,
#define CENTERED(name, momentum, centered, l2, neutral, each) centered,
#define L2(name, momentum, centered, l2, neutral, each) l2,
#define MOMENTUM(name, momentum, centered, l2, neutral, each) momentum,
#define NEUTRAL(name, momentum, centered, l2, neutral, each) neutral,
#define EACH(name, momentum, centered, l2, neutral, each) each,

/* Variants are in the order of rmsp_variant_index. */
static void test_variants(void)
{
    static const char *const names[] = {RMSP_VARIANTS(NAME)};
    static const int centered[] = {RMSP_VARIANTS(CENTERED)}, l2[] = {RMSP_VARIANTS(L2)};
    static const int neutral[] = {RMSP_VARIANTS(NEUTRAL)};
    static const rmsp_momentum momentum[] = {RMSP_VARIANTS(MOMENTUM)};
    static const rmsp_each each[] = {RMSP_VARIANTS(EACH)};
    CHECK(sizeof names / sizeof *names == RMSP_VARIANT_COUNT);
    for (int i = 0; i < RMSP_VARIANT_COUNT; i++) {
        rmsp_group group = {.momentum = momentum[i], .centered = centered[i], .l2 = l2[i]};
        group.coef =
            (rmsp_coef){.grad_scale = 1, .clip_value = INFINITY, .bias_correction = 1, .shrink = 1, .lr_out = 1};
        group.lr_outside = each[i] == RMSP_LR_OUT_EACH;
        if (!neutral[i]) group.coef.shrink = 0.5;
        rmsp_group_refresh(&group);
        if (each[i] == RMSP_SAME) CHECK(group.variant == i);
        if (each[i] == RMSP_LR_IN_EACH || each[i] == RMSP_LR_OUT_EACH) CHECK(rmsp_lr_variant(&group) == i);
        CHECK(rmsp_general_variant(group.variant) == group.variant % 12);
        CHECK((strstr(names[i], "_neutral") != NULL) == (neutral[i] && each[i] != RMSP_ALL_EACH));
        CHECK((strstr(names[i], "_each") != NULL) == (each[i] != RMSP_SAME));
    }
}

/* A rate of each element with decoupled decay needs the factor on the parameter, whatever the first rate is. */
static void test_lr_variants_with_decay(void)
{
    rmsp_group group = {.decay = 0.5};
    group.coef = (rmsp_coef){.grad_scale = 1, .clip_value = INFINITY, .bias_correction = 1, .shrink = 1, .lr_out = 1};
    rmsp_group_refresh(&group);
    CHECK(group.variant == RMSP_VARIANT_plain_neutral);
    CHECK(rmsp_lr_variant(&group) == RMSP_VARIANT_plain_lr_each);
    group.decay = 0;
    CHECK(rmsp_lr_variant(&group) == RMSP_VARIANT_plain_lr_each_neutral);
}

/* Each coefficient that the neutral variants leave out makes a variant general. */
static void test_neutral(void)
{
    const rmsp_coef neutral = {
        .grad_scale = 1, .clip_value = INFINITY, .bias_correction = 1, .shrink = 1, .lr_out = 1, .eps_inside = 1};
    CHECK(rmsp_variant_index(RMSP_MOMENTUM_NONE, 0, 0, &neutral) == 12);
    for (int k = 0; k < 5; k++) {
        rmsp_coef coef = neutral;
        *(k == 0   ? &coef.grad_scale
          : k == 1 ? &coef.clip_value
          : k == 2 ? &coef.bias_correction
          : k == 3 ? &coef.shrink
                   : &coef.lr_out) = 0.5;
        CHECK(rmsp_variant_index(RMSP_MOMENTUM_NONE, 0, 0, &coef) == 0);
        CHECK(rmsp_variant_index(RMSP_MOMENTUM_CLASSIC, 0, 0, &coef) == (k == 4 ? 16 : 4)); /* lr_out is always read */
    }
}

static void test_reasons(void)
{
    CHECK(strcmp(rmsp_reason_name(RMSP_OK), "ok") == 0);
    CHECK(strcmp(rmsp_reason_name(RMSP_ROW_ORDER), "row_order") == 0);
    CHECK(strcmp(rmsp_reason_name(RMSP_NEEDS_AXES), "needs_axes") == 0);
    CHECK(RMSP_NEEDS_AXES == RMSP_REASON_COUNT - 1);
}

int main(void)
{
    test_table();
    test_coefficients();
    test_variants();
    test_lr_variants_with_decay();
    test_neutral();
    test_reasons();
    return 0;
}
