"""Export a trained run to one file, and check that the file computes the same outputs as the network."""

import io
import json
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import FORMAT, write_atomically
from gatewise.core.types import Output
from gatewise.exporting.int8 import to_int8
from gatewise.exporting.reader import FILE_FORMAT, KEY, opened
from gatewise.gaternet import GaterNet, run_with_gates
from gatewise.inference import ConditionalNet, compact
from gatewise.training import Progress
from gatewise.training.runs import Run

_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
FORMS = ("masked", "compact", "skip")
_DETAILS = ("task", "classes", "mean", "std", "image_size", "in_chans", "spec")
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
    dynamic; for segmentation networks H and W are too. The outputs are "logits" and, for a GaterNet, "gates". The
    metadata also has the classes, versions and opset: read it with `details_of` from ONNX, and with
    `torch.export.load(file, extra_files={"gatewise": ""})` from an archive of torch.export.

    Args:
        folder: folder of a finished run.
        out: file to write, *.onnx or *.pt2.
        to: "onnx", or "torch" (an archive of torch.export).
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
            form compact or skip is used without a gater, or int8 with torch or with form skip.
        TrainingError: the outputs of the file differ from those of the network; `out` is then not written.
    """
    out = Path(out)
    _check_format(out, to, form, int8=int8)
    _validation.check_integer_at_least(2, images=images)
    _validation.check_integer_at_least(1, calibration=calibration)
    say = (progress or Progress(quiet=True)).say
    run = _open(folder, data, form)
    reference = in_form(run, "compact" if form == "compact" else "masked", say)
    network = in_form(run, form, say) if form == "skip" else reference
    say(f"exporting to {to}")
    details = _details(run, form) | ({"int8": {"calibration": calibration}} if int8 else {})
    try:
        program = exported_program(network, next(iter(run.first(2))), free_size=run.task.any_size)
        content = _CONTENTS[to](program, details)
    except errors.GatewiseError:
        raise
    except Exception as error:  # an operation that this version of torch cannot export
        reason = " ".join(str(error).split())[:200]
        raise errors.InvalidValueError(
            f"torch cannot write this network for {to} ({type(error).__name__}: {reason}). Choose another "
            f"format (to) or form."
        ) from None
    with _temporary_file(out) as file:
        write_atomically(file, content)
        say("comparing with the network")
        results = _check_agreement(out, agreement(reference, _reopened(file, to), run.first(images)))
        if int8:
            say("quantising")
            results |= _quantised(file, run, calibration)
        write_atomically(out, file.read_bytes())
    return {"file": str(out), "to": to, "form": form, "bytes": out.stat().st_size, **results}


def _check_format(out: Path, to: str, form: str, *, int8: bool) -> None:
    _validation.check_one_of("format", to, _SUFFIXES)
    _validation.check_one_of("form", form, FORMS)
    if int8 and (to != "onnx" or form == "skip"):
        raise errors.InvalidValueError(f"int8 needs format onnx and form masked or compact, got {to} and {form}.")
    if out.suffix != _SUFFIXES[to]:
        raise errors.InvalidValueError(
            f"a file of format {to} must be named *{_SUFFIXES[to]}, got {out.name}. Rename it."
        )


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


def _reopened(file: Path, to: str) -> Callable[[Tensor], Any]:
    """Return the network of a file that was just written; torch.export.load executes code, so open no other files."""
    return opened(file) if to == "onnx" else torch.export.load(file).module()


def _check_agreement(out: Path, results: dict[str, Any]) -> dict[str, Any]:
    if results["difference"] > _TOLERANCE or results["flipped"] > _FLIPPED * results["images"]:
        raise errors.TrainingError(
            f"{out} was not written: on {results['images']} images its logits differ by up to "
            f"{results['difference']:.1e} of the largest logit (allowed {_TOLERANCE:g}), and the gates of "
            f"{results['flipped']} images differ. Please report this network."
        )
    return results


def _quantised(file: Path, run: Run, calibration: int) -> dict[str, Any]:
    """Quantise a file to int8; return the scores before and after, and the fraction of images whose gates differ."""
    plain = opened(file)
    to_int8(file, run.of("train").first(calibration))
    small = opened(file)
    flipped = agreement(plain, small, run.first())["flipped"]
    scores = {"float32": _score(plain, run), "int8": _score(small, run)}
    return {"score": run.score.name, **scores, "other_gates": flipped / len(run.images or ())}


def _score(exported: Callable[[Tensor], Any], run: Run) -> float:
    """Return the main metric of the run on all its validation images."""
    evaluation = run.new_results()
    for images, labels in run.batches():
        evaluation.update(_as_pair(exported(images))[0], labels)
    return evaluation.results()[run.score.name]


def in_form(run: Run, form: str, say: Callable[[str], None]) -> nn.Module:
    """Return a run's network in the given form, in eval mode."""
    model: Any = run.model.eval()
    if form == "skip":
        return ConditionalNet(model).eval()
    if form == "compact":
        say("finding constant gates")
        model = compact(model, run.of("train").first()).eval()
    return WithGates(model).eval()


def exported_program(network: nn.Module, example: Tensor, *, free_size: bool) -> Any:
    """Export a network with a dynamic batch size and, if `free_size`, dynamic height and width."""
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=2**16)}
    if free_size:
        free |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=(free,), strict=False)


def _onnx(program: Any, details: dict[str, Any]) -> bytes:
    _validation.import_optional("onnxscript", "export to ONNX")
    names = ["logits", "gates"][: len(program.graph_signature.user_outputs)]
    exported = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["image"], output_names=names)
    proto: Any = exported.model_proto  # type: ignore[union-attr]
    versions = {"torch": torch.__version__, "opset": proto.opset_import[0].version}
    proto.metadata_props.add(key=KEY, value=json.dumps({FORMAT: FILE_FORMAT, **details, "versions": versions}))
    return proto.SerializeToString()


def _torch(program: Any, details: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    extra = {KEY: json.dumps({FORMAT: FILE_FORMAT, **details, "versions": {"torch": torch.__version__}})}
    torch.export.save(program, buffer, extra_files=extra)
    return buffer.getvalue()


_CONTENTS: dict[str, Callable[[Any, dict[str, Any]], bytes]] = {"onnx": _onnx, "torch": _torch}


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
