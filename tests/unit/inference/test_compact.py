"""Compaction: the same outputs with less, for any network; saved, loaded, exported, trained on."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.testing import assert_close

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError
from gatewise.graph import Graph, find_channel_dependencies
from gatewise.graph.measure import macs_per_sample, parameter_count
from gatewise.inference import Compaction
from gatewise.inference.constant_gates import ConstantGates
from gatewise.inference.restructure import GateState, _balanced, restructure
from gatewise.inference.verify import channel_dependencies_of, largest_difference
from gatewise.models.serialization import load_model, save_model
from support.random_networks import BLOCKS, CLOSE, Scripted, drawn_networks, gater_net, images, made


@pytest.mark.extended
@given(drawn_networks)
def test_compacted_network_equals_masked_network(drawn: tuple[list[str], int, int, str]) -> None:
    net, x = made(drawn), images(8)
    small = gw.compact(net, [x])
    assert_close(small(x), net(x), **CLOSE)
    assert small.compaction.difference < 1e-4
    if isinstance(small, gw.GaterNet):
        check_work(small, net, x)


def check_work(small: gw.GaterNet, net: gw.GaterNet, x: torch.Tensor) -> None:
    """Check that MACs and decided gates are those of the masked network, without what was removed."""
    gates = small.forward_with_gates(x)[1]
    assert small.dense_macs == macs_per_sample(small.backbone, x[:1])
    decided = [letter == "?" for letter in small.compaction.states]
    assert torch.equal(gates, net.forward_with_gates(x)[1][:, decided])
    outputs: dict[str, torch.Tensor] = {}
    workers = {own.layer: own for site in small.sites for own in (site.producer, *site.depthwise, *site.consumers)}
    for path in workers:
        layer = small.backbone.get_submodule(path)
        layer.register_forward_hook(lambda _, __, output, path=path: outputs.update({path: output}))
    small(x[:1])
    for path, own in workers.items():
        layer = small.backbone.get_submodule(path)
        channels = outputs[path].shape[-1 if isinstance(layer, nn.Linear) else 1]
        positions = outputs[path].numel() // channels
        assert own.macs == positions * layer.weight.numel()  # type: ignore[union-attr,operator]


@pytest.mark.extended
@settings(max_examples=6)
@given(drawn_networks)
def test_without_decided_gates_plain_network_remains(drawn: tuple[list[str], int, int, str]) -> None:
    net, x = made(drawn, letters="01"), images(4)
    small = gw.compact(net, [x])
    assert type(small) is type(net.backbone)
    assert_close(small(x), net(x), **CLOSE)
    assert not any(type(hook).__module__.startswith("gatewise.gaternet") for hook in hooks(small))


def hooks(net: nn.Module) -> list[object]:
    """Return the layers that change maps in a network."""
    of_layers = ((*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()) for layer in net.modules())
    return [hook.change for hooks in of_layers for hook in hooks if hasattr(hook, "change")]


def test_filters_norms_and_reader_inputs_are_removed() -> None:
    net = gater_net(["basic"], 8, states="11010011")
    small = gw.compact(net, [images(2)])
    body = small[3].body
    assert (body[0].out_channels, body[1].num_features, body[3].in_channels) == (5, 5, 5)
    assert torch.equal(body[0].weight, net.backbone[3].body[0].weight[[0, 1, 3, 6, 7]])
    assert torch.equal(body[1].running_var, net.backbone[3].body[1].running_var[[0, 1, 3, 6, 7]])
    assert torch.equal(body[3].weight, net.backbone[3].body[3].weight[:, [0, 1, 3, 6, 7]])
    assert macs_per_sample(small, images(1)) == 64 * 9 * (3 * 8 + 2 * 8 * 5) + 8 * 5
    assert small.compaction.macs_after == macs_per_sample(small, images(1))
    assert small.compaction.parameters_after == parameter_count(small)


def test_removed_channels_become_zeros_after_addition() -> None:
    net = gater_net(["basic"], 8, states="11010011", sites="residual")
    small = gw.compact(net, [images(2)])
    body = small[3].body
    assert (body[3].out_channels, body[4].num_features) == (5, 5)
    assert body(images(1).new_zeros(1, 8, 8, 8)).shape[1] == 8
    (site,) = small.compaction.sites
    assert site.removed == 3
    assert site.kept == "inputs of later layers kept: the output of '3.body.4' is added to other maps"


def test_squeeze_loses_same_channels() -> None:
    net = gater_net(["inverted"], 8, states="11010011")
    small = gw.compact(net, [images(2)])
    squeeze = small[3].body[6]
    assert (squeeze.fc1.in_channels, squeeze.fc2.out_channels) == (5, 5)
    assert small[3].body[3].groups == 5


def test_groups_keep_equal_numbers_of_filters() -> None:
    net = gater_net(["grouped"], 8, states="1111" + "1000" + "1" * 8)
    small = gw.compact(net, [images(2)])
    assert small[3].body[0].out_channels == 8
    net = gater_net(["grouped"], 8, states="1010" + "1000" + "1" * 8)
    small = gw.compact(net, [images(2)])
    body = small[3].body
    assert (body[0].out_channels, body[3].in_channels, body[3].groups) == (4, 4, 2)
    assert_close(small(images(2)), net(images(2)), **CLOSE)


def test_filters_of_norm_over_channels_are_kept_and_reported() -> None:
    net = gater_net(["gated"], 8, states="11010011")
    small = gw.compact(net, [images(2)])
    (site,) = small.compaction.sites
    assert (small[3].body[0].out_channels, site.removed) == (8, 0)
    assert site.kept.startswith("closed filters kept: without them the network raises InvalidValueError (GatedChannel")
    assert_close(small(images(2)), net(images(2)), **CLOSE)


@pytest.mark.extended
@pytest.mark.parametrize("block", sorted(BLOCKS))
@pytest.mark.parametrize("sites", ["inner", "residual"])
@pytest.mark.parametrize("letters", ["0", "1", "?"])
def test_all_closed_all_open_and_all_decided(block: str, sites: str, letters: str) -> None:
    try:
        net = gater_net([block], sites=sites, letters=letters)
    except InvalidValueError:
        return
    x = images(16)
    small = gw.compact(net, [x])
    assert_close(small(x), net(x), **CLOSE)
    assert isinstance(small, gw.GaterNet) == (letters == "?")
    if letters == "1":
        assert parameter_count(small) == parameter_count(net.backbone)


def test_always_open_gates_are_removed() -> None:
    net = gater_net(["basic", "bottleneck"], states="1?" * 12, gater="light", head_norm=True)
    with torch.no_grad():
        net.gater.head.fc2.weight.zero_()
        net.gater.head.fc2.bias.copy_(torch.tensor([1.0, 1.0, -1.0] * 8))
    small = gw.compact(net, [images(3)])
    assert not isinstance(small, gw.GaterNet)
    with torch.no_grad():
        net.gater.head.fc2.weight[5] = 1e3 * torch.tensor([1.0, -1] * 4)
    x = images(64)
    small = gw.compact(net, [x])
    if isinstance(small, gw.GaterNet):
        assert small.gate_count == small.gater.head.fc2.out_features == small.compaction.states.count("?") < 3
        assert_close(small(x), net(x), **CLOSE)


def test_images_that_disagree_are_counted() -> None:
    net = gater_net(["basic"], states="1" * 7 + "?")
    x = images(40)
    gates = net.forward_with_gates(x)[1][:, 7]
    alike = x[gates == 1]
    small = gw.compact(net, [alike], check=[x[:10], x[10:]])
    assert small.compaction.states == "1" * 8
    assert (small.compaction.checked, small.compaction.disagreeing) == (40, int((gates == 0).sum()))
    assert f"{int((gates == 0).sum())} of 40 other images" in str(small.compaction)


def test_one_image_can_decide_gates() -> None:
    net = gater_net(["basic"], states="1" * 7 + "?")
    x = images(40)
    gates = net.forward_with_gates(x)[1][:, 7]
    small = gw.compact(net, [torch.cat([x[gates == 1], x[gates == 0][:1]])])
    assert small.compaction.states == "1" * 7 + "?"


def test_images_with_other_undecided_gates_agree() -> None:
    net = gater_net(["basic"], states="1" * 7 + "?")
    small = gw.compact(net, [images(40)], check=[images(40, seed=2)])
    assert (small.compaction.states, small.compaction.disagreeing) == ("1" * 7 + "?", 0)


def test_given_network_is_not_modified() -> None:
    net = gater_net(["basic", "inverted"], letters="01?").train()
    before = copy.deepcopy(net.state_dict())
    x = images(4)
    expected = net.eval()(x)
    net.train()
    gw.compact(net, [x])
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(net.eval()(x), expected)


def test_batches_may_be_tuples_and_loaders() -> None:
    net, x = gater_net(["basic"]), images(6)
    data = torch.utils.data.TensorDataset(x, torch.arange(6))
    small = gw.compact(net, torch.utils.data.DataLoader(data, batch_size=4))
    assert small.compaction.images == 6


@pytest.mark.parametrize(
    ("loader", "error", "match"),
    [([], InvalidValueError, "the loader has none"), (iter([images(1)]), InvalidTypeError, "can be read once")],
)
def test_empty_and_single_use_loaders_rejected(loader: object, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        gw.compact(gater_net(["basic"]), loader)  # type: ignore[arg-type]


class KeepsNetwork:
    """Calls the network that it was made with, also from copies."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def __deepcopy__(self, memo: object) -> "KeepsNetwork":
        return self

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)


