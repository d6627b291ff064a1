"""Inserting gates in real networks: outputs unchanged until trained, all tools still work, undo restores."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gatewise as gw
from gatewise.errors import GatewiseError, InvalidValueError
from gatewise.gates.spec import parse_gates
from gatewise.graph import Graph, place_names
from gatewise.insertion.insert import insert_all

MODELS = ("resnet18", "resnet50", "densenet121", "vgg11_bn", "efficientnet_b0", "convnext_tiny")
LARGE = ("densenet121", "vgg11_bn", "convnext_tiny")


def network(name: str) -> nn.Module:
    """Return a network without branches that start at zero, where no gate would have an effect."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for path, parameter in model.named_parameters():
        if path.endswith((".bn2.weight", ".bn3.weight", ".gamma")):  # zero in timm's ResNets, 1e-6 in its ConvNeXt
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 64, 64), generator=torch.Generator().manual_seed(1))


def chain(dims: int = 2) -> nn.Sequential:
    """Return conv (3 to 8), ReLU, conv (8 to 4)."""
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return nn.Sequential(conv(3, 8, 3), nn.ReLU(), conv(8, 4, 3)).eval()


def stir(model: nn.Module) -> None:
    """Give the gates weights that change the output."""
    generator = torch.Generator().manual_seed(2)
    for gate in gw.gates_in(model).values():
        for parameter in gate.parameters():
            parameter.data.normal_(generator=generator)


def hooks(model: nn.Module) -> int:
    own = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return own + sum(len(m._load_state_dict_post_hooks) for m in model.modules())


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


# --- Fresh identity gates and undo -----------------------------------------------------------------------------------


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in MODELS])
def real(request: pytest.FixtureRequest) -> nn.Module:
    return network(request.param)


@torch.no_grad()
def test_identity_gates_keep_outputs_bitwise_and_undo_state_dict(real: nn.Module) -> None:
    x, before, count = image(2, 3, 32, 32), snapshot(real), hooks(real)
    plain = real(x)
    inserted, graph = 0, Graph(real, x)
    for gate, place in [("gct", p) for p in place_names(marked=False)] + [("gc", "residual_end"), ("gc", "stage_end")]:
        try:
            insertion = gw.insert_gates(graph, gate, place=place)
        except ValueError as error:
            assert place == "residual_end", error  # noqa: PT017  (DenseNet and VGG have no residual branches)
            continue
        inserted += 1
        assert insertion.check(x) == ()
        assert torch.equal(real(x), plain)
        assert [key for key in real.state_dict() if f".{gate}." not in key] == list(before)
        insertion.undo()
        assert hooks(real) == count
        assert gw.gates_in(real) == {}
        assert same_bits(real.state_dict(), before)
    assert inserted in {4, 6}


@torch.no_grad()
def test_trained_gates_change_output_at_every_place() -> None:
    x = image(2, 3, 32, 32)
    for place in place_names(marked=False):
        model = network("resnet18")
        plain = model(x)
        gw.insert_gates(model, "gct", place=place, example=x)
        stir(model)
        assert not torch.allclose(model(x), plain)


def test_official_gct_resnet50_has_53_gates_and_25624625_parameters() -> None:
    model = network("resnet50")
    insertion = gw.insert_gates(model, "gct")
    assert len(insertion.gates) == len(insertion.names) == 53
    assert insertion.names[:2] == ("conv1", "layer1.0.conv1")
    assert "layer1.0.downsample.0" in insertion.names
    assert sum(p.numel() for p in model.parameters()) == 25_624_625


def test_network_parameters_keep_names_and_identity() -> None:
    model = network("resnet18")
    own = dict(model.named_parameters())
    gw.insert_gates(model, "gct")
    after = {name: p for name, p in model.named_parameters() if ".gct." not in name}
    assert list(after) == list(own)
    assert all(after[name] is own[name] for name in own)


def test_undo_can_be_called_twice_and_empties_insertion() -> None:
    net = chain()
    insertion = gw.insert_gates(net, "gct")
    insertion.undo()
    insertion.undo()
    assert (insertion.names, insertion.gates) == ((), {})
    assert list(net.state_dict()) == list(chain().state_dict())


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def test_plain_checkpoint_loads_strictly_and_gates_keep_values() -> None:
    checkpoint = network("resnet18").state_dict()
    torch.manual_seed(7)
    model = timm.create_model("resnet18")
    gw.insert_gates(model, "gct")
    stir(model)
    gates = {key: value.clone() for key, value in model.state_dict().items() if ".gct." in key}
    assert model.load_state_dict(checkpoint, strict=True).missing_keys == []
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in (checkpoint | gates).items())
    assert len(state) == len(checkpoint) + len(gates)


