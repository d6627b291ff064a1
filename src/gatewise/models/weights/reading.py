"""Read weights from safetensors files and from files of torch.save, without executing code in them."""

import io
import pickle
import warnings
from dataclasses import dataclass, field
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
from gatewise.models.weights.inert_pickle import read_inertly

_WRAPPERS = ("state_dict", "model", "state_dict_ema", "net", "model_state_dict")
_STARTS = (b"PK", b"\x80")  # of files of torch.save: an archive, or a pickle
_MANY = 1_000_000  # values in the dictionaries of a file, above which they are nested without end


@dataclass(frozen=True)
class WeightFile:
    """Content of a file of weights.

    Attributes:
        path: the file.
        tensors: its tensors by name; keys of nested dictionaries are joined with dots.
        wrapper: the prefix of the weights that a trainer put into a dictionary such as "state_dict", or "".
        config: the `config.json` in its folder, or {}.
        not_read: names of the classes of other objects in the file.
    """

    path: Path
    tensors: dict[str, Tensor]
    wrapper: str = ""
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    not_read: tuple[str, ...] = ()


def read_weights(source: str | Path) -> WeightFile:
    """Read the tensors of a file by name, without running code in it.

    Args:
        source: a run folder, a safetensors file, or a file of torch.save.

    Raises:
        DataError: the file is corrupt, has another format or no tensors, or its pickle calls programs.
    """
    source = _validation.check_path_exists("weights", source)
    if source.is_dir():
        if not (source / WEIGHTS).exists():
            raise errors.DataError(f"{source} has no {WEIGHTS}. Give a run folder, or the weight file itself.")
        if (source / CONFIG).exists():
            file, tensors, config = read_source(source)
            return WeightFile(file, tensors, config=config)
        return WeightFile(source, read_tensors(source / WEIGHTS))
    if source.suffix == ".safetensors":
        return WeightFile(source, read_tensors(source))
    content, not_read = _unpickled(source)
    tensors = _tensors(content, source)  # raises if a dictionary contains itself
    return WeightFile(source, tensors, _wrapper(content), not_read=not_read)


def _unpickled(file: Path) -> tuple[Any, tuple[str, ...]]:
    """Return the content of a file of torch.save, and the names of the classes in it that are left out."""
    content = read_bytes(file)
    if not content.startswith(_STARTS):
        raise errors.DataError(
            f"{file} is neither a safetensors file nor one of torch.save. Give a run folder, or a file of one of these "
            f"kinds; an exported network (*.onnx) does not have its weights by name."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickle protocols; if it cannot read one, it raises
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), ()
    except pickle.UnpicklingError:
        pass  # it names other classes than those of weights
    except Exception as error:  # torch's readers raise many kinds of exceptions for corrupt files
        raise errors.DataError(
            f"{file} is not a weight file that torch can read ({reason_of(error)}). Give a safetensors file or a file "
            f"of torch.save."
        ) from None
    try:
        return read_inertly(content)
    except Exception as error:
        raise errors.DataError(
            f"{file} was not opened: its pickle contains more than tensors and plain values ({reason_of(error)}). If "
            f"you trust the file, open it with the code that wrote it, and save only its state_dict, preferably as "
            f"safetensors."
        ) from None


def _wrapper(content: Any) -> str:
    """Return the keys, each with a dot, of the weights nested in a trainer's checkpoint."""
    keys: list[str] = []
    while isinstance(content, dict):
        outer = cast(dict[Any, Any], content)
        key = next((key for key in _WRAPPERS if isinstance(dict.get(outer, key), dict)), None)
        if key is None:
            break
        keys.append(f"{key}.")
        content = outer[key]
    return "".join(keys)


def _tensors(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the tensors of nested dictionaries, with keys joined by dots.

    Dictionaries with other keys than text are not those of modules; an optimizer's state has such keys.
    """
    tensors: dict[str, Tensor] = {}
    seen = 0

    def collect(values: dict[Any, Any], prefix: str) -> None:
        nonlocal seen
        seen += len(values)
        if seen > _MANY:
            raise RecursionError
        for name, value in dict[Any, Any].items(values):
            if isinstance(value, Tensor) and isinstance(name, str):
                tensors[prefix + name] = value
            elif isinstance(value, dict) and isinstance(name, str):
                collect(cast(dict[Any, Any], value), f"{prefix}{name}.")

    if isinstance(content, dict):
        try:
            collect(cast(dict[Any, Any], content), "")
        except RecursionError:
            raise errors.DataError(f"{file} has dictionaries nested without end. Give a state_dict.") from None
    if not tensors:
        raise errors.DataError(f"{file} has no named tensors. Give a state_dict.")
    return tensors
