"""What a trained network says of images: classes with their probabilities, or a mask and an overlay for each."""

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise.data import scaled_to, with_background
from gatewise.data.colours import class_colours, coloured
from gatewise.data.decode import decode, pixels_of
from gatewise.data.folders import is_image
from gatewise.exporting.reader import opened
from gatewise.exporting.writer import WithGates
from gatewise.files import read_bytes, write_atomically
from gatewise.serialization import WEIGHTS, check_weights_finite, load_model
from gatewise.training import Recipe, pixel_classes

_STANDARD_INPUT = Path("-")
_NEEDED = ("classes", "mean", "std", "image_size", "in_chans")
_TOLD = 5  # classes of a mask that are told in one line


@dataclass(frozen=True)
class Predictor:
    """A trained network, ready for images of any size.

    Attributes:
        network: a batch of normalised images -> logits, or logits and gates.
        config: classes, mean and std, size of the images.
        scale: side to which images with a label at each pixel are scaled, or None.
        device: where the network is.
    """

    network: Callable[[Tensor], Any]
    config: dict[str, Any]
    scale: int | None
    device: torch.device

    @classmethod
    def of(cls, source: str | Path) -> "Predictor":
        """Open a run folder, one of `save_pretrained`, or an ONNX file of `gatewise export`.

        Refused with `DataError`: what is damaged, or does not say what its classes are and how it takes images.
        """
        source = _validation.check_path_exists("run folder or ONNX file", source)
        if source.is_file():
            exported = opened(source)
            config = exported.details
            _check_complete(source, config)
            return cls(exported, config, config.get("scale"), torch.device("cpu"))
        model, config = load_model(source)
        check_weights_finite(source / WEIGHTS, model, "Train the run anew")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        _check_complete(source / "config.json", config)
        recipe = source / "recipe.yaml"
        scale = Recipe.load(recipe).image_size if recipe.exists() else config.get("scale")
        return cls(WithGates(model.to(device)), config, scale, device)

    @property
    def labels_pixels(self) -> bool:
        """Whether the network gives each pixel a class."""
        return self.config.get("task", "classify") == "segment"

    @property
    def classes(self) -> list[str]:
        """Names, in the order of the numbers in a mask."""
        return list(with_background(self.config["classes"]))

    @torch.inference_mode()
    def logits(self, picture: Any) -> tuple[Tensor, float | None]:
        """Return a PIL image's logits, and of a GaterNet the share of open gates.

        The image is read as the validation images of the training were: scaled and its centre cropped to their size
        where a class for the whole image is asked for, and otherwise scaled to the recipe's image_size.
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


def _check_complete(file: Path, config: Mapping[str, Any]) -> None:
    if absent := [key for key in _NEEDED if config.get(key) is None]:
        raise errors.DataError(f"{file} has no {', '.join(absent)}, which predictions need.")
    for key in ("mean", "std"):
        if len(config[key]) != config["in_chans"]:
            raise errors.DataError(
                f"{file}: {key} has {len(config[key])} entries for {config['in_chans']} channels. Restore the file."
            )


def predict(
    source: str | Path, images: Sequence[str | Path], out: str | Path | None = None, *, top_k: int = 5
) -> Iterator[dict[str, Any]]:
    """Yield for each image what a trained network says of it, as JSON takes it.

    Args:
        source: a run folder, one of `save_pretrained`, or an ONNX file that `gatewise export` wrote.
        images: image files, folders of them at any depth, or "-" for an image on standard input.
        out: where pixels are labelled, the folder for NAME_mask.png (class indices with a palette) and
            NAME_overlay.png, both of the image's own size.
        top_k: how many classes are told of an image, the most probable first.

    Refused with `DataError`: no image, an unreadable one, two of one name whose masks would overwrite each other; with
    ValueError, no `out` where one is needed, top_k below 1.
    """
    _validation.check_integer_at_least(1, top_k=top_k)
    files = dict(_files(images))
    predictor = Predictor.of(source)
    if predictor.labels_pixels:
        if out is None:
            raise errors.InvalidValueError("this run labels pixels; give a folder for its masks with out (--out).")
        _check_not_overwriting(files, Path(out))
    for file, name in files.items():
        picture = decode(str(file), sys.stdin.buffer.read() if file == _STANDARD_INPUT else read_bytes(file))
        logits, open_gates = predictor.logits(picture)
        found: dict[str, Any] = {"image": str(file)}
        if predictor.labels_pixels:
            found |= _write_masks(predictor.classes, picture, logits, Path(str(out)) / name)
        else:
            best = logits.softmax(0).topk(min(top_k, len(logits)))
            pairs = zip(best.indices, best.values, strict=True)
            found["classes"] = {predictor.classes[int(index)]: float(share) for index, share in pairs}
        yield found if open_gates is None else {**found, "open_gates": open_gates}


def _files(images: Sequence[str | Path]) -> Iterator[tuple[Path, Path]]:
    """Yield image files and what their masks are called: the path inside a folder that was given, without suffix."""
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
            raise errors.DataError(f"{path} cannot be looked through ({error.strerror}).") from None
        if not inside:
            raise errors.DataError(f"{path} holds no images.")
        for file in inside:
            yield file, file.relative_to(path).with_suffix("")


def _check_not_overwriting(files: Mapping[Path, Path], out: Path) -> None:
    if out.resolve() in {file.parent.resolve() for file in files}:
        raise errors.DataError(f"{out} holds the images themselves. Give a folder of its own for masks and overlays.")
    seen: dict[Path, Path] = {}
    for file, name in files.items():
        if (other := seen.setdefault(name, file)) != file:
            raise errors.DataError(f"{other} and {file} would write the same mask. Predict them one after the other.")


def _write_masks(classes: Sequence[str], picture: Any, logits: Tensor, name: Path) -> dict[str, Any]:
    """Write an image's mask and overlay, and return their paths with the share of each class."""
    from PIL import Image

    whole = nn.functional.interpolate(logits.unsqueeze(0).float(), (picture.height, picture.width), mode="bilinear")
    mask = pixel_classes(whole)[0].cpu()
    colours = class_colours(len(classes))
    indexed = Image.fromarray(mask.to(torch.uint8).numpy())
    indexed.putpalette(colours.flatten().tolist())
    overlay = Image.blend(picture, Image.fromarray(coloured(mask, colours).numpy()), 0.5)
    if len(classes) == 2:  # background stays as it is
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


def format_prediction(found: dict[str, Any]) -> str:
    """Return one line for people."""
    if "classes" in found:
        what = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found["classes"].items())
    else:
        most = sorted(found["shares"].items(), key=lambda item: -item[1])[:_TOLD]
        what = ", ".join(f"{name} {100 * share:.1f} %" for name, share in most if share) + f"; {found['overlay']}"
    opened = f"; {100 * found['open_gates']:.0f} % of the gates open" if "open_gates" in found else ""
    return f"{found['image']}: {what}{opened}"
