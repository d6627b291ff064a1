"""Images of four bands and 12 bits, through train, reopen, predict and the metadata of an exported file."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from gatewise.exporting.prediction import Predictor, predict
from gatewise.exporting.writer import _details
from gatewise.training import Recipe, train
from gatewise.training.runs import Run


def write(root: Path) -> None:
    """Write four bands of 12 bits, of which the fourth decides the class."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for number in range(count):
            values = random.integers(0, 400, (8, 8, 4), dtype=np.uint16)
            values[..., 3] += 3000 * (number % 2)
            file = root / split / "ab"[number % 2] / f"{number}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, values)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("bands")
    write(root / "data")
    recipe = Recipe(
        data=str(root / "data"), channels="all", model="resnet20_wider:parameters=3000", gate="gct", epochs=1,
        batch_size=6, precision="fp32",
    )  # fmt: skip
    train(recipe, root / "run")
    return Run.open(root / "run")


@pytest.mark.situation("pixels: four bands of 12 bits from training to prediction")
def test_prediction_reads_bands_and_ranges_as_the_training_did(run: Run) -> None:
    stored = run.config["pixels"]
    assert (stored["channels"], stored["of"], len(stored["ranges"])) == ([1, 2, 3, 4], 4, 4)
    assert all(low < 30 and 370 < high < 3400 for low, high in stored["ranges"])
    assert run.dataset is not None
    assert run.dataset.pixel_format == run.pixel_format
    ((images, _),) = list(run.batches())
    with torch.no_grad():
        expected = run.model(images).softmax(1).cpu()
    files = [Path(run.recipe.data) / f"val/{'ab'[n % 2]}/{n}.npy" for n in (0, 2, 4, 1, 3, 5)]
    for row, prediction in zip(expected, predict(run.folder, files), strict=True):
        shares = [prediction["classes"][name] for name in "ab"]
        assert shares == pytest.approx(row.tolist(), abs=1e-5)


def test_exported_files_have_bands_and_ranges(run: Run) -> None:
    assert _details(run)["pixels"] == run.config["pixels"]


def test_files_of_other_bands_are_rejected(run: Run) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((8, 8, 5), np.uint16))
    with pytest.raises(ValueError, match=r"x\.npy has 5 bands, other images have 4"):
        Predictor.of(run.folder).pixel_format.decode("x.npy", buffer.getvalue())
