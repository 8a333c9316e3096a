# The walk over a tree in C.
from cpython.object cimport PyObject

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define RMSP_FREE_THREADED 1
    #else
    #define RMSP_FREE_THREADED 0
    #endif
    """
    const bint RMSP_FREE_THREADED


cdef class Node:
    cdef int kind
    cdef Py_ssize_t count  # of children
    cdef size_t size  # leaves below
    cdef tuple keys, children
    cdef bint flat
    cdef PyObject **key
    cdef PyObject **child


cdef bint take(Node node, object tree, PyObject **leaves, size_t *taken) except -1
cdef PyObject **borrow(Node node, PyObject *tree, PyObject **into) noexcept
