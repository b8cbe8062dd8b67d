"""Adafactor."""

from __future__ import annotations

from typing import Any

from cermet.lazy.number import root
from cermet.optim.optimizer import (
    Params,
    Stepper,
    advance,
    assign,
    check,
    check_lr,
    counter,
    filled,
    gradient_of,
    not_negative,
    scalars,
    widened,
)

__all__ = ["Adafactor"]


class Adafactor(Stepper):
    """Shazeer, Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (arXiv:1804.04235), as PyTorch has it:
    without momentum, with ``lr`` as an upper bound of the relative step ``min(lr, 1 / sqrt(t)) * max(eps[1], rms(p))``, decay of
    the second moment ``1 - t^beta2_decay``, and updates clipped to a root mean square of ``d``. Parameters of two or more
    dimensions keep row and column means of the squared gradient in place of all its elements.

    Args:
        eps: regularisation of the squared gradient (None: the dtype's machine epsilon) and of the parameter's scale.

    Raises:
        ValueError: for options out of their range.
    """

    def __init__(
        self, params: Params, lr: Any = 1e-2, beta2_decay: float = -0.8, eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0, weight_decay: float = 0.0, *, foreach: bool | None = None, maximize: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        not_negative(weight_decay=weight_decay)
        check(min(eps[0] or 0.0, eps[1]) >= 0.0, f"eps={eps}: neither may be negative")
        check(beta2_decay <= 0.0, f"beta2_decay={beta2_decay}: a power of the step count that must not grow; give 0 or less")
        check(d >= 1.0, f"d={d}: updates cannot be clipped to less than 1; give 1 or more")
        defaults = {
            "lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay, "foreach": foreach,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr = self._number(group["lr"])
        eps1, eps2 = group["eps"]
        for p in params:
            shape = tuple(p.shape)
            state = self._born(p, shape)
            t = advance(state)
            if eps1 is None:
                from cermet.dtypes import finfo

                eps1 = finfo(p.dtype).eps
            rate = min(lr, 1 / root(t))
            numbers = scalars(
                p, rate, lr * group["weight_decay"], t ** group["beta2_decay"], eps1, eps1 * eps1, eps2, group["d"], 1.0
            )
            kept = [p, *[state[k] for k in ("row_var", "col_var", "variance") if k in state]]
            values = widened(p, gradient_of(p, group["maximize"]), *kept[1:])
            assign(kept, _rule(*values, numbers=numbers, decays=group["weight_decay"] != 0))
            eps1 = group["eps"][0]

    def _born(self, p: Any, shape: tuple[int, ...]) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            state["step"] = counter()
            if len(shape) > 1:
                state["row_var"] = filled(p, 0, (*shape[:-1], 1))
                state["col_var"] = filled(p, 0, (*shape[:-2], 1, shape[-1]))
            else:
                state["variance"] = filled(p, 0)
        return state


def _rms(x: Any) -> Any:
    return (x * x).mean().sqrt()


def _rule(p: Any, g: Any, *moments: Any, numbers: tuple[Any, ...], decays: bool) -> tuple[Any, ...]:
    rate, decay, keep, eps1, eps1_squared, eps2, d, one = numbers
    size = _rms(p).maximum(eps2) * rate
    if decays:
        p = p - p * decay
    squares = g * g
    if len(moments) == 2:
        row, column = moments
        row = row + (squares.mean(dim=-1, keepdim=True) - row) * keep
        column = column + (squares.mean(dim=-2, keepdim=True) - column) * keep
        estimate = row * column / row.mean(dim=-2, keepdim=True).maximum(eps1)
        moments = (row, column)
    else:
        estimate = moments[0] + (squares - moments[0]) * keep
        moments = (estimate,)
    step = g / estimate.maximum(eps1_squared).sqrt()
    return (p - step * (size / (_rms(step) / d).maximum(one)), *moments)
