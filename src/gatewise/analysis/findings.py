"""Collect all statistics of one network's gates before anything is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatewise.analysis.attention import QueryDistances, attention_maps, query_distances
from gatewise.analysis.gate_summary import GateSummary
from gatewise.analysis.given_network import Subject
from gatewise.analysis.interventions import Exchange, Removal, exchange_gates, idle_gates, removal_cost
from gatewise.analysis.patterns import GatePatterns, record_patterns
from gatewise.analysis.route_use import RouteUse, record_routes
from gatewise.core.types import main_output
from gatewise.gaternet import GaterNet
from gatewise.graph import evaluation_mode
from gatewise.insertion.insert import gates_in

_PICTURES = 4  # images with attention maps drawn over them
_QUERIES = 3


@dataclass(frozen=True)
class Attention:
    """Attention of a run's gates.

    Attributes:
        pictures: a few images, (N, C, H, W) in [0, 1].
        maps: gate path -> (attention maps of those images, query positions); see `attention_maps`.
        distances: distances between query positions, averaged over all images.
    """

    pictures: Tensor
    maps: Mapping[str, tuple[Tensor, Tensor]]
    distances: Sequence[QueryDistances]


@dataclass(frozen=True)
class GaterFindings:
    """Statistics of a gater.

    Attributes:
        net: the GaterNet.
        patterns: counts of the gates that it opens.
        expected_macs: multiply-adds per image if gates opened at the same rates, but independently of each other.
        exchange: accuracy on the images of each class with the gates of each class; None if images have no class.
        routes: which images take which route; None without routes.
    """

    net: GaterNet
    patterns: GatePatterns
    expected_macs: float
    exchange: Exchange | None
    routes: RouteUse | None = None


@dataclass(frozen=True)
class Pixels:
    """Masks and predicted masks of a few images.

    Attributes:
        pictures: the images, (N, C, H, W) in [0, 1].
        masks: class of each pixel, 255 where it is ignored, (N, H, W).
        predicted: predicted class of each pixel, (N, H, W).
    """

    pictures: Tensor
    masks: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class Findings:
    """All statistics of one network; fields without such gates or without images are empty or None.

    Attributes:
        run: the run, or the network without one.
        gates: summaries of the gates that were reached, from input to output.
        unreached: paths of the other gates.
        idle: paths of the gates near the identity.
        removal: accuracy with and without these; None without labels.
        attention: attention of the gates that have it.
        gater: statistics of the gater of a GaterNet.
        pixels: predicted masks of a segmentation network.
    """

    run: Subject
    gates: tuple[GateSummary, ...] = ()
    unreached: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    removal: Removal | None = None
    attention: Attention | None = None
    gater: GaterFindings | None = None
    pixels: Pixels | None = None


def find(run: Subject, keep: int = 2000) -> Findings:
    """Run a network over its images, once per kind of statistic, and return the statistics of its gates.

    Args:
        run: an opened run, with or without images, or a network with images.
        keep: number of full gate patterns of a GaterNet that are kept for the 2D embedding.
    """
    from gatewise.analysis.gate_stats import gate_statistics  # torchmetrics takes seconds to import

    if run.images is None:
        return Findings(run)
    gater = _gater(run, run.model, keep) if isinstance(run.model, GaterNet) else None
    pixels = _pixels(run) if run.task is not None and run.task.class_per_pixel else None
    inserted = gates_in(run.model)
    if not inserted:
        return Findings(run, gater=gater, pixels=pixels)
    groups = () if run.task is None else run.task.image_groups
    grouped = (
        (images, run.task.groups_of(labels) if run.task and groups else labels) for images, labels in run.batches()
    )
    summaries = gate_statistics(run.model, grouped, len(groups))
    gates = tuple(summaries.values())
    unreached = tuple(path for path in inserted if path not in summaries)
    idle = idle_gates(gates)
    removal = None if run.task is None else removal_cost(run.model, idle, run.batches(), run.task.hits)
    return Findings(run, gates, unreached, idle, removal, _attention(run), gater, pixels)


def _attention(run: Subject) -> Attention | None:
    images, _ = run.examples(_PICTURES)
    if images.dim() != 4:  # no pictures to draw it over
        return None
    maps = attention_maps(run.model, images, _QUERIES)
    if not maps:
        return None
    return Attention(run.pictures(images), maps, query_distances(run.model, run.batches()))


def _pixels(run: Subject) -> Pixels:
    images, masks = run.examples(_PICTURES)
    assert run.task is not None
    with evaluation_mode(run.model), torch.no_grad():
        predicted = run.task.predicted(main_output(run.model(images)))
    return Pixels(run.pictures(images), masks.cpu(), predicted.cpu())


def _gater(run: Subject, net: GaterNet, keep: int) -> GaterFindings:
    patterns = record_patterns(net, run.by_class(), max(1, len(run.image_classes)), keep)
    rates = patterns.images_by_gate.double() / patterns.images
    expected = float(net.executed_macs(rates.unsqueeze(0)))
    exchange = exchange_gates(net, patterns, run.batches(), run.task.hits) if run.task and run.image_classes else None
    routes = None if net.routes is None else record_routes(net, run.by_class(), max(1, len(run.image_classes)))
    return GaterFindings(net, patterns, expected, exchange, routes)
