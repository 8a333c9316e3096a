# cython: language_level=3
"""The compiled library in Python: instruction set, threads, the claim on a state, and the ufuncs; it owns all
process-wide state.

The other compiled module calls the library through the functions of _core.pxd.
"""

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyTypeObject, Py_TYPE
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

from rmsprop_native cimport rmsp as c

from rmsprop_native.exceptions import report

cdef extern from "rmsp_build.h":
    const char *RMSP_BUILD_COMPILER
    const char *RMSP_BUILD_TYPE
    const char *RMSP_BUILD_FLAGS
    const char *RMSP_BUILD_AVX2_FLAGS
    const char *RMSP_BUILD_AVX512_FLAGS
    const char *RMSP_BUILD_ISAS
    const char *RMSP_BUILD_OPENMP

c.rmsp_isa_init()
c.rmsp_threads_init()


# ---- the library, for other modules ----

cdef const c.rmsp_dtype_info *dtype_info(int dtype) noexcept nogil:
    return &c.rmsp_dtypes[dtype]


cdef const char *reason_name(c.rmsp_reason reason) noexcept nogil:
    return c.rmsp_reason_name(reason)


cdef void dense_strides(
    int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t size, ptrdiff_t *dense
) noexcept nogil:
    c.rmsp_dense_strides(ndim, shape, strides, size, dense)


cdef c.rmsp_reason bind(c.rmsp_plan *plan, const c.rmsp_array *const *arrays, c.rmsp_refusal *where) noexcept nogil:
    return c.rmsp_bind(plan, arrays, where)


cdef size_t axis_count(const c.rmsp_plan *plan) noexcept nogil:
    return c.rmsp_axis_count(plan)


cdef void use_axes(c.rmsp_plan *plan, c.rmsp_axis *axes) noexcept nogil:
    c.rmsp_use_axes(plan, axes)


cdef bint find_gap(c.rmsp_plan *plan, uintptr_t low, uintptr_t high) noexcept nogil:
    return c.rmsp_find_gap(plan, low, high)


cdef bint arrays_overlap(const c.rmsp_array *one, const c.rmsp_array *other) noexcept nogil:
    return c.rmsp_arrays_overlap(one, other)


cdef bint overlaps_itself(int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t size) noexcept nogil:
    return c.rmsp_overlaps_itself(ndim, shape, strides, size)


cdef c.rmsp_work plan_work(const c.rmsp_plan *plan) noexcept nogil:
    return c.rmsp_plan_work(plan)


cdef c.rmsp_outcome step(c.rmsp_plan *plan, c.rmsp_found *found) noexcept nogil:
    return c.rmsp_step(plan, found)


cdef bint is_large(size_t nbytes) noexcept nogil:
    """Whether so many bytes of gradients are worth releasing the GIL."""
    return nbytes > c.rmsp_grain()


cdef int ufunc_in_place(
    const c.rmsp_ufunc *ufunc, size_t n, void *const *array, const double *numbers, const double *lrs, size_t run
) noexcept nogil:
    return c.rmsp_ufunc_in_place(ufunc, n, array, numbers, lrs, run)


cdef void *ufunc_loop() noexcept nogil:
    return <void *>c.rmsp_ufunc_loop


# ---- the claim on a state ----

cdef int refuse_claim() except -1:
    raise RuntimeError(
        "this state is inside a step already, in another thread or around this call (made by a schedule, a container's "
        "own code or a finalizer); give each thread a state of its own"
    )


