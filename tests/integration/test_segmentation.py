"""Segmentation, from a folder of masks to predictions: trained, compared, explained, resumed."""

import dataclasses
import json
import math
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import jaccard_score
from torch import Tensor, nn

import gatewise as gw
from gatewise.analysis.explanation import explain_runs
from gatewise.analysis.score_page import score_run
from gatewise.cli import run
from gatewise.comparison import compare
from gatewise.core.statistics import Estimate, redrawn_bootstrap
from gatewise.data import IGNORED, load_pairs, make_batches
from gatewise.errors import DataError, InvalidValueError
from gatewise.exporting.prediction import predict
from gatewise.gates.spec import parse_gates
from gatewise.graph.measure import macs_per_sample
from gatewise.models.serialization import load_model
from gatewise.models.weights.transfer import load_backbone
from gatewise.training import Interrupted, Progress, Recipe, train
from gatewise.training.tasks.segment import Segmentation, overlap_score, pixel_classes, pixel_loss
from support.project import ROOT
from support.scenes import CLASSES, SIDE, TINY, done, folder, recipe, scene  # noqa: F401 - fixtures


def opened(path: str) -> Image.Image:
    """Return an image whose file is closed."""
    with Image.open(path) as image:
        image.load()
        return image


def metrics_of(run_: Path) -> dict[str, Any]:
    return json.loads((run_ / "metrics.json").read_text())


def rows_of(run_: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_ / "log.jsonl").read_text().splitlines()]


# The task


