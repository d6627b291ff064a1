"""The initial weights of a training, and the normalisation of images that belongs to them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.data import Dataset, SegmentationDataset
from gatewise.gaternet import GaterNet, plain_network
from gatewise.gates.spec import ModelSpec
from gatewise.models import Segmenter
from gatewise.models.pretrained import PretrainedImages, is_pretrained
from gatewise.models.serialization import check_weights_finite, fill, load_gater, load_model, read_config
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
        has_gates: whether the weights have a gater, so that they need not start with all gates open.
        has_routes: whether the weights have the routes of a GaterNet.
        unrouted: the weights' own network, if it decides its gates one by one and the new one has routes, which are
            then those of its gates; else None.
    """

    mean: Tensor
    std: Tensor
    weights: str | None
    transfer: Transfer | None
    has_gates: bool = False
    has_routes: bool = False
    unrouted: GaterNet | None = None


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
    unrouted = _unrouted(model, weights)
    config, transfer = _load(model, weights, unrouted)
    _check_same_gates(spec, weights, config)
    if gater:
        load_gater(model, gater)
    check_weights_finite(weights or spec, model, "Start from other weights")
    gaters = [gate for gate in as_stored(config["spec"]).gates if gate.is_gater] if "spec" in config else []
    routed = unrouted is not None or any(gate.options.get("routes") for gate in gaters)
    statistics = _normalisation(spec, model, config, dataset)
    return Initial(*statistics, weights, transfer, bool(gaters), routed, unrouted)


def _unrouted(model: nn.Module, weights: str | None) -> GaterNet | None:
    """Return the network of a run that decides its gates one by one, if `model` has routes for the same gates."""
    if weights is None or not Path(weights).is_dir() or not isinstance(model, GaterNet) or model.routes is None:
        return None
    if not any(gate.is_gater for gate in as_stored(read_config(Path(weights))["spec"]).gates):
        return None
    source: Any = load_model(weights)[0]
    if source.routes is not None:
        return None
    if source.is_local:
        raise errors.InvalidValueError(
            f"{weights} decides its gates layer by layer (gater=local), so they are no routes. Start from a run with "
            f"another gater."
        )
    own, theirs = ([(site.name, site.gates) for site in net.sites] for net in (model, source))
    if own != theirs:
        raise errors.InvalidValueError(
            f"routes of {weights} open its {source.gate_count} gates, got a network with {model.gate_count} gates at "
            f"other sites or of another group_size. Give the options of that run; a compacted run has fewer gates."
        )
    return source


def _load(model: nn.Module, source: str | None, unrouted: GaterNet | None) -> tuple[dict[str, Any], Transfer | None]:
    """Load weights if there are any; return their `config.json`, and the report of `load_backbone` if used."""
    if source is None:
        return {}, None
    if unrouted is not None:
        net: Any = model
        fill(net.backbone, unrouted.backbone.state_dict(), Path(source))
        return read_config(Path(source)), None
    plain = plain_network(model)
    if isinstance(plain, Segmenter) and not has_segmentation_head(source):
        transfer = load_backbone(plain, source)
        if isinstance(model, GaterNet):
            model.norms_follow_backbone()
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
