"""Checkpoints of a training: a folder with tensors and a JSON record, both with a checksum, written atomically.

The files are safetensors and JSON; nothing is unpickled.
"""

# pyright: basic

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct, field
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import FORMAT, new_folder, read_record, write_atomically, write_record
from gatewise.core.reasons import as_data_error
from gatewise.core.schema import Finite, Index, of_file
from gatewise.models.serialization import RUN_FORMAT, fill, plain_tensors, read_tensors

STATE = "state"
_CHECKSUM = "values_sha256"  # of the record: one changed digit would change the final weights


def save_state(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> None:
    """Write a training's state to `folder`, atomically: it appears under this name once all files are complete.

    Args:
        folder: replaced if it exists.
        modules: modules to save, by name.
        optimizer: its state is saved too.
        progress: position in the training, as JSON values.
    """
    tensors, record = _state(modules, optimizer, progress)
    content = save_tensors(plain_tensors(tensors))
    record["sha256"] = hashlib.sha256(content).hexdigest()
    record[_CHECKSUM] = _checksum({FORMAT: RUN_FORMAT, **record})
    with new_folder(folder) as temporary:
        write_atomically(temporary / f"{STATE}.safetensors", content)
        write_record(temporary / f"{STATE}.json", record, RUN_FORMAT)
        shutil.rmtree(folder, ignore_errors=True)


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a state's record as JSON with sorted names, without the checksum itself."""
    content = json.dumps({key: value for key, value in record.items() if key != _CHECKSUM}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _state(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a training's state, and all other values as a JSON-compatible dict."""
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
                    f"cannot save {name!r} of {type(optimizer).__name__}: expected a tensor, a number or text, got "
                    f"{type(value).__name__}. Choose another optimizer."
                )
    groups = []
    for index, group in enumerate(state["param_groups"]):
        tensors |= {f"group.{index}.{name}": value for name, value in group.items() if isinstance(value, Tensor)}
        groups.append({k: v for k, v in group.items() if not isinstance(v, Tensor | torch.dtype)})
    return tensors, {"progress": dict(progress), "optimizer": {"param_groups": groups, "scalars": scalars}}


def state_progress(folder: Path) -> dict[str, Any]:
    """Return the progress that `save_state` recorded, without reading the tensors."""
    return _state_record(folder).progress


def check_position(folder: Path, progress: Mapping[str, Any], *, epochs: int, steps: int) -> None:
    """Raise `DataError` if a recorded position is outside a training of `epochs` epochs of `steps` steps each."""
    file = folder / f"{STATE}.json"
    position = of_file(file, progress, _Position)
    for name, count, allowed in (
        ("epoch", position.epoch, range(epochs + 1)),
        ("step", position.step, range(steps + 1)),
        ("number of losses", len(position.losses), range(position.step, position.step + 1)),
        ("number of gate losses", len(position.gate_losses) or position.step, range(position.step, position.step + 1)),
    ):
        if count not in allowed:
            raise errors.DataError(
                f"{file}: {name} must be from {allowed.start} to {allowed.stop - 1}, got {count}. Restore the file."
            )


class _Position(Struct):
    """Position of a training; further entries are allowed."""

    epoch: Index
    step: Index
    losses: list[Finite]
    correct: Finite
    gate_losses: list[Finite] = field(default_factory=list[float])


class _Record(Struct):
    """Content of a state's JSON file."""

    progress: dict[str, Any]
    optimizer: dict[str, Any]
    sha256: str
    values_sha256: str


def _state_record(folder: Path) -> _Record:
    file = folder / f"{STATE}.json"
    content = read_record(file, RUN_FORMAT)
    record = of_file(file, content, _Record)
    if record.values_sha256 != (actual := _checksum(content)):
        recorded = _validation.safe_repr(record.values_sha256)[1:13]
        raise errors.DataError(
            f"{file} is damaged: expected the recorded sha256 {recorded}... of its values, found {actual[:12]}.... "
            f"Restore it from a copy."
        )
    return record


def load_state(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None
) -> dict[str, Any]:
    """Restore a state that `save_state` wrote.

    Args:
        folder: the state's folder.
        modules: modules to restore, by the names they were saved under.
        optimizer: restored too unless None.

    Returns:
        The recorded progress.

    Raises:
        DataError: a file is missing, damaged or of another network or optimizer.
    """
    record = _state_record(folder)
    tensors = read_tensors(folder / f"{STATE}.safetensors", record.sha256)
    for key, module in modules.items():
        fill(module, _below(tensors, key), folder / f"{STATE}.safetensors")
    if optimizer is not None:
        problem = "is damaged: it does not contain a state of this optimizer"
        kinds = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
        with as_data_error(f"{folder / STATE}.json", problem, of=kinds):
            _restore_optimizer(optimizer, tensors, record.optimizer)
    return record.progress


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
            if (
                isinstance(value, Tensor) and value.shape == parameter.shape
            ):  # keep the memory format: it decides the order of summation
                state[slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with "owner.", without this prefix."""
    return {name.removeprefix(f"{owner}."): t for name, t in tensors.items() if name.startswith(f"{owner}.")}


def complete_states(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder` that have all their files, oldest first."""
    files = [f"{STATE}.{kind}" for kind in ("json", "safetensors")]
    return [state for state in _states(folder) if all((state / file).exists() for file in files)]


def _states(folder: Path) -> list[Path]:
    """Return the folders named as the loop names checkpoints (nine digits); other trainers write step_5000."""
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{9,}", path.name) and path.is_dir())


def is_whole(folder: Path) -> bool:
    """Return whether a checkpoint is intact: both files match their checksums and have a known format."""
    try:
        read_tensors(folder / f"{STATE}.safetensors", _state_record(folder).sha256)
    except errors.DataError:
        return False
    return True


def keep_newest_states(folder: Path, count: int) -> None:
    """Remove all checkpoints in `folder` except the newest `count` that have all their files, then an empty folder."""
    kept = complete_states(folder)[::-1][:count]
    for other in _states(folder):
        if other not in kept:
            shutil.rmtree(other, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()
