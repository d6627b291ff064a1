"""Places for gates found in real and hand-made networks, checked by the computed values."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import gatewise as gw
from gatewise.core.registry import PLACES
from gatewise.gaternet.sites import places_by_sites
from gatewise.graph import Graph, Place, Places, place_kind, place_names, register_place
from gatewise.graph.trace import trace
from support.project import ROOT

SMALL = torch.zeros(2, 3, 64, 64)
IMAGE = torch.linspace(-2, 2, 3 * 32 * 32).sin().view(1, 3, 32, 32) * torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)


@functools.cache
def network(name: str) -> nn.Module:
    """Return a network in eval mode in which no branch is nearly zero: norms and layer scales are drawn at random."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18() if name == "torchvision resnet18" else timm.create_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    for path, parameter in model.named_parameters():
        if path.endswith(".gamma"):  # of ConvNeXt
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


@functools.cache
def graph(name: str) -> Graph:
    return Graph(network(name))


@functools.cache
def places(name: str, place: str) -> Places:
    return gw.find_places(graph(name), place)


def found(model: nn.Module, place: str, example: object = None) -> list[tuple[str, str, int]]:
    return [(p.layer, p.side, p.channels) for p in gw.find_places(model, place, example).found]


def blocks(counts: dict[str, int], start: int, pattern: str) -> list[str]:
    """Return names such as layer1.0.bn2 from {"layer1": 2, ...}, 0 and "{stage}.{block}.bn2"."""
    return [pattern.format(stage=s, block=b) for s, count in counts.items() for b in range(start, start + count)]


