"""All numbers about one run's gates, gathered from its images before anything is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatewise.analysis.attention import QueryDistances, attention_maps, query_distances
from gatewise.analysis.gate_stats import GateSummary, gate_statistics
from gatewise.analysis.interventions import Removal, accuracy_with_gates_of, idle_gates, removal_cost
from gatewise.analysis.patterns import GatePatterns, record_patterns
from gatewise.analysis.runs import Run
from gatewise.gaternet import GaterNet
from gatewise.insertion import gates_in

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
        exchanged: accuracy on each class's images with each class's gates; see `accuracy_with_gates_of`.
    """

    net: GaterNet
    patterns: GatePatterns
    exchanged: Tensor


@dataclass(frozen=True)
class Findings:
    """What is known of one run; what it has no gates or images for is empty or None.

    Attributes:
        run: the run.
        gates: a summary of each gate, from input to output.
        removal: what leaving out the gates near the identity costs.
        attention: of gates that attend.
        gater: of a GaterNet.
    """

    run: Run
    gates: tuple[GateSummary, ...] = ()
    removal: Removal | None = None
    attention: Attention | None = None
    gater: GaterFindings | None = None


def find(run: Run) -> Findings:
    """Show a run's images to its network, once for each kind of number, and return what its gates did."""
    if run.images is None:
        return Findings(run)
    gater = _gater(run, run.model) if isinstance(run.model, GaterNet) else None
    if not gates_in(run.model):
        return Findings(run, gater=gater)
    gates = tuple(gate_statistics(run.model, run.batches(), len(run.classes)).values())
    removal = removal_cost(run.model, idle_gates(gates), run.batches())
    return Findings(run, gates, removal, _attention(run), gater)


def _attention(run: Run) -> Attention | None:
    images = next(run.batches())[0][:_PICTURES]
    maps = attention_maps(run.model, images, _QUERIES)
    if not maps:
        return None
    mean, std = (torch.tensor(run.config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    pictures = (images.cpu() * std + mean) / 255
    return Attention(pictures, maps, query_distances(run.model, run.batches()))


def _gater(run: Run, net: GaterNet) -> GaterFindings:
    patterns = record_patterns(net, run.batches(), len(run.classes))
    return GaterFindings(net, patterns, accuracy_with_gates_of(net, patterns, run.batches()))
