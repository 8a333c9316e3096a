/* fuzz_step.c: any rules, arrays and gradients: the transaction as the twin does it. */
#include "fuzz.h"
#include "transactions.h"

static void fuzz_once(void)
{
    int outcomes[4] = {0, 0, 0, 0};
    random_transactions(1 + below(200), outcomes);
}
