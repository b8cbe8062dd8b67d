"""Derive the polynomial coefficients of the vector math and write `cermet/compiler/llvm/vmath/polynomials.py`.

Each table approximates ``g(x)`` on ``[lo, hi]`` by a polynomial, where the kernel uses it as ``known(x) + scale(x) * g(x)``;
the error that counts is that of the whole, relative to the function, so the fit is weighted by ``scale / function``. It is a weighted
least-squares fit at Chebyshev nodes (within a small factor of minimax), solved in high precision; coefficients are then
rounded one by one from the constant upwards, the rest being fitted again each time, so that rounding costs almost nothing.

    python bench/vmath_coefficients.py            # rewrites the tables (about two minutes)
    python bench/vmath_coefficients.py NAME ...   # prints degree and error of these only
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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


def series(f: Real, head: Real, scale: Real) -> tuple[Real, Real]:
    """``g`` and the weight for ``f = head + scale * g``, relative to ``f``."""

    def g(x: mp.mpf) -> mp.mpf:
        with mp.workdps(140):
            return (f(x) - head(x)) / scale(x)

    return g, lambda x: scale(x) / f(x)


def fits() -> Iterator[Fit]:
    """All tables."""
    root, one = mp.sqrt, mp.mpf(1)
    half_ln2 = float(mp.log(2) / 2) * 1.001
    for to, bits in ((32, 26.5), (64, 55.5)):

        def fit(name: str, f: Real, head: Real, scale: Real, lo: float, hi: float, note: str, b: float | None = None, to: int = to, bits: float = bits) -> Fit:
            g, w = series(f, head, scale)
            return Fit(name, g, w, lo, hi, bits if b is None else b, to, note)

        yield fit("exp", mp.expm1, lambda r: r, lambda r: r * r, -half_ln2, half_ln2, "(e**r - 1 - r) / r**2", bits - 0.5)
        yield fit("exp2", lambda r: mp.mpf(2) ** r, lambda r: one, lambda r: r, -0.5, 0.5, "(2**r - 1) / r", bits - 0.5)
        if to == 32:
            yield fit("log", mp.log1p, lambda f: f - f * f / 2, lambda f: f**3, -0.2929, 0.41422, "(log(1 + f) - f + f**2/2) / f**3")
            yield fit("atan", lambda z: mp.atan(root(z)) / root(z), lambda z: one, lambda z: z, 1e-9, 1.0, "(atan(x) - x) / x**3, in x**2")
        else:
            yield fit("log", lambda z: 2 * mp.atanh(root(z)) / root(z), lambda z: mp.mpf(2), lambda z: z, 1e-15, 0.02944, "(log((1 + s)/(1 - s)) - 2s) / s**3, in s**2")
            yield fit("atan", lambda z: mp.atan(root(z)) / root(z), lambda z: one, lambda z: z, 1e-9, 0.17158, "(atan(x) - x) / x**3, in x**2")
        sine = lambda z: mp.sin(root(z)) / root(z)  # noqa: E731
        yield fit("sin", sine, lambda z: one, lambda z: z, 1e-9, 2.54, "(sin(r) - r) / r**3 for r in ±pi/2, in r**2")
        yield fit("sin4", sine, lambda z: one, lambda z: z, 1e-9, 0.6225, "(sin(r) - r) / r**3 for r in ±pi/4, in r**2")
        yield fit("cos4", lambda z: mp.cos(root(z)), lambda z: 1 - z / 2, lambda z: z * z, 1e-9, 0.6225, "(cos(r) - 1 + r**2/2) / r**4, in r**2")
        yield fit("asin", lambda z: mp.asin(root(z)) / root(z), lambda z: one, lambda z: z, 1e-9, 0.25, "(asin(x) - x) / x**3, in x**2")
        yield fit("sinh", lambda z: mp.sinh(root(z)) / root(z), lambda z: one, lambda z: z, 1e-9, 1.0, "(sinh(x) - x) / x**3 for x in ±1, in x**2")
        yield fit("erf", lambda z: mp.erf(root(z)) / root(z), lambda z: one, lambda z: one, 1e-9, 1.0, "(erf(x) - x) / x for x in ±1, in x**2")
        if to == 32:
            yield fit("erfc_mid", lambda x: mp.erf(x + 2.5), lambda x: one, lambda x: -one, -1.5, 1.5, "erfc(x + 2.5) for x in ±1.5")


def main(names: list[str]) -> None:
    lines: list[str] = []
    for fit in fits():
        if names and fit.name not in names:
            continue
        c, worst = best(fit)
        print(f"{fit.name:12} f{fit.to} {len(c):3} terms, error 2**{float(mp.log(worst, 2)):.1f}", flush=True)
        lines.append(f"    # {fit.note}; on [{fit.lo:.6g}, {fit.hi:.6g}], error 2**{float(mp.log(worst, 2)):.1f}")
        lines.append(f'    ("{fit.name}", {fit.to}): (')
        lines.extend(f"        {float(v)!r}," for v in c)
        lines.append("    ),")
    if not names:
        head = '"""Coefficients of the vector math, constant term first. Written by bench/vmath_coefficients.py; do not edit."""\n\n'
        OUT.write_text(head + "TABLES: dict[tuple[str, int], tuple[float, ...]] = {\n" + "\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
