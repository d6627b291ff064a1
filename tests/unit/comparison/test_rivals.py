"""Rivals: plain networks of equal cost, chosen once before the trainings, and verdicts against them."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gatewise as gw
from gatewise.comparison import compare, rivals, table
from gatewise.comparison.rival_rows import RivalRows, missing_rivals
from gatewise.comparison.rivals import RIVALS, Rival, choose_rivals, parse_costs
from gatewise.comparison.verdicts import judged
from gatewise.core import statistics
from gatewise.errors import InvalidValueError
from gatewise.gates.spec import parse_gates_list
from gatewise.graph.measure import Latency, macs_per_sample, parameter_count
from gatewise.training import Recipe
from gatewise.training.tasks.base import ACCURACY
from support.few_digits import QUICK, few_digits, few_rounds, first_digits  # noqa: F401 - fixtures

MODEL = "resnet20_wider:parameters=20000"
TINY = dataclasses.replace(QUICK, model=MODEL)


def built(network: str) -> nn.Module:
    return gw.make_model(network, num_classes=10, in_chans=1)


def millions(network: str) -> float:
    return macs_per_sample(built(network), torch.zeros(1, 1, 8, 8)) / 1e6


@pytest.fixture
def latency_is_parameters(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let a parameter take a microsecond, of which a gate's take 100; return the names of what was timed."""
    timed: list[list[str]] = []

    def latency(models: Mapping[str, nn.Module], *_: Any, **__: Any) -> dict[str, Latency]:
        timed.append(list(models))
        seconds = {}
        for name, net in models.items():
            of_gates = sum(parameter_count(gate) for gate in gw.gates_in(net).values())
            seconds[name] = 1e-6 * (parameter_count(net) + 99 * of_gates)
        return {name: Latency(value, value, value, (value, value)) for name, value in seconds.items()}

    monkeypatch.setattr(rivals.measure, "inference_latency", latency)
    return timed


def test_rival_has_the_cost_of_the_network_with_gates(tmp_path: Path) -> None:
    (nl,) = choose_rivals(Recipe(), ["none", "nl"], ["params"], first_digits(), tmp_path)
    assert nl.of_gates == parameter_count(built("resnet20+nl"))
    assert nl.of_network == parameter_count(built(nl.network)) == pytest.approx(nl.of_gates, rel=0.01)
    assert nl.network.startswith("resnet20_wider:parameters=")


@pytest.mark.extended
def test_expected_cost_of_a_gaternet_follows_its_budget(tmp_path: Path) -> None:
    gates = ["gaternet:budget=0.4", "gaternet:budget=1"]
    some, everything = choose_rivals(TINY, gates, ["macs"], first_digits(), tmp_path)
    net: Any = gw.make_model(f"{MODEL}+gaternet:budget=0.4", num_classes=10, in_chans=1, image_size=(8, 8))
    assert some.of_gates < everything.of_gates == net.dense_macs + net.gater_macs
    drawn = (torch.rand(999, net.gate_count) < 0.4).float()
    assert some.of_gates == pytest.approx(float(net.executed_macs(drawn).mean()), rel=0.02)
    assert some.of_network == 1e6 * millions(some.network) < 1e6 * millions(MODEL)


def test_network_within_two_percent_is_taken_as_it_is(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "nearest_width", lambda *_, **__: pytest.fail("other widths were searched"))
        gct, se = choose_rivals(TINY, ["none", "gct", "se"], ["macs"], first_digits(), tmp_path)
    assert (gct.network, se.network) == (MODEL, MODEL)
    first, second = choose_rivals(TINY, ["nl", "nl:rd_ratio=0.495"], ["params"], first_digits(), tmp_path)
    assert first.of_gates != second.of_gates
    assert first.network == second.network != MODEL


def test_latency_rival_is_timed_in_turn_with_its_gate(tmp_path: Path, latency_is_parameters: list[list[str]]) -> None:
    (rival,) = choose_rivals(TINY, ["gct"], ["latency"], first_digits(), tmp_path)
    plain, gated = (parameter_count(built(network)) for network in (MODEL, f"{MODEL}+gct"))
    assert rival.of_gates == pytest.approx(1e-3 * (gated + 99 * (gated - plain)))
    assert rival.of_network == pytest.approx(rival.of_gates, rel=0.02)
    assert rival.of_network == pytest.approx(1e-3 * parameter_count(built(rival.network)))
    assert set(rival.quartiles) == {"gates", "network", "ratio"}
    assert all(pair == ["gates", "network"] for pair in latency_is_parameters)


