"""Freezing: training only the gates, training everything again, and the extra losses of gates."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import gatewise as gw
from gatewise.insertion.tuning import trainable_parameters


class NormGate(gw.Gate):
    """A gate that has a BatchNorm and a dropout."""

    def __init__(self, channels: int, *, spatial_dims: int = 2, device: Any = None, dtype: Any = None) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.norm = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x))


def network(gate: Any = "gct", place: str = "residual_end") -> nn.Module:
    torch.manual_seed(0)
    net = gw.make_model("resnet20")
    gw.insert_gates(net, gate, place=place)
    return net


def is_gate(name: str) -> bool:
    return ".gct." in name or ".norm_gate." in name


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def train_once(net: nn.Module) -> None:
    """Make one optimizer step."""
    net.train()
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 3 + 1
    optimizer = torch.optim.SGD(gw.parameter_groups(net), lr=0.1)
    F.cross_entropy(net(x), torch.arange(8)).backward()
    optimizer.step()


def changed(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def again(net: nn.Module) -> nn.Module:
    return net


def pickled(net: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(net))


def test_only_gates_parameters_are_trainable() -> None:
    net = network()
    gw.train_only_gates(net)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        name for name, _ in net.named_parameters() if is_gate(name)
    }


@pytest.mark.parametrize("after", [again, copy.deepcopy, pickled])
@pytest.mark.parametrize("place", ["before_conv", "residual_end"])
def test_training_step_changes_only_gates_and_no_statistics(
    place: str, after: Callable[[nn.Module], nn.Module]
) -> None:
    net = network(place=place)
    gw.train_only_gates(net)
    net = after(net)
    before = snapshot(net)
    train_once(net)
    moved = changed(net, before)
    assert moved
    assert all(is_gate(name) for name in moved)


@pytest.mark.parametrize("after", [again, copy.deepcopy, pickled])
def test_frozen_norms_stay_in_eval_mode(after: Callable[[nn.Module], nn.Module]) -> None:
    net = network()
    gw.train_only_gates(net)
    net = after(net)
    for mode in (True, False, True):
        assert net.train(mode) is net
        assert net.training is mode
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 21
        assert not any(norm.training for norm in norms)
        assert all(gate.training is mode for gate in gw.gates_in(net).values())


def test_copy_of_frozen_network_controls_its_own_layers() -> None:
    net = network()
    gw.train_only_gates(net)
    twin = copy.deepcopy(net)
    gw.train_everything(net)
    net.train()
    twin.train()
    assert net.bn1.training
    assert not twin.bn1.training


@pytest.mark.parametrize("place", ["before_conv", "residual_end"])
def test_own_norm_of_gate_trains_inside_frozen_norm(place: str) -> None:
    """At residual_end a gate is a child of a BatchNorm that is frozen."""
    net = network(NormGate, place)
    gw.train_only_gates(net)
    before = snapshot(net)
    train_once(net)
    moved = changed(net, before)
    assert all(is_gate(name) for name in moved)
    for path, gate in gw.gates_in(net).items():
        assert f"{path}.norm.running_mean" in moved
        assert f"{path}.norm.weight" in moved
        assert gate.drop.training


def test_timm_norm_layers_are_frozen() -> None:
    net = timm.create_model("regnety_002", num_classes=10)
    gw.insert_gates(net, "gct")
    gw.train_only_gates(net)
    before = statistics(net)
    train_once(net)
    assert before
    assert all(torch.equal(value, before[name]) for name, value in statistics(net).items())


def test_freezing_keeps_eval_mode() -> None:
    net = network().eval()
    gw.train_only_gates(net)
    assert not any(module.training for module in net.modules())


def test_freezing_network_without_gates_rejected() -> None:
    net = gw.make_model("resnet20")
    with pytest.raises(
        ValueError, match=r"CifarResNet has no gates to train \(it has no gates\)\. Insert gates with parameters"
    ):
        gw.train_only_gates(net)
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_train_everything_restores_behaviour(training: bool) -> None:
    net = network().train(training)
    before, state = [set(module.__dict__) for module in net.modules()], snapshot(net)
    flags = [module.training for module in net.modules()]
    gw.train_only_gates(net)
    gw.train_everything(net)
    assert all(p.requires_grad for p in net.parameters())
    assert [set(module.__dict__) for module in net.modules()] == before
    assert [module.training for module in net.modules()] == flags
    assert changed(net, state) == set()
    train_once(net)
    moved = changed(net, state)
    assert {"conv1.weight", "bn1.weight", "bn1.running_mean", "bn1.num_batches_tracked", "fc.bias"} <= moved


@pytest.mark.parametrize("after", [again, copy.deepcopy, pickled])
@pytest.mark.parametrize("calls", [1, 3])
def test_train_everything_unfreezes_only_what_was_frozen(calls: int, after: Callable[[nn.Module], nn.Module]) -> None:
    net = network()
    net.conv1.requires_grad_(False)
    net.bn1.bias.requires_grad_(False)
    next(iter(gw.gates_in(net).values())).gamma.requires_grad_(False)
    before, state = {name: p.requires_grad for name, p in net.named_parameters()}, snapshot(net)
    assert sum(before.values()) == len(before) - 3
    for _ in range(calls):
        gw.train_only_gates(net)
        assert sum(p.requires_grad for p in net.parameters()) == 3 * len(gw.gates_in(net))
    net = after(net)
    assert list(net.state_dict()) == list(state)
    assert changed(net, state) == set()
    gw.train_everything(net)
    assert {name: p.requires_grad for name, p in net.named_parameters()} == before
    gw.train_everything(net)  # there is nothing left to undo
    assert {name: p.requires_grad for name, p in net.named_parameters()} == before


def test_gates_inserted_between_two_freezings_are_remembered() -> None:
    net = network()
    net.fc.requires_grad_(False)
    gw.train_only_gates(net)
    gw.insert_gates(net, "gct", place="before_conv")
    net.conv1.gct.beta.requires_grad_(False)
    gw.train_only_gates(net)
    gw.train_everything(net)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"fc.weight", "fc.bias", "conv1.gct.beta"}


class Thawed(nn.BatchNorm2d):
    """A norm with parameters of its own in the place of another."""


def synchronised(net: nn.Module) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def frozen_and_thawed(net: nn.Module) -> nn.Module:
    return timm.layers.unfreeze_batch_norm_2d(timm.layers.freeze_batch_norm_2d(net))


def with_new_norms(net: nn.Module) -> nn.Module:
    for path, norm in [(path, m) for path, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]:
        net.set_submodule(path, Thawed(norm.num_features))
    return net


@pytest.mark.parametrize("after", [again, copy.deepcopy, pickled])
@pytest.mark.parametrize("convert", [synchronised, frozen_and_thawed, with_new_norms])
def test_norms_in_the_place_of_frozen_ones_are_frozen_and_thawed(
    convert: Callable[[nn.Module], nn.Module], after: Callable[[nn.Module], nn.Module]
) -> None:
    net = network(place="before_conv")
    net.bn1.bias.requires_grad_(False)
    net.stages[1].requires_grad_(False)
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    gw.train_only_gates(net)
    net = convert(after(net))
    before = snapshot(net)
    net.train()
    with torch.no_grad():
        net(torch.randn(4, 3, 32, 32))
    assert changed(net, before) == set(), "statistics of the new norms stay constant"
    assert {name for name, p in net.named_parameters() if p.requires_grad} == set(filter(is_gate, flags))
    gw.train_everything(net)
    net.train()
    assert {name: p.requires_grad for name, p in net.named_parameters()} == flags
    assert net.bn1.training


def test_layer_with_the_same_parameters_is_thawed() -> None:
    """Preparation for quantisation-aware training replaces convolutions."""
    net = network()
    gw.train_only_gates(net)
    twin = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    twin.weight, net.conv1 = net.conv1.weight, twin
    gw.train_everything(net)
    assert all(p.requires_grad for p in net.parameters())


def test_new_head_of_a_frozen_network_is_trained() -> None:
    net = network()
    net.fc.requires_grad_(False)
    gw.train_only_gates(net)
    net.fc = nn.Linear(64, 5)
    net(torch.randn(2, 3, 32, 32))
    assert net.fc.weight.requires_grad
    gw.train_everything(net)
    assert all(p.requires_grad for p in net.parameters())


def test_part_stays_unfrozen_after_a_forward() -> None:
    net = network()
    gw.train_only_gates(net)
    gw.train_everything(net.stages[2])
    net.train()
    net(torch.randn(2, 3, 32, 32))
    assert net.stages[2][0].bn1.training
    assert all(p.requires_grad for p in net.stages[2].parameters())
    assert not net.stages[1][0].bn1.training


def test_network_in_a_wrapper_that_was_frozen_too_stays_thawed() -> None:
    net = network()
    outer = nn.Sequential(net)
    gw.train_only_gates(outer)
    gw.train_only_gates(net)
    gw.train_everything(net)
    outer.train()
    outer(torch.randn(2, 3, 32, 32))
    assert net.bn1.training
    assert all(p.requires_grad for p in net.parameters())


class Sharded(nn.Sequential):
    """What fully_shard makes of a module: a subclass with a switch for the synchronisation."""

    def set_requires_gradient_sync(self, value: bool) -> None: ...


@pytest.mark.parametrize("wrapper", ["DistributedDataParallel", "Sharded"])
def test_parameters_that_no_wrapper_synchronises_are_rejected(wrapper: str, tmp_path: Path) -> None:
    net = convolutions()
    gw.insert_gates(net, "gct")
    if wrapper == "Sharded":
        net = Sharded(*net)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def wrap(net: nn.Module) -> nn.Module:
        return net if wrapper == "Sharded" else nn.parallel.DistributedDataParallel(net)

    only_gates, everything = gw.fine_tuning_stages(2, 1)
    rejected = pytest.raises(
        gw.errors.InvalidTypeError, match=rf"is a {wrapper}, which synchronises the .*wrap it again"
    )
    try:
        everything.begin(wrap(net))  # changes nothing
        for freeze in (gw.train_only_gates, only_gates.begin):
            flags = [p.requires_grad for p in net.parameters()]
            with rejected:
                freeze(wrap(net))
            assert [p.requires_grad for p in net.parameters()] == flags
        inner = nn.Sequential(*net) if wrapper == "Sharded" else net
        gw.train_only_gates(inner)
        only_gates.begin(wrap(net))  # changes nothing
        for thaw in (gw.train_everything, everything.begin):
            with rejected:
                thaw(wrap(net))
        gw.train_everything(inner)
        gw.train_everything(wrap(net))
    finally:
        torch.distributed.destroy_process_group()
    assert all(p.requires_grad for p in net.parameters())


def test_train_everything_without_freezing_changes_nothing() -> None:
    net = network()
    net.fc.requires_grad_(False)
    gw.train_everything(net)
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == {"fc.weight", "fc.bias"}


def test_part_can_be_unfrozen() -> None:
    net = network()
    gw.train_only_gates(net)
    gw.train_everything(net.stages[2])
    net.train()
    assert net.stages[2][0].bn1.training
    assert not net.stages[1][0].bn1.training
    gw.train_only_gates(net)
    gw.train_everything(net)
    assert all(p.requires_grad for p in net.parameters())


def test_network_with_frozen_norms_is_optimized() -> None:
    """Code that folds a norm checks its class, which differs for a frozen norm."""
    net = gw.make_model("resnet20+gaternet:budget=0.5", seed=0)
    gw.insert_gates(net.backbone, "gct", place="before_conv", include=["conv1"])
    ways = (
        lambda net: gw.skip_closed_filters(net, mode="skip").net,
        lambda net: gw.optimize_for_inference(net.backbone),
    )

    def layers(net: nn.Module) -> list[list[tuple[str, bool]]]:
        fast = [way(copy.deepcopy(net).eval()) for way in ways]
        return [[(type(m).__name__, "forward" in m.__dict__) for m in result.modules()] for result in fast]

    plain = layers(net)
    gw.train_only_gates(net)
    assert layers(net) == plain


def test_freezing_twice_equals_freezing_once() -> None:
    net = network()
    gw.train_only_gates(net)
    gw.train_only_gates(net)
    gw.train_everything(net)
    net.train()
    assert net.bn1.training


def test_undo_after_freezing_restores_state_dict() -> None:
    net = gw.make_model("resnet20")
    before = snapshot(net)
    insertion = gw.insert_gates(net, "gct")
    gw.train_only_gates(net)
    train_once(net)
    insertion.undo()
    assert list(net.state_dict()) == list(before)
    assert changed(net, before) == set()


class Sparse(gw.Gate):
    """A gate whose extra loss is the sum of its factors."""

    def __init__(self, channels: int, *, spatial_dims: int = 2, device: Any = None, dtype: Any = None) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.factor = nn.Parameter(torch.ones(channels, 1, 1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_loss(self) -> Tensor:
        return self.factor.sum()


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


def _nothing(layer: nn.Module) -> None:
    pass


def _prune(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


def _end_pruning(layer: nn.Module) -> None:
    prune.remove(layer, "weight")


def _end_parametrisation(layer: nn.Module) -> None:
    parametrize.remove_parametrizations(layer, "weight")


@pytest.mark.parametrize(
    ("before", "while_frozen"),
    [
        (_nothing, _prune),
        (_nothing, parametrizations.weight_norm),
        (_nothing, nn.utils.spectral_norm),
        (_prune, _end_pruning),
        (parametrizations.orthogonal, _end_parametrisation),
        (_prune, _nothing),
        (parametrizations.weight_norm, _nothing),
    ],
)
@pytest.mark.parametrize("twice", [False, True])
def test_renamed_parameters_are_trained_again(
    before: Callable[[nn.Module], Any], while_frozen: Callable[[nn.Module], Any], twice: bool
) -> None:
    """Flags were kept by name, so what pruning or weight norm had renamed was never trained again, without a word."""
    net = convolutions()
    gw.insert_gates(net, "gct")
    trained, frozen = net[0], net[2]
    frozen.weight.requires_grad_(False)
    before(trained)
    before(frozen)
    still_frozen = {name for name, p in frozen.named_parameters() if not p.requires_grad}
    gw.train_only_gates(net)
    while_frozen(trained)
    while_frozen(frozen)
    if while_frozen is not _nothing:
        still_frozen = {name for name, _ in frozen.named_parameters() if "weight" in name}
    if twice:
        gw.train_only_gates(net)
    names = {name for name, _ in net.named_parameters()}
    expected = names - {f"2.{name}" for name in still_frozen}
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {n for n in names if is_gate(f".{n}")}
    assert set(trainable_parameters(net)) == expected
    gw.train_everything(net)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == expected


def test_gate_loss_is_zero_without_extra_losses() -> None:
    net = convolutions()
    assert torch.equal(gw.gate_loss(net), torch.zeros(()))
    gw.insert_gates(net, "gct")
    loss = gw.gate_loss(net)
    assert loss.shape == ()
    assert loss == 0
    assert gw.gate_loss(nn.ReLU()) == 0


def test_gate_loss_sums_extra_losses() -> None:
    net = convolutions()
    gw.insert_gates(net, Sparse, place="before_conv")
    gw.insert_gates(net, "gct")  # without an extra loss
    assert gw.gate_loss(net) == 3 + 8
    with torch.no_grad():
        net[2].sparse.factor *= 2
    assert gw.gate_loss(net) == 3 + 16


def test_gate_loss_is_differentiable_and_moves_gate() -> None:
    net = convolutions()
    gw.insert_gates(net, Sparse, place="before_conv")
    gw.gate_loss(net).backward()
    assert all(torch.equal(gate.factor.grad, torch.ones_like(gate.factor)) for gate in gw.gates_in(net).values())
    assert net[0].weight.grad is None


def test_gate_loss_is_on_device_of_network() -> None:
    with torch.device("meta"):
        net = convolutions()
    assert gw.gate_loss(net).device.type == "meta"


def test_zero_gate_loss_can_be_added_to_any_loss() -> None:
    net = convolutions()
    loss = net(torch.ones(1, 3, 8, 8)).sum()
    (loss + gw.gate_loss(net)).backward()
    assert net[0].weight.grad is not None
