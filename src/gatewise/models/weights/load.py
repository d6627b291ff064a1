"""Load weights of other libraries into a network with gates, and convert weights to their names."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.gaternet import GaterNet
from gatewise.gates.registry import Gate
from gatewise.insertion.meta_device import materialise_gates
from gatewise.models.weights.layouts import LAYOUTS, Layout
from gatewise.models.weights.prefixes import Prefix, prefixes, without_inserted
from gatewise.models.weights.reading import WeightFile, read_weights

OWN = "gatewise"
SOURCES = ("auto", OWN, *LAYOUTS)
_SHOWN = 6


@dataclass(frozen=True)
class Loaded:
    """Result of `load_weights`.

    Attributes:
        file: the file that was read.
        source: its layout.
        filled: tensors of the network that were loaded.
        kept: tensors of the network that are not in the file, and are unchanged.
        left_out: tensors of the file that the network does not have, by their names without a removed prefix.
        reshaped: tensors of the network that have another shape in the file, and are unchanged.
        notes: prefixes that were removed from the names, what in the file was not read, and possible differences in the
            results.
        config: the `config.json` in the folder of the weights, or {}.
    """

    file: Path
    source: str
    filled: tuple[str, ...]
    kept: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    def __str__(self) -> str:
        parts = [f"{len(self.filled)} tensors loaded from {self.file} ({self.source})"]
        rest = (("unchanged", self.kept), ("of another shape", self.reshaped), ("not in the network", self.left_out))
        parts += [f"{what}: {_listed(names)}" for what, names in rest if names]
        return "; ".join([*parts, *self.notes])


def load_weights(
    model: nn.Module, file: str | Path, source: str = "auto", *, prefix: str | None = None, strict: bool = True
) -> Loaded:
    """Load weights of this library or of others into a network.

    Args:
        model: the network. Weights of a plain network are loaded into the backbone of a GaterNet, and its norms into
            all routes; weights of a classifier or of an mmdetection detector are loaded into the body of the backbone
            of a torchvision detector.
            Gates that are not in the file keep their values. On the meta device the network gets the file's tensors,
            and such gates get their initial values.
        file: a safetensors file, a file of torch.save, or a run folder, whose checksum is verified. No code in a file
            is executed; objects other than tensors are left out.
        source: layout of the names: "gct" (the released ResNet-50 and -101: build resnet50_v1+gct), "mmcv" (context
            blocks and non-local blocks, mmdetection, GCNet), "timm" (networks with gc, se, nl, eca), "triplet" (both
            layouts), "gaternet" (the released ResNet-20 and -56), "gatewise" (the names of `model` itself); "auto" is
            "gatewise" if the names fit, or else the layout that the names show.
        prefix: start of the names in the file, for example "ema_model."; None finds it, and prefers the network itself
            to copies such as "teacher." and "ema."
        strict: if True, raise unless all tensors match; tensors with another prefix are left out. If False, load the
            tensors that match.

    Returns:
        The names of loaded, unchanged and unused tensors, and notes on possible differences in the results.

    Raises:
        DataError: tensors are missing, unexpected or of another shape (all are listed), no tensor matches, several
            networks in the file match, the file is corrupt, its pickle calls programs, or the network has another
            architecture. The network is not changed.

    >>> import tempfile, torch; from gatewise import make_model
    >>> net = make_model("resnet20+gct"); file = f"{tempfile.mkdtemp()}/resnet20.pt"
    >>> torch.save({"state_dict": make_model("resnet20").state_dict()}, file)
    >>> loaded = load_weights(net, file)
    >>> loaded.source, len(loaded.kept)
    ('gatewise', 63)
    """
    _validation.check_module("load_weights", model)
    _validation.check_one_of("source", source, SOURCES)
    if prefix is not None:
        _validation.check_str("prefix", prefix)
    content = read_weights(file)
    reading = _fitting(model, content, source, prefix)
    if reading.layout is not None:
        _check_layout_fits(content.path, reading.layout, reading.target)
    own, renamed = reading.own, reading.renamed
    fitting = {name: tensor for name, tensor in renamed.items() if name in own and tensor.shape == own[name].shape}
    reshaped = [name for name in renamed if name in own and name not in fitting]
    mismatches = {
        "missing": reading.missing if strict else [],
        "unexpected": reading.unexpected if strict and not reading.is_part else [],
        "of another shape": [f"{n} {tuple(renamed[n].shape)}, expected {tuple(own[n].shape)}" for n in reshaped]
        if strict or not fitting
        else [],
    }
    _check_weights_fit(content.path, reading.source, mismatches, reading.notes)
    if not fitting:
        raise errors.DataError(f"{content.path}: none of its {len(content.tensors)} tensors is one of the network's.")
    notes = (*reading.prefix.notes(), *reading.notes, *_not_read(content), *_fill(reading, fitting))
    _fill_routes(model, reading, fitting)
    left_out = (*reading.outside, *reading.unexpected)
    filled, kept = (tuple(reading.paths[name] for name in names) for names in (fitting, reading.kept))
    return Loaded(content.path, reading.source, filled, kept, left_out, tuple(reshaped), notes, content.config)


def convert_weights(model: nn.Module, to: str) -> dict[str, Any]:
    """Return the weights of a network in the layout of another library; the inverse of `load_weights(source=to)`.

    Args:
        model: the network, with the gates that the layout supports.
        to: "gct", "mmcv", "timm", "triplet" (the newer layout) or "gaternet" (its two dictionaries).

    Returns:
        Tensors by name, for "gaternet" two such dictionaries.

    Raises:
        InvalidValueError: the layout is unknown, or the network has non-local blocks and the layout is timm's, whose
            blocks compute a different function.
        DataError: the network does not match the layout.

    >>> from gatewise import make_model
    >>> list(convert_weights(make_model("resnet50_v1+gct"), "gct"))[:4]
    ['stem.conv1.1.weight', 'stem.conv1.0.alpha', 'stem.conv1.0.gamma', 'stem.conv1.0.beta']
    """
    _validation.check_module("convert_weights", model)
    layout = LAYOUTS[_validation.check_one_of("layout", to, LAYOUTS)]
    _check_layout_fits("these weights", layout, model)
    flat = layout.to_theirs(model)
    if to != "gaternet":
        return flat
    parts = ("backbone_state_dict", "gater_state_dict")
    return {part: {n.removeprefix(f"{part}."): t for n, t in flat.items() if n.startswith(part)} for part in parts}


@dataclass
class _Reading:
    """One way to read the names in a file as names of a network."""

    target: nn.Module
    is_part: bool  # the target is the body of a detector, whose classifier the file has
    prefix: Prefix
    layout: Layout | None  # None: the network's own names
    names: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        own = self.target.state_dict()
        self.paths = {without_inserted(name): name for name in own}
        self.own: dict[str, Tensor] = {name: own[path] for name, path in self.paths.items()}
        named = {name: self.prefix.own(without_inserted(name)) for name in self.names}
        self.renamed = {ours: self.names[name] for name, ours in named.items() if ours is not None}
        self.outside = [name for name, ours in named.items() if ours is None]
        self._take_classifier()
        self.notes: list[str] = []
        if self.layout is not None:
            self.renamed, self.notes = self.layout.to_ours(self.renamed, self.target)
        self.unexpected = [name for name in self.renamed if name not in self.own]
        self.kept = [n for n in self.own if n not in self.renamed and not n.endswith("num_batches_tracked")]
        fresh = tuple(without_inserted(path) for path in _fresh_gates(self.target, self.renamed))
        self.missing = [name for name in self.kept if not name.startswith(fresh)]
        self.matches = len(self.renamed) - len(self.unexpected)

    def _take_classifier(self) -> None:
        """Take the classifier of mmpretrain, which has its backbone and its head in two modules."""
        for end in ("weight", "bias"):
            name = f"{self.prefix.removed.removesuffix('backbone.')}head.fc.{end}"
            if self.prefix.removed.endswith("backbone.") and name in self.outside:
                self.outside.remove(name)
                self.renamed[f"fc.{end}"] = self.names[name]

    @property
    def source(self) -> str:
        return OWN if self.layout is None else self.layout.name

    @property
    def is_complete(self) -> bool:
        """Whether the network has all tensors of this prefix in the file, and the file all of the network."""
        unread = self.layout is None and bool(_recognised(self.unexpected))
        return not self.missing and (not self.unexpected or (self.is_part and not unread))


def _fitting(model: nn.Module, content: WeightFile, source: str, prefix: str | None) -> _Reading:
    """Return the reading of the names that fits the network, or else the one with the most matching names.

    Raises:
        DataError: several networks in the file fit.
    """
    whole = content.tensors
    inside = {n.removeprefix(content.wrapper): t for n, t in whole.items() if n.startswith(content.wrapper)}
    scopes = [inside, whole] if content.wrapper and inside else [whole]
    if prefix is not None:
        names = next((names for names in scopes if any(name.startswith(prefix) for name in names)), None)
        if names is None:
            raise errors.DataError(f"{content.path}: no name begins with prefix={prefix!r}. {_starts(whole)}")
        scopes = [names]
    tried: list[_Reading] = []
    for names in scopes:
        own: list[Layout | None] = [LAYOUTS.get(source)]
        for layouts in (own, _recognised(names)) if source == "auto" else (own,):
            readings = list(_readings(model, names, layouts, prefix))
            if complete := [reading for reading in readings if reading.is_complete]:
                return _only_one(content, complete)
            tried += readings
    return max(tried, key=lambda reading: reading.matches)


def _recognised(names: Iterable[str]) -> list[Layout | None]:
    return [layout for layout in LAYOUTS.values() if layout.recognises(names)]


def _readings(
    model: nn.Module, names: Mapping[str, Tensor], layouts: list[Layout | None], prefix: str | None
) -> Iterator[_Reading]:
    """Yield the readings of the names in a file; those with a prefix only if half of the network's names match."""
    for target, is_part in _targets(model):
        gates = tuple(f"{path}." for path in _gate_paths(target))
        required = [without_inserted(name) for name in target.state_dict() if not name.startswith(gates or "\0")]
        found = prefixes([without_inserted(name) for name in names], required)
        for one in found if prefix is None else [Prefix(prefix, one.added) for one in found if not one.removed]:
            for layout in layouts:
                reading = _Reading(target, is_part, one, layout, names)
                if one in (Prefix(), Prefix(prefix or "")) or 2 * reading.matches >= len(required):
                    yield reading


