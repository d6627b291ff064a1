"""Predict images with a trained network: class probabilities, or a mask and an overlay per image."""

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_bytes, write_atomically
from gatewise.data import scaled_to, with_background
from gatewise.data.colours import class_colours, coloured
from gatewise.data.decode import decode, pixels_of
from gatewise.data.folders import is_image
from gatewise.exporting.reader import opened
from gatewise.exporting.writer import WithGates
from gatewise.training import pixel_classes
from gatewise.training.runs import IMAGE_ENTRIES, Run

_STANDARD_INPUT = Path("-")
_SHOWN = 5  # classes of a mask that format_prediction shows


@dataclass(frozen=True)
class Predictor:
    """A trained network with its preprocessing, for images of any size.

    Attributes:
        network: (N, C, H, W) normalised images -> logits, or logits and gates.
        config: content of `config.json`: classes, mean, std, image size.
        scale: for segmentation, the length to which the shorter side of an image is scaled, or None.
        device: device of the network.
    """

    network: Callable[[Tensor], Any]
    config: dict[str, Any]
    scale: int | None
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
            _validation.entries_of(source, config, *IMAGE_ENTRIES)
            return cls(exported, config, config.get("scale"), torch.device("cpu"))
        run = Run.open(source)
        run.check_entries(*IMAGE_ENTRIES)
        return cls(WithGates(run.model), run.config, run.scale, run.device)

    @property
    def labels_pixels(self) -> bool:
        """Whether the network is a segmentation network."""
        return self.config.get("task", "classify") == "segment"

    @property
    def classes(self) -> list[str]:
        """Names of the classes by index; for segmentation networks by the values in a mask."""
        return list(with_background(self.config["classes"]))

    @torch.inference_mode()
    def logits(self, picture: Any) -> tuple[Tensor, float | None]:
        """Return the logits of a PIL image, and the fraction of open gates of a GaterNet (otherwise None).

        The image is preprocessed like the validation images of the training: for classification scaled and centre
        cropped to their size, for segmentation scaled to the recipe's image_size.
        """
        mean, std = (torch.tensor(self.config[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
        pixels = self._pixels(picture).float()
        output = self.network(((pixels - mean) / std).unsqueeze(0).to(self.device))
        if not isinstance(output, tuple):
            return output[0], None
        logits, gates = cast(tuple[Tensor, Tensor], output)
        return logits[0], float(gates.mean())

    def _pixels(self, picture: Any) -> Tensor:
        from PIL import ImageOps

        if self.labels_pixels:
            pixels = pixels_of(picture)
            return scaled_to(self.scale, pixels, pixels[0])[0]
        height, width = self.config["image_size"]
        fitted = picture if picture.size == (width, height) else ImageOps.fit(picture, (width, height))
        if self.config["in_chans"] == 1:
            fitted = ImageOps.grayscale(fitted).convert("RGB")
        return pixels_of(fitted)[: self.config["in_chans"]]


def predict(
    source: str | Path, images: Sequence[str | Path], out: str | Path | None = None, *, top_k: int = 5
) -> Iterator[dict[str, Any]]:
    """Yield one prediction per image, as a dict of JSON values.

    Args:
        source: run folder, folder of `save_pretrained`, or ONNX file of `gatewise export`.
        images: image files, folders (searched recursively), or "-" for one image on standard input.
        out: for segmentation, the folder for NAME_mask.png (class indices with a palette) and NAME_overlay.png, both
            in the size of the image.
        top_k: for classification, the number of classes per image, most probable first.

    Yields:
        "image", and "classes" (probability by name) for classification, or "mask", "overlay" (paths) and "shares"
        (fraction of pixels by class) for segmentation; "open_gates" (fraction) for a GaterNet.

    Raises:
        DataError: there is no image, an image cannot be read, or two images of one name would write the same mask.
        ValueError: `out` is missing for a segmentation network, or top_k is below 1.
    """
    _validation.check_integer_at_least(1, top_k=top_k)
    files = dict(_files(images))
    predictor = Predictor.of(source)
    if predictor.labels_pixels:
        if out is None:
            raise errors.InvalidValueError(
                "this is a segmentation network; give a folder for its masks with out (--out)."
            )
        _check_not_overwriting(files, Path(out))
    for file, name in files.items():
        picture = decode(str(file), sys.stdin.buffer.read() if file == _STANDARD_INPUT else read_bytes(file))
        logits, open_gates = predictor.logits(picture)
        prediction: dict[str, Any] = {"image": str(file)}
        if predictor.labels_pixels:
            prediction |= _write_masks(predictor.classes, picture, logits, Path(str(out)) / name)
        else:
            best = logits.softmax(0).topk(min(top_k, len(logits)))
            pairs = zip(best.indices, best.values, strict=True)
            prediction["classes"] = {predictor.classes[int(index)]: float(share) for index, share in pairs}
        yield prediction if open_gates is None else {**prediction, "open_gates": open_gates}


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
            inside = sorted(file for file in path.rglob("*") if is_image(file.name))
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


def _write_masks(classes: Sequence[str], picture: Any, logits: Tensor, name: Path) -> dict[str, Any]:
    """Write the mask and overlay of an image; return their paths and the fraction of pixels of each class."""
    from PIL import Image

    upsampled = nn.functional.interpolate(logits.unsqueeze(0).float(), (picture.height, picture.width), mode="bilinear")
    mask = pixel_classes(upsampled)[0].cpu()
    colours = class_colours(len(classes))
    indexed = Image.fromarray(mask.to(torch.uint8).numpy())
    indexed.putpalette(colours.flatten().tolist())
    overlay = Image.blend(picture, Image.fromarray(coloured(mask, colours).numpy()), 0.5)
    if len(classes) == 2:  # keep the background uncoloured
        overlay = Image.composite(overlay, picture, Image.fromarray((mask > 0).numpy()))
    paths = {kind: name.with_name(f"{name.name}_{kind}.png") for kind in ("mask", "overlay")}
    for path, image in zip(paths.values(), (indexed, overlay), strict=True):
        write_atomically(path, _png(image))
    shares = map(float, mask.flatten().bincount(minlength=len(classes)) / mask.numel())
    return {**{k: str(path) for k, path in paths.items()}, "shares": dict(zip(classes, shares, strict=True))}


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()


def format_prediction(prediction: dict[str, Any]) -> str:
    """Return a prediction of `predict` as one line of text."""
    if "classes" in prediction:
        what = ", ".join(f"{name} {100 * share:.1f} %" for name, share in prediction["classes"].items())
    else:
        most = sorted(prediction["shares"].items(), key=lambda item: -item[1])[:_SHOWN]
        what = ", ".join(f"{name} {100 * share:.1f} %" for name, share in most if share) + f"; {prediction['overlay']}"
    gates_open = f"; {100 * prediction['open_gates']:.0f} % of the gates open" if "open_gates" in prediction else ""
    return f"{prediction['image']}: {what}{gates_open}"
