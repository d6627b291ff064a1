"""Fine-tuning: initial weights, an optional first stage for the gates, and an optional moving average."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gatewise as gw
from gatewise.data import Batches, Dataset, seed_generators
from gatewise.errors import DataError, InvalidValueError
from gatewise.models.serialization import load_model
from gatewise.models.weights import load_weights
from gatewise.training import Recipe, initial, learner, train
from gatewise.training.from_recipe import build
from support.small_runs import DATASET, RECIPE, SHIFT, Interrupting, Stop, equal, log, trained, weights

TUNED = dataclasses.replace(RECIPE, gate="gct", epochs=3, gate_epochs=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a plain network that is trained already; tests only read it."""
    out = tmp_path_factory.mktemp("fine-tuning") / "plain"
    trained(out)
    return out


def is_gate(name: str) -> bool:
    return ".gct." in name


# Initial weights


def test_run_starts_from_weights_of_other_run(plain: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, init=str(plain), epochs=1, lr=1e-8)
    found, before = trained(tmp_path / "run", recipe), weights(plain)
    for name in before:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(found[name], before[name], atol=1e-6, rtol=0)


def test_gates_missing_in_weights_start_fresh_as_identity(plain: Path, tmp_path: Path) -> None:
    model = gw.make_model("resnet20+gct", num_classes=3, in_chans=1)
    config = load_weights(model, plain).config
    assert config["classes"] == ["a", "b", "c"]
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(model.eval()(x), load_model(plain)[0](x))


def test_plain_weights_file_is_accepted(plain: Path, tmp_path: Path) -> None:
    save_file(weights(plain), tmp_path / "weights.safetensors")
    files = (str(plain), str(tmp_path / "weights.safetensors"))
    recipes = [dataclasses.replace(RECIPE, init=file, epochs=1) for file in files]
    first, second = (trained(tmp_path / f"run{i}", recipe) for i, recipe in enumerate(recipes))
    assert equal(first, second)


def test_name_of_weights_may_contain_seed() -> None:
    assert Recipe(init="runs/none/seed_{seed}", seed=3).initial_weights == "runs/none/seed_3"
    assert Recipe().initial_weights is None


def test_images_are_normalised_as_for_initial_weights(plain: Path, tmp_path: Path) -> None:
    brighter = DATASET.train.pixels // 2 + 100
    dataset = dataclasses.replace(DATASET, train=dataclasses.replace(DATASET.train, pixels=brighter))
    train(dataclasses.replace(RECIPE, init=str(plain), epochs=1), tmp_path / "run", dataset=dataset)
    assert load_model(tmp_path / "run")[1]["mean"] == load_model(plain)[1]["mean"]
    train(dataclasses.replace(RECIPE, epochs=1), tmp_path / "fresh", dataset=dataset)
    assert load_model(tmp_path / "fresh")[1]["mean"] == dataset.statistics()[0].tolist()


