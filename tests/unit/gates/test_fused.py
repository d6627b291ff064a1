"""Fused gates equal their definitions, give a reason if they cannot run, and keep nothing of the map's size."""

import contextlib
import math
import subprocess
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo import compiled_autograd

import gatewise as gw
from gatewise.gates.kernels import backend as backend_module
from gatewise.gates.kernels.attention_pool import pool_by_attention
from gatewise.gates.kernels.backend import takes_fused, why_not_fusible
from gatewise.gates.kernels.channels import SharedGradient, mean_of_channels, scale_channels
from support.gate_cases import perturbed

openmp = pytest.importorskip("gatewise.gates.kernels.cpu.openmp", reason="needs numba")

FUSED = {
    "gct": [
        {"mode": mode, "after_relu": after_relu, "activation": activation}
        for mode, after_relu in (("l2", False), ("l1", False), ("l1", True))
        for activation in ("tanh", "sigmoid", "relu", "elu")
    ],
    "se": [{}, {"rd_ratio": 1 / 4}],
    "gc": [
        {"fusion": fusion, "pooling": pooling}
        for fusion in ("add", "multiply", "both")
        for pooling in ("attention", "average")
    ],
}
CASES = [
    pytest.param(name, options, id=f"{name}-{number}") for name in FUSED for number, options in enumerate(FUSED[name])
]
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the kernels that ran."""
    names: list[str] = []
    run = openmp.Kernel.__call__

    def counted(kernel: Any, *arguments: Any, **named: Any) -> None:
        names.append(kernel.function.__name__)
        run(kernel, *arguments, **named)

    monkeypatch.setattr(openmp.Kernel, "__call__", counted)
    return names


@pytest.fixture(params=[1, 2, 3])
def torch_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """So many threads even for small maps: whole samples each, parts of samples, more threads than rows."""
    from gatewise.gates.kernels.cpu import scheduling

    before = torch.get_num_threads()
    for module in (openmp, scheduling):
        monkeypatch.setattr(module, "MIN_PARALLEL_NUMEL", 1)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def twins(name: str, channels: int, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Return a fused gate and its definition in float64, with the same perturbed weights."""
    torch.manual_seed(channels)
    exact = perturbed(gw.make_gate(name, channels, backend="reference", dtype=torch.float64, **options))
    gate = gw.make_gate(name, channels, backend="fused", dtype=dtype, **options)
    gate.load_state_dict(exact.state_dict())
    exact.load_state_dict(gate.state_dict())  # rounded as the gate's are
    return gate, exact


