# The step in place, compiled: its call needs no Python frame, which takes a quarter of the step of one small array;
# included by _plan.pyx.

@cython.binding(False)
@cython.embedsignature(True)
@cython.embedsignature.format("clinic")
def update_(params, grads, state, *, lr=None, grad_scale=1.0):
    """Take one RMSProp step in place.

    Parameters
    ----------
    params : numpy.ndarray or nested container of them
        What `init` was called with, or arrays of the same structure, shapes and dtypes. They are written.
    grads : numpy.ndarray or nested container of them
        The gradients, in the structure of `params`; dicts are matched by key. Shapes and dtypes are those of the
        parameters, memory layouts may be any. They are never written, and may be read-only. Where a parameter has no
        gradient, None: it and its state stay as they are. A `RowGrad` changes some rows only.
    state : State
        Written: its running means, and its number of steps.
    lr : float, optional
        Learning rate of this step, in place of the state's.
    grad_scale : float, default 1.0
        Factor on the gradients, for instance 1 / loss scale.

    Returns
    -------
    numpy.ndarray or nested container of them
        `params` itself.

    Raises
    ------
    TypeError
        If a gradient is no array, or its dtype is not its parameter's.
    ValueError
        If the structures differ, a gradient's shape is not its parameter's, a gradient overlaps its parameter or
        the state, a parameter is read-only, or a number is out of its range. The message names the leaf.
    IndexError
        If a `RowGrad` has a row that its parameter does not have.
    FloatingPointError
        If a gradient is not finite and the state's ``on_nonfinite`` is "raise".
    RuntimeError
        If another thread is inside a step of the same state.

    Notes
    -----
    Whatever is raised, nothing has been written. The result is that of `rmsprop_native.reference`, to the bit, on
    every instruction set and number of threads. A NaN or infinity in a gradient spreads to its own element only.

    The rule is due to Tieleman and Hinton (2012): ``square_avg = rho * square_avg + (1 - rho) * grad**2`` and
    ``param -= lr * grad / (sqrt(square_avg) + eps)``.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5 - RMSProp: divide the gradient by a running average of its recent
    magnitude", COURSERA: Neural Networks for Machine Learning, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> w = np.array([1.0, -2.0])
    >>> state = rms.init(w, lr=0.1)
    >>> for _ in range(100):
    ...     w = rms.update_(w, 2 * w, state)  # the gradient of the sum of w**2
    >>> bool(np.abs(w).max() < 0.1), state.step
    (True, 100)
    """
    if not step(state, params, grads, lr, grad_scale):
        state._step_with_new_numbers(params, grads, lr, grad_scale)
    return params
