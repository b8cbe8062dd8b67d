"""The logistic function and the hyperbolic tangent as the gates of recurrent cells use them: short rather than exact.

In a recurrence these functions are most of what is not a product, and wait for each other; errors of a few units in the last place
vanish beside those of the sums that enter them. Both keep their limits at infinity, NaN, and the relative accuracy near 0. In
float64 the exact functions serve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import SINGLE, Value, cap, floor_at, format_of, horner, table
from .exp_log import exp, reduce_exp
from .hyperbolic import tanh

if TYPE_CHECKING:
    from ..builder import LaneBuilder

# tanh(x) = x P(x**2) / Q(x**2) on |x| < 9.02, relative error 2.1e-8 before rounding: linearised least squares, weighted towards
# the largest error until the errors were level.
_P = (1.0, 0.1337970644235611, 0.0034940207842737436, 2.0583258447004482e-05, 1.3318770974990457e-08)
_Q = (1.0, 0.46713021397590637, 0.025871021673083305, 0.00032830704003572464, 7.761894380564627e-07)
_SATURATED = 9.02
"""From here on the hyperbolic tangent rounds to 1."""


def logistic(b: LaneBuilder, x: Value) -> Value:
    """``1 / (1 + e**-x)``, at most 3 ulp in float32, 0 where that is below 1e-38."""
    one = b.f(1.0, x)
    if format_of(x) is not SINGLE:
        return b.fdiv(one, b.fadd(one, exp(b, b.fneg(x))))
    # The cap is where 2**n becomes infinite by its bits alone, and the quotient 0.
    y = cap(b, floor_at(b, b.fneg(x), -87.0), 89.0)
    r, biased = reduce_exp(b, y, -SINGLE.bias)
    raw = b.as_int(biased)
    power = b.as_float(b.shl(raw, b.i(SINGLE.mantissa, raw)))
    return b.fdiv(one, b.fma(horner(b, r, (1.0, 1.0, *table("exp", x))), power, one))


def bounded_tanh(b: LaneBuilder, x: Value) -> Value:
    """The hyperbolic tangent, at most 6 ulp in float32, never beyond 1."""
    if format_of(x) is not SINGLE:
        return tanh(b, x)
    y = cap(b, floor_at(b, x, -_SATURATED), _SATURATED)
    z = b.fmul(y, y)
    quotient = b.fdiv(b.fmul(y, horner(b, z, _P)), horner(b, z, _Q))
    return cap(b, floor_at(b, quotient, -1.0), 1.0)