def overlaps_in_a_loop(predicted: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Return the intersection and the union in pixels, class by class."""
    table = torch.zeros(classes, 2, dtype=torch.long)
    for a, b in zip(mask.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if a != IGNORED:
            table[a, 1] += 1
            table[b, 0 if a == b else 1] += 1
    return table


def masks(classes: int, seed: int = 0, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, classes, (count, 5, 7), generator=generator)
    found[:, 0] = IGNORED
    return found


def test_loss_is_mean_over_counted_pixels() -> None:
    logits = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(1))
    target = masks(4)
    expected = [
        -logits[n, :, y, x].log_softmax(0)[target[n, y, x]]
        for n in range(3)
        for y in range(5)
        for x in range(7)
        if target[n, y, x] != IGNORED
    ]
    torch.testing.assert_close(pixel_loss(logits, target), torch.stack(expected).mean())


def test_loss_of_one_map_is_binary_cross_entropy() -> None:
    logits, target = torch.randn(3, 1, 5, 7), masks(2)
    counted = target != IGNORED
    expected = nn.functional.binary_cross_entropy_with_logits(logits[:, 0][counted], target[counted].float())
    torch.testing.assert_close(pixel_loss(logits, target), expected)


def test_class_weights_and_smoothing_equal_torch() -> None:
    logits, target, weights = torch.randn(3, 4, 5, 7), masks(4), torch.tensor([0.5, 2.0, 0.0, 1.0])
    torch.testing.assert_close(
        pixel_loss(logits, target, weights), nn.functional.cross_entropy(logits, target, weights, ignore_index=IGNORED)
    )
    torch.testing.assert_close(
        pixel_loss(logits, target, label_smoothing=0.2),
        nn.functional.cross_entropy(logits, target, ignore_index=IGNORED, label_smoothing=0.2),
    )


def test_masks_without_counted_pixels_have_zero_loss() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    for weights in (None, torch.ones(3)):
        loss = pixel_loss(logits, torch.full((2, 4, 4), IGNORED), weights)
        assert loss.item() == 0.0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("classes", [1, 4])
def test_scores_equal_loop_count_and_scikit_learn(classes: int) -> None:
    names = tuple("abcd"[:classes])
    kinds = max(2, classes)
    task = Segmentation(names)
    tally = task.new_results(torch.device("cpu"))
    logits = [torch.randn(3, classes, 5, 7, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    targets = [masks(kinds - (classes > 2), seed) for seed in (3, 4)]  # of four classes the last is never there
    for pair in zip(logits, targets, strict=True):
        tally.update(*pair)
    predicted, target = torch.cat([pixel_classes(part) for part in logits]), torch.cat(targets)
    counted = target != IGNORED
    found = tally.results()
    by_class = jaccard_score(target[counted], predicted[counted], average=None, labels=range(kinds), zero_division=0)
    assert list(found["iou_by_class"].values()) == pytest.approx(by_class.tolist())
    assert found[task.score.name] == pytest.approx(by_class[1] if classes == 1 else by_class.mean())
    assert found["pixel_accuracy"] == pytest.approx(float((predicted == target)[counted].double().mean()))
    assert found["loss"] == pytest.approx(float(pixel_loss(torch.cat(logits), target)), rel=1e-5)
    found = tally.record()["overlaps"]
    for image in range(6):
        assert torch.equal(found[image], overlaps_in_a_loop(predicted[image], target[image], kinds))


def test_absent_class_is_not_counted() -> None:
    tally = Segmentation("abc").new_results(torch.device("cpu"))
    logits = torch.tensor([[5.0, 0.0, -9.0], [0.0, 5.0, -9.0]]).reshape(2, 3, 1, 1)
    tally.update(logits, torch.tensor([[[0]], [[1]]]))
    found = tally.results()
    assert found["iou_by_class"] == {"a": 1.0, "b": 1.0, "c": None}
    assert found["miou"] == 1.0


def test_hits_are_shares_of_pixels() -> None:
    logits = torch.zeros(2, 2, 1, 4)
    logits[:, 1, 0, :2] = 1
    target = torch.tensor([[[1, 1, 0, IGNORED]], [[0, 1, 1, 0]]])
    assert Segmentation("ab").hits(logits, target).tolist() == [1.0, 0.5]


def test_bootstrap_over_images_equals_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    found, baseline = (torch.randint(0, 50, (2, 9, 3, 2), generator=generator).cumsum(-1) for _ in range(2))

    def miou(table: Tensor, chosen: list[int]) -> float:
        total = sum(table[index].double() for index in chosen)
        return float(sum(total[k, 0] / total[k, 1] for k in range(3))) / 3

    def difference(chosen: list[int]) -> float:
        return sum(miou(found[s], chosen) - miou(baseline[s], chosen) for s in range(2)) / 2

    interval = iou_bootstrap(found, baseline, resamples=2000)
    assert interval.mean == pytest.approx(difference(list(range(9))))
    draws = np.random.default_rng(1).integers(0, 9, (2000, 9)).tolist()
    low, high = np.percentile([difference(draw) for draw in draws], [2.5, 97.5])
    assert (interval.low, interval.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert iou_bootstrap(found, found).low is None


def iou_bootstrap(
    found: torch.Tensor, baseline: torch.Tensor, *, foreground: bool = False, resamples: int = 9999
) -> Estimate:
    score = partial(overlap_score, Segmentation.scores[0], foreground)
    return redrawn_bootstrap(score, found, baseline, resamples=resamples)


def test_bootstrap_of_one_class_uses_foreground() -> None:
    table = torch.tensor([[[[8, 8], [2, 2]], [[6, 10], [2, 6]]]])
    other = torch.tensor([[[[8, 8], [2, 2]], [[6, 8], [4, 6]]]])
    assert iou_bootstrap(table, other, foreground=True).mean == pytest.approx(4 / 8 - 6 / 8)


def test_undefined_bootstrap_draws_are_omitted() -> None:
    table = torch.tensor([[[[9, 9], [0, 0]]] * 9 + [[[5, 7], [2, 4]]]])
    other = torch.tensor([[[[9, 9], [0, 0]]] * 9 + [[[5, 8], [1, 4]]]])
    found = iou_bootstrap(table, other, foreground=True)
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25), "a third of the draws misses the last image"


# Training


def test_network_learns_to_label_pixels(done: Path) -> None:
    found = metrics_of(done)
    assert found["score"] == "miou"
    assert found["miou"] > 0.5
    assert list(found["iou_by_class"]) == list(CLASSES)
    assert found["miou"] == pytest.approx(sum(found["iou_by_class"].values()) / 3)
    rows = rows_of(done)
    assert rows[-1]["validation_miou"] == found["miou"]
    assert rows[-1]["validation_pixel_accuracy"] == found["pixel_accuracy"]
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_score_is_of_saved_network_on_complete_images(done: Path, folder: Path) -> None:
    model, config = load_model(done)
    assert (config["task"], config["classes"], config["image_size"]) == ("segment", list(CLASSES), [SIDE, SIDE + 4])
    dataset = load_pairs(folder, ignore_index=9)
    batches = make_batches(
        dataset.validation,
        3,
        torch.tensor(config["mean"]),
        torch.tensor(config["std"]),
        augmentation=dataset.augmentation("none"),
    )
    predicted, target = [], []
    with torch.no_grad():
        for images, labels in batches.evaluation():
            predicted.append(model(images).argmax(1))
            target.append(labels)
    a, b = torch.cat(predicted), torch.cat(target)
    counted = b != IGNORED
    assert metrics_of(done)["miou"] == pytest.approx(jaccard_score(b[counted], a[counted], average="macro"), abs=1e-6)
    saved = load_file(done / "predictions.safetensors")["overlaps"]
    assert saved.shape == (8, 3, 2)
    assert int(saved[..., 0].sum()) == int((a == b)[counted].sum())


def test_masks_of_other_data_mean_what_they_meant_in_the_training(done: Path, folder: Path, tmp_path: Path) -> None:
    """Data without the highest class, or without classes.txt, was rejected."""
    assert json.loads((done / "config.json").read_text())["masks"]["classes"] == [*CLASSES]
    for split in ("images", "masks"):
        (tmp_path / "new" / split).mkdir(parents=True)
    for number in range(24, 28):
        shutil.copy(folder / f"val/images/{number}.png", tmp_path / "new/images")
        with Image.open(folder / f"val/masks/{number}.png") as mask:
            mask.point(lambda value: 9 if value == 2 else value).save(tmp_path / f"new/masks/{number}.png")
    found = score_run(done, data=str(tmp_path / "new"))
    assert found["images"] == 4
    assert found["by_class"]["disc"]["iou"] > 0.1
    (tmp_path / "new/classes.txt").write_text("disc\nwall\n")
    with pytest.raises(DataError, match="names the mask values disc, wall, the network was trained with wall, disc"):
        score_run(done, data=str(tmp_path / "new"))


@pytest.mark.extended
@pytest.mark.parametrize(
    ("changes", "score"),
    [
        ({"foreground": "disc"}, "iou"),
        pytest.param({"model": "u2net_small", "batch_size": 4, "foreground": "square"}, "iou", marks=pytest.mark.slow),
        pytest.param({"model": "u2net_small_gct", "batch_size": 4}, "miou", marks=pytest.mark.slow),
        ({"model": f"{TINY},auxiliary=true", "class_weights": "median_frequency"}, "miou"),
        ({"model": f"{TINY},output_stride=8", "gate": "gaternet:budget=0.5", "crop_size": 16}, "miou"),
        ({"ema": 0.9, "image_size": 16, "loading": "stream", "label_smoothing": 0.1}, "miou"),
    ],
    ids=["foreground", "u2net", "gated u2net", "auxiliary", "gater", "streamed"],
)
def test_recipe_options_are_used(recipe: Recipe, tmp_path: Path, changes: dict[str, Any], score: str) -> None:
    found = train(dataclasses.replace(recipe, epochs=1, **changes), tmp_path / "run", workers=2)
    assert found["score"] == score
    assert 0 <= found[score] <= 1
    model, _ = load_model(tmp_path / "run")
    assert model(torch.randn(1, 3, 21, 33)).shape == (1, 1 if score == "iou" else 3, 21, 33)


def test_side_outputs_are_trained_with_their_weight(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weight 0 the auxiliary head would not change."""
    auxiliary = dataclasses.replace(recipe, model=f"{TINY},auxiliary=true", epochs=1, weight_decay=0.0)

    start = gw.make_model(auxiliary.spec, num_classes=3, seed=0).state_dict()["auxiliary.4.weight"]

    def moved(weight: float, out: Path) -> float:
        monkeypatch.setattr("gatewise.models.segmenter.Segmenter.side_weight", weight)
        train(auxiliary, out)
        return float((load_file(out / "model.safetensors")["auxiliary.4.weight"] - start).abs().max())

    assert moved(0.0, tmp_path / "off") == 0.0
    assert 0 < 2 * moved(1e-4, tmp_path / "hardly") < moved(0.4, tmp_path / "on")


def test_rare_classes_have_larger_weights(folder: Path) -> None:
    dataset = load_pairs(folder, ignore_index=9)
    task, plain = (Segmentation(dataset.classes, class_weights=weights) for weights in ("median_frequency", "none"))
    task.prepare(dataset)
    plain.prepare(dataset)
    frequencies = dataset.frequencies
    assert task.weights is not None
    torch.testing.assert_close(task.weights, frequencies.median() / frequencies)
    assert task.weights[0] < 1 < task.weights[1:].max()
    assert plain.weights is None


def test_class_weights_reach_loss(folder: Path) -> None:
    dataset = load_pairs(folder, ignore_index=9)
    logits, target = torch.randn(2, 3, 6, 6), masks(3, count=2)[:, :, :6].repeat(1, 2, 1)[:, :6]
    plain, weighted = (Segmentation(dataset.classes, class_weights=weights) for weights in ("none", "median_frequency"))
    weighted.prepare(dataset)
    assert not torch.isclose(plain.loss(logits, target), weighted.loss(logits, target))


class Stopping(Progress):
    """Stops a training after so many steps."""

    def __init__(self, after: int) -> None:
        super().__init__(quiet=True)
        self.left = after

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_interrupted_training_ends_as_uninterrupted_one(recipe: Recipe, tmp_path: Path, loading: str) -> None:
    chosen = dataclasses.replace(recipe, gate="gct", loading=loading)
    train(chosen, tmp_path / "uninterrupted")
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "stopped", progress=Stopping(after=6))
    train(chosen, tmp_path / "stopped", resume=True)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("uninterrupted", "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rows_of(tmp_path / "uninterrupted")[0]["loss"] == rows_of(tmp_path / "stopped")[0]["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "digits"}, "data folder 'digits' does not exist; for images with masks .* set task to classify"),
        ({"mixup": 0.5}, "mixup is 0.5, but task segment does not use it"),
        ({"task": "classify"}, "ignore_index is 9, but task classify does not use it"),
        ({"augmentation": "rand-m9"}, "is for images with one label; for masks use scale, crop and flip"),
        ({"augmentation": "scale"}, "makes images of different sizes. Add crop"),
        ({"foreground": "disk"}, "unknown foreground class 'disk'.* Did you mean 'disc'"),
        ({"model": "resnet20"}, "unknown backbone 'resnet20'. Choose a name from timm"),
        ({"model": "resnet18:output_stride=4"}, "output_stride 4"),
        ({"gate": "se@inside"}, "unknown place 'inside'"),
        ({"crop_size": 16, "augmentation": "flip"}, "crop_size is 16, but augmentation 'flip' has no crop"),
        ({"class_weights": "balanced"}, "unknown class_weights of task segment 'balanced'"),
        ({"crop_size": 2}, "crop_size must be at least 4"),
        ({"task": "detect"}, "unknown task 'detect'"),
    ],
)
def test_invalid_input_rejected_first(recipe: Recipe, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(recipe, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_masks_for_classification_error_names_task(folder: Path) -> None:
    with pytest.raises(DataError, match="set task to segment"):
        train(Recipe(data=str(folder), epochs=1), folder / "run")


# From a classifier


def test_classifier_weights_are_kept_by_name_and_rest_is_listed(tmp_path: Path) -> None:
    classifier = gw.make_model("test_resnet", num_classes=7, seed=5)
    save_file(classifier.state_dict(), tmp_path / "timm.safetensors")
    net: Any = gw.make_segmenter("test_resnet", num_classes=3, seed=0)
    transfer = load_backbone(net, tmp_path / "timm.safetensors")
    assert set(transfer.unused) == {"fc.weight", "fc.bias"}
    assert set(transfer.kept) == set(classifier.state_dict()) - {"fc.weight", "fc.bias"}
    assert {name.partition(".")[0] for name in transfer.fresh} == {"context", "head"}
    for name in transfer.kept:
        assert torch.equal(net.backbone.state_dict()[name], classifier.state_dict()[name])
    assert str(transfer).endswith("not used: fc.bias, fc.weight; new: context, head")


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_names_changed_by_timm_are_found(tmp_path: Path, name: str) -> None:
    classifier = gw.make_model(name, num_classes=7, seed=5).eval()
    save_file(classifier.state_dict(), tmp_path / "timm.safetensors")
    net: Any = gw.make_segmenter(name, num_classes=3, seed=0, output_stride=32).eval()
    load_backbone(net, tmp_path / "timm.safetensors")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(image, intermediates_only=True)[-1]  # type: ignore[operator]
        torch.testing.assert_close(net.backbone(image)[-1], expected)


def test_weights_of_another_backbone_rejected(tmp_path: Path) -> None:
    net: Any = gw.make_segmenter("test_resnet", num_classes=3)
    save_file(gw.make_model("resnet20").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"other.safetensors has no .* of the backbone's .* tensors are missing"):
        load_backbone(net, tmp_path / "other.safetensors")
    weights = gw.make_model("test_resnet").state_dict()
    name = next(name for name in weights if name.endswith("conv1.weight"))
    save_file(weights | {name: torch.zeros(1)}, tmp_path / "cut.safetensors")
    with pytest.raises(DataError, match=rf"'{re.escape(name)}' has shape \(1,\), but the backbone expects"):
        load_backbone(net, tmp_path / "cut.safetensors")


def test_training_from_classifier_reports_kept_weights(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = gw.make_model("test_resnet", num_classes=7, seed=5)
    save_file(classifier.state_dict(), tmp_path / "timm.safetensors")
    chosen = dataclasses.replace(
        recipe, epochs=1, lr=1e-8, init=str(tmp_path / "timm.safetensors"), gate="gct@before_conv"
    )
    train(chosen, tmp_path / "run", progress=Progress())
    assert "not used: fc.bias, fc.weight; new: " in capsys.readouterr().err
    saved = load_file(tmp_path / "run" / "model.safetensors")
    weights = {name: value for name, value in classifier.state_dict().items() if name.endswith("conv1.weight")}
    assert weights
    for name, value in weights.items():
        torch.testing.assert_close(saved[f"backbone.{name}"], value, atol=1e-4, rtol=0)
    again = dataclasses.replace(chosen, init=str(tmp_path / "run"))
    train(again, tmp_path / "again", progress=Progress())
    assert "not used" not in capsys.readouterr().err, "a segmenter's own weights are taken as a whole"


def test_gaters_and_segmenters_start_from_each_other(recipe: Recipe, done: Path, tmp_path: Path, folder: Path) -> None:
    gater = "gaternet:budget=0.5"
    chosen = dataclasses.replace(recipe, model=f"{TINY},output_stride=8", epochs=1, lr=1e-8)
    train(dataclasses.replace(chosen, gate=f"gc@context+{gater}", init=str(done)), tmp_path / "gated")
    before, after = (load_file(path / "model.safetensors") for path in (done, tmp_path / "gated"))
    name = "head.4.weight"
    torch.testing.assert_close(after[f"backbone.{name}"], before[name], atol=1e-4, rtol=0)
    classifier = gw.make_model(f"test_resnet+{gater}", num_classes=7, image_size=(SIDE, SIDE), seed=5)
    save_file(classifier.state_dict(), tmp_path / "gated.safetensors")
    train(dataclasses.replace(chosen, init=str(tmp_path / "gated.safetensors")), tmp_path / "plain")
    name, value = next((n, v) for n, v in classifier.state_dict().items() if n.endswith("layer1.0.conv1.weight"))
    torch.testing.assert_close(load_file(tmp_path / "plain" / "model.safetensors")[name], value, atol=1e-4, rtol=0)


def test_timm_backbone_keeps_its_normalisation(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options | {"pretrained": False}))
    chosen = dataclasses.replace(recipe, model=f"{TINY},pretrained=true", epochs=1)
    train(chosen, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    expected = create("test_resnet").pretrained_cfg["mean"]
    assert config["mean"] == pytest.approx([255 * value for value in expected])


# Comparison


@pytest.fixture(scope="session")
def compared(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatewise.comparison.run_results._ROUNDS", 2)
        gates = [parse_gates(text) for text in ("none", "gc@context", "nl@context", "snl@context", "se@context")]
        return out, compare(recipe, gates, 2, out)


def test_comparison_uses_miou(compared: tuple[Path, dict[str, Any]]) -> None:
    out, results = compared
    assert results["score"] == "miou"
    for variant in results["variants"]:
        folders = sorted((out / "runs" / variant["gates"].replace("@", "-")).iterdir())
        assert variant["miou"]["values"] == [metrics_of(run_)["miou"] for run_ in folders]
        assert variant["curves"] == [[row["validation_miou"] for row in rows_of(run_)] for run_ in folders]
        assert set(variant["latency_ms"]) == {"1", "8"}
    summary, head = [line for line in (out / "results.md").read_text().splitlines() if line][:2]
    assert "mIoU" in summary
    assert "accuracy" not in summary
    assert "mIoU % [95 % interval]" in head
    assert "8 images (ms)" in head
    assert "accuracy" not in head
    assert "Validation mIoU while training" in (out / "report.html").read_text()


def test_latency_is_for_complete_images(compared: tuple[Path, dict[str, Any]]) -> None:
    _, results = compared
    plain = gw.make_segmenter("test_resnet", num_classes=3, context="none", channels=8)
    macs = macs_per_sample(plain, torch.zeros(1, 3, SIDE, SIDE + 4))
    assert results["variants"][0]["macs"] == macs


def test_differences_over_images_use_miou(compared: tuple[Path, dict[str, Any]]) -> None:
    out, results = compared
    tables = [
        torch.stack([
            load_file(out / "runs" / name / f"seed_{seed}" / "predictions.safetensors")["overlaps"] for seed in (0, 1)
        ])
        for name in ("gc-context", "none")
    ]
    expected = iou_bootstrap(*tables)
    assert results["variants"][1]["difference_over_images"] == dataclasses.asdict(expected)
    assert expected.mean == pytest.approx(results["variants"][1]["difference"]["mean"], abs=1e-6)


# Pages


@pytest.mark.extended
def test_page_shows_pictures_classes_and_attention(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = compared
    runs = [out / "runs" / name / "seed_0" for name in ("gc-context", "nl-context", "none")]
    text = explain_runs(runs, tmp_path / "page.html", figures_in=tmp_path / "figures").read_text()
    for title in ("Validation mIoU while training", "Classes of pixels", "nl-context: attention"):
        assert f"<h2>{title}</h2>" in text
    assert text.count(": predicted masks</h2>") == 3
    assert "validation mIoU %" in text
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {"iou.svg", "pictures-none.png", "distances-nl-context.csv"} <= names
    assert not [name for name in names if name.startswith(("classes", "exchange"))], "images have no class"
    assert "between classes" not in text
    ious = (tmp_path / "figures" / "iou.csv").read_text().splitlines()
    assert ious[0] == "class,gc-context,nl-context,none"
    assert [line.partition(",")[0] for line in ious[1:]] == list(CLASSES)
    shown = float(ious[2].split(",")[3])
    assert shown == pytest.approx(metrics_of(runs[2])["iou_by_class"]["disc"])


@pytest.mark.slow
def test_page_of_segmenter_with_gater(recipe: Recipe, tmp_path: Path) -> None:
    train(dataclasses.replace(recipe, gate="gaternet:budget=0.5,gate_bias=0", epochs=1), tmp_path / "run")
    text = explain_runs([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "Which filters the gater opens" in text
    assert "typical gates of their class" not in text


def test_runs_with_different_metrics_rejected(recipe: Recipe, done: Path, tmp_path: Path) -> None:
    train(dataclasses.replace(recipe, foreground="disc", epochs=1), tmp_path / "disc")
    with pytest.raises(
        InvalidValueError, match=r"with different metrics: .* Run `gatewise explain` on each separately"
    ):
        explain_runs([done, tmp_path / "disc"], tmp_path / "page.html")


# Predictions


def test_masks_and_overlays_match_network(done: Path, folder: Path, tmp_path: Path) -> None:
    (found,) = predict(done, [folder / "val" / "images" / "30.png"], tmp_path / "out")
    picture, mask, overlay = (opened(found[kind]) for kind in ("image", "mask", "overlay"))
    assert (mask.mode, overlay.mode) == ("P", "RGB")
    assert mask.size == overlay.size == picture.size
    model, config = load_model(done)
    mean, std = (torch.tensor(config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0).float()
    with torch.no_grad():
        expected = model((pixels - mean) / std).argmax(1)[0]
    assert np.array_equal(np.array(mask), expected.numpy())
    palette = np.array(mask.getpalette()).reshape(-1, 3)[np.array(mask)]
    np.testing.assert_allclose(np.array(overlay), (np.array(picture) + palette.astype(float)) / 2, atol=1)
    for index, name in enumerate(CLASSES):
        assert found["shares"][name] == pytest.approx(float((expected == index).double().mean()))


def test_any_size_and_folder_can_be_predicted(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(dataclasses.replace(recipe, image_size=16, foreground="disc", epochs=1), tmp_path / "run")
    (tmp_path / "photos").mkdir()
    for name, size in (("a.png", (50, 31)), ("b.jpg", (17, 90))):
        scene(1)[0].resize(size).save(tmp_path / "photos" / name)
    arguments = ["predict", str(tmp_path / "run"), str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    assert run([*arguments, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [opened(line["mask"]).size for line in lines] == [(50, 31), (17, 90)]
    assert [set(line["shares"]) for line in lines] == [{"background", "disc"}] * 2
    assert run(arguments) == 0
    assert re.search(r"a.png: (background|disc) \d+\.\d %", capsys.readouterr().out)


@pytest.mark.extended
def test_classifier_predicts_most_likely_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(Recipe(epochs=1, precision="fp32", gate="gaternet"), tmp_path / "run")
    digits = gw.data.load_dataset("digits")
    picture = digits.validation.picture(3)
    picture.save(tmp_path / "three.png")
    assert run(["predict", str(tmp_path / "run"), str(tmp_path / "three.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model, config = load_model(tmp_path / "run")
    image = (digits.validation.pixels[3:4].float() - config["mean"][0]) / config["std"][0]
    with torch.no_grad():
        expected = model(image).softmax(1)[0]
    best = int(expected.argmax())
    assert len(found["classes"]) == 5
    assert next(iter(found["classes"])) == str(best)
    assert found["classes"][str(best)] == pytest.approx(float(expected[best]), rel=1e-4)
    assert 0 <= found["open_gates"] <= 1
    assert run(["predict", str(tmp_path / "run"), str(tmp_path / "three.png")]) == 0
    assert re.fullmatch(
        r".*three.png: \d \d+\.\d %(, \d \d+\.\d %){4}; \d+ % of the gates open\n", capsys.readouterr().out
    )


def _two_of_one_name(folder: Path) -> list[Path]:
    for name in ("a", "b"):
        (folder / name).mkdir()
        scene(0)[0].save(folder / name / "same.png")
    return [folder / "a" / "same.png", folder / "b" / "same.png"]


def _no_image(folder: Path) -> list[Path]:
    (folder / "notes.png").write_text("not a picture")
    return [folder / "notes.png"]


def _empty(folder: Path) -> list[Path]:
    (folder / "empty").mkdir()
    return [folder / "empty"]


def _phone(folder: Path) -> list[Path]:
    (folder / "phone").mkdir()
    (folder / "phone/._1.png").write_bytes(b"x")
    (folder / "phone/2.heic").write_bytes(b"x")
    return [folder / "phone"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (_phone, "2.heic: HEIC is not read. Save as JPEG, or leave it out."),
        (_two_of_one_name, "would write the same mask"),
        (_no_image, "notes.png: truncated or unreadable image"),
        (_empty, "contains no images"),
        (lambda folder: [folder / "gone.png"], "does not exist"),
    ],
)
def test_unpredictable_images_are_one_line(
    done: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    images: Callable[[Path], list[Path]],
    message: str,
) -> None:
    given = [str(path) for path in images(tmp_path)]
    assert run(["predict", str(done), *given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_masks_are_not_written_among_images(
    done: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "val" / "images", tmp_path / "photos")
    before = sorted(file.name for file in (tmp_path / "photos").iterdir())
    assert run(["predict", str(done), str(tmp_path / "photos"), "--out", str(tmp_path / "photos")]) == 2
    assert "Give another folder" in capsys.readouterr().err
    assert sorted(file.name for file in (tmp_path / "photos").iterdir()) == before


def test_nested_folders_are_mirrored(done: Path, tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        scene(0)[0].save(tmp_path / "photos" / name)
    found = list(predict(done, [tmp_path / "photos"], tmp_path / "out"))
    assert [Path(each["mask"]).relative_to(tmp_path / "out") for each in found] == [
        Path("a/x_mask.png"),
        Path("b/x_mask.png"),
    ]


def test_masks_need_folder(done: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(done), str(folder / "val" / "images")]) == 2
    assert "give a folder for its masks with out (--out)" in capsys.readouterr().err


def test_absent_foreground_rejected_with_its_name(recipe: Recipe, tmp_path: Path) -> None:
    chosen = dataclasses.replace(recipe, class_names="wall,disc,square,moon", foreground="moon", epochs=1)
    with pytest.raises(DataError, match="no validation mask has a pixel of moon, so IoU is not defined"):
        train(chosen, tmp_path / "run")


def test_classes_are_printed_before_first_epoch(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(dataclasses.replace(recipe, epochs=1), tmp_path / "run", progress=Progress())
    before, _, after = capsys.readouterr().err.partition("classes of pixels, 3: wall, disc, square\n")
    assert "epoch 1/1" not in before
    assert "epoch 1/1" in after


def test_salient_object_masks_are_foreground_and_background(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(20):
        picture, mask = scene(number)
        picture.save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(np.where(np.array(mask) == 1, 255, 0).astype(np.uint8)).save(
            tmp_path / "masks" / f"{number}.png"
        )
    dataset = load_pairs(tmp_path)
    assert dataset.classes == ("background", "foreground")
    assert load_pairs(tmp_path, class_names="table,cup").classes == ("table", "cup")
    assert set(dataset.train[0][1].unique().tolist()) == {0, 1}
    assert load_pairs(tmp_path, foreground="foreground").classes == ("foreground",)


def test_mask_above_classes_stops_training_with_its_name(
    recipe: Recipe, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "scenes")
    bad = tmp_path / "scenes" / "train" / "masks" / "5.png"
    Image.fromarray(np.full((SIDE, SIDE + 4), 7, dtype=np.uint8)).save(bad)
    for loading in ("memory", "stream"):
        flags = ["--ignore-index", "9", "--epochs", "1", "--batch-size", "6", "--model", TINY, "--loading", loading]
        arguments = ["train", "--task", "segment", "--data", str(tmp_path / "scenes"), *flags]
        assert run([*arguments, "--workers", "0", "--out", str(tmp_path / loading)]) == 2
        error = capsys.readouterr().err
        assert f"{bad}: value 7 in {SIDE * (SIDE + 4)} pixels; expected 0 to 2 for 3 classes" in error


CAMVID = ROOT.parent / "shared" / "data" / "camvid"


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.exists(), reason=f"{CAMVID} is not there")
def test_street_scenes_are_learned(tmp_path: Path) -> None:
    recipe = Recipe(
        task="segment", data=str(CAMVID), image_size=45, ignore_index=11, model=TINY, batch_size=16, epochs=1, lr=0.05
    )
    found = train(recipe, tmp_path / "run")
    assert len(found["iou_by_class"]) == 11
    assert found["pixel_accuracy"] > 0.4, "sky, buildings and road alone make that"
    assert not math.isnan(found["miou"])