def test_pretrained_timm_networks_keep_their_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gw.make_model("resnet18", num_classes=3)
    coloured = Dataset("", ("a", "b", "c"), *[_coloured()] * 2, padding=1, flip=True)
    recipe = Recipe(model="resnet18:pretrained=true")
    mean, std = initial._normalisation(recipe.spec, model, {}, coloured)
    torch.testing.assert_close(mean, 255 * torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(std, 255 * torch.tensor([0.229, 0.224, 0.225]))
    assert torch.equal(
        initial._normalisation(Recipe(model="resnet18").spec, model, {}, coloured)[0], coloured.statistics()[0]
    )


def _coloured() -> Any:
    return dataclasses.replace(DATASET.train, pixels=DATASET.train.pixels.expand(-1, 3, -1, -1).contiguous())


@pytest.mark.parametrize(
    ("spec", "message"),
    [("resnet32", "does not fit the network. .*missing \\("), ("resnet20_wider", "does not fit the network")],
)
def test_weights_of_another_network_rejected(plain: Path, tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, model=spec, init=str(plain)))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_damaged_and_missing_weights_rejected(plain: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((plain / name).read_bytes())
    content = bytearray((plain / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        load_weights(nn.Linear(1, 1), tmp_path)
    with pytest.raises(DataError, match="'nowhere' does not exist"):
        load_weights(nn.Linear(1, 1), "nowhere")


# Two stages


def test_first_stage_trains_only_gates_and_no_statistics(plain: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TUNED, init=str(plain), epochs=1)
    found, before = trained(tmp_path / "run", recipe), weights(plain)
    assert all(torch.equal(found[name], before[name]) for name in before)
    assert any(float(value.abs().max()) > 0 for name, value in found.items() if name.endswith(".gamma"))


def test_second_stage_trains_everything(plain: Path, tmp_path: Path) -> None:
    found, before = trained(tmp_path / "run", dataclasses.replace(TUNED, init=str(plain))), weights(plain)
    assert all(not torch.equal(found[name], before[name]) for name in before)


def by_hand(recipe: Recipe, plain: Path) -> nn.Module:
    """Tune in two stages in the plainest way, with the public functions."""
    model = gw.make_model("resnet20", num_classes=3, in_chans=1)
    model.load_state_dict(weights(plain))
    gw.insert_gates(model, "gct")
    model = model.to(memory_format=torch.channels_last)
    batches = Batches(DATASET.train, recipe.batch_size, *DATASET.statistics())
    for stage in gw.fine_tuning_stages(recipe.epochs, recipe.gate_epochs):
        stage.begin(model)
        groups = gw.parameter_groups(model, recipe.weight_decay)
        optimizer = torch.optim.SGD(groups, lr=1, momentum=recipe.momentum, nesterov=True)
        steps = len(stage.epochs) * batches.steps
        for epoch in stage.epochs:
            model.train()
            for step, (images, labels) in enumerate(batches.training(epoch, seed=recipe.seed, augmentation=SHIFT)):
                for group in optimizer.param_groups:
                    done = (epoch - stage.epochs.start) * batches.steps
                    group["lr"] = recipe.schedule.rate(done + step, steps)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
    return model


def test_two_stages_equal_plain_functions(plain: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TUNED, init=str(plain), epochs=4, gate_epochs=2)
    found = trained(tmp_path / "run", recipe)
    for name, expected in by_hand(recipe, plain).state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)


def test_rate_warms_up_again_in_second_stage(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TUNED, epochs=4, gate_epochs=2)
    trained(tmp_path / "run", recipe)
    assert [row["lr"] for row in log(tmp_path / "run")] == pytest.approx([
        recipe.schedule.rate(step, 6) for step in (2, 5, 2, 5)
    ])


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_two_stages_are_unchanged_by_interruption(tmp_path: Path, epoch: int) -> None:
    with pytest.raises(Stop):
        trained(tmp_path / "resumed", TUNED, progress=Interrupting(epoch))
    assert equal(trained(tmp_path / "resumed", TUNED, resume=True), trained(tmp_path / "uninterrupted", TUNED))


def test_gates_only_training_is_possible(plain: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TUNED, init=str(plain), epochs=2, gate_epochs=2)
    found, before = trained(tmp_path / "run", recipe), weights(plain)
    assert all(torch.equal(found[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate_epochs": 4}, r"gate_epochs \(4\) must not exceed epochs \(3\)"),
        ({"gate_epochs": -1}, "gate_epochs must be at least 0, got -1"),
    ],
)
def test_invalid_stages_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        dataclasses.replace(TUNED, **changes)


def test_stage_for_gates_needs_gates(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="gate_epochs is 1, but there are no gates with parameters to train"):
        trained(tmp_path / "run", dataclasses.replace(TUNED, gate="none"))
    assert not (tmp_path / "run").exists()


def test_network_without_gates_has_one_stage_in_comparison() -> None:
    recipe = dataclasses.replace(RECIPE, epochs=3)
    tuned = dataclasses.replace(recipe, gate="se", gate_epochs=2)
    assert tuned.of_comparison("none", 4) == dataclasses.replace(recipe, seed=4)
    assert tuned.of_comparison("gct", 1) == dataclasses.replace(tuned, gate="gct", seed=1)


# Moving average and mixtures


def test_moving_average_is_evaluated_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, Tensor]] = []
    step = learner.Learner.step

    def recording(self: learner.Learner, *args: Any) -> Any:
        result = step(self, *args)
        states.append(copy.deepcopy(self.plain_model.state_dict()))
        return result

    monkeypatch.setattr(learner.Learner, "step", recording)
    recipe = dataclasses.replace(RECIPE, ema=0.5)
    found = trained(tmp_path / "run", recipe)
    average = {name: value.clone() for name, value in states[0].items()}
    for index, state in enumerate(states[1:], 1):
        decay = min(0.5, 1 - (1 + index) ** (-2 / 3))
        for name, value in state.items():
            average[name] = value if value.dtype == torch.long else average[name].lerp(value, 1 - decay)
    for name, expected in average.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)
    saved = load_file(tmp_path / "run" / "predictions.safetensors")["predictions"]
    model, config = load_model(tmp_path / "run")
    pixels = (DATASET.validation.pixels - torch.tensor(config["mean"])[0]) / torch.tensor(config["std"])[0]
    assert (model(pixels).argmax(1) != saved).sum() <= 1