@contextlib.contextmanager
def changed(model: nn.Module, place: Place, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Apply `change` to the map at a place, as a gate would."""
    layer = model.get_submodule(place.layer)
    if place.side == "input":
        handle = layer.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        handle = layer.register_forward_hook(lambda *args: change(args[-1]))
    try:
        yield
    finally:
        handle.remove()


def map_at(model: nn.Module, place: Place, x: Tensor) -> Tensor:
    """Return the map at a place."""
    maps: list[Tensor] = []
    with changed(model, place, lambda m: maps.append(m) or m):
        model(x)
    return maps[0]


# --- Expected layers -------------------------------------------------------------------------------------------------

RESNET18 = {f"layer{stage}": 2 for stage in (1, 2, 3, 4)}
RESNET50 = {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}
DENSENET121 = {f"features.denseblock{block}": count for block, count in zip((1, 2, 3, 4), (6, 12, 24, 16), strict=True)}
CONVNEXT = {f"stages.{stage}.blocks": count for stage, count in enumerate((3, 3, 9, 3))}
REGNETY = {"s1": 1, "s2": 3, "s3": 6, "s4": 6}
EFFICIENTNET = {f"blocks.{stage}": count for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1))}

INNER = {
    "resnet18": blocks(RESNET18, 0, "{stage}.{block}.act1"),
    "resnet50": [f"{stage}.act{n}" for stage in blocks(RESNET50, 0, "{stage}.{block}") for n in (1, 2)],
    "densenet121": blocks(DENSENET121, 1, "{stage}.denselayer{block}.norm2.act"),
    # After pooling where a pooling follows; the last one is read by the convolution that timm calls pre_logits.
    "vgg11_bn": [f"features.{layer}" for layer in (3, 7, 10, 14, 17, 21, 24, 28)],
    # In addition to each block's expanded map, the two narrow ones that no shortcut reads.
    "efficientnet_b0": [
        "blocks.0.0.bn1.act",
        "blocks.0.0.bn2",
        *blocks(EFFICIENTNET, 0, "{stage}.{block}.bn2.act")[1:],
        "blocks.6.0.bn3",
    ],
    "convnext_tiny": blocks(CONVNEXT, 0, "{stage}.{block}.mlp.act"),
    "regnety_004": [
        f"{b}.{end}" for b in blocks(REGNETY, 1, "{stage}.b{block}") for end in ("conv1.bn.act", "conv2.bn.act")
    ],
    # Its ReLUs are used twice, so the place is the next convolution's input.
    "torchvision resnet18": blocks(RESNET18, 0, "{stage}.{block}.conv2"),
}
RESIDUAL_END = {
    "resnet18": blocks(RESNET18, 0, "{stage}.{block}.bn2"),
    "resnet50": blocks(RESNET50, 0, "{stage}.{block}.bn3"),
    "densenet121": [],
    "vgg11_bn": [],
    "efficientnet_b0": [
        f"{block}.bn3" for block in blocks(EFFICIENTNET, 0, "{stage}.{block}") if not block.endswith(".0")
    ],
    "convnext_tiny": blocks(CONVNEXT, 0, "{stage}.{block}.mlp.fc2"),
    "regnety_004": blocks(REGNETY, 1, "{stage}.b{block}.conv3.bn"),
    "torchvision resnet18": blocks(RESNET18, 0, "{stage}.{block}.bn2"),
}
STAGE_END = {
    "resnet18": ["act1", *(f"layer{stage}.1.act2" for stage in (1, 2, 3, 4))],
    "resnet50": ["act1", "layer1.2.act3", "layer2.3.act3", "layer3.5.act3", "layer4.2.act3"],
    "densenet121": [
        "features.norm0.act",
        *(f"features.transition{block}.norm" for block in (1, 2, 3)),
        "features.norm5.act",
    ],
    "vgg11_bn": [f"features.{layer}" for layer in (2, 6, 13, 20, 27, 28)],
    "efficientnet_b0": ["blocks.0.0.bn2", "blocks.1.1", "blocks.2.1", "blocks.4.2", "bn2.act"],
    "convnext_tiny": ["stages.0.blocks.2", "stages.1.blocks.2", "stages.2.blocks.8", "stages.3.blocks.2"],
    "regnety_004": ["stem.bn.act", "s1.b1.act3", "s2.b3.act3", "s3.b6.act3", "s4.b6.act3"],
    "torchvision resnet18": ["relu", *(f"layer{stage}.1" for stage in (1, 2, 3, 4))],
}


@pytest.mark.parametrize("name", INNER)
def test_before_conv_is_input_of_every_convolution(name: str) -> None:
    convolutions = [(path, m.in_channels) for path, m in network(name).named_modules() if isinstance(m, nn.Conv2d)]
    assert [(p.layer, p.channels) for p in places(name, "before_conv").found] == convolutions
    assert {(p.side, p.spatial_dims, p.channel_axis) for p in places(name, "before_conv").found} == {("input", 2, 1)}


@pytest.mark.extended
@pytest.mark.parametrize("name", INNER)
def test_inner_is_last_map_of_filter_before_its_only_reader(name: str) -> None:
    assert [p.layer for p in places(name, "inner").found] == INNER[name]


@pytest.mark.parametrize("name", RESIDUAL_END)
def test_residual_end_is_last_layer_of_each_branch(name: str) -> None:
    assert [p.layer for p in places(name, "residual_end").found] == RESIDUAL_END[name]


@pytest.mark.parametrize("name", STAGE_END)
def test_stage_end_is_last_map_of_each_resolution(name: str) -> None:
    assert [p.layer for p in places(name, "stage_end").found] == STAGE_END[name]


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "convnext_tiny", "regnety_004"])
def test_stage_end_agrees_with_timm_feature_info(name: str) -> None:
    """In number and channels, and in the resolution that a forward has there."""
    stages = places(name, "stage_end").found
    expected = [(info["num_chs"], 64 // info["reduction"]) for info in network(name).feature_info]
    assert [(p.channels, map_at(network(name), p, SMALL).shape[2]) for p in stages] == expected


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("place", place_names(marked=False))
def test_place_has_channels_of_forward(name: str, place: str) -> None:
    some = places(name, place).found[::5]
    maps = [map_at(network(name), p, IMAGE) for p in some]
    assert [p.channels for p in some] == [m.shape[p.channel_axis] for p, m in zip(some, maps, strict=True)]
    assert [p.spatial_dims for p in some] == [m.dim() - 2 for m in maps]


def test_channels_after_linear_in_channels_last_code_are_last_axis() -> None:
    for place in ("inner", "residual_end"):
        assert {p.channel_axis for p in places("convnext_tiny", place).found} == {3}
    assert {p.channel_axis for p in places("convnext_tiny", "stage_end").found} == {1}


def test_reused_relu_moves_place_to_input_of_next_layer() -> None:
    assert {p.side for p in places("torchvision resnet18", "inner").found} == {"input"}
    assert {p.side for p in places("resnet18", "inner").found} == {"output"}


# --- inner and residual_end, in numbers ------------------------------------------------------------------------------


def layers_with_weights(model: nn.Module) -> dict[str, nn.Module]:
    kinds = nn.modules.conv._ConvNd | nn.Linear
    return {path: module for path, module in model.named_modules() if isinstance(module, kinds)}


def filters_read(value: Tensor, layers: dict[str, nn.Module]) -> dict[str, set[int]]:
    """Return for each layer the filters that `value` depends on."""
    weights = [layer.weight for layer in layers.values()]
    gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    return {
        path: set() if gradient is None else set(gradient.flatten(1).abs().amax(1).nonzero().flatten().tolist())
        for path, gradient in zip(layers, gradients, strict=True)
    }


def close(place: Place, index: int) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies one channel by zero."""

    def change(x: Tensor) -> Tensor:
        factors = torch.ones(place.channels)
        factors[index] = 0
        return x * factors.view([-1 if axis == place.channel_axis else 1 for axis in range(x.dim())])

    return change


def most_active(x: Tensor, place: Place) -> int:
    return int(x.abs().sum([axis for axis in range(x.dim()) if axis != place.channel_axis]).argmax())


@torch.no_grad()
def consumers(model: nn.Module, place: Place, index: int, x: Tensor) -> list[str]:
    """Return the layers whose input changes in this channel alone, to exact zeros, if it is closed."""
    inputs: dict[str, list[Tensor]] = {path: [] for path in layers_with_weights(model)}
    closed = close(place, index)
    for change in (closed, torch.clone):
        with contextlib.ExitStack() as stack:
            stack.enter_context(changed(model, place, change))
            for path, seen in inputs.items():
                layer = model.get_submodule(path)
                stack.callback(
                    layer.register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0].clone())).remove
                )
            model(x)
    rank = place.spatial_dims + 2
    maps = {
        path: (gated, plain)
        for path, (gated, plain) in inputs.items()
        if plain.dim() == rank and plain.shape[place.channel_axis] == place.channels
    }
    return [
        path
        for path, (gated, plain) in maps.items()
        if plain.any() and torch.equal(gated, closed(plain)) and not torch.equal(gated, plain)
    ]


