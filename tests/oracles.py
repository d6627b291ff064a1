"""Slow versions of the gates: plain loops over samples, channels and positions, in float64.

Written from the papers' formulas (with the official code's reading of eps and of the means) and independent of the
package. Each takes a map (N, C, *S) as a tensor and returns a float64 tensor of the same shape.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Row = list[float]


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


FACTORS: dict[str, Callable[[float], float]] = {
    "tanh": lambda z: 1 + math.tanh(z),
    "sigmoid": _sigmoid,
    "relu": lambda z: 1 + max(z, 0.0),
    "elu": lambda z: 1 + (z if z > 0 else math.exp(z) - 1),
}


def gct(
    x: Tensor,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    mode: str | float = "l2",
    eps: float = 1e-5,
    after_relu: bool = False,
    activation: str = "tanh",
) -> Tensor:
    """Gated channel transformation: y_c = x_c f(gamma_c s_c / norm(s) + beta_c)."""
    alphas, gammas, betas = (_numbers(p) for p in (alpha, gamma, beta))
    result = []
    for sample in _samples(x):
        embeddings = []
        for channel, a in zip(sample, alphas, strict=True):
            embeddings.append(a * _norm(channel, mode, eps, after_relu))
        divisor = _size_of_embeddings(embeddings, mode, eps)
        gated = []
        for channel, s, g, b in zip(sample, embeddings, gammas, betas, strict=True):
            factor = FACTORS[activation](g * s / divisor + b)
            gated.append([value * factor for value in channel])
        result.append(gated)
    return _tensor(result, x)


def _norm(channel: Row, mode: str | float, eps: float, after_relu: bool) -> float:
    sizes = channel if after_relu else [abs(value) for value in channel]
    if mode == "l1":
        return sum(sizes)
    if mode == "l2":
        return math.sqrt(sum(value * value for value in channel) + eps)
    p = float(mode)
    return (sum(size**p for size in sizes) + eps) ** (1 / p)


def _size_of_embeddings(embeddings: Row, mode: str | float, eps: float) -> float:
    if mode == "l1":
        return sum(abs(s) for s in embeddings) / len(embeddings) + eps
    return math.sqrt(sum(s * s for s in embeddings) / len(embeddings) + eps)


def gc(x: Tensor, state: Mapping[str, Tensor], *, pooling: str = "attention", fusion: str = "add") -> Tensor:
    """Global context block, its weights under mmcv's names: z_j = x_j sigmoid(M c) + A c (either part may miss)."""
    result = []
    for sample in _samples(x):
        context = _attended(sample, state) if pooling == "attention" else [sum(row) / len(row) for row in sample]
        factors, terms = [1.0] * len(sample), [0.0] * len(sample)
        if fusion in {"multiply", "both"}:
            factors = [_sigmoid(z) for z in _bottleneck(context, state, "channel_mul_conv")]
        if fusion in {"add", "both"}:
            terms = _bottleneck(context, state, "channel_add_conv")
        result.append([[v * f + t for v in row] for row, f, t in zip(sample, factors, terms, strict=True)])
    return _tensor(result, x)


def _attended(sample: list[Row], state: Mapping[str, Tensor]) -> Row:
    """Return sum_j softmax_j(w x_j) x_j over positions j, one number per channel."""
    weights, bias = _numbers(state["conv_mask.weight"]), _numbers(state["conv_mask.bias"])[0]
    logits = []
    for position in range(len(sample[0])):
        logits.append(bias + sum(w * row[position] for w, row in zip(weights, sample, strict=True)))
    largest = max(logits)
    exponentials = [math.exp(logit - largest) for logit in logits]
    total = sum(exponentials)
    return [sum(e / total * value for e, value in zip(exponentials, row, strict=True)) for row in sample]


def _bottleneck(context: Row, state: Mapping[str, Tensor], name: str, eps: float = 1e-5) -> Row:
    """Return W2 relu(LN(W1 context)); the layer norm by hand, with the biased variance."""
    hidden = _linear(context, state[f"{name}.0.weight"], state[f"{name}.0.bias"])
    mean = sum(hidden) / len(hidden)
    variance = sum((h - mean) ** 2 for h in hidden) / len(hidden)
    scales, shifts = _numbers(state[f"{name}.1.weight"]), _numbers(state[f"{name}.1.bias"])
    normed = [
        (h - mean) / math.sqrt(variance + eps) * scale + shift
        for h, scale, shift in zip(hidden, scales, shifts, strict=True)
    ]
    return _linear([max(h, 0.0) for h in normed], state[f"{name}.3.weight"], state[f"{name}.3.bias"])


def se(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Squeeze and excitation: x_c sigmoid(W2 relu(W1 mean(x) + b1) + b2)_c."""
    result = []
    for sample in _samples(x):
        means = [sum(row) / len(row) for row in sample]
        hidden = [max(h, 0.0) for h in _linear(means, state["fc1.weight"], state["fc1.bias"])]
        factors = [_sigmoid(z) for z in _linear(hidden, state["fc2.weight"], state["fc2.bias"])]
        result.append([[value * factor for value in row] for row, factor in zip(sample, factors, strict=True)])
    return _tensor(result, x)


def _linear(inputs: Row, weight: Tensor, bias: Tensor) -> Row:
    outputs = []
    for row, b in zip(weight.double().flatten(1).tolist(), _numbers(bias), strict=True):
        outputs.append(b + sum(w * value for w, value in zip(row, inputs, strict=True)))
    return outputs


def _samples(x: Tensor) -> list[list[Row]]:
    """Return x as [sample][channel][position]."""
    return x.double().flatten(2).tolist()


def _numbers(parameter: Tensor) -> Row:
    return parameter.double().flatten().tolist()


def _tensor(result: list[list[Row]], x: Tensor) -> Tensor:
    return torch.tensor(result, dtype=torch.float64).reshape(x.shape)
