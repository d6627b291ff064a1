"""Export a network, or that of a run, to one file, and check that the file computes the same outputs."""

import copy
import functools
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import write_atomically
from gatewise.core.loaders import Loader, batches_of, first_batches
from gatewise.core.reasons import as_data_error
from gatewise.core.types import Output, main_output, tensors_of
from gatewise.exporting.formats.registry import Exported, Format, describe_formats, format_named, format_of, formats
from gatewise.exporting.pixel_scale import check_pixel_scale
from gatewise.gaternet import GaterNet, run_with_gates
from gatewise.graph import evaluation_mode
from gatewise.inference import ConditionalNet, compact
from gatewise.inference.wrappers import unwrapped
from gatewise.training import Progress
from gatewise.training.runs import Run, stored_task

FORMS = ("masked", "compact", "skip")
_DETAILS = ("task", "classes", "mean", "std", "image_size", "in_chans", "pixels", "spec")
_TOLERANCE = 1e-3  # largest difference of logits, relative to the largest logit
_FLIPPED = 0.01  # fraction of images that may have different gates, because a gate logit near 0 is rounded differently


class WithGates(nn.Module):
    """Wrap a network for export: (N, C, H, W) -> logits, or (logits, gates) for a GaterNet."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Output:
        output, gates = run_with_gates(self.network, image)
        return main_output(output) if gates is None else (main_output(output), gates)


def export(
    model: nn.Module,
    out: str | Path,
    *,
    example: Tensor,
    form: str = "masked",
    to: str | None = None,
    loader: Loader | None = None,
    int8: Loader | None = None,
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
        model: the network, with one tensor as output, which is exported in eval mode on the CPU.
        out: file to write, with the suffix of the format.
        example: images (N, C, H, W) as the network takes them.
        form: "masked", or for a `GaterNet` also "compact" or "skip".
        to: a registered format; None is that of the suffix.
        loader: batches of images on which the file is compared with the network, and over which the form "compact"
            finds constant gates. None takes the example.
        int8: batches of images over which the range of each activation is measured; None does not quantise.
        classes: names of the classes; `gatewise predict` needs them, mean and std.
        mean: means of the channels that were subtracted from pixels, which are 0 to 255.
        std: standard deviations by which these were divided.
        any_size: whether the file takes images of any height and width.
        images: number of images on which outputs are compared.
        calibration: number of images of `int8` that are used.
        progress: where to show progress; None shows nothing.

    Returns:
        As `export_run`, but without scores. With int8 also "int8_difference", the largest difference of logits between
        both files over images with equal gates, relative to the largest logit.

    Raises:
        InvalidTypeError: `model` is no module or a skipping network, or a loader gives no images.
        InvalidValueError: the format or form is unknown or does not fit, the network has several outputs, or classes,
            mean or std do not fit.
        TrainingError: the outputs of the file differ from those of the network; `out` is then not written.
    """
    out, net = Path(out), unwrapped("export", model)
    named = format_of(out) if to is None else None
    chosen = _checked_format(out, named.name if named else to or "onnx", form, int8=int8 is not None)
    _validation.check_integer_at_least(1, images=images, calibration=calibration)
    if form != "masked" and not isinstance(net, GaterNet):
        raise errors.InvalidValueError(
            f"{type(net).__name__} has no gater, so it has only the form masked. Give form='masked'."
        )
    (batch, _), *_ = batches_of([example], "export")
    compared = [part for part, _ in first_batches(batch if loader is None else loader, images, "export")]
    if form == "compact" and loader is None:
        warnings.warn(
            f"gates that are the same for all {len(batch)} images of the example are frozen in the file. Give loader=, "
            f"with images like those that the network will get.",
            stacklevel=2,
        )
    ranges = None if int8 is None else [part for part, _ in first_batches(int8, calibration, "export, int8")]
    if any(parameter.device.type != "cpu" for parameter in net.parameters()):
        net = copy.deepcopy(net).cpu()
    with evaluation_mode(net):
        output = _checked_output(net, batch)
        details = _details_of_network(batch, output, classes, mean, std)
        job = _Job(net, batch, compared, compared if loader is None else loader, details, any_size=any_size)
        quantise = None if ranges is None else functools.partial(_quantised, chosen, ranges, compared)
        return job.write(out, chosen, form, quantise, progress)


