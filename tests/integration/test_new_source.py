"""Adding a data source is one file: tested on a copy of the package with CONTRIBUTING.md's example."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.project import ROOT
from support.project_copy import copy_with_example, example_in, run_commands

TRAIN = ["train", "--data", "photos", "--epochs", "1", "--batch-size", "8", "--workers", "0", "--precision", "fp32"]


def write_photos(folder: Path) -> None:
    """Write bright cats and dark dogs in train/ and val/."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for number in range(8):
            for name, brightness in (("cat", 200), ("dog", 20)):
                pixels = np.random.default_rng(number).integers(brightness, brightness + 50, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / f"{name}.{number}.png")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the page's example, one new file, and a folder of photos."""
    folder = tmp_path_factory.mktemp("project")
    copy_with_example(folder, "data/sources")
    write_photos(folder / "photos")
    return folder


def test_new_source_is_trained_explained_and_predicted_by_its_folder_alone(copy: Path) -> None:
    printed = run_commands(
        copy,
        [*TRAIN, "--gate", "gct", "--out", "run"],
        ["explain", "run", "--out", "page.html"],
        ["predict", "run", "photos/val/cat.0.png", "--json"],
    )
    assert json.loads((copy / "run/config.json").read_text())["classes"] == ["cat", "dog"]
    assert "data: photos\n" in (copy / "run/recipe.yaml").read_text()
    page = (copy / "page.html").read_text()
    assert "Statistics that need images are omitted" not in page, "the run was opened without its images"
    assert set(json.loads(printed.splitlines()[-1])["classes"]) == {"cat", "dog"}


def test_new_source_is_listed_in_help_and_errors(copy: Path) -> None:
    before = "a folder with train*.parquet, and val*.parquet if it is divided"
    listed = f"{before}, a folder with train/CLASS.*.jpg and val/CLASS.*.jpg, or a"
    printed = run_commands(copy, ["train", "--help"])
    assert listed in " ".join(printed.replace("│", " ").split())
    assert listed in run_commands(copy, ["train", "--data", "nowhere", "--out", "none"], code=2)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder with the example as an installed package has it: a module, and an entry point that names it."""
    folder = tmp_path / "site-packages"
    information = folder / "my_sources-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "my_sources.py").write_text(example_in("data/sources")[1])
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my_sources\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[gatewise.sources]\nnamed_files = my_sources\n")
    return folder


def loaded(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Load a data set in a process that can import from a folder, and print its classes or the error."""
    code = (
        "import sys\n"
        "from gatewise.data import load_dataset\n"
        "try: print(*load_dataset(sys.argv[1]).classes)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(folder)])}
    command = [sys.executable, "-c", code, source]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


@pytest.mark.extended
def test_source_of_installed_package_is_found(installed: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    assert loaded(installed, str(tmp_path / "photos")).stdout == "cat dog\n"


def test_package_that_cannot_be_imported_is_named(installed: Path) -> None:
    (installed / "my_sources.py").write_text("raise OSError('no disk')")
    assert loaded(installed, "digits").stdout == (
        "DataError the data source 'named_files' (my_sources) cannot be imported (no disk). Upgrade or uninstall its "
        "package.\n"
    )


@pytest.mark.parametrize(
    "source",
    [
        "my_sources",
        *(pytest.param(f"my_sources{end}", marks=pytest.mark.slow) for end in (":NamedFiles", ".NamedFiles")),
    ],
)
def test_data_names_no_module(installed: Path, source: str) -> None:
    """`--data` is also in the recipes of runs that others made."""
    shutil.rmtree(installed / "my_sources-1.0.dist-info")
    (installed / "my_sources.py").write_text("print('imported')")
    printed = loaded(installed, source).stdout
    assert printed.startswith(f"DataError data folder '{source}' does not exist")
