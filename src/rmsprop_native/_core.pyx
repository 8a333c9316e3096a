# cython: language_level=3
"""The only module that touches C: the plan of a step, and control of instruction set and threads.

a) A plan is a cache: what is known of the arrays of one state, laid out for one C call a step. It owns no number
   that the state does not have, is dropped by pickle, and is made again when other parameters come.
b) A step checks every array, then writes. Nothing between the first write and the last can fail. The usual small step
   runs no Python code from its first look at the leaves to its last write, so it may borrow them; any other takes a
   snapshot of the leaves as tuples, which no other thread can change.
c) A usual gradient passes a handful of comparisons in `is_plain`. What fails any of them goes to `_admit`, which
   decides in full, with the checks of arrays.py: it raises, or finds the layout.
d) The GIL is released for work that is worth threads (rmsp_grain); meanwhile the plan is busy, and a second step on it
   is refused.
e) Indices into a plan's C arrays follow the leaves; they are never taken from a caller.
"""

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_AsTuple
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject, PyTypeObject, Py_TYPE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.math cimport fabs, isfinite, sqrt
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t
from libc.string cimport memset

from rmsprop_native cimport rmsp as c

from rmsprop_native.arrays import RowGrad, check_distinct, check_gradient, check_parameter, merge_rows, title
from rmsprop_native.tree import DICT, EMPTY, FIELDS, LEAF, SEQUENCE

cnp.import_array()
cnp.import_ufunc()
c.rmsp_isa_init()

cdef extern from "Python.h":
    bint PyDict_CheckExact(object o) noexcept
    Py_ssize_t PyDict_Size(object o) noexcept
    int PyDict_Next(object o, Py_ssize_t *place, PyObject **key, PyObject **value) noexcept
    bint PyList_CheckExact(object o) noexcept
    bint PyTuple_Check(object o) noexcept
    bint PyUnicode_CheckExact(object o) noexcept
    int PyUnicode_Compare(object one, object other) noexcept
    Py_ssize_t PySequence_Fast_GET_SIZE(object o) noexcept
    PyObject **PySequence_Fast_ITEMS(object o) noexcept

cdef extern from *:
    """
    #define rmsp_tuple_items(t) (&PyTuple_GET_ITEM(t, 0))
    """
    PyObject **rmsp_tuple_items(PyObject *t) noexcept

cdef PyTypeObject *NDARRAY = <PyTypeObject *>np.ndarray

cdef int KIND_EMPTY = EMPTY, KIND_DICT = DICT, KIND_SEQUENCE = SEQUENCE, KIND_FIELDS = FIELDS

# The arrays of a state, in the order of the enum that begins with RMSP_PARAM, RMSP_GRAD.
BUFFERS = ("square_avg", "momentum_buffer", "grad_avg", "ema", "grad_sum")

cdef dict MOMENTUM = {
    "none": c.RMSP_MOMENTUM_NONE, "classic": c.RMSP_MOMENTUM_CLASSIC, "nesterov": c.RMSP_MOMENTUM_NESTEROV
}


# ---- leaves ----

cdef class Node:
    # A Tree with its fields in C, for a quick walk.
    cdef int kind
    cdef Py_ssize_t count
    cdef tuple keys, children
    cdef type container
    cdef PyObject **key
    cdef PyObject **child

    def __init__(self, object tree):
        self.kind = tree.kind
        self.count = len(tree.children)
        self.keys = tree.keys
        self.children = tuple([None if child.kind == LEAF else Node(child) for child in tree.children])
        self.container = tree.container
        self.key = rmsp_tuple_items(<PyObject *>self.keys)
        self.child = rmsp_tuple_items(<PyObject *>self.children)


cdef bint borrow(Node node, PyObject *tree, PyObject **into, size_t *filled) noexcept:
    """Collect the leaves of `tree`, borrowed, where this takes no code but C's: exact lists, tuples and dicts with the
    keys in the order of `node`, which are the same or equal strings. False where it would, or the structure differs."""
    cdef Py_ssize_t i, place = 0
    cdef PyObject *found
    cdef PyObject *value
    cdef PyObject **items = NULL
    if node.kind == KIND_DICT:
        if not PyDict_CheckExact(<object>tree) or PyDict_Size(<object>tree) != node.count:
            return False
    elif PyList_CheckExact(<object>tree) or PyTuple_Check(<object>tree):
        if PySequence_Fast_GET_SIZE(<object>tree) != node.count or node.kind != KIND_SEQUENCE:
            return False
        items = PySequence_Fast_ITEMS(<object>tree)
    else:
        return node.kind == KIND_EMPTY and <object>tree is None
    for i in range(node.count):
        if items != NULL:
            value = items[i]
        else:
            PyDict_Next(<object>tree, &place, &found, &value)
            if found != node.key[i] and not (
                PyUnicode_CheckExact(<object>found)
                and PyUnicode_CheckExact(<object>node.key[i])
                and PyUnicode_Compare(<object>found, <object>node.key[i]) == 0
            ):
                return False
        if <object>node.child[i] is None:
            into[filled[0]] = value
            filled[0] += 1
        elif not borrow(<Node>node.child[i], value, into, filled):
            return False
    return True