def test_gated_checkpoint_loads_strictly() -> None:
    model, other = network("resnet18"), network("resnet18")
    for one in (model, other):
        gw.insert_gates(one, "gct")
    stir(model)
    other.load_state_dict(model.state_dict(), strict=True)
    assert same_bits(other.state_dict(), model.state_dict())


def test_missing_gate_in_gated_checkpoint_is_reported() -> None:
    model = network("resnet18")
    gw.insert_gates(model, "gct")
    checkpoint = {k: v for k, v in model.state_dict().items() if not k.startswith("layer3.0.conv1.gct.")}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"layer3\.0\.conv1\.gct\.alpha"'):
        model.load_state_dict(checkpoint, strict=True)


def test_missing_weight_in_plain_checkpoint_is_reported() -> None:
    model = network("resnet18")
    checkpoint = model.state_dict()
    gw.insert_gates(model, "gct")
    del checkpoint["layer3.0.conv1.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "layer3.0.conv1.weight"\. $'):
        model.load_state_dict(checkpoint, strict=True)


def test_plain_checkpoint_loads_into_gated_submodule() -> None:
    model = chain()
    checkpoint = {f"net.inner.{key}": value for key, value in model.state_dict().items()}
    gw.insert_gates(model, "gct")
    wrapped = nn.ModuleDict({"net": nn.ModuleDict({"inner": model})})
    assert wrapped.load_state_dict(checkpoint, strict=True).missing_keys == []


@pytest.mark.situation("A part of a network with gates loads the file of the plain part")
@pytest.mark.parametrize("part", ["layer3", "layer3.0", "layer3.0.conv1", "layer3, in another module"])
def test_plain_checkpoint_loads_into_part(part: str) -> None:
    path, _, within = part.partition(", ")
    checkpoint = network("resnet18").get_submodule(path).state_dict()
    model = network("resnet18")
    gw.insert_gates(model, "gct")
    stir(model)
    gates = {key: value.clone() for key, value in model.state_dict().items() if ".gct." in key}
    loaded = model.get_submodule(path)
    if within:
        checkpoint = {f"0.{key}": value for key, value in checkpoint.items()}
        loaded = nn.Sequential(loaded)
    assert loaded.load_state_dict(checkpoint, strict=True).missing_keys == []
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in gates.items())
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in checkpoint.items())


@pytest.mark.parametrize("part", ["", "layer3", "layer3.0"])
def test_missing_part_of_gates_is_reported_at_every_level(part: str) -> None:
    model = network("resnet18")
    gw.insert_gates(model, "gct")
    loaded = model.get_submodule(part)
    keys = [key for key in loaded.state_dict() if ".gct." in f".{key}" and "conv1" in key]
    checkpoint = {key: value for key, value in loaded.state_dict().items() if key not in keys}
    assert set(loaded.load_state_dict(checkpoint, strict=False).missing_keys) == set(keys) != set()


def test_plain_checkpoint_loads_after_failed_load() -> None:
    model = chain()
    checkpoint = snapshot(model)
    gw.insert_gates(model, "gct")
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({**checkpoint, "0.weight": torch.zeros(1)})
    assert model.load_state_dict(checkpoint, strict=True).missing_keys == []


def test_plain_checkpoint_loads_into_layer_with_two_names() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.again = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x)

    model = Shared()
    checkpoint = snapshot(model)
    gw.insert_gates(model, "gct")
    assert model.load_state_dict(checkpoint, strict=True).missing_keys == []


def test_plain_checkpoint_loads_after_one_of_two_undos() -> None:
    model = chain()
    checkpoint = snapshot(model)
    first = gw.insert_gates(model, "gct")
    gw.insert_gates(model, "gct", after=nn.ReLU)
    first.undo()
    assert list(gw.gates_in(model)) == ["1.gct"]
    assert model.load_state_dict(checkpoint, strict=True).missing_keys == []


