"""Time a run's network in every form, runtime and precision, and say what to deploy."""

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import check_format_not_newer, write_json
from gatewise.exporting.forms import WithGates
from gatewise.exporting.runtimes import PRECISIONS, RUNTIMES, package, versions
from gatewise.exporting.writer import export, export_run
from gatewise.gaternet import GaterNet
from gatewise.graph.measure import Latency, announcement, environment, interleaved_latency
from gatewise.inference import compact, folded, skip_closed_filters
from gatewise.inference.routed import RoutedNet
from gatewise.insertion.insert import gates_in, without_gates
from gatewise.training import Progress
from gatewise.training.run_folder import folder_of_results
from gatewise.training.runs import Run

SCHEMA = 1
FILE = "bench-runtimes.json"
_GAIN = 0.97  # gates save time if their network takes less than this fraction of that of the fastest dense form
_DENSE = "dense"


def bench_runtimes(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    runtimes: Sequence[str] = tuple(RUNTIMES),
    precisions: Sequence[str] = ("float32",),
    plain: str | Path | None = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    rounds: int = 15,
    threads: int | None = None,
    images: int = 1000,
    data: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time all forms of a run's network in several runtimes, in turn, and write bench-runtimes.json.

    The forms of a network with a gater are "dense" (all filters, no gater) and "masked", with "skip" and "compact" or,
    if it has routes, "routes". Those of others are "masked", which is the network itself, and "dense", without gates.

    Args:
        folder: folder of a finished run.
        out: folder to write to; None takes the run folder.
        runtimes: "torch", "compile" (torch.compile), "onnxruntime" and "openvino".
        precisions: "float32" and "int8"; int8 is for the runtimes that read ONNX files.
        plain: run folder of another network to compare with, such as a narrower one of as many multiply-adds.
        batch_sizes: batch sizes to time.
        rounds: number of timed rounds; each round times everything once.
        threads: number of threads of every runtime; None takes torch's.
        images: number of training images over which constant gates are found, and ranges for int8 measured.
        data: data set to use instead of the run's own.
        progress: where to show progress; None shows nothing.

    Returns:
        The content of bench-runtimes.json: "batches", by batch size, precision, form and runtime, with "median_ms",
        quartiles, "dense_over_this", the time of the fastest dense form of any runtime in this precision over this one,
        and "dense_here_over_this", that of dense in the same runtime; "scores" of the int8 files; "omitted" with
        reasons; "verdict", which recommends a form with the outputs of the trained network, and says what gates cost.

    Raises:
        ValueError: a runtime or precision is unknown, the run's images cannot be found, or a number is too small.
        MissingExtraError: a runtime is not installed.
    """
    for name in runtimes:
        _validation.check_one_of("runtime", name, RUNTIMES)
    for name in precisions:
        _validation.check_one_of("precision", name, PRECISIONS)
    if not runtimes or not precisions:
        raise errors.InvalidValueError("give at least one runtime and one precision.")
    for name in precisions:
        able = [key for key, runtime in RUNTIMES.items() if name in runtime.precisions]
        if not {*able} & {*runtimes}:
            raise errors.InvalidValueError(f"precision {name} needs one of the runtimes {', '.join(able)}. Add one.")
    _validation.check_integer_at_least(2, rounds=rounds)
    _validation.check_integer_at_least(1, images=images, threads=1 if threads is None else threads)
    _validation.check_integer_at_least(1, **{f"batch size number {n}": size for n, size in enumerate(batch_sizes, 1)})
    for name in runtimes:
        if RUNTIMES[name].extra:
            package(name)
    target = folder_of_results(folder, out)
    check_format_not_newer(target / FILE, SCHEMA, "schema")
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            say = (progress or Progress(quiet=True)).say
            forms = _Forms(Path(folder), plain, data, images, Path(temporary), say)
            results = _measured(forms, runtimes, precisions, sorted(set(batch_sizes)), rounds, say)
    finally:
        torch.set_num_threads(before)
    write_json(target / FILE, results)
    return results


class _Forms:
    """A run's network in its forms, as networks of torch and as ONNX files."""

    def __init__(
        self, folder: Path, plain: str | Path | None, data: str | None, images: int, files: Path, say: Any
    ) -> None:
        self.folder, self.data, self.files, self.say = folder, data, files, say
        self.images = images
        self.run = Run.open(folder, data).checked()
        self.run.check_has_images()
        self.plain = None if plain is None else Run.open(plain, data).checked()
        self.net: Any = self.run.model.eval().cpu()
        self.example = torch.cat([*self.run.first(2)])
        self.omitted: dict[str, str] = {}
        self.scores: dict[str, Any] = {}

    @property
    def gated(self) -> bool:
        """Whether the network has gates that were inserted, and no gater."""
        return not isinstance(self.net, GaterNet) and bool(gates_in(self.net))

    @property
    def names(self) -> list[str]:
        found = [_DENSE]
        if isinstance(self.net, GaterNet):
            found += ["masked", *(["skip", "compact"] if self.net.routes is None else ["routes"])]
        elif self.gated:
            found.append("masked")
        return [*found, *(["plain"] if self.plain is not None else [])]

    def network(self, form: str) -> nn.Module:
        """Return the network of torch in a form."""
        if form == _DENSE:  # norms stay where gates could be between them and their convolutions, in both forms
            return self._dense() if self.gated else folded(self._dense(), self.example)
        if form == "plain":
            return folded(self._plain.model.eval().cpu(), self.example)
        if form == "skip":
            return skip_closed_filters(self.net)
        if form == "compact":
            return compact(self.net, self.run.of("train").first(self.images))
        return RoutedNet(self.net).folded() if form == "routes" else WithGates(self.net).eval()

    def file(self, form: str, precision: str) -> Path:
        """Export a form to an ONNX file."""
        out = self.files / f"{form}-{precision}.onnx"
        int8 = precision == "int8"
        self.say(f"exporting {form} in {precision}")
        if form == _DENSE:
            ranges = self.run.of("train").first(self.images) if int8 else None
            found = export(self._dense(), out, example=self.example, int8=ranges, calibration=self.images)
        else:
            folder = self._plain.folder if form == "plain" else self.folder
            options: dict[str, Any] = {"int8": int8, "calibration": self.images, "data": self.data}
            found = export_run(folder, out, form="masked" if form == "plain" else form, **options)
        if int8:
            kept = ("score", "float32", "int8", "int8_difference", "other_gates")
            self.scores[form] = {key: found[key] for key in kept if key in found}
        return out

    @property
    def _plain(self) -> Run:
        assert self.plain is not None
        return self.plain

    def _dense(self) -> nn.Module:
        """Return the network without gater and gates."""
        if isinstance(self.net, GaterNet):
            return self.net.backbone
        return without_gates(Run.open(self.folder, self.data).model.eval().cpu())


def _measured(
    forms: _Forms,
    runtimes: Sequence[str],
    precisions: Sequence[str],
    sizes: Sequence[int],
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    calls = dict(_calls(forms, runtimes, precisions))
    images = {size: _repeated(torch.cat([*forms.run.first(size)]), size) for size in sizes}
    timed = {
        size: {" ".join(key): functools.partial(call, batch) for key, call in calls.items()}
        for size, batch in images.items()
    }
    batches: dict[str, Any] = {}
    with torch.inference_mode():
        say(announcement(timed.values(), rounds))
        for size in sizes:
            say(f"measuring batches of {size}")
            times = interleaved_latency(timed[size], rounds=rounds)
            batches[str(size)] = _described({key: times[" ".join(key)] for key in calls})
    results = {
        "schema": SCHEMA,
        "run": forms.run.name,
        "environment": {**environment(), **versions(runtimes)},
        "rounds": rounds,
        "batches": batches,
        "scores": forms.scores,
        "omitted": forms.omitted,
    }
    return {**results, "verdict": _verdict(batches, gated=forms.gated)}


_Key = tuple[str, str, str]  # precision, form, runtime


def _calls(
    forms: _Forms, runtimes: Sequence[str], precisions: Sequence[str]
) -> Iterator[tuple[_Key, Callable[[Tensor], Any]]]:
    """Yield what is timed; what cannot be made is noted with its reason."""
    threads = torch.get_num_threads()
    for precision in precisions:
        for form in forms.names:
            source: dict[bool, Any] = {}
            for name in runtimes:
                runtime = RUNTIMES[name]
                if precision not in runtime.precisions:
                    continue
                try:
                    if runtime.reads_files not in source:
                        made = forms.file(form, precision) if runtime.reads_files else forms.network(form)
                        source[runtime.reads_files] = made
                    call = runtime.ready(source[runtime.reads_files], threads)
                    with torch.inference_mode():
                        call(forms.example)
                except errors.MissingExtraError:
                    raise
                except Exception as error:  # a runtime that has no equivalent of an operation
                    forms.omitted[f"{form} in {precision} in {name}"] = " ".join(str(error).split())[:200]
                    continue
                yield (precision, form, name), call


def _repeated(images: Tensor, count: int) -> Tensor:
    """Return the first `count` images, repeated if there are fewer."""
    return images[torch.arange(count) % len(images)]


def _described(times: dict[_Key, Latency]) -> dict[str, Any]:
    """Return milliseconds by precision, form and runtime, and speeds relative to the dense form."""
    rows: dict[str, Any] = {}
    for (precision, form, runtime), latency in times.items():
        dense = {key[2]: own for key, own in times.items() if key[:2] == (precision, _DENSE)}
        row: dict[str, Any] = {name: 1e3 * value for name, value in zip(_TIMES, _values(latency), strict=True)}
        if dense:
            fastest = min(dense.values(), key=lambda own: own.median_s)
            row["dense_over_this"] = [*_values(fastest.times(latency))]
        if runtime in dense:
            row["dense_here_over_this"] = [*_values(dense[runtime].times(latency))]
        rows.setdefault(precision, {}).setdefault(form, {})[runtime] = row
    return rows


_TIMES = ("median_ms", "low_ms", "high_ms")


def _values(latency: Latency) -> tuple[float, float, float]:
    return latency.median_s, latency.low_s, latency.high_s


def _verdict(batches: dict[str, Any], *, gated: bool) -> str:
    """Return one sentence that says what to deploy, for each batch size and precision.

    With gates, dense is another network, whose score was not trained for: it is a reference and never recommended.

    Args:
        batches: the times.
        gated: whether the network has inserted gates; the difference to dense is then their cost.
    """
    parts: list[str] = []
    for size, by_precision in batches.items():
        images = "one image" if size == "1" else f"{size} images"
        for precision, by_form in by_precision.items():
            rows = [(row["median_ms"], form, name) for form, of in by_form.items() for name, row in of.items()]
            dense = min((row for row in rows if row[1] == _DENSE), default=None)
            references = {"plain", _DENSE} if "masked" in by_form else {"plain"}
            best = min((row for row in rows if row[1] not in references), default=None)
            if best is None:
                continue
            where = f"{images} in {precision}: deploy {best[1]} in {RUNTIMES[best[2]].title}"
            if gated:
                where += _cost_of_gates(by_form["masked"])
            elif dense is not None and best is not dense:
                where += f", {dense[0] / best[0]:.2f} times as fast as dense in {RUNTIMES[dense[2]].title}"
                if best[0] >= _GAIN * dense[0]:
                    where += " (the gates save no time here: train a plain network)"
            parts.append(where)
    return "; ".join(parts)


def _cost_of_gates(rows: dict[str, Any]) -> str:
    """Return the time that gates add in each runtime, as a share of the network without gates."""
    over = {runtime: row["dense_here_over_this"][0] for runtime, row in rows.items() if "dense_here_over_this" in row}
    costs = [f"{100 * (1 / ratio - 1):+.0f} % in {RUNTIMES[runtime].title}" for runtime, ratio in over.items()]
    return f" (its gates take {', '.join(costs)})" if costs else ""