cdef tuple hold(PyObject **leaves, size_t count):
    """A tuple of leaves, which keeps them alive while other threads run."""
    cdef size_t i
    cdef tuple held = PyTuple_New(count)
    for i in range(count):
        Py_INCREF(<object>leaves[i])
        PyTuple_SET_ITEM(held, i, <object>leaves[i])
    return held


@cython.boundscheck(False)
@cython.wraparound(False)
cdef int gather(Node node, object tree, tuple into, Py_ssize_t *filled) except -1:
    """Add the leaves of `tree` to a new tuple; 0 where its structure is not that of `node`, 1 where it is.

    For each step of the walk there is an owned reference: what a container's own code does can free nothing here.
    """
    cdef Py_ssize_t i
    cdef tuple items = None
    cdef PyObject *found
    if node.kind == KIND_EMPTY:
        return tree is None
    if node.kind == KIND_DICT:
        if not isinstance(tree, dict) or len(<dict>tree) != node.count:
            return 0
    elif node.kind == KIND_FIELDS:
        if not isinstance(tree, node.container):
            return 0
    else:
        if not isinstance(tree, (list, tuple)):
            return 0
        items = tuple(tree)
        if len(items) != node.count:
            return 0
    for i in range(node.count):
        if node.kind == KIND_DICT:
            found = PyDict_GetItemWithError(tree, node.keys[i])
            if found == NULL:
                return 0
            value = <object>found
        elif node.kind == KIND_FIELDS:
            value = getattr(tree, node.keys[i])
        else:
            value = items[i]
        if node.children[i] is None:
            Py_INCREF(value)
            PyTuple_SET_ITEM(into, filled[0], value)
            filled[0] += 1
        elif not gather(<Node>node.children[i], value, into, filled):
            return 0
    return 1


# ---- the plan ----

cdef struct extras:
    # What rmsp_extra points to; apart from the slots, so that these stay dense.
    c.rmsp_extra c
    c.rmsp_rows rows
    c.rmsp_layout *layout
    c.rmsp_layout *grad_order


cdef struct slot:
    # What a step compares a gradient with, beside its parameter.
    int contiguous  # the flag that all arrays must have to be worked on as they lie; 0 where the leaf's own do not
    size_t reals  # 2 for complex numbers, which are pairs of reals
    size_t n  # reals of the parameter
    extras *standing  # NULL where a plain gradient needs no extras


cdef inline bint meet(const void *one, const void *other, size_t size) noexcept:
    """Whether two pieces of memory of `size` bytes, not 0, overlap."""
    return <uintptr_t>one - <uintptr_t>other + (size - 1) < 2 * size - 1


cdef inline bint is_plain(c.rmsp_leaf *leaf, slot *s, PyObject *param, PyObject *grad) noexcept:
    """Whether a gradient, and still its parameter, are what they usually are; if so, the leaf points at them."""
    cdef int axis, ndim
    cdef int flags = s.contiguous | cnp.NPY_ARRAY_ALIGNED
    cdef size_t n = s.reals, size
    cdef void *p
    cdef void *g
    if Py_TYPE(<object>grad) != NDARRAY or s.contiguous == 0:
        return False
    ndim = cnp.PyArray_NDIM(<cnp.ndarray>param)
    if (
        <PyObject *>cnp.PyArray_DESCR(<cnp.ndarray>grad) != <PyObject *>cnp.PyArray_DESCR(<cnp.ndarray>param)
        or cnp.PyArray_NDIM(<cnp.ndarray>grad) != ndim
        or not cnp.PyArray_CHKFLAGS(<cnp.ndarray>grad, flags)
        or not cnp.PyArray_CHKFLAGS(<cnp.ndarray>param, flags | cnp.NPY_ARRAY_WRITEABLE)
    ):
        return False
    for axis in range(ndim):
        if cnp.PyArray_DIM(<cnp.ndarray>grad, axis) != cnp.PyArray_DIM(<cnp.ndarray>param, axis):
            return False
        n *= <size_t>cnp.PyArray_DIM(<cnp.ndarray>param, axis)
    if n != s.n or (s.standing != NULL and not cnp.PyArray_CHKFLAGS(<cnp.ndarray>grad, cnp.NPY_ARRAY_C_CONTIGUOUS)):
        return False
    p = cnp.PyArray_DATA(<cnp.ndarray>param)
    g = cnp.PyArray_DATA(<cnp.ndarray>grad)
    size = n * (4 if leaf.dtype == c.RMSP_F32 else 8)
    if size != 0 and (
        meet(g, p, size)
        or meet(g, leaf.array[c.RMSP_SQUARE_AVG], size)
        or meet(g, leaf.array[c.RMSP_MOMENTUM_BUFFER], size)
        or meet(g, leaf.array[c.RMSP_GRAD_AVG], size)
        or (s.standing != NULL and (meet(g, s.standing.c.ema, size) or meet(g, s.standing.c.grad_sum, size)))
    ):
        return False
    leaf.array[c.RMSP_PARAM] = p
    leaf.array[c.RMSP_GRAD] = g
    leaf.n = n
    leaf.extra = NULL
    if s.standing != NULL:
        leaf.extra = &s.standing.c
        s.standing.c.layout = s.standing.c.grad_order = NULL
        s.standing.c.rows = NULL
    return True


