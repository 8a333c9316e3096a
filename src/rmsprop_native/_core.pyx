# cython: language_level=3
"""The only module that touches C: the plan of a step, and control of instruction set and threads.

a) A plan is a cache: what is known of the arrays of one state, laid out for one C call a step. It owns no number
   that the state does not have, is dropped by pickle, and is made again when other parameters come.
b) A step takes a snapshot of the leaves as tuples, which no other thread can change, then checks every array, then
   writes. Nothing between the first write and the last can fail.
c) A usual gradient passes a handful of comparisons in `is_plain`. What fails any of them goes to `_admit`, which
   decides in full, with the checks of arrays.py: it raises, or finds the layout.
d) The GIL is released for large work only; meanwhile the plan is busy, and a second step on it is refused.
e) Indices into a plan's C arrays follow the leaves; they are never taken from a caller.
"""
import os

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_AsTuple
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject, PyTypeObject, Py_TYPE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport uintptr_t

from rmsprop_native cimport rmsp as c

from rmsprop_native.arrays import check_distinct, check_gradient, check_parameter, title
from rmsprop_native.tree import DICT, EMPTY, FIELDS, LEAF, SEQUENCE

cnp.import_array()
c.rmsp_isa_init()

cdef extern from *:
    """
    #define rmsp_tuple_items(t) (&PyTuple_GET_ITEM(t, 0))
    """
    PyObject **rmsp_tuple_items(PyObject *t) noexcept

cdef PyTypeObject *NDARRAY = <PyTypeObject *>np.ndarray

cdef int KIND_EMPTY = EMPTY, KIND_DICT = DICT, KIND_FIELDS = FIELDS

# Elements above which other Python threads get to run during a step: some 10 us of work.
cdef size_t GIL_GRAIN = 1 << 15

# In the order of enum RMSP_PARAM ...
ARRAYS = ("param", "grad", "square_avg", "momentum_buffer", "grad_avg")
BUFFERS = ARRAYS[2:]

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

    def __init__(self, object tree):
        self.kind = tree.kind
        self.count = len(tree.children)
        self.keys = tree.keys
        self.children = tuple([None if child.kind == LEAF else Node(child) for child in tree.children])
        self.container = tree.container


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

cdef struct slot:
    # What a step compares a gradient with, beside its parameter. `contiguous` is the flag that all arrays of the leaf
    # and its gradient must have to be stepped as they lie; 0 where the leaf's own arrays do not share one.
    int contiguous
    size_t reals  # 2 for complex numbers, which are pairs of reals
    c.rmsp_layout *layout


cdef inline bint meet(const void *one, const void *other, size_t size) noexcept:
    """Whether two pieces of memory of `size` bytes, not 0, overlap."""
    return <uintptr_t>one - <uintptr_t>other + (size - 1) < 2 * size - 1


cdef inline bint is_plain(c.rmsp_leaf *leaf, const slot *s, PyObject *param, PyObject *grad) noexcept:
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
    if n != leaf.n:
        return False
    p = cnp.PyArray_DATA(<cnp.ndarray>param)
    g = cnp.PyArray_DATA(<cnp.ndarray>grad)
    size = n * (4 if leaf.dtype == c.RMSP_F32 else 8)
    if size != 0 and (
        meet(g, p, size)
        or meet(g, leaf.array[c.RMSP_SQUARE_AVG], size)
        or meet(g, leaf.array[c.RMSP_MOMENTUM_BUFFER], size)
        or meet(g, leaf.array[c.RMSP_GRAD_AVG], size)
    ):
        return False
    leaf.array[c.RMSP_PARAM] = p
    leaf.array[c.RMSP_GRAD] = g
    leaf.layout = NULL
    return True


