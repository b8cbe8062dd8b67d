"""Module: registration, iteration, modes, state dicts, hooks."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import cermet as ct
from cermet import nn


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2, bias=False))


def test_names_of_parameters_and_buffers() -> None:
    m = small()
    assert [n for n, _ in m.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight"]
    assert [n for n, _ in m.named_buffers()] == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_shared_parameter_is_listed_once() -> None:
    m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    m[1].weight = m[0].weight
    assert len(list(m.parameters())) == 3
    assert len(m.state_dict()) == 4


def test_assignment_rules() -> None:
    m = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="cannot assign"):
        m.weight = ct.zeros(2, 2)
    m.bias = None
    assert m.bias is None
    with pytest.raises(KeyError, match="contain "):
        m.register_parameter("a.b", nn.Parameter(ct.zeros(1)))

    class Early(nn.Module):
        def __init__(self) -> None:
            self.weight = nn.Parameter(ct.zeros(1))

    with pytest.raises(AttributeError, match=r"before Module\.__init__"):
        Early()


def test_train_and_eval_reach_all_children() -> None:
    m = nn.Sequential(nn.Sequential(nn.Dropout()))
    assert not m.eval()[0][0].training
    assert m.train()[0][0].training


def test_state_dict_round_trip() -> None:
    a, b = small(), small()
    a(ct.randn(6, 4))
    assert str(b.load_state_dict(a.state_dict())) == "<All keys matched successfully>"
    for (_, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert np.array_equal(x.numpy(), y.numpy())


def test_load_state_dict_names_everything_that_is_wrong() -> None:
    state = small().state_dict()
    state["0.weight"] = ct.zeros(5, 4)
    del state["3.weight"]
    state["extra"] = ct.zeros(1)
    with pytest.raises(RuntimeError) as e:
        small().load_state_dict(state)
    for text in (
        "0.weight: size mismatch",
        'missing in the state dict: "3.weight"',
        'without a place in the module: "extra"',
    ):
        assert text in str(e.value)
    del state["0.weight"]
    found = small().load_state_dict(state, strict=False)
    assert found.missing_keys == ["0.weight", "3.weight"] and found.unexpected_keys == ["extra"]


def test_non_persistent_buffer_is_not_saved() -> None:
    m = nn.Module()
    m.register_buffer("kept", ct.ones(1))
    m.register_buffer("scratch", ct.ones(1), persistent=False)
    assert list(m.state_dict()) == ["kept"]


def test_forward_hooks_replace_inputs_and_outputs() -> None:
    m = nn.Identity()
    first = m.register_forward_pre_hook(lambda mod, args: (args[0] + 1,))
    second = m.register_forward_hook(lambda mod, args, out: out * 2)
    assert m(ct.tensor(1.0)).item() == 4.0
    first.remove()
    second.remove()
    assert m(ct.tensor(1.0)).item() == 1.0


def test_full_backward_hook_sees_both_gradients() -> None:
    m = nn.Linear(2, 1, bias=False)
    with ct.no_grad():
        m.weight.copy_(ct.tensor([[2.0, 3.0]]))
    seen: dict[str, list[list[float]]] = {}
    m.register_full_backward_hook(lambda mod, gi, go: seen.update(gi=gi[0].tolist(), go=go[0].tolist()))
    x = ct.ones(1, 2).requires_grad_()
    m(x).sum().backward()
    assert seen == {"gi": [[2.0, 3.0]], "go": [[1.0]]} and x.grad.tolist() == [[2.0, 3.0]]


def test_deepcopy_is_independent() -> None:
    a = nn.Linear(2, 2)
    b = copy.deepcopy(a)
    with ct.no_grad():
        b.weight.zero_()
    assert np.abs(a.weight.detach().numpy()).sum() > 0


def test_dtype_conversion_keeps_integers_and_identity() -> None:
    m = small()
    weight = m[0].weight
    m.double()
    assert m[0].weight is weight and weight.dtype is ct.float64 and m[1].num_batches_tracked.dtype is ct.int64
    with pytest.raises(TypeError, match="floating"):
        m.to(ct.int32)


def test_repr_is_as_in_pytorch() -> None:
    assert repr(nn.Sequential(nn.Linear(2, 3), nn.ReLU())) == (
        "Sequential(\n  (0): Linear(in_features=2, out_features=3, bias=True)\n  (1): ReLU()\n)"
    )


def test_lazy_layers_become_ordinary_ones() -> None:
    m = nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    assert tuple(m(ct.randn(2, 1, 5, 5)).shape) == (2, 2)
    assert [type(x).__name__ for x in m] == ["Conv2d", "BatchNorm2d", "Flatten", "Linear"]


def test_containers() -> None:
    seq = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid())
    assert [type(x).__name__ for x in seq[1:]] == ["Tanh", "Sigmoid"]
    del seq[0]
    assert list(seq._modules) == ["0", "1"]
    d = nn.ModuleDict({"a": nn.ReLU()})
    assert "a" in d and list(d) == ["a"]
    params = nn.ParameterList([ct.zeros(2), ct.zeros(3)])
    assert len(list(params.parameters())) == 2
