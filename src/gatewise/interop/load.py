"""Load weights that others trained into a network with our gates, and write ours in their names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise.gaternet import GaterNet
from gatewise.insertion import gates_in
from gatewise.interop.layouts import LAYOUTS, Layout
from gatewise.interop.reading import read_weights, without_wrappers

OWN = "gatewise"
SOURCES = ("auto", OWN, *LAYOUTS)
_SHOWN = 6


@dataclass(frozen=True)
class Loaded:
    """What became of a file's weights.

    Attributes:
        file: that they were read from.
        source: whose layout it is.
        filled: the network's tensors that were taken from it.
        kept: those that it knows nothing of, which are as they were.
        left_out: the file's tensors that have no place in the network, by their own names.
        reshaped: the network's tensors for which the file has another shape, as they were too.
        notes: what should be known of the result.
        config: the `config.json` beside the weights, {} where there is none.
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
        parts = [f"{len(self.filled)} tensors filled from {self.file} ({self.source})"]
        named = (("kept as they were", self.kept), ("of another shape", self.reshaped), ("left out", self.left_out))
        parts += [f"{what}: {_listed(names)}" for what, names in named if names]
        return "; ".join([*parts, *self.notes])


def load_weights(model: nn.Module, file: str | Path, source: str = "auto", *, strict: bool = True) -> Loaded:
    """Load weights into a network, whoever trained them.

    Args:
        model: the network. Of a GaterNet, weights of a plain network fill the backbone; of torchvision's detectors,
            weights of a classifier or of an mmdetection detector fill the body of the backbone. Gates that the file
            knows nothing of keep their values.
        file: safetensors, what torch.save wrote, or a run folder, whose checksum is verified. Pickles are opened with
            weights_only=True: nothing in them is executed.
        source: whose names they bear: "gct" (the released ResNet-50 and -101: build resnet50_v1+gct), "mmcv" (context
            blocks and non-local blocks, mmdetection, GCNet), "timm" (networks with gc, se, nl, eca), "triplet" (both
            layouts), "gaternet" (the released ResNet-20 and -56), "gatewise" (this network's own); "auto" tells by
            the names.
        strict: refuse what does not fit exactly; otherwise fill what fits, and tell of the rest.

    Returns what was filled, kept and left out, with notes on where the results may differ.

    Refused with `DataError`, before the network is touched: missing or unexpected tensors or other shapes, all named;
    a damaged file; a pickle with more in it than weights; a network of another architecture.

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
    named, notes = inside, []
    if source != OWN:
        _check_layout_fits(path, LAYOUTS[source], target)
        named, notes = LAYOUTS[source].to_ours(inside, target)
    own = target.state_dict()
    fitting = {name: tensor for name, tensor in named.items() if name in own and tensor.shape == own[name].shape}
    unexpected = [name for name in named if name not in own]
    reshaped = [name for name in named if name in own and name not in fitting]
    kept = [name for name in own if name not in named and not name.endswith("num_batches_tracked")]
    if strict:
        fresh = _fresh_gates(target, named)
        complaints = {
            "missing": [name for name in kept if not name.startswith(fresh)],
            "unexpected": [] if is_part else unexpected,
            "of another shape": [f"{n} {tuple(named[n].shape)}, here {tuple(own[n].shape)}" for n in reshaped],
        }
        _check_weights_fit(path, source, complaints, notes)
    target.load_state_dict(own | fitting)
    left_out = (*outside, *unexpected)
    return Loaded(path, source, tuple(fitting), tuple(kept), left_out, tuple(reshaped), tuple(notes), config)


def convert_weights(model: nn.Module, to: str) -> dict[str, Any]:
    """Return a network's weights under the names of others: what `load_weights(source=to)` reads.

    Args:
        model: the network, with the gates that they have.
        to: "gct", "mmcv", "timm", "triplet" (the newer layout) or "gaternet" (its two dictionaries).

    Refused with ValueError: an unknown layout; non-local blocks for timm, whose own compute something else.

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
    """Return the part of the network that the weights are for, and whether it is the body of a detector."""
    whole = source == "gaternet" or any(name.startswith("gater.") for name in weights)
    if isinstance(model, GaterNet) and not whole:
        model = model.backbone
    body = getattr(getattr(model, "backbone", None), "body", None)
    theirs_too = any(".body." in name for name in weights) and source == OWN  # a whole detector of torchvision's
    return (body, True) if isinstance(body, nn.Module) and not theirs_too else (model, False)


def _of_backbone(
    weights: dict[str, Tensor], target: nn.Module, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights of a detector's or an mmpretrain classifier's backbone, and the names of all others."""
    if source == "gaternet" or any(name.startswith("backbone.") for name in target.state_dict()):
        return weights, ()
    prefix = next((p for p in ("backbone.body.", "backbone.") if any(name.startswith(p) for name in weights)), "")
    if not prefix:
        return weights, ()
    weights = {name.replace("head.fc.", f"{prefix}fc."): tensor for name, tensor in weights.items()}
    inside = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return inside, tuple(name for name in weights if not name.startswith(prefix))


def _fresh_gates(target: nn.Module, named: Iterable[str]) -> tuple[str, ...]:
    """Return how names of the gates begin of whose kind the weights hold none."""
    named = tuple(named)
    kinds: dict[str, list[str]] = {}
    for path in gates_in(target):
        kinds.setdefault(path.rpartition(".")[2], []).append(f"{path}.")
    fresh = [paths for paths in kinds.values() if not any(name.startswith(tuple(paths)) for name in named)]
    return tuple(path for paths in fresh for path in paths)


def _check_layout_fits(what: Path | str, layout: Layout, model: nn.Module) -> None:
    objection = layout.objection(model)
    if objection:
        raise errors.DataError(f"{what}: {objection}.")


def _check_weights_fit(file: Path, source: str, complaints: Mapping[str, list[str]], notes: list[str]) -> None:
    found = [f"{what} ({len(names)}): {_listed(names)}" for what, names in complaints.items() if names]
    if found:
        raise errors.DataError(
            f"{file}, read as {source}, does not fit the network. {'; '.join([*found, *notes])}. Build the network "
            f"that it was trained with (its gates' options too), or fill what fits with strict=False."
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
