"""Programs in `benchmarks/` that others build on: the pruned rival, and the table of the trainings with gaters."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gatewise as gw
from benchmarks import finer_classes, oracle_routes, pruned, selecting_filters_table
from benchmarks.selecting_filters_table import markdown, planned, summary
from gatewise.core import statistics
from gatewise.graph.measure import macs_per_sample
from gatewise.models.serialization import load_model, plain_tensors
from gatewise.training import Recipe, train
from gatewise.training.runs import Run
from support.small_runs import DATASET, RECIPE

WITH_TEST = dataclasses.replace(DATASET, test=DATASET.validation)
ONE = dataclasses.replace(RECIPE, epochs=1)


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(ONE, folder, dataset=WITH_TEST)
    return folder


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs find the images in memory."""
    monkeypatch.setattr(selecting_filters_table, "_load", lambda _: WITH_TEST)


class MadeUp:
    """Finished runs with the answers that a test wants, all with the weights of one run."""

    def __init__(self, out: Path, trained_run: Path) -> None:
        self.out, self.trained_run = out, trained_run

    def add(self, form: str, right: Sequence[int], *, tested: Sequence[int] | None = None, **recipe: Any) -> None:
        """Add a run for each seed with the first `right` of 30 validation images correct, and `tested` of the test."""
        for seed, count in enumerate(right):
            folder = self.out / form / f"seed_{seed}"
            shutil.copytree(self.trained_run, folder)
            answers = load_file(folder / "predictions.safetensors")
            answers["predictions"] = torch.where(
                torch.arange(30) < count, answers["labels"], (answers["labels"] + 1) % 3
            )
            save_file(answers, folder / "predictions.safetensors")
            metrics = json.loads((folder / "metrics.json").read_text())
            metrics["accuracy"] = count / 30
            metrics["test"]["accuracy"] = (tested or right)[seed] / 30
            (folder / "metrics.json").write_text(json.dumps(metrics))
            (folder / "recipe.yaml").unlink()
            dataclasses.replace(ONE, seed=seed, **recipe).save(folder / "recipe.yaml")
            bits = [int(index < (tested or right)[seed]) for index in range(30)]
            known = {"sha256": json.loads((folder / "config.json").read_text())["sha256"], "macs": 2e6, "test": bits}
            (folder / "measured.json").write_text(json.dumps(known))

    def rows(self) -> dict[str, dict[str, Any]]:
        (forms,) = planned(self.out.parent).values()
        return {row["form"]: row for row in summary(forms)["forms"]}


@pytest.fixture
def made_up(tmp_path: Path, trained_run: Path) -> MadeUp:
    return MadeUp(tmp_path / "verdict", trained_run)


def test_differences_are_paired_over_images_and_seeds(made_up: MadeUp, images: None) -> None:
    made_up.add("plain", [20, 21, 22])
    made_up.add("gates", [23, 22, 27], tested=[20, 20, 25])
    row = made_up.rows()["gates"]
    found = row["against_plain"]["validation"]
    assert found["mean"] == pytest.approx(3 / 30)
    seeds = statistics.paired_difference([23 / 30, 22 / 30, 27 / 30], [20 / 30, 21 / 30, 22 / 30])
    assert (found["over_seeds"]["low"], found["over_seeds"]["p"]) == pytest.approx((seeds.low, seeds.p))
    right = [(torch.arange(30) < torch.tensor(counts)[:, None]) for counts in ([23, 22, 27], [20, 21, 22])]
    over_images = statistics.image_bootstrap(*right)
    assert found["over_images"] == pytest.approx(dataclasses.asdict(over_images))
    assert row["against_plain"]["test"]["mean"] == pytest.approx(2 / 90)
    assert row["verdict_against_plain"]["verdict"] == "no difference shown"
    assert row["test"]["mean"] == pytest.approx(65 / 90)


def test_one_seed_has_interval_over_images_only(made_up: MadeUp, images: None) -> None:
    made_up.add("plain", [20])
    made_up.add("gates", [26])
    row = made_up.rows()["gates"]
    assert row["against_plain"]["validation"]["over_seeds"] is None
    assert row["against_plain"]["validation"]["over_images"]["low"] > 0
    assert "verdict_against_plain" not in row


def test_form_is_compared_with_narrower_network_that_learns_alike(made_up: MadeUp, images: None) -> None:
    for form in ("plain", "narrow", "narrow-taught", "gates", "gates-taught", "routes4-self"):
        made_up.add(form, [20])
    rows = made_up.rows()
    against = {form: row["against_narrow"]["form"] for form, row in rows.items() if "against_narrow" in row}
    assert against == {
        "plain": "narrow",
        "gates": "narrow",
        "gates-taught": "narrow-taught",
        "routes4-self": "narrow-taught",
    }