cdef list runs_of(tuple shape, dict strides, list axes, size_t reals, size_t real):
    """Lengths and strides of arrays over `axes`, those that lie in one run joined; `strides` are by array."""
    runs = [(shape[axis], {k: of_array[axis] for k, of_array in strides.items()}) for axis in axes if shape[axis] != 1]
    if reals == 2 or not runs:
        runs.append((reals, dict.fromkeys(strides, real)))
    joined = runs[:1]
    for length, inner in runs[1:]:
        outer_length, outer = joined[-1]
        if all([outer[k] == inner[k] * length for k in inner]):
            joined[-1] = (outer_length * length, inner)
        else:
            joined.append((length, inner))
    return joined


cdef c.rmsp_layout *store_layout(c.rmsp_layout **memory, list runs, size_t real) except? NULL:
    """The runs as a layout in `memory`, made at need; NULL, without an exception, if they are dense."""
    cdef int axis, k
    if len(runs) == 1 and all([stride == real for stride in runs[0][1].values()]):
        return NULL
    if memory[0] == NULL:
        memory[0] = <c.rmsp_layout *>PyMem_Calloc(1, sizeof(c.rmsp_layout))
        if memory[0] == NULL:
            raise MemoryError()
    memory[0].ndim = len(runs)
    for axis, (length, strides) in enumerate(runs):
        memory[0].shape[axis] = length
        for k, stride in strides.items():
            memory[0].stride[k][axis] = stride
    return memory[0]


