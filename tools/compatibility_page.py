"""Write the page on compatibility with third-party tools.

PYTHONPATH=.:tests python tools/compatibility_page.py > docs/compatibility.md
"""

import inspect
import string
from importlib.metadata import version

from support.compatibility import EXCEPTIONS, TOOLS, ExpectedError, Tool
from support.compatible_networks import KINDS
from tools.situations import situations

VERSIONS = ", ".join(
    f"{name} {version(name).partition('+')[0]}" for name in ("torch", "timm", "torch-pruning", "torchao")
)


def footnotes() -> dict[str, str]:
    """Map the text of each footnote to its letter, in the order of the table."""
    texts = (text_of(tool, kind) for tool in TOOLS for kind in KINDS)
    return dict(zip(dict.fromkeys(text for text in texts if text), string.ascii_lowercase, strict=False))


def text_of(tool: Tool, kind: str) -> str:
    """Return the remark for one cell, '' if the pair works without one."""
    found = EXCEPTIONS.get((tool.check, kind), "")
    if isinstance(found, ExpectedError):
        return f"raises `{found.error}`: “{found.message.replace('*', '…')}”"
    return found


def row(tool: Tool, letters: dict[str, str]) -> str:
    """Return the table row of a tool."""
    texts = [text_of(tool, kind) for kind in KINDS]
    return f"| {tool.name} | {' | '.join(letters[text] if text else 'yes' for text in texts)} |"


def meaning(tool: Tool) -> str:
    """Return the list entry of a tool: the docstring of its check."""
    text = " ".join((inspect.getdoc(tool.check) or "").split()).removeprefix("Check ").removeprefix("that ")
    return f"- {tool.name}: {text}"


def situation(kind: str, members: list[str]) -> str:
    """Return the list entry of a kind of situation.

    >>> situation("pixels", ["grey", "a|b"])
    '- pixels: grey; a|b'
    """
    return f"- {kind}: {'; '.join(members)}"


def page() -> str:
    """Return the page as Markdown."""
    letters = footnotes()
    return f"""# Compatibility

This page lists which third-party tools work with gatewise. A *gate* is a small module that rescales the channels of a
feature map or adds context to them. In the first columns, a small residual network has the gate at its paper's place.
The other columns are networks with a 0/1 gate for each filter: `GaterNet` has a light gater and a budget, in `local`
each layer computes its own gates, `compacted` is a `GaterNet` after `gatewise.compact`, `skipping` one after
`skip_closed_filters`. `tests/integration/test_compatibility.py` tests every cell on the CPU. The tests and this page
use one list, `tests/support/compatibility.py`. Written by `make docs` with {VERSIONS}.

| | {" | ".join(KINDS)} |
| --- | {" | ".join("---" for _ in KINDS)} |
{chr(10).join(row(tool, letters) for tool in TOOLS)}

Footnotes (… stands for names and numbers):

{chr(10).join(f"- {letter}: {text}" for text, letter in letters.items())}

What is checked:

{chr(10).join(meaning(tool) for tool in TOOLS)}

Unless stated otherwise, results must agree within 1e-8 in float64.

## Situations

What users do before and after they insert gates, in kinds, with the members of each kind that are tested. This list is
collected from the tests: each entry is a test with the mark `situation`.

{chr(10).join(situation(kind, members) for kind, members in situations().items())}

## How to

- `torch.compile` is tested with `fullgraph=True` and the backend `aot_eager`; in training also with inductor for `gct`,
  `GaterNet` and `local`. Without `fullgraph=True` a compiled program calls a skipping network uncompiled.
- `torch.fx.symbolic_trace` does not trace into layers of `torch.nn`: these keep their gates, and call them. A tracer
  that reaches a gate which was not inserted (timm's `attn_layer`, your own layers) gets an error. Make `gatewise.Gate`
  a leaf of your tracer, or read the network with `torch.export`.
- `torch.fx` records a gate as one node where it traces through the gate's layer. Otherwise the layer is the node and
  calls its gate; its class in the `GraphModule` is then a subclass. Tools that fuse or quantise layers of exactly one
  class (`torch.fx.experimental.optimization.fuse`, `prepare_fx`) leave it as it is. A pass that replaces instances of
  a class gets a warning if the new layer cannot run the gate; a pass that removes a layer's node removes its gate,
  too. To fuse these layers, use `gw.optimize_for_inference`; for int8, `gw.export(..., int8=loader)`.
- Gates are checked when the network or a module that contains gated layers is called. If you replace a layer of the
  network itself, call the network once before you call only its methods or layers.
- torchinfo counts layers without children, and a layer with a gate has one. Use
  `torch.utils.flop_counter.FlopCounterMode`, or `parameter_count` and `macs_per_sample` of `gatewise.graph.measure`. No
  tool counts elementwise work, of which most gates consist.
- `torch.jit.script` compiles no gates. `torch.jit.trace` keeps them, for maps of the shape of the example.
- FSDP2 gathers parameters when `net(...)` is called. To call `net.forward_with_gates` of a GaterNet, register the
  method: `torch.distributed.fsdp.register_fsdp_forward_method(net, "forward_with_gates")`.
- torch-pruning needs `customized_pruners=gatewise.gate_pruners(net)` to prune gates without layers of their own, such
  as `gct`. It does not support `ge` without weights after a norm: call `insertion.undo()`, prune, and insert it again.
- torchao's `quantize_` changes linear layers: the classifier, and those of a gater. Convolutions do not change.
  A quantised GaterNet can be compacted and can skip filters like any other.
- `AveragedModel` keeps the buffers of the last step, such as those of a budget's controller; timm's average includes
  them.
"""


if __name__ == "__main__":
    print(page(), end="")
