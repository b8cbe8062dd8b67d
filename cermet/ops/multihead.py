"""Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762): projections, masks, heads, weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from cermet.ops.activation import softmax
from cermet.ops.attention import scaled_dot_product_attention
from cermet.ops.composing import crop, mean_of, shaped, spread_like, swap_last
from cermet.ops.contraction import contract, linear
from cermet.ops.dropout import dropout
from cermet.ops.elementwise import add, mul, where
from cermet.ops.joining import cat_op, pad_constant
from cermet.ops.movement import permute, reshape
from cermet.ops.public import public
from cermet.ops.support import full_value, to_dtype, zeros_like_value

__all__ = ["Projections", "attend"]


class Projections(NamedTuple):
    """Weights of the projections: one for all inputs (3 E, E), or one each (E, size of that input); biases (3 E) or None."""

    joint: Any
    separate: tuple[Any, Any, Any] | None
    bias: Any


def _part(x: Any, k: int, size: int) -> Any:
    """Rows k size .. (k + 1) size."""
    rest = tuple(x.shape[1:])
    return crop(x, (k * size, *[0] * len(rest)), (size, *rest))


def _last(x: Any, k: int, size: int) -> Any:
    lead = tuple(x.shape[:-1])
    return crop(x, (*[0] * len(lead), k * size), (*lead, size))


def _project(query: Any, key: Any, value: Any, p: Projections, e: int) -> tuple[Any, Any, Any]:
    """Query, key and value in the model's space; one product where they are the same tensor."""
    if p.joint is not None and query is key and key is value:
        y = linear(query, p.joint, p.bias)
        return _last(y, 0, e), _last(y, 1, e), _last(y, 2, e)
    weights = p.separate if p.separate is not None else tuple(_part(p.joint, k, e) for k in range(3))
    biases = (None, None, None) if p.bias is None else tuple(_part(p.bias, k, e) for k in range(3))
    q, k, v = [linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases)]
    return q, k, v


