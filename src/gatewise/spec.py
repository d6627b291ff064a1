"""A network and its gates as one value: one string, or one block of YAML.

The grammar, the same in Python, YAML and on the command line:

    model  = [hf-hub:]NAME[:option=value,...]
    gate   = NAME[:option=value,...][@place]
    spec   = model[+gate]...
    gates  = none | gate[+gate]...            one network of a comparison
    list   = gates[,gates]...                 a comparison; "k=v" after a comma continues the gate before it
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

from gatewise import _validation, errors
from gatewise import gates as _gates  # noqa: F401  # pyright: ignore[reportUnusedImport]  (it fills the registry)
from gatewise.registry import MARKED_PLACES, PLACES, gate_spec

GATER = "gaternet"  # not a gate at a place but a network around the backbone, with these options
GATER_OPTIONS = (
    "sites",
    "gater",
    "bottleneck",
    "head_norm",
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
_MODEL = re.compile(
    r"((?:(?:hf-hub|hf_hub|timm):)?[^:]*)(?::(.*))?", re.DOTALL
)  # timm's prefixes have a colon of their own
_LOCAL_FOLDER = "local-dir:"  # timm's; a folder's name may hold any sign of the grammar


def parse_value(text: str) -> bool | int | float | str | tuple[int, ...] | None:
    """Read an option's value: true, false, none, a number, a fraction, sizes joined by x, or else a word.

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


def _parse_options(text: str, whole: str) -> dict[str, Any]:
    """Read "k=v,k=v"."""
    options: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not (equals and name and value):
            raise errors.InvalidValueError(
                f"cannot read option {item!r} in {whole!r}; expected NAME=VALUE, for example gct:mode=l1."
            )
        if name.strip() in options:
            raise errors.InvalidValueError(f"option {name.strip()!r} is given twice in {whole!r}. Give it once.")
        options[name.strip()] = parse_value(value.strip())
    return options


def _format_value(value: Any) -> str:
    """Write what `parse_value` reads."""
    if value is None or isinstance(value, bool):
        return next(word for word, meaning in _WORDS.items() if meaning is value)
    return "x".join(map(str, cast(Sequence[object], value))) if isinstance(value, tuple | list) else str(value)


def _format(name: str, options: Mapping[str, Any]) -> str:
    """Write "name:k=v,k=v"; the inverse of reading it."""
    items = [f"{key}={_format_value(value)}".replace("e+", "e") for key, value in options.items()]
    return f"{name}:{','.join(items)}" if items else name


@dataclass(frozen=True)
class GateChoice:
    """One gate with its options and place; refused at once if the registry does not know them.

    Attributes:
        name: a registered gate, or "gaternet".
        options: constructor options, by name.
        place: one of `PLACES` or `MARKED_PLACES`, or None for the place of the gate's paper.

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
                    f"{self.name}: {option}={_validation.safe_repr(value)} holds one of '+', ',' and '@', which divide "
                    f"this text. Write an expression without them (x{{1}}x* for x+), or build the network in Python."
                )
        if self.is_gater:
            _validation.check_known_options(GATER, self.options, GATER_OPTIONS)
            if self.place is not None:
                raise errors.InvalidValueError(f"{GATER} takes sites=inner or sites=residual, not a place, got {self}.")
            return
        gate_spec(self.name).make(64, device="meta", **self.options)
        if self.place is not None:
            _validation.check_one_of("place", self.place, PLACES + MARKED_PLACES)

    @property
    def is_gater(self) -> bool:
        """Whether this is not a gate at places of the network but a `GaterNet` around it."""
        return self.name == GATER

    @property
    def in_full(self) -> tuple[Any, ...]:
        """What this choice means, its defaults written out."""
        if self.is_gater:
            return self.name, dict(self.options), None
        fact = gate_spec(self.name)
        defaults = {name: parameter.default for name, parameter in fact.options.items()}
        return self.name, {**defaults, **self.options}, self.place or fact.place

    @property
    def learns(self) -> bool:
        """Whether this is a gate with parameters of its own."""
        if self.is_gater:
            return False
        return any(True for _ in gate_spec(self.name).make(64, device="meta", **self.options).parameters())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "name:option=value,...@place"."""
        body, at, place = _validation.check_str("a gate", text).strip().partition("@")
        name, colon, options = body.partition(":")
        if colon and not options:
            raise errors.InvalidValueError(f"no option after ':' in {text!r}; expected for example gct:mode=l1.")
        if at and not place:
            raise errors.InvalidValueError(
                f"no place after '@' in {text!r}; expected one of {', '.join(PLACES + MARKED_PLACES)}."
            )
        return cls(name, _parse_options(options, text), place or None)

    def __str__(self) -> str:
        return _format(self.name, self.options) + (f"@{self.place}" if self.place else "")


Gates = tuple[GateChoice, ...]


