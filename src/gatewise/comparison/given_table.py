"""Read a table of scores: a row for each training, or for each image of each training."""

# pyright: basic

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gatewise import errors
from gatewise.comparison.given_results import Given
from gatewise.comparison.given_score import NAME, PERCENT, GivenScore
from gatewise.core import _validation
from gatewise.data.table_files import Table, read_table
from gatewise.training.tasks.base import ACCURACY

_TRUTH: dict[str, Any] = {"true": 1, "false": 0}
_KEYS = ("variant", "seed", "image")


def of_table(file: Path, score: GivenScore) -> Given:
    """Read a table with a row for each training, or for each image.

    Args:
        file: the table.
        score: unit and direction of the scores; the title is the name of their column.

    Raises:
        DataError: a column is missing, a cell is no number, or a row is there twice.
    """
    table = read_table(file)
    column = _score_column(file, list(table.columns))
    score = dataclasses.replace(score, title=column)
    by_image = "image" in table.columns
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for index in range(len(table)):
        variant, seed, image = (_name(table, key, index) for key in _KEYS)
        of_seed = found.setdefault(variant, {}).setdefault(seed, {})
        if image in of_seed:
            what = f"{variant}, seed {seed}" + (f", image {image}" if by_image else "")
            raise errors.DataError(f"{table.row(index)}: {what} is there twice. Keep one row for each.")
        of_seed[image] = _number(table.row(index), score, table.columns[column][index])
    if not by_image:
        return Given(score, {name: {seed: of[""] for seed, of in of_seeds.items()} for name, of_seeds in found.items()})
    names, images = _same_images(file, found), {}
    for variant, of_seeds in found.items():
        for seed, of_seed in of_seeds.items():
            values = [of_seed[name] for name in names]
            if None not in values:
                images.setdefault(variant, {})[seed] = torch.tensor(values, dtype=torch.float64)
    scores = {
        variant: {
            seed: float(images[variant][seed].mean()) if seed in images.get(variant, {}) else None for seed in of_seeds
        }
        for variant, of_seeds in found.items()
    }
    if all(((of == 0) | (of == 1)).all() for of_seeds in images.values() for of in of_seeds.values()):
        images = {name: {seed: of.bool() for seed, of in of_seeds.items()} for name, of_seeds in images.items()}
        if score.given_unit in {"", PERCENT}:  # right or wrong: the mean is an accuracy, or a fraction of another kind
            share = dataclasses.replace(score, is_fraction=True, given_unit="")
            return Given(ACCURACY if score.higher_is_better else share, scores, images)
    return Given(score, scores, images)


def _name(table: Table, key: str, index: int) -> str:
    """Return the variant, seed or image of a row; "" without such a column. A seed of 1.0 is the seed 1."""
    if key not in table.columns:
        return ""
    cell = table.columns[key][index]
    if cell is None or cell == "":
        raise errors.DataError(f"{table.row(index)}: the {key} is missing. Add it, or remove the row.")
    return re.sub(r"\.0*$", "", str(cell)) if key == "seed" else str(cell)


def _score_column(file: Path, columns: Sequence[str]) -> str:
    """Return the name of the column with the scores: score, or the only one that is left."""
    for key in _KEYS[:2]:
        if key not in columns:
            raise errors.DataError(
                f"{file} has no column {key!r}; expected variant, seed, score and, for a row an image, image; its "
                f"columns are {_validation.listed(columns)}. Rename one."
            )
    others = [name for name in columns if name not in _KEYS]
    if NAME in others:
        return NAME
    if len(others) != 1:
        raise errors.DataError(
            f"{file}: which column is the score? Expected one in addition to variant, seed and image, got "
            f"{_validation.listed(others) or 'none'}. Call it score."
        )
    return others[0]


def _number(where: str, score: GivenScore, cell: Any) -> float | None:
    """Return the number in a cell; None for an empty cell and NaN, which are trainings that failed."""
    if cell is None or cell == "":
        return None
    try:
        value = float(_TRUTH.get(str(cell).lower(), cell))
    except (TypeError, ValueError):
        raise errors.DataError(
            f"{where}: expected a number as {score.title}, got {_validation.safe_repr(cell)}. Correct it, or leave the "
            f"cell empty for a training that failed."
        ) from None
    if not math.isfinite(value):
        return None
    score.check(value, where)
    return value


def _same_images(file: Path, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return the names of the images; raise if a training has others."""
    trainings = [(variant, seed, of) for variant, of_seeds in found.items() for seed, of in of_seeds.items()]
    names = list(trainings[0][2])
    for variant, seed, of in trainings:
        if odd := set(of) ^ set(names):
            raise errors.DataError(
                f"{file}: {variant}, seed {seed} has other images than {trainings[0][0]}, seed {trainings[0][1]}: "
                f"{len(odd)} are in one of both, such as {min(odd)}. Score the same images with all."
            )
    return names
