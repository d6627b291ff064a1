"""Tests on a CUDA device."""

import pytest
import torch

import gatewise as gw
from gatewise.training import Progress, Recipe, train
from support.random_networks import gater_net, images

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def randomised(gate: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return gate


@pytest.mark.parametrize("name", gw.gate_names())
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gate_on_gpu_equals_cpu(name: str, layout: torch.memory_format) -> None:
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


def test_training_on_gpu_learns_and_uses_bf16(tmp_path) -> None:
    metrics = train(Recipe(gate="gct", epochs=15), tmp_path / "run")
    assert metrics["environment"]["device"] == "cuda"
    assert metrics["precision"] == "bf16"
    assert metrics["accuracy"] > 0.95


def test_interrupted_training_resumes_on_gpu(tmp_path) -> None:
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
@pytest.mark.parametrize("mode", ["skip", "bucket", "auto"])
def test_skipping_on_gpu_equals_masked_network(block: str, mode: str) -> None:
    net = gater_net([block, block], 16, group_size=4)
    x = images(6)
    with torch.no_grad():
        expected, gates = net.forward_with_gates(x)
        fast = gw.skip_closed_filters(net.cuda(), mode=mode)
        output, own = fast.forward_with_gates(x.cuda(), gates.cuda())
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(own.cpu(), gates)


def gradients_of(result: torch.Tensor, leaves: list[torch.Tensor], grad_output: torch.Tensor) -> list[torch.Tensor]:
    return [result.detach(), *torch.autograd.grad(result, leaves, grad_output)]


def hold(actual: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor) -> None:
    """Allow twice the error of plain PyTorch and 16 roundings: a GPU's exp and division are off by one or two."""
    error, others = ((each.double() - exact).abs().max().item() for each in (actual, plain))
    assert error <= 2 * others + 16 * torch.finfo(actual.dtype).eps * exact.abs().max().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 33, 7, 9), (2, 64, 16, 16), (2, 100, 28, 28), (1, 512, 14, 14)])
@pytest.mark.parametrize(("mode", "activation"), [("l2", "tanh"), ("l1", "elu"), ("l2", "sigmoid"), ("l1", "relu")])
def test_compiled_gct_kernels_match_definition(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, mode: str, activation: str
) -> None:
    pytest.importorskip("triton")
    from gatewise.gates.gated_channel_transform import gated_channel_transform
    from gatewise.gates.kernels.triton import gated_channel_transform as kernels

    torch.manual_seed(0)
    reduced = torch.promote_types(dtype, torch.float32)
    x, grad_output = (torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=layout) for _ in range(2))
    parameters = torch.randn(3, shape[1], device="cuda", dtype=reduced)
    settings = {"mode": mode, "eps": 1e-5, "activation": activation}

    def defined(of: torch.dtype, parameters_of: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(of).requires_grad_(), *(each.to(parameters_of).requires_grad_() for each in parameters)]
        shaped = [each[None, :, None, None] for each in leaves[1:]]
        return gradients_of(gated_channel_transform(leaves[0], *shaped, **settings), leaves, grad_output.to(of))

    exact, plain, plain_reduced = (
        defined(torch.float64, torch.float64),
        defined(dtype, reduced),
        defined(reduced, reduced),
    )
    y, norms = kernels.forward(x, *parameters, **settings)
    dx, dparams = kernels.backward(grad_output, x, norms, *parameters, **settings)
    assert y.is_contiguous(memory_format=layout)
    for actual, of, theirs in zip((y, dx), exact[:2], plain[:2], strict=True):
        hold(actual, of, theirs)
    for actual, of, theirs in zip(dparams.sum(1), exact[2:], plain_reduced[2:], strict=True):
        hold(actual, of, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 33, 7, 9), (2, 64, 56, 56), (1, 2048, 14, 14), (1, 1, 1, 1)])
def test_compiled_gc_kernels_match_definition(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    pytest.importorskip("triton")
    from gatewise.gates.global_context import global_context
    from gatewise.gates.kernels.triton.attention_pool import backward, forward
    from gatewise.gates.kernels.triton.channel_affine import channel_affine, channel_products

    torch.manual_seed(0)
    reduced = torch.promote_types(dtype, torch.float32)
    x, grad_output = (torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=layout) for _ in range(2))
    weight, bias = (torch.randn(size, device="cuda").to(dtype).to(reduced) for size in (shape[1], 1))

    def defined(of: torch.dtype) -> list[torch.Tensor]:
        leaves = [each.to(of).requires_grad_() for each in (x, weight)]

        def mask(x: torch.Tensor) -> torch.Tensor:
            return (x * leaves[1][None, :, None, None]).sum(1, keepdim=True) + bias.to(of)

        both = torch.nn.Identity()
        return gradients_of(global_context(leaves[0], mask, both, both), leaves, grad_output.to(of))

    exact, plain, plain_reduced = defined(torch.float64), defined(dtype), defined(reduced)
    context, attention = forward(x, weight, bias)
    factors = context.sigmoid()
    y = channel_affine(x, factors, context)
    products, plainly = channel_products(grad_output, x)
    dcontext = plainly + products * factors * (1 - factors)
    dx, dweight, _ = backward(dcontext, x, attention, weight, grad_output, factors)
    assert y.is_contiguous(memory_format=layout)
    hold(y, exact[0], plain[0])
    hold(dx, exact[1], plain[1])
    hold(dweight.sum(0), exact[2], plain_reduced[2])


@pytest.mark.parametrize("kernel", ["gct", "gc"])
def test_compiled_kernels_work_beyond_2_31_elements(kernel: str) -> None:
    """That map is 4.3 GB in float16; its last sample, beyond 32-bit offsets, is compared."""
    pytest.importorskip("triton")
    from gatewise.gates.kernels.triton import attention_pool, gated_channel_transform

    samples = 2**31 // (64 * 64 * 64) + 2
    x = torch.zeros(samples, 64, 64, 64, device="cuda", dtype=torch.float16)
    x[-1] = torch.randn(64, 64, 64, device="cuda")
    one = torch.ones(64, device="cuda")
    if kernel == "gct":
        settings = {"mode": "l2", "eps": 1e-5, "activation": "tanh"}
        whole = gated_channel_transform.forward(x, one, one, one, **settings)[0][-1:]
        alone = gated_channel_transform.forward(x[-1:], one, one, one, **settings)[0]
    else:
        whole = attention_pool.forward(x, one, None)[0][-1:]
        alone = attention_pool.forward(x[-1:], one, None)[0]
    torch.testing.assert_close(whole, alone, rtol=1e-3, atol=1e-5)
