"""Find the gates that are constant over a set of images, and rebuild the network without them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from gatewise import errors
from gatewise.core.loaders import batches_of
from gatewise.core.schema import convert
from gatewise.core.seeding import seeded
from gatewise.gaternet import GaterNet
from gatewise.graph import ChannelDependency, evaluation_mode
from gatewise.graph.measure import macs_per_sample, parameter_count
from gatewise.inference.restructure import GateState, restructure
from gatewise.inference.slicing import output_count
from gatewise.inference.verify import largest_difference


@dataclass(frozen=True)
class CompactSite:
    """The result of `compact` for one gated layer.

    Attributes:
        name: path of the convolution.
        filters: number of filters before.
        removed: number of removed filters.
        decided: number of gates that still depend on the image.
        kept: why closed filters, or the inputs of their consumers, could not be removed; '' if all were.
    """

    name: str
    filters: int
    removed: int
    decided: int
    kept: str


@dataclass(frozen=True)
class Compaction:
    """The report of `compact` for one network.

    Attributes:
        states: one character per gate: "1" always open, "0" always closed, "?" still depends on the image.
        images: number of images that determined the states.
        sites: the result for each gated layer.
        whole: names of the sites that keep all filters, including closed ones.
        difference: max |small - net| / max |net| over the outputs of these images.
        checked: number of images in the second set.
        disagreeing: number of those for which `net` changes a gate that is constant in the compacted network.
        macs_before: multiply-adds of `net` for one image, with all filters and the gater.
        macs_after: multiply-adds of the compacted network.
        parameters_before: number of parameters of `net`.
        parameters_after: number of parameters of the compacted network.
    """

    states: Annotated[str, Meta(pattern=f"^[{''.join(GateState)}]*$")]
    images: int
    sites: tuple[CompactSite, ...]
    whole: tuple[str, ...]
    difference: float
    checked: int
    disagreeing: int
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be written as JSON."""
        return asdict(self)

    def apply(self, net: GaterNet) -> Any:
        """Return a copy of `net`, which has the same architecture, without the constant gates and closed filters.

        Raises:
            TypeError: if `net` is not a GaterNet.
            ValueError: if `net` has another number of gates.
        """
        if not isinstance(net, GaterNet):
            raise errors.InvalidTypeError(
                f"a compaction applies to a GaterNet, got {type(net).__name__}. Use the spec of the same run."
            )
        if len(self.states) != net.gate_count:
            raise errors.InvalidValueError(
                f"the compaction has {len(self.states)} gates, and the network has {net.gate_count}. "
                f"Use the compaction of the same run."
            )
        return restructure(net, [*map(GateState, self.states)], self.whole)[0]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Compaction":
        """Restore a compaction from the result of `to_dict`."""
        return convert("a compaction", values, cls)

    def __str__(self) -> str:
        counts = [f"{self.states.count(state)} {name}" for state, name in _NAMES.items()]
        removed = sum(site.removed for site in self.sites)
        kept = Counter(site.kept for site in self.sites if site.kept)
        macs = [f"{count / 1e6:.2f} M" for count in (self.macs_before, self.macs_after)]
        lines = [
            f"{', '.join(counts)} on {self.images} images; {removed} filters removed",
            f"{macs[0]} multiply-adds per image -> {macs[1]} (all filters open, and gater)",
            f"{self.parameters_before:,} parameters -> {self.parameters_after:,}",
            f"outputs equal to {self.difference:.1e}",
            *(f"{count} x {reason}" for reason, count in list(kept.items())[:_REASONS]),
        ]
        if len(kept) > _REASONS:
            lines.append(f"and {len(kept) - _REASONS} more reasons")
        if self.checked:
            lines.append(f"{self.disagreeing} of {self.checked} other images change a constant gate")
        return "\n".join(lines)


_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.1}  # TF32 included
_REASONS = 5  # number of reasons in the text; `sites` has all of them
_NAMES = {GateState.OPEN: "gates always open", GateState.CLOSED: "always closed", GateState.DECIDED: "still decided"}


def compact(net: GaterNet, loader: Iterable[Any], *, check: Iterable[Any] = ()) -> Any:
    """Return a copy of `net` without the filters that are closed for all images, and without constant gates.

    Always-closed filters are removed with their norm parameters and the inputs of their consumers. If that is not
    possible (before an addition, a concatenation or a gate over all channels), zeros replace their outputs. The gates
    of always-open filters are removed. The gater's last layer keeps only the gates that still depend on the image. The
    result is an ordinary module: the plain backbone if all gates are constant, otherwise a `GaterNet`.

    Args:
        net: the trained network; it is not changed, and runs in eval mode.
        loader: batches of images (N, C, H, W), tuples that start with images, or dicts with images. Gates that are
            constant over these images are treated as constant. It is read several times.
        check: batches of other images, to count those with other values of the constant gates.

    Returns:
        The compacted network, with its report in the attribute `compaction`.

    Raises:
        TypeError: if `net` is not a GaterNet, or `loader` can be read only once.
        ValueError: if `loader` has no images, or the compacted network does not compute what `net` computes.

    >>> _ = torch.manual_seed(0)
    >>> backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> net = GaterNet(backbone, gater=lambda gates: Constant([1.0] * 6 + [-1.0] * 2), image_size=(8, 8))
    >>> small = compact(net, [torch.randn(2, 3, 8, 8)])
    >>> small[0], small.compaction.states
    (Conv2d(3, 6, kernel_size=(3, 3), stride=(1, 1)), '11111100')
    """
    if not isinstance(net, GaterNet):
        raise errors.InvalidTypeError(
            f"compact expects a GaterNet, got {type(net).__name__}. Wrap the network first: gw.GaterNet(network)."
        )
    if net.routes is not None and len(net.routes) > 1:
        raise errors.InvalidValueError(
            "compact expects a network that chooses its gates one by one, and this one has routes. Compact one of "
            "them, compact(net.of_route(0), loader), or let each image run through its own: skip_closed_filters(net)."
        )
    device = next(net.parameters()).device
    batches = loader if isinstance(loader, list | tuple | Tensor) else _Rereadable(loader)
    opened, images = _count_open(net, batches, device)
    if not images:
        raise errors.InvalidValueError("compact needs images to find the constant gates, and the loader has none.")
    constant = {0: GateState.CLOSED, images: GateState.OPEN}
    states = [constant.get(int(count), GateState.DECIDED) for count in opened]
    small, dependencies = restructure(net, states)
    _check_same(net, small, states, next(_images(batches, device)))
    checked, disagreeing = _disagreeing(net, check, states, device)
    small.compaction = Compaction(  # type: ignore[assignment]  # pyright: ignore
        states="".join(states),
        images=images,
        sites=_sites(net, small, states, dependencies),
        whole=tuple(
            site.name for site, dependency in zip(net.sites, dependencies, strict=True) if not dependency.possible
        ),
        difference=_difference(net, small, batches, device),
        checked=checked,
        disagreeing=disagreeing,
        macs_before=net.dense_macs + net.gater_macs,
        macs_after=_dense_macs(small, net),
        parameters_before=parameter_count(net),
        parameters_after=parameter_count(small),
    )
    return small


