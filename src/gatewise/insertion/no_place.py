"""Say why a network has no place for a gate, and what to choose instead."""

import difflib
import re

from gatewise.core import _validation
from gatewise.core.layer_types import ANY_CONVOLUTIONS, LAZY_CONVOLUTIONS
from gatewise.graph import Graph, Place, Places, Skipped, find_places, place_kind, place_names
from gatewise.graph.selection import Names

_SHOWN = 3


def why_no_place(
    graph: Graph, gate: str, by_type: bool, candidates: Places, left_out: list[Skipped], include: Names | None
) -> str:
    """Return the message.

    Args:
        graph: of the network.
        gate: the gate, with its place if one was asked for.
        by_type: whether layer types were given instead of a place.
        candidates: the places that were found before the selection, and the skipped layers.
        left_out: the places that the selection leaves out, with reasons.
        include: the selection by name.
    """
    network = type(graph.model).__name__
    if candidates.found and all(skipped.reason == "not in include" for skipped in left_out):
        names = [place.layer for place in candidates.found]
        near = ", ".join(map(repr, _nearest(include, names)))
        return (
            f"no place for {gate} in {network}: include={_validation.safe_repr(include)} matches none of the "
            f"{len(names)} layers that have one. The nearest names are {near}."
        )
    skipped = left_out or candidates.skipped
    reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:_SHOWN]) or _what_is_missing(graph, by_type)
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    advice = "Change include=, exclude= or where=." if left_out else _advice(graph, gate)
    return f"no place for {gate} in {network} ({reasons}{more}). {advice}"


def _nearest(include: Names | None, names: list[str]) -> list[str]:
    """Return the names of layers, or of modules around them, that are most similar to what was given."""
    parts = [name.split(".") for name in names]
    known = list(dict.fromkeys(".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)))
    words = [include] if isinstance(include, str) else list(include or ())
    near = [
        name
        for word in words
        for name in difflib.get_close_matches(re.sub(r"[^\w.]|\.$", "", word), known, n=_SHOWN, cutoff=0.5)
    ]
    return (list(dict.fromkeys(near)) or names)[:_SHOWN]


def _what_is_missing(graph: Graph, by_type: bool) -> str:
    if by_type:
        return "it has no layer of the given types"
    return "the network has no such place" if _has_convolution(graph) else "it has no convolution"


def _has_convolution(graph: Graph) -> bool:
    convolutions = (*ANY_CONVOLUTIONS, *LAZY_CONVOLUTIONS)
    return any(isinstance(module, convolutions) for module in graph.modules.values())


def _advice(graph: Graph, gate: str) -> str:
    """Name the places that the network has; those that need a graph only if it was read already."""
    kinds = [place_kind(name) for name in place_names(marked=False)]
    known = [kind.name for kind in kinds if "operations" in vars(graph) or not kind.needs_graph]
    found: dict[str, list[Place]] = {name: find_places(graph, name).found for name in known}
    others = [f"{gate.partition('@')[0]}@{name} ({len(places)})" for name, places in found.items() if places]
    if others:
        return f"Choose a place that it has: {', '.join(others)}; or layers by type, with before= or after=."
    return (
        "Gates act on feature maps (N, C, *S) of convolutional networks; choose the layers that return such maps by "
        "type, with after=."
    )
