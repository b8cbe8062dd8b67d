"""Vector math: every function of `cermet.compiler.loops.ir.MATH` as inline machine code, with no library underneath.

    emit(b, "exp", x) -> value

works for float32 and float64, scalars and vectors of any number of lanes, and gives the same bits for all of them. Errors are at
most 2 units in the last place (4 for pow, lgamma and digamma); `bench/vmath_ulp.py` measures them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import error, exp_log, gamma, hyperbolic, power, trig

if TYPE_CHECKING:
    from ..builder import LaneBuilder

__all__ = ["FUNCTIONS", "emit"]

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": exp_log.exp,
    "exp2": exp_log.exp2,
    "expm1": exp_log.expm1,
    "log": exp_log.log,
    "log2": exp_log.log2,
    "log10": exp_log.log10,
    "log1p": exp_log.log1p,
    "sin": trig.sin,
    "cos": trig.cos,
    "tan": trig.tan,
    "asin": trig.asin,
    "acos": trig.acos,
    "atan": trig.atan,
    "atan2": trig.atan2,
    "sinh": hyperbolic.sinh,
    "cosh": hyperbolic.cosh,
    "tanh": hyperbolic.tanh,
    "asinh": hyperbolic.asinh,
    "acosh": hyperbolic.acosh,
    "atanh": hyperbolic.atanh,
    "erf": error.erf,
    "erfc": error.erfc,
    "erfinv": error.erfinv,
    "lgamma": gamma.lgamma,
    "digamma": gamma.digamma,
    "pow": power.pow,
}


def emit(b: LaneBuilder, name: str, *args: Any) -> Any:
    """Code for the function ``name`` of float32 or float64 arguments of one type, at the position of ``b``.

    ``atan2(y, x)`` and ``pow(x, y)`` take two arguments, the others one. New blocks may be made (sin, cos and tan of very large
    arguments take a branch); ``b.ir`` is then left at the end of the last of them.
    """
    return FUNCTIONS[name](b, *args)
