"""The commands that turn closed gates into time saved, here and elsewhere: compact, bench and export."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gatewise import errors
from gatewise.benchmark import bench as bench_run
from gatewise.benchmark import table as bench_table
from gatewise.cli.app import Json, Whole, app, print_table
from gatewise.execution import Compaction
from gatewise.exporting import export_run
from gatewise.run_compaction import compact_run
from gatewise.training import TITLES, Progress


@app.command
def compact(
    run: Path,
    /,
    *,
    out: Path,
    images: Whole | None = None,
    data: str | None = None,
    json_output: Json = False,
) -> None:
    """Take the filters that are closed for all training images out of a run's network, and write it as a new run.

    Example: gatewise compact runs/gater --out runs/gater_compact

    Parameters
    ----------
    run
        The run folder, of a network with a gater.
    out
        The new run folder.
    images
        How many training images decide which gates are constant [all].
    data
        Images in the place of the run's own.
    json_output
        Print the new run's metrics as JSON.
    """
    metrics = compact_run(run, out, images=images, data=data, progress=Progress())
    if json_output:
        print(json.dumps(metrics, indent=2))
        return
    score = metrics["score"]
    print(Compaction.from_dict(metrics["compaction"]))
    print(f"{TITLES[score]} {100 * metrics[f'{score}_before']:.2f} % -> {100 * metrics[score]:.2f} %; run: {out}")


@app.command
def bench(
    run: Path,
    /,
    *,
    out: Path | None = None,
    batch_sizes: str = "1,8,32",
    rounds: Whole = 15,
    threads: Whole | None = None,
    images: Whole = 1000,
    data: str | None = None,
    json_output: Json = False,
) -> None:
    """Time a run's network on this machine: with all filters, multiplied, skipped, compacted; say what to use.

    Example: gatewise bench runs/gater --batch-sizes 1,8

    Parameters
    ----------
    run
        The run folder, of a network with a gater.
    out
        Where to write bench.json and bench.svg [the run folder].
    batch_sizes
        Images at once, separated by commas.
    rounds
        How often each form is timed, in turn.
    threads
        Of torch [as many as it takes by itself].
    images
        Training images over which constant gates are found for compaction.
    data
        Images in the place of the run's own.
    json_output
        Print what bench.json holds.
    """
    sizes = [_number(text) for text in batch_sizes.split(",")]
    options: Any = {"rounds": rounds, "threads": threads, "images": images, "data": data, "progress": Progress()}
    results = bench_run(run, out, batch_sizes=sizes, **options)
    if json_output:
        print(json.dumps(results, indent=2))
        return
    print_table(bench_table(results))
    macs = results["macs"]
    print(f"an image: {macs['executed'] / 1e6:.2f} M of {macs['dense'] / 1e6:.2f} M MACs executed, gater included")
    print(f"{results['environment']['hardware']}; {results['verdict']}")
    print(f"written: {((out or run) / 'bench.json').resolve()}, {((out or run) / 'bench.svg').resolve()}")


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise errors.InvalidValueError(f"--batch-sizes must be whole numbers such as 1,8,32, got {text!r}.") from None


@app.command
def export(
    run: Path,
    /,
    *,
    out: Path,
    to: str = "onnx",
    form: str = "masked",
    images: Whole = 256,
    int8: Annotated[bool, Parameter(negative="")] = False,
    calibration: Whole = 512,
    data: str | None = None,
    json_output: Json = False,
) -> None:
    """Write a run's network as one file for other programs, and compare that with the network on real images.

    Example: gatewise export runs/gater --to onnx --form skip --out gater.onnx

    Parameters
    ----------
    run
        The run folder.
    out
        The file.
    to
        onnx or torch (torch.export's archive).
    form
        masked computes all filters and multiplies, compact removes those that are closed for all training images, skip
        picks the open ones inside the graph.
    images
        Validation images to compare on.
    int8
        Quantise convolutions and matrix products (onnx; masked and compact), and score both on all validation images.
    calibration
        Training images that show the range of each map.
    data
        Images in the place of the run's own.
    json_output
        Print what was found as JSON.
    """
    found = export_run(
        run,
        out,
        to=to,
        form=form,
        images=images,
        int8=int8,
        calibration=calibration,
        data=data,
        progress=Progress(),
    )
    if json_output:
        print(json.dumps(found, indent=2))
        return
    if int8:
        print(
            f"{TITLES[found['score']]}: {100 * found['float32']:.2f} % in float32, {100 * found['int8']:.2f} % in "
            f"int8, where {100 * found['other_gates']:.1f} % of the images have other gates"
        )
    gates = f", {found['kinds']} kinds of gates, {found['flipped']} images with other gates" if found["kinds"] else ""
    print(
        f"{found['images']} images: logits differ by at most {found['difference']:.1e} of the largest{gates}; "
        f"written: {out.resolve()} ({found['bytes'] / 1e6:.2f} MB)"
    )