def check_inner(model: nn.Module, place: Place, x: Tensor) -> None:
    """Check that closing a filter gives zeros to one reader and that nothing else depends on the filter."""
    maps: list[Tensor] = []
    with changed(model, place, lambda m: maps.append(m) or m):
        output = model(x)
    index = most_active(maps[0], place)
    candidates = {p: m for p, m in layers_with_weights(model).items() if m.weight.shape[0] == place.channels}
    filters_of = filters_read(maps[0].select(place.channel_axis, index).sum(), candidates)
    producers = {path: candidates[path] for path, filters in filters_of.items() if filters == {index}}
    assert producers, f"{place.layer}: no layer makes channel {index} with one filter"

    direction = torch.linspace(-1, 1, output.numel()).view_as(output)
    assert all(index in filters for filters in filters_read((output * direction).sum(), producers).values())
    with changed(model, place, close(place, index)):
        output = model(x)
    for path, filters in filters_read((output * direction).sum(), producers).items():
        assert index not in filters, f"filter {index} of {path} is read elsewhere too"
        assert filters  # the others still count
    assert len(consumers(model, place, index, x)) == 1


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "step"),
    [("resnet18", 1), ("torchvision resnet18", 1), ("resnet50", 7), ("vgg11_bn", 5), ("densenet121", 19)],
)
def test_closed_inner_filter_is_zero_for_its_only_reader(name: str, step: int) -> None:
    for place in places(name, "inner").found[::step]:
        check_inner(network(name), place, IMAGE)


def test_closed_inner_filter_is_zero_for_channels_last() -> None:
    for place in places("convnext_tiny", "inner").found[::5]:
        check_inner(network("convnext_tiny"), place, IMAGE)


@pytest.mark.parametrize(
    ("name", "place", "producer", "reader"),
    [
        ("efficientnet_b0", "blocks.1.0.bn2.act", "blocks.1.0.conv_pw", "blocks.1.0.conv_pwl"),
        ("regnety_004", "s1.b1.conv2.bn.act", "s1.b1.conv2.conv", "s1.b1.conv3.conv"),
    ],
)
def test_filter_closed_before_squeeze_is_closed_for_squeeze(name: str, place: str, producer: str, reader: str) -> None:
    model = network(name)
    (chosen,) = [p for p in places(name, "inner").found if p.layer == place]
    index = most_active(map_at(model, chosen, IMAGE), chosen)
    read: list[Tensor] = []
    handle = model.get_submodule(reader).register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with changed(model, chosen, close(chosen, index)):
        output = model(IMAGE)
    handle.remove()
    direction = torch.linspace(-1, 1, output.numel()).view_as(output)
    filters = filters_read((output * direction).sum(), {producer: model.get_submodule(producer)})
    assert index not in filters[producer]
    assert not read[0][:, index].any()
    assert read[0].any()


def relu_of_shortcut(block: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x if block.downsample is None else block.downsample(x))


