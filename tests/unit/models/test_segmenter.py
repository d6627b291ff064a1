"""GCNet's segmenter: a dilated backbone with unchanged weights, context blocks, one map as output."""

import inspect
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gatewise as gw
from gatewise.errors import DataError, InvalidTypeError, InvalidValueError
from gatewise.models import segmenter
from gatewise.models.families import FAMILIES
from gatewise.models.segmenter import Segmenter, make_segmenter

SMALL = "test_resnet"  # timm's smallest network with stages


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def unsettled(model: nn.Module) -> nn.Module:
    """Return the network in eval mode, with normalisation other than the identity."""
    generator = torch.Generator().manual_seed(1)
    for layer in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        for tensor, low in (
            (layer.weight, 0.5),
            (layer.bias, -0.5),
            (layer.running_mean, -0.2),
            (layer.running_var, 0.5),
        ):
            tensor.data = torch.rand(len(tensor), generator=generator) + low
    return model.eval()


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict without gates."""
    gates = tuple(gw.gates_in(model))
    return (
        {key: value for key, value in model.state_dict().items() if not key.startswith(gates)}
        if gates
        else dict(model.state_dict())
    )


# --- The backbone's stride -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet18", SMALL, "mobilenetv2_050"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_last_map_has_output_stride(backbone: str, stride: int) -> None:
    model = Segmenter(backbone=backbone, num_classes=3, output_stride=stride).eval()
    for side in (64, 97):
        last = model.backbone(torch.zeros(1, 3, side, side))[-1]
        assert last.shape[2:] == (-(-side // stride), -(-side // stride))


def test_default_output_stride_is_16() -> None:
    for build in (Segmenter, FAMILIES["segmenter"].build):
        assert inspect.signature(build).parameters["output_stride"].default == 16
    last = make_segmenter(SMALL, num_classes=3).eval().backbone(torch.zeros(1, 3, 64, 64))[-1]
    assert last.shape[2:] == (4, 4)


@pytest.fixture(scope="module", params=["resnet18", "mobilenetv2_050"])
def strided(request: pytest.FixtureRequest) -> tuple[str, Segmenter]:
    """Return a backbone's name and a segmenter on it that strides; timm dilates these two without changing a weight."""
    options = {"num_classes": 3, "context": "none", "output_stride": 32, "seed": 0}
    return request.param, unsettled(make_segmenter(request.param, **options))


