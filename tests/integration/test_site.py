"""The documentation site: a page for each gate, no public name without a docstring, no broken link."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import gatewise as gw
from gatewise.gates.registry import Gate, GateSpec
from gatewise.graph.measure import macs_per_sample, parameter_count
from support.project import ROOT

EXTENSION = ROOT / "docs/extension"


@pytest.fixture(autouse=True)
def extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXTENSION))


@pytest.fixture
def pages() -> ModuleType:
    return import_module("gate_pages")


@pytest.mark.parametrize("name", sorted(file.stem for file in EXTENSION.glob("*.py")))
def test_extension_examples_are_correct(name: str) -> None:
    assert doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.extended
@pytest.mark.parametrize(
    "name", [name if name in {"gct", "lrn"} else pytest.param(name, marks=pytest.mark.slow) for name in gw.gate_names()]
)
def test_gate_page_has_all_sections(name: str, pages: ModuleType) -> None:
    spec = gw.gate_spec(name)
    assert spec.guidance, f"say in the registration of {name} when to use it (guidance=)"
    page = pages.gate_page(spec)
    assert page.startswith(f"# `{name}`: {spec.title}\n\n{spec.guidance}\n\n{spec.paper}.")
    assert f"```text\n{name}(x) = {pages.formula(spec)}\n```" in page
    assert page.count("<svg ") == 3
    assert f"autoclass:: gatewise.{spec.gate.__name__}" in page
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["insertion"].gates


def test_page_shows_measured_times_with_their_source(pages: ModuleType) -> None:
    times = import_module("gate_times")
    page, exported = pages.gate_page(gw.gate_spec("gct")), times.results(times.EXPORTED)
    for runtime, title in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")):
        median, low, high = exported["runtimes"][runtime]["gct"]["of_none"]
        assert f"| {title} | {median:.2f} [{low:.2f}, {high:.2f}] | [exported_gates-cpu.json]" in page
    assert f"exported_gates-cpu.json): {exported['environment']['hardware']}; torch " in page
    assert "`lrn` was not timed; `python benchmarks/exported_gates.py --gates lrn`" in times.times_table("lrn")


def test_times_in_torch_are_of_the_run_of_the_other_runtimes_if_it_has_any(monkeypatch: pytest.MonkeyPatch) -> None:
    times = import_module("gate_times")
    rows = {"plain": 1.0, "ours": 1.2, "plain, optimised": 0.8, "ours, optimised": 1.0}
    table = {
        name: {"ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1} for name, ratio in rows.items()
    }
    runtimes: dict[str, Any] = {"onnxruntime": {"gct": {"of_none": [1.3, 1.2, 1.4]}}}
    files = {
        times.FUSED: {"tables": {"resnet50 with gct, infer 1": table}},
        times.EXPORTED: {"runtimes": runtimes},
    }
    monkeypatch.setattr(times, "results", files.get)
    exported = ("ONNX Runtime", [1.3, 1.2, 1.4], times.EXPORTED)
    assert times.times_of_gate("gct") == [
        ("PyTorch", pytest.approx([1.2, 1.1, 1.3]), times.FUSED),
        ("PyTorch, both optimised", pytest.approx([1.25]), times.FUSED),
        exported,
    ]
    runtimes["torch"] = {"gct": {"of_none": [1.1, 1.0, 1.2]}}
    assert times.times_of_gate("gct") == [("PyTorch", [1.1, 1.0, 1.2], times.EXPORTED), exported]
    assert times.times_of_gate("se") == []


def test_list_of_gates_links_to_each_page(pages: ModuleType) -> None:
    index = pages.index_page()
    assert all(f"[`{name}`]({name}.md)" in index and f"\n{name}\n" in index for name in gw.gate_names())


def test_costs_are_those_of_gated_network() -> None:
    costs = import_module("gate_costs")
    gated = gw.make_model("resnet50+se")
    added = costs.cost_of_gate(gw.gate_spec("se"))
    assert added.places == len(gw.gates_in(gated))
    image = torch.zeros(1, 3, 224, 224)
    assert parameter_count(gated) == costs.cost_of_network().parameters + added.parameters
    assert macs_per_sample(gated, image) == costs.cost_of_network().macs + added.macs
    assert costs.shapes_at("before_conv")[0] == image.shape, "the first convolution's input is the image"


def test_bytes_are_counted_per_operator_and_views_are_free() -> None:
    costs = import_module("gate_costs")
    x = torch.zeros(1, 4, 3, 3)  # 144 bytes
    assert costs.cost_of(nn.Flatten(), x).bytes_moved == 0
    assert costs.cost_of(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.ReLU()), x).bytes_moved == 4 * 144
    assert costs.cost_of(gw.make_gate("ge", 4), x).bytes_moved == (144 + 16) + (16 + 16) + (144 + 16 + 144)


def test_only_changed_pages_are_written(tmp_path: Path) -> None:
    fill_folder = import_module("written").fill_folder
    fill_folder(tmp_path / "gates", {"gct.md": "one", "old.md": "two"})
    file = tmp_path / "gates/gct.md"
    os.utime(file, (1, 1))
    fill_folder(tmp_path / "gates", {"gct.md": "one", "se.md": "three"})
    assert file.stat().st_mtime == 1
    assert sorted(page.name for page in file.parent.iterdir()) == ["gct.md", "se.md"]
    fill_folder(tmp_path / "gates", {"gct.md": "four"})
    assert file.read_text() == "four"


def receptive_field_of(name: str, **options: Any) -> torch.Tensor:
    """Return the output values of a gate with these options that depend on the middle input value."""
    spec = gw.gate_spec(name)

    class WithOptions(GateSpec):
        def make(self, channels: int, **given: Any) -> Gate:
            return spec.make(channels, **options, **given)

    facts = {field: getattr(spec, field) for field in ("name", "gate", "function", "title", "paper", "place")}
    return import_module("gate_figures").receptive_field(WithOptions(**facts)) > 0


def test_receptive_field_matches_formula() -> None:
    middle = (8, 7, 7)
    everywhere = torch.ones(16, 15, 15, dtype=torch.bool)
    own_channel = torch.zeros_like(everywhere)
    own_channel[8] = True
    position = torch.zeros_like(everywhere)
    position[6:11, 7, 7] = True
    assert torch.equal(receptive_field_of("se"), everywhere)
    assert torch.equal(receptive_field_of("ge"), own_channel), "gather-excite mixes no channels"
    assert torch.equal(receptive_field_of("lrn"), position), "five channels around, at one position"
    neighbours = everywhere.clone()
    neighbours[:7], neighbours[10:] = False, False
    assert torch.equal(receptive_field_of("eca", kernel_size=3), neighbours)
    assert receptive_field_of("triplet", kernel_size=3)[middle]


@pytest.fixture
def undocumented_module() -> Iterator[ModuleType]:
    module = ModuleType("documented", "What it is.")
    exec(
        """