def test_network_that_a_copy_does_not_leave_is_rejected() -> None:
    net = gater_net(["basic"], letters="0?1")
    net.backbone.forward = KeepsNetwork(net.backbone.forward)  # type: ignore[method-assign]
    with pytest.raises(InvalidValueError, match=r"differs by .* call a network that is none of its modules"):
        gw.compact(net, [images(24)])


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([1.0, 4.0], [1.0, 5.0], 0.2),
        ([1.0, -math.inf], [2.0, -math.inf], 0.5),
        ([math.nan, 1.0], [math.nan, 1.0], 0.0),
        ([1.0, math.nan], [1.0, 1.0], math.inf),
        ([1.0, math.inf], [1.0, -math.inf], math.inf),
        ([True, False], [True, True], 1.0),
        ([[1.0]], [1.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_difference_of_outputs(found: list[Any], expected: list[Any], difference: float) -> None:
    assert largest_difference(torch.tensor(found), {"y": torch.tensor(expected)}) == pytest.approx(difference)


def test_output_without_tensors_has_no_difference() -> None:
    with pytest.raises(InvalidTypeError, match="returns a tensor, got str"):
        largest_difference("a", "a")


def test_non_gater_net_rejected() -> None:
    with pytest.raises(InvalidTypeError, match="expects a GaterNet, got Linear"):
        gw.compact(nn.Linear(2, 2), [images(1)])  # type: ignore[arg-type]


@pytest.mark.extended
@pytest.mark.parametrize("gater", ["light", "local"])
@pytest.mark.parametrize("options", [{"budget": 0.5}, {"sparsity": 0.1}, {"sparsity": 0.1, "weighting": "macs"}])
def test_compacted_net_can_be_trained(gater: str, options: dict[str, float]) -> None:
    torch.manual_seed(0)
    net = gw.make_model("resnet20", num_classes=5)
    net = gw.GaterNet(net, gater=gater, image_size=(8, 8), head_norm=True, **options).eval()  # type: ignore[arg-type]
    for decider in net.gater if net.is_local else [net.gater]:
        nn.init.normal_(decider.head.fc2.bias, std=2.0)
    x = images(8)
    small = gw.compact(net, [x])
    assert isinstance(small, gw.GaterNet)
    assert 0 < small.gate_count < net.gate_count
    assert_close(small(x), net(x), **CLOSE)
    small.train()
    optimizer = torch.optim.SGD(gw.parameter_groups(small), lr=0.1)
    for _ in range(2):
        loss = nn.functional.cross_entropy(small(x), torch.arange(8) % 5) + gw.gate_loss(small)
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)


def test_always_open_filters_use_up_their_share_of_budget() -> None:
    net = gater_net(["basic"], states="11??????", budget=0.5)
    small = gw.compact(net, [images(64)])
    assert small.price.target == pytest.approx((0.5 - 0.25) / 0.75)
    assert float(small.price.share.sum()) == pytest.approx(1)


@pytest.mark.extended
def test_compacted_net_is_saved_and_loaded(tmp_path: Path) -> None:
    spec = gw.ModelSpec.parse("resnet20+gaternet:gater=light")
    torch.manual_seed(3)
    net = gw.make_model(spec, num_classes=5, image_size=(8, 8)).eval()
    nn.init.normal_(net.gater.head.fc2.bias, std=1.0)
    nn.init.normal_(net.gater.head.fc2.weight, std=1.0)
    x = images(8)
    once = gw.compact(net, [x])
    twice = gw.compact(once, [x[:2]])
    steps = [part.compaction.to_dict() for part in (once, twice)]
    for count, small in ((1, once), (2, twice)):
        folder = tmp_path / str(count)
        save_model(folder, small, spec, {"num_classes": 5, "image_size": [8, 8], "compacted": steps[:count]})
        loaded, config = load_model(folder)
        assert torch.equal(loaded(x), small(x))
        assert Compaction.from_dict(config["compacted"][-1]) == small.compaction


@pytest.mark.parametrize("letters", ["01", "01?"])
def test_compacted_net_is_exported_and_copied(letters: str) -> None:
    net = gater_net(["basic", "inverted", "bottleneck"], letters=letters, seed=4)
    small, x = gw.compact(net, [images(16)]), images(5)
    expected = small(x)
    assert torch.equal(copy.deepcopy(small)(x), expected)
    program = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert_close(program.module()(x[:2]), expected[:2], **CLOSE)


def test_forward_with_fixed_shapes_keeps_its_filters() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.conv1(x))
            return self.conv2(x.reshape(-1, 8, 6, 6)).mean((2, 3))

    net = gw.GaterNet(Written(), gater=Scripted("11010011"), image_size=(8, 8))
    small = gw.compact(net.eval(), [images(2)])
    assert small.conv1.out_channels == 8
    assert small.compaction.sites[0].kept
    assert_close(small(images(2)), net(images(2)), **CLOSE)


