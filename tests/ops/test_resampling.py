"""Interpolation, sampling by grids, unpooling and CTC against their definitions in plain NumPy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet.nn import functional

F: Any = functional


def keys(t: float) -> float:
    """The cubic convolution kernel with a = -0.75."""
    t, a = abs(t), -0.75
    if t <= 1:
        return ((a + 2) * t - (a + 3)) * t * t + 1
    return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a if t < 2 else 0.0


def matrix(mode: str, size: int, out: int, align: bool, scale: float | None) -> Any:
    """The map of one dimension: (out, size)."""
    m = np.zeros((out, size))
    step = (size - 1) / (out - 1) if align and out > 1 else 0.0 if align else (1 / scale if scale else size / out)
    for o in range(out):
        if mode == "nearest":
            m[o, min(math.floor(o * step), size - 1)] = 1
        elif mode == "nearest-exact":
            m[o, min(math.floor((o + 0.5) * step), size - 1)] = 1
        elif mode == "area":
            first, last = o * size // out, -(-(o + 1) * size // out)
            m[o, first:last] = 1 / (last - first)
        else:
            at = o * step if align else (o + 0.5) * step - 0.5
            if mode == "linear":
                at = max(at, 0.0)
            low = math.floor(at)
            for k in range(low - 1, low + 3):
                weight = keys(at - k) if mode == "cubic" else max(0.0, 1 - abs(at - k))
                m[o, min(max(k, 0), size - 1)] += weight
    return m


ONE = {"nearest": "nearest", "nearest-exact": "nearest-exact", "area": "area", "bicubic": "cubic"}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("how", ["size", "factor", "recomputed"])
def test_interpolate(dims: int, how: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4, 6)[: 2 + dims])
    size, factors = (7, 3, 8)[:dims], (1.5, 0.7, 2.3)[:dims]
    linear = ("linear", "bilinear", "trilinear")[dims - 1]
    modes = ["nearest", "nearest-exact", "area", linear, *(["bicubic"] if dims == 2 else [])]
    for mode, align in itertools.product(modes, (None, False, True)):
        if align is not None and mode in ("nearest", "nearest-exact", "area"):
            continue
        given: dict[str, Any] = {"size": size} if how == "size" else {"scale_factor": factors}
        if how == "recomputed":
            given["recompute_scale_factor"] = True
        t = ct.tensor(x).requires_grad_()
        y = F.interpolate(t, mode=mode, align_corners=align, **given)
        want = x
        for k in range(dims):
            out = size[k] if how == "size" else math.floor(x.shape[2 + k] * factors[k])
            m = matrix(ONE.get(mode, "linear"), x.shape[2 + k], out, bool(align), factors[k] if how == "factor" else None)
            want = np.moveaxis(np.tensordot(m, want, (1, 2 + k)), 0, 2 + k)
        np.testing.assert_allclose(y.detach().numpy(), want, rtol=1e-9, atol=1e-12, err_msg=f"{mode} {align} {given}")
        # The map is linear, so its gradient is its adjoint.
        w = np.random.default_rng(1).standard_normal(want.shape)
        (y * ct.tensor(w)).sum().backward()
        np.testing.assert_allclose((t.grad.numpy() * x).sum(), (want * w).sum(), rtol=1e-9)


def test_interpolate_antialiased() -> None:
    """Halving with the triangle filter: weights 1 3 3 1; a constant stays one."""
    x = np.arange(8.0).reshape(1, 1, 1, 8) ** 2
    y = F.interpolate(ct.tensor(x), size=(1, 4), mode="bilinear", antialias=True).numpy()[0, 0, 0]
    np.testing.assert_allclose(y[1], (x[0, 0, 0, 1:5] * [1, 3, 3, 1]).sum() / 8)
    for mode in ("bilinear", "bicubic"):
        ones = F.interpolate(ct.ones(1, 1, 9, 7), size=(4, 5), mode=mode, antialias=True)
        np.testing.assert_allclose(ones.numpy(), 1, rtol=1e-6)


def test_interpolate_refusals() -> None:
    x = ct.zeros(1, 1, 4, 4)
    for error, given in (
        (ValueError, {}),
        (ValueError, {"size": 2, "scale_factor": 2}),
        (ValueError, {"size": (2, 2, 2)}),
        (ValueError, {"size": 2, "align_corners": True}),
        (ValueError, {"size": 2, "antialias": True}),
        (NotImplementedError, {"size": 2, "mode": "linear"}),
        (RuntimeError, {"size": 0}),
    ):
        with pytest.raises(error):
            F.interpolate(x, **given)


@pytest.mark.parametrize("align", [False, True])
def test_identity_grids(align: bool) -> None:
    """The grid of the identity gives the image back; of a mirror, the mirrored image."""
    for shape in ((2, 3, 4, 5), (1, 2, 3, 4, 2)):
        n = len(shape) - 2
        x = ct.tensor(np.random.default_rng(2).standard_normal(shape))
        theta = np.zeros((shape[0], n, n + 1))
        theta[:, range(n), range(n)] = 1
        for mode in ("bilinear", "nearest", *(["bicubic"] if n == 2 else [])):
            grid = F.affine_grid(ct.tensor(theta), shape, align)
            got = F.grid_sample(x, grid, mode, "border", align)
            np.testing.assert_allclose(got.numpy(), x.numpy(), atol=1e-9)
        theta[:, 0, 0] = -1
        got = F.grid_sample(x, F.affine_grid(ct.tensor(theta), shape, align), "bilinear", "zeros", align)
        np.testing.assert_allclose(got.numpy(), x.numpy()[..., ::-1], atol=1e-9)
    with pytest.raises(ValueError, match="affine_grid"):
        F.affine_grid(ct.zeros(1, 2, 2), (1, 1, 3, 3))
    with pytest.raises(ValueError, match="mode"):
        F.grid_sample(ct.zeros(1, 1, 2, 2), ct.zeros(1, 1, 1, 2), "cubic")


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unpool(dims: int) -> None:
    """Maxima return to where pooling found them, zeros elsewhere; gradients are read there."""
    pool, unpool = getattr(F, f"max_pool{dims}d"), getattr(F, f"max_unpool{dims}d")
    for lead in ((2, 3), (3,)):
        x = np.random.default_rng(3).standard_normal((*lead, *(6, 5, 4)[:dims]))
        y, index = pool(ct.tensor(x), 2, return_indices=True)
        back = unpool(y, index, 2, output_size=x.shape[-dims:]).numpy()
        found = np.isin(x, y.numpy())
        np.testing.assert_array_equal(back, np.where(found, x, 0))
        values = y.detach().clone().requires_grad_()
        (unpool(values, index, 2, output_size=x.shape[-dims:]) * ct.tensor(x)).sum().backward()
        np.testing.assert_array_equal(values.grad.numpy(), y.numpy())
    with pytest.raises(ValueError, match="output_size"):
        unpool(y, index, 2, output_size=(20,) * dims)
    with pytest.raises(RuntimeError, match="indices"):
        unpool(y, index[:1], 2)
    with pytest.raises(ValueError, match="kernel_size"):
        unpool(y, index, (2,) * (dims + 1))


def by_paths(lp: Any, target: list[int], blank: int) -> float:
    """Minus the log of the probability of all paths that collapse to the target."""
    total = 0.0
    for path in itertools.product(range(lp.shape[1]), repeat=lp.shape[0]):
        merged = [c for k, c in enumerate(path) if c != blank and (k == 0 or path[k - 1] != c)]
        if merged == target:
            total += math.exp(sum(lp[t, c] for t, c in enumerate(path)))
    return -math.log(total) if total else math.inf


def test_ctc() -> None:
    """Against all paths, for repeated and empty targets, either form of the targets, all reductions."""
    logits = np.random.default_rng(4).standard_normal((5, 4, 3))
    lp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    steps = [5, 4, 3, 5]
    for blank, labels in ((0, [[1, 2], [1, 1], [], [2, 1, 2]]), (2, [[0, 1], [0, 0], [], [1, 1, 1]])):
        want = np.array([by_paths(lp[:s, k], t, blank) for k, (s, t) in enumerate(zip(steps, labels))])
        sizes = [len(t) for t in labels]
        padded = np.full((4, 3), (blank + 1) % 3)
        for row, t in zip(padded, labels):
            row[: len(t)] = t
        x = ct.tensor(lp)
        for targets in (ct.tensor(padded), ct.tensor(np.array([v for t in labels for v in t]))):
            got = F.ctc_loss(x, targets, steps, ct.tensor(sizes), blank, "none").numpy()
            np.testing.assert_allclose(got, want, rtol=1e-9)
        np.testing.assert_allclose(F.ctc_loss(x, targets, steps, sizes, blank, "sum").item(), want.sum(), rtol=1e-9)
        mean = (want / np.maximum(sizes, 1)).mean()
        np.testing.assert_allclose(F.ctc_loss(x, targets, steps, sizes, blank).item(), mean, rtol=1e-9)
        t = ct.tensor(lp).requires_grad_()
        F.ctc_loss(t, targets, steps, sizes, blank, "sum").backward()
        direction = np.random.default_rng(5).standard_normal(lp.shape)
        ends = [sum(by_paths(m[:s, k], v, blank) for k, (s, v) in enumerate(zip(steps, labels))) for m in
                (lp + 1e-5 * direction, lp - 1e-5 * direction)]  # fmt: skip
        np.testing.assert_allclose((t.grad.numpy() * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-6)
    impossible = F.ctc_loss(x[:1], ct.tensor([[1, 1]] * 4), [1] * 4, [2] * 4, 0, "none")
    assert bool(impossible.isinf().all())
    assert F.ctc_loss(x[:1], ct.tensor([[1, 1]] * 4), [1] * 4, [2] * 4, 0, "sum", True).item() == 0
