/* fuzz.h: an input of bytes as the choices of plans.h; the main program where there is no libFuzzer.
 *
 * With clang each fuzz_*.c is a libFuzzer program (make fuzz). Elsewhere it is a test like the others, whose inputs are
 * random: as many as its argument says.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "plans.h"

/* Takes the choices of one input. */
static void fuzz_once(void);

/* Makes choices those of an input; what is beyond its end is random, but the same for the same input. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int is_initialised;
    if (!is_initialised) rmsp_isa_init();
    is_initialised = 1;
    random_state = size;
    choices = data;
    choices_end = data + size;
    fuzz_once();
    return 0;
}

#ifndef RMSP_LIBFUZZER
int main(int argc, char **argv)
{
    const long inputs = argc > 1 ? strtol(argv[1], NULL, 10) : 3000;
    CHECK(inputs > 0);
    for (uint64_t input = 0; input < (uint64_t)inputs; input++) {
        unsigned char bytes[64];
        random_state = input;
        choices = choices_end;
        for (size_t k = 0; k < sizeof bytes; k++) bytes[k] = (unsigned char)random_bits();
        LLVMFuzzerTestOneInput(bytes, sizeof bytes);
    }
    return 0;
}
#endif

#endif
