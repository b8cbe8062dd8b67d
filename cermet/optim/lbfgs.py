"""L-BFGS, with the line search of Moré and Thuente's kind that minFunc made popular."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from cermet.frontend.autograd import Mode
from cermet.frontend.core import write
from cermet.lazy.evaluate import realize
from cermet.ops.public import PUBLIC
from cermet.optim.optimizer import Optimizer, Params, check_lr, filled

__all__ = ["LBFGS"]


class LBFGS(Optimizer):
    """Limited-memory BFGS: Liu, Nocedal, On the limited memory BFGS method for large scale optimization (1989); after M.
    Schmidt's minFunc.

    It needs a closure, which it calls several times in a step, and takes one parameter group.

    Args:
        max_iter: iterations in a step. max_eval: calls of the closure in a step (default: ``max_iter * 5 / 4``).
        tolerance_grad, tolerance_change: when to stop: largest gradient, change of parameters or loss.
        history_size: how many pairs of steps and gradient changes stand for the Hessian. line_search_fn: None or
            ``"strong_wolfe"``.

    Raises:
        ValueError: for a negative learning rate, and for more than one group.
    """

    def __init__(
        self, params: Params, lr: Any = 1, max_iter: int = 20, max_eval: int | None = None, tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9, history_size: int = 100, line_search_fn: str | None = None,
    ) -> None:  # fmt: skip
        check_lr(lr)
        defaults = {
            "lr": lr, "max_iter": max_iter, "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad, "tolerance_change": tolerance_change, "history_size": history_size,
            "line_search_fn": line_search_fn,
        }  # fmt: skip
        super().__init__(params, defaults)
        if len(self.param_groups) != 1:
            raise ValueError(
                f"LBFGS: {len(self.param_groups)} groups were given; it steps along one line for all parameters, so give one"
            )
        self._params = self.param_groups[0]["params"]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Up to ``max_iter`` iterations; returns the loss before them.

        Args:
            closure: evaluates the model again, calls backward and returns the loss.
        """
        if closure is None:
            raise TypeError("LBFGS.step() needs a closure that evaluates the model, calls backward and returns the loss")
        with Mode(False):
            return _Run(self, closure).step()


class _Point(NamedTuple):
    """A place on the line: step length, loss, gradient, slope along the direction."""

    t: float
    loss: float
    grad: Any
    slope: float


class _Run:
    """One step: the memory of curvature, and where the iterations stand."""

    def __init__(self, owner: LBFGS, closure: Callable[[], Any]) -> None:
        self.group = owner.param_groups[0]
        self.params = owner._params
        self.state = owner.state[self.params[0]]
        self.closure = closure

    def evaluate(self) -> tuple[float, Any, Any]:
        """The loss as a number, the flat gradient, and the loss as the closure gave it."""
        with Mode(True):
            out = self.closure()
        return float(out), self.flat_gradient(), out

    def flat_gradient(self) -> Any:
        parts = [(filled(p, 0) if p.grad is None else p.grad.detach()).reshape(-1) for p in self.params]
        return parts[0] if len(parts) == 1 else PUBLIC[("", "cat")].fn(parts)

    def move(self, t: float, direction: Any) -> None:
        """Add ``t * direction`` to the parameters."""
        offset = 0
        for p in self.params:
            n = p.numel()
            write(p, p.detach() + direction[offset : offset + n].reshape(p.shape) * t)
            offset += n

    def step(self) -> Any:
        group, state = self.group, self.state
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        loss, grad, first = self.evaluate()
        evaluations = 1
        state["func_evals"] += 1
        if _largest(grad) <= group["tolerance_grad"]:
            return first
        done = 0
        while done < group["max_iter"]:
            done += 1
            state["n_iter"] += 1
            direction = self.direction(grad)
            lr = float(group["lr"])
            t = min(1.0, 1.0 / float(grad.abs().sum())) * lr if state["n_iter"] == 1 else lr
            slope = float(grad.dot(direction))
            before = loss
            state.update(d=direction, t=t, prev_flat_grad=grad, prev_loss=loss)
            if slope > -group["tolerance_change"]:
                break
            t, loss, grad, calls = self.advance(_Point(t, loss, grad, slope), direction, done == group["max_iter"])
            state["t"] = t
            evaluations += calls
            state["func_evals"] += calls
            if done == group["max_iter"] or evaluations >= group["max_eval"] or _largest(grad) <= group["tolerance_grad"]:
                break
            if _largest(direction) * abs(t) <= group["tolerance_change"] or abs(loss - before) < group["tolerance_change"]:
                break
        realize([p._node for p in self.params])
        return first

    def advance(self, at: _Point, direction: Any, last: bool) -> tuple[float, float, Any, int]:
        """Go along the direction; (step length, loss, gradient, calls of the closure). ``at.t`` is the first length to try."""
        search = self.group["line_search_fn"]
        if search is None:
            self.move(at.t, direction)
            if last:  # nothing asks for the loss at the new place
                return at.t, at.loss, at.grad, 0
            loss, grad, _ = self.evaluate()
            return at.t, loss, grad, 1
        if search != "strong_wolfe":
            raise RuntimeError(f"LBFGS: line_search_fn={search!r}; known are 'strong_wolfe' and None")
        start = [p.detach().clone() for p in self.params]

        def at_length(t: float) -> _Point:
            self.move(t, direction)
            loss, grad, _ = self.evaluate()
            for p, value in zip(self.params, start):
                write(p, value)
            return _Point(t, loss, grad, float(grad.dot(direction)))

        found, calls = _strong_wolfe(at_length, at, _largest(direction), self.group["tolerance_change"])
        self.move(found.t, direction)
        return found.t, found.loss, found.grad, calls

    def direction(self, grad: Any) -> Any:
        """Minus the approximate inverse Hessian times the gradient, by the two loops of Nocedal (1980)."""
        state = self.state
        if state["n_iter"] == 1:
            state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1.0)
            return -grad
        changes, steps, ro = state["old_dirs"], state["old_stps"], state["ro"]
        y = grad - state["prev_flat_grad"]
        s = state["d"] * state["t"]
        curvature = float(y.dot(s))
        if curvature > 1e-10:
            if len(changes) == self.group["history_size"]:
                for history in (changes, steps, ro):
                    history.pop(0)
            changes.append(y)
            steps.append(s)
            ro.append(1.0 / curvature)
            state["H_diag"] = curvature / float(y.dot(y))
        q = -grad
        weights = [0.0] * len(changes)
        for i in reversed(range(len(changes))):
            weights[i] = float(steps[i].dot(q)) * float(ro[i])
            q = q - changes[i] * weights[i]
        q = q * float(state["H_diag"])
        for i in range(len(changes)):
            q = q + steps[i] * (weights[i] - float(changes[i].dot(q)) * float(ro[i]))
        return q


