"""Derive the polynomial coefficients of the vector math and write `cermet/compiler/llvm/vmath/polynomials.py`.

Each table approximates ``g(x)`` on ``[lo, hi]`` by a polynomial, where the kernel uses it as ``known(x) + scale(x) * g(x)``;
the error that counts is that of the whole, relative to the function, so the fit is weighted by ``scale / function``. It is a
least-squares fit at Chebyshev nodes (within a small factor of minimax), solved in high precision; coefficients are then
rounded one by one from the constant upwards, the rest being fitted again each time, so that rounding costs almost nothing.

    python bench/vmath_coefficients.py            # rewrites the tables (about four minutes)
    python bench/vmath_coefficients.py NAME ...   # fits these again, keeps the others
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np

mp.mp.dps = 70
OUT = Path(__file__).parent.parent / "cermet" / "compiler" / "llvm" / "vmath" / "polynomials.py"
Real = Callable[[mp.mpf], mp.mpf]


@dataclass
class Fit:
    """One table: ``g`` on ``[lo, hi]`` with error weight ``weight``, to a relative error of ``2**-bits``, rounded to ``to``."""

    name: str
    g: Real
    weight: Real
    lo: float
    hi: float
    bits: float
    to: int
    note: str


def rounded(value: mp.mpf, to: int) -> mp.mpf:
    """``value`` in float32 or float64."""
    return mp.mpf(float(np.float32(float(value))) if to == 32 else float(value))


def solve(fit: Fit, terms: int) -> tuple[list[float], mp.mpf]:
    """The coefficients for a polynomial of ``terms`` terms, and its worst weighted error on a fine grid."""
    lo, hi = mp.mpf(fit.lo), mp.mpf(fit.hi)
    count = 3 * terms + 5
    nodes = [(lo + hi) / 2 + (hi - lo) / 2 * mp.cos(mp.pi * (2 * k + 1) / (2 * count)) for k in range(count)]
    unit = max(abs(lo), abs(hi))
    weights = [fit.weight(x) for x in nodes]
    rows = [[w * (x / unit) ** j for j in range(terms)] for x, w in zip(nodes, weights, strict=True)]
    rest = [w * fit.g(x) for x, w in zip(nodes, weights, strict=True)]
    gram = [[mp.fdot((r[i], r[j]) for r in rows) for j in range(terms)] for i in range(terms)]
    fixed: list[mp.mpf] = []
    for k in range(terms):
        a = mp.matrix([[gram[i][j] for j in range(k, terms)] for i in range(k, terms)])
        y = mp.matrix([mp.fdot((r[i], v) for r, v in zip(rows, rest, strict=True)) for i in range(k, terms)])
        c = rounded(mp.lu_solve(a, y)[0] / unit**k, fit.to)
        fixed.append(c)
        rest = [v - c * unit**k * r[k] for r, v in zip(rows, rest, strict=True)]
    grid = [lo + (hi - lo) * (k + mp.mpf("0.5")) / (8 * count) for k in range(8 * count)]
    worst = max(abs(fit.weight(x) * (fit.g(x) - mp.polyval(fixed[::-1], x))) for x in grid)
    return [float(c) for c in fixed], worst


def best(fit: Fit) -> tuple[list[float], mp.mpf]:
    """The shortest polynomial that is good enough."""
    for terms in range(2, 40):
        c, worst = solve(fit, terms)
        if worst < mp.mpf(2) ** -fit.bits:
            return c, worst
    raise ValueError(f"{fit.name}: no polynomial of up to 40 terms reaches 2**-{fit.bits}")


class Fits:
    """Collects tables for one format. Errors are relative to the whole function."""

    def __init__(self, to: int, bits: float) -> None:
        self.to, self.bits = to, bits
        self.all: list[Fit] = []

    def add(
        self, name: str, note: str, span: tuple[Any, Any], f: Real, head: Real, scale: Real, bits: float | None = None
    ) -> None:
        """``g`` with ``f = head + scale * g`` on ``span``."""

        def g(x: mp.mpf) -> mp.mpf:
            with mp.workdps(140):
                return (f(x) - head(x)) / scale(x)

        weight = lambda x: scale(x) / f(x)
        self.all.append(Fit(name, g, weight, float(span[0]), float(span[1]), bits or self.bits, self.to, note))

    def odd(self, name: str, f: Real, reach: float) -> None:
        """``f(x) = x + x**3 g(x**2)`` for ``|x| <= reach``."""
        ratio = lambda z: f(mp.sqrt(z)) / mp.sqrt(z)
        self.add(name, f"({name}(x) - x) / x**3, in x**2", (1e-9, reach**2), ratio, lambda z: mp.mpf(1), lambda z: z)

    def plain(self, name: str, note: str, span: tuple[Any, Any], f: Real, bits: float | None = None) -> None:
        """``f`` itself."""
        self.all.append(Fit(name, f, lambda x: 1 / f(x), float(span[0]), float(span[1]), bits or self.bits, self.to, note))

    def small(self, name: str, note: str, span: tuple[Any, Any], f: Real, bits: float) -> None:
        """``f`` itself, to an absolute error."""
        self.all.append(Fit(name, f, lambda x: mp.mpf(1), float(span[0]), float(span[1]), bits, self.to, note))


def _erfc_shape(x: mp.mpf) -> mp.mpf:
    return mp.erfc(x) * mp.exp(x * x) * (1 + 2 * x)


def _stirling(y: mp.mpf) -> mp.mpf:
    return y * (mp.loggamma(y) - (y - 0.5) * mp.log(y) + y - mp.log(2 * mp.pi) / 2)


def _digamma_tail(y: mp.mpf) -> mp.mpf:
    return y * y * (mp.log(y) - 1 / (2 * y) - mp.digamma(y))


# Intervals of w, sqrt(w), sqrt(w) with w = -log(1 - x**2), and the centres that their polynomials expand in.
ERFINV = ((1e-18, 5.0, 2.59375), (2.23, 4.0, 3.171875), (3.99, 6.02, 4.984375))


def _erfinv_shape(w: mp.mpf) -> mp.mpf:
    x = mp.sqrt(-mp.expm1(-w))
    if w < 3:
        return mp.erfinv(x) / x
    rest = -mp.expm1(mp.log1p(-mp.exp(-w)) / 2)  # 1 - x
    return mp.findroot(lambda y: mp.log(mp.erfc(y)) - mp.log(rest), mp.sqrt(w - 1)) / x


def _atanh_series(z: mp.mpf) -> mp.mpf:
    return mp.atanh(mp.sqrt(z)) / mp.sqrt(z)


def fits() -> list[Fit]:
    """All tables."""
    one = mp.mpf(1)
    half_ln2 = float(mp.log(2) / 2) * 1.001
    s_reach = 0.02944  # the square of (sqrt(2) - 1)/(sqrt(2) + 1), and a little more
    single, double = Fits(32, 26.5), Fits(64, 55.5)
    for t in single, double:
        t.add("exp", "(e**r - 1 - r) / r**2", (-half_ln2, half_ln2), mp.expm1, lambda r: r, lambda r: r * r, t.bits - 0.5)
        t.add("exp2", "(2**r - 1) / r", (-0.5, 0.5), lambda r: 2**r, lambda r: one, lambda r: r, t.bits - 0.5)
        if t is single:
            t.add(
                "log", "(log(1 + f) - f + f**2/2) / f**3", (-0.2929, 0.41422), mp.log1p, lambda f: f - f * f / 2, lambda f: f**3
            )
        else:
            note = "(log((1 + s)/(1 - s)) - 2s) / s**3, in s**2"
            t.add("log", note, (1e-15, s_reach), lambda z: 2 * _atanh_series(z), lambda z: mp.mpf(2), lambda z: z)
        t.odd("atan", mp.atan, 1.0)
        t.odd("tanh", mp.tanh, 0.55)
        t.odd("sin", mp.sin, 1.594)  # pi/2 and the error of choosing the multiple
        t.all.append(replace(t.all[-1], name="sin4", hi=0.6225))
        cos_scale = lambda z: z * z
        note = "(cos(r) - 1 + r**2/2) / r**4, in r**2"
        t.add("cos4", note, (1e-9, 0.6225), lambda z: mp.cos(mp.sqrt(z)), lambda z: 1 - z / 2, cos_scale)
        t.odd("asin", mp.asin, 0.5)
        t.odd("sinh", mp.sinh, 1.0)
        ratio = lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z)
        t.add("erf", "(erf(x) - x) / x, in x**2", (1e-9, 1), ratio, lambda z: one, lambda z: one)
    single.add("erfc_mid", "erfc(x + 2.5)", (-1.5, 1.5), lambda x: mp.erf(x + 2.5), lambda x: one, lambda x: -one)
    t = double
    # The centre is chosen so that the constant term is almost a float64; so are those of erfinv.
    k = mp.mpf(61) / 16
    note = "e**(x**2) erfc(x) (1 + 2x), in (x - 61/16) / (x + 61/16)"
    t.plain("erfc", note, ((0.5 - k) / (0.5 + k), (27.3 - k) / (27.3 + k)), lambda v: _erfc_shape(k * (1 + v) / (1 - v)))
    note = "(atanh(s)/s - 1 - s**2/3) / s**4, in s**2"
    t.add("pow_log", note, (1e-15, s_reach), _atanh_series, lambda z: 1 + z / 3, lambda z: z * z, 68)
    t.plain("log2_short", "log2((1 + s)/(1 - s)) / s, in s**2", (1e-15, s_reach), lambda z: 2 / mp.log(2) * _atanh_series(z), 40)
    t.plain("lgamma2", "lgamma(2 + t) / t", (-0.587, 0.501), lambda v: mp.loggamma(2 + v) / v)
    note = "y (lgamma(y) - (y - 1/2) log(y) + y - log(2 pi)/2) for y > 6.4, in y**-2"
    t.small("stirling", note, (1e-8, 6.4**-2), lambda z: _stirling(1 / mp.sqrt(z)), 54)
    root = mp.findroot(mp.digamma, 1.4616321449683623)
    t.plain("digamma1", "digamma(root + t) / t", (-0.4617, 0.5384), lambda v: mp.digamma(root + v) / v, 52.8)
    note = "y**2 (log(y) - 1/(2y) - digamma(y)) for y > 4.9, in y**-2"
    t.small("digamma_tail", note, (1e-8, 4.9**-2), lambda z: _digamma_tail(1 / mp.sqrt(z)), 54)
    for n, (low, high, centre) in enumerate(ERFINV):
        note = f"erfinv(x)/x, in {'sqrt(w)' if n else 'w'} - {centre} with w = -log(1 - x**2)"
        power = 2 if n else 1
        shape = lambda v, c=centre, power=power: _erfinv_shape((v + c) ** power)
        t.plain(f"erfinv{n}", note, (low - centre, high - centre), shape)
    return single.all + double.all


def main(names: list[str]) -> None:
    blocks: dict[tuple[str, int], str] = {}
    if names and OUT.exists():
        for block in OUT.read_text().split("    # ")[1:]:
            name, to = block.split('("')[1].split('", ')
            blocks[name, int(to[:2])] = "    # " + block.removesuffix("}\n")
    for fit in fits():
        if names and fit.name not in names:
            continue
        c, worst = best(fit)
        bits = float(mp.log(worst, 2))
        print(f"{fit.name:12} f{fit.to} {len(c):3} terms, error 2**{bits:.1f}", flush=True)
        head = f"    # {fit.note}; on [{fit.lo:.6g}, {fit.hi:.6g}], error 2**{bits:.1f}\n"
        rows = "".join(f"        {v!r},\n" for v in c)
        blocks[fit.name, fit.to] = f'{head}    ("{fit.name}", {fit.to}): (\n{rows}    ),\n'
    head = '"""Coefficients of the vector math, constant term first. Written by bench/vmath_coefficients.py; do not edit."""\n\n'
    OUT.write_text(head + "TABLES: dict[tuple[str, int], tuple[float, ...]] = {\n" + "".join(blocks.values()) + "}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
