"""Build the sections of a page from the statistics of runs."""

# pyright: basic

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gatewise import errors
from gatewise.analysis import (
    attention_figures,
    figures,
    gate_figures,
    gater_figures,
    pixel_figures,
    route_figures,
    run_figures,
)
from gatewise.analysis.drawing import Drawing
from gatewise.analysis.findings import Attention, Findings, GaterFindings
from gatewise.analysis.gate_summary import GateSummary
from gatewise.analysis.given_network import GivenNetwork, Subject
from gatewise.analysis.interventions import removal_cost
from gatewise.analysis.page import Section
from gatewise.analysis.table import Cell, Table
from gatewise.gaternet import GaterNet
from gatewise.graph import measure
from gatewise.insertion.insert import gates_in
from gatewise.training import Score, Task
from gatewise.training.runs import Run

_MAPS = 3  # gates whose attention is shown: the first, the middle and the last


def overview(runs: Sequence[Run]) -> Iterator[Section]:
    """Yield the sections about all runs: table, accuracy against cost, curves, and IoU of classes."""
    score = common_score(runs)
    costs = {run.name: (_macs(run) / 1e6, run.metrics[run.score.name]) for run in runs}
    columns = [
        "run",
        "network",
        "data",
        f"validation {score.title}{score.unit}",
        "parameters",
        "MACs (M), as executed",
        "epochs",
    ]
    rows = [
        [
            Cell(run.name),
            Cell(str(run.recipe.spec)),
            Cell(Path(run.source.data).name),
            Cell(score.number(costs[run.name][1]), costs[run.name][1]),
            Cell(f"{run.metrics['parameters']:,}", run.metrics["parameters"]),
            Cell(f"{costs[run.name][0]:.2f}", costs[run.name][0]),
            Cell(str(run.metrics["epochs"]), run.metrics["epochs"]),
        ]
        for run in runs
    ]
    alike = len({run.source.of_validation() for run in runs}) == 1
    drawings = [run_figures.accuracy_against_macs(costs, score)] if len(runs) > 1 and alike else []
    yield Section("Runs", "" if alike else _OTHER_IMAGES.format(score=score.title), Table(columns, rows), drawings)
    if not alike:
        return
    curves = {run.name: [[row[f"validation_{run.score.name}"] for row in run.log]] for run in runs if run.log}
    if curves:
        yield Section(
            f"Validation {score.title} while training",
            drawings=[figures.curves(curves, score), *figures.late_curves(curves, score)],
        )
    labelled = {run.name: run.metrics["iou_by_class"] for run in runs if "iou_by_class" in run.metrics}
    if labelled:
        yield Section("Classes of pixels", drawings=[pixel_figures.iou_by_class(labelled)])


def without_run(network: GivenNetwork, found: Findings) -> Section:
    """Return the section about a network that was given without a run, in the place of `overview`."""
    example = next(network.batches())[0][:1]
    macs = (
        measure.macs_per_sample(network.model, example) if found.gater is None else found.gater.patterns.executed_macs
    )
    columns, row = ["network", "images", "parameters", "MACs (M), as executed"], [Cell(network.name)]
    row += [Cell(f"{count:,}", count) for count in (len(network.images), measure.parameter_count(network.model))]
    row.append(Cell(f"{macs / 1e6:.2f}", macs / 1e6))
    if network.task is not None:
        what = "pixels" if network.task.class_per_pixel else "images"
        accuracy = removal_cost(network.model, [], network.batches(), network.task.hits).accuracy_with
        columns.append(f"{what} classified correctly (%)")
        row.append(Cell(f"{100 * accuracy:.2f}", 100 * accuracy))
    omitted = f" {network.remark} Accuracies and statistics by class are omitted." if network.remark else ""
    return Section("Network", _WITHOUT_RUN + omitted, Table(columns, [row]))


