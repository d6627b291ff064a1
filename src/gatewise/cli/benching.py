"""The bench command."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatewise import errors
from gatewise.cli.app import Integer, Json, OptionalInteger, OwnNetwork, app, print_json, print_table

if TYPE_CHECKING:
    from gatewise.analysis.table import Table


@app.command
def bench(
    run: Path,
    /,
    *,
    out: Path | None = None,
    batch_sizes: str = "1,8,32",
    rounds: Integer = 15,
    threads: OptionalInteger = None,
    images: OptionalInteger = None,
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
    from gatewise.training import Progress

    options: Any = {
        "batch_sizes": _batch_sizes(batch_sizes),
        "rounds": rounds,
        "threads": threads,
        "data": data,
        "progress": Progress(),
        **({} if images is None else {"images": images}),
    }
    if runtimes is not None:
        from gatewise.exporting.runtime_bench import bench_runtimes

        options |= {"runtimes": _names(runtimes), "precisions": _names(precisions), "plain": plain}
        results = bench_runtimes(run, out, **options)
    elif plain is not None or precisions != "float32":
        raise errors.InvalidValueError("--plain and --precisions are for --runtimes. Give it too, or omit them.")
    else:
        results = bench_run(run, out, **options)
    if json_output:
        print_json(results)
        return
    files = _print_forms(results) if runtimes is None else _print_runtimes(results)
    print(f"{results['environment']['hardware']}; {results['verdict']}")
    print(f"written: {', '.join(str(((out or run) / file).resolve()) for file in files)}")


def _print_forms(results: dict[str, Any]) -> list[str]:
    """Print the times of all forms in PyTorch; return the names of the written files."""
    from gatewise.analysis.benchmark import table

    print_table(table(results))
    macs = results["macs"]
    if "executed" in macs:
        print("dense: all filters, no gater; masked: all filters, multiplied by the gates; skipped: open filters only")
        print(
            f"{macs['executed'] / 1e6:.2f} M multiply-adds per image (open filters and gater), "
            f"{macs['dense'] / 1e6:.2f} M dense"
        )
    for form, reason in results.get("omitted", {}).items():
        print(f"{form} was not timed: {reason}")
    return ["bench.json", "bench.svg"] if "curve" in results else ["bench.json"]


def _print_runtimes(results: dict[str, Any]) -> list[str]:
    """Print the times of all forms in each runtime; return the names of the written files."""
    from gatewise.exporting.runtime_bench import FILE
    from gatewise.exporting.runtimes import PRECISIONS
    from gatewise.training import score_named

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
    return [FILE]


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


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _batch_sizes(text: str) -> list[int]:
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise errors.InvalidValueError(f"--batch-sizes must be integers from 1 on, such as 1,8,32, got {text!r}.")
    return [*map(int, sizes)]
