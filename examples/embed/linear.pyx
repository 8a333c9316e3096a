# cython: language_level=3
"""Linear regression with one sample a step: loop, gradient and RMSProp in C, without Python and without the GIL."""

cimport cython
from libc.math cimport INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t
from libc.string cimport memset

from rmsprop_native cimport _core
from rmsprop_native cimport rmsp as c


@cython.boundscheck(False)
@cython.wraparound(False)
def fit(const double[:, ::1] x, const double[::1] y, double[::1] w, double lr=1e-3, double rho=0.9, double eps=1e-8):
    """Fit x @ w to y in place, in the order of the samples; return the squared error of each before its step."""
    if x.shape[0] != y.shape[0] or x.shape[1] != w.shape[0] or w.shape[0] == 0:
        raise ValueError("x needs a row for each element of y, and a column for each of w, which is not empty")
    import numpy as np

    losses_array, grad_array, square_avg_array = np.empty(len(y)), np.empty(len(w)), np.zeros(len(w))
    cdef double[::1] losses = losses_array, grad = grad_array, square_avg = square_avg_array
    cdef Py_ssize_t n = w.shape[0], i, k
    cdef double error

    # One leaf, its place in memory, one group of coefficients.
    cdef c.rmsp_leaf leaf
    cdef c.rmsp_slot slot
    cdef c.rmsp_extra extra
    cdef c.rmsp_group group
    cdef c.rmsp_counts counts
    cdef c.rmsp_range memory
    cdef c.rmsp_range[2] ranges
    cdef c.rmsp_plan plan
    cdef c.rmsp_array[2] described
    cdef const c.rmsp_array *arrays[c.RMSP_ARRAY_COUNT]
    cdef c.rmsp_refusal where
    cdef ptrdiff_t shape = n, stride = sizeof(double), param_stride
    memset(&leaf, 0, sizeof(leaf))
    memset(&slot, 0, sizeof(slot))
    memset(&extra, 0, sizeof(extra))
    memset(&group, 0, sizeof(group))
    memset(&counts, 0, sizeof(counts))
    memset(&plan, 0, sizeof(plan))
    memset(described, 0, sizeof(described))
    memset(arrays, 0, sizeof(arrays))

    leaf.n, leaf.dtype = n, c.RMSP_F64
    leaf.array[c.RMSP_SQUARE_AVG] = &square_avg[0]
    slot.shape, slot.strides, slot.param_strides = &shape, &stride, &param_stride
    slot.ndim, slot.type, slot.n = 1, c.RMSP_F64, n
    memory.low = <uintptr_t>&square_avg[0]
    memory.high = memory.low + n * sizeof(double)
    memory.leaf, memory.array = <size_t>-1, 0

    group.clip_norm = group.coef.clip_value = INFINITY
    group.coef.grad_scale = group.coef.bias_correction = group.coef.shrink = group.coef.lr_out = 1
    group.coef.rho, group.coef.one_minus_rho = rho, 1 - rho
    group.coef.eps_outside, group.coef.lr_in = eps, lr
    c.rmsp_group_refresh(&group)

    plan.leaves, plan.leaf_count = &leaf, 1
    plan.slots, plan.extras = &slot, &extra
    plan.groups, plan.group_count = &group, 1
    plan.rules.accumulate, plan.rules.grad_scale, plan.rules.clip_global_norm = 1, 1, INFINITY
    plan.counts = &counts
    plan.memory, plan.memory_count, plan.ranges = &memory, 1, ranges

    for k in range(2):
        described[k].data = <void *>(&grad[0] if k == c.RMSP_GRAD else &w[0])
        described[k].shape, described[k].strides = &shape, &stride
        described[k].ndim, described[k].type = 1, c.RMSP_F64
        described[k].flags = c.RMSP_C_ORDER | c.RMSP_F_ORDER | c.RMSP_ALIGNED | c.RMSP_WRITABLE
        arrays[k] = &described[k]
    cdef c.rmsp_reason reason = _core.bind(&plan, arrays, &where)
    if reason != c.RMSP_OK:
        raise ValueError(f"the arrays cannot be stepped: {_core.reason_name(reason).decode()}")

    with nogil:
        for i in range(x.shape[0]):
            error = -y[i]
            for k in range(n):
                error = error + x[i, k] * w[k]
            for k in range(n):
                grad[k] = 2 * error * x[i, k]
            losses[i] = error * error
            _core.step(&plan, NULL)
    return losses_array
