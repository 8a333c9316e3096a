/* check.h: an assertion for the C tests that stays active in release builds. */
#ifndef RMSP_CHECK_H
#define RMSP_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(expression)                                                            \
    do {                                                                             \
        if (!(expression)) {                                                         \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #expression); \
            abort();                                                                 \
        }                                                                            \
    } while (0)

#endif
