"""Networks that are built on the meta device and filled from a plain file: their gates get their initial values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.errors import InvalidTypeError
from gatewise.gates.registry import Gate, gate_names
from gatewise.insertion.meta_device import materialise_gates

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A block whose branch ends in a batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), Residual(8), nn.Conv2d(8, 16, 3, stride=2, padding=1), Residual(16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()


def on_meta(gate: str) -> nn.Module:
    with torch.device("meta"):
        net = plain_net()
        gw.insert_gates(net, gate)
    assert all(parameter.is_meta for parameter in net.parameters())
    return net.eval()


def by_assign(net: nn.Module, plain: nn.Module, _: Path) -> nn.Module:
    assert not any(net.load_state_dict(plain.state_dict(), strict=True, assign=True))
    return net


def by_to_empty(net: nn.Module, plain: nn.Module, _: Path) -> nn.Module:
    net.to_empty(device="cpu")
    net.load_state_dict(plain.state_dict(), strict=True)
    return net


def by_load_weights(net: nn.Module, plain: nn.Module, folder: Path) -> nn.Module:
    torch.save(plain.state_dict(), folder / "plain.pt")
    loaded = gw.load_weights(net, folder / "plain.pt")
    assert loaded.notes == ()
    return net


def inside_another(net: nn.Module, plain: nn.Module, _: Path) -> nn.Module:
    outer = nn.Sequential(net)
    outer.load_state_dict({f"0.{name}": tensor for name, tensor in plain.state_dict().items()}, assign=True)
    return net


FILLED = [by_assign, by_to_empty, by_load_weights, inside_another]


@pytest.mark.situation("a network built on the meta device gets weights without gates; its gates get initial values")
@pytest.mark.parametrize("fill", FILLED, ids=["assign=True", "to_empty", "load_weights", "inside another network"])
@pytest.mark.parametrize("gate", gate_names())
def test_gates_have_initial_values(tmp_path: Path, gate: str, fill: Callable[..., nn.Module]) -> None:
    plain, net, reference = plain_net(), on_meta(gate), plain_net()
    gw.insert_gates(reference, gate)
    torch.manual_seed(7)
    fill(net, plain, tmp_path)
    torch.manual_seed(7)
    for one in gw.gates_in(reference).values():
        one.reset_parameters()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in net.parameters())
    with torch.no_grad():
        if next(iter(gw.gates_in(net).values())).identity_at_init:
            assert torch.equal(net(X), plain(X))


@pytest.mark.situation("gates of a network on the meta device follow the type of its weights")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_gates_follow_type_of_weights(dtype: torch.dtype) -> None:
    plain, net = plain_net().to(dtype), on_meta("gct")
    net.load_state_dict(plain.state_dict(), assign=True)
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}
    assert torch.equal(net(X.to(dtype)), plain(X.to(dtype)))


def test_gates_in_file_are_loaded(tmp_path: Path) -> None:
    trained = plain_net()
    gw.insert_gates(trained, "gct")
    for parameter in trained.parameters():
        nn.init.normal_(parameter)
    for fill in FILLED:
        net = fill(on_meta("gct"), trained, tmp_path)
        assert all(torch.equal(*pair) for pair in zip(net.parameters(), trained.parameters(), strict=True))


def test_gate_that_is_part_of_the_network_has_initial_values(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 1))
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 1), gw.make_gate("gct", 8))
    loaded = gw.load_weights(net, tmp_path / "plain.pt")
    assert loaded.notes == ()
    assert torch.equal(net(X), plain(X))


def test_trained_gates_keep_their_values() -> None:
    net = plain_net()
    gw.insert_gates(net, "gct")
    gates = gw.gates_in(net)
    for gate in gates.values():
        nn.init.constant_(gate.gamma, 0.5)  # type: ignore[arg-type]
    net.load_state_dict(plain_net().state_dict(), assign=True)
    net.to(torch.float64)
    assert all(bool((gate.gamma == 0.5).all()) for gate in gates.values())  # type: ignore[union-attr,operator]


def test_gates_stay_empty_with_their_network() -> None:
    net = on_meta("gct")
    materialise_gates(net)
    assert all(parameter.is_meta for parameter in net.parameters())


def test_missing_part_of_gates_is_reported() -> None:
    trained = plain_net()
    gw.insert_gates(trained, "gct")
    weights = {name: t for name, t in trained.state_dict().items() if not name.endswith("conv1.gct.beta")}
    with pytest.raises(RuntimeError, match=r"Missing key.*conv1\.gct\.beta"):
        on_meta("gct").load_state_dict(weights, strict=True, assign=True)


class NoStart(Gate):
    """A gate of the user without `reset_parameters`."""

    def __init__(self, channels: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(channels)
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_gate_without_initial_values_is_named() -> None:
    with torch.device("meta"):
        net = plain_net()
        gw.insert_gates(net, NoStart, before=nn.Conv2d)
    with pytest.raises(InvalidTypeError, match=r"NoStart does not define reset_parameters\(\)"):
        net.load_state_dict(plain_net().state_dict(), assign=True)


@pytest.mark.situation("places are found in a network without values")
@pytest.mark.parametrize("place", ["inner", "residual_end", "stage_end"])
@pytest.mark.parametrize("buffers", ["on meta", "with values"])
@pytest.mark.parametrize("example", [None, X], ids=["guessed input", "given input"])
def test_places_in_network_without_values(place: str, buffers: str, example: Tensor | None) -> None:
    expected = gw.insert_gates(plain_net(), "se", place=place, example=X).names
    net = plain_net()
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.to("meta")))  # as accelerate.init_empty_weights
    net = net.to("meta") if buffers == "on meta" else net
    before = {name: tensor.device.type for name, tensor in net.state_dict().items()}
    insertion = gw.insert_gates(net, "se", place=place, example=example)
    assert insertion.names == expected
    insertion.undo()
    assert {name: tensor.device.type for name, tensor in net.state_dict().items()} == before


class Pretrained(nn.Module):
    """Loads as transformers does: on meta, and then initialises module by module what the file lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Conv1d):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.normal_(module.bias)

    def load(self, weights: dict[str, Tensor], owners_only: bool) -> None:
        for path, module in self.named_modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                key = f"{path}.{name}"
                value = weights[key].clone() if key in weights else torch.full_like(tensor, torch.nan, device="cpu")
                module.load_state_dict({name: value}, strict=False, assign=True)
                getattr(module, name)._is_hf_initialized = key in weights
        read = {path for path, module in self.named_modules() if any(key.startswith(f"{path}.") for key in weights)}
        with torch.no_grad():
            for path, module in reversed(list(self.named_modules())):  # children first
                is_owner = next(module.parameters(recurse=False), None) is not None
                if (path not in read or isinstance(module, Gate)) and (is_owner or not owners_only):
                    self._init_weights(module)


@pytest.mark.situation("a loader that initialises the modules that a file lacks gives gates their own initial values")
@pytest.mark.parametrize("owners_only", [False, True], ids=["every module", "modules with parameters"])
@pytest.mark.parametrize("gate", ["gct", "gc", "nl"])
def test_loader_by_modules(gate: str, *, owners_only: bool) -> None:
    plain = plain_net()
    with torch.device("meta"):
        net = Pretrained()
        insertion = gw.insert_gates(net, gate)
    own_class = type(net)
    net.load({f"body.{name}": tensor for name, tensor in plain.state_dict().items()}, owners_only)
    assert torch.equal(net.eval().body(X), plain(X))
    trained = {name: torch.full_like(t, 0.25) if gate in name.split(".") else t for name, t in net.state_dict().items()}
    with torch.device("meta"):
        other = Pretrained()
        gw.insert_gates(other, gate)
    other.load(trained, owners_only)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in other.state_dict().items())
    insertion.undo()
    assert type(net) is Pretrained
    assert own_class is not Pretrained
