"""Comparisons: equal conditions for every gate, numbers that follow from the runs, nothing trained twice."""

import dataclasses
import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor

import gatewise as gw
from gatewise.comparison import compare, run_results, table
from gatewise.comparison import run as comparing
from gatewise.core.power import detectable_difference, seeds_for
from gatewise.core.run_files import run_folder
from gatewise.data import Batches
from gatewise.errors import DataError, InvalidTypeError, InvalidValueError, TrainingError, UnsavedError
from gatewise.gates.spec import format_gates, parse_gates, parse_gates_list
from gatewise.graph import place_names
from gatewise.graph.measure import macs_per_sample
from gatewise.models.serialization import load_model, read_metrics, write_metrics
from gatewise.training import Progress, Recipe, from_recipe
from gatewise.training.trackers import parse_trackers
from support.few_digits import QUICK, RECIPE, few_digits, few_rounds  # noqa: F401 - fixtures

GATES = ["se", "none", "gc@stage_end"]


@dataclasses.dataclass
class Comparison:
    """A finished comparison and the recorded calls of its runs; tests only read it."""

    out: Path
    results: dict[str, Any]
    backbones: list[dict[str, Tensor]]
    batches: list[list[float]]

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        return {variant["gates"]: variant for variant in self.results["variants"]}

    def runs(self, gates: str) -> list[Path]:
        slug = gates.replace("@", "-")
        return [self.out / "runs" / slug / f"seed_{seed}" for seed in range(2)]


