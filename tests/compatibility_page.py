"""The page on what works together with the tools of others.

python tests/compatibility_page.py > docs/compatibility.md
"""

import inspect
import string
from importlib.metadata import version

from compatibility import EXCEPTIONS, TOOLS, Refusal, Tool
from compatible_networks import KINDS

VERSIONS = ", ".join(
    f"{name} {version(name).partition('+')[0]}" for name in ("torch", "timm", "torch-pruning", "torchao")
)


def footnotes() -> dict[str, str]:
    """Return what stands below the table, with the letter that stands in it, in the order of the table."""
    texts = (text_of(tool, kind) for tool in TOOLS for kind in KINDS)
    return dict(zip(dict.fromkeys(text for text in texts if text), string.ascii_lowercase, strict=False))


def text_of(tool: Tool, kind: str) -> str:
    """Return what is to be said of one cell, '' for a plain success."""
    found = EXCEPTIONS.get((tool.check, kind), "")
    if isinstance(found, Refusal):
        return f"refused, `{found.error}`: “{found.message.replace('*', '…')}”"
    return found


def row(tool: Tool, letters: dict[str, str]) -> str:
    """Return the tool's line of the table."""
    texts = [text_of(tool, kind) for kind in KINDS]
    return f"| {tool.name} | {' | '.join(letters[text] if text else 'yes' for text in texts)} |"


def proven(tool: Tool) -> str:
    """Return the tool's line of the list of what is proven."""
    return f"- {tool.name}: {' '.join((inspect.getdoc(tool.check) or '').split())}"


def page() -> str:
    """Return the page."""
    letters = footnotes()
    return f"""# Compatibility

What works together with the tools of others. Each gate is in a small residual network at its paper's place;
`GaterNet` has a light gater and a budget, `local` lets each layer decide, `compacted` is what `gatewise.compact` makes
of a `GaterNet`, `skipping` what `skip_closed_filters` makes. `tests/test_compatibility.py` tries every cell, on the
CPU; test and page come from one list, `tests/compatibility.py`. Written by `make docs` with {VERSIONS}.

| | {" | ".join(KINDS)} |
| --- | {" | ".join("---" for _ in KINDS)} |
{chr(10).join(row(tool, letters) for tool in TOOLS)}

The letters (… stands for names and numbers):

{chr(10).join(f"- {letter}: {text}" for text, letter in letters.items())}

What "yes" means:

{chr(10).join(proven(tool) for tool in TOOLS)}

Unless it says otherwise, results must agree within 1e-8 in float64.

## How to

- `torch.compile` is tried with `fullgraph=True` and the backend `aot_eager`; in training, with inductor too for `gct`,
  `GaterNet` and `local`. Without `fullgraph=True` a skipping net runs inside a compiled program as it is.
- A gate that is called by a layer of `torch.nn` is invisible to `torch.fx.symbolic_trace`, which keeps such layers
  whole, with their gates. Where the tracer reaches a gate itself (timm's `attn_layer`, layers of your own) it is
  refused; make `gatewise.Gate` a leaf of your tracer, or read the network with `torch.export`.
- FSDP2 gathers parameters when `net(...)` is called. To call `net.forward_with_gates` of a GaterNet, tell it:
  `torch.distributed.fsdp.register_fsdp_forward_method(net, "forward_with_gates")`.
- torch-pruning wants `customized_pruners=gatewise.gate_pruners(net)` to cut gates without layers of their own, such as
  `gct`. `ge` without weights, behind a norm, is not followed: `insertion.undo()`, prune, and insert it again.
- torchao's `quantize_` changes linear layers: the classifier, and a gater's decisions. Convolutions stay as they are. A
  quantised GaterNet is compacted and skipped like any.
- A moving average by `AveragedModel` keeps the buffers of the last step, such as a budget's controller; timm's averages
  them too.
"""


if __name__ == "__main__":
    print(page(), end="")
