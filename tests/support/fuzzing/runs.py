"""Targets that read runs, recipes, checkpoints and weights."""

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save

import gatewise as gw
from gatewise.core.files import read_json, read_json_lines
from gatewise.exporting.prediction import predict
from gatewise.models.weights.reading import read_weights
from gatewise.training import Recipe, train
from gatewise.training.checkpoint import _checksum, load_state, state_progress
from gatewise.training.runs import open_runs
from support.fuzzing.base import TINY
from support.fuzzing.box import Box
from support.fuzzing.target import Call, target


def everything(found: Any) -> list[Any]:
    return list(found)


def changed_config(box: Box, file: Path) -> None:
    """Change plain values in a JSON file."""
    try:
        content = box.hostile.changed_json(json.loads(file.read_bytes()))
    except (ValueError, RecursionError):  # it is corrupt already
        return
    file.write_bytes(box.hostile.as_json(content))


def changed_recipe(box: Box, file: Path) -> None:
    if file.is_dir():  # it is corrupt already
        return
    kind = box.rng.random()
    text = file.read_bytes().decode(errors="replace") if file.is_file() else "epochs: 3\n"
    if kind < 0.4:
        try:
            values = box.hostile.changed_json(yaml.safe_load(text))
        except yaml.YAMLError:
            return
        text = json.dumps(values, default=str) if box.rng.random() < 0.5 else yaml.dump(values)
    elif kind < 0.7:
        text = box.hostile.changed_text(text)
    elif kind < 0.8:
        text += f"gate: !!python/object/apply:builtins.open [{str(box.canary)!r}, w]\n"
    elif kind < 0.85:
        text = (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
            )
            + "gate: *j\n"
        )
    elif kind < 0.9:
        text = "gate: " + "[" * 3000
    else:
        file.write_bytes(box.hostile.changed_bytes(text.encode()))
        return
    file.write_bytes(text.encode("utf-8", "surrogatepass"))


@target(80)
def recipe_file(box: Box) -> Call:
    file = box.copied("run/recipe.yaml")
    changed_recipe(box, file)
    return lambda: Recipe.load(file)


@target(60)
def json_file(box: Box) -> Call:
    file = box.copied("run/metrics.json" if box.rng.random() < 0.5 else "run/log.jsonl")
    file.write_bytes(box.hostile.changed_bytes(file.read_bytes()) if box.rng.random() < 0.7 else box.hostile.as_json(1))
    return lambda: (read_json_lines if file.suffix == ".jsonl" else read_json)(file)


def corrupt_run(box: Box, name: str) -> Path:
    """Copy a run and change one or two of its files."""
    run = box.copied(name)
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    for _ in range(box.rng.choice((1, 1, 2))):
        kind = box.rng.randrange(8)
        if kind < 4:
            changed_config(box, run / "config.json")
        elif kind == 4:
            changed_config(box, run / "metrics.json")
        elif kind == 5:
            changed_recipe(box, run / "recipe.yaml")
        elif kind == 6:
            file = run / box.rng.choice((
                "log.jsonl",
                "model.safetensors",
                "config.json",
                "metrics.json",
                "predictions.safetensors",
            ))
            if file.is_file():
                file.write_bytes(box.hostile.changed_bytes(file.read_bytes()))
        else:
            file = run / box.rng.choice((
                "log.jsonl",
                "model.safetensors",
                "config.json",
                "metrics.json",
                "recipe.yaml",
            ))
            if not file.is_file():
                continue
            file.unlink()
            if box.rng.random() < 0.3:
                file.mkdir()
            elif box.rng.random() < 0.5:
                file.write_bytes(b"" if box.rng.random() < 0.5 else box.evil_pickle())
        if not (run / "config.json").is_file() or not (run / "metrics.json").is_file():
            break
    return run


@target(120)
def run_folder(box: Box) -> Call:
    run = corrupt_run(box, "run" if box.rng.random() < 0.93 else "gater")
    image = box.copied("images/PNG-L.png")
    kind = box.rng.randrange(4)
    if kind == 0:
        return lambda: gw.load_model(run)
    if kind == 1:
        return lambda: open_runs([run])
    if kind == 2:
        return lambda: everything(predict(run, [image]))
    return lambda: (
        gw.PretrainedNet.of_run(run).generate_model_card()
        if box.rng.random() < 0.5
        else gw.PretrainedNet.from_pretrained(run)
    )


