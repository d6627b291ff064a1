"""Networks with gates in other tools: each pair works, or raises the error on the page."""

import re

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError
from support.compatibility import EXCEPTIONS, PAIRS, TOOLS, ExpectedError, Tool
from support.compatible_networks import KINDS, batch, gater_net, labels, loss_of, made, plain
from support.compression_checks import prune
from support.gate_cases import every_gate
from support.project import ROOT
from support.releases import release
from support.tool_checks import close, compiles_in_training
from tools.compatibility_page import page

PAGE = ROOT / "docs/compatibility.md"
pytestmark = pytest.mark.filterwarnings("ignore:the network ran on cpu, torch.float64 and is now on cpu, torch.float32")


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        pytest.param(tool, kind, id=f"{tool.check.__name__}-{kind}", marks=[pytest.mark.slow] if tool.slow else [])
        for tool, kind in PAIRS
    ],
)
def test_tool_result_matches_page(tool: Tool, kind: str) -> None:
    expected = EXCEPTIONS.get((tool.check, kind), "")
    if not isinstance(expected, ExpectedError):
        assert tool.check(kind) == expected
        return
    message = ".*".join(re.escape(part) for part in expected.message.split("*"))
    with pytest.raises(Exception, match=message) as error:
        tool.check(kind)
    assert error.type.__name__ == expected.error


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["`gct`", "GaterNet", "local"])
def test_inductor_output_agrees(kind: str) -> None:
    assert compiles_in_training(kind, backend="inductor") == ""


@pytest.mark.extended
def test_page_matches_generator() -> None:
    versions = re.compile(r"(?<=`make docs` with ).*?\.$", flags=re.MULTILINE)
    assert versions.sub("", PAGE.read_text()) == versions.sub("", page()), "docs/compatibility.md is stale: make docs"


def test_every_listed_tool_is_tested() -> None:
    assert set(EXCEPTIONS) <= {(tool.check, kind) for tool, kind in PAIRS}
    assert {f"`{name}`" for name in gw.gate_names()} < set(KINDS)
    assert len({tool.check for tool in TOOLS}) == len(TOOLS)


# ---- additions to the page -----------------------------------------------------------------------------------------


@every_gate
def test_symbolic_tracing_of_gate_itself_rejected(name: str) -> None:
    with pytest.raises(InvalidTypeError, match=r"got a Proxy of torch\.fx\.symbolic_trace.*torch\.export\.export"):
        torch.fx.symbolic_trace(nn.Sequential(gw.make_gate(name, 8)))


def test_gate_as_leaf_is_traced() -> None:
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
def test_skipping_net_runs_uncompiled_in_compiled_program(gater: str, mode: str) -> None:
    fast = gw.skip_closed_filters(gater_net(gater).eval(), mode)
    seen = []
    torch.compiler.reset()
    program = torch.compile(lambda x: fast(x + 1) * 2, backend=lambda graph, _: seen.append(graph) or graph.forward)
    for seed in range(3):
        close(program(batch(seed=seed)), 2 * fast(batch(seed=seed) + 1))
    operations = {node.target for graph in seen for node in graph.graph.nodes if node.op == "call_function"}
    assert len(seen) == 2, "the parts before and after it"
    assert len(operations) == 2, "a sum and a product, and no convolution"


def test_pruned_network_accepts_gater() -> None:
    net, x = plain(), batch().float()
    prune(net)
    gated = gw.GaterNet(net, image_size=(8, 8))
    assert [site.filters for site in gated.sites] == [4, 4, 4]
    assert gated(x).shape == (6, 5)


def test_gate_without_weights_is_removed_for_pruning() -> None:
    net, x = plain(), batch().float()
    gw.insert_gates(net, "ge", example=x).undo()
    prune(net)
    insertion = gw.insert_gates(net, "ge", example=x)
    assert [gate.channels for gate in insertion.gates.values()] == [4, 4]
    assert net(x).shape == (6, 5)


@pytest.mark.slow
def test_quantised_gater_net_is_compacted_and_skipped() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    net, x = made("GaterNet").float().eval(), batch().float()
    quantize_(net, Int8WeightOnlyConfig())
    with torch.no_grad():
        expected = net(x)
        for smaller in (gw.compact(net, [x]), gw.skip_closed_filters(net, "skip")):
            torch.testing.assert_close(smaller(x), expected, rtol=1e-4, atol=1e-5)


def test_checkpointed_step_counts_budget_once() -> None:
    net, twin = made("GaterNet").train(), made("GaterNet").train()
    loss = nn.functional.cross_entropy(checkpoint(net, batch(), use_reentrant=False), labels()) + gw.gate_loss(net)
    loss.backward()
    loss_of(twin, batch(), labels()).backward()
    assert torch.equal(net.price.state, twin.price.state)
    assert float(net.price.state[0]) == 1
    assert float(gw.gate_loss(net)) == 0


def test_checkpointed_step_is_taught_by_the_network_itself() -> None:
    """The recomputed forward with all gates open was taken for one that had lost its gates."""
    gradients = []
    for run in (lambda net: checkpoint(net, batch(), use_reentrant=False), lambda net: net(batch())):
        net = made("GaterNet").train()
        criterion = gw.GateLoss(gw.TeacherLoss(nn.functional.cross_entropy, net), net)
        criterion(run(net), labels()).backward()
        gradients.append([p.grad for p in net.parameters()])
    assert gradients[0][0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the evaluation in between
def test_wrong_gradients_of_reentrant_checkpoints_rejected_after_eval() -> None:
    net = made("GaterNet").train()
    unit = net.backbone[3]
    unit.forward = (lambda forward: lambda x: checkpoint(forward, x, use_reentrant=True))(unit.forward)
    loss = loss_of(net, batch(), labels())
    with torch.no_grad():
        net(batch())
    with pytest.raises(InvalidValueError, match="in the backward pass, without its gates"):
        loss.backward()


def test_backbone_of_unused_net_can_be_checkpointed() -> None:
    net = made("GaterNet").train()
    checkpoint(net.backbone, batch(), use_reentrant=False).sum().backward()
    assert net.backbone[0].weight.grad is not None