def test_plain_network_rejects_gated_checkpoint() -> None:
    model = chain()
    gw.insert_gates(model, "gct")
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\).*"0\.gct\.alpha"'):
        chain().load_state_dict(model.state_dict(), strict=True)


# --- Copying, saving, exporting, compiling ---------------------------------------------------------------------------


@torch.no_grad()
def test_deepcopy_calls_its_own_gates() -> None:
    model, x = network("resnet18"), image()
    gw.insert_gates(model, "gct")
    twin, plain = copy.deepcopy(model), model(x)
    stir(twin)
    assert torch.equal(model(x), plain)
    assert not torch.allclose(twin(x), plain)


@torch.no_grad()
def test_pickle_keeps_working_gates_of_the_copy() -> None:
    model, x = network("resnet18"), image()
    checkpoint = snapshot(model)
    gw.insert_gates(model, "gct", place="residual_end", example=x)
    stir(model)
    gated = model(x)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(x), gated)
    assert twin.load_state_dict(checkpoint, strict=True).missing_keys == []
    for gate in gw.gates_in(twin).values():
        gate.gamma.zero_()
        gate.beta.zero_()
    assert not torch.allclose(twin(x), gated)
    assert torch.equal(model(x), gated)


@torch.no_grad()
def test_torch_save_and_load_of_network(tmp_path: Path) -> None:
    model, x = chain(), image(2, 3, 8, 8)
    gw.insert_gates(model, "se", place="inner")
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize("place", ["before_conv", "residual_end"])
def test_torch_export_agrees(place: str) -> None:
    model, x = network("resnet18"), image()
    gw.insert_gates(model, "gct", place=place, example=x)
    stir(model)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-4)
    assert program.module()(image(3, 3, 64, 64)).shape == (3, 1000)


@pytest.mark.extended
@torch.no_grad()
def test_torch_compile_in_one_graph_agrees() -> None:
    model, x = network("resnet18"), image()
    gw.insert_gates(model, "gct")
    gw.insert_gates(model, "se", place="residual_end", example=x)
    stir(model)
    plain = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item())


def test_onnx_runtime_agrees(tmp_path: Path) -> None:
    import onnxruntime

    model, x = chain(), image(2, 3, 8, 8)
    gw.insert_gates(model, "gct")
    gw.insert_gates(model, "gc", place="inner")
    stir(model)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_timm_methods_still_work() -> None:
    model, x = network("resnet18"), image()
    insertion = gw.insert_gates(model, "gct", place="residual_end", example=x)
    assert model.forward_features(x).shape == (2, 512, 2, 2)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    assert model.num_classes == 5
    assert insertion.check(x) == ()


@pytest.mark.parametrize("gate", ["gct", "se", "gc"])
def test_training_step_changes_gates(gate: str) -> None:
    model = network("resnet18").train()
    insertion = gw.insert_gates(model, gate, example=image())
    before = snapshot(model)
    optimizer = torch.optim.SGD(gw.parameter_groups(model), lr=0.1)
    F.cross_entropy(model(image()), torch.tensor([1, 2])).backward()
    optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    learned = {"gct": "gamma", "se": "fc2.weight", "gc": "channel_add_conv.3.weight"}[gate]
    assert {f"{path}.{learned}" for path in insertion.gates} <= moved


# --- Two gates on one layer, gates on gates --------------------------------------------------------------------------


class Scale(gw.Gate):
    """Multiplies by a number, then adds one: the order of two such gates shows in the result."""

    def __init__(
        self, channels: int, *, factor: float = 2.0, spatial_dims: int = 2, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.factor = nn.Parameter(torch.tensor(factor, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + 1


class Shift(Scale):
    """A second class, for other names."""


@torch.no_grad()
@pytest.mark.parametrize("side", ["before", "after"])
def test_two_gates_on_one_layer_run_in_order_of_insertion(side: str) -> None:
    net, x = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1)), image(2, 3, 4, 4)
    gw.insert_gates(net, Scale, factor=2.0, **{side: nn.ReLU}, example=x)
    with pytest.warns(UserWarning, match="is there twice now, at 0"):
        gw.insert_gates(net, Scale, factor=10.0, **{side: nn.ReLU}, example=x)
    assert {path: gate.factor.item() for path, gate in gw.gates_in(net).items()} == {"0.scale": 2, "0.scale_2": 10}

    def both(m: Tensor) -> Tensor:
        return (m * 2 + 1) * 10 + 1

    assert torch.equal(net(x), net[1](both(x).relu() if side == "before" else both(x.relu())))


@torch.no_grad()
def test_undoing_one_of_two_gates_keeps_the_other() -> None:
    net, x = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1)), image(2, 3, 4, 4)
    first = gw.insert_gates(net, Scale, after=nn.ReLU, factor=2.0, example=x)
    gw.insert_gates(net, Shift, after=nn.ReLU, factor=10.0, example=x)
    first.undo()
    assert list(gw.gates_in(net)) == ["0.shift"]
    assert torch.equal(net(x), net[1](x.relu() * 10 + 1))