_WITHOUT_RUN = (
    "This network was given without a run, so the page has no training curve, no recipe and no validation score of a "
    "training. Everything here was measured on the given images."
)
_OTHER_IMAGES = (
    "These runs were trained and measured on different images, or read the same images in different ways. Their "
    "{score} cannot be compared, so no figure shows it side by side."
)


def common_score(runs: Sequence[Run]) -> Score:
    """Return the score of all runs.

    Raises:
        InvalidValueError: if the runs are evaluated with different metrics.
    """
    scores = {run.score: run.name for run in runs}
    if len(scores) > 1:
        by_run = ", ".join(f"{name} by {score.title}" for score, name in scores.items())
        raise errors.InvalidValueError(
            f"these runs are evaluated with different metrics: {by_run}. Run `gatewise explain` on each separately."
        )
    return runs[0].score


def _macs(run: Run) -> float:
    if "executed_macs" in run.metrics:
        return run.metrics["executed_macs"]
    image = torch.zeros(1, run.config["in_chans"], *run.config["image_size"], device=run.device)
    return measure.macs_per_sample(run.model, image)


def beside_each_other(found: Sequence[Findings]) -> Iterator[Section]:
    """Yield the section that compares the gates of several runs, layer by layer."""
    runs = [each.run.name for each in found]
    gates = {each.run.name: each.gates for each in found if each.gates}
    gaters = {each.run.name: each.gater.patterns for each in found if each.gater is not None}
    drawings = [run_figures.gates_of_runs(gates, runs)] if len(gates) > 1 else []
    drawings += [run_figures.open_gates_of_runs(gaters, runs)] if len(gaters) > 1 else []
    if drawings:
        yield Section("Gates of the runs, layer by layer", drawings=drawings)


def of_run(found: Findings, *, several: bool) -> list[Section]:
    """Return the sections about one run; their titles contain its name if there are several runs."""
    sections = list(_of_run(found))
    if not several:
        return [replace(section, title=section.title[0].upper() + section.title[1:]) for section in sections]
    return [section.under(found.run.name, found.run.slug) for section in sections]


def _of_run(found: Findings) -> Iterator[Section]:
    run = found.run
    if found.pixels is not None:
        pixels = found.pixels
        drawing = pixel_figures.labelled_pictures(pixels.pictures, pixels.masks, pixels.predicted, run.classes)
        yield Section("predicted masks", drawings=[drawing])
    if not gates_in(run.model) and not isinstance(run.model, GaterNet):
        yield Section("no gates", "This network has no gates, so there are no statistics of gates.")
        return
    if gate_figures.gct_parameters(run.model, "gamma"):
        yield Section("parameters of gct by depth", drawings=_gct_drawings(run))
    if run.images is None:
        yield Section("without images", f"Statistics that need images are omitted. {run.missing}")
    for is_additive, title in ((False, "factors of gates by depth"), (True, "values added by gates by depth")):
        if kind := [summary for summary in found.gates if summary.is_additive is is_additive]:
            yield Section(title, drawings=_value_drawings(kind, run.task))
    if found.gates:
        yield Section("gates near the identity", _of_idle_gates(found))
    if found.unreached:
        yield Section("gates that were not reached", f"No image reached {', '.join(found.unreached)}.")
    if found.attention is not None:
        yield Section("attention", drawings=_attention_drawings(found.attention))
    if found.gater is not None:
        yield _of_gater(run, found.gater)


def _gct_drawings(run: Subject) -> list[Drawing]:
    return [
        gate_figures.parameter_by_depth(gate_figures.gct_parameters(run.model, name), name)
        for name in ("gamma", "alpha", "beta")
    ]


def _value_drawings(found: Sequence[GateSummary], task: Task | None) -> list[Drawing]:
    groups = () if task is None else task.image_groups
    by_depth = [
        gate_figures.values_by_depth(found),
        gate_figures.competition_by_depth(found),
        gate_figures.dependence_by_depth(found, by_class=task is not None and task.class_per_image),
    ]
    by_class: list[Drawing] = []
    if task is not None and groups:
        by_depth.append(gate_figures.classes_by_depth(found, groups, kinds=task.groups_are))
        most = max(found, key=GateSummary.dependence)
        if not most.by_class.isnan().all():
            by_class.append(gate_figures.classes_by_channel(most, groups, kinds=task.groups_are))
    suffix = "added" if found[0].is_additive else "factors"
    return [*(drawing.renamed(suffix) for drawing in by_depth), *by_class]