def test_balanced_filters_are_filled_with_first_closed_ones() -> None:
    assert _balanced([False, True, False, False, True, True], 2) == [0, 1, 4, 5]


def test_constant_gates_of_channels_last_maps_are_removed() -> None:
    gates = ConstantGates([-1, 0, 1], channel_axis=2)
    assert torch.equal(gates(torch.tensor([[[1.0, 2.0]]])), torch.tensor([[[0.0, 1.0, 2.0]]]))


@pytest.mark.situation("A conversion replaces layers whose filters a GaterNet gates")
@pytest.mark.parametrize("conversion", ["SyncBatchNorm after compact"])
@torch.no_grad()
def test_closed_filters_stay_closed_when_their_norm_is_converted(conversion: str) -> None:
    small = gw.compact(gater_net(["basic"], 8, states="11010011", sites="residual"), [images(2)]).eval()
    expected = small(images(2))
    assert any(isinstance(module, ConstantGates) for module in small.modules()), conversion
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(small)
    assert torch.equal(converted(images(2)), expected)


def test_flow_stops_where_ungated_map_is_read() -> None:
    net = gw.make_model("seresnet18", num_classes=5)
    gated = gw.GaterNet(net, sites="residual", image_size=(64, 64))
    site = gated.sites[0]
    graph = Graph(net, torch.zeros(2, 3, 64, 64))
    (dependency,) = find_channel_dependencies(graph, [(site.name, site.layer, site.side)])
    assert not dependency.possible
    assert dependency.reason == "'layer1.0.se.fc1' uses the map before the gate"


def test_wrong_flow_is_detected_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    net = gater_net(["basic", "basic"], states="1101" * 4)

    def wrong(net: gw.GaterNet) -> tuple[list[object], dict[str, str]]:
        dependencies, followed = channel_dependencies_of(net)
        dependencies[0] = type(dependencies[0])(
            dependencies[0].producers, dependencies[0].elementwise, dependencies[1].consumers
        )
        return dependencies, followed

    monkeypatch.setattr("gatewise.inference.restructure.channel_dependencies_of", wrong)
    small, dependencies = restructure(net, [*map(GateState, "1101" * 4)])
    assert [dependency.possible for dependency in dependencies] == [False, True]
    assert_close(small(images(2)), net(images(2)), **CLOSE)
