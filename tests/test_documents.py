"""The README, the examples and the generated pages say what is true."""

import re
from pathlib import Path

import pytest
import timm
import torch
from foreign import GctResNet50, MmcvContext
from test_training import DATASET, RECIPE

import gatewise as gw
from gatewise.cli import app
from gatewise.presets import PRESETS
from gatewise.training import train

ROOT = Path(__file__).parent.parent


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(RECIPE, "plain", dataset=DATASET)
    torch.save(GctResNet50().state_dict(), "GCT_ResNet50.pth.tar")
    code = "\n".join(blocks("README.md", "python")).replace("pretrained=True", "pretrained=False")
    names: dict = {"torch": torch}
    lines = code.splitlines()
    exec("\n".join(line for line in lines if "insert_gates(model, " not in line or "insertion =" in line), names)
    assert len(names["insertion"].gates) == 53
    for line in (line for line in lines if line.startswith("gw.insert_gates(model, ")):
        names["model"] = gw.make_model("resnet18")
        exec(line, names)
        assert gw.gates_in(names["model"]), line


def test_the_page_on_weights_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(GctResNet50().state_dict(), "GCT_ResNet50.pth.tar")
    detector = timm.create_model("resnet50")
    for stage in (detector.layer2, detector.layer3, detector.layer4):
        for unit in stage:
            unit.add_module("context_block", MmcvContext(unit.bn3.num_features, 1 / 16))
    weights = {f"backbone.{name}": tensor for name, tensor in detector.state_dict().items()}
    torch.save({"state_dict": weights}, "mask_rcnn_r50_fpn_r16_gcb_c3-c5_1x_coco.pth")
    names: dict = {}
    exec("\n".join(blocks("docs/weights.md", "python")), names)
    assert set(names["theirs"]) == set(GctResNet50().state_dict())
    assert names["loaded"].left_out == ("fc.weight", "fc.bias")


def test_the_page_on_explain_s_python_runs() -> None:
    names: dict = {}
    exec("\n".join(blocks("docs/explain.md", "python")), names)
    assert names["summary"].near_identity == 1, "a fresh gct does nothing"


def test_the_page_on_timm_s_python_runs() -> None:
    names: dict = {}
    exec("\n".join(blocks("docs/timm.md", "python")), names)
    assert names["optimizer"].param_groups[1]["weight_decay"] == 0
    assert len(gw.gates_in(names["net"])) == 16, "those of an EfficientNet"
    listed = re.findall(
        r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+)\|", text_of("docs/timm.md"), flags=re.MULTILINE))
    )
    assert sorted(name for name in listed if "_resnet" in name) == sorted(PRESETS)


@pytest.mark.parametrize("page", ["README.md", "docs/execution.md", "docs/export.md"])
def test_a_page_s_commands_parse(page: str) -> None:
    commands = [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("gatewise")]
    assert len(commands) >= 3
    for command in commands:
        _, bound, _ = app.parse_args(command.split()[1:], print_error=False, exit_on_error=False)
        assert bound is not None


def test_the_readme_names_every_gate() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == list(gw.gate_names())


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/design.md",
        "docs/execution.md",
        "docs/export.md",
        "docs/explain.md",
        "docs/results.md",
        "docs/timm.md",
        "docs/weights.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text())
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not missing


def test_the_design_names_every_module_of_the_package() -> None:
    design = (ROOT / "docs/design.md").read_text()
    top = [
        path for path in (ROOT / "src/gatewise").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    missing = [path.name for path in top if not re.search(rf"\b{re.escape(path.name)}", design)]
    assert not missing
