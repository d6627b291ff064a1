"""Slow versions of the gates: plain loops over samples, channels and positions, in float64.

Written from the papers' formulas (with the official code's reading of eps and of the means) and independent of the
package. Each takes a map (N, C, *S) as a tensor and returns a float64 tensor of the same shape.
"""

import itertools
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


def snl(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Simplified non-local block: z_i = x_i + W_v sum_j softmax_j(w x_j + b) x_j."""
    result = []
    for sample in _samples(x):
        added = _linear(_attended(sample, state), state["conv_value.weight"], state["conv_value.bias"])
        result.append([[value + term for value in row] for row, term in zip(sample, added, strict=True)])
    return _tensor(result, x)


def nl(x: Tensor, state: Mapping[str, Tensor], *, pairwise: str = "embedded_gaussian") -> Tensor:
    """Non-local block, its weights under mmcv's names: z_i = x_i + W_z sum_j f(x_i, x_j) g(x_j), pair by pair."""
    result = []
    for sample in _samples(x):
        positions = [list(column) for column in zip(*sample, strict=True)]  # [position][channel]

        def embedded(name: str, positions: list[Row] = positions) -> list[Row]:
            return [_linear(p, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"]) for p in positions]

        values = embedded("g")
        queries = positions if pairwise == "gaussian" else embedded("theta")
        keys = positions if pairwise == "gaussian" else embedded("phi")
        columns = []
        for position, query in zip(positions, queries, strict=True):
            weights = _pair_weights(query, keys, state, pairwise)
            mixed = [0.0] * len(values[0])
            for weight, value in zip(weights, values, strict=True):
                mixed = [m + weight * v for m, v in zip(mixed, value, strict=True)]
            added = _linear(mixed, state["conv_out.conv.weight"], state["conv_out.conv.bias"])
            columns.append([p + a for p, a in zip(position, added, strict=True)])
        result.append([list(row) for row in zip(*columns, strict=True)])
    return _tensor(result, x)


def _pair_weights(query: Row, keys: list[Row], state: Mapping[str, Tensor], pairwise: str) -> Row:
    """Return f(query, key) for every key: the weights of all positions for one."""
    if pairwise == "concatenation":
        project = _numbers(state["concat_project.conv.weight"])
        raw = [sum(w * v for w, v in zip(project, query + key, strict=True)) for key in keys]
        return [max(value, 0.0) / len(keys) for value in raw]
    products = [sum(q * k for q, k in zip(query, key, strict=True)) for key in keys]
    if pairwise == "dot_product":
        return [product / len(keys) for product in products]
    root = math.sqrt(len(query)) if pairwise == "embedded_gaussian" else 1.0
    largest = max(products)
    exponentials = [math.exp((product - largest) / root) for product in products]
    return [e / sum(exponentials) for e in exponentials]


def eca(x: Tensor, kernel: Tensor) -> Tensor:
    """Efficient channel attention: x_c sigmoid(sum_i w_i m_(c + i)), m the means, zero beyond the ends."""
    weights = _numbers(kernel)
    reach = len(weights) // 2
    result = []
    for sample in _samples(x):
        means = [sum(row) / len(row) for row in sample]
        gated = []
        for c, row in enumerate(sample):
            logit = 0.0
            for i, weight in enumerate(weights):
                neighbour = c + i - reach
                if 0 <= neighbour < len(means):
                    logit += weight * means[neighbour]
            gated.append([value * _sigmoid(logit) for value in row])
        result.append(gated)
    return _tensor(result, x)


def lrn(x: Tensor, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Tensor:
    """Local response normalisation: x_c / (k + alpha sum x_i^2)^beta, max(0, c - n/2) <= i <= min(C - 1, c + n/2)."""
    reach = size // 2
    result = []
    for sample in _samples(x):
        normed = []
        for c, row in enumerate(sample):
            window = range(max(0, c - reach), min(len(sample) - 1, c + reach) + 1)
            normed.append([v / (k + alpha * sum(sample[i][p] ** 2 for i in window)) ** beta for p, v in enumerate(row)])
        result.append(normed)
    return _tensor(result, x)


def triplet(x: Tensor, state: Mapping[str, Tensor], *, no_spatial: bool = False) -> Tensor:
    """Triplet attention in eval mode, its weights under the official names, for maps (N, C, H, W)."""
    result = x.double().clone()
    _, channels, height, width = x.shape
    for n, sample in enumerate(x.double().tolist()):
        rows = {  # each pooled plane as [first axis][second axis] -> the values along the third
            "cw": [[[sample[c][h][w] for h in range(height)] for w in range(width)] for c in range(channels)],
            "hc": [[[sample[c][h][w] for w in range(width)] for c in range(channels)] for h in range(height)],
            "hw": [[[sample[c][h][w] for c in range(channels)] for w in range(width)] for h in range(height)],
        }
        planes = {name: _plane_factors(rows[name], state, name) for name in rows if f"{name}.conv.conv.weight" in state}
        for c in range(channels):
            for h in range(height):
                for w in range(width):
                    factors = [planes["cw"][c][w], planes["hc"][h][c]]
                    if not no_spatial:
                        factors.append(planes["hw"][h][w])
                    result[n, c, h, w] *= sum(factors) / len(factors)
    return result


def _plane_factors(rows: list[list[Row]], state: Mapping[str, Tensor], name: str, eps: float = 1e-5) -> list[Row]:
    """Return sigmoid(BN(conv([max, mean]))) for every place of one plane, zeros beyond its edges."""
    kernel = state[f"{name}.conv.conv.weight"].double()[0].tolist()  # [max, mean][row][column]
    scale, shift, mean, variance = (
        _numbers(state[f"{name}.conv.bn.{key}"])[0] for key in ("weight", "bias", "running_mean", "running_var")
    )
    pooled = [[[max(v) for v in row] for row in rows], [[sum(v) / len(v) for v in row] for row in rows]]
    reach = len(kernel[0]) // 2
    factors = []
    for a in range(len(rows)):
        line = []
        for b in range(len(rows[0])):
            logit = 0.0
            for plane, weights in zip(pooled, kernel, strict=True):
                for i, weight_row in enumerate(weights):
                    for j, weight in enumerate(weight_row):
                        row, column = a + i - reach, b + j - reach
                        if 0 <= row < len(rows) and 0 <= column < len(rows[0]):
                            logit += weight * plane[row][column]
            line.append(_sigmoid((logit - mean) / math.sqrt(variance + eps) * scale + shift))
        factors.append(line)
    return factors


# ---- gather-excite, whose maps are dictionaries from positions (tuples) to values -----------------------------------

Grid = dict[tuple[int, ...], float]


def ge(x: Tensor, state: Mapping[str, Tensor], *, extent: int = 0, learned: bool = False, mlp: bool = False) -> Tensor:
    """Gather-excite in eval mode: every channel gathered by itself, then sigmoid of the nearest gathered value."""
    sides = tuple(x.shape[2:])
    result = x.double().clone()
    for n in range(x.shape[0]):
        grids = []
        for c in range(x.shape[1]):
            grid = {p: float(x[(n, c, *p)]) for p in _positions(sides)}
            grids.append(_learned_gather(grid, sides, state, c, extent) if learned else _means(grid, sides, extent))
        if mlp:
            grids = _mixed(grids, state)
        gathered = tuple(1 + max(p[axis] for p in grids[0]) for axis in range(len(sides)))
        for c, grid in enumerate(grids):
            for p in _positions(sides):
                nearest = tuple(i * few // many for i, few, many in zip(p, gathered, sides, strict=True))
                result[(n, c, *p)] *= _sigmoid(grid[nearest])
    return result


def _positions(sides: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, sides)))


def _means(grid: Grid, sides: tuple[int, ...], extent: int) -> Grid:
    """Return the mean of all, or around every extent-th position the mean of what lies less than extent away."""
    if extent == 0:
        return {(0,) * len(sides): sum(grid.values()) / len(grid)}
    means = {}
    for centre in _positions(sides):
        if all(i % extent == 0 for i in centre):
            near = [v for p, v in grid.items() if all(abs(i - j) < extent for i, j in zip(p, centre, strict=True))]
            means[tuple(i // extent for i in centre)] = sum(near) / len(near)
    return means


def _learned_gather(grid: Grid, sides: tuple[int, ...], state: Mapping[str, Tensor], channel: int, extent: int) -> Grid:
    """Return one channel after its depthwise convolutions and batch norms: of stride 2, or one of the whole map."""
    steps = round(math.log2(extent)) if extent else 1
    for step in range(1, steps + 1):
        kernel = state[f"gather.conv{step}.weight"][channel, 0].double()
        centres = [(0,) * len(sides)] if extent == 0 else [p for p in _positions(sides) if all(i % 2 == 0 for i in p)]
        reach = 1 if extent else 0
        made = {}
        for centre in centres:
            total = 0.0
            for offset in _positions(tuple(kernel.shape)):
                place = tuple(i + j - reach for i, j in zip(centre, offset, strict=True))
                total += float(kernel[offset]) * grid.get(place, 0.0)
            value = _batch_normed(total, state, f"gather.norm{step}", channel)
            made[tuple(i // 2 for i in centre)] = max(value, 0.0) if step < steps else value
        grid, sides = made, tuple((side + 1) // 2 for side in sides)
    return grid


def _batch_normed(value: float, state: Mapping[str, Tensor], name: str, channel: int, eps: float = 1e-5) -> float:
    scale, shift, mean, variance = (
        _numbers(state[f"{name}.{key}"])[channel] for key in ("weight", "bias", "running_mean", "running_var")
    )
    return (value - mean) / math.sqrt(variance + eps) * scale + shift


def _mixed(grids: list[Grid], state: Mapping[str, Tensor]) -> list[Grid]:
    """Return W2 relu(W1 v + b1) + b2 at every gathered position, v the channels' values there."""
    mixed: list[Grid] = [{} for _ in grids]
    for place in grids[0]:
        inputs = [grid[place] for grid in grids]
        hidden = [max(h, 0.0) for h in _linear(inputs, state["mlp.fc1.weight"], state["mlp.fc1.bias"])]
        for grid, value in zip(mixed, _linear(hidden, state["mlp.fc2.weight"], state["mlp.fc2.bias"]), strict=True):
            grid[place] = value
    return mixed


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
