"""Adam and its relatives that differ in an option: AMSGrad, and decoupled weight decay (AdamW)."""

from __future__ import annotations

from typing import Any

from cermet.frontend.core import TensorBase
from cermet.lazy.number import root, single
from cermet.ops.optimizers import adam_step, amsgrad_step
from cermet.optim.optimizer import (
    Params,
    Stepper,
    advance,
    check,
    check_betas,
    check_lr,
    check_modes,
    counter,
    filled,
    not_negative,
    number_of,
    scalars,
)  # fmt: skip

__all__ = ["Adam"]


class Adam(Stepper):
    """Adam: Kingma, Ba, A Method for Stochastic Optimization (arXiv:1412.6980).

    With ``amsgrad``, the largest second moment so far is used (Reddi et al. 2018); with ``decoupled_weight_decay`` it is AdamW.

    Raises:
        ValueError: for options out of their range.
    """

    def __init__(
        self, params: Params, lr: Any = 1e-3, betas: tuple[Any, Any] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0,
        amsgrad: bool = False, *, foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
        differentiable: bool = False, fused: bool | None = None, decoupled_weight_decay: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        check_betas(betas)
        not_negative(eps=eps, weight_decay=weight_decay)
        tensors = [isinstance(b, TensorBase) for b in betas]
        check(tensors[0] == tensors[1], f"betas={betas}: give two numbers or two tensors, not one of each")
        check_modes(differentiable, foreach, fused)
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad, "maximize": maximize,
            "foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        amsgrad, decoupled = bool(group["amsgrad"]), bool(group["decoupled_weight_decay"])
        attrs = (amsgrad, bool(group["maximize"]), decoupled)
        op = amsgrad_step if amsgrad else adam_step
        counts: dict[float, Any] = {}
        alike: dict[Any, list[tuple[Any, ...]]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=counter(), exp_avg=filled(p, 0), exp_avg_sq=filled(p, 0))
                if amsgrad:
                    state["max_exp_avg_sq"] = filled(p, 0)
            kept: tuple[Any, ...] = (p, state["exp_avg"], state["exp_avg_sq"])
            if amsgrad:
                kept = (*kept, state["max_exp_avg_sq"])
            alike.setdefault((advance(state, counts), p._node.meta.dtype), []).append(kept)
        for (step, _), entries in alike.items():
            self._apply(op, attrs, entries, self._numbers(group, entries[0][0], step))

    def _numbers(self, group: dict[str, Any], p: Any, step: int) -> tuple[Any, ...]:
        """The run-time scalars of `adam_step` in step ``step``."""
        lr, decay = self._number(group["lr"]), group["weight_decay"]
        beta1, beta2 = (rounded(number_of(b), p) for b in group["betas"])
        size = lr / (1 - beta1**step)
        return scalars(
            p, size, root(1 - beta2**step), beta1, beta2, group["eps"], decay * lr if group["decoupled_weight_decay"] else decay
        )


def rounded(beta: float, p: Any) -> float:
    """A decay rate as the kernel sees it. It forms ``1 - beta`` from the rounded rate, so that bias corrections must come from it
    too, or the moments and their corrections would disagree by 1e-5 in float32."""
    return beta if p.dtype.name == "float64" else single(beta)
