"""Networks by name: sizes as in the papers, weights from the seed alone, and errors that name the nearest."""

import inspect
import math
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError
from gatewise.models import CifarResNet, model_names
from gatewise.models.families import FAMILIES
from gatewise.models.form import ResNetConfig


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def cifar_size(depth: int, classes: int = 10) -> int:
    """Count the parameters of a CIFAR ResNet by hand: 3x3 convolutions without bias, norms, projections, classifier."""
    blocks, total = (depth - 2) // 6, 3 * 16 * 9 + 2 * 16
    inputs = 16
    for width in (16, 32, 64):
        for block in range(blocks):
            first = inputs if block == 0 else width
            total += (first + width) * width * 9 + 2 * 2 * width
            if first != width:
                total += first * width + 2 * width
        inputs = width
    return total + 64 * classes + classes


@pytest.mark.parametrize(("depth", "expected"), [(20, 272_474), (32, None), (44, None), (56, 855_770), (110, None)])
def test_cifar_resnets_have_published_sizes(depth: int, expected: int | None) -> None:
    assert size(gw.make_model(f"resnet{depth}")) == cifar_size(depth)
    assert expected in {None, cifar_size(depth)}
    assert size(gw.make_model(f"resnet{depth}", num_classes=100)) == cifar_size(depth, 100)


@pytest.mark.parametrize("depth", [20, 56])
def test_cifar_resnet_has_number_of_convolutions_in_its_name(depth: int) -> None:
    model = gw.make_model(f"resnet{depth}")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth  # and the classifier
    assert [m.out_channels for m in convolutions].count(64) == (depth - 2) // 3


def test_gct_adds_published_parameters() -> None:
    """FACTS 1.3: one gate before each convolution, shortcuts included."""
    for depth, added in [(20, 2_025), (56, 6_057), (110, 12_105)]:
        assert size(gw.make_model(f"resnet{depth}+gct")) - cifar_size(depth) == added


def test_resnet18_cifar_is_timm_resnet18_with_small_stem() -> None:
    reference = timm.create_model("resnet18", num_classes=10)
    assert size(gw.make_model("resnet18_cifar")) == size(reference) - 64 * 3 * 7 * 7 + 64 * 3 * 3 * 3


def test_width_scales_resnet18_cifar() -> None:
    narrow = gw.make_model("resnet18_cifar:width=8")
    assert [stage[0].conv1.out_channels for stage in narrow.stages] == [8, 16, 32, 64]
    assert [len(stage) for stage in narrow.stages] == [2, 2, 2, 2]
    assert narrow.fc.in_features == 64
    assert size(gw.make_model("resnet18_cifar", width=8)) == size(narrow)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        gw.make_model("resnet18_cifar:width=0")


