"""What skipping closed filters saves on this machine: a trained GaterNet dense, masked, skipped and compacted."""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gatewise import _validation, errors
from gatewise.analysis.drawing import Drawing, add_legend, new_figure, series_style
from gatewise.analysis.runs import Run, open_runs
from gatewise.analysis.table import Cell, Table
from gatewise.execution import compact, folded, skip_closed_filters
from gatewise.files import check_format_not_newer, write_atomically, write_json
from gatewise.gaternet import GaterNet
from gatewise.measure import Latency, environment, interleaved_latency
from gatewise.training import Progress

_SCHEMA = 1
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TURNS = 8  # batches of different images that are run one after another
_GAIN = 0.97  # of the time of the dense network; what takes more is no gain
_FORMS = ("dense", "masked", "skipped", "compacted", "compacted, skipped")


def bench(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    rounds: int = 15,
    threads: int | None = None,
    images: int = 1000,
    data: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time a run's network in every form, in turn, on its validation images; write bench.json and bench.svg.

    The forms: "dense" computes all filters, without a gater, batch norms folded, in the faster memory format; "masked"
    multiplies, as in training; "skipped" is `skip_closed_filters`; "compacted" is `compact`, with what remains
    multiplied or skipped. The gater's time is in all but the first.

    Args:
        folder: of a finished run with a gater.
        out: where to write; None takes the run's folder.
        batch_sizes: images at once.
        rounds: of each form.
        threads: of torch; None leaves what is set.
        images: of the training set, over which constant gates are found for compaction.
        data: a data set in the place of the run's own.
        progress: where to show progress; None shows nothing.

    Returns what bench.json holds.

    Refused with ValueError: a run without a gater or without images, numbers that are too small.
    """
    _validation.check_integer_at_least(2, rounds=rounds)
    _validation.check_integer_at_least(1, images=images, threads=1 if threads is None else threads)
    _validation.check_integer_at_least(1, **{f"batch size number {n}": size for n, size in enumerate(batch_sizes, 1)})
    (run,) = open_runs([folder], data)
    if not isinstance(run.model, GaterNet):
        raise errors.InvalidValueError(f"{folder} has no gater: there is nothing to skip.")
    if run.dataset is None:
        raise errors.DataError(f"the images of {folder} are needed: {run.missing}")
    out = Path(folder if out is None else out)
    check_format_not_newer(out / "bench.json", _SCHEMA, "schema")
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        results = _Bench(run, images, rounds, (progress or Progress(quiet=True)).say).results(sorted(set(batch_sizes)))
    finally:
        torch.set_num_threads(before)
    write_json(out / "bench.json", results)
    write_atomically(out / "bench.svg", drawing(results).svg())
    return results


class _Bench:
    """One network in all its forms."""

    def __init__(self, run: Run, images: int, rounds: int, say: Callable[[str], None]) -> None:
        self.run, self.rounds, self.say = run, rounds, say
        self.net: Any = run.model
        say("compacting, and preparing to skip")
        self.small = compact(self.net, _split(_first(run.of("train"), images), 250))
        plain = folded(self.net.backbone, _first(run, 2))
        self.fast = skip_closed_filters(self.net)
        self.forms: dict[str, Callable[[Tensor], Any]] = {
            "dense": plain,
            "dense, channels last": _channels_last(plain),
            "masked": self.net,
            "skipped": self.fast,
        }
        if isinstance(self.small, GaterNet):
            self.forms |= {"compacted": self.small, "compacted, skipped": skip_closed_filters(self.small)}
        else:
            self.forms["compacted"] = folded(self.small, _first(run, 2))

    def results(self, batch_sizes: Sequence[int]) -> dict[str, Any]:
        most = max(batch_sizes)
        found = _first(self.run, most * _TURNS)
        batches = {}
        for size in batch_sizes:
            self.say(f"measuring {size} image{'s' if size > 1 else ''} at once")
            batches[str(size)] = _described(self._times(_split(found[: size * _TURNS], size)))
        self.say("measuring shares of open filters")
        curve = self._curve(found[:1])
        results = {
            "schema": _SCHEMA,
            "run": self.run.name,
            "environment": environment(self.run.device),
            "rounds": self.rounds,
            "batches": batches,
            "macs": self._macs(found[: 4 * _TURNS]),
            "compaction": str(self.small.compaction),
            "curve": curve,
            "pays_up_to": _pays_up_to(curve),
            "layers": self._layers(found[:_TURNS]),
        }
        return {**results, "verdict": _verdict(results)}

    def _times(self, batches: Sequence[Tensor]) -> dict[str, Latency]:
        """Return the seconds of one batch for each form, of several different ones run one after another."""

        def through(form: Callable[[Tensor], Any]) -> Callable[[], None]:
            def call() -> None:
                for batch in batches:
                    form(batch)

            return call

        return _timed({name: through(form) for name, form in self.forms.items()}, self.rounds, len(batches))

    def _curve(self, x: Tensor) -> list[dict[str, float]]:
        """Return the milliseconds of one image, dense and with gates at random of which a share is open."""
        generator = torch.Generator().manual_seed(0)
        rows: list[dict[str, float]] = []
        for share in _SHARES:
            gates = [(torch.rand(1, self.net.gate_count, generator=generator) < share).to(x) for _ in range(4)]
            dense = ("dense", "dense, channels last")
            ways: dict[str, Callable[[], Any]] = {name: functools.partial(self.forms[name], x) for name in dense}
            for name, net in (("masked", self.net), ("skipped", self.fast)):
                ways[name] = _deciding(self.net, net, x, gates)
            times = _timed(ways, self.rounds, 1)
            rows.append({"open": share, **{name: 1e3 * latency.median_s for name, latency in times.items()}})
        return rows

    def _macs(self, images: Tensor) -> dict[str, float]:
        """Return multiply-adds of an image: dense, as the net tells, and as counted while open filters alone run."""
        skipping = skip_closed_filters(self.net, mode="skip")
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            gates = torch.cat([skipping.forward_with_gates(image)[1] for image in _split(images, 1)])
        return {
            "dense": float(self.net.dense_macs),
            "executed": float(self.net.executed_macs(gates).mean()),
            "counted": counter.get_total_flops() / 2 / len(images),
            "open_fraction": float(self.net.open_fraction(gates).mean()),
        }

    def _layers(self, images: Tensor) -> list[dict[str, Any]]:
        """Return what each gated layer takes for one image, and up to which open share leaving filters out pays."""
        plan = self.fast.plan(images[:1])
        seconds, work = plan.measured[1], plan.work
        with torch.no_grad():
            patterns = self.net.forward_with_gates(images)[1].cpu().numpy() > 0
        shares = work.shares(patterns).mean(0)
        rows: list[dict[str, Any]] = []
        for number, path in enumerate(work.paths):
            sites = [site for site in (work.inputs[number], work.outputs[number]) if site < len(self.net.sites)]
            open_work = float(shares[work.inputs[number]] * shares[work.outputs[number]])
            rows.append({
                "layer": path,
                "open_work": open_work,
                "dense_ms": 1e3 * float(seconds.dense[number]),
                "skipped_ms": 1e3 * float(seconds.fixed[1][number] + seconds.slope[1][number] * open_work),
                "pays_up_to": float(np.min([plan.limits[1][1][site] for site in sites])),
            })
        return rows


def _first(run: Run, count: int) -> Tensor:
    """Return the first images of a run, over again if it has fewer."""
    images = torch.cat(list(run.first(count)))
    return images.repeat(math.ceil(count / len(images)), 1, 1, 1)[:count]


def _split(images: Tensor, size: int) -> list[Tensor]:
    return list(images.split(size))


def _channels_last(network: nn.Module) -> Callable[[Tensor], Any]:
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # pyright: ignore
    return lambda x: other(x.contiguous(memory_format=torch.channels_last))


def _deciding(net: GaterNet, form: Callable[..., Any], x: Tensor, gates: Sequence[Tensor]) -> Callable[[], Any]:
    """Return a call that runs the gater, and then each time the next of these patterns in the place of its own."""
    turn = iter(range(2**62))

    def call() -> Any:
        if not net.is_local:
            net.decide(x)
        return form(x, gates[next(turn) % len(gates)])

    return call


def _timed(ways: Mapping[str, Callable[[], Any]], rounds: int, batches: int) -> dict[str, Latency]:
    """Return the time of each way for one batch; of the dense forms the faster one counts."""
    with torch.inference_mode():
        times = interleaved_latency(ways, rounds=rounds)
    found = {name: latency.divided(batches) for name, latency in times.items()}
    other = found.pop("dense, channels last", None)
    if other is not None and other.median_s < found["dense"].median_s:
        found["dense"] = other
    return found


def _described(times: dict[str, Latency]) -> dict[str, Any]:
    """Return milliseconds with quartiles, and how much faster than dense and masked, round by round."""
    rows: dict[str, Any] = {}
    for name, latency in times.items():
        rows[name] = {
            "median_ms": 1e3 * latency.median_s,
            "low_ms": 1e3 * latency.low_s,
            "high_ms": 1e3 * latency.high_s,
        }
        for other in ("dense", "masked"):
            ratio = times[other].times(latency)
            rows[name][f"{other}_over_this"] = [ratio.median_s, ratio.low_s, ratio.high_s]
    return rows


def _pays_up_to(curve: list[dict[str, float]]) -> float | None:
    """Return the largest open share, between those measured, at which skipping is faster than dense; None if never.

    >>> _pays_up_to([{"open": 0.1, "dense": 2, "skipped": 1}, {"open": 0.2, "dense": 2, "skipped": 3}])
    0.15...
    """
    gains = [(row["open"], row["dense"] - row["skipped"]) for row in curve]
    if gains[0][1] <= 0:
        return None
    for (open_, gain), (more, loss) in itertools.pairwise(gains):
        if loss <= 0:
            return open_ + (more - open_) * gain / (gain - loss)
    return 1.0


def _verdict(results: dict[str, Any]) -> str:
    """Say in one sentence what to use here."""
    sentences: list[str] = []
    for size, forms in results["batches"].items():
        name = min(forms, key=lambda form: forms[form]["median_ms"])
        factor = forms[name]["dense_over_this"][0]
        worth = name != "dense" and 1 / factor < _GAIN
        images = "one image" if size == "1" else f"{size} images"
        what = f"{name}, {factor:.2f} times as fast as dense" if worth else "dense: do not skip here"
        sentences.append(f"{images} at once: {what}")
    return "; ".join(sentences)


def table(results: dict[str, Any]) -> Table:
    """Return a row for each form and a column for each number of images."""
    batches = results["batches"]
    rows: list[list[Cell]] = []
    for form in _FORMS:
        if form in next(iter(batches.values())):
            cells = [Cell(form)]
            for forms in batches.values():
                its = forms[form]
                cells.append(Cell(f"{its['median_ms']:.2f} ms ({its['dense_over_this'][0]:.2f}x)", its["median_ms"]))
            rows.append(cells)
    return Table(["form", *(f"batch of {size}" for size in batches)], rows)


def drawing(results: dict[str, Any]) -> Drawing:
    """Draw how the time of one image depends on the share of open gates."""
    figure, axes = new_figure(7, 3.6)
    curve = results["curve"]
    for index, name in enumerate(("dense", "masked", "skipped")):
        colour, marker = series_style(index)
        axes.plot(
            [100 * row["open"] for row in curve], [row[name] for row in curve], color=colour, marker=marker, label=name
        )
    limit = results["pays_up_to"]
    if limit is not None and limit < 1:
        axes.axvline(100 * limit, color="grey", ls="--", label=f"skipping pays up to {100 * limit:.0f} % open")
    axes.set(xlabel="open gates (%), at random", ylabel="one image (ms)", ylim=(0, None))
    add_legend(figure, loc="outside lower left")
    rows = [[Cell(f"{value:.4f}", value) for value in row.values()] for row in curve]
    return Drawing(
        "bench",
        figure,
        shows="The time of one image against the share of open gates, the gater included.",
        look_for="Where the skipping curve crosses the dense one: with more filters open than that, do not skip.",
        table=Table(["open", "dense ms", "masked ms", "skipped ms"], rows),
    )
