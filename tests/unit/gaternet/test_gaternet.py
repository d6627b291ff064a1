"""GaterNet: the published counts, the effect of gates, executed work, the budget."""

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError
from gatewise.gaternet import ESTIMATORS
from gatewise.gaternet.budget import Budget, Sparsity
from gatewise.gates import spec
from gatewise.graph.measure import macs_per_sample
from gatewise.insertion.tuning import set_total_steps
from support.tolerance import TOLERANCE


def small(**options: Any) -> gw.GaterNet:
    """Return a GaterNet on a ResNet-20 for 8x8 images, with random statistics, in eval mode."""
    torch.manual_seed(0)
    backbone = gw.make_model("resnet20", num_classes=5)
    for layer in backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
            nn.init.normal_(layer.running_mean, std=0.3)
    return gw.GaterNet(backbone, image_size=(8, 8), **options).eval()


def images(count: int = 3, size: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def random_gates(net: gw.GaterNet, count: int = 3, share: float = 0.5) -> Tensor:
    return (torch.rand(count, net.gate_count, generator=torch.Generator().manual_seed(2)) < share).float()


class ByKeyword(nn.Module):
    """Calls every layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(input=nn.functional.relu(self.conv1(input=x)))


# The paper's numbers


@pytest.mark.extended
@pytest.mark.parametrize(
    ("model", "gates", "parameters"),
    [("resnet20", 336, 547_842), ("resnet56", 1008, 1_137_186), ("resnet164_gaternet", 7200, 1_957_202)],
)
def test_official_form_has_published_numbers(model: str, gates: int, parameters: int) -> None:
    net = gw.GaterNet(gw.make_model(model), sites="residual", gater="resnet20", bottleneck=8)
    assert net.gate_count == gates
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("gater", ["light", "local"])
def test_layers_called_by_keyword_are_gated(gater: str) -> None:
    net = gw.GaterNet(ByKeyword(), gater=gater, gate_bias=-50.0, image_size=(8, 8)).eval()
    assert [site.side for site in net.sites] == ["input"]
    output, gates = net.forward_with_gates(images())
    assert not gates.any()
    assert_close(output, net.backbone.conv2.bias.reshape(1, 4, 1, 1).expand_as(output))


def test_official_place_is_after_last_norm_before_addition() -> None:
    net = small(sites="residual")
    assert [site.layer for site in net.sites][:2] == ["stages.0.0.bn2", "stages.0.1.bn2"]
    assert all(site.consumers == () for site in net.sites)


def test_batchnorm_in_head_is_option() -> None:
    plain, normed = (small(sites="residual", gater="resnet20", head_norm=norm) for norm in (False, True))
    count = [sum(p.numel() for p in net.parameters()) for net in (plain, normed)]
    assert count[1] - count[0] == 2 * 8


# Estimators


def semhash_by_loops(logits: list[list[float]], noise: list[list[float]], coins: list[bool]) -> list[list[Tensor]]:
    """Improved SemHash from FACTS: the gates and, for each, the gradient with respect to its logit."""
    rows = []
    for row, noises, coin in zip(logits, noise, coins, strict=True):
        gates = []
        for logit, e in zip(row, noises, strict=True):
            x = torch.tensor(logit + e, dtype=torch.float64)
            sigmoid = 1 / (1 + torch.exp(-x))
            soft = min(max(1.2 * sigmoid - 0.1, torch.tensor(0.0)), torch.tensor(1.0))
            gate = (torch.tensor(1.0) if soft > 0.49999 else torch.tensor(0.0)) if coin else soft
            slope = 1.2 * sigmoid * (1 - sigmoid) if 0 < soft < 1 else torch.tensor(0.0)
            gates.append(torch.stack([gate.double(), slope.double()]))
        rows.append(gates)
    return rows


def test_semhash_equals_loop_form_with_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    logits = (3 * torch.randn(8, 5, dtype=torch.float64)).requires_grad_()
    noise, coins = torch.randn(8, 5, dtype=torch.float64), torch.rand(8, 1)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: coins)
    gates = gw.functional.semhash(logits)
    (slopes,) = torch.autograd.grad(gates.sum(), logits)
    expected = semhash_by_loops(logits.tolist(), noise.tolist(), (coins < 0.5).flatten().tolist())
    for row, column in itertools.product(range(8), range(5)):
        gate, slope = expected[row][column]
        assert_close(gates[row, column].detach(), gate, **TOLERANCE[torch.float64])
        assert_close(slopes[row, column], slope, **TOLERANCE[torch.float64])
    assert {0.0, 1.0} <= set(gates.flatten().tolist())


def test_semhash_draws_normal_noise_and_coin_per_sample() -> None:
    torch.manual_seed(0)
    gates = gw.functional.semhash(torch.full((20_000, 4), 0.5))
    hard = ((gates == 0) | (gates == 1)).all(1)
    saturated = (2 * torch.distributions.Normal(0, 1).cdf(torch.tensor(-2.398 + 0.5))).item()  # roughly, both ends
    assert hard.double().mean() == pytest.approx(0.5, abs=0.02)
    open_share = gates[hard].mean().item()
    assert open_share == pytest.approx(torch.distributions.Normal(0, 1).cdf(torch.tensor(0.5)).item(), abs=0.01)
    assert ((gates[~hard] == 0) | (gates[~hard] == 1)).double().mean() < saturated


def test_semhash_eval_is_hard_without_noise_and_tie_opens() -> None:
    logits = torch.tensor([[-1e-3, 0.0, 1e-3, -9.0, 9.0]])
    assert gw.functional.semhash(logits, training=False).tolist() == [[0.0, 1.0, 1.0, 0.0, 1.0]]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_give_gates_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 7, requires_grad=True)
    gates = ESTIMATORS[name](logits, True)
    (slopes,) = torch.autograd.grad(gates.sum(), logits)
    assert ((gates >= 0) & (gates <= 1)).all()
    assert (slopes >= 0).all()
    assert (slopes > 0).double().mean() > 0.8
    hard = ESTIMATORS[name](logits.detach(), False)
    assert torch.equal(hard, (logits >= 0).float())


@pytest.mark.parametrize(("name", "scale"), [("gumbel", 1.0), ("semhash", 1.0)])
def test_noise_opens_share_of_gates_given_by_its_distribution(name: str, scale: float) -> None:
    torch.manual_seed(0)
    logits = torch.full((40_000, 1), 0.7)
    opened = (ESTIMATORS[name](logits, True) > 0.49999).double().mean().item()
    expected = (
        torch.sigmoid(torch.tensor(0.7))
        if name == "gumbel"
        else torch.distributions.Normal(0, 1).cdf(torch.tensor(0.7))
    )
    assert opened == pytest.approx(expected.item(), abs=0.01)


# Effect of gates


@pytest.mark.parametrize("sites", ["inner", "residual"])
def test_closed_filter_is_zero_and_open_filter_unchanged(sites: str) -> None:
    net = small(sites=sites)
    gates = random_gates(net)
    seen: dict[str, Tensor] = {}
    for site in net.sites:
        layer = net.backbone.get_submodule(site.layer)
        layer.register_forward_hook(lambda *args, name=site.name: seen.__setitem__(name, args[2]))
    net(images(), gates=gates)
    for site in net.sites:
        opened = gates[:, site.first : site.first + site.gates].bool()
        assert (seen[site.name][~opened] == 0).all()
        assert (seen[site.name][opened] != 0).any()


def test_all_gates_open_equals_plain_network_bitwise() -> None:
    net = small()
    assert torch.equal(net(images(), gates=torch.ones(3, net.gate_count)), net.backbone(images()))


def test_backbone_is_given_module_and_runs_plain_alone() -> None:
    backbone = gw.make_model("resnet20").eval()
    expected = backbone(images())
    net = gw.GaterNet(backbone, image_size=(8, 8)).eval()
    assert net.backbone is backbone
    net(images())
    assert torch.equal(backbone(images()), expected)
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 7, 8, 8), gates=torch.zeros(1, net.gate_count))
    assert torch.equal(backbone(images()), expected), "a failed forward did not remove its gates"


def test_evaluation_is_deterministic_and_hard_and_returns_logits() -> None:
    net = small(gate_bias=0.5)
    logits, gates = net.forward_with_gates(images())
    assert torch.equal(net(images()), logits)
    assert set(gates.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(net(images(), gates=gates), logits)


def test_images_of_batch_have_own_gates() -> None:
    net = small(sites="residual")
    gates = random_gates(net)
    together = net(images(), gates=gates)
    for index in range(3):
        alone = net(images()[index : index + 1], gates=gates[index : index + 1])
        assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-5)


def test_group_of_filters_shares_gate() -> None:
    single, grouped = small(), small(group_size=4)
    assert grouped.gate_count == single.gate_count // 4
    gates = random_gates(grouped)
    assert torch.equal(grouped(images(), gates=gates), single(images(), gates=gates.repeat_interleave(4, 1)))


def test_gates_in_channels_last_code_close_filters() -> None:
    timm = pytest.importorskip("timm")
    net = gw.GaterNet(timm.create_model("convnext_atto", num_classes=3, conv_mlp=False), image_size=(64, 64)).eval()
    site = next(site for site in net.sites if site.channel_axis == 3)
    seen = []
    net.backbone.get_submodule(site.layer).register_forward_hook(lambda *args: seen.append(args[2]))
    gates = random_gates(net, 2)
    net(images(2, 64), gates=gates)
    closed = gates[:, site.first : site.first + site.gates] == 0
    assert (seen[0].movedim(3, 1)[closed] == 0).all()


# Which layers


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("resnext26ts", {}),
        pytest.param("densenet121", {}, marks=pytest.mark.slow),
        pytest.param("vgg11_bn", {"image_size": (64, 64)}, marks=pytest.mark.slow),
        ("regnetx_002", {}),
        ("convnext_atto", {}),
        ("mobilenetv2_035", {}),
        ("efficientnet_lite0", {}),
        pytest.param("inception_v3", {"image_size": (128, 128)}, marks=pytest.mark.slow),
    ],
)
def test_timm_families_can_be_gated(name: str, options: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    image_size = options.get("image_size", (64, 64))
    net = gw.GaterNet(timm.create_model(name, num_classes=3), image_size=image_size).eval()
    assert net.sites
    assert all(site.consumers and site.producer.macs > 0 for site in net.sites)
    assert all(skipped.reason for skipped in net.skipped)
    x = images(2, image_size[0])
    everything = net.executed_macs(torch.ones(2, net.gate_count))
    assert everything.tolist() == [net.dense_macs + net.gater_macs] * 2
    assert net(x, gates=random_gates(net, 2)).shape == (2, 3)
    assert torch.equal(net(x, gates=torch.ones(2, net.gate_count)), net.backbone(x))


class Nested(nn.Module):
    """A residual branch that ends after an addition inside the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.conv1(x)
        return x + self.act(branch + self.conv2(branch))


def test_sums_of_several_maps_cannot_be_gated() -> None:
    net = gw.GaterNet(Nested(), sites="residual", image_size=(8, 8))
    assert [site.name for site in net.sites] == ["conv2"]
    assert [(s.name, s.reason) for s in net.skipped] == [("act", "its channels are a concatenation of several maps")]


def test_sites_are_chosen_by_list_expression_or_function() -> None:
    names = [site.name for site in small().sites]
    assert names[0] == "stages.0.0.conv1"
    by_list = small(sites=["stages.2.0.conv1", "stages.0.0.conv1"])
    assert [site.name for site in by_list.sites] == ["stages.0.0.conv1", "stages.2.0.conv1"]
    assert [site.first for site in by_list.sites] == [0, 16]
    by_expression = small(sites=r"stages\.1\..*conv1")
    assert [site.name for site in by_expression.sites] == names[3:6]
    wide = small(sites=lambda _, layer: layer.out_channels == 64)
    assert {site.filters for site in wide.sites} == {64}
    assert {site.name.rpartition(".")[2] for site in wide.sites} == {"conv1", "conv2"}


def test_site_has_filters_readers_and_macs() -> None:
    site = small().sites[4]
    assert (site.name, site.layer, site.filters, site.gates) == ("stages.1.1.conv1", "stages.1.1.act1", 32, 32)
    assert [reader.layer for reader in site.consumers] == ["stages.1.1.conv2"]
    assert site.macs_per_filter == 4 * 4 * 32 * 9
    assert site.consumer_macs_per_filter == 4 * 4 * 32 * 9


# Work


def executed_by_loops(net: gw.GaterNet, gates: list[float]) -> float:
    """Count convolution by convolution, filter by filter, what one image needs."""
    total = float(net.gater_macs)
    rows: dict[str, tuple[int, ...]] = {}
    hooks = []

    def note(name: str) -> Callable[..., None]:
        return lambda *args: rows.__setitem__(name, tuple(args[2].shape))

    for name, layer in net.backbone.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            hooks.append(layer.register_forward_hook(note(name)))
    net.backbone(images(1))
    for hook in hooks:
        hook.remove()
    writes = {site.name: site for site in net.sites}
    reads = {reader.layer: site for site in net.sites for reader in site.consumers}
    depthwise = {layer.layer: site for site in net.sites for layer in site.depthwise}

    def is_open(site: Any, channel: int) -> bool:
        return site is None or gates[site.first + channel // site.group_size] == 1

    for name, shape in rows.items():
        layer: Any = net.backbone.get_submodule(name)
        positions = shape[2] * shape[3] if len(shape) == 4 else 1
        kernel = layer.weight[0, 0].numel() if layer.weight.dim() == 4 else 1
        groups = getattr(layer, "groups", 1)
        outputs, inputs = layer.weight.shape[0], layer.weight.shape[1]
        for out in range(outputs):
            if not is_open(writes.get(name) or depthwise.get(name), out):
                continue
            first = out // (outputs // groups) * inputs
            for channel in range(first, first + inputs):
                reader_site = None if name in depthwise else reads.get(name)
                total += positions * kernel * is_open(reader_site, channel)
    return total


class Grouped(nn.Module):
    """A convolution in groups between two others, and a depthwise one after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size = (3, 8, 8)
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.d = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.act = nn.ReLU()
        self.b = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.act2 = nn.ReLU()
        self.c = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act2(self.b(self.act(self.d(self.a(x)))))).mean((2, 3))


@pytest.mark.parametrize(
    "make",
    [
        small,
        lambda: small(sites="residual"),
        lambda: small(group_size=8),
        lambda: gw.GaterNet(gw.make_model("resnet164_gaternet"), image_size=(8, 8)).eval(),
        lambda: gw.GaterNet(Grouped()).eval(),
    ],
    ids=["inner", "residual", "groups of filters", "chains of sites", "grouped and depthwise"],
)
def test_executed_macs_count_open_filters_on_open_inputs(make: Callable[[], gw.GaterNet]) -> None:
    net = make()
    gates = random_gates(net, 2, share=0.4)
    found = net.executed_macs(gates)
    for row, value in zip(gates.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(executed_by_loops(net, row), rel=1e-9)


def test_dense_macs_equal_plain_backbone() -> None:
    net = small()
    assert net.dense_macs == macs_per_sample(net.backbone, images())
    assert net.gater_macs == macs_per_sample(net.gater, images())


@pytest.mark.parametrize("model", ["resnet20", "resnet56", "resnet18_cifar:width=32"])
def test_light_gater_uses_at_most_three_percent(model: str) -> None:
    net = gw.make_model(f"{model}+gaternet")
    assert 0.005 * net.dense_macs < net.gater_macs <= 0.03 * net.dense_macs


def test_light_gater_shrinks_large_images() -> None:
    timm = pytest.importorskip("timm")
    net = gw.GaterNet(timm.create_model("resnet18", num_classes=3)).eval()
    assert net.gater_macs <= 0.03 * net.dense_macs
    assert net(images(1, 224)).shape == (1, 3)


def test_open_fraction_weighs_gates_by_macs() -> None:
    net = small(sites=["stages.0.0.conv1", "stages.1.0.conv1"])
    first, second = (site.macs_per_filter * site.filters for site in net.sites)
    gates = torch.zeros(1, 16 + 32)
    gates[:, :16] = 1
    assert_close(net.open_fraction(gates), torch.tensor([first / (first + second)]))


# Gaters


def test_custom_gater_as_module_or_function() -> None:
    class Own(nn.Module):
        def __init__(self, gates: int) -> None:
            super().__init__()
            self.fc = nn.Linear(3, gates)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mean((2, 3)))

    by_function = small(gater=Own)
    assert isinstance(by_function.gater, Own)
    module = Own(by_function.gate_count)
    assert small(gater=module).gater is module


def test_local_gating_decides_from_input_of_each_site() -> None:
    net = small(gater="local", bottleneck=4)
    logits, gates = net.forward_with_gates(images())
    assert gates.shape == (3, net.gate_count)
    inputs: list[Tensor] = []
    first = net.backbone.get_submodule(net.sites[0].name)
    first.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    net(images())
    expected = net.gater[0].head(inputs[0].mean((2, 3))) >= 0
    assert torch.equal(gates[:, :16].bool(), expected)
    assert torch.equal(net(images(), gates=gates), logits)
    forced = torch.ones_like(gates)
    assert torch.equal(net(images(), gates=forced), net.backbone(images()))
    assert net.gater_macs == sum(p.numel() for p in net.gater.parameters() if p.dim() == 2)


def test_gates_start_open_with_budget_else_undecided() -> None:
    for gater in ("light", "local"):
        budgeted, free = (small(gater=gater, budget=budget) for budget in (0.5, None))
        for net, bias in ((budgeted, 2.0), (free, 0.0)):
            layers = [layer for name, layer in net.gater.named_modules() if name.endswith("fc2")]
            assert layers
            assert all(bool((layer.bias == bias).all()) for layer in layers)


def test_guessed_image_size_is_reported() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.warns(UserWarning, match="Sequential does not define its image size; work is counted for 224x224"):
        gw.GaterNet(backbone)
    gw.GaterNet(backbone, image_size=(8, 8))
    gw.GaterNet(gw.make_model("resnet20"))


def test_gates_may_start_open() -> None:
    closed, opened = (small(gate_bias=bias).forward_with_gates(images())[1].mean() for bias in (-4.0, 4.0))
    assert closed < 0.1
    assert opened > 0.9


# Learning


def test_every_parameter_of_backbone_and_gater_learns() -> None:
    for gater in ("light", "resnet20", "local"):
        net = small(gater=gater, budget=0.5).train()
        loss = nn.functional.cross_entropy(net(images(8)), torch.arange(8) % 5) + gw.gate_loss(net)
        loss.backward()
        silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert silent == []


def test_gate_loss_is_lambda_times_mean_gate() -> None:
    net = small(sparsity=0.25).train()
    _, gates = net.forward_with_gates(images())
    assert_close(gw.gate_loss(net), 0.25 * gates.mean())
    assert gw.gate_loss(net) == 0, "the loss of a forward counts once"


def test_gate_loss_may_count_macs() -> None:
    net = small(sparsity=2.0, weighting="macs").train()
    _, gates = net.forward_with_gates(images())
    assert_close(gw.gate_loss(net), 2 * net.open_fraction(gates).mean())


def test_gate_loss_is_zero_in_evaluation() -> None:
    net = small(budget=0.5)
    net(images())
    assert gw.gate_loss(net) == 0


def controller(target: float = 0.5, gates: int = 4) -> Budget:
    return Budget(torch.full((gates,), 1 / gates), target)


def test_price_follows_controller_formula() -> None:
    budget = controller()
    budget.schedule(20)
    price, mean_open = 0.0, 1.0
    for step in range(120):
        hard = torch.ones(2, 4) if step < 15 else torch.full((2, 4), 0.45)
        gates = torch.full((2, 4), 0.75)
        target = 1 - 0.5 * min(1, step / 10)
        mean_open += 0.1 * (hard.mean().item() - mean_open)
        price += 0.05 * (mean_open - target) if round(abs(mean_open - target), 6) < 0.1 else 0.0
        expected = (price + 20 * (mean_open - target)) * 0.75
        assert budget(gates, hard).item() == pytest.approx(expected, abs=1e-4)
    assert price < 0, "too little open for long is rewarded, by the integral too"


def test_toy_that_prefers_open_gates_meets_budget() -> None:
    torch.manual_seed(0)
    logits = nn.Parameter(torch.full((1, 100), 2.0))
    budget = Budget(torch.full((100,), 0.01), 0.3)
    budget.schedule(2000)
    optimizer = torch.optim.SGD([logits], lr=0.5)
    for _ in range(2000):
        gates = gw.functional.semhash(logits.expand(16, -1))
        task_loss = -(gates * torch.linspace(0.5, 1.5, 100)).mean()
        optimizer.zero_grad()
        (task_loss + budget(gates, gw.functional.semhash(logits, training=False))).backward()
        optimizer.step()
    opened = (logits >= 0).float().flatten()
    assert opened.mean().item() == pytest.approx(0.3, abs=0.03)
    assert opened[50:].mean() > opened[:50].mean() + 0.3, "the gates that matter most stay open"


def test_controller_resumes_from_saved_state() -> None:
    first, second = controller(), controller()
    for _ in range(5):
        first(torch.ones(2, 4), torch.ones(2, 4))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(torch.ones(2, 4), torch.ones(2, 4)), second(torch.ones(2, 4), torch.ones(2, 4)))


def test_schedule_reaches_controller() -> None:
    net = small(budget=0.5)
    set_total_steps(net, 600)
    assert isinstance(net.price, Budget)
    assert net.price.ramp == 300
    assert isinstance(small().price, Sparsity)


def test_new_schedule_restarts_controller() -> None:
    used, fresh = controller(), controller()
    used(torch.zeros(2, 4), torch.zeros(2, 4))
    for budget in (used, fresh):
        budget.schedule(20)
    assert torch.equal(used.state, fresh.state)


# Tools


@pytest.mark.parametrize("gater", ["light", "local"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copy_has_independent_gates(gater: str, duplicate: Callable[[Any], Any]) -> None:
    net = small(gater=gater, budget=0.5)
    net.train()(images())  # leaves a pending loss
    net.eval()
    other = duplicate(net)
    expected = net(images())
    assert torch.equal(other(images()), expected)
    with torch.no_grad():
        for parameter in other.gater.parameters():
            parameter.fill_(-1.0)
    assert torch.equal(net(images()), expected)
    assert not torch.equal(other(images()), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@torch.no_grad()
def test_copy_of_compiled_net_runs_itself(duplicate: Callable[[Any], Any]) -> None:
    net = gw.GaterNet(ByKeyword(), image_size=(8, 8)).eval()
    net.compile(backend="eager")
    other = duplicate(net)
    for parameter in other.parameters():
        parameter.zero_()
    assert not other(images()).any()


@pytest.mark.situation("The whole network is converted to another precision")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_budget_counts_steps_in_every_precision(dtype: torch.dtype) -> None:
    """In bfloat16, 256 + 1 is 256: the target would stop falling."""
    net = nn.ModuleList([controller()]).to(dtype)
    price: Any = net[0]
    price.schedule(600)
    gates = torch.ones(2, 4, dtype=dtype)
    for _ in range(300):
        price(gates, gates)
    assert int(price.state[0]) == 300
    assert price.state.dtype == price.share.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert list(net.to("cpu").state_dict()) == ["0.state"]


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize(
    "options", [{"budget": 0.5}, {"sparsity": 0.1, "weighting": "macs"}], ids=["budget", "sparsity"]
)
def test_net_from_the_meta_device_has_the_loss_of_its_gates(options: dict[str, Any], assign: bool) -> None:
    """The shares of gates are in no file: they stayed on the meta device, or `to_empty` left them without values."""
    net = small(**options)
    with torch.device("meta"):
        other = small(**options)
    loaded = other if assign else other.to_empty(device="cpu")
    loaded.load_state_dict(copy.deepcopy(net.state_dict()), assign=assign)
    assert torch.equal(loaded.price.share, net.price.share)
    losses: list[Tensor | None] = []
    for trained in (net, loaded):
        torch.manual_seed(1)
        trained.train()(images())
        losses.append(trained.extra_loss())
    assert_close(losses[0], losses[1])


def test_bf16_gates_survive_save_and_load() -> None:
    net = small(budget=0.5).to(torch.bfloat16)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = gw.GaterNet(gw.make_model("resnet20", num_classes=5), image_size=(8, 8), budget=0.5).to(torch.bfloat16)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = images().bfloat16()
    first, second = net.forward_with_gates(x), other.eval().forward_with_gates(x)
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[0], second[0])


@pytest.mark.extended
@pytest.mark.parametrize("gater", ["light", pytest.param("local", marks=pytest.mark.slow)])
def test_compiled_net_agrees(gater: str) -> None:
    net = small(gater=gater)
    torch.compiler.reset()
    compiled = torch.compile(net, backend="aot_eager")
    assert_close(compiled(images()), net(images()), atol=1e-5, rtol=1e-5)
    assert_close(compiled(images(5)), net(images(5)), atol=1e-5, rtol=1e-5)


@pytest.mark.extended
@pytest.mark.parametrize("gater", ["light", "local"])
def test_exported_net_agrees_at_other_batch_size_and_routes(gater: str) -> None:
    net = small(gater=gater)
    program = torch.export.export(net, (images(),), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    x = 3 * images(5).flip(0)
    assert_close(program.module()(x), net(x), atol=1e-5, rtol=1e-5)


# By name


def test_spec_builds_gater_net_with_same_backbone_weights() -> None:
    net = gw.make_model("resnet20+gaternet:sites=residual,gater=resnet20,budget=0.5", num_classes=7, seed=3)
    plain = gw.make_model("resnet20", num_classes=7, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(net.backbone.parameters(), plain.parameters(), strict=True))
    assert net.price.target == 0.5
    again = gw.make_model("resnet20+gaternet:sites=residual,gater=resnet20,budget=0.5", num_classes=7, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_gates_and_gater_can_be_combined() -> None:
    net = gw.make_model("resnet20+se+gaternet")
    assert len(gw.gates_in(net)) == 9
    assert isinstance(net, gw.GaterNet)


def test_spec_options_equal_class_options() -> None:
    import inspect

    parameters = set(inspect.signature(gw.GaterNet).parameters) - {"backbone", "image_size", "example"}
    assert set(spec.GATER_OPTIONS) == parameters


# Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sites": "iner"}, InvalidValueError, "no filters to gate at sites='iner'"),
        ({"sites": ["stages.0.0.conv9"]}, InvalidValueError, "unknown gateable convolution 'stages.0.0.conv9'"),
        ({"sites": "["}, InvalidValueError, r"sites='\[' is not a valid regular expression"),
        ({"sites": 3}, InvalidTypeError, "sites must be 'inner', 'residual', .* got 3"),
        ({"gater": "lite"}, InvalidValueError, r"unknown gater 'lite'; .* Did you mean 'light'\?"),
        ({"bottleneck": 0}, InvalidValueError, "bottleneck must be at least 1, got 0"),
        ({"budget": 0}, InvalidValueError, "budget must be between 1e-06 and 1, got 0"),
        ({"budget": 1.2}, InvalidValueError, "budget must be between .* got 1.2"),
        ({"budget": "half"}, InvalidTypeError, "budget must be a number, got 'half'"),
        ({"budget": 0.5, "sparsity": 1.0}, InvalidValueError, "budget or sparsity, not both"),
        ({"group_size": 3}, InvalidValueError, "group_size 3 does not divide the 16 filters of 'stages.0.0.conv1'"),
        ({"estimator": "coin"}, InvalidValueError, "unknown estimator 'coin'"),
        ({"weighting": "flops"}, InvalidValueError, "unknown weighting 'flops'"),
        ({"gater": nn.Flatten()}, InvalidValueError, r"must return logits of shape \(N, 336\).* got \(2, 192\)"),
        ({"gater": nn.Linear(7, 1)}, InvalidValueError, r"the gater fails on an image of 3 x 8 x 8 \(mat1 and mat2"),
    ],
)
def test_invalid_options_rejected_at_construction(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small(**options)


def test_backbone_without_gateable_filters_rejected() -> None:
    with pytest.raises(InvalidValueError, match="Sequential has no filters to gate at sites='inner'"):
        gw.GaterNet(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), image_size=(8, 8))
    with pytest.raises(InvalidValueError, match="Linear has no convolution"):
        gw.GaterNet(nn.Linear(3, 4))
    message = r"\(no convolution whose name matches can be gated\)\. .* Did you mean 'residual'\?"
    with pytest.raises(InvalidValueError, match=message):
        small(sites="residul")


def test_gates_of_other_shape_rejected() -> None:
    with pytest.raises(InvalidValueError, match=r"gates must have shape \(3, 336\).*got \(3, 335\)"):
        small()(images(), gates=torch.ones(3, 335))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gaternet:budgets=0.5", r"unknown option of gaternet 'budgets'; .* Did you mean 'budget'\?"),
        ("gaternet@inner", "gaternet has no place, got"),
    ],
)
def test_meaningless_spec_rejected(text: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        spec.GateChoice.parse(text)


def test_two_gaters_rejected() -> None:
    with pytest.raises(InvalidValueError, match="expected at most one gater, got 2"):
        gw.make_model("resnet20+gaternet+gaternet:budget=0.5")
