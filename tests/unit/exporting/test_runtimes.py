"""Every runtime of `gatewise bench --runtimes` computes the network's outputs."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.errors import MissingExtraError
from gatewise.exporting.forms import WithGates
from gatewise.exporting.runtimes import RUNTIMES, versions
from gatewise.inference.routed import RoutedNet

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROUTES = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]).bool()
NEEDS_OPENVINO = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed (gatewise[openvino])"
)
NAMES = [pytest.param(name, marks=[NEEDS_OPENVINO] if name == "openvino" else []) for name in RUNTIMES]


class ByBrightness(nn.Module):
    """Opens the first two gates for bright images, and the last two for dark ones."""

    def forward(self, x: Tensor) -> Tensor:
        sign = x.mean((1, 2, 3)).sign().unsqueeze(1)
        return torch.cat([sign, sign, -sign, -sign], 1)


@pytest.fixture(scope="module")
def net() -> gw.GaterNet:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return gw.GaterNet(backbone, gater=ByBrightness(), image_size=(8, 8)).eval()


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.compile trace the network, and run its graph without generating code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def logits(call: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    with torch.inference_mode():
        found = call(images)
    return torch.as_tensor(found if isinstance(found, Tensor) else found[0])


def check(net: gw.GaterNet, form: str, name: str, folder: Path) -> None:
    routes = {"form": "routes", "routes": ROUTES} if form == "routes" else {}
    source: Any = RoutedNet(net, ROUTES) if routes else WithGates(net).eval()
    if RUNTIMES[name].reads_files:
        source = folder / "net.onnx"
        gw.export(net, source, example=IMAGES, **routes)
    call = RUNTIMES[name].ready(source, 1)
    with torch.no_grad():
        for images in (IMAGES[:1], IMAGES):
            torch.testing.assert_close(logits(call, images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("without_code")
@pytest.mark.parametrize("form", ["masked", "routes"])
@pytest.mark.parametrize("name", NAMES)
def test_runtime_computes_outputs_of_network(net: gw.GaterNet, form: str, name: str, tmp_path: Path) -> None:
    check(net, form, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["masked", "routes"])
def test_generated_code_computes_outputs_of_network(net: gw.GaterNet, form: str, tmp_path: Path) -> None:
    check(net, form, "compile", tmp_path)


def test_networks_of_routes_are_compiled_and_the_choice_is_not(
    net: gw.GaterNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    routed = RoutedNet(net, ROUTES)
    call = RUNTIMES["compile"].ready(routed, 1)
    assert len(compiled) == 2
    assert not any(isinstance(part, RoutedNet) for part in compiled)
    assert not {*compiled} & {*routed.networks}, "the given net stays as it is"
    torch.testing.assert_close(logits(call, IMAGES), net(IMAGES).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "extra"), [("openvino", "openvino"), ("onnxruntime", "export")])
def test_absent_runtime_is_named_with_its_extra(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"gatewise\[{extra}\]"):
        RUNTIMES[name].ready(Path("net.onnx"), 1)


def test_versions_are_those_of_runtimes_with_a_package() -> None:
    import onnxruntime

    assert versions(["torch", "compile", "onnxruntime"]) == {"onnxruntime": onnxruntime.__version__}
