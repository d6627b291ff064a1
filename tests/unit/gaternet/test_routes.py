"""Routes: filter sets of equal cost, the choice between them, their batch norms, and how they are computed."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import freeze_batch_norm_2d
from timm.utils.model_ema import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.testing import assert_close

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError
from gatewise.gaternet.recalibration import recalibrate
from gatewise.gaternet.route_patterns import clusters, sensitivity
from support.routed_nets import backbone, images, routed


def distinct_norms(net: gw.GaterNet) -> None:
    """Give the batch norms of each route other parameters."""
    assert net.selection is not None
    torch.manual_seed(2)
    for parameter in net.selection.norms.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)


class InOrder(nn.Module):
    """A gater that gives the first image the first route, the second the second, and all others the third."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.arange(len(x)).clamp(max=2), 3).float()


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("group_size", [1, 4])
def test_routes_have_equal_cost_within_budget(budget: float, group_size: int) -> None:
    net = routed(4, budget=budget, group_size=group_size)
    assert net.routes is not None
    assert (net.routes.dtype, net.routes.shape) == (torch.bool, (4, net.gate_count))
    for site in net.sites:
        counts = site.spread(site.own(net.routes)).sum(1)
        assert counts.unique().numel() == 1
        assert int(counts[0]) % (16 if site.filters == 64 else 4) == 0
    assert_close(net.open_fraction(net.routes.float()), torch.full((4,), budget))
    assert net.executed_macs(net.routes.float()).unique().numel() == 1


def test_rounding_of_layers_adds_up_to_budget() -> None:
    net = gw.make_model("resnet20+gaternet:routes=2,budget=0.3")
    opened = net.open_fraction(net.routes.float())
    assert float((opened - 0.3).abs().max()) < 0.02
    assert len({int(site.own(net.routes)[0].sum()) / site.gates for site in net.sites}) > 1