def parse_gates(text: str) -> Gates:
    """Read the gates of one network: "none", or gates joined by "+".

    >>> [str(choice) for choice in parse_gates("gct+se@stage_end")], parse_gates("none")
    (['gct', 'se@stage_end'], ())
    """
    if _validation.check_str("gates", text).strip() == "none":
        return ()
    if "none" in text.split("+"):
        raise errors.InvalidValueError(f"none stands alone, got {text!r}. Leave it out beside other gates.")
    return tuple(GateChoice.parse(part) for part in text.split("+"))


def format_gates(gates: Gates) -> str:
    """Write what `parse_gates` reads."""
    return "+".join(map(str, gates)) or "none"


def parse_gates_list(text: str) -> list[Gates]:
    """Read the networks of a comparison, separated by commas.

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
    meant = [tuple(choice.in_full for choice in gates) for gates in chosen]
    repeated = {format_gates(gates) for gates, full in zip(chosen, meant, strict=True) if meant.count(full) > 1}
    if repeated:
        raise errors.InvalidValueError(f"gates listed twice: {', '.join(sorted(repeated))}. List each once.")
    if not chosen:
        raise errors.InvalidValueError("no gates given; expected a list such as none,se,gct.")
    return chosen


@dataclass(frozen=True)
class ModelSpec:
    """A network and its gates.

    Refuses, with ValueError: a string without a model's name, an option without a value, and "local-dir:FOLDER",
    which no string of this grammar can hold; what `GateChoice` refuses. The name itself is looked up by `make_model`.

    >>> spec = ModelSpec.parse("resnet18_cifar:width=32+gct:mode=l1@before_conv")
    >>> spec.model, spec.model_options, str(spec.gates[0])
    ('resnet18_cifar', {'width': 32}, 'gct:mode=l1@before_conv')
    >>> ModelSpec.from_dict(spec.to_dict()) == spec == ModelSpec.parse(str(spec))
    True
    """

    model: str
    model_options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    gates: Gates = ()

    def __post_init__(self) -> None:
        _validation.check_str("the name of a network", self.model)
        _validation.check_mapping("the options of a network", self.model_options)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "model:option=value+gate..."."""
        if _validation.check_str("a network", text).strip().startswith(_LOCAL_FOLDER):
            raise errors.InvalidValueError(
                f"a folder cannot be read from the string {text!r}; build its network with "
                f"ModelSpec({_LOCAL_FOLDER + 'FOLDER'!r}) or with timm, and insert the gates with insert_gates."
            )
        head, *gates = text.strip().split("+")
        name, options = _MODEL.fullmatch(head).groups(default="")  # pyright: ignore[reportOptionalMemberAccess]
        if name in {"", "hf-hub:", "hf_hub:", "timm:"}:
            raise errors.InvalidValueError(f"no model name in {text!r}; expected for example resnet20+gct.")
        return cls(name, _parse_options(options, text), parse_gates("+".join(gates)) if gates else ())

    def __str__(self) -> str:
        return "+".join([_format(self.model, self.model_options), *map(str, self.gates)])

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain values, for YAML and JSON."""
        gates = [{"gate": g.name, "options": dict(g.options), "place": g.place} for g in self.gates]
        return {"model": self.model, "model_options": dict(self.model_options), "gates": gates}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a spec from what `to_dict` returned; unknown keys, and a missing `model` or `gate`, are refused."""
        _check_keys("a model spec", values, "model", ["model_options", "gates"])
        listed: Any = values.get("gates") or []
        if not isinstance(listed, list | tuple):
            raise errors.InvalidTypeError(
                f"the gates of a model spec must be a list, got {_validation.safe_repr(listed)}."
            )
        chosen = cast(Sequence[Any], listed)
        for gate in chosen:
            _check_keys("a gate of a model spec", gate, "gate", ["options", "place"])
        gates = [
            GateChoice(g["gate"], _tuples(f"options of {g['gate']!r}", g.get("options") or {}), g.get("place"))
            for g in chosen
        ]
        options = _tuples("the model's options", values.get("model_options") or {})
        return cls(values["model"], options, tuple(gates))


def _tuples(what: str, options: Any) -> dict[str, Any]:
    """Return options with lists, which is what files make of tuples, as tuples again."""
    return {
        name: tuple(cast(list[Any], value)) if isinstance(value, list) else value
        for name, value in _validation.check_mapping(what, options).items()
    }


def _check_keys(owner: str, values: Mapping[str, Any], required: str, optional: list[str]) -> None:
    """Refuse anything but a mapping with a name under `required`, and at most the optional keys beside it."""
    if not isinstance(values, Mapping):
        raise errors.InvalidTypeError(
            f"{owner} must be a mapping with the key {required!r}, got {_validation.safe_repr(values)}."
        )
    _validation.check_known_options(owner, values, [required, *optional])
    if not (isinstance(values.get(required), str) and values[required]):
        given = (
            f"got {required}: {_validation.safe_repr(values[required])}"
            if required in values
            else f"got {_validation.safe_repr(dict(values))}"
        )
        raise errors.InvalidValueError(f"{owner} needs the key {required!r} with a name, {given}.")