def test_gates_in_uses_own_path_of_gate() -> None:
    net = chain()
    insertion = gw.insert_gates(net, "gct")
    assert list(gw.gates_in(net)) == ["0.gct", "2.gct"] == list(insertion.gates)
    assert all(net.get_submodule(path) is gate for path, gate in gw.gates_in(net).items())
    assert gw.gates_in(nn.Sequential(nn.Conv2d(3, 8, 3))) == {}


@pytest.mark.parametrize("first", ["gct", "se"])
@pytest.mark.parametrize("options", [{"place": "before_conv"}, {"before": nn.Conv2d}, {"after": nn.Conv2d}])
def test_no_gate_is_inserted_inside_another(first: str, options: dict[str, Any]) -> None:
    """The convolutions of a squeeze-and-excitation belong to it."""
    net = chain()
    gw.insert_gates(net, first, place="inner")
    insertion = gw.insert_gates(net, "gct", **options)
    assert insertion.names == ("0", "2")
    assert all(path.count(".") == 1 for path in gw.gates_in(net))


@pytest.mark.extended
@pytest.mark.parametrize("text", ["se+gct", "gct+gct@inner", "gct@inner+se@inner", "gc+gc@residual_end+gct@stage_end"])
@pytest.mark.filterwarnings("ignore:a gate of this kind was already at this place")
def test_insert_all_places_each_gate_as_if_alone(text: str) -> None:
    together = insert_all(network("resnet18"), parse_gates(text), image())
    alone = [gw.insert_gates(network("resnet18"), choice, example=image()) for choice in parse_gates(text)]
    assert [i.places for i in together] == [i.places for i in alone]


def test_gate_gets_name_unused_by_layer() -> None:
    net = chain()
    net[0].gct = "taken"
    insertion = gw.insert_gates(net, "gct", include=["0"])
    assert list(insertion.gates) == ["0.gct_2"]
    insertion.undo()
    assert net[0].gct == "taken"


# --- Choosing layers -------------------------------------------------------------------------------------------------


def test_default_place_is_that_of_paper() -> None:
    assert gw.insert_gates(network("resnet18"), "gct").names[0] == "conv1"
    assert gw.insert_gates(network("resnet18"), "se", example=image()).names[0] == "layer1.0.bn2"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"include": "layer2"}, ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"]),
        ({"include": r"layer2\.0\.conv\d$"}, ["layer2.0.conv1", "layer2.0.conv2"]),
        ({"include": ["layer2.0"]}, ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"]),
        ({"include": ["conv1"]}, ["conv1"]),
        ({"include": ["layer2", "conv1"], "exclude": "conv2"}, ["conv1", "layer2.0.conv1", "layer2.0.downsample.0"]),
        ({"include": "layer2", "exclude": ["layer2.0.downsample"]}, ["layer2.0.conv1", "layer2.0.conv2"]),
        ({"where": lambda _, layer: layer.in_channels == 3}, ["conv1"]),
        ({"where": lambda name, _: name == "layer4.1.conv2"}, ["layer4.1.conv2"]),
    ],
)
def test_include_exclude_and_where_choose_layers(options: dict[str, Any], names: list[str]) -> None:
    insertion = gw.insert_gates(network("resnet18"), "gct", **options)
    chosen = [name for name in insertion.names if not name.startswith("layer2.1")]
    assert chosen == names
    reason = {s.reason for s in insertion.skipped}
    assert reason <= {"not in include", "in exclude", "where() is false for it"}
    assert len(insertion.skipped) + len(insertion.names) == 20


