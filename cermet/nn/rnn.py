"""Recurrent layers and their cells. A layer's direction is one node for all time steps (`cermet.ops.recurrent`)."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from cermet.frontend.autograd import is_grad_enabled
from cermet.frontend.interop import from_array
from cermet.nn import functional, init
from cermet.nn.module import Module
from cermet.nn.parameter import Parameter, empty
from cermet.nn.utils.rnn import PackedSequence, lengths_of, packed_rows, padded_rows
from cermet.ops.autocast import autocasting
from cermet.ops.composing import shaped
from cermet.ops.public import PUBLIC
from cermet.ops.recurrent import GATES, recurrent

F: Any = functional

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNBase", "RNNCell", "RNNCellBase"]

_KINDS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


_steps = autocasting(recurrent, "lower")  # projections, weights and states then have one dtype


def _zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    return PUBLIC[("", "zeros")].fn(shape, dtype=dtype)


def _uniform(module: Module, hidden_size: int) -> None:
    bound = 1.0 / math.sqrt(hidden_size) if hidden_size > 0 else 0.0
    for p in module.parameters():
        init.uniform_(p, -bound, bound)


def _wants_gradient(values: list[Any]) -> bool:
    """Whether a gradient may be asked for: then what it reads is kept."""
    return is_grad_enabled() and any(v.requires_grad for v in values)


class RNNBase(Module):
    """What `RNN`, `LSTM` and `GRU` share: layers, directions, dropout between layers, packed sequences.

    Parameters of layer k (with ``_reverse`` for the other direction): ``weight_ih_lk`` (gates * hidden_size, input features),
    ``weight_hh_lk`` (gates * hidden_size, features of the hidden state), ``bias_ih_lk``, ``bias_hh_lk``, and ``weight_hr_lk``
    (proj_size, hidden_size) with a projection.

    Raises:
        ValueError, TypeError: for arguments that make no sense.
    """

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.mode, self.input_size, self.hidden_size, self.num_layers = mode, input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, float(dropout), bidirectional
        self.proj_size = proj_size
        self._check()
        self._kind = _KINDS[mode]
        state = proj_size or hidden_size
        rows = GATES[self._kind] * hidden_size
        for layer in range(num_layers):
            features = input_size if layer == 0 else state * self._directions
            for suffix in self._suffixes(layer):
                shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, features), "weight_hh": (rows, state)}
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if proj_size:
                    shapes["weight_hr"] = (proj_size, hidden_size)
                for name, shape in shapes.items():
                    self.register_parameter(name + suffix, Parameter(empty(*shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def _check(self) -> None:
        if not isinstance(self.hidden_size, int):
            raise TypeError(f"hidden_size={self.hidden_size!r} is a {type(self.hidden_size).__name__}; give an int")
        if self.hidden_size <= 0:
            raise ValueError(f"hidden_size={self.hidden_size}; give 1 or more")
        if self.num_layers <= 0:
            raise ValueError(f"num_layers={self.num_layers}; give 1 or more")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout={self.dropout} is no probability; give a number from 0 to 1")
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                f"dropout={self.dropout} has no effect on a single layer: it stands between layers, and none follows the last",
                stacklevel=4,
            )
        if self.proj_size < 0:
            raise ValueError(f"proj_size={self.proj_size}; give the size of the projection, or 0 for none")
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size={self.proj_size} does not shrink hidden_size={self.hidden_size}; give less than that")

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(hidden_size)."""
        _uniform(self, self.hidden_size)

    def flatten_parameters(self) -> None:
        """Do nothing: parameters need not lie side by side."""

    @property
    def all_weights(self) -> list[list[Any]]:
        """Per layer and direction, its parameters."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        suffixes = [s for layer in range(self.num_layers) for s in self._suffixes(layer)]
        return [[getattr(self, n + s) for n in names if n + s in self._parameters] for s in suffixes]

    # --------------------------------------------------------------------------------------------------------- forward

    def _direction(self, x: Any, states: tuple[Any, ...], keep: Any, suffix: str, batch_first: bool) -> tuple[Any, ...]:
        """One direction of one layer: the hidden states laid out as ``x``, the last one, and for an LSTM the last cell state."""
        bias_ih: Any = getattr(self, "bias_ih" + suffix) if self.bias else None
        bias_hh: Any = getattr(self, "bias_hh" + suffix) if self.bias else None
        # A GRU's reset gate applies to the recurrent product with its bias; elsewhere the two biases are one.
        apart = self.bias and self._kind == "gru"
        bias = bias_ih if apart or not self.bias else bias_ih + bias_hh
        inputs = [F.linear(x, getattr(self, "weight_ih" + suffix), bias), getattr(self, "weight_hh" + suffix), *states]
        inputs += [bias_hh] if apart else []
        inputs += [getattr(self, "weight_hr" + suffix)] if self.proj_size else []
        inputs += [keep] if keep is not None else []
        _, *out = _steps(
            *inputs,
            kind=self._kind,
            reverse=suffix.endswith("reverse"),
            bias=apart,
            projected=self.proj_size > 0,
            masked=keep is not None,
            saves=_wants_gradient(inputs),
            batch_first=batch_first,
        )
        return tuple(out)

    def _layers(self, x: Any, states: tuple[Any, ...], keep: Any, batch_first: bool) -> tuple[Any, tuple[Any, ...]]:
        """All layers over (T, B, F), or (B, T, F), from ``states`` (layers * directions, B, H) each."""
        last: list[tuple[Any, ...]] = []
        for layer in range(self.num_layers):
            outs = []
            for suffix in self._suffixes(layer):
                k = len(last)
                y, *new = self._direction(x, tuple(s[k] for s in states), keep, suffix, batch_first)
                outs.append(y)
                last.append(tuple(new))
            x = outs[0] if len(outs) == 1 else PUBLIC[("", "cat")].fn(outs, -1)
            if self.dropout and self.training and layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout)
        stack = PUBLIC[("", "stack")].fn
        return x, tuple(stack([one[k] for one in last]) for k in range(len(states)))

    def _state_widths(self) -> tuple[int, ...]:
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        return widths if self._kind == "lstm" else widths[:1]

    def _initial(self, hx: Any, rows: int, dtype: Any, batched: bool) -> tuple[Any, ...]:
        """The states (layers * directions, B, H); zeros for None.

        Raises:
            RuntimeError: for states of another shape.
        """
        lead = self.num_layers * self._directions
        shapes = [(lead, rows, w) for w in self._state_widths()]
        if hx is None:
            return tuple(_zeros(s, dtype) for s in shapes)
        given = hx if self._kind == "lstm" else (hx,)
        if len(given) != len(shapes):
            raise RuntimeError(f"{type(self).__name__}: expected {len(shapes)} states, got {len(given)}")
        found = []
        name = type(self).__name__
        for what, s, wanted in zip(("hidden", "cell"), given, shapes):
            if not batched:
                if len(s.shape) != 2:
                    raise RuntimeError(f"{name}: an input without a batch needs states (layers, H), got shape {list(s.shape)}")
                s = s.unsqueeze(1)
            elif len(s.shape) != 3:
                raise RuntimeError(f"{name}: an input with a batch needs states (layers, B, H), got shape {list(s.shape)}")
            if tuple(s.shape) != wanted:
                raise RuntimeError(f"{name}: the {what} state has shape {list(s.shape)}, expected {list(wanted)}")
            found.append(s)
        return tuple(found)

    def _result(self, states: tuple[Any, ...]) -> Any:
        return states if self._kind == "lstm" else states[0]

    def _check_features(self, size: int) -> None:
        if size != self.input_size:
            raise RuntimeError(f"{type(self).__name__}: the input has {size} features, input_size is {self.input_size}")

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The hidden states of the last layer, and the last states of all layers.

        Args:
            input: (T, B, input_size), (B, T, input_size) with ``batch_first``, (T, input_size), or a `PackedSequence`.
            hx: initial states (layers * directions, B, H), for an LSTM a pair (hidden, cell); zeros by default.

        Returns:
            ``(output, h_n)``, for an LSTM ``(output, (h_n, c_n))``; output has directions * H features, forward first, and is
            packed where the input is.
        """
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        ndim = len(input.shape)
        if ndim not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: expected (T, B, F), or (T, F) without a batch, got shape {list(input.shape)}"
            )
        self._check_features(input.shape[-1])
        batch_first = self.batch_first and ndim == 3
        x = input.unsqueeze(1) if ndim == 2 else input
        y, states = self._layers(x, self._initial(hx, x.shape[0 if batch_first else 1], x.dtype, ndim == 3), None, batch_first)
        if ndim == 2:
            return y.squeeze(1), self._result(tuple(s.squeeze(1) for s in states))
        return y, self._result(states)

    def _packed(self, packed: PackedSequence, hx: Any) -> Any:
        """Padded inside, with a mask: a program then depends on the longest length alone, not on all of them."""
        self._check_features(packed.data.shape[-1])
        lengths = lengths_of(packed.batch_sizes)
        steps = int(lengths[0])
        states = self._initial(hx, len(lengths), packed.data.dtype, True)
        if hx is not None and packed.sorted_indices is not None:
            states = tuple(s.index_select(1, packed.sorted_indices) for s in states)
        whole = bool((lengths == steps).all())
        keep = None if whole else from_array(lengths[None, :] > np.arange(steps)[:, None])
        y, last = self._layers(padded_rows(packed.data, lengths, steps), states, keep, False)
        if packed.unsorted_indices is not None:
            last = tuple(s.index_select(1, packed.unsorted_indices) for s in last)
        out = PackedSequence(packed_rows(y, lengths), packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return out, self._result(last)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0, "bidirectional": False}
        return text + "".join(f", {n}={getattr(self, n)}" for n, d in defaults.items() if getattr(self, n) != d)


