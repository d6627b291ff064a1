"""Load weights of other libraries into a network with gates, and convert weights to their names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.gaternet import GaterNet
from gatewise.gates.registry import Gate
from gatewise.models.weights.layouts import LAYOUTS, Layout
from gatewise.models.weights.reading import read_weights, without_wrappers

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
        left_out: tensors of the file that the network does not have, by their names in the file.
        reshaped: tensors of the network that have another shape in the file, and are unchanged.
        notes: possible differences in the results.
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


def load_weights(model: nn.Module, file: str | Path, source: str = "auto", *, strict: bool = True) -> Loaded:
    """Load weights of this library or of others into a network.

    Args:
        model: the network. Weights of a plain network are loaded into the backbone of a GaterNet; weights of a
            classifier or of an mmdetection detector are loaded into the body of the backbone of a torchvision detector.
            Gates that are not in the file keep their values.
        file: a safetensors file, a file of torch.save, or a run folder, whose checksum is verified. Pickles are opened
            with weights_only=True, so no code in them is executed.
        source: layout of the names: "gct" (the released ResNet-50 and -101: build resnet50_v1+gct), "mmcv" (context
            blocks and non-local blocks, mmdetection, GCNet), "timm" (networks with gc, se, nl, eca), "triplet" (both
            layouts), "gaternet" (the released ResNet-20 and -56), "gatewise" (the names of `model` itself); "auto"
            detects the layout from the names.
        strict: if True, raise unless all tensors match; if False, load the tensors that match.

    Returns:
        The names of loaded, unchanged and unused tensors, and notes on possible differences in the results.

    Raises:
        DataError: tensors are missing, unexpected or of another shape (all are listed), the file is corrupt, a pickle
            contains more than weights, or the network has another architecture. The network is not changed.

    >>> import tempfile, torch; from gatewise import make_model
    >>> net = make_model("resnet20+gct"); file = f"{tempfile.mkdtemp()}/resnet20.pt"
    >>> torch.save({"state_dict": make_model("resnet20").state_dict()}, file)
    >>> loaded = load_weights(net, file)
    >>> loaded.source, len(loaded.kept)
    ('gatewise', 63)
    """
    _validation.check_module("load_weights", model)
    _validation.check_one_of("source", source, SOURCES)
    path, weights, config = read_weights(file)
    source = _recognised(weights) if source == "auto" else source
    target, is_part = _target(model, weights, source)
    own_names = {without_wrappers(name): tensor for name, tensor in weights.items()}
    inside, outside = _of_backbone(own_names, target, source)
    renamed, notes = inside, []
    if source != OWN:
        _check_layout_fits(path, LAYOUTS[source], target)
        renamed, notes = LAYOUTS[source].to_ours(inside, target)
    own = target.state_dict()
    fitting = {name: tensor for name, tensor in renamed.items() if name in own and tensor.shape == own[name].shape}
    unexpected = [name for name in renamed if name not in own]
    reshaped = [name for name in renamed if name in own and name not in fitting]
    kept = [name for name in own if name not in renamed and not name.endswith("num_batches_tracked")]
    if strict:
        fresh = _fresh_gates(target, renamed)
        mismatches = {
            "missing": [name for name in kept if not name.startswith(fresh)],
            "unexpected": [] if is_part else unexpected,
            "of another shape": [f"{n} {tuple(renamed[n].shape)}, expected {tuple(own[n].shape)}" for n in reshaped],
        }
        _check_weights_fit(path, source, mismatches, notes)
    target.load_state_dict(own | fitting)
    left_out = (*outside, *unexpected)
    return Loaded(path, source, tuple(fitting), tuple(kept), left_out, tuple(reshaped), tuple(notes), config)


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


def _recognised(weights: Mapping[str, Tensor]) -> str:
    return next((layout.name for layout in LAYOUTS.values() if layout.recognises(weights)), OWN)


def _target(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> tuple[nn.Module, bool]:
    """Return the module that the weights are for, and whether it is the body of a detector."""
    with_gater = source == "gaternet" or any(name.startswith("gater.") for name in weights)
    if isinstance(model, GaterNet) and not with_gater:
        model = model.backbone
    body = getattr(getattr(model, "backbone", None), "body", None)
    of_detector = any(".body." in name for name in weights) and source == OWN  # a complete torchvision detector
    return (body, True) if isinstance(body, nn.Module) and not of_detector else (model, False)


def _of_backbone(
    weights: dict[str, Tensor], target: nn.Module, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the backbone's weights of a detector or an mmpretrain classifier, and the names of all other tensors."""
    if source == "gaternet" or any(name.startswith("backbone.") for name in target.state_dict()):
        return weights, ()
    prefix = next((p for p in ("backbone.body.", "backbone.") if any(name.startswith(p) for name in weights)), "")
    if not prefix:
        return weights, ()
    weights = {name.replace("head.fc.", f"{prefix}fc."): tensor for name, tensor in weights.items()}
    inside = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return inside, tuple(name for name in weights if not name.startswith(prefix))


def _fresh_gates(target: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Return the name prefixes of all gates of the kinds that are not in the weights at all."""
    names = tuple(names)
    kinds: dict[str, list[str]] = {}
    for path, module in target.named_modules(remove_duplicate=False):  # a child of two modules has two names
        if isinstance(module, Gate):
            kinds.setdefault(path.rpartition(".")[2], []).append(f"{path}.")
    fresh = [paths for paths in kinds.values() if not any(name.startswith(tuple(paths)) for name in names)]
    return tuple(path for paths in fresh for path in paths)


def _check_layout_fits(what: Path | str, layout: Layout, model: nn.Module) -> None:
    if (reason := layout.why_not_for(model)) is not None:
        raise errors.DataError(f"{what}: {reason}.")


def _check_weights_fit(file: Path, source: str, mismatches: Mapping[str, list[str]], notes: list[str]) -> None:
    listed = [f"{what} ({len(names)}): {_listed(names)}" for what, names in mismatches.items() if names]
    if listed:
        raise errors.DataError(
            f"{file}, read as {source}, does not fit the network. {'; '.join([*listed, *notes])}. Build the network "
            f"with the architecture and gate options of the file, or load only matching tensors with strict=False."
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
