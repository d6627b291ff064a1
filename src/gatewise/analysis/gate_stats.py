"""Statistics of gates over many images, accumulated batch by batch in constant memory."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from gatewise import errors
from gatewise.analysis.gate_summary import GateSummary
from gatewise.analysis.recording import GateRecorder, Recorded
from gatewise.core import _validation
from gatewise.insertion.insert import gates_in

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = _validation.import_optional("torchmetrics", "GateStats").Metric

NEAR = 0.05  # relative change below which a value counts as near the identity
BINS = 100
_RANGES = {False: (0.0, 2.0), True: (-1.0, 1.0)}  # of the histograms, by is_additive


class GateStats(Metric):
    """Accumulate statistics of every gate of a network over images, as a torchmetrics metric.

    `update` takes the records of `GateRecorder.take`. The states are sums of a fixed size, so the metric works in any
    loop and with several processes: `compute` and `summaries` add up the states of all of them.

    Args:
        model: the network; only its gates are read, when the metric is created.
        classes: number of classes for the statistics by class; 0 omits these.
        options: further options of `torchmetrics.Metric`.

    Raises:
        InvalidValueError: if the network has no gates, if labels are given without classes or classes without labels,
            or if results are computed before the first update.

    >>> from gatewise.insertion.insert import insert_gates
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1))
    >>> _ = insert_gates(net, "gct")
    >>> stats = GateStats(net)
    >>> with GateRecorder(net) as recorder:
    ...     for batch in torch.randn(2, 4, 3, 5, 5):
    ...         _ = net(batch)
    ...         stats.update(recorder.take())
    >>> stats.summaries()["0.gct"].mean  # a new gct multiplies by 1
    tensor([1., 1., 1.], dtype=torch.float64)
    >>> stats.compute()["0.gct/near_identity"]
    tensor(1.)
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    squares: Tensor
    near: Tensor
    count_by_class: Tensor
    by_class: Tensor
    histogram: Tensor
    spread: Tensor
    seen: Tensor
    overlaps: Tensor

    def __init__(self, model: nn.Module, classes: int = 0, **options: Any) -> None:
        super().__init__(**options)
        _validation.check_integer_at_least(0, classes=classes)
        gates = gates_in(model)
        if not gates:
            raise errors.InvalidValueError(f"{type(model).__name__} has no gates to describe.")
        self.classes = classes
        self.is_additive = {path: gate.is_additive for path, gate in gates.items()}
        ends = list(itertools.accumulate(gate.channels for gate in gates.values()))
        self.slices = {
            path: slice(end - gate.channels, end) for (path, gate), end in zip(gates.items(), ends, strict=True)
        }
        channels, count = ends[-1], len(gates)
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(("count", "total", "squares", "near"), (channels,)),
            **dict.fromkeys(("count_by_class", "by_class"), (classes, channels)),
            **{"histogram": (count, BINS), "spread": (count, 2), "seen": (count,), "overlaps": ()},
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, recorded: Mapping[str, Recorded], labels: Tensor | None = None) -> None:
        """Add the records of one forward.

        Args:
            recorded: gate path -> record; gates that were not reached are missing.
            labels: class of each image, (N,), int64, or which classes it has, (N, classes) of 0 and 1; None without
                classes.
        """
        if (labels is None) is bool(self.classes):
            raise errors.InvalidValueError(
                "if `classes` is 0, call update without labels; otherwise pass labels in every call."
            )
        if labels is not None:
            self._check_labels(labels, len(next(iter(recorded.values())).values) if recorded else len(labels))
            members = labels.double() if labels.dim() == 2 else one_hot(labels, self.classes).double()
            self.overlaps += (members.sum(1) != 1).sum()
        else:
            members = torch.zeros(0)
        for number, (path, own) in enumerate(self.slices.items()):
            if path not in recorded:
                continue
            record, neutral = recorded[path], self._neutral(path)
            known = ~record.values.isnan()
            values = record.values.double().where(known, neutral)
            self.seen[number] += len(values)
            self.count[own] += known.sum(0)
            self.total[own] += (values - neutral).sum(0)
            self.squares[own] += (values - neutral).square().sum(0)
            self.near[own] += (record.changes < NEAR).sum(0)
            if labels is not None:
                self.count_by_class[:, own] += members.T @ known.double()
                self.by_class[:, own] += members.T @ (values - neutral)
            self.histogram[number] += _histogram(values[known], *_RANGES[self.is_additive[path]])
            self.spread[number] += torch.stack([_spread(record.before), _spread(record.after)])

    def _check_labels(self, labels: Tensor, images: int) -> None:
        if tuple(labels.shape) == (images, self.classes):
            return
        if labels.dtype != torch.long or tuple(labels.shape) != (images,):
            raise errors.InvalidValueError(
                f"labels must be {images} integers (torch.int64), got {tuple(labels.shape)} of {labels.dtype}."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise errors.InvalidValueError(
                f"labels must be between 0 and {self.classes - 1}, got {int(labels.min())} to {int(labels.max())}. "
                f"Give GateStats the number of classes."
            )

    def _neutral(self, path: str) -> float:
        return 0.0 if self.is_additive[path] else 1.0

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics of each gate as scalars by "PATH/NAME", ready for a logger.

        NAME is mean, near_identity, between_images or competition.
        """
        return {
            f"{path}/{name}": torch.tensor(value)
            for path, summary in self._summaries().items()
            for name, value in (
                ("mean", float(summary.mean.mean())),
                *((name, getattr(summary, name)) for name in ("near_identity", "between_images", "competition")),
            )
        }

    def summaries(self) -> dict[str, GateSummary]:
        """Return gate path -> summary over the images of all processes, for each gate that was reached."""
        with self.sync_context(should_sync=self.sync_on_compute):
            return self._summaries()

    def _summaries(self) -> dict[str, GateSummary]:
        if not bool(self.seen.any()):
            raise errors.InvalidValueError(
                "no image has been counted yet; call update with the result of GateRecorder.take first."
            )
        return {path: self._summary(number, path) for number, path in enumerate(self.slices) if self.seen[number]}

    def _summary(self, number: int, path: str) -> GateSummary:
        own, neutral = self.slices[path], self._neutral(path)
        count, mean = self.count[own], self.total[own] / self.count[own]  # mean of value - neutral
        # sum of squared deviations from the channels' means
        within = self.squares[own].sum() - (count * mean.square()).nansum()
        average = self.total[own].sum() / count.sum()
        across = (count * (mean - average).square()).nansum()
        before, after = map(float, self.spread[number] / self.seen[number])
        return GateSummary(
            path=path,
            is_additive=self.is_additive[path],
            mean=mean + neutral,
            deviation=(self.squares[own] / count - mean.square()).clamp(min=0).sqrt(),
            average=float(average.nan_to_num()) + neutral,
            overall_deviation=float(((within + across) / count.sum()).nan_to_num().clamp(min=0).sqrt()),
            by_class=self.by_class[:, own] / self.count_by_class[:, own] + neutral,
            histogram=self.histogram[number].long(),
            edges=torch.linspace(*_RANGES[self.is_additive[path]], BINS + 1),
            near_identity=float((self.near[own].sum() / count.sum()).nan_to_num()),
            between_images=_share(within, within + across, count.sum()),
            between_classes=self._between_classes(own, mean, within),
            spread_before=before,
            spread_after=after,
        )

    def _between_classes(self, own: slice, mean: Tensor, within: Tensor) -> float:
        """Return epsilon squared of the classes (eta squared corrected for chance, at least 0), over all channels.

        It is not defined, and NaN, if an image has several classes or none.
        """
        if self.overlaps:
            return math.nan
        counts = self.count_by_class[:, own]
        between = (counts * (self.by_class[:, own] / counts - mean).square()).nansum()
        groups, values = ((counts > 0).sum(0) - 1).clamp(min=0).sum(), counts.sum()
        rest = values - (counts > 0).sum()
        by_chance = groups * (within - between) / rest if rest > 0 else between
        return max(0.0, _share(between - by_chance, within, values))

    def plot(self, val: Any = None, ax: Any = None) -> tuple[Any, Any]:  # noqa: ARG002
        """Draw the distribution of values gate by gate, on `ax` if given; return figure and axes, as torchmetrics does.

        If some gates multiply and some add, the neutral value (1 or 0) is subtracted from the values.
        """
        from gatewise.analysis.gate_figures import draw_values_by_depth

        return draw_values_by_depth(list(self.summaries().values()), ax)


def _histogram(values: Tensor, low: float, high: float) -> Tensor:
    bins = ((values - low) * (BINS / (high - low))).floor().clamp(0, BINS - 1)
    return bins.long().flatten().bincount(minlength=BINS)


def _spread(sizes: Tensor) -> Tensor:
    """Return the sum over images of standard deviation / mean over channels: (N, C) -> ()."""
    sizes = sizes.double()
    mean = sizes.mean(1)
    return torch.where(mean > 0, sizes.std(1, correction=0) / mean, 0.0).sum()


def _share(part: Tensor, total: Tensor, count: Tensor) -> float:
    rounding_error = 1e-12 * count  # upper bound of `total` if all values are equal
    return float(part / total) if total > rounding_error else 0.0


def gate_statistics(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> dict[str, GateSummary]:
    """Run `model` in eval mode over batches and return the statistics of its gates; restore the training flags.

    Args:
        model: a network with gates.
        batches: images and labels, as for `GateStats.update`; without classes they are not used and may be masks.
        classes: number of classes, or 0.

    Returns:
        Gate path -> summary, for each gate that was reached.
    """
    device = next(model.parameters()).device
    stats = GateStats(model, classes).to(device)
    with GateRecorder(model) as recorder, torch.no_grad():
        for images, labels in batches:
            model(images.to(device))
            stats.update(recorder.take(), labels.to(device) if classes else None)
    return stats.summaries()
