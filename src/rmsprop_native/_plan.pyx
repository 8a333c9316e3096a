# cython: language_level=3
"""The plan of a step: leaves collected, described to the compiled library, bound and stepped.

a) A step takes the claim on its state as its first act and releases it as its last: whatever runs meanwhile, the
   finalizer of an object or a container's own code, finds the state taken.
b) Leaves are borrowed only while no Python code can run: the usual containers are walked in C, and a small step keeps
   the GIL to its last write. Where Python code runs, the GIL is released, or there is none, the plan holds references.
   No memory is allocated to take them, since that could run finalizers.
c) From the first descriptor to the last write no Python code runs. A descriptor is made by the source of its object
   (_sources.pxi). What must be asked of tensors by calls of torch is asked before.
d) Which arrays may be stepped is decided by rmsp_bind alone; arrays.py puts its reasons into words. The short way,
   rmsp_bind_again, is a part of it that is inlined here.
e) A plan names no state: it is given coefficients, and says when it needs others.
"""

import threading

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.dict cimport PyDict_GetItemWithError
from cpython.exc cimport PyErr_Clear
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.number cimport PyNumber_Float
from cpython.object cimport PyObject, PyTypeObject, Py_EQ, Py_TYPE
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.math cimport INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset

from rmsprop_native cimport rmsp as c
from rmsprop_native cimport _core

from rmsprop_native.arrays import RowGrad, bfloat16, merge_rows, no_state, refusal, title
from rmsprop_native.buffers import PAGE, place
from rmsprop_native.coefficients import check_lr, flat_of
from rmsprop_native.tree import DICT, EMPTY, FIELDS, LEAF, SEQUENCE

cnp.import_array()

cdef extern from "Python.h":
    bint PyFloat_Check(object o) noexcept
    bint PyType_IsSubtype(PyTypeObject *one, PyTypeObject *other) noexcept
    Py_ssize_t PyList_GET_SIZE(object o) noexcept
    PyObject *PyList_GET_ITEM(object o, Py_ssize_t i) noexcept
    void Py_XDECREF(PyObject *o) noexcept
    PyObject *PyImport_GetModuleDict() noexcept
    PyObject *PyModule_GetDict(PyObject *module) noexcept
    bint PyModule_Check(PyObject *o) noexcept
    bint PyDict_Check(PyObject *o) noexcept
    bint PyType_Check(PyObject *o) noexcept
    PyTypeObject PyTuple_Type, PyList_Type

cdef extern from *:
    """
    #define rmsp_typeobj_of(array) (PyArray_DESCR((PyArrayObject *)(array))->typeobj)
    /* Whether an object is a float of the same bits: -0.0 is not 0.0, which gives other signs. */
    #define rmsp_is_number(o, number) \\
        (PyFloat_Check(o) && memcmp(&((PyFloatObject *)(o))->ob_fval, &(double){number}, sizeof(double)) == 0)
    #define RMSP_FLAT_COUNT (7 + sizeof(rmsp_coef) / sizeof(double)) /* of the numbers of flat_of */
    """
    enum:
        RMSP_FLAT_COUNT
    bint is_number "rmsp_is_number" (object o, double number) noexcept
    PyTypeObject *typeobj_of "rmsp_typeobj_of" (cnp.ndarray array) noexcept


cdef extern from "numpy/arrayobject.h":
    object PyArray_New(
        PyTypeObject *subtype, int nd, cnp.npy_intp *dims, int type_num, cnp.npy_intp *strides, void *data,
        int itemsize, int flags, PyObject *like
    )

# The arrays of a state, in the order of the enum that begins with RMSP_PARAM, RMSP_GRAD.
BUFFERS = ("square_avg", "momentum_buffer", "grad_avg", "ema", "grad_sum", "low_half")

cdef tuple ARRAYS = ("parameter", "gradient", *BUFFERS)
cdef dict MOMENTUM = {
    "none": c.RMSP_MOMENTUM_NONE, "classic": c.RMSP_MOMENTUM_CLASSIC, "nesterov": c.RMSP_MOMENTUM_NESTEROV
}
cdef int BUFFER_COUNT = len(BUFFERS)

cdef dict NONFINITE = {"propagate": c.RMSP_PROPAGATE, "skip": c.RMSP_SKIP, "raise": c.RMSP_REPORT}


include "_leaves.pxi"
include "_sources.pxi"


cdef inline bint is_row_grad(PyObject *o) noexcept:
    return Py_TYPE(<object>o) == ROW_GRAD or PyType_IsSubtype(Py_TYPE(<object>o), ROW_GRAD)


cdef inline bint bind_described(c.rmsp_plan *plan, size_t i, c.rmsp_array *param, c.rmsp_array *grad) noexcept:
    cdef c.rmsp_slot *slot = &plan.slots[i]
    cdef c.rmsp_again again = c.rmsp_bind_again(plan, &plan.leaves[i], slot, param, grad)
    if again == c.RMSP_AGAIN_GAP:
        if not _core.find_gap(plan, <uintptr_t>grad.data, <uintptr_t>grad.data + slot.grad_bytes):
            return False
        slot.clear = grad.data
    return again != c.RMSP_AGAIN_NO


cdef inline void prefetch(PyObject **param, PyObject **grad) noexcept:
    """Bring nearer what descriptors are made of: of the leaf 8 after the first one its objects, of the leaf after 4,
    whose objects have come, the shapes. After a backward pass, over a scattered heap, steps take two thirds of the time
    (bench/NOTES.md)."""
    c.rmsp_prefetch(<char *>param[8] + 32)  # of two cache lines the one that most of the fields are in
    c.rmsp_prefetch(<char *>grad[8] + 32)
    if Py_TYPE(<object>param[4]) == NDARRAY and Py_TYPE(<object>grad[4]) == NDARRAY:
        c.rmsp_prefetch(cnp.PyArray_DIMS(<cnp.ndarray>param[4]))
        c.rmsp_prefetch(cnp.PyArray_DIMS(<cnp.ndarray>grad[4]))


cdef inline bint bind_ndarrays(c.rmsp_plan *plan, size_t i, PyObject *param, PyObject *grad) noexcept:
    """The usual leaf: its descriptors stay in registers, since their addresses go nowhere."""
    cdef c.rmsp_array p, g
    describe_numpy(param, &p)
    describe_numpy(grad, &g)
    return bind_described(plan, i, &p, &g)


