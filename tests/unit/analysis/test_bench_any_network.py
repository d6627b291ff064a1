"""`gw.bench` times the forms of any network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gatewise as gw
from gatewise.analysis import timed_forms
from gatewise.analysis.benchmark import table
from gatewise.errors import InvalidTypeError, InvalidValueError

IMAGES = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call each form once or twice."""
    timed = timed_forms.interleaved_latency

    def timed_briefly(calls: Any, *, rounds: int) -> Any:
        return timed(calls, rounds=rounds, seconds_per_turn=0)

    monkeypatch.setattr(timed_forms, "interleaved_latency", timed_briefly)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers)


@pytest.mark.situation("networks without a run: benchmark of inserted gates")
def test_gated_network_is_timed_without_its_gates_and_optimised(tmp_path: Path) -> None:
    net = network()
    gw.insert_gates(net, "gct")
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = gw.bench(net, IMAGES, batch_sizes=(2, 1), rounds=2, out=tmp_path)
    assert list(found["batches"]) == ["1", "2"]
    forms = ["network", "without gates", "optimised", "without gates, optimised"]
    assert list(found["batches"]["1"]) == forms
    assert found["batches"]["1"]["network"]["network_over_this"] == [1, 1, 1]
    assert found["macs"] == {"dense": 3 * 8 * 9 * 100 + 8 * 4 * 9 * 64}
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    assert [file.name for file in tmp_path.iterdir()] == ["bench.json"]
    assert [row[0].text for row in table(found).rows] == forms
    assert found["verdict"].startswith("one image at once: ")
    assert "without gates" not in found["verdict"], "it has other outputs"
    assert all(module.training for module in net.modules())
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in state.items())


def test_forms_without_gates_run_none(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    gw.insert_gates(net, "se", place="before_conv", exclude=["0"])
    for gate in gw.gates_in(net).values():
        nn.init.normal_(gate.fc2.bias)
    calls: list[str] = []
    forward = gw.SqueezeExcite.forward
    monkeypatch.setattr(gw.SqueezeExcite, "forward", lambda self, x: calls.append("se") or forward(self, x))
    source = timed_forms.Timed("net", net.eval(), lambda count: IMAGES[:count])
    forms = timed_forms.PlainForms(source, 2, print).forms
    expected = network().eval()(IMAGES)
    calls.clear()
    assert torch.equal(forms["without gates"](IMAGES), expected)
    torch.testing.assert_close(forms["without gates, optimised"](IMAGES), expected)
    assert isinstance(forms["without gates, optimised"], gw.InferenceNet)
    assert not calls
    net(IMAGES)
    assert calls == ["se"]
    assert not torch.allclose(forms["optimised"](IMAGES), expected, atol=1e-4)


def test_network_without_gates_has_no_form_without_them() -> None:
    found = gw.bench(network(), IMAGES[:1], batch_sizes=(1,), rounds=2)
    assert list(found["batches"]["1"]) == ["network", "optimised"]
    assert "omitted" not in found


def test_network_that_python_cannot_copy_is_timed_in_all_forms() -> None:
    net = network()
    net[0].kept = net[0].weight * 2
    before = list(net.state_dict()), [type(part) for part in net.modules()]
    found = gw.bench(net, IMAGES, batch_sizes=(1,), rounds=2)
    assert list(found["batches"]["1"]) == ["network", "optimised"]
    assert before == (list(net.state_dict()), [type(part) for part in net.modules()])


def test_form_that_cannot_be_made_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(copied: nn.Module, images: torch.Tensor) -> nn.Module:
        assert copied is not net
        raise RuntimeError(f"no form for {len(images)} images")

    net = network()
    monkeypatch.setattr(timed_forms, "optimize_for_inference", fails)
    found = gw.bench(net, IMAGES, batch_sizes=(1,), rounds=2)
    assert list(found["batches"]["1"]) == ["network"]
    assert found["omitted"] == {"optimised": "RuntimeError: no form for 2 images"}


@pytest.mark.situation("benchmark of a GaterNet without a run")
@pytest.mark.parametrize("loader", [None, [(IMAGES, torch.zeros(6))]], ids=["example alone", "with a loader"])
def test_gater_net_is_timed_in_its_forms(loader: Any) -> None:
    torch.manual_seed(0)
    net = gw.GaterNet(network(), gate_bias=0.0, image_size=(12, 12))
    found = gw.bench(net, IMAGES, loader=loader, batch_sizes=(1,), rounds=2)
    forms = set(found["batches"]["1"])
    assert forms - {"compacted", "compacted, skipped"} == {"dense", "masked", "skipped"}
    assert ("compacted" in forms) is (loader is not None)
    assert ("compacted" in found.get("omitted", {})) is (loader is None)
    assert found["macs"]["dense"] == net.dense_macs
    assert len(found["curve"]) == 10
    assert net.training


def test_compacted_and_wrapped_networks_are_timed() -> None:
    net = gw.GaterNet(network(), image_size=(12, 12), gater=lambda gates: nn.Sequential(nn.Flatten(), Open(gates)))
    small = gw.compact(net, [IMAGES])
    assert not isinstance(small, gw.GaterNet)
    found = gw.bench(nn.DataParallel(small), IMAGES, batch_sizes=(1,), rounds=2)
    assert list(found["batches"]["1"]) == ["network", "optimised"]


class Open(nn.Module):
    """Logits that open every gate."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.gates = gates

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_ones(len(x), self.gates)


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(InvalidValueError, match="rounds must be at least 2"):
        gw.bench(network(), IMAGES, rounds=1)
    with pytest.raises(InvalidValueError, match="batch size number 2 must be at least 1"):
        gw.bench(network(), IMAGES, batch_sizes=(1, 0))
    with pytest.raises(InvalidTypeError, match="bench expects batches of images"):
        gw.bench(network(), "photo.jpg")  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="give the GaterNet"):
        gw.bench(gw.skip_closed_filters(gw.GaterNet(network(), image_size=(12, 12)), "mask"), IMAGES)
