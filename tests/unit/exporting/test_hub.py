"""Networks shared as folders: saved, rebuilt, used for predictions, with a model card of the run's metrics."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors
import torch
import yaml
from PIL import Image

import gatewise as gw
from gatewise import GatewiseError, PretrainedNet
from gatewise.cli import run
from gatewise.core.files import read_json, write_json
from gatewise.models import import_network
from support.command_runs import gated, plain, small  # noqa: F401 - fixtures
from support.scenes import done, folder, recipe  # noqa: F401 - fixtures


def logits_of(network: torch.nn.Module, shape: tuple[int, ...] = (2, 1, 8, 8)) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape))


def test_run_is_saved_and_rebuilt(gated: Path, tmp_path: Path) -> None:
    net = PretrainedNet.of_run(gated)
    net.save_pretrained(tmp_path / "shared")
    assert sorted(file.name for file in (tmp_path / "shared").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = PretrainedNet.from_pretrained(tmp_path / "shared")
    assert not again.training
    assert torch.equal(logits_of(again), logits_of(gw.load_model(gated)[0]))
    assert again.config == net.config
    with safetensors.safe_open(tmp_path / "shared/model.safetensors", "pt") as file:
        assert set(file.keys()) == set(net.network.state_dict())


def test_predictions_from_folder_equal_those_of_run(
    gated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (20, 10), 120).save(tmp_path / "photo.png")
    PretrainedNet.of_run(gated).save_pretrained(tmp_path / "shared")
    printed = []
    for source in (gated, tmp_path / "shared"):
        assert run(["predict", str(source), str(tmp_path / "photo.png"), "--json"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "open_gates" in printed[0]


def test_segmenter_keeps_image_size(done: Path, tmp_path: Path) -> None:
    net = PretrainedNet.of_run(done)
    assert "scale" in net.config
    net.save_pretrained(tmp_path)
    assert "image-segmentation" in (tmp_path / "README.md").read_text()
    assert read_json(tmp_path / "config.json")["scale"] == net.config["scale"]


@pytest.mark.extended
def test_compacted_run_can_be_shared(small: Path, tmp_path: Path) -> None:
    PretrainedNet.of_run(small).save_pretrained(tmp_path)
    assert torch.equal(logits_of(PretrainedNet.from_pretrained(tmp_path)), logits_of(gw.load_model(small)[0]))
    assert "multiply-adds per image" in (tmp_path / "README.md").read_text()


def card(folder: Path) -> tuple[dict[str, Any], str]:
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def test_card_has_metrics_of_run(gated: Path, tmp_path: Path) -> None:
    PretrainedNet.of_run(gated).save_pretrained(tmp_path)
    metrics = read_json(gated / "metrics.json")
    header, text = card(tmp_path)
    result = header["model-index"][0]["results"][0]
    assert result["metrics"] == [{"type": "accuracy", "value": round(metrics["accuracy"], 6)}]
    assert header["library_name"] == "gatewise"
    assert "gaternet" in header["tags"]
    for expected in (
        f"**{100 * metrics['accuracy']:.2f} %** on 360 validation images",
        f"{metrics['parameters']:,}",
        f"{100 * metrics['open_fraction']:.1f} % on average",
        f"{metrics['executed_macs'] / 1e6:,.1f} million",
        "From one training with one seed",
        "seed: 0",
        metrics["environment"]["hardware"],
    ):
        assert expected in text
    loaded = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert loaded.data.eval_results[0].metric_value == round(metrics["accuracy"], 6)  # the hub's own reader


def test_code_of_card_runs(gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PretrainedNet.of_run(gated).save_pretrained(tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    code = card(tmp_path / "FOLDER")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 10)


def test_card_has_no_local_paths(gated: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(gated, run_folder)
    recipe = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    (run_folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "data": "/home/mine/birds", "init": "/x/plain"}))
    PretrainedNet.of_run(run_folder).save_pretrained(tmp_path / "shared")
    header, text = card(tmp_path / "shared")
    assert "birds" in text
    assert "/home" not in text
    assert "/x" not in text
    assert header["model-index"][0]["results"][0]["dataset"]["name"] == "birds"
    assert "datasets" not in header, "a folder is no data set of the hub"


def test_hub_data_set_is_linked_in_card(gated: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(gated, run_folder)
    recipe = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    (run_folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "data": "hub:someone/birds"}))
    PretrainedNet.of_run(run_folder).save_pretrained(tmp_path / "shared")
    assert card(tmp_path / "shared")[0]["datasets"] == ["someone/birds"]


def test_existing_card_is_kept_and_rest_is_replaced(gated: Path, plain: Path, tmp_path: Path) -> None:
    PretrainedNet.of_run(plain).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("my own words")
    PretrainedNet.of_run(gated).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"
    assert torch.equal(logits_of(PretrainedNet.from_pretrained(tmp_path)), logits_of(gw.load_model(gated)[0]))


def test_any_network_with_its_spec_can_be_saved(tmp_path: Path) -> None:
    network = gw.make_model("resnet20+gct:mode=l1", num_classes=7, in_chans=1).eval()
    PretrainedNet(network, "resnet20+gct:mode=l1", num_classes=7, in_chans=1).save_pretrained(tmp_path)
    assert torch.equal(logits_of(PretrainedNet.from_pretrained(tmp_path)), logits_of(network))
    assert run(["predict", str(tmp_path), __file__]) == 2


def test_folder_without_classes_cannot_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PretrainedNet(gw.make_model("resnet20"), "resnet20").save_pretrained(tmp_path)
    assert run(["predict", str(tmp_path), __file__]) == 2
    assert "config.json has no 'classes'" in capsys.readouterr().err


def test_network_not_matching_spec_rejected_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(GatewiseError, match=r"was not written: resnet20 does not build this network .*fc"):
        PretrainedNet(gw.make_model("resnet20", num_classes=7), "resnet20").save_pretrained(tmp_path / "shared")
    assert list(tmp_path.iterdir()) == []


def test_network_of_a_function_is_shared_once_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_shared_nets.py").write_text(
        "import torch\n\n\ndef build(num_classes, in_chans):\n"
        "    parts = torch.nn.Conv2d(in_chans, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()\n"
        "    return torch.nn.Sequential(*parts, torch.nn.Linear(4, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    spec, details = "our_shared_nets:build", {"num_classes": 3, "in_chans": 1}
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)
    )
    net = PretrainedNet(network, spec, **details)
    with pytest.raises(GatewiseError, match=r"built by the function our_shared_nets:build, .*import_network\('our_"):
        net.save_pretrained(tmp_path / "new/shared")
    assert not (tmp_path / "new").exists()
    import_network(spec)
    net.save_pretrained(tmp_path / "new/shared")
    assert torch.equal(PretrainedNet.from_pretrained(tmp_path / "new/shared").network[3].bias, network[3].bias)


def test_unfinished_run_rejected(gated: Path, tmp_path: Path) -> None:
    shutil.copytree(gated, tmp_path / "run")
    (tmp_path / "run/metrics.json").unlink()
    with pytest.raises(GatewiseError, match=r"no metrics.json: the run has not finished.*--resume"):
        PretrainedNet.of_run(tmp_path / "run")


def test_damaged_weights_rejected(gated: Path, tmp_path: Path) -> None:
    PretrainedNet.of_run(gated).save_pretrained(tmp_path)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(GatewiseError, match="damaged"):
        PretrainedNet.from_pretrained(tmp_path)


def test_hub_network_is_read_from_cache_offline(gated: Path, tmp_path: Path) -> None:
    commit, own = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--someone--birds"
    PretrainedNet.of_run(gated).save_pretrained(own / "snapshots" / commit)
    (own / "refs").mkdir()
    (own / "refs/main").write_text(commit)
    net = PretrainedNet.from_pretrained("someone/birds", cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(logits_of(net), logits_of(gw.load_model(gated)[0]))
    for name in ("someone/fish", "no folder"):
        with pytest.raises(GatewiseError, match=f"'{name}' is not a folder, and cannot be downloaded from the hub"):
            PretrainedNet.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)


def test_push_uploads_the_folder(gated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    def upload(self: object, *, repo_id: str, folder_path: Path, **_: object) -> str:
        pushed[repo_id] = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        return "a commit"

    def create(self: object, repo_id: str, **_: object) -> huggingface_hub.RepoUrl:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    assert PretrainedNet.of_run(gated).push_to_hub("someone/birds") == "a commit"
    files = pushed["someone/birds"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert json.loads(files["config.json"])["sha256"]


def test_invalid_config_rejected(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"spec": {"model": "resnet20"}})
    with pytest.raises(GatewiseError, match="has no 'sha256'"):
        PretrainedNet.from_pretrained(tmp_path)
