"""Pages of the gates, written from the registry before each build: formula, figures, cost, when to use it."""

import inspect
from pathlib import Path
from typing import Any

from gate_costs import MODEL, SIDE, Cost, cost_of_gate, cost_of_network
from gate_figures import drawings
from written import fill_folder

from gatewise.analysis.drawing import Drawing
from gatewise.analysis.table import Cell, Table
from gatewise.registry import GateSpec, gate_names, gate_spec
from gatewise.spec import GateChoice

FOLDER = "gates"

_PAGE = """# `{name}`: {title}

{use}

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
(`{place}`) in timm's {model}. The least is every map read once and written once; what moves today is what PyTorch's
operators read and write one after the other. What that takes in time is [measured](../results.md#what-a-gate-costs).

## Put it into a network

```python
import gatewise as gw

net = gw.make_model("resnet20")
insertion = gw.insert_gates(net, "{name}")
```

{identity} Forms beside the default: {variants}. [How to choose the place, check, undo](../guides/insert.md).

## Reference

```{{eval-rst}}
.. autoclass:: gatewise.{gate}

.. autofunction:: gatewise.{module}.{function}
```
"""

_INDEX = """# Gates

{table}

Everything is added to timm's {model} ({parameters} parameters, {macs} multiply-adds, {moved} MB moved) by one such
gate at each place of its paper, for one image of {side}x{side}. Bytes tell more than multiply-adds about the time that
a gate takes; times are in the [results](../results.md#what-a-gate-costs). A gate whose fresh form is the identity can
be put into a trained network without losing anything.

[GaterNet](../guides/gaternet.md) is no gate at a place but a network around a network. Formulas, options and
differences to the papers are also [on one page](../gates.md).

```{{toctree}}
:hidden:

{names}
All gates on one page <../gates>
```
"""


def gate_page(spec: GateSpec) -> str:
    """Return the page of one gate as Markdown."""
    cost, fresh = cost_of_gate(spec), spec.make(64)
    adds = "what it adds to a channel, in units of the map's size," if fresh.adds else "the factor of one channel"
    return _PAGE.format(
        name=spec.name,
        title=spec.title,
        use=spec.use or "When to use it is not told.",
        paper=spec.paper,
        place=spec.place,
        formula=formula(spec),
        figures=_html(list(drawings(spec))),
        reading=_READING.format(adds=adds),
        cost=cost_table(cost).markdown(),
        side=SIDE,
        model=MODEL,
        places=cost.places,
        identity="A fresh gate changes no output." if fresh.identity_at_init else "A fresh gate changes the output.",
        variants=", ".join(f"`{GateChoice(spec.name, options)}`" for options in spec.variants.values()),
        gate=spec.gate.__name__,
        module=spec.gate.__module__.removeprefix("gatewise."),
        function=spec.function.__name__,
    )


_READING = """*Answer*: {adds} as that channel grows and the others do not, for five random settings of the parameters
(one curve where there are none); the dotted line is doing nothing. *Reach*: how much each value of the output changes
when one value of the input does, the one that is marked, in the mean over sixteen random settings; what is blank does
not see it. Drawn from the gate itself, in a map of 16 channels, 15 rows and 15 columns."""


def formula(spec: GateSpec) -> str:
    """Return what the gate's function says that it returns.

    >>> formula(gate_spec("se"))
    'x * sigmoid(expand(relu(reduce(mean of x over positions))))'
    """
    first = inspect.cleandoc(spec.function.__doc__ or "").partition("\n\n")[0]
    return " ".join(first.split()).removeprefix("Return ").removesuffix(".").replace("`", "")


def cost_table(cost: Cost) -> Table:
    """Return what one kind of gate adds, in numbers and as shares of the network."""
    plain = cost_of_network()
    rows = [
        ("parameters", f"{cost.parameters:,}", share(cost.parameters, plain.parameters)),
        ("multiply-adds", f"{cost.macs:,}", share(cost.macs, plain.macs)),
        ("bytes moved today", megabytes(cost.bytes_moved), share(cost.bytes_moved, plain.bytes_moved)),
        ("bytes moved at least", megabytes(cost.bytes_least), share(cost.bytes_least, plain.bytes_moved)),
    ]
    columns = ["", "added", f"of the plain {MODEL}"]
    return Table(columns, [[Cell(text) for text in row] for row in rows])


def megabytes(count: int) -> str:
    """Return bytes as people read them."""
    return f"{count / 1e6:,.1f} MB"


def share(part: int, whole: int) -> str:
    """Return a share in percent, with as many digits as it needs to be seen.

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
    columns = ["gate", "what", "place", "identity when fresh", "parameters", "multiply-adds", "bytes moved"]
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
    """Return figures beside each other as HTML, in the page's colours."""
    inside = "\n".join(figure.inline_svg() for figure in figures)
    return f'```{{raw}} html\n<div class="drawings">\n{inside}\n</div>\n```'


def pages() -> dict[str, str]:
    """Return every page by its name."""
    each = {f"{name}.md": gate_page(gate_spec(name)) for name in gate_names()}
    return {**each, "index.md": index_page()}


def write(app: Any) -> None:
    """Write the pages."""
    fill_folder(Path(app.srcdir) / FOLDER, pages())


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx write the pages before it reads its sources."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
