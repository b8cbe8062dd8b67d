"""Optimizers, learning-rate schedules and weight averaging, with the names of torch.optim."""

import importlib
from typing import Any

from cermet.optim import lr_scheduler
from cermet.optim.adadelta import Adadelta
from cermet.optim.adafactor import Adafactor
from cermet.optim.adagrad import Adagrad
from cermet.optim.adam import Adam
from cermet.optim.adamax import Adamax
from cermet.optim.adamw import AdamW
from cermet.optim.asgd import ASGD
from cermet.optim.lbfgs import LBFGS
from cermet.optim.muon import Muon
from cermet.optim.nadam import NAdam
from cermet.optim.optimizer import Optimizer
from cermet.optim.radam import RAdam
from cermet.optim.rmsprop import RMSprop
from cermet.optim.rprop import Rprop
from cermet.optim.sgd import SGD

__all__ = [
    "ASGD", "LBFGS", "SGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam", "Optimizer", "RAdam",
    "RMSprop", "Rprop", "lr_scheduler", "swa_utils",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Averages are Modules; optimizers alone do not need cermet.nn.
    if name == "swa_utils":
        return importlib.import_module("cermet.optim.swa_utils")
    raise AttributeError(f"module 'cermet.optim' has no attribute {name!r}")
