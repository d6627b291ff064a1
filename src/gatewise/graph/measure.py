"""Measurement of parameters, multiply-adds (MACs) and latency, and description of the environment."""

import contextlib
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gatewise.core import _validation
from gatewise.core.log_filters import without_records
from gatewise.core.wording import counted
from gatewise.graph import evaluation_mode, rehearsal


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters of a network.

    >>> parameter_count(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def macs_per_sample(model: nn.Module, example: Tensor) -> int:
    """Return the multiply-adds of convolutions and matrix products per sample of the batch `example`.

    Elementwise operations (normalisation, activation, multiplication by a gate) are not counted. Their cost is memory
    traffic, which only the latency shows.

    >>> macs_per_sample(nn.Conv2d(3, 8, 3), torch.zeros(2, 3, 4, 4))  # 2*2 positions, 8 filters of 3*3*3
    864
    """
    counter = FlopCounterMode(display=False)
    with rehearsal(model) as copied, torch.no_grad(), counter:
        copied(example)
    return counter.get_total_flops() // (2 * len(example))


@dataclass(frozen=True)
class Latency:
    """Seconds per call: median and quartiles over several rounds, and `each_s` with one value per round."""

    median_s: float
    low_s: float
    high_s: float
    each_s: tuple[float, ...]

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.each_s)

    def divided(self, count: int) -> "Latency":
        """Return this latency divided by `count`, such as that of one image of a batch."""
        return _summary([seconds / count for seconds in self.each_s])

    def times(self, other: "Latency") -> "Latency":
        """Return the per-round ratio of this latency to `other`.

        >>> Latency(2.0, 2.0, 2.0, (2.0, 2.0)).times(Latency(3.0, 2.0, 4.0, (4.0, 2.0))).each_s
        (0.5, 1.0)
        """
        return _summary([own / its for own, its in zip(self.each_s, other.each_s, strict=True)])


def interleaved_latency(
    variants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 10,
    seconds_per_turn: float = 0.05,
    clock: Callable[[], float] | None = None,
) -> dict[str, Latency]:
    """Time callables in alternation, so that temporary slowdowns of the machine affect all of them equally.

    Args:
        variants: the callables, by name.
        rounds: number of rounds after the warm-up; each round calls every variant.
        seconds_per_turn: approximate duration of the calls to one variant in one round.
        clock: returns seconds; None is torch's, which waits for a GPU. `time.process_time` counts the time of the
            processor, which other programs on a busy machine hardly change; with one thread it is the duration on an
            idle machine.

    Returns:
        For each variant the median and the quartiles over the rounds.
    """
    _validation.check_integer_at_least(2, rounds=rounds)
    timers = _timers(variants, clock)
    calls = {name: _calls_within(seconds_per_turn, timer.timeit(2).mean) for name, timer in timers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(calls[name]).mean)
    return {name: _summary(values) for name, values in seconds.items()}


def expected_seconds(
    variants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 10,
    seconds_per_turn: float = 0.05,
    clock: Callable[[], float] | None = None,
) -> float:
    """Return about how long `interleaved_latency` takes for these arguments; this calls each variant three times."""
    total = 0.0
    for timer in _timers(variants, clock).values():
        each = timer.timeit(1).mean
        timed = [2, *[_calls_within(seconds_per_turn, each)] * rounds]
        total += each * sum(_UNCOUNTED + calls for calls in timed)
    return total


def announcement(groups: Iterable[Mapping[str, Callable[[], Any]]], rounds: int) -> str:
    """Return a line that says how long it takes to time some groups of variants, one group after another."""
    seconds = sum(expected_seconds(variants, rounds=rounds) for variants in groups)
    duration = f"{max(1, seconds):.0f} s" if seconds < _MINUTES_FROM else f"{seconds / 60:.0f} min"
    return f"timing takes about {duration}"


_UNCOUNTED = 2  # calls that torch's Timer makes before those that it times
_MINUTES_FROM = 100.0  # seconds


def _timers(variants: Mapping[str, Callable[[], Any]], clock: Callable[[], float] | None) -> dict[str, Any]:
    timer_class, options = _timer_class(), {} if clock is None else {"timer": clock}
    return {
        name: timer_class("call()", globals={"call": call}, num_threads=torch.get_num_threads(), **options)
        for name, call in variants.items()
    }


def _timer_class() -> Any:
    """Import torch's Timer without the warning that is logged if a CUDA toolkit is installed but there is no GPU."""
    with without_records("torch.utils.cpp_extension", lambda record: "No CUDA runtime is found" in record.getMessage()):
        from torch.utils.benchmark import Timer
    return Timer


def _calls_within(seconds: float, seconds_each: float) -> int:
    """Return the number of calls that fit into `seconds`, at least one."""
    return max(1, int(seconds / max(seconds_each, 1e-9)))


def _summary(values: list[float]) -> Latency:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Latency(median, low, high, tuple(values))


def inference_latency(
    models: Mapping[str, nn.Module], example: Tensor, *, rounds: int = 10, seconds_per_turn: float = 0.05
) -> dict[str, Latency]:
    """Time one forward of `example` in eval mode for each model, in alternation; training flags are restored."""

    def call(model: nn.Module) -> Callable[[], Any]:
        def forward() -> Tensor:
            with torch.inference_mode():
                return model(example)

        return forward

    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluation_mode(model))
        calls = {name: call(model) for name, model in models.items()}
        return interleaved_latency(calls, rounds=rounds, seconds_per_turn=seconds_per_turn)


def environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return the hardware, the number of threads and the versions to publish with a measurement."""
    from importlib.metadata import PackageNotFoundError, version

    device = torch.device(device)
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        cores = counted(os.cpu_count() or 1, "core")
        hardware = f"{_cpu_name()}, {counted(torch.get_num_threads(), 'thread')} of {cores}"
    try:
        own = version("gatewise")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "hardware": hardware,
        "device": device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gatewise": own,
        "system": platform.system(),
    }


def _cpu_name() -> str:
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())