@target(10)
def compacted_run(box: Box) -> Call:
    run = box.copied("run")
    config = json.loads((run / "config.json").read_text())
    step: Any = {"states": "1" * 10, "images": 3, "sites": [], "whole": [], "difference": 0.0, "checked": 0, "disagreeing": 0,
                 "macs_before": 1, "macs_after": 1, "parameters_before": 1, "parameters_after": 1}  # fmt: skip
    config["compacted"] = box.hostile.changed_json([step])
    (run / "config.json").write_text(json.dumps(config))
    return lambda: gw.load_model(run)


def _refresh_checksum(file: Path) -> None:
    """Update the checksum of a changed record, so that its values are checked."""
    try:
        record = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(record, dict) and "values_sha256" in record:
        record["values_sha256"] = _checksum(record)
        file.write_text(json.dumps(record))


@target(30)
def checkpoint(box: Box) -> Call:
    run = box.copied("run")
    (state,) = (run / "checkpoints").glob("step_*")
    if box.rng.random() < 0.7:
        changed_config(box, state / "state.json")
        _refresh_checksum(state / "state.json")
    else:
        file = state / box.rng.choice(("state.json", "state.safetensors"))
        file.write_bytes(box.hostile.changed_bytes(file.read_bytes()))
    if box.rng.random() < 0.15:  # complete trainings are written in the run's folder
        shutil.copytree(run, box.out)
        (box.out / "metrics.json").unlink()
        recipe = Recipe.load(box.out / "recipe.yaml")
        return lambda: train(recipe, box.out, resume=True)
    net = gw.make_model(f"{TINY}+gct@inner", in_chans=1)
    optimizer = torch.optim.SGD(gw.parameter_groups(net, 5e-4), lr=0.1, momentum=0.9)
    return lambda: (state_progress(state), load_state(state, {"model": net}, optimizer))


@target(80)
def file_of_weights(box: Box) -> Call:
    kind = box.rng.random()
    if kind < 0.35:
        file = box.corrupted(box.rng.choice(("weights.pt", "old.pt")))
    elif kind < 0.55:
        file = box.copied("run/model.safetensors")
        file.write_bytes(box.hostile.changed_bytes(file.read_bytes()))
    elif kind < 0.7:
        file = box.inputs / f"evil.{box.rng.choice(('pt', 'pth', 'bin', 'safetensors', 'ckpt'))}"
        file.write_bytes(evil_weights(box))
    else:
        file = box.inputs / "odd.pt"
        torch.save(
            {
                box.hostile.word(): box.hostile.plain() if box.rng.random() < 0.4 else box.hostile.tensor()
                for _ in range(4)
            },
            file,
        )
    strict, source = (
        box.rng.random() < 0.5,
        box.rng.choice(("auto", "auto", "gct", "mmcv", "timm", "triplet", "gaternet", "gatewise", "x")),
    )
    if box.rng.random() < 0.3:
        return lambda: read_weights(file)
    net = gw.make_model(f"{TINY}+{box.rng.choice(('gct@inner', 'gc', 'nl', 'se'))}", in_chans=1)
    return lambda: gw.load_weights(net, file, source, strict=strict)


def evil_weights(box: Box) -> bytes:
    """Return a pickle that writes the canary, bare or as torch.save packs it."""
    if box.rng.random() < 0.5:
        return box.evil_pickle()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", box.evil_pickle())
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


@target(20)
def safetensors_of_odd_types(box: Box) -> Call:
    run = box.copied("run")
    weights = load_file(run / "model.safetensors")
    name = box.rng.choice(list(weights))
    weights[name] = box.hostile.tensor()
    content = save(weights, {"note": box.hostile.word().encode(errors="replace").decode()})
    (run / "model.safetensors").write_bytes(content)
    config = json.loads((run / "config.json").read_text())
    config["sha256"] = hashlib.sha256(content).hexdigest()
    (run / "config.json").write_text(json.dumps(config))
    return lambda: open_runs([run])
