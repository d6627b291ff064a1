"""From a classifier to a segmenter: its weights become those of the backbone, tensor by tensor of the same name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gatewise import errors
from gatewise.insertion import gates_in
from gatewise.models import Segmenter
from gatewise.serialization import of_gater_net, read_source


@dataclass(frozen=True)
class Transfer:
    """What became of a classifier's weights in a segmenter, by name.

    Attributes:
        kept: tensors of the backbone that were taken over.
        unused: tensors of the source that have no place in it, such as its classifier.
        fresh: tensors of the segmenter that the source knows nothing of.
        config: the `config.json` beside the weights, {} for a bare file.
    """

    kept: tuple[str, ...]
    unused: tuple[str, ...]
    fresh: tuple[str, ...]
    config: Mapping[str, Any]

    def __str__(self) -> str:
        unused = f", not used: {', '.join(self.unused)}" if self.unused else ""
        owners = dict.fromkeys(name.partition(".")[0] for name in self.fresh)
        return f"{len(self.kept)} tensors of the backbone kept{unused}; fresh: {', '.join(owners)}"


def load_backbone(model: Segmenter, source: str | Path) -> Transfer:
    """Start a segmenter's backbone from a classifier's weights, tensor by tensor of the same name.

    Args:
        model: the segmenter.
        source: a run folder of a classifier with the same backbone, or a safetensors file, timm's too.

    Refused with `DataError`: weights of another shape, or without a tensor that the backbone needs. Gates that the
    weights know nothing of keep their values.
    """
    file, weights, config = read_source(source)
    weights = _without_gater(weights)
    own = model.backbone.state_dict()
    gates = tuple(f"{path}." for path in gates_in(model.backbone))
    # timm's feature extractors call a stage that lies in a sequence stages_0 instead of stages.0
    found = {name: next((n for n in (name, _unflattened(name)) if n in weights), None) for name in own}
    missing = [name for name, there in found.items() if there is None and not name.startswith(gates or "\0")]
    if missing:
        raise errors.DataError(
            f"{file} has no {missing[0]!r} ({len(missing)} of the backbone's {len(own)} tensors are missing). "
            f"Take weights of the same backbone."
        )
    for name, there in found.items():
        if there is not None and weights[there].shape != own[name].shape:
            shapes = tuple(weights[there].shape), tuple(own[name].shape)
            raise errors.DataError(f"{file}: {there!r} has the shape {shapes[0]}, the backbone's own {shapes[1]}.")
    kept = {name: weights[there] for name, there in found.items() if there is not None}
    model.backbone.load_state_dict(own | kept)
    used = set(found.values())
    fresh = [name for name in model.state_dict() if name.removeprefix("backbone.") not in kept]
    return Transfer(tuple(kept), tuple(name for name in sorted(weights) if name not in used), tuple(fresh), config)


def _unflattened(name: str) -> str:
    head, _, rest = name.partition(".")
    stem, _, number = head.rpartition("_")
    return f"{stem}.{number}.{rest}" if number.isdecimal() else name


def has_segmentation_head(source: str | Path) -> bool:
    """Whether weights are those of a whole segmenter, and not of a classifier; a gater around it does not matter."""
    return any(name.startswith("backbone.") for name in _without_gater(read_source(source)[1]))


def _without_gater(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights of the network that a GaterNet is around, or all if there is no gater."""
    if not of_gater_net(weights):
        return weights
    own = {name: tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    return {name.removeprefix("backbone."): tensor for name, tensor in own.items()}
