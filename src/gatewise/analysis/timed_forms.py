"""The forms in which a network can run, and their times."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gatewise.core.loaders import Loader
from gatewise.gaternet import GaterNet
from gatewise.graph.measure import Latency, announcement, environment, interleaved_latency, macs_per_sample
from gatewise.graph.structural_copy import full_copy
from gatewise.inference import compact, folded, optimize_for_inference, skip_closed_filters
from gatewise.insertion.insert import gates_in, without_gates

WITHOUT_GATES = "without gates"  # first words of forms with other outputs than the network
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TURNS = 8  # batches of different images that one timed call runs in sequence


@dataclass(frozen=True)
class Timed:
    """What is timed.

    Attributes:
        name: name of the run or network.
        net: the network, in eval mode.
        images: function from a count to that many images.
        constant: function that returns the batches over which constant gates are found; None compacts nothing.
    """

    name: str
    net: Any
    images: Callable[[int], Tensor]
    constant: Callable[[], Loader] | None = None


class PlainForms:
    """A network without a gater in all its forms, and their measurements."""

    references: tuple[str, ...] = ("network",)

    def __init__(self, timed: Timed, rounds: int, say: Callable[[str], None]) -> None:
        self.timed, self.rounds, self.say = timed, rounds, say
        self.net: Any = timed.net
        self.omitted: dict[str, str] = {}
        self.forms: dict[str, Callable[[Tensor], Any]] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Fill `forms`, from the reference on."""
        self.forms["network"] = self.net
        makes: dict[str, Callable[[nn.Module], nn.Module]] = {"optimised": self._optimised}
        if gates_in(self.net):
            makes = {
                WITHOUT_GATES: without_gates,
                **makes,
                f"{WITHOUT_GATES}, optimised": lambda copied: self._optimised(without_gates(copied)),
            }
        for name, make in makes.items():
            try:
                self.forms[name] = make(full_copy(self.net))
            except Exception as error:  # of a network that cannot be copied or optimised
                self.omitted[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"

    def _optimised(self, copied: nn.Module) -> nn.Module:
        return optimize_for_inference(copied, self.timed.images(2))

    def results(self, batch_sizes: Sequence[int]) -> dict[str, Any]:
        """Return the times for each batch size, and everything else that is measured, as JSON values."""
        images = self.timed.images(max(batch_sizes) * _TURNS)
        calls = {size: self._calls(_split(images[: size * _TURNS], size)) for size in batch_sizes}
        with torch.inference_mode():
            self.say(announcement([*calls.values(), *self._further_calls(images).values()], self.rounds))
        batches: dict[str, Any] = {}
        for size, of_size in calls.items():
            self.say(f"measuring batches of {size}")
            batches[str(size)] = _described(_timed(of_size, self.rounds, _TURNS), self.references)
        return {
            "run": self.timed.name,
            "environment": environment(images.device),
            "rounds": self.rounds,
            "batches": batches,
            **({"omitted": self.omitted} if self.omitted else {}),
            **self._measured(images),
        }

    def _measured(self, images: Tensor) -> dict[str, Any]:
        """Return what is measured in addition to the times of batches."""
        return {"macs": {"dense": float(macs_per_sample(self.net, images[:1]))}}

    def _further_calls(self, images: Tensor) -> dict[float, dict[str, Callable[[], Any]]]:  # noqa: ARG002
        """Return what `_measured` times, in groups."""
        return {}

    def _calls(self, batches: Sequence[Tensor]) -> dict[str, Callable[[], Any]]:
        """Return a call for each form that runs `batches` in sequence."""

        def through(form: Callable[[Tensor], Any]) -> Callable[[], None]:
            def call() -> None:
                for batch in batches:
                    form(batch)

            return call

        return {name: through(form) for name, form in self.forms.items()}


class GaterForms(PlainForms):
    """A GaterNet in all its forms, and their measurements."""

    references = ("dense", "masked")

    def _prepare(self) -> None:
        plain = folded(self.net.backbone, self.timed.images(2))
        self.skipping = skip_closed_filters(self.net, mode="skip")
        self.forms |= {
            "dense": plain,
            "dense, channels last": _channels_last(plain),
            "masked": self.net,
            "skipped": skip_closed_filters(self.net),
        }
        self.compaction = ""
        if self.net.routes is not None:
            self.omitted["compacted"] = "a network with routes is compacted for each of them, which is the form skipped"
            return
        if self.timed.constant is None:
            self.omitted["compacted"] = "no loader was given over which constant gates could be found"
            return
        self.say("compacting the network, and preparing to skip filters")
        compacted = compact(self.net, self.timed.constant())
        self.compaction = str(compacted.compaction)
        if isinstance(compacted, GaterNet):
            self.forms |= {"compacted": compacted, "compacted, skipped": skip_closed_filters(compacted)}
        else:
            self.forms["compacted"] = folded(compacted, self.timed.images(2))

    def _measured(self, images: Tensor) -> dict[str, Any]:
        measured = {"macs": self._macs(images[: 4 * _TURNS]), "compaction": self.compaction}
        if not (calls := self._further_calls(images)):
            return measured
        self.say("measuring latency against the fraction of open filters")
        curve = self._curve(calls)
        return {**measured, "curve": curve, "pays_up_to": _pays_up_to(curve)}

    def _further_calls(self, images: Tensor) -> dict[float, dict[str, Callable[[], Any]]]:
        """Return calls of each form with one image and random gates, for each fraction of open gates."""
        if self.net.routes is not None:
            return {}  # all images execute the same share
        generator, x = torch.Generator().manual_seed(0), images[:1]
        groups: dict[float, dict[str, Callable[[], Any]]] = {}
        for share in _SHARES:
            gates = [(torch.rand(1, self.net.gate_count, generator=generator) < share).to(x) for _ in range(4)]
            dense = ("dense", "dense, channels last")
            groups[share] = {name: functools.partial(self.forms[name], x) for name in dense}
            for name, net in (("masked", self.net), ("skipped", self.skipping)):
                groups[share][name] = _with_gates(self.net, net, x, gates)
        return groups

    def _curve(self, groups: Mapping[float, Mapping[str, Callable[[], Any]]]) -> list[dict[str, float]]:
        """Return milliseconds per image, for each fraction of open gates."""
        rows: list[dict[str, float]] = []
        for share, calls in groups.items():
            times = _timed(calls, self.rounds, 1)
            rows.append({"open": share, **{name: 1e3 * latency.median_s for name, latency in times.items()}})
        return rows

    def _macs(self, images: Tensor) -> dict[str, float]:
        """Return MACs per image: dense, executed according to `executed_macs`, and counted while skipping."""
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            gates = torch.cat([self.skipping.forward_with_gates(image)[1] for image in _split(images, 1)])
        return {
            "dense": float(self.net.dense_macs),
            "executed": float(self.net.executed_macs(gates).mean()),
            "counted": counter.get_total_flops() / 2 / len(images),
            "open_fraction": float(self.net.open_fraction(gates).mean()),
        }


def repeated(images: Tensor, count: int) -> Tensor:
    """Return the first `count` images, repeated if there are fewer.

    >>> repeated(torch.tensor([[1.0], [2.0]]), 3).flatten()
    tensor([1., 2., 1.])
    """
    times = math.ceil(count / len(images))
    return images.repeat(times, *[1] * (images.dim() - 1))[:count]


def _split(images: Tensor, size: int) -> list[Tensor]:
    return list(images.split(size))


def _channels_last(network: nn.Module) -> Callable[[Tensor], Any]:
    other = full_copy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # pyright: ignore
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


def _described(times: dict[str, Latency], references: Sequence[str]) -> dict[str, Any]:
    """Return milliseconds with quartiles, and the per-round speed-up over each reference."""
    rows: dict[str, Any] = {}
    for name, latency in times.items():
        rows[name] = {
            "median_ms": 1e3 * latency.median_s,
            "low_ms": 1e3 * latency.low_s,
            "high_ms": 1e3 * latency.high_s,
        }
        for other in references:
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
