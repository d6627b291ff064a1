"""Predict images with a trained network: what its task says about each image."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_bytes
from gatewise.data.band_image import BandImage
from gatewise.data.folders import is_hidden, is_image, printable, unread_kind
from gatewise.data.pixel_format import PixelFormat
from gatewise.exporting.agreement import as_pair
from gatewise.exporting.forms import WithGates
from gatewise.exporting.pixel_scale import check_pixel_scale
from gatewise.exporting.reader import opened
from gatewise.graph import evaluation_mode
from gatewise.inference.wrappers import unwrapped
from gatewise.training import Task, TaskSpec
from gatewise.training.runs import Run, check_image_entries, stored_task

_STANDARD_INPUT = Path("-")
_NAMED = 20  # images that could not be read and are named


@dataclass(frozen=True)
class Predictor:
    """A trained network with its task, for images of any size.

    Attributes:
        network: (N, C, H, W) normalised images -> logits, or logits and gates.
        task: what the network was trained to do.
        config: content of `config.json`: classes, mean, std, image size, and scale (the image size of the recipe).
        pixel_format: how image files become the channels of the network.
        device: device of the network.
    """

    network: Callable[[Tensor], Any]
    task: Task
    config: dict[str, Any]
    pixel_format: PixelFormat
    device: torch.device

    @classmethod
    def of(cls, source: str | Path) -> "Predictor":
        """Open a run folder, a folder of `save_pretrained`, or an ONNX file of `gatewise export`.

        Raises:
            DataError: a file is damaged, or has no classes, mean, std, image_size or in_chans.
        """
        source = _validation.check_path_exists("run folder or ONNX file", source)
        if source.is_file():
            exported = opened(source)
            config = exported.details
            if absent := [name for name in ("classes", "mean", "std") if config.get(name) is None]:
                raise errors.DataError(
                    f"{source} has no {', '.join(absent)}, which predictions need. Export it again with "
                    f"gatewise.export(..., classes=[...], mean=[...], std=[...]), of pixels from 0 to 255."
                )
            check_image_entries(source, config)
            pixel_format = PixelFormat.of_config(source, config)
            return cls(exported, stored_task(source, config), config, pixel_format, torch.device("cpu"))
        run = Run.open(source)
        run.check_image_entries()
        return cls(WithGates(run.model), run.task, {**run.config, "scale": run.scale}, run.pixel_format, run.device)

    @classmethod
    def of_network(
        cls,
        model: nn.Module,
        *,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        image_size: tuple[int, int],
        task: str = "classify",
    ) -> "Predictor":
        """Prepare a network that was trained elsewhere; `predict` documents the arguments."""
        net = unwrapped("predict", model)
        _validation.check_image_size("image_size", image_size, axes=(2,))
        check_pixel_scale(len(mean), mean, std)
        chosen = TaskSpec.parse(task).make(list(classes))
        config = {"mean": list(mean), "std": list(std), "image_size": list(image_size), "in_chans": len(mean)}
        device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
        pixel_format = PixelFormat.of_count(len(mean))
        return cls(_in_eval_mode(net), chosen, {**config, "scale": min(image_size)}, pixel_format, device)

    @torch.inference_mode()
    def logits(self, image: BandImage) -> tuple[Tensor, float | None]:
        """Return the logits of an image, and the fraction of open gates of a GaterNet (otherwise None).

        The image is preprocessed like the validation images of the training.
        """
        mean, std = (torch.tensor(self.config[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
        pixels = self.task.pixels(image, self.config).float()
        x = ((pixels - mean) / std).unsqueeze(0).to(self.device)
        logits, gates = as_pair(self.network(x))
        expected = self.task.shape((x.shape[2], x.shape[3]))
        if logits.dim() != len(expected) or logits.shape[:2] != expected[:2]:
            raise errors.InvalidValueError(
                f"the network returns shape {tuple(logits.shape)} for one image, and {len(self.task.classes)} classes "
                f"need {expected}. Give a name for each output, or the task of the network."
            )
        return logits[0], None if gates is None else float(gates.mean())

    def predict(
        self, images: Sequence[str | Path], out: str | Path | None = None, *, top_k: int = 5
    ) -> Iterator[dict[str, Any]]:
        """Yield one prediction per image that can be read; see `predict`."""
        _validation.check_integer_at_least(1, top_k=top_k)
        files = dict(_files(images))
        if self.task.files:
            if out is None:
                what = self.task.files
                raise errors.InvalidValueError(
                    f"this network predicts {what}; give a folder for its {what} with out (--out)."
                )
            _check_not_overwriting(files, Path(out))
        elif out is not None:
            raise errors.InvalidValueError("this network's predictions are no files, but printed. Omit out (--out).")
        unread: list[str] = []
        for file, name in files.items():
            try:
                image = self._read(file)
            except errors.DataError as error:
                unread.append(str(error))
                continue
            logits, open_gates = self.logits(image)
            folder = None if out is None else Path(out) / name
            prediction = {"image": str(file), **self.task.prediction(logits, image.shown(), top_k=top_k, out=folder)}
            yield prediction if open_gates is None else {**prediction, "open_gates": open_gates}
        if unread:
            count = "" if len(files) == 1 else f"{len(unread):,} of {len(files):,} images could not be read: "
            more = "" if len(unread) <= _NAMED else f" ... and {len(unread) - _NAMED:,} others"
            raise errors.DataError(f"{count}{' '.join(unread[:_NAMED])}{more}")

    def _read(self, file: Path) -> BandImage:
        """Return an image file, or the image on standard input; raise `DataError` if it cannot be read."""
        if kind := unread_kind(str(file)):
            raise errors.DataError(f"{printable(str(file))}: {kind[0]} is not read. {kind[1]}, or leave it out.")
        content = sys.stdin.buffer.read() if file == _STANDARD_INPUT else read_bytes(file)
        return self.pixel_format.decode(str(file), content)

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """Return a prediction as one line of text."""
        gates_open = f"; {100 * prediction['open_gates']:.0f} % of the gates open" if "open_gates" in prediction else ""
        return f"{prediction['image']}: {self.task.describe(prediction)}{gates_open}"


def _in_eval_mode(net: nn.Module) -> Callable[[Tensor], Any]:
    """Return a function that runs the network in eval mode, and restores its training flags after each call."""
    wrapped = WithGates(net)

    def run(image: Tensor) -> Any:
        with evaluation_mode(wrapped):
            return wrapped(image)

    return run


def predict(
    source: str | Path | nn.Module,
    images: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    top_k: int = 5,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: tuple[int, int] | None = None,
    task: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one prediction per image, as a dict of JSON values.

    Args:
        source: run folder, folder of `save_pretrained`, ONNX file of `gatewise export`, or any network. Only a network
            needs the arguments after `top_k`; the others have them.
        images: image files, folders (searched recursively), or "-" for one image on standard input.
        out: for segmentation, the folder for NAME_mask.png (class indices with a palette) and NAME_overlay.png, both
            in the size of the image.
        top_k: for classification, the number of classes per image, most probable first.
        classes: names of the classes, in the order of the network's outputs.
        mean: mean of each channel that is subtracted from pixels of 0 to 255.
        std: standard deviation of each channel by which they are divided.
        image_size: (height, width) to which images are scaled and cropped; for segmentation the shorter side is scaled.
        task: name of a task, "classify" (the default) or "segment" for example.

    Yields:
        "image", and "classes" (probability by name) for classification, or "mask", "overlay" (paths) and "shares"
        (fraction of pixels by class) for segmentation; "open_gates" (fraction) for a GaterNet.

    Raises:
        DataError: there is no image, or two images of one name would write the same mask; or, after the predictions of
            all others, images cannot be read.
        ValueError: `out` is missing for a segmentation network, top_k is below 1, or classes, mean or std do not fit.
        TypeError: an argument about a network is missing, or given for a source that has its own.
    """
    given = {"classes": classes, "mean": mean, "std": std, "image_size": image_size, "task": task}
    details: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not isinstance(source, nn.Module):
        if details:
            raise errors.InvalidTypeError(f"{', '.join(details)}: only for a network; {source} has its own. Omit them.")
        predictor = Predictor.of(source)
    else:
        if missing := [name for name in given if name not in details and name != "task"]:
            raise errors.InvalidTypeError(
                f"predict needs {', '.join(missing)} for a network, for example classes=['cat', 'dog'], "
                f"mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], image_size=(224, 224)."
            )
        predictor = Predictor.of_network(source, **details)
    yield from predictor.predict(images, out, top_k=top_k)


