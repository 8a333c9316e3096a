# The ufuncs: registered with NumPy; simple calls in place go to the C library directly. Included by _core.pyx.

cnp.import_array()
cnp.import_ufunc()

cdef extern from "fenv.h" nogil:
    int FE_DIVBYZERO, FE_OVERFLOW, FE_UNDERFLOW, FE_INVALID

cdef PyTypeObject *NDARRAY = <PyTypeObject *>np.ndarray

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

cdef enum:
    UFUNC_COUNT = 4
    MAX_DTYPES = 8  # checked by make_ufuncs

# What NumPy keeps pointers to: for each ufunc a loop for each dtype of the library, with hyper-parameters in double.
cdef cnp.PyUFuncGenericFunction ufunc_loops[MAX_DTYPES]
cdef c.rmsp_ufunc ufunc_specs[UFUNC_COUNT][MAX_DTYPES]
cdef void *ufunc_data[UFUNC_COUNT][MAX_DTYPES]
cdef list ufunc_kept = []  # types and names
cdef int type_nums[MAX_DTYPES]


cdef list make_ufuncs():
    cdef int i, dtype
    cdef list made = []
    if c.RMSP_DTYPE_COUNT > MAX_DTYPES or len(UFUNCS) != UFUNC_COUNT:
        raise SystemError("the tables of the ufuncs are too small")
    for dtype in range(c.RMSP_DTYPE_COUNT):
        ufunc_loops[dtype] = <cnp.PyUFuncGenericFunction>c.rmsp_ufunc_loop
        type_nums[dtype] = np.dtype(chr(c.rmsp_dtypes[dtype].code)).num
    for i, (name, (arrays, numbers)) in enumerate(UFUNCS.items()):
        signatures = []
        for dtype in range(c.RMSP_DTYPE_COUNT):
            ufunc_specs[i][dtype].dtype = dtype
            ufunc_specs[i][dtype].momentum = "momentum_buffer" in arrays
            ufunc_specs[i][dtype].centered = "grad_avg" in arrays
            ufunc_data[i][dtype] = &ufunc_specs[i][dtype]
            signatures += [type_nums[dtype]] * len(arrays) + [cnp.NPY_FLOAT64] * len(numbers)
            signatures += [type_nums[dtype]] * (len(arrays) - 1)
        types, name = bytes(signatures), name.encode()
        ufunc_kept.append((types, name))
        made.append(
            cnp.PyUFunc_FromFuncAndData(
                ufunc_loops, ufunc_data[i], <char *><bytes>types, c.RMSP_DTYPE_COUNT, len(arrays) + len(numbers),
                len(arrays) - 1, cnp.PyUFunc_None, <char *><bytes>name, NULL, 0
            )
        )
    return made


globals().update(zip(UFUNCS, make_ufuncs(), strict=True))


cdef dict UFUNC_PLACES = {globals()[name]: place for place, name in enumerate(UFUNCS)}


cdef inline int dtype_of(object array) noexcept:
    """The dtype of the library that an ndarray has, or -1."""
    cdef int dtype, num = cnp.PyArray_TYPE(<cnp.ndarray>array)
    for dtype in range(c.RMSP_DTYPE_COUNT):
        if num == type_nums[dtype]:
            return dtype
    return -1


cdef bint describe(object o, c.rmsp_array *array) noexcept:
    """Fill in what rmsp_arrays_overlap reads; False for anything but an array of the library's dtypes."""
    if not cnp.PyArray_Check(o):
        return False
    array.data = cnp.PyArray_DATA(<cnp.ndarray>o)
    array.ndim = cnp.PyArray_NDIM(<cnp.ndarray>o)
    array.shape = <const ptrdiff_t *>cnp.PyArray_DIMS(<cnp.ndarray>o)
    array.strides = <const ptrdiff_t *>cnp.PyArray_STRIDES(<cnp.ndarray>o)
    array.type = dtype_of(o)
    return array.type >= 0


cdef size_t rates_run(object lr, object array) noexcept:
    """For how many elements that follow each other in a contiguous array each number of `lr` holds, if it is contiguous
    too; 0 where it broadcasts in another way."""
    cdef int axis, ndim = cnp.PyArray_NDIM(<cnp.ndarray>array)
    cdef int flags = cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED
    cdef size_t run = 1
    cdef cnp.npy_intp length, numbers, missing
    cdef bint is_shared = True  # the innermost axes, along which the number stays the same
    if Py_TYPE(lr) != NDARRAY or cnp.PyArray_TYPE(<cnp.ndarray>lr) != cnp.NPY_FLOAT64:
        return 0
    if not cnp.PyArray_CHKFLAGS(<cnp.ndarray>lr, flags) or not cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray>lr):
        return 0
    missing = ndim - cnp.PyArray_NDIM(<cnp.ndarray>lr)
    if missing < 0 or cnp.PyArray_SIZE(<cnp.ndarray>array) == 0:
        return 0
    for axis in range(ndim - 1, -1, -1):
        length = cnp.PyArray_DIM(<cnp.ndarray>array, axis)
        numbers = cnp.PyArray_DIM(<cnp.ndarray>lr, axis - missing) if axis >= missing else 1
        is_shared = is_shared and numbers == 1
        if is_shared:
            run *= length
        elif numbers != length:
            return 0
    return run


