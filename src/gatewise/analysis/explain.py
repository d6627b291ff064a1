"""One page that shows what the gates of trained runs learned."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import _checks, measure
from gatewise.analysis import attention_figures, figures, gate_figures, gater_figures
from gatewise.analysis.attention import attention_maps, query_distances
from gatewise.analysis.drawing import Drawing
from gatewise.analysis.gate_stats import GateSummary, gate_statistics
from gatewise.analysis.interventions import accuracy_with_gates_of, idle_gates, removal_cost
from gatewise.analysis.page import Page, Section
from gatewise.analysis.patterns import record_patterns
from gatewise.analysis.table import Cell, Table
from gatewise.checkpoint import load_model, read_json, read_json_lines, write_atomically
from gatewise.data import Augmentation, Dataset, load_dataset, make_batches
from gatewise.gaternet import GaterNet
from gatewise.insertion import gates_in
from gatewise.spec import ModelSpec
from gatewise.training import Progress, Recipe

_BATCH = 250
_PICTURES = 4  # images that attention is laid over
_QUERIES = 3
_MAPS = 3  # gates whose attention is shown: the first, the middle and the last


@dataclass(frozen=True)
class Run:
    """A trained run, opened.

    Attributes:
        name: what it is called on the page.
        model: in eval mode.
        config: its `config.json`.
        rows: of its log.
        metrics: its `metrics.json`.
        dataset: its images, or None.
        missing: why there are none.
    """

    name: str
    model: nn.Module
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    metrics: dict[str, Any]
    dataset: Dataset | None
    missing: str

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the validation images as the network takes them, and their labels."""
        assert self.dataset is not None
        mean, std = torch.tensor(self.config["mean"]), torch.tensor(self.config["std"])
        device = next(self.model.parameters()).device
        options: Any = {"augmentation": Augmentation(), "device": device, "workers": 0}
        return make_batches(self.dataset.validation, _BATCH, mean, std, **options).evaluation()


def open_run(folder: Path, name: str, data: str | None) -> Run:
    """Open a run folder with its images, or those of `data`.

    Refused with `DataError`: a folder that is no finished run, damaged weights, a data set with other classes or image
    channels. If the run's own images are gone, the reason is noted instead.
    """
    model, config = load_model(folder)
    recipe = Recipe.load(folder / "recipe.yaml")
    log, metrics = folder / "log.jsonl", read_json(folder / "metrics.json")
    rows = read_json_lines(log) if log.exists() else []
    dataset, missing = None, ""
    try:
        dataset = load_dataset(data or recipe.data, recipe.image_size, recipe.loading)
        _refuse_other_classes(dataset, config, folder)
    except (_checks.DataError, _checks.MissingExtraError) as error:
        if data is not None:
            raise
        dataset, missing = None, str(error)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Run(name, model, config, rows, metrics, dataset, missing)


def _refuse_other_classes(dataset: Dataset, config: dict[str, Any], folder: Path) -> None:
    if list(dataset.classes) != config["classes"] or dataset.channels != config["in_chans"]:
        raise _checks.DataError(
            f"{dataset.name} has {len(dataset.classes)} classes ({', '.join(dataset.classes[:5])}, ...) and "
            f"{dataset.channels} channels; the run in {folder} was trained with {len(config['classes'])} "
            f"({', '.join(config['classes'][:5])}, ...) and {config['in_chans']}. Give the data it was trained with."
        )


