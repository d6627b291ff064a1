"""Call the package with corrupt files and hostile values: it must raise its own errors and do no harm.

    PYTHONPATH=tests python tools/fuzz.py --inputs 10000 --commands 200 --out docs/results/reliability/fuzz.json

Every input is drawn from its seed alone: `--again "0/recipe file/17"` makes one again. For each it is checked that the
package returns or raises a `GatewiseError`; that it needs neither more time nor more memory than the limits; that no
file it was given has changed, and none was written except at the requested
paths; that nothing in it was executed. Commands are complete command lines in separate processes: exit code 0, 2, or 1
for a training that failed, and one line on standard error for an error. Exit code 1 if any input failed.
"""

import argparse
import json
import multiprocessing
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from support.fuzzing import TARGETS
from support.fuzzing.commands import command
from support.fuzzing.pool import Worker, environment, made

LIMIT_S, COMMAND_S = 30.0, 120.0
MOST_BYTES = 2 * 2**30
SHOWN = 40


def jobs_of(inputs: int, seed: int, *, exported: bool) -> list[tuple[str, str]]:
    """Return (target, seed) of each input, as many of each target as its weight says."""
    chosen = [target for target in TARGETS.values() if exported or not target.exported]
    total = sum(target.weight for target in chosen)
    jobs = []
    for target in chosen:
        count = -(-inputs * target.weight // total)
        jobs += [(target.name, f"{seed}/{target.name}/{number}") for number in range(count)]
    return jobs


def make_base(folder: Path, *, exported: bool) -> None:
    """Write the good files in a separate process."""
    code = "import sys; from pathlib import Path; from support.fuzzing.base import make; "
    code += f"make(Path(sys.argv[1]), exported={exported})"
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment(), check=True, capture_output=True)


def fuzz(
    inputs: int, commands: int, seed: int, *, workers: int = 1, again: str | None = None, base: Path | None = None
) -> dict[str, Any]:
    """Make all inputs, or repeat one, and return the record; `base` is a folder of good files made earlier."""
    started = time.time()
    exported = inputs >= 1000
    root = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        if base is None:
            make_base(root / "base", exported=exported)
        jobs = jobs_of(inputs, seed, exported=exported) if again is None else [(again.split("/")[1], again)]
        seeds = [f"{seed}/command/{number}" for number in range(commands)] if again is None else [again]
        jobs, seeds = [job for job in jobs if job[0] != "command"], [given for given in seeds if "/command/" in given]
        base = base or root / "base"
        served = [Worker(root / f"worker{number}", base, LIMIT_S, MOST_BYTES) for number in range(workers)]
        found = list(reported("inputs", made(jobs, served), len(jobs), started))
        found += reported("commands", commands_run(root, base, seeds, workers), len(seeds), started)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return record(found, seed, time.time() - started, sum(worker.replaced for worker in served))


def commands_run(root: Path, base: Path, seeds: list[str], workers: int) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each command line; at most `workers` run at the same time."""
    if not seeds:
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        folders = [root / f"command{number}" for number in range(len(seeds))]
        yield from pool.map(command, folders, repeat(base), seeds, repeat(COMMAND_S))


def reported(what: str, answers: Iterable[dict[str, Any]], count: int, started: float) -> Iterator[dict[str, Any]]:
    """Pass answers on, and print failures and every twentieth part."""
    for number, answer in enumerate(answers, 1):
        if number % max(1, count // 20) == 0:
            print(f"{number} of {count} {what}, {time.time() - started:.0f} s", flush=True)
        if answer["outcome"] == "failed":
            print(f"FAILED {answer['seed']}: {answer['kind']}: {answer['message']}", flush=True)
        yield answer


def record(found: list[dict[str, Any]], seed: int, seconds: float, replaced: int) -> dict[str, Any]:
    """Return the record of a run."""
    by_target: dict[str, dict[str, int]] = {}
    for answer in found:
        counts = by_target.setdefault(answer["target"], {"accepted": 0, "rejected": 0, "failed": 0})
        counts[answer["outcome"]] += 1
    failures = [
        {key: answer[key] for key in ("seed", "kind", "message")} for answer in found if answer["outcome"] == "failed"
    ]
    return {
        "inputs": len(found),
        "commands": sum(answer["target"] == "command" for answer in found),
        "seed": seed,
        "outcomes": dict(Counter(answer["outcome"] for answer in found)),
        "errors": dict(Counter(answer["kind"] for answer in found if answer["outcome"] == "rejected").most_common()),
        "targets": by_target,
        "longest_s": round(max((a["seconds"] for a in found if a["target"] != "command"), default=0), 2),
        "longest_command_s": round(max((a["seconds"] for a in found if a["target"] == "command"), default=0), 2),
        "largest_growth_mib": max(answer["grown"] for answer in found) >> 20,
        "limits": {"input_s": LIMIT_S, "command_s": COMMAND_S, "growth_mib": MOST_BYTES >> 20},
        "workers_replaced": replaced,
        "seconds": round(seconds),
        "machine": {"cpu": _processor(), "python": platform.python_version(), "torch": torch.__version__},
        "failures": failures[:SHOWN],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """Run the fuzzer from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="in reused processes")
    parser.add_argument("--commands", type=int, default=200, help="whole command lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", metavar="SEED", help="one input, as a failure names it")
    parser.add_argument("--out", type=Path, help="where to write the record")
    asked = parser.parse_args()
    found = fuzz(asked.inputs, asked.commands, asked.seed, workers=asked.workers, again=asked.again)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=2) + "\n")
    print(
        json.dumps({
            key: found[key] for key in ("inputs", "commands", "outcomes", "seconds", "longest_s", "largest_growth_mib")
        })
    )
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
