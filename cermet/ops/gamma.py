"""The gamma function's logarithm and its derivatives (DLMF chapter 5)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet.graph.node import Meta
from cermet.ops.define import Arg, OpDef, Sample
from cermet.ops.elementwise import mul
from cermet.ops.kinds import FLOATS
from cermet.ops.mathematics import each, function
from cermet.ops.public import public
from cermet.ops.support import floating

_BOTH = ("", "special")
_X = (0,)


def _lgamma(x: float) -> float:
    if x == -math.inf:
        return math.inf
    try:
        return math.lgamma(x)
    except ValueError:  # a pole
        return math.inf


def _zeta_tail(n: int, x: Any, log_free: Any) -> Any:
    """The sum of 1 / (x + k)^(n+1), k >= 0, for large x: Euler-Maclaurin (DLMF 5.15.8), times 1. ``log_free(p)`` is x^-p."""
    s = n + 1
    terms = [(1.0 / n, n), (0.5, s)]
    rising = float(s)
    factorial = 2.0
    for k, bernoulli in enumerate((1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6), start=1):
        terms.append((bernoulli * rising / factorial, s + 2 * k - 1))
        rising *= (s + 2 * k - 1) * (s + 2 * k)
        factorial *= (2 * k + 1) * (2 * k + 2)
    return [(weight, log_free(power)) for weight, power in terms]


_SHIFT = 8
"""How far polygamma's argument is moved up before the asymptotic series: its error is then below 1e-13 relative."""


def _polygamma_lower(b: Any, x: Any, *, n: int) -> Any:
    """Below one half by reflection (n = 1), or by a longer recurrence."""
    positive = x
    reflect = b.lt(x, 0.5)
    if n == 1:
        positive = b.select(reflect, b.sub(b.like(x, 1.0), x), x)
    total = b.like(x, 0.0)
    for k in range(_SHIFT):
        total = b.add(total, _inverse_power(b, b.add(positive, float(k)), n + 1))
    shifted = b.add(positive, float(_SHIFT))
    inverse = b.div(b.like(x, 1.0), shifted)
    for weight, power in _zeta_tail(n, shifted, lambda p: _power(b, inverse, p)):
        total = b.add(total, b.mul(power, weight))
    value = b.mul(total, float((-1) ** (n + 1) * math.factorial(n)))
    if n != 1:
        return value
    turn = b.sin(b.mul(b.sub(x, b.rint(x)), math.pi))
    return b.select(reflect, b.sub(b.div(b.like(x, math.pi**2), b.mul(turn, turn)), value), value)


def _power(b: Any, x: Any, n: int) -> Any:
    out = x
    for _ in range(n - 1):
        out = b.mul(out, x)
    return out


def _inverse_power(b: Any, x: Any, n: int) -> Any:
    return b.div(b.like(x, 1.0), _power(b, x, n))


def _polygamma_reference(x: Any, *, n: int) -> Any:
    x = np.asarray(x)
    positive = np.where(x < 0.5, 1 - x, x) if n == 1 else x
    total = sum((positive + k) ** -float(n + 1) for k in range(_SHIFT))
    for weight, power in _zeta_tail(n, positive + _SHIFT, lambda p: (positive + _SHIFT) ** -float(p)):
        total = total + weight * power
    value = total * (-1) ** (n + 1) * math.factorial(n)
    return np.where(x < 0.5, (np.pi / np.sin(np.pi * (x - np.rint(x)))) ** 2 - value, value) if n == 1 else value


def _polygamma_samples() -> Any:
    return tuple(Sample((Arg(shape, (0.6, 4.0)),), {"n": n}) for n in (1, 2) for shape in ((), (3, 4), (2, 0)))


def _same(m: Meta, *, n: int) -> Meta:
    return m


polygamma_op: OpDef = OpDef(
    "polygamma",
    "elementwise",
    _same,
    attrs=("n",),
    vjp=lambda c, g: mul(g, polygamma_op(c[0], n=c.n + 1)),
    saves=_X,
    lower=_polygamma_lower,
    reference=_polygamma_reference,
    dtypes=FLOATS,
    samples=_polygamma_samples(),
    ulp=32,
    doc="The n-th derivative of digamma, n >= 1.",
)


def _digamma(x: float) -> float:
    """Reflection for x < 0, the recurrence up to 10, then the asymptotic series (DLMF 5.5.4, 5.5.2, 5.11.2)."""
    if x == 0.0:
        return math.copysign(math.inf, -x)
    if x < 0 and x == math.floor(x):
        return math.nan
    if x < 0:
        return _digamma(1 - x) - math.pi / math.tan(math.pi * (x - math.floor(x)))
    terms = []
    while x < 20:
        terms.append(-1 / x)
        x += 1
    if x == math.inf:
        return x
    r = 1 / (x * x)
    series = r * (1 / 12 - r * (1 / 120 - r * (1 / 252 - r * (1 / 240 - r * (1 / 132 - r * 691 / 32760)))))
    return math.fsum([*terms, math.log(x), -0.5 / x, -series])


digamma = function(
    "digamma",
    lambda c, g: mul(g, polygamma_op(c[0], n=1)),
    each(_digamma),
    _X,
    "Derivative of lgamma.",
    domain=(2.0, 6.0),
    ulp=6,
    namespaces=_BOTH,
)
lgamma = function(
    "lgamma",
    lambda c, g: mul(g, digamma(c[0])),
    each(_lgamma),
    _X,
    "Logarithm of the magnitude of the gamma function.",
    domain=(2.5, 6.0),
    ulp=16,  # of the reference: Python's own lgamma is the less exact of the two. The kernel is held to 4 in test_vmath.
)


@public(namespaces=_BOTH, method=False)
def polygamma(n: int, input: Any) -> Any:
    """The n-th derivative of `digamma`, n >= 0 (for n >= 2: input > 0).

    Raises:
        RuntimeError: for negative n.
    """
    if n < 0:
        raise RuntimeError(f"polygamma: n must not be negative, got {n}")
    return digamma(floating(input)) if n == 0 else polygamma_op(floating(input), n=int(n))


@public(namespaces=_BOTH, inplace=True)
def mvlgamma(input: Any, p: int) -> Any:
    """Multivariate log-gamma of dimension p: p (p-1)/4 log(pi) + sum of lgamma(x - j/2), j < p."""
    x = floating(input)
    total = lgamma(x)
    for j in range(1, p):
        total = total + lgamma(x - j / 2)
    return total + p * (p - 1) / 4 * math.log(math.pi)
