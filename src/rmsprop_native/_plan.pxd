# What the compiled module above _plan calls.

# Plan.step of the plan of a PlanOwner, without the cost of finding it.
cdef bint step(object owner, object params, object grads, object lr, object grad_scale) except -1
