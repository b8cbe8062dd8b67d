"""Multi-head attention and the transformer's encoder layers (Vaswani et al. 2017, arXiv:1706.03762)."""

from __future__ import annotations

import copy
from typing import Any

from cermet.nn import functional, init
from cermet.nn.container import ModuleList
from cermet.nn.linear import Linear
from cermet.nn.module import Module
from cermet.nn.normalization import LayerNorm
from cermet.nn.parameter import Parameter, empty
from cermet.nn.simple import Dropout
from cermet.ops.public import PUBLIC

F: Any = functional

__all__ = ["MultiheadAttention", "TransformerEncoder", "TransformerEncoderLayer"]


def _additive(mask: Any, like: Any) -> Any:
    """A mask as what is added to scores; in PyTorch's layers True means hidden."""
    if mask is None or mask.dtype.kind == "f":
        return mask
    zero = PUBLIC[("", "zeros_like")].fn(mask, dtype=like.dtype)
    return zero.masked_fill(mask, float("-inf"))


class MultiheadAttention(Module):
    """Attention in several subspaces: (L, N, E), or (N, L, E) with ``batch_first``, or (L, E) without a batch.

    Raises:
        ValueError: where ``embed_dim`` is not divisible by ``num_heads``.
    """

    in_proj_weight: Parameter | None
    in_proj_bias: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0 or embed_dim % num_heads:
            raise ValueError(f"MultiheadAttention: embed_dim={embed_dim} cannot be shared equally by num_heads={num_heads}")
        if add_bias_kv or add_zero_attn:
            raise NotImplementedError("MultiheadAttention: add_bias_kv and add_zero_attn are not supported yet")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        self.head_dim = embed_dim // num_heads
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        joint = self._qkv_same_embed_dim
        self.register_parameter("in_proj_weight", Parameter(empty(3 * embed_dim, embed_dim, dtype=dtype)) if joint else None)
        for name, size in (("q", embed_dim), ("k", self.kdim), ("v", self.vdim)):
            self.register_parameter(f"{name}_proj_weight", None if joint else Parameter(empty(embed_dim, size, dtype=dtype)))
        self.register_parameter("in_proj_bias", Parameter(empty(3 * embed_dim, dtype=dtype)) if bias else None)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            weight = getattr(self, name)
            if weight is not None:
                init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)

    def _projections(self, query: Any, key: Any, value: Any) -> tuple[Any, ...]:
        e = self.embed_dim
        if self.in_proj_weight is not None and query is key and key is value:
            return tuple(F.linear(query, self.in_proj_weight, self.in_proj_bias).split(e, -1))
        weights = self.in_proj_weight.split(e, 0) if self.in_proj_weight is not None else self._separate()
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(e, 0)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def _separate(self) -> tuple[Any, ...]:
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def _heads(self, x: Any) -> Any:
        """(N, L, E) as (N, heads, L, E / heads)."""
        n, length, _ = x.shape
        return x.reshape(n, length, self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, q: Any, key_padding_mask: Any, attn_mask: Any) -> Any:
        mask = _additive(attn_mask, q)
        if mask is not None and mask.ndim == 3:
            mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
        padding = _additive(key_padding_mask, q)
        if padding is None:
            return mask
        padding = padding.reshape(padding.shape[0], 1, 1, padding.shape[1])
        return padding if mask is None else mask + padding

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        """The attended values and, with ``need_weights``, the weights (averaged over heads).

        Args:
            key_padding_mask: (N, S), True where a key is hidden. attn_mask: (L, S) or (N heads, L, S), True where hidden, or
            added.
            is_causal: says that ``attn_mask`` is causal, and needs it.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("MultiheadAttention: is_causal=True only says that attn_mask is causal; give the mask with it")
        single = query.ndim == 2
        same = query is key and key is value
        if single:
            query, key, value = [x.unsqueeze(0) for x in (query, key, value)] if not same else [query.unsqueeze(0)] * 3
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = [x.transpose(0, 1) for x in (query, key, value)] if not same else [query.transpose(0, 1)] * 3
        q, k, v = [self._heads(x) for x in self._projections(query, key, value)]
        mask = self._mask(q, key_padding_mask, attn_mask)
        drop = self.dropout if self.training else 0.0
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = F.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, drop) if drop else weights
            out = weights @ v
        else:
            weights = None
            out = F.scaled_dot_product_attention(q, k, v, mask, drop)
        n, _, length, _ = out.shape
        out = self.out_proj(out.transpose(1, 2).reshape(n, length, self.embed_dim))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), weights


class TransformerEncoderLayer(Module):
    """Self-attention and a feed-forward network, each with a residual and a layer norm (before them with ``norm_first``)."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Any = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(activation, str) and activation not in ("relu", "gelu"):
            raise RuntimeError(f"activation={activation!r}; give 'relu', 'gelu' or a function")
        made = {"device": device, "dtype": dtype}
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, **made)
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias, **made)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, **made)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, **made)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, **made)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        self.activation = getattr(F, activation) if isinstance(activation, str) else activation

    def forward(self, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False) -> Any:
        """``src`` after the layer; masks as in `MultiheadAttention`."""

        def attend(x: Any) -> Any:
            return self.dropout1(self.self_attn(x, x, x, src_key_padding_mask, False, src_mask)[0])

        def feed(x: Any) -> Any:
            return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

        if self.norm_first:
            x = src + attend(self.norm1(src))
            return x + feed(self.norm2(x))
        x = self.norm1(src + attend(src))
        return self.norm2(x + feed(x))


class TransformerEncoder(Module):
    """A stack of copies of an encoder layer."""

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__()
        self.layers = ModuleList([copy.deepcopy(encoder_layer) for _ in range(num_layers)])
        self.num_layers, self.norm = num_layers, norm

    def forward(self, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool | None = None) -> Any:
        """``src`` after all layers."""
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask)
        return src if self.norm is None else self.norm(src)