@pytest.mark.extended
@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9},
        {"optimizer": "lamb", "lr": 0.005},
        {"mixup": 0.4, "cutmix": 1.0},
        {"augmentation": "shift+rand-m9-mstd0.5"},
        {"gate": "gaternet:budget=0.5"},
    ],
    ids=str,
)
def test_optional_techniques_are_unchanged_by_interruption(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = dataclasses.replace(RECIPE, **changes)
    with pytest.raises(Stop):
        trained(tmp_path / "resumed", recipe, progress=Interrupting(2))
    assert equal(trained(tmp_path / "resumed", recipe, resume=True), trained(tmp_path / "uninterrupted", recipe))


def test_mixup_mixes_images_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(RECIPE, mixup=0.4, label_smoothing=0.1)
    network = build(recipe.plan(), DATASET).learner
    network.begin(recipe.stages[0])
    seen: list[tuple[Tensor, Tensor]] = []
    loss = network.task.loss
    monkeypatch.setattr(
        network.task, "loss", lambda logits, targets: seen.append((logits, targets)) or loss(logits, targets)
    )
    images, labels = next(Batches(DATASET.train, 16, *DATASET.statistics()).training(0, seed=0, augmentation=SHIFT))
    network.step(images.clone(), labels, 0.1, 5)
    ((_, targets),) = seen
    assert targets.shape == (16, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    one_hot = nn.functional.one_hot(labels, 3).float()
    share = ((targets - one_hot.flip(0)) / (one_hot - one_hot.flip(0))).nan_to_num(nan=-1, posinf=-1, neginf=-1)
    assert len(share[share >= 0].round(decimals=4).unique()) == 1  # one share for the batch, smoothing not in it


def test_mixup_depends_on_seed() -> None:
    import numpy as np

    draws = []
    for seed in (0, 1):
        seed_generators((seed << 32) + 5)
        draws.append(np.random.rand())
    assert draws[0] != draws[1]


@pytest.mark.parametrize("words", [{"mixup": 0.2}, {"cutmix": 1.0}], ids=str)
def test_odd_batch_rejected_by_mixup(words: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="batch_size must be even, got 15"):
        dataclasses.replace(RECIPE, batch_size=15, **words)
    odd = dataclasses.replace(DATASET.train, pixels=DATASET.train.pixels[:7], labels=DATASET.train.labels[:7])
    few = dataclasses.replace(DATASET, train=odd)
    with pytest.raises(InvalidValueError, match="got a batch of 7 for 1"):
        train(dataclasses.replace(RECIPE, **words), tmp_path / "run", dataset=few)


def test_tuned_run_has_usual_metrics(plain: Path, tmp_path: Path) -> None:
    trained(tmp_path / "run", dataclasses.replace(TUNED, init=str(plain)))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    model = load_model(tmp_path / "run")[0]
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert sum(is_gate(name) for name, _ in model.named_parameters()) == 3 * 21


def test_gates_without_parameters_have_no_stage(tmp_path: Path) -> None:
    net = gw.make_model("resnet20+ge")
    with pytest.raises(InvalidValueError, match="its gates have no parameters"):
        gw.train_only_gates(net)
    with pytest.raises(InvalidValueError, match="there are no gates with parameters to train"):
        trained(tmp_path / "run", dataclasses.replace(RECIPE, gate="ge", gate_epochs=1))
    assert not (tmp_path / "run").exists()
    staged = dataclasses.replace(RECIPE, gate_epochs=1)
    stages = {gate: staged.of_comparison(gate, 0).gate_epochs for gate in ("none", "ge", "lrn", "gct", "gct+ge")}
    assert stages == {"none": 0, "ge": 0, "lrn": 0, "gct": 1, "gct+ge": 1}


def test_gates_trained_with_other_options_rejected(tmp_path: Path) -> None:
    one = dataclasses.replace(RECIPE, epochs=1)
    trained(tmp_path / "l2", dataclasses.replace(one, gate="gct"))
    start = {"init": str(tmp_path / "l2"), "epochs": 1}
    with pytest.raises(InvalidValueError, match=r"with gct and options \{'mode': 'l2'\}, got \{'mode': 'l1'\}"):
        trained(tmp_path / "l1", dataclasses.replace(RECIPE, gate="gct:mode=l1", **start))
    found = trained(tmp_path / "more", dataclasses.replace(RECIPE, gate="gct+se", lr=1e-8, **start))
    old = load_file(tmp_path / "l2" / "model.safetensors")
    torch.testing.assert_close(found["conv1.gct.alpha"], old["conv1.gct.alpha"], atol=1e-6, rtol=0)
    assert any(".se." in name for name in found)
