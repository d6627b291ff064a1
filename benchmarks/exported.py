"""Measure size, latency and agreement of a run exported in every form, and its predictions without torch.

    gatewise compact GATED --out COMPACT
    python benchmarks/exported.py GATED COMPACT PLAIN [--rounds 15] [--served 100] [--out FILE]

GATED is a run with a gater, COMPACT the same run compacted, PLAIN a run without gates. Each file is opened by its
reader (ONNX Runtime, torch.export) and timed in turn with the others, for one image and for eight. Then
examples/predict_with_onnx_alone.py classifies validation images in a new environment with onnxruntime, numpy and
pillow only. The benchmark counts the images for which the network itself, run by torch, predicts the same class.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gatewise.core.files import write_json
from gatewise.exporting import export_run, opened
from gatewise.graph.measure import environment, interleaved_latency
from gatewise.training.runs import Run, open_runs

SERVER = Path(__file__).parents[1] / "examples" / "predict_with_onnx_alone.py"
BATCHES = (1, 8)


def forms(gated: Path, compact: Path, plain: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return the run and the options of every export; the first one is the baseline."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for name, run in {"plain": plain, "masked": gated, "compact": compact}.items():
        found |= {name: (run, {}), f"{name}, int8": (run, {"int8": True}), f"{name}, torch": (run, {"to": "torch"})}
    return found | {"skip": (gated, {"form": "skip"}), "skip, torch": (gated, {"form": "skip", "to": "torch"})}


def reader(file: Path) -> Callable[[torch.Tensor], Any]:
    return opened(file) if file.suffix == ".onnx" else torch.export.load(file).module()


def timed(files: dict[str, Path], run: Run, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return milliseconds for each file and batch size, and the speed relative to the first file."""
    found: dict[str, dict[str, Any]] = {name: {} for name in files}
    for count in BATCHES:
        images = next(iter(run.first(count)))
        calls = {name: functools.partial(reader(file), images) for name, file in files.items()}
        with torch.inference_mode():
            times = interleaved_latency(calls, rounds=rounds, seconds_per_turn=0.1)
        first = next(iter(times.values()))
        for name, latency in times.items():
            faster = first.times(latency)
            found[name][str(count)] = {
                "ms": 1e3 * latency.median_s,
                "times": faster.median_s,
                "low": faster.low_s,
                "high": faster.high_s,
            }
    return found


def served(files: dict[str, Path], runs: dict[Path, Run], origin: dict[str, Path], count: int) -> dict[str, Any]:
    """Return for how many images each ONNX file predicts the network's class in an environment without torch."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "env", "bin", "python")
        venv.create(python.parents[1], with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "onnxruntime", "numpy", "pillow"], check=True)
        assert subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode != 0
        pictures = [Path(folder, f"{number}.png") for number in range(count)]
        for number, picture in enumerate(pictures):
            next(iter(runs.values())).images.picture(number).save(picture)
        for name, file in files.items():
            run = runs[origin[name]]
            images = torch.cat(list(run.first(count)))
            with torch.inference_mode():
                expected = [run.classes[index] for index in run.model(images).argmax(1).tolist()]
            answer = subprocess.run([python, SERVER, file, *pictures], capture_output=True, text=True, check=True)
            *predicted, torch_loaded = [line.rpartition(": ")[2] for line in answer.stdout.splitlines()]
            assert torch_loaded == "False"
            found[name] = {"images": count, "equal": sum(a == b for a, b in zip(predicted, expected, strict=True))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("gated", "compact", "plain"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--served", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folders = (arguments.gated, arguments.compact, arguments.plain)
    chosen = forms(*folders)
    origin = {name: run for name, (run, _) in chosen.items()}
    runs = {run: open_runs([run])[0] for run in folders}
    with tempfile.TemporaryDirectory() as folder:
        files, rows = {}, {}
        for name, (run, options) in chosen.items():
            files[name] = Path(folder, name.replace(", ", "-")).with_suffix(
                ".pt2" if options.get("to") == "torch" else ".onnx"
            )
            rows[name] = export_run(run, files[name], **options)
            rows[name].pop("file")
            print(name, rows[name], file=sys.stderr, flush=True)
        latencies = timed(files, runs[arguments.gated], arguments.rounds)
        onnx = {name: file for name, file in files.items() if file.suffix == ".onnx"}
        answers = served(onnx, runs, origin, arguments.served)
    table = {name: {**row, "latency": latencies[name], "served": answers.get(name)} for name, row in rows.items()}
    results = {"environment": environment(), "rounds": arguments.rounds, "forms": table}
    print(json.dumps(results, indent=2))
    if arguments.out is not None:
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
