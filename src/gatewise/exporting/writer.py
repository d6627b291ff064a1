"""Export a network, or that of a run, to one file, and check that the file computes the same outputs."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import check_file_writable
from gatewise.core.hooks import FORWARD_OF_ACCELERATE
from gatewise.core.loaders import Loader, batches_of, first_batches
from gatewise.core.types import main_output, tensors_of
from gatewise.exporting.formats.registry import Format, describe_formats, format_named, format_of, formats
from gatewise.exporting.forms import chosen_form
from gatewise.exporting.job import Job
from gatewise.exporting.pixel_scale import check_pixel_scale
from gatewise.exporting.quantisation import Int8
from gatewise.gaternet.given_routes import routes_from_gates
from gatewise.graph import evaluation_mode
from gatewise.graph.structural_copy import full_copy
from gatewise.inference.routed import Chooser, RoutedNet
from gatewise.inference.wrappers import unwrapped
from gatewise.training import Progress
from gatewise.training.runs import Run

_OTHER_PRECISIONS = (torch.float16, torch.bfloat16, torch.float64)
_DETAILS = ("task", "classes", "mean", "std", "image_size", "in_chans", "pixels", "spec")


def export(
    model: nn.Module,
    out: str | Path,
    *,
    example: Tensor,
    form: str | None = None,
    to: str | None = None,
    loader: Loader | None = None,
    int8: Loader | None = None,
    routes: Tensor | None = None,
    split: bool = False,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    any_size: bool = False,
    images: int = 256,
    calibration: int = 512,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Export any network to one file, reopen the file, and compare it with the network; the network does not change.

    The network may have gates of `insert_gates`, be a `GaterNet` or a compacted one, or have no gates. It may have been
    trained by any program. `export_run` documents the file and the forms.

    Args:
        model: the network, with one tensor as output, which is exported in eval mode, on the CPU and in float32.
        out: file to write, with the suffix of the format.
        example: images (N, C, H, W), or with one or three axes in place of H and W, as the network takes them.
        form: "masked", or for a `GaterNet` also "compact", "skip" or "routes"; None is "routes" for a net that has
            routes or is given some, and otherwise "masked".
        to: a registered format; None is that of the suffix.
        loader: batches of images on which the file is compared with the network, and over which the form "compact"
            finds constant gates. None takes the example.
        int8: batches of images over which the range of each activation is measured; None does not quantise.
        routes: for the form "routes" of a net that was trained without: whether each gate is open, (K, gates), bool. An
            image takes the route that agrees with most of its gates.
        split: for the form "routes": write a file for each route, NAME.route0.onnx and so on, and NAME.chooser.onnx.
        classes: names of the classes; `gatewise predict` needs them, mean and std.
        mean: means of the channels that were subtracted from pixels, which are 0 to 255.
        std: standard deviations by which these were divided.
        any_size: whether the file takes images of any height and width, and volumes of any depth.
        images: number of images on which outputs are compared.
        calibration: number of images of `int8` that are used.
        progress: where to show progress; None shows nothing.

    Returns:
        As `export_run`, but without scores. With int8 also "int8_difference", the largest difference of logits between
        both files over images with equal gates, relative to the largest logit.

    Raises:
        InvalidTypeError: `model` is no module, a skipping network or one of torch.jit, or a loader gives no images.
        InvalidValueError: the format or form is unknown or does not fit, the network has several outputs or one without
            an entry for each image, or classes, mean or std do not fit.
        TrainingError: the outputs of the file differ from those of the network; `out` is then not written.
    """
    out, net = Path(out), unwrapped("export", model)
    if isinstance(net, torch.jit.ScriptModule):
        raise errors.InvalidTypeError(
            "export expects a network in Python, got one of torch.jit, which cannot be traced again. Export the "
            "network that it was made from."
        )
    named = format_of(out) if to is None else None
    chosen = _checked_format(out, named.name if named else to or "onnx")
    _validation.check_integer_at_least(1, images=images, calibration=calibration)
    form = chosen_form(type(net).__name__, net, form, of_routes={"routes": routes is not None, "split": split})
    _check_format_has(chosen, form, int8=int8 is not None)
    (batch, _), *_ = batches_of([example], "export")
    batch = _image_values(batch)
    compared = _images_of(batch if loader is None else loader, images, "export")
    if form == "compact" and loader is None:
        warnings.warn(
            f"gates that are the same for all {len(batch)} images of the example are frozen in the file. Give loader=, "
            f"with images like those that the network will get.",
            stacklevel=2,
        )
    ranges = None if int8 is None else _images_of(int8, calibration, "export, int8")
    routes = None if routes is None else routes.cpu()
    net = _in_float32(net)
    with evaluation_mode(net):
        output = _checked_output(net, batch)
        details = _details_of_network(batch, output, classes, mean, std)
        job = Job(net, batch, compared, compared if loader is None else loader, details, any_size=any_size)
        return _written(
            job, out, chosen, form, None if ranges is None else Int8(ranges, compared), progress, routes, split
        )