from dataclasses import dataclass

def documented():
    'Say it.'

def undocumented(): ...

@dataclass
class Undocumented:
    number: int

class Half:
    'A class.'
    def documented(self):
        'Say it.'
    def undocumented(self): ...
    @property
    def neither(self): ...
    def _private(self): ...

def _private(): ...
""",
        vars(module),
    )
    sys.modules["documented"] = module
    yield module
    del sys.modules["documented"]


def test_missing_docstrings_are_found(undocumented_module: ModuleType) -> None:
    api = import_module("api_pages")
    assert api.undocumented(undocumented_module) == [
        "documented.undocumented",
        "documented.Undocumented",
        "documented.Half.undocumented",
        "documented.Half.neither",
    ]


def build(source: Path, out: Path, package: Path = ROOT / "src") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going", str(source), str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def copied(folder: Path) -> Path:
    """Copy the sources of the site without earlier builds."""
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    for written in ("api", "gates"):
        shutil.rmtree(folder / "docs" / written, ignore_errors=True)
    shutil.copytree(ROOT / "benchmarks/results", folder / "benchmarks/results")
    for page in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / page, folder)
    return folder / "docs"


@pytest.mark.slow
def test_public_name_without_docstring_fails_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "src/gatewise/insertion/tuning.py"
    text, removed = re.subn(r'(def train_everything.*?:\n) +""".*?"""\n', r"\1", file.read_text(), flags=re.DOTALL)
    assert removed == 1
    file.write_text(text)
    result = build(copied(tmp_path), tmp_path / "site", tmp_path / "src")
    assert result.returncode != 0
    names = "gatewise.train_everything, gatewise.insertion.tuning.train_everything"
    assert f"public names without a docstring: {names}." in result.stderr


@pytest.mark.slow
def test_site_builds_without_warning(tmp_path: Path) -> None:
    result = build(copied(tmp_path), tmp_path / "site")
    assert result.returncode == 0, result.stderr[-3000:]
    for name in gw.gate_names():
        assert (tmp_path / f"site/gates/{name}.html").exists()
    reference = (tmp_path / "site/api/gatewise.html").read_text()
    assert 'id="gatewise.insert_gates"' in reference
    commands = (tmp_path / "docs/commands.md").read_text()
    assert "\ngatewise compact --out PATH [OPTIONS] RUN\n" in commands
    explain = (tmp_path / "site/explain.html").read_text()
    assert 'href="pages/gct-resnet18.html"' in explain
    assert (tmp_path / "site/pages/gct-resnet18.html").exists()


@pytest.mark.slow
def test_broken_link_fails_build(tmp_path: Path) -> None:
    page = copied(tmp_path) / "quick-start.md"
    page.write_text(page.read_text() + "\n[nowhere](guides/insert.md#no-such-part)\n")
    result = build(tmp_path / "docs", tmp_path / "site")
    assert result.returncode != 0
    assert "no-such-part" in result.stderr
