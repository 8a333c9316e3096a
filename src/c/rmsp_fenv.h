/* rmsp_fenv.h: <fenv.h>, with stubs for what a platform such as WebAssembly lacks; internal to the library. */
#ifndef RMSP_FENV_H
#define RMSP_FENV_H

#ifdef RMSP_NO_FENV

typedef char fenv_t;
static inline int feclearexcept(int exceptions) { return exceptions & 0; }
static inline int fetestexcept(int exceptions) { return exceptions & 0; }
static inline int feraiseexcept(int exceptions) { return exceptions & 0; }
static inline int fegetenv(fenv_t *environment) { return *environment = 0; }
static inline int fesetenv(const fenv_t *environment) { return *environment; }

#else
#include <fenv.h>
#endif

/* A macro is missing where the exception does not exist. */
#ifndef FE_DIVBYZERO
#define FE_DIVBYZERO 0
#endif
#ifndef FE_OVERFLOW
#define FE_OVERFLOW 0
#endif
#ifndef FE_UNDERFLOW
#define FE_UNDERFLOW 0
#endif
#ifndef FE_INVALID
#define FE_INVALID 0
#endif

#endif
