"""Presets in timm's registry, and their use in timm's train.py."""

import copy
import csv
import json
import os
import pickle
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import resolve_data_config
from timm.models import resume_checkpoint, safe_model_name
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.testing import assert_close

import gatewise as gw
from gatewise.cli import run
from gatewise.errors import InvalidValueError
from gatewise.integrations.timm import PRESETS, TAG
from gatewise.integrations.timm.__main__ import main
from support.fresh import python

OURS = ("gct_resnet20", "gater_resnet56")
TIMMS = tuple(name for name in PRESETS if name not in OURS)
IDENTITIES = tuple(name for name in TIMMS if name != "se_resnet50")


def launch(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return python("-m", "gatewise.integrations.timm", *map(str, arguments))


def plain_file(folder: Path, name: str = "resnet18") -> tuple[nn.Module, dict[str, str]]:
    """Return a plain network with nontrivial statistics, and an overlay that names its file."""
    model = timm.create_model(name)
    for key, tensor in model.state_dict().items():
        if key.endswith(("running_mean", "bn2.weight", "bn3.weight")):
            nn.init.normal_(tensor, 0.3, 0.1)
    torch.save(model.state_dict(), folder / f"{name}.pth")
    return model.eval(), {"file": str(folder / f"{name}.pth")}


# ---- the registry --------------------------------------------------------------------------------------------------


def test_names_exist_only_after_import_of_presets() -> None:
    code = (
        "import timm, gatewise; before = timm.is_model('gct_resnet50')\n"
        "import gatewise.integrations.timm; print(before, timm.is_model('gct_resnet50'))"
    )
    assert python("-c", code).stdout == "False True\n"


def test_former_name_of_module_registers_presets() -> None:
    assert python("-c", "import gatewise.presets, timm; print(timm.is_model('gct_resnet50'))").stdout == "True\n"
    assert python("-m", "gatewise.presets").stdout == launch().stdout


def test_presets_without_timm_say_how_to_install_it() -> None:
    result = python("-c", "import sys; sys.modules['timm'] = None; import gatewise.integrations.timm")
    assert result.stderr.splitlines()[-1].endswith(
        "gatewise.integrations.timm needs the package 'timm', which is not installed. "
        "Install it with: pip install 'gatewise[train]'"
    )


def test_timm_lists_presets() -> None:
    assert timm.list_models(module="timm") == sorted(PRESETS)
    assert timm.list_models("*.gatewise", include_tags=True) == sorted(f"{name}.{TAG}" for name in PRESETS)
    assert timm.list_models("*.gatewise", pretrained=True) == sorted(f"{name}.{TAG}" for name in IDENTITIES)


@pytest.mark.extended
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in TIMMS[1:] else name for name in PRESETS]
)
def test_preset_equals_network_of_its_spec(name: str) -> None:
    ours = gw.make_model(PRESETS[name], num_classes=7, in_chans=1)
    timms = timm.create_model(f"{name}.{TAG}", num_classes=7, in_chans=1)
    assert type(timms) is type(ours)
    assert list(gw.gates_in(timms)) == list(gw.gates_in(ours))
    shapes = [{key: tensor.shape for key, tensor in net.state_dict().items()} for net in (ours, timms)]
    assert shapes[0] == shapes[1]
    size = timms.pretrained_cfg["input_size"][1:]
    with torch.no_grad():
        assert timms.eval()(torch.zeros(2, 1, *size)).shape == (2, timms.num_classes) == (2, 7)


def test_gater_resnet56_has_official_form() -> None:
    net = timm.create_model("gater_resnet56.gatewise")
    assert isinstance(net, gw.GaterNet)
    assert net.gate_count == 1008
    assert net.num_classes == 10


