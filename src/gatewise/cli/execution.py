"""The commands that make a trained network smaller or portable: compact and export."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gatewise.cli.app import Integer, Json, OptionalInteger, OwnNetwork, app, literal, print_json
from gatewise.cli.recipe_flags import description


@app.command
def compact(
    run: Path,
    /,
    *,
    out: Path,
    images: OptionalInteger = None,
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
        print_json(metrics)
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
def export(
    run: Path,
    /,
    *,
    out: Path,
    to: Annotated[str, Parameter(help=literal(f"Format of the file: {description()['formats']['written']}."))] = "onnx",
    form: str | None = None,
    images: Integer = 256,
    int8: Annotated[bool, Parameter(negative="")] = False,
    routes: OptionalInteger = None,
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
        print_json(results)
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
