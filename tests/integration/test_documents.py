"""The README, the pages and the generated pages are correct."""

import dataclasses
import doctest
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyclopts
import pytest
import timm
import torch
import torchvision

import gatewise as gw
from gatewise.cli import app
from gatewise.cli.recipe_flags import given_flags
from gatewise.exporting import export_run
from gatewise.gates.spec import parse_gates_list
from gatewise.integrations.timm import PRESETS
from gatewise.training import Recipe, train
from support.foreign import GctResNet50, MmcvContext
from support.project import ROOT
from support.small_runs import DATASET, RECIPE
from support.trained_elsewhere import EXAMPLES, loader

# Not in the repository, so a link to them would be broken where pages are read as files.
WRITTEN_BY_THE_SITE = [ROOT / "docs" / name for name in ("api", "gates", "commands.md")]


def pages() -> list[str]:
    """Return the Markdown pages and notebooks without result tables and files written by the site build."""
    folders = (ROOT, *(ROOT / "docs" / name for name in ("", "guides", "results")))
    found = [page for folder in folders for page in folder.glob("*.md")] + [*(ROOT / "docs/notebooks").glob("*.ipynb")]
    return sorted(str(page.relative_to(ROOT)) for page in found if page not in WRITTEN_BY_THE_SITE)


def text_of(page: str | Path) -> str:
    """Return the Markdown of a page; of a notebook, its text without cells of code."""
    text = (ROOT / page).read_text()
    if Path(page).suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def run_blocks(page: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a page's Python in order in one namespace, check what its `>>>` lines print, and return the namespace."""
    for number, block in enumerate(blocks(page, "python")):
        if not block.startswith(">>>"):
            exec(block.replace("pretrained=True", "pretrained=False"), names)
            continue
        example = doctest.DocTestParser().get_doctest(block, names, f"{page}, block {number}", page, 0)
        report = io.StringIO()
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.write, clear_globs=False)
        assert not report.getvalue(), report.getvalue()
        names.update(example.globs)
    return names


def their_gct_file() -> None:
    torch.save(GctResNet50().state_dict(), "GCT_ResNet50.pth.tar")


def prepared_weights() -> dict[str, Any]:
    their_gct_file()
    detector = timm.create_model("resnet50")
    for stage in (detector.layer2, detector.layer3, detector.layer4):
        for unit in stage:
            unit.add_module("context_block", MmcvContext(unit.bn3.num_features, 1 / 16))
    weights = {f"backbone.{name}": tensor for name, tensor in detector.state_dict().items()}
    torch.save({"state_dict": weights}, "mask_rcnn_r50_fpn_r16_gcb_c3-c5_1x_coco.pth")
    own = gw.make_model("resnet50_v1+gct").state_dict()
    copies = {f"{prefix}{name}": tensor for prefix in ("model.", "ema_model.") for name, tensor in own.items()}
    torch.save({"state_dict": copies}, "last.ckpt")
    return {}


def prepared_gates() -> dict[str, Any]:
    return {"torch": torch, "GaterNet": gw.GaterNet} | {
        gw.gate_spec(name).gate.__name__: gw.gate_spec(name).gate for name in gw.gate_names()
    }


def prepared_networks() -> dict[str, Any]:
    detector = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    return {"gw": gw, "detector": detector}


def prepared_execution() -> dict[str, Any]:
    images = torch.randn(2, 3, 32, 32)
    net = gw.GaterNet(gw.make_model("resnet20"), image_size=(32, 32)).eval()
    return {"net": net, "loader": [images], "images": images}


def prepared_sharing() -> dict[str, Any]:
    train(dataclasses.replace(RECIPE, gate="gaternet", epochs=1), "runs/gater", dataset=DATASET)
    return {"torch": torch}


def prepared_export() -> dict[str, Any]:
    train(dataclasses.replace(RECIPE, data="digits", epochs=1), "run")
    export_run("run", "gater.pt2", to="torch", images=2)
    return {}