@cython.final
@cython.auto_pickle(False)
cdef class Claim:
    """The right to use a state, which one caller has at a time; and the counts that only that one may change.

    A step takes it as its first act and releases it as its last. Python code takes it by ``with``, where more than a
    step must happen undisturbed.

    Parameters
    ----------
    leaf_count : int
        The leaves of the state.

    Raises
    ------
    RuntimeError
        By ``with``, if it is taken.
    """

    def __cinit__(self, Py_ssize_t leaf_count):
        self.leaf_count = leaf_count
        self.counts.seen = <unsigned char *>PyMem_Calloc(leaf_count + 1, 1)
        if self.counts.seen == NULL:
            raise MemoryError()

    def __dealloc__(self):
        PyMem_Free(self.counts.seen)

    def __enter__(self):
        take(self)
        return self

    def __exit__(self, kind, error, traceback):  # named: a tuple of them would take memory, which may be missing
        release(self)

    @property
    def steps(self):
        """Steps taken."""
        return c.rmsp_load_int64(&self.counts.steps)

    @property
    def skipped(self):
        """Calls that did nothing because a gradient was not finite."""
        return c.rmsp_load_int64(&self.counts.skipped)

    @property
    def accumulated(self):
        """Calls since the last step."""
        return c.rmsp_load_int64(&self.counts.accumulated)

    @property
    def seen(self):
        """For each leaf a byte: whether it had a gradient since the last step, while accumulating."""
        return bytes(self.counts.seen[: self.leaf_count])

    def copy(self):
        """A claim with the same counts, not taken; the caller has this one."""
        cdef Claim new = Claim(self.leaf_count)
        cdef unsigned char *seen = new.counts.seen
        memcpy(seen, self.counts.seen, self.leaf_count)
        new.counts = self.counts
        new.counts.seen = seen
        return new

    cdef int take_counts(self, Claim other) except -1:
        """`set_counts` of those of another claim."""
        self.set_counts(other.counts.steps, other.counts.skipped, other.counts.accumulated, other.seen)
        return 0

    def set_counts(self, long long steps, long long skipped, long long accumulated, bytes seen):
        """Set the counts; the caller has the claim, or no other caller has the state yet."""
        if len(seen) != self.leaf_count:
            raise ValueError(f"there are {self.leaf_count} leaves, not {len(seen)}")
        c.rmsp_store_int64(&self.counts.steps, steps)
        c.rmsp_store_int64(&self.counts.skipped, skipped)
        c.rmsp_store_int64(&self.counts.accumulated, accumulated)
        memcpy(self.counts.seen, <const char *>seen, self.leaf_count)


# ---- run-time control ----

def num_threads():
    """See runtime.num_threads."""
    return c.rmsp_thread_count(0)


def set_num_threads(int n):
    """Allow `n` threads, or with 0 as many as OpenMP gives; returns the number allowed before."""
    return c.rmsp_set_thread_limit(n)


def has_threads():
    """Whether steps can use more than one thread here."""
    return bool(c.rmsp_has_threads())


def grain():
    """Bytes of gradients up to which a step stays on one thread."""
    return c.rmsp_grain()


def set_grain(size_t n):
    """Set `grain`; for tests and measurements."""
    c.rmsp_set_grain(n)


def isas():
    """The instruction sets of this machine that are compiled in, best first."""
    return tuple([c.rmsp_isa_name(i).decode() for i in range(c.rmsp_isa_count())])


def isa():
    """The instruction set in use."""
    return c.rmsp_isa_active().decode()


def use_isa(str name):
    """Use the instruction set `name`; False if there is none."""
    return c.rmsp_isa_use(name.encode()) == 0


def build():
    """How the library was built: the compiler, its flags, OpenMP, and the instruction sets that are compiled in."""
    isas = RMSP_BUILD_ISAS.decode().split()
    flags = {"avx2": RMSP_BUILD_AVX2_FLAGS.decode(), "avx512": RMSP_BUILD_AVX512_FLAGS.decode()}
    return {
        "compiler": RMSP_BUILD_COMPILER.decode(),
        "build type": RMSP_BUILD_TYPE.decode(),
        "flags": " ".join(RMSP_BUILD_FLAGS.decode().split()),
        "flags of instruction sets": {name: flags[name] for name in isas if name in flags},
        "OpenMP": RMSP_BUILD_OPENMP.decode() or None,
        "compiled": isas,
    }


SPAN = c.RMSP_SPAN
MAX_THREADS = c.RMSP_MAX_THREADS


include "_ufuncs.pxi"
