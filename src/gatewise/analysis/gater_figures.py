"""The figures of GaterNet's paper, from counted patterns, as SVG text."""

from collections.abc import Sequence

import torch

from gatewise.analysis.figures import look, new_figure, to_svg
from gatewise.analysis.patterns import GatePatterns

_KINDS = (
    ("always_open", "always open", "#0072B2"),
    ("dependent", "depends on the image", "#E69F00"),
    ("always_closed", "always closed", "#999999"),
)


def kinds_by_unit(patterns: GatePatterns) -> str:
    """Draw, unit by unit from input to output, the share of gates always open, dependent, and always closed."""
    rows = patterns.kinds()
    figure, axes = new_figure(7, 3.5)
    bottom = torch.zeros(len(rows))
    sizes = [site.gates for site in patterns.sites]
    for field, label, colour in _KINDS:
        share = torch.tensor([100 * getattr(row, field) / size for row, size in zip(rows, sizes, strict=True)])
        axes.bar(range(1, len(rows) + 1), share.tolist(), bottom=bottom.tolist(), color=colour, label=label, width=0.8)
        bottom += share
    axes.set(xlabel="gated layer, from input to output", ylabel="gates (%)", ylim=(0, 100))
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    return to_svg(figure)


def images_by_gate(patterns: GatePatterns) -> str:
    """Draw how many of the dependent gates open for how many images."""
    counts = patterns.images_by_gate
    dependent = counts[(counts > 0) & (counts < patterns.images)]
    figure, axes = new_figure(7, 3.5)
    axes.hist(dependent.tolist(), bins=50, range=(0, patterns.images), color="#0072B2")
    axes.set(xlabel=f"images, of {patterns.images:,}, that open a gate", ylabel="gates that depend on the image")
    return to_svg(figure)


def open_gates_by_image(patterns: GatePatterns) -> str:
    """Draw how many images open how many gates."""
    numbers = patterns.images_by_open_gates
    lowest, _, highest = patterns.open_gates()
    figure, axes = new_figure(7, 3.5)
    span = range(lowest, highest + 1)
    bins = min(60, len(span))
    axes.hist(list(span), bins=bins, weights=numbers[lowest : highest + 1].tolist(), color="#0072B2")
    gates = len(numbers) - 1
    axes.set(xlabel=f"open gates, of {gates:,}", ylabel="images")
    return to_svg(figure)


def patterns_in_the_plane(patterns: GatePatterns, classes: Sequence[str]) -> str:
    """Draw each kept image's gates as a point (PCA, then t-SNE), its class by colour and marker."""
    points, labels = patterns.embedding()
    figure, axes = new_figure(7, 5.5)
    for index, name in enumerate(classes):
        chosen = points[labels == index]
        colour, marker = look(index)
        x, y = chosen.T.tolist()
        axes.scatter(x, y, s=8, lw=0, alpha=0.8, label=name, color=colour, marker=marker)
    axes.set(xticks=[], yticks=[])
    figure.legend(frameon=False, loc="outside right upper", markerscale=2)
    return to_svg(figure)
