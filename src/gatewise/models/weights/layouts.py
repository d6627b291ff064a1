"""Names and shapes of tensors in the weight files of other libraries: one `Layout` per family of files.

A rule maps a full name of theirs to one of ours, or back. In our names, `block@kind.rest` means the gate of this kind
on any layer directly inside `block`, for example `layer1.0@gc.conv_mask.weight`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from gatewise import errors
from gatewise.gates.non_local import NonLocal
from gatewise.inference.fold import folded_weights
from gatewise.insertion.insert import gates_in

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Mapping between our names and shapes of tensors and those of one family of files.

    Attributes:
        name: as in `load_weights(source=...)`.
        description: the files that have this layout.
        sign: regular expression; a file has this layout if one of its tensor names matches.
        read: rules from their names to ours; the first match is applied, other names do not change.
        write: rules from our names to theirs.
        finish: convert values and shapes of tensors that already have our names, in place; return notes for the user.
        begin: the inverse of `finish`.
        why_not_for: return why this layout is not for a network, or None.
    """

    name: str
    description: str
    sign: str
    read: Rules
    write: Rules
    finish: Callable[[Weights, nn.Module], list[str]] = lambda _, __: []
    begin: Callable[[Weights, nn.Module], Weights] = lambda weights, _: weights
    why_not_for: Callable[[nn.Module], str | None] = lambda _: None

    def recognises(self, names: Iterable[str]) -> bool:
        """Return whether a file with these tensor names has this layout."""
        return any(re.search(self.sign, name) for name in names)

    def to_ours(self, weights: Mapping[str, Tensor], model: nn.Module) -> tuple[Weights, list[str]]:
        """Return the weights of a file under the names of the network, and notes for the user."""
        places = _gates_of_blocks(model)
        named = {_placed(_renamed(name, self.read), places): tensor for name, tensor in weights.items()}
        return named, self.finish(named, model)

    def to_theirs(self, model: nn.Module) -> Weights:
        """Return the weights of a network under the names of this layout."""
        paths = {path: block for block, path in _gates_of_blocks(model).items()}
        own = self.begin(dict(model.state_dict()), model)
        return {_renamed(_abstract(name, paths), self.write): tensor for name, tensor in own.items()}


def _renamed(name: str, rules: Rules) -> str:
    """Apply the first rule that matches the full name.

    >>> _renamed("layer1.0.conv1.1.weight", _GCT.read)
    'layer1.0.conv1.weight'
    """
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    return name


def _gates_of_blocks(model: nn.Module) -> dict[str, str]:
    """Return "block@kind" -> path for every gate that is the only one of its kind on the layers of a block."""
    paths_of_block: dict[str, list[str]] = {}
    for path in gates_in(model):
        host, _, kind = path.rpartition(".")
        paths_of_block.setdefault(f"{host.rpartition('.')[0]}@{kind}", []).append(path)
    return {block: paths[0] for block, paths in paths_of_block.items() if len(paths) == 1}


def _placed(name: str, places: Mapping[str, str]) -> str:
    block, at, rest = name.partition("@")
    kind, _, parameter = rest.partition(".")
    return f"{places[f'{block}@{kind}']}.{parameter}" if at and f"{block}@{kind}" in places else name


def _abstract(name: str, paths: Mapping[str, str]) -> str:
    for path, block in paths.items():
        if name.startswith(f"{path}."):
            return block + name.removeprefix(path)
    return name


def _why_not_strides_of_gct(model: nn.Module) -> str | None:
    """Return why a ResNet has other strides than the released one, whose weights would load all the same, or None."""
    layers: dict[str, Any] = dict(model.named_modules())
    second = layers.get("layer2.0.conv2")
    if isinstance(second, nn.Conv2d) and second.kernel_size == (3, 3) and max(second.stride) > 1:
        return (
            "the released GCT network has the stride of each stage in its first 1x1 convolution, this network has it "
            "in the 3x3 convolution. Build it as resnet50_v1+gct or resnet101_v1+gct"
        )
    return None


_GCT = Layout(
    name="gct",
    description="the released GCT (z-x-yang/GCT, PyTorch)",
    sign=r"(conv\d|downsample)\.0\.(alpha|beta|gamma)$",
    read=(
        (r"stem\.conv1\.0\.(alpha|beta|gamma)", r"conv1.gct.\1"),
        (r"stem\.conv1\.1\.(.+)", r"conv1.\1"),
        (r"stem\.(bn1\..+)", r"\1"),
        (r"(.+\.conv\d)\.0\.(.+)", r"\1.gct.\2"),
        (r"(.+\.conv\d)\.1\.(.+)", r"\1.\2"),
        (r"(.+\.downsample)\.0\.(.+)", r"\1.0.gct.\2"),
        (r"(.+\.downsample)\.1\.(.+)", r"\1.0.\2"),
        (r"(.+\.downsample)\.2\.(.+)", r"\1.1.\2"),
    ),
    write=(
        (r"@gct\.(.+)", r"stem.conv1.0.\1"),
        (r"conv1\.gct\.(.+)", r"stem.conv1.0.\1"),
        (r"conv1\.(.+)", r"stem.conv1.1.\1"),
        (r"(bn1\..+)", r"stem.\1"),
        (r"(.+\.conv\d)\.gct\.(.+)", r"\1.0.\2"),
        (r"(.+\.conv\d)\.(.+)", r"\1.1.\2"),
        (r"(.+\.downsample)(?:\.0\.gct|@gct)\.(.+)", r"\1.0.\2"),
        (r"(.+\.downsample)\.1\.(.+)", r"\1.2.\2"),
        (r"(.+\.downsample)\.0\.(.+)", r"\1.1.\2"),
    ),
    why_not_for=_why_not_strides_of_gct,
)

