"""Check a run folder before a training, and find the checkpoint to resume from."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core.files import check_folder_writable, read_json_lines
from gatewise.core.run_files import CHECKPOINTS, CONFIG, LOG, METRICS, PREDICTIONS, RECIPE, RESULTS, WEIGHTS
from gatewise.core.schema import LogRow, of_file
from gatewise.models.serialization import read_metrics
from gatewise.training.checkpoint import complete_states, is_whole, keep_newest_states, state_progress


def is_finished(folder: Path) -> bool:
    """Return whether a run folder has metrics, which are written last."""
    return (folder / METRICS).exists()


def holds_run(out: Path) -> bool:
    """Return whether a folder contains results or checkpoints of a training; a recipe alone does not count."""
    trained = (out / RECIPE).exists() and (out / WEIGHTS).exists()  # of a run whose metrics were removed
    return trained or is_finished(out) or bool(complete_states(out / CHECKPOINTS))


def clear_checkpoints(out: Path, *, keep: bool) -> None:
    """Remove the checkpoints of a finished run, whose results are on the disk; `keep` leaves the last."""
    keep_newest_states(out / CHECKPOINTS, 1 if keep else 0)


def folder_of_results(run: str | Path, out: str | Path | None) -> Path:
    """Return the folder for results about a run, its own by default; raise `StorageError` if it cannot be written."""
    folder = Path(run if out is None else out)
    if out is not None or folder.is_dir():  # otherwise the file is no run, which is said when it is opened
        check_folder_writable(folder)
    return folder


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read and validate the rows of `log.jsonl`, one per epoch; [] if there is none."""
    file = folder / LOG
    rows = read_json_lines(file) if file.exists() else []
    for number, row in enumerate(rows, 1):
        of_file(f"{file}, line {number}", row, LogRow)
    return rows


def check_may_train(out: Path, *, resume: bool) -> None:
    """Raise unless a training may start in a folder, or continue there.

    Raises:
        InvalidValueError: the folder contains a comparison, files of another program, or a run while `resume` is not
            set.
        DataError: the folder contains checkpoints or metrics that cannot be used.
    """
    if (out / RESULTS).exists():
        raise errors.InvalidValueError(f"{out} contains a comparison. Choose another --out.")
    if not holds_run(out):
        _check_folder_is_ours(out)
        return
    check_run_format(out)
    if not (out / RECIPE).exists():
        raise errors.DataError(f"{out} contains checkpoints or results but no {RECIPE}. Choose another --out.")
    if not resume:
        raise errors.InvalidValueError(
            f"{out} already contains a run. Choose another --out, or continue with --resume."
        )


def _check_folder_is_ours(out: Path) -> None:
    """Raise if a folder without a recipe contains files that a training would overwrite."""
    for name in () if (out / RECIPE).exists() else (WEIGHTS, CONFIG, CHECKPOINTS, LOG, PREDICTIONS):
        if (out / name).exists():
            raise errors.InvalidValueError(f"{out} contains {name}, but not a gatewise run. Choose another --out.")


def check_run_format(out: Path) -> None:
    """Raise `NewerFormatError` if a newer version wrote a file of the run; other damage is reported on use."""
    readers = [(read_metrics, out)] if is_finished(out) else []
    for read, folder in [*readers, *((state_progress, state) for state in complete_states(out / CHECKPOINTS))]:
        try:
            read(folder)
        except errors.NewerFormatError:
            raise
        except errors.DataError:
            continue


def finished_metrics(out: Path) -> dict[str, Any] | None:
    """Return the metrics of a finished run, or None if there is something to train."""
    if not is_finished(out):
        return None
    try:
        return read_metrics(out)
    except errors.DataError as error:
        _, intact = _damaged_and_intact(out / CHECKPOINTS)
        again = "trains the run again." if intact is None else f"writes it again. {last_good(out)}"
        raise errors.DataError(f"{error} Or remove it: the same command with --resume {again}") from None


@contextlib.contextmanager
def naming_what_is_left(checkpoint: Path) -> Generator[None]:
    """Add to the error of a damaged checkpoint which older, intact one a training can resume from."""
    try:
        yield
    except errors.NewerFormatError:
        raise
    except errors.DataError as error:
        damaged, intact = _damaged_and_intact(checkpoint.parent, checkpoint)
        start = "the beginning" if intact is None else intact.name
        names = " and ".join(map(str, damaged))
        raise errors.DataError(f"{error} Or remove {names}: the training then continues from {start}.") from None


def last_good(out: Path) -> str:
    """Return a sentence that names the newest intact checkpoint, from which a training can resume."""
    _, intact = _damaged_and_intact(out / CHECKPOINTS)
    if intact is None:
        return "No checkpoint had been written."
    return f"The last good checkpoint is {intact}."


def _damaged_and_intact(folder: Path, *known_damaged: Path) -> tuple[list[Path], Path | None]:
    """Return the damaged checkpoints that are newer than the newest intact one, and that one or None."""
    damaged = list(known_damaged)
    for state in reversed(complete_states(folder)):
        if state in known_damaged:
            continue
        if is_whole(state):
            return damaged, state
        damaged.append(state)
    return damaged, None
