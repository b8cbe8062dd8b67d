"""What views and in-place writes mean, on NumPy arrays that really share memory: the model that tensors are held to."""

from __future__ import annotations

from typing import Any

import numpy as np


def plain(v: Any) -> Any:
    """The array of a model, or the value itself."""
    if isinstance(v, Model):
        return v.a
    return tuple(plain(i) for i in v) if isinstance(v, tuple) else v


class Model:
    """An array under the names that tensors use. Methods that PyTorch calls views give NumPy views."""

    def __init__(self, a: Any) -> None:
        self.a = a

    def __getitem__(self, i: Any) -> Model:
        i = plain(i)
        out = self.a[i]
        # A single element as a view, not as a number.
        return Model(self.a[(*i, ...) if isinstance(i, tuple) else (i, ...)] if isinstance(out, np.generic) else out)

    def __setitem__(self, i: Any, v: Any) -> None:
        self.a[plain(i)] = plain(v)

    def __add__(self, o: Any) -> Model:
        return Model(self.a + plain(o))

    def __mul__(self, o: Any) -> Model:
        return Model(self.a * plain(o))

    def __gt__(self, o: Any) -> Model:
        return Model(self.a > plain(o))

    def __iadd__(self, o: Any) -> Model:
        self.a += plain(o)
        return self

    def __imul__(self, o: Any) -> Model:
        self.a *= plain(o)
        return self

    def add_(self, o: Any) -> Model:
        self.a += plain(o)
        return self

    def sub_(self, o: Any) -> Model:
        self.a -= plain(o)
        return self

    def mul_(self, o: Any) -> Model:
        self.a *= plain(o)
        return self

    def neg_(self) -> Model:
        self.a *= -1
        return self

    def square_(self) -> Model:
        self.a *= self.a
        return self

    def fill_(self, v: Any) -> Model:
        self.a[...] = v
        return self

    def zero_(self) -> Model:
        return self.fill_(0)

    def copy_(self, o: Any) -> Model:
        self.a[...] = plain(o)
        return self

    def masked_fill_(self, mask: Any, v: float) -> Model:
        self.a[np.broadcast_to(plain(mask), self.a.shape)] = v
        return self

    def clamp_(self, low: float, high: float) -> Model:
        self.a[...] = np.clip(self.a, low, high)
        return self

    def t(self) -> Model:
        return Model(self.a.T)

    def transpose(self, i: int, j: int) -> Model:
        return Model(np.swapaxes(self.a, i, j))

    def permute(self, *dims: int) -> Model:
        return Model(self.a.transpose(dims))

    def movedim(self, i: int, j: int) -> Model:
        return Model(np.moveaxis(self.a, i, j))

    def view(self, *shape: int) -> Model:
        out = self.a.view()
        out.shape = shape
        return Model(out)

    def reshape(self, *shape: int) -> Model:
        return Model(self.a.reshape(shape))

    def flatten(self) -> Model:
        return Model(self.a.reshape(-1))

    def unflatten(self, d: int, sizes: tuple[int, ...]) -> Model:
        return Model(self.a.reshape(*self.a.shape[:d], *sizes, *self.a.shape[d + 1 :]))

    def unsqueeze(self, d: int) -> Model:
        return Model(np.expand_dims(self.a, d))

    def squeeze(self, d: int) -> Model:
        return Model(np.squeeze(self.a, d))

    def select(self, d: int, k: int) -> Model:
        return Model(np.moveaxis(self.a, d, 0)[k])

    def narrow(self, d: int, start: int, n: int) -> Model:
        return Model(np.moveaxis(np.moveaxis(self.a, d, 0)[start : start + n], 0, d))

    def diagonal(self, offset: int = 0) -> Model:
        out = self.a.diagonal(offset)
        out.flags.writeable = True
        return Model(out)

    def expand(self, *shape: int) -> Model:
        return Model(np.broadcast_to(self.a, shape))

    def chunk(self, n: int, d: int = 0) -> list[Model]:
        return [Model(v) for v in np.array_split(self.a, n, d)]

    def split(self, n: int, d: int = 0) -> list[Model]:
        return [Model(v) for v in np.split(self.a, range(n, self.a.shape[d], n), d)]

    def unbind(self, d: int = 0) -> list[Model]:
        return [Model(v) for v in np.moveaxis(self.a, d, 0)]

    def clone(self) -> Model:
        return Model(self.a.copy())

    def contiguous(self) -> Model:
        return Model(np.ascontiguousarray(self.a))

    @property
    def T(self) -> Model:
        return Model(self.a.T)

    @property
    def mT(self) -> Model:
        return Model(np.swapaxes(self.a, -1, -2))