def test_listed_layer_matches_itself_and_children_not_prefixes() -> None:
    net = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(12)))
    assert gw.insert_gates(net, "gct", include=["1"]).names == ("1",)
    assert gw.insert_gates(net, "se@before_conv", include="^1").names == ("1", "10", "11")


def test_before_and_after_choose_layers_by_type() -> None:
    x = image(2, 3, 32, 32)
    assert gw.insert_gates(
        network("vgg11_bn"), "gct", before=nn.BatchNorm2d, include="features", example=x
    ).names == tuple(f"features.{layer}" for layer in (1, 5, 9, 12, 16, 19, 23, 26))
    net = chain()
    insertion = gw.insert_gates(net, "gct", after=(nn.ReLU, nn.Conv2d))
    assert {p.layer: (p.side, p.channels) for p in insertion.places} == {
        "0": ("output", 8),
        "1": ("output", 8),
        "2": ("output", 4),
    }
    assert {p.layer: (p.side, p.channels) for p in gw.insert_gates(chain(), "gct", before=nn.ReLU).places} == {
        "1": ("input", 8)
    }


def test_before_convolution_needs_no_graph() -> None:
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else self.conv(x) * 2

    assert gw.insert_gates(Undecided(), "gct", before=nn.Conv2d).names == ("conv",)
    with pytest.raises(ValueError, match="cannot read the structure of Undecided"):
        gw.insert_gates(Undecided(), "gct", after=nn.Conv2d)


def test_sequential_is_skipped() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Conv2d(8, 4, 3))
    with pytest.raises(ValueError, match="0: a Sequential would also run the gate as one of its children"):
        gw.insert_gates(net, "gct", after=nn.Sequential)
    insertion = gw.insert_gates(net, "gct", after=(nn.Sequential, nn.ReLU))
    assert insertion.names == ("0.1",)
    assert [s.name for s in insertion.skipped] == ["0"]