cdef class Plan:
    """What is known of the arrays of one state, laid out for one C call a step.

    Parameters
    ----------
    structure : Tree
        Of the parameters.
    params : tuple of numpy.ndarray
        The leaves; `step` writes them.
    buffers : tuple of tuple of (numpy.ndarray or None)
        For each leaf its arrays in the order of BUFFERS, of its shape and dtype.
    leaf_groups : tuple of int
        For each leaf the index of its group of hyper-parameters.
    seen : bytearray
        Of the state: the leaves that had a gradient since the last step; `step` writes it while accumulating.

    Raises
    ------
    TypeError, ValueError
        If a step could not write to an array, or two of them share memory.
    """
    cdef c.rmsp_plan plan
    cdef slot *slots
    cdef extras *extras
    cdef double *sums
    cdef c.rmsp_work whole  # where every leaf has a gradient
    cdef PyObject **borrowed  # room for the leaves of two trees
    cdef tuple params, buffers, paths, dtypes
    cdef bytearray seen
    cdef list held  # what rows need while a step runs
    cdef object structure
    cdef Node root  # None where the parameters are a lone array
    cdef bint is_flat, has_extras, has_norms
    cdef object options, lr, grad_scale  # what the coefficients in the groups come from; options None: make them anew
    cdef readonly bint busy

    def __init__(self, object structure, tuple params, tuple buffers, tuple leaf_groups, bytearray seen):
        cdef size_t i
        self.structure = structure
        self.root = None if structure.kind == LEAF else Node(structure)
        self.is_flat = structure.kind == SEQUENCE and structure.flat
        self.params = params
        self.buffers = buffers
        self.paths = tuple(structure.paths())
        self.seen = seen
        self.held = []
        self.plan.leaf_count = len(params)
        self._check_arrays()
        self.dtypes = tuple({array.real.dtype for array in params})
        self.plan.leaves = <c.rmsp_leaf *>PyMem_Calloc(self.plan.leaf_count, sizeof(c.rmsp_leaf))
        self.plan.groups = <c.rmsp_group *>PyMem_Calloc(max(leaf_groups, default=0) + 1, sizeof(c.rmsp_group))
        self.slots = <slot *>PyMem_Calloc(self.plan.leaf_count, sizeof(slot))
        self.extras = <extras *>PyMem_Calloc(self.plan.leaf_count, sizeof(extras))
        self.borrowed = <PyObject **>PyMem_Calloc(2 * self.plan.leaf_count, sizeof(PyObject *))
        if self.borrowed == NULL:
            raise MemoryError()
        if self.plan.leaves == NULL or self.plan.groups == NULL or self.slots == NULL or self.extras == NULL:
            raise MemoryError()
        for i in range(self.plan.leaf_count):
            self.plan.leaves[i].group = leaf_groups[i]
            self._place(i)
            # For the sum of the work any address does for the gradient.
            self.plan.leaves[i].array[c.RMSP_GRAD] = self.plan.leaves
            c.rmsp_add_work(&self.whole, &self.plan.leaves[i])

    def __dealloc__(self):
        cdef size_t i
        if self.extras != NULL:
            for i in range(self.plan.leaf_count):
                PyMem_Free(self.extras[i].layout)
                PyMem_Free(self.extras[i].grad_order)
        PyMem_Free(self.extras)
        PyMem_Free(self.borrowed)
        PyMem_Free(self.slots)
        PyMem_Free(self.sums)
        PyMem_Free(self.plan.groups)
        PyMem_Free(self.plan.leaves)

    cdef int _check_arrays(self) except -1:
        named = []
        for i in range(len(self.params)):
            named.append((title("parameter", self.paths[i]), self.params[i]))
            named += [(title(name, self.paths[i]), array) for name, array in self._kept(i)]
        for name, array in named:
            check_parameter(name, array)
        check_distinct(named)
        return 0

    cdef list _kept(self, size_t i):
        """The names and arrays of the buffers that leaf `i` has."""
        return [(name, array) for name, array in zip(BUFFERS, self.buffers[i], strict=True) if array is not None]

    cdef int _place(self, size_t i) except -1:
        """Fill in what does not depend on the gradient."""
        cdef c.rmsp_leaf *leaf = &self.plan.leaves[i]
        cdef slot *s = &self.slots[i]
        cdef int k, order
        cdef void *data[7]
        param = self.params[i]
        s.reals = 2 if param.dtype.kind == "c" else 1
        s.n = leaf.n = param.size * s.reals
        leaf.dtype = c.RMSP_F32 if param.real.dtype == np.float32 else c.RMSP_F64
        for k, array in enumerate(self.buffers[i], c.RMSP_SQUARE_AVG):
            data[k] = NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray?>array)
            if k < c.RMSP_EMA:
                leaf.array[k] = data[k]
        self.extras[i].c.ema = data[<int>c.RMSP_EMA]
        self.extras[i].c.grad_sum = data[<int>c.RMSP_GRAD_SUM]
        self.extras[i].c.clip = 1.0
        written = [param] + [array for _, array in self._kept(i)]
        for order in (cnp.NPY_ARRAY_F_CONTIGUOUS, cnp.NPY_ARRAY_C_CONTIGUOUS):
            if all([cnp.PyArray_CHKFLAGS(<cnp.ndarray>array, order) for array in written]):
                s.contiguous = order
        return 0

    def step(self, object params, object grads, object state, object lr, object grad_scale):
        """Check everything, then step every leaf that has a gradient, or accumulate or skip, and count it.

        Parameters
        ----------
        params, grads : array or nested container of arrays
            Of the structure of the plan; a gradient may be None or a RowGrad.
        state : State
            Whose plan this is.
        lr : float or None
            In place of the state's, for this step.
        grad_scale : float
            Factor on the gradients.

        Returns
        -------
        bool
            False if nothing was done, because `params` are not those of the plan.

        Raises
        ------
        TypeError, ValueError
            If a gradient, `lr` or `grad_scale` is refused. Nothing has been written then.
        IndexError
            If a RowGrad has a row that its parameter has not.
        FloatingPointError
            If a gradient is not finite and ``on_nonfinite="raise"``. Nothing has been written then either.
        RuntimeError
            If another thread is inside a step of this state.
        """
        cdef PyObject *only_param = <PyObject *>params
        cdef PyObject *only_grad = <PyObject *>grads
        cdef PyObject **grad
        cdef c.rmsp_work work

        if self.busy:
            raise RuntimeError("another thread is inside a step of this state; give each thread a state of its own")
        if (
            state._options is not self.options
            or (lr is not self.lr and lr != self.lr)
            or (grad_scale is not self.grad_scale and grad_scale != self.grad_scale)
        ):
            self._set_coefficients(state, lr, grad_scale)

        if self.root is None:
            grad = &only_grad
            if not self._take_plain(&only_param, grad, &work):
                if only_param != rmsp_tuple_items(<PyObject *>self.params)[0]:
                    return False
                work = self._take((grads,))
        else:
            grad = self._take_borrowed(only_param, only_grad, &work)
            if grad != NULL and work.bytes > c.rmsp_grain:
                held = hold(grad, self.plan.leaf_count)
                grad = rmsp_tuple_items(<PyObject *>held)
            elif grad == NULL:
                param_leaves = self._snapshot(params)
                if param_leaves is None or not self._knows(param_leaves):
                    return False
                grad_leaves = self._snapshot(grads)
                if grad_leaves is None:
                    for _ in self.structure.leaves(grads):  # raises, and says where
                        pass
                    raise ValueError("the gradients changed while they were read")
                work = self._take(grad_leaves)
                grad = rmsp_tuple_items(<PyObject *>grad_leaves)

        self.busy = True
        try:
            if self.has_extras:
                self._step_with_extras(state, grad, work)
            else:
                self._run(c.RMSP_STEP, work)
                state.step += 1
        finally:
            self.busy = False
            if self.held:
                self.held.clear()
        return True

    cdef int _run(self, c.rmsp_op op, c.rmsp_work work) except -1:
        """An operation over all leaves, without the GIL if it is worth it."""
        if work.bytes > c.rmsp_grain:
            with nogil:
                c.rmsp_plan_run(&self.plan, op, work)
        else:
            c.rmsp_plan_run(&self.plan, op, work)
        return 0

    cdef int _step_with_extras(self, object state, PyObject **grad, c.rmsp_work work) except -1:
        """Look for NaN and infinity, accumulate, clip by norm, step: what each of them is wanted for."""
        cdef size_t i
        cdef int accumulate = state._options.accumulate
        if state._options.on_nonfinite != "propagate":
            self._run(c.RMSP_SUMSQ, work)
            for i in range(self.plan.leaf_count):
                if self.plan.leaves[i].array[c.RMSP_GRAD] == NULL or isfinite(c.rmsp_leaf_sumsq(&self.plan.leaves[i])):
                    continue
                values = <object>grad[i]
                values = values.values if isinstance(values, RowGrad) else values
                count = values.size - np.count_nonzero(np.isfinite(values))  # 0 where only the sum overflowed
                if count and state._options.on_nonfinite == "skip":
                    state.skipped += 1
                    return 0
                if count:
                    name = title("gradient", self.paths[i])
                    raise FloatingPointError(f"{name} has {count} of {values.size} elements that are not finite")
        if accumulate > 1:
            self._run(c.RMSP_ACCUMULATE, work)
            for i in range(self.plan.leaf_count):
                if self.plan.leaves[i].array[c.RMSP_GRAD] != NULL:
                    self.seen[i] = 1
            state.accumulated += 1
            if state.accumulated < accumulate:
                return 0
            work = self._take_sums()
        if self.has_norms:
            self._run(c.RMSP_SUMSQ, work)
            self._clip(state)
        self._run(c.RMSP_STEP, work)
        if accumulate > 1:
            for i in range(self.plan.leaf_count):
                if self.seen[i]:
                    memset(self.extras[i].c.grad_sum, 0, self.slots[i].n * self._item_size(i))  # dense: ours
                    self.seen[i] = 0
            state.accumulated = 0
        state.step += 1
        return 0

    cdef size_t _item_size(self, size_t i) noexcept:
        return 4 if self.plan.leaves[i].dtype == c.RMSP_F32 else 8

    cdef c.rmsp_work _take_sums(self) except *:
        """Make the accumulated sums the gradients; returns how much work they are."""
        cdef size_t i
        cdef c.rmsp_work work = c.rmsp_work(0, 0)
        for i in range(self.plan.leaf_count):
            self.plan.leaves[i].array[c.RMSP_GRAD] = NULL
            if not self.seen[i]:
                continue
            if self.slots[i].contiguous == cnp.NPY_ARRAY_C_CONTIGUOUS:
                self.plan.leaves[i].array[c.RMSP_PARAM] = cnp.PyArray_DATA(<cnp.ndarray?>self.params[i])
                self.plan.leaves[i].array[c.RMSP_GRAD] = self.extras[i].c.grad_sum
                self.plan.leaves[i].n = self.slots[i].n
                self.plan.leaves[i].extra = &self.extras[i].c
                self.extras[i].c.layout = self.extras[i].c.grad_order = NULL
            else:
                self._point(i, self.buffers[i][<int>c.RMSP_GRAD_SUM - <int>c.RMSP_SQUARE_AVG])
            c.rmsp_add_work(&work, &self.plan.leaves[i])
        return work

    cdef int _clip(self, object state) except -1:
        """Set the factor on each gradient whose norm is over its limit."""
        cdef size_t i
        cdef double total = 0.0, norm
        cdef object common = state._options.clip_global_norm
        for i in range(self.plan.leaf_count):
            if common is not None and self.plan.leaves[i].array[c.RMSP_GRAD] != NULL:
                total += c.rmsp_leaf_sumsq(&self.plan.leaves[i])
        for i in range(self.plan.leaf_count):
            if self.plan.leaves[i].array[c.RMSP_GRAD] == NULL:
                continue
            limit = state._groups[self.plan.leaves[i].group][0].clip_norm if common is None else common
            norm = sqrt(c.rmsp_leaf_sumsq(&self.plan.leaves[i]) if common is None else total)
            norm = fabs(self.plan.groups[self.plan.leaves[i].group].coef.grad_scale) * norm
            self.extras[i].c.clip = <double>limit / norm if limit is not None and norm > <double>limit else 1.0
        return 0

    cdef bint _take_plain(self, PyObject **param, PyObject **grad, c.rmsp_work *work) noexcept:
        """Point the leaves at their arrays, if all are known and plain."""
        cdef PyObject **known = rmsp_tuple_items(<PyObject *>self.params)
        cdef size_t i
        for i in range(self.plan.leaf_count):
            if param[i] != known[i] or not is_plain(&self.plan.leaves[i], &self.slots[i], param[i], grad[i]):
                return False
        work[0] = self.whole
        return True

    cdef PyObject **_take_borrowed(self, PyObject *params, PyObject *grads, c.rmsp_work *work) noexcept:
        """The gradients, borrowed, if all leaves are known and plain and no code but C's was needed to see it, so that
        nothing can have changed or gone meanwhile; NULL if not."""
        cdef PyObject **param = self.borrowed
        cdef PyObject **grad = self.borrowed + self.plan.leaf_count
        cdef size_t filled = 0
        if self.is_flat and PyList_CheckExact(<object>params) and PyList_CheckExact(<object>grads):
            if (
                <size_t>PySequence_Fast_GET_SIZE(<object>params) != self.plan.leaf_count
                or <size_t>PySequence_Fast_GET_SIZE(<object>grads) != self.plan.leaf_count
            ):
                return NULL
            param, grad = PySequence_Fast_ITEMS(<object>params), PySequence_Fast_ITEMS(<object>grads)
        else:
            if not borrow(self.root, params, param, &filled):
                return NULL
            filled = 0
            if not borrow(self.root, grads, grad, &filled):
                return NULL
        return grad if self._take_plain(param, grad, work) else NULL

    cdef c.rmsp_work _take(self, tuple grads) except *:
        """Point the leaves at their gradients, whatever these are; how much work they are."""
        cdef size_t i
        cdef c.rmsp_work work = c.rmsp_work(0, 0)
        cdef PyObject **param = rmsp_tuple_items(<PyObject *>self.params)
        cdef PyObject **grad = rmsp_tuple_items(<PyObject *>grads)
        for i in range(self.plan.leaf_count):
            if not is_plain(&self.plan.leaves[i], &self.slots[i], param[i], grad[i]):
                self._admit(i, <object>grad[i])
            c.rmsp_add_work(&work, &self.plan.leaves[i])
        return work

    cdef bint _knows(self, tuple params) noexcept:
        """Whether these are the parameters of the plan."""
        cdef size_t i
        cdef PyObject **known = rmsp_tuple_items(<PyObject *>self.params)
        cdef PyObject **param = rmsp_tuple_items(<PyObject *>params)
        for i in range(self.plan.leaf_count):
            if param[i] != known[i]:
                return False
        return True

    cdef tuple _snapshot(self, object tree):
        """The leaves of `tree`, or None where its structure is another one."""
        cdef tuple leaves
        cdef Py_ssize_t filled = 0
        if self.is_flat:
            if not isinstance(tree, (list, tuple)):
                return None
            leaves = PyList_AsTuple(tree) if type(tree) is list else tuple(tree)
            return leaves if <size_t>len(leaves) == self.plan.leaf_count else None
        leaves = PyTuple_New(self.plan.leaf_count)
        return leaves if gather(self.root, tree, leaves, &filled) else None

    cdef int _admit(self, size_t i, object grad) except -1:
        """Decide in full on a gradient that is not plain: raise, or point the leaf at it."""
        cdef slot *s = &self.slots[i]
        self.plan.leaves[i].array[c.RMSP_GRAD] = NULL
        if grad is None:
            return 0
        path, param = self.paths[i], self.params[i]
        check_parameter(title("parameter", path), param)
        if param.size * s.reals != s.n:
            raise ValueError(f"{title('parameter', path)} has changed its size")
        written = [("parameter", param), *self._kept(i)]
        if not isinstance(grad, RowGrad):
            check_gradient(path, grad, param, written)
            return self._point(i, grad)
        if self.extras[i].c.grad_sum != NULL:
            raise ValueError(
                f"{title('gradient', path)} is a RowGrad, which cannot be accumulated: rows left out would be decayed. "
                "Values of rows given twice are summed: give the rows of all batches at once"
            )
        rows, values = merge_rows(path, grad, param, written)
        self.held.append((rows, values))
        return self._point_rows(i, rows, values)

    cdef int _point(self, size_t i, object grad) except -1:
        """Point the leaf at a gradient of all its elements, and find how the arrays lie."""
        cdef c.rmsp_leaf *leaf = &self.plan.leaves[i]
        cdef slot *s = &self.slots[i]
        cdef extras *x = &self.extras[i]
        param = self.params[i]
        real = param.itemsize // s.reals
        strides = {k: array.strides for k, array in enumerate((param, grad, *self.buffers[i])) if array is not None}
        slowest_first = sorted(range(param.ndim), key=lambda axis: -abs(param.strides[axis]))
        x.c.rows = NULL
        x.c.layout = store_layout(&x.layout, runs_of(param.shape, strides, slowest_first, s.reals, real), real)
        x.c.grad_order = store_layout(
            &x.grad_order,
            runs_of(param.shape, {<int>c.RMSP_GRAD: grad.strides}, list(range(param.ndim)), s.reals, real),
            real,
        )
        leaf.n = s.n
        leaf.extra = NULL if s.standing == NULL and x.c.layout == NULL else &x.c
        leaf.array[c.RMSP_PARAM] = cnp.PyArray_DATA(<cnp.ndarray?>param)
        leaf.array[c.RMSP_GRAD] = cnp.PyArray_DATA(<cnp.ndarray?>grad)
        return 0

    cdef int _point_rows(self, size_t i, object rows, object values) except -1:
        """Point the leaf at a gradient of some rows, each of which lies like the others."""
        cdef c.rmsp_leaf *leaf = &self.plan.leaves[i]
        cdef slot *s = &self.slots[i]
        cdef extras *x = &self.extras[i]
        cdef int k
        param = self.params[i]
        real = param.itemsize // s.reals
        arrays = {k: array for k, array in enumerate((param, values, *self.buffers[i])) if array is not None}
        for k, array in arrays.items():
            x.rows.stride[k] = array.strides[0]
        x.rows.count = len(rows)
        x.rows.index = <const ptrdiff_t *>cnp.PyArray_DATA(<cnp.ndarray?>rows)
        strides = {k: array.strides[1:] for k, array in arrays.items()}
        axes = sorted(range(param.ndim - 1), key=lambda axis: -abs(param.strides[axis + 1]))
        x.c.rows = &x.rows
        x.c.layout = store_layout(&x.layout, runs_of(param.shape[1:], strides, axes, s.reals, real), real)
        x.c.grad_order = NULL
        leaf.n = s.n // len(param) if len(param) else 0
        leaf.extra = &x.c
        leaf.array[c.RMSP_PARAM] = cnp.PyArray_DATA(<cnp.ndarray?>param)
        leaf.array[c.RMSP_GRAD] = cnp.PyArray_DATA(<cnp.ndarray?>values)
        return 0

    def check_coefficients(self, object state):
        """Refuse numbers of `state` that a dtype in use cannot hold: raises ValueError."""
        self._set_coefficients(state, None, 1.0)

    cdef int _set_coefficients(self, object state, object lr, object grad_scale) except -1:
        """Make the coefficients of the next step, and if the options are other ones, what they need."""
        cdef size_t i
        cdef c.rmsp_coef coef
        cdef object old = self.options
        options = state._options
        self.options = None
        groups = list(state.coefficients(lr, grad_scale))
        for _, numbers, _ in groups:
            for dtype in self.dtypes:
                numbers.check_dtype(dtype)
        self.has_norms = options.clip_global_norm is not None or any(
            [of_group.clip_norm is not None for of_group, _ in state._groups]
        )
        wants_sums = self.has_norms or options.on_nonfinite != "propagate"
        self.has_extras = wants_sums or options.ema is not None or options.accumulate > 1
        if wants_sums and self.sums == NULL:
            self._make_sums()
        if options is not old:
            for i in range(self.plan.leaf_count):
                self.slots[i].standing = &self.extras[i] if self.has_extras else NULL
                self.extras[i].c.clip = 1.0
        for i, (variant, numbers, ema) in enumerate(groups):
            coef = numbers._asdict()
            self.plan.scale = coef.grad_scale
            if options.accumulate > 1:
                coef.grad_scale = 1.0 / options.accumulate  # the sum is unscaled already
            self.plan.groups[i] = c.rmsp_group_of(
                MOMENTUM[variant.momentum], variant.centered, variant.l2, ema, &coef
            )
        self.lr = lr
        self.grad_scale = grad_scale
        if state.steady:
            self.options = options
        return 0

    cdef int _make_sums(self) except -1:
        cdef size_t i, spans = 0
        for i in range(self.plan.leaf_count):
            spans += self.slots[i].n // c.RMSP_SPAN + 1
        self.sums = <double *>PyMem_Calloc(spans, sizeof(double))
        if self.sums == NULL:
            raise MemoryError()
        spans = 0
        for i in range(self.plan.leaf_count):
            self.extras[i].c.span_sums = self.sums + spans
            spans += self.slots[i].n // c.RMSP_SPAN + 1
        return 0