def test_only_common_seeds_are_paired(made_up: MadeUp, images: None) -> None:
    made_up.add("plain", [20, 21])
    made_up.add("gates", [22, 25, 30])
    row = made_up.rows()["gates"]
    assert row["against_plain"]["seeds"] == ["seed_0", "seed_1"]
    assert row["against_plain"]["validation"]["mean"] == pytest.approx(3 / 30)
    assert row["validation"]["mean"] == pytest.approx(77 / 90)


def test_oracles_are_shown_before_the_trainings() -> None:
    row = {"way": "clusters", "routes": 4, "steps": 700, "best_single": 80.125, "oracle": 90.0}
    text = markdown({}, {"50": {"dense": 82.0, "rows": [row]}})
    assert text.startswith("## oracle, 50 classes; dense network 82.00 %")
    assert "| clusters | 4 | 700 | 80.12 | 90.00 |" in text


def test_missing_runs_are_named(made_up: MadeUp, images: None, tmp_path: Path) -> None:
    made_up.add("plain", [20, 21])
    (made_up.out / "plain/seed_1/metrics.json").unlink()
    (tmp_path / "plan.txt").write_text("verdict/plain/seed_0\nverdict/plain/seed_1\nverdict/gates/seed_0\n")
    ((part, forms),) = planned(tmp_path).items()
    found = summary(forms)
    assert found["missing"] == {
        str(made_up.out / "gates/seed_0"): "not begun",
        str(made_up.out / "plain/seed_1"): "stopped or running after 1 epochs",
    }
    text = markdown({part: found}, {})
    assert "| plain | 1 | 66.67" in text
    assert f"- missing: {made_up.out}/gates/seed_0: not begun" in text


def test_cost_includes_run_that_a_form_begins_with(made_up: MadeUp, images: None) -> None:
    made_up.add("plain", [20])
    plain = made_up.out / "plain/seed_0"
    (plain / "core_seconds.txt").write_text("50.5 9.5\n60.0 0.0\n")
    made_up.add("gates", [20], init=str(plain))
    made_up.add("gone", [20], init=str(made_up.out / "nowhere"))
    (made_up.out / "gates/seed_0/core_seconds.txt").write_text("30.0 0.0\n")
    rows = made_up.rows()
    assert (rows["plain"]["epochs"], rows["plain"]["images"], rows["plain"]["core_minutes"]) == (1, 48, 2.0)
    assert (rows["gates"]["epochs"], rows["gates"]["images"], rows["gates"]["core_minutes"]) == (2, 96, 2.5)
    assert rows["gone"]["epochs"] is None
    (plain / "core_seconds.txt").unlink()
    row = made_up.rows()["gates"]
    assert not row["exact_core_minutes"]
    assert "| ~0.5" in markdown({"verdict": {"forms": [row], "missing": {}}}, {})


def test_test_images_and_routes_are_computed_once(
    tmp_path: Path, images: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(ONE, gate="gaternet:routes=2,budget=0.5", epochs=2)
    metrics = train(recipe, tmp_path / "screening/routes2/seed_0", dataset=WITH_TEST)
    ((_, forms),) = planned(tmp_path).items()
    (row,) = summary(forms)["forms"]
    known = json.loads((tmp_path / "screening/routes2/seed_0/measured.json").read_text())
    assert sum(known["test"]) / 30 == pytest.approx(metrics["test"]["accuracy"])
    assert sum(row["routes"][0]["shares"]) == pytest.approx(1)
    assert row["macs"] == metrics["executed_macs"]
    assert row["dependent_gates"] == metrics["dependent_gates"]
    assert row["open_fraction"] == [metrics["open_fraction"]]
    monkeypatch.setattr(Run, "network", lambda _: pytest.fail("the network is built again"))
    assert summary(forms)["forms"] == [row]


def test_run_without_its_images_keeps_its_row(tmp_path: Path, trained_run: Path) -> None:
    shutil.copytree(trained_run, tmp_path / "screening/plain/seed_0")
    ((_, forms),) = planned(tmp_path).items()
    found = summary(forms)
    (row,) = found["forms"]
    assert found["missing"][str(tmp_path / "screening/plain/seed_0")].startswith("no use of routes, and no intervals")
    assert row["macs"] == macs_per_sample(load_model(trained_run)[0], torch.zeros(1, 1, 8, 8))


def test_run_without_its_network_keeps_its_row(made_up: MadeUp, images: None) -> None:
    made_up.add("pruned", [20])
    folder = made_up.out / "pruned/seed_0"
    config = json.loads((folder / "config.json").read_text())
    config["spec"] = {"model": "pruned:build", "model_options": {"file": str(folder / "gone.safetensors")}, "gates": []}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "measured.json").unlink()
    (forms,) = planned(made_up.out.parent).values()
    found = summary(forms)
    (row,) = found["forms"]
    assert "the network is built by the function pruned:build" in found["missing"][str(folder)]
    macs = json.loads((folder / "metrics.json").read_text())["executed_macs"]
    assert (row["macs"], row["epochs"], row["validation"]["mean"]) == (macs, None, pytest.approx(20 / 30))
    assert "| pruned | 1 | 66.67" in markdown({"verdict": found}, {})


