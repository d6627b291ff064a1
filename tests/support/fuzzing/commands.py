"""Complete command lines with mistakes in them, each in a separate process."""

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.fuzzing.base import TINY
from support.fuzzing.box import Box
from support.fuzzing.pictures import changed_folder, hostile_image
from support.fuzzing.pool import environment
from support.fuzzing.runs import changed_config, changed_recipe, corrupt_run

_ROOM = 24 * 2**30  # of address space: the imports alone take four
_QUICK = ["--model", TINY, "--epochs", "1", "--batch-size", "4", "--precision", "fp32", "--workers", "0"]
_FLAGS = ("--epochs", "--lr", "--model", "--gate", "--data", "--recipe", "--out", "--batch-size", "--image-size", "--seed", "--workers",
          "--optimizer", "--augmentation", "--task", "--init", "--resume", "--json", "--budget", "--sites", "--gater", "--top-k", "--to",
          "--form", "--images", "--batch-sizes", "--rounds", "--gates", "--seeds", "--no-such", "-x", "--help", "--version", "--split", "--figures")  # fmt: skip


def command(folder: Path, base: Path, seed: str, limit_s: float) -> dict[str, Any]:
    """Run one command line and return its outcome."""
    folder.mkdir(parents=True, exist_ok=True)
    here = Path.cwd()
    try:
        box = Box(folder / "box", base, seed)
        arguments = _arguments(box)
    finally:
        os.chdir(here)
    before = box.snapshot()
    started = time.monotonic()
    whole = [sys.executable, "-m", "gatewise", *arguments]
    variables = {
        **environment(),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HOME": str(box.out / "home"),
    }
    try:
        done = subprocess.run(
            whole,
            cwd=box.home,
            env=variables,
            capture_output=True,
            timeout=limit_s,
            check=False,
            stdin=subprocess.DEVNULL,
            preexec_fn=_limited,
        )
        outcome, kind, message = _judged(done)
    except subprocess.TimeoutExpired:
        outcome, kind, message = "failed", "hang", f"no end in {limit_s:g} s"
    if box.canary.exists():
        box.canary.unlink()
        outcome, kind, message = "failed", "executed", "something was executed"
    elif (after := box.snapshot()) != before:
        paths = sorted({path for path in before.keys() | after.keys() if before.get(path) != after.get(path)})
        outcome, kind, message = "failed", "files", f"files were touched: {paths[:4]}"
    if outcome == "failed":
        message += f"; {arguments}"
    shutil.rmtree(folder / "box", ignore_errors=True)
    return {
        "outcome": outcome,
        "kind": kind,
        "message": message,
        "target": "command",
        "seed": seed,
        "seconds": time.monotonic() - started,
        "grown": 0,
    }


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ROOM, _ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _judged(done: subprocess.CompletedProcess[bytes]) -> tuple[str, str, str]:
    """Return outcome, kind and message of a command that ended."""
    said = done.stderr.decode("utf-8", "replace")
    if done.returncode == 0:
        return ("failed", "traceback", said[-300:]) if "Traceback" in said else ("accepted", "", "")
    if done.returncode not in {1, 2} or "Traceback" in said:
        return "failed", f"exit code {done.returncode}", said[-300:]
    errors = [line for line in said.splitlines() if line.startswith("gatewise: ")]
    if len(errors) != 1 or not said.rstrip("\n").endswith(errors[0]):
        return "failed", "not one line", said[-300:]
    if done.returncode == 2 and said.count("\n") != 1 and not _progress(said):
        return "failed", "not one line", said[-300:]
    return "rejected", f"exit code {done.returncode}", errors[0]


def _progress(said: str) -> bool:
    """Return whether the lines above an error are progress and not warnings."""
    return not any("Warning" in line or 'File "' in line for line in said.splitlines()[:-1])


def _arguments(box: Box) -> list[str]:
    """Return a command line; most have one mistake or one corrupt file."""
    kind = box.rng.randrange(12)
    out = str(box.out / "a run é")
    if kind == 0:
        words = [
            box.rng.choice((
                "train",
                "compare",
                "predict",
                "explain",
                "compact",
                "bench",
                "export",
                "gates",
                "trian",
                "",
            ))
        ]
        words += [_word(box) if box.rng.random() < 0.5 else box.rng.choice(_FLAGS) for _ in range(box.rng.randrange(5))]
        return words if "--out" in words else [*words, "--out", out]
    if kind in {1, 2, 3}:
        flag = box.rng.choice([flag for flag in _FLAGS if flag not in {"--out", "--help", "--version"}])
        return [box.rng.choice(("train", "compare")), *_QUICK, flag, _word(box), "--out", out]
    if kind == 4:
        file = box.copied("run/recipe.yaml")
        changed_recipe(box, file)
        return ["train", "--recipe", str(file), "--epochs", "1", "--out", out]
    if kind in {5, 6}:
        run = corrupt_run(box, "run")
        image = box.inputs / "a photo.png"
        image.write_bytes(hostile_image(box))
        return ["predict", str(run), str(image), *(["--json"] if box.rng.random() < 0.5 else [])]
    if kind == 7:
        run = corrupt_run(box, box.rng.choice(("run", "gater")))
        return ["explain", str(run), "--out", str(box.out / "page.html")]
    if kind == 8:
        folder = box.copied(box.rng.choice(("classes", "pairs", "table", "masks")))
        changed_folder(box, folder)
        task = "segment" if folder.name in {"pairs", "masks"} else "classify"
        return ["train", "--data", str(folder), "--task", task, *_QUICK, "--out", out]
    if kind == 9:
        run = corrupt_run(box, "gater")
        return box.rng.choice((["compact", str(run), "--out", out], ["export", str(run), "--out", f"{out}.onnx"]))
    if kind == 10:
        shutil.copytree(box.copied("run"), out)
        corrupt = box.rng.choice(
            sorted(path for path in Path(out).rglob("*") if path.is_file() and "tensorboard" not in str(path))
        )
        corrupt.write_bytes(box.hostile.changed_bytes(corrupt.read_bytes()))
        (Path(out) / "metrics.json").unlink()
        return [
            "train",
            "--model",
            TINY,
            "--gate",
            "gct@inner",
            "--epochs",
            "1",
            "--batch-size",
            "32",
            "--precision",
            "fp32",
            "--resume",
            "--out",
            out,
        ]
    file = box.corrupted("weights.pt") if box.rng.random() < 0.5 else box.copied("run/config.json")
    if file.suffix == ".json":
        changed_config(box, file)
    return ["train", *_QUICK, "--init", str(file), "--out", out]


def _word(box: Box) -> str:
    """Return a word that a shell could pass on."""
    return box.hostile.word().replace("\0", "").encode("utf-8", "replace").decode()[:2000]
