"""Experiment trackers by name: what they get, and that a broken one does not stop a training."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking

from gatewise.errors import InvalidValueError, MissingExtraError
from gatewise.training import Progress, train
from gatewise.training.trackers import parse_trackers
from support.small_runs import DATASET, RECIPE, log

ONCE = dataclasses.replace(RECIPE, epochs=2, model="resnet20_wider:parameters=3000")


class Recording:
    """A tracker that keeps what it gets, or fails."""

    requires_logging_directory = False
    made: ClassVar[list["Recording"]] = []
    fails_at = ""

    def __init__(self, project: str, **options: Any) -> None:
        self.project, self.options = project, options
        self.config: dict[str, Any] = {}
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.finished = False
        self.made.append(self)

    def start(self) -> None:
        self._fail("start")

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.config = dict(values)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._fail("log")
        self.rows.append((step, dict(values)))

    def finish(self) -> None:
        self.finished = True

    def _fail(self, what: str) -> None:
        if self.fails_at == what:
            raise ConnectionError(f"no {what}")


@pytest.fixture(autouse=True)
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recording, "made", [])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recording)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])


def test_tracker_gets_recipe_and_the_rows_of_the_log(tmp_path: Path) -> None:
    train(ONCE, tmp_path / "run", dataset=DATASET, track=("wandb",))
    (tracker,) = Recording.made
    assert (tracker.project, tracker.options["name"]) == ("gatewise", "none seed 0")
    assert tracker.config["model"] == ONCE.model
    assert tracker.config["lr"] == 0.02
    expected = [
        (row["step"], {key: value for key, value in row.items() if key != "step"}) for row in log(tmp_path / "run")
    ]
    assert tracker.rows == expected
    assert tracker.finished
    assert not (tmp_path / "run/tensorboard").exists()


def test_default_is_tensorboard(tmp_path: Path) -> None:
    train(dataclasses.replace(ONCE, epochs=1), tmp_path / "run", dataset=DATASET)
    assert list((tmp_path / "run/tensorboard").iterdir())
    assert Recording.made == []
    train(dataclasses.replace(ONCE, epochs=1), tmp_path / "none", dataset=DATASET, track=())
    assert not (tmp_path / "none/tensorboard").exists()


@pytest.mark.parametrize("what", ["start", "log"])
def test_tracker_that_fails_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    monkeypatch.setattr(Recording, "fails_at", what)
    metrics = train(ONCE, tmp_path / "run", dataset=DATASET, track=("wandb",), progress=Progress())
    assert metrics["epochs"] == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert said == [f"warning: cannot log to wandb, tracking with it stops: no {what}"]


def test_trackers_are_checked_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"track.*'wandbb'.*Did you mean 'wandb'"):
        train(ONCE, tmp_path / "run", dataset=DATASET, track=("wandbb",))
    with pytest.raises(MissingExtraError, match="pip install comet_ml"):
        parse_trackers("wandb,comet_ml")
    assert parse_trackers("wandb, tensorboard,wandb") == ("wandb", "tensorboard")
    assert not (tmp_path / "run").exists()