class TwoMaps(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x * 3


class Parts(nn.Module):
    """Layers that cannot be guarded by one gate, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.stem, self.wide = TwoMaps(), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1)
        self.act, self.unused, self.fc = nn.ReLU(), nn.ReLU6(), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.pair(x)
        x = self.act(self.wide(self.act(self.stem(left + right))))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        (TwoMaps, "pair", "its output is 2 feature maps; choose a layer inside it"),
        (nn.ReLU, "act", "its calls have different numbers of channels: [8, 16]"),
        (nn.ReLU6, "unused", "its output is not a feature map, or forward does not call it"),
        (nn.Linear, "fc", "its output is not a feature map, or forward does not call it"),
    ],
)
def test_layer_without_fitting_gate_is_skipped_with_reason(kind: type, name: str, reason: str) -> None:
    insertion = gw.insert_gates(Parts(), "gct", after=(kind, nn.Conv2d))
    assert insertion.names == ("stem", "wide")
    assert [(s.name, s.reason) for s in insertion.skipped] == [(name, reason)]
    with pytest.raises(ValueError, match=re.escape(f"({name}: {reason})")):
        gw.insert_gates(Parts(), "gct", after=kind)


@torch.no_grad()
def test_convolution_used_twice_has_one_gate_that_runs_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    net, x = Shared(), image(2, 3, 4, 4)
    insertion = gw.insert_gates(net, Scale, place="before_conv", factor=3.0)
    weight, bias = net.conv.weight, net.conv.bias
    assert list(insertion.gates) == ["conv.scale"]
    assert torch.equal(net(x), F.conv2d(F.conv2d(x * 3 + 1, weight, bias) * 3 + 1, weight, bias))
    assert gw.insert_gates(Shared(), "gct", after=nn.Conv2d).names == ("conv",)


def test_single_convolution_can_be_gated() -> None:
    net = nn.Conv2d(3, 8, 3)
    insertion = gw.insert_gates(net, "gct")
    assert list(insertion.gates) == ["gct"]
    insertion.undo()
    assert list(net.state_dict()) == ["weight", "bias"]


@torch.no_grad()
def test_gate_is_on_channel_axis_of_channels_last_code() -> None:
    model, x = network("convnext_tiny"), image(2, 3, 32, 32)
    insertion = gw.insert_gates(model, "gct", place="inner", include=["stages.0.blocks.0"], example=x)
    (gate,) = insertion.gates.values()
    assert gate.channels == 384
    maps: list[Tensor] = []
    act, fc2 = model.stages[0].blocks[0].mlp.act, model.stages[0].blocks[0].mlp.fc2
    fc2.register_forward_pre_hook(lambda _, args: maps.append(args[0]))
    act.register_forward_hook(lambda *args: maps.append(args[-1]))
    model(x)
    maps.clear()
    gate.beta.view(-1)[7] = -100.0  # closes channel 7: 1 + tanh(-100) = 0
    model(x)
    after_gate = maps[-1]
    assert after_gate.shape[-1] == 384
    assert not after_gate[..., 7].any()
    assert after_gate.count_nonzero() > 0.9 * after_gate.numel() * 383 / 384


# --- Shapes, types, modes --------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("gate", ["gct", "gc"])
def test_gates_have_rank_of_network(dims: int, gate: str) -> None:
    net, x = chain(dims), image(2, 3, *[8] * dims)
    plain = net(x)
    for place in ("before_conv", "inner"):
        insertion = gw.insert_gates(net, gate, place=place, example=x)
        assert {gate.spatial_dims for gate in insertion.gates.values()} == {dims}
        assert torch.equal(net(x), plain)


def test_gate_has_dtype_and_device_of_layer() -> None:
    net = chain().double()
    gw.insert_gates(net, "se", place="inner")
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert net(image(2, 3, 8, 8).double()).dtype == torch.float64
    with torch.device("meta"):
        abstract = chain()
    gw.insert_gates(abstract, "gct")
    assert {p.device.type for p in abstract.parameters()} == {"meta"}


@pytest.mark.parametrize("training", [True, False])
def test_gate_has_mode_of_layer(training: bool) -> None:
    net = chain().train(not training)
    net[2].train(training)
    insertion = gw.insert_gates(net, "gct")
    assert {path: gate.training for path, gate in insertion.gates.items()} == {"0.gct": not training, "2.gct": training}


# --- check -----------------------------------------------------------------------------------------------------------


class Bypassing(nn.Module):
    """Reads one convolution's weight instead of calling it, and counts its forwards in buffers."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.called, self.norm, self.read = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.register_buffer("forwards", torch.zeros(()))
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        x = self.norm(self.called(x))
        if self.fails:
            raise RuntimeError("cannot run")
        return F.conv2d(x, self.read.weight)


@pytest.mark.parametrize("fails", [False, True])
def test_check_reports_unreached_gates_and_restores_network(fails: bool) -> None:
    net = Bypassing(fails).train()
    net.norm.eval()
    insertion = gw.insert_gates(net, "gct")
    before, count = snapshot(net), hooks(net)
    flags = [module.training for module in net.modules()]
    if fails:
        with pytest.raises(RuntimeError, match="cannot run"):
            insertion.check(image(2, 3, 4, 4))
    else:
        assert insertion.check(image(2, 3, 4, 4)) == ("read.gct",)
    assert [module.training for module in net.modules()] == flags
    assert same_bits(net.state_dict(), before)
    assert hooks(net) == count
    assert torch.is_grad_enabled()


def test_check_runs_in_eval_mode_and_keeps_statistics() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()).train()
    insertion = gw.insert_gates(net, "gct", after=nn.BatchNorm2d)
    assert insertion.check(image(1, 3, 1, 1)) == ()  # one value per channel: BatchNorm cannot train on it
    assert net[1].num_batches_tracked == 0
    assert net.training


def test_check_accepts_all_inputs_of_network() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.conv(x) * scale

    x, scale = image(2, 3, 4, 4), torch.ones(())
    assert gw.insert_gates(TwoInputs(), "gct").check(x, scale) == ()
    assert gw.insert_gates(TwoInputs(), "gct", after=nn.Conv2d, example=(x, scale)).names == ("conv",)


@pytest.mark.parametrize(
    ("include", "near"),
    [
        ("layr4", "'layer4', 'layer4.1', 'layer4.0'"),
        (r"^layer9\\.", "'layer4', 'layer3', 'layer2'"),
        ("layer1.0.con1", "'layer1.0.conv1', 'layer4.0.conv1', 'layer3.0.conv1'"),
        (["fc"], "'conv1', 'layer1.0.conv1', 'layer1.0.conv2'"),
        ([], "'conv1', 'layer1.0.conv1', 'layer1.0.conv2'"),
        ("zzz", "'conv1', 'layer1.0.conv1', 'layer1.0.conv2'"),
    ],
)
def test_include_that_matches_nothing_is_told_nearest_names(include: str | list[str], near: str) -> None:
    with pytest.raises(ValueError, match="matches none of the 20 layers that have one") as error:
        gw.insert_gates(network("resnet18"), "gct", include=include)
    assert str(error.value).endswith(f"The nearest names are {near}.")


