"""The published update formulas in NumPy float64, one function of (parameter, gradient, state, step, options) each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

State = dict[str, Any]


def _coupled(p: Any, g: Any, o: State) -> Any:
    g = -g if o.get("maximize") else g
    return g + o.get("weight_decay", 0) * p


def sgd(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    g = _coupled(p, g, o)
    mu = o.get("momentum", 0)
    if mu:
        s["v"] = g if t == 1 else mu * s["v"] + (1 - o.get("dampening", 0)) * g
        g = g + mu * s["v"] if o.get("nesterov") else s["v"]
    return p - o["lr"] * g


def adam(p: Any, g: Any, s: State, t: int, o: State, decoupled: bool = False, decay: float = 0) -> Any:
    b1, b2 = o.get("betas", (0.9, 0.999))
    decay = o.get("weight_decay", decay)
    g = -g if o.get("maximize") else g
    if decoupled:
        p = p * (1 - o["lr"] * decay)
    else:
        g = g + decay * p
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    s["top"] = np.maximum(s.get("top", 0), s["v"])
    v = s["top"] if o.get("amsgrad") else s["v"]
    return p - o["lr"] * s["m"] / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + o.get("eps", 1e-8))


def adamw(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    return adam(p, g, s, t, o, True, 1e-2)


def adamax(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    b1, b2 = o.get("betas", (0.9, 0.999))
    g = _coupled(p, g, o)
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["u"] = np.maximum(b2 * s.get("u", 0), np.abs(g) + o.get("eps", 1e-8))
    return p - o["lr"] / (1 - b1**t) * s["m"] / s["u"]


def nadam(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    b1, b2 = o.get("betas", (0.9, 0.999))
    decay, psi = o.get("weight_decay", 0), o.get("momentum_decay", 4e-3)
    g = -g if o.get("maximize") else g
    if o.get("decoupled_weight_decay"):
        p = p * (1 - o["lr"] * decay)
    else:
        g = g + decay * p
    mu, ahead = (b1 * (1 - 0.5 * 0.96 ** (k * psi)) for k in (t, t + 1))
    s["product"] = s.get("product", 1.0) * mu
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    mean = ahead * s["m"] / (1 - s["product"] * ahead) + (1 - mu) * g / (1 - s["product"])
    return p - o["lr"] * mean / (np.sqrt(s["v"] / (1 - b2**t)) + o.get("eps", 1e-8))


def radam(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    b1, b2 = o.get("betas", (0.9, 0.999))
    decay = o.get("weight_decay", 0)
    g = -g if o.get("maximize") else g
    if o.get("decoupled_weight_decay"):
        p = p * (1 - o["lr"] * decay)
    else:
        g = g + decay * p
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    mean = s["m"] / (1 - b1**t)
    most = 2 / (1 - b2) - 1
    rho = most - 2 * t * b2**t / (1 - b2**t)
    if rho <= 5:
        return p - o["lr"] * mean
    r = math.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
    return p - o["lr"] * mean * r * math.sqrt(1 - b2**t) / (np.sqrt(s["v"]) + o.get("eps", 1e-8))


def adagrad(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    g = _coupled(p, g, o)
    s["sum"] = s.get("sum", o.get("initial_accumulator_value", 0)) + g * g
    return p - o["lr"] / (1 + (t - 1) * o.get("lr_decay", 0)) * g / (np.sqrt(s["sum"]) + o.get("eps", 1e-10))


def adadelta(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    rho, eps = o.get("rho", 0.9), o.get("eps", 1e-6)
    g = _coupled(p, g, o)
    s["g"] = rho * s.get("g", 0) + (1 - rho) * g * g
    step = np.sqrt(s.get("x", 0) + eps) / np.sqrt(s["g"] + eps) * g
    s["x"] = rho * s.get("x", 0) + (1 - rho) * step * step
    return p - o["lr"] * step


def rmsprop(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    alpha = o.get("alpha", 0.99)
    g = _coupled(p, g, o)
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g * g
    v = s["v"]
    if o.get("centered"):
        s["m"] = alpha * s.get("m", 0) + (1 - alpha) * g
        v = v - s["m"] ** 2
    s["b"] = o.get("momentum", 0) * s.get("b", 0) + g / (np.sqrt(v) + o.get("eps", 1e-8))
    return p - o["lr"] * s["b"]


def rprop(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    down, up = o.get("etas", (0.5, 1.2))
    least, most = o.get("step_sizes", (1e-6, 50))
    g = -g if o.get("maximize") else g
    turn = np.sign(g * s.get("g", 0))
    s["size"] = np.clip(s.get("size", o["lr"]) * np.where(turn > 0, up, np.where(turn < 0, down, 1)), least, most)
    s["g"] = np.where(turn < 0, 0, g)
    return p - np.sign(s["g"]) * s["size"]


def asgd(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    lambd, alpha, t0 = o.get("lambd", 1e-4), o.get("alpha", 0.75), o.get("t0", 1e6)
    g = _coupled(p, g, o)
    eta = s.get("eta", o["lr"])
    p = p * (1 - lambd * eta) - eta * g
    s["ax"] = s.get("ax", 0) + (p - s.get("ax", 0)) * s.get("mu", 1.0)
    s["eta"] = o["lr"] / (1 + lambd * o["lr"] * t) ** alpha
    s["mu"] = 1 / max(1, t - t0)
    return p


def adafactor(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    eps1, eps2 = o.get("eps", (None, 1e-3))
    eps1 = np.finfo(np.float32).eps if eps1 is None else eps1
    keep = t ** o.get("beta2_decay", -0.8)
    size = max(eps2, np.sqrt(np.mean(p * p))) * min(o["lr"], 1 / math.sqrt(t))
    p = p * (1 - o["lr"] * o.get("weight_decay", 0))
    g2 = g * g
    if p.ndim > 1:
        for name, axis in (("r", -1), ("c", -2)):
            s[name] = s.get(name, 0) + keep * (g2.mean(axis, keepdims=True) - s.get(name, 0))
        v = s["r"] * s["c"] / np.maximum(s["r"].mean(-2, keepdims=True), eps1)
    else:
        v = s["v"] = s.get("v", 0) + keep * (g2 - s.get("v", 0))
    step = g / np.sqrt(np.maximum(v, eps1 * eps1))
    return p - size * step / max(1.0, np.sqrt(np.mean(step * step)) / o.get("d", 1.0))


def muon(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    mu = o.get("momentum", 0.95)
    a, b, c = 3.4445, -4.7750, 2.0315
    s["v"] = mu * s.get("v", 0) + (1 - mu) * g
    x = (1 - mu) * g + mu * s["v"] if o.get("nesterov", True) else s["v"]
    rows, columns = p.shape
    x = x.T if rows > columns else x
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if rows > columns else x
    matched = o.get("adjust_lr_fn") == "match_rms_adamw"
    scale = 0.2 * math.sqrt(max(rows, columns)) if matched else math.sqrt(max(1, rows / columns))
    return p * (1 - o["lr"] * o.get("weight_decay", 0.1)) - o["lr"] * scale * x