@pytest.mark.parametrize("name", TIMMS)
def test_features_only_gives_gated_maps(name: str) -> None:
    backbone = timm.create_model(name, features_only=True, out_indices=(1, 2), in_chans=2).eval()
    plain = timm.create_model(name.partition("_")[2], features_only=True, out_indices=(1, 2))
    maps = backbone(torch.randn(1, 2, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(channels, 64 // by, 64 // by) for channels, by in
                                                  zip(plain.feature_info.channels(), (4, 8), strict=True)]  # fmt: skip
    reached: list[str] = []
    for path, gate in gw.gates_in(backbone).items():
        gate.register_forward_pre_hook(lambda *_, path=path: reached.append(path))
    backbone(torch.randn(1, 2, 64, 64))
    assert reached
    assert set(reached) == set(gw.gates_in(backbone))


def test_no_classes_gives_pooled_features() -> None:
    assert timm.create_model("gct_resnet18", num_classes=0)(torch.randn(2, 3, 32, 32)).shape == (2, 512)


def test_timm_options_are_passed_on() -> None:
    net = timm.create_model("gct_resnet18", drop_path_rate=0.1, output_stride=8, global_pool="max")
    assert net.global_pool.pool_type == "max"
    assert net.layer4[1].drop_path.drop_prob == pytest.approx(0.1)


def test_own_network_accepts_zero_rates_of_train_py_only() -> None:
    zeros = {"drop_rate": 0.0, "drop_path_rate": None, "drop_block_rate": None, "global_pool": None}
    assert timm.create_model("gct_resnet20", **zeros).num_classes == 10
    with pytest.raises(InvalidValueError, match=r"unknown option of model 'resnet20' 'drop_rate'"):
        timm.create_model("gct_resnet20", drop_rate=0.1)


@pytest.mark.parametrize("name", OURS)
def test_own_network_reports_unsupported_option(name: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{name} has no pretrained weights"):
        timm.create_model(name, pretrained=True)
    with pytest.raises(InvalidValueError, match=f"{name} does not support features_only.*gct_resnet18"):
        timm.create_model(name, features_only=True)


def test_unknown_tag_rejected() -> None:
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(a1_in1k\) for gct_resnet18"):
        timm.create_model("gct_resnet18.a1_in1k")


# ---- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDENTITIES)
def test_pretrained_weights_equal_timm_plain_network(name: str) -> None:
    ours, plain = (timm.models.get_pretrained_cfg(each) for each in (name, name.partition("_")[2]))
    assert ours.hf_hub_id == plain.hf_hub_id
    assert ours.hf_hub_id.startswith("timm/resnet")
    assert (ours.mean, ours.crop_pct, ours.input_size) == (plain.mean, plain.crop_pct, plain.input_size)


def test_non_identity_gate_has_no_pretrained_weights() -> None:
    with pytest.raises(InvalidValueError, match=r"has no pretrained weights.*'resnet50:pretrained=true\+se'"):
        timm.create_model("se_resnet50", pretrained=True)


@pytest.mark.parametrize("name", ["gct_resnet18", "gc_resnet50"])
def test_fresh_gates_keep_pretrained_output(name: str, tmp_path: Path) -> None:
    plain, overlay = plain_file(tmp_path, name.partition("_")[2])
    gated = timm.create_model(f"{name}.{TAG}", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert gw.gates_in(gated)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(gated(x), plain(x))


def test_pretrained_weights_are_adapted_to_classes_and_channels(tmp_path: Path) -> None:
    _, overlay = plain_file(tmp_path)
    options: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": 3, "in_chans": 1}
    gated, plain = (timm.create_model(name, **options).state_dict() for name in ("gct_resnet18", "resnet18"))
    assert gated["fc.weight"].shape == (3, 512)
    for key in set(plain) - {"fc.weight", "fc.bias"}:
        assert torch.equal(gated[key], plain[key]), key


def test_plain_and_gated_checkpoints_are_accepted(tmp_path: Path) -> None:
    _, overlay = plain_file(tmp_path)
    gated = timm.create_model("gct_resnet18", checkpoint_path=overlay["file"])
    with torch.no_grad():
        gated.conv1.gct.gamma += 1
    torch.save(gated.state_dict(), tmp_path / "gated.pth")
    again = timm.create_model("gct_resnet18", checkpoint_path=tmp_path / "gated.pth")
    assert torch.equal(again.conv1.gct.gamma, gated.conv1.gct.gamma)
    assert torch.equal(again.conv1.weight, gated.conv1.weight)


# ---- the optimizer -------------------------------------------------------------------------------------------------


def decays(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return each parameter's weight decay, by name."""
    by_id = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in model.named_parameters()}


def test_parameter_groups_works_as_timm_param_group_fn() -> None:
    model = timm.create_model("gct_resnet18")
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4, param_group_fn=gw.parameter_groups)
    found = decays(model, optimizer)
    assert len(found) == len(list(model.parameters()))
    assert {name for name, decay in found.items() if decay == 0} == {
        name for name in found if name.endswith("gct.beta")
    }
    assert set(found.values()) == {0, 1e-4}
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}


def with_copies(model: nn.Module) -> list[nn.Module]:
    return [model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]


def test_timm_groups_exempt_beta_too() -> None:
    for model in with_copies(timm.create_model("gct_resnet18")):
        found = decays(model, create_optimizer_v2(model, opt="adamw", lr=0.1, weight_decay=1e-4))
        betas = {name for name in found if name.endswith("gct.beta")}
        assert len(betas) == 20
        assert {found[name] for name in betas} == {0}
        assert found["conv1.gct.gamma"] == found["conv1.gct.alpha"] == found["conv1.weight"] == 1e-4
        assert found["bn1.weight"] == 0, "timm spares what has one axis"


def test_gates_inserted_manually_need_param_group_fn() -> None:
    model = timm.create_model("resnet18")
    gw.insert_gates(model, "gct")
    assert decays(model, create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4))["conv1.gct.beta"] == 1e-4


# ---- timm's train.py -----------------------------------------------------------------------------------------------


@pytest.mark.extended
@pytest.mark.parametrize("name", ["gct_resnet18", "gct_resnet20", "gater_resnet56"])
def test_calls_of_timm_train_py_work(name: str, tmp_path: Path) -> None:
    """Build, describe, average, step, save and resume like the script."""
    model = timm.create_model(f"{name}.{TAG}", pretrained=False, num_classes=2, in_chans=3, drop_rate=0.0)
    data = resolve_data_config({"input_size": (3, 32, 32)}, model=model)
    assert data["input_size"] == (3, 32, 32)
    assert data["mean"] == model.pretrained_cfg["mean"]
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4, momentum=0.9)
    average = ModelEmaV3(model, decay=0.5)
    args = Namespace(model=f"{name}.{TAG}")
    saver = CheckpointSaver(model, optimizer, args, average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    nn.functional.cross_entropy(model(torch.randn(4, *data["input_size"])), torch.tensor([0, 1, 0, 1])).backward()
    optimizer.step()
    average.update(model)
    saver.save_checkpoint(0, metric=1.0)
    again = timm.create_model(args.model, num_classes=2)
    restored = create_optimizer_v2(again, opt="sgd", lr=0.1, weight_decay=1e-4)
    assert resume_checkpoint(again, str(tmp_path / "last.pth.tar"), restored) == 1
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert safe_model_name(args.model) == f"{name}_{TAG}"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Write 16 and 8 pictures of two classes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 4)):
        for bright, label in enumerate("ab"):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(100 * bright, 100 * bright + 100, (40, 40, 3)).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gct_resnet20", "gct_resnet50", "gater_resnet56"])
