"""The commands that make a trained network faster or portable: compact, bench and export."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from gatewise import errors
from gatewise.cli.app import Integer, Json, OwnNetwork, app, literal, print_table
from gatewise.cli.recipe_flags import description

if TYPE_CHECKING:
    from gatewise.analysis.table import Table


@app.command
def compact(
    run: Path,
    /,
    *,
    out: Path,
    images: Integer | None = None,
    data: str | None = None,
    model: OwnNetwork = None,  # noqa: ARG001
    json_output: Json = False,
) -> None:
    """Remove the filters that are closed for all training images, and write the smaller network as a new run.

    Example: gatewise compact runs/gater --out runs/gater_compact

    Parameters
    ----------
    run
        Folder of a finished run with a gater.
    out
        Folder of the new run.
    images
        Number of training images over which constant gates are found [all].
    data
        Data set to use instead of the run's own.
    model
        MODULE:FUNCTION of a run whose network is your own; gatewise imports no module that a file names.
    json_output
        Print the new run's metrics as JSON.
    """
    from gatewise.exporting.run_compaction import compact_run
    from gatewise.inference import Compaction
    from gatewise.training import Progress, score_named

    metrics = compact_run(run, out, images=images, data=data, progress=Progress())
    if json_output:
        print(json.dumps(metrics, indent=2))
        return
    score = score_named(metrics["score"])
    print(Compaction.from_dict(metrics["compaction"]))
    macs = [f"{metrics[name] / 1e6:.2f} M" for name in ("executed_macs_before", "executed_macs")]
    print(f"{macs[0]} multiply-adds per image -> {macs[1]} (open filters and gater)")
    before, after = metrics[f"{score.name}_before"], metrics[score.name]
    print(f"{score.title} {score.text(before)} -> {score.text(after)}; run: {out}")
    if "open_fraction" not in metrics:
        print("no gate is left to decide: the new network is a plain one, without a gater")


@app.command
def bench(
    run: Path,
    /,
    *,
    out: Path | None = None,
    batch_sizes: str = "1,8,32",
    rounds: Integer = 15,
    threads: Integer | None = None,
    images: Integer | None = None,
    runtimes: str | None = None,
    precisions: str = "float32",
    plain: Path | None = None,
    data: str | None = None,
    model: OwnNetwork = None,  # noqa: ARG001
    json_output: Json = False,
) -> None:
    """Time a run's network in all its forms on this machine, and recommend the fastest.

    The forms are dense, masked, skipped and compacted for a network with a gater, and otherwise the network itself,
    without its gates, and optimised.

    Example: gatewise bench runs/gater --batch-sizes 1,8

    Example: gatewise bench runs/gater --runtimes onnxruntime,openvino

    Parameters
    ----------
    run
        Folder of a finished run.
    out
        Folder for bench.json and, with a gater, bench.svg, which are replaced [the run folder].
    batch_sizes
        Batch sizes to time, separated by commas.
    rounds
        Number of timed rounds; each round times every form once.
    threads
        Number of torch threads [torch's default].
    images
        Number of training images over which constant gates are found for compaction [1000; with --runtimes all].
    runtimes
        Runtimes to compare, separated by commas: torch, compile, onnxruntime, openvino. Each form is timed in each of
        them, and the results are in bench-runtimes.json.
    precisions
        With runtimes: float32 or int8, or both separated by commas.
    plain
        With runtimes: run folder of another network to compare with, such as a narrower one.
    data
        Data set to use instead of the run's own.
    model
        MODULE:FUNCTION of a run whose network is your own; gatewise imports no module that a file names.
    json_output
        Print the contents of bench.json.
    """
    from gatewise.analysis.benchmark import bench_run
    from gatewise.analysis.benchmark import table as bench_table
    from gatewise.training import Progress

    if runtimes is not None:
        _bench_runtimes(run, out, batch_sizes, rounds, threads, images, runtimes, precisions, plain, data, json_output)
        return
    if plain is not None or precisions != "float32":
        raise errors.InvalidValueError("--plain and --precisions are for --runtimes. Give it too, or omit them.")
    options: Any = {"rounds": rounds, "threads": threads, "data": data, "progress": Progress()}
    if images is not None:
        options["images"] = images
    results = bench_run(run, out, batch_sizes=_batch_sizes(batch_sizes), **options)
    if json_output:
        print(json.dumps(results, indent=2))
        return
    print_table(bench_table(results))
    macs, files = results["macs"], ["bench.json"]
    if "executed" in macs:
        print("dense: all filters, no gater; masked: all filters, multiplied by the gates; skipped: open filters only")
        print(
            f"{macs['executed'] / 1e6:.2f} M multiply-adds per image (open filters and gater), "
            f"{macs['dense'] / 1e6:.2f} M dense"
        )
    if "curve" in results:
        files.append("bench.svg")
    for form, reason in results.get("omitted", {}).items():
        print(f"{form} was not timed: {reason}")
    print(f"{results['environment']['hardware']}; {results['verdict']}")
    print(f"written: {', '.join(str(((out or run) / file).resolve()) for file in files)}")


def runtimes_table(results: dict[str, Any]) -> "Table":
    """Return a table with a row per precision, form and runtime, and a column per batch size."""
    from gatewise.analysis.table import Cell, Table

    batches = results["batches"]
    kinds = {
        (precision, form, runtime): None
        for found in batches.values()
        for precision, forms in found.items()
        for form, row in forms.items()
        for runtime in row
    }
    rows: list[list[Cell]] = []
    for precision, form, runtime in kinds:
        cells = [Cell(form), Cell(runtime), Cell(precision)]
        for found in batches.values():
            times = found[precision][form][runtime]
            over = f" ({times['dense_over_this'][0]:.2f}x)" if "dense_over_this" in times else ""
            cells.append(Cell(f"{times['median_ms']:.2f} ms{over}", times["median_ms"]))
        rows.append(cells)
    return Table(["form", "runtime", "precision", *(f"batch of {size}" for size in batches)], rows)


def _bench_runtimes(
    run: Path,
    out: Path | None,
    batch_sizes: str,
    rounds: int,
    threads: int | None,
    images: int | None,
    runtimes: str,
    precisions: str,
    plain: Path | None,
    data: str | None,
    json_output: bool,
) -> None:
    from gatewise.exporting.runtime_bench import FILE, bench_runtimes
    from gatewise.exporting.runtimes import PRECISIONS
    from gatewise.training import Progress, score_named

    results = bench_runtimes(
        run,
        out,
        runtimes=[name.strip() for name in runtimes.split(",")],
        precisions=[name.strip() for name in precisions.split(",")],
        plain=plain,
        batch_sizes=_batch_sizes(batch_sizes),
        rounds=rounds,
        threads=threads,
        images=images,
        data=data,
        progress=Progress(),
    )
    if json_output:
        print(json.dumps(results, indent=2))
        return
    print_table(runtimes_table(results))
    exact = next(name for name in PRECISIONS if all(name in found for found in results["batches"].values()))
    print(f"dense: all filters, no gater, no gates; (x): times as fast as the fastest dense form in {exact}")
    for form, scores in results["scores"].items():
        if "score" in scores:
            score = score_named(scores["score"])
            print(f"{form}, {score.title}: {score.text(scores['float32'])}, in int8 {score.text(scores['int8'])}")
    omitted: dict[str, list[str]] = {}
    for what, reason in results["omitted"].items():
        omitted.setdefault(reason, []).append(what)
    for reason, what in omitted.items():
        print(f"{', '.join(what)} {'was' if len(what) == 1 else 'were'} not timed: {reason}")
    print(f"{results['environment']['hardware']}; {results['verdict']}")
    print(f"written: {((out or run) / FILE).resolve()}")


def _batch_sizes(text: str) -> list[int]:
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise errors.InvalidValueError(f"--batch-sizes must be integers from 1 on, such as 1,8,32, got {text!r}.")
    return [*map(int, sizes)]


@app.command
def export(
    run: Path,
    /,
    *,
    out: Path,
    to: Annotated[str, Parameter(help=literal(f"Format of the file: {description()['formats']['written']}."))] = "onnx",
    form: str | None = None,
    images: Integer = 256,
    int8: Annotated[bool, Parameter(negative="")] = False,
    routes: Integer | None = None,
    split: Annotated[bool, Parameter(negative="")] = False,
    calibration: Integer = 512,
    data: str | None = None,
    model: OwnNetwork = None,  # noqa: ARG001
    json_output: Json = False,
) -> None:
    """Export a run's network to one file, and compare its outputs with the network on validation images.

    Example: gatewise export runs/gater --to onnx --form skip --out gater.onnx

    Parameters
    ----------
    run
        Folder of a finished run.
    out
        File to write or to replace, with the suffix of its format.
    to
        Format of the file.
    form
        masked computes all filters and multiplies them by the gates; compact first removes the filters that are closed
        for all training images; skip computes only the open filters, selected inside the graph; routes, for a network
        with routes, has a dense network for each route, and each image runs through one of them [routes for a network
        that has routes or is given --routes, otherwise masked].
    images
        Number of validation images to compare on.
    int8
        Quantise convolutions and matrix products to int8 (onnx; masked, compact and routes), and score the file before
        and after on all validation images.
    routes
        For a network that was trained without routes: number of routes, which are found by clustering the gates of the
        training images. The score with and without them is printed. To train them further, give the run
        to gatewise train as --init, with as many --routes.
    split
        With form routes: write a file for each route, NAME.route0.onnx and so on, and NAME.chooser.onnx, for runtimes
        in which the program that calls them chooses.
    calibration
        Number of training images over which the range of each activation is measured.
    data
        Data set to use instead of the run's own.
    model
        MODULE:FUNCTION of a run whose network is your own; gatewise imports no module that a file names.
    json_output
        Print the results of the comparison as JSON.
    """
    from gatewise.exporting import export_run
    from gatewise.training import Progress, score_named

    results = export_run(
        run,
        out,
        to=to,
        form=form,
        images=images,
        int8=int8,
        routes=routes,
        split=split,
        calibration=calibration,
        data=data,
        progress=Progress(),
    )
    if json_output:
        print(json.dumps(results, indent=2))
        return
    if int8:
        score = score_named(results["score"])
        print(
            f"{score.title}: {score.text(results['float32'])} in float32, {score.text(results['int8'])} "
            f"in int8; logits differ by at most {100 * results['int8_difference']:.2g} % of the largest"
            + (f", {100 * results['other_gates']:.1f} % of the images have different gates" if results["kinds"] else "")
        )
    gates = ""
    if results["kinds"]:
        gates = f"; {results['kinds']} distinct gate vectors, {results['flipped']} images with different gates"
    logits = "logits in float32" if int8 else "logits"
    print(
        f"{results['images']} images: {logits} differ by at most {results['difference']:.1e} of the largest{gates}; "
        f"written: {', '.join(results.get('files', [str(out.resolve())]))} ({results['bytes'] / 1e6:.2f} MB)"
    )
    if "routed" in results:
        score = score_named(results["score"])
        print(f"{score.title}: {score.text(results['masked'])}, with routes {score.text(results['routed'])}")
    if "images_of_routes" in results:
        print(f"images of each route: {', '.join(map(str, results['images_of_routes']))}")
