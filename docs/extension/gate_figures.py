"""Draw the figures of any gate from the gate itself: its response and its receptive field."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from gatewise.analysis.drawing import Drawing, add_colour_bar, new_figure, series_style
from gatewise.analysis.recording import Recorded
from gatewise.gates.registry import Gate, GateSpec

CHANNELS, SIDE = 16, 15
SETTINGS = 5  # number of random parameter settings, one curve each
DRAWS = 16  # number of random settings averaged in the maps of the receptive field
STEP = 1e-4
_MIDDLE = (CHANNELS // 2, SIDE // 2, SIDE // 2)
_NOTHING = 1e-9  # a change below this is rounding


def gate_at_random(spec: GateSpec, seed: int) -> Gate:
    """Return the gate in float64 with random parameters, since a new gate may be the identity."""
    generator = torch.Generator().manual_seed(seed)
    gate = spec.make(CHANNELS, dtype=torch.float64).eval()
    for layer in gate.modules():
        inputs = layer.weight[0].numel() if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) else 1
        for name, parameter in layer.named_parameters(recurse=False):
            scale = 2 * inputs**-0.5 if name == "weight" else 1.0
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.copy_(scale * drawn)
    return gate


def some_map(seed: int) -> Tensor:
    """Return a map of positive values around 1, as after a ReLU: (1, CHANNELS, SIDE, SIDE)."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + torch.rand(1, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)


def responses(spec: GateSpec, sizes: Tensor, seed: int) -> Tensor:
    """Return the gate's value for one channel that is `sizes` times as large as the others: (len(sizes),).

    The value is that of `gatewise explain`: the least-squares factor or, for a gate that adds, the added value.
    """
    channel, gate = _MIDDLE[0], gate_at_random(spec, seed)
    x = some_map(seed).repeat(len(sizes), 1, 1, 1)
    x[:, channel] *= sizes.reshape(-1, 1, 1)
    with torch.no_grad():
        return Recorded.of(gate, x, gate(x)).values[:, channel]


def receptive_field(spec: GateSpec) -> Tensor:
    """Return how much each output value changes with the middle input value, (CHANNELS, SIDE, SIDE).

    The result is the mean over random settings of a difference quotient in float64. It is exactly 0 outside of the
    receptive field.
    """
    changes = torch.zeros(CHANNELS, SIDE, SIDE, dtype=torch.float64)
    for seed in range(DRAWS):
        gate, x, step = gate_at_random(spec, seed), some_map(seed), torch.zeros(1, CHANNELS, SIDE, SIDE).double()
        step[(0, *_MIDDLE)] = STEP
        with torch.no_grad():
            changes += ((gate(x + step) - gate(x - step)) / (2 * STEP))[0].abs() / DRAWS
    return torch.where(changes > _NOTHING, changes, 0.0)


def drawings(spec: GateSpec) -> Iterable[Drawing]:
    """Yield the figures of a gate."""
    yield _draw_response(spec)
    changes = receptive_field(spec)
    channel, row, column = _MIDDLE
    yield _draw_receptive_field(
        f"{spec.name}-channels", changes[:, row], "channel", "column", (channel, column), "same row"
    )
    yield _draw_receptive_field(
        f"{spec.name}-positions", changes[channel], "row", "column", (row, column), "same channel"
    )


def _draw_response(spec: GateSpec) -> Drawing:
    figure, axes = new_figure(3.2, width=4.2)
    sizes = torch.linspace(0.02, 4, 100, dtype=torch.float64)
    for seed in range(SETTINGS if any(True for _ in gate_at_random(spec, 0).parameters()) else 1):
        axes.plot(sizes, responses(spec, sizes, seed), color=series_style(seed)[0])
    is_additive = gate_at_random(spec, 0).is_additive
    axes.axhline(0.0 if is_additive else 1.0, color=series_style(9)[0], linestyle=":")
    axes.set_xlabel("size of the channel; the others have size 1")
    axes.set_ylabel("added value / size of the map" if is_additive else "factor of the channel")
    axes.set_title("response", fontsize="medium")
    what = "the value added to a channel" if is_additive else "the factor of a channel"
    return Drawing(f"{spec.name}-response", figure, f"{what} against its size, for random settings of the parameters")


def _draw_receptive_field(
    name: str, changes: Tensor, down: str, along: str, middle: tuple[int, int], where: str
) -> Drawing:
    from matplotlib.colors import LogNorm

    figure, axes = new_figure(3.2, width=4.2)
    axes.grid(False)
    seen = np.ma.masked_equal(changes.numpy(), 0)
    mesh = axes.pcolormesh(seen, norm=LogNorm(1e-5, 1), cmap="viridis", edgecolors="face", linewidth=0.3)
    axes.set_xlim(0, changes.shape[1])
    axes.set_ylim(changes.shape[0], 0)
    axes.set_xticks(range(0, changes.shape[1] + 1, 5))
    axes.set_yticks(range(0, changes.shape[0] + 1, 5))
    axes.plot(middle[1] + 0.5, middle[0] + 0.5, marker="x", color="#D55E00", markersize=8, linestyle="none")
    axes.set_xlabel(along)
    axes.set_ylabel(down)
    axes.set_title(f"receptive field, {where}", fontsize="medium")
    add_colour_bar(figure, mesh, "change")
    return Drawing(name, figure, f"change of the output values of the {where} with the marked input value")