# ---- ufuncs ----

# The arrays and the hyper-parameters of each ufunc, in order; all arrays but the gradient are its outputs.
UFUNCS = {
    "rmsprop": (("param", "grad", "square_avg"), ("lr", "rho", "eps", "eps_inside")),
    "rmsprop_momentum": (
        ("param", "grad", "square_avg", "momentum_buffer"), ("lr", "rho", "momentum", "eps", "eps_inside")
    ),
    "rmsprop_centered": (("param", "grad", "square_avg", "grad_avg"), ("lr", "rho", "eps", "eps_inside")),
    "rmsprop_centered_momentum": (
        ("param", "grad", "square_avg", "momentum_buffer", "grad_avg"), ("lr", "rho", "momentum", "eps", "eps_inside")
    ),
}

# What NumPy keeps pointers to: for each ufunc two loops, float32 and float64, with hyper-parameters in double.
cdef cnp.PyUFuncGenericFunction ufunc_loops[2]
cdef c.rmsp_ufunc ufunc_specs[4][2]
cdef void *ufunc_data[4][2]
cdef char ufunc_types[4][32]
cdef bytes ufunc_names = b"".join(name.encode().ljust(32, b"\0") for name in UFUNCS)


cdef list make_ufuncs():
    cdef int i, dtype
    cdef list made = []
    for dtype in range(2):
        ufunc_loops[dtype] = <cnp.PyUFuncGenericFunction>c.rmsp_ufunc_loop
    for i, (arrays, numbers) in enumerate(UFUNCS.values()):
        for dtype in range(2):
            ufunc_specs[i][dtype].dtype = c.RMSP_F64 if dtype else c.RMSP_F32
            ufunc_specs[i][dtype].momentum = "momentum_buffer" in arrays
            ufunc_specs[i][dtype].centered = "grad_avg" in arrays
            ufunc_data[i][dtype] = &ufunc_specs[i][dtype]
            array_type = cnp.NPY_FLOAT64 if dtype else cnp.NPY_FLOAT32
            types = [array_type] * len(arrays) + [cnp.NPY_FLOAT64] * len(numbers) + [array_type] * (len(arrays) - 1)
            for place, number in enumerate(types):
                ufunc_types[i][dtype * len(types) + place] = number
        made.append(
            cnp.PyUFunc_FromFuncAndData(
                ufunc_loops, ufunc_data[i], ufunc_types[i], 2, len(arrays) + len(numbers), len(arrays) - 1,
                cnp.PyUFunc_None, <const char *>ufunc_names + 32 * i, NULL, 0
            )
        )
    return made


