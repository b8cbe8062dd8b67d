"""Multi-head attention as a layer (Vaswani et al. 2017, arXiv:1706.03762)."""

from __future__ import annotations

from typing import Any

from cermet.nn import init
from cermet.nn.linear import Linear
from cermet.nn.module import Module
from cermet.nn.parameter import Parameter, empty
from cermet.ops.multihead import Projections, attend

__all__ = ["MultiheadAttention"]


class MultiheadAttention(Module):
    """Attention in several subspaces: (L, N, E), or (N, L, E) with ``batch_first``, or (L, E) without a batch.

    Args:
        embed_dim: E. num_heads: how many subspaces. dropout: probability of zeroing a weight, in training.
        add_bias_kv: one trained place more in key and value. add_zero_attn: one place of zeros more.
        kdim, vdim: features of key and value, E by default.

    Raises:
        ValueError: where ``embed_dim`` is not divisible by ``num_heads``.
    """

    in_proj_weight: Parameter | None
    in_proj_bias: Parameter | None
    q_proj_weight: Parameter | None
    k_proj_weight: Parameter | None
    v_proj_weight: Parameter | None
    bias_k: Parameter | None
    bias_v: Parameter | None

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
            raise ValueError(f"MultiheadAttention: embed_dim={embed_dim} does not divide into {num_heads} heads")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        self.head_dim, self.add_zero_attn = embed_dim // num_heads, add_zero_attn
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        joint = self._qkv_same_embed_dim
        self.register_parameter("in_proj_weight", Parameter(empty(3 * embed_dim, embed_dim, dtype=dtype)) if joint else None)
        for name, size in (("q", embed_dim), ("k", self.kdim), ("v", self.vdim)):
            self.register_parameter(f"{name}_proj_weight", None if joint else Parameter(empty(embed_dim, size, dtype=dtype)))
        self.register_parameter("in_proj_bias", Parameter(empty(3 * embed_dim, dtype=dtype)) if bias else None)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        for name in ("bias_k", "bias_v"):
            self.register_parameter(name, Parameter(empty(1, 1, embed_dim, dtype=dtype)) if add_bias_kv else None)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                init.xavier_normal_(extra)

    def _weights(self) -> Projections:
        joint = self.in_proj_weight
        separate = None if joint is not None else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        return Projections(joint, separate, self.in_proj_bias)

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
            is_causal: a hint that ``attn_mask`` is causal; the mask must be given with it.

        Raises:
            RuntimeError: where shapes do not fit.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("MultiheadAttention: is_causal says what attn_mask is; give the mask too")
        if query.shape[-1] != self.embed_dim:
            raise RuntimeError(f"MultiheadAttention: the query has {query.shape[-1]} features, embed_dim is {self.embed_dim}")
        single = query.ndim == 2
        if single:
            place = 0 if self.batch_first else 1
            same = query is key and key is value
            query, key, value = [query.unsqueeze(place)] * 3 if same else [x.unsqueeze(place) for x in (query, key, value)]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        out, weights = attend(
            query,
            key,
            value,
            self.num_heads,
            self._weights(),
            self.out_proj.weight,
            self.out_proj.bias,
            bias_k=self.bias_k,
            bias_v=self.bias_v,
            add_zero=self.add_zero_attn,
            drop=self.dropout if self.training else 0.0,
            padding=key_padding_mask,
            attn_mask=attn_mask,
            need_weights=need_weights,
            average=average_attn_weights,
            causal=is_causal,
            batch_first=self.batch_first,
        )
        if not single:
            return out, weights
        return out.squeeze(0 if self.batch_first else 1), None if weights is None else weights.squeeze(0)