def _targets(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Return the modules that weights may be for, each with whether it is the body of a detector."""
    body = getattr(getattr(model, "backbone", None), "body", None)
    inner = [(model.backbone, False)] if isinstance(model, GaterNet) else []
    return [(model, False), *inner, *([(body, True)] if isinstance(body, nn.Module) else [])]


def _only_one(content: WeightFile, complete: list[_Reading]) -> _Reading:
    """Return the reading of the network itself instead of copies; raise if the file has several other networks."""
    own = [reading for reading in complete if not reading.prefix.is_copy] or complete
    first = own[0]
    for other in own[1:]:
        differs = any(
            tensor.shape != first.renamed[name].shape or not bool((tensor == first.renamed[name]).all())
            for name, tensor in other.renamed.items()
            if name in first.renamed
        )
        if other.target is first.target and other.layout is first.layout and differs:
            found = ", ".join(repr(reading.prefix.removed) for reading in own)
            raise errors.DataError(
                f"{content.path} has several networks that fit: their names begin with {found}. Choose one with "
                "prefix=."
            )
    return first


def _starts(names: Iterable[str]) -> str:
    return f"They begin with {_listed(dict.fromkeys(repr(name.partition('.')[0]) for name in names))}."


def _not_read(content: WeightFile) -> list[str]:
    return [f"not read, since no tensors: objects of {_listed(content.not_read)}"] if content.not_read else []


def _fill(reading: _Reading, fitting: Mapping[str, Tensor]) -> list[str]:
    """Load the tensors that fit; a network on the meta device gets the tensors themselves."""
    on_meta = any(tensor.is_meta for tensor in reading.own.values())
    weights = {reading.paths[name]: tensor for name, tensor in fitting.items()}
    reading.target.load_state_dict(weights, strict=False, assign=on_meta)
    if not on_meta:
        return []
    materialise_gates(reading.target)
    left = [name for name, tensor in reading.target.state_dict().items() if tensor.is_meta]
    return [f"without values, on the meta device: {_listed(left)}"] if left else []


def _fill_routes(model: nn.Module, reading: _Reading, fitting: Iterable[str]) -> None:
    """Give the norms that were loaded into the backbone of a GaterNet to all of its routes."""
    if isinstance(model, GaterNet) and model.selection is not None and reading.target is model.backbone:
        norms = tuple(f"{path}." for path in model.selection.norms.paths)
        if any(reading.paths[name].startswith(norms) for name in fitting):
            model.norms_follow_backbone()


def _fresh_gates(target: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Return the name prefixes of all gates of the kinds that are not in the weights at all."""
    names = tuple(names)
    kinds: dict[str, list[str]] = {}
    for path in _gate_paths(target):
        kinds.setdefault(path.rpartition(".")[2], []).append(f"{path}.")
    fresh = [paths for paths in kinds.values() if not any(name.startswith(tuple(paths)) for name in names)]
    return tuple(path for paths in fresh for path in paths)


def _gate_paths(model: nn.Module) -> list[str]:
    """Return every path of each gate; a child of two modules has two."""
    names: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    return [path for path, module in names.items() if isinstance(module, Gate)]


def _check_layout_fits(what: Path | str, layout: Layout, model: nn.Module) -> None:
    if (reason := layout.why_not_for(model)) is not None:
        raise errors.DataError(f"{what}: {reason}.")


def _check_weights_fit(file: Path, source: str, mismatches: Mapping[str, list[str]], notes: list[str]) -> None:
    listed = [f"{what} ({len(names)}): {_listed(names)}" for what, names in mismatches.items() if names]
    if listed:
        raise errors.DataError(
            f"{file}, read as {source}, does not fit the network. {'; '.join([*listed, *notes])}. Build the network "
            f"with the architecture and gate options of the file, or, in Python, load only matching tensors with "
            f"strict=False."
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
