"""Every example runs, is short, uses public names and prints the expected output."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gatewise as gw
from gatewise.exporting.prediction import predict
from support.project import ROOT

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str) -> str:
    """Return what an example prints; a warning is an error, except those of another trainer."""
    command = [sys.executable, "-W", "ignore" if name in NEEDS else "error", EXAMPLES / name, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def number(printed: str, label: str) -> float:
    """Return the first number after a label."""
    found = re.search(rf"^{re.escape(label)}:\s+([-+.\de]+)", printed, flags=re.MULTILINE)
    assert found, f"{label!r} is not in {printed}"
    return float(found[1])


def tunes(printed: str) -> None:
    """Check that inserting gates kept the output."""
    assert number(printed, "trained") == number(printed, "21 gates inserted")
    assert 0 <= number(printed, "gates tuned") <= 1
    assert 0 <= number(printed, "everything tuned") <= 1


def compares(printed: str) -> None:
    """Check for a line for each gate and an existing report."""
    lines = re.findall(r"^(\w+) +accuracy (0\.\d+), +[\d.]+ ms an image: (.+)$", printed, flags=re.MULTILINE)
    assert [gate for gate, _, _ in lines] == ["none", "se"]
    assert lines[0][2] == "baseline"
    assert "Gates compared on digits" in Path(printed.split("report: ")[1].strip()).read_text()


def explains(printed: str) -> None:
    """Check for a share for each of 21 gates, their mean, and an existing page."""
    shares = [float(share) for share in re.findall(r"^\S+\.gct +([\d.]+)% near", printed, flags=re.MULTILINE)]
    assert len(shares) == 21
    mean = re.search(r"^mean of 21 gates: ([\d.]+)% near the identity$", printed, flags=re.MULTILINE)
    assert mean
    assert float(mean[1]) == pytest.approx(sum(shares) / 21, abs=0.1)
    assert "What the gates learned" in Path(printed.split("page: ")[1].strip()).read_text()


def skips(printed: str) -> None:
    """Check for fewer filters and the same logits."""
    assert 0 < number(printed, "open") < 1
    assert re.search(
        r"^compaction: +\d+ gates always open, \d+ always closed, \d+ still decided", printed, re.MULTILINE
    )
    differences = re.findall(r"^(\w+): +logits differ by (\S+) of the largest$", printed, flags=re.MULTILINE)
    assert [name for name, _ in differences] == ["compacted", "skipping"]
    assert all(float(difference) < 1e-4 for _, difference in differences)


def predicts(printed: str) -> None:
    """Check that without torch the file predicts the same classes as the network."""
    assert printed.endswith("torch was loaded: False\n")
    printed_classes = re.findall(r"^(\S+\.png): (\d)$", printed, flags=re.MULTILINE)
    assert len(printed_classes) == 4
    run_folder = Path(printed_classes[0][0]).parent / "run"
    expected = [
        max(row["classes"], key=row["classes"].get)
        for row in predict(run_folder, [file for file, _ in printed_classes])
    ]
    assert [digit for _, digit in printed_classes] == expected


def tunes_elsewhere(printed: str) -> None:
    """Check for the accuracies of a training by another trainer, and what it logged of the gates."""
    assert 0 < number(printed, "trained") <= 1
    assert 0 < number(printed, "everything tuned") <= 1
    shares = re.search(r"^mean of 21 gates: ([\d.]+)% near the identity$", printed, flags=re.MULTILINE)
    assert shares
    assert 0 < float(shares[1]) <= 100


# Examples that need a package of the group `trainers`.
NEEDS = {"tune_gates_with_lightning.py": "lightning", "tune_gates_with_hugging_face.py": "transformers"}

PROMISES: dict[str, Callable[[str], None]] = {
    "tune_gates_in_your_loop.py": tunes,
    "compare_gates_on_your_folder.py": compares,
    "explain_what_gates_learned.py": explains,
    "skip_filters_within_a_budget.py": skips,
    "predict_with_onnx_alone.py": predicts,
    "tune_gates_with_lightning.py": tunes_elsewhere,
    "tune_gates_with_hugging_face.py": tunes_elsewhere,
}


def test_every_example_is_listed() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(PROMISES)


@pytest.mark.parametrize("name", PROMISES)
def test_example_is_short_and_uses_public_names(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) < 80
    assert f"examples/{name}" in text.split('"""')[1], "the top says how it is run"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gatewise"):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            assert not any(part.startswith("_") for part in names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gw":
            assert hasattr(gw, node.attr)
            assert not node.attr.startswith("_")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISES)
def test_example_prints_expected_output(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where it writes
    PROMISES[name](run(name, "--smoke"))


@pytest.mark.slow
def test_tuned_network_of_full_example_is_accurate() -> None:
    printed = run("tune_gates_in_your_loop.py")
    tunes(printed)
    assert number(printed, "everything tuned") > 0.9