globals().update(zip(UFUNCS, make_ufuncs(), strict=True))


cdef dict UFUNC_PLACES = {globals()[name]: place for place, name in enumerate(UFUNCS)}


def step_in_place(object ufunc, tuple operands, tuple out):
    """What the ufunc would do, at a tenth of the cost of a call, where it is plain.

    Parameters
    ----------
    ufunc : numpy.ufunc
        One of ours.
    operands, out : tuple
        Its inputs and outputs.

    Returns
    -------
    bool
        False, with nothing done, unless the arrays are contiguous ndarrays of one shape and dtype, the outputs are the
        inputs, and the numbers are Python floats: then the ufunc must be called.
    """
    cdef int place = UFUNC_PLACES[ufunc], dtype, raised, k, arg = 0, output = 0
    cdef c.rmsp_ufunc *spec = &ufunc_specs[place][0]
    cdef void *array[5]
    cdef double numbers[5]
    cdef cnp.ndarray first
    cdef int flags = cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED
    cdef size_t size, n
    first = operands[0] if Py_TYPE(operands[0]) == NDARRAY else None
    if first is None:
        return False
    dtype = 1 if cnp.PyArray_TYPE(first) == cnp.NPY_FLOAT64 else 0
    size = cnp.PyArray_NBYTES(first)
    n = cnp.PyArray_SIZE(first)
    for k in range(5):
        array[k] = NULL
        if (k == c.RMSP_MOMENTUM_BUFFER and not spec.momentum) or (k == c.RMSP_GRAD_AVG and not spec.centered):
            continue
        operand = operands[arg]
        arg += 1
        if (
            Py_TYPE(operand) != NDARRAY
            or not cnp.PyArray_CHKFLAGS(operand, flags)
            or cnp.PyArray_TYPE(operand) != (cnp.NPY_FLOAT64 if dtype else cnp.NPY_FLOAT32)
            or not cnp.PyArray_ISNOTSWAPPED(operand)
            or not cnp.PyArray_SAMESHAPE(operand, first)
        ):
            return False
        array[k] = cnp.PyArray_DATA(operand)
        if k != c.RMSP_GRAD:
            if out[output] is not operand or not cnp.PyArray_CHKFLAGS(operand, cnp.NPY_ARRAY_WRITEABLE):
                return False
            output += 1
    for k in range(len(operands) - arg):
        if type(operands[arg + k]) is not float:
            return False
        numbers[k] = operands[arg + k]
    for k in range(5):  # no array that is written may meet another one
        if k != c.RMSP_GRAD and array[k] != NULL and size != 0:
            for arg in range(k):
                if array[arg] != NULL and meet(array[k], array[arg], size):
                    return False
    if size != 0 and meet(array[<int>c.RMSP_PARAM], array[<int>c.RMSP_GRAD], size):
        return False
    spec = &ufunc_specs[place][dtype]
    if size > c.rmsp_grain:
        with nogil:
            raised = c.rmsp_ufunc_in_place(spec, n, array, numbers)
    else:
        raised = c.rmsp_ufunc_in_place(spec, n, array, numbers)
    if raised:
        # NumPy tells of them in its own way, on a call of the ufunc itself; so short a loop keeps the GIL.
        spec.pending = raised
        try:
            ufunc(*[np.ones(1, first.dtype)] * (len(out) + 1), *[0.5] * (len(operands) - len(out) - 1))
        finally:
            spec.pending = 0
    return True