cdef dict EXCEPTIONS = {"divide": FE_DIVBYZERO, "over": FE_OVERFLOW, "under": FE_UNDERFLOW, "invalid": FE_INVALID}


def step_in_place(object ufunc, tuple operands, tuple out):
    """Do what the ufunc would do, at a tenth of the cost of its call, if the call is a simple one.

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
        inputs, and the numbers are Python floats, or lr a contiguous array of a number for each element or row: then
        the ufunc must be called.
    """
    cdef int place = UFUNC_PLACES[ufunc], dtype, raised, k, arg = 0, output = 0
    cdef c.rmsp_ufunc *spec = &ufunc_specs[place][0]
    cdef void *array[5]
    cdef double numbers[5]
    cdef const double *lrs = NULL
    cdef size_t run = 0, lr_size = 0
    cdef object first = operands[0]
    cdef int flags = cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED
    cdef size_t size, n
    if Py_TYPE(first) != NDARRAY:
        return False
    dtype = dtype_of(first)
    if dtype < 0:
        return False
    n = cnp.PyArray_SIZE(<cnp.ndarray>first)
    size = n * <size_t>cnp.PyArray_ITEMSIZE(<cnp.ndarray>first)
    for k in range(5):
        array[k] = NULL
        if (k == c.RMSP_MOMENTUM_BUFFER and not spec.momentum) or (k == c.RMSP_GRAD_AVG and not spec.centered):
            continue
        operand = operands[arg]
        arg += 1
        if (
            Py_TYPE(operand) != NDARRAY
            or not cnp.PyArray_CHKFLAGS(<cnp.ndarray>operand, flags)
            or cnp.PyArray_TYPE(<cnp.ndarray>operand) != type_nums[dtype]
            or not cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray>operand)
            or not cnp.PyArray_SAMESHAPE(<cnp.ndarray>operand, <cnp.ndarray>first)
        ):
            return False
        array[k] = cnp.PyArray_DATA(<cnp.ndarray>operand)
        if k != c.RMSP_GRAD:
            if out[output] is not operand or not cnp.PyArray_CHKFLAGS(<cnp.ndarray>operand, cnp.NPY_ARRAY_WRITEABLE):
                return False
            output += 1
    for k in range(len(operands) - arg):
        number = operands[arg + k]
        if type(number) is float:
            numbers[k] = number
            continue
        run = rates_run(number, first) if k == 0 else 0
        if run == 0:
            return False
        lrs = <const double *>cnp.PyArray_DATA(<cnp.ndarray>number)
        lr_size = cnp.PyArray_NBYTES(<cnp.ndarray>number)
        numbers[k] = 0.0
    for k in range(5):
        if lrs != NULL and k != c.RMSP_GRAD and array[k] != NULL and c.rmsp_ranges_overlap(
            <uintptr_t>array[k], <uintptr_t>array[k] + size, <uintptr_t>lrs, <uintptr_t>lrs + lr_size
        ):
            return False
        for arg in range(k):
            # No array that is written may overlap another one, and only one of all is not written.
            if array[arg] != NULL and array[k] != NULL and c.rmsp_ranges_overlap(
                <uintptr_t>array[k], <uintptr_t>array[k] + size, <uintptr_t>array[arg], <uintptr_t>array[arg] + size
            ):
                return False
    spec = &ufunc_specs[place][dtype]
    if is_large(size):
        with nogil:
            raised = c.rmsp_ufunc_in_place(spec, n, array, numbers, lrs, run)
    else:
        raised = c.rmsp_ufunc_in_place(spec, n, array, numbers, lrs, run)
    if raised:
        report(ufunc, UFUNCS[ufunc.__name__], raised, EXCEPTIONS, first.dtype)  # NumPy does not know of them
    return True


def overlapping(tuple out):
    """The indices of two outputs that overlap each other, or twice that of one whose elements share memory, which NumPy
    does not notice; None if there are none."""
    cdef Py_ssize_t i, j
    cdef c.rmsp_array one, other
    for i in range(len(out)):
        if cnp.PyArray_Check(out[i]) and c.rmsp_overlaps_itself(
            cnp.PyArray_NDIM(<cnp.ndarray>out[i]), <const ptrdiff_t *>cnp.PyArray_DIMS(<cnp.ndarray>out[i]),
            <const ptrdiff_t *>cnp.PyArray_STRIDES(<cnp.ndarray>out[i]), cnp.PyArray_ITEMSIZE(<cnp.ndarray>out[i])
        ):
            return i, i
        for j in range(i):
            if describe(out[i], &one) and describe(out[j], &other):
                if c.rmsp_arrays_overlap(&one, &other):
                    return j, i
            # Results may be cast to outputs of other dtypes.
            elif isinstance(out[i], np.ndarray) and isinstance(out[j], np.ndarray) and np.shares_memory(out[i], out[j]):
                return j, i
    return None
