# Sources of descriptors: from NumPy arrays and torch tensors to rmsp_array; included by _plan.pyx.
#
# a) An array proper and a tensor proper are known by their exact types. A subclass of ndarray has its C structure all
#    the same; a subclass of torch.Tensor inherits the table of functions, which then says what is not so: of a DTensor
#    the shape of the whole and no address.
# b) No source runs Python code or allocates memory, but for `find_tensors` and `has_lazy_bits`, which are called before
#    the first descriptor, with references held.

cdef PyTypeObject *NDARRAY = <PyTypeObject *>np.ndarray
cdef PyTypeObject *ROW_GRAD = <PyTypeObject *>RowGrad
cdef enum:
    TYPE_NUMS = 32
    USER_NUMS = 256  # NPY_USERDEF, from where on NumPy numbers the types of other packages
    MAX_SIZE = 16

# For each of NumPy's type numbers the type of the library, or -1; the same for the bytes of a real or complex number of
# DLPack; and the names of those it has.
cdef int type_of_num[TYPE_NUMS]
cdef int type_of_real[MAX_SIZE + 1]
cdef int type_of_complex[MAX_SIZE + 1]
cdef str SUPPORTED


cdef str fill_type_of_num():
    cdef int num, dtype
    cdef const c.rmsp_dtype_info *info
    cdef list names = []
    for num in range(TYPE_NUMS):
        type_of_num[num] = -1
    for num in range(MAX_SIZE + 1):
        type_of_real[num] = type_of_complex[num] = -1
    for dtype in range(c.RMSP_DTYPE_COUNT):
        info = _core.dtype_info(dtype)
        real, pair = np.dtype(chr(info.code)), np.dtype(chr(info.code).upper())
        type_of_num[real.num] = type_of_real[<int>real.itemsize] = dtype
        type_of_num[pair.num] = type_of_complex[<int>pair.itemsize] = dtype | c.RMSP_PAIRS
        names += [real.name, pair.name]
    return f"{', '.join(names)} and bfloat16"


SUPPORTED = fill_type_of_num()


# Names made beforehand: without memory for them a masked array would pass as a plain one.
cdef str NUMPY_MA = "numpy.ma", MASKED_ARRAY = "MaskedArray", TORCH = "torch", TENSOR_NAME = "Tensor"
cdef str ML_DTYPES = "ml_dtypes", BFLOAT16 = "bfloat16"

cdef int bfloat16_num = -1  # NumPy's number of ml_dtypes.bfloat16, once an array of it has been seen


cdef object find_type(str module, str name):
    """The type `name` of a module, or None. The module is not imported for it, and no Python code runs."""
    cdef PyObject *modules = PyImport_GetModuleDict()
    cdef object found
    if not PyDict_Check(modules):
        return None
    found = (<dict>modules).get(module)
    if not PyModule_Check(<PyObject *>found):
        return None
    found = (<dict>PyModule_GetDict(<PyObject *>found)).get(name)
    return found if PyType_Check(<PyObject *>found) else None


cdef bint is_instance_of(PyObject *o, str module, str name) noexcept:
    """Whether an object is of the type `name` of a module, or of a subclass."""
    cdef object found = find_type(module, name)
    return found is not None and PyType_IsSubtype(Py_TYPE(<object>o), <PyTypeObject *>found)


cdef int type_of_user_num(int num, PyObject *array) noexcept:
    """The type of an array of another package's dtype, or -1."""
    cdef int known = c.rmsp_load_int(&bfloat16_num)
    if num == known:
        return c.RMSP_BF16
    if known >= 0 or <object>typeobj_of(<cnp.ndarray>array) is not find_type(ML_DTYPES, BFLOAT16):
        return -1
    c.rmsp_store_int(&bfloat16_num, num)
    return c.RMSP_BF16


cdef int learn_bfloat16() except -1:
    """Find the number of bfloat16 where no array of it need have been seen; ImportError without ml_dtypes."""
    c.rmsp_store_int(&bfloat16_num, bfloat16().num)
    return 0


