"""Benchmark a trained GaterNet on this machine: dense, masked, skipped and compacted."""

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

from gatewise import errors
from gatewise.analysis.drawing import Drawing, add_legend, new_figure, series_style
from gatewise.analysis.table import Cell, Table
from gatewise.core import _validation
from gatewise.core.files import check_format_not_newer, write_atomically, write_json
from gatewise.gaternet import GaterNet
from gatewise.graph.measure import Latency, environment, interleaved_latency
from gatewise.inference import compact, folded, skip_closed_filters
from gatewise.training import Progress
from gatewise.training.runs import Run

_SCHEMA = 1
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TURNS = 8  # batches of different images that one timed call runs in sequence
_GAIN = 0.97  # a form must take less than this fraction of the dense time to be recommended
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
    """Time all forms of a run's network on its validation images, in turn, and write bench.json and bench.svg.

    The forms:

    - "dense": all filters, no gater, batch norms folded, in the faster memory format.
    - "masked": all filters, multiplied by the gates, as in training.
    - "skipped": `skip_closed_filters`.
    - "compacted": `compact`, with the remaining gates multiplied; "compacted, skipped" with them skipped.

    All times but the dense one include the gater.

    Args:
        folder: folder of a finished run with a gater.
        out: folder to write to; None takes the run folder.
        batch_sizes: batch sizes to time.
        rounds: number of timed rounds; each round times every form once.
        threads: number of torch threads; None keeps the current number.
        images: number of training images over which constant gates are found for compaction.
        data: data set to use instead of the run's own.
        progress: where to show progress; None shows nothing.

    Returns:
        The content of bench.json.

    Raises:
        ValueError: the run has no gater, its images cannot be found, or a number is too small.
    """
    _validation.check_integer_at_least(2, rounds=rounds)
    _validation.check_integer_at_least(1, images=images, threads=1 if threads is None else threads)
    _validation.check_integer_at_least(1, **{f"batch size number {n}": size for n, size in enumerate(batch_sizes, 1)})
    run = Run.open(folder, data).checked()
    if not isinstance(run.model, GaterNet):
        raise errors.InvalidValueError(f"{folder} has no gater: there is nothing to skip.")
    run.check_has_images()
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
    """A network in all its forms, and their measurements."""

    def __init__(self, run: Run, images: int, rounds: int, say: Callable[[str], None]) -> None:
        self.run, self.rounds, self.say = run, rounds, say
        self.net: Any = run.model
        say("compacting the network, and preparing to skip filters")
        self.compacted = compact(self.net, _split(_first(run.of("train"), images), 250))
        plain = folded(self.net.backbone, _first(run, 2))
        self.fast = skip_closed_filters(self.net)
        self.forms: dict[str, Callable[[Tensor], Any]] = {
            "dense": plain,
            "dense, channels last": _channels_last(plain),
            "masked": self.net,
            "skipped": self.fast,
        }
        if isinstance(self.compacted, GaterNet):
            self.forms |= {"compacted": self.compacted, "compacted, skipped": skip_closed_filters(self.compacted)}
        else:
            self.forms["compacted"] = folded(self.compacted, _first(run, 2))

    def results(self, batch_sizes: Sequence[int]) -> dict[str, Any]:
        images = _first(self.run, max(batch_sizes) * _TURNS)
        batches = {}
        for size in batch_sizes:
            self.say(f"measuring batches of {size}")
            batches[str(size)] = _described(self._times(_split(images[: size * _TURNS], size)))
        self.say("measuring latency against the fraction of open filters")
        curve = self._curve(images[:1])
        results = {
            "schema": _SCHEMA,
            "run": self.run.name,
            "environment": environment(self.run.device),
            "rounds": self.rounds,
            "batches": batches,
            "macs": self._macs(images[: 4 * _TURNS]),
            "compaction": str(self.compacted.compaction),
            "curve": curve,
            "pays_up_to": _pays_up_to(curve),
            "layers": self._layers(images[:_TURNS]),
        }
        return {**results, "verdict": _verdict(results)}

    def _times(self, batches: Sequence[Tensor]) -> dict[str, Latency]:
        """Return the latency of one batch for each form, averaged over `batches` run in sequence."""

        def through(form: Callable[[Tensor], Any]) -> Callable[[], None]:
            def call() -> None:
                for batch in batches:
                    form(batch)

            return call

        return _timed({name: through(form) for name, form in self.forms.items()}, self.rounds, len(batches))

    def _curve(self, x: Tensor) -> list[dict[str, float]]:
        """Return milliseconds per image, for random gates with different open fractions."""
        generator = torch.Generator().manual_seed(0)
        rows: list[dict[str, float]] = []
        for share in _SHARES:
            gates = [(torch.rand(1, self.net.gate_count, generator=generator) < share).to(x) for _ in range(4)]
            dense = ("dense", "dense, channels last")
            calls: dict[str, Callable[[], Any]] = {name: functools.partial(self.forms[name], x) for name in dense}
            for name, net in (("masked", self.net), ("skipped", self.fast)):
                calls[name] = _with_gates(self.net, net, x, gates)
            times = _timed(calls, self.rounds, 1)
            rows.append({"open": share, **{name: 1e3 * latency.median_s for name, latency in times.items()}})
        return rows

    def _macs(self, images: Tensor) -> dict[str, float]:
        """Return MACs per image: dense, executed according to `executed_macs`, and counted while skipping."""
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
        """Return the time of each gated layer for one image, and the open fraction up to which skipping is faster."""
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
    """Return the first `count` images of a run, repeated if it has fewer."""
    images = torch.cat(list(run.first(count)))
    return images.repeat(math.ceil(count / len(images)), 1, 1, 1)[:count]