def _of_idle_gates(found: Findings) -> str:
    if not found.idle:
        return f"None of the {len(found.gates)} gates changes 95 % of its input channels by less than 5 %."
    text = (
        f"{len(found.idle)} of {len(found.gates)} gates change 95 % of their input channels by less than 5 % "
        f"({', '.join(found.idle)})."
    )
    if (cost := found.removal) is None or found.run.task is None:
        return text
    hit = found.run.task.hit
    pixels = " (mean over images of the share of pixels)" if found.run.task.class_per_pixel else ""
    return (
        f"{text} The {hit.title}{pixels} of {cost.images:,} images is {hit.text(cost.accuracy_with)} with all gates, "
        f"{hit.text(cost.accuracy_without)} without these (in float32, on the images shown here)."
    )


def _attention_drawings(attention: Attention) -> list[Drawing]:
    paths = list(attention.maps)
    shown = dict.fromkeys(paths[round(i * (len(paths) - 1) / (_MAPS - 1))] for i in range(_MAPS))
    overlays = [attention_figures.attention_overlays(path, attention.pictures, *attention.maps[path]) for path in shown]
    return [*overlays, attention_figures.distances_by_gate(attention.distances)]


def _of_gater(run: Subject, found: GaterFindings) -> Section:
    net, patterns, exchange = found.net, found.patterns, found.exchange
    lowest, mean, highest = patterns.open_gates()
    opened = f"{lowest:,} to {highest:,}, {mean:,.0f} on average" if lowest < highest else f"{lowest:,}"
    text = (
        f"{net.gate_count:,} gates in {len(net.sites)} layers; an image opens {opened}; "
        f"{int(patterns.dependent.sum()):,} gates depend on the image (open for more than 0.5 "
        f"and fewer than 99.5 % of the images). Multiply-adds per image: {patterns.executed_macs / 1e6:.2f} M executed "
        f"(in float32), including {net.gater_macs / 1e6:.2f} M of the gater; the plain network has "
        f"{net.dense_macs / 1e6:.2f} M. If gates opened at the same rates, but independently of each other, the "
        f"expected number would be {found.expected_macs / 1e6:.2f} M."
    )
    drawings = [
        gater_figures.kinds_by_unit(patterns),
        gater_figures.images_by_gate(patterns),
        *([gater_figures.open_gates_by_image(patterns)] if lowest < highest else []),
    ]
    if exchange is not None:
        text += (
            f" Classified correctly are {100 * exchange.own:.1f} % of the images with their own gates, "
            f"{100 * exchange.same:.1f} % with the typical gates of their class, and {100 * exchange.other:.1f} % with "
            f"those of another class (means over classes)."
        )
        drawings.append(gater_figures.accuracy_by_gates(exchange, run.classes))
    assert run.images is not None
    classes, drawable = run.image_classes or ["all images"], getattr(run.images, "drawable", True)
    if found.routes is not None:
        shares = ", ".join(f"{100 * share:.0f}" for share in found.routes.shares)
        text += (
            f" Of {len(found.routes.shares)} routes, each image takes one; they are taken by {shares} % of the images."
        )
        drawings.append(route_figures.classes_by_route(found.routes, classes))
        if drawable:
            drawings.append(route_figures.pictures_by_route(found.routes, run.images.picture))
    else:
        try:
            pictures = map(run.images.picture, patterns.kept.tolist()) if drawable else None
            drawings.append(gater_figures.patterns_in_the_plane(patterns, classes, pictures))
        except errors.InvalidValueError as error:
            text += f" {error}"
    return Section("which filters the gater opens", text, drawings=drawings)