cdef int num_of_type(int type) noexcept:
    """NumPy's number of a type of the library."""
    cdef int num = 0
    if type == c.RMSP_LOW16:
        return cnp.NPY_UINT16
    if type == c.RMSP_BF16:
        return c.rmsp_load_int(&bfloat16_num)
    while type_of_num[num] != type:
        num += 1
    return num


cdef inline void describe_numpy(PyObject *o, c.rmsp_array *array) noexcept:
    """An ndarray, by the fields of its C structure: a subclass cannot say anything else."""
    cdef int num = cnp.PyArray_TYPE(<cnp.ndarray>o)
    array.data = cnp.PyArray_DATA(<cnp.ndarray>o)
    array.ndim = cnp.PyArray_NDIM(<cnp.ndarray>o)
    array.shape = <const ptrdiff_t *>cnp.PyArray_DIMS(<cnp.ndarray>o)
    array.strides = <const ptrdiff_t *>cnp.PyArray_STRIDES(<cnp.ndarray>o)
    array.flags = cnp.PyArray_FLAGS(<cnp.ndarray>o)
    array.rows = NULL
    if 0 <= num < TYPE_NUMS:
        array.type = type_of_num[num]
    else:
        array.type = type_of_user_num(num, o) if num >= USER_NUMS else -1
    array.problem = c.RMSP_OK
    if array.type < 0:
        array.problem = c.RMSP_UNSUPPORTED
    elif not cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray>o):
        array.problem = c.RMSP_BYTE_ORDER
        array.type = -1


# ---- torch tensors ----
# torch.Tensor has a table of C functions, DLPack's exchange API, found by an attribute of the type. torch is not
# imported for it: a tensor can exist only where it is.

cdef struct DLDevice:
    int device_type
    int device_id


cdef struct DLDataType:
    unsigned char code
    unsigned char bits
    unsigned short lanes


cdef struct DLTensor:
    void *data
    DLDevice device
    int ndim
    DLDataType dtype
    long long *shape
    long long *strides  # in elements
    unsigned long long byte_offset


cdef struct DLPackExchangeAPI:
    unsigned int major, minor
    void *previous
    void *allocate
    void *export_managed
    void *import_managed
    int (*describe)(void *tensor, DLTensor *out) noexcept
    void *current_stream


cdef enum:
    DL_CPU = 1
    DL_INT = 0
    DL_FLOAT = 2
    DL_BFLOAT = 4
    DL_COMPLEX = 5
    MAX_NDIM = 64

cdef void *TENSOR = NULL  # torch.Tensor, once a tensor has been seen; published after what else is learned then:
cdef PyTypeObject *PARAMETER = NULL  # torch.nn.Parameter
cdef int (*describe_by_table)(void *tensor, DLTensor *out) noexcept
describe_by_table = NULL  # stays so where torch is too old to have the table: tensors are seen as ndarrays then
cdef tuple ask_tensor = ()  # torch.Tensor.is_conj, torch.Tensor.is_neg
cdef object increment_version = None
cdef object FINDING = threading.RLock()  # they are learned by one thread, once


cdef inline bint is_tensor(PyObject *o) noexcept:
    cdef PyTypeObject *tensor = <PyTypeObject *>c.rmsp_published(&TENSOR)
    return tensor != NULL and (Py_TYPE(<object>o) == tensor or Py_TYPE(<object>o) == PARAMETER)


