"""Gates in networks of every kind: fresh gates change nothing, undo restores the network, errors are clear."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import gatewise as gw
from gatewise.graph import Graph, place_names
from support.project import ROOT
from tools.networks_page import NETWORKS, VERSIONS, Network, page, row

PAGE = ROOT / "docs/networks.md"


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def same(left: Any, right: Any) -> bool:
    """Whether two outputs are equal bit for bit, however they are nested."""
    pairs = list(zip(tensors(left), tensors(right), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def hooks(model: nn.Module) -> int:
    own = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return own + sum(len(m._load_state_dict_post_hooks) for m in model.modules())


def open_unevenly(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for gate in gw.gates_in(model).values():
        gate.beta.data.uniform_(-1, 1, generator=generator)


# --- Networks of two libraries ---------------------------------------------------------------------------------------


@pytest.mark.extended
@pytest.mark.parametrize(
    "network",
    [pytest.param(n, marks=[pytest.mark.slow] if n.slow else [], id=f"{n.library}-{n.name}") for n in NETWORKS],
)
@torch.no_grad()
def test_insert_and_undo_leave_network_unchanged(network: Network) -> None:
    model, x = network.build(), network.image()
    before, count, plain = snapshot(model), hooks(model), model(x)
    assert all(out.isfinite().all() for out in tensors(plain))
    graph = Graph(model, x)
    line = row(network, graph)
    if VERSIONS in PAGE.read_text():
        assert line in PAGE.read_text().splitlines(), "docs/networks.md is stale: run make docs"
    for place, found in zip(place_names(marked=False), line.strip("| ").split(" | ")[2:], strict=True):
        if found.partition(" ")[0] == "0":
            with pytest.raises(ValueError, match=rf"no place for gct@{place} in .*Choose a place .*: gct@before_conv"):
                gw.insert_gates(graph, "gct", place=place)
            continue
        insertion = gw.insert_gates(graph, "gct", place=place)
        assert f"{len(insertion.gates)}" == found.partition(" ")[0]
        assert same(model(x), plain)
        model.load_state_dict(before, strict=True)
        if place in {"before_conv", "stage_end"}:
            idle = insertion.check(x)
            assert all(network.training_only and path.startswith(network.training_only) for path in idle)
            open_unevenly(model)
            assert not same(model(x), plain)
        insertion.undo()
    assert hooks(model) == count
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert same(model(x), plain)


def test_page_lists_these_networks_and_matches_generator() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \w+ \| (timm|torchvision) \|", line)]
    assert [tuple(re.findall(r"\w+", line)[:2]) for line in rows] == [(n.name, n.library) for n in NETWORKS]
    without_versions = re.compile(r"timm [\d.]+\S* and torchvision [\d.]+\d")
    assert without_versions.sub("", PAGE.read_text()) == without_versions.sub("", page(rows))


def test_list_covers_many_kinds_of_network() -> None:
    for library, all_of_it, quick in (("timm", 40, 15), ("torchvision", 8, 5)):
        found = [network.slow for network in NETWORKS if network.library == library]
        assert len(found) >= all_of_it
        assert found.count(False) >= quick


# --- A detector ------------------------------------------------------------------------------------------------------


def detector() -> FasterRCNN:
    """Return a Faster R-CNN of ResNet-50 and a feature pyramid whose norms are frozen, for small images."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    )
    for name, norm in backbone.named_modules():
        if isinstance(norm, FrozenBatchNorm2d) and name.endswith("bn3"):
            norm.weight.fill_(0.2)  # frozen norms of random weights keep nothing in bounds
    return FasterRCNN(backbone, num_classes=3, min_size=64, max_size=96, rpn_post_nms_top_n_test=20)