def _largest(x: Any) -> float:
    return float(x.abs().max())


def _cubic_minimum(a: _Point, b: _Point, bounds: tuple[float, float] | None = None) -> float:
    """Where the cubic through two points with their slopes is least (Nocedal, Wright, Numerical Optimization, equation 3.59)."""
    low, high = bounds or (min(a.t, b.t), max(a.t, b.t))
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if not square >= 0:
        return (low + high) / 2.0
    d2 = math.sqrt(square)
    if a.t > b.t:
        a, b = b, a
    denominator = b.slope - a.slope + 2 * d2
    if denominator == 0:
        return (low + high) / 2.0
    return min(max(b.t - (b.t - a.t) * ((b.slope + d2 - d1) / denominator), low), high)


def _strong_wolfe(
    at: Callable[[float], _Point],
    start: _Point,
    longest: float,
    tolerance: float,
    c1: float = 1e-4,
    c2: float = 0.9,
    most: int = 25,
) -> tuple[_Point, int]:
    """A point where both strong Wolfe conditions hold (Nocedal, Wright, algorithms 3.5 and 3.6), and how often ``at`` was
    called.

    Args:
        start: loss, gradient and slope where the line begins, and the first step length to try. longest: largest element of the
            direction.
    """
    origin = start._replace(t=0.0)
    before, new = origin, at(start.t)
    calls = 1
    tries = 0

    def too_high(p: _Point) -> bool:
        return p.loss > origin.loss + c1 * p.t * origin.slope

    bracket: list[_Point] = [origin, new]
    done = False
    while tries < most:
        if too_high(new) or (tries > 1 and new.loss >= before.loss) or new.slope >= 0:
            done = not (too_high(new) or (tries > 1 and new.loss >= before.loss)) and abs(new.slope) <= -c2 * origin.slope
            bracket = [new] if done else [before, new]
            break
        if abs(new.slope) <= -c2 * origin.slope:
            bracket, done = [new], True
            break
        bounds = (new.t + 0.01 * (new.t - before.t), new.t * 10)
        t = _cubic_minimum(before, new, bounds)
        before, new = new, at(t)
        calls += 1
        tries += 1
        bracket = [origin, new]
    if done:
        return bracket[0], calls
    bracket.sort(key=lambda p: p.loss)
    low, more = _zoom(at, bracket, origin, longest, tolerance, (c1, c2), most - tries)
    return low, calls + more


def _zoom(
    at: Callable[[float], _Point],
    bracket: list[_Point],
    origin: _Point,
    longest: float,
    tolerance: float,
    c: tuple[float, float],
    most: int,
) -> tuple[_Point, int]:
    """Shrink a bracket (its lower end first) until its lower end will do."""
    low, high = bracket
    stuck = False
    calls = 0
    while calls < most and abs(high.t - low.t) * longest >= tolerance:
        left, right = min(low.t, high.t), max(low.t, high.t)
        t = _cubic_minimum(low, high)
        margin = 0.1 * (right - left)
        if min(right - t, t - left) < margin:
            # Close to an end twice, or at it: step inside, or the bracket would not shrink.
            if stuck or t >= right or t <= left:
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                stuck = False
            else:
                stuck = True
        else:
            stuck = False
        new = at(t)
        calls += 1
        if new.loss > origin.loss + c[0] * t * origin.slope or new.loss >= low.loss:
            low, high = (low, new) if low.loss <= new.loss else (new, low)
            continue
        if abs(new.slope) <= -c[1] * origin.slope:
            return new, calls
        if new.slope * (high.t - low.t) >= 0:
            high = low
        low = new
    return low, calls
