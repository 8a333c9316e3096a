# The walk over nested dicts, lists and tuples that runs no Python code, and collects borrowed references; included by
# _plan.pyx.
#
# All other containers are left to Tree.leaves, which runs Python code; the plan holds references to what it gives.
# Where Python has no GIL, another thread may change a container at any time: the walk takes references then.

# Of borrowed references, so that no references are counted on the way.
cdef extern from "Python.h":
    bint PyDict_CheckExact(PyObject *o) noexcept
    PyObject *borrow_item "PyDict_GetItemWithError" (PyObject *o, PyObject *key) noexcept
    bint PyDict_Next(PyObject *o, Py_ssize_t *place, PyObject **key, PyObject **value) noexcept
    bint PyList_CheckExact (PyObject *o) noexcept
    bint PyLong_CheckExact(PyObject *o) noexcept
    bint PyUnicode_CheckExact(PyObject *o) noexcept
    int PyObject_RichCompareBool(PyObject *one, PyObject *other, int operator) noexcept
    int PyUnicode_Compare(PyObject *one, PyObject *other) noexcept
    Py_ssize_t PySequence_Fast_GET_SIZE(PyObject *o) noexcept
    PyObject **PySequence_Fast_ITEMS(PyObject *o) noexcept

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define RMSP_FREE_THREADED 1
    #else
    #define RMSP_FREE_THREADED 0
    #endif
    #define rmsp_dict_size(d) (((PyDictObject *)(d))->ma_used)
    #define rmsp_tuple_items(t) (&PyTuple_GET_ITEM(t, 0))
    /* A tuple, or a namedtuple: a class that does not override how tuple looks its items up. __getitem__ fills
       mp_subscript; sq_item differs in every subclass written in Python. */
    static inline int rmsp_is_plain_tuple(PyObject *o)
    {
        const PyTypeObject *const type = Py_TYPE(o);
        return PyTuple_Check(o) && type->tp_iter == PyTuple_Type.tp_iter &&
                   type->tp_as_sequence->sq_length == PyTuple_Type.tp_as_sequence->sq_length &&
               type->tp_as_mapping->mp_subscript == PyTuple_Type.tp_as_mapping->mp_subscript;
    }
    """
    const bint RMSP_FREE_THREADED
    Py_ssize_t rmsp_dict_size(PyObject *d) noexcept
    PyObject **rmsp_tuple_items(PyObject *t) noexcept
    bint rmsp_is_plain_tuple(PyObject *o) noexcept

cdef int KIND_EMPTY = EMPTY, KIND_DICT = DICT, KIND_SEQUENCE = SEQUENCE


@cython.final
@cython.auto_pickle(False)
cdef class Node:
    # A Tree with its fields in C, for the walk.
    cdef int kind
    cdef Py_ssize_t count  # of children
    cdef size_t size  # leaves below
    cdef tuple keys, children
    cdef bint flat
    cdef PyObject **key
    cdef PyObject **child

    def __init__(self, object tree):
        self.kind = tree.kind
        self.count = len(tree.children)
        self.keys = tree.keys
        self.flat = tree.kind == SEQUENCE and tree.flat
        self.children = tuple([None if child.kind == LEAF else Node(child) for child in tree.children])
        self.size = 0
        for child in self.children:
            self.size += 1 if child is None else (<Node>child).size
        if len(self.keys) != self.count or (self.count and tree.kind not in (DICT, SEQUENCE, FIELDS)):
            raise ValueError("the parts of the structure do not fit each other")
        self.key = rmsp_tuple_items(<PyObject *>self.keys)
        self.child = rmsp_tuple_items(<PyObject *>self.children)


cdef inline bint is_plain_key(PyObject *key) noexcept:
    """Whether comparing and hashing a key runs no Python code."""
    return PyUnicode_CheckExact(key) or PyLong_CheckExact(key)


cdef inline bint is_same_key(PyObject *found, PyObject *key) noexcept:
    if found == key:
        return True
    if PyUnicode_CheckExact(found):
        return PyUnicode_CheckExact(key) and PyUnicode_Compare(found, key) == 0
    return (
        PyLong_CheckExact(found)
        and PyLong_CheckExact(key)
        and PyObject_RichCompareBool(found, key, Py_EQ) == 1
    )


cdef bint has_plain_keys(PyObject *tree) noexcept:
    cdef Py_ssize_t place = 0
    cdef PyObject *found
    cdef PyObject *value
    while PyDict_Next(tree, &place, &found, &value):
        if not is_plain_key(found):
            return False
    return True


cdef inline PyObject **take_child(Node node, Py_ssize_t i, PyObject *value, PyObject **into) noexcept:
    if node.child[i] == <PyObject *>None:
        into[0] = value
        return into + 1
    return borrow(<Node>node.child[i], value, into)


cdef object MISSING = object()


cdef bint take(Node node, object tree, PyObject **leaves, size_t *taken) except -1:
    """Collect the leaves of `tree` as `borrow` does, behind the `taken` ones, with references: each is one that the
    container held at some moment. False where that would take other code, or the structure is another one."""
    cdef Py_ssize_t i
    cdef object value
    cdef bint is_plain
    if node.kind == KIND_DICT:
        if type(tree) is not dict or len(<dict>tree) != node.count:
            return False
        with cython.critical_section(tree):
            is_plain = has_plain_keys(<PyObject *>tree)
        if not is_plain:
            return False
    elif node.kind == KIND_SEQUENCE:
        if type(tree) is not list and not rmsp_is_plain_tuple(<PyObject *>tree) or len(tree) != node.count:
            return False
    else:
        return node.kind == KIND_EMPTY and tree is None
    for i in range(node.count):
        if node.kind == KIND_DICT:
            if not is_plain_key(node.key[i]):
                return False
            value = (<dict>tree).get(node.keys[i], MISSING)
        else:
            try:
                value = tree[i]
            except IndexError:  # the list is shorter now
                return False
        if value is MISSING:
            return False
        if node.child[i] != <PyObject *>None:
            if not take(<Node>node.child[i], value, leaves, taken):
                return False
            continue
        Py_INCREF(value)
        leaves[taken[0]] = <PyObject *>value
        taken[0] += 1
    return True


cdef PyObject **borrow_by_name(Node node, PyObject *tree, PyObject **into) noexcept:
    """A dict whose keys are in another order than those of `node`."""
    cdef Py_ssize_t i
    cdef PyObject *value
    if not has_plain_keys(tree):
        return NULL
    for i in range(node.count):
        if not is_plain_key(node.key[i]):
            return NULL
        value = borrow_item(tree, node.key[i])
        if value == NULL:
            return NULL
        into = take_child(node, i, value, into)
        if into == NULL:
            return NULL
    return into


cdef PyObject **borrow(Node node, PyObject *tree, PyObject **into) noexcept:
    """Collect the leaves of `tree`, borrowed, where this takes no code but C's: exact lists, tuples, namedtuples, and
    dicts whose keys are those of `node`, the same objects or equal strings or ints. Returns the place behind the last
    leaf; NULL where it would take other code, or the structure is another one."""
    cdef Py_ssize_t i, place = 0
    cdef PyObject **start = into
    cdef PyObject *found
    cdef PyObject *value
    cdef PyObject **items
    if node.kind == KIND_DICT:
        if not PyDict_CheckExact(tree) or rmsp_dict_size(tree) != node.count:
            return NULL
        for i in range(node.count):
            PyDict_Next(tree, &place, &found, &value)
            if not is_same_key(found, node.key[i]):
                return borrow_by_name(node, tree, start)
            into = take_child(node, i, value, into)
            if into == NULL:
                return NULL
        return into
    if node.kind == KIND_SEQUENCE:
        if not PyList_CheckExact(tree) and not rmsp_is_plain_tuple(tree):
            return NULL
        if PySequence_Fast_GET_SIZE(tree) != node.count:
            return NULL
        items = PySequence_Fast_ITEMS(tree)
        for i in range(node.count):
            into = take_child(node, i, items[i], into)
            if into == NULL:
                return NULL
        return into
    return into if node.kind == KIND_EMPTY and tree == <PyObject *>None else NULL