@pytest.mark.extended
def test_detector_trains_with_gates_and_keeps_frozen_norms() -> None:
    model = detector().eval()
    images = [torch.rand(3, 64, 80), torch.rand(3, 64, 64)]
    targets = [
        {"boxes": torch.tensor([[4.0, 6.0, 40.0, 50.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[10.0, 8.0, 60.0, 60.0], [2.0, 2.0, 20.0, 30.0]]), "labels": torch.tensor([2, 1])},
    ]
    before = snapshot(model)
    with torch.no_grad():
        plain = model(images)
    everywhere = gw.insert_gates(model, "gct")
    context = gw.insert_gates(model.backbone.body, "gc", include=r"layer[234]\.")
    assert len(everywhere.gates) == 53 + 8 + 3  # backbone, feature pyramid, region proposals
    assert context.names == tuple(f"layer{s}.{b}.bn3" for s, n in ((2, 4), (3, 6), (4, 3)) for b in range(n))
    with torch.no_grad():
        assert same(model(images), plain)
    model.load_state_dict(before, strict=True)

    model.train()
    optimizer = torch.optim.SGD(gw.parameter_groups(model, weight_decay=1e-4), lr=1e-3)
    losses = model(images, targets)
    loss = sum(losses.values())
    assert loss.isfinite()
    loss.backward()
    gates = gw.gates_in(model)
    assert len(gates) == 64 + 13
    for path, gate in gates.items():
        gradients = [parameter.grad for parameter in gate.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients), path
        assert any(gradient.any() for gradient in gradients), path
    optimizer.step()
    frozen = {name for name, module in model.named_modules() if isinstance(module, FrozenBatchNorm2d)}
    assert len(frozen) == 53
    for key, value in model.state_dict().items():
        if key.rpartition(".")[0] in frozen:
            assert torch.equal(value, before[key]), key
    assert not torch.equal(model.backbone.body.conv1.weight, before["backbone.body.conv1.weight"])

    context.undo()
    everywhere.undo()
    assert list(model.state_dict()) == list(before)


def test_detector_without_graph_error_suggests_backbone() -> None:
    with pytest.raises(ValueError, match="cannot read the structure of FasterRCNN") as error:
        gw.insert_gates(detector(), "gc")
    assert "se the part of the network that takes one tensor, such as the backbone of a detector" in str(error.value)


def test_frozen_norms_count_as_per_channel_norms() -> None:
    """They are written as a product and a sum with constants, which are no gate and no shortcut."""
    body = detector().backbone.body
    inner = gw.find_places(body, "inner", torch.zeros(1, 3, 64, 64)).found
    assert len(inner) == 32  # two in each of 16 units
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), FrozenBatchNorm2d(8), nn.Conv2d(8, 4, 1))
    assert [(p.layer, p.side) for p in gw.find_places(plain, "inner").found] == [("1", "output")]


def test_network_with_several_outputs_has_all_stages() -> None:
    body = detector().backbone.body
    assert isinstance(body, IntermediateLayerGetter)
    stages = gw.find_places(body, "stage_end", torch.zeros(1, 3, 64, 64)).found
    assert [p.layer for p in stages] == ["relu", "layer1.2", "layer2.3", "layer3.5", "layer4.2"]


# --- Small networks, one trait each ----------------------------------------------------------------------------------