SHORTCUTS: dict[str, tuple[str, Callable[[nn.Module, Tensor], Tensor]]] = {
    "resnet18": ("BasicBlock", relu_of_shortcut),
    "resnet50": ("Bottleneck", relu_of_shortcut),
    "torchvision resnet18": ("BasicBlock", relu_of_shortcut),
    "regnety_004": ("Bottleneck", relu_of_shortcut),
    "convnext_tiny": ("ConvNeXtBlock", lambda _, x: x),
    "efficientnet_b0": ("InvertedResidual", lambda _, x: x),
}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_zero_at_residual_ends_turns_blocks_into_shortcuts(name: str) -> None:
    model, (kind, shortcut) = network(name), SHORTCUTS[name]
    residual = [m for m in model.modules() if type(m).__name__ == kind and getattr(m, "has_skip", True)]
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    with contextlib.ExitStack() as stack, torch.no_grad():
        for place in places(name, "residual_end").found:
            stack.enter_context(changed(model, place, torch.zeros_like))
        for block in residual:
            before: list[Tensor] = []
            stack.callback(
                block.register_forward_pre_hook(lambda _, args, to=before: to.append(args[0].clone())).remove
            )
            stack.callback(
                block.register_forward_hook(lambda m, _, out, to=before: seen.append((m, to[0], out.clone()))).remove
            )
        model(IMAGE)
    assert len(seen) == len(residual) == len(RESIDUAL_END[name])
    with torch.no_grad():
        for block, x, y in seen:
            assert x.abs().max() > 0
            torch.testing.assert_close(y, shortcut(block, x))


# --- Hand-made networks: one rule each -------------------------------------------------------------------------------


class Chain(nn.Module):
    """Two convolutions with a chosen module between them, and room for a shortcut."""

    def __init__(self, between: nn.Module, dims: int = 2, shortcut: bool = False) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.first = conv(3, 8, 3, padding=1)
        self.between = between
        self.second = conv(8, 8, 3, padding=1)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(self.between(x))
        return x + y if self.shortcut else y


def test_inner_is_after_norm_activation_and_pooling() -> None:
    layers = nn.Sequential(nn.BatchNorm2d(8), nn.GELU(), nn.MaxPool2d(2))
    assert found(Chain(layers), "inner") == [("between.2", "output", 8)]


def test_inner_is_at_convolution_without_following_layers() -> None:
    assert found(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), "inner") == [("0", "output", 8)]


def test_inner_is_before_dropout() -> None:
    assert found(Chain(nn.Sequential(nn.ReLU(), nn.Dropout2d(0.5))), "inner") == [("between.0", "output", 8)]


@pytest.mark.parametrize("dims", [1, 3])
def test_networks_with_one_and_three_spatial_axes_are_read(dims: int) -> None:
    net = Chain(nn.ReLU(), dims)
    inner = gw.find_places(net, "inner").found
    assert inner == [Place("between", "output", 8, dims)]
    check_inner(net.eval(), inner[0], torch.randn(1, 3, *[6] * dims))
    assert [p.spatial_dims for p in gw.find_places(net, "before_conv").found] == [dims, dims]
    assert found(Chain(nn.ReLU(), dims, shortcut=True), "residual_end") == [("second", "output", 8)]


def test_grouped_readers_and_filters_are_found() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    assert found(net, "inner") == [("0", "output", 8), ("2", "output", 8)]
    for place in gw.find_places(net, "inner").found:
        check_inner(net, place, torch.randn(1, 3, 8, 8))


def test_depthwise_convolution_belongs_to_preceding_filter() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1)
    ).eval()
    assert found(net, "inner") == [("3", "output", 8)]
    check_inner(net, gw.find_places(net, "inner").found[0], torch.randn(1, 3, 8, 8))


def test_widening_depthwise_convolution_is_skipped() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 4, 1))
    result = gw.find_places(net, "inner")
    assert result.found == []
    assert [s.name for s in result.skipped] == ["the network's own forward", "1"]


@pytest.mark.parametrize(
    "mixing",
    [
        nn.GroupNorm(2, 8),
        nn.GroupNorm(1, 8),
        nn.LayerNorm([8, 32, 32]),
        nn.Softmax(1),
        nn.LocalResponseNorm(3),
        nn.ChannelShuffle(2),
    ],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("front_end", ["export", "fx"])
def test_channel_mixing_ends_filter(mixing: nn.Module, front_end: str, request: pytest.FixtureRequest) -> None:
    """After a group norm every channel depends on every filter, so closing one would not save it."""
    if front_end == "fx":
        request.getfixturevalue("no_export")
    result = gw.find_places(Chain(nn.Sequential(mixing, nn.ReLU())), "inner", torch.zeros(2, 3, 32, 32))
    assert result.found == []
    decomposed = front_end == "export" and isinstance(mixing, nn.LocalResponseNorm)
    how = "map is split or reshaped from another one" if decomposed else "channels are mixed before they are read"
    assert f"its {how} (between.0)" in {s.reason for s in result.skipped}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.InstanceNorm2d(8)], ids=lambda m: type(m).__name__)