def prepared_comparison() -> dict[str, Any]:
    shutil.copytree(ROOT / "docs/results/digits", "comparison")
    return {}


def prepared_lightning() -> dict[str, Any]:
    return {"train_loader": loader(), "validation_loader": loader(16)}


def prepared_hugging_face() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}
    transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).save_pretrained("microsoft/resnet-18")
    return {"train_dataset": EXAMPLES, "validation_dataset": EXAMPLES[:8]}


# Files that a page's Python finds in its otherwise empty folder.
PREPARED: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/lightning.md": prepared_lightning,
    "docs/hugging-face.md": prepared_hugging_face,
    "docs/weights.md": prepared_weights,
    "docs/gates.md": prepared_gates,
    "docs/networks.md": prepared_networks,
    "docs/execution.md": prepared_execution,
    "docs/guides/compare.md": prepared_comparison,
    "docs/sharing.md": prepared_sharing,
    "docs/export.md": prepared_export,
}
ELSEWHERE = {"CONTRIBUTING.md", "docs/ultralytics.md"}  # in test_new_gate.py, trainers/test_ultralytics.py
# Pages whose Python needs a package of the group `trainers`, which gives warnings of its own.
NEEDS = {"docs/lightning.md": "lightning", "docs/hugging-face.md": "transformers"}


def timm_s_page_is_right(names: dict[str, Any]) -> bool:
    rows = re.findall(r"^\| (`[^|]+)\|", (ROOT / "docs/timm.md").read_text(), flags=re.MULTILINE)
    listed = [name for name in re.findall(r"`(\w+)`", " ".join(rows)) if "_resnet" in name]
    gates = len(gw.gates_in(names["net"]))  # of an EfficientNet
    return names["optimizer"].param_groups[1]["weight_decay"] == 0 and gates == 16 and sorted(listed) == sorted(PRESETS)


def gates_are_logged(names: dict[str, Any]) -> bool:
    """Check what the first training of the page about Lightning logged."""
    return "gates/net.conv1.gct/mean" in names["trainer"].logged_metrics and len(names["stages"]) == 2


def checkpoint_is_read(names: dict[str, Any]) -> bool:
    tuned, trained = names["tuned"].state_dict(), names["model"].state_dict()
    return all(torch.equal(value, tuned[name]) for name, value in trained.items()) and tuned.keys() == trained.keys()


# What must hold after a page's Python has run.
PROOFS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "README.md": lambda names: len(names["insertion"].gates) == 53,
    "docs/index.md": lambda names: len(gw.gates_in(names["model"])) == 20,
    "docs/lightning.md": gates_are_logged,
    "docs/hugging-face.md": checkpoint_is_read,
    "docs/weights.md": lambda names: (
        set(names["theirs"]) == set(GctResNet50().state_dict())
        and names["loaded"].left_out == ("fc.weight", "fc.bias")
        and "the prefix 'model.' was removed" in str(names["trained"])
        and "the prefix 'ema_model.' was removed" in str(names["averaged"])
        and not any(parameter.is_meta for parameter in names["net"].parameters())
    ),
    "docs/explain.md": lambda names: names["summary"].near_identity == 1,
    "docs/timm.md": timm_s_page_is_right,
    "docs/export.md": lambda names: names["details"]["classes"] == [str(digit) for digit in range(10)],
    "docs/guides/gaternet.md": lambda names: torch.equal(names["logits"], names["backbone"](names["images"])),
}


TRAINING = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LONG = {"docs/export.md", "docs/execution.md", "docs/guides/insert.md"}


def marks_of(page: str) -> list[pytest.MarkDecorator]:
    if page in NEEDS:
        return TRAINING
    if page in LONG:
        return [pytest.mark.slow]
    return [] if page == "README.md" else [pytest.mark.extended]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=marks_of(page)) for page in pages() if blocks(page, "python") and page not in ELSEWHERE],
)
def test_python_of_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    names = run_blocks(page, PREPARED.get(page, dict)())
    with torch.no_grad():
        assert PROOFS.get(page, lambda _: True)(names)


