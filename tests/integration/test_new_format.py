"""Adding an export format is one file: tested on a copy of the package with CONTRIBUTING.md's example."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.project_copy import copy_with_example, run_commands

FLAGS = ["--epochs", "1", "--batch-size", "256", "--workers", "0", "--precision", "fp32"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with a trained run and a picture."""
    folder = tmp_path_factory.mktemp("project")
    copy_with_example(folder, "exporting/formats")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(folder / "digit.png")
    run_commands(folder, ["train", "--data", "digits", *FLAGS, "--out", "run"])
    return folder


def test_new_format_is_exported_and_predicts_as_run(copy: Path) -> None:
    printed = run_commands(
        copy,
        ["export", "run", "--to", "graph", "--images", "32", "--out", "net.safetensors", "--json"],
        ["predict", "net.safetensors", "digit.png", "--json"],
        ["predict", "run", "digit.png", "--json"],
    )
    *results, of_file, of_run = printed.splitlines()
    found = json.loads("\n".join(line for line in results if line[:1] in '{ }"'))
    assert found["to"] == "graph"
    assert found["difference"] < 1e-5
    of_file, of_run = (json.loads(line)["classes"] for line in (of_file, of_run))
    assert of_file.keys() == of_run.keys()
    assert list(of_file.values()) == pytest.approx(list(of_run.values()), abs=1e-5)


def test_new_format_is_listed_in_help_and_errors(copy: Path) -> None:
    everywhere = (
        "graph (graph and weights, *.safetensors), onnx (ONNX, *.onnx), torch (an archive of torch.export, *.pt2)"
    )
    assert everywhere in " ".join(run_commands(copy, ["export", "--help"]).replace("│", " ").split())
    assert everywhere in run_commands(copy, ["export", "run", "--out", "net.bin"], code=2)
    assert "(*.safetensors, *.onnx)" in run_commands(copy, ["predict", "digit.png", "digit.png"], code=2)


def test_damaged_file_of_new_format_is_one_line(copy: Path) -> None:
    (copy / "bad.safetensors").write_bytes(b"no header")
    printed = run_commands(copy, ["predict", "bad.safetensors", "digit.png"], code=2)
    assert printed.startswith("gatewise: bad.safetensors is not a graph with weights (")
    assert printed.count("\n") == 1