def test_per_channel_norm_does_not_end_filter(norm: nn.Module) -> None:
    net = Chain(nn.Sequential(norm, nn.ReLU())).eval()
    assert found(net, "inner") == [("between.1", "output", 8)]
    check_inner(net, gw.find_places(net, "inner").found[0], torch.randn(1, 3, 8, 8))


def test_map_read_by_shortcut_is_not_inner() -> None:
    assert found(Chain(nn.ReLU(), shortcut=True), "inner") == []
    assert found(Chain(nn.ReLU(), shortcut=False), "inner") == [("between", "output", 8)]


class OwnGate(nn.Module):
    """A gate that is part of the network: the map is read by the mean and by the product."""

    def __init__(self, factor_first: bool) -> None:
        super().__init__()
        self.fc = nn.Conv2d(8, 8, 1)
        self.factor_first = factor_first

    def forward(self, x: Tensor) -> Tensor:
        factor = self.fc(x.mean((2, 3), keepdim=True)).sigmoid()
        return factor * x if self.factor_first else x * factor


@pytest.mark.parametrize("factor_first", [False, True])
def test_inner_is_before_own_gate_unless_shortcut_reads_map(factor_first: bool) -> None:
    assert found(Chain(OwnGate(factor_first)), "inner") == [("first", "output", 8)]
    assert found(Chain(OwnGate(factor_first), shortcut=True), "inner") == []


class TwoMaps(nn.Module):
    """The difference of two convolutions, one of which the output reads again."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        right = self.right(x)
        y = self.last(self.left(x) - right)
        return y * right if self.again else y


def test_every_combined_map_must_have_one_reader() -> None:
    assert found(TwoMaps(again=False), "inner") == [("last", "input", 8)]
    assert found(TwoMaps(again=True), "inner") == []


def test_input_channels_are_not_filters() -> None:
    result = gw.find_places(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)), "inner")
    assert result.found == []
    assert result.skipped[0].name == "0"


class SharedConvolution(nn.Module):
    """One convolution, used twice, between functional operations: no layer ends there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(F.relu(self.stem(x)))))


def test_map_added_to_itself_is_one_map() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            return x + x

    net = nn.Sequential(Doubled(), nn.Conv2d(8, 4, 3)).eval()
    assert [(place.layer, place.side) for place in gw.find_places(net, "inner").found] == [("0", "output")]
    assert gw.find_places(net, "residual_end").skipped == []


def test_convolution_of_two_filters_in_turn_gets_no_place_and_is_reported() -> None:
    """A gate at its input would act on the filters of the stem at the first call, on its own at the second."""
    result = gw.find_places(SharedConvolution(), "inner")
    assert result.found == []
    assert [s.reason for s in result.skipped] == [
        "its channels are those of the network's input",
        "conv is called 2 times, for channels that different layers make: conv, stem",
    ]


class Branches(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.left, self.right, self.scale = left, right, scale

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.left(x) * self.scale + self.right(x))


def conv(width: int = 3) -> nn.Conv2d:
    return nn.Conv2d(3, width, 3, padding=1)


def test_branches_of_equal_depth_are_skipped() -> None:
    result = gw.find_places(Branches(conv(), conv()), "residual_end")
    assert result.found == []
    assert [s.reason for s in result.skipped] == [
        "both branches of the addition have depth 1: neither of them is a shortcut"
    ]


@pytest.mark.parametrize("swapped", [False, True])
def test_deeper_branch_is_residual_on_either_side_of_sum(swapped: bool) -> None:
    deep, flat = nn.Sequential(conv(), nn.ReLU(), conv(), nn.BatchNorm2d(3)), conv()
    model = Branches(flat, deep) if swapped else Branches(deep, flat)
    assert found(model, "residual_end") == [("right.3" if swapped else "left.3", "output", 3)]


def test_residual_end_is_before_scaling_and_dropout() -> None:
    deep = nn.Sequential(conv(), nn.ReLU(), conv(), nn.Dropout2d(0.5))
    assert found(Branches(deep, nn.Identity(), scale=0.1), "residual_end") == [("left.2", "output", 3)]


def test_residual_end_is_after_group_norm() -> None:
    deep = nn.Sequential(conv(6), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.GroupNorm(3, 3))
    assert found(Branches(deep, nn.Identity()), "residual_end") == [("left.4", "output", 3)]


class InPlaceSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += x
        return y


def test_in_place_sum_is_found() -> None:
    assert found(InPlaceSum(), "residual_end") == [("conv", "output", 3)]