def test_unknown_layer_is_told_few_names() -> None:
    with pytest.raises(ValueError, match="unknown layer 'conv99'") as error:
        gw.insert_gates(network("resnet18"), "gct", exclude=["conv99"])
    assert str(error.value).count("'") <= 14
    assert "'conv1'" in str(error.value)
    assert str(error.value).endswith("in all). Did you mean 'conv1'?")


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_no_match_rejected_with_reasons_and_next_step() -> None:
    with pytest.raises(ValueError, match="no place for se in DenseNet") as error:
        gw.insert_gates(network("densenet121"), "se", example=image())
    assert "(the network has no such place). Choose a place that it has: se@before_conv (120), se@inner" in str(
        error.value
    )
    with pytest.raises(ValueError, match=r"no place for gct in Sequential \(0: in exclude; 2: in exclude\)\. Change"):
        gw.insert_gates(chain(), "gct", exclude=["0", "2"])
    linear = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"\(it has no convolution\)\. Gates act on feature maps \(N, C, \*S\)"):
        gw.insert_gates(linear, "gct")
    with pytest.raises(ValueError, match=r"\(it has no layer of the given types\)\. Choose .*gct@before_conv \(2\)"):
        gw.insert_gates(chain(), "gct", before=nn.Conv3d)
    with pytest.raises(ValueError, match="no place for gct"):
        gw.insert_gates(chain(), "gct", before=())


@pytest.mark.parametrize("side", ["include", "exclude"])
def test_missing_listed_layer_rejected_with_suggestion(side: str) -> None:
    with pytest.raises(ValueError, match=r"unknown layer 'layer2\.0\.cnv1'.*Did you mean 'layer2\.0\.conv1'\?"):
        gw.insert_gates(network("resnet18"), "gct", **{side: ["layer2.0.cnv1"]})


