"""Losses as layers: the functions of `cermet.nn.functional` with their arguments kept; class weights are buffers."""

from __future__ import annotations

from typing import Any, ClassVar

from cermet.nn import functional
from cermet.nn.module import Module

F: Any = functional


class _Loss(Module):
    """``function(*inputs, **fields)``. Arguments as in PyTorch: tensors first, then ``size_average`` and the like where PyTorch
    has them.

    Attributes:
        _function: its name in `cermet.nn.functional`. _order: positional arguments and their defaults. _tensors: those that are
        buffers.
    """

    _function: ClassVar[str] = ""
    _order: ClassVar[dict[str, Any]] = {"size_average": None, "reduce": None, "reduction": "mean"}
    _tensors: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        names = list(self._order)
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__}() takes at most {len(names)} arguments, got {len(args)}")
        given = dict(zip(names, args))
        for name, value in kwargs.items():
            if name not in self._order or name in given:
                raise TypeError(
                    f"{type(self).__name__}() got an unexpected or repeated argument {name!r}; it takes {', '.join(names)}"
                )
            given[name] = value
        for name, default in self._order.items():
            value = given.get(name, default)
            if name in self._tensors:
                self.register_buffer(name, value)
            elif name not in ("size_average", "reduce"):
                setattr(self, name, value)
        if given.get("size_average") is not None or given.get("reduce") is not None:
            from cermet.ops.loss import check_reduction

            self.reduction = check_reduction("mean", type(self).__name__, given.get("size_average"), given.get("reduce"))

    def forward(self, *inputs: Any) -> Any:
        named = {n: getattr(self, n) for n in self._order if n not in ("size_average", "reduce")}
        return getattr(F, self._function)(*inputs, **named)


_OLD: dict[str, Any] = {"size_average": None, "reduce": None, "reduction": "mean"}


class L1Loss(_Loss):
    """Mean absolute difference."""

    _function = "l1_loss"


class MSELoss(_Loss):
    """Mean squared difference."""

    _function = "mse_loss"


class SmoothL1Loss(_Loss):
    """Squared below ``beta``, linear beyond."""

    _function, _order = "smooth_l1_loss", {**_OLD, "beta": 1.0}


class HuberLoss(_Loss):
    """Squared below ``delta``, linear beyond."""

    _function, _order = "huber_loss", {"reduction": "mean", "delta": 1.0}


class CrossEntropyLoss(_Loss):
    """Cross entropy of softmax(logits) with class indices or probabilities."""

    _function, _tensors = "cross_entropy", ("weight",)
    _order: ClassVar[dict[str, Any]] = {
        "weight": None,
        "size_average": None,
        "ignore_index": -100,
        "reduce": None,
        "reduction": "mean",
        "label_smoothing": 0.0,
    }


class NLLLoss(_Loss):
    """Negative log likelihood of class indices under log-probabilities."""

    _function, _tensors = "nll_loss", ("weight",)
    _order: ClassVar[dict[str, Any]] = {
        "weight": None,
        "size_average": None,
        "ignore_index": -100,
        "reduce": None,
        "reduction": "mean",
    }


class BCELoss(_Loss):
    """Binary cross entropy of probabilities."""

    _function, _order, _tensors = "binary_cross_entropy", {"weight": None, **_OLD}, ("weight",)


class BCEWithLogitsLoss(_Loss):
    """Binary cross entropy of sigmoid(logits)."""

    _function, _tensors = "binary_cross_entropy_with_logits", ("weight", "pos_weight")
    _order: ClassVar[dict[str, Any]] = {"weight": None, **_OLD, "pos_weight": None}


class KLDivLoss(_Loss):
    """Divergence of target from log-probabilities."""

    _function, _order = "kl_div", {**_OLD, "log_target": False}


class PoissonNLLLoss(_Loss):
    """Negative log likelihood of counts under Poisson distributions."""

    _function = "poisson_nll_loss"
    _order: ClassVar[dict[str, Any]] = {
        "log_input": True,
        "full": False,
        "size_average": None,
        "eps": 1e-8,
        "reduce": None,
        "reduction": "mean",
    }


class GaussianNLLLoss(_Loss):
    """Negative log likelihood under normal distributions."""

    _function, _order = "gaussian_nll_loss", {"full": False, "eps": 1e-6, "reduction": "mean"}


class SoftMarginLoss(_Loss):
    """log(1 + exp(-y x)) for targets of 1 and -1."""

    _function = "soft_margin_loss"


class MultiLabelSoftMarginLoss(_Loss):
    """Binary cross entropy of several labels, averaged over them."""

    _function, _order, _tensors = "multilabel_soft_margin_loss", {"weight": None, **_OLD}, ("weight",)


class MultiLabelMarginLoss(_Loss):
    """Hinge between target classes and all others."""

    _function = "multilabel_margin_loss"


class MultiMarginLoss(_Loss):
    """Hinge between the target class and all others."""

    _function, _tensors = "multi_margin_loss", ("weight",)
    _order: ClassVar[dict[str, Any]] = {"p": 1, "margin": 1.0, "weight": None, **_OLD}


class HingeEmbeddingLoss(_Loss):
    """The input for targets of 1, hinge for targets of -1."""

    _function, _order = "hinge_embedding_loss", {"margin": 1.0, **_OLD}


class CosineEmbeddingLoss(_Loss):
    """One minus the cosine for targets of 1, hinge of it for targets of -1."""

    _function, _order = "cosine_embedding_loss", {"margin": 0.0, **_OLD}


class MarginRankingLoss(_Loss):
    """Hinge of the difference of two scores."""

    _function, _order = "margin_ranking_loss", {"margin": 0.0, **_OLD}


class TripletMarginLoss(_Loss):
    """Hinge of the difference of distances to a positive and a negative example."""

    _function = "triplet_margin_loss"
    _order: ClassVar[dict[str, Any]] = {"margin": 1.0, "p": 2.0, "eps": 1e-6, "swap": False, **_OLD}


class TripletMarginWithDistanceLoss(Module):
    """`TripletMarginLoss` with any distance."""

    def __init__(
        self, *, distance_function: Any = None, margin: float = 1.0, swap: bool = False, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.distance_function, self.margin, self.swap, self.reduction = distance_function, margin, swap, reduction

    def forward(self, anchor: Any, positive: Any, negative: Any) -> Any:
        return F.triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            reduction=self.reduction,
            margin=self.margin,
            swap=self.swap,
            distance_function=self.distance_function,
        )


class CTCLoss(_Loss):
    """Connectionist temporal classification."""

    _function, _order = "ctc_loss", {"blank": 0, "reduction": "mean", "zero_infinity": False}