def results(gate: nn.Module, x: Tensor, grad_output: Tensor) -> list[Tensor]:
    """Return the output and the gradients of the map and of all parameters but conv_mask's bias, which are zero."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = gate(x)
    wanted = [x, *(p for name, p in gate.named_parameters() if name != "conv_mask.bias")]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad_output)]


DRAWS = 8


def within_budget(gate: nn.Module, exact: nn.Module, x: Tensor, grad_output: Tensor | None = None) -> None:
    """At most twice as far from float64 as the definition in the same type is, and four of that type's smallest steps.

    Far is the root of the mean square over several draws of maps like x, of all parameters' gradients together: one
    draw's largest error is a matter of luck, the more so after the layer norm of a context block.
    """
    squares: dict[tuple[str, str], float] = defaultdict(float)
    for draw in range(DRAWS):
        x = x if draw == 0 else redrawn(x)
        given = torch.randn_like(x) if grad_output is None else grad_output
        gate.backend = "fused"
        fused = results(gate, x, given)
        gate.backend = "reference"
        plain = results(gate, x, given)
        truth = results(exact, x.double(), given.double())
        for number, (own, its, true) in enumerate(zip(fused, plain, truth, strict=True)):
            assert own.dtype == its.dtype
            assert own.shape == its.shape
            if x.dtype == torch.float64:  # as exact as the truth
                torch.testing.assert_close(own, true, rtol=1e-10, atol=1e-10)
                continue
            scale = max(1.0, float(true.abs().max()))
            what = ("output", "map", "parameters")[min(number, 2)]
            squares["own", what] += float(((own.double() - true) / scale).square().mean())
            squares["plain", what] += float(((its.double() - true) / scale).square().mean())
    step = 4 * torch.finfo(x.dtype).eps
    for what in {what for _, what in squares}:
        own, plain = (math.sqrt(squares[whose, what] / DRAWS) for whose in ("own", "plain"))
        assert own <= 2 * plain + step, (what, own, plain)


def redrawn(x: Tensor) -> Tensor:
    """Return another map like x: its values in another order, which keeps size, layout and sign."""
    order = torch.randperm(x.numel())
    return torch.empty_like(x).copy_(x.flatten()[order].view(x.shape))


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_values_and_gradients_within_twice_error_of_torch(
    name: str, options: dict[str, Any], dtype: torch.dtype, last: bool, launches: list[str]
) -> None:
    for samples, channels, sides in ((3, 5, (7, 9)), (2, 48, (13, 11)), (1, 33, (1, 1))):
        gate, exact = twins(name, channels, dtype, **options)
        x = torch.randn(samples, channels, *sides).to(dtype)
        if options.get("after_relu"):
            x = x.relu()
        x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        before = len(launches)
        within_budget(gate, exact, x)
        assert len(launches) - before >= 2
        gate.backend = "fused"
        assert gate(x).is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(FUSED)),
    samples=st.integers(1, 4),
    channels=st.integers(1, 70),
    sides=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    last=st.booleans(),
    data=st.data(),
)
def test_any_shape_matches_torch(
    name: str, samples: int, channels: int, sides: list[int], last: bool, data: st.DataObject
) -> None:
    sides = sides if len(sides) < 3 else [min(side, 9) for side in sides]
    options = data.draw(st.sampled_from(FUSED[name]))
    gate, exact = twins(name, channels, torch.float32, spatial_dims=len(sides), **options)
    x = torch.randn(samples, channels, *sides)
    if last and len(sides) in LAST:
        x = x.contiguous(memory_format=LAST[len(sides)])
    within_budget(gate, exact, x.relu() if options.get("after_relu") else x)


@pytest.mark.parametrize("name", sorted(FUSED))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("samples", [1, 5])
def test_any_number_of_threads_gives_same_values(name: str, last: bool, samples: int, torch_threads: int) -> None:
    gate, exact = twins(name, 24, torch.float32)
    x = torch.randn(samples, 24, 9, 70)
    within_budget(gate, exact, x.contiguous(memory_format=torch.channels_last) if last else x)


@pytest.mark.parametrize("name", sorted(FUSED))
def test_long_rows_and_many_positions_match_torch(name: str) -> None:
    for shape in ((2, 3, 70, 130), (1, 300, 30, 30)):  # several runs in a row, several blocks of positions
        gate, exact = twins(name, shape[1], torch.float32)
        within_budget(gate, exact, 3 * torch.randn(shape))


@pytest.mark.parametrize("name", sorted(FUSED))
def test_upstream_gradients_of_any_layout_match_torch(name: str) -> None:
    gate, exact = twins(name, 6, torch.float32)
    x = torch.randn(2, 6, 5, 4)
    within_budget(gate, exact, x, torch.ones(1).expand_as(x))
    within_budget(gate, exact, x, torch.randn_like(x).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_nan_and_infinity_are_propagated(name: str, options: dict[str, Any]) -> None:
    for value in (float("nan"), float("inf")):
        x = torch.randn(2, 4, 5, 5)
        x[0, 1, 2, 3] = value
        gate, _ = twins(name, 4, torch.float32, **options)
        y = gate(x)
        gate.backend = "reference"
        assert torch.equal(y.isfinite(), gate(x).isfinite())
        assert not y[0].isfinite().all()
        assert y[1].isfinite().all()


# ---- second derivatives, transforms, compilers ---------------------------------------------------------------------


@pytest.mark.extended
@pytest.mark.parametrize(("name", "options"), CASES)
def test_second_derivatives_are_correct(name: str, options: dict[str, Any]) -> None:
    gate, _ = twins(name, 3, torch.float64, **options)
    x = (torch.randn(2, 3, 2, 3, dtype=torch.float64).abs() + 0.1).requires_grad_()
    parameters = dict(gate.named_parameters())

    def of(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(gate, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(of, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(of, (x, *parameters.values()))


@pytest.mark.parametrize("name", sorted(FUSED))
def test_gradient_penalty_trains_like_definition(name: str) -> None:
    """First and second derivatives in one backward pass, through the same graph."""
    gate, exact = twins(name, 4, torch.float64)
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)

    def penalised(gate: nn.Module) -> list[Tensor | None]:
        own = x.clone().requires_grad_()
        y = gate(own).square().sum()
        (gradient,) = torch.autograd.grad(y, own, create_graph=True)
        return list(torch.autograd.grad(y + gradient.square().sum(), [own, *gate.parameters()], allow_unused=True))

    for one, other in zip(penalised(gate), penalised(exact), strict=True):
        torch.testing.assert_close(one, other)


def test_sign_of_zero_is_zero() -> None:
    gate, exact = twins("gct", 6, torch.float64, mode="l1")
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    x[:, :, ::2] = 0
    grad_output = torch.randn_like(x)
    torch.testing.assert_close(results(gate, x, grad_output), results(exact, x, grad_output))


def test_bfloat16_is_rounded_to_nearest() -> None:
    gate, exact = twins("gct", 16, torch.float32)
    x = torch.randn(4, 16, 16, 16).bfloat16()
    grad_output = torch.randn_like(x)
    of_maps = zip(results(gate, x, grad_output)[:2], results(exact, x.double(), grad_output.double())[:2], strict=True)
    for actual, true in of_maps:
        assert float((actual == true.bfloat16()).float().mean()) > 0.98  # of numbers that are cut off half are


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch scripts its own rules for forward mode
@pytest.mark.parametrize("name", sorted(FUSED))
def test_auto_is_transparent_to_functorch_and_compilers(name: str, launches: list[str]) -> None:
    gate, exact = twins(name, 4, torch.float64)
    gate.backend = "auto"
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    weights = dict(exact.named_parameters())

    def loss(weights: dict[str, Tensor], image: Tensor, gate: nn.Module) -> Tensor:
        return torch.func.functional_call(gate, weights, (image[None],)).square().sum()

    for one, other in zip(
        *(
            torch.func.vmap(torch.func.grad(lambda w, i, gate=gate: loss(w, i, gate)), (None, 0))(weights, x).values()
            for gate in (gate, exact)
        ),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    tangents = [torch.func.jvp(gate, (x,), (torch.ones_like(x),))[1] for gate in (gate, exact)]
    torch.testing.assert_close(*tangents)
    compiled = torch.compile(gate, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), exact(x))
    exported = torch.export.export(gate, (x,)).module()
    torch.testing.assert_close(exported(x), exact(x))
    assert not launches


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_backward_gives_same_gradients(launches: list[str]) -> None:
    for name, options in (("gct", {}), ("gct", {"mode": "l1"}), ("se", {}), ("gc", {}), ("gc", {"fusion": "both"})):
        gate, exact = twins(name, 4, torch.float64, **options)
        for size in (5, 6):  # what was compiled for one gate and map is not taken for another
            x = torch.rand(3, 4, size, size, dtype=torch.float64)
            gradients = []
            for each in (gate, exact):
                own = x.clone().requires_grad_()
                y = each(own).square().sum()
                # Private: torch.compile has no public way to compile a backward pass alone, with a backend of choice.
                compiled = compiled_autograd._enable(torch.compile(backend="aot_eager"))
                with compiled if each is gate else contextlib.nullcontext():
                    y.backward()
                gradients.append([own.grad, *(p.grad for p in each.parameters())])
                each.zero_grad()
            torch.testing.assert_close(*gradients)
    assert "_forward" in launches
    assert not {"_backward", "_products"} & set(launches)  # it is the definition's


def test_autocast_gives_dtype_of_map() -> None:
    for name in sorted(FUSED):
        gate, exact = twins(name, 16, torch.float32)
        x = torch.randn(2, 16, 8, 8)
        with torch.autocast("cpu", torch.bfloat16):
            assert gate(x).dtype == torch.float32
            half = gate(x.bfloat16())
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.double(), exact(x.double()), rtol=0.05, atol=0.05)


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES)
def test_backward_keeps_only_the_map(name: str, options: dict[str, Any]) -> None:
    gate, _ = twins(name, 16, torch.float32, **options)
    x = torch.randn(2, 16, 20, 20, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = gate(x * 1)
    own = x.untyped_storage().nbytes()
    assert sorted(kept.values())[-1] == own  # the map itself
    assert sum(kept.values()) < own + own / 4
    del y


def test_frozen_maps_and_frozen_gates() -> None:
    for name in sorted(FUSED):
        gate, exact = twins(name, 6, torch.float32)
        x = torch.randn(2, 6, 5, 5)
        gate(x).sum().backward()  # a map without gradient, as the network's images are
        exact(x.double()).sum().backward()
        for one, other in zip(gate.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)
        y = x.clone().requires_grad_()
        (of_map,) = torch.autograd.grad(gate.requires_grad_(False)(y).sum(), y)
        z = x.double().requires_grad_()
        (true,) = torch.autograd.grad(exact(z).sum(), z)
        torch.testing.assert_close(of_map.double(), true, rtol=1e-4, atol=1e-5)


def test_gate_multiplication_alone() -> None:
    x, factors = torch.randn(3, 4, 5, 6, requires_grad=True), torch.rand(3, 4, 1, 1, requires_grad=True)
    grad_output = torch.randn(3, 4, 5, 6)
    own = torch.autograd.grad(scale_channels(x, factors), (x, factors), grad_output)
    its = torch.autograd.grad(x * factors, (x, factors), grad_output)
    for one, other in zip(own, its, strict=True):
        torch.testing.assert_close(one, other)
    one_for_all = factors[:1].detach().requires_grad_()
    (of_factors,) = torch.autograd.grad(scale_channels(x, one_for_all), one_for_all, grad_output)
    torch.testing.assert_close(of_factors, (grad_output * x).sum((0, 2, 3), keepdim=True))


def _mean(x: Tensor, link: SharedGradient) -> tuple[Tensor, Tensor]:
    return mean_of_channels(x, link)


def _attention(x: Tensor, link: SharedGradient) -> tuple[Tensor, Tensor]:
    return pool_by_attention(x, torch.linspace(-1, 1, x.shape[1]).view(1, -1, 1, 1), None, link)


OTHER_CONSUMERS: dict[str, Callable[[Tensor, Tensor, SharedGradient], Tensor]] = {
    "a sum": lambda x, y, _: y.sum() + x.square().sum(),
    "a second product": lambda x, y, link: (y + scale_channels(x, torch.full((2, 3, 1, 1), 0.5), None, link)).sum(),
    "no product": lambda x, _, __: x.square().sum(),
}


@pytest.mark.parametrize("statistic", [_mean, _attention])
@pytest.mark.parametrize("other", OTHER_CONSUMERS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_backward_raises_if_shared_map_is_read_elsewhere(
    statistic: Callable[[Tensor, SharedGradient], tuple[Tensor, Tensor]], other: str, *, create_graph: bool
) -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    link = SharedGradient(x)
    shared, number = statistic(x, link)
    loss = OTHER_CONSUMERS[other](shared, scale_channels(shared, number.sigmoid(), None, link), link)
    with pytest.raises(gw.GatewiseError, match="another operation uses it too"):
        torch.autograd.grad(loss, x, create_graph=create_graph)


@pytest.mark.parametrize("statistic", [_mean, _attention])
def test_product_may_go_backward_repeatedly_and_in_part(
    statistic: Callable[[Tensor, SharedGradient], tuple[Tensor, Tensor]],
) -> None:
    """A pass that stops before the map leaves no state for the next, be that one differentiable or not."""
    x, bias = torch.randn(2, 3, 4, 5, requires_grad=True), torch.zeros(2, 3, 1, 1, requires_grad=True)
    link = SharedGradient(x)
    shared, number = statistic(x, link)
    loss = scale_channels(shared, (number + bias).sigmoid(), None, link).square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    for create_graph in (True, False):
        torch.autograd.grad(loss, bias, retain_graph=True)
        (again,) = torch.autograd.grad(loss, x, retain_graph=True, create_graph=create_graph)
        torch.testing.assert_close(again, first)


# ---- choice of backend -----------------------------------------------------------------------------------------------


def test_requested_backend_is_used(launches: list[str]) -> None:
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    for name in sorted(FUSED):
        gw.make_gate(name, 8, backend="reference")(x).sum().backward()
        assert not launches, name
        gw.make_gate(name, 8)(x).sum().backward()
        assert launches, name
        launches.clear()
    assert not takes_fused("reference", "gct", "")
    with pytest.raises(ValueError, match="unknown backend 'quick'; expected one of 'auto', 'fused', 'reference'"):
        gw.make_gate("gct", 8, backend="quick")


def _under(context: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    def call(gate: nn.Module, x: Tensor) -> Tensor:
        with context():
            return gate(x)

    return call


def _counting() -> Any:
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


def _dual(gate: nn.Module, x: Tensor) -> Tensor:
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        return gate(forward_ad.make_dual(x, torch.ones_like(x)))


REASONS: list[tuple[str, Callable[[nn.Module, Tensor], Any], Callable[[Tensor], Tensor], str]] = [
    ("half", lambda gate, x: gate.half()(x), lambda x: x.half(), "there is no kernel for maps of torch.float16 on cpu"),
    ("empty", lambda gate, x: gate(x), lambda x: x[:0], "the map is empty"),
    ("strided", lambda gate, x: gate(x), lambda x: x[..., ::2], "is neither contiguous nor channels-last"),
    ("counted", _under(_counting), lambda x: x, "a dispatch mode observes the operations of the definition"),
    ("forward mode", _dual, lambda x: x, "forward-mode differentiation follows the definition"),
    ("vmap", lambda gate, x: torch.func.vmap(gate)(x[None]), lambda x: x, "torch.func transforms the definition"),
    ("traced", lambda gate, x: torch.jit.trace(gate, x, check_trace=False), lambda x: x, "torch.jit.trace records the"),
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(FUSED))
@pytest.mark.parametrize(("call", "changed", "reason"), [pytest.param(*row, id=key) for key, *row in REASONS])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_fused_raises_with_reason_and_auto_falls_back(
    name: str, call: Any, changed: Any, reason: str, launches: list[str]
) -> None:
    x = changed(torch.randn(2, 8, 6, 6))
    with pytest.raises(gw.GatewiseError, match=f"{name} with backend='fused' cannot run here: .*{reason}"):
        call(gw.make_gate(name, 8, backend="fused").eval(), x)
    call(gw.make_gate(name, 8).eval(), x)
    assert not launches


def test_general_norms_have_no_kernel() -> None:
    with pytest.raises(gw.GatewiseError, match=r"mode 1\.5 has no kernel, only 'l1' and 'l2' have"):
        gw.make_gate("gct", 8, mode=1.5, backend="fused")(torch.randn(1, 8, 4, 4))


def test_hooks_on_mask_are_called() -> None:
    gate, seen = gw.make_gate("gc", 8), []
    gate.conv_mask.register_forward_hook(lambda *_: seen.append(1))
    gate(torch.randn(1, 8, 4, 4))
    assert seen == [1]
    gate.backend = "fused"
    with pytest.raises(gw.GatewiseError, match="conv_mask has hooks"):
        gate(torch.randn(1, 8, 4, 4))


def test_files_that_are_no_libraries_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libiomp5md.lib").write_bytes(b"!<arch>")
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert openmp.runtime.__wrapped__() is None


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("numba", r"kernels for the CPU need numba; pip install 'gatewise\[fast\]'"), ("runtime", "OpenMP library")],
)
def test_missing_requirement_is_named(missing: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "numba":
        monkeypatch.setattr(backend_module.importlib.util, "find_spec", lambda _: None)
    else:
        monkeypatch.setattr(openmp, "runtime", lambda: None)
    backend_module._why_unavailable.cache_clear()
    try:
        with pytest.raises(gw.GatewiseError, match=reason):
            gw.make_gate("gct", 8, backend="fused")(torch.randn(1, 8, 4, 4))
        assert gw.make_gate("gct", 8)(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)
    finally:
        backend_module._why_unavailable.cache_clear()


def test_gate_and_map_on_two_devices_rejected() -> None:
    assert (
        why_not_fusible(torch.zeros(1, 2, 3, 3), torch.zeros(2, device="meta"))
        == "the map is on cpu and the gate on meta"
    )


def test_without_numba_definitions_are_used() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch, gatewise as gw\n"
        "x = torch.randn(1, 8, 4, 4, requires_grad=True)\n"
        "for name in ('gct', 'se', 'gc'): gw.make_gate(name, 8)(x).sum().backward()\n"
        "assert 'llvmlite' not in sys.modules; print('ran')"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.stdout == "ran\n", answer.stderr


def test_importing_gatewise_does_not_import_numba() -> None:
    code = "import sys, gatewise; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_kernels_compile_without_writable_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def cfunc(signature: Any, **options: Any) -> Any:
        calls.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(openmp.numba, "cfunc", cfunc)
    assert openmp._compile(len, None) is len
    assert [bool(options.get("cache")) for options in calls] == [True, False]


def test_changed_sources_are_compiled_again() -> None:
    """Numba checks only the file of a kernel, so the name of its cache has a checksum of all files."""
    from gatewise.gates.kernels.cpu.gated_channel_kernels import forward_kernel

    assert forward_kernel.function.__qualname__.endswith(openmp._sources())


# ---- side effects of kernels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FUSED))
def test_default_device_does_not_affect_kernel(name: str) -> None:
    """Its buffer for sums was made on that device, and the process crashed."""
    gate, x = gw.make_gate(name, 4), torch.randn(2, 4, 5, 5, requires_grad=True)
    with torch.device("meta"):
        gate(x).sum().backward()
    assert x.grad is not None
    assert x.grad.device.type == "cpu"


@pytest.mark.parametrize("name", sorted(FUSED))
def test_no_map_outlives_its_graph(name: str) -> None:
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    held = x * 2
    map_, loss = weakref.ref(held), gw.make_gate(name, 4)(held).sum()
    del held
    loss.backward()
    assert map_() is None


@pytest.mark.parametrize("name", sorted(FUSED))
def test_vectorised_gradients_match_definition(name: str) -> None:
    x = torch.randn(1, 4, 3, 3)
    gate = gw.make_gate(name, 4)
    expected = torch.autograd.functional.jacobian(gate, x)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(torch.autograd.functional.jacobian(gate, x, vectorize=True), expected)
