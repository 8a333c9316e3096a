# The plan of an optimizer of torch: parameters, gradients and buffers are tensors that are read anew at each step;
# included by _plan.pyx.
#
# The parameters are those of the optimizer's groups, the buffers those of its state, found by name in the dict that
# belongs to the parameter. All are collected first, as owned references, since to read `.grad` allocates; then they are
# described, bound and stepped as those of any plan. What this module cannot decide, it returns to the caller, which
# runs Python and tries again: nothing has been written then.

cdef str PARAMS = "params", GRAD = "grad", LR = "lr", STEP = "step"

STEPPED, NOTHING, NEEDS_NUMBERS, NEEDS_STATE, NEEDS_PLAN, REFUSED = range(6)

cdef enum:
    IS_STEPPED, IS_NOTHING, WANTS_NUMBERS, WANTS_STATE, WANTS_PLAN, IS_REFUSED


ctypedef fused real:
    float
    double


cdef inline long long count_of(real count) noexcept:
    """A count of steps; what is no count is none."""
    return <long long>count if 0 < count < 9e15 else 0


@cython.final
@cython.auto_pickle(False)
cdef class TensorPlan(Plan):
    """What is known of the parameters that an optimizer of torch steps, for one call of the library a step.

    Parameters
    ----------
    structure : Tree
        Of the parameters that are stepped here: a flat one.
    params : list of torch.Tensor
        Those parameters, or what stands for them, in that order.
    every : list of torch.Tensor
        All parameters of the optimizer's groups, in order.
    places : list of int
        For each of them its index in `params`, or -1.
    avg16 : list of bool
        For each of `params` whether its square_avg is bfloat16.
    see : callable
        Called with an array that is no tensor proper, or whose parameter is none, and its parameter; returns the tensor
        that stands for it, or raises TypeError that says why there is none.
    num_threads : callable
        How many threads torch uses.
    """
    cdef list every
    cdef list own  # those of them that are stepped here
    cdef list places
    cdef object see
    cdef object get_num_threads
    cdef list watched  # for each group a tuple of keys and values, by which it is known to have the same options
    cdef list masks  # for each group the bits of the buffers that its parameters have
    cdef bint has_bf16  # any leaf has a bfloat16 array beside its gradient
    cdef object counts  # the steps of all leaves: a tensor of one dimension
    cdef list steps  # for each leaf the view of its element, which is "step" in the state
    cdef readonly tuple refused  # the leaf, another one that it overlaps or -1, and the exception that says why

    def __init__(
        self, object structure, list params, list every, list places, list avg16, object see, object get_num_threads
    ):
        cdef size_t i
        self.structure, self.claim = structure, _core.Claim(len(params))
        self.every, self.places, self.see, self.get_num_threads = every, places, see, get_num_threads
        self.own = [param for param, place in zip(every, places, strict=True) if place >= 0]
        if not len(self.own) == len(params) == structure.size:
            raise ValueError("the parts of the plan do not fit each other")
        for param in params:
            find_if_tensor(<PyObject *>param)
        self._allocate(len(params), 3 * sum([param.ndim for param in params]), c.RMSP_ARRAY_COUNT)
        self._fill_slots([seen_as(param) for param in params], avg16)
        for i in range(self.plan.leaf_count):
            self.plan.leaves[i].array[<int>c.RMSP_GRAD] = NULL
            self.has_bf16 |= self.plan.extras[i].avg16 or self.plan.slots[i].type == c.RMSP_BF16
        origins = np.zeros((len(params), 2), np.intp)  # random bits are those of the index in `every`
        origins[[place for place in places if place >= 0], 0] = [i for i, place in enumerate(places) if place >= 0]
        self._keep_origins(origins)

    def set_groups(self, list watched, list masks, object counts, list steps):
        """Say how groups and state are read; after set_numbers, whose lr are those of the steps.

        Parameters
        ----------
        watched : list of tuple
            For each group keys and values, by which its options are known to be the same.
        masks : list of int
            For each group the bits of the buffers of its parameters; 0 where none of them is stepped here.
        counts : torch.Tensor, shape (leaves,)
            The steps of each leaf, float32 or float64.
        steps : list of torch.Tensor
            Its elements, as views.
        """
        cdef size_t g
        for g in range(self.plan.group_count):
            c.rmsp_group_set_lr(&self.plan.groups[g], self.lrs[g])
        self.watched, self.masks, self.counts, self.steps = watched, masks, counts, steps
        self.plan.bound = 0

    def step_groups(self, object param_groups, object state, object left_out=None, bint only_checks=False):
        """Step every parameter that has a gradient.

        Parameters
        ----------
        param_groups : sequence of dict
            Those of the optimizer.
        state : dict
            The optimizer's state.
        left_out : set of int, optional
            Leaves that this step leaves to others.
        only_checks : bool
            Do all but the step itself.

        Returns
        -------
        int
            STEPPED; NOTHING where no parameter has a gradient; NEEDS_NUMBERS, NEEDS_STATE, NEEDS_PLAN where the options
            of a group have changed, a parameter lacks buffers, the parameters are others; REFUSED with `refused`.
        """
        cdef int outcome
        cdef list groups = param_groups if type(param_groups) is list else list(param_groups)
        _core.take(self.claim)
        try:
            outcome = self._watch(groups)
            if outcome == IS_STEPPED:
                outcome = self._collect_groups(groups, state, left_out, only_checks)
            if outcome == IS_STEPPED:
                outcome = self._bind_and_step(only_checks)
        finally:
            self._release_all()
            _core.release(self.claim)
        return outcome

    # ---- the options of the groups ----

    cdef int _watch(self, list groups) except -1:
        """Whether the groups have the options that the coefficients were formed of; a new lr is taken over."""
        cdef size_t g
        cdef Py_ssize_t k
        cdef tuple known
        cdef PyObject *value
        cdef object lr, group
        cdef double rate
        if not self.ready:
            return WANTS_NUMBERS
        if len(groups) != len(self.watched):
            return WANTS_PLAN
        for g in range(self.plan.group_count):
            group, known = groups[g], <tuple>self.watched[g]
            if not PyDict_Check(<PyObject *>group):
                raise TypeError(f"param_groups[{g}] is a {type(group).__name__}, not a dict")
            for k in range(0, len(known), 2):
                value = PyDict_GetItemWithError(group, known[k])
                if value == NULL or (value != <PyObject *>known[k + 1] and not (
                    PyFloat_Check(<object>value) and is_number(known[k + 1], PyFloat_AS_DOUBLE(<object>value))
                )):
                    return WANTS_NUMBERS
            if self.masks[g] == 0:
                continue  # no parameter of the group is stepped here; its lr is among what is watched
            value = PyDict_GetItemWithError(group, LR)
            if value == NULL:
                return WANTS_NUMBERS
            lr = <object>value
            if type(lr) is not float:
                lr = PyNumber_Float(lr)  # an int, a number of NumPy, a tensor
            rate = PyFloat_AS_DOUBLE(lr)
            if is_number(self.lrs[g], rate):
                continue
            if not (0.0 <= rate <= self.largest and rate * self.plan.groups[g].decay <= self.largest):
                return WANTS_NUMBERS
            self.lrs[g] = lr
            c.rmsp_group_set_lr(&self.plan.groups[g], rate)
        return IS_STEPPED

    # ---- the tensors ----

    cdef int _take_tensor(self, int k, size_t i, object tensor, object param, bint has_stand_in) except -1:
        """Hold what stands for array k of a leaf; beside a parameter for which another tensor stands none is proper."""
        cdef c.rmsp_slot *slot = &self.plan.slots[i]
        if has_stand_in or not is_tensor(<PyObject *>tensor):
            try:
                tensor = self.see(tensor, param)
                if not is_tensor(<PyObject *>tensor):
                    raise TypeError(f"is a {type(tensor).__name__}")
            except TypeError as error:
                return self._say_refused(i, -1, TypeError(f"{self._title(k, i)} {error}"))
        if slot.n == 1 or slot.type & c.RMSP_PAIRS:
            if has_lazy_bits(tensor):
                return self._say_refused(i, -1, refusal("lazy_bits", self._title(k, i), tensor))
        if describe_by_table == NULL:
            try:
                tensor = seen_as(tensor)
            except (TypeError, RuntimeError) as error:
                return self._say_refused(i, -1, error)
        Py_INCREF(tensor)
        self.leaves[k * self.plan.leaf_count + i] = <PyObject *>tensor
        return IS_STEPPED

    cdef str _title(self, int k, size_t i):
        return title(ARRAYS[k], self._path(i))

    cdef int _say_refused(self, size_t i, Py_ssize_t other, object error) except -1:
        self.refused = (i, other, error)
        return IS_REFUSED

    cdef int _collect_groups(self, list groups, object state, object left_out, bint only_checks) except -1:
        """Hold the tensors of every parameter that has a gradient, and all that is to be asked before descriptors."""
        cdef size_t g, n = self.plan.leaf_count, count = 0
        cdef Py_ssize_t at = 0, j, i, position = 0
        cdef int k, outcome, mask
        cdef bint has_stand_in
        cdef object params, param, grad, of_param, buffer
        cdef Py_ssize_t before
        cdef PyObject *key = NULL
        cdef PyObject *entry = NULL
        cdef PyObject *found
        cdef list written
        if not PyDict_Check(<PyObject *>state):
            raise TypeError(f"the optimizer's state is a {type(state).__name__}, not a dict")
        for g in range(len(groups)):
            found = PyDict_GetItemWithError(<object>groups[g], PARAMS)
            if found == NULL or not PyList_CheckExact(found):
                return WANTS_PLAN
            params = <object>found
            mask = self.masks[g]
            j = 0
            while j < PyList_GET_SIZE(params):  # which code that a gradient's access runs may change
                if at >= PyList_GET_SIZE(self.every) or PyList_GET_ITEM(params, j) != PyList_GET_ITEM(self.every, at):
                    return WANTS_PLAN
                param = <object>PyList_GET_ITEM(params, j)
                i = self.places[at]
                j += 1
                at += 1
                if i < 0 or (left_out is not None and i in left_out):
                    continue
                grad = getattr(param, GRAD)
                if grad is None:
                    continue
                has_stand_in = not is_tensor(<PyObject *>param)
                # The state usually has the parameters in their order: a lookup would call Tensor.__hash__.
                before = position
                if PyDict_Next(<PyObject *>state, &position, &key, &entry) == 0 or key != <PyObject *>param:
                    position = before
                    entry = PyDict_GetItemWithError(state, param)
                if entry == NULL or not PyDict_Check(entry):
                    return WANTS_STATE
                of_param = <object>entry
                if PyDict_GetItemWithError(of_param, STEP) != PyList_GET_ITEM(self.steps, i):
                    return WANTS_STATE
                for k in range(c.RMSP_SQUARE_AVG, c.RMSP_ARRAY_COUNT):
                    if not mask >> k & 1 or not self._has_buffer(i, k):
                        continue
                    found = PyDict_GetItemWithError(of_param, BUFFERS[k - <int>c.RMSP_SQUARE_AVG])
                    if found == NULL:
                        return WANTS_STATE
                    buffer = <object>found
                    outcome = self._take_tensor(k, i, buffer, param, has_stand_in)
                    if outcome != IS_STEPPED:
                        return outcome
                outcome = self._take_tensor(c.RMSP_PARAM, i, param, param, has_stand_in)
                if outcome == IS_STEPPED:
                    outcome = self._take_tensor(c.RMSP_GRAD, i, grad, param, has_stand_in)
                if outcome != IS_STEPPED:
                    return outcome
                count += 1
        if at != PyList_GET_SIZE(self.every):
            return WANTS_PLAN
        if count == 0:
            return IS_NOTHING
        if not only_checks:
            written = self.own
            if count != n:
                written = [self.own[i] for i in range(<Py_ssize_t>n) if self.leaves[i] != NULL]
            increment_version(written)
        if _core.is_large(self.whole.bytes):
            self.plan.threads = self.get_num_threads()
        return IS_STEPPED

    cdef void _release_all(self) noexcept:
        cdef size_t i
        cdef PyObject *held
        for i in range(self.kinds * self.plan.leaf_count):
            held = self.leaves[i]
            self.leaves[i] = NULL
            Py_XDECREF(held)

    cdef bint _bind_groups_again(self) noexcept:
        """Bind tensors like those of the last step; False where rmsp_bind must decide."""
        cdef size_t i, n = self.plan.leaf_count
        cdef int k
        cdef bint has_all = True
        cdef c.rmsp_array param, grad, buffer
        cdef PyObject *o
        for i in range(n):
            if self.leaves[i] == NULL:
                self.plan.leaves[i].array[<int>c.RMSP_GRAD] = NULL
                has_all = False
                continue
            describe_unusual(self.leaves[i], &param)
            describe_unusual(self.leaves[n + i], &grad)
            if not bind_described(&self.plan, i, &param, &grad):
                return False
            for k in range(c.RMSP_SQUARE_AVG, c.RMSP_ARRAY_COUNT):
                o = self.leaves[k * n + i]
                if o == NULL:
                    if self._buffer(i, k - <int>c.RMSP_SQUARE_AVG)[0] != NULL:
                        return False
                    continue
                describe_unusual(o, &buffer)
                if k == c.RMSP_LOW_HALF:
                    mark_low_half(o, &buffer)
                if not c.rmsp_is_bound(
                    &self.plan.slots[i], self._type_of(i, k), self._buffer(i, k - <int>c.RMSP_SQUARE_AVG)[0], &buffer
                ):
                    return False
        self.plan.work = self.whole if has_all else _core.plan_work(&self.plan)
        return True

    cdef int _bind_groups(self) except -1:
        """Bind any tensors, or say why not."""
        cdef size_t i, n = self.plan.leaf_count
        cdef int k
        cdef c.rmsp_array array
        cdef c.rmsp_refusal where
        cdef int reason
        self._make_room()
        for i in range(self.kinds * n):
            if self.leaves[i] == NULL or not is_tensor(self.leaves[i]):
                continue
            describe_unusual(self.leaves[i], &array)
            if array.problem == c.RMSP_OK and may_be_lazy(&array) and has_lazy_bits(<object>self.leaves[i]):
                k = i // n
                return self._say_refused(
                    i % n, -1, refusal("lazy_bits", self._title(k, i % n), <object>self.leaves[i])
                )
        for k in range(self.kinds):
            for i in range(n):
                if self.leaves[k * n + i] == NULL:
                    self._describe(<PyObject *>None, i, k)
                else:
                    self._describe(self.leaves[k * n + i], i, k)
        for i in range(n):
            mark_low_half(self.leaves[c.RMSP_LOW_HALF * n + i], &self.described[c.RMSP_LOW_HALF * n + i])
        reason = self._call_bind(True, &where)
        if reason == c.RMSP_OK:
            return IS_STEPPED
        if reason == c.RMSP_NOT_C_ORDER or (
            reason == c.RMSP_OTHER_DTYPE and where.array > c.RMSP_GRAD
            and self.plan.slots[where.leaf].type == self.described[where.array * n + where.leaf].type == c.RMSP_BF16
        ):
            return WANTS_STATE  # as torch's class keeps it
        if where.array == c.RMSP_PARAM and (reason == c.RMSP_OTHER_DTYPE or reason == c.RMSP_OTHER_SHAPE):
            return WANTS_PLAN
        try:
            self._refuse(<c.rmsp_reason>reason, &where, self.leaves, self.leaves + n)
        except (TypeError, ValueError) as error:
            if reason == c.RMSP_NULL_DATA:
                raise  # torch's operations would read there
            return self._say_refused(where.leaf, where.other_leaf if reason == c.RMSP_OVERLAP else -1, error)

    cdef void _take_counts(self, const real *counts) noexcept:
        """The number of the step is the largest count; random bits go by a leaf's own, which are others at each step of
        it, whatever the steps of other leaves."""
        cdef size_t i, n = self.plan.leaf_count
        cdef long long largest = 0
        for i in range(n):
            largest = max(largest, count_of(counts[i]))
        self.claim.counts.steps = largest
        if self.has_bf16:
            for i in range(n):
                self.plan.extras[i].behind = largest - count_of(counts[i])

    cdef int _bind_and_step(self, bint only_checks) except -1:
        cdef int outcome
        cdef c.rmsp_found found
        cdef c.rmsp_array counts
        cdef object seen = seen_as(self.counts)
        if not self.plan.bound or not self._bind_groups_again():
            outcome = self._bind_groups()
            if outcome != IS_STEPPED:
                return outcome
        describe(<PyObject *>seen, &counts)
        if (
            counts.problem != c.RMSP_OK or counts.ndim != 1 or <size_t>counts.shape[0] != self.plan.leaf_count
            or counts.data == NULL or not counts.flags & c.RMSP_C_ORDER
        ):
            raise ValueError("the counts of steps in the optimizer's state are no longer those that it made")
        if only_checks:
            return IS_STEPPED
        if counts.type == c.RMSP_F32:
            self._take_counts(<const float *>counts.data)
        else:
            self._take_counts(<const double *>counts.data)
        if _core.is_large(self.plan.work.bytes):
            with nogil:
                _core.step(&self.plan, &found)
        else:
            _core.step(&self.plan, &found)
        if counts.type == c.RMSP_F32:
            add_one(<float *>counts.data, self.leaves, self.plan.leaf_count)
        else:
            add_one(<double *>counts.data, self.leaves, self.plan.leaf_count)
        return IS_STEPPED


cdef inline void mark_low_half(PyObject *o, c.rmsp_array *array) noexcept:
    """Of an ndarray that stands for a tensor of lower halves say so: NumPy's number does not."""
    if (
        o != NULL and Py_TYPE(<object>o) == NDARRAY and array.problem == c.RMSP_UNSUPPORTED
        and cnp.PyArray_TYPE(<cnp.ndarray>o) == cnp.NPY_INT16
    ):
        array.type = c.RMSP_LOW16
        array.problem = c.RMSP_OK


cdef void add_one(real *counts, PyObject **stepped, size_t n) noexcept:
    """Count a step of each leaf that had one."""
    cdef size_t i
    for i in range(n):
        if stepped[i] != NULL:
            counts[i] += 1
