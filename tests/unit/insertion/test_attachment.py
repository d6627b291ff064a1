"""Gates stay attached when layers are replaced, and a gate that is lost is named in a warning."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules, fuse_modules_qat, get_default_qat_qconfig, prepare_qat
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError
from support.releases import release

Convert = Callable[[nn.Module], nn.Module]
PLACES = ("before_conv", "residual_end", "inner")
quietly = pytest.mark.filterwarnings(
    "ignore:.*(torch.ao.quantization|reduce_range)", "ignore:.*quant_min and quant_max"
)


class Residual(nn.Module):
    """A residual block with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv1, self.bn1, self.act1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.head(x.relu()).mean((2, 3))


def plain_network() -> Residual:
    torch.manual_seed(0)
    model = Residual()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


def network(place: str) -> nn.Module:
    """Return a network with a gct that changes its output."""
    model = plain_network()
    gw.insert_gates(model, "gct", place=place, example=image())
    for gate in gw.gates_in(model).values():
        for parameter in gate.parameters():
            nn.init.normal_(parameter, 0.5)
    return model.eval()


def image() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def with_frozen_norms(model: nn.Module) -> nn.Module:
    """Replace norms without copying their children, as detection libraries do."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features)
            frozen.load_state_dict(child.state_dict(), strict=False)
            setattr(model, name, frozen)
        else:
            with_frozen_norms(child)
    return model


class Adapted(nn.Module):
    """A layer with something around it, as adapters have."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def adapted(model: nn.Module) -> nn.Module:
    for name in ("conv1", "bn1", "act1", "conv2", "bn2"):
        setattr(model, name, Adapted(getattr(model, name)))
    return model


FUSED = [["conv1", "bn1", "act1"], ["conv2", "bn2"]]
CONVERSIONS: dict[str, Convert] = {
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "frozen by timm": freeze_batch_norm_2d,
    "frozen by timm and thawed": lambda model: unfreeze_batch_norm_2d(freeze_batch_norm_2d(model)).eval(),
    "frozen without copying children": with_frozen_norms,
    "layers wrapped by adapters": adapted,
    "fused in eager mode": lambda model: fuse_modules(model, FUSED),
    "copied, then SyncBatchNorm": lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)),
    "unpickled, then SyncBatchNorm": lambda m: nn.SyncBatchNorm.convert_sync_batchnorm(pickle.loads(pickle.dumps(m))),
    "SyncBatchNorm in DataParallel": lambda m: nn.DataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(m)),
    "SyncBatchNorm, then exported": lambda m: torch.export.export(
        nn.SyncBatchNorm.convert_sync_batchnorm(m), (image(),)
    ).module(),
}


@pytest.mark.situation("A conversion replaces layers that carry a gate")
@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("place", PLACES)
@quietly
@torch.no_grad()
def test_gates_run_after_conversion(place: str, conversion: str) -> None:
    model = network(place)
    expected = model(image())
    converted = CONVERSIONS[conversion](model)
    torch.testing.assert_close(converted(image()), expected, atol=1e-4, rtol=1e-4)
    plain = copy.deepcopy(model)
    for gate in gw.gates_in(plain).values():
        for parameter in gate.parameters():
            parameter.zero_()
    assert not torch.allclose(plain(image()), expected, atol=1e-3), "the gates do something"


@pytest.mark.situation("A conversion replaces layers that carry a gate")
@pytest.mark.parametrize("conversion", ["fused for quantisation-aware training"])
@pytest.mark.parametrize("place", PLACES)
@quietly
def test_gates_train_after_fusion(place: str, conversion: str) -> None:
    model = network(place)
    expected = model(image())
    fused = fuse_modules_qat(model.train(), FUSED).eval()
    torch.testing.assert_close(fused(image()), expected, atol=1e-4, rtol=1e-4)
    fused.train()(image()).sum().backward()
    assert all(gate.alpha.grad is not None for gate in gw.gates_in(fused).values()), conversion