class Constant(nn.Module):
    """A gater that gives every image the same logits: (N, ...) -> (N, gates)."""

    logits: Tensor

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(x.shape[0], -1)


class _Rereadable:
    """An iterable that can be read twice; raise TypeError for a generator."""

    def __init__(self, loader: Iterable[Any]) -> None:
        if iter(loader) is loader:
            raise errors.InvalidTypeError(
                "compact reads the images twice, and a generator can be read once. Pass a list or a DataLoader."
            )
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def _images(batches: Iterable[Any], device: torch.device) -> Iterator[Tensor]:
    for images, _ in batches_of(batches, "compact"):
        yield images.to(device)


def _count_open(net: GaterNet, batches: Iterable[Any], device: torch.device) -> tuple[Tensor, int]:
    opened, count = torch.zeros(net.gate_count, dtype=torch.long, device=device), 0
    with evaluation_mode(net), torch.no_grad():
        for x in _images(batches, device):
            opened += net.forward_with_gates(x)[1].long().sum(0)
            count += len(x)
    return opened, count


def _disagreeing(
    net: GaterNet, batches: Iterable[Any], states: Sequence[GateState], device: torch.device
) -> tuple[int, int]:
    """Return the number of images, and of those with another value of a constant gate."""
    constant = torch.tensor([state != GateState.DECIDED for state in states], device=device)
    expected = torch.tensor([float(state == GateState.OPEN) for state in states], device=device)
    checked = disagreeing = 0
    with evaluation_mode(net), torch.no_grad():
        for x in _images(batches, device):
            gates = net.forward_with_gates(x)[1]
            disagreeing += int(((gates != expected) & constant).any(1).sum())
            checked += len(x)
    return checked, disagreeing


def _check_same(net: GaterNet, small: nn.Module, states: Sequence[GateState], x: Tensor) -> None:
    """Raise unless both networks compute the same, except for rounding, from these images and the gates of `net`."""
    decided = torch.tensor([state == GateState.DECIDED for state in states], device=x.device)
    with evaluation_mode(net), evaluation_mode(small), torch.no_grad():
        with seeded(0):
            expected, gates = net.forward_with_gates(x)
        with seeded(0):
            found = small(x, gates[:, decided]) if isinstance(small, GaterNet) else small(x)
    difference = largest_difference(found, expected)
    if not difference <= _ROUNDING.get(next(net.parameters()).dtype, _ROUNDING[torch.float16]):
        raise errors.InvalidValueError(
            f"the compacted {type(net.backbone).__name__} differs by {difference:.1e} from the network. Does its "
            f"forward draw random numbers, or call a network that is none of its modules? Define such calls in its "
            f"class."
        )


def _difference(net: GaterNet, small: nn.Module, batches: Iterable[Any], device: torch.device) -> float:
    with evaluation_mode(net), evaluation_mode(small), torch.no_grad():
        return max(largest_difference(small(x), net(x)) for x in _images(batches, device))


def _dense_macs(small: nn.Module, net: GaterNet) -> int:
    if isinstance(small, GaterNet):
        return small.dense_macs + small.gater_macs
    anchor = next(small.parameters())
    return macs_per_sample(small, torch.zeros(2, *net.input_shape).to(anchor))


def _sites(
    net: GaterNet, small: nn.Module, states: Sequence[GateState], dependencies: list[ChannelDependency]
) -> tuple[CompactSite, ...]:
    backbone = small.backbone if isinstance(small, GaterNet) else small
    rows: list[CompactSite] = []
    for site, dependency in zip(net.sites, dependencies, strict=True):
        own = states[site.first : site.first + site.gates]
        removed = site.filters - output_count(backbone.get_submodule(site.name)) if dependency.possible else 0
        rows.append(CompactSite(site.name, site.filters, removed, own.count(GateState.DECIDED), _kept(dependency, own)))
    return tuple(rows)


def _kept(dependency: ChannelDependency, own: Sequence[GateState]) -> str:
    if GateState.CLOSED not in own or not dependency.reason:
        return ""
    return f"{'inputs of later layers' if dependency.possible else 'closed filters'} kept: {dependency.reason}"
