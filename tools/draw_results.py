"""Draw the pictures of the first page and of the results from the files with their numbers.

    python tools/draw_results.py [FOLDER]     # docs/images

The curves, and the scores against latency, are the figures of the comparisons' reports. The first page also shows where
gates are inserted in a residual unit, what the gates of a ResNet-18 do to the spread between channels, and the time of
an image in a file with four routes.
"""

# pyright: basic

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import timm

import gatewise as gw
from gatewise.analysis.benchmark import drawing as draw_bench
from gatewise.analysis.drawing import INK, Drawing, add_legend, new_figure, series_style
from gatewise.analysis.gate_figures import competition_by_depth
from gatewise.comparison.report import draw_costs, draw_curves

ROOT = Path(__file__).parents[1]
IMAGES, RESULTS = ROOT / "docs/images", ROOT / "docs/results"
UNIT = "layer1.0"
CURVES = {
    "digits": "digits/results.json",
    "cifar10-none-gct": "cifar10-none-gct/results.json",
    "cifar10-four-gates": "cifar10-four-gates/with_rivals.json",
    "cifar10-resnet18": "cifar10-resnet18/results.json",
    "computed-labels": "computed-labels/labels.json",
    "computed-edges": "computed-labels/edges.json",
}
LATE = ("digits", "cifar10-four-gates")  # also the second half of the epochs
LATENCIES = ("digits", "digits-ablations", "cifar10-none-gct", "cifar10-four-gates")
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
FORMS = {"dense": "all filters", "routes": "four routes of half the filters"}


def drawings() -> Iterator[tuple[str, Drawing]]:
    """Yield the name of each picture's file, without suffix, and the picture."""
    for name, file in CURVES.items():
        yield f"{name}-curves", draw_curves(_read(RESULTS / file))[0]
    for name in LATE:
        yield f"{name}-late-curves", draw_curves(_read(RESULTS / CURVES[name]))[1]
    for name in LATENCIES:
        yield f"{name}-latency", draw_costs(_read(RESULTS / name / "results.json"))[0]
    yield "skipping-share-open", draw_bench(_read(RESULTS / "cifar10-resnet18-gater/bench.json"))
    yield "routes-time", draw_routes(_read(ROOT / "benchmarks/results/exported_routes-cpu.json"))
    yield "inserted-gates", draw_unit()
    yield "cifar10-resnet18-competition", draw_competition(ROOT / "docs/pages/gct-resnet18.html")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text("utf-8"))


def draw_routes(results: dict[str, Any]) -> Drawing:
    """Draw the time of one image with all filters, and with the filters of the route that the image takes."""
    figure, axes = new_figure(2.6)
    cells = [(number, runtime) for number in results["precisions"] for runtime in RUNTIMES]
    for index, (form, label) in enumerate(FORMS.items()):
        times = [results["precisions"][precision][runtime]["1"][form]["ms"] for precision, runtime in cells]
        at = [row + 0.4 * (index - 0.5) for row in range(len(cells))]
        bars = axes.barh(at, times, height=0.38, color=series_style(index + 1)[0], label=label)
        axes.bar_label(bars, [f"{time:.0f}" for time in times], padding=2, fontsize=8, color=INK)
    axes.set_yticks(range(len(cells)), [f"{RUNTIMES[runtime]}, {precision}" for precision, runtime in cells])
    axes.set_xlabel("one image of 224x224 in a ResNet-50 (ms)")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    add_legend(figure)
    return Drawing("routes-time", figure, shows="The time of one image, in each runtime and precision.")


def draw_competition(page: Path) -> Drawing:
    """Draw the change of the spread between channels, from the numbers on a page that `gatewise explain` wrote."""
    rows = page.read_text("utf-8").partition('<button type="button">spread before</button>')[2].partition("</table>")[0]
    cells = re.findall(r'<tr><td[^>]*>([^<]*)</td><td data-order="([^"]*)">[^<]*</td><td data-order="([^"]*)">', rows)
    gates = [
        SimpleNamespace(path=path, spread_before=float(b), spread_after=float(a), competition=float(a) / float(b))
        for path, b, a in cells
    ]
    return competition_by_depth(cast("Any", gates))


def draw_unit() -> Drawing:
    """Draw the layers of a residual unit of timm's ResNet-18 with the gates that `insert_gates` put there."""
    net = timm.create_model("resnet18")
    gw.insert_gates(net, "gct")
    gates = gw.gates_in(net)
    shown = []
    for name in ("conv1", "bn1", "act1", "conv2", "bn2"):
        gate = f"{UNIT}.{name}.gct"
        shown += [*([(gate, True)] if gate in gates else []), (name, False)]
    figure, axes = new_figure(1.5)
    axes.set_axis_off()
    for place, (name, is_gate) in enumerate(shown):
        style = {
            "facecolor": series_style(1)[0] if is_gate else "white",
            "edgecolor": INK,
            "boxstyle": "round,pad=0.35",
        }
        axes.text(place, 0, "gct" if is_gate else name, ha="center", va="center", fontsize=10, bbox=style, color=INK)
        if is_gate:
            axes.text(place, -0.55, name, ha="center", va="center", fontsize=8, color=INK)
    last = len(shown)
    axes.text(last, 0, "+", ha="center", va="center", fontsize=14, color=INK)
    axes.plot([-0.9, last - 0.2], [0, 0], color=INK, lw=1, zorder=0)
    axes.plot([-0.7, -0.7, last, last], [0, 0.6, 0.6, 0.2], color=INK, lw=1)
    axes.set(xlim=(-1, last + 0.3), ylim=(-0.8, 0.9))
    return Drawing("inserted-gates", figure, shows="A residual unit with a gate before each convolution.")


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    for name, drawn in drawings():
        (out / f"{name}.svg").write_text(drawn.svg(), encoding="utf-8")