def test_route_of_a_single_image_trains_on_maps_of_one_position() -> None:
    """A batch norm in training mode rejects one value per channel."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 8), nn.BatchNorm2d(4), nn.Flatten()]
    net = gw.GaterNet(nn.Sequential(*layers), routes=3, image_size=(8, 8)).train()
    output = net(images(3), gates=net.routes.float())  # an image of each route
    assert output.shape == (3, 4)
    output.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.backbone.parameters() if parameter.grad is not None)


def test_half_is_default_budget_of_routes() -> None:
    assert_close(routed(2).open_fraction(routed(2).routes.float()), torch.tensor([0.5, 0.5]))


def test_image_runs_with_gates_and_norms_of_its_route() -> None:
    net = routed().eval()
    distinct_norms(net)
    assert net.selection is not None
    output, gates = net.forward_with_gates(images())
    route = net.route_of(images())
    assert route.dtype == torch.int64
    assert route.unique().numel() > 1
    assert torch.equal(gates, net.routes[route].float())
    for image, number, own in zip(images(), route.tolist(), output, strict=True):
        alone = copy.deepcopy(net.backbone)
        net.selection.norms.write(number, alone)
        factors = net.routes[number].float()
        first, second = (factors[site.first : site.first + site.gates].reshape(1, -1, 1, 1) for site in net.sites)
        expected = alone[3:6](alone[:3](image[None]) * first) * second
        assert_close(own[None], alone[6:](expected))


def test_route_alone_is_what_its_images_get() -> None:
    net = routed().eval()
    distinct_norms(net)
    route, output = net.route_of(images()), net(images())
    for number in route.unique().tolist():
        single = net.of_route(number)
        assert torch.equal(single.routes, net.routes[number : number + 1])
        assert single.gater_macs == 0
        assert_close(single(images()[route == number]), output[route == number])
        assert_close(single.backbone(images()), net.of_route(number).backbone(images()))
    with pytest.raises(InvalidValueError, match="route must be between 0 and 2, got 3"):
        net.of_route(3)


def test_given_gates_use_norms_of_nearest_route() -> None:
    net = routed().eval()
    distinct_norms(net)
    output, gates = net.forward_with_gates(images())
    assert_close(net(images(), gates), output)
    nearly = net.routes[1].float().repeat(2, 1)
    nearly[0, 0] = 1 - nearly[0, 0]
    assert net.selection is not None
    assert net.selection.nearest(nearly).tolist() == [1, 1]


def test_one_route_needs_no_gater() -> None:
    net = routed(1)
    assert (net.gater_macs, list(net.gater.parameters())) == (0, [])
    assert net.route_of(images()).tolist() == [0] * 12
    assert net.extra_loss() is None
    net(images())
    assert net.extra_loss() is None


def test_gater_learns_through_sampled_routes() -> None:
    net = routed()
    net(images()).square().sum().backward()
    gradients = [p.grad for p in net.gater.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert float(net.gater.head.fc2.weight.grad.abs().sum()) > 0


def test_sampling_follows_logits() -> None:
    net = routed()
    assert net.selection is not None
    logits = torch.tensor([[0.0, 2.0, -1.0]]).expand(20_000, 3)
    torch.manual_seed(0)
    route, gates = net.selection.choose(logits, True)
    assert_close(route.bincount() / len(route), logits[0].softmax(0), atol=0.02, rtol=0)
    assert torch.equal(gates, net.routes[route].float())
    assert net.selection.choose(logits[:1], False)[0].tolist() == [1]


def test_balance_is_that_of_switch_transformer() -> None:
    net = routed()
    assert net.selection is not None
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    used = logits.argmax(1).bincount(minlength=3) / 50
    assert_close(net.selection.balance_loss(logits), 0.1 * 3 * (used * logits.softmax(1).mean(0)).sum())


def test_gater_prefers_route_of_less_loss() -> None:
    net = routed()
    assert net.selection is not None
    logits = torch.zeros(2, 3, requires_grad=True)
    routes, losses = torch.tensor([[0, 2], [1, 1]]), torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    loss = net.selection.preference_loss(logits, routes, losses)
    assert_close(loss, torch.tensor((2.0 + 5.0) / 2 / 3.5))
    loss.backward()
    assert_close(logits.grad, torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]) / (4 * 3.5) * 1.0)


# How routes are computed


def test_clusters_have_equal_sizes() -> None:
    features = torch.cat([torch.randn(90, 2), torch.randn(10, 2) + 20])
    assigned = clusters(features, 4)
    assert assigned.bincount().tolist() == [25, 25, 25, 25]
    assert assigned[90:].unique().numel() == 1


def test_sensitivity_is_squared_change_of_outputs() -> None:
    gates = torch.ones(4, 3, requires_grad=True)
    weights = torch.tensor([1.0, 0.0, -3.0])
    assert_close(sensitivity((gates * weights).sum(1, keepdim=True), gates), weights.square().expand(4, 3))


def test_routes_open_filters_that_matter_for_their_images() -> None:
    net = routed(1)
    convolution = net.backbone[3]
    with torch.no_grad():
        net.backbone[6].weight[:, :32] = 0  # the first half of the second layer's filters changes nothing
    assert isinstance(convolution, nn.Conv2d)
    net.draw_routes([images(), images(seed=3)])
    assert net.routes[0, 16:].tolist() == [False] * 32 + [True] * 32


def test_drawn_routes_take_over_norms_of_backbone() -> None:
    net = routed().eval()
    with torch.no_grad():
        net.backbone[1].weight.uniform_(0.5, 1.5)
        net.backbone[1].running_mean.normal_()
    net.draw_routes([images()])
    for number in range(3):
        assert_close(net.of_route(number).backbone(images()), net.backbone(images()))
    assert net.routes.sum(1).tolist() == [8 + 32] * 3
    with pytest.raises(InvalidValueError, match="draw_routes needs at least 3 images"):
        net.draw_routes([images(2)])


def test_drawing_is_repeatable_and_changes_no_generator() -> None:
    net, again = routed(), routed()
    torch.manual_seed(5)
    net.draw_routes([images()])
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    again.draw_routes([images()])
    assert torch.equal(net.routes, again.routes)


def test_statistics_are_those_of_images_of_a_route() -> None:
    net = routed().eval()
    assert net.selection is not None
    before = copy.deepcopy(net.selection.norms)
    recalibrate(net, [images()])
    route = net.route_of(images())
    for number in range(3):
        norm: Any = net.selection.norms.of_routes[number][0]
        own = net.backbone[0](images()[route == number])
        if len(own):
            assert_close(norm.running_mean, own.mean((0, 2, 3)))
            assert_close(norm.running_var, own.transpose(0, 1).flatten(1).var(1))
        else:
            old: Any = before.of_routes[number][0]
            assert_close(norm.running_mean, old.running_mean)
        assert norm.momentum == 0.1
    assert net.backbone[1].running_mean.tolist() == [0.0] * 16
    assert not any(module.training for module in net.modules())


def test_statistics_of_gater_come_first() -> None:
    net = gw.GaterNet(backbone(), image_size=(8, 8), head_norm="batch")
    recalibrate(net, [images(64)])
    with torch.no_grad():
        hidden = net.gater.head.fc1(copy.deepcopy(net.gater).features(images(64)))
    assert_close(net.gater.head.norm.running_mean, hidden.mean(0))
    assert net.training


@pytest.mark.parametrize("kind", [{"gater": "light"}, {"gater": "local"}, {"routes": 2}])
def test_one_image_trains_gater_with_running_statistics(kind: dict[str, Any]) -> None:
    net = gw.GaterNet(backbone(), image_size=(8, 8), head_norm="batch", **kind).train()
    norms = [layer for layer in net.gater.modules() if isinstance(layer, nn.BatchNorm1d)]
    before = [norm.running_mean.clone() for norm in norms]
    net(images(1))
    net.extra_loss()
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    net(images(2))
    assert not any(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


def test_gates_of_one_training_image_are_those_of_running_statistics() -> None:
    torch.manual_seed(0)
    gater = gw.GaterNet(backbone(), image_size=(8, 8), head_norm="batch").gater
    for parameter in gater.parameters():
        nn.init.normal_(parameter)
    gater.double().features.eval()
    assert_close(gater(images(1).double()), copy.deepcopy(gater).eval()(images(1).double()))


@pytest.mark.parametrize(
    ("sizes", "used"),
    [((4, 1), 4), ((1, 3), 4), ((1, 1, 1), 2), ((4, 1, 2), 7)],
    ids=["last", "first", "all", "middle"],
)
def test_single_images_are_joined_for_statistics(sizes: tuple[int, ...], used: int) -> None:
    net = gw.GaterNet(backbone(), image_size=(8, 8))
    seen: list[Tensor] = []
    net.gater.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    recalibrate(net, images(sum(sizes)).split(sizes))
    assert all(len(batch) > 1 for batch in seen)
    assert torch.equal(torch.cat(seen[: len(seen) // 2]), images(sum(sizes))[:used])


def test_statistics_of_one_image_are_rejected() -> None:
    with pytest.raises(InvalidValueError, match="at least two images of one size"):
        recalibrate(gw.GaterNet(backbone(), image_size=(8, 8)), [images(1)])


def test_statistics_of_a_route_with_a_single_image_on_maps_of_one_position() -> None:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 8), nn.BatchNorm2d(4), nn.Flatten()]
    net = gw.GaterNet(nn.Sequential(*layers), routes=3, image_size=(8, 8), gater=InOrder())
    recalibrate(net, [images(4)])
    assert all(norm[0].running_mean.any() for norm in net.selection.norms.of_routes)


# Copies, files and errors


def test_weights_of_plain_network_are_those_of_every_route(tmp_path: Path) -> None:
    plain = backbone().eval()
    for norm in (plain[1], plain[4]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    net = routed(budget=1.0).eval()
    gw.load_weights(net, tmp_path / "plain.pt")
    assert_close(net(images(), gates=torch.ones(12, net.gate_count)), plain(images()))


def test_weights_of_net_with_routes_keep_their_norms(tmp_path: Path) -> None:
    net = routed().eval()
    distinct_norms(net)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = routed().eval()
    gw.load_weights(other, tmp_path / "net.pt")
    assert_close(other(images()), net(images()))


def test_routes_survive_copies_and_state_dicts() -> None:
    net = routed().eval()
    distinct_norms(net)
    other = routed().eval()
    other.load_state_dict(net.state_dict())
    for restored in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(restored.routes, net.routes)
        assert_close(restored(images()), net(images()))


def average_of_all_buffers(net: gw.GaterNet) -> Any:
    averaged: Any = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averaged.update = averaged.update_parameters
    averaged.update(net)  # the first call copies
    return averaged


AVERAGES: dict[str, Callable[[gw.GaterNet], Any]] = {
    "AveragedModel": average_of_all_buffers,
    "timm's V2": lambda net: ModelEmaV2(net, decay=0.9),
    "timm's V3": ModelEmaV3,
}


@pytest.mark.parametrize("average", AVERAGES)
def test_average_of_buffers_has_the_drawn_routes_at_once_and_later_ones_by_majority(average: str) -> None:
    """A mean of bool is True unless it is zero: averages opened the old and the new routes together."""
    net = routed()
    averaged = AVERAGES[average](net)
    net.draw_routes(images(48))
    drawn = net.routes
    for _ in range(10):
        averaged.update(net)
        assert torch.equal(averaged.module.routes, drawn)
    gw.set_routes(net, drawn.flip(1))
    for step in range(20):
        averaged.update(net)
        now = averaged.module.routes
        assert torch.equal(now, drawn) if step < 3 else torch.equal(now, net.routes) or torch.equal(now, drawn)
    assert torch.equal(now, net.routes)


def test_equal_average_of_buffers_is_computed() -> None:
    """The difference of two tensors of bool is an error."""
    net = routed()
    averaged = AveragedModel(net, use_buffers=True)
    averaged.update_parameters(net)
    averaged.update_parameters(net)
    assert torch.equal(averaged.module.routes, net.routes)


@pytest.mark.parametrize("assign", [False, True])
def test_routes_of_an_older_file_are_read(assign: bool) -> None:
    net, other = routed().eval(), routed().eval()
    distinct_norms(net)
    other.load_state_dict(net.state_dict() | {"selection.patterns": net.routes}, assign=assign)
    assert torch.equal(other.routes, net.routes)
    assert_close(other(images()), net(images()))
    other.draw_routes(images(48))
    assert_close(other.open_fraction(other.routes.float()), torch.full((3,), 0.5))


def test_plain_weights_still_fit_the_backbone() -> None:
    net = routed()
    assert net.backbone.load_state_dict(backbone().state_dict()).missing_keys == []


CHANGED_NORMS: dict[str, Callable[[nn.Module], Any]] = {
    "fused": lambda backbone: fuse_modules(backbone, [["0", "1"]], inplace=True),
    "optimised for inference": gw.optimize_for_inference,
    "wrapped": lambda backbone: setattr(backbone, "1", nn.Sequential(backbone[1])),
    "removed": lambda backbone: setattr(backbone, "4", nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGED_NORMS)
def test_backbone_without_the_norms_of_its_routes_is_rejected(change: str) -> None:
    """Every image ran with the norms of the dense network."""
    net = routed().eval()
    CHANGED_NORMS[change](net.backbone)
    message = "each route has a batch norm of its own for '[14]', but in the backbone this norm was fused"
    for call in (lambda: net(images()), lambda: net.of_route(0), net.norms_follow_backbone):
        with pytest.raises(InvalidValueError, match=message):
            call()


@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, freeze_batch_norm_2d])
def test_routes_have_their_norms_in_a_converted_backbone(convert: Callable[[nn.Module], nn.Module]) -> None:
    net = routed().eval()
    distinct_norms(net)
    expected = net(images())
    convert(net.backbone)
    assert_close(net(images()), expected)
    assert_close(net.of_route(1)(images(1)), net(images(1), net.routes[1:2].float()))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_one_route_is_traced_by_torch_jit() -> None:
    """torch.jit rejects functional_call, also in a network with one route."""
    net = routed().eval()
    distinct_norms(net)
    single = net.of_route(1)
    distinct_norms(single)  # as a training does: the norms of the backbone are others
    before = copy.deepcopy(single.backbone.state_dict())
    traced = torch.jit.trace(single, images(2))
    assert_close(traced(images(5, seed=3)), single(images(5, seed=3)))
    assert_close(dict(single.backbone.state_dict()), dict(before), rtol=0, atol=0)
    with pytest.raises(InvalidValueError, match=r"cannot be traced. Use one route: net\.of_route\(0\)"):
        torch.jit.trace(net, images(2))


def test_network_with_routes_that_cannot_be_optimised_is_not_advised_to_optimise_its_backbone() -> None:
    with pytest.raises(InvalidValueError, match=r"Use one route: net\.of_route\(0\)") as error:
        gw.optimize_for_inference(routed().eval(), images())
    assert "its backbone" not in str(error.value)


def test_no_routes_without_option() -> None:
    net = gw.GaterNet(backbone(), image_size=(8, 8))
    assert net.routes is None
    for call in (lambda: net.route_of(images()), lambda: net.of_route(0), lambda: net.draw_routes([images()])):
        with pytest.raises(InvalidValueError, match="needs routes; build the network with"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routes": 0}, "routes must be at least 1, got 0"),
        ({"gater": "local"}, "gater='local' decides layer by layer"),
        ({"sparsity": 0.1}, "routes have a fixed cost"),
        ({"gater": lambda _: nn.Sequential(nn.Flatten(), nn.Linear(192, 5))}, "one for each route; got"),
    ],
)
def test_options_that_do_not_fit_routes_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        gw.GaterNet(backbone(), image_size=(8, 8), **{"routes": 3, **options})


def test_head_norms() -> None:
    kinds = {"auto": nn.BatchNorm1d, True: nn.BatchNorm1d, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    for norm, kind in kinds.items():
        assert isinstance(gw.GaterNet(backbone(), image_size=(8, 8), head_norm=norm).gater.head.norm, kind)
    assert not hasattr(gw.GaterNet(backbone(), image_size=(8, 8), head_norm=False).gater.head, "norm")
    with pytest.raises(InvalidValueError, match="head_norm must be auto, batch, layer, true or false, got 'group'"):
        gw.GaterNet(backbone(), head_norm="group")
    with pytest.raises(InvalidTypeError, match="integer"):
        gw.GaterNet(backbone(), routes="3")  # type: ignore[arg-type]


def test_skipping_runs_each_route_and_compacting_needs_one() -> None:
    net = routed().eval()
    distinct_norms(net)
    assert_close(gw.skip_closed_filters(net)(images()), net(images()), atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidValueError, match="this one has routes"):
        gw.compact(net, [images()])
