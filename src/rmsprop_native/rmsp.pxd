# rmsp.h, mirrored once.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t


cdef extern from "rmsp_dtype.h" nogil:
    ctypedef struct rmsp_dtype_info:
        const char *name
        char code
        size_t size

    int RMSP_DTYPE_COUNT
    int RMSP_F32
    int RMSP_F64
    int RMSP_BF16
    int RMSP_LOW16
    int RMSP_TYPE_COUNT
    int rmsp_arithmetic(int type) noexcept


cdef extern from "rmsp_atomic.h" nogil:
    bint rmsp_try_lock(int *flag) noexcept
    void rmsp_unlock(int *flag) noexcept
    int rmsp_load_int(const int *p) noexcept
    void rmsp_store_int(int *p, int value) noexcept
    void rmsp_publish(void **p, void *value) noexcept
    void *rmsp_published(void *const *p) noexcept
    int64_t rmsp_load_int64(const int64_t *p) noexcept
    void rmsp_store_int64(int64_t *p, int64_t value) noexcept


cdef extern from "rmsp.h" nogil:
    void rmsp_prefetch(const void *address) noexcept

    ctypedef enum rmsp_momentum:
        RMSP_MOMENTUM_NONE
        RMSP_MOMENTUM_CLASSIC
        RMSP_MOMENTUM_NESTEROV

    ctypedef struct rmsp_coef:
        double grad_scale
        double clip_value
        double weight_decay
        double rho
        double one_minus_rho
        double bias_correction
        double eps_inside
        double eps_outside
        double lr_in
        double momentum
        double shrink
        double lr_out

    ctypedef struct rmsp_group:
        rmsp_momentum momentum
        int centered
        int l2
        int bias_correction
        int lr_outside
        double decay
        double ema
        double clip_norm
        rmsp_coef coef

    void rmsp_group_refresh(rmsp_group *group) noexcept
    void rmsp_group_set_scale(rmsp_group *group, double scale) noexcept
    void rmsp_group_set_lr(rmsp_group *group, double lr) noexcept

    enum:
        RMSP_PARAM
        RMSP_GRAD
        RMSP_SQUARE_AVG
        RMSP_MOMENTUM_BUFFER
        RMSP_GRAD_AVG
        RMSP_STEP_ARRAYS
        RMSP_EMA
        RMSP_GRAD_SUM
        RMSP_LOW_HALF
        RMSP_ARRAY_COUNT
        RMSP_MAX_NDIM

    ctypedef enum rmsp_reason:
        RMSP_OK
        RMSP_ABSENT
        RMSP_NOT_AN_ARRAY
        RMSP_MASKED
        RMSP_UNSUPPORTED
        RMSP_BYTE_ORDER
        RMSP_DEVICE
        RMSP_NOT_STRIDED
        RMSP_LAZY_BITS
        RMSP_NULL_DATA
        RMSP_OTHER_DTYPE
        RMSP_OTHER_SHAPE
        RMSP_NOT_C_ORDER
        RMSP_OVERLAP
        RMSP_NEEDS_AXES
        RMSP_REASON_COUNT

    enum:
        RMSP_C_ORDER
        RMSP_F_ORDER
        RMSP_ALIGNED
        RMSP_WRITABLE
        RMSP_PAIRS

    ctypedef struct rmsp_array:
        void *data
        const ptrdiff_t *shape
        const ptrdiff_t *strides
        const ptrdiff_t *rows
        size_t row_count
        int ndim
        int type
        unsigned flags
        rmsp_reason problem

    ctypedef struct rmsp_refusal:
        size_t leaf
        size_t other_leaf
        int array
        int other_array
        size_t row

    ctypedef struct rmsp_axis:
        pass

    ctypedef struct rmsp_extra:
        void *ema
        void *grad_sum
        double *span_sums
        const double *lrs
        size_t lr_run
        void *low_half
        int avg16
        int64_t behind

    ctypedef struct rmsp_leaf:
        void *array[5]
        size_t n
        rmsp_extra *extra
        uint32_t group
        uint32_t dtype

    ctypedef struct rmsp_slot:
        const ptrdiff_t *shape
        const ptrdiff_t *strides
        ptrdiff_t *param_strides
        int ndim
        int type
        size_t n
        size_t grad_bytes
        uintptr_t low
        uintptr_t high
        const void *clear

    ctypedef struct rmsp_range:
        uintptr_t low
        uintptr_t high
        size_t leaf
        int array

    ctypedef enum rmsp_nonfinite:
        RMSP_PROPAGATE
        RMSP_SKIP
        RMSP_REPORT

    ctypedef struct rmsp_rules:
        int64_t accumulate
        double grad_scale
        double clip_global_norm
        rmsp_nonfinite nonfinite
        int clips
        int averages
        uint64_t seed

    ctypedef struct rmsp_counts:
        int64_t steps
        int64_t accumulated
        int64_t skipped
        unsigned char *seen

    ctypedef struct rmsp_work:
        size_t elements
        size_t bytes

    ctypedef struct rmsp_origin:
        ptrdiff_t leaf
        ptrdiff_t element

    ctypedef struct rmsp_plan:
        rmsp_leaf *leaves
        size_t leaf_count
        rmsp_group *groups
        size_t group_count
        rmsp_slot *slots
        rmsp_extra *extras
        rmsp_rules rules
        rmsp_counts *counts
        rmsp_range *memory
        size_t memory_count
        rmsp_range *ranges
        const rmsp_origin *origins
        int threads
        int bound
        rmsp_work work

    ctypedef enum rmsp_again:
        RMSP_AGAIN_NO
        RMSP_AGAIN_YES
        RMSP_AGAIN_GAP

    # Inline: every module may call these. What follows them is called through _core.
    rmsp_again rmsp_bind_again(
        const rmsp_plan *plan, rmsp_leaf *leaf, rmsp_slot *slot, const rmsp_array *param, const rmsp_array *grad
    ) noexcept

    unsigned rmsp_order_flags(int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides) noexcept
    bint rmsp_is_bound(const rmsp_slot *slot, int type, const void *bound, const rmsp_array *buffer) noexcept

    bint rmsp_ranges_overlap(uintptr_t low, uintptr_t high, uintptr_t other_low, uintptr_t other_high) noexcept

    const rmsp_dtype_info rmsp_dtypes[1]
    const char *rmsp_reason_name(rmsp_reason reason) noexcept
    void rmsp_dense_strides(
        int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t size, ptrdiff_t *dense
    ) noexcept
    rmsp_reason rmsp_bind(rmsp_plan *plan, const rmsp_array *const *arrays, rmsp_refusal *where) noexcept
    size_t rmsp_axis_count(const rmsp_plan *plan) noexcept
    void rmsp_use_axes(rmsp_plan *plan, rmsp_axis *axes) noexcept
    bint rmsp_find_gap(rmsp_plan *plan, uintptr_t low, uintptr_t high) noexcept
    bint rmsp_arrays_overlap(const rmsp_array *one, const rmsp_array *other) noexcept
    bint rmsp_overlaps_itself(int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t size) noexcept
    rmsp_work rmsp_plan_work(const rmsp_plan *plan) noexcept

    ctypedef enum rmsp_outcome:
        RMSP_STEPPED
        RMSP_ACCUMULATED
        RMSP_SKIPPED
        RMSP_NONFINITE

    ctypedef struct rmsp_found:
        size_t leaf
        size_t count
        size_t size

    rmsp_outcome rmsp_step(rmsp_plan *plan, rmsp_found *found) noexcept
    size_t rmsp_grain() noexcept
    void rmsp_set_grain(size_t bytes) noexcept
    const size_t RMSP_SPAN
    void rmsp_threads_init() noexcept
    int rmsp_thread_count(int preferred) noexcept
    int rmsp_set_thread_limit(int limit) noexcept
    int rmsp_has_threads() noexcept
    const int RMSP_MAX_THREADS

    void rmsp_isa_init() noexcept
    int rmsp_isa_count() noexcept
    const char *rmsp_isa_name(int index) noexcept
    const char *rmsp_isa_active() noexcept
    int rmsp_isa_use(const char *name) noexcept


cdef extern from "rmsp_ufunc.h" nogil:
    ctypedef struct rmsp_ufunc:
        int dtype
        int momentum
        int centered

    int rmsp_ufunc_in_place(
        const rmsp_ufunc *ufunc, size_t n, void *const *array, const double *numbers, const double *lrs, size_t run
    ) noexcept
    void rmsp_ufunc_loop(char **args, const ptrdiff_t *dimensions, const ptrdiff_t *steps, void *ufunc) noexcept
