"""Write the Python reference, with every public name. A public name without a docstring stops the build."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.errors import ExtensionError
from written import fill_folder

from gatewise.gates.registry import gate_names, gate_spec

FOLDER = "api"


def public_names(module: ModuleType) -> list[str]:
    """Return the public classes and functions of a module, including those that a package re-exports.

    >>> import gatewise.analysis
    >>> public_names(gatewise.analysis)
    ['GateRecorder', 'GateStats']
    """
    if listed := getattr(module, "__all__", None):
        return [name for name in listed if not inspect.ismodule(getattr(module, name))]
    is_package = hasattr(module, "__path__")
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and (value.__module__ == module.__name__ or (is_package and value.__module__.startswith(module.__name__)))
    ]


def offered(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the public names of a module and their values."""
    for name in public_names(module):
        yield name, getattr(module, name)


def each_once(modules: list[ModuleType]) -> dict[ModuleType, dict[str, Any]]:
    """Return the public names of each module that no earlier module has."""
    seen: set[int] = set()
    chosen: dict[ModuleType, dict[str, Any]] = {}
    for module in modules:
        chosen[module] = {name: value for name, value in offered(module) if id(value) not in seen}
        seen |= {id(value) for value in chosen[module].values()}
    return chosen


def undocumented(module: ModuleType) -> list[str]:
    """Return the public names, and members of public classes, that have no docstring.

    >>> import gatewise
    >>> undocumented(gatewise)
    []
    """
    missing = [] if (module.__doc__ or "").strip() else [module.__name__]
    for name, value in offered(module):
        path = f"{module.__name__}.{name}"
        if not _own_docstring(value):
            missing.append(path)
        if inspect.isclass(value):
            missing += [f"{path}.{member}" for member in _members(value) if not _is_documented(value, member)]
    return missing


def _own_docstring(value: Any) -> bool:
    """Whether the object has a written docstring; that of a dataclass may be its generated signature."""
    text = (value.__doc__ or "").strip()
    return bool(text) and not text.startswith(f"{value.__name__}(")


def _members(value: type) -> list[str]:
    own = vars(value).items()
    return [n for n, m in own if not n.startswith("_") and (inspect.isroutine(m) or isinstance(m, property))]


def _is_documented(value: type, member: str) -> bool:
    """Whether the member has a docstring, its own or an inherited one."""
    return bool((inspect.getdoc(getattr(value, member)) or "").strip())


def check_documented(modules: list[ModuleType]) -> None:
    """Raise an `ExtensionError` if a public name has no docstring."""
    if missing := [path for module in modules for path in undocumented(module)]:
        raise ExtensionError(f"public names without a docstring: {', '.join(missing)}. Write one for each.")


def page(module: ModuleType, names: dict[str, Any]) -> str:
    """Return the page of a module as Markdown."""
    gates = {gate_spec(name).gate for name in gate_names()}
    lines = [f"# `{module.__name__}`", "", inspect.cleandoc(module.__doc__ or ""), ""]
    for name, value in names.items():
        if value in gates:
            continue  # each gate has its own page
        lines += ["```{eval-rst}", *_directive(f"{module.__name__}.{name}", value), "```", ""]
    return "\n".join(lines)


def _directive(path: str, value: Any) -> list[str]:
    if not inspect.isclass(value):
        return [f".. autofunction:: {path}"]
    return [f".. autoclass:: {path}", "   :members:", "   :exclude-members: forward"]


def index_page(chosen: dict[ModuleType, dict[str, Any]]) -> str:
    """Return the index page: all names with the first sentence of their docstrings."""
    lines = [
        "# Python reference",
        "",
        "The classes of the gates are on the pages of the [gates](../gates/index.md).",
        "",
    ]
    for module, names in chosen.items():
        lines += [f"## `{module.__name__}`", "", "| name | description |", "| --- | --- |"]
        for name, value in names.items():
            lines.append(f"| {{py:obj}}`{name} <{module.__name__}.{name}>` | {_first_sentence(value)} |")
        lines.append("")
    return "\n".join([*lines, "```{toctree}", ":hidden:", "", *(module.__name__ for module in chosen), "```", ""])


def _first_sentence(value: Any) -> str:
    paragraph = inspect.cleandoc(value.__doc__ or "").partition("\n\n")[0]
    sentence = re.split(r"(?<=[.:;]) ", " ".join(paragraph.split()))[0].rstrip(":;")
    return sentence.replace("|", r"\|")


def as_restructured_text(lines: list[str]) -> list[str]:
    r"""Escape reStructuredText markup in a docstring, except in examples and `code`.

    >>> as_restructured_text(["x * |y|_p of `a|b`", "", ">>> 2 ** 3"])
    ['x \\* \\|y\\|\\_p of `a|b`', '', '>>> 2 ** 3']
    """
    blocks = re.split(r"(\n\n)", "\n".join(lines))
    return "".join(b if b.lstrip().startswith(">>>") else _escaped(b) for b in blocks).split("\n")


def _escaped(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([|*]|(?<=\|)_|_(?!\w))", r"\\\1", p) for p in parts)


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:  # noqa: ARG001
    lines[:] = as_restructured_text(lines)


def write(app: Any) -> None:
    """Check that all public names have docstrings, then write the pages."""
    modules = [importlib.import_module(name) for name in app.config.documented_modules]
    check_documented(modules)
    chosen = each_once(modules)
    texts = {f"{module.__name__}.md": page(module, names) for module, names in chosen.items()}
    fill_folder(Path(app.srcdir) / FOLDER, {**texts, "index.md": index_page(chosen)})


def setup(app: Any) -> dict[str, bool]:
    """Write the pages before Sphinx reads its sources, and escape docstrings before napoleon reads them."""
    app.add_config_value("documented_modules", [], "env", types=[list])
    app.connect("builder-inited", write, priority=400)  # before the pages that take longer
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True}
