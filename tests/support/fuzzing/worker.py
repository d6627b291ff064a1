"""A process that makes one input after another: reads `TARGET<tab>SEED` lines, writes one line of JSON for each."""

import json
import os
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

_ROOM = 6 * 2**30  # of address space beyond what the imports take
_DEEPEST = 2  # frames reported for a failure


def _status(name: str) -> int:
    """Return one of the kernel's numbers on this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/gatewise/" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-_DEEPEST:]))


def make(box: Any, prepare: Any) -> dict[str, Any]:
    """Make one input and return its outcome."""
    from gatewise import GatewiseError
    from gatewise.training import Interrupted

    torch.manual_seed(0)
    call = prepare(box)
    before = box.snapshot()
    outcome, kind, message = "accepted", "", ""
    try:
        call()
    except (GatewiseError, Interrupted) as error:
        outcome, kind, message = "rejected", type(error).__name__, str(error)
        if not message.strip() or len(message) > 3000:
            outcome, message = "failed", f"an error of {len(message)} characters: {message[:100]}"
    except BaseException as error:
        outcome, kind, message = (
            "failed",
            type(error).__name__,
            f"{_where(error)}: {' '.join(str(error).split())[:200]}",
        )
    if box.canary.exists():
        box.canary.unlink()
        outcome, kind, message = "failed", "executed", f"something was executed; {message}"
    elif (after := box.snapshot()) != before:
        paths = sorted({path for path in before.keys() | after.keys() if before.get(path) != after.get(path)})
        outcome, kind, message = "failed", "files", f"files were touched: {paths[:4]}; {message}"
    return {"outcome": outcome, "kind": kind, "message": message}


def main(folder: Path, base: Path, most_bytes: int) -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    sys.stdin = sys.stdin
    from support.fuzzing import TARGETS
    from support.fuzzing.box import Box

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    limit = _status("VmSize") + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        name, seed = line.rstrip("\n").split("\t")
        Path("/proc/self/clear_refs").write_text("5")
        start, resident = time.monotonic(), _status("VmRSS")
        box = Box(folder / "box", base, seed)
        try:
            found = make(box, TARGETS[name].prepare)
        except Exception as error:  # chosen by the fuzzer itself
            place = traceback.extract_tb(error.__traceback__)[-1]
            found = {"outcome": "failed", "kind": "fuzzer", "message": f"{place.name}:{place.lineno} {error!r}"[:300]}
        grown = _status("VmHWM") - resident
        if grown > most_bytes and found["outcome"] != "failed":
            found = {
                "outcome": "failed",
                "kind": "memory",
                "message": f"{grown >> 20} MiB for {found['message'][:100]}",
            }
        answer = {**found, "seconds": time.monotonic() - start, "grown": grown, "target": name, "seed": seed}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