@pytest.mark.situation("A conversion replaces layers that carry a gate")
@pytest.mark.parametrize("conversion", ["fused and prepared for quantisation-aware training"])
@quietly
def test_gates_before_convolutions_are_carried_into_quantisation_aware_layers(conversion: str) -> None:
    model = fuse_modules_qat(network("before_conv").train(), FUSED)
    model.qconfig = get_default_qat_qconfig("x86")
    prepared = prepare_qat(model)
    prepared(image()).sum().backward()
    gates = gw.gates_in(prepared)
    assert len(gates) == 4, conversion
    assert all(gate.alpha.grad is not None for gate in gates.values())


@torch.no_grad()
@pytest.mark.situation("A conversion replaces layers that carry a gate")
@pytest.mark.parametrize("conversion", ["SyncBatchNorm, then compiled", "frozen by timm, then compiled"])
def test_compiled_network_has_gates_of_converted_layers(conversion: str) -> None:
    model = network("residual_end")
    expected = model(image())
    converted = CONVERSIONS[conversion.partition(", then compiled")[0]](model)
    if release(torch.__version__) < (2, 12):
        converted(image())  # Dynamo of torch 2.11 cannot trace how hooks are added
    compiled = torch.compile(converted, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image()), expected)


def replaced_head(model: nn.Module) -> nn.Module:
    model.head = nn.Conv2d(8, 2, 1)
    return model


def deleted_norm(model: nn.Module) -> nn.Module:
    model.head = nn.Sequential(nn.Dropout(), nn.Conv2d(8, 2, 1))
    return model


def new_norm(model: nn.Module) -> nn.Module:
    model.bn2 = nn.GroupNorm(2, 8)
    return model


LOSSES: dict[str, tuple[str, Convert, str]] = {
    "new head": ("before_conv", replaced_head, r"head\.gct \(head is now a Conv2d without it\)"),
    "head in a Sequential": ("before_conv", deleted_norm, r"head\.gct \(head is now a Sequential without it\)"),
    "GroupNorm for BatchNorm": ("residual_end", new_norm, r"bn2\.gct \(bn2 is now a GroupNorm without it\)"),
}


@pytest.mark.situation("A layer with a gate is replaced by another layer")
@pytest.mark.parametrize("change", LOSSES)
def test_lost_gate_is_named_once(change: str) -> None:
    place, convert, message = LOSSES[change]
    model = convert(network(place))
    with pytest.warns(UserWarning, match=f"Residual no longer runs 1 of its gates: {message}"):
        model(image())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(image())


@pytest.mark.situation("A layer with a gate is replaced by another layer")
@pytest.mark.parametrize("change", ["re-parameterised branches"])
def test_gates_of_removed_branches_are_named(change: str) -> None:
    model = timm.create_model("repvgg_a0", num_classes=3).eval()
    count = len(gw.insert_gates(model, "gct").gates)
    merged = reparameterize_model(model)
    with pytest.warns(UserWarning, match=r"no longer runs \d+ of its gates: .* no longer exists\), and \d+ more"):
        merged(torch.zeros(1, 3, 32, 32))
    assert len(gw.gates_in(merged)) < count, change


def fused_by_hand(model: nn.Module) -> nn.Module:
    model.conv2, model.bn2 = fuse_conv_bn_eval(model.conv2, model.bn2), nn.Identity()
    return model


@pytest.mark.situation("A layer with a gate is replaced by another layer")
@pytest.mark.parametrize("change", ["fused by hand"])
def test_gate_of_folded_norm_is_named(change: str) -> None:
    model = fused_by_hand(network("residual_end"))
    with pytest.warns(UserWarning, match=r"bn2\.gct \(bn2 is now a Identity without it\)"):
        model(image())
    assert gw.gates_in(model) == {}, change


# A part of the network runs alone