_MMCV = Layout(
    name="mmcv",
    description="mmcv and mmdetection (ContextBlock, NonLocal2d), and xvjiarui/GCNet",
    sign=r"(^|\.)(context_block|nonlocal_block)\.",
    read=(
        (r"(?:(.+)\.)?context_block\.(.+)", r"\1@gc.\2"),
        (r"(?:(.+)\.)?nonlocal_block\.(.+)", r"\1@nl.\2"),
    ),
    write=(
        (r"(.+)@gc\.(.+)", r"\1.context_block.\2"),
        (r"(.+)@nl\.(.+)", r"\1.nonlocal_block.\2"),
    ),
    finish=lambda weights, model: _fold_norms(weights, model, "conv_out.bn"),
)

_NAMES = r"(.+)\.(?:triplet_attention|triplet|pcam)"  # names of the block in the released files
_TRIPLET = Layout(
    name="triplet",
    description="triplet attention (landskape-ai/triplet-attention), both layouts, any of the three names of the block",
    sign=r"(^|\.)(triplet_attention|pcam)\.|ChannelGate[HW]\.",
    read=(
        (rf"{_NAMES}\.ChannelGateH\.spatial\.(.+)", r"\1@triplet.cw.conv.\2"),
        (rf"{_NAMES}\.ChannelGateW\.spatial\.(.+)", r"\1@triplet.hc.conv.\2"),
        (rf"{_NAMES}\.SpatialGate\.spatial\.(.+)", r"\1@triplet.hw.conv.\2"),
        (rf"{_NAMES}\.(.+)", r"\1@triplet.\2"),
    ),
    write=((r"(.+)@triplet\.(.+)", r"\1.triplet_attention.\2"),),
)


_SHORTCUT = (("shortcut.conv.", "shortcut.0."), ("shortcut.bn.", "shortcut.1."))


def _unit(form: str, shift: int) -> Callable[[re.Match[str]], str]:
    """Return a function that formats stage, unit and rest, with the numbers shifted: they count from 1, we from 0."""

    def write(match: re.Match[str]) -> str:
        rest = match[3]
        for theirs, ours in _SHORTCUT:
            rest = rest.replace(theirs, ours) if shift < 0 else rest.replace(ours, theirs)
        return form.format(int(match[1]) + shift, int(match[2]) + shift, rest)

    return write


_GATERNET = Layout(
    name="gaternet",
    description="the released GaterNet (google-research/gaternet), ResNet-20 and ResNet-56",
    sign=r"^(backbone|gater)_state_dict\.",
    read=(
        (r"backbone_state_dict\.(conv|bn)\.(.+)", r"backbone.\g<1>1.\2"),
        (r"backbone_state_dict\.stage(\d)\.block(\d+)\.(.+)", _unit("backbone.stages.{}.{}.{}", -1)),
        (r"backbone_state_dict\.(.+)", r"backbone.\1"),
        (r"gater_state_dict\.resnet\.(conv|bn)\.(.+)", r"gater.features.\g<1>1.\2"),
        (r"gater_state_dict\.resnet\.stage(\d)\.block(\d+)\.(.+)", _unit("gater.features.stages.{}.{}.{}", -1)),
        (r"gater_state_dict\.resnet\.newfc\.(.+)", r"gater.head.fc1.\1"),
        (r"gater_state_dict\.fnn\.fc\.0\.(.+)", r"gater.head.fc2.\1"),
    ),
    write=(
        (r"backbone\.(conv|bn)1\.(.+)", r"backbone_state_dict.\1.\2"),
        (r"backbone\.stages\.(\d)\.(\d+)\.(.+)", _unit("backbone_state_dict.stage{}.block{}.{}", 1)),
        (r"backbone\.(.+)", r"backbone_state_dict.\1"),
        (r"gater\.features\.(conv|bn)1\.(.+)", r"gater_state_dict.resnet.\1.\2"),
        (r"gater\.features\.stages\.(\d)\.(\d+)\.(.+)", _unit("gater_state_dict.resnet.stage{}.block{}.{}", 1)),
        (r"gater\.head\.fc1\.(.+)", r"gater_state_dict.resnet.newfc.\1"),
        (r"gater\.head\.fc2\.(.+)", r"gater_state_dict.fnn.fc.0.\1"),
    ),
)


