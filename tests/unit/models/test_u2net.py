"""U²-Net: published sizes, the paper's formulas in plain calls, and gates in every REBNCONV only."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError
from gatewise.models import LABELS_PIXELS, model_names
from gatewise.models.u2net import FULL, REBNCONV, SMALL, ResidualU, U2Net, U2NetConfig

HEIGHTS = (7, 6, 5, 4)
TINY = U2NetConfig(
    encoder=((2, 3), (2, 4), (3, 5), (2, 6), (4, 7), (3, 8)), decoder=((2, 5), (3, 4), (2, 6), (4, 3), (2, 7))
)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def unsettled(model: nn.Module) -> nn.Module:
    """Return the network in eval mode and float64, with normalisation that keeps every layer's map alive."""
    generator = torch.Generator().manual_seed(1)
    for layer in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        layer.momentum = 1.0
        for tensor, low in ((layer.weight, 0.5), (layer.bias, -0.3)):
            tensor.data = torch.rand(len(tensor), generator=generator) + low
    with torch.no_grad():
        model.double().train()(noise(4, 3, 64, 64))  # its statistics are now those of a batch
    return model.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# --- Sizes and shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("u2net", 44_009_869), ("u2net_small", 1_131_181)])
def test_networks_have_published_sizes(name: str, expected: int) -> None:
    assert size(gw.make_model(name)) == expected


def test_classes_and_channels_change_only_first_and_last_layers() -> None:
    plain, other = gw.make_model("u2net_small"), gw.make_model("u2net_small", num_classes=5, in_chans=1)
    before, after = plain.state_dict(), other.state_dict()
    assert list(before) == list(after)
    changed = {key.partition(".")[0] for key in before if before[key].shape != after[key].shape}
    assert changed == {"encoder", "sides", "fuse"}
    assert size(other) - size(plain) == -2 * 64 * 9 + 4 * 6 * (64 * 9 + 1) + (5 * (5 * 6 + 1) - 7)


@torch.no_grad()
@pytest.mark.parametrize("side", [(33, 50), (1, 1), (2, 3), (65, 31), (64, 64), (7, 100)])
def test_any_size_gives_one_map_of_that_size(side: tuple[int, int]) -> None:
    assert U2Net(SMALL, num_classes=2).eval()(torch.zeros(1, 3, *side)).shape == (1, 2, *side)


@pytest.mark.parametrize(("classes", "channels"), [(1, 3), (4, 1)])
def test_training_gives_fused_map_and_six_sides(classes: int, channels: int) -> None:
    model = gw.make_model("u2net_small", num_classes=classes, in_chans=channels)
    maps = model(torch.zeros(2, channels, 33, 50))
    assert isinstance(maps, tuple)
    assert [tuple(found.shape) for found in maps] == [(2, classes, 33, 50)] * 7
    assert model.side_weight == 1
    assert model.eval()(torch.zeros(2, channels, 33, 50)).shape == (2, classes, 33, 50)


def test_maps_are_logits_and_every_parameter_learns() -> None:
    model = gw.make_model("u2net_small_gct", num_classes=2, seed=0)
    maps = model(noise(2, 3, 64, 64).float())
    assert all((found < 0).any() for found in maps)  # no sigmoid
    sum(found.square().sum() for found in maps).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for name, parameter in model.named_parameters():
        if name.endswith("conv.weight") or name.startswith(("sides", "fuse")):
            assert (parameter.grad != 0).any(), name


# --- Formulas --------------------------------------------------------------------------------------------------------


def rebnconv_by_calls(layer: REBNCONV, x: Tensor, dilation: int) -> Tensor:
    y = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=dilation, dilation=dilation)
    norm = layer.norm
    return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()


