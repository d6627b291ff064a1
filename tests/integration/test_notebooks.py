"""The notebooks are stored with outputs, and a new run gives the same; cells that may vary keep what must hold."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.project import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
VERDICTS = {"better", "worse", "no difference shown"}
Cell = dict[str, Any]


def code_cells(notebook: str) -> list[Cell]:
    return [cell for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]


def kinds(cell: Cell) -> list[str]:
    """Return the kind of each output: the name of the stream, or the types of what is displayed."""
    return [output.get("name") or " ".join(sorted(output["data"])) for output in cell["outputs"]]


def shown(cells: list[Cell], kind: str = "text") -> str:
    """Return all outputs of a kind: "text" is what is printed, others are types of what is displayed."""
    outputs = [
        {"text": output.get("text", []), **output.get("data", {})} for cell in cells for output in cell["outputs"]
    ]
    return "\n".join("".join(output[kind]) for output in outputs if kind in output)


def tuned(cells: list[Cell]) -> None:
    """Check that the network has learned the digits before the insertion, and still has after each epoch."""
    accuracies = [float(value) for value in re.findall(r"accuracy ([01]\.\d+)", shown(cells))]
    assert len(accuracies) == 4
    assert min(accuracies) > 0.8


def compared(cells: list[Cell]) -> None:
    """Check that answer, table and lines are about the same three networks."""
    text, markdown = shown(cells), shown(cells, "text/markdown")
    assert re.findall(r"^\| (\w+) \|", markdown, flags=re.MULTILINE) == ["gates", "none", "se", "gct"]
    assert "480 training, 120 validation images, 10 classes" in text
    assert re.search(r"^- Use (none|se|gct)\b", markdown, flags=re.MULTILINE)
    verdicts = re.findall(r"verdict: (.+)", text)
    assert len(verdicts) == 2
    assert set(verdicts) <= VERDICTS


def exported(cells: list[Cell]) -> None:
    """Check that both files are right, that routes compute less, and that both batches were timed."""
    text = shown(cells)
    ((routed, dense),) = re.findall(r"([\d.]+) M of ([\d.]+) M multiply-adds", text)
    assert float(routed) < 0.75 * float(dense)
    assert text.count("logits agree within 0.001: True") == 2
    assert f"classes: {[str(digit) for digit in range(10)]}" in text
    assert len(re.findall(r"images: routes are [\d.]+ times as fast as dense", text)) == 2


PROMISES: dict[str, Callable[[list[Cell]], None]] = {
    "compare_on_your_folder": compared,
    "faster_in_onnx_runtime": exported,
    "gates_in_your_network": tuned,
}


def test_every_notebook_is_in_the_navigation() -> None:
    listed = re.findall(r"^notebooks/(\w+)$", (ROOT / "docs/index.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == [file.stem for file in NOTEBOOKS] == list(PROMISES)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_is_stored_with_outputs_of_one_run(file: Path) -> None:
    cells = code_cells(file.read_text())
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not re.search(r"/(tmp|home|work|root)/", file.read_text()), "a path of the machine that ran it"
    PROMISES[file.stem](cells)


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_new_run_gives_the_stored_outputs(file: Path) -> None:
    import nbformat

    from tools.run_notebooks import run

    stored, cells = code_cells(file.read_text()), code_cells(nbformat.writes(run(file)))
    for old, new in zip(stored, cells, strict=True):
        assert kinds(new) == kinds(old), new["source"]
        assert new["outputs"] == old["outputs"] or "varies" in old["metadata"].get("tags", []), new["source"]
    PROMISES[file.stem](cells)
