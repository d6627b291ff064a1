"""Registry of places: the positions in a network where gates can be inserted.

Each kind of place registers itself in its own file with `@register_place`. Insertion, GaterNet, the command line, the
tests and the documentation read this registry.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from gatewise.core.registry import PLACES, Registry
from gatewise.core.types import Example
from gatewise.graph.graph import Graph
from gatewise.graph.place import Places

PlaceRule = Callable[[Graph], Places]


@dataclass(frozen=True, kw_only=True)
class PlaceKind:
    """What is known of one kind of place.

    Attributes:
        name: key in the registry, as in "gct@inner".
        rule: finds the places in the graph of a network, without changing the network.
        where: position in the network, for the documentation.
        sites: value of GaterNet's option `sites` that gates the filters at these places, or '' if there is none.
        needs_graph: whether the rule reads operations; without, the network need not be traceable.
        marked: whether only networks that mark them with a `ContextPlace` have these places.
    """

    name: str
    rule: PlaceRule
    where: str
    sites: str = ""
    needs_graph: bool = True
    marked: bool = False


_registry: Registry[PlaceKind] = PLACES


def register_place(
    name: str, *, where: str, sites: str = "", needs_graph: bool = True, marked: bool = False
) -> Callable[[PlaceRule], PlaceRule]:
    """Return a decorator that registers a rule under `name`; `PlaceKind` documents the arguments.

    Raises:
        InvalidValueError: the name is in use or not an identifier.
    """
    _registry.check_new(name)

    def register(rule: PlaceRule) -> PlaceRule:
        _registry[name] = PlaceKind(
            name=name, rule=rule, where=where, sites=sites, needs_graph=needs_graph, marked=marked
        )
        return rule

    return register


def place_names(*, marked: bool = True) -> tuple[str, ...]:
    """Return the names of all places, those that a network must mark last; marked=False omits these.

    >>> place_names(marked=False)
    ('before_conv', 'inner', 'residual_end', 'stage_end')
    """
    kinds = sorted(_registry.values(), key=lambda kind: (kind.marked, kind.name))
    return tuple(kind.name for kind in kinds if marked or not kind.marked)


def place_kind(name: str) -> PlaceKind:
    """Return what is known of one kind of place.

    Raises:
        InvalidValueError: the name is unknown; the message suggests the nearest known name.
    """
    return _registry.lookup(name)


def find_places(model: nn.Module | Graph, place: str, example: Example = None) -> Places:
    """Return the places of one kind in `model`, without changing it.

    Args:
        model: the network to read, or its `Graph`, which is traced only once for several kinds.
        place: a kind of place, one of `place_names()`.
        example: an input (or a tuple of inputs), for networks with an input size that cannot be guessed; a `Graph` has
            its own.

    Raises:
        TypeError: if `model` is not a module.
        ValueError: if `place` is unknown or the structure of `model` cannot be read.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> [(p.layer, p.side, p.channels) for p in find_places(net, "inner").found]
    [('1', 'output', 8)]
    """
    graph = Graph.of("find_places", model, example)
    return place_kind(place).rule(graph).settled()
