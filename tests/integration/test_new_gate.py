"""Adding a gate is one file and one line: tested on a copy of the package with CONTRIBUTING.md's example."""

import json
import re
from pathlib import Path

import pytest

from support.project_copy import copy_with_example, page, run


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the page's example: one new file, and the line that makes its class public."""
    folder = tmp_path_factory.mktemp("project")
    copy_with_example(folder, "gates")
    (line,) = re.findall(r"`(from \.gates\.\w+ import \w+ as \w+)`", page())
    public = folder / "src/gatewise/__init__.pyi"
    public.write_text(f"{public.read_text()}\n{line}\n")
    return folder


def test_command_line_lists_new_gate(copy: Path) -> None:
    names = [gate["name"] for gate in json.loads(run(copy, "-m", "gatewise", "gates", "--json"))]
    assert "ls" in names


def test_documentation_describes_new_gate(copy: Path) -> None:
    printed = run(copy, "-m", "gatewise", "gates", "--markdown")
    assert "## `ls`: Layer scale" in printed
    assert "`init=1.0`" in printed


@pytest.mark.slow
def test_contract_tests_and_example_of_new_gate_run(copy: Path) -> None:
    report = run(
        copy,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        "-k",
        "ls or layer_scale",
        "-v",
        "tests/contract/test_gate_contract.py",
        "src/gatewise/gates/layer_scale.py",
    )
    assert len(re.findall(r"test_gate_contract\.py::\S*\[ls\b\S* PASSED", report)) >= 20
    assert "layer_scale.LayerScale PASSED" in report


@pytest.mark.slow
def test_benchmark_times_new_gate(copy: Path) -> None:
    run(copy, "benchmarks/gates.py", "--quick", "--out", "gates.json")
    tables = json.loads((copy / "gates.json").read_text())["tables"]
    assert all("ls" in table for table in tables.values())


@pytest.mark.slow
def test_comparison_accepts_new_gate(copy: Path) -> None:
    printed = run(
        copy,
        "-m",
        "gatewise",
        "compare",
        "--gates",
        "none,ls:init=0.5",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--out",
        "comparison",
        "--json",
    )
    assert [variant["gates"] for variant in json.loads(printed)["variants"]] == ["none", "ls:init=0.5"]


def test_class_of_new_gate_is_public(copy: Path) -> None:
    printed = run(copy, "-c", "import gatewise; print(gatewise.LayerScale(3).scale.shape, gatewise.__file__)")
    assert printed.startswith("torch.Size([1, 3, 1, 1])")
    assert str(copy) in printed


def test_new_gate_is_fast_from_its_own_file(copy: Path) -> None:
    script = """
import torch, gatewise as gw
net = gw.make_model("resnet20+ls:init=0.5").eval()
x = torch.randn(2, 3, 32, 32)
with torch.no_grad():
    y = net(x)
fast = gw.optimize_for_inference(net)
torch.testing.assert_close(fast(x), y, rtol=1e-4, atol=1e-4)
print(*fast.gates.values(), sep=",")
"""
    assert run(copy, "-c", script).strip() == ",".join(["in place"] * 9)