cdef class Plan:
    """What is known of the arrays of one state, laid out for one C call a step.

    Parameters
    ----------
    structure : Tree
        Of the parameters.
    params : tuple of numpy.ndarray
        The leaves; `step` writes them.
    buffers : tuple of tuple of (numpy.ndarray or None)
        For each leaf its square_avg, momentum_buffer and grad_avg, of its shape and dtype.
    groups : tuple of int
        For each leaf the index of its group of hyper-parameters.

    Raises
    ------
    TypeError, ValueError
        If a step could not write to an array, or two of them share memory.
    """
    cdef c.rmsp_leaf *leaves
    cdef c.rmsp_group *groups
    cdef slot *slots
    cdef Py_ssize_t count
    cdef tuple params, buffers, paths
    cdef object structure
    cdef Node root  # None where the parameters are a lone array
    cdef bint is_flat
    cdef object options, lr  # what the coefficients in the groups come from; options None: make them anew
    cdef double grad_scale
    cdef readonly bint busy
    cdef readonly tuple dtypes  # the real types in use

    def __init__(self, object structure, tuple params, tuple buffers, tuple groups):
        cdef Py_ssize_t i
        self.structure = structure
        self.root = None if structure.kind == LEAF else Node(structure)
        self.is_flat = structure.kind == SEQUENCE and structure.flat
        self.params = params
        self.buffers = buffers
        self.paths = tuple(structure.paths())
        self.count = len(params)
        self._check_arrays()
        self.dtypes = tuple({array.real.dtype for array in params})
        self.leaves = <c.rmsp_leaf *>PyMem_Calloc(self.count, sizeof(c.rmsp_leaf))
        self.slots = <slot *>PyMem_Calloc(self.count, sizeof(slot))
        self.groups = <c.rmsp_group *>PyMem_Calloc(max(groups, default=0) + 1, sizeof(c.rmsp_group))
        if self.leaves == NULL or self.slots == NULL or self.groups == NULL:
            raise MemoryError()
        for i in range(self.count):
            self.leaves[i].group = groups[i]
            self._place(i)

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.slots != NULL:
            for i in range(self.count):
                PyMem_Free(self.slots[i].layout)
        PyMem_Free(self.slots)
        PyMem_Free(self.groups)
        PyMem_Free(self.leaves)

    cdef int _check_arrays(self) except -1:
        named = []
        for i in range(self.count):
            named.append((title("parameter", self.paths[i]), self.params[i]))
            named += [(title(name, self.paths[i]), array) for name, array in self._kept(i)]
        for name, array in named:
            check_parameter(name, array)
        check_distinct(named)
        return 0

    cdef list _kept(self, Py_ssize_t i):
        """The names and arrays of the buffers that leaf `i` has."""
        return [(name, array) for name, array in zip(BUFFERS, self.buffers[i], strict=True) if array is not None]

    cdef int _place(self, Py_ssize_t i) except -1:
        """Fill in what does not depend on the gradient."""
        cdef c.rmsp_leaf *leaf = &self.leaves[i]
        cdef slot *s = &self.slots[i]
        cdef int k, order
        param = self.params[i]
        s.reals = 2 if param.dtype.kind == "c" else 1
        leaf.dtype = c.RMSP_F32 if param.real.dtype == np.float32 else c.RMSP_F64
        leaf.n = param.size * s.reals
        for k, array in enumerate(self.buffers[i], c.RMSP_SQUARE_AVG):
            leaf.array[k] = NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray?>array)
        written = [param] + [array for _, array in self._kept(i)]
        for order in (cnp.NPY_ARRAY_F_CONTIGUOUS, cnp.NPY_ARRAY_C_CONTIGUOUS):
            if all([cnp.PyArray_CHKFLAGS(<cnp.ndarray>array, order) for array in written]):
                s.contiguous = order
        return 0

    def step(self, object params, object grads, object state, object lr, object grad_scale):
        """Check everything, step every leaf that has a gradient, count the step.

        Parameters
        ----------
        params, grads : array or nested container of arrays
            Of the structure of the plan.
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
        RuntimeError
            If another thread is inside a step of this state.
        """
        cdef tuple param_leaves, grad_leaves
        cdef PyObject *only_param
        cdef PyObject *only_grad
        cdef PyObject **param
        cdef PyObject **grad
        cdef PyObject **known = rmsp_tuple_items(<PyObject *>self.params)
        cdef Py_ssize_t i
        cdef size_t total = 0
        cdef int threads

        if self.busy:
            raise RuntimeError("another thread is inside a step of this state; give each thread a state of its own")

        if self.root is None:
            only_param, only_grad = <PyObject *>params, <PyObject *>grads
            param, grad = &only_param, &only_grad
        else:
            param_leaves = self._snapshot(params)
            if param_leaves is None:
                return False
            grad_leaves = self._snapshot(grads)
            if grad_leaves is None:
                for _ in self.structure.leaves(grads):  # raises, and says where
                    pass
                raise ValueError("the gradients changed while they were read")
            param = rmsp_tuple_items(<PyObject *>param_leaves)
            grad = rmsp_tuple_items(<PyObject *>grad_leaves)

        for i in range(self.count):
            if param[i] != known[i]:
                return False
            if not is_plain(&self.leaves[i], &self.slots[i], param[i], grad[i]):
                self._admit(i, <object>grad[i])
            if self.leaves[i].array[c.RMSP_GRAD] != NULL:
                total += self.leaves[i].n

        if state._options is not self.options or lr != self.lr or grad_scale != self.grad_scale:
            self._set_coefficients(state, lr, grad_scale)

        threads = thread_count() if total > c.rmsp_grain else 1
        if total > GIL_GRAIN:
            self.busy = True
            with nogil:
                c.rmsp_plan_run(self.leaves, self.count, self.groups, threads)
            self.busy = False
        else:
            c.rmsp_plan_run(self.leaves, self.count, self.groups, threads)
        state.step += 1
        return True

    cdef tuple _snapshot(self, object tree):
        """The leaves of `tree`, or None where its structure is another one."""
        cdef tuple leaves
        cdef Py_ssize_t filled = 0
        if self.is_flat:
            if not isinstance(tree, (list, tuple)):
                return None
            leaves = PyList_AsTuple(tree) if type(tree) is list else tuple(tree)
            return leaves if len(leaves) == self.count else None
        leaves = PyTuple_New(self.count)
        return leaves if gather(self.root, tree, leaves, &filled) else None

    cdef int _admit(self, Py_ssize_t i, object grad) except -1:
        """Decide in full on a gradient that is not plain: raise, or point the leaf at it and find its layout."""
        cdef c.rmsp_leaf *leaf = &self.leaves[i]
        leaf.array[c.RMSP_GRAD] = NULL
        if grad is None:
            return 0
        path, param = self.paths[i], self.params[i]
        check_parameter(title("parameter", path), param)
        if param.size * self.slots[i].reals != leaf.n:
            raise ValueError(f"{title('parameter', path)} has changed its size")
        check_gradient(path, grad, param, [("parameter", param), *self._kept(i)])
        self._lay_out(i, (param, grad, *self.buffers[i]))
        leaf.array[c.RMSP_PARAM] = cnp.PyArray_DATA(<cnp.ndarray?>param)
        leaf.array[c.RMSP_GRAD] = cnp.PyArray_DATA(<cnp.ndarray?>grad)
        return 0

    cdef int _lay_out(self, Py_ssize_t i, tuple arrays) except -1:
        """Order the axes from the slowest of the parameter to its fastest, and join those that lie in one run."""
        cdef c.rmsp_leaf *leaf = &self.leaves[i]
        cdef slot *s = &self.slots[i]
        cdef int axis, k
        param = arrays[0]
        present = [(k, array) for k, array in enumerate(arrays) if array is not None]
        real = param.itemsize // s.reals
        axes = []
        for axis in sorted(range(param.ndim), key=lambda axis: -abs(param.strides[axis])):
            if param.shape[axis] != 1:
                axes.append((param.shape[axis], {k: array.strides[axis] for k, array in present}))
        if s.reals == 2 or not axes:
            axes.append((s.reals, {k: real for k, _ in present}))
        runs = axes[:1]
        for length, strides in axes[1:]:
            outer_length, outer = runs[-1]
            if all([outer[k] == strides[k] * length for k in strides]):
                runs[-1] = (outer_length * length, strides)
            else:
                runs.append((length, strides))

        leaf.layout = NULL
        if len(runs) == 1 and all([stride == real for stride in runs[0][1].values()]):
            return 0
        if s.layout == NULL:
            s.layout = <c.rmsp_layout *>PyMem_Calloc(1, sizeof(c.rmsp_layout))
            if s.layout == NULL:
                raise MemoryError()
        s.layout.ndim = len(runs)
        for axis, (length, strides) in enumerate(runs):
            s.layout.shape[axis] = length
            for k, stride in strides.items():
                s.layout.stride[k][axis] = stride
        leaf.layout = s.layout
        return 0

    cdef int _set_coefficients(self, object state, object lr, object grad_scale) except -1:
        cdef Py_ssize_t i
        self.options = None
        groups = state.coefficients(lr, grad_scale)
        for _, numbers in groups:
            for dtype in self.dtypes:
                numbers.check_dtype(dtype)
        for i, (variant, numbers) in enumerate(groups):
            self.groups[i].variant = c.rmsp_variant_index(MOMENTUM[variant.momentum], variant.centered, variant.l2)
            self.groups[i].coef = numbers._asdict()
        self.lr = lr
        self.grad_scale = grad_scale
        if not state.options.bias_correction:
            self.options = state.options
        return 0


# ---- run-time control ----

cdef int thread_limit = 0  # 0: as many as OpenMP gives
cdef bint forked = False


cdef int thread_count() noexcept:
    if forked:
        return 1
    return thread_limit if thread_limit > 0 else c.rmsp_max_threads()


def _after_fork_in_child():
    # libgomp's threads do not survive a fork, and its next parallel region would wait for them for ever.
    global forked
    forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def num_threads():
    """See runtime.num_threads."""
    return thread_count()


def set_num_threads(int n):
    """Allow `n` threads, or with 0 as many as OpenMP gives."""
    global thread_limit
    thread_limit = n


def has_openmp():
    """Whether the library was compiled with OpenMP."""
    return bool(c.rmsp_has_openmp())


def grain():
    """Elements below which a step stays on one thread."""
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