def test_printed_output_of_page_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```python\na = 1\n```\n\n```python\n>>> a + 1\n3\n```\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises(AssertionError, match=r"Expected:\s+3\s+Got:\s+2"):
        run_blocks("page.md", {})


def commands(page: str) -> list[str]:
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("gatewise")]


@pytest.mark.parametrize("page", [p for p in pages() if commands(p)])
def test_commands_of_page_parse(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatewise.models.import_network", lambda _: None)  # modules of the reader
    for command in commands(page):
        refuse_wrong_command(command)


def refuse_wrong_command(command: str) -> None:
    """Parse a command as the command line does, and its networks and gates as training would."""
    words = shlex.split(command, comments=True)[1:]
    _, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    given = bound.arguments
    flags = given_flags(given["flags"]) if "flags" in given else {}
    if any(given.get(flag) is not None for flag in ("gater", "sites", "budget", "routes")):
        flags["gate"] = "gaternet"  # flags of the command line that add a gater
    Recipe(**flags)
    if "of_command" not in given or given["of_command"].command is None:  # of a command, gates are any words
        parse_gates_list(given.get("gates", "none"))


@pytest.mark.parametrize(
    "wrong",
    ["gatewise trane --out x", "gatewise train --out x --gate gtc", "gatewise compare --out x --gates none,se:width=3"],
)
def test_wrong_command_rejected(wrong: str) -> None:
    with pytest.raises((cyclopts.CycloptsError, gw.GatewiseError)):
        refuse_wrong_command(wrong)


def test_readme_names_every_gate() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == list(gw.gate_names())


@pytest.mark.parametrize("page", pages())
def test_links_have_targets(page: str) -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", text_of(page))
    files = {target: ((ROOT / page).parent / target).resolve() for target in targets}
    broken = [
        target
        for target, file in files.items()
        if not file.exists() or {file, *file.parents} & set(WRITTEN_BY_THE_SITE)
    ]
    assert not broken


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, on GitHub and in the site."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages())
def test_links_to_headings_have_targets(page: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text_of(page))
    broken = [
        (file, part)
        for file, part in links
        if part not in headings(((ROOT / page).parent / file) if file else ROOT / page)
    ]
    assert not broken


def test_picture_of_layers_shows_the_imports(tmp_path: Path) -> None:
    drawn = tmp_path / "layers.svg"
    subprocess.run([sys.executable, ROOT / "tools/draw_layers.py", drawn], check=True, capture_output=True)
    assert drawn.read_text() == (ROOT / "docs/images/layers.svg").read_text(), "run make docs"
    assert drawn.read_text().count("marker-end") >= 15, "every package but errors imports another"


@pytest.mark.extended
def test_pictures_of_results_are_of_these_numbers(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "tools/draw_results.py", tmp_path], check=True, capture_output=True)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert {"routes-time.svg", "inserted-gates.svg", "digits-curves.svg"} < set(names)
    pages_ = "".join((ROOT / page).read_text() for page in pages())
    for name in names:
        drawn, kept = ((folder / name).read_text() for folder in (tmp_path, ROOT / "docs/images"))
        written = [re.findall("<text[^>]*>([^<]*)", text) for text in (drawn, kept)]
        assert written[0] == written[1], f"{name} is stale: run make docs"
        assert len(drawn) < 60_000, "a page of pictures is to load at once"
        assert f"images/{name}" in pages_, "it is on a page"


def test_design_names_every_module() -> None:
    design = (ROOT / "docs/design.md").read_text()
    top = [
        path for path in (ROOT / "src/gatewise").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    missing = [path.name for path in top if not re.search(rf"\b{re.escape(path.name)}", design)]
    assert not missing
