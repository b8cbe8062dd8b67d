"""Random tensors. Each call records one node with a key and a counter as run-time scalars; see `cermet.random`.

The composite ops `uniform_bits`, `uniform` and `gaussian` decompose into the primitive `philox` on a ramp of counters.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet import random as state
from cermet.graph.node import Meta, broadcast_shapes, meta
from cermet.ops.creation import resolve_device
from cermet.ops.define import Arg, OpDef, Sample, hooks
from cermet.ops.elementwise import add, div, lt, mul, sub, where
from cermet.ops.logic import bitwise_and, bitwise_left_shift, bitwise_or, bitwise_right_shift
from cermet.ops.mathematics import cos, log, sqrt, tan
from cermet.ops.movement import reshape
from cermet.ops.public import public
from cermet.ops.support import check_dtype, full_value, index_value, is_number, shape_of, to_dtype

__all__ = ["draw", "gaussian_like", "random_uniform"]

# ---------------------------------------------------------------------------------------------------------------- philox

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
RUNNING = 4
"""Instead of a word: the counter numbers words; each is one of a block of four (its counter a fourth, its third word 1)."""
PAIR_FIRST, PAIR_TURNED = 5, 6
"""Likewise, of blocks whose third word is 2: the first of the two words 2k and 2k + 1 that the number is one of, and the second, which is an
angle: for odd numbers it is turned back by a quarter, 2**30 modulo 2**32."""


def _philox_reference(key: Any, counter: Any, *, word: int) -> Any:
    """Ten rounds of Philox-4x32 (Salmon et al. 2011, section 3.3)."""
    if word < RUNNING:
        return _block(key, counter, 0)[word]
    number = np.asarray(counter, np.int64).astype(np.uint64)
    words = _block(key, number >> np.uint64(2), 1 if word == RUNNING else 2)
    odd, within = (number & np.uint64(1)).astype(np.int64), (number & np.uint64(3)).astype(np.int64)
    if word == RUNNING:
        return np.choose(within, words)
    if word == PAIR_FIRST:
        return np.choose(within - odd, words)
    return (np.choose(within | 1, words) - (odd << 30)) & 0xFFFFFFFF


def _block(key: Any, counter: Any, third: int) -> list[Any]:
    key, counter = np.broadcast_arrays(np.asarray(key, np.int64).astype(np.uint64), np.asarray(counter).astype(np.uint64))
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = key & low, key >> shift
    c0, c1 = counter & low, counter >> shift
    c2, c3 = np.full_like(c0, third), np.zeros_like(c0)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(_M0), c2 * np.uint64(_M1)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(_W0)) & low, (k1 + np.uint64(_W1)) & low
    return [c.astype(np.int64) for c in (c0, c1, c2, c3)]


def _philox_infer(key: Meta, counter: Meta, *, word: int) -> Meta:
    if key.dtype is not dt.int64 or counter.dtype is not dt.int64:
        raise TypeError(f"philox: key and counter must be int64, got {key.dtype} and {counter.dtype}")
    return meta(broadcast_shapes(key.shape, counter.shape), dt.int64, counter.device)


_KEY = Arg((), (-1000, 1000), dt.int64)
philox = OpDef(
    "philox",
    "elementwise",
    _philox_infer,
    attrs=("word",),
    lower=lambda b, key, counter, *, word: b.philox(key, counter, word),
    reference=_philox_reference,
    dtypes=(dt.int64,),
    samples=tuple(Sample((_KEY, Arg((7,), (-1000, 1000), dt.int64)), {"word": w}, gradient=False) for w in range(7)),
    ulp=0,
    doc="Word 0 to 3 of Philox-4x32-10 of a key and a counter, or that of number `counter` in a running stream (4 to 6), in 0 .. 2**32 - 1.",
)

# ------------------------------------------------------------------------------------------------ distributions, as ops


def _words(key: Any, offset: Any, shape: tuple[int, ...], word: int) -> Any:
    """Word ``word`` for each element: its counter is the offset plus its position in row-major order."""
    n = math.prod(shape)
    return reshape(philox(key, add(index_value(key, (n,), 0), offset), word=word), shape=shape)


def _fraction(key: Any, offset: Any, shape: tuple[int, ...], dtype: dt.DType, word: int) -> Any:
    """Uniform in [0, 1), with as many bits as the dtype holds: 24 of one word, or 53 of two."""
    if dtype is dt.float64:
        high, low = _words(key, offset, shape, word), _words(key, offset, shape, word + 1)
        bits = bitwise_or(bitwise_left_shift(bitwise_right_shift(high, 5), 26), bitwise_right_shift(low, 6))
        return mul(to_dtype(bits, dt.float64), 2.0**-53)
    bits = {dt.float16: 11, dt.bfloat16: 8}.get(dtype, 24)
    top = _bits_from(to_dtype(_words(key, offset, shape, word), dt.int32), 32 - bits, bits)
    return to_dtype(mul(to_dtype(top, dt.float32), 2.0**-bits), dtype)


def _bits_from(word: Any, first: int, count: int) -> Any:
    """Some of the 32 bits of a word, which wants no lanes of 64 any more, as int32."""
    return bitwise_and(bitwise_right_shift(word, first) if first else word, (1 << count) - 1)


def _uniform_decompose(key: Any, offset: Any, *, shape: tuple[int, ...], dtype: dt.DType) -> Any:
    return _fraction(key, offset, shape, dtype, 0 if dtype is dt.float64 else RUNNING)


def _gaussian_decompose(key: Any, offset: Any, *, shape: tuple[int, ...], dtype: dt.DType) -> Any:
    """Box and Muller (1958): sqrt(-2 log u) cos(2 pi v), with u in (0, 1].

    In float64 each number has a block of its own. Else two numbers share u and v, one taking the cosine and one the sine, which are independent;
    the sine is the cosine a quarter turn back.
    """
    if dtype is dt.float64:
        u, v = sub(1.0, _fraction(key, offset, shape, dtype, 0)), _fraction(key, offset, shape, dtype, 2)
    else:
        u, v = _open(key, offset, shape), _fraction(key, offset, shape, dt.float32, PAIR_TURNED)
    return to_dtype(mul(sqrt(mul(log(u), -2.0)), cos(mul(v, 2.0 * math.pi))), dtype)


def _open(key: Any, offset: Any, shape: tuple[int, ...]) -> Any:
    """Uniform in (0, 1] from all 32 bits, rounded once: float32's small numbers carry the tail of the normal distribution."""
    word = to_dtype(_words(key, offset, shape, PAIR_FIRST), dt.int32)
    high, low = (to_dtype(_bits_from(word, first, 16), dt.float32) for first in (16, 0))
    return mul(add(mul(high, 65536.0), add(low, 1.0)), 2.0**-32)


