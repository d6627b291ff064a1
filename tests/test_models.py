"""Networks by name: sizes as in the papers, weights from the seed alone, and refusals that name the nearest."""

import inspect

import pytest
import timm
import torch
from torch import nn

import gatewise as gw
from gatewise.models import CifarResNet, model_names


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
def test_cifar_resnets_have_the_papers_sizes(depth: int, expected: int | None) -> None:
    assert size(gw.make_model(f"resnet{depth}")) == cifar_size(depth)
    assert expected in {None, cifar_size(depth)}
    assert size(gw.make_model(f"resnet{depth}", num_classes=100)) == cifar_size(depth, 100)


@pytest.mark.parametrize("depth", [20, 56])
def test_a_cifar_resnet_has_as_many_convolutions_as_its_name_says(depth: int) -> None:
    model = gw.make_model(f"resnet{depth}")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth  # and the classifier
    assert [m.out_channels for m in convolutions].count(64) == (depth - 2) // 3


def test_gct_adds_the_papers_parameters() -> None:
    """FACTS 1.3: one gate before each convolution, shortcuts included."""
    for depth, added in [(20, 2_025), (56, 6_057), (110, 12_105)]:
        assert size(gw.make_model(f"resnet{depth}+gct")) - cifar_size(depth) == added


def test_resnet18_cifar_is_timms_resnet18_with_a_small_stem() -> None:
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


def test_without_num_classes_the_network_keeps_its_own() -> None:
    assert gw.make_model("resnet20").fc.out_features == 10
    assert gw.make_model("resnet18").num_classes == 1000
    assert gw.make_model("resnet20:num_classes=3").fc.out_features == 3


def test_every_stage_but_the_first_halves_the_resolution_and_other_sizes_work() -> None:
    model = gw.make_model("resnet20").eval()
    sizes: list[tuple[int, ...]] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda *args: sizes.append(tuple(args[-1].shape[2:])))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert model(torch.zeros(1, 3, 40, 24)).shape == (1, 10)
    assert sizes == [(32, 32), (16, 16), (8, 8), (40, 24), (20, 12), (10, 6)]
    assert model.input_size == (3, 32, 32)


def test_a_block_is_its_formula() -> None:
    model = gw.make_model("resnet20", seed=0).eval()
    for block, inputs in ((model.stages[0][0], 16), (model.stages[1][0], 16)):
        x = torch.randn(2, inputs, 8, 8, generator=torch.Generator().manual_seed(0))
        shortcut = x if block.conv1.stride == (1, 1) else block.shortcut[1](block.shortcut[0](x))
        y = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
        torch.testing.assert_close(block(x), (y + shortcut).relu())


def test_names_that_are_not_built_here_come_from_timm() -> None:
    assert type(gw.make_model("mobilenetv3_small_050", num_classes=4)).__module__.startswith("timm.")
    assert type(gw.make_model("resnet20")) is CifarResNet
    assert not set(model_names()) & set(timm.list_models())
    assert gw.make_model("resnet18.a1_in1k", num_classes=4).num_classes == 4


def test_a_spec_is_built_with_its_gates_and_options() -> None:
    model = gw.make_model("resnet20:num_classes=4+gct:mode=l1@inner+se")
    gates = gw.gates_in(model)
    assert [path for path in gates if path.startswith("stages.0.0.")] == ["stages.0.0.act1.gct", "stages.0.0.bn2.se"]
    assert gates["stages.0.0.act1.gct"].mode == "l1"
    assert len(gates) == 18
    assert model.fc.out_features == 4
    same = gw.make_model(gw.ModelSpec.parse("resnet20:num_classes=4+gct:mode=l1@inner+se"))
    assert list(same.state_dict()) == list(model.state_dict())


