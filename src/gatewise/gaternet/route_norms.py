"""Batch norms of routes: each route has its own parameters and running statistics for every norm of the backbone."""

# pyright: basic

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core._torch_compat import call_while_tracing, tensors_by_name
from gatewise.core.hooks import names_of, submodule


def has_statistics(layer: nn.Module) -> bool:
    """Return whether a layer normalises by running statistics.

    >>> has_statistics(nn.BatchNorm2d(4)), has_statistics(nn.GroupNorm(2, 4))
    (True, False)
    """
    return isinstance(getattr(layer, "running_mean", None), Tensor)


class RouteNorms(nn.Module):
    """Copies of a backbone's batch norms, one set for each route (switchable batch norm).

    A running mean over images of several routes belongs to none of them. The backbone keeps its own norms, those of the
    dense network, and its parameter names.

    Args:
        backbone: the network whose norms are copied.
        routes: number of routes.

    Paper: Yu et al., Slimmable Neural Networks, ICLR 2019, arXiv 1812.08928.

    >>> norms = RouteNorms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), routes=2)
    >>> sorted(norms.tensors(1))[:2]
    ['1.bias', '1.num_batches_tracked']
    """

    def __init__(self, backbone: nn.Module, routes: int) -> None:
        super().__init__()
        self.paths: list[str] = [path for path, layer in backbone.named_modules() if has_statistics(layer)]
        self.of_routes = nn.ModuleList(self._copies(backbone) for _ in range(routes))

    def _copies(self, backbone: nn.Module) -> nn.ModuleList:
        return nn.ModuleList(copy.deepcopy(backbone.get_submodule(path)) for path in self.paths)

    def tensors(self, route: int) -> dict[str, Tensor]:
        """Return the parameters and buffers of one route's norms, by their names in the backbone."""
        found: dict[str, Tensor] = {}
        of_route: Any = self.of_routes[route]
        for path, norm in zip(self.paths, of_route, strict=True):
            found |= {f"{path}.{name}": tensor for name, tensor in tensors_by_name(norm).items()}
        return found

    @torch.no_grad()
    def follow(self, backbone: nn.Module) -> None:
        """Take over the parameters and statistics of the backbone's own norms, in place."""
        for route in range(len(self.of_routes)):
            for own, of_backbone in self._pairs(route, backbone):
                own.copy_(of_backbone)

    @torch.no_grad()
    def write(self, route: int, backbone: nn.Module) -> None:
        """Give the backbone's own norms the parameters and statistics of one route, in place."""
        for own, of_backbone in self._pairs(route, backbone):
            of_backbone.copy_(own)

    @contextlib.contextmanager
    def lent(self, route: int, backbone: nn.Module) -> Iterator[None]:
        """Let the backbone's norms have the tensors of one route; for torch.jit, which rejects `functional_call`."""
        of_backbone = tensors_by_name(backbone)
        own = {name: tensor for name, tensor in self.tensors(route).items() if name in of_backbone}
        try:
            _assign(backbone, own)
            yield
        finally:
            _assign(backbone, {name: of_backbone[name] for name in own})

    def _pairs(self, route: int, backbone: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Return the tensors of one route's norms, each with that of the backbone."""
        check_norms_kept(backbone, self)
        of_backbone = tensors_by_name(backbone)
        return [(own, of_backbone[name]) for name, own in self.tensors(route).items() if name in of_backbone]


@call_while_tracing
def check_norms_kept(backbone: nn.Module, norms: RouteNorms) -> None:
    """Raise InvalidValueError if a norm of the backbone would not read the tensors of a route; before every forward."""
    for path, norm in zip(norms.paths, norms.of_routes[0], strict=True):  # type: ignore[arg-type]
        layer = submodule(backbone, names_of(path))
        if layer is None or not _reads(layer, set(tensors_by_name(norm)) - {"num_batches_tracked"}):
            raise errors.InvalidValueError(
                f"each route has a batch norm of its own for {path!r}, but in the backbone this norm was fused, folded "
                f"or replaced. Undo that, or convert the backbone before a GaterNet is built from it; "
                f"skip_closed_filters(net) folds the norms of each route."
            )


def _assign(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        path, _, own = name.rpartition(".")
        setattr(network.get_submodule(path), own, tensor)


def _reads(layer: nn.Module, names: set[str]) -> bool:
    """Return whether a layer has tensors of these names, and a forward of its own, also within a wrapper."""
    replaced = vars(layer).get("forward")
    return names <= set(tensors_by_name(layer)) and (replaced is None or hasattr(replaced, "__wrapped__"))
