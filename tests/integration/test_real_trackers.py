"""Trackers with their real clients, offline; skipped where a client is not installed."""

import dataclasses
import sqlite3
from pathlib import Path

import pytest

from gatewise.training import Progress, train
from support.small_runs import DATASET, RECIPE

pytestmark = pytest.mark.slow
ONCE = dataclasses.replace(RECIPE, epochs=2, model="resnet20_wider:parameters=3000")


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(ONCE, tmp_path / "run", dataset=DATASET, track=("wandb",), progress=Progress())
    assert "cannot log" not in capsys.readouterr().err
    (file,) = (tmp_path / "run" / "wandb").rglob("*.wandb")
    assert b"validation_accuracy" in file.read_bytes()


def test_mlflow_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    database = tmp_path / "mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    train(ONCE, tmp_path / "run", dataset=DATASET, track=("mlflow",), progress=Progress())
    assert "cannot log" not in capsys.readouterr().err
    with sqlite3.connect(database) as connection:
        assert connection.execute("select name, status from runs").fetchall() == [("none seed 0", "FINISHED")]
        steps = connection.execute("select step from metrics where key = 'loss' order by step").fetchall()
    assert steps == [(3,), (6,)]
