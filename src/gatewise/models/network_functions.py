"""Networks of the user: functions MODULE:FUNCTION, called with num_classes and in_chans.

Only `import_network` imports a module. The command line calls it for a name that was typed; a name that a file contains
(a recipe, the `config.json` of a run) imports nothing, and can be used only after the same name was imported.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import reason_of
from gatewise.gates.spec import ModelSpec
from gatewise.models.families import FAMILIES

_imported: dict[str, Callable[..., Any]] = {}


def import_network(model: str) -> None:
    """Import the function that a network is built with, if `model` names one; other networks need nothing.

    The module is looked up in the working folder first.

    Args:
        model: MODULE:FUNCTION, with options and gates after it, as in "mymodule:build:width=32".

    Raises:
        InvalidValueError: there is no such module or function, or importing it fails.
    """
    if (name := ModelSpec.parse(model).function) is None:
        return
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise errors.InvalidValueError(
            f"cannot parse the network {name!r}; expected NAME:OPTION=VALUE, or MODULE:FUNCTION of a Python module, "
            f"such as mymodule:build."
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        _check_is_no_option(module_name, attribute)
        raise errors.InvalidValueError(
            f"cannot import {module_name!r} of the network {name!r}: {reason_of(error)}. "
            f"Modules are looked up in {here} and among installed packages; options are written NAME:OPTION=VALUE."
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise errors.InvalidValueError(
            f"module {module_name!r} has no function {attribute!r}.{_validation.did_you_mean(attribute, found)}"
        )
    _imported[name] = function


def imported_networks() -> list[str]:
    """Return the names of all functions that were imported."""
    return list(_imported)


def network_function(name: str) -> Callable[..., Any]:
    """Return a function that was imported.

    Raises:
        InvalidValueError: it was not imported.
    """
    if name not in _imported:
        _check_is_no_option(*name.split(":", 1))
        raise errors.InvalidValueError(
            f"the network is built by the function {name}, and gatewise imports no module that a file names. Give "
            f"--model {name}; in Python use load_model(run, network=...) or gatewise.models.import_network({name!r})."
        )
    return _imported[name]


def _check_is_no_option(model: str, option: str) -> None:
    """Raise `InvalidValueError` if MODULE:FUNCTION is a known network with an option that has no value."""
    if model in FAMILIES:
        FAMILIES[model].check_options([option])
        raise errors.InvalidValueError(f"{model}:{option} has no value. Write {model}:{option}=VALUE.")


def build_with_function(name: str, options: dict[str, Any]) -> nn.Module:
    """Call a function of the user, and return the network.

    Raises:
        InvalidValueError: it was not imported, it fails, or it does not return a network.
    """
    function = network_function(name)
    shown = ", ".join(f"{key}={_validation.safe_repr(value)}" for key, value in options.items())
    try:
        network = function(**options)
    except Exception as error:
        raise errors.InvalidValueError(
            f"{name}({shown}) fails: {reason_of(error)}. A network function takes num_classes, "
            f"in_chans and its own options, by name."
        ) from None
    if not isinstance(network, nn.Module):
        raise errors.InvalidValueError(
            f"{name} must return a torch.nn.Module, got {_validation.safe_repr(network)}. Return the network."
        )
    return network