def test_an_argument_overrides_the_specs_option() -> None:
    assert gw.make_model("resnet20:num_classes=4", num_classes=6).fc.out_features == 6
    assert gw.make_model("resnet18_cifar:width=8", width=4).fc.in_features == 4 * 8


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_in_one_line_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown model 'resnet18_cifr'; .*Did you mean 'resnet18_cifar'\?"
    ) as refusal:
        gw.make_model("resnet18_cifr")
    assert "expected one of resnet20, resnet32," in str(refusal.value)
    assert len(str(refusal.value)) < 300
    with pytest.raises(ValueError, match=r"unknown model 'convnext_tinny'; .*Did you mean 'convnext_tiny'\?"):
        gw.make_model("convnext_tinny.fb_in1k")
    with pytest.raises(ValueError, match=r"timm\.list_models\(\)\.$"):
        gw.make_model("qqqq")


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown option of model 'resnet18_cifar' 'with'; .*Did you mean 'width'\?"):
        gw.make_model("resnet18_cifar:with=32")
    with pytest.raises(ValueError, match="unknown option of model 'resnet20' 'width'"):
        gw.make_model("resnet20:width=32")
    with pytest.raises(ValueError, match=r"timm cannot build 'resnet18' with these options: .*'with'"):
        gw.make_model("resnet18", **{"with": 32})


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_classes_must_be_a_positive_number(name: str) -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        gw.make_model(name, num_classes=0)
    with pytest.raises(TypeError, match="num_classes must be an integer, got '5'"):
        gw.make_model(name, num_classes="5")


# --- Seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv3_small_050"])
@pytest.mark.parametrize("gates", ["se", "gct+gc@stage_end"])
def test_the_backbones_weights_depend_on_the_seed_and_not_on_the_gates(name: str, gates: str) -> None:
    plain = gw.make_model(name, num_classes=4, seed=3).state_dict()
    gated = gw.make_model(f"{name}+{gates}", num_classes=4, seed=3).state_dict()
    assert len(gated) > len(plain)
    assert all(torch.equal(gated[key], value) for key, value in plain.items())


def test_the_same_seed_gives_the_same_gates_and_another_seed_others() -> None:
    one, same, other = (gw.make_model("resnet20+se", seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], value) for key, value in same.items())
    for key in ("conv1.weight", "fc.weight", "stages.0.0.bn2.se.fc1.weight"):
        assert not torch.equal(one[key], other[key])


def test_the_seed_leaves_torchs_global_generator_alone() -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = gw.make_model("resnet20+se", seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(12)
    second = gw.make_model("resnet20+se", seed=3).state_dict()
    assert all(torch.equal(first[key], value) for key, value in second.items())


def test_the_seed_leaves_the_generators_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    gw.make_model("resnet20", seed=3)
    assert seeded == []
    torch.manual_seed(3)
    assert seeded == [3]  # which is how torch seeds them


def test_without_a_seed_weights_come_from_the_global_generator() -> None:
    torch.manual_seed(5)
    one = gw.make_model("resnet20").conv1.weight
    two = gw.make_model("resnet20").conv1.weight
    torch.manual_seed(5)
    assert torch.equal(gw.make_model("resnet20").conv1.weight, one)
    assert not torch.equal(one, two)


def test_the_seed_holds_for_options_given_as_arguments_too() -> None:
    model = gw.make_model("resnet18_cifar+se", seed=1, width=8, num_classes=3, in_chans=1)
    twin = gw.make_model("resnet18_cifar:width=8,num_classes=3+se", seed=1, in_chans=1)
    assert all(torch.equal(twin.state_dict()[key], value) for key, value in model.state_dict().items())
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_options_of_the_networks_built_here_are_those_of_their_class() -> None:
    """`blocks` and `widths` are chosen by the name."""
    assert set(inspect.signature(CifarResNet).parameters) == {"blocks", "widths", "num_classes", "in_chans"}
    for hidden in ("blocks", "widths"):
        with pytest.raises(ValueError, match=f"unknown option of model 'resnet20' '{hidden}'"):
            gw.make_model("resnet20", **{hidden: [1, 1, 1]})