def _bits_decompose(key: Any, offset: Any, *, shape: tuple[int, ...]) -> Any:
    high, low = _words(key, offset, shape, 0), _words(key, offset, shape, 1)
    return bitwise_or(bitwise_left_shift(bitwise_right_shift(high, 1), 32), low)


def _drawing(name: str, decompose: Any, doc: str) -> OpDef:
    def infer(key: Meta, offset: Meta, *, shape: tuple[int, ...], dtype: dt.DType = dt.int64) -> Meta:
        return meta(shape, dtype, key.device)

    attrs = ("shape",) if name == "random_bits" else ("shape", "dtype")
    values: dict[str, Any] = {"shape": (3, 4)} if name == "random_bits" else {"shape": (3, 4), "dtype": dt.float32}
    return OpDef(
        name,
        "composite",
        infer,
        attrs=attrs,
        decompose=decompose,
        samples=(Sample((_KEY, _KEY), values, gradient=False),),
        dtypes=(dt.int64,),
        doc=doc,
    )


uniform_op = _drawing("uniform", _uniform_decompose, "Random numbers, all of [0, 1) equally likely.")
gaussian_op = _drawing("gaussian", _gaussian_decompose, "Standard normal random numbers.")
bits_op = _drawing("random_bits", _bits_decompose, "Uniform random integers in 0 .. 2**63 - 1.")