@pytest.mark.parametrize("name", ["resnet20", "resnet18_cifar:width=8", "resnet18"])
def test_classes_and_image_channels_are_options(name: str) -> None:
    model = gw.make_model(name, num_classes=7, in_chans=1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert gw.make_model(name, num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_without_num_classes_default_is_kept() -> None:
    assert gw.make_model("resnet20").fc.out_features == 10
    assert gw.make_model("resnet18").num_classes == 1000
    assert gw.make_model("resnet20:num_classes=3").fc.out_features == 3


def test_every_stage_but_first_halves_resolution() -> None:
    model = gw.make_model("resnet20").eval()
    sizes: list[tuple[int, ...]] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda *args: sizes.append(tuple(args[-1].shape[2:])))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert model(torch.zeros(1, 3, 40, 24)).shape == (1, 10)
    assert sizes == [(32, 32), (16, 16), (8, 8), (40, 24), (20, 12), (10, 6)]
    assert model.input_size == (3, 32, 32)


def test_block_matches_formula() -> None:
    model = gw.make_model("resnet20", seed=0).eval()
    for block, inputs in ((model.stages[0][0], 16), (model.stages[1][0], 16)):
        x = torch.randn(2, inputs, 8, 8, generator=torch.Generator().manual_seed(0))
        shortcut = x if block.conv1.stride == (1, 1) else block.shortcut[1](block.shortcut[0](x))
        y = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
        torch.testing.assert_close(block(x), (y + shortcut).relu())


# --- Bottleneck units and shortcuts without parameters ---------------------------------------------------------------


def test_resnet164_has_published_sizes() -> None:
    """1.62 million parameters and 7,200 filters of last convolutions with GaterNet's widths, 1.70 and 8,064 else."""
    for name, expected, filters in [("resnet164", 1_704_154, 8_064), ("resnet164_gaternet", 1_620_058, 7_200)]:
        model = gw.make_model(name)
        assert size(model) == expected
        assert sum(unit.conv3.out_channels for stage in model.stages for unit in stage) == filters
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        shortcuts = [m for stage in model.stages for m in stage[0].shortcut if isinstance(m, nn.Conv2d)]
        assert len(convolutions) - len(shortcuts) + 1 == 164  # and the classifier
        assert all(unit.conv1.out_channels * 4 == unit.conv3.out_channels for stage in model.stages for unit in stage)
        assert model.conv1.out_channels == 16


def test_shortcuts_are_identity_where_width_and_resolution_stay() -> None:
    projections = {
        name: [len(unit.shortcut) > 0 for stage in gw.make_model(name).stages for unit in stage]
        for name in ("resnet164", "resnet164_gaternet", "resnet20")
    }
    assert [index for index, has in enumerate(projections["resnet164"]) if has] == [0, 18, 36]
    assert [index for index, has in enumerate(projections["resnet164_gaternet"]) if has] == [18, 36]
    assert [index for index, has in enumerate(projections["resnet20"]) if has] == [3, 6]


@torch.no_grad()
def test_bottleneck_unit_matches_formula() -> None:
    torch.manual_seed(0)
    model = CifarResNet([1, 2], [16, 32], stem=8, bottleneck=True).eval()
    for unit, inputs in ((model.stages[0][0], 8), (model.stages[1][0], 16), (model.stages[1][1], 32)):
        x = torch.randn(2, inputs, 8, 8)
        stride = 2 if inputs == 16 else 1
        y = unit.bn1(F.conv2d(x, unit.conv1.weight)).relu()
        y = unit.bn2(F.conv2d(y, unit.conv2.weight, stride=stride, padding=1)).relu()
        y = unit.bn3(F.conv2d(y, unit.conv3.weight))
        shortcut = x if inputs == 32 else unit.shortcut[1](F.conv2d(x, unit.shortcut[0].weight, stride=stride))
        torch.testing.assert_close(unit(x), (y + shortcut).relu())


@pytest.mark.parametrize("side", [8, 7])
@torch.no_grad()
def test_padding_shortcut_subsamples_and_appends_zeros(side: int) -> None:
    unit = gw.make_model("resnet20:shortcut=padding").stages[1][0].eval()
    x = torch.randn(2, 16, side, side)
    shortcut = torch.zeros(2, 32, (side + 1) // 2, (side + 1) // 2)
    for row in range(0, side, 2):
        for column in range(0, side, 2):
            shortcut[:, :16, row // 2, column // 2] = x[:, :, row, column]
    y = unit.bn2(unit.conv2(unit.bn1(unit.conv1(x)).relu()))
    torch.testing.assert_close(unit(x), (y + shortcut).relu())


@pytest.mark.parametrize("name", ["resnet20", "resnet164", "resnet18_cifar:width=8", "resnet20_wider:parameters=90000"])
def test_padding_removes_only_projections(name: str) -> None:
    if "wider" in name:
        assert abs(size(gw.make_model(name, shortcut="padding")) - 90_000) < 2_000
        return
    plain, padded = (gw.make_model(name, shortcut=kind).state_dict() for kind in ("projection", "padding"))
    assert [key for key in plain if ".shortcut." not in key] == list(padded)
    assert len(padded) < len(plain)


def test_published_size_of_resnet20_with_padding() -> None:
    """He et al. (2016), table 6: 0.27 and 0.85 million, with parameter-free shortcuts."""
    assert size(gw.make_model("resnet20:shortcut=padding")) == 269_722
    assert size(gw.make_model("resnet56:shortcut=padding")) == 853_018


@pytest.mark.parametrize("shortcut", ["projection", "padding"])
@pytest.mark.parametrize(("bottleneck", "layer"), [(False, "bn2"), (True, "bn3")])
def test_gates_find_places_with_either_shortcut(shortcut: str, bottleneck: bool, layer: str) -> None:
    model = CifarResNet([2, 2], [16, 32], stem=8, bottleneck=bottleneck, shortcut=shortcut)
    gw.insert_gates(model, "se")
    assert list(gw.gates_in(model)) == [f"stages.{s}.{u}.{layer}.se" for s in range(2) for u in range(2)]


def test_invalid_network_rejected() -> None:
    with pytest.raises(ValueError, match=r"unknown shortcut 'paddin'; .*Did you mean 'padding'\?"):
        gw.make_model("resnet20:shortcut=paddin")
    with pytest.raises(ValueError, match=r"shortcut='padding' cannot reduce 32 channels to 16\. Choose"):
        CifarResNet([1, 1], [32, 16], shortcut="padding")
    with pytest.raises(ValueError, match=r"output width of a bottleneck unit must be a multiple of 4, got 18\."):
        CifarResNet([1], [18], bottleneck=True)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        CifarResNet([1], [16], stem=0)


# --- Wider networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "with_gater", "found"),
    [
        ("resnet20", 547_842, 547_403),
        ("resnet56", 1_137_186, 1_139_951),
        ("resnet164_gaternet", 1_957_202, 1_977_650),
        ("resnet164", 2_049_074, 2_041_464),
    ],
)
def test_wider_network_is_as_large_as_plain_one_with_gater(name: str, with_gater: int, found: int) -> None:
    assert FAMILIES[name].build.__self__.gater_parameter_count() + size(gw.make_model(name)) == with_gater
    assert size(gw.make_model(f"{name}_wider")) == found
    assert size(gw.make_model(f"{name}_wider", parameters=with_gater)) == found
    assert abs(found / with_gater - 1) < 0.011


def every_wider(form: ResNetConfig, up_to: float) -> dict[tuple[int, ...], int]:
    """Return widths -> parameters for many factors of a fine grid, independent of how `ResNetConfig.wider` searches."""
    unit = 4 if form.bottleneck else 1
    stem = form.widths[0] if form.stem is None else form.stem
    counts = {}
    for step in range(1, int(up_to * 1024)):
        widths = [unit * max(1, math.floor(step / 1024 * width / unit + 0.5)) for width in (stem, *form.widths)]
        if tuple(widths) not in counts:
            built = ResNetConfig(
                blocks=form.blocks, widths=tuple(widths[1:]), stem=widths[0], bottleneck=form.bottleneck
            )
            counts[tuple(widths)] = built.parameter_count()
    return counts


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet164", "resnet164_gaternet"])
def test_no_other_factor_is_closer_to_budget(name: str) -> None:
    form = FAMILIES[name].build.__self__
    counts = every_wider(form, up_to=1.6)
    plain = form.parameter_count()
    assert plain in counts.values()
    for budget in (plain // 3, plain, plain + 1, int(1.2 * plain), int(1.37 * plain), int(1.7 * plain)):
        nearest = min(abs(count - budget) for count in counts.values())
        assert abs(form.wider(budget).parameter_count() - budget) == nearest
    smallest = min(counts.values())
    assert form.wider(smallest).parameter_count() == smallest


def test_widths_of_wider_network_are_multiples_of_one_factor() -> None:
    def widths(name: str) -> list[int]:
        model = gw.make_model(name)
        return [model.conv1.out_channels, *(stage[0].conv1.out_channels for stage in model.stages)]

    assert widths("resnet20_wider") == [23, 23, 45, 91]  # the factor is 1.42
    assert widths("resnet56_wider") == [18, 18, 37, 74]
    assert widths("resnet164_gaternet_wider") == [16, 4, 35, 71]  # of bottleneck units the inner ones
    assert widths("resnet164_wider") == [16, 18, 35, 70]
    assert widths("resnet20_wider:parameters=272474") == [16, 16, 32, 64]


def test_wider_network_keeps_its_form() -> None:
    for name in ("resnet20", "resnet164_gaternet"):
        plain, wider = (gw.make_model(n) for n in (name, f"{name}_wider"))
        assert list(wider.state_dict()) == list(plain.state_dict())
    assert wider(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_parameters_sizes_wider_network() -> None:
    for budget in (100_000, 400_000, 3_000_000):
        found = size(gw.make_model(f"resnet20_wider:parameters={budget}", num_classes=100))
        assert abs(found / budget - 1) < 0.015
    with pytest.raises(ValueError, match="parameters must be at least 253, those of the narrowest such network"):
        gw.make_model("resnet20_wider:parameters=100")
    with pytest.raises(TypeError, match="parameters must be an integer"):
        gw.make_model("resnet20_wider:parameters=4e5")


def test_budget_follows_classes_and_image() -> None:
    """CIFAR-100 adds 90 * 65 parameters to plain ResNet-20 and nothing to its gater; a grey image two stems' less."""
    form = FAMILIES["resnet20"].build.__self__
    assert size(gw.make_model("resnet20_wider", num_classes=100)) == form.wider(
        547_842 + 90 * 65, num_classes=100
    ).parameter_count(num_classes=100)
    assert size(gw.make_model("resnet20_wider", in_chans=1)) == form.wider(
        547_842 - 2 * 2 * 16 * 9, in_chans=1
    ).parameter_count(in_chans=1)


@pytest.mark.parametrize("name", ["resnet20", "resnet164", "resnet164_gaternet", "resnet110"])
@pytest.mark.parametrize("options", [{}, {"shortcut": "padding", "num_classes": 7, "in_chans": 1}])
def test_parameter_count_of_form_equals_network(name: str, options: dict) -> None:
    form = FAMILIES[name].build.__self__
    assert form.parameter_count(**options) == size(form.build(**options))


# --- Names and specs -------------------------------------------------------------------------------------------------


def test_hub_name_is_passed_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, dict]] = []

    def create_model(name: str, **options: object) -> nn.Module:
        built.append((name, options))
        return nn.Sequential(nn.Conv2d(3, 4, 3))

    monkeypatch.setattr(timm, "create_model", create_model)
    model = gw.make_model("hf-hub:timm/resnet18.a1_in1k:drop_rate=0.5+gct", num_classes=4)
    assert built == [("hf-hub:timm/resnet18.a1_in1k", {"drop_rate": 0.5, "num_classes": 4})]
    assert list(gw.gates_in(model)) == ["0.gct"]


def test_other_names_come_from_timm() -> None:
    assert type(gw.make_model("mobilenetv3_small_050", num_classes=4)).__module__.startswith("timm.")
    assert type(gw.make_model("resnet20")) is CifarResNet
    assert not set(model_names()) & set(timm.list_models())
    assert gw.make_model("resnet18.a1_in1k", num_classes=4).num_classes == 4


def test_spec_is_built_with_its_gates_and_options() -> None:
    model = gw.make_model("resnet20:num_classes=4+gct:mode=l1@inner+se")
    gates = gw.gates_in(model)
    assert [path for path in gates if path.startswith("stages.0.0.")] == ["stages.0.0.act1.gct", "stages.0.0.bn2.se"]
    assert gates["stages.0.0.act1.gct"].mode == "l1"
    assert len(gates) == 18
    assert model.fc.out_features == 4
    same = gw.make_model(gw.ModelSpec.parse("resnet20:num_classes=4+gct:mode=l1@inner+se"))
    assert list(same.state_dict()) == list(model.state_dict())


def test_argument_overrides_option_of_spec() -> None:
    assert gw.make_model("resnet18_cifar:width=8", width=4).fc.in_features == 4 * 8


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_unknown_name_rejected_in_one_line_with_suggestion() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet18_cifr'; .*Did you mean 'resnet18_cifar'\?") as error:
        gw.make_model("resnet18_cifr")
    assert "expected one of resnet20, resnet32," in str(error.value)
    assert len(str(error.value)) < 300
    with pytest.raises(ValueError, match=r"unknown model 'convnext_tinny'; .*Did you mean 'convnext_tiny'\?"):
        gw.make_model("convnext_tinny.fb_in1k")
    with pytest.raises(ValueError, match=r"timm\.list_models\(\)\.$"):
        gw.make_model("qqqq")


def test_unknown_option_rejected_with_suggestion() -> None:
    with pytest.raises(ValueError, match=r"unknown option of model 'resnet18_cifar' 'with'; .*Did you mean 'width'\?"):
        gw.make_model("resnet18_cifar:with=32")
    for text in ("resnet20:width=32", "resnet20:width", "resnet20:parameters=100000"):
        with pytest.raises(ValueError, match=r"resnet20 has no option .* In resnet20_wider:parameters=N its widths"):
            gw.make_model(text)
    with pytest.raises(ValueError, match=r"has no value\. Write resnet20_wider:parameters=VALUE"):
        gw.make_model("resnet20_wider:parameters")
    with pytest.raises(ValueError, match=r"timm cannot build 'resnet18' with these options \(.*'with'"):
        gw.make_model("resnet18", **{"with": 32})


def test_weights_that_cannot_be_downloaded_are_no_fault_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("gatewise.core.hub_connection._why_unreachable", lambda: None)
    with pytest.raises(gw.errors.DataError, match=r"cannot get the pretrained weights of 'resnet18' .*connection"):
        gw.make_model("resnet18", pretrained=True)


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_classes_must_be_positive_number(name: str) -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        gw.make_model(name, num_classes=0)
    with pytest.raises(TypeError, match="num_classes must be an integer, got '5'"):
        gw.make_model(name, num_classes="5")


# --- Seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv3_small_050"])
@pytest.mark.parametrize("gates", ["se", "gct+gc@stage_end"])
def test_backbone_weights_depend_on_seed_not_on_gates(name: str, gates: str) -> None:
    plain = gw.make_model(name, num_classes=4, seed=3).state_dict()
    gated = gw.make_model(f"{name}+{gates}", num_classes=4, seed=3).state_dict()
    assert len(gated) > len(plain)
    assert all(torch.equal(gated[key], value) for key, value in plain.items())


def test_gates_depend_on_seed() -> None:
    one, same, other = (gw.make_model("resnet20+se", seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], value) for key, value in same.items())
    for key in ("conv1.weight", "fc.weight", "stages.0.0.bn2.se.fc1.weight"):
        assert not torch.equal(one[key], other[key])


def test_seed_leaves_global_generator_unchanged() -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = gw.make_model("resnet20+se", seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(12)
    second = gw.make_model("resnet20+se", seed=3).state_dict()
    assert all(torch.equal(first[key], value) for key, value in second.items())


def test_seed_leaves_gpu_generators_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    gw.make_model("resnet20", seed=3)
    assert seeded == []
    torch.manual_seed(3)
    assert seeded == [3]  # which is how torch seeds them


def test_without_seed_weights_use_global_generator() -> None:
    torch.manual_seed(5)
    one = gw.make_model("resnet20").conv1.weight
    two = gw.make_model("resnet20").conv1.weight
    torch.manual_seed(5)
    assert torch.equal(gw.make_model("resnet20").conv1.weight, one)
    assert not torch.equal(one, two)


def test_seed_applies_to_options_given_as_arguments() -> None:
    model = gw.make_model("resnet18_cifar+se", seed=1, width=8, num_classes=3, in_chans=1)
    twin = gw.make_model("resnet18_cifar:width=8,num_classes=3+se", seed=1, in_chans=1)
    assert all(torch.equal(twin.state_dict()[key], value) for key, value in model.state_dict().items())
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_options_of_own_networks_equal_those_of_class() -> None:
    """`blocks` and `widths` are chosen by the name."""
    hidden_options = {"blocks", "widths", "stem", "bottleneck"}
    own = set(inspect.signature(CifarResNet).parameters) - hidden_options
    for name, extra in [("resnet20", set()), ("resnet18_cifar", {"width"}), ("resnet20_wider", {"parameters"})]:
        assert set(FAMILIES[name].options) == own | extra
    for hidden in hidden_options:
        with pytest.raises(ValueError, match=f"(unknown option of model 'resnet20'|resnet20 has no option) '{hidden}'"):
            gw.make_model("resnet20", **{hidden: [1, 1, 1]})


def test_options_in_text_are_used() -> None:
    assert gw.make_model("resnet20:in_chans=1,num_classes=7").conv1.in_channels == 1
    assert gw.make_model("resnet20:in_chans=1", in_chans=1, seed=3).conv1.in_channels == 1


@pytest.mark.parametrize("seed", [None, 0])
def test_text_and_call_must_agree(seed: int | None) -> None:
    with pytest.raises(InvalidValueError, match=r"the spec of .* sets num_classes=7, but num_classes=2 is required"):
        gw.make_model("resnet20:num_classes=7", num_classes=2, seed=seed)


@pytest.mark.parametrize("model", ["resnet18:global_pool=foo", "resnet18.nope:pretrained=true"])
def test_timm_error_is_one_line(model: str) -> None:
    with pytest.raises(InvalidValueError, match="timm cannot build 'resnet18"):
        gw.make_model(model)


@pytest.mark.parametrize(
    ("gate", "options"),
    [
        ("triplet", {"no_spatial": "no"}),
        ("ge", {"learned": "no"}),
        ("ge", {"mlp": 1}),
        ("gct", {"after_relu": "off"}),
    ],
)
def test_text_option_is_not_true(gate: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidTypeError, match="must be true or false, got"):
        gw.make_gate(gate, 8, **options)


@pytest.mark.parametrize(
    ("gate", "options", "message"),
    [
        ("ge", {"rd_channels": 9}, "set the width of the MLP"),
        ("eca", {"kernel_size": 5, "gamma": 7}, "give either them or kernel_size, not both"),
    ],
)
def test_unused_options_rejected(gate: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        gw.make_gate(gate, 8, **options)