def _heads(x: Any, heads: int, batch_first: bool) -> Any:
    """(N, L, E) or (L, N, E) as (N, heads, L, E / heads)."""
    a, b, e = x.shape
    split = reshape(x, shape=(a, b, heads, e // heads))
    return permute(split, dims=(0, 2, 1, 3) if batch_first else (1, 2, 0, 3))


def _additive(mask: Any, like: Any) -> Any:
    """A mask as what is added to scores; a bool one is True where hidden."""
    if mask is None or mask.dtype.kind == "f":
        return mask if mask is None else to_dtype(mask, like.dtype)
    return where(mask, full_value(like, -math.inf, ()), zeros_like_value(like, ()))


def _longer(x: Any, dim: int, value: Any) -> Any:
    """One more element along a dim; None stays None."""
    if x is None:
        return None
    after = [0] * len(x.shape)
    after[dim] = 1
    return pad_constant(x, (0,) * len(x.shape), tuple(after), value)


def _one_more(x: Any, extra: Any) -> Any:
    """(N, heads, S, D) with one more place that all sequences share, (heads, D)."""
    n, heads, _, d = x.shape
    return cat_op(x, spread_like(shaped(extra, (1, heads, 1, d)), (n, heads, 1, d)), dim=2)


def _mask(q: Any, k: Any, attn_mask: Any, padding: Any) -> Any:
    """What is added to the scores (N, heads, L, S), or None.

    Raises:
        RuntimeError: for masks of other shapes.
    """
    n, heads, length, _ = q.shape
    size = k.shape[2]
    mask = _additive(attn_mask, q)
    if mask is not None:
        shape = tuple(mask.shape)
        if shape == (n * heads, length, size):
            mask = shaped(mask, (n, heads, length, size))
        elif shape != (length, size):
            raise RuntimeError(
                f"attention: attn_mask has shape {list(shape)}, expected {[length, size]} or {[n * heads, length, size]}"
            )
    if padding is None:
        return mask
    if tuple(padding.shape) != (n, size):
        raise RuntimeError(f"attention: key_padding_mask has shape {list(padding.shape)}, expected {[n, size]}")
    hidden = shaped(_additive(padding, q), (n, 1, 1, size))
    return hidden if mask is None else add(mask, hidden)


def attend(
    query: Any,
    key: Any,
    value: Any,
    heads: int,
    projections: Projections,
    out_weight: Any,
    out_bias: Any,
    *,
    bias_k: Any = None,
    bias_v: Any = None,
    add_zero: bool = False,
    static_k: Any = None,
    static_v: Any = None,
    drop: float = 0.0,
    padding: Any = None,
    attn_mask: Any = None,
    need_weights: bool = True,
    average: bool = True,
    causal: bool = False,
    batch_first: bool = False,
) -> tuple[Any, Any]:
    """Attention over batches, (N, L, E) with ``batch_first``, else (L, N, E); the values and the weights (or None)."""
    e = query.shape[-1]
    q, k, v = [_heads(x, heads, batch_first) for x in _project(query, key, value, projections, e)]
    n, d = q.shape[0], q.shape[3]
    if bias_k is not None:
        k, v = _one_more(k, bias_k), _one_more(v, bias_v)
        attn_mask, padding = _longer(attn_mask, -1, 0), _longer(padding, -1, 0)
    k = k if static_k is None else shaped(static_k, (n, heads, *static_k.shape[1:]))
    v = v if static_v is None else shaped(static_v, (n, heads, *static_v.shape[1:]))
    if add_zero:
        k, v = _longer(k, 2, 0), _longer(v, 2, 0)
        attn_mask, padding = _longer(attn_mask, -1, 0), _longer(padding, -1, 0)
    extended = bias_k is not None or add_zero
    if causal and padding is None and not need_weights and not extended:
        out, weights = scaled_dot_product_attention(q, k, v, None, drop, True), None
    else:
        mask = _mask(q, k, attn_mask, padding)
        if need_weights:
            scores = mul(contract(q, swap_last(k)), 1.0 / math.sqrt(d))
            weights = softmax(scores if mask is None else add(scores, mask), -1)
            weights = dropout(weights, drop) if drop else weights
            out = contract(weights, v)
        else:
            out, weights = scaled_dot_product_attention(q, k, v, mask, drop), None
    out = permute(out, dims=(0, 2, 1, 3) if batch_first else (2, 0, 1, 3))
    out = linear(reshape(out, shape=(*out.shape[:2], e)), out_weight, out_bias)
    if weights is not None and average:
        weights = mean_of(weights, 1)
    return out, weights


@public(namespaces=("nn.functional",), method=False)
def multi_head_attention_forward(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Multi-head attention with all its weights as arguments; see `cermet.nn.MultiheadAttention`.

    Args:
        query: (L, N, E) or (L, E). key, value: (S, N, E) or (S, E). key_padding_mask: (N, S), True where hidden.
        attn_mask: (L, S) or (N * num_heads, L, S); True where hidden, or floating and added.

    Returns:
        The values (L, N, E), and the weights (N, L, S) ((N, heads, L, S) without ``average_attn_weights``) or None.

    Raises:
        RuntimeError: where shapes do not fit, or ``is_causal`` comes without a mask.
    """
    name = "multi_head_attention_forward"
    if embed_dim_to_check != query.shape[-1]:
        raise RuntimeError(f"{name}: the query has {query.shape[-1]} features, embed_dim_to_check is {embed_dim_to_check}")
    if embed_dim_to_check % num_heads:
        raise RuntimeError(f"{name}: {embed_dim_to_check} features do not divide into {num_heads} heads")
    if is_causal and attn_mask is None:
        raise RuntimeError(f"{name}: is_causal says what attn_mask is; give the mask too")
    single = len(query.shape) == 2
    if single:
        same = query is key and key is value
        query, key, value = [shaped(query, (query.shape[0], 1, query.shape[1]))] * 3 if same else [
            shaped(x, (x.shape[0], 1, x.shape[1])) for x in (query, key, value)
        ]  # fmt: skip
        key_padding_mask = None if key_padding_mask is None else shaped(key_padding_mask, (1, *key_padding_mask.shape))
    separate = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
    out, weights = attend(
        query,
        key,
        value,
        num_heads,
        Projections(None if separate else in_proj_weight, separate, in_proj_bias),
        out_proj_weight,
        out_proj_bias,
        bias_k=bias_k,
        bias_v=bias_v,
        add_zero=add_zero_attn,
        static_k=static_k,
        static_v=static_v,
        drop=dropout_p if training else 0.0,
        padding=key_padding_mask,
        attn_mask=attn_mask,
        need_weights=need_weights,
        average=average_attn_weights,
        causal=is_causal,
    )
    if not single:
        return out, weights
    return shaped(out, (out.shape[0], out.shape[2])), None if weights is None else shaped(weights, tuple(weights.shape[1:]))