def test_timm_train_py_trains_preset_and_resumes(name: str, pictures: Path) -> None:
    script = os.environ.get("TIMM_TRAIN_SCRIPT")
    if not script:
        pytest.skip("TIMM_TRAIN_SCRIPT does not name timm's train.py, which timm's wheel does not hold")
    out = pictures.parent / "out"
    flags = "--num-classes 2 --input-size 3 32 32 -b 8 --workers 0 --device cpu --warmup-epochs 0 --lr 0.01 --model-ema"
    every = (script, "--data-dir", pictures, "--model", f"{name}.{TAG}", "--output", out, *flags.split())
    first = launch(*every, "--experiment", "first", "--epochs", 2)
    assert first.returncode == 0, first.stderr
    without_launcher = ("--device-modules", "gatewise.integrations.timm")
    more = ("--experiment", "resumed", "--epochs", 3, "--resume", out / "first/last.pth.tar", *without_launcher)
    resumed = python(*map(str, (*every, *more)))
    assert resumed.returncode == 0, resumed.stderr
    rows = [(out / run / "summary.csv").read_text().splitlines()[1:] for run in ("first", "resumed")]
    assert [[row.split(",")[0] for row in each] for each in rows] == [["0", "1"], ["2"]]
    saved = torch.load(out / "resumed/last.pth.tar", weights_only=False)
    model = timm.create_model(f"{name}.{TAG}", num_classes=2)
    model.load_state_dict(saved["state_dict"])
    assert saved["arch"] == f"{name}.{TAG}"


@pytest.mark.slow
def test_comparison_runs_timm_train_py(pictures: Path) -> None:
    script = os.environ.get("TIMM_TRAIN_SCRIPT")
    if not script:
        pytest.skip("TIMM_TRAIN_SCRIPT does not name timm's train.py, which timm's wheel does not hold")
    names = ["test_resnet", f"gct_resnet20.{TAG}"]
    command = (
        f"{sys.executable} -m gatewise.integrations.timm {script} --data-dir {pictures} --model {{gates}} "
        "--seed {seed} --output {out} --num-classes 2 --input-size 3 32 32 -b 8 --workers 0 --device cpu "
        "--warmup-epochs 0 --lr 0.01 --epochs 2"
    )
    score = ["--score-from", "summary.csv:eval_top1:last", "--unit", "%"]
    out = pictures.parent / "comparison"
    arguments = ["--command", command, *score, "--gates", ",".join(names), "--seeds", "2", "--out", str(out)]
    assert run(["compare", *arguments]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [variant["gates"] for variant in results["variants"]] == names
    for variant in results["variants"]:
        for seed, value in enumerate(variant["score"]["values"]):
            (summary,) = (out / "runs" / variant["gates"] / f"seed_{seed}/output").glob("*/summary.csv")
            with summary.open(newline="") as file:
                assert float([*csv.DictReader(file)][-1]["eval_top1"]) == value


# ---- the launcher --------------------------------------------------------------------------------------------------


def test_launcher_runs_script_like_python(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("value = 3\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, timm, helper\n"
        "print(__name__, sys.argv, timm.is_model('gct_resnet50'), helper.value)\n"
        "raise SystemExit(7)\n"
    )
    result = launch(script, "--model", "x")
    assert result.stdout == f"__main__ {[str(script), '--model', 'x']} True 3\n", result.stderr
    assert result.returncode == 7


def test_missing_script_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.py"]) == 2
    assert capsys.readouterr() == ("", "gatewise: script 'nowhere.py' does not exist. Check the path.\n")


def test_presets_are_listed_without_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name, spec in PRESETS.items():
        assert any(line.split() == [f"{name}.{TAG}", spec] for line in printed.splitlines())
