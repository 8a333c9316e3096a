/* rmsp_formula.inc.h: THE formula: what a step does to one element.
 *
 * A piece of a loop's body, and no function: with the arrays behind pointers that a function was given, gcc tests
 * whether they overlap, and with copies of their elements a step with momentum and centering took 1.05 times as long.
 * The loop has, all of them constant where it is compiled: momentum, centered, l2, neutral; T, the type of the
 * arithmetic; SQRT, its square root; c, the coefficients; and AT(array), the element of param, grad, square_avg,
 * momentum_buffer and grad_avg that is stepped.
 *
 * The order of operations is the specification: nothing here may be reassociated or contracted (-ffp-contract=off), and
 * reference.py says the same in NumPy.
 */
{
    const T p = AT(param);
    T g = AT(grad);
    if (!neutral) {
        g = c.grad_scale * g;
        g = c.clip_value < g ? c.clip_value : g; /* in this form a NaN stays */
        g = -c.clip_value > g ? -c.clip_value : g;
    }
    if (l2) g = g + c.weight_decay * p;

    const T v = c.rho * AT(square_avg) + (c.one_minus_rho * g) * g;
    T d = neutral ? v : c.bias_correction * v;
    if (centered) {
        const T a = c.rho * AT(grad_avg) + c.one_minus_rho * g;
        const T mean = neutral ? a : c.bias_correction * a;
        AT(grad_avg) = a;
        d = d - mean * mean;
        d = d < 0 ? 0 : d; /* rounding alone takes a constant gradient below 0 */
    }
    const T r = SQRT(d + c.eps_inside) + c.eps_outside;

    T u = (c.lr_in * g) / r;
    if (momentum != RMSP_MOMENTUM_NONE) {
        const T b = c.momentum * AT(momentum_buffer) + u;
        AT(momentum_buffer) = b;
        u = nesterov ? u + c.momentum * b : b;
    }
    AT(square_avg) = v;
    AT(param) = (neutral ? p : c.shrink * p) - (neutral && momentum == RMSP_MOMENTUM_NONE ? u : c.lr_out * u);
}
