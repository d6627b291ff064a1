"""The trial of timm's architectures: its rows, and the tool that writes them."""

import json

import pytest
import timm
import torch

from tools.timm_networks import RESULTS, STEPS, Trial, WrongResultError, built, summary, verdict

CONTENT = json.loads(RESULTS.read_text())


@pytest.mark.situation("networks of timm: the smallest of each architecture")
def test_no_architecture_gives_a_wrong_result() -> None:
    tried = [row["module"] for row in CONTENT["rows"]]
    assert len(tried) == len(set(tried)) >= 59
    if CONTENT["environment"]["timm"] == timm.__version__:
        architectures = set(timm.list_modules()) - {"timm"}  # as gatewise.integrations.timm registers its names
        assert set(tried) <= architectures
        assert CONTENT["modules"] == len(architectures)
    assert all(list(row["steps"]) == list(STEPS) for row in CONTENT["rows"])
    assert [row["model"] for row in CONTENT["rows"] if verdict(row) == "wrong result"] == []
    assert "| skip |" in summary(CONTENT)


@pytest.mark.slow
def test_tool_tries_every_step_on_a_small_network() -> None:
    trial = Trial(*built("test_resnet"))
    remarks = {name: step() for name, step in trial.steps()}
    assert list(remarks) == list(STEPS)
    assert remarks["insert gct"] == "15 gates"
    assert remarks["check"] == ""
    assert remarks["skip"] == "7 of 7 layers skip"
    removed, _, closed = remarks["compact"].partition(" of ")
    assert 0 < int(removed) == int(closed.split()[0])


@pytest.mark.slow
def test_tool_detects_a_wrong_result() -> None:
    trial = Trial(*built("test_resnet"))
    trial.plain = [output + 1 for output in trial.plain]
    with pytest.raises(WrongResultError, match="new gates change the output"):
        trial.inserts_gct()
    with pytest.raises(WrongResultError, match="all gates open: the output differs by"):
        trial.opens_all()
    trial.before = {name: torch.zeros_like(value) for name, value in trial.before.items()}
    with pytest.raises(WrongResultError, match="the state dict is another after undo"):
        trial.undoes()
