"""Specification of a network and its gates as a string or as YAML.

The grammar is the same in Python, in YAML and on the command line:

    model  = [hf-hub:]NAME[:option=value,...] | MODULE:FUNCTION[:option=value,...]
    gate   = NAME[:option=value,...][@place]
    spec   = model[+gate]...
    gates  = none | gate[+gate]...            one network of a comparison
    list   = gates[,gates]...                 a comparison; "k=v" after a comma is an option of the preceding gate
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

from msgspec import Struct

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.registry import PLACES
from gatewise.core.schema import Name, convert
from gatewise.gates.presets import PRESETS, TAG
from gatewise.gates.registry import gate_spec

GATER = "gaternet"  # a wrapper around the network instead of a gate at a place; its options follow
GATER_OPTIONS = (
    "sites",
    "gater",
    "bottleneck",
    "head_norm",
    "routes",
    "group_size",
    "estimator",
    "gate_bias",
    "budget",
    "sparsity",
    "weighting",
)
_FRACTION = re.compile(r"(-?\d+)/([1-9]\d*)")
_SIZES = re.compile(r"\d+(x\d+)+")
_WORDS = {"true": True, "false": False, "none": None}
_PREFIXES = ("hf-hub", "hf_hub", "timm", "local-dir")  # of timm's names
_MODEL = re.compile(r"((?:(?:hf-hub|hf_hub|timm):)?[^:]*)(?::(.*))?", re.DOTALL)  # timm's prefixes contain a colon
_LOCAL_FOLDER = "local-dir:"  # timm's prefix; the path after it could contain any character of the grammar


def parse_value(text: str) -> bool | int | float | str | tuple[int, ...] | None:
    """Parse the value of an option: true, false, none, a number, a fraction, sizes joined by "x", or else a string.

    >>> parse_value("1/16"), parse_value("1e-5"), parse_value("l1"), parse_value("true"), parse_value("7x8")
    (0.0625, 1e-05, 'l1', True, (7, 8))
    """
    _validation.check_str("an option's value", text)
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if fraction := _FRACTION.fullmatch(text):
        return int(fraction[1]) / int(fraction[2])
    if _SIZES.fullmatch(text):
        return tuple(map(int, text.split("x")))
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _parse_options(text: str, full_text: str) -> dict[str, Any]:
    """Parse "k=v,k=v"; `full_text` is for error messages."""
    options: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not (equals and name and value):
            raise errors.InvalidValueError(
                f"cannot parse option {item!r} in {full_text!r}; expected NAME=VALUE, for example gct:mode=l1."
            )
        if name.strip() in options:
            raise errors.InvalidValueError(f"option {name.strip()!r} is given twice in {full_text!r}. Give it once.")
        options[name.strip()] = parse_value(value.strip())
    return options


def parse_choice(what: str, text: str) -> tuple[str, dict[str, Any]]:
    """Parse "name:option=value,..."; `what` names it in errors.

    >>> parse_choice("a task", "ordinal:width=2")
    ('ordinal', {'width': 2})
    """
    name, colon, options = _validation.check_str(what, text).strip().partition(":")
    if colon and not options:
        raise errors.InvalidValueError(f"no option after ':' in {text!r}; expected for example gct:mode=l1.")
    return name, _parse_options(options, text)


def format_value(value: Any) -> str:
    """Format a value for `parse_value`."""
    if value is None or isinstance(value, bool):
        return next(word for word, meaning in _WORDS.items() if meaning is value)
    return "x".join(map(str, cast(Sequence[object], value))) if isinstance(value, tuple | list) else str(value)


def format_choice(name: str, options: Mapping[str, Any]) -> str:
    """Format a name and its options for `parse_choice`."""
    items = [f"{key}={format_value(value)}".replace("e+", "e") for key, value in options.items()]
    return f"{name}:{','.join(items)}" if items else name


@dataclass(frozen=True)
class GateChoice:
    """One gate with its options and place, validated on construction.

    Attributes:
        name: a registered gate, or "gaternet".
        options: options of the constructor, by name.
        place: name of a registered place, or None for the place of the gate's paper.

    Raises:
        InvalidValueError: an unknown name, option or place, or an invalid value of an option.

    >>> GateChoice.parse("gct:mode=l1@before_conv")
    GateChoice(name='gct', options={'mode': 'l1'}, place='before_conv')
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    place: str | None = None

    def __post_init__(self) -> None:
        _validation.check_str("the name of a gate", self.name)
        _validation.check_mapping(f"options of {self.name!r}", self.options)
        for option, value in self.options.items():
            if isinstance(value, str) and set(value) & set("+,@"):
                raise errors.InvalidValueError(
                    f"{self.name}: {option}={_validation.safe_repr(value)} contains '+', ',' or '@', which are "
                    f"separators. Write a regular expression without them (x{{1}}x* for x+), or build the network in "
                    f"Python."
                )
        if self.is_gater:
            _validation.check_known_options(GATER, self.options, GATER_OPTIONS)
            if self.place is not None:
                raise errors.InvalidValueError(
                    f"{GATER} has no place, got {self}. Choose its gates with its option sites, as in sites=inner."
                )
            return
        gate_spec(self.name).make(64, device="meta", **self.options)
        if self.place is not None:
            PLACES.lookup(self.place)

    @property
    def is_gater(self) -> bool:
        """Whether this is a `GaterNet` around the network instead of a gate inside it."""
        return self.name == GATER

    @property
    def in_full(self) -> "GateChoice":
        """The same choice with the default of each option, and with its place; a gater stays as it is."""
        if self.is_gater:
            return self
        spec = gate_spec(self.name)
        defaults = {name: parameter.default for name, parameter in spec.options.items()}
        return GateChoice(self.name, {**defaults, **self.options}, self.place or spec.place)

    @property
    def learns(self) -> bool:
        """Whether this is a gate with parameters."""
        if self.is_gater:
            return False
        return any(True for _ in gate_spec(self.name).make(64, device="meta", **self.options).parameters())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "name:option=value,...@place"."""
        body, at, place = _validation.check_str("a gate", text).strip().partition("@")
        if at and not place:
            raise errors.InvalidValueError(
                f"no place after '@' in {text!r}; expected one of {', '.join(PLACES.names())}."
            )
        name, options = parse_choice("a gate", body)
        return cls(name, options, place or None)

    def __str__(self) -> str:
        return format_choice(self.name, self.options) + (f"@{self.place}" if self.place else "")


Gates = tuple[GateChoice, ...]


def parse_gates(text: str) -> Gates:
    """Parse the gates of one network: "none", or gates joined by "+".

    >>> [str(choice) for choice in parse_gates("gct+se@stage_end")], parse_gates("none")
    (['gct', 'se@stage_end'], ())
    """
    if _validation.check_str("gates", text).strip() == "none":
        return ()
    if "none" in text.split("+"):
        raise errors.InvalidValueError(f"'none' cannot be combined with other gates, got {text!r}. Omit it.")
    return tuple(GateChoice.parse(part) for part in text.split("+"))


def format_gates(gates: Gates) -> str:
    """Format gates for `parse_gates`."""
    return "+".join(map(str, gates)) or "none"


def parse_gates_list(text: str) -> list[Gates]:
    """Parse the networks of a comparison, separated by commas.

    >>> [format_gates(gates) for gates in parse_gates_list("none,se,gct:mode=l1,eps=1e-4,gc")]
    ['none', 'se', 'gct:mode=l1,eps=0.0001', 'gc']
    """
    parts: list[str] = []
    _validation.check_str("a list of gates", text)
    for part in filter(None, (part.strip() for part in text.split(","))):
        continues = parts and "=" in part.partition(":")[0] and ":" in parts[-1].rpartition("+")[2]
        if continues:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    chosen = [parse_gates(part) for part in parts]
    with_defaults = [tuple(choice.in_full for choice in gates) for gates in chosen]
    repeated = {
        format_gates(gates) for gates, full in zip(chosen, with_defaults, strict=True) if with_defaults.count(full) > 1
    }
    if repeated:
        raise errors.InvalidValueError(f"gates listed twice: {', '.join(sorted(repeated))}. List each only once.")
    if not chosen:
        raise errors.InvalidValueError("no gates given; expected a list such as none,se,gct.")
    return chosen


def _name_and_options(head: str) -> tuple[str, str]:
    """Split the name of a network from its options; in MODULE:FUNCTION no '=' follows the first colon.

    >>> _name_and_options("hf-hub:a/b:width=3"), _name_and_options("nets:build:width=3"), _name_and_options("vgg:a=b:c")
    (('hf-hub:a/b', 'width=3'), ('nets:build', 'width=3'), ('vgg', 'a=b:c'))
    """
    prefix, _, rest = head.partition(":")
    function, _, options = rest.partition(":")
    if prefix and function and "=" not in function and prefix not in _PREFIXES:
        return f"{prefix}:{function}", options
    return _MODEL.fullmatch(head).groups(default="")  # type: ignore[return-value,union-attr]  # pyright: ignore


@dataclass(frozen=True)
class ModelSpec:
    """A network and its gates.

    `parse` raises InvalidValueError for a string without a model name, an option without a value, an invalid gate (see
    `GateChoice`), and "local-dir:FOLDER", because the path could contain separators. The name of the network is not
    checked here but by `make_model`.

    Attributes:
        model: name of the network, or MODULE:FUNCTION of the user's code, which is called with num_classes, in_chans
            and the options (see `gatewise.models.import_network`).
        model_options: options of its constructor, by name.
        gates: gates to insert, and at most one gater.

    >>> spec = ModelSpec.parse("resnet18_cifar:width=32+gct:mode=l1@before_conv")
    >>> spec.model, spec.model_options, str(spec.gates[0])
    ('resnet18_cifar', {'width': 32}, 'gct:mode=l1@before_conv')
    >>> ModelSpec.from_dict(spec.to_dict()) == spec == ModelSpec.parse(str(spec))
    True
    >>> str(ModelSpec.parse("gct_resnet50.gatewise:num_classes=4"))  # the name of a preset in timm
    'resnet50:num_classes=4+gct'
    """

    model: str
    model_options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    gates: Gates = ()

    def __post_init__(self) -> None:
        _validation.check_str("the name of a network", self.model)
        _validation.check_mapping("the options of a network", self.model_options)

    @property
    def function(self) -> str | None:
        """MODULE:FUNCTION of the user's code that builds the network, or None."""
        prefix, colon, _ = self.model.partition(":")
        return self.model if colon and prefix not in _PREFIXES else None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "model:option=value+gate...", or the name of a preset instead of a model."""
        if _validation.check_str("a network", text).strip().startswith(_LOCAL_FOLDER):
            raise errors.InvalidValueError(
                f"a string cannot contain a local folder, got {text!r}; build the network with "
                f"ModelSpec({_LOCAL_FOLDER + 'FOLDER'!r}) or with timm, and insert gates with insert_gates."
            )
        head, *gates = text.strip().split("+")
        name, options = _name_and_options(head)
        if name in {"", "hf-hub:", "hf_hub:", "timm:"}:
            raise errors.InvalidValueError(f"no model name in {text!r}; expected for example resnet20+gct.")
        if preset := PRESETS.get(name.removesuffix(f".{TAG}")):
            name, *own_gates = preset.split("+")
            gates = own_gates + gates
        return cls(name, _parse_options(options, text), parse_gates("+".join(gates)) if gates else ())

    def __str__(self) -> str:
        return "+".join([format_choice(self.model, self.model_options), *map(str, self.gates)])

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain values, for YAML and JSON."""
        gates = [{"gate": g.name, "options": dict(g.options), "place": g.place} for g in self.gates]
        return {"model": self.model, "model_options": dict(self.model_options), "gates": gates}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a spec from the output of `to_dict`.

        Raises:
            InvalidValueError: a key is unknown, or `model` or `gate` is missing or empty.
            InvalidTypeError: a value has the wrong type.
        """
        known = convert("a model spec", values, _Spec)
        gates = [convert("a gate of a model spec", gate, _Gate) for gate in known.gates or []]
        choices = tuple(GateChoice(gate.gate, _tuples(gate.options), gate.place) for gate in gates)
        return cls(known.model, _tuples(known.model_options), choices)


class _Spec(Struct, forbid_unknown_fields=True):
    """A model spec as plain values."""

    model: Name
    model_options: dict[str, Any] | None = None
    gates: list[Any] | None = None


class _Gate(Struct, forbid_unknown_fields=True):
    """A gate of a model spec as plain values."""

    gate: Name
    options: dict[str, Any] | None = None
    place: str | None = None


def _tuples(options: dict[str, Any] | None) -> dict[str, Any]:
    """Return the options with lists converted to tuples, because YAML and JSON have no tuples."""
    return {
        name: tuple(cast(list[Any], value)) if isinstance(value, list) else value
        for name, value in (options or {}).items()
    }
