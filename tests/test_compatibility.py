"""Tools of others and networks with gates: each pair works, or says what the page says."""

import re
from pathlib import Path

import pytest
import torch
from compatibility import EXCEPTIONS, PAIRS, TOOLS, ExpectedError, Tool
from compatibility_page import page
from compatible_networks import KINDS, batch, gater_net, labels, loss_of, made, plain
from compression_checks import prune
from gate_cases import every_gate
from releases import release
from tool_checks import close, compiles_in_training
from torch import nn
from torch.utils.checkpoint import checkpoint

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError

PAGE = Path(__file__).parent.parent / "docs/compatibility.md"
pytestmark = pytest.mark.filterwarnings("ignore:the network was planned for")  # float64, and then moved to float32


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        pytest.param(tool, kind, id=f"{tool.check.__name__}-{kind}", marks=[pytest.mark.slow] if tool.slow else [])
        for tool, kind in PAIRS
    ],
)
def test_a_tool_does_with_a_network_what_the_page_says(tool: Tool, kind: str) -> None:
    expected = EXCEPTIONS.get((tool.check, kind), "")
    if not isinstance(expected, ExpectedError):
        assert tool.check(kind) == expected
        return
    message = ".*".join(re.escape(part) for part in expected.message.split("*"))
    with pytest.raises(Exception, match=message) as refusal:
        tool.check(kind)
    assert refusal.type.__name__ == expected.error


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["`gct`", "GaterNet", "local"])
def test_inductor_agrees_too(kind: str) -> None:
    assert compiles_in_training(kind, backend="inductor") == ""


def test_the_page_is_what_its_generator_says() -> None:
    versions = re.compile(r"(?<=`make docs` with ).*?\.$", flags=re.MULTILINE)
    assert versions.sub("", PAGE.read_text()) == versions.sub("", page()), "docs/compatibility.md is stale: make docs"


def test_the_list_holds_nothing_that_is_not_tried() -> None:
    assert set(EXCEPTIONS) <= {(tool.check, kind) for tool, kind in PAIRS}
    assert {f"`{name}`" for name in gw.gate_names()} < set(KINDS)
    assert len({tool.check for tool in TOOLS}) == len(TOOLS)


# ---- what the page adds --------------------------------------------------------------------------------------------


@every_gate
def test_symbolic_tracing_of_a_gate_itself_is_refused(name: str) -> None:
    with pytest.raises(InvalidTypeError, match=r"got a Proxy of torch\.fx\.symbolic_trace.*torch\.export\.export"):
        torch.fx.symbolic_trace(nn.Sequential(gw.make_gate(name, 8)))


def test_a_gate_that_is_a_leaf_is_traced() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, gw.Gate) or super().is_leaf_module(m, module_qualified_name)

    net = nn.Sequential(nn.Conv2d(3, 8, 3), gw.make_gate("se", 8)).double()
    close(torch.fx.GraphModule(net, Tracer().trace(net))(batch()), net(batch()))


@pytest.mark.skipif(
    release(torch.__version__) <= (2, 11),
    reason="torch 2.11 compiles a skipping net as if it trained",
)
@pytest.mark.parametrize(
    ("gater", "mode"),
    [("light", "skip"), pytest.param("local", "skip", marks=pytest.mark.slow)]
    + [pytest.param(gater, "auto", marks=pytest.mark.slow) for gater in ("light", "local")],
)
def test_a_skipping_net_runs_as_it_is_in_a_compiled_program(gater: str, mode: str) -> None:
    fast = gw.skip_closed_filters(gater_net(gater).eval(), mode)
    seen = []
    torch.compiler.reset()
    program = torch.compile(lambda x: fast(x + 1) * 2, backend=lambda graph, _: seen.append(graph) or graph.forward)
    for seed in range(3):
        close(program(batch(seed=seed)), 2 * fast(batch(seed=seed) + 1))
    operations = {node.target for graph in seen for node in graph.graph.nodes if node.op == "call_function"}
    assert len(seen) == 2, "what is before it, and what is behind"
    assert len(operations) == 2, "a sum and a product, and no convolution"


def test_a_pruned_network_takes_a_gater_around_it() -> None:
    net, x = plain(), batch().float()
    prune(net)
    gated = gw.GaterNet(net, image_size=(8, 8))
    assert [site.filters for site in gated.sites] == [4, 4, 4]
    assert gated(x).shape == (6, 5)


def test_a_gate_without_weights_is_taken_out_for_pruning() -> None:
    net, x = plain(), batch().float()
    gw.insert_gates(net, "ge", example=x).undo()
    prune(net)
    insertion = gw.insert_gates(net, "ge", example=x)
    assert [gate.channels for gate in insertion.gates.values()] == [4, 4]
    assert net(x).shape == (6, 5)


@pytest.mark.slow
def test_a_quantised_gater_net_is_compacted_and_skipped() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    net, x = made("GaterNet").float().eval(), batch().float()
    quantize_(net, Int8WeightOnlyConfig())
    with torch.no_grad():
        expected = net(x)
        for smaller in (gw.compact(net, [x]), gw.skip_closed_filters(net, "skip")):
            torch.testing.assert_close(smaller(x), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpointed_step_moves_the_budget_once_and_owes_nothing_afterwards() -> None:
    net, twin = made("GaterNet").train(), made("GaterNet").train()
    loss = nn.functional.cross_entropy(checkpoint(net, batch(), use_reentrant=False), labels()) + gw.gate_loss(net)
    loss.backward()
    loss_of(twin, batch(), labels()).backward()
    assert torch.equal(net.price.state, twin.price.state)
    assert float(net.price.state[0]) == 1
    assert float(gw.gate_loss(net)) == 0


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the evaluation in between
def test_wrong_gradients_of_reentrant_checkpoints_are_refused_after_an_evaluation_too() -> None:
    net = made("GaterNet").train()
    unit = net.backbone[3]
    unit.forward = (lambda forward: lambda x: checkpoint(forward, x, use_reentrant=True))(unit.forward)
    loss = loss_of(net, batch(), labels())
    with torch.no_grad():
        net(batch())
    with pytest.raises(InvalidValueError, match="in the backward pass, without its gates"):
        loss.backward()


def test_the_backbone_of_a_net_that_never_ran_is_checkpointed_as_any() -> None:
    net = made("GaterNet").train()
    checkpoint(net.backbone, batch(), use_reentrant=False).sum().backward()
    assert net.backbone[0].weight.grad is not None
