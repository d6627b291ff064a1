"""Adding a place is one file: tested on a copy of the package with CONTRIBUTING.md's example."""

import json
import re
from pathlib import Path

import pytest

from support.project_copy import copy_with_example, run


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the page's example, one new file."""
    folder = tmp_path_factory.mktemp("project")
    copy_with_example(folder, "graph/places")
    return folder


def test_new_place_is_found_and_accepts_gates_by_argument_and_text(copy: Path) -> None:
    script = """
import json, gatewise as gw
from gatewise.graph import place_names
net = gw.make_model("resnet20")
by_argument = gw.insert_gates(net, "gct", place="after_norm")
by_text = gw.gates_in(gw.make_model("resnet20+gct@after_norm"))
print(json.dumps([place_names(), by_argument.names, sorted(by_argument.gates) == sorted(by_text)]))
"""
    names, layers, equal = json.loads(run(copy, "-c", script))
    assert "after_norm" in names
    assert len(layers) == 21
    assert layers[:3] == ["bn1", "stages.0.0.bn1", "stages.0.0.bn2"]
    assert equal


def test_gater_gates_filters_at_new_place(copy: Path) -> None:
    script = """
import torch, gatewise as gw
net = gw.GaterNet(gw.make_model("resnet20"), sites="norm").eval()
x = torch.randn(3, 3, 32, 32)
fast = gw.skip_closed_filters(net, mode="skip")
torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-4)
print(len(net.sites), len(gw.make_model("resnet20+gaternet:sites=norm").sites), len(fast.skipped))
"""
    assert run(copy, "-c", script).split() == ["21", "21", "0"]


def test_documentation_describes_new_place(copy: Path) -> None:
    printed = run(copy, "-m", "gatewise", "gates", "--markdown")
    assert "| `after_norm` | the output of every batch norm after a convolution | `sites=norm` |" in printed


def test_misspelt_new_place_is_suggested(copy: Path) -> None:
    script = """
import gatewise as gw
try:
    gw.GateChoice.parse("gct@after_nrm")
except ValueError as error:
    print(error)
"""
    assert "Did you mean 'after_norm'?" in run(copy, "-c", script)


@pytest.mark.slow
def test_training_takes_gate_at_new_place(copy: Path) -> None:
    options = ["--data", "digits", "--model", "resnet20", "--gate", "gct@after_norm", "--epochs", "1", "--out", "run"]
    run(copy, "-m", "gatewise", "train", *options)
    (gate,) = json.loads((copy / "run/config.json").read_text())["spec"]["gates"]
    assert (gate["gate"], gate["place"]) == ("gct", "after_norm")


@pytest.mark.slow
def test_tests_of_all_places_run_on_new_place(copy: Path) -> None:
    report = run(
        copy, "-m", "pytest", "-p", "no:cacheprovider", "-k", "after_norm", "-v", "tests/unit/graph/test_places.py"
    )
    assert len(re.findall(r"test_places\.py::\S*after_norm\S* PASSED", report)) >= 5
