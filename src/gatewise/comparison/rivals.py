"""Rivals: for every gate a plain network, wider or narrower, that costs the same, chosen before any training.

`out/rivals.json` keeps the choices with their measurements; a comparison that continues reads them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_record, write_record
from gatewise.core.schema import of_file
from gatewise.data import Dataset, SegmentationDataset
from gatewise.gaternet import GaterNet
from gatewise.gates.spec import ModelSpec
from gatewise.graph import measure
from gatewise.models.pretrained import is_pretrained
from gatewise.models.scaling import UNITS, nearest_width, widths_of, without_values
from gatewise.training import Recipe, build_model

COSTS = {"params": "parameters", "macs": "multiply-adds", "latency": "milliseconds for one image, PyTorch eager"}
RIVALS = "rivals.json"
_FORMAT = 1
_SAME = 0.02  # relative difference of costs that are taken for equal
_FARTHEST = 0.1  # largest relative difference of the costs of a gate and its rival
_CLOSE = 0.01  # relative difference up to which widths stay multiples of a larger number
_SEARCH_STEPS = 6  # bisections by latency, each with a measurement
_SEARCH_TIMING: Any = {"rounds": 25, "seconds_per_turn": 0.01}  # short turns, so that both networks meet the same load
_TIMING: Any = {"rounds": 51, "seconds_per_turn": 0.02}
_PATTERNS = 256  # of gates, for the expected multiply-adds of a GaterNet


@dataclass(frozen=True)
class Rival:
    """The rival of a gate for one kind of cost.

    Attributes:
        gates: the choice of gates.
        cost: params, macs or latency.
        network: the plain network, with its width; "" if there is none.
        of_gates: cost of the network with gates; for a latency the median, in milliseconds.
        of_network: cost of the plain network.
        quartiles: for a latency the quartiles of both over the rounds, and of their ratio.
        why: why there is no rival, or "".
    """

    gates: str
    cost: str
    network: str
    of_gates: float
    of_network: float | None = None
    quartiles: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    why: str = ""


@dataclass(frozen=True)
class _Record:
    """Content of `rivals.json`: what the choices were made for, and the choices."""

    model: str
    image: list[int]
    outputs: int
    rivals: list[Rival]


def parse_costs(text: str) -> tuple[str, ...]:
    """Parse kinds of cost, separated by commas.

    >>> parse_costs("macs,latency")
    ('macs', 'latency')
    """
    chosen = [part.strip() for part in _validation.check_str("rivals", text).split(",") if part.strip()]
    return tuple(dict.fromkeys(_validation.check_one_of("rivals", cost, COSTS) for cost in chosen))


def choose_rivals(
    recipe: Recipe,
    gates: Sequence[str],
    costs: Sequence[str],
    dataset: Dataset | SegmentationDataset,
    out: Path,
    say: Callable[[str], None] | None = None,
) -> list[Rival]:
    """Return the rival of each choice of gates and kind of cost; read from `out`, or chosen and written there.

    Raises:
        InvalidValueError: the trainings begin with weights that no other width has, or `out` has the rivals of another
            network.
    """
    _check_from_scratch(recipe)
    costing = _Costing(recipe, dataset)
    known = _read(out / RIVALS, costing)
    wanted = [(name, cost) for cost in costs for name in gates if name != "none"]
    for name, cost in wanted:
        if (name, cost) not in known:
            known[name, cost] = rival = costing.choose(name, cost, known.values())
            if say is not None:
                say(describe(rival))
    record = _Record(costing.model, list(costing.image.shape[1:]), costing.outputs, list(known.values()))
    write_record(out / RIVALS, dataclasses.asdict(record), _FORMAT)
    return [known[key] for key in wanted]


def describe(rival: Rival) -> str:
    """Return one line about a rival.

    >>> describe(Rival("se", "macs", "resnet20", 40.9e6, 40.8e6))
    'rival of se by multiply-adds: resnet20, 40.80 M against 40.90 M'
    """
    what = f"rival of {rival.gates} by {COSTS[rival.cost]}"
    if rival.of_network is None or not rival.network:
        return f"{what}: none, {rival.why}"
    own, other = (shown_cost(rival.cost, value) for value in (rival.of_gates, rival.of_network))
    spread = ""
    if "ratio" in rival.quartiles:
        spread = f" (ratio over rounds {rival.quartiles['ratio'][0]:.2f} to {rival.quartiles['ratio'][1]:.2f})"
    return f"{what}: {rival.network}, {other} against {own}{spread}"


def shown_cost(cost: str, value: float, quartiles: Sequence[float] | None = None) -> str:
    """Return a cost with its unit, and with quartiles where it was measured.

    >>> shown_cost("latency", 2.5, [2.4, 2.6])
    '2.50 [2.40, 2.60] ms'
    """
    spread = "" if quartiles is None else f" [{quartiles[0]:.2f}, {quartiles[1]:.2f}]"
    return {"params": f"{value:,.0f}", "macs": f"{value / 1e6:.2f} M", "latency": f"{value:.2f}{spread} ms"}[cost]


def recorded_rivals(out: Path) -> tuple[list[Rival], str]:
    """Return all rivals that were ever chosen for a comparison, and its plain network; [] and "" if none were."""
    if not (out / RIVALS).exists():
        return [], ""
    record = _record(out / RIVALS)
    return record.rivals, record.model


def _record(file: Path) -> _Record:
    content = read_record(file, _FORMAT, "rivals")
    return of_file(file, {key: value for key, value in content.items() if key in _Record.__annotations__}, _Record)


def _read(file: Path, costing: "_Costing") -> dict[tuple[str, str], Rival]:
    if not file.exists():
        return {}
    record = _record(file)
    for what, there, now in (
        ("model", record.model, costing.model),
        ("images of", record.image, list(costing.image.shape[1:])),
        ("outputs", record.outputs, costing.outputs),
    ):
        if there != now:
            raise errors.InvalidValueError(
                f"{file} has rivals for other trainings: {what} {there!r} there, {now!r} now. Choose another --out."
            )
    return {(rival.gates, rival.cost): rival for rival in record.rivals}


def _check_from_scratch(recipe: Recipe) -> None:
    start = f"init is {recipe.init}" if recipe.init else "pretrained is true" if is_pretrained(recipe.spec) else ""
    if start:
        raise errors.InvalidValueError(
            f"{start}, but a rival of another width cannot begin with these weights, so it would not be a fair one. "
            f"Omit --rivals, or train all from scratch."
        )


class _Costing:
    """What the networks of a comparison cost on its images, and the search for plain networks of equal cost."""

    def __init__(self, recipe: Recipe, dataset: Dataset | SegmentationDataset) -> None:
        self.recipe, self.dataset = recipe, dataset
        self.plain = recipe.task_spec.kind.network(ModelSpec.parse(recipe.model))
        self.model = recipe.model
        self.outputs = recipe.task_spec.make(dataset.classes).outputs
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.image = torch.randn(1, dataset.channels, *dataset.size)
        self._costs: dict[tuple[str, str], float] = {}

    def choose(self, gates: str, cost: str, chosen: Iterable[Rival]) -> Rival:
        """Return the rival of one choice of gates: a network that is there already, or one of a new width."""
        there = dict.fromkeys([self.model, *(rival.network for rival in chosen if rival.network)])
        with_gates = self._with_gates(gates)
        if cost == "latency":
            against = functools.partial(self._milliseconds, with_gates)
            target = 1.0
        else:
            against = functools.partial(self._counted, cost)
            target = _macs(with_gates, self.image) if cost == "macs" else measure.parameter_count(with_gates)
        network = self._same_cost(there, against, target)
        why = ""
        if network is None:
            network, why = self._of_new_width(cost, against, target)
        rival = Rival(gates, cost, network or "", float(target), why=why)
        if cost == "latency":
            return self._timed(rival, with_gates)
        return dataclasses.replace(rival, of_network=against(ModelSpec.parse(network))) if network else rival

    def _same_cost(self, there: Iterable[str], against: Callable[[ModelSpec], float], target: float) -> str | None:
        """Return the plain network, or else the nearest other one, if its cost is within 2 % of `target`."""
        apart = {name: abs(against(ModelSpec.parse(name)) / target - 1) for name in there}
        near = [name for name, distance in apart.items() if distance <= _SAME]
        return self.model if self.model in near else min(near, key=apart.__getitem__, default=None)

    def _of_new_width(self, cost: str, against: Callable[[ModelSpec], float], target: float) -> tuple[str | None, str]:
        """Return the network of another width with the nearest cost, or None, and why there is none."""
        options: Any = {"tolerance": _SAME / 2, "steps": _SEARCH_STEPS} if cost == "latency" else {}
        best: tuple[ModelSpec, float] | None = None
        try:
            widths = widths_of(self.plain, num_classes=self.outputs, in_chans=self.dataset.channels)
        except errors.GatewiseError as error:
            return None, str(error).rstrip(".")
        for unit in UNITS:
            try:
                found = nearest_width(lambda factor, unit=unit: widths(factor, unit), against, target, **options)
            except errors.InvalidValueError:  # such widths cannot be built
                continue
            if best is None or abs(found[1] / target - 1) < abs(best[1] / target - 1):
                best = found
            if abs(found[1] / target - 1) <= _CLOSE:
                break
        if best is None:
            return None, f"{self.model} cannot be built in other widths"
        if abs(best[1] / target - 1) > _FARTHEST:
            return None, f"no width of {self.model} is that near; {best[0]} costs {best[1] / target:.2f} times as much"
        same = self._counted("params", best[0]) == self._counted("params", self.plain)
        return self.model if same else str(best[0]), ""

    def _timed(self, rival: Rival, with_gates: nn.Module) -> Rival:
        """Return the rival with both latencies, measured in turn."""
        nets = {"gates": with_gates}
        if rival.network:
            nets["network"] = self._built(ModelSpec.parse(rival.network))
        found = measure.inference_latency(nets, self.image.to(self.device), **_TIMING)
        quartiles = {name: [1e3 * one.low_s, 1e3 * one.high_s] for name, one in found.items()}
        of_network = None
        if "network" in found:
            ratio = found["network"].times(found["gates"])
            quartiles["ratio"], of_network = [ratio.low_s, ratio.high_s], 1e3 * found["network"].median_s
        return dataclasses.replace(
            rival, of_gates=1e3 * found["gates"].median_s, of_network=of_network, quartiles=quartiles
        )

    def _with_gates(self, gates: str) -> nn.Module:
        return build_model(self.recipe.of_comparison(gates, 0), self.dataset).to(self.device)

    def _built(self, network: ModelSpec) -> nn.Module:
        return build_model(of_rival(self.recipe, str(network), 0), self.dataset).to(self.device)

    def _counted(self, cost: str, network: ModelSpec) -> float:
        """Return parameters or multiply-adds of a plain network."""
        key = (cost, str(network))
        if key not in self._costs:
            net = without_values(network, {"num_classes": self.outputs, "in_chans": self.dataset.channels})
            self._costs[key] = measure.parameter_count(net) if cost == "params" else _macs(net, self.image)
        return self._costs[key]

    def _milliseconds(self, with_gates: nn.Module, network: ModelSpec) -> float:
        """Return the latency of a plain network as a multiple of that of the network with gates."""
        nets = {"gates": with_gates, "network": self._built(network)}
        found = measure.inference_latency(nets, self.image.to(self.device), **_SEARCH_TIMING)
        return found["network"].times(found["gates"]).median_s


def of_rival(recipe: Recipe, network: str, seed: int) -> Recipe:
    """Return the recipe of one run of a plain network in another width."""
    return dataclasses.replace(recipe, model=network).of_comparison("none", seed)


def _macs(net: Any, image: Tensor) -> float:
    """Return the multiply-adds for one image; of a GaterNet those expected when it meets its budget."""
    if not isinstance(net, GaterNet):
        return measure.macs_per_sample(net, image.to(next(net.parameters()).device))
    if net.routes is not None:
        return _macs_of_routes(net)
    share = 1.0 if net.budget is None else float(net.budget)
    drawn = torch.rand(_PATTERNS, net.gate_count, generator=torch.Generator().manual_seed(0)) < share
    return float(net.executed_macs(drawn.float()).mean())


def _macs_of_routes(net: GaterNet) -> float:
    """Return the mean multiply-adds of random routes, each with the open gates per site that the routes will have."""
    assert net.selection is not None
    generator, gates = torch.Generator().manual_seed(0), torch.zeros(_PATTERNS, net.gate_count)
    for site, count in zip(net.sites, net.selection.open_counts, strict=True):
        order = torch.rand(_PATTERNS, site.gates, generator=generator).argsort(1)
        gates[:, site.first : site.first + site.gates] = (order < count).float()
    return float(net.executed_macs(gates).mean())
