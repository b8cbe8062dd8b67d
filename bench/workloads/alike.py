"""Workloads for the frameworks that share PyTorch's names: Cermet and PyTorch itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from bench.workloads.kernels import make_kernel
from bench.workloads.models import Training, make_model

__all__ = ["Side", "side"]


class Side:
    """Makes workloads for one library."""

    def __init__(self, framework: str, threads: int) -> None:
        self.lib: Any = importlib.import_module(framework.partition(".")[0])
        self.lib.set_num_threads(threads)
        self.version = str(self.lib.__version__)
        self.compiled = framework.endswith(".compile")

    def make(self, kind: str, name: str, **options: Any) -> Callable[[], Any]:
        if kind == "step":
            return self._step(make_model(self.lib, name, **options))
        if kind == "inference":
            return self._inference(name, options)
        work = make_kernel(self.lib, name, **options)
        if self.compiled:
            work = self.lib.compile(work)
        realize = getattr(self.lib, "realize", None)
        # A result is looked at, as a user would: Cermet computes then, PyTorch has computed already.
        return work if realize is None else lambda: realize(work())

    def _step(self, training: Training) -> Callable[..., float]:
        """A training step that returns the loss as a number. Under ``compile``: the whole step in Cermet; in PyTorch, as is usual there,
        the model with its loss, forward and backward, without the optimizer."""
        if not self.compiled:
            return training.step
        if self.lib.__name__ == "torch":
            training.loss = self.lib.compile(training.loss)
            return training.step

        @self.lib.compile
        def step(*data: Any) -> Any:
            training.optimizer.zero_grad()
            loss = training.loss(*data)
            loss.backward()
            training.optimizer.step()
            return loss

        return lambda *data: step(*(data or training.data)).item()

    def _inference(self, name: str, options: dict[str, Any]) -> Callable[[], Any]:
        lib = self.lib
        training = make_model(lib, name, **options)
        model, x = training.model.eval(), training.data[0]
        if self.compiled:
            model = lib.compile(model)
        realize = getattr(lib, "realize", lambda y: y)

        def run() -> Any:
            with lib.no_grad():
                return realize(model(x))

        return run


def side(framework: str, threads: int) -> Side:
    return Side(framework, threads)
