"""The loop IR run by NumPy: the executable definition of what a kernel means, for tests and for `CERMET_REFERENCE`.

Vector loops run as NumPy lanes, serial ones as Python loops; a parallel loop runs as lanes where nothing inside
forbids it, else block by block. Arithmetic is NumPy's in the compute dtype; MATH operations are evaluated in float64
and rounded once. Memory is checked: an access outside a buffer is an IndexError here, where compiled code would just
do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cermet.compiler.loops.ir import (
    PAIR_TURNED,
    RUNNING,
    Assign,
    Define,
    Expr,
    For,
    Guard,
    Kernel,
    Param,
    Prefetch,
    Reduce,
    Register,
    Stmt,
    Store,
)
from cermet.dtypes import DType

__all__ = ["interpret", "philox"]

Array = Any


def interpret(kernel: Kernel, args: Sequence[Any], blocks: int | None = None, scratch: int = 0) -> None:
    """Run a kernel. Writable buffers among ``args`` are changed in place.

    Args:
        args: one per parameter: a 1-D array for a buffer, a number for an int or scalar, a byte offset for scratch.
        blocks: how many blocks to run; the extent of the parallel loop where it is not given.
        scratch: bytes of private memory.

    Raises:
        IndexError: when an element outside a buffer is read or written.
    """
    with np.errstate(all="ignore"):
        _Interpreter(kernel, args, scratch).run(blocks)


class _Interpreter:
    def __init__(self, kernel: Kernel, args: Sequence[Any], scratch: int) -> None:
        self.kernel = kernel
        self.values: dict[Param, Array] = {}
        self.buffers: dict[Param, Array] = {}
        private = np.zeros(scratch, np.uint8)
        for param, arg in zip(kernel.params, args, strict=True):
            if param.kind == "buffer":
                self.buffers[param] = arg
            elif param.kind == "scratch":
                rest = private[int(arg) :]
                size = param.dtype.itemsize
                self.buffers[param] = rest[: len(rest) // size * size].view(param.dtype.numpy)
            else:
                self.values[param] = np.asarray(arg, param.dtype.compute.numpy)
        self.vars: dict[Any, Array] = {}
        self.regs: dict[Register, Array] = {}
        self.lanes: int | None = None  # None outside lanes

    def run(self, blocks: int | None) -> None:
        body = self.kernel.body
        loop = body[0] if len(body) == 1 else None
        if not (isinstance(loop, For) and loop.kind == "parallel"):
            if blocks != 0:
                self.statements(body)
            return
        count = int(self.value(loop.extent)) if blocks is None else blocks
        if _fits_lanes(loop):
            self.in_lanes(loop, count)
            return
        for k in range(count):
            self.vars[loop.var] = np.int64(k)
            self.statements(loop.body)

    # -- statements ------------------------------------------------------------------------------------------------

    def statements(self, body: Sequence[Stmt]) -> None:
        """Run a block. Statements nest as deep as loops do, so this one recursion is shallow."""
        inner: list[Register] = []
        for stmt in body:
            if isinstance(stmt, For):
                self.loop(stmt)
            elif isinstance(stmt, Store):
                self.store(stmt)
            elif isinstance(stmt, Define):
                self.regs[stmt.reg] = self.spread(self.value(stmt.init))
                inner.append(stmt.reg)
            elif isinstance(stmt, Assign):
                self.regs[stmt.reg] = self.spread(self.value(stmt.value))
            elif isinstance(stmt, Reduce):
                self.reduce(stmt)
            elif isinstance(stmt, Prefetch):
                continue
            elif bool(np.all(self.value(stmt.condition))):
                self.statements(stmt.body)
        for reg in inner:
            del self.regs[reg]

    def spread(self, value: Array) -> Array:
        return value if self.lanes is None else np.broadcast_to(value, (self.lanes,))

    def loop(self, stmt: For) -> None:
        extent = int(np.max(self.value(stmt.extent)))
        if stmt.kind == "vector" and self.lanes is None:
            self.in_lanes(stmt, extent)
            return
        for k in range(extent):
            self.vars[stmt.var] = np.int64(k)
            self.statements(stmt.body)

    def in_lanes(self, stmt: For, extent: int) -> None:
        if extent <= 0:
            return
        self.lanes = extent
        self.vars[stmt.var] = np.arange(extent, dtype=np.int64)
        self.statements(stmt.body)
        self.lanes = None

    def reduce(self, stmt: Reduce) -> None:
        value = self.value(stmt.value)
        before = self.regs[stmt.reg]
        if self.lanes is not None and np.ndim(before) == 0:
            value = _reduce_lanes(stmt.op, self.spread(value))
        self.regs[stmt.reg] = np.asarray(_reduction(stmt.op, before.dtype)(before, value), before.dtype)

    def store(self, stmt: Store) -> None:
        buffer = self.buffers[stmt.buffer]
        offset, value = self.value(stmt.offset), self.value(stmt.value)
        mask = None if stmt.mask is None else self.value(stmt.mask)
        shape = np.broadcast_shapes(*[np.shape(x) for x in (offset, value, mask) if x is not None])
        offset, value = np.broadcast_to(offset, shape).ravel(), np.broadcast_to(value, shape).ravel()
        if mask is not None:
            chosen = np.broadcast_to(mask, shape).ravel()
            offset, value = offset[chosen], value[chosen]
        _check_bounds(stmt.buffer, offset, len(buffer))
        buffer[offset] = value.astype(stmt.buffer.dtype.numpy)

    # -- expressions -----------------------------------------------------------------------------------------------

    def value(self, root: Expr) -> Array:
        """The value of an expression now."""
        done: dict[int, Array] = {}
        stack = [root]
        while stack:
            e = stack[-1]
            if id(e) in done:
                stack.pop()
                continue
            waiting = [a for a in e.args if id(a) not in done]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            done[id(e)] = self.evaluate(e, [done[id(a)] for a in e.args])
        return done[id(root)]

    def evaluate(self, e: Expr, args: list[Array]) -> Array:
        op = e.op
        if op == "const":
            return _constant(e.attr, e.dtype)
        if op == "param":
            return self.values[e.attr]
        if op == "var":
            return self.vars[e.attr]
        if op == "reg":
            return self.regs[e.attr]
        if op == "load":
            return self.load(e.attr, *args)
        if op == "select":
            return np.where(args[0], args[1], args[2])
        if op == "cast":
            return _cast(args[0], e.args[0].dtype, e.attr if isinstance(e.attr, DType) else e.dtype)
        if op == "bitcast":
            return np.ascontiguousarray(args[0]).view(e.dtype.numpy).reshape(np.shape(args[0]))
        if op == "philox":
            return philox(args[0], args[1])[e.attr] if e.attr < 4 else running(args[0], args[1], e.attr)
        return _operate(op, e.args[0].dtype, e.dtype, args)

    def load(self, param: Param, offset: Array, mask: Array | None = None) -> Array:
        buffer = self.buffers[param]
        if mask is not None:
            offset, mask = np.broadcast_arrays(offset, mask)
            _check_bounds(param, offset[mask], len(buffer))
            offset = np.where(mask, offset, 0)
            if not len(buffer):
                return np.zeros(np.shape(offset), param.dtype.compute.numpy)
        else:
            _check_bounds(param, np.asarray(offset), len(buffer))
        found = np.asarray(buffer[offset]).astype(param.dtype.compute.numpy)
        return found if mask is None else np.where(mask, found, np.zeros((), found.dtype))


def _fits_lanes(loop: For) -> bool:
    """Whether the blocks of a parallel loop may run as lanes: no other lanes inside, extents and guards the same for all."""
    stack: list[Stmt] = list(loop.body)
    while stack:
        stmt = stack.pop()
        if isinstance(stmt, For | Guard):
            control = stmt.extent if isinstance(stmt, For) else stmt.condition
            if (isinstance(stmt, For) and stmt.kind == "vector") or _depends(control):
                return False
            stack.extend(stmt.body)
    return True


def _depends(root: Expr) -> bool:
    """Whether an expression is anything but arithmetic on parameters and constants."""
    stack, seen = [root], set()
    while stack:
        e = stack.pop()
        if e.op in ("var", "reg", "load"):
            return True
        for a in e.args:
            if id(a) not in seen:
                seen.add(id(a))
                stack.append(a)
    return False


def _check_bounds(param: Param, offset: Array, length: int) -> None:
    if offset.size and (int(offset.min()) < 0 or int(offset.max()) >= length):
        raise IndexError(f"{param!r}[{int(offset.min())}..{int(offset.max())}] with {length} elements")


def _constant(value: Any, dtype: DType) -> Array:
    if dtype.is_integral:
        # Modulo the width, as in machine arithmetic.
        return np.asarray(int(value) & ((1 << dtype.bits) - 1), np.uint64).astype(dtype.numpy)
    return np.asarray(value, dtype.compute.numpy)


# -- operations ----------------------------------------------------------------------------------------------------


def _reduction(op: str, dtype: Any) -> Callable[[Array, Array], Array]:
    if dtype == np.bool_:
        return {"add": np.logical_or, "or": np.logical_or, "max": np.logical_or}.get(op, np.logical_and)
    return {
        "add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    }[op]  # fmt: skip


def _reduce_lanes(op: str, value: Array) -> Array:
    ufunc: Any = _reduction(op, value.dtype)
    # Sums and products in the widest float: the order of lanes is the target's own, and this stands nearest to all of them.
    wide = np.longdouble if value.dtype.kind == "f" and op in ("add", "mul") else value.dtype
    return ufunc.reduce(value.astype(wide)).astype(value.dtype)


def _cast(x: Array, from_: DType, to: DType) -> Array:
    if to.kind == "f":
        return x.astype(to.numpy).astype(to.compute.numpy)
    if to.kind == "b":
        return x != 0
    if from_.kind != "f":
        return x.astype(to.numpy)
    info = np.iinfo(to.numpy)
    # Truncated, out of range to the nearest end, NaN to 0. The upper end itself may not be a float; one past it is.
    whole = np.trunc(np.where(np.isnan(x), 0, x).astype(np.longdouble))
    inside = np.clip(whole, info.min, info.max)
    return inside.astype(to.numpy)


def philox(key: Array, counter: Array, third: int = 0) -> list[Array]:
    """Philox-4x32-10 (Salmon et al., 2011): four words as int64 in 0..2**32-1, of a 64-bit key and a 64-bit counter."""
    key, counter = np.broadcast_arrays(np.asarray(key).astype(np.uint64), np.asarray(counter).astype(np.uint64))
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = key & low, key >> half
    c0, c1, c2, c3 = counter & low, counter >> half, np.full_like(key, third), np.zeros_like(key)
    for turn in range(10):
        if turn:
            k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
    return [c.astype(np.int64) for c in (c0, c1, c2, c3)]


def running(key: Array, number: Array, attr: int = RUNNING) -> Array:
    """The word that a number has in one of the running streams (see `ir`)."""
    number = np.asarray(number).astype(np.uint64)
    a, b, c, d = philox(key, number >> np.uint64(2), 1 if attr == RUNNING else 2)
    if attr == PAIR_TURNED:
        words = [b, (b - (1 << 30)) & 0xFFFFFFFF, d, (d - (1 << 30)) & 0xFFFFFFFF]
    else:
        words = [a, b, c, d] if attr == RUNNING else [a, a, c, c]
    return np.choose((number & np.uint64(3)).astype(np.int64), words)


def _operate(op: str, of: DType, to: DType, args: list[Array]) -> Array:
    if op in _MATH:
        return np.asarray(_MATH[op](*[a.astype(np.float64) for a in args])).astype(to.numpy)
    if of.kind == "b" and op in _BOOL:
        return _BOOL[op](*args)
    return np.asarray(_PLAIN[op](*args)).astype(to.numpy)


def _fma(x: Array, y: Array, z: Array) -> Array:
    if x.dtype.kind != "f":
        return x * y + z
    return (x.astype(np.longdouble) * y + z).astype(x.dtype)


def _safe(x: Array, y: Array) -> tuple[Array, Array]:
    zero = y == 0
    return zero, np.where(zero, np.ones((), y.dtype), y)


def _idiv(x: Array, y: Array) -> Array:
    zero, y = _safe(x, y)
    # -1 apart: NumPy's division of the smallest integer by it is not defined.
    return np.where(zero, 0, np.where(y == -1, -x, x // y) if x.dtype.kind == "i" else x // y).astype(x.dtype)


def _imod(x: Array, y: Array) -> Array:
    zero, y = _safe(x, y)
    return np.where(zero, 0, np.where(y == -1, 0, x % y) if x.dtype.kind == "i" else x % y).astype(x.dtype)


def _trem(x: Array, y: Array) -> Array:
    zero, y = _safe(x, y)
    return np.where(zero, 0, np.where(y == -1, 0, np.fmod(x, y)) if x.dtype.kind == "i" else np.fmod(x, y)).astype(x.dtype)


def _tdiv(x: Array, y: Array) -> Array:
    zero, y = _safe(x, y)
    floor, rest = _idiv(x, y), _imod(x, y)
    up = (rest != 0) & ((x < 0) != (y < 0)) if x.dtype.kind == "i" else False
    return np.where(zero, 0, floor + up).astype(x.dtype)


def _shl(x: Array, n: Array) -> Array:
    bits = x.dtype.itemsize * 8
    fits = (n >= 0) & (n < bits)
    return np.where(fits, np.left_shift(x, np.where(fits, n, 0).astype(x.dtype)), 0).astype(x.dtype)


def _shr(x: Array, n: Array) -> Array:
    bits = x.dtype.itemsize * 8
    fits = (n >= 0) & (n < bits)
    beyond = np.where(x < 0, -1, 0)
    return np.where(fits, np.right_shift(x, np.where(fits, n, 0).astype(x.dtype)), beyond).astype(x.dtype)


_BOOL: dict[str, Callable[..., Array]] = {
    "add": np.logical_or, "mul": np.logical_and, "sub": np.logical_xor, "min": np.logical_and, "max": np.logical_or,
    "sign": lambda x: x, "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not,
}  # fmt: skip

_PLAIN: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": np.minimum, "max": np.maximum,
    "fma": _fma, "neg": np.negative, "abs": np.abs, "sign": np.sign, "idiv": _idiv, "imod": _imod, "tdiv": _tdiv,
    "trem": _trem, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "shl": _shl,
    "shr": _shr, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge":
    np.greater_equal, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint, "sqrt": np.sqrt,
    "rsqrt": lambda x: np.ones((), x.dtype) / np.sqrt(x), "copysign": np.copysign, "fmin": np.fmin, "fmax": np.fmax,
    "fmod": np.fmod, "isnan": np.isnan, "nextafter": np.nextafter, "signbit": np.signbit,
}  # fmt: skip


def _special(name: str) -> Callable[..., Array]:
    def call(x: Array) -> Array:
        from scipy import special  # late: a test dependency, wanted by these alone

        return getattr(special, name)(x)

    return call


_MATH: dict[str, Callable[..., Array]] = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log10": np.log10, "log1p": np.log1p,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "pow": np.power, "erf": _special("erf"), "erfc": _special("erfc"), "erfinv": _special("erfinv"),
    "lgamma": _special("gammaln"), "digamma": _special("digamma"),
}  # fmt: skip