class Units(nn.Module):
    """A stem and two residual units in one, two or three dimensions, with grouped and depthwise convolutions."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        self.stem = conv(3, 8, 3, padding=1)
        self.grouped = nn.Sequential(conv(8, 8, 3, padding=1, groups=2), norm(8), nn.ReLU(), conv(8, 8, 1))
        self.down = conv(8, 12, 3, stride=2, padding=1)
        self.depthwise = nn.Sequential(conv(12, 12, 3, padding=1, groups=12), norm(12), nn.ReLU(), conv(12, 12, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.grouped(x)
        x = self.down(x)
        return x + self.depthwise(x)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_networks_of_1d_2d_3d_with_grouped_and_depthwise_convolutions(dims: int) -> None:
    torch.manual_seed(0)
    model, x = Units(dims).eval(), torch.randn(2, 3, *[8] * dims)
    plain, before = model(x), snapshot(model)
    expected = {
        "before_conv": ["stem", "grouped.0", "grouped.3", "down", "depthwise.0", "depthwise.3"],
        "inner": ["grouped.2"],
        "residual_end": ["grouped.3", "depthwise.3"],
    }
    for place, layers in expected.items():
        for gate in ("gct", "gc"):
            insertion = gw.insert_gates(model, gate, place=place, example=x)
            assert list(insertion.names) == layers
            assert {g.spatial_dims for g in insertion.gates.values()} == {dims}
            assert insertion.check(x) == ()
            assert same(model(x), plain)
            model.load_state_dict(before)
            insertion.undo()
    assert list(model.state_dict()) == list(before)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.stem(x)).relu()))


@torch.no_grad()
def test_shared_convolution_has_one_gate_that_runs_at_each_call() -> None:
    model, x = CalledTwice(), torch.randn(2, 3, 6, 6)
    plain = model(x)
    insertion = gw.insert_gates(model, "gct")
    assert insertion.names == ("stem", "shared", "head")
    calls: list[int] = []
    insertion.gates["shared.gct"].register_forward_hook(lambda *_: calls.append(1))
    assert same(model(x), plain)
    assert len(calls) == 2
    assert insertion.check(x) == ()


class ByKeyword(nn.Module):
    """Calls its layers by keyword, which torch allows: the argument of a convolution is called input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.norm(input=self.stem(input=x)).relu())


@torch.no_grad()
def test_layer_called_by_keyword_is_gated() -> None:
    model, x = ByKeyword().eval(), torch.randn(2, 3, 6, 6)
    plain = model(x)
    for options in ({}, {"place": "inner"}, {"after": nn.BatchNorm2d}, {"before": nn.BatchNorm2d}):
        insertion = gw.insert_gates(model, "gct", example=x, **options)
        assert insertion.check(x) == ()
        assert same(model(x), plain)
        insertion.undo()
    gw.insert_gates(model, "gct", include=["head"])
    model.head.gct.beta.fill_(-100.0)  # closes every channel: 1 + tanh(-100) = 0
    assert torch.equal(model(x), model.head.bias.view(1, 4, 1, 1).expand(2, 4, 6, 6))


class PartlyFunctional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.called, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.called(x), self.read.weight, self.read.bias)


@torch.no_grad()
def test_gates_bypassed_by_functional_code_are_reported() -> None:
    model, x = PartlyFunctional(), torch.randn(2, 3, 6, 6)
    plain = model(x)
    insertion = gw.insert_gates(model, "gct")
    assert insertion.check(x) == ("read.gct",)
    assert same(model(x), plain)


@torch.no_grad()
def test_two_gates_on_one_layer_are_removed_one_by_one() -> None:
    torch.manual_seed(0)
    model, x = Units(2).eval(), torch.randn(2, 3, 8, 8)
    plain, before = model(x), snapshot(model)
    first = gw.insert_gates(model, "gct", place="residual_end", example=x)
    second = gw.insert_gates(model, "gc", place="residual_end", example=x)
    with pytest.warns(UserWarning, match="is there twice now"):
        third = gw.insert_gates(model, "gct", place="residual_end", example=x)
    assert first.names == second.names == third.names
    assert list(third.gates) == ["grouped.3.gct_2", "depthwise.3.gct_2"]
    assert len(gw.gates_in(model)) == 6
    assert same(model(x), plain)
    model.load_state_dict(before)
    first.undo()
    assert list(gw.gates_in(model)) == [f"{u}.3.{g}" for u in ("grouped", "depthwise") for g in ("gc", "gct_2")]
    assert same(model(x), plain)
    second.undo()
    third.undo()
    assert list(model.state_dict()) == list(before)


