"""Checks of third-party tools on a network. Each check fails, or returns a remark, which is usually ''."""

import functools
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import gatewise as gw
from support.compatible_networks import batch, labels, loss_of, made, train
from support.random_networks import Residual

DECAY = 0.75
SCRIPT = str(Path(__file__).with_name("tools_in_processes.py"))
SIDE_EFFECTS = "yes; torch warns of side effects: the object that passes the gates to the layers"
UNBATCHED = "yes; torch warns that it has no batched form of one operation and runs it image by image"


def close(left: Any, right: Any) -> None:
    assert_close(left, right, rtol=1e-8, atol=1e-10)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in [*net.named_parameters(), *net.named_buffers()]}


def steps(net: nn.Module, forward: nn.Module, after: Callable[[nn.Module], None] = state) -> list[dict[str, Tensor]]:
    """Train `net` through `forward` for three steps, and return its state before and after each."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    states = [state(net)]
    for step in range(3):
        optimizer.zero_grad()
        loss_of(forward, batch(seed=step), labels()).backward()
        optimizer.step()
        after(net)
        states.append(state(net))
    return states


# ---- torch.compile and torch.export --------------------------------------------------------------------------------


def compiles(kind: str, backend: str = "aot_eager") -> str:
    """Check that eval mode is one graph, also for other images; another batch size adds one graph."""
    net = made(kind).eval()
    compiled, counter = compiled_once(net, backend)
    with torch.no_grad():
        close(compiled(batch()), net(batch()))
        close(compiled(batch(seed=2)), net(batch(seed=2)))
        assert counter.frame_count == 1
        close(compiled(batch(4)), net(batch(4)))
        close(compiled(batch(5)), net(batch(5)))
    assert counter.frame_count == 2, "one more, for a batch of any size"
    return ""


def compiles_in_training(kind: str, backend: str = "aot_eager") -> str:
    """Check that three SGD steps with one graph give the weights, statistics and budget of eager mode."""
    net, twin = made(kind).train(), made(kind).train()
    compiled, counter = compiled_once(net, backend)
    close(steps(net, compiled), steps(twin, twin))
    assert counter.frame_count == 1
    return ""


def compiled_once(net: nn.Module, backend: str) -> tuple[Any, Any]:
    from torch._dynamo.testing import CompileCounterWithBackend  # loads torch's compiler

    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(net, fullgraph=True, backend=counter), counter


def exports(kind: str, *, strict: bool = False) -> str:
    """Check that a program with a free batch size gives the same output for batches of 1, 2 and 9 other images."""
    net = made(kind).eval()
    free = ({0: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = torch.export.export(net, (batch(),), dynamic_shapes=free, strict=strict)
    for count in (1, 2, 9):
        close(program.module()(batch(count, seed=2)), net(batch(count, seed=2)))
    return remark(caught, "While compiling, we found certain side effects", SIDE_EFFECTS)


def exports_strictly(kind: str) -> str:
    """Check the same with strict=True, which reads Python's bytecode."""
    return exports(kind, strict=True)


def traces(kind: str) -> str:
    """Check that the graph module gives the network's output, also for another batch size."""
    net = made(kind).eval()
    traced = torch.fx.symbolic_trace(net)
    close(traced(batch()), net(batch()))
    close(traced(batch(3)), net(batch(3)))
    return ""


# ---- torch.func ----------------------------------------------------------------------------------------------------


def other_weights(net: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: value + 0.1 * torch.randn_like(value) for name, value in net.named_parameters()}


def calls_with_other_weights(kind: str) -> str:
    """Check output and gradients with other weights; the network keeps its own."""
    net, twin = train(made(kind)), train(made(kind))
    before, weights = state(net), {name: value.detach() for name, value in other_weights(net).items()}
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    output = torch.func.functional_call(net, leaves, (batch(),))
    twin.load_state_dict(weights, strict=False)
    expected = twin(batch())
    close(output, expected)
    own = torch.autograd.grad(output.square().sum(), list(leaves.values()), allow_unused=True)
    close(own, torch.autograd.grad(expected.square().sum(), list(twin.parameters()), allow_unused=True))
    close({name: state(net)[name] for name in leaves}, {name: before[name] for name in leaves})
    return ""


