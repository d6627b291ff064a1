"""The initial weights of a training, and the normalisation of images that belongs to them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.data import Dataset, SegmentationDataset
from gatewise.gaternet import plain_network
from gatewise.gates.spec import ModelSpec
from gatewise.models import Segmenter
from gatewise.models.pretrained import PretrainedImages, is_pretrained
from gatewise.models.serialization import check_weights_finite, load_gater
from gatewise.models.stored_spec import as_stored
from gatewise.models.weights import load_weights
from gatewise.models.weights.transfer import Transfer, has_segmentation_head, load_backbone


@dataclass(frozen=True)
class Initial:
    """What initial weights say about images.

    Attributes:
        mean: mean per channel on the scale 0 to 255, (C,): that of the initial weights' training, else of the data set.
        std: standard deviation per channel, the same way.
        weights: the run folder or file of the initial weights, or None.
        transfer: report on loading a classifier's weights into a segmenter, or None.
        has_routes: whether the weights have the routes of a GaterNet.
    """

    mean: Tensor
    std: Tensor
    weights: str | None
    transfer: Transfer | None
    has_routes: bool = False


def load_initial(
    model: nn.Module,
    spec: ModelSpec,
    dataset: Dataset | SegmentationDataset,
    weights: str | None = None,
    gater: str | None = None,
) -> Initial:
    """Load initial weights into a network.

    Args:
        model: the network, built from `spec`.
        spec: its specification.
        dataset: the data set of the training.
        weights: run folder or safetensors file; None keeps the network's own weights.
        gater: weights of the gater's features; None keeps them.

    Raises:
        DataError: the weights cannot be read, do not fit or are not finite.
        InvalidValueError: they were trained with other gate options.
    """
    config, transfer = _load(model, weights)
    _check_same_gates(spec, weights, config)
    if gater:
        load_gater(model, gater)
    check_weights_finite(weights or spec, model, "Start from other weights")
    routed = "spec" in config and any(gate.options.get("routes") for gate in as_stored(config["spec"]).gates)
    return Initial(*_normalisation(spec, model, config, dataset), weights, transfer, routed)


def _load(model: nn.Module, source: str | None) -> tuple[dict[str, Any], Transfer | None]:
    """Load weights if there are any; return their `config.json`, and the report of `load_backbone` if used."""
    if source is None:
        return {}, None
    plain = plain_network(model)
    if isinstance(plain, Segmenter) and not has_segmentation_head(source):
        transfer = load_backbone(plain, source)
        return dict(transfer.config), transfer
    return dict(load_weights(model, source).config), None


def _check_same_gates(spec: ModelSpec, weights: str | None, config: Mapping[str, Any]) -> None:
    """Raise if the weights were trained with other gate options, which would change their meaning."""
    trained = {gate.name: gate.in_full.options for gate in as_stored(config["spec"]).gates} if "spec" in config else {}
    for choice in spec.gates:
        now = choice.in_full.options
        there = trained.get(choice.name, now)
        if not choice.is_gater and (differing := sorted(name for name in now if there.get(name) != now[name])):
            then, given = ({name: options.get(name) for name in differing} for options in (there, now))
            raise errors.InvalidValueError(
                f"{weights} was trained with {choice.name} and options {then}, got {given}. Use the same options: the "
                f"weights have another meaning with others."
            )


def _normalisation(
    spec: ModelSpec, model: nn.Module, config: Mapping[str, Any], dataset: Dataset | SegmentationDataset
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel: those of the initial weights' training, else of the data set."""
    if len(config.get("mean", ())) == len(config.get("std", ())) == dataset.channels:
        return torch.tensor(config["mean"]), torch.tensor(config["std"])
    if is_pretrained(spec):
        plain: Any = plain_network(model)
        if (found := PretrainedImages.of(plain.pretrained_cfg).for_channels(dataset.channels)) is not None:
            mean, std = map(torch.tensor, found)
            return mean, std
    return dataset.statistics()