def export_run(
    folder: str | Path,
    out: str | Path,
    *,
    to: str = "onnx",
    form: str | None = None,
    images: int = 256,
    int8: bool = False,
    routes: int | None = None,
    split: bool = False,
    calibration: int = 512,
    constant: int | None = None,
    data: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Export a run's network to one file, reopen the file, and compare it with the network on validation images.

    The input of the file is "image", float32 (N, C, H, W), normalised with the mean and std in its metadata. N is
    dynamic; for segmentation networks H and W are too. The outputs are "logits" (for numbers "values", in their unit)
    and, for a GaterNet, "gates". The metadata also has the classes and versions: read it with `details_of`, and with
    `torch.export.load(file, extra_files={"gatewise": ""})` from an archive of torch.export.

    Args:
        folder: folder of a finished run.
        out: file to write, with the suffix of the format.
        to: a registered format: "onnx", or "torch" (an archive of torch.export, *.pt2).
        form: "masked" computes all filters and multiplies them by the gates; "compact" first removes the filters that
            are closed for all training images, and freezes the gates that are always open; "skip" selects the open
            filters inside the graph, so that a batch computes only filters that are open for one of its images;
            "routes", for a network with routes, has a dense network for each route and runs those that images take.
            None is "routes" for a network that has routes or is given some, and otherwise "masked".
        images: number of validation images to compare on.
        int8: quantise the exported file to int8, and compute the score before and after on all validation images.
        routes: for the form "routes" of a network that was trained without: number of routes, which are found by
            clustering the gates of the training images. `train` with these weights as `init` and as many routes
            trains them further.
        split: for the form "routes": write a file for each route, NAME.route0.onnx and so on, and NAME.chooser.onnx.
        calibration: number of training images over which the range of each activation is measured, for int8.
        constant: number of training images over which constant gates are found for the form "compact"; None takes all.
        data: data set to use instead of the run's own.
        progress: where to show progress; None shows nothing.

    Returns:
        "file", "to", "form", "bytes"; "images"; "difference", the largest difference of logits over images with equal
        gates, relative to the largest logit; "flipped", the number of images with different gates; "kinds", the number
        of distinct gate vectors. With int8 also "score" (name of the metric), "float32" and "int8" (its values),
        "int8_difference", the difference of logits between both files, and "other_gates", the fraction of validation
        images whose gates differ between both. With form routes "routes",
        their number, and "images_of_routes". With `routes` also "score", and "masked" and "routed", its values for the
        network and for the same with these routes; "routes" is smaller than asked for if clusters have equal routes.

    Raises:
        ValueError: the format or form is unknown, the suffix of `out` does not match the format, the run has no images,
            form compact or skip is used without a gater, or int8 with form skip or a format without int8.
        TrainingError: the outputs of the file differ from those of the network; `out` is then not written.
    """
    out = Path(out)
    chosen = _checked_format(out, to)
    _validation.check_integer_at_least(2, images=images)
    _validation.check_integer_at_least(1, calibration=calibration)
    run = _open(folder, data)
    form = chosen_form(str(folder), run.model, form, of_routes={"routes": routes is not None, "split": split})
    _check_format_has(chosen, form, int8=int8)
    details = _details(run) | ({"int8": {"calibration": calibration}} if int8 else {})
    job = Job(
        run.model.eval(),
        next(iter(run.first(2))),
        run.first(images),
        run.of("train").first(constant),
        details,
        run.task.output,
        any_size=run.task.any_size,
        readable=None if run.task.output == "logits" else run.task.readable,
    )
    quantising = Int8(run.of("train").first(calibration), run.first(), run) if int8 else None
    patterns = _routes(run, routes, (progress or Progress(quiet=True)).say)
    results = _written(job, out, chosen, form, quantising, progress, patterns, split)
    return results if patterns is None else results | _cost_of_routes(run, patterns)


def _routes(run: Run, count: int | None, say: Callable[[str], None]) -> Tensor | None:
    """Return the different routes that the gates of a network's training images form; None without a number."""
    if count is None:
        return None
    _validation.check_integer_at_least(1, routes=count)
    net: Any = run.model
    if net.routes is not None or net.is_local:
        raise errors.InvalidValueError(
            "a number of routes is for a network whose gater decides each gate. Omit it, or choose another run."
        )
    found = cast(Tensor, routes_from_gates(net, run.of("train").first(), count).unique(dim=0))
    if len(found) < count:
        say(f"{count} clusters of images form {len(found)} different route{'s' if len(found) > 1 else ''}")
    return found


@torch.no_grad()
def _cost_of_routes(run: Run, patterns: Tensor) -> dict[str, Any]:
    """Return the score on all validation images of a network as it is, and with the nearest of some routes."""
    net: Any = run.model
    chooser = Chooser(net, patterns)
    own, routed = run.new_results(), run.new_results()
    for images, labels in run.batches():
        own.update(main_output(net(images)), labels)
        routed.update(main_output(net(images, chooser(images)[1])), labels)
    name = run.score.name
    return {"score": name, "masked": own.results()[name], "routed": routed.results()[name]}


def _written(
    job: Job,
    out: Path,
    chosen: Format,
    form: str,
    int8: Int8 | None,
    progress: Progress | None,
    routes: Tensor | None,
    split: bool,
) -> dict[str, Any]:
    """Write a file in its form."""
    say = (progress or Progress(quiet=True)).say
    if form != "routes":
        return job.write(out, chosen, form, int8, say)
    say("building the network of each route")
    return job.write_routes(out, chosen, RoutedNet(job.net, routes), int8, say, split=split)


def _checked_format(out: Path, to: str) -> Format:
    """Return a format; raise `InvalidValueError` if it is unknown or the file has another suffix."""
    chosen = format_named(to)
    if out.suffix != chosen.suffix:
        raise errors.InvalidValueError(
            f"a file of format {to} must be named *{chosen.suffix}, got {out.name}. Rename it, or choose another "
            f"format (to): {describe_formats()}."
        )
    check_file_writable(out)
    return chosen


def _check_format_has(chosen: Format, form: str, *, int8: bool) -> None:
    """Raise `InvalidValueError` if a format does not have a form, or not in int8."""
    if form == "routes" and not chosen.composes:
        able = " or ".join(each.name for each in formats() if each.composes)
        raise errors.InvalidValueError(f"form routes needs format {able}, got {chosen.name}.")
    if int8 and (not chosen.quantises or form == "skip"):
        able = " or ".join(each.name for each in formats() if each.quantises)
        raise errors.InvalidValueError(
            f"int8 needs format {able} and form masked, compact or routes, got {chosen.name} and {form}."
        )


def _images_of(loader: Loader | Tensor, count: int, owner: str) -> list[Tensor]:
    """Return the first images of a loader in batches, as a file takes them."""
    return [_image_values(images) for images, _ in first_batches(loader, count, owner)]


def _image_values(images: Tensor) -> Tensor:
    """Return images as a file takes them: on the CPU, in float32; integers stay integers."""
    values = images.cpu()
    return values.float() if values.is_floating_point() else values


def _in_float32(net: nn.Module) -> nn.Module:
    """Return the network on the CPU and in float32, without autocast around it; a copy where that changes it."""
    mixed = FORWARD_OF_ACCELERATE in vars(net)
    tensors = (*net.parameters(), *net.buffers())
    if not mixed and all(t.device.type == "cpu" and t.dtype not in _OTHER_PRECISIONS for t in tensors):
        return net
    net = full_copy(net).cpu().float()
    if mixed:
        net.forward = vars(net).pop(FORWARD_OF_ACCELERATE)
    return net


def _open(folder: str | Path, data: str | None) -> Run:
    """Open a run with its images, on the CPU."""
    run = Run.open(folder, data).checked()
    run.check_has_images(" to compare outputs")
    run.model.cpu()
    return run


def _details(run: Run) -> dict[str, Any]:
    """Return the metadata of a run to store in a file, without form and versions."""
    known = {key: run.config[key] for key in _DETAILS if key in run.config}
    return {**known, "run": run.name, "scale": run.source.image_size}


def _checked_output(net: nn.Module, images: Tensor) -> Tensor:
    """Return the output of a network; raise `InvalidValueError` if it has several, or no entry for each image."""
    name = type(net).__name__
    found: list[Tensor] = []
    for batch in (images[:1], images):  # an output that is squeezed has another shape for one image
        with torch.no_grad():
            found = tensors_of(net(batch))
        if len(found) != 1:
            raise errors.InvalidValueError(
                f"export writes networks whose output is one tensor, but {name} returns {len(found)}. Wrap it in a "
                f"module whose forward returns one of them."
            )
        if found[0].shape[:1] != batch.shape[:1]:
            raise errors.InvalidValueError(
                f"export writes networks whose output has an entry for each image along its first axis, but {name} "
                f"returns shape {tuple(found[0].shape)} for {len(batch)} image{'s' if len(batch) > 1 else ''}. Wrap "
                f"it in a module whose forward reshapes the output."
            )
    return found[0]


def _details_of_network(
    images: Tensor,
    output: Tensor,
    classes: Sequence[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> dict[str, Any]:
    """Return the metadata of a network without a run, as far as it is known."""
    if classes is not None and output.dim() < 2:
        raise errors.InvalidValueError(
            f"classes need an output of one number for each class, (N, {len(classes)}), but that of the network has "
            f"shape {tuple(output.shape)}. Omit classes, or wrap the network in a module that returns them."
        )
    if classes is not None and len(classes) != output.shape[1]:
        raise errors.InvalidValueError(
            f"the network has {output.shape[1]} outputs and {len(classes)} classes are given. Give a name for each."
        )
    given = {"classes": classes, "mean": mean, "std": std}
    known: dict[str, Any] = {name: list(values) for name, values in given.items() if values is not None}
    check_pixel_scale(images.shape[1], mean, std)
    if classes is not None:
        known["task"] = "segment" if output.dim() == images.dim() else "classify"
    if images.dim() == 4:  # signals and volumes are no image files, which are scaled to a size
        known["image_size"] = list(images.shape[2:])
    return {**known, "in_chans": images.shape[1]}
