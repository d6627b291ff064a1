"""Read batches of images, with their labels, from any loader."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from torch import Tensor

from gatewise import errors
from gatewise.core import _validation

Loader: TypeAlias = Iterable[Any]  # of batches: images, (images, labels), or dicts with images and labels

_EXPECTED = "batches of images (N, C, H, W), tuples (images, labels), or dicts of both"
_IMAGES = ("image", "images", "pixel_values", "img", "imgs", "input", "inputs", "x")
_LABELS = ("label", "labels", "target", "targets", "mask", "masks", "class", "y")


def batches_of(loader: Loader | Tensor, owner: str = "a loader") -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the images of each batch and its labels, or None for a batch without labels.

    In a dict, images are the floating-point tensor with at least three axes, and labels are a tensor of integers; of
    several, the one with a usual name (image, pixel_values, label, mask, ...).

    Args:
        loader: an iterable of batches, or one batch of images: (N, C, *S), or tuples that start with it, or dicts.
        owner: name of the caller, for the error messages.

    Raises:
        InvalidTypeError: `loader` is not iterable, or a batch has no images.
        InvalidValueError: images have no batch axis, or a dict has several tensors that could be the images.

    >>> import torch
    >>> images, labels = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    >>> [(tuple(x.shape), y) for x, y in batches_of([(images, labels), {"pixel_values": images}])]
    [((2, 3, 4, 4), tensor([0, 1])), ((2, 3, 4, 4), None)]
    """
    readable = isinstance(loader, Iterable) or hasattr(loader, "__getitem__")  # as torch's data sets
    if isinstance(loader, str | bytes | Mapping) or not readable:
        raise errors.InvalidTypeError(
            f"{owner} expects a loader of {_EXPECTED}, got {_validation.safe_repr(cast(Any, loader))}."
        )
    for batch in [loader] if isinstance(loader, Tensor) else loader:
        images, labels = _parts(batch, owner)
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise errors.InvalidTypeError(
                f"{owner} expects {_EXPECTED}, with images in floating point as the network takes them, got "
                f"{_described(batch)}."
            )
        if images.dim() < 3 or isinstance(labels, int) or (isinstance(labels, Tensor) and not labels.dim()):
            raise errors.InvalidValueError(
                f"{owner} expects {_EXPECTED}, got {_described(batch)}. Wrap a data set of single images: "
                f"torch.utils.data.DataLoader(dataset, batch_size=32)."
            )
        if isinstance(labels, Tensor) and len(labels) != len(images):
            raise errors.InvalidValueError(
                f"{owner} expects one label for each image of a batch, got {_described(batch)}."
            )
        yield images, labels if isinstance(labels, Tensor) else None


def first_batches(
    loader: Loader | Tensor, count: int | None, owner: str = "a loader"
) -> list[tuple[Tensor, Tensor | None]]:
    """Read a loader once, up to its first `count` images (None: all), and return the batches.

    Raises:
        InvalidValueError: the loader has no images, or as `batches_of`.

    >>> import torch
    >>> [len(images) for images, _ in first_batches([torch.zeros(4, 3, 2, 2)] * 9, 6)]
    [4, 2]
    """
    batches: list[tuple[Tensor, Tensor | None]] = []
    left = count
    for images, labels in batches_of(loader, owner):
        batches.append((images[:left], None if labels is None else labels[:left]))
        left = None if left is None else left - len(images)
        if left is not None and left <= 0:
            break
    batches = [batch for batch in batches if len(batch[0])]
    if not batches:
        raise errors.InvalidValueError(f"{owner}: the loader has no images; an iterator may be used up already.")
    return batches


def _parts(batch: Any, owner: str) -> tuple[Any, Any]:
    """Return the images and labels of one batch, unchecked; None stands for no labels."""
    if isinstance(batch, Mapping):
        tensors = {str(k): v for k, v in cast(Mapping[Any, Any], batch).items() if isinstance(v, Tensor)}
        images = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dim() > 2}
        image = _named(images, _IMAGES)
        if image is None and len(images) > 1:
            raise errors.InvalidValueError(
                f"{owner} cannot tell which entry of a batch has the images: {', '.join(images)}. Give a loader of "
                f"tuples (images, labels)."
            )
        labels = {name: tensor for name, tensor in tensors.items() if not tensor.is_floating_point() and tensor.dim()}
        known = {name: tensor for name, tensor in tensors.items() if name in _LABELS and name != image}
        label = _named(labels, _LABELS) or _named(known, _LABELS)
        return tensors.get(image or ""), tensors.get(label or "")
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        parts = [*cast(Sequence[Any], batch), None, None]
        return parts[0], parts[1]
    return batch, None


def _named(tensors: Mapping[str, Tensor], names: Sequence[str]) -> str | None:
    """Return the only key, or that with a usual name; None if there is no such key."""
    if len(tensors) == 1:
        return next(iter(tensors))
    return next((name for name in names if name in tensors), None)


def _described(batch: Any) -> str:
    """Return the types and shapes of a batch in a few words."""
    if isinstance(batch, Tensor):
        return f"a tensor {tuple(batch.shape)} of {batch.dtype}".replace("torch.", "")
    if isinstance(batch, Mapping):
        entries = cast(Mapping[Any, Any], batch)
        return f"a dict of {', '.join(f'{key}: {_described(value)}' for key, value in [*entries.items()][:5])}"
    if isinstance(batch, list | tuple):
        parts = cast(Sequence[Any], batch)
        return f"a {type(parts).__name__} of {', '.join(map(_described, parts[:3]))}{', ...' * (len(parts) > 3)}"
    return type(batch).__name__