def scaled(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def residual_u_by_calls(block: ResidualU, x: Tensor, height: int, *, dilated: bool = False) -> Tensor:
    """Return U(F(x)) + F(x) as section 3.1 and figure 2 of the paper draw it, level by level."""
    projected = rebnconv_by_calls(block.project, x, 1)
    levels = [rebnconv_by_calls(block.down[0], projected, 1)]
    for level in range(1, height - 1):
        if dilated:
            levels.append(rebnconv_by_calls(block.down[level], levels[-1], 2**level))
        else:
            pooled = F.max_pool2d(levels[-1], 2, 2, ceil_mode=True)
            levels.append(rebnconv_by_calls(block.down[level], pooled, 1))
    bottom = 2 ** (height - 1) if dilated else 2
    y = rebnconv_by_calls(block.down[height - 1], levels[-1], bottom)
    for level in reversed(range(height - 1)):
        together = torch.cat([scaled(y, levels[level]), levels[level]], 1)
        y = rebnconv_by_calls(block.up[level], together, 2**level if dilated else 1)
    return y + projected


@torch.no_grad()
@pytest.mark.parametrize("side", [(32, 48), (21, 35)])
@pytest.mark.parametrize(("height", "dilated"), [(7, False), (6, False), (5, False), (4, False), (4, True)])
def test_residual_u_matches_formula(height: int, dilated: bool, side: tuple[int, int]) -> None:
    block = unsettled(ResidualU(height, 3, 4, 5, dilated=dilated))
    x = noise(2, 3, *side)
    found = block(x)
    assert found.shape == (2, 5, *side)
    torch.testing.assert_close(found, residual_u_by_calls(block, x, height, dilated=dilated))


def u2net_by_calls(net: U2Net, image: Tensor) -> list[Tensor]:
    """Return the fused map and the six sides as figure 5 of the paper draws them."""
    encoded = [residual_u_by_calls(net.encoder[0], image, 7)]
    for number in range(1, 6):
        pooled = F.max_pool2d(encoded[-1], 2, 2, ceil_mode=True)
        height = HEIGHTS[number] if number < 4 else 4
        encoded.append(residual_u_by_calls(net.encoder[number], pooled, height, dilated=number > 3))
    decoded = [encoded[5]]  # from the deepest up
    for number in (4, 3, 2, 1, 0):
        together = torch.cat([scaled(decoded[-1], encoded[number]), encoded[number]], 1)
        height = HEIGHTS[number] if number < 4 else 4
        decoded.append(residual_u_by_calls(net.decoder[4 - number], together, height, dilated=number > 3))
    sides = []
    for side, found in zip(net.sides, decoded[::-1], strict=True):
        sides.append(scaled(F.conv2d(found, side.weight, side.bias, padding=1), image))
    return [F.conv2d(torch.cat(sides, 1), net.fuse.weight, net.fuse.bias), *sides]


@torch.no_grad()
@pytest.mark.parametrize("side", [(64, 96), (37, 50)])
def test_u2net_matches_formula(side: tuple[int, int]) -> None:
    net = unsettled(U2Net(TINY, num_classes=2))
    image = noise(1, 3, *side)
    fused, *sides = u2net_by_calls(net, image)
    torch.testing.assert_close(net(image), fused)
    net.training = True  # of the network alone: its normalisation stays as it is
    for found, expected in zip(net(image), [fused, *sides], strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_each_stage_halves_map_and_decoder_doubles_it() -> None:
    net, shapes = U2Net(TINY).eval(), []
    for stage in (*net.encoder, *net.decoder):
        stage.register_forward_hook(lambda *args: shapes.append(tuple(args[-1].shape[1:])))
    net(torch.zeros(1, 3, 70, 64))
    assert shapes == [
        (3, 70, 64),
        (4, 35, 32),
        (5, 18, 16),
        (6, 9, 8),
        (7, 5, 4),
        (8, 3, 2),
        (5, 5, 4),
        (4, 9, 8),
        (6, 18, 16),
        (3, 35, 32),
        (7, 70, 64),
    ]


@pytest.mark.parametrize("form", [FULL, SMALL])
def test_stages_are_as_high_as_in_paper(form: U2NetConfig) -> None:
    with torch.device("meta"):
        net = U2Net(form)
    heights = [len(stage.down) for stage in (*net.encoder, *net.decoder)]
    assert heights == [7, 6, 5, 4, 4, 4, 4, 4, 5, 6, 7]
    dilated = [not stage.pools for stage in (*net.encoder, *net.decoder)]
    assert dilated == [False] * 4 + [True] * 3 + [False] * 4
    widths = [stage.project.conv.out_channels for stage in (*net.encoder, *net.decoder)]
    assert widths == ([64, 128, 256, 512, 512, 512, 512, 256, 128, 64, 64] if form is FULL else [64] * 11)
    middle = [stage.down[-1].conv.out_channels for stage in (*net.encoder, *net.decoder)]
    assert middle == ([32, 32, 64, 128, 256, 256, 256, 128, 64, 32, 16] if form is FULL else [16] * 11)


# --- Gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["u2net", "u2net_small"])
def test_every_rebnconv_has_gate_before_convolution_and_sides_none(name: str) -> None:
    model = gw.make_model(f"{name}_gct")
    blocks = {path: layer for path, layer in model.named_modules() if isinstance(layer, REBNCONV)}
    gates = gw.gates_in(model)
    assert len(blocks) == 112
    assert list(gates) == [f"{path}.conv.gct" for path in blocks]
    assert [gate.channels for gate in gates.values()] == [block.conv.in_channels for block in blocks.values()]
    assert size(model) == size(gw.make_model(name)) + 3 * sum(block.conv.in_channels for block in blocks.values())


def test_gate_changes_input_of_its_convolution() -> None:
    model = gw.make_model("u2net_small_gct", seed=0).eval()
    block = model.encoder[0].down[2]
    x = noise(1, 16, 8, 8).float()
    block.conv.gct.gamma.data.fill_(0.7)
    expected = F.conv2d(block.conv.gct(x), block.conv.weight, block.conv.bias, padding=1)
    torch.testing.assert_close(block.conv(x), expected)
    assert not torch.allclose(block.conv(x), F.conv2d(x, block.conv.weight, block.conv.bias, padding=1))


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_fresh_gates_keep_outputs_bitwise(training: bool) -> None:
    image = noise(2, 3, 45, 38).float()
    plain, gated = (gw.make_model(name, seed=3).train(training)(image) for name in ("u2net_small", "u2net_small_gct"))
    pairs = zip(plain, gated, strict=True) if training else [(plain, gated)]
    assert all(torch.equal(own, other) for own, other in pairs)


@torch.no_grad()
def test_plain_checkpoint_loads_strictly_into_gated_network() -> None:
    plain, gated = gw.make_model("u2net_small", seed=1).eval(), gw.make_model("u2net_small_gct", seed=2).eval()
    image = noise(1, 3, 40, 33).float()
    assert not torch.equal(gated(image), plain(image))
    found = gated.load_state_dict(plain.state_dict(), strict=True)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert torch.equal(gated(image), plain(image))


def test_seed_fixes_weights_and_keeps_global_generator() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (gw.make_model("u2net_small", seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[key], value) for key, value in same.items())
    assert not torch.equal(one["fuse.weight"], other["fuse.weight"])


def test_other_gates_can_be_chosen_in_spec() -> None:
    model = gw.make_model("u2net_small:num_classes=2+se@before_conv")
    assert len(gw.gates_in(model)) == 112 + 7  # the sides and the last convolution too


# --- Names and errors ------------------------------------------------------------------------------------------------


def test_names_of_segmentation_networks_are_known() -> None:
    assert set(LABELS_PIXELS) == {"segmenter", "u2net", "u2net_small", "u2net_gct", "u2net_small_gct"}
    assert set(LABELS_PIXELS) <= set(model_names())


@pytest.mark.parametrize("name", ["u2net_small", "u2net_small_gct"])
def test_invalid_options_rejected(name: str) -> None:
    with pytest.raises(InvalidValueError, match="num_classes must be at least 1, got 0"):
        gw.make_model(f"{name}:num_classes=0")
    with pytest.raises(InvalidTypeError, match=r"in_chans must be an integer, got 1\.5"):
        gw.make_model(f"{name}:in_chans=1.5")
    with pytest.raises(
        InvalidValueError, match=r"unknown option of model .* 'num_clases'; .*Did you mean 'num_classes'\?"
    ):
        gw.make_model(f"{name}:num_clases=2")


def test_unknown_name_rejected_with_suggestion() -> None:
    with pytest.raises(InvalidValueError, match=r"unknown model 'u2net_smal'; .*u2net.*Did you mean 'u2net_small'\?"):
        gw.make_model("u2net_smal")