cdef bint bind_others(c.rmsp_plan *plan, size_t i, PyObject *param, PyObject *grad, bint has_tensors) noexcept:
    cdef c.rmsp_array p, g
    if not has_tensors and (is_tensor(param) or is_tensor(grad)):
        return False  # it must be prepared first
    describe(param, &p)
    describe(grad, &g)
    return bind_described(plan, i, &p, &g)


cdef object copy_tree(Node node, object tree):
    """A copy of a tree of usual containers and ndarrays proper; NotImplemented for any other."""
    cdef Py_ssize_t i
    cdef list copies = []
    cdef tuple keys, values
    if node is None:
        return cnp.PyArray_NewCopy(tree, cnp.NPY_KEEPORDER) if type(tree) is np.ndarray else NotImplemented
    if type(tree) is dict:
        tree = (<dict>tree).copy()  # at one moment: another thread may change it
        keys, values = tuple(tree), tuple((<dict>tree).values())
    elif type(tree) is list or type(tree) is tuple:
        keys, values = None, tuple(tree)
    elif tree is None and node.count == 0:
        return None
    else:
        return NotImplemented
    if len(values) != node.count or (keys is not None and keys != node.keys):
        return NotImplemented
    for i in range(node.count):
        copy = copy_tree(<Node>node.children[i], values[i])
        if copy is NotImplemented:
            return NotImplemented
        copies.append(copy)
    if keys is not None:
        return dict(zip(keys, copies))
    return copies if type(tree) is list else tuple(copies)


cdef inline bint is_usable(object o, double low, double high) noexcept:
    """Whether an object is a float in this range, which excludes NaN."""
    return PyFloat_Check(o) and low <= PyFloat_AS_DOUBLE(o) <= high


# ---- the plan ----

cdef enum:
    LINE = 64  # of a cache


cdef void *next_table(uintptr_t *end, size_t size) noexcept:
    """Room for a table at `end`, which moves behind it, to the next cache line."""
    cdef void *table = <void *>end[0]
    end[0] += (size + LINE - 1) // LINE * LINE
    return table


