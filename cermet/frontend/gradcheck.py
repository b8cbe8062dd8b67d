"""Gradients against finite differences: central differences in float64, for first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cermet.frontend.autograd import grad
from cermet.frontend.core import TensorBase
from cermet.frontend.interop import from_array

__all__ = ["gradcheck", "gradgradcheck"]


def _outputs(result: Any) -> list[Any]:
    results = result if isinstance(result, tuple | list) else (result,)
    return [r for r in results if isinstance(r, TensorBase) and r.dtype.kind == "f"]  # type: ignore[attr-defined]


def _numerical(fn: Callable[..., Any], inputs: Sequence[Any], which: int, eps: float) -> list[Any]:
    """Jacobians (input elements, output elements) of every output with respect to one input."""
    base = inputs[which]._array().astype(np.float64)
    columns: list[list[Any]] = []
    for k in range(base.size):
        sides = []
        for sign in (1, -1):
            moved = base.copy()
            moved.reshape(-1)[k] += sign * eps
            args = list(inputs)
            args[which] = from_array(moved, inputs[which].dtype).requires_grad_()
            sides.append([o._array().astype(np.float64).reshape(-1) for o in _outputs(fn(*args))])
        columns.append([(p - m) / (2 * eps) for p, m in zip(*sides, strict=True)])
    count = len(columns[0]) if columns else 0
    return [np.stack([c[j] for c in columns]) for j in range(count)]


def _analytical(outputs: list[Any], inputs: Sequence[Any], which: int, j: int) -> Any:
    """The same Jacobian by backward passes, one per output element."""
    out = outputs[j]
    rows = []
    for k in range(out.numel()):
        seed = np.zeros(tuple(out.shape))
        seed.reshape(-1)[k] = 1
        (g,) = grad(out, inputs[which], from_array(seed, out.dtype), retain_graph=True, allow_unused=True)
        rows.append(np.zeros(inputs[which].numel()) if g is None else g._array().astype(np.float64).reshape(-1))
    return np.stack(rows, axis=1) if rows else np.zeros((inputs[which].numel(), 0))


def gradcheck(
    func: Callable[..., Any],
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Whether gradients agree with central differences at ``inputs`` (float64 tensors; those with requires_grad are checked).

    Raises:
        AssertionError: where they don't (unless ``raise_exception`` is False), naming input, output and both Jacobians.
    """
    inputs = (inputs,) if isinstance(inputs, TensorBase) else tuple(inputs)
    outputs = _outputs(func(*inputs))
    for which, x in enumerate(inputs):
        if not (isinstance(x, TensorBase) and x.requires_grad):  # type: ignore[attr-defined]
            continue
        numerical = _numerical(func, inputs, which, eps)
        for j, out in enumerate(outputs):
            if not out.requires_grad:
                analytical = np.zeros((x.numel(), out.numel()))  # type: ignore[attr-defined]
            else:
                analytical = _analytical(outputs, inputs, which, j)
            expected = numerical[j] if numerical else analytical
            if not np.allclose(analytical, expected, rtol=rtol, atol=atol, equal_nan=True):
                if raise_exception:
                    raise AssertionError(
                        f"gradcheck: the gradient of output {j} with respect to input {which} is\n{analytical}\n"
                        f"but differences give\n{expected}"
                    )
                return False
    return True


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Whether gradients of gradients agree with differences of gradients; ``grad_outputs`` default to fixed pseudo-random values."""
    inputs = (inputs,) if isinstance(inputs, TensorBase) else tuple(inputs)
    outputs = [o for o in _outputs(func(*inputs)) if o.requires_grad]
    if grad_outputs is None:
        rng = np.random.default_rng(0)
        grad_outputs = [from_array(rng.uniform(0.5, 1.5, tuple(o.shape)), o.dtype).requires_grad_() for o in outputs]
    elif isinstance(grad_outputs, TensorBase):
        grad_outputs = [grad_outputs]
    grad_outputs = list(grad_outputs)
    count = len(grad_outputs)

    def first(*args: Any) -> Any:
        given, xs = args[:count], args[count:]
        outs = [o for o in _outputs(func(*xs)) if o.requires_grad]
        wanted = [x for x in xs if isinstance(x, TensorBase) and x.requires_grad]  # type: ignore[attr-defined]
        return grad(outs, wanted, list(given), create_graph=True, allow_unused=True, materialize_grads=True)

    return gradcheck(first, (*grad_outputs, *inputs), eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception)
