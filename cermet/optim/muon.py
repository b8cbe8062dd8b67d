"""Muon."""

from __future__ import annotations

import math
from typing import Any

from cermet.optim.optimizer import Params, Stepper, assign, check, check_lr, filled, not_negative, scalars, widened

__all__ = ["Muon"]


class Muon(Stepper):
    """Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024): momentum, whose matrix is replaced by the
    nearest orthogonal one with a few Newton-Schulz steps. For matrices only; give biases, embeddings and heads to another
    optimizer.

    The Newton-Schulz steps are computed in float32 (PyTorch: bfloat16).

    Args:
        ns_coefficients: a, b, c of ``X <- a X + (b A + c A^2) X``, ``A = X X^T``. ns_steps: how many.
        adjust_lr_fn: ``"original"`` (or None) scales by ``sqrt(max(1, rows / columns))``, ``"match_rms_adamw"`` by ``0.2
            sqrt(max(rows, columns))`` (Moonshot, arXiv:2502.16982).

    Raises:
        ValueError: for options out of their range, and for parameters that are no matrices.
    """

    def __init__(
        self, params: Params, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95, nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315), eps: float = 1e-7, ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:  # fmt: skip
        check_lr(lr)
        not_negative(momentum=momentum, weight_decay=weight_decay)
        check(
            adjust_lr_fn in (None, "original", "match_rms_adamw"),
            f"adjust_lr_fn={adjust_lr_fn!r}: known are 'original' (or None) and 'match_rms_adamw'",
        )
        check(ns_steps < 100, f"ns_steps={ns_steps}: at most 99 are allowed; 5 are usual, each costs three products of matrices")
        check(len(ns_coefficients) == 3, f"ns_coefficients={ns_coefficients}: give three numbers (a, b, c)")
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of matrices; see `Optimizer.add_param_group`."""
        super().add_param_group(param_group)
        for p in param_group["params"]:
            if p.ndim != 2:
                self.param_groups.remove(param_group)
                raise ValueError(
                    f"Muon: a parameter has shape {list(p.shape)}, but only matrices can be made orthogonal; give it to another "
                    "optimizer, such as AdamW"
                )

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr, momentum = self._number(group["lr"]), group["momentum"]
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = filled(p, 0)
            numbers = scalars(
                p, lr * _adjustment(group["adjust_lr_fn"], p), lr * group["weight_decay"], momentum, 1 - momentum, group["eps"]
            )
            coefficients = scalars(p, *group["ns_coefficients"])
            kept = (p, state["momentum_buffer"])
            steps = (group["ns_steps"], coefficients)
            assign(kept, _rule(*widened(p, p.grad, kept[1]), *numbers, steps=steps, nesterov=group["nesterov"]))


def _adjustment(name: str | None, p: Any) -> float:
    rows, columns = p.shape
    return 0.2 * math.sqrt(max(rows, columns)) if name == "match_rms_adamw" else math.sqrt(max(1, rows / columns))


def _rule(
    p: Any, g: Any, v: Any, size: Any, decay: Any, mu: Any, keep: Any, eps: Any, *, steps: tuple[int, Any], nesterov: bool
) -> tuple[Any, ...]:
    v = v + (g - v) * keep
    step = _orthogonal(g + (v - g) * mu if nesterov else v, eps, *steps)
    return p - p * decay - step * size, v


def _orthogonal(x: Any, eps: Any, steps: int, coefficients: Any) -> Any:
    """About the nearest matrix with orthonormal rows (or columns, where there are fewer)."""
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.mT
    x = x / (x * x).sum().sqrt().maximum(eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = x * a + (gram * b + (gram @ gram) * c) @ x
    return x.mT if tall else x
