"""All numbers about one run's gates, gathered from its images before anything is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatewise.analysis.attention import QueryDistances, attention_maps, query_distances
from gatewise.analysis.gate_summary import GateSummary
from gatewise.analysis.interventions import Exchange, Removal, exchange_gates, idle_gates, removal_cost
from gatewise.analysis.patterns import GatePatterns, record_patterns
from gatewise.analysis.runs import Run
from gatewise.gaternet import GaterNet
from gatewise.insertion import gates_in
from gatewise.places import evaluation_mode
from gatewise.training import pixel_classes

_PICTURES = 4  # images that attention is laid over
_QUERIES = 3


@dataclass(frozen=True)
class Attention:
    """Where gates look.

    Attributes:
        pictures: a few images, (N, C, H, W) in [0, 1].
        maps: gate's path -> its maps over those images and the positions that ask; see `attention_maps`.
        distances: over all images.
    """

    pictures: Tensor
    maps: Mapping[str, tuple[Tensor, Tensor]]
    distances: Sequence[QueryDistances]


@dataclass(frozen=True)
class GaterFindings:
    """What a gater does.

    Attributes:
        net: whose gater it is.
        patterns: which gates it opens.
        expected_macs: multiply-adds of an image if each gate opened as often as it does, but independently of others.
        exchange: accuracy on each class's images with each class's gates; None where images have no class.
    """

    net: GaterNet
    patterns: GatePatterns
    expected_macs: float
    exchange: Exchange | None


@dataclass(frozen=True)
class Pixels:
    """How a network labels a few images.

    Attributes:
        pictures: the images, (N, C, H, W) in [0, 1].
        masks: the class of each pixel, 255 where it does not count, (N, H, W).
        predicted: the class that the network gives it, (N, H, W).
    """

    pictures: Tensor
    masks: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class Findings:
    """What is known of one run; what it has no gates or images for is empty or None.

    Attributes:
        run: the run.
        gates: a summary of each gate that was reached, from input to output.
        unreached: paths of the others.
        removal: what leaving out the gates near the identity costs.
        attention: of gates that attend.
        gater: of a GaterNet.
        pixels: of a network that labels every pixel.
    """

    run: Run
    gates: tuple[GateSummary, ...] = ()
    unreached: tuple[str, ...] = ()
    removal: Removal | None = None
    attention: Attention | None = None
    gater: GaterFindings | None = None
    pixels: Pixels | None = None


def find(run: Run, keep: int = 2000) -> Findings:
    """Show a run's images to its network, once for each kind of number, and return what its gates did.

    Args:
        run: opened, with images or without.
        keep: how many whole patterns of a GaterNet are kept for laying them out in the plane.
    """
    from gatewise.analysis.gate_stats import gate_statistics  # torchmetrics takes seconds to import

    if run.images is None:
        return Findings(run)
    gater = _gater(run, run.model, keep) if isinstance(run.model, GaterNet) else None
    pixels = _pixels(run) if run.task == "segment" else None
    inserted = gates_in(run.model)
    if not inserted:
        return Findings(run, gater=gater, pixels=pixels)
    found = gate_statistics(run.model, run.batches(), len(run.image_classes))
    gates = tuple(found.values())
    unreached = tuple(path for path in inserted if path not in found)
    removal = removal_cost(run.model, idle_gates(gates), run.batches())
    return Findings(run, gates, unreached, removal, _attention(run), gater, pixels)


def _attention(run: Run) -> Attention | None:
    images, _ = run.examples(_PICTURES)
    maps = attention_maps(run.model, images, _QUERIES)
    if not maps:
        return None
    return Attention(run.pictures(images), maps, query_distances(run.model, run.batches()))


def _pixels(run: Run) -> Pixels:
    images, masks = run.examples(_PICTURES)
    with evaluation_mode(run.model), torch.no_grad():
        predicted = pixel_classes(run.model(images))
    return Pixels(run.pictures(images), masks.cpu(), predicted.cpu())


def _gater(run: Run, net: GaterNet, keep: int) -> GaterFindings:
    patterns = record_patterns(net, run.by_class(), max(1, len(run.image_classes)), keep)
    rates = patterns.images_by_gate.double() / patterns.images
    expected = float(net.executed_macs(rates.unsqueeze(0)))
    exchange = exchange_gates(net, patterns, run.batches()) if run.image_classes else None
    return GaterFindings(net, patterns, expected, exchange)
