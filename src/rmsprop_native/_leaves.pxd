# The walk over a tree in C.
from cpython.object cimport PyObject


cdef class Node:
    cdef int kind
    cdef Py_ssize_t count  # of children
    cdef size_t size  # leaves below
    cdef tuple keys, children
    cdef bint flat
    cdef PyObject **key
    cdef PyObject **child


cdef PyObject **borrow(Node node, PyObject *tree, PyObject **into) noexcept
