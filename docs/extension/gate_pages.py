"""Write a page for each registered gate before each build: formula, figures, cost, and when to use it."""

import inspect
from pathlib import Path
from typing import Any

from gate_costs import MODEL, SIDE, Cost, cost_of_gate, cost_of_network
from gate_figures import drawings
from gate_times import times_table
from written import fill_folder

from gatewise.analysis.drawing import Drawing
from gatewise.analysis.table import Cell, Table
from gatewise.gates.registry import GateSpec, gate_names, gate_spec
from gatewise.gates.spec import GateChoice

FOLDER = "gates"

_PAGE = """# `{name}`: {title}

{guidance}

{paper}.

## Formula

```text
{name}(x) = {formula}
```

The arguments are those of {{py:func}}`gatewise.{module}.{function}`.

## What it does

{figures}

{reading}

## What it costs

{cost}

Counted for one image of {side}x{side} in float32, with the default options, at the {places} places of its paper
(`{place}`) in timm's {model}. The minimum is that every map is read once and written once. The current value is
what PyTorch's operators read and write one after another.

### Time

{times}

Of one image in a ResNet-50 with the gate in the same places, relative to the network without gates in the same
runtime: median [quartiles]. In PyTorch the gate runs with its kernel, if it has one; "both optimised" is after
{{py:func}}`gatewise.optimize_for_inference`, with and without gates. More in the
[results](../results/deployment.md#gates-in-exported-networks). For a network of yours, `gatewise bench RUN` and
`gatewise bench RUN --runtimes torch,onnxruntime` measure it.

## Insert it into a network

```python
import gatewise as gw

net = gw.make_model("resnet20")
insertion = gw.insert_gates(net, "{name}")
```

{identity} Other variants: {variants}. [Insert](../guides/insert.md) shows how to choose the place, check and undo.

## Reference

```{{eval-rst}}
.. autoclass:: gatewise.{gate}

.. autofunction:: gatewise.{module}.{function}
```
"""

_INDEX = """# Gates

{table}

A *gate* is a small module that rescales the channels of a feature map or adds context to them. A *place* is a position
in a network. The table has the cost that one gate at each place of its paper adds to timm's {model} ({parameters}
parameters, {macs} multiply-adds, {moved} MB moved), for one image of {side}x{side}. Bytes predict the time of a gate
better than multiply-adds; times are in the [results](../results/cost.md#what-a-gate-costs). A gate that is the identity
at initialisation can be inserted into a trained network without changing its output.

[GaterNet](../guides/gaternet.md) is a network around a backbone, not a gate at a place. Formulas, options and
differences from the papers are also [on one page](../gates.md).

```{{toctree}}
:hidden:

{names}
All gates on one page <../gates>
```
"""


def gate_page(spec: GateSpec) -> str:
    """Return the page of one gate as Markdown."""
    cost, fresh = cost_of_gate(spec), spec.make(64)
    response = (
        "the value added to one channel, divided by the size of the map,"
        if fresh.is_additive
        else "the factor of one channel"
    )
    return _PAGE.format(
        name=spec.name,
        title=spec.title,
        guidance=spec.guidance or "There is no recommendation for this gate.",
        paper=spec.paper,
        place=spec.place,
        formula=formula(spec),
        figures=_html(list(drawings(spec))),
        reading=_READING.format(response=response),
        cost=cost_table(cost).markdown(),
        times=times_table(spec.name),
        side=SIDE,
        model=MODEL,
        places=cost.places,
        identity="A new gate does not change the output."
        if fresh.identity_at_init
        else "A new gate changes the output.",
        variants=", ".join(f"`{GateChoice(spec.name, options)}`" for options in spec.variants.values()),
        gate=spec.gate.__name__,
        module=spec.gate.__module__.removeprefix("gatewise."),
        function=spec.function.__name__,
    )


_READING = """*Response*: {response} while this channel grows and the others stay constant, for five random settings
of the parameters (one curve for a gate without parameters). The dotted line is the identity. *Receptive field*:
change of each output value with one input value, the marked one, averaged over sixteen random settings. Blank output
values do not depend on it. The figures are computed with the gate itself, on a map of 16 channels, 15 rows and 15
columns."""


def formula(spec: GateSpec) -> str:
    """Return the formula from the docstring of the gate's function.

    >>> formula(gate_spec("se"))
    'x * sigmoid(expand(relu(reduce(mean of x over positions))))'
    """
    first = inspect.cleandoc(spec.function.__doc__ or "").partition("\n\n")[0]
    return " ".join(first.split()).removeprefix("Return ").removesuffix(".").replace("`", "")


def cost_table(cost: Cost) -> Table:
    """Return the added cost of a gate, as numbers and as shares of the network."""
    plain = cost_of_network()
    rows = [
        ("parameters", f"{cost.parameters:,}", share(cost.parameters, plain.parameters)),
        ("multiply-adds", f"{cost.macs:,}", share(cost.macs, plain.macs)),
        ("bytes moved", megabytes(cost.bytes_moved), share(cost.bytes_moved, plain.bytes_moved)),
        ("minimum of bytes moved", megabytes(cost.bytes_least), share(cost.bytes_least, plain.bytes_moved)),
    ]
    columns = ["", "added", f"of the plain {MODEL}"]
    return Table(columns, [[Cell(text) for text in row] for row in rows])


def megabytes(count: int) -> str:
    """Format bytes in MB."""
    return f"{count / 1e6:,.1f} MB"


def share(part: int, whole: int) -> str:
    """Format a share in percent with two significant digits.

    >>> share(1, 3), share(1, 30_000), share(0, 3)
    ('33 %', '0.0033 %', '0 %')
    """
    return f"{100 * part / whole:.2g} %" if part < whole else f"{100 * part / whole:.0f} %"


def index_page() -> str:
    """Return the page that lists the gates."""
    plain, rows = cost_of_network(), []
    for name in gate_names():
        spec, cost = gate_spec(name), cost_of_gate(gate_spec(name))
        fresh = "yes" if spec.make(64).identity_at_init else "no"
        numbers = (
            f"{cost.parameters:,}",
            share(cost.macs, plain.macs),
            share(cost.bytes_moved, plain.bytes_moved),
        )
        rows.append([Cell(text) for text in (f"[`{name}`]({name}.md)", spec.title, spec.place, fresh, *numbers)])
    columns = ["gate", "name", "place", "identity at initialisation", "parameters", "multiply-adds", "bytes moved"]
    return _INDEX.format(
        table=Table(columns, rows).markdown(),
        names="\n".join(gate_names()),
        model=MODEL,
        side=SIDE,
        parameters=f"{plain.parameters:,}",
        macs=f"{plain.macs:,}",
        moved=f"{plain.bytes_moved / 1e6:,.0f}",
    )


def _html(figures: list[Drawing]) -> str:
    """Return the figures side by side as HTML, in the page's colours."""
    inside = "\n".join(figure.inline_svg() for figure in figures)
    return f'```{{raw}} html\n<div class="drawings">\n{inside}\n</div>\n```'


def pages() -> dict[str, str]:
    """Return all pages, file name to text."""
    each = {f"{name}.md": gate_page(gate_spec(name)) for name in gate_names()}
    return {**each, "index.md": index_page()}


def write(app: Any) -> None:
    """Write the pages."""
    fill_folder(Path(app.srcdir) / FOLDER, pages())


def setup(app: Any) -> dict[str, bool]:
    """Write the pages before Sphinx reads its sources."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