@pytest.mark.parametrize(
    "options",
    [
        {"place": "inner", "before": nn.Conv2d},
        {"place": "inner", "after": nn.ReLU},
        {"before": nn.Conv2d, "after": nn.ReLU},
    ],
)
@pytest.mark.parametrize("gate", ["gct", Scale])
def test_combined_place_before_and_after_rejected(gate: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give only one of place=, before= and after="):
        gw.insert_gates(chain(), gate, **options)


def test_place_in_string_is_used() -> None:
    with pytest.raises(ValueError, match="give only one of place=, before= and after="):
        gw.insert_gates(chain(), "gct@inner", before=nn.Conv2d)
    with pytest.raises(ValueError, match="'gct@inner' has a place and place='before_conv' is given; give only one"):
        gw.insert_gates(chain(), "gct@inner", place="before_conv")
    assert gw.insert_gates(chain(), "gct@inner", place="inner").names == ("1",)


def test_unknown_gate_option_or_place_rejected_with_suggestion() -> None:
    with pytest.raises(ValueError, match=r"unknown gate 'gctt'; expected one of .*Did you mean 'gct'\?"):
        gw.insert_gates(chain(), "gctt")
    with pytest.raises(ValueError, match=r"unknown option of gate 'gct' 'mod'; .*Did you mean 'mode'\?"):
        gw.insert_gates(chain(), "gct", mod="l1")
    for gate in ("gct", Scale):
        with pytest.raises(ValueError, match=r"unknown place 'residual'.*Did you mean 'residual_end'\?"):
            gw.insert_gates(chain(), gate, place="residual")


def test_non_gate_rejected() -> None:
    with pytest.raises(TypeError, match="gate must be a name such as 'gct', a GateChoice or a Gate class, got"):
        gw.insert_gates(chain(), nn.ReLU)
    with pytest.raises(TypeError, match="gate must be a name such as 'gct', a GateChoice or a Gate class, got 3"):
        gw.insert_gates(chain(), 3)


def test_class_needs_place() -> None:
    with pytest.raises(ValueError, match="a gate given as a class needs place=, before= or after="):
        gw.insert_gates(chain(), Scale)


class Fussy(Scale):
    """Rejects maps of 8 channels, as a gate may, after others were inserted."""

    def __init__(self, channels: int, **options: Any) -> None:
        if channels == 8:
            raise RuntimeError("not 8 channels")
        super().__init__(channels, **options)


def test_failed_insertion_is_undone() -> None:
    net = chain()
    before, count = snapshot(net), hooks(net)
    with pytest.raises(RuntimeError, match="not 8 channels"):
        gw.insert_gates(net, Fussy, place="before_conv")
    assert same_bits(net.state_dict(), before)
    assert hooks(net) == count
    assert [name for name, _ in net.named_modules()] == [name for name, _ in chain().named_modules()]


@pytest.mark.parametrize("options", [{}, {"place": "residual_end"}, {"include": ["9"]}])
def test_rejected_insertion_leaves_network_unchanged(options: dict[str, Any]) -> None:
    net = chain().train()
    before, count = snapshot(net), hooks(net)
    with pytest.raises(ValueError, match=r"no place for|unknown layer|unknown mode"):
        gw.insert_gates(net, "gct", **options or {"mode": "l3"})
    assert same_bits(net.state_dict(), before)
    assert hooks(net) == count
    assert all(module.training for module in net.modules())


# --- Forms of a gate -------------------------------------------------------------------------------------------------


def test_gate_may_be_string_choice_or_class() -> None:
    for gate, options in [
        ("gct:mode=l1,eps=1e-4@inner", {}),
        ("gct", {"mode": "l1", "eps": 1e-4, "place": "inner"}),
        ("gct:mode=l2,eps=1e-4", {"mode": "l1", "place": "inner"}),  # an argument overrides the string
        (gw.GateChoice("gct", {"mode": "l1", "eps": 1e-4}, "inner"), {}),
        (gw.GateChoice.parse("gct:mode=l1@inner"), {"eps": 1e-4}),
    ]:
        insertion = gw.insert_gates(chain(), gate, **options)
        assert list(insertion.gates) == ["1.gct"]
        assert (insertion.gates["1.gct"].mode, insertion.gates["1.gct"].eps) == ("l1", 1e-4)
    insertion = gw.insert_gates(chain(), gw.GatedChannelTransform, place="inner", mode="l1")
    assert list(insertion.gates) == ["1.gated_channel_transform"]
    assert insertion.gates["1.gated_channel_transform"].mode == "l1"


def test_gates_can_be_added_to_gated_network() -> None:
    first, second = gw.make_model("resnet20+gct"), gw.make_model("resnet20+gct+se")
    second.load_state_dict(first.state_dict())
    damaged = {name: value for name, value in first.state_dict().items() if name != "conv1.gct.gamma"}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"conv1\.gct\.gamma\"\."):
        second.load_state_dict(damaged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet18", "gct"), "insert_gates expects a network"),
        (
            (nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3)), "triplet@before_conv"),
            "maps with two spatial axes, but '0' has 1",
        ),
    ],
)
def test_invalid_targets_of_gates_rejected(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(GatewiseError, match=message):
        gw.insert_gates(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": "("}, "is not a valid regular expression"),
        ({"exclude": "["}, "is not a valid regular expression"),
        ({"before": "conv"}, "take layer types such as torch.nn.Conv2d"),
    ],
)
def test_unreadable_choices_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GatewiseError, match=message):
        gw.insert_gates(gw.make_model("resnet20"), "gct", **options)


def test_insertion_repr_is_one_line() -> None:
    insertion = gw.insert_gates(gw.make_model("resnet20"), "gct", exclude=["conv1"])
    assert repr(insertion) == "Insertion(gct at before_conv: 20 gates in CifarResNet, 1 skipped)"
    insertion.undo()
    one = gw.insert_gates(insertion.model, "gct:mode=l1", before=nn.Conv2d, include=["conv1"])
    assert repr(one) == "Insertion(gct:mode=l1 before Conv2d: 1 gate in CifarResNet, 20 skipped)"


def test_network_without_place_error_uses_words_of_gate() -> None:
    with pytest.raises(InvalidValueError, match=r"no place for se in Sequential.* that it has: se@before_conv \(1\)"):
        gw.insert_gates(nn.Sequential(nn.Conv2d(3, 8, 3)), "se")