@cython.auto_pickle(False)
cdef class Plan:
    """The buffers of one state, and what is known of its arrays, laid out for one call of the library a step.

    Parameters
    ----------
    structure : Tree
        Of the parameters.
    claim : Claim
        On the state.
    models : list of numpy.ndarray
        For each leaf an array of its shape, dtype and memory order, which no other code holds; not kept.
    names : tuple of str
        The buffers that the state has, of those in BUFFERS. They are made here, of zeros.
    params : list, optional
        The parameters, to be refused if no step could write them, before any memory is taken for buffers.
    avg16 : bool
        Whether square_avg is bfloat16.

    Raises
    ------
    TypeError, ValueError
        If a parameter is read-only or misaligned, or some elements of all share memory.

    Notes
    -----
    Buffers are dense in the memory order of their parameter; where anything of a leaf is bfloat16, in C order.
    """
    cdef c.rmsp_plan plan
    cdef _core.Claim claim
    cdef object structure
    cdef Node root  # None where the parameters are a lone array
    cdef readonly tuple names
    cdef object memory  # of the buffers: an ndarray of bytes, private
    cdef char *base  # the first page in it
    cdef size_t size  # from there on
    cdef char *tables  # memory of all that follows from the structure
    cdef c.rmsp_group *only_group  # room for one in it
    cdef c.rmsp_group *groups_memory  # where there are more
    cdef ptrdiff_t *shapes  # of all leaves, each followed by the strides of its state and of its parameter
    cdef size_t shape_count
    cdef c.rmsp_axis *axes
    cdef double *sums
    cdef c.rmsp_work whole  # where every leaf has a gradient of all elements
    cdef int kinds  # of arrays that are given at each step: parameters and gradients, and for a subclass buffers too
    cdef c.rmsp_array *described  # room for the descriptors of all leaves: parameters, gradients, and so on
    cdef ptrdiff_t *strides  # room for the strides of tensors, likewise
    cdef PyObject **leaves  # room for the leaves, likewise
    cdef size_t held  # how many of them hold references
    cdef bint has_tensors  # the leaves are held, and prepared, before they are described
    cdef list prepared  # the rows and values of gradients of rows, while they are stepped
    cdef object origins  # of leaves that are parts of others: an array, which the plan points to
    cdef object groups  # the index of each leaf's group, as given last
    cdef bint ready  # there are coefficients, but for what a call gives and schedules say
    cdef bint current  # they are those of the next step with the numbers of the last call:
    cdef bint has_lr
    cdef double lr, grad_scale
    cdef list lrs  # the learning rate of each group: a float, or a schedule, which is asked before each step
    cdef list own_lrs  # whether a call's lr does not replace it
    cdef list leaf_rates  # the learning rates of each leaf's elements (Rates), or None
    cdef bint steady  # there is no schedule
    cdef bint maximize, accumulates
    cdef double largest  # what lr and grad_scale may be without a closer check

    def __init__(
        self, object structure, _core.Claim claim, list models, tuple names, list params=None, bint avg16=False
    ):
        self.structure = structure
        self.claim = claim
        self.root = None if structure.kind == LEAF else Node(structure)
        self.names = names
        if avg16:
            learn_bfloat16()
        if len(models) != structure.size or <size_t>len(models) != (1 if self.root is None else self.root.size):
            raise ValueError("the parts of the structure do not fit each other")
        self._allocate(structure.size, 3 * sum([model.ndim for model in models]), 2)
        self._fill_slots(models, [avg16] * len(models))
        if params is not None:
            self._check(params)
        starts, size = place({name: [self._bytes_of(i, name) for i in range(len(models))] for name in names})
        self._allocate_buffers(size)
        memset(self.base, 0, self.size)  # the system gives the pages now, not within the first step
        self._place_buffers(starts)

    cdef int _allocate(self, size_t n, size_t shape_count, int kinds) except -1:
        """Get memory for so many leaves, lengths and strides: one piece, since each page of memory that a step finds in
        no cache takes time."""
        cdef uintptr_t end = 0
        cdef bint is_counted
        for is_counted in range(2):  # first from address 0 on, to find the size of all
            if is_counted:
                self.tables = <char *>PyMem_Calloc(end + LINE, 1)
                if self.tables == NULL:
                    raise MemoryError()
                end = (<uintptr_t>self.tables + LINE - 1) // LINE * LINE
            self.plan.leaves = <c.rmsp_leaf *>next_table(&end, n * sizeof(c.rmsp_leaf))
            self.plan.slots = <c.rmsp_slot *>next_table(&end, n * sizeof(c.rmsp_slot))
            self.only_group = <c.rmsp_group *>next_table(&end, sizeof(c.rmsp_group))
            self.shapes = <ptrdiff_t *>next_table(&end, shape_count * sizeof(ptrdiff_t))
            self.leaves = <PyObject **>next_table(&end, kinds * n * sizeof(PyObject *))
            self.plan.memory = <c.rmsp_range *>next_table(&end, sizeof(c.rmsp_range))
            self.plan.ranges = <c.rmsp_range *>next_table(&end, ((kinds - 1) * n + 1) * sizeof(c.rmsp_range))
            self.plan.extras = <c.rmsp_extra *>next_table(&end, n * sizeof(c.rmsp_extra))
        self.plan.leaf_count = n
        self.plan.counts = &self.claim.counts
        self.shape_count = shape_count
        self.kinds = kinds
        return 0

    cdef int _allocate_buffers(self, size_t size) except -1:
        """Get memory for so many bytes of buffers; the plan must be bound anew."""
        cdef cnp.npy_intp length = size + <size_t>PAGE
        self.memory = cnp.PyArray_EMPTY(1, &length, cnp.NPY_UINT8, 0)
        self.base = <char *>cnp.PyArray_DATA(<cnp.ndarray>self.memory)
        self.base += -<uintptr_t>self.base % <uintptr_t>PAGE
        self.size = size
        self.plan.memory[0].low = <uintptr_t>self.base
        self.plan.memory[0].high = <uintptr_t>self.base + size
        self.plan.memory[0].leaf = <size_t>-1
        self.plan.memory_count = 1
        self.plan.bound = 0
        return 0

    def __dealloc__(self):
        PyMem_Free(self.tables)
        PyMem_Free(self.groups_memory)
        PyMem_Free(self.axes)
        PyMem_Free(self.sums)
        PyMem_Free(self.described)
        PyMem_Free(self.strides)

    cdef int _fill_slots(self, list models, list avg16) except -1:
        cdef size_t i, size
        cdef int axis
        cdef ptrdiff_t *shapes = self.shapes
        cdef ptrdiff_t strides[MAX_NDIM]
        cdef c.rmsp_array model
        cdef c.rmsp_slot *slot
        for i in range(self.plan.leaf_count):
            describe(<PyObject *>models[i], &model, strides, MAX_NDIM)
            if model.problem != c.RMSP_OK or shapes + 3 * model.ndim > self.shapes + self.shape_count:
                raise ValueError(f"the array of leaf {i} is not supported, or changes")
            self.plan.extras[i].avg16 = <bint>avg16[i]
            if self.plan.extras[i].avg16 and (model.type & c.RMSP_PAIRS or c.rmsp_arithmetic(model.type) != c.RMSP_F32):
                raise ValueError(f"the array of leaf {i} is not float32")
            slot = &self.plan.slots[i]
            slot.type = model.type
            slot.ndim = model.ndim
            slot.n = 2 if model.type & c.RMSP_PAIRS else 1
            size = slot.n * _core.dtype_info(c.rmsp_arithmetic(model.type & ~c.RMSP_PAIRS)).size
            slot.shape = shapes
            slot.strides = shapes + model.ndim
            slot.param_strides = shapes + 2 * model.ndim
            for axis in range(model.ndim):
                shapes[axis] = model.shape[axis]
                slot.n *= <size_t>model.shape[axis]
            if self.plan.extras[i].avg16 or slot.type == c.RMSP_BF16:  # in C order
                for axis in range(model.ndim):
                    strides[axis] = model.ndim - axis
                model.strides = strides
            _core.dense_strides(model.ndim, model.shape, model.strides, size, shapes + model.ndim)
            shapes += 3 * model.ndim
            self.plan.leaves[i].n = slot.n
            self.plan.leaves[i].dtype = c.rmsp_arithmetic(slot.type & ~c.RMSP_PAIRS)
            # For the sum of the work any address does for the gradient.
            self.plan.leaves[i].array[<int>c.RMSP_GRAD] = self.plan.leaves
        self.whole = _core.plan_work(&self.plan)
        return 0

    cdef int _type_of(self, size_t i, int k) noexcept:
        """The type of a leaf's buffer."""
        cdef int type = self.plan.slots[i].type
        if k == c.RMSP_LOW_HALF:
            return c.RMSP_LOW16
        if k == c.RMSP_SQUARE_AVG and self.plan.extras[i].avg16:
            return c.RMSP_BF16
        return c.rmsp_arithmetic(type)

    cdef bint _has_buffer(self, size_t i, int k) noexcept:
        return k != c.RMSP_LOW_HALF or self.plan.slots[i].type == c.RMSP_BF16

    cdef size_t _bytes_of(self, size_t i, str name) except? -1:
        """The bytes of a leaf's buffer, 0 where it has none of that name."""
        cdef int k = <int>c.RMSP_SQUARE_AVG + BUFFERS.index(name)
        if not self._has_buffer(i, k):
            return 0
        return self.plan.slots[i].n * _core.dtype_info(self._type_of(i, k) & ~c.RMSP_PAIRS).size

    cdef int _place_buffers(self, list starts) except -1:
        cdef size_t i
        cdef int which
        for name, of_name in zip(self.names, starts, strict=True):
            which = BUFFERS.index(name)
            for i in range(self.plan.leaf_count):
                if self._has_buffer(i, <int>c.RMSP_SQUARE_AVG + which):
                    self._buffer(i, which)[0] = self.base + <size_t>of_name[i]
        return 0

    cdef inline void **_buffer(self, size_t i, int which) noexcept:
        """Where the plan keeps the address of a leaf's buffer, by its index in BUFFERS."""
        cdef int k = c.RMSP_SQUARE_AVG + which
        if k < c.RMSP_STEP_ARRAYS:
            return &self.plan.leaves[i].array[k]
        if k == c.RMSP_LOW_HALF:
            return &self.plan.extras[i].low_half
        return &self.plan.extras[i].ema if k == c.RMSP_EMA else &self.plan.extras[i].grad_sum

    def arrays(self, str name):
        """The buffers `name` of all leaves, as new arrays, None for a leaf without one: to reshape one does not change
        the plan, and none can be resized."""
        cdef size_t i
        cdef int which = BUFFERS.index(name)
        cdef c.rmsp_slot *slot
        cdef list arrays = []
        cdef cnp.ndarray array
        cdef int num, type
        cdef cnp.npy_intp *strides
        for i in range(self.plan.leaf_count):
            slot = &self.plan.slots[i]
            if not self._has_buffer(i, <int>c.RMSP_SQUARE_AVG + which):
                arrays.append(None)
                continue
            type = self._type_of(i, <int>c.RMSP_SQUARE_AVG + which)
            num, strides = num_of_type(type), <cnp.npy_intp *>slot.strides
            if type == c.RMSP_BF16 or type == c.RMSP_LOW16:
                strides = NULL  # in C order
            array = <cnp.ndarray>PyArray_New(
                NDARRAY, slot.ndim, <cnp.npy_intp *>slot.shape, num, strides, self._buffer(i, which)[0], 0,
                cnp.NPY_ARRAY_CARRAY, NULL
            )
            cnp.set_array_base(array, self.memory)
            arrays.append(array)
        return arrays

    def set_origins(self, object origins):
        """Count random bits as those of whole leaves, of which the leaves here are parts; the caller has the claim.

        Parameters
        ----------
        origins : sequence of (int, int)
            For each leaf the index of the whole one, and in that the element, in C order, which is its first.
        """
        self._keep_origins(np.array(origins, np.intp).reshape(self.plan.leaf_count, 2))

    cdef void _keep_origins(self, cnp.ndarray origins) noexcept:
        self.origins = origins
        self.plan.origins = NULL if origins is None else <const c.rmsp_origin *>cnp.PyArray_DATA(origins)

    def copy_params(self, object params):
        """A copy of parameters in exact lists, tuples and dicts; NotImplemented where they have other containers,
        arrays of a subclass, or another structure."""
        return copy_tree(self.root, params)

    def copy(self, _core.Claim claim):
        """A plan with the same numbers and buffers of its own; the caller has this one's claim.

        Parameters
        ----------
        claim : Claim
            Of the new plan's state.
        """
        cdef Plan new = Plan.__new__(Plan)
        cdef size_t i, k, n = self.plan.leaf_count
        cdef ptrdiff_t moved
        cdef c.rmsp_slot *slot
        cdef void **buffer
        new.structure, new.claim, new.root, new.names = self.structure, claim, self.root, self.names
        new._allocate(n, self.shape_count, self.kinds)
        new._allocate_buffers(self.size)
        memcpy(new.base, self.base, self.size)
        memcpy(new.shapes, self.shapes, self.shape_count * sizeof(ptrdiff_t))
        moved = <char *>new.shapes - <char *>self.shapes
        for i in range(n):
            slot = &new.plan.slots[i]
            slot.type, slot.ndim, slot.n = self.plan.slots[i].type, self.plan.slots[i].ndim, self.plan.slots[i].n
            slot.shape = <const ptrdiff_t *>(<const char *>self.plan.slots[i].shape + moved)
            slot.strides = slot.shape + slot.ndim
            slot.param_strides = <ptrdiff_t *>slot.strides + slot.ndim
            new.plan.leaves[i].n = slot.n
            new.plan.leaves[i].dtype = self.plan.leaves[i].dtype
            new.plan.leaves[i].group = self.plan.leaves[i].group
            new.plan.extras[i].avg16 = self.plan.extras[i].avg16
            for k in range(BUFFER_COUNT):
                buffer = self._buffer(i, k)
                if buffer[0] != NULL:
                    new._buffer(i, k)[0] = new.base + (<char *>buffer[0] - self.base)
        new.whole = self.whole
        new._keep_origins(self.origins)
        new._copy_numbers(self)
        return new

    # ---- numbers ----

    def set_numbers(
        self, list groups, list lrs, list own_lrs, tuple leaf_groups, list leaf_rates, object options, double largest
    ):
        """Take the coefficients of the steps from now on; the caller has the claim.

        Parameters
        ----------
        groups : list of Group
            The coefficients of each group of leaves, with any lr and a grad_scale of 1.
        lrs : list of (float or callable)
            The learning rate of each group.
        own_lrs : list of bool
            Whether it holds for calls that give another one.
        leaf_groups : tuple of int
            For each leaf the index of its group.
        leaf_rates : list of (Rates or None)
            For each leaf the learning rates of its elements, if they are an array, in place of the group's; empty if
            none are.
        options : Options
            For what holds for all leaves.
        largest : float
            Up to which lr and grad_scale can be taken; a step asks for a check of larger ones.
        """
        cdef size_t i
        cdef int k
        cdef double flat[RMSP_FLAT_COUNT]
        cdef tuple numbers
        cdef c.rmsp_group *made = <c.rmsp_group *>PyMem_Calloc(len(groups), sizeof(c.rmsp_group))
        if made == NULL:
            raise MemoryError()
        self.ready = self.current = False
        try:
            for i, group in enumerate(groups):
                numbers = <tuple?>flat_of(group, options.accumulate)
                if len(numbers) != RMSP_FLAT_COUNT:
                    raise SystemError("Coefficients are not those of rmsp_coef")
                for k in range(RMSP_FLAT_COUNT):
                    flat[k] = numbers[k]
                made[i].momentum = MOMENTUM[group.variant.momentum]
                made[i].centered, made[i].l2 = <int>flat[0], <int>flat[1]
                made[i].bias_correction, made[i].lr_outside = <int>flat[2], <int>flat[3]
                made[i].decay, made[i].ema, made[i].clip_norm = flat[4], flat[5], flat[6]
                memcpy(&made[i].coef, flat + 7, sizeof(c.rmsp_coef))
                c.rmsp_group_refresh(&made[i])
            self._set_rules(groups, options)
            steady = not any([callable(lr) for lr in lrs])
        except BaseException:
            PyMem_Free(made)
            raise
        self._keep_groups(made, len(groups))
        if leaf_groups is not self.groups:
            self.groups = leaf_groups
            for i in range(self.plan.leaf_count):
                self.plan.leaves[i].group = leaf_groups[i]
        if leaf_rates is not self.leaf_rates:
            self._set_leaf_rates(leaf_rates)
        self.lrs, self.own_lrs, self.steady = lrs, own_lrs, steady
        self.maximize, self.accumulates, self.largest = options.maximize, options.accumulate > 1, largest
        self.ready = True

    cdef int _set_leaf_rates(self, list leaf_rates) except -1:
        cdef size_t i
        cdef cnp.ndarray numbers
        for i in range(self.plan.leaf_count):
            self.plan.extras[i].lrs = NULL
        self.leaf_rates = None  # to unpack rates takes memory, which may be missing; the next step begins again then
        self.plan.bound = 0
        for i in range(len(leaf_rates)):
            if leaf_rates[i] is not None:
                numbers, run = leaf_rates[i]
                self.plan.extras[i].lr_run = run
                self.plan.extras[i].lrs = <const double *>cnp.PyArray_DATA(numbers)
        self.leaf_rates = leaf_rates
        return 0

    def set_call_numbers(self, list rates, double grad_scale, object lr):
        """Form the coefficients of the next step of numbers that were checked; the caller has the claim.

        Parameters
        ----------
        rates : list of float
            The learning rate of each group.
        grad_scale : float
            Factor on the gradients.
        lr : float or None
            What the call gave.
        """
        cdef size_t i
        self.current = False
        for i in range(self.plan.group_count):
            self._set_group(i, rates[i], grad_scale)
        self._keep_call(lr, grad_scale)

    cdef bint _try_call_numbers(self, object lr, object grad_scale) except -1:
        """`set_call_numbers` of what a call gives and schedules say; False where that must be checked more closely."""
        cdef size_t i
        cdef double scale, rate
        self.current = False
        if not is_usable(grad_scale, -self.largest, self.largest):
            return False
        if lr is not None and not is_usable(lr, 0.0, self.largest):
            return False
        scale = PyFloat_AS_DOUBLE(grad_scale)
        for i in range(self.plan.group_count):
            number = self.lrs[i] if lr is None or self.own_lrs[i] else lr
            if not PyFloat_Check(number):
                number = number(self.claim.counts.steps)
                if not is_usable(number, 0.0, self.largest):
                    number = check_lr(number)
            rate = PyFloat_AS_DOUBLE(number)
            if not (rate <= self.largest and rate * self.plan.groups[i].decay <= self.largest):
                return False
            self._set_group(i, rate, scale)
        self._keep_call(lr, scale)
        return True

    cdef inline void _set_group(self, size_t i, double rate, double scale) noexcept:
        if not self.accumulates:
            c.rmsp_group_set_scale(&self.plan.groups[i], -scale if self.maximize else scale)
        c.rmsp_group_set_lr(&self.plan.groups[i], rate)

    cdef int _keep_call(self, object lr, double scale) except -1:
        self.plan.rules.grad_scale = -scale if self.maximize else scale
        self.has_lr = lr is not None
        self.lr = lr if self.has_lr else 0.0
        self.grad_scale = scale
        self.current = True
        return 0

    cdef int _set_rules(self, list groups, object options) except -1:
        """What holds for all leaves, by which a plan is bound in another way."""
        cdef c.rmsp_rules rules
        rules.accumulate = options.accumulate
        rules.grad_scale = 1.0
        rules.clip_global_norm = INFINITY if options.clip_global_norm is None else options.clip_global_norm
        rules.nonfinite = NONFINITE[options.on_nonfinite]
        rules.clips = options.clip_global_norm is not None or any(
            [group.clip_norm < rules.clip_global_norm for group in groups]
        )
        rules.averages = options.ema is not None
        rules.seed = options.seed
        if (
            rules.accumulate != self.plan.rules.accumulate
            or rules.clips != self.plan.rules.clips
            or rules.nonfinite != self.plan.rules.nonfinite
            or rules.averages != self.plan.rules.averages
        ):
            self.plan.bound = 0
        self.plan.rules = rules
        self._make_sums()
        return 0

    cdef void _keep_groups(self, c.rmsp_group *made, size_t count) noexcept:
        """Take over groups and their memory."""
        PyMem_Free(self.groups_memory)
        self.groups_memory = made
        self.plan.groups = made
        self.plan.group_count = count
        if count == 1:
            self.only_group[0] = made[0]
            self.plan.groups = self.only_group

    cdef int _copy_numbers(self, Plan other) except -1:
        cdef c.rmsp_group *made
        if not other.ready:
            return 0
        made = <c.rmsp_group *>PyMem_Calloc(other.plan.group_count, sizeof(c.rmsp_group))
        if made == NULL:
            raise MemoryError()
        memcpy(made, other.plan.groups, other.plan.group_count * sizeof(c.rmsp_group))
        self._keep_groups(made, other.plan.group_count)
        self.plan.rules = other.plan.rules
        self._make_sums()
        self.groups = other.groups
        self._set_leaf_rates(other.leaf_rates)
        self.lrs, self.own_lrs, self.steady = other.lrs, other.own_lrs, other.steady
        self.maximize, self.accumulates, self.largest = other.maximize, other.accumulates, other.largest
        self.current, self.has_lr, self.lr, self.grad_scale = other.current, other.has_lr, other.lr, other.grad_scale
        self.ready = True
        return 0

    cdef int _make_sums(self) except -1:
        """Make room for the sums of squares of spans, if the rules need norms."""
        cdef size_t i, spans = 0
        if self.sums != NULL or not (self.plan.rules.clips or self.plan.rules.nonfinite != c.RMSP_PROPAGATE):
            return 0
        for i in range(self.plan.leaf_count):
            spans += self.plan.slots[i].n // c.RMSP_SPAN + 1
        self.sums = <double *>PyMem_Calloc(spans, sizeof(double))
        if self.sums == NULL:
            raise MemoryError()
        spans = 0
        for i in range(self.plan.leaf_count):
            self.plan.extras[i].span_sums = self.sums + spans
            spans += self.plan.slots[i].n // c.RMSP_SPAN + 1
        return 0

    def use_claim(self, _core.Claim claim):
        """Count in another claim, of as many leaves, from now on; the caller has it, and the plan is in no other use.

        Parameters
        ----------
        claim : Claim
            It gets the counts of the one before.
        """
        claim.take_counts(self.claim)
        self.claim = claim
        self.plan.counts = &claim.counts

    def forget_numbers(self):
        """Ask for coefficients before the next step; the caller has the claim."""
        self.ready = self.current = False

    cdef inline bint _has_numbers(self, object lr, object grad_scale) noexcept:
        """Whether the coefficients are those of the next step with these numbers, which are compared as floats only."""
        if not self.current or not is_number(grad_scale, self.grad_scale):
            return False
        return not self.has_lr if lr is None else self.has_lr and is_number(lr, self.lr)

    # ---- the step ----

    cdef int _check(self, list params) except -1:
        """Refuse parameters that no step could write."""
        cdef size_t i
        if <size_t>len(params) != self.plan.leaf_count:
            raise ValueError("the parts of the structure do not fit each other")
        for i in range(self.plan.leaf_count):
            self.leaves[i] = <PyObject *>params[i]
        self._make_room()
        if any([find_if_tensor(<PyObject *>param) for param in params]):
            params = [seen_as(param) for param in params]
            for i in range(self.plan.leaf_count):
                self.leaves[i] = <PyObject *>params[i]
        for i in range(self.plan.leaf_count):
            self._describe(self.leaves[i], i, c.RMSP_PARAM)
        return self._bind_described(self.leaves, NULL)

    def step(self, object params, object grads, object lr, object grad_scale):
        """Check everything, then step every leaf that has a gradient, or accumulate or skip, and count it.

        Parameters
        ----------
        params, grads : array or nested container of arrays
            Of the structure of the plan; a gradient may be None or a RowGrad.
        lr : float or None
            In place of the state's, for this step.
        grad_scale : float
            Factor on the gradients.

        Returns
        -------
        bool
            False if nothing was done, because the plan needs coefficients for these numbers first.

        Raises
        ------
        TypeError, ValueError
            If a parameter or a gradient is refused. Nothing has been written then.
        IndexError
            If a RowGrad has a row that its parameter has not.
        FloatingPointError
            If a gradient is not finite and ``on_nonfinite="raise"``. Nothing has been written then either.
        RuntimeError
            If the claim is taken.
        """
        with self.claim:
            return self.try_step(params, grads, lr, grad_scale)

    cdef inline bint try_step(self, object params, object grads, object lr, object grad_scale) except -1:
        """`step` for a caller that has the claim."""
        if not self._has_numbers(lr, grad_scale):
            if not self.ready or not self._try_call_numbers(lr, grad_scale):
                return False
        self._step(params, grads)
        return True

    def step_claimed(self, object params, object grads):
        """`step` for a caller that has the claim and has set the numbers."""
        self._step(params, grads)

    cdef int _step(self, object params, object grads) except -1:
        cdef PyObject *only[2]
        cdef PyObject **param = only
        cdef PyObject **grad = only + 1
        cdef c.rmsp_outcome outcome
        cdef c.rmsp_found found
        only[0] = <PyObject *>params
        only[1] = <PyObject *>grads
        try:
            if self.root is not None and not self._borrow(only[0], only[1], &param, &grad):
                self._collect(params, grads)
                param, grad = self.leaves, self.leaves + self.plan.leaf_count
            if self.has_tensors:
                self._prepare_tensors(&param, &grad)
            if not self.plan.bound or not self._bind_again(param, grad):
                self._bind(&param, &grad)
            if _core.is_large(max(self.plan.work.bytes, self.whole.bytes if self.plan.rules.accumulate > 1 else 0)):
                self._hold(&param, &grad)
                with nogil:
                    outcome = _core.step(&self.plan, &found)
            else:
                outcome = _core.step(&self.plan, &found)
        finally:
            self.prepared = None
            if self.held:
                self._release_leaves()
        if outcome == c.RMSP_STEPPED and not self.steady:
            self.current = False
        elif outcome == c.RMSP_NONFINITE:
            name = title("gradient", self._path(found.leaf))
            raise FloatingPointError(f"{name} has {found.count} of {found.size} elements that are not finite")
        return 0

    cdef str _path(self, size_t i):
        return tuple(self.structure.paths())[i]

    cdef str _name(self, size_t i):
        """What messages call a leaf, parameters before gradients."""
        cdef size_t n = self.plan.leaf_count
        return title("gradient" if i >= n else "parameter", self._path(i % n))

    # ---- leaves ----

    cdef bint _borrow(self, PyObject *params, PyObject *grads, PyObject ***param, PyObject ***grad) except -1:
        """Find the leaves without running Python code, borrowed; False where that cannot be."""
        cdef size_t n = self.plan.leaf_count
        if RMSP_FREE_THREADED:
            if not take(self.root, <object>params, self.leaves, &self.held) or not take(
                self.root, <object>grads, self.leaves, &self.held
            ):
                self._release_leaves()
                return False
        elif self.root.flat and PyList_CheckExact(params) and PyList_CheckExact(grads):
            if <size_t>PyList_GET_SIZE(<object>params) != n or <size_t>PyList_GET_SIZE(<object>grads) != n:
                return False
            param[0] = PySequence_Fast_ITEMS(params)
            grad[0] = PySequence_Fast_ITEMS(grads)
            return True
        param[0] = self.leaves
        grad[0] = self.leaves + n
        return RMSP_FREE_THREADED or (
            borrow(self.root, params, self.leaves) != NULL and borrow(self.root, grads, self.leaves + n) != NULL
        )

    cdef int _collect(self, object params, object grads) except -1:
        """Find the leaves by whatever code the containers have, with references."""
        cdef size_t n = self.plan.leaf_count
        cdef c.rmsp_array one, other
        if not RMSP_FREE_THREADED and borrow(self.root, <PyObject *>params, self.leaves) != NULL:
            self._take_references(n)
        else:
            # A container with code of its own may give new copies at each access; a step on them would be lost.
            leaves = list(self.structure.leaves(params, "parameter"))
            again = list(self.structure.leaves(params, "parameter"))
            for i in range(n):
                self.leaves[i] = <PyObject *>leaves[i]
            self._take_references(n)
            for i in range(n):
                describe(self.leaves[i], &one)
                describe(<PyObject *>again[i], &other)
                if one.problem == c.RMSP_OK and other.problem == c.RMSP_OK and one.data != other.data:
                    raise ValueError(
                        f"{title('parameter', self._path(i))} is another array at each access to its container: "
                        "a step would be lost; pass the arrays themselves"
                    )
        leaves = list(self.structure.leaves(grads))
        for i in range(n):
            self.leaves[n + i] = <PyObject *>leaves[i]
        self._take_references(2 * n)
        return 0

    cdef void _take_references(self, size_t end) noexcept:
        """Hold a reference to each of the leaves up to `end`."""
        cdef size_t i
        for i in range(self.held, end):
            Py_INCREF(<object>self.leaves[i])
        self.held = end

    cdef void _hold(self, PyObject ***param, PyObject ***grad) noexcept:
        """Hold references to all leaves, in a place of the plan's own."""
        cdef size_t i, n = self.plan.leaf_count
        if self.held:
            return
        if param[0] != self.leaves:
            for i in range(n):
                self.leaves[i] = param[0][i]
                self.leaves[n + i] = grad[0][i]
        self._take_references(2 * n)
        param[0] = self.leaves
        grad[0] = self.leaves + n

    cdef int _release_leaves(self) except -1:
        cdef size_t i, end = self.held
        self.held = 0
        for i in range(end):
            Py_DECREF(<object>self.leaves[i])
        return 0

    # ---- binding ----

    cdef inline bint _bind_again(self, PyObject **param, PyObject **grad) noexcept:
        """Bind arrays like those of the last step; False where rmsp_bind must decide."""
        cdef size_t i, n = self.plan.leaf_count
        cdef bint has_all = True
        for i in range(n):
            if i + 8 < n:
                prefetch(param + i, grad + i)
            if Py_TYPE(<object>param[i]) == NDARRAY and Py_TYPE(<object>grad[i]) == NDARRAY:
                if not bind_ndarrays(&self.plan, i, param[i], grad[i]):
                    return False
            elif bind_others(&self.plan, i, param[i], grad[i], self.has_tensors):
                has_all &= self.plan.leaves[i].array[<int>c.RMSP_GRAD] != NULL
            else:
                return False
        self.plan.work = self.whole if has_all else _core.plan_work(&self.plan)
        return True

    cdef int _make_room(self) except -1:
        if self.described == NULL:
            self.described = <c.rmsp_array *>PyMem_Calloc(self.kinds * self.plan.leaf_count, sizeof(c.rmsp_array))
            self.strides = <ptrdiff_t *>PyMem_Calloc(self.kinds * (self.shape_count // 3), sizeof(ptrdiff_t))
            if self.described == NULL or self.strides == NULL:
                raise MemoryError()
        return 0

    cdef inline void _describe(self, PyObject *o, size_t i, int k) noexcept:
        """Describe what is array k of a leaf, where rmsp_bind reads it."""
        cdef c.rmsp_slot *slot = &self.plan.slots[i]
        cdef size_t at = k * (self.shape_count // 3) + (slot.shape - self.shapes) // 3
        describe(o, &self.described[k * self.plan.leaf_count + i], self.strides + at, slot.ndim)

    cdef int _prepare_tensors(self, PyObject ***param, PyObject ***grad) except -1:
        """Ask tensors what descriptors do not show, and count a write to those that are parameters, as autograd wants
        it of an operation in place."""
        cdef size_t i, n = self.plan.leaf_count
        cdef c.rmsp_array array
        cdef object leaf, seen
        self._hold(param, grad)
        written = [
            <object>self.leaves[i] for i in range(n)
            if is_tensor(self.leaves[i]) and self.leaves[n + i] != <PyObject *>None
        ]
        for i in range(2 * n):
            if not is_tensor(self.leaves[i]):
                continue
            leaf = <object>self.leaves[i]
            if describe_by_table == NULL:
                try:
                    seen = seen_as(leaf)
                except (RuntimeError, TypeError) as error:
                    raise TypeError(f"{self._name(i)}: {error}") from error
                Py_INCREF(seen)
                self.leaves[i] = <PyObject *>seen
                Py_DECREF(leaf)
                continue
            describe(self.leaves[i], &array)
            if array.problem == c.RMSP_OK and may_be_lazy(&array) and has_lazy_bits(leaf):
                raise refusal("lazy_bits", self._name(i), leaf)
        # Calls that only accumulate write to no parameter.
        if written and self.claim.counts.accumulated + 1 >= self.plan.rules.accumulate:
            increment_version(written)
        return 0

    cdef int _bind(self, PyObject ***param, PyObject ***grad) except -1:
        """Bind any arrays, or raise."""
        cdef size_t i, n = self.plan.leaf_count
        cdef tuple pair
        self._make_room()
        if not self.has_tensors and self._find_tensors(param, grad):
            self.has_tensors = True
            self._prepare_tensors(param, grad)
        for i in range(n):
            if is_row_grad(grad[0][i]):
                self._hold(param, grad)
                if self.prepared is None:
                    self.prepared = [None] * n
                self.prepared[i] = self._prepare_rows(i, <object>grad[0][i])
        for i in range(n):
            self._describe(param[0][i], i, c.RMSP_PARAM)
            if self.prepared is None or self.prepared[i] is None:
                self._describe(grad[0][i], i, c.RMSP_GRAD)
                continue
            pair = <tuple>self.prepared[i]
            self._describe(<PyObject *>pair[1], i, c.RMSP_GRAD)
            if self.described[n + i].problem == c.RMSP_ABSENT:
                self.described[n + i].problem = c.RMSP_NOT_AN_ARRAY  # rows without values are not a missing gradient
            self.described[n + i].rows = <const ptrdiff_t *>cnp.PyArray_DATA(<cnp.ndarray>pair[0])
            self.described[n + i].row_count = <size_t>cnp.PyArray_DIM(<cnp.ndarray>pair[0], 0)
        return self._bind_described(param[0], grad[0])

    cdef bint _find_tensors(self, PyObject ***param, PyObject ***grad) except -1:
        """Whether any leaf is a tensor."""
        cdef size_t i
        cdef int k
        cdef PyObject *leaf
        for i in range(self.plan.leaf_count):
            for k in range(2):
                leaf = grad[0][i] if k else param[0][i]
                if Py_TYPE(<object>leaf) == NDARRAY:
                    continue
                if c.rmsp_published(&TENSOR) == NULL and is_instance_of(leaf, TORCH, TENSOR_NAME):
                    self._hold(param, grad)
                    find_tensors_once()
                if is_tensor(leaf):
                    return True
        return False

    cdef tuple _prepare_rows(self, size_t i, object grad):
        """Rows of a gradient in a private array, and their values."""
        cdef c.rmsp_slot *slot = &self.plan.slots[i]
        values = grad.values
        if find_if_tensor(<PyObject *>values):
            grad = RowGrad(grad.rows, as_ndarray(values))
        rows, values = merge_rows(self._path(i), grad, tuple([slot.shape[axis] for axis in range(slot.ndim)]))
        return <cnp.ndarray?>rows, values

    cdef int _bind_described(self, PyObject **param, PyObject **grad) except -1:
        cdef c.rmsp_refusal where
        cdef int reason = self._call_bind(grad != NULL, &where)
        if reason != c.RMSP_OK:
            self._refuse(<c.rmsp_reason>reason, &where, param, grad)
        return 0

    cdef int _call_bind(self, bint has_grads, c.rmsp_refusal *where) except -1:
        """What rmsp_bind finds of all that was described."""
        cdef const c.rmsp_array *arrays[c.RMSP_ARRAY_COUNT]
        cdef c.rmsp_reason reason
        cdef int k
        for k in range(c.RMSP_ARRAY_COUNT):
            arrays[k] = self.described + k * self.plan.leaf_count if k < self.kinds else NULL
        if not has_grads:
            arrays[<int>c.RMSP_GRAD] = NULL
        reason = _core.bind(&self.plan, arrays, where)
        if reason == c.RMSP_NEEDS_AXES:
            self.axes = <c.rmsp_axis *>PyMem_Calloc(_core.axis_count(&self.plan), sizeof(c.rmsp_axis))
            if self.axes == NULL:
                raise MemoryError()
            _core.use_axes(&self.plan, self.axes)
            reason = _core.bind(&self.plan, arrays, where)
        return reason

    cdef int _refuse(self, c.rmsp_reason reason, c.rmsp_refusal *where, PyObject **param, PyObject **grad) except -1:
        """Raise what rmsp_bind found, in words."""
        cdef c.rmsp_slot *slot = &self.plan.slots[where.leaf]
        cdef bint is_grad = where.array == c.RMSP_GRAD, overlaps = reason == c.RMSP_OVERLAP
        # Borrowed references are read or taken over first: what follows may run Python code.
        cdef object array = <object>(grad if is_grad else param)[where.leaf]
        if where.array > c.RMSP_GRAD:
            array = <object>self.leaves[where.array * self.plan.leaf_count + where.leaf]
        cdef bint is_other = (
            overlaps and where.other_array == c.RMSP_PARAM and param[where.other_leaf] == <PyObject *>array
        )
        rows = self.described[self.plan.leaf_count + where.leaf].row_count if is_grad and is_row_grad(
            <PyObject *>array
        ) else None
        shape = tuple([slot.shape[axis] for axis in range(slot.ndim)])
        paths = tuple(self.structure.paths())
        other = None
        if overlaps and is_grad and where.other_leaf == where.leaf:
            other = f"its {ARRAYS[where.other_array]}"
        elif overlaps:
            other = title(ARRAYS[where.other_array], paths[where.other_leaf])
        owner = "its square_avg" if where.array == c.RMSP_PARAM else "its parameter"
        if where.array > c.RMSP_GRAD and self._type_of(where.leaf, where.array) != slot.type:
            owner = "that of such a parameter"
        raise refusal(
            _core.reason_name(reason).decode(),
            title(ARRAYS[where.array], paths[where.leaf]),
            array,
            shape=shape,
            dtype=self._dtype(where.leaf, where.array),
            owner=owner,
            rows=rows,
            other=other,
            is_other=is_other,
            supported=SUPPORTED,
        )

    cdef object _dtype(self, size_t i, int k):
        """What array k of a leaf must have, for messages."""
        cdef int type = self.plan.slots[i].type if k <= c.RMSP_GRAD else self._type_of(i, k)
        if type == c.RMSP_LOW16:
            return "int16"
        return BFLOAT16 if type == c.RMSP_BF16 else cnp.PyArray_DescrFromType(num_of_type(type))


include "_tensors.pxi"


@cython.auto_pickle(False)
cdef class PlanOwner:
    """What a plan belongs to. Here it is found without a lookup by name, which takes a third of the step of one small
    array where the caches hold other things (bench/NOTES.md).

    The claim stays the same one for good, so that whoever finds it finds the plan that it is of: only a caller that has
    the claim may give another plan. A subclass has `_step_with_new_numbers`, which update_ calls where the plan needs
    other coefficients.
    """
    cdef public _core.Claim _claim
    cdef object plan

    @property
    def _plan(self):
        with cython.critical_section(self):
            return self.plan

    @_plan.setter
    def _plan(self, plan):
        with cython.critical_section(self):
            self.plan = plan


cdef inline bint is_state(object owner) noexcept:
    return isinstance(owner, PlanOwner) and (<PlanOwner>owner)._claim is not None


def check_state(object owner, object params, object grads):
    """Refuse what is given as a state and is none.

    Raises
    ------
    TypeError
        If `owner` is no state; the message says so if `params` or `grads` is one.
    """
    if not is_state(owner):
        raise no_state(owner, is_state(params) or is_state(grads))


cdef bint step(object owner, object params, object grads, object lr, object grad_scale) except -1:
    cdef _core.Claim claim
    if not isinstance(owner, PlanOwner) or (<PlanOwner>owner)._claim is None:
        check_state(owner, params, grads)  # raises
    claim = (<PlanOwner>owner)._claim
    _core.take(claim)
    try:
        if type((<PlanOwner>owner).plan) is not Plan:
            raise no_state(owner, False)
        return (<Plan>(<PlanOwner>owner).plan).try_step(params, grads, lr, grad_scale)
    finally:
        _core.release(claim)


include "_functional.pxi"
