"""What must hold on a CUDA device as on the CPU."""

from pathlib import Path

import pytest
import torch
from random_networks import gater_net, images

import gatewise as gw
from gatewise.training import Progress, Recipe, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def randomised(gate: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return gate


@pytest.mark.parametrize("name", gw.gate_names())
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gate_gives_on_the_device_what_it_gives_on_the_cpu(name: str, layout: torch.memory_format) -> None:
    gate = randomised(gw.make_gate(name, 24))
    x = torch.randn(3, 24, 17, 9).contiguous(memory_format=layout).requires_grad_()
    gate(x).square().sum().backward()
    there = randomised(gw.make_gate(name, 24, device="cuda"))
    y = x.detach().cuda().requires_grad_()
    out = there(y)
    out.square().sum().backward()
    assert out.is_contiguous(memory_format=layout)
    torch.testing.assert_close(out.cpu(), gate(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y.grad.cpu(), x.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", gw.gate_names())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(name: str, dtype: torch.dtype) -> None:
    x = 10 * torch.randn(2, 16, 112, 112, device="cuda")
    exact = randomised(gw.make_gate(name, 16)).cuda()(x)
    half = randomised(gw.make_gate(name, 16)).to("cuda", dtype)(x.to(dtype))
    with torch.autocast("cuda", dtype):
        mixed = randomised(gw.make_gate(name, 16)).cuda()(x.to(dtype))
    for result in (half, mixed):
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), exact, rtol=0.05, atol=0.5)


def test_training_on_the_device_learns_and_uses_bf16(tmp_path) -> None:
    metrics = train(Recipe(gate="gct", epochs=15), tmp_path / "run")
    assert metrics["environment"]["device"] == "cuda"
    assert metrics["precision"] == "bf16"
    assert metrics["accuracy"] > 0.95


def test_an_interrupted_training_resumes_on_the_device(tmp_path) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    class Interrupting(Progress):
        def epoch(self, row) -> None:
            if row["epoch"] == 2:
                raise Stop

    recipe = Recipe(epochs=3)
    with pytest.raises(Stop):
        train(recipe, tmp_path / "run", progress=Interrupting(quiet=True))
    assert train(recipe, tmp_path / "run", resume=True)["epochs"] == 3


@pytest.mark.parametrize("block", ["basic", "bottleneck", "inverted", "Branches"])
@pytest.mark.parametrize(
    ("mode", "backend"), [("skip", "torch"), ("skip", "triton"), ("bucket", "torch"), ("auto", "torch")]
)
def test_skipping_on_the_device_gives_what_the_masked_network_gives(
    block: str, mode: str, backend: str, tmp_path: Path
) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    net = gater_net([block, block], 16, group_size=4)
    x = images(6)
    with torch.no_grad():
        expected, gates = net.forward_with_gates(x)
        fast = gw.skip_closed_filters(net.cuda(), mode=mode, backend=backend, cache=tmp_path / "costs.json")
        output, own = fast.forward_with_gates(x.cuda(), gates.cuda())
    assert fast.grouped == (backend == "triton")
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(own.cpu(), gates)