#: name -> program on ``x``, a (3, 4) value, and ``i``, an index tensor [2, 0]. All its variables are results.
CASES: dict[str, str] = {
    "row": "v = x[1]; v.mul_(2)",
    "row_seen_by_view": "v = x[1]; x.mul_(3)",
    "row_negative": "v = x[-1]; v.add_(1)",
    "element": "x[1, 2] = 7.0",
    "element_view": "v = x[1][2]; v.fill_(5.0)",
    "column": "v = x[:, 1]; v.zero_()",
    "column_iadd": "v = x[:, 2]; v += 10",
    "block": "v = x[1:, 1:3]; v.mul_(-1)",
    "block_step": "v = x[::2, 1::2]; v.fill_(1.5)",
    "block_of_block": "v = x[1:]; w = v[:, 2:]; w.mul_(4)",
    "block_of_block_base": "v = x[1:]; w = v[:, 2:]; v.add_(1)",
    "three_levels": "v = x[1:]; w = v[1]; u = w[1:3]; u.zero_()",
    "siblings": "v = x[0]; w = x[0]; v.mul_(2); w.add_(1)",
    "overlapping": "v = x[:2]; w = x[1:]; v.mul_(2); w.add_(1)",
    "overlapping_reversed": "v = x[:2]; w = x[1:]; w.add_(1); v.mul_(2)",
    "transposed": "v = x.t(); v[0].fill_(9.0)",
    "transposed_T": "v = x.T; v.mul_(2)",
    "transposed_mT": "v = x.mT; v[1, 2] = 3.0",
    "transposed_twice": "v = x.t().t(); v.add_(5)",
    "transposed_of_slice": "v = x[:, 1:3].t(); v[1] = 0.5",
    "slice_of_transposed": "v = x.t()[1:3]; v.mul_(3)",
    "transpose_dims": "v = x.transpose(0, 1); v[:, 0].zero_()",
    "permute": "v = x.permute(1, 0); v[2].add_(4)",
    "movedim": "v = x.movedim(0, 1); v[3].mul_(0.5)",
    "view_flat": "v = x.view(12); v[5] = 100.0",
    "view_shape": "v = x.view(2, 6); v[1].neg_()",
    "view_of_row": "v = x[2].view(2, 2); v[0].fill_(8.0)",
    "reshape_view": "v = x.reshape(4, 3); v[1].mul_(2)",
    "reshape_copy": "v = x.t().reshape(12); v.zero_()",
    "reshape_copy_base": "v = x.t().reshape(12); x.zero_()",
    "reshape_of_column": "v = x[:, 1].reshape(3, 1); v.fill_(2.0)",
    "reshape_of_block_copies": "v = x[:, :2].reshape(6); v.fill_(2.0)",
    "reshape_splits_block": "v = x[:, :2].reshape(3, 2, 1); v.fill_(2.0)",
    "flatten": "v = x.flatten(); v[0:6].mul_(3)",
    "unflatten": "v = x.unflatten(1, (2, 2)); v[:, 0, 1].fill_(6.0)",
    "unsqueeze": "v = x.unsqueeze(1); v[0, 0] = 4.0",
    "squeeze": "v = x[:, 1:2].squeeze(1); v.add_(7)",
    "none_index": "v = x[:, None, 2]; v.mul_(2)",
    "ellipsis": "v = x[..., 3]; v.fill_(0.25)",
    "whole": "v = x[:]; v.mul_(2)",
    "whole_ellipsis": "v = x[...]; v.add_(1); x.mul_(2)",
    "select": "v = x.select(1, 2); v.sub_(1)",
    "narrow": "v = x.narrow(0, 1, 2); v.neg_()",
    "diagonal": "v = x.diagonal(); v.fill_(11.0)",
    "diagonal_offset": "v = x.diagonal(1); v.mul_(2)",
    "diagonal_below": "v = x.diagonal(-1); v.add_(3)",
    "diagonal_of_transposed": "v = x.t().diagonal(1); v.zero_()",
    "expand_reads": "v = x[0].expand(2, 4); x.mul_(2)",
    "expand_reads_row": "v = x[0:1].expand(3, 4); x[0].fill_(3.0)",
    "clone_apart": "v = x.clone(); v.zero_(); x.mul_(2)",
    "clone_of_view": "v = x[1].clone(); x.zero_()",
    "contiguous_same": "v = x.contiguous(); v.mul_(2)",
    "contiguous_copy": "v = x.t().contiguous(); v.zero_()",
    "arithmetic_apart": "v = x * 1; v.zero_(); x.add_(1)",
    "set_row": "x[1] = x[0]",
    "set_row_from_view": "v = x[0]; x[1] = v; v.mul_(2)",
    "set_column_broadcast": "x[:, 1] = 2.0",
    "set_block_broadcast": "x[1:, :] = x[0]",
    "set_swap": "a = x[0].clone(); x[0] = x[1]; x[1] = a",
    "set_through_view": "v = x[1:]; v[0] = 3.0; v[:, 1] = 4.0",
    "set_iadd": "x[1] += 5",
    "set_imul_block": "x[:, ::2] *= 3",
    "set_chain": "x[0] = x[1]; x[1] = x[2]; x[2] = x[0]",
    "index_copy": "v = x[i]; v.zero_(); x.mul_(2)",
    "index_write": "x[i] = 1.0",
    "index_write_rows": "x[i] = x[1] * 2",
    "index_write_columns": "x[:, i] = -1.0",
    "index_write_view": "v = x[:, 1:]; v[i] = 6.0",
    "index_iadd": "x[i] += 1",
    "index_pair": "x[i, i] = 0.0",
    "mask_fill": "x[x > 1.0] = 0.0",
    "mask_fill_view": "v = x[:, :2]; v[v > 1.0] = -2.0",
    "mask_method": "v = x[1:]; v.masked_fill_(v > 1.0, 9.0)",
    "copy_into_view": "v = x[:, 1]; v.copy_(x[:, 0])",
    "copy_broadcast": "x.copy_(x[2])",
    "square_view": "v = x[1]; v.square_(); v.square_()",
    "clamp_view": "v = x[:, 1:]; v.clamp_(0.0, 2.0)",
    "write_then_use": "v = x[0]; v.mul_(2); w = x * x; v.add_(1)",
    "use_then_write": "w = x * x; v = x[0]; v.mul_(2)",
    "use_view_then_write_base": "v = x[0]; w = v * v; x.mul_(3)",
    "self_times_view": "x.mul_(x[0])",
    "add_transposed": "v = x[:, :3]; v.add_(v.t().clone())",
    "deep_mix": "v = x.t()[1:].unsqueeze(0); w = v[0, :, 1]; w.fill_(4.0); v.mul_(2)",
    "view_after_write": "x.mul_(2); v = x.view(12); v.add_(1); x.mul_(2)",
    "chunk": "a, b = x.chunk(2, 1); a.mul_(2); b.add_(1)",
    "split": "a, b = x.split(2, 0); a[0].zero_(); x.add_(1)",
    "unbind": "a, b, c = x.unbind(0); b.fill_(3.0); a.mul_(2)",
}