def check_outputs(tuple out):
    """Refuse outputs that overlap each other, which NumPy does not notice: raises ValueError."""
    cdef Py_ssize_t i, j
    for i in range(1, len(out)):
        for j in range(i):
            if out[i] is not None and out[j] is not None and may_meet(out[i], out[j]):
                check_distinct([(f"output {j}", out[j]), (f"output {i}", out[i])])


cdef bint may_meet(object one, object other) noexcept:
    """Whether two arrays may overlap; True where it takes a closer look."""
    if not (cnp.PyArray_Check(one) and cnp.PyArray_Check(other)):
        return False
    if not (cnp.PyArray_IS_C_CONTIGUOUS(one) and cnp.PyArray_IS_C_CONTIGUOUS(other)):
        return True
    return (
        <uintptr_t>cnp.PyArray_DATA(one) < <uintptr_t>cnp.PyArray_DATA(other) + <uintptr_t>cnp.PyArray_NBYTES(other)
        and <uintptr_t>cnp.PyArray_DATA(other) < <uintptr_t>cnp.PyArray_DATA(one) + <uintptr_t>cnp.PyArray_NBYTES(one)
    )


# ---- run-time control ----

def num_threads():
    """See runtime.num_threads."""
    return c.rmsp_thread_count()


def set_num_threads(int n):
    """Allow `n` threads, or with 0 as many as OpenMP gives."""
    c.rmsp_set_thread_limit(n)


def has_threads():
    """Whether steps can use more than one thread here."""
    return bool(c.rmsp_has_threads())


def grain():
    """Bytes of gradients up to which a step stays on one thread."""
    return c.rmsp_grain


def set_grain(size_t n):
    """Set `grain`; for tests and measurements."""
    c.rmsp_grain = n


def isas():
    """The instruction sets of this machine that are compiled in, best first."""
    return tuple(c.rmsp_isa_name(i).decode() for i in range(c.rmsp_isa_count()))


def isa():
    """The instruction set in use."""
    return c.rmsp_isa_active().decode()


def use_isa(str name):
    """Use the instruction set `name`; False if there is none."""
    return c.rmsp_isa_use(name.encode()) == 0


SPAN = c.RMSP_SPAN
MAX_THREADS = c.RMSP_MAX_THREADS
