"""Where a training stands, as a folder that appears at once: tensors and a record, both with a checksum.

What `checkpoint` says of files holds here: safetensors and JSON, nothing is ever unpickled.
"""

# pyright: basic

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise.files import FORMAT, new_folder, read_record, write_atomically, write_record
from gatewise.serialization import RUN_FORMAT, fill, plain_tensors, read_tensors

STATE = "state"
_CHECKSUM = "values_sha256"  # of the record: no digit of a state may change, or the training ends with other bits


def save_state(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> None:
    """Write a training's state as a new folder `folder`: all files, then the folder's name, appear at once."""
    tensors, record = _state(modules, optimizer, progress)
    content = save_tensors(plain_tensors(tensors))
    record["sha256"] = hashlib.sha256(content).hexdigest()
    record[_CHECKSUM] = _checksum({FORMAT: RUN_FORMAT, **record})
    with new_folder(folder) as beside:
        write_atomically(beside / f"{STATE}.safetensors", content)
        write_record(beside / f"{STATE}.json", record, RUN_FORMAT)
        shutil.rmtree(folder, ignore_errors=True)


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a state's record as JSON with sorted names, without the checksum itself."""
    content = json.dumps({key: value for key, value in record.items() if key != _CHECKSUM}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _state(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a training's state, and the rest of it as JSON takes it."""
    state = optimizer.state_dict()
    tensors = {f"{key}.{name}": value for key, module in modules.items() for name, value in module.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, slots in state["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is None or isinstance(value, int | float | str):
                scalars[f"{index}.{name}"] = value
            else:
                raise errors.InvalidTypeError(
                    f"{type(optimizer).__name__} keeps {name!r} as {type(value).__name__}, which no checkpoint can "
                    f"hold; expected tensors and numbers. Choose another optimizer."
                )
    groups = []
    for index, group in enumerate(state["param_groups"]):
        tensors |= {f"group.{index}.{name}": value for name, value in group.items() if isinstance(value, Tensor)}
        groups.append({k: v for k, v in group.items() if not isinstance(v, Tensor | torch.dtype)})
    return tensors, {"progress": dict(progress), "optimizer": {"param_groups": groups, "scalars": scalars}}


def state_progress(folder: Path) -> dict[str, Any]:
    """Return the progress that `save_state` recorded, without touching the tensors."""
    return _state_record(folder)["progress"]


def check_position(folder: Path, progress: Mapping[str, Any], *, epochs: int, steps: int) -> None:
    """Refuse a recorded position that no training of so many epochs, of so many steps each, comes to."""
    try:
        for key, most in (("epoch", epochs), ("step", steps)):
            _validation.check_integer_at_least(0, **{key: progress.get(key)})
            _validation.check_number_between(0, most, **{key: progress[key]})
        losses = progress.get("losses")
        if not isinstance(losses, list) or len(losses) != progress["step"]:
            raise errors.InvalidValueError(
                f"losses must be {progress['step']} numbers, got {_validation.safe_repr(losses)}."
            )
        for loss in (*losses, progress.get("correct")):
            _validation.check_number_between(-1e38, 1e38, losses=loss)
    except errors.GatewiseError as error:
        raise errors.DataError(f"{folder / STATE}.json is damaged: {error}") from None


def _state_record(folder: Path) -> dict[str, Any]:
    file = folder / f"{STATE}.json"
    record = read_record(file, RUN_FORMAT, "progress", "optimizer", "sha256", _CHECKSUM)
    if record[_CHECKSUM] != (found := _checksum(record)):
        recorded = _validation.safe_repr(record[_CHECKSUM]).strip("'")[:12]
        raise errors.DataError(
            f"{file} is damaged: the sha256 of its values is {found[:12]}..., recorded is {recorded}.... Restore it "
            f"from a copy."
        )
    for key, kind in (("progress", dict), ("optimizer", dict), ("sha256", str)):
        if not isinstance(record[key], kind):
            raise errors.DataError(f"{file} is damaged: its {key} is {_validation.safe_repr(record[key])}.")
    return record


def load_state(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None
) -> dict[str, Any]:
    """Restore what `save_state` wrote and return its progress; without an optimizer, the modules alone."""
    record = _state_record(folder)
    tensors = read_tensors(folder / f"{STATE}.safetensors", record["sha256"])
    for key, module in modules.items():
        fill(module, _below(tensors, key), folder / f"{STATE}.safetensors")
    if optimizer is not None:
        try:
            _restore_optimizer(optimizer, tensors, record["optimizer"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise errors.DataError(
                f"{folder / STATE}.json does not hold the state of this optimizer ({type(error).__name__}: {reason}); "
                f"it is damaged."
            ) from None
    return record["progress"]


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], saved: Any) -> None:
    groups = [
        own | group for own, group in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    ]
    for name, tensor in _below(tensors, "group").items():
        index, _, option = name.partition(".")
        groups[int(index)][option] = tensor
    slots: dict[int, dict[str, Any]] = {}
    for name, value in [*_below(tensors, "optimizer").items(), *saved["scalars"].items()]:
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    for parameter, state in optimizer.state.items():
        for slot, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # sums depend on the order in memory
                state[slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Return the tensors whose name begins with "owner.", without that."""
    return {name.removeprefix(f"{owner}."): t for name, t in tensors.items() if name.startswith(f"{owner}.")}


def complete_states(folder: Path) -> list[Path]:
    """Return the states in `folder` that have all their files, oldest first."""
    files = [f"{STATE}.{kind}" for kind in ("json", "safetensors")]
    return [state for state in _states(folder) if all((state / file).exists() for file in files)]


def _states(folder: Path) -> list[Path]:
    """Return the folders that are named as `save_state` names them; other trainers have a step_5000."""
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{9,}", path.name) and path.is_dir())


def is_whole(folder: Path) -> bool:
    """Whether a state can be read: both files are what was written, bit for bit, in a format that is known."""
    try:
        read_tensors(folder / f"{STATE}.safetensors", _state_record(folder)["sha256"])
    except errors.DataError:
        return False
    return True


def keep_newest_states(folder: Path, count: int) -> None:
    """Remove all states in `folder` but the newest `count` that have all their files."""
    kept = complete_states(folder)[-count:]
    for other in _states(folder):
        if other not in kept:
            shutil.rmtree(other, ignore_errors=True)