cdef int find_tensors(bint with_table=True) except -1:
    """Learn what torch.Tensor is; torch has been imported."""
    global PARAMETER, describe_by_table, ask_tensor, increment_version
    import torch
    cdef DLPackExchangeAPI *table
    cdef int (*found)(void *tensor, DLTensor *out) noexcept
    found = NULL
    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if with_table and capsule is not None and sizeof(ptrdiff_t) == sizeof(long long):
        table = <DLPackExchangeAPI *>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
        if table.major == 1:
            found = table.describe
    describe_by_table = found
    ask_tensor = (torch.Tensor.is_conj, torch.Tensor.is_neg)
    increment_version = torch.autograd.graph.increment_version
    Py_INCREF(torch.Tensor)  # types that are pointed to stay
    Py_INCREF(torch.nn.Parameter)
    PARAMETER = <PyTypeObject *>torch.nn.Parameter
    c.rmsp_publish(&TENSOR, <void *>torch.Tensor)
    return 0


cdef int find_tensors_once() except -1:
    """`find_tensors` where no thread has done so; others wait for it."""
    if c.rmsp_published(&TENSOR) == NULL:
        with FINDING:
            if c.rmsp_published(&TENSOR) == NULL:
                find_tensors()
    return 0


cdef void describe_tensor(PyObject *o, c.rmsp_array *array, ptrdiff_t *strides, int room) noexcept:
    """A tensor proper. Its strides are those in bytes only where there is room for them, for `room` axes: what is bound
    again is known by its order alone."""
    cdef DLTensor found
    cdef int axis, size
    array.rows = NULL
    array.type = -1
    if describe_by_table == NULL or describe_by_table(o, &found) != 0:
        if describe_by_table != NULL:
            PyErr_Clear()
        array.problem = c.RMSP_NOT_STRIDED
        return
    if found.device.device_type != DL_CPU:
        array.problem = c.RMSP_DEVICE
        return
    size = found.dtype.bits // 8
    array.problem = c.RMSP_UNSUPPORTED
    if found.ndim > MAX_NDIM or size > MAX_SIZE or found.dtype.lanes != 1:
        return
    if found.dtype.code == DL_FLOAT:
        array.type = type_of_real[size]
    elif found.dtype.code == DL_COMPLEX:
        array.type = type_of_complex[size]
    elif found.dtype.code == DL_BFLOAT and size == 2:
        array.type = c.RMSP_BF16
    elif found.dtype.code == DL_INT and size == 2:
        array.type = c.RMSP_LOW16
    if array.type < 0:
        return
    array.problem = c.RMSP_OK
    array.data = <char *>found.data + found.byte_offset
    array.ndim = found.ndim
    array.shape = <const ptrdiff_t *>found.shape
    array.strides = NULL
    array.flags = c.rmsp_order_flags(found.ndim, <ptrdiff_t *>found.shape, <ptrdiff_t *>found.strides) | c.RMSP_WRITABLE
    if <uintptr_t>array.data % <uintptr_t>(size // 2 if array.type & c.RMSP_PAIRS else size) == 0:
        array.flags |= c.RMSP_ALIGNED
    if found.ndim <= room:
        array.strides = strides
        for axis in range(found.ndim):
            strides[axis] = <ptrdiff_t>found.strides[axis] * size


cdef inline bint may_be_lazy(const c.rmsp_array *array) noexcept:
    """Whether the tensor may have the bit of a conjugate or of a negative, which a descriptor does not show: only views
    into complex tensors have one, so that a real one of more than one element has gaps. (What torch's private
    functions, or as_strided of such a view, can make besides is not asked for.)"""
    cdef int axis
    if array.type & c.RMSP_PAIRS or not array.flags & (c.RMSP_C_ORDER | c.RMSP_F_ORDER):
        return True
    for axis in range(array.ndim):
        if array.shape[axis] != 1:
            return False
    return True


cdef bint has_lazy_bits(object tensor) except -1:
    """Ask a tensor whether its conjugate or negative is yet to be taken. A mode of torch's functions may run code."""
    return ask_tensor[0](tensor) or ask_tensor[1](tensor)


cdef object seen_as(object leaf):
    """What is described for a leaf: a tensor is an ndarray where torch has no table of functions.

    Raises
    ------
    RuntimeError, TypeError
        If no ndarray can stand for the tensor.
    """
    if describe_by_table != NULL or not is_tensor(<PyObject *>leaf):
        return leaf
    array = as_ndarray(leaf)
    if array.size and leaf.data_ptr() == 0:
        raise RuntimeError("it has elements and no memory")  # NumPy gives it new memory: a step would be lost
    return array


def as_ndarray(object tensor):
    """A tensor's memory as an ndarray, of which torch makes none for bfloat16."""
    tensor = tensor.detach()
    if tensor.dtype is not find_torch().bfloat16:
        return tensor.numpy()
    return tensor.view(find_torch().int16).numpy().view(bfloat16())


cdef object find_torch():
    import torch
    return torch


cdef bint find_if_tensor(PyObject *o) except -1:
    """Whether an object is a tensor proper; what that is may be learned now."""
    if c.rmsp_published(&TENSOR) == NULL and is_instance_of(o, TORCH, TENSOR_NAME):
        find_tensors_once()
    return is_tensor(o)


def is_torch_tensor(object leaf):
    """Whether an object is a tensor proper: of type torch.Tensor or torch.nn.Parameter."""
    return find_if_tensor(<PyObject *>leaf)


def find_bfloat16():
    """Whether bfloat16 tensors can be described: by torch's table of functions, or with ml_dtypes."""
    find_tensors_once()
    if describe_by_table != NULL:
        return True
    try:
        bfloat16()
    except ImportError:
        return False
    return True


def use_exchange_table(bint wanted):
    """Read tensors through torch's table of functions, if it has one, or through NumPy; for tests."""
    find_tensors(wanted)
    return describe_by_table != NULL


# ---- any object ----

cdef void describe_unusual(PyObject *o, c.rmsp_array *array, ptrdiff_t *strides=NULL, int room=-1) noexcept:
    if is_tensor(o):
        describe_tensor(o, array, strides, room)
        return
    if PyType_IsSubtype(Py_TYPE(<object>o), NDARRAY):
        describe_numpy(o, array)
        if is_instance_of(o, NUMPY_MA, MASKED_ARRAY):
            array.problem = c.RMSP_MASKED
            array.type = -1
        return
    array.problem = c.RMSP_ABSENT if o == <PyObject *>None else c.RMSP_NOT_AN_ARRAY
    array.rows = NULL
    array.type = -1


cdef inline void describe(PyObject *o, c.rmsp_array *array, ptrdiff_t *strides=NULL, int room=-1) noexcept:
    """Any object; for a tensor's strides see describe_tensor."""
    if Py_TYPE(<object>o) == NDARRAY:
        describe_numpy(o, array)
    else:
        describe_unusual(o, array, strides, room)


def as_arrays(object structure, list leaves):
    """Views of the leaves as exact ndarrays, which no other code holds, so that their shapes and dtypes cannot change.

    Raises
    ------
    TypeError
        If a leaf is no array or tensor of a supported type; the message names it.
    """
    cdef c.rmsp_array array
    cdef list arrays = []
    for i, leaf in enumerate(leaves):
        is_of_torch = find_if_tensor(<PyObject *>leaf)
        try:
            view = seen_as(leaf)
        except (RuntimeError, TypeError) as error:
            raise TypeError(f"{title('parameter', tuple(structure.paths())[i])}: {error}") from error
        describe(<PyObject *>view, &array)
        if array.problem == c.RMSP_OK and view is leaf and is_of_torch:
            if has_lazy_bits(leaf):
                array.problem = c.RMSP_LAZY_BITS
            else:
                view = as_ndarray(leaf)
        if array.problem == c.RMSP_OK and array.type == c.RMSP_LOW16:
            array.problem = c.RMSP_UNSUPPORTED
        if array.problem != c.RMSP_OK:
            name = title("parameter", tuple(structure.paths())[i])
            raise refusal(_core.reason_name(array.problem).decode(), name, leaf, supported=SUPPORTED)
        arrays.append(np.ndarray.view(view, np.ndarray))
    return arrays