@pytest.fixture(scope="module")
def done(few_rounds: None, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Return a comparison of three gates on digits with two seeds."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    backbones, batches = [], []
    build, training = from_recipe.build, Batches.training

    def recording_build(*args: Any, **options: Any) -> from_recipe.Setup:
        setup = build(*args, **options)
        model = setup.learner.plain_model
        gates = tuple(gw.gates_in(model))
        backbones.append({k: v.clone() for k, v in model.state_dict().items() if not k.startswith(gates or "-")})
        batches.append([])
        return setup

    def recording_batches(*args: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in training(*args, **options):
            batches[-1] += [*images.double().sum((1, 2, 3)).tolist(), *labels.tolist()]
            yield images, labels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_recipe, "build", recording_build)
        patch.setattr(Batches, "training", recording_batches)
        results = compare(RECIPE, [parse_gates(text) for text in GATES], 2, out)
    return Comparison(out, results, backbones, batches)


def content_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time of change and bytes of every file."""
    return {str(f): (f.stat().st_mtime_ns, f.read_bytes()) for f in sorted(folder.rglob("*")) if f.is_file()}


def test_config_without_size_is_named(done: Comparison, few_rounds: None, tmp_path: Path) -> None:
    """It was a KeyError; a person may edit the file."""
    out = shutil.copytree(done.out, tmp_path / "out")
    config = out / "runs/none/seed_0/config.json"
    values = json.loads(config.read_text())
    del values["image_size"]
    config.write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"{config} has no 'image_size'"):
        compare(RECIPE, [parse_gates(text) for text in GATES], 2, out)


def test_answer_compares_with_the_constant_answer(
    done: Comparison, few_rounds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(done.out, tmp_path / "out")
    for folder in out.glob("runs/*/seed_*"):
        write_metrics(folder, read_metrics(folder) | {"accuracy": 0.02})
    monkeypatch.setattr(comparing, "training_speeds", lambda recipes, _: dict.fromkeys(recipes, 100.0))
    found = compare(RECIPE, [parse_gates(text) for text in GATES], 2, out)
    assert found["summary"][0].startswith("This comparison decides nothing: no network was shown to be")
    assert (out / "results.md").read_text().startswith(found["summary"][0])


def test_further_scores_have_intervals_within_their_limits() -> None:
    runs = [
        {"accuracy": 0.9, "balanced_accuracy": high, "macro_f1": 0.5, "ece": low}
        for high, low in ((1.0, 0.001), (0.9, 0.09))
    ]
    found = run_results._further_scores(Recipe().task_spec.make(("a", "b")), runs)
    assert set(found) == {"balanced_accuracy", "macro_f1", "ece"}
    assert found["balanced_accuracy"]["mean"] == pytest.approx(0.95)
    assert 0 < found["ece"]["low"] < found["ece"]["mean"] < found["balanced_accuracy"]["high"] < 1
    assert found["macro_f1"] == {"mean": 0.5, "low": None, "high": None, "values": [0.5, 0.5]}


# Equal conditions


def test_gates_of_one_seed_start_from_same_backbone(done: Comparison) -> None:
    assert len(done.backbones) == 6
    first, second = done.backbones[:3], done.backbones[3:]
    for group in (first, second):
        for other in group[1:]:
            assert other.keys() == group[0].keys()
            assert all(torch.equal(other[name], group[0][name]) for name in other)
    assert not torch.equal(first[0]["conv1.weight"], second[0]["conv1.weight"])


def test_gates_of_one_seed_see_same_images_in_same_order(done: Comparison) -> None:
    assert len(done.batches[0]) == 2 * 2 * 11 * 128
    assert done.batches[0] == done.batches[1] == done.batches[2]
    assert done.batches[3] == done.batches[4] == done.batches[5]
    assert done.batches[0] != done.batches[3]


def test_every_run_has_recipe_with_its_gate_and_seed(done: Comparison) -> None:
    for gates in GATES:
        for seed, folder in enumerate(done.runs(gates)):
            assert Recipe.load(folder / "recipe.yaml") == dataclasses.replace(RECIPE, gate=gates, seed=seed)


# Numbers


def accuracies(done: Comparison, gates: str) -> list[float]:
    return [json.loads((folder / "metrics.json").read_text())["accuracy"] for folder in done.runs(gates)]


def test_written_results_equal_returned_results(done: Comparison) -> None:
    assert json.loads((done.out / "results.json").read_text()) == done.results


def test_results_match_schema(done: Comparison) -> None:
    assert set(done.results) == {
        *("schema", "recipe", "seeds", "baseline", "precision", "validation_images", "environment", "latency"),
        *("score", "level", "variants", "failed", "notes", "constant", "summary"),
        *("training", "training_speed", "calibration"),
    }
    assert done.results["score"] == "accuracy"
    assert done.results["failed"] == {}
    assert (done.results["schema"], done.results["seeds"], done.results["baseline"]) == (1, 2, "none")
    assert (done.results["precision"], done.results["validation_images"]) == ("fp32", 360)
    shared = {k: v for k, v in dataclasses.asdict(RECIPE).items() if k not in {"gate", "seed"}}
    assert done.results["recipe"] == shared
    both = {"gates", "accuracy", "parameters", "macs", "latency_ms", "training_images_per_second", "curves", "scores"}
    compared = {"difference", "difference_over_images", "p_holm", "verdict", "detectable"}
    assert list(done.variants) == GATES
    assert {name: set(variant) for name, variant in done.variants.items()} == {
        name: both if name == "none" else both | compared for name in GATES
    }


@pytest.mark.parametrize("gates", GATES)
def test_accuracy_and_its_interval_follow_from_runs(done: Comparison, gates: str) -> None:
    found, values = done.variants[gates]["accuracy"], accuracies(done, gates)
    assert found["values"] == values
    assert found["mean"] == pytest.approx(sum(values) / 2)
    share, reach = found["mean"], 12.7062 * float(stats.sem(values))
    centre, scale = math.log(share / (1 - share)), share * (1 - share)
    expected = [1 / (1 + math.exp(-centre - sign * reach / scale)) for sign in (-1, 1)]
    assert [found["low"], found["high"]] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gates", ["se", "gc@stage_end"])
def test_differences_follow_from_runs_pair_by_pair(done: Comparison, gates: str) -> None:
    found, pairs = done.variants[gates]["difference"], (accuracies(done, gates), accuracies(done, "none"))
    expected = stats.ttest_rel(*pairs)
    assert found["mean"] == pytest.approx(sum(pairs[0]) / 2 - sum(pairs[1]) / 2)
    assert found["p"] == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((max(-1, interval.low), min(1, interval.high)))


def test_p_values_are_corrected_for_number_of_tests(done: Comparison) -> None:
    compared = [variant for name, variant in done.variants.items() if name != "none"]
    p_values = sorted(variant["difference"]["p"] for variant in compared)
    corrected = sorted(variant["p_holm"] for variant in compared)
    assert corrected[0] == pytest.approx(min(1, 2 * p_values[0]))
    assert corrected[1] == pytest.approx(max(corrected[0], p_values[1]))
    for variant in compared:
        chance = "better" if variant["difference"]["mean"] > 0 else "worse"
        assert variant["verdict"] == (chance if variant["p_holm"] < 0.05 else "no difference shown")


def test_detectable_difference_is_that_of_the_verdicts_test(done: Comparison) -> None:
    for gates in ("se", "gc@stage_end"):
        found = done.variants[gates]["detectable"]
        differences = [a - b for a, b in zip(accuracies(done, gates), accuracies(done, "none"), strict=True)]
        assert found["points"] == pytest.approx(100 * detectable_difference(differences, 0.05 / 2))
        assert found["seeds_for"] == {
            "0.5": seeds_for(0.005, differences, 0.05 / 2),
            "0.25": seeds_for(0.0025, differences, 0.05 / 2),
        }


@pytest.mark.parametrize("gates", ["se", "gc@stage_end"])
def test_differences_over_images_follow_from_predictions(done: Comparison, gates: str) -> None:
    right = []
    for name in (gates, "none"):
        files = [load_file(folder / "predictions.safetensors") for folder in done.runs(name)]
        right.append(torch.stack([(file["predictions"] == file["labels"]).double() for file in files]).mean(0))
    differences = right[0] - right[1]
    found = done.variants[gates]["difference_over_images"]
    assert found["mean"] == pytest.approx(float(differences.mean()))
    assert found["mean"] == pytest.approx(done.variants[gates]["difference"]["mean"], abs=1e-6)
    reach = 1.96 * float(differences.std()) / 360**0.5
    assert found["mean"] - found["low"] == pytest.approx(reach, rel=0.25)
    assert found["high"] - found["mean"] == pytest.approx(reach, rel=0.25)


@pytest.mark.parametrize("gates", GATES)
def test_costs_and_curves_follow_from_runs(done: Comparison, gates: str) -> None:
    found = done.variants[gates]
    model, _ = load_model(done.runs(gates)[0])
    logs = [[json.loads(row) for row in (f / "log.jsonl").read_text().splitlines()] for f in done.runs(gates)]
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["macs"] == macs_per_sample(model, torch.zeros(1, 1, 8, 8))
    assert found["curves"] == [[row["validation_accuracy"] for row in rows] for rows in logs]
    assert found["training_images_per_second"] == [100.0]  # as timed in turn, not as the runs measured themselves


def test_latency_of_one_image_and_batch_has_quartiles(done: Comparison) -> None:
    for variant in done.variants.values():
        assert set(variant["latency_ms"]) == {"1", "32"}
        for latency in variant["latency_ms"].values():
            assert 0 < latency["low"] <= latency["median"] <= latency["high"]


def test_costs_of_gates_are_parameters_and_multiply_adds(done: Comparison) -> None:
    none, se = done.variants["none"], done.variants["se"]
    assert se["parameters"] > none["parameters"]
    assert se["macs"] > none["macs"]


# Files


def test_folder_holds_report_and_its_parts(done: Comparison) -> None:
    names = {file.name for file in done.out.iterdir()}
    assert names == {"runs", "results.json", "results.md", "report.html", "curves.svg", "accuracy_latency.svg"}
    curves, page = (done.out / "curves.svg").read_text(), (done.out / "report.html").read_text()
    words = re.findall(r"<text[^>]*>([^<]+)</text>", curves)
    assert {"epoch", "validation accuracy (%)", *GATES} <= set(words)
    assert all(f">{word}</text>" in page for word in words)


def test_table_has_row_for_each_gate(done: Comparison) -> None:
    shown = table(done.results)
    assert [row[0].text for row in shown.rows] == GATES
    assert {len(row) for row in shown.rows} == {len(shown.columns)}
    se = done.variants["se"]
    assert shown.rows[0][1].text.startswith(f"{100 * se['accuracy']['mean']:.2f} [")
    assert shown.rows[0][2].text.startswith(f"{100 * se['difference']['mean']:+.2f} [")
    assert [row[2].text for row in shown.rows][1] == "-"
    assert shown.columns[2] == "difference to none, over seeds"


def test_markdown_table_has_row_for_each_gate(done: Comparison) -> None:
    summary, *lines = filter(None, (done.out / "results.md").read_text().splitlines())
    assert summary == " ".join(done.results["summary"])
    assert [line.split("|")[1].strip() for line in lines] == ["gates", "---", *GATES]


# Repeated and resumed


@pytest.mark.extended
def test_repeated_comparison_only_writes_report(
    done: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(done.out, tmp_path / "out")
    runs = content_of(tmp_path / "out" / "runs")
    (tmp_path / "out" / "report.html").unlink()
    (tmp_path / "out" / "results.json").write_text("old")

    def no_model(*_: object, **__: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(from_recipe, "build", no_model)
    again = compare(RECIPE, [parse_gates(text) for text in GATES], 2, tmp_path / "out")
    assert content_of(tmp_path / "out" / "runs") == runs
    assert (tmp_path / "out" / "report.html").exists()
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == again
    without_times = [
        [{k: v for k, v in variant.items() if k != "latency_ms"} for variant in results["variants"]]
        for results in (again, done.results)
    ]
    assert without_times[0] == without_times[1]


def test_interrupted_comparison_resumes(few_digits: None, tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    class Interrupting(Progress):
        runs = 0

        def epoch(self, row: Mapping[str, Any]) -> None:  # noqa: ARG002
            self.runs += 1
            if self.runs == 3:
                raise Stop

    gates = parse_gates_list("none,se")
    with pytest.raises(Stop):
        compare(QUICK, gates, 2, tmp_path / "out", progress=Interrupting(quiet=True))
    finished = {folder: content_of(folder) for folder in (tmp_path / "out/runs").glob("*/seed_0")}
    assert len(finished) == 2
    assert not (tmp_path / "out" / "results.json").exists()
    results = compare(QUICK, gates, 2, tmp_path / "out")
    assert {folder: content_of(folder) for folder in finished} == finished
    uninterrupted = compare(QUICK, gates, 2, tmp_path / "uninterrupted")
    curves = [[variant["curves"] for variant in r["variants"]] for r in (results, uninterrupted)]
    assert curves[0] == curves[1]


@pytest.mark.extended
def test_added_seed_and_gate_reuse_existing_runs(few_digits: None, tmp_path: Path) -> None:
    compare(QUICK, parse_gates_list("none"), 1, tmp_path)
    before = content_of(tmp_path / "runs")
    compare(QUICK, parse_gates_list("none,se"), 2, tmp_path)
    after = content_of(tmp_path / "runs")
    assert {name: after[name] for name in before} == before
    assert len(list((tmp_path / "runs").glob("*/seed_*/metrics.json"))) == 4


def test_other_recipe_in_same_folder_rejected_first(few_digits: None, tmp_path: Path) -> None:
    compare(QUICK, parse_gates_list("none"), 1, tmp_path)
    before = content_of(tmp_path)
    for gates in ("none", "se,none", "se"):
        with pytest.raises(
            InvalidValueError, match=r"runs/none/seed_0 contains a run of another recipe: lr 0\.05 there, 0\.1"
        ):
            compare(dataclasses.replace(QUICK, lr=0.1), parse_gates_list(gates), 1, tmp_path)
    assert content_of(tmp_path) == before


# Choices to compare


@pytest.mark.extended
def test_without_none_first_gate_is_baseline(few_digits: None, tmp_path: Path) -> None:
    results = compare(QUICK, parse_gates_list("se,gc"), 1, tmp_path)
    se, gc = results["variants"]
    assert results["baseline"] == "se"
    assert "difference" not in se
    difference = gc["accuracy"]["mean"] - se["accuracy"]["mean"]
    assert gc["difference"] == {"mean": pytest.approx(difference), "low": None, "high": None, "p": None}
    assert (gc["p_holm"], gc["verdict"]) == (None, "no difference shown")
    assert "difference to se, over seeds" in (tmp_path / "report.html").read_text()


@pytest.mark.extended
def test_gates_of_model_are_those_of_every_variant(few_digits: None, tmp_path: Path) -> None:
    recipe = dataclasses.replace(QUICK, model="resnet20+se@stage_end", gate="gct")
    compare(recipe, parse_gates_list("gct,gc@stage_end"), 1, tmp_path)
    kinds = {
        folder.name: [type(gate).__name__ for gate in gw.gates_in(load_model(folder / "seed_0")[0]).values()]
        for folder in (tmp_path / "runs").iterdir()
    }
    assert set(kinds) == {"gct", "gc-stage_end"}
    assert kinds["gct"].count("SqueezeExcite") == 3
    assert kinds["gc-stage_end"] == ["SqueezeExcite", "GlobalContext"] * 3


@pytest.mark.extended
def test_progress_shows_run_and_number_of_runs(
    few_digits: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(QUICK, parse_gates_list("none,se"), 2, tmp_path, progress=Progress())
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run ")]
    expected = [
        "run 1 of 4: none, seed 0",
        "run 2 of 4: se, seed 0",
        "run 3 of 4: none, seed 1",
        "run 4 of 4: se, seed 1",
    ]
    assert said == expected


def test_without_progress_nothing_is_printed(
    few_digits: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    compare(QUICK, parse_gates_list("none"), 1, tmp_path)
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("resnet20+gct", "GatedChannelTransform"),
        ("resnet20+gaternet:sites=residual", "GaterNet"),
        ("gater_resnet56.gatewise", "GaterNet"),
    ],
)
def test_network_with_gates_is_no_plain_baseline(few_digits: None, tmp_path: Path, model: str, own: str) -> None:
    import gatewise.integrations.timm  # noqa: F401 - registers the third with timm

    recipe = dataclasses.replace(QUICK, model=model)
    with pytest.raises(InvalidValueError, match=rf"none would not be plain: .*\({own}\)\. .*into --gates"):
        compare(recipe, parse_gates_list("none,se"), 1, tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.extended
@pytest.mark.parametrize("trackers", ["none", "tensorboard,wandb"])
def test_command_names_other_trackers(
    few_digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trackers: str
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["wandb"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    track = parse_trackers(trackers)
    words = shlex.split(compare(QUICK, parse_gates_list("none"), 1, tmp_path, track=track)["training"]["command"])
    assert words[words.index("--track") + 1] == trackers


def test_results_say_what_was_trained(done: Comparison) -> None:
    training = done.results["training"]
    assert (training["images"], training["steps"], training["outputs"]) == (1437, 2 * 11, list("0123456789"))
    words = shlex.split(training["command"])
    assert words[:2] == ["gatewise", "compare"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given == {
        "--lr": "0.05",
        "--epochs": "2",
        "--precision": "fp32",
        "--gates": ",".join(GATES),
        "--seeds": "2",
        "--workers": "0",
        "--out": str(done.out),
    }
    page = (done.out / "report.html").read_text()
    assert "1,437 training, 360 validation" in page
    assert "22 in each training" in page
    assert "evaluated in float32" in page
    assert "Further scores" in page
    assert "expected calibration error %" in page


def test_training_speeds_are_compared_only_if_timed_in_turn(done: Comparison) -> None:
    assert table(done.results).columns[-1] == "training images/s"
    untimed = {key: value for key, value in done.results.items() if key != "training_speed"}
    assert "training images/s" not in table(untimed).columns


def test_distinct_gates_have_distinct_folders(tmp_path: Path) -> None:
    texts = [
        "none",
        *(
            f"{name}{place}"
            for name in gw.gate_names()
            for place in ["", *(f"@{p}" for p in place_names(marked=False))]
        ),
    ]
    texts += ["gct:mode=l1", "gct:mode=l2", "gct:mode=1.5", "gct:mode=15.0", "gct:eps=1e-4", "gct:eps=1e-5"]
    texts += ["gct:mode=l1,eps=1e-4", "gct:mode=l1@inner", "gct+se", "se+gct", "gct+se@inner", "gct@inner+se"]
    texts += ["gct:after_relu=true", "gct:after_relu=false", "se:rd_ratio=1/4", "se:rd_divisor=4", "se:rd_channels=4"]
    folders = [run_folder(tmp_path, format_gates(parse_gates(text)), 0) for text in texts]
    assert len(set(map(str, folders))) == len(texts)
    assert {folder.parent.parent for folder in folders} == {tmp_path / "runs"}
    for folder in folders:
        folder.mkdir(parents=True)


@pytest.mark.parametrize(
    ("gates", "seeds", "error", "message"),
    [
        ("none", 0, InvalidValueError, "seeds must be at least 1, got 0"),
        ("none", 1.5, InvalidTypeError, r"seeds must be an integer, got 1\.5"),
        ("", 1, InvalidValueError, "no gates"),
    ],
)
def test_empty_comparison_rejected(
    tmp_path: Path, gates: str, seeds: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compare(QUICK, [parse_gates(text) for text in gates.split(",") if text], seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Tuning, options, places


@pytest.mark.extended
def test_seeds_tune_own_network_in_two_stages_and_plain_in_one(few_digits: None, tmp_path: Path) -> None:
    gates = [parse_gates(text) for text in ("none", "gct")]
    compare(QUICK, gates[:1], 2, tmp_path / "plain")
    init = f"{tmp_path}/plain/runs/none/seed_{{seed}}"
    tuning = dataclasses.replace(QUICK, init=init, epochs=2, gate_epochs=2, lr=0.01)
    compare(tuning, gates, 2, tmp_path / "tuned")
    for seed in (0, 1):
        before = load_file(tmp_path / f"plain/runs/none/seed_{seed}/model.safetensors")
        gated, plain = (
            load_file(tmp_path / f"tuned/runs/{name}/seed_{seed}/model.safetensors") for name in ("gct", "none")
        )
        assert all(torch.equal(gated[name], before[name]) for name in before)
        assert not any(torch.equal(plain[name], before[name]) for name in before)


@pytest.mark.slow
def test_options_and_places_are_compared_like_gates(few_digits: None, tmp_path: Path) -> None:
    text = "gct,gct:mode=l1,gct:activation=sigmoid,gct@residual_end,se,se@before_conv,gct:mode=l1,eps=1e-4"
    results = compare(QUICK, parse_gates_list(text), 1, tmp_path / "out")
    names = [variant["gates"] for variant in results["variants"]]
    assert names == [*text.split(",")[:6], "gct:mode=l1,eps=0.0001"]
    assert results["baseline"] == "gct"
    sites = {name: len(gw.gates_in(load_model(next(tmp_path.glob(f"out/runs/{slug}/seed_0")))[0]))
             for name, slug in zip(names, ("gct", "gct--mode=l1", "gct--activation=sigmoid", "gct-residual_end", "se",
                                           "se-before_conv"), strict=False)}  # fmt: skip
    assert list(sites.values()) == [21, 21, 21, 9, 9, 21]


@pytest.mark.extended
def test_diverging_run_is_listed_and_others_are_compared(
    few_digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = comparing.train

    def diverging(recipe: Recipe, *args: Any, **options: Any) -> Any:
        if recipe.gate == "se" and recipe.seed == 1:
            raise TrainingError("the loss is nan at step 1 of epoch 1")
        return original(recipe, *args, **options)

    monkeypatch.setattr(comparing, "train", diverging)
    results = compare(QUICK, parse_gates_list("none,se,gct"), 2, tmp_path)
    assert [variant["gates"] for variant in results["variants"]] == ["none", "gct"]
    assert results["failed"] == {"se": "seed 1: the loss is nan at step 1 of epoch 1"}
    assert "Failed: se" in (tmp_path / "report.html").read_text()
    with pytest.raises(TrainingError, match="se, seed 1: the loss is nan"):
        compare(QUICK, parse_gates_list("se"), 2, tmp_path)


def test_initial_weights_are_checked_first(few_digits: None, tmp_path: Path) -> None:
    (tmp_path / "seed_0").mkdir()
    recipe = dataclasses.replace(QUICK, init=f"{tmp_path}/seed_{{seed}}")
    with pytest.raises(DataError, match="seed_1' does not exist"):
        compare(recipe, parse_gates_list("none"), 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_of_run_rejected(few_digits: None, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InvalidValueError, match="is the folder of a single run"):
        compare(QUICK, parse_gates_list("none"), 1, tmp_path)


def test_damaged_predictions_are_named(few_digits: None, tmp_path: Path) -> None:
    compare(QUICK, parse_gates_list("none"), 1, tmp_path)
    with (tmp_path / "runs" / "none" / "seed_0" / "predictions.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"predictions\.safetensors is not a valid safetensors file"):
        compare(QUICK, parse_gates_list("none"), 1, tmp_path)


def test_runs_of_two_precisions_are_not_compared(done: Comparison, tmp_path: Path) -> None:
    """The value of "auto" depends on the machine: a comparison resumed elsewhere mixed two precisions silently."""
    shutil.copytree(done.out, tmp_path / "out")
    folder = tmp_path / "out" / "runs" / "se" / "seed_1"
    write_metrics(folder, {**read_metrics(folder), "precision": "bf16"})
    with pytest.raises(InvalidValueError, match=r"fp32 \(.*\) and bf16 \(se, seed 1\), which compares machines"):
        compare(RECIPE, [parse_gates(text) for text in GATES], 2, tmp_path / "out")


def of_two_processes(folder: Path) -> None:
    metrics = read_metrics(folder)
    write_metrics(folder, {**metrics, "environment": {**metrics["environment"], "processes": "2"}})


def test_runs_of_one_and_two_processes_are_not_compared(done: Comparison, tmp_path: Path) -> None:
    """BatchNorm sees half of each batch with two processes, so a comparison of both compares launches."""
    out = shutil.copytree(done.out, tmp_path / "out")
    choices = [parse_gates(text) for text in GATES]
    of_two_processes(out / "runs/none/seed_0")
    with pytest.raises(InvalidValueError, match=r"in fp32 \(.*\) and fp32, 2 processes \(none, seed 0\), which"):
        compare(RECIPE, choices, 2, out)
    message = r"none/seed_0 was trained by 2 processes, .* by 1, .* with torchrun --nproc-per-node 2, or choose another"
    with pytest.raises(InvalidValueError, match=message):
        compare(RECIPE, choices, 3, out)
    assert not list(out.glob("runs/*/seed_2")), "checked before the first training"


def test_finished_runs_of_two_processes_are_compared_by_one(done: Comparison, few_rounds: None, tmp_path: Path) -> None:
    out = shutil.copytree(done.out, tmp_path / "out")
    for folder in out.glob("runs/*/seed_*"):
        of_two_processes(folder)
    assert compare(RECIPE, [parse_gates(text) for text in GATES], 2, out)["environment"]["processes"] == "2"


def test_unwritable_results_error_says_runs_are_kept(done: Comparison, tmp_path: Path) -> None:
    shutil.copytree(done.out, tmp_path / "out")
    (tmp_path / "out" / "results.json").unlink()
    (tmp_path / "out" / "results.json").mkdir()
    with pytest.raises(UnsavedError, match="All runs are saved; then run the same command again"):
        compare(RECIPE, [parse_gates(text) for text in GATES], 2, tmp_path / "out")