def _files(images: Sequence[str | Path]) -> Iterator[tuple[Path, Path]]:
    """Yield each image file with the name of its mask: its path inside the given folder, without suffix."""
    for given in images:
        if Path(given) == _STANDARD_INPUT:
            yield _STANDARD_INPUT, Path("image")
            continue
        path = _validation.check_path_exists("image", given)
        if not path.is_dir():
            yield path, Path(path.stem)
            continue
        try:
            inside = sorted(
                file
                for file in path.rglob("*")
                if (is_image(file.name) or unread_kind(file.name))
                and not any(map(is_hidden, file.relative_to(path).parts))
            )
        except OSError as error:
            raise errors.DataError(f"{path} cannot be searched ({error.strerror}).") from None
        if not inside:
            raise errors.DataError(f"{path} contains no images.")
        for file in inside:
            yield file, file.relative_to(path).with_suffix("")


def _check_not_overwriting(files: Mapping[Path, Path], out: Path) -> None:
    if out.resolve() in {file.parent.resolve() for file in files}:
        raise errors.DataError(f"{out} is the folder of the images. Give another folder for masks and overlays.")
    seen: dict[Path, Path] = {}
    for file, name in files.items():
        if (other := seen.setdefault(name, file)) != file:
            raise errors.DataError(
                f"{other} and {file} would write the same mask. Predict them in two calls with different --out."
            )
