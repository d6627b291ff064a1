"""Time a run's network in every form, runtime and precision, and say what to deploy."""

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import check_format_not_newer, write_json
from gatewise.core.reasons import reason_of
from gatewise.exporting.forms import WithGates
from gatewise.exporting.runtimes import PRECISIONS, RUNTIMES, package, versions
from gatewise.exporting.writer import export, export_run
from gatewise.gaternet import GaterNet
from gatewise.graph.measure import Latency, announcement, environment, interleaved_latency
from gatewise.inference import compact, folded, skip_closed_filters
from gatewise.inference.routed import RoutedNet
from gatewise.insertion.insert import gates_in, without_gates
from gatewise.training import Progress, score_named
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
    images: int | None = None,
    data: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time all forms of a run's network in several runtimes, in turn, and write bench-runtimes.json.

    The forms of a network with a gater are "dense" (all filters, no gater) and "masked", with "skip" and "compact" or,
    if it has routes, "routes". Those of a network with gates are "masked", which is the network itself, and "dense",
    without gates. A plain network is "dense".

    Args:
        folder: folder of a finished run.
        out: folder to write to; None takes the run folder.
        runtimes: "torch", "compile" (torch.compile), "onnxruntime" and "openvino".
        precisions: "float32" and "int8"; int8 is for the runtimes that read ONNX files.
        plain: run folder of another network to compare with, such as a narrower one of as many multiply-adds.
        batch_sizes: batch sizes to time.
        rounds: number of timed rounds; each round times everything once.
        threads: number of threads of every runtime; None takes torch's.
        images: number of training images over which constant gates are found for the form "compact"; None takes all,
            as `export_run` and `compact_run` do.
        data: data set to use instead of the run's own.
        progress: where to show progress; None shows nothing.

    Returns:
        The content of bench-runtimes.json: "batches", by batch size, precision, form and runtime, with "median_ms",
        quartiles, "dense_over_this", the time of the fastest dense form of any runtime over this one, and
        "dense_here_over_this", that of dense in the same runtime and precision. Dense is in float32, if that is timed.
        All ratios are medians over the rounds of the ratio within a round. Also "scores" of the int8 files, those that
        `export_run` has; "omitted" with reasons; "verdict", which names the fastest form with the outputs of the
        trained network, what int8 costs, and what gates cost.

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
    given = {"images": images, "threads": threads}
    _validation.check_integer_at_least(1, **{name: value for name, value in given.items() if value is not None})
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
        self, folder: Path, plain: str | Path | None, data: str | None, images: int | None, files: Path, say: Any
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
    def dense_is_another(self) -> bool:
        """Whether dense is another network than that of the run, which has a gater or gates."""
        return self.gated or isinstance(self.net, GaterNet)

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
        """Export a form to an ONNX file, as `export_run` does."""
        out = self.files / f"{form}-{precision}.onnx"
        int8 = precision == "int8"
        if form == _DENSE and self.dense_is_another:
            export(self._dense(), out, example=self.example, int8=self.run.of("train").first() if int8 else None)
            return out
        folder = self._plain.folder if form == "plain" else self.folder
        written = "masked" if form in {"plain", _DENSE} else form
        found = export_run(folder, out, form=written, int8=int8, constant=self.images, data=self.data)
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
    advice: list[str] = []
    with torch.inference_mode():
        say(announcement(timed.values(), rounds))
        for size in sizes:
            say(f"measuring batches of {size}")
            found = interleaved_latency(timed[size], rounds=rounds)
            times = {key: found[" ".join(key)] for key in calls}
            batches[str(size)] = _described(times)
            advice.append(_advice("one image" if size == 1 else f"{size} images", times, forms))
    return {
        "schema": SCHEMA,
        "run": forms.run.name,
        "environment": {**environment(), **versions(runtimes)},
        "rounds": rounds,
        "batches": batches,
        "scores": forms.scores,
        "omitted": forms.omitted,
        "verdict": "; ".join(filter(None, advice)),
    }


_Key = tuple[str, str, str]  # precision, form, runtime


def _calls(
    forms: _Forms, runtimes: Sequence[str], precisions: Sequence[str]
) -> Iterator[tuple[_Key, Callable[[Tensor], Any]]]:
    """Yield what is timed; what cannot be made is noted with its reason."""
    threads = torch.get_num_threads()
    makes: list[tuple[str, str, list[str]]] = []  # precision, form, and the runtimes that run the same file or network
    for precision, form, from_file in itertools.product(precisions, forms.names, (False, True)):
        own = [name for name in runtimes if RUNTIMES[name].reads_files == from_file]
        if able := [name for name in own if precision in RUNTIMES[name].precisions]:
            makes.append((precision, form, able))
    forms.say(f"{len(makes)} files and networks are made first; this can take longer than to time them")
    for number, (precision, form, names) in enumerate(makes, 1):
        forms.say(f"making {number} of {len(makes)}: {form} in {precision} for {', '.join(names)}")
        made: Any = None
        for name in names:
            runtime = RUNTIMES[name]
            try:
                if made is None:
                    made = forms.file(form, precision) if runtime.reads_files else forms.network(form)
                call = runtime.ready(made, threads)
                with torch.inference_mode():
                    call(forms.example)
            except errors.MissingExtraError:
                raise
            except Exception as error:  # a runtime that has no equivalent of an operation
                for other in names if made is None else [name]:
                    forms.omitted[f"{form} in {precision} in {other}"] = reason_of(error, 200)
                if made is None:
                    break
            else:
                yield (precision, form, name), call