def draw(count: int, generator: Any = None) -> tuple[Any, Any]:
    """(key, counter) scalars for ``count`` fresh counters of a generator (the default one for None)."""
    hooks.looked()
    key, offset = (generator or state.default_generator).take(count)
    return hooks.to_tensor(key, dtype=dt.int64, like=None), hooks.to_tensor(offset, dtype=dt.int64, like=None)


def random_uniform(shape: tuple[int, ...], dtype: dt.DType | None = None, generator: Any = None) -> Any:
    """Uniform in [0, 1), as a value."""
    key, offset = draw(math.prod(shape), generator)
    return uniform_op(key, offset, shape=tuple(shape), dtype=dtype or dt.get_default_dtype())


def random_gaussian(shape: tuple[int, ...], dtype: dt.DType | None = None, generator: Any = None) -> Any:
    """Standard normal, as a value."""
    key, offset = draw(math.prod(shape), generator)
    return gaussian_op(key, offset, shape=tuple(shape), dtype=dtype or dt.get_default_dtype())


def gaussian_like(x: Any, generator: Any = None) -> Any:
    """Standard normal in the shape and dtype of ``x``."""
    return random_gaussian(tuple(x.shape), x.dtype, generator)


def random_bits(shape: tuple[int, ...], generator: Any = None) -> Any:
    """Uniform integers in 0 .. 2**63 - 1."""
    key, offset = draw(math.prod(shape), generator)
    return bits_op(key, offset, shape=tuple(shape))


# ------------------------------------------------------------------------------------------------ what users call


def _floating_dtype(dtype: Any, name: str) -> dt.DType:
    check_dtype(dtype, name)
    d = dtype or dt.get_default_dtype()
    if d.kind != "f":
        raise RuntimeError(f"{name}: expected a floating dtype, got {d}")
    return d


def _maker(name: str, make: Any, doc: str) -> None:
    def fn(
        *size: Any,
        generator: Any = None,
        dtype: Any = None,
        layout: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        pin_memory: bool = False,
        **named: Any,
    ) -> Any:
        shape = shape_of(size if "size" not in named else (tuple(named.pop("size")),), name)
        if named:
            raise TypeError(f"{name}: unexpected arguments {sorted(named)}")
        resolve_device(device)
        out = make(shape, _floating_dtype(dtype, name), generator)
        return out.requires_grad_() if requires_grad else out

    def like(
        input: Any,
        *,
        generator: Any = None,
        dtype: Any = None,
        layout: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        memory_format: Any = None,
    ) -> Any:
        out = make(tuple(input.shape), _floating_dtype(dtype or input.dtype, name + "_like"), generator)
        return out.requires_grad_() if requires_grad else out

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"A tensor of the given size of {doc}."
    like.__name__ = like.__qualname__ = name + "_like"
    like.__doc__ = f"A tensor of the input's shape and dtype of {doc}."
    public(method=False)(fn)
    public(method=False)(like)


_maker("rand", random_uniform, "random numbers uniform in [0, 1)")
_maker("randn", random_gaussian, "random numbers from the standard normal distribution")


def _integers(low: int, high: int, shape: tuple[int, ...], generator: Any) -> Any:
    """Uniform in [low, high): 63 random bits modulo the range; its bias is below 2**-31 for ranges of 32 bits."""
    from cermet.ops.arithmetic import remainder

    if high <= low:
        raise RuntimeError(f"randint: the range from {low} to {high} is empty")
    return add(remainder(random_bits(shape, generator), high - low), low)