class RNN(RNNBase):
    """Elman's recurrent layers: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu of that.

    Args:
        input_size, hidden_size, num_layers, nonlinearity ("tanh" or "relu"), bias, batch_first, dropout, bidirectional: in this
            order, as in PyTorch. dropout: probability of zeroing outputs of all layers but the last, in training.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", *args: Any, **kwargs: Any
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity={nonlinearity!r}; give 'tanh' or 'relu'")
        if "proj_size" in kwargs:
            raise ValueError(f"{type(self).__name__}: only an LSTM has a projection; leave proj_size out")
        super().__init__("RNN_" + nonlinearity.upper(), input_size, hidden_size, num_layers, *args, **kwargs)
        self.nonlinearity = nonlinearity


class LSTM(RNNBase):
    """Long short-term memory (Hochreiter, Schmidhuber 1997; gates in the order i, f, g, o).

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size: in this order, as in PyTorch.
    """

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", input_size, hidden_size, *args, **kwargs)


class GRU(RNNBase):
    """Gated recurrent units (Cho et al. 2014, arXiv:1406.1078; gates in the order r, z, n).

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: in this order, as in PyTorch.
    """

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError(f"{type(self).__name__}: only an LSTM has a projection; leave proj_size out")
        super().__init__("GRU", input_size, hidden_size, *args, **kwargs)


# ------------------------------------------------------------------------------------------------------------------- cells


class RNNCellBase(Module):
    """What the cells share: parameters ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh``, and one step."""

    _kind = "rnn_tanh"
    weight_ih: Parameter
    weight_hh: Parameter
    bias_ih: Parameter | None
    bias_hh: Parameter | None

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, num_chunks: int, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        rows = num_chunks * hidden_size
        self.weight_ih = Parameter(empty(rows, input_size, device=device, dtype=dtype))
        self.weight_hh = Parameter(empty(rows, hidden_size, device=device, dtype=dtype))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, Parameter(empty(rows, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(hidden_size)."""
        _uniform(self, self.hidden_size)

    def _step(self, input: Any, states: Any) -> tuple[Any, ...]:
        """The new states from (B, input_size) or (input_size), and states of (B, H) or (H), or None."""
        name = type(self).__name__
        if len(input.shape) not in (1, 2):
            raise ValueError(f"{name}: expected (B, F), or (F) without a batch, got shape {list(input.shape)}")
        batched = len(input.shape) == 2
        x = input if batched else input.unsqueeze(0)
        if x.shape[1] != self.input_size:
            raise RuntimeError(f"{name}: expected {self.input_size} input features, got {x.shape[1]}")
        count = 2 if self._kind == "lstm" else 1
        if states is None:
            states = (_zeros((x.shape[0], self.hidden_size), x.dtype),) * count
        elif not batched:
            states = tuple(s.unsqueeze(0) if len(s.shape) == 1 else s for s in states)
        biases = (self.bias_hh,) if self.bias else ()
        gx = F.linear(x, self.weight_ih, self.bias_ih)
        _, _, *new = _steps(
            shaped(gx, (1, *gx.shape)),
            self.weight_hh,
            *states,
            *biases,
            kind=self._kind,
            reverse=False,
            bias=self.bias,
            projected=False,
            masked=False,
            saves=False,
            batch_first=False,
        )
        return tuple(new) if batched else tuple(s.squeeze(0) for s in new)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The new hidden state (B, hidden_size) from ``input`` (B, input_size) and ``hx`` (zeros by default); or without B."""
        return self._step(input, None if hx is None else (hx,))[0]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class RNNCell(RNNCellBase):
    """One step of `RNN`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        if nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"RNNCell: nonlinearity={nonlinearity!r}; give 'tanh' or 'relu'")
        self.nonlinearity, self._kind = nonlinearity, "rnn_" + nonlinearity

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}")


class LSTMCell(RNNCellBase):
    """One step of `LSTM`: ``(h, c) = cell(input, (h, c))``."""

    _kind = "lstm"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The new hidden and cell states (B, hidden_size) from ``input`` (B, input_size) and ``hx``, zeros by default."""
        return self._step(input, hx)


class GRUCell(RNNCellBase):
    """One step of `GRU`."""

    _kind = "gru"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)
