"""Select places of a network by kind of place, layer type or path."""

import re
from collections.abc import Callable, Sequence

from torch import nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.layer_types import ANY_CONVOLUTIONS, spatial_axes
from gatewise.graph.graph import Graph, own_layers, place_at
from gatewise.graph.place import Place, Places
from gatewise.graph.places.registry import find_places

LayerTypes = type[nn.Module] | tuple[type[nn.Module], ...]
Names = str | Sequence[str]


def candidates(graph: Graph, place: str | None, before: LayerTypes | None, after: LayerTypes | None) -> Places:
    """Return the places of a kind, or those before or after layers of the given types, and skipped candidates."""
    types = after if before is None else before
    if types is not None:
        if not all(isinstance(t, type) and issubclass(t, nn.Module) for t in _as_tuple(types)):
            raise errors.InvalidTypeError(
                f"before= and after= take layer types such as torch.nn.Conv2d, got {_validation.safe_repr(types)}."
            )
        plain = Places()
        if before is not None and all(issubclass(t, ANY_CONVOLUTIONS) for t in _as_tuple(types)):
            for name, layer in own_layers(graph.model):  # its input is known without a graph
                if isinstance(layer, ANY_CONVOLUTIONS) and isinstance(layer, types):
                    plain.found.append(Place(name, "input", layer.in_channels, spatial_axes(layer)))
            return plain
        return _boundary_places(graph, "output" if before is None else "input", types)
    if place is None:
        raise errors.InvalidValueError("a gate given as a class needs place=, before= or after=.")
    return find_places(graph, place)


def _boundary_places(graph: Graph, side: str, types: LayerTypes) -> Places:
    """Return the inputs or outputs (`side`) of all layers of these types."""
    places = Places()
    for name, layer in own_layers(graph.model):
        if name and isinstance(layer, types):
            boundary = graph.reads(name) if side == "input" else graph.results(name)
            maps = [op for op in dict.fromkeys(boundary) if op.is_map]
            reason = graph.why_not_attachable(name) or graph.why_no_single_map(name, side, maps)
            if reason is None:
                places.found.append(place_at(name, side, maps[0]))
            else:
                places.skip(name, reason)
    return places


def _as_tuple(types: LayerTypes) -> tuple[type[nn.Module], ...]:
    return types if isinstance(types, tuple) else (types,)


def selection(
    model: nn.Module,
    include: Names | None,
    exclude: Names | None,
    where: Callable[[str, nn.Module], bool] | None,
) -> Callable[[str], str | None]:
    """Return a function that maps the path of a layer to the reason for skipping it, or None."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for what, names in (("include", include), ("exclude", exclude)):
        if names is not None and not isinstance(names, str | list | tuple | set):
            raise errors.InvalidTypeError(
                f"{what} must be a regular expression or a list of layers, got {_validation.safe_repr(names)}."
            )
    for expression in (names for names in (include, exclude) if isinstance(names, str)):
        _validation.check_regular_expression(repr(expression), expression)
    for name in (n for names in (include, exclude) if names and not isinstance(names, str) for n in names):
        _validation.check_one_of("layer", name, modules)

    def matches(names: Names, path: str) -> bool:
        if isinstance(names, str):
            return re.search(names, path) is not None
        return any(path == name or path.startswith(f"{name}.") for name in names)

    def why_not_selected(path: str) -> str | None:
        if include is not None and not matches(include, path):
            return "not in include"
        if exclude is not None and matches(exclude, path):
            return "in exclude"
        if where is not None and not where(path, modules[path]):
            return "where() is false for it"
        return None

    return why_not_selected
