"""Benchmark a network on this machine: as it is and optimised; a GaterNet dense, masked, skipped and compacted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.analysis.drawing import Drawing, add_legend, new_figure, series_style
from gatewise.analysis.table import Cell, Table
from gatewise.analysis.timed_forms import WITHOUT_GATES, GaterForms, PlainForms, Timed, repeated
from gatewise.core import _validation
from gatewise.core.files import check_folder_writable, check_format_not_newer, write_atomically, write_json
from gatewise.core.loaders import Loader, batches_of
from gatewise.gaternet import GaterNet
from gatewise.graph import evaluation_mode
from gatewise.inference.wrappers import unwrapped
from gatewise.training import Progress
from gatewise.training.run_folder import folder_of_results
from gatewise.training.runs import Run

_SCHEMA = 1
_GAIN = 0.97  # a form must take less than this fraction of the reference's time to be recommended


def bench(
    model: nn.Module,
    example: Tensor,
    *,
    loader: Loader | None = None,
    out: str | Path | None = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    rounds: int = 15,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time all forms of any network on its own inputs, in turn; the network does not change.

    The forms of a network without a gater:

    - "network": the network in eval mode.
    - "without gates": a copy whose gates return their input, if it has gates.
    - "optimised": a copy after `optimize_for_inference`.
    - "without gates, optimised": the copy without gates, optimised in the same way.

    The forms of a `GaterNet`:

    - "dense": all filters, no gater, batch norms folded, in the faster memory format.
    - "masked": all filters, multiplied by the gates, as in training.
    - "skipped": `skip_closed_filters`.
    - "compacted": `compact`, with the remaining gates multiplied; "compacted, skipped" with them skipped. These need
      `loader`.

    All times but the dense one include the gater.

    Args:
        model: the network, also a compacted one or one inside a wrapper of torch.compile or DDP.
        example: images (N, C, H, W) as the network takes them; they are repeated to fill a batch.
        loader: batches of images over which the constant gates of a GaterNet are found for compaction.
        out: folder to write bench.json and bench.svg to; None writes nothing.
        batch_sizes: batch sizes to time.
        rounds: number of timed rounds; each round times every form once.
        threads: number of torch threads; None keeps the current number.
        progress: where to show progress; None shows nothing.

    Returns:
        The content of bench.json; `gatewise.analysis.benchmark.table(results)` is a table of it.

    Raises:
        InvalidTypeError: `model` is no module or a skipping network, or `example` is no tensor of images.
        InvalidValueError: a number is too small.
    """
    if out is not None:
        check_folder_writable(Path(out))
    net = unwrapped("bench", model)
    (example, _), *_ = batches_of([example], "bench")
    device = next((parameter.device for parameter in net.parameters()), example.device)
    source = Timed(
        type(net).__name__,
        net,
        lambda count: repeated(example.to(device), count),
        None if loader is None else lambda: loader,
    )
    return _benched(source, out, batch_sizes, rounds, threads, progress)


def bench_run(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    rounds: int = 15,
    threads: int | None = None,
    images: int = 1000,
    data: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time all forms of a run's network on its validation images, in turn, and write bench.json and bench.svg.

    Args:
        folder: folder of a finished run.
        out: folder to write to; None takes the run folder.
        batch_sizes: as for `bench`.
        rounds: as for `bench`.
        threads: as for `bench`.
        images: number of training images over which constant gates are found for compaction.
        data: data set to use instead of the run's own.
        progress: where to show progress; None shows nothing.

    Returns:
        The content of bench.json.

    Raises:
        ValueError: the run's images cannot be found, or a number is too small.
    """
    _validation.check_integer_at_least(1, images=images)
    target = folder_of_results(folder, out)
    run = Run.open(folder, data).checked()
    run.check_has_images()
    source = Timed(
        run.name,
        run.model,
        lambda count: repeated(torch.cat([*run.first(count)]), count),
        lambda: run.of("train").first(images),
    )
    return _benched(source, target, batch_sizes, rounds, threads, progress)


def _benched(
    source: Timed,
    out: str | Path | None,
    batch_sizes: Sequence[int],
    rounds: int,
    threads: int | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Check the arguments, measure, and write the files."""
    _validation.check_integer_at_least(2, rounds=rounds)
    _validation.check_integer_at_least(1, threads=1 if threads is None else threads)
    _validation.check_integer_at_least(1, **{f"batch size number {n}": size for n, size in enumerate(batch_sizes, 1)})
    if out is not None:
        check_format_not_newer(Path(out) / "bench.json", _SCHEMA, "schema")
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    kind = GaterForms if isinstance(source.net, GaterNet) else PlainForms
    try:
        with evaluation_mode(source.net):
            forms = kind(source, rounds, (progress or Progress(quiet=True)).say)
            results = {"schema": _SCHEMA, **forms.results(sorted(set(batch_sizes)))}
    finally:
        torch.set_num_threads(before)
    results["verdict"] = _verdict(results)
    if out is not None:
        write_json(Path(out) / "bench.json", results)
        if "curve" in results:
            write_atomically(Path(out) / "bench.svg", drawing(results).svg())
    return results


def _verdict(results: dict[str, Any]) -> str:
    """Return one sentence that recommends a form with the network's outputs, for each batch size."""
    sentences: list[str] = []
    for size, forms in results["batches"].items():
        reference = next(iter(forms))
        name = min(
            (form for form in forms if not form.startswith(WITHOUT_GATES)), key=lambda form: forms[form]["median_ms"]
        )
        factor = forms[name][f"{reference}_over_this"][0]
        advice = "do not skip here" if reference == "dense" else "nothing is faster here"
        is_gain = name != reference and 1 / factor < _GAIN
        advice = f"{name}, {factor:.2f} times as fast as {reference}" if is_gain else f"{reference}: {advice}"
        images = "one image" if size == "1" else f"{size} images"
        sentences.append(f"{images} at once: {advice}")
    return "; ".join(sentences)


def table(results: dict[str, Any]) -> Table:
    """Return a table with a row per form and a column per batch size."""
    batches = results["batches"]
    names = list(next(iter(batches.values())))
    rows: list[list[Cell]] = []
    for form in names:
        cells = [Cell(form)]
        for forms in batches.values():
            times = forms[form]
            text = f"{times['median_ms']:.2f} ms ({times[f'{names[0]}_over_this'][0]:.2f}x)"
            cells.append(Cell(text, times["median_ms"]))
        rows.append(cells)
    return Table(["form", *(f"batch of {size}" for size in batches)], rows)


def drawing(results: dict[str, Any]) -> Drawing:
    """Draw the time of one image against the fraction of open gates."""
    figure, axes = new_figure(3.2)
    curve = results["curve"]
    for index, name in enumerate(("dense", "masked", "skipped")):
        colour, marker = series_style(index)
        axes.plot(
            [100 * row["open"] for row in curve], [row[name] for row in curve], color=colour, marker=marker, label=name
        )
    limit = results["pays_up_to"]
    if limit is not None and limit < 1:
        axes.axvline(100 * limit, color="grey", ls="--", label=f"skipping is faster up to {100 * limit:.0f} % open")
    axes.set(xlabel="open gates (%), random", ylabel="one image (ms)", ylim=(0, None))
    add_legend(figure)
    rows = [[Cell(f"{value:.4f}", value) for value in row.values()] for row in curve]
    return Drawing(
        "bench",
        figure,
        shows="The time of one image, including the gater, against the fraction of open gates.",
        look_for="The crossing of the skipped and the dense curve: with more filters open, do not skip.",
        table=Table(["open", "dense ms", "masked ms", "skipped ms"], rows),
    )