class Whole(nn.Module):
    """A backbone whose stage is in a list, with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stages = nn.ModuleList([plain_network()])
        self.backbone.forward = self.forward_features
        self.head = nn.Linear(4, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.backbone.stages[0](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


PARTS: dict[str, Callable[[nn.Module], Tensor]] = {
    "a method": lambda model: model.forward_features(image()),
    "a child": lambda model: model.backbone(image()),
    "a module in a list": lambda model: model.backbone.stages[0](image()),
    "children in a new Sequential": lambda model: nn.Sequential(*model.backbone.stages)(image()),
}


def whole() -> Whole:
    model = Whole().eval()
    gw.insert_gates(model, "se", place="residual_end", example=image())
    return model


@pytest.mark.situation("Only a part of the network is called")
@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_part_keeps_its_gates_attached(part: str) -> None:
    model = whole()
    expected = PARTS[part](model)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    torch.testing.assert_close(PARTS[part](converted), expected)


@pytest.mark.situation("Only a part of the network is called")
@pytest.mark.parametrize("part", PARTS)
def test_part_names_its_lost_gates_once(part: str) -> None:
    model = whole()
    new_norm(model.backbone.stages[0])
    path = r"backbone\.stages\.0\.bn2"
    message = rf"Residual no longer runs 1 of its gates: {path}\.se \({path} is now a GroupNorm without it\)"
    with pytest.warns(UserWarning, match=message if part != "a child" else rf"Module no longer .* {path}\.se"):
        PARTS[part](model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PARTS[part](model)


def test_network_and_its_parts_name_a_lost_gate_once() -> None:
    model = whole()
    new_norm(model.backbone.stages[0])
    with pytest.warns(UserWarning, match="Whole no longer runs 1 of its gates") as warned:
        model(image())
    assert len(warned) == 1


def test_branch_that_is_not_run_is_no_loss() -> None:
    class Auxiliary(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return self.stem(x)

    model = Auxiliary()
    gw.insert_gates(model, "gct", before=nn.Conv2d, example=image(), include=["stem"])
    gw.insert_gates(model, "se", place="before_conv", example=image())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(image())


@pytest.mark.parametrize("called", [False, True], ids=["undone at once", "undone after a call"])
@pytest.mark.parametrize("change", ["none", "SyncBatchNorm", "frozen by timm", "new head", "fused"])
@quietly
def test_undo_after_conversion_leaves_no_gate_and_no_hook(change: str, called: bool) -> None:
    model = Residual().eval()
    insertion = gw.insert_gates(model, "gct+se", example=image())
    in_place = {"none": lambda m: m, "new head": replaced_head, "fused": lambda m: fuse_modules(m, FUSED, inplace=True)}
    converted = {**CONVERSIONS, **in_place}[change](model)
    if called:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted(image())
    insertion.undo()
    assert gw.gates_in(converted) == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in converted.modules())
    converted(image())


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


COMPILED: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "torch.compile of the network": lambda model: torch.compile(model, backend="eager"),
    "model.compile": lambda model: model.compile(backend="eager") or model,
    "compiled function": lambda model: torch.compile(lambda x: model(x) + 0, backend="eager"),
    "compiled without guards of modules": lambda model: torch.compile(
        model,
        backend="eager",
        options={"guard_filter_fn": torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe},
    ),
    "compiled part": lambda model: setattr(model, "bn2", torch.compile(model.bn2, backend="eager")) or model,
}


@pytest.mark.situation("The network was compiled before the insertion")
@pytest.mark.parametrize("way", COMPILED)
@pytest.mark.usefixtures("fresh_compiler")
@torch.no_grad()
def test_compiled_network_runs_gates_inserted_later(way: str) -> None:
    model = Residual().eval()
    compiled = COMPILED[way](model)
    before = compiled(image())
    insertion = gw.insert_gates(model, "se", before=nn.Conv2d, include=["head"], example=image())
    assert not torch.allclose(compiled(image()), before, atol=1e-3), "a new se halves its map"
    insertion.undo()
    torch.testing.assert_close(compiled(image()), before)


@pytest.mark.situation("The same gate is inserted twice")
@pytest.mark.parametrize("again", ["gct", "gct:mode=l1", "gct+se"])
def test_second_gate_of_a_kind_warns_and_both_stay(again: str) -> None:
    model = network("before_conv")
    with pytest.warns(UserWarning, match=r"twice now, at stem, conv1, conv2, head\. .*insertion\.undo\(\)"):
        gw.insert_gates(model, again, example=image())
    assert sum(isinstance(gate, gw.GatedChannelTransform) for gate in gw.gates_in(model).values()) == 8


def test_other_gate_or_other_place_is_no_repetition() -> None:
    model = network("before_conv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gw.insert_gates(model, "se@before_conv", example=image())
        gw.insert_gates(model, "gct@residual_end", example=image())


def test_gates_joined_by_plus_are_one_insertion() -> None:
    model = Residual().eval()
    keys = list(model.state_dict())
    insertion = gw.insert_gates(model, "gct@inner+se", example=image())
    assert list(insertion.gates) == ["act1.gct", "bn2.se"]
    assert insertion.names == ("act1", "bn2")
    insertion.undo()
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    ("gate", "options", "message"),
    [
        ("none", {}, "'none' is no gate"),
        ("gct+se", {"mode": "l1"}, "options belong to one gate, and 'gct\\+se' are 2"),
        ("gct+none", {}, "'none' cannot be combined"),
        ("gct@inner+se", {"place": "residual_end"}, "'gct@inner' has a place and place='residual_end' is given"),
    ],
)
def test_unclear_joined_gates_rejected(gate: str, options: dict[str, str], message: str) -> None:
    model = Residual()
    keys = list(model.state_dict())
    with pytest.raises(InvalidValueError, match=message):
        gw.insert_gates(model, gate, example=image(), **options)
    assert list(model.state_dict()) == keys


def test_failure_at_second_of_joined_gates_removes_the_first() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with pytest.raises(InvalidValueError, match="no place for se"):
        gw.insert_gates(model, "gct+se", example=image())
    assert gw.gates_in(model) == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.situation("The network was traced, scripted or wrapped before the insertion")
@pytest.mark.parametrize("wrapped", ["torch.jit.trace", "torch.jit.script", "DistributedDataParallel", "fully_shard"])
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_network_that_cannot_call_gates_is_rejected(wrapped: str, tmp_path: Path) -> None:
    model: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 1))
    if wrapped in {"DistributedDataParallel", "fully_shard"}:
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        made = {
            "torch.jit.trace": lambda: torch.jit.trace(model, image()),
            "torch.jit.script": lambda: torch.jit.script(model),
            "DistributedDataParallel": lambda: nn.parallel.DistributedDataParallel(model),
            "fully_shard": lambda: fully_shard(model, mesh=init_device_mesh("cpu", (1,))),
        }[wrapped]()
        with pytest.raises(InvalidTypeError, match=r"^the network is a .*Insert gates first"):
            gw.insert_gates(made, "gct", example=image())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


# GaterNet


def gated(sites: str, gater: str) -> gw.GaterNet:
    torch.manual_seed(0)
    return gw.GaterNet(plain_network(), sites=sites, gater=gater, image_size=(12, 12)).eval()


@pytest.mark.situation("A conversion replaces layers whose filters a GaterNet gates")
@pytest.mark.parametrize("conversion", [name for name in CONVERSIONS if "exported" not in name])
@pytest.mark.parametrize("sites", ["inner", "residual"])
@pytest.mark.parametrize("gater", ["light", "local"])
@quietly
@torch.no_grad()
def test_filters_are_gated_after_conversion(sites: str, gater: str, conversion: str) -> None:
    net = gated(sites, gater)
    gates = torch.zeros(2, net.gate_count)
    gates[0, ::2] = 1
    expected, decided = net(image(), gates=gates), net(image())
    if "fused" in conversion:  # by the names in the backbone
        converted: nn.Module = net
        net.backbone = CONVERSIONS[conversion](net.backbone)
    elif "adapters" in conversion:
        converted, net.backbone = net, adapted(net.backbone)
    else:
        converted = CONVERSIONS[conversion](net)
    torch.testing.assert_close(converted(image(), gates=gates), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(converted(image()), decided, atol=1e-4, rtol=1e-4)


def test_layer_of_site_that_no_longer_exists_is_rejected() -> None:
    net = gated("inner", "light")
    del net.backbone.act1
    with pytest.raises(InvalidValueError, match="multiplies the output of 'act1' by gates"):
        net(image())
