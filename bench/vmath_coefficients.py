"""Derive the polynomial coefficients of the vector math and write `cermet/compiler/llvm/vmath/polynomials.py`.

Each table approximates ``g(x)`` on ``[lo, hi]`` by a polynomial, where the kernel uses it as ``known(x) + scale(x) * g(x)``;
the error that counts is that of the whole, relative to the function, so the fit is weighted by ``scale / function``. It is a weighted
least-squares fit at Chebyshev nodes (within a small factor of minimax), solved in high precision; coefficients are then
rounded one by one from the constant upwards, the rest being fitted again each time, so that rounding costs almost nothing.

    python bench/vmath_coefficients.py            # rewrites the tables (about two minutes)
    python bench/vmath_coefficients.py NAME ...   # fits these again, keeps the others
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
        else:
            yield fit("log", lambda z: 2 * mp.atanh(root(z)) / root(z), lambda z: mp.mpf(2), lambda z: z, 1e-15, 0.02944, "(log((1 + s)/(1 - s)) - 2s) / s**3, in s**2")
        yield fit("atan", lambda z: mp.atan(root(z)) / root(z), lambda z: one, lambda z: z, 1e-9, 1.0, "(atan(x) - x) / x**3, in x**2")
        yield fit("tanh", lambda z: mp.tanh(root(z)) / root(z), lambda z: one, lambda z: z, 1e-9, 0.3026, "(tanh(x) - x) / x**3 for x in ±0.55, in x**2")
        sine = lambda z: mp.sin(root(z)) / root(z)  # noqa: E731
        yield fit("sin", sine, lambda z: one, lambda z: z, 1e-9, 2.54, "(sin(r) - r) / r**3 for r in ±pi/2, in r**2")
        yield fit("sin4", sine, lambda z: one, lambda z: z, 1e-9, 0.6225, "(sin(r) - r) / r**3 for r in ±pi/4, in r**2")
        yield fit("cos4", lambda z: mp.cos(root(z)), lambda z: 1 - z / 2, lambda z: z * z, 1e-9, 0.6225, "(cos(r) - 1 + r**2/2) / r**4, in r**2")
        yield fit("asin", lambda z: mp.asin(root(z)) / root(z), lambda z: one, lambda z: z, 1e-9, 0.25, "(asin(x) - x) / x**3, in x**2")
        yield fit("sinh", lambda z: mp.sinh(root(z)) / root(z), lambda z: one, lambda z: z, 1e-9, 1.0, "(sinh(x) - x) / x**3 for x in ±1, in x**2")
        yield fit("erf", lambda z: mp.erf(root(z)) / root(z), lambda z: one, lambda z: one, 1e-9, 1.0, "(erf(x) - x) / x for x in ±1, in x**2")
        if to == 32:
            yield fit("erfc_mid", lambda x: mp.erf(x + 2.5), lambda x: one, lambda x: -one, -1.5, 1.5, "erfc(x + 2.5) for x in ±1.5")
            continue
        # The centre is chosen so that the constant term is almost a float64.
        k = mp.mpf(61) / 16
        yield fit("erfc", lambda t, k=k: _erfc_shape(k * (1 + t) / (1 - t)), lambda t: mp.mpf(0), lambda t: one,
                  float((0.5 - k) / (0.5 + k)), float((27.3 - k) / (27.3 + k)), "e**(x**2) erfc(x) (1 + 2x), in (x - 61/16) / (x + 61/16)")  # fmt: skip

        atanh = lambda z: mp.atanh(root(z)) / root(z)  # noqa: E731
        yield fit("pow_log", atanh, lambda z: 1 + z / 3, lambda z: z * z, 1e-15, 0.02944, "(atanh(s)/s - 1 - s**2/3) / s**4, in s**2", 68)
        yield fit("log2_short", lambda z: 2 / mp.log(2) * atanh(z), lambda z: mp.mpf(0), lambda z: one, 1e-15, 0.02944, "log2((1 + s)/(1 - s)) / s, in s**2", 40)
        yield fit("lgamma2", lambda t: mp.loggamma(2 + t) / t if t else 1 - mp.euler, lambda t: mp.mpf(0), lambda t: one, -0.5, 0.501, "lgamma(2 + t) / t")
        yield fit("stirling", lambda z: 1 + _stirling(1 / root(z)), lambda z: one, lambda z: one, 1e-8, 6.4**-2,
                  "y (lgamma(y) - (y - 1/2) log(y) + y - log(2 pi)/2) for y > 6.4, in y**-2", 54)  # fmt: skip
        zero = mp.findroot(mp.digamma, 1.4616321449683623)
        yield fit("digamma1", lambda t, r=zero: mp.digamma(r + t) / t, lambda t: mp.mpf(0), lambda t: one, -0.4617, 0.5384, "digamma(root + t) / t", 52.8)
        yield fit("digamma_tail", lambda z: 1 + _digamma_tail(1 / root(z)), lambda z: one, lambda z: one, 1e-8, 6.9**-2,
                  "y**2 (log(y) - 1/(2y) - digamma(y)) for y > 6.9, in y**-2", 54)  # fmt: skip
        for k, (low, high, centre) in enumerate(ERFINV):
            change = (lambda t, c=centre: t + c) if k == 0 else (lambda t, c=centre: (t + c) ** 2)
            yield fit(f"erfinv{k}", lambda t, f=change: _erfinv_shape(f(t)), lambda t: mp.mpf(0), lambda t: one, low - centre, high - centre,
                      f"erfinv(x)/x, in {'w' if k == 0 else 'sqrt(w)'} - {centre} with w = -log(1 - x**2)")  # fmt: skip


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