def _finish_timm(weights: Weights, model: nn.Module) -> list[str]:
    """Convert timm's tensors to our shapes and scales; fold the batch norm after a non-local block."""
    notes = []
    for path, gate in gates_in(model).items():
        for _, transform in _TRANSFORMS:
            for end in ("weight", "bias"):
                name = f"{path}.{transform}.1.{end}"
                if name in weights:
                    weights[name] = weights[name].reshape(-1, 1, 1)
            if f"{path}.{transform}.1.weight" in weights:
                norm: Any = getattr(gate, transform)
                if norm is not None and norm[1].eps != _TIMM_EPS:
                    notes.append(f"timm's layer norms have eps 1e-6, here {norm[1].eps:g}; build with gc:eps=1e-6")
        theta = f"{path}.theta.conv."
        if f"{theta}weight" in weights:  # timm divides by sqrt(C), we divide by sqrt(R)
            inner, channels = weights[f"{theta}weight"].shape[:2]
            for end in ("weight", "bias"):
                weights[theta + end] = weights[theta + end] * (inner / channels) ** 0.5
    return list(dict.fromkeys([*notes, *_fold_norms(weights, model, "norm")]))


def _fold_norms(weights: Weights, model: nn.Module, norm: str) -> list[str]:
    """Fold the batch norm after the last convolution of each non-local block into that convolution."""
    folded = 0
    for path in gates_in(model):
        keys = {end: f"{path}.{norm}.{end}" for end in ("weight", "bias", "running_mean", "running_var")}
        if not all(key in weights for key in keys.values()):
            continue
        batch_norm = SimpleNamespace(eps=1e-5, **{end: weights.pop(key).double() for end, key in keys.items()})
        weights.pop(f"{path}.{norm}.num_batches_tracked", None)
        own, bias = f"{path}.conv_out.conv.weight", f"{path}.conv_out.conv.bias"
        before = weights[bias].double() if bias in weights else None
        pair = folded_weights(SimpleNamespace(weight=weights[own].double(), bias=before), batch_norm)
        weights[own], weights[bias] = (tensor.detach().to(weights[own].dtype) for tensor in pair)
        folded += 1
    if not folded:
        return []
    return [f"the batch norms of {folded} non-local blocks were folded into convolutions: equal in eval mode only"]


_TIMM_EPS = 1e-6
_SLOT = r"(.+)\.(?:se|attn|self_attn)\."  # attribute names of attention modules in timm's blocks
_TRANSFORMS = (("mlp_add", "channel_add_conv"), ("mlp_scale", "channel_mul_conv"))
_NON_LOCAL = (("t", "theta"), ("p", "phi"), ("g", "g"), ("z", "conv_out"))
_PARTS = (("fc1", 0), ("norm", 1), ("fc2", 3))


def _start_timm(weights: Weights, model: nn.Module) -> Weights:
    """Convert our tensors to timm's shapes."""
    if any(isinstance(gate, NonLocal) for gate in gates_in(model).values()):
        raise errors.InvalidValueError(
            "nl cannot be converted to timm's non-local block, which also has a batch norm and scales the attention "
            "differently. Convert it to mmcv's block: to='mmcv'."
        )
    norms = tuple(f".{ours}.1.{end}" for _, ours in _TRANSFORMS for end in ("weight", "bias"))
    return {name: tensor.flatten() if name.endswith(norms) else tensor for name, tensor in weights.items()}


_TIMM = Layout(
    name="timm",
    description="timm's networks with gc, gca, nl, se or eca",
    sign=r"\.(se|attn|self_attn)\.(conv_attn|mlp_add|mlp_scale|fc1|conv|t)\.",
    read=(
        (_SLOT + r"conv_attn\.(.+)", r"\1@gc.conv_mask.\2"),
        *(
            (rf"{_SLOT}{theirs}\.{part}\.(.+)", rf"\1@gc.{ours}.{number}.\2")
            for theirs, ours in _TRANSFORMS
            for part, number in _PARTS
        ),
        *((rf"{_SLOT}{theirs}\.(.+)", rf"\1@nl.{ours}.conv.\2") for theirs, ours in _NON_LOCAL),
        (_SLOT + r"norm\.(.+)", r"\1@nl.norm.\2"),
        (_SLOT + r"(fc\d\..+)", r"\1@se.\2"),
        (_SLOT + r"(conv\.weight)", r"\1@eca.\2"),
    ),
    write=(
        (r"(.+)@gc\.conv_mask\.(.+)", r"\1.se.conv_attn.\2"),
        *(
            (rf"(.+)@gc\.{ours}\.{number}\.(.+)", rf"\1.se.{theirs}.{part}.\2")
            for theirs, ours in _TRANSFORMS
            for part, number in _PARTS
        ),
        (r"(.+)@(?:se|eca)\.(.+)", r"\1.se.\2"),
    ),
    finish=_finish_timm,
    begin=_start_timm,
)
LAYOUTS = {layout.name: layout for layout in (_GCT, _MMCV, _TIMM, _TRIPLET, _GATERNET)}