class _Readable(nn.Module):
    """Apply a function to the first output of a network, such as that from logits to numbers in their unit."""

    def __init__(self, network: nn.Module, readable: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.readable = network, readable

    def forward(self, image: Tensor) -> Output:
        logits, gates = _as_pair(self.network(image))
        output = self.readable(logits)
        return output if gates is None else (output, gates)


def export_run(
    folder: str | Path,
    out: str | Path,
    *,
    to: str = "onnx",
    form: str = "masked",
    images: int = 256,
    int8: bool = False,
    calibration: int = 512,
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
            filters inside the graph, so that a batch computes only filters that are open for one of its images.
        images: number of validation images to compare on.
        int8: quantise the exported file to int8, and compute the score before and after on all validation images.
        calibration: number of training images over which the range of each activation is measured, for int8.
        data: data set to use instead of the run's own.
        progress: where to show progress; None shows nothing.

    Returns:
        "file", "to", "form", "bytes"; "images"; "difference", the largest difference of logits over images with equal
        gates, relative to the largest logit; "flipped", the number of images with different gates; "kinds", the number
        of distinct gate vectors. With int8 also "score" (name of the metric), "float32" and "int8" (its values), and
        "other_gates", the fraction of validation images whose gates differ between both.

    Raises:
        ValueError: the format or form is unknown, the suffix of `out` does not match the format, the run has no images,
            form compact or skip is used without a gater, or int8 with form skip or a format without int8.
        TrainingError: the outputs of the file differ from those of the network; `out` is then not written.
    """
    out = Path(out)
    chosen = _checked_format(out, to, form, int8=int8)
    _validation.check_integer_at_least(2, images=images)
    _validation.check_integer_at_least(1, calibration=calibration)
    run = _open(folder, data, form)
    details = _details(run) | ({"int8": {"calibration": calibration}} if int8 else {})
    job = _Job(
        run.model.eval(),
        next(iter(run.first(2))),
        run.first(images),
        run.of("train").first(),
        details,
        run.task.output,
        any_size=run.task.any_size,
        readable=None if run.task.output == "logits" else run.task.readable,
    )
    quantise = functools.partial(_quantised_and_scored, chosen, run, calibration) if int8 else None
    return job.write(out, chosen, form, quantise, progress)


@dataclass(frozen=True)
class _Job:
    """A network to export.

    Attributes:
        net: the network, in eval mode on the CPU.
        example: images with which it is traced.
        compared: images on which its outputs are compared.
        constant: images over which constant gates are found.
        details: metadata to store, without the form.
        output: name of the first output in the file.
        any_size: whether images may have any height and width.
        readable: function from the logits to the first output of the file; None keeps them.
    """

    net: Any
    example: Tensor
    compared: Iterable[Tensor]
    constant: Loader
    details: dict[str, Any]
    output: str = "logits"
    any_size: bool = False
    readable: Callable[[Tensor], Tensor] | None = None

    def write(
        self,
        out: Path,
        chosen: Format,
        form: str,
        quantise: Callable[[Path], dict[str, Any]] | None,
        progress: Progress | None,
    ) -> dict[str, Any]:
        """Write the file if its outputs are those of the network, and return the results of `export_run`."""
        say = (progress or Progress(quiet=True)).say
        reference = self._in_form("compact" if form == "compact" else "masked", say)
        network = self._in_form(form, say) if form == "skip" else reference
        say(f"exporting to {chosen.name}")
        failed = f"cannot write this network for {chosen.name}"  # an operation that torch or the format does not have
        example = self.example if len(self.example) > 1 else torch.cat([self.example, self.example])
        with as_data_error("torch", failed, "Choose another format (to) or form.", kind=errors.InvalidValueError):
            program = exported_program(network, example, free_size=self.any_size)
            content = chosen.write(program, {**self.details, "form": form}, self.output)
        with _temporary_file(out) as file:
            write_atomically(file, content)
            say("comparing with the network")
            results = _check_agreement(out, agreement(reference, chosen.open(file), self.compared))
            if quantise is not None:
                say("quantising")
                results |= quantise(file)
            write_atomically(out, file.read_bytes())
        return {"file": str(out), "to": chosen.name, "form": form, "bytes": out.stat().st_size, **results}

    def _in_form(self, form: str, say: Callable[[str], None]) -> nn.Module:
        """Return the network in the given form, with the outputs of the file, in eval mode."""
        network: nn.Module
        if form == "skip":
            network = ConditionalNet(self.net)
        elif form == "compact":
            say("finding constant gates")
            network = WithGates(compact(self.net, self.constant))
        else:
            network = WithGates(self.net)
        return (network if self.readable is None else _Readable(network, self.readable)).eval()


def _checked_format(out: Path, to: str, form: str, *, int8: bool) -> Format:
    chosen = format_named(to)
    _validation.check_one_of("form", form, FORMS)
    if int8 and (not chosen.quantises or form == "skip"):
        able = " or ".join(each.name for each in formats() if each.quantises)
        raise errors.InvalidValueError(f"int8 needs format {able} and form masked or compact, got {to} and {form}.")
    if out.suffix != chosen.suffix:
        raise errors.InvalidValueError(
            f"a file of format {to} must be named *{chosen.suffix}, got {out.name}. Rename it, or choose another "
            f"format (to): {describe_formats()}."
        )
    return chosen


def _open(folder: str | Path, data: str | None, form: str) -> Run:
    """Open a run with its images, on the CPU."""
    run = Run.open(folder, data).checked()
    run.check_has_images(" to compare outputs")
    if form != "masked" and not isinstance(run.model, GaterNet):
        raise errors.InvalidValueError(f"{folder} has no gater, so it has only the form masked. Give --form masked.")
    run.model.cpu()
    return run


def _details(run: Run) -> dict[str, Any]:
    """Return the metadata of a run to store in a file, without form and versions."""
    known = {key: run.config[key] for key in _DETAILS if key in run.config}
    return {**known, "run": run.name, "scale": run.source.image_size}


def _checked_output(net: nn.Module, images: Tensor) -> Tensor:
    """Return the output of a network; raise `InvalidValueError` if it has several."""
    with torch.no_grad():
        found = tensors_of(net(images))
    if len(found) != 1:
        raise errors.InvalidValueError(
            f"export writes networks whose output is one tensor, but {type(net).__name__} returns {len(found)}. Wrap "
            f"it in a module whose forward returns one of them."
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
    if classes is not None and len(classes) != output.shape[1]:
        raise errors.InvalidValueError(
            f"the network has {output.shape[1]} outputs and {len(classes)} classes are given. Give a name for each."
        )
    given = {"classes": classes, "mean": mean, "std": std}
    known: dict[str, Any] = {name: list(values) for name, values in given.items() if values is not None}
    check_pixel_scale(images.shape[1], mean, std)
    if classes is not None:
        known["task"] = "segment" if output.dim() == 4 else "classify"
    return {**known, "image_size": list(images.shape[2:]), "in_chans": images.shape[1]}


@contextmanager
def _temporary_file(out: Path) -> Generator[Path]:
    """Yield the path of a temporary file next to `out`, which is deleted at the end."""
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _check_agreement(out: Path, results: dict[str, Any]) -> dict[str, Any]:
    if results["difference"] > _TOLERANCE or results["flipped"] > _FLIPPED * results["images"]:
        raise errors.TrainingError(
            f"{out} was not written: on {results['images']} images its logits differ by up to "
            f"{results['difference']:.1e} of the largest logit (allowed {_TOLERANCE:g}), and the gates of "
            f"{results['flipped']} images differ. Please report this network."
        )
    return results


def _quantised(chosen: Format, ranges: Iterable[Tensor], compared: Iterable[Tensor], file: Path) -> dict[str, Any]:
    """Quantise a file to int8, and return how far its outputs and gates are from those before."""
    plain = chosen.open(file)
    chosen.quantise(file, ranges)
    found = agreement(plain, chosen.open(file), compared)
    return {"int8_difference": found["difference"], "other_gates": found["flipped"] / found["images"]}


def _quantised_and_scored(chosen: Format, run: Run, calibration: int, file: Path) -> dict[str, Any]:
    """Quantise the file of a run to int8; return also the scores before and after on all validation images."""
    before = _score(chosen.open(file), run)
    found = _quantised(chosen, run.of("train").first(calibration), run.first(), file)
    scores = {"float32": before, "int8": _score(chosen.open(file), run)}
    return {"score": run.score.name, **scores, "other_gates": found["other_gates"]}


def _score(exported: Exported, run: Run) -> float:
    """Return the main metric of the run on all its validation images, from the output of an exported file."""
    evaluation = stored_task(exported.file, exported.details).new_results(torch.device("cpu"))
    for images, labels in run.batches():
        evaluation.update(_as_pair(exported(images))[0], labels)
    return evaluation.results()[run.score.name]


def exported_program(network: nn.Module, example: Tensor, *, free_size: bool) -> Any:
    """Export a network with a dynamic batch size and, if `free_size`, dynamic height and width."""
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=2**16)}
    if free_size:
        free |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=(free,), strict=False)


@torch.no_grad()
def agreement(
    network: Callable[[Tensor], Any], other: Callable[[Tensor], Any], batches: Iterable[Tensor]
) -> dict[str, Any]:
    """Compare two networks: the gates, and the logits of images with equal gates.

    Args:
        network: the reference: (N, C, H, W) images -> logits, or (logits, gates).
        other: the network to check, of the same signature.
        batches: images; each batch is run as its first image and as the rest.

    Returns:
        "images", "difference", "flipped" and "kinds"; see `export_run`.
    """
    difference = largest = 0.0
    count = flipped = 0
    kinds: set[bytes] = set()
    for batch in batches:
        for images in (batch[:1], batch[1:]):  # a batch of one image and a larger one
            if not len(images):
                continue
            (expected, gates), (logits, other_gates) = (_as_pair(form(images)) for form in (network, other))
            same = torch.ones(len(images), dtype=torch.bool)
            if gates is not None:
                same = (other_gates == gates).all(1)
                kinds |= {row.numpy().tobytes() for row in gates}
            count, flipped = count + len(images), flipped + int((~same).sum())
            largest = max(largest, float(expected.abs().max()))
            if same.any():
                difference = max(difference, float((logits - expected)[same].abs().max()))
    return {"images": count, "difference": difference / max(largest, 1e-12), "flipped": flipped, "kinds": len(kinds)}


def _as_pair(output: Any) -> tuple[Tensor, Tensor | None]:
    if not isinstance(output, tuple | list):
        return output, None
    logits, gates = cast(Sequence[Tensor], output)
    return logits, gates