@torch.no_grad()
@pytest.mark.parametrize("side", [(64, 64), (96, 64), (97, 61)])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_backbone_equals_strided_one_at_shared_positions(
    strided: tuple[str, Segmenter], stride: int, side: tuple[int, int]
) -> None:
    """Each stage, sub-sampled by the stride that it lost, is that of the strided backbone with the same weights."""
    name, reference = strided
    dilated = make_segmenter(name, num_classes=3, context="none", output_stride=stride).eval()
    dilated.load_state_dict(reference.state_dict(), strict=True)
    image = noise(2, 3, *side)
    maps, expected = dilated.backbone(image), reference.backbone(image)
    assert len(maps) == len(expected) == 5
    for number, (own, other) in enumerate(zip(maps, expected, strict=True)):
        lost = max(1, 2 ** (number + 1) // stride)
        assert own.shape[2] == -(-side[0] // min(stride, 2 ** (number + 1)))
        torch.testing.assert_close(own[:, :, ::lost, ::lost], other, rtol=1e-4, atol=1e-5)


def test_weights_do_not_depend_on_stride() -> None:
    one, other = (make_segmenter(SMALL, num_classes=3, output_stride=stride, seed=2).state_dict() for stride in (8, 32))
    assert list(one) == list(other)
    assert all(torch.equal(one[key], value) for key, value in other.items())


# --- The complete network --------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", [(64, 64), (97, 61), (33, 50)])
@pytest.mark.parametrize(("classes", "channels"), [(1, 3), (5, 1)])
def test_any_size_gives_one_map_per_class_of_that_size(side: tuple[int, int], classes: int, channels: int) -> None:
    model = make_segmenter(SMALL, num_classes=classes, in_chans=channels).eval()
    assert model(torch.zeros(2, channels, *side)).shape == (2, classes, *side)


@torch.no_grad()
@pytest.mark.parametrize("auxiliary", [False, True])
def test_logits_are_upscaled_head_after_context(auxiliary: bool) -> None:
    options = {"output_stride": 8, "channels": 7, "auxiliary": auxiliary}
    model = unsettled(make_segmenter(SMALL, num_classes=3, context="se", **options))
    image = noise(2, 3, 45, 70)

    def labelled(head: nn.Sequential, x: Tensor) -> Tensor:
        convolution, norm, _, _, classifier = head
        y = F.conv2d(x, convolution.weight, padding=1)
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
        y = F.conv2d(y, classifier.weight, classifier.bias)
        return F.interpolate(y, (45, 70), mode="bilinear", align_corners=False)

    maps = model.backbone(image)
    expected = labelled(model.head, gw.gates_in(model)["context.se"](maps[-1]))
    torch.testing.assert_close(model(image), expected)
    assert model.head[0].out_channels == 7
    if auxiliary:
        model.training = True  # of the network alone: its normalisation and dropout stay as they are
        logits, auxiliary_logits = model(image)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(auxiliary_logits, labelled(model.auxiliary, maps[-2]))


def test_auxiliary_head_gives_map_in_training_only() -> None:
    model = make_segmenter(SMALL, num_classes=3, auxiliary=True)
    image = noise(2, 3, 40, 56)
    assert [tuple(found.shape) for found in model(image)] == [(2, 3, 40, 56)] * 2
    assert model.side_weight == 0.4
    assert model.eval()(image).shape == (2, 3, 40, 56)
    plain = make_segmenter(SMALL, num_classes=3)
    assert plain(image).shape == (2, 3, 40, 56)
    assert plain.auxiliary is None


def test_every_parameter_learns() -> None:
    model = unsettled(make_segmenter(SMALL, num_classes=3, context="gc", auxiliary=True, seed=0)).train()
    for parameter in gw.gates_in(model)["context.gc"].parameters():
        nn.init.normal_(parameter)  # fresh, its last layer is zero, and those before it learn nothing yet
    sum(found.square().sum() for found in model(noise(2, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any() or name.endswith("bias"), name


@torch.no_grad()
def test_dropout_drops_channels_before_classifier_in_training() -> None:
    model = unsettled(make_segmenter(SMALL, num_classes=3, dropout=0.25, channels=2000))
    seen: list[Tensor] = []
    model.head[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(2)))
    model(noise(2, 3, 64, 64))
    model.head.train()
    model(noise(2, 3, 64, 64))
    before, after = ((values == 0).all(2) for values in seen)
    assert abs(float(after[~before].double().mean()) - 0.25) < 5 * (0.25 * 0.75 / int((~before).sum())) ** 0.5
    assert make_segmenter(SMALL, num_classes=3).head[3].p == 0.1


def test_building_keeps_norm_statistics_and_training_mode() -> None:
    model = make_segmenter(SMALL, num_classes=3, context="gc", context_at="stages")
    assert all(layer.training for layer in model.modules())
    for layer in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        assert int(layer.num_batches_tracked) == 0
        assert (layer.running_mean == 0).all()
    assert all(
        not layer._forward_hooks for layer in model.backbone.modules() if "gc" not in dict(layer.named_children())
    )


def test_pretrained_and_channels_are_passed_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **options: object) -> nn.Module:
        asked.append({"name": name, **options})
        raise OSError("no\nnetwork")

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr("gatewise.core.hub_connection._why_unreachable", lambda: None)
    for options in ({"pretrained": True, "output_stride": 8}, {"in_chans": 1, "output_stride": 32}):
        with pytest.raises(DataError, match=r"timm cannot get .*'hf-hub:a/b' \(no network\)\. Check the connection"):
            make_segmenter("hf-hub:a/b", num_classes=3, **options)
    common = {"name": "hf-hub:a/b", "features_only": True}
    assert asked == [
        {**common, "pretrained": True, "in_chans": 3, "output_stride": 8},
        {**common, "pretrained": False, "in_chans": 1},
    ]


# --- Context ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["gc", "nl", "snl", "se", "gc:rd_ratio=1/4", "gct"])
@pytest.mark.parametrize("context_at", ["last", "stages"])
def test_each_context_block_works_at_either_place(context: str, context_at: str) -> None:
    model = make_segmenter(SMALL, num_classes=3, context=context, context_at=context_at, seed=0)
    unsettled(model).train()  # timm's residual branches begin with zeros
    gates = gw.gates_in(model)
    name = context.partition(":")[0]
    places = (
        ["context"]
        if context_at == "last"
        else ["backbone.layer2.0.bn2", "backbone.layer3.0.bn3", "backbone.layer4.0.bn2"]
    )
    assert list(gates) == [f"{place}.{name}" for place in places]
    reached: set[str] = set()
    for path, gate in gates.items():
        gate.register_forward_hook(lambda *_, path=path: reached.add(path))
    image = noise(2, 3, 45, 38)
    logits = model(image)
    assert logits.shape == (2, 3, 45, 38)
    assert reached == set(gates)
    logits.square().sum().backward()
    for gate in gates.values():
        assert any((parameter.grad != 0).any() for parameter in gate.parameters())


def test_context_at_stages_ends_residual_branches_of_c3_to_c5() -> None:
    gates = gw.gates_in(make_segmenter("resnet18", num_classes=3, context_at="stages", output_stride=8))
    assert list(gates) == [f"backbone.layer{stage}.{block}.bn2.gc" for stage in (2, 3, 4) for block in (0, 1)]
    assert [gate.channels for gate in gates.values()] == [128, 128, 256, 256, 512, 512]


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "test_convnext"])
def test_context_at_stages_is_after_c2_in_other_families(backbone: str) -> None:
    model = make_segmenter(backbone, num_classes=3, context_at="stages", output_stride=32).eval()
    gates = gw.gates_in(model)
    sides: set[int] = set()
    for gate in gates.values():
        gate.register_forward_hook(lambda *args: sides.add(args[-1].shape[-1]))
    model(torch.zeros(1, 3, 128, 128))
    assert len(gates) > 5
    assert sides == {16, 8, 4}  # of 128: strides 8, 16 and 32


def test_stage_gates_are_at_residual_branches_after_c2() -> None:
    model = make_segmenter("resnet18", num_classes=3, context="none")
    every = [place.layer for place in gw.find_places(model, "residual_end").found]
    gates = gw.gates_in(make_segmenter("resnet18", num_classes=3, context="se", context_at="stages"))
    assert [path.removesuffix(".se") for path in gates] == [path for path in every if "layer1" not in path]


def test_default_context_is_gc() -> None:
    assert list(gw.gates_in(make_segmenter(SMALL, num_classes=2))) == ["context.gc"]
    assert gw.gates_in(make_segmenter(SMALL, num_classes=2, context="none")) == {}
    assert gw.gates_in(gw.make_model(f"segmenter:backbone={SMALL}")) == {}


def test_context_options_reach_gate() -> None:
    for context in ("gc:rd_ratio=1/4", gw.GateChoice("gc", {"rd_ratio": 0.25})):
        (gate,) = gw.gates_in(make_segmenter(SMALL, num_classes=2, context=context)).values()
        expected = gw.make_gate("gc", gate.channels, rd_ratio=0.25)
        own = {name: tuple(value.shape) for name, value in gate.state_dict().items()}
        assert own == {name: tuple(value.shape) for name, value in expected.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize("context_at", ["last", "stages"])
def test_fresh_global_context_keeps_outputs_bitwise(context_at: str) -> None:
    image = noise(1, 3, 50, 60)
    plain, gated = (
        make_segmenter(SMALL, num_classes=3, context=context, context_at=context_at, seed=4).eval()
        for context in ("none", "gc")
    )
    assert torch.equal(plain(image), gated(image))


@torch.no_grad()
def test_plain_checkpoint_loads_strictly_with_context() -> None:
    plain, gated = (make_segmenter(SMALL, num_classes=3, context=c, seed=s).eval() for c, s in (("none", 1), ("gc", 2)))
    found = gated.load_state_dict(plain.state_dict(), strict=True)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert torch.equal(plain(noise(1, 3, 50, 60)), gated(noise(1, 3, 50, 60)))


def test_context_place_in_custom_network_is_found() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.here = gw.ContextPlace(8)
            self.heads = nn.ModuleList([gw.ContextPlace(8)])

        def forward(self, x: Tensor) -> Tensor:
            return self.heads[0](self.here(self.conv(x)))

    model, image = Own().eval(), noise(2, 3, 9, 9)
    before = model(image)
    torch.testing.assert_close(before, model.conv(image), rtol=0, atol=0)
    found = gw.find_places(model, "context").found
    assert [(place.layer, place.side, place.channels) for place in found] == [
        ("here", "output", 8),
        ("heads.0", "output", 8),
    ]
    insertion = gw.insert_gates(model, "se", place="context", include=["here"])
    assert list(insertion.gates) == ["here.se"]
    assert insertion.check(image) == ()
    torch.testing.assert_close(model(image), insertion.gates["here.se"](before))
    insertion.undo()
    assert torch.equal(model(image), before)


@pytest.mark.parametrize("gate", ["gc", "gc@context"])
def test_network_without_context_place_rejected(gate: str) -> None:
    options = {} if "@" in gate else {"place": "context"}
    with pytest.raises(InvalidValueError, match=r"no place for gc@context in CifarResNet .*such place.*gc@before_conv"):
        gw.insert_gates(gw.make_model("resnet20"), gate, **options)


# --- Names and specs -------------------------------------------------------------------------------------------------


def test_segmenter_is_built_from_spec() -> None:
    model = gw.make_model("segmenter:backbone=resnet18+gc@context", num_classes=3)
    assert type(model) is Segmenter
    assert list(gw.gates_in(model)) == ["context.gc"]
    assert model.eval()(torch.zeros(1, 3, 50, 40)).shape == (1, 3, 50, 40)


def test_all_options_can_be_given_in_spec() -> None:
    text = f"segmenter:backbone={SMALL},output_stride=8,channels=9,auxiliary=true,dropout=0.5+se@context_stages"
    model = gw.make_model(text, num_classes=4, in_chans=1, seed=3)
    assert len(gw.gates_in(model)) == 3
    assert (model.head[0].out_channels, model.head[3].p, model.in_chans) == (9, 0.5, 1)
    logits, _ = model(torch.zeros(2, 1, 48, 48))
    assert logits.shape == (2, 4, 48, 48)
    assert model.backbone(torch.zeros(1, 1, 64, 64))[-1].shape[2:] == (8, 8)
    assert gw.make_model(f"segmenter:backbone={SMALL}").head[4].out_channels == 2


def test_spec_accepts_every_option_of_make_segmenter() -> None:
    options = set(inspect.signature(make_segmenter).parameters) | set(inspect.signature(Segmenter).parameters)
    assert set(FAMILIES["segmenter"].options) == options - {"seed", "options", "context", "context_at"}


# --- Seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "context_at"), [("gc", "last"), ("nl", "last"), ("se", "stages"), ("snl", "stages")]
)
def test_backbone_and_head_weights_do_not_depend_on_context(context: str, context_at: str) -> None:
    options = {"num_classes": 3, "auxiliary": True, "seed": 5}
    plain = make_segmenter(SMALL, context="none", **options).state_dict()
    gated = make_segmenter(SMALL, context=context, context_at=context_at, **options)
    assert len(gated.state_dict()) > len(plain)
    assert own_weights(gated).keys() == plain.keys()
    assert all(torch.equal(plain[key], value) for key, value in own_weights(gated).items())
    spec = gw.make_model(f"segmenter:backbone={SMALL},auxiliary=true+{context}@context", num_classes=3, seed=5)
    assert all(torch.equal(plain[key], value) for key, value in own_weights(spec).items())


def test_seed_fixes_weights_and_keeps_global_generator() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (make_segmenter(SMALL, num_classes=3, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[key], value) for key, value in same.items())
    for key in ("backbone.layer1.0.conv1.weight", "head.0.weight", "head.4.weight"):
        assert not torch.equal(one[key], other[key])
    gate = next(key for key, value in one.items() if key.startswith("context.gc") and value.std() > 0)
    assert not torch.equal(one[gate], other[gate])


def test_without_seed_weights_use_global_generator() -> None:
    torch.manual_seed(5)
    one, two = (make_segmenter(SMALL, num_classes=3).head[0].weight for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(make_segmenter(SMALL, num_classes=3).head[0].weight, one)
    assert not torch.equal(one, two)


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("backbone", ["vgg11_bn", "densenet121"])
def test_undilatable_timm_backbone_rejected_with_alternative(backbone: str, stride: int) -> None:
    with pytest.raises(InvalidValueError) as caught:
        make_segmenter(backbone, num_classes=3, output_stride=stride)
    message = str(caught.value)
    assert f"timm cannot build '{backbone}' as a backbone" in message
    assert f"an output stride of {stride}" in message
    assert "resnet18, or output_stride=32" in message
    assert len(message) < 400
    assert "\n" not in message


@torch.no_grad()
def test_undilatable_backbone_works_with_its_own_stride() -> None:
    model = make_segmenter("densenet121", num_classes=3, output_stride=32).eval()
    assert model(torch.zeros(1, 3, 40, 40)).shape == (1, 3, 40, 40)


@pytest.mark.parametrize("backbone", ["resnet81", "resnet81.a1_in1k"])
def test_unknown_backbone_rejected_in_one_line_with_suggestion(backbone: str) -> None:
    with pytest.raises(InvalidValueError, match=r"unknown backbone 'resnet81'\. .*Did you mean 'resnet18'\?") as caught:
        make_segmenter(backbone, num_classes=3)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_backbone_of_fixed_image_size_rejected() -> None:
    with pytest.raises(InvalidValueError, match=r"timm cannot build 'test_vit' as a backbone .*output stride of 32"):
        make_segmenter("test_vit", num_classes=3, output_stride=32)


class _Stages(nn.Module):
    """Stands for a network of timm's that gives these maps of an image of 97x97."""

    def __init__(self, sides: list[int]) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x.new_zeros(1, 8, side, side) for side in self.sides]


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ([25, 13, 7], r"returns 3 feature maps, .*expected at least 4"),
        ([49, 25, 13, 7, 4], r"returns 5 feature maps, the last of size \(4, 4\) for an image of 97x97; .* sides of 7"),
        ([49, 25, 13, 13], r"returns 4 feature maps, the last of size \(13, 13\)"),
    ],
)
def test_backbone_with_other_maps_rejected(monkeypatch: pytest.MonkeyPatch, sides: list[int], message: str) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: _Stages(sides))
    with pytest.raises(InvalidValueError, match=f"'resnet18' {message}"):
        make_segmenter("resnet18", num_classes=3, output_stride=16)


