# rmsp.h, mirrored once.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint32_t


cdef extern from "rmsp.h" nogil:
    ctypedef enum rmsp_dtype:
        RMSP_F32
        RMSP_F64

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
        int variant
        double ema
        rmsp_coef coef

    rmsp_group rmsp_group_of(
        rmsp_momentum momentum, int centered, int l2, double ema, const rmsp_coef *coef
    ) noexcept

    enum:
        RMSP_PARAM
        RMSP_GRAD
        RMSP_SQUARE_AVG
        RMSP_MOMENTUM_BUFFER
        RMSP_GRAD_AVG
        RMSP_EMA
        RMSP_GRAD_SUM
        RMSP_ARRAY_COUNT
        RMSP_MAX_NDIM

    ctypedef struct rmsp_layout:
        int ndim
        size_t shape[65]
        ptrdiff_t stride[7][65]

    ctypedef struct rmsp_rows:
        size_t count
        const ptrdiff_t *index
        ptrdiff_t stride[7]

    ctypedef struct rmsp_extra:
        void *ema
        void *grad_sum
        const rmsp_layout *layout
        const rmsp_layout *grad_order
        const rmsp_rows *rows
        double *span_sums
        double clip

    ctypedef struct rmsp_leaf:
        void *array[5]
        size_t n
        rmsp_extra *extra
        uint32_t group
        uint32_t dtype

    ctypedef struct rmsp_plan:
        rmsp_leaf *leaves
        size_t leaf_count
        rmsp_group *groups
        double scale

    ctypedef enum rmsp_op:
        RMSP_STEP
        RMSP_SUMSQ
        RMSP_ACCUMULATE

    ctypedef struct rmsp_work:
        size_t elements
        size_t bytes

    void rmsp_add_work(rmsp_work *work, const rmsp_leaf *leaf) noexcept
    void rmsp_plan_run(const rmsp_plan *plan, rmsp_op op, rmsp_work work) noexcept
    double rmsp_leaf_sumsq(const rmsp_leaf *leaf) noexcept
    size_t rmsp_grain
    const size_t RMSP_SPAN
    int rmsp_thread_count() noexcept
    void rmsp_set_thread_limit(int limit) noexcept
    int rmsp_has_threads() noexcept
    const int RMSP_MAX_THREADS

    void rmsp_isa_init() noexcept
    int rmsp_isa_count() noexcept
    const char *rmsp_isa_name(int index) noexcept
    const char *rmsp_isa_active() noexcept
    int rmsp_isa_use(const char *name) noexcept


cdef extern from "rmsp_ufunc.h" nogil:
    ctypedef struct rmsp_ufunc:
        rmsp_dtype dtype
        int momentum
        int centered
        int pending

    int rmsp_ufunc_in_place(
        const rmsp_ufunc *ufunc, size_t n, void *const *array, const double *numbers
    ) noexcept
    void rmsp_ufunc_loop(char **args, const ptrdiff_t *dimensions, const ptrdiff_t *steps, void *ufunc) noexcept
