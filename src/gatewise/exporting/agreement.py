"""Compare an exported file with its network."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core.deviation import largest_error, largest_finite

_TOLERANCE = 1e-3  # largest difference of logits, relative to the largest logit
_FLIPPED = 0.01  # fraction of images that may have different gates, because a gate logit near 0 is rounded differently


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
            (expected, gates), (logits, other_gates) = (as_pair(form(images)) for form in (network, other))
            same = torch.ones(len(images), dtype=torch.bool)
            if gates is not None:
                same = (other_gates == gates).all(1)
                kinds |= {row.numpy().tobytes() for row in gates}
            count, flipped = count + len(images), flipped + int((~same).sum())
            largest = max(largest, largest_finite(expected))
            if same.any():
                difference = max(difference, largest_error(logits[same], expected[same]))
    return {"images": count, "difference": difference / max(largest, 1e-12), "flipped": flipped, "kinds": len(kinds)}


def check_agreement(out: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Return the results of `agreement`; raise `TrainingError` if outputs differ by more than rounding."""
    difference = results["difference"]
    if difference > _TOLERANCE or results["flipped"] > _FLIPPED * results["images"]:
        far = f"differ by up to {difference:.1e} of the largest logit (allowed {_TOLERANCE:g})"
        raise errors.TrainingError(
            f"{out} was not written: on {results['images']} images its logits "
            f"{far if math.isfinite(difference) else 'are infinite or NaN at other entries'}, and the gates of "
            f"{results['flipped']} images differ. Please report this network."
        )
    return results


def as_pair(output: Any) -> tuple[Tensor, Tensor | None]:
    """Return the logits and the gates of a network's or a file's output: logits, (logits, gates) or with the route."""
    if not isinstance(output, tuple | list):
        return output, None
    outputs = cast(Sequence[Tensor], output)
    return outputs[0], outputs[-1]
