"""Weights from any file: safetensors, or what torch.save wrote, of which nothing is ever executed."""

import io
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gatewise import _validation, errors
from gatewise.files import read_bytes
from gatewise.serialization import CONFIG, WEIGHTS, read_source, read_tensors

_WRAPPERS = ("state_dict", "model", "state_dict_ema", "net", "model_state_dict")
_PREFIXES = re.compile(r"^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\.")


def read_weights(source: str | Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Return the file, its tensors by name, and the `config.json` beside them ({} where there is none).

    Args:
        source: a run folder, a safetensors file, or a file of torch.save. Of what trainers wrap around weights
            ("state_dict", "model", ...) the weights are taken; other dictionaries are joined with dots.

    Refused with `DataError`: a file that is neither, damaged, holds no tensors, or whose pickle asks for more than
    tensors and plain values: such a pickle could run any program, and is not opened.
    """
    source = _validation.check_path_exists("weights", source)
    if source.is_dir():
        if not (source / WEIGHTS).exists():
            raise errors.DataError(f"{source} holds no {WEIGHTS}. Give a run folder, or the file of weights itself.")
        return read_source(source) if (source / CONFIG).exists() else (source, read_tensors(source / WEIGHTS), {})
    if source.suffix == ".safetensors":
        return source, read_tensors(source), {}
    return source, _tensors(_unwrapped(_unpickled(source)), source), {}


def _unpickled(file: Path) -> Any:
    content = read_bytes(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that it may not know: then it says so
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = str(error).partition("WeightsUnpickler error:")[2].strip().split("\n")[0] or "unknown objects"
        raise errors.DataError(
            f"{file} was not opened: its pickle holds more than tensors and plain values ({asked[:160]}). If you trust "
            f"it, open it where it was made, and save its state_dict alone, best as safetensors."
        ) from None
    except Exception as error:  # of a spoiled file torch's readers raise whatever its bytes lead to
        reason = " ".join(str(error).split())[:160]
        raise errors.DataError(f"{file} is no file of weights that torch can read ({reason}).") from None


def _unwrapped(content: Any) -> Any:
    """Return the weights that a trainer's checkpoint wraps; one that wraps itself has none."""
    seen: set[int] = set()
    while isinstance(content, Mapping) and id(content) not in seen:
        found = cast(Mapping[Any, Any], content)
        seen.add(id(found))
        inner: Any = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            return found
        content = inner
    return None


def _tensors(content: Any, file: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def collect(values: Mapping[Any, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{without_wrappers(str(name))}"] = value
            elif isinstance(value, Mapping):
                collect(cast(Mapping[Any, Any], value), f"{prefix}{name}.")

    if isinstance(content, Mapping):
        try:
            collect(cast(Mapping[Any, Any], content), "")
        except RecursionError:
            raise errors.DataError(f"{file} holds tables in tables without end. Give a state_dict.") from None
    if not found:
        raise errors.DataError(f"{file} holds no tensors by name. Give a state_dict.")
    return found


def without_wrappers(name: str) -> str:
    """Strip the prefixes of DataParallel and torch.compile from a tensor's name in a state dict.

    >>> without_wrappers("module._orig_mod.submodule.conv.weight"), without_wrappers("stem._orig_mod.bias")
    ('submodule.conv.weight', 'stem.bias')
    """
    return _PREFIXES.sub("", name)
