"""Save and load networks: weights as safetensors with a checksum, and the spec to rebuild the network as JSON.

Nothing is ever unpickled. Files are written atomically; JSON files are records with a format number (see `files`).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import FORMAT, read_bytes, read_record, without_nan, write_atomically, write_record
from gatewise.core.reasons import as_data_error
from gatewise.core.run_files import CONFIG, METRICS, RECIPE, RESULTS, WEIGHTS
from gatewise.core.schema import checked_details, checked_metrics
from gatewise.gates.spec import ModelSpec
from gatewise.inference import Compaction
from gatewise.models.create import make_model, with_gates
from gatewise.models.stored_spec import as_stored, in_full

RUN_FORMAT = 1  # of config.json, metrics.json and state.json; increase it if older versions would misread them
_RECORD_KEYS = {FORMAT, "values_sha256"}  # not values; values_sha256 was written by older versions and is ignored
_CONFIG_KEYS = {"spec", "sha256", *_RECORD_KEYS}  # entries of config.json that are not details


def save_model(folder: Path, model: nn.Module, spec: ModelSpec, details: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, then `config.json` with the spec in full, `details` and the sha256 of the weights."""
    content = save_tensors(plain_tensors(model.state_dict()))
    write_atomically(folder / WEIGHTS, content)
    config = {
        "spec": in_full(spec, details).to_dict(),
        **details_in(details),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_record(folder / CONFIG, config, RUN_FORMAT)


def details_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `details` that were passed to `save_model`, from the content of `config.json`."""
    return {key: value for key, value in config.items() if key not in _CONFIG_KEYS}


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Write `metrics.json`, which marks a run as finished; return the contents of the file.

    A score that is not defined, such as R² of equal labels, is null.
    """
    values = {k: v for k, v in metrics.items() if k not in _RECORD_KEYS}
    return write_record(folder / METRICS, without_nan(values), RUN_FORMAT)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read and validate `metrics.json`; raise `DataError` if it is damaged or of a newer format."""
    metrics = read_record(folder / METRICS, RUN_FORMAT)
    checked_metrics(folder / METRICS, metrics)
    return metrics


def _without_config(folder: Path) -> str:
    """Return what a folder without `config.json` is, and what to do."""
    if (folder / RESULTS).exists():
        return f"{folder} holds a comparison; give its runs, for example {folder}/runs/*/seed_0."
    if (folder / RECIPE).exists():
        return f"{folder} has no {CONFIG}: the run has not finished. Resume it with gatewise train --resume."
    return f"{str(folder)!r} is not a run folder: it has no {CONFIG}. Check the path."


def read_config(folder: Path) -> dict[str, Any]:
    """Read and validate `config.json`; raise `DataError` if it is missing, damaged or of a newer format."""
    if not (folder / CONFIG).exists():
        raise errors.DataError(_without_config(folder))
    config = read_record(folder / CONFIG, RUN_FORMAT, "spec", "sha256")
    checked_details(folder / CONFIG, config)
    return config


def load_model(
    folder: str | Path, *, network: nn.Module | Callable[..., nn.Module] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the network of a run folder and load its weights.

    Args:
        folder: a run folder, or a folder of `save_pretrained`.
        network: the plain network, or a function that builds it from num_classes and in_chans, for runs whose network
            is a function of the user (`--model MODULE:FUNCTION`). The gates of the run are inserted into it. None
            builds the network that `config.json` names; a module that it names is not imported.

    Returns:
        The network in eval mode, and the content of `config.json`.

    Raises:
        DataError: a file is missing or damaged, the checksum of the weights is not the recorded one, the weights do not
            fit the network, or the network is a function of the user that was not imported.
    """
    folder = _validation.check_path_exists("run folder", folder)
    config = read_config(folder)
    weights = read_tensors(folder / WEIGHTS, config["sha256"])
    try:
        model = _built(config, network)
    except errors.GatewiseError as error:
        raise errors.DataError(f"{folder / CONFIG} does not describe a network: {error}") from None
    fill(model, weights, folder / WEIGHTS, f"the network in {folder / CONFIG}")
    return model.eval(), config


def _built(config: Mapping[str, Any], network: nn.Module | Callable[..., nn.Module] | None) -> nn.Module:
    """Build the network that a config describes, with fresh weights."""
    options = {key: config[key] for key in ("num_classes", "in_chans", "image_size") if key in config}
    spec = as_stored(config["spec"])
    built = {
        key: value for key, value in spec.model_options.items() if key != "pretrained"
    }  # model.safetensors has all weights
    if network is None:
        model = make_model(dataclasses.replace(spec, model_options=built), **options)
    else:
        if not isinstance(network, nn.Module):
            given = {key: value for key, value in options.items() if key != "image_size"}
            network = network(**built, **given)
        _validation.check_module("load_model", network)
        model = with_gates(network, spec, options.get("image_size"))
    for step in config.get("compacted", []):
        model = Compaction.from_dict(step).apply(model)  # type: ignore[arg-type]  # pyright: ignore
    return model


def of_gater_net(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the weights are those of a GaterNet (gater and backbone)."""
    return any(name.startswith("gater.") for name in weights)


def load_gater(net: nn.Module, source: str | Path) -> None:
    """Load the features of a GaterNet's gater from a trained network of the same architecture, without its classifier.

    Args:
        net: a `GaterNet` with a gater built by name.
        source: a run folder, whose checksum is verified, or a safetensors file.

    Raises:
        InvalidValueError: the gater was not built by name.
        DataError: the weights cannot be read or do not fit.
    """
    features = getattr(getattr(net, "gater", None), "features", None)
    if not isinstance(features, nn.Module):
        raise errors.InvalidValueError(
            "only a gater built by name (light or resnet20) has features that can be initialised from weights."
        )
    file, weights, _ = read_source(source)
    own = features.state_dict()
    fill(features, {name: value for name, value in weights.items() if name in own or not name.startswith("fc.")}, file)


def read_source(source: str | Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Read weights from a run folder or a safetensors file.

    Returns:
        The file with the weights, the weights by name, and the content of `config.json` ({} for a bare file).
    """
    source = _validation.check_path_exists("weights", source)
    config = read_record(source / CONFIG, RUN_FORMAT) if source.is_dir() else {}
    checked_details(source / CONFIG, config)
    file = source / WEIGHTS if source.is_dir() else source
    return file, read_tensors(file, config.get("sha256")), config


@torch.no_grad()
def ruined_parameter(model: nn.Module) -> str | None:
    """Return the name of the first parameter with a value that is not finite, or None."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            return name
    return None


@torch.no_grad()
def not_finite(model: nn.Module) -> str | None:
    """Return the name of the first parameter or buffer with a value that is not finite, or None.

    Buffers may contain -inf, as attention masks do; running_mean and running_var may not.
    """
    if (name := ruined_parameter(model)) is not None:
        return name
    for name, buffer in model.named_buffers():
        if not buffer.is_floating_point():
            continue
        statistic = name.rpartition(".")[2] in {"running_mean", "running_var"}
        if bool((~buffer.isfinite() if statistic else buffer.isnan() | buffer.isposinf()).any()):
            return name
    return None


def check_weights_finite(source: object, model: nn.Module, remedy: str) -> None:
    """Raise `DataError` if a parameter or buffer of `model` is not finite.

    Args:
        source: file of the weights, named in the error.
        model: network to check.
        remedy: what to do about it, the last sentence of the error.
    """
    if (name := not_finite(model)) is not None:
        raise errors.DataError(f"{source}: {name} holds values that are not finite. {remedy}.")


def fill(model: nn.Module, weights: Mapping[str, Tensor], file: Path, network: str = "the network") -> None:
    """Load `weights` into `model`; raise `DataError`, naming `file`, if they do not fit."""
    with as_data_error(file, f"does not fit {network}", of=RuntimeError):
        model.load_state_dict(weights)


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU copies that share no memory, as safetensors requires."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; raise `DataError` if it is damaged or its checksum is not `sha256` (None: any)."""
    _validation.check_path_exists("safetensors file", path)
    content = read_bytes(path)
    actual = hashlib.sha256(content).hexdigest()
    if sha256 is not None and actual != sha256:
        raise errors.DataError(
            f"{path} is damaged: its sha256 is {actual[:12]}..., expected {sha256[:12]}.... Restore it from a copy."
        )
    with as_data_error(path, "is not a valid safetensors file"):  # or has a dtype that this torch does not have
        return load_tensors(content)
