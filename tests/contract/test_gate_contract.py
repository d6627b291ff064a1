"""The contract of every registered gate, with its default options and in each of its variants.

The cases are read from the registry: a new gate is tested without a line here.
"""

import copy
import io
import pickle
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import gatewise as gw
from gatewise.gates.registry import Gate, GateSpec
from gatewise.graph import place_names
from support import parallel
from support.gate_cases import cases, every_case, every_gate, gradients, make, perturbed, random_map, settled
from support.tolerance import TOLERANCE

HALF_TYPES = (torch.float16, torch.bfloat16)

every_option = pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in gw.gate_names() for option in gw.gate_spec(name).options]
)


# ---- the map -------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF_TYPES])
def test_shape_and_dtype_are_kept_and_input_is_unchanged(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    gate = perturbed(make(name, options, dtype=dtype))
    x = random_map(gate, dtype=dtype)
    before = x.clone()
    y = gate(x)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert torch.equal(x, before)


@every_case
def test_export_form_equals_definition(name: str, options: dict[str, Any]) -> None:
    gate = perturbed(make(name, options, dtype=torch.float64)).eval()
    x = random_map(gate, dtype=torch.float64)
    form = gate.export_form()
    if form is not None:
        assert_close(form(x), gate(x), **TOLERANCE[torch.float64])


def test_gates_with_export_form() -> None:
    with_form = {name for name in gw.gate_names() if make(name, {}).export_form() is not None}
    assert with_form == {"gc", "gct", "snl"}


@every_case
def test_memory_format_is_kept(name: str, options: dict[str, Any]) -> None:
    gate = perturbed(make(name, options, dtype=torch.float64)).eval()
    x = random_map(gate, dtype=torch.float64)
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(gate.spatial_dims)
    expected = gate(x)
    assert expected.stride() == x.stride()
    if last is not None:
        y = gate(x.to(memory_format=last))
        assert y.is_contiguous(memory_format=last)
        assert_close(y, expected, **TOLERANCE[torch.float64])


@every_case
def test_samples_do_not_mix_in_eval_mode(name: str, options: dict[str, Any]) -> None:
    gate = perturbed(make(name, options)).eval()
    x = random_map(gate, samples=3)
    other = x.clone()
    other[1] = 10 * torch.randn_like(x[1])
    first, second = gate(x), gate(other)
    assert torch.equal(first[[0, 2]], second[[0, 2]])
    assert not torch.equal(first[1], second[1])


@every_case
def test_empty_batch_passes_through(name: str, options: dict[str, Any]) -> None:
    gate = perturbed(make(name, options)).eval()
    x = random_map(gate, samples=0).requires_grad_()
    y = gate(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None


@every_case
def test_one_sample_of_one_position_is_finite_in_eval_mode(name: str, options: dict[str, Any]) -> None:
    gate = perturbed(make(name, options)).eval()
    x = random_map(gate, samples=1)
    if getattr(gate, "map_size", None) is None:
        x = x[(..., *[slice(0, 1)] * gate.spatial_dims)]
    y = gate(x)
    assert y.shape == x.shape
    assert y.isfinite().all()


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
def test_map_of_zeros_has_finite_outputs_and_gradients(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    gate = perturbed(make(name, options, dtype=dtype))
    x = torch.zeros_like(random_map(gate, dtype=dtype))
    assert gate(x).isfinite().all()
    assert all(g.isfinite().all() for g in gradients(gate, x, torch.ones_like(x)) if g is not None)


# ---- the mechanism -------------------------------------------------------------------------------------------------


@every_case
def test_module_equals_registered_function(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gw.gate_spec(name)
    reference = {"backend": "reference"} if "backend" in spec.options else {}
    gate = make(name, options | reference)
    x, answer, calls = random_map(gate), torch.zeros(1), []

    def instead(*args: Any, **kwargs: Any) -> Tensor:
        calls.append((args, kwargs))
        return answer

    namespace = sys.modules[spec.gate.__module__]
    aliases = [key for key, value in vars(namespace).items() if value is spec.function]
    for alias in aliases:
        monkeypatch.setattr(namespace, alias, instead)
    assert gate(x) is answer
    assert len(calls) == 1
    assert calls[0][0][0] is x


@every_case
def test_gradients_match_finite_differences_in_float64(name: str, options: dict[str, Any]) -> None:
    gate = perturbed(gw.make_gate(name, 4, **options, dtype=torch.float64)).eval()
    x = random_map(gate, side=2, dtype=torch.float64).requires_grad_()
    names = [name for name, _ in gate.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(gate, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *gate.parameters()))


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
def test_fresh_gate_is_identity_exactly_if_declared(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    gate = make(name, options, dtype=dtype)
    x = random_map(gate, dtype=dtype)
    assert torch.equal(gate(x), x) == gate.identity_at_init


@every_case
def test_fresh_gate_gets_gradients(name: str, options: dict[str, Any]) -> None:
    gate = make(name, options)
    if not list(gate.parameters()):
        pytest.skip("has no parameters")
    x = random_map(gate)
    for backend in ["auto", "reference"] if hasattr(gate, "backend") else ["reference"]:
        gate.backend = backend
        own = gradients(gate, x, torch.randn_like(x))[1:]
        assert any(g is not None and g.abs().max() > 1e-6 for g in own)


def alternatives(spec: GateSpec, option: str) -> Iterator[Any]:
    """Yield other values of an option: those of the variants, and others of its default's type."""
    default = spec.options[option].default
    yield from (options[option] for options in spec.variants.values() if option in options)
    if isinstance(default, bool):
        yield not default
    elif isinstance(default, int | float):
        yield 2 * default
    elif default is None:
        yield from (0.5, 3)


def output(spec: GateSpec, options: dict[str, Any]) -> Tensor:
    """Return a perturbed gate's output; equal options give equal weights and maps."""
    torch.manual_seed(0)
    gate = spec.make(32, **options, dtype=torch.float64).eval()
    torch.manual_seed(1)
    perturbed(gate)
    torch.manual_seed(2)
    return gate(random_map(gate, dtype=torch.float64))


def changes_something(spec: GateSpec, option: str) -> bool:
    """Whether some value of the option, in addition to the defaults or a variant, changes the output."""
    for base in ({}, *spec.variants.values()):
        for value in alternatives(spec, option):
            try:
                before, after = output(spec, dict(base)), output(spec, {**base, option: value})
            except gw.GatewiseError:
                continue  # a combination that the gate rejects
            if before.shape == after.shape and after.isfinite().all() and not torch.equal(before, after):
                return True
    return False


@every_option
def test_option_changes_output_unless_declared_inert(name: str, option: str) -> None:
    spec = gw.gate_spec(name)
    assert changes_something(spec, option) == (option not in spec.no_effect_at_init)


# ---- half precision ------------------------------------------------------------------------------------------------


def large_map(gate: Gate, dtype: torch.dtype) -> Tensor:
    """Return values up to 10 over 12,544 positions or more: their sum and their squares' leave float16's range."""
    side = {1: 112 * 112, 2: 112, 3: 23}[gate.spatial_dims]
    x = 10 * random_map(gate, samples=1, side=side).sigmoid()
    levels = torch.linspace(0.3, 1, gate.channels).reshape(-1, *[1] * gate.spatial_dims)
    return (x * levels).to(dtype)


@cases("nl-concatenation", "nl-gaussian", "nl-wide")  # of pairs of 12,544 positions
@pytest.mark.parametrize("dtype", HALF_TYPES)
@torch.no_grad()
def test_half_precision_stays_close_to_float32(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    half = settled(perturbed(make(name, options))).to(dtype)
    full = copy.deepcopy(half).float()
    x = large_map(half, dtype)
    expected = full(x.float())
    tolerance = {"rtol": TOLERANCE[dtype]["rtol"], "atol": TOLERANCE[dtype]["atol"] * expected.abs().max().item()}
    assert expected.isfinite().all()
    assert_close(half(x).float(), expected, **tolerance)
    with torch.autocast("cpu", dtype=dtype):
        y = full(x)
    assert y.dtype == dtype
    assert_close(y.float(), expected, **tolerance)


@cases("nl-concatenation", "nl-gaussian", "nl-wide")  # of pairs of 12,544 positions
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_precision_gradients_are_finite(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    gate = settled(perturbed(make(name, options))).to(dtype)
    x = large_map(gate, dtype)
    own = gradients(gate, x, torch.full_like(x, 1e-3))
    assert all(g.isfinite().all() for g in own if g is not None)


# ---- state ---------------------------------------------------------------------------------------------------------


@every_case
def test_state_dict_round_trip_is_bitwise(name: str, options: dict[str, Any]) -> None:
    gate = perturbed(make(name, options))
    gate(random_map(gate, samples=4))  # moves running statistics where there are any
    file = io.BytesIO()
    torch.save(gate.state_dict(), file)
    file.seek(0)
    other = make(name, options)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = random_map(gate)
    assert torch.equal(other.eval()(x), gate.eval()(x))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in gate.state_dict().items())


@every_case
@torch.no_grad()
def test_replica_of_data_parallel_has_same_output(name: str, options: dict[str, Any]) -> None:
    gate = perturbed(make(name, options)).eval()
    x = random_map(gate)
    replica = parallel.on_cpu(gate, 1)[0]
    assert torch.equal(replica(x), gate(x))
    assert replica.channels == gate.channels


@every_case
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda gate: pickle.loads(pickle.dumps(gate))])
def test_copy_has_own_parameters_and_same_output(name: str, options: dict[str, Any], duplicate: Any) -> None:
    gate = perturbed(make(name, options)).eval()
    other, x = duplicate(gate), random_map(gate)
    expected = gate(x)
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(gate(x), expected)


@every_case
def test_reset_parameters_completes_meta_construction(name: str, options: dict[str, Any]) -> None:
    fresh, states = make(name, options), []
    for garbage in (float("nan"), 7.0):
        gate = make(name, options, device="meta")
        assert all(tensor.is_meta for tensor in gate.state_dict().values())
        gate.to_empty(device="cpu")
        for tensor in gate.state_dict().values():
            tensor.fill_(garbage) if tensor.is_floating_point() else tensor.fill_(7)
        torch.manual_seed(3)
        gate.reset_parameters()
        states.append(gate.state_dict())
    for key, value in fresh.state_dict().items():
        assert torch.equal(states[0][key], states[1][key])
        if value.double().std(correction=0) == 0 and value.numel() > 1:
            assert torch.equal(states[0][key], value)
    x = random_map(gate)
    assert torch.equal(gate(x), x) == gate.identity_at_init


@every_case
def test_requested_device_and_dtype_are_used(name: str, options: dict[str, Any]) -> None:
    tensors = make(name, options, device="meta", dtype=torch.float64).state_dict().values()
    assert all(tensor.is_meta for tensor in tensors)
    assert all(tensor.dtype == torch.float64 for tensor in tensors if tensor.is_floating_point())


# ---- tools ---------------------------------------------------------------------------------------------------------


@every_case
def test_exported_gate_agrees_at_other_batch_size(name: str, options: dict[str, Any]) -> None:
    gate = perturbed(make(name, options, dtype=torch.float64)).eval()
    example = random_map(gate, samples=3, dtype=torch.float64)
    program = torch.export.export(gate, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = random_map(gate, samples=5, dtype=torch.float64)
    assert_close(program.module()(x), gate(x), **TOLERANCE[torch.float64])


def check_compiled(gate: Gate, backend: str) -> None:
    """Compare the compiled gate with the eager one, forward and backward."""
    torch.compiler.reset()
    compiled = torch.compile(gate, fullgraph=True, backend=backend)
    x = random_map(gate, dtype=torch.float64).requires_grad_()
    grad_output, results = torch.randn_like(x), []
    for call in (compiled, gate):
        y = call(x)
        results.append([y, *torch.autograd.grad(y, [x, *gate.parameters()], grad_output, allow_unused=True)])
    assert_close(*results, **TOLERANCE[torch.float64])


@pytest.mark.extended
@every_case
def test_compiled_gate_agrees_forward_and_backward(name: str, options: dict[str, Any]) -> None:
    check_compiled(perturbed(make(name, options, dtype=torch.float64)).eval(), "aot_eager")


@pytest.mark.slow
@every_case
def test_inductor_gate_agrees_forward_and_backward(name: str, options: dict[str, Any]) -> None:
    check_compiled(perturbed(make(name, options, dtype=torch.float64)).eval(), "inductor")


@every_gate
def test_timm_accepts_class_as_attention_layer(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", num_classes=3, block_args={"attn_layer": gw.gate_spec(name).gate})
    assert len(gw.gates_in(net)) == 8
    assert net.eval()(torch.randn(2, 3, 64, 64)).isfinite().all()


# ---- the facts -----------------------------------------------------------------------------------------------------


@every_gate
def test_facts_in_registry_are_complete(name: str) -> None:
    spec = gw.gate_spec(name)
    assert spec.place in place_names(marked=False)
    assert spec.title
    assert re.search(r"\b(19|20)\d\d\b", spec.paper), "a paper has a year"
    assert ">>>" in (spec.function.__doc__ or "")
    assert ">>>" in (spec.gate.__doc__ or "")
    assert all(set(options) <= set(spec.options) for options in spec.variants.values())


@every_gate
def test_inert_option_exists_and_has_reason(name: str) -> None:
    spec = gw.gate_spec(name)
    assert set(spec.no_effect_at_init) <= set(spec.options)
    assert all(len(reason.split()) > 1 for reason in spec.no_effect_at_init.values())


@every_case
def test_parameters_exempt_from_weight_decay_exist(name: str, options: dict[str, Any]) -> None:
    gate = make(name, options)
    assert set(gate.no_weight_decay) <= {key for key, _ in gate.named_parameters()}


@every_case
def test_extra_loss_is_scalar_or_none(name: str, options: dict[str, Any]) -> None:
    gate = make(name, options)
    gate(random_map(gate))
    loss = gate.extra_loss()
    assert loss is None or loss.dim() == 0