def test_rivals_are_chosen_once(tmp_path: Path, latency_is_parameters: list[list[str]]) -> None:
    said: list[str] = []
    first = choose_rivals(TINY, ["none", "gct"], ["latency"], first_digits(), tmp_path, said.append)
    measurements, content = len(latency_is_parameters), (tmp_path / RIVALS).read_text()
    assert said == [rivals.describe(first[0])]
    assert first[0].network in content
    again = choose_rivals(TINY, ["none", "gct"], ["latency"], first_digits(), tmp_path, said.append)
    assert again == first
    assert (len(said), len(latency_is_parameters)) == (1, measurements)
    more = choose_rivals(TINY, ["none", "gct", "se"], ["latency", "params"], first_digits(), tmp_path, said.append)
    assert more[0] == first[0]
    assert len(more) == len(said) == 4
    with pytest.raises(InvalidValueError, match=r"rivals for other trainings: model .*Choose another --out"):
        choose_rivals(Recipe(), ["gct"], ["latency"], first_digits(), tmp_path)


def test_gate_that_no_width_matches_has_no_rival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "widths_of", lambda plain, **_: lambda *_: plain)
    (nl,) = choose_rivals(TINY, ["nl"], ["params"], first_digits(), tmp_path)
    assert (nl.network, nl.of_network) == ("", None)
    assert nl.why.startswith(f"no width of {MODEL} is that near; {MODEL} costs 0.")


def test_network_without_widths_is_named_and_left_out(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, model="vgg11")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "build_model", lambda run, _: gw.make_model(f"resnet20+{run.gate}"))
        patch.setattr(rivals, "without_values", lambda *_: gw.make_model("resnet20"))
        chosen = choose_rivals(recipe, ["none", "nl"], ["params"], first_digits(), tmp_path)
    assert chosen[0].network == ""
    assert chosen[0].of_network is None
    assert rivals.describe(chosen[0]) == "rival of nl by parameters: none, vgg11 takes no option for its width"
    assert RivalRows.among(["none", "nl"], chosen, "vgg11").rows == ["none", "nl"]


@pytest.mark.parametrize(
    ("change", "start"), [({"init": "weights"}, "init"), ({"model": "resnet18:pretrained=true"}, "pretrained")]
)
def test_rival_of_trained_weights_is_not_fair(change: dict[str, Any], start: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=f"{start} is .*Omit --rivals"):
        choose_rivals(dataclasses.replace(TINY, **change), ["gct"], ["params"], first_digits(), tmp_path)


def test_unknown_cost_is_an_error() -> None:
    with pytest.raises(InvalidValueError, match=r"rivals.*'mac'.*Did you mean 'macs'"):
        parse_costs("params,mac")
    assert parse_costs("macs, macs,params") == ("macs", "params")


def test_verdicts_against_rivals_are_a_family_of_their_own() -> None:
    rows = RivalRows(["none", "gct", "se"], {"gct": {"macs": "small", "latency": "wide"}, "se": {"params": "small"}})
    scores = {
        "none": [0.50, 0.51, 0.52, 0.51],
        "small": [0.50, 0.51, 0.52, 0.50],
        "gct": [0.60, 0.61, 0.622, 0.60],
        "wide": [0.70, 0.71, 0.72, 0.703],
        "se": [0.50, 0.52, 0.51, 0.50],
    }
    judged = rows.judge(scores, ACCURACY, "none", {})
    verdicts = [judged["gct"]["macs"], judged["gct"]["latency"], judged["se"]["params"]]
    assert [one["verdict"] for one in verdicts] == ["better", "worse", "no difference shown"]
    assert judged["gct"]["latency"]["difference"]["mean"] == pytest.approx(-0.10025)
    assert (
        rows.judge(scores, dataclasses.replace(ACCURACY, higher_is_better=False), "none", {})["gct"]["latency"][
            "verdict"
        ]
        == "better"
    )
    corrected = statistics.holm([one["difference"]["p"] for one in verdicts])
    assert [one["p_holm"] for one in verdicts] == pytest.approx(corrected)


