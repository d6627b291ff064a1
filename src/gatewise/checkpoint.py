"""Files that survive: weights with a checksum and the spec to rebuild them, training state, both written atomically.

Everything is safetensors and JSON; nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from gatewise import _checks
from gatewise.models import make_model
from gatewise.spec import ModelSpec

WEIGHTS, CONFIG, STATE = "model.safetensors", "config.json", "state"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside `path`, flush to the disk, then rename: at no moment is there half a file under that name."""
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that is none is refused with its name."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise _checks.DataError(f"{path} does not exist.") from None
    except json.JSONDecodeError as error:
        raise _checks.DataError(f"{path} is not valid JSON ({error}). It may come from elsewhere; remove it.") from None


def save_model(folder: Path, model: nn.Module, spec: ModelSpec, details: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, then `config.json` with its sha256, the spec and `details`."""
    content = save_tensors(_plain(model.state_dict()))
    write_atomically(folder / WEIGHTS, content)
    config = {"spec": spec.to_dict(), **details, "sha256": hashlib.sha256(content).hexdigest()}
    write_json(folder / CONFIG, config)


def load_model(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the model of a run folder, in eval mode; return it with its `config.json`.

    Weights whose checksum differs from the recorded one, or that do not fit the recorded network, are refused with
    `DataError`.
    """
    folder = _checks.existing_path("run folder", folder)
    config = read_json(folder / CONFIG)
    for key in ("spec", "sha256"):
        if key not in config:
            raise _checks.DataError(f"{folder / CONFIG} has no {key!r}. Was it written by gatewise?")
    weights = _verified(folder / WEIGHTS, config["sha256"])
    options = {key: config[key] for key in ("num_classes", "in_chans") if key in config}
    model = make_model(ModelSpec.from_dict(config["spec"]), **options)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise _checks.DataError(f"{folder / WEIGHTS} does not fit the network in {folder / CONFIG}: {reason}") from None
    return model.eval(), config


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> None:
    """Write a training's state as a new folder `folder`: all files, then the folder's name, appear at once."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    state = optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, slots in state["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is None or isinstance(value, int | float | str):
                scalars[f"{index}.{name}"] = value
            else:
                raise _checks.InvalidTypeError(
                    f"{type(optimizer).__name__} keeps {name!r} as {type(value).__name__}, which no checkpoint can "
                    f"hold; expected tensors and numbers. Choose another optimizer."
                )
    groups = []
    for index, group in enumerate(state["param_groups"]):
        tensors |= {f"group.{index}.{name}": value for name, value in group.items() if isinstance(value, Tensor)}
        groups.append({k: v for k, v in group.items() if not isinstance(v, Tensor | torch.dtype)})
    content = save_tensors(_plain(tensors))
    write_atomically(beside / f"{STATE}.safetensors", content)
    record = {
        "progress": dict(progress),
        "optimizer": {"param_groups": groups, "scalars": scalars},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(beside / f"{STATE}.json", record)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what `save_state` wrote and return its progress."""
    record = read_json(folder / f"{STATE}.json")
    tensors = _verified(folder / f"{STATE}.safetensors", record["sha256"])
    saved = record["optimizer"]
    groups = [
        own | group for own, group in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    ]
    slots: dict[int, dict[str, Any]] = {}
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        owner, _, rest = name.partition(".")
        index, _, slot = rest.partition(".")
        if owner == "model":
            weights[rest] = tensor
        elif owner == "group":
            groups[int(index)][slot] = tensor
        else:
            slots.setdefault(int(index), {})[slot] = tensor
    for name, value in saved["scalars"].items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = value
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return record["progress"]


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that share no memory, as safetensors demands."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _verified(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read tensors whose file has the recorded checksum."""
    _checks.existing_path("weights file", path)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise _checks.DataError(
            f"{path} is damaged: its sha256 is {found[:12]}..., recorded is {sha256[:12]}.... Restore it from a copy."
        )
    try:
        return load_tensors(content)
    except SafetensorError as error:
        raise _checks.DataError(f"{path} is no safetensors file ({error}).") from None
