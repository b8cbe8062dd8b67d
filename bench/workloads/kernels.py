"""Single operations, written once for the libraries that share PyTorch's names, with what each must at least compute and move.

`KERNELS` gives for each name the function that makes it; `cost` gives (floating-point operations, bytes) of one call: every input
read once and every output written once. Costs are used for shares of the machine's limits; they know no library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["CONVOLUTIONS", "ELEMENTWISE", "cost", "elementwise_inputs", "make_kernel", "numbers"]

Work = Callable[[], Any]

ELEMENTWISE = (
    "exp", "add", "gelu expression", "softmax", "layer norm", "sum", "column variance", "transpose copy", "cumsum", "sort", "gather",
)  # fmt: skip

CONVOLUTIONS: dict[str, tuple[int, int, int, int, int, int, int, int, bool]] = {
    # batch, channels, image, output channels, kernel, stride, padding, groups, transposed
    "3x3 64": (8, 64, 56, 64, 3, 1, 1, 1, False),
    "3x3 128": (8, 128, 28, 128, 3, 1, 1, 1, False),
    "3x3 256": (8, 256, 14, 256, 3, 1, 1, 1, False),
    "3x3 512": (8, 512, 7, 512, 3, 1, 1, 1, False),
    "3x3 stride 2": (8, 64, 56, 128, 3, 2, 1, 1, False),
    "1x1": (8, 64, 56, 256, 1, 1, 0, 1, False),
    "7x7 stride 2": (4, 3, 224, 64, 7, 2, 3, 1, False),
    "depthwise": (8, 96, 56, 96, 3, 1, 1, 96, False),
    "transposed": (8, 64, 28, 32, 2, 2, 0, 1, True),
}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """The inputs of a workload, the same for every library."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _rows(size: int) -> int:
    """Rows of a matrix of about ``size`` elements: columns are 1024, or 64 for small ones."""
    return max(1, size // (1024 if size >= 1 << 16 else 64))


def elementwise_inputs(name: str, size: int) -> dict[str, np.ndarray]:
    """What the named operation gets at that size: ``x`` and ``y`` (rows, columns), ``gain`` and ``bias`` (columns); for the gather a
    ``table`` (50,000, 64) and ``index``."""
    if name == "gather":
        return {"table": numbers(50_000, 64), "index": np.random.default_rng(1).integers(0, 50_000, size // 64)}
    rows = _rows(size)
    given = {"x": numbers(rows, size // rows)}
    if name == "add":
        given["y"] = numbers(rows, size // rows, seed=1)
    if name == "layer norm":
        given |= {"gain": numbers(size // rows, seed=2), "bias": numbers(size // rows, seed=3)}
    return given


def _elementwise(lib: Any, name: str, size: int) -> Work:
    given = {k: lib.from_numpy(v) for k, v in elementwise_inputs(name, size).items()}
    if name == "gather":
        return lambda: lib.nn.functional.embedding(given["index"], given["table"])
    x, y, gain, bias = given["x"], given.get("y"), given.get("gain"), given.get("bias")
    columns = x.shape[1]
    flat = x.reshape(-1)
    work: dict[str, Work] = {
        "exp": lambda: lib.exp(x),
        "add": lambda: x + y,
        "gelu expression": lambda: 0.5 * x * (1.0 + lib.tanh(0.7978845608 * (x + 0.044715 * x * x * x))),
        "softmax": lambda: lib.softmax(x, -1),
        "layer norm": lambda: lib.nn.functional.layer_norm(x, (columns,), gain, bias),
        "sum": lambda: x.sum(),
        "column variance": lambda: x.var(0),
        "transpose copy": lambda: x.t().contiguous(),
        "cumsum": lambda: lib.cumsum(x, -1),
        "sort": lambda: lib.sort(flat)[0],
    }
    return work[name]


def _matmul(lib: Any, m: int, n: int, k: int, batch: int = 0, dtype: str = "float32", tb: bool = False) -> Work:
    b = (batch,) if batch else ()
    kind = getattr(lib, dtype)
    x = lib.from_numpy(numbers(*b, m, k)).to(kind)
    y = lib.from_numpy(numbers(*b, *((n, k) if tb else (k, n)), seed=1)).to(kind)
    if tb:
        y = y.transpose(-1, -2)
    return lambda: x @ y


def _convolution(lib: Any, case: str, backward: bool = False) -> Work:
    n, c, size, o, kernel, stride, padding, groups, transposed = CONVOLUTIONS[case]
    f = lib.nn.functional
    x = lib.from_numpy(numbers(n, c, size, size)).requires_grad_(backward)
    shape = (c, o // groups, kernel, kernel) if transposed else (o, c // groups, kernel, kernel)
    w = lib.from_numpy(numbers(*shape, seed=1) / math.sqrt(c // groups * kernel**2)).requires_grad_(backward)
    op = f.conv_transpose2d if transposed else f.conv2d

    def forward() -> Any:
        return op(x, w, None, stride, padding, groups=groups)

    if not backward:
        return forward
    g = lib.from_numpy(numbers(*forward().shape, seed=2))
    return lambda: lib.autograd.grad(forward(), (x, w), g)


def _attention(lib: Any, batch: int, heads: int, length: int, width: int, causal: bool = True, backward: bool = False) -> Work:
    q, k, v = (lib.from_numpy(numbers(batch, heads, length, width, seed=s)).requires_grad_(backward) for s in range(3))

    def forward() -> Any:
        return lib.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    if not backward:
        return forward
    g = lib.from_numpy(numbers(batch, heads, length, width, seed=3))
    return lambda: lib.autograd.grad(forward(), (q, k, v), g)


def make_kernel(lib: Any, name: str, **options: Any) -> Work:
    """A function that computes the named operation once."""
    if name == "matmul":
        return _matmul(lib, **options)
    if name == "convolution":
        return _convolution(lib, **options)
    if name == "attention":
        return _attention(lib, **options)
    return _elementwise(lib, name, **options)


_READS_AND_WRITES = {"add": 3, "sum": 1, "column variance": 1, "gather": 2}


def cost(name: str, **options: Any) -> tuple[float, float]:
    """(floating-point operations, or 0 where they do not limit; bytes that must move)."""
    if name == "matmul":
        m, n, k, batch = options["m"], options["n"], options["k"], max(1, options.get("batch", 0))
        size = 2 if options.get("dtype") in ("bfloat16", "float16") else 4
        return 2.0 * m * n * k * batch, float(size * batch * (m * k + k * n + m * n))
    if name == "convolution":
        n, c, size, o, kernel, stride, padding, groups, transposed = CONVOLUTIONS[options["case"]]
        out = (size - 1) * stride - 2 * padding + kernel if transposed else (size + 2 * padding - kernel) // stride + 1
        taps = size**2 if transposed else out**2
        flops = 2.0 * n * o * taps * (c // groups) * kernel**2
        moved = 4.0 * (n * c * size**2 + n * o * out**2 + o * c // groups * kernel**2)
        return (3 * flops, 3 * moved) if options.get("backward") else (flops, moved)
    if name == "attention":
        b, h, t, d = (options[x] for x in ("batch", "heads", "length", "width"))
        flops = 4.0 * b * h * t * t * d * (0.5 if options.get("causal", True) else 1.0)
        return (3.5 * flops, 32.0 * b * h * t * d) if options.get("backward") else (flops, 16.0 * b * h * t * d)
    return 0.0, 4.0 * options["size"] * _READS_AND_WRITES.get(name, 2)