def _split(images: Tensor, size: int) -> list[Tensor]:
    return list(images.split(size))


def _channels_last(network: nn.Module) -> Callable[[Tensor], Any]:
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # pyright: ignore
    return lambda x: other(x.contiguous(memory_format=torch.channels_last))


def _with_gates(net: GaterNet, form: Callable[..., Any], x: Tensor, gates: Sequence[Tensor]) -> Callable[[], Any]:
    """Return a call that runs the gater, then `form` with the next of the given gates instead of the gater's."""
    turn = iter(range(2**62))

    def call() -> Any:
        if not net.is_local:
            net.decide(x)
        return form(x, gates[next(turn) % len(gates)])

    return call


def _timed(calls: Mapping[str, Callable[[], Any]], rounds: int, batches: int) -> dict[str, Latency]:
    """Return the latency per batch of each call; "dense" is the faster of its two memory formats."""
    with torch.inference_mode():
        times = interleaved_latency(calls, rounds=rounds)
    latencies = {name: latency.divided(batches) for name, latency in times.items()}
    other = latencies.pop("dense, channels last", None)
    if other is not None and other.median_s < latencies["dense"].median_s:
        latencies["dense"] = other
    return latencies


def _described(times: dict[str, Latency]) -> dict[str, Any]:
    """Return milliseconds with quartiles, and the per-round speed-up over dense and masked."""
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
    """Return the largest open fraction at which skipping is faster than dense, interpolated; None if there is none.

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
    """Return one sentence that recommends one of `_FORMS`, the ways to run the network, for each batch size."""
    sentences: list[str] = []
    for size, forms in results["batches"].items():
        name = min(forms, key=lambda form: forms[form]["median_ms"])
        factor = forms[name]["dense_over_this"][0]
        is_gain = name != "dense" and 1 / factor < _GAIN
        images = "one image" if size == "1" else f"{size} images"
        advice = f"{name}, {factor:.2f} times as fast as dense" if is_gain else "dense: do not skip here"
        sentences.append(f"{images} at once: {advice}")
    return "; ".join(sentences)


def table(results: dict[str, Any]) -> Table:
    """Return a table with a row per form and a column per batch size."""
    batches = results["batches"]
    rows: list[list[Cell]] = []
    for form in _FORMS:
        if form in next(iter(batches.values())):
            cells = [Cell(form)]
            for forms in batches.values():
                times = forms[form]
                text = f"{times['median_ms']:.2f} ms ({times['dense_over_this'][0]:.2f}x)"
                cells.append(Cell(text, times["median_ms"]))
            rows.append(cells)
    return Table(["form", *(f"batch of {size}" for size in batches)], rows)


def drawing(results: dict[str, Any]) -> Drawing:
    """Draw the time of one image against the fraction of open gates."""
    figure, axes = new_figure(7, 3.6)
    curve = results["curve"]
    for index, name in enumerate(("dense", "masked", "skipped")):
        colour, marker = series_style(index)
        axes.plot(
            [100 * row["open"] for row in curve], [row[name] for row in curve], color=colour, marker=marker, label=name
        )
    limit = results["pays_up_to"]
    if limit is not None and limit < 1:
        axes.axvline(100 * limit, color="grey", ls="--", label=f"skipping is faster up to {100 * limit:.0f} % open")
    axes.set(xlabel="open gates (%), random", ylabel="one image (ms)", ylim=(0, None))
    add_legend(figure, loc="outside lower left")
    rows = [[Cell(f"{value:.4f}", value) for value in row.values()] for row in curve]
    return Drawing(
        "bench",
        figure,
        shows="The time of one image, including the gater, against the fraction of open gates.",
        look_for="The crossing of the skipped and the dense curve: with more filters open, do not skip.",
        table=Table(["open", "dense ms", "masked ms", "skipped ms"], rows),
    )
