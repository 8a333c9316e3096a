/* rmsp_fenv.h: the floating-point environment: what a thread takes over from its caller, and which exceptions were
 * raised; internal to the library.
 *
 * On x86-64 all of it is the register MXCSR. The functions of <fenv.h> see to the x87 unit as well, which no code here
 * uses, and take ten times as long: to clear the exceptions was a seventh of a ufunc's call for a small array.
 */
#ifndef RMSP_FENV_H
#define RMSP_FENV_H

#ifndef RMSP_NO_FENV /* WebAssembly has none */
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

/* The floating-point exceptions that NumPy reports. */
#define RMSP_WATCHED (FE_DIVBYZERO | FE_OVERFLOW | FE_UNDERFLOW | FE_INVALID)

#if defined(RMSP_NO_FENV)

typedef char rmsp_environment;
static inline void rmsp_get_environment(rmsp_environment *environment) { *environment = 0; }
static inline void rmsp_set_environment(const rmsp_environment *environment) { (void)environment; }
static inline void rmsp_clear_exceptions(void) {}
static inline int rmsp_raised(void) { return 0; }
static inline void rmsp_raise(int exceptions) { (void)exceptions; }

#elif defined(__x86_64__) && defined(__GNUC__)

/* The flags of MXCSR are the values of <fenv.h>. */
typedef unsigned rmsp_environment;
static inline void rmsp_get_environment(rmsp_environment *environment) { *environment = __builtin_ia32_stmxcsr(); }
static inline void rmsp_set_environment(const rmsp_environment *environment) { __builtin_ia32_ldmxcsr(*environment); }
static inline void rmsp_clear_exceptions(void)
{
    const unsigned all = __builtin_ia32_stmxcsr();
    if (all & RMSP_WATCHED) __builtin_ia32_ldmxcsr(all & ~(unsigned)RMSP_WATCHED);
}
static inline int rmsp_raised(void) { return (int)__builtin_ia32_stmxcsr() & RMSP_WATCHED; }
/* Not feraiseexcept, which raises overflow and underflow in the x87 unit, where rmsp_raised does not look. */
static inline void rmsp_raise(int exceptions)
{
    if (exceptions != 0) __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | (unsigned)exceptions);
}

#else

typedef fenv_t rmsp_environment;
static inline void rmsp_get_environment(rmsp_environment *environment) { fegetenv(environment); }
static inline void rmsp_set_environment(const rmsp_environment *environment) { fesetenv(environment); }
static inline void rmsp_clear_exceptions(void) { feclearexcept(RMSP_WATCHED); }
static inline int rmsp_raised(void) { return fetestexcept(RMSP_WATCHED); }
static inline void rmsp_raise(int exceptions)
{
    if (exceptions != 0) feraiseexcept(exceptions);
}

#endif

#endif
