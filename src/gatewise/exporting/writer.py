"""Export a trained run to one file, and check that the file computes the same outputs as the network."""

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import write_atomically
from gatewise.core.reasons import as_data_error
from gatewise.core.types import Output
from gatewise.exporting.formats.registry import Exported, Format, describe_formats, format_named, formats
from gatewise.gaternet import GaterNet, run_with_gates
from gatewise.inference import ConditionalNet, compact
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
        return output if gates is None else (output, gates)


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
    say = (progress or Progress(quiet=True)).say
    run = _open(folder, data, form)
    reference = in_form(run, "compact" if form == "compact" else "masked", say)
    network = in_form(run, form, say) if form == "skip" else reference
    say(f"exporting to {to}")
    details = _details(run, form) | ({"int8": {"calibration": calibration}} if int8 else {})
    failed = f"cannot write this network for {to}"  # an operation that torch or the format does not have
    with as_data_error("torch", failed, "Choose another format (to) or form.", kind=errors.InvalidValueError):
        program = exported_program(network, next(iter(run.first(2))), free_size=run.task.any_size)
        content = chosen.write(program, details, run.task.output)
    with _temporary_file(out) as file:
        write_atomically(file, content)
        say("comparing with the network")
        results = _check_agreement(out, agreement(reference, chosen.open(file), run.first(images)))
        if int8:
            say("quantising")
            results |= _quantised(file, chosen, run, calibration)
        write_atomically(out, file.read_bytes())
    return {"file": str(out), "to": to, "form": form, "bytes": out.stat().st_size, **results}


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


def _details(run: Run, form: str) -> dict[str, Any]:
    """Return the metadata to store in a file, without versions."""
    known = {key: run.config[key] for key in _DETAILS if key in run.config}
    return {**known, "form": form, "run": run.name, "scale": run.source.image_size}


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


def _quantised(file: Path, chosen: Format, run: Run, calibration: int) -> dict[str, Any]:
    """Quantise a file to int8; return the scores before and after, and the fraction of images whose gates differ."""
    plain = chosen.open(file)
    chosen.quantise(file, run.of("train").first(calibration))
    small = chosen.open(file)
    flipped = agreement(plain, small, run.first())["flipped"]
    scores = {"float32": _score(plain, run), "int8": _score(small, run)}
    return {"score": run.score.name, **scores, "other_gates": flipped / len(run.images or ())}


def _score(exported: Exported, run: Run) -> float:
    """Return the main metric of the run on all its validation images, from the output of an exported file."""
    evaluation = stored_task(exported.file, exported.details).new_results(torch.device("cpu"))
    for images, labels in run.batches():
        evaluation.update(_as_pair(exported(images))[0], labels)
    return evaluation.results()[run.score.name]


def in_form(run: Run, form: str, say: Callable[[str], None]) -> nn.Module:
    """Return a run's network in the given form, in eval mode."""
    model: Any = run.model.eval()
    if form == "skip":
        return _readable(run, ConditionalNet(model))
    if form == "compact":
        say("finding constant gates")
        model = compact(model, run.of("train").first()).eval()
    return _readable(run, WithGates(model))


def _readable(run: Run, network: nn.Module) -> nn.Module:
    """Return the network with the output that the run's task gives to exported files, in eval mode."""
    return (network if run.task.output == "logits" else _Readable(network, run.task.readable)).eval()


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