def gives_gradients_of_each_image(kind: str) -> str:
    """Check that in eval mode each image has the gradients that a loop over images gives."""
    net = made(kind).eval()
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = torch.func.functional_call(net, weights, (x[None],))
        return nn.functional.cross_entropy(output, y[None])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, batch(), labels())
    for image in range(6):
        net.zero_grad()
        nn.functional.cross_entropy(net(batch()[image, None]), labels()[image, None]).backward()
        for name, parameter in net.named_parameters():
            close(found[name][image], torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return remark(caught, "There is a performance drop", UNBATCHED)


def remark(caught: list[warnings.WarningMessage], beginning: str, meaning: str) -> str:
    """Return the remark for a warning, or '' if there was none; any other warning is an error."""
    assert all(str(warning.message).startswith(beginning) for warning in caught), [str(w.message) for w in caught]
    return meaning if caught else ""


# ---- moving averages -----------------------------------------------------------------------------------------------


def in_loops(states: list[dict[str, Tensor]]) -> dict[str, list[float]]:
    """Return the moving average of the states, computed element by element."""
    averages = {name: value.flatten().tolist() for name, value in states[0].items()}
    for later in states[1:]:
        for name, values in averages.items():
            for index, value in enumerate(later[name].flatten().tolist()):
                values[index] = DECAY * values[index] + (1 - DECAY) * value
    return averages


def averages(kind: str) -> str:
    """Check the average of every weight, from the first step on, against a loop; buffers are the last step's."""
    net = made(kind).train()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    states = steps(net, net, after=average.update_parameters)
    weights = {name for name, _ in net.named_parameters()}
    return holds(average.module, kind, states, {name: in_loops(states[1:])[name] for name in weights})


def averages_by_timm(kind: str) -> str:
    """Check the average of every weight and floating-point buffer, starting before the first step."""
    net = made(kind).train()
    average = ModelEmaV3(net, decay=DECAY)
    states = steps(net, net, after=average.update)
    moving = {name for name, value in states[0].items() if value.is_floating_point()}
    return holds(average.module, kind, states, {name: in_loops(states)[name] for name in moving})


def holds(average: nn.Module, kind: str, states: list[dict[str, Tensor]], expected: dict[str, list[float]]) -> str:
    """Compare the average with that of a loop, the training with one without averaging, and the outputs."""
    twin = made(kind).train()
    close(states, steps(twin, twin))
    for name, value in average.state_dict().items():
        close(value.flatten().tolist(), expected.get(name, states[-1][name].flatten().tolist()))
    twin.load_state_dict(average.state_dict())
    with torch.no_grad():
        close(average.eval()(batch()), twin.eval()(batch()))
    return ""


# ---- activation checkpointing --------------------------------------------------------------------------------------


def is_checkpointed(kind: str) -> str:
    """Check that recomputation in the backward pass changes neither gradients nor the state of a budget."""

    def checkpointed(net: nn.Module) -> Callable[[Tensor], Any]:
        return lambda x: checkpoint(net, x, use_reentrant=False)

    return same_gradients(kind, checkpointed)


def has_checkpointed_units(kind: str) -> str:
    """Check the same with each residual unit of the network separately."""

    def checkpointed(net: nn.Module) -> Callable[[Tensor], Any]:
        for unit in [module for module in net.modules() if isinstance(module, Residual)]:
            unit.forward = functools.partial(checkpoint, unit.forward, use_reentrant=False)
        return net

    return same_gradients(kind, checkpointed)


def same_gradients(kind: str, checkpointed: Callable[[nn.Module], Callable[[Tensor], Any]]) -> str:
    net, twin = train(made(kind)), train(made(kind))
    for network, forward in ((net, checkpointed(net)), (twin, twin)):
        loss = nn.functional.cross_entropy(forward(batch()), labels()) + gw.gate_loss(network)
        loss.backward()
    close([p.grad for p in net.parameters()], [p.grad for p in twin.parameters()])
    close(state(net), state(twin))
    return ""


# ---- several processes ---------------------------------------------------------------------------------------------


def runs_in_ddp(kind: str) -> str:
    """Check that two processes (gloo) with half a batch each give the gradients and state of one process."""
    return agrees(kind, "ddp")


def runs_in_fsdp(kind: str) -> str:
    """Check the same with `fully_shard` of each residual unit and of the rest, which shards gates too."""
    return agrees(kind, "fsdp")


@functools.cache
def results(wrapper: str) -> dict[str, Any]:
    """Run `tools_in_processes.py` in two processes; return the result for each kind of network, or the error."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.pt"
        subprocess.run([*launcher, SCRIPT, wrapper, str(file)], check=True, capture_output=True, timeout=300)
        return torch.load(file)


def agrees(kind: str, wrapper: str) -> str:
    found = results(wrapper)[kind]
    if isinstance(found, str):
        raise RuntimeError(found)  # noqa: TRY004
    net = train(made(kind))
    loss_of(net, batch(), labels()).backward()
    close(found["gradients"], {name: parameter.grad for name, parameter in net.named_parameters()})
    close(found["state"], net.state_dict())
    net.eval()
    with torch.no_grad():
        close(found["output"], list(net.forward_with_gates(batch())) if isinstance(net, gw.GaterNet) else net(batch()))
    assert found["sharded"] == (wrapper == "fsdp")
    return ""