def test_stage_end_is_last_map_before_resolution_changes() -> None:
    net = nn.Sequential(conv(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    assert found(net, "stage_end") == [("1", "output", 8), ("3", "output", 8), ("4", "output", 8)]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.other, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(5, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return self.last(torch.cat([self.image(image), self.other(other)], 1))


def test_network_with_two_inputs_is_read_with_tuple() -> None:
    example = (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 8, 8))
    assert found(TwoInputs(), "stage_end", example) == [("last", "output", 4)]
    assert found(TwoInputs(), "before_conv") == [("image", "input", 3), ("other", "input", 5), ("last", "input", 16)]
    with pytest.raises(ValueError, match="cannot read the structure of TwoInputs"):
        gw.find_places(TwoInputs(), "stage_end")


class Doubled(nn.Module):
    """Stacks its input on itself, so that the first convolution's channels mislead a guess."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(torch.cat([x, x], 1)))


def test_example_gives_unguessable_input() -> None:
    assert found(Doubled(), "inner", torch.zeros(1, 3, 4, 4)) == [("first", "output", 8)]
    with pytest.raises(ValueError, match=r"on \(2, 6, 224, 224\): .*Pass a valid input as example="):
        gw.find_places(Doubled(), "inner")


def test_needed_example_is_guessed_from_attributes_of_network() -> None:
    """CIFAR networks and timm's carry their input size; a fixed linear layer takes no other."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 5 * 7, 2))
    net.input_size = (3, 9, 11)
    assert found(net, "inner") == [("0", "output", 8)]


def test_double_precision_networks_are_read() -> None:
    assert found(Chain(nn.ReLU()).double(), "inner") == [("between", "output", 8)]


def test_lazy_and_transposed_convolutions_are_skipped_with_reason() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(8, 3), nn.ConvTranspose2d(8, 8, 3))
    result = gw.find_places(net, "before_conv")
    assert [p.layer for p in result.found] == ["0"]
    assert [(s.name, s.reason.split(";")[0]) for s in result.skipped] == [
        ("1", "a lazy convolution: its channels are unknown before the first forward"),
        ("2", "a transposed convolution"),
    ]


def test_unknown_place_rejected_with_suggestion() -> None:
    with pytest.raises(ValueError, match=r"unknown place 'inside'.*Did you mean 'inner'"):
        gw.find_places(nn.Conv2d(3, 8, 3), "inside")


# --- Gates already in the network ------------------------------------------------------------------------------------


@pytest.mark.parametrize("inserted", ["gct", "se"])
def test_places_ignore_existing_gates(inserted: str) -> None:
    gated = copy.deepcopy(network("resnet18"))
    gw.insert_gates(gated, inserted, example=SMALL)
    own = Graph(gated, SMALL)
    for place in place_names(marked=False):
        assert gw.find_places(own, place) == places("resnet18", place)


def test_gates_work_again_after_analysis() -> None:
    net = Chain(nn.ReLU())
    gw.insert_gates(net, "se", place="inner")
    before = net(SMALL + 1)
    gw.find_places(net, "inner")
    assert not torch.equal(before, Chain.forward(copy.deepcopy(net), SMALL))
    torch.testing.assert_close(net(SMALL + 1), before, rtol=0, atol=0)
    assert all("forward" not in gate.__dict__ for gate in gw.gates_in(net).values())


def test_analysis_keeps_inference_forms_of_gates() -> None:
    net = Chain(nn.ReLU()).eval()
    gw.insert_gates(net, "gct", place="inner")
    fast = gw.optimize_for_inference(net, SMALL)
    forms = [gate.__dict__["forward"] for gate in gw.gates_in(net).values()]
    gw.find_places(net, "inner", SMALL)
    assert [gate.__dict__["forward"] for gate in gw.gates_in(net).values()] == forms
    fast.undo()


# --- Front ends ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("export is out of order")

    monkeypatch.setattr(torch.export, "export", fail)


@pytest.mark.parametrize("name", sorted(set(INNER) - {"vgg11_bn"}))
def test_torch_fx_finds_same_places_if_torch_export_fails(name: str, no_export: None) -> None:
    by_fx = Graph(network(name))
    for place, layers in {"inner": INNER, "residual_end": RESIDUAL_END, "stage_end": STAGE_END}.items():
        assert [p.layer for p in gw.find_places(by_fx, place).found] == layers[name]


class InRegions(Chain):
    """Runs its layers under contexts, each of which is a graph of its own for torch.export."""

    def __init__(self, *contexts: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        super().__init__(nn.ReLU())
        self.contexts = contexts

    def forward(self, x: Tensor) -> Tensor:
        first, *inner = self.contexts
        with first():
            x = self.first(x)
            with contextlib.ExitStack() as stack:
                for context in inner:
                    stack.enter_context(context())
                y = self.second(self.between(x))
        return y


def autocast() -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", enabled=False)


@pytest.mark.situation("forwards with regions of autocast or without gradients")
@pytest.mark.parametrize(
    "contexts",
    [(autocast,), (torch.no_grad,), (torch.enable_grad, torch.no_grad), (autocast, autocast, torch.enable_grad)],
    ids=["autocast", "no_grad", "no_grad inside enable_grad", "enable_grad inside autocast"],
)
def test_layers_in_regions_are_found(contexts: tuple[Callable[[], contextlib.AbstractContextManager[object]]]) -> None:
    assert found(InRegions(*contexts), "inner", SMALL) == [("between", "output", 8)]


class Undecided(nn.Module):
    """Its graph depends on the values in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else self.conv(x) * 2


def test_unreadable_network_rejected_with_reason() -> None:
    with pytest.raises(ValueError, match="cannot read the structure of Undecided") as error:
        gw.find_places(Undecided(), "inner")
    assert str(error.value) == (
        "cannot read the structure of Undecided (on (2, 3, 224, 224): computed values decide which layers run). "
        "Use the part of the network that takes one tensor, such as the backbone of a detector; or select the "
        "convolutions with before=torch.nn.Conv2d."
    )
    with pytest.raises(ValueError, match=r"run\)\. Use the part of the network .* detector\.$"):  # it has no before=
        gw.GaterNet(Undecided(), image_size=(8, 8))


@pytest.mark.parametrize("shape", [None, (2, 1, 30, 30)])
def test_failing_forward_is_named_without_internals_of_torch(
    shape: tuple[int, ...] | None, capfd: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 28 * 28, 10))
    with pytest.raises(ValueError, match="cannot read the structure of Sequential") as error:
        gw.find_places(net, "inner", None if shape is None else torch.zeros(shape))
    text = str(error.value)
    assert f"on {shape or (2, 1, 224, 224)}: RuntimeError: mat1 and mat2 shapes cannot be multiplied" in text
    assert "Pass a valid input as example=" in text
    assert not any(internal in text for internal in ("<class", "meta", "ShapeProp", "node"))
    assert capfd.readouterr() == ("", "")


def test_failed_reading_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Torch prints its graph and logs a warning where values decide, before it raises."""
    with pytest.raises(ValueError, match="computed values decide"):
        gw.find_places(Undecided(), "inner", SMALL)
    assert capfd.readouterr() == ("", "")


def test_output_of_linear_layer_has_channels_last() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    assert gw.find_places(net, "inner", torch.zeros(1, 5, 6, 4)).found == [Place("1", "output", 8, 2, channel_axis=3)]


def test_network_without_convolutions_needs_example() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"\(it has no convolution, from which an input could be guessed\)\. Pass"):
        gw.find_places(net, "inner")
    assert found(net, "inner", torch.zeros(1, 5, 6, 4)) == [("0", "output", 8)]


# --- The registry ----------------------------------------------------------------------------------------------------


def test_guide_and_page_of_gates_describe_every_place() -> None:
    guide = (ROOT / "docs/guides/insert.md").read_text()
    for name in place_names(marked=False):
        assert f"| `{name}` | {place_kind(name).where} |" in guide
    page = (ROOT / "docs/gates.md").read_text()
    assert all(f"| `{name}` | {place_kind(name).where} |" in page for name in place_names())


@pytest.fixture
def registry() -> Iterator[None]:
    """Remove the places that a test registers."""
    before = dict(PLACES)
    yield
    PLACES.clear()
    PLACES.update(before)


def test_registered_place_is_found_and_gated(registry: None) -> None:
    @register_place("first", where="the input of the first layer", sites="start", needs_graph=False)
    def first(graph: Graph) -> Places:
        return Places([Place(next(iter(graph.modules)) or "first", "input", 3, 2)])

    net = Chain(nn.ReLU())
    assert gw.find_places(net, "first").found == [Place("first", "input", 3, 2)]
    assert list(gw.insert_gates(net, "gct@first").gates) == ["first.gct"]
    assert place_names()[:2] == ("before_conv", "first")
    assert place_kind("first").rule is first
    assert places_by_sites() == {"start": "first", "inner": "inner", "residual": "residual_end"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inner", "place 'inner' is already registered, by inner"),
        ("a b", "the name of a place must consist of letters"),
    ],
)
def test_unusable_name_of_place_rejected(name: str, message: str, registry: None) -> None:
    with pytest.raises(gw.errors.InvalidValueError, match=message):
        register_place(name, where="nowhere")
    assert "nowhere" not in [kind.where for kind in PLACES.values()]


