# The compiled library as other Cython modules reach it: only _core links it, so that there is one pool of threads and
# one active instruction set in a process.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t

from rmsprop_native cimport rmsp as c

cdef const c.rmsp_dtype_info *dtype_info(int dtype) noexcept nogil
cdef const char *reason_name(c.rmsp_reason reason) noexcept nogil
cdef void dense_strides(
    int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t size, ptrdiff_t *dense
) noexcept nogil
cdef c.rmsp_reason bind(c.rmsp_plan *plan, const c.rmsp_array *const *arrays, c.rmsp_refusal *where) noexcept nogil
cdef size_t axis_count(const c.rmsp_plan *plan) noexcept nogil
cdef void use_axes(c.rmsp_plan *plan, c.rmsp_axis *axes) noexcept nogil
cdef bint find_gap(c.rmsp_plan *plan, uintptr_t low, uintptr_t high) noexcept nogil
cdef bint arrays_overlap(const c.rmsp_array *one, const c.rmsp_array *other) noexcept nogil
cdef bint overlaps_itself(int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t size) noexcept nogil
cdef c.rmsp_work plan_work(const c.rmsp_plan *plan) noexcept nogil
cdef c.rmsp_outcome step(c.rmsp_plan *plan, c.rmsp_found *found) noexcept nogil
cdef bint is_large(size_t nbytes) noexcept nogil
cdef int ufunc_in_place(
    const c.rmsp_ufunc *ufunc, size_t n, void *const *array, const double *numbers, const double *lrs, size_t run
) noexcept nogil
cdef void *ufunc_loop() noexcept nogil


cdef class Claim:
    cdef c.rmsp_counts counts
    cdef Py_ssize_t leaf_count
    cdef int taken
    cdef int take_counts(self, Claim other) except -1


cdef int refuse_claim() except -1


cdef inline int take(Claim claim) except -1:
    """Take the claim, or raise RuntimeError. No code runs between the test and the taking."""
    if not c.rmsp_try_lock(&claim.taken):
        return refuse_claim()
    return 0


cdef inline void release(Claim claim) noexcept:
    c.rmsp_unlock(&claim.taken)
