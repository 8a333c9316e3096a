# cython: language_level=3
"""The walk over nested dicts, lists and tuples that runs no Python code, and collects borrowed references.

All other containers are left to Tree.leaves, which runs Python code; the plan holds references to what it gives.
"""

cimport cython
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next
from cpython.object cimport Py_EQ, PyObject

from rmsprop_native.tree import DICT, EMPTY, FIELDS, LEAF, SEQUENCE

cdef extern from "Python.h":
    bint PyDict_CheckExact(object o) noexcept
    Py_ssize_t PyDict_Size(object o) noexcept
    bint PyList_CheckExact(object o) noexcept
    bint PyLong_CheckExact(object o) noexcept
    bint PyUnicode_CheckExact(object o) noexcept
    int PyObject_RichCompareBool(object one, object other, int operator) noexcept
    int PyUnicode_Compare(object one, object other) noexcept
    Py_ssize_t PySequence_Fast_GET_SIZE(object o) noexcept
    PyObject **PySequence_Fast_ITEMS(object o) noexcept

cdef extern from *:
    """
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
    PyObject **rmsp_tuple_items(PyObject *t) noexcept
    bint rmsp_is_plain_tuple(PyObject *o) noexcept

cdef int KIND_EMPTY = EMPTY, KIND_DICT = DICT, KIND_SEQUENCE = SEQUENCE


@cython.final
cdef class Node:
    # A Tree with its fields in C, for the walk.

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
    return PyUnicode_CheckExact(<object>key) or PyLong_CheckExact(<object>key)


cdef inline bint is_same_key(PyObject *found, PyObject *key) noexcept:
    if found == key:
        return True
    if PyUnicode_CheckExact(<object>found):
        return PyUnicode_CheckExact(<object>key) and PyUnicode_Compare(<object>found, <object>key) == 0
    return (
        PyLong_CheckExact(<object>found)
        and PyLong_CheckExact(<object>key)
        and PyObject_RichCompareBool(<object>found, <object>key, Py_EQ) == 1
    )


cdef bint has_plain_keys(PyObject *tree) noexcept:
    cdef Py_ssize_t place = 0
    cdef PyObject *found
    cdef PyObject *value
    while PyDict_Next(<object>tree, &place, &found, &value):
        if not is_plain_key(found):
            return False
    return True


cdef inline bint take_child(Node node, Py_ssize_t i, PyObject *value, PyObject **into, size_t *filled) noexcept:
    if node.child[i] == <PyObject *>None:
        into[filled[0]] = value
        filled[0] += 1
        return True
    return borrow(<Node>node.child[i], value, into, filled)


cdef bint borrow_by_name(Node node, PyObject *tree, PyObject **into, size_t *filled) noexcept:
    """A dict whose keys are in another order than those of `node`."""
    cdef Py_ssize_t i
    cdef PyObject *value
    if not has_plain_keys(tree):
        return False
    for i in range(node.count):
        if not is_plain_key(node.key[i]):
            return False
        value = PyDict_GetItemWithError(<object>tree, <object>node.key[i])
        if value == NULL or not take_child(node, i, value, into, filled):
            return False
    return True


cdef bint borrow(Node node, PyObject *tree, PyObject **into, size_t *filled) noexcept:
    """Collect borrowed references to the leaves of `tree` without running Python code: from exact lists, tuples,
    namedtuples, and dicts whose keys are those of `node`, the same objects or equal strings or ints. False if Python
    code would have to run, or the structure is another one."""
    cdef Py_ssize_t i, place = 0
    cdef size_t before = filled[0]
    cdef PyObject *found
    cdef PyObject *value
    cdef PyObject **items
    if node.kind == KIND_DICT:
        if not PyDict_CheckExact(<object>tree) or PyDict_Size(<object>tree) != node.count:
            return False
        for i in range(node.count):
            PyDict_Next(<object>tree, &place, &found, &value)
            if not is_same_key(found, node.key[i]):
                filled[0] = before
                return borrow_by_name(node, tree, into, filled)
            if not take_child(node, i, value, into, filled):
                return False
        return True
    if node.kind == KIND_SEQUENCE:
        if not PyList_CheckExact(<object>tree) and not rmsp_is_plain_tuple(tree):
            return False
        if PySequence_Fast_GET_SIZE(<object>tree) != node.count:
            return False
        items = PySequence_Fast_ITEMS(<object>tree)
        for i in range(node.count):
            if not take_child(node, i, items[i], into, filled):
                return False
        return True
    return node.kind == KIND_EMPTY and tree == <PyObject *>None