@public(method=False)
def randint(
    low: int,
    high: Any = None,
    size: Any = None,
    *,
    generator: Any = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Any:
    """Random integers uniform in [low, high): ``randint(high, size)`` or ``randint(low, high, size)``.

    Raises:
        RuntimeError: for an empty range.
    """
    if size is None:
        low, high, size = 0, low, high
    elif high is None:
        low, high = 0, low
    check_dtype(dtype, "randint")
    resolve_device(device)
    return to_dtype(_integers(int(low), int(high), shape_of((tuple(size),), "randint"), generator), dtype or dt.int64)


@public(method=False)
def randint_like(
    input: Any, low: int, high: int | None = None, *, dtype: Any = None, device: Any = None, generator: Any = None
) -> Any:
    """Random integers uniform in [low, high) (or [0, low)) in the input's shape and dtype."""
    low, high = (0, low) if high is None else (low, high)
    return to_dtype(_integers(int(low), int(high), tuple(input.shape), generator), dtype or input.dtype)


@public(method=False)
def randperm(
    n: int,
    *,
    generator: Any = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Any:
    """A random order of 0, 1, … n - 1: the order that sorts n random integers of 63 bits."""
    from cermet.ops.sorting import argsort_op

    check_dtype(dtype, "randperm")
    resolve_device(device)
    if n < 0:
        raise RuntimeError(f"randperm: n must not be negative, got {n}")
    return to_dtype(argsort_op(random_bits((int(n),), generator), dim=0, descending=False), dtype or dt.int64)


@public(method=False)
def normal(mean: Any, std: Any = 1.0, size: Any = None, *, generator: Any = None, dtype: Any = None, device: Any = None) -> Any:
    """Normal random numbers of the given mean and standard deviation: numbers with ``size``, or tensors."""
    if is_number(mean) and is_number(std):
        shape = shape_of((tuple(size),), "normal") if size is not None else ()
        if std < 0:
            raise RuntimeError(f"normal: the standard deviation must not be negative, got {std}")
        return add(mul(random_gaussian(shape, _floating_dtype(dtype, "normal"), generator), float(std)), float(mean))
    tensors = [v for v in (mean, std) if not is_number(v)]
    shape = broadcast_shapes(*[tuple(v.shape) for v in tensors])
    z = random_gaussian(shape, tensors[0].dtype, generator)
    return add(mul(z, float(std) if is_number(std) else std), float(mean) if is_number(mean) else mean)


@public()
def bernoulli(input: Any, p: Any = None, *, generator: Any = None) -> Any:
    """1 with the probability that the input holds, else 0; with ``p`` that probability everywhere."""
    d = input.dtype
    inner = d if d.kind == "f" else dt.float32
    u = random_uniform(tuple(input.shape), inner, generator)
    probability = to_dtype(input, inner) if p is None else float(p) if is_number(p) else p
    return to_dtype(lt(u, probability), d)


@public()
def poisson(input: Any, generator: Any = None) -> Any:
    """Poisson random numbers of the given rates, by inversion (rates up to about 40), else the normal approximation."""
    rate = to_dtype(input, dt.float64)
    shape = tuple(rate.shape)
    u = random_uniform(shape, dt.float64, generator)
    from cermet.ops.arithmetic import clamp_min, rint
    from cermet.ops.mathematics import exp

    term = exp(mul(rate, -1.0))
    total, count = term, full_value(rate, 0, shape)
    for k in range(1, 128):
        count = add(count, to_dtype(lt(total, u), dt.float64))
        term = mul(term, div(rate, float(k)))
        total = add(total, term)
    wide = clamp_min(rint(add(mul(random_gaussian(shape, dt.float64, generator), sqrt(rate)), rate)), 0.0)
    return to_dtype(where(lt(rate, 40.0), count, wide), input.dtype)


@public()
def multinomial(input: Any, num_samples: int, replacement: bool = False, *, generator: Any = None) -> Any:
    """Indices drawn with the weights in the rows of the input, (num_samples,) or (rows, num_samples).

    With replacement by inverting the running sum; without, by the order of exponential random numbers over the weights
    (Efraimidis and Spirakis 2006).

    Raises:
        RuntimeError: for other shapes, or more samples than categories without replacement.
    """
    n = len(input.shape)
    if n not in (1, 2) or input.dtype.kind != "f":
        raise RuntimeError(
            f"multinomial: expected floating weights of one or two dimensions, got {input.dtype} {list(input.shape)}"
        )
    if not replacement and num_samples > input.shape[-1]:
        raise RuntimeError(f"multinomial: cannot draw {num_samples} of {input.shape[-1]} categories without replacement")
    from cermet.ops.joining import cut
    from cermet.ops.scan import scan
    from cermet.ops.sorting import argsort_op, search

    weights = to_dtype(input.detach(), dt.float64)
    if replacement:
        total = scan(weights, dim=n - 1, mode="sum")
        u = random_uniform((*weights.shape[:-1], num_samples), dt.float64, generator)
        last = cut(total, n - 1, total.shape[-1] - 1, 1)
        return search(total, mul(u, last), right=True)
    e = mul(log(sub(1.0, random_uniform(tuple(weights.shape), dt.float64, generator))), -1.0)
    order = argsort_op(div(weights, e), dim=n - 1, descending=True)
    return cut(order, n - 1, 0, num_samples)


def _random_state() -> Any:
    """The state of the default stream as a uint8 tensor."""
    return state.default_generator.get_state()


public(method=False, name="get_rng_state")(_random_state)


@public(method=False)
def set_rng_state(new_state: Any) -> None:
    """Continue the default stream from the state that `get_rng_state` gave."""
    state.default_generator.set_state(new_state)


public(method=False)(state.Generator)
public(method=False)(state.manual_seed)
public(method=False)(state.seed)
public(method=False)(state.initial_seed)


def _pack(data: bytes) -> Any:
    return hooks.to_tensor(np.frombuffer(data, np.uint8).copy(), dtype=dt.uint8, like=None)


state.Generator.pack = staticmethod(_pack)
state.Generator.unpack = staticmethod(lambda t: t.numpy().tobytes())


# ------------------------------------------------------------------------------------------------ values for in-place filling


def uniform_between(x: Any, low: float = 0.0, high: float = 1.0, *, generator: Any = None) -> Any:
    """Uniform in [low, high), in the shape and dtype of ``x``."""
    return add(mul(random_uniform(tuple(x.shape), x.dtype, generator), float(high) - float(low)), float(low))


def normal_around(x: Any, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Any:
    """Normal, in the shape and dtype of ``x``."""
    return add(mul(gaussian_like(x, generator), float(std)), float(mean))


def exponential(x: Any, lambd: float = 1.0, *, generator: Any = None) -> Any:
    """Exponentially distributed with rate ``lambd``, in the shape and dtype of ``x``."""
    return mul(log(sub(1.0, random_uniform(tuple(x.shape), x.dtype, generator))), -1.0 / float(lambd))


def geometric(x: Any, p: float, *, generator: Any = None) -> Any:
    """The number of trials until the first success of probability ``p``."""
    from cermet.ops.arithmetic import ceil

    u = sub(1.0, random_uniform(tuple(x.shape), dt.float64, generator))
    return to_dtype(ceil(mul(log(u), 1.0 / math.log1p(-p))), x.dtype)


def cauchy(x: Any, median: float = 0.0, sigma: float = 1.0, *, generator: Any = None) -> Any:
    """Cauchy distributed."""
    u = sub(random_uniform(tuple(x.shape), x.dtype, generator), 0.5)
    return add(mul(tan(mul(u, math.pi)), float(sigma)), float(median))


def log_normal(x: Any, mean: float = 1.0, std: float = 2.0, *, generator: Any = None) -> Any:
    """Exp of a normal random number."""
    from cermet.ops.mathematics import exp

    return exp(normal_around(x, mean, std, generator=generator))


def whole_between(x: Any, low: int = 0, high: int | None = None, *, generator: Any = None) -> Any:
    """Uniform integers in [low, high) (``random_(high)``: [0, high)); without bounds all that the dtype holds exactly."""
    if high is None:
        low, high = (0, low) if low else (0, _whole_limit(x.dtype))
    return to_dtype(_integers(int(low), int(high), tuple(x.shape), generator), x.dtype)


def _whole_limit(d: dt.DType) -> int:
    if d.kind == "b":
        return 2
    if d.kind == "f":
        return {dt.float16: 2**11, dt.bfloat16: 2**8, dt.float32: 2**24, dt.float64: 2**53}[d] + 1
    return int(np.iinfo(d.numpy).max)