def test_plain_network_as_rival_has_one_verdict() -> None:
    rows = RivalRows(["none", "se"], {"se": {"macs": "none", "params": "wide"}})
    scores = {
        "none": [0.50, 0.51, 0.52, 0.50],
        "se": [0.504, 0.512, 0.528, 0.506],
        "wide": [0.524, 0.533, 0.548, 0.526],
    }
    verdicts = judged({name: scores[name] for name in ("none", "se")}, "none", ACCURACY)
    against = rows.judge(scores, ACCURACY, "none", verdicts)["se"]
    assert against["macs"] == {
        "gates": "none",
        **{key: verdicts["se"][key] for key in ("difference", "p_holm", "verdict")},
    }
    assert against["macs"]["verdict"] == "better"
    assert against["params"]["p_holm"] == against["params"]["difference"]["p"] < verdicts["se"]["p_holm"]


def test_rows_without_finished_trainings_are_no_rivals() -> None:
    rows = RivalRows(["none", "gct", "se"], {"gct": {"macs": "a", "latency": "b"}, "se": {"macs": "a"}})
    assert rows.rival_of("a") == {"gct": ["macs"], "se": ["macs"]}
    left = rows.of_finished({"none", "gct", "b"})
    assert left == RivalRows(["none", "gct"], {"gct": {"latency": "b"}})
    assert left.rival_of("a") == {}


@pytest.fixture(scope="module")
def compared(few_rounds: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the results of a comparison with rivals."""
    out = tmp_path_factory.mktemp("rivals") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatewise.data.load.load_dataset", lambda *_: first_digits())
        gates = parse_gates_list("none,se,gaternet:budget=0.5,gater=resnet20")
        return out, compare(TINY, gates, 2, out, rivals=["params"])


@pytest.mark.extended
def test_rivals_are_trained_and_judged(compared: tuple[Path, dict[str, Any]]) -> None:
    out, results = compared
    rows = {variant["gates"]: variant for variant in results["variants"]}
    gater = "gaternet:budget=0.5,gater=resnet20"
    network = rows[gater]["rivals"]["params"]
    assert list(rows) == ["none", "se", gater, network]
    assert rows[network]["rival_of"] == {gater: ["params"]}
    assert "verdict" not in rows[network]
    assert rows["se"]["rivals"] == {"params": "none"}
    assert rows["none"]["rival_of"] == {"se": ["params"]}
    assert rows[network]["parameters"] == pytest.approx(rows[gater]["parameters"], rel=0.02)
    assert rows["se"]["against_rivals"]["params"]["difference"] == rows["se"]["difference"]
    against = rows[gater]["against_rivals"]["params"]
    means = [rows[name]["accuracy"]["mean"] for name in (gater, network)]
    assert against["difference"]["mean"] == pytest.approx(means[0] - means[1])
    recipe = Recipe.load(next((out / "runs").glob("resnet20_wider*/seed_1/recipe.yaml")))
    assert (recipe.model, recipe.gate, recipe.seed) == (network, "none", 1)
    shown = table(results)
    assert shown.columns[:2] == ["gates", "rival of"]
    assert "against rivals of equal cost" in shown.columns
    assert shown.rows[3][1].text == f"{gater} (params)"
    page = (out / "report.html").read_text()
    assert "Rivals of equal cost" in page
    assert network in page


@pytest.mark.extended
def test_missing_rival_of_a_gaternet_is_said(compared: tuple[Path, dict[str, Any]]) -> None:
    out, results = compared
    sentence = results["summary"][-1]
    assert sentence.startswith("gaternet:budget=0.5")
    assert "add --rivals macs" in sentence
    assert sentence in re.sub("<[^>]+>", "", (out / "report.html").read_text())
    tried = [dataclasses.asdict(Rival("gaternet:budget=0.5,gater=resnet20", "macs", "", 1.0))]
    assert missing_rivals({**results, "chosen_rivals": tried}) == []


@pytest.mark.extended
def test_comparison_continues_with_its_rivals(compared: tuple[Path, dict[str, Any]], few_digits: None) -> None:
    out, results = compared
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*/metrics.json")}
    chosen = json.loads((out / RIVALS).read_text())
    again = compare(TINY, parse_gates_list("none,se,gaternet:budget=0.5,gater=resnet20"), 2, out, rivals=["params"])
    assert {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*/metrics.json")} == before
    assert json.loads((out / RIVALS).read_text()) == chosen
    assert again["chosen_rivals"] == results["chosen_rivals"]
    without = compare(TINY, parse_gates_list("none,se"), 2, out)
    assert [variant["gates"] for variant in without["variants"]] == ["none", "se"]
    assert "chosen_rivals" not in without
    assert all("rivals" not in variant and "rival_of" not in variant for variant in without["variants"])
