"""Updates of optimisers, one node per parameter. Everything that changes from step to step (learning rate, bias corrections,
decay) is a
run-time scalar, so that no schedule ever compiles anything.

Scalars are float32 or float64 values of no dimension; parameters of 16-bit floats are updated in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.composing import narrow, wide
from cermet.ops.define import Arg, OpDef, Sample
from cermet.ops.elementwise import add, div, gt, mul, sub, where
from cermet.ops.mathematics import sqrt
from cermet.ops.support import check_floating, to_dtype


def update_op(
    name: str,
    arrays: int,
    scalars: int,
    results: int,
    rule: Callable[..., Any],
    reference: Callable[..., Any],
    doc: str,
    attrs: tuple[str, ...] = (),
    values: tuple[dict[str, Any], ...] = ({},),
    positive: tuple[int, ...] = (),
) -> OpDef:
    """A composite whose first ``arrays`` inputs share one shape and whose rest are scalars; result 0 has the dtype of the
    parameter
    (input 0), result k > 0 that of input k + 1 (its state).

    Args:
        rule: ``rule(*wide values, **attrs)``. reference: the same in NumPy. positive: inputs whose samples must be positive.
    """

    def infer(*metas: Meta, **_: Any) -> Any:
        check_floating(metas[0], name)
        for m in metas[1:arrays]:
            if m.shape != metas[0].shape:
                raise ValueError(
                    f"{name}: a parameter of shape {list(metas[0].shape)} with a gradient or state of shape {list(m.shape)}"
                )
        out = (metas[0], *metas[2 : results + 1])
        return out if results > 1 else out[0]

    def decompose(*xs: Any, **named: Any) -> Any:
        kept = (xs[0], *xs[2 : results + 1])
        inside = wide(xs[0]).dtype
        out = rule(*[to_dtype(x, inside) for x in xs], **named)
        out = out if isinstance(out, tuple) else (out,)
        found = tuple([narrow(o, like) for o, like in zip(out, kept, strict=True)])
        return found if results > 1 else found[0]

    def arg(k: int) -> Arg:
        shape = (3, 4) if k < arrays else ()
        return Arg(shape, (0.1, 0.9) if k in positive or k >= arrays else (-2.0, 2.0))

    samples = tuple(Sample(tuple(arg(k) for k in range(arrays + scalars)), v, gradient=False) for v in values)
    return OpDef(
        name,
        "composite",
        infer,
        attrs=attrs,
        decompose=decompose,
        reference=reference,
        dtypes=dt.FLOATING,
        samples=samples,
        ulp=64,
        doc=doc,
    )


def _moved(old: Any, new: Any, beta: Any) -> Any:
    """Old * beta + new * (1 - beta), as old + (new - old) (1 - beta)."""
    return add(old, mul(sub(new, old), sub(1.0, beta)))


# ------------------------------------------------------------------------------------------------------------------ sgd


def _sgd(p: Any, g: Any, *rest: Any, momentum: bool, nesterov: bool, maximize: bool, first: bool) -> Any:
    """Sutskever et al. 2013 as PyTorch does it: v = mu v + (1 - dampening) g, p = p - lr v (or g + mu v)."""
    *state, lr, decay, mu, keep = rest
    g = mul(g, -1.0) if maximize else g
    g = add(g, mul(p, decay))
    if not momentum:
        return sub(p, mul(g, lr))
    v = g if first else add(mul(state[0], mu), mul(g, keep))
    step = add(g, mul(v, mu)) if nesterov else v
    return sub(p, mul(step, lr)), v


def _np_sgd(p: Any, g: Any, *rest: Any, momentum: bool, nesterov: bool, maximize: bool, first: bool) -> Any:
    *state, lr, decay, mu, keep = rest
    g = (-g if maximize else g) + p * decay
    if not momentum:
        return p - lr * g
    v = g if first else state[0] * mu + g * keep
    return p - lr * (g + mu * v if nesterov else v), v


_SGD_ATTRS = ("momentum", "nesterov", "maximize", "first")
_plain = {"momentum": False, "nesterov": False, "maximize": False, "first": False}
_heavy = {**_plain, "momentum": True}

sgd_step = update_op(
    "sgd_step",
    2,
    4,
    1,
    _sgd,
    _np_sgd,
    "One step of gradient descent. Inputs: parameter, gradient, lr, weight decay, 0, 0.",
    _SGD_ATTRS,
    (_plain, {**_plain, "maximize": True}),
)
sgd_momentum_step = update_op(
    "sgd_momentum_step",
    3,
    4,
    2,
    _sgd,
    _np_sgd,
    "One step of gradient descent with momentum. Inputs: parameter, gradient, velocity, lr, weight decay, "
    "momentum, 1 - dampening.",
    _SGD_ATTRS,
    (_heavy, {**_heavy, "nesterov": True}, {**_heavy, "first": True}),
)


# ----------------------------------------------------------------------------------------------------------------- adam


def _adam(p: Any, g: Any, m: Any, v: Any, *rest: Any, amsgrad: bool, maximize: bool, decoupled: bool) -> Any:
    """Kingma, Ba 2014 (arXiv:1412.6980); decoupled decay of Loshchilov, Hutter 2017 (arXiv:1711.05101).

    Scalars: size = lr / (1 - beta1^t), root = sqrt(1 - beta2^t), beta1, beta2, eps, decay (times lr where decoupled).
    """
    *most, size, root, beta1, beta2, eps, decay = rest
    g = mul(g, -1.0) if maximize else g
    if decoupled:
        p = sub(p, mul(p, decay))
    else:
        g = add(g, mul(p, decay))
    m = _moved(m, g, beta1)
    v = add(mul(v, beta2), mul(mul(g, g), sub(1.0, beta2)))
    top = v
    if amsgrad:
        top = where(gt(v, most[0]), v, most[0])
    step = div(mul(m, size), add(div(sqrt(top), root), eps))
    out = (sub(p, step), m, v)
    return (*out, top) if amsgrad else out


def _np_adam(p: Any, g: Any, m: Any, v: Any, *rest: Any, amsgrad: bool, maximize: bool, decoupled: bool) -> Any:
    *most, size, root, beta1, beta2, eps, decay = rest
    g = -g if maximize else g
    p, g = (p - p * decay, g) if decoupled else (p, g + p * decay)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    top = np.maximum(v, most[0]) if amsgrad else v
    out = (p - size * m / (np.sqrt(top) / root + eps), m, v)
    return (*out, top) if amsgrad else out


_ADAM_ATTRS = ("amsgrad", "maximize", "decoupled")
_adam_values = (
    {"amsgrad": False, "maximize": False, "decoupled": False},
    {"amsgrad": False, "maximize": True, "decoupled": True},
)

adam_step = update_op(
    "adam_step",
    4,
    6,
    3,
    _adam,
    _np_adam,
    "One step of Adam or AdamW. Inputs: parameter, gradient, first and second moment; lr / (1 - beta1^t), "
    "sqrt(1 - beta2^t), beta1, beta2, "
    "eps, decay (times lr where decoupled). Results: parameter and moments.",
    _ADAM_ATTRS,
    _adam_values,
    positive=(3,),
)
amsgrad_step = update_op(
    "amsgrad_step",
    5,
    6,
    4,
    _adam,
    _np_adam,
    "`adam_step` with the largest second moment so far as a fifth input and fourth result.",
    _ADAM_ATTRS,
    tuple({**v, "amsgrad": True} for v in _adam_values),
    positive=(3, 4),
)


# ----------------------------------------------------------------------------------------------------------- one moment


def _rmsprop(p: Any, g: Any, v: Any, *rest: Any, centered: bool, momentum: bool, maximize: bool) -> Any:
    """Tieleman, Hinton 2012; centred as in Graves 2013 (arXiv:1308.0850). Scalars: lr, alpha, eps, decay, momentum."""
    *state, lr, alpha, eps, decay, mu = rest
    g = mul(g, -1.0) if maximize else g
    g = add(g, mul(p, decay))
    v = add(mul(v, alpha), mul(mul(g, g), sub(1.0, alpha)))
    out = [v]
    spread = v
    if centered:
        mean = _moved(state.pop(0), g, alpha)
        out.append(mean)
        spread = sub(v, mul(mean, mean))
    step = div(g, add(sqrt(spread), eps))
    if momentum:
        step = add(mul(state.pop(0), mu), step)
        out.append(step)
    return (sub(p, mul(step, lr)), *out)


def _np_rmsprop(p: Any, g: Any, v: Any, *rest: Any, centered: bool, momentum: bool, maximize: bool) -> Any:
    *state, lr, alpha, eps, decay, mu = rest
    g = (-g if maximize else g) + p * decay
    v = alpha * v + (1 - alpha) * g * g
    out, spread = [v], v
    if centered:
        mean = alpha * state.pop(0) + (1 - alpha) * g
        out.append(mean)
        spread = v - mean**2
    step = g / (np.sqrt(spread) + eps)
    if momentum:
        step = mu * state.pop(0) + step
        out.append(step)
    return (p - lr * step, *out)


_RMS_ATTRS = ("centered", "momentum", "maximize")


def _rms(name: str, centered: bool, momentum: bool) -> OpDef:
    extra = int(centered) + int(momentum)
    return update_op(
        name,
        3 + extra,
        5,
        2 + extra,
        _rmsprop,
        _np_rmsprop,
        "One step of RMSprop. Inputs: parameter, gradient, mean square, mean and velocity where used, lr, alpha, "
        "eps, decay, momentum.",
        _RMS_ATTRS,
        ({"centered": centered, "momentum": momentum, "maximize": False},),
        positive=(2,) if not centered else (),
    )


rmsprop_steps = {(False, False): _rms("rmsprop_step", False, False), (False, True): _rms("rmsprop_momentum_step", False, True)}


def _adagrad(p: Any, g: Any, s: Any, lr: Any, eps: Any, decay: Any, *, maximize: bool) -> Any:
    """Duchi et al. 2011: s += g^2, p -= lr g / (sqrt(s) + eps)."""
    g = add(mul(g, -1.0) if maximize else g, mul(p, decay))
    s = add(s, mul(g, g))
    return sub(p, div(mul(g, lr), add(sqrt(s), eps))), s


def _np_adagrad(p: Any, g: Any, s: Any, lr: Any, eps: Any, decay: Any, *, maximize: bool) -> Any:
    g = (-g if maximize else g) + p * decay
    s = s + g * g
    return p - lr * g / (np.sqrt(s) + eps), s


adagrad_step = update_op(
    "adagrad_step",
    3,
    3,
    2,
    _adagrad,
    _np_adagrad,
    "One step of Adagrad. Inputs: parameter, gradient, sum of squares, lr, eps, decay.",
    ("maximize",),
    ({"maximize": False},),
    positive=(2,),
)