# ---- the pruned rival ------------------------------------------------------------------------------------------------


def test_pruned_network_meets_budget_and_is_built_again_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.setattr(pruned, "_STEPS", 40)
    net = gw.make_model("resnet20", in_chans=1, seed=0)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    target = pruned.macs_of_budget(net, 0.5, (8, 8))
    pruned.prune(net, target, [(x, torch.arange(8))])
    macs = macs_per_sample(net, x)
    assert 0.9 * target < macs <= target
    file = tmp_path / "pruned.safetensors"
    save_file(plain_tensors(net.state_dict()), file, metadata={"network": "resnet20", "run": "dense"})
    again = pruned.build(str(file), num_classes=10, in_chans=1).eval()
    assert torch.equal(again(x), net(x))
    assert macs_per_sample(again, x) == macs
    assert {name for name, _ in again.named_parameters()} == {name for name, _ in net.named_parameters()}


def test_budget_of_pruned_network_counts_gater() -> None:
    net = gw.make_model("resnet20", seed=0)
    gated = gw.GaterNet(gw.make_model("resnet20", seed=0), budget=0.25, image_size=(32, 32))
    inner = gated.dense_macs - float(gated.executed_macs(torch.zeros(1, gated.gate_count))) + gated.gater_macs
    assert pruned.macs_of_budget(net, 0.25, (32, 32)) == pytest.approx(
        gated.dense_macs + gated.gater_macs - 0.75 * inner
    )


# ---- finer classes ---------------------------------------------------------------------------------------------------


def test_images_belong_to_nearest_part_of_their_class() -> None:
    found = torch.tensor([[0.0], [0.1], [9.0], [9.1], [4.0], [4.2], [7.0], [7.1]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    centres = finer_classes.fit(found, labels, 2)
    part = finer_classes.parts_of(found, labels, centres)
    assert part[0] == part[1] != part[2] == part[3]
    assert part[4] == part[5] != part[6] == part[7]
    other = finer_classes.parts_of(torch.tensor([[6.0], [1.0]]), torch.tensor([1, 0]), centres)
    assert other.tolist() == [part[6], part[0]]


def test_written_folder_is_read_with_its_pixels(tmp_path: Path) -> None:
    names = [f"{name} {part}" for name in ("cat", "traffic light, red") for part in range(2)]
    labels = torch.arange(30) % 4
    for split in ("train", "validation"):
        finer_classes.write(tmp_path / f"{split}.parquet", DATASET.validation, labels, names)
    dataset: Any = Recipe(data=str(tmp_path), channels="gray").source.load()
    assert dataset.classes == tuple(names)
    assert torch.equal(dataset.validation.pixels, DATASET.validation.pixels)
    assert torch.equal(dataset.train.labels, labels)


# ---- the oracle ------------------------------------------------------------------------------------------------------


def test_oracle_takes_the_pattern_that_is_right() -> None:
    labels = torch.arange(40) % 2
    right = torch.nn.functional.one_hot(labels, 2).float()
    first = torch.where(torch.arange(40).unsqueeze(1) < 24, right, 1 - right)
    second = torch.where(torch.arange(40).unsqueeze(1) < 30, 1 - right, right)
    found = oracle_routes.judge(torch.stack([first, second]), labels, dense=right)
    assert found["best_single"] == pytest.approx(60)
    assert found["mean_single"] == pytest.approx(42.5)
    assert found["oracle"] == found["closest_to_dense"] == pytest.approx(85)
    assert found["oracle_gain"] == pytest.approx(25)
    assert 10 < found["oracle_gain_low"] < 25 < found["oracle_gain_high"] < 40
    assert found["all_correct"] == 0
