"""Specs as `config.json` stores them: with every option, so that a later default changes no older network."""

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from gatewise.gaternet import GaterNet
from gatewise.gates.spec import GATER_OPTIONS, GateChoice, ModelSpec
from gatewise.models.families import FAMILIES

# Defaults of earlier versions that differ from those of today, by name of gate or network, also for options that were
# added since and whose default changes the network: 0.1.0 stored only the options that were given.
_EARLIER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"gaternet": {"head_norm": False}}


def in_full(spec: ModelSpec, elsewhere: Collection[str] = ()) -> ModelSpec:
    """Return a spec with the default of every option of the network and its gates, and with every place.

    Args:
        spec: the spec; for networks of timm only the options of the gates are filled in.
        elsewhere: options of the network that are stored elsewhere, such as num_classes.

    >>> spec = in_full(ModelSpec.parse("resnet20+se"), elsewhere=("num_classes", "in_chans"))
    >>> spec.model_options, spec.gates[0].options["rd_ratio"], spec.gates[0].place
    ({'shortcut': 'projection'}, 0.0625, 'residual_end')
    """
    defaults = {name: value for name, value in _defaults(spec.model).items() if name not in elsewhere}
    gates = tuple(_gate_in_full(choice) for choice in spec.gates)
    return ModelSpec(spec.model, {**defaults, **spec.model_options}, gates)


def as_stored(values: Mapping[str, Any]) -> ModelSpec:
    """Return the spec in a `config.json` of any version; options that it lacks get the default of that version."""
    spec = ModelSpec.from_dict(values)
    gates = tuple(
        dataclasses.replace(choice, options={**_EARLIER_DEFAULTS.get(choice.name, {}), **choice.options})
        for choice in spec.gates
    )
    return ModelSpec(spec.model, {**_EARLIER_DEFAULTS.get(spec.model, {}), **spec.model_options}, gates)


def abridged(spec: ModelSpec) -> ModelSpec:
    """Return a spec without the options and places that are today's defaults.

    >>> str(abridged(in_full(ModelSpec.parse("resnet20+gct:mode=l1"))))
    'resnet20+gct:mode=l1'
    """
    return ModelSpec(
        spec.model,
        _other(spec.model_options, _defaults(spec.model)),
        tuple(_abridged_gate(choice, _gate_in_full(GateChoice(choice.name))) for choice in spec.gates),
    )


def _abridged_gate(choice: GateChoice, default: GateChoice) -> GateChoice:
    place = None if choice.place == default.place else choice.place
    return GateChoice(choice.name, _other(choice.options, default.options), place)


def _other(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in defaults or value != defaults[name]}


def _gate_in_full(choice: GateChoice) -> GateChoice:
    if not choice.is_gater:
        return choice.in_full
    parameters = inspect.signature(GaterNet).parameters
    return GateChoice(choice.name, {name: parameters[name].default for name in GATER_OPTIONS} | dict(choice.options))


def _defaults(model: str) -> dict[str, Any]:
    """Return the default of each option of a network; {} for networks of timm."""
    if model not in FAMILIES:
        return {}
    parameters = inspect.signature(FAMILIES[model].build).parameters
    return {name: parameters[name].default for name in FAMILIES[model].options}
