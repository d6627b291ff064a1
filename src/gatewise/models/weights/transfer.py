"""Load the weights of a classifier into the backbone of a segmenter."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gatewise import errors
from gatewise.insertion.insert import gates_in
from gatewise.models import Segmenter
from gatewise.models.serialization import of_gater_net
from gatewise.models.weights.prefixes import prefixes, without_inserted
from gatewise.models.weights.reading import WeightFile, read_weights


@dataclass(frozen=True)
class Transfer:
    """Result of `load_backbone`: the names of loaded, unused and new tensors.

    Attributes:
        kept: tensors of the backbone that were loaded.
        unused: tensors of the source that the backbone does not have, such as the classifier.
        fresh: tensors of the segmenter that are not in the source.
        config: the `config.json` in the folder of the weights, or {}.
    """

    kept: tuple[str, ...]
    unused: tuple[str, ...]
    fresh: tuple[str, ...]
    config: Mapping[str, Any]

    def __str__(self) -> str:
        unused = f", not used: {', '.join(self.unused)}" if self.unused else ""
        owners = dict.fromkeys(name.partition(".")[0] for name in self.fresh)
        return f"{len(self.kept)} tensors of the backbone loaded{unused}; new: {', '.join(owners)}"


def load_backbone(model: Segmenter, source: str | Path) -> Transfer:
    """Load the weights of a classifier into the backbone of a segmenter, matching tensors by name.

    Gates that are not in the source keep their values.

    Args:
        model: the segmenter.
        source: a run folder of a classifier with the same backbone, or a file of weights, also one of timm's; a prefix
            of its names is removed.

    Returns:
        The names of the loaded, the unused and the new tensors.

    Raises:
        DataError: a tensor has a different shape, or the source has no value for a tensor of the backbone.
    """
    content = read_weights(source)
    file, own = content.path, model.backbone.state_dict()
    weights = _without_prefix(_inside(content), own)
    gates = tuple(f"{path}." for path in gates_in(model.backbone))
    # timm's feature extractors rename a stage inside a sequence from stages.0 to stages_0
    sources = {name: next((n for n in (name, _unflattened(name)) if n in weights), None) for name in own}
    missing = [name for name, theirs in sources.items() if theirs is None and not name.startswith(gates or "\0")]
    if missing:
        raise errors.DataError(
            f"{file} has no tensor {missing[0]!r} ({len(missing)} of the backbone's {len(own)} tensors are missing). "
            f"Use weights of the same backbone."
        )
    for name, theirs in sources.items():
        if theirs is not None and weights[theirs].shape != own[name].shape:
            shapes = tuple(weights[theirs].shape), tuple(own[name].shape)
            raise errors.DataError(
                f"{file}: {theirs!r} has shape {shapes[0]}, but the backbone expects {shapes[1]}. Use weights of the "
                f"same backbone."
            )
    kept = {name: weights[theirs] for name, theirs in sources.items() if theirs is not None}
    model.backbone.load_state_dict(own | kept)
    used = set(sources.values())
    fresh = [name for name in model.state_dict() if name.removeprefix("backbone.") not in kept]
    return Transfer(
        tuple(kept), tuple(name for name in sorted(weights) if name not in used), tuple(fresh), content.config
    )


def _unflattened(name: str) -> str:
    head, _, rest = name.partition(".")
    stem, _, number = head.rpartition("_")
    return f"{stem}.{number}.{rest}" if number.isdecimal() else name


def has_segmentation_head(source: str | Path) -> bool:
    """Return whether weights are those of a segmenter (with or without a gater) instead of a classifier."""
    names = _inside(read_weights(source))
    starts = {name[: at.start()] for name in names for at in re.finditer(r"(?:^|(?<=\.))backbone\.", name)}
    return any(name.startswith(f"{start}head.0.") for start in starts for name in names)


def _inside(content: WeightFile) -> dict[str, Tensor]:
    """Return the weights in a file without the wrapper of a trainer and without a gater."""
    inside = {n.removeprefix(content.wrapper): t for n, t in content.tensors.items() if n.startswith(content.wrapper)}
    return dict(_without_gater({without_inserted(name): tensor for name, tensor in inside.items()}))


def _without_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without the prefix whose removal leaves the most names of `own`."""
    found = [
        {prefix.own(name) or "": tensor for name, tensor in weights.items() if name.startswith(prefix.removed)}
        for prefix in prefixes(list(weights), list(own))
        if not prefix.added
    ]
    return max(found, key=lambda named: sum(name in named or _unflattened(name) in named for name in own))


def _without_gater(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights of the backbone if they are those of a GaterNet, or else all weights."""
    if not of_gater_net(weights):
        return weights
    own = {name: tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    return {name.removeprefix("backbone."): tensor for name, tensor in own.items()}