def test_stages_rejected_in_backbone_without_residual_branches() -> None:
    with pytest.raises(InvalidValueError, match="no place for gc@context_stages in Segmenter"):
        make_segmenter("test_efficientnet", num_classes=3, context_at="stages")


def test_backbone_without_end_of_c2_has_no_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_segmenter(SMALL, num_classes=3, context="none").backbone
    plain = backbone.forward
    monkeypatch.setattr(backbone, "forward", lambda x: [features * 1 for features in plain(x)])
    assert segmenter._late_layers(backbone, torch.zeros(1, 3, 97, 97)) == ()


INVALID: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another stride": ({"output_stride": 12}, InvalidValueError, "unknown output_stride 12; expected one of"),
    "a place with context_at": (
        {"context": "gc@context"},
        InvalidValueError,
        "gate without a place.*Use context_at",
    ),
    "another place": ({"context": "gc@residual_end"}, InvalidValueError, "gate without a place"),
    "a gater": ({"context": "gaternet"}, InvalidValueError, "context must be a gate without a place, got 'gaternet'"),
    "an unknown gate": ({"context": "gcn"}, InvalidValueError, r"unknown gate 'gcn'; .*Did you mean 'gc'\?"),
    "an option that its gate lacks": ({"context": "se:pooling=att"}, InvalidValueError, "unknown option of gate 'se'"),
    "an unknown way": ({"context_at": "stage"}, InvalidValueError, r"unknown context_at .*Did you mean 'stages'\?"),
    "an unknown option": (
        {"channls": 3},
        InvalidValueError,
        r"unknown option of make_segmenter 'channls'; .*Did you mean 'channels'\?",
    ),
    "no class": ({"num_classes": 0}, InvalidValueError, "num_classes must be at least 1, got 0"),
    "half a class": ({"num_classes": 1.5}, InvalidTypeError, r"num_classes must be an integer, got 1\.5"),
    "no channel": ({"in_chans": 0}, InvalidValueError, "in_chans must be at least 1, got 0"),
    "no width": ({"channels": 0}, InvalidValueError, "channels must be at least 1, got 0"),
    "nothing left": ({"dropout": 1.0}, InvalidValueError, r"dropout must be between 0 and 0\.99, got 1\.0"),
    "a word for a truth": ({"auxiliary": "no"}, InvalidTypeError, "auxiliary must be true or false, got 'no'"),
    "a number for a truth": ({"pretrained": 1}, InvalidTypeError, "pretrained must be true or false, got 1"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_segmenter_rejected(case: str) -> None:
    options, error, message = INVALID[case]
    with pytest.raises(error, match=message):
        make_segmenter(SMALL, **{"num_classes": 3, **options})


def test_unknown_option_in_spec_rejected_with_suggestion() -> None:
    with pytest.raises(InvalidValueError, match=r"unknown option of model 'segmenter' 'bakbone'; .*'backbone'\?"):
        gw.make_model("segmenter:bakbone=resnet18")
    with pytest.raises(InvalidValueError, match=r"unknown backbone 'resnet81'"):
        gw.make_model("segmenter:backbone=resnet81")


@pytest.mark.parametrize("context", ["none", None])
def test_segmenter_without_context(context: str | None) -> None:
    assert gw.gates_in(gw.make_segmenter("test_resnet", num_classes=2, context=context)) == {}


@pytest.mark.parametrize("option", [{"context": 3}, {"backbone": 18}, {"output_stride": "8"}])
def test_wrong_types_rejected(option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(option))} must be"):
        gw.make_segmenter(**{"backbone": "test_resnet", "num_classes": 3, **option})