# --- Nothing is changed ----------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Writes to a buffer and to an attribute in its forward, and fails on request."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(()), persistent=False)
        self.last: object = None
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.hidden = self.hidden + 1
        x = self.first(x)
        x = self.second(self.norm(x)) + x
        self.last = x
        if self.fails:
            raise RuntimeError("cannot run")
        return x


def everything(model: nn.Module) -> list[object]:
    """Return all state that an analysis might change."""
    tensors = [*model.state_dict(keep_vars=True).items(), *model.named_buffers()]
    return [
        [(name, id(tensor), tensor.clone().tolist()) for name, tensor in tensors],
        [(name, module.training) for name, module in model.named_modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        model.__dict__.get("last"),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("front_end", ["export", "fx"])
@pytest.mark.parametrize("place", place_names(marked=False))
@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
def test_analysis_leaves_network_unchanged(
    place: str, front_end: str, fails: bool, request: pytest.FixtureRequest
) -> None:
    if front_end == "fx":
        request.getfixturevalue("no_export")
    model = Counting(fails)
    model.train()
    model.norm.eval()  # a mixture of flags, as when fine-tuning
    model.first.weight.requires_grad_(False)
    before = everything(model)
    if fails and place != "before_conv":
        with pytest.raises(ValueError, match="cannot run"):
            gw.find_places(model, place)
    else:
        result = gw.find_places(model, place)
        assert result.found or result.skipped
    assert everything(model) == before


class Several(nn.Module):
    """Returns its map with what `also` makes of it, or takes another argument first."""

    def __init__(self, also: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv, self.also = nn.Conv2d(8, 8, 3, padding=1), also

    def forward(self, embedding: Tensor, x: Tensor) -> object:
        return self.also(self.conv(x).add(embedding).relu())


class Caller(nn.Module):
    """Calls a `Several` and uses its map."""

    def __init__(self, also: Callable[[Tensor], object], first: Callable[[Tensor], Tensor], *, named: bool) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 3), Several(also), nn.Conv2d(8, 2, 1)
        self.first, self.named = first, named

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        first = self.first(x)
        found = self.block(x=x, embedding=first) if self.named else self.block(first, x)
        while not isinstance(found, Tensor):
            found = next(iter(found.values())) if isinstance(found, dict) else found[0]
        return self.head(found)


RETURNED: dict[str, Callable[[Tensor], object]] = {
    "tuple": lambda y: (y, y.mean((2, 3))),
    "list": lambda y: [y],
    "dict": lambda y: {"out": y, "size": 3},
}
FIRST: dict[str, Callable[[Tensor], Tensor]] = {
    "the map is not its first argument": lambda x: x.mean((2, 3), keepdim=True),
    "it is called with several maps of one shape": torch.sigmoid,
}


@pytest.mark.parametrize("kind", RETURNED)
def test_layer_that_returns_more_than_a_map_has_no_gate(kind: str) -> None:
    net = Caller(RETURNED[kind], torch.sigmoid, named=False)
    insertion = gw.insert_gates(net, "se", after=(Several, nn.Conv2d), example=SMALL)
    assert insertion.names == ("stem", "block.conv", "head")
    assert [(one.name, one.reason) for one in insertion.skipped] == [
        ("block", f"it returns a {kind}, not one map; choose a layer inside it")
    ]
    assert net(SMALL).shape == (2, 2, 62, 62)
    for place in place_names(marked=False):
        assert ("block", "output") not in [spot[:2] for spot in found(net, place, SMALL)]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("reason", FIRST)
def test_layer_whose_first_argument_is_not_the_map_has_no_gate(reason: str, named: bool) -> None:
    net = Caller(lambda y: y, FIRST[reason], named=named)
    with pytest.raises(ValueError, match=f"block: (its input is 2 feature maps|{reason}); choose a layer inside it"):
        gw.insert_gates(net, "se", before=Several, example=SMALL)
    gw.insert_gates(net, "se", before=(Several, nn.Conv2d), example=SMALL)
    assert net(SMALL).shape == (2, 2, 62, 62)


def test_map_that_is_given_twice_has_no_gate() -> None:
    class Attending(nn.Module):
        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return query * key

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attending = nn.Conv2d(3, 8, 3), Attending()

        def forward(self, image: Tensor) -> Tensor:
            x = self.stem(image)
            return self.attending(x, x)

    with pytest.raises(ValueError, match="attending: it is called with several maps of one shape"):
        gw.insert_gates(Net(), "se", before=Attending, example=SMALL)


def test_analysis_runs_in_eval_mode_so_dropout_is_invisible() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Conv2d(8, 4, 3)).train()
    modes: list[bool] = []
    net[0].register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trace(net)
    assert modes
    assert not any(modes)
