"""A trained run as one file that other programs run, and the proof that it does what the network does."""

import io
import json
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise._types import Output
from gatewise.analysis.runs import Run, open_runs
from gatewise.execution import ConditionalNet, compact
from gatewise.exporting.reader import FILE_FORMAT, KEY, opened
from gatewise.files import FORMAT, write_atomically
from gatewise.gaternet import GaterNet
from gatewise.int8 import to_int8
from gatewise.training import Progress

_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
FORMS = ("masked", "compact", "skip")
_DETAILS = ("task", "classes", "mean", "std", "image_size", "in_chans", "spec")
_TOLERANCE = 1e-3  # of the largest logit
_FLIPPED = 0.01  # of the images may have a gate whose logit is so near zero that rounding decides


class WithGates(nn.Module):
    """What is exported: (N, C, H, W) -> logits, and of a GaterNet the gates too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Output:
        return self.network.forward_with_gates(image) if isinstance(self.network, GaterNet) else self.network(image)


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
    """Write a run's network as one file, open that again, and compare it with the network on validation images.

    Args:
        folder: of a finished run.
        out: the file, *.onnx or *.pt2.
        to: "onnx" (for ONNX Runtime and whatever reads ONNX) or "torch" (torch.export's archive).
        form: "masked" computes all filters and multiplies; "compact" first removes those that are closed for all
            training images, and decides no more about those that are always open; "skip" picks the open filters inside
            the graph, so that a batch computes those only that some image of it opens.
        images: validation images to compare on.
        int8: quantise what agreed in float32, and score both on all validation images.
        calibration: training images that show the quantiser the range of each map.
        data: a data set in the place of the run's own.
        progress: where to show progress; None shows nothing.

    The input is "image", float32 (N, C, H, W), normalised with the mean and std that the file holds; N is free, and for
    networks that label pixels H and W too. The outputs are "logits" and, of a GaterNet, "gates". Versions, opset,
    classes and normalisation are in the file: `details_of` reads them from ONNX, and torch.export.load with
    `extra_files={"gatewise": ""}` from its own.

    Returns what was written and how well it agrees: the largest difference of logits as a share of the largest logit,
    over images whose gates are equal; how many images have other gates; how many kinds of gates were seen. With int8
    also the score in float32 and in int8, and on how large a share of the validation images gates differ between both.

    Refused with ValueError: an unknown kind or form, forms compact and skip of a run without a gater, no images, a file
    of another suffix, int8 of an archive of torch or of form skip. With `TrainingError`: a file that does not agree,
    which is not written; an older one stays.
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
        program = exported_program(network, next(iter(run.first(2))), free_size=run.task == "segment")
        content = _CONTENTS[to](program, details)
    except errors.GatewiseError:
        raise
    except Exception as error:  # of operations that torch's writers do not know; torch 2.11 knows none of "skip"
        reason = " ".join(str(error).split())[:200]
        raise errors.InvalidValueError(
            f"torch cannot write this network for {to} ({type(error).__name__}: {reason}). Choose another kind or form."
        ) from None
    with _beside(out) as file:
        write_atomically(file, content)
        say("comparing with the network")
        found = _check_agreement(out, agreement(reference, _reopened(file, to), run.first(images)))
        if int8:
            say("quantising")
            found |= _quantised(file, run, calibration)
        write_atomically(out, file.read_bytes())
    return {"file": str(out), "to": to, "form": form, "bytes": out.stat().st_size, **found}


def _check_format(out: Path, to: str, form: str, *, int8: bool) -> None:
    _validation.check_one_of("kind", to, _SUFFIXES)
    _validation.check_one_of("form", form, FORMS)
    if int8 and (to != "onnx" or form == "skip"):
        raise errors.InvalidValueError(
            f"int8 is for onnx in the forms masked and compact, whose weights are fixed; got {to}, {form}."
        )
    if out.suffix != _SUFFIXES[to]:
        raise errors.InvalidValueError(f"a file for {to} is called *{_SUFFIXES[to]}, got {out.name}. Rename it.")


def _open(folder: str | Path, data: str | None, form: str) -> Run:
    """Open a run with its images, on the CPU."""
    (run,) = open_runs([folder], data)
    if run.dataset is None:
        raise errors.DataError(f"the images of {folder} are needed, to compare on: {run.missing}")
    if form != "masked" and not isinstance(run.model, GaterNet):
        raise errors.InvalidValueError(f"{folder} has no gater, and so only the form masked, where all is computed.")
    run.model.cpu()
    return run


def _details(run: Run, form: str) -> dict[str, Any]:
    """Return what a file says of itself besides versions."""
    known = {key: run.config[key] for key in _DETAILS if key in run.config}
    return {**known, "form": form, "run": run.name, "scale": run.source.image_size}


@contextmanager
def _beside(out: Path) -> Generator[Path]:
    """Give the path of a file to try before `out` is written, which is gone afterwards."""
    beside = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def _reopened(file: Path, to: str) -> Callable[[Tensor], Any]:
    """Return the network in a file that was just written; torch.export.load runs what is in a file, so no others."""
    return opened(file) if to == "onnx" else torch.export.load(file).module()


def _check_agreement(out: Path, found: dict[str, Any]) -> dict[str, Any]:
    if found["difference"] > _TOLERANCE or found["flipped"] > _FLIPPED * found["images"]:
        raise errors.TrainingError(
            f"{out} was not written: on {found['images']} images its logits differ by up to "
            f"{found['difference']:.1e} of the largest (allowed {_TOLERANCE:g}), and {found['flipped']} images have "
            f"other gates. Please report this network."
        )
    return found


def _quantised(file: Path, run: Run, calibration: int) -> dict[str, Any]:
    """Rewrite a file in int8; return the scores before and after, and the share of images whose gates differ."""
    plain = opened(file)
    to_int8(file, run.of("train").first(calibration))
    small = opened(file)
    flipped = agreement(plain, small, run.first())["flipped"]
    scores = {"float32": _score(plain, run), "int8": _score(small, run)}
    return {"score": run.score, **scores, "other_gates": flipped / len(run.images or ())}


def _score(exported: Callable[[Tensor], Any], run: Run) -> float:
    """Return what the run is judged by, over all its images."""
    tally = run.new_results()
    for images, labels in run.batches():
        tally.update(_as_pair(exported(images))[0], labels)
    return tally.results()[run.score]


def in_form(run: Run, form: str, say: Callable[[str], None]) -> nn.Module:
    """Return a run's network as it is to be exported."""
    model: Any = run.model.eval()
    if form == "skip":
        return ConditionalNet(model).eval()
    if form == "compact":
        say("finding the gates that never change")
        model = compact(model, run.of("train").first()).eval()
    return WithGates(model).eval()


def exported_program(network: nn.Module, example: Tensor, *, free_size: bool) -> Any:
    """Return torch.export's program of a network with a free batch and, if asked for, a free height and width."""
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
    """Compare what a file computes with the network: logits where the gates are equal, and the gates."""
    difference = largest = 0.0
    count = flipped = 0
    kinds: set[bytes] = set()
    for batch in batches:
        for images in (batch[:1], batch[1:]):  # batches of one and of many
            if not len(images):
                continue
            (expected, gates), (found, own) = (_as_pair(form(images)) for form in (network, other))
            same = torch.ones(len(images), dtype=torch.bool)
            if gates is not None:
                same = (own == gates).all(1)
                kinds |= {row.numpy().tobytes() for row in gates}
            count, flipped = count + len(images), flipped + int((~same).sum())
            largest = max(largest, float(expected.abs().max()))
            if same.any():
                difference = max(difference, float((found - expected)[same].abs().max()))
    return {"images": count, "difference": difference / max(largest, 1e-12), "flipped": flipped, "kinds": len(kinds)}


def _as_pair(output: Any) -> tuple[Tensor, Tensor | None]:
    if not isinstance(output, tuple | list):
        return output, None
    logits, gates = cast(Sequence[Tensor], output)
    return logits, gates
