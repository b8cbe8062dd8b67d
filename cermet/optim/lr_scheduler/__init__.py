"""Learning-rate schedules, with the names of torch.optim.lr_scheduler. A rate is a run-time scalar: no schedule ever compiles
anything."""

from cermet.optim.lr_scheduler.base import LRScheduler
from cermet.optim.lr_scheduler.compose import ChainedScheduler, SequentialLR
from cermet.optim.lr_scheduler.cycle import CyclicLR, OneCycleLR
from cermet.optim.lr_scheduler.decay import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from cermet.optim.lr_scheduler.plateau import ReduceLROnPlateau

_LRScheduler = LRScheduler

__all__ = [
    "ChainedScheduler", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR",
    "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR", "MultiplicativeLR", "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau",
    "SequentialLR", "StepLR",
]  # fmt: skip