def test_plain_checkpoint_loads_after_gating_network_and_part() -> None:
    model = nn.Sequential(Units(2), nn.Conv2d(12, 4, 1))
    before = snapshot(model)
    gw.insert_gates(model, "gct")
    gw.insert_gates(model[0], "gc", place="residual_end")
    gated = snapshot(model)
    assert model.load_state_dict(before, strict=True).missing_keys == []
    assert model.load_state_dict(gated, strict=True).missing_keys == []
    for lost in ("0.stem.gct.beta", "0.grouped.3.gc.conv_mask.weight", "1.gct.beta"):
        assert lost in gated
        with pytest.raises(RuntimeError, match=rf"Missing key\(s\) in state_dict: \"{re.escape(lost)}\"\. $"):
            model.load_state_dict({key: value for key, value in gated.items() if key != lost}, strict=True)


class Caching(nn.Module):
    """Keeps a table made in its first forward, as attention biases are kept, and counts in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.cache = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), {}
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        if "table" not in self.cache:
            self.cache["table"] = self.stem.bias.view(1, 8, 1, 1) * 2
        return self.head((self.stem(x) + self.cache["table"]).relu())


@torch.no_grad()
def test_reading_graph_leaves_caches_of_network_empty() -> None:
    model = Caching()
    gw.find_places(model, "inner")
    assert model.cache == {}
    assert model.forwards == 0
    assert type(model(torch.zeros(1, 3, 4, 4))) is Tensor


def test_channel_shuffle_is_not_a_stage() -> None:
    class Shuffling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x.view(-1, 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
            return self.head(x)

    stages = gw.find_places(Shuffling(), "stage_end").found
    assert [(p.layer, p.side) for p in stages] == [("head", "input"), ("head", "output")]
    assert {p.spatial_dims for p in stages} == {2}


def test_parts_of_split_map_are_not_shortcuts() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.stem(x).chunk(2, 1)
            return torch.cat([left, right + self.conv(left)], 1)

    result = gw.find_places(Split(), "residual_end")
    assert result.found == []
    assert [s.reason for s in result.skipped] == [
        "the branches of the addition start from different chunks of a split map"
    ]


class Sum(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


def convs(count: int) -> list[nn.Module]:
    return [nn.Conv2d(3, 3, 3, padding=1) for _ in range(count)]


def test_parallel_layers_and_deep_summands_are_not_shortcuts() -> None:
    cases = [
        (
            nn.Sequential(*convs(1), nn.BatchNorm2d(3)),
            nn.BatchNorm2d(3),
            "one branch of the addition has only a normalisation",
        ),
        (nn.Sequential(*convs(3)), nn.Sequential(*convs(2)), "the shallow branch of the addition has depth 2"),
    ]
    for left, right, reason in cases:
        for model in (Sum(left, right), Sum(right, left)):
            result = gw.find_places(model, "residual_end")
            assert result.found == []
            assert [s.reason.startswith(reason) for s in result.skipped] == [True]


def test_shortcut_may_have_depthwise_layer_before_projection() -> None:
    """GhostNet's has."""
    shortcut = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    found = gw.find_places(Sum(nn.Sequential(*convs(3)), shortcut), "residual_end").found
    assert [p.layer for p in found] == ["left.2"]


def test_layer_scale_is_not_an_own_gate_of_network() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.rand(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Scale(), nn.Conv2d(8, 4, 1))
    assert [p.layer for p in gw.find_places(model, "inner").found] == ["2"]


def test_token_channels_stay_last_axis_through_reshape() -> None:
    class Tokens(nn.Module):
        """Normalises tokens over samples and positions at once, as LeViT does."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc, self.norm = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)  # (N, L, 8)
            y = self.fc(tokens)
            return self.norm(y.flatten(0, 1)).reshape_as(y) + tokens

    result = gw.find_places(Tokens(), "residual_end")
    assert result.found == []  # tokens are no map
    assert result.skipped == []
