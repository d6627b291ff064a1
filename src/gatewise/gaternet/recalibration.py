"""Running statistics computed again, with the gates of eval mode."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core.loaders import Loader, batches_of
from gatewise.gaternet.network import GaterNet
from gatewise.graph import evaluation_mode

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@torch.no_grad()
def recalibrate(net: GaterNet, loader: Loader | Tensor) -> None:
    """Compute the running statistics of a GaterNet again, from images and the gates of eval mode.

    In training the gates are sampled and the weights change; running means follow both with a delay. First the
    statistics of the gater are computed, then, with the gater constant, those of the backbone, for each route from the
    images of this route. A route without images keeps its statistics, and no parameter changes. An image that is a
    batch of its own, which has no variance, joins the next batch; the last one is left out.

    Args:
        net: the network; its training flags are restored.
        loader: batches of images (N, C, *S), or tuples or dicts with images; it is read twice.

    Raises:
        ValueError: no two images of one size follow each other.

    Paper: Yu and Huang, Universally Slimmable Networks, ICCV 2019, arXiv 1903.05134 (post-statistics).
    """
    of_gater = list(net.gater.modules())
    others = [layer for layer in net.modules() if all(layer is not own for own in of_gater)]
    # the input of a local decider is a map of the backbone, so both are computed together
    passes = [(net, [*of_gater, *others])] if net.is_local else [(net.gater, of_gater), (net, others)]
    device = next(net.parameters()).device
    with evaluation_mode(net):
        for module, layers in passes:
            found = [layer for layer in layers if _collects(layer)]
            if not found:
                continue
            with _collecting(found):
                for images in _without_single_images(images for images, _ in batches_of(loader, "recalibrate")):
                    module(images.to(device))


def _without_single_images(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the batches; one of a single image is joined with the next, and the last one is left out."""
    alone: Tensor | None = None
    ran = False
    for images in batches:
        joined = images if alone is None or alone.shape[1:] != images.shape[1:] else torch.cat([alone, images])
        alone = joined if len(joined) == 1 else None
        if alone is None:
            ran = True
            yield joined
    if not ran:
        raise errors.InvalidValueError(
            "recalibrate computes a mean and a variance, so it needs at least two images of one size. Give more images."
        )


def _collects(layer: nn.Module) -> bool:
    return all(isinstance(getattr(layer, name, None), Tensor) for name in _STATISTICS)


@contextmanager
def _collecting(layers: Sequence[Any]) -> Generator[None]:
    """Reset running statistics, and make each the mean over the batches that run inside the context."""
    before = [[getattr(layer, name).clone() for name in _STATISTICS] for layer in layers]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.training, layer.momentum = True, None  # None: the mean over all batches
    try:
        yield
    finally:
        for layer, values, momentum in zip(layers, before, momenta, strict=True):
            layer.training, layer.momentum = False, momentum
            if not int(layer.num_batches_tracked):  # it did not run
                for name, value in zip(_STATISTICS, values, strict=True):
                    getattr(layer, name).copy_(value)
