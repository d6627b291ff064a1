"""Read weights from safetensors files and from files of torch.save, without executing code in them."""

import io
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_bytes
from gatewise.core.reasons import reason_of
from gatewise.core.run_files import CONFIG, WEIGHTS
from gatewise.models.serialization import read_source, read_tensors

_WRAPPERS = ("state_dict", "model", "state_dict_ema", "net", "model_state_dict")
_PREFIXES = re.compile(r"^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\.")


def read_weights(source: str | Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Return the file, its tensors by name, and the `config.json` in its folder (or {}).

    Args:
        source: a run folder, a safetensors file, or a file of torch.save. Wrappers that trainers add around the weights
            ("state_dict", "model", ...) are removed; the keys of other nested dictionaries are joined with dots.

    Raises:
        DataError: the file is corrupt, has another format or no tensors, or its pickle contains objects other than
            tensors and plain values. Such a pickle could execute any code and is not opened.
    """
    source = _validation.check_path_exists("weights", source)
    if source.is_dir():
        if not (source / WEIGHTS).exists():
            raise errors.DataError(f"{source} has no {WEIGHTS}. Give a run folder, or the weight file itself.")
        return read_source(source) if (source / CONFIG).exists() else (source, read_tensors(source / WEIGHTS), {})
    if source.suffix == ".safetensors":
        return source, read_tensors(source), {}
    return source, _tensors(_unwrapped(_unpickled(source)), source), {}


def _unpickled(file: Path) -> Any:
    content = read_bytes(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickle protocols; if it cannot read one, it raises
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The words only shorten the message; whether the file is opened does not depend on them.
        objects = str(error).partition("WeightsUnpickler error:")[2].strip().split("\n")[0] or "unknown objects"
        raise errors.DataError(
            f"{file} was not opened: its pickle contains more than tensors and plain values ({objects[:160]}). If you "
            f"trust the file, open it with the code that wrote it, and save only its state_dict, preferably as "
            f"safetensors."
        ) from None
    except Exception as error:  # torch's readers raise many kinds of exceptions for corrupt files
        raise errors.DataError(
            f"{file} is not a weight file that torch can read ({reason_of(error)}). Give a safetensors file or a file "
            f"of torch.save."
        ) from None


def _unwrapped(content: Any) -> Any:
    """Return the weights nested in a trainer's checkpoint, or None if a dictionary in it contains itself."""
    seen: set[int] = set()
    while isinstance(content, Mapping) and id(content) not in seen:
        outer = cast(Mapping[Any, Any], content)
        seen.add(id(outer))
        inner: Any = next((outer[key] for key in _WRAPPERS if isinstance(outer.get(key), Mapping)), None)
        if inner is None:
            return outer
        content = inner
    return None


def _tensors(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the tensors of nested dictionaries, with keys joined by dots."""
    tensors: dict[str, Tensor] = {}

    def collect(values: Mapping[Any, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{without_wrappers(str(name))}"] = value
            elif isinstance(value, Mapping):
                collect(cast(Mapping[Any, Any], value), f"{prefix}{name}.")

    if isinstance(content, Mapping):
        try:
            collect(cast(Mapping[Any, Any], content), "")
        except RecursionError:
            raise errors.DataError(f"{file} has dictionaries nested without end. Give a state_dict.") from None
    if not tensors:
        raise errors.DataError(f"{file} has no named tensors. Give a state_dict.")
    return tensors


def without_wrappers(name: str) -> str:
    """Remove the prefixes of DataParallel and torch.compile from the name of a tensor in a state dict.

    >>> without_wrappers("module._orig_mod.submodule.conv.weight"), without_wrappers("stem._orig_mod.bias")
    ('submodule.conv.weight', 'stem.bias')
    """
    return _PREFIXES.sub("", name)