def explain(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    data: str | None = None,
    figures_in: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write one HTML page about one run or several, and return its path.

    Args:
        runs: run folders; several are shown side by side.
        out: the page, a single file that needs nothing else.
        data: images to show the gates instead of the runs' own.
        figures_in: a folder for each figure as SVG, PNG and CSV too.
        progress: where to tell what is being done; None tells nothing.
    """
    progress = progress or Progress(quiet=True)
    if not runs:
        raise _checks.InvalidValueError("no run to explain; give at least one run folder.")
    opened = [open_run(Path(folder), name, data) for folder, name in zip(runs, _names(runs), strict=True)]
    sections = [*_overview(opened)]
    for run in opened:
        progress.say(f"looking at {run.name}")
        sections += _of_run(run, several=len(opened) > 1)
    page = Page(
        title="What the gates learned",
        lead=", ".join(f"{run.name}: {_spec(run)}" for run in opened),
        sections=sections,
        facts={"made with": f"gatewise {measure.environment(torch.device('cpu'))['gatewise']}"}
        | {run.name: _facts(run) for run in opened},
    )
    out = Path(out)
    write_atomically(out, page.render())
    if figures_in is not None:
        for drawing in (drawing for section in sections for drawing in section.drawings):
            for suffix, content in (("svg", drawing.svg()), ("png", drawing.png()), ("csv", drawing.csv())):
                write_atomically(Path(figures_in) / f"{drawing.name}.{suffix}", content)
    return out


def _names(runs: Sequence[str | Path]) -> list[str]:
    """Return the shortest ends of the paths that tell the runs apart."""
    paths = [Path(run).resolve().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise _checks.InvalidValueError("the same run is given twice. Give each once.")


def _spec(run: Run) -> str:
    return str(ModelSpec.from_dict(run.config["spec"]))


def _facts(run: Run) -> str:
    where = run.metrics["environment"]
    return f"{_spec(run)}, {run.metrics['epochs']} epochs, {run.metrics['precision']}, trained on {where['hardware']}"


def _overview(runs: Sequence[Run]) -> list[Section]:
    rows = []
    costs: dict[str, tuple[float, float]] = {}
    for run in runs:
        image = torch.zeros(
            1, run.config["in_chans"], *run.config["image_size"], device=next(run.model.parameters()).device
        )
        macs = run.metrics.get("executed_macs") or measure.macs_per_sample(run.model, image)
        accuracy = run.metrics["accuracy"]
        costs[run.name] = (macs / 1e6, accuracy)
        rows.append([
            Cell(run.name),
            Cell(_spec(run)),
            Cell(f"{100 * accuracy:.2f}", accuracy),
            Cell(f"{run.metrics['parameters']:,}", run.metrics["parameters"]),
            Cell(f"{macs / 1e6:.2f}", macs),
            Cell(str(run.metrics["epochs"]), run.metrics["epochs"]),
        ])
    columns = ["run", "network", "validation accuracy %", "parameters", "MACs (M), as executed", "epochs"]
    drawings = [figures.accuracy_against_macs(costs)] if len(runs) > 1 else []
    curves = {run.name: [[row["validation_accuracy"] for row in run.rows]] for run in runs if run.rows}
    sections = [Section("Runs", table=Table(columns, rows), drawings=drawings)]
    if curves:
        sections.append(Section("Validation accuracy while training", drawings=[figures.curves(curves)]))
    return sections


def _of_run(run: Run, *, several: bool) -> list[Section]:
    """Return the sections about one run's gates."""
    heading = f"{run.name}: " if several else ""
    gates = gates_in(run.model)
    if not gates and not isinstance(run.model, GaterNet):
        return [Section(f"{heading}no gates", "This network has no gates, so there is nothing to show of them.")]
    sections = []
    if parameters := _gct_drawings(run):
        sections.append(Section(f"{heading}parameters of gct by depth", drawings=parameters))
    if run.dataset is None:
        sections.append(Section(f"{heading}without images", f"What needs images is left out. {run.missing}"))
        return _named_apart(sections, run, several)
    if gates:
        sections += _of_gates(run, heading)
    if isinstance(run.model, GaterNet):
        sections.append(_of_gater(run, run.model, heading))
    return _named_apart(sections, run, several)


def _named_apart(sections: list[Section], run: Run, several: bool) -> list[Section]:
    """Let the figures of several runs have names of their own."""
    if not several:
        return sections
    slug = "".join(letter if letter.isalnum() else "-" for letter in run.name)
    return [section.renamed(slug) for section in sections]


def _gct_drawings(run: Run) -> list[Drawing]:
    if not gate_figures.gct_parameters(run.model, "gamma"):
        return []
    return [
        gate_figures.parameter_by_depth(gate_figures.gct_parameters(run.model, name), name)
        for name in ("gamma", "alpha", "beta")
    ]


def _of_gates(run: Run, heading: str) -> list[Section]:
    classes = run.config["classes"]
    found = list(gate_statistics(run.model, run.batches(), len(classes)).values())
    sections = []
    for adds in (False, True):
        kind = [summary for summary in found if summary.adds is adds]
        if kind:
            what = "what gates add" if adds else "factors of gates"
            sections.append(Section(f"{heading}{what} by depth", drawings=_value_drawings(kind, classes, adds)))
    idle = idle_gates(found)
    cost = removal_cost(run.model, idle, run.batches())
    sections.append(
        Section(
            f"{heading}gates near the identity",
            f"{len(idle)} of {len(found)} gates have 95 % of their values within 0.05 of doing nothing"
            + (f" ({', '.join(idle)})" if idle else "")
            + f". Of {cost.images:,} images {100 * cost.accuracy_with:.2f} % are classified rightly with all gates, "
            f"{100 * cost.accuracy_without:.2f} % without these.",
        )
    )
    if attention := _attention_drawings(run):
        sections.append(Section(f"{heading}attention", drawings=attention))
    return sections


def _value_drawings(found: Sequence[GateSummary], classes: Sequence[str], adds: bool) -> list[Drawing]:
    suffix = "added" if adds else "factors"
    most = max(found, key=lambda summary: summary.between_classes * summary.between_images)
    return [
        gate_figures.values_by_depth(found, f"values-{suffix}"),
        gate_figures.competition_by_depth(found).renamed(suffix),
        gate_figures.dependence_by_depth(found).renamed(suffix),
        gate_figures.classes_by_channel(most, classes),
    ]


def _attention_drawings(run: Run) -> list[Drawing]:
    images, _ = next(run.batches())
    maps = attention_maps(run.model, images[:_PICTURES], _QUERIES)
    if not maps:
        return []
    paths = list(maps)
    shown = dict.fromkeys(paths[round(i * (len(paths) - 1) / (_MAPS - 1))] for i in range(_MAPS))
    mean, std = (torch.tensor(run.config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    pictures = (images[:_PICTURES].cpu() * std + mean) / 255
    overlays = [attention_figures.attention_overlays(path, pictures, *maps[path]) for path in shown]
    return [*overlays, attention_figures.distances_by_gate(query_distances(run.model, run.batches()))]


def _of_gater(run: Run, net: GaterNet, heading: str) -> Section:
    classes = run.config["classes"]
    patterns = record_patterns(net, run.batches(), len(classes))
    exchanged = accuracy_with_gates_of(net, patterns, run.batches())
    own = exchanged.diagonal().nanmean()
    other = exchanged[~torch.eye(len(classes), dtype=torch.bool)].nanmean()
    lowest, mean, highest = patterns.open_gates()
    text = (
        f"{net.gate_count:,} gates in {len(net.sites)} layers; an image opens {lowest:,} to {highest:,}, "
        f"{mean:,.0f} in the mean. Multiply-adds of an image: {patterns.executed_macs / 1e6:.2f} M executed, the "
        f"gater's own {net.gater_macs / 1e6:.2f} M included, of {net.dense_macs / 1e6:.2f} M of the plain network. "
        f"Classified rightly are {100 * float(own):.1f} % of a class's images with its own typical gates, "
        f"{100 * float(other):.1f} % with those of another (means over classes)."
    )
    drawings = [
        gater_figures.kinds_by_unit(patterns),
        gater_figures.images_by_gate(patterns),
        gater_figures.open_gates_by_image(patterns),
    ]
    try:
        drawings.append(gater_figures.patterns_in_the_plane(patterns, classes))
    except _checks.InvalidValueError as error:
        text += f" {error}"
    return Section(f"{heading}which filters the gater opens", text, drawings=drawings)
