"""A run folder before and after a training: whose it is, and what there is to go on from."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.serialization import METRICS, read_metrics
from gatewise.training.checkpoint import complete_states, is_whole, state_progress
from gatewise.training.recipe import Recipe


def holds_run(out: Path) -> bool:
    """Whether a folder holds anything that a training has come to; a recipe alone is nothing yet."""
    return (out / METRICS).exists() or bool(complete_states(out / "checkpoints"))


def claim(out: Path, recipe: Recipe, *, resume: bool) -> dict[str, Any] | None:
    """Refuse a folder that holds another run; return the metrics of a finished one."""
    if (out / "results.json").exists():
        raise errors.InvalidValueError(f"{out} holds a comparison. Choose another --out.")
    if not holds_run(out):
        _check_folder_is_ours(out)
        return None
    check_run_format(out)
    if not (out / "recipe.yaml").exists():
        raise errors.DataError(f"{out} holds checkpoints or results but no recipe.yaml. Choose another --out.")
    if not resume:
        raise errors.InvalidValueError(f"{out} holds a run already. Choose another --out, or go on with --resume.")
    Recipe.load(out / "recipe.yaml").check_same_recipe(recipe, out)
    if (out / METRICS).exists():
        return _finished(out)
    return None


def _check_folder_is_ours(out: Path) -> None:
    """Refuse a folder with weights or checkpoints that no training of ours has begun: they would be written over."""
    for name in () if (out / "recipe.yaml").exists() else ("model.safetensors", "config.json", "checkpoints"):
        if (out / name).exists():
            raise errors.InvalidValueError(f"{out} holds {name}, but no run of gatewise. Choose another --out.")


def check_run_format(out: Path) -> None:
    """Refuse a run of which a file is of a newer format; other damage is found where the file is needed."""
    readers = [(read_metrics, out)] if (out / METRICS).exists() else []
    for read, folder in [*readers, *((state_progress, state) for state in complete_states(out / "checkpoints"))]:
        try:
            read(folder)
        except errors.NewerFormatError:
            raise
        except errors.DataError:
            continue


def _finished(out: Path) -> dict[str, Any]:
    try:
        return read_metrics(out)
    except errors.DataError as error:
        raise errors.DataError(
            f"{error} Or remove it: the same command with --resume then writes it again. {last_good(out)}"
        ) from None


@contextlib.contextmanager
def naming_what_is_left(checkpoint: Path) -> Generator[None]:
    """Add to the refusal of a damaged checkpoint which other, whole one there is to go on from."""
    try:
        yield
    except errors.NewerFormatError:
        raise
    except errors.DataError as error:
        damaged, whole = _damaged_and_whole(checkpoint.parent, checkpoint)
        rest = "the beginning" if whole is None else whole.name
        names = " and ".join(map(str, damaged))
        raise errors.DataError(f"{error} Or remove {names}: the training then goes on from {rest}.") from None


def last_good(out: Path) -> str:
    """Say which checkpoint a training can go on from: the newest that is whole."""
    _, whole = _damaged_and_whole(out / "checkpoints")
    if whole is None:
        return "No checkpoint had been written."
    return f"The last good checkpoint is {whole}."


def _damaged_and_whole(folder: Path, *damaged: Path) -> tuple[list[Path], Path | None]:
    """Return the newest checkpoint that is whole, if there is one, and the damaged ones before which it comes."""
    found = list(damaged)
    for state in reversed(complete_states(folder)):
        if state in damaged:
            continue
        if is_whole(state):
            return found, state
        found.append(state)
    return found, None