def _repeated(images: Tensor, count: int) -> Tensor:
    """Return the first `count` images, repeated if there are fewer."""
    return images[torch.arange(count) % len(images)]


def _described(times: dict[_Key, Latency]) -> dict[str, Any]:
    """Return milliseconds by precision, form and runtime, and speeds relative to the dense form."""
    rows: dict[str, Any] = {}
    dense = _fastest(times, _DENSE)
    for (precision, form, runtime), latency in times.items():
        row: dict[str, Any] = {name: 1e3 * value for name, value in zip(_TIMES, _values(latency), strict=True)}
        if dense is not None:
            row["dense_over_this"] = [*_values(times[dense].times(latency))]
        if (here := times.get((precision, _DENSE, runtime))) is not None:
            row["dense_here_over_this"] = [*_values(here.times(latency))]
        rows.setdefault(precision, {}).setdefault(form, {})[runtime] = row
    return rows


_TIMES = ("median_ms", "low_ms", "high_ms")


def _values(latency: Latency) -> tuple[float, float, float]:
    return latency.median_s, latency.low_s, latency.high_s


def _fastest(times: Mapping[_Key, Latency], *forms: str, any_precision: bool = False) -> _Key | None:
    """Return the fastest of some forms in the most exact precision that is timed, or in any; None if there is none."""
    exact = next((precision for precision in PRECISIONS if any(key[0] == precision for key in times)), "")
    able = [key for key in times if key[1] in forms and (any_precision or key[0] == exact)]
    return min(able, key=lambda key: times[key].median_s, default=None)


def _advice(images: str, times: Mapping[_Key, Latency], forms: _Forms) -> str:
    """Return a sentence that says what to deploy for batches of a size, "" if nothing was timed.

    With gates, dense is another network, whose score was not trained for: it is a reference and never recommended.
    """
    references = {"plain", _DENSE} if forms.dense_is_another else {"plain"}
    own = [form for form in forms.names if form not in references]
    exact, best = _fastest(times, *own), _fastest(times, *own, any_precision=True)
    if best is None:
        return ""
    if exact is None or exact == best:
        lower = {key[0] for key in times if key[1] in own} - {best[0]}
        remark = f" (nothing in {' or '.join(lower)} is faster)" if lower else ""
        return f"{images} in {best[0]}: deploy {_with_speed(best, times, forms)}{remark}"
    ratio = times[exact].times(times[best]).median_s
    return (
        f"{images}: {best[1]} in {best[0]} in {RUNTIMES[best[2]].title} is fastest"
        f"{_cost_of_int8(forms.scores.get(best[1], {}))}, {ratio:.2f} times as fast as the fastest in {exact[0]}: "
        f"{_with_speed(exact, times, forms)}"
    )


def _named(key: _Key) -> str:
    return f"{key[1]} in {RUNTIMES[key[2]].title}"


def _cost_of_int8(scores: Mapping[str, Any]) -> str:
    """Return the score in int8 and in float32, as far as they are known."""
    if "score" not in scores:
        return ""
    score = score_named(scores["score"])
    return f" ({score.title} {score.text(scores['int8'])}, in float32 {score.text(scores['float32'])})"


def _with_speed(best: _Key, times: Mapping[_Key, Latency], forms: _Forms) -> str:
    """Return a form and runtime with its speed: what inserted gates cost, or how much faster than dense a gater is."""
    dense = _fastest(times, _DENSE)
    if forms.gated:
        return _named(best) + _cost_of_gates(best, times)
    if dense is None or best == dense:
        return _named(best)
    ratio = times[dense].times(times[best]).median_s
    remark = " (the gates save no time here: train a plain network)" if 1 / ratio >= _GAIN else ""
    return f"{_named(best)}, {ratio:.2f} times as fast as {_named(dense)}{remark}"


def _cost_of_gates(best: _Key, times: Mapping[_Key, Latency]) -> str:
    """Return the time that gates add in each runtime, as a share of the network without gates."""
    precision, form, _ = best
    costs = [
        f"{100 * (latency.times(times[dense]).median_s - 1):+.0f} % in {RUNTIMES[key[2]].title}"
        for key, latency in times.items()
        if key[:2] == (precision, form) and (dense := (precision, _DENSE, key[2])) in times
    ]
    return f" (its gates take {', '.join(costs)})" if costs else ""
